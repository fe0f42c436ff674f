//! Openers that die while they wait, and openers in great numbers.

use std::{
    fs,
    os::unix::process::CommandExt as _,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use onacc_tests::{child, sys::die_with_parent};

use super::super::{resources::Resources, rules::Leave, scene::Scene};

/// Shells, and the files that each opens at once, by a process for each.
const SHELLS: usize = 12;
const EACH: usize = 250;
/// What must have waited at the same time, at the least, for the fault to count.
const MOST_OF_THEM: usize = SHELLS * EACH * 9 / 10;

/// How long a machine may take that has much else to do.
const GENEROUS: Duration = Duration::from_secs(30);

/// clamd stands still, thousands wait, and are killed all at once, each shell with
/// the processes of its group. Before clamd goes on, their places must be free.
pub fn killed(scene: &mut Scene) -> Result<(), String> {
    let before = scene.resources()?;
    let cancelled = counter(scene, "cancelled")?;
    let dirs = new_files(scene)?;
    scene.fault_begins(scene.by_policy());
    scene.clamd.stop();
    let mut shells = Vec::new();
    for dir in &dirs {
        let script = "for f in \"$0\"/*; do cat \"$f\" >/dev/null 2>&1 & done; wait";
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", script])
            .arg(dir)
            .stdin(Stdio::null())
            .process_group(0);
        let shell = die_with_parent(&mut command).spawn();
        shells.push(shell.map_err(|error| format!("sh: {error}"))?);
    }
    let until = Instant::now() + Duration::from_secs(40);
    // Who waits has a file in the agent's hands.
    let mut at_once = 0;
    while at_once < SHELLS * EACH && Instant::now() < until {
        scene.wait(Duration::from_millis(100));
        let held = scene.resources()?.fds.saturating_sub(before.fds);
        at_once = usize::try_from(held).unwrap_or(usize::MAX);
    }
    let waiting: Vec<u32> = shells.iter().flat_map(children).collect();
    for mut shell in shells {
        let group = Pid::from_raw(i32::try_from(shell.id()).map_err(|error| error.to_string())?);
        killpg(group, Signal::SIGKILL).map_err(|error| format!("killing openers: {error}"))?;
        child::kill(&mut shell);
    }
    let gone = |pid: &u32| !std::path::Path::new(&format!("/proc/{pid}")).exists();
    let until = Instant::now() + GENEROUS;
    while !waiting.iter().all(gone) {
        if Instant::now() >= until {
            let left = waiting.iter().filter(|pid| !gone(pid)).count();
            let what = format!("{left} killed openers hang");
            scene.rules.violation(what);
            break;
        }
        scene.wait(Duration::from_millis(20));
    }
    free_again(scene, &before)?;
    scene.clamd.cont();
    scene.fault_over();
    for dir in dirs {
        fs::remove_dir_all(&dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    }
    let cancelled = counter(scene, "cancelled")? - cancelled;
    if at_once < MOST_OF_THEM {
        return Err(format!(
            "only {at_once} waited at once: too little was tried"
        ));
    }
    if cancelled < MOST_OF_THEM as u64 {
        return Err(format!(
            "{at_once} waited, the agent missed {cancelled} only"
        ));
    }
    Ok(())
}

/// New bytes, so that each opener has to wait for clamd; moved in complete, so that
/// nobody scans them ahead.
fn new_files(scene: &Scene) -> Result<Vec<PathBuf>, String> {
    let fail = |error| format!("files for the crowd: {error}");
    let mut dirs = Vec::new();
    for shell in 0..SHELLS {
        let name = format!("crowd-{shell}");
        let (away, dir) = (scene.files.outside.join(&name), scene.files.dir.join(&name));
        fs::create_dir_all(&away).map_err(fail)?;
        for n in 0..EACH {
            let text = format!("{shell} {n} {:?}", Instant::now());
            fs::write(away.join(n.to_string()), text).map_err(fail)?;
        }
        fs::rename(&away, &dir).map_err(fail)?;
        dirs.push(dir);
    }
    Ok(dirs)
}

/// The processes that a shell has started.
fn children(shell: &Child) -> Vec<u32> {
    let pid = shell.id();
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let text = text.unwrap_or_default();
    text.split_whitespace()
        .filter_map(|pid| pid.parse().ok())
        .collect()
}

/// What was held for openers that are gone is let go although clamd still owes
/// replies: only what it has in hand, and the load, may hold files.
fn free_again(scene: &Scene, before: &Resources) -> Result<(), String> {
    const IN_HAND: u64 = 40;
    let until = Instant::now() + GENEROUS;
    loop {
        let now = scene.resources()?;
        if now.fds <= before.fds + IN_HAND {
            return Ok(());
        }
        if Instant::now() >= until {
            let what = format!(
                "{} files are still open for openers that are gone ({} before)",
                now.fds, before.fds
            );
            scene.rules.violation(what);
            return Ok(());
        }
        scene.wait(Duration::from_millis(50));
    }
}

fn counter(scene: &Scene, name: &str) -> Result<u64, String> {
    let counters = scene.agent()?.counters()?;
    Ok(counters.get(name).copied().unwrap_or(0))
}

/// Hundreds of processes that start others, which open files. They end by
/// themselves; their number is what bounds them.
pub fn fork_bomb(scene: &mut Scene) -> Result<(), String> {
    // Starting a process takes long among so many.
    scene.fault_begins(Leave::NONE.held_up(Duration::from_secs(3)));
    let clean = &scene.files.clean[0];
    let script = "for i in 1 2 3 4 5 6; do \
                  (for j in 1 2 3 4 5 6 7 8 9 10; do (exec cat \"$0\" >/dev/null) & done; wait) & \
                  done; wait";
    let mut bombs = Vec::new();
    for _ in 0..6 {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]).arg(clean).stdin(Stdio::null());
        let child = die_with_parent(&mut command).spawn();
        bombs.push(child.map_err(|error| format!("sh: {error}"))?);
    }
    for mut bomb in bombs {
        if child::wait_within(&mut bomb, Duration::from_secs(30)).is_none() {
            child::kill(&mut bomb);
            scene
                .rules
                .violation("a process of the fork bomb hangs".to_owned());
        }
    }
    scene.fault_over();
    Ok(())
}
