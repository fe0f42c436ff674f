//! The settings as an onacc.toml: what holds, and who says so.
//!
//! Owns the way back from [`Settings`] to text. Each field is named here, so
//! that a new one cannot be forgotten. Must not: write files. Tested in
//! `settings/tests/shown.rs`: what is written reads back to the same.

use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use super::{Action, Located, PathRule, Settings, Triggers};
use crate::config::entry::Origin;
use crate::config::error::shown_path;
use crate::config::keys::{self, Key, TABLES};
use crate::config::servers::{Address, Server, Transfer};

/// How much is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shown {
    /// Every key, with its default where nothing sets it, and where it was set.
    All,
    /// What is set, and where.
    Set,
    /// What is set, as a file of its own.
    File,
}

/// What a key is set to, as TOML.
enum Text {
    /// So.
    Is(String),
    /// Not at all: there is nothing to write for its default.
    Unset,
    /// It holds a path that is not UTF-8, which TOML cannot.
    Unwritable,
}

/// An onacc.toml that gives the same settings as these.
pub fn migrated(settings: &Settings) -> String {
    let mut out = String::new();
    for file in &settings.files {
        let _ = writeln!(
            out,
            "# Made from {} by onacc config migrate.",
            shown_path(file)
        );
    }
    out.push_str(
        "# What clamd itself reads stays in clamd.conf. A key that is set here hides the\n",
    );
    out.push_str("# line of the same name there. See onacc.toml(5).\n");
    out + &settings.to_toml(Shown::File)
}

impl Settings {
    /// The settings as an onacc.toml.
    pub fn to_toml(&self, how: Shown) -> String {
        let mut out = String::new();
        for table in TABLES {
            if table.many {
                self.many_tables(table.name, how, &mut out);
                continue;
            }
            let mut lines = String::new();
            for key in keys::KEYS.iter().filter(|key| key.table == table.name) {
                self.line(key, how, &mut lines);
            }
            if !lines.is_empty() {
                let _ = write!(out, "\n[{}]\n{lines}", table.name);
            }
        }
        out
    }

    fn line(&self, key: &Key, how: Shown, out: &mut String) {
        let origins = self.origins.get(key.name);
        if origins.is_none() && how != Shown::All {
            return;
        }
        let _ = match self.text(key.name) {
            Text::Is(value) => write!(out, "{} = {value}", key.name),
            Text::Unset if how == Shown::All => write!(out, "# {} is not set", key.name),
            Text::Unset => return,
            Text::Unwritable => write!(
                out,
                "# {}: a path that is not UTF-8 can be written in clamd.conf alone",
                key.name
            ),
        };
        if how != Shown::File {
            let _ = match origins {
                Some(origins) => write!(out, "  # {}", places(origins)),
                None => write!(out, "  # default"),
            };
        }
        out.push('\n');
    }

    #[expect(clippy::too_many_lines, reason = "the one list of all keys")]
    fn text(&self, name: &'static str) -> Text {
        let Settings {
            servers,
            stream_max_length,
            all_match,
            include_paths,
            exclude_paths,
            exclude_patterns,
            exclusions,
            path_rules: _,
            triggers,
            coverage,
            bpf,
            prevention,
            excluded_uids,
            excluded_names,
            max_file_size,
            try_timeout,
            retries,
            max_scans,
            deny_on_error,
            extra_scanning,
            disable_ddd,
            mount_paths,
            watch_list,
            exclude_list,
            read_timeout,
            max_queue,
            temporary_directory,
            database_directory,
            verdicts,
            marks,
            keep_on,
            action,
            log,
            pid_file,
            files: _,
            origins: _,
            warnings: _,
        } = self;
        match name {
            "OnAccessIncludePath" => paths(of_option(include_paths, name)),
            "OnAccessMountPath" => paths(mount_paths.iter()),
            "OnAccessExcludePath" => {
                let mut both: Vec<(&Origin, &[u8])> = Vec::new();
                both.extend(
                    of_option(exclude_paths, name)
                        .map(|path| (&path.origin, path.value.as_os_str().as_bytes())),
                );
                let patterns = exclude_patterns.iter();
                both.extend(patterns.map(|one| (&one.origin, one.value.written.as_bytes())));
                both.sort_by_key(|(origin, _)| *origin);
                list(both.iter().map(|(_, bytes)| *bytes))
            }
            "OnAccessDisableDDD" => is(disable_ddd),
            "WatchList" => path(watch_list.as_ref()),
            "ExcludeList" => path(exclude_list.as_ref()),
            "Coverage" => word(coverage),
            "Triggers" => words_of(*triggers),
            "OnAccessExcludeUID" => Text::Is(format!(
                "{:?}",
                excluded_uids
                    .iter()
                    .filter(|uid| **uid != 0)
                    .collect::<Vec<_>>()
            )),
            "OnAccessExcludeRootUID" => is(excluded_uids.contains(&0)),
            "OnAccessExcludeUname" => list(excluded_names.iter().map(|one| one.value.as_bytes())),
            "Glob" | "Regex" => {
                let files = of_option(&exclusions.files, name);
                list(files.map(|one| one.value.written.as_bytes()))
            }
            "Extension" => list(exclusions.extensions.iter().map(|one| one.value.as_bytes())),
            "Executable" => paths(exclusions.executables.iter()),
            "Cgroup" => paths(exclusions.cgroups.iter()),
            "OnAccessPrevention" => is(prevention),
            "OnAccessDenyOnError" => is(deny_on_error),
            "OnAccessMaxFileSize" => size(*max_file_size),
            "OnAccessCurlTimeout" => is(try_timeout.as_millis()),
            "OnAccessRetryAttempts" => is(retries),
            "OnAccessMaxThreads" => is(max_scans),
            "OnAccessExtraScanning" => is(extra_scanning),
            "LocalSocket" | "TCPAddr" | "TCPSocket" | "Stream" => server_text(servers, name),
            "AllMatch" => is(all_match),
            "StreamMaxLength" => size(*stream_max_length),
            "ReadTimeout" => is(read_timeout.as_secs()),
            "MaxQueue" => is(max_queue),
            "DatabaseDirectory" => text(database_directory.as_os_str().as_bytes()),
            "TemporaryDirectory" => path(temporary_directory.as_ref()),
            "Bpf" => word(bpf),
            "Verdicts" => verdicts.map_or(Text::Unset, is),
            "Marks" => word(marks),
            "KeepVerdictsOn" => list(keep_on.iter().map(|one| one.value.written())),
            "Action" => match action {
                Action::Nothing => is("\"none\""),
                Action::Remove => is("\"remove\""),
                Action::Move(_) => is("\"move\""),
                Action::Copy(_) => is("\"copy\""),
            },
            "Directory" => match action {
                Action::Move(path) | Action::Copy(path) => text(path.as_os_str().as_bytes()),
                Action::Nothing | Action::Remove => Text::Unset,
            },
            "LogFile" => path(log.file.as_ref()),
            "LogVerbose" => is(log.verbose),
            "LogTime" => is(log.time),
            "LogSyslog" => is(log.syslog),
            "LogFacility" => text(log.facility.as_bytes()),
            "LogRotate" => is(log.rotate),
            "LogFileMaxSize" => size(log.max_size),
            "PidFile" => path(pid_file.as_ref()),
            _ => Text::Unset,
        }
    }

    fn many_tables(&self, table: &str, how: Shown, out: &mut String) {
        match table {
            "server" => {
                for server in self
                    .servers
                    .iter()
                    .filter(|server| server.option == "Address")
                {
                    head(table, &server.origin, how, out);
                    server_lines(&server.value, out);
                }
            }
            _ => {
                for rule in &self.path_rules {
                    head(table, &rule.origin, how, out);
                    path_rule_lines(&rule.value, out);
                }
            }
        }
    }
}

fn head(table: &str, origin: &Origin, how: Shown, out: &mut String) {
    let _ = write!(out, "\n[[{table}]]");
    if how != Shown::File {
        let _ = write!(out, "  # {origin}");
    }
    out.push('\n');
}

fn path_rule_lines(rule: &PathRule, out: &mut String) {
    entry("Path", text(rule.path.as_os_str().as_bytes()), out);
    if let Some(deny) = rule.deny_on_error {
        entry("OnAccessDenyOnError", is(deny), out);
    }
    if let Some(limit) = rule.max_file_size {
        entry("OnAccessMaxFileSize", size(limit), out);
    }
}

fn server_lines(server: &Server, out: &mut String) {
    let local = matches!(server.address, Address::Unix(_));
    let address = match &server.address {
        Address::Unix(path) => text(path.as_os_str().as_bytes()),
        tcp @ Address::Tcp { .. } => text(tcp.to_string().as_bytes()),
    };
    entry("Address", address, out);
    entry("Weight", is(server.weight), out);
    if local && server.transfer == Transfer::Stream {
        entry("Stream", is(true), out);
    }
    let Some(tls) = &server.tls else { return };
    entry("TLS", is(true), out);
    if let Some(name) = &tls.server_name {
        entry("ServerName", text(name.as_bytes()), out);
    }
    for (name, file) in [
        ("CAFile", &tls.ca),
        ("CertificateFile", &tls.certificate),
        ("KeyFile", &tls.key),
    ] {
        if let Some(file) = file {
            entry(name, text(file.as_os_str().as_bytes()), out);
        }
    }
}

fn entry(name: &str, value: Text, out: &mut String) {
    let _ = match value {
        Text::Is(value) => writeln!(out, "{name} = {value}"),
        Text::Unset | Text::Unwritable => Ok(()),
    };
}

/// What clamd.conf says of servers; `[[server]]` stands for itself.
fn server_text(servers: &[Located<Server>], name: &str) -> Text {
    let plain = || servers.iter().filter(|server| server.option != "Address");
    let mut hosts = Vec::new();
    for server in plain() {
        match &server.value.address {
            Address::Unix(path) if name == "LocalSocket" => {
                return text(path.as_os_str().as_bytes());
            }
            Address::Tcp { port, .. } if name == "TCPSocket" => return is(port),
            Address::Tcp { host, .. } if name == "TCPAddr" => hosts.push(host.name()),
            Address::Unix(_) if name == "Stream" => {
                return is(server.value.transfer == Transfer::Stream);
            }
            Address::Unix(_) | Address::Tcp { .. } => {}
        }
    }
    match name {
        "TCPAddr" if !hosts.is_empty() => list(hosts.iter().map(String::as_bytes)),
        _ => Text::Unset,
    }
}

fn words_of(triggers: Triggers) -> Text {
    let words = [
        ("open", triggers.open),
        ("exec", triggers.exec),
        ("close-write", triggers.close_write),
    ];
    let on = words.iter().filter(|(_, on)| *on);
    list(on.map(|(word, _)| word.as_bytes()))
}

fn word(word: &impl clap::ValueEnum) -> Text {
    match word.to_possible_value() {
        Some(word) => text(word.get_name().as_bytes()),
        None => Text::Unset,
    }
}

fn is(value: impl ToString + Copy) -> Text {
    Text::Is(value.to_string())
}

/// A size, in the largest unit that holds it.
fn size(bytes: u64) -> Text {
    for (shift, unit) in [(30, 'G'), (20, 'M'), (10, 'K')] {
        if bytes != u64::MAX && bytes >> shift << shift == bytes {
            return Text::Is(format!("\"{}{unit}\"", bytes >> shift));
        }
    }
    match bytes {
        u64::MAX => is(0),
        // TOML's numbers end at 2^63.
        bytes => Text::Is(format!("\"{bytes}\"")),
    }
}

fn path(path: Option<&Located<std::path::PathBuf>>) -> Text {
    path.map_or(Text::Unset, |path| text(path.value.as_os_str().as_bytes()))
}

fn paths<'a>(paths: impl Iterator<Item = &'a Located<std::path::PathBuf>>) -> Text {
    let paths: Vec<&Path> = paths.map(|path| path.value.as_path()).collect();
    list(paths.iter().map(|path| path.as_os_str().as_bytes()))
}

fn of_option<'a, T>(
    located: &'a [Located<T>],
    option: &'static str,
) -> impl Iterator<Item = &'a Located<T>> {
    located.iter().filter(move |one| one.option == option)
}

fn text(bytes: &[u8]) -> Text {
    quoted(bytes).map_or(Text::Unwritable, Text::Is)
}

fn list<'a>(items: impl Iterator<Item = &'a [u8]>) -> Text {
    match items.map(quoted).collect::<Option<Vec<_>>>() {
        Some(items) => Text::Is(format!("[{}]", items.join(", "))),
        None => Text::Unwritable,
    }
}

/// A string of TOML; `None` if it is not UTF-8.
fn quoted(bytes: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(bytes).ok()?;
    let mut out = String::from("\"");
    for character in text.chars() {
        match character {
            '"' | '\\' => {
                out.push('\\');
                out.push(character);
            }
            control if control.is_control() => {
                let _ = write!(out, "\\u{:04X}", u32::from(control));
            }
            other => out.push(other),
        }
    }
    out.push('"');
    Some(out)
}

/// The places, each file once with its lines.
fn places(origins: &[Origin]) -> String {
    let mut out = String::new();
    let mut last: Option<&Path> = None;
    for origin in origins {
        match origin {
            Origin::File { file, line, .. } if last == Some(file.as_path()) => {
                let _ = write!(out, ", {line}");
            }
            other => {
                let gap = if out.is_empty() { "" } else { ", " };
                let _ = write!(out, "{gap}{other}");
                last = match other {
                    Origin::File { file, .. } => Some(file.as_path()),
                    Origin::CommandLine => None,
                };
            }
        }
    }
    out
}
