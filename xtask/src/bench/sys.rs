//! The benchmark's system calls that need unsafe code: the fanotify group of
//! the floor.
//!
//! Owns: every `unsafe` of this crate. Must not: decide anything. `nix` has a
//! fanotify of its own, which the agent does not use either
//! (facts/kernel.md, fanotify 13).

use std::{
    ffi::CStr,
    io,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
};

/// A group for permission events, as the agent's is.
#[derive(Debug)]
pub struct ContentGroup(OwnedFd);

impl ContentGroup {
    /// A new group, read by blocking reads.
    pub fn new() -> io::Result<Self> {
        let flags = libc::FAN_CLASS_CONTENT | libc::FAN_CLOEXEC;
        let event_flags = libc::O_RDONLY | libc::O_CLOEXEC | libc::O_LARGEFILE;
        // SAFETY: plain numbers.
        let fd = unsafe { libc::fanotify_init(flags, event_flags.cast_unsigned()) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self(own(fd)))
    }

    /// Asks for the permission events of opens on the filesystem of this path.
    pub fn mark_filesystem(&self, path: &CStr) -> io::Result<()> {
        self.mark(libc::FAN_MARK_FILESYSTEM, libc::FAN_OPEN_PERM, path)
    }

    /// Has the kernel ignore opens of this file, until it is written to.
    pub fn ignore_file(&self, path: &CStr) -> io::Result<()> {
        let flags = libc::FAN_MARK_IGNORED_MASK | libc::FAN_MARK_EVICTABLE;
        self.mark(flags, libc::FAN_OPEN_PERM, path)
    }

    /// Has the kernel ignore opens of this directory and of the files in it.
    pub fn ignore_directory(&self, path: &CStr) -> io::Result<()> {
        let flags = libc::FAN_MARK_IGNORE_SURV | libc::FAN_MARK_EVICTABLE;
        let mask = libc::FAN_OPEN_PERM | libc::FAN_EVENT_ON_CHILD | libc::FAN_ONDIR;
        self.mark(flags, mask, path)
    }

    fn mark(&self, flags: u32, mask: u64, path: &CStr) -> io::Result<()> {
        // SAFETY: the path is a C string that outlives the call; the rest are
        // plain numbers.
        let result = unsafe {
            libc::fanotify_mark(
                self.0.as_raw_fd(),
                libc::FAN_MARK_ADD | flags,
                mask,
                libc::AT_FDCWD,
                path.as_ptr(),
            )
        };
        if result == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }
}

impl AsFd for ContentGroup {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Takes ownership of a descriptor that the kernel has just given us.
pub fn own(fd: RawFd) -> OwnedFd {
    // SAFETY: callers pass a descriptor that a system call has just created for
    // them, or that came with an event just read, and that nothing else owns.
    unsafe { OwnedFd::from_raw_fd(fd) }
}
