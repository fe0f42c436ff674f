//! Workload: first opens of files of 1 MiB and of 100 MiB, passed by fd and sent
//! in chunks.
//!
//! The baseline is a minimal client of the same clamd that has one file after the
//! other scanned in the same way. Every file has content that no other has.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use onacc_tests::{ScratchFs, client::Session};

use crate::{
    bench::{
        row::{Column, Reading, Row, Unit, take},
        stage::{Stage, Watch, end, grown, probe, rest},
    },
    shell::Result,
};

const REPLY_LIMIT: Duration = Duration::from_mins(2);

/// Sizes in MiB, and how many files of each.
const SIZES: [(usize, usize); 2] = [(1, 20), (100, 2)];
/// How files get to clamd.
const WAYS: [(&str, bool); 2] = [("by fd", false), ("in chunks", true)];

/// Measures.
pub fn measure(stage: &Stage) -> Result<Vec<Row>> {
    let scratch = ScratchFs::ext4(2048)?;
    let watched = scratch.mkdir("watched");
    let probe = probe(&watched.join("eicar.com"))?;
    let mut all = Vec::new();
    for ((way, streamed), loops_left) in WAYS.into_iter().zip([1, 0]) {
        let mut rows = SIZES.map(|(mib, _)| {
            let name = format!("first opens of {mib} MiB files, {way}");
            Row::new(name, Unit::Milliseconds).beside("one in flight")
        });
        let mut watch = Watch::new(&watched)
            .option("OnAccessMaxFileSize 200M")
            .option("OnAccessCurlTimeout 60000")
            .guard(Duration::from_mins(4));
        if streamed {
            watch.args.push("--stream".to_owned());
        }
        for _ in stage.rounds(stage.plan.long_rounds, loops_left) {
            let dir = watched.join("files");
            let files = Files::write(stage, &dir)?;
            take(&mut rows, Column::Baseline, || {
                files
                    .client
                    .iter()
                    .map(|some| ask(stage, some, streamed))
                    .collect()
            });
            take(&mut rows, Column::Onacc, || {
                let agent = stage.onacc(&watch)?;
                let before = agent.counters()?;
                let readings = files
                    .onacc
                    .iter()
                    .map(|some| open(stage, agent.pid(), some))
                    .collect();
                let after = agent.counters()?;
                end(agent)?;
                let wanted = SIZES.iter().map(|(_, count)| *count as u64).sum::<u64>();
                let scans = grown(&before, &after, "scans")?;
                let sent = grown(&before, &after, "streamed_bytes")?;
                if scans < wanted || streamed != (sent > 0) {
                    return Err(format!(
                        "{wanted} opens, {scans} scans, {sent} bytes in chunks"
                    ));
                }
                readings
            });
            if streamed {
                for row in &mut rows {
                    row.absent(Column::Clamonacc, "measured in its usual way above");
                }
            } else {
                take(&mut rows, Column::Clamonacc, || {
                    let peer = stage.clamonacc(&watch, std::slice::from_ref(&probe))?;
                    let readings = files
                        .peer
                        .iter()
                        .map(|some| open(stage, peer.pid(), some))
                        .collect();
                    peer.end()?;
                    readings
                });
            }
            fs::remove_dir_all(&dir).map_err(|error| format!("{}: {error}", dir.display()))?;
        }
        all.extend(rows);
    }
    Ok(all)
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

fn open(stage: &Stage, agent: u32, files: &[PathBuf]) -> Result<Reading> {
    let meter = stage.meter(agent)?;
    let before = Instant::now();
    for path in files {
        File::open(path).map_err(|error| format!("opening {}: {error}", path.display()))?;
    }
    let took = before.elapsed();
    Ok(each(took, files.len()).cpu(meter.each(files.len())?))
}

fn each(took: Duration, count: usize) -> Reading {
    let count = u32::try_from(count).unwrap_or(u32::MAX);
    Reading::from(took.as_secs_f64() * 1e3 / f64::from(count))
}
