//! The hook that every tier has: an inode is being changed.
//!
//! Must not: hold logic of its own (`onacc_common::judge_dirtied`).

use onacc_common::{Counter, DirtyRecord, InodeKey, judge_dirtied};

use crate::{
    layout::{self, Typed},
    maps,
};

/// Reports an inode that carries a clean mark, once.
#[inline(always)]
pub fn dirtied(inode: *const u8) {
    maps::count(Counter::Seen);
    let dev = layout::dev::<Typed>(inode);
    if !maps::is_watched(dev) {
        return maps::count(Counter::OtherFilesystem);
    }
    let key = InodeKey {
        dev,
        zero: 0,
        ino: layout::ino::<Typed>(inode),
    };
    let Some(entry) = maps::cached(&key) else {
        return maps::count(Counter::NotCached);
    };
    // SAFETY: the map's values live until deletion and a grace period; the
    // agent replaces a value as a whole and the programs alone set `reported`.
    let verdict = judge_dirtied(unsafe { &*entry }, layout::ctime::<Typed>(inode));
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
