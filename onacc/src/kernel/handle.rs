//! File handles: a name for an inode that no rename and no fd number changes.
//!
//! Used to come back to an inode that carries a clean mark without keeping an
//! fd of it. Must not: open a file for reading (that would be an event).
//! Tested here on ext4 or whatever carries the test's directory.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use super::SyscallError;
use super::file::{DELETED, path_of, stat};

/// Longest handle that is kept: ext4, xfs, tmpfs and btrfs need 8 to 40 bytes, an
/// overlay's has 24 more than that of the file beneath it (20 on btrfs).
const CAPACITY: u32 = 48;

/// `struct file_handle` with room for its bytes (`name_to_handle_at(2)`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileHandle {
    bytes: u32,
    kind: i32,
    data: [u8; CAPACITY as usize],
}

impl FileHandle {
    /// The handle of an open file.
    ///
    /// # Errors
    /// The filesystem has no handles, or longer ones.
    pub fn of(file: BorrowedFd<'_>) -> Result<Self, SyscallError> {
        Self::with_flags(file, 0)
    }

    /// The handle of an open file that names the inode, and need not be of use
    /// for opening it (`AT_HANDLE_FID`, since 6.6).
    ///
    /// # Errors
    /// As [`FileHandle::of`], and `EINVAL` before 6.6.
    pub(super) fn of_identity(file: BorrowedFd<'_>) -> Result<Self, SyscallError> {
        /// include/uapi/linux/fcntl.h
        const AT_HANDLE_FID: libc::c_int = 0x200;
        Self::with_flags(file, AT_HANDLE_FID)
    }

    fn with_flags(file: BorrowedFd<'_>, flags: libc::c_int) -> Result<Self, SyscallError> {
        let mut handle = Self {
            bytes: CAPACITY,
            kind: 0,
            data: [0; CAPACITY as usize],
        };
        let mut mount = MaybeUninit::<libc::c_int>::uninit();
        // SAFETY: `handle` starts with the two fields of `struct file_handle`
        // and says truly how many bytes follow; path and mount id are live.
        let result = unsafe {
            libc::name_to_handle_at(
                file.as_raw_fd(),
                c"".as_ptr(),
                (&raw mut handle).cast(),
                mount.as_mut_ptr(),
                libc::AT_EMPTY_PATH | flags,
            )
        };
        if result == 0 {
            Ok(handle)
        } else {
            Err(SyscallError::last("name_to_handle_at"))
        }
    }

    /// Its kind and its bytes, in the form of its filesystem.
    pub(super) fn parts(&self) -> Option<(i32, &[u8])> {
        let bytes = self.data.get(..usize::try_from(self.bytes).ok()?)?;
        Some((self.kind, bytes))
    }

    /// The handle of a directory of kernfs (sysfs, control groups) by its id.
    pub fn of_kernfs(id: u64) -> Self {
        /// `FILEID_KERNFS` (include/linux/exportfs.h)
        const KERNFS: i32 = 0xfe;
        Self::from_parts(KERNFS, &id.to_ne_bytes()).expect("eight bytes are not too many")
    }

    /// A handle from the kernel's own words about it (`/proc/self/fdinfo`).
    /// `None` if it is longer than those that are kept.
    pub(super) fn from_parts(kind: i32, data: &[u8]) -> Option<Self> {
        let mut handle = Self {
            bytes: u32::try_from(data.len()).ok()?,
            kind,
            data: [0; CAPACITY as usize],
        };
        handle.data.get_mut(..data.len())?.copy_from_slice(data);
        Some(handle)
    }

    /// The handle of an inode by its number and generation, in the form of its
    /// filesystem. `None` for filesystems whose form is not known here.
    pub fn of_inode(filesystem: &str, inode: u64, generation: u32) -> Option<Self> {
        /// `FILEID_INO32_GEN` (include/linux/exportfs.h)
        const INO32_GEN: i32 = 1;
        /// That with `XFS_FILEID_TYPE_64FLAG` (`fs/xfs/xfs_export.h`)
        const XFS_INO64_GEN: i32 = 0x81;
        let [generation, low, high] = [
            generation,
            u32::try_from(inode & u64::from(u32::MAX)).ok()?,
            u32::try_from(inode >> 32).ok()?,
        ]
        .map(u32::to_ne_bytes);
        match filesystem {
            "ext2" | "ext3" | "ext4" if high == [0; 4] => {
                Self::from_parts(INO32_GEN, &[low, generation].concat())
            }
            "xfs" => Self::from_parts(XFS_INO64_GEN, &[low, high, generation].concat()),
            // mm/shmem.c, shmem_encode_fh
            "tmpfs" => Self::from_parts(INO32_GEN, &[generation, low, high].concat()),
            _ => None,
        }
    }

    /// Opens the inode again as `O_PATH`, which raises no event. `on` is any
    /// open fd (not `O_PATH`) on the same filesystem.
    ///
    /// # Errors
    /// `ESTALE` if the inode is gone.
    pub fn open(&self, on: BorrowedFd<'_>) -> Result<OwnedFd, SyscallError> {
        let mut copy = *self;
        // SAFETY: `copy` is a `struct file_handle` with its bytes, as filled by
        // the kernel in `of`.
        let fd = unsafe {
            libc::open_by_handle_at(
                on.as_raw_fd(),
                (&raw mut copy).cast(),
                libc::O_PATH | libc::O_CLOEXEC,
            )
        };
        if fd < 0 {
            return Err(SyscallError::last("open_by_handle_at"));
        }
        // SAFETY: the kernel just gave this fd to us alone.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

/// A path of an open file whose own is gone: a temporary file that was linked into a
/// directory, a hard link that is left of a deleted one. `None` if it has no name, or
/// none that the kernel remembers.
pub fn name_left(file: BorrowedFd<'_>) -> Option<Vec<u8>> {
    let linked = stat(file).is_ok_and(|stat| stat.links > 0);
    let again = FileHandle::of(file).ok().filter(|_| linked)?;
    let again = again.open(file).ok()?;
    let mut path = Vec::new();
    path_of(again.as_fd(), &mut path)?;
    (!path.ends_with(DELETED)).then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_leads_back_to_the_renamed_inode_and_not_to_its_successor() {
        let dir = tempfile::tempdir().unwrap();
        let on = std::fs::File::open(dir.path()).unwrap();
        let (old, new) = (dir.path().join("old"), dir.path().join("new"));
        std::fs::write(&old, "x").unwrap();
        let file = std::fs::File::open(&old).unwrap();
        let handle = match FileHandle::of(file.as_fd()) {
            Ok(handle) => handle,
            Err(error) if error.errno() == libc::EOPNOTSUPP => {
                println!("SKIPPED: {error}: no handles on {}", dir.path().display());
                return;
            }
            Err(error) => panic!("{error}"),
        };
        std::fs::rename(&old, &new).unwrap();
        std::fs::write(&old, "y").unwrap();
        match handle.open(on.as_fd()) {
            Ok(again) => {
                assert_eq!(
                    stat(again.as_fd()).unwrap().key,
                    stat(file.as_fd()).unwrap().key
                );
            }
            Err(error) if error.errno() == libc::EPERM => {
                println!("SKIPPED: {error}: needs CAP_DAC_READ_SEARCH");
            }
            Err(error) => panic!("{error}"),
        }
    }
}
