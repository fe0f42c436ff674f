//! `cargo xtask bench`: what onacc costs, beside no agent and beside clamonacc.
//!
//! Owns: the list of workloads, their order, and the exit status. Must not:
//! measure anything itself; each workload has a file of its own in `bench/`.
//!
//! Rules of every number: it is the median of interleaved rounds, and it stands
//! beside a baseline of the same run. A workload checks by the agent's counters
//! that it measured what its name says, and is an error otherwise. Agents mark
//! filesystems of the benchmark's own alone, and a guard kills each by its id.

mod answerer;
mod clock;
mod compare;
mod cpu;
mod excluded_uid;
mod first_opens;
mod first_waits;
mod floor;
mod json;
mod large_files;
mod machine;
mod memory;
mod minimal_agent;
mod notify_only;
mod openers;
mod opens;
mod peer;
mod pictures;
mod plan;
mod programs;
mod report;
mod row;
mod stage;
mod startup;
mod stats;
mod sys;
mod tar;
mod tree;
mod waits;
mod writers;

use std::{
    env, fs,
    os::unix::process::CommandExt,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

pub use excluded_uid::open_as_child;
pub use waits::openers_as_child;

use crate::{
    bench::{machine::Machine, plan::Plan, row::Row, stage::Stage},
    ebpf_toolchain,
    setup::{self, Level},
    shell::{Result, cargo, run, workspace},
};

/// How a workload is measured.
type Measure = fn(&Stage) -> Result<Vec<Row>>;

/// A workload.
struct Workload {
    /// What FILTER is looked for in.
    name: &'static str,
    measure: Measure,
    /// The seconds that it is given in a short run and in a full one. Of these it
    /// makes as many rounds as fit.
    seconds: [u64; 2],
}

impl Workload {
    const fn new(name: &'static str, measure: Measure, seconds: [u64; 2]) -> Self {
        Self {
            name,
            measure,
            seconds,
        }
    }

    fn budget(&self, short: bool) -> Duration {
        let [few, many] = self.seconds;
        Duration::from_secs(if short { few } else { many })
    }
}

/// The workloads, in their order.
const WORKLOADS: [Workload; 12] = [
    Workload::new("opens", opens::measure, [25, 70]),
    Workload::new("excluded-uid", excluded_uid::measure, [25, 60]),
    Workload::new("notify-only", notify_only::measure, [8, 25]),
    Workload::new("first-opens", first_opens::measure, [15, 45]),
    Workload::new("large-files", large_files::measure, [20, 40]),
    Workload::new("start-up", startup::measure, [20, 90]),
    Workload::new("memory", memory::measure, [30, 230]),
    Workload::new("sources", tar::measure, [12, 40]),
    Workload::new("writers", writers::measure, [6, 25]),
    Workload::new("programs", programs::measure, [40, 180]),
    Workload::new("waits", waits::measure, [40, 150]),
    Workload::new("waits-first", first_waits::measure, [25, 170]),
];

/// Measures the workloads whose names contain the filter.
pub fn command(short: bool, compare: Option<&Path>, filter: Option<&str>) -> Result<()> {
    if !onacc_tests::skip::is_root() {
        return Err("the benchmarks need root: they mount filesystems and watch them".to_owned());
    }
    let wanted = |name: &str| filter.is_none_or(|filter| name.contains(filter));
    if !WORKLOADS.iter().any(|workload| wanted(workload.name)) {
        let names: Vec<&str> = WORKLOADS.iter().map(|workload| workload.name).collect();
        return Err(format!("no such workload; there are: {}", names.join(", ")));
    }
    // Read first: it may be the file that this run writes.
    let old = compare
        .map(|path| {
            fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))
        })
        .transpose()?;
    setup::ensure(Level::Test)?;
    if cfg!(debug_assertions) {
        return in_release();
    }
    if env::var_os("ONACC_BIN").is_none() {
        run(cargo().args(["build", "--release", "--package", "onacc"]))?;
    }
    let before = Instant::now();
    let plan = if short { Plan::short() } else { Plan::full() };
    let stage = Stage::set(plan)?;
    let machine = Machine::look(&stage.agent)?;
    println!("{}\n", machine.shown());
    let chosen = || WORKLOADS.iter().filter(|workload| wanted(workload.name));
    let planned: Duration = chosen().map(|workload| workload.budget(short)).sum();
    println!(
        "planned: {:.0} minutes for {} workloads; a whole run should take under {}\n",
        (planned.as_secs_f64() / 60.0).ceil(),
        chosen().count(),
        plan.minutes
    );
    let others = Machine::watch()?;
    let mut rows = Vec::new();
    let mut troubles = Vec::new();
    for workload in chosen() {
        let (began, budget) = (Instant::now(), workload.budget(short));
        println!("measuring: {} … ({} s)", workload.name, budget.as_secs());
        stage.begin(budget);
        match (workload.measure)(&stage) {
            Ok(more) => rows.extend(more),
            Err(why) => troubles.push(format!("{}: {why}", workload.name)),
        }
        println!("  took {:.1} s", began.elapsed().as_secs_f32());
    }
    troubles.extend(rows.iter().flat_map(Row::troubles));
    let took = before.elapsed();
    if took > Duration::from_secs(60 * u64::from(plan.minutes)) {
        println!("that was longer than planned");
    }
    let mut remarks = Vec::new();
    if stage.peer_restarts() > 0 {
        remarks.push(format!(
            "clamonacc did not come up {} times, and was started again",
            stage.peer_restarts()
        ));
    }
    // clamd's time counts as ours when it has ended.
    drop(stage);
    remarks.push(others.share()?);
    print!("\n{}", report::table(&rows));
    let path = workspace().join("bench/results.json");
    let results = json::results(&machine, short, took, &rows, (&remarks, &troubles));
    fs::create_dir_all(workspace().join("bench"))
        .and_then(|()| fs::write(&path, &results))
        .map_err(|error| format!("writing {}: {error}", path.display()))?;
    let drawn = pictures::draw(&rows, &workspace().join("bench"))?;
    println!("\n{}", report::summary(&rows));
    if let Some(old) = old {
        println!("\nchanges:\n{}", compare::changes(&old, &results)?);
    }
    println!("pictures: bench/{{{}}}", drawn.join(","));
    for remark in &remarks {
        println!("{remark}");
    }
    println!("{:.0} s; written to {}", took.as_secs_f32(), path.display());
    if troubles.is_empty() {
        return Ok(());
    }
    Err(format!("could not be measured:\n{}", troubles.join("\n")))
}

/// The benchmark's own loops must be as fast as an opener's: run its release build.
fn in_release() -> Result<()> {
    run(cargo().args(["build", "--release", "--package", "xtask"]))?;
    let program = ebpf_toolchain::target_dir(&workspace()).join("release/xtask");
    let error = Command::new(&program).args(env::args_os().skip(1)).exec();
    Err(format!("{} does not start: {error}", program.display()))
}
