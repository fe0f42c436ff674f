//! The protocol of clean marks: how one is placed, and how it goes.
//!
//! Owns the table of marks. Invariant 6 lives here: a mark is kept only if the
//! file is, after the mark was placed, what it was before the scan. Whatever it
//! asks of the kernel goes through [`MarkWorld`], so that `models/` can run this
//! code against a modelled kernel, in every order of steps. Must not: answer
//! openers, write logs before a mark is gone, or know who calls it.

use std::sync::Arc;

use onacc_common::{CachedInode, DirtyRecord, InodeKey};

use crate::kernel::SyscallError;
use crate::kernel::file::FileStat;
use crate::observe::counters::Counters;
use crate::policy::{MarkTable, Remembered, stamps};

/// What the protocol needs of kernel, filter plane and verdict table. Each method
/// is one step: others may do anything between two of them.
pub trait MarkWorld {
    /// A file that was found clean, held open.
    type File;
    /// How to come back to an inode without holding it.
    type Handle: Copy;

    /// Number of the signature database in force.
    fn generation(&self) -> u64;
    /// How to come back to this file; `None`: it gets no mark.
    fn handle(&self, file: &Self::File) -> Option<Self::Handle>;
    /// The file now; `None`: the kernel does not tell.
    fn stat(&self, file: &Self::File) -> Option<FileStat>;
    /// Whether anybody has it open for writing; true if that cannot be told.
    fn has_writers(&self, file: &Self::File) -> bool;
    /// Has stores into this inode reported from now on. False: it gets no mark.
    fn arm(&mut self, key: InodeKey, entry: CachedInode) -> bool;
    /// Has them reported no longer. At worst one comes that nobody wants.
    fn disarm(&mut self, key: InodeKey);
    /// The next report.
    fn next_record(&mut self) -> Option<DirtyRecord>;
    /// How many reports were lost so far; `None`: that cannot be told.
    fn lost(&self) -> Option<u64>;
    /// Has the kernel keep opens of this file to itself. False: it refuses.
    fn ignore(&self, file: &Self::File) -> bool;
    /// Undoes that, by the file. False: it could not.
    fn unignore(&self, file: &Self::File) -> bool;
    /// Undoes that, by the handle, for a file that may be infected: no open may slip
    /// by meanwhile. An inode that is gone is no error.
    ///
    /// # Errors
    /// The inode could not be reached although it may live.
    fn unignore_by_handle(
        &mut self,
        key: InodeKey,
        handle: &Self::Handle,
    ) -> Result<(), SyscallError>;
    /// Undoes that, by the handle, and leaves nothing behind: an open in this very
    /// moment may slip by. For all marks at once.
    ///
    /// # Errors
    /// As [`Self::unignore_by_handle`].
    fn forget(&mut self, key: InodeKey, handle: &Self::Handle) -> Result<(), SyscallError> {
        self.unignore_by_handle(key, handle)
    }
    /// Undoes all at once. `Ok(false)`: that cannot be done here, they are to be
    /// undone one by one.
    ///
    /// # Errors
    /// Marks may be left.
    fn unignore_all(&self) -> Result<bool, SyscallError>;
    /// A mark that cannot be taken away could hide an infected file: the process
    /// ends, and all marks with it.
    fn give_up(&self, why: &SyscallError);
}

/// A file that was found clean.
#[derive(Debug)]
pub struct Clean<F> {
    /// The event's own fd.
    pub file: F,
    /// What it was before the scan, and not young then.
    pub stat: FileStat,
    /// The signature database that it was scanned with.
    pub generation: u64,
}

/// The marks that stand, as far as is known.
pub struct CleanMarks<W: MarkWorld> {
    world: W,
    table: MarkTable<W::Handle>,
    counters: Arc<Counters>,
    /// Losses that have been answered with a flush.
    lost: u64,
}

impl<W: MarkWorld> CleanMarks<W> {
    /// No marks yet, and never more than `capacity`.
    pub fn new(world: W, capacity: usize, counters: Arc<Counters>) -> Self {
        Self {
            world,
            table: MarkTable::new(capacity),
            counters,
            lost: 0,
        }
    }

    /// What it speaks with.
    pub fn world(&self) -> &W {
        &self.world
    }

    /// What it speaks with.
    pub fn world_mut(&mut self) -> &mut W {
        &mut self.world
    }

    /// Places a mark, if the file is still what was scanned.
    pub fn place(&mut self, clean: &Clean<W::File>) {
        if self.world.generation() != clean.generation {
            return;
        }
        if let Some((key, oldest)) = self.table.make_room(clean.stat.key) {
            // Its file may be changing now, and is then opened. (`models/` found that.)
            self.take_away(key, &oldest);
            self.counters.marks_dropped_room.up();
        }
        match self.try_place(clean) {
            Some(true) => self.counters.marks_placed.up(),
            Some(false) => self.counters.unmarked_changed.up(),
            None => self.counters.unmarked_refused.up(),
        }
    }

    /// Enters, compares, marks, compares, in this order: a change before the mark
    /// shows in a comparison, one after it drops the mark or is reported. Only a
    /// whole open, write and close between two neighbouring system calls is
    /// hidden, until the next one. `None`: no mark is to be had.
    fn try_place(&mut self, clean: &Clean<W::File>) -> Option<bool> {
        let key = clean.stat.key;
        let handle = self.world.handle(&clean.file)?;
        let serial = self.table.new_serial();
        let entry = CachedInode {
            changed: clean.stat.changed,
            serial,
            reported: 0,
        };
        if !self.world.arm(key, entry) {
            return None;
        }
        // It may have waited here while it was written: such a mark would hide
        // the new bytes until the comparison below. (property.rs found that.)
        if self.world.has_writers(&clean.file) || !self.is_still(clean) {
            self.withdraw(key);
            return Some(false);
        }
        if !self.world.ignore(&clean.file) {
            self.withdraw(key);
            return None;
        }
        self.table.insert(key, Remembered { serial, handle });
        let unchanged = self.is_still(clean);
        if !unchanged && let Some(entry) = self.table.remove(key, serial) {
            if self.world.unignore(&clean.file) {
                self.world.disarm(key);
            } else {
                self.take_away(key, &entry);
            }
        }
        Some(unchanged)
    }

    /// No mark is placed. One that stands from an earlier placing has lost its
    /// entry to this one, so that no store would be reported: it goes as well.
    /// (`models/` found that.)
    fn withdraw(&mut self, key: InodeKey) {
        match self.table.take(key) {
            Some(earlier) => self.take_away(key, &earlier),
            None => self.world.disarm(key),
        }
    }

    fn is_still(&self, clean: &Clean<W::File>) -> bool {
        let now = self.world.stat(&clean.file);
        now.is_some_and(|now| stamps::same_version(&now, &clean.stat))
    }

    /// Takes the marks away whose files are being changed.
    pub fn take_records(&mut self) {
        let mut any = false;
        while let Some(record) = self.world.next_record() {
            any = true;
            if let Some(entry) = self.table.remove(record.key, record.serial) {
                self.take_away(record.key, &entry);
                self.counters.marks_dropped_dirty.up();
            }
        }
        if any {
            self.answer_losses();
        }
    }

    /// A full ring buffer has swallowed records: all marks go.
    fn answer_losses(&mut self) {
        match self.world.lost() {
            Some(lost) if lost == self.lost => {}
            Some(lost) => {
                self.lost = lost;
                self.flush("the eBPF ring buffer was full");
            }
            None => self.flush("the eBPF counters cannot be read"),
        }
    }

    /// Removes a mark and forgets the inode. If the inode cannot be reached
    /// although it may live, all marks go: none must be left behind.
    fn take_away(&mut self, key: InodeKey, entry: &Remembered<W::Handle>) {
        let removed = self.world.unignore_by_handle(key, &entry.handle);
        self.taken_away(key, removed);
    }

    fn taken_away(&mut self, key: InodeKey, removed: Result<(), SyscallError>) {
        self.world.disarm(key);
        if let Err(error) = removed {
            self.flush(&format!("an inode could not be reached: {error}"));
        }
    }

    /// Takes all clean marks, and the ignore marks of directories, away.
    pub fn flush(&mut self, why: &str) {
        let entries = self.table.take_all();
        match self.world.unignore_all() {
            Ok(true) => {
                for (key, _) in entries {
                    self.world.disarm(key);
                }
            }
            Ok(false) => {
                for (key, entry) in entries {
                    self.world.disarm(key);
                    let removed = self.world.forget(key, &entry.handle);
                    if let Err(error) = removed {
                        self.world.give_up(&error);
                    }
                }
            }
            Err(error) => self.world.give_up(&error),
        }
        self.counters.marks_flushed.up();
        tracing::debug!("onacc: all clean marks taken away: {why}");
    }
}
