//! Faults of the agent itself.

use std::time::Duration;

use nix::sys::signal::Signal;

use super::super::{rules::Leave, scene::Scene};

/// While it is dead, the kernel lets everybody through; nobody may hang.
pub fn killed(scene: &mut Scene) -> Result<(), String> {
    scene.fault_begins(Leave::ALLOWS);
    scene.kill_agent();
    scene.wait(Duration::from_millis(300));
    scene.start_agent()?;
    scene.fault_over();
    Ok(())
}

/// Whoever opens meanwhile waits for as long, and is then judged as ever. The
/// watchdog counts the agent's own time and must not take this for a hang.
pub fn stopped(scene: &mut Scene) -> Result<(), String> {
    let long = Duration::from_millis(1500);
    // What waited beyond the bound is answered by the fail policy.
    scene.fault_begins(scene.by_policy().held_up(long));
    scene.agent()?.signal(Signal::SIGSTOP);
    scene.wait(long);
    scene.agent()?.signal(Signal::SIGCONT);
    scene.fault_over();
    if scene
        .agent
        .as_mut()
        .is_some_and(|agent| !agent.is_running())
    {
        return Err("the agent ended after a stop of 1.5 seconds".to_owned());
    }
    Ok(())
}

/// A reload, where the version at hand has one; no effect otherwise.
pub fn hung_up_on(scene: &mut Scene) -> Result<(), String> {
    scene.fault_begins(Leave::NONE);
    for _ in 0..20 {
        scene.agent()?.signal(Signal::SIGHUP);
        scene.wait(Duration::from_millis(60));
    }
    scene.fault_over();
    Ok(())
}
