//! Workload: what a writer pays for the agent's hook on dirtied inodes, which
//! fires for every filesystem of the host.
//!
//! Appends and rewrites of 4 KiB, to a file that stays open, on the watched
//! filesystem and on one that is not watched; with prevention and notify-only, where
//! the hooks on opens are attached besides.

use std::{
    fs::{File, OpenOptions},
    os::unix::fs::FileExt as _,
};

use onacc_tests::{Agent, ScratchFs};

use crate::{
    bench::{
        clock::{Sample, time},
        row::{Column, Reading, Row, Unit, take},
        stage::{Mode, Stage, Watch, end, grown},
    },
    shell::Result,
};

const BLOCK: [u8; 4096] = [b'.'; 4096];
/// Blocks of a file, 2 MiB: then it is cut, or begun again.
const BLOCKS: u64 = 512;

/// Measures.
pub fn measure(stage: &Stage) -> Result<Vec<Row>> {
    let scratch = ScratchFs::ext4(512)?;
    let other = ScratchFs::ext4(512)?;
    let watched = scratch.mkdir("watched");
    let files = [open(&watched.join("file"))?, open(&other.join("file"))?];
    let mut all = Vec::new();
    for (mode, left) in Mode::ALL.into_iter().zip([1, 0]) {
        let watch = Watch::new(&watched).mode(mode);
        let mut rows = [
            "append of 4 KiB, watched filesystem",
            "rewrite of 4 KiB, watched filesystem",
            "append of 4 KiB, unwatched filesystem",
            "rewrite of 4 KiB, unwatched filesystem",
        ]
        .map(|name| Row::new(format!("{name}{}", mode.suffix()), Unit::Nanoseconds));
        for _ in stage.rounds(stage.plan.rounds, left) {
            take(&mut rows, Column::Baseline, || {
                write_all(stage, &files, None)
            });
            take(&mut rows, Column::Onacc, || {
                let agent = stage.onacc(&watch)?;
                let readings = write_all(stage, &files, Some(&agent))?;
                end(agent)?;
                Ok(readings)
            });
        }
        all.extend(rows);
    }
    Ok(all)
}

fn open(path: &std::path::Path) -> Result<File> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(path)
        .map_err(|error| format!("{}: {error}", path.display()))
}

fn write_all(stage: &Stage, files: &[File], agent: Option<&Agent>) -> Result<Vec<Reading>> {
    let mut readings = Vec::new();
    for file in files {
        for appends in [true, false] {
            let before = agent.map(Agent::counters).transpose()?;
            let meter = agent.map(|agent| stage.meter(agent.pid())).transpose()?;
            let sample = write_often(stage, file, appends)?;
            let mut reading = Reading::from(sample.p50);
            if let Some(meter) = meter {
                reading = reading.cpu(meter.each(sample.count)?);
            }
            if let (Some(agent), Some(before)) = (agent, before) {
                let seen = grown(&before, &agent.counters()?, "bpf_seen")?;
                let note = format!("{} writes, hook ran {seen} times", sample.count);
                reading = reading.note(note);
            }
            readings.push(reading);
        }
    }
    Ok(readings)
}

fn write_often(stage: &Stage, file: &File, appends: bool) -> Result<Sample> {
    let fail = |error| format!("a file to write to: {error}");
    file.set_len(0).map_err(fail)?;
    if !appends {
        for block in 0..BLOCKS {
            file.write_all_at(&BLOCK, block * 4096).map_err(fail)?;
        }
    }
    rest_of(file)?;
    let mut block = 0;
    time(stage.plan.loops, || {
        // Cutting is timed too, once in 512 writes: the median does not see it.
        if appends && block == BLOCKS {
            file.set_len(0).map_err(|error| errno(&error))?;
        }
        block %= BLOCKS;
        let written = file.write_all_at(&BLOCK, block * 4096);
        block += 1;
        written.map_err(|error| errno(&error))
    })
}

fn errno(error: &std::io::Error) -> nix::errno::Errno {
    nix::errno::Errno::from_raw(error.raw_os_error().unwrap_or_default())
}

/// Begins with clean pages and an idle disk.
fn rest_of(file: &File) -> Result<()> {
    nix::unistd::syncfs(file).map_err(|error| format!("syncing: {error}"))
}
