//! `--ping`, `--wait` and `--version`: is clamd there, and which one is it?
//!
//! Asks every server of the settings; one answer is enough. Needs no root. Tested
//! by `tests/tests/ping.rs`.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use super::cli::{Cli, Ping};
use crate::clamd::{ask, protocol};
use crate::config::Settings;
use crate::config::servers::Server;
use crate::observe::printable;

/// No clamd has answered; clamonacc's number for it.
const NO_ANSWER: u8 = 21;
/// How long one attempt may take.
const ATTEMPT: Duration = Duration::from_secs(3);

/// `--ping`: says PONG and ends with 0, or ends with 21.
pub fn ping(cli: &Cli, ping: Ping) -> ExitCode {
    let Some(servers) = servers(cli) else {
        return ExitCode::from(2);
    };
    if answers(&servers, ping) {
        println!("PONG");
        return ExitCode::SUCCESS;
    }
    println!("PING timeout exceeded; No response from clamd");
    ExitCode::from(NO_ANSWER)
}

/// `--wait`: whether to go on; how to end if not.
pub fn wait(cli: &Cli) -> Result<(), ExitCode> {
    let servers = servers(cli).ok_or(ExitCode::from(2))?;
    if answers(&servers, cli.ping.unwrap_or_default()) {
        return Ok(());
    }
    println!("Wait timeout exceeded; Could not connect to clamd");
    Err(ExitCode::from(NO_ANSWER))
}

/// `--version`: our version, and clamd's if one answers.
pub fn version(cli: &Cli) -> ExitCode {
    println!("onacc {}", env!("CARGO_PKG_VERSION"));
    let Ok(settings) = Settings::load(&cli.settings()) else {
        // `onacc config check` says what is wrong; a version needs no settings.
        return ExitCode::SUCCESS;
    };
    for server in settings.servers.iter().map(|server| &server.value) {
        match ask::ask(server, protocol::VERSION, Instant::now() + ATTEMPT) {
            Ok(records) if !records.is_empty() => {
                println!("{} ({server})", printable(&records[0]));
            }
            Ok(_) => println!("{server}: no answer"),
            Err(error) => println!("{server}: {error}"),
        }
    }
    ExitCode::SUCCESS
}

fn servers(cli: &Cli) -> Option<Vec<Server>> {
    match Settings::load(&cli.settings()) {
        Ok(settings) => {
            let servers = settings.servers.into_iter();
            Some(servers.map(|server| server.value).collect())
        }
        Err(errors) => {
            for error in &errors.0 {
                eprintln!("ERROR: {error}");
            }
            None
        }
    }
}

fn answers(servers: &[Server], ping: Ping) -> bool {
    let interval = Duration::from_secs(u64::from(ping.interval));
    for attempt in 1..=ping.attempts {
        let began = Instant::now();
        if servers.iter().any(|server| pongs(server, began + ATTEMPT)) {
            return true;
        }
        if attempt < ping.attempts {
            std::thread::sleep(interval.saturating_sub(began.elapsed()));
        }
    }
    false
}

fn pongs(server: &Server, until: Instant) -> bool {
    ask::ask(server, protocol::PING, until)
        .is_ok_and(|records| records.first().is_some_and(|first| first == b"PONG"))
}
