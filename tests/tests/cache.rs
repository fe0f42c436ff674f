//! The verdict cache: what is remembered, for how long, and what never is.
//!
//! A scripted clamd counts the scans; the agent's counters say where an answer
//! came from. Must not: test changes of marked files (`freshness.rs`).

mod common;
#[path = "common/fakes.rs"]
mod fakes;

use std::{
    fs::{self, File, OpenOptions},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use common::{
    FakeSite, LIMIT, NO_LONGER_YOUNG, Site, assert_opens, assert_refused, clean, counter, counters,
    infected, open_all, open_until_marked, opened,
};
use fakes::{OLD_VERSION, scans, tmpfs_site, versioned};
use onacc_tests::{
    Behaviour, Opening, SharedMapping, clamd::EICAR_NAME, clamd::wait_until, open_within, or_skip,
    require_root,
};

/// Waits until a file's stamps are old enough for its verdict to be kept.
fn grow_old() {
    thread::sleep(2 * NO_LONGER_YOUNG);
}

#[test]
fn an_infected_file_is_refused_again_without_clamd() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let path = site.write("bad", &infected());
    grow_old();
    let agent = site.agent().start();
    assert_refused(&path);
    site.clamd().stop();
    for _ in 0..5 {
        let open = open_within(&path, LIMIT);
        assert!(open.is_refused(), "{open:?}");
        assert!(open.took < Duration::from_secs(2), "it waits: {open:?}");
    }
    site.clamd().cont();
    let counted = counters(&agent);
    assert_eq!((counted["scans"], counted["known_infected"]), (1, 5));
    // And by another name, with its own line.
    let other = site.watched().join("other");
    fs::hard_link(&path, &other).unwrap();
    grow_old();
    assert_refused(&other);
    let line = format!("{}: {EICAR_NAME} FOUND", other.display());
    agent.wait_for(&line, LIMIT).unwrap();
}

#[test]
fn each_refused_open_of_a_known_infected_file_has_its_line() {
    require_root!();
    let site = or_skip!(FakeSite::ext4(|_| Behaviour::usual()));
    let path = site.write("bad", &infected());
    grow_old();
    let agent = site.agent().start();
    for _ in 0..4 {
        assert_refused(&path);
    }
    let line = format!("{}: {EICAR_NAME} FOUND", path.display());
    let said = || agent.output().lines().filter(|said| *said == line).count();
    assert!(wait_until(LIMIT, || said() == 4), "{} lines", said());
    assert_eq!(scans(site.fake()), 1);
}

#[test]
fn a_known_infected_file_is_judged_anew_when_it_is_clean() {
    require_root!();
    let site = or_skip!(FakeSite::ext4(|_| Behaviour::usual()));
    let path = site.write("file", &infected());
    // An fd from before: the open for writing would be refused.
    let writer = OpenOptions::new().write(true).open(&path).unwrap();
    writer.sync_all().unwrap();
    let agent = site.agent().start();
    for round in 1..4 {
        assert_refused(&path);
        std::os::unix::fs::FileExt::write_all_at(&writer, &clean(), 0).unwrap();
        assert_opens(&path);
        std::os::unix::fs::FileExt::write_all_at(&writer, &infected(), 0).unwrap();
        assert_refused(&path);
        assert!(scans(site.fake()) >= 3 * round);
    }
    drop(writer);
    grow_old();
    assert_refused(&path);
    let known = counter(&agent, "known_infected");
    assert_refused(&path);
    assert_eq!(counter(&agent, "known_infected"), known + 1);
    // truncate(2) opens nothing.
    nix::unistd::truncate(&path, 20).unwrap();
    assert_opens(&path);
}

#[test]
fn a_written_and_closed_file_is_scanned_before_anyone_asks() {
    require_root!();
    let site = or_skip!(FakeSite::ext4(|_| Behaviour::usual()));
    let agent = site.agent().start();
    let (good, bad) = (site.write("good", &clean()), site.write("bad", &infected()));
    assert!(
        wait_until(LIMIT, || scans(site.fake()) == 2),
        "nobody has asked, and both are scanned"
    );
    let done = || counters(&agent)["clean"] == 1 && counters(&agent)["infected"] == 1;
    assert!(wait_until(LIMIT, done), "{:?}", counters(&agent));
    assert_opens(&good);
    assert_refused(&bad);
    assert_eq!(scans(site.fake()), 2, "the first open needs no scan");
    let counted = counters(&agent);
    assert_eq!((counted["prescans"], counted["scans"]), (2, 0));
    assert_eq!(counted["known_infected"], 1);
    assert_eq!(counted["marks_placed"], 1);
    let line = format!("{}: {EICAR_NAME} FOUND", bad.display());
    agent.wait_for(&line, LIMIT).unwrap();
}

#[test]
fn a_mapping_that_outlives_its_fd_is_scanned_when_it_ends() {
    require_root!();
    let site = or_skip!(FakeSite::ext4(|_| Behaviour::usual()));
    let path = site.write("file", &clean());
    grow_old();
    let agent = site.agent().start();
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .unwrap();
    let mut mapping = SharedMapping::of(&file).unwrap();
    drop(file);
    mapping.store(0, &infected());
    let line = format!("{}: {EICAR_NAME} FOUND", path.display());
    thread::sleep(4 * NO_LONGER_YOUNG);
    assert!(!agent.output().contains(&line), "it is not closed yet");
    drop(mapping);
    // Nobody has opened it since.
    agent.wait_for(&line, LIMIT).unwrap();
    let before = scans(site.fake());
    assert_refused(&path);
    assert_eq!(scans(site.fake()), before, "the verdict was ready");
}

#[test]
fn an_open_during_a_scan_ahead_joins_it_and_does_not_wait_for_others() {
    require_root!();
    let slow = |_: &_| Behaviour::usual().after(Duration::from_millis(400));
    let site = or_skip!(FakeSite::ext4(slow));
    let agent = site.agent().option("OnAccessMaxThreads 2").start();
    let files: Vec<PathBuf> = (0..10)
        .map(|n| site.write(format!("{n}"), format!("ahead {n}").as_bytes()))
        .collect();
    assert!(site.fake().wait_for_scans(1, LIMIT));
    // The last one in the queue of scans ahead, and one under way.
    let before = Instant::now();
    let first = Opening::start(&files[0]);
    let last = Opening::start(&files[9]);
    opened(last.within(LIMIT), &files[9]);
    let took = before.elapsed();
    opened(first.within(LIMIT), &files[0]);
    assert!(
        took < Duration::from_millis(1200),
        "ahead of the queue: {took:?}"
    );
    assert!(
        wait_until(LIMIT, || counters(&agent)["clean"] == 10),
        "{:?}",
        counters(&agent)
    );
    assert_eq!(scans(site.fake()), 10, "one scan a file");
    assert!(counter(&agent, "joined") >= 1);
}

#[test]
fn sixteen_openers_of_one_slow_file_need_one_scan() {
    require_root!();
    let slow = |_: &_| Behaviour::usual().after(Duration::from_millis(500));
    let site = or_skip!(FakeSite::ext4(slow));
    for (name, content) in [("good", clean()), ("bad", infected())] {
        let path = site.write(name, &content);
        grow_old();
        let agent = site.agent().start();
        let before = scans(site.fake());
        for open in open_all(&vec![path.clone(); 16], LIMIT) {
            assert_eq!(open.is_open(), name == "good", "{open:?}");
            assert_eq!(open.is_refused(), name == "bad", "{open:?}");
        }
        assert_eq!(scans(site.fake()) - before, 1);
        assert_eq!(counter(&agent, "joined"), 15);
    }
}

#[test]
fn openers_by_sixteen_names_of_one_file_need_one_scan_and_get_a_line_each() {
    require_root!();
    let slow = |_: &_| Behaviour::usual().after(Duration::from_millis(500));
    let site = or_skip!(FakeSite::ext4(slow));
    let first = site.write("name0", &infected());
    let mut names = vec![first.clone()];
    for n in 1..16 {
        let name = site.watched().join(format!("name{n}"));
        fs::hard_link(&first, &name).unwrap();
        names.push(name);
    }
    grow_old();
    let agent = site.agent().start();
    for open in open_all(&names, LIMIT) {
        assert!(open.is_refused(), "{open:?}");
    }
    assert_eq!(scans(site.fake()), 1);
    for name in &names {
        let line = format!("{}: {EICAR_NAME} FOUND", name.display());
        agent.wait_for(&line, LIMIT).unwrap();
        let lines = agent.output().lines().filter(|said| *said == line).count();
        assert_eq!(lines, 1, "{line}");
    }
}

#[test]
fn an_opener_does_not_join_the_scan_of_older_bytes() {
    require_root!();
    let slow = |_: &_| Behaviour::usual().after(Duration::from_millis(400));
    let site = or_skip!(FakeSite::ext4(slow));
    let path = site.write("file", &clean());
    grow_old();
    let _agent = site.agent().start();
    let first = Opening::start(&path);
    assert!(site.fake().wait_for_scans(1, LIMIT));
    // The scripted clamd has looked at the file already, and answers later.
    nix::unistd::truncate(&path, 0).unwrap();
    let other = site.scratch().write("other", &infected());
    fs::rename(&path, site.watched().join("old")).unwrap();
    fs::rename(&other, &path).unwrap();
    assert_refused(&path);
    opened(first.within(LIMIT), &path);
}

#[test]
fn a_file_with_a_writer_is_never_remembered() {
    require_root!();
    let site = or_skip!(FakeSite::ext4(|_| Behaviour::usual()));
    let (good, bad) = (site.write("good", &clean()), site.write("bad", &infected()));
    let writers = [&good, &bad].map(|path| OpenOptions::new().append(true).open(path).unwrap());
    grow_old();
    let agent = site.agent().start();
    for round in 1..6 {
        assert_opens(&good);
        assert_refused(&bad);
        assert_eq!(scans(site.fake()), 2 * round);
    }
    let counted = counters(&agent);
    assert_eq!((counted["known_clean"], counted["known_infected"]), (0, 0));
    assert_eq!(
        (counted["marks_placed"], counted["unmarked_writers"]),
        (0, 10)
    );
    // A mapping that outlives its fd is a writer too.
    let mapping = common::map(&good);
    drop(writers);
    grow_old();
    let before = scans(site.fake());
    assert_opens(&good);
    assert_opens(&good);
    assert_eq!(scans(site.fake()), before + 2);
    drop(mapping);
    open_until_marked(&agent, std::slice::from_ref(&good));
}

#[test]
fn a_young_file_is_never_remembered() {
    require_root!();
    let site = or_skip!(FakeSite::ext4(|_| Behaviour::usual()));
    let agent = site.agent().start();
    let path = site.watched().join("file");
    let mut counted = 0;
    for round in 0..200 {
        // No close after write: the file comes by rename, with a new ctime.
        let outside = site
            .scratch()
            .write("outside", format!("young {round}").as_bytes());
        thread::sleep(Duration::from_millis(40));
        let before = scans(site.fake());
        let renamed = Instant::now();
        fs::rename(&outside, &path).unwrap();
        assert_opens(&path);
        assert_opens(&path);
        let scanned = scans(site.fake()) - before;
        if renamed.elapsed() < Duration::from_millis(20) {
            counted += 1;
            assert_eq!(scanned, 2, "round {round}");
        }
        if counted == 20 {
            break;
        }
    }
    assert!(counted > 0, "the machine is too slow for this test");
    assert!(counter(&agent, "unmarked_young") >= 2 * counted);
}

#[test]
fn files_on_tmpfs_are_never_remembered() {
    require_root!();
    let (scratch, _dir, fake) = or_skip!(tmpfs_site(|_| Behaviour::usual()));
    let good = scratch.write("in/good", &clean());
    let bad = scratch.write("in/bad", &infected());
    grow_old();
    let agent = onacc_tests::Agent::builder(&fake)
        .prevention(true)
        .include(scratch.join("in"))
        .start();
    for round in 1..6 {
        assert_opens(&good);
        assert_refused(&bad);
        assert_eq!(scans(&fake), 2 * round);
    }
    fs::write(&good, infected()).unwrap();
    assert_refused(&good);
    let counted = counters(&agent);
    for name in ["known_clean", "known_infected", "marks_placed", "prescans"] {
        assert_eq!(counted[name], 0, "{name}");
    }
}

#[test]
fn verdicts_of_an_old_database_are_dropped_with_their_marks() {
    require_root!();
    let updated = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&updated);
    // The new database knows what the old one did not.
    let site = or_skip!(FakeSite::with_script(move |request| versioned(
        request,
        flag.load(Ordering::SeqCst)
    )));
    let path = site.write("file", &clean());
    let bad = site.write("bad", &infected());
    grow_old();
    let agent = site.agent().start();
    assert_refused(&bad);
    open_until_marked(&agent, std::slice::from_ref(&path));
    let before = counters(&agent);
    updated.store(true, Ordering::SeqCst);
    let followed = || counters(&agent)["generations"] > before["generations"];
    assert!(
        wait_until(Duration::from_secs(10), followed),
        "{OLD_VERSION}"
    );
    assert!(counter(&agent, "marks_flushed") > before["marks_flushed"]);
    let scanned = scans(site.fake());
    assert_refused(&path);
    assert_refused(&bad);
    assert_eq!(scans(site.fake()), scanned + 2, "both are scanned again");
}

#[test]
fn a_failed_scan_is_never_remembered() {
    require_root!();
    for failure in ["error", "timeout", "nonsense"] {
        let failing = Arc::new(AtomicBool::new(true));
        let flag = Arc::clone(&failing);
        let site = or_skip!(FakeSite::ext4(move |_| {
            match (flag.load(Ordering::SeqCst), failure) {
                (false, _) => Behaviour::usual(),
                (true, "error") => Behaviour::error("Can't allocate memory"),
                (true, "timeout") => Behaviour::usual().after(Duration::from_millis(700)),
                _ => Behaviour::reply("WHAT"),
            }
        }));
        let bad = site.write("bad", &infected());
        grow_old();
        let agent = site.agent().option("OnAccessCurlTimeout 300").start();
        for _ in 0..2 {
            // The fail policy: allow.
            assert_opens(&bad);
        }
        failing.store(false, Ordering::SeqCst);
        let refused = || open_within(&bad, LIMIT).is_refused();
        assert!(wait_until(Duration::from_secs(5), refused), "{failure}");
        let counted = counters(&agent);
        assert_eq!((counted["known_clean"], counted["marks_placed"]), (0, 0));
    }
}

#[test]
fn without_bpf_repeat_opens_are_answered_from_userspace() {
    require_root!();
    let site = or_skip!(FakeSite::ext4(|_| Behaviour::usual()));
    let path = site.write("file", &clean());
    grow_old();
    let agent = site.agent().arg("--bpf=off").start();
    // What was scanned before the server had said which database it has is scanned
    // once more.
    let known = wait_until(LIMIT, || {
        assert_opens(&path);
        counters(&agent)["known_clean"] > 0
    });
    assert!(known, "{}", agent.output());
    let (before, scanned) = (counters(&agent)["known_clean"], scans(site.fake()));
    for _ in 0..5 {
        assert_opens(&path);
    }
    let counted = counters(&agent);
    let grown = counted["known_clean"] - before;
    assert_eq!((grown, counted["marks_placed"]), (5, 0));
    assert_eq!(scans(site.fake()), scanned);
    let mut mapping = common::map(&path);
    mapping.store(0, &infected());
    assert_refused(&path);
    drop(mapping);
    assert_refused(&path);
    fs::remove_file(&path).unwrap();
    drop(File::create(&path).unwrap());
    fs::write(&path, clean()).unwrap();
    assert_opens(&path);
}
