//! What is to be installed, worked out from what was found.
//!
//! Owns: the list of needs, and the steps that meet them. Must not: look at the
//! machine or change it (`setup.rs` does both): this is plain data in, plain
//! data out. Tested below.

use crate::ebpf_toolchain::{
    DEFAULT_LLVM, LINKER_VERSION, Seen, choose, linker_install_args, llvm_prefix,
};

/// The LLVM versions that this bpf-linker can be built with.
const LINKER_LLVMS: std::ops::RangeInclusive<u32> = 21..=23;

/// How much must be there: each level needs all of those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// To build the agent.
    Build,
    /// To show it at work.
    Tour,
    /// To test it.
    Test,
    /// To test it on other kernels.
    Vm,
}

/// Something other than the eBPF toolchain that is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Need {
    /// From which level on.
    pub level: Level,
    /// The program or the file that tells that it is there.
    pub sign: &'static str,
    /// The Debian package that has it.
    pub package: &'static str,
    /// What for.
    pub why: &'static str,
}

/// All needs that a Debian package meets.
pub const NEEDS: [Need; 16] = [
    Need {
        level: Level::Build,
        sign: "cc",
        package: "gcc",
        why: "links programs for Rust",
    },
    Need {
        level: Level::Tour,
        sign: "/usr/sbin/clamd",
        package: "clamav-daemon",
        why: "clamd, which scans",
    },
    Need {
        level: Level::Tour,
        sign: "/usr/share/clamav-testfiles/clam.exe",
        package: "clamav-testfiles",
        why: "harmless files to be detected",
    },
    Need {
        level: Level::Tour,
        sign: "mkfs.ext4",
        package: "e2fsprogs",
        why: "makes scratch filesystems",
    },
    Need {
        level: Level::Tour,
        sign: "mount",
        package: "mount",
        why: "mounts scratch filesystems",
    },
    Need {
        level: Level::Tour,
        sign: "losetup",
        package: "mount",
        why: "mounts scratch filesystems from image files",
    },
    Need {
        level: Level::Test,
        sign: "mkfs.xfs",
        package: "xfsprogs",
        why: "makes xfs filesystems for the tests",
    },
    Need {
        level: Level::Test,
        sign: "mkfs.btrfs",
        package: "btrfs-progs",
        why: "makes btrfs filesystems for the tests",
    },
    Need {
        level: Level::Test,
        sign: "fuse2fs",
        package: "fuse2fs",
        why: "serves a filesystem by FUSE in the tests",
    },
    Need {
        level: Level::Test,
        sign: "stunnel4",
        package: "stunnel4",
        why: "puts TLS before clamd in the tests",
    },
    Need {
        level: Level::Vm,
        sign: "qemu-system-x86_64",
        package: "qemu-system-x86",
        why: "boots other kernels",
    },
    Need {
        level: Level::Vm,
        sign: "busybox",
        package: "busybox-static",
        why: "the system around other kernels",
    },
    Need {
        level: Level::Vm,
        sign: "cpio",
        package: "cpio",
        why: "packs what other kernels boot",
    },
    Need {
        level: Level::Vm,
        sign: "depmod",
        package: "kmod",
        why: "lists the modules of other kernels",
    },
    Need {
        level: Level::Vm,
        sign: "xz",
        package: "xz-utils",
        why: "unpacks the modules of other kernels",
    },
    Need {
        level: Level::Test,
        sign: "c++",
        package: "g++",
        why: "builds libFuzzer for cargo xtask fuzz",
    },
];

/// What is on this machine.
#[derive(Clone, Debug)]
pub struct Found {
    /// Whether packages may be installed by us.
    pub root: bool,
    /// Whether there is an apt-get.
    pub apt: bool,
    /// Whether there is a rustup.
    pub rustup: bool,
    /// The parts of the eBPF toolchain.
    pub ebpf: Seen,
    /// The versions of LLVM that bpf-linker could be built with.
    pub llvm_dev: Vec<u32>,
    /// Libraries that bpf-linker is linked with and that are missing: packages.
    pub link_libraries: Vec<&'static str>,
    /// Needs that are not met.
    pub unmet: Vec<Need>,
    /// Components of the Rust toolchain that are missing.
    pub components: Vec<&'static str>,
}

/// A Debian package to be installed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// What for.
    pub why: String,
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Install these packages by apt-get.
    Apt(Vec<Package>),
    /// Build bpf-linker for this LLVM.
    Linker(u32),
    /// Add a component by rustup.
    Component(&'static str),
}

impl Step {
    /// The commands that do it by hand.
    pub fn by_hand(&self) -> Vec<String> {
        match self {
            Self::Apt(packages) => {
                let names: Vec<&str> = packages.iter().map(|one| one.name.as_str()).collect();
                vec![
                    "apt-get update".to_owned(),
                    format!(
                        "apt-get install --no-install-recommends {}",
                        names.join(" ")
                    ),
                ]
            }
            Self::Linker(llvm) => vec![format!(
                "LLVM_PREFIX={} cargo {}",
                llvm_prefix(*llvm).display(),
                linker_install_args(*llvm).join(" ")
            )],
            Self::Component(name) => vec![format!("rustup component add {name}")],
        }
    }
}

/// The steps that are left, or why they cannot be taken and what to do by hand.
pub fn plan(found: &Found, level: Level) -> Result<Vec<Step>, String> {
    let mut packages = Vec::new();
    let mut linker = None;
    if choose(&found.ebpf).is_err() {
        // Debian's compiler is what setup brings; its linker must fit it.
        let llvm = match &found.ebpf.debian {
            Ok(compiler) => compiler.llvm.unwrap_or(DEFAULT_LLVM),
            Err(_) => DEFAULT_LLVM,
        };
        if found.ebpf.debian.is_err() {
            packages.push(package("rustc-web", "the compiler for the eBPF program"));
            packages.push(package(
                "rust-web-src",
                "the sources of core, which is built for eBPF",
            ));
        }
        let serves = |has: Option<u32>| has.is_none_or(|has| has >= llvm);
        if !matches!(&found.ebpf.linker, Ok(linker) if serves(linker.llvm)) {
            linker = Some(llvm);
            if !found.llvm_dev.contains(&llvm) {
                let why = "bpf-linker is built with it";
                packages.push(package(&format!("llvm-{llvm}-dev"), why));
            }
            for library in &found.link_libraries {
                packages.push(package(library, "bpf-linker is linked with it"));
            }
        }
    }
    for need in found.unmet.iter().filter(|need| need.level <= level) {
        if !packages.iter().any(|one| one.name == need.package) {
            packages.push(package(need.package, need.why));
        }
    }
    let mut steps = Vec::new();
    if !packages.is_empty() {
        steps.push(Step::Apt(packages));
    }
    steps.extend(linker.map(Step::Linker));
    if level >= Level::Test {
        steps.extend(found.components.iter().copied().map(Step::Component));
    }
    check(found, &steps)?;
    Ok(steps)
}

fn package(name: &str, why: &str) -> Package {
    Package {
        name: name.to_owned(),
        why: why.to_owned(),
    }
}

/// Whether these steps can be taken here; else what to do instead.
fn check(found: &Found, steps: &[Step]) -> Result<(), String> {
    for step in steps {
        match step {
            Step::Apt(packages) if !found.apt => {
                return Err(without_apt(found, packages));
            }
            Step::Apt(_) if !found.root => {
                return Err(format!(
                    "setup: packages are missing, and only root can install them. As root:\n{}",
                    listed(steps)
                ));
            }
            Step::Linker(llvm) if !LINKER_LLVMS.contains(llvm) => {
                return Err(format!(
                    "setup: bpf-linker {LINKER_VERSION} can be built with LLVM {} to {}, but the \
                     compiler has LLVM {llvm}. Install a newer bpf-linker: \
                     https://github.com/aya-rs/bpf-linker/releases",
                    LINKER_LLVMS.start(),
                    LINKER_LLVMS.end()
                ));
            }
            Step::Component(name) if !found.rustup => {
                return Err(format!(
                    "setup: {name} is missing, and there is no rustup to add it: install the \
                     {name} that belongs to your cargo"
                ));
            }
            _ => {}
        }
    }
    Ok(())
}

fn without_apt(found: &Found, packages: &[Package]) -> String {
    let mut lines = vec![
        "setup: there is no apt-get here, so this is to be installed by your system's means:"
            .to_owned(),
    ];
    let toolchain = ["rustc-web", "rust-web-src"];
    if let Err(error) = choose(&found.ebpf) {
        let error = error.to_string();
        lines.extend(error.lines().map(|line| format!("  {line}")));
    }
    for one in packages {
        let name = one.name.as_str();
        let of_toolchain = toolchain.contains(&name)
            || name.starts_with("llvm-")
            || found.link_libraries.contains(&name);
        if !of_toolchain {
            lines.push(format!(
                "  what Debian has in its package {}: {}",
                one.name, one.why
            ));
        }
    }
    lines.join("\n")
}

/// Commands for the user, one a line.
pub fn listed(steps: &[Step]) -> String {
    let lines = steps.iter().flat_map(Step::by_hand);
    let lines: Vec<String> = lines.map(|line| format!("  {line}")).collect();
    lines.join("\n")
}

#[cfg(test)]
#[path = "setup_plan_tests.rs"]
mod tests;
