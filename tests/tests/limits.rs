//! Limits of the machine that coverage "directory" runs into: inotify watches.
//!
//! The real limit and the real error: the kernel counts watches by user, so the
//! agent runs as a user of its own (with capabilities of root's), whose watches the
//! test has used up. Must not: change a limit, or use up anybody else's.

mod common;

use std::{
    fs::{self, File},
    os::unix::fs::{PermissionsExt as _, chown},
    path::{Path, PathBuf},
    process::Command,
    sync::mpsc,
    thread,
    time::Duration,
};

use common::{LIMIT, Site, assert_refused, infected, refused_within};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use onacc_tests::{agent, or_skip, require_root, skip, sys};

/// Nobody else on the machine is this user.
const USER: u32 = 47_110;
/// What the agent needs of root (a machine may not have them all to give).
const CAPABILITIES: &str =
    "+sys_admin,+dac_override,+dac_read_search,+fowner,+sys_ptrace,+bpf,+perfmon";
/// Watches that are left to the agent.
const LEFT: usize = 30;
/// inotify instances that are left to the agent.
const INSTANCES_LEFT: usize = 12;
/// Directories that the agent is to protect.
const DIRECTORIES: usize = 100;
/// The agent looks at directories without a watch every three seconds.
const POLLED: Duration = Duration::from_secs(10);

fn limit(name: &str) -> usize {
    let text = fs::read_to_string(format!("/proc/sys/fs/inotify/{name}")).expect("a limit");
    text.trim().parse().expect("a number")
}

/// Uses the user's watches up, but for those that are left. Watches of one inode
/// in many instances cost least.
fn use_up(dir: &Path) -> Result<Vec<Inotify>, String> {
    let wanted = limit("max_user_watches").saturating_sub(LEFT);
    let instances = limit("max_user_instances").saturating_sub(INSTANCES_LEFT);
    if wanted.div_ceil(instances.max(1)) > 20_000 {
        return Err(format!("{wanted} watches are too many to use up"));
    }
    let files: Vec<PathBuf> = (0..wanted.div_ceil(instances))
        .map(|n| {
            let path = dir.join(n.to_string());
            File::create(&path).expect("a file to watch");
            path
        })
        .collect();
    // A thread of that user: whoever makes the instance is whom it counts for.
    let (done, made) = mpsc::channel();
    thread::spawn(move || {
        sys::become_user_on_this_thread(USER, USER).expect("another user");
        let all: Result<Vec<Inotify>, _> = (0..instances)
            .map(|_| Inotify::init(InitFlags::IN_CLOEXEC))
            .collect();
        let _ = done.send(all);
    });
    let all = made.recv().expect("the thread answers");
    let all = all.map_err(|error| format!("inotify instances: {error}"))?;
    let mut left = wanted;
    for instance in &all {
        for path in files.iter().take(left) {
            instance
                .add_watch(path, AddWatchFlags::IN_DELETE_SELF)
                .map_err(|error| format!("with {left} watches to go: {error}"))?;
        }
        left = left.saturating_sub(files.len());
    }
    Ok(all)
}

/// A program that runs onacc as that user, with all capabilities.
fn as_user(dir: &Path) -> Result<PathBuf, String> {
    let script = dir.join("onacc-as-user");
    let onacc = agent::binary();
    let text = format!(
        "#!/bin/sh\nexec setpriv --reuid {USER} --regid {USER} --clear-groups \
         --inh-caps {CAPABILITIES} --ambient-caps {CAPABILITIES} {} \"$@\"\n",
        onacc.display()
    );
    fs::write(&script, text).map_err(|error| error.to_string())?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))
        .map_err(|error| error.to_string())?;
    let works = Command::new(&script).arg("--version").output();
    match works {
        Ok(output) if output.status.success() => Ok(script),
        Ok(output) => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        Err(error) => Err(error.to_string()),
    }
}

#[test]
fn with_all_watches_used_up_everything_is_protected_and_it_recovers() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let wrapper = match as_user(dir.path()) {
        Ok(wrapper) => wrapper,
        Err(why) => skip!("onacc does not start as another user: {why}"),
    };
    let conf = tempfile::tempdir().unwrap();
    chown(conf.path(), Some(USER), Some(USER)).unwrap();
    let watches = or_skip!(use_up(dir.path()));
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
        limit("max_user_watches").to_string(),
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
    drop(watches);
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
