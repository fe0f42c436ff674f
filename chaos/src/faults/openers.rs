//! Openers that die while they wait, and openers in great numbers.

use std::{
    process::{Child, Command, Stdio},
    time::Duration,
};

use onacc_tests::{child, sys::die_with_parent};

use super::super::{rules::Leave, scene::Scene};

fn cat(path: &std::path::Path) -> Option<Child> {
    let mut command = Command::new("/bin/cat");
    command
        .arg(path)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    die_with_parent(&mut command).spawn().ok()
}

/// clamd stands still, a crowd waits, and is killed: each by its own id.
pub fn killed(scene: &mut Scene) -> Result<(), String> {
    scene.fault_begins(scene.by_policy());
    scene.clamd.stop();
    for turn in 0..3 {
        let mut crowd = Vec::new();
        for n in 0..150 {
            // New bytes, so that each has to wait for clamd.
            let path = scene.files.outside.join(format!("crowd-{turn}-{n}"));
            let inside = scene.files.dir.join(format!("crowd-{turn}-{n}"));
            let written = std::fs::write(&path, format!("{turn} {n}"));
            if written
                .and_then(|()| std::fs::rename(&path, &inside))
                .is_ok()
            {
                crowd.extend(cat(&inside).map(|child| (child, inside)));
            }
        }
        scene.wait(Duration::from_millis(50));
        for (mut one, path) in crowd {
            child::kill(&mut one);
            let _ = std::fs::remove_file(path);
        }
    }
    scene.clamd.cont();
    scene.fault_over();
    Ok(())
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
