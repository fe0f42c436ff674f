//! The filter: which opens are worth telling the agent about.
//!
//! One piece of logic for all hooks. A hook delivers the facts ([`Opened`],
//! asked one by one, cheapest first), the maps answer ([`Tables`]). Must not:
//! read kernel memory itself. Tested here, on the host, with the facts and
//! tables made up.

use crate::{CachedInode, ChangeTime, Counter, DirKey, InodeKey};

/// What a hook can tell of an open. Each question is asked only when the
/// cheaper ones have not decided.
pub trait Opened {
    /// Device of the file's filesystem.
    fn dev(&self) -> u32;
    /// Whether it is a regular file, opened for more than its name (`O_PATH`).
    fn is_regular(&self) -> bool;
    /// Its identity.
    fn key(&self) -> InodeKey;
    /// Its size.
    fn size(&self) -> u64;
    /// Its ctime.
    fn changed(&self) -> ChangeTime;
    /// The directory that it was reached through.
    fn directory(&self) -> DirKey;
    /// The opener's process.
    fn process(&self) -> u32;
    /// The opener's effective uid.
    fn euid(&self) -> u32;
    /// Whether one of the processes that the opener descends from is exempt.
    fn descends_from_exempt(&self, is_exempt: impl Fn(u32) -> bool) -> bool;
}

/// What the maps know.
pub trait Tables {
    /// What is known of a filesystem; `None`: it is not watched.
    fn filesystem(&self, dev: u32) -> Option<Filesystem>;
    /// Whether this process is the agent or clamd.
    fn is_exempt(&self, process: u32) -> bool;
    /// The same, asked of processes that the opener descends from: only of opens
    /// that nothing else has dropped, and of up to a dozen, so that a table may
    /// answer in the way that is cheaper for the verifier.
    fn is_exempt_ancestor(&self, process: u32) -> bool {
        self.is_exempt(process)
    }
    /// Whether opens by this effective uid are not scanned.
    fn is_excluded(&self, euid: u32) -> bool;
    /// Larger files are not scanned.
    fn max_file_size(&self) -> u64;
    /// The entry of an inode that was found clean.
    fn clean(&self, key: &InodeKey) -> Option<CachedInode>;
    /// Whether what lies directly in this directory is out of scope.
    fn is_outside(&self, directory: &DirKey) -> bool;
}

/// What is known of a watched filesystem: bits.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Filesystem(pub u32);

impl Filesystem {
    /// `s_dev` and `i_ino` are what `statx(2)` shows: its inodes can be keyed.
    /// Not so on btrfs, overlayfs and what is not known.
    pub const KEYED: u32 = 1;
    /// A size of 0 means that there is nothing to scan (not so on procfs, FUSE).
    pub const TRUE_SIZES: u32 = 2;

    /// Whether a bit is set.
    #[inline(always)]
    #[expect(
        clippy::inline_always,
        reason = "BPF programs of kernel 6.1 pay a call for every function"
    )]
    pub const fn has(self, bit: u32) -> bool {
        self.0 & bit != 0
    }
}

/// What becomes of an open: the reason why it is dropped, or
/// [`Counter::OpenReported`].
#[inline(always)]
#[expect(
    clippy::inline_always,
    reason = "BPF programs of kernel 6.1 pay a call for every function"
)]
pub fn judge_open(opened: &impl Opened, tables: &impl Tables) -> Counter {
    let Some(filesystem) = tables.filesystem(opened.dev()) else {
        return Counter::OpenOtherFilesystem;
    };
    if !opened.is_regular() {
        return Counter::OpenNotRegular;
    }
    if tables.is_exempt(opened.process()) {
        return Counter::OpenExempt;
    }
    if tables.is_excluded(opened.euid()) {
        return Counter::OpenExcludedUid;
    }
    let size = opened.size();
    if size > tables.max_file_size() {
        return Counter::OpenTooLarge;
    }
    if size == 0 && filesystem.has(Filesystem::TRUE_SIZES) {
        return Counter::OpenEmpty;
    }
    if filesystem.has(Filesystem::KEYED) {
        if let Some(entry) = tables.clean(&opened.key()) {
            let now = opened.changed();
            if entry.changed.sec == now.sec && entry.changed.nsec == now.nsec {
                return Counter::OpenClean;
            }
        }
        if tables.is_outside(&opened.directory()) {
            return Counter::OpenOutside;
        }
    }
    if opened.descends_from_exempt(|process| tables.is_exempt_ancestor(process)) {
        return Counter::OpenExempt;
    }
    Counter::OpenReported
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone)]
    struct World {
        dev: u32,
        regular: bool,
        size: u64,
        changed: ChangeTime,
        process: u32,
        ancestors: Vec<u32>,
        euid: u32,
        filesystem: u32,
        clean: Option<ChangeTime>,
        outside: bool,
    }

    const FILE: InodeKey = InodeKey::new(8, 1, 5);
    const DIRECTORY: DirKey = DirKey {
        key: InodeKey::new(8, 1, 2),
        generation: 3,
        zero: 0,
    };

    fn world() -> World {
        World {
            dev: FILE.dev,
            regular: true,
            size: 10,
            changed: ChangeTime::new(1, 1),
            process: 50,
            ancestors: vec![40, 30],
            euid: 1000,
            filesystem: Filesystem::KEYED | Filesystem::TRUE_SIZES,
            clean: None,
            outside: false,
        }
    }

    impl Opened for World {
        fn dev(&self) -> u32 {
            self.dev
        }
        fn is_regular(&self) -> bool {
            self.regular
        }
        fn key(&self) -> InodeKey {
            FILE
        }
        fn size(&self) -> u64 {
            self.size
        }
        fn changed(&self) -> ChangeTime {
            self.changed
        }
        fn directory(&self) -> DirKey {
            DIRECTORY
        }
        fn process(&self) -> u32 {
            self.process
        }
        fn euid(&self) -> u32 {
            self.euid
        }
        fn descends_from_exempt(&self, is_exempt: impl Fn(u32) -> bool) -> bool {
            self.ancestors.iter().any(|process| is_exempt(*process))
        }
    }

    impl Tables for World {
        fn filesystem(&self, dev: u32) -> Option<Filesystem> {
            (dev == FILE.dev).then_some(Filesystem(self.filesystem))
        }
        fn is_exempt(&self, process: u32) -> bool {
            process == 7
        }
        fn is_excluded(&self, euid: u32) -> bool {
            euid == 4711
        }
        fn max_file_size(&self) -> u64 {
            100
        }
        fn clean(&self, key: &InodeKey) -> Option<CachedInode> {
            assert_eq!(*key, FILE);
            Some(CachedInode {
                changed: self.clean?,
                serial: 1,
                reported: 0,
            })
        }
        fn is_outside(&self, directory: &DirKey) -> bool {
            assert_eq!(*directory, DIRECTORY);
            self.outside
        }
    }

    fn judged(change: impl FnOnce(&mut World)) -> Counter {
        let mut world = world();
        change(&mut world);
        judge_open(&world, &world)
    }

    #[test]
    fn each_reason_to_drop_an_open_is_its_own_count() {
        assert_eq!(judged(|_| {}), Counter::OpenReported);
        assert_eq!(judged(|w| w.dev = 9), Counter::OpenOtherFilesystem);
        assert_eq!(judged(|w| w.regular = false), Counter::OpenNotRegular);
        assert_eq!(judged(|w| w.process = 7), Counter::OpenExempt);
        assert_eq!(judged(|w| w.ancestors.push(7)), Counter::OpenExempt);
        assert_eq!(judged(|w| w.euid = 4711), Counter::OpenExcludedUid);
        assert_eq!(judged(|w| w.size = 101), Counter::OpenTooLarge);
        assert_eq!(judged(|w| w.size = 100), Counter::OpenReported);
        assert_eq!(judged(|w| w.size = 0), Counter::OpenEmpty);
        assert_eq!(judged(|w| w.clean = Some(w.changed)), Counter::OpenClean);
        assert_eq!(judged(|w| w.outside = true), Counter::OpenOutside);
    }

    #[test]
    fn a_changed_file_is_told() {
        let stale = Some(ChangeTime::new(1, 0));
        assert_eq!(judged(|w| w.clean = stale), Counter::OpenReported);
    }

    #[test]
    fn where_inodes_cannot_be_keyed_no_table_of_them_is_asked() {
        let judged = judged(|w| {
            w.filesystem = 0;
            w.size = 0;
            w.clean = Some(w.changed);
            w.outside = true;
        });
        assert_eq!(judged, Counter::OpenReported);
    }
}
