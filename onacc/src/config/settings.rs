//! The settings: what the agent does, checked, with every default filled in.
//!
//! Owns [`Settings`], what the rest of the agent sees of the configuration; how
//! its values are made stands in `settings/reader.rs`, how they are shown in
//! `settings/shown.rs`. Must not look at paths on disk, nor ask the name
//! service; of the disk it reads the configuration files alone, through a
//! function that the caller may replace. Tested in `settings/tests.rs`.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use super::entry::Located;
use super::entry::{Origin, Value};
use super::error::{ConfigError, ConfigErrors};
use super::keep_on::KeepOn;
use super::modes::{BpfMode, CoverageMode, MarksMode};
use super::native::Native;
use super::patterns::Pattern;
use super::servers::Server;
use super::{DEFAULT_FILE, DEFAULT_NATIVE_FILE, clamd_conf, native};

mod paths;
mod reader;
mod servers;
mod shown;

pub use shown::{Shown, migrated};

/// What the command line says about the settings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CommandLine {
    /// `--config-file`.
    pub clamd_conf: Option<PathBuf>,
    /// `--settings`.
    pub native: Option<PathBuf>,
    /// Keys of onacc.toml that flags set: they go before both files.
    pub values: Vec<(&'static str, Value)>,
}

/// What becomes of infected files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Action {
    /// They stay where they are.
    #[default]
    Nothing,
    /// They are removed.
    Remove,
    /// They are moved into this directory. Absolute.
    Move(PathBuf),
    /// They are copied into this directory. Absolute.
    Copy(PathBuf),
}

/// What leads to a scan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Triggers {
    /// Every open, one for execution too.
    pub open: bool,
    /// An open for execution.
    pub exec: bool,
    /// A written file that is closed.
    pub close_write: bool,
}

impl Default for Triggers {
    fn default() -> Self {
        Self {
            open: true,
            exec: false,
            close_write: true,
        }
    }
}

/// Other rules for what lies below a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathRule {
    /// The path. Absolute.
    pub path: PathBuf,
    /// `OnAccessDenyOnError` there.
    pub deny_on_error: Option<bool>,
    /// `OnAccessMaxFileSize` there.
    pub max_file_size: Option<u64>,
}

/// What is let through without a scan, beyond places and users.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exclusions {
    /// Fit the whole paths of files: `Glob` and `Regex`.
    pub files: Vec<Located<Pattern>>,
    /// How the names of files end, behind a dot.
    pub extensions: Vec<Located<String>>,
    /// Executables whose opens are not scanned. Absolute.
    pub executables: Vec<Located<PathBuf>>,
    /// Control groups (version 2) whose opens are not scanned, with those below
    /// them. Absolute, without a slash at the end.
    pub cgroups: Vec<Located<PathBuf>>,
}

/// How the log is written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is an option of its own in the file; they do not form states"
)]
pub struct LogSettings {
    /// `--log`, or `LogFile` of onacc.toml: the file to append to.
    pub file: Option<Located<PathBuf>>,
    /// `--verbose` or `LogVerbose`.
    pub verbose: bool,
    /// `LogTime`: each line starts with the time.
    pub time: bool,
    /// `LogSyslog`.
    pub syslog: bool,
    /// `LogFacility`, in capitals. Default: `LOG_LOCAL6`.
    pub facility: String,
    /// `LogRotate`.
    pub rotate: bool,
    /// `LogFileMaxSize`, in bytes; `u64::MAX` means unlimited. clamd's default of
    /// 1 MiB does not hold: clamonacc's log was never limited.
    pub max_size: u64,
}

/// Everything the agent takes from its configuration, checked.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is an option of its own in the file; they do not form states"
)]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Each `[[server]]`, or `LocalSocket`, or each `TCPAddr` with `TCPSocket`:
    /// the clamds that are asked. Never empty, at most
    /// [`MOST_SERVERS`](super::servers::MOST_SERVERS).
    pub servers: Vec<Located<Server>>,
    /// `StreamMaxLength`: clamd takes no longer streams. In bytes; `u64::MAX`
    /// means unlimited. Default: 100 MiB.
    pub stream_max_length: u64,
    /// `--allmatch`: name every match, not the first alone.
    pub all_match: bool,
    /// `OnAccessIncludePath`, what `--watch-list` names, then
    /// `OnAccessMountPath`: the directory trees to watch. Absolute. Never empty.
    pub include_paths: Vec<Located<PathBuf>>,
    /// `OnAccessExcludePath` that are paths, and what `--exclude-list` names: the
    /// directory trees to leave out. Absolute.
    pub exclude_paths: Vec<Located<PathBuf>>,
    /// `OnAccessExcludePath` that are regular expressions: they fit the path of
    /// the directory that a file is in.
    pub exclude_patterns: Vec<Located<Pattern>>,
    /// What else is not scanned.
    pub exclusions: Exclusions,
    /// Other rules below some paths.
    pub path_rules: Vec<Located<PathRule>>,
    /// `Triggers`.
    pub triggers: Triggers,
    /// `--coverage`.
    pub coverage: CoverageMode,
    /// `--bpf`.
    pub bpf: BpfMode,
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
    /// `OnAccessExtraScanning`. Default: no.
    pub extra_scanning: bool,
    /// `OnAccessDisableDDD`: the named directories alone, not what is below them. Default: no.
    pub disable_ddd: bool,
    /// `OnAccessMountPath`: the whole mounts that hold these paths. Absolute.
    /// Part of [`Self::include_paths`] too.
    pub mount_paths: Vec<Located<PathBuf>>,
    /// `--watch-list`: the file that names more of [`Self::include_paths`].
    pub watch_list: Option<Located<PathBuf>>,
    /// `--exclude-list`: the file that names more of [`Self::exclude_paths`].
    pub exclude_list: Option<Located<PathBuf>>,
    /// `ReadTimeout`: how long clamd keeps a session that says nothing. At
    /// least 1 s, at most 1 day. Default: 120 s.
    pub read_timeout: Duration,
    /// `MaxQueue`: how many scans clamd queues, those running included. At
    /// least 1. Default: 100.
    pub max_queue: usize,
    /// `DatabaseDirectory`: where clamd has its signatures. Default:
    /// `/var/lib/clamav`.
    pub database_directory: PathBuf,
    /// `TemporaryDirectory`: where clamd unpacks. Absolute. Default: clamd's.
    pub temporary_directory: Option<Located<PathBuf>>,
    /// `Verdicts`: how many are remembered. Default: by the machine's memory.
    pub verdicts: Option<usize>,
    /// `Marks`: which ignore marks the kernel keeps.
    pub marks: MarksMode,
    /// `KeepVerdictsOn`: filesystems whose verdicts are kept because it says so.
    pub keep_on: Vec<Located<KeepOn>>,
    /// What becomes of infected files.
    pub action: Action,
    /// How the log is written.
    pub log: LogSettings,
    /// `PidFile` of onacc.toml, or `--pid-file`.
    pub pid_file: Option<Located<PathBuf>>,
    /// The files that were read, in the order in which they were.
    pub files: Vec<PathBuf>,
    /// Who set what, by the names in [`keys`](super::keys); what is not here has
    /// its default.
    pub origins: BTreeMap<&'static str, Vec<Origin>>,
    /// What should be logged at start, one line each.
    pub warnings: Vec<String>,
}

/// Reads a whole file.
pub type ReadFile<'a> = &'a dyn Fn(&Path) -> io::Result<Vec<u8>>;

/// What the sources say, each by itself.
#[derive(Debug, Default)]
struct Sources {
    command_line: Vec<(&'static str, Value)>,
    native: Native,
    clamd_conf: super::entry::Parsed,
    /// The files that were read.
    files: Vec<PathBuf>,
}

impl Settings {
    /// Reads and checks all that the settings come from: clamd.conf, onacc.toml
    /// if there is one, the lists that these or the command line name. Ends
    /// nothing and logs nothing, so that a running agent can call it too.
    ///
    /// # Errors
    /// Everything that cannot be used.
    pub fn load(command_line: &CommandLine) -> Result<Settings, ConfigErrors> {
        Self::load_with(command_line, &|path| std::fs::read(path))
    }

    /// As [`Settings::load`], with files from wherever `read` finds them.
    ///
    /// # Errors
    /// Everything that cannot be used.
    pub fn load_with(
        command_line: &CommandLine,
        read: ReadFile<'_>,
    ) -> Result<Settings, ConfigErrors> {
        let mut sources = Sources {
            command_line: command_line.values.clone(),
            ..Sources::default()
        };
        let mut errors = Vec::new();
        let clamd_conf = file_of(command_line.clamd_conf.as_deref(), DEFAULT_FILE);
        let native_file = file_of(command_line.native.as_deref(), DEFAULT_NATIVE_FILE);
        let mut missing = None;
        match read(clamd_conf) {
            Ok(bytes) => {
                sources.clamd_conf = clamd_conf::parse(&bytes, clamd_conf);
                sources.files.push(clamd_conf.to_owned());
            }
            Err(source) => {
                let may_miss = command_line.clamd_conf.is_none();
                let error = ConfigError::Unreadable {
                    file: clamd_conf.to_owned(),
                    what: "configuration",
                    remedy: "--config-file",
                    source,
                };
                match &error {
                    // onacc.toml may say it all.
                    ConfigError::Unreadable { source, .. }
                        if may_miss && source.kind() == io::ErrorKind::NotFound =>
                    {
                        missing = Some(error);
                    }
                    _ => errors.push(error),
                }
            }
        }
        match read(native_file) {
            Ok(bytes) => {
                sources.native = native::parse(&bytes, native_file);
                sources.files.push(native_file.to_owned());
            }
            Err(source)
                if command_line.native.is_none() && source.kind() == io::ErrorKind::NotFound =>
            {
                errors.extend(missing);
            }
            Err(source) => errors.push(ConfigError::Unreadable {
                file: native_file.to_owned(),
                what: "settings",
                remedy: "--settings",
                source,
            }),
        }
        if !errors.is_empty() {
            // What the others say would be judged without this.
            errors.append(&mut sources.clamd_conf.errors);
            errors.append(&mut sources.native.parsed.errors);
            return Err(ConfigErrors(errors));
        }
        reader::settings(sources, read)
    }

    /// Checks the contents of a clamd.conf alone. `file` only serves to say
    /// where something is.
    ///
    /// # Errors
    /// Everything that cannot be used.
    pub fn from_bytes(bytes: &[u8], file: &Path) -> Result<Settings, ConfigErrors> {
        let sources = Sources {
            clamd_conf: clamd_conf::parse(bytes, file),
            files: vec![file.to_owned()],
            ..Sources::default()
        };
        reader::settings(sources, &nothing_there)
    }

    /// Checks the contents of an onacc.toml alone.
    ///
    /// # Errors
    /// Everything that cannot be used.
    pub fn from_native(bytes: &[u8], file: &Path) -> Result<Settings, ConfigErrors> {
        let sources = Sources {
            native: native::parse(bytes, file),
            files: vec![file.to_owned()],
            ..Sources::default()
        };
        reader::settings(sources, &nothing_there)
    }

    /// The same without places, files and warnings, to be compared: a line that
    /// has moved is no change.
    #[must_use]
    pub fn without_places(&self) -> Settings {
        fn each<T: Clone>(values: &[Located<T>]) -> Vec<Located<T>> {
            values.iter().map(Located::without_place).collect()
        }
        fn one<T: Clone>(value: Option<&Located<T>>) -> Option<Located<T>> {
            value.map(Located::without_place)
        }
        Settings {
            servers: each(&self.servers),
            include_paths: each(&self.include_paths),
            exclude_paths: each(&self.exclude_paths),
            exclude_patterns: each(&self.exclude_patterns),
            exclusions: Exclusions {
                files: each(&self.exclusions.files),
                extensions: each(&self.exclusions.extensions),
                executables: each(&self.exclusions.executables),
                cgroups: each(&self.exclusions.cgroups),
            },
            path_rules: each(&self.path_rules),
            keep_on: each(&self.keep_on),
            excluded_names: each(&self.excluded_names),
            mount_paths: each(&self.mount_paths),
            watch_list: one(self.watch_list.as_ref()),
            exclude_list: one(self.exclude_list.as_ref()),
            temporary_directory: one(self.temporary_directory.as_ref()),
            log: LogSettings {
                file: one(self.log.file.as_ref()),
                ..self.log.clone()
            },
            pid_file: one(self.pid_file.as_ref()),
            files: Vec::new(),
            origins: BTreeMap::new(),
            warnings: Vec::new(),
            ..self.clone()
        }
    }

    /// The bound: no opener waits longer for its answer, all tries included.
    pub fn bound(&self) -> Duration {
        self.try_timeout
            .saturating_mul(self.retries.saturating_add(1))
    }
}

fn file_of<'a>(named: Option<&'a Path>, default: &'static str) -> &'a Path {
    named.unwrap_or(Path::new(default))
}

fn nothing_there(_: &Path) -> io::Result<Vec<u8>> {
    Err(io::ErrorKind::NotFound.into())
}

#[cfg(test)]
mod tests;
