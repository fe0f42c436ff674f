//! Coverage "mount" (`OnAccessMountPath`): a mark on the mount that holds a path.
//!
//! Such a mark sees every open through this mount, not those through another
//! mount of the same filesystem or in another mount namespace. Owns which mounts
//! are marked. Must not keep an fd on a mount: it could not be unmounted.
//! Tested here, as root on a scratch filesystem.

use std::collections::HashMap;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;

use crate::kernel::fanotify::{Group, MarkError};
use crate::kernel::file;
use crate::kernel::mounts::{Mount, MountTable};

/// Keeps the mount marks.
#[derive(Debug)]
pub struct MountMarks {
    group: Arc<Group>,
    /// By mount id: the mount, and whether it took the mark.
    known: HashMap<u64, (Mount, bool)>,
}

/// What became of a mount that was not known before.
#[derive(Debug)]
pub struct NewMount {
    /// The mount.
    pub mount: Mount,
    /// Whether its opens are events from now on.
    pub result: Result<(), MarkError>,
}

impl MountMarks {
    /// Nothing is marked yet.
    pub fn new(group: Arc<Group>) -> Self {
        Self {
            group,
            known: HashMap::new(),
        }
    }

    /// Marks the mounts that hold `paths` (absolute, without symlinks; they need
    /// not exist), and lets go those that hold none any more. Tells what became
    /// of mounts that are new; each refusal is told once.
    ///
    /// To be called whenever the kernel says that the mount table has changed,
    /// also if it looks the same: a mount that was made anew can look like the
    /// former one, and has no mark.
    pub fn follow(&mut self, paths: &[PathBuf], mounts: &MountTable) -> Vec<NewMount> {
        let wanted: HashMap<u64, &Mount> = paths
            .iter()
            .filter_map(|path| mounts.mount_of(path))
            .map(|mount| (mount.id, mount))
            .collect();
        let group = Arc::clone(&self.group);
        self.known.retain(|id, (mount, marked)| {
            let stays = wanted.get(id).is_some_and(|wanted| *wanted == mount);
            if !stays
                && *marked
                && let Some(place) = open_mount(mount)
            {
                // Absent means that the mark went with the mount.
                let _absent_is_fine = group.unmark_mount(place.as_fd());
            }
            stays
        });
        let mut new = Vec::new();
        for mount in wanted.into_values() {
            let before = self.known.get(&mount.id).map(|(_, marked)| *marked);
            // Another mount has come above it: the next call finds that one.
            let Some(place) = open_mount(mount) else {
                continue;
            };
            let result = self.group.mark_mount(place.as_fd());
            let marked = result.is_ok();
            self.known.insert(mount.id, (mount.clone(), marked));
            if before.is_none() || (before == Some(true) && !marked) {
                let mount = mount.clone();
                new.push(NewMount { mount, result });
            }
        }
        new
    }

    /// How many mounts are marked.
    pub fn count(&self) -> usize {
        self.known.values().filter(|(_, marked)| *marked).count()
    }
}

/// What the scope is built from in this coverage: the whole of each mount that
/// holds one of the paths. Exclude paths take effect as everywhere.
pub fn include_paths(paths: &[PathBuf], mounts: &MountTable) -> Vec<PathBuf> {
    let mut points: Vec<PathBuf> = paths
        .iter()
        .filter_map(|path| mounts.mount_of(path))
        .map(|mount| mount.point.clone())
        .collect();
    points.sort();
    points.dedup();
    points
}

/// Opens the place where a mount is (as `O_PATH`), and checks that it is this
/// mount: another may lie above it.
fn open_mount(mount: &Mount) -> Option<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
    let fd = open(&mount.point, flags, Mode::empty()).ok()?;
    let stat = file::stat(fd.as_fd()).ok()?;
    (stat.mount == mount.id).then_some(fd)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coverage::scratch::{Scratch, opened, or_skip, table, unmount};
    use crate::kernel::fanotify::GroupKind;

    #[test]
    fn the_whole_mount_of_a_path_is_in_scope() {
        let table =
            MountTable::parse(b"1 0 8:1 / / rw - ext4 a rw\n2 1 8:2 / /srv rw - ext4 b rw\n");
        let paths = ["/srv/a", "/srv/b", "/etc"].map(PathBuf::from);
        assert_eq!(
            include_paths(&paths, &table),
            [PathBuf::from("/"), PathBuf::from("/srv")]
        );
    }

    #[test]
    fn opens_through_the_mount_are_events_and_through_another_are_not() {
        let scratch = or_skip!(Scratch::new());
        let group = or_skip!(Group::new(GroupKind::Notification));
        let [one, two] = ["one", "two"].map(|name| scratch.mount(name));
        let mut marks = MountMarks::new(Arc::clone(&group));
        std::fs::create_dir(one.join("sub")).unwrap();
        std::fs::write(one.join("sub/f"), "x").unwrap();
        std::fs::write(two.join("f"), "x").unwrap();
        let paths = [one.join("sub/missing")];
        let new = marks.follow(&paths, &table());
        assert!(new.len() == 1 && new[0].result.is_ok() && new[0].mount.point == one);
        let seen = opened(&group, &[one.join("sub/f"), two.join("f")]);
        assert_eq!(seen, [one.join("sub/f")]);
        assert!(marks.follow(&paths, &table()).is_empty());

        // Made anew: the table may look the same.
        unmount(&one);
        let again = scratch.mount("one");
        std::fs::write(again.join("f"), "x").unwrap();
        marks.follow(&paths, &table());
        assert_eq!(marks.count(), 1);
        assert_eq!(opened(&group, &[again.join("f")]), [again.join("f")]);

        let _none_new = marks.follow(std::slice::from_ref(&two), &table());
        let seen = opened(&group, &[again.join("f"), two.join("f")]);
        assert_eq!(seen, [two.join("f")]);
    }

    #[test]
    fn a_mount_that_takes_no_marks_is_told_once() {
        let _scratch = or_skip!(Scratch::new());
        let group = or_skip!(Group::new(GroupKind::Permission));
        let mut marks = MountMarks::new(group);
        let paths = [PathBuf::from("/proc")];
        let new = marks.follow(&paths, &table());
        assert!(matches!(new[0].result, Err(MarkError::Refused)));
        assert!(marks.follow(&paths, &table()).is_empty());
        assert_eq!(marks.count(), 0);
    }
}
