//! Workload: first opens of files of 1 MiB and of 100 MiB, passed by fd and sent
//! in chunks; and notify-only by fd, where what counts is until all are scanned.
//!
//! The baseline is a minimal client of the same clamd that has one file after the
//! other scanned in the same way. Every file has content that no other has.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use onacc_tests::{ScratchFs, client::Session};

use crate::{
    bench::{
        cpu::CpuTimes,
        first_waits::wait_for_last,
        row::{Column, Reading, Row, Unit, take},
        stage::{Mode, Stage, Watch, end, grown, probe, rest},
    },
    shell::Result,
};

const REPLY_LIMIT: Duration = Duration::from_mins(2);

/// Sizes in MiB, and how many files of each.
const SIZES: [(usize, usize); 2] = [(1, 20), (100, 2)];
/// How files get to clamd, and whether openers wait. (How they get there is the same
/// if nobody waits.)
const WAYS: [Way; 3] = [
    Way {
        name: "by fd",
        streamed: false,
        mode: Mode::Prevention,
    },
    Way {
        name: "in chunks",
        streamed: true,
        mode: Mode::Prevention,
    },
    Way {
        name: "by fd, until scanned",
        streamed: false,
        mode: Mode::NotifyOnly,
    },
];

#[derive(Clone, Copy)]
struct Way {
    name: &'static str,
    streamed: bool,
    mode: Mode,
}

/// Measures.
pub fn measure(stage: &Stage) -> Result<Vec<Row>> {
    let scratch = ScratchFs::ext4(2048)?;
    let watched = scratch.mkdir("watched");
    let mut all = Vec::new();
    for (way, loops_left) in WAYS.into_iter().zip([2, 1, 0]) {
        all.extend(by(stage, &watched, way, loops_left)?);
    }
    Ok(all)
}

fn by(stage: &Stage, watched: &Path, way: Way, loops_left: u32) -> Result<Vec<Row>> {
    let probe = probe(&watched.join("eicar.com"))?;
    let mut rows = SIZES.map(|(mib, _)| {
        let suffix = way.mode.suffix();
        let name = format!("first opens of {mib} MiB files, {}{suffix}", way.name);
        Row::new(name, Unit::Milliseconds).beside("one in flight")
    });
    let mut watch = Watch::new(watched)
        .mode(way.mode)
        .option("OnAccessMaxFileSize 200M")
        .option("OnAccessCurlTimeout 60000")
        .guard(Duration::from_mins(4));
    if way.streamed {
        watch.args.push("--stream".to_owned());
    }
    for _ in stage.rounds(stage.plan.long_rounds, loops_left) {
        let dir = watched.join("files");
        let files = Files::write(stage, &dir)?;
        take(&mut rows, Column::Baseline, || {
            let all = files.client.iter();
            all.map(|some| ask(stage, some, way.streamed)).collect()
        });
        take(&mut rows, Column::Onacc, || {
            by_onacc(stage, &watch, &files.onacc, way)
        });
        if way.streamed {
            for row in &mut rows {
                row.absent(Column::Clamonacc, "measured in its usual way above");
            }
        } else {
            take(&mut rows, Column::Clamonacc, || {
                by_clamonacc(stage, &watch, (&files.peer, &probe), way)
            });
        }
        fs::remove_dir_all(&dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    }
    Ok(rows.into())
}

fn by_onacc(
    stage: &Stage,
    watch: &Watch,
    files: &[Vec<PathBuf>],
    way: Way,
) -> Result<Vec<Reading>> {
    let agent = stage.onacc(watch)?;
    let before = agent.counters()?;
    let mut wanted = 0;
    let mut readings = Vec::new();
    for some in files {
        wanted += some.len() as u64;
        readings.push(open(stage, agent.pid(), some, || match way.mode {
            Mode::Prevention => Ok(Instant::now()),
            Mode::NotifyOnly => {
                until(|| Ok(grown(&before, &agent.counters()?, "clean")? >= wanted))
            }
        })?);
    }
    let after = agent.counters()?;
    end(agent)?;
    let scans = grown(&before, &after, "scans")?;
    let sent = grown(&before, &after, "streamed_bytes")?;
    if scans < wanted || way.streamed != (sent > 0) {
        return Err(format!(
            "{wanted} opens, {scans} scans, {sent} bytes in chunks"
        ));
    }
    Ok(readings)
}

/// Notify-only it is done with files of one size when it has named one with EICAR that
/// was opened after them, and clamd has nothing left to do: it has many scanned at once.
fn by_clamonacc(
    stage: &Stage,
    watch: &Watch,
    (files, first): (&[Vec<PathBuf>], &PathBuf),
    way: Way,
) -> Result<Vec<Reading>> {
    // Before it starts: it names what is written, too.
    let last = |number| first.with_file_name(format!("last-{number}.com"));
    for number in 0..files.len() {
        probe(&last(number))?;
    }
    let peer = stage.clamonacc(watch, std::slice::from_ref(first))?;
    let mut readings = Vec::new();
    for (number, some) in files.iter().enumerate() {
        readings.push(open(stage, peer.pid(), some, || match way.mode {
            Mode::Prevention => Ok(Instant::now()),
            Mode::NotifyOnly => {
                wait_for_last(&peer, &last(number))?;
                calm(stage)
            }
        })?);
    }
    peer.end()?;
    Ok(readings)
}

fn until(done: impl Fn() -> Result<bool>) -> Result<Instant> {
    let deadline = Instant::now() + REPLY_LIMIT;
    while !done()? {
        if Instant::now() >= deadline {
            return Err("the agent still scans when the time is up".to_owned());
        }
        thread::sleep(Duration::from_millis(1));
    }
    Ok(Instant::now())
}

/// When clamd last did anything, once it has done nothing for a while.
fn calm(stage: &Stage) -> Result<Instant> {
    const CALM: Duration = Duration::from_millis(500);
    let deadline = Instant::now() + REPLY_LIMIT;
    let (mut last, mut spent) = (Instant::now(), CpuTimes::of(stage.clamd.pid())?);
    while last.elapsed() < CALM {
        thread::sleep(Duration::from_millis(5));
        let now = CpuTimes::of(stage.clamd.pid())?;
        if !now.since(&spent).is_zero() {
            (last, spent) = (Instant::now(), now);
        }
        if Instant::now() >= deadline {
            return Err("clamd still works when the time is up".to_owned());
        }
    }
    Ok(last)
}

/// Files of each size, for each column.
struct Files {
    client: Vec<Vec<PathBuf>>,
    onacc: Vec<Vec<PathBuf>>,
    peer: Vec<Vec<PathBuf>>,
}

impl Files {
    fn write(stage: &Stage, dir: &Path) -> Result<Self> {
        let make = |column: &str| -> Result<Vec<Vec<PathBuf>>> {
            SIZES
                .iter()
                .map(|(mib, count)| {
                    write(stage, &dir.join(format!("{column}-{mib}")), *mib, *count)
                })
                .collect()
        };
        let files = Self {
            client: make("client")?,
            onacc: make("onacc")?,
            peer: make("clamonacc")?,
        };
        rest(dir)?;
        Ok(files)
    }
}

fn write(stage: &Stage, dir: &Path, mib: usize, count: usize) -> Result<Vec<PathBuf>> {
    let fail = |error: std::io::Error| format!("files in {}: {error}", dir.display());
    fs::create_dir_all(dir).map_err(fail)?;
    let paths: Vec<PathBuf> = (0..count).map(|n| dir.join(format!("{n}.bin"))).collect();
    for path in &paths {
        fs::write(path, stage.content(mib << 20)).map_err(fail)?;
    }
    Ok(paths)
}

/// A minimal client of clamd.
fn ask(stage: &Stage, files: &[PathBuf], streamed: bool) -> Result<Reading> {
    let fail = |error| format!("a session with clamd: {error}");
    let mut session = Session::connect(&stage.clamd.socket(), REPLY_LIMIT).map_err(fail)?;
    let before = Instant::now();
    for path in files {
        let file = File::open(path).map_err(|error| format!("{}: {error}", path.display()))?;
        if streamed {
            session.instream(&file).map_err(fail)?;
        } else {
            session.fildes(&file).map_err(fail)?;
        }
        let (_, text) = session.reply().map_err(fail)?;
        if !text.ends_with("OK") {
            return Err(format!("clamd says {text}"));
        }
    }
    Ok(each(before.elapsed(), files.len()))
}

/// Opens them, and waits until they are scanned; for each.
fn open(
    stage: &Stage,
    agent: u32,
    files: &[PathBuf],
    until_scanned: impl FnOnce() -> Result<Instant>,
) -> Result<Reading> {
    let meter = stage.meter(agent)?;
    let before = Instant::now();
    for path in files {
        File::open(path).map_err(|error| format!("opening {}: {error}", path.display()))?;
    }
    let took = until_scanned()?.saturating_duration_since(before);
    Ok(each(took, files.len()).cpu(meter.each(files.len())?))
}

fn each(took: Duration, count: usize) -> Reading {
    let count = u32::try_from(count).unwrap_or(u32::MAX);
    Reading::from(took.as_secs_f64() * 1e3 / f64::from(count))
}
