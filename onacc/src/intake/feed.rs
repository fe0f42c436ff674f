//! Opens that eBPF tells of: the notify-only mode's source, and word of what the
//! kernel has refused by itself.
//!
//! The programs have dropped what needs no look (`onacc_common::filter`); here
//! the file is found again, judged by the same policy as the reader does, and
//! handed over. No opener waits for this thread. Files on filesystems whose
//! opens can block (FUSE, network) are looked at by a second thread, so that a
//! server that hangs costs its own files alone. Must not: answer anybody.
//! Tested by `tests/`.

use std::ffi::OsStr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::poll::PollFlags;
use onacc_common::DirKey;
use onacc_common::opens::{Access, OpenRecord};

use super::find::{Told, find};
use super::judge::{self, Judged, Subject, directory_of};
use super::place::Placer;
use super::processes::{Groups, Opener};
use crate::coverage::keeper::{CleanFile, KeeperMessage};
use crate::kernel::SyscallError;
use crate::kernel::bpf::OpenFeed;
use crate::kernel::fanotify::{FdBudget, PendingEvent, Permit};
use crate::kernel::file;
use crate::kernel::mounts::join;
use crate::kernel::process;
use crate::kernel::procfs::Proc;
use crate::kernel::wake::{Mailbox, sleep};
use crate::observe::counters::Counters;
use crate::policy::{Policy, Unscanned, Verdict, VerdictCache, lock, opens_can_block};
use crate::respond::report;
use crate::scan::Work;

/// Records for the second thread that wait; more count as lost.
const MOST_SLOW: usize = 4096;
/// How long to wait for room in the fd budget before looking again.
const NO_ROOM: Duration = Duration::from_millis(5);
/// Between two lines about opens that nobody looked at.
const LOST_LINES: Duration = Duration::from_secs(10);

/// What the feed is told.
#[derive(Debug)]
pub enum FeedMessage {
    /// Decide by this from now on.
    Policy(Arc<Policy>),
    /// End.
    Stop,
}

/// Whom the feed speaks with.
#[derive(Clone)]
pub struct FeedLinks {
    /// How many files may be in flight.
    pub budget: Arc<FdBudget>,
    /// Where work goes.
    pub jobs: Mailbox<Work>,
    /// Where clean files and directories out of scope go.
    pub keeper: Mailbox<KeeperMessage>,
    /// Verdicts that still hold.
    pub verdicts: Arc<Mutex<VerdictCache>>,
    /// Counts.
    pub counters: Arc<Counters>,
}

/// An open that was told, by value.
#[derive(Debug)]
struct Event {
    told: Told,
    directory: Option<DirKey>,
    euid: u32,
    /// The id of the opener's control group; 0: not known.
    group: u64,
}

/// State of the first thread.
pub struct Feed {
    source: OpenFeed,
    messages: Mailbox<FeedMessage>,
    looker: Looker,
    slow: Mailbox<SlowMessage>,
    lost: u64,
    next_lost_line: Instant,
}

#[derive(Debug)]
enum SlowMessage {
    Event(Event),
    Policy(Arc<Policy>),
    Stop,
}

impl Feed {
    /// Starts both threads. They end when told so, the second one is not waited
    /// for: it may be waiting for a server.
    ///
    /// # Errors
    /// No thread or fd left.
    pub fn start(
        source: OpenFeed,
        messages: Mailbox<FeedMessage>,
        links: FeedLinks,
        policy: &Arc<Policy>,
    ) -> Result<std::thread::JoinHandle<()>, SyscallError> {
        let slow = Mailbox::new()?;
        let looker = Looker::new(links, Arc::clone(policy))?;
        let second = (looker.again()?, slow.clone());
        process::spawn("onacc-feed-slow", move || {
            let (looker, messages) = second;
            run_slow(looker, &messages);
        })?;
        let feed = Self {
            source,
            messages,
            looker,
            slow,
            lost: 0,
            next_lost_line: Instant::now(),
        };
        process::spawn("onacc-feed", move || feed.run())
    }

    fn run(mut self) {
        let mut messages = Vec::new();
        loop {
            self.messages.drain(&mut messages);
            for message in messages.drain(..) {
                match message {
                    FeedMessage::Policy(policy) => {
                        self.slow.send(SlowMessage::Policy(Arc::clone(&policy)));
                        self.looker.policy = policy;
                    }
                    FeedMessage::Stop => {
                        self.slow.send(SlowMessage::Stop);
                        return;
                    }
                }
            }
            let read = self.read_some();
            self.catch_up();
            if !read {
                self.rest();
            }
        }
    }

    /// Takes records, up to a batch, so that messages are heard in a flood too.
    fn read_some(&mut self) -> bool {
        const BATCH: usize = 256;
        for taken in 0..BATCH {
            let mut event = None;
            let mut refused = None;
            let more = self.source.next(|record| match record.access {
                Access::Open | Access::Exec => event = Some(Event::of(record)),
                Access::DeniedOpen | Access::DeniedMap => {
                    refused = Some((Told::of(record), record.header.signature));
                }
            });
            if !more {
                return taken > 0;
            }
            if let Some(event) = event {
                self.looker.links.counters.told_opens.up();
                self.handle(event);
            }
            if let Some((told, signature)) = refused {
                self.report_refusal(told, signature);
            }
        }
        true
    }

    fn handle(&mut self, event: Event) {
        if self.looker.can_block(&event) {
            if self.slow.len() < MOST_SLOW {
                self.slow.send(SlowMessage::Event(event));
            } else {
                self.lose(1);
            }
        } else {
            self.looker.look_at(&event);
        }
    }

    /// What the kernel has refused by itself is reported like any other refusal.
    fn report_refusal(&self, told: Told, signature: u32) {
        self.looker.links.counters.denied_in_kernel.up();
        let mount = self.looker.policy.mounts.whole(told.key.dev);
        let path = match (mount, told.path) {
            (Some(mount), Some(path)) => join(&mount.point, Path::new(OsStr::from_bytes(&path)))
                .into_os_string()
                .into_vec(),
            (None, Some(path)) => [b"/", path.as_slice()].concat(),
            (_, None) => Vec::new(),
        };
        let name = self.source.signatures().name(signature);
        let name = name.as_deref().unwrap_or("(signature not known any more)");
        report::infected(&path, 1, name);
    }

    /// Looks at the files whose opens found no room in the ring buffer.
    fn catch_up(&mut self) {
        loop {
            let missed = self.source.take_missed();
            if missed.is_empty() {
                break;
            }
            for one in missed {
                self.looker.links.counters.told_caught_up.up();
                self.handle(Event {
                    told: Told::of_missed(one.file),
                    directory: None,
                    euid: one.euid,
                    group: 0,
                });
            }
        }
        let lost = self.source.take_lost();
        if lost > 0 {
            self.lose(lost);
        }
        let now = Instant::now();
        if self.lost > 0 && now >= self.next_lost_line {
            tracing::warn!(
                "onacc: {} opens were not looked at: more files were opened at a time than there is room for",
                std::mem::take(&mut self.lost)
            );
            self.next_lost_line = now + LOST_LINES;
        }
    }

    fn lose(&mut self, opens: u64) {
        self.looker.links.counters.told_lost.add(opens);
        self.lost += opens;
    }

    fn rest(&mut self) {
        if !self.messages.begin_sleep() {
            return;
        }
        let wake = self.messages.waker();
        let until = (self.lost > 0).then_some(self.next_lost_line);
        let slept = sleep(
            [
                (wake.as_fd(), PollFlags::POLLIN),
                (self.source.as_fd(), PollFlags::POLLIN),
            ],
            until,
        );
        self.messages
            .end_sleep(slept.is_ok_and(|[notified, _]| notified));
    }
}

fn run_slow(mut looker: Looker, messages: &Mailbox<SlowMessage>) {
    let mut taken = Vec::new();
    loop {
        messages.drain(&mut taken);
        for message in taken.drain(..) {
            match message {
                SlowMessage::Event(event) => looker.look_at(&event),
                SlowMessage::Policy(policy) => looker.policy = policy,
                SlowMessage::Stop => return,
            }
        }
        if messages.begin_sleep() {
            let wake = messages.waker();
            let slept = sleep([(wake.as_fd(), PollFlags::POLLIN)], None);
            messages.end_sleep(slept.is_ok_and(|[notified]| notified));
        }
    }
}

impl Event {
    fn of(record: &OpenRecord<'_>) -> Self {
        Self {
            told: Told::of(record),
            directory: Some(record.header.directory),
            euid: record.header.euid,
            group: record.header.cgroup,
        }
    }

    fn opener(&self) -> Opener {
        Opener {
            tid: self.told.tid,
            group: self.group,
        }
    }
}

/// Looks at files and hands them over.
struct Looker {
    links: FeedLinks,
    policy: Arc<Policy>,
    placer: Placer,
    proc: Proc,
    groups: Groups,
}

impl Looker {
    fn new(links: FeedLinks, policy: Arc<Policy>) -> Result<Self, SyscallError> {
        Ok(Self {
            links,
            policy,
            placer: Placer::new(),
            proc: Proc::open()?,
            groups: Groups::default(),
        })
    }

    fn again(&self) -> Result<Self, SyscallError> {
        Self::new(self.links.clone(), Arc::clone(&self.policy))
    }

    fn can_block(&self, event: &Event) -> bool {
        self.policy
            .mounts
            .iter()
            .find(|mount| mount.dev == event.told.key.dev)
            .is_none_or(|mount| opens_can_block(&mount.kind))
    }

    fn look_at(&mut self, event: &Event) {
        let counters = Arc::clone(&self.links.counters);
        // The programs' table of uids may lag behind.
        if self.policy.by_opener(Some(event.euid)).is_some() {
            counters.excluded_uid.up();
            return;
        }
        let Some((file, stat)) = find(&event.told, &self.policy, &self.proc) else {
            counters.told_not_found.up();
            tracing::debug!(
                "onacc: a file that was opened could not be found any more: {}",
                crate::observe::printable(event.told.path.as_deref().unwrap_or(b"(path unknown)"))
            );
            return;
        };
        let mut judge = judge::Judge {
            policy: &self.policy,
            placer: &mut self.placer,
            verdicts: &self.links.verdicts,
            budget: &self.links.budget,
        };
        // The programs know the scanners.
        let left_out = || {
            self.groups
                .leave_out(&self.policy, &self.proc, event.opener())
                .then_some(Unscanned::ExcludedProcess)
        };
        match judge.opened(file.as_fd(), stat, left_out) {
            Judged::Unscanned(reason) => {
                super::count(&counters, reason);
                if reason == Unscanned::OutOfScope {
                    self.learn_directory(event);
                }
            }
            Judged::Known(subject, Verdict::Infected(signature)) => {
                counters.known_infected.up();
                if let Some(event) = self.open_again(&file, event) {
                    self.links.jobs.send(Work::KnownInfected {
                        event,
                        path: self.placer.path.clone(),
                        stat: subject.stat,
                        signature,
                    });
                }
            }
            Judged::Known(subject, Verdict::Clean) => {
                counters.known_clean.up();
                self.renew(&file, &subject);
            }
            Judged::Scan(subject) => self.hand_over(&file, subject, event),
        }
    }

    fn open_again(&mut self, file: &OwnedFd, event: &Event) -> Option<PendingEvent> {
        let permit = self.wait_for_room();
        let Ok(opened) = file::reopen(file.as_fd()) else {
            self.links.counters.told_not_found.up();
            return None;
        };
        Some(PendingEvent::told(opened, permit, event.told.tid))
    }

    fn hand_over(&mut self, file: &OwnedFd, subject: Subject, event: &Event) {
        let Some(event) = self.open_again(file, event) else {
            return;
        };
        self.links.counters.scans.up();
        let event = (event, self.placer.path.clone());
        let job = subject.into_job(&self.policy, event, Instant::now());
        self.links.jobs.send(Work::Scan(job));
    }

    /// The programs do not know (any more) that this file is clean.
    fn renew(&mut self, file: &OwnedFd, subject: &Subject) {
        if !subject.may_mark(&self.policy) {
            return;
        }
        let Some(permit) = self.links.budget.try_take() else {
            return;
        };
        if let Ok(opened) = file::reopen(file.as_fd())
            && let Some(file) = PendingEvent::unsolicited(opened, permit).into_file()
        {
            let generation = lock(&self.links.verdicts).generation();
            self.links.keeper.send(KeeperMessage::Clean(CleanFile {
                file,
                stat: subject.stat,
                generation,
            }));
        }
    }

    /// Waits in the ring buffer's stead: what comes meanwhile waits there.
    fn wait_for_room(&self) -> Permit {
        loop {
            if let Some(permit) = self.links.budget.try_take() {
                return permit;
            }
            self.links.counters.budget_waits.up();
            std::thread::sleep(NO_ROOM);
        }
    }

    fn learn_directory(&self, event: &Event) {
        let path = directory_of(&self.placer.path);
        if let (Some(directory), Some(path)) = (event.directory, path) {
            let outside = KeeperMessage::Outside(path.to_vec(), Some(directory));
            self.links.keeper.send(outside);
        }
    }
}
