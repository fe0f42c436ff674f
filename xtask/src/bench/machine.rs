//! What the numbers were measured on.
//!
//! Owns: looking. Must not: guess; what cannot be found out is said so.

use std::{fs, path::Path, process::Command, thread};

use onacc_tests::workspace;

use crate::{bench::peer, shell::Result};

/// Names and values.
#[derive(Clone, Debug)]
pub struct Machine(Vec<(&'static str, String)>);

impl Machine {
    /// Looks at the machine and at the programs that are compared.
    pub fn look(agent: &Path) -> Result<Self> {
        let kernel = nix::sys::utsname::uname()
            .map_err(|error| format!("uname: {error}"))?
            .release()
            .to_string_lossy()
            .into_owned();
        let cores = thread::available_parallelism().map_err(|error| format!("cores: {error}"))?;
        let mut commit = Command::new("git");
        commit
            .arg("-C")
            .arg(workspace())
            .args(["describe", "--always", "--dirty"]);
        Ok(Self(vec![
            ("date", said(Command::new("date").args(["-u", "+%FT%TZ"]))),
            ("kernel", kernel),
            ("cores", cores.to_string()),
            ("processor", processor()),
            ("onacc", said(Command::new(agent).arg("--version"))),
            ("commit", said(&mut commit)),
            (
                "clamd",
                said(Command::new("/usr/sbin/clamd").arg("--version")),
            ),
            (
                "clamonacc",
                said(Command::new(peer::PROGRAM).arg("--version")),
            ),
        ]))
    }

    /// Starts to count what others do on this machine meanwhile.
    pub fn watch() -> Result<Others> {
        Ok(Others(Processors::look()?))
    }

    /// Names and values.
    pub fn facts(&self) -> &[(&'static str, String)] {
        &self.0
    }

    /// One line.
    pub fn shown(&self) -> String {
        let facts: Vec<String> = self
            .0
            .iter()
            .map(|(name, value)| format!("{name} {value}"))
            .collect();
        facts.join("; ")
    }
}

/// What processes that are not ours, nor started by us, need of the processors.
pub struct Others(Processors);

/// Clock ticks since the machine was started, of all processors.
#[derive(Clone, Copy, Debug)]
struct Processors {
    all: f64,
    busy: f64,
    /// Of these, by us and the processes that we started and that have ended.
    ours: f64,
}

impl Others {
    /// Their share of the processors since `watch`, and what it means. What we
    /// started and still runs is taken for others': end it before.
    pub fn share(&self) -> Result<String> {
        let now = Processors::look()?;
        let all = (now.all - self.0.all).max(1.0);
        let busy = now.busy - self.0.busy;
        let share = 100.0 * ((busy - (now.ours - self.0.ours)) / all).max(0.0);
        let mut text = format!("other processes had {share:.0} % of the processors");
        if share >= 10.0 {
            text.push_str(": rates and goals are not to be trusted; measure on an idle machine");
        }
        Ok(text)
    }
}

impl Processors {
    fn look() -> Result<Self> {
        let fail = |error: &dyn std::fmt::Display| format!("processor times: {error}");
        let text = fs::read_to_string("/proc/stat").map_err(|error| fail(&error))?;
        let (all, busy) = Self::parse(&text).ok_or_else(|| fail(&"/proc/stat"))?;
        let own = fs::read_to_string("/proc/self/stat").map_err(|error| fail(&error))?;
        let ours = Self::parse_own(&own).ok_or_else(|| fail(&"/proc/self/stat"))?;
        Ok(Self { all, busy, ours })
    }

    /// user, nice, system, idle, iowait, irq, softirq, steal.
    fn parse(stat: &str) -> Option<(f64, f64)> {
        let line = stat.lines().next()?.strip_prefix("cpu ")?;
        let ticks: Vec<f64> = line
            .split_whitespace()
            .take(8)
            .map_while(|word| word.parse().ok())
            .collect();
        let all: f64 = ticks.iter().sum();
        Some((all, all - ticks.get(3)? - ticks.get(4)?))
    }

    /// utime, stime, cutime, cstime: fields 14 to 17, the name being the second.
    fn parse_own(stat: &str) -> Option<f64> {
        let (_, fields) = stat.rsplit_once(')')?;
        let words = fields.split_whitespace().skip(11).take(4);
        words.map(|word| word.parse::<f64>().ok()).sum()
    }
}

/// The first line that a program says.
fn said(command: &mut Command) -> String {
    match command.output() {
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let line = text.lines().next().unwrap_or("says nothing");
            line.to_owned()
        }
        Err(error) => format!("does not start: {error}"),
    }
}

fn processor() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    text.lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or_else(|| "not named".to_owned(), |(_, name)| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_times_are_read() {
        let (all, busy) = Processors::parse("cpu  10 0 20 60 10 0 0 5 9 9\ncpu0 1\n").unwrap();
        assert!((all - 105.0).abs() < 0.1 && (busy - 35.0).abs() < 0.1);
        let own = "7 (a (b) c) R 1 2 3 4 5 6 7 8 9 10 100 20 3 4 20 0\n";
        assert!((Processors::parse_own(own).unwrap() - 127.0).abs() < 0.1);
        assert!(Machine::watch().unwrap().share().is_ok());
    }
}
