//! Timing one operation many times.
//!
//! Owns: the inner loops, with nothing in them but the operation and two looks
//! at the clock, which cost the same in every column. Must not: know what an
//! agent is. Tested below.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use nix::{
    fcntl::{OFlag, open},
    sys::stat::Mode,
};

use crate::{bench::stats::quantile, shell::Result};

/// How long a loop goes on: until the first of these.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// Operations.
    pub count: usize,
    /// Time; for those who take a millisecond for each.
    pub limit: Duration,
    /// Operations between two looks at the clock: more than one where the clock's
    /// step is no longer small beside an operation.
    pub batch: u32,
}

/// What a loop came to, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    /// The median of all operations, or of the means of all batches.
    pub p50: f64,
    /// The 99th percentile of the same.
    pub p99: f64,
    /// How many operations were measured.
    pub count: usize,
}

/// Times an operation again and again, after a warm-up of a tenth.
pub fn time(budget: Budget, mut operation: impl FnMut() -> nix::Result<()>) -> Result<Sample> {
    let fail = |error| format!("the operation that is measured failed: {error}");
    let warm = Instant::now() + budget.limit / 10;
    for _ in 0..budget.count / 10 {
        operation().map_err(fail)?;
        if Instant::now() >= warm {
            break;
        }
    }
    let batches = budget.count / usize::try_from(budget.batch).unwrap_or(1).max(1);
    let mut times = Vec::with_capacity(batches);
    let end = Instant::now() + budget.limit;
    for _ in 0..batches {
        let before = Instant::now();
        for _ in 0..budget.batch {
            operation().map_err(fail)?;
        }
        let after = Instant::now();
        times.push(nanoseconds(after - before));
        if after >= end {
            break;
        }
    }
    sample(times, budget.batch)
}

/// Medians of times that were taken elsewhere, each of this many operations.
pub fn sample(mut times: Vec<u64>, batch: u32) -> Result<Sample> {
    if times.is_empty() {
        return Err("nothing was measured".to_owned());
    }
    times.sort_unstable();
    let one = |thousandths| {
        let batched = Duration::from_nanos(quantile(&times, thousandths));
        batched.as_secs_f64() * 1e9 / f64::from(batch)
    };
    Ok(Sample {
        p50: one(500),
        p99: one(990),
        count: times.len() * usize::try_from(batch).unwrap_or(1),
    })
}

/// Times opening a file for reading and closing it.
pub fn time_opens(path: &Path, budget: Budget) -> Result<Sample> {
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    time(budget, || open(path, flags, Mode::empty()).map(drop))
}

/// A duration in nanoseconds.
pub fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// A duration in milliseconds.
pub fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_ends_with_its_count_or_with_its_time() {
        let budget = Budget {
            count: 1000,
            limit: Duration::from_mins(1),
            batch: 10,
        };
        let mut ran = 0;
        let sample = time(budget, || {
            ran += 1;
            Ok(())
        });
        assert_eq!(sample.unwrap().count, 1000);
        assert_eq!(ran, 1100);

        let budget = Budget {
            limit: Duration::from_millis(20),
            batch: 1,
            ..budget
        };
        let slow = time(budget, || {
            std::thread::sleep(Duration::from_millis(5));
            Ok(())
        })
        .unwrap();
        assert!(slow.count <= 10, "{slow:?}");
        assert!(slow.p50 >= 5e6, "{slow:?}");
    }

    #[test]
    fn a_batch_is_shared_out_among_its_operations() {
        let sample = sample(vec![30, 10, 20], 10).unwrap();
        assert!((sample.p50 - 2.0).abs() < 1e-6, "{sample:?}");
        assert_eq!(sample.count, 30);
    }

    #[test]
    fn an_operation_that_fails_is_an_error() {
        let budget = Budget {
            count: 10,
            limit: Duration::from_secs(1),
            batch: 1,
        };
        let error = time_opens(Path::new("/nonexistent/file"), budget);
        assert!(error.is_err_and(|why| why.contains("ENOENT")));
    }
}
