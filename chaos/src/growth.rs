//! Whether something grows: looks at one process over hours, judged by their slope.
//!
//! Owns: the judgement. Pure. Must not: look at a process; `resources` does. A
//! single look may fall upon a burst, and the first ones are of a process that
//! fills its tables; the median of the slopes between all later ones is neither.
//! Tested below.

use std::{fmt, time::Duration};

use crate::resources::Resources;

/// The first part of all looks that is not judged: a quarter.
const WARM_UP: usize = 4;
/// Fewer looks than this say nothing.
const FEWEST: usize = 6;

/// One thing that may grow, and by how much over the whole time.
struct Thing {
    name: &'static str,
    of: fn(&Resources) -> u64,
    leave: f64,
}

const THINGS: [Thing; 4] = [
    Thing {
        name: "open files",
        of: |look| look.fds,
        leave: 3.0,
    },
    Thing {
        name: "threads",
        of: |look| look.threads,
        leave: 0.9,
    },
    Thing {
        name: "marks",
        of: |look| look.marks,
        leave: 60.0,
    },
    Thing {
        name: "memory (KiB)",
        of: |look| look.memory,
        leave: 4096.0,
    },
];

/// What became of one process's resources.
#[derive(Clone, Debug)]
pub struct Growth {
    /// How many looks were judged; 0: too few to judge.
    pub judged: usize,
    /// First of these, and last.
    pub ends: [Resources; 2],
    /// The time between them.
    pub time: Duration,
    /// What grew, in words.
    pub grown: Vec<String>,
}

impl Growth {
    /// Judges looks, in the order of their times.
    pub fn of(looks: &[(Duration, Resources)]) -> Self {
        let settled = &looks[looks.len() / WARM_UP..];
        let (Some(first), Some(last), true) =
            (settled.first(), settled.last(), settled.len() >= FEWEST)
        else {
            return Self {
                judged: 0,
                ends: [Resources::default(); 2],
                time: Duration::ZERO,
                grown: Vec::new(),
            };
        };
        let time = last.0.saturating_sub(first.0);
        let grown = THINGS.iter().filter_map(|thing| {
            let by = slope(settled, thing.of) * time.as_secs_f64();
            let name = thing.name;
            (by > thing.leave).then(|| format!("{name} grew by {by:.1} in {}", clock(time)))
        });
        Self {
            judged: settled.len(),
            ends: [first.1, last.1],
            time,
            grown: grown.collect(),
        }
    }
}

impl fmt::Display for Growth {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.judged == 0 {
            return write!(to, "too few looks to judge growth: let it run for longer");
        }
        let [first, last] = &self.ends;
        write!(
            to,
            "{} looks at rest in {}: {first}; at the end {last}",
            self.judged,
            clock(self.time)
        )?;
        for what in &self.grown {
            write!(to, "; GROWTH {what}")?;
        }
        Ok(())
    }
}

/// The median of the slopes between any two looks, a second.
#[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
fn slope(looks: &[(Duration, Resources)], of: fn(&Resources) -> u64) -> f64 {
    let mut slopes = Vec::new();
    for (n, (early, before)) in looks.iter().enumerate() {
        for (late, after) in &looks[n + 1..] {
            let seconds = late.saturating_sub(*early).as_secs_f64();
            if seconds > 0.0 {
                slopes.push((of(after) as f64 - of(before) as f64) / seconds);
            }
        }
    }
    slopes.sort_by(f64::total_cmp);
    slopes.get(slopes.len() / 2).copied().unwrap_or(0.0)
}

/// Minutes and seconds.
pub fn clock(time: Duration) -> String {
    let seconds = time.as_secs();
    format!("{}:{:02}", seconds / 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(memory: impl Fn(u64) -> u64, fds: impl Fn(u64) -> u64) -> Vec<String> {
        let looks: Vec<_> = (0..40)
            .map(|n| {
                let look = Resources {
                    fds: fds(n),
                    threads: 7,
                    memory: memory(n),
                    marks: 30 + n % 7,
                };
                (Duration::from_secs(60 * n), look)
            })
            .collect();
        Growth::of(&looks).grown
    }

    #[test]
    fn a_leak_is_found_and_noise_is_not() {
        let flat = |n: u64| 6000 + n * 7919 % 900;
        assert!(judged(flat, |_| 40).is_empty());
        // 200 KiB a minute; an fd each five minutes.
        assert_eq!(judged(|n| 6000 + 200 * n, |_| 40).len(), 1);
        assert_eq!(judged(flat, |n| 40 + n / 5).len(), 1);
    }

    #[test]
    fn what_fills_at_first_and_single_bursts_do_not_count() {
        assert!(judged(|n| if n < 9 { 5000 } else { 60_000 }, |_| 40).is_empty());
        assert!(
            judged(
                |n| if n == 37 { 90_000 } else { 6000 },
                |n| 40 + 60 * u64::from(n == 20)
            )
            .is_empty()
        );
    }

    #[test]
    fn few_looks_are_not_judged() {
        assert_eq!(Growth::of(&[]).judged, 0);
        let looks = vec![(Duration::ZERO, Resources::default()); 7];
        assert_eq!(Growth::of(&looks).judged, 6);
        assert_eq!(Growth::of(&looks[..6]).judged, 0);
    }
}
