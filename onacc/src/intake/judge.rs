//! The judgement of an opened file, the same for the reader and the feed: by what
//! it is, where it is, what is known of it, and last by who opened it.
//!
//! Must not: wait for anything (invariant 2; the reader is what openers wait
//! for). Tested by `tests/`.

use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use super::place::Placer;
use crate::kernel::fanotify::{EventFile, FdBudget, PendingEvent, WriterProbe};
use crate::kernel::file::{self, FileStat};
use crate::kernel::mounts::Mount;
use crate::kernel::overlay;
use crate::policy::{Hold, Policy, Unscanned, Verdict, VerdictCache, lock};
use crate::scan::{ScanJob, Urgency};

/// What a verdict is about.
#[derive(Debug)]
pub struct Subject {
    /// The file as it is before anything of it is scanned.
    pub stat: FileStat,
    /// The file beneath, of which `stat` speaks then.
    beneath: Option<EventFile>,
}

/// What comes of an open.
#[derive(Debug)]
pub enum Judged {
    /// It goes on without a scan.
    Unscanned(Unscanned),
    /// The verdict on this very version is known.
    Known(Subject, Verdict),
    /// It has to be scanned.
    Scan(Subject),
}

/// What is judged by.
pub struct Judge<'a> {
    /// Rules, scope, mounts.
    pub policy: &'a Policy,
    /// Finds the place; holds the path afterwards.
    pub placer: &'a mut Placer,
    /// Verdicts that still hold.
    pub verdicts: &'a Mutex<VerdictCache>,
    /// For the fd of a file beneath an overlay's.
    pub budget: &'a Arc<FdBudget>,
    /// Asked where a verdict holds only without writers; none: such are not used.
    pub writers: Option<&'a WriterProbe>,
}

impl Judge<'_> {
    /// Judges an open. `left_out` is asked who opened it, only if the file is not
    /// known to be clean, and before one that is known to be infected is refused.
    #[inline]
    pub fn opened(
        &mut self,
        file: BorrowedFd<'_>,
        stat: FileStat,
        left_out: impl FnOnce() -> Option<Unscanned>,
    ) -> Judged {
        if let Some(reason) = self.by_file_and_place(file, &stat) {
            return Judged::Unscanned(reason);
        }
        let subject = self.subject(file, stat);
        let known = lock(self.verdicts).get(&subject.stat).cloned();
        let known = known.filter(|_| self.holds(file, &subject));
        if known != Some(Verdict::Clean)
            && let Some(reason) = left_out()
        {
            return Judged::Unscanned(reason);
        }
        match known {
            Some(verdict) => Judged::Known(subject, verdict),
            None => Judged::Scan(subject),
        }
    }

    /// Judges a close after writing: whatever was known does not hold any more.
    #[inline]
    pub fn written(
        &mut self,
        file: BorrowedFd<'_>,
        stat: FileStat,
        left_out: impl FnOnce() -> Option<Unscanned>,
    ) -> Judged {
        let reason = self.by_file_and_place(file, &stat).or_else(left_out);
        reason.map_or(
            Judged::Scan(Subject {
                stat,
                beneath: None,
            }),
            Judged::Unscanned,
        )
    }

    /// Whether what is known of a file holds now.
    fn holds(&self, file: BorrowedFd<'_>, subject: &Subject) -> bool {
        if subject.beneath.is_some() || self.policy.hold(&subject.stat) != Hold::NoWriters {
            return true;
        }
        let asked = self
            .writers
            .map(|writers| writers.has_writers_by_path(file));
        matches!(asked, Some(Ok(false)))
    }

    fn by_file_and_place(&mut self, file: BorrowedFd<'_>, stat: &FileStat) -> Option<Unscanned> {
        let by_file = self.policy.by_file(stat);
        by_file.or_else(|| self.placer.judge(self.policy, file, stat))
    }

    /// Of a file on an overlay: the file beneath, where that is certain. One
    /// verdict then serves both, and all overlays that share a layer.
    fn subject(&self, file: BorrowedFd<'_>, stat: FileStat) -> Subject {
        let shown = Subject {
            stat,
            beneath: None,
        };
        let layers = self.policy.layers(&stat);
        if layers.is_empty() {
            return shown;
        }
        let mut filesystems: Vec<&Mount> = layers
            .iter()
            .filter(|layer| layer.is_absolute())
            .filter_map(|layer| self.policy.mounts.mount_of(layer))
            .collect();
        filesystems.dedup_by_key(|mount| mount.dev);
        let roots = filesystems
            .iter()
            .filter_map(|mount| file::open_cached_directory(&mount.point).ok());
        let found = overlay::beneath(file, &stat, roots);
        // Its fd must not take the place of an event's.
        match (found, self.budget.try_take()) {
            (Some(beneath), Some(permit)) => Subject {
                stat: beneath.stat,
                beneath: Some(EventFile::new(beneath.file, permit)),
            },
            _ => shown,
        }
    }
}

impl Subject {
    /// Whether it may carry a clean mark. That of a file beneath comes with that
    /// file's own event.
    pub fn may_mark(&self, policy: &Policy) -> bool {
        self.beneath.is_none() && policy.may_mark(&self.stat)
    }

    /// The job of scanning it, for an event that came at `arrived`.
    pub fn into_job(
        self,
        policy: &Policy,
        (event, path): (PendingEvent, Vec<u8>),
        arrived: Instant,
    ) -> ScanJob {
        ScanJob {
            event,
            path,
            markable: self.may_mark(policy),
            hold: if self.beneath.is_some() {
                Hold::Stamps
            } else {
                policy.hold(&self.stat)
            },
            slow: self.beneath.is_none() && !policy.reads_at_once(&self.stat),
            stat: self.stat,
            beneath: self.beneath,
            arrived,
            urgency: Urgency::Opener,
            joined: Vec::new(),
        }
    }
}

/// The directory of a file that the kernel has told the path of.
pub fn directory_of(path: &[u8]) -> Option<&[u8]> {
    let slash = path.iter().rposition(|byte| *byte == b'/')?;
    Some(&path[..slash.max(1)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_in_the_root_has_the_root_as_its_directory() {
        assert_eq!(directory_of(b"/a/b"), Some(&b"/a"[..]));
        assert_eq!(directory_of(b"/a"), Some(&b"/"[..]));
        assert_eq!(directory_of(b""), None);
    }
}
