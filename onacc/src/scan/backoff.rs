//! Pauses between connections that fail: longer each time, and never the same for
//! all agents of a fleet, so that a clamd that comes back is not run down. Pure
//! but for its randomness.

use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

/// First pause after a failed connection; doubled up to [`LONGEST`].
const FIRST: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_secs(1);

/// The pauses of one server.
#[derive(Debug)]
pub struct Backoff {
    pause: Duration,
    random: RandomState,
    failures: u64,
}

impl Default for Backoff {
    fn default() -> Self {
        Self {
            pause: FIRST,
            random: RandomState::new(),
            failures: 0,
        }
    }
}

impl Backoff {
    /// How long to wait after this failure: from half of the pause to all of it.
    pub fn failed(&mut self) -> Duration {
        self.failures += 1;
        let half = self.pause / 2;
        self.pause = (self.pause * 2).min(LONGEST);
        let whole = u64::try_from(half.as_micros()).unwrap_or(u64::MAX).max(1);
        half + Duration::from_micros(self.random.hash_one(self.failures) % whole)
    }

    /// The server works: the next failure is a first one.
    pub fn worked(&mut self) {
        self.pause = FIRST;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_limit_and_differ() {
        let (mut one, mut other) = (Backoff::default(), Backoff::default());
        let pauses = |backoff: &mut Backoff| -> Vec<Duration> {
            (0..12).map(|_| backoff.failed()).collect()
        };
        let (first, second) = (pauses(&mut one), pauses(&mut other));
        assert_ne!(first, second);
        assert!(first[0] >= FIRST / 2 && first[0] < FIRST);
        assert!(first.iter().all(|pause| *pause <= LONGEST));
        assert!(first[8..].iter().all(|pause| *pause >= LONGEST / 2));
        one.worked();
        assert!(one.failed() < FIRST);
    }
}
