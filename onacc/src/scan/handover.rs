//! The way to the service: a job that can go at once is handed to clamd by whoever
//! brings it, at the service's desk; all else goes into its mailbox.
//!
//! On most machines to wake another thread costs more than to send a file. Must not:
//! wait for the service. Tested by `tests/`, `models/`.

use std::sync::Arc;

use super::service::Service;
use super::{ScanJob, Work};
use crate::kernel::desk::Desk;
use crate::kernel::wake::Mailbox;

/// The way to the service. Clones lead to the same one.
#[derive(Clone)]
pub struct Handover(Arc<Desk<Service, Work>>);

impl Handover {
    /// To the service that has this mailbox; until it runs, all goes there.
    pub fn new(mailbox: Mailbox<Work>) -> Self {
        Self(Arc::new(Desk::new(mailbox)))
    }

    /// Has a file scanned for an opener.
    pub fn scan(&self, job: ScanJob) {
        self.0.hand_over(job, Service::take_at_once);
    }

    /// Leaves something for the service.
    pub fn send(&self, work: Work) {
        self.0.mailbox().send(work);
    }

    /// Whether the service sleeps though it has something to do.
    pub fn is_overdue(&self) -> bool {
        let desk = &self.0;
        // Whoever is at the desk works.
        desk.look(Service::is_overdue).unwrap_or(false) || !desk.mailbox().is_empty()
    }

    pub(super) fn desk(&self) -> &Desk<Service, Work> {
        &self.0
    }
}
