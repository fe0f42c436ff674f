//! The log: a thread that alone writes to log file, console and system logger.
//!
//! Everything else uses the `tracing` macros, which hand a finished line to
//! this thread and never wait for it: whoever reads the log or the console may
//! itself be the blocked opener (invariant 3). Lines are clamonacc's: the bare
//! message, with `ERROR: ` or `WARNING: ` before those, and the time before all
//! under `LogTime`. Must not: lose a line in silence; what the queue or a
//! target does not take is counted and said, what a flood repeats is counted.

mod console;
mod file;
mod flood;
mod syslog;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use jiff::Zoned;
use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::{Registry, reload};

use self::console::Console;
use self::file::LogFile;
use self::flood::{Flood, Line};
use self::syslog::Syslog;
use super::counters::Counters;
use crate::kernel::process;

pub use self::syslog::{FACILITIES, facility};

/// Lines that may wait for the logger.
const QUEUE: usize = 16 * 1024;
/// The target (in `tracing`'s sense) of lines that tell a verdict.
pub const VERDICT: &str = "verdict";
/// How clamd's time stamp looks.
const TIME: &str = "%a %b %e %H:%M:%S %Y -> ";

/// The log cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The file cannot be opened.
    #[error("{path}: cannot open the log: {source}; choose another file with --log=FILE")]
    Open {
        /// The file.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// Another process has it.
    #[error("{0}: Failed to lock the log file: another onacc or clamonacc writes to it")]
    Locked(String),
    /// No thread for the logger.
    #[error(transparent)]
    Thread(#[from] crate::kernel::SyscallError),
}

/// What is logged, and where to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is an option of its own; they do not form states"
)]
pub struct Setup {
    /// The file to append to.
    pub file: Option<PathBuf>,
    /// Standard output and error.
    pub console: bool,
    /// Log more.
    pub verbose: bool,
    /// Each line starts with the time.
    pub time: bool,
    /// The system's logger, by the number of the facility.
    pub syslog: Option<u8>,
    /// Size in bytes above which the file is rotated; `None`: no limit.
    pub max_size: Option<u64>,
    /// Rotation is wanted.
    pub rotate: bool,
}

impl Setup {
    fn level(&self) -> LevelFilter {
        if self.verbose {
            LevelFilter::DEBUG
        } else {
            LevelFilter::INFO
        }
    }
}

/// Where lines go.
#[derive(Debug)]
pub struct Targets {
    setup: Setup,
    file: Option<LogFile>,
    console: Console,
    syslog: Option<Syslog>,
    /// The last line did not get everywhere.
    failing: bool,
}

impl Targets {
    /// Opens and locks what the set-up names.
    ///
    /// # Errors
    /// [`LogError`].
    pub fn open(setup: Setup) -> Result<Self, LogError> {
        let mut file = setup.file.as_deref().map(LogFile::open).transpose()?;
        if let Some(file) = &mut file {
            file.limit(setup.max_size.unwrap_or(u64::MAX), setup.rotate);
        }
        Ok(Self {
            file,
            console: Console::default(),
            syslog: new_syslog(&setup),
            setup,
            failing: false,
        })
    }

    /// Takes up another set-up; opens the file again in any case.
    fn follow(&mut self, setup: Setup) -> Result<(), LogError> {
        let opened = match (&mut self.file, &setup.file) {
            (Some(file), Some(path)) => file.reopen(path),
            (none, Some(path)) => LogFile::open(path).map(|file| *none = Some(file)),
            (file, None) => {
                *file = None;
                Ok(())
            }
        };
        if let Some(file) = &mut self.file {
            file.limit(setup.max_size.unwrap_or(u64::MAX), setup.rotate);
        }
        if setup.syslog != self.setup.syslog {
            self.syslog = new_syslog(&setup);
        }
        self.setup = setup;
        opened
    }

    /// Writes a line everywhere. False: not all have taken it.
    fn put(&mut self, line: &Line) -> bool {
        if line.text.is_empty() {
            return true;
        }
        let now = Zoned::now();
        let stamped = if self.setup.time {
            let mut text = now.strftime(TIME).to_string().into_bytes();
            text.extend_from_slice(&line.text);
            text
        } else {
            line.text.clone()
        };
        let file = self
            .file
            .as_mut()
            .is_none_or(|file| file.put(&stamped, &now));
        if !file && !self.failing {
            // The one place that can still say it.
            let text = b"ERROR: onacc: the log cannot be written (disk full?)\n";
            let _nowhere_else = self.console.put(text, true);
        }
        let syslog = self
            .syslog
            .as_mut()
            .is_none_or(|syslog| syslog.send(line.level, &line.text, &now));
        let is_error = line.level <= Level::WARN;
        let console = !self.setup.console || self.console.put(&stamped, is_error);
        self.failing = !file;
        file && syslog && console
    }
}

fn new_syslog(setup: &Setup) -> Option<Syslog> {
    let facility = setup.syslog?;
    Some(Syslog::new(Path::new(syslog::SOCKET), facility))
}

enum Message {
    Line(Line),
    /// There is another set-up.
    Follow,
    /// The process ends at once; told when the line is where it belongs.
    LastWords(Line, SyncSender<()>),
    Stop,
}

/// The queue of the logger of this process.
static QUEUE_IN: OnceLock<SyncSender<Message>> = OnceLock::new();
/// How long a process that ends at once waits for its reason to be written.
const LAST_PATIENCE: Duration = Duration::from_millis(1500);

/// Writes an error after all that waits, as far as the log takes it. False:
/// it has not been written in time.
fn last_words(text: &str) -> bool {
    let (told, written) = sync_channel(1);
    let message = Message::LastWords(Line::own(Level::ERROR, &format!("ERROR: {text}")), told);
    let sent = QUEUE_IN.get().map(|queue| queue.try_send(message));
    matches!(sent, Some(Ok(()))) && written.recv_timeout(LAST_PATIENCE).is_ok()
}

/// The running logger.
#[derive(Debug)]
pub struct Logger {
    sender: SyncSender<Message>,
    setup: Arc<Mutex<Option<Setup>>>,
    level: reload::Handle<LevelFilter, Registry>,
    thread: Option<JoinHandle<()>>,
}

impl Logger {
    /// Starts the logger and makes it the target of all `tracing` lines of this process.
    ///
    /// # Errors
    /// [`LogError::Thread`].
    pub fn start(targets: Targets, counters: Arc<Counters>) -> Result<Self, LogError> {
        let (sender, receiver) = sync_channel(QUEUE);
        let setup = Arc::default();
        let (filter, level) = reload::Layer::new(targets.setup.level());
        let lines = tracing_subscriber::fmt::layer()
            .event_format(PlainLines)
            .with_writer(LineSender {
                sender: sender.clone(),
                counters: Arc::clone(&counters),
            });
        let subscriber = tracing_subscriber::registry().with(filter).with(lines);
        let mut writer = LogWriter {
            targets,
            counters,
            setup: Arc::clone(&setup),
            flood: Flood::new(Instant::now()),
            told_lost: 0,
        };
        let thread = process::spawn("onacc-log", move || writer.run(&receiver))?;
        if QUEUE_IN.set(sender.clone()).is_ok() {
            process::set_last_words(last_words);
        }
        // A second start in one process (tests) keeps the first; there is no other error.
        let _already_set = tracing::subscriber::set_global_default(subscriber);
        Ok(Self {
            sender,
            setup,
            level,
            thread: Some(thread),
        })
    }

    /// Takes up another set-up, and opens the file again, soon. Waits for nothing.
    pub fn follow(&self, setup: Setup) {
        // The other error is that there is no subscriber (tests).
        let _no_subscriber = self.level.modify(|level| *level = setup.level());
        *lock(&self.setup) = Some(setup);
        // With a full queue it is found after a second.
        let _full_queue = self.sender.try_send(Message::Follow);
    }

    /// Writes what waits and ends the logger, within `patience`: the console
    /// may be a pipe that nobody reads.
    pub fn finish(mut self, patience: Duration) {
        let _full_queue_is_given_up = self.sender.try_send(Message::Stop);
        let until = Instant::now() + patience;
        if let Some(thread) = self.thread.take() {
            process::wait_for(&thread, until);
            if thread.is_finished() {
                let _ended = thread.join();
            }
        }
    }
}

fn lock(setup: &Mutex<Option<Setup>>) -> std::sync::MutexGuard<'_, Option<Setup>> {
    setup.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The logger's thread.
struct LogWriter {
    targets: Targets,
    counters: Arc<Counters>,
    setup: Arc<Mutex<Option<Setup>>>,
    flood: Flood,
    /// Lost lines that were said.
    told_lost: u64,
}

impl LogWriter {
    fn run(&mut self, receiver: &Receiver<Message>) {
        if let Some(file) = &mut self.targets.file {
            let line = b"--------------------------------------\n";
            if !file.put(line, &Zoned::now()) {
                self.counters.log_lines_lost.up();
            }
        }
        loop {
            let message = match receiver.recv_timeout(Duration::from_secs(1)) {
                Ok(message) => message,
                Err(RecvTimeoutError::Timeout) => Message::Follow,
                Err(RecvTimeoutError::Disconnected) => Message::Stop,
            };
            let ends = matches!(message, Message::Stop);
            for line in self.flood.sum_up(Instant::now(), ends) {
                self.put(&line);
            }
            match message {
                Message::Line(line) if self.flood.admits(&line) => self.put(&line),
                Message::Line(_) => {}
                Message::Follow => self.follow(),
                Message::LastWords(line, told) => {
                    if self.targets.put(&line) {
                        // Whoever ends the process may have stopped waiting.
                        let _nobody = told.send(());
                    }
                }
                Message::Stop => return self.say_lost(),
            }
            self.say_lost();
        }
    }

    fn follow(&mut self) {
        let Some(setup) = lock(&self.setup).take() else {
            return;
        };
        if let Err(error) = self.targets.follow(setup) {
            let text = format!("ERROR: {error}; the log goes on where it went");
            self.put(&Line::own(Level::ERROR, &text));
        }
    }

    fn put(&mut self, line: &Line) {
        if !self.targets.put(line) {
            self.counters.log_lines_lost.up();
        }
    }

    /// Says how many lines were lost, once there is a way to say it.
    fn say_lost(&mut self) {
        let lost = self.counters.log_lines_lost.get();
        if lost > self.told_lost && !self.targets.failing {
            let text = format!("WARNING: onacc: {} log lines lost", lost - self.told_lost);
            if self.targets.put(&Line::own(Level::WARN, &text)) {
                self.told_lost = lost;
            }
        }
    }
}

struct PlainLines;

impl<S, N> FormatEvent<S, N> for PlainLines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> std::fmt::Result {
        match *event.metadata().level() {
            Level::ERROR => writer.write_str("ERROR: ")?,
            Level::WARN => writer.write_str("WARNING: ")?,
            _ => {}
        }
        context.format_fields(writer.by_ref(), event)?;
        writeln!(writer)
    }
}

struct LineSender {
    sender: SyncSender<Message>,
    counters: Arc<Counters>,
}

struct LineWriter<'a> {
    to: &'a LineSender,
    level: Level,
    verdict: bool,
    kind: Option<usize>,
}

impl<'a> MakeWriter<'a> for LineSender {
    type Writer = LineWriter<'a>;

    fn make_writer(&'a self) -> Self::Writer {
        LineWriter {
            to: self,
            level: Level::INFO,
            verdict: false,
            kind: None,
        }
    }

    fn make_writer_for(&'a self, meta: &Metadata<'_>) -> Self::Writer {
        LineWriter {
            to: self,
            level: *meta.level(),
            verdict: meta.target() == VERDICT,
            // Each place in the program has a static of its own.
            kind: Some(std::ptr::from_ref(meta).addr()),
        }
    }
}

impl Write for LineWriter<'_> {
    /// `tracing-subscriber` writes a finished line in one call.
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        let line = Line {
            level: self.level,
            verdict: self.verdict,
            kind: self.kind,
            text: text.to_vec(),
        };
        match self.to.sender.try_send(Message::Line(line)) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                self.to.counters.log_lines_lost.up();
            }
        }
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
