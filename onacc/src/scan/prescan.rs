//! Scans that nobody waits for: what was there before a mark was, what has been
//! written and closed.
//!
//! Has a budget of its own, so that openers never wait for it. Must not: open
//! anything that is no regular file, block on it, or hold an fd of a file while
//! it waits (its filesystem could not be unmounted). Tested by `tests/`.

use std::collections::VecDeque;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use nix::poll::PollFlags;

use super::{ScanJob, Urgency, Work};
use crate::coverage::filesystems::open_directory;
use crate::kernel::SyscallError;
use crate::kernel::fanotify::{FdBudget, PendingEvent};
use crate::kernel::file::{self, FileStat};
use crate::kernel::handle::FileHandle;
use crate::kernel::wake::{Mailbox, sleep};
use crate::observe::counters::Counters;
use crate::policy::{Policy, VerdictCache, lock, stamps};

/// How long a written file rests before it is scanned ahead: its stamps must be
/// old enough for the verdict to be kept (`stamps::is_young`).
const DELAY: Duration = Duration::from_millis(60);
/// How long one rests that was too young still: its filesystem counts in seconds.
const LONG_DELAY: Duration = Duration::from_millis(2200);
/// How long a prescan waits that found too many others waiting.
const AGAIN: Duration = Duration::from_millis(10);
/// Written files that wait; more are not scanned ahead.
const MOST_WAITING: usize = 65_536;

/// A file is not scanned ahead.
#[derive(Debug, thiserror::Error)]
pub enum PrescanRefused {
    /// Too many wait already; try again later.
    #[error("too many files wait to be scanned ahead")]
    Busy,
    /// The policy wants no scan of it: out of scope, too large, empty, no file.
    #[error("no scan of this file is wanted")]
    Unwanted,
    /// The file cannot be looked at.
    #[error(transparent)]
    Syscall(#[from] SyscallError),
}

/// Hands files over to be scanned.
#[derive(Clone, Debug)]
pub struct Prescan {
    jobs: Mailbox<Work>,
    budget: Arc<FdBudget>,
}

impl Prescan {
    /// Jobs go to `jobs`; `budget` bounds how many wait.
    pub fn new(jobs: Mailbox<Work>, budget: Arc<FdBudget>) -> Self {
        Self { jobs, budget }
    }

    /// Has a file scanned, if the policy wants that. `file` may be `O_PATH`; it
    /// is opened for reading only if it is a regular file, in scope, and so on.
    /// Must be called on a thread of the agent (its opens are let through).
    ///
    /// # Errors
    /// [`PrescanRefused`] says why not.
    pub fn scan(&self, policy: &Policy, file: &OwnedFd) -> Result<(), PrescanRefused> {
        let stat = file::stat(file.as_fd())?;
        if policy.by_file(&stat).is_some() {
            return Err(PrescanRefused::Unwanted);
        }
        let mut path = Vec::new();
        let placed = file::path_of(file.as_fd(), &mut path).map(|()| &path[..]);
        if policy.by_place(&stat, placed).is_some() {
            return Err(PrescanRefused::Unwanted);
        }
        let permit = self.budget.try_take().ok_or(PrescanRefused::Busy)?;
        let opened = file::reopen(file.as_fd())?;
        self.jobs.send(Work::Scan(ScanJob {
            event: PendingEvent::unsolicited(opened, permit),
            path,
            stat,
            beneath: None,
            markable: policy.may_mark(&stat),
            hold: policy.hold(&stat),
            slow: !policy.reads_at_once(&stat),
            arrived: Instant::now(),
            urgency: Urgency::Prescan,
            joined: Vec::new(),
        }));
        Ok(())
    }
}

/// What became of a written file.
enum Ahead {
    /// It is being scanned.
    Sent,
    /// Its stamps are too young for a verdict to be kept.
    Young,
}

/// What the prescanner is told.
#[derive(Debug)]
pub enum PrescanMessage {
    /// A file was written and closed.
    Written(Written),
    /// Scope or mounts have changed.
    Policy(Arc<Policy>),
    /// End.
    Stop,
}

/// A file that was written and closed.
#[derive(Debug)]
pub struct Written {
    /// How to come back to it.
    pub handle: FileHandle,
    /// What it was when it was closed.
    pub stat: FileStat,
}

/// The thread that scans written files ahead. It opens files, and may wait for
/// the reader in doing so; nobody waits for it.
pub struct Prescanner {
    prescan: Prescan,
    messages: Mailbox<PrescanMessage>,
    policy: Arc<Policy>,
    verdicts: Arc<Mutex<VerdictCache>>,
    counters: Arc<Counters>,
    /// In the order of their time.
    waiting: VecDeque<(Instant, Written)>,
    /// Those that were too young, in the order of their time.
    young: VecDeque<(Instant, Written)>,
}

impl Prescanner {
    /// A prescanner that has not begun.
    pub fn new(
        prescan: Prescan,
        messages: Mailbox<PrescanMessage>,
        policy: Arc<Policy>,
        (verdicts, counters): (Arc<Mutex<VerdictCache>>, Arc<Counters>),
    ) -> Self {
        Self {
            prescan,
            messages,
            policy,
            verdicts,
            counters,
            waiting: VecDeque::new(),
            young: VecDeque::new(),
        }
    }

    /// Runs until told to stop.
    pub fn run(mut self) {
        let mut messages = Vec::new();
        loop {
            self.messages.drain(&mut messages);
            let due = Instant::now() + DELAY;
            for message in messages.drain(..) {
                match message {
                    PrescanMessage::Written(written) if self.waiting.len() < MOST_WAITING => {
                        self.waiting.push_back((due, written));
                    }
                    PrescanMessage::Written(_) => self.counters.prescans_skipped.up(),
                    PrescanMessage::Policy(policy) => self.policy = policy,
                    PrescanMessage::Stop => return,
                }
            }
            let pause = self.scan_due();
            self.rest(pause);
        }
    }

    /// Scans what is due. Returns until when to wait for the next, or for room.
    fn scan_due(&mut self) -> Option<Instant> {
        let first = self.scan_due_of(false);
        let second = self.scan_due_of(true);
        first.into_iter().chain(second).min()
    }

    fn scan_due_of(&mut self, young: bool) -> Option<Instant> {
        loop {
            let queue = if young {
                &mut self.young
            } else {
                &mut self.waiting
            };
            let (due, written) = queue.pop_front()?;
            let now = Instant::now();
            if due > now {
                queue.push_front((due, written));
                return Some(due);
            }
            match self.scan(&written) {
                Ok(Ahead::Sent) => self.counters.prescans.up(),
                Err(PrescanRefused::Busy) => {
                    let queue = if young {
                        &mut self.young
                    } else {
                        &mut self.waiting
                    };
                    queue.push_front((due, written));
                    return Some(now + AGAIN);
                }
                Ok(Ahead::Young) if !young && self.young.len() < MOST_WAITING => {
                    self.young.push_back((now + LONG_DELAY, written));
                }
                Ok(Ahead::Young) | Err(_) => self.counters.prescans_skipped.up(),
            }
        }
    }

    fn scan(&self, written: &Written) -> Result<Ahead, PrescanRefused> {
        // On btrfs `statx` shows another device than the table of mounts.
        let mounts = &self.policy.mounts;
        let dev = mounts
            .get(written.stat.mount)
            .map_or(written.stat.key.dev, |mount| mount.dev);
        let directory = open_directory(mounts, dev).ok_or(PrescanRefused::Unwanted)?;
        let file = written.handle.open(directory.as_fd())?;
        let stat = file::stat(file.as_fd())?;
        // Written again: that close will bring it back. Known: an opener was faster.
        let changed = !stamps::same_version(&stat, &written.stat);
        let young = stamps::is_young(stat.changed, SystemTime::now());
        if changed || stat.links == 0 || lock(&self.verdicts).get(&stat).is_some() {
            return Err(PrescanRefused::Unwanted);
        }
        if young {
            return Ok(Ahead::Young);
        }
        self.prescan.scan(&self.policy, &file)?;
        Ok(Ahead::Sent)
    }

    fn rest(&self, until: Option<Instant>) {
        if !self.messages.begin_sleep() {
            return;
        }
        let wake = self.messages.waker();
        let slept = sleep([(wake.as_fd(), PollFlags::POLLIN)], until);
        self.messages
            .end_sleep(slept.is_ok_and(|[notified]| notified));
    }
}
