//! Workload: opens that must not reach the agent at all.
//!
//! Repeat opens of a clean file, opens out of scope, opens under an excluded
//! path: each after it has settled, and only if the agent's counters show that
//! the measured opens raised no events.

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
};

use onacc_tests::{Agent, ScratchFs};

use crate::{
    bench::{
        clock::{Sample, time_opens},
        floor,
        peer::Peer,
        report::shown,
        row::{Column, Goal, Reading, Row, Unit, take},
        stage::{Mode, Stage, Watch, end, grown, probe, rest, settle},
    },
    shell::Result,
};

/// Measures.
pub fn measure(stage: &Stage) -> Result<Vec<Row>> {
    let mut all = Vec::new();
    for (mode, left) in Mode::ALL.into_iter().zip([1, 0]) {
        all.extend(in_mode(stage, mode, left)?);
    }
    Ok(all)
}

fn in_mode(stage: &Stage, mode: Mode, loops_left: u32) -> Result<Vec<Row>> {
    let scratch = ScratchFs::ext4(512)?;
    let watched = scratch.mkdir("watched");
    let excluded = scratch.mkdir("watched/excluded");
    scratch.mkdir("elsewhere");
    let files = ["watched/file", "elsewhere/file", "watched/excluded/file"]
        .map(|name| scratch.write(name, &stage.content(4096)));
    let probe = probe(&watched.join("eicar.com"))?;
    rest(scratch.path())?;
    let watch = Watch::new(&watched)
        .mode(mode)
        .option(format!("OnAccessExcludePath {}", excluded.display()));
    let mut rows = [
        ("repeat open of a clean file", 1.2),
        ("open out of scope", 1.25),
        ("open under an excluded path", 1.25),
    ]
    .map(|(name, most)| {
        let mut row = Row::new(format!("{name}{}", mode.suffix()), Unit::Nanoseconds);
        match mode {
            Mode::Prevention => row.goal(Goal::RatioAtMost(most)),
            // Its goals are in the workload notify-only.
            Mode::NotifyOnly => {
                row.absent(Column::MarksAlone, "no marks on opens here");
                row
            }
        }
    });
    for _ in stage.rounds(stage.plan.rounds, loops_left) {
        take(&mut rows, Column::Baseline, || {
            time_all(stage, &files, None)
        });
        take(&mut rows, Column::MarksAlone, || {
            let [file, outside, under] = &files;
            let directories = [outside, under].map(|file| file.parent().unwrap_or(file));
            let floor = floor::start_ignoring(&probe, &[file], &directories)?;
            let readings = time_all(stage, &files, None)?;
            let answered = floor.end()?;
            if answered > 1 {
                return Err(format!("{answered} events in spite of the marks"));
            }
            Ok(readings)
        });
        take(&mut rows, Column::Onacc, || {
            let agent = stage.onacc(&watch)?;
            let readings = time_all(stage, &files, Some(Opposite::Agent(&agent, mode)))?;
            end(agent)?;
            Ok(readings)
        });
        take(&mut rows, Column::Clamonacc, || {
            let peer = stage.clamonacc(&watch, std::slice::from_ref(&probe))?;
            let readings = time_all(stage, &files, Some(Opposite::Peer(&peer)))?;
            peer.end()?;
            Ok(readings)
        });
    }
    Ok(rows.into())
}

/// Who watches meanwhile.
#[derive(Clone, Copy)]
enum Opposite<'a> {
    Agent(&'a Agent, Mode),
    Peer(&'a Peer),
}

fn time_all(stage: &Stage, files: &[PathBuf], opposite: Option<Opposite>) -> Result<Vec<Reading>> {
    files
        .iter()
        .map(|file| match opposite {
            None => time_opens(file, stage.plan.loops).map(|sample| reading(sample, None)),
            Some(Opposite::Agent(agent, mode)) => time_with_onacc(stage, file, (agent, mode)),
            Some(Opposite::Peer(peer)) => {
                let meter = stage.meter(peer.pid())?;
                let sample = time_opens(file, stage.plan.loops)?;
                Ok(reading(sample, None).cpu(meter.each(sample.count)?))
            }
        })
        .collect()
}

fn time_with_onacc(stage: &Stage, file: &Path, (agent, mode): (&Agent, Mode)) -> Result<Reading> {
    // Notify-only, eBPF tells of opens; where it does not, fanotify does.
    let counted = match mode {
        Mode::NotifyOnly if agent.output().contains("opens are told by eBPF") => "told_opens",
        _ => "events",
    };
    settle(agent, counted, || match std::fs::File::open(file) {
        Ok(_) => Ok(()),
        Err(error) => Err(format!("opening {}: {error}", file.display())),
    })?;
    let (before, meter) = (agent.counters()?, stage.meter(agent.pid())?);
    let sample = time_opens(file, stage.plan.loops)?;
    let cpu = meter.each(sample.count)?;
    let events = grown(&before, &agent.counters()?, counted)?;
    let count = u64::try_from(sample.count).unwrap_or(u64::MAX);
    if events > count / 100 {
        return Err(format!("{events} events in {count} opens: not settled"));
    }
    Ok(reading(sample, Some(events)).cpu(cpu))
}

fn reading(sample: Sample, events: Option<u64>) -> Reading {
    let p99 = shown(Unit::Nanoseconds, sample.p99);
    let mut note = format!("{} opens, p99 {p99}", sample.count);
    if let Some(events) = events {
        let _ = write!(note, ", events raised: {events}");
    }
    Reading::from(sample.p50).note(note)
}
