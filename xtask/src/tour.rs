//! The tour: the agent at work on a filesystem of the tour's own.
//!
//! Owns: the stage (private clamd, loop mount, agent), what is shown on it, and
//! its end. Must not: watch anything of the host, claim what was not measured,
//! or leave something behind. A guard thread, which opens nothing, kills the
//! agent when it holds up an open. Tested by `cargo xtask run --once`.

use std::{
    fs::{self, OpenOptions},
    io::Write,
    os::fd::AsFd,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
    },
};
use onacc_tests::{
    Agent, Clamd, Counters, Opened, Opening, Outcome, ScratchFs, SharedMapping,
    agent::COUNTER,
    clamd::{self, EICAR_NAME},
    eicar, guard, open_within,
};

use crate::shell::{Result, agent_binary};

/// Prints a line. A reader that went away is no reason to leave a mount behind.
macro_rules! say {
    ($($text:tt)*) => {{
        let _ = writeln!(std::io::stdout(), $($text)*);
    }};
}

/// No open may take longer; the agent promises less.
const OPEN_LIMIT: Duration = Duration::from_secs(15);
/// The whole tour takes seconds.
const TOUR_LIMIT: Duration = Duration::from_mins(2);
/// After a store through a mapping, the mark must be gone by then.
const STORE_LIMIT: Duration = Duration::from_secs(1);
/// The lines that name a kernel tier begin with this.
const TIER: &str = "onacc: tier:";
/// How many files of clamav-testfiles are shown.
const SHOWN_TEST_FILES: usize = 6;

/// Shows the tour; goes on protecting until Ctrl-C unless it is for once.
pub fn show(once: bool) -> Result<()> {
    let end = EndSignals::block()?;
    let stage = Stage::set()?;
    say!(
        "\nonacc protects {}\non a filesystem of the tour's own, with a clamd of its own\n",
        stage.protected.display()
    );
    let mut agent = stage.start_agent()?;
    let mut checks = Checks::default();
    let pid = agent.pid();
    let watchdog = guard(pid, TOUR_LIMIT);
    let mut tour = Tour {
        stage: &stage,
        agent: &agent,
        end: &end,
        checks: &mut checks,
    };
    let toured = tour.show();
    let hung = watchdog.fired();
    drop(watchdog);
    if toured.is_ok() && !once && !hung {
        checks.report();
        stage.invite();
        wait_for_end(&mut agent, &end);
    }
    say!("\nending the tour");
    let running = agent.is_running();
    let (status, took) = agent.stop();
    checks.add(
        running && status.success(),
        &format!("the agent ended on SIGTERM after {}: {status}", shown(took)),
    );
    show_counters(&agent.counters_said());
    drop(agent);
    drop(stage);
    toured?;
    if checks.report() {
        Ok(())
    } else {
        Err("the tour: not all was as it should be".to_owned())
    }
}

/// What the tour found to be true, or not.
#[derive(Default)]
struct Checks {
    untrue: Vec<String>,
    count: usize,
}

impl Checks {
    /// Shows a claim, and whether it holds.
    fn add(&mut self, holds: bool, claim: &str) {
        self.count += 1;
        say!("{} {claim}", if holds { "   ok " } else { "  NOT " });
        if !holds {
            self.untrue.push(claim.to_owned());
        }
    }

    /// Sums up; says whether all was true.
    fn report(&self) -> bool {
        say!("");
        for claim in &self.untrue {
            say!("not true: {claim}");
        }
        let good = self.count - self.untrue.len();
        say!("{good} of {} statements were true", self.count);
        self.untrue.is_empty()
    }
}

/// Signals that end the tour, taken from a descriptor so that all is put away.
struct EndSignals(SignalFd);

impl EndSignals {
    /// Blocks them in this thread, and so in every thread started later.
    fn block() -> Result<Self> {
        let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]);
        let fail = |error| format!("taking signals: {error}");
        signals.thread_block().map_err(fail)?;
        SignalFd::with_flags(&signals, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
            .map(Self)
            .map_err(fail)
    }

    /// Whether one has come, waiting for at most this time.
    fn came_within(&self, limit: Duration) -> bool {
        let timeout = PollTimeout::try_from(limit).unwrap_or(PollTimeout::ZERO);
        let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, timeout).is_ok_and(|count| count > 0)
    }
}

/// Everything that the tour plays on; put away on drop, clamd first.
struct Stage {
    clamd: Clamd,
    scratch: ScratchFs,
    protected: PathBuf,
    _dir: tempfile::TempDir,
}

impl Stage {
    fn set() -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("onacc-tour.")
            .tempdir()
            .map_err(|error| format!("making a temporary directory: {error}"))?;
        let clamd = Clamd::builder(dir.path()).try_start()?;
        let scratch = ScratchFs::host(32)?;
        let protected = scratch.join("protected");
        let stage = Self {
            clamd,
            scratch,
            protected,
            _dir: dir,
        };
        stage
            .fill()
            .map_err(|error| format!("writing the tour's files: {error}"))?;
        Ok(stage)
    }

    /// Writes the files, while nothing is watched yet.
    fn fill(&self) -> std::io::Result<()> {
        fs::create_dir(&self.protected)?;
        fs::write(self.file("clean.txt"), "Nothing is wrong with this file.\n")?;
        fs::write(self.file("eicar.com"), eicar())?;
        fs::write(self.file("rewritten.txt"), vec![b'.'; 4096])?;
        fs::write(self.scratch.join("outside-eicar.com"), eicar())?;
        for file in shown_test_files() {
            let name = file.file_name().unwrap_or_default();
            fs::copy(&file, self.protected.join(name))?;
        }
        Ok(())
    }

    fn file(&self, name: &str) -> PathBuf {
        self.protected.join(name)
    }

    fn start_agent(&self) -> Result<Agent> {
        Agent::builder(&self.clamd)
            .binary(&agent_binary())
            .include(&self.protected)
            .prevention(true)
            .arg("--verbose")
            // It lives as long as the user likes; the tour has a guard of its own.
            .guard(Duration::MAX)
            // Tiers and counters are shown in their place.
            .on_line(|line| {
                if !line.starts_with(TIER) && !line.starts_with(COUNTER) {
                    say!("  agent | {line}");
                }
            })
            .try_start()
    }

    /// How to go on from another terminal.
    fn invite(&self) {
        let protected = self.protected.display();
        say!("\nTry it from another terminal:");
        say!("  cat {protected}/clean.txt");
        say!("  cat {protected}/eicar.com");
        say!(
            "  cp {}/clam.zip {protected} && cat {protected}/clam.zip",
            clamd::TEST_FILES
        );
        say!("What the agent prints is shown here. Ctrl-C ends the tour.\n");
    }
}

/// The tour itself, part by part.
struct Tour<'a> {
    stage: &'a Stage,
    agent: &'a Agent,
    end: &'a EndSignals,
    checks: &'a mut Checks,
}

impl Tour<'_> {
    /// All that is shown; ends early on a signal or a held up open.
    fn show(&mut self) -> Result<()> {
        self.title("which kernel features are in force, and why")?;
        self.tiers();
        self.title("a clean file opens")?;
        self.clean()?;
        self.title("an infected file does not")?;
        self.refused("eicar.com", EICAR_NAME)?;
        self.title("nor do files of clamav-testfiles")?;
        for path in shown_test_files() {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            self.refused(&name, "Onacc.Test.")?;
        }
        self.title("outside the include path all is untouched")?;
        self.outside()?;
        self.title("a clean file that turns bad through a mapping")?;
        self.rewritten()
    }

    fn title(&self, text: &str) -> Result<()> {
        // The agent's lines come when they come: let them come here.
        if self.end.came_within(Duration::from_millis(150)) {
            return Err("the tour was ended by a signal".to_owned());
        }
        say!("\n{text}");
        Ok(())
    }

    fn tiers(&mut self) {
        let output = self.agent.output();
        let tiers: Vec<&str> = tier_lines(&output).collect();
        for line in &tiers {
            say!("      {line}");
        }
        self.checks
            .add(!tiers.is_empty(), "the agent says which tiers are in force");
    }

    fn clean(&mut self) -> Result<()> {
        let path = self.stage.file("clean.txt");
        let first = self.open(&path)?;
        self.checks.add(
            first.is_open(),
            &format!("first open: {} (clamd scanned the file)", shown(first.took)),
        );
        // The mark is placed after the answer.
        thread::sleep(Duration::from_millis(100));
        let before = self.agent.counters()?;
        let second = self.open(&path)?;
        let events = grown(&before, &self.agent.counters()?, "events");
        let (holds, who) = match events {
            Some(0) => (true, "the kernel answered: no event reached the agent"),
            Some(_) if !marks_are_in_force(self.agent) => {
                (true, "the agent answered: no kernel marks in this tier")
            }
            _ => (false, "the kernel answered: no event reached the agent"),
        };
        self.checks.add(
            holds && second.is_open(),
            &format!("second open: {} ({who})", shown(second.took)),
        );
        Ok(())
    }

    fn outside(&mut self) -> Result<()> {
        let opened = self.open(&self.stage.scratch.join("outside-eicar.com"))?;
        self.checks.add(
            opened.is_open(),
            &format!("outside-eicar.com opens: {}", shown(opened.took)),
        );
        Ok(())
    }

    /// A clean file is opened, mapped, made infected through the mapping.
    fn rewritten(&mut self) -> Result<()> {
        let path = self.stage.file("rewritten.txt");
        let clean = self.open(&path)?;
        self.checks.add(
            clean.is_open(),
            &format!("clean, it opens: {}", shown(clean.took)),
        );
        thread::sleep(Duration::from_millis(100));
        let opening = Opening::start_with(&path, OpenOptions::new().read(true).write(true), None);
        let writable = self.settled(&path, opening.within(OPEN_LIMIT))?;
        let Outcome::Open(file) = writable.outcome else {
            return Err(format!("a clean file for writing: {}", answer(&writable)));
        };
        let mut mapping =
            SharedMapping::of(&file).map_err(|error| format!("mapping a file: {error}"))?;
        mapping.store(0, &eicar());
        let stored = Instant::now();
        let mut early = 0;
        let mut mapped = self.open(&path)?;
        while mapped.is_open() && stored.elapsed() < STORE_LIMIT {
            early += 1;
            mapped = self.open(&path)?;
        }
        let window = match early {
            0 => String::new(),
            _ => format!(
                " (this tier hears of a store and cannot hold it up: {early} opens still \
                 succeeded, the last refused {} after the store)",
                shown(stored.elapsed())
            ),
        };
        self.checks.add(
            mapped.is_refused(),
            &format!(
                "EICAR stored in it, still mapped: {}{window}",
                answer(&mapped)
            ),
        );
        drop(mapping);
        drop(file);
        let after = self.open(&path)?;
        self.checks.add(
            after.is_refused(),
            &format!("unmapped and closed: {}", answer(&after)),
        );
        Ok(())
    }

    /// Opens a file that must be refused, and shows the verdict line.
    fn refused(&mut self, name: &str, signature: &str) -> Result<()> {
        let path = self.stage.file(name);
        let opened = self.open(&path)?;
        let begins = format!("{}: {signature}", path.display());
        let said = self.agent.wait_for(&begins, Duration::from_secs(5));
        let (logged, says) = match said {
            Ok(line) if line.ends_with(" FOUND") => (true, "the line above says why"),
            _ => (false, "the agent logged no such verdict"),
        };
        self.checks.add(
            opened.is_refused() && logged,
            &format!("{name}: {}, {says}", answer(&opened)),
        );
        Ok(())
    }

    fn open(&self, path: &Path) -> Result<Opened> {
        self.settled(path, open_within(path, OPEN_LIMIT))
    }

    /// An open that hangs ends the tour, and the agent at once: that frees
    /// whoever waits.
    fn settled(&self, path: &Path, opened: Opened) -> Result<Opened> {
        if opened.timed_out() {
            self.agent.signal(Signal::SIGKILL);
            return Err(format!(
                "the open of {} hung for {}: the agent was killed",
                path.display(),
                shown(opened.took)
            ));
        }
        Ok(opened)
    }
}

/// Waits for Ctrl-C, or for the end of the agent.
fn wait_for_end(agent: &mut Agent, end: &EndSignals) {
    while !end.came_within(Duration::from_millis(300)) {
        if !agent.is_running() {
            say!("the agent has ended by itself");
            return;
        }
    }
}

fn tier_lines(output: &str) -> impl Iterator<Item = &str> {
    output.lines().filter(|line| line.starts_with(TIER))
}

/// Whether the agent keeps clean verdicts as marks in the kernel.
fn marks_are_in_force(agent: &Agent) -> bool {
    let output = agent.output();
    let mut tiers = output.lines().filter(|line| line.starts_with(TIER));
    !tiers.any(|line| line.contains("eBPF: none") || line.contains("eBPF: off"))
}

/// Shows what was counted, without what never happened.
fn show_counters(counters: &Counters) {
    let counted = counters.iter().filter(|(_, value)| **value > 0);
    let words: Vec<String> = counted
        .map(|(name, value)| format!("{name} {value}"))
        .collect();
    say!("      counters: {}", words.join(", "));
}

/// By how much a counter has grown; `None` if the agent has no such counter.
fn grown(before: &Counters, after: &Counters, name: &str) -> Option<u64> {
    Some(after.get(name)?.saturating_sub(*before.get(name)?))
}

fn shown_test_files() -> Vec<PathBuf> {
    let mut files = clamd::test_files();
    files.truncate(SHOWN_TEST_FILES);
    files
}

fn answer(opened: &Opened) -> String {
    let took = shown(opened.took);
    match &opened.outcome {
        Outcome::Open(_) => format!("opened after {took}"),
        Outcome::Failed(errno) => format!("{} after {took}", errno.desc()),
        Outcome::TimedOut => format!("no answer within {took}"),
    }
}

fn shown(took: Duration) -> String {
    if took < Duration::from_millis(1) {
        format!("{:.1} µs", took.as_secs_f64() * 1e6)
    } else {
        format!("{:.1} ms", took.as_secs_f64() * 1e3)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_grow_or_are_not_there() {
        let before = Counters::from([("events".to_owned(), 3)]);
        let after = Counters::from([("events".to_owned(), 5)]);
        assert_eq!(grown(&before, &after, "events"), Some(2));
        assert_eq!(grown(&before, &after, "other"), None);
    }

    #[test]
    fn times_are_shown_in_a_fitting_unit() {
        assert_eq!(shown(Duration::from_nanos(3_250)), "3.2 µs");
        assert_eq!(shown(Duration::from_micros(1_500)), "1.5 ms");
    }
}
