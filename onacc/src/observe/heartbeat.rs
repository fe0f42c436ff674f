//! Heartbeats of the threads that openers depend on, and the watchdog.
//!
//! A thread is stuck when it is awake and has not begun a new round for several
//! ticks of the watchdog. Ticks are counted, not time: when the whole process
//! is stopped, the watchdog is too. Tested here and by `tests/`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Shows that a thread goes its rounds. Even: asleep. Odd: awake.
#[derive(Clone, Debug)]
pub struct Heartbeat {
    name: &'static str,
    rounds: Arc<AtomicU64>,
}

impl Heartbeat {
    /// A heartbeat of a thread that has not begun.
    pub fn new(name: &'static str) -> Self {
        Self {
            name,
            rounds: Arc::new(AtomicU64::new(0)),
        }
    }

    /// A round begins (or the thread, in the middle of a long one, shows progress).
    pub fn beat(&self) {
        let now = self.rounds.load(Ordering::Relaxed);
        self.rounds
            .store((now | 1).wrapping_add(2), Ordering::Relaxed);
    }

    /// The thread goes to sleep until something is there to do.
    pub fn rest(&self) {
        let now = self.rounds.load(Ordering::Relaxed);
        self.rounds
            .store((now | 1).wrapping_add(1), Ordering::Relaxed);
    }
}

/// How often the watchdog looks.
pub const TICK: Duration = Duration::from_millis(500);
/// Ticks without progress after which a thread is taken for stuck.
const PATIENCE: u32 = 8;

/// Watches heartbeats.
#[derive(Debug)]
pub struct Watchdog {
    watched: Vec<(Heartbeat, u64, u32)>,
}

impl Watchdog {
    /// Watches these threads.
    pub fn new(heartbeats: Vec<Heartbeat>) -> Self {
        Self {
            watched: heartbeats.into_iter().map(|beat| (beat, 0, 0)).collect(),
        }
    }

    /// Whether every thread slept or moved at the last tick.
    pub fn sees_all_move(&self) -> bool {
        self.watched.iter().all(|(_, _, ticks)| *ticks == 0)
    }

    /// One tick: the name of a thread that is stuck, if one is.
    pub fn tick(&mut self) -> Option<&'static str> {
        for (beat, last, ticks) in &mut self.watched {
            let now = beat.rounds.load(Ordering::Relaxed);
            let awake = now & 1 == 1;
            *ticks = if awake && now == *last { *ticks + 1 } else { 0 };
            *last = now;
            if *ticks >= PATIENCE {
                return Some(beat.name);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_sleeps_or_moves_is_well_and_one_that_stands_is_stuck() {
        let (asleep, moving, stuck) = (
            Heartbeat::new("asleep"),
            Heartbeat::new("moving"),
            Heartbeat::new("stuck"),
        );
        let mut dog = Watchdog::new(vec![asleep.clone(), moving.clone(), stuck.clone()]);
        asleep.beat();
        asleep.rest();
        stuck.rest();
        for _ in 0..20 {
            moving.beat();
            assert_eq!(dog.tick(), None);
        }
        stuck.beat();
        let found = (0..=PATIENCE + 1).find_map(|_| {
            moving.beat();
            dog.tick()
        });
        assert_eq!(found, Some("stuck"));
    }
}
