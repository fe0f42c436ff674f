//! The keeper of clean marks: places them after a clean verdict, takes them
//! away when a file is being changed.
//!
//! One thread does both, so that placing and taking away never race. Owns the
//! filter plane and the table of marks. Invariant 6 lives here: a mark is kept
//! only if the file is, after the mark was placed, what it was before the scan.
//! Must not: answer openers or write logs before a mark is gone.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex};

use nix::poll::PollFlags;
use onacc_common::{CachedInode, Counter, DirtyRecord, InodeKey};

use super::filesystems::open_directory;
use super::outside::OutsideMarks;
use crate::kernel::SyscallError;
use crate::kernel::bpf::{ArmError, FilterPlane};
use crate::kernel::fanotify::{EventFile, Group, MarkError, WriterProbe};
use crate::kernel::file::{self, FileStat};
use crate::kernel::handle::FileHandle;
use crate::kernel::wake::{Mailbox, sleep};
use crate::observe::counters::Counters;
use crate::observe::heartbeat::Heartbeat;
use crate::policy::{MarkTable, Policy, Remembered, VerdictCache, lock, stamps};

/// Inodes that can carry a clean mark at a time; memory is used for those that do.
pub const MARKS: u32 = 65_536;

/// A file that was found clean.
#[derive(Debug)]
pub struct CleanFile {
    /// The event's own fd.
    pub file: EventFile,
    /// What it was before the scan, and not young then.
    pub stat: FileStat,
    /// The signature database that it was scanned with.
    pub generation: u64,
}

/// What the keeper is told.
#[derive(Debug)]
pub enum KeeperMessage {
    /// A clean file that had no writers when its scan began.
    Clean(CleanFile),
    /// Watch the stores on this filesystem; comes before any clean file of it.
    Watch(u32),
    /// Scope or mounts have changed.
    Policy(Arc<Policy>),
    /// A file in this directory was opened, out of scope.
    Outside(Vec<u8>),
    /// All marks must go, for the given reason.
    Flush(&'static str),
    /// End.
    Stop,
}

/// Whom the keeper speaks with.
pub struct KeeperLinks {
    /// Where the marks are.
    pub group: Arc<Group>,
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
    links: KeeperLinks,
    plane: Option<FilterPlane>,
    table: MarkTable<FileHandle>,
    policy: Arc<Policy>,
    outside: Option<OutsideMarks>,
    /// Losses that have been answered with a flush.
    lost: u64,
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
        Self {
            links,
            plane,
            table: MarkTable::new(MARKS as usize),
            policy,
            outside,
            lost: 0,
        }
    }

    /// Runs until told to stop.
    pub fn run(mut self) {
        let mut messages = Vec::new();
        loop {
            self.links.heartbeat.beat();
            self.take_records();
            self.take_moves();
            self.links.messages.drain(&mut messages);
            for message in messages.drain(..) {
                match message {
                    KeeperMessage::Clean(clean) => self.place(&clean),
                    KeeperMessage::Watch(dev) => self.watch(dev),
                    KeeperMessage::Policy(policy) => self.follow(policy),
                    KeeperMessage::Outside(directory) => self.learn(&directory),
                    KeeperMessage::Flush(why) => self.flush(why),
                    KeeperMessage::Stop => return,
                }
                // A mark that must go is more urgent than a new one.
                self.take_records();
                self.take_moves();
            }
            self.rest();
        }
    }

    /// A directory that was out of scope may be in it now.
    fn follow(&mut self, policy: Arc<Policy>) {
        let changed = *policy.scope != *self.policy.scope;
        self.policy = policy;
        if changed {
            self.flush("the scope has changed");
        }
    }

    fn learn(&mut self, directory: &[u8]) {
        if let Some(outside) = &self.outside
            && outside.learn(&self.links.group, &self.policy, directory)
        {
            self.links.counters.directories_ignored.up();
        }
    }

    fn take_moves(&mut self) {
        if self.outside.as_ref().is_some_and(OutsideMarks::moved) {
            self.flush("a directory out of scope was moved");
        }
    }

    fn watch(&mut self, dev: u32) {
        if let Some(plane) = &mut self.plane
            && let Err(error) = plane.watch(dev)
        {
            tracing::error!("onacc: eBPF cannot watch a further filesystem: {error}");
            crate::kernel::process::die("a filesystem's stores would not be seen");
        }
    }

    fn place(&mut self, clean: &CleanFile) {
        let counters = Arc::clone(&self.links.counters);
        if lock(&self.links.verdicts).generation() != clean.generation {
            return;
        }
        if let Some((key, oldest)) = self.table.make_room(clean.stat.key) {
            self.take_away(key, &oldest);
            counters.marks_dropped_room.up();
        }
        match self.try_place(clean) {
            Ok(true) => counters.marks_placed.up(),
            Ok(false) => counters.unmarked_changed.up(),
            Err(()) => counters.unmarked_refused.up(),
        }
    }

    /// Enters, compares, marks, compares, in this order: a change before the mark
    /// shows in a comparison, one after it drops the mark or is reported. Only a
    /// whole open, write and close between two neighbouring system calls is
    /// hidden, until the next one.
    fn try_place(&mut self, clean: &CleanFile) -> Result<bool, ()> {
        let file = clean.file.as_fd();
        let key = clean.stat.key;
        let handle = FileHandle::of(file).map_err(drop)?;
        let serial = self.table.new_serial();
        if let Some(plane) = &mut self.plane {
            let entry = CachedInode {
                changed: clean.stat.changed,
                serial,
                reported: 0,
            };
            plane.arm(key, entry).map_err(|error| match error {
                ArmError::Full => {}
                ArmError::Map(error) => tracing::debug!("onacc: no clean mark: {error}"),
            })?;
        }
        let entry = Remembered { serial, handle };
        // It may have waited here while it was written: such a mark would hide
        // the new bytes until the comparison below. (property.rs found that.)
        let written = self.links.writers.has_writers(file).unwrap_or(true);
        if written || !is_still(file, &clean.stat) {
            self.disarm(key);
            return Ok(false);
        }
        self.links.group.ignore_inode(file).map_err(|error| {
            self.disarm(key);
            tracing::debug!("onacc: no clean mark: {error}");
        })?;
        self.table.insert(key, entry);
        let unchanged = is_still(file, &clean.stat);
        if !unchanged && let Some(entry) = self.table.remove(key, serial) {
            match self.links.group.unignore_inode(file) {
                Ok(()) | Err(MarkError::Absent) => self.disarm(key),
                Err(_) => self.take_away(key, &entry),
            }
        }
        Ok(unchanged)
    }

    /// Takes the marks away whose files are being changed.
    fn take_records(&mut self) {
        let mut any = false;
        while let Some(record) = self.plane.as_mut().and_then(FilterPlane::next_record) {
            any = true;
            self.dirtied(record);
        }
        if any {
            self.answer_losses();
        }
    }

    fn dirtied(&mut self, record: DirtyRecord) {
        if let Some(entry) = self.table.remove(record.key, record.serial) {
            self.take_away(record.key, &entry);
            self.links.counters.marks_dropped_dirty.up();
        }
    }

    /// Removes a mark and forgets the inode. If the inode cannot be reached
    /// although it may live, all marks go: none must be left behind.
    fn take_away(&mut self, key: InodeKey, entry: &Remembered<FileHandle>) {
        let removed = self.remove_mark(key, entry);
        self.disarm(key);
        if let Err(error) = removed {
            self.flush(&format!("an inode could not be reached: {error}"));
        }
    }

    fn remove_mark(
        &self,
        key: InodeKey,
        entry: &Remembered<FileHandle>,
    ) -> Result<(), SyscallError> {
        let Some(directory) = open_directory(&self.policy.mounts, key.dev) else {
            return if self.policy.mounts.iter().any(|mount| mount.dev == key.dev) {
                Err(SyscallError {
                    call: "open of a mount point",
                    source: std::io::ErrorKind::NotFound.into(),
                })
            } else {
                // The filesystem is gone from our view; its inodes, if any
                // live on, are out of our scope.
                Ok(())
            };
        };
        let inode = match entry.handle.open(directory.as_fd()) {
            Ok(inode) => inode,
            // The inode is gone, and an evictable mark with it.
            Err(error) if error.errno() == libc::ESTALE => return Ok(()),
            Err(error) => return Err(error),
        };
        match self.links.group.unignore_inode(inode.as_fd()) {
            Ok(()) | Err(MarkError::Absent | MarkError::Refused) => Ok(()),
            Err(MarkError::Other(error)) => Err(error),
        }
    }

    fn disarm(&mut self, key: InodeKey) {
        if let Some(plane) = &mut self.plane
            && let Err(error) = plane.disarm(key)
        {
            // The entry is of no harm: at worst it causes a record that nobody wants.
            tracing::debug!("onacc: eBPF map: {error}");
        }
    }

    /// A full ring buffer has swallowed records: all marks go.
    fn answer_losses(&mut self) {
        let Some(plane) = &self.plane else { return };
        match plane.counters().get(Counter::Lost) {
            Ok(lost) if lost == self.lost => {}
            Ok(lost) => {
                self.lost = lost;
                self.flush("the eBPF ring buffer was full");
            }
            Err(_) => self.flush("the eBPF counters cannot be read"),
        }
    }

    /// Takes all clean marks, and the ignore marks of directories, away.
    fn flush(&mut self, why: &str) {
        let result = if self.outside.is_some() {
            // Under filesystem marks every inode mark is an ignore mark.
            self.links.group.flush_inode_marks()
        } else {
            self.flush_one_by_one()
        };
        if let Err(error) = result {
            // A mark that cannot be taken away could hide an infected file.
            crate::kernel::process::die(&format!("clean marks cannot be taken away: {error}"));
        }
        for key in self.table.take_all() {
            self.disarm(key.0);
        }
        self.links.counters.marks_flushed.up();
        tracing::debug!("onacc: all clean marks taken away: {why}");
    }

    /// Where directories carry marks of their own, those must stay.
    fn flush_one_by_one(&mut self) -> Result<(), SyscallError> {
        let entries = self.table.take_all();
        for (key, entry) in entries {
            self.disarm(key);
            self.links.heartbeat.beat();
            self.remove_mark(key, &entry)?;
        }
        Ok(())
    }

    fn rest(&mut self) {
        if !self.links.messages.begin_sleep() {
            return;
        }
        self.links.heartbeat.rest();
        let waker = self.links.messages.waker().clone();
        let wake = (waker.as_fd(), PollFlags::POLLIN);
        let readable = PollFlags::POLLIN;
        // Where there is nothing to poll, the waker stands in twice.
        let plane = self.plane.as_ref().map_or(waker.as_fd(), AsFd::as_fd);
        let moves = self
            .outside
            .as_ref()
            .map_or(waker.as_fd(), OutsideMarks::as_fd);
        let notified =
            sleep([wake, (plane, readable), (moves, readable)], None).map(|[woken, ..]| woken);
        self.links.messages.end_sleep(notified.unwrap_or(true));
    }
}

fn is_still(file: BorrowedFd<'_>, scanned: &FileStat) -> bool {
    file::stat(file).is_ok_and(|now| stamps::same_version(&now, scanned))
}
