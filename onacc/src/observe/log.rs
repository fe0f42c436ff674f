//! The log: a thread that alone writes to the log file and the console.
//!
//! Everything else uses the `tracing` macros, which hand a finished line to
//! this thread and never wait for it: whoever reads the log or the console may
//! itself be the blocked opener (invariant 3). Lines are clamonacc's: the bare
//! message, with `ERROR: ` or `WARNING: ` before those. Must not: lose a line
//! in silence; what the queue cannot hold is counted and said.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter};
use tracing_subscriber::registry::LookupSpan;

use super::counters::Counters;
use crate::kernel::process;

/// Lines that may wait for the logger.
const QUEUE: usize = 16 * 1024;

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

/// Where lines go.
#[derive(Debug)]
pub struct Targets {
    file: Option<File>,
    console: bool,
}

impl Targets {
    /// Opens and locks the log file, as clamonacc does: appending, mode 0640,
    /// never through a symlink.
    ///
    /// # Errors
    /// [`LogError`].
    pub fn open(file: Option<&Path>, console: bool) -> Result<Self, LogError> {
        let file = file.map(open_locked).transpose()?;
        Ok(Self { file, console })
    }
}

fn open_locked(path: &Path) -> Result<File, LogError> {
    let name = path.display().to_string();
    let opened = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o640)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path);
    let open_error = |source| LogError::Open {
        path: name.clone(),
        source,
    };
    let file = opened.map_err(open_error)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(LogError::Locked(name)),
        Err(TryLockError::Error(source)) => Err(open_error(source)),
    }
}

enum Message {
    Line(Level, Vec<u8>),
    Stop,
}

/// The running logger. Dropping it writes what waits and ends it.
#[derive(Debug)]
pub struct Logger {
    sender: SyncSender<Message>,
    thread: Option<JoinHandle<()>>,
}

impl Logger {
    /// Starts the logger and makes it the target of all `tracing` lines of this process.
    ///
    /// # Errors
    /// [`LogError::Thread`].
    pub fn start(
        targets: Targets,
        verbose: bool,
        counters: Arc<Counters>,
    ) -> Result<Self, LogError> {
        let (sender, receiver) = sync_channel(QUEUE);
        let lost = Arc::clone(&counters);
        let thread = process::spawn("onacc-log", move || write_lines(&receiver, targets, &lost))?;
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(if verbose { Level::DEBUG } else { Level::INFO })
            .event_format(PlainLines)
            .with_writer(LineSender {
                sender: sender.clone(),
                counters,
            })
            .finish();
        // A second start in one process (tests) keeps the first; there is no other error.
        let _already_set = tracing::subscriber::set_global_default(subscriber);
        Ok(Self {
            sender,
            thread: Some(thread),
        })
    }

    /// Writes what waits and ends the logger, within `patience`: the console
    /// may be a pipe that nobody reads.
    pub fn finish(mut self, patience: Duration) {
        let _full_queue_is_given_up = self.sender.try_send(Message::Stop);
        let until = std::time::Instant::now() + patience;
        if let Some(thread) = self.thread.take() {
            while !thread.is_finished() && std::time::Instant::now() < until {
                std::thread::sleep(Duration::from_millis(5));
            }
            if thread.is_finished() {
                let _ended = thread.join();
            }
        }
    }
}

fn write_lines(receiver: &Receiver<Message>, mut targets: Targets, counters: &Counters) {
    let mut lost_before = 0;
    let mut writing = true;
    if let Some(file) = &mut targets.file {
        writing = file
            .write_all(b"--------------------------------------\n")
            .is_ok();
    }
    loop {
        let message = match receiver.recv_timeout(Duration::from_secs(1)) {
            Ok(message) => message,
            Err(RecvTimeoutError::Timeout) => Message::Line(Level::TRACE, Vec::new()),
            Err(RecvTimeoutError::Disconnected) => return,
        };
        let lost = counters.log_lines_lost.get();
        if lost > lost_before {
            let text = format!("WARNING: onacc: {} log lines lost\n", lost - lost_before);
            writing &= put(&mut targets, Level::WARN, text.as_bytes());
            lost_before = lost;
        }
        match message {
            Message::Line(level, line) => {
                let ok = put(&mut targets, level, &line);
                if writing && !ok {
                    // The one place that can still say it.
                    let text = b"ERROR: onacc: the log cannot be written (disk full?)\n";
                    let _nowhere_else = io::stderr().write_all(text);
                }
                writing = ok;
            }
            Message::Stop => return,
        }
    }
}

/// Whether the log file took the line. The console may be gone, that is no fault.
fn put(targets: &mut Targets, level: Level, line: &[u8]) -> bool {
    if line.is_empty() {
        return true;
    }
    if targets.console {
        let _console_may_be_gone = if level <= Level::WARN {
            io::stderr().write_all(line)
        } else {
            let mut out = io::stdout();
            out.write_all(line).and_then(|()| out.flush())
        };
    }
    targets
        .file
        .as_mut()
        .is_none_or(|file| file.write_all(line).is_ok())
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
}

impl<'a> MakeWriter<'a> for LineSender {
    type Writer = LineWriter<'a>;

    fn make_writer(&'a self) -> Self::Writer {
        LineWriter {
            to: self,
            level: Level::INFO,
        }
    }

    fn make_writer_for(&'a self, meta: &Metadata<'_>) -> Self::Writer {
        LineWriter {
            to: self,
            level: *meta.level(),
        }
    }
}

impl Write for LineWriter<'_> {
    /// `tracing-subscriber` writes a finished line in one call.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match self
            .to
            .sender
            .try_send(Message::Line(self.level, line.to_vec()))
        {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                self.to.counters.log_lines_lost.up();
            }
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_locked_or_linked_log_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let first = open_locked(&path).unwrap();
        assert!(matches!(open_locked(&path), Err(LogError::Locked(_))));
        drop(first);
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(matches!(open_locked(&link), Err(LogError::Open { .. })));
    }
}
