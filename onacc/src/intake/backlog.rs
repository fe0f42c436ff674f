//! Opens that were told and that nobody has looked at yet.
//!
//! Between the thread that empties the kernel's tables (`drain`) and the one that
//! looks (`feed`). Records are kept as bytes, as short as they are, up to a share of
//! the machine's memory; what comes beyond is kept by inode alone, once each. Must
//! not: look at a file, or lose what it has taken. Pure but for a lock; tested here.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use onacc_common::DirKey;
use onacc_common::opens::OpenRecord;

use crate::kernel::SyscallError;
use crate::kernel::bpf::Missed;
use crate::kernel::wake::Wake;

/// A chunk is handed over when it holds so many bytes, or nothing more is there.
const CHUNK: usize = 64 << 10;
/// What one file in the table costs, about.
const MISSED_BYTES: usize = 64;

/// What both threads share.
#[derive(Debug)]
pub struct Backlog {
    /// Bytes of records that may wait.
    limit: usize,
    used: AtomicUsize,
    missed: Mutex<HashMap<DirKey, u32>>,
    stopped: AtomicBool,
    /// Wakes the thread that empties the kernel's tables.
    pub wake: Wake,
}

impl Backlog {
    /// An empty one, for records of so many bytes in all, and files for as many.
    ///
    /// # Errors
    /// No fd left.
    pub fn new(limit: usize) -> Result<Arc<Self>, SyscallError> {
        Ok(Arc::new(Self {
            limit,
            used: AtomicUsize::new(0),
            missed: Mutex::new(HashMap::new()),
            stopped: AtomicBool::new(false),
            wake: Wake::new()?,
        }))
    }

    /// Whether a further chunk may be filled.
    pub fn has_room(&self) -> bool {
        self.used.load(Ordering::Acquire) < self.limit
    }

    /// Whether further files may be noted.
    pub fn has_room_for_missed(&self) -> bool {
        self.lock().len() < self.limit / MISSED_BYTES
    }

    /// Notes files by inode. True: there were none before.
    pub fn note_missed(&self, files: impl IntoIterator<Item = Missed>) -> bool {
        let mut table = self.lock();
        let none = table.is_empty();
        for Missed { file, euid } in files {
            if let Entry::Vacant(entry) = table.entry(file) {
                entry.insert(euid);
            }
        }
        none && !table.is_empty()
    }

    /// Takes all files that were noted.
    pub fn take_missed(&self) -> Vec<Missed> {
        let table = std::mem::take(&mut *self.lock());
        let files = table.into_iter();
        files.map(|(file, euid)| Missed { file, euid }).collect()
    }

    /// Nothing more is to be taken out of the kernel.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        self.wake.notify();
    }

    /// Whether that is so.
    pub fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<DirKey, u32>> {
        self.missed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Records, one after the other. Its room is given back when it is dropped.
#[derive(Debug)]
pub struct Chunk {
    bytes: Vec<u8>,
    at: usize,
    of: Arc<Backlog>,
    /// What it has taken of the room.
    taken: usize,
}

impl Chunk {
    /// Without a record.
    pub fn new(of: &Arc<Backlog>) -> Self {
        Self {
            bytes: Vec::new(),
            at: 0,
            of: Arc::clone(of),
            taken: 0,
        }
    }

    /// Takes in a record, without the room behind its names.
    pub fn push(&mut self, record: &[u8]) {
        let Some(size) = OpenRecord::from_bytes(record).map(|record| record.size()) else {
            // The object was built with this agent: what it writes is understood.
            return;
        };
        self.bytes.extend_from_slice(&record[..size]);
        let used = self.bytes.capacity();
        self.of.used.fetch_add(used - self.taken, Ordering::AcqRel);
        self.taken = used;
    }

    /// Whether it is to be handed over.
    pub fn is_full(&self) -> bool {
        self.bytes.len() >= CHUNK
    }

    /// Whether nothing is in it (any more).
    pub fn is_empty(&self) -> bool {
        self.at >= self.bytes.len()
    }

    /// The next record.
    pub fn next(&mut self) -> Option<OpenRecord<'_>> {
        let record = OpenRecord::from_bytes(&self.bytes[self.at..])?;
        self.at += record.size();
        Some(record)
    }

    /// How many records are left.
    pub fn count(mut self) -> usize {
        let mut count = 0;
        while self.next().is_some() {
            count += 1;
        }
        count
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        self.of.used.fetch_sub(self.taken, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use onacc_common::InodeKey;

    /// A record as the program writes it, with room behind its names.
    fn record(names: &[u8], ino: u64) -> Vec<u8> {
        let mut bytes = vec![0; onacc_common::opens::OpenHeader::SIZE];
        bytes[..4].copy_from_slice(&1u32.to_ne_bytes());
        let len = u32::try_from(names.len()).unwrap();
        bytes[4..8].copy_from_slice(&len.to_ne_bytes());
        bytes[16..24].copy_from_slice(&ino.to_ne_bytes());
        bytes.extend(names);
        bytes.extend([7; 300]);
        bytes
    }

    fn missed(ino: u64, euid: u32) -> Missed {
        Missed {
            file: DirKey {
                key: InodeKey::new(8, 1, ino),
                generation: 1,
                zero: 0,
            },
            euid,
        }
    }

    #[test]
    fn records_come_out_as_they_went_in_and_give_their_room_back() {
        let backlog = Backlog::new(1000).unwrap();
        let mut chunk = Chunk::new(&backlog);
        assert!(chunk.is_empty() && backlog.has_room());
        for ino in 0..20 {
            chunk.push(&record(b"leaf\0dir\0", ino));
        }
        chunk.push(b"none");
        assert!(!backlog.has_room() && !chunk.is_full());
        for ino in 0..15 {
            let record = chunk.next().unwrap();
            assert_eq!(record.header.key.ino, ino);
            assert_eq!(record.names().count(), 2);
        }
        assert_eq!(chunk.count(), 5);
        assert!(backlog.has_room());
        assert_eq!(backlog.used.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_chunk_is_full_at_some_size() {
        let backlog = Backlog::new(usize::MAX).unwrap();
        let mut chunk = Chunk::new(&backlog);
        let mut pushed = 0;
        while !chunk.is_full() {
            chunk.push(&record(b"leaf\0", 1));
            pushed += 1;
        }
        assert_eq!(chunk.count(), pushed);
    }

    #[test]
    fn a_file_is_noted_once() {
        let backlog = Backlog::new(10 * MISSED_BYTES).unwrap();
        assert!(!backlog.note_missed([]));
        assert!(backlog.note_missed([missed(1, 5), missed(2, 6), missed(1, 7)]));
        assert!(!backlog.note_missed([missed(3, 5)]));
        let mut taken = backlog.take_missed();
        taken.sort_by_key(|one| one.file.key);
        assert_eq!(taken, [missed(1, 5), missed(2, 6), missed(3, 5)]);
        assert_eq!(backlog.take_missed(), []);
        backlog.note_missed((0..10).map(|ino| missed(ino, 0)));
        assert!(!backlog.has_room_for_missed());
    }
}
