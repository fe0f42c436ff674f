//! Who is clamd: its process, its threads, and the processes it starts.
//!
//! Their opens are let through whatever the settings exclude: an open of
//! clamd's, or of a VirusEvent script that clamd waits for, must never wait for
//! clamd. Must not: trust an id for longer than the session with that clamd
//! lasts. Tested by `tests/`.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::config::servers::MOST_SERVERS;
use crate::kernel::bpf::Controls;
use crate::kernel::procfs::Proc;

/// For how long a thread that is no descendant of clamd is not looked at again.
/// Its id could pass to one that is; that one would then wait for a scan, once.
const FORGET_AFTER: Duration = Duration::from_secs(2);
/// Processes between an opener and clamd that are looked at.
const MAX_DEPTH: usize = 24;
/// Threads remembered as no descendants.
const MAX_KNOWN: usize = 4096;

/// The process ids of the clamds on this host, learned from themselves, shared
/// between the threads.
#[derive(Debug)]
pub struct ScannerIdentity {
    /// By server; 0: not known, or on another host.
    pids: [AtomicI32; MOST_SERVERS],
    /// Changes whenever one of them does.
    epoch: AtomicU32,
    proc: Proc,
    /// The eBPF programs drop clamd's opens, too.
    controls: Option<Controls>,
}

impl ScannerIdentity {
    /// Nobody is known yet.
    pub fn new(proc: Proc, controls: Option<Controls>) -> Self {
        Self {
            pids: [const { AtomicI32::new(0) }; MOST_SERVERS],
            epoch: AtomicU32::new(0),
            proc,
            controls,
        }
    }

    /// This process answers for that server.
    pub fn learn(&self, server: usize, pid: i32) {
        if let Some(known) = self.pids.get(server) {
            let old = known.swap(pid, Ordering::AcqRel);
            if old != pid {
                self.epoch.fetch_add(1, Ordering::AcqRel);
                self.tell_filter(old, pid);
            }
        }
    }

    /// The session is over: the id may soon be somebody else's.
    pub fn forget(&self, server: usize) {
        self.learn(server, 0);
    }

    fn tell_filter(&self, old: i32, new: i32) {
        let Some(controls) = &self.controls else {
            return;
        };
        let known = |pid: i32| u32::try_from(pid).ok().filter(|pid| *pid != 0);
        let gone = known(old)
            .filter(|_| !self.is_one(old))
            .map_or(Ok(()), |old| controls.no_longer_exempt(old));
        let told = known(new).map_or(Ok(()), |new| controls.exempt(new));
        if let Err(error) = gone.and(told) {
            tracing::debug!("onacc: eBPF map of exempt processes: {error}");
        }
    }

    fn is_one(&self, pid: i32) -> bool {
        pid != 0
            && self
                .pids
                .iter()
                .any(|known| known.load(Ordering::Acquire) == pid)
    }

    fn knows_nobody(&self) -> bool {
        self.pids
            .iter()
            .all(|known| known.load(Ordering::Acquire) == 0)
    }

    fn has_thread(&self, tid: i32) -> bool {
        self.pids
            .iter()
            .map(|known| known.load(Ordering::Acquire))
            .filter(|pid| *pid != 0)
            .any(|pid| self.proc.is_thread_of(tid, pid))
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
    /// Of the identity when they were looked at.
    epoch: u32,
}

impl Strangers {
    /// Whether the opener is clamd or was started by it. Costs one `faccessat`
    /// for a known thread, a read of `/proc/<tid>/stat` for each process on the
    /// way up to a known one otherwise.
    pub fn is_scanner(&mut self, identity: &ScannerIdentity, tid: i32, now: Instant) -> bool {
        let epoch = identity.epoch.load(Ordering::Acquire);
        if tid == 0 || identity.knows_nobody() {
            return false;
        }
        if epoch != self.epoch || self.known.len() > MAX_KNOWN {
            self.known.clear();
            self.epoch = epoch;
        }
        if self.is_known(tid, now) {
            return false;
        }
        if identity.is_one(tid) || identity.has_thread(tid) {
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
            if identity.is_one(stat.parent) {
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
