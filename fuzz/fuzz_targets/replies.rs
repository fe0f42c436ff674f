//! clamd's replies, split at a place that the input chooses: the split must not
//! change what comes out.
#![no_main]
use libfuzzer_sys::fuzz_target;
use onacc::clamd::protocol::{Numbered, ReplyReader};

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

fuzz_target!(|input: (u8, &[u8])| {
    let (cut, bytes) = input;
    let (head, tail) = bytes.split_at(usize::from(cut).min(bytes.len()));
    assert_eq!(all(&[bytes]), all(&[head, tail]));
});
