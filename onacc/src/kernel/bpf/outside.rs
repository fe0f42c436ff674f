//! Directories out of scope, for the programs that tell opens: what lies
//! directly in one is dropped in the kernel.
//!
//! Must not: know the scope (`coverage::outside` does).

use aya::Pod;
use aya::maps::{HashMap, MapData, MapError};
use onacc_common::DirKey;

/// Entries of old epochs are swept out when there are as many as this.
const SWEEP_AT: usize = 60_000;

#[repr(transparent)]
#[derive(Clone, Copy)]
pub(super) struct Key(pub DirKey);
// SAFETY: four u32 and a u64, repr(C), no padding, any bits are valid.
unsafe impl Pod for Key {}

/// The map.
pub(super) struct Outside {
    map: HashMap<MapData, Key, u64>,
    entries: usize,
}

impl Outside {
    pub(super) fn new(map: HashMap<MapData, Key, u64>) -> Self {
        Self { map, entries: 0 }
    }

    /// Enters a directory.
    pub(super) fn enter(&mut self, directory: DirKey, epoch: u64) -> Result<(), MapError> {
        if self.entries >= SWEEP_AT {
            self.sweep(epoch);
        }
        self.map.insert(Key(directory), epoch, 0)?;
        self.entries += 1;
        Ok(())
    }

    /// Removes what does not hold any more; if all holds, removes all: what is
    /// still opened is learned again.
    fn sweep(&mut self, epoch: u64) {
        let keys: Vec<Key> = self.map.keys().filter_map(Result::ok).collect();
        let (old, holding): (Vec<Key>, Vec<Key>) = keys
            .into_iter()
            .partition(|key| self.map.get(key, 0).is_ok_and(|entry| entry != epoch));
        let (gone, left) = if old.is_empty() {
            (holding, 0)
        } else {
            let left = holding.len();
            (old, left)
        };
        for key in gone {
            // Gone already is as good.
            let _absent_is_fine = self.map.remove(&key);
        }
        self.entries = left;
    }
}
