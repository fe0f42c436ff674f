//! `onacc config`: what the configuration is, and what is wrong with it.
//!
//! Reads files and prints; starts nothing, needs no root. Tested by
//! `tests/tests/config.rs`.

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::path::Path;
use std::process::ExitCode;

use super::cli::{Cli, ConfigCommand};
use crate::config::settings::{Shown, migrated};
use crate::config::{ConfigErrors, Settings};
use crate::policy::{Rules, TooManyPatterns};

/// The command cannot do what it was told.
#[derive(Debug, thiserror::Error)]
enum CommandError {
    /// The agent would not start with this.
    #[error(transparent)]
    Config(#[from] ConfigErrors),
    /// Each pattern is right, all together are too much.
    #[error(transparent)]
    Patterns(#[from] TooManyPatterns),
    /// The file cannot be written.
    #[error("{path}: {source}; name a file that does not exist yet with --output=FILE")]
    Output { path: String, source: io::Error },
    /// The standard output.
    #[error("standard output: {0}")]
    Print(#[from] io::Error),
}

/// Runs one of the commands. 0, or 2 if the agent would not start with this.
pub fn run(cli: &Cli, action: &ConfigCommand) -> ExitCode {
    let done = match action {
        ConfigCommand::Check => check(cli),
        ConfigCommand::Show { set } => show(cli, *set),
        ConfigCommand::Migrate { output } => migrate(cli, output.as_deref()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            for line in error.to_string().lines() {
                eprintln!("ERROR: {line}");
            }
            ExitCode::from(2)
        }
    }
}

fn load(cli: &Cli) -> Result<Settings, CommandError> {
    let settings = Settings::load(&cli.settings())?;
    Rules::of(&settings)?;
    Ok(settings)
}

fn check(cli: &Cli) -> Result<(), CommandError> {
    let settings = load(cli)?;
    for warning in &settings.warnings {
        eprintln!("WARNING: {warning}");
    }
    let mut out = io::stdout().lock();
    for file in &settings.files {
        writeln!(out, "{}: read", file.display())?;
    }
    writeln!(out, "The configuration can be used.")?;
    Ok(())
}

fn show(cli: &Cli, set_alone: bool) -> Result<(), CommandError> {
    let settings = load(cli)?;
    let mut out = io::stdout().lock();
    for file in &settings.files {
        writeln!(out, "# read: {}", file.display())?;
    }
    let how = if set_alone { Shown::Set } else { Shown::All };
    write!(out, "{}", settings.to_toml(how))?;
    Ok(())
}

fn migrate(cli: &Cli, output: Option<&Path>) -> Result<(), CommandError> {
    let settings = load(cli)?;
    let text = migrated(&settings);
    let Some(path) = output else {
        return Ok(io::stdout().lock().write_all(text.as_bytes())?);
    };
    let file = OpenOptions::new().write(true).create_new(true).open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(|source| CommandError::Output {
            path: path.display().to_string(),
            source,
        })
}
