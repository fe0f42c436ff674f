//! Who opens an infected file: asked while the opener is still blocked.
//!
//! A few reads of `/proc`, which cannot raise an event and take no lock of the
//! opener's memory; some 20 µs, for openers that are to be refused alone. Must
//! not: be asked on the way of a clean file. Tested here.

use std::fs;
use std::os::unix::ffi::OsStringExt as _;

/// What a thread was when it opened the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Opener {
    /// Its process.
    pub pid: i32,
    /// The thread itself.
    pub tid: i32,
    /// Its effective uid, as the agent's user namespace shows it.
    pub uid: u32,
    /// Its name (`comm`); the process itself may choose any.
    pub comm: Vec<u8>,
    /// The program that it runs; empty for a kernel thread.
    pub exe: Vec<u8>,
}

impl Opener {
    /// Asks `/proc`. `None`: it is gone (notify-only), or lives in a pid
    /// namespace that ours cannot see into.
    pub fn of(tid: i32) -> Option<Self> {
        if tid <= 0 {
            return None;
        }
        let status = fs::read(format!("/proc/{tid}/status")).ok()?;
        let exe = fs::read_link(format!("/proc/{tid}/exe")).unwrap_or_default();
        Some(Self {
            tid,
            exe: exe.into_os_string().into_vec(),
            ..parse_status(&status)?
        })
    }
}

/// Takes pid, effective uid and name out of `/proc/<tid>/status`. The kernel
/// escapes line breaks in the name, so that it cannot forge a line.
pub fn parse_status(status: &[u8]) -> Option<Opener> {
    let mut opener = Opener::default();
    let (mut pid, mut uid) = (None, None);
    for line in status.split(|byte| *byte == b'\n') {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else {
            continue;
        };
        let (field, value) = (&line[..colon], &line[colon + 1..]);
        let number = |at| {
            let text = std::str::from_utf8(value).ok()?;
            text.split_ascii_whitespace().nth(at)
        };
        match field {
            b"Name" => opener.comm = value.trim_ascii().to_vec(),
            b"Tgid" => pid = number(0)?.parse().ok(),
            // Real, effective, saved, filesystem.
            b"Uid" => {
                uid = number(1)?.parse().ok();
                break;
            }
            _ => {}
        }
    }
    (opener.pid, opener.uid) = (pid?, uid?);
    Some(opener)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn this_thread_is_known() {
        let tid = nix::unistd::gettid().as_raw();
        let opener = Opener::of(tid).unwrap();
        assert_eq!(opener.pid, nix::unistd::getpid().as_raw());
        assert_eq!(opener.tid, tid);
        assert_eq!(opener.uid, nix::unistd::geteuid().as_raw());
        let exe = std::env::current_exe().unwrap();
        assert_eq!(opener.exe, exe.into_os_string().into_vec());
        assert_eq!(Opener::of(0), None);
        assert_eq!(Opener::of(i32::MAX), None);
    }

    #[test]
    fn the_effective_uid_is_the_second() {
        let status =
            b"Name:\ta\\nUid: x\nUmask:\t0022\nTgid:\t7\nNgid:\t0\nPid:\t8\nUid:\t1\t2\t3\t4\n";
        let opener = parse_status(status).unwrap();
        assert_eq!((opener.pid, opener.uid), (7, 2));
        assert_eq!(opener.comm, b"a\\nUid: x");
        assert_eq!(parse_status(b"Name: x\nTgid: 7\n"), None);
    }

    proptest! {
        #[test]
        fn any_bytes_parse_or_not_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse_status(&bytes);
        }
    }
}
