//! onacc: an on-access malware scanner agent for Linux.
//!
//! ARCHITECTURE.md draws the map; an event goes forward through the modules in
//! the order of its page "The way of one event".

pub mod agent;
pub mod clamd;
pub mod commands;
pub mod config;
pub mod coverage;
pub mod intake;
pub mod kernel;
pub mod observe;
pub mod policy;
pub mod respond;
pub mod scan;
