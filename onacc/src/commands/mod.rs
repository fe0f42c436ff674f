//! The command line: what it takes (`cli`) and what each subcommand does, one
//! file each. Must not: hold logic of the agent.

pub mod cli;
mod config;
mod foreign;

use std::process::ExitCode;

use cli::{Cli, Command};

/// Does what the command line asks for: the agent, if it names nothing else.
pub fn run(cli: &Cli) -> ExitCode {
    match &cli.command {
        Some(Command::Config { action }) => config::run(cli, action),
        None if cli.version => {
            println!("onacc {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
        None => crate::agent::run(cli),
    }
}
