//! The parser of clamd.conf: bytes in, typed entries out.
//!
//! Owns the line format. Must not open files, know defaults, or know what an
//! option is good for; `settings` does that. What clamd accepts is accepted,
//! but for what it silently reads as something else. Tested in
//! `clamd_conf/tests.rs`, also with generated and with random files.
//!
//! The format, one option on each line:
//! - Blanks around names and values do not count, a CR at the line end neither.
//!   A line may have any length.
//! - A line that starts with `#` is a comment.
//! - A value may stand in double quotes, and is then kept as it is. The closing
//!   quote is the first one with a blank, a `#` or the line end behind it; only
//!   a comment may follow.
//! - Outside quotes, a `#` behind a blank starts a comment. Versions of clamd
//!   differ on a `#` inside a word: 1.4 keeps it, later ones cut there. For a
//!   text it is kept, with a warning: cut, `/srv/a#b` would exclude all of
//!   `/srv/a`.

use std::collections::HashMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use super::entry::{Entry, Origin, Parsed, Value};
use super::error::{ConfigError, Place, shown, shown_path};
use super::options::{self, Kind, OptionInfo};

/// Parses a whole clamd.conf. `file` only serves to say where something is.
pub fn parse(bytes: &[u8], file: &Path) -> Parsed {
    let mut parser = Parser {
        file,
        first_lines: HashMap::new(),
        parsed: Parsed::default(),
    };
    for (index, line) in bytes.split(|&byte| byte == b'\n').enumerate() {
        if let Err(error) = parser.line(line, index + 1) {
            parser.parsed.errors.push(error);
        }
    }
    parser.parsed
}

struct Parser<'a> {
    file: &'a Path,
    /// Where each option that is not repeatable was first set.
    first_lines: HashMap<&'static str, usize>,
    parsed: Parsed,
}

impl Parser<'_> {
    fn line(&mut self, whole: &[u8], number: usize) -> Result<(), ConfigError> {
        let line = trim(whole.strip_suffix(b"\r").unwrap_or(whole));
        if line.is_empty() || line[0] == b'#' {
            return Ok(());
        }
        let (name, rest) = match line.iter().position(|&byte| is_blank(byte)) {
            Some(blank) => (&line[..blank], trim(&line[blank..])),
            None => (line, &line[..0]),
        };
        let origin = |part: &[u8]| Origin::File {
            file: self.file.to_owned(),
            line: number,
            column: offset(whole, part) + 1,
        };
        let at = || Place {
            origin: origin(name),
            option: shown(name),
        };
        let at_value = || Place {
            origin: origin(rest),
            option: shown(name),
        };
        // clamd looks at the first seven letters only; no option starts so.
        if name.starts_with(b"Example") {
            return Err(ConfigError::Example { at: at() });
        }
        // clamd takes so short a line for an empty one.
        if line.len() == 1 {
            let warning = format!("{:#}: a single character is no option, ignored", at());
            self.parsed.warnings.push(warning);
            return Ok(());
        }
        let Some(option) = options::find(name) else {
            let suggestion = options::suggest(name);
            return Err(ConfigError::UnknownOption {
                at: at(),
                suggestion,
            });
        };
        if option.deprecated {
            let file = shown_path(self.file);
            let warning = format!(
                "Ignoring deprecated option {} at {file}:{number}",
                option.name
            );
            self.parsed.warnings.push(warning);
            return Ok(());
        }
        let Raw { bytes, warning } = raw_value(rest, option.kind, &at_value)?;
        let value = typed(bytes, option.kind, &at_value)?;
        let warning = warning.map(|text| format!("{:#}: {text}", at()));
        let entry = Entry {
            name: option.name,
            value,
            origin: origin(rest),
        };
        self.parsed.warnings.extend(warning);
        self.add(option, entry, number);
        Ok(())
    }

    fn add(&mut self, option: &'static OptionInfo, entry: Entry, line: usize) {
        if !option.repeatable {
            let first = *self.first_lines.entry(option.name).or_insert(line);
            if first != line {
                let file = shown_path(self.file);
                self.parsed.warnings.push(format!(
                    "{file}:{line}: {}: ignored, line {first} has set it already",
                    option.name
                ));
                return;
            }
        }
        self.parsed.entries.push(entry);
    }
}

/// The bytes of a value, freed of quotes and comments.
struct Raw<'a> {
    bytes: &'a [u8],
    warning: Option<&'static str>,
}

/// Takes quotes and comments off.
fn raw_value<'a>(
    rest: &'a [u8],
    kind: Kind,
    at: &impl Fn() -> Place,
) -> Result<Raw<'a>, ConfigError> {
    let raw = match rest.strip_prefix(b"\"") {
        Some(quoted) => Raw {
            bytes: quoted_value(quoted, at)?,
            warning: None,
        },
        None => plain_value(rest, kind),
    };
    if raw.bytes.is_empty() {
        return Err(ConfigError::MissingValue { at: at() });
    }
    if raw.bytes.contains(&0) {
        return Err(ConfigError::NulByte { at: at() });
    }
    Ok(raw)
}

/// The value up to its closing quote; `quoted` starts behind the opening one.
fn quoted_value<'a>(quoted: &'a [u8], at: &impl Fn() -> Place) -> Result<&'a [u8], ConfigError> {
    let closes = |&index: &usize| {
        let next = quoted.get(index + 1).copied();
        quoted[index] == b'"' && next.is_none_or(|byte| is_blank(byte) || byte == b'#')
    };
    let Some(end) = (0..quoted.len()).find(closes) else {
        return Err(ConfigError::UnclosedQuote { at: at() });
    };
    let behind = trim(&quoted[end + 1..]);
    if !behind.is_empty() && behind[0] != b'#' {
        return Err(ConfigError::TextAfterQuote { at: at() });
    }
    Ok(&quoted[..end])
}

/// A value without quotes, cut at its comment.
fn plain_value(rest: &[u8], kind: Kind) -> Raw<'_> {
    if kind != Kind::String {
        // No such value can hold a #, so any # starts a comment.
        let end = rest.iter().position(|&byte| byte == b'#');
        let bytes = trim(&rest[..end.unwrap_or(rest.len())]);
        return Raw {
            bytes,
            warning: None,
        };
    }
    let comment = (0..rest.len())
        .find(|&index| rest[index] == b'#' && (index == 0 || is_blank(rest[index - 1])));
    let bytes = trim(&rest[..comment.unwrap_or(rest.len())]);
    let warning = if bytes.contains(&b'#') {
        Some("the # is taken as part of the value; put the value in double quotes to make it clear")
    } else if comment.is_some() {
        Some(
            "the text from # on is taken as a comment; put the value in double quotes if it is part of it",
        )
    } else {
        None
    };
    Raw { bytes, warning }
}

/// Checks a value against the kind of its option.
pub(super) fn typed(
    bytes: &[u8],
    kind: Kind,
    at: &impl Fn() -> Place,
) -> Result<Value, ConfigError> {
    match kind {
        Kind::Bool => match truth(bytes) {
            Some(value) => Ok(Value::Bool(value)),
            None => Err(bad(at(), bytes, "a truth value", "write yes or no")),
        },
        Kind::Number => {
            if !is_number(bytes) {
                let remedy = "write digits only, or remove the line to have the default";
                return Err(bad(at(), bytes, "a number", remedy));
            }
            match decimal(bytes) {
                Some(value) => Ok(Value::Number(value)),
                None => Err(too_large(at(), bytes)),
            }
        }
        Kind::Size => {
            let (digits, shift) = split_unit(bytes);
            if !is_number(digits) {
                let remedy = "write digits and, if wanted, one of K, M, G, for example 5M";
                return Err(bad(at(), bytes, "a size", remedy));
            }
            match decimal(digits).and_then(|value| value.checked_mul(1 << shift)) {
                Some(0) => Ok(Value::Size(u64::MAX)),
                Some(value) => Ok(Value::Size(value)),
                None => Err(too_large(at(), bytes)),
            }
        }
        Kind::String => Ok(Value::Text(OsString::from_vec(bytes.to_vec()))),
    }
}

pub(crate) fn truth(bytes: &[u8]) -> Option<bool> {
    let is_any = |words: [&[u8]; 3]| words.iter().any(|word| bytes.eq_ignore_ascii_case(word));
    if is_any([b"yes", b"true", b"1"]) {
        Some(true)
    } else if is_any([b"no", b"false", b"0"]) {
        Some(false)
    } else {
        None
    }
}

fn is_number(bytes: &[u8]) -> bool {
    !bytes.is_empty() && bytes.iter().all(u8::is_ascii_digit)
}

/// The number that these digits make, if it fits.
fn decimal(digits: &[u8]) -> Option<u64> {
    digits.iter().try_fold(0_u64, |sum, digit| {
        sum.checked_mul(10)?.checked_add(u64::from(digit - b'0'))
    })
}

/// The digits of a size, and how far to shift the number they make.
fn split_unit(bytes: &[u8]) -> (&[u8], u32) {
    match bytes {
        [digits @ .., b'K' | b'k'] => (digits, 10),
        [digits @ .., b'M' | b'm'] => (digits, 20),
        [digits @ .., b'G' | b'g'] => (digits, 30),
        digits => (digits, 0),
    }
}

fn bad(at: Place, found: &[u8], wanted: &'static str, remedy: &'static str) -> ConfigError {
    ConfigError::BadValue {
        at,
        found: shown(found),
        wanted,
        remedy,
    }
}

fn too_large(at: Place, found: &[u8]) -> ConfigError {
    ConfigError::TooLarge {
        at,
        found: shown(found),
        limit: u64::MAX,
    }
}

/// Where `part` begins, which is a part of `whole`.
fn offset(whole: &[u8], part: &[u8]) -> usize {
    (part.as_ptr() as usize).saturating_sub(whole.as_ptr() as usize)
}

fn is_blank(byte: u8) -> bool {
    byte == b' ' || byte == b'\t'
}

fn trim(mut bytes: &[u8]) -> &[u8] {
    while let [first, rest @ ..] = bytes
        && is_blank(*first)
    {
        bytes = rest;
    }
    while let [rest @ .., last] = bytes
        && is_blank(*last)
    {
        bytes = rest;
    }
    bytes
}

#[cfg(test)]
mod tests;
