//! The command line: what it takes (`cli`) and what each subcommand does, one
//! file each. Must not: hold logic of the agent.

mod clamd;
pub mod cli;
mod config;
mod debug_limits;
mod doctor;
mod foreign;
mod manual;
mod quarantine;

use std::io::Write as _;
use std::process::ExitCode;

use cli::{Cli, Command};

/// Does what the command line asks for: the agent, if it names nothing else.
pub fn run(cli: &Cli) -> ExitCode {
    match &cli.command {
        Some(Command::Config { action }) => config::run(cli, action),
        Some(Command::Doctor(options)) => doctor::run(cli, *options),
        Some(Command::Completions { shell }) => {
            let mut text = Vec::new();
            manual::completions(*shell, &mut text);
            print(&text)
        }
        Some(Command::Man { page }) => {
            let mut text = Vec::new();
            match manual::page(*page, &mut text) {
                Ok(()) => print(&text),
                Err(error) => failed(&error),
            }
        }
        Some(Command::Quarantine { directory, action }) => {
            quarantine::run(cli, directory.as_deref(), action)
        }
        None if cli.version => clamd::version(cli),
        None if cli.wait => match clamd::wait(cli) {
            Ok(()) => crate::agent::run(cli),
            Err(status) => status,
        },
        None => match cli.ping {
            Some(ping) => clamd::ping(cli, ping),
            None => crate::agent::run(cli),
        },
    }
}

fn print(text: &[u8]) -> ExitCode {
    match std::io::stdout().lock().write_all(text) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

fn failed(error: &std::io::Error) -> ExitCode {
    eprintln!("ERROR: standard output: {error}");
    ExitCode::from(2)
}
