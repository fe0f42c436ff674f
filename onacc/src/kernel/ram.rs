//! How much memory there is for this process: the machine's, or less by its
//! control group.
//!
//! Must not: fail. What cannot be read does not limit. Tested here.

use std::fs;
use std::path::{Path, PathBuf};

/// Where the hierarchy of control groups (version 2) usually is.
const GROUPS: &str = "/sys/fs/cgroup";

/// Bytes of memory that this process can have at most.
pub fn available() -> u64 {
    let machine = nix::sys::sysinfo::sysinfo().map_or(u64::MAX, |info| info.ram_total());
    machine.min(of_group().unwrap_or(u64::MAX))
}

/// The least limit of the process's control group and those above it.
fn of_group() -> Option<u64> {
    let text = fs::read_to_string("/proc/self/cgroup").ok()?;
    let group = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
    least_limit(Path::new(GROUPS), group)
}

fn least_limit(root: &Path, group: &str) -> Option<u64> {
    let mut dir: PathBuf = root.join(group);
    let mut least = None;
    while dir.starts_with(root) {
        let limit = fs::read_to_string(dir.join("memory.max")).ok();
        // "max" is no number.
        let limit = limit.and_then(|text| text.trim().parse::<u64>().ok());
        least = least.into_iter().chain(limit).min();
        if !dir.pop() {
            break;
        }
    }
    least
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_limit_on_the_way_up_counts() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("a/b");
        fs::create_dir_all(&dir).unwrap();
        let limit = |dir: &str, text: &str| {
            fs::write(root.path().join(dir).join("memory.max"), text).unwrap();
        };
        assert_eq!(least_limit(root.path(), "a/b"), None);
        limit("a/b", "max\n");
        assert_eq!(least_limit(root.path(), "a/b"), None);
        limit("a", "4096\n");
        assert_eq!(least_limit(root.path(), "a/b"), Some(4096));
        limit("a/b", "8192\n");
        assert_eq!(least_limit(root.path(), "a/b"), Some(4096));
        limit("a/b", "1024\n");
        assert_eq!(least_limit(root.path(), "a/b"), Some(1024));
        assert_eq!(least_limit(root.path(), "not/there"), None);
    }

    #[test]
    fn there_is_some() {
        assert!((1 << 20..u64::MAX).contains(&available()));
    }
}
