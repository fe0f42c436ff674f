//! Limits that are reached: open files, disk space, marks, inotify watches.

use std::{
    fs::{self, File},
    io::Write,
    os::unix::fs::{PermissionsExt as _, chown},
    path::PathBuf,
    time::{Duration, Instant},
};

use onacc_tests::watches;

use super::super::{
    load::seen,
    rules::{Leave, Seen},
    scene::{BACK, BOUND, Scene},
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

/// Nobody else on the machine is this user.
const USER: u32 = 47_111;

/// Whether watches can be used up here, and the agent run as another user.
pub fn can_be_short_of_watches() -> Result<(), String> {
    let dir = open_directory()?;
    watches::onacc_as(USER, dir.path())?;
    watches::use_up(USER, dir.path()).map(drop)
}

fn open_directory() -> Result<tempfile::TempDir, String> {
    let dir = tempfile::tempdir().map_err(|error| format!("a directory: {error}"))?;
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))
        .and_then(|()| chown(dir.path(), Some(USER), Some(USER)))
        .map_err(|error| format!("a directory: {error}"))?;
    Ok(dir)
}

/// The kernel counts watches by user: the agent is run as one of its own. What has a
/// watch is judged as ever; new directories are looked for every three seconds.
pub fn watches(scene: &mut Scene) -> Result<(), String> {
    const LOOKED_FOR: Duration = Duration::from_secs(10);
    let (dir, conf) = (open_directory()?, open_directory()?);
    let program = watches::onacc_as(USER, dir.path())?;
    scene.fault_begins(Leave::ALLOWS);
    scene.replace_agent(|builder| builder.binary(&program).directory(conf.path()))?;
    scene.fault_over();
    let used_up = watches::use_up(USER, dir.path())?;
    scene.fault_begins(Leave::NONE);
    let place = scene.files.dir.join("unwatched");
    let protected = |scene: &mut Scene, name: String, limit: Duration| {
        let dir = place.join(name);
        let bad = dir.join("bad");
        fs::create_dir_all(&dir)
            .and_then(|()| fs::write(&bad, &scene.files.marker))
            .map_err(|error| format!("{}: {error}", dir.display()))?;
        let before = Instant::now();
        while seen(&File::open(&bad)) != Seen::Refused {
            if before.elapsed() > limit {
                let what = format!("a new directory was not protected within {limit:?}");
                scene.rules.violation(what);
                break;
            }
            scene.wait(Duration::from_millis(5));
        }
        Ok::<_, String>(())
    };
    for n in 0..60 {
        protected(scene, n.to_string(), LOOKED_FOR)?;
    }
    let short = scene
        .agent()?
        .output()
        .contains("inotify watches are used up");
    drop(used_up);
    scene
        .agent()?
        .wait_for("there are inotify watches again", LOOKED_FOR)?;
    for n in 60..80 {
        protected(scene, n.to_string(), BACK)?;
    }
    scene.fault_over();
    fs::remove_dir_all(&place).map_err(|error| format!("{}: {error}", place.display()))?;
    scene.fault_begins(Leave::ALLOWS);
    scene.start_agent_again()?;
    scene.fault_over();
    if short {
        Ok(())
    } else {
        Err("the agent did not run short of watches: nothing was tried".to_owned())
    }
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
    let made_room = |scene: &Scene| {
        let counters = scene.agent()?.counters()?;
        Ok::<_, String>(counters.get("marks_dropped_room").copied().unwrap_or(0))
    };
    let before = made_room(scene)?;
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
    if made_room(scene)? == before {
        return Err("no mark had to make room: nothing was tried".to_owned());
    }
    for n in (0..70_000).step_by(97) {
        let marker = &scene.files.marker;
        fs::write(path(n), marker).map_err(|error| format!("many files: {error}"))?;
        let before = Instant::now();
        let result = File::open(path(n));
        if seen(&result) != Seen::Refused {
            let took = before.elapsed();
            let then = seen(&File::open(path(n)));
            let what = format!(
                "{}: infected, but opened ({result:?} after {took:?}), then {then:?}",
                path(n).display()
            );
            scene.rules.violation(what);
        }
    }
    fs::remove_dir_all(&dir).map_err(|error| format!("many files: {error}"))?;
    scene.fault_over();
    Ok(())
}
