//! `cargo xtask setup`: looks for what is needed and installs what is missing.
//!
//! Owns: looking at the machine, and changing it. Must not: decide what is
//! needed; `setup_plan.rs` does. It asks nothing, and does nothing the second time.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

pub use crate::setup_plan::Level;
use crate::{
    ebpf_toolchain::{self, find_program, linker_install_args, llvm_prefix},
    setup_plan::{Found, NEEDS, Package, Step, listed, plan},
    shell::{Result, cargo, run_quietly},
};

/// Installs what is missing for everything.
pub fn command() -> Result<()> {
    if !ensure(Level::Vm)? {
        println!("setup: everything needed is here");
    }
    Ok(())
}

/// Installs what a level needs, silently if nothing is missing; says whether
/// anything was.
pub fn ensure(level: Level) -> Result<bool> {
    let mut last = Vec::new();
    loop {
        // What a step brings can change what comes next: look again.
        let steps = plan(&look(), level)?;
        let Some(step) = steps.first() else {
            if !last.is_empty() {
                println!("setup: done");
            }
            return Ok(!last.is_empty());
        };
        if last.contains(step) {
            return Err(format!(
                "setup: this was done, but what it brings is still not found:\n{}",
                listed(&steps[..1])
            ));
        }
        take(step)?;
        last.push(step.clone());
    }
}

/// Looks for everything.
fn look() -> Found {
    let runs = |command: &mut Command| {
        let quiet = command.stdout(Stdio::null()).stderr(Stdio::null());
        quiet.status().is_ok_and(|status| status.success())
    };
    let components = [("rustfmt", "fmt"), ("clippy", "clippy")];
    Found {
        root: onacc_tests::skip::is_root(),
        apt: is_there("apt-get"),
        rustup: is_there("rustup"),
        ebpf: ebpf_toolchain::look(),
        llvm_dev: (15..=40)
            .filter(|llvm| llvm_prefix(*llvm).join("include/llvm-c/Core.h").exists())
            .collect(),
        link_libraries: [("/usr/include/zstd.h", "libzstd-dev")]
            .into_iter()
            .filter(|(sign, _)| !is_there(sign))
            .map(|(_, package)| package)
            .collect(),
        unmet: NEEDS
            .into_iter()
            .filter(|need| !is_there(need.sign))
            .collect(),
        components: components
            .into_iter()
            .filter(|(_, command)| !runs(cargo().args([command, "--version"])))
            .map(|(component, _)| component)
            .collect(),
    }
}

/// The path of a program, also where system programs are missing from a user's PATH.
pub fn system_program(name: &str) -> PathBuf {
    let system = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"];
    let mut places = system.iter().map(|dir| Path::new(dir).join(name));
    find_program(name)
        .or_else(|| places.find(|path| path.is_file()))
        .unwrap_or_else(|| name.into())
}

/// Whether a file, or a program of this name, is there.
fn is_there(sign: &str) -> bool {
    if sign.starts_with('/') {
        return Path::new(sign).exists();
    }
    system_program(sign).is_absolute()
}

fn take(step: &Step) -> Result<()> {
    let by_hand = || {
        format!(
            "\nto do it by hand:\n{}",
            listed(std::slice::from_ref(step))
        )
    };
    match step {
        Step::Apt(packages) => {
            for Package { name, why } in packages {
                println!("setup: installing {name}: {why}");
            }
            // A list that cannot be brought up to date may still do.
            let updated = run_quietly(apt().arg("update"));
            let install = ["install", "--yes", "--no-install-recommends"];
            let names = packages.iter().map(|one| &one.name);
            run_quietly(apt().args(install).args(names)).map_err(|error| {
                let first = updated.err().map_or(String::new(), |error| error + "\n");
                format!("setup: {first}{error}{}", by_hand())
            })
        }
        Step::Linker(llvm) => {
            println!(
                "setup: building bpf-linker with LLVM {llvm}: links the eBPF program (1 to 3 min)"
            );
            let mut install = cargo();
            install
                .args(linker_install_args(*llvm))
                // It is another package: what we were built with is not for it.
                .current_dir("/")
                .env_remove("CARGO_TARGET_DIR")
                .env("LLVM_PREFIX", llvm_prefix(*llvm));
            run_quietly(&mut install).map_err(|error| format!("setup: {error}{}", by_hand()))
        }
        Step::Component(name) => {
            println!("setup: adding {name}: checks the source in cargo xtask test");
            let mut add = Command::new("rustup");
            add.args(["component", "add", name]).stdin(Stdio::null());
            run_quietly(&mut add).map_err(|error| format!("setup: {error}{}", by_hand()))
        }
    }
}

fn apt() -> Command {
    let mut apt = Command::new("apt-get");
    apt.args(["-qq", "-o", "DPkg::Lock::Timeout=600"])
        .env("DEBIAN_FRONTEND", "noninteractive")
        .env("LC_ALL", "C")
        .stdin(Stdio::null());
    apt
}
