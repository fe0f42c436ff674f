//! Workload: what openers wait for opens that need no scan, as a distribution, and
//! how it grows with the number of openers and of files.
//!
//! Repeat opens, opens out of scope, under an excluded path and by an excluded uid,
//! with prevention and notify-only, by 1, 4, 16 and 64 openers; repeat opens over
//! up to 100,000 files too. The agent's counters must show that the kernel kept the
//! opens to itself, or that they were let through by uid.

use std::{
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use onacc_tests::{Agent, Counters, ScratchFs};

use crate::{
    bench::{
        openers::{Openers, open_once},
        row::{Axis, Column, Reading, Row, take},
        stage::{Mode, Stage, Watch, end, grown, open_to_all, probe},
    },
    shell::Result,
};

/// How many open at the same time.
pub const OPENERS: [usize; 4] = [1, 4, 16, 64];
/// How many do where the number of files grows.
pub const OPENERS_BY_FILES: usize = 4;
/// Nobody.
const UID: u32 = 65534;
/// How long it may take until the kernel knows what it can keep to itself.
const SETTLE_LIMIT: Duration = Duration::from_mins(2);
/// As many clean marks onacc may have on any machine (docs/reliability.md). Of more
/// files than there may be here, opened one after the other, none has a mark any more
/// when its turn comes again.
const MARKS: usize = 65_536;
/// How often they are opened before that is taken for granted.
const MOST_PASSES: u32 = 4;

/// Opens of one kind.
struct Kind {
    name: &'static str,
    dir: &'static str,
    uid: u32,
}

const KINDS: [Kind; 4] = [
    Kind {
        name: "repeat opens",
        dir: "watched/files",
        uid: 0,
    },
    Kind {
        name: "opens out of scope",
        dir: "elsewhere/files",
        uid: 0,
    },
    Kind {
        name: "opens under an excluded path",
        dir: "watched/excluded/files",
        uid: 0,
    },
    Kind {
        name: "opens by an excluded uid",
        dir: "watched/theirs",
        uid: UID,
    },
];

/// A filesystem with files for these kinds.
struct Place {
    scratch: ScratchFs,
    probe: PathBuf,
    watch: Watch,
}

/// What is measured in one round: a row for each point of each of these.
struct Subject<'a> {
    kind: &'a Kind,
    dir: PathBuf,
    files: Vec<PathBuf>,
    openers: &'a [usize],
}

/// Measures.
pub fn measure(stage: &Stage) -> Result<Vec<Row>> {
    let mut all = Vec::new();
    let few = stage.plan.wait_files[0];
    let many = &stage.plan.wait_files[1..];
    let mut left = u32::try_from(Mode::ALL.len() * (KINDS.len() + many.len())).unwrap_or(1);
    let mut measure = |place: &Place, subject: &Subject, mode, rows| {
        left = left.saturating_sub(1);
        measure_one(stage, (place, subject, mode), rows, left)
    };
    let place = Place::make(stage)?;
    for kind in &KINDS {
        let subject = place.subject(stage, kind, few, &OPENERS)?;
        for mode in Mode::ALL {
            let curve = format!("{}{}", kind.name, mode.suffix());
            let rows = OPENERS.map(|openers| Row::distribution(&curve, Axis::Openers, openers));
            all.extend(measure(&place, &subject, mode, rows.concat()));
        }
    }
    // Growth along one line at a time. The few are measured again beside the many.
    if many.is_empty() {
        return Ok(all);
    }
    for count in stage.plan.wait_files {
        let place = Place::make(stage)?;
        let subject = place.subject(stage, &KINDS[0], *count, &[OPENERS_BY_FILES])?;
        for mode in Mode::ALL {
            let curve = format!(
                "{}, {OPENERS_BY_FILES} openers{}",
                KINDS[0].name,
                mode.suffix()
            );
            let rows = Row::distribution(&curve, Axis::Files, *count);
            all.extend(measure(&place, &subject, mode, rows));
        }
    }
    Ok(all)
}

impl Place {
    fn make(stage: &Stage) -> Result<Self> {
        let scratch = ScratchFs::ext4(4096)?;
        let watched = scratch.mkdir("watched");
        let excluded = scratch.mkdir("watched/excluded");
        open_to_all(&watched)?;
        let probe = probe(&watched.join("eicar.com"))?;
        // An agent that dies with openers waiting lets them go; the limit is for trees
        // of the full run.
        let guard = Duration::from_mins(if stage.plan.wait_files.len() > 1 {
            5
        } else {
            2
        });
        let watch = Watch::new(&watched)
            .option(format!("OnAccessExcludePath {}", excluded.display()))
            .option(format!("OnAccessExcludeUID {UID}"))
            .guard(guard);
        Ok(Self {
            scratch,
            probe,
            watch,
        })
    }

    fn subject<'a>(
        &self,
        stage: &Stage,
        kind: &'a Kind,
        count: usize,
        openers: &'a [usize],
    ) -> Result<Subject<'a>> {
        let dir = self.scratch.join(kind.dir);
        let files = stage.files(&dir, count)?;
        open_to_all(&dir)?;
        Ok(Subject {
            kind,
            dir,
            files,
            openers,
        })
    }
}

fn measure_one(
    stage: &Stage,
    (place, subject, mode): (&Place, &Subject, Mode),
    mut rows: Vec<Row>,
    loops_left: u32,
) -> Vec<Row> {
    let watch = place.watch.clone().mode(mode);
    for _ in stage.rounds(stage.plan.program_rounds, loops_left) {
        take(&mut rows, Column::Baseline, || {
            subject.open(stage, |openers| Ok(openers.open()?.readings(None, "")))
        });
        take(&mut rows, Column::Onacc, || {
            let agent = stage.onacc(&watch)?;
            if subject.kind.uid != UID {
                settle(&agent, subject, mode)?;
            }
            let by_ebpf = agent.output().contains("opens are told by eBPF");
            let readings = subject.open(stage, |openers| {
                let (before, meter) = (agent.counters()?, stage.meter(agent.pid())?);
                let waits = openers.open()?;
                let cpu = meter.each(waits.count)?;
                let after = agent.counters()?;
                let checked = match mode {
                    Mode::Prevention => kept(subject, (&before, &after), waits.count)?,
                    Mode::NotifyOnly if by_ebpf => {
                        dropped(subject, (&before, &after), waits.count)?
                    }
                    Mode::NotifyOnly => ", no hook on opens".to_owned(),
                };
                Ok(waits.readings(Some(cpu), &checked))
            })?;
            end(agent)?;
            Ok(readings)
        });
        take(&mut rows, Column::Clamonacc, || {
            let peer = stage.clamonacc(&watch, std::slice::from_ref(&place.probe))?;
            let readings = subject.open(stage, |openers| {
                let meter = stage.meter(peer.pid())?;
                let waits = openers.open()?;
                Ok(waits.readings(Some(meter.each(waits.count)?), ""))
            })?;
            peer.end()?;
            Ok(readings)
        });
    }
    rows
}

impl Subject<'_> {
    fn may_exceed_marks(&self) -> bool {
        self.files.len() > MARKS
    }

    /// By each number of openers.
    fn open(
        &self,
        stage: &Stage,
        each: impl Fn(&Openers) -> Result<Vec<Reading>>,
    ) -> Result<Vec<Reading>> {
        let mut all = Vec::new();
        for openers in self.openers {
            all.extend(each(&Openers {
                dir: &self.dir,
                files: self.files.len(),
                count: *openers,
                uid: self.kind.uid,
                time: stage.plan.waits_time,
            })?);
        }
        Ok(all)
    }
}

/// With prevention: the kernel raised no events, or all were let through by uid.
fn kept(
    subject: &Subject,
    (before, after): (&Counters, &Counters),
    count: usize,
) -> Result<String> {
    let count = u64::try_from(count).unwrap_or(u64::MAX);
    if subject.kind.uid == UID {
        let excluded = grown(before, after, "excluded_uid")?;
        if excluded < count {
            return Err(format!("{count} opens, but {excluded} let through by uid"));
        }
        return Ok(format!(", {excluded} let through by uid"));
    }
    let events = grown(before, after, "events")?;
    if events > count / 100 && subject.may_exceed_marks() {
        let scans = grown(before, after, "scans")?;
        return Ok(format!(
            ", more files than there may be marks: {events} events, {scans} scans"
        ));
    }
    if events > count / 100 {
        return Err(format!("{events} events in {count} opens: not settled"));
    }
    Ok(format!(", events raised: {events}"))
}

/// Notify-only: eBPF dropped them.
fn dropped(
    subject: &Subject,
    (before, after): (&Counters, &Counters),
    count: usize,
) -> Result<String> {
    let sum = |counters: &Counters| -> u64 {
        let drops = counters.iter();
        drops
            .filter(|(name, _)| name.starts_with("bpf_open_dropped_"))
            .map(|(_, value)| value)
            .sum()
    };
    let dropped = sum(after).saturating_sub(sum(before));
    let count = u64::try_from(count).unwrap_or(u64::MAX);
    if dropped < count - count / 100 && subject.may_exceed_marks() {
        let told = grown(before, after, "told_opens")?;
        return Ok(format!(
            ", more files than there may be marks: {dropped} dropped by eBPF, {told} told"
        ));
    }
    if dropped < count - count / 100 {
        return Err(format!("{count} opens, but eBPF dropped {dropped}"));
    }
    Ok(format!(", dropped by eBPF: {dropped}"))
}

/// Opens all files until opening them once more reaches the agent no more; or so often,
/// if there may be more than it can ever settle for.
fn settle(agent: &Agent, subject: &Subject, mode: Mode) -> Result<()> {
    let files = &subject.files[..];
    let deadline = Instant::now() + SETTLE_LIMIT;
    let counted = match mode {
        Mode::Prevention => ["events", "events"],
        Mode::NotifyOnly => ["told_opens", "events"],
    };
    for pass in 1.. {
        let before = agent.counters()?;
        open_once(files, 8)?;
        wait_for_scans(agent, deadline)?;
        let after = agent.counters()?;
        let mut reached = 0;
        for name in counted {
            reached = reached.max(grown(&before, &after, name)?);
        }
        if reached <= u64::try_from(files.len() / 100).unwrap_or(u64::MAX) {
            return Ok(());
        }
        if subject.may_exceed_marks() && pass >= MOST_PASSES {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(format!(
                "{} opens still reach the agent {reached} times after {SETTLE_LIMIT:?}",
                files.len()
            ));
        }
    }
    Ok(())
}

/// Waits until the agent has a verdict for everything that it has been given.
pub fn wait_for_scans(agent: &Agent, deadline: Instant) -> Result<()> {
    const CALM: u32 = 3;
    let mut calm = 0;
    let mut last = None;
    while calm < CALM {
        thread::sleep(Duration::from_millis(30));
        let now = agent.counters()?;
        let of = |name: &str| now.get(name).copied().unwrap_or_default();
        let state = [
            of("scans"),
            of("clean"),
            of("told_opens"),
            of("marks_placed"),
        ];
        calm = if last == Some(state) { calm + 1 } else { 0 };
        last = Some(state);
        if Instant::now() >= deadline {
            return Err("the agent still scans when the time is up".to_owned());
        }
    }
    Ok(())
}

/// What `xtask bench-openers` does.
pub fn openers_as_child(
    dir: &Path,
    files: usize,
    openers: usize,
    (uid, milliseconds): (u32, u64),
) -> Result<()> {
    let time = Duration::from_millis(milliseconds);
    let openers = Openers {
        dir,
        files,
        count: openers,
        uid,
        time,
    };
    openers.open_as_child()
}
