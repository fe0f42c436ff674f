//! `KeepVerdictsOn`: verdicts on a FUSE filesystem, kept because the settings say so.
//!
//! The filesystem's server keeps no times when it is written to: what is seen of
//! writers here is all that tells.

mod common;

use std::{
    fs::{self, OpenOptions},
    os::unix::fs::FileExt as _,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use common::{
    FakeSite, LIMIT, Site, assert_opens, assert_refused, clean, counter, infected, only_error,
};
use onacc_tests::{Agent, Behaviour, HangingFs, Opening, clamd::wait_until, or_skip, require_root};

/// Long enough for EICAR to be written over it.
fn files() -> Vec<(String, Vec<u8>)> {
    ["a", "b", "c"]
        .map(|name| (name.to_owned(), clean()))
        .into()
}

/// How many scans `opens` further opens need, each of a clean file.
#[track_caller]
fn scans_of(agent: &Agent, path: &std::path::Path, opens: usize) -> u64 {
    let before = counter(agent, "scans");
    for _ in 0..opens {
        assert_opens(path);
    }
    counter(agent, "scans") - before
}

#[test]
fn each_open_on_fuse_is_scanned_unless_the_settings_say_otherwise() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let fuse = or_skip!(HangingFs::mount(files()));
    let path = fuse.join("a");
    let agent = site.agent().include(fuse.path()).start();
    assert_eq!(scans_of(&agent, &path, 4), 4);
    drop(agent);
    for told in ["fuse".to_owned(), fuse.path().display().to_string()] {
        let agent = site
            .agent()
            .include(fuse.path())
            .arg(&format!("--keep-verdicts-on={told}"))
            .start();
        assert_eq!(scans_of(&agent, &path, 4), 1, "{told}");
        assert!(counter(&agent, "known_clean") >= 3);
        assert_eq!(counter(&agent, "marks_placed"), 0);
        let line = agent.wait_for("are kept (command line: --keep-verdicts-on)", LIMIT);
        assert!(line.is_ok(), "{}", agent.output());
    }
    // Another type, another place.
    let agent = site
        .agent()
        .include(fuse.path())
        .arg("--keep-verdicts-on=nfs4")
        .arg("--keep-verdicts-on=/nowhere")
        .start();
    assert_eq!(scans_of(&agent, &path, 4), 4);
    let line = agent.wait_for("nothing is mounted at /nowhere (yet)", LIMIT);
    assert!(line.is_ok(), "{}", agent.output());
}

#[test]
fn what_is_written_here_is_refused_though_no_stamp_shows_it() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let fuse = or_skip!(HangingFs::mount(files()));
    let path = fuse.join("a");
    let agent = site
        .agent()
        .include(fuse.path())
        .arg("--keep-verdicts-on=fuse")
        .start();
    assert_eq!(scans_of(&agent, &path, 3), 1);
    let before = fs::metadata(&path).expect("the file");
    let writer = OpenOptions::new().write(true).open(&path).expect("opening");
    // With a writer nothing is known of it.
    assert_eq!(scans_of(&agent, &path, 2), 2);
    let mut bytes = clean();
    bytes[..infected().len()].copy_from_slice(&infected());
    writer.write_all_at(&bytes, 0).expect("writing");
    assert_refused(&path);
    drop(writer);
    let after = fs::metadata(&path).expect("the file");
    assert_eq!(
        (before.len(), before.modified().unwrap()),
        (after.len(), after.modified().unwrap()),
        "the server keeps no times"
    );
    // Known as infected, too, and no longer than it is.
    assert_refused(&path);
    let scans = counter(&agent, "scans");
    assert_refused(&path);
    assert_eq!(counter(&agent, "scans"), scans);
    assert!(OpenOptions::new().write(true).open(&path).is_err());
}

#[test]
fn what_the_server_changes_is_seen_as_soon_as_its_times_are() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let fuse = or_skip!(HangingFs::mount_with(files(), Duration::ZERO));
    let path = fuse.join("a");
    let agent = site
        .agent()
        .include(fuse.path())
        .arg(&format!("--keep-verdicts-on={}/", fuse.path().display()))
        .start();
    assert_eq!(scans_of(&agent, &path, 3), 1);
    fuse.change("a", &infected());
    assert_refused(&path);
    fuse.change("a", &clean());
    assert_eq!(scans_of(&agent, &path, 3), 1);
}

#[test]
fn a_file_that_is_written_while_it_is_scanned_is_not_known_afterwards() {
    require_root!();
    let first = AtomicBool::new(true);
    let site = or_skip!(FakeSite::ext4(move |_| {
        if first.swap(false, Ordering::Relaxed) {
            Behaviour::clean().held()
        } else {
            Behaviour::usual()
        }
    }));
    let fuse = or_skip!(HangingFs::mount(files()));
    let path = fuse.join("a");
    let agent = site
        .agent()
        .include(fuse.path())
        .arg("--keep-verdicts-on=fuse")
        .option("OnAccessCurlTimeout 20000")
        .start();
    let opening = Opening::start(&path);
    assert!(wait_until(LIMIT, || site.fake().count("FILDES") == 1));
    let writer = OpenOptions::new().write(true).open(&path).expect("opening");
    writer.write_all_at(&infected(), 0).expect("writing");
    drop(writer);
    assert!(wait_until(LIMIT, || counter(&agent, "closed_after_write") == 1));
    site.fake().let_all_go();
    let opened = opening.within(LIMIT);
    assert!(opened.is_open(), "{opened:?}");
    assert_refused(&path);
}

#[test]
fn unknown_words_are_refused_with_file_and_line() {
    require_root!();
    let site = or_skip!(FakeSite::ext4(|_| Behaviour::usual()));
    let settings = site.write(
        "onacc.toml",
        b"[cache]\nKeepVerdictsOn = [\"nfs\", \"nsf4\"]\n",
    );
    let exited = site
        .agent()
        .arg(&format!("--settings={}", settings.display()))
        .spawn_expect_exit();
    assert_eq!(exited.status.code(), Some(2));
    let error = only_error(&exited);
    for part in ["onacc.toml:2:", "KeepVerdictsOn", "'nsf4'", "fuse.sshfs"] {
        assert!(error.contains(part), "{part}: {error}");
    }
}
