//! Workloads: what people run: git, cargo, dpkg, and many short-lived processes,
//! with prevention and notify-only.
//!
//! Owns: the programs and their trees. Every column and round gets a copy of its
//! own, so that no run finds what another has left in a cache.

use std::{
    env,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use onacc_tests::{ScratchFs, sys::die_with_parent};

use crate::{
    bench::{
        clock::milliseconds,
        cpu::CpuTimes,
        row::{Column, Reading, Row, Unit, take},
        stage::{Mode, Stage, Watch, end, probe, rest},
    },
    ebpf_toolchain::find_program,
    shell::{Result, run_quietly},
};

/// One program: how its tree is made, and the steps that are timed.
struct Program {
    /// Names of the steps.
    steps: &'static [&'static str],
    /// What must be installed.
    needs: &'static str,
    prepare: fn(&Stage, &Path) -> Result<()>,
    step: fn(&Stage, &Path, usize) -> Result<()>,
}

const PROGRAMS: [Program; 4] = [
    Program {
        steps: &["git status", "git checkout of another branch"],
        needs: "git",
        prepare: repository,
        step: git_step,
    },
    Program {
        steps: &["cargo build, full", "cargo build, incremental"],
        needs: "cargo",
        prepare: small_crate,
        step: cargo_step,
    },
    Program {
        steps: &["dpkg-deb --extract"],
        needs: "dpkg-deb",
        prepare: package,
        step: package_step,
    },
    Program {
        steps: &["short-lived processes"],
        needs: "true",
        prepare: processes,
        step: processes_step,
    },
];

/// Measures.
pub fn measure(stage: &Stage) -> Result<Vec<Row>> {
    let scratch = ScratchFs::ext4(2048)?;
    let watched = scratch.mkdir("watched");
    let probe = probe(&watched.join("eicar.com"))?;
    let mut all = Vec::new();
    let mut loops_left = u32::try_from(PROGRAMS.len() * Mode::ALL.len()).unwrap_or(u32::MAX);
    for program in &PROGRAMS {
        for mode in Mode::ALL {
            loops_left -= 1;
            let watch = Watch::new(&watched)
                .mode(mode)
                .guard(Duration::from_mins(4));
            let mut rows = rows_for(program, stage, mode);
            if find_program(program.needs).is_none() {
                for row in &mut rows {
                    for column in [Column::Baseline, Column::Onacc, Column::Clamonacc] {
                        row.absent(column, "not installed");
                    }
                }
            }
            for _ in stage.rounds(stage.plan.program_rounds, loops_left) {
                one_round(stage, program, (&watch, &probe), &mut rows)?;
            }
            all.extend(rows);
        }
    }
    Ok(all)
}

fn rows_for(program: &Program, stage: &Stage, mode: Mode) -> Vec<Row> {
    let mode = match mode {
        Mode::Prevention => "prevention",
        Mode::NotifyOnly => "notify-only",
    };
    let size = match program.needs {
        "git" => format!(" ({} files)", stage.plan.git_files),
        "dpkg-deb" => format!(" of {} files", stage.plan.source_files),
        "true" => format!(" ({})", stage.plan.processes),
        _ => String::new(),
    };
    let name = |step| format!("{step}{size}, {mode}");
    let steps = program.steps.iter();
    steps
        .map(|step| Row::new(name(step), Unit::Milliseconds))
        .collect()
}

fn one_round(
    stage: &Stage,
    program: &Program,
    (watch, probe): (&Watch, &PathBuf),
    rows: &mut [Row],
) -> Result<()> {
    let dir = watch.include.join("work");
    // Prepared anew for each column, before its agent comes: all begin alike.
    let ready = || -> Result<()> {
        if dir.exists() {
            fs::remove_dir_all(&dir).map_err(|error| format!("{}: {error}", dir.display()))?;
        }
        fs::create_dir(&dir).map_err(|error| format!("{}: {error}", dir.display()))?;
        (program.prepare)(stage, &dir)?;
        rest(&dir)
    };
    let timed = |pid: Option<u32>| -> Result<Vec<Reading>> {
        let mut readings = Vec::new();
        for number in 0..program.steps.len() {
            let look = || -> Result<Vec<CpuTimes>> {
                let pids = pid.into_iter().chain([stage.clamd.pid()]);
                pids.map(CpuTimes::of).collect()
            };
            let meter = pid.map(|pid| stage.meter(pid)).transpose()?;
            let (before, began) = (look()?, Instant::now());
            (program.step)(stage, &dir, number)?;
            let mut reading = Reading::from(milliseconds(began.elapsed()));
            if pid.is_some() {
                for (name, (now, before)) in
                    ["agent", "clamd"].iter().zip(look()?.iter().zip(&before))
                {
                    let spent = now.each_since(before, 1);
                    reading = reading.note(format!("processor time of {name}: {spent}"));
                }
            }
            if let Some(meter) = meter {
                reading = reading.cpu(meter.each(1)?);
            }
            readings.push(reading);
        }
        Ok(readings)
    };
    if rows
        .iter()
        .any(|row| row.cell(Column::Baseline).absent.is_some())
    {
        return Ok(());
    }
    ready()?;
    take(rows, Column::Baseline, || timed(None));
    ready()?;
    take(rows, Column::Onacc, || {
        let agent = stage.onacc(watch)?;
        let readings = timed(Some(agent.pid()))?;
        end(agent)?;
        Ok(readings)
    });
    ready()?;
    take(rows, Column::Clamonacc, || {
        let peer = stage.clamonacc(watch, std::slice::from_ref(probe))?;
        let readings = timed(Some(peer.pid()))?;
        peer.end()?;
        Ok(readings)
    });
    Ok(())
}

/// A program that must succeed, in this directory, with nothing of ours around it.
fn program(name: &str, dir: &Path) -> Command {
    let mut command = Command::new(name);
    command
        .current_dir(dir)
        .stdin(Stdio::null())
        .env("HOME", dir)
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_OPTIONAL_LOCKS", "0");
    command
}

fn git(dir: &Path, args: &[&str]) -> Result<()> {
    let identity = [
        "-c",
        "user.name=bench",
        "-c",
        "user.email=bench@localhost",
        "-c",
        "safe.directory=*",
        "-c",
        "gc.auto=0",
    ];
    run_quietly(program("git", dir).args(identity).args(args))
}

/// Two branches; half of the files differ between them.
fn repository(stage: &Stage, dir: &Path) -> Result<()> {
    git(dir, &["init", "--quiet", "--initial-branch=one"])?;
    let count = stage.plan.git_files;
    write_tree(stage, dir, (0..count).step_by(1))?;
    git(dir, &["add", "."])?;
    git(dir, &["commit", "--quiet", "--message=one"])?;
    git(dir, &["checkout", "--quiet", "-b", "two"])?;
    write_tree(stage, dir, (0..count).step_by(2))?;
    git(dir, &["commit", "--quiet", "--all", "--message=two"])?;
    git(dir, &["checkout", "--quiet", "one"])?;
    // The index knows none of these files: git has to read them all.
    write_tree_again(dir)
}

fn git_step(_: &Stage, dir: &Path, number: usize) -> Result<()> {
    match number {
        0 => git(dir, &["status", "--short"]),
        _ => git(dir, &["checkout", "--quiet", "--force", "two"]),
    }
}

fn write_tree(stage: &Stage, dir: &Path, numbers: impl Iterator<Item = usize>) -> Result<()> {
    for number in numbers {
        let place = dir.join("sources").join((number / 50).to_string());
        fs::create_dir_all(&place)
            .and_then(|()| fs::write(place.join(format!("{number}.txt")), stage.content(4096)))
            .map_err(|error| format!("a tree in {}: {error}", dir.display()))?;
    }
    Ok(())
}

fn write_tree_again(dir: &Path) -> Result<()> {
    let sources = dir.join("sources");
    let (from, to) = (sources.display().to_string(), dir.join("copy"));
    run_quietly(program("cp", dir).args(["-r", &from]).arg(&to))?;
    fs::remove_dir_all(&sources)
        .and_then(|()| fs::rename(&to, &sources))
        .map_err(|error| format!("a tree in {}: {error}", dir.display()))
}

/// A crate of its own, without dependencies.
fn small_crate(_: &Stage, dir: &Path) -> Result<()> {
    let fail = |error| format!("a crate in {}: {error}", dir.display());
    let source = dir.join("src");
    fs::create_dir(&source).map_err(fail)?;
    let manifest = "[package]\nname = \"small\"\nversion = \"0.1.0\"\nedition = \"2024\"\n\
                    [workspace]\n";
    fs::write(dir.join("Cargo.toml"), manifest).map_err(fail)?;
    let mut main = String::new();
    for number in 0..40 {
        let module = format!(
            "pub fn answer(n: u64) -> u64 {{\n    (0..n).map(|i| i * {number}).sum()\n}}\n"
        );
        fs::write(source.join(format!("m{number}.rs")), module).map_err(fail)?;
        let _ = writeln!(main, "mod m{number};");
    }
    main.push_str("fn main() {\n");
    for number in 0..40 {
        let _ = writeln!(main, "    println!(\"{{}}\", m{number}::answer(9));");
    }
    main.push_str("}\n");
    fs::write(source.join("main.rs"), main).map_err(fail)
}

fn cargo_step(_: &Stage, dir: &Path, number: usize) -> Result<()> {
    if number == 1 {
        let path = dir.join("src/m7.rs");
        fs::write(&path, "pub fn answer(n: u64) -> u64 {\n    n\n}\n")
            .map_err(|error| format!("{}: {error}", path.display()))?;
    }
    let cargo = env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let mut command = Command::new(cargo);
    command
        .args(["build", "--quiet", "--offline"])
        .current_dir(dir)
        .stdin(Stdio::null())
        .env("CARGO_TARGET_DIR", dir.join("target"))
        .env_remove("RUSTFLAGS");
    run_quietly(&mut command)
}

/// A package that is not compressed: unpacking it is opening and writing.
fn package(stage: &Stage, dir: &Path) -> Result<()> {
    let tree = dir.join("tree");
    let control = tree.join("DEBIAN");
    fs::create_dir_all(&control)
        .and_then(|()| {
            let text = "Package: bench\nVersion: 1\nArchitecture: all\n\
                        Maintainer: bench <bench@localhost>\nDescription: for a benchmark\n";
            fs::write(control.join("control"), text)
        })
        .map_err(|error| format!("a package in {}: {error}", dir.display()))?;
    write_tree(stage, &tree, (0..stage.plan.source_files).step_by(1))?;
    let mut build = program("dpkg-deb", dir);
    run_quietly(build.args(["-Znone", "--build", "tree", "bench.deb"]))?;
    fs::remove_dir_all(&tree).map_err(|error| format!("{}: {error}", tree.display()))
}

fn package_step(_: &Stage, dir: &Path, _: usize) -> Result<()> {
    let mut extract = program("dpkg-deb", dir);
    run_quietly(extract.args(["--extract", "bench.deb", "unpacked"]))
}

/// A program on the watched filesystem.
fn processes(_: &Stage, dir: &Path) -> Result<()> {
    let program = find_program("true").ok_or("there is no `true`")?;
    fs::copy(program, dir.join("true"))
        .map(drop)
        .map_err(|error| format!("copying true: {error}"))
}

fn processes_step(stage: &Stage, dir: &Path, _: usize) -> Result<()> {
    for _ in 0..stage.plan.processes {
        let mut command = Command::new(dir.join("true"));
        let status = die_with_parent(command.stdin(Stdio::null())).status();
        match status {
            Ok(status) if status.success() => {}
            other => return Err(format!("a short-lived process: {other:?}")),
        }
    }
    Ok(())
}
