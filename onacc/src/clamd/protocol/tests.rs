//! Every reply of clamd, and what is none.

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

#[test]
fn every_reply_of_clamd_is_understood() {
    for (text, wanted) in [
        ("stream: OK", Reply::Clean),
        (
            "stream: Win.Test-1 FOUND",
            Reply::Found("Win.Test-1".into()),
        ),
        ("/a/b: Empty file", Reply::Clean),
        ("/a/b: Excluded", Reply::Clean),
        ("/a/b: Excluded (another filesystem)", Reply::Clean),
        (
            "/a/b: Not supported file type ERROR",
            Reply::Error("Not supported file type".into()),
        ),
        (
            "/a: File path check failure: No such file or directory. ERROR",
            Reply::Error("File path check failure: No such file or directory.".into()),
        ),
        (
            "INSTREAM size limit exceeded. ERROR",
            Reply::Error("INSTREAM size limit exceeded.".into()),
        ),
        (
            "Command invalid inside IDSESSION. ERROR",
            Reply::Error("Command invalid inside IDSESSION.".into()),
        ),
        ("UNKNOWN COMMAND", Reply::Error("UNKNOWN COMMAND".into())),
    ] {
        assert_eq!(reply(text), wanted, "{text}");
    }
}

#[test]
fn an_error_wins_over_ok_and_all_signatures_are_kept() {
    let mut matches = Matches::default();
    for text in [
        "/x: Not supported file type ERROR",
        "/x: OK",
        "/x: A FOUND",
        "/x: B FOUND",
        "/x: A FOUND",
        "/x: Later ERROR",
    ] {
        matches.take(parse_path_record(text.as_bytes(), b"/x"));
    }
    assert_eq!(matches.signatures, ["A", "B"]);
    assert_eq!(matches.error.as_deref(), Some("Not supported file type"));
    assert!(Reply::Error(String::new()).badness() > Reply::Clean.badness());
    assert!(Reply::Found(String::new()).badness() > Reply::Error(String::new()).badness());
}

#[test]
fn a_path_may_look_like_a_verdict() {
    let path = b"/x: OK";
    let found = Reply::Found("S".into());
    assert_eq!(parse_path_record(b"/x: OK: S FOUND", path), found);
    // clamd resolved a symlink on the way.
    assert_eq!(parse_path_record(b"/real/x: S FOUND", path), found);
    assert_eq!(
        parse_path_record(b"/x: OK: a: b ERROR", path),
        Reply::Error("a: b".into())
    );
    assert_eq!(
        scan_all_matches(b"/a b").as_deref(),
        Some(&b"zALLMATCHSCAN /a b\0"[..])
    );
    assert!(scan_all_matches(b"/a\0b").is_none());
    assert!(scan_all_matches(&[b'/'; 4081]).is_none());
}

#[test]
fn the_commands_of_clamd_are_listed() {
    let text = "ClamAV 1.4.6/27000/Mon| COMMANDS: SCAN QUIT FILDES";
    assert_eq!(
        parse_commands(text),
        Some(("ClamAV 1.4.6/27000/Mon", vec!["SCAN", "QUIT", "FILDES"]))
    );
    assert_eq!(parse_commands("ClamAV 1.4.6"), None);
}

/// All errors of facts/clamonacc.md and of clamd's `cl_strerror`.
const ERRORS: [&str; 27] = [
    "Can't access file",
    "Can't open file or directory",
    "Can't create new file",
    "Can't create temporary directory",
    "Can't create temporary file",
    "Can't allocate memory",
    "Can't map file into memory",
    "Can't read file",
    "Can't seek in file",
    "Can't write to file",
    "Can't lock database directory",
    "Exceeded time limit",
    "Memory allocation failure",
    "Broken or not a CVD file",
    "Malformed database",
    "Unspecified error",
    "Unknown error code",
    "Error writing to temporary file",
    "Not a regular file",
    "Not supported file type",
    "Access denied.",
    "lstat() failed: Permission denied.",
    "File path check failure: No such file or directory.",
    "No file descriptor received.",
    "PROTOCOL ERROR: ancillary data sent without FILDES.",
    "INSTREAM size limit exceeded.",
    "ALLMATCHSCAN command disabled by clamd configuration.",
];

#[test]
fn every_error_of_clamd_is_an_error_in_its_own_words() {
    for words in ERRORS {
        for subject in ["", "fd[12]: ", "stream: ", "/a: b/c OK: "] {
            let text = format!("{subject}{words} ERROR");
            let Reply::Error(said) = reply(&text) else {
                panic!("{text} is no error");
            };
            // Where no subject is said, the words' own colon is taken for its end.
            let whole = said.ends_with(words);
            assert!(whole || words.ends_with(&said), "{text}: {said}");
        }
        let path = b"/x: y FOUND";
        let record = [&path[..], b": ", words.as_bytes(), b" ERROR"].concat();
        let said = parse_path_record(&record, path);
        assert_eq!(said, Reply::Error(words.into()), "{words}");
    }
    // Without the word ERROR: answers to what a scan never is.
    for text in [
        "UNKNOWN COMMAND",
        "COMMAND UNAVAILABLE",
        "RELOADING",
        "DBUPTODATE",
        "fd[3]: no reply from clamd",
        "stream: Unknown",
    ] {
        assert!(matches!(reply(text), Reply::Error(_)), "{text}");
    }
    // And outside of any number the session is over, in clamd's words.
    for text in ["COMMAND READ TIMED OUT", "UNKNOWN COMMAND", "fd[3]: OK"] {
        let error = parse_record(text.as_bytes()).expect_err(text);
        assert!(error.to_string().contains(text), "{error}");
    }
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
