//! Workload: opens that must not reach the agent at all.
//!
//! Repeat opens of a clean file, opens out of scope, opens under an excluded
//! path: each after it has settled, and only if the agent's counters show that
//! the measured opens raised no events.

use std::{fmt::Write as _, path::PathBuf};

use onacc_tests::{Agent, ScratchFs};

use crate::{
    bench::{
        clock::{Sample, time_opens},
        floor::Floor,
        report::shown,
        row::{Column, Goal, Reading, Row, Unit, take},
        stage::{Stage, Watch, end, grown, probe, rest, settle},
    },
    shell::Result,
};

/// Measures.
pub fn measure(stage: &Stage) -> Result<Vec<Row>> {
    let scratch = ScratchFs::ext4(512)?;
    let watched = scratch.mkdir("watched");
    let excluded = scratch.mkdir("watched/excluded");
    scratch.mkdir("elsewhere");
    let files = ["watched/file", "elsewhere/file", "watched/excluded/file"]
        .map(|name| scratch.write(name, &stage.content(4096)));
    let probe = probe(&watched.join("eicar.com"))?;
    rest(scratch.path())?;
    let watch = Watch::new(&watched).option(format!("OnAccessExcludePath {}", excluded.display()));
    let mut rows = [
        ("repeat open of a clean file", 1.2),
        ("open out of scope", 1.25),
        ("open under an excluded path", 1.25),
    ]
    .map(|(name, most)| Row::new(name, Unit::Nanoseconds).goal(Goal::RatioAtMost(most)));
    for _ in 0..stage.plan.rounds {
        take(&mut rows, Column::Baseline, || {
            time_all(stage, &files, None)
        });
        take(&mut rows, Column::MarksAlone, || {
            let [file, outside, under] = &files;
            let directories = [outside, under].map(|file| file.parent().unwrap_or(file));
            let floor = Floor::start_ignoring(&probe, &[file], &directories)?;
            let readings = time_all(stage, &files, None)?;
            let answered = floor.end()?;
            if answered > 1 {
                return Err(format!("{answered} events in spite of the marks"));
            }
            Ok(readings)
        });
        take(&mut rows, Column::Onacc, || {
            let agent = stage.onacc(&watch)?;
            let readings = time_all(stage, &files, Some(&agent))?;
            end(agent)?;
            Ok(readings)
        });
        take(&mut rows, Column::Clamonacc, || {
            let peer = stage.clamonacc(&watch, std::slice::from_ref(&probe))?;
            let readings = time_all(stage, &files, None)?;
            peer.end()?;
            Ok(readings)
        });
    }
    Ok(rows.into())
}

fn time_all(stage: &Stage, files: &[PathBuf], agent: Option<&Agent>) -> Result<Vec<Reading>> {
    files
        .iter()
        .map(|file| {
            let time = || time_opens(file, stage.plan.loops);
            match agent {
                None => time().map(|sample| reading(sample, None)),
                Some(agent) => {
                    let open = || match std::fs::File::open(file) {
                        Ok(_) => Ok(()),
                        Err(error) => Err(format!("opening {}: {error}", file.display())),
                    };
                    settle(agent, open)?;
                    let before = agent.counters()?;
                    let sample = time()?;
                    let events = grown(&before, &agent.counters()?, "events")?;
                    let count = u64::try_from(sample.count).unwrap_or(u64::MAX);
                    if events > count / 100 {
                        return Err(format!("{events} events in {count} opens: not settled"));
                    }
                    Ok(reading(sample, Some(events)))
                }
            }
        })
        .collect()
}

fn reading(sample: Sample, events: Option<u64>) -> Reading {
    let p99 = shown(Unit::Nanoseconds, sample.p99);
    let mut note = format!("{} opens, p99 {p99}", sample.count);
    if let Some(events) = events {
        let _ = write!(note, ", events raised: {events}");
    }
    Reading::from(sample.p50).note(note)
}
