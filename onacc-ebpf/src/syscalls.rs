//! From a system call that returned a file descriptor to the file behind it.
//!
//! For the tier "tracepoint". By the time the program looks, another thread may
//! have closed the descriptor: then there is nothing to tell, or another file
//! is told, which is scanned as well.

use aya_ebpf::Global;

use crate::{
    layout::{Load, Probed, Typed, read},
    opens::File,
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
/// `struct fdtable.max_fds`
#[unsafe(no_mangle)]
static OFF_FDT_MAX: Global<u64> = Global::new(0);
/// Numbers of `openat`, `openat2`, `open_by_handle_at`, `open`, `creat`; those
/// that an architecture lacks are never met.
#[unsafe(no_mangle)]
static OPEN_CALLS: Global<[u32; 5]> = Global::new([u32::MAX; 5]);

/// The file that the system call has opened.
#[inline(always)]
pub fn file_of(regs: *const u8, returned: i64) -> Option<File<Probed>> {
    let number: u64 = Typed::load(regs, &OFF_REGS_NUMBER);
    let number = number as u32;
    let calls = OPEN_CALLS.load();
    if number != calls[0]
        && number != calls[1]
        && number != calls[2]
        && number != calls[3]
        && number != calls[4]
    {
        return None;
    }
    if returned < 0 {
        return None;
    }
    let files: *const u8 = Typed::load(task::current(), &OFF_TASK_FILES);
    let table: *const u8 = Probed::load(files, &OFF_FILES_FDT);
    if returned >= i64::from(Probed::load::<u32>(table, &OFF_FDT_MAX)) {
        return None;
    }
    let slots: *const u8 = Probed::load(table, &OFF_FDT_FD);
    let slot = slots.wrapping_add(returned as usize * size_of::<usize>());
    let file: *const u8 = read(slot.cast());
    (!file.is_null()).then(|| File::new(file))
}
