//! Workload: from the start of the process to protection, over many directories.
//!
//! Two numbers: the agent's own word, for which there is a goal, and the moment
//! at which files with EICAR, spread over the tree, are refused. The second can
//! be had of clamonacc too, and nothing else can.

use std::{
    path::Path,
    sync::mpsc,
    time::{Duration, Instant},
};

use onacc_tests::{ScratchFs, agent::READY};

use crate::{
    bench::{
        clock::milliseconds,
        peer::is_refused,
        row::{Column, Goal, Reading, Row, Unit, take},
        stage::{Coverage, Stage, Watch, end},
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
    for count in stage.plan.start_up_directories {
        all.extend(over(stage, *count)?);
    }
    Ok(all)
}

/// Over a tree of this many directories.
fn over(stage: &Stage, count: usize) -> Result<Vec<Row>> {
    let scratch = ScratchFs::ext4(1024)?;
    let tree = Tree::grow(&scratch.join("tree"), count)?;
    let coverages = &stage.coverages;
    let mut all: Vec<[Row; 2]> = coverages
        .iter()
        .map(|coverage| rows_for(coverage, count))
        .collect();
    for _ in 0..stage.plan.rounds {
        for (rows, coverage) in all.iter_mut().zip(coverages) {
            take(rows, Column::Onacc, || start_onacc(stage, &tree, coverage));
        }
        // One run of clamonacc serves all rows: it has no coverages.
        let peer = start_clamonacc(stage, &tree);
        for rows in &mut all {
            take(rows, Column::Clamonacc, || {
                peer.clone().map(|ms| vec![ms.into(), ms.into()])
            });
        }
    }
    Ok(all.into_iter().flatten().collect())
}

fn rows_for(coverage: &Coverage, count: usize) -> [Row; 2] {
    let goal = if coverage.name == "filesystem" {
        Goal::Below(50.0)
    } else {
        Goal::OfPeerAtMost(1.0 / 3.0)
    };
    let name = |what| {
        format!(
            "start-up, {count} directories, {} coverage: {what}",
            coverage.name
        )
    };
    let mut rows = [
        Row::new(name("\"protection is on\""), Unit::Milliseconds).goal(goal),
        Row::new(name("all probes refused"), Unit::Milliseconds),
    ];
    if !coverage.available {
        for row in &mut rows {
            row.absent(Column::Onacc, NOT_AVAILABLE);
        }
    }
    rows
}

fn start_onacc(stage: &Stage, tree: &Tree, coverage: &Coverage) -> Result<Vec<Reading>> {
    let watch = Watch::new(&tree.root).guard(GUARD).coverage(coverage);
    let (heard, hear) = mpsc::channel();
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
    for probe in &tree.probes {
        wait_until_refused(probe, before)?;
    }
    let refused = before.elapsed();
    end(agent)?;
    Ok(vec![
        milliseconds(said).into(),
        milliseconds(refused).into(),
    ])
}

fn wait_until_refused(probe: &Path, since: Instant) -> Result<()> {
    while !is_refused(probe)? {
        if since.elapsed() > GUARD {
            return Err(format!("{} is never refused", probe.display()));
        }
        std::thread::sleep(Duration::from_micros(500));
    }
    Ok(())
}

fn start_clamonacc(stage: &Stage, tree: &Tree) -> Result<f64> {
    let peer = stage.clamonacc(
        &Watch::new(&tree.root).guard(GUARD).timing_start(),
        &tree.probes,
    )?;
    let took = milliseconds(peer.protects_after);
    peer.end()?;
    Ok(took)
}
