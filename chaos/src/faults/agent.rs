//! Faults of the agent itself.

use std::{
    fs,
    os::unix::fs::symlink,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;

use super::super::{
    rules::Leave,
    scene::{BOUND, Scene},
};

/// While it is dead, the kernel lets everybody through; nobody may hang.
pub fn killed(scene: &mut Scene) -> Result<(), String> {
    scene.fault_begins(Leave::ALLOWS);
    scene.kill_agent();
    scene.wait(Duration::from_millis(300));
    let over = Instant::now();
    scene.start_agent()?;
    scene.fault_over_since(over);
    Ok(())
}

/// Whoever opens meanwhile waits for as long, and is then judged as ever. The
/// watchdog counts the agent's own time and must not take this for a hang.
pub fn stopped(scene: &mut Scene) -> Result<(), String> {
    let long = BOUND + Duration::from_millis(500);
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
        return Err(format!("the agent ended after a stop of {long:?}"));
    }
    Ok(())
}

/// The same settings again and again.
pub fn hung_up_on(scene: &mut Scene) -> Result<(), String> {
    scene.fault_begins(Leave::NONE);
    for _ in 0..20 {
        scene.agent()?.signal(Signal::SIGHUP);
        scene.wait(Duration::from_millis(60));
    }
    scene.fault_over();
    Ok(())
}

/// What the agent says of a reload.
const RELOADED: &str = "onacc: settings reloaded";
const REFUSED: &str = "settings not reloaded, the old ones stay in force";

/// Each HUP finds other settings: some are taken up in place, some by a second agent
/// inside the process, some are wrong, and then nothing changes. Nobody may notice.
pub fn other_settings(scene: &mut Scene) -> Result<(), String> {
    let conf = scene.agent()?.conf();
    let base = fs::read_to_string(&conf).map_err(|error| format!("settings: {error}"))?;
    // The same clamd under another name is another server to the agent.
    let other = scene.clamd_dir().join("other.sock");
    let _ = fs::remove_file(&other);
    symlink(scene.clamd.socket(), &other).map_err(|error| format!("a link: {error}"))?;
    let elsewhere = base.replace(
        &format!("LocalSocket {}", scene.clamd.socket().display()),
        &format!("LocalSocket {}", other.display()),
    );
    let excluded = scene.files.dir.join("nothing-here");
    let exclude = format!("{base}OnAccessExcludePath {}\n", excluded.display());
    let variants: [(String, &str); 9] = [
        (exclude.clone(), RELOADED),
        (base.clone(), RELOADED),
        (format!("{base}OnAccessMaxThreads 3\n"), RELOADED),
        (format!("OnAccessDenyOnError yes\n{base}"), RELOADED),
        (format!("{exclude}No such option\n"), REFUSED),
        (elsewhere, RELOADED),
        // Another coverage: the named directory alone, which holds all files.
        (format!("{base}OnAccessDisableDDD yes\n"), RELOADED),
        (base.replace("OnAccessIncludePath", "# "), REFUSED),
        (base.clone(), RELOADED),
    ];
    scene.fault_begins(Leave::NONE);
    for (text, expected) in &variants {
        let new = conf.with_extension("new");
        fs::write(&new, text)
            .and_then(|()| fs::rename(&new, &conf))
            .map_err(|error| format!("settings: {error}"))?;
        let before = said(scene, expected)?;
        scene.agent()?.signal(Signal::SIGHUP);
        let until = Instant::now() + Duration::from_secs(20);
        while said(scene, expected)? == before {
            scene.wait(Duration::from_millis(20));
            if Instant::now() >= until {
                return Err(format!("not said after SIGHUP: {expected}; with\n{text}"));
            }
        }
        scene.wait(Duration::from_millis(100));
    }
    scene.fault_over();
    Ok(())
}

/// How often the agent has said this.
fn said(scene: &Scene, words: &str) -> Result<usize, String> {
    Ok(scene.agent()?.output().matches(words).count())
}
