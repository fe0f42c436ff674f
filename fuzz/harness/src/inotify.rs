use onacc::kernel::inotify::InotifyEvents;

/// Bytes read from an inotify fd: they end, and no name is a path.
pub fn inotify(bytes: &[u8]) {
    let mut taken = 0;
    for event in InotifyEvents::new(bytes) {
        taken += 16 + event.name.len();
        assert!(taken <= bytes.len());
        assert!(!event.name.contains(&0));
    }
}
