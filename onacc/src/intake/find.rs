//! From a record about an open back to the file.
//!
//! The opener may be gone, the file renamed, the place not mounted where we
//! are. Each way back is tried, and whatever it leads to is compared with the
//! identity in the record before it counts. Must not: open a file for reading,
//! or follow a symlink. Tested by `tests/`.

use std::ffi::OsStr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;

use onacc_common::opens::OpenRecord;
use onacc_common::{ChangeTime, DirKey, InodeKey};

use crate::coverage::filesystems::open_directory;
use crate::kernel::file::{self, FileStat};
use crate::kernel::handle::FileHandle;
use crate::kernel::mounts::{Mount, MountTable};
use crate::kernel::procfs::Proc;
use crate::policy::Policy;

/// Files of an opener that are looked at, if nothing else leads to the file.
const MOST_OPEN_FILES: usize = 256;

/// What is known of a file that was opened.
#[derive(Clone, Debug)]
pub struct Told {
    /// Its identity.
    pub key: InodeKey,
    /// Its inode's generation.
    pub generation: u32,
    /// Its ctime then, if the record has it.
    pub changed: Option<ChangeTime>,
    /// Its path below the filesystem's root, without a leading slash, if known.
    pub path: Option<Vec<u8>>,
    /// The thread that opened it; 0: not known.
    pub tid: i32,
}

impl Told {
    /// From a record.
    pub fn of(record: &OpenRecord<'_>) -> Self {
        let header = &record.header;
        let path = record.is_whole().then(|| {
            let names: Vec<&[u8]> = record.names().collect();
            let mut path = Vec::new();
            for name in names.iter().rev() {
                if !path.is_empty() {
                    path.push(b'/');
                }
                path.extend_from_slice(name);
            }
            path
        });
        Self {
            key: header.key,
            generation: header.generation,
            changed: Some(header.changed),
            path,
            tid: i32::try_from(header.tid).unwrap_or(0),
        }
    }

    /// From the table of missed files.
    pub fn of_missed(file: DirKey) -> Self {
        Self {
            key: file.key,
            generation: file.generation,
            changed: None,
            path: None,
            tid: 0,
        }
    }

    /// Whether it is this file. Where numbers are not those that `statx` shows
    /// (btrfs, overlayfs), the inode's number or its ctime must be the same.
    fn is(&self, stat: &FileStat, keyed: bool) -> bool {
        if keyed {
            stat.key == self.key
        } else {
            stat.key.ino == self.key.ino || self.changed == Some(stat.changed)
        }
    }
}

/// Finds the file, as `O_PATH`; `None` if no way leads to it.
pub fn find(told: &Told, policy: &Policy, proc: &Proc) -> Option<(OwnedFd, FileStat)> {
    let filesystem = policy.mounts.iter().find(|mount| mount.dev == told.key.dev);
    let keyed = filesystem.is_some_and(|mount| is_keyed(&mount.kind));
    let checked = |fd: OwnedFd| {
        let stat = file::stat(fd.as_fd()).ok()?;
        told.is(&stat, keyed).then_some((fd, stat))
    };
    by_place(told, &policy.mounts)
        .and_then(checked)
        .or_else(|| by_handle(told, policy, filesystem?).and_then(checked))
        .or_else(|| {
            let mut files = proc.open_files(told.tid, MOST_OPEN_FILES);
            (told.tid != 0).then(|| files.find_map(checked)).flatten()
        })
        .or_else(|| in_its_namespace(told, proc).and_then(checked))
}

/// Whether device and inode number, as the kernel itself has them, are what
/// `statx(2)` shows on this kind of filesystem.
pub fn is_keyed(kind: &str) -> bool {
    const KINDS: [&str; 11] = [
        "ext2", "ext3", "ext4", "xfs", "tmpfs", "ramfs", "vfat", "exfat", "squashfs", "erofs",
        "iso9660",
    ];
    KINDS.contains(&kind)
}

fn by_place(told: &Told, mounts: &MountTable) -> Option<OwnedFd> {
    let path = told.path.as_ref()?;
    let mount = mounts.whole(told.key.dev)?;
    let root = file::open_cached_directory(&mount.point)
        .ok()
        .filter(|root| file::stat(root.as_fd()).is_ok_and(|stat| stat.mount == mount.id))?;
    file::open_below(root.as_fd(), path).ok()
}

fn by_handle(told: &Told, policy: &Policy, filesystem: &Mount) -> Option<OwnedFd> {
    let handle = FileHandle::of_inode(&filesystem.kind, told.key.ino, told.generation)?;
    let on = open_directory(&policy.mounts, told.key.dev)?;
    handle.open(on.as_fd()).ok()
}

/// By a mount that only the opener's namespace has, as long as the opener lives.
fn in_its_namespace(told: &Told, proc: &Proc) -> Option<OwnedFd> {
    if told.tid == 0 {
        return None;
    }
    let path = told.path.as_ref()?;
    let table = MountTable::parse(&proc.mounts_of(told.tid)?);
    let mount = table.iter().find(|mount| {
        mount.dev == told.key.dev && (mount.root.as_os_str() == "/" || below(mount, path).is_some())
    })?;
    let root = proc.open_in(told.tid, &mount.point)?;
    file::open_below(root.as_fd(), below(mount, path)?).ok()
}

/// The part of a filesystem's path that lies below what is mounted.
fn below<'a>(mount: &Mount, path: &'a [u8]) -> Option<&'a [u8]> {
    let root = mount.root.strip_prefix("/").unwrap_or(&mount.root);
    let path = std::path::Path::new(OsStr::from_bytes(path));
    let rest = path.strip_prefix(root).ok()?;
    Some(rest.as_os_str().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_below_a_bind_mount_loses_its_root() {
        let table = MountTable::parse(b"9 1 8:1 /a/b /m rw - ext4 /dev/a rw\n");
        let mount = table.get(9).unwrap();
        assert_eq!(below(mount, b"a/b/c/d"), Some(b"c/d".as_slice()));
        assert_eq!(below(mount, b"a/bb/c"), None);
    }

    #[test]
    fn only_the_told_file_is_taken() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let stat = file::stat(file.as_file().as_fd()).unwrap();
        let told = Told {
            key: stat.key,
            generation: 0,
            changed: Some(stat.changed),
            path: None,
            tid: 0,
        };
        assert!(told.is(&stat, true));
        let other = Told {
            key: InodeKey {
                ino: stat.key.ino + 1,
                ..stat.key
            },
            changed: None,
            ..told
        };
        assert!(!other.is(&stat, true) && !other.is(&stat, false));
    }
}
