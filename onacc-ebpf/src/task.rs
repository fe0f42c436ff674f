//! Who opens: the current thread, its identity and its descent.
//!
//! Must not: follow a pointer for which the verifier has no type, or walk
//! without a bound.

use aya_ebpf::helpers::generated::bpf_get_current_task_btf;

use crate::layout::{
    Load, OFF_CRED_EUID, OFF_TASK_CRED, OFF_TASK_PARENT, OFF_TASK_PID, OFF_TASK_START,
    OFF_TASK_TGID, Probed, Typed,
};

/// Processes above the opener that are looked at.
const MAX_ANCESTORS: usize = 12;

/// The current thread's `task_struct`, typed.
#[inline(always)]
pub fn current() -> *const u8 {
    // SAFETY: the helper takes nothing and returns the current task.
    unsafe { bpf_get_current_task_btf() }.cast_const().cast()
}

/// The thread's id, as the first pid namespace numbers it.
#[inline(always)]
pub fn thread() -> u32 {
    Typed::load(current(), &OFF_TASK_PID)
}

/// The id of its process, likewise.
#[inline(always)]
pub fn process() -> u32 {
    Typed::load(current(), &OFF_TASK_TGID)
}

/// The current thread's effective uid in the first user namespace.
#[inline(always)]
pub fn euid() -> u32 {
    let cred: *const u8 = Typed::load(current(), &OFF_TASK_CRED);
    Typed::load(cred, &OFF_CRED_EUID)
}

/// When the current thread started.
#[inline(always)]
pub fn started() -> u64 {
    Typed::load(current(), &OFF_TASK_START)
}

/// Whether one of the processes above the current one is as `wanted`.
#[inline(always)]
pub fn descends_from(wanted: impl Fn(u32) -> bool) -> bool {
    let mut task = current();
    for _ in 0..MAX_ANCESTORS {
        // Probed: a parent that ends meanwhile must cost no more than a zero.
        let parent: *const u8 = Probed::load(task, &OFF_TASK_PARENT);
        if parent.is_null() {
            return false;
        }
        let process: u32 = Probed::load(parent, &OFF_TASK_TGID);
        if wanted(process) {
            return true;
        }
        if process <= 1 {
            return false;
        }
        task = parent;
    }
    false
}
