//! `onacc config`: what the configuration is, and what is wrong with it.
//!
//! Reads files and prints; starts nothing, needs no root. Tested by
//! `tests/tests/config.rs`.

use std::process::ExitCode;

use super::cli::{Cli, ConfigCommand};
use crate::config::Settings;

/// Runs one of the commands. 0, or 2 if the agent would not start with this.
pub fn run(cli: &Cli, action: &ConfigCommand) -> ExitCode {
    match action {
        ConfigCommand::Check => check(cli),
    }
}

fn check(cli: &Cli) -> ExitCode {
    match Settings::load(&cli.settings()) {
        Ok(settings) => {
            for warning in &settings.warnings {
                println!("WARNING: {warning}");
            }
            println!("The configuration can be used.");
            ExitCode::SUCCESS
        }
        Err(errors) => {
            for error in &errors.0 {
                println!("ERROR: {error}");
            }
            ExitCode::from(2)
        }
    }
}
