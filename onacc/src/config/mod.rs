//! Configuration: clamd.conf, onacc.toml and the command line in, one checked
//! [`Settings`] out.
//!
//! Owns the formats, the tables of options, the defaults and every check that
//! needs nothing but the text. Must not look at paths on disk, open sockets or
//! ask the kernel: whether a directory exists is the business of `coverage`,
//! whether clamd answers that of `clamd`. The one exception is [`names`], which
//! asks the name service, and is called apart from the rest.
//!
//! - [`options`]: which options clamd has; [`keys`]: which settings onacc has.
//! - [`clamd_conf`], [`native`] (onacc.toml), [`lists`]: the parsers, pure.
//! - [`entry`]: what they bring everything to.
//! - [`modes`]: choices made by a word. [`patterns`]: what patterns mean.
//! - [`servers`]: the clamds that are asked. [`keep_on`]: filesystems by type or place.
//! - [`settings`]: defaults, limits, and what this version makes of each value.
//! - [`names`]: user names to uids.
//!
//! Every error is one line with place and remedy, and all are told at once; the
//! process ends with status 2. What is only odd goes to [`Settings::warnings`],
//! for the log.

pub mod clamd_conf;
pub mod entry;
mod error;
pub mod keep_on;
pub mod keys;
pub mod lists;
pub mod modes;
pub mod names;
pub mod native;
pub mod options;
pub mod patterns;
pub mod servers;
pub mod settings;

pub use entry::Located;
pub use error::{ConfigError, ConfigErrors, Place};
pub use settings::{CommandLine, Settings};

/// clamd's configuration, where the command line names no other.
pub const DEFAULT_FILE: &str = "/etc/clamav/clamd.conf";
/// onacc's own settings, where the command line names no others.
pub const DEFAULT_NATIVE_FILE: &str = "/etc/onacc/onacc.toml";
