//! `cargo xtask run`: builds the agent, then shows it at work or runs it.

use std::{ffi::OsString, os::unix::process::CommandExt, process::Command};

use crate::{
    setup::{self, Level},
    shell::{Result, agent_binary, cargo, run},
    tour,
};

/// The tour without arguments; the agent itself with them.
pub fn command(once: bool, args: &[OsString]) -> Result<()> {
    let is_tour = args.is_empty();
    if is_tour && !onacc_tests::skip::is_root() {
        return Err("the tour needs root: it mounts a filesystem and watches it".to_owned());
    }
    setup::ensure(if is_tour { Level::Tour } else { Level::Build })?;
    run(cargo().args(["build", "--release", "--package", "onacc"]))?;
    if is_tour {
        return tour::show(once);
    }
    let binary = agent_binary();
    let error = Command::new(&binary).args(args).exec();
    Err(format!("{} does not start: {error}", binary.display()))
}
