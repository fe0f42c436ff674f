//! Where the fields of kernel structures sit: globals that the agent sets from
//! the running kernel's BTF before loading, so that the verifier knows them and
//! the pointers stay typed. Must not: hold a number of its own.

use aya_ebpf::Global;
use onacc_common::ChangeTime;

/// `struct inode.i_sb`
#[unsafe(no_mangle)]
static OFF_INODE_SB: Global<u64> = Global::new(0);
/// `struct inode.i_ino`
#[unsafe(no_mangle)]
static OFF_INODE_INO: Global<u64> = Global::new(0);
/// Seconds of the inode's ctime (`i_ctime_sec`, `__i_ctime.tv_sec`, `i_ctime.tv_sec`)
#[unsafe(no_mangle)]
static OFF_INODE_CTIME_SEC: Global<u64> = Global::new(0);
/// Nanoseconds of the inode's ctime
#[unsafe(no_mangle)]
static OFF_INODE_CTIME_NSEC: Global<u64> = Global::new(0);
/// `struct super_block.s_dev`
#[unsafe(no_mangle)]
static OFF_SB_DEV: Global<u64> = Global::new(0);

/// Loads a `T` at `base + offset`.
#[inline(always)]
fn field<T: Copy>(base: *const u8, offset: &Global<u64>) -> T {
    // SAFETY: `base` is a kernel pointer that the verifier tracks by type and
    // `offset` the place of that field in the running kernel's BTF; the
    // verifier refuses the program if the load is not of a field.
    unsafe { core::ptr::read_volatile(base.add(offset.load() as usize).cast::<T>()) }
}

/// `s_dev` of the inode's superblock.
#[inline(always)]
pub fn dev(inode: *const u8) -> u32 {
    let sb: *const u8 = field(inode, &OFF_INODE_SB);
    field(sb, &OFF_SB_DEV)
}

/// The inode's number.
#[inline(always)]
pub fn ino(inode: *const u8) -> u64 {
    field(inode, &OFF_INODE_INO)
}

/// The inode's ctime.
#[inline(always)]
pub fn ctime(inode: *const u8) -> ChangeTime {
    ChangeTime::new(
        field::<i64>(inode, &OFF_INODE_CTIME_SEC),
        field::<u32>(inode, &OFF_INODE_CTIME_NSEC),
    )
}
