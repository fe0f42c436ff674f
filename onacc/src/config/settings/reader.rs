//! From what the sources say to [`Settings`].
//!
//! Owns the defaults, the limits, and what this version makes of each value.
//! What clamonacc survives, onacc survives too, with a warning; an error is
//! what would leave something unprotected unseen, and whatever is wrong in
//! onacc.toml. Reads lists through the function it is given, else does no I/O.
//! Tested in `tests.rs` beside it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::ValueEnum;

use super::{Action, LogSettings, ReadFile, Settings, Sources, Triggers};
use crate::config::entry::{Entry, Located, Origin, Value};
use crate::config::error::{ConfigError, ConfigErrors, shown};
use crate::config::keep_on::KeepOn;
use crate::config::keys;

/// `DatabaseDirectory` when it is not set: where clamd is built to look.
const DATABASE: &str = "/var/lib/clamav";
/// `OnAccessMaxFileSize` when it is not set, in bytes.
const MAX_FILE_SIZE: u64 = 5 << 20;
/// clamd's `StreamMaxLength` when it is not set, in bytes.
const STREAM_MAX_LENGTH: u64 = 100 << 20;
/// `OnAccessCurlTimeout` when it is not set, in milliseconds.
const TRY_TIMEOUT: u64 = 5_000;
/// The longest `OnAccessCurlTimeout`, in milliseconds: one hour. With all
/// retries the bound then still fits the kernel's timers.
const LONGEST_TRY_TIMEOUT: u64 = 3_600_000;
/// The largest `OnAccessRetryAttempts`; clamonacc keeps it in one byte.
const MOST_RETRIES: u64 = 255;
/// `OnAccessMaxThreads` when it is not set.
const MAX_SCANS: u64 = 5;
/// The largest `OnAccessMaxThreads`. What is larger can only be a slip, and
/// must not cost memory.
const MOST_SCANS: u64 = 1_024;
/// clamd's `ReadTimeout` when it is not set, in seconds.
const READ_TIMEOUT: u64 = 120;
/// The longest `ReadTimeout` we make use of, in seconds: one day.
const LONGEST_READ_TIMEOUT: u64 = 86_400;
/// clamd's `MaxQueue` when it is not set.
const MAX_QUEUE: u64 = 100;
/// The largest `MaxQueue` we make use of.
const LONGEST_QUEUE: u64 = 1 << 20;
/// The largest `Verdicts`: some hundred MiB.
const MOST_VERDICTS: u64 = 1 << 22;
/// `LogFacility` when it is not set.
const FACILITY: &str = "LOG_LOCAL6";
/// What syslog(3) calls its facilities, as clamd takes them.
const FACILITIES: &[&str] = &[
    "LOG_AUTH",
    "LOG_AUTHPRIV",
    "LOG_CRON",
    "LOG_DAEMON",
    "LOG_FTP",
    "LOG_KERN",
    "LOG_LOCAL0",
    "LOG_LOCAL1",
    "LOG_LOCAL2",
    "LOG_LOCAL3",
    "LOG_LOCAL4",
    "LOG_LOCAL5",
    "LOG_LOCAL6",
    "LOG_LOCAL7",
    "LOG_LPR",
    "LOG_MAIL",
    "LOG_NEWS",
    "LOG_SYSLOG",
    "LOG_USER",
    "LOG_UUCP",
];
/// The largest uid; `u32::MAX` means "no uid" to the kernel.
const LARGEST_UID: u64 = u32::MAX as u64 - 1;

/// Makes the settings that the sources ask for.
pub(super) fn settings(mut sources: Sources, read: ReadFile<'_>) -> Result<Settings, ConfigErrors> {
    let mut warnings = std::mem::take(&mut sources.clamd_conf.warnings);
    warnings.append(&mut sources.native.parsed.warnings);
    let mut errors = std::mem::take(&mut sources.clamd_conf.errors);
    errors.append(&mut sources.native.parsed.errors);
    let sources_are_whole = errors.is_empty();
    let mut reader = Reader {
        sources,
        read,
        origins: BTreeMap::new(),
        warnings,
        errors,
    };
    let settings = reader.settings();
    if !sources_are_whole {
        // What could not be read is not missing.
        reader.errors.retain(|error| {
            !matches!(
                error,
                ConfigError::NoServer { .. }
                    | ConfigError::NothingToWatch { .. }
                    | ConfigError::NoTcpAddress { .. }
                    | ConfigError::NoTcpPort { .. }
            )
        });
    }
    match reader.errors {
        errors if errors.is_empty() => Ok(settings),
        errors => Err(ConfigErrors(errors)),
    }
}

/// Takes the options out of the sources one by one.
pub(super) struct Reader<'a> {
    pub(super) sources: Sources,
    pub(super) read: ReadFile<'a>,
    pub(super) origins: BTreeMap<&'static str, Vec<Origin>>,
    pub(super) warnings: Vec<String>,
    pub(super) errors: Vec<ConfigError>,
}

impl Reader<'_> {
    fn settings(&mut self) -> Settings {
        let servers = self.servers();
        let mount_paths = self.paths("OnAccessMountPath");
        let include_paths = self.include_paths(&mount_paths);
        let (exclude_paths, exclude_patterns) = self.exclude_paths();
        let triggers = self.triggers();
        Settings {
            servers,
            stream_max_length: self.size("StreamMaxLength", STREAM_MAX_LENGTH),
            all_match: self.flag("AllMatch", false),
            include_paths,
            exclude_paths,
            exclude_patterns,
            exclusions: self.exclusions(),
            path_rules: self.path_rules(),
            triggers,
            coverage: self.word("Coverage"),
            bpf: self.word("Bpf"),
            prevention: self.flag("OnAccessPrevention", false),
            excluded_uids: self.excluded_uids(),
            excluded_names: self.excluded_names(),
            max_file_size: self.size("OnAccessMaxFileSize", MAX_FILE_SIZE),
            try_timeout: Duration::from_millis(self.limited(
                "OnAccessCurlTimeout",
                TRY_TIMEOUT,
                LONGEST_TRY_TIMEOUT,
            )),
            retries: self.retries(),
            max_scans: count(self.limited("OnAccessMaxThreads", MAX_SCANS, MOST_SCANS)),
            deny_on_error: self.flag("OnAccessDenyOnError", false),
            extra_scanning: self.flag("OnAccessExtraScanning", false),
            disable_ddd: self.flag("OnAccessDisableDDD", false),
            mount_paths,
            watch_list: self.named_file("WatchList"),
            exclude_list: self.named_file("ExcludeList"),
            read_timeout: Duration::from_secs(self.clamd_limit(
                "ReadTimeout",
                READ_TIMEOUT,
                LONGEST_READ_TIMEOUT,
            )),
            max_queue: count(self.clamd_limit("MaxQueue", MAX_QUEUE, LONGEST_QUEUE)),
            temporary_directory: self.temporary_directory(),
            database_directory: self.database_directory(),
            verdicts: self.verdicts(),
            marks: self.word("Marks"),
            keep_on: self.keep_on(triggers),
            action: self.action(),
            log: self.log(),
            pid_file: self.path("PidFile"),
            files: self.sources.files.clone(),
            // Last, when all others have added theirs.
            origins: std::mem::take(&mut self.origins),
            warnings: std::mem::take(&mut self.warnings),
        }
    }

    fn triggers(&mut self) -> Triggers {
        let words = self.texts("Triggers");
        if let Some(at) = self.emptied("Triggers") {
            let problem =
                "without a trigger nothing would be scanned; write any of open, exec, close-write";
            let at = at.place();
            self.errors.push(ConfigError::Conflict { at, problem });
        }
        if words.is_empty() {
            return Triggers::default();
        }
        let mut triggers = Triggers {
            open: false,
            exec: false,
            close_write: false,
        };
        for word in &words {
            match word.value.as_bytes() {
                b"open" => triggers.open = true,
                b"exec" => triggers.exec = true,
                b"close-write" => triggers.close_write = true,
                found => self.errors.push(bad(
                    word,
                    found,
                    "a trigger",
                    "write any of open, exec, close-write",
                )),
            }
        }
        triggers
    }

    fn excluded_uids(&mut self) -> Vec<u32> {
        let mut uids = Vec::new();
        for uid in self.numbers("OnAccessExcludeUID") {
            if uid.value == 0 {
                self.warnings.push(format!(
                    "{uid}: 0 is ignored; to exclude root set OnAccessExcludeRootUID yes"
                ));
                continue;
            }
            match u32::try_from(uid.value) {
                Ok(value) if uid.value <= LARGEST_UID => uids.push(value),
                _ => self.errors.push(ConfigError::TooLarge {
                    at: uid.place(),
                    found: uid.value.to_string(),
                    limit: LARGEST_UID,
                }),
            }
        }
        if self.flag("OnAccessExcludeRootUID", false) {
            uids.push(0);
        }
        uids.sort_unstable();
        uids.dedup();
        uids
    }

    fn excluded_names(&mut self) -> Vec<Located<String>> {
        self.utf8(
            "OnAccessExcludeUname",
            "a user name in UTF-8",
            "give the uid with OnAccessExcludeUID",
        )
    }

    fn retries(&mut self) -> u32 {
        let Some(retries) = self.numbers("OnAccessRetryAttempts").into_iter().next() else {
            return 0;
        };
        if retries.value > MOST_RETRIES {
            self.too_large(&retries, MOST_RETRIES);
        }
        u32::try_from(retries.value.min(MOST_RETRIES)).expect("the limit fits")
    }

    /// A relative one is clamd's own trouble: nothing is watched there.
    fn database_directory(&mut self) -> PathBuf {
        let path = self.texts("DatabaseDirectory").into_iter().next();
        path.map_or_else(|| DATABASE.into(), |path| PathBuf::from(path.value))
    }

    fn temporary_directory(&mut self) -> Option<Located<PathBuf>> {
        let path = self.texts("TemporaryDirectory").into_iter().next()?;
        // clamd takes it from where it happens to run; nothing we could know.
        if !path.value.as_bytes().starts_with(b"/") {
            self.warnings.push(format!(
                "{path}: '{}' is not an absolute path, ignored; write the whole path, from / on",
                shown(path.value.as_bytes())
            ));
            return None;
        }
        Some(path.with(PathBuf::from(&path.value)))
    }

    fn verdicts(&mut self) -> Option<usize> {
        let number = self.numbers("Verdicts").into_iter().next()?;
        if number.value > MOST_VERDICTS {
            self.errors.push(ConfigError::TooLarge {
                at: number.place(),
                found: number.value.to_string(),
                limit: MOST_VERDICTS,
            });
        }
        Some(count(number.value.min(MOST_VERDICTS)))
    }

    fn keep_on(&mut self, triggers: Triggers) -> Vec<Located<KeepOn>> {
        const NAME: &str = "KeepVerdictsOn";
        const WANTED: &str = "the type or mount point of a network or FUSE filesystem";
        const REMEDY: &str = "write a type as the table of mounts shows it (nfs4, cifs, 9p, fuse.sshfs), or a mount point, from / on";
        let mut out = Vec::new();
        for word in self.utf8(NAME, WANTED, REMEDY) {
            match KeepOn::parse(&word.value) {
                Some(keep_on) => out.push(word.with(keep_on)),
                None => self
                    .errors
                    .push(bad(&word, word.value.as_bytes(), WANTED, REMEDY)),
            }
        }
        if let Some(first) = out.first()
            && !triggers.close_write
        {
            self.errors.push(ConfigError::Conflict {
                at: first.place(),
                problem: "this needs the trigger close-write, which tells of files that were written; add it to Triggers",
            });
        }
        out
    }

    fn action(&mut self) -> Action {
        let action = self.texts("Action").into_iter().next();
        let directory = self.path("Directory");
        let Some(action) = action else {
            if let Some(directory) = directory {
                self.warnings.push(format!(
                    "{directory}: not used without an Action; write Action = \"move\" or \"copy\""
                ));
            }
            return Action::Nothing;
        };
        let into: fn(PathBuf) -> Action = match action.value.as_bytes() {
            b"none" => return Action::Nothing,
            b"remove" => return Action::Remove,
            b"move" => Action::Move,
            b"copy" => Action::Copy,
            found => {
                self.errors.push(bad(
                    &action,
                    found,
                    "an action",
                    "write none, remove, move or copy",
                ));
                return Action::Nothing;
            }
        };
        if let Some(directory) = directory {
            return into(directory.value);
        }
        self.errors.push(ConfigError::Conflict {
            at: action.place(),
            problem: "Directory is missing; name where infected files are to go",
        });
        Action::Nothing
    }

    fn log(&mut self) -> LogSettings {
        LogSettings {
            file: self.named_file("LogFile"),
            verbose: self.flag("LogVerbose", false),
            time: self.flag("LogTime", false),
            syslog: self.flag("LogSyslog", false),
            facility: self.facility(),
            rotate: self.flag("LogRotate", false),
            max_size: self.size("LogFileMaxSize", u64::MAX),
        }
    }

    /// A file that need not be named from / on.
    fn named_file(&mut self, name: &'static str) -> Option<Located<PathBuf>> {
        let file = self.texts(name).into_iter().next()?;
        Some(file.with(PathBuf::from(&file.value)))
    }

    fn facility(&mut self) -> String {
        let Some(facility) = self.texts("LogFacility").into_iter().next() else {
            return FACILITY.to_owned();
        };
        let known = FACILITIES.iter().find(|known| {
            known
                .as_bytes()
                .eq_ignore_ascii_case(facility.value.as_bytes())
        });
        if let Some(known) = known {
            return (*known).to_owned();
        }
        let error = bad(
            &facility,
            facility.value.as_bytes(),
            "a facility",
            "write one of syslog(3), for example LOG_LOCAL6 or LOG_DAEMON",
        );
        let native = &self.sources.native.parsed.entries;
        if native.iter().any(|entry| entry.name == "LogFacility") {
            self.errors.push(error);
        } else {
            // clamonacc does not look at it.
            self.warnings.push(format!("{error}; {FACILITY} is used"));
        }
        FACILITY.to_owned()
    }

    /// A number from 1 to `limit`; out of these bounds, a warning says what is
    /// done instead.
    fn limited(&mut self, name: &'static str, default: u64, limit: u64) -> u64 {
        let Some(number) = self.numbers(name).into_iter().next() else {
            return default;
        };
        if number.value == 0 {
            self.warnings.push(format!(
                "{number}: 0 would stop all scans, the default {default} is used; write 1 or more"
            ));
            return default;
        }
        if number.value > limit {
            self.too_large(&number, limit);
        }
        number.value.min(limit)
    }

    /// An option of clamd that we only read along: 0 has its own meaning to
    /// clamd and is our default, and what is too large is cut without a word.
    fn clamd_limit(&mut self, name: &'static str, default: u64, limit: u64) -> u64 {
        let number = self.numbers(name).into_iter().next();
        number.map_or(default, |number| match number.value {
            0 => default,
            value => value.min(limit),
        })
    }

    fn too_large(&mut self, number: &Located<u64>, limit: u64) {
        self.warnings.push(format!(
            "{number}: {} is too large, {limit} is used; write at most {limit}",
            number.value
        ));
    }

    /// One of the words of `W`.
    fn word<W: ValueEnum + Default>(&mut self, name: &'static str) -> W {
        let Some(word) = self.texts(name).into_iter().next() else {
            return W::default();
        };
        let found = word.value.to_string_lossy();
        W::from_str(&found, false).unwrap_or_else(|_| {
            let words: Vec<_> = W::value_variants()
                .iter()
                .filter_map(ValueEnum::to_possible_value)
                .map(|word| word.get_name().to_owned())
                .collect();
            self.errors.push(ConfigError::WrongType {
                at: word.place(),
                found: "no known word",
                wanted: format!("one of {}", words.join(", ")),
            });
            W::default()
        })
    }

    pub(super) fn flag(&mut self, name: &'static str, default: bool) -> bool {
        self.flags(name).first().map_or(default, |flag| flag.value)
    }

    fn size(&mut self, name: &'static str, default: u64) -> u64 {
        let size = self.values(name, |value| match value {
            Value::Size(size) => Some(*size),
            _ => None,
        });
        size.first().map_or(default, |size| size.value)
    }

    fn flags(&mut self, name: &'static str) -> Vec<Located<bool>> {
        self.values(name, |value| match value {
            Value::Bool(flag) => Some(*flag),
            _ => None,
        })
    }

    pub(super) fn numbers(&mut self, name: &'static str) -> Vec<Located<u64>> {
        self.values(name, |value| match value {
            Value::Number(number) => Some(*number),
            _ => None,
        })
    }

    pub(super) fn texts(&mut self, name: &'static str) -> Vec<Located<OsString>> {
        self.values(name, |value| match value {
            Value::Text(text) => Some(text.clone()),
            _ => None,
        })
    }

    /// All values of an option whose values must be UTF-8.
    pub(super) fn utf8(
        &mut self,
        name: &'static str,
        wanted: &'static str,
        remedy: &'static str,
    ) -> Vec<Located<String>> {
        let mut out = Vec::new();
        for text in self.texts(name) {
            match text.value.to_str() {
                Some(utf8) => out.push(text.with(utf8.to_owned())),
                None => self
                    .errors
                    .push(bad(&text, text.value.as_bytes(), wanted, remedy)),
            }
        }
        out
    }

    /// Where onacc.toml sets this list to nothing.
    fn emptied(&self, name: &str) -> Option<&Located<()>> {
        let mut emptied = self.sources.native.emptied.iter();
        emptied.find(|list| list.option == name)
    }

    /// The values of an option, as `take` makes them out, from the source that
    /// goes before all others that have any.
    fn values<T>(
        &mut self,
        name: &'static str,
        take: impl Fn(&Value) -> Option<T>,
    ) -> Vec<Located<T>> {
        let key = keys::named(name).expect("the table names every option that is read");
        let values: Vec<Located<T>> = self
            .entries(key)
            .iter()
            .filter_map(|entry| {
                let by_flag = entry.origin == Origin::CommandLine;
                Some(Located {
                    value: take(&entry.value)?,
                    origin: entry.origin.clone(),
                    option: key.flag.filter(|_| by_flag).unwrap_or(name),
                })
            })
            .collect();
        let mut origins: Vec<_> = values.iter().map(|value| value.origin.clone()).collect();
        if values.is_empty() {
            origins.extend(self.emptied(name).map(|list| list.origin.clone()));
        }
        if !origins.is_empty() {
            self.origins.insert(name, origins);
        }
        values
    }

    fn entries(&self, key: &keys::Key) -> Vec<Entry> {
        let flags = self.sources.command_line.iter();
        let flags = flags.filter(|(name, _)| *name == key.name);
        let from_flags: Vec<Entry> = flags
            .map(|(name, value)| Entry {
                name,
                value: value.clone(),
                origin: Origin::CommandLine,
            })
            .collect();
        if !from_flags.is_empty() {
            return from_flags;
        }
        let of = |entries: &[Entry]| -> Vec<Entry> {
            let entries = entries.iter().filter(|entry| entry.name == key.name);
            entries.cloned().collect()
        };
        let native = of(&self.sources.native.parsed.entries);
        if !native.is_empty() || self.emptied(key.name).is_some() || !key.in_clamd_conf {
            return native;
        }
        of(&self.sources.clamd_conf.entries)
    }
}

pub(super) fn bad<T>(
    at: &Located<T>,
    found: &[u8],
    wanted: &'static str,
    remedy: &'static str,
) -> ConfigError {
    ConfigError::BadValue {
        at: at.place(),
        found: shown(found),
        wanted,
        remedy,
    }
}

/// For numbers that a limit has made small.
fn count(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

/// The file that is named where something is missing from all.
pub(super) fn main_file(sources: &Sources) -> &Path {
    sources
        .files
        .first()
        .map_or(Path::new(crate::config::DEFAULT_FILE), PathBuf::as_path)
}
