//! The command line of `onacc`.
//!
//! Owns the flags, their help, and which of clamonacc's flags are taken without
//! effect; clamonacc's flags keep their meaning. Must not act on them, and must
//! not check what they name: the commands do. A usage error ends the process
//! with status 2. Man page and shell completions are made from this too.
//! Tested in `cli/tests.rs`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand, ValueEnum as _};

pub use super::debug_limits::{DebugLimit, DebugSize};
use super::foreign;
use crate::config::CommandLine;
use crate::config::entry::Value;
pub use crate::config::modes::{BpfMode, CoverageMode, MarksMode};

/// What stands below the list of options.
pub(super) const AFTER_HELP: &str = "\
Examples:
  onacc --foreground --verbose
          Watch what /etc/clamav/clamd.conf names, and print what is found.
  onacc --config-file=/etc/onacc/clamd.conf --log=/var/log/clamav/onacc.log
          Run in the background with another configuration, and keep a log.
  onacc config check
          Say everything that is wrong with the configuration.
  onacc doctor
          Say what limits protection, and prove that infected files are refused.

Files:
  /etc/clamav/clamd.conf  The configuration of clamd and clamonacc.
  /etc/onacc/onacc.toml   Settings of onacc's own. What stands there goes before
                          clamd.conf; the command line goes before both.

Signals:
  TERM, INT  Let every waiting program go on, then stop. QUIT does the same.
  HUP        Read the settings again, without a gap in protection.
  USR1       Print the counters to the log.

Exit status: 0 after a stop by signal, 2 when the command line or the
configuration cannot be used or the agent cannot start, 3 when the log cannot
be opened, 21 when clamd has not answered a --ping or --wait.";

/// Scans files with ClamAV when they are opened.
///
/// onacc watches the directories that OnAccessIncludePath names in clamd.conf.
/// Each file that is opened there is scanned by clamd; with OnAccessPrevention
/// the open waits for the verdict, and is denied if the file is infected. onacc
/// takes the place of clamonacc: same clamd, same clamd.conf, same flags. It
/// must run as root.
#[derive(Clone, Debug, Default, PartialEq, Eq, Parser)]
#[expect(
    clippy::doc_markdown,
    reason = "the help names the options of clamd.conf as they are written there"
)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a flag of clamonacc's; they do not form states"
)]
#[command(
    name = "onacc",
    disable_version_flag = true,
    infer_long_args = true,
    after_help = AFTER_HELP
)]
pub struct Cli {
    /// What to do instead of protecting
    #[command(subcommand)]
    pub command: Option<Command>,

    /// Stay in the foreground, and log to the standard output
    #[arg(short = 'F', long, overrides_with = "foreground")]
    pub foreground: bool,

    /// Read clamd's configuration from FILE
    ///
    /// Read the configuration of clamd from FILE, not from
    /// /etc/clamav/clamd.conf.
    #[arg(short, long, value_name = "FILE", global = true)]
    pub config_file: Option<PathBuf>,

    /// Read onacc's own settings from FILE
    ///
    /// Read onacc's own settings from FILE, not from /etc/onacc/onacc.toml.
    #[arg(long, value_name = "FILE", global = true)]
    pub settings: Option<PathBuf>,

    /// Append the log to FILE
    #[arg(short, long, value_name = "FILE")]
    pub log: Option<PathBuf>,

    /// Write the process id to FILE
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,

    /// Log more: what is watched, and each verdict
    #[arg(short, long, overrides_with = "verbose")]
    pub verbose: bool,

    /// Watch also the directories that FILE names, one a line
    #[arg(short = 'W', long, value_name = "FILE")]
    pub watch_list: Option<PathBuf>,

    /// Leave out also the directories that FILE names, one a line
    #[arg(short, long, value_name = "FILE")]
    pub exclude_list: Option<PathBuf>,

    /// Ask clamd for a sign of life, up to A times, every I seconds
    ///
    /// Ask clamd for a sign of life, up to A times, I seconds apart (1 if not
    /// given), and end: with status 0 and PONG, or with status 21. With --wait
    /// it says how long to wait.
    #[arg(short, long, value_name = "A[:I]")]
    pub ping: Option<Ping>,

    /// Wait for clamd before protecting: 30 seconds, or as --ping says
    #[arg(short, long, overrides_with = "wait")]
    pub wait: bool,

    /// Remove infected files
    ///
    /// Remove infected files. Once removed, a file that was no malware cannot
    /// be had back: think of --move.
    #[arg(long, group = "action", overrides_with = "remove")]
    pub remove: bool,

    /// Move infected files into DIRECTORY
    #[arg(long = "move", value_name = "DIRECTORY", group = "action")]
    pub move_to: Option<PathBuf>,

    /// Copy infected files into DIRECTORY
    #[arg(long = "copy", value_name = "DIRECTORY", group = "action")]
    pub copy_to: Option<PathBuf>,

    /// Name every match in a file, not the first alone
    #[arg(short = 'z', long, overrides_with = "allmatch")]
    pub allmatch: bool,

    /// Hand clamd the open file itself; accepted for clamonacc's sake, onacc
    /// does so wherever clamd is on this machine
    #[arg(long, overrides_with = "fdpass")]
    pub fdpass: bool,

    /// Send clamd the content of files, on a local socket too
    #[arg(long, overrides_with = "stream")]
    pub stream: bool,

    /// How to use eBPF [default: auto]
    #[arg(long, value_name = "MODE", value_enum)]
    pub bpf: Option<BpfMode>,

    /// What carries the marks [default: auto]
    #[arg(long, value_name = "KIND", value_enum)]
    pub coverage: Option<CoverageMode>,

    /// Which ignore marks the kernel keeps [default: auto]
    #[arg(long, value_name = "MODE", value_enum)]
    pub marks: Option<MarksMode>,

    /// Keep verdicts on a network or FUSE filesystem: by TYPE or MOUNT point
    ///
    /// Remember verdicts on a network or FUSE filesystem, named by its TYPE
    /// (nfs4, cifs, fuse.sshfs) or MOUNT point, too; may be given several times.
    /// What others change there is noticed only if size or times show it: see
    /// KeepVerdictsOn in onacc.toml(5).
    #[arg(long, value_name = "TYPE|MOUNT")]
    pub keep_verdicts_on: Vec<OsString>,

    /// Print the versions of onacc and of clamd
    #[arg(short = 'V', long, overrides_with = "version")]
    pub version: bool,

    /// Make tables small: NAME=NUMBER, for tests of what happens when one is full
    #[arg(long, value_name = "NAME=NUMBER", value_delimiter = ',', hide = true)]
    pub debug_limits: Vec<DebugLimit>,

    /// Flags that clamonacc hides, and that never had an effect there.
    #[command(flatten)]
    pub hidden: Hidden,

    /// Flags of clamscan that were given: taken, without effect, with a
    /// warning, as clamonacc does. As clamonacc shows them.
    #[arg(skip)]
    pub ignored: Vec<String>,
}

/// What clamonacc accepts without showing or using it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Args)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a flag of clamonacc's; they do not form states"
)]
pub struct Hidden {
    /// Accepted, without effect: clamd scans many files at a time anyway
    #[arg(short, long, hide = true, overrides_with = "multiscan")]
    pub multiscan: bool,
    /// Accepted, without effect: clean files are never reported
    #[arg(short, long, hide = true, overrides_with = "infected")]
    pub infected: bool,
    /// Accepted, without effect
    #[arg(long, hide = true, overrides_with = "quiet")]
    pub quiet: bool,
    /// Accepted, without effect
    #[arg(long, hide = true, overrides_with = "stdout")]
    pub stdout: bool,
    /// Accepted, without effect
    #[arg(long, hide = true, overrides_with = "fips_limits")]
    pub fips_limits: bool,
}

/// What `onacc` does instead of protecting. Each command has a file of its own
/// in `commands/`.
#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
#[expect(
    clippy::doc_markdown,
    reason = "the help names the options of clamd.conf as they are written there"
)]
pub enum Command {
    /// Check, show and migrate the configuration
    Config {
        /// Which of these.
        #[command(subcommand)]
        action: ConfigCommand,
    },
    /// List, show, restore and delete files in quarantine
    Quarantine {
        /// The directory that --move or --copy named
        ///
        /// The directory that --move or --copy named. If not given: the one of
        /// onacc.toml, else /root/quarantine.
        #[arg(long, value_name = "DIRECTORY", global = true)]
        directory: Option<PathBuf>,
        /// Which of these.
        #[command(subcommand)]
        action: QuarantineCommand,
    },

    /// Say what protects this machine, what limits that, and how to mend it
    ///
    /// Looks at the settings, the kernel, its limits, clamd, and the agent that
    /// runs with this configuration. If one runs, a canary is flown: the EICAR
    /// test file is written into each watched path, must be refused (without
    /// OnAccessPrevention: reported in the agent's log), and is removed again.
    /// Status 0: nothing limits protection; 1: something does.
    Doctor(DoctorOptions),
    /// Print the completions for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print a manual page
    ///
    /// Prints a manual page, as man(1) reads it: onacc man | man -l -
    Man {
        /// Which one
        #[arg(value_enum, default_value_t)]
        page: Page,
    },
}

/// A manual page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Page {
    /// onacc(8), the command
    #[default]
    #[value(name = "onacc")]
    Command,
    /// onacc.toml(5), the settings
    #[value(name = "onacc.toml")]
    Settings,
}

/// What can be done with the quarantine.
#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
pub enum QuarantineCommand {
    /// List the files in quarantine
    ///
    /// One line each, with tabs between: name, time, signature, size, status,
    /// and where the file was.
    List {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Show all that is known of a file
    Show {
        /// Its name, as "list" says it
        name: OsString,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Put a file back, with its owner, mode and times
    ///
    /// Puts a file back to where it was. A file that is there by now is not
    /// overwritten, and a symlink on the way is not followed.
    Restore {
        /// Its name, as "list" says it
        name: OsString,
        /// Put it there, not to where it was
        #[arg(long, value_name = "FILE")]
        to: Option<PathBuf>,
    },
    /// Delete files for good
    Delete {
        /// Their names, as "list" says them
        #[arg(required = true)]
        names: Vec<OsString>,
    },
}

/// How thorough the doctor is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Args)]
pub struct DoctorOptions {
    /// Print the findings as JSON
    #[arg(long)]
    pub json: bool,
    /// Fly the canary even if no agent is found
    #[arg(long, conflicts_with = "no_canary")]
    pub canary: bool,
    /// Fly no canary: nothing is written, no alarm is raised
    #[arg(long)]
    pub no_canary: bool,
}

/// What can be done with the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
pub enum ConfigCommand {
    /// Say everything that is wrong, with file, line and column
    ///
    /// Reads the configuration as the agent would, without starting it, and
    /// says everything that is wrong or odd with file, line and column. Status
    /// 0: the agent would take it.
    Check,
    /// Show what holds, and where each value comes from
    ///
    /// Shows every setting that holds, as an onacc.toml, with the file and line
    /// that it comes from. The flags before `config` have their say too.
    Show {
        /// Leave out what has its default
        #[arg(long)]
        set: bool,
    },
    /// Make an onacc.toml of a clamd.conf
    ///
    /// Prints an onacc.toml that gives the same settings as clamd.conf (and what
    /// there is of onacc.toml and of flags before `config`). clamd goes on
    /// reading clamd.conf.
    Migrate {
        /// Write FILE, which must not exist yet, instead of printing
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
}

/// How often and how fast clamd is asked for a sign of life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ping {
    /// How often at most. At least 1.
    pub attempts: u32,
    /// The time between, in seconds.
    pub interval: u32,
}

/// Not of the form A[:I].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "write the number of attempts and, if wanted, a colon and the seconds between them, for example 30:1"
)]
pub struct NoPing;

impl Default for Ping {
    /// What clamonacc takes where it is told nothing.
    fn default() -> Self {
        Self {
            attempts: 31,
            interval: 1,
        }
    }
}

impl FromStr for Ping {
    type Err = NoPing;

    fn from_str(text: &str) -> Result<Self, NoPing> {
        let (attempts, interval) = match text.split_once(':') {
            Some((attempts, interval)) => (attempts, Some(interval)),
            None => (text, None),
        };
        let number = |text: &str| {
            let digits = text.bytes().all(|byte| byte.is_ascii_digit());
            text.parse().ok().filter(|_| digits).ok_or(NoPing)
        };
        let ping = Self {
            attempts: number(attempts)?,
            interval: interval.map_or(Ok(Self::default().interval), number)?,
        };
        if ping.attempts == 0 {
            Err(NoPing)
        } else {
            Ok(ping)
        }
    }
}

impl Cli {
    /// Reads the command line as clamonacc would: `--flag=yes` is `--flag`, long
    /// names may be cut short, and clamscan's flags are taken with a warning.
    ///
    /// # Errors
    /// What clap says: a usage error (status 2), or the help (status 0).
    pub fn read<I, T>(arguments: I) -> Result<Self, clap::Error>
    where
        I: IntoIterator<Item = T>,
        T: Into<OsString>,
    {
        let arguments = foreign::spell_out(arguments.into_iter().map(Into::into));
        let matches = foreign::add_to(Self::command()).try_get_matches_from(arguments)?;
        let mut cli = Self::from_arg_matches(&matches)?;
        cli.ignored = foreign::given(&matches);
        Ok(cli)
    }

    /// Makes relative paths whole: in the background the working directory is
    /// another one.
    #[must_use]
    pub fn with_whole_paths(mut self) -> Self {
        let paths = [
            &mut self.config_file,
            &mut self.settings,
            &mut self.log,
            &mut self.watch_list,
            &mut self.exclude_list,
            &mut self.pid_file,
            &mut self.move_to,
            &mut self.copy_to,
        ];
        for path in paths.into_iter().flatten() {
            // An empty path stays so, to be refused as such.
            if let Ok(whole) = std::path::absolute(&*path) {
                *path = whole;
            }
        }
        self
    }

    /// What of this has a say in the settings.
    pub fn settings(&self) -> CommandLine {
        let mut values = Vec::new();
        let texts = [
            ("LogFile", &self.log),
            ("WatchList", &self.watch_list),
            ("ExcludeList", &self.exclude_list),
            ("PidFile", &self.pid_file),
        ];
        for (name, text) in texts {
            let text = text.as_ref().map(|path| Value::Text(path.into()));
            values.extend(text.map(|text| (name, text)));
        }
        let words = [
            (
                "Coverage",
                self.coverage.and_then(|mode| mode.to_possible_value()),
            ),
            ("Bpf", self.bpf.and_then(|mode| mode.to_possible_value())),
            (
                "Marks",
                self.marks.and_then(|mode| mode.to_possible_value()),
            ),
        ];
        for (name, word) in words {
            let word = word.map(|word| Value::Text(word.get_name().into()));
            values.extend(word.map(|word| (name, word)));
        }
        let kept = self.keep_verdicts_on.iter();
        values.extend(kept.map(|word| ("KeepVerdictsOn", Value::Text(word.clone()))));
        let flags = [
            ("LogVerbose", self.verbose),
            ("Stream", self.stream),
            ("AllMatch", self.allmatch),
        ];
        for (name, _) in flags.iter().filter(|(_, given)| *given) {
            values.push((name, Value::Bool(true)));
        }
        let actions = [
            ("remove", self.remove, None),
            ("move", self.move_to.is_some(), self.move_to.as_ref()),
            ("copy", self.copy_to.is_some(), self.copy_to.as_ref()),
        ];
        for (word, _, directory) in actions.iter().filter(|(_, given, _)| *given) {
            values.push(("Action", Value::Text(word.into())));
            let directory = directory.map(|path| Value::Text(path.into()));
            values.extend(directory.map(|path| ("Directory", path)));
        }
        CommandLine {
            clamd_conf: self.config_file.clone(),
            native: self.settings.clone(),
            values,
        }
    }
}

#[cfg(test)]
mod tests;
