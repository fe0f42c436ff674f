//! `onacc doctor`: what protects this machine, what limits that, how to mend it.
//!
//! Owns: the order of the checks, and the exit status. Looks at everything and
//! changes nothing, but for the canary (`canary`), which it removes again. Must
//! not: disturb a running agent; all it asks of the kernel it asks on groups and
//! programs of its own. Tested by `tests/tests/doctor.rs`.
//!
//! The canary flies by default where an agent runs with this configuration:
//! whether infected files are refused is the question, and nothing else answers
//! it. It leaves a line in the agent's log; `--no-canary` is for those who alarm
//! on that.

mod canary;
mod clamds;
mod finding;
mod host;
mod running;

use std::io::Write as _;
use std::process::ExitCode;

use self::finding::{Finding, as_json, as_text, limits};
use self::running::Running;
use super::cli::{Cli, DoctorOptions};
use crate::config::Settings;

/// Looks, and says. 0 if nothing limits protection, 1 if something does.
pub fn run(cli: &Cli, options: DoctorOptions) -> ExitCode {
    let findings = examine(cli, options);
    let text = if options.json {
        as_json(&findings)
    } else {
        as_text(&findings)
    };
    if let Err(error) = std::io::stdout().lock().write_all(text.as_bytes()) {
        eprintln!("ERROR: standard output: {error}");
        return ExitCode::from(2);
    }
    ExitCode::from(u8::from(limits(&findings)))
}

fn examine(cli: &Cli, options: DoctorOptions) -> Vec<Finding> {
    let agents = running::find();
    let ours: Vec<&Running> = agents.iter().filter(|agent| agent.reads(cli)).collect();
    let mut findings = Vec::new();
    // What holds is what the agent was told, its own flags included.
    let command_line = match ours.first() {
        Some(agent) => agent.cli.settings(),
        None => cli.settings(),
    };
    let settings = match Settings::load(&command_line) {
        Ok(settings) => {
            findings.extend(host::settings(&settings));
            Some(settings)
        }
        Err(errors) => {
            findings.extend(errors.0.iter().map(|error| {
                Finding::problem("settings", error.to_string())
                    .means("the agent does not start with this, or goes on with what it had")
                    .mend("correct the line: onacc config check says when all is well")
            }));
            None
        }
    };
    findings.extend(host::kernel(settings.as_ref()));
    findings.extend(host::limits(settings.as_ref(), ours.first().copied()));
    for server in settings.iter().flat_map(|settings| &settings.servers) {
        findings.extend(clamds::look(&server.value));
    }
    findings.push(running::told(&ours, agents.len()));
    let Some(settings) = settings else {
        return findings;
    };
    if options.canary || (!options.no_canary && !ours.is_empty()) {
        findings.extend(canary::fly(&settings));
    } else if options.no_canary {
        findings.push(
            Finding::note("canary", "no canary was flown (--no-canary)")
                .means("whether infected files are really refused was not tried"),
        );
    }
    findings
}
