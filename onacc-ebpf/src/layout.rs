//! Where the fields of kernel structures sit: globals that the agent sets from
//! the running kernel's BTF before loading, so that the verifier knows them and
//! the pointers stay typed. Must not: hold a number of its own.

use core::mem::MaybeUninit;

use aya_ebpf::{Global, helpers::generated::bpf_probe_read_kernel};
use onacc_common::ChangeTime;

/// Declares the globals, one for each field.
macro_rules! offsets {
    ($($name:ident),+ $(,)?) => {
        $(
            #[unsafe(no_mangle)]
            pub static $name: Global<u64> = Global::new(0);
        )+
    };
}

offsets!(
    OFF_INODE_SB,
    OFF_INODE_INO,
    OFF_INODE_CTIME_SEC,
    OFF_INODE_CTIME_NSEC,
    OFF_SB_DEV,
    OFF_INODE_MODE,
    OFF_INODE_SIZE,
    OFF_INODE_GENERATION,
    OFF_FILE_INODE,
    OFF_FILE_DENTRY,
    OFF_FILE_FLAGS,
    OFF_FILE_MODE,
    OFF_DENTRY_PARENT,
    OFF_DENTRY_INODE,
    OFF_DENTRY_NAME,
    OFF_DENTRY_NAME_LEN,
    OFF_TASK_CRED,
    OFF_CRED_EUID,
    OFF_TASK_PARENT,
    OFF_TASK_TGID,
    OFF_TASK_START,
);

/// How a field is loaded.
pub trait Load {
    /// Loads a `T` at `base + offset`; zeros if that cannot be read.
    fn load<T: Copy>(base: *const u8, offset: &Global<u64>) -> T;
}

/// A plain load: for pointers whose type the verifier knows, which are the
/// arguments of a hook and what is loaded from them.
pub struct Typed;

/// `bpf_probe_read_kernel`: for pointers that were found in memory.
pub struct Probed;

impl Load for Typed {
    #[inline(always)]
    fn load<T: Copy>(base: *const u8, offset: &Global<u64>) -> T {
        // SAFETY: `base` is a kernel pointer that the verifier tracks by type and
        // `offset` the place of that field in the running kernel's BTF; the
        // verifier refuses the program if the load is not of a field.
        unsafe { core::ptr::read_volatile(base.add(offset.load() as usize).cast::<T>()) }
    }
}

impl Load for Probed {
    #[inline(always)]
    fn load<T: Copy>(base: *const u8, offset: &Global<u64>) -> T {
        read(base.wrapping_add(offset.load() as usize).cast())
    }
}

/// Reads kernel memory; zeros if that cannot be read. Without a branch: each
/// would double what the verifier has to look at.
#[inline(always)]
pub fn read<T: Copy>(at: *const T) -> T {
    let mut value = MaybeUninit::<T>::zeroed();
    // SAFETY: the helper checks the address and zeroes what it cannot read; it
    // writes `size_of::<T>()` bytes. Every `T` here is a number or a pointer, for
    // which zero is valid.
    unsafe {
        bpf_probe_read_kernel(value.as_mut_ptr().cast(), size_of::<T>() as u32, at.cast());
        value.assume_init()
    }
}

/// `s_dev` of the inode's superblock.
#[inline(always)]
pub fn dev<L: Load>(inode: *const u8) -> u32 {
    let sb: *const u8 = L::load(inode, &OFF_INODE_SB);
    L::load(sb, &OFF_SB_DEV)
}

/// The inode's number.
#[inline(always)]
pub fn ino<L: Load>(inode: *const u8) -> u64 {
    L::load(inode, &OFF_INODE_INO)
}

/// The inode's ctime.
#[inline(always)]
pub fn ctime<L: Load>(inode: *const u8) -> ChangeTime {
    ChangeTime::new(
        L::load::<i64>(inode, &OFF_INODE_CTIME_SEC),
        L::load::<u32>(inode, &OFF_INODE_CTIME_NSEC),
    )
}
