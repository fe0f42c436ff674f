//! The quarantine directory: files that root alone may read, each with its sidecar.
//!
//! Owns: how they get in and what their names are. What is written appears under
//! its name when it is whole (`O_TMPFILE`, then a link), the sidecar before the
//! file, so that whatever stands here after a crash tells what it is. Must not:
//! touch the original. Tested by `tests/tests/quarantine.rs`.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, RenameFlags, openat, renameat2};
use nix::sys::stat::{Mode, fstat, fstatat};
use nix::unistd::{UnlinkatFlags, linkat, unlinkat};
use sha2::{Digest as _, Sha256};

use super::name::{Identity, unguessable};
use super::record::{Record, SUFFIX, Text, sidecar_of};
use crate::kernel::SyscallError;

/// Names that are tried for one file: NAME, NAME.001, … as clamonacc does.
const MOST_NAMES: u32 = 1000;
/// Longest name that leaves room for a number and for [`SUFFIX`].
const LONGEST_NAME: usize = 255 - ".001".len() - SUFFIX.len();
/// Read and written at a time.
const BLOCK: usize = 128 * 1024;
/// Unfinished new sidecars begin with this.
const NEW: &str = ".onacc-new.";

/// The quarantine directory cannot be used, or a file does not fit in.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// There is none.
    #[error(
        "the quarantine directory {path:?} cannot be used: {source}; make it, for root alone: install -d -m 0700 {path:?}"
    )]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Its filesystem is too simple.
    #[error(
        "the quarantine directory {path:?} cannot be used: files cannot be made in it ({source}); choose one on a local filesystem such as ext4, xfs or btrfs"
    )]
    Filesystem {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: SyscallError,
    },
    /// A thousand files of this name are there.
    #[error("{MOST_NAMES} files of this name are in quarantine already")]
    Names,
    /// The file was written to while it was copied.
    #[error("it is being written to")]
    Changing,
    /// The content cannot be read or written: full disk, quota, broken disk.
    #[error("{0}: {1}")]
    Copy(&'static str, io::Error),
    /// A record that cannot be read.
    #[error("the record {path:?} cannot be read: {why}")]
    Record {
        /// The sidecar.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A system call.
    #[error(transparent)]
    Syscall(#[from] SyscallError),
}

/// What stands in the directory under one name.
#[derive(Debug)]
pub struct Entry {
    /// The name.
    pub name: OsString,
    /// Whether the file itself is there.
    pub has_content: bool,
    /// The record; `None` if there is no sidecar.
    pub record: Option<Result<Record, StoreError>>,
}

/// A file's content on its way into the directory: it has no name yet, and is
/// gone if it gets none.
#[derive(Debug)]
pub struct Copied {
    file: File,
    /// Its SHA-256, in hexadecimal digits.
    pub sha256: String,
    /// Its bytes.
    pub size: u64,
}

/// The directory, held open: whatever becomes of its path.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    directory: OwnedFd,
}

impl Store {
    /// Opens the directory.
    ///
    /// # Errors
    /// [`StoreError::Directory`].
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let failed = |source| StoreError::Directory {
            path: path.to_owned(),
            source,
        };
        let real = path.canonicalize().map_err(failed)?;
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let directory =
            nix::fcntl::open(&real, flags, Mode::empty()).map_err(|errno| failed(errno.into()))?;
        Ok(Self {
            path: real,
            directory,
        })
    }

    /// Makes sure that files can be made here, and removes what a crash left unfinished.
    ///
    /// # Errors
    /// [`StoreError::Filesystem`].
    pub fn prepare(&self) -> Result<(), StoreError> {
        self.nameless().map_err(|source| StoreError::Filesystem {
            path: self.path.clone(),
            source,
        })?;
        for name in self.names()? {
            if name.as_bytes().starts_with(NEW.as_bytes()) {
                self.unlink(&name)?;
            }
        }
        Ok(())
    }

    /// What is wrong with the directory's owner and mode, if anything is.
    pub fn weakness(&self) -> Option<String> {
        let stat = fstat(&self.directory).ok()?;
        (stat.st_uid != 0 || stat.st_mode & 0o077 != 0).then(|| {
            format!(
                "the quarantine directory {} belongs to uid {} and has mode {:04o}: others than root may look into it or change it; chown root and chmod 0700 it",
                self.path.display(),
                stat.st_uid,
                stat.st_mode & 0o7777
            )
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Which directory it is.
    ///
    /// # Errors
    /// A failed `fstat(2)`.
    pub fn identity(&self) -> Result<Identity, SyscallError> {
        Identity::of_open(&self.directory)
    }

    /// Copies a file's content in, without a name. Blocks of zeros stay holes.
    ///
    /// # Errors
    /// [`StoreError::Changing`], [`StoreError::Copy`].
    pub fn copy_in(&self, from: BorrowedFd<'_>) -> Result<Copied, StoreError> {
        copy(from, self.nameless()?)
    }

    /// Gives the file a name, and its sidecar, the record, before that. Sets the
    /// record's name.
    ///
    /// # Errors
    /// No name left, or a system call.
    pub fn keep(&self, copied: &Copied, record: &mut Record) -> Result<(), StoreError> {
        let wanted = file_name(&record.origin.path());
        for number in 0..MOST_NAMES {
            let mut name = wanted.clone();
            if number > 0 {
                name.push(format!(".{number:03}"));
            }
            record.name = Text::of(name.as_bytes());
            let sidecar = sidecar_of(&name);
            match link(
                self.write_record(record)?.as_fd(),
                &self.directory,
                &sidecar,
            ) {
                Ok(()) => {}
                Err(Errno::EEXIST) => continue,
                Err(errno) => return Err(SyscallError::from_errno("linkat", errno).into()),
            }
            match link(copied.file.as_fd(), &self.directory, &name) {
                Ok(()) => return self.sync(),
                Err(errno) => {
                    self.unlink(&sidecar)?;
                    if errno != Errno::EEXIST {
                        return Err(SyscallError::from_errno("linkat", errno).into());
                    }
                }
            }
        }
        Err(StoreError::Names)
    }

    /// Writes a record again.
    ///
    /// # Errors
    /// The old one stays as it is.
    pub fn update(&self, record: &Record) -> Result<(), StoreError> {
        let new = OsString::from(format!("{NEW}{}", unguessable()));
        let name = record.name.path();
        link(self.write_record(record)?.as_fd(), &self.directory, &new)
            .map_err(|errno| SyscallError::from_errno("linkat", errno))?;
        let sidecar = sidecar_of(name.as_os_str());
        let flags = RenameFlags::empty();
        renameat2(&self.directory, &*new, &self.directory, &*sidecar, flags)
            .map_err(|errno| SyscallError::from_errno("renameat2", errno))?;
        self.sync()
    }

    /// Removes a file and its sidecar, the file first. Either may be missing.
    ///
    /// # Errors
    /// A failed `unlinkat(2)`.
    pub fn delete(&self, name: &OsStr) -> Result<(), StoreError> {
        self.unlink(name)?;
        self.unlink(&sidecar_of(name))?;
        self.sync()
    }

    /// All that is here, by name.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn list(&self) -> Result<Vec<Entry>, StoreError> {
        let mut files: Vec<OsString> = self
            .names()?
            .into_iter()
            .filter(|name| !name.as_bytes().starts_with(NEW.as_bytes()))
            .map(|name| {
                let bare = name.as_bytes().strip_suffix(SUFFIX.as_bytes());
                bare.map_or_else(|| name.clone(), |bare| OsStr::from_bytes(bare).to_owned())
            })
            .collect();
        files.sort();
        files.dedup();
        Ok(files.into_iter().map(|name| self.entry(name)).collect())
    }

    /// What stands under one name.
    pub fn entry(&self, name: OsString) -> Entry {
        let no_follow = AtFlags::AT_SYMLINK_NOFOLLOW;
        Entry {
            has_content: fstatat(&self.directory, &*name, no_follow).is_ok(),
            record: self.read_record(&name),
            name,
        }
    }

    /// Opens a file as `O_PATH`: no event, whoever watches the directory.
    ///
    /// # Errors
    /// It is not there.
    pub fn find(&self, name: &OsStr) -> Result<OwnedFd, SyscallError> {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        openat(&self.directory, name, flags, Mode::empty())
            .map_err(|errno| SyscallError::from_errno("openat", errno))
    }

    fn read_record(&self, name: &OsStr) -> Option<Result<Record, StoreError>> {
        let sidecar = sidecar_of(name);
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let failed = |why: String| StoreError::Record {
            path: self.path.join(&sidecar),
            why,
        };
        let file = match openat(&self.directory, &*sidecar, flags, Mode::empty()) {
            Ok(fd) => File::from(fd),
            Err(Errno::ENOENT) => return None,
            Err(errno) => return Some(Err(failed(errno.to_string()))),
        };
        let mut text = Vec::new();
        let read = file.take(1 << 20).read_to_end(&mut text);
        Some(
            read.map_err(|error| failed(error.to_string()))
                .and_then(|_| Record::parse(&text).map_err(|error| failed(error.to_string()))),
        )
    }

    fn write_record(&self, record: &Record) -> Result<File, StoreError> {
        let mut file = self.nameless()?;
        let failed = |error| StoreError::Copy("writing the record", error);
        let mut json = serde_json::to_vec_pretty(record).map_err(|error| failed(error.into()))?;
        json.push(b'\n');
        file.write_all(&json).map_err(failed)?;
        file.sync_all().map_err(failed)?;
        Ok(file)
    }

    /// A file of mode 0600 that has no name.
    fn nameless(&self) -> Result<File, SyscallError> {
        nameless_in(self.directory.as_fd(), Mode::S_IRUSR | Mode::S_IWUSR)
    }

    fn names(&self) -> Result<Vec<OsString>, StoreError> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let failed = |errno: Errno| StoreError::Directory {
            path: self.path.clone(),
            source: errno.into(),
        };
        // A descriptor of its own: reading moves its offset.
        let mut directory = openat(&self.directory, ".", flags, Mode::empty())
            .and_then(Dir::from_fd)
            .map_err(failed)?;
        let mut names = Vec::new();
        for entry in directory.iter() {
            let entry = entry.map_err(failed)?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name != "." && name != ".." {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }

    fn unlink(&self, name: &OsStr) -> Result<(), StoreError> {
        match unlinkat(&self.directory, name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(errno) => Err(SyscallError::from_errno("unlinkat", errno).into()),
        }
    }

    fn sync(&self) -> Result<(), StoreError> {
        nix::unistd::fsync(&self.directory).map_err(|errno| {
            SyscallError::from_errno("fsync of the quarantine directory", errno)
        })?;
        Ok(())
    }
}

/// A file in a directory, readable and writable, that has no name yet.
///
/// # Errors
/// The filesystem has no such thing, or is full.
pub fn nameless_in(directory: BorrowedFd<'_>, mode: Mode) -> Result<File, SyscallError> {
    let flags = OFlag::O_TMPFILE | OFlag::O_RDWR | OFlag::O_CLOEXEC;
    openat(directory, ".", flags, mode)
        .map(File::from)
        .map_err(|errno| SyscallError::from_errno("open(O_TMPFILE)", errno))
}

/// Gives an open file a name that nothing has yet.
///
/// # Errors
/// `EEXIST` if something has.
pub fn link(file: BorrowedFd<'_>, directory: impl AsFd, name: &OsStr) -> Result<(), Errno> {
    let own = format!("/proc/self/fd/{}", file.as_raw_fd());
    linkat(
        AT_FDCWD,
        own.as_str(),
        directory,
        name,
        AtFlags::AT_SYMLINK_FOLLOW,
    )
}

/// Copies all of a file into a new one and writes it to disk.
///
/// # Errors
/// [`StoreError::Changing`], [`StoreError::Copy`].
pub fn copy(from: BorrowedFd<'_>, mut to: File) -> Result<Copied, StoreError> {
    let stamp = || -> Result<_, SyscallError> {
        let stat = fstat(from).map_err(|errno| SyscallError::from_errno("fstat", errno))?;
        Ok((stat.st_size, stat.st_mtime, stat.st_mtime_nsec))
    };
    let before = stamp()?;
    let source = from
        .try_clone_to_owned()
        .map(File::from)
        .map_err(|error| StoreError::Copy("dup", error))?;
    let writing = |error| StoreError::Copy("writing the copy", error);
    let mut hash = Sha256::new();
    let size = each_block(&source, |block, end| {
        hash.update(block);
        if block.iter().all(|byte| *byte == 0) {
            to.seek(SeekFrom::Start(end)).map(drop)
        } else {
            to.write_all(block)
        }
        .map_err(writing)
    })?;
    to.set_len(size).map_err(writing)?;
    to.sync_all().map_err(writing)?;
    if stamp()? != before {
        return Err(StoreError::Changing);
    }
    let digest = hash.finalize();
    Ok(Copied {
        file: to,
        sha256: hexadecimal(&digest),
        size,
    })
}

/// SHA-256 of a file's content, in hexadecimal digits.
///
/// # Errors
/// [`StoreError::Copy`].
pub fn sha256(file: BorrowedFd<'_>) -> Result<String, StoreError> {
    let source = file
        .try_clone_to_owned()
        .map(File::from)
        .map_err(|error| StoreError::Copy("dup", error))?;
    let mut hash = Sha256::new();
    each_block(&source, |block, _| {
        hash.update(block);
        Ok(())
    })?;
    Ok(hexadecimal(&hash.finalize()))
}

/// Hands out a file's content, each block with the offset of its end. The
/// number of bytes.
fn each_block(
    source: &File,
    mut take: impl FnMut(&[u8], u64) -> Result<(), StoreError>,
) -> Result<u64, StoreError> {
    let mut size = 0u64;
    let mut block = vec![0; BLOCK];
    loop {
        match source.read_at(&mut block, size) {
            Ok(0) => return Ok(size),
            Ok(got) => {
                size += got as u64;
                take(&block[..got], size)?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(StoreError::Copy("reading it", error)),
        }
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    let digit = |value: u8| char::from(b"0123456789abcdef"[usize::from(value)]);
    let digits = bytes
        .iter()
        .flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]);
    digits.collect()
}

impl Copied {
    /// The file.
    pub fn file(&self) -> &File {
        &self.file
    }
}

/// What a file is called here: as it was, cut if that is too long, and never
/// like a sidecar or an unfinished file.
fn file_name(origin: &Path) -> OsString {
    let name = origin.file_name().unwrap_or(OsStr::new("unnamed"));
    let bytes = name.as_bytes();
    let mut end = bytes.len().min(LONGEST_NAME - 2);
    if let Ok(text) = std::str::from_utf8(bytes) {
        while !text.is_char_boundary(end) {
            end -= 1;
        }
    }
    let mut name = OsString::new();
    if bytes.starts_with(NEW.as_bytes()) {
        name.push("_");
    }
    name.push(OsStr::from_bytes(&bytes[..end]));
    if name.as_bytes().ends_with(SUFFIX.as_bytes()) {
        name.push("_");
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_cut_and_never_like_those_of_sidecars() {
        let of = |name: &str| file_name(&Path::new("/d").join(name));
        assert_eq!(of("a b"), "a b");
        assert_eq!(of("x.onacc.json"), "x.onacc.json_");
        assert!(!of(".onacc-new.1").as_bytes().starts_with(NEW.as_bytes()));
        let long = of(&"\u{fc}".repeat(127));
        assert!(long.len() <= LONGEST_NAME && long.to_str().is_some());
        assert!(sidecar_of(&long).len() + 4 <= 255);
        assert_eq!(file_name(Path::new("/")), "unnamed");
    }
}
