//! Heartbeats of the threads that openers depend on, and the watchdog.
//!
//! A thread is stuck when it has had four seconds for a step and has not taken it:
//! it is awake, or sleeps though work waits for it. Time in which it waited for a
//! processor is none that it has had (an overloaded machine hangs nobody), nor is
//! time in which the whole process was stopped: a tick counts for half a second at
//! most. Must not: end anything, the agent does. Tested here and by
//! `tests/watchdog.rs`.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::time::Duration;

use crate::kernel::process;
use crate::kernel::procfs::{RunState, ThreadTimes};

/// Shows that a thread goes its rounds.
#[derive(Clone, Debug)]
pub struct Heartbeat {
    name: &'static str,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// Even: asleep. Odd: awake.
    rounds: AtomicU64,
    /// Of whom; 0 before it has begun, [`ENDED`] after it has ended.
    thread: AtomicI32,
}

const ENDED: i32 = -1;

impl Heartbeat {
    /// A heartbeat of a thread that has not begun.
    pub fn new(name: &'static str) -> Self {
        Self {
            name,
            shared: Arc::new(Shared {
                rounds: AtomicU64::new(0),
                thread: AtomicI32::new(0),
            }),
        }
    }

    /// The calling thread is the one.
    pub fn begin(&self) {
        let thread = process::thread_id();
        self.shared.thread.store(thread, Ordering::Relaxed);
    }

    /// The thread has ended: nothing is expected of it any more.
    pub fn end(&self) {
        self.shared.thread.store(ENDED, Ordering::Relaxed);
        self.rest();
    }

    /// A round begins (or the thread, in the middle of a long one, shows progress).
    pub fn beat(&self) {
        let now = self.shared.rounds.load(Ordering::Relaxed);
        let next = (now | 1).wrapping_add(2);
        self.shared.rounds.store(next, Ordering::Relaxed);
    }

    /// The thread goes to sleep until something is there to do.
    pub fn rest(&self) {
        let now = self.shared.rounds.load(Ordering::Relaxed);
        let next = (now | 1).wrapping_add(1);
        self.shared.rounds.store(next, Ordering::Relaxed);
    }

    /// Of which thread; `None` before it has begun and after it has ended.
    pub fn thread(&self) -> Option<i32> {
        Some(self.shared.thread.load(Ordering::Relaxed)).filter(|thread| *thread > 0)
    }
}

/// How often the watchdog looks.
pub const TICK: Duration = Duration::from_millis(500);
/// Time that a thread may have for one step.
const PATIENCE: Duration = Duration::from_secs(4);

/// Whether a wait for a disk counts: such a thread comes back by itself, and cannot
/// be ended before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disk {
    /// Openers wait for it.
    Counts,
    /// Nobody waits for it.
    IsWaitedFor,
}

/// A thread that is watched.
pub struct Watched {
    /// Its heartbeat.
    pub heartbeat: Heartbeat,
    /// Whether something waits for it that it should be awake for.
    pub work_waits: Box<dyn Fn() -> bool + Send>,
    /// Whether it may wait for a disk for as long as that takes.
    pub disk: Disk,
}

/// What was seen of a thread at a tick.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    rounds: u64,
    /// Awake, or should be.
    is_due: bool,
    /// `None`: the kernel does not say.
    times: Option<ThreadTimes>,
}

/// How long a thread has stood still.
#[derive(Clone, Copy, Debug)]
struct Standing {
    last: Seen,
    had: Duration,
}

impl Standing {
    /// One more tick, `elapsed` after the last one: how much time it has had since it
    /// took its last step.
    fn tick(&mut self, seen: Seen, elapsed: Duration, disk: Disk) -> Duration {
        let stands = seen.is_due && self.last.is_due && seen.rounds == self.last.rounds;
        self.had = if stands {
            self.had + time_had((self.last.times, seen.times), elapsed, disk)
        } else {
            Duration::ZERO
        };
        self.last = seen;
        self.had
    }
}

/// Of the time between two ticks, what a thread could have used.
fn time_had(
    (before, now): (Option<ThreadTimes>, Option<ThreadTimes>),
    elapsed: Duration,
    disk: Disk,
) -> Duration {
    // Stopped as a whole, or the watchdog itself did not get a processor.
    let most = elapsed.min(TICK);
    let (Some(before), Some(now)) = (before, now) else {
        return most;
    };
    let ran = now.ran.saturating_sub(before.ran);
    let queued = now.queued.saturating_sub(before.queued);
    match now.state {
        // The kernel counts a wait for a processor when it is over.
        RunState::Runnable => ran.min(most),
        RunState::Disk if disk == Disk::IsWaitedFor => Duration::ZERO,
        RunState::Disk | RunState::Asleep => most.saturating_sub(queued),
    }
}

/// A thread that is stuck, and what is known of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stuck {
    /// Which one.
    pub name: &'static str,
    had: Duration,
    times: Option<ThreadTimes>,
}

impl fmt::Display for Stuck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let how = match self.times.map(|times| times.state) {
            None => "",
            Some(RunState::Runnable) => " (it runs)",
            Some(RunState::Asleep) => " (it sleeps)",
            Some(RunState::Disk) => " (it waits for a disk)",
        };
        let (name, had) = (self.name, self.had.as_secs_f64());
        write!(
            f,
            "the {name} thread is stuck, it had {had:.1} s and has not moved{how}; ending, so that the kernel lets all openers go"
        )
    }
}

/// Watches threads.
pub struct Watchdog {
    watched: Vec<(Watched, Standing)>,
}

impl Watchdog {
    /// Watches these threads.
    pub fn new(watched: Vec<Watched>) -> Self {
        let nothing = Standing {
            last: Seen {
                rounds: 0,
                is_due: false,
                times: None,
            },
            had: Duration::ZERO,
        };
        Self {
            watched: watched.into_iter().map(|one| (one, nothing)).collect(),
        }
    }

    /// Whether every thread rested or moved at the last tick.
    pub fn sees_all_move(&self) -> bool {
        self.watched
            .iter()
            .all(|(_, standing)| standing.had.is_zero())
    }

    /// One tick, so long after the last one: a thread that is stuck, if one is.
    /// `times` asks the kernel about a thread.
    pub fn tick(
        &mut self,
        elapsed: Duration,
        times: impl Fn(i32) -> Option<ThreadTimes>,
    ) -> Option<Stuck> {
        let mut found = None;
        for (watched, standing) in &mut self.watched {
            let beat = &watched.heartbeat;
            let rounds = beat.shared.rounds.load(Ordering::Relaxed);
            let awake = rounds & 1 == 1;
            let thread = beat.thread();
            let is_due = thread.is_some() && (awake || (watched.work_waits)());
            let seen = Seen {
                rounds,
                is_due,
                times: thread.filter(|_| is_due).and_then(&times),
            };
            let had = standing.tick(seen, elapsed, watched.disk);
            if had >= PATIENCE && found.is_none() {
                found = Some(Stuck {
                    name: beat.name,
                    had,
                    times: seen.times,
                });
            }
        }
        found
    }
}

#[cfg(test)]
#[path = "heartbeat_tests.rs"]
mod tests;
