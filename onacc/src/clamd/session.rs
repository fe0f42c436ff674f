//! One session with clamd (`IDSESSION`), whatever carries its bytes.
//!
//! Owns: the numbers of commands under way and whom each belongs to, and the one
//! file that is on its way in chunks. Must not: wait, retry or connect again
//! (`scan/` does). Tested by `tests/` against the real clamd and a scripted one.

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use nix::poll::PollFlags;

use super::error::{ConnectError, SessionError};
use super::protocol::{self, Numbered, ProtocolError, Reply, ReplyReader};
use super::upload::{CHUNK, Fed, HEADER, Next, Upload};
use super::wire::{Target, Wire};

/// Answered commands whose further records are still known for what they are.
const REMEMBERED: usize = 256;
/// Bytes of a file that are sent before others get their turn.
const ROUND: usize = 4 * CHUNK;

/// Whether a command was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// It is on its way.
    Yes,
    /// The socket's buffer is full: try again when it is writable.
    Full,
}

/// A reply, with what its command was for.
#[derive(Debug, PartialEq, Eq)]
pub enum Received {
    /// To the scan with this token.
    Scan(u64, Reply),
    /// To the version command.
    Version(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Command {
    Scan(u64),
    /// A scan whose reply is of no interest any more.
    Abandoned,
    Version,
}

/// A session.
#[derive(Debug)]
pub struct Session {
    wire: Wire,
    replies: ReplyReader,
    commands: HashMap<u32, Command>,
    /// How many of them are scans.
    scans: usize,
    /// Scans that were answered lately, and how bad the answer was.
    answered: VecDeque<(u32, u8)>,
    last_number: u32,
    last_command: Instant,
    sign_asked: Option<Instant>,
    upload: Option<Upload>,
    /// For the next upload.
    chunk_buffer: Vec<u8>,
    replied: bool,
    receive_buffer: Vec<u8>,
}

impl Session {
    /// Begins to connect, and opens the session; asks for the version, whose
    /// reply shows that clamd serves it.
    ///
    /// # Errors
    /// It is known at once that nothing comes of it.
    pub fn connect(target: &Target, now: Instant) -> Result<Self, ConnectError> {
        let mut session = Self {
            wire: Wire::connect(target)?,
            replies: ReplyReader::default(),
            commands: HashMap::new(),
            scans: 0,
            answered: VecDeque::new(),
            last_number: 0,
            last_command: now,
            sign_asked: None,
            upload: None,
            chunk_buffer: Vec::new(),
            replied: false,
            receive_buffer: vec![0; 16 * 1024],
        };
        session.wire.push(protocol::OPEN_SESSION);
        session.ask_version(now).map_err(|error| match error {
            SessionError::Socket(errno) => ConnectError::Refused(errno),
            SessionError::Tls(error) => ConnectError::Tls(error),
            _ => ConnectError::Refused(nix::errno::Errno::EPIPE),
        })?;
        Ok(session)
    }

    /// What carries it.
    pub fn wire(&self) -> &Wire {
        &self.wire
    }

    /// Whether clamd has replied to anything.
    pub fn has_replied(&self) -> bool {
        self.replied
    }

    /// When the last command was sent.
    pub fn last_command(&self) -> Instant {
        self.last_command
    }

    /// Since when clamd owes a sign of life: an answer to a version command, which
    /// costs it nothing, or room for the next chunk.
    pub fn awaits_sign_since(&self) -> Option<Instant> {
        let stuck = self.wants_feed().then_some(self.last_command);
        self.sign_asked.or(stuck)
    }

    /// What to poll for.
    pub fn flags(&self) -> PollFlags {
        let mut flags = self.wire.flags();
        if self
            .upload
            .as_ref()
            .is_some_and(|upload| !upload.is_waiting())
        {
            flags |= PollFlags::POLLOUT;
        }
        flags
    }

    /// Sends what the socket did not take before.
    ///
    /// # Errors
    /// The session is over.
    pub fn flush(&mut self) -> Result<(), SessionError> {
        self.wire.flush()
    }

    /// Asks for the version, which is a sign of life as well. While a file is on
    /// its way in chunks it cannot be asked for; the chunks keep the session alive.
    ///
    /// # Errors
    /// The session is over.
    pub fn ask_version(&mut self, now: Instant) -> Result<(), SessionError> {
        if self.upload.is_some() {
            return Ok(());
        }
        self.wire.push(protocol::VERSION);
        self.sign_asked.get_or_insert(now);
        self.enter(Command::Version, now);
        self.flush()
    }

    fn enter(&mut self, command: Command, now: Instant) -> u32 {
        self.last_number = self.last_number.wrapping_add(1);
        self.commands.insert(self.last_number, command);
        self.scans += usize::from(command != Command::Version);
        self.last_command = now;
        self.last_number
    }

    /// Hands clamd the file itself. `token` comes back with the reply.
    ///
    /// # Errors
    /// The session is over.
    pub fn scan_file(
        &mut self,
        file: BorrowedFd<'_>,
        token: u64,
        now: Instant,
    ) -> Result<Sent, SessionError> {
        if !self.wire.send_file(protocol::SCAN_FD, file)? {
            return Ok(Sent::Full);
        }
        self.enter(Command::Scan(token), now);
        Ok(Sent::Yes)
    }

    /// Scans that clamd has not replied to, of interest or not.
    pub fn in_flight(&self) -> usize {
        self.scans
    }

    /// Whether a scan is under way, of interest or not.
    pub fn has_scans(&self) -> bool {
        self.scans > 0
    }

    /// Whether no file is on its way in chunks.
    pub fn can_stream(&self) -> bool {
        self.upload.is_none() && self.wire.is_idle()
    }

    /// The token of the file that is on its way in chunks.
    pub fn streaming(&self) -> Option<u64> {
        self.upload.as_ref().map(|upload| upload.token)
    }

    /// Whether the next chunk of it is to be sent by [`Self::feed`].
    pub fn wants_feed(&self) -> bool {
        self.upload
            .as_ref()
            .is_some_and(|upload| !upload.is_waiting())
    }

    /// Begins to send a file in chunks, at most `limit` bytes of it: to be gone on
    /// with by [`Self::feed`]. `token` comes back with the reply.
    pub fn begin_stream(&mut self, token: u64, limit: u64, now: Instant) {
        self.wire.push(protocol::SCAN_STREAM);
        let number = self.enter(Command::Scan(token), now);
        let buffer = std::mem::take(&mut self.chunk_buffer);
        self.upload = Some(Upload::new(number, token, limit, buffer));
    }

    /// Sends more of the file. The bytes that it sent are added to `sent`.
    ///
    /// # Errors
    /// The session is over.
    pub fn feed(
        &mut self,
        file: BorrowedFd<'_>,
        now: Instant,
        sent: &mut u64,
    ) -> Result<Fed, SessionError> {
        let mut round = 0;
        loop {
            self.flush()?;
            if !self.wire.is_idle() || round >= ROUND {
                return Ok(Fed::Wait);
            }
            let Some(upload) = &mut self.upload else {
                return Ok(Fed::Done);
            };
            let next = match upload.next(file) {
                Ok(next) => next,
                Err(error) => {
                    self.abandon_stream()?;
                    return Ok(Fed::Unreadable(error));
                }
            };
            match next {
                Next::Chunk(chunk) => {
                    let end = chunk == protocol::END_OF_STREAM;
                    self.wire.push(chunk);
                    self.last_command = now;
                    if end {
                        self.finish_stream();
                        self.flush()?;
                        return Ok(Fed::Done);
                    }
                    round += chunk.len();
                    *sent += (chunk.len() - HEADER) as u64;
                }
                Next::Cold(offset) => return Ok(Fed::Cold(offset)),
                Next::TooLong => {
                    self.abandon_stream()?;
                    return Ok(Fed::TooLong);
                }
                Next::Ended => return Ok(Fed::Done),
            }
        }
    }

    /// Takes in what somebody else has read of the file, as [`Fed::Cold`] asked.
    /// Not for this session any more if another file is on its way by now.
    ///
    /// # Errors
    /// The session is over.
    pub fn hand_in(&mut self, token: u64, bytes: &[u8], now: Instant) -> Result<Fed, SessionError> {
        let Some(upload) = &mut self.upload else {
            return Ok(Fed::Wait);
        };
        if upload.token != token || !upload.is_waiting() {
            return Ok(Fed::Wait);
        }
        match upload.hand_in(bytes) {
            Next::Chunk(chunk) => {
                let end = chunk == protocol::END_OF_STREAM;
                self.wire.push(chunk);
                self.last_command = now;
                if end {
                    self.finish_stream();
                }
                self.flush()?;
                Ok(if end { Fed::Done } else { Fed::Wait })
            }
            Next::TooLong => {
                self.abandon_stream()?;
                Ok(Fed::TooLong)
            }
            Next::Cold(_) | Next::Ended => Ok(Fed::Wait),
        }
    }

    fn finish_stream(&mut self) {
        if let Some(upload) = self.upload.take() {
            self.chunk_buffer = upload.into_buffer();
        }
    }

    /// Ends the stream before the file does; its reply is of no interest.
    ///
    /// # Errors
    /// The session is over.
    pub fn abandon_stream(&mut self) -> Result<(), SessionError> {
        if let Some(upload) = &self.upload {
            self.commands.insert(upload.number, Command::Abandoned);
            self.wire.push(protocol::END_OF_STREAM);
            self.finish_stream();
        }
        self.flush()
    }

    /// Reads what has come and hands out each reply. Of several records for one
    /// command that come together, the worst counts.
    ///
    /// # Errors
    /// The session is over. What came before was handed out.
    pub fn receive(&mut self, each: &mut impl FnMut(Received)) -> Result<(), SessionError> {
        loop {
            let got = self.wire.receive(&mut self.receive_buffer)?;
            if got == 0 {
                return Ok(());
            }
            self.replies.push(&self.receive_buffer[..got]);
            let mut batch: Vec<Numbered> = Vec::new();
            let ended = loop {
                match self.replies.next_reply() {
                    Ok(Some(reply)) => add_worst(&mut batch, reply),
                    Ok(None) => break Ok(()),
                    Err(error) => break Err(error),
                }
            };
            for reply in batch {
                self.take_reply(reply, each)?;
            }
            ended?;
            if got < self.receive_buffer.len() && !self.wire.keeps_bytes_back() {
                return Ok(());
            }
        }
    }

    fn take_reply(
        &mut self,
        Numbered { number, reply }: Numbered,
        each: &mut impl FnMut(Received),
    ) -> Result<(), SessionError> {
        self.replied = true;
        // Whatever it is, it is a sign of life.
        self.sign_asked = None;
        let command = self.commands.remove(&number);
        if matches!(command, Some(Command::Scan(_) | Command::Abandoned)) {
            self.scans -= 1;
        }
        match (command, reply) {
            (Some(Command::Scan(token)), reply) => {
                if self.answered.len() == REMEMBERED {
                    self.answered.pop_front();
                }
                self.answered.push_back((number, reply.badness()));
                let refused = match (&self.upload, &reply) {
                    (Some(upload), Reply::Error(words)) if upload.number == number => {
                        Some(words.clone())
                    }
                    _ => None,
                };
                each(Received::Scan(token, reply));
                if let Some(words) = refused {
                    // clamd has stopped reading chunks, and takes what follows
                    // for commands.
                    return Err(SessionError::StreamRefused(words));
                }
            }
            (Some(Command::Abandoned), _) => {}
            (Some(Command::Version), reply) => {
                // "COMMAND UNAVAILABLE" says that the server works as well.
                let version = match reply {
                    Reply::Version(version) => version,
                    _ => String::new(),
                };
                each(Received::Version(version));
            }
            (None, reply) => {
                let before = self.answered.iter().find(|(known, _)| *known == number);
                let words = format!("{number}: {reply:?}");
                match before {
                    None => return Err(ProtocolError::Unnumbered(words).into()),
                    Some((_, badness)) if reply.badness() > *badness => {
                        return Err(ProtocolError::TakenBack(words).into());
                    }
                    // "Not supported file type ERROR" is followed by OK.
                    Some(_) => {}
                }
            }
        }
        Ok(())
    }
}

fn add_worst(batch: &mut Vec<Numbered>, reply: Numbered) {
    match batch.iter_mut().find(|other| other.number == reply.number) {
        Some(other) if reply.reply.badness() > other.reply.badness() => other.reply = reply.reply,
        Some(_) => {}
        None => batch.push(reply),
    }
}

impl AsFd for Session {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wire.as_fd()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // clamd's log then has no complaint. If it does not fit, closing will do.
        if self.replied && self.upload.is_none() && self.commands.is_empty() {
            self.wire.push(protocol::END_SESSION);
            let _closing_will_do = self.wire.flush();
        }
    }
}
