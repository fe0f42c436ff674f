//! The hook that every tier has: an inode is being changed.
//!
//! Must not: hold logic of its own (`onacc_common::judge_dirtied`).

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use onacc_common::{Counter, DirtyRecord, InodeKey, judge_dirtied};

use crate::{inode::Inode, layout::Pointer, maps};

/// `writeback_mark_inode_dirty(struct inode *inode, int flags)`: fires before
/// the change is visible, for a store through a shared mapping too
/// (fs/fs-writeback.c, `__mark_inode_dirty`).
#[btf_tracepoint(function = "writeback_mark_inode_dirty")]
pub fn inode_dirtied(ctx: BtfTracePointContext) -> i32 {
    dirtied(ctx.arg(0));
    0
}

/// Reports an inode that carries a clean mark, once.
#[inline(always)]
fn dirtied(inode: *const u8) {
    let inode = Inode(Pointer(inode));
    let dev = inode.dev();
    if !maps::is_watched(dev) {
        return maps::count(Counter::OtherFilesystem);
    }
    let key = InodeKey {
        dev,
        zero: 0,
        ino: inode.number(),
    };
    let Some(entry) = maps::cached(&key) else {
        return maps::count(Counter::NotCached);
    };
    // SAFETY: the map's values live until deletion and a grace period; the
    // agent replaces a value as a whole and the programs alone set `reported`.
    let verdict = judge_dirtied(unsafe { &*entry }, inode.changed());
    if matches!(verdict, Counter::Reported) {
        // SAFETY: as above.
        let serial = unsafe { (*entry).serial };
        let record = DirtyRecord {
            key,
            serial,
            zero: 0,
        };
        if !maps::report(&record) {
            return maps::count(Counter::Lost);
        }
        // SAFETY: as above; a second CPU that races here reports twice, harmlessly.
        unsafe { (*entry).reported = 1 };
    }
    maps::count(verdict);
}
