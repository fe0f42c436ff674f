//! Limits of the machine that coverage "directory" runs into: inotify watches.
//!
//! The real limit and the real error: the kernel counts watches by user, so the
//! agent runs as a user of its own (with capabilities of root's), whose watches the
//! test has used up. Must not: change a limit, or use up anybody else's.

mod common;

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, chown},
    path::PathBuf,
    time::Duration,
};

use common::{LIMIT, Site, assert_refused, infected, refused_within};
use onacc_tests::{or_skip, require_root, skip, watches};

/// Nobody else on the machine is this user.
const USER: u32 = 47_110;
/// Directories that the agent is to protect.
const DIRECTORIES: usize = 100;
/// The agent looks at directories without a watch every three seconds.
const POLLED: Duration = Duration::from_secs(10);

#[test]
fn with_all_watches_used_up_everything_is_protected_and_it_recovers() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let wrapper = match watches::onacc_as(USER, dir.path()) {
        Ok(wrapper) => wrapper,
        Err(why) => skip!("onacc does not start as another user: {why}"),
    };
    let conf = tempfile::tempdir().unwrap();
    chown(conf.path(), Some(USER), Some(USER)).unwrap();
    let used_up = or_skip!(watches::use_up(USER, dir.path()));
    let all: Vec<PathBuf> = (0..DIRECTORIES)
        .map(|n| {
            site.scratch().mkdir(format!("in/{}/{n}", n % 10));
            site.write(format!("{}/{n}/bad", n % 10), &infected())
        })
        .collect();
    let agent = site
        .agent()
        .arg("--coverage=directory")
        .binary(&wrapper)
        .directory(conf.path())
        .start();
    // One line, with the numbers and the remedy.
    let line = agent
        .wait_for("inotify watches are used up", LIMIT)
        .unwrap();
    for part in [
        "WARNING: ".to_owned(),
        watches::limit("max_user_watches").unwrap().to_string(),
        "sysctl -w fs.inotify.max_user_watches=".to_owned(),
    ] {
        assert!(line.contains(&part), "{part} is not in: {line}");
    }
    for path in &all {
        assert_refused(path);
    }
    // A directory without a watch is looked at again and again.
    let new = site.scratch().mkdir("in/9/99/new");
    let bad = new.join("bad");
    fs::write(&bad, infected()).unwrap();
    let took = refused_within(&bad, POLLED);
    assert!(took.is_some(), "{}", agent.output());
    // Said once, not for each directory.
    let said = |words: &str| agent.output().matches(words).count();
    assert_eq!(said("inotify watches are used up"), 1, "{}", agent.output());
    drop(used_up);
    agent
        .wait_for("there are inotify watches again", LIMIT)
        .unwrap();
    for n in 0..20 {
        let new = site.scratch().mkdir(format!("in/{n}/again"));
        let bad = new.join("bad");
        fs::write(&bad, infected()).unwrap();
        assert!(refused_within(&bad, Duration::from_secs(2)).is_some());
    }
}
