//! Builds the eBPF programs, so that the library can carry it inside.
//!
//! Owns: when it is built again, and where the library finds the objects
//! (`ONACC_EBPF_OBJECT`, `ONACC_LSM_OBJECT`). Must not: know how to build it; `ebpf_toolchain.rs` does.

use std::{env, fs, path::Path, path::PathBuf};

#[allow(dead_code, reason = "xtask uses the rest")]
#[path = "../xtask/src/ebpf_toolchain.rs"]
mod ebpf_toolchain;

use ebpf_toolchain::Error;

fn main() {
    if let Err(error) = run() {
        // Cargo prints these lines alone and fails the build: no dump, no backtrace.
        for line in error.to_string().lines() {
            println!("cargo::error={line}");
        }
    }
}

fn run() -> Result<(), Error> {
    let manifest_dir = PathBuf::from(variable("CARGO_MANIFEST_DIR")?);
    let workspace = manifest_dir.parent().unwrap_or(&manifest_dir);
    for input in [
        "onacc-ebpf/src",
        "onacc-ebpf/Cargo.toml",
        "onacc-ebpf/Cargo.lock",
        "onacc-common/src",
        "onacc-common/Cargo.toml",
        "xtask/src/ebpf_toolchain.rs",
        "xtask/src/ebpf_toolchain_error.rs",
    ] {
        println!(
            "cargo::rerun-if-changed={}",
            workspace.join(input).display()
        );
    }
    println!("cargo::rerun-if-changed=build.rs");
    let toolchain = ebpf_toolchain::find()?;
    for tool in [&toolchain.compiler.rustc, &toolchain.linker.path] {
        println!("cargo::rerun-if-changed={}", tool.display());
    }
    let objects = ebpf_toolchain::build(&toolchain, workspace, true)?;
    let variables = ["ONACC_EBPF_OBJECT", "ONACC_LSM_OBJECT"];
    for (object, name) in objects.iter().zip(variables) {
        let own = Path::new(&variable("OUT_DIR")?).join(format!("{name}.o"));
        fs::copy(object, &own).map_err(|source| Error::Io {
            what: format!("copying {} to {}", object.display(), own.display()),
            source,
        })?;
        println!("cargo::rustc-env={name}={}", own.display());
    }
    Ok(())
}

fn variable(name: &str) -> Result<String, Error> {
    env::var(name).map_err(|error| Error::Io {
        what: format!("reading {name} from the environment"),
        source: std::io::Error::other(error),
    })
}
