//! One fault's surroundings: filesystem, clamd, agent, load, rules.
//!
//! Owns: starting and ending them, and the proof that protection is on. Must
//! not: know a fault.

use std::{
    fmt::Write as _,
    fs::{self, File},
    path::PathBuf,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use onacc_tests::{Agent, Clamd, ScratchFs, agent::AgentBuilder};

use crate::{
    Fault,
    faults::Policy,
    load::{Files, Load, SPAWNERS, THREADS, seen},
    machine,
    outcome::Outcome,
    resources::Resources,
    rules::{Leave, Rules, Seen},
};

/// `OnAccessCurlTimeout`, unless a fault wants another: the bound. (With one second, and
/// hundreds of processes beside it that wanted the same two processors, a scan took 1,007
/// ms, and the fail policy answered.)
pub const BOUND: Duration = Duration::from_secs(2);
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
        machine::observe();
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

    /// As whoever supervises the agent does when it has ended.
    pub fn start_agent_again(&mut self) -> Result<(), String> {
        self.kill_agent();
        self.start_agent()
    }

    /// Ends the agent and starts another, prepared further.
    pub fn replace_agent(
        &mut self,
        prepare: impl FnOnce(AgentBuilder) -> AgentBuilder,
    ) -> Result<(), String> {
        self.kill_agent();
        self.agent = Some(prepare(self.builder()).try_start()?);
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
            && longest
                > allowed
                    + machine::held_up_since(
                        Instant::now()
                            .checked_sub(longest)
                            .unwrap_or_else(Instant::now),
                    )
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
        self.fault_over_since(Instant::now());
    }

    /// The same for a fault that was over then.
    pub fn fault_over_since(&mut self, before: Instant) {
        let limit = Instant::now() + BACK + PROOF;
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
        if took > BACK && took > BACK + machine::held_up_since(before) {
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

    /// What the agent holds while nobody opens anything; the openers go on after it.
    pub fn resources_at_rest(&self) -> Result<Resources, String> {
        self.rest(true);
        thread::sleep(Duration::from_millis(500));
        let resources = self.resources();
        self.rest(false);
        resources
    }

    /// Has the openers rest, or go on.
    pub fn rest(&self, rest: bool) {
        if let Some(load) = &self.load {
            load.set_rest(rest);
        }
    }

    /// Whether something is wrong already.
    pub fn has_failed(&self) -> bool {
        !self.rules.violations().is_empty()
    }

    /// Strikes once in a scene that goes on; growth is not judged.
    pub fn play(&mut self, fault: &Fault) -> Result<Outcome, String> {
        self.fault = fault.name;
        self.rest(false);
        let before = self.resources()?;
        (fault.strike)(self)?;
        self.settle()?;
        let after = self.resources()?;
        Ok(self.outcome([before, after], 1))
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
        if let Some(load) = self.load.take()
            && !load.stop(self.bound + SLACK)
        {
            self.rules.violation("an opener hangs".to_owned());
        }
        let outcome = self.outcome([before, after], rounds);
        self.kill_agent();
        Ok(outcome)
    }

    fn outcome(&mut self, resources: [Resources; 2], rounds: u32) -> Outcome {
        if self.agent.as_ref().is_some_and(Agent::guard_fired) {
            self.rules
                .violation("the agent had to be killed".to_owned());
        }
        let tally = self.rules.tally();
        let said = if tally.violations.is_empty() {
            String::new()
        } else {
            self.said(&tally.violations)
        };
        Outcome {
            name: self.fault,
            rounds,
            opens: tally.opens,
            refused: tally.refused,
            slips: tally.slips,
            longest: tally.longest,
            recovery: std::mem::take(&mut self.recovery),
            resources,
            violations: tally.violations,
            said,
        }
    }

    /// What the agent said that may explain violations: its counters, its lines about
    /// their files, its last lines but those about opens that were refused.
    fn said(&self, violations: &[String]) -> String {
        let Ok(agent) = self.agent() else {
            return "no agent runs".to_owned();
        };
        let counters = agent.counters().unwrap_or_default();
        let mut text = String::new();
        for (name, value) in counters.iter().filter(|(_, value)| **value > 0) {
            let _ = write!(text, "{name} {value}, ");
        }
        let output = agent.output();
        let files: Vec<&str> = violations
            .iter()
            .filter_map(|what| what.starts_with('/').then(|| what.split_once(": "))?)
            .map(|(path, _)| path)
            .collect();
        let routine = |line: &str| {
            [" FOUND", "open refused", onacc_tests::agent::COUNTER]
                .iter()
                .any(|words| line.contains(words))
        };
        let about = output
            .lines()
            .filter(|line| files.iter().any(|path| line.contains(path)))
            .take(20);
        let rest: Vec<&str> = output.lines().filter(|line| !routine(line)).collect();
        for line in about.chain(rest[rest.len().saturating_sub(15)..].iter().copied()) {
            text.push('\n');
            text.push_str(line);
        }
        text
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
