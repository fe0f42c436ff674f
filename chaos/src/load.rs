//! Openers that never rest: threads and processes that open clean, infected and
//! new files, and have every open judged.
//!
//! Owns: its threads, and the processes that they start, which they wait for.
//! Must not: know a fault.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use onacc_tests::sys::die_with_parent;

use crate::rules::{Content, Rules, Seen};

/// The files.
#[derive(Clone, Debug)]
pub struct Files {
    /// Clean ones, which stay as they are.
    pub clean: Vec<PathBuf>,
    /// Infected ones, likewise.
    pub infected: Vec<PathBuf>,
    /// A watched directory for new ones.
    pub dir: PathBuf,
    /// A directory of the same filesystem that is not watched.
    pub outside: PathBuf,
    /// Bytes that make a file infected.
    pub marker: Vec<u8>,
}

/// The threads.
pub struct Load {
    stop: Arc<AtomicBool>,
    /// They open nothing for now.
    rest: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    /// When each thread's open began, or nothing.
    open_since: Arc<Vec<Mutex<Option<Instant>>>>,
}

/// Threads that open.
pub const THREADS: usize = 6;
/// Threads that start a process for each open.
pub const SPAWNERS: usize = 2;

static SERIAL: AtomicU64 = AtomicU64::new(0);

impl Load {
    /// Starts them.
    pub fn start(files: &Files, rules: &Arc<Rules>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let rest = Arc::new(AtomicBool::new(false));
        let slots = (0..THREADS + SPAWNERS).map(|_| Mutex::new(None)).collect();
        let open_since = Arc::new(slots);
        let threads = (0..THREADS + SPAWNERS)
            .map(|number| {
                let opener = Opener {
                    number,
                    files: files.clone(),
                    rules: Arc::clone(rules),
                    open_since: Arc::clone(&open_since),
                    rest: Arc::clone(&rest),
                };
                let stop = Arc::clone(&stop);
                thread::spawn(move || opener.run(&stop))
            })
            .collect();
        Self {
            stop,
            rest,
            threads,
            open_since,
        }
    }

    /// Has them rest, or go on.
    pub fn set_rest(&self, rest: bool) {
        self.rest.store(rest, Ordering::Relaxed);
    }

    /// The longest that an opener which still waits has waited.
    pub fn longest_open(&self) -> Duration {
        let waits = self.open_since.iter().filter_map(|slot| {
            let since = *slot.lock().unwrap_or_else(PoisonError::into_inner);
            since.map(|since| since.elapsed())
        });
        waits.max().unwrap_or_default()
    }

    /// Ends them; false if one hangs.
    pub fn stop(self, limit: Duration) -> bool {
        self.stop.store(true, Ordering::Relaxed);
        let until = Instant::now() + limit;
        while self.threads.iter().any(|thread| !thread.is_finished()) {
            if Instant::now() >= until {
                return false;
            }
            thread::sleep(Duration::from_millis(5));
        }
        true
    }
}

struct Opener {
    number: usize,
    files: Files,
    rules: Arc<Rules>,
    open_since: Arc<Vec<Mutex<Option<Instant>>>>,
    rest: Arc<AtomicBool>,
}

impl Opener {
    fn run(&self, stop: &AtomicBool) {
        let mut turn = self.number;
        while !stop.load(Ordering::Relaxed) {
            if self.rest.load(Ordering::Relaxed) {
                thread::sleep(Duration::from_millis(10));
                continue;
            }
            turn = turn.wrapping_add(7);
            if self.number >= THREADS {
                self.by_process(turn);
                thread::sleep(Duration::from_millis(10));
            } else if turn % 16 == self.number {
                self.new_file(if turn.is_multiple_of(3) {
                    Content::Clean
                } else {
                    Content::Infected
                });
            } else {
                let (path, content) = self.pick(turn);
                self.judged(path, content, || seen(&File::open(path)));
                thread::sleep(Duration::from_micros(500));
            }
        }
    }

    fn pick(&self, turn: usize) -> (&Path, Content) {
        if turn.is_multiple_of(4) {
            let list = &self.files.infected;
            (&list[turn / 4 % list.len()], Content::Infected)
        } else {
            let list = &self.files.clean;
            (&list[turn % list.len()], Content::Clean)
        }
    }

    fn judged(&self, path: &Path, content: Content, open: impl FnOnce() -> Seen) {
        let slot = &self.open_since[self.number];
        let set = |value| *slot.lock().unwrap_or_else(PoisonError::into_inner) = value;
        let begun = self.rules.begin();
        set(Some(Instant::now()));
        let seen = open();
        self.rules.judge(begun, path, content, seen);
        set(None);
    }

    /// A file that nobody has seen before, moved in complete.
    fn new_file(&self, content: Content) {
        let name = format!("new-{}", SERIAL.fetch_add(1, Ordering::Relaxed));
        let (away, path) = (self.files.outside.join(&name), self.files.dir.join(&name));
        let mut bytes = name.into_bytes();
        if content == Content::Infected {
            bytes.extend_from_slice(&self.files.marker);
        }
        // The disk may be full, or the directory gone: that is the fault's.
        if fs::write(&away, bytes).is_ok() && fs::rename(&away, &path).is_ok() {
            self.judged(&path, content, || seen(&File::open(&path)));
        }
        let _ = fs::remove_file(&away);
        let _ = fs::remove_file(&path);
    }

    /// A process that opens and reads. It is waited for; what it waits for is
    /// bounded like any open.
    fn by_process(&self, turn: usize) {
        let (path, content) = self.pick(turn);
        let mut command = Command::new("/bin/cat");
        command
            .arg(path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let child = die_with_parent(&mut command).spawn();
        let Ok(mut child) = child else { return };
        self.judged(path, content, || match child.wait() {
            Ok(status) if status.success() => Seen::Opened,
            // cat fails for one reason here: it may not open.
            Ok(status) if status.code() == Some(1) => Seen::Refused,
            _ => Seen::Failed,
        });
    }
}

/// What came of an open.
pub fn seen(result: &io::Result<File>) -> Seen {
    match result {
        Ok(_) => Seen::Opened,
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => Seen::Refused,
        Err(_) => Seen::Failed,
    }
}
