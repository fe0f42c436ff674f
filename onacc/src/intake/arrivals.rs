//! Extra scanning (`OnAccessExtraScanning`): files that are created, linked or
//! moved into the scope are scanned before anyone opens them, and so is what is
//! in a directory that is moved in. (Files that are closed after writing come
//! from the reader.)
//!
//! Opens nothing but directories, and those as such: a FIFO, a socket or a device
//! is never opened. Must not: be waited for. Tested by `tests/`.

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::dir::{Dir, Entry, Type};
use nix::fcntl::{OFlag, openat};
use nix::poll::PollFlags;
use nix::sys::stat::Mode;

use crate::coverage::filesystems::open_directory;
use crate::kernel::SyscallError;
use crate::kernel::fanotify::{Arrival, ArrivalWatch, FilesystemId, MarkError};
use crate::kernel::file;
use crate::kernel::handle::FileHandle;
use crate::kernel::process;
use crate::kernel::wake::{Mailbox, sleep};
use crate::observe::counters::Counters;
use crate::policy::Policy;
use crate::scan::{PrescanMessage, Written};

/// Files handed over while so many wait are held back: the prescanner's own
/// limit must not be what loses them.
const MOST_AHEAD: usize = 4096;
/// How long to hold back.
const PAUSE: Duration = Duration::from_millis(5);

/// What the thread is told.
#[derive(Debug)]
pub enum ArrivalsMessage {
    /// Mounts or scope have changed.
    Policy(Arc<Policy>),
    /// End.
    Stop,
}

/// The watch, shared by who marks filesystems and the thread that reads.
#[derive(Debug)]
pub struct Arrivals {
    watch: ArrivalWatch,
    devices: Mutex<HashMap<FilesystemId, u32>>,
    messages: Mailbox<ArrivalsMessage>,
}

impl Arrivals {
    /// Makes the watch and starts the thread, which is never waited for: it may
    /// wait for a directory.
    ///
    /// # Errors
    /// A kernel before 5.17, or no thread or fd left.
    pub fn start(
        prescans: Mailbox<PrescanMessage>,
        counters: Arc<Counters>,
        policy: Arc<Policy>,
    ) -> Result<Arc<Self>, SyscallError> {
        let arrivals = Arc::new(Self {
            watch: ArrivalWatch::new()?,
            devices: Mutex::default(),
            messages: Mailbox::new()?,
        });
        let reader = Reader {
            arrivals: Arc::clone(&arrivals),
            prescans,
            counters,
            policy,
        };
        process::spawn("onacc-arrivals", move || reader.run())?;
        Ok(arrivals)
    }

    /// Tells of what comes into a filesystem, from now on.
    ///
    /// # Errors
    /// As [`ArrivalWatch::watch`].
    pub fn watch(&self, dev: u32, root: BorrowedFd<'_>) -> Result<(), MarkError> {
        let id = self.watch.watch(root)?;
        let mut devices = self.devices.lock().unwrap_or_else(PoisonError::into_inner);
        devices.insert(id, dev);
        Ok(())
    }

    /// Tells the thread something.
    pub fn tell(&self, message: ArrivalsMessage) {
        self.messages.send(message);
    }

    fn device(&self, id: FilesystemId) -> Option<u32> {
        let devices = self.devices.lock().unwrap_or_else(PoisonError::into_inner);
        devices.get(&id).copied()
    }
}

/// State of the thread.
struct Reader {
    arrivals: Arc<Arrivals>,
    prescans: Mailbox<PrescanMessage>,
    counters: Arc<Counters>,
    policy: Arc<Policy>,
}

impl Reader {
    fn run(mut self) {
        let mut buffer = vec![0; 64 * 1024];
        let mut messages = Vec::new();
        loop {
            self.arrivals.messages.drain(&mut messages);
            for message in messages.drain(..) {
                match message {
                    ArrivalsMessage::Policy(policy) => self.policy = policy,
                    ArrivalsMessage::Stop => return,
                }
            }
            match self.arrivals.watch.read(&mut buffer) {
                Ok(come) if come.is_empty() => self.rest(),
                Ok(come) => {
                    for arrival in &come {
                        self.counters.arrivals.up();
                        self.look_at(arrival);
                    }
                }
                Err(error) => {
                    tracing::error!("onacc: {error}; extra scanning ends");
                    return;
                }
            }
        }
    }

    fn look_at(&self, arrival: &Arrival) {
        let found = self.arrivals.device(arrival.filesystem).and_then(|dev| {
            let on = open_directory(&self.policy.mounts, dev)?;
            arrival.handle.open(on.as_fd()).ok()
        });
        // Gone already: then there is nothing to scan.
        let Some(file) = found else { return };
        if arrival.with_content {
            self.walk(&file, arrival.handle);
        } else {
            self.hand_over(&file, arrival.handle);
        }
    }

    /// Hands a regular file over to be scanned; anything else is left alone.
    fn hand_over(&self, file: &OwnedFd, handle: FileHandle) {
        let Ok(stat) = file::stat(file.as_fd()) else {
            return;
        };
        let wanted = stat.regular
            && self.policy.opens_at_once(&stat)
            && self.policy.by_file(&stat).is_none();
        if !wanted {
            return;
        }
        while self.prescans.len() > MOST_AHEAD {
            std::thread::sleep(PAUSE);
        }
        let written = Written { handle, stat };
        self.prescans.send(PrescanMessage::Written(written));
    }

    /// All that is in a directory, on its filesystem. What is still to be listed
    /// is kept by handle: many directories, no fd of any.
    fn walk(&self, top: &OwnedFd, handle: FileHandle) {
        let Ok(device) = file::stat(top.as_fd()).map(|stat| stat.key.dev) else {
            return;
        };
        let mut directories = VecDeque::from([handle]);
        while let Some(handle) = directories.pop_front() {
            let directory = open_directory(&self.policy.mounts, device)
                .and_then(|on| handle.open(on.as_fd()).ok());
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
            let listing = directory
                .as_ref()
                .and_then(|directory| Dir::openat(directory, ".", flags, Mode::empty()).ok());
            if let (Some(directory), Some(mut listing)) = (&directory, listing) {
                for entry in listing.iter().filter_map(Result::ok) {
                    self.visit(directory, (&entry, device), &mut directories);
                }
            }
        }
    }

    fn visit(
        &self,
        directory: &OwnedFd,
        (entry, device): (&Entry, u32),
        directories: &mut VecDeque<FileHandle>,
    ) {
        let name = entry.file_name();
        let kind = entry.file_type();
        let other = !matches!(kind, None | Some(Type::File | Type::Directory));
        if other || name == c"." || name == c".." {
            return;
        }
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let Ok(found) = openat(directory, name, flags, Mode::empty()) else {
            return;
        };
        let on_device = file::stat(found.as_fd()).is_ok_and(|stat| stat.key.dev == device);
        let Some(handle) = FileHandle::of(found.as_fd()).ok().filter(|_| on_device) else {
            return;
        };
        if kind == Some(Type::Directory) || file::is_directory(found.as_fd()) {
            directories.push_back(handle);
        } else {
            self.hand_over(&found, handle);
        }
    }

    fn rest(&self) {
        let messages = &self.arrivals.messages;
        if !messages.begin_sleep() {
            return;
        }
        let slept = sleep(
            [
                (messages.waker().as_fd(), PollFlags::POLLIN),
                (self.arrivals.watch.as_fd(), PollFlags::POLLIN),
            ],
            None::<Instant>,
        );
        messages.end_sleep(slept.is_ok_and(|[notified, _]| notified));
    }
}
