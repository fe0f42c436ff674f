//! Marks: which opens the kernel reports, and which it keeps to itself.
//!
//! Must not: know why a mark is placed (`coverage/` does). Facts used, all from
//! our own probes on 6.1, 6.12 and 6.18 (ARCHITECTURE.md): an ignore mark without
//! `FAN_MARK_IGNORED_SURV_MODIFY` goes when the inode is written to; adding one
//! to an inode that is open for writing succeeds and adds nothing.

use std::ffi::CStr;
use std::os::fd::{AsFd as _, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;

use super::group::{Group, GroupKind, Opens};
use crate::kernel::SyscallError;
use crate::kernel::directory::InDirectory;

/// `FAN_MARK_EVICTABLE` (include/uapi/linux/fanotify.h, since 5.19): the mark
/// does not pin the inode and goes with it.
pub(super) const FAN_MARK_EVICTABLE: u32 = 0x200;

/// A bit that keeps a mark in being and raises no event: on a file there are no
/// events of directories.
const ANCHOR: u64 = libc::FAN_ONDIR;

/// A mark could not be placed or removed.
#[derive(Debug, thiserror::Error)]
pub enum MarkError {
    /// This filesystem takes no permission marks (procfs and its like).
    #[error("this kind of filesystem takes no fanotify marks")]
    Refused,
    /// There is no such mark.
    #[error("there is no such mark")]
    Absent,
    /// Anything else.
    #[error(transparent)]
    Other(#[from] SyscallError),
}

/// What the running kernel can do, found by trying.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProbedFeatures {
    /// Evictable ignore marks: the kernel's own cache of clean verdicts (since 5.19).
    pub evictable_marks: bool,
    /// Ignore marks on directories that heed their files (since 6.0).
    pub directory_ignore_marks: bool,
}

/// A second group that is never read. Its only use is to ask the kernel whether
/// an inode is open for writing: an ignore mark is then not added, and removing
/// it says so. No lease, no signal, nothing that a writer could notice.
#[derive(Debug)]
pub struct WriterProbe(Arc<Group>);

impl WriterProbe {
    /// Makes the probing group.
    ///
    /// # Errors
    /// As [`Group::new`].
    pub fn new() -> Result<Self, super::group::InitError> {
        Ok(Self(Group::new(GroupKind::Notification)?))
    }

    /// Whether somebody has this file open for writing, or still maps it from
    /// such an open (`i_writecount`).
    ///
    /// # Errors
    /// A failed `fanotify_mark`; the caller then takes it for a yes.
    pub fn has_writers(&self, file: BorrowedFd<'_>) -> Result<bool, SyscallError> {
        self.ask(At::Fd(file))
    }

    /// As [`Self::has_writers`], by an fd that may be `O_PATH`.
    ///
    /// # Errors
    /// As [`Self::has_writers`].
    pub fn has_writers_by_path(&self, file: BorrowedFd<'_>) -> Result<bool, SyscallError> {
        self.ask(At::ProcFd(file))
    }

    fn ask(&self, file: At<'_>) -> Result<bool, SyscallError> {
        let bits = libc::FAN_MARK_IGNORED_MASK;
        let mask = libc::FAN_CLOSE_NOWRITE;
        mark(&self.0, libc::FAN_MARK_ADD | bits, mask, file)?;
        match mark(&self.0, libc::FAN_MARK_REMOVE | bits, mask, file) {
            Ok(()) => Ok(false),
            Err(error) if error.errno() == libc::ENOENT => Ok(true),
            Err(error) => Err(error),
        }
    }
}

impl Group {
    /// What a filesystem mark asks for: opens, and closes after writing.
    pub(super) fn event_mask(&self) -> u64 {
        let closes = if self.wanted().closes {
            libc::FAN_CLOSE_WRITE
        } else {
            0
        };
        self.open_mask() | closes
    }

    fn open_mask(&self) -> u64 {
        match (self.wanted().opens, self.kind()) {
            (Opens::All, GroupKind::Permission) => libc::FAN_OPEN_PERM,
            (Opens::All, GroupKind::Notification) => libc::FAN_OPEN,
            (Opens::Execution, GroupKind::Permission) => libc::FAN_OPEN_EXEC_PERM,
            (Opens::Execution, GroupKind::Notification) => libc::FAN_OPEN_EXEC,
            (Opens::None, _) => 0,
        }
    }

    /// Marks the whole filesystem that `root` (may be `O_PATH`) lives on: every
    /// open on it, by whatever mount or mount namespace, becomes an event.
    ///
    /// # Errors
    /// [`MarkError::Refused`] for procfs and its like.
    pub fn mark_filesystem(&self, root: BorrowedFd<'_>) -> Result<(), MarkError> {
        let flags = libc::FAN_MARK_ADD | libc::FAN_MARK_FILESYSTEM;
        match mark(self, flags, self.event_mask(), At::ProcFd(root)) {
            Ok(()) => Ok(()),
            Err(error) if matches!(error.errno(), libc::EINVAL | libc::EOPNOTSUPP) => {
                Err(MarkError::Refused)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Removes the mark of a filesystem.
    ///
    /// # Errors
    /// [`MarkError::Absent`] if there is none.
    pub fn unmark_filesystem(&self, root: BorrowedFd<'_>) -> Result<(), MarkError> {
        let flags = libc::FAN_MARK_REMOVE | libc::FAN_MARK_FILESYSTEM;
        absent(mark(self, flags, self.event_mask(), At::ProcFd(root)))
    }

    /// Marks a directory (an fd that may be `O_PATH`): opens of what lies
    /// directly in it become events.
    ///
    /// # Errors
    /// [`MarkError::Refused`] for procfs and its like.
    pub fn mark_directory(&self, directory: BorrowedFd<'_>) -> Result<(), MarkError> {
        let mask = self.event_mask() | libc::FAN_EVENT_ON_CHILD;
        refused(mark(self, libc::FAN_MARK_ADD, mask, At::ProcFd(directory)))
    }

    /// As [`Self::mark_directory`], for the directory of this name in another
    /// one. A symlink is refused, not followed.
    ///
    /// # Errors
    /// As [`Self::mark_directory`].
    pub fn mark_directory_in(
        &self,
        inside: &InDirectory<'_>,
        name: &CStr,
    ) -> Result<(), MarkError> {
        let flags = libc::FAN_MARK_ADD | libc::FAN_MARK_DONT_FOLLOW | libc::FAN_MARK_ONLYDIR;
        let mask = self.event_mask() | libc::FAN_EVENT_ON_CHILD;
        refused(mark(self, flags, mask, At::Name(inside.fd(), name)))
    }

    /// Removes the mark of a directory.
    ///
    /// # Errors
    /// [`MarkError::Absent`] if there is none.
    pub fn unmark_directory(&self, directory: BorrowedFd<'_>) -> Result<(), MarkError> {
        let mask = self.event_mask() | libc::FAN_EVENT_ON_CHILD;
        absent(mark(
            self,
            libc::FAN_MARK_REMOVE,
            mask,
            At::ProcFd(directory),
        ))
    }

    /// Marks one file (an fd that may be `O_PATH`), by whatever name it is
    /// opened. The kernel refuses an evictable clean mark beside it.
    ///
    /// # Errors
    /// [`MarkError::Refused`] for procfs and its like.
    pub fn mark_inode(&self, file: BorrowedFd<'_>) -> Result<(), MarkError> {
        let mask = self.event_mask();
        refused(mark(self, libc::FAN_MARK_ADD, mask, At::ProcFd(file)))
    }

    /// Removes the mark of a file.
    ///
    /// # Errors
    /// [`MarkError::Absent`] if there is none.
    pub fn unmark_inode(&self, file: BorrowedFd<'_>) -> Result<(), MarkError> {
        let mask = self.event_mask();
        absent(mark(self, libc::FAN_MARK_REMOVE, mask, At::ProcFd(file)))
    }

    /// Marks the mount that `place` (may be `O_PATH`) was reached through: every
    /// open through this mount becomes an event, through others none.
    ///
    /// # Errors
    /// [`MarkError::Refused`] for procfs and its like.
    pub fn mark_mount(&self, place: BorrowedFd<'_>) -> Result<(), MarkError> {
        let flags = libc::FAN_MARK_ADD | libc::FAN_MARK_MOUNT;
        refused(mark(self, flags, self.event_mask(), At::ProcFd(place)))
    }

    /// Removes the mark of a mount.
    ///
    /// # Errors
    /// [`MarkError::Absent`] if there is none.
    pub fn unmark_mount(&self, place: BorrowedFd<'_>) -> Result<(), MarkError> {
        let flags = libc::FAN_MARK_REMOVE | libc::FAN_MARK_MOUNT;
        absent(mark(self, flags, self.event_mask(), At::ProcFd(place)))
    }

    /// Places the clean mark: opens of this inode raise no event until it is
    /// written to. Succeeds and ignores nothing while the inode is open for writing.
    ///
    /// An open that meets a mark which is just being destroyed is let through by the
    /// kernel without an event (`fsnotify_prepare_user_wait`), even if that mark
    /// ignores nothing any more. So each mark gets [`ANCHOR`] besides, by which it
    /// stays when what it ignores is taken away.
    ///
    /// # Errors
    /// A failed `fanotify_mark`: no mark.
    pub fn ignore_inode(&self, file: BorrowedFd<'_>) -> Result<(), MarkError> {
        let flags = libc::FAN_MARK_ADD | FAN_MARK_EVICTABLE;
        match self.open_mask() {
            0 => Ok(()),
            mask_of_opens => {
                mark(self, flags, ANCHOR, At::Fd(file))?;
                let ignore = flags | libc::FAN_MARK_IGNORED_MASK;
                Ok(mark(self, ignore, mask_of_opens, At::Fd(file))?)
            }
        }
    }

    /// Takes the clean mark's effect away and leaves the mark, which does nothing any
    /// more; `file` may be an `O_PATH` fd.
    ///
    /// # Errors
    /// [`MarkError::Absent`] if there is none (any more).
    pub fn unignore_inode(&self, file: BorrowedFd<'_>) -> Result<(), MarkError> {
        let flags = libc::FAN_MARK_REMOVE | libc::FAN_MARK_IGNORED_MASK;
        match self.open_mask() {
            0 => Ok(()),
            mask_of_opens => absent(mark(self, flags, mask_of_opens, At::ProcFd(file))),
        }
    }

    /// Destroys the clean mark of a file, whether it still ignores anything or not.
    /// An open in this very moment may pass without an event.
    ///
    /// # Errors
    /// [`MarkError::Absent`] if there is none (any more).
    pub fn forget_inode(&self, file: BorrowedFd<'_>) -> Result<(), MarkError> {
        self.unignore_inode(file)?;
        match self.open_mask() {
            0 => Ok(()),
            _ => absent(mark(self, libc::FAN_MARK_REMOVE, ANCHOR, At::ProcFd(file))),
        }
    }

    /// Takes every inode mark away at once; filesystem marks stay.
    ///
    /// # Errors
    /// A failed `fanotify_mark`.
    pub fn flush_inode_marks(&self) -> Result<(), SyscallError> {
        mark(self, libc::FAN_MARK_FLUSH, 0, At::Nothing)
    }

    /// Takes all marks away: no further open becomes an event. Those that are
    /// events already stay so.
    ///
    /// # Errors
    /// A failed `fanotify_mark`.
    pub fn flush_all_marks(&self) -> Result<(), SyscallError> {
        // Inode marks last: some of them keep events away.
        for kind in [libc::FAN_MARK_FILESYSTEM, libc::FAN_MARK_MOUNT, 0] {
            mark(self, libc::FAN_MARK_FLUSH | kind, 0, At::Nothing)?;
        }
        Ok(())
    }

    /// Finds out what the running kernel can do, on a memfd of our own.
    ///
    /// # Errors
    /// The probe itself failed.
    pub fn probe_features(&self) -> Result<ProbedFeatures, SyscallError> {
        let file = memfd()?;
        let evictable_marks = match self.ignore_inode(file.as_fd()) {
            Ok(()) => true,
            // The memfd is open for writing, so that success adds nothing;
            // flags that the kernel does not know are EINVAL before that.
            Err(MarkError::Other(error)) if error.errno() == libc::EINVAL => false,
            Err(MarkError::Other(error)) => return Err(error),
            Err(MarkError::Refused | MarkError::Absent) => false,
        };
        // On the root directory, for a moment, before any mark is there to be ignored.
        let root = std::fs::File::open("/").map_err(|source| SyscallError {
            call: "open of /",
            source,
        })?;
        let directory_ignore_marks = match self.ignore_directory(root.as_fd()) {
            Ok(()) => self.unignore_directory(root.as_fd()).is_ok(),
            Err(_) => false,
        };
        Ok(ProbedFeatures {
            evictable_marks,
            directory_ignore_marks,
        })
    }
}

fn memfd() -> Result<OwnedFd, SyscallError> {
    nix::sys::memfd::memfd_create(c"onacc-probe", nix::sys::memfd::MFdFlags::MFD_CLOEXEC)
        .map_err(|errno| SyscallError::from_errno("memfd_create", errno))
}

fn absent(result: Result<(), SyscallError>) -> Result<(), MarkError> {
    match result {
        Ok(()) => Ok(()),
        Err(error) if error.errno() == libc::ENOENT => Err(MarkError::Absent),
        Err(error) => Err(error.into()),
    }
}

fn refused(result: Result<(), SyscallError>) -> Result<(), MarkError> {
    match result {
        Ok(()) => Ok(()),
        Err(error) if matches!(error.errno(), libc::EINVAL | libc::EOPNOTSUPP) => {
            Err(MarkError::Refused)
        }
        Err(error) => Err(error.into()),
    }
}

/// What a mark is placed on.
#[derive(Clone, Copy)]
pub(super) enum At<'a> {
    /// An open fd.
    Fd(BorrowedFd<'a>),
    /// An fd that may be `O_PATH`, which `fanotify_mark` takes by path alone.
    ProcFd(BorrowedFd<'a>),
    /// A name in a directory.
    Name(BorrowedFd<'a>, &'a CStr),
    Nothing,
}

pub(super) fn mark(group: &Group, flags: u32, mask: u64, at: At<'_>) -> Result<(), SyscallError> {
    mark_raw(group.raw(), flags, mask, at)
}

pub(super) fn mark_raw(
    group: RawFd,
    flags: u32,
    mask: u64,
    at: At<'_>,
) -> Result<(), SyscallError> {
    let mut name = [0u8; 32];
    let (dir, path): (RawFd, Option<&CStr>) = match at {
        At::Fd(fd) => (fd.as_raw_fd(), None),
        At::ProcFd(fd) => (
            libc::AT_FDCWD,
            Some(crate::kernel::procfs::fd_path(fd, &mut name)),
        ),
        At::Name(fd, name) => (fd.as_raw_fd(), Some(name)),
        At::Nothing => (libc::AT_FDCWD, Some(c"/")),
    };
    // SAFETY: the path pointer is null (the kernel then takes `dir` itself) or
    // that of a NUL-terminated string which lives until after the call.
    let result = unsafe {
        libc::fanotify_mark(
            group,
            flags,
            mask,
            dir,
            path.map_or(std::ptr::null(), CStr::as_ptr),
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(SyscallError::last("fanotify_mark"))
    }
}
