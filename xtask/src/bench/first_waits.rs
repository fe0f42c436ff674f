//! Workload: what openers wait for files that nobody has seen, as a distribution, and
//! how many are scanned a second; by 1, 4, 16 and 64 openers, and over up to 100,000
//! files, with prevention and notify-only.
//!
//! Notify-only nobody waits for the scan: the rate counts until all are scanned. For
//! onacc its counters say so; clamonacc has none, and is done when it names a last
//! file, with EICAR.

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use onacc_tests::ScratchFs;

use crate::{
    bench::{
        openers::{Waits, open_once},
        peer::{Peer, is_refused},
        row::{Axis, Column, Cpu, Reading, Row, Unit, take},
        stage::{Mode, Stage, Watch, end, grown, probe},
        waits::{OPENERS, OPENERS_BY_FILES},
    },
    shell::Result,
};

/// How long clamonacc's scans may take to catch up with openers that do not wait.
const SCAN_LIMIT: Duration = Duration::from_mins(2);
/// How long it is before ours are not expected to go on any more.
const STILL: Duration = Duration::from_secs(20);

/// clamonacc, which needs half a minute for 100,000 files, has fewer of them; each is
/// a scan, so that their number changes nothing for it.
const MOST_PEER_FILES: usize = 10_000;

/// One point of a curve.
#[derive(Clone, Copy)]
struct Point {
    mode: Mode,
    openers: usize,
    /// For us and for nobody, and for clamonacc.
    files: [usize; 2],
    axis: Axis,
}

/// Measures.
pub fn measure(stage: &Stage) -> Result<Vec<Row>> {
    let plan = &stage.plan;
    let mut points = Vec::new();
    for mode in Mode::ALL {
        points.extend(OPENERS.map(|openers| Point {
            mode,
            openers,
            files: [plan.first_opens[0], plan.peer_first_opens[0]],
            axis: Axis::Openers,
        }));
    }
    for count in plan.wait_files {
        points.extend(Mode::ALL.map(|mode| Point {
            mode,
            openers: OPENERS_BY_FILES,
            files: [*count, (*count).min(MOST_PEER_FILES)],
            axis: Axis::Files,
        }));
    }
    let mut all = Vec::new();
    for (number, point) in points.iter().enumerate() {
        let left = u32::try_from(points.len() - number - 1).unwrap_or(u32::MAX);
        all.extend(measure_one(stage, *point, left)?);
    }
    Ok(all)
}

fn rows_for(point: Point) -> Vec<Row> {
    let suffix = point.mode.suffix();
    let (curve, at) = match point.axis {
        Axis::Openers => (format!("first opens{suffix}"), point.openers),
        Axis::Files | Axis::Directories => (
            format!("first opens, {} openers{suffix}", point.openers),
            point.files[0],
        ),
    };
    let mut rows = Row::distribution(&curve, point.axis, at);
    let what = match point.mode {
        Mode::Prevention => "opened and scanned",
        Mode::NotifyOnly => "opened, until all are scanned",
    };
    let rate = format!("{curve}, {what}");
    let name = format!("{rate}, {at} {}", point.axis.name());
    rows.push(Row::new(name, Unit::PerSecond).at(rate, point.axis, at));
    rows
}

fn measure_one(stage: &Stage, point: Point, loops_left: u32) -> Result<Vec<Row>> {
    let mut rows = rows_for(point);
    let [count, peer_count] = point.files;
    // An inode for every 16 KiB.
    let inodes = u64::try_from(2 * count + peer_count + 10_000).unwrap_or(u64::MAX);
    let scratch = ScratchFs::ext4((inodes / 64 + 1024).next_multiple_of(1024))?;
    let watched = scratch.mkdir("watched");
    let probes = ["eicar.com", "last.com"].map(|name| probe(&watched.join(name)));
    let [first, last] = probes;
    let (first, last) = (first?, last?);
    let watch = Watch::new(&watched)
        .mode(point.mode)
        .guard(Duration::from_mins(10));
    for _ in stage.rounds(stage.plan.program_rounds, loops_left) {
        let files = |name: &str, count| stage.files(&watched.join(name), count);
        let (none, ours) = (files("none", count)?, files("onacc", count)?);
        let theirs = files("clamonacc", peer_count)?;
        take(&mut rows, Column::Baseline, || {
            open(&none, point.openers, || Ok(())).map(|opened| opened.readings(None))
        });
        take(&mut rows, Column::Onacc, || {
            let agent = stage.onacc(&watch)?;
            let (before, meter) = (agent.counters()?, stage.meter(agent.pid())?);
            let opened = open(&ours, point.openers, || {
                let wanted = u64::try_from(count).unwrap_or(u64::MAX);
                let (mut most, mut since) = (0, Instant::now());
                loop {
                    let clean = grown(&before, &agent.counters()?, "clean")?;
                    if clean >= wanted {
                        return Ok(());
                    }
                    if clean > most {
                        (most, since) = (clean, Instant::now());
                    }
                    if since.elapsed() >= STILL {
                        return Err(format!("only {clean} of {wanted} files were scanned"));
                    }
                    thread::sleep(Duration::from_millis(1));
                }
            })?;
            let cpu = meter.each(count)?;
            end(agent)?;
            Ok(opened.readings(Some(cpu)))
        });
        take(&mut rows, Column::Clamonacc, || {
            let peer = stage.clamonacc(&watch, std::slice::from_ref(&first))?;
            let meter = stage.meter(peer.pid())?;
            let opened = open(&theirs, point.openers, || match point.mode {
                // Each open has waited for its scan.
                Mode::Prevention => Ok(()),
                Mode::NotifyOnly => wait_for_last(&peer, &last),
            })?;
            let cpu = meter.each(peer_count)?;
            peer.end()?;
            Ok(opened.readings(Some(cpu)))
        });
        for name in ["none", "onacc", "clamonacc"] {
            let dir = watched.join(name);
            fs::remove_dir_all(&dir).map_err(|error| format!("{}: {error}", dir.display()))?;
        }
    }
    Ok(rows)
}

/// What opening all files came to.
struct Opened {
    waits: Waits,
    /// Until the last was scanned.
    took: Duration,
}

impl Opened {
    fn readings(&self, cpu: Option<Cpu>) -> Vec<Reading> {
        let mut readings = self.waits.readings(cpu, "");
        let count = u32::try_from(self.waits.count).unwrap_or(u32::MAX);
        readings.push((f64::from(count) / self.took.as_secs_f64()).into());
        readings
    }
}

/// Opens all of them, and then waits for the scans.
fn open(
    files: &[PathBuf],
    openers: usize,
    until_scanned: impl FnOnce() -> Result<()>,
) -> Result<Opened> {
    let before = Instant::now();
    let waits = open_once(files, openers)?;
    until_scanned()?;
    let took = before.elapsed();
    Ok(Opened { waits, took })
}

/// Waits until clamonacc, notify-only, has named this file: all opened before it are
/// scanned then.
pub fn wait_for_last(peer: &Peer, last: &Path) -> Result<()> {
    let deadline = Instant::now() + SCAN_LIMIT;
    // Refused or not: it is in the queue behind all others.
    is_refused(last)?;
    while !peer.has_named(last) {
        if Instant::now() >= deadline {
            return Err(format!("clamonacc never names {}", last.display()));
        }
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}
