//! Workload: what an opener waits, as a distribution, and how it grows with the
//! number of openers and of files.
//!
//! Repeat opens of known files by 1, 4, 16 and 64 openers over 1,000 to 100,000
//! files, and first opens by as many. clamonacc scans every open, so that it is
//! given a second each time and not all files.

use std::{
    fs::{self, File},
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use onacc_tests::ScratchFs;

use crate::{
    bench::{
        clock::nanoseconds,
        report::shown,
        row::{Column, Reading, Row, Unit, take},
        stage::{Stage, Watch, end, probe, rest},
        stats::quantile,
    },
    shell::Result,
};

const OPENERS: [usize; 4] = [1, 4, 16, 64];
/// The points of a distribution, in thousandths, with their names.
const POINTS: [(usize, &str); 5] = [
    (500, "p50"),
    (900, "p90"),
    (990, "p99"),
    (999, "p99.9"),
    (1000, "max"),
];

/// Measures.
pub fn measure(stage: &Stage) -> Result<Vec<Row>> {
    let mut all = Vec::new();
    for openers in OPENERS {
        all.extend(first_opens(stage, openers)?);
    }
    for count in stage.plan.wait_files {
        for openers in OPENERS {
            // Growth along one line at a time: all openers with few files, and
            // all numbers of files with four openers.
            if *count == stage.plan.wait_files[0] || openers == 4 {
                all.extend(repeat_opens(stage, openers, *count)?);
            }
        }
    }
    Ok(all)
}

fn rows_for(name: &str) -> Vec<Row> {
    let points = POINTS.iter();
    points
        .map(|(_, point)| Row::new(format!("{name}, {point}"), Unit::Nanoseconds))
        .collect()
}

/// Every file is opened once, by one opener, and scanned.
fn first_opens(stage: &Stage, openers: usize) -> Result<Vec<Row>> {
    let scratch = ScratchFs::ext4(1024)?;
    let watched = scratch.mkdir("watched");
    let probe = probe(&watched.join("eicar.com"))?;
    let watch = Watch::new(&watched);
    let mut rows = rows_for(&format!("first opens, {openers} openers, waiting"));
    for _ in 0..stage.plan.program_rounds {
        let files = |name: &str, count| stage.files(&watched.join(name), count);
        let count = stage.plan.first_opens[0];
        let (none, ours) = (files("none", count)?, files("onacc", count)?);
        let theirs = files("clamonacc", stage.plan.peer_first_opens[0])?;
        take(&mut rows, Column::Baseline, || open_once(&none, openers));
        take(&mut rows, Column::Onacc, || {
            let agent = stage.onacc(&watch)?;
            let readings = open_once(&ours, openers)?;
            end(agent)?;
            Ok(readings)
        });
        take(&mut rows, Column::Clamonacc, || {
            let peer = stage.clamonacc(&watch, std::slice::from_ref(&probe))?;
            let readings = open_once(&theirs, openers)?;
            peer.end()?;
            Ok(readings)
        });
        for name in ["none", "onacc", "clamonacc"] {
            let dir = watched.join(name);
            fs::remove_dir_all(&dir).map_err(|error| format!("{}: {error}", dir.display()))?;
        }
    }
    Ok(rows)
}

/// The files are known; they are opened again and again for a second.
fn repeat_opens(stage: &Stage, openers: usize, count: usize) -> Result<Vec<Row>> {
    let scratch = ScratchFs::ext4(2048)?;
    let watched = scratch.mkdir("watched");
    let probe = probe(&watched.join("eicar.com"))?;
    let watch = Watch::new(&watched).guard(Duration::from_mins(4));
    let files = stage.files(&watched.join("files"), count)?;
    rest(&watched)?;
    let mut rows = rows_for(&format!("repeat opens, {openers} openers, {count} files"));
    for _ in 0..stage.plan.program_rounds {
        take(&mut rows, Column::Baseline, || open_for(&files, openers));
        take(&mut rows, Column::Onacc, || {
            let agent = stage.onacc(&watch)?;
            for _ in 0..2 {
                open_once(&files, 8)?;
                thread::sleep(Duration::from_millis(300));
            }
            let readings = open_for(&files, openers)?;
            end(agent)?;
            Ok(readings)
        });
        take(&mut rows, Column::Clamonacc, || {
            let peer = stage.clamonacc(&watch, std::slice::from_ref(&probe))?;
            let readings = open_for(&files, openers)?;
            peer.end()?;
            Ok(readings)
        });
    }
    Ok(rows)
}

fn open_once(files: &[PathBuf], openers: usize) -> Result<Vec<Reading>> {
    let share = files.len().div_ceil(openers).max(1);
    let times = thread::scope(|scope| {
        let threads: Vec<_> = files
            .chunks(share)
            .map(|files| scope.spawn(|| files.iter().map(time_one).collect::<Result<Vec<_>>>()))
            .collect();
        joined(threads)
    })?;
    distribution(times)
}

fn open_for(files: &[PathBuf], openers: usize) -> Result<Vec<Reading>> {
    let until = Instant::now() + Duration::from_secs(1);
    let times = thread::scope(|scope| {
        let threads: Vec<_> = (0..openers)
            .map(|number| {
                scope.spawn(move || {
                    let mut times = Vec::new();
                    // Different openers are at different files.
                    let from = number * files.len() / openers;
                    for path in files.iter().cycle().skip(from) {
                        times.push(time_one(path)?);
                        if Instant::now() >= until {
                            break;
                        }
                    }
                    Ok(times)
                })
            })
            .collect();
        joined(threads)
    })?;
    distribution(times)
}

fn joined(threads: Vec<thread::ScopedJoinHandle<'_, Result<Vec<u64>>>>) -> Result<Vec<u64>> {
    let mut all = Vec::new();
    for thread in threads {
        let times = thread.join().map_err(|_| "an opener panicked".to_owned())?;
        all.extend(times?);
    }
    Ok(all)
}

fn time_one(path: &PathBuf) -> Result<u64> {
    let before = Instant::now();
    let opened = File::open(path);
    let took = before.elapsed();
    match opened {
        Ok(_) => Ok(nanoseconds(took)),
        Err(error) => Err(format!("opening {}: {error}", path.display())),
    }
}

fn distribution(mut times: Vec<u64>) -> Result<Vec<Reading>> {
    if times.is_empty() {
        return Err("nothing was measured".to_owned());
    }
    times.sort_unstable();
    let count = times.len();
    let point = |thousandths| {
        let value = Duration::from_nanos(quantile(&times, thousandths));
        (value.as_secs_f64() * 1e9).round()
    };
    let whole: Vec<String> = POINTS
        .iter()
        .map(|(at, name)| format!("{name} {}", shown(Unit::Nanoseconds, point(*at))))
        .collect();
    Ok(POINTS
        .iter()
        .map(|(at, name)| {
            let reading = Reading::from(point(*at));
            if *name == "p50" {
                reading.note(format!("{count} opens: {}", whole.join(", ")))
            } else {
                reading
            }
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_distribution_has_all_its_points_in_order() {
        let readings = distribution((1..=2000).rev().collect()).unwrap();
        let values: Vec<f64> = readings.iter().map(|reading| reading.value).collect();
        assert_eq!(values, [1001.0, 1801.0, 1981.0, 1999.0, 2000.0]);
        assert!(readings[0].notes[0].starts_with("2000 opens: p50 1.00 µs"));
        assert!(distribution(Vec::new()).is_err());
    }
}
