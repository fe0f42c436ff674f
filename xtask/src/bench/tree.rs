//! A tree of many directories, with EICAR in some of them.
//!
//! Owns: its shape. Tested below.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::{
    bench::stage::{probe, rest},
    shell::Result,
};

/// Sub-directories of a directory.
const FAN: usize = 10;
/// How many directories have a file that agents must refuse.
const PROBES: usize = 16;

/// The tree.
pub struct Tree {
    /// Its first directory.
    pub root: PathBuf,
    /// Files with EICAR, spread over the tree; the last is in the last directory.
    pub probes: Vec<PathBuf>,
}

impl Tree {
    /// Makes a tree of exactly this many directories, the root included.
    pub fn grow(root: &Path, count: usize) -> Result<Self> {
        let fail = |error| format!("a tree in {}: {error}", root.display());
        let mut paths = vec![root.to_path_buf()];
        fs::create_dir(root).map_err(fail)?;
        for n in 1..count {
            let path = paths[(n - 1) / FAN].join(format!("directory-{n}"));
            fs::create_dir(&path).map_err(fail)?;
            paths.push(path);
        }
        let probes = (1..=PROBES)
            .map(|n| probe(&paths[(count * n / PROBES).saturating_sub(1)].join("eicar.com")))
            .collect::<Result<_>>()?;
        rest(root)?;
        Ok(Self {
            root: root.to_path_buf(),
            probes,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directories_in(path: &Path) -> usize {
        fs::read_dir(path)
            .unwrap()
            .flatten()
            .filter(|entry| entry.path().is_dir())
            .map(|entry| directories_in(&entry.path()))
            .sum::<usize>()
            + 1
    }

    #[test]
    fn a_tree_has_exactly_as_many_directories_as_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let tree = Tree::grow(&dir.path().join("tree"), 123).unwrap();
        assert_eq!(directories_in(&tree.root), 123);
        assert_eq!(tree.probes.len(), PROBES);
        assert!(tree.probes.iter().all(|probe| probe.is_file()));
        assert!(tree.probes[PROBES - 1].starts_with(&tree.root));
    }
}
