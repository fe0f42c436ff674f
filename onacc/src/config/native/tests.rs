//! Types, places, unknown names, tables that come many times.

use proptest::prelude::*;

use super::*;
use crate::config::servers::Transfer;

fn read(text: &str) -> Native {
    let native = parse(text.as_bytes(), Path::new("n"));
    assert!(
        native.parsed.errors.is_empty(),
        "{:?}",
        native.parsed.errors
    );
    native
}

fn errors(text: &str) -> Vec<String> {
    let errors = parse(text.as_bytes(), Path::new("n")).parsed.errors;
    errors.iter().map(ToString::to_string).collect()
}

#[test]
fn values_come_with_their_places() {
    let native = read(
        "# x\n[scan]\n  OnAccessMaxFileSize = \"5M\"\n[scope]\nOnAccessIncludePath = [\"/a\",\n \"/b\"]\n",
    );
    let mut found: Vec<_> = native
        .parsed
        .entries
        .iter()
        .map(|entry| match &entry.origin {
            Origin::File { line, column, .. } => (entry.name, *line, *column),
            Origin::CommandLine => panic!("a flag in a file"),
        })
        .collect();
    found.sort_unstable();
    assert_eq!(
        found,
        [
            ("OnAccessIncludePath", 5, 24),
            ("OnAccessIncludePath", 6, 2),
            ("OnAccessMaxFileSize", 3, 25),
        ]
    );
}

#[test]
fn all_errors_are_told_in_order() {
    let text = "[scan]\nOnAccessPrevention = \"yes\"\nOnAccessCurlTimeout = 1.5\n\
        OnAccessMaxFileSize = \"5T\"\nNope = 1\nCoverage = \"auto\"\nOnAccessRetryAttempt = 1\n\
        OnAccessMaxThreads = -1\n[scop]\n[log]\nScanPE = true\nLogFile = \"\"\n";
    assert_eq!(
        errors(text),
        [
            "n:2:22: OnAccessPrevention: this is a string; write true or false",
            "n:3:23: OnAccessCurlTimeout: this is a fraction; write a number: 5",
            "n:4:23: OnAccessMaxFileSize: '5T' is not a size; write digits and, if wanted, one of K, M, G, for example 5M",
            "n:5:1: Nope: unknown key; remove it, or see onacc.toml(5) for the keys",
            "n:6:1: Coverage: unknown key; it belongs into [scope]",
            "n:7:1: OnAccessRetryAttempt: unknown key; did you mean OnAccessRetryAttempts?",
            "n:8:22: OnAccessMaxThreads: '-1' is not a number from 0 to 2^64 - 1; correct it, or remove the line to have the default",
            "n:9:2: scop: unknown table; did you mean [scope]?",
            "n:11:1: ScanPE: unknown key; this is an option of clamd alone, leave it in clamd.conf",
            "n:12:11: LogFile: the value is missing; write it behind the name or remove the line",
        ]
    );
}

#[test]
fn what_is_no_toml_is_told_with_its_places() {
    let said = errors("[scan\nx = = 1\n");
    assert!(said.len() >= 2, "{said:?}");
    assert!(said[0].starts_with("n:1:") && said.iter().any(|line| line.starts_with("n:2:")));
    assert!(
        said.iter()
            .all(|line| line.contains(": syntax: ") && line.ends_with("see onacc.toml(5)"))
    );
    assert!(errors("scan = 1")[0].contains("scan: this is a number; write a table: [scan]"));
    assert!(errors("OnAccessPrevention = true")[0].contains("it belongs into [scan]"));
    assert!(errors("[server]\nAddress = \"/x\"")[0].contains("write [[server]]"));
    let bytes = parse(b"[log]\nLogFile = \"\xff\"", Path::new("n"))
        .parsed
        .errors;
    assert!(
        bytes[0]
            .to_string()
            .starts_with("n:2:12: syntax: this is not UTF-8")
    );
    assert!(errors("[log]\nLogTime = true\nLogTime = false")[0].starts_with("n:3:"));
}

#[test]
fn servers_are_tables() {
    let native = read(
        "[[server]]\nAddress = \"/s\"\nStream = true\n[[server]]\nAddress = \"av.example.org:3310\"\n\
         Weight = 50\nTLS = true\n",
    );
    assert_eq!(native.servers[0].value.transfer, Transfer::Stream);
    assert_eq!(
        native.servers[1].value.to_string(),
        "av.example.org:3310 (TLS)"
    );
    assert_eq!(native.servers[1].value.weight, 50);
    assert_eq!(native.servers[1].to_string(), "n:5: Address");
    for (fields, wanted) in [
        ("Weight = 1", "n:1:1: server: Address is missing"),
        (
            "Address = \"av\"",
            "n:2:11: Address: 'av' is not an address that can be called",
        ),
        (
            "Address = \"0.0.0.0:1\"",
            "is not an address that can be called",
        ),
        ("Address = \"av:0\"", "is not an address that can be called"),
        (
            "Address = \"av:1\"\nWeight = 0",
            "n:3:10: Weight: '0' is not a weight; write a number from 1 to 10000",
        ),
        (
            "Address = \"/s\"\nTLS = true",
            "n:3:7: TLS: a Unix socket takes no TLS",
        ),
        (
            "Address = \"av:1\"\nCAFile = \"/x\"",
            "n:3:10: CAFile: this needs TLS = true",
        ),
        (
            "Address = \"av:1\"\nTLS = true\nKeyFile = \"/x\"",
            "n:4:11: KeyFile: CertificateFile is missing",
        ),
        (
            "Address = \"av:1\"\nTLS = true\nCAFile = \"x\"",
            "n:4:10: CAFile: 'x' is not an absolute path",
        ),
    ] {
        let said = errors(&format!("[[server]]\n{fields}\n"));
        assert_eq!(said.len(), 1, "{said:?}");
        assert!(said[0].contains(wanted), "{said:?}");
    }
}

#[test]
fn rules_for_paths_are_tables() {
    let native = read("[[path]]\nPath = \"/x\"\nOnAccessMaxFileSize = 0\n");
    let rule = PathRule {
        path: "/x".into(),
        deny_on_error: None,
        max_file_size: Some(u64::MAX),
    };
    assert_eq!(native.path_rules[0].value, rule);
    assert!(errors("[[path]]\nOnAccessDenyOnError = true\n")[0].contains("Path is missing"));
    assert!(errors("[[path]]\nPath = \"x\"\n")[0].contains("not an absolute path"));
    assert!(errors("[[path]]\nPath = \"/x\"\nNope = 1\n")[0].contains("unknown key"));
}

#[test]
fn a_list_may_be_one_value_and_may_be_empty() {
    assert_eq!(read("[exclude]\nGlob = \"*.x\"").parsed.entries.len(), 1);
    let emptied = read("[exclude]\nGlob = []").emptied;
    assert_eq!((emptied.len(), emptied[0].option), (1, "Glob"));
    assert!(errors("[exclude]\nGlob = [1]")[0].contains("write a list of texts"));
}

proptest! {
    #[test]
    fn never_panics(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        for error in parse(&bytes, Path::new("n")).parsed.errors {
            prop_assert!(!error.to_string().contains(['\n', '\r', '\0']));
        }
    }

    #[test]
    fn never_panics_on_nearly_right_files(
        key in prop::sample::select(keys::KEYS.iter().collect::<Vec<_>>()),
        value in "(true|-?[0-9]{1,20}|\"[a-z/\\\\]{0,6}\"|\\[|\\]|\\{|,| |=){0,6}",
    ) {
        let text = format!("[{}]\n{} = {value}\n", key.table, key.name);
        for error in parse(text.as_bytes(), Path::new("n")).parsed.errors {
            let message = error.to_string();
            prop_assert!(message.starts_with("n:"), "{}", message);
            prop_assert!(message.contains("; ") && !message.contains('\n'), "{}", message);
        }
    }
}
