//! The names of a file, from itself up to its filesystem's root.
//!
//! Follows `d_parent`, not mounts: the place in the filesystem is the same by
//! whatever mount or mount namespace the file is opened. A rename on the way
//! gives a mixture of old and new names; the agent compares the inode. Must
//! not: walk or copy without a bound.

use aya_ebpf::helpers::generated::bpf_probe_read_kernel_str;
use onacc_common::opens::{MAX_LEVELS, MAX_NAMES, NAME_ROOM};

use crate::layout::{Load, OFF_DENTRY_NAME, OFF_DENTRY_NAME_LEN, OFF_DENTRY_PARENT, Probed};

/// How many bytes the names take, each with its NUL; `None` if they are too many.
#[inline(always)]
pub fn measure(dentry: *const u8) -> Option<usize> {
    let mut len = 0usize;
    let mut here = dentry;
    for _ in 0..MAX_LEVELS {
        let parent: *const u8 = Probed::load(here, &OFF_DENTRY_PARENT);
        if parent == here || parent.is_null() {
            return Some(len);
        }
        len += Probed::load::<u32>(here, &OFF_DENTRY_NAME_LEN) as usize + 1;
        if len > MAX_NAMES {
            return None;
        }
        here = parent;
    }
    None
}

/// Copies the names to `names`, which has room for `CAP` bytes and `NAME_ROOM`
/// behind them. Returns their length, and whether they reach the root.
///
/// # Safety
/// `names` must be writable for `CAP + NAME_ROOM` bytes.
#[inline(always)]
pub unsafe fn copy<const CAP: usize>(names: *mut u8, dentry: *const u8) -> (u32, bool) {
    let mut len = 0usize;
    let mut here = dentry;
    for _ in 0..MAX_LEVELS {
        let parent: *const u8 = Probed::load(here, &OFF_DENTRY_PARENT);
        if parent == here || parent.is_null() {
            return (len as u32, true);
        }
        if len >= CAP {
            break;
        }
        // VERIFIER: 6.1 forgets the bound where the compiler keeps `len` on the
        // stack; masked at the place of use it is known there (CAP is a power of
        // two). Volatile, or the compiler would find the mask superfluous.
        // SAFETY: a live number.
        let at = unsafe { core::ptr::read_volatile(&raw const len) } & (CAP - 1);
        let name: *const u8 = Probed::load(here, &OFF_DENTRY_NAME);
        // SAFETY: `at` is below CAP, so that NAME_ROOM bytes are there.
        let got = unsafe {
            bpf_probe_read_kernel_str(names.add(at).cast(), NAME_ROOM as u32, name.cast())
        };
        if got <= 1 || got > NAME_ROOM as i64 {
            break;
        }
        len += got as usize;
        here = parent;
    }
    (len as u32, false)
}
