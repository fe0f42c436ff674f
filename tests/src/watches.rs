//! inotify watches that are used up, for one user, and the agent as that user.
//!
//! Owns: instances and watches, until it is dropped. The kernel counts them by user,
//! so that nobody else runs short. Must not: change a limit. Tested by
//! `tests/limits.rs`.

use std::{
    fs::{self, File},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    sync::mpsc,
    thread,
};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use crate::{Result, agent, sys};

/// What the agent needs of root (a machine may not have them all to give).
const CAPABILITIES: &str =
    "+sys_admin,+dac_override,+dac_read_search,+fowner,+sys_ptrace,+bpf,+perfmon";
/// Watches that are left to the agent.
const LEFT: usize = 30;
/// inotify instances that are left to the agent.
const INSTANCES_LEFT: usize = 12;

/// The limit of this name in `/proc/sys/fs/inotify`.
pub fn limit(name: &str) -> Result<usize> {
    let path = format!("/proc/sys/fs/inotify/{name}");
    let text = fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))?;
    text.trim()
        .parse()
        .map_err(|error| format!("{path}: {error}"))
}

/// Uses a user's watches up, but for a few, until the result is dropped; `dir` holds
/// what is watched. Watches of one inode in many instances cost least.
pub fn use_up(user: u32, dir: &Path) -> Result<Vec<Inotify>> {
    let wanted = limit("max_user_watches")?.saturating_sub(LEFT);
    let instances = limit("max_user_instances")?.saturating_sub(INSTANCES_LEFT);
    let each = wanted.div_ceil(instances.max(1));
    if each > 20_000 {
        return Err(format!("{wanted} watches are too many to use up"));
    }
    let mut files: Vec<PathBuf> = Vec::new();
    for n in 0..each {
        let path = dir.join(n.to_string());
        File::create(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        files.push(path);
    }
    // A thread of that user: whoever makes the instance is whom it counts for.
    let (done, made) = mpsc::channel();
    thread::spawn(move || {
        let all = sys::become_user_on_this_thread(user, user)
            .map_err(|error| format!("another user: {error}"))
            .and_then(|()| {
                let all: Result<Vec<Inotify>, _> = (0..instances)
                    .map(|_| Inotify::init(InitFlags::IN_CLOEXEC))
                    .collect();
                all.map_err(|error| format!("inotify instances: {error}"))
            });
        let _ = done.send(all);
    });
    let all = made.recv().map_err(|error| error.to_string())??;
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

/// Writes a program into `dir` that runs onacc as that user, with the capabilities
/// it needs. The user must be able to enter the directory.
pub fn onacc_as(user: u32, dir: &Path) -> Result<PathBuf> {
    let script = dir.join("onacc-as-user");
    let onacc = agent::binary();
    let text = format!(
        "#!/bin/sh\nexec setpriv --reuid {user} --regid {user} --clear-groups \
         --inh-caps {CAPABILITIES} --ambient-caps {CAPABILITIES} {} \"$@\"\n",
        onacc.display()
    );
    fs::write(&script, text)
        .and_then(|()| fs::set_permissions(&script, fs::Permissions::from_mode(0o755)))
        .map_err(|error| format!("{}: {error}", script.display()))?;
    match Command::new(&script).arg("--version").output() {
        Ok(output) if output.status.success() => Ok(script),
        Ok(output) => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        Err(error) => Err(error.to_string()),
    }
}
