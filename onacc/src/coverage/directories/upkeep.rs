//! What is done from time to time: directories without a watch, marks of those
//! that left, files that wait to be scanned.
//!
//! Each turn does a bounded amount of work. Must not: starve events.

use std::collections::{HashSet, VecDeque};
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::{Duration, Instant};

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;

use super::opening::{open_at, open_in};
use super::tree::NodeId;
use super::{Directories, Marker, Visit};
use crate::kernel::SyscallError;
use crate::kernel::file;
use crate::kernel::inotify::{WatchId, WatchedInode};
use crate::scan::PrescanRefused;

/// How often directories without a watch, and those with an error, are looked at.
const POLL_EVERY: Duration = Duration::from_secs(3);
/// How many of them each time.
const POLL_AT_MOST: usize = 2000;
/// How long a directory that left the tree keeps its mark: a move is over by then.
const LEAVE_AFTER: Duration = Duration::from_secs(2);
/// How often files are offered again that found the prescans busy.
const PRESCAN_EVERY: Duration = Duration::from_millis(50);
/// How many of them wait at most.
const PRESCANS: usize = 4096;
/// No more than one line about overflows in this time.
const OVERFLOW_LINES: Duration = Duration::from_mins(1);

/// What waits for its time.
#[derive(Debug, Default)]
pub(super) struct Upkeep {
    /// The first walk is over.
    pub walked: bool,
    /// Another look at everything is wanted after this one; whether what it
    /// finds has just appeared.
    pub again: Option<bool>,
    /// Directories without a watch or with an error.
    pub polled: VecDeque<NodeId>,
    poll_at: Option<Instant>,
    leave_at: Option<Instant>,
    /// Watches whose directories were about to lose their mark and are in scope.
    missed: HashSet<WatchId>,
    prescans: VecDeque<(NodeId, Box<[u8]>)>,
    prescan_at: Option<Instant>,
    exhaustion: Exhaustion,
    overflow_said: Option<Instant>,
    unreadable_said: bool,
}

/// Whether the watches are used up, and whether that was said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Exhaustion {
    #[default]
    No,
    Unsaid,
    Said,
}

/// Whether a directory that left the tree is in scope all the same.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wanted {
    /// It is not.
    No,
    /// It is, but something is mounted above it: its mark stays.
    Hidden,
    /// It is, at a place that can be reached.
    Here,
}

impl Upkeep {
    /// A directory got no watch: the limit is reached.
    pub fn exhausted(&mut self) {
        if self.exhaustion == Exhaustion::No {
            self.exhaustion = Exhaustion::Unsaid;
        }
    }

    /// Events were lost.
    pub fn say_overflow(&mut self) {
        let now = Instant::now();
        if self
            .overflow_said
            .is_none_or(|said| now.duration_since(said) >= OVERFLOW_LINES)
        {
            self.overflow_said = Some(now);
            tracing::warn!(
                "onacc: the inotify queue was full: all directories are compared again (sysctl fs.inotify.max_queued_events makes the queue longer)"
            );
        }
    }

    /// The inotify fd cannot be read; new directories would go unnoticed.
    pub fn cannot_read(&mut self, error: &SyscallError) {
        if !std::mem::replace(&mut self.unreadable_said, true) {
            tracing::error!("onacc: {error}; new directories may go unnoticed");
        }
    }
}

impl<M: Marker> Directories<M> {
    /// When something is due next.
    pub(super) fn next_due(&self) -> Option<Instant> {
        let upkeep = &self.upkeep;
        [upkeep.poll_at, upkeep.leave_at, upkeep.prescan_at]
            .into_iter()
            .flatten()
            .min()
    }

    /// Does what is due.
    pub(super) fn keep_up(&mut self, now: Instant) {
        let is_due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        if is_due(self.upkeep.prescan_at) {
            self.offer_prescans(now);
        }
        if self.background.is_empty() && self.urgent.is_empty() && self.upkeep.walked {
            if let Some(fresh) = self.upkeep.again.take() {
                self.look_at_all(fresh);
            }
            self.say_what_is_exhausted();
            if is_due(self.upkeep.leave_at) {
                self.unmark_what_left();
            }
        }
        if is_due(self.upkeep.poll_at) {
            self.poll();
        }
        if self.upkeep.polled.is_empty() {
            self.upkeep.poll_at = None;
        } else if self.upkeep.poll_at.is_none() {
            self.upkeep.poll_at = Some(now + POLL_EVERY);
        }
    }

    /// One line with the numbers, when all directories have been tried.
    pub(super) fn say_what_is_exhausted(&mut self) {
        if self.upkeep.exhaustion != Exhaustion::Unsaid {
            return;
        }
        self.upkeep.exhaustion = Exhaustion::Said;
        let without = self.unwatched();
        if without == 0 {
            self.upkeep.exhaustion = Exhaustion::No;
            return;
        }
        let limit = watch_limit().map_or_else(|| "unknown".to_owned(), |limit| limit.to_string());
        let wanted = watch_limit().unwrap_or(0).saturating_mul(2);
        let wanted = wanted.max(self.tree.count().saturating_mul(2).next_power_of_two());
        tracing::warn!(
            "onacc: inotify watches are used up: onacc has {}, the limit of all programs of this user is {limit}, {without} directories have none. Files in them are protected; a new sub-directory of theirs is noticed late, by looking every {} s. More watches: sysctl -w fs.inotify.max_user_watches={wanted}",
            self.tree.watches(),
            POLL_EVERY.as_secs(),
        );
    }

    fn unwatched(&self) -> usize {
        self.upkeep
            .polled
            .iter()
            .filter(|id| self.tree.state(**id).unwatched)
            .count()
    }

    /// Looks at directories without a watch, the longest waiting ones first.
    pub(super) fn poll(&mut self) {
        self.upkeep.poll_at = None;
        for _ in 0..self.upkeep.polled.len().min(POLL_AT_MOST) {
            let Some(id) = self.upkeep.polled.pop_front() else {
                break;
            };
            if let Some(state) = self.tree.state_mut(id) {
                state.polled = false;
                self.visit(Visit::event(id));
            }
        }
        if self.upkeep.exhaustion == Exhaustion::Said && self.unwatched() == 0 {
            self.upkeep.exhaustion = Exhaustion::No;
            tracing::info!(
                "onacc: there are inotify watches again: all {} directories have one",
                self.tree.watches()
            );
        }
    }

    /// Watches that no directory of the tree has any more: their marks go soon.
    pub(super) fn let_go(&mut self, released: impl IntoIterator<Item = WatchId>) {
        self.leaving.extend(released);
        if !self.leaving.is_empty() && self.upkeep.leave_at.is_none() {
            self.upkeep.leave_at = Some(Instant::now() + LEAVE_AFTER);
        }
    }

    /// Takes the marks off directories that left the scope. Their path is not
    /// known, but their watch still leads to them.
    pub(super) fn unmark_what_left(&mut self) {
        self.upkeep.leave_at = None;
        if self.leaving.is_empty() {
            return;
        }
        self.links.heartbeat.rest();
        let mut missed = HashSet::new();
        match self.marker.watched_inodes() {
            Ok(mut inodes) => {
                inodes.retain(|inode| self.leaving.contains(&inode.watch));
                inodes.sort_by_key(|inode| inode.dev);
                for same in inodes.chunk_by(|one, other| one.dev == other.dev) {
                    self.unmark_on(same, &mut missed);
                }
            }
            Err(error) => tracing::debug!("onacc: {error}; marks out of scope stay"),
        }
        self.links.heartbeat.beat();
        // What is in scope keeps its watch for one turn more: if it is not found
        // meanwhile it may have been on its way out.
        missed.retain(|watch| !self.upkeep.missed.contains(watch));
        for watch in self.leaving.drain().filter(|watch| !missed.contains(watch)) {
            self.marker.unwatch(watch);
        }
        self.upkeep.missed.clone_from(&missed);
        self.let_go(missed);
    }

    /// Those of one filesystem. Those that are in scope go into `missed`.
    fn unmark_on(&mut self, inodes: &[WatchedInode], missed: &mut HashSet<WatchId>) {
        let Some(mount) = inodes.first().and_then(|first| self.open_mount(first.dev)) else {
            return;
        };
        for inode in inodes {
            // Gone with its mark, or it cannot be reached: then the mark stays.
            let Ok(fd) = inode.handle.open(mount.as_fd()) else {
                continue;
            };
            match self.still_wanted(&fd) {
                Wanted::No => {
                    self.marker.unmark(&fd);
                    self.links.counters.directory_marks_removed.up();
                }
                Wanted::Hidden => {
                    missed.insert(inode.watch);
                }
                // Back in scope, unseen: it is looked for where it is now.
                Wanted::Here => {
                    missed.insert(inode.watch);
                    let (id, _) = self.tree.find(&self.path);
                    self.push(Visit {
                        deep: true,
                        ..Visit::event(id)
                    });
                }
            }
        }
    }

    /// Any directory of a filesystem, which its file handles need.
    pub(super) fn open_mount(&self, dev: u32) -> Option<OwnedFd> {
        let mounts = &self.policy.mounts;
        mounts
            .iter()
            .filter(|mount| mount.dev == dev)
            .find_map(|mount| {
                let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
                let fd = open(&mount.point, flags, Mode::empty()).ok()?;
                // Something else may be mounted above it.
                let stat = file::stat(fd.as_fd()).ok()?;
                (stat.mount == mount.id).then_some(fd)
            })
    }

    /// Whether a directory that left the tree is in scope all the same. Its path
    /// is in `self.path` then.
    fn still_wanted(&mut self, fd: &OwnedFd) -> Wanted {
        let Ok(stat) = file::stat(fd.as_fd()) else {
            return Wanted::No;
        };
        if stat.links == 0 || file::path_of(fd.as_fd(), &mut self.path).is_none() {
            return Wanted::No;
        }
        let Some(mount) = self.policy.mounts.get(stat.mount) else {
            return Wanted::No;
        };
        let Some(side) = self.policy.side_of_directory(mount, &self.path) else {
            return Wanted::No;
        };
        let left_out = super::names::left_out(mount, &self.policy.mounts);
        let plan = self.names.plan(&self.path, side, left_out);
        if !plan.is_some_and(|plan| plan.mark) {
            return Wanted::No;
        }
        let there = open_at(&self.path).ok();
        let there = there.and_then(|there| file::stat(there.as_fd()).ok());
        if there.is_some_and(|there| there.key == stat.key) {
            Wanted::Here
        } else {
            Wanted::Hidden
        }
    }

    /// Has a file scanned that was there before its directory was marked.
    pub(super) fn prescan_in(&mut self, id: NodeId, name: &[u8], directory: &OwnedFd) {
        if let Ok(fd) = open_in(directory, name) {
            self.prescan(id, name, &fd);
        }
    }

    /// As [`Self::prescan_in`], with an `O_PATH` fd of the file.
    pub(super) fn prescan(&mut self, id: NodeId, name: &[u8], fd: &OwnedFd) {
        match self.links.prescan.scan(&self.policy, fd) {
            Ok(()) | Err(PrescanRefused::Unwanted) => {}
            Err(PrescanRefused::Busy) if self.upkeep.prescans.len() < PRESCANS => {
                self.upkeep.prescans.push_back((id, name.into()));
                let soon = Instant::now() + PRESCAN_EVERY;
                self.upkeep.prescan_at.get_or_insert(soon);
            }
            Err(PrescanRefused::Busy) => self.links.counters.prescans_dropped.up(),
            Err(PrescanRefused::Syscall(error)) => {
                tracing::debug!("onacc: not scanned ahead: {error}");
            }
        }
    }

    /// Offers the files again that found the prescans busy.
    fn offer_prescans(&mut self, now: Instant) {
        self.upkeep.prescan_at = None;
        while let Some((id, name)) = self.upkeep.prescans.pop_front() {
            let mut path = Vec::new();
            self.tree.path_into(id, &mut path);
            path.push(b'/');
            path.extend_from_slice(&name);
            if !self.tree.contains(id) {
                continue;
            }
            let Ok(fd) = open_at(&path) else { continue };
            if let Err(PrescanRefused::Busy) = self.links.prescan.scan(&self.policy, &fd) {
                self.upkeep.prescans.push_front((id, name));
                self.upkeep.prescan_at = Some(now + PRESCAN_EVERY);
                return;
            }
        }
    }
}

/// `fs.inotify.max_user_watches`.
fn watch_limit() -> Option<usize> {
    std::fs::read_to_string("/proc/sys/fs/inotify/max_user_watches")
        .ok()?
        .trim()
        .parse()
        .ok()
}
