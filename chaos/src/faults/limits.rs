//! Limits that are reached: open files, memory, disk space, marks.

use std::{
    fs::{self, File},
    io::Write,
    path::PathBuf,
    process::Command,
    time::Duration,
};

use super::super::{
    load::seen,
    rules::{Leave, Seen},
    scene::{BOUND, Scene},
};

/// More openers wait than the agent may hold files for; the kernel must not
/// refuse the rest (EMFILE) but keep them waiting, for the same bound.
pub fn open_files(scene: &mut Scene) -> Result<(), String> {
    scene.fault_begins(scene.by_policy());
    scene.clamd.stop();
    let clean = &scene.files.clean;
    let away = |n: usize| scene.files.outside.join(format!("crowd-{n}"));
    let openers: Vec<_> = (0..300)
        .filter_map(|n| {
            let path = scene.files.dir.join(format!("crowd-{n}"));
            fs::copy(&clean[n % clean.len()], away(n)).ok()?;
            fs::rename(away(n), &path).ok()?;
            let rules = scene.rules.clone();
            Some(std::thread::spawn(move || {
                let begun = rules.begin();
                let result = seen(&File::open(&path));
                rules.judge(begun, &path, super::super::rules::Content::Clean, result);
                let _ = fs::remove_file(&path);
            }))
        })
        .collect();
    scene.wait(BOUND + Duration::from_millis(500));
    scene.clamd.cont();
    scene.fault_over();
    for opener in openers {
        opener.join().map_err(|_| "an opener panicked".to_owned())?;
    }
    Ok(())
}

/// An agent that cannot get memory may end, but must not hang, and refuse
/// nothing that is clean.
pub fn memory(scene: &mut Scene) -> Result<(), String> {
    scene.fault_begins(Leave::ALLOWS);
    let pid = scene.agent()?.pid().to_string();
    let limit = |bytes: &str| {
        let mut prlimit = Command::new("prlimit");
        prlimit.args(["--pid", &pid, &format!("--as={bytes}:unlimited")]);
        match prlimit.status() {
            Ok(status) if status.success() => Ok(()),
            other => Err(format!("prlimit: {other:?}")),
        }
    };
    limit("1048576")?;
    scene.wait(Duration::from_secs(1));
    if scene
        .agent
        .as_mut()
        .is_some_and(onacc_tests::Agent::is_running)
    {
        limit("unlimited")?;
    } else {
        scene.kill_agent();
        scene.start_agent()?;
    }
    scene.fault_over();
    Ok(())
}

/// The filesystem is full: nobody can write, everybody is judged.
pub fn disk(scene: &mut Scene) -> Result<(), String> {
    scene.fault_begins(Leave::NONE);
    let path = scene.files.outside.join("filler");
    let mut filler = File::create(&path).map_err(|error| format!("filling: {error}"))?;
    let block = vec![b'.'; 1 << 20];
    while filler.write_all(&block).is_ok() {}
    drop(filler);
    scene.wait(Duration::from_millis(800));
    fs::remove_file(&path).map_err(|error| format!("filling: {error}"))?;
    scene.fault_over();
    Ok(())
}

/// The fault is in how the agent was started.
pub fn nothing(scene: &mut Scene) -> Result<(), String> {
    scene.fault_begins(Leave::NONE);
    scene.wait(Duration::from_secs(1));
    scene.fault_over();
    Ok(())
}

/// The oldest marks must make room, and none be forgotten: whatever is written
/// to afterwards is judged anew.
pub fn marks(scene: &mut Scene) -> Result<(), String> {
    scene.fault_begins(Leave::NONE);
    let dir = scene.files.dir.join("many");
    fs::create_dir_all(&dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    let path = |n: usize| -> PathBuf { dir.join(n.to_string()) };
    for n in 0..70_000 {
        fs::write(path(n), n.to_string()).map_err(|error| format!("many files: {error}"))?;
    }
    std::thread::sleep(Duration::from_millis(200));
    for n in 0..70_000 {
        if seen(&File::open(path(n))) != Seen::Opened {
            return Err(format!("{}: clean, but refused", path(n).display()));
        }
        if n % 1000 == 0 {
            scene.look_for_hangs();
        }
    }
    for n in (0..70_000).step_by(97) {
        let marker = &scene.files.marker;
        fs::write(path(n), marker).map_err(|error| format!("many files: {error}"))?;
        if seen(&File::open(path(n))) != Seen::Refused {
            let what = format!("{}: infected, but opened", path(n).display());
            scene.rules.violation(what);
        }
    }
    fs::remove_dir_all(&dir).map_err(|error| format!("many files: {error}"))?;
    scene.fault_over();
    Ok(())
}
