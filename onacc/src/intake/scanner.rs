//! Who is clamd: its process, its threads, and the processes it starts.
//!
//! Their opens are let through whatever the settings exclude: an open of
//! clamd's, or of a VirusEvent script that clamd waits for, must never wait for
//! clamd. Must not: trust an id for longer than the session with that clamd
//! lasts. Tested by `tests/`.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::{Duration, Instant};

use crate::kernel::procfs::Proc;

/// For how long a thread that is no descendant of clamd is not looked at again.
/// Its id could pass to one that is; that one would then wait for a scan, once.
const FORGET_AFTER: Duration = Duration::from_secs(2);
/// Processes between an opener and clamd that are looked at.
const MAX_DEPTH: usize = 24;
/// Threads remembered as no descendants.
const MAX_KNOWN: usize = 4096;

/// clamd's process id, learned from clamd itself, shared between the threads.
#[derive(Debug)]
pub struct ScannerIdentity {
    pid: AtomicI32,
    proc: Proc,
}

impl ScannerIdentity {
    /// Nobody is known yet.
    pub fn new(proc: Proc) -> Self {
        Self {
            pid: AtomicI32::new(0),
            proc,
        }
    }

    /// This process answers on clamd's socket.
    pub fn learn(&self, pid: i32) {
        self.pid.store(pid, Ordering::Release);
    }

    /// The session is over: the id may soon be somebody else's.
    pub fn forget(&self) {
        self.pid.store(0, Ordering::Release);
    }

    /// Whether an opener is a clamd that is starting up: its executable is
    /// called clamd, belongs to root and can be written by root alone. Asked
    /// only when an open would be denied because no clamd answers.
    pub fn looks_like_clamd(&self, tid: i32) -> bool {
        self.proc
            .executable(tid)
            .is_some_and(|exe| exe.name == "clamd" && exe.owner == 0 && exe.mode & 0o022 == 0)
    }
}

/// The reader's memory of who is no descendant of clamd.
#[derive(Debug, Default)]
pub struct Strangers {
    known: HashMap<i32, Instant>,
    clamd: i32,
}

impl Strangers {
    /// Whether the opener is clamd or was started by it. Costs one `faccessat`
    /// for a known thread, a read of `/proc/<tid>/stat` for each process on the
    /// way up to a known one otherwise.
    pub fn is_scanner(&mut self, identity: &ScannerIdentity, tid: i32, now: Instant) -> bool {
        let clamd = identity.pid.load(Ordering::Acquire);
        if clamd == 0 || tid == 0 {
            return false;
        }
        if clamd != self.clamd || self.known.len() > MAX_KNOWN {
            self.known.clear();
            self.clamd = clamd;
        }
        if self.is_known(tid, now) {
            return false;
        }
        if tid == clamd || identity.proc.is_thread_of(tid, clamd) {
            return true;
        }
        let mut way = [0; MAX_DEPTH];
        let mut steps = 0;
        let mut next = tid;
        while steps < MAX_DEPTH && next > 1 && !self.is_known(next, now) {
            way[steps] = next;
            steps += 1;
            let Some(stat) = identity.proc.thread_stat(next) else {
                break;
            };
            if stat.parent == clamd {
                return true;
            }
            next = stat.parent;
        }
        for stranger in &way[..steps] {
            self.known.insert(*stranger, now);
        }
        false
    }

    fn is_known(&self, tid: i32, now: Instant) -> bool {
        self.known
            .get(&tid)
            .is_some_and(|since| now.saturating_duration_since(*since) < FORGET_AFTER)
    }
}
