//! The agent under test: the real binary, its output, its end.
//!
//! Owns: how onacc is started, watched and ended. Must not: know more of it
//! than a user does (flags, options, lines of output, signals). Tested below
//! with a stand-in for the binary.

use std::{
    collections::BTreeMap,
    env, fs,
    io::{ErrorKind, Read},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{self, Signal},
    unistd::Pid,
};

use crate::{Clamd, FakeClamd, Guard, Result, child, guard, sys, workspace};

/// The line that says that marks stand begins with this.
pub const READY: &str = "onacc: protection is on";
/// The variable that says that the machine is emulated, and many times slower: scans
/// then have fifteen seconds where a test does not say how long they may take.
pub const SLOW_VARIABLE: &str = "ONACC_SLOW_MACHINE";
/// The lines that answer SIGUSR1 begin with this.
pub const COUNTER: &str = "onacc: counter: ";
/// The last one that it says when it says all.
const LAST_COUNTER: &str = ": scan_time_max_us ";
/// How long it may take to say all, on a busy machine.
const COUNTERS_WITHIN: Duration = Duration::from_secs(20);

// A loaded machine of the kernel matrix takes more than ten seconds for it.
const START_LIMIT: Duration = Duration::from_secs(50);
const STOP_LIMIT: Duration = Duration::from_secs(10);
const GUARD_LIMIT: Duration = Duration::from_mins(1);

/// The binary: `ONACC_BIN`, else the workspace's release build, else its debug build.
pub fn binary() -> PathBuf {
    if let Some(named) = env::var_os("ONACC_BIN") {
        return PathBuf::from(named);
    }
    let target = env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| workspace().join("target"), |dir| workspace().join(dir));
    let release = target.join("release/onacc");
    if release.exists() {
        release
    } else {
        target.join("debug/onacc")
    }
}

/// Something that the agent can take for its clamd: one that runs, or a path.
pub trait ClamdSocket {
    /// The path of the socket.
    fn socket_path(&self) -> PathBuf;
}

impl ClamdSocket for Clamd {
    fn socket_path(&self) -> PathBuf {
        self.socket()
    }
}

impl ClamdSocket for FakeClamd {
    fn socket_path(&self) -> PathBuf {
        self.socket().to_path_buf()
    }
}

impl ClamdSocket for Path {
    fn socket_path(&self) -> PathBuf {
        self.to_path_buf()
    }
}

impl ClamdSocket for PathBuf {
    fn socket_path(&self) -> PathBuf {
        self.clone()
    }
}

/// What the agent says of itself on SIGUSR1.
pub type Counters = BTreeMap<String, u64>;

type OnLine = Box<dyn FnMut(&str) + Send>;

/// How an agent is to be started.
pub struct AgentBuilder {
    binary: PathBuf,
    options: Vec<String>,
    args: Vec<String>,
    environment: Vec<(String, std::ffi::OsString)>,
    log: Option<PathBuf>,
    directory: PathBuf,
    open_files: Option<u64>,
    guard: Duration,
    on_line: Option<OnLine>,
}

/// An agent that has ended by itself.
#[derive(Debug)]
pub struct Exited {
    /// How it ended.
    pub status: ExitStatus,
    /// All that it printed.
    pub output: String,
}

/// A running agent; killed by its id and reaped on drop.
pub struct Agent {
    child: Child,
    guard: Guard,
    output: Arc<Output>,
    log: PathBuf,
    dir: tempfile::TempDir,
}

#[derive(Default)]
struct Output {
    text: Mutex<(String, bool)>,
    changed: Condvar,
}

impl Agent {
    /// Prepares an agent that asks this clamd; prevention is off unless set.
    pub fn builder<S: ClamdSocket + ?Sized>(clamd: &S) -> AgentBuilder {
        Self::without_clamd().option(&format!("LocalSocket {}", clamd.socket_path().display()))
    }

    /// Prepares an agent that is still to be told what clamd to ask.
    pub fn without_clamd() -> AgentBuilder {
        AgentBuilder {
            binary: binary(),
            options: Vec::new(),
            args: Vec::new(),
            environment: Vec::new(),
            log: None,
            directory: env::temp_dir(),
            open_files: None,
            guard: GUARD_LIMIT,
            on_line: None,
        }
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has printed so far, to stdout and stderr.
    pub fn output(&self) -> String {
        self.output.lock().0.clone()
    }

    /// What is in its log file.
    pub fn log(&self) -> String {
        let bytes = fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The path of its log file.
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// The path of its clamd.conf.
    pub fn conf(&self) -> PathBuf {
        self.dir.path().join("clamd.conf")
    }

    /// Waits until it has printed this; returns the line that has it.
    pub fn wait_for(&self, needle: &str, limit: Duration) -> Result<String> {
        self.output.wait_for(0, limit, |line| line.contains(needle))
    }

    /// Whether it is still running.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Whether its guard had to kill it.
    pub fn guard_fired(&self) -> bool {
        self.guard.fired()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.pid()).expect("a pid"));
        // It may have ended: the test will see that.
        let _ = signal::kill(pid, signal);
    }

    /// Asks it to end by SIGTERM; returns how it ended and after how long. An
    /// agent that takes more than ten seconds is killed, and shows it in the status.
    pub fn stop(&mut self) -> (ExitStatus, Duration) {
        let before = Instant::now();
        self.signal(Signal::SIGTERM);
        let status = child::wait_within(&mut self.child, STOP_LIMIT)
            .or_else(|| child::kill(&mut self.child))
            .expect("a killed agent can be reaped");
        let took = before.elapsed();
        self.output.wait_for_end(Duration::from_secs(2));
        (status, took)
    }

    /// Waits for it to end by itself; `None` if it goes on.
    pub fn wait_for_end(&mut self, limit: Duration) -> Option<ExitStatus> {
        let status = child::wait_within(&mut self.child, limit)?;
        self.output.wait_for_end(Duration::from_secs(2));
        Some(status)
    }

    /// Kills it by SIGKILL and reaps it.
    pub fn kill(&mut self) {
        child::kill(&mut self.child);
    }

    /// The counters that it said last, asked or at its end.
    pub fn counters_said(&self) -> Counters {
        parse_counters(&self.output())
    }

    /// Asks for its counters by SIGUSR1.
    pub fn counters(&self) -> Result<Counters> {
        let from = self.output.lock().0.len();
        self.signal(Signal::SIGUSR1);
        self.output.wait_for(from, COUNTERS_WITHIN, |line| {
            line.starts_with(COUNTER) && line.contains(LAST_COUNTER)
        })?;
        Ok(parse_counters(&self.output.lock().0[from..]))
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        child::kill(&mut self.child);
        if thread::panicking() {
            eprintln!("the agent said:\n{}", self.output());
        }
    }
}

impl AgentBuilder {
    /// Adds `OnAccessIncludePath`.
    #[must_use]
    pub fn include(self, path: impl AsRef<Path>) -> Self {
        self.option(&format!("OnAccessIncludePath {}", path.as_ref().display()))
    }

    /// Adds `OnAccessExcludePath`.
    #[must_use]
    pub fn exclude(self, path: impl AsRef<Path>) -> Self {
        self.option(&format!("OnAccessExcludePath {}", path.as_ref().display()))
    }

    /// Adds `OnAccessPrevention`.
    #[must_use]
    pub fn prevention(self, on: bool) -> Self {
        self.option(if on {
            "OnAccessPrevention yes"
        } else {
            "OnAccessPrevention no"
        })
    }

    /// Adds a line to its clamd.conf.
    #[must_use]
    pub fn option(mut self, line: &str) -> Self {
        self.options.push(line.to_owned());
        self
    }

    /// Adds an argument to its command line.
    #[must_use]
    pub fn arg(mut self, arg: &str) -> Self {
        self.args.push(arg.to_owned());
        self
    }

    /// Sets a variable of its environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<std::ffi::OsStr>) -> Self {
        let value = value.as_ref().to_owned();
        self.environment.push((name.to_owned(), value));
        self
    }

    /// Puts its log file there; else it is in a directory of its own.
    #[must_use]
    pub fn log_path(mut self, path: &Path) -> Self {
        self.log = Some(path.to_path_buf());
        self
    }

    /// Puts its clamd.conf, and its log file, into a new directory in this one.
    #[must_use]
    pub fn directory(mut self, path: &Path) -> Self {
        self.directory = path.to_path_buf();
        self
    }

    /// Lets it have this many open files at most.
    #[must_use]
    pub fn open_files(mut self, limit: u64) -> Self {
        self.open_files = Some(limit);
        self
    }

    /// Has it killed after this time (60 s unless set), whatever happens.
    #[must_use]
    pub fn guard(mut self, limit: Duration) -> Self {
        self.guard = limit;
        self
    }

    /// Hands over every line that it prints, as it comes.
    #[must_use]
    pub fn on_line(mut self, hear: impl FnMut(&str) + Send + 'static) -> Self {
        self.on_line = Some(Box::new(hear));
        self
    }

    /// Runs another binary.
    #[must_use]
    pub fn binary(mut self, path: &Path) -> Self {
        self.binary = path.to_path_buf();
        self
    }

    /// Starts it and waits until protection is on.
    pub fn start(self) -> Agent {
        self.try_start().expect("the agent starts")
    }

    /// Starts it and waits until protection is on, or says why it is not.
    pub fn try_start(self) -> Result<Agent> {
        let agent = self.spawn()?;
        let limit = Instant::now() + START_LIMIT;
        agent
            .output
            .wait_for(0, limit.saturating_duration_since(Instant::now()), |line| {
                line.starts_with(READY)
            })?;
        Ok(agent)
    }

    /// Starts it and waits until it has ended by itself.
    pub fn spawn_expect_exit(self) -> Exited {
        let mut agent = self.spawn().expect("the agent's process starts");
        let status = child::wait_within(&mut agent.child, START_LIMIT);
        agent.output.wait_for_end(Duration::from_secs(2));
        let output = agent.output();
        let status = status.unwrap_or_else(|| panic!("the agent goes on; it said:\n{output}"));
        Exited { status, output }
    }

    /// Starts it and waits for nothing.
    pub fn spawn(self) -> Result<Agent> {
        let trouble = |what: &str, error: std::io::Error| format!("{what}: {error}");
        let dir = tempfile::Builder::new()
            .prefix("onacc-agent.")
            .tempdir_in(&self.directory)
            .map_err(|error| trouble("making a directory for the agent", error))?;
        let conf = dir.path().join("clamd.conf");
        let bound = "OnAccessCurlTimeout";
        let mut options = self.options;
        if env::var_os(SLOW_VARIABLE).is_some()
            && !options.iter().any(|line| line.starts_with(bound))
        {
            options.push(format!("{bound} 15000"));
        }
        fs::write(&conf, options.join("\n") + "\n")
            .map_err(|error| trouble("writing the agent's clamd.conf", error))?;
        let log = self.log.unwrap_or_else(|| dir.path().join("onacc.log"));
        let (reader, writer) = std::io::pipe().map_err(|error| trouble("making a pipe", error))?;
        let errors = writer
            .try_clone()
            .map_err(|error| trouble("making a pipe", error))?;
        let mut command = Command::new(&self.binary);
        command
            .arg("--foreground")
            .arg(format!("--config-file={}", conf.display()))
            .arg(format!("--log={}", log.display()))
            .args(&self.args)
            .env_remove("NOTIFY_SOCKET")
            .envs(self.environment)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(writer)
            .stderr(errors)
            // Ctrl-C on a terminal is for whoever started us.
            .process_group(0);
        if let Some(limit) = self.open_files {
            sys::limit_open_files(&mut command, limit);
        }
        let command_to_run = sys::die_with_parent(&mut command);
        let mut spawned = command_to_run.spawn();
        // A copy of the binary may still be open for writing in a child that another
        // test has just forked, until that one calls execve(2).
        let given_up = Instant::now() + Duration::from_secs(10);
        while matches!(&spawned, Err(error) if error.kind() == ErrorKind::ExecutableFileBusy)
            && Instant::now() < given_up
        {
            thread::sleep(Duration::from_millis(10));
            spawned = command_to_run.spawn();
        }
        // The ends for writing must not stay open here.
        drop(command);
        let child = spawned
            .map_err(|error| trouble(&format!("starting {}", self.binary.display()), error))?;
        let guard = guard(child.id(), self.guard);
        let output = Arc::new(Output::default());
        let (filled, on_line) = (Arc::clone(&output), self.on_line);
        thread::spawn(move || filled.fill(reader, on_line));
        Ok(Agent {
            child,
            guard,
            output,
            log,
            dir,
        })
    }
}

impl Output {
    fn lock(&self) -> MutexGuard<'_, (String, bool)> {
        self.text.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in all that comes. It opens nothing, so the agent cannot block it.
    fn fill(&self, mut from: impl Read, mut on_line: Option<OnLine>) {
        let mut buffer = [0; 4096];
        let mut unfinished = String::new();
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            let new = String::from_utf8_lossy(&buffer[..count]);
            unfinished.push_str(&new);
            while let Some(end) = unfinished.find('\n') {
                let line: String = unfinished.drain(..=end).collect();
                // Before whoever waits for the line goes on.
                if let Some(hear) = &mut on_line {
                    hear(line.trim_end());
                }
            }
            self.lock().0.push_str(&new);
            self.changed.notify_all();
        }
        self.lock().1 = true;
        self.changed.notify_all();
    }

    /// Waits for a whole line that serves, beyond a place in the text.
    fn wait_for(
        &self,
        from: usize,
        limit: Duration,
        serves: impl Fn(&str) -> bool,
    ) -> Result<String> {
        let find = |text: &str| {
            text[from..]
                .split_inclusive('\n')
                .filter(|line| line.ends_with('\n'))
                .map(str::trim_end)
                .find(|line| serves(line))
                .map(str::to_owned)
        };
        let (text, _) = self
            .changed
            .wait_timeout_while(self.lock(), limit, |(text, ended)| {
                !*ended && find(text).is_none()
            })
            .unwrap_or_else(PoisonError::into_inner);
        find(&text.0).ok_or_else(|| {
            let how = if text.1 {
                "ended"
            } else {
                "did not say it in time"
            };
            format!("the agent {how}; it said:\n{}", text.0)
        })
    }

    fn wait_for_end(&self, limit: Duration) {
        let waited = self
            .changed
            .wait_timeout_while(self.lock(), limit, |(_, ended)| !*ended);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }
}

fn parse_counters(text: &str) -> Counters {
    text.lines()
        .filter_map(|line| line.strip_prefix(COUNTER)?.split_once(' '))
        .filter_map(|(name, value)| Some((name.to_owned(), value.trim().parse().ok()?)))
        .collect()
}

#[cfg(test)]
#[path = "agent_tests.rs"]
mod tests;
