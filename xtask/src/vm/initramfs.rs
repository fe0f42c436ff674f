//! The initramfs: busybox, programs with their libraries, modules, and an init.
//!
//! Owns: what the machine finds on its root filesystem. Must not: know what runs
//! there. Tested by every run of `cargo xtask vm`; the reading of ldd's words below.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use super::kernels::{Kernel, files_below};
use crate::shell::{Result, run_quietly};

const INIT: &str = include_str!("init.sh");
/// Modules that the init loads; what is built into a kernel is no module.
const MODULES: [&str; 5] = ["loop", "overlay", "fuse", "xfs", "btrfs"];
/// Programs of the host that the machine has too, before busybox's: tests rely on
/// their words and flags.
const PROGRAMS: [&str; 24] = [
    "btrfs",
    "cat",
    "clamd",
    "clamdscan",
    "cp",
    "install",
    "ln",
    "losetup",
    "md5sum",
    "mkfs.btrfs",
    "mkfs.ext4",
    "mkfs.xfs",
    "mount",
    "mv",
    "rm",
    "setpriv",
    "sh",
    "sleep",
    "stat",
    "tar",
    "touch",
    "true",
    "umount",
    "unshare",
];
/// Files of the host that the machine has too.
const FILES: [&str; 3] = ["/etc/passwd", "/etc/group", "/etc/mke2fs.conf"];

/// A directory that becomes an initramfs.
pub struct Root {
    dir: tempfile::TempDir,
    libraries: BTreeSet<PathBuf>,
}

impl Root {
    /// A system that boots this kernel.
    pub fn new(kernel: &Kernel) -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("onacc-initramfs.")
            .tempdir()
            .map_err(|error| format!("a temporary directory: {error}"))?;
        let mut root = Self {
            dir,
            libraries: BTreeSet::new(),
        };
        for name in ["usr/bin", "usr/sbin", "usr/lib", "usr/lib64", "etc", "vm"] {
            root.make(name)?;
        }
        for name in ["bin", "sbin", "lib", "lib64"] {
            let link = root.dir.path().join(name);
            symlink(format!("usr/{name}"), &link)
                .map_err(|error| format!("linking {}: {error}", link.display()))?;
        }
        root.write("init", INIT.as_bytes(), 0o755)?;
        let busybox = crate::setup::system_program("busybox");
        root.copy(Path::new(&busybox), Path::new("/bin/busybox"))?;
        // What a host lacks, the tests that need it miss, and say so.
        let programs = PROGRAMS.map(crate::setup::system_program);
        let files = FILES.map(PathBuf::from);
        for file in programs.iter().chain(&files).filter(|file| file.exists()) {
            root.add(file, file)?;
        }
        root.write("etc/nsswitch.conf", b"passwd: files\ngroup: files\n", 0o644)?;
        root.add_modules(kernel)?;
        Ok(root)
    }

    /// Puts a file of the host there, with the libraries that it is linked with.
    pub fn add(&mut self, file: &Path, place: &Path) -> Result<()> {
        self.copy(file, place)?;
        for library in libraries_of(file) {
            if self.libraries.insert(library.clone()) {
                self.copy(&library, &library)?;
            }
        }
        Ok(())
    }

    /// Writes a file.
    pub fn write(&self, name: &str, content: &[u8], mode: u32) -> Result<()> {
        let path = self.dir.path().join(name);
        fs::write(&path, content)
            .and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(mode)))
            .map_err(|error| format!("writing {}: {error}", path.display()))
    }

    /// Packs it into a file.
    pub fn pack(&self, into: &Path) -> Result<()> {
        let script = "find . -print0 | cpio --null --create --quiet --format=newc --owner=0:0 \
                      --file=\"$1\"";
        run_quietly(
            Command::new("sh")
                .args(["-ec", script, "pack"])
                .arg(into)
                .current_dir(self.dir.path())
                .stdin(Stdio::null()),
        )
    }

    fn make(&self, name: &str) -> Result<()> {
        let path = self.dir.path().join(name);
        fs::create_dir_all(&path).map_err(|error| format!("making {}: {error}", path.display()))
    }

    fn copy(&self, file: &Path, place: &Path) -> Result<()> {
        let to = self.inside(place);
        if let Some(parent) = to.parent() {
            fs::create_dir_all(parent)
                .map_err(|error| format!("making {}: {error}", parent.display()))?;
        }
        fs::copy(file, &to)
            .map(drop)
            .map_err(|error| format!("copying {} to {}: {error}", file.display(), to.display()))
    }

    fn inside(&self, place: &Path) -> PathBuf {
        self.dir
            .path()
            .join(place.strip_prefix("/").unwrap_or(place))
    }

    fn add_modules(&self, kernel: &Kernel) -> Result<()> {
        let place = Path::new("lib/modules").join(&kernel.release);
        let modules = kernel.root.join(&place);
        let table = fs::read_to_string(modules.join("modules.dep"))
            .map_err(|error| format!("{}/modules.dep: {error}", modules.display()))?;
        let (mut names, mut files) = (Vec::new(), BTreeSet::new());
        for name in MODULES {
            // A kernel may have it built in, as 6.12 has fuse.
            if let Some(needed) = module_files(&table, name) {
                names.push(name);
                files.extend(needed);
            }
        }
        for file in files {
            self.copy(&modules.join(&file), &place.join(&file))?;
        }
        for table in files_below(&modules, "dep")
            .into_iter()
            .chain(files_below(&modules, "alias"))
            .chain(files_below(&modules, "symbols"))
        {
            if let Some(name) = table.file_name() {
                self.copy(&table, &place.join(name))?;
            }
        }
        self.write("etc/onacc-vm-modules", names.join("\n").as_bytes(), 0o644)
    }
}

/// The files that a module needs, itself included, from modules.dep.
fn module_files(table: &str, name: &str) -> Option<Vec<String>> {
    table.lines().find_map(|line| {
        let (file, needs) = line.split_once(':')?;
        (Path::new(file).file_stem()? == name).then(|| {
            let all = std::iter::once(file).chain(needs.split_whitespace());
            all.map(str::to_owned).collect()
        })
    })
}

/// The libraries that a program is linked with; none for what is no program.
fn libraries_of(file: &Path) -> Vec<PathBuf> {
    let said = Command::new("ldd")
        .arg(file)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output();
    let said = said.map(|output| output.stdout).unwrap_or_default();
    parse_ldd(&String::from_utf8_lossy(&said))
}

/// `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x…)`, `/lib64/ld-linux-x86-64.so.2 (0x…)`
fn parse_ldd(said: &str) -> Vec<PathBuf> {
    let paths = said.lines().filter_map(|line| {
        let place = line.split_once("=>").map_or(line, |(_, place)| place);
        let path = place.split_whitespace().next()?;
        path.starts_with('/').then(|| PathBuf::from(path))
    });
    paths.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_read_from_what_ldd_says() {
        let said = "\tlinux-vdso.so.1 (0x00007ffc)\n\
                    \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f3a)\n\
                    \tlibgone.so => not found\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f3b)\n";
        assert_eq!(
            parse_ldd(said),
            [
                Path::new("/lib/x86_64-linux-gnu/libc.so.6"),
                Path::new("/lib64/ld-linux-x86-64.so.2")
            ]
        );
        assert!(parse_ldd("\tnot a dynamic executable\n").is_empty());
    }

    #[test]
    fn a_module_brings_what_it_needs() {
        let table = "kernel/fs/xfs/xfs.ko: kernel/lib/libcrc32c.ko\n\
                     kernel/drivers/block/loop.ko:\n";
        assert_eq!(
            module_files(table, "xfs").unwrap(),
            ["kernel/fs/xfs/xfs.ko", "kernel/lib/libcrc32c.ko"]
        );
        assert_eq!(
            module_files(table, "loop").unwrap(),
            ["kernel/drivers/block/loop.ko"]
        );
        assert_eq!(module_files(table, "fuse"), None);
    }
}
