//! inotify: the fd, its watches, and its bytes as events.
//!
//! Not the reader of `nix`: it takes 4 KiB at a time, allocates for each name
//! and hides the number of a watch, which a table of 100,000 directories needs
//! as a plain number. Owns the fd. Must not: block (the fd is non-blocking), or
//! trust a length in what it reads. The parsers are pure; tested here.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};

use nix::fcntl::{OFlag, openat};
use nix::sys::inotify::{InitFlags, Inotify as NixInotify};
use nix::sys::stat::Mode;

use super::SyscallError;
use super::directory::InDirectory;
use super::handle::FileHandle;

/// Number of a watch. The kernel gives them out in order and does not use one
/// again before two thousand million others.
pub type WatchId = i32;

/// Size of `struct inotify_event` without its name (include/uapi/linux/inotify.h).
const HEAD_LEN: usize = 16;
/// Bytes of one read: two thousand events and more.
const BUFFER_LEN: usize = 64 * 1024;

/// What a watch on a directory tells: what comes into it, what is moved out of
/// it, and its own move. Its end is told by `IN_IGNORED`, always; `IN_DELETE`
/// would come for each file too and say nothing more.
///
/// `IN_MASK_ADD`: without it the kernel empties the mask of a watch that exists
/// already before it fills it again, and an event in between is lost
/// (`inotify_update_existing_watch`; seen on 6.18).
const DIRECTORY_MASK: u32 = libc::IN_ONLYDIR
    | libc::IN_MASK_ADD
    | libc::IN_EXCL_UNLINK
    | libc::IN_CREATE
    | libc::IN_MOVED_TO
    | libc::IN_MOVED_FROM
    | libc::IN_MOVE_SELF;

/// A watch could not be placed.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// The user's watches are used up (`fs.inotify.max_user_watches`).
    #[error("the limit fs.inotify.max_user_watches is reached")]
    Exhausted,
    /// Anything else.
    #[error(transparent)]
    Other(#[from] SyscallError),
}

/// One event, borrowed from the buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InotifyEvent<'a> {
    /// The watch; -1 for an overflow.
    pub watch: WatchId,
    /// `IN_*` bits.
    pub mask: u32,
    /// Name in the watched directory, any bytes; empty if the event is about
    /// the directory itself.
    pub name: &'a [u8],
}

impl InotifyEvent<'_> {
    /// The queue was full: events were lost.
    pub fn is_overflow(&self) -> bool {
        self.mask & libc::IN_Q_OVERFLOW != 0
    }

    /// The watch is gone: its directory or filesystem is, or it was removed.
    pub fn is_end_of_watch(&self) -> bool {
        self.mask & libc::IN_IGNORED != 0
    }

    /// A name came into the directory.
    pub fn is_arrival(&self) -> bool {
        self.mask & (libc::IN_CREATE | libc::IN_MOVED_TO) != 0
    }

    /// A name was moved out of the directory.
    pub fn is_departure(&self) -> bool {
        self.mask & libc::IN_MOVED_FROM != 0
    }

    /// The name that came or went is a directory's.
    pub fn is_directory(&self) -> bool {
        self.mask & libc::IN_ISDIR != 0
    }

    /// The watched directory itself was moved.
    pub fn is_move(&self) -> bool {
        self.mask & libc::IN_MOVE_SELF != 0
    }
}

/// Room for one read.
#[derive(Debug)]
pub struct InotifyBuffer(Vec<u8>);

impl InotifyBuffer {
    /// An empty buffer.
    pub fn new() -> Self {
        Self(vec![0; BUFFER_LEN])
    }

    /// No room at all: stands in while the real one is in use.
    pub fn none() -> Self {
        Self(Vec::new())
    }
}

impl Default for InotifyBuffer {
    fn default() -> Self {
        Self::new()
    }
}

/// An inotify fd. Its watches go with it.
#[derive(Debug)]
pub struct Inotify(OwnedFd);

impl Inotify {
    /// A new fd without watches, non-blocking.
    ///
    /// # Errors
    /// `EMFILE`: the user has no inotify instance left (`fs.inotify.max_user_instances`).
    pub fn new() -> Result<Self, SyscallError> {
        NixInotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)
            .map(|fd| Self(fd.into()))
            .map_err(|errno| {
                SyscallError::from_errno(
                    "inotify_init (see sysctl fs.inotify.max_user_instances)",
                    errno,
                )
            })
    }

    /// Watches a directory (an fd that may be `O_PATH`). One that is watched
    /// already keeps its number.
    ///
    /// # Errors
    /// [`WatchError::Exhausted`] if the user has no watch left.
    pub fn watch(&self, directory: BorrowedFd<'_>) -> Result<WatchId, WatchError> {
        let mut name = [0u8; 32];
        self.add(super::procfs::fd_path(directory, &mut name), DIRECTORY_MASK)
    }

    /// Watches the directory of this name in the directory that the thread is
    /// in. A symlink is refused, not followed.
    ///
    /// # Errors
    /// As [`Self::watch`].
    pub fn watch_in(&self, _inside: &InDirectory<'_>, name: &CStr) -> Result<WatchId, WatchError> {
        self.add(name, DIRECTORY_MASK | libc::IN_DONT_FOLLOW)
    }

    /// Watches a directory for its own move alone, or also for what goes from it
    /// and what is moved into it.
    ///
    /// # Errors
    /// As [`Self::watch`].
    pub fn watch_moves(
        &self,
        directory: BorrowedFd<'_>,
        entries: bool,
    ) -> Result<WatchId, WatchError> {
        let mut name = [0u8; 32];
        let entries = if entries {
            libc::IN_DELETE | libc::IN_MOVED_FROM | libc::IN_MOVED_TO
        } else {
            0
        };
        self.add(
            super::procfs::fd_path(directory, &mut name),
            libc::IN_ONLYDIR | libc::IN_MASK_ADD | libc::IN_MOVE_SELF | entries,
        )
    }

    fn add(&self, path: &CStr, mask: u32) -> Result<WatchId, WatchError> {
        // SAFETY: the path is NUL-terminated and lives until after the call.
        let watch = unsafe { libc::inotify_add_watch(self.0.as_raw_fd(), path.as_ptr(), mask) };
        if watch >= 0 {
            return Ok(watch);
        }
        let error = SyscallError::last("inotify_add_watch");
        match error.errno() {
            libc::ENOSPC => Err(WatchError::Exhausted),
            _ => Err(error.into()),
        }
    }

    /// Removes a watch; one that is gone already is no error.
    pub fn unwatch(&self, watch: WatchId) {
        // SAFETY: the call takes two integers.
        let _gone_is_fine = unsafe { libc::inotify_rm_watch(self.0.as_raw_fd(), watch) };
    }

    /// Reads what there is, at most one buffer full; an empty list if nothing waits.
    ///
    /// # Errors
    /// A failed `read(2)`.
    pub fn read<'a>(
        &self,
        buffer: &'a mut InotifyBuffer,
    ) -> Result<InotifyEvents<'a>, SyscallError> {
        let bytes = &mut buffer.0;
        loop {
            match nix::unistd::read(&self.0, bytes) {
                Ok(got) => {
                    return Ok(InotifyEvents {
                        rest: &bytes[..got],
                    });
                }
                Err(nix::errno::Errno::EINTR) => {}
                Err(nix::errno::Errno::EAGAIN) => return Ok(InotifyEvents { rest: &[] }),
                Err(errno) => {
                    return Err(SyscallError::from_errno("read of the inotify fd", errno));
                }
            }
        }
    }

    /// What the kernel keeps of each watch, from `/proc/self/fdinfo`: the way
    /// back to a directory whose path is not known any more. Costs a walk over
    /// all watches.
    ///
    /// # Errors
    /// `/proc` cannot be read.
    pub fn watched_inodes(&self) -> Result<Vec<WatchedInode>, SyscallError> {
        let path = format!("/proc/self/fdinfo/{}", self.0.as_raw_fd());
        let bytes = std::fs::read(path).map_err(|source| SyscallError {
            call: "read of the inotify fdinfo",
            source,
        })?;
        Ok(parse_fdinfo(&bytes))
    }
}

impl AsFd for Inotify {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A watch and the inode that it is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WatchedInode {
    /// The watch.
    pub watch: WatchId,
    /// The filesystem, as the mount table tells it.
    pub dev: u32,
    /// The inode.
    pub handle: FileHandle,
}

/// The watches in a `/proc/<pid>/fdinfo/<fd>`; lines of another form are left out.
pub fn parse_fdinfo(bytes: &[u8]) -> Vec<WatchedInode> {
    let lines = bytes.split(|byte| *byte == b'\n');
    lines.filter_map(parse_fdinfo_line).collect()
}

/// One line of `/proc/self/fdinfo/N` (`proc_pid_fdinfo(5)`); `None` if it is of
/// another form, or the filesystem has no file handles.
fn parse_fdinfo_line(line: &[u8]) -> Option<WatchedInode> {
    let text = std::str::from_utf8(line).ok()?;
    let mut fields = text.strip_prefix("inotify ")?.split(' ');
    let mut field = |name: &str| fields.find_map(|field| field.strip_prefix(name));
    let watch = field("wd:")?.parse_hex()?;
    let dev = field("sdev:")?.parse_hex()?;
    let kind = field("fhandle-type:")?.parse_hex()?;
    let bytes = hex_bytes(field("f_handle:")?)?;
    Some(WatchedInode {
        watch: i32::try_from(watch).ok()?,
        dev,
        handle: FileHandle::from_parts(i32::try_from(kind).ok()?, &bytes)?,
    })
}

trait ParseHex {
    fn parse_hex(&self) -> Option<u32>;
}

impl ParseHex for &str {
    fn parse_hex(&self) -> Option<u32> {
        u32::from_str_radix(self, 16).ok()
    }
}

fn hex_bytes(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    if !digits.len().is_multiple_of(2) {
        return None;
    }
    digits
        .chunks_exact(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
        .collect()
}

/// Iterates over the events of one read. Bytes that are no event end it.
#[derive(Debug)]
pub struct InotifyEvents<'a> {
    rest: &'a [u8],
}

impl<'a> InotifyEvents<'a> {
    /// Events of the bytes that one `read(2)` returned.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }
}

impl<'a> Iterator for InotifyEvents<'a> {
    type Item = InotifyEvent<'a>;

    fn next(&mut self) -> Option<InotifyEvent<'a>> {
        let (head, rest) = self.rest.split_first_chunk::<HEAD_LEN>()?;
        let word = |at: usize| [head[at], head[at + 1], head[at + 2], head[at + 3]];
        let len = usize::try_from(u32::from_ne_bytes(word(12))).ok()?;
        let padded = rest.get(..len)?;
        self.rest = &rest[len..];
        // The kernel pads names with NUL.
        let name = padded.split(|byte| *byte == 0).next().unwrap_or_default();
        Some(InotifyEvent {
            watch: i32::from_ne_bytes(word(0)),
            mask: u32::from_ne_bytes(word(4)),
            name,
        })
    }
}

/// Opens `.` of a directory that is held by an `O_PATH` fd, for listing. Does
/// not follow what is mounted on it, and leaves its atime alone where it may.
///
/// # Errors
/// A failed `open(2)`.
pub fn open_for_listing(directory: BorrowedFd<'_>) -> Result<OwnedFd, nix::errno::Errno> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    match openat(directory, c".", flags | OFlag::O_NOATIME, Mode::empty()) {
        Err(nix::errno::Errno::EPERM) => openat(directory, c".", flags, Mode::empty()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bytes_of(watch: i32, mask: u32, name: &[u8]) -> Vec<u8> {
        let padded = if name.is_empty() {
            0
        } else {
            (name.len() + 1).next_multiple_of(HEAD_LEN)
        };
        let mut bytes = Vec::new();
        bytes.extend(watch.to_ne_bytes());
        bytes.extend(mask.to_ne_bytes());
        bytes.extend(0u32.to_ne_bytes());
        bytes.extend(u32::try_from(padded).unwrap().to_ne_bytes());
        bytes.extend(name);
        bytes.resize(HEAD_LEN + padded, 0);
        bytes
    }

    proptest! {
        #[test]
        fn whole_events_come_out_as_they_went_in(
            list in proptest::collection::vec(
                (any::<i32>(), any::<u32>(), proptest::collection::vec(1u8..=255, 0..40)), 0..30)
        ) {
            let mut bytes = Vec::new();
            for (watch, mask, name) in &list {
                bytes.extend(bytes_of(*watch, *mask, name));
            }
            let got: Vec<_> = InotifyEvents::new(&bytes)
                .map(|event| (event.watch, event.mask, event.name.to_vec()))
                .collect();
            prop_assert_eq!(got, list);
        }

        #[test]
        fn any_bytes_end_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let count = InotifyEvents::new(&bytes).count();
            prop_assert!(count <= bytes.len() / HEAD_LEN);
            let _ = parse_fdinfo_line(&bytes);
        }
    }

    #[test]
    fn the_kernel_tells_of_new_directories_with_any_bytes_in_their_names() {
        use std::os::unix::ffi::OsStrExt as _;
        let dir = tempfile::tempdir().unwrap();
        let fd = std::fs::File::open(dir.path()).unwrap();
        let inotify = Inotify::new().unwrap();
        let watch = inotify.watch(fd.as_fd()).unwrap();
        assert_eq!(inotify.watch(fd.as_fd()).unwrap(), watch);
        let name = std::ffi::OsStr::from_bytes(b"n\xff\n");
        std::fs::create_dir(dir.path().join(name)).unwrap();
        let mut buffer = InotifyBuffer::new();
        let events: Vec<_> = inotify.read(&mut buffer).unwrap().collect();
        assert_eq!(events.len(), 1);
        assert!(events[0].is_arrival() && events[0].is_directory());
        assert_eq!((events[0].watch, events[0].name), (watch, name.as_bytes()));
        assert_eq!(inotify.read(&mut buffer).unwrap().count(), 0);
        inotify.unwatch(watch);
        let events: Vec<_> = inotify.read(&mut buffer).unwrap().collect();
        assert!(events[0].is_end_of_watch());
    }

    #[test]
    fn fdinfo_leads_back_to_the_inode() {
        let dir = tempfile::tempdir().unwrap();
        let fd = std::fs::File::open(dir.path()).unwrap();
        let inotify = Inotify::new().unwrap();
        let watch = inotify.watch(fd.as_fd()).unwrap();
        let Ok(handle) = FileHandle::of(fd.as_fd()) else {
            println!("SKIPPED: no file handles on {}", dir.path().display());
            return;
        };
        let found = inotify.watched_inodes().unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].watch, found[0].handle), (watch, handle));
    }
}
