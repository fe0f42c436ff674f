//! From a system call that returned a file descriptor to the file behind it.
//!
//! For the tier "tracepoint". By the time the program looks, another thread may
//! have closed the descriptor: then there is nothing to tell, or another file
//! is told, which is scanned as well.

use aya_ebpf::Global;

use crate::{
    layout::{Load, Typed, read},
    task,
};

/// `struct linux_binprm.file`
#[unsafe(no_mangle)]
pub static OFF_BPRM_FILE: Global<u64> = Global::new(0);
/// `struct pt_regs.orig_ax` or `.syscallno`
#[unsafe(no_mangle)]
static OFF_REGS_NUMBER: Global<u64> = Global::new(0);
/// `struct task_struct.files`
#[unsafe(no_mangle)]
static OFF_TASK_FILES: Global<u64> = Global::new(0);
/// `struct files_struct.fdt`
#[unsafe(no_mangle)]
static OFF_FILES_FDT: Global<u64> = Global::new(0);
/// `struct fdtable.fd`
#[unsafe(no_mangle)]
static OFF_FDT_FD: Global<u64> = Global::new(0);
/// Numbers of `openat`, `openat2`, `open_by_handle_at`, `open`, `creat`; those
/// that an architecture lacks are never met.
macro_rules! open_calls {
    ($($name:ident),+) => {
        $(
            #[unsafe(no_mangle)]
            static $name: Global<u32> = Global::new(u32::MAX);
        )+

        /// Whether a system call opens files.
        #[inline(always)]
        fn opens(number: u32) -> bool {
            $(number == $name.load())||+
        }
    };
}

open_calls!(
    OPEN_CALL_0,
    OPEN_CALL_1,
    OPEN_CALL_2,
    OPEN_CALL_3,
    OPEN_CALL_4
);

/// The `struct file` that the system call has opened.
#[inline(always)]
pub fn file_of(regs: *const u8, returned: i64) -> Option<*const u8> {
    let number: u64 = Typed::load(regs, &OFF_REGS_NUMBER);
    if !opens(number as u32) {
        return None;
    }
    if returned < 0 {
        return None;
    }
    let files: *const u8 = Typed::load(task::current(), &OFF_TASK_FILES);
    // A table only ever grows: the descriptor that was just returned is in it.
    let table: *const u8 = Typed::load(files, &OFF_FILES_FDT);
    let slots: *const u8 = Typed::load(table, &OFF_FDT_FD);
    let slot = slots.wrapping_add(returned as usize * size_of::<usize>());
    let file: *const u8 = read(slot.cast());
    (!file.is_null()).then_some(file)
}
