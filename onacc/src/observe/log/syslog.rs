//! Lines to the system's logger, as datagrams; one that reads nothing is waited
//! for half a second once, and no more until it reads again.
//!
//! The form is what syslog(3) of libc sends, with program and process id. Our
//! own, because libraries for it (and libc) block when the logger does. Must
//! not: be used by a thread that an opener waits for all the same. Tested here.

use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use jiff::Zoned;
use nix::poll::PollFlags;
use tracing::Level;

use crate::kernel::wake::sleep;

/// Where the system's logger listens.
pub const SOCKET: &str = "/dev/log";
/// How long a logger that is not there is not asked for.
const PAUSE: Duration = Duration::from_secs(1);

/// How long a logger that reads nothing is waited for, once.
const PATIENCE: Duration = Duration::from_millis(500);

/// `LogFacility`: by the names of syslog(3), which clamd.conf uses.
pub const FACILITIES: [(&str, u8); 20] = [
    ("LOG_AUTH", 4),
    ("LOG_AUTHPRIV", 10),
    ("LOG_CRON", 9),
    ("LOG_DAEMON", 3),
    ("LOG_FTP", 11),
    ("LOG_KERN", 0),
    ("LOG_LPR", 6),
    ("LOG_MAIL", 2),
    ("LOG_NEWS", 7),
    ("LOG_SYSLOG", 5),
    ("LOG_USER", 1),
    ("LOG_UUCP", 8),
    ("LOG_LOCAL0", 16),
    ("LOG_LOCAL1", 17),
    ("LOG_LOCAL2", 18),
    ("LOG_LOCAL3", 19),
    ("LOG_LOCAL4", 20),
    ("LOG_LOCAL5", 21),
    ("LOG_LOCAL6", 22),
    ("LOG_LOCAL7", 23),
];

/// The number of a facility, by its name in any case.
pub fn facility(name: &str) -> Option<u8> {
    let known = FACILITIES
        .iter()
        .find(|(known, _)| known.eq_ignore_ascii_case(name));
    known.map(|(_, number)| *number)
}

/// The way to the system's logger.
#[derive(Debug)]
pub struct Syslog {
    path: PathBuf,
    facility: u8,
    socket: Option<UnixDatagram>,
    /// Not to be asked for before.
    again_at: Instant,
    /// It had no room although it was waited for.
    stuck: bool,
}

impl Syslog {
    /// A logger that was not spoken to yet.
    pub fn new(path: &Path, facility: u8) -> Self {
        Self {
            path: path.to_owned(),
            facility,
            socket: None,
            again_at: Instant::now(),
            stuck: false,
        }
    }

    /// Sends a line. False: it was not taken.
    pub fn send(&mut self, level: Level, text: &[u8], now: &Zoned) -> bool {
        let severity = match level {
            Level::ERROR => 3,
            Level::WARN => 4,
            Level::INFO => 6,
            _ => 7,
        };
        let mut datagram = format!(
            "<{}>{} onacc[{}]: ",
            self.facility * 8 + severity,
            now.strftime("%b %e %H:%M:%S"),
            std::process::id()
        )
        .into_bytes();
        datagram.extend_from_slice(text.trim_ascii_end());
        // A second time: the logger may have been started anew.
        self.try_send(&datagram) || self.socket.is_none() && self.try_send(&datagram)
    }

    fn try_send(&mut self, datagram: &[u8]) -> bool {
        let stuck = self.stuck;
        let Some(socket) = self.socket() else {
            return false;
        };
        let mut sent = socket.send(datagram);
        if is_full(&sent) && !stuck {
            // Its queue is short (ten datagrams): a burst is waited for, once.
            let until = Some(Instant::now() + PATIENCE);
            let _room_or_not = sleep([(socket.as_fd(), PollFlags::POLLOUT)], until);
            sent = socket.send(datagram);
        }
        self.stuck = is_full(&sent);
        if sent.is_err() && !self.stuck {
            self.socket = None;
        }
        sent.is_ok()
    }

    fn socket(&mut self) -> Option<&UnixDatagram> {
        if self.socket.is_none() && Instant::now() >= self.again_at {
            match connect(&self.path) {
                Ok(socket) => self.socket = Some(socket),
                Err(_) => self.again_at = Instant::now() + PAUSE,
            }
        }
        self.socket.as_ref()
    }
}

fn is_full(sent: &io::Result<usize>) -> bool {
    sent.as_ref()
        .is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
}

fn connect(path: &Path) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.connect(path)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(logger: &UnixDatagram) -> String {
        let mut buffer = [0; 4096];
        let count = logger.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..count].to_vec()).unwrap()
    }

    #[test]
    fn a_line_arrives_as_from_libc_and_a_new_logger_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let now: Zoned = "2026-11-04T09:08:07[UTC]".parse().unwrap();
        let mut syslog = Syslog::new(&path, facility("log_local6").unwrap());
        assert!(!syslog.send(Level::INFO, b"nobody hears\n", &now));
        std::thread::sleep(PAUSE);
        for _ in 0..2 {
            let logger = UnixDatagram::bind(&path).unwrap();
            assert!(syslog.send(Level::ERROR, b"ERROR: a line\n", &now));
            assert_eq!(
                received(&logger),
                format!(
                    "<179>Nov  4 09:08:07 onacc[{}]: ERROR: a line",
                    std::process::id()
                )
            );
            drop(logger);
            std::fs::remove_file(&path).unwrap();
        }
    }

    #[test]
    fn a_logger_that_reads_nothing_is_waited_for_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let logger = UnixDatagram::bind(&path).unwrap();
        let mut syslog = Syslog::new(&path, 3);
        let now = Zoned::now();
        let taken = (0..100_000).take_while(|_| syslog.send(Level::INFO, b"x", &now));
        let before = Instant::now();
        let taken = taken.count();
        for _ in 0..1000 {
            assert!(!syslog.send(Level::INFO, b"x", &now));
        }
        assert!(
            before.elapsed() < Duration::from_secs(10),
            "waited for once"
        );
        assert!(taken < 100_000, "its queue is full some time");
        let _first = received(&logger);
        assert!(syslog.send(Level::INFO, b"y", &now), "there is room again");
    }
}
