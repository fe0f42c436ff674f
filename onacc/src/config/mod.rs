//! Configuration: clamd.conf in, one checked [`Settings`] out.
//!
//! Owns the format of clamd.conf, the option table, the defaults and every
//! check that needs nothing but the text. Must not look at paths on disk, open
//! sockets or ask the kernel: whether a directory exists is the business of
//! `coverage`, whether clamd answers that of `clamd`. The one exception is
//! [`names`], which asks the name service, and is called apart from the rest.
//!
//! - [`options`]: which options there are.
//! - [`clamd_conf`]: the parser, pure.
//! - [`modes`]: choices made by a word.
//! - [`servers`]: the clamds that are asked.
//! - [`settings`]: defaults, limits, and what this version makes of each value.
//! - [`names`]: user names to uids.
//!
//! Every error is one line with place and remedy, and ends the process with
//! status 2. What is only odd goes to [`Settings::warnings`], for the log.

pub mod clamd_conf;
mod error;
pub mod modes;
pub mod names;
pub mod options;
pub mod servers;
pub mod settings;

pub use error::{ConfigError, Place};
pub use settings::{Located, Settings};

/// The file that is read when the command line names none.
pub const DEFAULT_FILE: &str = "/etc/clamav/clamd.conf";
