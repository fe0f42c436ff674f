//! `cargo xtask build-ebpf`: the eBPF programs alone, with cargo's progress shown.

use std::fs;

use crate::{
    ebpf_toolchain,
    setup::{self, Level},
    shell::{Result, workspace},
};

/// Builds the objects and prints where they are and how large.
pub fn command() -> Result<()> {
    setup::ensure(Level::Build)?;
    let toolchain = ebpf_toolchain::find().map_err(|error| error.to_string())?;
    println!(
        "building the eBPF programs with {} ({}) and {}",
        toolchain.compiler.name,
        toolchain.compiler.rustc.display(),
        toolchain.linker.path.display()
    );
    let objects = ebpf_toolchain::build(&toolchain, &workspace(), false)
        .map_err(|error| error.to_string())?;
    for object in objects {
        let size = fs::metadata(&object)
            .map_err(|error| format!("{}: {error}", object.display()))?
            .len();
        println!("{}: {size} bytes", object.display());
    }
    Ok(())
}
