//! What is asked of one file: statx, its path, the kind of its filesystem.
//!
//! Must not: open anything by path. Each function costs the one system call
//! that its name says. Tested here on files of the test's own.

use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;

use onacc_common::{ChangeTime, InodeKey};

use super::SyscallError;

/// Identity, size and stamps of a file, by one `statx(2)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileStat {
    /// Device and inode number.
    pub key: InodeKey,
    /// Size in bytes.
    pub size: u64,
    /// mtime in nanoseconds since the epoch.
    pub modified: i128,
    /// ctime: no system call can set it.
    pub changed: ChangeTime,
    /// Id of the mount that the file was opened through (`STATX_MNT_ID`, since 5.8).
    pub mount: u64,
    /// Whether it is a regular file.
    pub regular: bool,
    /// Names that it has; 0: deleted.
    pub links: u32,
}

/// statx of an open fd (also `O_PATH`).
///
/// # Errors
/// A failed `statx(2)`.
pub fn stat(fd: BorrowedFd<'_>) -> Result<FileStat, SyscallError> {
    let mut buffer = MaybeUninit::<libc::statx>::zeroed();
    let mask = libc::STATX_BASIC_STATS | libc::STATX_MNT_ID;
    // SAFETY: the path is a NUL-terminated constant, the buffer is live and of
    // the type that the call fills.
    let result = unsafe {
        libc::statx(
            fd.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | libc::AT_STATX_SYNC_AS_STAT,
            mask,
            buffer.as_mut_ptr(),
        )
    };
    if result != 0 {
        return Err(SyscallError::last("statx"));
    }
    // SAFETY: zeroed memory is a valid `statx` (integers only), and the call filled it.
    let stat = unsafe { buffer.assume_init() };
    Ok(FileStat {
        key: InodeKey::new(stat.stx_dev_major, stat.stx_dev_minor, stat.stx_ino),
        size: stat.stx_size,
        modified: i128::from(stat.stx_mtime.tv_sec) * 1_000_000_000
            + i128::from(stat.stx_mtime.tv_nsec),
        changed: ChangeTime::new(stat.stx_ctime.tv_sec, stat.stx_ctime.tv_nsec),
        mount: stat.stx_mnt_id,
        regular: u32::from(stat.stx_mode) & libc::S_IFMT == libc::S_IFREG,
        links: stat.stx_nlink,
    })
}

/// An executable file. Its name says nothing: another mount namespace may have
/// anything there; the number of a removed file is used again, its time of
/// birth is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ProgramId {
    /// Device.
    pub dev: (u32, u32),
    /// Inode number.
    pub ino: u64,
    /// Time of birth, in nanoseconds since the epoch; 0 where there is none.
    pub born: i128,
}

impl ProgramId {
    /// The executable at an absolute path.
    pub fn at(path: &std::path::Path) -> Option<Self> {
        let path = std::ffi::CString::new(path.as_os_str().as_bytes()).ok()?;
        let root = nix::fcntl::open(
            "/",
            nix::fcntl::OFlag::O_PATH | nix::fcntl::OFlag::O_CLOEXEC,
            nix::sys::stat::Mode::empty(),
        );
        program(root.ok()?.as_fd(), &path)
    }
}

/// The executable at a path below `dir` (or an absolute one), symlinks followed:
/// one `statx`, which asks no server and no daemon.
pub fn program(dir: BorrowedFd<'_>, path: &std::ffi::CStr) -> Option<ProgramId> {
    let mut buffer = MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: the path is NUL-terminated, the buffer live and of the type that
    // the call fills.
    let result = unsafe {
        libc::statx(
            dir.as_raw_fd(),
            path.as_ptr(),
            libc::AT_STATX_DONT_SYNC,
            libc::STATX_BASIC_STATS | libc::STATX_BTIME,
            buffer.as_mut_ptr(),
        )
    };
    if result != 0 {
        return None;
    }
    // SAFETY: zeroed memory is a valid `statx` (integers only), and the call filled it.
    let stat = unsafe { buffer.assume_init() };
    let born = i128::from(stat.stx_btime.tv_sec) * 1_000_000_000;
    Some(ProgramId {
        dev: (stat.stx_dev_major, stat.stx_dev_minor),
        ino: stat.stx_ino,
        born: born + i128::from(stat.stx_btime.tv_nsec),
    })
}

/// What filesystem a file lives on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FilesystemKind {
    /// ext2, ext3, ext4: the dirty hook sees every store, also through a
    /// mapping, with a new ctime (facts/kernel.md, BPF 4).
    Ext,
    /// xfs, btrfs: the hook does not see each store, but each store changes the ctime.
    Stamped,
    /// tmpfs: a store through a mapping can leave the ctime as it is.
    Unstamped,
    /// overlayfs: may lie on a tmpfs, and opens files of other filesystems.
    Overlay,
    /// Read-only by its format: nothing is ever stored.
    ReadOnly,
    /// Network, FUSE and what is not known: changes come without local events.
    Foreign,
    /// Such a one, on which verdicts are kept because the settings say so.
    ForeignKept,
}

impl FilesystemKind {
    /// Whether each store into a file changes its stamps.
    pub fn stamps_tell(self) -> bool {
        match self {
            Self::Ext | Self::Stamped | Self::ReadOnly => true,
            Self::Unstamped | Self::Overlay | Self::Foreign | Self::ForeignKept => false,
        }
    }

    /// Whether its bytes may lie on another machine, or with a server here.
    pub fn is_foreign(self) -> bool {
        matches!(self, Self::Foreign | Self::ForeignKept)
    }
}

/// Reads the kind by `fstatfs(2)`.
///
/// # Errors
/// A failed `fstatfs(2)`.
pub fn filesystem_kind(fd: impl AsFd) -> Result<FilesystemKind, SyscallError> {
    use nix::sys::statfs;
    const EROFS: i64 = 0xe0f5_e1e2;
    const SQUASHFS: i64 = 0x7371_7368;
    let stat = statfs::fstatfs(&fd).map_err(|errno| SyscallError::from_errno("fstatfs", errno))?;
    let magic = stat.filesystem_type();
    Ok(if magic == statfs::EXT4_SUPER_MAGIC {
        FilesystemKind::Ext
    } else if [statfs::XFS_SUPER_MAGIC, statfs::BTRFS_SUPER_MAGIC].contains(&magic) {
        FilesystemKind::Stamped
    } else if magic == statfs::TMPFS_MAGIC {
        FilesystemKind::Unstamped
    } else if magic == statfs::OVERLAYFS_SUPER_MAGIC {
        FilesystemKind::Overlay
    } else if [EROFS, SQUASHFS, statfs::ISOFS_SUPER_MAGIC.0].contains(&magic.0) {
        FilesystemKind::ReadOnly
    } else {
        FilesystemKind::Foreign
    })
}

/// Id of the mount of an open fd that no later mount ever gets again
/// (`STATX_MNT_ID_UNIQUE`, include/uapi/linux/stat.h, since 6.8).
pub fn unique_mount_id(fd: BorrowedFd<'_>) -> Option<u64> {
    const STATX_MNT_ID_UNIQUE: u32 = 0x4000;
    let mut buffer = MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: as in `stat`.
    let result = unsafe {
        libc::statx(
            fd.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            STATX_MNT_ID_UNIQUE,
            buffer.as_mut_ptr(),
        )
    };
    // SAFETY: zeroed memory is a valid `statx` (integers only).
    let stat = unsafe { buffer.assume_init() };
    (result == 0 && stat.stx_mask & STATX_MNT_ID_UNIQUE != 0).then_some(stat.stx_mnt_id)
}

/// Opens a directory if that needs no waiting: every component of the path is
/// in the kernel's cache (`RESOLVE_CACHED`, openat2(2), since 5.12). For the
/// reader, who must not wait for a network filesystem on the way.
///
/// # Errors
/// `EAGAIN` if it would have to wait.
pub fn open_cached_directory(path: &std::path::Path) -> Result<OwnedFd, SyscallError> {
    const RESOLVE_CACHED: u64 = 0x20;
    let path = std::ffi::CString::new(path.as_os_str().as_bytes()).map_err(|_| SyscallError {
        call: "openat2",
        source: std::io::ErrorKind::InvalidInput.into(),
    })?;
    // SAFETY: `open_how` consists of integers, for which zero is a valid value.
    let mut how: libc::open_how = unsafe { std::mem::zeroed() };
    let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC | libc::O_NONBLOCK;
    how.flags = u64::from(flags.cast_unsigned());
    how.resolve = RESOLVE_CACHED;
    // SAFETY: path and structure live until after the call, the size is true.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_openat2,
            libc::AT_FDCWD,
            path.as_ptr(),
            &raw const how,
            size_of_val(&how),
        )
    };
    let Ok(fd @ 0..) = i32::try_from(fd) else {
        return Err(SyscallError::last("openat2(RESOLVE_CACHED)"));
    };
    // SAFETY: the kernel just gave this fd to us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Whether an open fd (also `O_PATH`) is of a directory.
pub fn is_directory(fd: BorrowedFd<'_>) -> bool {
    nix::sys::stat::fstat(fd).is_ok_and(|stat| stat.st_mode & libc::S_IFMT == libc::S_IFDIR)
}

/// The id of the filesystem, as fanotify's events carry it (`f_fsid`, statfs(2)).
///
/// # Errors
/// A failed `fstatfs(2)`.
pub fn filesystem_id(fd: BorrowedFd<'_>) -> Result<[u8; 8], SyscallError> {
    let mut buffer = MaybeUninit::<libc::statfs>::zeroed();
    // SAFETY: the buffer is live and of the type that the call fills.
    if unsafe { libc::fstatfs(fd.as_raw_fd(), buffer.as_mut_ptr()) } != 0 {
        return Err(SyscallError::last("fstatfs"));
    }
    // SAFETY: zeroed memory is a valid `statfs` (integers only), and the call filled it.
    let id = unsafe { buffer.assume_init() }.f_fsid;
    // SAFETY: `fsid_t` is two ints, without padding, of which any bits are valid.
    Ok(unsafe { std::mem::transmute::<libc::fsid_t, [u8; 8]>(id) })
}

/// Opens, as `O_PATH`, what has this path below `root`: on the same mount, by
/// no symlink, without following a last one.
///
/// # Errors
/// A failed `openat2(2)`; `EXDEV` if something else is mounted above it.
pub fn open_below(root: BorrowedFd<'_>, path: &[u8]) -> Result<OwnedFd, SyscallError> {
    let error = |source| SyscallError {
        call: "openat2(RESOLVE_BENEATH)",
        source,
    };
    let path =
        std::ffi::CString::new(path).map_err(|_| error(std::io::ErrorKind::InvalidInput.into()))?;
    // SAFETY: `open_how` consists of integers, for which zero is a valid value.
    let mut how: libc::open_how = unsafe { std::mem::zeroed() };
    let flags = libc::O_PATH | libc::O_NOFOLLOW | libc::O_CLOEXEC;
    how.flags = u64::from(flags.cast_unsigned());
    how.resolve = libc::RESOLVE_BENEATH | libc::RESOLVE_NO_XDEV | libc::RESOLVE_NO_SYMLINKS;
    // SAFETY: path and structure live until after the call, the size is true.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_openat2,
            root.as_raw_fd(),
            path.as_ptr(),
            &raw const how,
            size_of_val(&how),
        )
    };
    let Ok(fd @ 0..) = i32::try_from(fd) else {
        return Err(error(std::io::Error::last_os_error()));
    };
    // SAFETY: the kernel just gave this fd to us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Opens a file again, for reading, from an fd that may be `O_PATH`. Does not
/// block on anything and does not touch the atime.
///
/// # Errors
/// A failed `open(2)`.
pub fn reopen(fd: BorrowedFd<'_>) -> Result<OwnedFd, SyscallError> {
    use nix::fcntl::{OFlag, open};
    let mut name = [0u8; 32];
    let link = super::procfs::fd_path(fd, &mut name);
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    open(
        link,
        flags | OFlag::O_NOATIME,
        nix::sys::stat::Mode::empty(),
    )
    .map_err(|errno| SyscallError::from_errno("open of /proc/self/fd", errno))
}

/// What a read that must not wait has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CachedRead {
    /// So many bytes; 0: the end of the file.
    Bytes(usize),
    /// It would have to wait for the disk, or cannot tell: read elsewhere.
    WouldWait,
}

/// Reads at an offset what the kernel has in memory (`RWF_NOWAIT`, preadv2(2)).
///
/// # Errors
/// A failed read.
pub fn read_cached(
    fd: BorrowedFd<'_>,
    offset: u64,
    buffer: &mut [u8],
) -> Result<CachedRead, SyscallError> {
    let parts = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    let Ok(offset) = libc::off_t::try_from(offset) else {
        return Ok(CachedRead::Bytes(0));
    };
    // SAFETY: the one part is a live, writable buffer of the length that is told.
    let got = unsafe {
        libc::preadv2(
            fd.as_raw_fd(),
            &raw const parts,
            1,
            offset,
            libc::RWF_NOWAIT,
        )
    };
    if let Ok(got) = usize::try_from(got) {
        return Ok(CachedRead::Bytes(got));
    }
    let error = SyscallError::last("preadv2(RWF_NOWAIT)");
    match error.errno() {
        libc::EAGAIN | libc::EOPNOTSUPP | libc::EINTR | libc::EINVAL | libc::ENOSYS => {
            Ok(CachedRead::WouldWait)
        }
        _ => Err(error),
    }
}

/// How the kernel ends the path of a file whose name is gone (`proc_pid_fd(5)`).
pub const DELETED: &[u8] = b" (deleted)";

/// The path of an open file as the kernel tells it (`/proc/self/fd/N`), raw
/// bytes. `None` if it is longer than `PATH_MAX`. A deleted file's path ends in
/// ` (deleted)`.
pub fn path_of(fd: BorrowedFd<'_>, buffer: &mut Vec<u8>) -> Option<()> {
    let mut name = [0u8; 32];
    let link = super::procfs::fd_path(fd, &mut name);
    read_link(libc::AT_FDCWD, link, buffer)
}

/// The text of a link, by one `readlinkat(2)`. `None` if there is no such link, or it
/// is longer than `PATH_MAX`.
pub(super) fn read_link(dir: RawFd, name: &CStr, buffer: &mut Vec<u8>) -> Option<()> {
    const PATH_MAX: usize = 4096;
    buffer.clear();
    // Not filled with zeros: that would cost as much as many a system call.
    buffer.reserve(PATH_MAX + 1);
    // SAFETY: the name is NUL-terminated, the buffer is live and writable for as
    // many bytes as it was just given room for.
    let got =
        unsafe { libc::readlinkat(dir, name.as_ptr(), buffer.as_mut_ptr().cast(), PATH_MAX + 1) };
    let got = usize::try_from(got).ok().filter(|got| *got <= PATH_MAX)?;
    // SAFETY: the call has written so many bytes, for which there is room.
    unsafe { buffer.set_len(got) };
    Some(())
}

/// As [`path_of`], for callers that are not in a hurry.
pub fn path_buf_of(fd: impl AsFd) -> Option<std::path::PathBuf> {
    let mut bytes = Vec::new();
    path_of(fd.as_fd(), &mut bytes)?;
    Some(std::ffi::OsStr::from_bytes(&bytes).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;
    use std::os::unix::fs::MetadataExt as _;

    #[test]
    fn stat_says_what_the_standard_library_says() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"twelve bytes").unwrap();
        let ours = stat(file.as_file().as_fd()).unwrap();
        let theirs = file.as_file().metadata().unwrap();
        assert_eq!(ours.size, 12);
        assert_eq!(ours.key.ino, theirs.ino());
        assert_eq!(ours.changed.sec, theirs.ctime());
        assert_eq!(i64::from(ours.changed.nsec), theirs.ctime_nsec());
        assert!(ours.regular && ours.links == 1);
        assert_eq!(path_buf_of(file.as_file()).unwrap(), file.path());
    }

    #[test]
    fn what_was_just_written_is_read_without_waiting() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"twelve bytes").unwrap();
        let mut buffer = [0; 8];
        let mut read = |offset| read_cached(file.as_file().as_fd(), offset, &mut buffer).unwrap();
        let got = read(7);
        // A filesystem may not be able to tell.
        assert!([CachedRead::Bytes(5), CachedRead::WouldWait].contains(&got));
        let got = read(12);
        assert!([CachedRead::Bytes(0), CachedRead::WouldWait].contains(&got));
        assert_eq!(read(u64::MAX), CachedRead::Bytes(0));
    }

    #[test]
    fn a_cached_directory_opens_and_a_missing_one_does_not() {
        let fd = open_cached_directory(std::path::Path::new("/proc")).unwrap();
        assert!(!stat(fd.as_fd()).unwrap().regular);
        assert!(open_cached_directory(std::path::Path::new("/proc/nothing")).is_err());
        if let Some(id) = unique_mount_id(fd.as_fd()) {
            assert_ne!(id, 0);
        }
    }

    #[test]
    fn a_directory_is_not_regular_and_proc_is_foreign() {
        let dir = std::fs::File::open("/").unwrap();
        assert!(!stat(dir.as_fd()).unwrap().regular);
        let proc = std::fs::File::open("/proc").unwrap();
        assert_eq!(filesystem_kind(&proc).unwrap(), FilesystemKind::Foreign);
    }
}
