//! The `onacc` binary: reads the command line and starts the agent.

use std::process::ExitCode;

use clap::Parser as _;
use onacc::commands::cli::Cli;

fn main() -> ExitCode {
    onacc::agent::run(&Cli::parse())
}
