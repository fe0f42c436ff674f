//! Workload: opens that eBPF drops in notify-only mode.
//!
//! By an excluded uid, of a clean file, and on a filesystem that is not watched:
//! each only if the agent's counters show that the program has dropped them. The
//! processor time of the agent meanwhile is in the notes. Goals: 1.15 with BPF
//! LSM or fentry (1.05 where nothing is watched), 1.3 with tracepoints.

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
};

use onacc_tests::{Agent, ScratchFs, sys::set_effective_uid_on_this_thread};

use crate::{
    bench::{
        clock::{Sample, time_opens},
        cpu::CpuTimes,
        report::shown,
        row::{Column, Goal, Reading, Row, Unit, take},
        stage::{Stage, Watch, end, grown, open_to_all, probe, rest},
    },
    shell::Result,
};

/// Nobody.
const UID: u32 = 65534;

/// One kind of open that is dropped.
#[derive(Clone, Copy)]
struct Kind {
    name: &'static str,
    /// Which of the programs' counters grows.
    counter: &'static str,
    /// By the excluded user.
    excluded: bool,
    /// With BPF LSM or fentry.
    goal: f64,
}

const KINDS: [Kind; 3] = [
    Kind {
        name: "notify-only: open by an excluded uid",
        counter: "bpf_open_dropped_excluded_uid",
        excluded: true,
        goal: 1.15,
    },
    Kind {
        name: "notify-only: repeat open of a clean file",
        counter: "bpf_open_dropped_clean",
        excluded: false,
        goal: 1.15,
    },
    Kind {
        name: "notify-only: open on a filesystem that is not watched",
        counter: "bpf_open_dropped_other_filesystem",
        excluded: false,
        goal: 1.05,
    },
];

/// With tracepoints.
const TRACEPOINT_GOAL: f64 = 1.3;

/// Measures.
pub fn measure(stage: &Stage) -> Result<Vec<Row>> {
    let scratch = ScratchFs::ext4(64)?;
    let other = ScratchFs::ext4(16)?;
    let watched = scratch.mkdir("watched");
    open_to_all(&watched)?;
    let files = [
        scratch.write("watched/excluded", &stage.content(4096)),
        scratch.write("watched/clean", &stage.content(4096)),
        other.write("file", &stage.content(4096)),
    ];
    let probe = probe(&watched.join("eicar.com"))?;
    rest(scratch.path())?;
    let mut watch = Watch::new(&watched).option(format!("OnAccessExcludeUID {UID}"));
    watch.prevention = false;
    let first = stage.onacc(&watch)?;
    let said = first.output();
    end(first)?;
    let tracepoint = said.contains("tier: opens: tracepoint");
    if !said.contains("opens are told by eBPF") {
        return Err(format!("no hook on opens is granted here:\n{said}"));
    }
    let mut rows = KINDS.map(|kind| {
        let goal = if tracepoint {
            TRACEPOINT_GOAL
        } else {
            kind.goal
        };
        let mut row = Row::new(kind.name, Unit::Nanoseconds).goal(Goal::RatioAtMost(goal));
        row.absent(Column::MarksAlone, "no marks on opens here");
        row
    });
    for _ in stage.rounds(stage.plan.rounds, 0) {
        take(&mut rows, Column::Baseline, || {
            let samples = KINDS.iter().zip(&files);
            samples
                .map(|(kind, file)| open_as(stage, *kind, file).map(reading))
                .collect()
        });
        take(&mut rows, Column::Onacc, || {
            let agent = stage.onacc(&watch)?;
            let readings = KINDS
                .iter()
                .zip(&files)
                .map(|(kind, file)| dropped(stage, &agent, (*kind, file)))
                .collect();
            end(agent)?;
            readings
        });
        take(&mut rows, Column::Clamonacc, || {
            let peer = stage.clamonacc(&watch, std::slice::from_ref(&probe))?;
            let readings = KINDS.iter().zip(&files).map(|(kind, file)| {
                let meter = stage.meter(peer.pid())?;
                let sample = open_as(stage, *kind, file)?;
                Ok(reading(sample).cpu(meter.each(sample.count)?))
            });
            let readings = readings.collect();
            peer.end()?;
            readings
        });
    }
    Ok(rows.into())
}

/// Opens that the program has dropped, and what the agent did meanwhile.
fn dropped(stage: &Stage, agent: &Agent, (kind, file): (Kind, &PathBuf)) -> Result<Reading> {
    for _ in 0..200 {
        let before = agent.counters()?;
        fs::File::open(file).map_err(|error| format!("opening {}: {error}", file.display()))?;
        let after = agent.counters()?;
        if kind.excluded || grown(&before, &after, kind.counter)? > 0 {
            break;
        }
        thread::sleep(std::time::Duration::from_millis(10));
    }
    let (before, cpu) = (agent.counters()?, CpuTimes::of(agent.pid())?);
    let meter = stage.meter(agent.pid())?;
    let sample = open_as(stage, kind, file)?;
    let used = meter.each(sample.count)?;
    let spent = CpuTimes::of(agent.pid())?;
    let grew = grown(&before, &agent.counters()?, kind.counter)?;
    if usize::try_from(grew).unwrap_or(usize::MAX) < sample.count {
        return Err(format!("{} opens, but {grew} dropped", sample.count));
    }
    let count = u32::try_from(sample.count).unwrap_or(u32::MAX);
    let note = spent.each_since(&cpu, count);
    let note = format!("processor time of the agent for each: {note}");
    Ok(reading(sample).note(note).cpu(used))
}

/// On a thread of its own, which may have another effective uid.
fn open_as(stage: &Stage, kind: Kind, file: &Path) -> Result<Sample> {
    let budget = stage.plan.loops;
    let open = || {
        if kind.excluded {
            set_effective_uid_on_this_thread(UID)
                .map_err(|error| format!("becoming {UID}: {error}"))?;
        }
        time_opens(file, budget)
    };
    thread::scope(|scope| scope.spawn(open).join()).map_err(|_| "the opener panicked".to_owned())?
}

fn reading(sample: Sample) -> Reading {
    let p99 = shown(Unit::Nanoseconds, sample.p99);
    Reading::from(sample.p50).note(format!("{} opens, p99 {p99}", sample.count))
}
