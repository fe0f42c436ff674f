//! Opening directories by name without following a link, at any depth.
//!
//! All fds are `O_PATH`: nothing is mounted, waited for or reported by such an
//! open, whatever the name leads to. Must not: follow a symlink anywhere on the
//! way. Tested here.

use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat2};

/// Longest path that one call takes, without its NUL.
const LONGEST: usize = 4095;

fn open_part(from: impl AsFd, path: &[u8]) -> Result<OwnedFd, Errno> {
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_NO_SYMLINKS);
    loop {
        match openat2(&from, path, how) {
            Err(Errno::EINTR) => {}
            result => return result,
        }
    }
}

/// Opens what has this name in a directory.
///
/// # Errors
/// A failed `openat2(2)`.
pub fn open_in(directory: &OwnedFd, name: &[u8]) -> Result<OwnedFd, Errno> {
    open_part(directory, name)
}

/// Opens what is at an absolute path of any length.
///
/// # Errors
/// A failed `openat2(2)`; `ELOOP` if a symlink is on the way.
pub fn open_at(path: &[u8]) -> Result<OwnedFd, Errno> {
    let (mut first, mut rest) = split(path);
    let mut fd = open_part(AT_FDCWD, first)?;
    while !rest.is_empty() {
        (first, rest) = split(rest);
        fd = open_part(&fd, first)?;
    }
    Ok(fd)
}

/// As much of the path as one call takes, up to a slash, and the rest.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    if path.len() <= LONGEST {
        return (path, &[]);
    }
    // A component has at most 255 bytes, so there is a slash.
    let slash = path[..=LONGEST].iter().rposition(|byte| *byte == b'/');
    let at = slash.filter(|at| *at > 0).unwrap_or(LONGEST);
    (
        &path[..at],
        path[at..].strip_prefix(b"/").unwrap_or(&path[at..]),
    )
}

/// Whether an open failed because there is no such directory (any more).
pub fn is_gone(errno: Errno) -> bool {
    matches!(errno, Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::file::stat;
    use std::os::unix::ffi::OsStrExt as _;
    use std::os::unix::fs::MetadataExt as _;

    #[test]
    fn a_path_of_many_times_path_max_is_opened() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().canonicalize().unwrap();
        let name = "d".repeat(200);
        let mut path = base.as_os_str().as_bytes().to_vec();
        let mut at = open_at(&path).unwrap();
        for _ in 0..100 {
            nix::sys::stat::mkdirat(&at, name.as_str(), nix::sys::stat::Mode::S_IRWXU).unwrap();
            at = open_in(&at, name.as_bytes()).unwrap();
            path.push(b'/');
            path.extend(name.bytes());
        }
        let opened = open_at(&path).unwrap();
        assert_eq!(
            stat(opened.as_fd()).unwrap().key,
            stat(at.as_fd()).unwrap().key
        );
        path.push(b'x');
        assert_eq!(open_at(&path).unwrap_err(), Errno::ENOENT);
        // Depth first, as the standard library would run out of path.
        let status = std::process::Command::new("rm")
            .arg("-rf")
            .arg(base.join(&name))
            .status();
        assert!(status.unwrap().success());
    }

    #[test]
    fn links_are_never_followed() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().canonicalize().unwrap();
        std::fs::create_dir_all(base.join("real/sub")).unwrap();
        std::os::unix::fs::symlink(base.join("real"), base.join("link")).unwrap();
        let link = open_at(base.join("link").as_os_str().as_bytes()).unwrap();
        let itself = std::fs::symlink_metadata(base.join("link")).unwrap();
        assert_eq!(stat(link.as_fd()).unwrap().key.ino, itself.ino());
        let through = open_at(base.join("link/sub").as_os_str().as_bytes());
        assert!(is_gone(through.unwrap_err()));
    }

    #[test]
    fn parts_put_together_are_the_path() {
        for length in [1usize, 40, 4094, 4095, 4096, 4097, 12_000] {
            let path: Vec<u8> = b"/abcdefg".iter().copied().cycle().take(length).collect();
            let mut parts = Vec::new();
            let mut rest: &[u8] = &path;
            while !rest.is_empty() {
                let (first, after) = split(rest);
                assert!(first.len() <= LONGEST);
                parts.push(first);
                rest = after;
            }
            assert_eq!(parts.join(&b'/'), path);
        }
    }
}
