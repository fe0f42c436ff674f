//! Single threads of a process that are stopped from outside: a control group
//! (version 2) of threads, frozen.
//!
//! SIGSTOP stops whole processes, and a debugger must not be attached to an agent.
//! A frozen thread can still be killed. Owns: its control groups, which go on drop,
//! thawed. Must not: touch others. Tested below.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use crate::{Result, clamd::wait_until};

/// Where version 2 may be mounted.
const PLACES: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];

static SERIAL: AtomicU32 = AtomicU32::new(0);

/// A process of which single threads can be stopped.
#[derive(Debug)]
pub struct Freezer {
    root: PathBuf,
    group: PathBuf,
    pid: u32,
}

impl Freezer {
    /// For the process with this id; the error says what is missing here.
    pub fn of(pid: u32) -> Result<Self> {
        let root = PLACES
            .map(PathBuf::from)
            .into_iter()
            .find(|place| place.join("cgroup.controllers").exists())
            .ok_or("no control groups of version 2 are mounted")?;
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let group = root.join(format!("onacc-freezer-{}-{serial}", std::process::id()));
        let this = Self { root, group, pid };
        fs::create_dir_all(this.frozen())
            .map_err(|error| format!("control groups: mkdir: {error}"))?;
        this.set("frozen/cgroup.type", "threaded")?;
        this.set("cgroup.procs", &pid.to_string())?;
        Ok(this)
    }

    fn frozen(&self) -> PathBuf {
        self.group.join("frozen")
    }

    fn set(&self, name: &str, value: &str) -> Result<()> {
        write(&self.group.join(name), value)
    }

    /// Stops the first thread that has this name; returns when it stands still.
    pub fn freeze(&self, name: &str) -> Result<()> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.pid))
            .map_err(|error| format!("threads of {}: {error}", self.pid))?;
        let mut threads: Vec<u32> = tasks
            .flatten()
            .filter(|task| {
                let comm = fs::read_to_string(task.path().join("comm"));
                comm.is_ok_and(|comm| comm.trim_end() == name)
            })
            .filter_map(|task| task.file_name().to_str()?.parse().ok())
            .collect();
        threads.sort_unstable();
        let thread = threads
            .first()
            .ok_or_else(|| format!("no thread {name} in {}", self.pid))?;
        self.set("frozen/cgroup.threads", &thread.to_string())?;
        self.set("frozen/cgroup.freeze", "1")?;
        let stands = wait_until(Duration::from_secs(10), || {
            let events = fs::read_to_string(self.frozen().join("cgroup.events"));
            events.is_ok_and(|text| text.lines().any(|line| line == "frozen 1"))
        });
        stands
            .then_some(())
            .ok_or_else(|| format!("thread {name} does not freeze"))
    }

    /// Lets it go on.
    pub fn thaw(&self) -> Result<()> {
        self.set("frozen/cgroup.freeze", "0")
    }
}

fn write(path: &Path, value: &str) -> Result<()> {
    fs::write(path, value).map_err(|error| format!("{}: {error}", path.display()))
}

impl Drop for Freezer {
    fn drop(&mut self) {
        // The process may have ended, upon which it is in no group.
        let _ended = self.thaw();
        let _ended = write(&self.root.join("cgroup.procs"), &self.pid.to_string());
        wait_until(Duration::from_secs(5), || {
            let _busy = fs::remove_dir(self.frozen());
            fs::remove_dir(&self.group).is_ok()
        });
    }
}

#[cfg(test)]
mod tests {
    use std::{
        process::{Command, Stdio},
        time::Instant,
    };

    use super::*;
    use crate::{or_skip, require_root, sys};

    #[test]
    fn a_thread_stands_still_until_it_is_thawed() {
        require_root!();
        let mut counting = Command::new("sh");
        counting.args(["-c", "while echo; do :; done"]);
        counting.stdout(Stdio::null());
        let mut counting = sys::die_with_parent(&mut counting).spawn().unwrap();
        let tried = freeze_and_thaw(counting.id());
        counting.kill().unwrap();
        counting.wait().unwrap();
        or_skip!(tried);
    }

    fn freeze_and_thaw(pid: u32) -> Result<()> {
        let used = || {
            let stat = fs::read_to_string(format!("/proc/{pid}/schedstat")).unwrap();
            stat.split(' ').next().unwrap().parse::<u64>().unwrap()
        };
        let freezer = Freezer::of(pid)?;
        freezer.freeze("sh").unwrap();
        let (before, since) = (used(), Instant::now());
        while since.elapsed() < Duration::from_millis(200) {
            assert_eq!(used(), before);
        }
        freezer.thaw().unwrap();
        assert!(wait_until(Duration::from_secs(10), || used() > before));
        assert!(freezer.freeze("no such thread").is_err());
        let group = freezer.group.clone();
        drop(freezer);
        assert!(!group.exists());
        Ok(())
    }
}
