//! Processes of the property test: who opens, who maps, and who works.
//!
//! Owns: their start, and their end with the thread that started them. Must not:
//! know what an open must come to.

use std::{
    env,
    ffi::OsStr,
    io::{BufRead, BufReader, Write},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    thread,
    time::Duration,
};

use onacc_tests::sys;

type Said<T> = Result<T, String>;

/// A child with lines in and lines out.
#[derive(Debug)]
struct Talker {
    child: Child,
    said: Receiver<String>,
}

impl Talker {
    fn start(command: &mut Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = sys::die_with_parent(command)
            .spawn()
            .expect("a process of the tests starts");
        let lines = BufReader::new(child.stdout.take().expect("it is a pipe")).lines();
        let (say, said) = channel();
        thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                if say.send(line).is_err() {
                    return;
                }
            }
        });
        Self { child, said }
    }

    fn tell(&mut self, line: &[u8]) -> Said<()> {
        let stdin = self.child.stdin.as_mut().expect("it is a pipe");
        stdin
            .write_all(&[line, b"\n"].concat())
            .map_err(|error| format!("a process of the tests has ended: {error}"))
    }

    fn hear(&self, limit: Duration) -> Said<String> {
        self.said
            .recv_timeout(limit)
            .map_err(|error| error.to_string())
    }
}

impl Drop for Talker {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A process that opens files for reading.
#[derive(Debug)]
pub struct Reader(Talker);

impl Reader {
    /// Starts it.
    pub fn start() -> Self {
        let opener = env!("CARGO_BIN_EXE_opener");
        Self(Talker::start(&mut Command::new(opener)))
    }

    /// The error number of an open, 0 for none.
    pub fn open(&mut self, path: &Path, limit: Duration) -> Said<i32> {
        self.0.tell(path.as_os_str().as_bytes())?;
        let said = self.0.hear(limit)?;
        said.parse().map_err(|_| format!("it said {said:?}"))
    }
}

/// A process that has mapped a file, and has its fd no more.
#[derive(Debug)]
pub struct Mapper(Talker);

impl Mapper {
    /// Maps a file; later it will store these bytes there.
    pub fn start(path: &Path, offset: usize, bytes: &[u8], limit: Duration) -> Said<Self> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mapper"));
        command
            .arg(path)
            .arg(offset.to_string())
            .arg(OsStr::from_bytes(bytes));
        let talker = Talker::start(&mut command);
        match talker.hear(limit)?.as_str() {
            "mapped" => Ok(Self(talker)),
            said => Err(format!("the mapper said {said:?}")),
        }
    }

    /// Stores.
    pub fn store(&mut self, limit: Duration) -> Said<()> {
        self.0.tell(b"")?;
        match self.0.hear(limit)?.as_str() {
            "stored" => Ok(()),
            said => Err(format!("the mapper said {said:?}")),
        }
    }
}

/// What tells a process of this test binary that it is to work, and on what.
const WORK: &str = "ONACC_PROPERTY_WORK";

/// What one of the working processes works on.
#[derive(Clone, Debug)]
pub struct Task {
    /// Where its directories are.
    pub root: PathBuf,
    /// Which of them it is.
    pub number: u64,
    /// Of its choices.
    pub seed: u64,
    /// Whether new directories are protected a moment after they are made.
    pub new_are_late: bool,
}

impl Task {
    /// The task of this process, if it has one.
    pub fn own() -> Option<Self> {
        let text = env::var(WORK).ok()?;
        let mut parts = text.splitn(4, ' ');
        let number = parts.next()?.parse().ok()?;
        let seed = parts.next()?.parse().ok()?;
        let new_are_late = parts.next()?.parse().ok()?;
        let root = PathBuf::from(parts.next()?);
        Some(Self {
            root,
            number,
            seed,
            new_are_late,
        })
    }

    /// A process of this test binary that runs the test of this name on it.
    pub fn start(&self, test: &str) -> Child {
        let own = env::current_exe().expect("the test binary has a path");
        let mut command = Command::new(own);
        command
            .args(["--exact", test, "--nocapture"])
            .env(
                WORK,
                format!(
                    "{} {} {} {}",
                    self.number,
                    self.seed,
                    self.new_are_late,
                    self.root.display()
                ),
            )
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        sys::die_with_parent(&mut command)
            .spawn()
            .expect("the test binary starts")
    }
}

/// The end of a working process: what it said on both, and whether all was well.
pub fn end_of(child: Child) -> (bool, String, String) {
    let output = child.wait_with_output().expect("waiting for a child");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (
        output.status.success(),
        text(&output.stdout),
        text(&output.stderr),
    )
}
