//! Files that are mounted themselves, in the scope: they carry a mark each.
//!
//! Such a file lies in another directory than the one that shows it, which no
//! mark needs to be on. The mark is on the inode, so that it is seen by whatever
//! mount or namespace it is opened; the scope names its place, too. Must not:
//! keep an fd, or touch a filesystem whose server may hang.

use std::collections::HashMap;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use super::names::{self, LeftOut};
use super::opening::{is_gone, open_at};
use super::{Directories, Marker};
use crate::kernel::file::{self, FileStat};
use crate::kernel::handle::FileHandle;
use crate::kernel::mounts::Mount;
use crate::observe::printable;
use crate::policy::Side;

/// By the id of its mount.
pub(super) type MountedFiles = HashMap<u64, MountedFile>;

/// A file that carries a mark because it is mounted in the scope.
#[derive(Debug)]
pub(super) struct MountedFile {
    dev: u32,
    /// The way back to it. None: its filesystem has none, the mark stays.
    handle: Option<FileHandle>,
}

impl<M: Marker> Directories<M> {
    /// Marks the files that are mounted in the scope by now, and lets go of those
    /// that are not any more.
    pub(super) fn follow_mounted_files(&mut self) {
        let policy = Arc::clone(&self.policy);
        let mut before = std::mem::take(&mut self.mounted_files);
        for mount in policy.mounts.iter() {
            if !self.may_be_a_file_of_ours(mount) {
                continue;
            }
            // A call into a filesystem may take as long as it likes.
            self.links.heartbeat.rest();
            let file = open_mounted_file(mount);
            let marked = file.and_then(|file| self.mark_mounted_file(mount, &file));
            self.links.heartbeat.beat();
            let Some(marked) = marked else { continue };
            if let Some(former) = before.remove(&mount.id)
                && former.handle != marked.handle
            {
                // Another file, under the numbers of the first one.
                before.insert(mount.id, former);
            }
            self.mounted_files.insert(mount.id, marked);
        }
        for gone in before.into_values() {
            let still = |other: &MountedFile| other.handle == gone.handle;
            if !self.mounted_files.values().any(still) {
                self.unmark_mounted_file(&gone);
            }
        }
    }

    fn may_be_a_file_of_ours(&self, mount: &Mount) -> bool {
        let point = mount.point.as_os_str().as_encoded_bytes();
        mount.root != Path::new("/")
            && self.names.reaches_file(point)
            && names::left_out(mount, &self.policy.mounts) == LeftOut::No
            && self.policy.scope.side_of_opened(mount, point) == Some(Side::Inside)
    }

    fn mark_mounted_file(&self, mount: &Mount, file: &OwnedFd) -> Option<MountedFile> {
        let shown = printable(mount.point.as_os_str().as_encoded_bytes());
        if let Err(error) = self.marker.mark_file(file) {
            self.links.counters.directory_errors.up();
            tracing::warn!("onacc: the file mounted on {shown} is not protected: {error}");
            return None;
        }
        tracing::debug!("onacc: marked the file mounted on {shown}");
        Some(MountedFile {
            dev: mount.dev,
            handle: FileHandle::of(file.as_fd()).ok(),
        })
    }

    fn unmark_mounted_file(&self, gone: &MountedFile) {
        self.links.heartbeat.rest();
        let file = gone.handle.and_then(|handle| {
            let mount = self.open_mount(gone.dev)?;
            handle.open(mount.as_fd()).ok()
        });
        // Gone with its mark, or it cannot be reached: then the mark stays.
        if let Some(file) = file {
            self.marker.unmark_file(&file);
        }
        self.links.heartbeat.beat();
    }
}

/// What is mounted there, if it is a regular file and nothing hides it.
fn open_mounted_file(mount: &Mount) -> Option<OwnedFd> {
    let point = mount.point.as_os_str().as_encoded_bytes();
    let fd = match open_at(point) {
        Ok(fd) => fd,
        Err(errno) => {
            if !is_gone(errno) {
                tracing::debug!("onacc: {}: {errno}", printable(point));
            }
            return None;
        }
    };
    let stat: FileStat = file::stat(fd.as_fd()).ok()?;
    (stat.regular && stat.mount == mount.id).then_some(fd)
}
