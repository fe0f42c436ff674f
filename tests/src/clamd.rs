//! A private clamd with a small database: EICAR and the files of clamav-testfiles.
//!
//! Owns: its configuration, its database, its life. Must not: touch the host's
//! clamd. Tested below, by a scan over a session.

use std::{
    fs::{self, File},
    io::{Read, Write},
    os::unix::{fs::chown, net::UnixStream, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{self, Signal},
    unistd::{Pid, User},
};

use crate::{Result, child, sys};

/// What clamd calls EICAR with the database of this kit.
pub const EICAR_NAME: &str = "Eicar-Signature.UNOFFICIAL";
/// The files of Debian's package clamav-testfiles.
pub const TEST_FILES: &str = "/usr/share/clamav-testfiles";

const PROGRAM: &str = "/usr/sbin/clamd";
const START_LIMIT: Duration = Duration::from_mins(1);

/// The EICAR test file. It is put together at run time, so that neither this
/// source nor the binary is detected as a file of that kind.
pub fn eicar() -> Vec<u8> {
    let (first, second) = (
        r"X5O!P%@AP[4\PZX54(P^)7CC)7}$EICAR",
        "-STANDARD-ANTIVIRUS-TEST-FILE!$H+H*",
    );
    format!("{first}{second}").into_bytes()
}

/// What clamd calls a file of clamav-testfiles that it knows by its hash.
pub fn test_file_name(file: &str) -> String {
    format!("Onacc.Test.{file}.UNOFFICIAL")
}

/// The files of clamav-testfiles, in order of their names; none if not installed.
pub fn test_files() -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = fs::read_dir(TEST_FILES)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.is_file())
        .collect();
    files.sort();
    files
}

/// Sends one command to a clamd socket and returns all that it answers.
pub fn ask(socket: &Path, command: &str, limit: Duration) -> Result<String> {
    let talk = || {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(limit))?;
        stream.set_write_timeout(Some(limit))?;
        stream.write_all(format!("z{command}\0").as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok::<_, std::io::Error>(answer.trim_end_matches('\0').to_owned())
    };
    talk().map_err(|error| format!("{command} to {}: {error}", socket.display()))
}

/// How a clamd is to be started.
#[derive(Clone, Debug)]
pub struct ClamdBuilder {
    dir: PathBuf,
    user: Option<String>,
    options: Vec<String>,
}

/// A running clamd; killed and reaped on drop.
#[derive(Debug)]
pub struct Clamd {
    dir: PathBuf,
    user: Option<User>,
    program: PathBuf,
    child: Option<Child>,
}

impl Clamd {
    /// Whether clamd is installed; the `Err` says what to install.
    pub fn installed() -> Result<()> {
        if Path::new(PROGRAM).exists() {
            Ok(())
        } else {
            Err(format!(
                "there is no {PROGRAM}: apt-get install clamav-daemon"
            ))
        }
    }

    /// Prepares a clamd whose files are all in `dir`, which must exist.
    pub fn builder(dir: &Path) -> ClamdBuilder {
        ClamdBuilder {
            dir: dir.to_path_buf(),
            user: None,
            options: Vec::new(),
        }
    }

    /// Starts a clamd as root, with its files in `dir`.
    pub fn start(dir: &Path) -> Self {
        Self::builder(dir).start()
    }

    /// The socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.join("clamd.sock")
    }

    /// The configuration file; `clamdscan --config-file=…` takes it too.
    pub fn conf(&self) -> PathBuf {
        self.dir.join("clamd.conf")
    }

    /// The directory of the database: `reload` after a change.
    pub fn database(&self) -> PathBuf {
        self.dir.join("db")
    }

    /// The process id. Panics after `kill`.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("clamd is running").id()
    }

    /// Kills it by SIGKILL and reaps it.
    pub fn kill(&mut self) {
        if let Some(mut running) = self.child.take() {
            child::kill(&mut running);
        }
    }

    /// Stops it by SIGSTOP: connections are still accepted by the kernel.
    pub fn stop(&self) {
        self.signal(Signal::SIGSTOP);
    }

    /// Lets it go on after `stop`.
    pub fn cont(&self) {
        self.signal(Signal::SIGCONT);
    }

    /// Kills it if it runs, and starts it with the same files.
    pub fn restart(&mut self) {
        self.kill();
        let _ = fs::remove_file(self.socket());
        self.spawn().expect("clamd starts again");
    }

    /// Adds a signature for the bytes that a file begins with, and reloads.
    pub fn add_signature(&self, name: &str, begins_with: &[u8]) {
        let mut file = File::options()
            .append(true)
            .open(self.database().join("local.ndb"))
            .expect("the database is there");
        writeln!(file, "{name}:0:0:{}", hex(begins_with)).expect("writing a signature");
        self.reload();
    }

    /// Has it read its database again; returns when it has been told to.
    pub fn reload(&self) {
        let answer = ask(&self.socket(), "RELOAD", Duration::from_secs(10));
        assert_eq!(answer.as_deref(), Ok("RELOADING"));
    }

    /// Its log.
    pub fn log(&self) -> String {
        let read = |name: &str| fs::read(self.dir.join(name)).unwrap_or_default();
        let bytes = [read("clamd.out"), read("clamd.log")].concat();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.pid()).expect("a pid"));
        signal::kill(pid, signal).expect("signalling clamd");
    }

    /// Starts the process and waits until it answers.
    fn spawn(&mut self) -> Result<()> {
        let output = File::create(self.dir.join("clamd.out"))
            .map_err(|error| format!("making clamd's output file: {error}"))?;
        let errors = output
            .try_clone()
            .map_err(|error| format!("making clamd's output file: {error}"))?;
        let mut command = Command::new(&self.program);
        command
            .arg("-c")
            .arg(self.conf())
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            // Ctrl-C on a terminal is for whoever started us.
            .process_group(0);
        if let Some(user) = &self.user {
            command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
        }
        let mut running = sys::die_with_parent(&mut command)
            .spawn()
            .map_err(|error| format!("{} does not start: {error}", self.program.display()))?;
        let deadline = Instant::now() + START_LIMIT;
        loop {
            if ask(&self.socket(), "PING", Duration::from_secs(5)).as_deref() == Ok("PONG") {
                self.child = Some(running);
                return Ok(());
            }
            let ended = child::wait_within(&mut running, Duration::from_millis(20));
            if ended.is_some() || Instant::now() >= deadline {
                child::kill(&mut running);
                return Err(format!("clamd does not answer; it said:\n{}", self.log()));
            }
        }
    }
}

impl Drop for Clamd {
    fn drop(&mut self) {
        self.kill();
    }
}

impl ClamdBuilder {
    /// Runs clamd as this user. Every parent of the directory must let it pass.
    #[must_use]
    pub fn as_user(mut self, user: &str) -> Self {
        self.user = Some(user.to_owned());
        self
    }

    /// Adds a line to clamd.conf, before the kit's own lines, so that it wins.
    #[must_use]
    pub fn option(mut self, line: &str) -> Self {
        self.options.push(line.to_owned());
        self
    }

    /// Starts it.
    pub fn start(self) -> Clamd {
        self.try_start().expect("clamd starts")
    }

    /// Starts it, or says why not.
    pub fn try_start(self) -> Result<Clamd> {
        Clamd::installed()?;
        let user = match &self.user {
            None => None,
            Some(name) => Some(
                User::from_name(name)
                    .ok()
                    .flatten()
                    .ok_or_else(|| format!("there is no user {name}"))?,
            ),
        };
        self.write_files(user.as_ref())
            .map_err(|error| format!("preparing clamd in {}: {error}", self.dir.display()))?;
        let mut clamd = Clamd {
            program: unconfined(&self.dir)?,
            dir: self.dir,
            user,
            child: None,
        };
        clamd.spawn()?;
        Ok(clamd)
    }

    fn write_files(&self, user: Option<&User>) -> std::io::Result<()> {
        let (database, temporary) = (self.dir.join("db"), self.dir.join("tmp"));
        fs::create_dir_all(&database)?;
        fs::create_dir_all(&temporary)?;
        let signature = format!("Eicar-Signature:0:0:{}\n", hex(&eicar()));
        fs::write(database.join("local.ndb"), signature)?;
        let hashes = hashes_of_test_files()?;
        // clamd takes an empty database for a broken one.
        if !hashes.is_empty() {
            fs::write(database.join("local.hdb"), hashes)?;
        }
        let dir = self.dir.display();
        let options = self.options.iter().map(|line| line.clone() + "\n");
        let mut lines: Vec<String> = options.collect();
        lines.push(format!(
            "LocalSocket {dir}/clamd.sock\n\
             LocalSocketMode 666\n\
             FixStaleSocket yes\n\
             Foreground yes\n\
             LogFile {dir}/clamd.log\n\
             LogTime yes\n\
             DatabaseDirectory {dir}/db\n\
             TemporaryDirectory {dir}/tmp\n\
             MaxThreads 10\n\
             SelfCheck 86400\n\
             ExitOnOOM yes\n"
        ));
        if user.is_none() {
            lines.push("User root\n".to_owned());
        }
        fs::write(self.dir.join("clamd.conf"), lines.concat())?;
        if let Some(user) = user {
            for path in [&self.dir, &database, &temporary] {
                chown(path, Some(user.uid.as_raw()), Some(user.gid.as_raw()))?;
            }
        }
        Ok(())
    }
}

/// Where `AppArmor` confines clamd to its usual directories, a copy elsewhere is
/// free to use ours: the profile goes by the path of the program.
fn unconfined(dir: &Path) -> Result<PathBuf> {
    let enabled = fs::read("/sys/module/apparmor/parameters/enabled")
        .is_ok_and(|value| value.starts_with(b"Y"));
    if !enabled || !Path::new("/etc/apparmor.d/usr.sbin.clamd").exists() {
        return Ok(PathBuf::from(PROGRAM));
    }
    let copy = dir.join("clamd");
    fs::copy(PROGRAM, &copy).map_err(|error| format!("copying {PROGRAM}: {error}"))?;
    Ok(copy)
}

/// Lines of a hash database, `md5:size:name`, for the files of clamav-testfiles.
fn hashes_of_test_files() -> std::io::Result<String> {
    let files = test_files();
    if files.is_empty() {
        return Ok(String::new());
    }
    let output = Command::new("md5sum").args(&files).output()?;
    let sums = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut lines = Vec::new();
    for (file, sum) in files.iter().zip(sums.lines()) {
        let md5 = sum.split_whitespace().next().unwrap_or_default();
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        let size = fs::metadata(file)?.len();
        lines.push(format!("{md5}:{size}:Onacc.Test.{name}\n"));
    }
    Ok(lines.concat())
}

fn hex(bytes: &[u8]) -> String {
    let digit = |value: u8| char::from(b"0123456789abcdef"[usize::from(value)]);
    bytes
        .iter()
        .flat_map(|byte| [digit(byte >> 4), digit(byte & 15)])
        .collect()
}

/// Waits until a condition holds, asking every few milliseconds.
pub fn wait_until(limit: Duration, mut holds: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        if holds() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        thread::sleep(Duration::from_millis(5));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{client::Session, or_skip, require_root};

    const LIMIT: Duration = Duration::from_secs(30);

    fn file_of(dir: &Path, name: &str, content: &[u8]) -> File {
        let path = dir.join(name);
        fs::write(&path, content).unwrap();
        File::open(path).unwrap()
    }

    #[test]
    fn clamd_finds_eicar_and_test_files_by_fildes_over_a_session() {
        require_root!();
        or_skip!(Clamd::installed());
        let dir = tempfile::tempdir().unwrap();
        let clamd = Clamd::start(dir.path());
        let mut session = Session::connect(&clamd.socket(), LIMIT).unwrap();
        let mut verdict = |file: &File| {
            let id = session.fildes(file).unwrap();
            let (answered, text) = session.reply().unwrap();
            assert_eq!(answered, id);
            text
        };
        let infected = verdict(&file_of(dir.path(), "e", &eicar()));
        assert!(
            infected.ends_with(&format!("{EICAR_NAME} FOUND")),
            "{infected}"
        );
        let clean = verdict(&file_of(dir.path(), "c", b"clean"));
        assert!(clean.ends_with(": OK"), "{clean}");
        for path in test_files() {
            let text = verdict(&File::open(&path).unwrap());
            assert!(text.ends_with(" FOUND"), "{}: {text}", path.display());
        }
        assert!(clamd.log().contains(EICAR_NAME));
    }

    #[test]
    fn clamd_is_stopped_killed_restarted_and_given_signatures() {
        require_root!();
        or_skip!(Clamd::installed());
        let dir = tempfile::tempdir().unwrap();
        let mut clamd = Clamd::builder(dir.path()).option("MaxThreads 3").start();
        let ping = |limit| ask(&dir.path().join("clamd.sock"), "PING", limit);
        clamd.stop();
        assert!(ping(Duration::from_millis(200)).is_err());
        clamd.cont();
        assert_eq!(ping(LIMIT).as_deref(), Ok("PONG"));
        clamd.kill();
        assert!(ping(LIMIT).is_err());
        clamd.restart();
        assert_eq!(ping(LIMIT).as_deref(), Ok("PONG"));
        clamd.add_signature("Onacc.Test.Added", b"to be found");
        let file = file_of(dir.path(), "f", b"to be found, and more");
        assert!(wait_until(LIMIT, || {
            let mut session = Session::connect(&clamd.socket(), LIMIT).unwrap();
            session.fildes(&file).unwrap();
            session
                .reply()
                .unwrap()
                .1
                .ends_with("Added.UNOFFICIAL FOUND")
        }));
    }

    #[test]
    fn clamd_runs_as_another_user() {
        require_root!();
        or_skip!(Clamd::installed());
        let dir = tempfile::tempdir().unwrap();
        let clamd = Clamd::builder(dir.path()).as_user("clamav").start();
        let owner = std::os::unix::fs::MetadataExt::uid(
            &fs::metadata(format!("/proc/{}", clamd.pid())).unwrap(),
        );
        assert_ne!(owner, 0);
    }

    #[test]
    fn the_eicar_file_has_its_68_bytes() {
        assert_eq!(eicar().len(), 68);
    }
}
