//! Whether the kernel takes programs of a kind at all.
//!
//! Loading a tier with its maps takes milliseconds, a program of two
//! instructions takes microseconds: a tier that is refused as such costs
//! start-up nothing. Must not: attach anything, or call a tier granted because
//! its probe is (`load` tries). Tested here on the running kernel.

use std::ffi::CStr;
use std::io;
use std::os::fd::{FromRawFd as _, OwnedFd, RawFd};

use super::load::OpenTier;
use crate::kernel::btf::{Btf, Named};

/// `BPF_PROG_LOAD` and what it takes (include/uapi/linux/bpf.h).
const BPF_PROG_LOAD: libc::c_int = 5;
const PROG_TYPE_TRACING: u32 = 26;
const PROG_TYPE_LSM: u32 = 29;
const TRACE_FENTRY: u32 = 24;
const LSM_MAC: u32 = 27;
/// `r0 = 0; exit`.
const INSTRUCTIONS: [u64; 2] = [0xb7, 0x95];
const LICENSE: &CStr = c"GPL";

/// `union bpf_attr` for `BPF_PROG_LOAD`, as far as it is used.
#[repr(C)]
#[derive(Default)]
struct LoadAttributes {
    prog_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buffer: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    expected_attach_type: u32,
    btf_fd: u32,
    function_record_size: u32,
    functions: u64,
    function_count: u32,
    line_record_size: u32,
    lines: u64,
    line_count: u32,
    attach_btf_id: u32,
}

/// The kernel's refusal of all programs of this tier. `None`: it takes one, or
/// cannot be asked like this.
pub fn refusal(tier: OpenTier, btf: &Btf<'_>) -> Option<io::Error> {
    let (prog_type, expected_attach_type, hook) = match tier {
        OpenTier::Lsm => (PROG_TYPE_LSM, LSM_MAC, "bpf_lsm_file_open"),
        OpenTier::Fentry => (PROG_TYPE_TRACING, TRACE_FENTRY, "security_file_open"),
        OpenTier::Tracepoint => return None,
    };
    let attach_btf_id = btf.id_of(hook, Named::Function)?;
    let error = load(&LoadAttributes {
        prog_type,
        instruction_count: 2,
        instructions: INSTRUCTIONS.as_ptr().addr() as u64,
        license: LICENSE.as_ptr().addr() as u64,
        expected_attach_type,
        attach_btf_id,
        ..LoadAttributes::default()
    })
    .err()?;
    // Others (a signal, no memory) say nothing about the kind.
    let refused = matches!(error.raw_os_error(), Some(libc::EPERM | libc::EACCES));
    refused.then_some(error)
}

fn load(attributes: &LoadAttributes) -> io::Result<OwnedFd> {
    // SAFETY: the attributes are a live prefix of `union bpf_attr`, whose rest the
    // kernel takes for zero; what they point to is static; nothing is written.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_LOAD,
            std::ptr::from_ref(attributes),
            size_of::<LoadAttributes>(),
        )
    };
    match RawFd::try_from(fd) {
        // SAFETY: the kernel just gave this fd to us alone.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::bpf::Request;
    use crate::kernel::bpf::load::unprobed;
    use onacc_common::wants;

    /// What a probe refuses, loading refuses: no tier is lost by it.
    #[test]
    fn a_refused_tier_is_not_in_force() {
        let Ok(bytes) = std::fs::read("/sys/kernel/btf/vmlinux") else {
            println!("SKIPPED: no BTF on this kernel");
            return;
        };
        let btf = Btf::parse(&bytes).unwrap();
        for (tier, wanted) in [
            (OpenTier::Lsm, wants::DENY),
            (OpenTier::Fentry, wants::WRITES),
        ] {
            let refused = refusal(tier, &btf);
            let request = Request {
                capacity: 16,
                filesystems: 16,
                records: 4096,
                wants: wanted,
                excluded: 16,
            };
            let granted = unprobed(&request, tier).is_ok();
            println!("{tier}: probe {refused:?}, loading granted: {granted}");
            assert!(refused.is_none() || !granted, "{tier}");
        }
        assert!(refusal(OpenTier::Tracepoint, &btf).is_none());
    }
}
