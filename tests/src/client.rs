//! A plain client of clamd's session protocol, to check the kit itself with.
//!
//! Owns: one session, one request after the other. Must not: be taken for the
//! agent's client, which is in `onacc`. Tested by `clamd.rs` and `fake_clamd.rs`.

use std::{
    fs::File,
    io::{self, IoSlice, Read, Write},
    os::{fd::AsRawFd, unix::net::UnixStream},
    path::Path,
    time::Duration,
};

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

/// A session with clamd, ended on drop.
#[derive(Debug)]
pub struct Session {
    stream: UnixStream,
    next: u32,
    received: Vec<u8>,
}

impl Session {
    /// Connects and opens a session.
    pub fn connect(socket: &Path, limit: Duration) -> io::Result<Self> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(limit))?;
        stream.write_all(b"zIDSESSION\0")?;
        Ok(Self {
            stream,
            next: 1,
            received: Vec::new(),
        })
    }

    /// Asks for a scan of an open file; returns the id of the request.
    pub fn fildes(&mut self, file: &File) -> io::Result<u32> {
        let fds = [file.as_raw_fd()];
        sendmsg::<()>(
            self.stream.as_raw_fd(),
            &[IoSlice::new(b"zFILDES\0\0")],
            &[ControlMessage::ScmRights(&fds)],
            MsgFlags::MSG_NOSIGNAL,
            None,
        )?;
        Ok(self.count())
    }

    /// Has the content of an open file scanned, sent in chunks; returns the id of
    /// the request.
    pub fn instream(&mut self, mut file: &File) -> io::Result<u32> {
        self.stream.write_all(b"zINSTREAM\0")?;
        let mut chunk = vec![0; 4 + (64 << 10)];
        loop {
            let count = file.read(&mut chunk[4..])?;
            let length = u32::try_from(count).unwrap_or_default().to_be_bytes();
            chunk[..4].copy_from_slice(&length);
            self.stream.write_all(&chunk[..4 + count])?;
            if count == 0 {
                return Ok(self.count());
            }
        }
    }

    /// Sends a command without a file; returns the id of the request.
    pub fn command(&mut self, name: &str) -> io::Result<u32> {
        self.stream.write_all(format!("z{name}\0").as_bytes())?;
        Ok(self.count())
    }

    /// Waits for the next reply: the id and the text after it.
    pub fn reply(&mut self) -> io::Result<(u32, String)> {
        loop {
            if let Some(end) = self.received.iter().position(|byte| *byte == 0) {
                let line: Vec<u8> = self.received.drain(..=end).collect();
                let line = String::from_utf8_lossy(&line[..end]).into_owned();
                return line
                    .split_once(": ")
                    .and_then(|(id, text)| Some((id.parse().ok()?, text.to_owned())))
                    .ok_or_else(|| io::Error::other(format!("not a session reply: {line:?}")));
            }
            let mut buffer = [0; 4096];
            let count = self.stream.read(&mut buffer)?;
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.received.extend(&buffer[..count]);
        }
    }

    fn count(&mut self) -> u32 {
        let id = self.next;
        self.next += 1;
        id
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.stream.write_all(b"zEND\0");
    }
}
