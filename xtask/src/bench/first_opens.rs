//! Workload: first opens of files that nobody has seen, so that each is scanned.
//!
//! The baseline is clamd's own ceiling in the same run: a minimal client with
//! one session, one scan at a time, and with sixteen in flight; it has no opener
//! to wake and no event to answer. With eight in flight stands beside it: eight
//! openers never have more. The minimal agent shows what is left of that where
//! openers wait for answers. Every file has content that no other has, in any
//! round, so that clamd's cache is no help.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use onacc_tests::{Agent, ScratchFs, client::Session};

use crate::{
    bench::{
        clock::sample,
        cpu::{CpuTimes, own_time},
        minimal_agent,
        openers::time_once,
        report::shown,
        row::{Column, Goal, Reading, Row, Unit, take},
        stage::{Stage, Watch, end, grown, probe},
    },
    shell::Result,
};

const OPENERS: usize = 8;
const IN_FLIGHT: usize = 16;
const REPLY_LIMIT: Duration = Duration::from_secs(30);
/// How long counters may lag behind the answers.
const COUNT_LIMIT: Duration = Duration::from_secs(1);

/// Files for one round of one column: for one opener, and for eight.
struct Files([Vec<PathBuf>; 2]);

/// The row of eight openers is there twice, beside two baselines.
fn in_rows([one, eight]: [Reading; 2]) -> Vec<Reading> {
    vec![one, eight.clone(), eight]
}

/// Measures.
pub fn measure(stage: &Stage) -> Result<Vec<Row>> {
    let scratch = ScratchFs::ext4(2048)?;
    let watched = scratch.mkdir("watched");
    let probe = probe(&watched.join("eicar.com"))?;
    let watch = Watch::new(&watched);
    let mut rows = [
        (
            "first opens of 4 KiB files, one opener",
            "one in flight",
            Some(0.8),
        ),
        (
            "first opens of 4 KiB files, eight openers",
            "16 in flight",
            Some(0.9),
        ),
        (
            "the same eight openers, beside as many in flight",
            "8 in flight",
            None,
        ),
    ]
    .map(|(name, beside, least)| {
        let row = Row::new(name, Unit::PerSecond).beside(beside);
        match least {
            Some(least) => row.goal(Goal::RatioAtLeast(least)),
            None => row,
        }
    });
    for _ in stage.rounds(stage.plan.rounds, 0) {
        let make = |name: &str, counts: [usize; 2]| -> Result<Files> {
            let dir = watched.join(name);
            let [one, eight] = counts;
            Ok(Files([
                stage.files(&dir.join("one"), one)?,
                stage.files(&dir.join("eight"), eight)?,
            ]))
        };
        let for_client = make("client", stage.plan.first_opens)?;
        let for_client_again = make("client-again", stage.plan.first_opens)?;
        let for_minimal = make("minimal", stage.plan.first_opens)?;
        let for_onacc = make("onacc", stage.plan.first_opens)?;
        let for_peer = make("clamonacc", stage.plan.peer_first_opens)?;
        take(&mut rows, Column::Baseline, || {
            let Files([one, eight]) = &for_client;
            Ok(vec![
                ask_clamd(stage, one, 1)?,
                ask_clamd(stage, eight, IN_FLIGHT)?,
                ask_clamd(stage, &for_client_again.0[1], OPENERS)?,
            ])
        });
        take(&mut rows, Column::MinimalAgent, || {
            let Files([one, eight]) = &for_minimal;
            let readings = [
                open_with_minimal(stage, &probe, one, 1)?,
                open_with_minimal(stage, &probe, eight, OPENERS)?,
            ];
            Ok(in_rows(readings))
        });
        take(&mut rows, Column::Onacc, || {
            let agent = stage.onacc(&watch)?;
            let Files([one, eight]) = &for_onacc;
            let readings = [
                open_scanned(stage, &agent, one, 1)?,
                open_scanned(stage, &agent, eight, OPENERS)?,
            ];
            end(agent)?;
            Ok(in_rows(readings))
        });
        take(&mut rows, Column::Clamonacc, || {
            let peer = stage.clamonacc(&watch, std::slice::from_ref(&probe))?;
            let Files([one, eight]) = &for_peer;
            let mut readings = Vec::new();
            for (files, openers) in [(one, 1), (eight, OPENERS)] {
                let meter = stage.meter(peer.pid())?;
                let reading = open_all(files, openers)?;
                readings.push(reading.cpu(meter.each(files.len())?));
            }
            peer.end()?;
            readings.extend(readings.get(1).cloned());
            Ok(readings)
        });
        for name in ["client", "client-again", "minimal", "onacc", "clamonacc"] {
            let dir = watched.join(name);
            fs::remove_dir_all(&dir).map_err(|error| format!("{}: {error}", dir.display()))?;
        }
    }
    Ok(rows.into())
}

/// A minimal client of clamd: opens each file and has it scanned.
fn ask_clamd(stage: &Stage, files: &[PathBuf], in_flight: usize) -> Result<Reading> {
    let fail = |error| format!("a session with clamd: {error}");
    let cpu = CpuTimes::of(stage.clamd.pid())?;
    let mut session = Session::connect(&stage.clamd.socket(), REPLY_LIMIT).map_err(fail)?;
    let mut waiting = 0;
    let take_reply = |session: &mut Session| {
        let (_, text) = session.reply().map_err(fail)?;
        if text.ends_with("OK") {
            Ok(())
        } else {
            Err(format!("clamd says {text}"))
        }
    };
    let (before, own) = (Instant::now(), own_time()?);
    for path in files {
        if waiting == in_flight {
            take_reply(&mut session)?;
            waiting -= 1;
        }
        let file = File::open(path).map_err(|error| format!("{}: {error}", path.display()))?;
        session.fildes(&file).map_err(fail)?;
        waiting += 1;
    }
    for _ in 0..waiting {
        take_reply(&mut session)?;
    }
    let took = before.elapsed();
    let own = own_time_each(own, files.len())?;
    Ok(rate(files.len(), took)
        .note(own)
        .note(processor_time(stage, &cpu, files.len())?))
}

/// Opens all beside the minimal agent, which runs in a thread of this process.
fn open_with_minimal(
    stage: &Stage,
    wake: &Path,
    files: &[PathBuf],
    openers: usize,
) -> Result<Reading> {
    // Its end is an open, of a file that is clean.
    let wake = wake.with_file_name("minimal-end");
    fs::write(&wake, b"clean").map_err(|error| format!("{}: {error}", wake.display()))?;
    let agent = minimal_agent::start(&wake, &stage.clamd.socket())?;
    let clamd = CpuTimes::of(stage.clamd.pid())?;
    let own = CpuTimes::of_one(agent.tid())?;
    let reading = open_all(files, openers)?;
    let spent = CpuTimes::of_one(agent.tid())?;
    let clamd = processor_time(stage, &clamd, files.len())?;
    let scans = agent.end()?;
    if usize::try_from(scans).unwrap_or(usize::MAX) < files.len() {
        return Err(format!("{} first opens, but {scans} scans", files.len()));
    }
    let count = u32::try_from(files.len()).unwrap_or(u32::MAX);
    let spent = spent.each_since(&own, count);
    Ok(reading
        .note(format!(
            "processor time of the minimal agent, which the caller's includes: {spent}"
        ))
        .note(clamd))
}

/// Opens all, and makes sure that the agent had each scanned.
fn open_scanned(
    stage: &Stage,
    agent: &Agent,
    files: &[PathBuf],
    openers: usize,
) -> Result<Reading> {
    let before = agent.counters()?;
    let (clamd, own) = (CpuTimes::of(stage.clamd.pid())?, CpuTimes::of(agent.pid())?);
    let reading = open_all(files, openers)?;
    let spent = CpuTimes::of(agent.pid())?;
    let wanted = u64::try_from(files.len()).unwrap_or(u64::MAX);
    // The agent answers first and counts after that.
    let deadline = Instant::now() + COUNT_LIMIT;
    let after = loop {
        let after = agent.counters()?;
        let counted = grown(&before, &after, "marks_placed")?;
        if counted >= wanted || Instant::now() >= deadline {
            break after;
        }
    };
    let (scans, clean) = (
        grown(&before, &after, "scans")?,
        grown(&before, &after, "clean")?,
    );
    if scans < wanted || clean < wanted {
        return Err(format!(
            "{wanted} first opens, but {scans} scans and {clean} clean verdicts"
        ));
    }
    let marks = grown(&before, &after, "marks_placed")?;
    let at_once = grown(&before, &after, "sent_at_once")?;
    Ok(reading
        .note(format!(
            "{scans} scans, {at_once} of them sent by the reader, {marks} marks placed"
        ))
        .note(format!(
            "processor time each: {}",
            spent.each_since(&own, u32::try_from(files.len()).unwrap_or(u32::MAX))
        ))
        .note(processor_time(stage, &clamd, files.len())?))
}

fn processor_time(stage: &Stage, before: &CpuTimes, count: usize) -> Result<String> {
    let spent = CpuTimes::of(stage.clamd.pid())?;
    let count = u32::try_from(count).unwrap_or(u32::MAX);
    Ok(format!(
        "processor time of clamd each: {}",
        spent.each_since(before, count)
    ))
}

/// Opens all files, shared out among openers.
pub fn open_all(files: &[PathBuf], openers: usize) -> Result<Reading> {
    let (before, own) = (Instant::now(), own_time()?);
    let times = time_once(files, openers)?;
    let took = before.elapsed();
    let own = own_time_each(own, files.len())?;
    let sample = sample(times, 1)?;
    let [p50, p99] = [sample.p50, sample.p99].map(|ns| shown(Unit::Nanoseconds, ns));
    Ok(rate(files.len(), took)
        .note(format!(
            "{} opens, an opener waits p50 {p50}, p99 {p99}",
            files.len()
        ))
        .note(own))
}

/// What the openers, or the client, needed themselves.
fn own_time_each(before: Duration, count: usize) -> Result<String> {
    let spent = own_time()?.saturating_sub(before);
    let count = u32::try_from(count).unwrap_or(u32::MAX);
    let each = spent.as_secs_f64() * 1e6 / f64::from(count);
    Ok(format!("processor time of the caller each: {each:.1} µs"))
}

fn rate(count: usize, took: Duration) -> Reading {
    let count = u32::try_from(count).unwrap_or(u32::MAX);
    Reading::from(f64::from(count) / took.as_secs_f64())
}
