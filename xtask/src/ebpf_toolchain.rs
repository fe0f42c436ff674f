//! Finds the toolchain for the eBPF crate, and builds the crate with it.
//!
//! Owns: which compiler and linker serve, the command line of the nested
//! cargo, and what is said when something is missing. Must not: install
//! anything (that is `setup.rs`) or use a crate: `onacc/build.rs` includes this
//! very file. Tested below, on what was seen and on what is chosen from it.

use std::{
    env,
    ffi::{OsStr, OsString},
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

#[path = "ebpf_toolchain_error.rs"]
mod error;
pub use error::Error;

/// The version of bpf-linker that is known to work with this source.
pub const LINKER_VERSION: &str = "0.13.0";
/// The LLVM of Debian 12's `rustc-web`, where no compiler is there to be asked.
pub const DEFAULT_LLVM: u32 = 22;
/// Debian's compiler, from the package `rustc-web`.
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";

/// A compiler that has the sources of its library.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compiler {
    /// What to call it in messages.
    pub name: &'static str,
    /// The compiler itself, no proxy.
    pub rustc: PathBuf,
    /// The cargo that belongs to it; else the one that runs us.
    pub cargo: Option<PathBuf>,
    /// Major version of its LLVM, where it says so.
    pub llvm: Option<u32>,
    /// Whether it needs `RUSTC_BOOTSTRAP` for unstable features.
    pub stable: bool,
}

/// A bpf-linker that starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Linker {
    /// Where it is.
    pub path: PathBuf,
    /// Major version of its LLVM, where that can be read from the file.
    pub llvm: Option<u32>,
}

/// What is on this machine; the `Err` says why something does not serve.
#[derive(Clone, Debug)]
pub struct Seen {
    /// rustup's nightly.
    pub nightly: Result<Compiler, String>,
    /// Debian's rustc.
    pub debian: Result<Compiler, String>,
    /// The linker.
    pub linker: Result<Linker, String>,
}

/// A compiler and a linker that fit together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Toolchain {
    /// The compiler.
    pub compiler: Compiler,
    /// The linker.
    pub linker: Linker,
}

/// The Debian packages that give the compiler and what bpf-linker is built with.
pub fn debian_packages(llvm: u32) -> Vec<String> {
    ["rustc-web", "rust-web-src", "libzstd-dev"]
        .iter()
        .map(ToString::to_string)
        .chain([format!("llvm-{llvm}-dev")])
        .collect()
}

/// The arguments of `cargo` that install the linker; `LLVM_PREFIX` goes with them.
pub fn linker_install_args(llvm: u32) -> Vec<String> {
    let feature = format!("llvm-{llvm}");
    [
        "install",
        "bpf-linker",
        "--version",
        LINKER_VERSION,
        "--no-default-features",
        "--features",
        &feature,
        "--locked",
    ]
    .iter()
    .map(ToString::to_string)
    .collect()
}

/// Where Debian puts an LLVM.
pub fn llvm_prefix(llvm: u32) -> PathBuf {
    PathBuf::from(format!("/usr/lib/llvm-{llvm}"))
}

/// Looks for every part of a toolchain.
pub fn look() -> Seen {
    Seen {
        nightly: look_for_nightly(),
        debian: look_for_debian(),
        linker: look_for_linker(),
    }
}

/// Chooses from what was seen: nightly before Debian's, and never a compiler
/// that the linker is known to be too old for.
pub fn choose(seen: &Seen) -> Result<Toolchain, Error> {
    let compilers: Vec<&Compiler> = [&seen.nightly, &seen.debian]
        .into_iter()
        .filter_map(|found| found.as_ref().ok())
        .collect();
    let Some(first) = compilers.first() else {
        let reason = |found: &Result<Compiler, String>| found.clone().err().unwrap_or_default();
        return Err(Error::NoCompiler {
            nightly: reason(&seen.nightly),
            debian: reason(&seen.debian),
        });
    };
    let linker = match &seen.linker {
        Ok(linker) => linker,
        Err(reason) => {
            return Err(Error::NoLinker {
                reason: reason.clone(),
                // setup builds the linker for Debian's compiler, where that is there.
                llvm: seen
                    .debian
                    .as_ref()
                    .map_or(first.llvm, |debian| debian.llvm)
                    .unwrap_or(DEFAULT_LLVM),
            });
        }
    };
    let fits = |compiler: &&&Compiler| match (compiler.llvm, linker.llvm) {
        (Some(needs), Some(has)) => has >= needs,
        // Not knowable: the build will tell.
        _ => true,
    };
    match compilers.iter().find(fits) {
        Some(compiler) => Ok(Toolchain {
            compiler: (*compiler).clone(),
            linker: linker.clone(),
        }),
        None => Err(Error::LinkerTooOld {
            linker: linker.path.clone(),
            has: linker.llvm.unwrap_or_default(),
            needs: compilers
                .iter()
                .filter_map(|compiler| compiler.llvm)
                .min()
                .unwrap_or(DEFAULT_LLVM),
        }),
    }
}

/// Finds a toolchain.
pub fn find() -> Result<Toolchain, Error> {
    choose(&look())
}

/// The objects that `onacc-ebpf` is built into.
pub const OBJECTS: [&str; 2] = ["onacc-ebpf", "onacc-lsm"];

/// Builds `onacc-ebpf` and returns the paths of [`OBJECTS`]. Cargo's progress is
/// on stderr, or if quiet, in [`Error::Build`] if it comes to that.
pub fn build(toolchain: &Toolchain, workspace: &Path, quiet: bool) -> Result<[PathBuf; 2], Error> {
    let source = workspace.join("onacc-ebpf");
    let target = bpf_target(&arch_endian());
    let target_dir = target_dir(workspace).join("ebpf");
    let mut cargo = nested_cargo(toolchain);
    cargo
        .current_dir(&source)
        .args(["build", "--release", "--locked", "--target", target])
        .args(["-Z", "build-std=core", "--target-dir"])
        .arg(&target_dir)
        .stdin(Stdio::null());
    let fail = |source| Error::Io {
        what: format!("running {}", cargo_of(toolchain).display()),
        source,
    };
    let (status, said) = if quiet {
        let output = cargo.output().map_err(fail)?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status, said)
    } else {
        (cargo.status().map_err(fail)?, String::new())
    };
    if !status.success() {
        return Err(Error::Build {
            compiler: toolchain.compiler.rustc.clone(),
            status,
            said: last_lines(&said, 40),
        });
    }
    let objects = OBJECTS.map(|name| target_dir.join(target).join("release").join(name));
    for object in &objects {
        let bytes = fs::read(object).map_err(|source| Error::Io {
            what: format!("reading {}", object.display()),
            source,
        })?;
        if !bytes.starts_with(b"\x7fELF") {
            return Err(Error::NotAnObject(object.clone()));
        }
    }
    Ok(objects)
}

/// The directory of build output: the caller's choice, or `target`.
pub fn target_dir(workspace: &Path) -> PathBuf {
    env::var_os("CARGO_TARGET_DIR")
        .filter(|dir| !dir.is_empty())
        .map_or_else(|| workspace.join("target"), |dir| workspace.join(dir))
}

/// The nested cargo with an environment of its own.
fn nested_cargo(toolchain: &Toolchain) -> Command {
    let mut cargo = Command::new(cargo_of(toolchain));
    for (name, _) in env::vars_os() {
        if leaks(&name) {
            cargo.env_remove(name);
        }
    }
    let (arch, _) = arch_endian();
    let flags = [
        format!("--cfg=bpf_target_arch=\"{arch}\""),
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
    ];
    cargo
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        .env("RUSTC", &toolchain.compiler.rustc)
        // Empty means none, in the user's cargo configuration too.
        .env("RUSTC_WRAPPER", "")
        .env("RUSTC_WORKSPACE_WRAPPER", "")
        .env(
            "CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER",
            &toolchain.linker.path,
        )
        .env(
            "CARGO_TARGET_BPFEB_UNKNOWN_NONE_LINKER",
            &toolchain.linker.path,
        );
    if toolchain.compiler.stable {
        cargo.env("RUSTC_BOOTSTRAP", "1");
    }
    cargo
}

fn cargo_of(toolchain: &Toolchain) -> PathBuf {
    toolchain.compiler.cargo.clone().unwrap_or_else(|| {
        env::var_os("CARGO").map_or_else(|| PathBuf::from("cargo"), PathBuf::from)
    })
}

/// Whether a variable of the outer cargo would change what the nested one does.
/// Where crates come from, and the job server, are left as they are.
fn leaks(name: &OsStr) -> bool {
    const KEPT: [&str; 6] = [
        "CARGO_HTTP_",
        "CARGO_NET_",
        "CARGO_REGISTRIES_",
        "CARGO_REGISTRY_",
        "CARGO_SOURCE_",
        "CARGO_TERM_",
    ];
    // LD_LIBRARY_PATH: cargo puts the outer compiler's libraries there.
    const GONE: [&str; 4] = [
        "CLIPPY_ARGS",
        "LD_LIBRARY_PATH",
        "RUSTFLAGS",
        "RUSTUP_TOOLCHAIN",
    ];
    let Some(name) = name.to_str() else {
        return false;
    };
    if name == "CARGO_HOME" || name == "CARGO_MAKEFLAGS" {
        return false;
    }
    if name == "CARGO" || name.starts_with("CARGO_") || name.starts_with("__CARGO_") {
        return !KEPT.iter().any(|kept| name.starts_with(kept));
    }
    if name.starts_with("RUSTC") || name.starts_with("RUSTDOC") {
        return true;
    }
    GONE.contains(&name)
}

/// Architecture and byte order of the machine that onacc is built for.
fn arch_endian() -> (String, String) {
    let own_endian = if cfg!(target_endian = "big") {
        "big"
    } else {
        "little"
    };
    (
        env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_else(|_| env::consts::ARCH.to_owned()),
        env::var("CARGO_CFG_TARGET_ENDIAN").unwrap_or_else(|_| own_endian.to_owned()),
    )
}

fn bpf_target((_, endian): &(String, String)) -> &'static str {
    if endian == "big" {
        "bpfeb-unknown-none"
    } else {
        "bpfel-unknown-none"
    }
}

fn look_for_nightly() -> Result<Compiler, String> {
    let rustc = output_of(
        Command::new("rustup")
            .args(["which", "--toolchain", "nightly", "rustc"])
            .env("RUSTUP_AUTO_INSTALL", "0"),
    )
    .map_err(|_| "rustup has no toolchain named nightly".to_owned())?;
    let rustc = PathBuf::from(rustc.trim());
    let sysroot = checked_sysroot(&rustc, "the component rust-src")?;
    let cargo = sysroot.join("bin/cargo");
    Ok(Compiler {
        name: "rustup's nightly",
        llvm: llvm_of(&rustc),
        cargo: cargo.exists().then_some(cargo),
        rustc,
        stable: false,
    })
}

fn look_for_debian() -> Result<Compiler, String> {
    let rustc = PathBuf::from(DEBIAN_RUSTC);
    if !rustc.exists() {
        return Err(format!("there is no {DEBIAN_RUSTC} (package rustc-web)"));
    }
    checked_sysroot(&rustc, "the package rust-web-src")?;
    Ok(Compiler {
        name: "Debian's rustc",
        llvm: llvm_of(&rustc),
        cargo: None,
        rustc,
        stable: true,
    })
}

/// The sysroot of a compiler, if it holds the sources of the library.
fn checked_sysroot(rustc: &Path, source: &str) -> Result<PathBuf, String> {
    let sysroot = output_of(Command::new(rustc).args(["--print", "sysroot"]))?;
    let sysroot = PathBuf::from(sysroot.trim());
    let library = sysroot.join("lib/rustlib/src/rust/library");
    if library.join("core/Cargo.toml").exists() {
        Ok(sysroot)
    } else {
        Err(format!(
            "{} lacks the sources of its library in {} ({source})",
            rustc.display(),
            library.display()
        ))
    }
}

fn llvm_of(rustc: &Path) -> Option<u32> {
    llvm_in_version(&output_of(Command::new(rustc).arg("-vV")).ok()?)
}

/// The LLVM major in the output of `rustc -vV`.
fn llvm_in_version(text: &str) -> Option<u32> {
    let version = text
        .lines()
        .find_map(|line| line.strip_prefix("LLVM version: "))?;
    version.split('.').next()?.trim().parse().ok()
}

fn look_for_linker() -> Result<Linker, String> {
    let path =
        find_program("bpf-linker").ok_or("there is no bpf-linker in PATH or in ~/.cargo/bin")?;
    output_of(Command::new(&path).arg("--version"))?;
    let llvm = fs::read(&path).ok().and_then(|file| llvm_in_binary(&file));
    Ok(Linker { path, llvm })
}

/// Finds a program in PATH, and where cargo installs programs.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let cargo_home = env::var_os("CARGO_HOME").map(PathBuf::from).or_else(|| {
        let home = env::var_os("HOME")?;
        Some(Path::new(&home).join(".cargo"))
    });
    let path: OsString = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(cargo_home.map(|home| home.join("bin")))
        .map(|dir| dir.join(name))
        .find(|candidate| candidate.is_file())
}

/// The LLVM major of the shared library that a program names, `libLLVM.so.22.1`
/// or `libLLVM-21.so`; `None` where LLVM is linked statically.
fn llvm_in_binary(file: &[u8]) -> Option<u32> {
    let marker = b"libLLVM";
    file.windows(marker.len())
        .enumerate()
        .filter(|(_, window)| window == marker)
        .find_map(|(at, _)| {
            let rest = &file[at + marker.len()..];
            let digits = rest
                .strip_prefix(b".so.".as_slice())
                .or_else(|| rest.strip_prefix(b"-".as_slice()))?;
            let length = digits
                .iter()
                .take_while(|byte| byte.is_ascii_digit())
                .count();
            std::str::from_utf8(&digits[..length]).ok()?.parse().ok()
        })
}

/// What a program prints, or why it gave nothing.
fn output_of(command: &mut Command) -> Result<String, String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command
        .env_remove("RUSTUP_TOOLCHAIN")
        .env_remove("LD_LIBRARY_PATH")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("{name} does not start: {error}"))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        let said = String::from_utf8_lossy(&output.stderr);
        Err(format!(
            "{name} failed ({}): {}",
            output.status,
            said.lines().next().unwrap_or("it said nothing")
        ))
    }
}

fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

#[cfg(test)]
#[path = "ebpf_toolchain_tests.rs"]
mod tests;
