//! Memory that runs out, by the address space and by control groups.

use std::{
    fs::{self, File},
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use onacc_tests::{Agent, MemoryGroup, agent, memory_group::Version};

use super::super::{
    load::seen,
    rules::{Content, Leave},
    scene::Scene,
};

const MIB: u64 = 1 << 20;

/// Whether there are control groups for memory here.
pub fn has_groups() -> Result<(), String> {
    MemoryGroup::new().map(drop)
}

/// No more address space. An agent that cannot get memory may end, but must not
/// hang, and refuse nothing that is clean.
pub fn address_space(scene: &mut Scene) -> Result<(), String> {
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
    let over = Instant::now();
    if scene.agent.as_mut().is_some_and(Agent::is_running) {
        limit("unlimited")?;
    } else {
        scene.start_agent_again()?;
    }
    scene.fault_over_since(over);
    Ok(())
}

/// The agent's tables grow to the limit of its group, and the kernel kills it: who
/// waits is let go at once, and who supervises it starts it again.
pub fn killed(scene: &mut Scene) -> Result<(), String> {
    let group = MemoryGroup::new()?;
    start_inside(scene, &group, &agent::binary())?;
    scene.fault_begins(Leave::ALLOWS);
    group.set_limit(Some(group.usage()? + MIB))?;
    let dir = scene.files.dir.join("growth");
    fs::create_dir_all(&dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    let until = Instant::now() + Duration::from_mins(2);
    let mut number = 0;
    // Each file that it knows costs it memory.
    while scene.agent.as_mut().is_some_and(Agent::is_running) && Instant::now() < until {
        for _ in 0..100 {
            number += 1;
            let path = dir.join(number.to_string());
            let written = fs::write(&path, number.to_string());
            written.map_err(|error| format!("{}: {error}", path.display()))?;
            let begun = scene.rules.begin();
            let result = seen(&File::open(&path));
            scene.rules.judge(begun, &path, Content::Clean, result);
        }
        scene.look_for_hangs();
    }
    let kills = group.kills()?;
    group.set_limit(None)?;
    let over = Instant::now();
    scene.start_agent_again()?;
    scene.fault_over_since(over);
    fs::remove_dir_all(&dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    if kills == 0 {
        return Err(format!(
            "{number} files, and the agent was not killed: nothing was tried"
        ));
    }
    Ok(())
}

/// Just not killed: beside what the agent keeps in memory there are 3 MiB for the
/// files that it is handed, and the kernel takes back whatever it can of them (or
/// slows the agent down, `memory.high`).
pub fn short(scene: &mut Scene) -> Result<(), String> {
    let group = MemoryGroup::new()?;
    // A copy, whose pages nobody else has in memory: they count for the group.
    let program = scene.clamd_dir().join("onacc-copy");
    fs::copy(agent::binary(), &program).map_err(|error| format!("a copy: {error}"))?;
    let forget = || {
        let file = File::open(&program)?;
        file.sync_all()?;
        posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
        Ok::<_, std::io::Error>(())
    };
    forget().map_err(|error| format!("a copy: {error}"))?;
    start_inside(scene, &group, &program)?;
    let before = group.pressure()?;
    scene.fault_begins(scene.by_policy());
    match group.version() {
        Version::Two => {
            group.reclaim()?;
            group.set_high(Some(group.usage()? + 3 * MIB))?;
        }
        Version::One => {
            // As low as it goes, and a little for what must grow.
            let mut least = group.usage()?;
            while least > MIB && group.set_limit(Some(least)).is_ok() {
                least -= MIB / 4;
            }
            group.set_limit(Some(least + 3 * MIB))?;
        }
    }
    scene.wait(Duration::from_secs(3));
    // On a machine that stands still nobody opens anything meanwhile.
    let until = Instant::now() + Duration::from_mins(1);
    while group.pressure()? == before && Instant::now() < until {
        scene.wait(Duration::from_millis(100));
    }
    let (felt, kills) = (group.pressure()? - before, group.kills()?);
    if group.version() == Version::Two {
        group.set_high(None)?;
    }
    group.set_limit(None)?;
    let over = Instant::now();
    if !scene.agent.as_mut().is_some_and(Agent::is_running) {
        scene.start_agent_again()?;
        scene.fault_over_since(over);
        return Err(format!("the agent did not last ({kills} kills)"));
    }
    scene.fault_over_since(over);
    if felt == 0 {
        return Err("the kernel took nothing back: nothing was tried".to_owned());
    }
    // The group goes, and with it this agent.
    scene.fault_begins(Leave::ALLOWS);
    scene.start_agent_again()?;
    scene.fault_over();
    Ok(())
}

fn start_inside(scene: &mut Scene, group: &MemoryGroup, program: &Path) -> Result<(), String> {
    let script = scene.clamd_dir().join("onacc-in-group");
    group.wrap(&script, program)?;
    scene.fault_begins(Leave::ALLOWS);
    let until = Instant::now() + Duration::from_secs(20);
    loop {
        match scene.replace_agent(|builder| builder.binary(&script)) {
            Ok(()) => break,
            // An opener's process that was started while we wrote one of the two has it
            // open until it runs its own program.
            Err(why) if why.contains("Text file busy") && Instant::now() < until => {
                thread::sleep(Duration::from_millis(50));
            }
            Err(why) => return Err(why),
        }
    }
    scene.fault_over();
    scene.wait(Duration::from_millis(300));
    Ok(())
}
