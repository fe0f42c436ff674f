//! Quarantine: infected files are removed, moved or copied, after the answer.
//!
//! Owns: the thread that does it, so that nobody waits (a bounded line of
//! requests; what does not fit in is said). It acts on the inode that was
//! scanned, by the event's own fd: the content is copied from that fd, and a name
//! is taken away only from that inode (`name`). Must not: answer an opener, or
//! hold an event's fd longer than it takes. Tested in `name`, and by
//! `tests/tests/quarantine.rs`.

pub mod name;
pub mod record;
pub mod store;
mod worker;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;

use crate::config::settings::Action;
use crate::kernel::fanotify::EventFile;
use crate::kernel::file::FileStat;
use crate::kernel::opener::Opener;
use crate::kernel::{SyscallError, process};
use crate::observe::counters::Counters;
use crate::respond::report;
use store::{Store, StoreError};
use worker::Worker;

/// Files that may wait; each holds a file descriptor.
const MOST_WAITING: usize = 256;

/// One infected file.
#[derive(Debug)]
pub struct Request {
    /// The file that was scanned.
    pub file: EventFile,
    /// Names that its openers used. Never empty; one may be empty, if the kernel gave none.
    pub paths: Vec<Vec<u8>>,
    /// What it was before the scan.
    pub stat: FileStat,
    /// What clamd calls it.
    pub signature: Arc<str>,
    /// clamd's version and that of its database.
    pub database: Arc<str>,
    /// Who opened it.
    pub openers: Vec<Opener>,
}

/// An action with its directory open and tried.
#[derive(Debug)]
pub struct Prepared {
    action: Action,
    store: Option<Store>,
}

impl Prepared {
    /// Opens the directory and tries it. `None` if nothing is to be done.
    ///
    /// # Errors
    /// The directory cannot be used.
    pub fn new(action: &Action) -> Result<Option<Self>, StoreError> {
        let store = match action {
            Action::Nothing => return Ok(None),
            Action::Remove => None,
            Action::Move(path) | Action::Copy(path) => {
                let store = Store::open(path)?;
                store.prepare()?;
                Some(store)
            }
        };
        let action = action.clone();
        Ok(Some(Self { action, store }))
    }

    /// What should be said of it at start.
    pub fn warning(&self) -> Option<String> {
        self.store.as_ref().and_then(Store::weakness)
    }

    /// Starts the thread. `in_flight` is how many event fds there may be in all.
    ///
    /// # Errors
    /// No more threads.
    pub fn start(
        self,
        in_flight: usize,
        counters: Arc<Counters>,
    ) -> Result<(Quarantine, JoinHandle<()>), SyscallError> {
        let (sender, receiver) = sync_channel((in_flight / 4).clamp(1, MOST_WAITING));
        let waiting = Arc::new(AtomicUsize::new(0));
        let quarantine = Quarantine {
            action: self.action.clone(),
            sender,
            waiting: Arc::clone(&waiting),
            counters: Arc::clone(&counters),
        };
        let mut worker = Worker::new(self.action, self.store, counters);
        let thread = process::spawn("onacc-quarant", move || {
            while let Ok(request) = receiver.recv() {
                worker.act(&request);
                drop(request);
                waiting.fetch_sub(1, Ordering::Relaxed);
            }
        })?;
        Ok((quarantine, thread))
    }
}

/// The way to the thread. It ends when all of these are gone and the line is empty.
#[derive(Clone, Debug)]
pub struct Quarantine {
    action: Action,
    sender: SyncSender<Request>,
    waiting: Arc<AtomicUsize>,
    counters: Arc<Counters>,
}

impl Quarantine {
    /// Hands a file over; never waits.
    pub fn send(&self, request: Request) {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let refused = match self.sender.try_send(request) {
            Ok(()) => return,
            Err(TrySendError::Full(request) | TrySendError::Disconnected(request)) => request,
        };
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        self.counters.quarantine_errors.up();
        let path = refused.paths.first().map_or(&[][..], Vec::as_slice);
        let why = "too many others wait; it is tried again when somebody opens it";
        report::cannot(&self.action, (path, None), None, why);
    }

    /// How many files wait or are under way.
    pub fn waiting(&self) -> WaitingFiles {
        WaitingFiles(Arc::clone(&self.waiting))
    }
}

/// See [`Quarantine::waiting`].
#[derive(Clone, Debug)]
pub struct WaitingFiles(Arc<AtomicUsize>);

impl WaitingFiles {
    /// How many there are now.
    pub fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}
