//! The filter plane, seen from userspace: loading the eBPF programs, their maps
//! and their records.
//!
//! `load` finds the hooks that the kernel grants; `FilterPlane` (here) is what
//! the keeper of clean marks uses; `controls`, `feed`, `tags` are for the
//! threads that use them. All go when they are dropped, nothing is pinned
//! (invariant 9). Must not: decide what a record means (`coverage::keeper` and
//! `intake::feed` do) or guess an offset. Tested by `tests/` on the running
//! kernel, and on others by `cargo xtask vm`.

mod controls;
mod denied;
mod feed;
mod fronted;
mod load;
mod mapped;
mod offsets;
mod outside;
mod probe;
mod tags;

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;

use aya::Ebpf;
use aya::maps::{Array, HashMap, MapData, MapError, PerCpuArray, RingBuf};
use onacc_common::{CachedInode, Counter, DeniedInode, DirKey, DirtyRecord, InodeKey, epochs};

use super::btf::BtfError;
use denied::Denied;
use outside::Outside;

pub use controls::Controls;
pub use denied::SignatureNames;
pub use feed::{Missed, OpenFeed};
pub use load::{Loaded, OpenTier, Preparation, Request, load};
pub use tags::Tags;

/// The filter plane is not to be had.
#[derive(Debug, thiserror::Error)]
pub enum BpfError {
    /// BTF is missing, or a field in it.
    #[error(transparent)]
    Btf(#[from] BtfError),
    /// The kernel refused.
    #[error("{what}: {why}")]
    Refused {
        /// Which step.
        what: String,
        /// One line.
        why: String,
        /// The verifier's words, if it spoke; many lines.
        log: String,
    },
    /// The hooks are attached, and an open of our own went by unseen.
    #[error(
        "attached, but never runs: an open of our own was not seen (BPF LSM: add bpf to lsm= on the kernel's command line)"
    )]
    NeverFires,
}

#[repr(transparent)]
#[derive(Clone, Copy)]
struct Key(InodeKey);
// SAFETY: two u32 and a u64, repr(C), no padding, any bits are valid.
unsafe impl aya::Pod for Key {}

#[repr(transparent)]
#[derive(Clone, Copy)]
struct Value(CachedInode);
// SAFETY: i64 and four u32, repr(C), no padding, any bits are valid.
unsafe impl aya::Pod for Value {}

/// An inode could not be entered.
#[derive(Debug, thiserror::Error)]
pub enum ArmError {
    /// The map is full.
    #[error("the map of cached inodes is full")]
    Full,
    /// The kernel refused.
    #[error("update of the map of cached inodes: {0}")]
    Map(#[source] MapError),
}

/// The loaded filter plane.
pub struct FilterPlane {
    cached: HashMap<MapData, Key, Value>,
    records: RingBuf<MapData>,
    outside: Outside,
    epochs: Array<MapData, u64>,
    denied: Option<Denied>,
    tells_opens: bool,
    sees_writes: bool,
    counters: Arc<FilterCounters>,
    /// Holds programs and links.
    programs: Ebpf,
}

/// The per-CPU counters of the filter plane.
pub struct FilterCounters(PerCpuArray<MapData, u64>);

impl FilterCounters {
    /// Sum over all CPUs.
    ///
    /// # Errors
    /// A failed map look-up.
    pub fn get(&self, counter: Counter) -> Result<u64, MapError> {
        let sum = |counters: &[Counter]| counters.iter().map(|counter| self.raised(*counter)).sum();
        match counter {
            Counter::Seen => sum(&Counter::OF_DIRTIED),
            Counter::OpenSeen => sum(&Counter::OF_OPENS),
            counter => self.raised(counter),
        }
    }

    fn raised(&self, counter: Counter) -> Result<u64, MapError> {
        let values = self.0.get(&(counter as u32), 0)?;
        Ok(values.iter().sum())
    }
}

impl FilterPlane {
    /// Whether opens are told by records, so that fanotify need not.
    pub fn tells_opens(&self) -> bool {
        self.tells_opens
    }

    /// Whether opens for writing end clean marks.
    pub fn sees_writes(&self) -> bool {
        self.sees_writes
    }

    /// What lies directly in this directory is out of scope: opens of it are dropped.
    ///
    /// # Errors
    /// The map is full or the kernel refused: they are told, and judged by the agent.
    pub fn ignore_directory(&mut self, directory: DirKey) -> Result<(), MapError> {
        let epoch = self.epochs.get(&epochs::OUTSIDE, 0)?;
        self.outside.enter(directory, epoch)
    }

    /// No directory is out of scope for certain any more.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn forget_directories(&mut self) -> Result<(), MapError> {
        self.next_epoch(epochs::OUTSIDE).map(drop)
    }

    /// Refuses an infected file from now on, if the tier can. False: it cannot.
    ///
    /// # Errors
    /// The kernel refused (no inode storage on this filesystem, no memory).
    pub fn refuse(
        &mut self,
        file: BorrowedFd<'_>,
        changed: onacc_common::ChangeTime,
        signature: &Arc<str>,
    ) -> Result<bool, MapError> {
        let Some(denied) = &mut self.denied else {
            return Ok(false);
        };
        let epoch = self.epochs.get(&epochs::DENIED, 0)?;
        let value = DeniedInode {
            changed,
            signature: denied.names().number(signature),
            // Wraps after four thousand million databases.
            epoch: u32::try_from(epoch & u64::from(u32::MAX)).unwrap_or(0),
        };
        denied.enter(&file, value).map(|()| true)
    }

    /// No file is known as infected any more.
    ///
    /// # Errors
    /// The kernel refused: files of an old database would stay refused.
    pub fn forget_infected(&mut self) -> Result<(), MapError> {
        if self.denied.is_some() {
            self.next_epoch(epochs::DENIED)?;
        }
        Ok(())
    }

    fn next_epoch(&mut self, which: u32) -> Result<u64, MapError> {
        let next = self.epochs.get(&which, 0)? + 1;
        self.epochs.set(which, next, 0)?;
        Ok(next)
    }

    /// What the verifier had to do for each loaded program: its name, and how
    /// many instructions were processed (`bpf_prog_info.verified_insns`, since 5.16).
    pub fn verifier_costs(&self) -> Vec<(String, u32)> {
        self.programs
            .programs()
            .filter_map(|(name, program)| {
                let info = program.info().ok()?;
                Some((name.to_owned(), info.verified_instruction_count()?))
            })
            .collect()
    }

    /// Enters an inode that is about to carry a clean mark.
    ///
    /// # Errors
    /// [`ArmError::Full`]: no mark may be placed.
    pub fn arm(&mut self, key: InodeKey, value: CachedInode) -> Result<(), ArmError> {
        match self.cached.insert(Key(key), Value(value), 0) {
            Ok(()) => Ok(()),
            Err(MapError::SyscallError(error))
                if error.io_error.raw_os_error() == Some(libc::E2BIG) =>
            {
                Err(ArmError::Full)
            }
            Err(error) => Err(ArmError::Map(error)),
        }
    }

    /// Forgets an inode. Whether it was there does not matter.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn disarm(&mut self, key: InodeKey) -> Result<(), MapError> {
        match self.cached.remove(&Key(key)) {
            Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
            Err(MapError::SyscallError(error))
                if error.io_error.raw_os_error() == Some(libc::ENOENT) =>
            {
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Whether the program has reported this entry since it was entered.
    ///
    /// # Errors
    /// The kernel refused; the caller takes it for a yes.
    pub fn was_reported(&self, key: InodeKey) -> Result<bool, MapError> {
        match self.cached.get(&Key(key), 0) {
            Ok(Value(value)) => Ok(value.reported != 0),
            Err(MapError::KeyNotFound) => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// The next record. `None`: no more for now.
    pub fn next_record(&mut self) -> Option<DirtyRecord> {
        loop {
            let item = self.records.next()?;
            // A record of another length is not ours to understand; the object
            // was built with this agent, so that it cannot come.
            if let Some(record) = DirtyRecord::from_bytes(&item) {
                return Some(record);
            }
        }
    }

    /// The counters, to be read from any thread.
    pub fn counters(&self) -> &Arc<FilterCounters> {
        &self.counters
    }
}

impl AsFd for FilterPlane {
    /// Readable when records wait.
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the ring buffer owns this fd and lives as long as `self`.
        unsafe { BorrowedFd::borrow_raw(self.records.as_raw_fd()) }
    }
}

impl BpfError {
    /// One line of why, and the verifier's words apart.
    fn refused(what: String, error: &dyn std::error::Error) -> Self {
        let mut why = String::new();
        let mut log = String::new();
        let mut next = Some(error);
        while let Some(error) = next {
            let text = error.to_string();
            let mut lines = text.lines();
            let line = lines.next().unwrap_or_default();
            // aya puts the verifier's words behind this; those are `log`.
            let (line, words) = line.split_once(". Verifier output:").unwrap_or((line, ""));
            let line = line.trim_end_matches(':');
            log.push_str(words.trim());
            if !why.contains(line) {
                if !why.is_empty() {
                    why.push_str(": ");
                }
                why.push_str(line);
            }
            for line in lines {
                log.push_str(line);
                log.push('\n');
            }
            next = error.source();
        }
        if lacks_reading(&log) {
            READING.clone_into(&mut why);
        }
        Self::Refused { what, why, log }
    }
}

/// Said instead of an EINVAL that tells nobody anything.
const READING: &str = "the kernel lets no eBPF program read its memory (bpf_probe_read): lockdown is in confidentiality mode (lockdown=integrity on the kernel's command line would grant it)";

/// Whether the verifier refused the helper that every hook on names needs: under
/// lockdown=confidentiality it is not there. Words of 6.1, and of 6.12.
fn lacks_reading(log: &str) -> bool {
    log.lines().any(|line| {
        line.contains("bpf_probe_read")
            && (line.contains("unknown func") || line.contains("cannot use helper"))
    })
}

#[cfg(test)]
mod tests;
