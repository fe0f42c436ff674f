//! What the machine itself holds up: a thread that sleeps in short turns, and
//! notes how much longer than that it slept.
//!
//! Owns: that thread, one a process. A virtual machine that stands still, or
//! processors that have others to run, delay openers, agent and this thread alike;
//! that is no fault of the agent's, and is added to what openers may wait. Must
//! not: look at the agent. Tested below.

use std::{
    collections::VecDeque,
    sync::{Mutex, Once, PoisonError},
    thread,
    time::{Duration, Instant},
};

/// One turn.
const TURN: Duration = Duration::from_millis(10);
/// What is not worth noting.
const SMALL: Duration = Duration::from_millis(15);
/// An open passes through so many threads one after the other: opener, reader,
/// service, clamd's, service, opener. Each may be held up as this one is.
const HANDS: u32 = 3;
/// Notes that are kept.
const MOST: usize = 50_000;

static NOTES: Mutex<VecDeque<(Instant, Duration)>> = Mutex::new(VecDeque::new());
static BEGUN: Once = Once::new();

/// Begins to note; does nothing the second time.
pub fn observe() {
    BEGUN.call_once(|| {
        thread::spawn(|| {
            loop {
                let before = Instant::now();
                thread::sleep(TURN);
                let late = before.elapsed().saturating_sub(TURN);
                if late > SMALL {
                    note(Instant::now(), late);
                }
            }
        });
    });
}

fn note(at: Instant, late: Duration) {
    let mut notes = NOTES.lock().unwrap_or_else(PoisonError::into_inner);
    notes.push_back((at, late));
    if notes.len() > MOST {
        notes.pop_front();
    }
}

/// What the machine may have added to a wait that began then and ends now.
pub fn held_up_since(begun: Instant) -> Duration {
    sum_since(&NOTES.lock().unwrap_or_else(PoisonError::into_inner), begun)
}

fn sum_since(notes: &VecDeque<(Instant, Duration)>, begun: Instant) -> Duration {
    let late = notes
        .iter()
        .rev()
        .take_while(|(at, _)| *at >= begun)
        .map(|(_, late)| *late);
    late.sum::<Duration>() * HANDS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_noted_since_counts_and_nothing_before() {
        let before = Instant::now();
        let between = before + Duration::from_millis(1);
        let after = between + Duration::from_millis(1);
        let second = Duration::from_secs(1);
        let notes = VecDeque::from([(before, second), (between, 2 * second)]);
        assert_eq!(sum_since(&notes, between), 2 * second * HANDS);
        assert_eq!(sum_since(&notes, before), 3 * second * HANDS);
        assert_eq!(sum_since(&notes, after), Duration::ZERO);
    }
}
