//! Filesystems on which verdicts are kept because the settings say so.
//!
//! Owns the words: a filesystem's type, or where it is mounted. Must not: ask the
//! kernel what is mounted. Tested here.

use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

/// Types of filesystems whose verdicts are not kept by themselves, as the table of
/// mounts calls them; of FUSE also those behind a dot.
const TYPES: &[&str] = &[
    "9p", "afs", "bcachefs", "beegfs", "ceph", "cifs", "coda", "ecryptfs", "exfat", "f2fs", "fuse",
    "fuseblk", "gfs2", "gpfs", "hfs", "hfsplus", "jfs", "lustre", "msdos", "nfs", "nfs4", "nilfs2",
    "ntfs", "ntfs3", "ocfs2", "orangefs", "smb3", "udf", "vboxsf", "vfat", "virtiofs", "zfs",
];

/// One filesystem, or those of one type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeepOn {
    /// All of this type.
    Type(String),
    /// The one that is mounted here. Absolute.
    MountPoint(PathBuf),
}

impl KeepOn {
    /// What a word of the settings means. `None`: nothing.
    pub fn parse(word: &str) -> Option<Self> {
        if word.starts_with('/') {
            // Compared by its parts, so that a slash at the end counts for nothing.
            return Some(Self::MountPoint(Path::new(word).components().collect()));
        }
        let subtype = word.strip_prefix("fuse.").is_some_and(|name| {
            let is_name = |byte: u8| byte.is_ascii_graphic() && byte != b'/';
            !name.is_empty() && name.bytes().all(is_name)
        });
        (subtype || TYPES.contains(&word)).then(|| Self::Type(word.to_owned()))
    }

    /// As it is written in the settings.
    pub fn written(&self) -> &[u8] {
        match self {
            Self::Type(kind) => kind.as_bytes(),
            Self::MountPoint(path) => path.as_os_str().as_bytes(),
        }
    }

    /// Whether this speaks of a filesystem of this type that is mounted there.
    pub fn fits(&self, kind: &str, mount_point: &Path) -> bool {
        match self {
            Self::Type(wanted) => wanted == kind,
            Self::MountPoint(wanted) => wanted == mount_point,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_and_mount_points_are_told_apart_and_nothing_else_is_taken() {
        let of_type = |name: &str| Some(KeepOn::Type(name.into()));
        assert_eq!(KeepOn::parse("nfs4"), of_type("nfs4"));
        assert_eq!(KeepOn::parse("fuse"), of_type("fuse"));
        assert_eq!(KeepOn::parse("fuse.sshfs"), of_type("fuse.sshfs"));
        let point = Some(KeepOn::MountPoint("/srv/data".into()));
        assert_eq!(KeepOn::parse("/srv/data"), point);
        assert_eq!(KeepOn::parse("/srv//data/"), point);
        for wrong in [
            "", "NFS4", "fuse.", "fuse.a b", "fuse.a/b", "srv", "ext4", "tmpfs", "overlay", "nfs5",
        ] {
            assert_eq!(KeepOn::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn what_fits() {
        let nfs = KeepOn::parse("nfs4").unwrap();
        assert!(nfs.fits("nfs4", Path::new("/a")) && !nfs.fits("nfs", Path::new("/a")));
        let point = KeepOn::parse("/a/").unwrap();
        assert!(point.fits("fuse.x", Path::new("/a")) && !point.fits("fuse.x", Path::new("/a/b")));
    }
}
