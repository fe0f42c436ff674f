//! Debian's cloud kernels, fetched by apt and unpacked, never installed.
//!
//! Owns: which package has a kernel, its download, its modules. Must not: boot
//! anything. The choice among packages is tested below.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::shell::{Result, run_quietly};

/// A series of kernels that onacc is tested on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Series {
    /// Debian 12's own.
    #[value(name = "6.1")]
    V6_1,
    /// The one of Debian 12's backports.
    #[value(name = "6.12")]
    V6_12,
}

impl Series {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::V6_1, Self::V6_12];

    /// Names of its packages begin and end like this; what is between tells the newest.
    fn package(self) -> (&'static str, &'static str) {
        match self {
            Self::V6_1 => ("linux-image-6.1.0-", "-cloud-amd64-unsigned"),
            Self::V6_12 => ("linux-image-6.12.", "+deb12-cloud-amd64-unsigned"),
        }
    }
}

impl fmt::Display for Series {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V6_1 => "6.1",
            Self::V6_12 => "6.12",
        })
    }
}

/// An unpacked kernel.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// As `uname -r` says it.
    pub release: String,
    /// The image to boot.
    pub image: PathBuf,
    /// The directory that holds `lib/modules`, with its `modules.dep`.
    pub root: PathBuf,
}

/// The kernel of a series: as fetched before, else fetched now into `cache`.
pub fn get(series: Series, cache: &Path) -> Result<Kernel> {
    let root = cache.join(format!("linux-{series}"));
    // Renamed into place when it is complete.
    if !root.exists() {
        fetch(series, cache, &root).map_err(|error| format!("kernel {series}: {error}"))?;
    }
    let boot = root.join("boot");
    let found = fs::read_dir(&boot).ok().and_then(|entries| {
        entries
            .filter_map(|entry| Some(entry.ok()?.file_name().to_str()?.to_owned()))
            .find_map(|name| Some(name.strip_prefix("vmlinuz-")?.to_owned()))
    });
    let release = found.ok_or_else(|| {
        format!(
            "kernel {series}: no vmlinuz in {}; remove {} to have it fetched again",
            boot.display(),
            root.display()
        )
    })?;
    Ok(Kernel {
        image: boot.join(format!("vmlinuz-{release}")),
        release,
        root,
    })
}

fn fetch(series: Series, cache: &Path, root: &Path) -> Result<()> {
    fs::create_dir_all(cache).map_err(|error| format!("making {}: {error}", cache.display()))?;
    let work = tempfile::Builder::new()
        .prefix("fetching.")
        .tempdir_in(cache)
        .map_err(|error| format!("a directory in {}: {error}", cache.display()))?;
    let mut names = candidates(series, &search()?);
    if names.is_empty() {
        // A bare machine has no package lists yet.
        run_quietly(apt().arg("update"))?;
        names = candidates(series, &search()?);
    }
    let (start, end) = series.package();
    let mut refused = format!("apt knows no package {start}*{end}");
    // Lists may be older than the archive: the newest may be gone.
    let fetched = names.iter().take(3).any(|name| {
        println!("vm: fetching {name}");
        let mut download = apt();
        download.args(["download", name]).current_dir(work.path());
        match run_quietly(&mut download) {
            Ok(()) => true,
            Err(error) => {
                refused = error;
                false
            }
        }
    });
    if !fetched {
        return Err(refused);
    }
    let tree = work.path().join("tree");
    let package = fs::read_dir(work.path())
        .ok()
        .and_then(|mut entries| entries.next()?.ok())
        .ok_or("apt-get download has left no file")?;
    run_quietly(
        Command::new("dpkg")
            .arg("-x")
            .arg(package.path())
            .arg(&tree),
    )?;
    prepare_modules(&tree)?;
    fs::rename(&tree, root).map_err(|error| format!("renaming to {}: {error}", root.display()))
}

/// Uncompresses the modules, so that any modprobe can load them, and writes modules.dep.
fn prepare_modules(tree: &Path) -> Result<()> {
    let modules = tree.join("lib/modules");
    let release = fs::read_dir(&modules)
        .ok()
        .and_then(|mut entries| entries.next()?.ok())
        .ok_or_else(|| format!("no modules in {}", modules.display()))?
        .file_name();
    let compressed = files_below(&modules.join(&release), "xz");
    if !compressed.is_empty() {
        run_quietly(
            Command::new("xz")
                .args(["--decompress", "--quiet", "--threads=0"])
                .args(compressed),
        )?;
    }
    let depmod = crate::setup::system_program("depmod");
    run_quietly(Command::new(depmod).arg("-b").arg(tree).arg(&release))
}

/// The files with this extension, at any depth.
pub fn files_below(dir: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut dirs = vec![dir.to_path_buf()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let path = entry.path();
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                dirs.push(path);
            } else if path.extension().is_some_and(|has| has == extension) {
                found.push(path);
            }
        }
    }
    found
}

fn search() -> Result<String> {
    let output = Command::new("apt-cache")
        .args([
            "search",
            "--names-only",
            "^linux-image-6.*-cloud-amd64-unsigned$",
        ])
        .stdin(Stdio::null())
        .env("LC_ALL", "C")
        .output()
        .map_err(|error| format!("apt-cache does not start: {error}"))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn apt() -> Command {
    let mut apt = Command::new("apt-get");
    apt.arg("-qq").env("LC_ALL", "C").stdin(Stdio::null());
    apt
}

/// Packages of a series, newest first, from what `apt-cache search` said.
fn candidates(series: Series, said: &str) -> Vec<String> {
    let (start, end) = series.package();
    let mut found: Vec<(u32, String)> = said
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .filter_map(|name| {
            let number = name.strip_prefix(start)?.strip_suffix(end)?;
            Some((number.parse().ok()?, name.to_owned()))
        })
        .collect();
    found.sort_unstable_by(|one, other| other.cmp(one));
    found.into_iter().map(|(_, name)| name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_package_of_a_series_comes_first() {
        let said = "linux-image-6.1.0-9-cloud-amd64-unsigned - Linux 6.1 for x86-64 cloud\n\
                    linux-image-6.1.0-56-cloud-amd64-unsigned - Linux 6.1 for x86-64 cloud\n\
                    linux-image-6.1.0-56-cloud-amd64-dbg - Debug symbols\n\
                    linux-image-6.12.99+deb12-cloud-amd64-unsigned - Linux 6.12\n\
                    linux-image-6.12.117+deb12-cloud-amd64-unsigned - Linux 6.12\n";
        assert_eq!(
            candidates(Series::V6_1, said),
            [
                "linux-image-6.1.0-56-cloud-amd64-unsigned",
                "linux-image-6.1.0-9-cloud-amd64-unsigned"
            ]
        );
        assert_eq!(
            candidates(Series::V6_12, said),
            [
                "linux-image-6.12.117+deb12-cloud-amd64-unsigned",
                "linux-image-6.12.99+deb12-cloud-amd64-unsigned"
            ]
        );
        assert!(candidates(Series::V6_12, "").is_empty());
    }
}
