//! What openers may see, and the judgement of every open by that.
//!
//! Owns: the rules in force and all violations. Must not: open anything. Tested
//! below.

use std::{
    path::Path,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use crate::machine;

/// What is allowed besides the right thing: infected files refused, clean ones
/// opened, nobody waiting beyond the bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leave {
    /// Infected content may be opened: no agent, or clamd cannot be asked and the
    /// policy is to allow.
    pub infected: bool,
    /// Clean content may be refused: clamd cannot be asked and the policy is to deny.
    pub clean: bool,
    /// How much longer than the bound an opener may wait.
    pub wait: Duration,
}

impl Leave {
    /// Nothing but the right thing.
    pub const NONE: Self = Self {
        infected: false,
        clean: false,
        wait: Duration::ZERO,
    };
    /// The agent cannot judge and the policy is to allow.
    pub const ALLOWS: Self = Self {
        infected: true,
        ..Self::NONE
    };
    /// The agent cannot judge and the policy is to deny.
    pub const DENIES: Self = Self {
        clean: true,
        ..Self::NONE
    };

    /// The same, with openers that are held up for so long besides.
    #[must_use]
    pub const fn held_up(self, wait: Duration) -> Self {
        Self { wait, ..self }
    }

    fn or(self, other: Self) -> Self {
        Self {
            infected: self.infected || other.infected,
            clean: self.clean || other.clean,
            wait: self.wait.max(other.wait),
        }
    }
}

/// What a file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Nothing that clamd finds.
    Clean,
    /// Something that clamd finds.
    Infected,
}

/// What came of an open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// It succeeded.
    Opened,
    /// EPERM.
    Refused,
    /// It failed otherwise: no verdict of the agent's.
    Failed,
}

/// The rules in force.
#[derive(Debug)]
pub struct Rules {
    leave: Mutex<Leave>,
    violations: Mutex<Vec<String>>,
    bound: Duration,
    /// Opens judged.
    opens: AtomicU64,
    /// Opens refused.
    refused: AtomicU64,
    /// Infected content opened under a leave.
    slips: AtomicU64,
    /// The longest wait, in microseconds.
    longest: AtomicU64,
}

/// What came of all opens since the last tally.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Opens judged.
    pub opens: u64,
    /// Of these, refused.
    pub refused: u64,
    /// Infected content opened under a leave.
    pub slips: u64,
    /// The longest wait.
    pub longest: Duration,
    /// What must not have been.
    pub violations: Vec<String>,
}

/// An open that is under way, with the leave that it began under.
#[derive(Clone, Copy, Debug)]
pub struct Begun {
    leave: Leave,
    at: Instant,
}

impl Rules {
    /// Strict rules; nobody may wait longer than `bound`.
    pub fn new(bound: Duration) -> Self {
        Self {
            leave: Mutex::new(Leave::NONE),
            violations: Mutex::default(),
            bound,
            opens: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            slips: AtomicU64::new(0),
            longest: AtomicU64::new(0),
        }
    }

    /// From now on this is allowed.
    pub fn set(&self, leave: Leave) {
        *locked(&self.leave) = leave;
    }

    /// An open begins.
    pub fn begin(&self) -> Begun {
        Begun {
            leave: *locked(&self.leave),
            at: Instant::now(),
        }
    }

    /// An open has ended: what was allowed at its begin or is at its end, is.
    pub fn judge(&self, begun: Begun, path: &Path, content: Content, seen: Seen) {
        let took = begun.at.elapsed();
        let leave = begun.leave.or(*locked(&self.leave));
        self.opens.fetch_add(1, Ordering::Relaxed);
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.longest.fetch_max(micros, Ordering::Relaxed);
        match (content, seen) {
            (Content::Infected, Seen::Opened) if leave.infected => {
                self.slips.fetch_add(1, Ordering::Relaxed);
            }
            (Content::Infected, Seen::Opened) => {
                self.violation(format!("{}: infected content was opened", path.display()));
            }
            (Content::Clean, Seen::Refused) if !leave.clean => {
                self.violation(format!("{}: clean content was refused", path.display()));
            }
            (_, Seen::Failed) => self.violation(format!(
                "{}: the open failed, and not by a verdict",
                path.display()
            )),
            _ => {}
        }
        if seen == Seen::Refused {
            self.refused.fetch_add(1, Ordering::Relaxed);
        }
        let allowed = self.bound + leave.wait;
        if took > allowed && took > allowed + machine::held_up_since(begun.at) {
            self.violation(format!(
                "{}: an opener waited {took:?}, bound {allowed:?}",
                path.display(),
            ));
        }
    }

    /// Something that must not be.
    pub fn violation(&self, what: String) {
        let mut violations = locked(&self.violations);
        if violations.len() < 20 {
            violations.push(what);
        }
    }

    /// Counts begin anew; what they were.
    pub fn tally(&self) -> Tally {
        let take = |counter: &AtomicU64| counter.swap(0, Ordering::Relaxed);
        Tally {
            opens: take(&self.opens),
            refused: take(&self.refused),
            slips: take(&self.slips),
            longest: Duration::from_micros(take(&self.longest)),
            violations: std::mem::take(&mut locked(&self.violations)),
        }
    }

    /// All that must not have been.
    pub fn violations(&self) -> Vec<String> {
        locked(&self.violations).clone()
    }

    /// How long anybody may wait now.
    pub fn longest_allowed(&self) -> Duration {
        self.bound + locked(&self.leave).wait
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(before: Leave, after: Leave, content: Content, seen: Seen) -> usize {
        let rules = Rules::new(Duration::from_secs(9));
        rules.set(before);
        let begun = rules.begin();
        rules.set(after);
        rules.judge(begun, Path::new("/f"), content, seen);
        rules.violations().len()
    }

    #[test]
    fn strict_rules_know_what_is_wrong() {
        let strict = |content, seen| judged(Leave::NONE, Leave::NONE, content, seen);
        assert_eq!(strict(Content::Infected, Seen::Opened), 1);
        assert_eq!(strict(Content::Clean, Seen::Refused), 1);
        assert_eq!(strict(Content::Clean, Seen::Opened), 0);
        assert_eq!(strict(Content::Infected, Seen::Refused), 0);
        assert_eq!(strict(Content::Infected, Seen::Failed), 1);
        assert_eq!(strict(Content::Clean, Seen::Failed), 1);
    }

    #[test]
    fn a_leave_holds_for_what_overlaps_it_and_allows_no_more_than_it_says() {
        let infected = (Content::Infected, Seen::Opened);
        let clean = (Content::Clean, Seen::Refused);
        assert_eq!(
            judged(Leave::ALLOWS, Leave::NONE, infected.0, infected.1),
            0
        );
        assert_eq!(
            judged(Leave::NONE, Leave::ALLOWS, infected.0, infected.1),
            0
        );
        assert_eq!(judged(Leave::ALLOWS, Leave::ALLOWS, clean.0, clean.1), 1);
        assert_eq!(
            judged(Leave::DENIES, Leave::DENIES, infected.0, infected.1),
            1
        );
        assert_eq!(judged(Leave::DENIES, Leave::DENIES, clean.0, clean.1), 0);
    }

    #[test]
    fn waiting_too_long_is_wrong_unless_held_up() {
        let rules = Rules::new(Duration::from_millis(1));
        let wait = || {
            let begun = rules.begin();
            std::thread::sleep(Duration::from_millis(20));
            rules.judge(begun, Path::new("/f"), Content::Clean, Seen::Opened);
            rules.violations().len()
        };
        assert_eq!(wait(), 1);
        rules.set(Leave::NONE.held_up(Duration::from_mins(1)));
        assert_eq!(wait(), 1);
    }
}
