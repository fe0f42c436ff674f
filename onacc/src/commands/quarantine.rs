//! `onacc quarantine`: what is in quarantine, and what becomes of it.
//!
//! Reads and changes the quarantine directory alone, and the place where a file
//! goes back to; needs no running agent. Must not: overwrite a file, follow a
//! symlink to the place where a file was, or keep a file's record without it.
//! Tested by `tests/tests/quarantine.rs`.

use std::ffi::{OsStr, OsString};
use std::fs::{File, Permissions};
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{Mode, UtimensatFlags, fstat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchownat};
use serde::Serialize;

use super::cli::{Cli, QuarantineCommand};
use crate::config::Settings;
use crate::config::settings::Action;
use crate::kernel::SyscallError;
use crate::observe::printable;
use crate::respond::quarantine::record::{Process, Record, State, Time};
use crate::respond::quarantine::store::{self, Entry, Store, StoreError};

/// What cannot be done.
#[derive(Debug, thiserror::Error)]
enum CommandError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{0:?} is not in quarantine: \"onacc quarantine list\" says what is")]
    Unknown(OsString),
    #[error("{0:?} is no name of a file in quarantine: give the name alone, without a directory")]
    NoName(OsString),
    #[error(
        "{0:?} has no record of where it was and whose: say where it shall go with --to=FILE, it will be root's"
    )]
    NoRecord(OsString),
    #[error("{0:?} has a record, but the file itself is not there")]
    NoContent(OsString),
    #[error(
        "{0:?} exists, and is not overwritten: move it away, or restore to another place with --to=FILE"
    )]
    Exists(PathBuf),
    #[error(
        "the directory of {path:?} cannot be entered ({source}): it is gone, or there is a symlink on the way; restore to another place with --to=FILE"
    )]
    Place { path: PathBuf, source: SyscallError },
    #[error(
        "{name:?} cannot be read ({source}); if an agent watches the quarantine directory and refuses it, restore to the filesystem of the quarantine directory, or exclude that directory (OnAccessExcludePath)"
    )]
    Unreadable { name: OsString, source: Errno },
    #[error(
        "{name:?} is not what was put in quarantine: its SHA-256 is {now}, its record says {then}; it stays where it is"
    )]
    Altered {
        name: OsString,
        now: String,
        then: String,
    },
    #[error(transparent)]
    Syscall(#[from] SyscallError),
    #[error("writing to the standard output: {0}")]
    Output(#[from] io::Error),
}

/// The directory that clamonacc's unit names in Debian.
const DEFAULT_DIRECTORY: &str = "/root/quarantine";

/// Runs one of the commands. 0, or 2 if it could not be done.
pub fn run(cli: &Cli, directory: Option<&Path>, command: &QuarantineCommand) -> ExitCode {
    let directory = directory.map_or_else(|| configured(cli), Path::to_owned);
    let done = Store::open(&directory)
        .map_err(CommandError::from)
        .and_then(|store| match command {
            QuarantineCommand::List { json } => list(&store, *json),
            QuarantineCommand::Show { name, json } => show(&store, name, *json),
            QuarantineCommand::Restore { name, to } => restore(&store, name, to.as_deref()),
            QuarantineCommand::Delete { names } => {
                names.iter().try_for_each(|name| delete(&store, name))
            }
        });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read the output has seen enough.
        Err(CommandError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("ERROR: {error}");
            ExitCode::from(2)
        }
    }
}

/// The directory of the settings, if they name one.
fn configured(cli: &Cli) -> PathBuf {
    match Settings::load(&cli.settings()).map(|settings| settings.action) {
        Ok(Action::Move(directory) | Action::Copy(directory)) => directory,
        Ok(Action::Nothing | Action::Remove) => DEFAULT_DIRECTORY.into(),
        Err(error) => {
            for line in error.to_string().lines() {
                eprintln!("WARNING: {line}");
            }
            eprintln!("WARNING: the settings cannot be used, taking {DEFAULT_DIRECTORY}");
            DEFAULT_DIRECTORY.into()
        }
    }
}

/// What `--json` shows of a file.
#[derive(Serialize)]
struct Shown<'a> {
    name: String,
    status: &'static str,
    record: Option<&'a Record>,
}

impl<'a> Shown<'a> {
    fn of(entry: &'a Entry) -> Self {
        Self {
            name: printable(entry.name.as_bytes()),
            status: status(entry),
            record: record_of(entry),
        }
    }
}

fn record_of(entry: &Entry) -> Option<&Record> {
    entry.record.as_ref()?.as_ref().ok()
}

/// One word, or a few, on how whole an entry is.
fn status(entry: &Entry) -> &'static str {
    match (&entry.record, entry.has_content) {
        (None, _) => "no record",
        (Some(Err(_)), _) => "record unreadable",
        (Some(Ok(_)), false) => "file missing, original untouched",
        (Some(Ok(record)), true) => match record.state {
            State::Pending => "interrupted, original may be there",
            State::Moved => "moved",
            State::Copied => "copied",
        },
    }
}

fn list(store: &Store, json: bool) -> Result<(), CommandError> {
    let entries = store.list()?;
    let mut out = io::stdout().lock();
    if json {
        let shown: Vec<Shown<'_>> = entries.iter().map(Shown::of).collect();
        return print_json(&mut out, &shown);
    }
    for entry in &entries {
        let name = printable(entry.name.as_bytes());
        match record_of(entry) {
            Some(record) => writeln!(
                out,
                "{name}\t{}\t{}\t{}\t{}\t{}",
                record.quarantined,
                printable(record.signature.as_bytes()),
                record.size,
                status(entry),
                printable(record.origin.bytes()),
            )?,
            None => writeln!(out, "{name}\t-\t-\t-\t{}\t-", status(entry))?,
        }
    }
    Ok(())
}

fn print_json(out: &mut impl io::Write, value: &impl Serialize) -> Result<(), CommandError> {
    serde_json::to_writer_pretty(&mut *out, value).map_err(io::Error::from)?;
    writeln!(out)?;
    Ok(())
}

fn show(store: &Store, name: &OsStr, json: bool) -> Result<(), CommandError> {
    let entry = entry_of(store, name)?;
    let mut out = io::stdout().lock();
    if json {
        return print_json(&mut out, &Shown::of(&entry));
    }
    let path = store.path().join(&entry.name);
    writeln!(
        out,
        "file:       {}",
        printable(path.as_os_str().as_bytes())
    )?;
    writeln!(out, "status:     {}", status(&entry))?;
    if let Some(Err(error)) = &entry.record {
        writeln!(out, "error:      {error}")?;
    }
    let Some(record) = record_of(&entry) else {
        return Ok(());
    };
    writeln!(out, "origin:     {}", printable(record.origin.bytes()))?;
    for other in &record.other_origins {
        writeln!(out, "also named: {}", printable(other.bytes()))?;
    }
    if record.links_left > 0 {
        writeln!(out, "names left: {} elsewhere", record.links_left)?;
    }
    writeln!(
        out,
        "signature:  {}",
        printable(record.signature.as_bytes())
    )?;
    writeln!(out, "database:   {}", printable(record.database.as_bytes()))?;
    writeln!(out, "since:      {}", record.quarantined)?;
    writeln!(out, "sha256:     {}", printable(record.sha256.as_bytes()))?;
    writeln!(out, "size:       {}", record.size)?;
    writeln!(out, "owner:      uid {} gid {}", record.uid, record.gid)?;
    writeln!(out, "mode:       {}", printable(record.mode.as_bytes()))?;
    writeln!(out, "modified:   {}", shown_time(&record.modified))?;
    for process in &record.processes {
        writeln!(out, "opened by:  {}", shown_process(process))?;
    }
    Ok(())
}

fn shown_process(process: &Process) -> String {
    format!(
        "pid {} tid {} uid {} {} ({})",
        process.pid,
        process.tid,
        process.uid,
        printable(process.comm.bytes()),
        printable(process.exe.bytes())
    )
}

fn shown_time(time: &Time) -> String {
    let since_1970 = u64::try_from(time.seconds).map(std::time::Duration::from_secs);
    let at = since_1970
        .ok()
        .and_then(|since| std::time::UNIX_EPOCH.checked_add(since));
    at.map_or_else(
        || format!("{} s after 1970", time.seconds),
        |at| humantime::format_rfc3339_seconds(at).to_string(),
    )
}

fn entry_of(store: &Store, name: &OsStr) -> Result<Entry, CommandError> {
    // What is shown escapes odd bytes, so that a shell may be asked for the rest.
    if Path::new(name).file_name() != Some(name) {
        return Err(CommandError::NoName(name.to_owned()));
    }
    let entry = store.entry(name.to_owned());
    if entry.record.is_none() && !entry.has_content {
        return Err(CommandError::Unknown(name.to_owned()));
    }
    Ok(entry)
}

fn delete(store: &Store, name: &OsStr) -> Result<(), CommandError> {
    let entry = entry_of(store, name)?;
    store.delete(&entry.name)?;
    println!("{}: deleted", printable(name.as_bytes()));
    Ok(())
}

/// The file goes back: by a second name where that is possible, for which nobody
/// has to open it, else by a copy. It gets its owner, mode and times.
fn restore(store: &Store, name: &OsStr, to: Option<&Path>) -> Result<(), CommandError> {
    let entry = entry_of(store, name)?;
    let record = match entry.record {
        Some(Ok(record)) => Some(record),
        Some(Err(error)) => return Err(error.into()),
        None => None,
    };
    if !entry.has_content {
        return Err(CommandError::NoContent(name.to_owned()));
    }
    let target = match (to, &record) {
        (Some(to), _) => std::path::absolute(to)?,
        (None, Some(record)) => record.origin.path(),
        (None, None) => return Err(CommandError::NoRecord(name.to_owned())),
    };
    let last = target
        .file_name()
        .ok_or_else(|| CommandError::NoName(target.clone().into_os_string()))?;
    let parent = enter(&target, to.is_some())?;
    let file = store.find(name)?;
    check_content(name, file.as_fd(), record.as_ref())?;
    match store::link(file.as_fd(), &parent, last) {
        Ok(()) => give_back(file.as_fd(), record.as_ref())?,
        Err(Errno::EEXIST) => return Err(CommandError::Exists(target)),
        // Another filesystem or mount, or one without links.
        Err(Errno::EXDEV | Errno::EPERM | Errno::EOPNOTSUPP) => {
            let source = open_again(file.as_fd()).map_err(|source| CommandError::Unreadable {
                name: name.to_owned(),
                source,
            })?;
            let new = store::nameless_in(parent.as_fd(), Mode::S_IRUSR | Mode::S_IWUSR)?;
            let copied = store::copy(source.as_fd(), new)?;
            give_back(copied.file().as_fd(), record.as_ref())?;
            match store::link(copied.file().as_fd(), &parent, last) {
                Ok(()) => {}
                Err(Errno::EEXIST) => return Err(CommandError::Exists(target)),
                Err(errno) => return Err(SyscallError::from_errno("linkat", errno).into()),
            }
        }
        Err(errno) => return Err(SyscallError::from_errno("linkat", errno).into()),
    }
    nix::unistd::fsync(&parent).map_err(|errno| SyscallError::from_errno("fsync", errno))?;
    store.delete(name)?;
    println!(
        "{}: restored to '{}'",
        printable(name.as_bytes()),
        printable(target.as_os_str().as_bytes())
    );
    println!(
        "clamd takes it for infected: where onacc watches, it is found again, unless it is excluded or the signature goes"
    );
    Ok(())
}

/// The directory of the target. To the place where it was, through no symlink:
/// whoever owns a directory on the way could have put one there since.
fn enter(target: &Path, chosen: bool) -> Result<OwnedFd, CommandError> {
    let resolve = if chosen {
        ResolveFlag::empty()
    } else {
        ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS
    };
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
        .resolve(resolve);
    let directory = target.parent().unwrap_or(Path::new("/"));
    openat2(nix::fcntl::AT_FDCWD, directory, how).map_err(|errno| CommandError::Place {
        path: target.to_owned(),
        source: SyscallError::from_errno("openat2", errno),
    })
}

/// Whether it is what was put in quarantine, if it can be read.
fn check_content(
    name: &OsStr,
    file: BorrowedFd<'_>,
    record: Option<&Record>,
) -> Result<(), CommandError> {
    let (Some(record), Ok(source)) = (record, open_again(file)) else {
        return Ok(());
    };
    let now = store::sha256(source.as_fd())?;
    if now == record.sha256 {
        return Ok(());
    }
    Err(CommandError::Altered {
        name: name.to_owned(),
        now,
        then: record.sha256.clone(),
    })
}

/// Opens what an `O_PATH` fd is of.
fn open_again(file: BorrowedFd<'_>) -> Result<File, Errno> {
    let own = own_path(file);
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    nix::fcntl::open(own.as_path(), flags, Mode::empty()).map(File::from)
}

fn own_path(file: BorrowedFd<'_>) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}

/// Owner, mode and times as they were. The owner comes first: a change of owner
/// takes the set-user-id bit.
fn give_back(file: BorrowedFd<'_>, record: Option<&Record>) -> Result<(), CommandError> {
    let Some(record) = record else {
        return Ok(());
    };
    let failed = |call| move |errno| SyscallError::from_errno(call, errno);
    let stat = fstat(file).map_err(failed("fstat"))?;
    let (uid, gid) = (Uid::from_raw(record.uid), Gid::from_raw(record.gid));
    if (stat.st_uid, stat.st_gid) != (record.uid, record.gid) {
        fchownat(file, "", Some(uid), Some(gid), AtFlags::AT_EMPTY_PATH)
            .map_err(failed("fchownat"))?;
    }
    let own = own_path(file);
    let mode = record.mode_bits().unwrap_or(0o600) & 0o7777;
    std::fs::set_permissions(&own, Permissions::from_mode(mode))?;
    let time = |time: &Time| TimeSpec::new(time.seconds, time.nanoseconds);
    utimensat(
        nix::fcntl::AT_FDCWD,
        &own,
        &time(&record.accessed),
        &time(&record.modified),
        UtimensatFlags::FollowSymlink,
    )
    .map_err(failed("utimensat"))?;
    Ok(())
}
