//! onacc: an on-access malware scanner agent for Linux.
//!
//! ARCHITECTURE.md draws the map; the flow of an event goes forward through the
//! modules in the order of its page "the way of one event".

pub mod kernel;
