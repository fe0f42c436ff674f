//! The scope: which places of which filesystems are protected.
//!
//! Include and exclude paths are turned into places (filesystem, path from the
//! filesystem's own root), so that a file is judged alike by whatever mount it
//! is opened; the most specific rule wins. It is all text: a path that does not
//! exist yet is in scope the moment it appears. Must not: ask the filesystem.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use super::rules::PathLimits;
use crate::kernel::mounts::{Mount, MountTable, is_below};

/// On which side of the border a place lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Protected.
    Inside,
    /// Not protected.
    Outside,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    path: PathBuf,
    side: Side,
}

/// The rules of each filesystem, the longest path first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    filesystems: HashMap<u32, Vec<Rule>>,
    /// What holds below some paths, the longest path first.
    limits: HashMap<u32, Vec<(PathBuf, PathLimits)>>,
    /// The largest size that any of them allows.
    largest_limit: u64,
}

impl Scope {
    /// Builds the scope from absolute paths without symlinks. A filesystem that
    /// is mounted below an include path belongs to it, unless an exclude path
    /// is nearer.
    pub fn build(includes: &[PathBuf], excludes: &[PathBuf], mounts: &MountTable) -> Self {
        let mut scope = Self::default();
        for mount in mounts.iter() {
            if named_side(includes, excludes, &mount.point) == Side::Inside {
                scope.add(mount.dev, mount.root.clone(), Side::Inside);
            }
        }
        let named = includes.iter().map(|path| (path, Side::Inside));
        let named = named.chain(excludes.iter().map(|path| (path, Side::Outside)));
        for (path, side) in named {
            if let Some(place) = mounts.place_of(path) {
                scope.add(place.dev, place.path, side);
            }
        }
        for rules in scope.filesystems.values_mut() {
            rules.sort_by_key(|rule| std::cmp::Reverse(rule.path.as_os_str().len()));
        }
        // Excludes alone protect nothing: such a filesystem needs no mark.
        scope
            .filesystems
            .retain(|_, rules| rules.iter().any(|rule| rule.side == Side::Inside));
        scope
    }

    /// The same with limits below some paths: absolute ones, without symlinks. A
    /// filesystem that is mounted below one belongs to it.
    #[must_use]
    pub fn with_limits(mut self, limited: &[(PathBuf, PathLimits)], mounts: &MountTable) -> Self {
        let mut limits: HashMap<u32, Vec<(PathBuf, PathLimits)>> = HashMap::new();
        let mut add = |dev, path: PathBuf, limit| {
            let places = limits.entry(dev).or_default();
            places.retain(|(other, _)| *other != path);
            places.push((path, limit));
        };
        for mount in mounts.iter() {
            let above = limited
                .iter()
                .filter(|(path, _)| mount.point.starts_with(path));
            if let Some((_, limit)) = above.max_by_key(|(path, _)| path.as_os_str().len()) {
                add(mount.dev, mount.root.clone(), *limit);
            }
        }
        for (path, limit) in limited {
            if let Some(place) = mounts.place_of(path) {
                add(place.dev, place.path, *limit);
            }
        }
        for places in limits.values_mut() {
            places.sort_by_key(|(path, _)| std::cmp::Reverse(path.as_os_str().len()));
        }
        let sizes = limited.iter().filter_map(|(_, limit)| limit.max_file_size);
        self.largest_limit = sizes.max().unwrap_or(0);
        self.limits = limits;
        self
    }

    /// Whether any path has limits of its own.
    pub fn has_limits(&self) -> bool {
        !self.limits.is_empty()
    }

    /// The largest size of a file that a path allows by limits of its own.
    pub fn largest_limit(&self) -> u64 {
        self.largest_limit
    }

    /// The limits that hold for an opened file, as in [`Scope::side_of_opened`].
    pub fn limits_of_opened(&self, mount: &Mount, path: &[u8]) -> Option<PathLimits> {
        let places = self.limits.get(&mount.dev)?;
        let below = below_mount(mount, path)?;
        let mut places = places.iter();
        let found = places.find(|(place, _)| holds(place, &mount.root, below));
        found.map(|(_, limits)| *limits)
    }

    /// A later rule for the same place replaces the earlier one.
    fn add(&mut self, dev: u32, path: PathBuf, side: Side) {
        let rules = self.filesystems.entry(dev).or_default();
        rules.retain(|rule| rule.path != path);
        rules.push(Rule { path, side });
    }

    /// Filesystems that hold protected places.
    pub fn filesystems(&self) -> impl Iterator<Item = u32> {
        self.filesystems.keys().copied()
    }

    /// The side of a place: raw bytes of its path from the filesystem's root.
    pub fn side_of(&self, dev: u32, path: &[u8]) -> Side {
        self.side_of_parts(dev, Path::new("/"), path)
    }

    /// The side of an opened file, from the mount it was opened through and the
    /// path that the kernel gives it. `None` if the path does not fit the mount.
    pub fn side_of_opened(&self, mount: &Mount, path: &[u8]) -> Option<Side> {
        let below = below_mount(mount, path)?;
        Some(self.side_of_parts(mount.dev, &mount.root, below))
    }

    /// The names directly in this directory that a rule is about. An ignore
    /// mark there would hide what has such a name, unless it is a directory.
    /// `None`: the path does not fit the mount.
    pub fn names_in(&self, mount: &Mount, directory: &[u8]) -> Option<Vec<&OsStr>> {
        let Some(rules) = self.filesystems.get(&mount.dev) else {
            return Some(Vec::new());
        };
        let directory = Path::new(OsStr::from_bytes(directory));
        let below = directory.strip_prefix(&mount.point).ok()?;
        let place = crate::kernel::mounts::join(&mount.root, below);
        Some(
            rules
                .iter()
                .filter(|rule| {
                    rule.side == Side::Inside && rule.path.parent() == Some(place.as_path())
                })
                .filter_map(|rule| rule.path.file_name())
                .collect(),
        )
    }

    /// Whether all that is protected on this mount's filesystem lies within the
    /// part that it shows.
    pub fn lies_within(&self, mount: &Mount) -> bool {
        self.filesystems.get(&mount.dev).is_none_or(|rules| {
            rules
                .iter()
                .filter(|rule| rule.side == Side::Inside)
                .all(|rule| rule.path.starts_with(&mount.root))
        })
    }

    /// Rules are compared with `root` and `below` one after the other, so that
    /// no event costs an allocation to join them.
    fn side_of_parts(&self, dev: u32, root: &Path, below: &[u8]) -> Side {
        let Some(rules) = self.filesystems.get(&dev) else {
            return Side::Outside;
        };
        rules
            .iter()
            .find(|rule| holds(&rule.path, root, below))
            .map_or(Side::Outside, |rule| rule.side)
    }
}

/// What of a path lies below its mount. `None` if it does not.
fn below_mount<'a>(mount: &Mount, path: &'a [u8]) -> Option<&'a [u8]> {
    let point = mount.point.as_os_str().len();
    let below = if point == 1 { 0 } else { point };
    is_below(path, &mount.point).then(|| &path[below..])
}

/// Whether the place `root` + `below` is `rule` or lies below it. `below` is
/// empty or starts with a slash.
fn holds(rule: &Path, root: &Path, below: &[u8]) -> bool {
    use std::os::unix::ffi::OsStrExt as _;
    if rule == Path::new("/") {
        return true;
    }
    let whole_root = root == Path::new("/");
    match rule.strip_prefix(root) {
        // The rule is the mounted root, or above nothing of what is mounted.
        Ok(rest) if rest.as_os_str().is_empty() => true,
        Ok(rest) => below
            .strip_prefix(b"/")
            .and_then(|below| below.strip_prefix(rest.as_os_str().as_bytes()))
            .is_some_and(|rest| rest.is_empty() || rest[0] == b'/'),
        // The rule lies above the mounted root, or elsewhere.
        Err(_) => !whole_root && root.starts_with(rule),
    }
}

/// What the named paths say of a path, the most specific one first; an exclude
/// wins over an include of the same path.
fn named_side(includes: &[PathBuf], excludes: &[PathBuf], path: &Path) -> Side {
    let longest = |paths: &[PathBuf]| {
        paths
            .iter()
            .filter(|named| path.starts_with(named))
            .map(|named| named.as_os_str().len())
            .max()
    };
    match (longest(includes), longest(excludes)) {
        (Some(include), Some(exclude)) if include > exclude => Side::Inside,
        (Some(_), None) => Side::Inside,
        _ => Side::Outside,
    }
}

/// Joins root and rest, for tests that compare.
#[cfg(test)]
fn joined(root: &Path, below: &[u8]) -> Vec<u8> {
    use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
    let below = below.strip_prefix(b"/").unwrap_or(below);
    crate::kernel::mounts::join(root, Path::new(std::ffi::OsStr::from_bytes(below)))
        .into_os_string()
        .into_vec()
}

#[cfg(test)]
mod tests {
    use super::*;
    use onacc_common::kernel_dev;
    use proptest::prelude::*;

    const ROOT: u32 = kernel_dev(8, 1);
    const DATA: u32 = kernel_dev(8, 2);
    const MOUNTS: &[u8] = b"\
1 0 8:1 / / rw - ext4 /dev/a rw\n\
2 1 8:2 / /home/data rw - ext4 /dev/b rw\n\
3 1 8:1 /home/anna /mnt/anna rw - ext4 /dev/a rw\n\
4 1 8:3 / /opt rw - ext4 /dev/c rw\n";

    fn scope(includes: &[&str], excludes: &[&str]) -> (Scope, MountTable) {
        let mounts = MountTable::parse(MOUNTS);
        let paths = |list: &[&str]| list.iter().map(PathBuf::from).collect::<Vec<_>>();
        (
            Scope::build(&paths(includes), &paths(excludes), &mounts),
            mounts,
        )
    }

    #[test]
    fn the_most_specific_rule_wins_at_any_depth() {
        let (scope, _) = scope(&["/home", "/home/anna/x/y"], &["/home/anna/x", "/home/b"]);
        for (path, side) in [
            ("/home/f", Side::Inside),
            ("/home/anna/f", Side::Inside),
            ("/home/anna/x", Side::Outside),
            ("/home/anna/x/f", Side::Outside),
            ("/home/anna/x/y/f", Side::Inside),
            ("/home/anna/x/yy", Side::Outside),
            ("/home/b/c/d", Side::Outside),
            ("/home/bb/c/d", Side::Inside),
            ("/homeless/f", Side::Outside),
            ("/etc/passwd", Side::Outside),
        ] {
            assert_eq!(scope.side_of(ROOT, path.as_bytes()), side, "{path}");
        }
    }

    #[test]
    fn a_filesystem_below_an_include_belongs_to_it_unless_excluded() {
        let (inside, mounts) = scope(&["/home"], &["/home/data/skip"]);
        let mount = mounts.get(2).unwrap();
        assert_eq!(
            inside.side_of_opened(mount, b"/home/data/f"),
            Some(Side::Inside)
        );
        assert_eq!(
            inside.side_of_opened(mount, b"/home/data/skip/f"),
            Some(Side::Outside)
        );
        let mut marked: Vec<_> = inside.filesystems().collect();
        marked.sort_unstable();
        assert_eq!(marked, [ROOT, DATA]);
        let (without, _) = scope(&["/home"], &["/home/data"]);
        assert_eq!(without.filesystems().collect::<Vec<_>>(), [ROOT]);
    }

    #[test]
    fn a_bind_mount_changes_nothing() {
        let (scope, mounts) = scope(&["/home"], &["/home/anna/skip"]);
        let bind = mounts.get(3).unwrap();
        assert_eq!(
            scope.side_of_opened(bind, b"/mnt/anna/f"),
            Some(Side::Inside)
        );
        assert_eq!(
            scope.side_of_opened(bind, b"/mnt/anna/skip/f"),
            Some(Side::Outside)
        );
        assert_eq!(scope.side_of_opened(bind, b"/somewhere/else"), None);
    }

    #[test]
    fn naming_a_bind_mount_protects_what_it_shows() {
        let (scope, mounts) = scope(&["/mnt/anna"], &[]);
        assert_eq!(scope.side_of(ROOT, b"/home/anna/f"), Side::Inside);
        assert_eq!(scope.side_of(ROOT, b"/home/berta/f"), Side::Outside);
        let bind = mounts.get(3).unwrap();
        assert_eq!(
            scope.side_of_opened(bind, b"/mnt/anna/f"),
            Some(Side::Inside)
        );
    }

    #[test]
    fn the_root_can_be_named_and_a_file_too() {
        let (all, mounts) = scope(&["/"], &["/opt"]);
        assert_eq!(all.side_of(ROOT, b"/etc/passwd"), Side::Inside);
        let opt = mounts.get(4).unwrap();
        assert_eq!(all.side_of_opened(opt, b"/opt/f"), Some(Side::Outside));
        let (file, _) = scope(&["/etc/passwd"], &[]);
        assert_eq!(file.side_of(ROOT, b"/etc/passwd"), Side::Inside);
        assert_eq!(file.side_of(ROOT, b"/etc/passwd-"), Side::Outside);
    }

    #[test]
    fn a_scope_within_a_part_of_a_filesystem_is_known_as_such() {
        let (scope, mounts) = scope(&["/mnt/anna/x"], &["/etc"]);
        assert!(scope.lies_within(mounts.get(3).unwrap()));
        assert!(scope.lies_within(mounts.get(1).unwrap()));
        let (wider, mounts) = self::scope(&["/mnt/anna/x", "/srv"], &[]);
        assert!(!wider.lies_within(mounts.get(3).unwrap()));
    }

    #[test]
    fn an_exclude_of_the_very_include_wins() {
        let (scope, _) = scope(&["/home"], &["/home"]);
        assert_eq!(scope.side_of(ROOT, b"/home/f"), Side::Outside);
    }

    proptest! {
        /// Splitting a path into root and rest must not change what a rule says.
        #[test]
        fn parts_and_whole_agree(
            rule in "(/[ab]{1,2}){1,4}",
            root in "(/[ab]{1,2}){1,3}",
            below in "(/[ab]{1,2}){0,3}",
        ) {
            let whole = joined(Path::new(&root), below.as_bytes());
            prop_assert_eq!(
                holds(Path::new(&rule), Path::new(&root), below.as_bytes()),
                is_below(&whole, Path::new(&rule))
            );
            prop_assert_eq!(
                holds(Path::new(&rule), Path::new("/"), &whole),
                is_below(&whole, Path::new(&rule))
            );
        }
    }
}
