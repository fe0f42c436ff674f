//! Tests of the plan: what was found in, steps or advice out.

use std::path::PathBuf;

use super::*;
use crate::ebpf_toolchain::{Compiler, Linker};

fn compiler(llvm: u32) -> Compiler {
    Compiler {
        name: "a compiler",
        rustc: PathBuf::from("/r"),
        cargo: None,
        llvm: Some(llvm),
        stable: true,
    }
}

fn linker(llvm: u32) -> Linker {
    Linker {
        path: PathBuf::from("/l"),
        llvm: Some(llvm),
    }
}

/// Everything is there.
fn complete() -> Found {
    Found {
        root: true,
        apt: true,
        rustup: true,
        ebpf: Seen {
            nightly: Err("no nightly".to_owned()),
            debian: Ok(compiler(22)),
            linker: Ok(linker(22)),
        },
        llvm_dev: vec![22],
        link_libraries: Vec::new(),
        unmet: Vec::new(),
        components: Vec::new(),
    }
}

/// A bare Debian with rustup's stable and a C compiler.
fn bare() -> Found {
    Found {
        ebpf: Seen {
            nightly: Err("no nightly".to_owned()),
            debian: Err("no rustc".to_owned()),
            linker: Err("no linker".to_owned()),
        },
        llvm_dev: Vec::new(),
        link_libraries: vec!["libzstd-dev"],
        unmet: NEEDS[1..].to_vec(),
        components: vec!["rustfmt"],
        ..complete()
    }
}

fn names(step: &Step) -> Vec<&str> {
    match step {
        Step::Apt(packages) => packages.iter().map(|one| one.name.as_str()).collect(),
        _ => Vec::new(),
    }
}

#[test]
fn nothing_is_done_where_all_is_there() {
    for level in [Level::Build, Level::Tour, Level::Test] {
        assert_eq!(plan(&complete(), level), Ok(Vec::new()));
    }
    let nightly = Found {
        root: false,
        apt: false,
        ebpf: Seen {
            nightly: Ok(compiler(22)),
            debian: Err("no rustc".to_owned()),
            linker: Ok(linker(22)),
        },
        ..complete()
    };
    assert_eq!(plan(&nightly, Level::Test), Ok(Vec::new()));
}

#[test]
fn a_bare_debian_gets_everything_once() {
    let steps = plan(&bare(), Level::Vm).unwrap();
    assert_eq!(
        names(&steps[0]),
        [
            "rustc-web",
            "rust-web-src",
            "llvm-22-dev",
            "libzstd-dev",
            "clamav-daemon",
            "clamav-testfiles",
            "e2fsprogs",
            "mount",
            "xfsprogs",
            "btrfs-progs",
            "fuse2fs",
            "stunnel4",
            "qemu-system-x86",
            "busybox-static",
            "cpio",
            "kmod",
            "xz-utils",
            "g++"
        ]
    );
    assert_eq!(steps[1..], [Step::Linker(22), Step::Component("rustfmt")]);
}

#[test]
fn a_level_asks_for_no_more_than_it_needs() {
    let steps = plan(&bare(), Level::Build).unwrap();
    assert_eq!(
        names(&steps[0]),
        ["rustc-web", "rust-web-src", "llvm-22-dev", "libzstd-dev"]
    );
    assert_eq!(steps.len(), 2);
    let steps = plan(&bare(), Level::Tour).unwrap();
    assert_eq!((names(&steps[0]).len(), steps.len()), (8, 2));
}

#[test]
fn the_linker_is_built_for_the_compiler_that_is_there() {
    let mut found = complete();
    found.ebpf.debian = Ok(compiler(23));
    let steps = plan(&found, Level::Build).unwrap();
    assert_eq!(
        (names(&steps[0]), &steps[1]),
        (vec!["llvm-23-dev"], &Step::Linker(23))
    );
    found.llvm_dev.push(23);
    assert_eq!(plan(&found, Level::Build), Ok(vec![Step::Linker(23)]));
    found.ebpf.debian = Ok(compiler(24));
    let refusal = plan(&found, Level::Build).unwrap_err();
    assert!(
        refusal.contains("LLVM 21 to 23") && refusal.contains("LLVM 24"),
        "{refusal}"
    );
}

#[test]
fn a_linker_that_is_there_is_kept_for_a_compiler_that_comes() {
    let mut found = bare();
    found.ebpf.linker = Ok(linker(23));
    let steps = plan(&found, Level::Build).unwrap();
    assert_eq!(names(&steps[0]), ["rustc-web", "rust-web-src"]);
    assert_eq!(steps.len(), 1);
}

#[test]
fn without_root_the_commands_are_said() {
    let found = Found {
        root: false,
        ..bare()
    };
    let refusal = plan(&found, Level::Test).unwrap_err();
    for part in [
        "only root",
        "  apt-get update\n  apt-get install --no-install-recommends rustc-web rust-web-src",
        "clamav-daemon",
        "  LLVM_PREFIX=/usr/lib/llvm-22 cargo install bpf-linker --version 0.13.0",
        "  rustup component add rustfmt",
    ] {
        assert!(refusal.contains(part), "{part:?} is not in:\n{refusal}");
    }
    let only_linker = Found {
        root: false,
        ebpf: Seen {
            linker: Err("none".to_owned()),
            ..complete().ebpf
        },
        ..complete()
    };
    assert_eq!(plan(&only_linker, Level::Test), Ok(vec![Step::Linker(22)]));
}

#[test]
fn without_apt_the_tools_are_named() {
    let found = Found {
        apt: false,
        ..bare()
    };
    let refusal = plan(&found, Level::Test).unwrap_err();
    for part in [
        "no apt-get",
        "no nightly",
        "rustup toolchain install nightly --profile minimal --component rust-src",
        "package clamav-daemon: clamd, which scans",
    ] {
        assert!(refusal.contains(part), "{part:?} is not in:\n{refusal}");
    }
    let found = Found {
        apt: false,
        rustup: false,
        components: vec!["clippy"],
        ..complete()
    };
    assert!(
        plan(&found, Level::Test)
            .unwrap_err()
            .contains("clippy is missing")
    );
    assert_eq!(plan(&found, Level::Tour), Ok(Vec::new()));
}

#[test]
fn other_kernels_need_qemu_and_the_tour_does_not() {
    let found = Found {
        unmet: NEEDS.to_vec(),
        ..complete()
    };
    let packages = |level| match plan(&found, level).unwrap().remove(0) {
        Step::Apt(packages) => packages.into_iter().map(|one| one.name).collect::<Vec<_>>(),
        other => panic!("{other:?}"),
    };
    let qemu = "qemu-system-x86".to_owned();
    assert!(!packages(Level::Tour).contains(&qemu));
    assert!(!packages(Level::Test).contains(&qemu));
    assert!(packages(Level::Vm).contains(&qemu));
}
