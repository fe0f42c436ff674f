//! Tables that are full: each is counted and answered, or what cannot be done is said.
//!
//! The agent's tables are made small for it (`--debug-limits`): nobody can mount
//! 16,384 filesystems for a test.

mod common;

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    thread,
};

use common::{
    LIMIT, NO_LONGER_YOUNG, SOON, Site, assert_opens, assert_refused, cat_and_be_gone, clean,
    clean_pages, infected, marker, open_until_marked, refused_within,
};
use nix::sys::signal::Signal;
use onacc_tests::{Agent, ScratchFs, clamd::wait_until, or_skip, require_root, skip};

/// A page holds 128 records.
const FILES: usize = 400;

/// Stores into clean files while the agent stands still, far more than there may be
/// records: those without a record must not stay known as clean.
#[test]
fn stores_that_find_no_room_for_their_records_leave_no_stale_verdict() {
    require_root!();
    let site = or_skip!(ScratchFs::ext4(128).and_then(Site::on));
    let agent = site
        .agent()
        .arg("--debug-limits=records=4096")
        .option("OnAccessCurlTimeout 30000")
        .start();
    if !agent.output().contains("tier: eBPF: tracepoint") {
        skip!("no eBPF here, so that no file carries a mark");
    }
    let files: Vec<PathBuf> = (0..FILES)
        .map(|n| site.write(format!("file{n}"), &clean_pages(n)))
        .collect();
    open_until_marked(&agent, &files);
    let before = agent.counters().unwrap();
    assert_eq!(before["bpf_lost"], 0);
    agent.signal(Signal::SIGSTOP);
    // Each thread stops when the signal reaches it.
    thread::sleep(NO_LONGER_YOUNG);
    for path in &files {
        // The kernel sees no change in this, and takes no mark away.
        common::map(path).store(0, &marker());
    }
    agent.signal(Signal::SIGCONT);
    let flushed = wait_until(LIMIT, || {
        agent.counters().unwrap()["marks_flushed"] > before["marks_flushed"]
    });
    let counts = agent.counters().unwrap();
    assert!(flushed && counts["bpf_lost"] > 0, "{counts:?}");
    for path in &files {
        let took = refused_within(path, SOON);
        assert!(took.is_some(), "{}: {counts:?}", path.display());
    }
}

/// Beyond the table of filesystems: no marks in prevention mode, and never a stale one.
#[test]
fn a_filesystem_that_finds_no_room_gets_no_marks_and_is_protected() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let more: Vec<ScratchFs> = or_skip!((0..2).map(|_| ScratchFs::ext4(16)).collect());
    let mut builder = site.agent().arg("--debug-limits=filesystems=1");
    for scratch in &more {
        builder = builder.include(scratch.mkdir("in"));
    }
    let agent = builder.start();
    if !agent.output().contains("tier: eBPF: tracepoint") {
        skip!("no eBPF here");
    }
    let said = agent
        .output()
        .matches("eBPF does not see stores there")
        .count();
    assert_eq!(said, 2, "{}", agent.output());
    let dirs = [site.watched()].into_iter();
    let mut marked = 0;
    for dir in dirs.chain(more.iter().map(|scratch| scratch.join("in"))) {
        let before = agent.counters().unwrap()["marks_placed"];
        let (bad, good) = (dir.join("bad"), dir.join("good"));
        fs::write(&bad, infected()).unwrap();
        assert_refused(&bad);
        fs::write(&good, clean_pages(0)).unwrap();
        for _ in 0..5 {
            thread::sleep(NO_LONGER_YOUNG);
            assert_opens(&good);
        }
        marked += usize::from(agent.counters().unwrap()["marks_placed"] > before);
        common::map(&good).store(0, &marker());
        let took = refused_within(&good, SOON);
        assert!(took.is_some(), "{}", good.display());
    }
    assert!(marked <= 1, "{marked} filesystems in a table for one");
}

fn told(agent: &Agent) -> Result<(), String> {
    if agent.output().contains("opens are told by eBPF") {
        Ok(())
    } else {
        Err("no hook on opens is granted here; the agent says why".to_owned())
    }
}

fn is_reported(agent: &Agent, path: &Path) -> bool {
    let line = format!("{}: ", common::shown(path));
    agent.output().contains(&line)
}

/// In notify-only mode opens there cannot be told: that is said, with the remedy.
#[test]
fn notify_only_says_where_it_cannot_tell_of_opens() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let more = or_skip!(ScratchFs::ext4(16));
    let agent = Agent::builder(site.clamd())
        .prevention(false)
        .include(site.watched())
        .include(more.mkdir("in"))
        .arg("--debug-limits=filesystems=1")
        .start();
    or_skip!(told(&agent));
    let output = agent.output();
    let lines: Vec<&str> = output
        .lines()
        .filter(|line| line.contains("eBPF cannot tell of opens there"))
        .collect();
    assert_eq!(lines.len(), 1, "{output}");
    assert!(lines[0].starts_with("ERROR: ") && lines[0].contains("--bpf=off"));
    // One of the two has the place.
    let bad = [
        site.write("bad", &infected()),
        more.write("in/bad", &infected()),
    ];
    let (left_out, in_table) = if lines[0].contains(&common::shown(more.path())) {
        (&bad[1], &bad[0])
    } else {
        (&bad[0], &bad[1])
    };
    for path in [left_out, in_table] {
        drop(File::open(path).unwrap());
    }
    assert!(wait_until(LIMIT, || is_reported(&agent, in_table)));
    assert!(!is_reported(&agent, left_out));
}

/// Excluded uids beyond the table: the agent drops their opens itself, where the
/// programs did not.
#[test]
fn uids_that_find_no_room_are_excluded_all_the_same() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let uids: Vec<u32> = (20_000..20_040).collect();
    let [theirs, other] = ["theirs", "other"].map(|name| site.write(name, &infected()));
    let mut builder = Agent::builder(site.clamd())
        .prevention(false)
        .include(site.watched())
        .arg("--debug-limits=uids=4");
    for uid in &uids {
        builder = builder.option(&format!("OnAccessExcludeUID {uid}"));
    }
    let agent = builder.start();
    or_skip!(told(&agent));
    assert!(agent.output().contains("eBPF table of excluded uids"));
    for uid in &uids {
        cat_and_be_gone(*uid, &theirs);
    }
    cat_and_be_gone(20_040, &other);
    assert!(wait_until(LIMIT, || is_reported(&agent, &other)));
    assert!(!is_reported(&agent, &theirs), "{}", agent.output());
    let counts = agent.counters().unwrap();
    assert!(counts["excluded_uid"] > 0, "{counts:?}");
    assert!(counts["bpf_open_dropped_excluded_uid"] > 0, "{counts:?}");
}

/// More clean files than there may be marks: the oldest go, and cost an event again.
#[test]
fn beyond_the_marks_that_may_be_files_are_judged_again() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let agent = site.agent().arg("--debug-limits=marks=8").start();
    if !agent.output().contains("tier: eBPF: tracepoint") {
        skip!("no eBPF here, so that no file carries a mark");
    }
    let files: Vec<PathBuf> = (0..40)
        .map(|n| site.write(format!("file{n}"), &clean()))
        .collect();
    for _ in 0..4 {
        thread::sleep(NO_LONGER_YOUNG);
        for path in &files {
            assert_opens(path);
        }
    }
    let dropped = wait_until(LIMIT, || {
        agent.counters().unwrap()["marks_dropped_room"] >= 32
    });
    assert!(dropped, "{:?}", agent.counters().unwrap());
    for path in &files {
        fs::write(path, infected()).unwrap();
        assert!(refused_within(path, SOON).is_some(), "{}", path.display());
    }
}
