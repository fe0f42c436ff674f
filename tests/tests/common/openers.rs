//! Opens whose outcome is known before, and what was late.
//!
//! Owns: the allowance for the windows that README names, and its count. Must
//! not: know why an outcome is expected.

use std::{
    fmt::{self, Write},
    fs::{File, OpenOptions},
    io::{self, Read},
    path::{Path, PathBuf},
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
    thread,
    time::{Duration, Instant},
};

use crate::{
    common::{STORE_WINDOW, infected, marker},
    processes::Reader,
    world::lock,
};

/// How long after its cause an infected file may still open. Microseconds on an
/// idle machine; here the workers themselves keep the agent from its processors.
const WINDOW: Duration = STORE_WINDOW;
/// No open may take longer than the agent's own bound, and some.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// What an open must come to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Expected {
    /// EPERM, or success.
    pub refused: bool,
    /// The last store through a mapping of the file.
    pub stored: Option<Instant>,
    /// The last move of its directory.
    pub moved: Option<Instant>,
}

/// How many opens there were, and how many came within a window.
#[derive(Debug, Default)]
pub struct Slips {
    minutes: u64,
    checks: AtomicU64,
    refused: AtomicU64,
    after_store: AtomicU64,
    after_move: AtomicU64,
    after_write: AtomicU64,
    longest_micros: AtomicU64,
    longest_after_write: AtomicU64,
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}

impl Slips {
    /// None yet, in a run of so many minutes.
    pub fn in_minutes(minutes: u64) -> Self {
        Self {
            minutes,
            ..Self::default()
        }
    }

    /// How many opens were checked.
    pub fn checks(&self) -> u64 {
        self.checks.load(Ordering::Relaxed)
    }

    /// Slips that no store or move explains.
    pub fn after_write(&self) -> u64 {
        self.after_write.load(Ordering::Relaxed)
    }

    /// Counts a slip that no store or move explains. Whether the run may have it:
    /// one, and one more for each of its minutes.
    fn may_have_another_after_write(&self) -> bool {
        self.after_write.fetch_add(1, Ordering::Relaxed) <= self.minutes
    }

    fn slipped(&self, expected: Expected, since: Instant) {
        let cause = if expected.stored >= expected.moved {
            &self.after_store
        } else {
            &self.after_move
        };
        cause.fetch_add(1, Ordering::Relaxed);
        self.longest_micros
            .fetch_max(micros(since), Ordering::Relaxed);
    }
}

impl fmt::Display for Slips {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let get = |number: &AtomicU64| number.load(Ordering::Relaxed);
        write!(
            f,
            "{} opens checked, {} refused; tries within a window: {} after a store, {} after a move, {} after a write, the latest after {} us, after a write {} us",
            get(&self.checks),
            get(&self.refused),
            get(&self.after_store),
            get(&self.after_move),
            get(&self.after_write),
            get(&self.longest_micros),
            get(&self.longest_after_write)
        )
    }
}

/// Opens what it is told to, never by the thread that wrote it: for reading by a
/// process of its own, for writing by another thread.
#[derive(Debug)]
pub struct Opener {
    reader: Mutex<Reader>,
    orders: Sender<(PathBuf, OpenOptions)>,
    results: Receiver<io::Result<File>>,
}

impl Opener {
    /// Starts it; it ends when this is dropped.
    pub fn start() -> Self {
        let (orders, taken) = channel::<(PathBuf, OpenOptions)>();
        let (done, results) = channel();
        thread::spawn(move || {
            for (path, options) in taken {
                if done.send(options.open(path)).is_err() {
                    return;
                }
            }
        });
        Self {
            reader: Mutex::new(Reader::start()),
            orders,
            results,
        }
    }

    fn open_once(&self, path: &Path, options: &OpenOptions) -> Result<io::Result<File>, String> {
        let order = (path.to_path_buf(), options.clone());
        let sent = self.orders.send(order).map_err(|error| error.to_string());
        sent.and_then(|()| {
            let result = self.results.recv_timeout(PATIENCE);
            result.map_err(|error| format!("{}: the open hangs: {error}", path.display()))
        })
    }

    /// The error number of an open for reading by the other process, 0 for none.
    fn read_once(&self, path: &Path) -> Result<i32, String> {
        let read = lock(&self.reader).open(path, PATIENCE);
        read.map_err(|error| format!("{}: the open hangs: {error}", path.display()))
    }

    /// Has the other process open a file for reading, and says what is wrong
    /// unless it comes as expected.
    pub fn check(&self, path: &Path, expected: Expected, slips: &Slips) -> Result<(), String> {
        let started = Instant::now();
        match (self.read_once(path)?, expected.refused) {
            (libc::EPERM, true) => {
                slips.checks.fetch_add(1, Ordering::Relaxed);
                slips.refused.fetch_add(1, Ordering::Relaxed);
                Ok(())
            }
            (0, false) => {
                slips.checks.fetch_add(1, Ordering::Relaxed);
                Ok(())
            }
            // Within a window, or not: as for any open, which tries again.
            (0, true) => {
                let cause = expected.stored.max(expected.moved);
                let read = OpenOptions::new().read(true).clone();
                match cause.filter(|cause| started < *cause + WINDOW) {
                    Some(cause) => slips.slipped(expected, cause),
                    // As in `open`: seldom, for a moment.
                    None if slips.may_have_another_after_write()
                        && self.refused_soon(path, &read, slips)? => {}
                    None => {
                        return Err(format!(
                            "{}: infected, and another process opened it (last store or move {:?} before)",
                            path.display(),
                            cause.map(|cause| started - cause)
                        ));
                    }
                }
                self.open(path, &read, expected, slips).map(drop)
            }
            (errno, _) => Err(format!(
                "{}: must open, but another process got: {}",
                path.display(),
                io::Error::from_raw_os_error(errno)
            )),
        }
    }

    /// Whether the file is refused again within a moment: the thread that placed
    /// the mark looks again in its next system call, if it has a processor.
    fn refused_soon(
        &self,
        path: &Path,
        options: &OpenOptions,
        slips: &Slips,
    ) -> Result<bool, String> {
        let since = Instant::now();
        while since.elapsed() < WINDOW {
            if matches!(self.open_once(path, options)?, Err(error) if error.raw_os_error() == Some(libc::EPERM))
            {
                slips
                    .longest_after_write
                    .fetch_max(micros(since), Ordering::Relaxed);
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// What is in a file that should not have opened, and what becomes of further
    /// opens: for whoever looks for the cause.
    fn look_again(&self, path: &Path, mut file: File) -> String {
        let mut bytes = Vec::new();
        let read = file.read_to_end(&mut bytes);
        let holds = |what: &[u8]| bytes.windows(what.len()).any(|part| part == what);
        let mut said = format!(
            "it holds {read:?} bytes, EICAR {}, the marker {}; then:",
            holds(&infected()),
            holds(&marker())
        );
        for pause in [0, 1, 10, 100, 1000, 2000] {
            thread::sleep(Duration::from_millis(pause));
            let again = self.open_once(path, OpenOptions::new().read(true));
            let came_to = match again {
                Ok(Ok(_)) => "opens".to_owned(),
                Ok(Err(error)) => error.to_string(),
                Err(error) => error,
            };
            let _ = write!(said, " after {pause} ms {came_to};");
        }
        said
    }

    /// Opens a file, and says what is wrong unless it comes as expected. `None`:
    /// refused, as it must be.
    pub fn open(
        &self,
        path: &Path,
        options: &OpenOptions,
        expected: Expected,
        slips: &Slips,
    ) -> Result<Option<File>, String> {
        slips.checks.fetch_add(1, Ordering::Relaxed);
        loop {
            let started = Instant::now();
            match self.open_once(path, options)? {
                Ok(file) if !expected.refused => return Ok(Some(file)),
                Err(error) if error.raw_os_error() == Some(libc::EPERM) && expected.refused => {
                    slips.refused.fetch_add(1, Ordering::Relaxed);
                    return Ok(None);
                }
                Ok(file) => {
                    let cause = expected.stored.max(expected.moved);
                    let Some(cause) = cause.filter(|cause| started < *cause + WINDOW) else {
                        // The one gap that README names for plain writes: all of an
                        // open, write and close between two neighbouring calls of
                        // the thread that places the mark. Seldom, for a moment.
                        if slips.may_have_another_after_write()
                            && self.refused_soon(path, options, slips)?
                        {
                            slips.refused.fetch_add(1, Ordering::Relaxed);
                            return Ok(None);
                        }
                        let age = cause.map(|cause| started - cause);
                        return Err(format!(
                            "{}: infected, and opens (last store or move {age:?} before; the open took {:?}); {}",
                            path.display(),
                            started.elapsed(),
                            self.look_again(path, file)
                        ));
                    };
                    slips.slipped(expected, cause);
                }
                Err(error) => {
                    return Err(format!("{}: must open, but: {error}", path.display()));
                }
            }
        }
    }
}
