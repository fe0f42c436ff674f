//! What `onacc::kernel` gives the files under test, in loom's terms.

#[path = "../../../onacc/src/kernel/fanotify/budget.rs"]
pub mod budget;
#[path = "../../../onacc/src/kernel/desk.rs"]
pub mod desk;
#[path = "../../../onacc/src/kernel/mailbox.rs"]
pub mod mailbox;
pub mod sync;
pub mod wake;

/// An eventfd that cannot be made. The modelled one always can.
#[derive(Debug, thiserror::Error)]
#[error("no fd left")]
pub struct SyscallError;
