//! The filter plane's kernel half: the hooks of the tiers "fentry" and
//! "tracepoint". (`lsm.rs` has those of the tier "BPF LSM".)
//!
//! Owns: which kernel events reach the agent. Must not: know a kernel
//! structure's layout (offsets come from the running kernel's BTF, set by the
//! agent before loading) or hold logic of its own (that is in `onacc-common`,
//! tested on the host). Tested on the running kernel by `tests/`.
#![no_std]
#![no_main]

mod dirtied;
mod inode;
mod layout;
mod maps;
mod names;
mod object;
mod opens;
mod syscalls;
mod task;

use aya_ebpf::{
    macros::{btf_tracepoint, fentry},
    programs::{BtfTracePointContext, FEntryContext},
};

use crate::{
    layout::{Load, Typed},
    opens::{FileRoom, OfHook},
};

/// `security_file_open(struct file *file)` (security/security.c): every open
/// and execution, before fanotify sees it. For notify-only mode.
#[fentry(function = "security_file_open")]
pub fn file_told(ctx: FEntryContext) -> i32 {
    opens::told(&OfHook::from_hook(ctx.arg(0)));
    0
}

/// As above, for prevention mode.
#[fentry(function = "security_file_open")]
pub fn file_noted(ctx: FEntryContext) -> i32 {
    opens::noted(&OfHook::from_hook(ctx.arg(0)));
    0
}

/// `sys_exit(struct pt_regs *regs, long ret)` (include/trace/events/syscalls.h):
/// where neither LSM nor fentry is granted. Sees system calls alone: not what
/// the kernel opens by itself, nor io_uring.
#[btf_tracepoint(function = "sys_exit")]
pub fn syscall_ended(ctx: BtfTracePointContext) -> i32 {
    if let Some(file) = syscalls::file_of(ctx.arg(0), ctx.arg(1)) {
        opens::told(&FileRoom::new().copy(file));
    }
    0
}

/// `sched_process_exec(struct task_struct *p, pid_t old_pid, struct linux_binprm
/// *bprm)` (include/trace/events/sched.h): executions, for the same tier.
#[btf_tracepoint(function = "sched_process_exec")]
pub fn process_executed(ctx: BtfTracePointContext) -> i32 {
    let bprm: *const u8 = ctx.arg(2);
    let file: *const u8 = Typed::load(bprm, &syscalls::OFF_BPRM_FILE);
    opens::told(&OfHook::from_hook(file));
    0
}
