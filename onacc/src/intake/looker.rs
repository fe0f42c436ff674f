//! Looks at a file that eBPF has told of: finds it again, judges it as the reader
//! does, and hands it over.
//!
//! Must not: answer anybody, or wait for anything but room in the fd budget.
//! Tested by `tests/`.

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use onacc_common::DirKey;
use onacc_common::opens::OpenRecord;

use super::find::{Told, find};
use super::judge::{self, Judged, Subject, directory_of};
use super::place::Placer;
use super::processes::{Groups, Opener};
use crate::coverage::keeper::{CleanFile, KeeperMessage};
use crate::kernel::SyscallError;
use crate::kernel::bpf::Missed;
use crate::kernel::fanotify::{FdBudget, PendingEvent, Permit, WriterProbe};
use crate::kernel::file;
use crate::kernel::procfs::Proc;
use crate::kernel::wake::Mailbox;
use crate::observe::counters::Counters;
use crate::policy::{Policy, Unscanned, Verdict, VerdictCache, lock, opens_can_block};
use crate::scan::Work;

/// How long to wait for room in the fd budget before looking again.
const NO_ROOM: Duration = Duration::from_millis(5);

/// Whom the feed speaks with.
#[derive(Clone)]
pub struct FeedLinks {
    /// Bytes of records that may wait to be looked at, and of files that found no
    /// room among them.
    pub backlog: usize,
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
    /// Where writers are asked for, if the settings have that done. The two threads of
    /// the feed never ask about the same file.
    pub writers: Option<Arc<WriterProbe>>,
}

/// An open that was told, by value.
#[derive(Debug)]
pub struct Event {
    told: Told,
    directory: Option<DirKey>,
    euid: u32,
    /// The id of the opener's control group; 0: not known.
    group: u64,
}

impl Event {
    /// From a record.
    pub fn of(record: &OpenRecord<'_>) -> Self {
        Self {
            told: Told::of(record),
            directory: Some(record.header.directory),
            euid: record.header.euid,
            group: record.header.cgroup,
        }
    }

    /// Of a file that found no room in the ring buffer.
    pub fn of_missed(missed: Missed) -> Self {
        Self {
            told: Told::of_missed(missed.file),
            directory: None,
            euid: missed.euid,
            group: 0,
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
pub struct Looker {
    /// Whom it speaks with.
    pub links: FeedLinks,
    policy: Arc<Policy>,
    placer: Placer,
    proc: Proc,
    groups: Groups,
}

impl Looker {
    /// One that judges by this.
    ///
    /// # Errors
    /// No fd left.
    pub fn new(links: FeedLinks, policy: Arc<Policy>) -> Result<Self, SyscallError> {
        Ok(Self {
            links,
            policy,
            placer: Placer::new(),
            proc: Proc::open()?,
            groups: Groups::default(),
        })
    }

    /// Another one that does the same.
    ///
    /// # Errors
    /// No fd left.
    pub fn again(&self) -> Result<Self, SyscallError> {
        Self::new(self.links.clone(), Arc::clone(&self.policy))
    }

    /// What it judges by.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Judges by this from now on.
    pub fn follow(&mut self, policy: Arc<Policy>) {
        self.policy = policy;
    }

    /// Whether to open this file may take as long as a server likes.
    pub fn can_block(&self, event: &Event) -> bool {
        self.policy
            .mounts
            .iter()
            .find(|mount| mount.dev == event.told.key.dev)
            .is_none_or(|mount| opens_can_block(&mount.kind))
    }

    /// Looks at it.
    pub fn look_at(&mut self, event: &Event) {
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
            writers: self.links.writers.as_deref(),
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
