//! Control groups of a test's own.
//!
//! Must not: assert anything.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use onacc_tests::{clamd::wait_until, sys};

use crate::common::LIMIT;

/// A control group of the test's own, in the hierarchy of version 2.
pub struct Group(PathBuf);

impl Group {
    /// Makes one.
    pub fn new(name: &str) -> Result<Self, String> {
        let mounts = fs::read_to_string("/proc/self/mounts").map_err(|error| error.to_string())?;
        let line = mounts.lines().find(|line| line.contains(" cgroup2 "));
        let root = line
            .and_then(|line| line.split(' ').nth(1))
            .ok_or("no control groups of version 2")?;
        let path = Path::new(root).join(format!("onacc-test-{}-{name}", std::process::id()));
        fs::create_dir(&path).map_err(|error| format!("a control group: {error}"))?;
        Ok(Self(path))
    }

    /// As processes in it see it.
    pub fn name(&self) -> String {
        format!(
            "/{}",
            self.0.file_name().expect("it has a name").to_string_lossy()
        )
    }

    /// Whether a process in it, which is gone then, can read a file.
    pub fn read(&self, file: &Path) -> bool {
        let script = format!(
            "echo $$ > {}/cgroup.procs && exec cat \"$0\"",
            self.0.display()
        );
        let mut command = Command::new("/bin/sh");
        command.args(["-c", &script]).arg(file);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        sys::die_with_parent(&mut command)
            .status()
            .expect("sh starts")
            .success()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Its processes have ended, but the kernel may not have noticed.
        wait_until(LIMIT, || fs::remove_dir(&self.0).is_ok());
    }
}
