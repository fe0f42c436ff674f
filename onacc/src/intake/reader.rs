//! The loop of the reader thread.
//!
//! What one event costs, cheapest test first: own thread (no system call),
//! excluded uid (`fstatat` on /proc), file (`statx`), place (`readlink`), clamd
//! (see `scanner`). Most events end with the one write that answers them.

use std::collections::HashSet;
use std::hash::{BuildHasher as _, RandomState};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::poll::PollFlags;

use super::arrears::Arrears;
use super::judge::{Judge, Judged, Subject, directory_of};
use super::lost::Lost;
use super::place::Placer;
use super::processes;
use crate::coverage::keeper::{CleanFile, KeeperMessage};
use crate::kernel::bpf::Tags;
use crate::kernel::fanotify::{
    Answer, FdBudget, Group, PendingEvent, ReadBuffer, ReadError, Taken, WriterProbe,
};
use crate::kernel::file::{self, FileStat};
use crate::kernel::handle::FileHandle;
use crate::kernel::process;
use crate::kernel::procfs::Proc;
use crate::kernel::wake::{Mailbox, sleep};
use crate::observe::counters::Counters;
use crate::observe::heartbeat::Heartbeat;
use crate::policy::{Hold, Policy, Unscanned, Verdict, VerdictCache, lock};
use crate::scan::{Handover, PrescanMessage, ScannerIdentity, Strangers, Work, Written};

/// Reads beyond the budget between two looks at what the reader is told.
const SHEDS: usize = 64;
/// How often to look at the queue while nothing can be read of it.
const QUEUE_LOOKS: Duration = Duration::from_millis(50);
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

/// Whom every reader speaks with.
#[derive(Clone)]
pub struct ReaderLinks {
    /// How many events may be in flight.
    pub budget: Arc<FdBudget>,
    /// Where work goes.
    pub jobs: Handover,
    /// Where written files go.
    pub prescans: Mailbox<PrescanMessage>,
    /// Where clean files and directories out of scope go.
    pub keeper: Mailbox<KeeperMessage>,
    /// Verdicts that still hold.
    pub verdicts: Arc<Mutex<VerdictCache>>,
    /// Who is clamd.
    pub scanner: Arc<ScannerIdentity>,
    /// `OnAccessExtraScanning`.
    pub extra_scanning: bool,
    /// Who opened last, where eBPF tells.
    pub tags: Option<Arc<Tags>>,
    /// Counts.
    pub counters: Arc<Counters>,
    /// What a dropped event is answered with.
    pub on_failure: Answer,
    /// Whether files that are too large are to be told.
    pub tell_large: bool,
    /// Where nobody waits: events that may wait in the kernel, and fds for what is
    /// let go beyond that.
    pub overload: Option<(usize, Arc<FdBudget>)>,
    /// `KeepVerdictsOn`: writers are asked for.
    pub asks_writers: bool,
}

/// What belongs to one reader alone.
pub struct ReaderOwn {
    /// Where its events come from.
    pub group: Arc<Group>,
    /// Where it is told things.
    pub control: Mailbox<Control>,
    /// Shows that its loop goes round.
    pub heartbeat: Heartbeat,
    /// Where it asks about threads.
    pub proc: Proc,
    /// Where it asks about writers, if the settings have it do so.
    pub writers: Option<WriterProbe>,
}

/// State of the loop.
pub struct Reader {
    links: ReaderLinks,
    own: ReaderOwn,
    policy: Arc<Policy>,
    strangers: Strangers,
    placer: Placer,
    arrears: Arrears,
    /// When the event at hand may have come.
    arrived: Instant,
    /// Directories, by hash, that the keeper was asked to ignore since then. A
    /// collision costs a second's worth of events, no more.
    asked: HashSet<u64>,
    asked_since: Instant,
    hasher: RandomState,
    /// What would have to be scanned is let go.
    sheds: bool,
    lost: Lost,
}

impl Reader {
    /// A reader that has not begun.
    pub fn new(links: ReaderLinks, own: ReaderOwn, policy: Arc<Policy>) -> Self {
        Self {
            links,
            own,
            policy,
            strangers: Strangers::default(),
            placer: Placer::new(),
            arrears: Arrears::default(),
            arrived: Instant::now(),
            asked: HashSet::new(),
            asked_since: Instant::now(),
            hasher: RandomState::new(),
            sheds: false,
            lost: Lost::default(),
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
        self.own.heartbeat.begin();
        loop {
            self.own.heartbeat.beat();
            self.own.control.drain(&mut told);
            for control in told.drain(..) {
                match control {
                    Control::Policy(policy) => self.policy = policy,
                    Control::Stop => return Ok(()),
                }
            }
            // What was all is not read again to see that nothing is left: most
            // events come alone, and poll(2) tells of the next.
            match self.read_batch(&mut buffer)? {
                Taken::Full => {}
                taken => self.rest(taken),
            }
        }
    }

    fn read_batch(&mut self, buffer: &mut ReadBuffer) -> Result<Taken, ReadError> {
        let group = Arc::clone(&self.own.group);
        let budget = Arc::clone(&self.links.budget);
        let source = (&budget, self.links.on_failure);
        match group.read(buffer, source, |event| self.handle(event))? {
            Taken::NoPlace => self.shed(buffer),
            taken => Ok(taken),
        }
    }

    /// Nobody waits, so that opens can come for ever without a place for them: beyond
    /// some number those are let go that would have to be scanned.
    fn shed(&mut self, buffer: &mut ReadBuffer) -> Result<Taken, ReadError> {
        let mut taken = Taken::NoPlace;
        let Some((most, spare)) = self.links.overload.clone() else {
            return Ok(taken);
        };
        let group = Arc::clone(&self.own.group);
        let source = (&spare, self.links.on_failure);
        self.sheds = true;
        for _ in 0..SHEDS {
            if group.queued() <= most {
                break;
            }
            match group.read(buffer, source, |event| self.handle(event))? {
                Taken::NoPlace => break,
                more => taken = more,
            }
        }
        self.sheds = false;
        Ok(taken)
    }

    fn handle(&mut self, mut event: PendingEvent) {
        // The last read may have brought many.
        self.own.heartbeat.beat();
        self.links.counters.events.up();
        let group = &self.own.group;
        self.arrived = self.arrears.arrival(Instant::now(), || group.queued());
        let written = event.is_close_after_write();
        match self.judge(&event) {
            Ok(Judged::Unscanned(reason)) => {
                event.answer(Answer::Allow);
                super::count(&self.links.counters, reason);
                match reason {
                    Unscanned::OutOfScope => self.learn_directory(),
                    Unscanned::TooLarge if self.links.tell_large => self.tell_large(&event),
                    _ => {}
                }
            }
            Ok(Judged::Known(subject, Verdict::Clean)) => {
                event.answer(Answer::Allow);
                self.links.counters.known_clean.up();
                self.renew_mark(event, &subject);
            }
            Ok(Judged::Known(_, Verdict::Infected(_)) | Judged::Scan(_))
                if self.sheds && !written =>
            {
                self.links.counters.told_lost.up();
                self.lost.add(1);
            }
            Ok(Judged::Known(subject, Verdict::Infected(signature))) => {
                self.links.counters.known_infected.up();
                self.links.jobs.send(Work::KnownInfected {
                    event,
                    path: self.placer.path.clone(),
                    stat: subject.stat,
                    signature,
                });
            }
            Ok(Judged::Scan(subject)) if written => self.prescan(&event, subject.stat),
            Ok(Judged::Scan(subject)) => {
                event.fail_with(self.on_failure());
                self.links.counters.scans.up();
                self.hand_over(event, subject);
            }
            // Dropping it answers by the fail policy.
            Err(Unjudged::Unknowable) => self.links.counters.scan_errors.up(),
            Err(Unjudged::Overflow) => self.links.counters.queue_overflows.up(),
        }
    }

    fn hand_over(&mut self, event: PendingEvent, subject: Subject) {
        let event = (event, self.placer.path.clone());
        let job = subject.into_job(&self.policy, event, self.arrived);
        self.links.jobs.scan(job);
    }

    /// A file was written and closed: scanned before anyone asks, if its verdict
    /// can be kept or `OnAccessExtraScanning` wants it.
    fn prescan(&mut self, event: &PendingEvent, stat: FileStat) {
        self.links.counters.closed_after_write.up();
        let handle = event
            .file()
            .filter(|_| self.policy.hold(&stat) == Hold::Stamps || self.is_extra(&stat))
            .and_then(|file| FileHandle::of(file.as_fd()).ok());
        match handle {
            Some(handle) => {
                let written = Written { handle, stat };
                self.links.prescans.send(PrescanMessage::Written(written));
            }
            None => self.links.counters.prescans_skipped.up(),
        }
    }

    /// Scanned for its own sake, not for the next open's.
    fn is_extra(&self, stat: &FileStat) -> bool {
        self.links.extra_scanning && self.policy.opens_at_once(stat)
    }

    /// A file was too large, at `--verbose`. Out of scope that is no matter.
    fn tell_large(&mut self, event: &PendingEvent) {
        let Some(file) = event.file() else { return };
        let Ok(stat) = file::stat(file.as_fd()) else {
            return;
        };
        if let None | Some(Unscanned::TooLarge) =
            self.placer.judge(&self.policy, file.as_fd(), &stat)
        {
            self.links.jobs.send(Work::TooLarge {
                path: self.placer.path.clone(),
                size: stat.size,
            });
        }
    }

    /// The kernel has dropped the mark of a file that is still the same.
    fn renew_mark(&mut self, event: PendingEvent, subject: &Subject) {
        if subject.may_mark(&self.policy)
            && let Some(file) = event.into_file()
        {
            let generation = lock(&self.links.verdicts).generation();
            self.links.keeper.send(KeeperMessage::Clean(CleanFile {
                file,
                stat: subject.stat,
                generation,
            }));
        }
    }

    /// Has the kernel keep the opens of this file's directory to itself; asks
    /// once a second for each directory at most.
    fn learn_directory(&mut self) {
        let Some(directory) = directory_of(&self.placer.path) else {
            return;
        };
        let now = Instant::now();
        if now.duration_since(self.asked_since) > Duration::from_secs(1) {
            self.asked.clear();
            self.asked_since = now;
        }
        let hash = self.hasher.hash_one(directory);
        if self.asked.len() < MAX_ASKED && self.asked.insert(hash) {
            self.links
                .keeper
                .send(KeeperMessage::Outside(directory.to_vec(), None));
        }
    }

    fn judge(&mut self, event: &PendingEvent) -> Result<Judged, Unjudged> {
        let opened = event.file().ok_or(Unjudged::Overflow)?;
        if self.own.writers.is_some() && event.is_close_after_write() {
            self.forget_written(opened.as_fd());
        }
        let tid = event.tid();
        if process::is_own_thread(tid) {
            return Ok(Judged::Unscanned(Unscanned::OwnThread));
        }
        if !self.policy.excluded_uids.is_empty()
            && let Some(reason) = self.policy.by_opener(self.effective_uid(tid))
        {
            return Ok(Judged::Unscanned(reason));
        }
        let stat = file::stat(opened.as_fd()).map_err(|_| Unjudged::Unknowable)?;
        let (policy, proc) = (&*self.policy, &self.own.proc);
        let (strangers, scanner) = (&mut self.strangers, &self.links.scanner);
        let left_out = || {
            if processes::is_left_out(policy, proc, tid) {
                return Some(Unscanned::ExcludedProcess);
            }
            // A VirusEvent program reads what is infected, and so does clamd by path.
            let is_scanner = strangers.is_scanner(scanner, tid, Instant::now());
            is_scanner.then_some(Unscanned::Scanner)
        };
        let mut judge = Judge {
            policy,
            placer: &mut self.placer,
            verdicts: &self.links.verdicts,
            budget: &self.links.budget,
            writers: self.own.writers.as_ref(),
        };
        Ok(if event.is_close_after_write() {
            judge.written(opened.as_fd(), stat, left_out)
        } else {
            judge.opened(opened.as_fd(), stat, left_out)
        })
    }

    /// Whoever has written, a verdict that holds only without writers is gone.
    fn forget_written(&self, file: BorrowedFd<'_>) {
        let stat = file::stat(file);
        if let Ok(stat) = stat
            && self.policy.hold(&stat) == Hold::NoWriters
        {
            lock(&self.links.verdicts).written(stat.key);
        }
    }

    /// From the tag that the opener has left, without a system call, or from
    /// `/proc`.
    fn effective_uid(&self, tid: i32) -> Option<u32> {
        let tags = self.links.tags.as_ref();
        let tagged = tags.and_then(|tags| tags.effective_uid(tid));
        tagged.or_else(|| self.own.proc.effective_uid(tid))
    }

    /// What the event at hand is answered with if it comes to no verdict.
    fn on_failure(&self) -> Answer {
        if self.placer.denies_on_error {
            Answer::Deny
        } else {
            Answer::Allow
        }
    }

    fn rest(&mut self, taken: Taken) {
        self.lost.say();
        if taken == Taken::All {
            // The queue was empty then: nobody has waited unseen.
            self.arrears.caught_up();
        }
        let full = self.links.budget.room() == 0;
        if full {
            self.links.counters.budget_waits.up();
            self.arrears
                .no_room(Instant::now(), self.own.group.queued());
            if self.links.budget.begin_wait(self.own.control.waker()) {
                return;
            }
        }
        if !self.own.control.begin_sleep() {
            return;
        }
        self.own.heartbeat.rest();
        let waker = self.own.control.waker();
        let wake = (waker.as_fd(), PollFlags::POLLIN);
        let slept = if full {
            // Where nobody waits, the queue may have to be shortened.
            let looks = self.links.overload.is_some();
            let until = looks.then(|| Instant::now() + QUEUE_LOOKS);
            sleep([wake], until).map(|[notified]| notified)
        } else {
            let events = (self.own.group.as_fd(), PollFlags::POLLIN);
            sleep([wake, events], self.lost.when()).map(|[notified, _]| notified)
        };
        // A failed poll(2) (no memory) is tried again at once: openers wait.
        self.own.control.end_sleep(slept.unwrap_or(true));
    }
}

/// Why an event comes to no judgement.
enum Unjudged {
    /// The file's identity cannot be asked.
    Unknowable,
    /// The kernel's queue overflowed: it is of no file.
    Overflow,
}
