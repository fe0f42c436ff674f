//! Tests of the scripted clamd.

use super::*;
use crate::{clamd, client::Session};

const LIMIT: Duration = Duration::from_secs(20);

fn file_of(dir: &Path, name: &str, content: &[u8]) -> File {
    let path = dir.join(name);
    fs::write(&path, content).unwrap();
    File::open(path).unwrap()
}

#[test]
fn a_session_round_trip_with_passed_files() {
    let dir = tempfile::tempdir().unwrap();
    let fake = FakeClamd::start(dir.path(), |_| Behaviour::usual());
    let mut session = Session::connect(fake.socket(), LIMIT).unwrap();
    session.fildes(&file_of(dir.path(), "c", b"clean")).unwrap();
    assert_eq!(session.reply().unwrap(), (1, "fd[10]: OK".to_owned()));
    session.fildes(&file_of(dir.path(), "e", &eicar())).unwrap();
    let found = format!("fd[10]: {EICAR_NAME} FOUND");
    assert_eq!(session.reply().unwrap(), (2, found));
    session.command("PING").unwrap();
    assert_eq!(session.reply().unwrap(), (3, "PONG".to_owned()));
    session.command("VERSION").unwrap();
    assert!(session.reply().unwrap().1.starts_with("ClamAV "));
    assert_eq!(
        clamd::ask(fake.socket(), "PING", LIMIT).as_deref(),
        Ok("PONG")
    );
    drop(session);
    assert!(clamd::wait_until(LIMIT, || fake.count("END") == 1));
    assert_eq!(
        (fake.count("FILDES"), fake.peak(), fake.connections()),
        (2, 1, 2)
    );
    let first = &fake.requests()[1];
    assert_eq!(first.path.as_deref(), Some(dir.path().join("c").as_path()));
    assert!(first.answered.is_some());
}

#[test]
fn the_script_reads_the_file_delays_closes_and_says_nonsense() {
    let dir = tempfile::tempdir().unwrap();
    let fake = FakeClamd::start(dir.path(), |request| match request.content().as_slice() {
        b"slow" => Behaviour::clean().after(Duration::from_millis(200)),
        b"bad" => Behaviour::infected("Some.Name"),
        b"error" => Behaviour::error("Can't open file"),
        b"raw" => Behaviour::raw(b"gibberish\0"),
        b"half" => Behaviour::raw(b"1: fd[10]: O").then_close(),
        b"never" => Behaviour::never(),
        _ => Behaviour::close(),
    });
    let mut session = Session::connect(fake.socket(), LIMIT).unwrap();
    for name in ["slow", "bad", "error"] {
        session
            .fildes(&file_of(dir.path(), name, name.as_bytes()))
            .unwrap();
    }
    let mut replies: Vec<(u32, String)> = (0..3).map(|_| session.reply().unwrap()).collect();
    assert_eq!(
        replies.pop().unwrap(),
        (1, "fd[10]: OK".to_owned()),
        "the slow one is last"
    );
    replies.sort();
    assert_eq!(replies[0], (2, "fd[10]: Some.Name FOUND".to_owned()));
    assert_eq!(replies[1], (3, "fd[10]: Can't open file ERROR".to_owned()));
    assert!(fake.peak() >= 2);
    session.fildes(&file_of(dir.path(), "raw", b"raw")).unwrap();
    assert!(
        session
            .reply()
            .unwrap_err()
            .to_string()
            .contains("gibberish")
    );
    session
        .fildes(&file_of(dir.path(), "never", b"never"))
        .unwrap();
    assert!(fake.wait_for_scans(1, LIMIT));
    session
        .fildes(&file_of(dir.path(), "other", b"other"))
        .unwrap();
    assert!(session.reply().is_err(), "the connection was closed");
    assert!(clamd::wait_until(LIMIT, || fake.in_flight() == 0));
    let mut session = Session::connect(fake.socket(), LIMIT).unwrap();
    session
        .fildes(&file_of(dir.path(), "half", b"half"))
        .unwrap();
    let error = session.reply().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
}

#[test]
fn a_drop_ends_what_would_never_be_answered() {
    let dir = tempfile::tempdir().unwrap();
    let fake = FakeClamd::start(dir.path(), |_| Behaviour::never());
    let mut session = Session::connect(fake.socket(), LIMIT).unwrap();
    session.fildes(&file_of(dir.path(), "a", b"a")).unwrap();
    assert!(fake.wait_for_scans(1, LIMIT));
    let before = Instant::now();
    drop(fake);
    assert!(before.elapsed() < Duration::from_secs(4));
    assert!(session.reply().is_err());
}

#[test]
fn commands_are_cut_where_they_end() {
    assert_eq!(
        next_command(b"zPING\0zP", false),
        Some(("PING".to_owned(), 6))
    );
    assert_eq!(
        next_command(b"nPING\n", false),
        Some(("PING".to_owned(), 6))
    );
    assert_eq!(next_command(b"zPIN", false), None);
    assert_eq!(next_command(b"zFILDES\0", true), None);
    assert_eq!(next_command(b"zFILDES\0\0", false), None);
    assert_eq!(
        next_command(b"zFILDES\0\0zEND\0", true),
        Some(("FILDES".to_owned(), 9))
    );
    assert_eq!(next_command(b"", false), None);
    assert_eq!(next_command(b"\0", false), Some((String::new(), 1)));
}
