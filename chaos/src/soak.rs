//! A soak: all faults in turn, for as long as one likes, most of them against
//! agents that are never started anew.
//!
//! Owns: the residents (one scene for each policy and bound, with an agent that
//! goes on from the first minute to the last), the looks at what agents hold, and
//! the sum of it. A fault that ends its agent, or wants one of its own kind, strikes
//! in a scene of its own. Must not: know a fault, or draw; `xtask` does.

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crate::{
    Outcome, Trouble, can_run,
    faults::{Fault, Policy},
    growth::{Growth, clock},
    resources::Resources,
    run_watched,
    scene::Scene,
};

/// How often agents are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// One look at one agent.
#[derive(Clone, Debug)]
pub struct Look {
    /// When, since the soak began.
    pub at: Duration,
    /// Which agent: a resident's name, or that of the fault in a scene of its own.
    pub who: String,
    /// What it held.
    pub held: Resources,
}

/// A fault that has struck.
#[derive(Clone, Debug)]
pub struct Strike {
    /// When it began.
    pub at: Duration,
    /// Which.
    pub name: &'static str,
    /// What it came to.
    pub result: Result<Outcome, Trouble>,
}

/// All of it.
#[derive(Debug, Default)]
pub struct Report {
    /// How long it took.
    pub time: Duration,
    /// Every strike.
    pub strikes: Vec<Strike>,
    /// Every look.
    pub looks: Vec<Look>,
    /// The residents, and what their agents' resources came to.
    pub residents: Vec<(String, Growth)>,
    /// What was wrong, and when.
    pub failures: Vec<String>,
}

struct Resident {
    name: String,
    policy: Policy,
    bound: Duration,
    scene: Option<Scene>,
    /// What its agent held at rest.
    at_rest: Vec<(Duration, Resources)>,
}

/// Who is looked at now.
type Watched = Arc<Mutex<Vec<(String, u32)>>>;

/// Plays these faults in turn for this long, and each once at least; `tell` hears of
/// every strike.
pub fn soak(
    faults: &[&Fault],
    time: Duration,
    mut tell: impl FnMut(&Strike),
) -> Result<Report, String> {
    let began = Instant::now();
    let mut report = Report::default();
    let mut residents: Vec<Resident> = Vec::new();
    let (watched, stop) = (Watched::default(), Arc::new(AtomicBool::new(false)));
    let looker = {
        let (watched, stop) = (Arc::clone(&watched), Arc::clone(&stop));
        thread::spawn(move || look(&watched, &stop, began))
    };
    let mut missing: Vec<&str> = Vec::new();
    for (turn, fault) in faults.iter().cycle().enumerate() {
        if turn >= faults.len() && began.elapsed() >= time {
            break;
        }
        if missing.contains(&fault.name) {
            continue;
        }
        let at = began.elapsed();
        let result = if fault.resident {
            let resident = resident_for(fault, &mut residents);
            resident.strike(fault, time, began, &watched)
        } else {
            let result = run_watched(fault, Duration::ZERO, |pid| {
                watch(&watched, fault.name, Some(pid));
            });
            watch(&watched, fault.name, None);
            result
        };
        if matches!(result, Err(Trouble::Missing(_))) {
            missing.push(fault.name);
        }
        let name = fault.name;
        let strike = Strike { at, name, result };
        report.failures.extend(wrong(&strike));
        tell(&strike);
        report.strikes.push(strike);
        if missing.len() == faults.len() {
            break;
        }
    }
    stop.store(true, Ordering::Relaxed);
    report.looks = looker.join().map_err(|_| "the looker panicked")?;
    for resident in residents {
        let growth = Growth::of(&resident.at_rest);
        for what in &growth.grown {
            report.failures.push(format!("{}: {what}", resident.name));
        }
        report.residents.push((resident.name, growth));
    }
    report.time = began.elapsed();
    Ok(report)
}

fn wrong(strike: &Strike) -> Vec<String> {
    let say = |what: &str| format!("at {} {}: {what}", clock(strike.at), strike.name);
    match &strike.result {
        Ok(outcome) => outcome.violations.iter().map(|what| say(what)).collect(),
        Err(trouble @ Trouble::Broken(_)) => vec![say(&trouble.to_string())],
        Err(Trouble::Missing(_)) => Vec::new(),
    }
}

fn resident_for<'a>(fault: &Fault, residents: &'a mut Vec<Resident>) -> &'a mut Resident {
    let found = residents
        .iter()
        .position(|one| one.policy == fault.policy && one.bound == fault.bound);
    let at = found.unwrap_or_else(|| {
        let name = format!("{:?}, bound {:?}", fault.policy, fault.bound).to_lowercase();
        residents.push(Resident {
            name,
            policy: fault.policy,
            bound: fault.bound,
            scene: None,
            at_rest: Vec::new(),
        });
        residents.len() - 1
    });
    &mut residents[at]
}

impl Resident {
    fn strike(
        &mut self,
        fault: &Fault,
        time: Duration,
        began: Instant,
        watched: &Watched,
    ) -> Result<Outcome, Trouble> {
        can_run(fault).map_err(Trouble::Missing)?;
        let played = self.play(fault, time, began, watched);
        let is_well = played
            .as_ref()
            .is_ok_and(|outcome| outcome.violations.is_empty());
        if !is_well {
            // The next one is not to suffer for it.
            self.scene = None;
            self.at_rest.clear();
            watch(watched, &self.name, None);
        }
        played.map_err(Trouble::Broken)
    }

    fn play(
        &mut self,
        fault: &Fault,
        time: Duration,
        began: Instant,
        watched: &Watched,
    ) -> Result<Outcome, String> {
        let scene = if let Some(scene) = &mut self.scene {
            scene
        } else {
            // Longer than all that is to come, and yet not for ever.
            let mut scene = Scene::set(fault, time + Duration::from_mins(30))?;
            scene.warm_up()?;
            self.scene.insert(scene)
        };
        watch(watched, &self.name, Some(scene.agent()?.pid()));
        let outcome = scene.play(fault)?;
        scene.rest(true);
        thread::sleep(Duration::from_millis(500));
        self.at_rest.push((began.elapsed(), scene.resources()?));
        Ok(outcome)
    }
}

fn watch(watched: &Watched, who: &str, pid: Option<u32>) {
    let mut watched = watched.lock().unwrap_or_else(PoisonError::into_inner);
    watched.retain(|(name, _)| name != who);
    watched.extend(pid.map(|pid| (who.to_owned(), pid)));
}

fn look(watched: &Watched, stop: &AtomicBool, began: Instant) -> Vec<Look> {
    let mut looks = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let now = watched
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let at = began.elapsed();
        // One that has just ended is passed over.
        looks.extend(now.into_iter().filter_map(|(who, pid)| {
            let held = Resources::of(pid).ok()?;
            Some(Look { at, who, held })
        }));
        thread::sleep(LOOK_EVERY);
    }
    looks
}

impl fmt::Display for Report {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let played = || {
            self.strikes
                .iter()
                .filter_map(|strike| Some((strike, strike.result.as_ref().ok()?)))
        };
        let sum = |of: fn(&Outcome) -> u64| played().map(|(_, outcome)| of(outcome)).sum::<u64>();
        writeln!(
            to,
            "soak: {}, {} strikes, {} opens judged, {} refused, {} let through by policy",
            clock(self.time),
            played().count(),
            sum(|outcome| outcome.opens),
            sum(|outcome| outcome.refused),
            sum(|outcome| outcome.slips),
        )?;
        let most = |of: fn(&Outcome) -> Duration| {
            let longest = played().max_by_key(|(_, outcome)| of(outcome));
            longest.map_or_else(String::new, |(strike, outcome)| {
                let ms = of(outcome).as_millis();
                format!("{ms} ms in {} at {}", strike.name, clock(strike.at))
            })
        };
        writeln!(
            to,
            "longest wait {}; protection back after at most {}",
            most(|outcome| outcome.longest),
            most(|outcome| outcome.recovery)
        )?;
        for (name, growth) in &self.residents {
            writeln!(to, "the agent that went on ({name}): {growth}")?;
        }
        for strike in &self.strikes {
            if let Err(Trouble::Missing(why)) = &strike.result {
                writeln!(to, "NOT TRIED {}: {why}", strike.name)?;
            }
        }
        for failure in &self.failures {
            writeln!(to, "FAILED {failure}")?;
        }
        if self.failures.is_empty() {
            write!(to, "nothing that must hold was broken")?;
        }
        Ok(())
    }
}
