//! Allocations of the reader for each permission event: none where it answers
//! itself, a stated few where it hands a file over to be scanned.
//!
//! The real reader on the real kernel, on a filesystem of its own. An allocation
//! counter counts what the reader's thread allocates in two runs of different
//! length: what does not grow belongs to the start.

use std::{
    collections::HashMap,
    fs::{self, File},
    os::fd::AsFd as _,
    path::Path,
    sync::{Arc, Mutex, mpsc},
    thread,
    time::{Duration, Instant},
};

use onacc::{
    config::modes::MarksMode,
    intake::{Control, Reader, ReaderLinks, ReaderOwn},
    kernel::{
        fanotify::{Answer, FdBudget, Group, GroupKind},
        file::{self, FileStat, FilesystemKind},
        mounts::MountTable,
        process,
        procfs::Proc,
        wake::Mailbox,
    },
    observe::{counters::Counters, heartbeat::Heartbeat},
    policy::{Policy, Rules, Scope, Verdict, VerdictCache},
    scan::{Handover, ScannerIdentity, Work},
};
use onacc_tests::{ScratchFs, or_skip, require_root};

/// A filesystem with one file, and what the reader decides by.
struct Site {
    scratch: ScratchFs,
    file: std::path::PathBuf,
    stat: FileStat,
}

/// What differs from case to case.
struct Case {
    excluded_uids: Vec<u32>,
    in_scope: bool,
    known: Option<Verdict>,
    own_thread: bool,
}

/// The usual: an open that has to be scanned.
const SCANNED: Case = Case {
    excluded_uids: Vec::new(),
    in_scope: true,
    known: None,
    own_thread: false,
};

impl Site {
    fn new() -> Result<Self, String> {
        let scratch = ScratchFs::ext4(16)?;
        let file = scratch.write("file", b"twelve bytes");
        let opened = File::open(&file).map_err(|error| error.to_string())?;
        let stat = file::stat(opened.as_fd()).map_err(|error| error.to_string())?;
        Ok(Self {
            scratch,
            file,
            stat,
        })
    }

    fn policy(&self, case: &Case) -> Arc<Policy> {
        let mounts = fs::read("/proc/thread-self/mountinfo").expect("the mounts of this thread");
        let mounts = MountTable::parse(&mounts);
        let root = self.scratch.path().to_path_buf();
        let include = if case.in_scope {
            root.clone()
        } else {
            root.join("elsewhere")
        };
        let mount = mounts.get(self.stat.mount).expect("the scratch filesystem");
        let kinds = HashMap::from([(mount.dev, FilesystemKind::Stamped)]);
        Arc::new(Policy {
            scope: Arc::new(Scope::build(&[include], &[], &mounts)),
            mounts: Arc::new(mounts),
            excluded_uids: case.excluded_uids.clone(),
            max_file_size: 1 << 20,
            deny_on_error: false,
            rules: Arc::new(Rules::default()),
            kinds: Arc::new(kinds),
            stores_are_seen: false,
            marks: MarksMode::Auto,
        })
    }

    /// What the reader's thread allocates while the file is opened so often.
    fn allocations(&self, case: &Case, opens: usize) -> u64 {
        let group = Group::new(GroupKind::Permission).expect("a fanotify group");
        let jobs = Mailbox::new().expect("a mailbox");
        let control = Mailbox::new().expect("a mailbox");
        let mut verdicts = VerdictCache::new(16);
        if let Some(known) = &case.known {
            verdicts.insert(&self.stat, known.clone(), 0);
        }
        let links = ReaderLinks {
            tags: None,
            extra_scanning: false,
            budget: FdBudget::new(64),
            jobs: Handover::new(jobs.clone()),
            prescans: Mailbox::new().expect("a mailbox"),
            keeper: Mailbox::new().expect("a mailbox"),
            verdicts: Arc::new(Mutex::new(verdicts)),
            scanner: Arc::new(ScannerIdentity::new(Proc::open().expect("/proc"), None)),
            counters: Arc::new(Counters::default()),
            on_failure: Answer::Allow,
            tell_large: false,
            overload: None,
            asks_writers: false,
        };
        let own = ReaderOwn {
            group: Arc::clone(&group),
            control: control.clone(),
            heartbeat: Heartbeat::new("reader"),
            proc: Proc::open().expect("/proc"),
            writers: None,
        };
        let counters = Arc::clone(&links.counters);
        let reader = Reader::new(links, own, self.policy(case));
        let (sender, counted) = mpsc::channel();
        let running = thread::spawn(move || {
            let counted = allocation_counter::measure(|| {
                reader.run().expect("the group can be read");
            });
            // The test may have given up.
            let _ = sender.send(counted.count_total);
        });
        let root = File::open(self.scratch.path()).expect("the scratch filesystem");
        group.mark_filesystem(root.as_fd()).expect("a mark");
        let (path, own_thread) = (self.file.clone(), case.own_thread);
        let opener = thread::spawn(move || open_often(&path, opens, own_thread));
        let until = Instant::now() + Duration::from_mins(1);
        let mut work = Vec::new();
        while !opener.is_finished() && Instant::now() < until {
            // What clamd would answer.
            jobs.drain(&mut work);
            for job in work.drain(..) {
                if let Work::Scan(mut job) = job {
                    job.answer(Answer::Allow);
                }
            }
            thread::yield_now();
        }
        group.unmark_filesystem(root.as_fd()).expect("a mark");
        control.send(Control::Stop);
        control.waker().notify();
        let total = counted
            .recv_timeout(Duration::from_secs(20))
            .expect("the reader ends");
        running.join().expect("the reader ends well");
        opener.join().expect("the opener ends well");
        assert!(
            counters.events.get() >= opens as u64,
            "the opens were events"
        );
        total
    }

    /// What a further event costs, in thousandths of an allocation.
    fn each(&self, case: &Case) -> u64 {
        let (few, many) = (500, 4500);
        let first = self.allocations(case, few);
        let second = self.allocations(case, many);
        second.saturating_sub(first) * 1000 / (many - few) as u64
    }
}

fn open_often(path: &Path, opens: usize, own_thread: bool) {
    if own_thread {
        process::register_thread();
    }
    for _ in 0..opens {
        drop(File::open(path));
    }
}

/// A few may be the standard library's or a full second's: less than one in a
/// hundred events.
const NONE: u64 = 10;

#[test]
fn an_event_that_the_reader_answers_itself_allocates_nothing() {
    require_root!();
    let site = or_skip!(Site::new());
    let cases = [
        (
            "own thread",
            Case {
                own_thread: true,
                ..SCANNED
            },
        ),
        (
            "excluded uid",
            Case {
                excluded_uids: vec![0],
                ..SCANNED
            },
        ),
        (
            "out of scope",
            Case {
                in_scope: false,
                ..SCANNED
            },
        ),
        (
            "known clean",
            Case {
                known: Some(Verdict::Clean),
                ..SCANNED
            },
        ),
    ];
    for (name, case) in cases {
        let each = site.each(&case);
        assert!(each < NONE, "{name}: {each}/1000 allocations an event");
    }
}

/// Handing a file over copies its path; handing a refusal over for the log, too.
#[test]
fn an_event_that_is_handed_over_allocates_its_path_and_no_more() {
    require_root!();
    let site = or_skip!(Site::new());
    let scanned = site.each(&SCANNED);
    assert!((900..1100).contains(&scanned), "scan: {scanned}/1000");
    let infected = Case {
        known: Some(Verdict::Infected("x".into())),
        ..SCANNED
    };
    let refused = site.each(&infected);
    assert!(refused < 1100, "known infected: {refused}/1000");
}
