//! What all workloads stand on: one private clamd, the agents, sizes.
//!
//! Owns: how the agents are started and ended, with the same settings for both.
//! Must not: let an agent mark a filesystem that is not the benchmark's own, or
//! start one without a guard.

use std::{
    cell::Cell,
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use onacc_tests::{Agent, Clamd, Counters, agent, eicar};

use crate::{
    bench::{cpu::CpuTimes, peer::Peer, plan::Plan, row::Cpu},
    shell::Result,
};

/// The user that clamd runs as, whose opens both agents let through.
const CLAMD_USER: &str = "clamav";
/// How often clamonacc is started until it stays.
const PEER_STARTS: usize = 5;
/// How long marks and counters may take to settle.
const SETTLE_LIMIT: Duration = Duration::from_secs(10);

/// Whether openers wait for the verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// They do: `OnAccessPrevention yes`.
    Prevention,
    /// They do not.
    NotifyOnly,
}

impl Mode {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Prevention, Self::NotifyOnly];

    /// What the names of rows end with.
    pub fn suffix(self) -> &'static str {
        match self {
            Self::Prevention => "",
            Self::NotifyOnly => ", notify-only",
        }
    }
}

/// What an agent is to watch; the same for both.
#[derive(Clone, Debug)]
pub struct Watch {
    /// `OnAccessIncludePath`.
    pub include: PathBuf,
    /// Further lines of clamd.conf.
    pub options: Vec<String>,
    /// `OnAccessPrevention`.
    pub prevention: bool,
    /// Arguments of onacc.
    pub args: Vec<String>,
    /// When its guard kills it.
    pub guard: Duration,
    /// How long clamonacc may take until it protects: when it crashes at its
    /// start, it hangs, and openers with it.
    pub peer_start: Duration,
    /// Whether clamonacc's start is what is measured. Otherwise the first probe
    /// waits, for an open in the moment of its start can crash it.
    pub times_start: bool,
}

impl Watch {
    /// A tree, with prevention.
    pub fn new(include: &Path) -> Self {
        Self {
            include: include.to_path_buf(),
            options: Vec::new(),
            prevention: true,
            args: Vec::new(),
            guard: Duration::from_mins(1),
            peer_start: Duration::from_secs(6),
            times_start: false,
        }
    }

    /// Has openers wait, or not.
    #[must_use]
    pub fn mode(mut self, mode: Mode) -> Self {
        self.prevention = mode == Mode::Prevention;
        self
    }

    /// Adds a line to clamd.conf.
    #[must_use]
    pub fn option(mut self, line: impl Into<String>) -> Self {
        self.options.push(line.into());
        self
    }

    /// Gives both more time, for a large tree.
    #[must_use]
    pub fn guard(mut self, limit: Duration) -> Self {
        self.guard = limit;
        self.peer_start = limit / 4;
        self
    }

    /// Has clamonacc probed from its very start.
    #[must_use]
    pub fn timing_start(mut self) -> Self {
        self.times_start = true;
        self
    }

    /// The coverage that onacc is told to use, where it can be told.
    #[must_use]
    pub fn coverage(mut self, coverage: &Coverage) -> Self {
        self.args.extend(coverage.arg.clone());
        self
    }

    /// The lines of clamd.conf, but for the socket.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = vec![
            format!("OnAccessIncludePath {}", self.include.display()),
            if self.prevention {
                "OnAccessPrevention yes".to_owned()
            } else {
                "OnAccessPrevention no".to_owned()
            },
            format!("OnAccessExcludeUname {CLAMD_USER}"),
            "OnAccessMaxThreads 16".to_owned(),
        ];
        lines.extend(self.options.iter().cloned());
        lines
    }
}

/// What carries marks: one of the agent's ways, and whether it has it.
#[derive(Clone, Debug)]
pub struct Coverage {
    /// Its name.
    pub name: &'static str,
    /// Whether this build of the agent has it.
    pub available: bool,
    arg: Option<String>,
}

/// The stage.
pub struct Stage {
    /// How much is measured.
    pub plan: Plan,
    /// The clamd that all columns ask.
    pub clamd: Clamd,
    /// onacc.
    pub agent: PathBuf,
    /// Its coverages.
    pub coverages: [Coverage; 2],
    seed: Cell<u64>,
    peer_restarts: Cell<u32>,
    /// When the workload should be done.
    until: Cell<Instant>,
    dir: tempfile::TempDir,
}

impl Stage {
    /// Starts clamd.
    pub fn set(plan: Plan) -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("onacc-bench.")
            .tempdir()
            .map_err(|error| format!("making a temporary directory: {error}"))?;
        // clamd runs as another user, who must be let through to its own files.
        open_to_all(dir.path())?;
        let clamd_dir = dir.path().join("clamd");
        fs::create_dir(&clamd_dir)
            .map_err(|error| format!("making {}: {error}", clamd_dir.display()))?;
        let clamd = Clamd::builder(&clamd_dir).as_user(CLAMD_USER).try_start()?;
        let agent = agent::binary();
        let help = Command::new(&agent)
            .arg("--help")
            .output()
            .map_err(|error| format!("{} does not start: {error}", agent.display()))?;
        let can_be_told = String::from_utf8_lossy(&help.stdout).contains("--coverage");
        let coverages = ["filesystem", "directory"].map(|name| Coverage {
            name,
            // Without the option there is but one.
            available: can_be_told || name == "filesystem",
            arg: can_be_told.then(|| format!("--coverage={name}")),
        });
        Ok(Self {
            plan,
            clamd,
            coverages,
            agent,
            seed: Cell::new(1),
            peer_restarts: Cell::new(0),
            until: Cell::new(Instant::now()),
            dir,
        })
    }

    /// Begins a workload, which may take about this long.
    pub fn begin(&self, budget: Duration) {
        self.until.set(Instant::now() + budget);
    }

    /// Rounds, one at least and so many at most: as many as the time allows that the
    /// workload has left, if so many further loops of rounds are to share it.
    pub fn rounds(&self, most: usize, loops_left: u32) -> impl Iterator<Item = usize> {
        let left = self.until.get().saturating_duration_since(Instant::now());
        Rounds {
            most,
            done: 0,
            began: Instant::now(),
            share: left / (loops_left + 1),
        }
    }

    /// Looks at the processor time of clamd and of this agent from here on.
    pub fn meter(&self, agent: u32) -> Result<Meter> {
        Meter::start([agent, self.clamd.pid()])
    }

    /// Starts onacc and waits until protection is on.
    pub fn onacc(&self, watch: &Watch) -> Result<Agent> {
        self.onacc_hearing(watch, |_| ())
    }

    /// The same, and hands over every line that it prints, as it comes.
    pub fn onacc_hearing(
        &self,
        watch: &Watch,
        hear: impl FnMut(&str) + Send + 'static,
    ) -> Result<Agent> {
        let mut builder = Agent::builder(&self.clamd)
            .binary(&self.agent)
            .directory(self.dir.path())
            .guard(watch.guard)
            .on_line(hear);
        for line in watch.lines() {
            builder = builder.option(&line);
        }
        for arg in &watch.args {
            builder = builder.arg(arg);
        }
        builder.try_start()
    }

    /// Starts clamonacc and waits until it refuses the probes, or names them. Now and then it
    /// crashes at its start; then it is started again, and that is remarked.
    pub fn clamonacc(&self, watch: &Watch, probes: &[PathBuf]) -> Result<Peer> {
        let start = || Peer::start(&self.clamd, self.dir.path(), watch, probes);
        let mut started = start();
        for _ in 1..PEER_STARTS {
            let Err(why) = &started else { break };
            println!("  started again: {why}");
            self.peer_restarts.set(self.peer_restarts.get() + 1);
            started = start();
        }
        started
    }

    /// How often clamonacc did not come up, and was started again.
    pub fn peer_restarts(&self) -> u32 {
        self.peer_restarts.get()
    }

    /// Content that no file had before, so that no cache of clamd's knows it.
    pub fn content(&self, size: usize) -> Vec<u8> {
        let seed = self.seed.replace(self.seed.get() + 1);
        content(seed, size)
    }

    /// Writes this many new files of 4 KiB into a new directory, and waits until
    /// they are on disk and no longer young.
    pub fn files(&self, dir: &Path, count: usize) -> Result<Vec<PathBuf>> {
        let write = || {
            fs::create_dir_all(dir)?;
            let paths: Vec<PathBuf> = (0..count).map(|n| dir.join(format!("{n}.txt"))).collect();
            for path in &paths {
                fs::write(path, self.content(4096))?;
            }
            Ok::<_, std::io::Error>(paths)
        };
        let paths = write().map_err(|error| format!("files in {}: {error}", dir.display()))?;
        rest(dir)?;
        Ok(paths)
    }
}

/// Ends when the next round would take longer than what is left.
struct Rounds {
    most: usize,
    done: usize,
    began: Instant,
    share: Duration,
}

impl Iterator for Rounds {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        let spent = self.began.elapsed();
        let each = spent / u32::try_from(self.done.max(1)).unwrap_or(u32::MAX);
        if self.done >= self.most || (self.done > 0 && spent + each > self.share) {
            return None;
        }
        self.done += 1;
        Some(self.done - 1)
    }
}

/// Processor time of an agent and of clamd since a moment.
pub struct Meter {
    pids: [u32; 2],
    before: [CpuTimes; 2],
}

impl Meter {
    fn start(pids: [u32; 2]) -> Result<Self> {
        let [agent, clamd] = pids;
        let before = [CpuTimes::of(agent)?, CpuTimes::of(clamd)?];
        Ok(Self { pids, before })
    }

    /// What fell to each of so many operations.
    pub fn each(&self, count: usize) -> Result<Cpu> {
        let count = f64::from(u32::try_from(count.max(1)).unwrap_or(u32::MAX));
        let spent = |number: usize| -> Result<f64> {
            let now = CpuTimes::of(self.pids[number])?;
            Ok(now.since(&self.before[number]).as_secs_f64() * 1e6 / count)
        };
        Ok(Cpu {
            agent: spent(0)?,
            clamd: spent(1)?,
        })
    }
}

/// Writes EICAR there, for agents to refuse.
pub fn probe(path: &Path) -> Result<PathBuf> {
    fs::write(path, eicar()).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(path.to_path_buf())
}

/// Waits until the filesystem has nothing left to write, and no file is young.
pub fn rest(on: &Path) -> Result<()> {
    let fail = |error: &dyn std::fmt::Display| format!("syncing {}: {error}", on.display());
    let dir = fs::File::open(on).map_err(|error| fail(&error))?;
    nix::unistd::syncfs(&dir).map_err(|error| fail(&error))?;
    thread::sleep(Duration::from_millis(60));
    Ok(())
}

/// Ends onacc; an error if it had ended before, or does not end well.
pub fn end(mut agent: Agent) -> Result<()> {
    if agent.guard_fired() || !agent.is_running() {
        return Err(format!("the agent has ended; it said:\n{}", agent.output()));
    }
    let (status, took) = agent.stop();
    if status.success() {
        Ok(())
    } else {
        Err(format!("the agent ended with {status} after {took:?}"))
    }
}

/// How much a counter has grown.
pub fn grown(before: &Counters, after: &Counters, name: &str) -> Result<u64> {
    let value = |counters: &Counters| {
        counters
            .get(name)
            .copied()
            .ok_or_else(|| format!("the agent has no counter {name}"))
    };
    Ok(value(after)?.saturating_sub(value(before)?))
}

/// Repeats an operation until a thousand times raise this counter by less than ten.
pub fn settle(
    agent: &Agent,
    counter: &str,
    mut operation: impl FnMut() -> Result<()>,
) -> Result<()> {
    let deadline = Instant::now() + SETTLE_LIMIT;
    let mut before = agent.counters()?;
    loop {
        for _ in 0..1000 {
            operation()?;
        }
        let after = agent.counters()?;
        let events = grown(&before, &after, counter)?;
        if events < 10 {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(format!(
                "1000 opens still raise {counter} by {events} after {SETTLE_LIMIT:?}"
            ));
        }
        before = after;
    }
}

/// Makes a directory that all may enter.
pub fn open_to_all(dir: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755))
        .map_err(|error| format!("opening {} to all: {error}", dir.display()))
}

/// Lines of text made from a number, by a xorshift generator.
fn content(seed: u64, size: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = format!("{seed}\n").into_bytes();
    while bytes.len() < size {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(format!("{state:016x} some words between numbers\n").bytes());
    }
    bytes.truncate(size);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contents_differ_and_have_their_size() {
        let all: std::collections::HashSet<Vec<u8>> = (1..500).map(|n| content(n, 4096)).collect();
        assert_eq!(all.len(), 499);
        assert!(all.iter().all(|content| content.len() == 4096));
    }

    #[test]
    fn rounds_end_with_their_number_or_with_the_time() {
        let rounds = |most, share| Rounds {
            most,
            done: 0,
            began: Instant::now(),
            share,
        };
        assert_eq!(rounds(3, Duration::from_mins(1)).count(), 3);
        // One is always measured.
        let slow = rounds(100, Duration::ZERO).inspect(|_| thread::sleep(Duration::from_millis(2)));
        assert_eq!(slow.count(), 1);
    }

    #[test]
    fn both_agents_get_the_same_lines() {
        let lines = Watch::new(Path::new("/x")).option("A b").lines();
        assert!(lines.contains(&"OnAccessIncludePath /x".to_owned()));
        assert!(lines.contains(&"A b".to_owned()));
    }
}
