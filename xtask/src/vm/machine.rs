//! One boot: qemu under software emulation, its two serial ports, its end.
//!
//! Owns: the qemu process, killed by its id when the time is up. Must not: know
//! what runs in the machine. What comes out of it is tested below.

use std::{
    fmt::Write as _,
    fs::{self, File},
    io::Read,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use onacc_tests::{child, sys};

use crate::shell::Result;

/// What is booted.
pub struct Machine<'a> {
    /// The kernel's image.
    pub image: &'a Path,
    /// The initramfs.
    pub initramfs: &'a Path,
    /// What follows on the kernel's command line.
    pub append: &'a str,
    /// How long it may run.
    pub limit: Duration,
    /// Its processors take turns: slower, and no processor runs what another one has
    /// patched meanwhile.
    pub in_turns: bool,
}

/// How a boot has ended.
#[derive(Debug)]
pub struct Ended {
    /// Whether the init was reached.
    pub booted: bool,
    /// The status of what was run; none if the machine went down before.
    pub status: Option<u8>,
    /// The last of the kernel's console, for whom it matters.
    pub console: String,
    /// How long it took.
    pub took: Duration,
}

impl Machine<'_> {
    /// Boots, hands over each line that was run in there says, waits for the end.
    pub fn run(&self, mut on_line: impl FnMut(&str)) -> Result<Ended> {
        let dir = tempfile::tempdir().map_err(|error| format!("a temporary directory: {error}"))?;
        let (console, port) = (dir.path().join("console"), dir.path().join("port"));
        // On a loaded host the emulated timer can be late when the kernel checks it.
        let append = format!(
            "console=ttyS0 quiet panic=-1 no_timer_check {}",
            self.append
        );
        let accel = if self.in_turns {
            "tcg,thread=single"
        } else {
            "tcg"
        };
        let mut command = Command::new("qemu-system-x86_64");
        command
            .args(["-M", "q35", "-accel", accel, "-cpu", "max"])
            .args(["-m", "3G", "-smp", "2", "-nodefaults", "-display", "none"])
            .args(["-monitor", "none", "-no-reboot"])
            .arg("-serial")
            .arg(format!("file:{}", console.display()))
            .arg("-serial")
            .arg(format!("file:{}", port.display()))
            .arg("-kernel")
            .arg(self.image)
            .arg("-initrd")
            .arg(self.initramfs)
            .args(["-append", &append])
            .stdin(Stdio::null());
        let before = Instant::now();
        let mut qemu = sys::die_with_parent(&mut command)
            .spawn()
            .map_err(|error| format!("qemu-system-x86_64 does not start: {error}"))?;
        let mut lines = Lines::default();
        let mut from = None;
        let mut over = false;
        loop {
            let ended = child::wait_within(&mut qemu, Duration::from_millis(100));
            if ended.is_none() && before.elapsed() > self.limit {
                child::kill(&mut qemu);
                over = true;
            }
            // qemu makes the file a moment after it has started.
            from = from.or_else(|| File::open(&port).ok());
            let mut new = Vec::new();
            if let Some(from) = &mut from {
                from.read_to_end(&mut new)
                    .map_err(|error| format!("reading what the machine says: {error}"))?;
            }
            lines.take(&new, &mut on_line);
            if ended.is_some() || over {
                break;
            }
        }
        let console = fs::read(&console).unwrap_or_default();
        let console = String::from_utf8_lossy(&console);
        let text: Vec<&str> = console.lines().collect();
        let mut console = text[text.len().saturating_sub(60)..].join("\n");
        if over {
            let _ = write!(console, "\n[killed after {:?}]", self.limit);
        }
        Ok(Ended {
            booted: lines.booted,
            status: lines.status,
            console,
            took: before.elapsed(),
        })
    }
}

/// Lines as they come, and the status, which is said last.
#[derive(Debug, Default)]
struct Lines {
    unfinished: Vec<u8>,
    booted: bool,
    status: Option<u8>,
}

impl Lines {
    fn take(&mut self, new: &[u8], on_line: &mut impl FnMut(&str)) {
        self.unfinished.extend_from_slice(new);
        while let Some(end) = self.unfinished.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.unfinished.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            let line = line.trim_end_matches(['\r', '\n']);
            match line.strip_prefix("onacc-vm: status ") {
                Some(status) => self.status = status.parse().ok(),
                None if line == "onacc-vm: booted" => self.booted = true,
                None => on_line(line),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_is_the_status() {
        let mut lines = Lines::default();
        let mut seen = Vec::new();
        let mut hear = |line: &str| seen.push(line.to_owned());
        lines.take(b"onacc-vm: boo", &mut hear);
        assert!(!lines.booted);
        lines.take(b"ted\none\r\ntw", &mut hear);
        assert!(lines.booted);
        assert_eq!(lines.status, None);
        lines.take(b"o\n\nonacc-vm: status 3\r\n", &mut hear);
        assert_eq!(lines.status, Some(3));
        assert_eq!(seen, ["one", "two", ""]);
    }
}
