//! What the service manager is told: systemd's notify protocol (`sd_notify(3)`).
//!
//! Our own few lines, because the libraries for it wait for the manager, which
//! may itself be an opener that waits for us. Without `NOTIFY_SOCKET` nothing is
//! told. Must not: be waited for by whoever answers. Tested here and by
//! `tests/tests/service.rs`.

use std::ffi::OsString;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};

/// How long the manager may take to make room for what it must hear.
const PATIENCE: Duration = Duration::from_secs(2);

/// The manager's words to us, out of the environment.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    /// `NOTIFY_SOCKET`.
    pub socket: Option<OsString>,
    /// `WATCHDOG_USEC`.
    pub watchdog_usec: Option<OsString>,
    /// `WATCHDOG_PID`.
    pub watchdog_pid: Option<OsString>,
}

impl Environment {
    /// Of this process.
    pub fn own() -> Self {
        Self {
            socket: std::env::var_os("NOTIFY_SOCKET"),
            watchdog_usec: std::env::var_os("WATCHDOG_USEC"),
            watchdog_pid: std::env::var_os("WATCHDOG_PID"),
        }
    }
}

/// The way to the service manager, if one listens.
#[derive(Debug, Default)]
pub struct Manager {
    socket: Option<UnixDatagram>,
    watchdog: Option<Duration>,
}

impl Manager {
    /// Finds the manager.
    ///
    /// # Errors
    /// A socket is named and cannot be had: whoever named it waits for us.
    pub fn new(environment: &Environment) -> io::Result<Self> {
        let Some(name) = environment.socket.as_ref().filter(|name| !name.is_empty()) else {
            return Ok(Self::default());
        };
        let address = match name.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            _ => SocketAddr::from_pathname(name)?,
        };
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        socket.connect_addr(&address)?;
        Ok(Self {
            socket: Some(socket),
            watchdog: watchdog(environment),
        })
    }

    /// How long the manager waits for a sign of life, if it does.
    pub fn watchdog(&self) -> Option<Duration> {
        self.watchdog
    }

    /// Protection is on (again).
    pub fn ready(&self, status: &str) {
        let pid = std::process::id();
        self.must_hear(&format!("READY=1\nMAINPID={pid}\nSTATUS={status}"));
    }

    /// The settings are being read again; [`Self::ready`] ends that.
    pub fn reloading(&self) {
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |now| {
            i128::from(now.tv_sec()) * 1_000_000 + i128::from(now.tv_nsec()) / 1000
        });
        self.must_hear(&format!("RELOADING=1\nMONOTONIC_USEC={now}"));
    }

    /// The end has begun.
    pub fn stopping(&self) {
        self.try_send("STOPPING=1\nSTATUS=Stopping");
    }

    /// A sign of life.
    pub fn alive(&self) {
        self.try_send("WATCHDOG=1");
    }

    fn try_send(&self, text: &str) -> bool {
        let Some(socket) = &self.socket else {
            return true;
        };
        match socket.send(text.as_bytes()) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => false,
            // A manager that is gone needs to hear nothing.
            Ok(_) | Err(_) => true,
        }
    }

    fn must_hear(&self, text: &str) {
        let until = Instant::now() + PATIENCE;
        while !self.try_send(text) {
            if Instant::now() >= until {
                tracing::warn!("onacc: the service manager takes no message");
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

fn watchdog(environment: &Environment) -> Option<Duration> {
    let number = |text: &OsString| text.to_str()?.parse::<u64>().ok();
    if let Some(pid) = &environment.watchdog_pid
        && number(pid) != Some(u64::from(std::process::id()))
    {
        return None;
    }
    let usec = number(environment.watchdog_usec.as_ref()?)?;
    (usec > 0).then(|| Duration::from_micros(usec))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(socket: &UnixDatagram) -> String {
        let mut buffer = [0; 1000];
        let count = socket.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..count]).into_owned()
    }

    #[test]
    fn both_kinds_of_socket_are_spoken_to() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let abstract_name = format!("onacc-test-{}", std::process::id());
        let by_path = UnixDatagram::bind(&path).unwrap();
        let address = SocketAddr::from_abstract_name(&abstract_name).unwrap();
        let by_name = UnixDatagram::bind_addr(&address).unwrap();
        for (name, listener) in [
            (path.into_os_string(), by_path),
            (format!("@{abstract_name}").into(), by_name),
        ] {
            let environment = Environment {
                socket: Some(name),
                watchdog_usec: Some("1500000".into()),
                watchdog_pid: None,
            };
            let manager = Manager::new(&environment).unwrap();
            assert_eq!(manager.watchdog(), Some(Duration::from_millis(1500)));
            manager.ready("well");
            let pid = std::process::id();
            assert_eq!(
                heard(&listener),
                format!("READY=1\nMAINPID={pid}\nSTATUS=well")
            );
            manager.reloading();
            assert!(heard(&listener).starts_with("RELOADING=1\nMONOTONIC_USEC="));
            manager.alive();
            assert_eq!(heard(&listener), "WATCHDOG=1");
            // Nobody reads: signs of life are dropped, not waited for.
            for _ in 0..10_000 {
                manager.alive();
            }
        }
    }

    #[test]
    fn without_a_manager_nothing_is_told_and_a_watchdog_for_another_is_not_ours() {
        let manager = Manager::new(&Environment::default()).unwrap();
        manager.ready("");
        assert_eq!(manager.watchdog(), None);
        let usec = Some(OsString::from("5"));
        for (pid, ours) in [(std::process::id(), true), (1, false)] {
            let environment = Environment {
                watchdog_pid: Some(pid.to_string().into()),
                watchdog_usec: usec.clone(),
                socket: None,
            };
            assert_eq!(watchdog(&environment).is_some(), ours);
        }
        let nowhere = Environment {
            socket: Some("/nowhere/at/all".into()),
            ..Environment::default()
        };
        assert!(Manager::new(&nowhere).is_err());
    }
}
