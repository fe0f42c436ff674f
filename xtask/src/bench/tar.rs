//! Workload: what a build machine does: tar of a source tree, twice, with prevention
//! and notify-only.
//!
//! The tree is this repository's own sources and, where there are too few, those
//! of the crates in cargo's registry. Every column and every round has a copy
//! of its own, each file with a last line of its own, so that clamd's cache
//! knows none of them.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use onacc_tests::{ScratchFs, sys::die_with_parent, workspace};

use crate::{
    bench::{
        clock::milliseconds,
        row::{Column, Reading, Row, Unit, take},
        stage::{Mode, Stage, Watch, end, grown, probe, rest},
        waits::wait_for_scans,
    },
    shell::Result,
};

/// No source file is larger; generated bindings are.
const LARGEST: u64 = 1 << 20;
/// How long scans may take that nobody waits for.
const SCAN_LIMIT: Duration = Duration::from_mins(1);

/// Measures.
pub fn measure(stage: &Stage) -> Result<Vec<Row>> {
    let sources = sources(stage.plan.source_files)?;
    let mut all = Vec::new();
    for (mode, left) in Mode::ALL.into_iter().zip([1, 0]) {
        all.extend(in_mode(stage, &sources, mode, left)?);
    }
    Ok(all)
}

fn in_mode(stage: &Stage, sources: &[PathBuf], mode: Mode, loops_left: u32) -> Result<Vec<Row>> {
    let scratch = ScratchFs::ext4(1024)?;
    let watched = scratch.mkdir("watched");
    let probe = probe(&watched.join("eicar.com"))?;
    let watch = Watch::new(&watched).mode(mode);
    let count = sources.len();
    let mut rows = ["first time", "second time"].map(|when| {
        Row::new(
            format!("tar of {count} source files, {when}{}", mode.suffix()),
            Unit::Milliseconds,
        )
    });
    for _ in stage.rounds(stage.plan.rounds, loops_left) {
        let copies = ["nobody", "onacc", "clamonacc"].map(|name| watched.join(name));
        for copy in &copies {
            copy_all(stage, sources, copy)?;
        }
        rest(&watched)?;
        let [for_nobody, for_onacc, for_peer] = &copies;
        take(&mut rows, Column::Baseline, || {
            Ok(vec![pack(for_nobody)?, pack(for_nobody)?])
        });
        take(&mut rows, Column::Onacc, || {
            let agent = stage.onacc(&watch)?;
            let (start, meter) = (agent.counters()?, stage.meter(agent.pid())?);
            let first = pack(for_onacc)?;
            // Nobody has waited for these scans.
            if mode == Mode::NotifyOnly {
                wait_for_scans(&agent, Instant::now() + SCAN_LIMIT)?;
            }
            let first = first.cpu(meter.each(1)?);
            let (between, meter) = (agent.counters()?, stage.meter(agent.pid())?);
            let second = pack(for_onacc)?.cpu(meter.each(1)?);
            let after = agent.counters()?;
            end(agent)?;
            let scans = grown(&start, &between, "scans")?;
            if scans < u64::try_from(count).unwrap_or(u64::MAX) {
                return Err(format!("only {scans} of {count} files were scanned"));
            }
            let counter = match mode {
                Mode::Prevention => "events",
                Mode::NotifyOnly => "told_opens",
            };
            let events = grown(&between, &after, counter)?;
            Ok(vec![
                first.note(format!("{scans} scans")),
                second.note(format!("{events} events")),
            ])
        });
        take(&mut rows, Column::Clamonacc, || {
            let peer = stage.clamonacc(&watch, std::slice::from_ref(&probe))?;
            let mut readings = Vec::new();
            for _ in 0..2 {
                let meter = stage.meter(peer.pid())?;
                readings.push(pack(for_peer)?.cpu(meter.each(1)?));
            }
            peer.end()?;
            Ok(readings)
        });
        for copy in &copies {
            fs::remove_dir_all(copy).map_err(|error| format!("{}: {error}", copy.display()))?;
        }
    }
    Ok(rows.into())
}

/// Runs tar on a directory, into a pipe: GNU tar reads nothing for /dev/null.
fn pack(dir: &Path) -> Result<Reading> {
    let mut command = Command::new("tar");
    command
        .arg("-C")
        .arg(dir)
        .args(["-cf", "-", "."])
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    let before = Instant::now();
    let mut running = die_with_parent(&mut command)
        .spawn()
        .map_err(|error| format!("tar does not start: {error}"))?;
    let mut size = 0;
    if let Some(mut archive) = running.stdout.take() {
        size = io::copy(&mut archive, &mut io::sink())
            .map_err(|error| format!("reading what tar writes: {error}"))?;
    }
    let status = running.wait().map_err(|error| format!("tar: {error}"))?;
    let took = before.elapsed();
    if !status.success() {
        return Err(format!("tar ended with {status}"));
    }
    Ok(Reading::from(milliseconds(took)).note(format!("{} KiB", size >> 10)))
}

/// Copies the files, flat and by number, with a last line that no other has.
fn copy_all(stage: &Stage, sources: &[PathBuf], to: &Path) -> Result<()> {
    for (number, source) in sources.iter().enumerate() {
        let dir = to.join(format!("{}", number / 20));
        let copy = || {
            let mut bytes = fs::read(source)?;
            bytes.extend_from_slice(&stage.content(64));
            fs::create_dir_all(&dir)?;
            fs::write(dir.join(format!("{number}.rs")), bytes)
        };
        copy().map_err(|error| format!("copying {}: {error}", source.display()))?;
    }
    Ok(())
}

/// This many source files, in an order that does not depend on the disk.
fn sources(wanted: usize) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let own = ["onacc", "onacc-common", "onacc-ebpf", "tests", "xtask"];
    let mut roots: Vec<PathBuf> = own.map(|name| workspace().join(name)).into();
    let home = env::var_os("CARGO_HOME").map_or_else(
        || Path::new(&env::var_os("HOME").unwrap_or_default()).join(".cargo"),
        PathBuf::from,
    );
    roots.push(home.join("registry/src"));
    for root in roots.iter().filter(|root| root.exists()) {
        collect(root, wanted, &mut found)
            .map_err(|error| format!("sources in {}: {error}", root.display()))?;
    }
    if found.is_empty() {
        return Err("no source files were found".to_owned());
    }
    Ok(found)
}

fn collect(dir: &Path, wanted: usize, found: &mut Vec<PathBuf>) -> io::Result<()> {
    let mut entries = fs::read_dir(dir)?.collect::<io::Result<Vec<_>>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        if found.len() >= wanted {
            return Ok(());
        }
        let (kind, path) = (entry.file_type()?, entry.path());
        if kind.is_dir() && entry.file_name() != "target" {
            collect(&path, wanted, found)?;
        } else if kind.is_file()
            && path.extension().is_some_and(|kind| kind == "rs")
            && entry.metadata()?.len() <= LARGEST
        {
            found.push(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_found_in_the_same_order_each_time() {
        let found = sources(50).unwrap();
        assert_eq!(found.len(), 50);
        assert_eq!(found, sources(50).unwrap());
        assert!(found.iter().all(|path| path.extension().unwrap() == "rs"));
    }
}
