//! Scratch filesystems: what a test watches is always one of its own.
//!
//! Owns: images, loop mounts, private mount namespaces, and their end. Must
//! not: touch a filesystem that it has not made. Tested below.

use std::{
    cell::Cell,
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
};

use crate::Result;

thread_local! {
    static IS_PRIVATE: Cell<bool> = const { Cell::new(false) };
}

/// Gives the calling thread a mount namespace of its own, once; threads and
/// children that it starts later are in it too. Mounts vanish with the last.
pub fn enter_private_mounts() -> Result<()> {
    if IS_PRIVATE.get() {
        return Ok(());
    }
    unshare(CloneFlags::CLONE_NEWNS)
        .map_err(|error| format!("no mount namespace of our own (root is needed): {error}"))?;
    mount(
        None::<&str>,
        "/",
        None::<&str>,
        MsFlags::MS_REC | MsFlags::MS_PRIVATE,
        None::<&str>,
    )
    .map_err(|error| format!("making mounts private: {error}"))?;
    IS_PRIVATE.set(true);
    Ok(())
}

/// A filesystem of a test's own, unmounted and removed on drop.
#[derive(Debug)]
pub struct ScratchFs {
    dir: tempfile::TempDir,
    mount_point: PathBuf,
}

impl ScratchFs {
    /// An ext4 filesystem of this many MiB, in a private mount namespace.
    pub fn ext4(mib: u64) -> Result<Self> {
        enter_private_mounts()?;
        Self::loop_mounted("ext4", mib, &["-q", "-F", "-m", "0"])
    }

    /// An xfs filesystem of this many MiB (300 or more), likewise.
    pub fn xfs(mib: u64) -> Result<Self> {
        enter_private_mounts()?;
        Self::loop_mounted("xfs", mib, &["-q", "-f"])
    }

    /// A btrfs filesystem of this many MiB (110 or more), likewise.
    pub fn btrfs(mib: u64) -> Result<Self> {
        enter_private_mounts()?;
        Self::loop_mounted("btrfs", mib, &["-q", "-f"])
    }

    /// A tmpfs of this many MiB, likewise.
    pub fn tmpfs(mib: u64) -> Result<Self> {
        enter_private_mounts()?;
        let (dir, mount_point) = directories()?;
        let size = format!("size={mib}m");
        mount(
            Some("onacc-scratch"),
            &mount_point,
            Some("tmpfs"),
            MsFlags::empty(),
            Some(size.as_str()),
        )
        .map_err(|error| format!("mounting a tmpfs: {error}"))?;
        Self::mounted(dir, mount_point)
    }

    /// An ext4 filesystem of 64 MiB whose stamps count whole seconds (inodes of 128
    /// bytes), in a private mount namespace.
    pub fn ext4_in_seconds() -> Result<Self> {
        enter_private_mounts()?;
        Self::loop_mounted("ext4", 64, &["-q", "-F", "-m", "0", "-I", "128"])
    }

    /// An ext4 filesystem in the namespace of the caller, where other terminals
    /// see it: for the tour. It outlives its maker if that is killed.
    pub fn host(mib: u64) -> Result<Self> {
        Self::loop_mounted("ext4", mib, &["-q", "-F", "-m", "0"])
    }

    /// The directory that the filesystem is mounted on.
    pub fn path(&self) -> &Path {
        &self.mount_point
    }

    /// A path in the filesystem.
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.mount_point.join(name)
    }

    /// Writes a file and returns its path.
    pub fn write(&self, name: impl AsRef<Path>, content: &[u8]) -> PathBuf {
        let path = self.join(name);
        fs::write(&path, content).unwrap_or_else(|e| panic!("writing {}: {e}", path.display()));
        path
    }

    /// Makes a directory, with its parents, and returns its path.
    pub fn mkdir(&self, name: impl AsRef<Path>) -> PathBuf {
        let path = self.join(name);
        fs::create_dir_all(&path).unwrap_or_else(|e| panic!("making {}: {e}", path.display()));
        path
    }

    fn loop_mounted(kind: &str, mib: u64, options: &[&str]) -> Result<Self> {
        let (dir, mount_point) = directories()?;
        let image = dir.path().join("image");
        File::create(&image)
            .and_then(|file| file.set_len(mib << 20))
            .map_err(|error| format!("making {}: {error}", image.display()))?;
        let mkfs = format!("mkfs.{kind}");
        run(Command::new(&mkfs).args(options).arg(&image))?;
        run(Command::new("mount")
            .args(["-t", kind, "-o", "loop"])
            .arg(&image)
            .arg(&mount_point))?;
        Self::mounted(dir, mount_point)
    }

    fn mounted(dir: tempfile::TempDir, mount_point: PathBuf) -> Result<Self> {
        let scratch = Self { dir, mount_point };
        open_to_all(&scratch.mount_point)?;
        Ok(scratch)
    }
}

impl Drop for ScratchFs {
    fn drop(&mut self) {
        if umount2(&self.mount_point, MntFlags::empty()).is_err()
            && let Err(error) = umount2(&self.mount_point, MntFlags::MNT_DETACH)
        {
            // Removing the directory would then remove what is mounted on it.
            self.dir.disable_cleanup(true);
            eprintln!("cannot unmount {}: {error}", self.mount_point.display());
        }
    }
}

/// A temporary directory that every user may enter, and a mount point in it.
fn directories() -> Result<(tempfile::TempDir, PathBuf)> {
    let dir = tempfile::Builder::new()
        .prefix("onacc-scratch.")
        .tempdir()
        .map_err(|error| format!("making a temporary directory: {error}"))?;
    open_to_all(dir.path())?;
    let mount_point = dir.path().join("mnt");
    fs::create_dir(&mount_point)
        .map_err(|error| format!("making {}: {error}", mount_point.display()))?;
    Ok((dir, mount_point))
}

fn open_to_all(dir: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755))
        .map_err(|error| format!("opening {} to all users: {error}", dir.display()))
}

/// Runs a tool, also one in `sbin`; the error names it and quotes it.
fn run(command: &mut Command) -> Result<()> {
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/sbin:/sbin"));
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command
        .env("LC_ALL", "C")
        .output()
        .map_err(|error| format!("{name} does not start: {error}"))?;
    if output.status.success() {
        Ok(())
    } else {
        let said = String::from_utf8_lossy(&output.stderr);
        Err(format!("{name} failed: {}", said.trim()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{or_skip, require_root};

    #[test]
    fn scratch_filesystems_hold_files_and_leave_nothing_behind() {
        require_root!();
        for make in [ScratchFs::ext4, ScratchFs::tmpfs] {
            let scratch = or_skip!(make(16));
            scratch.mkdir("a/b");
            let file = scratch.write("a/b/c", b"x");
            assert_eq!(fs::read(&file).unwrap(), b"x");
            let seen = fs::read_to_string("/proc/thread-self/mounts").unwrap();
            let place = scratch.path().to_str().unwrap().to_owned();
            assert!(seen.contains(&place));
            let dir = scratch.dir.path().to_path_buf();
            drop(scratch);
            assert!(!dir.exists());
            let seen = fs::read_to_string("/proc/thread-self/mounts").unwrap();
            assert!(!seen.contains(&place));
        }
    }

    #[test]
    fn mounts_are_not_seen_by_other_threads() {
        require_root!();
        let scratch = or_skip!(ScratchFs::tmpfs(1));
        let place = scratch.path().to_str().unwrap().to_owned();
        // The main thread of the test harness is in the host's namespace.
        let elsewhere = fs::read_to_string("/proc/self/mounts").unwrap();
        assert!(!elsewhere.contains(&place));
    }

    #[test]
    fn a_missing_mkfs_is_a_reason() {
        require_root!();
        or_skip!(enter_private_mounts());
        let reason = ScratchFs::loop_mounted("nosuchfs", 1, &[]).unwrap_err();
        assert!(reason.contains("mkfs.nosuchfs"), "{reason}");
    }
}
