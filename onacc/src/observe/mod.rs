//! What the agent tells of itself: log lines, counters, heartbeats.
//!
//! Must not: make a thread on the hot path wait. A log line is a message to the
//! logger thread, a counter a relaxed addition.

pub mod counters;
pub mod heartbeat;
pub mod latency;
pub mod log;
pub mod manager;
mod printable;

pub use printable::{printable, printable_characters};
