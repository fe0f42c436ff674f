//! Workload: what a build machine does: tar of a source tree, twice.
//!
//! The tree is this repository's own sources and, where there are too few, those
//! of the crates in cargo's registry. Every column and every round has a copy
//! of its own, each file with a last line of its own, so that clamd's cache
//! knows none of them.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

use onacc_tests::{ScratchFs, sys::die_with_parent, workspace};

use crate::{
    bench::{
        clock::milliseconds,
        row::{Column, Reading, Row, Unit, take},
        stage::{Stage, Watch, end, grown, probe, rest},
    },
    shell::Result,
};

/// No source file is larger; generated bindings are.
const LARGEST: u64 = 1 << 20;

/// Measures.
pub fn measure(stage: &Stage) -> Result<Vec<Row>> {
    let sources = sources(stage.plan.source_files)?;
    let scratch = ScratchFs::ext4(1024)?;
    let watched = scratch.mkdir("watched");
    let probe = probe(&watched.join("eicar.com"))?;
    let watch = Watch::new(&watched);
    let count = sources.len();
    let mut rows = ["first time", "second time"].map(|when| {
        Row::new(
            format!("tar of {count} source files, {when}"),
            Unit::Milliseconds,
        )
    });
    for _ in 0..stage.plan.rounds {
        let copies = ["nobody", "onacc", "clamonacc"].map(|name| watched.join(name));
        for copy in &copies {
            copy_all(stage, &sources, copy)?;
        }
        rest(&watched)?;
        let [for_nobody, for_onacc, for_peer] = &copies;
        take(&mut rows, Column::Baseline, || {
            Ok(vec![pack(for_nobody)?, pack(for_nobody)?])
        });
        take(&mut rows, Column::Onacc, || {
            let agent = stage.onacc(&watch)?;
            let start = agent.counters()?;
            let first = pack(for_onacc)?;
            let between = agent.counters()?;
            let second = pack(for_onacc)?;
            let after = agent.counters()?;
            end(agent)?;
            let scans = grown(&start, &between, "scans")?;
            if scans < u64::try_from(count).unwrap_or(u64::MAX) {
                return Err(format!("only {scans} of {count} files were scanned"));
            }
            let events = grown(&between, &after, "events")?;
            Ok(vec![
                first.note(format!("{scans} scans")),
                second.note(format!("{events} events")),
            ])
        });
        take(&mut rows, Column::Clamonacc, || {
            let peer = stage.clamonacc(&watch, std::slice::from_ref(&probe))?;
            let readings = vec![pack(for_peer)?, pack(for_peer)?];
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
