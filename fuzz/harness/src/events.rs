use onacc::kernel::fanotify::event::{Events, METADATA_LEN};

/// Bytes read from a fanotify fd, and records of the eBPF ring buffer.
pub fn events(bytes: &[u8]) {
    let mut errors = 0;
    let mut events = 0;
    for event in Events::new(bytes) {
        assert_eq!(errors, 0, "nothing may follow an error");
        match event {
            Ok(_) => events += 1,
            Err(_) => errors += 1,
        }
    }
    assert!(events * METADATA_LEN <= bytes.len());
    let record = onacc_common::DirtyRecord::from_bytes(bytes);
    assert_eq!(
        record.is_some(),
        bytes.len() == onacc_common::DirtyRecord::SIZE
    );
}
