//! The keeper of clean marks: places them after a clean verdict, takes them
//! away when a file is being changed.
//!
//! One thread does both, so that placing and taking away never race. Owns the
//! filter plane and the table of marks. Invariant 6 lives here: a mark is kept
//! only if the file is, after the mark was placed, what it was before the scan.
//! Must not: answer openers or write logs before a mark is gone.

use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::poll::PollFlags;
use onacc_common::{CachedInode, ChangeTime, Counter, DirtyRecord, InodeKey};

use super::filesystems::open_directory;
use crate::kernel::bpf::{ArmError, FilterPlane};
use crate::kernel::fanotify::{EventFile, Group, MarkError};
use crate::kernel::file::{self, FileStat};
use crate::kernel::handle::FileHandle;
use crate::kernel::mounts::MountTable;
use crate::kernel::wake::{Mailbox, sleep};
use crate::observe::counters::Counters;
use crate::observe::heartbeat::Heartbeat;
use crate::policy::{MarkTable, Remembered};

/// A file that was found clean.
#[derive(Debug)]
pub struct CleanFile {
    /// The event's own fd.
    pub file: EventFile,
    /// What it was before the scan.
    pub stat: FileStat,
}

/// What the keeper is told.
#[derive(Debug)]
pub enum KeeperMessage {
    /// A clean file that had no writers when its scan began.
    Clean(CleanFile),
    /// Watch the stores on this filesystem; comes before any clean file of it.
    Watch(u32),
    /// The mount table has changed.
    Mounts(Arc<MountTable>),
    /// End.
    Stop,
}

/// Whom the keeper speaks with.
pub struct KeeperLinks {
    /// Where the marks are.
    pub group: Arc<Group>,
    /// Where messages come from.
    pub messages: Mailbox<KeeperMessage>,
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
    mounts: Arc<MountTable>,
    /// Losses that have been answered with a flush.
    lost: u64,
}

impl Keeper {
    /// A keeper that has not begun; `capacity`: marks at a time.
    pub fn new(
        links: KeeperLinks,
        plane: Option<FilterPlane>,
        capacity: usize,
        mounts: Arc<MountTable>,
    ) -> Self {
        Self {
            links,
            plane,
            table: MarkTable::new(capacity),
            mounts,
            lost: 0,
        }
    }

    /// Runs until told to stop.
    pub fn run(mut self) {
        let mut messages = Vec::new();
        loop {
            self.links.heartbeat.beat();
            self.take_records();
            self.links.messages.drain(&mut messages);
            for message in messages.drain(..) {
                match message {
                    KeeperMessage::Clean(clean) => self.place(&clean),
                    KeeperMessage::Watch(dev) => self.watch(dev),
                    KeeperMessage::Mounts(mounts) => self.mounts = mounts,
                    KeeperMessage::Stop => return,
                }
                // Records first: a mark that must go is more urgent than a new one.
                self.take_records();
            }
            self.rest();
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
        if is_young(clean.stat.changed, SystemTime::now()) {
            counters.unmarked_young.up();
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

    /// Enters, marks, compares, in this order: a change before the mark shows in
    /// the comparison, one after it drops the mark or is reported.
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
        self.links.group.ignore_inode(file).map_err(|error| {
            self.disarm(key);
            tracing::debug!("onacc: no clean mark: {error}");
        })?;
        self.table.insert(key, entry);
        let unchanged = file::stat(file).is_ok_and(|now| same_bytes(&now, &clean.stat));
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
        let gone = open_directory(&self.mounts, key.dev).is_some_and(|directory| {
            match entry.handle.open(directory.as_fd()) {
                Ok(inode) => matches!(
                    self.links.group.unignore_inode(inode.as_fd()),
                    Ok(()) | Err(MarkError::Absent)
                ),
                // The inode is gone, and an evictable mark with it.
                Err(error) => error.errno() == libc::ESTALE,
            }
        });
        self.disarm(key);
        if !gone {
            self.flush("an inode could not be reached");
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

    fn flush(&mut self, why: &str) {
        if let Err(error) = self.links.group.flush_inode_marks() {
            // A mark that cannot be taken away could hide an infected file.
            crate::kernel::process::die(&format!("clean marks cannot be taken away: {error}"));
        }
        for key in self.table.take_all() {
            self.disarm(key);
        }
        self.links.counters.marks_flushed.up();
        tracing::debug!("onacc: all clean marks taken away: {why}");
    }

    fn rest(&mut self) {
        if !self.links.messages.begin_sleep() {
            return;
        }
        self.links.heartbeat.rest();
        let waker = self.links.messages.waker().clone();
        let wake = (waker.as_fd(), PollFlags::POLLIN);
        let notified = match &self.plane {
            Some(plane) => {
                sleep([wake, (plane.as_fd(), PollFlags::POLLIN)], None).map(|[woken, _]| woken)
            }
            None => sleep([wake], None).map(|[woken]| woken),
        };
        self.links.messages.end_sleep(notified.unwrap_or(true));
    }
}

/// Whether a file still holds the bytes that were scanned. ctime cannot be set
/// by any call; the others cost nothing more.
fn same_bytes(now: &FileStat, scanned: &FileStat) -> bool {
    now.key == scanned.key
        && now.changed == scanned.changed
        && now.modified == scanned.modified
        && now.size == scanned.size
}

/// Whether a change right now could leave the ctime as it is: stamps have the
/// granularity of the clock tick (10 ms at most), of whole seconds on inodes
/// without room for more.
fn is_young(changed: ChangeTime, now: SystemTime) -> bool {
    let granularity = if changed.nsec == 0 {
        Duration::from_millis(2100)
    } else {
        Duration::from_millis(30)
    };
    let (Ok(now), Ok(sec)) = (now.duration_since(UNIX_EPOCH), u64::try_from(changed.sec)) else {
        return true;
    };
    let changed = Duration::new(sec, changed.nsec);
    // A stamp of the future is young: the clock was set back.
    now.checked_sub(changed)
        .is_none_or(|age| age <= granularity)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn young_means_that_a_change_could_go_unseen() {
        let now = UNIX_EPOCH + Duration::from_secs(1000);
        let at = |sec, nsec| ChangeTime::new(sec, nsec);
        assert!(is_young(at(999, 990_000_000), now));
        assert!(!is_young(at(999, 900_000_000), now));
        assert!(is_young(at(998, 0), now), "whole seconds");
        assert!(!is_young(at(997, 0), now));
        assert!(is_young(at(1001, 5), now), "the future");
        assert!(is_young(at(-5, 5), now), "before the epoch");
    }
}
