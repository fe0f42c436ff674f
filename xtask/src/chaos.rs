//! `cargo xtask chaos`: every fault, under load, for as long as one likes.
//!
//! Owns: which faults are run, and the curves of a soak. Must not: know a fault;
//! `chaos/` does.

use std::time::{Duration, Instant};

use onacc_chaos::{FAULTS, Fault, Trouble, run_watched};

use crate::{
    setup::{self, Level},
    shell::{Result, cargo, run},
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
    run(cargo().args(["build", "--release", "--package", "onacc"]))?;
    let time = Duration::from_secs(minutes.unwrap_or(0) * 60);
    let until = Instant::now() + time;
    let each = Duration::from_secs(10).min(time / u32::try_from(chosen.len()).unwrap_or(1));
    let mut wrong = Vec::new();
    let mut soak = crate::soak::Soak::new();
    loop {
        for fault in &chosen {
            match run_watched(fault, each, |pid| soak.look(pid)) {
                Ok(outcome) => {
                    println!("{outcome}");
                    soak.ended(&outcome);
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
        if Instant::now() >= until {
            break;
        }
    }
    if minutes.is_some() {
        println!("{}", soak.draw()?);
    }
    if wrong.is_empty() {
        Ok(())
    } else {
        Err(format!("something was wrong in: {}", wrong.join(", ")))
    }
}
