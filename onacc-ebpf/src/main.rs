//! The filter plane's kernel half.
//!
//! Owns: which kernel events reach the agent. Must not: know a kernel
//! structure's layout (offsets come from the running kernel's BTF, set by the
//! agent before loading) or hold logic of its own (that is in `onacc-common`,
//! tested on the host). Tested on the running kernel by `tests/`.
#![no_std]
#![no_main]

mod layout;
mod maps;

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use onacc_common::{Counter, DirtyRecord, InodeKey, judge_dirtied};

/// `writeback_mark_inode_dirty(struct inode *inode, int flags)`: fires before
/// the change is visible, for a store through a shared mapping too
/// (fs/fs-writeback.c, `__mark_inode_dirty`).
#[btf_tracepoint(function = "writeback_mark_inode_dirty")]
pub fn inode_dirtied(ctx: BtfTracePointContext) -> i32 {
    let inode: *const u8 = ctx.arg(0);
    maps::count(Counter::Seen);
    let dev = layout::dev(inode);
    if !maps::is_watched(dev) {
        maps::count(Counter::OtherFilesystem);
        return 0;
    }
    let key = InodeKey {
        dev,
        zero: 0,
        ino: layout::ino(inode),
    };
    let Some(entry) = maps::cached(&key) else {
        maps::count(Counter::NotCached);
        return 0;
    };
    // SAFETY: the map's values live until deletion and a grace period; the
    // agent replaces a value as a whole and this program alone sets `reported`.
    let verdict = judge_dirtied(unsafe { &*entry }, layout::ctime(inode));
    if matches!(verdict, Counter::Reported) {
        // SAFETY: as above.
        let serial = unsafe { (*entry).serial };
        let record = DirtyRecord {
            key,
            serial,
            zero: 0,
        };
        if maps::report(&record) {
            // SAFETY: as above; a second CPU that races here reports twice, harmlessly.
            unsafe { (*entry).reported = 1 };
        } else {
            maps::count(Counter::Lost);
            return 0;
        }
    }
    maps::count(verdict);
    0
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

// The kernel grants the helpers for GPL-compatible programs alone.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
