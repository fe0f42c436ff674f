//! Clean marks in the running kernel: what `clean_marks` asks for, done.
//!
//! Owns the filter plane. Must not: decide when a mark is placed or goes.

use std::collections::VecDeque;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::{Arc, Mutex};

use onacc_common::{CachedInode, Counter, DirtyRecord, InodeKey};

use super::clean_marks::MarkWorld;
use super::filesystems::open_directory;
use crate::kernel::SyscallError;
use crate::kernel::bpf::{ArmError, FilterPlane};
use crate::kernel::fanotify::{EventFile, Group, MarkError, WriterProbe};
use crate::kernel::file::{self, FileStat};
use crate::kernel::handle::FileHandle;
use crate::observe::heartbeat::Heartbeat;
use crate::policy::{Policy, VerdictCache, lock};

/// The kernel, the filter plane and the verdict table.
pub struct KernelMarks {
    /// Where the marks are.
    pub group: Arc<Group>,
    /// Asked whether a file has writers.
    pub writers: WriterProbe,
    /// Reports stores; without it only what cannot be stored into gets marks.
    pub plane: Option<FilterPlane>,
    /// For the mounts by which inodes are reached again.
    pub policy: Arc<Policy>,
    /// For the generation that verdicts are of.
    pub verdicts: Arc<Mutex<VerdictCache>>,
    /// Shows that a long removal goes on.
    pub heartbeat: Heartbeat,
    /// Every inode mark of the group is an ignore mark: under filesystem marks.
    /// Where directories carry marks of their own, those must stay.
    pub only_ignore_marks: bool,
    /// Marks that ignore nothing any more, oldest first.
    pub spent: VecDeque<(InodeKey, FileHandle)>,
}

/// How many spent marks are left: the kernel counts them by user. By then the file
/// has long been scanned again, or nobody opens it.
const MOST_SPENT: usize = 8192;

impl KernelMarks {
    fn tells_opens(&self) -> bool {
        self.plane.as_ref().is_some_and(FilterPlane::tells_opens)
    }

    /// What becomes readable when records wait.
    pub fn records(&self) -> Option<BorrowedFd<'_>> {
        self.plane.as_ref().map(|plane| plane.as_fd())
    }
}

impl MarkWorld for KernelMarks {
    type File = EventFile;
    type Handle = FileHandle;

    fn generation(&self) -> u64 {
        lock(&self.verdicts).generation()
    }

    fn handle(&self, file: &EventFile) -> Option<FileHandle> {
        FileHandle::of(file.as_fd()).ok()
    }

    fn stat(&self, file: &EventFile) -> Option<FileStat> {
        file::stat(file.as_fd()).ok()
    }

    fn has_writers(&self, file: &EventFile) -> bool {
        self.writers.has_writers(file.as_fd()).unwrap_or(true)
    }

    fn arm(&mut self, key: InodeKey, entry: CachedInode) -> bool {
        let Some(plane) = &mut self.plane else {
            return true;
        };
        match plane.arm(key, entry) {
            Ok(()) => true,
            Err(ArmError::Full) => false,
            Err(ArmError::Map(error)) => {
                tracing::debug!("onacc: no clean mark: {error}");
                false
            }
        }
    }

    fn disarm(&mut self, key: InodeKey) {
        if let Some(plane) = &mut self.plane
            && let Err(error) = plane.disarm(key)
        {
            tracing::debug!("onacc: eBPF map: {error}");
        }
    }

    fn next_record(&mut self) -> Option<DirtyRecord> {
        self.plane.as_mut().and_then(FilterPlane::next_record)
    }

    fn lost(&self) -> Option<u64> {
        match &self.plane {
            Some(plane) => plane.counters().get(Counter::Lost).ok(),
            None => Some(0),
        }
    }

    fn ignore(&self, file: &EventFile) -> bool {
        if self.tells_opens() {
            // The programs drop opens of the inodes that are armed.
            return true;
        }
        let placed = self.group.ignore_inode(file.as_fd());
        if let Err(error) = &placed {
            tracing::debug!("onacc: no clean mark: {error}");
        }
        placed.is_ok()
    }

    fn unignore(&self, file: &EventFile) -> bool {
        if self.tells_opens() {
            return true;
        }
        matches!(
            self.group.unignore_inode(file.as_fd()),
            Ok(()) | Err(MarkError::Absent)
        )
    }

    fn unignore_by_handle(
        &mut self,
        key: InodeKey,
        handle: &FileHandle,
    ) -> Result<(), SyscallError> {
        self.undo(key, handle, Group::unignore_inode)?;
        if !self.tells_opens() {
            self.spent.push_back((key, *handle));
        }
        if self.spent.len() > MOST_SPENT
            && let Some((key, handle)) = self.spent.pop_front()
            && let Err(error) = self.undo(key, &handle, Group::forget_inode)
        {
            // It ignores nothing, so that it hides nothing.
            tracing::debug!("onacc: a spent mark stays: {error}");
        }
        Ok(())
    }

    fn forget(&mut self, key: InodeKey, handle: &FileHandle) -> Result<(), SyscallError> {
        self.undo(key, handle, Group::forget_inode)
    }

    fn unignore_all(&self) -> Result<bool, SyscallError> {
        if self.only_ignore_marks {
            self.group.flush_inode_marks()?;
        }
        Ok(self.only_ignore_marks)
    }

    fn give_up(&self, why: &SyscallError) {
        crate::kernel::process::die(&format!("clean marks cannot be taken away: {why}"));
    }
}

impl KernelMarks {
    /// Reaches an inode by its handle, and has its mark undone in one of two ways.
    fn undo(
        &self,
        key: InodeKey,
        handle: &FileHandle,
        how: fn(&Group, BorrowedFd<'_>) -> Result<(), MarkError>,
    ) -> Result<(), SyscallError> {
        self.heartbeat.beat();
        if self.tells_opens() {
            return Ok(());
        }
        let mounts = &self.policy.mounts;
        let Some(directory) = open_directory(mounts, key.dev) else {
            return if mounts.iter().any(|mount| mount.dev == key.dev) {
                Err(SyscallError {
                    call: "open of a mount point",
                    source: std::io::ErrorKind::NotFound.into(),
                })
            } else {
                // The filesystem is gone from our view; its inodes, if any
                // live on, are out of our scope.
                Ok(())
            };
        };
        let inode = match handle.open(directory.as_fd()) {
            Ok(inode) => inode,
            // The inode is gone, and an evictable mark with it.
            Err(error) if error.errno() == libc::ESTALE => return Ok(()),
            Err(error) => return Err(error),
        };
        match how(&self.group, inode.as_fd()) {
            Ok(()) | Err(MarkError::Absent | MarkError::Refused) => Ok(()),
            Err(MarkError::Other(error)) => Err(error),
        }
    }
}
