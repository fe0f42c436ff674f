use onacc::kernel::inotify::parse_fdinfo;
use onacc::kernel::mounts::MountTable;
use onacc::kernel::overlay;
use onacc::kernel::procfs::{parse_control_group, parse_process, parse_stat};
use onacc::policy::Scope;
use onacc::scan::socket_inode;

/// Text from the kernel that holds names anyone may choose (mountinfo, stat, status,
/// cgroup), its table of connections, its list of watches, and handles of overlays.
pub fn kernel_text(bytes: &[u8]) {
    let table = MountTable::parse(bytes);
    let scope = Scope::build(&["/a".into(), "/a/b/c".into()], &["/a/b".into()], &table);
    for mount in table.iter() {
        let _ = scope.side_of_opened(mount, b"/a/b/c/d");
    }
    let _ = parse_stat(bytes);
    let _ = parse_process(bytes);
    if let Some(group) = parse_control_group(bytes) {
        assert!(!group.contains(&b'\n') && group.len() < bytes.len());
    }
    let lines = bytes.split(|byte| *byte == b'\n').count();
    assert!(parse_fdinfo(bytes).len() <= lines);
    let _ = overlay::parse(bytes);
    let here = ([127, 0, 0, 1], 3310).into();
    let _ = socket_inode(&String::from_utf8_lossy(bytes), here, here);
}
