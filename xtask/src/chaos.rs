//! `cargo xtask chaos`: every fault, under load, for as long as one likes.
//!
//! Owns: which faults are run, and the curves of a soak. Must not: know a fault;
//! `chaos/` does.

use std::time::Duration;

use onacc_chaos::{FAULTS, Fault, Trouble, growth::clock, run, soak::soak};

use crate::{
    setup::{self, Level},
    shell::{Result, cargo, run as run_command},
    soak::{draw, record},
};

/// Runs the faults whose names contain `only`, for so many minutes in all.
pub fn command(minutes: Option<u64>, only: Option<&str>, list: bool) -> Result<()> {
    if list {
        for fault in &FAULTS {
            println!("{:<22} {}", fault.name, fault.what);
        }
        return Ok(());
    }
    let chosen: Vec<&Fault> = FAULTS
        .iter()
        .filter(|fault| only.is_none_or(|only| fault.name.contains(only)))
        .collect();
    if chosen.is_empty() {
        return Err("no such fault; `cargo xtask chaos --list` shows them".to_owned());
    }
    if !onacc_tests::skip::is_root() {
        return Err("chaos needs root: it mounts filesystems and watches them".to_owned());
    }
    setup::ensure(Level::Test)?;
    run_command(cargo().args(["build", "--release", "--package", "onacc"]))?;
    match minutes {
        Some(minutes) => for_minutes(minutes, &chosen),
        None => once(&chosen),
    }
}

/// Each fault once, in a scene of its own.
fn once(chosen: &[&Fault]) -> Result<()> {
    let mut wrong = Vec::new();
    for fault in chosen {
        match run(fault, Duration::ZERO) {
            Ok(outcome) => {
                println!("{outcome}");
                if !outcome.violations.is_empty() {
                    wrong.push(fault.name);
                }
            }
            Err(trouble) => {
                println!("{:<24} {trouble}", fault.name);
                if matches!(trouble, Trouble::Broken(_)) {
                    wrong.push(fault.name);
                }
            }
        }
    }
    if wrong.is_empty() {
        Ok(())
    } else {
        Err(format!("something was wrong in: {}", wrong.join(", ")))
    }
}

/// All of them in turn, and the curves.
fn for_minutes(minutes: u64, chosen: &[&Fault]) -> Result<()> {
    let report = soak(chosen, Duration::from_mins(minutes), |strike| {
        print!("{:>6} ", clock(strike.at));
        match &strike.result {
            Ok(outcome) => println!("{outcome}"),
            Err(trouble) => println!("{:<24} {trouble}", strike.name),
        }
    })?;
    println!("\n{}", record(&report)?);
    println!("{}", draw(&report)?);
    println!("\n{report}");
    if report.failures.is_empty() {
        Ok(())
    } else {
        Err(format!("{} failures, named above", report.failures.len()))
    }
}
