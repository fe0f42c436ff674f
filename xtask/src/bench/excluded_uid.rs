//! Workload: opens by a user whose uid is excluded, with prevention.
//!
//! The kernel asks for each of these. The baseline is the floor: a loop that
//! only reads and answers. What such a round trip takes depends first of all on
//! whether opener and answerer share a core, so each placement is a row of its
//! own. The opener is a process of its own, for clamonacc goes by the process,
//! not by the thread; it is the same in every column.

use std::{
    env, fs,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::{Pid, Uid, setresuid},
};
use onacc_tests::{ScratchFs, sys::die_with_parent};

use crate::{
    bench::{
        clock::{Budget, Sample, time_opens},
        cpu::CpuTimes,
        floor,
        report::shown,
        row::{Column, Reading, Row, Unit, take},
        stage::{Stage, Watch, end, grown, probe, rest},
    },
    shell::Result,
};

/// Nobody.
const UID: u32 = 65534;
/// The hidden command of xtask that opens as another user.
const COMMAND: &str = "bench-opener";
/// The core of the opener, where it has one.
const OPENER_CORE: usize = 0;

/// Where opener and answerer run.
#[derive(Clone, Copy, Debug)]
struct Placement {
    name: &'static str,
    /// Whether the opener is held on its core.
    pinned: bool,
    /// The core of the answerer.
    answerer: Option<usize>,
}

const PLACEMENTS: [Placement; 3] = [
    Placement {
        name: "where the scheduler puts it",
        pinned: false,
        answerer: None,
    },
    Placement {
        name: "on the opener's core",
        pinned: true,
        answerer: Some(OPENER_CORE),
    },
    Placement {
        name: "on another core",
        pinned: true,
        answerer: Some(OPENER_CORE + 1),
    },
];

/// Measures.
pub fn measure(stage: &Stage) -> Result<Vec<Row>> {
    let scratch = ScratchFs::ext4(512)?;
    let watched = scratch.mkdir("watched");
    let file = scratch.write("watched/file", &stage.content(4096));
    let probe = probe(&watched.join("eicar.com"))?;
    rest(scratch.path())?;
    let watch = Watch::new(&watched).option(format!("OnAccessExcludeUID {UID}"));
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let mut rows = PLACEMENTS.map(|placement| {
        let name = format!("open by an excluded uid, answered {}", placement.name);
        let mut row = Row::new(name, Unit::Nanoseconds).beside("floor");
        if placement.answerer.is_some_and(|core| core >= cores) {
            for (column, _) in row.columns() {
                row.absent(column, "there is one core");
            }
        }
        row
    });
    for _ in stage.rounds(stage.plan.rounds, 0) {
        for (row, placement) in rows.iter_mut().zip(PLACEMENTS) {
            let row = std::slice::from_mut(row);
            let open = || open_in_child(stage, &file, placement);
            take(row, Column::Baseline, || {
                let floor = floor::start(&file)?;
                placement.hold_thread(floor.tid())?;
                let sample = open()?;
                let answered = floor.end()?;
                Ok(vec![
                    reading(sample).note(format!("answered {answered} events")),
                ])
            });
            take(row, Column::Onacc, || {
                let agent = stage.onacc(&watch)?;
                placement.hold_process(agent.pid())?;
                let (before, cpu) = (agent.counters()?, CpuTimes::of(agent.pid())?);
                let meter = stage.meter(agent.pid())?;
                let sample = open()?;
                let used = meter.each(sample.count)?;
                let spent = CpuTimes::of(agent.pid())?;
                let after = agent.counters()?;
                end(agent)?;
                let excluded = grown(&before, &after, "excluded_uid")?;
                let count = u32::try_from(excluded).unwrap_or(u32::MAX);
                if usize::try_from(excluded).unwrap_or(usize::MAX) < sample.count {
                    return Err(format!(
                        "{} opens, but {excluded} let through",
                        sample.count
                    ));
                }
                let note = spent.each_since(&cpu, count);
                let note = format!("{excluded} let through by uid; processor time each: {note}");
                Ok(vec![reading(sample).note(note).cpu(used)])
            });
            take(row, Column::Clamonacc, || {
                let peer = stage.clamonacc(&watch, std::slice::from_ref(&probe))?;
                placement.hold_process(peer.pid())?;
                let meter = stage.meter(peer.pid())?;
                let sample = open()?;
                let used = meter.each(sample.count)?;
                peer.end()?;
                Ok(vec![reading(sample).cpu(used)])
            });
        }
    }
    Ok(rows.into())
}

fn reading(sample: Sample) -> Reading {
    let p99 = shown(Unit::Nanoseconds, sample.p99);
    Reading::from(sample.p50).note(format!("{} opens, p99 {p99}", sample.count))
}

impl Placement {
    fn hold_thread(self, tid: Pid) -> Result<()> {
        self.answerer.map_or(Ok(()), |core| hold(tid, core))
    }

    /// Holds all threads that a process has now.
    fn hold_process(self, pid: u32) -> Result<()> {
        let dir = format!("/proc/{pid}/task");
        let tasks = fs::read_dir(&dir).map_err(|error| format!("{dir}: {error}"))?;
        for task in tasks.flatten() {
            let tid = task.file_name().to_string_lossy().parse();
            let tid = tid.map_err(|error| format!("{dir}: {error}"))?;
            self.hold_thread(Pid::from_raw(tid))?;
        }
        Ok(())
    }
}

/// Lets a thread run on this core alone.
fn hold(tid: Pid, core: usize) -> Result<()> {
    let mut cores = CpuSet::new();
    cores
        .set(core)
        .and_then(|()| sched_setaffinity(tid, &cores))
        .map_err(|error| format!("holding thread {tid} on core {core}: {error}"))
}

/// Has another process do the opens.
fn open_in_child(stage: &Stage, file: &Path, placement: Placement) -> Result<Sample> {
    let own = env::current_exe().map_err(|error| format!("our own program: {error}"))?;
    let budget = stage.plan.loops;
    let mut command = Command::new(own);
    command
        .args([COMMAND, &UID.to_string()])
        .arg(file)
        .arg(budget.count.to_string())
        .arg(budget.limit.as_millis().to_string())
        .args(placement.pinned.then(|| OPENER_CORE.to_string()))
        .stdin(Stdio::null())
        .stderr(Stdio::inherit());
    let output = die_with_parent(&mut command)
        .output()
        .map_err(|error| format!("the opener does not start: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let wrong = || format!("the opener ended with {}: {text}", output.status);
    if !output.status.success() {
        return Err(wrong());
    }
    let mut words = text.split_whitespace();
    let mut number = || words.next()?.parse::<f64>().ok();
    let (p50, p99) = number().zip(number()).ok_or_else(wrong)?;
    let count = words.next().and_then(|word| word.parse().ok());
    Ok(Sample {
        p50,
        p99,
        count: count.ok_or_else(wrong)?,
    })
}

/// The other process: becomes the user, opens, prints what it took.
pub fn open_as_child(
    uid: u32,
    file: &Path,
    count: usize,
    milliseconds: u64,
    core: Option<usize>,
) -> Result<()> {
    if let Some(core) = core {
        hold(Pid::from_raw(0), core)?;
    }
    let uid = Uid::from_raw(uid);
    setresuid(uid, uid, uid).map_err(|error| format!("becoming {uid}: {error}"))?;
    let budget = Budget {
        count,
        limit: Duration::from_millis(milliseconds),
        batch: 1,
    };
    let sample = time_opens(file, budget)?;
    println!("{} {} {}", sample.p50, sample.p99, sample.count);
    Ok(())
}
