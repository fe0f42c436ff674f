//! How long openers wait, and for what: histograms, printed with the counters.
//!
//! One thread at a time records (at the service's desk) and one prints, so that the
//! lock is hardly ever contended; it is not held across a system call.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use hdrhistogram::Histogram;

/// Longest time that is told apart: an hour and more is all the same.
const LONGEST_US: u64 = 3_600_000_000;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Span {
    /// From the event to the answer, of an opener whose file had to be scanned.
    OpenerWait,
    /// From the event to the moment at which the file is handed to clamd.
    QueueWait,
    /// From there to the reply.
    Scan,
}

/// The histograms, in microseconds.
#[derive(Debug)]
pub struct Latencies(Mutex<[Histogram<u32>; 3]>);

const NAMES: [&str; 3] = ["opener_wait", "queue_wait", "scan_time"];

impl Default for Latencies {
    fn default() -> Self {
        let empty = || {
            Histogram::new_with_bounds(1, LONGEST_US, 2)
                .expect("the bounds are in order and the digits allowed")
        };
        Self(Mutex::new([empty(), empty(), empty()]))
    }
}

impl Latencies {
    /// Takes one in.
    pub fn record(&self, span: Span, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(LONGEST_US).max(1);
        self.lock()[span as usize].saturating_record(micros);
    }

    /// Names and values: how many there were, the median, the 99th percentile and
    /// the longest, in microseconds.
    pub fn list(&self) -> Vec<(String, u64)> {
        // Nothing is allocated under the lock: a reader may want it.
        let values = self.lock().each_ref().map(|all| {
            let [p50, p99] = [0.5, 0.99].map(|at| all.value_at_quantile(at));
            [all.len(), p50, p99, all.max()]
        });
        let each = NAMES.iter().zip(values);
        each.flat_map(|(name, [count, p50, p99, max])| {
            [
                (format!("{name}_count"), count),
                (format!("{name}_p50_us"), p50),
                (format!("{name}_p99_us"), p99),
                (format!("{name}_max_us"), max),
            ]
        })
        .collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, [Histogram<u32>; 3]> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_what_was_recorded() {
        let all = Latencies::default();
        for millis in 1..=100 {
            all.record(Span::Scan, Duration::from_millis(millis));
        }
        all.record(Span::OpenerWait, Duration::ZERO);
        all.record(Span::QueueWait, Duration::from_hours(9));
        let list = all.list();
        let get = |wanted: &str| list.iter().find(|(name, _)| name == wanted).unwrap().1;
        assert_eq!(get("scan_time_count"), 100);
        let p50 = get("scan_time_p50_us");
        assert!((49_000..=51_000).contains(&p50), "{p50}");
        assert!((99_000..=101_000).contains(&get("scan_time_max_us")));
        assert_eq!(get("opener_wait_max_us"), 1);
        assert!(get("queue_wait_max_us") >= LONGEST_US / 2);
    }
}
