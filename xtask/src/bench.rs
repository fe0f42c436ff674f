//! `cargo xtask bench`: what onacc costs, beside no agent and beside clamonacc.
//!
//! Owns: the list of workloads, their order, and the exit status. Must not:
//! measure anything itself; each workload has a file of its own in `bench/`.
//!
//! Rules of every number: it is the median of interleaved rounds, and it stands
//! beside a baseline of the same run. A workload checks by the agent's counters
//! that it measured what its name says, and is an error otherwise. Agents mark
//! filesystems of the benchmark's own alone, and a guard kills each by its id.

mod clock;
mod compare;
mod cpu;
mod excluded_uid;
mod first_opens;
mod floor;
mod json;
mod large_files;
mod machine;
mod memory;
mod notify_only;
mod opens;
mod peer;
mod pictures;
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

use std::{env, fs, os::unix::process::CommandExt, path::Path, process::Command, time::Instant};

pub use excluded_uid::open_as_child;

use crate::{
    bench::{
        machine::Machine,
        row::Row,
        stage::{Plan, Stage},
    },
    ebpf_toolchain,
    setup::{self, Level},
    shell::{Result, cargo, run, workspace},
};

type Workload = fn(&Stage) -> Result<Vec<Row>>;

/// The workloads, by the names that FILTER is looked for in.
const WORKLOADS: [(&str, Workload); 11] = [
    ("opens", opens::measure),
    ("excluded-uid", excluded_uid::measure),
    ("notify-only", notify_only::measure),
    ("first-opens", first_opens::measure),
    ("large-files", large_files::measure),
    ("start-up", startup::measure),
    ("memory", memory::measure),
    ("sources", tar::measure),
    ("writers", writers::measure),
    ("programs", programs::measure),
    ("waits", waits::measure),
];

/// Measures the workloads whose names contain the filter.
pub fn command(short: bool, compare: Option<&Path>, filter: Option<&str>) -> Result<()> {
    if !onacc_tests::skip::is_root() {
        return Err("the benchmarks need root: they mount filesystems and watch them".to_owned());
    }
    let wanted = |name: &str| filter.is_none_or(|filter| name.contains(filter));
    if !WORKLOADS.iter().any(|(name, _)| wanted(name)) {
        let names: Vec<&str> = WORKLOADS.iter().map(|(name, _)| *name).collect();
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
    let stage = Stage::set(if short { Plan::short() } else { Plan::full() })?;
    let machine = Machine::look(&stage.agent)?;
    println!("{}\n", machine.shown());
    let others = Machine::watch()?;
    let mut rows = Vec::new();
    let mut troubles = Vec::new();
    for (name, measure) in WORKLOADS.iter().filter(|(name, _)| wanted(name)) {
        let began = Instant::now();
        println!("measuring: {name} …");
        match measure(&stage) {
            Ok(more) => rows.extend(more),
            Err(why) => troubles.push(format!("{name}: {why}")),
        }
        println!("  took {:.1} s", began.elapsed().as_secs_f32());
    }
    troubles.extend(rows.iter().flat_map(Row::troubles));
    let took = before.elapsed();
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
