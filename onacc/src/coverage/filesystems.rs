//! Coverage "filesystem": one mark on each filesystem in scope.
//!
//! A filesystem mark sees every open by whatever mount or mount namespace, and
//! new directories without a race. Owns which filesystems are marked. Must not
//! keep an fd on a filesystem: it could not be unmounted.

use std::collections::HashSet;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;

use crate::kernel::fanotify::{Group, MarkError};
use crate::kernel::file::{self, FilesystemKind};
use crate::kernel::mounts::{Mount, MountTable};
use crate::policy::Scope;

/// Keeps the filesystem marks.
#[derive(Debug)]
pub struct Filesystems {
    group: Arc<Group>,
    marked: HashSet<u32>,
    /// Refused ones, so that each is reported once.
    refused: HashSet<u32>,
}

/// A filesystem that is in scope and not marked yet.
#[derive(Debug)]
pub struct NewFilesystem {
    /// Its device.
    pub dev: u32,
    /// What it is.
    pub kind: FilesystemKind,
    /// Where it is mounted, for the log.
    pub mount: Mount,
    root: OwnedFd,
}

/// What became of a new filesystem.
#[derive(Debug)]
pub enum Marked {
    /// Its opens are events from now on.
    Yes,
    /// It takes no marks; said once.
    Refused(MarkError),
}

impl Filesystems {
    /// Nothing is marked yet.
    pub fn new(group: Arc<Group>) -> Self {
        Self {
            group,
            marked: HashSet::new(),
            refused: HashSet::new(),
        }
    }

    /// Filesystems of the scope that carry no mark yet. Those that are gone are
    /// forgotten: their marks went with them.
    pub fn find_new(&mut self, scope: &Scope, mounts: &MountTable) -> Vec<NewFilesystem> {
        let present: HashSet<u32> = mounts.iter().map(|mount| mount.dev).collect();
        self.marked.retain(|dev| present.contains(dev));
        self.refused.retain(|dev| present.contains(dev));
        scope
            .filesystems()
            .filter(|dev| !self.marked.contains(dev) && !self.refused.contains(dev))
            .filter_map(|dev| {
                let (mount, root) = open_filesystem(mounts, dev)?;
                let kind = file::filesystem_kind(&root).unwrap_or(FilesystemKind::Foreign);
                Some(NewFilesystem {
                    dev,
                    kind,
                    mount,
                    root,
                })
            })
            .collect()
    }

    /// Takes marks off filesystems that are out of scope now.
    pub fn let_go(&mut self, scope: &Scope, mounts: &MountTable) {
        let wanted: HashSet<u32> = scope.filesystems().collect();
        let gone: Vec<u32> = self.marked.difference(&wanted).copied().collect();
        for dev in gone {
            if let Some((_, root)) = open_filesystem(mounts, dev) {
                // Absent means that the mark went with the filesystem.
                let _absent_is_fine = self.group.unmark_filesystem(root.as_fd());
            }
            self.marked.remove(&dev);
        }
    }

    /// Places the mark.
    pub fn mark(&mut self, new: &NewFilesystem) -> Marked {
        match self.group.mark_filesystem(new.root.as_fd()) {
            Ok(()) => {
                self.marked.insert(new.dev);
                Marked::Yes
            }
            Err(error) => {
                self.refused.insert(new.dev);
                Marked::Refused(error)
            }
        }
    }

    /// How many filesystems are marked.
    pub fn count(&self) -> usize {
        self.marked.len()
    }
}

/// Opens (as `O_PATH`) a place where the filesystem is mounted, and checks that
/// it is this filesystem: another may be mounted above it.
pub fn open_filesystem(mounts: &MountTable, dev: u32) -> Option<(Mount, OwnedFd)> {
    mounts
        .iter()
        .filter(|mount| mount.dev == dev)
        .find_map(|mount| Some((mount.clone(), open_checked(mount, OFlag::O_PATH)?)))
}

/// As [`open_filesystem`], but a real fd of a directory, which file handles need.
pub fn open_directory(mounts: &MountTable, dev: u32) -> Option<OwnedFd> {
    mounts
        .iter()
        .filter(|mount| mount.dev == dev)
        .find_map(|mount| open_checked(mount, OFlag::O_RDONLY | OFlag::O_DIRECTORY))
}

fn open_checked(mount: &Mount, flags: OFlag) -> Option<OwnedFd> {
    let fd = open(&mount.point, flags | OFlag::O_CLOEXEC, Mode::empty()).ok()?;
    let stat = file::stat(fd.as_fd()).ok()?;
    (stat.mount == mount.id).then_some(fd)
}
