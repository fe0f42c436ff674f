//! HUP: the settings again, without a gap in protection.
//!
//! What the policy holds (scope, exclusions, size limit) is replaced in place.
//! For all else a second agent starts beside the first, which ends when the
//! second one's marks stand: an open is always an event of one of them. Wrong
//! settings change nothing. Must not: wait for the agent that ends, its openers
//! may take their whole bound. Tested by `tests/tests/reload.rs`.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::{Agent, AgentError, FILES_FOR_TWO, programs};
use crate::commands::cli::Cli;
use crate::config::Settings;
use crate::config::settings::{Exclusions, LogSettings};
use crate::coverage::paths::{RealPaths, Tell};
use crate::kernel::mounts::MountTable;
use crate::kernel::pid_file::{PidFile, PidFileError};
use crate::kernel::{memory, process};
use crate::observe::counters::Counters;
use crate::observe::log::{Logger, Setup, facility};
use crate::observe::manager::Manager;
use crate::policy::{Policy, Rules};

/// How often it is looked whether the former agent has ended.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// What outlives an agent that is replaced by another.
pub(super) struct House<'a> {
    pub(super) cli: &'a Cli,
    pub(super) counters: Arc<Counters>,
    pub(super) logger: &'a Logger,
    pub(super) manager: Arc<Manager>,
    pub(super) pid_file: Option<PidFile>,
    /// `RLIMIT_NOFILE`.
    pub(super) open_files: u64,
    /// The agent that has been replaced.
    pub(super) retiring: Option<JoinHandle<()>>,
    /// HUP has come.
    pub(super) reload_wanted: bool,
}

impl House<'_> {
    /// How many files one agent may open: there may be two for a while.
    pub(super) fn files_each(&self) -> u64 {
        if self.has_room_for_two() {
            self.open_files / 2
        } else {
            self.open_files
        }
    }

    fn has_room_for_two(&self) -> bool {
        self.open_files >= FILES_FOR_TWO
    }

    /// Whether to reload now: wanted, and not while an agent still ends. Many
    /// HUPs meanwhile come to one.
    pub(super) fn may_reload(&mut self) -> bool {
        if self.retiring.as_ref().is_some_and(JoinHandle::is_finished) {
            self.retiring = None;
        }
        self.reload_wanted && self.retiring.is_none()
    }

    /// Lets an agent end on its own.
    fn retire(&mut self, former: Agent) {
        let retire = move || {
            former.retire();
            // What two agents needed for a moment.
            memory::give_back();
        };
        match process::spawn("onacc-retire", retire) {
            Ok(thread) => self.retiring = Some(thread),
            // It was dropped, and with it the group: the kernel lets go whoever waits.
            Err(error) => tracing::error!("onacc: {error}"),
        }
    }

    /// Takes up what no agent has: the log, the pid file.
    fn follow(&mut self, settings: &Settings) {
        self.logger.follow(log_setup(self.cli, settings));
        let wanted = settings.pid_file.as_ref().map(|file| file.value.as_path());
        if self.pid_file.as_ref().map(PidFile::path) != wanted {
            match pid_file(settings) {
                Ok(file) => self.pid_file = file,
                Err(error) => tracing::error!("{error}; the former one stays"),
            }
        }
    }

    /// When to look again.
    pub(super) fn wake_at(&self) -> Option<Instant> {
        (self.reload_wanted && self.retiring.is_some()).then(|| Instant::now() + LOOK_AGAIN)
    }
}

impl Agent {
    /// Takes up the settings as they are now. The agent that goes on.
    pub(super) fn reload(mut self, house: &mut House<'_>) -> Self {
        house.reload_wanted = false;
        house.manager.reloading();
        tracing::info!("SIGHUP caught: re-opening log file.");
        let failed = match self.try_reload(house) {
            Ok(former) => {
                if let Some(former) = former {
                    house.retire(*former);
                }
                house.follow(&self.settings);
                tracing::info!("onacc: settings reloaded");
                ""
            }
            Err(error) => {
                // The log's file may have been moved away all the same.
                house.follow(&self.settings);
                // Each line of a configuration is an error of its own.
                for line in error.to_string().lines() {
                    tracing::error!(
                        "onacc: settings not reloaded, the old ones stay in force: {line}"
                    );
                }
                "; the settings in the files are wrong, the former ones are in force"
            }
        };
        house.manager.ready(&format!("{}{failed}", self.status()));
        self
    }

    /// Takes up the settings, and returns the former agent if another had to take
    /// its place.
    fn try_reload(&mut self, house: &House<'_>) -> Result<Option<Box<Self>>, AgentError> {
        let new = Settings::load(&house.cli.settings())?;
        for warning in &new.warnings {
            tracing::warn!("{warning}");
        }
        if differs_beyond_policy(&self.settings, &new) {
            if !house.has_room_for_two() {
                return Err(AgentError::NoRoomForTwo {
                    limit: house.open_files,
                });
            }
            let new = Self::start(house, new)?;
            return Ok(Some(Box::new(std::mem::replace(self, new))));
        }
        self.take_up(new)?;
        Ok(None)
    }

    /// In place: what the policy holds.
    fn take_up(&mut self, new: Settings) -> Result<(), AgentError> {
        let table = Arc::new(MountTable::read()?);
        let paths = RealPaths::of(&new, &table, Tell::Yes)?;
        let scope = Arc::new(paths.scope(&table));
        if scope.filesystems().next().is_none() {
            return Err(AgentError::NothingProtected);
        }
        let rules = Rules::of(&new)?.with_programs(programs(&new, Tell::Yes));
        self.settings = new;
        let policy = Policy {
            scope: Arc::clone(&scope),
            mounts: Arc::clone(&table),
            max_file_size: self.settings.max_file_size,
            rules: Arc::new(rules),
            ..(*self.policy).clone()
        };
        self.replace_policy(policy);
        self.follow_accounts();
        self.learn_filesystems(&table);
        self.coverage.follow(&self.policy, &paths, &table);
        self.let_go(&table);
        Ok(())
    }
}

/// Where the log goes and how, as these settings have it.
pub(super) fn log_setup(cli: &Cli, settings: &Settings) -> Setup {
    let log = &settings.log;
    Setup {
        file: log.file.as_ref().map(|file| file.value.clone()),
        console: cli.foreground,
        verbose: log.verbose,
        time: log.time,
        syslog: log.syslog.then(|| facility(&log.facility)).flatten(),
        max_size: (log.max_size < u64::MAX).then_some(log.max_size),
        rotate: log.rotate,
    }
}

/// Takes the pid file that the settings name.
pub(super) fn pid_file(settings: &Settings) -> Result<Option<PidFile>, PidFileError> {
    let path = settings.pid_file.as_ref();
    path.map(|path| PidFile::take(&path.value)).transpose()
}

/// Whether new settings differ in what only another agent can take up. What is
/// not named here is taken for such.
fn differs_beyond_policy(old: &Settings, new: &Settings) -> bool {
    let rest = |settings: &Settings| Settings {
        include_paths: Vec::new(),
        exclude_paths: Vec::new(),
        exclude_patterns: Vec::new(),
        exclusions: Exclusions::default(),
        path_rules: Vec::new(),
        watch_list: None,
        exclude_list: None,
        excluded_uids: Vec::new(),
        excluded_names: Vec::new(),
        max_file_size: 0,
        temporary_directory: None,
        log: LogSettings::default(),
        pid_file: None,
        ..settings.without_places()
    };
    // Where processes are left out, the kernel must not refuse by itself.
    let asks = |settings: &Settings| {
        let exclusions = &settings.exclusions;
        !(exclusions.executables.is_empty() && exclusions.cgroups.is_empty())
    };
    rest(old) != rest(new) || asks(old) != asks(new)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(lines: &str) -> Settings {
        let text = format!("LocalSocket /s\nOnAccessIncludePath /a\n{lines}");
        Settings::from_bytes(text.as_bytes(), std::path::Path::new("clamd.conf")).unwrap()
    }

    #[test]
    fn what_the_policy_holds_needs_no_other_agent_and_all_else_does() {
        let old = settings("");
        for in_place in [
            "",
            "# a comment\n\nOnAccessIncludePath /b",
            "OnAccessExcludePath /a/b\nOnAccessExcludeUID 7\nOnAccessExcludeUname anna",
            "OnAccessMaxFileSize 1M",
            "OnAccessExcludePath ^/a/b$",
        ] {
            assert!(
                !differs_beyond_policy(&old, &settings(in_place)),
                "{in_place}"
            );
        }
        for beyond in [
            "OnAccessPrevention yes",
            "OnAccessCurlTimeout 1",
            "OnAccessRetryAttempts 2",
            "OnAccessDenyOnError yes",
            "OnAccessDisableDDD yes",
            "OnAccessMountPath /b",
            "OnAccessMaxThreads 7",
            "ReadTimeout 7",
            "MaxQueue 7",
        ] {
            assert!(differs_beyond_policy(&old, &settings(beyond)), "{beyond}");
        }
        let with = |exclude: &str| {
            let text = format!(
                "[clamd]\nLocalSocket = '/s'\n[scope]\nOnAccessIncludePath = '/a'\n[exclude]\n{exclude}\n"
            );
            Settings::from_native(text.as_bytes(), std::path::Path::new("n")).unwrap()
        };
        let one = with("Cgroup = '/x'");
        assert!(differs_beyond_policy(&with(""), &one));
        assert!(!differs_beyond_policy(&one, &with("Cgroup = '/y'")));
        assert!(!differs_beyond_policy(&with(""), &with("Glob = '*.x'")));
        let moved = Settings::from_bytes(
            b"\n\nLocalSocket /s\nOnAccessIncludePath /a",
            std::path::Path::new("clamd.conf"),
        );
        assert!(!differs_beyond_policy(&old, &moved.unwrap()));
    }
}
