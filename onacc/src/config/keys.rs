//! The settings that onacc acts on: where each stands in onacc.toml, what it
//! takes, what it does. onacc.toml(5) and the checks are made from this table.
//!
//! Owns names, kinds and words. Must not: hold a default that anything is
//! computed from; those are in `settings/reader.rs`, and a test compares them
//! with what is written here.

use super::options::Kind;

/// One key of onacc.toml.
#[derive(Debug, PartialEq, Eq)]
pub struct Key {
    /// The table that it stands in.
    pub table: &'static str,
    /// Its name: clamd.conf's, where clamd.conf has it.
    pub name: &'static str,
    /// The form of its value.
    pub kind: Kind,
    /// Whether it takes a list.
    pub many: bool,
    /// Whether it is taken from clamd.conf too.
    pub in_clamd_conf: bool,
    /// The flag of the command line that says the same.
    pub flag: Option<&'static str>,
    /// What holds where it is not set, in words.
    pub default: &'static str,
    /// What it does, in sentences.
    pub about: &'static str,
}

/// A table of onacc.toml.
#[derive(Debug)]
pub struct Table {
    /// Its name.
    pub name: &'static str,
    /// Whether it is written `[[name]]`, as often as wanted.
    pub many: bool,
    /// What it is about, in a sentence.
    pub about: &'static str,
}

const fn table(name: &'static str, about: &'static str) -> Table {
    Table {
        name,
        many: false,
        about,
    }
}

const fn tables(name: &'static str, about: &'static str) -> Table {
    Table {
        many: true,
        ..table(name, about)
    }
}

/// The tables, in the order in which they are explained.
pub static TABLES: &[Table] = &[
    table("scope", "What is protected."),
    table(
        "exclude",
        "Who and what is let through without a scan. The cheapest are asked first: users, then places, then patterns, then executables and control groups.",
    ),
    table("scan", "How opens are judged."),
    tables(
        "path",
        "Other rules for what lies below one path. The longest path wins; what a table does not say is as it is elsewhere.",
    ),
    table("clamd", "The clamd that is asked, as in clamd.conf."),
    tables(
        "server",
        "A clamd that is asked. Where there is such a table, LocalSocket, TCPAddr and TCPSocket are not used.",
    ),
    table("kernel", "How the kernel is used."),
    table("cache", "What is remembered of verdicts."),
    table(
        "quarantine",
        "What becomes of infected files, after the opener has been answered.",
    ),
    table("log", "Where the log goes, and how it looks."),
    table("service", "How the agent runs."),
];

const fn key(table: &'static str, name: &'static str, kind: Kind, about: &'static str) -> Key {
    Key {
        table,
        name,
        kind,
        many: false,
        in_clamd_conf: false,
        flag: None,
        default: "",
        about,
    }
}

impl Key {
    const fn many(self) -> Self {
        Self { many: true, ..self }
    }

    const fn clamd(self) -> Self {
        Self {
            in_clamd_conf: true,
            ..self
        }
    }

    const fn flag(self, flag: &'static str) -> Self {
        Self {
            flag: Some(flag),
            ..self
        }
    }

    const fn or(self, default: &'static str) -> Self {
        Self { default, ..self }
    }
}

use Kind::{Bool, Number, Size, String as Text};

/// Every key, in the order in which they are explained.
#[rustfmt::skip]
pub static KEYS: &[Key] = &[
    key("scope", "OnAccessIncludePath", Text, "Directory trees to protect. Absolute. One that does not exist yet is protected as soon as it does.").many().clamd().or("none; one include path, mount path or watch list is needed"),
    key("scope", "OnAccessMountPath", Text, "The whole mounts that hold these paths, to protect. Prevention, exclusions and extra scanning work here as elsewhere.").many().clamd().or("none"),
    key("scope", "OnAccessExcludePath", Text, "Directory trees to leave out, those made later included. A value that starts with / and holds none of *+?|^$[](){}\\ is a path, any other an extended regular expression: it is looked for anywhere in the path of a directory, and leaves out what lies below each that it fits.").many().clamd().or("none"),
    key("scope", "OnAccessDisableDDD", Bool, "Protect the named directories alone, not what is below them.").clamd().or("no"),
    key("scope", "WatchList", Text, "A file that names further directory trees to protect, one a line; empty lines and lines that start with # do not count.").flag("--watch-list").or("none"),
    key("scope", "ExcludeList", Text, "A file that names further directory trees to leave out, in the same form. Each line is a path, whatever it looks like.").flag("--exclude-list").or("none"),
    key("scope", "Coverage", Text, "What carries the marks: auto, filesystem, directory, listed or mount; see --coverage in onacc(8).").flag("--coverage").or("auto"),
    key("scope", "Triggers", Text, "What leads to a scan: open (every open, one for execution too), exec (opens for execution), close-write (a written file is scanned when it is closed, before anyone asks). With exec and without open, files that are merely read are not scanned: scripts that an interpreter reads, and shared libraries, are not covered then.").many().or("open, close-write"),

    key("exclude", "OnAccessExcludeUID", Number, "Users whose opens are not scanned, by the effective uid of the thread.").many().clamd().or("none"),
    key("exclude", "OnAccessExcludeRootUID", Bool, "Whether root's opens are not scanned.").clamd().or("no"),
    key("exclude", "OnAccessExcludeUname", Text, "Users whose opens are not scanned, by name. A name matches whole.").many().clamd().or("none"),
    key("exclude", "Glob", Text, "Files that are not scanned, by shell pattern. One without a slash is compared with the file's name, one with a slash with the whole path; * and ? do not match a slash, ** does.").many().or("none"),
    key("exclude", "Regex", Text, "Files that are not scanned, by regular expression, looked for anywhere in the whole path of the file.").many().or("none"),
    key("exclude", "Extension", Text, "Files that are not scanned, by the end of their names behind a dot, upper and lower case alike: iso, tar.gz.").many().or("none"),
    key("exclude", "Executable", Text, "Programs whose opens are not scanned: absolute paths of executable files. The file itself is compared, not its name; a script runs under the executable of its interpreter. Whoever may run such a program may have it open anything unscanned.").many().or("none"),
    key("exclude", "Cgroup", Text, "Control groups whose processes' opens are not scanned, with those below them: paths in the hierarchy of version 2, for example /system.slice/backup.service.").many().or("none"),

    key("scan", "OnAccessPrevention", Bool, "Whether opens wait for the verdict and fail if the file is infected. If not, infected files are reported.").clamd().or("no"),
    key("scan", "OnAccessDenyOnError", Bool, "Whether an open fails when the file could not be scanned in time.").clamd().or("no"),
    key("scan", "OnAccessMaxFileSize", Size, "Larger files are not scanned, which is said with LogVerbose. 0: all are.").clamd().or("5M"),
    key("scan", "OnAccessCurlTimeout", Number, "How long one try of a scan may take, from connecting to the verdict, in milliseconds. No opener waits longer than all tries together.").clamd().or("5000"),
    key("scan", "OnAccessRetryAttempts", Number, "How many tries may follow a failed one.").clamd().or("0"),
    key("scan", "OnAccessMaxThreads", Number, "How many scans run at a time.").clamd().or("5"),
    key("scan", "OnAccessExtraScanning", Bool, "Whether files are also scanned when they have been written or moved into the scope, and reported then.").clamd().or("no"),

    key("path", "Path", Text, "The path that this table is about. Absolute; needed."),
    key("path", "OnAccessDenyOnError", Bool, "As in [scan]."),
    key("path", "OnAccessMaxFileSize", Size, "As in [scan]."),

    key("clamd", "LocalSocket", Text, "clamd's Unix socket. Goes before TCPAddr.").clamd().or("none; one server is needed"),
    key("clamd", "TCPAddr", Text, "Machines that clamd runs on, by name or address.").many().clamd().or("none"),
    key("clamd", "TCPSocket", Number, "The port of clamd on these machines.").clamd().or("none"),
    key("clamd", "Stream", Bool, "Send clamd the content of files on a local socket too, instead of the open file itself.").flag("--stream").or("no"),
    key("clamd", "AllMatch", Bool, "Name every match in a file, not the first alone.").flag("--allmatch").or("no"),
    key("clamd", "StreamMaxLength", Size, "What clamd takes over TCP at most. 0: anything.").clamd().or("100M"),
    key("clamd", "ReadTimeout", Number, "How long clamd keeps a silent session, in seconds.").clamd().or("120"),
    key("clamd", "MaxQueue", Number, "How many scans clamd queues, those running included. At most half of them are used.").clamd().or("100"),
    key("clamd", "DatabaseDirectory", Text, "Where clamd has its signatures: how onacc notices a database that has no version.").clamd().or("/var/lib/clamav"),
    key("clamd", "TemporaryDirectory", Text, "Where clamd unpacks archives.").clamd().or("none"),

    key("server", "Address", Text, "An absolute path for a Unix socket, or HOST:PORT, an IPv6 address in brackets. Needed."),
    key("server", "Weight", Number, "Its share of the scans beside the other servers', from 1 to 10000. With twice the weight it gets twice as many.").or("100"),
    key("server", "Stream", Bool, "Send the content of files on a Unix socket too.").or("no"),
    key("server", "TLS", Bool, "Speak TLS (to a TLS proxy in front of clamd). TCP alone.").or("no"),
    key("server", "ServerName", Text, "The name that the certificate must bear.").or("the host of Address"),
    key("server", "CAFile", Text, "A PEM file with the certificates of those who may vouch for the server.").or("the system's"),
    key("server", "CertificateFile", Text, "A PEM file with the certificate to show. Needs KeyFile.").or("none"),
    key("server", "KeyFile", Text, "A PEM file with its private key.").or("none"),

    key("kernel", "Bpf", Text, "How to use eBPF: auto, off or require; see --bpf in onacc(8).").flag("--bpf").or("auto"),

    key("cache", "Verdicts", Number, "How many verdicts are remembered, from 0 to 4194304. With 0 every open that reaches the agent is scanned. As many clean files are answered for by the kernel, where that is more than by default.").or("one for each 128 KiB of memory, from 65536 to 524288"),
    key("cache", "Marks", Text, "Which ignore marks the kernel keeps: auto, strict or off; see --marks in onacc(8).").flag("--marks").or("auto"),
    key("cache", "KeepVerdictsOn", Text, "Network and FUSE filesystems, and others that onacc does not know, whose verdicts are remembered all the same: by type, as the table of mounts shows it (nfs4, cifs, fuse.sshfs), or by mount point. Else every open there is scanned. A verdict is used while size, mtime and ctime are the same, nobody on this machine has the file open for writing, and nobody here has closed it after writing. What is changed elsewhere (by another client of the server, by the server itself) is noticed only if size or times show it, as late as the filesystem shows that: to take this upon oneself is what the key is for. Clean marks are not placed there: a repeat open is an event, answered from memory. Needs the trigger close-write.").many().flag("--keep-verdicts-on").or("none"),

    key("quarantine", "Action", Text, "What becomes of infected files: none, remove, move or copy.").flag("--remove, --move, --copy").or("none"),
    key("quarantine", "Directory", Text, "Where infected files are moved or copied to. Absolute; needed for move and copy.").flag("--move, --copy").or("none"),

    key("log", "LogFile", Text, "The file that the log is appended to. LogFile of clamd.conf is clamd's own, and not used.").flag("--log").or("none"),
    key("log", "LogVerbose", Bool, "Log more: what is watched, each verdict, files that are too large.").clamd().flag("--verbose").or("no"),
    key("log", "LogTime", Bool, "Whether each line starts with the time.").clamd().or("no"),
    key("log", "LogSyslog", Bool, "Whether the log goes to the system log too.").clamd().or("no"),
    key("log", "LogFacility", Text, "The facility in the system log: LOG_LOCAL6, LOG_DAEMON and so on.").clamd().or("LOG_LOCAL6"),
    key("log", "LogRotate", Bool, "Whether a log that has reached LogFileMaxSize is put aside for a new one.").clamd().or("no"),
    key("log", "LogFileMaxSize", Size, "How large the log may become. 0: any size. Without LogRotate nothing more is written then.").clamd().or("any size"),

    key("service", "PidFile", Text, "A file to write the process id to. PidFile of clamd.conf is clamd's own, and not used.").flag("--pid-file").or("none"),
];

/// The table of this name.
pub fn table_of(name: &str) -> Option<&'static Table> {
    TABLES.iter().find(|table| table.name == name)
}

/// The key of this name in this table.
pub fn find(table: &str, name: &str) -> Option<&'static Key> {
    let mut keys = KEYS.iter();
    keys.find(|key| key.table == table && key.name == name)
}

/// The keys that exist once, not in each of several tables.
pub fn single() -> impl Iterator<Item = &'static Key> {
    let many = |key: &&Key| table_of(key.table).is_some_and(|table| !table.many);
    KEYS.iter().filter(many)
}

/// The single key of this name.
pub fn named(name: &str) -> Option<&'static Key> {
    single().find(|key| key.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::options;

    #[test]
    fn the_table_is_sound() {
        for key in KEYS {
            assert!(table_of(key.table).is_some(), "{}", key.name);
            assert!(key.about.ends_with('.'), "{}", key.name);
            assert_eq!(find(key.table, key.name), Some(key), "{} twice", key.name);
        }
        for key in single() {
            assert!(!key.default.is_empty(), "{}", key.name);
            assert_eq!(named(key.name), Some(key), "{} in two tables", key.name);
        }
    }

    #[test]
    fn what_clamd_has_too_is_of_the_same_kind() {
        for key in KEYS.iter().filter(|key| key.in_clamd_conf) {
            let option = options::find(key.name.as_bytes()).unwrap();
            assert_eq!(
                (option.kind, option.repeatable),
                (key.kind, key.many),
                "{}",
                key.name
            );
            assert!(!option.deprecated);
        }
    }

    #[test]
    fn everything_of_on_access_is_there() {
        for option in options::all() {
            if option.name.starts_with("OnAccess") {
                assert!(named(option.name).is_some(), "{}", option.name);
            }
        }
    }
}
