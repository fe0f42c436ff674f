//! Where an opened file is, and whether that is in scope.
//!
//! For files that were opened in another mount namespace the path is that
//! namespace's: it is translated, or counts as unknown. Must not: open anything
//! that could wait. Tested by `tests/`.

use std::os::fd::{AsFd as _, BorrowedFd};

use crate::kernel::file::{self, FileStat};
use crate::kernel::handle::FileHandle;
use crate::kernel::mounts::Mount;
use crate::kernel::procfs::OwnFiles;
use crate::policy::{Policy, Unscanned};

/// Finds places; keeps its buffers.
#[derive(Debug)]
pub struct Placer {
    /// The path of the file that was judged last, empty if there is none.
    pub path: Vec<u8>,
    /// Whether an open of that file is denied when its scan fails.
    pub denies_on_error: bool,
    translated: Vec<u8>,
    files: OwnFiles,
}

impl Placer {
    /// With room for any path.
    pub fn new() -> Self {
        Self {
            path: Vec::with_capacity(4097),
            denies_on_error: false,
            translated: Vec::with_capacity(4097),
            files: OwnFiles::open(),
        }
    }

    /// Judges by place; leaves the path in `self.path`, empty if there is none,
    /// and what is to be done on failure in `self.denies_on_error`.
    pub fn judge(
        &mut self,
        policy: &Policy,
        file: BorrowedFd<'_>,
        stat: &FileStat,
    ) -> Option<Unscanned> {
        self.denies_on_error = policy.deny_on_error;
        let told = self.files.path_of(file, &mut self.path);
        if told.is_none() {
            self.path.clear();
            return None;
        }
        let mount = if let Some(mount) = policy.mounts.get(stat.mount) {
            mount
        } else {
            // A mount of another namespace: the path is that namespace's.
            let mount = policy.mounts.whole(stat.key.dev)?;
            self.translate(file, stat, mount)?;
            mount
        };
        self.denies_on_error = policy.denies_on_error(Some(mount), &self.path);
        policy.by_place_on(mount, stat, &self.path)
    }

    /// Finds the path that the file has on a mount of ours. `None` if that is
    /// not certain: with several names the kernel may tell another one.
    fn translate(&mut self, file: BorrowedFd<'_>, stat: &FileStat, mount: &Mount) -> Option<()> {
        if stat.links > 1 {
            return None;
        }
        let handle = FileHandle::of(file).ok()?;
        let root = file::open_cached_directory(&mount.point).ok()?;
        let again = handle.open(root.as_fd()).ok()?;
        let same = file::stat(again.as_fd()).ok()?;
        if same.key != stat.key || same.mount != mount.id {
            return None;
        }
        let told = self.files.path_of(again.as_fd(), &mut self.translated);
        if told.is_some() {
            std::mem::swap(&mut self.path, &mut self.translated);
        }
        told
    }
}

impl Default for Placer {
    fn default() -> Self {
        Self::new()
    }
}
