//! Text from outside, made fit for a line: file names, clamd's words, settings.
//!
//! Escapes what would break the line, forge another one, or play tricks on a
//! terminal. Pure; tested here.

/// Whether a character must not reach a log or a terminal as it is: control
/// characters, line separators, and those that turn the direction of writing.
fn is_tricky(character: char) -> bool {
    character.is_control()
        || matches!(character,
            '\u{200e}' | '\u{200f}' | '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Characters, with the tricky ones escaped.
pub fn printable_characters(characters: impl Iterator<Item = char>) -> String {
    let mut out = String::new();
    for character in characters {
        if is_tricky(character) {
            out.extend(character.escape_default());
        } else {
            out.push(character);
        }
    }
    out
}

/// Raw bytes: those that are not UTF-8 become `\xNN`.
pub fn printable(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        out.push_str(&printable_characters(chunk.valid().chars()));
        for byte in chunk.invalid() {
            out.extend(format!("\\x{byte:02x}").chars());
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_name_cannot_forge_a_line_or_turn_it_around() {
        assert_eq!(
            printable(b"/a\n/b: X FOUND\xff\x1b[0m"),
            "/a\\n/b: X FOUND\\xff\\u{1b}[0m"
        );
        assert_eq!(
            printable("a\u{202e}b\u{2066}".as_bytes()),
            "a\\u{202e}b\\u{2066}"
        );
        assert_eq!(printable("/gr\u{fc}\u{df}e".as_bytes()), "/gr\u{fc}\u{df}e");
    }
}
