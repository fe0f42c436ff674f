//! The filter plane, seen from userspace: loading the eBPF programs, their maps
//! and their records.
//!
//! Owns: the programs, links and maps; all go when it is dropped, nothing is
//! pinned (invariant 9). Must not: decide what a record means (`coverage::keeper`
//! does) or guess an offset. Tested by `tests/` on the running kernel.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;

use aya::maps::{HashMap, Map, MapData, MapError, PerCpuArray, RingBuf};
use aya::programs::BtfTracePoint;
use aya::{Ebpf, EbpfLoader};
use onacc_common::{CachedInode, Counter, DirtyRecord, InodeKey, globals};

use super::btf::{Btf, BtfError};

/// The eBPF object, built by `build.rs`.
static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("ONACC_EBPF_OBJECT"));

const BTF_FILE: &str = "/sys/kernel/btf/vmlinux";
const DIRTY_HOOK: &str = "writeback_mark_inode_dirty";

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
        what: &'static str,
        /// One line.
        why: String,
        /// The verifier's words, if it spoke; many lines.
        log: String,
    },
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
    watched: HashMap<MapData, u32, u8>,
    cached: HashMap<MapData, Key, Value>,
    records: RingBuf<MapData>,
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
        let values = self.0.get(&(counter as u32), 0)?;
        Ok(values.iter().sum())
    }
}

impl FilterPlane {
    /// Loads and attaches. `capacity`: inodes that can carry a clean mark at a time.
    ///
    /// # Errors
    /// [`BpfError`] says in one line what is missing or refused.
    pub fn load(capacity: u32) -> Result<Self, BpfError> {
        let bytes = std::fs::read(BTF_FILE)
            .map_err(|error| BtfError::Unreadable(format!("{BTF_FILE}: {error}")))?;
        let offsets = offsets(&Btf::parse(&bytes)?)?;
        let mut loader = EbpfLoader::new();
        for (name, offset) in &offsets {
            loader.override_global(name, offset, true);
        }
        loader.map_max_entries("CACHED", capacity);
        let mut programs = loader
            .load(OBJECT)
            .map_err(|error| refused("loading the eBPF maps", &error))?;
        let btf = aya::Btf::from_sys_fs()
            .map_err(|error| BtfError::Unreadable(format!("{BTF_FILE}: {error}")))?;
        let dirtied: &mut BtfTracePoint = programs
            .program_mut("inode_dirtied")
            .expect("the object built with this agent has this program")
            .try_into()
            .map_err(|error| refused("eBPF program inode_dirtied", &error))?;
        dirtied
            .load(DIRTY_HOOK, &btf)
            .map_err(|error| refused("loading tp_btf/writeback_mark_inode_dirty", &error))?;
        let plane_maps = (
            take(&mut programs, "WATCHED")?,
            take(&mut programs, "CACHED")?,
            take(&mut programs, "RECORDS")?,
            PerCpuArray::try_from(take(&mut programs, "COUNTERS")?),
        );
        let map_error = |error: MapError| refused("eBPF map", &error);
        let plane = Self {
            watched: HashMap::try_from(plane_maps.0).map_err(map_error)?,
            cached: HashMap::try_from(plane_maps.1).map_err(map_error)?,
            records: RingBuf::try_from(plane_maps.2).map_err(map_error)?,
            counters: Arc::new(FilterCounters(plane_maps.3.map_err(map_error)?)),
            programs,
        };
        plane.attach()
    }

    fn attach(mut self) -> Result<Self, BpfError> {
        let dirtied: &mut BtfTracePoint = self
            .programs
            .program_mut("inode_dirtied")
            .expect("the object built with this agent has this program")
            .try_into()
            .map_err(|error| refused("eBPF program inode_dirtied", &error))?;
        dirtied
            .attach()
            .map_err(|error| refused("attaching tp_btf/writeback_mark_inode_dirty", &error))?;
        Ok(self)
    }

    /// Watches a filesystem.
    ///
    /// # Errors
    /// The map is full or the kernel refused.
    pub fn watch(&mut self, dev: u32) -> Result<(), MapError> {
        self.watched.insert(dev, 1, 0)
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

fn offsets(btf: &Btf<'_>) -> Result<[(&'static str, u64); 5], BtfError> {
    let ctime = |field: &'static str, flat: &'static str| {
        btf.offset_of_any(
            "inode",
            &[&[flat], &["__i_ctime", field], &["i_ctime", field]],
        )
    };
    Ok([
        (globals::INODE_SB, btf.offset("inode", &["i_sb"])?),
        (globals::INODE_INO, btf.offset("inode", &["i_ino"])?),
        (globals::INODE_CTIME_SEC, ctime("tv_sec", "i_ctime_sec")?),
        (globals::INODE_CTIME_NSEC, ctime("tv_nsec", "i_ctime_nsec")?),
        (globals::SB_DEV, btf.offset("super_block", &["s_dev"])?),
    ])
}

fn take(programs: &mut Ebpf, name: &'static str) -> Result<Map, BpfError> {
    programs.take_map(name).ok_or(BpfError::Refused {
        what: "eBPF map",
        why: format!("the object has no map {name}"),
        log: String::new(),
    })
}

/// One line of why, and the verifier's words apart.
fn refused(what: &'static str, error: &dyn std::error::Error) -> BpfError {
    let mut why = String::new();
    let mut log = String::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let text = error.to_string();
        let mut lines = text.lines();
        let line = lines.next().unwrap_or_default().trim_end_matches(':');
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
    BpfError::Refused { what, why, log }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::file;
    use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
    use std::time::{Duration, Instant};

    /// A store through a shared mapping into a file of an ext filesystem must
    /// be reported, once; reading it must not. Watches, but marks nothing.
    #[test]
    fn a_store_through_a_shared_mapping_is_reported_and_a_read_is_not() {
        let file = tempfile::NamedTempFile::new_in("/var/tmp").unwrap();
        std::fs::write(file.path(), vec![b'.'; 8192]).unwrap();
        let fd = file.as_file().as_fd();
        if file::filesystem_kind(fd).unwrap() != file::FilesystemKind::Ext {
            println!("SKIPPED: /var/tmp is not on an ext filesystem");
            return;
        }
        let mut plane = match FilterPlane::load(16) {
            Ok(plane) => plane,
            Err(error) => {
                assert_ne!(nix::unistd::geteuid().as_raw(), 0, "{error}");
                println!("SKIPPED: {error}");
                return;
            }
        };
        std::thread::sleep(Duration::from_millis(60));
        let stat = file::stat(fd).unwrap();
        plane.watch(stat.key.dev).unwrap();
        let entry = CachedInode {
            changed: stat.changed,
            serial: 7,
            reported: 0,
        };
        plane.arm(stat.key, entry).unwrap();
        std::fs::read(file.path()).unwrap();
        assert_eq!(plane.next_record(), None);
        let length = std::num::NonZeroUsize::new(8192).unwrap();
        let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a fresh mapping at an address that the kernel chooses, of a
        // file of this length; it is written inside its bounds and unmapped once.
        unsafe {
            let at = mmap(None, length, prot, MapFlags::MAP_SHARED, fd, 0).unwrap();
            at.cast::<u8>().as_ptr().write_volatile(b'X');
            munmap(at, 8192).unwrap();
        }
        let deadline = Instant::now() + Duration::from_secs(5);
        let record = loop {
            if let Some(record) = plane.next_record() {
                break record;
            }
            assert!(Instant::now() < deadline, "the store was not reported");
        };
        assert_eq!((record.key, record.serial), (stat.key, 7));
        assert!(plane.was_reported(stat.key).unwrap());
        std::fs::write(file.path(), "again").unwrap();
        assert_eq!(plane.next_record(), None, "one record an entry");
        assert!(plane.counters().get(Counter::Reported).unwrap() == 1);
        assert!(plane.counters().get(Counter::Seen).unwrap() > 1);
        plane.disarm(stat.key).unwrap();
        plane.disarm(stat.key).unwrap();
    }

    #[test]
    fn a_full_map_says_so() {
        let Ok(mut plane) = FilterPlane::load(2) else {
            println!("SKIPPED: no eBPF here; the test above says why");
            return;
        };
        let entry = CachedInode {
            changed: onacc_common::ChangeTime::new(1, 1),
            serial: 1,
            reported: 0,
        };
        let filled = (0..64)
            .map(|ino| plane.arm(InodeKey::new(1, 1, ino), entry))
            .find(Result::is_err);
        assert!(matches!(filled, Some(Err(ArmError::Full))), "{filled:?}");
    }
}
