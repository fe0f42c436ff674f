//! The workers of the property test: each step changes files at random, and
//! opens what it has changed.
//!
//! Owns: that the model and the filesystem agree, by holding the model's locks
//! around each change. Must not: say what an open comes to ([`Opener`] does).

use std::{
    collections::VecDeque,
    fs::{self, File, OpenOptions},
    io::Write,
    os::{
        fd::AsRawFd,
        unix::fs::{FileExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use nix::{
    fcntl::{AT_FDCWD, AtFlags, RenameFlags, renameat2},
    unistd::{linkat, truncate},
};
use onacc_tests::SharedMapping;

use crate::{
    common::{infected, marker},
    openers::{Expected, Opener, PATIENCE, Slips},
    processes::Mapper,
    world::{
        Content, DIRECTORIES, Directory, Inode, Rng, SLOTS, Side, Slot, World, any_bytes,
        clean_bytes, empty_slots, lock,
    },
};

/// Steps that are told when something is wrong.
const HISTORY: usize = 30;

type Step<T = ()> = Result<T, String>;

/// One worker.
pub struct Worker<'a> {
    world: &'a World,
    rng: Rng,
    slips: &'a Slips,
    opener: Opener,
    history: VecDeque<String>,
    started: Instant,
}

/// A file's name and where it is.
struct Named<'a> {
    path: PathBuf,
    side: Side,
    moved: Option<Instant>,
    slot: &'a Slot,
}

fn tried<T, E: std::fmt::Display>(what: &str, path: &Path, result: Result<T, E>) -> Step<T> {
    result.map_err(|error| format!("{what} {}: {error}", path.display()))
}

impl<'a> Worker<'a> {
    /// A worker that has not begun.
    pub fn new(world: &'a World, rng: Rng, slips: &'a Slips) -> Self {
        Self {
            world,
            rng,
            slips,
            opener: Opener::start(),
            history: VecDeque::new(),
            started: Instant::now(),
        }
    }

    /// Its last steps.
    pub fn history(&mut self) -> &[String] {
        self.history.make_contiguous()
    }

    fn note(&mut self, what: &str, path: &Path) {
        let at = self.started.elapsed();
        self.history
            .push_back(format!("{at:?} {what} {}", path.display()));
        if self.history.len() > HISTORY {
            self.history.pop_front();
        }
    }

    /// Does one thing, or says what is wrong.
    pub fn step(&mut self) -> Step {
        if self.rng.chance(3) {
            thread::sleep(Duration::from_millis(5));
        }
        match self.rng.below(1000) {
            0..=7 => self.move_directory(),
            8..=11 => self.exchange_directories(),
            12..=14 => self.make_directory_anew(),
            15..=120 => self.two_names(),
            _ => self.one_file(),
        }
    }

    fn named<'d>(&self, number: usize, directory: &'d Directory, slot: usize) -> Named<'d> {
        Named {
            path: self.world.path(number, directory.side, slot),
            side: directory.side,
            moved: directory.moved,
            slot: &directory.slots[slot],
        }
    }

    fn expected(named: &Named<'_>, content: &Content) -> Expected {
        Expected {
            refused: named.side == Side::Inside && content.is_infected(),
            stored: content.stored,
            moved: named.moved,
        }
    }

    /// Opens a file; `None` if it is refused, as it must be.
    fn open(
        &self,
        named: &Named<'_>,
        content: &Content,
        options: &OpenOptions,
    ) -> Step<Option<File>> {
        let expected = Self::expected(named, content);
        self.opener.open(&named.path, options, expected, self.slips)
    }

    /// Opens a file for reading; on an overlay also what lies beneath, before or
    /// after.
    fn check(&self, named: &Named<'_>, content: &Content) -> Step {
        let expected = Self::expected(named, content);
        let check = |path: &Path| self.opener.check(path, expected, self.slips);
        match self.world.beneath(&named.path) {
            None => check(&named.path),
            Some(beneath) if self.slips.checks().is_multiple_of(2) => {
                check(&named.path).and_then(|()| check(&beneath))
            }
            Some(beneath) => check(&beneath).and_then(|()| check(&named.path)),
        }
    }

    /// Opens every file there is.
    pub fn check_all(&mut self) -> Step {
        let world = self.world;
        for number in 0..DIRECTORIES {
            let directory = world.read(number);
            self.check_directory(number, &directory)?;
        }
        Ok(())
    }

    fn check_directory(&self, number: usize, directory: &Directory) -> Step {
        for slot in 0..SLOTS {
            let named = self.named(number, directory, slot);
            let inode = lock(named.slot).clone();
            if let Some(inode) = inode {
                self.check(&named, &lock(&inode))?;
            }
        }
        Ok(())
    }

    fn one_file(&mut self) -> Step {
        let world = self.world;
        let (number, slot) = (self.rng.below(DIRECTORIES), self.rng.below(SLOTS));
        let directory = world.read(number);
        let named = self.named(number, &directory, slot);
        let mut place = lock(named.slot);
        let Some(inode) = place.clone() else {
            *place = Some(self.create(&named)?);
            return Ok(());
        };
        let mut content = lock(&inode);
        match self.rng.below(20) {
            0..=1 => self.write(&named, &mut content)?,
            2..=3 => self.write_part(&named, &mut content)?,
            4..=6 if self.rng.chance(15) => self.store_elsewhere(&named, &mut content)?,
            4..=6 => self.store(&named, &mut content)?,
            7 => self.truncate(&named, &mut content)?,
            8..=9 => {
                drop(content);
                let new = self.replace(&named)?;
                *place = Some(Arc::clone(&new));
                return self.check(&named, &lock(&new));
            }
            10 if self.rng.chance(50) => {
                self.note("unlink", &named.path);
                tried("unlinking", &named.path, fs::remove_file(&named.path))?;
                drop(content);
                *place = None;
                return Ok(());
            }
            _ => {}
        }
        self.check(&named, &content)
    }

    /// A new file, by its name or without one at first.
    fn create(&mut self, named: &Named<'_>) -> Step<Inode> {
        let bytes = any_bytes(&mut self.rng);
        if self.rng.chance(25) {
            self.note("O_TMPFILE and linkat", &named.path);
            let directory = named.path.parent().unwrap_or(&named.path);
            let mut options = OpenOptions::new();
            options.read(true).write(true).custom_flags(libc::O_TMPFILE);
            let mut file = tried("O_TMPFILE in", directory, options.open(directory))?;
            tried("writing", &named.path, file.write_all(&bytes))?;
            let proc = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
            let flags = AtFlags::AT_SYMLINK_FOLLOW;
            let linked = linkat(AT_FDCWD, &proc, AT_FDCWD, &named.path, flags);
            tried("linking", &named.path, linked)?;
        } else {
            self.note("create", &named.path);
            tried("creating", &named.path, fs::write(&named.path, &bytes))?;
        }
        let content = Content {
            bytes,
            stored: None,
        };
        self.check(named, &content)?;
        Ok(Arc::new(Mutex::new(content)))
    }

    /// As an editor saves. Nobody else knows the new inode yet.
    fn replace(&mut self, named: &Named<'_>) -> Step<Inode> {
        self.note("replace", &named.path);
        let bytes = any_bytes(&mut self.rng);
        let new = named.path.with_extension("new");
        tried("writing", &new, fs::write(&new, &bytes))?;
        tried("renaming over", &named.path, fs::rename(&new, &named.path))?;
        Ok(Arc::new(Mutex::new(Content {
            bytes,
            stored: None,
        })))
    }

    fn write(&mut self, named: &Named<'_>, content: &mut Content) -> Step {
        self.note("write", &named.path);
        let mut options = OpenOptions::new();
        options.write(true).truncate(true);
        let Some(mut file) = self.open(named, content, &options)? else {
            return Ok(());
        };
        content.bytes = any_bytes(&mut self.rng);
        let (first, second) = content.bytes.split_at(self.rng.below(content.bytes.len()));
        tried("writing", &named.path, file.write_all(first))?;
        tried("writing", &named.path, file.write_all(second))?;
        if self.rng.chance(10) {
            tried("fsync of", &named.path, file.sync_all())?;
        }
        Ok(())
    }

    /// Some bytes that turn a file into the one or the other, and where.
    fn patch(&mut self, length: usize) -> (usize, Vec<u8>) {
        let (offset, mut bytes) = match self.rng.below(4) {
            0 => (0, infected()),
            1 => (self.rng.below(length), marker()),
            2 => (0, clean_bytes(&mut self.rng)),
            _ => (self.rng.below(length), clean_bytes(&mut self.rng)),
        };
        bytes.truncate(length.saturating_sub(offset));
        (offset, bytes)
    }

    fn write_part(&mut self, named: &Named<'_>, content: &mut Content) -> Step {
        self.note("write a part of", &named.path);
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        let Some(file) = self.open(named, content, &options)? else {
            return Ok(());
        };
        let (offset, bytes) = self.patch(content.bytes.len());
        let written = file.write_all_at(&bytes, offset as u64);
        tried("writing", &named.path, written)?;
        content.bytes[offset..offset + bytes.len()].copy_from_slice(&bytes);
        if self.rng.chance(30) {
            // The kernel itself has seen the write: no window, though it is open.
            self.check(named, content)?;
        }
        Ok(())
    }

    fn store(&mut self, named: &Named<'_>, content: &mut Content) -> Step {
        if content.bytes.is_empty() {
            return Ok(());
        }
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        let Some(file) = self.open(named, content, &options)? else {
            return Ok(());
        };
        let mut mapping = tried("mapping", &named.path, SharedMapping::of(&file))?;
        let mut file = Some(file);
        if self.rng.chance(50) {
            file = None;
        }
        for _ in 0..=self.rng.below(3) {
            self.note("store into", &named.path);
            let (offset, bytes) = self.patch(content.bytes.len());
            mapping.store(offset, &bytes);
            content.bytes[offset..offset + bytes.len()].copy_from_slice(&bytes);
            content.stored = Some(Instant::now());
            if self.rng.chance(40) {
                self.check(named, content)?;
            }
        }
        drop(mapping);
        drop(file);
        Ok(())
    }

    /// A store by a process that has mapped the file and has closed it since: the
    /// mapping outlives the fd, and, half the time, the check before its end.
    fn store_elsewhere(&mut self, named: &Named<'_>, content: &mut Content) -> Step {
        let expected = Self::expected(named, content);
        // One that is refused cannot map it; within a window it might.
        if content.bytes.is_empty() || expected.refused {
            return Ok(());
        }
        let (offset, bytes) = self.patch(content.bytes.len());
        self.note("map by another process", &named.path);
        let mut mapper = Mapper::start(&named.path, offset, &bytes, PATIENCE)?;
        if self.rng.chance(50) {
            // Its verdict must not outlive the store that comes.
            self.check(named, content)?;
        }
        self.note("store by another process", &named.path);
        mapper.store(PATIENCE)?;
        content.bytes[offset..offset + bytes.len()].copy_from_slice(&bytes);
        content.stored = Some(Instant::now());
        if self.rng.chance(50) {
            self.check(named, content)?;
        }
        drop(mapper);
        Ok(())
    }

    fn truncate(&mut self, named: &Named<'_>, content: &mut Content) -> Step {
        self.note("truncate", &named.path);
        let length = self.rng.below(content.bytes.len() + 1);
        let length = if self.rng.chance(30) { 0 } else { length };
        let size = i64::try_from(length).map_err(|error| error.to_string())?;
        tried("truncating", &named.path, truncate(&named.path, size))?;
        content.bytes.truncate(length);
        Ok(())
    }

    /// Rename or hard link, within a directory or across.
    fn two_names(&mut self) -> Step {
        let world = self.world;
        let mut numbers = [self.rng.below(DIRECTORIES), self.rng.below(DIRECTORIES)];
        numbers.sort_unstable();
        let slots = [self.rng.below(SLOTS), self.rng.below(SLOTS)];
        let first = world.read(numbers[0]);
        if numbers[0] == numbers[1] {
            let mut slots = slots;
            slots.sort_unstable();
            if slots[0] == slots[1] {
                return Ok(());
            }
            let names = slots.map(|slot| self.named(numbers[0], &first, slot));
            return self.rename_or_link(names);
        }
        let second = world.read(numbers[1]);
        let one = self.named(numbers[0], &first, slots[0]);
        let other = self.named(numbers[1], &second, slots[1]);
        self.rename_or_link([one, other])
    }

    fn rename_or_link(&mut self, [one, other]: [Named<'_>; 2]) -> Step {
        let mut places = [lock(one.slot), lock(other.slot)];
        let mut names = [&one, &other];
        if self.rng.chance(50) {
            places.reverse();
            names.reverse();
        }
        let [from, to] = names;
        let Some(inode) = places[0].clone() else {
            return Ok(());
        };
        if places[1]
            .as_ref()
            .is_some_and(|old| Arc::ptr_eq(old, &inode))
        {
            // rename(2) of two links of one file does nothing.
            return Ok(());
        }
        // Of a file beneath an overlay that has several names it is not known by
        // which it was opened: it is scanned, whatever side the name is on.
        if self.rng.chance(60) || self.world.is_on_overlay() {
            self.note("rename", &from.path);
            self.note("    to", &to.path);
            tried("renaming", &from.path, fs::rename(&from.path, &to.path))?;
            *places[0] = None;
        } else {
            self.note("link", &from.path);
            self.note("  as", &to.path);
            if places[1].is_some() {
                tried("unlinking", &to.path, fs::remove_file(&to.path))?;
            }
            tried("linking", &from.path, fs::hard_link(&from.path, &to.path))?;
        }
        *places[1] = Some(Arc::clone(&inode));
        let content = lock(&inode);
        if places[0].is_some() {
            self.check(from, &content)?;
        }
        self.check(to, &content)
    }

    fn move_directory(&mut self) -> Step {
        let world = self.world;
        let number = self.rng.below(DIRECTORIES);
        let mut directory = world.write(number);
        let to = Side::random(&mut self.rng);
        if to == directory.side {
            return self.check_directory(number, &directory);
        }
        let (old, new) = (world.top(number, directory.side), world.top(number, to));
        self.note("move directory", &old);
        self.note("            to", &new);
        tried("moving", &old, fs::rename(&old, &new))?;
        world.note(&format!("{} moved to {}", old.display(), new.display()));
        directory.side = to;
        directory.moved = Some(Instant::now());
        self.check_directory(number, &directory)
    }

    fn exchange_directories(&mut self) -> Step {
        let world = self.world;
        let mut numbers = [self.rng.below(DIRECTORIES), self.rng.below(DIRECTORIES)];
        numbers.sort_unstable();
        let [one, other] = numbers;
        if one == other {
            return Ok(());
        }
        let (mut first, mut second) = (world.write(one), world.write(other));
        let paths = [world.top(one, first.side), world.top(other, second.side)];
        self.note("exchange", &paths[0]);
        self.note("    with", &paths[1]);
        let flags = RenameFlags::RENAME_EXCHANGE;
        let exchanged = renameat2(AT_FDCWD, &paths[0], AT_FDCWD, &paths[1], flags);
        tried("exchanging", &paths[0], exchanged)?;
        let [left, right] = &paths;
        world.note(&format!(
            "{} exchanged with {}",
            left.display(),
            right.display()
        ));
        std::mem::swap(&mut first.slots, &mut second.slots);
        let now = Some(Instant::now());
        (first.moved, second.moved) = (now, now);
        self.check_directory(one, &first)?;
        self.check_directory(other, &second)
    }

    fn make_directory_anew(&mut self) -> Step {
        let world = self.world;
        let number = self.rng.below(DIRECTORIES);
        let mut directory = world.write(number);
        let old = world.top(number, directory.side);
        self.note("delete directory", &old);
        tried("deleting", &old, fs::remove_dir_all(&old))?;
        directory.slots = empty_slots();
        directory.side = Side::random(&mut self.rng);
        directory.moved = None;
        let deep = world.deep(number, directory.side);
        self.note("make directory", &deep);
        tried("making", &deep, fs::create_dir_all(&deep))?;
        directory.moved = world.made_now();
        world.note(&format!(
            "{} made anew as {}",
            old.display(),
            deep.display()
        ));
        for slot in 0..SLOTS / 2 {
            let named = self.named(number, &directory, slot);
            let made = self.create(&named)?;
            *lock(named.slot) = Some(made);
        }
        Ok(())
    }
}
