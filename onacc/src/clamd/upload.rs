//! A file on its way to clamd in chunks (`INSTREAM`), one chunk at a time.
//!
//! Reads from the event's own fd what the kernel has in memory; what is not
//! there somebody else must read, for this thread must not wait for a disk.
//! Must not: keep more than one chunk. Tested here and by `tests/`.

use std::os::fd::BorrowedFd;

use super::protocol;
use crate::kernel::SyscallError;
use crate::kernel::file::{self, CachedRead};

/// Bytes in one chunk at most.
pub const CHUNK: usize = 64 * 1024;
/// Before the bytes of each chunk.
pub const HEADER: usize = 4;

/// How far an upload got.
#[derive(Debug)]
pub enum Fed {
    /// The peer takes no more for now, or enough was sent for one round.
    Wait,
    /// What comes next is not in memory: read it at this offset and hand it in.
    Cold(u64),
    /// All is sent: the reply is yet to come.
    Done,
    /// The file is longer than may be sent; the stream was ended, and its reply
    /// is of no interest.
    TooLong,
    /// The file cannot be read; the stream was ended.
    Unreadable(SyscallError),
}

/// The next chunk of an upload.
#[derive(Debug)]
pub enum Next<'a> {
    /// To be sent: a header and its bytes, or the end of the stream.
    Chunk(&'a [u8]),
    /// As in [`Fed`].
    Cold(u64),
    /// The file is longer than may be sent.
    TooLong,
    /// The end of the stream was given out before.
    Ended,
}

/// An upload.
#[derive(Debug)]
pub struct Upload {
    /// Number of its command.
    pub number: u32,
    /// What comes back with the reply.
    pub token: u64,
    offset: u64,
    limit: u64,
    /// Header and bytes; kept for the next chunk.
    buffer: Vec<u8>,
    /// Somebody reads the next chunk for us.
    asked: bool,
    ended: bool,
}

impl Upload {
    /// Of a file of which at most `limit` bytes may be sent. `buffer` is reused.
    pub fn new(number: u32, token: u64, limit: u64, mut buffer: Vec<u8>) -> Self {
        buffer.resize(HEADER + CHUNK, 0);
        Self {
            number,
            token,
            offset: 0,
            limit,
            buffer,
            asked: false,
            ended: false,
        }
    }

    /// The buffer, for the next upload.
    pub fn into_buffer(self) -> Vec<u8> {
        self.buffer
    }

    /// Whether somebody reads the next chunk for us.
    pub fn is_waiting(&self) -> bool {
        self.asked
    }

    /// Reads the next chunk.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn next(&mut self, file: BorrowedFd<'_>) -> Result<Next<'_>, SyscallError> {
        if self.ended {
            return Ok(Next::Ended);
        }
        let got = file::read_cached(file, self.offset, &mut self.buffer[HEADER..])?;
        match got {
            CachedRead::WouldWait => {
                self.asked = true;
                Ok(Next::Cold(self.offset))
            }
            CachedRead::Bytes(count) => Ok(self.frame(count)),
        }
    }

    /// Takes in what somebody has read at the offset that was asked for.
    pub fn hand_in(&mut self, bytes: &[u8]) -> Next<'_> {
        self.asked = false;
        let count = bytes.len().min(CHUNK);
        self.buffer[HEADER..HEADER + count].copy_from_slice(&bytes[..count]);
        self.frame(count)
    }

    fn frame(&mut self, count: usize) -> Next<'_> {
        if count == 0 {
            self.ended = true;
            return Next::Chunk(protocol::END_OF_STREAM);
        }
        self.offset += count as u64;
        if self.offset > self.limit {
            self.ended = true;
            return Next::TooLong;
        }
        let length = u32::try_from(count).unwrap_or(u32::MAX);
        self.buffer[..HEADER].copy_from_slice(&length.to_be_bytes());
        Next::Chunk(&self.buffer[..HEADER + count])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write as _;
    use std::os::fd::AsFd as _;

    /// What a stream carries, by the rules of the protocol.
    fn content(mut stream: &[u8]) -> Option<Vec<u8>> {
        let mut all = Vec::new();
        loop {
            let (header, rest) = stream.split_at_checked(4)?;
            let length = u32::from_be_bytes(header.try_into().ok()?) as usize;
            if length == 0 {
                return rest.is_empty().then_some(all);
            }
            let (bytes, rest) = rest.split_at_checked(length)?;
            all.extend(bytes);
            stream = rest;
        }
    }

    /// Sends all; what `cold` says is read by somebody else.
    fn upload(bytes: &[u8], limit: u64, cold: bool) -> (Vec<u8>, bool) {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        let mut upload = Upload::new(1, 2, limit, Vec::new());
        let mut out = Vec::new();
        let mut offset = 0;
        loop {
            let next = if cold {
                let from = &bytes[offset.min(bytes.len())..];
                let piece = &from[..from.len().min(CHUNK)];
                offset += piece.len();
                upload.hand_in(piece)
            } else {
                upload.next(file.as_file().as_fd()).unwrap()
            };
            match next {
                Next::Chunk(chunk) => out.extend(chunk),
                Next::Cold(_) => return upload_cold(bytes, limit),
                Next::TooLong => return (out, true),
                Next::Ended => return (out, false),
            }
            if out.ends_with(protocol::END_OF_STREAM) && upload.ended {
                return (out, false);
            }
        }
    }

    fn upload_cold(bytes: &[u8], limit: u64) -> (Vec<u8>, bool) {
        upload(bytes, limit, true)
    }

    proptest! {
        #[test]
        fn a_stream_carries_the_file_whole(
            length in prop_oneof![0usize..9, CHUNK - 2..CHUNK + 3, 0..3 * CHUNK],
            cold: bool,
        ) {
            let bytes: Vec<u8> = (0..length).map(|n| u8::try_from(n % 251).unwrap()).collect();
            let (stream, too_long) = upload(&bytes, length as u64, cold);
            prop_assert!(!too_long);
            prop_assert_eq!(content(&stream), Some(bytes.clone()));
            if length > 0 {
                prop_assert!(upload(&bytes, length as u64 - 1, cold).1);
            }
        }
    }
}
