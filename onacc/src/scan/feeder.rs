//! Reads files for streams where the kernel would have to wait for a disk, or for
//! the server of a network filesystem.
//!
//! Half of the threads never read what may have to wait for a server: that a thread
//! hangs in such a read, for ever maybe, is nothing to the files of other filesystems.
//! Must not: keep more than one chunk for each connection. Tested by `tests/`.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;

use super::Work;
use crate::kernel::wake::Mailbox;
use crate::kernel::{SyscallError, process};

/// Threads that read.
const READERS: usize = 4;
/// Of them, those that may read at a time what may have to wait for a server.
pub const SLOW_READS: usize = READERS / 2;
/// Bytes that are read at a time.
const CHUNK: usize = 64 * 1024;

/// What to read.
#[derive(Debug)]
pub struct Request {
    /// The session that waits for it.
    pub line: u64,
    /// The job.
    pub token: u64,
    /// The file.
    pub file: OwnedFd,
    /// From where on.
    pub offset: u64,
    /// The read may have to wait for a server.
    pub slow: bool,
}

/// What was read.
#[derive(Debug)]
pub struct Chunk {
    /// As in the request.
    pub line: u64,
    /// As in the request.
    pub token: u64,
    /// Empty at the end of the file.
    pub bytes: Result<Vec<u8>, Errno>,
}

/// How to ask them. They end when it is dropped.
#[derive(Debug)]
pub struct Feeders(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    waiting: Mutex<Waiting>,
    some: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    requests: VecDeque<Request>,
    /// Threads that read what may have to wait for a server.
    slow: usize,
    ended: bool,
}

impl Waiting {
    fn take(&mut self) -> Option<Request> {
        let may_go = |request: &Request| !request.slow || self.slow < SLOW_READS;
        let at = self.requests.iter().position(may_go)?;
        let request = self.requests.remove(at)?;
        self.slow += usize::from(request.slow);
        Some(request)
    }
}

impl Drop for Feeders {
    fn drop(&mut self) {
        self.0.lock().ended = true;
        self.0.some.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Feeders {
    /// Starts the threads. They are never joined: a read may keep them.
    ///
    /// # Errors
    /// The system has no more threads.
    pub fn start(answers: &Mailbox<Work>) -> Result<Self, SyscallError> {
        let shared = Arc::new(Shared {
            waiting: Mutex::default(),
            some: Condvar::new(),
        });
        for _ in 0..READERS {
            let (shared, answers) = (Arc::clone(&shared), answers.clone());
            process::spawn("onacc-feeder", move || {
                while let Some(request) = next(&shared) {
                    answers.send(Work::Chunk(read(&request)));
                    if request.slow {
                        shared.lock().slow -= 1;
                        shared.some.notify_one();
                    }
                }
            })?;
        }
        Ok(Self(shared))
    }

    /// Has it read.
    pub fn read(&self, request: Request) {
        self.0.lock().requests.push_back(request);
        self.0.some.notify_one();
    }
}

fn next(shared: &Shared) -> Option<Request> {
    let mut waiting = shared.lock();
    loop {
        if waiting.ended {
            return None;
        }
        if let Some(request) = waiting.take() {
            return Some(request);
        }
        waiting = shared
            .some
            .wait(waiting)
            .unwrap_or_else(PoisonError::into_inner);
    }
}

fn read(request: &Request) -> Chunk {
    let mut bytes = vec![0; CHUNK];
    let offset = libc::off_t::try_from(request.offset).unwrap_or(libc::off_t::MAX);
    let got = loop {
        match nix::sys::uio::pread(&request.file, &mut bytes, offset) {
            Err(Errno::EINTR) => {}
            got => break got,
        }
    };
    Chunk {
        line: request.line,
        token: request.token,
        bytes: got.map(|got| {
            bytes.truncate(got);
            bytes
        }),
    }
}
