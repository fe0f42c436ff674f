//! onacc: an on-access malware scanner agent for Linux. See ARCHITECTURE.md.
pub mod config;
