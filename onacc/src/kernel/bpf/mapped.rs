//! An eBPF array of words, as memory of ours: no system call for a look or a store.
//!
//! Must not: know what the words mean.

use std::num::NonZeroUsize;
use std::os::fd::AsFd as _;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use aya::maps::Map;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use super::BpfError;
use crate::kernel::SyscallError;

/// A mapped array (`BPF_F_MMAPABLE`) of 8-byte values. Unmapped on drop.
#[derive(Debug)]
pub(super) struct MappedArray {
    words: NonNull<AtomicU64>,
    count: u32,
}

// SAFETY: the memory is shared with the kernel and used only by atomic words.
unsafe impl Send for MappedArray {}
// SAFETY: as above.
unsafe impl Sync for MappedArray {}

impl MappedArray {
    /// Maps the first `count` values of an array, which must have so many.
    pub(super) fn new(map: Map, count: u32) -> Result<Self, BpfError> {
        let Map::Array(data) = map else {
            return Err(BpfError::Refused {
                what: "eBPF map".to_owned(),
                why: "not an array".to_owned(),
                log: String::new(),
            });
        };
        // SAFETY: a fresh mapping at an address that the kernel chooses; the
        // kernel refuses a length that the map does not have, and keeps the
        // map while it is mapped.
        let at = unsafe {
            mmap(
                None,
                bytes(count),
                ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
                MapFlags::MAP_SHARED,
                data.fd().as_fd(),
                0,
            )
        }
        .map_err(|errno| SyscallError::from_errno("mmap of an eBPF map", errno))
        .map_err(|error| BpfError::refused("eBPF map".to_owned(), &error))?;
        Ok(Self {
            words: at.cast(),
            count,
        })
    }

    /// Memory of nobody else's, for tests.
    #[cfg(test)]
    pub(super) fn anonymous(count: u32) -> Self {
        let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a fresh mapping at an address that the kernel chooses.
        let at = unsafe {
            nix::sys::mman::mmap_anonymous(None, bytes(count), prot, MapFlags::MAP_PRIVATE)
        };
        Self {
            words: at.expect("memory").cast(),
            count,
        }
    }

    /// The word at an index, which must be below the count.
    pub(super) fn word(&self, index: u32) -> &AtomicU64 {
        assert!(index < self.count, "the programs and the agent agree");
        // SAFETY: within the mapping, which lives as long as `self`; page-aligned.
        unsafe { self.words.add(index as usize).as_ref() }
    }

    pub(super) fn get(&self, index: u32) -> u64 {
        self.word(index).load(Ordering::Relaxed)
    }
}

fn bytes(count: u32) -> NonZeroUsize {
    NonZeroUsize::new(count as usize * size_of::<u64>()).expect("a map has entries")
}

impl Drop for MappedArray {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, of this length, and unmapped once.
        let unmapped = unsafe { munmap(self.words.cast(), bytes(self.count).get()) };
        debug_assert!(unmapped.is_ok(), "{unmapped:?}");
    }
}
