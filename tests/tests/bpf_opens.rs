//! What the hooks on opens do for prevention: BPF LSM refuses infected files in
//! the kernel, LSM and fentry tell who opens and end clean marks early.
//!
//! Skipped where the kernel does not grant them; `cargo xtask vm` has kernels
//! that do.

mod common;

use std::{
    fs::{self, File},
    os::unix::fs::PermissionsExt,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use common::{
    LIMIT, Site, assert_opens, assert_refused, clean_pages, counter, counters, infected, marker,
    open_until_marked, refused_within,
};
use nix::sys::signal::Signal;
use onacc_tests::{
    Agent, Opening, agent::AgentBuilder, clamd::wait_until, open_as, or_skip, require_root, sys,
};

/// An agent whose hooks are of one of these tiers.
fn with_tier(site: &Site, tiers: &[&str]) -> Result<Agent, String> {
    started(site.agent().option("OnAccessExcludeUID 4711"), tiers)
}

fn started(builder: AgentBuilder, tiers: &[&str]) -> Result<Agent, String> {
    let agent = builder.try_start()?;
    let said = agent.output();
    let has = |tier: &&str| said.contains(&format!("tier: opens: {tier}: "));
    if tiers.iter().any(has) {
        Ok(agent)
    } else {
        Err(format!("none of {tiers:?} is granted here"))
    }
}

/// The kernel knows this file as infected.
#[track_caller]
fn refuse_in_kernel(agent: &Agent, path: &std::path::Path) {
    assert_refused(path);
    let before = counter(agent, "denied_in_kernel");
    let refused = wait_until(LIMIT, || {
        assert_refused(path);
        counter(agent, "denied_in_kernel") > before
    });
    assert!(refused, "{:?}", counters(agent));
}

#[test]
fn an_infected_file_is_refused_in_the_kernel_reported_and_free_when_it_changes() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let mut agent = or_skip!(with_tier(&site, &["BPF LSM"]));
    let path = site.write("bad", &infected());
    thread::sleep(common::NO_LONGER_YOUNG);
    refuse_in_kernel(&agent, &path);
    let before = counters(&agent);
    for _ in 0..20 {
        assert_refused(&path);
    }
    let after = counters(&agent);
    assert_eq!(
        after["events"], before["events"],
        "no event reaches the agent"
    );
    let told = || counter(&agent, "denied_in_kernel") >= before["denied_in_kernel"] + 20;
    assert!(wait_until(LIMIT, told));
    let lines = || {
        agent
            .output()
            .matches(&format!("{}: ", path.display()))
            .count()
    };
    assert!(wait_until(LIMIT, || lines() >= 20), "each is reported");
    assert!(open_as(4711, &path, LIMIT).is_open(), "an excluded user");
    assert!(open_as(4712, &path, LIMIT).is_refused());

    let other = path.with_extension("other");
    fs::hard_link(&path, &other).unwrap();
    assert_refused(&other);
    fs::remove_file(&other).unwrap();
    let file = fs::OpenOptions::new().write(true).open(&path);
    assert!(file.is_err(), "for writing neither");
    nix::unistd::truncate(&path, 5).unwrap();
    assert_opens(&path);
    let again = site.write("again", &infected());
    thread::sleep(common::NO_LONGER_YOUNG);
    refuse_in_kernel(&agent, &again);
    agent.stop();
    assert_opens(&again);
}

#[test]
fn neither_executed_nor_mapped() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let path = site.write(
        "program",
        &[b"#!/bin/sh\nexit 0\n#".to_vec(), marker()].concat(),
    );
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    let opened = File::open(&path).unwrap();
    let agent = or_skip!(with_tier(&site, &["BPF LSM"]));
    refuse_in_kernel(&agent, &path);
    let error = Command::new(&path).status().unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EPERM));
    assert!(sys::SharedMapping::of(&opened).is_err(), "opened before");
    assert!(agent.counters().unwrap()["bpf_denied_map"] > 0);
}

#[test]
fn another_database_sets_infected_files_free_until_they_are_scanned_again() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let database = format!("DatabaseDirectory {}", site.clamd().database().display());
    let agent = or_skip!(started(site.agent().option(&database), &["BPF LSM"]));
    let path = site.write("bad", &infected());
    thread::sleep(common::NO_LONGER_YOUNG);
    refuse_in_kernel(&agent, &path);
    let scans = counter(&agent, "scans");
    site.clamd().add_signature("Another", b"another signature");
    site.clamd().reload();
    let again = wait_until(LIMIT, || {
        assert_refused(&path);
        counter(&agent, "scans") > scans
    });
    assert!(again, "{:?}", counters(&agent));
}

/// Takes up the settings as they are now.
#[track_caller]
fn reload(agent: &Agent) {
    let done = || agent.output().matches("onacc: settings reloaded").count();
    let before = done();
    agent.signal(Signal::SIGHUP);
    assert!(wait_until(LIMIT, || done() > before), "{}", agent.output());
}

/// A second agent takes over, while the first waits for clamd: what that one had the
/// kernel refuse is free for whom the second one leaves out.
#[test]
fn a_program_that_a_reload_excludes_reads_at_once_what_the_kernel_refused() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let settings = site.scratch().write("onacc.toml", b"");
    let program = site.scratch().join("program");
    fs::copy("/bin/cat", &program).unwrap();
    let other = site.write("other", b"clean");
    let agent = or_skip!(started(
        site.agent()
            .arg(&format!("--settings={}", settings.display()))
            .option("OnAccessCurlTimeout 20000"),
        &["BPF LSM"]
    ));
    let bad = site.write("bad", &infected());
    thread::sleep(common::NO_LONGER_YOUNG);
    refuse_in_kernel(&agent, &bad);
    let reads = || {
        let mut command = Command::new(&program);
        let command = command
            .arg(&bad)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        sys::die_with_parent(command)
            .status()
            .expect("starts")
            .success()
    };
    assert!(!reads());
    site.clamd().stop();
    let scans = counter(&agent, "scans");
    let waits = Opening::start(&other);
    assert!(wait_until(LIMIT, || counter(&agent, "scans") > scans));
    let exclude = format!("[exclude]\nExecutable = '{}'\n", program.display());
    fs::write(&settings, exclude).unwrap();
    reload(&agent);
    let begun = Instant::now();
    assert!(
        wait_until(Duration::from_secs(8), reads),
        "{:?}",
        begun.elapsed()
    );
    site.clamd().cont();
    assert!(waits.within(LIMIT).is_open());
    assert_refused(&bad);
}

#[test]
fn what_a_reload_leaves_out_is_refused_no_more() {
    require_root!();
    let site = or_skip!(Site::ext4());
    site.scratch().mkdir("in/dir");
    let agent = or_skip!(started(site.agent(), &["BPF LSM"]));
    let base = fs::read_to_string(agent.conf()).unwrap();
    let dir = site.watched().join("dir");
    let large = [infected(), vec![b' '; 5000]].concat();
    for (n, line) in [
        format!("OnAccessExcludePath {}", dir.display()),
        "OnAccessMaxFileSize 4000".to_owned(),
        "OnAccessExcludeUID 4711".to_owned(),
    ]
    .into_iter()
    .enumerate()
    {
        // New ones: what is known does not come back into the kernel's table.
        let bad = site.write(format!("dir/bad{n}"), &infected());
        let large = site.write(format!("large{n}"), &large);
        thread::sleep(common::NO_LONGER_YOUNG);
        for path in [&bad, &large] {
            refuse_in_kernel(&agent, path);
        }
        fs::write(agent.conf(), format!("{base}\n{line}\n")).unwrap();
        reload(&agent);
        let free = if line.contains("Size") { &large } else { &bad };
        let opens = || open_as(4711, free, LIMIT).is_open();
        assert!(wait_until(LIMIT, opens), "{line}");
        fs::write(agent.conf(), &base).unwrap();
        reload(&agent);
    }
}

#[test]
fn who_opens_is_known_without_asking() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let path = site.write("bad", &infected());
    let agent = or_skip!(with_tier(&site, &["BPF LSM", "fentry"]));
    for round in 0..20 {
        assert!(open_as(4711, &path, LIMIT).is_open(), "{round}");
        assert!(open_as(4712, &path, LIMIT).is_refused(), "{round}");
    }
    // The effective uid of one thread of many, between two opens of its own.
    let changing = path.clone();
    let opened = thread::spawn(move || {
        let mut opened = Vec::new();
        for euid in [4711, 0, 4711, 0] {
            sys::set_effective_uid_on_this_thread(euid).expect("seteuid");
            opened.push(File::open(&changing).is_ok());
        }
        opened
    })
    .join()
    .unwrap();
    assert_eq!(opened, [true, false, true, false]);
    assert!(counter(&agent, "excluded_uid") >= 20);
}

#[test]
fn an_open_for_writing_takes_the_clean_mark_away_before_the_store() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let path = site.write("file", &clean_pages(1));
    let agent = or_skip!(with_tier(&site, &["BPF LSM", "fentry"]));
    open_until_marked(&agent, std::slice::from_ref(&path));
    let mapping = common::map(&path);
    let gone = wait_until(LIMIT, || {
        let all = agent.counters().expect("counters");
        all["bpf_write_open_reported"] > 0 && all["marks_dropped_dirty"] > 0
    });
    assert!(gone, "{:?}", agent.counters());
    let mut mapping = mapping;
    mapping.store(0, &marker());
    assert!(
        refused_within(&path, Duration::ZERO).is_some(),
        "no window: the mark went with the open"
    );
}
