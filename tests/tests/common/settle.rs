//! Directories out of scope once the kernel ignores them, and mounts of a test's own.
//!
//! Owns: the wait until opens raise no events any more, images that can be
//! mounted more than once, and the end of every mount made here. Must not: say
//! what holds then; the test files do.

#![allow(dead_code, reason = "each test file uses a part of it")]

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
};
use onacc_tests::{Agent, clamd::wait_until, open_within};

use crate::common::{LIMIT, assert_opens, counters, shown};

/// A change of the mount table is followed by then.
pub const MOUNT_WINDOW: Duration = Duration::from_secs(1);

/// Opens files out of scope until the kernel keeps their opens to itself.
#[track_caller]
pub fn settle(agent: &Agent, paths: &[&Path]) {
    let deadline = Instant::now() + LIMIT;
    loop {
        let before = counters(agent)["events"];
        for path in paths.iter().cycle().take(3 * paths.len()) {
            assert_opens(path);
        }
        let after = counters(agent);
        if after["events"] == before
            && (after["directories_ignored"] > 0 || after["directory_marks"] > 0)
        {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "opens of {} still raise events: {after:?}",
            shown(paths[0])
        );
        // A directory is asked about once a second at most.
        thread::sleep(Duration::from_millis(100));
    }
}

/// Opens a file until it can be opened; how long that took.
pub fn opens_within(path: &Path, limit: Duration) -> Option<Duration> {
    let before = Instant::now();
    wait_until(limit, || open_within(path, LIMIT).is_open()).then(|| before.elapsed())
}

/// Something mounted, unmounted on drop at the latest.
#[derive(Debug)]
pub struct Mounted(Option<PathBuf>);

impl Mounted {
    /// Mounts an existing directory or file at a second place.
    #[track_caller]
    pub fn bind(from: &Path, at: &Path) -> Self {
        let none = None::<&str>;
        mount(Some(from), at, none, MsFlags::MS_BIND, none)
            .unwrap_or_else(|e| panic!("bind mount at {}: {e}", at.display()));
        Self(Some(at.to_path_buf()))
    }

    /// Mounts a new filesystem of this type without a device.
    #[track_caller]
    pub fn new(kind: &str, options: &str, at: &Path) -> Self {
        mount(
            Some("onacc-test"),
            at,
            Some(kind),
            MsFlags::empty(),
            Some(options),
        )
        .unwrap_or_else(|e| panic!("{kind} at {}: {e}", at.display()));
        Self(Some(at.to_path_buf()))
    }

    /// Something that was mounted by other means.
    pub fn adopt(at: &Path) -> Self {
        Self(Some(at.to_path_buf()))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.0.as_deref().expect("it is mounted")
    }

    /// A path in it.
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path().join(name)
    }

    /// Moves it to another place.
    #[track_caller]
    pub fn move_to(&mut self, to: &Path) {
        let none = None::<&str>;
        mount(Some(self.path()), to, none, MsFlags::MS_MOVE, none)
            .unwrap_or_else(|e| panic!("moving a mount to {}: {e}", to.display()));
        self.0 = Some(to.to_path_buf());
    }

    /// Unmounts it; `EBUSY` if anybody holds it.
    pub fn unmount(mut self) -> Result<(), (Errno, Self)> {
        let at = self.0.take().expect("it is mounted");
        umount2(&at, MntFlags::empty()).map_err(|error| (error, Self(Some(at))))
    }

    /// Unmounts it as soon as nobody holds it; how long that took. Panics if
    /// somebody still does at the limit.
    #[track_caller]
    pub fn unmount_within(self, limit: Duration) -> Duration {
        let before = Instant::now();
        let mut mounted = self;
        loop {
            match mounted.unmount() {
                Ok(()) => return before.elapsed(),
                Err((error, again)) => {
                    assert!(before.elapsed() < limit, "cannot unmount: {error}");
                    mounted = again;
                    thread::sleep(Duration::from_millis(1));
                }
            }
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Some(at) = &self.0
            && umount2(at, MntFlags::empty()).is_err()
        {
            // The test has failed already, or the private namespace ends it.
            let _ = umount2(at, MntFlags::MNT_DETACH);
        }
    }
}

/// An ext4 filesystem in a file, which can be mounted again and again.
#[derive(Debug)]
pub struct Image {
    dir: tempfile::TempDir,
}

impl Image {
    /// A new one of this many MiB.
    pub fn ext4(mib: u64) -> Result<Self, String> {
        let dir = tempfile::tempdir().map_err(|error| format!("a directory: {error}"))?;
        let image = Self { dir };
        File::create(image.file())
            .and_then(|file| file.set_len(mib << 20))
            .map_err(|error| format!("making an image: {error}"))?;
        run(Command::new("mkfs.ext4")
            .args(["-q", "-F", "-m", "0"])
            .arg(image.file()))?;
        Ok(image)
    }

    /// The file that it is in.
    pub fn file(&self) -> PathBuf {
        self.dir.path().join("image")
    }

    /// Mounts it by FUSE; the server is a process of the test's, and ends with the
    /// mount.
    pub fn serve(&self, at: &Path) -> Result<Mounted, String> {
        run(Command::new("fuse2fs")
            .args(["-o", "fakeroot,allow_other"])
            .arg(self.file())
            .arg(at))?;
        Ok(Mounted(Some(at.to_path_buf())))
    }

    /// Mounts it.
    #[track_caller]
    pub fn mount(&self, at: &Path) -> Mounted {
        run(Command::new("mount")
            .args(["-t", "ext4", "-o", "loop"])
            .arg(self.file())
            .arg(at))
        .expect("mounting an image");
        Mounted(Some(at.to_path_buf()))
    }
}

/// Runs a tool, also one in `sbin`.
pub fn run(command: &mut Command) -> Result<(), String> {
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/sbin:/sbin"));
    let output = command
        .output()
        .map_err(|error| format!("{command:?}: {error}"))?;
    if output.status.success() {
        Ok(())
    } else {
        let said = String::from_utf8_lossy(&output.stderr);
        Err(format!("{command:?}: {}", said.trim()))
    }
}
