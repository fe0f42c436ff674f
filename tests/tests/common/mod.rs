//! What the end-to-end tests share: a site to protect, and what is tried on it.
//!
//! Owns: the scene (a scratch filesystem, a clamd, an agent between them) and
//! the ways in which a clean file becomes an infected one. Must not: assert what
//! only one test file is about.

#![allow(dead_code, reason = "each test file uses a part of it")]

use std::{
    fs::{self, File, OpenOptions},
    io::Write,
    os::unix::{fs::FileExt, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use onacc_tests::{
    Agent, Clamd, Counters, Exited, FakeClamd, Opened, Opening, ScratchFs, SharedMapping,
    agent::AgentBuilder,
    eicar,
    fake_clamd::{Behaviour, RequestInfo},
    open_within, sys,
};

/// No open may take this long, on a machine with other work either.
pub const LIMIT: Duration = Duration::from_secs(20);
/// Protection that was disturbed is back by then.
pub const SOON: Duration = Duration::from_secs(3);
/// Within this time after a store through a shared mapping the clean mark is
/// gone: the kernel reports the store before it is visible, and the agent takes
/// the mark away as soon as it runs. On an idle machine that is microseconds.
pub const STORE_WINDOW: Duration = Duration::from_millis(200);
/// Within this time after a directory came into scope by a move, what is in it
/// is protected: until the agent hears of the move, the kernel may ignore it.
pub const MOVE_WINDOW: Duration = Duration::from_millis(200);
/// A file that was changed less than this ago gets no clean mark yet.
pub const NO_LONGER_YOUNG: Duration = Duration::from_millis(60);

/// What clamd calls a file that holds [`marker`] anywhere.
pub const MARKER_NAME: &str = "Onacc.Test.Marker.UNOFFICIAL";

/// Bytes that make any file that holds them infected for a [`Site`]'s clamd, put
/// together at run time so that no binary holds them.
pub fn marker() -> Vec<u8> {
    ["[onacc-e2e-", "infected-here]"].concat().into_bytes()
}

/// A filesystem with a protected directory `in`, and a real clamd.
pub struct Site {
    clamd: Clamd,
    clamd_dir: tempfile::TempDir,
    scratch: ScratchFs,
}

impl Site {
    /// On ext4, where clean files get marks.
    pub fn ext4() -> Result<Self, String> {
        Self::on(ScratchFs::ext4(64)?)
    }

    /// On tmpfs, where each open is scanned.
    pub fn tmpfs() -> Result<Self, String> {
        Self::on(ScratchFs::tmpfs(64)?)
    }

    /// On an ext4 whose stamps count whole seconds.
    pub fn ext4_in_seconds() -> Result<Self, String> {
        Self::on(ScratchFs::ext4_in_seconds()?)
    }

    /// On ext4, with these further lines in clamd's configuration.
    pub fn ext4_with(options: &[&str]) -> Result<Self, String> {
        Self::with(ScratchFs::ext4(64)?, options)
    }

    /// On this filesystem.
    pub fn on(scratch: ScratchFs) -> Result<Self, String> {
        Self::with(scratch, &[])
    }

    fn with(scratch: ScratchFs, options: &[&str]) -> Result<Self, String> {
        Clamd::installed()?;
        let clamd_dir = tempfile::tempdir().map_err(|error| format!("a directory: {error}"))?;
        write_marker_signature(clamd_dir.path());
        // A file that is cut while clamd reads it is "Can't allocate memory" to it.
        let builder = Clamd::builder(clamd_dir.path()).option("ExitOnOOM no");
        let builder = options
            .iter()
            .fold(builder, |builder, line| builder.option(line));
        let clamd = builder.try_start()?;
        scratch.mkdir("in");
        Ok(Self {
            clamd,
            clamd_dir,
            scratch,
        })
    }

    /// The clamd.
    pub fn clamd(&self) -> &Clamd {
        &self.clamd
    }

    /// Kills the clamd.
    pub fn end_clamd(&mut self) {
        self.clamd.kill();
    }

    /// The filesystem.
    pub fn scratch(&self) -> &ScratchFs {
        &self.scratch
    }

    /// The protected directory.
    pub fn watched(&self) -> PathBuf {
        self.scratch.join("in")
    }

    /// Writes a file into the protected directory.
    pub fn write(&self, name: impl AsRef<Path>, content: &[u8]) -> PathBuf {
        self.scratch.write(Path::new("in").join(name), content)
    }

    /// An agent that prevents, with the protected directory as include path.
    pub fn agent(&self) -> AgentBuilder {
        Agent::builder(&self.clamd)
            .prevention(true)
            .include(self.watched())
    }
}

/// A line of a signature database: these bytes at this place of a file.
pub fn signature(name: &str, place: &str, bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut line = format!("{name}:0:{place}:");
    for byte in bytes {
        write!(line, "{byte:02x}").expect("a string takes all");
    }
    line + "\n"
}

/// Puts the signature of [`marker`] where a clamd in this directory will find it.
pub fn write_marker_signature(dir: &Path) {
    let line = signature("Onacc.Test.Marker", "*", &marker());
    let database = dir.join("db");
    fs::create_dir_all(&database).expect("making clamd's database directory");
    fs::write(database.join("marker.ndb"), line).expect("writing a signature");
}

/// A filesystem with a protected directory `in`, and a scripted clamd.
pub struct FakeSite {
    fake: Option<FakeClamd>,
    fake_dir: tempfile::TempDir,
    scratch: ScratchFs,
}

impl FakeSite {
    /// On ext4. The script is asked about `FILDES` alone; the rest is usual.
    pub fn ext4(
        scan: impl Fn(&RequestInfo) -> Behaviour + Send + Sync + 'static,
    ) -> Result<Self, String> {
        Self::with_script(move |request| match request.command.as_str() {
            "FILDES" => scan(request),
            _ => Behaviour::usual(),
        })
    }

    /// On ext4. The script is asked about every command.
    pub fn with_script(
        script: impl Fn(&RequestInfo) -> Behaviour + Send + Sync + 'static,
    ) -> Result<Self, String> {
        let scratch = ScratchFs::ext4(32)?;
        let fake_dir = tempfile::tempdir().map_err(|error| format!("a directory: {error}"))?;
        let fake = FakeClamd::start(fake_dir.path(), script);
        scratch.mkdir("in");
        Ok(Self {
            fake: Some(fake),
            fake_dir,
            scratch,
        })
    }

    /// The scripted clamd.
    pub fn fake(&self) -> &FakeClamd {
        self.fake.as_ref().expect("the scripted clamd runs")
    }

    /// Ends the scripted clamd, with whatever it was doing.
    pub fn end_clamd(&mut self) {
        self.fake = None;
    }

    /// Starts one again, on the same socket.
    pub fn restart_clamd(
        &mut self,
        script: impl Fn(&RequestInfo) -> Behaviour + Send + Sync + 'static,
    ) {
        self.end_clamd();
        self.fake = Some(FakeClamd::start(self.fake_dir.path(), script));
    }

    /// The filesystem.
    pub fn scratch(&self) -> &ScratchFs {
        &self.scratch
    }

    /// The protected directory.
    pub fn watched(&self) -> PathBuf {
        self.scratch.join("in")
    }

    /// Writes a file into the protected directory.
    pub fn write(&self, name: impl AsRef<Path>, content: &[u8]) -> PathBuf {
        self.scratch.write(Path::new("in").join(name), content)
    }

    /// Writes this many clean files; each has its own content.
    pub fn clean_files(&self, count: usize) -> Vec<PathBuf> {
        (0..count)
            .map(|n| self.write(format!("clean{n}"), format!("clean {n}").as_bytes()))
            .collect()
    }

    /// An agent that prevents, with the protected directory as include path.
    pub fn agent(&self) -> AgentBuilder {
        Agent::builder(self.fake())
            .prevention(true)
            .include(self.watched())
    }
}

/// EICAR, which [`Behaviour::usual`] and clamd find at the start of a file.
pub fn infected() -> Vec<u8> {
    eicar()
}

/// Bytes that are clean, in a file of a few pages.
pub fn clean() -> Vec<u8> {
    b"nothing to see here\n".repeat(500)
}

/// The file must open now.
#[track_caller]
pub fn assert_opens(path: &Path) -> File {
    opened(open_within(path, LIMIT), path)
}

/// The open must have succeeded.
#[track_caller]
pub fn opened(open: Opened, path: &Path) -> File {
    match open.outcome {
        onacc_tests::Outcome::Open(file) => file,
        other => panic!("{} should open, but: {other:?}", shown(path)),
    }
}

/// The open must be refused now, with EPERM.
#[track_caller]
pub fn assert_refused(path: &Path) {
    let open = open_within(path, LIMIT);
    assert!(
        open.is_refused(),
        "{} should be refused, but: {open:?}",
        shown(path)
    );
}

/// Opens until it is refused; how long that took, `None` if the limit passed.
pub fn refused_within(path: &Path, limit: Duration) -> Option<Duration> {
    let before = Instant::now();
    loop {
        let open = open_within(path, LIMIT);
        if open.is_refused() {
            return Some(before.elapsed());
        }
        if !open.is_open() || before.elapsed() >= limit {
            return None;
        }
        drop(open);
        thread::sleep(Duration::from_millis(1));
    }
}

/// A path for a message, cut if it is very long.
pub fn shown(path: &Path) -> String {
    let text = path.to_string_lossy();
    let start: String = text.chars().take(300).collect();
    if start.len() < text.len() {
        format!("{start}… ({} bytes)", text.len())
    } else {
        start
    }
}

/// Starts an open of each path at once, and waits for all of them.
pub fn open_all<'a>(paths: impl IntoIterator<Item = &'a PathBuf>, limit: Duration) -> Vec<Opened> {
    let openings: Vec<Opening> = paths.into_iter().map(|path| Opening::start(path)).collect();
    let until = Instant::now() + limit;
    openings
        .into_iter()
        .map(|opening| opening.within(until.saturating_duration_since(Instant::now())))
        .collect()
}

/// The agent's own counters, once they stand still: it answers first and counts
/// then.
#[track_caller]
pub fn counters(agent: &Agent) -> Counters {
    let ask = || {
        let mut said = agent.counters().expect("the agent answers SIGUSR1");
        // The eBPF program counts what the whole machine does.
        said.retain(|name, _| !name.starts_with("bpf_"));
        said
    };
    let mut before = ask();
    for _ in 0..50 {
        let now = ask();
        if now == before {
            break;
        }
        before = now;
    }
    before
}

/// One counter of an agent that runs.
#[track_caller]
pub fn counter(agent: &Agent, name: &str) -> u64 {
    let all = counters(agent);
    *all.get(name)
        .unwrap_or_else(|| panic!("there is no counter {name} in {all:?}"))
}

/// Opens clean files until their opens are no events any more: the kernel has a
/// clean mark for each.
#[track_caller]
pub fn open_until_marked(agent: &Agent, paths: &[PathBuf]) {
    let deadline = Instant::now() + LIMIT;
    // In notify-only mode eBPF may tell of opens in fanotify's stead.
    let seen = |counted: &Counters| counted["events"] + counted["told_opens"];
    loop {
        thread::sleep(NO_LONGER_YOUNG);
        let before = seen(&counters(agent));
        for path in paths {
            assert_opens(path);
        }
        let now = counters(agent);
        if seen(&now) == before && now["marks_placed"] >= paths.len() as u64 {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "the kernel has no clean marks for {paths:?}: {now:?}"
        );
    }
}

/// What a change leaves behind: an open file, a mapping.
pub type Held = Box<dyn std::any::Any>;

/// One way in which a clean file becomes an infected one.
pub struct Way {
    /// What it is, for a message.
    pub name: &'static str,
    /// Makes the file at the path infected. What it gives back is to be dropped
    /// when the file has been opened.
    pub infect: fn(&Path) -> Held,
}

impl Way {
    /// A file name.
    pub fn file_name(&self) -> String {
        self.name.replace([' ', ','], "-")
    }
}

const fn way(name: &'static str, infect: fn(&Path) -> Held) -> Way {
    Way { name, infect }
}

fn to_write(path: &Path) -> File {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .expect("opening a clean file for writing")
}

/// Changes that the kernel itself takes for changes: right at once.
pub const WRITES: &[Way] = &[
    way("write and close", |path| {
        to_write(path).write_all(&infected()).expect("writing");
        Box::new(())
    }),
    way("write and stay open", |path| {
        let mut file = to_write(path);
        file.write_all(&infected()).expect("writing");
        Box::new(file)
    }),
    way("truncate and write", |path| {
        fs::write(path, infected()).expect("writing");
        Box::new(())
    }),
    way("append", |path| {
        let mut file = OpenOptions::new().append(true).open(path).expect("opening");
        file.write_all(&marker()).expect("writing");
        Box::new(())
    }),
    way("write in the middle of a big file", |path| {
        let middle = fs::metadata(path).expect("its length").len() / 2 + 1;
        let file = to_write(path);
        file.write_all_at(&marker(), middle).expect("writing");
        Box::new(())
    }),
    way("copy_file_range", |path| {
        let protected = path.parent().expect("a directory");
        let source = protected.with_file_name("source of a copy");
        fs::write(&source, infected()).expect("writing");
        let mut from = File::open(&source).expect("opening what is out of scope");
        let mut to = to_write(path);
        // That is copy_file_range(2), on one filesystem.
        let count = std::io::copy(&mut from, &mut to).expect("copying");
        assert_eq!(usize::try_from(count), Ok(infected().len()));
        Box::new(())
    }),
    way("rename over it", |path| {
        let other = path.with_extension("new");
        fs::write(&other, infected()).expect("writing");
        fs::rename(&other, path).expect("renaming");
        Box::new(())
    }),
    way("exchange with another", |path| {
        let other = path.with_extension("other");
        fs::write(&other, infected()).expect("writing");
        let flags = RenameFlags::RENAME_EXCHANGE;
        renameat2(AT_FDCWD, &other, AT_FDCWD, path, flags).expect("exchanging");
        Box::new(())
    }),
    way("remove and make again", |path| {
        fs::remove_file(path).expect("removing");
        fs::write(path, infected()).expect("writing");
        Box::new(())
    }),
];

/// Stores through a shared mapping: no event says so.
pub const STORES: &[Way] = &[
    way("store, still mapped", |path| {
        let mut mapping = map(path);
        mapping.store(0, &infected());
        Box::new(mapping)
    }),
    way("store, still mapped, file still open", |path| {
        let file = to_write(path);
        let mut mapping = SharedMapping::of(&file).expect("mapping");
        mapping.store(0, &infected());
        Box::new((mapping, file))
    }),
    way("store, write back, still mapped", |path| {
        let file = to_write(path);
        let mut mapping = SharedMapping::of(&file).expect("mapping");
        mapping.store(0, &infected());
        file.sync_all().expect("writing back");
        Box::new(mapping)
    }),
    way("store, unmap, close", |path| {
        map(path).store(0, &infected());
        Box::new(())
    }),
    // A load may map the page writable (tmpfs): the store then raises no fault.
    way("load, then store", |path| {
        let mut mapping = map(path);
        assert_ne!(mapping.load(0), infected()[0]);
        mapping.store(0, &infected());
        Box::new(mapping)
    }),
    way("load, store, unmap", |path| {
        let mut mapping = map(path);
        assert_ne!(mapping.load(0), infected()[0]);
        mapping.store(0, &infected());
        Box::new(())
    }),
    way("store into the last page", |path| {
        let length = fs::metadata(path).expect("its length").len();
        let length = usize::try_from(length).expect("a small file");
        map(path).store(length - marker().len(), &marker());
        Box::new(())
    }),
];

/// Maps a file for shared writing, and closes it.
pub fn map(path: &Path) -> SharedMapping {
    SharedMapping::of(&to_write(path)).expect("mapping")
}

/// Bytes of some pages, clean, other ones for each `n`.
pub fn clean_pages(n: usize) -> Vec<u8> {
    format!("clean {n:08}\n").into_bytes().repeat(3000)
}

/// Opens a file as a user, in a process that lives on until it is told to end.
pub fn open_and_live_on(uid: u32, path: &Path) -> Child {
    let mut command = Command::new("sh");
    command
        .args(["-c", "exec 3< \"$1\" && echo opened && read line", "sh"])
        .arg(path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .uid(uid)
        .gid(uid);
    let mut child = sys::die_with_parent(&mut command)
        .spawn()
        .expect("the process starts");
    let mut byte = [0];
    let out = child.stdout.as_mut().expect("it is a pipe");
    std::io::Read::read_exact(out, &mut byte).expect("reading");
    child
}

/// Starts `cat` on a file, its output thrown away.
pub fn start_cat(path: &Path) -> Child {
    let mut command = Command::new("cat");
    command
        .arg(path)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    sys::die_with_parent(&mut command)
        .spawn()
        .expect("cat starts")
}

/// Runs `cat` as a user; it is gone when this returns.
#[track_caller]
pub fn cat_and_be_gone(uid: u32, path: &Path) {
    let status = sys::die_with_parent(&mut Command::new("cat"))
        .arg(path)
        .uid(uid)
        .gid(uid)
        .stdout(Stdio::null())
        .status();
    assert!(status.expect("cat runs").success(), "{}", path.display());
}

/// The one line `ERROR: …` that an agent ended with.
#[track_caller]
pub fn only_error(exited: &Exited) -> &str {
    let errors = exited.output.lines();
    let errors: Vec<&str> = errors.filter(|line| line.starts_with("ERROR: ")).collect();
    assert_eq!(errors.len(), 1, "{}", exited.output);
    errors[0]
}
