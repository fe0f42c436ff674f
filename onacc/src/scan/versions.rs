//! Which file is being scanned by which job, so that one scan serves all its
//! openers. Pure.
//!
//! Must not: let an opener join a scan that may have read other bytes than the
//! opener will.

use std::collections::HashMap;

use onacc_common::InodeKey;

use crate::kernel::file::FileStat;
use crate::policy::stamps;

/// What a scan began with, if its verdict can be kept.
#[derive(Clone, Copy, Debug)]
pub struct Began {
    /// The file, without writers.
    pub stat: FileStat,
    /// The number of the signature database.
    pub generation: u64,
    /// Where stores are told by the writers' closes, not by the stamps: how many there
    /// were ([`VerdictCache::closes`](crate::policy::VerdictCache::closes)). Nobody may
    /// join then.
    pub closes: Option<u64>,
}

/// What is known of a scan under way.
#[derive(Clone, Copy, Debug)]
struct Running {
    token: u64,
    began: Option<Began>,
}

/// The jobs by their file.
#[derive(Debug, Default)]
pub struct Versions {
    by_key: HashMap<InodeKey, Running>,
}

impl Versions {
    /// The job that this opener may join. `waits` says of a job whether it has
    /// not been sent yet: then it reads the file after this opener opened it.
    pub fn find(&self, stat: &FileStat, waits: impl FnOnce(u64) -> bool) -> Option<u64> {
        let running = self.by_key.get(&stat.key)?;
        let same = running
            .began
            .is_some_and(|began| began.closes.is_none() && stamps::same_version(stat, &began.stat));
        (same || waits(running.token)).then_some(running.token)
    }

    /// A job for this file is in the book. The latest one counts.
    pub fn enter(&mut self, key: InodeKey, token: u64) {
        let running = Running { token, began: None };
        self.by_key.insert(key, running);
    }

    /// The job was sent.
    pub fn sent(&mut self, key: InodeKey, token: u64, began: Option<Began>) {
        if let Some(running) = self.by_key.get_mut(&key)
            && running.token == token
        {
            running.began = began;
        }
    }

    /// The job is out of the book. What was known of it when its scan began, if
    /// its verdict can be kept.
    pub fn leave(&mut self, key: InodeKey, token: u64) -> Option<Began> {
        let running = self.by_key.get(&key)?;
        if running.token != token {
            return None;
        }
        self.by_key.remove(&key)?.began
    }

    /// How many files are in the book.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.by_key.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use onacc_common::ChangeTime;

    fn stat(changed: i64) -> FileStat {
        FileStat {
            key: InodeKey::new(8, 1, 5),
            size: 3,
            modified: 0,
            changed: ChangeTime::new(changed, 1),
            mount: 1,
            regular: true,
            links: 1,
        }
    }

    #[test]
    fn a_waiting_job_may_be_joined_and_a_running_one_only_if_steady() {
        let mut versions = Versions::default();
        assert_eq!(versions.find(&stat(1), |_| true), None);
        versions.enter(stat(1).key, 7);
        assert_eq!(versions.find(&stat(2), |_| true), Some(7));
        assert_eq!(versions.find(&stat(1), |_| false), None);
        let began = Began {
            stat: stat(1),
            generation: 0,
            closes: None,
        };
        versions.sent(stat(1).key, 7, Some(began));
        assert_eq!(versions.find(&stat(1), |_| false), Some(7));
        assert_eq!(versions.find(&stat(2), |_| false), None);
        let closes = Some(0);
        versions.sent(stat(1).key, 7, Some(Began { closes, ..began }));
        assert_eq!(versions.find(&stat(1), |_| false), None);
        versions.sent(stat(1).key, 7, None);
        assert_eq!(versions.find(&stat(1), |_| false), None);
    }

    #[test]
    fn an_old_job_that_leaves_does_not_take_the_new_one_along() {
        let mut versions = Versions::default();
        versions.enter(stat(1).key, 7);
        versions.enter(stat(1).key, 8);
        versions.leave(stat(1).key, 7);
        assert_eq!(versions.find(&stat(1), |_| true), Some(8));
        versions.leave(stat(1).key, 8);
        assert_eq!(versions.len(), 0);
    }
}
