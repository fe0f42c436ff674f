//! What `/proc` tells of a thread (its effective uid, its parent) and of our open files.
//!
//! Reading procfs can never raise a permission event (it refuses such marks),
//! so the reader may do it. Must not: touch what takes another process's memory
//! lock (`cmdline`, `maps`). Tested here.

use std::ffi::CStr;
use std::io::{Read as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;

use super::SyscallError;

/// Writes `/proc/self/fd/N` into `buffer`.
///
/// # Panics
/// Never: the longest such path has 25 bytes.
pub fn fd_path<'a>(fd: BorrowedFd<'_>, buffer: &'a mut [u8; 32]) -> &'a CStr {
    format_into(buffer, format_args!("/proc/self/fd/{}\0", fd.as_raw_fd()))
}

fn format_into<'a>(buffer: &'a mut [u8; 32], args: std::fmt::Arguments<'_>) -> &'a CStr {
    let mut rest = &mut buffer[..];
    rest.write_fmt(args)
        .expect("the longest such path is shorter than the buffer");
    CStr::from_bytes_until_nul(buffer).expect("the text ends in NUL")
}

/// The process's own open files, as `/proc/self/fd` tells them. Kept open, which spares
/// each question the walk there.
#[derive(Debug)]
pub struct OwnFiles(Option<OwnedFd>);

impl OwnFiles {
    /// Opens it. After the process has gone to the background: a child has its own.
    pub fn open() -> Self {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        Self(nix::fcntl::open("/proc/self/fd", flags, Mode::empty()).ok())
    }

    /// As [`super::file::path_of`].
    pub fn path_of(&self, fd: BorrowedFd<'_>, buffer: &mut Vec<u8>) -> Option<()> {
        let Some(directory) = &self.0 else {
            return super::file::path_of(fd, buffer);
        };
        let mut name = [0u8; 32];
        let name = format_into(&mut name, format_args!("{}\0", fd.as_raw_fd()));
        super::file::read_link(directory.as_raw_fd(), name, buffer)
    }
}

/// An open `/proc`.
#[derive(Debug)]
pub struct Proc(OwnedFd);

/// The program of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Executable {
    /// Last component of its path.
    pub name: String,
    /// Owner of the file.
    pub owner: u32,
    /// Mode bits of the file.
    pub mode: u32,
}

impl Executable {
    /// Whether it is called clamd (it may have been replaced by a new one since),
    /// belongs to root and can be written by root alone.
    pub fn is_clamd(&self) -> bool {
        let name = self.name.strip_suffix(" (deleted)").unwrap_or(&self.name);
        name == "clamd" && self.owner == 0 && self.mode & 0o022 == 0
    }
}

/// What a thread's `stat` line tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThreadStat {
    /// Process id of the parent; 0 has none.
    pub parent: i32,
    /// When it started, in clock ticks since boot: tells two users of one id apart.
    pub started: u64,
    /// Whether it has ended and is only kept for its parent to see.
    pub ended: bool,
}

/// What a thread was doing when it was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunState {
    /// It runs, or waits for a processor.
    Runnable,
    /// It waits for something that a signal ends.
    Asleep,
    /// It waits for something that nothing ends, a disk as a rule.
    Disk,
}

/// What a thread does, and what it has had of the processors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThreadTimes {
    /// What it does.
    pub state: RunState,
    /// Time on a processor.
    pub ran: Duration,
    /// Time that it waited for one; a wait is counted when it is over.
    pub queued: Duration,
}

impl Proc {
    /// Opens `/proc`.
    ///
    /// # Errors
    /// `/proc` is not mounted.
    pub fn open() -> Result<Self, SyscallError> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        nix::fcntl::open("/proc", flags, Mode::empty())
            .map(Self)
            .map_err(|errno| SyscallError::from_errno("open of /proc", errno))
    }

    /// Effective uid of a thread: owner of `/proc/<tid>`, one `fstatat`
    /// (fs/proc/base.c, `task_dump_owner`). `None` if it is gone.
    pub fn effective_uid(&self, tid: i32) -> Option<u32> {
        let mut name = [0u8; 32];
        let path = format_into(&mut name, format_args!("{tid}\0"));
        let mut stat = MaybeUninit::<libc::stat>::uninit();
        // SAFETY: the path is NUL-terminated, the buffer of the type that is filled.
        let result =
            unsafe { libc::fstatat(self.0.as_raw_fd(), path.as_ptr(), stat.as_mut_ptr(), 0) };
        // SAFETY: a successful call filled the buffer.
        (result == 0).then(|| unsafe { stat.assume_init() }.st_uid)
    }

    /// Whether `tid` is a thread of process `pid`: one `faccessat`.
    pub fn is_thread_of(&self, tid: i32, pid: i32) -> bool {
        let mut name = [0u8; 32];
        let path = format_into(&mut name, format_args!("{pid}/task/{tid}\0"));
        // SAFETY: the path is NUL-terminated and lives until after the call.
        unsafe { libc::faccessat(self.0.as_raw_fd(), path.as_ptr(), libc::F_OK, 0) == 0 }
    }

    /// The program that a thread runs; `None` if it is gone or a kernel thread.
    pub fn executable(&self, tid: i32) -> Option<Executable> {
        use std::os::unix::ffi::OsStrExt as _;
        let mut name = [0u8; 32];
        let path = format_into(&mut name, format_args!("{tid}/exe\0"));
        let target = nix::fcntl::readlinkat(self.0.as_fd(), path).ok()?;
        let stat = nix::sys::stat::fstatat(&self.0, path, nix::fcntl::AtFlags::empty()).ok()?;
        let name = std::path::Path::new(&target).file_name()?;
        Some(Executable {
            name: String::from_utf8_lossy(name.as_bytes()).into_owned(),
            owner: stat.st_uid,
            mode: stat.st_mode,
        })
    }

    /// Whether a thread runs a program that [`Executable::is_clamd`].
    pub fn is_clamd(&self, tid: i32) -> bool {
        self.executable(tid).is_some_and(|exe| exe.is_clamd())
    }

    /// The process that a thread belongs to; `None` if it is gone.
    pub fn process_of(&self, tid: i32) -> Option<i32> {
        let mut name = [0u8; 32];
        let path = format_into(&mut name, format_args!("{tid}/status\0"));
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        let fd = openat(self.0.as_fd(), path, flags, Mode::empty()).ok()?;
        // The line is among the first; the name before it is at most 64 bytes long.
        let mut bytes = [0u8; 512];
        let got = std::fs::File::from(fd).read(&mut bytes).ok()?;
        parse_process(&bytes[..got])
    }

    /// Whether a thread has ended, or is about to: who was killed while it waited
    /// for an answer needs none any more.
    pub fn has_ended(&self, tid: i32) -> bool {
        self.thread_stat(tid).is_none_or(|stat| stat.ended)
    }

    /// Which file a thread executes: one `statx`. `None` if it is gone or a
    /// kernel thread.
    pub fn program(&self, tid: i32) -> Option<super::file::ProgramId> {
        let mut name = [0u8; 32];
        let path = format_into(&mut name, format_args!("{tid}/exe\0"));
        super::file::program(self.0.as_fd(), path)
    }

    /// The control group (version 2) of a thread, into `buffer`: `openat`,
    /// `read`, `close`. `None` if it is gone, has none, or the path is longer
    /// than the buffer.
    pub fn control_group<'a>(&self, tid: i32, buffer: &'a mut [u8]) -> Option<&'a [u8]> {
        let mut name = [0u8; 32];
        let path = format_into(&mut name, format_args!("{tid}/cgroup\0"));
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        let fd = openat(self.0.as_fd(), path, flags, Mode::empty()).ok()?;
        let got = std::fs::File::from(fd).read(buffer).ok()?;
        parse_control_group(&buffer[..got])
    }

    /// The text of `mountinfo` as a thread sees it; `None` if it is gone.
    pub fn mounts_of(&self, tid: i32) -> Option<Vec<u8>> {
        std::fs::read(format!("/proc/{tid}/mountinfo")).ok()
    }

    /// What a thread has open, and its program: each as an `O_PATH` fd, one
    /// after the other, `most` at most.
    pub fn open_files(&self, tid: i32, most: usize) -> impl Iterator<Item = OwnedFd> + use<> {
        let names = std::fs::read_dir(format!("/proc/{tid}/fd")).ok();
        let paths = names
            .into_iter()
            .flatten()
            .filter_map(Result::ok)
            .map(|entry| entry.path())
            .take(most)
            .chain([std::path::PathBuf::from(format!("/proc/{tid}/exe"))]);
        paths.filter_map(|path| {
            let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
            nix::fcntl::open(&path, flags, Mode::empty()).ok()
        })
    }

    /// Opens a path, as `O_PATH`, below the root of a thread.
    pub fn open_in(&self, tid: i32, path: &std::path::Path) -> Option<OwnedFd> {
        let below = path.strip_prefix("/").ok()?;
        let whole = std::path::PathBuf::from(format!("/proc/{tid}/root")).join(below);
        let flags = OFlag::O_PATH | OFlag::O_CLOEXEC | OFlag::O_DIRECTORY;
        nix::fcntl::open(&whole, flags, Mode::empty()).ok()
    }

    /// State and times of a thread of ours; `None` if it is gone, or the kernel keeps
    /// no such times (`CONFIG_SCHED_INFO`).
    pub fn thread_times(&self, tid: i32) -> Option<ThreadTimes> {
        let mut stat = [0u8; 1024];
        let mut times = [0u8; 128];
        let stat = self.read_own(format_args!("self/task/{tid}/stat\0"), &mut stat)?;
        let times = self.read_own(format_args!("self/task/{tid}/schedstat\0"), &mut times)?;
        parse_times(stat, times)
    }

    fn read_own<'a>(&self, path: std::fmt::Arguments<'_>, into: &'a mut [u8]) -> Option<&'a [u8]> {
        let mut name = [0u8; 32];
        let path = format_into(&mut name, path);
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        let fd = openat(self.0.as_fd(), path, flags, Mode::empty()).ok()?;
        let got = std::fs::File::from(fd).read(into).ok()?;
        into.get(..got)
    }

    /// Parent and start time of a thread; `None` if it is gone.
    pub fn thread_stat(&self, tid: i32) -> Option<ThreadStat> {
        let mut name = [0u8; 32];
        let path = format_into(&mut name, format_args!("{tid}/stat\0"));
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        let fd = openat(self.0.as_fd(), path, flags, Mode::empty()).ok()?;
        let mut bytes = [0u8; 1024];
        let got = std::fs::File::from(fd).read(&mut bytes).ok()?;
        parse_stat(&bytes[..got])
    }
}

/// The process in `/proc/<tid>/status` (`proc_pid_status(5)`), or in its beginning.
pub fn parse_process(status: &[u8]) -> Option<i32> {
    let text = String::from_utf8_lossy(status);
    let line = text.lines().find_map(|line| line.strip_prefix("Tgid:"));
    line?.trim().parse().ok()
}

/// The path in the line of version 2 of `/proc/<tid>/cgroup` (cgroups(7)). A
/// line that does not end was cut.
pub fn parse_control_group(text: &[u8]) -> Option<&[u8]> {
    let mut lines = text.split_inclusive(|byte| *byte == b'\n');
    lines.find_map(|line| line.strip_prefix(b"0::")?.strip_suffix(b"\n"))
}

/// Parses `/proc/<tid>/stat` (`proc_pid_stat(5)`). The name in parentheses may
/// hold any byte, so the fields are counted from the last parenthesis.
pub fn parse_stat(line: &[u8]) -> Option<ThreadStat> {
    let end = line.iter().rposition(|byte| *byte == b')')?;
    let rest = std::str::from_utf8(line.get(end + 1..)?).ok()?;
    let mut fields = rest.split_ascii_whitespace();
    let ended = matches!(fields.next()?, "Z" | "X");
    let parent = fields.next()?.parse().ok()?;
    let started = fields.nth(17)?.parse().ok()?;
    Some(ThreadStat {
        parent,
        started,
        ended,
    })
}

/// Parses `/proc/<tid>/stat` and `/proc/<tid>/schedstat` of one thread
/// (`Documentation/scheduler/sched-stats.rst`: nanoseconds that it ran and waited).
pub fn parse_times(stat: &[u8], schedstat: &[u8]) -> Option<ThreadTimes> {
    let end = stat.iter().rposition(|byte| *byte == b')')?;
    let state = match stat.get(end + 1..)?.trim_ascii_start().first()? {
        b'R' => RunState::Runnable,
        b'D' => RunState::Disk,
        _ => RunState::Asleep,
    };
    let mut fields = std::str::from_utf8(schedstat)
        .ok()?
        .split_ascii_whitespace();
    let mut next = || Some(Duration::from_nanos(fields.next()?.parse().ok()?));
    Some(ThreadTimes {
        state,
        ran: next()?,
        queued: next()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn own_thread_has_own_uid_and_parent() {
        let proc = Proc::open().unwrap();
        let tid = nix::unistd::gettid().as_raw();
        assert_eq!(
            proc.effective_uid(tid),
            Some(nix::unistd::geteuid().as_raw())
        );
        assert_eq!(
            proc.thread_stat(tid).unwrap().parent,
            nix::unistd::getppid().as_raw()
        );
        let own = std::env::current_exe().unwrap();
        let exe = proc.executable(tid).unwrap();
        assert_eq!(own.file_name().unwrap().to_str().unwrap(), exe.name);
        assert!(proc.is_thread_of(tid, nix::unistd::getpid().as_raw()));
        assert_eq!(proc.process_of(tid), Some(nix::unistd::getpid().as_raw()));
        assert!(!proc.has_ended(tid) && proc.has_ended(-1));
        assert!(!proc.is_thread_of(1, nix::unistd::getpid().as_raw()));
        assert_eq!(proc.effective_uid(-1), None);
    }

    #[test]
    fn a_thread_that_runs_is_seen_to_have_run() {
        let proc = Proc::open().unwrap();
        let tid = nix::unistd::gettid().as_raw();
        let before = proc.thread_times(tid).unwrap();
        let began = std::time::Instant::now();
        let now = loop {
            let now = proc.thread_times(tid).unwrap();
            if now.ran >= before.ran + Duration::from_millis(5) {
                break now;
            }
            assert!(
                began.elapsed() < Duration::from_mins(1),
                "{before:?} {now:?}"
            );
        };
        assert_eq!(now.state, RunState::Runnable);
        assert_eq!(proc.thread_times(-1), None);
    }

    #[test]
    fn states_and_times_are_told_from_each_other() {
        let of = |stat: &str, times: &str| parse_times(stat.as_bytes(), times.as_bytes());
        let times = of("12 (a) b) D 1 2", "5000000 7000000 3\n").unwrap();
        assert_eq!(times.state, RunState::Disk);
        assert_eq!((times.ran.as_millis(), times.queued.as_millis()), (5, 7));
        assert_eq!(of("1 (x) S 1", "1 2 3").unwrap().state, RunState::Asleep);
        assert_eq!(of("1 (x) R 1", "1 2 3").unwrap().state, RunState::Runnable);
        assert_eq!(of("1 (x) R 1", "1"), None);
        assert_eq!(of("1 (x)", "1 2 3"), None);
    }

    #[test]
    fn a_thread_has_the_program_of_its_file_and_a_control_group() {
        use super::super::file::ProgramId;
        let proc = Proc::open().unwrap();
        let tid = nix::unistd::gettid().as_raw();
        let own = std::env::current_exe().unwrap();
        assert_eq!(proc.program(tid), ProgramId::at(&own));
        assert!(proc.program(tid).is_some() && proc.program(-1).is_none());
        assert_ne!(
            proc.program(tid),
            ProgramId::at(std::path::Path::new("/bin/sh"))
        );
        let mut buffer = [0; 8192];
        let whole = std::fs::read("/proc/thread-self/cgroup").unwrap();
        assert_eq!(
            proc.control_group(tid, &mut buffer),
            parse_control_group(&whole)
        );
        assert_eq!(proc.control_group(-1, &mut buffer), None);
    }

    #[test]
    fn the_control_group_is_that_of_version_2() {
        let text = b"12:cpu:/x\n0::/a b.slice/c.service\n";
        assert_eq!(
            parse_control_group(text),
            Some(&b"/a b.slice/c.service"[..])
        );
        assert_eq!(parse_control_group(b"0::/\n"), Some(&b"/"[..]));
        assert_eq!(parse_control_group(b"0::/cu"), None);
        assert_eq!(parse_control_group(b"1:name=systemd:/\n"), None);
        assert_eq!(parse_control_group(b""), None);
    }

    #[test]
    fn a_name_with_parentheses_and_spaces_does_not_shift_the_fields() {
        let line = b"42 (a) b 1 (x)) S 7 42 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 987 10 20\n";
        assert_eq!(
            parse_stat(line),
            Some(ThreadStat {
                parent: 7,
                started: 987,
                ended: false
            })
        );
    }

    proptest! {
        #[test]
        fn any_bytes_parse_or_not_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse_stat(&bytes);
        }
    }
}
