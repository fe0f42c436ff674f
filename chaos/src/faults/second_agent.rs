//! A second fanotify agent on the same files: each open waits for both.

use std::time::Duration;

use nix::sys::signal::Signal;

use super::super::{
    rules::Leave,
    scene::{BOUND, Scene},
};

/// Starts, works, is killed in the middle of it.
pub fn comes_and_goes(scene: &mut Scene) -> Result<(), String> {
    scene.fault_begins(Leave::NONE.held_up(BOUND));
    for _ in 0..2 {
        let mut second = scene.builder().try_start()?;
        scene.wait(Duration::from_millis(500));
        second.kill();
    }
    scene.fault_over();
    Ok(())
}

/// What the other one holds up is not ours to bound; what is ours goes on.
pub fn hangs(scene: &mut Scene) -> Result<(), String> {
    let long = Duration::from_millis(700);
    let mut second = scene.builder().try_start()?;
    scene.fault_begins(Leave::NONE.held_up(long + BOUND));
    second.signal(Signal::SIGSTOP);
    scene.wait(long);
    second.signal(Signal::SIGCONT);
    second.kill();
    scene.fault_over();
    Ok(())
}
