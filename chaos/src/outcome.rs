//! What a fault came to.
//!
//! Owns: its words. Must not: judge; `rules` has.

use std::{fmt, time::Duration};

use crate::resources::Resources;

/// The result of running one fault.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Which.
    pub name: &'static str,
    /// How often it struck.
    pub rounds: u32,
    /// Opens that were judged.
    pub opens: u64,
    /// Of these, refused.
    pub refused: u64,
    /// Infected content opened while the policy was to allow, or no agent ran.
    pub slips: u64,
    /// The longest that any opener waited.
    pub longest: Duration,
    /// The longest that protection took to be back after the end of the fault.
    pub recovery: Duration,
    /// What the agent held before and after.
    pub resources: [Resources; 2],
    /// What must not have been.
    pub violations: Vec<String>,
    /// The last lines of the agent.
    pub said: String,
}

impl fmt::Display for Outcome {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let how = if self.violations.is_empty() {
            "ok"
        } else {
            "FAILED"
        };
        writeln!(
            to,
            "{:<24} {how}: {} times, {} opens, {} refused, {} let through by policy, \
             longest wait {:.0} ms, back after {:.0} ms",
            self.name,
            self.rounds,
            self.opens,
            self.refused,
            self.slips,
            self.longest.as_secs_f64() * 1e3,
            self.recovery.as_secs_f64() * 1e3,
        )?;
        write!(
            to,
            "{:<24} before {}; after {}",
            "", self.resources[0], self.resources[1]
        )?;
        for violation in &self.violations {
            write!(to, "\n{:<24} VIOLATION {violation}", "")?;
        }
        if !self.violations.is_empty() {
            write!(to, "\nthe agent said last:\n{}", self.said)?;
        }
        Ok(())
    }
}
