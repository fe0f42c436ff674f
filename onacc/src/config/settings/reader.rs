//! From a parsed file to [`Settings`].
//!
//! Owns the defaults, the limits, and what this version makes of each value.
//! What clamonacc survives, onacc survives too, with a warning; an error is
//! what would leave something unprotected unseen. Must do no I/O at all. Tested
//! in `tests.rs` beside it.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Located, Settings};
use crate::config::clamd_conf::{Entry, Parsed, Value};
use crate::config::error::{ConfigError, shown};
use crate::config::options;
use crate::config::servers::{Host, MOST_SERVERS, Server};

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
/// What fits a socket address, without its closing NUL, in bytes.
const LONGEST_SOCKET: usize = 107;
/// The largest uid; `u32::MAX` means "no uid" to the kernel.
const LARGEST_UID: u64 = u32::MAX as u64 - 1;
/// The remedy for most paths.
const WHOLE_PATH: &str = "write the whole path, from / on";

/// Makes the settings that a parsed file asks for.
pub(super) fn settings(parsed: Parsed, file: &Path) -> Result<Settings, ConfigError> {
    let Parsed { entries, warnings } = parsed;
    Reader {
        file,
        entries: &entries,
        warnings,
    }
    .settings()
}

/// Takes the options out of a parsed file one by one.
struct Reader<'a> {
    file: &'a Path,
    entries: &'a [Entry],
    warnings: Vec<String>,
}

impl Reader<'_> {
    fn settings(mut self) -> Result<Settings, ConfigError> {
        let servers = self.servers()?;
        let mount_paths = self.paths("OnAccessMountPath", WHOLE_PATH)?;
        Ok(Settings {
            servers,
            stream_max_length: self.size("StreamMaxLength", STREAM_MAX_LENGTH),
            include_paths: self.include_paths(&mount_paths)?,
            exclude_paths: self.exclude_paths()?,
            prevention: self.flag("OnAccessPrevention"),
            excluded_uids: self.excluded_uids()?,
            excluded_names: self.excluded_names()?,
            max_file_size: self.size("OnAccessMaxFileSize", MAX_FILE_SIZE),
            try_timeout: Duration::from_millis(self.limited(
                "OnAccessCurlTimeout",
                TRY_TIMEOUT,
                LONGEST_TRY_TIMEOUT,
            )),
            retries: self.retries(),
            max_scans: count(self.limited("OnAccessMaxThreads", MAX_SCANS, MOST_SCANS)),
            deny_on_error: self.flag("OnAccessDenyOnError"),
            extra_scanning: self.not_yet(
                "OnAccessExtraScanning",
                "files are scanned when they are opened, not when they are closed or moved",
            ),
            disable_ddd: self.flag("OnAccessDisableDDD"),
            mount_paths,
            read_timeout: Duration::from_secs(self.clamd_limit(
                "ReadTimeout",
                READ_TIMEOUT,
                LONGEST_READ_TIMEOUT,
            )),
            max_queue: count(self.clamd_limit("MaxQueue", MAX_QUEUE, LONGEST_QUEUE)),
            temporary_directory: self.temporary_directory(),
            // Last, when all others have added theirs.
            warnings: self.warnings,
        })
    }

    /// The local socket if there is one, as clamonacc has it, else each TCP address.
    fn servers(&mut self) -> Result<Vec<Located<Server>>, ConfigError> {
        if let Some(socket) = self.texts("LocalSocket").into_iter().next() {
            return Ok(vec![local_server(&socket)?]);
        }
        let port = self.numbers("TCPSocket").into_iter().next();
        let addresses = self.texts("TCPAddr");
        let Some(port) = port else {
            return Err(match addresses.first() {
                Some(address) => ConfigError::NoTcpPort {
                    at: address.place(),
                },
                None => ConfigError::NoServer {
                    file: self.file.to_owned(),
                },
            });
        };
        let number = match u16::try_from(port.value) {
            Ok(number) if number > 0 => number,
            _ => {
                let found = port.value.to_string();
                return Err(bad(
                    &port,
                    found.as_bytes(),
                    "a TCP port",
                    "write a number from 1 to 65535",
                ));
            }
        };
        if addresses.is_empty() {
            return Err(ConfigError::NoTcpAddress { at: port.place() });
        }
        let mut servers = Vec::new();
        for address in &addresses {
            let server = address.with(Server::tcp(tcp_host(address)?, number));
            if servers
                .iter()
                .any(|known: &Located<Server>| known.value == server.value)
            {
                self.warnings.push(format!(
                    "{server}: {} is named twice, ignored",
                    server.value
                ));
            } else if servers.len() == MOST_SERVERS {
                self.warnings.push(format!(
                    "{server}: {} is not used; name at most {MOST_SERVERS} addresses",
                    server.value
                ));
            } else {
                servers.push(server);
            }
        }
        Ok(servers)
    }

    /// What to watch: the include paths, and the mount paths behind them.
    fn include_paths(
        &self,
        mount_paths: &[Located<PathBuf>],
    ) -> Result<Vec<Located<PathBuf>>, ConfigError> {
        let mut paths = self.paths("OnAccessIncludePath", WHOLE_PATH)?;
        paths.extend(mount_paths.iter().cloned());
        if paths.is_empty() {
            return Err(ConfigError::NothingToWatch {
                file: self.file.to_owned(),
            });
        }
        Ok(paths)
    }

    fn exclude_paths(&mut self) -> Result<Vec<Located<PathBuf>>, ConfigError> {
        let remedy = "write the whole path of a directory, from / on; this version does not support regular expressions";
        let paths = self.paths("OnAccessExcludePath", remedy)?;
        for path in &paths {
            let bytes = path.value.as_os_str().as_bytes();
            if bytes.iter().any(|byte| br"*+?|^$[](){}\".contains(byte)) {
                self.warnings.push(format!(
                    "{path}: '{}' is taken as the path of a directory; this version does not support regular expressions",
                    shown(bytes)
                ));
            }
        }
        Ok(paths)
    }

    fn excluded_uids(&mut self) -> Result<Vec<u32>, ConfigError> {
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
                _ => {
                    return Err(ConfigError::TooLarge {
                        at: uid.place(),
                        found: uid.value.to_string(),
                        limit: LARGEST_UID,
                    });
                }
            }
        }
        if self.flag("OnAccessExcludeRootUID") {
            uids.push(0);
        }
        uids.sort_unstable();
        uids.dedup();
        Ok(uids)
    }

    fn excluded_names(&self) -> Result<Vec<Located<String>>, ConfigError> {
        let names = self.texts("OnAccessExcludeUname");
        let names = names.iter().map(|name| match name.value.to_str() {
            Some(text) => Ok(name.with(text.to_owned())),
            None => Err(bad(
                name,
                name.value.as_bytes(),
                "a user name in UTF-8",
                "give the uid with OnAccessExcludeUID",
            )),
        });
        names.collect()
    }

    fn size(&self, name: &'static str, default: u64) -> u64 {
        let size = self.values(name, |value| match value {
            Value::Size(size) => Some(*size),
            _ => None,
        });
        size.first().map_or(default, |size| size.value)
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
    fn clamd_limit(&self, name: &'static str, default: u64, limit: u64) -> u64 {
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

    /// A flag that this version reads but does not act on.
    fn not_yet(&mut self, name: &'static str, instead: &str) -> bool {
        let flag = self.flags(name).into_iter().next();
        let Some(flag) = flag.filter(|flag| flag.value) else {
            return false;
        };
        self.warnings.push(format!(
            "{flag}: this version does not act on it yet: {instead}"
        ));
        true
    }

    /// All values of an option whose values must be absolute paths.
    fn paths(
        &self,
        name: &'static str,
        remedy: &'static str,
    ) -> Result<Vec<Located<PathBuf>>, ConfigError> {
        let texts = self.texts(name);
        texts.iter().map(|path| absolute(path, remedy)).collect()
    }

    fn flag(&self, name: &'static str) -> bool {
        self.flags(name).first().is_some_and(|flag| flag.value)
    }

    fn flags(&self, name: &'static str) -> Vec<Located<bool>> {
        self.values(name, |value| match value {
            Value::Bool(flag) => Some(*flag),
            _ => None,
        })
    }

    fn numbers(&self, name: &'static str) -> Vec<Located<u64>> {
        self.values(name, |value| match value {
            Value::Number(number) => Some(*number),
            _ => None,
        })
    }

    fn texts(&self, name: &'static str) -> Vec<Located<OsString>> {
        self.values(name, |value| match value {
            Value::Text(text) => Some(text.clone()),
            _ => None,
        })
    }

    /// The values of an option in file order, as `take` makes them out.
    fn values<T>(&self, name: &str, take: impl Fn(&Value) -> Option<T>) -> Vec<Located<T>> {
        debug_assert!(options::find(name.as_bytes()).is_some(), "{name}");
        self.entries
            .iter()
            .filter(|entry| entry.option.name == name)
            .map(|entry| {
                let value = take(&entry.value).expect("the parser gives each option its kind");
                self.located(entry, value)
            })
            .collect()
    }

    fn located<T>(&self, entry: &Entry, value: T) -> Located<T> {
        Located {
            value,
            file: self.file.to_owned(),
            line: entry.line,
            option: entry.option.name,
        }
    }
}

fn absolute(
    path: &Located<OsString>,
    remedy: &'static str,
) -> Result<Located<PathBuf>, ConfigError> {
    if path.value.as_bytes().starts_with(b"/") {
        Ok(path.with(PathBuf::from(&path.value)))
    } else {
        let found = path.value.as_bytes();
        Err(bad(path, found, "an absolute path", remedy))
    }
}

fn local_server(socket: &Located<OsString>) -> Result<Located<Server>, ConfigError> {
    let socket = absolute(socket, "write the whole path of the socket, from / on")?;
    if socket.value.as_os_str().len() > LONGEST_SOCKET {
        return Err(bad(
            &socket,
            socket.value.as_os_str().as_bytes(),
            "short enough for a socket",
            "choose a path of at most 107 bytes, for clamd too",
        ));
    }
    let server = Server::unix(socket.value.clone());
    Ok(socket.with(server))
}

/// clamd listens on an address, and may listen on all; we need one to call.
fn tcp_host(address: &Located<OsString>) -> Result<Host, ConfigError> {
    let host = address.value.to_str().and_then(|text| text.parse().ok());
    let callable = match &host {
        None => false,
        Some(Host::Ip(ip)) => !ip.is_unspecified() && !ip.is_multicast(),
        Some(Host::Name(name)) => !name.eq_ignore_ascii_case("any"),
    };
    match host {
        Some(host) if callable => Ok(host),
        _ => Err(bad(
            address,
            address.value.as_bytes(),
            "an address that can be called",
            "write the IP address or the name of the machine that clamd runs on, for this one 127.0.0.1",
        )),
    }
}

fn bad<T>(
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
