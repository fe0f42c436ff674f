//! The file beneath a file of an overlay: the inode whose bytes are read.
//!
//! The kernel encodes it into the handle of the overlay's file (`AT_HANDLE_FID`,
//! since 6.6; layout: `struct ovl_fh`, fs/overlayfs/overlayfs.h, which overlayfs
//! also keeps on disk). Must not: be believed where the stamps of the two
//! differ; a file that was copied up is encoded as what it was before. The
//! parser is pure; tested here and by `tests/`.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use super::file::{self, FileStat, FilesystemKind};
use super::handle::FileHandle;

/// `OVL_FILEID_V1`.
const KIND: i32 = 0xf8;
/// `OVL_FH_MAGIC`.
const MAGIC: u8 = 0xfb;
/// Bytes before `struct ovl_fb`, and of it before the inner handle: version,
/// magic, length, flags, type, uuid.
const PADDING: usize = 3;
const HEAD: usize = 21;

/// The file beneath.
#[derive(Debug)]
pub struct Beneath {
    /// As `O_PATH`.
    pub file: OwnedFd,
    /// Its identity and stamps.
    pub stat: FileStat,
}

/// Finds the file beneath an open file of an overlay, which looks like `shown`.
/// `roots`: directories on the filesystems of its layers. `None` where it is not
/// certain, or where its stamps do not tell of every store.
pub fn beneath(
    file: BorrowedFd<'_>,
    shown: &FileStat,
    roots: impl IntoIterator<Item = OwnedFd>,
) -> Option<Beneath> {
    let handle = inner_handle(file)?;
    roots.into_iter().find_map(|root| {
        let file = handle.open(root.as_fd()).ok()?;
        let stat = file::stat(file.as_fd()).ok()?;
        let same = stat.regular
            && stat.size == shown.size
            && stat.modified == shown.modified
            && stat.changed == shown.changed;
        let tells = || file::filesystem_kind(&file).is_ok_and(FilesystemKind::stamps_tell);
        (same && tells() && has_its_own_bytes(&file)).then_some(Beneath { file, stat })
    })
}

fn inner_handle(file: BorrowedFd<'_>) -> Option<FileHandle> {
    let handle = FileHandle::of_identity(file).ok()?;
    match handle.parts()? {
        (KIND, bytes) => parse(bytes),
        _ => None,
    }
}

/// Takes the inner handle out of the bytes of an overlay's.
pub fn parse(bytes: &[u8]) -> Option<FileHandle> {
    let inner = bytes.get(PADDING..)?;
    let [0, MAGIC, length, _flags, kind, ..] = *inner else {
        return None;
    };
    FileHandle::from_parts(
        i32::from(kind),
        inner.get(..usize::from(length))?.get(HEAD..)?,
    )
}

/// Whether the inode holds the bytes, and not its metadata alone (`metacopy`).
fn has_its_own_bytes(file: &OwnedFd) -> bool {
    let mut name = [0u8; 32];
    let link = super::procfs::fd_path(file.as_fd(), &mut name);
    [c"trusted.overlay.metacopy", c"user.overlay.metacopy"]
        .into_iter()
        .all(|attribute| {
            // SAFETY: both names are NUL-terminated; with a length of 0 nothing
            // is written.
            let length = unsafe {
                libc::getxattr(link.as_ptr(), attribute.as_ptr(), std::ptr::null_mut(), 0)
            };
            let error = std::io::Error::last_os_error().raw_os_error();
            length < 0 && matches!(error, Some(libc::ENODATA | libc::EOPNOTSUPP))
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// As 6.18 gave it for a file on ext4.
    const SEEN: [u8; 32] = [
        0, 0, 0, 0, 0xfb, 0x1d, 0, 1, 0x39, 0xe8, 0x5c, 1, 0xe5, 0xbd, 0x42, 0xa7, 0xbe, 0xa0,
        0xa8, 0x94, 0xbd, 0xa5, 0x34, 0xac, 0x0d, 0, 0, 0, 0xed, 0x5a, 0x0e, 0x3a,
    ];

    #[test]
    fn the_inner_handle_is_found() {
        let inner = FileHandle::from_parts(1, &SEEN[24..]).unwrap();
        assert_eq!(parse(&SEEN), Some(inner));
        let mut other = SEEN;
        other[4] = 0xfc;
        assert_eq!(parse(&other), None);
        assert_eq!(parse(&SEEN[..20]), None);
    }

    proptest! {
        #[test]
        fn any_bytes_parse_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..130)) {
            let _ = parse(&bytes);
        }
    }

    #[test]
    fn a_file_that_is_on_no_overlay_has_none_beneath() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let stat = file::stat(file.as_file().as_fd()).unwrap();
        let root = std::fs::File::open(file.path().parent().unwrap()).unwrap();
        assert!(beneath(file.as_file().as_fd(), &stat, [root.into()]).is_none());
    }
}
