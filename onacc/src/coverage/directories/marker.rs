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
use crate::kernel::file::{self, FilesystemKind};
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
    /// As [`Group::unmark_inode`]; no mark is no error.
    fn unmark_file(&self, file: &OwnedFd);
    /// Marks on overlays go into this group from now on: handing out an event of
    /// an overlay opens a file below it (`intake::lanes`).
    fn use_for_overlays(&mut self, group: Arc<Group>);
    /// The group for marks on what is in this directory.
    fn group_at(&self, directory: &OwnedFd) -> Arc<Group>;
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
    overlays: Option<Arc<Group>>,
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
            overlays: None,
            inotify: Inotify::new()?,
        })
    }

    /// The group for marks on what this is. Without overlays in scope, nothing
    /// is asked.
    fn group(&self, at: BorrowedFd<'_>) -> &Arc<Group> {
        let is_overlay =
            || file::filesystem_kind(at).is_ok_and(|kind| kind == FilesystemKind::Overlay);
        match &self.overlays {
            Some(overlays) if is_overlay() => overlays,
            _ => &self.group,
        }
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
        self.group(inside.fd()).mark_directory_in(inside, name)
    }

    fn unwatch(&self, watch: WatchId) {
        self.inotify.unwatch(watch);
    }

    fn mark(&self, directory: &OwnedFd) -> Result<(), MarkError> {
        let at = directory.as_fd();
        self.group(at).mark_directory(at)
    }

    fn unmark(&self, directory: &OwnedFd) {
        // Absent is what is wanted; a mark that stays costs events, not safety.
        let at = directory.as_fd();
        let _stays_at_worst = self.group(at).unmark_directory(at);
    }

    fn mark_file(&self, file: &OwnedFd) -> Result<(), MarkError> {
        self.group(file.as_fd()).mark_inode(file.as_fd())
    }

    fn unmark_file(&self, file: &OwnedFd) {
        // As with directories.
        let _stays_at_worst = self.group(file.as_fd()).unmark_inode(file.as_fd());
    }

    fn use_for_overlays(&mut self, group: Arc<Group>) {
        self.overlays = Some(group);
    }

    fn group_at(&self, directory: &OwnedFd) -> Arc<Group> {
        Arc::clone(self.group(directory.as_fd()))
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
