//! Queues that grow or overflow while the agent is stopped.

use std::{
    fs::{self, File, OpenOptions},
    io::Write,
    path::PathBuf,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;

use super::super::{
    load::seen,
    rules::{Leave, Seen},
    scene::Scene,
};

/// More events than a group's usual queue holds (16,384), for a notify-only agent:
/// none may be lost.
pub fn events(scene: &mut Scene) -> Result<(), String> {
    const FILES: u64 = 20_000;
    let path = scene.files.dir.join("flood");
    fs::create_dir_all(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    let before = scene.agent()?.counters()?;
    scene.agent()?.signal(Signal::SIGSTOP);
    for n in 0..FILES {
        // Different files: events of one file would be merged.
        let file = path.join(n.to_string());
        fs::write(&file, "x").map_err(|error| format!("{}: {error}", file.display()))?;
    }
    scene.agent()?.signal(Signal::SIGCONT);
    scene.fault_over();
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let after = scene.agent()?.counters()?;
        let grown = |name: &str| {
            let value = |counters: &onacc_tests::Counters| counters.get(name).copied().unwrap_or(0);
            value(&after) - value(&before)
        };
        if grown("closed_after_write") >= FILES {
            break;
        }
        if grown("queue_overflows") > 0 || Instant::now() > deadline {
            let what = format!("events of {FILES} written files were lost: {after:?}");
            scene.rules.violation(what);
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    fs::remove_dir_all(&path).map_err(|error| format!("{}: {error}", path.display()))
}

/// More records than the eBPF ring buffer holds (8,192): all marks must go.
pub fn records(scene: &mut Scene) -> Result<(), String> {
    const COUNT: usize = 9000;
    let dir = scene.files.dir.join("marked");
    fs::create_dir_all(&dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    let path = |n: usize| -> PathBuf { dir.join(n.to_string()) };
    for n in 0..COUNT {
        fs::write(path(n), n.to_string()).map_err(|error| format!("marked files: {error}"))?;
    }
    std::thread::sleep(Duration::from_millis(200));
    for _ in 0..2 {
        for n in 0..COUNT {
            drop(File::open(path(n)));
        }
        scene.look_for_hangs();
    }
    let before = scene.agent()?.counters()?;
    let held_up = Duration::from_secs(5);
    scene.fault_begins(scene.by_policy().held_up(held_up));
    let mut files = Vec::new();
    for n in 0..COUNT {
        // Opened while the agent still answers; written while it does not.
        files.push(OpenOptions::new().append(true).open(path(n)));
    }
    scene.agent()?.signal(Signal::SIGSTOP);
    for file in files.iter_mut().flatten() {
        file.write_all(&scene.files.marker)
            .map_err(|error| format!("marked files: {error}"))?;
    }
    scene.agent()?.signal(Signal::SIGCONT);
    drop(files);
    scene.fault_over();
    let after = scene.agent()?.counters()?;
    for n in (0..COUNT).step_by(31) {
        if seen(&File::open(path(n))) != Seen::Refused {
            let what = format!("{}: infected, but opened", path(n).display());
            scene.rules.violation(what);
        }
    }
    let grown = |name: &str| {
        let value = |counters: &onacc_tests::Counters| counters.get(name).copied().unwrap_or(0);
        value(&after) - value(&before)
    };
    if grown("bpf_reported") > 0 && grown("bpf_lost") == 0 {
        return Err("the ring buffer did not overflow: nothing was tried".to_owned());
    }
    fs::remove_dir_all(&dir).map_err(|error| format!("marked files: {error}"))?;
    scene.rules.set(Leave::NONE);
    Ok(())
}
