//! `--bpf=off`, `--bpf=require`, and a kernel that refuses: the same verdicts.
//!
//! Without eBPF nobody would see a store through a shared mapping, so no file
//! that anyone could map for writing may carry a clean mark. Must not: repeat
//! `prevention.rs`; one table of cases is run in each mode.

mod common;
#[path = "common/settle.rs"]
mod settle;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use common::{
    LIMIT, NO_LONGER_YOUNG, STORE_WINDOW, STORES, Site, WRITES, Way, assert_opens, assert_refused,
    clean, clean_pages, counters, infected, marker, only_error, open_all, refused_within,
};
use nix::mount::{MsFlags, mount};
use onacc_tests::{Agent, clamd::wait_until, open_as, or_skip, require_root};

/// One case: what must hold, by a name for the message.
type Case = (&'static str, fn(&Site) -> bool);

fn refused(path: &Path) -> bool {
    onacc_tests::open_within(path, LIMIT).is_refused()
}

fn opens(path: &Path) -> bool {
    onacc_tests::open_within(path, LIMIT).is_open()
}

/// The agent of these has `in/off` excluded, and the user 4711.
const PREVENTION: &[Case] = &[
    ("an infected file is refused", |site| {
        let path = site.write("bad", &infected());
        refused(&path) && refused(&path)
    }),
    ("a clean file opens", |site| {
        let path = site.write("good", &clean());
        opens(&path) && opens(&path)
    }),
    ("a file outside opens", |site| {
        opens(&site.scratch().write("outside", &infected()))
    }),
    ("an excluded file opens", |site| {
        site.scratch().mkdir("in/off");
        opens(&site.write("off/bad", &infected()))
    }),
    ("an excluded user opens, another does not", |site| {
        let path = site.write("for 4711", &infected());
        open_as(4711, &path, LIMIT).is_open() && open_as(4712, &path, LIMIT).is_refused()
    }),
    ("a new directory is protected at once", |site| {
        (0..20).all(|n| {
            let dir = site.scratch().mkdir(format!("in/new{n}/a/b"));
            let path = dir.join("bad");
            fs::write(&path, infected()).expect("writing");
            refused(&path)
        })
    }),
    ("an infected file is not executed", |site| {
        let script = [b"#!/bin/sh\nexit 0\n#".to_vec(), marker()].concat();
        let path = site.write("script", &script);
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(&path, mode).expect("chmod");
        let error = Command::new(&path).status().err();
        error.and_then(|error| error.raw_os_error()) == Some(libc::EPERM)
    }),
    ("a file is refused under another name", |site| {
        let path = site.write("one name", &infected());
        let (other, link) = (path.with_extension("other"), path.with_extension("link"));
        fs::rename(&path, &other).expect("renaming");
        fs::hard_link(&other, &link).expect("linking");
        refused(&other) && refused(&link)
    }),
    ("sixty-four openers get the right answers", |site| {
        let paths: Vec<PathBuf> = (0_usize..64)
            .map(|n| {
                let content = if n.is_multiple_of(2) {
                    clean()
                } else {
                    infected()
                };
                site.write(format!("many{n}"), &content)
            })
            .collect();
        let opens = open_all(&paths, LIMIT);
        opens.iter().enumerate().all(|(n, open)| {
            if n.is_multiple_of(2) {
                open.is_open()
            } else {
                open.is_refused()
            }
        })
    }),
];

#[track_caller]
fn assert_cases(site: &Site) {
    let wrong: Vec<&str> = PREVENTION
        .iter()
        .filter(|(_, holds)| !holds(site))
        .map(|(name, _)| *name)
        .collect();
    assert!(wrong.is_empty(), "not true: {wrong:?}");
}

/// Every change of a clean, often opened file ends in a refusal.
#[track_caller]
fn assert_changes_are_refused(site: &Site, window: Duration) {
    let ways: Vec<&Way> = WRITES.iter().chain(STORES).collect();
    let paths: Vec<PathBuf> = (0..ways.len())
        .map(|n| site.write(format!("change{n}"), &clean_pages(n)))
        .collect();
    for _ in 0..3 {
        thread::sleep(NO_LONGER_YOUNG);
        for path in &paths {
            assert_opens(path);
        }
    }
    for (way, path) in ways.iter().zip(&paths) {
        let held = (way.infect)(path);
        assert!(refused_within(path, window).is_some(), "{}", way.name);
        drop(held);
        assert_refused(path);
    }
}

fn start(site: &Site, mode: &str) -> Result<Agent, String> {
    site.agent()
        .exclude(site.watched().join("off"))
        .option("OnAccessExcludeUID 4711")
        .arg(mode)
        .try_start()
}

#[test]
fn without_ebpf_the_verdicts_are_the_same_and_nothing_is_marked() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let agent = start(&site, "--bpf=off").unwrap();
    assert!(agent.output().contains("tier: eBPF: off (--bpf=off)"));
    assert_cases(&site);
    // Judged by each open itself: there is no window.
    assert_changes_are_refused(&site, Duration::ZERO);
    let path = site.write("again", &clean());
    for _ in 0..3 {
        thread::sleep(NO_LONGER_YOUNG);
        assert_opens(&path);
    }
    let before = counters(&agent);
    for _ in 0..20 {
        assert_opens(&path);
    }
    let after = counters(&agent);
    assert_eq!(after["events"], before["events"] + 20, "each open is seen");
    assert_eq!(after["marks_placed"], 0);
    let all = agent.counters().unwrap();
    assert!(!all.keys().any(|name| name.starts_with("bpf_")), "{all:?}");
}

#[test]
fn with_ebpf_required_the_verdicts_are_the_same_and_clean_files_are_marked() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let agent = or_skip!(start(&site, "--bpf=require"));
    assert!(agent.output().contains("tier: eBPF: tracepoint"));
    assert_cases(&site);
    let path = site.write("again", &clean());
    common::open_until_marked(&agent, std::slice::from_ref(&path));
    assert_changes_are_refused(&site, STORE_WINDOW);
    let told = counters(&agent);
    assert!(told["marks_placed"] > 0, "{told:?}");
    let all = agent.counters().unwrap();
    assert!(all["bpf_seen"] > 0 && all["bpf_lost"] == 0, "{all:?}");
}

#[test]
fn with_strict_marks_no_change_has_a_window_and_directories_are_ignored() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let agent = start(&site, "--marks=strict").unwrap();
    assert!(agent.output().contains("tier: marks: strict"));
    assert_cases(&site);
    assert_changes_are_refused(&site, Duration::ZERO);
    site.scratch().mkdir("out");
    let outside = site.scratch().write("out/file", &clean());
    settle::settle(&agent, &[&outside]);
    let told = counters(&agent);
    assert_eq!(told["marks_placed"], 0);
    assert!(told["known_clean"] > 0, "answered from memory: {told:?}");
}

#[test]
fn with_marks_off_the_kernel_ignores_nothing() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let agent = start(&site, "--marks=off").unwrap();
    assert!(agent.output().contains("tier: marks: off"));
    assert_cases(&site);
    assert_changes_are_refused(&site, Duration::ZERO);
    let outside = site.scratch().write("outside", &clean());
    let before = counters(&agent);
    for _ in 0..20 {
        assert_opens(&outside);
    }
    let after = counters(&agent);
    assert_eq!(after["events"], before["events"] + 20);
    assert_eq!(
        (after["marks_placed"], after["directories_ignored"]),
        (0, 0)
    );
}

/// Hides the kernel's BTF from this thread and its children.
fn hide_btf() -> Result<(), String> {
    onacc_tests::scratch::enter_private_mounts()?;
    let none = None::<&str>;
    let (nothing, btf) = ("/dev/null", "/sys/kernel/btf/vmlinux");
    mount(Some(nothing), btf, none, MsFlags::MS_BIND, none)
        .map_err(|error| format!("mounting above {btf}: {error}"))
}

#[test]
fn where_the_kernel_refuses_the_agent_says_why_and_goes_on_without() {
    require_root!();
    let site = or_skip!(Site::ext4());
    or_skip!(hide_btf());
    let agent = start(&site, "--bpf=auto").unwrap();
    let tier = agent.wait_for("tier: eBPF: none", LIMIT).unwrap();
    assert!(
        tier.starts_with("WARNING: ") && tier.contains("BTF") && tier.contains("--bpf=require"),
        "{tier}"
    );
    assert_cases(&site);
    assert_changes_are_refused(&site, Duration::ZERO);
    assert_eq!(counters(&agent)["marks_placed"], 0);
}

#[test]
fn where_the_kernel_refuses_what_is_required_the_start_ends_with_2() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let bad = site.write("bad", &infected());
    or_skip!(hide_btf());
    let exited = site.agent().arg("--bpf=require").spawn_expect_exit();
    assert_eq!(exited.status.code(), Some(2), "{}", exited.output);
    let error = only_error(&exited);
    assert!(
        error.contains("--bpf=require was given: use --bpf=auto"),
        "{}",
        exited.output
    );
    assert!(wait_until(LIMIT, || opens(&bad)), "nothing is left behind");
}
