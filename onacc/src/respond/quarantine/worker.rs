//! What the quarantine thread does with one file.
//!
//! Order: copy the content in (no name yet), sidecar, name, then take the
//! original's names away, then mark the sidecar as done. Must not: take away a
//! name before the copy is on disk, or leave a copy of what stayed where it was.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use nix::sys::stat::fstat;
use onacc_common::InodeKey;

use super::Request;
use super::name::{Identity, Name, NameError};
use super::record::{FORMAT, Process, Record, State, Text, Time};
use super::store::{Copied, Store, StoreError};
use crate::config::settings::Action;
use crate::kernel::SyscallError;
use crate::kernel::file::{self, FileStat};
use crate::observe::counters::Counters;
use crate::policy::stamps;
use crate::respond::report;

/// A file that could not be dealt with is left alone for so long.
const PAUSE: Duration = Duration::from_secs(10);
/// How often its present name is asked for while somebody renames it.
const TRIES: usize = 200;
/// How often a file is copied that is written to meanwhile.
const COPIES: usize = 3;
/// Files that are remembered.
const MOST_REMEMBERED: usize = 4096;

/// A file stays as it is.
#[derive(Debug, thiserror::Error)]
enum Failure {
    /// It is in the quarantine directory.
    #[error("it is in the quarantine directory")]
    Kept,
    /// It has no name any more.
    #[error("it was deleted meanwhile")]
    Gone,
    /// Its content is another one.
    #[error("it has changed since it was scanned")]
    Changed,
    /// No name of it is to be found.
    #[error(
        "no name of it can be found: it is renamed all the time, or lies on a mount of another namespace"
    )]
    Nowhere,
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Name(#[from] NameError),
    #[error(transparent)]
    Syscall(#[from] SyscallError),
}

pub(super) struct Worker {
    action: Action,
    store: Option<Store>,
    counters: Arc<Counters>,
    /// Versions that need nothing more, until then.
    remembered: HashMap<InodeKey, (FileStat, Option<Instant>)>,
}

impl Worker {
    pub(super) fn new(action: Action, store: Option<Store>, counters: Arc<Counters>) -> Self {
        Self {
            action,
            store,
            counters,
            remembered: HashMap::new(),
        }
    }

    /// Deals with a file, and says what became of it.
    pub(super) fn act(&mut self, request: &Request) {
        let hint = request.paths.first().map_or(&[][..], Vec::as_slice);
        let stat = match file::stat(request.file.as_fd()) {
            Ok(stat) => stat,
            Err(error) => return self.failed(hint, None, &error.into()),
        };
        if self.needs_nothing(&stat) {
            self.counters.quarantine_skipped.up();
            return;
        }
        let done = match self.action {
            Action::Remove => self.remove(request, &stat),
            Action::Move(_) => self.move_in(request),
            Action::Copy(_) => self.copy_in(request),
            Action::Nothing => return,
        };
        match done {
            Ok(()) => {
                self.counters.quarantined.up();
                if matches!(self.action, Action::Copy(_)) {
                    self.remember(stat, None);
                }
            }
            Err(Failure::Kept | Failure::Gone) => {
                self.counters.quarantine_skipped.up();
                let path = report::name_of(hint, stat.links);
                tracing::debug!("onacc: {path}: it is deleted, or in quarantine: nothing to do");
                self.remember(stat, Some(Instant::now() + PAUSE));
            }
            Err(error) => {
                let present = file::path_buf_of(request.file.as_fd());
                self.failed(hint, present.as_deref(), &error);
                self.remember(stat, Some(Instant::now() + PAUSE));
            }
        }
    }

    fn failed(&self, hint: &[u8], present: Option<&Path>, error: &Failure) {
        self.counters.quarantine_errors.up();
        let directory = self.store.as_ref().map(Store::path);
        report::cannot(&self.action, (hint, present), directory, &error.to_string());
    }

    fn needs_nothing(&mut self, stat: &FileStat) -> bool {
        self.remembered.get(&stat.key).is_some_and(|(old, until)| {
            stamps::same_version(old, stat) && until.is_none_or(|until| Instant::now() < until)
        })
    }

    fn remember(&mut self, stat: FileStat, until: Option<Instant>) {
        if self.remembered.len() >= MOST_REMEMBERED {
            self.remembered.clear();
        }
        self.remembered.insert(stat.key, (stat, until));
    }

    fn remove(&self, request: &Request, now: &FileStat) -> Result<(), Failure> {
        if (now.size, now.modified) != (request.stat.size, request.stat.modified) {
            return Err(Failure::Changed);
        }
        let taken = self.take_names(request)?;
        for (name, hint) in &taken {
            report::removed((hint, Some(name)));
        }
        say_what_is_left(request, &taken);
        Ok(())
    }

    fn move_in(&self, request: &Request) -> Result<(), Failure> {
        // Before the copy: most of what is opened in vain is in quarantine.
        self.check_place(request)?;
        let (store, copied) = self.copied(request)?;
        let mut record = record(request, &copied, State::Pending)?;
        store.keep(&copied, &mut record)?;
        let name = record.name.path();
        let taken = match self.take_names(request) {
            Ok(taken) => taken,
            Err(error) => {
                store.delete(name.as_os_str())?;
                return Err(error);
            }
        };
        record.state = State::Moved;
        let names: Vec<&Path> = taken.iter().map(|(name, _)| name.as_path()).collect();
        if let Some((first, others)) = names.split_first() {
            record.origin = Text::of_path(first);
            record.other_origins = others.iter().map(|path| Text::of_path(path)).collect();
        }
        record.links_left = links(request);
        if let Err(error) = store.update(&record) {
            tracing::warn!(
                "onacc: the record of {} in quarantine still says \"pending\": {error}",
                report::shown(&name)
            );
        }
        let to = store.path().join(name);
        for (name, hint) in &taken {
            report::moved((hint, Some(name)), &to);
        }
        say_what_is_left(request, &taken);
        Ok(())
    }

    fn copy_in(&self, request: &Request) -> Result<(), Failure> {
        self.check_place(request)?;
        let (store, copied) = self.copied(request)?;
        let mut record = record(request, &copied, State::Copied)?;
        record.links_left = links(request);
        store.keep(&copied, &mut record)?;
        let hint = request.paths.first().map_or(&[][..], Vec::as_slice);
        let present = file::path_buf_of(request.file.as_fd());
        let to = store.path().join(record.name.path());
        report::copied((hint, present.as_deref()), &to);
        Ok(())
    }

    fn copied(&self, request: &Request) -> Result<(&Store, Copied), Failure> {
        let store = self.store.as_ref().ok_or(Failure::Nowhere)?;
        let mut tries = COPIES;
        loop {
            match store.copy_in(request.file.as_fd()) {
                Ok(copied) => return Ok((store, copied)),
                Err(StoreError::Changing) if tries > 1 => tries -= 1,
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Whether there is something to do: it has a name, and not in the
    /// quarantine directory itself.
    fn check_place(&self, request: &Request) -> Result<(), Failure> {
        let file = Identity::of_open(request.file.as_fd())?;
        if links(request) == 0 {
            return Err(Failure::Gone);
        }
        for path in names_of(request) {
            if let Ok(name) = Name::find(&path)
                && name.is_of(file)
                && self.keeps(&name)?
            {
                return Err(Failure::Kept);
            }
        }
        Ok(())
    }

    fn keeps(&self, name: &Name) -> Result<bool, SyscallError> {
        let Some(store) = &self.store else {
            return Ok(false);
        };
        Ok(store.identity()? == name.directory()?)
    }

    /// Takes away the names that the openers used, or the one that the file has
    /// by now. At least one; each with the opener's name for it.
    fn take_names<'a>(&self, request: &'a Request) -> Result<Vec<(PathBuf, &'a [u8])>, Failure> {
        let file = Identity::of_open(request.file.as_fd())?;
        let hint = request.paths.first().map_or(&[][..], Vec::as_slice);
        let mut taken = Vec::new();
        for path in &request.paths {
            match self.take(Path::new(OsStr::from_bytes(path)), file) {
                Ok(name) => taken.push((name, path.as_slice())),
                Err(Failure::Name(NameError::Other(_) | NameError::Swapped(_))) => {}
                Err(error) if taken.is_empty() => return Err(error),
                Err(error) => report::cannot(&self.action, (path, None), None, &error.to_string()),
            }
        }
        for _ in 0..TRIES {
            if !taken.is_empty() {
                return Ok(taken);
            }
            if links(request) == 0 {
                return Err(Failure::Gone);
            }
            let Some(path) = file::path_buf_of(request.file.as_fd()) else {
                break;
            };
            match self.take(&path, file) {
                Ok(name) => taken.push((name, hint)),
                Err(Failure::Name(NameError::Other(_) | NameError::Swapped(_))) => {
                    std::thread::yield_now();
                }
                Err(error) => return Err(error),
            }
        }
        Err(Failure::Nowhere)
    }

    fn take(&self, path: &Path, file: Identity) -> Result<PathBuf, Failure> {
        let name = Name::find(path)?;
        if name.is_of(file) && self.keeps(&name)? {
            return Err(Failure::Kept);
        }
        name.remove(file)?;
        Ok(path.to_owned())
    }
}

/// How many names the file has; 0 if it cannot be told.
fn links(request: &Request) -> u64 {
    file::stat(request.file.as_fd()).map_or(0, |stat| u64::from(stat.links))
}

/// What the file may be called: by now, and by its openers.
fn names_of(request: &Request) -> Vec<PathBuf> {
    let mut names: Vec<PathBuf> = file::path_buf_of(request.file.as_fd())
        .into_iter()
        .collect();
    for path in &request.paths {
        let path = PathBuf::from(OsStr::from_bytes(path));
        if !path.as_os_str().is_empty() && !names.contains(&path) {
            names.push(path);
        }
    }
    names
}

fn record(request: &Request, copied: &Copied, state: State) -> Result<Record, SyscallError> {
    let stat =
        fstat(request.file.as_fd()).map_err(|errno| SyscallError::from_errno("fstat", errno))?;
    let origin = names_of(request).into_iter().next().unwrap_or_default();
    let time = |seconds, nanoseconds| Time {
        seconds,
        nanoseconds,
    };
    Ok(Record {
        format: FORMAT,
        state,
        name: Text::of(b""),
        origin: Text::of_path(&origin),
        other_origins: Vec::new(),
        links_left: 0,
        signature: request.signature.to_string(),
        database: request.database.to_string(),
        sha256: copied.sha256.clone(),
        size: copied.size,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mode: format!("{:04o}", stat.st_mode & 0o7777),
        accessed: time(stat.st_atime, stat.st_atime_nsec),
        modified: time(stat.st_mtime, stat.st_mtime_nsec),
        changed: time(stat.st_ctime, stat.st_ctime_nsec),
        device: stat.st_dev,
        inode: stat.st_ino,
        quarantined: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
        processes: request.openers.iter().map(Process::from).collect(),
    })
}

fn say_what_is_left(request: &Request, taken: &[(PathBuf, &[u8])]) {
    let left = links(request);
    if let (Some((name, _)), 1..) = (taken.first(), left) {
        report::links_left(name, left);
    }
}
