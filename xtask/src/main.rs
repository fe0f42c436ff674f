//! Developer commands of onacc: `cargo xtask --help`.
//!
//! Owns: the command line, and the exit status. Must not: do anything itself;
//! each command has a file of its own. Tested by `cargo xtask test` running.

mod bench;
mod build_ebpf;
mod chaos;
mod ebpf_toolchain;
mod fuzz;
mod package;
mod panics;
mod run;
mod setup;
mod setup_plan;
mod shell;
mod soak;
mod test;
mod tour;
mod vm;

use std::{ffi::OsString, path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};

/// Builds, shows and tests onacc. Start with `cargo xtask run` or `cargo xtask test`, as root.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Installs what is missing for everything below; says what and why, asks nothing
    Setup,
    /// Builds the eBPF program and prints its path and size
    BuildEbpf,
    /// Builds onacc and shows it at work on a scratch filesystem, or runs it with ARGS
    ///
    /// Without ARGS it is a tour: a private clamd, a small loop-mounted filesystem, and
    /// an agent that protects it until Ctrl-C. With ARGS the agent itself is run with
    /// them, against the host's clamd.conf: `cargo xtask run -- --foreground`.
    Run {
        /// End after the tour; status 0 only if all that it showed was true
        #[arg(long, conflicts_with = "args")]
        once: bool,
        /// Arguments of onacc
        #[arg(last = true)]
        args: Vec<OsString>,
    },
    /// Runs everything: format, clippy, release build, unit, property and end-to-end tests
    Test {
        /// Let the property tests run for five minutes each, instead of seconds
        #[arg(long)]
        long: bool,
        /// Run only tests whose name contains this
        filter: Option<String>,
    },
    /// Breaks things under load and checks what must hold: nobody hangs, nothing slips
    ///
    /// Each fault has a filesystem, a clamd, an agent and openers of its own. Status 0
    /// only if every invariant held. With --minutes it goes on for that long and draws
    /// the resource curves into bench/soak.svg.
    Chaos {
        /// Go on for this long; without it each fault strikes once
        #[arg(long)]
        minutes: Option<u64>,
        /// Only faults whose name contains this
        #[arg(long, value_name = "FAULT")]
        only: Option<String>,
        /// Print the faults and what they break
        #[arg(long)]
        list: bool,
    },
    /// Fuzzes every parser of bytes from outside, under the address sanitizer
    ///
    /// Starts from fuzz/corpus, which holds what was found before; `cargo xtask test`
    /// replays that without a fuzzer. What breaks a parser is left in fuzz/artifacts.
    Fuzz {
        /// How long each target is run
        #[arg(long, default_value_t = 60)]
        seconds: u64,
        /// Write the corpora anew, with what was found and without what is not needed
        #[arg(long)]
        minimise: bool,
        /// Only targets whose name contains this
        target: Option<String>,
    },
    /// Measures onacc beside no agent and beside clamonacc, on a private clamd
    ///
    /// Prints a table and writes bench/results.json. Status 0 also when a goal is
    /// missed; 1 when something could not be measured.
    Bench {
        /// Fewer rounds: under five minutes
        #[arg(long)]
        short: bool,
        /// Print what changed beyond noise since the run that wrote this file
        #[arg(long, value_name = "OLD.json")]
        compare: Option<PathBuf>,
        /// Measure only workloads whose name contains this
        filter: Option<String>,
    },
    /// Builds the Debian package, target/debian/onacc.deb
    ///
    /// Builds onacc, its manual pages and completions, and packs them with cargo-deb,
    /// which is built into target/tools the first time (about a minute).
    Package,
    /// Tests onacc on Debian's 6.1 and 6.12 kernels in qemu, or runs a script there
    ///
    /// Boots each kernel with BPF LSM, without it (fentry) and without eBPF, runs the
    /// end-to-end tests that concern kernels, and prints a table: kernel by tier by
    /// test. Compares what the eBPF programs cost the verifier with what is recorded.
    Vm(vm::Options),
    /// What `vm` runs in its machines
    #[command(hide = true)]
    VmPrograms,
    /// What `bench` runs to open files as another user
    #[command(hide = true)]
    BenchOpener {
        uid: u32,
        file: PathBuf,
        count: usize,
        milliseconds: u64,
        core: Option<usize>,
    },
    /// What `bench` runs to open many files by many openers
    #[command(hide = true)]
    BenchOpeners {
        uid: u32,
        dir: PathBuf,
        files: usize,
        openers: usize,
        milliseconds: u64,
    },
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Task::Setup => setup::command(),
        Task::BuildEbpf => build_ebpf::command(),
        Task::Run { once, args } => run::command(once, &args),
        Task::Test { long, filter } => test::command(long, filter.as_deref()),
        Task::Chaos {
            minutes,
            only,
            list,
        } => chaos::command(minutes, only.as_deref(), list),
        Task::Fuzz {
            seconds,
            minimise,
            target,
        } => fuzz::command(seconds, minimise, target.as_deref()),
        Task::Bench {
            short,
            compare,
            filter,
        } => bench::command(short, compare.as_deref(), filter.as_deref()),
        Task::Package => package::command(),
        Task::Vm(options) => vm::command(&options),
        Task::VmPrograms => vm::programs::command(),
        Task::BenchOpener {
            uid,
            file,
            count,
            milliseconds,
            core,
        } => bench::open_as_child(uid, &file, count, milliseconds, core),
        Task::BenchOpeners {
            uid,
            dir,
            files,
            openers,
            milliseconds,
        } => bench::openers_as_child(&dir, files, openers, (uid, milliseconds)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            if !message.is_empty() {
                eprintln!("{message}");
            }
            ExitCode::FAILURE
        }
    }
}
