//! Freshness: a verdict holds for the bytes that were scanned, no longer.
//!
//! On ext4, where the kernel keeps clean files to itself, and on tmpfs, where
//! each open is scanned. Every change that makes a clean file an infected one
//! must be followed by a refusal: at once after a write, within
//! [`common::STORE_WINDOW`] after a store through a shared mapping.

mod common;

use std::{
    fs::{self, File, FileTimes, Permissions},
    io::{BufRead, BufReader, Read, Write},
    os::unix::{ffi::OsStrExt, fs::PermissionsExt},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

use common::{
    FakeSite, LIMIT, NO_LONGER_YOUNG, STORE_WINDOW, STORES, Site, WRITES, Way, assert_opens,
    assert_refused, clean, clean_pages, counter, counters, infected, map, open_until_marked,
    opened, refused_within,
};
use onacc_tests::{
    Agent, Behaviour, Opening, ScratchFs, clamd::wait_until, open_within, or_skip, require_root,
    sys,
};

/// A clean file for each of these ways.
fn clean_files(site: &Site, ways: &[Way]) -> Vec<PathBuf> {
    let write = |(n, way): (usize, &Way)| site.write(way.file_name(), &clean_pages(n));
    ways.iter().enumerate().map(write).collect()
}

/// Infects each file in its way, and opens it within the window.
fn assert_all_refused(ways: &[Way], paths: &[PathBuf], window: Duration) {
    let mut slipped = Vec::new();
    for (way, path) in ways.iter().zip(paths) {
        assert_opens(path);
        let held = (way.infect)(path);
        if refused_within(path, window).is_none() {
            slipped.push(way.name);
        }
        drop(held);
        assert_refused(path);
    }
    assert!(slipped.is_empty(), "not refused in time: {slipped:?}");
}

#[test]
fn repeat_opens_of_a_clean_file_are_no_events() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let path = site.write("good", &clean());
    let agent = site.agent().start();
    open_until_marked(&agent, std::slice::from_ref(&path));
    let before = counters(&agent);
    for _ in 0..100 {
        let mut content = Vec::new();
        assert_opens(&path).read_to_end(&mut content).unwrap();
        assert_eq!(content, clean());
    }
    let after = counters(&agent);
    assert_eq!(after["events"], before["events"]);
    assert_eq!(after["marks_placed"], before["marks_placed"]);
    assert_eq!(after["scans"], before["scans"]);
}

#[test]
fn a_clean_file_that_is_written_to_is_refused_at_once() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let paths = clean_files(&site, WRITES);
    let agent = site.agent().start();
    open_until_marked(&agent, &paths);
    assert_all_refused(WRITES, &paths, Duration::ZERO);
}

/// The write is reported, upon which the agent takes the mark away: the open that
/// comes in that very moment must not slip by. (`cargo xtask chaos` found that an
/// open which meets a mark that is being destroyed does.)
#[test]
fn of_a_thousand_marked_files_not_one_slips_by_when_written_and_opened() {
    const FILES: usize = 1000;
    require_root!();
    let site = or_skip!(Site::ext4());
    let agent = site.agent().start();
    let paths: Vec<PathBuf> = (0..FILES)
        .map(|n| site.write(format!("f{n}"), &clean()))
        .collect();
    thread::sleep(NO_LONGER_YOUNG);
    let marked = wait_until(LIMIT, || {
        for path in &paths {
            assert_opens(path);
        }
        counter(&agent, "marks_placed") >= FILES as u64
    });
    assert!(marked, "{}", agent.output());
    let slipped = paths.iter().filter(|path| {
        fs::write(path, infected()).expect("writing a file");
        File::open(path).is_ok()
    });
    assert_eq!(slipped.count(), 0, "of {FILES}");
}

/// Openers of an infected file that come at once: the scan that the first begins
/// asks the kernel whether the file has writers, by a mark, and no open may slip by
/// when that mark is destroyed.
#[test]
fn of_openers_that_come_at_once_not_one_slips_by() {
    const FILES: usize = 3000;
    const OPENERS: usize = 2;
    require_root!();
    let site = or_skip!(Site::ext4());
    let paths: Vec<PathBuf> = (0..FILES)
        .map(|n| site.write(format!("f{n}"), &infected()))
        .collect();
    thread::sleep(NO_LONGER_YOUNG);
    let agent = site.agent().guard(Duration::from_mins(3)).start();
    let arrived = AtomicUsize::new(0);
    let open_all = |opener: usize| {
        let mut slipped = 0;
        for (n, path) in paths.iter().enumerate() {
            arrived.fetch_add(1, Ordering::SeqCst);
            while arrived.load(Ordering::SeqCst) < (n + 1) * OPENERS {
                std::hint::spin_loop();
            }
            // The others come while the scan of the first begins.
            let late = Duration::from_micros((opener * (n % 80)) as u64);
            let since = Instant::now();
            while since.elapsed() < late {}
            slipped += usize::from(File::open(path).is_ok());
        }
        slipped
    };
    let slipped: usize = thread::scope(|scope| {
        let open_all = &open_all;
        let openers: Vec<_> = (0..OPENERS)
            .map(|opener| scope.spawn(move || open_all(opener)))
            .collect();
        let counts = openers.into_iter().map(thread::ScopedJoinHandle::join);
        counts.map(|count| count.expect("an opener")).sum()
    });
    assert_eq!(slipped, 0, "of {FILES}\n{}", agent.output());
}

#[test]
fn a_clean_file_that_is_stored_into_through_a_mapping_is_refused() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let paths = clean_files(&site, STORES);
    let agent = site.agent().start();
    open_until_marked(&agent, &paths);
    assert_all_refused(STORES, &paths, STORE_WINDOW);
    assert!(counter(&agent, "marks_dropped_dirty") >= STORES.len() as u64);
}

/// A process of its own that has mapped a file.
struct Mapper {
    child: Child,
    said: BufReader<std::process::ChildStdout>,
}

impl Mapper {
    fn start(path: &std::path::Path, offset: usize, bytes: &[u8]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mapper"));
        command
            .arg(path)
            .arg(offset.to_string())
            .arg(std::ffi::OsStr::from_bytes(bytes))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = sys::die_with_parent(&mut command)
            .spawn()
            .expect("the process starts");
        let said = BufReader::new(child.stdout.take().expect("it is a pipe"));
        let mut mapper = Self { child, said };
        mapper.expect("mapped");
        mapper
    }

    fn expect(&mut self, word: &str) {
        let mut line = String::new();
        self.said.read_line(&mut line).expect("reading a line");
        assert_eq!(line.trim_end(), word);
    }

    fn store(&mut self) {
        self.child
            .stdin
            .as_mut()
            .expect("it is a pipe")
            .write_all(b"\n")
            .expect("writing");
        self.expect("stored");
    }

    fn end(mut self) {
        drop(self.child.stdin.take());
        assert!(self.child.wait().expect("waiting").success());
    }
}

#[test]
fn a_store_by_another_process_is_seen() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let paths = ["held", "ended", "mapped before"]
        .map(|name| site.write(name, &clean()))
        .to_vec();
    // This one maps the file before the agent knows it, and stores nothing yet.
    let mut early = Mapper::start(&paths[2], 0, &infected());
    let agent = site.agent().start();
    open_until_marked(&agent, &paths[..2]);
    let mut held = Mapper::start(&paths[0], 0, &infected());
    assert_opens(&paths[0]);
    held.store();
    assert!(refused_within(&paths[0], STORE_WINDOW).is_some());
    let mut ended = Mapper::start(&paths[1], 0, &infected());
    ended.store();
    ended.end();
    assert!(refused_within(&paths[1], STORE_WINDOW).is_some());
    thread::sleep(NO_LONGER_YOUNG);
    for _ in 0..5 {
        assert_opens(&paths[2]);
    }
    early.store();
    assert!(refused_within(&paths[2], STORE_WINDOW).is_some());
    held.end();
    early.end();
    for path in &paths {
        assert_refused(path);
    }
}

#[test]
fn stores_that_race_with_opens_end_in_a_refusal() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let agent = site.agent().start();
    for round in 0..12 {
        let path = site.write(format!("{round}"), &clean_pages(round));
        thread::sleep(NO_LONGER_YOUNG);
        thread::scope(|scope| {
            // Opens while the store comes, so that a mark is being placed then.
            let opener = scope.spawn(|| {
                for _ in 0..20 {
                    drop(File::open(&path));
                }
            });
            let mut mapping = map(&path);
            mapping.store(0, &infected());
            opener.join().unwrap();
        });
        let took = refused_within(&path, STORE_WINDOW);
        assert!(took.is_some(), "round {round}: {:?}", counters(&agent));
        assert_refused(&path);
    }
}

#[test]
fn on_tmpfs_every_change_is_refused_at_once_and_nothing_is_marked() {
    require_root!();
    let site = or_skip!(Site::tmpfs());
    let ways = || WRITES.iter().chain(STORES);
    let agent = site.agent().start();
    let mut slipped = Vec::new();
    for (n, way) in ways().enumerate() {
        let path = site.write(way.file_name(), &clean_pages(n));
        thread::sleep(NO_LONGER_YOUNG);
        assert_opens(&path);
        assert_opens(&path);
        let held = (way.infect)(&path);
        if refused_within(&path, Duration::ZERO).is_none() {
            slipped.push(way.name);
        }
        drop(held);
        assert_refused(&path);
    }
    assert!(slipped.is_empty(), "not refused at once: {slipped:?}");
    assert_eq!(counter(&agent, "marks_placed"), 0);
}

/// Where there are no marks, each open is judged, by known verdicts or a scan.
fn assert_changes_are_refused(scratch: ScratchFs) -> Result<(), String> {
    let site = Site::on(scratch)?;
    let _agent = site.agent().start();
    for (n, way) in WRITES.iter().chain(STORES).enumerate() {
        let path = site.write(way.file_name(), &clean_pages(n));
        for _ in 0..3 {
            thread::sleep(NO_LONGER_YOUNG);
            assert_opens(&path);
        }
        let held = (way.infect)(&path);
        let took = refused_within(&path, Duration::ZERO);
        assert!(took.is_some(), "{}", way.name);
        drop(held);
        assert_refused(&path);
    }
    Ok(())
}

#[test]
fn on_xfs_every_change_is_refused() {
    require_root!();
    let scratch = or_skip!(ScratchFs::xfs(320));
    or_skip!(assert_changes_are_refused(scratch));
}

#[test]
fn on_btrfs_every_change_is_refused() {
    require_root!();
    let scratch = or_skip!(ScratchFs::btrfs(128));
    or_skip!(assert_changes_are_refused(scratch));
}

/// A site whose clamd judges what a file holds when the request comes, and says
/// so only after a while; and how often it has judged.
fn slow_to_answer(delay: Duration) -> Result<(FakeSite, Arc<AtomicUsize>), String> {
    let judged = Arc::new(AtomicUsize::new(0));
    let counting = Arc::clone(&judged);
    let site = FakeSite::ext4(move |request| {
        let verdict = if request.content().starts_with(&infected()) {
            Behaviour::infected("Late.Truth")
        } else {
            Behaviour::clean()
        };
        counting.fetch_add(1, Ordering::SeqCst);
        verdict.after(delay)
    })?;
    Ok((site, judged))
}

#[test]
fn a_store_through_a_mapping_during_a_scan_leaves_no_clean_verdict() {
    require_root!();
    let (site, judged) = or_skip!(slow_to_answer(Duration::from_millis(400)));
    let judged = || judged.load(Ordering::SeqCst);
    // Who stores when, while the scan is pending: through a page that has long
    // been writable, so that the store raises no fault; or one mapped just now.
    for name in ["unmapped in time", "still mapped", "mapped during the scan"] {
        let path = site.write(name, &clean());
        let agent = site.agent().start();
        let mut mapping = (name != "mapped during the scan").then(|| {
            let mut mapping = map(&path);
            mapping.store(0, b"CLEAN");
            mapping
        });
        thread::sleep(Duration::from_millis(150));
        let before = judged();
        let opening = Opening::start(&path);
        assert!(wait_until(LIMIT, || judged() > before), "{name}");
        let storing = mapping.get_or_insert_with(|| map(&path));
        storing.store(0, &infected());
        if name == "unmapped in time" {
            mapping = None;
        }
        opened(opening.within(LIMIT), &path);
        // The scan is over. What it said is of bytes that are no longer there.
        let again = open_within(&path, LIMIT);
        assert!(
            again.is_refused(),
            "{name}: {again:?}\n{:?}",
            counters(&agent)
        );
        assert!(judged() >= before + 2, "{name}: it was scanned again");
        drop(mapping);
        assert_refused(&path);
    }
}

#[test]
fn a_write_during_a_scan_leaves_no_clean_verdict() {
    require_root!();
    let (site, judged) = or_skip!(slow_to_answer(Duration::from_millis(300)));
    let path = site.write("a", &clean());
    thread::sleep(NO_LONGER_YOUNG);
    // Open for writing before the agent comes.
    let mut writer = File::options().write(true).open(&path).unwrap();
    let _agent = site.agent().start();
    let opening = Opening::start(&path);
    assert!(wait_until(LIMIT, || judged.load(Ordering::SeqCst) > 0));
    writer.write_all(&infected()).unwrap();
    drop(writer);
    opened(opening.within(LIMIT), &path);
    assert_refused(&path);
}

#[test]
fn a_write_during_a_scan_whose_stamps_are_put_back_leaves_no_clean_verdict() {
    require_root!();
    let (site, judged) = or_skip!(slow_to_answer(Duration::from_millis(400)));
    let path = site.write("a", &clean());
    thread::sleep(NO_LONGER_YOUNG);
    let before = fs::metadata(&path).unwrap();
    let _agent = site.agent().option("OnAccessExcludeUID 4711").start();
    let opening = Opening::start(&path);
    assert!(wait_until(LIMIT, || judged.load(Ordering::SeqCst) > 0));
    // Only one who is excluded can open it now without waiting for the scan.
    fs::set_permissions(&path, Permissions::from_mode(0o666)).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            sys::become_user_on_this_thread(4711, 4711).unwrap();
            let mut content = infected();
            content.resize(clean().len(), b' ');
            fs::OpenOptions::new()
                .write(true)
                .open(&path)
                .unwrap()
                .write_all(&content)
                .unwrap();
        });
    });
    let path_text = path.to_str().unwrap();
    let seconds = before
        .modified()
        .unwrap()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap();
    let stamp = format!("@{}.{:09}", seconds.as_secs(), seconds.subsec_nanos());
    let status = Command::new("touch")
        .args(["-c", "-d", &stamp, path_text])
        .status();
    assert!(status.unwrap().success());
    let now = fs::metadata(&path).unwrap();
    assert_eq!(now.modified().unwrap(), before.modified().unwrap());
    assert_eq!(now.len(), before.len());
    opened(opening.within(LIMIT), &path);
    for _ in 0..3 {
        assert_refused(&path);
    }
}

#[test]
fn an_opener_does_not_join_a_scan_of_older_bytes() {
    require_root!();
    // Judged by length: truncate(2) changes that and opens nothing.
    let judged = Arc::new(AtomicUsize::new(0));
    let counting = Arc::clone(&judged);
    let site = or_skip!(FakeSite::ext4(move |request| {
        let verdict = if request.content().len() < 100 {
            Behaviour::infected("Too.Short")
        } else {
            Behaviour::clean()
        };
        counting.fetch_add(1, Ordering::SeqCst);
        verdict.after(Duration::from_millis(400))
    }));
    let path = site.write("a", &clean());
    thread::sleep(NO_LONGER_YOUNG);
    let _agent = site.agent().start();
    let first = Opening::start(&path);
    assert!(wait_until(LIMIT, || judged.load(Ordering::SeqCst) > 0));
    let same = Opening::start(&path);
    thread::sleep(Duration::from_millis(50));
    nix::unistd::truncate(&path, 10).unwrap();
    let second = Opening::start(&path);
    opened(first.within(LIMIT), &path);
    opened(same.within(LIMIT), &path);
    let second = second.within(LIMIT);
    assert!(second.is_refused(), "{second:?}");
}

#[test]
fn stamps_and_modes_change_no_verdict() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let (good, bad) = (site.write("good", &clean()), site.write("bad", &infected()));
    let agent = site.agent().start();
    open_until_marked(&agent, std::slice::from_ref(&good));
    assert_refused(&bad);
    let set_times = |path: &PathBuf, to: SystemTime| {
        let path = path.to_str().unwrap();
        let seconds = to.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        // By path: an infected file cannot be opened for it.
        let status = Command::new("touch")
            .args(["-d", &format!("@{seconds}"), "-c", path])
            .status();
        assert!(status.unwrap().success());
    };
    let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_001);
    for path in [&good, &bad] {
        let expect = || {
            for _ in 0..3 {
                if path == &good {
                    assert_opens(path);
                } else {
                    assert_refused(path);
                }
            }
        };
        set_times(path, long_ago);
        expect();
        fs::set_permissions(path, Permissions::from_mode(0o600)).unwrap();
        expect();
        set_times(path, SystemTime::now() + Duration::from_hours(24 * 365));
        expect();
        let other = path.with_extension("other");
        fs::rename(path, &other).unwrap();
        fs::rename(&other, path).unwrap();
        expect();
    }
    // The atime alone, by an open file.
    let file = assert_opens(&good);
    file.set_times(FileTimes::new().set_accessed(long_ago))
        .unwrap();
    assert_opens(&good);
    assert_refused(&bad);
}

#[test]
fn stamps_that_are_put_back_hide_no_change() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let path = site.write("good", &clean());
    let agent = site.agent().start();
    open_until_marked(&agent, std::slice::from_ref(&path));
    let before = fs::metadata(&path).unwrap();
    let mut content = infected();
    content.resize(clean().len(), b' ');
    let mut file = File::options().write(true).open(&path).unwrap();
    file.write_all(&content).unwrap();
    let times = FileTimes::new()
        .set_accessed(before.accessed().unwrap())
        .set_modified(before.modified().unwrap());
    file.set_times(times).unwrap();
    drop(file);
    assert_eq!(fs::metadata(&path).unwrap().len(), before.len());
    for _ in 0..3 {
        assert_refused(&path);
    }
}

#[test]
fn an_infected_file_that_is_replaced_by_a_clean_one_opens() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let path = site.write("bad", &infected());
    let held = File::options().write(true).open(&path).unwrap();
    let _agent = site.agent().start();
    for _ in 0..3 {
        assert_refused(&path);
        thread::sleep(NO_LONGER_YOUNG);
    }
    // Cleaned by one who had it open before.
    held.set_len(0).unwrap();
    (&held).write_all(&clean()).unwrap();
    assert_opens(&path);
    drop(held);
    assert_opens(&path);
    let other = site.write("other", &infected());
    assert_refused(&other);
    thread::sleep(NO_LONGER_YOUNG);
    assert_refused(&other);
    let new = site.write("new", &clean());
    fs::rename(&new, &other).unwrap();
    assert_opens(&other);
}

#[test]
fn marks_and_verdicts_go_when_clamd_has_another_database() {
    require_root!();
    let updated = Arc::new(AtomicBool::new(false));
    let is_updated = Arc::clone(&updated);
    let site = or_skip!(FakeSite::with_script(move |request| {
        let updated = is_updated.load(Ordering::SeqCst);
        match request.command.as_str() {
            "VERSION" if updated => Behaviour::reply("ClamAV 1.4.6/27001/a day later"),
            "FILDES" if updated => Behaviour::infected("Known.Now"),
            _ => Behaviour::usual(),
        }
    }));
    let path = site.write("good", &clean());
    let agent = site.agent().start();
    open_until_marked(&agent, std::slice::from_ref(&path));
    updated.store(true, Ordering::SeqCst);
    assert!(
        refused_within(&path, LIMIT).is_some(),
        "{:?}",
        counters(&agent)
    );
}

#[test]
fn a_signature_that_clamd_loads_without_a_version_counts_from_then_on() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let version = onacc_tests::clamd::ask(&site.clamd().socket(), "VERSION", LIMIT).unwrap();
    assert!(!version.contains('/'), "the database has none: {version}");
    let words = b"harmless until today".repeat(40);
    let (marked, known) = (site.write("marked", &words), site.write("known", &clean()));
    let agent = site
        .agent()
        .option(&format!(
            "DatabaseDirectory {}",
            site.clamd().database().display()
        ))
        .start();
    open_until_marked(&agent, &[marked.clone(), known.clone()]);
    let line = common::signature("Onacc.Test.Today", "0", &words[..40]);
    fs::write(site.clamd().database().join("today.ndb"), line).unwrap();
    // Not loaded: nothing is judged anew.
    let before = counters(&agent);
    for _ in 0..3 {
        assert_opens(&marked);
        assert_opens(&known);
    }
    assert_eq!(counters(&agent)["scans"], before["scans"]);
    site.clamd().reload();
    let took = refused_within(&marked, LIMIT);
    assert!(took.is_some(), "{:?}", counters(&agent));
    eprintln!("refused after {took:?}");
    assert_opens(&known);
}

#[test]
fn marks_go_with_the_agent() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let path = site.write("good", &clean());
    let start = || -> Agent { site.agent().start() };
    let agent = start();
    open_until_marked(&agent, std::slice::from_ref(&path));
    drop(agent);
    fs::write(&path, infected()).unwrap();
    let agent = start();
    assert_refused(&path);
    assert!(wait_until(LIMIT, || agent.log().contains(" FOUND")));
}
