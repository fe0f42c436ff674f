//! `OnAccessPrevention no`: everything opens, what is infected is reported.
//!
//! The openers here live until their event has been looked at, so that it holds
//! without eBPF, too; of those that do not, `feed.rs` is about.

mod common;

use std::{fs::File, path::PathBuf, thread, time::Duration};

use common::{
    FakeSite, LIMIT, Site, assert_opens, clean, counters, infected, open_all, open_and_live_on,
};
use onacc_tests::{
    Agent, Behaviour, ScratchFs, clamd::EICAR_NAME, clamd::wait_until, open_as, or_skip,
    require_root,
};

/// An agent that reports only.
fn reporting(site: &Site) -> onacc_tests::agent::AgentBuilder {
    Agent::builder(site.clamd())
        .prevention(false)
        .include(site.watched())
}

#[test]
fn an_infected_file_opens_and_is_reported() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let (bad, good) = (site.write("bad", &infected()), site.write("good", &clean()));
    let agent = reporting(&site).start();
    assert!(agent.output().contains("are reported, not blocked"));
    assert_opens(&good);
    let file = assert_opens(&bad);
    let line = format!("{}: {EICAR_NAME} FOUND", bad.display());
    assert_eq!(agent.wait_for(&line, LIMIT).unwrap(), line);
    assert!(wait_until(LIMIT, || agent.log().contains(&line)));
    drop(file);
    assert!(open_as(4711, &bad, LIMIT).is_open());
    let reports = || agent.output().matches(" FOUND\n").count();
    assert!(wait_until(LIMIT, || reports() == 2), "{}", agent.output());
    assert!(!agent.output().contains("good: "));
}

#[test]
fn what_is_written_is_reported_when_it_is_opened() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let agent = reporting(&site).start();
    let dir = site.watched().join("a/b/c");
    std::fs::create_dir_all(&dir).unwrap();
    let bad = dir.join("bad");
    std::fs::write(&bad, infected()).unwrap();
    assert_opens(&bad);
    agent
        .wait_for(&format!("{}: ", bad.display()), LIMIT)
        .unwrap();
}

#[test]
fn outside_and_excluded_paths_are_not_reported() {
    require_root!();
    let site = or_skip!(Site::ext4());
    site.scratch().mkdir("in/off");
    let outside = site.scratch().write("outside", &infected());
    let off = site.write("off/bad", &infected());
    let bad = site.write("bad", &infected());
    let agent = reporting(&site).exclude(site.watched().join("off")).start();
    for path in [&outside, &off, &bad] {
        assert_opens(path);
    }
    agent
        .wait_for(&format!("{}: ", bad.display()), LIMIT)
        .unwrap();
    assert_eq!(counters(&agent)["infected"], 1, "{}", agent.output());
    assert_eq!(agent.output().matches(" FOUND").count(), 1);
}

#[test]
fn an_excluded_user_is_not_reported() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let bad = site.write("bad", &infected());
    let agent = reporting(&site)
        .option("OnAccessExcludeUID 4711")
        .option("OnAccessExcludeUname daemon")
        .start();
    for uid in [4711, 1] {
        // Dropped by eBPF, or by the agent.
        let excluded = || {
            let all = agent.counters().unwrap();
            let dropped = all.get("bpf_open_dropped_excluded_uid").unwrap_or(&0);
            all["excluded_uid"] + dropped
        };
        let before = excluded();
        let mut opener = open_and_live_on(uid, &bad);
        let seen = wait_until(LIMIT, || excluded() > before);
        drop(opener.stdin.take());
        opener.wait().unwrap();
        assert!(seen, "{:?}", counters(&agent));
    }
    // Whatever it would say has been said by then.
    thread::sleep(Duration::from_millis(300));
    assert!(!agent.output().contains(" FOUND"), "{}", agent.output());
    let mut other = open_and_live_on(4712, &bad);
    agent.wait_for(" FOUND", LIMIT).unwrap();
    drop(other.stdin.take());
    other.wait().unwrap();
}

#[test]
fn a_silent_clamd_holds_nobody_up() {
    require_root!();
    let site = or_skip!(FakeSite::ext4(|_| Behaviour::never()));
    let paths = site.clean_files(64);
    let _agent = Agent::builder(site.fake())
        .prevention(false)
        .include(site.watched())
        .option("OnAccessCurlTimeout 60000")
        .option("OnAccessDenyOnError yes")
        .start();
    for open in open_all(&paths, LIMIT) {
        assert!(open.is_open(), "{open:?}");
        assert!(open.took < Duration::from_secs(1), "{open:?}");
    }
    assert!(site.fake().wait_for_scans(2, LIMIT));
}

#[test]
fn repeat_opens_of_a_clean_file_are_no_events() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let path = site.write("good", &clean());
    let agent = reporting(&site).start();
    common::open_until_marked(&agent, std::slice::from_ref(&path));
    std::fs::write(&path, infected()).unwrap();
    assert_opens(&path);
    agent.wait_for(" FOUND", LIMIT).unwrap();
}

/// Files in directories, more than the usual queue of a group holds (16,384 events).
fn many_files(site: &Site) -> Vec<PathBuf> {
    let one = |n: usize| {
        if n.is_multiple_of(1000) {
            site.scratch().mkdir(format!("in/dir{}", n / 1000));
        }
        let content = if n % 1000 == 999 { infected() } else { clean() };
        site.write(format!("dir{}/file{n}", n / 1000), &content)
    };
    (0..20_000).map(one).collect()
}

/// Told by fanotify, with room for few files at a time.
fn with_few_places(site: &Site) -> onacc_tests::agent::AgentBuilder {
    reporting(site)
        .arg("--coverage=directory")
        .open_files(512)
        .option("OnAccessCurlTimeout 60000")
}

/// While clamd does nothing, so that they wait in the kernel.
fn open_while_clamd_is_stopped(site: &Site, paths: &[PathBuf]) {
    site.clamd().stop();
    thread::scope(|scope| {
        for part in paths.chunks(paths.len() / 8) {
            scope.spawn(move || {
                for path in part {
                    drop(File::open(path).expect("nobody waits"));
                }
            });
        }
    });
}

#[test]
fn twenty_thousand_opens_that_fanotify_tells_of_are_all_scanned() {
    require_root!();
    let site = or_skip!(ScratchFs::ext4(512).and_then(Site::on));
    let paths = many_files(&site);
    let agent = with_few_places(&site).start();
    open_while_clamd_is_stopped(&site, &paths);
    site.clamd().cont();
    let done = wait_until(4 * LIMIT, || {
        let counts = counters(&agent);
        counts["clean"] + counts["infected"] >= paths.len() as u64
    });
    let counts = counters(&agent);
    assert!(done, "{counts:?}");
    assert_eq!(counts["queue_overflows"] + counts["told_lost"], 0);
    let reported = || agent.output().matches(" FOUND\n").count() >= paths.len() / 1000;
    assert!(wait_until(LIMIT, reported), "{counts:?}");
}

#[test]
fn opens_beyond_what_may_wait_are_let_go_counted_and_said() {
    require_root!();
    let site = or_skip!(ScratchFs::ext4(512).and_then(Site::on));
    let paths = many_files(&site);
    let agent = with_few_places(&site)
        .arg("--debug-limits=backlog=256000")
        .start();
    open_while_clamd_is_stopped(&site, &paths);
    // A thousand may wait, and so many are in flight.
    let let_go = wait_until(LIMIT, || counters(&agent)["told_lost"] >= 18_000);
    assert!(let_go, "{:?}", counters(&agent));
    agent.wait_for("opens were not looked at", LIMIT).unwrap();
    site.clamd().cont();
    let all = wait_until(LIMIT, || {
        let counts = counters(&agent);
        counts["clean"] + counts["infected"] + counts["told_lost"] >= paths.len() as u64
    });
    assert!(all, "{:?}", counters(&agent));
    let late = site.write("late", &infected());
    assert_opens(&late);
    agent
        .wait_for(&format!("{}: ", late.display()), LIMIT)
        .unwrap();
}
