//! Text from the kernel that holds names anyone may choose: mountinfo, stat.
#![no_main]
use libfuzzer_sys::fuzz_target;
use onacc::kernel::mounts::MountTable;
use onacc::kernel::procfs::parse_stat;
use onacc::policy::Scope;

fuzz_target!(|bytes: &[u8]| {
    let table = MountTable::parse(bytes);
    let scope = Scope::build(&["/a".into(), "/a/b/c".into()], &["/a/b".into()], &table);
    for mount in table.iter() {
        let _ = scope.side_of_opened(mount, b"/a/b/c/d");
    }
    let _ = parse_stat(bytes);
});
