//! Who is clamd: its process, its threads, and the processes it starts; and the
//! proxies between it and the agent.
//!
//! Their opens are let through whatever the settings exclude: an open of
//! clamd's, or of a VirusEvent script that clamd waits for, must never wait for
//! clamd. Must not: trust an id for longer than the session with that clamd
//! lasts. Tested by `tests/`.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::kernel::bpf::Controls;
use crate::kernel::procfs::Proc;

/// For how long a thread that is no descendant of clamd is not looked at again.
/// Its id could pass to one that is; that one would then wait for a scan, once.
const FORGET_AFTER: Duration = Duration::from_secs(2);
/// Processes between an opener and clamd that are looked at.
const MAX_DEPTH: usize = 24;
/// Processes that serve sessions: as many as eBPF's map holds.
const PLACES: usize = 64;
/// Threads remembered as no descendants.
const MAX_KNOWN: usize = 4096;

/// The process ids of the clamds on this host and of the proxies before them,
/// shared between the threads.
#[derive(Debug)]
pub struct ScannerIdentity {
    /// Servers: what they start is let through, too.
    servers: Pids,
    /// What passes their bytes on: only they themselves.
    proxies: Pids,
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
            servers: Pids::default(),
            proxies: Pids::default(),
            epoch: AtomicU32::new(0),
            proc,
            controls,
        }
    }

    /// These processes serve the sessions that there are, or pass their bytes on,
    /// and no others do. By the service alone. Whether one of them is new.
    pub fn set(&self, servers: &[i32], proxies: &[i32]) -> bool {
        let served = self.servers.set(servers);
        let passed = self.proxies.set(proxies);
        if served.is_same() && passed.is_same() {
            return false;
        }
        self.epoch.fetch_add(1, Ordering::AcqRel);
        // Without prevention nobody waits for an answer: a proxy needs no exemption.
        self.tell_filter(&served);
        !served.new.is_empty() || !passed.new.is_empty()
    }

    fn tell_filter(&self, change: &Change) {
        let Some(controls) = &self.controls else {
            return;
        };
        let ids = |pids: &[i32]| -> Vec<u32> {
            let known = pids.iter().filter_map(|pid| u32::try_from(*pid).ok());
            known.collect()
        };
        let gone = ids(&change.gone)
            .into_iter()
            .map(|pid| controls.no_longer_exempt(pid));
        let new = ids(&change.new).into_iter().map(|pid| controls.exempt(pid));
        for failed in gone.chain(new).filter_map(Result::err) {
            tracing::debug!("onacc: eBPF map of exempt processes: {failed}");
        }
    }

    fn knows_nobody(&self) -> bool {
        self.servers
            .all()
            .chain(self.proxies.all())
            .next()
            .is_none()
    }

    fn is_server(&self, pid: i32) -> bool {
        self.servers.all().any(|known| known == pid)
    }

    fn has_thread(&self, tid: i32) -> bool {
        let mut all = self.servers.all().chain(self.proxies.all());
        all.any(|pid| pid == tid || self.proc.is_thread_of(tid, pid))
    }

    /// Whether a thread runs a program that is called clamd, belongs to root and
    /// can be written by root alone. Asked when an open would be denied because
    /// no clamd answers (it may be one that starts), and once for each session.
    pub fn looks_like_clamd(&self, tid: i32) -> bool {
        self.proc.is_clamd(tid)
    }
}

/// Process ids that one thread enters and others look for.
#[derive(Debug)]
struct Pids {
    /// 0: a free place.
    places: [AtomicI32; PLACES],
    /// Places from this one on were never used.
    used: AtomicUsize,
}

/// What became of a list of process ids.
struct Change {
    new: Vec<i32>,
    gone: Vec<i32>,
}

impl Change {
    fn is_same(&self) -> bool {
        self.new.is_empty() && self.gone.is_empty()
    }
}

impl Default for Pids {
    fn default() -> Self {
        Self {
            places: [const { AtomicI32::new(0) }; PLACES],
            used: AtomicUsize::new(0),
        }
    }
}

impl Pids {
    /// These and no others, from now on. Whoever stays is there all the time.
    fn set(&self, wanted: &[i32]) -> Change {
        let before: Vec<i32> = self.all().collect();
        let mut new: Vec<i32> = Vec::new();
        for pid in wanted {
            if *pid > 1 && !before.contains(pid) && !new.contains(pid) {
                new.push(*pid);
            }
        }
        let gone: Vec<i32> = before
            .into_iter()
            .filter(|pid| !wanted.contains(pid))
            .collect();
        new.retain(|pid| self.enter(*pid));
        for place in &self.places {
            if gone.contains(&place.load(Ordering::Acquire)) {
                place.store(0, Ordering::Release);
            }
        }
        Change { new, gone }
    }

    fn enter(&self, pid: i32) -> bool {
        let free = |place: &AtomicI32| place.load(Ordering::Acquire) == 0;
        let Some(place) = self.places.iter().position(free) else {
            tracing::debug!("onacc: more than {PLACES} processes serve sessions");
            return false;
        };
        self.places[place].store(pid, Ordering::Release);
        self.used.fetch_max(place + 1, Ordering::AcqRel);
        true
    }

    fn all(&self) -> impl Iterator<Item = i32> {
        let used = self.used.load(Ordering::Acquire).min(PLACES);
        self.places[..used]
            .iter()
            .map(|known| known.load(Ordering::Acquire))
            .filter(|pid| *pid != 0)
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
        if identity.has_thread(tid) {
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
            if identity.is_server(stat.parent) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_stays_is_there_all_the_time_and_places_are_used_again() {
        let pids = Pids::default();
        let all = || {
            let mut all: Vec<i32> = pids.all().collect();
            all.sort_unstable();
            all
        };
        assert!(pids.set(&[]).is_same());
        assert_eq!(pids.set(&[5, 7, 5, 0, 1, -4]).new, [5, 7]);
        assert_eq!(all(), [5, 7]);
        let change = pids.set(&[7, 9]);
        assert_eq!((change.new, change.gone), (vec![9], vec![5]));
        for round in 0..10 * PLACES {
            let other = 100 + i32::try_from(round).unwrap();
            pids.set(&[7, other]);
            assert_eq!(all(), [7, other]);
        }
        let many: Vec<i32> = (1000..).take(PLACES + 5).collect();
        assert_eq!(pids.set(&many).new.len(), PLACES - 2);
    }

    #[test]
    fn what_a_server_starts_is_let_through_and_what_a_proxy_starts_is_not() {
        let own = nix::unistd::getpid().as_raw();
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let started = i32::try_from(child.id()).unwrap();
        let identity = ScannerIdentity::new(Proc::open().unwrap(), None);
        let mut strangers = Strangers::default();
        let mut knows = |tid| strangers.is_scanner(&identity, tid, Instant::now());
        let thread = nix::unistd::gettid().as_raw();
        assert!(!knows(own) && !knows(started));
        assert!(identity.set(&[], &[own]));
        assert!(knows(own) && knows(thread) && !knows(started));
        assert!(identity.set(&[own], &[]));
        assert!(knows(own) && knows(thread) && knows(started));
        assert!(!identity.set(&[own], &[]) && !identity.set(&[], &[]));
        assert!(!knows(own) && !knows(started));
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
