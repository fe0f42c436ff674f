//! Faults of clamd.

use std::{fs, time::Duration};

use super::super::{
    rules::Leave,
    scene::{BOUND, Scene},
};

const WHILE: Duration = Duration::from_millis(1200);

/// Killed, away for a while, started again. Under "deny" nothing slips even then.
pub fn killed(scene: &mut Scene) -> Result<(), String> {
    scene.fault_begins(scene.by_policy());
    scene.clamd.kill();
    scene.wait(WHILE);
    scene.clamd.restart();
    scene.fault_over();
    Ok(())
}

/// Its socket takes connections, but nobody answers.
pub fn stopped(scene: &mut Scene) -> Result<(), String> {
    scene.fault_begins(scene.by_policy());
    scene.clamd.stop();
    scene.wait(BOUND + WHILE);
    scene.clamd.cont();
    scene.fault_over();
    Ok(())
}

/// One restart after the other.
pub fn restarted(scene: &mut Scene) -> Result<(), String> {
    scene.fault_begins(scene.by_policy());
    for _ in 0..3 {
        scene.clamd.restart();
        scene.wait(Duration::from_millis(100));
    }
    scene.fault_over();
    Ok(())
}

/// It runs in short turns; every scan still ends within the bound, so that
/// nothing at all may go wrong.
pub fn slow(scene: &mut Scene) -> Result<(), String> {
    scene.fault_begins(Leave::NONE);
    for _ in 0..15 {
        scene.clamd.stop();
        scene.wait(Duration::from_millis(60));
        scene.clamd.cont();
        scene.wait(Duration::from_millis(30));
    }
    scene.fault_over();
    Ok(())
}

/// The name is gone first, which a session does not notice; then clamd is.
pub fn socket_removed(scene: &mut Scene) -> Result<(), String> {
    scene.fault_begins(Leave::NONE);
    fs::remove_file(scene.clamd.socket()).map_err(|error| format!("the socket: {error}"))?;
    scene.wait(WHILE / 2);
    scene.fault_begins(scene.by_policy());
    scene.clamd.kill();
    scene.wait(WHILE / 2);
    scene.clamd.restart();
    scene.fault_over();
    Ok(())
}

/// clamd scans with the old database while it reads the new one.
pub fn reloaded(scene: &mut Scene) -> Result<(), String> {
    scene.fault_begins(Leave::NONE);
    for number in 0..5 {
        let name = format!("Onacc.Chaos.More{number}");
        scene
            .clamd
            .add_signature(&name, format!("more-{number}").as_bytes());
        scene.wait(Duration::from_millis(200));
    }
    scene.fault_over();
    Ok(())
}
