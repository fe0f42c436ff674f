//! Openers that are left out by their program or control group.
//!
//! The reader asks `/proc`: its opener waits, and is there. An opener that eBPF
//! told of may be gone; its control group is in the record, by the number that the
//! kernel never gives to another group. Must not: keep an answer of `/proc` (an
//! exec changes the program, anybody with the right to may change the group).
//! Tested here and by `tests/`.

use std::collections::HashMap;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use nix::fcntl::OFlag;
use nix::sys::stat::Mode;

use crate::kernel::file;
use crate::kernel::handle::FileHandle;
use crate::kernel::mounts::MountTable;
use crate::kernel::procfs::Proc;
use crate::policy::{Policy, Rules};

/// Groups whose side is remembered.
const MOST_GROUPS: usize = 4096;

/// Whether a thread that waits in an open is left out.
pub fn is_left_out(policy: &Policy, proc: &Proc, tid: i32) -> bool {
    let rules = &policy.rules;
    tid != 0 && (by_program(rules, proc, tid) || rules.ask_group() && by_group(rules, proc, tid))
}

fn by_program(rules: &Rules, proc: &Proc, tid: i32) -> bool {
    rules.ask_program()
        && proc
            .program(tid)
            .is_some_and(|program| rules.leaves_out_program(program))
}

fn by_group(rules: &Rules, proc: &Proc, tid: i32) -> bool {
    let mut buffer = [0; 8192];
    let group = proc.control_group(tid, &mut buffer);
    group.is_some_and(|group| rules.leaves_out_group(group))
}

/// Who opened, as far as a record tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opener {
    /// Its thread; 0: not known.
    pub tid: i32,
    /// The id of its control group (version 2); 0: not known.
    pub group: u64,
}

/// Sides of control groups by their ids. A group with an id cannot be renamed, so
/// that an answer holds as long as the rules do, also when the group is gone.
#[derive(Debug, Default)]
pub struct Groups {
    rules: Arc<Rules>,
    sides: HashMap<u64, bool>,
    hierarchy: Option<Hierarchy>,
}

impl Groups {
    /// Whether an opener is left out that may be gone.
    pub fn leave_out(&mut self, policy: &Policy, proc: &Proc, opener: Opener) -> bool {
        let rules = &policy.rules;
        if opener.tid != 0 && by_program(rules, proc, opener.tid) {
            return true;
        }
        if !rules.ask_group() {
            return false;
        }
        // The number is of the moment of the open; /proc tells of now.
        self.side(policy, opener.group)
            .unwrap_or_else(|| opener.tid != 0 && by_group(rules, proc, opener.tid))
    }

    /// `None`: nothing is known of a group with this id (any more).
    fn side(&mut self, policy: &Policy, id: u64) -> Option<bool> {
        if id == 0 {
            return None;
        }
        if !Arc::ptr_eq(&self.rules, &policy.rules) {
            self.rules = Arc::clone(&policy.rules);
            self.sides.clear();
            self.hierarchy = None;
        }
        if let Some(side) = self.sides.get(&id) {
            return Some(*side);
        }
        if self.hierarchy.is_none() {
            self.hierarchy = Hierarchy::find(&policy.mounts);
        }
        let path = self.hierarchy.as_ref()?.path_of(id)?;
        let side = self.rules.leaves_out_group(&path);
        if self.sides.len() >= MOST_GROUPS {
            self.sides.clear();
        }
        self.sides.insert(id, side);
        Some(side)
    }
}

/// A mount of the hierarchy of version 2.
#[derive(Debug)]
struct Hierarchy {
    root: OwnedFd,
    point: Vec<u8>,
}

impl Hierarchy {
    fn find(mounts: &MountTable) -> Option<Self> {
        let whole = |root: &Path| root == Path::new("/");
        let mut found = mounts
            .iter()
            .filter(|mount| mount.kind == "cgroup2" && whole(&mount.root));
        found.find_map(|mount| {
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
            let root = nix::fcntl::open(&mount.point, flags, Mode::empty()).ok()?;
            let shown = file::stat(root.as_fd()).ok()?;
            (shown.mount == mount.id).then(|| Self {
                root,
                point: mount.point.as_os_str().as_encoded_bytes().to_vec(),
            })
        })
    }

    /// The path of a group from the root of the hierarchy.
    fn path_of(&self, id: u64) -> Option<Vec<u8>> {
        let group = FileHandle::of_kernfs(id).open(self.root.as_fd()).ok()?;
        let mut path = Vec::new();
        file::path_of(group.as_fd(), &mut path)?;
        let below = path.strip_prefix(self.point.as_slice())?;
        Some(if below.is_empty() { b"/" } else { below }.to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStrExt as _;
    use std::os::unix::fs::MetadataExt as _;

    #[test]
    fn a_group_is_found_by_its_number_until_it_is_gone() {
        let table = MountTable::read().unwrap();
        let Some(hierarchy) = Hierarchy::find(&table) else {
            println!("SKIPPED: no control groups of version 2 here");
            return;
        };
        let point = Path::new(std::ffi::OsStr::from_bytes(&hierarchy.point));
        let dir = point.join(format!("onacc-unit-{}", std::process::id()));
        if let Err(error) = std::fs::create_dir_all(dir.join("below")) {
            println!("SKIPPED: {}: {error}", dir.display());
            return;
        }
        let id = |dir: &Path| std::fs::metadata(dir).unwrap().ino();
        let (top, below) = (id(&dir), id(&dir.join("below")));
        let name = format!("/{}", dir.file_name().unwrap().display());
        assert_eq!(hierarchy.path_of(id(point)).as_deref(), Some(&b"/"[..]));
        assert_eq!(hierarchy.path_of(top).as_deref(), Some(name.as_bytes()));
        let inner = format!("{name}/below");
        assert_eq!(hierarchy.path_of(below).as_deref(), Some(inner.as_bytes()));
        std::fs::remove_dir(dir.join("below")).unwrap();
        std::fs::remove_dir(&dir).unwrap();
        assert_eq!(hierarchy.path_of(below), None);
        assert_eq!(hierarchy.path_of(0), None);
    }
}
