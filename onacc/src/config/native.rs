//! onacc.toml: bytes in, settings and their places out.
//!
//! Owns the form of the file: tables and keys as `keys` has them, and the tables
//! that come many times, in `native/tables.rs`. Must not: know defaults, look at
//! the disk, or stop at the first error. Tested in `native/tests.rs`.

use std::borrow::Cow;
use std::ffi::OsString;
use std::ops::Range;
use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::clamd_conf;
use super::entry::{Entry, Located, Origin, Parsed, Value};
use super::error::{ConfigError, Place, shown};
use super::keys::{self, Key};
use super::options::{self, Kind};
use super::servers::Server;
use super::settings::PathRule;

mod tables;

/// What onacc.toml says.
#[derive(Debug, Default)]
pub struct Native {
    /// The keys that exist once.
    pub parsed: Parsed,
    /// Lists that are set to nothing: they hide those of clamd.conf.
    pub emptied: Vec<Located<()>>,
    /// Each `[[server]]`.
    pub servers: Vec<Located<Server>>,
    /// Each `[[path]]`.
    pub path_rules: Vec<Located<PathRule>>,
}

/// Parses a whole onacc.toml. `file` only serves to say where something is.
pub fn parse(bytes: &[u8], file: &Path) -> Native {
    let mut reader = Reader {
        file,
        bytes,
        native: Native::default(),
    };
    reader.read();
    reader.native
}

struct Reader<'a> {
    file: &'a Path,
    bytes: &'a [u8],
    native: Native,
}

type TomlKey<'i> = Spanned<Cow<'i, str>>;
type TomlValue<'i> = Spanned<DeValue<'i>>;

impl Reader<'_> {
    fn read(&mut self) {
        let text = match std::str::from_utf8(self.bytes) {
            Ok(text) => text,
            Err(error) => {
                let at = error.valid_up_to();
                let problem = "this is not UTF-8; a path that is not can be written in clamd.conf";
                self.syntax(at, problem);
                return;
            }
        };
        let (table, errors) = DeTable::parse_recoverable(text);
        if errors.is_empty() {
            self.root(table.get_ref());
        }
        for error in errors {
            let at = error.span().map_or(0, |span| span.start);
            self.syntax(at, error.message());
        }
        let place = |error: &ConfigError| match error.origin() {
            Some(Origin::File { line, column, .. }) => (*line, *column),
            _ => (0, 0),
        };
        self.native.parsed.errors.sort_by_key(place);
    }

    fn root(&mut self, root: &DeTable<'_>) {
        for (name, value) in root {
            match keys::table_of(name.get_ref()) {
                None => self.unknown_table(name),
                Some(table) if table.many => self.many_tables(table.name, name, value),
                Some(table) => match value.get_ref() {
                    DeValue::Table(entries) => self.table(table.name, entries),
                    other => self.wrong_type(
                        name.get_ref(),
                        value.span(),
                        other,
                        format!("a table: [{}]", table.name),
                    ),
                },
            }
        }
    }

    fn table(&mut self, table: &'static str, entries: &DeTable<'_>) {
        for (name, value) in entries {
            let Some(key) = keys::find(table, name.get_ref()) else {
                self.unknown_key(table, name);
                continue;
            };
            match value.get_ref() {
                DeValue::Array(items) if key.many => {
                    for item in items {
                        self.entry(key, item);
                    }
                    if items.is_empty() {
                        self.native.emptied.push(Located {
                            value: (),
                            origin: self.origin(value.span().start),
                            option: key.name,
                        });
                    }
                }
                _ => self.entry(key, value),
            }
        }
    }

    fn entry(&mut self, key: &'static Key, value: &TomlValue<'_>) {
        if let Some(Located { value, origin, .. }) = self.typed(key, value) {
            self.native.parsed.entries.push(Entry {
                name: key.name,
                value,
                origin,
            });
        }
    }

    /// The value, if it is of the kind that the key takes.
    fn typed(&mut self, key: &'static Key, value: &TomlValue<'_>) -> Option<Located<Value>> {
        let at = Located {
            value: (),
            origin: self.origin(value.span().start),
            option: key.name,
        };
        let checked = match (key.kind, value.get_ref()) {
            (Kind::Bool, DeValue::Boolean(truth)) => Ok(Value::Bool(*truth)),
            (Kind::Number | Kind::Size, DeValue::Integer(number)) => {
                let value = u64::from_str_radix(number.as_str(), number.radix());
                match (value, key.kind) {
                    (Ok(0), Kind::Size) => Ok(Value::Size(u64::MAX)),
                    (Ok(value), Kind::Size) => Ok(Value::Size(value)),
                    (Ok(value), _) => Ok(Value::Number(value)),
                    (Err(_), _) => Err(ConfigError::BadValue {
                        at: at.place(),
                        found: shown(number.as_str().as_bytes()),
                        wanted: "a number from 0 to 2^64 - 1",
                        remedy: "correct it, or remove the line to have the default",
                    }),
                }
            }
            (Kind::Size, DeValue::String(text)) => {
                clamd_conf::typed(text.as_bytes(), Kind::Size, &|| at.place())
            }
            (Kind::String, DeValue::String(text)) => match text.as_bytes() {
                [] => Err(ConfigError::MissingValue { at: at.place() }),
                bytes if bytes.contains(&0) => Err(ConfigError::NulByte { at: at.place() }),
                _ => Ok(Value::Text(OsString::from(text.as_ref()))),
            },
            (_, other) => {
                self.wrong_type(key.name, value.span(), other, wanted(key));
                return None;
            }
        };
        match checked {
            Ok(value) => Some(at.with(value)),
            Err(error) => {
                self.error(error);
                None
            }
        }
    }

    fn unknown_table(&mut self, name: &TomlKey<'_>) {
        let text = name.get_ref();
        let remedy = if let Some(key) = keys::KEYS.iter().find(|key| key.name == *text) {
            format!("it belongs into [{}]", key.table)
        } else {
            let names: Vec<_> = keys::TABLES.iter().map(|table| table.name).collect();
            match options::nearest(text.as_bytes(), names.iter().copied()) {
                Some(near) => format!("did you mean [{near}]?"),
                None => format!("the tables are {}", names.join(", ")),
            }
        };
        self.unknown("table", name, remedy);
    }

    fn unknown_key(&mut self, table: &str, name: &TomlKey<'_>) {
        let text = name.get_ref().as_bytes();
        let same_name = |key: &&Key| key.name.as_bytes() == text;
        let here = keys::KEYS.iter().filter(|key| key.table == table);
        let remedy = if let Some(key) = keys::KEYS.iter().find(same_name) {
            format!("it belongs into [{}]", key.table)
        } else if let Some(near) = options::nearest(text, here.map(|key| key.name)) {
            format!("did you mean {near}?")
        } else if let Some(near) = options::nearest(text, keys::KEYS.iter().map(|key| key.name)) {
            let table = keys::KEYS.iter().find(|key| key.name == near);
            format!(
                "did you mean {near} in [{}]?",
                table.map_or("", |key| key.table)
            )
        } else if options::find(text).is_some() {
            "this is an option of clamd alone, leave it in clamd.conf".to_owned()
        } else {
            "remove it, or see onacc.toml(5) for the keys".to_owned()
        };
        self.unknown("key", name, remedy);
    }

    fn unknown(&mut self, what: &'static str, name: &TomlKey<'_>, remedy: String) {
        let at = self.place(name.get_ref(), name.span().start);
        self.error(ConfigError::UnknownKey { at, what, remedy });
    }

    fn wrong_type(&mut self, name: &str, span: Range<usize>, found: &DeValue<'_>, wanted: String) {
        let found = match found {
            DeValue::String(_) => "a string",
            DeValue::Integer(_) => "a number",
            DeValue::Float(_) => "a fraction",
            DeValue::Boolean(_) => "a truth value",
            DeValue::Datetime(_) => "a date",
            DeValue::Array(_) => "a list",
            DeValue::Table(_) => "a table",
        };
        let at = self.place(name, span.start);
        self.error(ConfigError::WrongType { at, found, wanted });
    }

    fn syntax(&mut self, at: usize, problem: &str) {
        let at = self.place("syntax", at);
        let problem = crate::observe::printable_characters(problem.chars());
        self.error(ConfigError::Syntax { at, problem });
    }

    fn error(&mut self, error: ConfigError) {
        self.native.parsed.errors.push(error);
    }

    fn place(&self, name: &str, at: usize) -> Place {
        Place {
            origin: self.origin(at),
            option: shown(name.as_bytes()),
        }
    }

    fn origin(&self, at: usize) -> Origin {
        let before = &self.bytes[..at.min(self.bytes.len())];
        let start = before.iter().rposition(|byte| *byte == b'\n');
        Origin::File {
            file: self.file.to_owned(),
            line: before.split(|byte| *byte == b'\n').count(),
            column: before.len() - start.map_or(0, |newline| newline + 1) + 1,
        }
    }
}

/// What a key takes, with an example.
fn wanted(key: &Key) -> String {
    let one = match key.kind {
        Kind::Bool => "true or false",
        Kind::Number => "a number: 5",
        Kind::Size => "a number of bytes or a size in quotes: \"5M\"",
        Kind::String => "text in quotes: \"...\"",
    };
    match (key.many, key.kind) {
        (false, _) => one.to_owned(),
        (true, Kind::Number) => "a list of numbers: [5, 6]".to_owned(),
        (true, _) => "a list of texts in quotes: [\"...\", \"...\"]".to_owned(),
    }
}

#[cfg(test)]
mod tests;
