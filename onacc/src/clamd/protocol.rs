//! clamd's words: commands out, records in. Pure: no socket, no clock.
//!
//! A session (`IDSESSION`) numbers its commands from 1; replies come in any
//! order as `<number>: <text>\0`. Bytes may be split anywhere, and the peer is
//! not trusted to stay within any length. Tested here, and fuzzed.

/// Opens a session. Has no reply of its own.
pub const OPEN_SESSION: &[u8] = b"zIDSESSION\0";
/// Asks for the version of engine and database.
pub const VERSION: &[u8] = b"zVERSION\0";
/// Asks for a scan of the fd that travels with the last, otherwise meaningless, byte.
pub const SCAN_FD: &[u8] = b"zFILDES\0\0";

/// Longest record that is read. clamd's own buffers are smaller.
const MAX_RECORD: usize = 16 * 1024;

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

/// A reply and the number of its command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Numbered {
    /// Number of the command in its session, from 1.
    pub number: u32,
    /// What clamd says.
    pub reply: Reply,
}

/// Collects bytes and gives out whole replies.
#[derive(Debug, Default)]
pub struct ReplyReader {
    bytes: Vec<u8>,
    /// Where the next record starts in `bytes`.
    start: usize,
}

impl ReplyReader {
    /// Takes in what was received.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.start > 0 {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole reply; `None` until more bytes come.
    ///
    /// # Errors
    /// The peer does not speak the protocol; the session is to be given up.
    pub fn next_reply(&mut self) -> Result<Option<Numbered>, ProtocolError> {
        let rest = &self.bytes[self.start..];
        let Some(end) = rest.iter().position(|byte| *byte == 0 || *byte == b'\n') else {
            return if rest.len() > MAX_RECORD {
                Err(ProtocolError::TooLong)
            } else {
                Ok(None)
            };
        };
        let record = parse_record(&rest[..end]);
        self.start += end + 1;
        record.map(Some)
    }
}

/// Parses one record without its terminator.
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

/// Parses what follows the number. Anything that is not plainly a verdict is
/// an error: a reply that is not understood must never pass for clean.
fn parse_reply(text: &str) -> Reply {
    if text == "PONG" {
        return Reply::Pong;
    }
    if text.starts_with("ClamAV ") {
        return Reply::Version(text.to_owned());
    }
    let verdict = text.split_once(": ").map_or(text, |(_, verdict)| verdict);
    if verdict == "OK" || verdict == "Empty file" || verdict == "Excluded" {
        Reply::Clean
    } else if let Some(signature) = verdict.strip_suffix(" FOUND") {
        Reply::Found(signature.to_owned())
    } else {
        Reply::Error(verdict.strip_suffix(" ERROR").unwrap_or(verdict).to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn reply(text: &str) -> Reply {
        parse_record(format!("7: {text}").as_bytes()).unwrap().reply
    }

    #[test]
    fn verdicts_of_clamd() {
        assert_eq!(reply("fd[10]: OK"), Reply::Clean);
        assert_eq!(
            reply("fd[10]: Eicar-Signature FOUND"),
            Reply::Found("Eicar-Signature".into())
        );
        assert_eq!(
            reply("fd[12]: Can't allocate memory ERROR"),
            Reply::Error("Can't allocate memory".into())
        );
        assert_eq!(
            reply("No file descriptor received. ERROR"),
            Reply::Error("No file descriptor received.".into())
        );
        assert_eq!(reply("PONG"), Reply::Pong);
        assert_eq!(
            reply("ClamAV 1.4.6/27000/Mon Nov  2 10:00:00 2026"),
            Reply::Version("ClamAV 1.4.6/27000/Mon Nov  2 10:00:00 2026".into())
        );
        assert_eq!(
            reply("COMMAND UNAVAILABLE"),
            Reply::Error("COMMAND UNAVAILABLE".into())
        );
    }

    #[test]
    fn what_is_not_understood_is_never_clean() {
        for text in [
            "",
            "fd[1]:",
            "fd[1]: ",
            "fd[1]: NOT OK",
            "OKAY",
            "fd[1]: OK FOUNDX",
        ] {
            assert!(matches!(reply(text), Reply::Error(_)), "{text:?}");
        }
    }

    #[test]
    fn a_record_without_number_ends_the_session() {
        for bytes in [
            &b"COMMAND READ TIMED OUT"[..],
            b"UNKNOWN COMMAND",
            b"+1: OK",
            b": OK",
            b"",
        ] {
            assert!(parse_record(bytes).is_err(), "{bytes:?}");
        }
        assert!(parse_record(b"99999999999: OK").is_err());
    }

    #[test]
    fn a_record_without_end_is_refused() {
        let mut reader = ReplyReader::default();
        reader.push(&vec![b'x'; MAX_RECORD + 1]);
        assert_eq!(reader.next_reply(), Err(ProtocolError::TooLong));
    }

    proptest! {
        #[test]
        fn replies_split_anywhere_come_out_whole(
            numbers in proptest::collection::vec(1u32.., 1..20),
            cuts in proptest::collection::vec(1usize..9, 1..40),
        ) {
            let bytes: Vec<u8> = numbers.iter().flat_map(|n| format!("{n}: fd[3]: OK\0").into_bytes()).collect();
            let mut reader = ReplyReader::default();
            let mut got = Vec::new();
            let mut rest = &bytes[..];
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (head, tail) = rest.split_at((*cut).min(rest.len()));
                reader.push(head);
                rest = tail;
                while let Some(reply) = reader.next_reply().unwrap() {
                    prop_assert_eq!(&reply.reply, &Reply::Clean);
                    got.push(reply.number);
                }
            }
            prop_assert_eq!(got, numbers);
        }

        #[test]
        fn any_bytes_end_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut reader = ReplyReader::default();
            reader.push(&bytes);
            while let Ok(Some(_)) = reader.next_reply() {}
        }
    }
}
