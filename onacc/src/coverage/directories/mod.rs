//! Coverage "directory" and "listed": a mark on each directory in scope.
//!
//! One thread keeps, for each directory under the include paths, a fanotify
//! mark (opens of its files) and an inotify watch (what comes into it). The
//! file system alone is believed: an event, a poll or a rescan only says where
//! to look, and looking puts right whatever is found (`visit`). The same tree
//! holds the directories on the way to the include paths, watched but not
//! marked, so that a path that does not exist yet is noticed when it appears.
//!
//! Order at each directory: watch, mark, list. What came before the list is
//! found by it, what comes after is told by the watch.
//!
//! What it promises the reader: each directory in scope carries a mark. A mark
//! too many costs an event, since the reader judges by place. Must not: hold an
//! fd while it sleeps (a filesystem could not be unmounted), follow a symlink,
//! open what is not a directory, or give up all because of one directory.
//! `tree`, `names` and `opening` have unit tests; the whole is tested in `tests`.

mod aside;
mod follow;
mod marker;
mod mounted_files;
mod names;
mod nearby;
mod opening;
mod quick;
mod tree;
mod upkeep;
mod visit;

#[cfg(test)]
mod tests;
#[cfg(test)]
mod tree_tests;

use std::collections::{HashSet, VecDeque};
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::poll::PollFlags;

use crate::kernel::SyscallError;
use crate::kernel::fanotify::Group;
use crate::kernel::inotify::{InotifyBuffer, WatchId};
use crate::kernel::wake::{Mailbox, sleep};
use crate::observe::counters::Counters;
use crate::observe::heartbeat::Heartbeat;
use crate::policy::Policy;
use crate::scan::Prescan;

pub use marker::{KernelMarker, Marker};
pub use names::Reach;

use aside::Aside;
use mounted_files::MountedFiles;
use names::Names;
use nearby::Nearby;
use tree::{NodeId, Tree};
use upkeep::Upkeep;

/// Directories that are looked at between two looks at the events: the kernel
/// holds 16,384 events by default, a full queue costs a rescan.
const BATCH: usize = 64;

/// What the thread is told.
#[derive(Debug)]
pub enum DirectoriesMessage {
    /// Scope or mounts have changed. Also to be sent if they have not.
    Policy(Arc<Policy>),
    /// The include and exclude paths lead elsewhere now (resolved, absolute).
    /// To be sent after the policy that knows them.
    Paths {
        /// Include paths.
        includes: Vec<PathBuf>,
        /// Exclude paths.
        excludes: Vec<PathBuf>,
    },
    /// Marks on overlays go into this group; to be sent before the policy that
    /// knows the first of them.
    Overlays(Arc<Group>),
    /// All inode marks of the group are gone (`Group::flush_inode_marks`): they
    /// are placed again.
    MarksLost,
    /// End.
    Stop,
}

/// Whom the thread speaks with.
#[derive(Debug)]
pub struct DirectoriesLinks {
    /// Where marks are placed.
    pub group: Arc<Group>,
    /// Where messages come from.
    pub messages: Mailbox<DirectoriesMessage>,
    /// Files that were in a new directory before it was marked go there.
    pub prescan: Prescan,
    /// Counts.
    pub counters: Arc<Counters>,
    /// Shows that the loop goes round. At rest during calls into a filesystem:
    /// a network server that hangs is no fault of the agent.
    pub heartbeat: Heartbeat,
    /// Include paths: absolute, resolved; they need not exist.
    pub include_paths: Vec<PathBuf>,
    /// Exclude paths, likewise.
    pub exclude_paths: Vec<PathBuf>,
    /// Whether sub-directories belong to an include path.
    pub reach: Reach,
}

/// What the first walk found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FirstWalk {
    /// Directories that carry a mark.
    pub marked: usize,
    /// Of those, the ones without a watch.
    pub unwatched: usize,
    /// Directories that could not be looked at; each was said in the log.
    pub troubled: usize,
}

/// One directory that is to be looked at.
#[derive(Clone, Copy, Debug)]
struct Visit {
    id: NodeId,
    /// Also look at all known directories below it.
    deep: bool,
    /// What is found new has just appeared: files in it are scanned.
    fresh: bool,
    /// Before those that are not.
    urgent: bool,
}

impl Visit {
    /// The first walk comes by.
    fn of_the_walk(id: NodeId) -> Self {
        Self {
            id,
            deep: false,
            fresh: false,
            urgent: false,
        }
    }

    /// Something happened here.
    fn event(id: NodeId) -> Self {
        Self {
            id,
            deep: false,
            fresh: true,
            urgent: true,
        }
    }
}

/// The thread's state.
#[derive(Debug)]
pub struct Directories<M: Marker = KernelMarker> {
    links: DirectoriesLinks,
    policy: Arc<Policy>,
    names: Names,
    marker: M,
    tree: Tree,
    urgent: VecDeque<Visit>,
    background: VecDeque<Visit>,
    /// Watches of directories that left the tree. Their marks go a little
    /// later, so that a directory that is only moved is never without.
    leaving: HashSet<WatchId>,
    upkeep: Upkeep,
    /// Places marks during the first walk.
    aside: Option<Aside>,
    mounted_files: MountedFiles,
    /// Directories that are open, for those in them.
    nearby: Nearby,
    /// Path of the directory that is being looked at.
    path: Vec<u8>,
    buffer: InotifyBuffer,
    stopped: bool,
}

impl Directories {
    /// Takes an inotify instance; walks nothing yet.
    ///
    /// # Errors
    /// No inotify instance is left.
    pub fn new(links: DirectoriesLinks, policy: Arc<Policy>) -> Result<Self, SyscallError> {
        let marker = KernelMarker::new(Arc::clone(&links.group))?;
        Ok(Self::with_marker(links, policy, marker))
    }
}

impl<M: Marker> Directories<M> {
    /// As [`Directories::new`], with another way to place marks.
    pub fn with_marker(links: DirectoriesLinks, policy: Arc<Policy>, marker: M) -> Self {
        let names = Names::new(&links.include_paths, &links.exclude_paths, links.reach);
        let tree = Tree::new();
        let first = Visit::of_the_walk(tree.root());
        Self {
            links,
            policy,
            names,
            marker,
            tree,
            urgent: VecDeque::new(),
            background: VecDeque::from([first]),
            leaving: HashSet::new(),
            upkeep: Upkeep::default(),
            aside: None,
            mounted_files: MountedFiles::new(),
            nearby: Nearby::default(),
            path: Vec::new(),
            buffer: InotifyBuffer::new(),
            stopped: false,
        }
    }

    /// Walks all include paths. Protection of each directory begins when the
    /// walk comes by, no opener waits for it. Call it on the thread that will
    /// call [`Self::run`]; it must be one of the agent's own threads. Ends early
    /// when told to stop.
    pub fn first_walk(&mut self) -> FirstWalk {
        self.aside = Aside::start();
        loop {
            while !self.background.is_empty() && self.round() {}
            match self.upkeep.again.take() {
                Some(fresh) if !self.stopped => self.look_at_all(fresh),
                _ => break,
            }
        }
        self.aside = None;
        self.follow_mounted_files();
        self.upkeep.walked = true;
        self.say_what_is_exhausted();
        let mut found = FirstWalk::default();
        for id in self.tree.iter() {
            let state = self.tree.state(id);
            found.marked += usize::from(state.marked);
            found.unwatched += usize::from(state.marked && state.unwatched);
            found.troubled += usize::from(state.troubled);
        }
        self.links.heartbeat.rest();
        found
    }

    /// Keeps marks and watches up until told to stop. Does the first walk if
    /// that has not been done.
    pub fn run(mut self) {
        if !self.upkeep.walked {
            self.first_walk();
        }
        while self.round() {
            if self.urgent.is_empty() && self.background.is_empty() {
                self.rest();
            }
        }
    }

    /// One round: messages, events, a batch of directories, what is due.
    /// False: told to stop.
    fn round(&mut self) -> bool {
        self.links.heartbeat.beat();
        self.take_messages();
        if self.stopped {
            return false;
        }
        self.take_events();
        for _ in 0..BATCH {
            let Some(visit) = self.next_visit() else {
                break;
            };
            self.visit(visit);
        }
        self.follow_aside();
        self.keep_up(Instant::now());
        self.nearby.close();
        true
    }

    fn next_visit(&mut self) -> Option<Visit> {
        self.urgent
            .pop_front()
            .or_else(|| self.background.pop_front())
    }

    fn push(&mut self, visit: Visit) {
        if visit.urgent {
            self.urgent.push_back(visit);
        } else {
            self.background.push_back(visit);
        }
    }

    fn take_messages(&mut self) {
        let mut messages = Vec::new();
        self.links.messages.drain(&mut messages);
        if !messages.is_empty() {
            self.join_aside();
        }
        for message in messages {
            match message {
                DirectoriesMessage::Policy(policy) => {
                    self.follow_policy(policy);
                    self.follow_mounted_files();
                }
                DirectoriesMessage::Paths { includes, excludes } => {
                    self.names = Names::new(&includes, &excludes, self.links.reach);
                    self.look_at_all(false);
                    self.follow_mounted_files();
                }
                DirectoriesMessage::Overlays(group) => self.marker.use_for_overlays(group),
                DirectoriesMessage::MarksLost => {
                    tracing::debug!("onacc: directory marks are placed again");
                    self.look_at_all(false);
                    self.follow_mounted_files();
                }
                DirectoriesMessage::Stop => self.stopped = true,
            }
        }
    }

    fn rest(&mut self) {
        if !self.links.messages.begin_sleep() {
            return;
        }
        self.links.heartbeat.rest();
        let until = self.next_due();
        let waker = self.links.messages.waker().clone();
        let slept = sleep(
            [
                (waker.as_fd(), PollFlags::POLLIN),
                (self.marker.events_fd(), PollFlags::POLLIN),
            ],
            until,
        );
        let notified = match slept {
            Ok([notified, _]) => notified,
            Err(error) => {
                tracing::debug!("onacc: {error}");
                // No memory: not in a loop.
                std::thread::sleep(Duration::from_millis(50));
                true
            }
        };
        self.links.messages.end_sleep(notified);
    }
}
