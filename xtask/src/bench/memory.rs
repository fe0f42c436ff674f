//! Workload: resident memory of the agents: at rest, after many distinct opens,
//! and with a tree of many directories.
//!
//! Resident memory is what the process itself holds. Marks and watches are in
//! the kernel, and are not in these numbers.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use onacc_tests::ScratchFs;

use crate::{
    bench::{
        cpu::Memory,
        first_opens::open_all,
        report::shown,
        row::{Column, Reading, Row, Unit, take},
        stage::{Coverage, Stage, Watch, end, grown, probe},
        startup::NOT_AVAILABLE,
        tree::Tree,
    },
    shell::Result,
};

const GUARD: Duration = Duration::from_mins(5);
/// After this, what was needed to start is given back, if it is at all.
const REST: Duration = Duration::from_millis(500);

/// What is watched.
struct Subject {
    tree: Tree,
    small: PathBuf,
    small_probe: PathBuf,
    files: Vec<PathBuf>,
    _scratch: ScratchFs,
}

/// Measures.
pub fn measure(stage: &Stage) -> Result<Vec<Row>> {
    let plan = stage.plan;
    let scratch = ScratchFs::ext4(4096)?;
    let small = scratch.mkdir("small");
    let subject = Subject {
        tree: Tree::grow(&scratch.join("tree"), plan.memory_directories)?,
        files: stage.files(&small.join("files"), plan.memory_opens)?,
        small_probe: probe(&small.join("eicar.com"))?,
        small,
        _scratch: scratch,
    };
    let mut all: Vec<[Row; 3]> = stage
        .coverages
        .iter()
        .map(|coverage| rows_for(stage, coverage))
        .collect();
    for _ in 0..plan.long_rounds {
        for (rows, coverage) in all.iter_mut().zip(&stage.coverages) {
            let [rest, opens, tree] = rows;
            take(std::slice::from_mut(rest), Column::Onacc, || {
                onacc_after(stage, &subject.small, coverage, &[])
            });
            take(std::slice::from_mut(opens), Column::Onacc, || {
                onacc_after(stage, &subject.small, coverage, &subject.files)
            });
            take(std::slice::from_mut(tree), Column::Onacc, || {
                onacc_after(stage, &subject.tree.root, coverage, &[])
            });
        }
        let at_rest = clamonacc_with(
            stage,
            &subject.small,
            std::slice::from_ref(&subject.small_probe),
        );
        let with_tree = clamonacc_with(stage, &subject.tree.root, &subject.tree.probes);
        for [rest, _, tree] in &mut all {
            for (row, measured) in [(rest, &at_rest), (tree, &with_tree)] {
                take(std::slice::from_mut(row), Column::Clamonacc, || {
                    measured.clone().map(|reading| vec![reading])
                });
            }
        }
    }
    Ok(all.into_iter().flatten().collect())
}

fn rows_for(stage: &Stage, coverage: &Coverage) -> [Row; 3] {
    let (opens, directories) = (stage.plan.memory_opens, stage.plan.memory_directories);
    let mut rows = [
        "at rest".to_owned(),
        format!(
            "after {} opens of {opens} files",
            opens * stage.plan.memory_rounds
        ),
        format!("with {directories} directories"),
    ]
    .map(|what| {
        Row::new(
            format!("memory, {} coverage, {what}", coverage.name),
            Unit::KiB,
        )
    });
    if !coverage.available {
        for row in &mut rows {
            row.absent(Column::Onacc, NOT_AVAILABLE);
        }
    }
    rows
}

/// onacc's memory after it has had these files scanned.
fn onacc_after(
    stage: &Stage,
    include: &Path,
    coverage: &Coverage,
    files: &[PathBuf],
) -> Result<Vec<Reading>> {
    let watch = Watch::new(include).guard(GUARD).coverage(coverage);
    let agent = stage.onacc(&watch)?;
    let before = agent.counters()?;
    let mut note = None;
    if !files.is_empty() {
        for _ in 0..stage.plan.memory_rounds {
            open_all(files, 8)?;
        }
        let scans = grown(&before, &agent.counters()?, "scans")?;
        if scans < u64::try_from(files.len()).unwrap_or(u64::MAX) {
            return Err(format!("only {scans} of {} were scanned", files.len()));
        }
        note = Some(format!("{scans} scans"));
    }
    std::thread::sleep(REST);
    let mut reading = reading(agent.pid())?;
    reading.notes.extend(note);
    end(agent)?;
    Ok(vec![reading])
}

fn clamonacc_with(stage: &Stage, include: &Path, probes: &[PathBuf]) -> Result<Reading> {
    let peer = stage.clamonacc(&Watch::new(include).guard(GUARD), probes)?;
    std::thread::sleep(REST);
    let reading = reading(peer.pid())?;
    let protects = peer.protects_after;
    peer.end()?;
    Ok(reading.note(format!("protects after {protects:.1?}")))
}

fn reading(pid: u32) -> Result<Reading> {
    let memory = Memory::of(pid)?;
    let anonymous = shown(Unit::KiB, memory.anonymous);
    Ok(Reading::from(memory.resident).note(format!("of these {anonymous} anonymous")))
}
