//! A thread that answers the opens of a filesystem, and its end: what the floor
//! and the minimal agent have in common.
//!
//! Owns: the thread, and what both need of an event and an answer. Must not: mark
//! anything; whoever starts one marks a filesystem of the benchmark's own. If the
//! work fails, its group closes, which lets all openers go. Tested by its users.

use std::{
    ffi::CString,
    fs::File,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
};

use nix::unistd::{Pid, gettid, write};

use crate::{bench::sys::ContentGroup, shell::Result};

/// The thread. Ended, and waited for, on drop.
pub struct Answerer {
    name: &'static str,
    stop: Arc<AtomicBool>,
    /// A file whose opening wakes it.
    file: PathBuf,
    thread: Option<JoinHandle<Result<u64>>>,
    tid: Pid,
}

impl Answerer {
    /// Starts `work`, which answers the opens on the filesystem of `file` until it
    /// is told to stop, and returns how many.
    pub fn start(
        name: &'static str,
        file: &Path,
        work: impl FnOnce(&AtomicBool) -> Result<u64> + Send + 'static,
    ) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let (say, heard) = mpsc::channel();
        let thread = thread::spawn(move || {
            // The caller waits for it.
            let _ = say.send(gettid());
            work(&told)
        });
        let tid = heard.recv().map_err(|error| format!("{name}: {error}"))?;
        Ok(Self {
            name,
            stop,
            file: file.to_path_buf(),
            thread: Some(thread),
            tid,
        })
    }

    /// The thread.
    pub fn tid(&self) -> Pid {
        self.tid
    }

    /// Ends it; returns how many opens it has answered.
    pub fn end(mut self) -> Result<u64> {
        self.finish()
            .unwrap_or_else(|| Err(format!("{} has ended before", self.name)))
    }

    fn finish(&mut self) -> Option<Result<u64>> {
        let thread = self.thread.take()?;
        self.stop.store(true, Ordering::SeqCst);
        // The loop sees the flag after it has answered this open. A loop that
        // has ended holds nobody up.
        let opened = File::open(&self.file);
        let answered = thread.join();
        let name = self.name;
        Some(match (opened, answered) {
            (Ok(_), Ok(answered)) => answered,
            (Err(error), _) => Err(format!("{name} refused an open: {error}")),
            (_, Err(_)) => Err(format!("{name}: its thread panicked")),
        })
    }
}

impl Drop for Answerer {
    fn drop(&mut self) {
        let _ = self.finish();
    }
}

/// A path for a system call.
pub fn c_path(path: &Path) -> Result<CString> {
    CString::new(path.as_os_str().as_bytes())
        .map_err(|error| format!("{}: {error}", path.display()))
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

/// Answers the open of a file: `FAN_ALLOW` or `FAN_DENY`.
pub fn answer(group: &ContentGroup, file: &OwnedFd, answer: u32) -> Result<()> {
    let mut response = [0; 8];
    response[..4].copy_from_slice(&file.as_raw_fd().to_ne_bytes());
    response[4..].copy_from_slice(&answer.to_ne_bytes());
    write(group, &response)
        .map(drop)
        .map_err(|error| format!("answering: {error}"))
}
