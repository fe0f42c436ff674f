//! Each rule of the format, then generated and random files.

use std::os::unix::ffi::OsStrExt;

use proptest::prelude::*;

use super::*;

fn parsed(text: &str) -> Parsed {
    let parsed = parse(text.as_bytes(), Path::new("f"));
    assert!(parsed.errors.is_empty(), "{:?}", parsed.errors);
    parsed
}

/// What the only error says, without its column.
fn error(text: &str) -> String {
    let errors = parse(text.as_bytes(), Path::new("f")).errors;
    assert_eq!(errors.len(), 1, "{errors:?}");
    without_column(&errors[0].to_string())
}

fn without_column(message: &str) -> String {
    let parts: Vec<&str> = message.splitn(4, ':').collect();
    format!("{}:{}:{}", parts[0], parts[1], parts[3])
}

fn line(entry: &Entry) -> usize {
    match entry.origin {
        Origin::File { line, .. } => line,
        Origin::CommandLine => 0,
    }
}

fn says_nothing(text: &str) {
    let parsed = parsed(text);
    assert!(parsed.entries.is_empty() && parsed.warnings.is_empty());
}

/// The only value in the text.
fn value(text: &str) -> Value {
    let parsed = parsed(text);
    assert_eq!(parsed.entries.len(), 1, "{text:?}");
    parsed.entries[0].value.clone()
}

fn text(value: &str) -> Value {
    Value::Text(value.into())
}

#[test]
fn empty_lines_and_comments_say_nothing() {
    says_nothing("\n \t\n# LogTime yes\n  # x\0y\n\r\n");
    says_nothing("");
}

#[test]
fn lines_are_counted_from_one() {
    let parsed = parsed("# c\n\nLogTime yes\nUser clamav");
    let lines: Vec<_> = parsed.entries.iter().map(|e| (e.name, line(e))).collect();
    assert_eq!(lines, [("LogTime", 3), ("User", 4)]);
}

#[test]
fn the_sample_file_is_refused() {
    let wanted = "f:2: Example: this is still the sample file; edit it and remove the Example line";
    assert_eq!(error("# x\n  Example\n"), wanted);
    assert!(error("Examples are nice\n").contains("remove the Example line"));
    says_nothing("#Example\n");
}

#[test]
fn blanks_and_line_ends_do_not_count() {
    for line in [
        "LocalSocket /x y",
        " \tLocalSocket\t \t/x y \t ",
        "LocalSocket /x y\r\n",
        "LocalSocket \"/x y\" \t\r\n",
    ] {
        assert_eq!(value(line), text("/x y"), "{line:?}");
    }
    assert_eq!(value("LogTime yes\r\n"), Value::Bool(true));
}

#[test]
fn quotes_keep_everything() {
    assert_eq!(value("User \" a # b \""), text(" a # b "));
    assert_eq!(value("User \"a\"b\""), text("a\"b"));
    assert_eq!(value("User a\""), text("a\""));
    assert_eq!(value("LogTime \"no\""), Value::Bool(false));
}

#[test]
fn quotes_must_be_closed_and_hold_the_whole_value() {
    assert_eq!(
        error("User \"a\n"),
        "f:1: User: the closing double quote is missing; add it at the end of the value"
    );
    assert!(error("User \"").contains("closing double quote is missing"));
    assert!(error("User \"\"").contains("value is missing"));
    assert!(error("OnAccessIncludePath \"/a\" \"/b\"").contains("text after the closing"));
    assert!(error("User \"a\" b").contains("one value on each line"));
    assert_eq!(value("User \"a\" # the \"a\" team"), text("a"));
    assert_eq!(value("User \"a\"#b"), text("a"));
}

#[test]
fn a_hash_behind_a_blank_starts_a_comment() {
    let parsed = parsed("OnAccessIncludePath /home # all of \"them\"\n");
    assert_eq!(parsed.entries[0].value, text("/home"));
    assert_eq!(parsed.warnings.len(), 1);
    assert!(parsed.warnings[0].starts_with("f:1: OnAccessIncludePath: the text from # on"));
    assert!(error("User # clamav").contains("value is missing"));
}

#[test]
fn a_hash_inside_a_word_belongs_to_it() {
    let parsed = parsed("OnAccessExcludePath /srv/a#b # c");
    assert_eq!(parsed.entries[0].value, text("/srv/a#b"));
    assert_eq!(parsed.warnings.len(), 1);
    assert!(parsed.warnings[0].contains("taken as part of the value"));
}

#[test]
fn comments_behind_numbers_need_no_warning() {
    for (line, wanted) in [
        ("LogTime yes#", Value::Bool(true)),
        ("MaxQueue 7 # seven", Value::Number(7)),
        ("MaxFileSize 1K# one", Value::Size(1024)),
    ] {
        assert_eq!(value(line), wanted);
        assert!(parsed(line).warnings.is_empty());
    }
}

#[test]
fn truth_values() {
    for yes in ["yes", "YES", "True", "1"] {
        assert_eq!(value(&format!("LogTime {yes}")), Value::Bool(true));
    }
    for no in ["no", "No", "FALSE", "0"] {
        assert_eq!(value(&format!("LogTime {no}")), Value::Bool(false));
    }
    for bad in ["y", "yesss", "nope", "on", "2", "yes no"] {
        assert_eq!(
            error(&format!("\nLogTime {bad}")),
            format!("f:2: LogTime: '{bad}' is not a truth value; write yes or no")
        );
    }
}

#[test]
fn numbers() {
    assert_eq!(value("MaxQueue 0"), Value::Number(0));
    assert_eq!(value("MaxQueue 007"), Value::Number(7));
    assert_eq!(
        value(&format!("MaxQueue {}", u64::MAX)),
        Value::Number(u64::MAX)
    );
    for bad in ["-1", "+1", "5000L", "5M", "1.5", "x", "1 2"] {
        let message = error(&format!("OnAccessExcludeUID {bad}"));
        assert!(message.starts_with(&format!(
            "f:1: OnAccessExcludeUID: '{bad}' is not a number; "
        )));
    }
    assert_eq!(
        error("MaxQueue 18446744073709551616"),
        "f:1: MaxQueue: 18446744073709551616 is too large; write at most 18446744073709551615"
    );
}

#[test]
fn sizes() {
    for (written, wanted) in [
        ("1", 1),
        ("2k", 2 << 10),
        ("2K", 2 << 10),
        ("5M", 5 << 20),
        ("5m", 5 << 20),
        ("3G", 3 << 30),
        ("3g", 3 << 30),
        ("0", u64::MAX),
        ("0M", u64::MAX),
        ("17179869183G", 17_179_869_183 << 30),
    ] {
        assert_eq!(
            value(&format!("MaxFileSize {written}")),
            Value::Size(wanted)
        );
    }
    for bad in ["M", "5T", "5MB", "-5", "5 M", "x"] {
        assert!(error(&format!("MaxFileSize {bad}")).contains("is not a size; write digits"));
    }
    for large in ["17179869184G", "18446744073709551616"] {
        assert!(error(&format!("MaxFileSize {large}")).contains("too large"));
    }
}

#[test]
fn unknown_options_are_refused_with_a_guess() {
    assert_eq!(
        error("OnAccesPrevention yes"),
        "f:1: OnAccesPrevention: unknown option; did you mean OnAccessPrevention?"
    );
    assert!(error("Wallpaper blue").contains("unknown option; remove the line"));
    assert!(error("LogTime=yes").contains("did you mean LogTime?"));
    assert!(error("Us\0er x").starts_with("f:1: Us\\u{0}er: unknown option"));
}

#[test]
fn a_value_is_needed() {
    for line in ["User", "User ", "User\r\n", "User \r\n", "LogTime #yes"] {
        assert!(error(line).contains("the value is missing"), "{line:?}");
    }
}

#[test]
fn deprecated_options_are_ignored_with_a_warning() {
    let parsed = parsed("\nScanOnAccess banana\nScanOnAccess\n");
    assert!(parsed.entries.is_empty());
    assert_eq!(
        parsed.warnings,
        [
            "Ignoring deprecated option ScanOnAccess at f:2",
            "Ignoring deprecated option ScanOnAccess at f:3",
        ]
    );
}

#[test]
fn the_first_line_of_an_option_wins() {
    let parsed = parsed("LocalSocket /a\nLogTime yes\nLocalSocket /b\n");
    assert_eq!(parsed.entries.len(), 2);
    assert_eq!(parsed.entries[0].value, text("/a"));
    assert_eq!(
        parsed.warnings,
        ["f:3: LocalSocket: ignored, line 1 has set it already"]
    );
    // What is ignored must still be right, as with clamd.
    assert!(error("LogTime yes\nLogTime maybe").starts_with("f:2: "));
}

#[test]
fn every_error_is_told_with_its_column() {
    let errors = parse(
        b"Nope 1\n  LogTime  maybe\nUser\nLogTime yes\n",
        Path::new("f"),
    );
    let said: Vec<_> = errors.errors.iter().map(ToString::to_string).collect();
    assert_eq!(
        said,
        [
            "f:1:1: Nope: unknown option; remove the line, or see clamd.conf(5) for the options",
            "f:2:12: LogTime: 'maybe' is not a truth value; write yes or no",
            "f:3:1: User: the value is missing; write it behind the name or remove the line",
        ]
    );
    assert_eq!(errors.entries.len(), 1);
}

#[test]
fn repeatable_options_add_up() {
    let parsed = parsed("OnAccessIncludePath /a\nOnAccessIncludePath /b\n");
    assert_eq!(parsed.entries.len(), 2);
    assert!(parsed.warnings.is_empty());
}

#[test]
fn nul_bytes_are_refused() {
    assert!(error("User a\0b").starts_with("f:1: User: the value holds a NUL byte; "));
    assert!(error("User \"a\0b\"").contains("NUL byte"));
}

#[test]
fn paths_need_not_be_utf8() {
    let parsed = parse(b"OnAccessIncludePath /\xff\xfe", Path::new("f"));
    let Value::Text(path) = &parsed.entries[0].value else {
        panic!("not a text");
    };
    assert_eq!(path.as_bytes(), b"/\xff\xfe");
}

#[test]
fn lines_may_have_any_length() {
    let long = "x".repeat(100_000);
    assert_eq!(value(&format!("User {long}\n")), text(&long));
    assert!(error(&format!("MaxQueue {long}")).len() < 250);
    assert!(error(&format!("{long} yes")).len() < 250);
}

#[test]
fn a_single_character_is_ignored_as_clamd_does() {
    let parsed = parsed("x\n");
    assert!(parsed.entries.is_empty());
    assert_eq!(parsed.warnings.len(), 1);
}

/// A line that sets an option, and what must come out of it.
fn written() -> impl Strategy<Value = (Vec<u8>, Value, &'static OptionInfo)> {
    let settable: Vec<_> = options::all().iter().filter(|o| !o.deprecated).collect();
    prop::sample::select(settable).prop_flat_map(|option| {
        let value = match option.kind {
            Kind::Bool => any::<bool>()
                .prop_map(|v| {
                    (
                        if v { b"True".to_vec() } else { b"no".to_vec() },
                        Value::Bool(v),
                    )
                })
                .boxed(),
            Kind::Number => any::<u64>()
                .prop_map(|v| (v.to_string().into_bytes(), Value::Number(v)))
                .boxed(),
            Kind::Size => (1_u64..1 << 34)
                .prop_map(|v| (format!("{v}m").into_bytes(), Value::Size(v << 20)))
                .boxed(),
            Kind::String => prop::collection::vec(any::<u8>(), 1..60)
                .prop_filter("not to be written in quotes", |bytes| {
                    let ends_early = bytes
                        .windows(2)
                        .any(|pair| pair[0] == b'"' && matches!(pair[1], b' ' | b'\t' | b'#'));
                    !ends_early && !bytes.contains(&0) && !bytes.contains(&b'\n')
                })
                .prop_map(|bytes| {
                    let quoted = [b"\"", &bytes[..], b"\""].concat();
                    (quoted, Value::Text(OsString::from_vec(bytes)))
                })
                .boxed(),
        };
        let blanks = "[ \t]{0,3}";
        let end = prop::sample::select(vec!["\n", "\r\n", " \t\n", " # \"c\"\n", "\n\n#x\n"]);
        (value, blanks, "[ \t]{1,3}", end).prop_map(move |((raw, value), lead, gap, end)| {
            let line = [
                lead.as_bytes(),
                option.name.as_bytes(),
                gap.as_bytes(),
                &raw[..],
                end.as_bytes(),
            ]
            .concat();
            (line, value, option)
        })
    })
}

proptest! {
    #[test]
    fn never_panics(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        for error in parse(&bytes, Path::new("f")).errors {
            prop_assert!(!error.to_string().contains(['\n', '\r', '\0']));
        }
    }

    #[test]
    fn never_panics_on_nearly_right_lines(
        name in prop::sample::select(options::all().iter().map(|o| o.name).collect::<Vec<_>>()),
        rest in "[ \t]?[\"# a0-9KMG\t\r\0\u{e9}]{0,12}",
    ) {
        for error in parse(format!("{name}{rest}").as_bytes(), Path::new("f")).errors {
            let message = error.to_string();
            prop_assert!(message.starts_with("f:1:"));
            prop_assert!(message.contains("; "));
            prop_assert!(!message.contains(['\n', '\r', '\0']));
        }
    }

    #[test]
    fn valid_files_come_back(lines in prop::collection::vec(written(), 0..20)) {
        let mut file = Vec::new();
        let mut wanted: Vec<(&str, Value)> = Vec::new();
        for (line, value, option) in lines {
            file.extend(line);
            if option.repeatable || wanted.iter().all(|(name, _)| *name != option.name) {
                wanted.push((option.name, value));
            }
        }
        let parsed = parse(&file, Path::new("f"));
        prop_assert!(parsed.errors.is_empty());
        let found: Vec<_> = parsed.entries.into_iter().map(|e| (e.name, e.value)).collect();
        prop_assert_eq!(found, wanted);
    }
}
