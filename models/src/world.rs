//! A modelled kernel for `coverage::clean_marks`: one filesystem whose stores are
//! seen (ext4), its inodes, fanotify's ignore marks and the filter plane.
//!
//! Every call is one step under one lock, so that loom tries all orders of the
//! keeper's steps and the writers'. What is modelled is what facts/kernel.md
//! says: a write clears the ignore mark when its bytes are in place; a store
//! through a mapping clears nothing; both change the ctime first, and the hook
//! runs then, which decides by the very function that the eBPF program calls.

use std::collections::{HashMap, VecDeque};
use std::sync::PoisonError;

use loom::sync::{Arc, Mutex, MutexGuard};
use onacc::coverage::clean_marks::MarkWorld;
use onacc::kernel::SyscallError;
use onacc::kernel::file::FileStat;
use onacc_common::{CachedInode, ChangeTime, Counter, DirtyRecord, InodeKey, judge_dirtied};

/// An inode of the model.
#[derive(Clone, Copy, Debug, Default)]
struct Inode {
    /// Version of its bytes; what was scanned is 0.
    bytes: u32,
    changed: u32,
    writers: u32,
    ignored: bool,
    /// Its mark is being destroyed.
    dying: bool,
}

#[derive(Debug)]
struct State {
    inodes: HashMap<u64, Inode>,
    armed: HashMap<u64, CachedInode>,
    ring: VecDeque<DirtyRecord>,
    ring_size: usize,
    lost: u64,
    generation: u64,
    /// A mark that is taken away stays, and does nothing (`Group::unignore_inode`).
    anchors: bool,
    slips: u32,
}

/// The kernel. Clones are the same one.
#[derive(Clone, Debug)]
pub struct Kernel(Arc<Mutex<State>>);

impl Kernel {
    /// These inodes, and a ring buffer for so many records.
    pub fn new(inodes: &[u64], ring_size: usize) -> Self {
        Self(Arc::new(Mutex::new(State {
            inodes: inodes.iter().map(|ino| (*ino, Inode::default())).collect(),
            armed: HashMap::new(),
            ring: VecDeque::new(),
            ring_size,
            lost: 0,
            generation: 0,
            anchors: true,
            slips: 0,
        })))
    }

    /// A mark that is taken away is destroyed, as it was before there were anchors.
    #[must_use]
    pub fn without_anchors(self) -> Self {
        self.lock().anchors = false;
        self
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `open(2)` for writing.
    pub fn open_for_writing(&self, ino: u64) {
        self.lock().inode(ino).writers += 1;
    }

    /// The last close, or unmap, of one writer.
    pub fn close(&self, ino: u64) {
        self.lock().inode(ino).writers -= 1;
    }

    /// `write(2)`: time and hook, then the bytes, then the end of the mark.
    pub fn write(&self, ino: u64) {
        self.lock().dirty(ino);
        self.lock().inode(ino).bytes += 1;
        self.lock().inode(ino).ignored = false;
    }

    /// The first store into a page of a shared mapping: time and hook, then the
    /// bytes; fanotify sees nothing.
    pub fn store(&self, ino: u64) {
        self.lock().dirty(ino);
        self.lock().inode(ino).bytes += 1;
    }

    /// `open(2)` for reading, once what was written is in place: it is an event unless
    /// a mark keeps it in the kernel, or is being destroyed at this very moment.
    pub fn open(&self, ino: u64) {
        let mut state = self.lock();
        let inode = *state.inode(ino);
        state.slips += u32::from(inode.bytes != 0 && (inode.ignored || inode.dying));
    }

    /// Opens of bytes that were not scanned, without an event.
    pub fn slips(&self) -> u32 {
        self.lock().slips
    }

    /// `FAN_MARK_REMOVE` of all that a mark has: it is dead before it is gone.
    fn destroy(&self, ino: u64) {
        self.lock().inode(ino).ignored = false;
        self.lock().inode(ino).dying = true;
        self.lock().inode(ino).dying = false;
    }

    /// Another signature database; the service sends the keeper a flush after it.
    pub fn new_generation(&self) {
        self.lock().generation += 1;
    }

    /// What `stat(2)` says of a file as it was scanned.
    pub fn scanned(&self, ino: u64) -> FileStat {
        self.lock().stat(ino)
    }

    /// Whether opens stay in the kernel although the bytes are not those that
    /// were scanned: what must not be.
    pub fn hides(&self, ino: u64) -> bool {
        let mut state = self.lock();
        let inode = *state.inode(ino);
        inode.ignored && inode.bytes != 0
    }

    /// Whether opens stay in the kernel.
    pub fn ignores(&self, ino: u64) -> bool {
        self.lock().inode(ino).ignored
    }
}

impl State {
    fn inode(&mut self, ino: u64) -> &mut Inode {
        self.inodes.entry(ino).or_default()
    }

    fn stat(&mut self, ino: u64) -> FileStat {
        let changed = self.inode(ino).changed;
        FileStat {
            key: key(ino),
            size: 1,
            modified: 0,
            changed: time(changed),
            mount: 1,
            regular: true,
            links: 1,
        }
    }

    /// The ctime changes and the hook runs.
    fn dirty(&mut self, ino: u64) {
        let inode = self.inode(ino);
        inode.changed += 1;
        let now = time(inode.changed);
        let Some(entry) = self.armed.get_mut(&ino) else {
            return;
        };
        if judge_dirtied(entry, now) != Counter::Reported {
            return;
        }
        if self.ring.len() >= self.ring_size {
            self.lost += 1;
            return;
        }
        entry.reported = 1;
        self.ring.push_back(DirtyRecord {
            key: key(ino),
            serial: entry.serial,
            zero: 0,
        });
    }
}

fn key(ino: u64) -> InodeKey {
    InodeKey::new(8, 1, ino)
}

fn time(changed: u32) -> ChangeTime {
    ChangeTime::new(1000, changed)
}

impl MarkWorld for Kernel {
    type File = u64;
    type Handle = u64;

    fn generation(&self) -> u64 {
        self.lock().generation
    }

    fn handle(&self, file: &u64) -> Option<u64> {
        Some(*file)
    }

    fn stat(&self, file: &u64) -> Option<FileStat> {
        Some(self.lock().stat(*file))
    }

    fn has_writers(&self, file: &u64) -> bool {
        self.lock().inode(*file).writers > 0
    }

    fn arm(&mut self, key: InodeKey, entry: CachedInode) -> bool {
        self.lock().armed.insert(key.ino, entry);
        true
    }

    fn disarm(&mut self, key: InodeKey) {
        self.lock().armed.remove(&key.ino);
    }

    fn next_record(&mut self) -> Option<DirtyRecord> {
        self.lock().ring.pop_front()
    }

    fn lost(&self) -> Option<u64> {
        Some(self.lock().lost)
    }

    /// Adding one to an inode that is open for writing succeeds and adds nothing.
    fn ignore(&self, file: &u64) -> bool {
        let mut state = self.lock();
        let inode = state.inode(*file);
        inode.ignored |= inode.writers == 0;
        true
    }

    fn unignore(&self, file: &u64) -> bool {
        self.lock().inode(*file).ignored = false;
        true
    }

    fn unignore_by_handle(&mut self, key: InodeKey, _: &u64) -> Result<(), SyscallError> {
        if self.lock().anchors {
            self.lock().inode(key.ino).ignored = false;
        } else {
            self.destroy(key.ino);
        }
        Ok(())
    }

    fn forget(&mut self, key: InodeKey, _: &u64) -> Result<(), SyscallError> {
        self.destroy(key.ino);
        Ok(())
    }

    fn unignore_all(&self) -> Result<bool, SyscallError> {
        for inode in self.lock().inodes.values_mut() {
            inode.ignored = false;
        }
        Ok(true)
    }

    fn give_up(&self, why: &SyscallError) {
        panic!("{why}");
    }
}
