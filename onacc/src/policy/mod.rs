//! The decisions: plain functions of plain data.
//!
//! Owns: who is excluded, what is in scope, which file needs a scan, which
//! clean marks are remembered. Must not: make a system call, read a clock, or
//! use `unsafe` (invariant 11). Tested beside each function.

mod database;
mod lane;
mod marks;
mod rules;
mod scope;
pub mod stamps;
mod verdicts;

use std::sync::Arc;

use std::collections::HashMap;

use crate::config::modes::MarksMode;
use crate::kernel::file::{DELETED, FileStat, FilesystemKind};
use crate::kernel::mounts::{Mount, MountTable};

pub use database::Database;
pub use lane::{LaneId, lane_of, opens_can_block};
pub use marks::{MarkTable, Remembered};
pub use rules::{LimitedPaths, PathLimits, Rules, TooManyPatterns};
pub use scope::{Scope, Side};
pub use verdicts::{Verdict, VerdictCache};

/// Locks a table. A poisoned lock cannot occur (a panic ends the process in a
/// release build); in tests the data is as good as before.
pub fn lock<T>(table: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    table
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Everything that the reader needs to decide. Replaced as a whole, so that a
/// decision never sees half of a change.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Which places are protected.
    pub scope: Arc<Scope>,
    /// The mounts that the scope was built from.
    pub mounts: Arc<MountTable>,
    /// Effective uids whose opens are not scanned.
    pub excluded_uids: Vec<u32>,
    /// Larger files are not scanned, but where a path has a limit of its own; bytes.
    pub max_file_size: u64,
    /// Whether an open is denied when its scan fails, but where a path says
    /// otherwise.
    pub deny_on_error: bool,
    /// What is left out beyond places and users.
    pub rules: Arc<Rules>,
    /// What the watched filesystems are.
    pub kinds: Arc<HashMap<u32, FilesystemKind>>,
    /// Whether every store into a file of an ext filesystem is seen: the eBPF
    /// program is in force.
    pub stores_are_seen: bool,
    /// What may carry clean marks.
    pub marks: MarksMode,
}

/// How long a verdict on a file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// It is not kept.
    Not,
    /// While the stamps stay: each store changes them.
    Stamps,
    /// While the stamps stay, and nobody here has the file open for writing or has
    /// closed it after that: the settings say so.
    NoWriters,
}

/// Why an open goes on without a scan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unscanned {
    /// A thread of the agent itself.
    OwnThread,
    /// clamd, or a process that clamd started.
    Scanner,
    /// The opener's effective uid is excluded.
    ExcludedUid,
    /// Not a regular file.
    NotRegular,
    /// Not under an include path, or nearer to an exclude path.
    OutOfScope,
    /// Its path fits a pattern.
    ExcludedFile,
    /// The opener's program or control group is excluded.
    ExcludedProcess,
    /// Larger than `OnAccessMaxFileSize`.
    TooLarge,
    /// Nothing in it to scan.
    Empty,
}

/// What holds for one file.
struct Limits {
    max_file_size: u64,
    deny_on_error: bool,
}

impl Policy {
    /// By the opener. `euid` is `None` where it could not be told: then nobody
    /// is excluded by uid.
    pub fn by_opener(&self, euid: Option<u32>) -> Option<Unscanned> {
        self.excluded_uids
            .contains(&euid?)
            .then_some(Unscanned::ExcludedUid)
    }

    /// By the mount where that is one of ours (btrfs shows another device in
    /// `statx` than in the mount table), else by the device.
    fn kind(&self, stat: &FileStat) -> FilesystemKind {
        let dev = self
            .mounts
            .get(stat.mount)
            .map_or(stat.key.dev, |mount| mount.dev);
        let kind = self.kinds.get(&dev);
        kind.copied().unwrap_or(FilesystemKind::Foreign)
    }

    /// No larger file is scanned, whatever its path; bytes.
    pub fn largest_file(&self) -> u64 {
        self.max_file_size.max(self.scope.largest_limit())
    }

    /// By what the file is. A size of 0 means that there is nothing to scan
    /// where the filesystem keeps its bytes here (procfs, FUSE: not so).
    pub fn by_file(&self, stat: &FileStat) -> Option<Unscanned> {
        let sizes_are_true = !self.kind(stat).is_foreign();
        if !stat.regular {
            Some(Unscanned::NotRegular)
        } else if stat.size > self.largest_file() {
            Some(Unscanned::TooLarge)
        } else if stat.size == 0 && sizes_are_true {
            Some(Unscanned::Empty)
        } else {
            None
        }
    }

    /// Whether a clean verdict on this file may become a clean mark: nothing can
    /// be stored into it without the mark going.
    pub fn may_mark(&self, stat: &FileStat) -> bool {
        match self.kind(stat) {
            FilesystemKind::Ext => self.stores_are_seen && self.marks == MarksMode::Auto,
            FilesystemKind::ReadOnly => self.marks != MarksMode::Off,
            FilesystemKind::Stamped
            | FilesystemKind::Unstamped
            | FilesystemKind::Overlay
            | FilesystemKind::Foreign
            | FilesystemKind::ForeignKept => false,
        }
    }

    /// How long a verdict on this file holds.
    pub fn hold(&self, stat: &FileStat) -> Hold {
        match self.kind(stat) {
            FilesystemKind::ForeignKept => Hold::NoWriters,
            kind if kind.stamps_tell() => Hold::Stamps,
            _ => Hold::Not,
        }
    }

    /// Whether opening this file cannot mean to wait for a server.
    pub fn opens_at_once(&self, stat: &FileStat) -> bool {
        !self.kind(stat).is_foreign()
    }

    /// Whether reading this file cannot mean to wait for a server, for ever maybe.
    pub fn reads_at_once(&self, stat: &FileStat) -> bool {
        match self.kind(stat) {
            FilesystemKind::Ext
            | FilesystemKind::Stamped
            | FilesystemKind::Unstamped
            | FilesystemKind::ReadOnly => true,
            FilesystemKind::Overlay | FilesystemKind::Foreign | FilesystemKind::ForeignKept => {
                let mount = self.mount_of(stat);
                mount.is_some_and(|mount| !matches!(lane_of(mount, &self.mounts), LaneId::Own(_)))
            }
        }
    }

    /// The directories that an overlay is made of, if this file is on one.
    pub fn layers(&self, stat: &FileStat) -> &[std::path::PathBuf] {
        if self.kind(stat) != FilesystemKind::Overlay {
            return &[];
        }
        self.mount_of(stat).map_or(&[], |mount| &mount.layers)
    }

    /// The mount that shows a file, or, where that is none of ours, one of ours that
    /// shows its whole filesystem.
    fn mount_of(&self, stat: &FileStat) -> Option<&Mount> {
        let mount = self.mounts.get(stat.mount);
        mount.or_else(|| self.mounts.whole(stat.key.dev))
    }

    /// By where the file is. `path` is what the kernel calls the opened file,
    /// `None` if it could not say. What cannot be placed is scanned: a mount of
    /// another namespace, a path longer than `PATH_MAX`.
    pub fn by_place(&self, stat: &FileStat, path: Option<&[u8]>) -> Option<Unscanned> {
        self.by_place_on(self.mounts.get(stat.mount)?, stat, path?)
    }

    /// As [`Policy::by_place`], for a path on a mount of ours.
    pub fn by_place_on(&self, mount: &Mount, stat: &FileStat, path: &[u8]) -> Option<Unscanned> {
        let path = match path.strip_suffix(DELETED) {
            Some(shorter) if stat.links == 0 => shorter,
            _ => path,
        };
        let side = self.scope.side_of_opened(mount, path)?;
        if side == Side::Outside || self.rules.leaves_out_directory_of(path) {
            Some(Unscanned::OutOfScope)
        } else if self.rules.leaves_out_file(path) {
            Some(Unscanned::ExcludedFile)
        } else if stat.size > self.limits(mount, path).max_file_size {
            Some(Unscanned::TooLarge)
        } else {
            None
        }
    }

    /// The side of a directory and of what lies in it, but for what a rule or a
    /// path says of files there.
    pub fn side_of_directory(&self, mount: &Mount, path: &[u8]) -> Option<Side> {
        match self.scope.side_of_opened(mount, path)? {
            Side::Inside if self.rules.leaves_out_directory(path) => Some(Side::Outside),
            side => Some(side),
        }
    }

    /// Whether a directory is out of scope by whatever path it is reached. A
    /// pattern speaks of paths, and another mount of the filesystem may show the
    /// directory under a path that does not fit.
    pub fn is_outside_by_any_path(&self, mount: &Mount, path: &[u8]) -> bool {
        match self.scope.side_of_opened(mount, path) {
            Some(Side::Outside) => true,
            Some(Side::Inside) => {
                let same = self.mounts.iter().filter(|other| other.dev == mount.dev);
                self.rules.leaves_out_directory(path)
                    && same.count() == 1
                    && mount.root == std::path::Path::new("/")
            }
            None => false,
        }
    }

    /// What holds for a file at this path, on a mount of ours.
    fn limits(&self, mount: &Mount, path: &[u8]) -> Limits {
        let found = self.scope.limits_of_opened(mount, path);
        Limits {
            max_file_size: found
                .and_then(|limits| limits.max_file_size)
                .unwrap_or(self.max_file_size),
            deny_on_error: found
                .and_then(|limits| limits.deny_on_error)
                .unwrap_or(self.deny_on_error),
        }
    }

    /// Whether an open of this file is denied when its scan fails. `path` as in
    /// [`Policy::by_place`], after a file in another mount namespace got its
    /// path on `mount`.
    pub fn denies_on_error(&self, mount: Option<&Mount>, path: &[u8]) -> bool {
        match mount {
            Some(mount) if self.scope.has_limits() => self.limits(mount, path).deny_on_error,
            _ => self.deny_on_error,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use onacc_common::{ChangeTime, InodeKey};

    fn policy() -> Policy {
        let mounts = MountTable::parse(b"9 1 8:1 / / rw - ext4 /dev/a rw\n");
        let scope = Scope::build(&["/in".into()], &["/in/out".into()], &mounts);
        Policy {
            scope: Arc::new(scope),
            mounts: Arc::new(mounts),
            excluded_uids: vec![0, 1000],
            max_file_size: 100,
            deny_on_error: false,
            rules: Arc::new(Rules::default()),
            kinds: Arc::new(HashMap::from([(
                onacc_common::kernel_dev(8, 1),
                FilesystemKind::Ext,
            )])),
            stores_are_seen: true,
            marks: MarksMode::Auto,
        }
    }

    fn stat(size: u64) -> FileStat {
        FileStat {
            key: InodeKey::new(8, 1, 5),
            size,
            modified: 0,
            changed: ChangeTime::new(1, 1),
            mount: 9,
            regular: true,
            links: 1,
        }
    }

    fn elsewhere(size: u64) -> FileStat {
        FileStat {
            key: InodeKey::new(0, 99, 5),
            mount: 77,
            ..stat(size)
        }
    }

    #[test]
    fn uids_match_exactly_and_an_unknown_opener_is_not_excluded() {
        let policy = policy();
        assert_eq!(policy.by_opener(Some(1000)), Some(Unscanned::ExcludedUid));
        assert_eq!(policy.by_opener(Some(0)), Some(Unscanned::ExcludedUid));
        assert_eq!(policy.by_opener(Some(100)), None);
        assert_eq!(policy.by_opener(Some(10_001)), None);
        assert_eq!(policy.by_opener(None), None);
    }

    #[test]
    fn size_limits_are_inclusive_and_emptiness_counts_where_sizes_are_true() {
        let policy = policy();
        assert_eq!(policy.by_file(&stat(100)), None);
        assert_eq!(policy.by_file(&stat(101)), Some(Unscanned::TooLarge));
        assert_eq!(policy.by_file(&stat(0)), Some(Unscanned::Empty));
        assert_eq!(policy.by_file(&elsewhere(0)), None);
        let directory = FileStat {
            regular: false,
            ..stat(5)
        };
        assert_eq!(policy.by_file(&directory), Some(Unscanned::NotRegular));
    }

    #[test]
    fn marks_need_a_filesystem_whose_stores_are_seen() {
        let mut policy = policy();
        assert!(policy.may_mark(&stat(5)));
        assert!(!policy.may_mark(&elsewhere(5)));
        assert_eq!(policy.hold(&elsewhere(5)), Hold::Not);
        assert_eq!(policy.hold(&stat(5)), Hold::Stamps);
        policy.stores_are_seen = false;
        assert!(!policy.may_mark(&stat(5)));
    }

    #[test]
    fn strict_marks_what_nobody_can_write_and_off_nothing() {
        let on = |kind, marks| Policy {
            kinds: Arc::new(HashMap::from([(onacc_common::kernel_dev(8, 1), kind)])),
            marks,
            ..policy()
        };
        for (kind, marks, wanted) in [
            (FilesystemKind::Ext, MarksMode::Auto, true),
            (FilesystemKind::Ext, MarksMode::Strict, false),
            (FilesystemKind::Ext, MarksMode::Off, false),
            (FilesystemKind::ReadOnly, MarksMode::Auto, true),
            (FilesystemKind::ReadOnly, MarksMode::Strict, true),
            (FilesystemKind::ReadOnly, MarksMode::Off, false),
        ] {
            let policy = on(kind, marks);
            assert_eq!(policy.may_mark(&stat(5)), wanted, "{kind:?} {marks:?}");
            assert_eq!(policy.hold(&stat(5)), Hold::Stamps);
        }
    }

    #[test]
    fn what_is_kept_because_the_settings_say_so_gets_no_mark_and_asks_for_writers() {
        let kept = FilesystemKind::ForeignKept;
        let kinds = HashMap::from([(onacc_common::kernel_dev(8, 1), kept)]);
        let policy = Policy {
            kinds: Arc::new(kinds),
            ..policy()
        };
        assert_eq!(policy.hold(&stat(5)), Hold::NoWriters);
        assert!(!policy.may_mark(&stat(5)) && !policy.opens_at_once(&stat(5)));
        assert_eq!(policy.by_file(&stat(0)), None, "sizes need not be true");
    }

    #[test]
    fn a_path_may_have_limits_of_its_own() {
        let mut policy = policy();
        let limited = |deny_on_error, max_file_size| PathLimits {
            deny_on_error,
            max_file_size,
        };
        let paths = vec![
            ("/in/big".into(), limited(None, Some(1000))),
            ("/in/big/small".into(), limited(Some(true), Some(10))),
        ];
        let scope = (*policy.scope).clone().with_limits(&paths, &policy.mounts);
        policy.scope = Arc::new(scope);
        let judged = |size, path: &str| {
            let stat = stat(size);
            let by_file = policy.by_file(&stat);
            by_file.or_else(|| policy.by_place(&stat, Some(path.as_bytes())))
        };
        assert_eq!(judged(1001, "/in/big/f"), Some(Unscanned::TooLarge));
        assert_eq!(judged(1000, "/in/big/f"), None);
        assert_eq!(judged(101, "/in/f"), Some(Unscanned::TooLarge));
        assert_eq!(judged(100, "/in/f"), None);
        assert_eq!(judged(11, "/in/big/small/f"), Some(Unscanned::TooLarge));
        assert_eq!(judged(10, "/in/big/small/f"), None);
        let mount = policy.mounts.get(9);
        assert!(policy.denies_on_error(mount, b"/in/big/small/f"));
        assert!(!policy.denies_on_error(mount, b"/in/big/f"));
        assert!(!policy.denies_on_error(None, b"/in/big/small/f"));
    }

    #[test]
    fn a_pattern_leaves_out_a_directory_for_all_only_where_it_has_one_path() {
        let settings = b"[clamd]\nLocalSocket = '/s'\n[scope]\nOnAccessIncludePath = '/in'\n\
            OnAccessExcludePath = '/x$'\n[exclude]\nExtension = 'iso'\n";
        let settings = crate::config::Settings::from_native(settings, std::path::Path::new("n"));
        let rules = Arc::new(Rules::of(&settings.unwrap()).unwrap());
        let mut policy = Policy { rules, ..policy() };
        let mount = policy.mounts.get(9).unwrap();
        assert_eq!(
            policy.by_place(&stat(5), Some(b"/in/x/f")),
            Some(Unscanned::OutOfScope)
        );
        assert_eq!(policy.by_place(&stat(5), Some(b"/in/y/f")), None);
        assert_eq!(
            policy.by_place(&stat(5), Some(b"/in/f.iso")),
            Some(Unscanned::ExcludedFile)
        );
        assert_eq!(
            policy.side_of_directory(mount, b"/in/x"),
            Some(Side::Outside)
        );
        assert_eq!(
            policy.side_of_directory(mount, b"/in/y"),
            Some(Side::Inside)
        );
        assert!(policy.is_outside_by_any_path(mount, b"/in/x"));
        assert!(!policy.is_outside_by_any_path(mount, b"/in/y"));
        let two = b"9 1 8:1 / / rw - ext4 /dev/a rw\n10 9 8:1 /in/x /mnt rw - ext4 /dev/a rw\n";
        policy.mounts = Arc::new(MountTable::parse(two));
        let mount = policy.mounts.get(9).unwrap();
        assert!(!policy.is_outside_by_any_path(mount, b"/in/x"));
        assert!(policy.is_outside_by_any_path(mount, b"/elsewhere"));
    }

    #[test]
    fn what_cannot_be_placed_is_scanned() {
        let policy = policy();
        let foreign = FileStat {
            mount: 77,
            ..stat(5)
        };
        assert_eq!(policy.by_place(&foreign, Some(b"/elsewhere")), None);
        assert_eq!(policy.by_place(&stat(5), None), None);
        assert_eq!(
            policy.by_place(&stat(5), Some(b"/elsewhere")),
            Some(Unscanned::OutOfScope)
        );
        assert_eq!(policy.by_place(&stat(5), Some(b"/in/f")), None);
        let deleted = FileStat {
            links: 0,
            ..stat(5)
        };
        assert_eq!(policy.by_place(&deleted, Some(b"/in (deleted)")), None);
        assert_eq!(
            policy.by_place(&stat(5), Some(b"/in (deleted)")),
            Some(Unscanned::OutOfScope)
        );
        assert_eq!(
            policy.by_place(&stat(5), Some(b"/in/out/f")),
            Some(Unscanned::OutOfScope)
        );
    }
}
