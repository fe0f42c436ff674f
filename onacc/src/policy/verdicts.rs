//! Verdicts that still hold: a bounded table in userspace, beside the kernel's marks.
//!
//! For the cases where the kernel has no mark (any more): the inode was evicted
//! from memory, the filesystem's stores are not all seen, the file is infected.
//! An entry is used only while the file's stamps are those of the scanned bytes,
//! so it needs no invalidation but one: another signature database, which is a
//! new generation. Must not: take an entry in for a file whose bytes could
//! change without its stamps (the caller proves that), but for those whose writers
//! are watched: their entries go, and scans under way come to nothing, when such a
//! file is closed after writing. Pure; tested here.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use onacc_common::{ChangeTime, InodeKey};

use crate::kernel::file::FileStat;

/// A verdict of clamd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing was found.
    Clean,
    /// The signature's name.
    Infected(Arc<str>),
}

/// What tells two versions of a file apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    changed: ChangeTime,
    /// Nanoseconds, the lower half: far more than 500 years are needed to be the same.
    modified: i64,
    size: u64,
}

impl Stamp {
    fn of(stat: &FileStat) -> Self {
        Self {
            changed: stat.changed,
            modified: lower_half(stat.modified),
            size: stat.size,
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the lower half is meant")]
const fn lower_half(number: i128) -> i64 {
    number as i64
}

#[derive(Debug)]
struct Entry {
    stamp: Stamp,
    verdict: Verdict,
    /// Which insertion this is; see `order`.
    serial: u64,
}

/// The table.
#[derive(Debug)]
pub struct VerdictCache {
    entries: HashMap<InodeKey, Entry>,
    order: VecDeque<(InodeKey, u64)>,
    capacity: usize,
    next_serial: u64,
    generation: u64,
    /// Files that were closed after writing, the latest last, and how many were so far.
    written: VecDeque<InodeKey>,
    closes: u64,
}

/// Files closed after writing that are remembered; with more during one scan its
/// verdict is not kept.
const MOST_WRITTEN: usize = 256;

impl VerdictCache {
    /// An empty table of at most `capacity` verdicts (1 or more).
    pub fn new(capacity: usize) -> Self {
        Self {
            entries: HashMap::new(),
            order: VecDeque::new(),
            capacity: capacity.max(1),
            next_serial: 0,
            generation: 0,
            written: VecDeque::new(),
            closes: 0,
        }
    }

    /// Number of the signature database that verdicts are of.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Another signature database: no old verdict holds any more.
    pub fn new_generation(&mut self) {
        self.generation += 1;
        self.entries.clear();
        self.order.clear();
    }

    /// A file whose writers are watched was closed after writing: what is known of it
    /// does not hold any more, nor what a scan will say that has begun.
    pub fn written(&mut self, key: InodeKey) {
        self.entries.remove(&key);
        if self.written.len() == MOST_WRITTEN {
            self.written.pop_front();
        }
        self.written.push_back(key);
        self.closes += 1;
    }

    /// How often [`Self::written`] was called: what a scan of such a file begins with.
    pub fn closes(&self) -> u64 {
        self.closes
    }

    /// Whether a file was closed after writing since then, or that cannot be told.
    pub fn was_written_since(&self, key: InodeKey, closes: u64) -> bool {
        let since = usize::try_from(self.closes - closes).unwrap_or(usize::MAX);
        since > self.written.len() || self.written.iter().rev().take(since).any(|one| *one == key)
    }

    /// The verdict on this very version of the file.
    pub fn get(&self, stat: &FileStat) -> Option<&Verdict> {
        let entry = self.entries.get(&stat.key)?;
        (entry.stamp == Stamp::of(stat)).then_some(&entry.verdict)
    }

    /// Takes a verdict in, if the scan began under the present generation.
    pub fn insert(&mut self, stat: &FileStat, verdict: Verdict, generation: u64) {
        if generation != self.generation {
            return;
        }
        let serial = self.next_serial;
        self.next_serial += 1;
        let entry = Entry {
            stamp: Stamp::of(stat),
            verdict,
            serial,
        };
        self.entries.insert(stat.key, entry);
        self.order.push_back((stat.key, serial));
        // The oldest go, and what has been replaced since.
        while self.entries.len() > self.capacity || self.order.len() > 2 * self.capacity {
            let Some((key, serial)) = self.order.pop_front() else {
                return;
            };
            if self
                .entries
                .get(&key)
                .is_some_and(|entry| entry.serial == serial)
            {
                self.entries.remove(&key);
            }
        }
    }

    /// How many verdicts are kept.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn stat(ino: u64, changed: i64) -> FileStat {
        FileStat {
            key: InodeKey::new(8, 1, ino),
            size: 3,
            modified: 0,
            changed: ChangeTime::new(changed, 0),
            mount: 1,
            regular: true,
            links: 1,
        }
    }

    #[test]
    fn another_version_has_no_verdict() {
        let mut cache = VerdictCache::new(4);
        cache.insert(&stat(1, 10), Verdict::Clean, 0);
        assert_eq!(cache.get(&stat(1, 10)), Some(&Verdict::Clean));
        assert_eq!(cache.get(&stat(1, 11)), None);
        assert_eq!(cache.get(&stat(2, 10)), None);
        let longer = FileStat {
            size: 4,
            ..stat(1, 10)
        };
        assert_eq!(cache.get(&longer), None);
    }

    #[test]
    fn a_scan_that_began_before_the_database_changed_is_not_kept() {
        let mut cache = VerdictCache::new(4);
        let began = cache.generation();
        cache.insert(&stat(1, 1), Verdict::Clean, began);
        cache.new_generation();
        assert_eq!(cache.get(&stat(1, 1)), None);
        cache.insert(&stat(1, 1), Verdict::Clean, began);
        assert_eq!(cache.get(&stat(1, 1)), None);
    }

    #[test]
    fn a_scan_that_a_writer_closed_the_file_in_is_told_from_others() {
        let key = |ino| stat(ino, 1).key;
        let mut cache = VerdictCache::new(4);
        let began = cache.closes();
        assert!(!cache.was_written_since(key(1), began));
        cache.insert(&stat(1, 1), Verdict::Clean, 0);
        cache.insert(&stat(2, 1), Verdict::Clean, 0);
        cache.written(key(1));
        assert_eq!(cache.get(&stat(1, 1)), None);
        assert_eq!(cache.get(&stat(2, 1)), Some(&Verdict::Clean));
        assert!(cache.was_written_since(key(1), began));
        assert!(!cache.was_written_since(key(2), began));
        assert!(!cache.was_written_since(key(1), cache.closes()));
        let began = cache.closes();
        for _ in 0..MOST_WRITTEN {
            cache.written(key(3));
        }
        assert!(!cache.was_written_since(key(1), began));
        cache.written(key(3));
        assert!(cache.was_written_since(key(1), began), "forgotten");
    }

    proptest! {
        #[test]
        fn bounded_and_the_last_word_counts(
            steps in proptest::collection::vec((0u64..12, 0i64..3, any::<bool>()), 0..300)
        ) {
            let mut cache = VerdictCache::new(5);
            let mut last = std::collections::HashMap::new();
            for (ino, changed, clean) in steps {
                let verdict = if clean { Verdict::Clean } else { Verdict::Infected("x".into()) };
                cache.insert(&stat(ino, changed), verdict.clone(), 0);
                last.insert(ino, (changed, verdict.clone()));
                prop_assert_eq!(cache.get(&stat(ino, changed)), Some(&verdict));
                prop_assert!(cache.len() <= 5 && cache.order.len() <= 10);
            }
            for ino in 0..12 {
                for changed in 0..3 {
                    if let Some(found) = cache.get(&stat(ino, changed)) {
                        prop_assert_eq!(&last[&ino], &(changed, found.clone()));
                    }
                }
            }
        }
    }
}
