use onacc::kernel::btf::Btf;

/// BTF: never a panic, never an endless walk.
pub fn btf(bytes: &[u8]) {
    if let Ok(btf) = Btf::parse(bytes) {
        let _ = btf.offset("inode", &["i_ctime", "tv_sec"]);
        let _ = btf.offset("outer", &["b", "deep"]);
        let _ = btf.offset("outer", &["x"]);
    }
}
