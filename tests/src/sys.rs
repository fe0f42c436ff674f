//! The kit's system calls that need unsafe code.
//!
//! Owns: every `unsafe` of this crate. Must not: hold logic of the tests.
//! Tested through the modules that use it.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::process::CommandExt,
    },
    process::Command,
    ptr::NonNull,
};

use nix::{
    sys::{
        mman::{MapFlags, ProtFlags, mmap, munmap},
        prctl,
        resource::{Resource, setrlimit},
        signal::{SigSet, Signal},
    },
    unistd::{Pid, getppid},
};

/// Makes the child die, by SIGKILL, with the thread that starts it, and lets it
/// start with no signal blocked.
pub fn die_with_parent(command: &mut Command) -> &mut Command {
    let parent = Pid::this();
    // SAFETY: between fork and exec only async-signal-safe system calls run:
    // prctl, getppid and sigmask; nothing allocates and no lock is taken.
    unsafe {
        command.pre_exec(move || {
            prctl::set_pdeathsig(Signal::SIGKILL)?;
            SigSet::empty().thread_set_mask()?;
            if getppid() == parent {
                Ok(())
            } else {
                Err(io::Error::from_raw_os_error(libc::ESRCH))
            }
        })
    }
}

/// Whether the kernel tells which file lies beneath this one of an overlay.
pub fn overlay_tells_what_is_beneath(file: &File) -> bool {
    const AT_HANDLE_FID: libc::c_int = 0x200;
    // struct file_handle with room for 120 bytes.
    let mut handle = [0u32; 32];
    handle[0] = 120;
    let mut mount: libc::c_int = 0;
    // SAFETY: the handle says truly how many bytes follow its two fields; path
    // and mount id are live.
    let result = unsafe {
        libc::name_to_handle_at(
            file.as_raw_fd(),
            c"".as_ptr(),
            handle.as_mut_ptr().cast(),
            &raw mut mount,
            libc::AT_EMPTY_PATH | AT_HANDLE_FID,
        )
    };
    result == 0
}

/// Makes the calling thread, and no other, one of the given user: user and
/// group ids, no further groups, no capabilities. There is no way back.
pub fn become_user_on_this_thread(uid: u32, gid: u32) -> io::Result<()> {
    let checked = |result: libc::c_long| {
        if result == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    };
    // The raw calls: glibc's wrappers would change every thread of the process.
    // SAFETY: setgroups with a count of zero reads no memory.
    checked(unsafe { libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<libc::gid_t>()) })?;
    // SAFETY: plain numbers.
    checked(unsafe { libc::syscall(libc::SYS_setresgid, gid, gid, gid) })?;
    // SAFETY: plain numbers.
    checked(unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) })
}

/// Gives the calling thread, and no other, this effective uid; its real and
/// saved uids stay, and with them the way back.
pub fn set_effective_uid_on_this_thread(uid: u32) -> io::Result<()> {
    // The raw call: glibc's wrapper would change every thread of the process.
    // SAFETY: plain numbers.
    let result = unsafe { libc::syscall(libc::SYS_setresuid, -1, uid, -1) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Lets the child have this many open files at most, for good.
pub fn limit_open_files(command: &mut Command, limit: u64) -> &mut Command {
    // SAFETY: between fork and exec only setrlimit runs, which is
    // async-signal-safe; nothing allocates and no lock is taken.
    unsafe {
        command.pre_exec(move || {
            setrlimit(Resource::RLIMIT_NOFILE, limit, limit)?;
            Ok(())
        })
    }
}

/// A hold on one process that a reused id cannot redirect.
#[derive(Debug)]
pub struct PidFd(OwnedFd);

impl PidFd {
    /// Takes hold of the process with this id.
    pub fn open(pid: u32) -> io::Result<Self> {
        let pid = libc::pid_t::try_from(pid).map_err(io::Error::other)?;
        // SAFETY: plain numbers.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        let fd = RawFd::try_from(fd).map_err(io::Error::other)?;
        Ok(Self(own(fd)))
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        // SAFETY: the fd is ours and open; a null siginfo is allowed.
        let result = unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.0.as_raw_fd(),
                signal as libc::c_int,
                std::ptr::null::<libc::siginfo_t>(),
                0,
            )
        };
        if result == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }

    /// The descriptor: readable once the process has ended.
    pub fn fd(&self) -> &OwnedFd {
        &self.0
    }
}

/// Takes ownership of a descriptor that the kernel has just given us.
pub(crate) fn own(fd: RawFd) -> OwnedFd {
    // SAFETY: callers pass a descriptor that a system call has just created for
    // them and that nothing else owns.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// A file mapped for shared reading and writing.
#[derive(Debug)]
pub struct SharedMapping {
    start: NonNull<libc::c_void>,
    length: usize,
}

impl SharedMapping {
    /// Maps the whole of a file that is open for reading and writing.
    pub fn of(file: &File) -> io::Result<Self> {
        let length = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
        let size = std::num::NonZeroUsize::new(length)
            .ok_or_else(|| io::Error::other("an empty file cannot be mapped"))?;
        // SAFETY: the kernel chooses the place, so no other memory is replaced.
        let start = unsafe {
            mmap(
                None,
                size,
                ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
                MapFlags::MAP_SHARED,
                file,
                0,
            )
        }?;
        Ok(Self { start, length })
    }

    /// Loads one byte through the mapping, so that its page is there.
    pub fn load(&self, offset: usize) -> u8 {
        assert!(
            offset < self.length,
            "the byte to load lies within the mapping"
        );
        // SAFETY: the byte lies within the mapping (checked above); a file cut
        // meanwhile would raise SIGBUS, no more.
        unsafe { self.start.as_ptr().cast::<u8>().add(offset).read_volatile() }
    }

    /// Stores bytes through the mapping: the kernel raises no event for that.
    pub fn store(&mut self, offset: usize, bytes: &[u8]) {
        assert!(
            offset + bytes.len() <= self.length,
            "the store lies within the mapping"
        );
        // SAFETY: the range lies within the mapping (checked above), which this
        // value alone owns; a file cut meanwhile would raise SIGBUS, no more.
        unsafe {
            let to = self.start.as_ptr().cast::<u8>().add(offset);
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len());
        }
    }
}

impl Drop for SharedMapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and no reference into it exists.
        let _ = unsafe { munmap(self.start, self.length) };
    }
}
