//! Random work by several processes at once, and one thing to hold at all times:
//! in scope, content with a signature cannot be opened once its writer is done,
//! and everything else can.
//!
//! `ONACC_SEED` repeats the choices of a run (not its timing),
//! `ONACC_PROPERTY_SECONDS` makes it longer (`cargo xtask test --long`). Must not:
//! allow time for what the design does not: a window is given only after a store
//! through a shared mapping, after the move of a directory, and in coverage
//! "directory" for a new one, and what needed it is counted.

mod common;
#[path = "common/openers.rs"]
mod openers;
#[path = "common/processes.rs"]
mod processes;
#[path = "common/work.rs"]
mod work;
#[path = "common/world.rs"]
mod world;

use std::{
    env, fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use common::{Site, counters};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use onacc_tests::{ScratchFs, agent::AgentBuilder, or_skip, require_root};
use openers::Slips;
use processes::Task;
use work::Worker;
use world::{DIRECTORIES, MERGED, Rng, SLOTS, Side, UPPER, World};

/// Processes that work side by side, each on directories of its own.
const PROCESSES: u64 = 2;
/// Workers in each, on the same files.
const WORKERS: u64 = 2;
/// Threads in each that open files at the worst of times, whatever comes of it.
const DISTURBERS: u64 = 1;

fn seconds() -> u64 {
    let set = env::var("ONACC_PROPERTY_SECONDS").ok();
    set.and_then(|text| text.parse().ok()).unwrap_or(15)
}

fn seed() -> u64 {
    let set = env::var("ONACC_SEED").ok();
    set.and_then(|text| text.parse().ok()).unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        now.map_or(1, |now| u64::from(now.subsec_nanos()) + now.as_secs())
    })
}

/// Opens what may be moved, replaced or deleted meanwhile, and looks at nothing.
fn disturb(world: &World, mut rng: Rng, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        let side = Side::random(&mut rng);
        let path = world.path(rng.below(DIRECTORIES), side, rng.below(SLOTS));
        let _ = fs::OpenOptions::new()
            .read(true)
            .write(rng.chance(10))
            .open(path);
        thread::sleep(Duration::from_micros(50));
    }
}

/// Runs the workers; what failed first, if anything did.
fn run(world: &World, seed: u64, slips: &Slips) -> Option<String> {
    let stop = AtomicBool::new(false);
    let until = Instant::now() + Duration::from_secs(seconds());
    thread::scope(|scope| {
        for number in 0..DISTURBERS {
            let (rng, stop) = (Rng::new(seed ^ (100 + number)), &stop);
            scope.spawn(move || disturb(world, rng, stop));
        }
        let workers: Vec<_> = (0..WORKERS)
            .map(|number| {
                let (rng, stop) = (Rng::new(seed ^ (number + 1)), &stop);
                scope.spawn(move || {
                    let mut worker = Worker::new(world, rng, slips);
                    while Instant::now() < until && !stop.load(Ordering::Relaxed) {
                        if let Err(error) = worker.step() {
                            stop.store(true, Ordering::Relaxed);
                            let last = worker.history().join("\n  ");
                            return Some(format!("{error}\nworker {number} did:\n  {last}"));
                        }
                    }
                    None
                })
            })
            .collect();
        let ends: Vec<_> = workers
            .into_iter()
            .map(thread::ScopedJoinHandle::join)
            .collect();
        stop.store(true, Ordering::Relaxed);
        ends.into_iter()
            .find_map(|end| end.unwrap_or_else(|_| Some("a worker panicked".to_owned())))
    })
}

/// Where new directories have a window.
const DIRECTORY_COVERAGE: &str = "ext4, directory coverage";

/// What a working process says at its end, before its numbers.
const CHECKED: &str = "CHECKED ";

/// No test of its own: what the processes of the others run.
#[test]
fn working_process() {
    let Some(task) = Task::own() else { return };
    let world = World::new(&task.root, task.number, &mut Rng::new(task.seed))
        .with_late_directories(task.new_are_late);
    for number in 0..DIRECTORIES {
        fs::create_dir_all(world.deep(number, world.read(number).side))
            .expect("making a directory");
    }
    let slips = Slips::in_minutes(seconds() / 60);
    let failure = run(&world, task.seed, &slips).or_else(|| {
        // Whatever is left, once more, without any allowance.
        thread::sleep(Duration::from_millis(300));
        let mut worker = Worker::new(&world, Rng::new(task.seed), &slips);
        worker.check_all().err()
    });
    // On a line of its own, whatever the harness has begun to say.
    println!("\n{CHECKED}{} {}", slips.checks(), slips.after_write());
    eprintln!("process {}: {slips}", task.number);
    if let Some(failure) = failure {
        panic!("{failure}\ndirectories:\n  {}", world.moves());
    }
}

/// Checks, and slips that nothing explains, as a working process said them.
fn numbers(said: &str) -> Option<(u64, u64)> {
    let line = said.lines().find_map(|line| line.strip_prefix(CHECKED))?;
    let (checks, slips) = line.split_once(' ')?;
    Some((checks.parse().ok()?, slips.parse().ok()?))
}

fn holds_on(site: &Site, agent: AgentBuilder, what: &str) {
    let agent = agent.exclude(site.watched().join("off"));
    for dir in ["out", "in/off"] {
        site.scratch().mkdir(dir);
    }
    holds_at(site.scratch().path(), agent, what);
}

/// Works in the directories `in`, `out` and `in/off` of `root`.
fn holds_at(root: &Path, agent: AgentBuilder, what: &str) {
    let seed = seed();
    let agent = agent.guard(Duration::from_secs(seconds() + 60)).start();
    let working: Vec<_> = (0..PROCESSES)
        .map(|number| {
            let task = Task {
                root: root.to_path_buf(),
                number,
                seed: seed ^ (1000 * number),
                new_are_late: what == DIRECTORY_COVERAGE,
            };
            task.start("working_process")
        })
        .collect();
    let ends: Vec<_> = working.into_iter().map(processes::end_of).collect();
    let counted = counters(&agent);
    eprintln!("{what}, ONACC_SEED={seed}:");
    for (_, _, said) in &ends {
        eprint!("{said}");
    }
    for name in [
        "events",
        "scans",
        "joined",
        "prescans",
        "known_clean",
        "known_infected",
        "directories_ignored",
        "marks_placed",
        "marks_dropped_dirty",
        "marks_flushed",
        "scan_errors",
        "timeouts",
        "unreachable",
    ] {
        eprint!("{name} {}  ", counted[name]);
    }
    eprintln!();
    let (mut checks, mut unexplained) = (0, 0);
    for (well, out, said) in &ends {
        assert!(
            well,
            "{what}, ONACC_SEED={seed}: {out}\n{said}\ncounters: {counted:?}"
        );
        let of_one = numbers(out).expect("a process that is well says its numbers");
        checks += of_one.0;
        unexplained += of_one.1;
    }
    for name in ["timeouts", "unreachable"] {
        assert_eq!(counted[name], 0, "{name}, ONACC_SEED={seed}");
    }
    // Minutes may meet it again; the short run may once.
    let allowed = 1 + seconds() / 60;
    assert!(unexplained <= allowed, "{unexplained} slips after a write");
    assert!(checks > 100, "too little was tried");
}

#[test]
fn no_infected_content_opens_and_no_clean_content_is_refused_on_ext4() {
    require_root!();
    let site = or_skip!(Site::ext4());
    holds_on(&site, site.agent(), "ext4");
}

#[test]
fn no_infected_content_opens_and_no_clean_content_is_refused_on_xfs() {
    require_root!();
    let scratch = or_skip!(ScratchFs::xfs(320));
    let site = or_skip!(Site::on(scratch));
    holds_on(&site, site.agent(), "xfs");
}

#[test]
fn no_infected_content_opens_and_no_clean_content_is_refused_on_btrfs() {
    require_root!();
    let scratch = or_skip!(ScratchFs::btrfs(256));
    let site = or_skip!(Site::on(scratch));
    holds_on(&site, site.agent(), "btrfs");
}

#[test]
fn no_infected_content_opens_and_no_clean_content_is_refused_on_tmpfs() {
    require_root!();
    let site = or_skip!(Site::tmpfs());
    holds_on(&site, site.agent(), "tmpfs");
}

/// Unmounted with the test.
struct Overlay(PathBuf);

impl Drop for Overlay {
    fn drop(&mut self) {
        // Of a test that has failed somebody may be in it still.
        let _detached = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

/// An overlay on this filesystem; its layers are in scope as it is.
fn holds_on_an_overlay_on(site: &Site, what: &str) {
    let scratch = site.scratch();
    let dirs = ["lower/out", "lower/in/off", UPPER, "work", MERGED];
    let [_, _, upper, work, merged] = dirs.map(|name| scratch.mkdir(name));
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        scratch.join("lower").display(),
        upper.display(),
        work.display()
    );
    let none = MsFlags::empty();
    mount(
        Some("onacc-test"),
        &merged,
        Some("overlay"),
        none,
        Some(options.as_str()),
    )
    .expect("an overlay on a filesystem of the test's own");
    let overlay = Overlay(merged);
    let mut agent = site.agent();
    for root in [&overlay.0, &upper] {
        agent = agent.include(root.join("in")).exclude(root.join("in/off"));
    }
    holds_at(&overlay.0, agent, what);
}

#[test]
fn no_infected_content_opens_and_no_clean_content_is_refused_on_overlays() {
    require_root!();
    holds_on_an_overlay_on(&or_skip!(Site::ext4()), "overlay on ext4");
    holds_on_an_overlay_on(&or_skip!(Site::tmpfs()), "overlay on tmpfs");
}

/// A new directory is watched a moment after it is made; what is put into it
/// meanwhile is scanned, but may be opened first.
#[test]
fn no_infected_content_opens_and_no_clean_content_is_refused_in_directory_coverage() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let agent = site.agent().arg("--coverage=directory");
    holds_on(&site, agent, DIRECTORY_COVERAGE);
}
