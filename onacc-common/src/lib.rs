//! What crosses the border between the agent and its eBPF programs.
//!
//! Owns: the layout of map keys, map values and ring-buffer records, the
//! meaning of each counter, and the pure filter logic that the programs run.
//! Must not: depend on anything, allocate, or read kernel memory itself.
//! Tested here, on the host: the programs call the very same functions.
#![cfg_attr(not(test), no_std)]

/// Identity of an inode as the kernel itself names it.
///
/// `dev` is the superblock's `s_dev` in the kernel's internal encoding
/// (`major << 20 | minor`, `include/linux/kdev_t.h`), `ino` is `i_ino`. On
/// btrfs `stat(2)` shows another device than `s_dev`; onacc keys no btrfs inode.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InodeKey {
    /// `s_dev` in the kernel's internal encoding.
    pub dev: u32,
    /// Always zero: map keys are compared byte by byte.
    pub zero: u32,
    /// `i_ino`.
    pub ino: u64,
}

impl InodeKey {
    /// Builds the key from the device numbers that `statx(2)` reports.
    pub const fn new(major: u32, minor: u32, ino: u64) -> Self {
        Self {
            dev: kernel_dev(major, minor),
            zero: 0,
            ino,
        }
    }
}

/// The kernel's internal `dev_t` (`MKDEV`, `include/linux/kdev_t.h`).
pub const fn kernel_dev(major: u32, minor: u32) -> u32 {
    (major << 20) | (minor & 0xf_ffff)
}

/// When an inode last changed: its ctime, which no system call can set.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ChangeTime {
    /// Seconds since the epoch.
    pub sec: i64,
    /// Nanoseconds, 0 to 999,999,999.
    pub nsec: u32,
    /// Always zero.
    pub zero: u32,
}

impl ChangeTime {
    /// Builds a stamp; the kernel's flag in bit 31 of the nanoseconds
    /// (`I_CTIME_QUERIED`, include/linux/fs.h since 6.13) is masked away.
    pub const fn new(sec: i64, nsec: u32) -> Self {
        Self {
            sec,
            nsec: nsec & 0x7fff_ffff,
            zero: 0,
        }
    }
}

/// Value of the map of cached inodes: an inode that carries a clean mark.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CachedInode {
    /// ctime of the bytes that were scanned.
    pub changed: ChangeTime,
    /// Which placing of the mark this is; a record with another number is old news.
    pub serial: u32,
    /// Not zero once a record for this entry has been written: one is enough.
    pub reported: u32,
}

/// Ring-buffer record: a cached inode is being changed, its mark must go.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirtyRecord {
    /// The inode.
    pub key: InodeKey,
    /// `CachedInode::serial` of the entry that the program saw.
    pub serial: u32,
    /// Always zero.
    pub zero: u32,
}

impl DirtyRecord {
    /// Size in bytes of a record in the ring buffer.
    pub const SIZE: usize = size_of::<Self>();

    /// Reads a record from ring-buffer bytes; `None` unless the length is exact.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != Self::SIZE {
            return None;
        }
        let word = |at: usize| -> Option<u32> {
            Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
        };
        Some(Self {
            key: InodeKey {
                dev: word(0)?,
                zero: word(4)?,
                ino: u64::from_ne_bytes(bytes.get(8..16)?.try_into().ok()?),
            },
            serial: word(16)?,
            zero: word(20)?,
        })
    }
}

/// Per-CPU counters of the filter plane; the number is the index in the map.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counter {
    /// Dirtied inodes seen, on any filesystem.
    Seen = 0,
    /// Dropped: not on a watched filesystem.
    OtherFilesystem = 1,
    /// Dropped: the inode carries no clean mark.
    NotCached = 2,
    /// Dropped: ctime is that of the scanned bytes (atime, write-back).
    Unchanged = 3,
    /// Dropped: already reported, the mark is on its way out.
    AlreadyReported = 4,
    /// Written to the ring buffer.
    Reported = 5,
    /// Lost: the ring buffer was full. The agent answers with a flush of all marks.
    Lost = 6,
}

impl Counter {
    /// All counters, in the order of their index, with the word for logs.
    pub const ALL: [(Counter, &'static str); 7] = [
        (Counter::Seen, "seen"),
        (Counter::OtherFilesystem, "dropped_other_filesystem"),
        (Counter::NotCached, "dropped_not_cached"),
        (Counter::Unchanged, "dropped_unchanged"),
        (Counter::AlreadyReported, "dropped_already_reported"),
        (Counter::Reported, "reported"),
        (Counter::Lost, "lost"),
    ];
    /// How many there are: entries of the map.
    pub const COUNT: u32 = 7;
}

/// Names of the globals that hold offsets of kernel fields, as the programs declare them.
pub mod globals {
    /// `inode.i_sb`
    pub const INODE_SB: &str = "OFF_INODE_SB";
    /// `inode.i_ino`
    pub const INODE_INO: &str = "OFF_INODE_INO";
    /// Seconds of the inode's ctime.
    pub const INODE_CTIME_SEC: &str = "OFF_INODE_CTIME_SEC";
    /// Nanoseconds of the inode's ctime.
    pub const INODE_CTIME_NSEC: &str = "OFF_INODE_CTIME_NSEC";
    /// `super_block.s_dev`
    pub const SB_DEV: &str = "OFF_SB_DEV";
}

/// What becomes of a dirtied inode that is in the map: the count to raise,
/// and for [`Counter::Reported`] a record to write.
#[inline(always)]
#[expect(
    clippy::inline_always,
    reason = "BPF programs of kernel 6.1 pay a call for every function"
)]
pub const fn judge_dirtied(entry: &CachedInode, now: ChangeTime) -> Counter {
    if entry.changed.sec == now.sec && entry.changed.nsec == now.nsec {
        Counter::Unchanged
    } else if entry.reported != 0 {
        Counter::AlreadyReported
    } else {
        Counter::Reported
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENTRY: CachedInode = CachedInode {
        changed: ChangeTime::new(7, 9),
        serial: 3,
        reported: 0,
    };

    #[test]
    fn an_unchanged_inode_is_dropped_and_a_changed_one_reported_once() {
        assert_eq!(
            judge_dirtied(&ENTRY, ChangeTime::new(7, 9)),
            Counter::Unchanged
        );
        assert_eq!(
            judge_dirtied(&ENTRY, ChangeTime::new(7, 10)),
            Counter::Reported
        );
        assert_eq!(
            judge_dirtied(&ENTRY, ChangeTime::new(8, 9)),
            Counter::Reported
        );
        let told = CachedInode {
            reported: 1,
            ..ENTRY
        };
        assert_eq!(
            judge_dirtied(&told, ChangeTime::new(8, 9)),
            Counter::AlreadyReported
        );
    }

    #[test]
    fn the_queried_flag_is_no_part_of_the_stamp() {
        assert_eq!(ChangeTime::new(1, 5 | 1 << 31), ChangeTime::new(1, 5));
    }

    #[test]
    fn counters_are_numbered_as_the_map_indexes_them() {
        assert_eq!(Counter::ALL.len(), Counter::COUNT as usize);
        for (index, (counter, _)) in Counter::ALL.iter().enumerate() {
            assert_eq!(*counter as usize, index);
        }
    }

    #[test]
    fn a_record_survives_the_ring_buffer_and_a_short_one_is_refused() {
        let mut bytes = Vec::new();
        bytes.extend(kernel_dev(8, 17).to_ne_bytes());
        bytes.extend(0u32.to_ne_bytes());
        bytes.extend(123_456_789_012u64.to_ne_bytes());
        bytes.extend(42u32.to_ne_bytes());
        bytes.extend(0u32.to_ne_bytes());
        assert_eq!(
            DirtyRecord::from_bytes(&bytes),
            Some(DirtyRecord {
                key: InodeKey::new(8, 17, 123_456_789_012),
                serial: 42,
                zero: 0
            })
        );
        assert_eq!(DirtyRecord::from_bytes(&bytes[..23]), None);
        bytes.push(0);
        assert_eq!(DirtyRecord::from_bytes(&bytes), None);
    }
}
