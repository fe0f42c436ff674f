//! A model of files and directories that several workers change at once.
//!
//! Owns: what each file holds (behind one lock a file), where it is, and what an
//! open of it must come to. Must not: open, write or move anything; the workers
//! of `property.rs` do that, under the locks of this model.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    time::Instant,
};

use crate::common::{infected, marker};

/// Directories of the model.
pub const DIRECTORIES: usize = 10;
/// Places for a file in each directory.
pub const SLOTS: usize = 10;

/// The name of an overlay's mount point, beside [`UPPER`].
pub const MERGED: &str = "merged";
/// The name of its upper directory, which holds all that the model makes.
pub const UPPER: &str = "upper";

/// Pseudo-random numbers (xorshift64*), the same for the same seed.
#[derive(Debug)]
pub struct Rng(u64);

impl Rng {
    /// Numbers of this seed.
    pub fn new(seed: u64) -> Self {
        // Spread, and never zero.
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let high = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        usize::try_from(high).unwrap_or(0) % limit.max(1)
    }

    /// True so many times in a hundred.
    pub fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }
}

/// On which side of the border a directory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Below the include path.
    Inside,
    /// Elsewhere on the filesystem.
    Outside,
    /// Below the exclude path, which is below the include path.
    Excluded,
}

impl Side {
    /// Any of them.
    pub fn random(rng: &mut Rng) -> Self {
        [Self::Inside, Self::Inside, Self::Outside, Self::Excluded][rng.below(4)]
    }

    /// The directory of this side.
    pub fn base(self, root: &Path) -> PathBuf {
        root.join(match self {
            Self::Inside => "in",
            Self::Outside => "out",
            Self::Excluded => "in/off",
        })
    }
}

/// What one inode holds; links share it.
#[derive(Debug)]
pub struct Content {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// The last store through a mapping.
    pub stored: Option<Instant>,
}

impl Content {
    /// Whether clamd finds something in it.
    pub fn is_infected(&self) -> bool {
        let marker = marker();
        self.bytes.starts_with(&infected())
            || self.bytes.windows(marker.len()).any(|part| part == marker)
    }
}

/// An inode; its lock is held while it is written, and while it is judged.
pub type Inode = Arc<Mutex<Content>>;
/// A name in a directory; its lock is held while the name changes.
pub type Slot = Mutex<Option<Inode>>;

/// A directory with its files, read-locked by who works in it.
#[derive(Debug)]
pub struct Directory {
    /// Where it is.
    pub side: Side,
    /// When it came there.
    pub moved: Option<Instant>,
    /// Its files.
    pub slots: Vec<Slot>,
}

/// All of it. Locks are taken in this order: directories by their number, slots
/// by theirs, then one inode.
#[derive(Debug)]
pub struct World {
    root: PathBuf,
    /// Whose it is: several processes have one each, side by side.
    owner: u64,
    directories: Vec<RwLock<Directory>>,
    /// Whether new directories are protected a moment after they are made.
    new_are_late: bool,
    /// What became of the directories, and when.
    moves: Mutex<Vec<String>>,
    started: Instant,
}

impl World {
    /// Empty directories, to be made at [`World::top`].
    pub fn new(root: &Path, owner: u64, rng: &mut Rng) -> Self {
        let directory = |_| {
            RwLock::new(Directory {
                side: Side::random(rng),
                moved: None,
                slots: empty_slots(),
            })
        };
        Self {
            root: root.to_path_buf(),
            owner,
            directories: (0..DIRECTORIES).map(directory).collect(),
            new_are_late: false,
            moves: Mutex::default(),
            started: Instant::now(),
        }
    }

    /// The same where new directories are protected a moment after they are made.
    pub fn with_late_directories(mut self, late: bool) -> Self {
        self.new_are_late = late;
        self
    }

    /// When a directory that is made now may be protected later than at once.
    pub fn made_now(&self) -> Option<Instant> {
        self.new_are_late.then(Instant::now)
    }

    /// Whether the model is on an overlay.
    pub fn is_on_overlay(&self) -> bool {
        self.root.file_name() == Some(OsStr::new(MERGED))
    }

    /// Where the file at this path lies beneath an overlay, if the model is on one.
    pub fn beneath(&self, path: &Path) -> Option<PathBuf> {
        let below = path.strip_prefix(&self.root).ok()?;
        self.is_on_overlay()
            .then(|| self.root.with_file_name(UPPER).join(below))
    }

    /// Notes what was done to a directory as a whole.
    pub fn note(&self, what: &str) {
        let at = self.started.elapsed();
        lock(&self.moves).push(format!("{at:?} {what}"));
    }

    /// The last things that were done to directories as a whole.
    pub fn moves(&self) -> String {
        let moves = lock(&self.moves);
        let last = moves.len().saturating_sub(60);
        moves[last..].join("\n  ")
    }

    /// Locks a directory for work in it.
    pub fn read(&self, number: usize) -> RwLockReadGuard<'_, Directory> {
        let lock = &self.directories[number];
        lock.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Locks a directory for moving it.
    pub fn write(&self, number: usize) -> RwLockWriteGuard<'_, Directory> {
        let lock = &self.directories[number];
        lock.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The top of a directory's tree: what is moved.
    pub fn top(&self, number: usize, side: Side) -> PathBuf {
        let name = format!("dir{}-{number}", self.owner);
        side.base(&self.root).join(name)
    }

    /// The directory that its files are in.
    pub fn deep(&self, number: usize, side: Side) -> PathBuf {
        self.top(number, side).join("a/b")
    }

    /// The path of a file.
    pub fn path(&self, number: usize, side: Side, slot: usize) -> PathBuf {
        self.deep(number, side).join(format!("file{slot}"))
    }
}

/// Places for files, without any.
pub fn empty_slots() -> Vec<Slot> {
    (0..SLOTS).map(|_| Mutex::new(None)).collect()
}

/// Locks anything.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Bytes without a signature.
pub fn clean_bytes(rng: &mut Rng) -> Vec<u8> {
    let length = match rng.below(10) {
        0 => 1 + rng.below(60),
        1 => 4096 * (1 + rng.below(8)),
        _ => 100 + rng.below(9000),
    };
    let mut bytes = Vec::with_capacity(length + 30);
    while bytes.len() < length {
        bytes.extend(format!("nothing to see {}\n", rng.below(1 << 30)).bytes());
    }
    bytes.truncate(length);
    bytes
}

/// Bytes with a signature, at the start or anywhere.
pub fn infected_bytes(rng: &mut Rng) -> Vec<u8> {
    let mut bytes = clean_bytes(rng);
    let place = rng.below(bytes.len());
    if rng.chance(40) {
        bytes.splice(0..0, infected());
    } else {
        bytes.splice(place..place, marker());
    }
    bytes
}

/// Either.
pub fn any_bytes(rng: &mut Rng) -> Vec<u8> {
    if rng.chance(45) {
        infected_bytes(rng)
    } else {
        clean_bytes(rng)
    }
}
