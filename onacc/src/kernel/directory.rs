//! Working in one directory by plain names: no path is walked for each of them.
//!
//! `inotify_add_watch` takes a path and nothing else; by `/proc/self/fd/N/name`
//! it costs twice as much as by a name in the working directory. Must not: keep
//! a filesystem busy after [`InDirectory`] is dropped. Tested here.

use std::cell::Cell;
use std::ffi::CStr;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use nix::sched::{CloneFlags, unshare};

use super::SyscallError;

thread_local! {
    /// Whether this thread has its own working directory. A thread that it starts
    /// afterwards shares that, until it enters a directory itself.
    static IS_ALONE: Cell<bool> = const { Cell::new(false) };
}

/// The calling thread works in a directory, until this is dropped. The working
/// directory is the thread's own (`CLONE_FS`): no other thread notices.
#[derive(Debug)]
pub struct InDirectory<'a> {
    fd: BorrowedFd<'a>,
    _this_thread_alone: PhantomData<*const ()>,
}

/// What is at a name: enough to tell whether it must be looked into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NamedStat {
    /// Id of the mount that the name leads to.
    pub mount: u64,
    /// Its number of links: of a directory, on most filesystems, two more than
    /// it has sub-directories.
    pub links: u32,
}

impl<'a> InDirectory<'a> {
    /// Enters a directory (an fd that may be `O_PATH`).
    ///
    /// # Errors
    /// A failed `unshare(2)` or `fchdir(2)`.
    pub fn enter(fd: BorrowedFd<'a>) -> Result<Self, SyscallError> {
        if !IS_ALONE.get() {
            unshare(CloneFlags::CLONE_FS)
                .map_err(|errno| SyscallError::from_errno("unshare(CLONE_FS)", errno))?;
            IS_ALONE.set(true);
        }
        nix::unistd::fchdir(fd).map_err(|errno| SyscallError::from_errno("fchdir", errno))?;
        Ok(Self {
            fd,
            _this_thread_alone: PhantomData,
        })
    }

    /// The directory.
    pub fn fd(&self) -> BorrowedFd<'a> {
        self.fd
    }

    /// What has this name in it; a symlink is not followed, nothing is mounted.
    ///
    /// # Errors
    /// A failed `statx(2)`.
    pub fn stat(&self, name: &CStr) -> Result<NamedStat, SyscallError> {
        let mut buffer = MaybeUninit::<libc::statx>::zeroed();
        // SAFETY: the name is NUL-terminated, the buffer is live and of the type
        // that the call fills.
        let result = unsafe {
            libc::statx(
                self.fd.as_raw_fd(),
                name.as_ptr(),
                libc::AT_SYMLINK_NOFOLLOW | libc::AT_NO_AUTOMOUNT,
                libc::STATX_NLINK | libc::STATX_MNT_ID,
                buffer.as_mut_ptr(),
            )
        };
        if result != 0 {
            return Err(SyscallError::last("statx"));
        }
        // SAFETY: zeroed memory is a valid `statx` (integers only), and the call filled it.
        let stat = unsafe { buffer.assume_init() };
        Ok(NamedStat {
            mount: stat.stx_mnt_id,
            links: stat.stx_nlink,
        })
    }
}

impl Drop for InDirectory<'_> {
    fn drop(&mut self) {
        // The root is always there; if this failed, the filesystem stays busy
        // until the next directory is entered.
        let _root_is_there = nix::unistd::chdir("/");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd as _;

    #[test]
    fn names_lead_into_the_directory_and_other_threads_stay_where_they_are() {
        let before = std::env::current_dir().unwrap();
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("leaf")).unwrap();
        std::fs::create_dir_all(dir.path().join("one/below")).unwrap();
        let worker = std::thread::spawn(move || {
            let fd = std::fs::File::open(dir.path()).unwrap();
            let inside = InDirectory::enter(fd.as_fd()).unwrap();
            let here = std::env::current_dir().unwrap();
            assert_eq!(here, dir.path().canonicalize().unwrap());
            let leaf = inside.stat(c"leaf").unwrap();
            let one = inside.stat(c"one").unwrap();
            assert_eq!(leaf.mount, one.mount);
            assert!(one.links == leaf.links + 1 || one.links == 1);
            assert!(inside.stat(c"nothing").is_err());
            drop(inside);
            assert_eq!(std::env::current_dir().unwrap().as_os_str(), "/");
        });
        worker.join().unwrap();
        assert_eq!(std::env::current_dir().unwrap(), before);
    }
}
