//! A FUSE filesystem whose server answers when the test lets it: reads that hang,
//! closes that hang.
//!
//! Owns: the mount, its files (names known from the start, all in one directory;
//! writing changes their bytes and never their times, as with a server that keeps no
//! times), and the requests that are held. Must not: outlive the test: on drop all is let go
//! and the mount goes. Tested below.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use fuser::{
    BackgroundSession, BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem,
    FopenFlags, Generation, INodeNo, LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData,
    ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use nix::mount::{MntFlags, umount2};

use crate::{Result, clamd::wait_until, scratch::enter_private_mounts};

const TTL: Duration = Duration::from_mins(10);

#[derive(Default)]
struct State {
    files: Vec<Served>,
    holds_reads: bool,
    holds_closes: bool,
    reads: Vec<(ReplyData, Vec<u8>)>,
    closes: Vec<ReplyEmpty>,
}

struct Served {
    name: String,
    bytes: Vec<u8>,
    changed: SystemTime,
}

impl State {
    /// The file of an inode; 1 is the directory.
    fn file(&mut self, inode: INodeNo) -> Option<&mut Served> {
        let number = usize::try_from(u64::from(inode)).ok()?.checked_sub(2)?;
        self.files.get_mut(number)
    }

    fn let_go(&mut self) {
        (self.holds_reads, self.holds_closes) = (false, false);
        for (reply, bytes) in self.reads.drain(..) {
            reply.data(&bytes);
        }
        for reply in self.closes.drain(..) {
            reply.ok();
        }
    }
}

#[derive(Clone, Default)]
struct Held(Arc<Mutex<State>>);

impl Held {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Server {
    ttl: Duration,
    held: Held,
}

impl Server {
    fn position_of(&self, name: &OsStr) -> Option<usize> {
        let state = self.held.lock();
        state.files.iter().position(|known| name == &*known.name)
    }

    fn attributes(&self, inode: INodeNo) -> Option<FileAttr> {
        let mut state = self.held.lock();
        let file = state.file(inode);
        if file.is_none() && inode != INodeNo::ROOT {
            return None;
        }
        let directory = file.is_none();
        Some(FileAttr {
            ino: inode,
            size: file.as_ref().map_or(0, |file| file.bytes.len() as u64),
            blocks: 1,
            atime: UNIX_EPOCH,
            mtime: file.as_ref().map_or(UNIX_EPOCH, |file| file.changed),
            ctime: file.as_ref().map_or(UNIX_EPOCH, |file| file.changed),
            crtime: UNIX_EPOCH,
            kind: if directory {
                FileType::Directory
            } else {
                FileType::RegularFile
            },
            perm: if directory { 0o755 } else { 0o644 },
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        })
    }
}

impl Filesystem for Server {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let at = self.position_of(name);
        let found = at.filter(|_| parent == INodeNo::ROOT);
        match found.and_then(|at| self.attributes(INodeNo(at as u64 + 2))) {
            Some(attributes) => reply.entry(&self.ttl, &attributes, Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.attributes(inode) {
            Some(attributes) => reply.attr(&self.ttl, &attributes),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn setattr(
        &self,
        _: &Request,
        inode: INodeNo,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        if let Some(size) = size {
            let mut state = self.held.lock();
            if let Some(file) = state.file(inode) {
                file.bytes.resize(usize::try_from(size).unwrap_or(0), 0);
            }
        }
        match self.attributes(inode) {
            Some(attributes) => reply.attr(&self.ttl, &attributes),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn write(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let mut state = self.held.lock();
        let (Some(file), Ok(offset)) = (state.file(inode), usize::try_from(offset)) else {
            return reply.error(Errno::ENOENT);
        };
        let end = offset + data.len();
        let length = file.bytes.len().max(end);
        file.bytes.resize(length, 0);
        file.bytes[offset..end].copy_from_slice(data);
        reply.written(u32::try_from(data.len()).unwrap_or(0));
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        // Past the page cache: there a further open waits for the pages that a
        // hanging read has locked.
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn read(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let mut state = self.held.lock();
        let Some(bytes) = state.file(inode).map(|file| &file.bytes) else {
            return reply.error(Errno::ENOENT);
        };
        let from = usize::try_from(offset)
            .unwrap_or(usize::MAX)
            .min(bytes.len());
        let to = from.saturating_add(size as usize).min(bytes.len());
        let piece = bytes[from..to].to_vec();
        if state.holds_reads {
            state.reads.push((reply, piece));
        } else {
            drop(state);
            reply.data(&piece);
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        let mut state = self.held.lock();
        if state.holds_closes {
            state.closes.push(reply);
        } else {
            drop(state);
            reply.ok();
        }
    }
}

/// Lets go of all that is held, on drop. Declared after whatever may hang.
#[must_use]
pub struct LetGo(Held);

impl Drop for LetGo {
    fn drop(&mut self) {
        self.0.lock().let_go();
    }
}

/// The filesystem.
pub struct HangingFs {
    mount_point: tempfile::TempDir,
    held: Held,
    _session: BackgroundSession,
}

impl HangingFs {
    /// Mounts one with these files, in a private mount namespace.
    pub fn mount(files: Vec<(String, Vec<u8>)>) -> Result<Self> {
        Self::mount_with(files, TTL)
    }

    /// As [`Self::mount`]; what the kernel was told of a file holds for so long.
    pub fn mount_with(files: Vec<(String, Vec<u8>)>, ttl: Duration) -> Result<Self> {
        if !Path::new("/dev/fuse").exists() {
            return Err("this kernel has no FUSE (/dev/fuse)".to_owned());
        }
        enter_private_mounts()?;
        let mount_point = tempfile::tempdir().map_err(|error| format!("a directory: {error}"))?;
        let held = Held::default();
        let to_file = |(name, bytes)| Served {
            name,
            bytes,
            changed: UNIX_EPOCH,
        };
        held.lock().files = files.into_iter().map(to_file).collect();
        let server = Server {
            ttl,
            held: held.clone(),
        };
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("onacc-hanging".to_owned())];
        let session = fuser::spawn_mount(server, mount_point.path(), &config)
            .map_err(|error| format!("mounting FUSE: {error}"))?;
        Ok(Self {
            mount_point,
            held,
            _session: session,
        })
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        self.mount_point.path()
    }

    /// A path in it.
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path().join(name)
    }

    /// The server changes a file by itself; its times say so.
    pub fn change(&self, name: &str, bytes: &[u8]) {
        let mut state = self.held.lock();
        let file = state.files.iter_mut().find(|file| file.name == name);
        let file = file.expect("a file of this filesystem");
        file.bytes = bytes.to_vec();
        file.changed += Duration::from_secs(1);
    }

    /// From now on no read of what the kernel has not cached is answered.
    pub fn hold_reads(&self) -> LetGo {
        self.held.lock().holds_reads = true;
        LetGo(self.held.clone())
    }

    /// From now on no `close(2)` is answered.
    pub fn hold_closes(&self) -> LetGo {
        self.held.lock().holds_closes = true;
        LetGo(self.held.clone())
    }

    /// Answers all that is held, and holds nothing any more.
    pub fn let_go(&self) {
        self.held.lock().let_go();
    }

    /// Reads that hang.
    pub fn hanging_reads(&self) -> usize {
        self.held.lock().reads.len()
    }

    /// Closes that hang.
    pub fn hanging_closes(&self) -> usize {
        self.held.lock().closes.len()
    }

    /// Waits until so many reads hang.
    pub fn wait_for_reads(&self, count: usize, limit: Duration) -> bool {
        wait_until(limit, || self.hanging_reads() >= count)
    }
}

impl Drop for HangingFs {
    fn drop(&mut self) {
        self.let_go();
        // Whoever has a file open may keep it.
        let _gone = umount2(self.path(), MntFlags::MNT_DETACH);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{or_skip, require_root};
    use std::{fs, thread};

    const LIMIT: Duration = Duration::from_secs(20);

    #[test]
    fn reads_and_closes_hang_until_they_are_let_go() {
        require_root!();
        let files = vec![
            ("a".to_owned(), b"content".to_vec()),
            ("b".to_owned(), vec![b'x'; 300_000]),
        ];
        let hanging = or_skip!(HangingFs::mount(files));
        assert_eq!(fs::read(hanging.join("a")).unwrap(), b"content");
        assert!(fs::read(hanging.join("c")).is_err());
        let changed = || fs::metadata(hanging.join("a")).unwrap().modified().unwrap();
        let before = changed();
        fs::write(hanging.join("a"), b"CONTENT").unwrap();
        assert_eq!(fs::read(hanging.join("a")).unwrap(), b"CONTENT");
        assert_eq!(changed(), before, "writing changes no times");
        let _held = hanging.hold_reads();
        let path = hanging.join("b");
        let reader = thread::spawn(move || fs::read(path).unwrap().len());
        assert!(hanging.wait_for_reads(1, LIMIT));
        assert!(!reader.is_finished());
        hanging.let_go();
        assert_eq!(reader.join().unwrap(), 300_000);
        let _held = hanging.hold_closes();
        let path = hanging.join("a");
        let closer = thread::spawn(move || drop(fs::File::open(path).unwrap()));
        assert!(wait_until(LIMIT, || hanging.hanging_closes() == 1));
        assert!(!closer.is_finished());
        hanging.let_go();
        closer.join().unwrap();
    }
}
