//! `cargo xtask package`: the Debian package.
//!
//! Owns: what is generated for it, and the version of cargo-deb. What goes where
//! stands in onacc/Cargo.toml, what it holds in dist/. Tested by
//! `tests/tests/package.rs`, which installs it.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::{
    setup::{self, Level},
    shell::{Result, agent_binary, cargo, run, run_quietly, workspace},
};

const CARGO_DEB: &str = "3.8.0";

/// Builds the package and says where it is.
pub fn command() -> Result<()> {
    setup::ensure(Level::Build)?;
    println!("{}", build()?.display());
    Ok(())
}

/// Builds the package; where it is.
pub fn build() -> Result<PathBuf> {
    run(cargo().args(["build", "--release"]))?;
    let generated = workspace().join("target/package");
    fs::create_dir_all(&generated).map_err(|error| format!("{}: {error}", generated.display()))?;
    for (name, args) in [
        ("onacc.8", ["man", "onacc"]),
        ("onacc.toml.5", ["man", "onacc.toml"]),
        ("onacc.bash", ["completions", "bash"]),
        ("onacc.zsh", ["completions", "zsh"]),
        ("onacc.fish", ["completions", "fish"]),
    ] {
        generate(&generated.join(name), args)?;
    }
    let deb = workspace().join("target/debian/onacc.deb");
    let packed = Command::new(cargo_deb()?)
        .args([
            "deb",
            "--package",
            "onacc",
            "--no-build",
            "--no-strip",
            "--output",
        ])
        .arg(&deb)
        .current_dir(workspace())
        .stdin(Stdio::null())
        .output();
    let packed = packed.map_err(|error| format!("cargo-deb does not start: {error}"))?;
    if packed.status.success() {
        Ok(deb)
    } else {
        Err(String::from_utf8_lossy(&packed.stderr).into_owned())
    }
}

fn generate(file: &Path, args: [&str; 2]) -> Result<()> {
    let out = File::create(file).map_err(|error| format!("{}: {error}", file.display()))?;
    run(Command::new(agent_binary()).args(args).stdout(out))
}

/// cargo-deb, built if it is not there.
fn cargo_deb() -> Result<PathBuf> {
    let root = workspace().join("target/tools");
    let program = root.join("bin/cargo-deb");
    if !program.exists() {
        println!("package: building cargo-deb {CARGO_DEB} (about a minute)");
        let mut install = cargo();
        install
            .args([
                "install",
                "cargo-deb",
                "--locked",
                "--version",
                CARGO_DEB,
                "--root",
            ])
            .arg(&root)
            // It is another package: what we were built with is not for it.
            .current_dir("/")
            .env_remove("CARGO_TARGET_DIR");
        run_quietly(&mut install)?;
    }
    Ok(program)
}
