//! The loop of the reader thread.
//!
//! What one event costs, cheapest test first: own thread (no system call),
//! excluded uid (`fstatat` on /proc), file (`statx`), place (`readlink`), clamd
//! (see `scanner`). Most events end with the one write that answers them.

use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::Instant;

use nix::poll::PollFlags;

use super::scanner::{ScannerIdentity, Strangers};
use crate::kernel::fanotify::{Answer, FdBudget, Group, PendingEvent, ReadBuffer, ReadError};
use crate::kernel::file;
use crate::kernel::process;
use crate::kernel::procfs::Proc;
use crate::kernel::wake::{Mailbox, sleep};
use crate::observe::counters::Counters;
use crate::observe::heartbeat::Heartbeat;
use crate::policy::{Policy, Unscanned};
use crate::scan::{ScanJob, Urgency};

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
    /// Where jobs go.
    pub jobs: Mailbox<ScanJob>,
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
        match self.judge(&event) {
            Verdict::Unscanned(reason) => {
                event.answer(Answer::Allow);
                self.count(reason);
            }
            Verdict::Scan(stat) => {
                self.links.counters.scans.up();
                let markable = self.policy.may_mark(&stat);
                self.links.jobs.send(ScanJob {
                    event,
                    path: self.path.clone(),
                    stat,
                    markable,
                    arrived: Instant::now(),
                    urgency: Urgency::Opener,
                });
            }
            // Dropping it answers by the fail policy.
            Verdict::Unknowable => self.links.counters.scan_errors.up(),
            Verdict::Overflow => self.links.counters.queue_overflows.up(),
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
    Scan(file::FileStat),
    /// The file's identity cannot be asked.
    Unknowable,
    /// The kernel's queue overflowed.
    Overflow,
}
