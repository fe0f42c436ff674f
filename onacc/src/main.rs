//! The `onacc` binary: reads the command line and does what it says.

use std::process::ExitCode;

use onacc::commands::{self, cli::Cli};

fn main() -> ExitCode {
    match Cli::read(std::env::args_os()) {
        Ok(cli) => commands::run(&cli.with_whole_paths()),
        Err(error) => error.exit(),
    }
}
