use onacc::observe::printable;

/// A file name in a log line: it stays one line, hides nothing, and printing it
/// twice changes nothing more.
pub fn log_text(bytes: &[u8]) {
    let text = printable(bytes);
    assert!(!text.chars().any(char::is_control));
    assert!(!text.contains(['\u{2028}', '\u{202e}', '\u{2066}']));
    assert!(text.len() >= bytes.len());
    assert_eq!(printable(text.as_bytes()), text);
}
