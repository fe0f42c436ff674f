//! What a process holds: file descriptors, threads, memory, marks.
//!
//! Owns: reading /proc. Tested below.

use std::{fmt, fs};

/// One look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// Open file descriptors.
    pub fds: u64,
    /// Threads.
    pub threads: u64,
    /// Anonymous resident memory, KiB.
    pub memory: u64,
    /// Marks of all its fanotify groups, ignore marks among them.
    pub marks: u64,
}

impl Resources {
    /// Of this process, now.
    pub fn of(pid: u32) -> Result<Self, String> {
        let fail = |what: &str, error| format!("/proc/{pid}/{what}: {error}");
        let status = fs::read_to_string(format!("/proc/{pid}/status"))
            .map_err(|error| fail("status", error))?;
        let number = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let word = line.and_then(|line| line.split_whitespace().next());
            word.and_then(|word| word.parse().ok()).unwrap_or(0)
        };
        let mut fds = 0;
        let mut marks = 0;
        let list = fs::read_dir(format!("/proc/{pid}/fdinfo"));
        for entry in list.map_err(|error| fail("fdinfo", error))?.flatten() {
            fds += 1;
            // It may be closed meanwhile.
            let info = fs::read_to_string(entry.path()).unwrap_or_default();
            let lines = info.lines().filter(|line| {
                line.starts_with("fanotify ino:") || line.starts_with("fanotify sdev:")
            });
            marks += lines.count() as u64;
        }
        Ok(Self {
            fds,
            threads: number("Threads:"),
            memory: number("RssAnon:"),
            marks,
        })
    }

    /// What has grown since an earlier look, beyond what load explains: an fd for
    /// each opener, and so many KiB of memory for pages that an allocator keeps.
    pub fn grown_since(&self, before: &Self, openers: u64, kib: u64) -> Vec<String> {
        let mut grown = Vec::new();
        let mut check = |what: &str, before: u64, now: u64, leave: u64| {
            if now > before + leave {
                grown.push(format!("{what} grew from {before} to {now}"));
            }
        };
        check("open files", before.fds, self.fds, openers + 4);
        check("threads", before.threads, self.threads, 0);
        check("memory (KiB)", before.memory, self.memory, kib);
        // Files of the openers that come and go.
        check("marks", before.marks, self.marks, 200);
        grown
    }
}

impl fmt::Display for Resources {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            to,
            "{} fds, {} threads, {} KiB, {} marks",
            self.fds, self.threads, self.memory, self.marks
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_resources_are_counted() {
        let before = Resources::of(std::process::id()).unwrap();
        let files: Vec<_> = (0..100)
            .map(|_| fs::File::open("/proc/self/status").unwrap())
            .collect();
        let now = Resources::of(std::process::id()).unwrap();
        assert!(now.fds >= before.fds + 90 && now.threads >= 1 && now.memory > 50);
        assert!(!now.grown_since(&before, 8, 16_384).is_empty());
        assert!(before.grown_since(&before, 8, 16_384).is_empty());
        drop(files);
    }
}
