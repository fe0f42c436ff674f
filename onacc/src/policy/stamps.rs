//! What the stamps of a file say about its bytes. Pure; tested here.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use onacc_common::ChangeTime;

use crate::kernel::file::FileStat;

/// Whether a file holds the bytes that it held when `scanned` was taken. ctime
/// cannot be set by any call; the others cost nothing more.
pub fn same_version(now: &FileStat, scanned: &FileStat) -> bool {
    now.key == scanned.key
        && now.changed == scanned.changed
        && now.modified == scanned.modified
        && now.size == scanned.size
}

/// Whether a change right now could leave the ctime as it is: stamps have the
/// granularity of the clock tick (10 ms at most), of whole seconds on inodes
/// without room for more.
pub fn is_young(changed: ChangeTime, now: SystemTime) -> bool {
    let granularity = if changed.nsec == 0 {
        Duration::from_millis(2100)
    } else {
        Duration::from_millis(30)
    };
    let (Ok(now), Ok(sec)) = (now.duration_since(UNIX_EPOCH), u64::try_from(changed.sec)) else {
        return true;
    };
    let changed = Duration::new(sec, changed.nsec);
    // A stamp of the future is young: the clock was set back.
    now.checked_sub(changed)
        .is_none_or(|age| age <= granularity)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn young_means_that_a_change_could_go_unseen() {
        let now = UNIX_EPOCH + Duration::from_secs(1000);
        let at = |sec, nsec| ChangeTime::new(sec, nsec);
        assert!(is_young(at(999, 990_000_000), now));
        assert!(!is_young(at(999, 900_000_000), now));
        assert!(is_young(at(998, 0), now), "whole seconds");
        assert!(!is_young(at(997, 0), now));
        assert!(is_young(at(1001, 5), now), "the future");
        assert!(is_young(at(-5, 5), now), "before the epoch");
    }
}
