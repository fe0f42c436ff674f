use onacc::kernel::btf::{Btf, Named};

/// BTF: never a panic, never an endless walk.
pub fn btf(bytes: &[u8]) {
    if let Ok(btf) = Btf::parse(bytes) {
        let _ = btf.offset("inode", &["i_ctime", "tv_sec"]);
        let _ = btf.offset("outer", &["b", "deep"]);
        let _ = btf.offset("outer", &["x"]);
        let excerpt = btf.excerpt(&[("deep", Named::Function), ("outer", Named::Typedef)]);
        assert!(Btf::parse(&excerpt).is_ok(), "an excerpt is BTF");
    }
}
