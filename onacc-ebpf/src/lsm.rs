//! The filter plane's kernel half: the hooks of the tier "BPF LSM", which can
//! refuse. (`main.rs` has those of the other tiers; the logic is the same.)
//!
//! A program of its own: the kernel has inode storage for LSM programs alone.
#![no_std]
#![no_main]

mod dirtied;
mod inode;
mod layout;
mod maps;
mod names;
mod object;
mod opens;
mod task;

use aya_ebpf::{
    bindings,
    btf_maps::InodeStorage,
    macros::{btf_map, lsm},
    programs::LsmContext,
};
use onacc_common::{
    Counter, DeniedInode, epochs,
    filter::{Opened, Tables},
    opens::Access,
    wants,
};

use crate::{maps::Known, opens::OfHook};

/// `-EPERM`: what fanotify's FAN_DENY gives, too.
const REFUSED: i32 = -1;

/// Inodes that are known to be infected. An entry goes with its inode.
#[btf_map]
static DENIED: InodeStorage<DeniedInode> = InodeStorage::new();

/// `file_open(struct file *file)` (include/linux/lsm_hook_defs.h): every open
/// and execution, before fanotify sees it. For notify-only mode.
#[lsm(hook = "file_open")]
pub fn file_told(ctx: LsmContext) -> i32 {
    opens::told(&OfHook::from_hook(ctx.arg(0)));
    0
}

/// As above, for prevention mode.
#[lsm(hook = "file_open")]
pub fn file_judged(ctx: LsmContext) -> i32 {
    let file = OfHook::from_hook(ctx.arg(0));
    if opens::wanted(wants::DENY)
        && let Some(signature) = infected(&file)
    {
        maps::count(Counter::DeniedOpen);
        opens::tell(&file, Access::DeniedOpen, signature);
        return REFUSED;
    }
    opens::noted(&file);
    0
}

/// `mmap_file(struct file *file, …)`: a mapping of a file that was opened before
/// it was known to be infected.
#[lsm(hook = "mmap_file")]
pub fn mmap_file(ctx: LsmContext) -> i32 {
    let file: *const u8 = ctx.arg(0);
    if file.is_null() {
        return 0;
    }
    let file = OfHook::from_hook(file);
    if let Some(signature) = infected(&file) {
        maps::count(Counter::DeniedMap);
        opens::tell(&file, Access::DeniedMap, signature);
        return REFUSED;
    }
    0
}

/// The signature of a file that is known to be infected and not to be opened by
/// this thread: it is unchanged, the verdict holds, nobody is excluded.
#[inline(always)]
fn infected(file: &OfHook) -> Option<u32> {
    if !maps::is_watched(file.dev()) {
        return None;
    }
    let inode = file.inode.0.0.cast_mut().cast::<bindings::inode>();
    // SAFETY: the inode is the hook's own, alive while it runs.
    let entry = unsafe { DENIED.get_ptr_mut(inode) };
    if entry.is_null() {
        return None;
    }
    // SAFETY: not null, and the storage lives while the inode does. A value that
    // is replaced meanwhile may be torn: then a stamp differs, and fanotify decides.
    let entry = unsafe { *entry };
    let now = file.changed();
    if u64::from(entry.epoch) != maps::epoch(epochs::DENIED)
        || entry.changed.sec != now.sec
        || entry.changed.nsec != now.nsec
        || Known.is_exempt_ancestor(file.process())
        || Known.is_excluded(file.euid())
        || file.descends_from_exempt(|process| Known.is_exempt_ancestor(process))
    {
        return None;
    }
    Some(entry.signature)
}
