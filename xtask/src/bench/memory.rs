//! Workload: resident memory of the agents: at rest, after many distinct opens,
//! and with a tree of many directories; with prevention and notify-only.
//!
//! Resident memory is what the process itself holds. Marks and watches are in
//! the kernel, and are not in these numbers.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use onacc_tests::ScratchFs;

use crate::{
    bench::{
        cpu::Memory,
        first_opens::open_all,
        report::shown,
        row::{Column, Reading, Row, Unit, take},
        stage::{Coverage, Mode, Stage, Watch, end, grown, probe},
        startup::NOT_AVAILABLE,
        tree::Tree,
        waits::wait_for_scans,
    },
    shell::Result,
};

/// On a machine that has much else to do it takes ten times as long.
const GUARD: Duration = Duration::from_mins(15);
/// How long scans may take that nobody waits for.
const SCAN_LIMIT: Duration = Duration::from_mins(3);
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
    let mut all = Vec::new();
    for (mode, left) in Mode::ALL.into_iter().zip([1, 0]) {
        all.extend(in_mode(stage, &subject, mode, left));
    }
    Ok(all)
}

fn in_mode(stage: &Stage, subject: &Subject, mode: Mode, loops_left: u32) -> Vec<Row> {
    let mut all: Vec<[Row; 3]> = stage
        .coverages
        .iter()
        .map(|coverage| rows_for(stage, coverage, mode))
        .collect();
    for _ in stage.rounds(stage.plan.long_rounds, loops_left) {
        for (rows, coverage) in all.iter_mut().zip(&stage.coverages) {
            let watch = |include: &Path| {
                let watch = Watch::new(include).mode(mode).guard(GUARD);
                watch.coverage(coverage)
            };
            let [rest, opens, tree] = rows;
            take(std::slice::from_mut(rest), Column::Onacc, || {
                onacc_after(stage, &watch(&subject.small), &[])
            });
            take(std::slice::from_mut(opens), Column::Onacc, || {
                onacc_after(stage, &watch(&subject.small), &subject.files)
            });
            take(std::slice::from_mut(tree), Column::Onacc, || {
                onacc_after(stage, &watch(&subject.tree.root), &[])
            });
        }
        // One run of clamonacc serves all rows: it has no coverages.
        let watch = |include: &Path| Watch::new(include).mode(mode).guard(GUARD);
        let small = std::slice::from_ref(&subject.small_probe);
        let measured = [
            clamonacc_after(stage, &watch(&subject.small), small, &[]),
            clamonacc_after(stage, &watch(&subject.small), small, &subject.files),
            clamonacc_after(stage, &watch(&subject.tree.root), &subject.tree.probes, &[]),
        ];
        for rows in &mut all {
            for (row, measured) in rows.iter_mut().zip(&measured) {
                take(std::slice::from_mut(row), Column::Clamonacc, || {
                    measured.clone().map(|reading| vec![reading])
                });
            }
        }
    }
    all.into_iter().flatten().collect()
}

fn rows_for(stage: &Stage, coverage: &Coverage, mode: Mode) -> [Row; 3] {
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
        let suffix = mode.suffix();
        Row::new(
            format!("memory, {} coverage, {what}{suffix}", coverage.name),
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
fn onacc_after(stage: &Stage, watch: &Watch, files: &[PathBuf]) -> Result<Vec<Reading>> {
    let agent = stage.onacc(watch)?;
    let (before, meter) = (agent.counters()?, stage.meter(agent.pid())?);
    let mut note = None;
    if !files.is_empty() {
        open_all(files, 8)?;
        if !watch.prevention {
            wait_for_scans(&agent, Instant::now() + SCAN_LIMIT)?;
        }
        // Those that came last: there may be more files than marks.
        for _ in 1..stage.plan.memory_rounds {
            for _ in 0..2 {
                open_all(&files[files.len() / 2..], 8)?;
            }
        }
        let scans = grown(&before, &agent.counters()?, "scans")?;
        if scans < u64::try_from(files.len()).unwrap_or(u64::MAX) {
            return Err(format!("only {scans} of {} were scanned", files.len()));
        }
        note = Some(format!("{scans} scans"));
    }
    let cpu = meter.each(files.len() * stage.plan.memory_rounds)?;
    std::thread::sleep(REST);
    let mut reading = reading(agent.pid())?;
    reading.notes.extend(note);
    reading.cpu = (!files.is_empty()).then_some(cpu);
    end(agent)?;
    Ok(vec![reading])
}

/// clamonacc's memory after one open of each file (it knows nothing of former ones, and
/// needs six minutes for a million). Notify-only, scans are still to be done then: they
/// are in its memory, or in the kernel's queue.
fn clamonacc_after(
    stage: &Stage,
    watch: &Watch,
    probes: &[PathBuf],
    files: &[PathBuf],
) -> Result<Reading> {
    let peer = stage.clamonacc(watch, probes)?;
    let meter = stage.meter(peer.pid())?;
    if !files.is_empty() {
        open_all(files, 8)?;
    }
    let cpu = meter.each(files.len())?;
    std::thread::sleep(REST);
    let mut reading = reading(peer.pid())?;
    if !files.is_empty() {
        reading.notes.push(format!("after {} opens", files.len()));
    }
    reading.cpu = (!files.is_empty()).then_some(cpu);
    let protects = peer.protects_after;
    peer.end()?;
    Ok(reading.note(format!("protects after {protects:.1?}")))
}

fn reading(pid: u32) -> Result<Reading> {
    let memory = Memory::of(pid)?;
    let anonymous = shown(Unit::KiB, memory.anonymous);
    Ok(Reading::from(memory.resident).note(format!("of these {anonymous} anonymous")))
}
