//! Flags of clamscan, which clamonacc takes without effect.
//!
//! Owns the table of them (read off clamonacc 1.4.6, flag by flag) and the ways
//! of writing flags that clamonacc knows and clap does not. Must not: know what
//! `cli` does with its own flags. Tested in `cli/tests.rs`.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};

use clap::{Arg, ArgAction, ArgMatches, Command};

/// A flag of clamscan.
struct Foreign {
    long: &'static str,
    short: Option<char>,
    /// Whether it takes a value that may stand behind it as a word of its own;
    /// otherwise one may follow an equals sign.
    needs_value: bool,
}

const fn flag(long: &'static str) -> Foreign {
    Foreign {
        long,
        short: None,
        needs_value: false,
    }
}

const fn flag_or(long: &'static str, short: char) -> Foreign {
    Foreign {
        short: Some(short),
        ..flag(long)
    }
}

const fn value(long: &'static str) -> Foreign {
    Foreign {
        needs_value: true,
        ..flag(long)
    }
}

const fn value_or(long: &'static str, short: char) -> Foreign {
    Foreign {
        short: Some(short),
        ..value(long)
    }
}

static FOREIGN: &[Foreign] = &[
    flag("alert-broken"),
    flag("alert-broken-media"),
    flag("alert-encrypted"),
    flag("alert-encrypted-archive"),
    flag("alert-encrypted-doc"),
    flag("alert-exceeds-max"),
    flag("alert-macros"),
    flag("alert-partition-intersection"),
    flag("alert-phishing-cloak"),
    flag("alert-phishing-ssl"),
    flag("algorithmic-detection"),
    flag_or("archive-verbose", 'a'),
    flag("arj"),
    flag("bell"),
    flag("block-encrypted"),
    flag("block-macros"),
    flag("block-max"),
    flag("bytecode"),
    value("bytecode-mode"),
    value("bytecode-timeout"),
    flag_or("bytecode-trust-all", 't'),
    flag("bytecode-unsigned"),
    value("cache-size"),
    flag("cross-fs"),
    value_or("database", 'd'),
    flag("deb"),
    flag("debug"),
    flag("detect-broken"),
    flag("detect-pua"),
    flag("detect-structured"),
    value("dev-ac-depth"),
    flag("dev-ac-only"),
    flag("dev-performance"),
    flag("disable-archive"),
    flag("disable-cache"),
    flag("disable-summary"),
    flag("dumpcerts"),
    value("exclude"),
    value("exclude-dir"),
    value("exclude-pua"),
    value("fail-if-cvd-older-than"),
    value_or("file-list", 'f'),
    value("follow-dir-symlinks"),
    value("follow-file-symlinks"),
    flag("force"),
    flag("force-to-disk"),
    flag("gen-json"),
    flag("gen-mdb"),
    flag("heuristic-alerts"),
    flag("heuristic-scan-precedence"),
    value("include"),
    value("include-dir"),
    value("include-pua"),
    flag("jar"),
    flag("leave-temps"),
    flag("lha"),
    flag("mail-follow-urls"),
    value("max-dir-recursion"),
    value("max-embeddedpe"),
    value("max-files"),
    value("max-filesize"),
    value("max-htmlnormalize"),
    value("max-htmlnotags"),
    value("max-iconspe"),
    value("max-partitions"),
    value("max-ratio"),
    value("max-rechwp3"),
    value("max-recursion"),
    value("max-scansize"),
    value("max-scantime"),
    value("max-scriptnormalize"),
    value("max-space"),
    value("max-ziptypercg"),
    flag("no-algorithmic"),
    flag("no-archive"),
    flag("no-elf"),
    flag("no-html"),
    flag("no-mail"),
    flag("no-ole2"),
    flag("no-pdf"),
    flag("no-pe"),
    flag("no-phishing-restrictedscan"),
    flag("no-phishing-scan-urls"),
    flag("no-phishing-sigs"),
    flag("no-summary"),
    flag("nocerts"),
    flag("normalize"),
    flag("official-db-only"),
    flag("partition-intersection"),
    value("pcre-match-limit"),
    value("pcre-max-filesize"),
    value("pcre-recmatch-limit"),
    flag("phishing-cloak"),
    flag("phishing-scan-urls"),
    flag("phishing-sigs"),
    flag("phishing-ssl"),
    flag_or("recursive", 'r'),
    flag("scan-archive"),
    flag("scan-elf"),
    flag("scan-html"),
    flag("scan-hwp3"),
    flag("scan-image"),
    flag("scan-image-fuzzy-hash"),
    flag("scan-mail"),
    flag("scan-ole2"),
    flag("scan-onenote"),
    flag("scan-pdf"),
    flag("scan-pe"),
    flag("scan-swf"),
    flag("scan-xmldocs"),
    value("statistics"),
    value("structured-cc-count"),
    flag("structured-cc-mode"),
    value("structured-ssn-count"),
    value("structured-ssn-format"),
    flag_or("suppress-ok-results", 'o'),
    flag("tar"),
    value("tempdir"),
    flag("tgz"),
    value("timelimit"),
    flag("unrar"),
    flag("unzip"),
    flag("unzoo"),
    value("yara-rules"),
];

/// Flags of our own that clamonacc takes with a value, too: `--verbose=yes`.
const SWITCHES: &[&str] = &[
    "allmatch",
    "fdpass",
    "foreground",
    "infected",
    "multiscan",
    "quiet",
    "remove",
    "stdout",
    "stream",
    "verbose",
    "version",
    "wait",
];

/// Makes the command take clamscan's flags, without showing them.
pub fn add_to(command: Command) -> Command {
    command.args(FOREIGN.iter().map(|foreign| {
        let argument = Arg::new(foreign.long).long(foreign.long).hide(true);
        let argument = match foreign.short {
            Some(short) => argument.short(short),
            None => argument,
        };
        let values = if foreign.needs_value { 1..=1 } else { 0..=1 };
        argument
            .action(ArgAction::Append)
            .num_args(values)
            .require_equals(!foreign.needs_value)
            .allow_hyphen_values(foreign.needs_value)
            .value_parser(clap::value_parser!(OsString))
    }))
}

/// Those of clamscan's flags that were given, as clamonacc names them.
pub fn given(matches: &ArgMatches) -> Vec<String> {
    FOREIGN
        .iter()
        .filter(|foreign| matches.contains_id(foreign.long))
        .map(|foreign| match foreign.short {
            Some(short) => format!("--{} (-{short})", foreign.long),
            None => format!("--{}", foreign.long),
        })
        .collect()
}

/// Turns `--flag=yes` into `--flag`, and takes `--flag=no` out, for the flags
/// that clamonacc treats so.
pub fn spell_out(arguments: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut rest = false;
    arguments
        .filter_map(|argument| {
            rest |= argument == "--";
            match switched(&argument) {
                _ if rest => Some(argument),
                None => Some(argument),
                Some((flag, true)) => Some(OsString::from_vec(flag.to_vec())),
                Some((_, false)) => None,
            }
        })
        .collect()
}

/// The flag and its value, if this is one of [`SWITCHES`] with a truth value.
fn switched(argument: &OsString) -> Option<(&[u8], bool)> {
    let bytes = argument.as_bytes();
    let equals = bytes.iter().position(|byte| *byte == b'=')?;
    let (flag, value) = (&bytes[..equals], &bytes[equals + 1..]);
    let name = flag.strip_prefix(b"--")?;
    if !SWITCHES.iter().any(|switch| switch.as_bytes() == name) {
        return None;
    }
    crate::config::clamd_conf::truth(value).map(|value| (flag, value))
}
