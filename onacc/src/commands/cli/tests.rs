//! What is accepted, what is not, and what it comes to.

use std::path::Path;

use clap::CommandFactory;
use clap::error::ErrorKind;

use super::*;

fn parse(arguments: &[&str]) -> Result<Cli, clap::Error> {
    Cli::read([&["onacc"], arguments].concat())
}

#[test]
fn the_definition_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn no_flag_is_needed() {
    assert_eq!(parse(&[]).unwrap(), Cli::default());
    assert_eq!(Cli::default().settings(), CommandLine::default());
}

#[test]
fn short_and_long_flags_mean_the_same() {
    let wanted = Cli {
        foreground: true,
        config_file: Some("/c".into()),
        settings: Some("/s".into()),
        log: Some("/l".into()),
        verbose: true,
        watch_list: Some("/w".into()),
        exclude_list: Some("/e".into()),
        pid_file: Some("/p".into()),
        ping: Some(Ping {
            attempts: 3,
            interval: 2,
        }),
        wait: true,
        move_to: Some("/q".into()),
        allmatch: true,
        fdpass: true,
        stream: true,
        bpf: Some(BpfMode::Require),
        coverage: Some(CoverageMode::Listed),
        marks: Some(MarksMode::Strict),
        keep_verdicts_on: vec!["nfs4".into(), "/m".into()],
        version: true,
        hidden: Hidden {
            multiscan: true,
            infected: true,
            quiet: true,
            stdout: true,
            fips_limits: true,
        },
        ..Cli::default()
    };
    let long = "--foreground --config-file=/c --settings=/s --log=/l --verbose \
        --watch-list=/w --exclude-list=/e --pid-file=/p --ping=3:2 --wait --move=/q --allmatch --fdpass \
        --stream --bpf=require --coverage=listed --marks=strict --keep-verdicts-on=nfs4 --keep-verdicts-on=/m --version --multiscan \
        --infected --quiet --stdout --fips-limits";
    let long: Vec<_> = long.split_whitespace().collect();
    assert_eq!(parse(&long).unwrap(), wanted);
    let short = "-Fvwzmi -c /c --settings /s -l /l -W /w -e /e --pid-file /p -p 3:2 --move /q --fdpass --stream \
        --bpf require --coverage listed --marks strict --keep-verdicts-on nfs4 --keep-verdicts-on /m -V --quiet --stdout --fips-limits";
    let short: Vec<_> = short.split_whitespace().collect();
    assert_eq!(parse(&short).unwrap(), wanted);
}

#[test]
fn clamonaccs_ways_of_writing_are_understood() {
    assert!(parse(&["--verb", "--fore"]).unwrap().verbose);
    assert!(parse(&["--verbose", "-v", "-v"]).unwrap().verbose);
    assert!(parse(&["--wait=YES"]).unwrap().wait);
    assert!(!parse(&["--wait=no"]).unwrap().wait);
    assert!(parse(&["--wait=maybe"]).is_err());
    let kept = parse(&["--log", "--", "--wait=no"]);
    assert!(kept.is_err(), "{kept:?}");
}

#[test]
fn clamscans_flags_are_taken_and_named() {
    let words = "--bell --max-filesize 5M -r -d /x --detect-pua=yes --no-summary -v --exclude x";
    let words: Vec<_> = words.split_whitespace().collect();
    let cli = parse(&words).unwrap();
    assert!(cli.verbose && cli.exclude_list.is_none());
    let mut ignored = cli.ignored;
    ignored.sort_unstable();
    let wanted = [
        "--bell",
        "--database (-d)",
        "--detect-pua",
        "--exclude",
        "--max-filesize",
        "--no-summary",
        "--recursive (-r)",
    ];
    assert_eq!(ignored, wanted);
    let help = Cli::command().render_long_help().to_string();
    assert!(!help.contains("--bell") && !help.contains("--multiscan"));
}

#[test]
fn a_ping_is_attempts_and_seconds() {
    let ping = |text: &str| text.parse::<Ping>();
    let of = |attempts, interval| Ok(Ping { attempts, interval });
    assert_eq!(ping("5"), of(5, 1));
    assert_eq!(ping("5:0"), of(5, 0));
    assert_eq!(ping("30:2"), of(30, 2));
    for wrong in ["", "x", "0", "5:", ":5", "-1", "+1", "1:2:3", "99999999999"] {
        assert_eq!(ping(wrong), Err(NoPing), "{wrong}");
    }
}

#[test]
fn an_infected_file_is_dealt_with_in_one_way() {
    for two in [
        ["--remove", "--move=/q"],
        ["--move=/q", "--copy=/q"],
        ["--copy=/q", "--remove"],
    ] {
        let error = parse(&two).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ArgumentConflict, "{two:?}");
        assert_eq!(error.exit_code(), 2);
    }
}

#[test]
fn commands_take_the_files_too() {
    let cli = parse(&["config", "check", "-c", "/c", "--settings=/s"]).unwrap();
    assert_eq!(cli.config_file.as_deref(), Some(Path::new("/c")));
    assert_eq!(cli.settings.as_deref(), Some(Path::new("/s")));
    assert!(matches!(cli.command, Some(Command::Config { .. })));
}

#[test]
fn each_bpf_mode_has_its_word() {
    for (word, mode) in [
        ("auto", BpfMode::Auto),
        ("off", BpfMode::Off),
        ("require", BpfMode::Require),
    ] {
        assert_eq!(parse(&["--bpf", word]).unwrap().bpf, Some(mode));
    }
}

#[test]
fn paths_need_not_be_utf8() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    let arguments = [OsStr::new("onacc"), OsStr::from_bytes(b"--log=/\xff")];
    let cli = Cli::read(arguments).unwrap();
    assert_eq!(
        cli.log.as_deref(),
        Some(Path::new(OsStr::from_bytes(b"/\xff")))
    );
}

#[test]
fn usage_errors_end_with_status_2() {
    for wrong in ["--nonsense", "--bpf=maybe", "--log=", "-c", "stray"] {
        assert_eq!(parse(&[wrong]).unwrap_err().exit_code(), 2, "{wrong}");
    }
}

#[test]
fn help_ends_with_status_0() {
    for (flag, kind) in [
        ("-h", ErrorKind::DisplayHelp),
        ("--help", ErrorKind::DisplayHelp),
    ] {
        let shown = parse(&[flag]).unwrap_err();
        assert_eq!((shown.kind(), shown.exit_code()), (kind, 0));
    }
}

#[test]
fn the_help_tells_examples_and_signals() {
    let help = Cli::command().render_long_help().to_string();
    // Lines break where the terminal ends.
    let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
    for part in [
        "Examples:",
        "TERM, INT",
        "USR1",
        "mapped for writing",
        "refuses eBPF",
    ] {
        assert!(help.contains(part), "{part}");
    }
}
