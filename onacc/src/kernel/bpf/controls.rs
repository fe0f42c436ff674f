//! What the programs are told before they can filter: watched filesystems,
//! excluded uids, exempt processes, the size limit.
//!
//! Shared by the threads that know these things. Must not: decide them.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use aya::maps::{Array, MapData, MapError};
use onacc_common::config;
use onacc_common::filter::Filesystem;

use super::fronted::Fronted;

/// Something could not be entered.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// There is no room.
    #[error("the table is full")]
    Full,
    /// The kernel refused.
    #[error("eBPF map: {0}")]
    Map(#[source] MapError),
}

impl From<MapError> for TableError {
    fn from(error: MapError) -> Self {
        match &error {
            MapError::SyscallError(failed)
                if failed.io_error.raw_os_error() == Some(libc::E2BIG) =>
            {
                Self::Full
            }
            _ => Self::Map(error),
        }
    }
}

/// The maps behind the filter's settings; clones share them.
#[derive(Clone)]
pub struct Controls(Arc<Mutex<Maps>>);

struct Maps {
    watched: Fronted<u32>,
    excluded: Fronted<u8>,
    exempt: Fronted<u8>,
    config: Array<MapData, u64>,
}

impl Controls {
    pub(super) fn new(
        watched: Fronted<u32>,
        excluded: Fronted<u8>,
        exempt: Fronted<u8>,
        config: Array<MapData, u64>,
    ) -> Self {
        Self(Arc::new(Mutex::new(Maps {
            watched,
            excluded,
            exempt,
            config,
        })))
    }

    /// Stores (and opens) on this filesystem are seen from now on. It is not
    /// forgotten when it is unmounted here: it may live on in another namespace,
    /// and its number goes to a successor.
    ///
    /// # Errors
    /// The map is full, or the kernel refused: no file there may carry a clean
    /// mark, and opens there are not told.
    pub fn watch(&self, dev: u32, what: Filesystem) -> Result<(), TableError> {
        self.lock()
            .watched
            .insert(dev, what.0)
            .map_err(TableError::from)
    }

    /// Opens by these effective uids, and by no others, are dropped from now on.
    /// Those that are no more excluded go first.
    ///
    /// # Errors
    /// The map is full, or the kernel refused: uids that are not in it are not
    /// dropped in the kernel, but by the agent.
    pub fn exclude(&self, uids: &[u32]) -> Result<(), TableError> {
        let mut maps = self.lock();
        let wanted: HashSet<u32> = uids.iter().copied().collect();
        let present: HashSet<u32> = maps.excluded.keys().collect();
        for uid in present.difference(&wanted) {
            maps.excluded.remove(*uid)?;
        }
        for uid in wanted.difference(&present) {
            maps.excluded.insert(*uid, 1)?;
        }
        Ok(())
    }

    /// Opens by this process, and by those that it starts, are dropped.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn exempt(&self, process: u32) -> Result<(), MapError> {
        self.lock().exempt.insert(process, 1)
    }

    /// The process is gone, or is no clamd any more.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn no_longer_exempt(&self, process: u32) -> Result<(), MapError> {
        self.lock().exempt.remove(process)
    }

    /// Larger files are not told.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn set_max_file_size(&self, bytes: u64) -> Result<(), MapError> {
        self.lock().config.set(config::MAX_FILE_SIZE, bytes, 0)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Maps> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Controls {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        to.write_str("Controls")
    }
}
