//! The command line of `onacc`.
//!
//! Owns the flags, their help and their defaults; clamonacc's flags keep their
//! meaning. Must not act on them, and must not check what they name: the agent
//! does. A usage error ends the process with status 2. Tested below.

use std::path::PathBuf;

use clap::{Parser, ValueEnum};

use crate::config::DEFAULT_FILE;

/// What stands below the list of options.
const AFTER_HELP: &str = "\
Examples:
  onacc --foreground --verbose
          Watch what /etc/clamav/clamd.conf names, and print what is found.
  onacc --config-file=/etc/onacc/clamd.conf --log=/var/log/clamav/onacc.log
          Run in the background with another configuration, and keep a log.

Signals:
  TERM, INT  Let every waiting program go on, then stop.
  USR1       Print the counters to the log.

Exit status: 0 after a stop by signal, 2 when the command line or the
configuration cannot be used or the agent cannot start.";

/// Scans files with ClamAV when they are opened.
///
/// onacc watches the directories that OnAccessIncludePath names in clamd.conf.
/// Each file that is opened there is scanned by clamd; with OnAccessPrevention
/// the open waits for the verdict, and is denied if the file is infected. onacc
/// takes the place of clamonacc: same clamd, same clamd.conf, same flags. It
/// must run as root.
#[derive(Clone, Debug, PartialEq, Eq, Parser)]
#[expect(
    clippy::doc_markdown,
    reason = "the help names the options of clamd.conf as they are written there"
)]
#[command(name = "onacc", version, after_help = AFTER_HELP)]
pub struct Cli {
    /// Stay in the foreground, and log to the standard output
    #[arg(short = 'F', long)]
    pub foreground: bool,

    /// Read the configuration from FILE
    #[arg(short, long, value_name = "FILE", default_value = DEFAULT_FILE)]
    pub config_file: PathBuf,

    /// Append the log to FILE
    #[arg(short, long, value_name = "FILE")]
    pub log: Option<PathBuf>,

    /// Log more: what is watched, and each verdict
    #[arg(short, long)]
    pub verbose: bool,

    /// Hand clamd the open file itself; accepted for clamonacc's sake, onacc
    /// always does
    #[arg(long)]
    pub fdpass: bool,

    /// How to use eBPF
    #[arg(long, value_name = "MODE", value_enum, default_value_t)]
    pub bpf: BpfMode,

    /// What carries the marks
    #[arg(long, value_name = "KIND", value_enum, default_value_t)]
    pub coverage: CoverageMode,
}

/// What carries the marks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum CoverageMode {
    /// "filesystem" where the kernel has what it needs (6.0), else "directory";
    /// "listed" with `OnAccessDisableDDD`
    #[default]
    Auto,
    /// One mark on each filesystem: no walk at start, no limit of inotify, sees
    /// every mount namespace
    Filesystem,
    /// A mark on each directory, kept up with inotify as directories come and go
    Directory,
    /// The named directories alone, without those below them
    Listed,
    /// One mark on each mount that holds a named path; blind to other mounts of
    /// the same filesystem
    Mount,
}

/// How eBPF is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum BpfMode {
    /// Use what the kernel allows, and do without the rest
    #[default]
    Auto,
    /// Use no eBPF. No kernel marks are then kept for files that could be
    /// mapped for writing, so that these are looked at more often
    Off,
    /// Do not start if the kernel refuses eBPF
    Require,
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use clap::CommandFactory;
    use clap::error::ErrorKind;

    use super::*;

    fn parse(arguments: &[&str]) -> Result<Cli, clap::Error> {
        Cli::try_parse_from([&["onacc"], arguments].concat())
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn no_flag_is_needed() {
        let wanted = Cli {
            foreground: false,
            config_file: "/etc/clamav/clamd.conf".into(),
            log: None,
            verbose: false,
            fdpass: false,
            bpf: BpfMode::Auto,
            coverage: CoverageMode::Auto,
        };
        assert_eq!(parse(&[]).unwrap(), wanted);
    }

    #[test]
    fn short_and_long_flags_mean_the_same() {
        let wanted = Cli {
            foreground: true,
            config_file: "/c".into(),
            log: Some("/l".into()),
            verbose: true,
            fdpass: true,
            bpf: BpfMode::Require,
            coverage: CoverageMode::Listed,
        };
        let long = [
            "--foreground",
            "--config-file=/c",
            "--log=/l",
            "--verbose",
            "--fdpass",
            "--bpf=require",
            "--coverage=listed",
        ];
        assert_eq!(parse(&long).unwrap(), wanted);
        let short = [
            "-Fv",
            "-c",
            "/c",
            "-l",
            "/l",
            "--fdpass",
            "--bpf",
            "require",
            "--coverage",
            "listed",
        ];
        assert_eq!(parse(&short).unwrap(), wanted);
    }

    #[test]
    fn each_bpf_mode_has_its_word() {
        for (word, mode) in [
            ("auto", BpfMode::Auto),
            ("off", BpfMode::Off),
            ("require", BpfMode::Require),
        ] {
            assert_eq!(parse(&["--bpf", word]).unwrap().bpf, mode);
        }
    }

    #[test]
    fn paths_need_not_be_utf8() {
        use std::ffi::OsStr;
        use std::os::unix::ffi::OsStrExt;

        let arguments = [OsStr::new("onacc"), OsStr::from_bytes(b"--log=/\xff")];
        let cli = Cli::try_parse_from(arguments).unwrap();
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
    fn help_and_version_end_with_status_0() {
        for (flag, kind) in [
            ("-h", ErrorKind::DisplayHelp),
            ("--help", ErrorKind::DisplayHelp),
            ("-V", ErrorKind::DisplayVersion),
            ("--version", ErrorKind::DisplayVersion),
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
}
