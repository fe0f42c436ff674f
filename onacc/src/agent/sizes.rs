//! How much is kept of what there may be any number of: by the machine's memory.
//!
//! What is kept takes memory only as far as it is used; the tables' frames, which
//! the kernel takes at once, are a few megabytes at the most. Must not: read
//! settings. Tested here.

use crate::commands::cli::{DebugLimit, DebugSize};
use crate::kernel::ram;

/// One verdict (and clean mark) for each so many bytes of memory: some hundreds of
/// them, marks and tables of the kernel included.
const BYTES_EACH: u64 = 128 << 10;
/// Verdicts at least, and at most.
const VERDICTS: std::ops::RangeInclusive<u64> = 65_536..=524_288;
/// The share of memory that opens may take which wait to be looked at (once for
/// records, once for files without one), and its limits.
const BACKLOG_SHARE: u64 = 64;
const BACKLOG: std::ops::RangeInclusive<u64> = 8 << 20..=256 << 20;

/// Sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sizes {
    /// Verdicts that are remembered, where the settings do not say.
    pub(super) verdicts: usize,
    /// Inodes that can carry a clean mark at a time.
    pub(super) marks: u32,
    /// Bytes of records about opens that may wait.
    pub(super) backlog: usize,
    /// Bytes of records about changed files that may wait.
    pub(super) records: u32,
    /// Filesystems that the programs can be told of.
    pub(super) filesystems: u32,
    /// Excluded uids that there is room for, if not by how many there are.
    uids: Option<u32>,
}

/// What an event in the kernel's queue costs, about, with the file that it holds.
const EVENT_BYTES: usize = 256;
/// Bytes of records about changed files: 8,192 of them. With more, all marks go.
const RECORDS: u32 = 256 << 10;
/// Filesystems that the programs can be told of: the table is not given back while
/// the agent runs, a filesystem that is gone may live on in another namespace.
const FILESYSTEMS: u32 = 16_384;
/// Excluded uids that there is room for at least: a reload may bring more.
const UIDS: u32 = 4096;

impl Sizes {
    /// For this machine, or this control group.
    pub(super) fn of_machine() -> Self {
        Self::of(ram::available())
    }

    fn of(memory: u64) -> Self {
        let within = |wanted: u64, range: &std::ops::RangeInclusive<u64>| {
            wanted.clamp(*range.start(), *range.end())
        };
        let verdicts = within(memory / BYTES_EACH, &VERDICTS);
        let backlog = within(memory / BACKLOG_SHARE, &BACKLOG);
        Self {
            verdicts: usize::try_from(verdicts).unwrap_or(usize::MAX),
            marks: u32::try_from(verdicts).unwrap_or(u32::MAX),
            backlog: usize::try_from(backlog).unwrap_or(usize::MAX),
            records: RECORDS,
            filesystems: FILESYSTEMS,
            uids: None,
        }
    }

    /// Room for so many excluded uids, and for those that a reload brings.
    pub(super) fn room_for_uids(&self, uids: usize) -> u32 {
        let usual = u32::try_from(uids * 2).unwrap_or(u32::MAX).max(UIDS);
        self.uids.unwrap_or(usual)
    }

    /// Events that may wait in the kernel's queue where nobody waits for an answer.
    pub(super) fn queue(&self) -> usize {
        self.backlog / EVENT_BYTES
    }

    /// With what `--debug-limits` says: tests cannot mount 16,384 filesystems.
    pub(super) fn limited(mut self, limits: &[DebugLimit]) -> Self {
        for limit in limits {
            match limit.what {
                DebugSize::Marks => self.marks = limit.most,
                DebugSize::Backlog => {
                    self.backlog = usize::try_from(limit.most).unwrap_or(usize::MAX);
                }
                DebugSize::Records => self.records = limit.most,
                DebugSize::Filesystems => self.filesystems = limit.most,
                DebugSize::Uids => self.uids = Some(limit.most),
            }
        }
        self
    }

    /// With as many verdicts as the settings say; marks come to as many, where that
    /// is more.
    pub(super) fn with_verdicts(self, verdicts: Option<usize>) -> Self {
        let Some(verdicts) = verdicts else {
            return self;
        };
        let marks = u32::try_from(verdicts).unwrap_or(u32::MAX);
        Self {
            verdicts,
            marks: self.marks.max(marks),
            ..self
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn little_memory_is_enough_and_much_is_not_all_used() {
        let small = Sizes::of(256 << 20);
        assert_eq!(
            (small.verdicts, small.marks, small.backlog),
            (65_536, 65_536, 8 << 20)
        );
        let usual = Sizes::of(8 << 30);
        assert_eq!((usual.verdicts, usual.backlog), (65_536, 128 << 20));
        let large = Sizes::of(u64::MAX);
        assert_eq!((large.verdicts, large.backlog), (524_288, 256 << 20));
        // Marks, tables and backlog together stay below a tenth.
        for memory in [1_u64 << 30, 8 << 30, 64 << 30] {
            let sizes = Sizes::of(memory);
            let most = u64::from(sizes.marks) * 800 + 2 * sizes.backlog as u64;
            assert!(most < memory / 10, "{most} of {memory}");
        }
    }

    #[test]
    fn each_can_be_limited() {
        let limits = [
            "marks=1",
            "backlog=2",
            "filesystems=3",
            "uids=4",
            "records=5",
        ];
        let limits = limits.map(|limit| limit.parse().unwrap());
        let sizes = Sizes::of(8 << 30);
        assert_eq!(sizes.room_for_uids(10), UIDS);
        assert_eq!(sizes.room_for_uids(10_000), 20_000);
        let sizes = sizes.limited(&limits);
        assert_eq!((sizes.marks, sizes.backlog, sizes.filesystems), (1, 2, 3));
        assert_eq!(sizes.records, 5);
        assert_eq!(sizes.room_for_uids(10), 4);
    }

    #[test]
    fn the_settings_go_before() {
        let machine = Sizes::of(8 << 30);
        assert_eq!(machine.with_verdicts(None), machine);
        let few = machine.with_verdicts(Some(0));
        assert_eq!((few.verdicts, few.marks), (0, machine.marks));
        let many = machine.with_verdicts(Some(4_194_304));
        assert_eq!((many.verdicts, many.marks), (4_194_304, 4_194_304));
    }
}
