//! Workload: from the start of the process to protection, over many directories.
//!
//! Two numbers: the agent's own word, for which there is a goal, and the moment
//! at which files with EICAR, spread over the tree, are refused, or notify-only, are
//! named. The second can be had of clamonacc too, and nothing else can.

use std::{
    path::Path,
    sync::mpsc,
    time::{Duration, Instant},
};

use onacc_tests::{ScratchFs, agent::READY};

use crate::{
    bench::{
        clock::milliseconds,
        cpu::CpuTimes,
        peer::{is_refused, names},
        row::{Axis, Column, Cpu, Goal, Reading, Row, Unit, take},
        stage::{Coverage, Mode, Stage, Watch, end},
        tree::Tree,
    },
    shell::Result,
};

/// What is said of a coverage that the agent does not have.
pub const NOT_AVAILABLE: &str = "not available in this build";

const GUARD: Duration = Duration::from_mins(2);

/// Measures.
pub fn measure(stage: &Stage) -> Result<Vec<Row>> {
    let mut all = Vec::new();
    let counts = stage.plan.start_up_directories;
    let mut left = u32::try_from(counts.len() * Mode::ALL.len()).unwrap_or(u32::MAX);
    for count in counts {
        let scratch = ScratchFs::ext4(4096)?;
        let tree = Tree::grow(&scratch.join("tree"), *count)?;
        for mode in Mode::ALL {
            left = left.saturating_sub(1);
            all.extend(over(stage, (&tree, *count), mode, left));
        }
    }
    Ok(all)
}

/// Over a tree of this many directories.
fn over(stage: &Stage, (tree, count): (&Tree, usize), mode: Mode, loops_left: u32) -> Vec<Row> {
    let coverages = &stage.coverages;
    let mut all: Vec<[Row; 2]> = coverages
        .iter()
        .map(|coverage| rows_for(coverage, count, mode))
        .collect();
    for _ in stage.rounds(stage.plan.rounds, loops_left) {
        for (rows, coverage) in all.iter_mut().zip(coverages) {
            take(rows, Column::Onacc, || {
                start_onacc(stage, tree, (coverage, mode))
            });
        }
        // One run of clamonacc serves all rows: it has no coverages.
        let peer = start_clamonacc(stage, tree, mode);
        for rows in &mut all {
            take(rows, Column::Clamonacc, || {
                peer.clone().map(|reading| vec![reading.clone(), reading])
            });
        }
    }
    all.into_iter().flatten().collect()
}

fn rows_for(coverage: &Coverage, count: usize, mode: Mode) -> [Row; 2] {
    let goal = if coverage.name == "filesystem" {
        Goal::Below(50.0)
    } else {
        Goal::OfPeerAtMost(1.0 / 3.0)
    };
    let caught = match mode {
        Mode::Prevention => "all probes refused",
        Mode::NotifyOnly => "all probes named",
    };
    let mut rows = ["\"protection is on\"", caught].map(|what| {
        let name = format!(
            "start-up, {count} directories, {} coverage: {what}{}",
            coverage.name,
            mode.suffix()
        );
        let curve = format!(
            "start-up, {} coverage: {what}{}",
            coverage.name,
            mode.suffix()
        );
        Row::new(name, Unit::Milliseconds).at(curve, Axis::Directories, count)
    });
    // The goals are for 20,000 directories and more.
    if mode == Mode::Prevention && count >= 20_000 {
        rows[0].goal = Some(goal);
    }
    if !coverage.available {
        for row in &mut rows {
            row.absent(Column::Onacc, NOT_AVAILABLE);
        }
    }
    rows
}

fn start_onacc(
    stage: &Stage,
    tree: &Tree,
    (coverage, mode): (&Coverage, Mode),
) -> Result<Vec<Reading>> {
    let watch = Watch::new(&tree.root)
        .mode(mode)
        .guard(GUARD)
        .coverage(coverage);
    let (heard, hear) = mpsc::channel();
    let clamd = CpuTimes::of(stage.clamd.pid())?;
    let before = Instant::now();
    let agent = stage.onacc_hearing(&watch, move |line| {
        if line.starts_with(READY) {
            // Nobody listens any more when the time is up.
            let _ = heard.send(Instant::now());
        }
    })?;
    let said = hear
        .try_recv()
        .map_err(|_| "the agent did not say that protection is on".to_owned())?
        - before;
    let cpu = used(stage, agent.pid(), &clamd)?;
    for probe in &tree.probes {
        wait_until_caught(probe, before, || {
            Ok(match mode {
                Mode::Prevention => is_refused(probe)?,
                Mode::NotifyOnly => {
                    names(&agent.output(), probe) || is_refused(probe).map(|_| false)?
                }
            })
        })?;
    }
    let caught = before.elapsed();
    end(agent)?;
    Ok(vec![
        Reading::from(milliseconds(said)).cpu(cpu),
        milliseconds(caught).into(),
    ])
}

fn wait_until_caught(
    probe: &Path,
    since: Instant,
    is_caught: impl Fn() -> Result<bool>,
) -> Result<()> {
    while !is_caught()? {
        if since.elapsed() > GUARD {
            return Err(format!("{} is never caught", probe.display()));
        }
        std::thread::sleep(Duration::from_micros(500));
    }
    Ok(())
}

/// All that an agent has needed since its start, and clamd since then.
fn used(stage: &Stage, agent: u32, clamd: &CpuTimes) -> Result<Cpu> {
    let us = |times: &CpuTimes, before: &CpuTimes| times.since(before).as_secs_f64() * 1e6;
    Ok(Cpu {
        agent: us(&CpuTimes::of(agent)?, &CpuTimes::default()),
        clamd: us(&CpuTimes::of(stage.clamd.pid())?, clamd),
    })
}

fn start_clamonacc(stage: &Stage, tree: &Tree, mode: Mode) -> Result<Reading> {
    let clamd = CpuTimes::of(stage.clamd.pid())?;
    let watch = Watch::new(&tree.root)
        .mode(mode)
        .guard(GUARD)
        .timing_start();
    let peer = stage.clamonacc(&watch, &tree.probes)?;
    let reading = Reading::from(milliseconds(peer.protects_after));
    let cpu = used(stage, peer.pid(), &clamd)?;
    peer.end()?;
    Ok(reading.cpu(cpu))
}
