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
    inode::Inode,
    layout::{
        Copied, Fields, Load, OFF_DENTRY_INODE, OFF_DENTRY_PARENT, OFF_FILE_DENTRY, OFF_FILE_FLAGS,
        OFF_FILE_INODE, OFF_FILE_MODE, OFF_INODE_GENERATION, OFF_INODE_INO, Pointer, Probed, Room,
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

/// A file that is being opened: a `struct file`, and its inode.
pub struct File<F: Fields, I: Fields> {
    file: F,
    /// Its inode.
    pub inode: Inode<I>,
    /// `s_dev` of its superblock, which every open is asked for.
    dev: u32,
}

/// A file that a hook delivers.
pub type OfHook = File<Pointer, Pointer>;
/// A file that was found in memory.
pub type Found<'a> = File<Copied<'a, 80>, Copied<'a, 136>>;

/// Room for it: so many bytes hold the fields that are needed of every file, and
/// of an inode those from `i_mode` to the ctime, on 6.1 to 6.18.
pub struct FileRoom {
    file: Room<80>,
    inode: Room<136>,
}

impl FileRoom {
    /// Room with nothing in it.
    #[inline(always)]
    pub const fn new() -> Self {
        Self {
            file: Room::new(),
            inode: Room::new(),
        }
    }

    /// The `struct file` at `file`.
    #[inline(always)]
    pub fn copy(&mut self, file: *const u8) -> Found<'_> {
        let file = self.file.copy(file);
        let inode = self.inode.copy(file.load(&OFF_FILE_INODE));
        File::new(file, inode)
    }
}

impl OfHook {
    /// `file` is a `struct file` that the verifier knows as such.
    #[inline(always)]
    pub fn from_hook(file: *const u8) -> Self {
        let file = Pointer(file);
        let inode = Pointer(file.load(&OFF_FILE_INODE));
        Self::new(file, inode)
    }
}

impl<F: Fields, I: Fields> File<F, I> {
    #[inline(always)]
    fn new(file: F, inode: I) -> Self {
        let inode = Inode(inode);
        Self {
            dev: inode.dev(),
            file,
            inode,
        }
    }

    #[inline(always)]
    fn dentry(&self) -> *const u8 {
        self.file.load(&OFF_FILE_DENTRY)
    }

    #[inline(always)]
    fn mode(&self) -> u32 {
        self.file.load(&OFF_FILE_MODE)
    }

    #[inline(always)]
    fn is_exec(&self) -> bool {
        self.file.load::<u32>(&OFF_FILE_FLAGS) & FLAG_EXEC != 0
    }
}

impl<F: Fields, I: Fields> Opened for File<F, I> {
    #[inline(always)]
    fn dev(&self) -> u32 {
        self.dev
    }

    #[inline(always)]
    fn is_regular(&self) -> bool {
        self.inode.is_regular() && self.mode() & MODE_PATH == 0
    }

    #[inline(always)]
    fn key(&self) -> InodeKey {
        InodeKey {
            dev: self.dev,
            zero: 0,
            ino: self.inode.number(),
        }
    }

    #[inline(always)]
    fn size(&self) -> u64 {
        self.inode.size()
    }

    #[inline(always)]
    fn changed(&self) -> ChangeTime {
        self.inode.changed()
    }

    #[inline(always)]
    fn directory(&self) -> DirKey {
        let parent: *const u8 = Probed::load(self.dentry(), &OFF_DENTRY_PARENT);
        let inode: *const u8 = Probed::load(parent, &OFF_DENTRY_INODE);
        DirKey {
            key: InodeKey {
                dev: self.dev,
                zero: 0,
                ino: Probed::load(inode, &OFF_INODE_INO),
            },
            generation: Probed::load(inode, &OFF_INODE_GENERATION),
            zero: 0,
        }
    }

    #[inline(always)]
    fn process(&self) -> u32 {
        task::process()
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
pub fn told<F: Fields, I: Fields>(file: &File<F, I>) {
    if wanted(wants::EXECUTIONS_ALONE) && !file.is_exec() {
        return maps::count(Counter::OpenSeen);
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
pub fn noted<F: Fields, I: Fields>(file: &File<F, I>) {
    maps::count(Counter::OpenSeen);
    if wanted(wants::TAGS) && maps::is_watched(file.dev) {
        let tid = task::thread();
        maps::leave_tag(tid, tag(tid, task::euid()));
    }
    if wanted(wants::WRITES) && file.mode() & MODE_WRITE != 0 {
        end_clean_mark(file);
    }
}

/// A file with a clean mark is opened for writing: what is stored through a
/// mapping might never be seen, so the mark goes now.
#[inline(always)]
fn end_clean_mark<F: Fields, I: Fields>(file: &File<F, I>) {
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
pub fn tell<F: Fields, I: Fields>(file: &File<F, I>, access: Access, signature: u32) {
    let written = match names::measure(file.dentry()) {
        Some(0..=256) => write_record::<F, I, 256>(file, access, signature),
        _ => write_record::<F, I, MAX_NAMES>(file, access, signature),
    };
    maps::count(if written {
        Counter::OpenReported
    } else if maps::note_missed(
        &DirKey {
            key: file.key(),
            generation: file.inode.generation(),
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
fn write_record<F: Fields, I: Fields, const CAP: usize>(
    file: &File<F, I>,
    access: Access,
    signature: u32,
) -> bool {
    let Some(mut entry) = maps::open_record::<Record<CAP>>() else {
        return false;
    };
    let record = entry.as_mut_ptr();
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
                generation: file.inode.generation(),
                cut: u32::from(!whole),
                changed: file.changed(),
                size: file.size(),
                tid: task::thread(),
                tgid: task::process(),
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
