//! Several clamds: shares, failures, silence, recovery; and what is said twice.

mod common;

use std::{
    fs,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use common::{
    FakeSite, LIMIT, SOON, assert_opens, assert_refused, clean, counter, infected, open_all,
    refused_within,
};
use onacc_tests::{
    Agent, Behaviour, FakeClamd, Opened, Opening, RequestInfo, ScratchFs, agent::AgentBuilder,
    clamd::wait_until, open_within, or_skip, require_root,
};

/// Two scripted clamds, and a filesystem.
struct Two {
    fakes: [Option<FakeClamd>; 2],
    dirs: [tempfile::TempDir; 2],
    scratch: ScratchFs,
}

impl Two {
    fn new(
        first: impl Fn(&RequestInfo) -> Behaviour + Send + Sync + 'static,
        second: impl Fn(&RequestInfo) -> Behaviour + Send + Sync + 'static,
    ) -> Result<Self, String> {
        let scratch = ScratchFs::ext4(32)?;
        scratch.mkdir("in");
        let dirs = [(); 2].map(|()| tempfile::tempdir().expect("a directory"));
        let fakes = [
            Some(FakeClamd::start(dirs[0].path(), first)),
            Some(FakeClamd::start(dirs[1].path(), second)),
        ];
        Ok(Self {
            fakes,
            dirs,
            scratch,
        })
    }

    fn write(&self, name: &str, content: &[u8]) -> PathBuf {
        self.scratch.write(format!("in/{name}"), content)
    }

    fn files(&self, name: &str, count: usize) -> Vec<PathBuf> {
        (0..count)
            .map(|n| self.write(&format!("{name}{n}"), format!("{name} {n}").as_bytes()))
            .collect()
    }

    /// Opens files until this one has scanned: it is known to be there then.
    fn warm_up(&self, which: usize) {
        let mut round = 0;
        let asked = wait_until(LIMIT, || {
            round += 1;
            let files = self.files(&format!("warm{which}-{round}-"), 6);
            assert!(open_all(&files, LIMIT).iter().all(Opened::is_open));
            self.scans(which) > 0
        });
        assert!(asked, "server {which} is never asked");
    }

    fn scans(&self, which: usize) -> usize {
        self.fakes[which]
            .as_ref()
            .map_or(0, |fake| fake.count("FILDES"))
    }

    fn agent(&self, weights: [u32; 2]) -> AgentBuilder {
        let settings = self.dirs[0].path().join("onacc.toml");
        let each = self.dirs.iter().zip(weights).map(|(dir, weight)| {
            format!(
                "[[server]]\nAddress = \"{}/clamd.sock\"\nWeight = {weight}\n",
                dir.path().display()
            )
        });
        fs::write(&settings, each.collect::<Vec<_>>().concat()).expect("writing settings");
        Agent::without_clamd()
            .arg(&format!("--settings={}", settings.display()))
            .prevention(true)
            .include(self.scratch.join("in"))
    }
}

fn slowly(request: &RequestInfo) -> Behaviour {
    match request.command.as_str() {
        "FILDES" => Behaviour::usual().after(Duration::from_millis(40)),
        _ => Behaviour::usual(),
    }
}

fn silent(_: &RequestInfo) -> Behaviour {
    Behaviour::never()
}

#[test]
fn scans_are_shared_by_weight() {
    require_root!();
    let two = or_skip!(Two::new(slowly, slowly));
    let files = two.files("f", 160);
    let agent = two
        .agent([100, 300])
        .option("OnAccessMaxThreads 16")
        .start();
    two.warm_up(0);
    two.warm_up(1);
    let before = [two.scans(0), two.scans(1)];
    for part in files.chunks(32) {
        assert!(open_all(part, LIMIT).iter().all(Opened::is_open));
    }
    let (few, many) = (two.scans(0) - before[0], two.scans(1) - before[1]);
    assert!(few + many >= 160);
    assert!((15..=65).contains(&few), "{few} and {many}");
    // Prescans may be under way, and what is answered is counted after that.
    assert!(wait_until(SOON, || {
        counter(&agent, "server1_clean") == two.scans(0) as u64
            && counter(&agent, "server2_clean") == two.scans(1) as u64
    }));
    assert!(counter(&agent, "opener_wait_count") >= 160);
}

#[test]
fn a_server_that_dies_is_made_up_for_by_the_other_and_used_again() {
    require_root!();
    let mut two = or_skip!(Two::new(slowly, slowly));
    let (bad, files) = (two.write("bad", &infected()), two.files("f", 24));
    let agent = two.agent([300, 100]).option("OnAccessMaxThreads 8").start();
    two.warm_up(0);
    let openings: Vec<Opening> = files.iter().map(|path| Opening::start(path)).collect();
    assert!(two.fakes[0].as_ref().unwrap().wait_for_scans(2, LIMIT));
    two.fakes[0] = None;
    for opening in openings {
        assert!(opening.within(LIMIT).is_open());
    }
    assert_refused(&bad);
    let failures = ["timeouts", "unreachable", "scan_errors"];
    for name in failures {
        assert_eq!(counter(&agent, name), 0, "{name}");
    }
    assert!(counter(&agent, "server1_lost") >= 1);
    two.fakes[0] = Some(FakeClamd::start(two.dirs[0].path(), slowly));
    let mut round = 0;
    let used_again = wait_until(LIMIT, || {
        round += 1;
        let more = two.files(&format!("again{round}-"), 8);
        assert!(open_all(&more, LIMIT).iter().all(Opened::is_open));
        two.scans(0) > 0
    });
    assert!(used_again, "{}", agent.output());
}

#[test]
fn a_server_that_goes_silent_is_made_up_for_within_the_bound() {
    require_root!();
    let quiet = Arc::new(AtomicBool::new(false));
    let hushed = Arc::clone(&quiet);
    let two = or_skip!(Two::new(
        move |request| if hushed.load(Ordering::SeqCst) {
            Behaviour::never()
        } else {
            slowly(request)
        },
        slowly,
    ));
    let files = two.files("f", 12);
    let bad = two.write("bad", &infected());
    let agent = two
        .agent([9_000, 1])
        .option("OnAccessCurlTimeout 4000")
        .option("OnAccessMaxThreads 8")
        .start();
    two.warm_up(0);
    quiet.store(true, Ordering::SeqCst);
    let opens = open_all(files.iter().chain([&bad]), LIMIT);
    for open in &opens[..12] {
        assert!(open.is_open(), "{open:?}");
    }
    assert!(opens[12].is_refused(), "{:?}", opens[12]);
    assert_eq!(counter(&agent, "timeouts"), 0, "{}", agent.output());
    assert!(counter(&agent, "failed_over") > 0);
    quiet.store(false, Ordering::SeqCst);
    let heard = two.scans(0);
    let mut round = 0;
    assert!(wait_until(LIMIT, || {
        round += 1;
        let more = two.files(&format!("again{round}-"), 8);
        assert!(open_all(&more, LIMIT).iter().all(Opened::is_open));
        two.scans(0) > heard + 2
    }));
}

#[test]
fn one_that_never_said_a_word_gets_nothing_while_the_other_speaks() {
    require_root!();
    let two = or_skip!(Two::new(silent, Behaviour::usual_for));
    let (bad, files) = (two.write("bad", &infected()), two.files("f", 20));
    let agent = two.agent([9_000, 1]).start();
    assert!(refused_within(&bad, SOON).is_some());
    let before = Instant::now();
    assert!(open_all(&files, LIMIT).iter().all(Opened::is_open));
    assert!(before.elapsed() < Duration::from_secs(4));
    assert_eq!(counter(&agent, "timeouts"), 0);
}

#[test]
fn an_error_of_one_is_tried_on_the_other() {
    require_root!();
    let fails = |request: &RequestInfo| match request.command.as_str() {
        "FILDES" => Behaviour::error("Can't allocate memory"),
        _ => Behaviour::usual(),
    };
    let two = or_skip!(Two::new(fails, Behaviour::usual_for));
    let files = two.files("f", 10);
    let bad = two.write("bad", &infected());
    let agent = two
        .agent([9_000, 1])
        .option("OnAccessRetryAttempts 1")
        .option("OnAccessDenyOnError yes")
        .start();
    for path in &files {
        assert!(wait_until(SOON, || open_within(path, LIMIT).is_open()));
    }
    assert_refused(&bad);
    assert!(counter(&agent, "server1_errors") > 0 && counter(&agent, "infected") >= 1);
}

#[test]
fn a_clamd_that_returns_is_not_stormed() {
    require_root!();
    let mut site = or_skip!(FakeSite::ext4(slowly));
    let files = site.clean_files(40);
    let agent = site
        .agent()
        .option("OnAccessCurlTimeout 1000")
        .option("OnAccessRetryAttempts 9")
        .start();
    site.end_clamd();
    let openings: Vec<Opening> = files.iter().map(|path| Opening::start(path)).collect();
    std::thread::sleep(Duration::from_millis(300));
    site.restart_clamd(slowly);
    for opening in openings {
        assert!(opening.within(LIMIT).is_open());
    }
    assert!(
        site.fake().connections() <= 3,
        "{}",
        site.fake().connections()
    );
    assert_eq!(counter(&agent, "timeouts"), 0);
}

#[test]
fn of_several_records_for_one_command_the_worst_counts() {
    require_root!();
    let site = or_skip!(FakeSite::ext4(|request| {
        let id = request.id;
        let name = request.path().unwrap_or_default();
        let text = match name.file_name().and_then(|name| name.to_str()) {
            Some("error") => {
                format!("{id}: fd[9]: Not supported file type ERROR\0{id}: fd[9]: OK\0")
            }
            Some("late-error") => format!("{id}: fd[9]: OK\0{id}: fd[9]: Broken ERROR\0"),
            Some("found") => format!("{id}: fd[9]: OK\0{id}: fd[9]: Test.Found FOUND\0"),
            Some("empty") => format!("{id}: fd[9]: Empty file\0{id}: fd[9]: OK\0"),
            _ => return Behaviour::usual(),
        };
        Behaviour::raw(text.as_bytes())
    }));
    let file = |name: &str| site.write(name, &clean());
    let (error, late_error) = (file("error"), file("late-error"));
    let (found, empty) = (file("found"), file("empty"));
    let agent = site.agent().option("OnAccessDenyOnError yes").start();
    for _ in 0..2 {
        assert_refused(&error);
        assert_refused(&late_error);
        assert_refused(&found);
        assert_opens(&empty);
    }
    agent.wait_for("Test.Found FOUND", LIMIT).unwrap();
    assert_eq!(counter(&agent, "sessions_lost"), 0, "{}", agent.output());
}

#[test]
fn a_reply_that_is_taken_back_ends_what_was_believed() {
    require_root!();
    let honest = Arc::new(AtomicBool::new(false));
    let says = Arc::clone(&honest);
    let site = or_skip!(FakeSite::ext4(move |request| {
        if says.load(Ordering::SeqCst) {
            return Behaviour::infected("Test.Second");
        }
        let id = request.id;
        // The second record comes with the next scan.
        let before = id.saturating_sub(1);
        let text = format!("{id}: fd[9]: OK\0{before}: fd[9]: Test.Second FOUND\0");
        let ahead = request.path().is_some_and(|path| path.ends_with("second"));
        Behaviour::raw(if ahead {
            text.as_bytes()
        } else {
            text.split_inclusive('\0')
                .next()
                .unwrap_or_default()
                .as_bytes()
        })
    }));
    let (first, second) = (
        site.write("first", &clean()),
        site.write("second", &clean()),
    );
    std::thread::sleep(common::NO_LONGER_YOUNG);
    let agent = site.agent().start();
    assert_opens(&first);
    assert!(wait_until(SOON, || counter(&agent, "marks_placed") > 0));
    // A version command between the two would spoil the number: then once more.
    let taken_back = wait_until(SOON, || {
        let _whatever = open_within(&second, LIMIT);
        counter(&agent, "sessions_lost") > 0
    });
    assert!(taken_back, "{}", agent.output());
    honest.store(true, Ordering::SeqCst);
    if counter(&agent, "taken_back") > 0 {
        assert!(refused_within(&first, SOON).is_some(), "{}", agent.output());
    }
}
