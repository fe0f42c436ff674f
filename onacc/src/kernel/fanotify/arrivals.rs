//! Word of files and directories that come into a filesystem: created, linked,
//! moved in.
//!
//! A group of its own, by file handle (`FAN_REPORT_FID` and its kin, fanotify(7)):
//! permission groups report no names. Must not: know the scope, or open anything.
//! The parsing is pure, tested here, and fuzzed.

use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

use super::event::METADATA_LEN;
use super::marks::{At, MarkError, mark_raw};
use crate::kernel::SyscallError;
use crate::kernel::handle::FileHandle;

/// `FAN_REPORT_TARGET_FID` (include/uapi/linux/fanotify.h, since 5.17): the
/// handle of the file itself, besides that of its directory.
const FAN_REPORT_TARGET_FID: u32 = 0x1000;
/// `FAN_EVENT_INFO_TYPE_FID`: that handle's record.
const INFO_TYPE_FID: u8 = 1;
/// Header of an information record, and the filesystem's id behind it.
const INFO_HEADER: usize = 4;
const FSID: usize = 8;

/// Which filesystem, as `statfs(2)` numbers it.
pub type FilesystemId = [u8; FSID];

/// Something has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// Where.
    pub filesystem: FilesystemId,
    /// What.
    pub handle: FileHandle,
    /// It came with all that is in it: a directory that was moved.
    pub with_content: bool,
}

/// The group. Readable when something has come.
#[derive(Debug)]
pub struct ArrivalWatch(OwnedFd);

impl ArrivalWatch {
    /// Makes the group. Its queue has no limit: nothing is lost.
    ///
    /// # Errors
    /// `EINVAL` before 5.17.
    pub fn new() -> Result<Self, SyscallError> {
        let flags = libc::FAN_CLASS_NOTIF
            | libc::FAN_CLOEXEC
            | libc::FAN_NONBLOCK
            | libc::FAN_UNLIMITED_MARKS
            | libc::FAN_UNLIMITED_QUEUE
            | libc::FAN_REPORT_FID
            | libc::FAN_REPORT_DIR_FID
            | libc::FAN_REPORT_NAME
            | FAN_REPORT_TARGET_FID;
        // SAFETY: fanotify_init takes two integers and touches no memory of ours.
        let fd = unsafe { libc::fanotify_init(flags, 0) };
        if fd < 0 {
            return Err(SyscallError::last("fanotify_init(FAN_REPORT_TARGET_FID)"));
        }
        // SAFETY: the kernel just gave this fd to us alone.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Tells of what comes into the filesystem that `root` (may be `O_PATH`) is
    /// on, by whatever mount. Returns the id that arrivals will carry.
    ///
    /// # Errors
    /// [`MarkError::Refused`]: the filesystem has no file handles, or ids of its
    /// own for its parts (btrfs subvolumes).
    pub fn watch(&self, root: BorrowedFd<'_>) -> Result<FilesystemId, MarkError> {
        let flags = libc::FAN_MARK_ADD | libc::FAN_MARK_FILESYSTEM;
        let mask = libc::FAN_CREATE | libc::FAN_MOVED_TO | libc::FAN_ONDIR;
        match mark_raw(self.0.as_raw_fd(), flags, mask, At::ProcFd(root)) {
            Ok(()) => Ok(crate::kernel::file::filesystem_id(root)?),
            Err(error)
                if matches!(
                    error.errno(),
                    libc::EINVAL | libc::EOPNOTSUPP | libc::EXDEV | libc::ENODEV
                ) =>
            {
                Err(MarkError::Refused)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Takes out what has come, up to a buffer. Empty: nothing more.
    ///
    /// # Errors
    /// A failed `read(2)`.
    pub fn read(&self, buffer: &mut [u8]) -> Result<Vec<Arrival>, SyscallError> {
        loop {
            // SAFETY: the pointer and length are those of a live, writable slice.
            let got =
                unsafe { libc::read(self.0.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) };
            if let Ok(got) = usize::try_from(got) {
                return Ok(parse(&buffer[..got]));
            }
            let error = SyscallError::last("read of a fanotify group");
            match error.errno() {
                libc::EINTR => {}
                libc::EAGAIN => return Ok(Vec::new()),
                _ => return Err(error),
            }
        }
    }
}

impl AsFd for ArrivalWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The arrivals in what the kernel gave. Stops at the first thing that is not as
/// fanotify(7) says.
pub fn parse(mut bytes: &[u8]) -> Vec<Arrival> {
    let mut arrivals = Vec::new();
    while let Some((event, rest)) = split_event(bytes) {
        arrivals.extend(arrival(event));
        bytes = rest;
    }
    arrivals
}

fn split_event(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let len = usize::try_from(word(bytes, 0)?).ok()?;
    if len < METADATA_LEN {
        return None;
    }
    bytes.split_at_checked(len)
}

fn arrival(event: &[u8]) -> Option<Arrival> {
    let metadata_len = usize::from(half(event, 6)?);
    let mask = u64::from_ne_bytes(event.get(8..16)?.try_into().ok()?);
    let mut infos = event.get(metadata_len.max(METADATA_LEN)..)?;
    loop {
        let len = usize::from(half(infos, 2)?);
        if len < INFO_HEADER {
            return None;
        }
        let (info, rest) = infos.split_at_checked(len)?;
        if info[0] == INFO_TYPE_FID {
            let filesystem = info.get(INFO_HEADER..INFO_HEADER + FSID)?.try_into().ok()?;
            let handle = &info[INFO_HEADER + FSID..];
            let handle_len = usize::try_from(word(handle, 0)?).ok()?;
            let kind = word(handle, 4)?.cast_signed();
            let data = handle.get(8..8usize.checked_add(handle_len)?)?;
            let moved_directory = libc::FAN_MOVED_TO | libc::FAN_ONDIR;
            return Some(Arrival {
                filesystem,
                handle: FileHandle::from_parts(kind, data)?,
                with_content: mask & moved_directory == moved_directory,
            });
        }
        infos = rest;
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn info(kind: u8, data: &[u8]) -> Vec<u8> {
        let mut out = vec![kind, 0];
        let len = INFO_HEADER + FSID + 8 + data.len();
        out.extend(u16::try_from(len).unwrap().to_ne_bytes());
        out.extend([7; FSID]);
        out.extend(u32::try_from(data.len()).unwrap().to_ne_bytes());
        out.extend(1i32.to_ne_bytes());
        out.extend(data);
        out
    }

    fn event(mask: u64, infos: &[Vec<u8>]) -> Vec<u8> {
        let infos = infos.concat();
        let mut out = Vec::new();
        let len = u32::try_from(METADATA_LEN + infos.len()).unwrap();
        out.extend(len.to_ne_bytes());
        out.extend([3, 0]);
        out.extend(24u16.to_ne_bytes());
        out.extend(mask.to_ne_bytes());
        out.extend((-1i32).to_ne_bytes());
        out.extend(9i32.to_ne_bytes());
        out.extend(infos);
        out
    }

    #[test]
    fn the_record_of_the_file_itself_is_taken() {
        let bytes = [
            event(
                libc::FAN_CREATE,
                &[info(2, b"dirdir name\0"), info(1, b"child123")],
            ),
            event(
                libc::FAN_MOVED_TO | libc::FAN_ONDIR,
                &[info(2, b"dirdir name\0"), info(1, b"moved---")],
            ),
            event(libc::FAN_MOVED_TO, &[info(2, b"no child\0\0\0\0")]),
        ]
        .concat();
        let got = parse(&bytes);
        let wanted = |data: &[u8], with_content| Arrival {
            filesystem: [7; FSID],
            handle: FileHandle::from_parts(1, data).unwrap(),
            with_content,
        };
        assert_eq!(got, [wanted(b"child123", false), wanted(b"moved---", true)]);
    }

    proptest! {
        #[test]
        fn any_bytes_parse_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = parse(&bytes);
        }

        #[test]
        fn damaged_events_parse_without_panic(at in 0usize..100, value in any::<u8>()) {
            let mut bytes = event(libc::FAN_CREATE, &[info(2, b"directory"), info(1, b"child123")]);
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
            let _ = parse(&bytes);
        }
    }
}
