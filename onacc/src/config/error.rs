//! What can be wrong with a configuration, told in one line each.
//!
//! Owns the error type of this module and the way names and values are shown.
//! Every message reads `FILE:LINE:COLUMN: OPTION: what is wrong; remedy`, stays on one
//! line whatever bytes the file holds, and says what to do. Must not decide
//! what is an error. Tested below, and message by message where they arise.

use crate::observe::printable_characters;
use std::fmt;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::entry::Origin;

/// How much of a name or value a message repeats, in characters.
const LONGEST_SHOWN: usize = 80;

/// Where something is wrong. Displays as `FILE:LINE:COLUMN: OPTION`, in its
/// alternate form without the column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Who set it.
    pub origin: Origin,
    /// The option as written, made safe to print.
    pub option: String,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.origin.fmt(f)?;
        if let Origin::File { column, .. } = self.origin
            && !f.alternate()
        {
            write!(f, ":{column}")?;
        }
        write!(f, ": {}", self.option)
    }
}

/// Everything that is wrong with a configuration, one line each. Never empty.
#[derive(Debug)]
pub struct ConfigErrors(pub Vec<ConfigError>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            error.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

/// Why a configuration cannot be used. The process ends with status 2.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read at all.
    #[error(
        "{}: cannot read the {what}: {source}; correct that or name another file with {remedy}=FILE",
        shown_path(.file)
    )]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// What it is.
        what: &'static str,
        /// The flag that names another one.
        remedy: &'static str,
        /// What the kernel says.
        source: io::Error,
    },
    /// onacc.toml is no TOML.
    #[error("{at}: {problem}; correct it, see onacc.toml(5)")]
    Syntax {
        /// Where; the option is `syntax`.
        at: Place,
        /// What is wrong, made safe to print.
        problem: String,
    },
    /// onacc.toml has no such table or key.
    #[error("{at}: unknown {what}; {remedy}")]
    UnknownKey {
        /// Where.
        at: Place,
        /// Table or key.
        what: &'static str,
        /// What was probably meant, or where to look.
        remedy: String,
    },
    /// A value of another type than the key takes.
    #[error("{at}: this is {found}; write {wanted}")]
    WrongType {
        /// Where.
        at: Place,
        /// What it is, with its article.
        found: &'static str,
        /// What it should be, with an example.
        wanted: String,
    },
    /// A regular expression or a shell pattern that is none.
    #[error("{at}: {problem}")]
    BadPattern {
        /// Where.
        at: Place,
        /// The pattern, what is wrong with it, and what to do, on one line.
        problem: String,
    },
    /// Two settings that do not go together, or one that needs another.
    #[error("{at}: {problem}")]
    Conflict {
        /// Where.
        at: Place,
        /// What is wrong, and what to do.
        problem: &'static str,
    },
    /// The file is still the sample that nobody has edited.
    #[error("{at}: this is still the sample file; edit it and remove the Example line")]
    Example {
        /// The line that starts with `Example`.
        at: Place,
    },
    /// clamd has no such option.
    #[error("{at}: unknown option; {}", unknown_remedy(*.suggestion))]
    UnknownOption {
        /// The line.
        at: Place,
        /// The option that was probably meant.
        suggestion: Option<&'static str>,
    },
    /// An option without a value.
    #[error("{at}: the value is missing; write it behind the name or remove the line")]
    MissingValue {
        /// The line.
        at: Place,
    },
    /// A value starts with a double quote that is never closed.
    #[error("{at}: the closing double quote is missing; add it at the end of the value")]
    UnclosedQuote {
        /// The line.
        at: Place,
    },
    /// Something other than a comment follows a quoted value.
    #[error(
        "{at}: there is text after the closing double quote; put one value on each line, and comments behind a #"
    )]
    TextAfterQuote {
        /// The line.
        at: Place,
    },
    /// A value holds a NUL byte.
    #[error("{at}: the value holds a NUL byte; remove it, and check that the file is plain text")]
    NulByte {
        /// The line.
        at: Place,
    },
    /// Not a value that the option can take.
    #[error("{at}: '{found}' is not {wanted}; {remedy}")]
    BadValue {
        /// The line.
        at: Place,
        /// The value, made safe to print.
        found: String,
        /// What it should be, with its article.
        wanted: &'static str,
        /// What to write instead.
        remedy: &'static str,
    },
    /// A number above what the option can take.
    #[error("{at}: {found} is too large; write at most {limit}")]
    TooLarge {
        /// The line.
        at: Place,
        /// The value, made safe to print.
        found: String,
        /// The largest value.
        limit: u64,
    },
    /// No way to reach clamd is configured.
    #[error(
        "{}: LocalSocket: the option is missing; set it to clamd's socket, for example LocalSocket /run/clamav/clamd.ctl, or name a remote clamd by TCPAddr and TCPSocket",
        shown_path(.file)
    )]
    NoServer {
        /// The file.
        file: PathBuf,
    },
    /// `TCPSocket` without an address to call.
    #[error(
        "{at}: TCPAddr is missing, and onacc cannot call a clamd that listens on any address; name one with TCPAddr, or add a LocalSocket line"
    )]
    NoTcpAddress {
        /// The line that sets the port.
        at: Place,
    },
    /// `TCPAddr` without a port.
    #[error(
        "{at}: TCPSocket is missing; set it to clamd's port, for example TCPSocket 3310, or add a LocalSocket line"
    )]
    NoTcpPort {
        /// The first line that names an address.
        at: Place,
    },
    /// Nothing would be protected.
    #[error(
        "{}: OnAccessIncludePath: the option is missing, so nothing would be protected; name a directory, for example OnAccessIncludePath /home",
        shown_path(.file)
    )]
    NothingToWatch {
        /// The file.
        file: PathBuf,
    },
}

impl ConfigError {
    /// Where it is, if it is in one place.
    pub fn origin(&self) -> Option<&Origin> {
        let place = match self {
            Self::Unreadable { .. } | Self::NoServer { .. } | Self::NothingToWatch { .. } => None,
            Self::Syntax { at, .. }
            | Self::UnknownKey { at, .. }
            | Self::WrongType { at, .. }
            | Self::BadPattern { at, .. }
            | Self::Conflict { at, .. }
            | Self::Example { at }
            | Self::UnknownOption { at, .. }
            | Self::MissingValue { at }
            | Self::UnclosedQuote { at }
            | Self::TextAfterQuote { at }
            | Self::NulByte { at }
            | Self::BadValue { at, .. }
            | Self::TooLarge { at, .. }
            | Self::NoTcpAddress { at }
            | Self::NoTcpPort { at } => Some(at),
        };
        place.map(|place| &place.origin)
    }
}

fn unknown_remedy(suggestion: Option<&'static str>) -> String {
    match suggestion {
        Some(name) => format!("did you mean {name}?"),
        None => "remove the line, or see clamd.conf(5) for the options".to_owned(),
    }
}

/// Bytes from the file, printable on one line and not too long.
pub(super) fn shown(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut characters = text.chars();
    let mut out = printable_characters(characters.by_ref().take(LONGEST_SHOWN));
    if characters.next().is_some() {
        out.push_str("...");
    }
    out
}

/// A path, printable on one line.
pub(super) fn shown_path(path: &Path) -> String {
    printable_characters(String::from_utf8_lossy(path.as_os_str().as_bytes()).chars())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_reads_file_line_column_option() {
        let place = Place {
            origin: Origin::File {
                file: "/etc/clamav/clamd.conf".into(),
                line: 7,
                column: 3,
            },
            option: "LogTime".into(),
        };
        assert_eq!(place.to_string(), "/etc/clamav/clamd.conf:7:3: LogTime");
        assert_eq!(format!("{place:#}"), "/etc/clamav/clamd.conf:7: LogTime");
    }

    #[test]
    fn what_is_shown_stays_on_one_line() {
        assert_eq!(shown(b"a\x1b[2Jb\r\xff"), "a\\u{1b}[2Jb\\r\u{fffd}");
        assert_eq!(shown_path(Path::new("/a\nb")), "/a\\nb");
        assert_eq!(shown("\u{202e}x".as_bytes()), "\\u{202e}x");
    }

    #[test]
    fn long_values_are_cut() {
        let text = shown(&[b'x'; 5000]);
        assert_eq!(text.len(), LONGEST_SHOWN + 3);
        assert!(text.ends_with("x..."));
        assert_eq!(shown(&[b'x'; LONGEST_SHOWN]).len(), LONGEST_SHOWN);
    }
}
