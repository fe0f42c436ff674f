//! Openers in a process of their own, and the distribution of what they wait.
//!
//! A process of its own, because clamonacc goes by the process whose uid is excluded,
//! not by the thread; it is the same in every column. Owns: starting it, its loop,
//! its words. Must not: know what an agent is. Tested below.

use std::{
    env,
    fs::File,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::unistd::{Uid, setresuid};
use onacc_tests::sys::die_with_parent;

use crate::{
    bench::{
        clock::nanoseconds,
        row::{Cpu, POINTS, Reading},
        stats::quantile,
    },
    shell::Result,
};

/// The hidden command of xtask that opens.
const COMMAND: &str = "bench-openers";

/// Who opens what, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct Openers<'a> {
    /// Where the files are, named as `Stage::files` names them.
    pub dir: &'a Path,
    /// How many there are.
    pub files: usize,
    /// How many open at the same time.
    pub count: usize,
    /// As which user.
    pub uid: u32,
    /// How long.
    pub time: Duration,
}

/// What openers waited.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waits {
    /// How many opens were measured.
    pub count: usize,
    /// The points of the distribution, in nanoseconds.
    points: [u64; POINTS.len()],
}

impl Waits {
    /// The distribution of these nanoseconds.
    pub fn of(mut times: Vec<u64>) -> Result<Self> {
        if times.is_empty() {
            return Err("nothing was measured".to_owned());
        }
        times.sort_unstable();
        Ok(Self {
            count: times.len(),
            points: POINTS.map(|(thousandths, _)| quantile(&times, thousandths)),
        })
    }

    /// A reading for each point; the first has the remark and the processor time.
    pub fn readings(&self, cpu: Option<Cpu>, note: &str) -> Vec<Reading> {
        let value = |ns: u64| (Duration::from_nanos(ns).as_secs_f64() * 1e9).round();
        let mut all: Vec<Reading> = self.points.map(|ns| value(ns).into()).into();
        if let Some(first) = all.first_mut() {
            first.cpu = cpu;
            first.notes.push(format!("{} opens{note}", self.count));
        }
        all
    }

    fn words(&self) -> String {
        let points = self.points.map(|ns| ns.to_string());
        format!("{} {}", self.count, points.join(" "))
    }

    fn parse(words: &str) -> Option<Self> {
        let mut numbers = words
            .split_whitespace()
            .map(|word| word.parse::<u64>().ok());
        let count = usize::try_from(numbers.next()??).ok()?;
        let mut points = [0; POINTS.len()];
        for point in &mut points {
            *point = numbers.next()??;
        }
        numbers.next().is_none().then_some(Self { count, points })
    }
}

impl Openers<'_> {
    /// Has another process open, again and again.
    pub fn open(&self) -> Result<Waits> {
        let own = env::current_exe().map_err(|error| format!("our own program: {error}"))?;
        let mut command = Command::new(own);
        command
            .args([COMMAND, &self.uid.to_string()])
            .arg(self.dir)
            .args([self.files.to_string(), self.count.to_string()])
            .arg(self.time.as_millis().to_string())
            .stdin(Stdio::null())
            .stderr(Stdio::inherit());
        let output = die_with_parent(&mut command)
            .output()
            .map_err(|error| format!("the openers do not start: {error}"))?;
        let text = String::from_utf8_lossy(&output.stdout);
        Waits::parse(&text)
            .filter(|_| output.status.success())
            .ok_or_else(|| format!("the openers ended with {}: {text}", output.status))
    }

    /// The other process: becomes the user, opens, prints what it took.
    pub fn open_as_child(&self) -> Result<()> {
        let uid = Uid::from_raw(self.uid);
        setresuid(uid, uid, uid).map_err(|error| format!("becoming {uid}: {error}"))?;
        let files: Vec<PathBuf> = (0..self.files)
            .map(|number| self.dir.join(format!("{number}.txt")))
            .collect();
        let warm = open_for(&files, self.count, self.time / 10)?;
        drop(warm);
        let waits = Waits::of(open_for(&files, self.count, self.time)?)?;
        println!("{}", waits.words());
        Ok(())
    }
}

/// Opens all the time, different openers at different files.
fn open_for(files: &[PathBuf], openers: usize, time: Duration) -> Result<Vec<u64>> {
    let until = Instant::now() + time;
    each_opener(openers, |number| {
        let mut times = Vec::new();
        let from = number * files.len() / openers;
        for path in files.iter().cycle().skip(from) {
            times.push(time_one(path)?);
            if Instant::now() >= until {
                break;
            }
        }
        Ok(times)
    })
}

/// Opens each file once, shared out among openers.
pub fn open_once(files: &[PathBuf], openers: usize) -> Result<Waits> {
    Waits::of(time_once(files, openers)?)
}

/// The same: what each open took, in nanoseconds.
pub fn time_once(files: &[PathBuf], openers: usize) -> Result<Vec<u64>> {
    let share = files.len().div_ceil(openers).max(1);
    let parts: Vec<&[PathBuf]> = files.chunks(share).collect();
    each_opener(parts.len(), |number| {
        parts[number].iter().map(|path| time_one(path)).collect()
    })
}

fn each_opener(
    openers: usize,
    work: impl Fn(usize) -> Result<Vec<u64>> + Sync,
) -> Result<Vec<u64>> {
    let work = &work;
    let parts = thread::scope(|scope| {
        let threads: Vec<_> = (0..openers)
            .map(|number| scope.spawn(move || work(number)))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().map_err(|_| "an opener panicked".to_owned())?)
            .collect::<Result<Vec<_>>>()
    })?;
    Ok(parts.concat())
}

fn time_one(path: &Path) -> Result<u64> {
    let before = Instant::now();
    let opened = File::open(path);
    let took = before.elapsed();
    match opened {
        Ok(_) => Ok(nanoseconds(took)),
        Err(error) => Err(format!("opening {}: {error}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_distribution_has_all_its_points_in_order() {
        let waits = Waits::of((1..=2000).rev().collect()).unwrap();
        assert_eq!(
            (waits.count, waits.points),
            (2000, [1001, 1801, 1981, 1999, 2000])
        );
        assert!(Waits::of(Vec::new()).is_err());
    }

    #[test]
    fn what_the_child_prints_is_read_again() {
        let waits = Waits::of(vec![5, 7, 9]).unwrap();
        assert_eq!(Waits::parse(&waits.words()), Some(waits));
        assert_eq!(Waits::parse("3 1 2"), None);
        assert_eq!(Waits::parse("3 1 2 3 4 5 6"), None);
    }

    #[test]
    fn every_file_is_opened_once_and_a_missing_one_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let mut files: Vec<PathBuf> = (0..10).map(|n| dir.path().join(n.to_string())).collect();
        for file in &files {
            std::fs::write(file, b"x").unwrap();
        }
        assert_eq!(open_once(&files, 4).unwrap().count, 10);
        assert!(open_for(&files, 3, Duration::from_millis(5)).unwrap().len() >= 3);
        files.push(dir.path().join("missing"));
        assert!(open_once(&files, 4).is_err_and(|why| why.contains("missing")));
    }
}
