//! Chaos: faults under load, and what must hold all the while.
//!
//! `cargo xtask chaos` and the tests of this crate run the same faults. A fault
//! gets a [`Scene`] of its own (a scratch filesystem, a clamd, an agent, openers
//! that never rest) and says what openers may see while it lasts; the
//! [`rules::Rules`] judge every single open by that. Owns: the list of faults.
//! Must not: mark a filesystem that is not its own, or end a process that it
//! has not started.

#![allow(
    clippy::missing_errors_doc,
    reason = "errors are sentences for the reader of the output"
)]

pub mod faults;
pub mod growth;
pub mod load;
pub mod machine;
pub mod outcome;
pub mod resources;
pub mod rules;
pub mod scene;
pub mod soak;

use std::{
    fmt,
    time::{Duration, Instant},
};

use onacc_tests::{Clamd, ScratchFs};

pub use faults::{FAULTS, Fault};
pub use outcome::Outcome;
use scene::Scene;

/// Why there is no outcome.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// What a scene needs is not here: root, loop devices, clamd.
    Missing(String),
    /// The fault could not be played to its end.
    Broken(String),
}

impl fmt::Display for Trouble {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing(why) => write!(to, "not tried: {why}"),
            Self::Broken(why) => write!(to, "broken off: {why}"),
        }
    }
}

/// Whether what the fault needs is here.
fn can_run(fault: &Fault) -> Result<(), String> {
    Clamd::installed()?;
    ScratchFs::ext4(16)?;
    (fault.needs)()
}

/// Runs one fault again and again, for about this long but once at least.
pub fn run(fault: &Fault, time: Duration) -> Result<Outcome, Trouble> {
    run_watched(fault, time, |_| ())
}

/// As [`run`], and shows the agent's process id before each strike.
pub fn run_watched(
    fault: &Fault,
    time: Duration,
    mut watch: impl FnMut(u32),
) -> Result<Outcome, Trouble> {
    can_run(fault).map_err(Trouble::Missing)?;
    let broken = Trouble::Broken;
    let mut scene = Scene::set(fault, time).map_err(broken)?;
    scene.warm_up().map_err(broken)?;
    let before = scene.resources().map_err(broken)?;
    let until = Instant::now() + time;
    let mut rounds = 0;
    loop {
        watch(scene.agent().map_err(broken)?.pid());
        (fault.strike)(&mut scene).map_err(broken)?;
        rounds += 1;
        if Instant::now() >= until || scene.has_failed() {
            break;
        }
    }
    scene.settle().map_err(broken)?;
    scene.end(before, rounds).map_err(broken)
}
