//! The fanotify group's fd: creating it, reading from it, writing answers.
//!
//! Must not: block (the fd is non-blocking, a blocked read would keep the group
//! alive after it was closed), or read an event that has no place in the fd
//! budget (facts: on EMFILE the kernel denies the open).

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use super::budget::FdBudget;
use super::closer::Closer;
use super::event::{Events, METADATA_LEN, ParseError};
use super::open_groups;
use super::pending::{Answer, EventFile, PendingEvent};
use crate::kernel::SyscallError;

/// What a group is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupKind {
    /// Prevention: openers wait for an answer.
    Permission,
    /// Notify-only: openers do not wait.
    Notification,
}

/// Which events a group asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Opens.
    pub opens: Opens,
    /// Closes after writing.
    pub closes: bool,
}

impl Wanted {
    /// All that there is.
    pub const ALL: Self = Self {
        opens: Opens::All,
        closes: true,
    };
}

/// Which opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opens {
    /// Every one, for execution too.
    All,
    /// Those for execution (since 5.0).
    Execution,
    /// None.
    None,
}

/// The group cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// `CAP_SYS_ADMIN` is missing in the first user namespace.
    #[error(
        "fanotify_init: {0}; onacc needs CAP_SYS_ADMIN in the first user namespace: run it as root, in a container as privileged"
    )]
    Permission(std::io::Error),
    /// The kernel has no permission events.
    #[error(
        "fanotify_init: {0}; this kernel has no permission events (CONFIG_FANOTIFY_ACCESS_PERMISSIONS): use another kernel, or OnAccessPrevention no"
    )]
    Unsupported(std::io::Error),
    /// Anything else.
    #[error(transparent)]
    Other(#[from] SyscallError),
}

/// A fanotify group. Closing it (dropping the last `Arc`) lets every opener go
/// that still waits (facts/kernel.md, fanotify 8).
#[derive(Debug)]
pub struct Group {
    fd: OwnedFd,
    kind: GroupKind,
    wanted: Wanted,
    closer: Option<Closer>,
}

/// What a read has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// There was no place in the budget, so that nothing was read.
    NoPlace,
    /// As much as there was room for: more may wait.
    Full,
    /// All that waited, at that moment.
    All,
}

/// Room for one read. Its size bounds how many fds one read can install.
#[derive(Debug)]
pub struct ReadBuffer(Vec<u8>);

impl ReadBuffer {
    /// Events that one read takes at most.
    pub const EVENTS: usize = 128;

    /// An empty buffer.
    pub fn new() -> Self {
        Self(vec![0; Self::EVENTS * METADATA_LEN])
    }
}

impl Default for ReadBuffer {
    fn default() -> Self {
        Self::new()
    }
}

impl Group {
    /// Makes a group. The event fds are read-only and do not touch the atime
    /// (`O_NOATIME`), which would dirty the inode that was just judged.
    ///
    /// # Errors
    /// [`InitError`] says which privilege or kernel option is missing.
    pub fn new(kind: GroupKind) -> Result<Arc<Self>, InitError> {
        Self::wanting(kind, Wanted::ALL)
    }

    /// Makes a group whose marks ask for these events.
    ///
    /// # Errors
    /// As [`Group::new`].
    pub fn wanting(kind: GroupKind, wanted: Wanted) -> Result<Arc<Self>, InitError> {
        Self::make(kind, wanted, None)
    }

    /// The same for filesystems on which a close can wait for somebody: no file of
    /// an event is closed by whoever drops it.
    ///
    /// # Errors
    /// As [`Group::new`], or there are no more threads.
    pub fn closing_elsewhere(kind: GroupKind, wanted: Wanted) -> Result<Arc<Self>, InitError> {
        Self::make(kind, wanted, Some(Closer::start()?))
    }

    fn make(
        kind: GroupKind,
        wanted: Wanted,
        closer: Option<Closer>,
    ) -> Result<Arc<Self>, InitError> {
        let class = match kind {
            GroupKind::Permission => libc::FAN_CLASS_CONTENT,
            GroupKind::Notification => libc::FAN_CLASS_NOTIF,
        };
        // The usual queue holds 16,384 events, less than a burst of opens has, and
        // loses the rest. Whoever reads sees to it that it does not grow for ever.
        let flags = class
            | libc::FAN_UNLIMITED_QUEUE
            | libc::FAN_CLOEXEC
            | libc::FAN_NONBLOCK
            | libc::FAN_UNLIMITED_MARKS
            | libc::FAN_REPORT_TID;
        let event_flags = libc::O_RDONLY | libc::O_LARGEFILE | libc::O_CLOEXEC | libc::O_NOATIME;
        // SAFETY: fanotify_init takes two integers and touches no memory of ours.
        let fd = unsafe { libc::fanotify_init(flags, event_flags.cast_unsigned()) };
        if fd < 0 {
            let error = std::io::Error::last_os_error();
            return Err(match error.raw_os_error() {
                Some(libc::EPERM) => InitError::Permission(error),
                Some(libc::EINVAL | libc::ENOSYS) => InitError::Unsupported(error),
                _ => InitError::Other(SyscallError {
                    call: "fanotify_init",
                    source: error,
                }),
            });
        }
        // SAFETY: the kernel just gave this fd to us alone.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        open_groups::enter(fd.as_raw_fd());
        Ok(Arc::new(Self {
            fd,
            kind,
            wanted,
            closer,
        }))
    }

    /// What the group is for.
    pub fn kind(&self) -> GroupKind {
        self.kind
    }

    /// Which events its marks ask for.
    pub fn wanted(&self) -> Wanted {
        self.wanted
    }

    /// Reads as many events as there is room for in the budget and hands each,
    /// as the owner of its fd, to `each`. An event that is dropped is answered
    /// with `on_drop`.
    ///
    /// # Errors
    /// A failed read, or bytes that are not what fanotify(7) says. In the
    /// latter case the events before the fault were handed over.
    pub fn read(
        self: &Arc<Self>,
        buffer: &mut ReadBuffer,
        source: (&Arc<FdBudget>, Answer),
        mut each: impl FnMut(PendingEvent),
    ) -> Result<Taken, ReadError> {
        let (budget, on_drop) = source;
        let mut places = budget.reserve(ReadBuffer::EVENTS);
        if places.places() == 0 {
            return Ok(Taken::NoPlace);
        }
        let bytes = &mut buffer.0[..places.places() * METADATA_LEN];
        let got = loop {
            // SAFETY: the pointer and length are those of a live, writable slice.
            let got =
                unsafe { libc::read(self.fd.as_raw_fd(), bytes.as_mut_ptr().cast(), bytes.len()) };
            if let Ok(got) = usize::try_from(got) {
                break got;
            }
            let error = SyscallError::last("read of the fanotify group");
            match error.errno() {
                libc::EINTR => {}
                libc::EAGAIN => return Ok(Taken::All),
                _ => return Err(error.into()),
            }
        };
        let full = got == bytes.len();
        for event in Events::new(&bytes[..got]) {
            let event = event?;
            let file = if event.fd >= 0 {
                // SAFETY: the kernel installed this fd for this event and
                // nobody else knows of it (fanotify(7)).
                let fd = unsafe { OwnedFd::from_raw_fd(event.fd) };
                let permit = places.take();
                permit.map(|permit| EventFile::new(fd, permit).closed_by(self.closer.as_ref()))
            } else {
                None
            };
            each(PendingEvent::new(self, event, file, on_drop));
        }
        Ok(if full { Taken::Full } else { Taken::All })
    }

    /// How many events wait in the kernel's queue (`FIONREAD`, fanotify(7)).
    /// 0 if the kernel does not tell.
    pub fn queued(&self) -> usize {
        let mut bytes: libc::c_int = 0;
        // SAFETY: FIONREAD writes one int to the live place that it is given.
        let result = unsafe { libc::ioctl(self.fd.as_raw_fd(), libc::FIONREAD, &raw mut bytes) };
        let bytes = usize::try_from(bytes).unwrap_or(0);
        if result == 0 { bytes / METADATA_LEN } else { 0 }
    }

    /// Writes one answer. The kernel wants one answer a write
    /// (`fs/notify/fanotify/fanotify_user.c`, `fanotify_write`).
    pub(super) fn respond(&self, event_fd: RawFd, answer: Answer) -> Result<(), SyscallError> {
        let response = libc::fanotify_response {
            fd: event_fd,
            response: match answer {
                Answer::Allow => libc::FAN_ALLOW,
                Answer::Deny => libc::FAN_DENY,
            },
        };
        loop {
            // SAFETY: the pointer and length are those of a live structure
            // without padding (two 32-bit integers).
            let wrote = unsafe {
                libc::write(
                    self.fd.as_raw_fd(),
                    (&raw const response).cast(),
                    size_of_val(&response),
                )
            };
            if wrote >= 0 {
                return Ok(());
            }
            let error = SyscallError::last("write of a fanotify answer");
            match error.errno() {
                libc::EINTR => {}
                // The opener was killed while it waited: there is nobody to answer.
                libc::ENOENT => return Ok(()),
                // The process is being ended: everybody goes on already.
                _ if open_groups::are_closed() => return Ok(()),
                _ => return Err(error),
            }
        }
    }

    pub(super) fn raw(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        open_groups::leave(self.fd.as_raw_fd());
    }
}

impl AsFd for Group {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A read of the group failed.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The system call.
    #[error(transparent)]
    Syscall(#[from] SyscallError),
    /// The bytes.
    #[error(transparent)]
    Parse(#[from] ParseError),
}
