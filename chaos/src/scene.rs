//! One fault's surroundings: filesystem, clamd, agent, load, rules.
//!
//! Owns: starting and ending them, and the proof that protection is on. Must
//! not: know a fault.

use std::{
    fmt::Write as _,
    fs::{self, File},
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
    thread,
    time::{Duration, Instant},
};

use onacc_tests::{Agent, Clamd, ScratchFs, agent::AgentBuilder};

use crate::{
    Fault,
    faults::Policy,
    load::{Files, Load, SPAWNERS, THREADS, seen},
    outcome::Outcome,
    resources::Resources,
    rules::{Leave, Rules, Seen},
};

/// `OnAccessCurlTimeout`, unless a fault wants another: the bound.
pub const BOUND: Duration = Duration::from_secs(1);
/// What a busy machine may add to a wait: scheduling, starting a process.
pub const SLACK: Duration = Duration::from_millis(1500);
/// Protection must be back by then.
pub const BACK: Duration = Duration::from_secs(2);
/// What a proof of protection may take besides, for opens that wait for the bound.
const PROOF: Duration = Duration::from_secs(10);

/// The surroundings.
pub struct Scene {
    // Dropped in this order: openers are let go before what they open is gone.
    load: Option<Load>,
    /// The agent, while one runs.
    pub agent: Option<Agent>,
    /// clamd.
    pub clamd: Clamd,
    clamd_dir: tempfile::TempDir,
    /// The watched filesystem.
    pub scratch: ScratchFs,
    /// What everybody opens.
    pub files: Files,
    /// What everybody may see.
    pub rules: Arc<Rules>,
    fault: &'static str,
    extra: Vec<String>,
    policy: Policy,
    bound: Duration,
    memory: u64,
    prepare: fn(AgentBuilder) -> AgentBuilder,
    guard: Duration,
    recovery: Duration,
}

impl Scene {
    /// Sets it, with an agent that runs; the load begins with `warm_up`.
    pub fn set(fault: &Fault, time: Duration) -> Result<Self, String> {
        Clamd::installed()?;
        let clamd_dir = tempfile::tempdir().map_err(|error| format!("a directory: {error}"))?;
        let marker = ["[onacc-chaos-", "infected-here]"].concat().into_bytes();
        let mut line = String::from("Onacc.Chaos.Marker:0:*:");
        for byte in &marker {
            let _ = write!(line, "{byte:02x}");
        }
        let database = clamd_dir.path().join("db");
        fs::create_dir_all(&database)
            .and_then(|()| fs::write(database.join("marker.ndb"), line + "\n"))
            .map_err(|error| format!("a signature: {error}"))?;
        let clamd = Clamd::builder(clamd_dir.path())
            .option("ExitOnOOM no")
            .try_start()?;
        let scratch = ScratchFs::ext4(fault.mib)?;
        let (dir, outside) = (scratch.mkdir("in"), scratch.mkdir("out"));
        let write = |name: String, infected: bool| {
            let mut bytes = format!("{name}\n").repeat(100).into_bytes();
            if infected {
                bytes.extend_from_slice(&marker);
            }
            scratch.write(PathBuf::from("in").join(name), &bytes)
        };
        let files = Files {
            clean: (0..40)
                .map(|n| write(format!("clean-{n}"), false))
                .collect(),
            infected: (0..10).map(|n| write(format!("bad-{n}"), true)).collect(),
            dir,
            outside,
            marker,
        };
        let mut scene = Self {
            load: None,
            agent: None,
            clamd,
            clamd_dir,
            scratch,
            files,
            rules: Arc::new(Rules::new(fault.bound + SLACK)),
            bound: fault.bound,
            memory: fault.memory,
            fault: fault.name,
            extra: fault
                .options
                .iter()
                .map(|line| (*line).to_owned())
                .collect(),
            policy: fault.policy,
            prepare: fault.prepare,
            guard: time + Duration::from_mins(3),
            recovery: Duration::ZERO,
        };
        scene.start_agent()?;
        Ok(scene)
    }

    /// Starts an agent; there must be none.
    pub fn start_agent(&mut self) -> Result<(), String> {
        self.agent = Some(self.builder().try_start()?);
        Ok(())
    }

    /// An agent like the scene's own.
    pub fn builder(&self) -> AgentBuilder {
        let mut builder = Agent::builder(&self.clamd)
            .prevention(self.policy != Policy::Notify)
            .include(&self.files.dir)
            .option(&format!("OnAccessCurlTimeout {}", self.bound.as_millis()))
            .guard(self.guard);
        if self.policy == Policy::Deny {
            builder = builder.option("OnAccessDenyOnError yes");
        }
        for line in &self.extra {
            builder = builder.option(line);
        }
        (self.prepare)(builder)
    }

    /// The agent that runs.
    pub fn agent(&self) -> Result<&Agent, String> {
        self.agent
            .as_ref()
            .ok_or_else(|| "no agent runs".to_owned())
    }

    /// Kills the agent, which lets every opener go.
    pub fn kill_agent(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            agent.kill();
        }
    }

    /// The directory of clamd's files.
    pub fn clamd_dir(&self) -> &std::path::Path {
        self.clamd_dir.path()
    }

    /// What is allowed while the agent cannot ask clamd, by the policy in force.
    pub fn by_policy(&self) -> Leave {
        match self.policy {
            Policy::Allow | Policy::Notify => Leave::ALLOWS,
            Policy::Deny => Leave::DENIES,
        }
    }

    /// Starts the load, and waits until the agent knows the files.
    pub fn warm_up(&mut self) -> Result<(), String> {
        if self.policy == Policy::Notify {
            self.rules.set(Leave::ALLOWS);
        }
        self.load = Some(Load::start(&self.files, &self.rules));
        thread::sleep(Duration::from_millis(700));
        self.settle()
    }

    /// Lets the fault's time pass, and sees to it that nobody hangs.
    pub fn wait(&self, time: Duration) {
        let until = Instant::now() + time;
        while Instant::now() < until {
            self.look_for_hangs();
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Nobody may have waited beyond what is allowed.
    pub fn look_for_hangs(&self) {
        let longest = self.load.as_ref().map(Load::longest_open);
        let allowed = self.rules.longest_allowed();
        if let Some(longest) = longest
            && longest > allowed
        {
            let what = format!("an opener still waits after {longest:?}, bound {allowed:?}");
            self.rules.violation(what);
        }
    }

    /// The fault begins: this is allowed until [`Scene::fault_over`].
    pub fn fault_begins(&self, leave: Leave) {
        self.rules.set(leave);
    }

    /// The fault is over: protection must be back within [`BACK`], and the rules
    /// are strict from then on.
    pub fn fault_over(&mut self) {
        let before = Instant::now();
        let limit = before + BACK + PROOF;
        while !self.is_protected() {
            self.look_for_hangs();
            if Instant::now() >= limit {
                self.rules
                    .violation("protection did not come back".to_owned());
                return;
            }
        }
        let took = before.elapsed();
        self.recovery = self.recovery.max(took);
        if took > BACK {
            let what = format!("protection was back after {took:?} only");
            self.rules.violation(what);
        }
        if self.policy != Policy::Notify {
            self.rules.set(Leave::NONE);
        }
    }

    /// One new infected file is refused (or, in notify-only mode, reported), and
    /// a new clean one opens.
    fn is_protected(&self) -> bool {
        let serial = Instant::now();
        let name = format!("proof-{serial:?}").replace(|c: char| !c.is_ascii_alphanumeric(), "");
        let (bad, good) = (
            self.files.dir.join(format!("{name}-bad")),
            self.files.dir.join(format!("{name}-good")),
        );
        let away = self.files.outside.join(&name);
        let put = |to: &PathBuf, bytes: &[u8]| {
            fs::write(&away, bytes).and_then(|()| fs::rename(&away, to))
        };
        let marked = [name.as_bytes(), &self.files.marker[..]].concat();
        let made = put(&bad, &marked).is_ok() && put(&good, name.as_bytes()).is_ok();
        let mut holds = made;
        if made {
            let refused = seen(&File::open(&bad)) == Seen::Refused;
            holds = seen(&File::open(&good)) == Seen::Opened
                && match self.policy {
                    Policy::Notify => self.is_reported(&bad),
                    Policy::Allow | Policy::Deny => refused,
                };
        }
        for path in [away, bad, good] {
            let _ = fs::remove_file(path);
        }
        holds
    }

    fn is_reported(&self, path: &std::path::Path) -> bool {
        let text = path.display().to_string();
        let agent = self.agent.as_ref();
        agent.is_some_and(|agent| agent.wait_for(&text, Duration::from_millis(500)).is_ok())
    }

    /// Waits until what the agent has to do is done.
    pub fn settle(&mut self) -> Result<(), String> {
        let until = Instant::now() + PROOF;
        while !self.is_protected() {
            if Instant::now() >= until {
                let said = self.agent()?.output();
                return Err(format!("there is no protection; the agent said:\n{said}"));
            }
        }
        thread::sleep(Duration::from_millis(300));
        Ok(())
    }

    /// What the agent holds.
    pub fn resources(&self) -> Result<Resources, String> {
        Resources::of(self.agent()?.pid())
    }

    /// Whether something is wrong already.
    pub fn has_failed(&self) -> bool {
        !self.rules.violations().is_empty()
    }

    /// Ends all and says what it came to.
    pub fn end(mut self, before: Resources, rounds: u32) -> Result<Outcome, String> {
        let openers = (THREADS + SPAWNERS) as u64;
        // One look may fall upon a burst.
        let until = Instant::now() + Duration::from_secs(5);
        let (after, grown) = loop {
            let after = self.resources()?;
            let grown = after.grown_since(&before, openers, self.memory);
            if grown.is_empty() || Instant::now() >= until {
                break (after, grown);
            }
            thread::sleep(Duration::from_millis(200));
        };
        for what in grown {
            self.rules.violation(what);
        }
        if self.agent.as_ref().is_some_and(Agent::guard_fired) {
            self.rules
                .violation("the agent had to be killed".to_owned());
        }
        if let Some(load) = self.load.take()
            && !load.stop(self.bound + SLACK)
        {
            self.rules.violation("an opener hangs".to_owned());
        }
        let rules = &self.rules;
        let output = self.agent()?.output();
        let lines: Vec<&str> = output
            .lines()
            .filter(|line| !line.contains(" FOUND"))
            .collect();
        let said = lines[lines.len().saturating_sub(15)..].join("\n");
        let outcome = Outcome {
            name: self.fault,
            rounds,
            opens: rules.opens.load(Ordering::Relaxed),
            refused: rules.refused.load(Ordering::Relaxed),
            slips: rules.slips.load(Ordering::Relaxed),
            longest: Duration::from_micros(rules.longest.load(Ordering::Relaxed)),
            recovery: self.recovery,
            resources: [before, after],
            violations: rules.violations(),
            said,
        };
        self.kill_agent();
        Ok(outcome)
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.kill_agent();
        if let Some(load) = self.load.take() {
            load.stop(Duration::from_secs(5));
        }
    }
}
