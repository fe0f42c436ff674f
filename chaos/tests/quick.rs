//! Every fault that is quick enough, once, each on a filesystem of its own.
//! `cargo xtask chaos` runs all of them, for as long as one likes.

use std::time::Duration;

use onacc_chaos::{FAULTS, Trouble, run};
use onacc_tests::{require_root, skip};

#[test]
fn nothing_that_must_hold_is_broken_by_any_fault() {
    require_root!();
    let mut broken = Vec::new();
    for fault in FAULTS.iter().filter(|fault| fault.quick) {
        match run(fault, Duration::ZERO) {
            Ok(outcome) => {
                println!("{outcome}");
                if !outcome.violations.is_empty() {
                    broken.push(format!("{}: {}", fault.name, outcome.violations.join("; ")));
                }
            }
            Err(Trouble::Missing(why)) => skip!("{why}"),
            Err(trouble) => broken.push(format!("{}: {trouble}", fault.name)),
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}
