//! Who opened last, thread by thread: a map that the reader reads as memory.
//!
//! The opener that a permission event holds cannot change its credentials
//! meanwhile (facts/kernel.md, fanotify 10), so that its tag is true as long as
//! no other thread with the same slot has written over it, which the thread id
//! in it tells. Must not: be asked after the answer.

use std::num::NonZeroUsize;
use std::os::fd::AsFd as _;
use std::ptr::NonNull;

use aya::maps::Map;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use onacc_common::TAG_SLOTS;

use super::BpfError;
use crate::kernel::SyscallError;

const BYTES: usize = TAG_SLOTS as usize * size_of::<u64>();

/// The table of tags, mapped. Unmapped on drop.
#[derive(Debug)]
pub struct Tags {
    slots: NonNull<u64>,
}

// SAFETY: the memory is shared with the kernel and only ever read, one aligned
// word at a time.
unsafe impl Send for Tags {}
// SAFETY: as above.
unsafe impl Sync for Tags {}

impl Tags {
    pub(super) fn new(map: Map) -> Result<Self, BpfError> {
        let Map::Array(data) = map else {
            return Err(BpfError::Refused {
                what: "eBPF map TAGS".to_owned(),
                why: "not an array".to_owned(),
                log: String::new(),
            });
        };
        let bytes = NonZeroUsize::new(BYTES).expect("there are slots");
        // SAFETY: a fresh mapping at an address that the kernel chooses; the map
        // has TAG_SLOTS values of 8 bytes and stays while it is mapped.
        let at = unsafe {
            mmap(
                None,
                bytes,
                ProtFlags::PROT_READ,
                MapFlags::MAP_SHARED,
                data.fd().as_fd(),
                0,
            )
        }
        .map_err(|errno| SyscallError::from_errno("mmap of the map of tags", errno))
        .map_err(|error| BpfError::refused("eBPF map TAGS".to_owned(), &error))?;
        Ok(Self { slots: at.cast() })
    }

    /// The effective uid of a thread that waits in an open; `None` if it left
    /// no tag, or another thread's lies over it.
    pub fn effective_uid(&self, tid: i32) -> Option<u32> {
        let tid = u32::try_from(tid).ok().filter(|tid| *tid != 0)?;
        let slot = (tid & (TAG_SLOTS - 1)) as usize;
        // SAFETY: the slot lies in the mapping, which lives as long as `self`.
        let tag = unsafe { self.slots.add(slot).read_volatile() };
        #[expect(clippy::cast_possible_truncation, reason = "its two halves")]
        let (owner, euid) = ((tag >> 32) as u32, tag as u32);
        (owner == tid).then_some(euid)
    }
}

impl Drop for Tags {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, of this length, and unmapped once.
        let unmapped = unsafe { munmap(self.slots.cast(), BYTES) };
        debug_assert!(unmapped.is_ok(), "{unmapped:?}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::mman::mmap_anonymous;

    #[test]
    fn a_tag_that_another_thread_has_written_over_tells_nothing() {
        let bytes = NonZeroUsize::new(BYTES).unwrap();
        let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a fresh mapping of this size, unmapped by `Tags` alone.
        let tags = unsafe { mmap_anonymous(None, bytes, prot, MapFlags::MAP_PRIVATE) };
        let tags = Tags {
            slots: tags.unwrap().cast(),
        };
        let write = |tid: u32, euid: u32| {
            let slot = (tid & (TAG_SLOTS - 1)) as usize;
            // SAFETY: inside the mapping.
            unsafe {
                tags.slots
                    .add(slot)
                    .write_volatile(onacc_common::tag(tid, euid));
            }
        };
        write(7, 1000);
        assert_eq!(tags.effective_uid(7), Some(1000));
        write(7 + TAG_SLOTS, 0);
        assert_eq!(tags.effective_uid(7), None, "asked of /proc then");
        assert_eq!(tags.effective_uid(8), None);
        assert_eq!(
            (tags.effective_uid(0), tags.effective_uid(-1)),
            (None, None)
        );
    }
}
