//! Debian's clamonacc, on the same clamd and with the same settings.
//!
//! Owns: its start, its end. Must not: let it watch anything but the
//! benchmark's own filesystems, or trust it to end by itself: a guard kills it
//! by its id, and so does drop, for on SIGTERM it may hang.

use std::{
    fs::{self, File},
    io::ErrorKind,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use onacc_tests::{Clamd, Guard, child, guard, sys::die_with_parent};

use crate::{bench::stage::Watch, shell::Result};

/// Where Debian has it.
pub const PROGRAM: &str = "/usr/sbin/clamonacc";

/// Between two probes.
const PAUSE: Duration = Duration::from_micros(500);
/// The same where each has to be scanned before something is said.
const WORD_PAUSE: Duration = Duration::from_millis(3);
/// From what it says of itself until its threads are all there.
const BREATH: Duration = Duration::from_millis(200);

/// A running clamonacc; killed and reaped on drop.
pub struct Peer {
    child: Child,
    guard: Guard,
    output: PathBuf,
    /// From its start until the last of the probes was refused or named.
    pub protects_after: Duration,
    _dir: tempfile::TempDir,
}

impl Peer {
    /// Starts it, and waits until each of the probes, which have EICAR in them,
    /// is refused, or named where opens are not refused.
    pub fn start(clamd: &Clamd, dir: &Path, watch: &Watch, probes: &[PathBuf]) -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("clamonacc.")
            .tempdir_in(dir)
            .map_err(|error| format!("a directory for clamonacc: {error}"))?;
        let (conf, output) = (dir.path().join("clamd.conf"), dir.path().join("output"));
        let mut lines = watch.lines();
        lines.push(format!("LocalSocket {}", clamd.socket().display()));
        let fail = |error| format!("preparing clamonacc: {error}");
        fs::write(&conf, lines.join("\n") + "\n").map_err(fail)?;
        let file = File::create(&output).map_err(fail)?;
        let errors = file.try_clone().map_err(fail)?;
        let mut command = Command::new(PROGRAM);
        command
            .args(["--foreground", "--fdpass"])
            .arg(format!("--config-file={}", conf.display()))
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(file)
            .stderr(errors);
        let before = Instant::now();
        let running = die_with_parent(&mut command)
            .spawn()
            .map_err(|error| format!("{PROGRAM} does not start: {error}"))?;
        let pid = running.id();
        let mut peer = Self {
            child: running,
            guard: guard(pid, watch.peer_start),
            output,
            protects_after: Duration::ZERO,
            _dir: dir,
        };
        if !watch.times_start {
            peer.wait_for_line("ClamInotif: watching")?;
            thread::sleep(BREATH);
        }
        for probe in probes {
            // An open that hangs is freed by the guard.
            while !peer.is_caught(probe, watch.prevention)? {
                peer.check()?;
                thread::sleep(if watch.prevention { PAUSE } else { WORD_PAUSE });
            }
        }
        peer.protects_after = before.elapsed();
        // The new guard before the old one goes.
        peer.guard = guard(pid, watch.guard);
        Ok(peer)
    }

    /// Opens a file with EICAR, and says whether that was refused, or else whether
    /// an open of it has been named.
    fn is_caught(&self, probe: &Path, prevention: bool) -> Result<bool> {
        if prevention {
            return is_refused(probe);
        }
        if self.has_named(probe) {
            return Ok(true);
        }
        // Opened after the look, so that the last look is not for nothing.
        is_refused(probe).map(|_| false)
    }

    /// Whether it has said that this file is infected.
    pub fn has_named(&self, probe: &Path) -> bool {
        let said = fs::read(&self.output).unwrap_or_default();
        names(&String::from_utf8_lossy(&said), probe)
    }

    /// Waits until it has said this.
    fn wait_for_line(&mut self, words: &str) -> Result<()> {
        loop {
            let said = fs::read(&self.output).unwrap_or_default();
            if String::from_utf8_lossy(&said).contains(words) {
                return Ok(());
            }
            self.check()?;
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Fails if it has ended: then nothing was measured with it.
    pub fn check(&mut self) -> Result<()> {
        if !self.guard.fired() && matches!(self.child.try_wait(), Ok(None)) {
            return Ok(());
        }
        let said = fs::read(&self.output).unwrap_or_default();
        let said = String::from_utf8_lossy(&said).into_owned();
        let lines: Vec<&str> = said.lines().collect();
        let last = &lines[lines.len().saturating_sub(5)..];
        let how = if self.guard.fired() {
            "was killed by its guard"
        } else {
            "has ended"
        };
        Err(format!("clamonacc {how}; it said: {}", last.join(" / ")))
    }

    /// Kills it; an error if it had ended before.
    pub fn end(mut self) -> Result<()> {
        self.check()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        child::kill(&mut self.child);
    }
}

/// Whether these lines of an agent say that a file is infected.
pub fn names(lines: &str, probe: &Path) -> bool {
    let begin = format!("{}: ", probe.display());
    lines
        .lines()
        .any(|line| line.starts_with(&begin) && line.ends_with(" FOUND"))
}

/// Whether an open is refused, as agents refuse.
pub fn is_refused(path: &Path) -> Result<bool> {
    match File::open(path) {
        Ok(_) => Ok(false),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Ok(true),
        Err(error) => Err(format!("opening {}: {error}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_named_by_a_whole_line() {
        let said = "ClamInotif: watching '/x'\n/x/a.com: Eicar FOUND\n";
        assert!(names(said, Path::new("/x/a.com")));
        assert!(!names(said, Path::new("/x/b.com")));
        assert!(!names("/x/a.com: Eicar", Path::new("/x/a.com")));
    }
}
