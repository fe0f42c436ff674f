//! What comes out of the kernel besides permission events: ring-buffer records
//! of the eBPF programs, and word of what comes into a filesystem.

use onacc::kernel::fanotify::parse_arrivals;
use onacc_common::DirtyRecord;
use onacc_common::opens::{OpenHeader, OpenRecord};

/// Records about opens and dirtied inodes: nothing outside the bytes is believed.
pub fn records(bytes: &[u8]) {
    if let Some(record) = OpenRecord::from_bytes(bytes) {
        let room = bytes.len() - OpenHeader::SIZE;
        assert!(record.header.names_len as usize <= room);
        let told: usize = record.names().map(|name| name.len() + 1).sum();
        assert!(told <= record.header.names_len as usize);
        assert!(record.names().all(|name| !name.contains(&0)));
        assert!(record.comm().len() <= 16);
    }
    assert_eq!(
        DirtyRecord::from_bytes(bytes).is_some(),
        bytes.len() == DirtyRecord::SIZE
    );
}

/// Arrivals: each takes an event's worth of bytes.
pub fn arrivals(bytes: &[u8]) {
    assert!(parse_arrivals(bytes).len() <= bytes.len() / 24);
}
