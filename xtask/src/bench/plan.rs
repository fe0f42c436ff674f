//! How much is measured: sizes, rounds, and the time that a run may take.
//!
//! Owns: these numbers. A workload is given a budget of seconds and measures as many
//! rounds as fit, up to the number here; one round is always measured whole.

use std::time::Duration;

use crate::bench::clock::Budget;

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// What the whole run should not exceed, on a machine that nothing else uses.
    pub minutes: u32,
    /// Rounds at most of the workloads that take seconds.
    pub rounds: usize,
    /// Rounds at most of the workloads that take tens of seconds.
    pub long_rounds: usize,
    /// Repeat opens and writes in a round.
    pub loops: Budget,
    /// First opens in a round: by one opener, by eight.
    pub first_opens: [usize; 2],
    /// The same for clamonacc, which is slower by far.
    pub peer_first_opens: [usize; 2],
    /// Rounds at most of programs and of distributions.
    pub program_rounds: usize,
    /// Short-lived processes in a row.
    pub processes: usize,
    /// How long openers open, for one distribution.
    pub waits_time: Duration,
    /// Numbers of files that are opened for the first time, and again and again.
    pub wait_files: &'static [usize],
    /// Directories of the trees that agents start over.
    pub start_up_directories: &'static [usize],
    /// Directories of the tree that memory is measured with.
    pub memory_directories: usize,
    /// Distinct files that are opened before memory is measured.
    pub memory_opens: usize,
    /// How often each of them is opened.
    pub memory_rounds: usize,
    /// Files of the source tree for tar, and of the package.
    pub source_files: usize,
    /// Files of the tree for git.
    pub git_files: usize,
}

impl Plan {
    /// Under five minutes.
    pub fn short() -> Self {
        Self {
            minutes: 5,
            rounds: 7,
            long_rounds: 1,
            loops: Budget {
                count: 20_000,
                limit: Duration::from_millis(700),
                batch: 16,
            },
            first_opens: [800, 1600],
            peer_first_opens: [200, 400],
            program_rounds: 1,
            processes: 500,
            waits_time: Duration::from_millis(200),
            wait_files: &[1000],
            start_up_directories: &[1000, 20_000],
            memory_directories: 20_000,
            memory_opens: 20_000,
            memory_rounds: 1,
            source_files: 500,
            git_files: 500,
        }
    }

    /// For numbers to publish.
    pub fn full() -> Self {
        Self {
            minutes: 25,
            rounds: 15,
            long_rounds: 3,
            loops: Budget {
                count: 50_000,
                limit: Duration::from_secs(1),
                batch: 16,
            },
            first_opens: [2000, 4000],
            peer_first_opens: [500, 1000],
            program_rounds: 3,
            processes: 10_000,
            waits_time: Duration::from_millis(400),
            wait_files: &[1000, 10_000, 100_000],
            start_up_directories: &[1000, 20_000, 100_000],
            memory_directories: 100_000,
            memory_opens: 100_000,
            memory_rounds: 10,
            source_files: 2000,
            git_files: 5000,
        }
    }
}
