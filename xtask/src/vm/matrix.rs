//! The kernel matrix: each kernel in each tier, two machines at a time.
//!
//! Owns: the order of boots, their logs, and what all came to. Must not: know a
//! test; `cases.rs` does. Tested by being run.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    thread,
    time::Duration,
};

use super::{
    build::{Tests, strip},
    cache,
    cases::{Case, Extent, Tier, cases},
    cost::{self, Costs},
    initramfs::Root,
    kernels::{self, Kernel, Series},
    machine::Machine,
    outcome::{BEGIN, Column, END, Outcome, Reading, table},
    script::script,
};
use crate::{
    panics::Panics,
    shell::{Result, agent_binary},
};

/// Machines at a time.
const AT_A_TIME: usize = 2;
/// How long one may run.
const LIMIT: Duration = Duration::from_mins(30);

/// What is to be run.
pub struct Wish<'a> {
    /// On which kernels.
    pub kernels: Vec<Series>,
    /// In which tiers.
    pub tiers: Vec<Tier>,
    /// How much.
    pub extent: Extent,
    /// Only tests whose names contain this.
    pub filter: Option<&'a str>,
    /// No tests, only the verifier costs.
    pub costs_alone: bool,
}

/// What it came to.
#[derive(Debug, Default)]
pub struct Summary {
    /// Tests that held, over all machines.
    pub passed: usize,
    /// Tests that did not, and programs that became too dear.
    pub failed: usize,
    /// Tests that could not be tried; a kernel that cannot be had counts as one.
    pub skipped: usize,
    /// The verifier costs.
    pub costs: Costs,
    /// What failing tests said, each after its kernel and tier.
    pub said: Vec<String>,
}

struct Job {
    kernel: Kernel,
    series: Series,
    tier: Tier,
    initramfs: PathBuf,
    cases: Vec<Case>,
}

/// Runs it, and prints the table.
pub fn run(wish: &Wish<'_>) -> Result<Summary> {
    let tests = Tests::build()?;
    let dir = tempfile::tempdir().map_err(|error| format!("a temporary directory: {error}"))?;
    let (mut jobs, mut columns) = (Vec::new(), Vec::new());
    for &series in &wish.kernels {
        let made = kernels::get(series, &cache())
            .and_then(|kernel| prepare(series, &kernel, &tests, dir.path(), wish));
        match made {
            Ok(more) => jobs.extend(more),
            Err(reason) => columns.push(Column {
                head: series.to_string(),
                outcomes: Err(reason),
            }),
        }
    }
    let (ran, costs, said) = boot_all(jobs)?;
    columns.extend(ran);
    columns.sort_by_key(|column| order(&column.head));
    if !wish.costs_alone {
        print!("\n{}", table(&columns));
    }
    let summary = sum_up(&columns, costs);
    Ok(Summary { said, ..summary })
}

/// One initramfs for each tier of a kernel; the script is what differs.
fn prepare(
    series: Series,
    kernel: &Kernel,
    tests: &Tests,
    dir: &Path,
    wish: &Wish<'_>,
) -> Result<Vec<Job>> {
    let mut root = Root::new(kernel)?;
    root.add(&agent_binary(), Path::new("/vm/onacc"))?;
    let own = std::env::current_exe().map_err(|error| format!("our own program: {error}"))?;
    let stripped = tempfile::NamedTempFile::new().map_err(|error| format!("a file: {error}"))?;
    root.add(&strip(&own, stripped.path())?, Path::new("/vm/xtask"))?;
    let mut jobs = Vec::new();
    let names = if wish.costs_alone {
        Vec::new()
    } else {
        tests.names()
    };
    let booted = wish.tiers.iter().filter(|tier| tier.boots(series));
    let tiers = booted.map(|&tier| {
        let mut cases = cases(&names, tier, wish.extent);
        if let Some(filter) = wish.filter {
            cases.retain_mut(|case| {
                if case.file.contains(filter) {
                    return true;
                }
                let whole = case.only.is_empty();
                case.only.retain(|test| test.contains(filter));
                case.left_out.retain(|(test, _)| test.contains(filter));
                whole || !case.only.is_empty()
            });
        }
        (tier, cases)
    });
    let tiers: Vec<(Tier, Vec<Case>)> = tiers.collect();
    let mut files: Vec<String> = tiers
        .iter()
        .flat_map(|(_, cases)| cases.iter().map(|case| case.file.clone()))
        .collect();
    files.sort();
    files.dedup();
    tests.add_to(&mut root, &files)?;
    for (tier, cases) in tiers {
        root.write(
            "vm/run",
            script(tier, &cases, wish.filter).as_bytes(),
            0o755,
        )?;
        let initramfs = dir.join(format!("{series}-{tier}"));
        root.pack(&initramfs)?;
        jobs.push(Job {
            kernel: kernel.clone(),
            series,
            tier,
            initramfs,
            cases,
        });
    }
    Ok(jobs)
}

fn boot_all(jobs: Vec<Job>) -> Result<(Vec<Column>, Costs, Vec<String>)> {
    let queue = Mutex::new(jobs.into_iter());
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
    let work = || {
        let mut done = Vec::new();
        while let Some(job) = next() {
            done.push(boot(&job)?);
        }
        Ok::<_, String>(done)
    };
    let done: Result<Vec<_>> = thread::scope(|scope| {
        let workers: Vec<_> = (0..AT_A_TIME).map(|_| scope.spawn(work)).collect();
        let results = workers.into_iter().map(thread::ScopedJoinHandle::join);
        results
            .map(|result| result.unwrap_or_else(|_| Err("a thread has panicked".to_owned())))
            .collect()
    });
    let (mut columns, mut costs, mut said) = (Vec::new(), Costs::new(), Vec::new());
    for mut ran in done?.into_iter().flatten() {
        columns.push(ran.column);
        said.append(&mut ran.said);
        for (program, count) in ran.costs {
            // A program may cost more where another one is its neighbour.
            let most = costs.entry(program).or_insert(count);
            *most = count.max(*most);
        }
    }
    Ok((columns, costs, said))
}

/// Boots one machine, once more if its kernel never came as far as the init (a loaded
/// host can do that to an emulated machine, and no test of ours has run by then), or if
/// the emulator made it fall.
fn boot(job: &Job) -> Result<Booted> {
    // Agents come and go under load there, each patching the same hook: two runs of two
    // fell over that on 6.12 while the processors ran side by side.
    let first = boot_once(job, job.tier == Tier::Lsm)?;
    let why = match first.fall {
        None => return Ok(first),
        Some(Fall::BeforeInit) => "it did not boot",
        Some(Fall::WhilePatching) => {
            "its kernel trapped on the breakpoint of a hook that was patched by then, as only an emulated processor can"
        }
    };
    println!("vm: {} {}: {why}; once more", job.series, job.tier);
    boot_once(job, first.fall == Some(Fall::WhilePatching))
}

/// What made a machine go down, if it was none of our tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fall {
    BeforeInit,
    WhilePatching,
}

impl Fall {
    /// A hook is patched by a breakpoint in its first byte, and all processors are made to
    /// forget that one before its entry in the kernel's list goes; TCG's may still run it.
    /// The trap is then one byte into the call that is there by now.
    fn of(came_up: bool, went_down: bool, console: &str) -> Option<Self> {
        let patched = went_down
            && console.contains("Fatal exception in interrupt")
            && console.contains("RIP: 0010:bpf_lsm_")
            && console.contains("f3 0f 1e fa e8 <");
        match (came_up, patched) {
            (false, _) => Some(Self::BeforeInit),
            (true, true) => Some(Self::WhilePatching),
            (true, false) => None,
        }
    }
}

struct Booted {
    fall: Option<Fall>,
    column: Column,
    costs: Costs,
    said: Vec<String>,
}

/// Its log stays in target/vm.
fn boot_once(job: &Job, in_turns: bool) -> Result<Booted> {
    let head = format!("{} {}", job.series, job.tier);
    let log = cache().join(format!("{}-{}.log", job.series, job.tier));
    let (mut reading, mut panics) = (Reading::default(), Panics::default());
    let (mut text, mut section) = (String::new(), String::new());
    let machine = Machine {
        image: &job.kernel.image,
        initramfs: &job.initramfs,
        append: job.tier.append(),
        limit: LIMIT,
        in_turns,
    };
    let ended = machine.run(|line| {
        reading.line(line);
        panics.line(line);
        text.push_str(line);
        text.push('\n');
        if let Some(file) = line.strip_prefix(BEGIN) {
            section = format!("{head}: {file}:\n");
        } else if let Some(status) = line.strip_prefix(END) {
            if status != "0" {
                println!("{section}{head}: status {status}");
            }
            section.clear();
        } else {
            section.push_str(line);
            section.push('\n');
        }
    })?;
    text.push_str("\n== the kernel's console\n");
    text.push_str(&ended.console);
    fs::write(&log, &text).map_err(|error| format!("{}: {error}", log.display()))?;
    println!(
        "vm: {head}: {} ended after {:.0} s; log: {}",
        job.kernel.release,
        ended.took.as_secs_f32(),
        log.display()
    );
    if ended.status.is_none() {
        println!(
            "{section}{head}: the machine went down; console:\n{}",
            ended.console
        );
    }
    let costs = reading.programs.iter().map(|(program, count)| {
        let key = (job.series.to_string(), program.clone());
        (key, *count)
    });
    let costs = costs.collect();
    let outcomes = Ok(reading.finish(&job.cases));
    Ok(Booted {
        fall: Fall::of(ended.booted, ended.status.is_none(), &ended.console),
        said: panics
            .finish()
            .into_iter()
            .map(|panic| format!("{head}: {panic}"))
            .collect(),
        column: Column { head, outcomes },
        costs,
    })
}

/// Kernels by their number, tiers as they are listed.
fn order(head: &str) -> (usize, usize) {
    let (kernel, tier) = head.split_once(' ').unwrap_or((head, ""));
    let place = |names: Vec<String>, name: &str| names.iter().position(|known| known == name);
    (
        place(
            Series::ALL.iter().map(ToString::to_string).collect(),
            kernel,
        )
        .unwrap_or(0),
        place(Tier::ALL.iter().map(ToString::to_string).collect(), tier).unwrap_or(0),
    )
}

fn sum_up(columns: &[Column], costs: Costs) -> Summary {
    let mut summary = Summary {
        costs,
        ..Summary::default()
    };
    for column in columns {
        let Ok(outcomes) = &column.outcomes else {
            summary.skipped += 1;
            continue;
        };
        for outcome in outcomes.values() {
            match outcome {
                Outcome::Passed => summary.passed += 1,
                Outcome::Failed => summary.failed += 1,
                Outcome::Skipped(_) => summary.skipped += 1,
            }
        }
    }
    summary
}

/// Compares the costs with what is recorded, says so, counts what is too dear.
pub fn compare_costs(summary: &mut Summary) -> Result<()> {
    let recorded = cost::recorded()?;
    for (line, wrong) in cost::compare(&recorded, &summary.costs) {
        let how = if wrong { "FAILED " } else { "" };
        println!("{how}{line}");
        summary.failed += usize::from(wrong);
        summary.passed += usize::from(!wrong);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trap_in_a_hook_that_is_patched_already_is_the_emulators() {
        let seen = "[   70.048782] RIP: 0010:bpf_lsm_file_open+0x5/0x10\n\
            [   70.048963] Code: 90 90 90 f3 0f 1e fa e8 <67> 34 d9 ff 31 c0 c3\n\
            [   70.051146] Kernel panic - not syncing: Fatal exception in interrupt\n";
        assert_eq!(Fall::of(true, true, seen), Some(Fall::WhilePatching));
        assert_eq!(Fall::of(true, false, seen), None);
        assert_eq!(Fall::of(false, true, seen), Some(Fall::BeforeInit));
        for other in [
            seen.replace("bpf_lsm_file_open", "bpf_prog_0123"),
            seen.replace("e8 <67>", "<e8> 67"),
            "reboot: Power down".to_owned(),
        ] {
            assert_eq!(Fall::of(true, true, &other), None);
        }
    }
}
