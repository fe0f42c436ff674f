//! The sidecar: what is known of a file in quarantine, as JSON.
//!
//! One object a file, beside it as `NAME.onacc.json`. Pure data; `store` reads
//! and writes it. Must not: lose a byte of a name that is not UTF-8. Tested here.

use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::kernel::opener::Opener;

/// What the name of a sidecar ends in.
pub const SUFFIX: &str = ".onacc.json";
/// The form that this version writes.
pub const FORMAT: u32 = 1;

/// A name: a string if it is UTF-8, else its bytes as numbers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Text {
    /// Most names.
    String(String),
    /// The others.
    Bytes(Vec<u8>),
}

impl Text {
    /// Of bytes.
    pub fn of(bytes: &[u8]) -> Self {
        match std::str::from_utf8(bytes) {
            Ok(text) => Self::String(text.to_owned()),
            Err(_) => Self::Bytes(bytes.to_vec()),
        }
    }

    /// Of a path.
    pub fn of_path(path: &Path) -> Self {
        Self::of(path.as_os_str().as_bytes())
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::String(text) => text.as_bytes(),
            Self::Bytes(bytes) => bytes,
        }
    }

    /// As a path.
    pub fn path(&self) -> PathBuf {
        Path::new(std::ffi::OsStr::from_bytes(self.bytes())).to_owned()
    }
}

/// How far it got.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// The original was not taken away yet when this was written. It stays so
    /// only if the agent or the machine went down at that moment.
    Pending,
    /// The original is gone; this is the file.
    Moved,
    /// The original is where it was.
    Copied,
}

/// A point in time, since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Time {
    /// Seconds.
    pub seconds: i64,
    /// And nanoseconds.
    pub nanoseconds: i64,
}

/// Who opened it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Process id.
    pub pid: i32,
    /// Thread id.
    pub tid: i32,
    /// Effective uid.
    pub uid: u32,
    /// Name of the thread.
    pub comm: Text,
    /// Path of the program.
    pub exe: Text,
}

impl From<&Opener> for Process {
    fn from(opener: &Opener) -> Self {
        Self {
            pid: opener.pid,
            tid: opener.tid,
            uid: opener.uid,
            comm: Text::of(&opener.comm),
            exe: Text::of(&opener.exe),
        }
    }
}

/// All that is known of one file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// [`FORMAT`].
    pub format: u32,
    /// How far it got.
    pub state: State,
    /// Its name in the quarantine directory.
    pub name: Text,
    /// Where it was.
    pub origin: Text,
    /// Further names that were taken away with it.
    pub other_origins: Vec<Text>,
    /// Names that it has kept elsewhere.
    pub links_left: u64,
    /// What clamd calls it.
    pub signature: String,
    /// clamd's version and that of its signature database.
    pub database: String,
    /// SHA-256 of the content, in hexadecimal digits.
    pub sha256: String,
    /// Bytes.
    pub size: u64,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Permission bits, in octal digits.
    pub mode: String,
    /// Last read.
    pub accessed: Time,
    /// Last written.
    pub modified: Time,
    /// Last changed.
    pub changed: Time,
    /// Device and inode number that it had.
    pub device: u64,
    /// See `device`.
    pub inode: u64,
    /// When it came here, in UTC.
    pub quarantined: String,
    /// Who opened it; nobody where it was found before anyone did.
    pub processes: Vec<Process>,
}

impl Record {
    /// Reads a sidecar.
    ///
    /// # Errors
    /// It is no record, or not a whole one.
    pub fn parse(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(bytes)
    }

    /// The permission bits.
    pub fn mode_bits(&self) -> Option<u32> {
        u32::from_str_radix(&self.mode, 8).ok()
    }
}

/// The name of a file's sidecar.
pub fn sidecar_of(name: &std::ffi::OsStr) -> std::ffi::OsString {
    let mut sidecar = name.to_owned();
    sidecar.push(SUFFIX);
    sidecar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_back_byte_by_byte() {
        for bytes in [&b"plain"[..], b"\xff\xfe/\n", "gr\u{fc}n".as_bytes(), b""] {
            let json = serde_json::to_string(&Text::of(bytes)).unwrap();
            let back: Text = serde_json::from_str(&json).unwrap();
            assert_eq!(back.bytes(), bytes, "{json}");
        }
    }
}
