//! `cargo xtask vm`: onacc on other kernels than this machine's, in qemu.
//!
//! Owns: the command line, and a run of one script; `vm/matrix.rs` runs the tests.
//! Must not: touch a kernel that is not in the machine.

mod build;
mod cases;
mod cost;
mod initramfs;
mod kernels;
mod machine;
mod matrix;
mod outcome;
pub mod programs;
mod script;

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

pub use self::matrix::Summary;
use self::{
    cases::{Extent, Tier},
    initramfs::Root,
    kernels::{Kernel, Series},
    machine::Machine,
    matrix::Wish,
};
use crate::{
    setup::{self, Level},
    shell::{Result, agent_binary, cargo, run_quietly, workspace},
};

/// What is to be run in which machine.
#[derive(clap::Args)]
pub struct Options {
    /// Run only tests whose name contains this
    filter: Option<String>,
    /// The kernels to boot; all if none is named, 6.12 with --run
    #[arg(long, value_enum)]
    kernel: Vec<Series>,
    /// The tiers to test; all if none is named
    #[arg(long, value_enum, conflicts_with = "run")]
    tier: Vec<Tier>,
    /// Only the tests that `cargo xtask test` runs
    #[arg(long, conflicts_with = "run")]
    short: bool,
    /// Run no tests; record what the eBPF programs cost the verifier now
    #[arg(long, conflicts_with_all = ["run", "filter", "short", "tier"])]
    bless: bool,
    /// Run no tests but this shell script: in /vm, with onacc and the files of --with in PATH
    #[arg(long, value_name = "SCRIPT", conflicts_with = "filter")]
    run: Option<PathBuf>,
    #[command(flatten)]
    script: ScriptOptions,
}

/// For `--run` alone.
#[derive(clap::Args)]
#[group(requires = "run")]
struct ScriptOptions {
    /// Whether `bpf` is in the kernel's list of LSMs (off: fentry is the best that there is)
    #[arg(long, value_enum, default_value = "on")]
    lsm: Switch,
    /// Further words on the kernel's command line, such as lockdown=confidentiality
    #[arg(long, value_name = "WORDS", default_value = "")]
    append: String,
    /// A file to put into /vm, or under another name; programs bring their libraries
    #[arg(long, value_name = "FILE[:PLACE]", num_args = 1..)]
    with: Vec<String>,
    /// Seconds until the machine is switched off
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    limit: u64,
    /// Print the kernel's console too
    #[arg(long)]
    console: bool,
}

/// On or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Switch {
    On,
    Off,
}

/// Where kernels are kept.
fn cache() -> PathBuf {
    crate::ebpf_toolchain::target_dir(&workspace()).join("vm")
}

/// Runs the matrix, or one script in one machine.
pub fn command(options: &Options) -> Result<()> {
    setup::ensure(Level::Vm)?;
    if let Some(path) = &options.run {
        return run_script(path, options);
    }
    run_quietly(cargo().args(["build", "--release"]))?;
    let wish = Wish {
        kernels: chosen(&options.kernel, &Series::ALL),
        tiers: if options.bless {
            vec![Tier::Lsm, Tier::Fentry, Tier::Tracepoint]
        } else {
            chosen(&options.tier, &Tier::ALL)
        },
        extent: if options.short {
            Extent::Short
        } else {
            Extent::All
        },
        filter: options.filter.as_deref(),
        costs_alone: options.bless,
    };
    let mut summary = matrix::run(&wish)?;
    if options.bless {
        cost::bless(&summary.costs)?;
        println!("vm: recorded in {}", cost::file().display());
        return Ok(());
    }
    matrix::compare_costs(&mut summary)?;
    let Summary {
        passed,
        failed,
        skipped,
        ..
    } = summary;
    println!("{passed} passed, {failed} failed, {skipped} skipped");
    if failed == 0 {
        Ok(())
    } else {
        Err(String::new())
    }
}

/// The matrix as far as `cargo xtask test` runs it.
pub fn short(filter: Option<&str>) -> Result<Summary> {
    let mut summary = matrix::run(&Wish {
        kernels: Series::ALL.to_vec(),
        tiers: Tier::ALL.to_vec(),
        extent: Extent::Short,
        filter,
        costs_alone: false,
    })?;
    matrix::compare_costs(&mut summary)?;
    Ok(summary)
}

fn chosen<T: Copy>(named: &[T], all: &[T]) -> Vec<T> {
    if named.is_empty() { all } else { named }.to_vec()
}

/// Runs one script in one machine; its status decides.
fn run_script(path: &Path, options: &Options) -> Result<()> {
    let series = *options.kernel.first().unwrap_or(&Series::V6_12);
    let kernel = kernels::get(series, &cache())?;
    let mut root = Root::new(&kernel)?;
    root.add(&agent_binary(), Path::new("/vm/onacc"))?;
    for with in &options.script.with {
        let (file, place) = with.split_once(':').unwrap_or((with, ""));
        let file = Path::new(file);
        let name = file.file_name().unwrap_or_default();
        let place = if place.is_empty() {
            Path::new("/vm").join(name)
        } else {
            PathBuf::from(place)
        };
        root.add(file, &place)?;
    }
    let script = fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
    root.write("vm/run", &script, 0o755)?;
    let status = boot(&kernel, &root, &options.script)?;
    match status {
        Some(0) => Ok(()),
        Some(status) => Err(format!("vm: {} ended with status {status}", path.display())),
        None => Err("vm: the machine went down before the script ended".to_owned()),
    }
}

fn boot(kernel: &Kernel, root: &Root, options: &ScriptOptions) -> Result<Option<u8>> {
    let file = tempfile::NamedTempFile::new().map_err(|error| format!("a file: {error}"))?;
    root.pack(file.path())?;
    let mut append = options.append.clone();
    if options.lsm == Switch::Off {
        append = format!("{} {append}", Tier::Fentry.append());
    }
    println!("vm: booting {} {append}", kernel.release);
    let ended = Machine {
        image: &kernel.image,
        initramfs: file.path(),
        append: &append,
        limit: Duration::from_secs(options.limit),
        in_turns: false,
    }
    .run(|line| println!("{line}"))?;
    if options.console || ended.status.is_none() {
        println!("vm: the kernel's console:\n{}", ended.console);
    }
    let took = ended.took.as_secs_f32();
    println!("vm: {} ended after {took:.1} s", kernel.release);
    Ok(ended.status)
}
