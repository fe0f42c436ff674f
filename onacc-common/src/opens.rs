//! The ring-buffer record of an open: who opened which file, and its names.
//!
//! Owns: the layout, and how userspace takes it apart. Must not: trust a length
//! in it. Tested here, and fuzzed: the bytes come from outside the agent.

use crate::{ChangeTime, DirKey, InodeKey};

/// Levels of directories whose names a record holds at most.
pub const MAX_LEVELS: usize = 64;
/// Bytes of names, each with its NUL, that a record holds at most: `PATH_MAX`.
pub const MAX_NAMES: usize = 4096;
/// Longest name with its NUL (`NAME_MAX`); room that a record keeps behind its
/// names, since the verifier knows no tighter bound of the last one.
pub const NAME_ROOM: usize = 256;

/// What was done with the file.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Opened.
    Open = 1,
    /// Opened to be executed.
    Exec = 2,
    /// An open (or execution) that was refused: the file is known to be infected.
    DeniedOpen = 3,
    /// A mapping that was refused, likewise.
    DeniedMap = 4,
}

impl Access {
    const fn from_number(number: u32) -> Option<Self> {
        Some(match number {
            1 => Self::Open,
            2 => Self::Exec,
            3 => Self::DeniedOpen,
            4 => Self::DeniedMap,
            _ => return None,
        })
    }
}

/// The fixed part of a record. The names follow: leaf first, each ended by NUL.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenHeader {
    /// [`Access`].
    pub access: u32,
    /// Bytes of names that follow.
    pub names_len: u32,
    /// The file.
    pub key: InodeKey,
    /// The directory that it was reached through.
    pub directory: DirKey,
    /// `i_generation` of the file: tells an inode from its successor.
    pub generation: u32,
    /// Not zero: the names do not reach the filesystem's root.
    pub cut: u32,
    /// ctime when it was opened.
    pub changed: ChangeTime,
    /// Size in bytes.
    pub size: u64,
    /// Thread, as the first pid namespace numbers it.
    pub tid: u32,
    /// Process, likewise.
    pub tgid: u32,
    /// Real uid in the first user namespace.
    pub uid: u32,
    /// Effective uid, likewise.
    pub euid: u32,
    /// Id of the cgroup (v2).
    pub cgroup: u64,
    /// When the thread started: nanoseconds since boot, suspended time included.
    pub started: u64,
    /// The thread's name.
    pub comm: [u8; 16],
    /// The signature's number, of refused accesses.
    pub signature: u32,
    /// Always zero.
    pub zero: u32,
}

/// A record, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenRecord<'a> {
    /// What was done.
    pub access: Access,
    /// Who and which file.
    pub header: OpenHeader,
    names: &'a [u8],
}

impl OpenHeader {
    /// Size in bytes.
    pub const SIZE: usize = size_of::<Self>();
}

/// Takes numbers off the front of a record.
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*first)
    }
    fn word(&mut self) -> Option<u32> {
        self.take().map(u32::from_ne_bytes)
    }
    fn long(&mut self) -> Option<u64> {
        self.take().map(u64::from_ne_bytes)
    }
    fn key(&mut self) -> Option<InodeKey> {
        Some(InodeKey {
            dev: self.word()?,
            zero: self.word()?,
            ino: self.long()?,
        })
    }
    fn bytes(&self, len: usize) -> Option<&'a [u8]> {
        self.0.get(..len)
    }
}

impl<'a> OpenRecord<'a> {
    /// Takes a record apart; `None` if it is none: too short, an unknown kind of
    /// access, names that lie outside.
    pub fn from_bytes(bytes: &'a [u8]) -> Option<Self> {
        let mut cursor = Cursor(bytes);
        let header = OpenHeader {
            access: cursor.word()?,
            names_len: cursor.word()?,
            key: cursor.key()?,
            directory: DirKey {
                key: cursor.key()?,
                generation: cursor.word()?,
                zero: cursor.word()?,
            },
            generation: cursor.word()?,
            cut: cursor.word()?,
            changed: ChangeTime {
                sec: cursor.long()?.cast_signed(),
                nsec: cursor.word()?,
                zero: cursor.word()?,
            },
            size: cursor.long()?,
            tid: cursor.word()?,
            tgid: cursor.word()?,
            uid: cursor.word()?,
            euid: cursor.word()?,
            cgroup: cursor.long()?,
            started: cursor.long()?,
            comm: cursor.take()?,
            signature: cursor.word()?,
            zero: cursor.word()?,
        };
        Some(Self {
            access: Access::from_number(header.access)?,
            names: cursor.bytes(usize::try_from(header.names_len).ok()?)?,
            header,
        })
    }

    /// Bytes that it takes, without the room that follows in the ring buffer.
    pub fn size(&self) -> usize {
        OpenHeader::SIZE + self.names.len()
    }

    /// The names, leaf first, without their NULs.
    pub fn names(&self) -> impl Iterator<Item = &'a [u8]> {
        let ended = self.names.strip_suffix(&[0]);
        ended
            .into_iter()
            .flat_map(|names| names.split(|byte| *byte == 0))
    }

    /// Whether the names lead from the filesystem's root to the file.
    pub fn is_whole(&self) -> bool {
        self.header.cut == 0 && !self.names.is_empty()
    }

    /// The thread's name without its padding.
    pub fn comm(&self) -> &[u8] {
        let comm = &self.header.comm;
        comm.split(|byte| *byte == 0).next().unwrap_or(comm)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(names_len: usize) -> OpenHeader {
        OpenHeader {
            access: 2,
            names_len: u32::try_from(names_len).unwrap(),
            key: InodeKey::new(8, 1, 77),
            directory: DirKey {
                key: InodeKey::new(8, 1, 2),
                generation: 5,
                zero: 0,
            },
            generation: 9,
            cut: 0,
            changed: ChangeTime::new(-3, 4),
            size: 1 << 40,
            tid: 11,
            tgid: 10,
            uid: 1000,
            euid: 0,
            cgroup: 99,
            started: 1_000_000_007,
            comm: *b"cat\0\0\0\0\0\0\0\0\0\0\0\0\0",
            signature: 0,
            zero: 0,
        }
    }

    /// As the program writes it: the structure's own bytes, then the names.
    fn bytes_of(header: &OpenHeader, names: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let word = |bytes: &mut Vec<u8>, word: u32| bytes.extend(word.to_ne_bytes());
        let key = |bytes: &mut Vec<u8>, key: InodeKey| {
            bytes.extend(key.dev.to_ne_bytes());
            bytes.extend(key.zero.to_ne_bytes());
            bytes.extend(key.ino.to_ne_bytes());
        };
        word(&mut bytes, header.access);
        word(&mut bytes, header.names_len);
        key(&mut bytes, header.key);
        key(&mut bytes, header.directory.key);
        word(&mut bytes, header.directory.generation);
        word(&mut bytes, header.directory.zero);
        word(&mut bytes, header.generation);
        word(&mut bytes, header.cut);
        bytes.extend(header.changed.sec.to_ne_bytes());
        word(&mut bytes, header.changed.nsec);
        word(&mut bytes, header.changed.zero);
        bytes.extend(header.size.to_ne_bytes());
        for one in [header.tid, header.tgid, header.uid, header.euid] {
            word(&mut bytes, one);
        }
        bytes.extend(header.cgroup.to_ne_bytes());
        bytes.extend(header.started.to_ne_bytes());
        bytes.extend(header.comm);
        word(&mut bytes, header.signature);
        word(&mut bytes, header.zero);
        assert_eq!(bytes.len(), OpenHeader::SIZE, "no padding anywhere");
        bytes.extend(names);
        bytes
    }

    #[test]
    fn a_record_is_taken_apart() {
        let names = b"cat\0bin\0usr\0";
        let header = header(names.len());
        let mut bytes = bytes_of(&header, names);
        bytes.extend([7; 300]);
        let record = OpenRecord::from_bytes(&bytes).unwrap();
        assert_eq!((record.access, record.header), (Access::Exec, header));
        let got: Vec<&[u8]> = record.names().collect();
        assert_eq!(got, [b"cat".as_slice(), b"bin", b"usr"]);
        assert_eq!(record.comm(), b"cat");
        assert!(record.is_whole());
    }

    #[test]
    fn names_without_an_end_are_no_names() {
        let header = header(3);
        let bytes = bytes_of(&header, b"cat");
        assert_eq!(OpenRecord::from_bytes(&bytes).unwrap().names().count(), 0);
    }

    #[test]
    fn what_is_cut_off_or_unknown_is_refused() {
        let names = b"cat\0";
        let bytes = bytes_of(&header(names.len()), names);
        assert!(OpenRecord::from_bytes(&bytes).is_some());
        for len in 0..bytes.len() {
            assert_eq!(OpenRecord::from_bytes(&bytes[..len]), None, "{len}");
        }
        let mut unknown = bytes.clone();
        unknown[..4].copy_from_slice(&77u32.to_ne_bytes());
        assert_eq!(OpenRecord::from_bytes(&unknown), None);
    }
}
