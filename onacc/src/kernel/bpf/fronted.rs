//! A hash map that the programs look into through its front
//! (`onacc_common::front`).
//!
//! Owns: that front and map say the same, in an order in which nothing that
//! holds is missed. Must not: know what is in it. Tested on the running kernel
//! (`tests.rs`).

use std::sync::Arc;
use std::sync::atomic::Ordering;

use aya::maps::{HashMap, MapData, MapError};
use onacc_common::front::{self, Front, SLOTS};

use super::mapped::MappedArray;

/// A map from `u32` to `V`, and its front.
pub(super) struct Fronted<V: aya::Pod + Into<u32>> {
    map: HashMap<MapData, u32, V>,
    fronts: Arc<MappedArray>,
    which: Front,
    /// What is in the map, by slot.
    entries: Vec<Vec<(u32, u32)>>,
}

impl<V: aya::Pod + Into<u32>> Fronted<V> {
    /// `map` must be empty and nobody else's.
    pub(super) fn new(
        map: HashMap<MapData, u32, V>,
        fronts: &Arc<MappedArray>,
        which: Front,
    ) -> Self {
        Self {
            map,
            fronts: Arc::clone(fronts),
            which,
            entries: vec![Vec::new(); SLOTS as usize],
        }
    }

    /// Enters a key, or gives it another value: first in the map, where the
    /// front may send a program that looks meanwhile.
    pub(super) fn insert(&mut self, key: u32, value: V) -> Result<(), MapError> {
        self.map.insert(key, value, 0)?;
        let entries = &mut self.entries[front::slot(key) as usize];
        entries.retain(|(known, _)| *known != key);
        entries.push((key, value.into()));
        self.show(key);
        Ok(())
    }

    /// Takes a key out, first of the front. That it is not there is no error.
    pub(super) fn remove(&mut self, key: u32) -> Result<(), MapError> {
        let entries = &mut self.entries[front::slot(key) as usize];
        if !entries.iter().any(|(known, _)| *known == key) {
            return Ok(());
        }
        entries.retain(|(known, _)| *known != key);
        self.show(key);
        match self.map.remove(&key) {
            Err(MapError::KeyNotFound) => Ok(()),
            other => other,
        }
    }

    /// The keys that are in it.
    pub(super) fn keys(&self) -> impl Iterator<Item = u32> {
        self.entries.iter().flatten().map(|(key, _)| *key)
    }

    fn show(&self, key: u32) {
        let word = front::word(&self.entries[front::slot(key) as usize]);
        let slot = self.fronts.word(self.which.index(key));
        slot.store(word, Ordering::Release);
    }
}
