//! When clamd may have loaded another signature database without saying so.
//!
//! A database that was written by hand has no version, so that clamd's word
//! does not change with it. But clamd has to read the files to load them: once
//! they have changed, no verdict lives longer than [`TICK`] while somebody reads
//! them and for [`LOADING`] after. Pure; the caller tells the time. Tested here.

use std::time::{Duration, Instant};

use crate::kernel::database::Touched;

/// How long a verdict lives meanwhile.
const TICK: Duration = Duration::from_secs(1);
/// From the last file that was read until the engine is in use: it is compiled
/// in between, some seconds for the official database.
const LOADING: Duration = Duration::from_secs(15);
/// For how long after a reader that came after a change further readers count:
/// the first may have been another (freshclam tries a database before clamd
/// takes it, clamd looks every ten minutes by itself).
const WINDOW: Duration = Duration::from_mins(15);

/// What is known of the database.
#[derive(Clone, Copy, Debug)]
pub struct Database {
    /// Changed, and perhaps not loaded yet.
    pending: bool,
    /// The last reader since.
    read: Option<Instant>,
    /// When verdicts are to be dropped next.
    tick: Option<Instant>,
}

impl Default for Database {
    /// At start: what is there may have been changed a moment ago.
    fn default() -> Self {
        Self {
            pending: true,
            read: None,
            tick: None,
        }
    }
}

impl Database {
    /// Takes in what happened.
    pub fn note(&mut self, touched: Touched, now: Instant) {
        let over = self.read.is_some_and(|read| now >= read + WINDOW);
        if touched.changed || over {
            self.pending = touched.changed;
            self.read = None;
        }
        // A change and a reader in one look: the reader may have come last.
        if touched.read && self.pending {
            self.read = Some(now);
            self.tick.get_or_insert(now);
        }
    }

    /// Whether verdicts are to be dropped now.
    pub fn is_due(&mut self, now: Instant) -> bool {
        if self.tick.is_none_or(|tick| now < tick) {
            return false;
        }
        // Files that are written once more end nothing that is under way.
        let loading = self.read.is_some_and(|read| now < read + LOADING);
        self.tick = loading.then_some(now + TICK);
        true
    }

    /// When [`Self::is_due`] is to be asked.
    pub fn next(&self) -> Option<Instant> {
        self.tick
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHANGED: Touched = Touched {
        changed: true,
        read: false,
    };
    const READ: Touched = Touched {
        changed: false,
        read: true,
    };

    /// Asks every half second, for a minute.
    fn drops(database: &mut Database, from: Instant) -> u32 {
        (0..120)
            .map(|half| u32::from(database.is_due(from + half * Duration::from_millis(500))))
            .sum()
    }

    #[test]
    fn readers_of_an_unchanged_database_cost_nothing() {
        let now = Instant::now();
        let mut database = Database {
            pending: false,
            ..Database::default()
        };
        database.note(READ, now);
        assert_eq!(database.next(), None);
        assert_eq!(drops(&mut database, now), 0);
    }

    #[test]
    fn the_first_reader_after_the_start_may_be_clamd() {
        let now = Instant::now();
        let mut database = Database::default();
        assert_eq!(drops(&mut database, now), 0);
        database.note(READ, now);
        assert!(drops(&mut database, now) > 10);
    }

    #[test]
    fn a_change_counts_once_it_is_read_and_each_time_within_the_window() {
        let now = Instant::now();
        let mut database = Database::default();
        database.note(CHANGED, now);
        assert_eq!(drops(&mut database, now), 0, "clamd has the old one");
        let later = now + Duration::from_hours(5);
        database.note(READ, later);
        assert_eq!(drops(&mut database, later), 16);
        assert_eq!(database.next(), None);
        let again = later + Duration::from_mins(10);
        database.note(READ, again);
        assert_eq!(drops(&mut database, again), 16);
        let over = again + Duration::from_mins(16);
        database.note(READ, over);
        assert_eq!(drops(&mut database, over), 0, "it is known by now");
    }

    #[test]
    fn a_change_while_it_is_read_is_not_forgotten() {
        let now = Instant::now();
        let mut database = Database::default();
        database.note(CHANGED, now);
        let both = Touched {
            changed: true,
            read: true,
        };
        database.note(both, now);
        assert!(database.is_due(now));
        database.note(CHANGED, now);
        assert!(database.is_due(now + TICK), "once more at least");
        database.note(READ, now + 2 * TICK);
        assert!(drops(&mut database, now + 2 * TICK) > 10);
    }
}
