//! What a locked down kernel takes away is said, and files are protected all the
//! same.
//!
//! Runs in every machine of `cargo xtask vm`, one of which boots with
//! lockdown=confidentiality; and here, in whatever mode this kernel is.

mod common;

use std::{fs, process::Command};

use common::{LIMIT, Site, assert_opens, assert_refused, clean, infected};
use onacc_tests::{Agent, agent, clamd::wait_until, open_as, or_skip, require_root, skip};

/// The mode of the running kernel; `None` where it cannot be asked.
fn mode() -> Option<String> {
    let modes = fs::read_to_string("/sys/kernel/security/lockdown").ok()?;
    let (_, rest) = modes.split_once('[').expect("one mode is chosen");
    let (mode, _) = rest.split_once(']').expect("one mode is chosen");
    Some(mode.to_owned())
}

fn is_confidential() -> bool {
    mode().is_some_and(|mode| mode == "confidentiality")
}

/// What the agent says at start must speak of lockdown exactly where it matters.
#[track_caller]
fn says_what_is_missing(agent: &Agent, confidential: bool) {
    let said = agent.output();
    assert!(
        said.contains("tier: eBPF: tracepoint: ") || said.contains("tier: eBPF: none: "),
        "{said}"
    );
    let told = said.lines().any(|line| {
        line.contains("tier: opens: not in force: BPF LSM: ")
            && line.contains("lockdown is in confidentiality mode")
    });
    let has_ebpf = said.contains("tier: eBPF: tracepoint: ");
    // Without bpf in lsm= that is the reason which is named.
    let tried = has_ebpf && !said.contains("BPF LSM: bpf is not in");
    assert_eq!(told, confidential && tried, "{said}");
}

#[test]
fn infected_files_are_refused_and_excluded_users_are_not_asked() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let (good, bad) = (site.write("good", &clean()), site.write("bad", &infected()));
    let agent = site.agent().option("OnAccessExcludeUID 4711").start();
    says_what_is_missing(&agent, is_confidential());
    for _ in 0..3 {
        assert_opens(&good);
        assert_refused(&bad);
        assert!(open_as(4711, &bad, LIMIT).is_open());
        assert!(open_as(4712, &bad, LIMIT).is_refused());
    }
    fs::write(&good, infected()).unwrap();
    assert_refused(&good);
}

#[test]
fn without_prevention_infected_files_are_reported() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let bad = site.write("bad", &infected());
    let agent = Agent::builder(site.clamd())
        .prevention(false)
        .include(site.watched())
        .start();
    says_what_is_missing(&agent, is_confidential());
    assert_opens(&bad);
    let reported = || agent.output().contains(&format!("{}: ", bad.display()));
    assert!(wait_until(LIMIT, reported), "{}", agent.output());
    if is_confidential() {
        assert!(agent.output().contains("opens are told by fanotify"));
    }
}

#[test]
fn the_doctor_says_what_is_missing_and_how_to_mend_it() {
    require_root!();
    let Some(mode) = mode() else {
        skip!("this kernel tells of no lockdown");
    };
    let dir = tempfile::tempdir().unwrap();
    let conf = dir.path().join("clamd.conf");
    let settings = format!(
        "LocalSocket /tmp/none.sock\nOnAccessIncludePath {}\nOnAccessPrevention yes\n",
        dir.path().display()
    );
    fs::write(&conf, settings).unwrap();
    let output = Command::new(agent::binary())
        .args(["doctor", "--no-canary"])
        .arg(format!("--config-file={}", conf.display()))
        .output()
        .expect("the doctor runs");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains(&format!("lockdown: {mode}")), "{said}");
    let explained = said.contains("may not read the kernel's memory")
        && said.contains("lockdown=integrity on the kernel's command line");
    assert_eq!(explained, mode == "confidentiality", "{said}");
}
