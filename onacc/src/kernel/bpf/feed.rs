//! Records about opens, as they come out of the kernel.
//!
//! Must not: know what becomes of them (`intake::feed` does). The parsing is
//! `onacc_common::opens`, fuzzed.

use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};
use std::sync::Arc;

use aya::maps::{HashMap, MapData, RingBuf};
use onacc_common::{Counter, DirKey};

use super::FilterCounters;
use super::denied::SignatureNames;
use super::outside::Key;

/// Missed files that are taken out at a time.
const BATCH: usize = 1024;

/// The records.
pub struct OpenFeed {
    ring: RingBuf<MapData>,
    missed: HashMap<MapData, Key, u32>,
    counters: Arc<FilterCounters>,
    names: SignatureNames,
    /// Misses that have been looked at.
    seen_missed: u64,
    seen_lost: u64,
}

/// A file whose open found no room in the ring buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Missed {
    /// Device, inode and generation.
    pub file: DirKey,
    /// Effective uid of one of those who opened it.
    pub euid: u32,
}

impl OpenFeed {
    pub(super) fn new(
        ring: RingBuf<MapData>,
        missed: HashMap<MapData, Key, u32>,
        (counters, names): (Arc<FilterCounters>, SignatureNames),
    ) -> Self {
        Self {
            ring,
            missed,
            counters,
            names,
            seen_missed: 0,
            seen_lost: 0,
        }
    }

    /// Hands the next record to `each`, as bytes. False: no more for now.
    pub fn next(&mut self, each: impl FnOnce(&[u8])) -> bool {
        match self.ring.next() {
            Some(record) => {
                each(&record);
                true
            }
            None => false,
        }
    }

    /// Files that found no room since the last call, up to a batch; empty: none
    /// are left.
    pub fn take_missed(&mut self) -> Vec<Missed> {
        let Ok(missed) = self.counters.get(Counter::OpenMissed) else {
            return Vec::new();
        };
        if missed == self.seen_missed {
            return Vec::new();
        }
        let keys: Vec<Key> = self
            .missed
            .keys()
            .filter_map(Result::ok)
            .take(BATCH)
            .collect();
        if keys.len() < BATCH {
            self.seen_missed = missed;
        }
        keys.into_iter()
            .filter_map(|key| {
                let euid = self.missed.get(&key, 0).ok()?;
                self.missed.remove(&key).ok()?;
                Some(Missed { file: key.0, euid })
            })
            .collect()
    }

    /// Opens, since the last call, that nobody will look at: both the ring
    /// buffer and the table of missed files were full.
    pub fn take_lost(&mut self) -> u64 {
        let lost = self.counters.get(Counter::OpenLost).unwrap_or(0);
        let new = lost.saturating_sub(self.seen_lost);
        self.seen_lost = lost;
        new
    }

    /// Names of the signatures in records about refusals.
    pub fn signatures(&self) -> &SignatureNames {
        &self.names
    }
}

impl AsFd for OpenFeed {
    /// Readable when records wait.
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the ring buffer owns this fd and lives as long as `self`.
        unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) }
    }
}
