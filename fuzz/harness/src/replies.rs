use onacc::clamd::protocol::{Numbered, Reply, ReplyReader};

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
    let words = [&b"OK"[..], b"Empty file", b"Excluded"];
    let said = bytes
        .split(|byte| *byte == 0 || *byte == b'\n')
        .filter(|record| words.iter().any(|word| record.ends_with(word)))
        .count();
    assert!(clean <= said, "{clean} clean replies of {said} that say so");
}
