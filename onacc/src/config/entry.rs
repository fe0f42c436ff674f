//! One setting as a source states it: which, what, and where.
//!
//! Owns the types that all sources (clamd.conf, onacc.toml, lists, the command
//! line) are brought to before anything is made of them. Must not: read or
//! check. Tested where they are filled in.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;

use super::error::{ConfigError, Place, shown_path};

/// A value, in the form its option asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// Yes or no.
    Bool(bool),
    /// A count, a time, an identifier.
    Number(u64),
    /// A number of bytes; `u64::MAX` means unlimited, written as 0.
    Size(u64),
    /// Raw bytes: a path need not be UTF-8. Never empty, never with a NUL.
    Text(OsString),
}

/// Who set a value.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Origin {
    /// A file.
    File {
        /// As it was named when it was opened.
        file: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// The byte in the line, counted from 1.
        column: usize,
    },
    /// The command line.
    CommandLine,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { file, line, .. } => write!(f, "{}:{line}", shown_path(file)),
            Self::CommandLine => f.write_str("command line"),
        }
    }
}

/// A setting of one option.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The option, as the tables name it.
    pub name: &'static str,
    /// What it is set to.
    pub value: Value,
    /// Where.
    pub origin: Origin,
}

/// What one source says.
#[derive(Debug, Default)]
pub struct Parsed {
    /// The settings in the order of the source. Of clamd.conf without deprecated
    /// options, and without further lines of an option that is not repeatable.
    pub entries: Vec<Entry>,
    /// What should be logged, one line each.
    pub warnings: Vec<String>,
    /// What cannot be used, in the order of the source.
    pub errors: Vec<ConfigError>,
}

/// A value and where it was set. Displays its place, as `FILE:LINE: OPTION`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Located<T> {
    /// The value.
    pub value: T,
    /// Where it was set.
    pub origin: Origin,
    /// The option that set it, or the flag.
    pub option: &'static str,
}

impl<T> Located<T> {
    /// The same place with another value.
    pub fn with<U>(&self, value: U) -> Located<U> {
        Located {
            value,
            origin: self.origin.clone(),
            option: self.option,
        }
    }

    /// The same value, as if a flag had set it.
    pub(super) fn without_place(&self) -> Self
    where
        T: Clone,
    {
        Located {
            origin: Origin::CommandLine,
            ..self.clone()
        }
    }

    /// The place, for an error.
    pub(super) fn place(&self) -> Place {
        Place {
            origin: self.origin.clone(),
            option: self.option.to_owned(),
        }
    }
}

impl<T> fmt::Display for Located<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.origin, self.option)
    }
}
