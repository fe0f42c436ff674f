//! `cargo xtask vm`: onacc on other kernels than this machine's, in qemu.
//!
//! Owns: the command line, and a run of one script. Must not: touch a kernel
//! that is not in the machine.

mod initramfs;
pub mod kernels;
mod machine;

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use self::{
    initramfs::Root,
    kernels::{Kernel, Series},
    machine::Machine,
};
use crate::{
    setup::{self, Level},
    shell::{Result, agent_binary, workspace},
};

/// What is to be run in which machine.
#[derive(clap::Args)]
pub struct Options {
    /// The kernel to boot
    #[arg(long, value_enum, default_value = "6.12")]
    kernel: Series,
    /// Whether `bpf` is in the kernel's list of LSMs (off: fentry is the best that there is)
    #[arg(long, value_enum, default_value = "on")]
    lsm: Switch,
    /// Further words on the kernel's command line, such as lockdown=confidentiality
    #[arg(long, value_name = "WORDS", default_value = "")]
    append: String,
    /// A shell script to run in there, in /vm, with onacc and the files of --with in PATH
    #[arg(long, value_name = "SCRIPT")]
    run: PathBuf,
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

/// The command line for a kernel whose list of LSMs has no `bpf`.
const WITHOUT_BPF_LSM: &str = "lsm=landlock,lockdown,yama,integrity";

/// Where kernels are kept.
fn cache() -> PathBuf {
    crate::ebpf_toolchain::target_dir(&workspace()).join("vm")
}

/// Runs one script in one machine; its status decides.
pub fn command(options: &Options) -> Result<()> {
    setup::ensure(Level::Vm)?;
    let kernel = kernels::get(options.kernel, &cache())?;
    let mut root = Root::new(&kernel)?;
    root.add(&agent_binary(), Path::new("/vm/onacc"))?;
    for with in &options.with {
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
    let script =
        fs::read(&options.run).map_err(|error| format!("{}: {error}", options.run.display()))?;
    root.write("vm/run", &script, 0o755)?;
    boot(&kernel, &root, options)
}

fn boot(kernel: &Kernel, root: &Root, options: &Options) -> Result<()> {
    let file = tempfile::NamedTempFile::new().map_err(|error| format!("a file: {error}"))?;
    root.pack(file.path())?;
    let mut append = options.append.clone();
    if options.lsm == Switch::Off {
        append = format!("{WITHOUT_BPF_LSM} {append}");
    }
    println!("vm: booting {} {append}", kernel.release);
    let ended = Machine {
        image: &kernel.image,
        initramfs: file.path(),
        append: &append,
        limit: Duration::from_secs(options.limit),
    }
    .run(|line| println!("{line}"))?;
    if options.console || ended.status.is_none() {
        println!("vm: the kernel's console:\n{}", ended.console);
    }
    let took = ended.took.as_secs_f32();
    println!("vm: {} ended after {took:.1} s", kernel.release);
    match ended.status {
        Some(0) => Ok(()),
        Some(status) => Err(format!(
            "vm: {} ended with status {status}",
            options.run.display()
        )),
        None => Err("vm: the machine went down before the script ended".to_owned()),
    }
}
