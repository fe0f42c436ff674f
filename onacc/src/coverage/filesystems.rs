//! Coverage "filesystem": one mark on each filesystem in scope.
//!
//! A filesystem mark sees every open by whatever mount or mount namespace, and
//! new directories without a race. Owns which filesystems are marked. Must not
//! keep an fd on a filesystem: it could not be unmounted.

use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::{Arc, Weak};

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;

use crate::kernel::fanotify::{Group, MarkError};
use crate::kernel::file::{self, FilesystemKind};
use crate::kernel::mounts::{Mount, MountTable};
use crate::policy::Scope;

/// A filesystem that carries a mark.
#[derive(Debug)]
struct Marked {
    /// The lane's group; a lane that has ended takes its marks along.
    group: Weak<Group>,
    /// The mount it was reached by, if the kernel has ids that are never used again.
    unique: Option<u64>,
}

/// Keeps the filesystem marks.
#[derive(Debug, Default)]
pub struct Filesystems {
    marked: HashMap<u32, Marked>,
    /// Refused ones, so that each is reported once.
    refused: HashSet<u32>,
}

/// A filesystem that is in scope and has to be marked.
#[derive(Debug)]
pub struct NewFilesystem {
    /// Its device.
    pub dev: u32,
    /// What it is.
    pub kind: FilesystemKind,
    /// Where it is mounted.
    pub mount: Mount,
    unique: Option<u64>,
    root: OwnedFd,
}

impl NewFilesystem {
    /// An `O_PATH` fd of a directory on it.
    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }
}

/// What a look at the mounts has shown.
#[derive(Debug, Default)]
pub struct Changes {
    /// Filesystems to mark (again).
    pub new: Vec<NewFilesystem>,
    /// A filesystem is gone, or may have been replaced by another one under the
    /// same numbers: verdicts on its files do not hold.
    pub replaced: bool,
}

impl Filesystems {
    /// Compares what is mounted with what is marked. A filesystem that cannot be
    /// told from its successor (numbers are used again at once) is marked again,
    /// which does nothing if it is still the same.
    pub fn look(&mut self, scope: &Scope, mounts: &MountTable) -> Changes {
        let present: HashSet<u32> = mounts.iter().map(|mount| mount.dev).collect();
        let before = self.marked.len();
        self.marked.retain(|dev, _| present.contains(dev));
        self.refused.retain(|dev| present.contains(dev));
        let mut changes = Changes {
            new: Vec::new(),
            replaced: self.marked.len() != before,
        };
        for dev in scope
            .filesystems()
            .filter(|dev| !self.refused.contains(dev))
        {
            let Some((mount, root)) = open_filesystem(mounts, dev) else {
                continue;
            };
            let unique = file::unique_mount_id(root.as_fd());
            if let Some(marked) = self.marked.get(&dev) {
                if unique.is_some() && marked.unique == unique {
                    continue;
                }
                changes.replaced = true;
            }
            let kind = file::filesystem_kind(&root).unwrap_or(FilesystemKind::Foreign);
            changes.new.push(NewFilesystem {
                dev,
                kind,
                mount,
                unique,
                root,
            });
        }
        changes
    }

    /// Takes marks off filesystems that are out of scope now.
    pub fn let_go(&mut self, scope: &Scope, mounts: &MountTable) {
        let wanted: HashSet<u32> = scope.filesystems().collect();
        let gone: Vec<u32> = self
            .marked
            .keys()
            .filter(|dev| !wanted.contains(dev))
            .copied()
            .collect();
        for dev in gone {
            let group = self
                .marked
                .remove(&dev)
                .and_then(|marked| marked.group.upgrade());
            if let (Some(group), Some((_, root))) = (group, open_filesystem(mounts, dev)) {
                // Absent means that the mark went with the filesystem.
                let _absent_is_fine = group.unmark_filesystem(root.as_fd());
            }
        }
    }

    /// Places the mark.
    ///
    /// # Errors
    /// [`MarkError::Refused`] for filesystems that take none; asked once.
    pub fn mark(&mut self, new: &NewFilesystem, group: &Arc<Group>) -> Result<(), MarkError> {
        match group.mark_filesystem(new.root.as_fd()) {
            Ok(()) => {
                let marked = Marked {
                    group: Arc::downgrade(group),
                    unique: new.unique,
                };
                self.marked.insert(new.dev, marked);
                Ok(())
            }
            Err(error) => {
                self.refused.insert(new.dev);
                Err(error)
            }
        }
    }

    /// A filesystem that another kind of coverage takes care of.
    pub fn note(&mut self, new: &NewFilesystem) {
        let marked = Marked {
            group: Weak::new(),
            unique: new.unique,
        };
        self.marked.insert(new.dev, marked);
    }

    /// A filesystem that cannot be marked is not tried again.
    pub fn give_up(&mut self, new: &NewFilesystem) {
        self.refused.insert(new.dev);
    }

    /// Whether a filesystem carries a mark.
    pub fn is_marked(&self, dev: u32) -> bool {
        self.marked.contains_key(&dev)
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
