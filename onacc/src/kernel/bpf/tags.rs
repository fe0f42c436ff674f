//! Who opened last, thread by thread: a map that the reader reads as memory.
//!
//! The opener that a permission event holds cannot change its credentials
//! meanwhile (facts/kernel.md, fanotify 10), so that its tag is true as long as
//! no other thread with the same slot has written over it, which the thread id
//! in it tells. Must not: be asked after the answer.

use aya::maps::Map;
use onacc_common::TAG_SLOTS;

use super::BpfError;
use super::mapped::MappedArray;

/// The table of tags.
#[derive(Debug)]
pub struct Tags(MappedArray);

impl Tags {
    pub(super) fn new(map: Map) -> Result<Self, BpfError> {
        MappedArray::new(map, TAG_SLOTS).map(Self)
    }

    /// The effective uid of a thread that waits in an open; `None` if it left
    /// no tag, or another thread's lies over it.
    pub fn effective_uid(&self, tid: i32) -> Option<u32> {
        let tid = u32::try_from(tid).ok().filter(|tid| *tid != 0)?;
        let tag = self.0.get(tid & (TAG_SLOTS - 1));
        #[expect(clippy::cast_possible_truncation, reason = "its two halves")]
        let (owner, euid) = ((tag >> 32) as u32, tag as u32);
        (owner == tid).then_some(euid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering;

    #[test]
    fn a_tag_that_another_thread_has_written_over_tells_nothing() {
        let tags = Tags(MappedArray::anonymous(TAG_SLOTS));
        let write = |tid: u32, euid: u32| {
            let word = tags.0.word(tid & (TAG_SLOTS - 1));
            word.store(onacc_common::tag(tid, euid), Ordering::Relaxed);
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
