//! `/` as the include path, with the agent, its clamd and its log on it.
//!
//! The agent runs in a chroot on a filesystem of the test's own, with nothing
//! but that and `/proc` below it: no filesystem of the machine gets a mark.

mod common;
#[path = "common/settle.rs"]
mod settle;

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use common::{
    LIMIT, assert_opens, assert_refused, clean, counter, counters, infected, marker,
    refused_within, write_marker_signature,
};
use onacc_tests::{Agent, Clamd, ScratchFs, agent, or_skip, require_root};
use settle::{MOUNT_WINDOW, Mounted, run};

/// The root filesystem of the agent.
struct Root {
    scratch: ScratchFs,
    wrapper: PathBuf,
    _dir: tempfile::TempDir,
}

/// The shared libraries that a program needs.
fn libraries(program: &Path) -> Result<Vec<PathBuf>, String> {
    let output = Command::new("ldd")
        .arg(program)
        .output()
        .map_err(|error| format!("ldd: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(text
        .split_whitespace()
        .filter(|word| word.starts_with('/'))
        .map(PathBuf::from)
        .collect())
}

impl Root {
    fn new() -> Result<Self, String> {
        let scratch = ScratchFs::ext4(128)?;
        let top = scratch.path().to_path_buf();
        for dir in ["proc", "etc", "dev", "run", "home"] {
            scratch.mkdir(dir);
        }
        let onacc = agent::binary();
        for file in libraries(&onacc)? {
            let to = top.join(file.strip_prefix("/").unwrap_or(&file));
            fs::create_dir_all(to.parent().unwrap_or(&top)).map_err(|error| error.to_string())?;
            fs::copy(&file, &to).map_err(|error| format!("{}: {error}", file.display()))?;
        }
        fs::copy(&onacc, top.join("onacc")).map_err(|error| error.to_string())?;
        for name in ["etc/passwd", "etc/nsswitch.conf"] {
            // A machine without nsswitch.conf has none here either.
            let _ = fs::copy(Path::new("/").join(name), top.join(name));
        }
        // What the kit names by the path from outside leads to the same place.
        let alias = top.join(top.strip_prefix("/").unwrap_or(&top));
        let above = alias.parent().unwrap_or(&top);
        fs::create_dir_all(above).map_err(|error| error.to_string())?;
        symlink("/", &alias).map_err(|error| error.to_string())?;
        run(Command::new("mount")
            .args(["-t", "proc", "proc"])
            .arg(top.join("proc")))?;
        let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
        let wrapper = dir.path().join("onacc-in-chroot");
        let text = format!("#!/bin/sh\nexec chroot {} /onacc \"$@\"\n", top.display());
        fs::write(&wrapper, text).map_err(|error| error.to_string())?;
        fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755))
            .map_err(|error| error.to_string())?;
        let root = Self {
            scratch,
            wrapper,
            _dir: dir,
        };
        root.holds_nothing_else()?;
        Ok(root)
    }

    /// Must be so: the agent will mark all that it sees.
    fn holds_nothing_else(&self) -> Result<(), String> {
        let top = self.scratch.path();
        let table = fs::read_to_string("/proc/thread-self/mountinfo").map_err(|e| e.to_string())?;
        let below: Vec<&str> = table
            .lines()
            .filter_map(|line| line.split(' ').nth(4))
            .filter(|point| Path::new(point).starts_with(top))
            .collect();
        let wanted = [top.to_path_buf(), top.join("proc")];
        if below.len() == 2
            && below
                .iter()
                .all(|at| wanted.iter().any(|one| one == Path::new(at)))
        {
            Ok(())
        } else {
            Err(format!("mounted below the agent's root: {below:?}"))
        }
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        let _ = run(Command::new("umount").arg(self.scratch.join("proc")));
    }
}

#[test]
fn the_root_itself_can_be_the_include_path() {
    require_root!();
    let root = or_skip!(Root::new());
    or_skip!(Clamd::installed());
    let scratch = &root.scratch;
    // clamd, its database, its socket and its log are on it as well.
    let clamd_dir = scratch.mkdir("run/clamd");
    write_marker_signature(&clamd_dir);
    let clamd = Clamd::start(&clamd_dir);
    let off = scratch.mkdir("home/off");
    let agent = Agent::builder(&clamd)
        .binary(&root.wrapper)
        .directory(&scratch.mkdir("run/onacc"))
        .prevention(true)
        .include("/")
        .exclude("/home/off")
        .start();
    let output = agent.output();
    assert!(output.contains("watching '/'"), "{output}");
    for dir in ["", "etc", "home/deep/er"] {
        let dir = scratch.mkdir(dir);
        let (bad, good) = (dir.join("bad"), dir.join("good"));
        fs::write(&bad, infected()).unwrap();
        fs::write(&good, clean()).unwrap();
        for _ in 0..3 {
            assert_refused(&bad);
            assert_opens(&good);
        }
    }
    let excluded = off.join("bad");
    fs::write(&excluded, infected()).unwrap();
    settle::settle(&agent, &[&excluded]);
    // Files of the agent and of clamd: nobody waits for a scan of one's own.
    clamd.reload();
    let log = fs::read(agent.log_path()).unwrap();
    assert!(!log.is_empty());
    // What is mounted anywhere is below it.
    let at = scratch.mkdir("mnt");
    let mounted = Mounted::new("tmpfs", "size=4m", &at);
    let bad = mounted.join("bad");
    fs::write(&bad, [clean(), marker()].concat()).unwrap();
    assert!(refused_within(&bad, MOUNT_WINDOW).is_some());
    mounted.unmount_within(LIMIT);
    // Out of the excluded place is into the scope.
    let moved = scratch.join("moved");
    fs::rename(&off, &moved).unwrap();
    assert!(refused_within(&moved.join("bad"), common::MOVE_WINDOW).is_some());
    assert_eq!(counter(&agent, "timeouts"), 0, "{:?}", counters(&agent));
}
