//! The floor: the least that answering a permission event can cost. A loop that
//! reads an event and answers allow, and nothing else.
//!
//! Owns: the loop and its end. Must not: mark anything but a filesystem of the
//! benchmark's own. If the loop fails, its group closes, which lets all openers
//! go. Tested below.

use std::{
    ffi::CString,
    fs::File,
    os::{fd::AsRawFd as _, unix::ffi::OsStrExt as _},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
};

use nix::unistd::{Pid, gettid, read, write};

use crate::{
    bench::sys::{ContentGroup, own},
    shell::Result,
};

/// The loop, in a thread of its own.
pub struct Floor {
    stop: Arc<AtomicBool>,
    /// A file whose opening wakes the loop.
    file: PathBuf,
    thread: Option<JoinHandle<Result<u64>>>,
    tid: Pid,
}

impl Floor {
    /// Starts to answer all opens on the filesystem that this file is on.
    pub fn start(file: &Path) -> Result<Self> {
        Self::start_ignoring(file, &[], &[])
    }

    /// The same, but for opens of these files, and in these directories, which
    /// the kernel keeps to itself.
    pub fn start_ignoring(file: &Path, files: &[&Path], directories: &[&Path]) -> Result<Self> {
        let fail = |error: &dyn std::fmt::Display| format!("the floor: {error}");
        let group = ContentGroup::new().map_err(|error| fail(&error))?;
        let stop = Arc::new(AtomicBool::new(false));
        let path = c_path(file)?;
        for path in files {
            let ignored = group.ignore_file(&c_path(path)?);
            ignored.map_err(|error| fail(&error))?;
        }
        for path in directories {
            let ignored = group.ignore_directory(&c_path(path)?);
            ignored.map_err(|error| fail(&error))?;
        }
        // Last, for from here on somebody must answer. The group goes with the
        // loop, and whoever waits is let go.
        group.mark_filesystem(&path).map_err(|error| fail(&error))?;
        let told = Arc::clone(&stop);
        let (say, heard) = mpsc::channel();
        let thread = thread::spawn(move || {
            // The caller waits for it.
            let _ = say.send(gettid());
            answer_all(&group, &told)
        });
        let tid = heard.recv().map_err(|error| fail(&error))?;
        Ok(Self {
            stop,
            file: file.to_path_buf(),
            thread: Some(thread),
            tid,
        })
    }

    /// The thread of the loop.
    pub fn tid(&self) -> Pid {
        self.tid
    }

    /// Ends it; returns how many events it has answered.
    pub fn end(mut self) -> Result<u64> {
        self.finish()
            .unwrap_or_else(|| Err("the floor has ended before".to_owned()))
    }

    fn finish(&mut self) -> Option<Result<u64>> {
        let thread = self.thread.take()?;
        self.stop.store(true, Ordering::SeqCst);
        // The loop sees the flag after it has answered this open. A loop that
        // has ended holds nobody up.
        let opened = File::open(&self.file);
        let answered = thread.join();
        Some(match (opened, answered) {
            (Ok(_), Ok(answered)) => answered,
            (Err(error), _) => Err(format!("the floor refused an open: {error}")),
            (_, Err(_)) => Err("the floor's thread panicked".to_owned()),
        })
    }
}

impl Drop for Floor {
    fn drop(&mut self) {
        let _ = self.finish();
    }
}

/// A path for a system call.
pub fn c_path(path: &Path) -> Result<CString> {
    CString::new(path.as_os_str().as_bytes())
        .map_err(|error| format!("{}: {error}", path.display()))
}

/// Reads and answers until told to stop.
fn answer_all(group: &ContentGroup, stop: &AtomicBool) -> Result<u64> {
    let mut buffer = [0; 4096];
    let mut answered = 0;
    while !stop.load(Ordering::SeqCst) {
        let length =
            read(group, &mut buffer).map_err(|error| format!("reading events: {error}"))?;
        let mut rest = &buffer[..length];
        while let Some(event) = Event::parse(rest) {
            let file = own(event.fd);
            let mut response = [0; 8];
            response[..4].copy_from_slice(&file.as_raw_fd().to_ne_bytes());
            response[4..].copy_from_slice(&libc::FAN_ALLOW.to_ne_bytes());
            write(group, &response).map_err(|error| format!("answering: {error}"))?;
            answered += 1;
            rest = &rest[event.length..];
        }
    }
    Ok(answered)
}

/// What such a loop needs of `struct fanotify_event_metadata`.
pub struct Event {
    /// Of the whole event.
    pub length: usize,
    /// The opened file.
    pub fd: i32,
}

impl Event {
    /// The first event in these bytes.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let length = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?);
        let length = usize::try_from(length).ok()?;
        let fd = i32::from_ne_bytes(bytes.get(16..20)?.try_into().ok()?);
        (length >= 24 && length <= bytes.len() && fd >= 0).then_some(Self { length, fd })
    }
}

#[cfg(test)]
mod tests {
    use onacc_tests::{ScratchFs, or_skip, require_root};

    use super::*;

    #[test]
    fn the_floor_answers_every_open_and_ends() {
        require_root!();
        let scratch = or_skip!(ScratchFs::tmpfs(1));
        let file = scratch.write("file", b"x");
        let floor = or_skip!(Floor::start(&file));
        for _ in 0..100 {
            File::open(&file).unwrap();
        }
        // Whether the last one, which wakes the loop, finds it reading or at its
        // end is a race.
        let answered = floor.end().unwrap();
        assert!((100..=101).contains(&answered), "{answered}");
        File::open(&file).unwrap();
    }
}
