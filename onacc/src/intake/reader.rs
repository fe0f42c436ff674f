//! The loop of the reader thread.
//!
//! What one event costs, cheapest test first: own thread (no system call),
//! excluded uid (`fstatat` on /proc), file (`statx`), place (`readlink`), clamd
//! (see `scanner`). Most events end with the one write that answers them.

use std::collections::HashSet;
use std::hash::{BuildHasher as _, RandomState};
use std::os::fd::AsFd as _;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::poll::PollFlags;

use super::scanner::{ScannerIdentity, Strangers};
use crate::coverage::keeper::{CleanFile, KeeperMessage};
use crate::kernel::fanotify::{Answer, FdBudget, Group, PendingEvent, ReadBuffer, ReadError};
use crate::kernel::file::{self, FileStat};
use crate::kernel::process;
use crate::kernel::procfs::Proc;
use crate::kernel::wake::{Mailbox, sleep};
use crate::observe::counters::Counters;
use crate::observe::heartbeat::Heartbeat;
use crate::policy::Verdict as Known;
use crate::policy::{Policy, Unscanned, VerdictCache, lock};
use crate::scan::{ScanJob, Urgency, Work};

/// Directories that the keeper is asked about within a second.
const MAX_ASKED: usize = 4096;

/// What the reader is told.
#[derive(Debug)]
pub enum Control {
    /// Decide by this from now on.
    Policy(Arc<Policy>),
    /// End.
    Stop,
}

/// Whom the reader speaks with.
pub struct ReaderLinks {
    /// Where events come from.
    pub group: Arc<Group>,
    /// How many may be in flight.
    pub budget: Arc<FdBudget>,
    /// Where the reader is told things; its waker is also the budget's.
    pub control: Mailbox<Control>,
    /// Where work goes.
    pub jobs: Mailbox<Work>,
    /// Where clean files and directories out of scope go.
    pub keeper: Mailbox<KeeperMessage>,
    /// Verdicts that still hold.
    pub verdicts: Arc<Mutex<VerdictCache>>,
    /// Who is clamd.
    pub scanner: Arc<ScannerIdentity>,
    /// Counts.
    pub counters: Arc<Counters>,
    /// Shows that the loop goes round.
    pub heartbeat: Heartbeat,
    /// What a dropped event is answered with.
    pub on_failure: Answer,
}

/// State of the loop.
pub struct Reader {
    links: ReaderLinks,
    policy: Arc<Policy>,
    proc: Proc,
    strangers: Strangers,
    path: Vec<u8>,
    /// Directories, by hash, that the keeper was asked to ignore since then. A
    /// collision costs a second's worth of events, no more.
    asked: HashSet<u64>,
    asked_since: Instant,
    hasher: RandomState,
}

impl Reader {
    /// A reader that has not begun.
    pub fn new(links: ReaderLinks, policy: Arc<Policy>, proc: Proc) -> Self {
        Self {
            links,
            policy,
            proc,
            strangers: Strangers::default(),
            path: Vec::with_capacity(4097),
            asked: HashSet::new(),
            asked_since: Instant::now(),
            hasher: RandomState::new(),
        }
    }

    /// Runs until told to stop.
    ///
    /// # Errors
    /// The group cannot be read any more: the agent must end, so that the
    /// kernel lets the openers go.
    pub fn run(mut self) -> Result<(), ReadError> {
        let mut buffer = ReadBuffer::new();
        let mut told = Vec::new();
        loop {
            self.links.heartbeat.beat();
            self.links.control.drain(&mut told);
            for control in told.drain(..) {
                match control {
                    Control::Policy(policy) => self.policy = policy,
                    Control::Stop => return Ok(()),
                }
            }
            if self.read_batch(&mut buffer)? == 0 {
                self.rest();
            }
        }
    }

    fn read_batch(&mut self, buffer: &mut ReadBuffer) -> Result<usize, ReadError> {
        let group = Arc::clone(&self.links.group);
        let budget = Arc::clone(&self.links.budget);
        let source = (&budget, self.links.on_failure);
        group.read(buffer, source, |event| self.handle(event))
    }

    fn handle(&mut self, mut event: PendingEvent) {
        self.links.counters.events.up();
        let written = event.is_close_after_write();
        match self.judge(&event) {
            Verdict::Unscanned(reason) => {
                event.answer(Answer::Allow);
                self.count(reason);
                if reason == Unscanned::OutOfScope {
                    self.learn_directory();
                }
            }
            Verdict::Known(stat, Known::Clean) => {
                event.answer(Answer::Allow);
                self.links.counters.known_clean.up();
                self.renew_mark(event, stat);
            }
            Verdict::Known(stat, Known::Infected(signature)) => {
                event.answer(Answer::Deny);
                self.links.counters.known_infected.up();
                self.links.jobs.send(Work::KnownInfected {
                    path: self.path.clone(),
                    links: stat.links,
                    signature,
                });
            }
            Verdict::Scan(stat) if written => self.prescan(event, stat),
            Verdict::Scan(stat) => {
                self.links.counters.scans.up();
                self.hand_over(event, stat, Urgency::Opener);
            }
            // Dropping it answers by the fail policy.
            Verdict::Unknowable => self.links.counters.scan_errors.up(),
            Verdict::Overflow => self.links.counters.queue_overflows.up(),
        }
    }

    fn hand_over(&mut self, event: PendingEvent, stat: FileStat, urgency: Urgency) {
        self.links.jobs.send(Work::Scan(ScanJob {
            event,
            path: self.path.clone(),
            stat,
            markable: self.policy.may_mark(&stat),
            stamps_tell: self.policy.stamps_tell(&stat),
            arrived: Instant::now(),
            urgency,
            joined: Vec::new(),
        }));
    }

    /// A file was written and closed: scanned before anyone asks, if its verdict
    /// can be kept and fds are plenty.
    fn prescan(&mut self, event: PendingEvent, stat: FileStat) {
        self.links.counters.closed_after_write.up();
        if self.policy.stamps_tell(&stat) && self.links.budget.is_ample() {
            self.hand_over(event, stat, Urgency::Prescan);
        } else {
            self.links.counters.prescans_skipped.up();
        }
    }

    /// The kernel has dropped the mark of a file that is still the same.
    fn renew_mark(&mut self, event: PendingEvent, stat: FileStat) {
        if self.policy.may_mark(&stat)
            && let Some(file) = event.into_file()
        {
            let generation = lock(&self.links.verdicts).generation();
            self.links.keeper.send(KeeperMessage::Clean(CleanFile {
                file,
                stat,
                generation,
            }));
        }
    }

    /// Has the kernel keep the opens of this file's directory to itself; asks
    /// once a second for each directory at most.
    fn learn_directory(&mut self) {
        let Some(slash) = self.path.iter().rposition(|byte| *byte == b'/') else {
            return;
        };
        let directory = &self.path[..slash.max(1)];
        let now = Instant::now();
        if now.duration_since(self.asked_since) > Duration::from_secs(1) {
            self.asked.clear();
            self.asked_since = now;
        }
        let hash = self.hasher.hash_one(directory);
        if self.asked.len() < MAX_ASKED && self.asked.insert(hash) {
            self.links
                .keeper
                .send(KeeperMessage::Outside(directory.to_vec()));
        }
    }

    fn judge(&mut self, event: &PendingEvent) -> Verdict {
        let Some(opened) = event.file() else {
            return Verdict::Overflow;
        };
        let tid = event.tid();
        if process::is_own_thread(tid) {
            return Verdict::Unscanned(Unscanned::OwnThread);
        }
        if !self.policy.excluded_uids.is_empty()
            && let Some(reason) = self.policy.by_opener(self.proc.effective_uid(tid))
        {
            return Verdict::Unscanned(reason);
        }
        let Ok(stat) = file::stat(opened.as_fd()) else {
            return Verdict::Unknowable;
        };
        if let Some(reason) = self.policy.by_file(&stat) {
            return Verdict::Unscanned(reason);
        }
        let path = file::path_of(opened.as_fd(), &mut self.path).map(|()| &self.path[..]);
        if let Some(reason) = self.policy.by_place(&stat, path) {
            return Verdict::Unscanned(reason);
        }
        if path.is_none() {
            self.path.clear();
        }
        if !event.is_close_after_write() {
            let known = lock(&self.links.verdicts).get(&stat).cloned();
            if let Some(known) = known {
                return Verdict::Known(stat, known);
            }
        }
        let identity = &self.links.scanner;
        if self.strangers.is_scanner(identity, tid, Instant::now()) {
            return Verdict::Unscanned(Unscanned::Scanner);
        }
        Verdict::Scan(stat)
    }

    fn count(&self, reason: Unscanned) {
        let counters = &self.links.counters;
        match reason {
            Unscanned::OwnThread => counters.own_thread.up(),
            Unscanned::Scanner => counters.scanner.up(),
            Unscanned::ExcludedUid => counters.excluded_uid.up(),
            Unscanned::NotRegular => counters.not_regular.up(),
            Unscanned::OutOfScope => counters.out_of_scope.up(),
            Unscanned::TooLarge => counters.too_large.up(),
            Unscanned::Empty => counters.empty.up(),
        }
    }

    fn rest(&mut self) {
        let full = self.links.budget.room() == 0;
        if full {
            self.links.counters.budget_waits.up();
            if self.links.budget.begin_wait() {
                return;
            }
        }
        if !self.links.control.begin_sleep() {
            return;
        }
        self.links.heartbeat.rest();
        let waker = self.links.control.waker();
        let wake = (waker.as_fd(), PollFlags::POLLIN);
        let slept = if full {
            sleep([wake], None).map(|[notified]| notified)
        } else {
            sleep([wake, (self.links.group.as_fd(), PollFlags::POLLIN)], None)
                .map(|[notified, _]| notified)
        };
        // A failed poll(2) (no memory) is tried again at once: openers wait.
        self.links.control.end_sleep(slept.unwrap_or(true));
    }
}

enum Verdict {
    Unscanned(Unscanned),
    /// The verdict on this very version is known.
    Known(FileStat, Known),
    Scan(FileStat),
    /// The file's identity cannot be asked.
    Unknowable,
    /// The kernel's queue overflowed.
    Overflow,
}
