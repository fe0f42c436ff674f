//! A memory control group for one process of a test: its limits, its usage.
//!
//! Owns: the group, which is removed on drop. Must not: touch a group that it has
//! not made. Uses the memory controller of version 2 where it is mounted, else of
//! version 1 (which has no `memory.high`). Tested below.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::Duration,
};

use crate::Result;

/// Where the memory controller may be, and its version.
const PLACES: [(&str, Version); 3] = [
    ("/sys/fs/cgroup", Version::Two),
    ("/sys/fs/cgroup/unified", Version::Two),
    ("/sys/fs/cgroup/memory", Version::One),
];

static SERIAL: AtomicU32 = AtomicU32::new(0);

/// Version of control groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// `memory.limit_in_bytes`.
    One,
    /// `memory.max`, `memory.high`.
    Two,
}

/// The group.
#[derive(Debug)]
pub struct MemoryGroup {
    root: PathBuf,
    path: PathBuf,
    version: Version,
}

impl MemoryGroup {
    /// A new group without limits; the error says what is missing here.
    pub fn new() -> Result<Self> {
        let has_controller = |(place, version): &(&str, Version)| match version {
            Version::Two => fs::read_to_string(Path::new(place).join("cgroup.controllers"))
                .is_ok_and(|text| text.split_whitespace().any(|name| name == "memory")),
            Version::One => Path::new(place).join("memory.limit_in_bytes").exists(),
        };
        let (root, version) = PLACES
            .into_iter()
            .find(has_controller)
            .ok_or("no memory controller of control groups is mounted")?;
        let root = PathBuf::from(root);
        let fail = |what: &str, error: std::io::Error| format!("control groups: {what}: {error}");
        if version == Version::Two {
            // The root may always hand it on; elsewhere it has been done already.
            let control = root.join("cgroup.subtree_control");
            let on = fs::read_to_string(&control).unwrap_or_default();
            if !on.split_whitespace().any(|name| name == "memory") {
                fs::write(&control, "+memory").map_err(|error| fail("+memory", error))?;
            }
        }
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let name = format!("onacc-test-{}-{serial}", std::process::id());
        let path = root.join(name);
        fs::create_dir(&path).map_err(|error| fail("mkdir", error))?;
        Ok(Self {
            root,
            path,
            version,
        })
    }

    /// Which version it is of.
    pub fn version(&self) -> Version {
        self.version
    }

    /// Writes a program to `script` that runs another one inside the group.
    pub fn wrap(&self, script: &Path, program: &Path) -> Result<()> {
        let text = format!(
            "#!/bin/sh\necho $$ > {}/cgroup.procs || exit 99\nexec {} \"$@\"\n",
            self.path.display(),
            program.display()
        );
        fs::write(script, text)
            .and_then(|()| fs::set_permissions(script, fs::Permissions::from_mode(0o755)))
            .map_err(|error| format!("{}: {error}", script.display()))
    }

    /// Sets the limit beyond which the kernel kills; `None`: no limit.
    pub fn set_limit(&self, bytes: Option<u64>) -> Result<()> {
        let (name, none) = match self.version {
            Version::One => ("memory.limit_in_bytes", "-1"),
            Version::Two => ("memory.max", "max"),
        };
        self.write(name, bytes, none)
    }

    /// Sets the limit beyond which the kernel slows down (version 2 alone).
    pub fn set_high(&self, bytes: Option<u64>) -> Result<()> {
        match self.version {
            Version::One => Err("control groups of version 1 have no memory.high".to_owned()),
            Version::Two => self.write("memory.high", bytes, "max"),
        }
    }

    /// What is charged to the group, in bytes.
    pub fn usage(&self) -> Result<u64> {
        let name = match self.version {
            Version::One => "memory.usage_in_bytes",
            Version::Two => "memory.current",
        };
        let text = self.read(name)?;
        text.trim()
            .parse()
            .map_err(|error| format!("{name}: {error}"))
    }

    /// Has the kernel take back every page that it can.
    pub fn reclaim(&self) -> Result<()> {
        let (name, what) = match self.version {
            Version::One => ("memory.force_empty", "0".to_owned()),
            Version::Two => ("memory.reclaim", self.usage()?.to_string()),
        };
        match fs::write(self.path.join(name), what) {
            Ok(()) => Ok(()),
            // Less than all is what there was to be had.
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => Ok(()),
            Err(error) => Err(format!("{name}: {error}")),
        }
    }

    /// How often the kernel has killed for lack of memory.
    pub fn kills(&self) -> Result<u64> {
        let name = match self.version {
            Version::One => "memory.oom_control",
            Version::Two => "memory.events",
        };
        Ok(number(&self.read(name)?, "oom_kill"))
    }

    /// How often the kernel took memory back from the group or slowed it down.
    pub fn pressure(&self) -> Result<u64> {
        match self.version {
            Version::One => {
                let text = self.read("memory.failcnt")?;
                text.trim()
                    .parse()
                    .map_err(|error| format!("memory.failcnt: {error}"))
            }
            Version::Two => Ok(number(&self.read("memory.events")?, "high")),
        }
    }

    fn write(&self, name: &str, bytes: Option<u64>, none: &str) -> Result<()> {
        let text = bytes.map_or_else(|| none.to_owned(), |bytes| bytes.to_string());
        fs::write(self.path.join(name), &text).map_err(|error| format!("{name} = {text}: {error}"))
    }

    fn read(&self, name: &str) -> Result<String> {
        fs::read_to_string(self.path.join(name)).map_err(|error| format!("{name}: {error}"))
    }
}

fn number(text: &str, name: &str) -> u64 {
    let mut lines = text.lines().filter_map(|line| line.split_once(' '));
    let found = lines.find(|(field, _)| *field == name);
    found
        .and_then(|(_, value)| value.trim().parse().ok())
        .unwrap_or(0)
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        let _ = self.set_limit(None);
        // A process that still runs goes back to where groups are made.
        let left = fs::read_to_string(self.path.join("cgroup.procs")).unwrap_or_default();
        for pid in left.lines() {
            let _ = fs::write(self.root.join("cgroup.procs"), pid);
        }
        // One that has been killed takes a moment to leave.
        for _ in 0..50 {
            if fs::remove_dir(&self.path).is_ok() {
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
        eprintln!("{} could not be removed", self.path.display());
    }
}

#[cfg(test)]
mod tests {
    use std::{os::unix::process::ExitStatusExt as _, process::Command};

    use super::*;
    use crate::{or_skip, require_root};

    #[test]
    fn what_exceeds_its_limit_is_killed() {
        require_root!();
        let group = or_skip!(MemoryGroup::new());
        let dir = tempfile::tempdir().unwrap();
        let script = dir.path().join("inside");
        group.wrap(&script, Path::new("/bin/sh")).unwrap();
        let greedy = |limit| {
            group.set_limit(limit).unwrap();
            // dd's buffer is its memory.
            let mut command = Command::new(&script);
            let dd = "exec dd if=/dev/zero of=/dev/null bs=64M count=1 2>/dev/null";
            command.args(["-c", dd]).status().unwrap()
        };
        assert!(greedy(None).success());
        assert_eq!(group.kills(), Ok(0));
        let status = greedy(Some(16 << 20));
        assert_eq!(status.signal(), Some(libc::SIGKILL), "{status}");
        assert_eq!(group.kills(), Ok(1));
        let path = group.path.clone();
        drop(group);
        assert!(!path.exists());
    }
}
