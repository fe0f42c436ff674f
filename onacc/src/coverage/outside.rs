//! Directories out of scope: learned one by one, ignored in the kernel.
//!
//! An ignored directory that comes into scope by a move would hide infected
//! files. So each, and every directory above it up to the filesystem's root, is
//! watched for moves BEFORE it is ignored, and its place is judged again after
//! that: a later move is reported, an earlier one is seen. In a directory that
//! holds an include path directly, the going of any sub-directory is told, too:
//! a file could come into its place. Must not: ignore a directory where any of
//! this fails. Tested by `tests/`.

use std::ffi::OsStr;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat, openat2};
use nix::sys::stat::Mode;

use crate::kernel::fanotify::{MoveWatch, Told};
use crate::kernel::file;
use crate::policy::Policy;

/// Directories between an ignored one and the root.
const MAX_DEPTH: usize = 256;

/// The ignored directories.
#[derive(Debug)]
pub struct OutsideMarks {
    moves: MoveWatch,
    /// The watches must outlive the inodes in memory: what is ignored is not
    /// ignored by a mark on the inode, but by its number.
    pinned: bool,
}

impl OutsideMarks {
    /// None yet.
    pub fn new(moves: MoveWatch) -> Self {
        Self {
            moves,
            pinned: false,
        }
    }

    /// As [`OutsideMarks::new`], for directories that are ignored by number.
    #[must_use]
    pub fn pinned(self, pinned: bool) -> Self {
        Self { pinned, ..self }
    }

    /// Nothing is ignored any more, so that nothing need be watched.
    pub fn forget(&self) {
        if let Err(error) = self.moves.flush(self.pinned) {
            tracing::debug!("onacc: {error}");
        }
    }

    /// Has the directory at `path` ignored (by `ignore`) if it is out of scope,
    /// and what directly in it is named by the settings is a directory. Whether
    /// it was.
    pub fn learn(
        &self,
        policy: &Arc<Policy>,
        path: &[u8],
        ignore: impl FnOnce(BorrowedFd<'_>) -> bool,
    ) -> bool {
        use std::os::unix::ffi::OsStrExt as _;
        let path = Path::new(OsStr::from_bytes(path));
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let Ok(directory) = open(path, flags, Mode::empty()) else {
            return false;
        };
        let Some(place) = Outside::place(policy, directory.as_fd()) else {
            return false;
        };
        if self.watch_chain(&directory, place.told()).is_none() {
            return false;
        }
        // A move since is reported; one before shows here.
        let Some(now) = Outside::place(policy, directory.as_fd()) else {
            return false;
        };
        now == place && now.names_directories_alone(&directory) && ignore(directory.as_fd())
    }

    /// Watches the directory and all above it, each before its parent is looked
    /// up, so that the parent is the one that it has while it is watched.
    fn watch_chain(&self, directory: &OwnedFd, told: Told) -> Option<()> {
        let mut told = told;
        let mut here = directory.try_clone().ok()?;
        let mut stat = file::stat(here.as_fd()).ok()?;
        let mount = stat.mount;

        for _ in 0..MAX_DEPTH {
            // Placed again each time: an evictable watch goes with its inode. It
            // cannot go while an inode below, with its ignore mark, is in memory.
            // (Where that is no mark, the watch is pinned.)
            self.moves.watch(here.as_fd(), told, self.pinned).ok()?;
            told = Told::Itself;
            let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
            let parent = openat(&here, "..", flags, Mode::empty()).ok()?;
            let above = file::stat(parent.as_fd()).ok()?;
            if above.mount != mount || above.key == stat.key {
                return Some(());
            }
            (here, stat) = (parent, above);
        }
        None
    }

    /// Whether an ignored directory, or one above it, was moved since the last
    /// call: then all ignore marks must go.
    pub fn moved(&self) -> bool {
        self.moves.moved()
    }

    /// Readable when something was moved.
    pub fn fds(&self) -> [BorrowedFd<'_>; 2] {
        self.moves.fds()
    }
}

/// A directory that is out of scope for certain, with its direct files but for
/// those that the settings name.
#[derive(Debug, PartialEq, Eq)]
struct Outside<'a> {
    named: Vec<&'a OsStr>,
}

impl<'a> Outside<'a> {
    fn place(policy: &'a Policy, directory: BorrowedFd<'_>) -> Option<Self> {
        let stat = file::stat(directory).ok()?;
        let mount = policy.mounts.get(stat.mount)?;
        // What lies above the part that is mounted cannot be watched for moves; so
        // nothing of the scope may lie outside that part.
        if !policy.scope.lies_within(mount) {
            return None;
        }
        let mut path = Vec::new();
        file::path_of(directory, &mut path)?;
        let named = policy.scope.names_in(mount, &path)?;
        policy
            .is_outside_by_any_path(mount, &path)
            .then_some(Self { named })
    }

    fn told(&self) -> Told {
        if self.named.is_empty() {
            Told::Itself
        } else {
            Told::Entries
        }
    }

    /// An ignored directory does not hide what is in its sub-directories; a file
    /// of a name that the settings know would be hidden, and one that does not
    /// exist yet may become one.
    fn names_directories_alone(&self, directory: &OwnedFd) -> bool {
        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_NO_XDEV | ResolveFlag::RESOLVE_NO_SYMLINKS);
        self.named
            .iter()
            .all(|name| openat2(directory, *name, how).is_ok())
    }
}
