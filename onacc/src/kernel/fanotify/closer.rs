//! Closes files whose `close(2)` may hang.
//!
//! On FUSE each close waits for the server (`FUSE_FLUSH`), and no signal ends that
//! wait: whoever closes such a file must be nobody that others wait for. Owns: one
//! thread for each group of such a filesystem. Must not: keep fds beyond those
//! that the group's own budget allows. Tested by `tests/`.

use std::sync::mpsc::{Sender, channel};

use super::pending::HeldFd;
use crate::kernel::{SyscallError, process};

/// How to have a file closed. The thread ends with the last of these.
#[derive(Clone, Debug)]
pub(super) struct Closer(Sender<HeldFd>);

impl Closer {
    /// Starts the thread; it is never joined, for it may hang.
    pub(super) fn start() -> Result<Self, SyscallError> {
        let (sender, files) = channel::<HeldFd>();
        process::spawn("onacc-closer", move || files.into_iter().for_each(drop))?;
        Ok(Self(sender))
    }

    /// Has it closed, some time.
    pub(super) fn close(&self, file: HeldFd) {
        // Without the thread it is closed here: the error holds the file.
        drop(self.0.send(file));
    }
}
