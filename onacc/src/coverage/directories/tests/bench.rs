//! What the tests of the whole work with: the walk under a test's control, and
//! a comparison of the kernel's marks with what should carry them.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::CStr;
use std::fs;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use nix::poll::PollFlags;

use crate::coverage::directories::marker::{KernelMarker, Marker};
use crate::coverage::directories::tree::State;
use crate::coverage::directories::{
    Directories, DirectoriesLinks, DirectoriesMessage, FirstWalk, Reach,
};
use crate::coverage::scratch::{Scratch, marked_inodes, opened, table};
use crate::kernel::SyscallError;
use crate::kernel::directory::InDirectory;
use crate::kernel::fanotify::{FdBudget, Group, GroupKind, MarkError};
use crate::kernel::inotify::{
    InotifyBuffer, InotifyEvent, InotifyEvents, WatchError, WatchId, WatchedInode,
};
use crate::kernel::mounts::MountTable;
use crate::kernel::wake::{Mailbox, sleep};
use crate::observe::counters::Counters;
use crate::observe::heartbeat::Heartbeat;
use crate::policy::{Policy, Scope};
use crate::scan::Prescan;

/// The kernel, with as few watches as a test wants.
pub struct Scarce {
    kernel: KernelMarker,
    /// Directories that may be watched from now on.
    left: Rc<Cell<usize>>,
    given: RefCell<BTreeSet<WatchId>>,
}

impl Scarce {
    fn count(&self, watch: WatchId) -> Result<WatchId, WatchError> {
        if self.given.borrow().contains(&watch) {
            return Ok(watch);
        }
        let Some(left) = self.left.get().checked_sub(1) else {
            self.kernel.unwatch(watch);
            return Err(WatchError::Exhausted);
        };
        self.left.set(left);
        self.given.borrow_mut().insert(watch);
        Ok(watch)
    }
}

impl Marker for Scarce {
    fn watch(&self, directory: &OwnedFd) -> Result<WatchId, WatchError> {
        self.count(self.kernel.watch(directory)?)
    }
    fn watch_in(&self, inside: &InDirectory<'_>, name: &CStr) -> Result<WatchId, WatchError> {
        self.count(self.kernel.watch_in(inside, name)?)
    }
    fn mark_in(&self, inside: &InDirectory<'_>, name: &CStr) -> Result<(), MarkError> {
        self.kernel.mark_in(inside, name)
    }
    fn unwatch(&self, watch: WatchId) {
        self.kernel.unwatch(watch);
    }
    fn mark(&self, directory: &OwnedFd) -> Result<(), MarkError> {
        self.kernel.mark(directory)
    }
    fn unmark(&self, directory: &OwnedFd) {
        self.kernel.unmark(directory);
    }
    fn mark_file(&self, file: &OwnedFd) -> Result<(), MarkError> {
        self.kernel.mark_file(file)
    }
    fn unmark_file(&self, file: &OwnedFd) {
        self.kernel.unmark_file(file);
    }
    fn use_for_overlays(&mut self, group: Arc<Group>) {
        self.kernel.use_for_overlays(group);
    }
    fn group_at(&self, directory: &OwnedFd) -> Arc<Group> {
        self.kernel.group_at(directory)
    }
    fn read<'a>(&self, buffer: &'a mut InotifyBuffer) -> Result<InotifyEvents<'a>, SyscallError> {
        self.kernel.read(buffer)
    }
    fn watched_inodes(&self) -> Result<Vec<WatchedInode>, SyscallError> {
        self.kernel.watched_inodes()
    }
    fn events_fd(&self) -> BorrowedFd<'_> {
        self.kernel.events_fd()
    }
}

pub struct Bench {
    pub directories: Directories<Scarce>,
    pub messages: Mailbox<DirectoriesMessage>,
    pub group: Arc<Group>,
    pub counters: Arc<Counters>,
    jobs: Mailbox<crate::scan::Work>,
    pub watches_left: Rc<Cell<usize>>,
    includes: Vec<PathBuf>,
    excludes: Vec<PathBuf>,
}

pub fn policy(includes: &[PathBuf], excludes: &[PathBuf], mounts: MountTable) -> Arc<Policy> {
    Arc::new(Policy {
        scope: Arc::new(Scope::build(includes, excludes, &mounts)),
        mounts: Arc::new(mounts),
        excluded_uids: Vec::new(),
        deny_on_error: false,
        rules: Arc::default(),
        max_file_size: 1 << 20,
        kinds: Arc::new(HashMap::new()),
        stores_are_seen: false,
        marks: crate::config::modes::MarksMode::Auto,
    })
}

/// Links of a walk, and the other ends of its mailboxes.
pub fn links(
    group: &Arc<Group>,
    paths: (&[PathBuf], &[PathBuf]),
    reach: Reach,
) -> (
    DirectoriesLinks,
    Mailbox<DirectoriesMessage>,
    Mailbox<crate::scan::Work>,
) {
    let (messages, jobs) = (Mailbox::new().unwrap(), Mailbox::new().unwrap());
    let budget = FdBudget::new(4);
    let links = DirectoriesLinks {
        group: Arc::clone(group),
        messages: messages.clone(),
        prescan: Prescan::new(jobs.clone(), budget),
        counters: Arc::new(Counters::default()),
        heartbeat: Heartbeat::new("directories"),
        include_paths: paths.0.to_vec(),
        exclude_paths: paths.1.to_vec(),
        reach,
    };
    (links, messages, jobs)
}

impl Bench {
    pub fn new(scratch: &Scratch, includes: &[&str], excludes: &[&str]) -> Self {
        Self::with_reach(scratch, (includes, excludes), Reach::Whole)
    }

    pub fn with_reach(scratch: &Scratch, paths: (&[&str], &[&str]), reach: Reach) -> Self {
        let absolute = |list: &[&str]| -> Vec<PathBuf> {
            list.iter().map(|path| scratch.path().join(path)).collect()
        };
        let (includes, excludes) = (absolute(paths.0), absolute(paths.1));
        let group = Group::new(GroupKind::Notification).unwrap();
        let (links, messages, jobs) = links(&group, (&includes, &excludes), reach);
        let counters = Arc::clone(&links.counters);
        let watches_left = Rc::new(Cell::new(usize::MAX));
        let marker = Scarce {
            kernel: KernelMarker::new(Arc::clone(&group)).unwrap(),
            left: Rc::clone(&watches_left),
            given: RefCell::default(),
        };
        let policy = policy(&includes, &excludes, table());
        let directories = Directories::with_marker(links, policy, marker);
        Self {
            directories,
            messages,
            group,
            counters,
            jobs,
            watches_left,
            includes,
            excludes,
        }
    }

    pub fn walk(&mut self) -> FirstWalk {
        self.directories.first_walk()
    }

    /// Rounds until nothing is left to do, and what left has been unmarked.
    pub fn settle(&mut self) {
        loop {
            assert!(self.directories.round());
            let waiting = (self.directories.marker.events_fd(), PollFlags::POLLIN);
            let [events] = sleep([waiting], Some(Instant::now())).unwrap();
            let idle = self.directories.urgent.is_empty() && self.directories.background.is_empty();
            if idle && !events && self.directories.upkeep.again.is_none() {
                return;
            }
        }
    }

    pub fn settle_and_unmark(&mut self) {
        self.settle();
        while !self.directories.leaving.is_empty() {
            self.directories.unmark_what_left();
            self.settle();
        }
    }

    pub fn mounts_changed(&mut self) {
        let policy = policy(&self.includes, &self.excludes, table());
        self.messages.send(DirectoriesMessage::Policy(policy));
    }

    pub fn overflow(&mut self) {
        self.directories.handle(&InotifyEvent {
            watch: -1,
            mask: libc::IN_Q_OVERFLOW,
            name: b"",
        });
    }

    /// Files that wait to be scanned ahead; taken out.
    pub fn prescans(&self) -> Vec<PathBuf> {
        use std::os::unix::ffi::OsStringExt as _;
        let mut jobs = Vec::new();
        self.jobs.drain(&mut jobs);
        jobs.into_iter()
            .filter_map(|work| match work {
                crate::scan::Work::Scan(job) => Some(std::ffi::OsString::from_vec(job.path).into()),
                _ => None,
            })
            .collect()
    }

    /// Marks are on these directories and on no others.
    pub fn check(&self, wanted: &[PathBuf]) {
        let mut by_inode: BTreeMap<u64, &Path> = BTreeMap::new();
        for path in wanted {
            by_inode.insert(fs::symlink_metadata(path).unwrap().ino(), path);
        }
        // Events that nobody has read hold on to what was deleted.
        opened(&self.group, &[]);
        let marked = marked_inodes(&self.group);
        let missing: Vec<_> = by_inode
            .iter()
            .filter(|(inode, _)| !marked.contains(inode))
            .map(|(_, path)| path)
            .collect();
        let known: Vec<_> = missing.iter().map(|path| self.known(path)).collect();
        assert!(
            missing.is_empty(),
            "without a mark: {missing:?}, in the tree: {known:?}"
        );
        let known: BTreeSet<u64> = by_inode.keys().copied().collect();
        let extra: Vec<_> = marked.difference(&known).collect();
        assert!(extra.is_empty(), "marks on other inodes: {extra:?}");
        self.check_tree();
    }

    /// What the tree knows of a directory.
    fn known(&self, path: &Path) -> Option<State> {
        let tree = &self.directories.tree;
        let (id, missing) = tree.find(path.as_os_str().as_encoded_bytes());
        missing.is_none().then(|| tree.state(id))
    }

    /// Watches lead where the tree says.
    pub fn check_tree(&self) {
        let tree = &self.directories.tree;
        for id in tree.iter() {
            let state = tree.state(id);
            let mut path = Vec::new();
            tree.path_into(id, &mut path);
            let shown = String::from_utf8_lossy(&path);
            assert!(state.settled && !state.fresh, "{shown}: {state:?}");
            assert!(tree.watch_of(id).is_some() || state.unwatched, "{shown}");
        }
    }
}

/// All directories at and below a path.
pub fn all_below(path: &Path) -> Vec<PathBuf> {
    let mut found = vec![path.to_owned()];
    let mut at = 0;
    while at < found.len() {
        for entry in fs::read_dir(&found[at]).unwrap().map(Result::unwrap) {
            if entry.file_type().unwrap().is_dir() {
                found.push(entry.path());
            }
        }
        at += 1;
    }
    found
}

pub fn make(scratch: &Scratch, paths: &[&str]) {
    for path in paths {
        fs::create_dir_all(scratch.path().join(path)).unwrap();
    }
}
