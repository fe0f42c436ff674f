//! Taking a name away from one inode, and from no other.
//!
//! The kernel has no "unlink this name if it is this inode's". So a name that is
//! the file's is first renamed into a new directory that root alone may enter,
//! and looked at there, where nobody can change it any more. If a rename slipped
//! in between and it is another file, it goes back to where it was. Must not:
//! follow a symlink, or unlink anything that was not looked at in there. Tested
//! here, with threads that swap the names all the time.

use std::ffi::{CString, OsStr};
use std::hash::BuildHasher as _;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, RenameFlags, ResolveFlag, openat2, renameat2};
use nix::sys::stat::{FileStat, Mode, fstat, fstatat, mkdirat};
use nix::unistd::{UnlinkatFlags, geteuid, unlinkat};

use crate::kernel::SyscallError;

/// What the private directories are called, before some letters that nobody can guess.
pub const HOLDING: &str = ".onacc-quarantine.";
/// What a file is called that could not go back to its own name.
pub const SAVED: &str = ".onacc-saved.";
/// The name in a private directory.
const CAPTURED: &str = "captured";

/// Which inode something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    device: u64,
    inode: u64,
}

impl Identity {
    /// By what `stat(2)` says. Holds as long as an fd of the file is open.
    pub fn of(stat: &FileStat) -> Self {
        Self {
            device: stat.st_dev,
            inode: stat.st_ino,
        }
    }

    /// Of an open file.
    ///
    /// # Errors
    /// A failed `fstat(2)`.
    pub fn of_open(file: impl AsFd) -> Result<Self, SyscallError> {
        let stat = fstat(file).map_err(|errno| SyscallError::from_errno("fstat", errno))?;
        Ok(Self::of(&stat))
    }
}

/// A name is not taken away.
#[derive(Debug, thiserror::Error)]
pub enum NameError {
    /// The name is another file's by now, or nobody's.
    #[error("{0:?} is not its name any more")]
    Other(PathBuf),
    /// It was swapped for another file at that very moment, which is back in its place.
    #[error("{0:?} is being swapped for other files")]
    Swapped(PathBuf),
    /// Something else could not go back to its name, which was taken meanwhile.
    #[error("{name:?} was swapped for another file at that moment, which is now {saved:?}")]
    Displaced {
        /// Where it was.
        name: PathBuf,
        /// Where it is, in the same directory.
        saved: PathBuf,
    },
    /// Something could not go back at all.
    #[error(
        "{name:?} was swapped for another file at that moment, which is now {held:?}: {source}"
    )]
    Held {
        /// Where it was.
        name: PathBuf,
        /// Where it is.
        held: PathBuf,
        /// Why it could not go back.
        source: SyscallError,
    },
    /// The private directory is not what was made.
    #[error("the directory made to hold it for a moment was swapped for another")]
    Intruder,
    /// A system call.
    #[error(transparent)]
    Syscall(#[from] SyscallError),
}

/// A directory, and a name in it.
#[derive(Debug)]
pub struct Name {
    path: PathBuf,
    parent: OwnedFd,
    last: CString,
}

impl Name {
    /// Walks from the root to the directory of an absolute path, through no symlink.
    ///
    /// # Errors
    /// [`NameError::Other`] if there is no such directory any more.
    pub fn find(path: &Path) -> Result<Self, NameError> {
        let other = || NameError::Other(path.to_owned());
        let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(other());
        };
        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        let parent = match openat2(nix::fcntl::AT_FDCWD, directory, how) {
            Ok(parent) => parent,
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => return Err(other()),
            Err(errno) => return Err(SyscallError::from_errno("openat2", errno).into()),
        };
        Ok(Self {
            path: path.to_owned(),
            parent,
            last: CString::new(name.as_bytes()).map_err(|_| other())?,
        })
    }

    /// Which directory the name is in.
    ///
    /// # Errors
    /// A failed `fstat(2)`.
    pub fn directory(&self) -> Result<Identity, SyscallError> {
        Identity::of_open(&self.parent)
    }

    /// Whether the name is, for now, that file's.
    pub fn is_of(&self, file: Identity) -> bool {
        fstatat(&self.parent, &*self.last, AtFlags::AT_SYMLINK_NOFOLLOW)
            .is_ok_and(|stat| Identity::of(&stat) == file)
    }

    /// Takes the name away if it is that file's, which must be open meanwhile.
    ///
    /// # Errors
    /// [`NameError::Other`] if it is not; the others say what went wrong, and
    /// nothing is lost in any of them.
    pub fn remove(&self, file: Identity) -> Result<(), NameError> {
        if !self.is_of(file) {
            return Err(NameError::Other(self.path.clone()));
        }
        let holding = Holding::make(&self.parent)?;
        let flags = RenameFlags::RENAME_NOREPLACE;
        match renameat2(&self.parent, &*self.last, &holding.fd, CAPTURED, flags) {
            Ok(()) => {}
            Err(Errno::ENOENT) => return Err(NameError::Other(self.path.clone())),
            Err(errno) => {
                let call = "renameat2 out of its directory";
                return Err(SyscallError::from_errno(call, errno).into());
            }
        }
        // From here on nobody else can reach what was captured.
        let captured = fstatat(&holding.fd, CAPTURED, AtFlags::AT_SYMLINK_NOFOLLOW);
        let is_it = captured.is_ok_and(|stat| Identity::of(&stat) == file);
        let failed = if is_it {
            match unlinkat(&holding.fd, CAPTURED, UnlinkatFlags::NoRemoveDir) {
                Ok(()) => return Ok(()),
                Err(errno) => SyscallError::from_errno("unlinkat", errno).into(),
            }
        } else {
            NameError::Swapped(self.path.clone())
        };
        self.put_back(holding)?;
        Err(failed)
    }

    fn put_back(&self, mut holding: Holding<'_>) -> Result<(), NameError> {
        let flags = RenameFlags::RENAME_NOREPLACE;
        let back = |name: &OsStr| renameat2(&holding.fd, CAPTURED, &self.parent, name, flags);
        let errno = match back(OsStr::from_bytes(self.last.as_bytes())) {
            Ok(()) => return Ok(()),
            Err(errno) => errno,
        };
        let saved = format!("{SAVED}{}", unguessable());
        if errno == Errno::EEXIST && back(OsStr::new(&saved)).is_ok() {
            return Err(NameError::Displaced {
                name: self.path.clone(),
                saved: self.path.with_file_name(saved),
            });
        }
        holding.stays = true;
        Err(NameError::Held {
            name: self.path.clone(),
            held: self.path.with_file_name(&holding.name).join(CAPTURED),
            source: SyscallError::from_errno("renameat2 back", errno),
        })
    }
}

/// A directory of our own beside the name, so that a rename into it crosses
/// neither filesystem nor mount.
struct Holding<'a> {
    parent: &'a OwnedFd,
    name: String,
    fd: OwnedFd,
    stays: bool,
}

impl<'a> Holding<'a> {
    fn make(parent: &'a OwnedFd) -> Result<Self, NameError> {
        let name = format!("{HOLDING}{}", unguessable());
        mkdirat(parent, name.as_str(), Mode::S_IRWXU)
            .map_err(|errno| SyscallError::from_errno("mkdirat beside it", errno))?;
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let opened = nix::fcntl::openat(parent, name.as_str(), flags, Mode::empty());
        let fd = opened.map_err(|errno| SyscallError::from_errno("openat", errno))?;
        let stat = fstat(&fd).map_err(|errno| SyscallError::from_errno("fstat", errno))?;
        // Who may write to `parent` could have put a directory of his own here.
        if stat.st_uid != geteuid().as_raw() || stat.st_mode & 0o077 != 0 {
            return Err(NameError::Intruder);
        }
        Ok(Self {
            parent,
            name,
            fd,
            stays: false,
        })
    }
}

impl Drop for Holding<'_> {
    fn drop(&mut self) {
        if self.stays {
            return;
        }
        let name = self.name.as_str();
        if let Err(errno) = unlinkat(self.parent, name, UnlinkatFlags::RemoveDir) {
            tracing::warn!(
                "onacc: cannot remove the empty directory {name} (fd {}): {errno}",
                self.fd.as_raw_fd()
            );
        }
    }
}

/// Sixteen hexadecimal digits that nobody can foresee.
pub(super) fn unguessable() -> String {
    // Its keys are random, and its hash is a keyed one.
    let state = std::hash::RandomState::new();
    format!("{:016x}", state.hash_one(std::process::id()))
}

#[cfg(test)]
mod tests;
