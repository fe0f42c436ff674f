//! The agent's own pages: they stay in memory, whatever the kernel wants back.
//!
//! Must not: want back pages of others; the agent is a copy of its own, in a
//! control group of its own.

mod common;

use std::{
    fs::{self, File},
    io,
    os::unix::fs::PermissionsExt as _,
    path::Path,
};

use common::{Site, assert_opens, assert_refused, clean, infected};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use onacc_tests::{Agent, MemoryGroup, agent, or_skip, require_root};

/// KiB of a field of /proc/PID/status.
fn kib(agent: &Agent, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", agent.pid()));
    let status = status.expect("the agent runs");
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    let number = line.and_then(|line| line.trim_start_matches(':').trim().split(' ').next());
    number.and_then(|kib| kib.parse().ok()).expect(field)
}

/// A copy of which nobody has a page in memory: they count for whoever reads them.
fn copy_unread(from: &Path, to: &Path) -> io::Result<()> {
    fs::copy(from, to)?;
    let file = File::open(to)?;
    file.sync_all()?;
    Ok(posix_fadvise(
        &file,
        0,
        0,
        PosixFadviseAdvice::POSIX_FADV_DONTNEED,
    )?)
}

/// KiB of files (code, libraries) that an agent has in memory before and after the
/// kernel has taken back what it could. It works before and after.
fn before_and_after(site: &Site, dir: &Path, powers: &str) -> Result<[u64; 2], String> {
    let group = MemoryGroup::new()?;
    let copy = dir.join(format!("onacc{powers}"));
    let fail = |error: io::Error| format!("a copy of the agent: {error}");
    copy_unread(&agent::binary(), &copy).map_err(fail)?;
    let inner = dir.join(format!("inner{powers}"));
    let text = format!(
        "#!/bin/sh\nexec setpriv --bounding-set={powers} --inh-caps={powers} {} \"$@\"\n",
        copy.display()
    );
    fs::write(&inner, text)
        .and_then(|()| fs::set_permissions(&inner, fs::Permissions::from_mode(0o755)))
        .map_err(fail)?;
    let outer = dir.join(format!("outer{powers}"));
    group.wrap(&outer, &inner)?;
    let agent = site.agent().binary(&outer).start();
    let work = |name: &str| {
        assert_refused(&site.write(format!("{name}{powers}-bad"), &infected()));
        assert_opens(&site.write(format!("{name}{powers}-good"), &clean()));
    };
    work("first");
    let before = kib(&agent, "RssFile");
    // The kernel gives up early: what was used lately has a second chance.
    for _ in 0..5 {
        group.reclaim()?;
    }
    let after = kib(&agent, "RssFile");
    work("then");
    println!(
        "{powers}: files {before} KiB, then {after} KiB; anonymous {} KiB",
        kib(&agent, "RssAnon")
    );
    Ok([before, after])
}

#[test]
fn its_pages_stay_in_memory_and_without_the_right_to_that_it_works_all_the_same() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let dir = tempfile::tempdir().unwrap();
    let [before, after] = or_skip!(before_and_after(&site, dir.path(), "-setfcap"));
    assert!(
        after >= before * 9 / 10,
        "{before} KiB before, {after} after"
    );
    let [before, after] = or_skip!(before_and_after(&site, dir.path(), "-ipc_lock"));
    assert!(
        after <= before * 2 / 3,
        "nothing was tried: {before} KiB before, {after} after"
    );
}
