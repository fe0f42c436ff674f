//! For the tests of coverage: filesystems of a test's own, and what a group sees.
//!
//! Everything happens in a mount namespace of the test's thread. Groups are of
//! the kind that blocks nobody, or mark nothing that others could open.

use std::collections::BTreeSet;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

use crate::kernel::fanotify::{Answer, FdBudget, Group, PendingEvent, ReadBuffer, Taken};
use crate::kernel::file;
use crate::kernel::mounts::MountTable;

/// Ends the test, saying why, where the machine does not allow it.
macro_rules! or_skip {
    ($made:expr) => {
        match $made {
            Ok(made) => made,
            Err(reason) => {
                println!("SKIPPED: {reason}");
                return;
            }
        }
    };
}
pub(crate) use or_skip;

/// A private mount namespace with a tmpfs in it.
pub struct Scratch {
    base: tempfile::TempDir,
}

impl Scratch {
    pub fn new() -> nix::Result<Self> {
        let base = tempfile::tempdir().unwrap();
        unshare(CloneFlags::CLONE_NEWNS)?;
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>)?;
        mount_tmpfs(base.path())?;
        Ok(Self { base })
    }

    /// Where the tmpfs is.
    pub fn path(&self) -> PathBuf {
        self.base.path().to_owned()
    }

    /// A further tmpfs in it.
    pub fn mount(&self, name: &str) -> PathBuf {
        let point = self.base.path().join(name);
        std::fs::create_dir_all(&point).unwrap();
        mount_tmpfs(&point).unwrap();
        point
    }

    /// A file shown in the place of another one.
    pub fn bind_file(&self, from: &Path, name: &str) -> PathBuf {
        let point = self.base.path().join(name);
        mount(
            Some(from),
            &point,
            None::<&str>,
            MsFlags::MS_BIND,
            None::<&str>,
        )
        .unwrap();
        point
    }

    /// A directory of it shown at another place, with what is mounted below.
    pub fn bind(&self, from: &Path, name: &str) -> PathBuf {
        let point = self.base.path().join(name);
        std::fs::create_dir_all(&point).unwrap();
        let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
        mount(Some(from), &point, None::<&str>, flags, None::<&str>).unwrap();
        point
    }
}

/// Unmounts what a test has mounted.
pub fn unmount(point: &Path) {
    umount2(point, MntFlags::empty()).unwrap();
}

/// The mount table of this thread's namespace.
pub fn table() -> MountTable {
    MountTable::parse(&std::fs::read("/proc/thread-self/mountinfo").unwrap())
}

fn mount_tmpfs(point: &Path) -> nix::Result<()> {
    let flags = MsFlags::empty();
    mount(
        Some("onacc-test"),
        point,
        Some("tmpfs"),
        flags,
        None::<&str>,
    )
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What is mounted below goes with it; the namespace ends with the thread.
        let _gone_with_the_thread = umount2(self.base.path(), MntFlags::MNT_DETACH);
    }
}

/// Opens these files for reading, and tells of which of them the group told.
pub fn opened(group: &Arc<Group>, files: &[PathBuf]) -> Vec<PathBuf> {
    told(group);
    let mut seen = BTreeSet::new();
    for path in files {
        drop(std::fs::File::open(path).unwrap());
        seen.extend(told(group));
    }
    seen.into_iter().collect()
}

/// Takes the events that wait: files that this thread has opened.
pub fn told(group: &Arc<Group>) -> BTreeSet<PathBuf> {
    let budget = FdBudget::new(1000);
    let mut buffer = ReadBuffer::new();
    let mut seen = BTreeSet::new();
    let own = nix::unistd::gettid().as_raw();
    let mut each = |event: PendingEvent| {
        if let Some(file) = event.file().filter(|_| event.tid() == own) {
            seen.extend(file::path_buf_of(file));
        }
    };
    while group
        .read(&mut buffer, (&budget, Answer::Allow), &mut each)
        .unwrap()
        == Taken::Full
    {}
    seen
}

/// Inode numbers that carry marks of the group.
pub fn marked_inodes(group: &Group) -> BTreeSet<u64> {
    let path = format!("/proc/self/fdinfo/{}", group.as_fd().as_raw_fd());
    std::fs::read_to_string(path)
        .unwrap()
        .lines()
        .filter_map(|line| line.strip_prefix("fanotify ino:"))
        .map(|rest| u64::from_str_radix(rest.split(' ').next().unwrap(), 16).unwrap())
        .collect()
}
