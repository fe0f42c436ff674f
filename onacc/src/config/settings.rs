//! The settings: what the agent does, checked, with every default filled in.
//!
//! Owns [`Settings`], what the rest of the agent sees of the configuration; how
//! its values are made stands in `settings/reader.rs`. Must not look at paths
//! on disk, nor ask the name service; of the disk it reads the file alone.
//! Tested in `settings/tests.rs`.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::clamd_conf;
use super::error::{ConfigError, Place};
use super::servers::Server;

mod reader;

/// A value and where it was set. Displays its place, as `FILE:LINE: OPTION`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Located<T> {
    /// The value.
    pub value: T,
    /// The file that set it.
    pub file: PathBuf,
    /// The line in that file, counted from 1.
    pub line: usize,
    /// The option that set it.
    pub option: &'static str,
}

impl<T> Located<T> {
    /// The same place with another value.
    fn with<U>(&self, value: U) -> Located<U> {
        Located {
            value,
            file: self.file.clone(),
            line: self.line,
            option: self.option,
        }
    }

    fn place(&self) -> Place {
        Place {
            file: self.file.clone(),
            line: self.line,
            option: self.option.to_owned(),
        }
    }
}

impl<T> fmt::Display for Located<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.place().fmt(f)
    }
}

/// Everything the agent takes from clamd.conf, checked.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is an option of its own in the file; they do not form states"
)]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// `LocalSocket`, or each `TCPAddr` with `TCPSocket`: the clamds that are
    /// asked. Never empty, at most [`MOST_SERVERS`](super::servers::MOST_SERVERS).
    pub servers: Vec<Located<Server>>,
    /// `StreamMaxLength`: clamd takes no longer streams. In bytes; `u64::MAX`
    /// means unlimited. Default: 100 MiB.
    pub stream_max_length: u64,
    /// `OnAccessIncludePath`, then `OnAccessMountPath`: the directory trees to
    /// watch. Absolute. Never empty.
    pub include_paths: Vec<Located<PathBuf>>,
    /// `OnAccessExcludePath`: the directory trees to leave out. Absolute.
    pub exclude_paths: Vec<Located<PathBuf>>,
    /// `OnAccessPrevention`: whether opens wait for the verdict. Default: no.
    pub prevention: bool,
    /// `OnAccessExcludeUID`, and 0 if `OnAccessExcludeRootUID` is set: the uids
    /// whose opens are not scanned. Sorted, without doubles.
    pub excluded_uids: Vec<u32>,
    /// `OnAccessExcludeUname`: the users whose opens are not scanned. See
    /// [`names::resolve`](super::names::resolve).
    pub excluded_names: Vec<Located<String>>,
    /// `OnAccessMaxFileSize`: larger files are not scanned. In bytes;
    /// `u64::MAX` means unlimited. Default: 5 MiB.
    pub max_file_size: u64,
    /// `OnAccessCurlTimeout`: how long one try of a scan may take, from
    /// connecting to the verdict. At least 1 ms, at most 1 h. Default: 5 s.
    pub try_timeout: Duration,
    /// `OnAccessRetryAttempts`: how many tries may follow a failed first one.
    /// At most 255. Default: 0.
    pub retries: u32,
    /// `OnAccessMaxThreads`: how many scans may run at a time. At least 1, at
    /// most 1024. Default: 5.
    pub max_scans: usize,
    /// `OnAccessDenyOnError`: whether an open is denied when its scan fails.
    /// Default: no.
    pub deny_on_error: bool,
    /// `OnAccessExtraScanning`. This version does not act on it. Default: no.
    pub extra_scanning: bool,
    /// `OnAccessDisableDDD`: the named directories alone, not what is below them. Default: no.
    pub disable_ddd: bool,
    /// `OnAccessMountPath`: the whole mounts that hold these paths. Absolute.
    /// Part of [`Self::include_paths`] too.
    pub mount_paths: Vec<Located<PathBuf>>,
    /// `ReadTimeout`: how long clamd keeps a session that says nothing. At
    /// least 1 s, at most 1 day. Default: 120 s.
    pub read_timeout: Duration,
    /// `MaxQueue`: how many scans clamd queues, those running included. At
    /// least 1. Default: 100.
    pub max_queue: usize,
    /// `TemporaryDirectory`: where clamd unpacks. Absolute. Default: clamd's.
    pub temporary_directory: Option<Located<PathBuf>>,
    /// What should be logged at start, one line each.
    pub warnings: Vec<String>,
}

impl Settings {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// The file cannot be read, or its first line that cannot be used.
    pub fn load(path: &Path) -> Result<Settings, ConfigError> {
        let bytes = fs::read(path).map_err(|source| ConfigError::Unreadable {
            file: path.to_owned(),
            source,
        })?;
        Settings::from_bytes(&bytes, path)
    }

    /// Checks the contents of a file. `file` only serves to say where
    /// something is.
    ///
    /// # Errors
    /// The first line that cannot be used, or what is missing.
    pub fn from_bytes(bytes: &[u8], file: &Path) -> Result<Settings, ConfigError> {
        reader::settings(clamd_conf::parse(bytes, file)?, file)
    }

    /// The bound: no opener waits longer for its answer, all tries included.
    pub fn bound(&self) -> Duration {
        self.try_timeout
            .saturating_mul(self.retries.saturating_add(1))
    }
}

#[cfg(test)]
mod tests;
