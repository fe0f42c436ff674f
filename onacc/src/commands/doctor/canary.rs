//! The canary: a test file in each watched path, which must be refused or reported.
//!
//! Owns: two files for each path, for a moment: the EICAR test file, and a clean
//! one that must open, for an agent that refuses everything proves nothing. They
//! go when this is done, whatever comes of it; signals wait until then. Must not:
//! follow or replace anything that is there. Tested by `tests/tests/doctor.rs`.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::signal::SigSet;
use nix::sys::stat::{Mode, fchmod};
use nix::unistd::{Uid, UnlinkatFlags, geteuid, seteuid, unlinkat};

use super::finding::Finding;
use crate::config::{Settings, names};
use crate::coverage::paths::resolve;

const AREA: &str = "canary";
/// How the names of its files begin.
const PREFIX: &str = ".onacc-canary";
const CLEAN: &[u8] = b"onacc doctor: a clean file, which must open.\n";
/// How long a report may take beyond the bound of a scan.
const REPORT_LIMIT: Duration = Duration::from_secs(10);
/// Users who own no files, tried in this order where root is excluded.
const NOBODIES: [u32; 3] = [65_534, 65_533, 65_532];

/// The EICAR test file. It is put together at run time, so that the binary is not
/// taken for a file of that kind.
pub fn eicar() -> Vec<u8> {
    let parts = [
        r"X5O!P%@AP[4\PZX54(P^)7CC)7}$EICAR",
        "-STANDARD-ANTIVIRUS-TEST-FILE!$H+H*",
    ];
    parts.concat().into_bytes()
}

/// Tries every watched path.
pub fn fly(settings: &Settings) -> Vec<Finding> {
    if !settings.triggers.open {
        return vec![
            Finding::note(AREA, "opens are not scanned here (Triggers)")
                .means("there is nothing that a canary could show"),
        ];
    }
    if !geteuid().is_root() {
        return vec![
            Finding::note(AREA, "it was not flown: only root can").mend("run onacc doctor as root"),
        ];
    }
    let opener = match opener(settings) {
        Ok(uid) => uid,
        Err(finding) => return vec![*finding],
    };
    let mut before = SigSet::empty();
    // Nothing may end us while our files are there.
    let waits = SigSet::all().thread_swap_mask(nix::sys::signal::SigmaskHow::SIG_BLOCK);
    if let Ok(mask) = waits {
        before = mask;
    }
    let flown = settings
        .include_paths
        .iter()
        .map(|path| try_path(settings, &path.value, opener))
        .collect();
    // They take effect now.
    let _ = before.thread_set_mask();
    flown
}

/// As whom to open: root, or somebody whom no rule excludes.
fn opener(settings: &Settings) -> Result<Uid, Box<Finding>> {
    let (mut excluded, _) = names::resolve(&settings.excluded_names);
    excluded.extend(&settings.excluded_uids);
    let mut uids = [&[0], &NOBODIES[..]].concat().into_iter();
    let uid = uids.find(|uid| !excluded.contains(uid));
    uid.map(Uid::from_raw).ok_or_else(|| {
        let what = "root and nobody are excluded users";
        Box::new(
            Finding::note(AREA, format!("it was not flown: {what}"))
                .means("their opens are not scanned, so that nothing can be shown"),
        )
    })
}

/// A file in a directory, removed on drop.
struct Planted {
    directory: OwnedFd,
    name: String,
}

impl Planted {
    fn new(directory: &OwnedFd, name: String, content: &[u8]) -> std::io::Result<Self> {
        let flags =
            OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let fd = openat(
            directory,
            name.as_str(),
            flags,
            Mode::from_bits_truncate(0o600),
        )?;
        // From here on it is removed, also if it cannot be written.
        let planted = Self {
            directory: directory.try_clone()?,
            name,
        };
        // Whoever opens it owns nothing here.
        fchmod(&fd, Mode::from_bits_truncate(0o644))?;
        File::from(fd).write_all(content)?;
        Ok(planted)
    }

    /// Opens it as this user; how long that took, and what came of it.
    fn open_as(&self, uid: Uid) -> (Duration, Result<(), Errno>) {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let before = Instant::now();
        // O_PATH is no open to fanotify. It leads there also for a user who may
        // not enter the directories above.
        let held = match openat(&self.directory, self.name.as_str(), flags, Mode::empty()) {
            Ok(held) => held,
            Err(errno) => return (before.elapsed(), Err(errno)),
        };
        let link = format!("/proc/self/fd/{}", held.as_raw_fd());
        let own = geteuid();
        // Of all threads, of which a doctor has one.
        if let Err(errno) = seteuid(uid) {
            return (before.elapsed(), Err(errno));
        }
        let before = Instant::now();
        let opened = open(
            link.as_str(),
            OFlag::O_RDONLY | OFlag::O_CLOEXEC,
            Mode::empty(),
        );
        let took = before.elapsed();
        let back = seteuid(own);
        (took, opened.and(back))
    }
}

impl Drop for Planted {
    fn drop(&mut self) {
        // The agent's action may have removed or moved it.
        match unlinkat(
            &self.directory,
            self.name.as_str(),
            UnlinkatFlags::NoRemoveDir,
        ) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(errno) => eprintln!("ERROR: {} is left behind: {errno}", self.name),
        }
    }
}

fn try_path(settings: &Settings, path: &Path, opener: Uid) -> Finding {
    let shown = path.display();
    let untried = |what: String| {
        Finding::note(AREA, format!("{shown}: it was not flown: {what}"))
            .means("whether infected files are stopped there was not tried")
    };
    let real = match resolve(path) {
        Ok(real) if real.exists => real.path,
        Ok(_) => {
            return Finding::problem(AREA, format!("{shown} does not exist"))
                .means("nothing is protected by this path until it does")
                .mend("make the directory, or correct the path");
        }
        Err(error) => return untried(error.to_string()),
    };
    if !real.is_dir() {
        return untried("it is no directory".to_owned());
    }
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let planted = open(&real, flags, Mode::empty())
        .map_err(std::io::Error::from)
        .and_then(|directory| plant(&directory));
    let (clean, infected) = match planted {
        Ok(pair) => pair,
        Err(error) => return untried(error.to_string()),
    };
    match clean.open_as(opener).1 {
        Ok(()) => {}
        Err(Errno::EPERM) => {
            return Finding::problem(AREA, format!("{shown}: a clean file is refused"))
                .means("everything is refused there, as when clamd fails and OnAccessDenyOnError is set")
                .mend("look at what is said of clamd above, and at the agent's log");
        }
        Err(errno) => return untried(format!("open of a clean file: {}", errno.desc())),
    }
    if settings.prevention {
        refused(&shown.to_string(), infected.open_as(opener))
    } else {
        reported(settings, &shown.to_string(), &infected, opener)
    }
}

fn plant(directory: &OwnedFd) -> std::io::Result<(Planted, Planted)> {
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_nanos());
    let name = |kind: &str| format!("{PREFIX}.{}.{now}.{kind}", std::process::id());
    let clean = Planted::new(directory, name("clean"), CLEAN)?;
    let infected = Planted::new(directory, name("eicar"), &eicar())?;
    Ok((clean, infected))
}

fn refused(shown: &str, (took, opened): (Duration, Result<(), Errno>)) -> Finding {
    let ms = took.as_secs_f64() * 1000.0;
    match opened {
        Err(Errno::EPERM) => Finding::ok(
            AREA,
            format!("{shown}: the test file was refused after {ms:.1} ms, a clean one opened"),
        ),
        // The agent's action was quicker than we.
        Err(Errno::ENOENT) => Finding::ok(AREA, format!("{shown}: the test file was taken away")),
        Ok(()) => Finding::problem(AREA, format!("{shown}: the test file OPENED after {ms:.1} ms"))
            .means("infected files are not stopped there")
            .mend("see whether an agent runs, whether clamd finds the test file, and whether something excludes the path"),
        Err(errno) => Finding::note(AREA, format!("{shown}: open of the test file: {}", errno.desc()))
            .means("that is not how onacc refuses: nothing is shown"),
    }
}

/// Without prevention the agent's log has to name it.
fn reported(settings: &Settings, shown: &str, infected: &Planted, opener: Uid) -> Finding {
    let Some(log) = &settings.log.file else {
        return Finding::note(
            AREA,
            format!("{shown}: it was not flown: the agent has no log file to be read"),
        )
        .means("whether infected files are reported there was not tried")
        .mend("give it --log=FILE, or LogFile in onacc.toml");
    };
    let mut log = match Tail::at_end(&log.value) {
        Ok(log) => log,
        Err(error) => {
            return Finding::note(AREA, format!("{}: {error}", log.value.display()))
                .means("whether infected files are reported was not tried");
        }
    };
    let before = Instant::now();
    if let Err(errno) = infected.open_as(opener).1 {
        return Finding::note(
            AREA,
            format!("{shown}: open of the test file: {}", errno.desc()),
        )
        .means("without prevention nothing should be refused; another tool may have done so");
    }
    let until = before + settings.bound() + REPORT_LIMIT;
    loop {
        if log.names(&infected.name) {
            let ms = before.elapsed().as_millis();
            return Finding::ok(
                AREA,
                format!("{shown}: the open of the test file was reported within {ms} ms"),
            );
        }
        if Instant::now() >= until {
            return Finding::problem(
                AREA,
                format!("{shown}: the open of the test file was NOT reported"),
            )
            .means("infected files go unnoticed there")
            .mend("see whether an agent runs, whether clamd finds the test file, and whether something excludes the path");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What is appended to a log from now on.
struct Tail {
    path: PathBuf,
    file: File,
    text: Vec<u8>,
}

impl Tail {
    fn at_end(path: &Path) -> std::io::Result<Self> {
        let mut file = File::open(path)?;
        file.seek(SeekFrom::End(0))?;
        Ok(Self {
            path: path.to_owned(),
            file,
            text: Vec::new(),
        })
    }

    /// Whether a line that says FOUND has this name.
    fn names(&mut self, name: &str) -> bool {
        let read = |file: &mut File, text: &mut Vec<u8>| {
            // A log that cannot be read says nothing; the time is bounded.
            let _ = file.read_to_end(text);
        };
        read(&mut self.file, &mut self.text);
        // It may have been rotated: the new one is all new.
        let same = |one: &File, other: &File| {
            use std::os::unix::fs::MetadataExt as _;
            matches!((one.metadata(), other.metadata()), (Ok(one), Ok(other))
                if (one.dev(), one.ino()) == (other.dev(), other.ino()))
        };
        if let Ok(now) = File::open(&self.path)
            && !same(&self.file, &now)
        {
            self.file = now;
            read(&mut self.file, &mut self.text);
        }
        let text = String::from_utf8_lossy(&self.text);
        let mut lines = text.lines();
        lines.any(|line| line.contains(name) && line.ends_with(" FOUND"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_planted_goes_again_and_replaces_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let directory = open(dir.path(), flags, Mode::empty()).unwrap();
        let names = || std::fs::read_dir(dir.path()).unwrap().count();
        let pair = plant(&directory).unwrap();
        assert_eq!(names(), 2);
        let again = Planted::new(&directory, pair.0.name.clone(), b"x");
        assert!(again.is_err_and(|error| error.kind() == std::io::ErrorKind::AlreadyExists));
        let (_, opened) = pair.0.open_as(geteuid());
        assert_eq!(opened, Ok(()));
        drop(pair);
        assert_eq!(names(), 0);
    }

    #[test]
    fn a_report_is_found_in_what_was_appended_also_after_a_rotation() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        std::fs::write(&path, "/a/canary: X FOUND\n").unwrap();
        let mut tail = Tail::at_end(&path).unwrap();
        assert!(!tail.names("canary"));
        let append = |text: &str| {
            let mut file = File::options()
                .append(true)
                .create(true)
                .open(&path)
                .unwrap();
            file.write_all(text.as_bytes()).unwrap();
        };
        append("/a/canary: OK\n");
        assert!(!tail.names("canary"));
        std::fs::rename(&path, dir.path().join("log.1")).unwrap();
        append("/a/canary: X FOUND\n");
        assert!(tail.names("canary"));
    }

    #[test]
    fn a_refusal_is_eperm_and_nothing_else() {
        use super::super::finding::Level;
        let level = |result| refused("/x", (Duration::ZERO, result)).level;
        assert_eq!(level(Err(Errno::EPERM)), Level::Ok);
        assert_eq!(level(Err(Errno::EACCES)), Level::Note);
        assert_eq!(level(Ok(())), Level::Problem);
    }
}
