//! clamonacc and onacc, on the same settings and the same actions.
//!
//! Each runs on a filesystem of its own, one after the other, with the same
//! clamd; what each open came to and which lines were logged is compared. Where
//! onacc is meant to differ, [`INTENDED`] names the case and the reason; a case
//! that is listed there and does not differ (any more) fails too. Must not: let
//! clamonacc see anything but the scratch filesystem, or trust it to end.

mod common;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use common::{LIMIT, Site, clean, infected};
use nix::unistd::User;
use onacc_tests::{
    Agent, Guard, ScratchFs, cat_as, child, clamd::EICAR_NAME, clamd::wait_until, guard,
    open_within, or_skip, require_root, skip, sys::die_with_parent,
};

const PROGRAM: &str = "/usr/sbin/clamonacc";
/// How often clamonacc is started until it stays: now and then it crashes.
const STARTS: usize = 4;
/// What an open may take here: clamonacc is slow.
const OPEN_LIMIT: Duration = Duration::from_secs(30);
/// Lines that are late by more than this are taken for missing.
const LINES_WITHIN: Duration = Duration::from_secs(4);

/// Where onacc is meant to come to something else: scene, case, clamonacc's
/// outcome, onacc's, and why.
const INTENDED: &[(&str, &str, &str, &str, &str)] = &[
    (
        "prevention",
        "user whose name only begins like an excluded one",
        "opens, unreported",
        "refused, reported",
        "names match whole: OnAccessExcludeUname dae is not the user daemon",
    ),
    (
        "prevention",
        "path of more than 1,023 bytes",
        "opens, unreported",
        "refused, reported",
        "clamonacc cuts the path, cannot stat it, and lets the file through",
    ),
    (
        "prevention",
        "directory moved out of the tree",
        "refused, reported",
        "opens, unreported",
        "clamonacc's mark stays on a directory that has left the watched tree",
    ),
    (
        "clamd down, deny on error, retries",
        "clean file",
        "opens, unreported",
        "refused, unreported",
        "OnAccessDenyOnError holds with OnAccessRetryAttempts, too",
    ),
    (
        "mount path with prevention",
        "infected",
        "opens, reported",
        "refused, reported",
        "OnAccessPrevention works on an OnAccessMountPath, too",
    ),
];

/// A running clamonacc; killed by its id and reaped on drop.
struct Peer {
    child: Child,
    guard: Guard,
    output: PathBuf,
    _dir: tempfile::TempDir,
}

impl Peer {
    fn start(site: &Site, plan: &Plan, probe: &Path) -> Result<Self, String> {
        let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
        let (conf, output) = (dir.path().join("clamd.conf"), dir.path().join("output"));
        let mut lines = plan.options.clone();
        lines.push(format!("LocalSocket {}", site.clamd().socket().display()));
        let fail = |error: std::io::Error| error.to_string();
        fs::write(&conf, lines.join("\n") + "\n").map_err(fail)?;
        let file = File::create(&output).map_err(fail)?;
        let errors = file.try_clone().map_err(fail)?;
        let mut command = Command::new(PROGRAM);
        command
            .args(["--foreground", "--fdpass"])
            .arg(format!("--config-file={}", conf.display()))
            .args(&plan.args)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(file)
            .stderr(errors);
        let child = die_with_parent(&mut command).spawn().map_err(fail)?;
        let guard = guard(child.id(), Duration::from_mins(2));
        let mut peer = Self {
            child,
            guard,
            output,
            _dir: dir,
        };
        // It says so before its marks stand; the probe tells.
        let until = Instant::now() + LIMIT;
        loop {
            if !matches!(peer.child.try_wait(), Ok(None)) || peer.guard.fired() {
                return Err(format!("clamonacc has ended; it said: {}", peer.said()));
            }
            drop(open_within(probe, OPEN_LIMIT));
            if peer.said().contains(&format!("{}: ", probe.display())) {
                return Ok(peer);
            }
            if Instant::now() > until {
                return Err(format!("clamonacc sees nothing; it said: {}", peer.said()));
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn said(&self) -> String {
        let bytes = fs::read(&self.output).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // On SIGTERM it may hang.
        child::kill(&mut self.child);
    }
}

/// Either of the two.
enum Running {
    Peer(Peer),
    Onacc(Agent),
}

impl Running {
    fn said(&self) -> String {
        match self {
            Self::Peer(peer) => peer.said(),
            Self::Onacc(agent) => agent.output(),
        }
    }
}

/// Settings for both.
#[derive(Default)]
struct Plan {
    options: Vec<String>,
    args: Vec<String>,
}

impl Plan {
    /// The usual settings: with a `LocalSocket` clamonacc wants an exclusion.
    fn usual(prevention: bool) -> Self {
        let plan = Self::default()
            .option("OnAccessExcludeUname dae")
            .option("OnAccessExcludeUID 4713");
        if prevention {
            plan.option("OnAccessPrevention yes")
        } else {
            plan
        }
    }

    fn option(mut self, line: &str) -> Self {
        self.options.push(line.to_owned());
        self
    }

    fn path(self, option: &str, path: &Path) -> Self {
        self.option(&format!("{option} {}", path.display()))
    }
}

/// Which of the two.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Which {
    Clamonacc,
    Onacc,
}

/// One of the two, at work on a filesystem of its own.
struct Stage {
    site: Site,
    running: Option<Running>,
    outcomes: BTreeMap<&'static str, String>,
}

impl Stage {
    fn new() -> Result<Self, String> {
        let site = Site::on(ScratchFs::ext4(64)?)?;
        Ok(Self {
            site,
            running: None,
            outcomes: BTreeMap::new(),
        })
    }

    fn infected(&self, name: &str) -> PathBuf {
        self.file(name, &infected())
    }

    fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.site.scratch().join(name);
        fs::create_dir_all(path.parent().expect("it has one")).expect("directories are made");
        fs::write(&path, content).expect("a file is written");
        path
    }

    fn start(&mut self, which: Which, plan: &Plan, probe: &Path) {
        self.running = Some(match which {
            Which::Clamonacc => {
                let started = (0..STARTS)
                    .map(|_| Peer::start(&self.site, plan, probe))
                    .inspect(|started| {
                        if let Err(why) = started {
                            println!("clamonacc is started again: {why}");
                        }
                    })
                    .find_map(Result::ok);
                Running::Peer(started.expect("clamonacc comes up"))
            }
            Which::Onacc => {
                let mut builder = Agent::builder(self.site.clamd()).guard(Duration::from_mins(2));
                for option in &plan.options {
                    builder = builder.option(option);
                }
                for arg in &plan.args {
                    builder = builder.arg(arg);
                }
                Running::Onacc(builder.start())
            }
        });
    }

    fn said(&self) -> String {
        self.running
            .as_ref()
            .map_or_else(String::new, Running::said)
    }

    /// Opens a file, and notes what came of it and whether it was reported.
    fn tries(&mut self, case: &'static str, path: &Path) {
        let open = open_within(path, OPEN_LIMIT);
        let came_to = match &open.outcome {
            onacc_tests::Outcome::Open(_) => "opens".to_owned(),
            _ if open.is_refused() => "refused".to_owned(),
            other => format!("{other:?}"),
        };
        drop(open);
        self.note(case, path, &came_to);
    }

    /// As a process of that user: clamonacc goes by the process.
    fn tries_as(&mut self, uid: u32, case: &'static str, path: &Path) {
        let cat = cat_as(uid, path, OPEN_LIMIT);
        let came_to = if cat.is_refused() {
            "refused".to_owned()
        } else if cat.content().is_some() {
            "opens".to_owned()
        } else {
            format!("{cat:?}")
        };
        self.note(case, path, &came_to);
    }

    fn note(&mut self, case: &'static str, path: &Path, came_to: &str) {
        let line = format!("{}: {EICAR_NAME} FOUND", path.display());
        let reported = || self.said().lines().any(|said| said == line);
        // What opens is reported after the fact, if at all.
        let limit = if came_to == "opens" {
            LINES_WITHIN / 4
        } else {
            LINES_WITHIN
        };
        let reported = if wait_until(limit, reported) {
            "reported"
        } else {
            "unreported"
        };
        let old = self.outcomes.insert(case, format!("{came_to}, {reported}"));
        assert_eq!(old, None, "{case} was tried twice");
    }
}

fn uid_of(name: &str) -> u32 {
    let user = User::from_name(name).ok().flatten();
    user.expect("the user is there").uid.as_raw()
}

/// What a scene does with either of them.
type Scene = fn(&mut Stage, Which);

fn prevention(stage: &mut Stage, which: Which) {
    let inside = stage.site.watched();
    let probe = stage.infected("in/probe");
    let bad = stage.infected("in/bad");
    let deep = stage.infected("in/a/b/c/bad");
    let good = stage.file("in/good", &clean());
    let empty = stage.file("in/empty", b"");
    let outside = stage.infected("out/bad");
    let mut large = infected();
    large.resize(4000, b' ');
    let large = stage.file("in/large", &large);
    let moved = stage.infected("in/moved/bad");
    // Before the start: onacc scans ahead what is written later.
    let [of_user, of_excluded, of_daemon] =
        ["user", "excluded", "daemon"].map(|name| stage.infected(&format!("in/of-{name}")));
    let linked = stage.site.scratch().join("in/link");
    symlink(&outside, &linked).expect("a symlink is made");
    let long = "d".repeat(250);
    let long = format!("in/{}", [long.as_str(); 5].join("/"));
    let long = stage.infected(&format!("{long}/bad"));
    let plan = Plan::usual(true)
        .path("OnAccessIncludePath", &inside)
        .option("OnAccessMaxFileSize 2000");
    stage.start(which, &plan, &probe);
    stage.tries("infected", &bad);
    stage.tries("infected, deep", &deep);
    stage.tries("clean", &good);
    stage.tries("empty", &empty);
    stage.tries("infected, outside", &outside);
    stage.tries("infected, outside, by a symlink", &linked);
    stage.tries("larger than OnAccessMaxFileSize", &large);
    stage.tries("path of more than 1,023 bytes", &long);
    let daemon = uid_of("daemon");
    stage.tries_as(4711, "a user", &of_user);
    stage.tries_as(4713, "excluded uid", &of_excluded);
    stage.tries_as(
        daemon,
        "user whose name only begins like an excluded one",
        &of_daemon,
    );
    let later = stage.site.scratch().mkdir("in/later");
    // What clamonacc misses is what is opened before it has followed.
    thread::sleep(Duration::from_secs(1));
    stage.tries(
        "infected, in a new directory",
        &stage.infected("in/later/bad"),
    );
    drop(later);
    let out = stage.site.scratch().join("moved-out");
    let from = moved.parent().expect("it has one");
    fs::rename(from, &out).expect("a directory is moved");
    thread::sleep(Duration::from_secs(1));
    stage.tries("directory moved out of the tree", &out.join("bad"));
}

fn notify_only(stage: &mut Stage, which: Which) {
    let inside = stage.site.watched();
    let probe = stage.infected("in/probe");
    let (bad, good) = (stage.infected("in/a/bad"), stage.file("in/good", &clean()));
    let outside = stage.infected("out/bad");
    let plan = Plan::usual(false).path("OnAccessIncludePath", &inside);
    stage.start(which, &plan, &probe);
    stage.tries("infected", &bad);
    stage.tries("clean", &good);
    stage.tries("infected, outside", &outside);
}

fn exclusion(stage: &mut Stage, which: Which) {
    let inside = stage.site.watched();
    let probe = stage.infected("in/probe");
    let (bad, off) = (stage.infected("in/bad"), stage.infected("in/off/bad"));
    let alike = stage.infected("in/off-and-more/bad");
    let plan = Plan::usual(true)
        .path("OnAccessIncludePath", &inside)
        .path("OnAccessExcludePath", &inside.join("off"));
    stage.start(which, &plan, &probe);
    stage.tries("infected", &bad);
    stage.tries("infected, excluded", &off);
    stage.tries("infected, in a directory whose name begins alike", &alike);
}

fn without_ddd(stage: &mut Stage, which: Which) {
    let inside = stage.site.watched();
    let probe = stage.infected("in/probe");
    let (bad, below) = (stage.infected("in/bad"), stage.infected("in/sub/bad"));
    let plan = Plan::usual(true)
        .path("OnAccessIncludePath", &inside)
        .option("OnAccessDisableDDD yes");
    stage.start(which, &plan, &probe);
    stage.tries("infected", &bad);
    stage.tries("infected, in a sub-directory", &below);
}

fn mount_path(stage: &mut Stage, which: Which) {
    let root = stage.site.scratch().path().to_path_buf();
    let (probe, bad) = (stage.infected("probe"), stage.infected("a/b/bad"));
    let plan = Plan::usual(true).path("OnAccessMountPath", &root);
    stage.start(which, &plan, &probe);
    stage.tries("infected", &bad);
}

fn clamd_down(stage: &mut Stage, which: Which) {
    down(stage, which, &["OnAccessDenyOnError yes"]);
}

fn clamd_down_retries(stage: &mut Stage, which: Which) {
    down(
        stage,
        which,
        &["OnAccessDenyOnError yes", "OnAccessRetryAttempts 2"],
    );
}

fn clamd_down_allow(stage: &mut Stage, which: Which) {
    down(stage, which, &[]);
}

fn down(stage: &mut Stage, which: Which, options: &[&str]) {
    let inside = stage.site.watched();
    let probe = stage.infected("in/probe");
    let good = stage.file("in/good", &clean());
    let mut plan = Plan::usual(true)
        .path("OnAccessIncludePath", &inside)
        .option("OnAccessCurlTimeout 1000");
    for option in options {
        plan = plan.option(option);
    }
    stage.start(which, &plan, &probe);
    stage.site.end_clamd();
    stage.tries("clean file", &good);
}

/// The actions: what becomes of the file, and the lines, with the paths cut.
fn quarantine(stage: &mut Stage, which: Which, action: &str) {
    let inside = stage.site.watched();
    let probe = stage.infected("in/probe");
    let (one, two) = (stage.infected("in/1/bad"), stage.infected("in/2/bad"));
    let dir = stage.site.scratch().mkdir("quarantine");
    let mut plan = Plan::usual(true).path("OnAccessIncludePath", &inside);
    plan.args.push(match action {
        "remove" => "--remove".to_owned(),
        _ => format!("--{action}={}", dir.display()),
    });
    stage.start(which, &plan, &probe);
    stage.tries("the first", &one);
    stage.tries("another of that name", &two);
    let wanted = if action == "copy" { 0 } else { 2 };
    let gone = |path: &PathBuf| !path.exists();
    let done = || [&one, &two].into_iter().filter(|path| gone(path)).count() == wanted;
    let in_time = wait_until(LINES_WITHIN, done);
    let root = stage.site.scratch().path().display().to_string();
    let lines = || -> BTreeSet<String> {
        let said = stage.said();
        let of_actions = said.lines().filter(|line| {
            !line.contains("/probe")
                && [": moved to", ": copied to", ": Removed."]
                    .iter()
                    .any(|part| line.contains(part))
        });
        of_actions.map(|line| line.replace(&root, "")).collect()
    };
    wait_until(LINES_WITHIN, || lines().len() >= 2);
    // clamonacc copies at each open; once is compared.
    let lines: Vec<String> = lines().into_iter().collect();
    stage.outcomes.insert("originals gone", in_time.to_string());
    stage.outcomes.insert("lines", lines.join("; "));
    let names = ["bad", "bad.001"]
        .map(|name| fs::read(dir.join(name)).is_ok_and(|bytes| bytes == infected()));
    stage.outcomes.insert("in quarantine", format!("{names:?}"));
}

fn moving(stage: &mut Stage, which: Which) {
    quarantine(stage, which, "move");
}

fn copying(stage: &mut Stage, which: Which) {
    quarantine(stage, which, "copy");
}

fn removing(stage: &mut Stage, which: Which) {
    quarantine(stage, which, "remove");
}

/// Runs a scene with both, and compares.
fn compare(name: &str, scene: Scene) {
    require_root!();
    if !Path::new(PROGRAM).exists() {
        skip!("there is no {PROGRAM}: apt-get install clamav-daemon");
    }
    let mut outcomes = Vec::new();
    for which in [Which::Clamonacc, Which::Onacc] {
        let mut stage = or_skip!(Stage::new());
        scene(&mut stage, which);
        if let Some(Running::Peer(peer)) = &stage.running {
            assert!(!peer.guard.fired(), "clamonacc hangs: {}", peer.said());
        }
        println!("{name}: {:#?}", stage.outcomes);
        outcomes.push(std::mem::take(&mut stage.outcomes));
    }
    let [theirs, ours] = &outcomes[..] else {
        unreachable!("two were run");
    };
    assert_eq!(theirs.len(), ours.len());
    let mut wrong = Vec::new();
    for (case, theirs) in theirs {
        let ours = &ours[case];
        let intended = INTENDED
            .iter()
            .find(|(scene, other, ..)| (*scene, *other) == (name, *case));
        match intended {
            None if theirs == ours => {}
            Some((_, _, old, new, _)) if old == theirs && new == ours => {}
            _ => wrong.push(format!(
                "{name}, {case}: clamonacc: {theirs}; onacc: {ours}; intended: {intended:?}"
            )),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Each difference is of a case that a scene has; the scenes check the rest.
#[test]
fn the_intended_differences_are_of_scenes_that_are_run() {
    let source = include_str!("differential.rs");
    for (scene, case, ..) in INTENDED {
        assert!(source.contains(&format!("compare({scene:?}")), "{scene}");
        assert!(source.matches(&format!("{case:?}")).count() >= 2, "{case}");
    }
}

#[test]
fn opens_under_prevention() {
    compare("prevention", prevention);
}

#[test]
fn opens_that_are_only_reported() {
    compare("notify only", notify_only);
}

#[test]
fn excluded_directories() {
    compare("exclusion", exclusion);
}

#[test]
fn a_directory_without_its_sub_directories() {
    compare("without DDD", without_ddd);
}

#[test]
fn a_mount_path_with_prevention() {
    compare("mount path with prevention", mount_path);
}

#[test]
fn opens_while_clamd_is_down() {
    compare("clamd down, allow on error", clamd_down_allow);
    compare("clamd down, deny on error", clamd_down);
    compare("clamd down, deny on error, retries", clamd_down_retries);
}

#[test]
fn infected_files_are_moved() {
    compare("move", moving);
}

#[test]
fn infected_files_are_copied() {
    compare("copy", copying);
}

#[test]
fn infected_files_are_removed() {
    compare("remove", removing);
}
