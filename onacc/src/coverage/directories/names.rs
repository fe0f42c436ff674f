//! What the include and exclude paths want of one directory.
//!
//! Pure text. The side of the border comes from the scope (by place, so that
//! bind mounts change nothing); this adds what a walk needs: which way leads to
//! an include path, how far a directory is followed. Tested here.

use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use crate::kernel::mounts::{Mount, MountTable, is_below};
use crate::policy::Side;
use crate::policy::{LaneId, lane_of};

/// How far an include path reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// To all sub-directories (coverage "directory").
    Whole,
    /// To the named directory alone (coverage "listed", `OnAccessDisableDDD`).
    NamedAlone,
}

/// What becomes of a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// It carries a mark.
    pub mark: bool,
    /// All its sub-directories are followed; else only those that lead to an
    /// include path.
    pub whole: bool,
}

/// Filesystems without files of their own: no mark, no walk. An `autofs` place
/// must not be listed, that would mount it.
const PSEUDO: &[&str] = &[
    "autofs",
    "binfmt_misc",
    "bpf",
    "cgroup",
    "cgroup2",
    "configfs",
    "debugfs",
    "devpts",
    "efivarfs",
    "fusectl",
    "mqueue",
    "nsfs",
    "proc",
    "pstore",
    "resctrl",
    "rpc_pipefs",
    "securityfs",
    "selinuxfs",
    "sysfs",
    "tracefs",
];

/// Whether a filesystem is left out of the walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeftOut {
    /// It is not.
    No,
    /// Unless it is named: it has no files that could be infected.
    UnlessNamed,
    /// Always: its opens can wait for others, which one reader for all
    /// directories, and one thread that walks them, must not (`intake::lanes`).
    Always,
}

/// Whether what is mounted there is left out.
pub fn left_out(mount: &Mount, mounts: &MountTable) -> LeftOut {
    if PSEUDO.contains(&mount.kind.as_str()) {
        return LeftOut::UnlessNamed;
    }
    match lane_of(mount, mounts) {
        LaneId::Plain | LaneId::Overlay => LeftOut::No,
        LaneId::Own(_) => LeftOut::Always,
    }
}

/// The include and exclude paths: absolute, without symlinks.
#[derive(Clone, Debug)]
pub struct Names {
    includes: Vec<Vec<u8>>,
    excludes: Vec<Vec<u8>>,
    reach: Reach,
}

impl Names {
    /// From resolved paths.
    pub fn new(includes: &[PathBuf], excludes: &[PathBuf], reach: Reach) -> Self {
        let bytes = |paths: &[PathBuf]| {
            paths
                .iter()
                .map(|path| path.clone().into_os_string().into_vec())
                .collect()
        };
        Self {
            includes: bytes(includes),
            excludes: bytes(excludes),
            reach,
        }
    }

    /// What becomes of the directory at `path`, which lies on this side of the
    /// border. `None`: nothing, it is not followed.
    pub fn plan(&self, path: &[u8], side: Side, left_out: LeftOut) -> Option<Plan> {
        let named = self.is_named(path);
        let open_to_us = match left_out {
            LeftOut::No => true,
            LeftOut::UnlessNamed => named,
            LeftOut::Always => false,
        };
        let inside = side == Side::Inside && open_to_us;
        let whole = inside && self.reach == Reach::Whole;
        let mark = whole || (inside && named);
        let leads_on = || {
            self.includes
                .iter()
                .any(|include| below(include, path).is_some())
        };
        (mark || leads_on()).then_some(Plan { mark, whole })
    }

    /// Whether this very path is an include path.
    pub fn is_named(&self, path: &[u8]) -> bool {
        self.includes.iter().any(|include| include == path)
    }

    /// Whether a file at `path`, which is inside, is protected: with this reach
    /// perhaps the files of named directories alone are.
    pub fn reaches_file(&self, path: &[u8]) -> bool {
        self.includes.iter().any(|include| {
            include == path
                || below(path, include)
                    .is_some_and(|rest| self.reach == Reach::Whole || !rest.contains(&b'/'))
        })
    }

    /// The names directly in `path` that lead to include paths; one may come twice.
    pub fn ways_from<'a>(&'a self, path: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
        self.includes.iter().filter_map(|include| {
            below(include, path)?
                .split(|byte| *byte == b'/')
                .find(|name| !name.is_empty())
        })
    }

    /// Whether an include path lies directly in `path`.
    pub fn names_something_in(&self, path: &[u8]) -> bool {
        self.includes
            .iter()
            .filter_map(|include| below(include, path))
            .any(|rest| !rest.contains(&b'/'))
    }

    /// Whether an include or exclude path is `path` or lies below it: then not
    /// all below it is alike.
    pub fn names_something_below(&self, path: &[u8]) -> bool {
        let mut all = self.includes.iter().chain(&self.excludes);
        all.any(|named| named == path || below(named, path).is_some())
    }

    /// As [`Self::names_something_below`], but strictly below.
    pub fn names_something_deeper(&self, path: &[u8]) -> bool {
        let mut all = self.includes.iter().chain(&self.excludes);
        all.any(|named| below(named, path).is_some())
    }

    /// Whether what is mounted here matters: it lies in, or on the way to, an
    /// include path.
    pub fn concerns(&self, point: &Path) -> bool {
        use std::os::unix::ffi::OsStrExt as _;
        let point = point.as_os_str().as_bytes();
        self.includes.iter().any(|include| {
            include == point || below(include, point).is_some() || below(point, include).is_some()
        })
    }

    /// Whether an exclude path leads to another place than before: then the
    /// scope has changed elsewhere than at the mounts that came or went.
    pub fn excludes_moved(&self, old: &MountTable, new: &MountTable) -> bool {
        use std::os::unix::ffi::OsStrExt as _;
        self.excludes.iter().any(|path| {
            let path = Path::new(std::ffi::OsStr::from_bytes(path));
            old.place_of(path) != new.place_of(path)
        })
    }
}

/// What of `path` comes strictly below `above`, without the slash between.
fn below<'a>(path: &'a [u8], above: &[u8]) -> Option<&'a [u8]> {
    if above == b"/" {
        return path.strip_prefix(b"/").filter(|rest| !rest.is_empty());
    }
    path.strip_prefix(above)?
        .strip_prefix(b"/")
        .filter(|rest| !rest.is_empty())
}

/// Mount points below `path` (or on it): what moves with it is not all of one filesystem.
pub fn has_mounts(mounts: &MountTable, path: &[u8]) -> bool {
    use std::os::unix::ffi::OsStrExt as _;
    let path = Path::new(std::ffi::OsStr::from_bytes(path));
    mounts
        .iter()
        .any(|mount| is_below(mount.point.as_os_str().as_bytes(), path))
}

/// Mount points strictly below `path`.
pub fn has_mounts_deeper(mounts: &MountTable, path: &[u8]) -> bool {
    use std::os::unix::ffi::OsStrExt as _;
    mounts
        .iter()
        .any(|mount| below(mount.point.as_os_str().as_bytes(), path).is_some())
}

/// The mount points at which one table differs from the other.
pub fn changed_points<'a>(
    old: &'a MountTable,
    new: &'a MountTable,
) -> impl Iterator<Item = &'a Path> {
    let differs = |one: &'a MountTable, other: &'a MountTable| {
        one.iter()
            .filter(move |mount| other.get(mount.id) != Some(*mount))
            .map(|mount| mount.point.as_path())
    };
    differs(old, new).chain(differs(new, old))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn names(includes: &[&str], excludes: &[&str], reach: Reach) -> Names {
        let paths = |list: &[&str]| list.iter().map(PathBuf::from).collect::<Vec<_>>();
        Names::new(&paths(includes), &paths(excludes), reach)
    }

    const WHOLE: Option<Plan> = Some(Plan {
        mark: true,
        whole: true,
    });
    const WAY: Option<Plan> = Some(Plan {
        mark: false,
        whole: false,
    });

    #[test]
    fn what_is_inside_is_walked_and_the_way_to_it_is_watched() {
        let names = names(&["/home/anna", "/srv"], &["/srv/x"], Reach::Whole);
        assert_eq!(names.plan(b"/", Side::Outside, LeftOut::No), WAY);
        assert_eq!(names.plan(b"/home", Side::Outside, LeftOut::No), WAY);
        assert_eq!(names.plan(b"/home/anna", Side::Inside, LeftOut::No), WHOLE);
        assert_eq!(names.plan(b"/home/berta", Side::Outside, LeftOut::No), None);
        assert_eq!(names.plan(b"/srv/x", Side::Outside, LeftOut::No), None);
        for left_out in [LeftOut::UnlessNamed, LeftOut::Always] {
            assert_eq!(names.plan(b"/srv/proc", Side::Inside, left_out), None);
        }
        let only = Names::new(&["/srv/proc".into()], &[], Reach::Whole);
        let plan = |left_out| only.plan(b"/srv/proc", Side::Inside, left_out);
        assert_eq!(plan(LeftOut::UnlessNamed), WHOLE);
        assert_eq!(plan(LeftOut::Always), None);
        let ways: Vec<_> = names.ways_from(b"/").collect();
        assert_eq!(ways, [&b"home"[..], b"srv"]);
        assert_eq!(names.ways_from(b"/home/anna").count(), 0);
    }

    #[test]
    fn an_excluded_directory_is_passed_where_an_include_lies_below() {
        let names = names(&["/home", "/home/a/b/c"], &["/home/a"], Reach::Whole);
        assert_eq!(names.plan(b"/home/a", Side::Outside, LeftOut::No), WAY);
        assert_eq!(names.plan(b"/home/a/b", Side::Outside, LeftOut::No), WAY);
        assert_eq!(names.plan(b"/home/a/x", Side::Outside, LeftOut::No), None);
        assert_eq!(names.plan(b"/home/a/b/c", Side::Inside, LeftOut::No), WHOLE);
        assert!(names.names_something_below(b"/home/a/b"));
        assert!(!names.names_something_below(b"/home/ab"));
        assert!(names.reaches_file(b"/home/a/b/c/d/file") && !names.reaches_file(b"/ho/file"));
        assert!(names.names_something_in(b"/home/a/b"));
        assert!(!names.names_something_in(b"/home/a"));
    }

    #[test]
    fn listed_directories_are_marked_alone() {
        let names = names(&["/in", "/in/a/b"], &[], Reach::NamedAlone);
        let alone = Some(Plan {
            mark: true,
            whole: false,
        });
        assert_eq!(names.plan(b"/in", Side::Inside, LeftOut::No), alone);
        assert_eq!(names.plan(b"/in/a", Side::Inside, LeftOut::No), WAY);
        assert_eq!(names.plan(b"/in/a/b", Side::Inside, LeftOut::No), alone);
        assert_eq!(names.plan(b"/in/x", Side::Inside, LeftOut::No), None);
        assert_eq!(names.plan(b"/in/a/b/c", Side::Inside, LeftOut::No), None);
        assert!(names.reaches_file(b"/in/file") && names.reaches_file(b"/in/a/b"));
        assert!(names.reaches_file(b"/in/a/b/file") && !names.reaches_file(b"/in/a/file"));
    }

    #[test]
    fn mounts_in_or_on_the_way_to_an_include_concern_us() {
        let names = names(&["/home/anna"], &["/mnt/skip"], Reach::Whole);
        for (point, concerns) in [
            ("/", true),
            ("/home", true),
            ("/home/anna", true),
            ("/home/anna/disk", true),
            ("/home/annabel", false),
            ("/var", false),
        ] {
            assert_eq!(names.concerns(Path::new(point)), concerns, "{point}");
        }
        let old = MountTable::parse(b"1 0 8:1 / / rw - ext4 a rw\n");
        let new = MountTable::parse(b"1 0 8:1 / / rw - ext4 a rw\n2 1 8:2 / /mnt rw - ext4 b rw\n");
        assert_eq!(
            changed_points(&old, &new).collect::<Vec<_>>(),
            [Path::new("/mnt")]
        );
        assert_eq!(changed_points(&new, &new).count(), 0);
        assert!(names.excludes_moved(&old, &new) && !names.excludes_moved(&new, &new));
        assert!(has_mounts(&new, b"/mnt") && !has_mounts(&new, b"/mn"));
    }

    proptest! {
        /// Following the ways from the root reaches each include path.
        #[test]
        fn every_include_path_is_reached(path in "(/[ab]{1,2}){1,5}", other in "(/[ab]{1,2}){1,5}") {
            let names = names(&[&path, &other], &[], Reach::Whole);
            let mut at = Vec::new();
            while at != path.as_bytes() {
                let here: &[u8] = if at.is_empty() { b"/" } else { &at };
                prop_assert!(names.plan(here, Side::Outside, LeftOut::No).is_some());
                let next = names.ways_from(here).find(|name| {
                    let rest = &path.as_bytes()[at.len() + 1..];
                    rest.split(|byte| *byte == b'/').next() == Some(name)
                });
                let next = next.unwrap().to_vec();
                at.push(b'/');
                at.extend(next);
            }
            prop_assert!(names.is_named(&at));
        }
    }
}
