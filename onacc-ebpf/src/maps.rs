//! The maps: what the agent tells the programs, and what they tell it. Must
//! not: decide anything.

use aya_ebpf::{
    macros::map,
    maps::{HashMap, PerCpuArray, RingBuf},
};
use onacc_common::{CachedInode, Counter, DirtyRecord, InodeKey};

/// BPF_F_NO_PREALLOC (include/uapi/linux/bpf.h): memory for what is used alone.
const NO_PREALLOC: u32 = 1;

/// Devices (`s_dev`) of the watched filesystems.
#[map]
static WATCHED: HashMap<u32, u8> = HashMap::with_max_entries(1024, 0);
/// Inodes that carry a clean mark. Plain, not LRU: an entry that vanished by
/// itself would be a lost invalidation. The agent resizes it before loading.
#[map]
static CACHED: HashMap<InodeKey, CachedInode> = HashMap::with_max_entries(65536, NO_PREALLOC);
/// Records for the agent.
#[map]
static RECORDS: RingBuf = RingBuf::with_byte_size(256 * 1024, 0);
/// Counters, by `Counter`.
#[map]
static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Counter::COUNT, 0);

/// Raises a counter of this CPU.
#[inline(always)]
pub fn count(counter: Counter) {
    if let Some(value) = COUNTERS.get_ptr_mut(counter as u32) {
        // SAFETY: the pointer is to this CPU's own value. A program that
        // interrupts this one on the same CPU can lose a count, no more.
        unsafe { *value += 1 };
    }
}

/// Whether a filesystem is watched.
#[inline(always)]
pub fn is_watched(dev: u32) -> bool {
    WATCHED.get_ptr(&dev).is_some()
}

/// The entry of an inode that carries a clean mark.
#[inline(always)]
pub fn cached(key: &InodeKey) -> Option<*mut CachedInode> {
    CACHED.get_ptr_mut(key)
}

/// Writes a record; false when the ring buffer is full.
#[inline(always)]
pub fn report(record: &DirtyRecord) -> bool {
    RECORDS.output::<DirtyRecord>(record, 0).is_ok()
}
