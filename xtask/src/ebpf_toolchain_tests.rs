//! Tests of `ebpf_toolchain.rs`: pure, on what was seen.

use super::*;

fn compiler(name: &'static str, llvm: u32) -> Compiler {
    Compiler {
        name,
        rustc: PathBuf::from("/r/rustc"),
        cargo: None,
        llvm: Some(llvm),
        stable: true,
    }
}

fn linker(llvm: Option<u32>) -> Linker {
    Linker {
        path: PathBuf::from("/l/bpf-linker"),
        llvm,
    }
}

/// What was seen: the LLVM of each compiler that is there, and the linker.
fn seen(nightly: Option<u32>, debian: Option<u32>, linker: Option<Linker>) -> Seen {
    let found = |llvm: Option<u32>, name| llvm.map(|llvm| compiler(name, llvm));
    Seen {
        nightly: found(nightly, "nightly").ok_or("no nightly".to_owned()),
        debian: found(debian, "debian").ok_or("no rustc-web".to_owned()),
        linker: linker.ok_or("there is no bpf-linker".to_owned()),
    }
}

#[test]
fn nightly_comes_first_unless_the_linker_is_too_old_for_it() {
    let chosen = |seen: &Seen| choose(seen).unwrap().compiler.name;
    let both = seen(Some(22), Some(22), Some(linker(Some(22))));
    assert_eq!(chosen(&both), "nightly");
    let newer = seen(Some(23), Some(22), Some(linker(Some(22))));
    assert_eq!(chosen(&newer), "debian");
    let unknown = seen(Some(23), Some(22), Some(linker(None)));
    assert_eq!(chosen(&unknown), "nightly");
    let newer_linker = seen(None, Some(22), Some(linker(Some(23))));
    assert_eq!(chosen(&newer_linker), "debian");
}

#[test]
fn what_is_missing_is_said_with_the_command_that_installs_it() {
    let nothing = choose(&seen(None, None, Some(linker(None))))
        .unwrap_err()
        .to_string();
    for part in [
        "no nightly",
        "no rustc-web",
        "cargo xtask setup",
        "apt-get install --no-install-recommends rustc-web rust-web-src libzstd-dev llvm-22-dev",
        "LLVM_PREFIX=/usr/lib/llvm-22 cargo install bpf-linker --version 0.13.0 \
         --no-default-features --features llvm-22",
        "--component rust-src",
    ] {
        assert!(nothing.contains(part), "{part:?} is not in:\n{nothing}");
    }
    let linkerless = seen(None, Some(21), None);
    let text = choose(&linkerless).unwrap_err().to_string();
    assert!(text.contains("there is no bpf-linker") && text.contains("--features llvm-21"));
    let old = choose(&seen(None, Some(22), Some(linker(Some(21))))).unwrap_err();
    assert!(matches!(
        old,
        Error::LinkerTooOld {
            has: 21,
            needs: 22,
            ..
        }
    ));
    assert!(old.to_string().contains("/l/bpf-linker has LLVM 21"));
}

#[test]
fn the_llvm_is_read_from_rustc_and_from_the_linker_file() {
    assert_eq!(
        llvm_in_version("rustc 1.96.0\nLLVM version: 22.1.8\n"),
        Some(22)
    );
    assert_eq!(llvm_in_version("rustc 1.96.0\n"), None);
    assert_eq!(llvm_in_binary(b"\0libLLVM\0libLLVM.so.22.1\0"), Some(22));
    assert_eq!(llvm_in_binary(b"x libLLVM-21.so.1"), Some(21));
    assert_eq!(llvm_in_binary(b"x libLLVM.so. statically"), None);
    assert_eq!(llvm_in_binary(b""), None);
}

#[test]
fn the_outer_cargo_does_not_leak_but_the_way_to_the_registry_stays() {
    for name in [
        "CARGO",
        "CARGO_TARGET_DIR",
        "CARGO_ENCODED_RUSTFLAGS",
        "CARGO_BUILD_TARGET",
        "CARGO_CFG_TARGET_ARCH",
        "CARGO_PROFILE_RELEASE_LTO",
        "CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS",
        "RUSTC",
        "RUSTC_WRAPPER",
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTC_BOOTSTRAP",
        "RUSTFLAGS",
        "RUSTUP_TOOLCHAIN",
        "CLIPPY_ARGS",
        "LD_LIBRARY_PATH",
    ] {
        assert!(leaks(OsStr::new(name)), "{name}");
    }
    for name in [
        "PATH",
        "HOME",
        "CARGO_HOME",
        "CARGO_MAKEFLAGS",
        "CARGO_NET_OFFLINE",
        "CARGO_REGISTRIES_CRATES_IO_PROTOCOL",
        "CARGO_HTTP_PROXY",
        "RUSTUP_HOME",
        "HTTPS_PROXY",
    ] {
        assert!(!leaks(OsStr::new(name)), "{name}");
    }
}

#[test]
fn the_byte_order_chooses_the_target() {
    let target = |endian: &str| bpf_target(&("any".to_owned(), endian.to_owned()));
    assert_eq!(target("little"), "bpfel-unknown-none");
    assert_eq!(target("big"), "bpfeb-unknown-none");
}
