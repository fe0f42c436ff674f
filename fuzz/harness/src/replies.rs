use onacc::clamd::protocol::{
    Matches, Numbered, Reply, ReplyReader, parse_commands, parse_path_record,
};

fn all(pieces: &[&[u8]]) -> Vec<Numbered> {
    let mut reader = ReplyReader::default();
    let mut out = Vec::new();
    for piece in pieces {
        reader.push(piece);
        loop {
            match reader.next_reply() {
                Ok(Some(reply)) => out.push(reply),
                Ok(None) => break,
                Err(_) => return out,
            }
        }
    }
    out
}

/// clamd's replies, split at a place that the first byte chooses: the split must
/// not change what comes out, and "clean" needs the words that say so.
pub fn replies(input: &[u8]) {
    let Some((cut, bytes)) = input.split_first() else {
        return;
    };
    let (head, tail) = bytes.split_at(usize::from(*cut).min(bytes.len()));
    let replies = all(&[bytes]);
    assert_eq!(replies, all(&[head, tail]));
    let clean = replies
        .iter()
        .filter(|one| one.reply == Reply::Clean)
        .count();
    let words = [
        &b"OK"[..],
        b"Empty file",
        b"Excluded",
        b"Excluded (another filesystem)",
    ];
    let said = bytes
        .split(|byte| *byte == 0 || *byte == b'\n')
        .filter(|record| words.iter().any(|word| record.ends_with(word)))
        .count();
    assert!(clean <= said, "{clean} clean replies of {said} that say so");
    path_records(head, tail);
}

/// Whatever the path looks like, the verdict behind it is what counts; and of
/// several records an error or a signature is never lost.
fn path_records(path: &[u8], verdict: &[u8]) {
    let reply = |path: &[u8]| parse_path_record(&[path, b": ", verdict].concat(), path);
    let told = reply(path);
    assert_eq!(told, reply(b"/x"));
    let mut matches = Matches::default();
    matches.take(told.clone());
    matches.take(Reply::Clean);
    let bad = !matches.signatures.is_empty() || matches.error.is_some();
    assert_eq!(bad, told != Reply::Clean);
    // Any text will do; it must not panic.
    let _ = parse_commands(&String::from_utf8_lossy(verdict));
}
