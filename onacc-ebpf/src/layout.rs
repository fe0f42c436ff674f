//! Where the fields of kernel structures sit: globals that the agent sets from
//! the running kernel's BTF before loading, so that the verifier knows them and
//! the pointers stay typed. Must not: hold a number of its own.

use core::mem::MaybeUninit;

use aya_ebpf::{Global, helpers::generated::bpf_probe_read_kernel};

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
    OFF_TASK_PID,
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

/// A structure of the kernel, by how its fields can be had.
pub trait Fields {
    /// A field of it.
    fn load<T: Copy>(&self, offset: &Global<u64>) -> T;
    /// A field of what one of its pointers leads to.
    fn load_behind<T: Copy>(&self, pointer: &Global<u64>, offset: &Global<u64>) -> T;
}

/// A structure whose type the verifier knows: an argument of a hook, and what it
/// points to.
pub struct Pointer(pub *const u8);

impl Fields for Pointer {
    #[inline(always)]
    fn load<T: Copy>(&self, offset: &Global<u64>) -> T {
        Typed::load(self.0, offset)
    }

    #[inline(always)]
    fn load_behind<T: Copy>(&self, pointer: &Global<u64>, offset: &Global<u64>) -> T {
        Typed::load(Typed::load(self.0, pointer), offset)
    }
}

/// Room for the first bytes of a structure. A place of its own, so that they are
/// never moved: the stack has 512 bytes.
#[repr(C, align(8))]
pub struct Room<const BYTES: usize>([MaybeUninit<u8>; BYTES]);

impl<const BYTES: usize> Room<BYTES> {
    /// Room with nothing in it.
    #[inline(always)]
    pub const fn new() -> Self {
        Self([const { MaybeUninit::uninit() }; BYTES])
    }

    /// Copies what lies at `at`; zeros if that cannot be read.
    #[inline(always)]
    pub fn copy(&mut self, at: *const u8) -> Copied<'_, BYTES> {
        // SAFETY: the helper checks the address, writes `BYTES` bytes and zeroes
        // what it cannot read.
        unsafe {
            bpf_probe_read_kernel(self.0.as_mut_ptr().cast(), BYTES as u32, at.cast());
        }
        Copied { at, bytes: self }
    }
}

/// A structure that was found in memory, where each field would cost a call: its
/// first bytes were copied at once.
pub struct Copied<'a, const BYTES: usize> {
    at: *const u8,
    bytes: &'a Room<BYTES>,
}

impl<const BYTES: usize> Fields for Copied<'_, BYTES> {
    /// From the copy, if it reaches that far. The verifier knows the offset, so
    /// that one way is left of the two.
    #[inline(always)]
    fn load<T: Copy>(&self, offset: &Global<u64>) -> T {
        let offset = offset.load() as usize;
        if offset > BYTES - size_of::<T>() {
            return read(self.at.wrapping_add(offset).cast());
        }
        // SAFETY: the field lies within the copy, all of which was written; every
        // `T` here is a number or a pointer, for which any bits are valid.
        unsafe {
            core::ptr::read_volatile(self.bytes.0.as_ptr().cast::<u8>().add(offset).cast::<T>())
        }
    }

    #[inline(always)]
    fn load_behind<T: Copy>(&self, pointer: &Global<u64>, offset: &Global<u64>) -> T {
        Probed::load(self.load(pointer), offset)
    }
}
