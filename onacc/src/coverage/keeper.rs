//! The keeper of clean marks: places them after a clean verdict, takes them
//! away when a file is being changed.
//!
//! One thread does both, so that placing and taking away never race. Owns the
//! loop; what a mark needs, and when it goes, is `clean_marks`. Must not: answer
//! openers.

use std::os::fd::AsFd as _;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::poll::PollFlags;

use onacc_common::DirKey;

use super::clean_marks::{Clean, CleanMarks, MarkWorld as _};
use super::kernel_marks::KernelMarks;
use super::outside::OutsideMarks;
use crate::kernel::bpf::FilterPlane;
use crate::kernel::fanotify::{EventFile, Group, WriterProbe};
use crate::kernel::file::{self, FileStat};
use crate::kernel::wake::{Mailbox, sleep};
use crate::observe::counters::Counters;
use crate::observe::heartbeat::Heartbeat;
use crate::policy::{Policy, VerdictCache, stamps};

/// How long clean files are gathered before they are marked.
const NAP: Duration = Duration::from_millis(5);

/// A file that was found clean.
pub type CleanFile = Clean<EventFile>;

/// A file that was found to be infected.
#[derive(Debug)]
pub struct InfectedFile {
    /// The event's own fd.
    pub file: EventFile,
    /// What it was before the scan, and not young then.
    pub stat: FileStat,
    /// The signature's name.
    pub signature: Arc<str>,
    /// The signature database that it was scanned with.
    pub generation: u64,
}

/// What the keeper is told.
#[derive(Debug)]
pub enum KeeperMessage {
    /// A clean file that had no writers when its scan began.
    Clean(CleanFile),
    /// A file that was found to be infected.
    Infected(InfectedFile),
    /// Scope or mounts have changed.
    Policy(Arc<Policy>),
    /// A file in this directory was opened, out of scope; with the directory's
    /// identity where eBPF told of it.
    Outside(Vec<u8>, Option<DirKey>),
    /// All marks must go, for the given reason.
    Flush(&'static str),
    /// Another agent has taken over: the kernel refuses no more by what this one
    /// knows, for its exclusions do not hold any more.
    Retire,
    /// End.
    Stop,
}

/// Whom the keeper speaks with.
pub struct KeeperLinks {
    /// Where the marks are.
    pub group: Arc<Group>,
    /// How many inodes may carry one at a time.
    pub most: u32,
    /// Asked whether a file has writers.
    pub writers: WriterProbe,
    /// Where messages come from.
    pub messages: Mailbox<KeeperMessage>,
    /// Verdicts, for the generation they are of.
    pub verdicts: Arc<Mutex<VerdictCache>>,
    /// Counts.
    pub counters: Arc<Counters>,
    /// Shows that the loop goes round.
    pub heartbeat: Heartbeat,
}

/// State of the loop.
pub struct Keeper {
    marks: CleanMarks<KernelMarks>,
    messages: Mailbox<KeeperMessage>,
    counters: Arc<Counters>,
    heartbeat: Heartbeat,
    outside: Option<OutsideMarks>,
    /// A mark was placed in this round: more are likely to come.
    placing: bool,
    /// Another agent has taken over.
    retired: bool,
}

impl Keeper {
    /// A keeper that has not begun. `outside`: directories out of scope are
    /// ignored in the kernel; only under filesystem marks.
    pub fn new(
        links: KeeperLinks,
        plane: Option<FilterPlane>,
        outside: Option<OutsideMarks>,
        policy: Arc<Policy>,
    ) -> Self {
        let world = KernelMarks {
            group: links.group,
            writers: links.writers,
            plane,
            policy,
            verdicts: links.verdicts,
            heartbeat: links.heartbeat.clone(),
            only_ignore_marks: outside.is_some(),
            spent: std::collections::VecDeque::new(),
        };
        Self {
            marks: CleanMarks::new(world, links.most as usize, Arc::clone(&links.counters)),
            messages: links.messages,
            counters: links.counters,
            heartbeat: links.heartbeat,
            outside,
            placing: false,
            retired: false,
        }
    }

    /// Runs until told to stop.
    pub fn run(mut self) {
        let mut messages = Vec::new();
        self.heartbeat.begin();
        loop {
            self.heartbeat.beat();
            self.marks.take_records();
            self.take_moves();
            self.messages.drain(&mut messages);
            for message in messages.drain(..) {
                self.heartbeat.beat();
                match message {
                    KeeperMessage::Clean(clean) => {
                        self.placing = true;
                        self.marks.place(&clean);
                    }
                    KeeperMessage::Infected(infected) => self.refuse(&infected),
                    KeeperMessage::Policy(policy) => self.follow(policy),
                    KeeperMessage::Outside(directory, told) => self.learn(&directory, told),
                    KeeperMessage::Flush(why) => self.flush(why),
                    KeeperMessage::Retire => {
                        self.retired = true;
                        self.flush("another agent has taken over");
                    }
                    KeeperMessage::Stop => return,
                }
                // A mark that must go is more urgent than a new one.
                self.marks.take_records();
                self.take_moves();
            }
            self.nap();
            self.rest();
        }
    }

    /// A directory that was out of scope may be in it now.
    fn follow(&mut self, policy: Arc<Policy>) {
        let world = self.marks.world_mut();
        let changed = *policy.scope != *world.policy.scope
            || *policy.rules != *world.policy.rules
            || policy.max_file_size != world.policy.max_file_size;
        world.policy = policy;
        if changed {
            self.flush("the scope has changed");
        }
    }

    fn learn(&mut self, path: &[u8], told: Option<DirKey>) {
        let Some(outside) = &self.outside else { return };
        let world = self.marks.world_mut();
        let (group, plane) = (&world.group, &mut world.plane);
        let learned = outside.learn(&world.policy, path, |directory| match told {
            None => group.ignore_directory(directory).is_ok(),
            Some(key) => {
                file::stat(directory).is_ok_and(|stat| stat.key == key.key)
                    && plane
                        .as_mut()
                        .is_some_and(|plane| plane.ignore_directory(key).is_ok())
            }
        });
        if learned {
            self.counters.directories_ignored.up();
        }
    }

    /// Has the kernel refuse a file, if the tier can, while it is what was scanned.
    fn refuse(&mut self, infected: &InfectedFile) {
        let world = self.marks.world_mut();
        let file = infected.file.as_fd();
        let holds = world.generation() == infected.generation
            && file::stat(file).is_ok_and(|now| stamps::same_version(&now, &infected.stat));
        // The kernel refuses an inode, whatever the name; a pattern may leave out
        // one of several.
        let one_name = infected.stat.links <= 1 || !world.policy.rules.has_patterns();
        // It was judged when it was opened, perhaps by other settings.
        let still = !self.retired && holds && one_name && is_judged(&world.policy, infected);
        let Some(plane) = world.plane.as_mut().filter(|_| still) else {
            return;
        };
        match plane.refuse(file, infected.stat.changed, &infected.signature) {
            Ok(true) => self.counters.refused_in_kernel.up(),
            Ok(false) => {}
            Err(error) => tracing::debug!("onacc: not refused in the kernel: {error}"),
        }
    }

    /// Nothing that was known of files and directories holds any more.
    fn flush(&mut self, why: &str) {
        self.marks.flush(why);
        if let Some(plane) = &mut self.marks.world_mut().plane
            && let Err(error) = plane
                .forget_directories()
                .and_then(|()| plane.forget_infected())
        {
            crate::kernel::process::die(&format!("eBPF epochs cannot be set: {error}"));
        }
        if let Some(outside) = &self.outside {
            outside.forget();
        }
    }

    fn take_moves(&mut self) {
        if self.outside.as_ref().is_some_and(OutsideMarks::moved) {
            self.flush("a directory out of scope was moved");
        }
    }

    /// Files are found clean one after the other, far more often than they are
    /// opened again at once: a mark can wait a little, so that many are placed
    /// for one wake-up. What must take a mark away is not kept waiting.
    fn nap(&mut self) {
        if !std::mem::take(&mut self.placing) {
            return;
        }
        self.heartbeat.rest();
        let waker = self.messages.waker().clone();
        // Where there is nothing to poll the waker stands in, of which nothing is
        // asked: nobody has been told that this thread sleeps.
        let none = (waker.as_fd(), PollFlags::empty());
        let readable = PollFlags::POLLIN;
        let plane = self.marks.world().records().map(|fd| (fd, readable));
        let [moved, also] = match &self.outside {
            Some(outside) => outside.fds().map(|fd| (fd, readable)),
            None => [none; 2],
        };
        let until = Some(Instant::now() + NAP);
        if let Err(error) = sleep([plane.unwrap_or(none), moved, also], until) {
            tracing::debug!("onacc: {error}");
        }
    }

    fn rest(&mut self) {
        if !self.messages.begin_sleep() {
            return;
        }
        self.heartbeat.rest();
        let waker = self.messages.waker().clone();
        let wake = (waker.as_fd(), PollFlags::POLLIN);
        let readable = PollFlags::POLLIN;
        // Where there is nothing to poll, the waker stands in.
        let plane = self.marks.world().records().unwrap_or(waker.as_fd());
        let [moved, also] = match &self.outside {
            Some(outside) => outside.fds(),
            None => [waker.as_fd(); 2],
        };
        let polled = [plane, moved, also].map(|fd| (fd, readable));
        let [plane, moved, also] = polled;
        let notified = sleep([wake, plane, moved, also], None).map(|[woken, ..]| woken);
        self.messages.end_sleep(notified.unwrap_or(true));
    }
}

/// Whether an open of this file is to be judged by its content, as far as the file
/// and its place tell.
fn is_judged(policy: &Policy, infected: &InfectedFile) -> bool {
    let stat = &infected.stat;
    let mut path = Vec::new();
    let by_place = || {
        let mount = policy.mounts.get(stat.mount)?;
        file::path_of(infected.file.as_fd(), &mut path)?;
        policy.by_place_on(mount, stat, &path)
    };
    policy.by_file(stat).or_else(by_place).is_none()
}
