//! What /proc says of a process: processor time by thread, resident memory.
//!
//! Owns: reading it. Must not: judge it. Tested below.

use std::{collections::BTreeMap, fs, path::Path, time::Duration};

use nix::{
    sys::{
        resource::{UsageWho, getrusage},
        time::TimeValLike as _,
    },
    unistd::Pid,
};

use crate::shell::Result;

/// What the scheduler has counted of a thread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Times {
    /// Nanoseconds on a processor.
    ran: u64,
    /// Nanoseconds ready to run, without a processor.
    queued: u64,
    /// Times that it was given a processor.
    turns: u64,
}

/// Processor time of a process by the names of its threads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CpuTimes(BTreeMap<String, Times>);

impl CpuTimes {
    /// Of the threads that live now.
    pub fn of(pid: u32) -> Result<Self> {
        let dir = format!("/proc/{pid}/task");
        let tasks = fs::read_dir(&dir).map_err(|error| format!("{dir}: {error}"))?;
        let mut times = BTreeMap::new();
        for task in tasks.flatten() {
            // A thread that has ended meanwhile is gone with its time.
            if let Some((name, more)) = of_thread(&task.path()) {
                let sum: &mut Times = times.entry(name).or_default();
                sum.ran += more.ran;
                sum.queued += more.queued;
                sum.turns += more.turns;
            }
        }
        Ok(Self(times))
    }

    /// Of all threads together since an earlier look.
    pub fn since(&self, before: &Self) -> Duration {
        let spent = self.0.iter().map(|(name, now)| {
            let old = before.0.get(name).copied().unwrap_or_default();
            now.ran.saturating_sub(old.ran)
        });
        Duration::from_nanos(spent.sum())
    }

    /// Of one thread of this process.
    pub fn of_one(thread: Pid) -> Result<Self> {
        let dir = format!("/proc/self/task/{thread}");
        let times = of_thread(Path::new(&dir)).ok_or_else(|| format!("{dir}: no such thread"))?;
        Ok(Self(BTreeMap::from([times])))
    }

    /// What fell to each of `count` since an earlier look, thread by thread: time
    /// on a processor, time waiting for one, turns. Threads of less than a tenth
    /// of a microsecond are left out.
    pub fn each_since(&self, before: &Self, count: u32) -> String {
        let parts: Vec<String> = self
            .0
            .iter()
            .filter_map(|(name, now)| {
                let old = before.0.get(name).copied().unwrap_or_default();
                let each = |now: u64, old: u64| {
                    let spent = Duration::from_nanos(now.saturating_sub(old));
                    spent.as_secs_f64() * 1e6 / f64::from(count)
                };
                let ran = each(now.ran, old.ran);
                let queued = each(now.queued, old.queued);
                // The same arithmetic serves a plain count.
                let turns = each(now.turns, old.turns) * 1e3;
                (ran >= 0.1)
                    .then(|| format!("{name} {ran:.1} µs ({queued:.1} queued, {turns:.1} turns)"))
            })
            .collect();
        if parts.is_empty() {
            "under 0.1 µs".to_owned()
        } else {
            parts.join(", ")
        }
    }
}

fn of_thread(dir: &Path) -> Option<(String, Times)> {
    let name = fs::read_to_string(dir.join("comm")).ok()?;
    let stat = fs::read_to_string(dir.join("schedstat")).ok()?;
    let mut numbers = stat.split_whitespace().map(|word| word.parse().ok());
    let times = Times {
        ran: numbers.next()??,
        queued: numbers.next()??,
        turns: numbers.next()??,
    };
    Some((name.trim().to_owned(), times))
}

/// Processor time of all our own threads, those that have ended included.
pub fn own_time() -> Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_SELF).map_err(|error| format!("getrusage: {error}"))?;
    let sum = usage.user_time() + usage.system_time();
    Ok(Duration::from_micros(
        u64::try_from(sum.num_microseconds()).unwrap_or_default(),
    ))
}

/// Resident memory of a process.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Memory {
    /// All of it, in KiB: `VmRSS`.
    pub resident: f64,
    /// What is its own, in KiB; the rest are pages of files.
    pub anonymous: f64,
}

impl Memory {
    /// Of a process, now.
    pub fn of(pid: u32) -> Result<Self> {
        let path = format!("/proc/{pid}/status");
        let text = fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))?;
        Self::parse(&text).ok_or_else(|| format!("{path} has no VmRSS"))
    }

    fn parse(status: &str) -> Option<Self> {
        let kib = |name| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim().strip_suffix("kB")?.trim().parse().ok()
        };
        Some(Self {
            resident: kib("VmRSS:")?,
            anonymous: kib("RssAnon:")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resident_memory_is_read_from_status() {
        let memory = Memory::parse("Name:\tx\nVmRSS:\t  5120 kB\nRssAnon:\t  20 kB\n").unwrap();
        assert!((memory.resident - 5120.0).abs() < 0.1, "{memory:?}");
        assert!((memory.anonymous - 20.0).abs() < 0.1, "{memory:?}");
        assert_eq!(Memory::parse("Name:\tx\n"), None);
        assert!(Memory::of(std::process::id()).unwrap().resident > 100.0);
    }

    #[test]
    fn processor_time_is_by_thread() {
        let times = |entries: &[(&str, u64)]| {
            let times = |ran| Times {
                ran,
                queued: ran / 2,
                turns: ran / 1000,
            };
            let entries = entries.iter();
            CpuTimes(
                entries
                    .map(|(name, ran)| ((*name).to_owned(), times(*ran)))
                    .collect(),
            )
        };
        let before = times(&[("reader", 1_000_000)]);
        let after = times(&[("idle", 5), ("reader", 3_000_000), ("scan", 4_500_000)]);
        assert_eq!(
            after.each_since(&before, 1000),
            "reader 2.0 µs (1.0 queued, 2.0 turns), scan 4.5 µs (2.2 queued, 4.5 turns)"
        );
        assert_eq!(before.each_since(&before, 10), "under 0.1 µs");
        assert_eq!(after.since(&before), Duration::from_nanos(6_500_005));
        assert!(CpuTimes::of(std::process::id()).is_ok());
    }
}
