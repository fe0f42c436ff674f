//! The maps: what the agent tells the programs, and what they tell it. Must
//! not: decide anything.

use aya_ebpf::{
    macros::map,
    maps::{Array, HashMap, PerCpuArray, RingBuf},
};
use onacc_common::{
    CachedInode, Counter, DirKey, DirtyRecord, InodeKey, TAG_SLOTS, config, epochs,
    filter::{Filesystem, Tables},
    front::{self, Front},
};

/// BPF_F_NO_PREALLOC (include/uapi/linux/bpf.h): memory for what is used alone.
const NO_PREALLOC: u32 = 1;
/// BPF_F_MMAPABLE: the agent reads the array without a system call.
const MMAPABLE: u32 = 1 << 10;

/// Devices (`s_dev`) of the watched filesystems, and what is known of them.
#[map]
static WATCHED: HashMap<u32, u32> = HashMap::with_max_entries(1024, NO_PREALLOC);
/// Inodes that were found clean (and carry a clean mark, in prevention mode).
/// Plain, not LRU: an entry that vanished by itself would be a lost
/// invalidation. The agent resizes it before loading.
#[map]
static CACHED: HashMap<InodeKey, CachedInode> = HashMap::with_max_entries(65536, NO_PREALLOC);
/// Records about clean marks for the agent.
#[map]
static RECORDS: RingBuf = RingBuf::with_byte_size(256 * 1024, 0);
/// Records about opens, resized before loading.
#[map]
static OPENS: RingBuf = RingBuf::with_byte_size(4096, 0);
/// Files whose open found no room in `OPENS`: the catch-up.
#[map]
static MISSED: HashMap<DirKey, u32> = HashMap::with_max_entries(65536, NO_PREALLOC);
/// Effective uids whose opens are not scanned. Resized before loading.
#[map]
static EXCLUDED: HashMap<u32, u8> = HashMap::with_max_entries(1024, NO_PREALLOC);
/// Processes whose opens are never scanned: the agent, clamd.
#[map]
static EXEMPT: HashMap<u32, u8> = HashMap::with_max_entries(64, 0);
/// Directories out of scope, each with the epoch in which that was found.
#[map]
static OUTSIDE: HashMap<DirKey, u64> = HashMap::with_max_entries(65536, NO_PREALLOC);
/// What stands before `WATCHED`, `EXEMPT` and `EXCLUDED`.
#[map]
static FRONTS: Array<u64> = Array::with_max_entries(Front::ALL_SLOTS, MMAPABLE);
/// Settings, by `config`.
#[map]
static CONFIG: Array<u64> = Array::with_max_entries(config::COUNT, 0);
/// Epochs, by `epochs`.
#[map]
static EPOCHS: Array<u64> = Array::with_max_entries(epochs::COUNT, 0);
/// Who opened last: `tag`, by thread id modulo the number of slots.
#[map]
static TAGS: Array<u64> = Array::with_max_entries(TAG_SLOTS, MMAPABLE);
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

/// What the front of a table says of a key.
#[inline(always)]
fn front(which: Front, key: u32) -> front::Found {
    match FRONTS.get_ptr(which.index(key)) {
        // SAFETY: the map lives as long as the program; one aligned word, which
        // the agent writes as a whole.
        Some(slot) => front::look(unsafe { slot.read_volatile() }, key),
        None => front::Found::Ask,
    }
}

/// Whether a filesystem is watched.
#[inline(always)]
pub fn is_watched(dev: u32) -> bool {
    Known.filesystem(dev).is_some()
}

/// The entry of an inode that was found clean.
#[inline(always)]
pub fn cached(key: &InodeKey) -> Option<*mut CachedInode> {
    CACHED.get_ptr_mut(key)
}

/// Writes a record; false when the ring buffer is full.
#[inline(always)]
pub fn report(record: &DirtyRecord) -> bool {
    RECORDS.output::<DirtyRecord>(record, 0).is_ok()
}

/// Room for a record about an open; `None` when the ring buffer is full.
#[inline(always)]
pub fn open_record<T: 'static>() -> Option<aya_ebpf::maps::ring_buf::RingBufEntry<T>> {
    OPENS.reserve::<T>(0)
}

/// Notes a file whose open found no room; false when that table is full, too.
#[inline(always)]
pub fn note_missed(file: &DirKey, euid: u32) -> bool {
    MISSED.insert(file, euid, 0).is_ok()
}

/// The present epoch.
#[inline(always)]
pub fn epoch(index: u32) -> u64 {
    EPOCHS.get(index).copied().unwrap_or(0)
}

/// Leaves who opened last.
#[inline(always)]
pub fn leave_tag(tid: u32, tag: u64) {
    if let Some(slot) = TAGS.get_ptr_mut(tid & (TAG_SLOTS - 1)) {
        // SAFETY: the map lives as long as the program; one aligned word.
        unsafe { slot.write_volatile(tag) };
    }
}

/// The tables behind the filter.
pub struct Known;

impl Tables for Known {
    #[inline(always)]
    fn filesystem(&self, dev: u32) -> Option<Filesystem> {
        match front(Front::Filesystems, dev) {
            front::Found::No => None,
            front::Found::Yes(value) => Some(Filesystem(value)),
            front::Found::Ask => {
                // SAFETY: entries are replaced as a whole, one word each.
                let value = unsafe { WATCHED.get(&dev) }?;
                Some(Filesystem(*value))
            }
        }
    }

    #[inline(always)]
    fn is_exempt(&self, process: u32) -> bool {
        match front(Front::Exempt, process) {
            front::Found::No => false,
            front::Found::Yes(_) => true,
            front::Found::Ask => EXEMPT.get_ptr(&process).is_some(),
        }
    }

    // VERIFIER: 6.1 looks at each way out of each look, and a front has three.
    #[inline(always)]
    fn is_exempt_ancestor(&self, process: u32) -> bool {
        EXEMPT.get_ptr(&process).is_some()
    }

    #[inline(always)]
    fn is_excluded(&self, euid: u32) -> bool {
        match front(Front::Excluded, euid) {
            front::Found::No => false,
            front::Found::Yes(_) => true,
            front::Found::Ask => EXCLUDED.get_ptr(&euid).is_some(),
        }
    }

    #[inline(always)]
    fn max_file_size(&self) -> u64 {
        CONFIG.get(config::MAX_FILE_SIZE).copied().unwrap_or(0)
    }

    #[inline(always)]
    fn clean(&self, key: &InodeKey) -> Option<CachedInode> {
        // SAFETY: the map's values live until deletion and a grace period. A
        // value that is replaced meanwhile may be torn: then its stamp differs.
        let entry = unsafe { CACHED.get(key) }?;
        Some(*entry)
    }

    #[inline(always)]
    fn is_outside(&self, directory: &DirKey) -> bool {
        // SAFETY: as above; one word.
        let epoch = unsafe { OUTSIDE.get(directory) };
        epoch.is_some_and(|epoch| *epoch == self::epoch(epochs::OUTSIDE))
    }
}
