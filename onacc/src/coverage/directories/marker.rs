//! Where marks and watches are placed: the kernel, or a test's stand-in.
//!
//! The seam exists to let tests run out of watches without lowering a limit of
//! the machine. Must not: decide anything.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use crate::kernel::SyscallError;
use crate::kernel::directory::InDirectory;
use crate::kernel::fanotify::{Group, MarkError};
use crate::kernel::inotify::{
    Inotify, InotifyBuffer, InotifyEvents, WatchError, WatchId, WatchedInode,
};

/// Places marks and watches. All fds may be `O_PATH`.
pub trait Marker {
    /// As [`Inotify::watch`].
    ///
    /// # Errors
    /// No watch.
    fn watch(&self, directory: &OwnedFd) -> Result<WatchId, WatchError>;
    /// As [`Inotify::watch_in`].
    ///
    /// # Errors
    /// No watch.
    fn watch_in(&self, inside: &InDirectory<'_>, name: &CStr) -> Result<WatchId, WatchError>;
    /// As [`Group::mark_directory_in`].
    ///
    /// # Errors
    /// No mark.
    fn mark_in(&self, inside: &InDirectory<'_>, name: &CStr) -> Result<(), MarkError>;
    /// As [`Inotify::unwatch`].
    fn unwatch(&self, watch: WatchId);
    /// As [`Group::mark_directory`].
    ///
    /// # Errors
    /// No mark.
    fn mark(&self, directory: &OwnedFd) -> Result<(), MarkError>;
    /// As [`Group::unmark_directory`]; no mark is no error.
    fn unmark(&self, directory: &OwnedFd);
    /// As [`Group::mark_inode`].
    ///
    /// # Errors
    /// No mark.
    fn mark_file(&self, file: &OwnedFd) -> Result<(), MarkError>;
    /// As [`Inotify::read`].
    ///
    /// # Errors
    /// A failed `read(2)`.
    fn read<'a>(&self, buffer: &'a mut InotifyBuffer) -> Result<InotifyEvents<'a>, SyscallError>;
    /// As [`Inotify::watched_inodes`].
    ///
    /// # Errors
    /// `/proc` cannot be read.
    fn watched_inodes(&self) -> Result<Vec<WatchedInode>, SyscallError>;
    /// Readable when events wait.
    fn events_fd(&self) -> BorrowedFd<'_>;
}

/// The kernel.
#[derive(Debug)]
pub struct KernelMarker {
    group: Arc<Group>,
    inotify: Inotify,
}

impl KernelMarker {
    /// Marks go into `group`; the inotify fd is its own.
    ///
    /// # Errors
    /// No inotify instance is left.
    pub fn new(group: Arc<Group>) -> Result<Self, SyscallError> {
        Ok(Self {
            group,
            inotify: Inotify::new()?,
        })
    }
}

impl Marker for KernelMarker {
    fn watch(&self, directory: &OwnedFd) -> Result<WatchId, WatchError> {
        self.inotify.watch(directory.as_fd())
    }

    fn watch_in(&self, inside: &InDirectory<'_>, name: &CStr) -> Result<WatchId, WatchError> {
        self.inotify.watch_in(inside, name)
    }

    fn mark_in(&self, inside: &InDirectory<'_>, name: &CStr) -> Result<(), MarkError> {
        self.group.mark_directory_in(inside, name)
    }

    fn unwatch(&self, watch: WatchId) {
        self.inotify.unwatch(watch);
    }

    fn mark(&self, directory: &OwnedFd) -> Result<(), MarkError> {
        self.group.mark_directory(directory.as_fd())
    }

    fn unmark(&self, directory: &OwnedFd) {
        // Absent is what is wanted; a mark that stays costs events, not safety.
        let _stays_at_worst = self.group.unmark_directory(directory.as_fd());
    }

    fn mark_file(&self, file: &OwnedFd) -> Result<(), MarkError> {
        self.group.mark_inode(file.as_fd())
    }

    fn read<'a>(&self, buffer: &'a mut InotifyBuffer) -> Result<InotifyEvents<'a>, SyscallError> {
        self.inotify.read(buffer)
    }

    fn watched_inodes(&self) -> Result<Vec<WatchedInode>, SyscallError> {
        self.inotify.watched_inodes()
    }

    fn events_fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }
}
