//! What every hook on opens does with a file: the filter, then the record.
//!
//! The hooks (`main.rs`, `lsm.rs`) deliver the file and how its fields are
//! loaded; all else is here, once. Must not: decide (that is
//! `onacc_common::filter`, tested on the host).

use core::ptr::{addr_of_mut, write};

use aya_ebpf::{
    Global,
    helpers::{bpf_get_current_cgroup_id, bpf_get_current_comm, bpf_get_current_uid_gid},
};
use onacc_common::{
    CachedInode, ChangeTime, Counter, DirKey, DirtyRecord, InodeKey,
    filter::{Opened, judge_open},
    opens::{Access, MAX_NAMES, NAME_ROOM, OpenHeader},
    tag, wants,
};

use crate::{
    layout::{
        self, Load, OFF_DENTRY_INODE, OFF_DENTRY_PARENT, OFF_FILE_DENTRY, OFF_FILE_FLAGS,
        OFF_FILE_INODE, OFF_FILE_MODE, OFF_INODE_GENERATION, OFF_INODE_MODE, OFF_INODE_SIZE,
        Probed,
    },
    maps::{self, Known},
    names, task,
};

/// What the settings in force need: bits of `wants`.
#[unsafe(no_mangle)]
static WANTS: Global<u32> = Global::new(0);

/// `__FMODE_EXEC` in `f_flags` (include/linux/fs.h): opened to be executed.
const FLAG_EXEC: u32 = 0x20;
/// `FMODE_PATH` in `f_mode` (include/linux/fs.h).
const MODE_PATH: u32 = 0x4000;
/// `FMODE_WRITE` in `f_mode` (include/linux/fs.h).
const MODE_WRITE: u32 = 0x2;

/// Whether the settings in force need this.
#[inline(always)]
pub fn wanted(bit: u32) -> bool {
    WANTS.load() & bit != 0
}

/// A file that is being opened, its fields loaded as `L` does.
pub struct File<L: Load> {
    file: *const u8,
    /// The inode.
    pub inode: *const u8,
    how: core::marker::PhantomData<L>,
}

impl<L: Load> File<L> {
    /// `file` is a `struct file`.
    #[inline(always)]
    pub fn new(file: *const u8) -> Self {
        Self {
            file,
            inode: L::load(file, &OFF_FILE_INODE),
            how: core::marker::PhantomData,
        }
    }

    #[inline(always)]
    fn generation(&self) -> u32 {
        L::load(self.inode, &OFF_INODE_GENERATION)
    }

    #[inline(always)]
    fn dentry(&self) -> *const u8 {
        L::load(self.file, &OFF_FILE_DENTRY)
    }

    #[inline(always)]
    fn is_exec(&self) -> bool {
        L::load::<u32>(self.file, &OFF_FILE_FLAGS) & FLAG_EXEC != 0
    }

    #[inline(always)]
    fn is_for_writing(&self) -> bool {
        L::load::<u32>(self.file, &OFF_FILE_MODE) & MODE_WRITE != 0
    }
}

impl<L: Load> Opened for File<L> {
    #[inline(always)]
    fn dev(&self) -> u32 {
        layout::dev::<L>(self.inode)
    }

    #[inline(always)]
    fn is_regular(&self) -> bool {
        L::load::<u16>(self.inode, &OFF_INODE_MODE) & 0o170_000 == 0o100_000
            && L::load::<u32>(self.file, &OFF_FILE_MODE) & MODE_PATH == 0
    }

    #[inline(always)]
    fn key(&self) -> InodeKey {
        InodeKey {
            dev: self.dev(),
            zero: 0,
            ino: layout::ino::<L>(self.inode),
        }
    }

    #[inline(always)]
    fn size(&self) -> u64 {
        L::load(self.inode, &OFF_INODE_SIZE)
    }

    #[inline(always)]
    fn changed(&self) -> ChangeTime {
        layout::ctime::<L>(self.inode)
    }

    #[inline(always)]
    fn directory(&self) -> DirKey {
        let parent: *const u8 = Probed::load(self.dentry(), &OFF_DENTRY_PARENT);
        let inode: *const u8 = Probed::load(parent, &OFF_DENTRY_INODE);
        DirKey {
            key: InodeKey {
                dev: self.dev(),
                zero: 0,
                ino: layout::ino::<Probed>(inode),
            },
            generation: Probed::load(inode, &OFF_INODE_GENERATION),
            zero: 0,
        }
    }

    #[inline(always)]
    fn process(&self) -> u32 {
        task::ids().1
    }

    #[inline(always)]
    fn euid(&self) -> u32 {
        task::euid()
    }

    #[inline(always)]
    fn descends_from_exempt(&self, is_exempt: impl Fn(u32) -> bool) -> bool {
        task::descends_from(is_exempt)
    }
}

/// Tells the agent of an open that needs a look.
#[inline(always)]
pub fn told<L: Load>(file: &File<L>) {
    maps::count(Counter::OpenSeen);
    if wanted(wants::EXECUTIONS_ALONE) && !file.is_exec() {
        return;
    }
    let verdict = judge_open(file, &Known);
    if matches!(verdict, Counter::OpenReported) {
        let access = if file.is_exec() {
            Access::Exec
        } else {
            Access::Open
        };
        tell(file, access, 0);
    } else {
        maps::count(verdict);
    }
}

/// What prevention mode needs of an open besides the permission event.
#[inline(always)]
pub fn noted<L: Load>(file: &File<L>) {
    maps::count(Counter::OpenSeen);
    if wanted(wants::TAGS) && maps::is_watched(file.dev()) {
        let tid = task::ids().0;
        maps::leave_tag(tid, tag(tid, task::euid()));
    }
    if wanted(wants::WRITES) && file.is_for_writing() {
        end_clean_mark(file);
    }
}

/// A file with a clean mark is opened for writing: what is stored through a
/// mapping might never be seen, so the mark goes now.
#[inline(always)]
fn end_clean_mark<L: Load>(file: &File<L>) {
    let key = file.key();
    if !maps::is_watched(key.dev) {
        return;
    }
    let Some(entry) = maps::cached(&key) else {
        return;
    };
    // SAFETY: the map's values live until deletion and a grace period.
    let CachedInode {
        serial, reported, ..
    } = unsafe { *entry };
    if reported != 0 {
        return;
    }
    let record = DirtyRecord {
        key,
        serial,
        zero: 0,
    };
    if maps::report(&record) {
        // SAFETY: as above; a second CPU that races here reports twice, harmlessly.
        unsafe { (*entry).reported = 1 };
        maps::count(Counter::WriteOpenReported);
    } else {
        maps::count(Counter::Lost);
    }
}

/// A record with room for `CAP` bytes of names.
#[repr(C)]
struct Record<const CAP: usize> {
    header: OpenHeader,
    names: [u8; CAP],
    room: [u8; NAME_ROOM],
}

/// Tells the agent. The record is as long as the names need, in two sizes:
/// the kernel wants to know it beforehand.
#[inline(always)]
pub fn tell<L: Load>(file: &File<L>, access: Access, signature: u32) {
    let written = match names::measure(file.dentry()) {
        Some(0..=256) => write_record::<L, 256>(file, access, signature),
        _ => write_record::<L, MAX_NAMES>(file, access, signature),
    };
    maps::count(if written {
        Counter::OpenReported
    } else if maps::note_missed(
        &DirKey {
            key: file.key(),
            generation: file.generation(),
            zero: 0,
        },
        task::euid(),
    ) {
        Counter::OpenMissed
    } else {
        Counter::OpenLost
    });
}

#[inline(always)]
fn write_record<L: Load, const CAP: usize>(file: &File<L>, access: Access, signature: u32) -> bool {
    let Some(mut entry) = maps::open_record::<Record<CAP>>() else {
        return false;
    };
    let record = entry.as_mut_ptr();
    let (tid, tgid) = task::ids();
    // SAFETY: the reserved memory is a `Record<CAP>`; every field of the header
    // is written before it is submitted, and of the names those that count.
    unsafe {
        let (names_len, whole) =
            names::copy::<CAP>(addr_of_mut!((*record).names).cast(), file.dentry());
        write(
            addr_of_mut!((*record).header),
            OpenHeader {
                access: access as u32,
                names_len,
                key: file.key(),
                directory: file.directory(),
                generation: file.generation(),
                cut: u32::from(!whole),
                changed: file.changed(),
                size: file.size(),
                tid,
                tgid,
                uid: bpf_get_current_uid_gid() as u32,
                euid: task::euid(),
                cgroup: bpf_get_current_cgroup_id(),
                started: task::started(),
                comm: bpf_get_current_comm().unwrap_or([0; 16]),
                signature,
                zero: 0,
            },
        );
    }
    entry.submit(0);
    true
}
