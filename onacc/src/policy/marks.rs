//! Which inodes carry a clean mark: a bounded table, oldest out first.
//!
//! Pure book-keeping; `coverage::keeper` does what it says. The kernel may have
//! dropped a mark on its own (a write, an evicted inode), so an entry means
//! "there may be a mark", never "there is one". Must not lose an entry whose
//! mark may still be there: what leaves the table is handed to the caller.

use std::collections::{HashMap, VecDeque};

use onacc_common::InodeKey;

/// What is kept of one marked inode. `H` is how to come back to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remembered<H> {
    /// The number of this placing, as the eBPF program reports it.
    pub serial: u32,
    /// How to come back to the inode.
    pub handle: H,
}

/// The table.
#[derive(Debug)]
pub struct MarkTable<H> {
    entries: HashMap<InodeKey, Remembered<H>>,
    /// Keys in the order of their placing; those whose serial is not the
    /// entry's are old news and skipped.
    order: VecDeque<(InodeKey, u32)>,
    capacity: usize,
    next_serial: u32,
}

impl<H: Copy> MarkTable<H> {
    /// An empty table for at most `capacity` marks.
    pub fn new(capacity: usize) -> Self {
        Self {
            entries: HashMap::new(),
            order: VecDeque::new(),
            capacity: capacity.max(1),
            next_serial: 1,
        }
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The number for the next placing.
    pub fn new_serial(&mut self) -> u32 {
        let serial = self.next_serial;
        self.next_serial = self.next_serial.wrapping_add(1).max(1);
        serial
    }

    /// Makes room for `key`: the oldest entry, if the table is full. Its mark must go.
    pub fn make_room(&mut self, key: InodeKey) -> Option<(InodeKey, Remembered<H>)> {
        if self.entries.len() < self.capacity || self.contains(key) {
            return None;
        }
        self.pop_oldest()
    }

    fn pop_oldest(&mut self) -> Option<(InodeKey, Remembered<H>)> {
        while let Some((key, serial)) = self.order.pop_front() {
            if let Some(removed) = self.remove(key, serial) {
                return Some((key, removed));
            }
        }
        None
    }

    /// Enters a placed mark; an older entry of the same inode is replaced (its
    /// mark is the same mark).
    pub fn insert(&mut self, key: InodeKey, entry: Remembered<H>) {
        self.entries.insert(key, entry);
        self.order.push_back((key, entry.serial));
        // Entries leave by `remove`, too; without this the order would grow for ever.
        if self.order.len() > 2 * self.capacity.max(self.entries.len()) {
            let entries = &self.entries;
            self.order
                .retain(|(key, serial)| entries.get(key).is_some_and(|now| now.serial == *serial));
        }
    }

    /// Whether this inode may carry a mark.
    pub fn contains(&self, key: InodeKey) -> bool {
        self.entries.contains_key(&key)
    }

    /// Takes out the entry of this very placing; a later placing stays.
    pub fn remove(&mut self, key: InodeKey, serial: u32) -> Option<Remembered<H>> {
        if self.entries.get(&key)?.serial != serial {
            return None;
        }
        self.entries.remove(&key)
    }

    /// Takes out the entry of this inode, whichever placing it is of.
    pub fn take(&mut self, key: InodeKey) -> Option<Remembered<H>> {
        self.entries.remove(&key)
    }

    /// Empties the table.
    pub fn take_all(&mut self) -> Vec<(InodeKey, Remembered<H>)> {
        self.order.clear();
        self.entries.drain().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key(ino: u64) -> InodeKey {
        InodeKey::new(8, 1, ino)
    }

    #[test]
    fn the_oldest_goes_first_and_a_renewed_one_is_young_again() {
        let mut table = MarkTable::new(2);
        for ino in [1, 2, 1] {
            assert!(table.make_room(key(ino)).is_none());
            let serial = table.new_serial();
            table.insert(key(ino), Remembered { serial, handle: () });
        }
        assert_eq!(table.len(), 2);
        let (gone, _) = table.make_room(key(9)).unwrap();
        assert_eq!(gone, key(2));
    }

    #[test]
    fn a_report_of_an_older_placing_takes_nothing() {
        let mut table = MarkTable::new(4);
        for serial in [5, 6] {
            table.insert(key(1), Remembered { serial, handle: () });
        }
        assert!(table.remove(key(1), 5).is_none());
        assert!(table.contains(key(1)));
        assert!(table.remove(key(1), 6).is_some());
        assert!(!table.contains(key(1)));
    }

    proptest! {
        /// Whatever happens, the table and its order stay bounded, and every
        /// key that was entered is still in, or was handed out.
        #[test]
        fn bounded_and_nothing_lost(steps in proptest::collection::vec((0u64..20, any::<bool>()), 0..400)) {
            let mut table = MarkTable::new(8);
            let mut marked = std::collections::HashMap::new();
            for (ino, insert) in steps {
                if insert {
                    // The keeper makes room first, as here.
                    if let Some((gone, _)) = table.make_room(key(ino)) {
                        prop_assert!(marked.remove(&gone).is_some());
                    }
                    let serial = table.new_serial();
                    table.insert(key(ino), Remembered { serial, handle: () });
                    marked.insert(key(ino), serial);
                } else if let Some(serial) = marked.get(&key(ino)).copied() {
                    prop_assert!(table.remove(key(ino), serial).is_some());
                    marked.remove(&key(ino));
                }
                prop_assert!(table.len() <= 8 && table.order.len() <= 17);
                prop_assert_eq!(table.len(), marked.len());
            }
        }
    }
}
