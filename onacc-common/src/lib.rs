//! What crosses the border between the agent and its eBPF programs.
//!
//! Owns: the layout of map keys, map values and ring-buffer records, the
//! meaning of each counter, and the pure filter logic that the programs run.
//! Must not: depend on anything, allocate, or read kernel memory itself.
//! Tested here, on the host: the programs call the very same functions.
#![cfg_attr(not(test), no_std)]

pub mod filter;
pub mod front;
pub mod opens;

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

/// Identity of a directory that outlives the re-use of its number.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DirKey {
    /// Device and inode.
    pub key: InodeKey,
    /// `i_generation`: filesystems that use inode numbers again change it.
    pub generation: u32,
    /// Always zero.
    pub zero: u32,
}

/// Value of the storage of infected inodes.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeniedInode {
    /// ctime of the bytes that were scanned: with another one, the file is
    /// judged anew.
    pub changed: ChangeTime,
    /// Which signature; the agent knows its name.
    pub signature: u32,
    /// Verdicts of another epoch than the present one do not hold.
    pub epoch: u32,
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
    /// Dirtied inodes seen, on any filesystem: the sum of [`Counter::OF_DIRTIED`],
    /// which the agent forms. The programs do not raise it.
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
    /// Opens seen that none of the counts below is for (prevention mode: they are
    /// events). What the agent tells as seen is their sum.
    OpenSeen = 7,
    /// Dropped: not on a watched filesystem.
    OpenOtherFilesystem = 8,
    /// Dropped: a directory, a device, an `O_PATH`.
    OpenNotRegular = 9,
    /// Dropped: the agent, clamd, or a process that clamd started.
    OpenExempt = 10,
    /// Dropped: the effective uid is excluded.
    OpenExcludedUid = 11,
    /// Dropped: larger than `OnAccessMaxFileSize`.
    OpenTooLarge = 12,
    /// Dropped: nothing in it.
    OpenEmpty = 13,
    /// Dropped: known to be clean, and unchanged.
    OpenClean = 14,
    /// Dropped: in a directory that is out of scope.
    OpenOutside = 15,
    /// Written to the ring buffer.
    OpenReported = 16,
    /// The ring buffer was full; noted in the table of missed files instead.
    OpenMissed = 17,
    /// That table was full, too: nobody will look at this open.
    OpenLost = 18,
    /// Opens and executions of infected files that were refused.
    DeniedOpen = 19,
    /// Mappings of infected files that were refused.
    DeniedMap = 20,
    /// Opens for writing of files that carry a clean mark, reported.
    WriteOpenReported = 21,
}

impl Counter {
    /// All counters, in the order of their index, with the word for logs.
    pub const ALL: [(Counter, &'static str); 22] = [
        (Counter::Seen, "seen"),
        (Counter::OtherFilesystem, "dropped_other_filesystem"),
        (Counter::NotCached, "dropped_not_cached"),
        (Counter::Unchanged, "dropped_unchanged"),
        (Counter::AlreadyReported, "dropped_already_reported"),
        (Counter::Reported, "reported"),
        (Counter::Lost, "lost"),
        (Counter::OpenSeen, "open_seen"),
        (
            Counter::OpenOtherFilesystem,
            "open_dropped_other_filesystem",
        ),
        (Counter::OpenNotRegular, "open_dropped_not_regular"),
        (Counter::OpenExempt, "open_dropped_exempt"),
        (Counter::OpenExcludedUid, "open_dropped_excluded_uid"),
        (Counter::OpenTooLarge, "open_dropped_too_large"),
        (Counter::OpenEmpty, "open_dropped_empty"),
        (Counter::OpenClean, "open_dropped_clean"),
        (Counter::OpenOutside, "open_dropped_outside"),
        (Counter::OpenReported, "open_reported"),
        (Counter::OpenMissed, "open_missed"),
        (Counter::OpenLost, "open_lost"),
        (Counter::DeniedOpen, "denied_open"),
        (Counter::DeniedMap, "denied_map"),
        (Counter::WriteOpenReported, "write_open_reported"),
    ];
    /// How many there are: entries of the map.
    pub const COUNT: u32 = 22;
    /// Each dirtied inode raises exactly one of these.
    pub const OF_DIRTIED: [Counter; 6] = [
        Counter::OtherFilesystem,
        Counter::NotCached,
        Counter::Unchanged,
        Counter::AlreadyReported,
        Counter::Reported,
        Counter::Lost,
    ];
    /// Each open seen raises exactly one of these.
    pub const OF_OPENS: [Counter; 12] = [
        Counter::OpenSeen,
        Counter::OpenOtherFilesystem,
        Counter::OpenNotRegular,
        Counter::OpenExempt,
        Counter::OpenExcludedUid,
        Counter::OpenTooLarge,
        Counter::OpenEmpty,
        Counter::OpenClean,
        Counter::OpenOutside,
        Counter::OpenReported,
        Counter::OpenMissed,
        Counter::OpenLost,
    ];
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
    /// `inode.i_mode`
    pub const INODE_MODE: &str = "OFF_INODE_MODE";
    /// `inode.i_size`
    pub const INODE_SIZE: &str = "OFF_INODE_SIZE";
    /// `inode.i_generation`
    pub const INODE_GENERATION: &str = "OFF_INODE_GENERATION";
    /// `file.f_inode`
    pub const FILE_INODE: &str = "OFF_FILE_INODE";
    /// `file.f_path.dentry`
    pub const FILE_DENTRY: &str = "OFF_FILE_DENTRY";
    /// `file.f_flags`
    pub const FILE_FLAGS: &str = "OFF_FILE_FLAGS";
    /// `file.f_mode`
    pub const FILE_MODE: &str = "OFF_FILE_MODE";
    /// `dentry.d_parent`
    pub const DENTRY_PARENT: &str = "OFF_DENTRY_PARENT";
    /// `dentry.d_inode`
    pub const DENTRY_INODE: &str = "OFF_DENTRY_INODE";
    /// `dentry.d_name.name`
    pub const DENTRY_NAME: &str = "OFF_DENTRY_NAME";
    /// `dentry.d_name.len`
    pub const DENTRY_NAME_LEN: &str = "OFF_DENTRY_NAME_LEN";
    /// `task_struct.cred`
    pub const TASK_CRED: &str = "OFF_TASK_CRED";
    /// `cred.euid`
    pub const CRED_EUID: &str = "OFF_CRED_EUID";
    /// `task_struct.real_parent`
    pub const TASK_PARENT: &str = "OFF_TASK_PARENT";
    /// `task_struct.pid`
    pub const TASK_PID: &str = "OFF_TASK_PID";
    /// `task_struct.tgid`
    pub const TASK_TGID: &str = "OFF_TASK_TGID";
    /// `task_struct.start_boottime`
    pub const TASK_START: &str = "OFF_TASK_START";
    /// `task_struct.files`
    pub const TASK_FILES: &str = "OFF_TASK_FILES";
    /// `files_struct.fdt`
    pub const FILES_FDT: &str = "OFF_FILES_FDT";
    /// `fdtable.fd`
    pub const FDT_FD: &str = "OFF_FDT_FD";
    /// `pt_regs.orig_ax` or `pt_regs.syscallno`
    pub const REGS_NUMBER: &str = "OFF_REGS_NUMBER";
    /// `linux_binprm.file`
    pub const BPRM_FILE: &str = "OFF_BPRM_FILE";
    /// Numbers of the system calls that open a file: globals of their own, so that
    /// the commonest is compared first and the others are not loaded for it.
    pub const OPEN_CALLS: [&str; 5] = [
        "OPEN_CALL_0",
        "OPEN_CALL_1",
        "OPEN_CALL_2",
        "OPEN_CALL_3",
        "OPEN_CALL_4",
    ];
    /// Bits of [`crate::wants`]: what the settings in force need of the hooks.
    pub const WANTS: &str = "WANTS";
}

/// What the settings in force need of the hooks on opens: bits of the global
/// `WANTS`, fixed when the programs are loaded.
pub mod wants {
    /// Opens are told to the agent (notify-only mode).
    pub const OPENS: u32 = 1;
    /// Each opener leaves its effective uid for the reader (prevention mode).
    pub const TAGS: u32 = 2;
    /// Infected inodes are refused (prevention mode, BPF LSM).
    pub const DENY: u32 = 4;
    /// Opens for writing end clean marks.
    pub const WRITES: u32 = 8;
    /// Of opens, executions alone are told.
    pub const EXECUTIONS_ALONE: u32 = 16;
}

/// Entries of the map of settings that change while the programs run.
pub mod config {
    /// Larger files are not scanned: bytes.
    pub const MAX_FILE_SIZE: u32 = 0;
    /// How many there are.
    pub const COUNT: u32 = 1;
}

/// Entries of the map of epochs: what was entered in another epoch than the
/// present one does not hold.
pub mod epochs {
    /// Of the directories out of scope.
    pub const OUTSIDE: u32 = 0;
    /// Of the infected inodes.
    pub const DENIED: u32 = 1;
    /// How many there are.
    pub const COUNT: u32 = 2;
}

/// Slots of the table of tags: a power of two.
pub const TAG_SLOTS: u32 = 16_384;

/// A tag: which thread last opened a file, and as whom. One word, so that it is
/// written and read as a whole.
pub const fn tag(tid: u32, euid: u32) -> u64 {
    (tid as u64) << 32 | euid as u64
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
