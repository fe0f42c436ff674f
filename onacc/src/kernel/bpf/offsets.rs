//! Which kernel fields the programs need, and where they are.
//!
//! Fields change their names between kernels; all names that are known are
//! tried, and a field that is not found turns off what needs it, by name. Must
//! not: guess. Tested here on the running kernel.

use onacc_common::globals;

use crate::kernel::btf::{Btf, BtfError};

/// Globals and their values.
pub type Offsets = Vec<(&'static str, u64)>;

/// For the hook on dirtied inodes.
///
/// # Errors
/// A field is missing.
pub fn of_inodes(btf: &Btf<'_>) -> Result<Offsets, BtfError> {
    let ctime = |field: &'static str, flat: &'static str| {
        btf.offset_of_any(
            "inode",
            &[&[flat], &["__i_ctime", field], &["i_ctime", field]],
        )
    };
    Ok(vec![
        (globals::INODE_SB, btf.offset("inode", &["i_sb"])?),
        (globals::INODE_INO, btf.offset("inode", &["i_ino"])?),
        (globals::INODE_CTIME_SEC, ctime("tv_sec", "i_ctime_sec")?),
        (globals::INODE_CTIME_NSEC, ctime("tv_nsec", "i_ctime_nsec")?),
        (globals::SB_DEV, btf.offset("super_block", &["s_dev"])?),
    ])
}

/// For the hooks on opens, besides those.
///
/// # Errors
/// A field is missing.
pub fn of_opens(btf: &Btf<'_>) -> Result<Offsets, BtfError> {
    let dentry = btf.offset_of_any("file", &[&["f_path", "dentry"], &["__f_path", "dentry"]])?;
    let name = |field: &'static str| {
        btf.offset_of_any("dentry", &[&["d_name", field], &["__d_name", field]])
    };
    Ok(vec![
        (globals::INODE_MODE, btf.offset("inode", &["i_mode"])?),
        (globals::INODE_SIZE, btf.offset("inode", &["i_size"])?),
        (
            globals::INODE_GENERATION,
            btf.offset("inode", &["i_generation"])?,
        ),
        (globals::FILE_INODE, btf.offset("file", &["f_inode"])?),
        (globals::FILE_DENTRY, dentry),
        (globals::FILE_FLAGS, btf.offset("file", &["f_flags"])?),
        (globals::FILE_MODE, btf.offset("file", &["f_mode"])?),
        (globals::DENTRY_PARENT, btf.offset("dentry", &["d_parent"])?),
        (globals::DENTRY_INODE, btf.offset("dentry", &["d_inode"])?),
        (globals::DENTRY_NAME, name("name")?),
        (globals::DENTRY_NAME_LEN, name("len")?),
        (globals::TASK_CRED, btf.offset("task_struct", &["cred"])?),
        (globals::CRED_EUID, btf.offset("cred", &["euid"])?),
        (
            globals::TASK_PARENT,
            btf.offset("task_struct", &["real_parent"])?,
        ),
        (globals::TASK_PID, btf.offset("task_struct", &["pid"])?),
        (globals::TASK_TGID, btf.offset("task_struct", &["tgid"])?),
        (
            globals::TASK_START,
            btf.offset_of_any("task_struct", &[&["start_boottime"], &["real_start_time"]])?,
        ),
    ])
}

/// For the hooks on system calls, besides those.
///
/// # Errors
/// A field is missing.
pub fn of_syscalls(btf: &Btf<'_>) -> Result<Offsets, BtfError> {
    Ok(vec![
        (globals::TASK_FILES, btf.offset("task_struct", &["files"])?),
        (globals::FILES_FDT, btf.offset("files_struct", &["fdt"])?),
        (globals::FDT_FD, btf.offset("fdtable", &["fd"])?),
        (
            globals::REGS_NUMBER,
            btf.offset_of_any("pt_regs", &[&["orig_ax"], &["syscallno"]])?,
        ),
        (globals::BPRM_FILE, btf.offset("linux_binprm", &["file"])?),
    ])
}

/// Numbers of the system calls that open a file; `u32::MAX` where an
/// architecture has none of that name.
pub const OPEN_CALLS: [u32; 5] = {
    #[cfg(target_arch = "x86_64")]
    let (open, creat) = (libc::SYS_open, libc::SYS_creat);
    #[cfg(not(target_arch = "x86_64"))]
    let (open, creat) = (-1, -1);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "system calls have small numbers; -1 is meant to become u32::MAX"
    )]
    [
        libc::SYS_openat as u32,
        libc::SYS_openat2 as u32,
        libc::SYS_open_by_handle_at as u32,
        open as u32,
        creat as u32,
    ]
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_running_kernel_has_all_fields() {
        let Ok(bytes) = std::fs::read("/sys/kernel/btf/vmlinux") else {
            println!("SKIPPED: no BTF on this kernel");
            return;
        };
        let btf = Btf::parse(&bytes).unwrap();
        let mut all = of_inodes(&btf).unwrap();
        all.extend(of_opens(&btf).unwrap());
        all.extend(of_syscalls(&btf).unwrap());
        let names: std::collections::HashSet<_> = all.iter().map(|(name, _)| name).collect();
        assert_eq!(names.len(), all.len(), "each global once");
        assert!(all.iter().all(|(_, offset)| *offset < 16_384));
    }
}
