//! A scripted clamd on a Unix socket: as slow, silent or broken as a test wants.
//!
//! Owns: the server side of sessions, with passed descriptors, and a record of
//! what was asked. Must not: scan (beyond looking for EICAR at a file's start).
//! Every request is answered in a thread of its own, so replies overtake each
//! other as clamd's do. It passes for a process of its own, a stand-in that only
//! sleeps: else all opens of the test would be clamd's own. Tested below.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{self, IoSlice, IoSliceMut, Write},
    net::Shutdown,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{
            fs::FileExt,
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use nix::{
    cmsg_space,
    sys::socket::{
        ControlMessage, ControlMessageOwned, MsgFlags, UnixCredentials, recvmsg, sendmsg,
    },
};

use crate::{child, clamd::EICAR_NAME, eicar, sys};

/// One request, as the script sees it.
#[derive(Debug)]
pub struct RequestInfo {
    /// Number of the connection, from 1.
    pub connection: usize,
    /// Number of the request in its session, from 1; 0 outside a session.
    pub id: u32,
    /// The command: `FILDES`, `PING`, `VERSION` …
    pub command: String,
    /// The file that came with `FILDES`.
    pub file: Option<File>,
    /// What came with `INSTREAM`.
    pub stream: Option<Vec<u8>>,
    /// When it came.
    pub received: Instant,
}

impl RequestInfo {
    /// What the passed file holds at this moment (its offset is left alone), or
    /// what was streamed.
    pub fn content(&self) -> Vec<u8> {
        let Some(file) = &self.file else {
            return self.stream.clone().unwrap_or_default();
        };
        let mut bytes = Vec::new();
        let mut buffer = vec![0; 64 << 10];
        while let Ok(count @ 1..) = file.read_at(&mut buffer, bytes.len() as u64) {
            bytes.extend(&buffer[..count]);
        }
        bytes
    }

    /// The path of the passed file, as the kernel has it now.
    pub fn path(&self) -> Option<PathBuf> {
        let fd = self.file.as_ref()?.as_raw_fd();
        fs::read_link(format!("/proc/self/fd/{fd}")).ok()
    }
}

#[derive(Clone, Debug)]
enum Answer {
    Usual,
    Text(String),
    Raw(Vec<u8>),
    Never,
    Close,
}

/// What the scripted clamd does with a request.
#[derive(Clone, Debug)]
pub struct Behaviour {
    answer: Answer,
    delay: Duration,
    held: bool,
    closes: bool,
}

impl Behaviour {
    const fn at_once(answer: Answer) -> Self {
        Self {
            answer,
            delay: Duration::ZERO,
            held: false,
            closes: false,
        }
    }

    /// What clamd does: `PONG`, a version, EICAR or OK.
    pub const fn usual() -> Self {
        Self::at_once(Answer::Usual)
    }

    /// The same, as a script.
    pub fn usual_for(_: &RequestInfo) -> Self {
        Self::usual()
    }

    /// `<id>: <text>`; for a `FILDES`, `<id>: fd[10]: <text>`.
    pub fn reply(text: &str) -> Self {
        Self::at_once(Answer::Text(text.to_owned()))
    }

    /// `OK`.
    pub fn clean() -> Self {
        Self::reply("OK")
    }

    /// `<signature> FOUND`.
    pub fn infected(signature: &str) -> Self {
        Self::reply(&format!("{signature} FOUND"))
    }

    /// `<message> ERROR`.
    pub fn error(message: &str) -> Self {
        Self::reply(&format!("{message} ERROR"))
    }

    /// These very bytes, whatever they are.
    pub fn raw(bytes: &[u8]) -> Self {
        Self::at_once(Answer::Raw(bytes.to_vec()))
    }

    /// No answer, ever; the connection stays.
    pub const fn never() -> Self {
        Self::at_once(Answer::Never)
    }

    /// Closes the connection.
    pub const fn close() -> Self {
        Self::at_once(Answer::Close)
    }

    /// The same, but only after this time.
    #[must_use]
    pub const fn after(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    /// The same, but only after the test has said [`FakeClamd::let_go`].
    #[must_use]
    pub const fn held(mut self) -> Self {
        self.held = true;
        self
    }

    /// The same, and then closes the connection.
    #[must_use]
    pub const fn then_close(mut self) -> Self {
        self.closes = true;
        self
    }
}

/// A request in the record.
#[derive(Clone, Debug)]
pub struct Record {
    /// Number of the connection, from 1.
    pub connection: usize,
    /// Number in the session; 0 outside one.
    pub id: u32,
    /// The command.
    pub command: String,
    /// The path of the passed file when it came.
    pub path: Option<PathBuf>,
    /// When it came.
    pub received: Instant,
    /// When its answer was sent.
    pub answered: Option<Instant>,
}

#[derive(Default)]
struct State {
    stopping: bool,
    streams: HashMap<usize, UnixStream>,
    record: Vec<Record>,
    connections: usize,
    threads: usize,
    scans: usize,
    peak: usize,
    /// Held requests that may go on.
    let_go: usize,
}

type Script = dyn Fn(&RequestInfo) -> Behaviour + Send + Sync;

struct Shared {
    script: Box<Script>,
    /// Whom every reply is said to come from.
    credentials: UnixCredentials,
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits while a condition holds, for at most this time.
    fn wait_while(&self, limit: Duration, holds: impl Fn(&State) -> bool) {
        let guard = self.state();
        let waited = self
            .changed
            .wait_timeout_while(guard, limit, |state| holds(state));
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    /// Waits for one of the requests that may go on to be this one.
    fn wait_to_go(&self, gone: impl Fn(&State) -> bool) {
        let guard = self.state();
        let waits = |state: &mut State| state.let_go == 0 && !gone(state);
        let waited = self.changed.wait_while(guard, waits);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner);
        // That all may go on is never used up.
        if state.let_go != usize::MAX {
            state.let_go = state.let_go.saturating_sub(1);
        }
    }

    /// Runs something in a thread that drop waits for.
    fn spawn(self: &Arc<Self>, work: impl FnOnce(&Arc<Self>) + Send + 'static) {
        self.state().threads += 1;
        let shared = Arc::clone(self);
        thread::spawn(move || {
            work(&shared);
            shared.state().threads -= 1;
            shared.changed.notify_all();
        });
    }
}

/// The scripted clamd; its connections end and its socket goes on drop.
pub struct FakeClamd {
    socket: PathBuf,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
    stand_in: Child,
}

impl FakeClamd {
    /// Listens on `<dir>/clamd.sock`, and asks the script about every request.
    pub fn start(
        dir: &Path,
        script: impl Fn(&RequestInfo) -> Behaviour + Send + Sync + 'static,
    ) -> Self {
        let socket = dir.join("clamd.sock");
        let listener = UnixListener::bind(&socket).expect("the socket of the scripted clamd");
        let mut sleep = Command::new("sleep");
        sleep.arg("infinity").stdin(Stdio::null());
        let stand_in = sys::die_with_parent(&mut sleep)
            .spawn()
            .expect("a process to pass for clamd");
        let shared = Arc::new(Shared {
            script: Box::new(script),
            credentials: credentials_of(&stand_in),
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        let accepting = Arc::clone(&shared);
        let acceptor = thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let mut state = accepting.state();
                if state.stopping {
                    return;
                }
                state.connections += 1;
                let number = state.connections;
                let kept = stream.try_clone().expect("duplicating a socket");
                state.streams.insert(number, kept);
                drop(state);
                accepting.spawn(move |shared| {
                    let _ = serve(shared, number, &stream);
                    if let Some(stream) = shared.state().streams.remove(&number) {
                        let _ = stream.shutdown(Shutdown::Both);
                    }
                    shared.changed.notify_all();
                });
            }
        });
        Self {
            socket,
            shared,
            acceptor: Some(acceptor),
            stand_in,
        }
    }

    /// The socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The process that it passes for.
    pub fn pid(&self) -> u32 {
        self.stand_in.id()
    }

    /// All requests so far, in the order they came.
    pub fn requests(&self) -> Vec<Record> {
        self.shared.state().record.clone()
    }

    /// How many requests of this command came so far.
    pub fn count(&self, command: &str) -> usize {
        let state = self.shared.state();
        let same = state.record.iter().filter(|one| one.command == command);
        same.count()
    }

    /// The greatest number of scans that were under way at once.
    pub fn peak(&self) -> usize {
        self.shared.state().peak
    }

    /// How many scans are under way.
    pub fn in_flight(&self) -> usize {
        self.shared.state().scans
    }

    /// How many connections were accepted so far.
    pub fn connections(&self) -> usize {
        self.shared.state().connections
    }

    /// Lets so many held requests go on, those that are yet to come included.
    pub fn let_go(&self, count: usize) {
        let mut state = self.shared.state();
        state.let_go = state.let_go.saturating_add(count);
        drop(state);
        self.shared.changed.notify_all();
    }

    /// Holds no request any more.
    pub fn let_all_go(&self) {
        self.let_go(usize::MAX);
    }

    /// Waits until this many scans are under way.
    pub fn wait_for_scans(&self, count: usize, limit: Duration) -> bool {
        self.shared.wait_while(limit, |state| state.scans < count);
        self.in_flight() >= count
    }
}

impl Drop for FakeClamd {
    fn drop(&mut self) {
        {
            let mut state = self.shared.state();
            state.stopping = true;
            for stream in state.streams.values() {
                let _ = stream.shutdown(Shutdown::Both);
            }
        }
        self.shared.changed.notify_all();
        // Wakes the acceptor.
        let _ = UnixStream::connect(&self.socket);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
        let _ = fs::remove_file(&self.socket);
        // Passed files are closed when their threads have ended.
        self.shared
            .wait_while(Duration::from_secs(5), |state| state.threads > 0);
        child::kill(&mut self.stand_in);
    }
}

/// What the kernel would say of a message that this child sends; root may say so.
fn credentials_of(process: &Child) -> UnixCredentials {
    let own = UnixCredentials::new();
    if !nix::unistd::geteuid().is_root() {
        return own;
    }
    libc::ucred {
        pid: libc::pid_t::try_from(process.id()).expect("a pid"),
        uid: own.uid(),
        gid: own.gid(),
    }
    .into()
}

/// Writes all of it, as the process that the scripted clamd passes for.
fn send(shared: &Shared, mut stream: &UnixStream, bytes: &[u8]) -> io::Result<()> {
    let sent = sendmsg::<()>(
        stream.as_raw_fd(),
        &[IoSlice::new(bytes)],
        &[ControlMessage::ScmCredentials(&shared.credentials)],
        MsgFlags::MSG_NOSIGNAL,
        None,
    )?;
    stream.write_all(&bytes[sent..])
}

/// Reads requests from one connection until it ends.
fn serve(shared: &Arc<Shared>, connection: usize, stream: &UnixStream) -> io::Result<()> {
    let mut bytes = Vec::new();
    let mut files = Vec::new();
    let mut session = None;
    loop {
        while let Some((command, used)) = next_command(&bytes, !files.is_empty()) {
            let content = (command == "INSTREAM").then(|| streamed(&bytes[..used]));
            bytes.drain(..used);
            let id = session.map_or(0, |last: u32| last + 1);
            match command.as_str() {
                "IDSESSION" => session = Some(0),
                "END" => {
                    note(shared, connection, 0, command, (None, None));
                    return Ok(());
                }
                _ => {
                    session = session.map(|_| id);
                    let file = (command == "FILDES" && !files.is_empty()).then(|| files.remove(0));
                    let request = note(shared, connection, id, command, (file, content));
                    let stream = stream.try_clone()?;
                    shared.spawn(move |shared| answer(shared, request, &stream));
                    continue;
                }
            }
            note(shared, connection, 0, command, (None, None));
        }
        if receive(stream, &mut bytes, &mut files)? == 0 {
            return Ok(());
        }
    }
}

/// The first whole command in the buffer, and how many bytes it takes.
/// `FILDES` is whole with the byte that carries the descriptor.
fn next_command(bytes: &[u8], has_file: bool) -> Option<(String, usize)> {
    let end_mark = match bytes.first()? {
        b'n' => b'\n',
        _ => 0,
    };
    let end = bytes.iter().position(|byte| *byte == end_mark)?;
    let command = String::from_utf8_lossy(&bytes[1.min(end)..end]).into_owned();
    if command == "INSTREAM" {
        let mut at = end + 1;
        loop {
            let header = bytes.get(at..at + 4)?;
            let length = u32::from_be_bytes(header.try_into().ok()?) as usize;
            at += 4 + length;
            if length == 0 {
                return Some((command, at));
            }
        }
    }
    if command != "FILDES" {
        return Some((command, end + 1));
    }
    (bytes.len() > end + 1 && has_file).then_some((command, end + 2))
}

/// What the chunks of a whole `INSTREAM` hold.
fn streamed(command: &[u8]) -> Vec<u8> {
    let mut at = "zINSTREAM\0".len();
    let mut content = Vec::new();
    while let Some(header) = command.get(at..at + 4) {
        let length = u32::from_be_bytes(header.try_into().unwrap_or_default()) as usize;
        let chunk = command.get(at + 4..at + 4 + length).unwrap_or_default();
        content.extend(chunk);
        at += 4 + length;
    }
    content
}

/// One recvmsg: appends bytes and passed files, returns the number of bytes.
fn receive(stream: &UnixStream, bytes: &mut Vec<u8>, files: &mut Vec<File>) -> io::Result<usize> {
    let mut buffer = [0; 4096];
    let mut parts = [IoSliceMut::new(&mut buffer)];
    let mut control = cmsg_space!([std::os::fd::RawFd; 8]);
    let message = recvmsg::<()>(
        stream.as_raw_fd(),
        &mut parts,
        Some(&mut control),
        MsgFlags::MSG_CMSG_CLOEXEC,
    )?;
    let count = message.bytes;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = control {
            files.extend(
                fds.into_iter()
                    .map(sys::own)
                    .map(|fd: OwnedFd| File::from(fd)),
            );
        }
    }
    bytes.extend(&buffer[..count]);
    Ok(count)
}

/// Puts a request into the record.
fn note(
    shared: &Shared,
    connection: usize,
    id: u32,
    command: String,
    (file, stream): (Option<File>, Option<Vec<u8>>),
) -> (usize, RequestInfo) {
    let request = RequestInfo {
        connection,
        id,
        command,
        file,
        stream,
        received: Instant::now(),
    };
    let mut state = shared.state();
    state.record.push(Record {
        connection,
        id,
        command: request.command.clone(),
        path: request.path(),
        received: request.received,
        answered: None,
    });
    if is_scan(&request.command) {
        state.scans += 1;
        state.peak = state.peak.max(state.scans);
    }
    let place = state.record.len() - 1;
    drop(state);
    shared.changed.notify_all();
    (place, request)
}

fn is_scan(command: &str) -> bool {
    matches!(command, "FILDES" | "INSTREAM")
}

/// Does what the script says.
fn answer(shared: &Arc<Shared>, (place, request): (usize, RequestInfo), stream: &UnixStream) {
    let connection = request.connection;
    let gone = |state: &State| state.stopping || !state.streams.contains_key(&connection);
    let behaviour = (shared.script)(&request);
    if behaviour.held {
        shared.wait_to_go(gone);
    }
    if !behaviour.delay.is_zero() {
        shared.wait_while(behaviour.delay, |state| !gone(state));
    }
    let bytes = match behaviour.answer {
        Answer::Never => {
            shared.wait_while(Duration::from_hours(24), |state| !gone(state));
            None
        }
        Answer::Close => None,
        Answer::Usual => Some(reply_bytes(&request, &usual_text(&request))),
        Answer::Text(text) => Some(reply_bytes(&request, &text)),
        Answer::Raw(bytes) => Some(bytes),
    };
    let mut state = shared.state();
    if is_scan(&request.command) {
        state.scans -= 1;
    }
    if let Some(bytes) = bytes.filter(|_| !gone(&state)) {
        state.record[place].answered = Some(Instant::now());
        // Under the lock: replies of one connection must not mix.
        let sent = send(shared, stream, &bytes);
        if sent.is_err() || request.id == 0 || behaviour.closes {
            let _ = stream.shutdown(Shutdown::Both);
        }
    } else {
        let _ = stream.shutdown(Shutdown::Both);
    }
    drop(state);
    shared.changed.notify_all();
}

fn reply_bytes(request: &RequestInfo, text: &str) -> Vec<u8> {
    let id = match request.id {
        0 => String::new(),
        id => format!("{id}: "),
    };
    let subject = match request.command.as_str() {
        "FILDES" => "fd[10]: ",
        "INSTREAM" => "stream: ",
        _ => "",
    };
    format!("{id}{subject}{text}\0").into_bytes()
}

fn usual_text(request: &RequestInfo) -> String {
    match request.command.as_str() {
        "PING" => "PONG".to_owned(),
        "VERSION" => "ClamAV 1.4.6/27000/Sun Nov 22 00:00:00 2026".to_owned(),
        "FILDES" | "INSTREAM" if request.content().starts_with(&eicar()) => {
            format!("{EICAR_NAME} FOUND")
        }
        "FILDES" | "INSTREAM" => "OK".to_owned(),
        _ => "UNKNOWN COMMAND".to_owned(),
    }
}

#[cfg(test)]
#[path = "fake_clamd_tests.rs"]
mod tests;
