//! Why the eBPF program cannot be built, and what to do about it.
//!
//! Owns: the words. Part of `ebpf_toolchain.rs`, and tested with it.

use std::{fmt, io, path::PathBuf, process::ExitStatus};

use super::{DEFAULT_LLVM, debian_packages, linker_install_args, llvm_prefix};

/// Why the eBPF program cannot be built.
#[derive(Debug)]
pub enum Error {
    /// No compiler with the sources of its library.
    NoCompiler {
        /// What is wrong with nightly.
        nightly: String,
        /// What is wrong with Debian's.
        debian: String,
    },
    /// No bpf-linker that starts.
    NoLinker {
        /// What is wrong with it.
        reason: String,
        /// The LLVM that it must have.
        llvm: u32,
    },
    /// The linker cannot read what the compiler writes.
    LinkerTooOld {
        /// The linker.
        linker: PathBuf,
        /// Its LLVM.
        has: u32,
        /// The compiler's LLVM.
        needs: u32,
    },
    /// The nested cargo failed.
    Build {
        /// The compiler used.
        compiler: PathBuf,
        /// How cargo ended.
        status: ExitStatus,
        /// What it said, if that was not shown already.
        said: String,
    },
    /// A file or a program could not be used.
    Io {
        /// What was tried.
        what: String,
        /// What came of it.
        source: io::Error,
    },
    /// The build gave something that is no ELF object.
    NotAnObject(PathBuf),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoCompiler { nightly, debian } => {
                writeln!(f, "no compiler for the eBPF program was found:")?;
                writeln!(f, "  nightly Rust does not serve: {nightly}")?;
                writeln!(f, "  Debian's Rust does not serve: {debian}")?;
                remedy(f, DEFAULT_LLVM)
            }
            Self::NoLinker { reason, llvm } => {
                writeln!(
                    f,
                    "the linker for the eBPF program does not serve: {reason}"
                )?;
                remedy(f, *llvm)
            }
            Self::LinkerTooOld { linker, has, needs } => {
                writeln!(
                    f,
                    "{} has LLVM {has}, but the compiler writes for LLVM {needs}",
                    linker.display()
                )?;
                remedy(f, *needs)
            }
            Self::Build {
                compiler,
                status,
                said,
            } => {
                writeln!(
                    f,
                    "building the eBPF program with {} failed ({status})",
                    compiler.display()
                )?;
                for line in said.lines() {
                    writeln!(f, "  {line}")?;
                }
                write!(f, "to see it alone: cargo xtask build-ebpf")
            }
            Self::Io { what, source } => write!(f, "{what}: {source}"),
            Self::NotAnObject(path) => {
                write!(
                    f,
                    "{} is no ELF object; remove it and build again",
                    path.display()
                )
            }
        }
    }
}

/// The commands that put a toolchain here.
fn remedy(f: &mut fmt::Formatter<'_>, llvm: u32) -> fmt::Result {
    writeln!(f, "install what is missing with: cargo xtask setup")?;
    writeln!(f, "or by hand, on Debian, as root:")?;
    writeln!(
        f,
        "  apt-get install --no-install-recommends {}",
        debian_packages(llvm).join(" ")
    )?;
    writeln!(
        f,
        "  LLVM_PREFIX={} cargo {}",
        llvm_prefix(llvm).display(),
        linker_install_args(llvm).join(" ")
    )?;
    writeln!(f, "or by hand, elsewhere:")?;
    writeln!(
        f,
        "  rustup toolchain install nightly --profile minimal --component rust-src"
    )?;
    write!(
        f,
        "  and a release of bpf-linker: https://github.com/aya-rs/bpf-linker/releases"
    )
}

impl std::error::Error for Error {}
