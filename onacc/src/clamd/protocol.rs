//! clamd's words: commands out, records in. Pure: no socket, no clock.
//!
//! A session (`IDSESSION`) numbers its commands from 1; replies come in any
//! order as `<number>: <text>\0`. Bytes may be split anywhere, and the peer is
//! not trusted to stay within any length. Tested in `protocol/tests.rs`, and fuzzed.

/// Opens a session. Has no reply of its own.
pub const OPEN_SESSION: &[u8] = b"zIDSESSION\0";
/// Ends a session. Has no reply.
pub const END_SESSION: &[u8] = b"zEND\0";
/// Asks whether clamd is there.
pub const PING: &[u8] = b"zPING\0";
/// Asks for the version of engine and database.
pub const VERSION: &[u8] = b"zVERSION\0";
/// Asks for the same and for the commands that clamd knows.
pub const VERSION_COMMANDS: &[u8] = b"zVERSIONCOMMANDS\0";
/// Asks for a scan of the fd that travels with the last, otherwise meaningless, byte.
pub const SCAN_FD: &[u8] = b"zFILDES\0\0";
/// Asks for a scan of what follows in chunks: each a length (4 bytes, most
/// significant first) and as many bytes. A length of 0 ends it.
pub const SCAN_STREAM: &[u8] = b"zINSTREAM\0";
/// Ends a stream.
pub const END_OF_STREAM: &[u8] = &[0; 4];

/// Longest record that is read. clamd's own buffers are smaller.
const MAX_RECORD: usize = 16 * 1024;
/// Longest path that fits clamd's command buffer (`PATH_MAX` + 8).
const LONGEST_PATH: usize = 4080;
/// Words that clamd uses where it has looked at nothing, which is no failure.
const NOTHING_TO_SCAN: [&str; 3] = ["Empty file", "Excluded", "Excluded (another filesystem)"];

/// Asks for all signatures that match a file, by its path. `None`: the path
/// cannot be said to clamd.
pub fn scan_all_matches(path: &[u8]) -> Option<Vec<u8>> {
    if path.len() > LONGEST_PATH || path.contains(&0) {
        return None;
    }
    Some([b"zALLMATCHSCAN ", path, b"\0"].concat())
}

/// The peer does not speak the protocol.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// A record without a number.
    #[error("clamd sent a reply that belongs to no command: {0}")]
    Unnumbered(String),
    /// A record that does not end.
    #[error("clamd sent a reply longer than {MAX_RECORD} bytes")]
    TooLong,
    /// clamd gave the session up for want of commands.
    #[error("clamd closed the session: {0}")]
    SessionEnded(String),
    /// A later reply to the same command says worse than the one that was acted on.
    #[error("clamd has taken back a reply: {0}")]
    TakenBack(String),
}

/// What clamd says to one command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// Scanned and clean.
    Clean,
    /// Infected: the signature's name.
    Found(String),
    /// Not, or not fully, scanned: clamd's words.
    Error(String),
    /// The answer to a ping.
    Pong,
    /// The answer to the version command.
    Version(String),
}

impl Reply {
    /// How bad it is: of several records for one command the worst counts. An
    /// error says that clamd has not seen all, a signature that it has seen enough.
    pub fn badness(&self) -> u8 {
        match self {
            Self::Pong | Self::Version(_) | Self::Clean => 0,
            Self::Error(_) => 1,
            Self::Found(_) => 2,
        }
    }
}

/// A reply and the number of its command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Numbered {
    /// Number of the command in its session, from 1.
    pub number: u32,
    /// What clamd says.
    pub reply: Reply,
}

/// Collects bytes and gives out whole records.
#[derive(Debug, Default)]
pub struct ReplyReader {
    bytes: Vec<u8>,
    /// Where the next record starts in `bytes`.
    start: usize,
    /// Up to where there is no end of a record.
    looked: usize,
}

impl ReplyReader {
    /// Takes in what was received.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.start > 0 {
            self.bytes.drain(..self.start);
            self.looked = self.looked.saturating_sub(self.start);
            self.start = 0;
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole record without its end; `None` until more bytes come.
    ///
    /// # Errors
    /// A record that does not end.
    pub fn next_record(&mut self) -> Result<Option<&[u8]>, ProtocolError> {
        let from = self.looked.max(self.start);
        let end = self.bytes[from..]
            .iter()
            .position(|byte| *byte == 0 || *byte == b'\n');
        let Some(end) = end.map(|end| from + end) else {
            self.looked = self.bytes.len();
            return if self.bytes.len() - self.start > MAX_RECORD {
                Err(ProtocolError::TooLong)
            } else {
                Ok(None)
            };
        };
        let start = std::mem::replace(&mut self.start, end + 1);
        self.looked = self.start;
        Ok(Some(&self.bytes[start..end]))
    }

    /// The next whole reply of a session; `None` until more bytes come.
    ///
    /// # Errors
    /// The peer does not speak the protocol; the session is to be given up.
    pub fn next_reply(&mut self) -> Result<Option<Numbered>, ProtocolError> {
        match self.next_record()? {
            Some(record) => parse_record(record).map(Some),
            None => Ok(None),
        }
    }
}

/// Parses one record of a session, without its terminator.
///
/// # Errors
/// It carries no command's number.
pub fn parse_record(record: &[u8]) -> Result<Numbered, ProtocolError> {
    let text = String::from_utf8_lossy(record);
    let numbered = text.split_once(": ").and_then(|(number, rest)| {
        let digits = number.bytes().all(|byte| byte.is_ascii_digit());
        Some((number.parse().ok().filter(|_| digits)?, rest))
    });
    match numbered {
        Some((number, rest)) => Ok(Numbered {
            number,
            reply: parse_reply(rest),
        }),
        None if text.contains("TIMED OUT") => Err(ProtocolError::SessionEnded(text.into_owned())),
        None => Err(ProtocolError::Unnumbered(text.into_owned())),
    }
}

/// Parses what follows the number, or a record outside of a session. Anything
/// that is not plainly a verdict is an error: a reply that is not understood
/// must never pass for clean.
pub fn parse_reply(text: &str) -> Reply {
    if text == "PONG" {
        return Reply::Pong;
    }
    if text.starts_with("ClamAV ") {
        return Reply::Version(text.to_owned());
    }
    parse_verdict(text.split_once(": ").map_or(text, |(_, verdict)| verdict))
}

fn parse_verdict(verdict: &str) -> Reply {
    if verdict == "OK" || NOTHING_TO_SCAN.contains(&verdict) {
        Reply::Clean
    } else if let Some(signature) = verdict.strip_suffix(" FOUND") {
        Reply::Found(signature.to_owned())
    } else {
        Reply::Error(verdict.strip_suffix(" ERROR").unwrap_or(verdict).to_owned())
    }
}

/// Parses a record about a path that clamd was told: `<path>: <verdict>`, where
/// the path may hold anything, and may be another name of the same file.
pub fn parse_path_record(record: &[u8], path: &[u8]) -> Reply {
    let rest = record
        .strip_prefix(path)
        .and_then(|rest| rest.strip_prefix(b": "));
    if let Some(rest) = rest {
        return parse_verdict(&String::from_utf8_lossy(rest));
    }
    let text = String::from_utf8_lossy(record);
    parse_verdict(text.rsplit_once(": ").map_or(&text, |(_, verdict)| verdict))
}

/// All that was said about one file, record by record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Matches {
    /// Signatures, each once, in the order in which they were named.
    pub signatures: Vec<String>,
    /// The first error. It wins over any number of records that say OK.
    pub error: Option<String>,
    /// Whether anything was said.
    pub any: bool,
}

impl Matches {
    /// Takes in one record.
    pub fn take(&mut self, reply: Reply) {
        self.any = true;
        match reply {
            Reply::Found(signature) if !self.signatures.contains(&signature) => {
                self.signatures.push(signature);
            }
            Reply::Error(words) => drop(self.error.get_or_insert(words)),
            Reply::Found(_) | Reply::Clean | Reply::Pong | Reply::Version(_) => {}
        }
    }
}

/// The version and the commands in a reply to [`VERSION_COMMANDS`].
pub fn parse_commands(text: &str) -> Option<(&str, Vec<&str>)> {
    let (version, commands) = text.split_once("| COMMANDS:")?;
    Some((
        version.trim_end(),
        commands.split_ascii_whitespace().collect(),
    ))
}

#[cfg(test)]
mod tests;
