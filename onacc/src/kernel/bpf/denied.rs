//! Infected inodes that the LSM programs refuse.
//!
//! An entry lives in the inode itself and dies with it. Must not: decide that a
//! file is infected.

use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, PoisonError};

use aya::Pod;
use aya::maps::{InodeStorage, MapData, MapError};
use onacc_common::DeniedInode;

#[repr(transparent)]
#[derive(Clone, Copy)]
pub(super) struct Value(pub DeniedInode);
// SAFETY: i64 and four u32, repr(C), no padding, any bits are valid.
unsafe impl Pod for Value {}

/// Names of signatures by their number; clones share them.
#[derive(Clone, Debug, Default)]
pub struct SignatureNames(Arc<Mutex<Vec<Arc<str>>>>);

impl SignatureNames {
    /// The number of a name; the same name has the same number.
    pub fn number(&self, name: &Arc<str>) -> u32 {
        let mut names = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let at = names.iter().position(|known| known == name);
        let at = at.unwrap_or_else(|| {
            names.push(Arc::clone(name));
            names.len() - 1
        });
        u32::try_from(at).unwrap_or(u32::MAX)
    }

    /// The name of a number.
    pub fn name(&self, number: u32) -> Option<Arc<str>> {
        let names = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        names.get(usize::try_from(number).ok()?).cloned()
    }
}

/// The storage.
pub(super) struct Denied {
    storage: InodeStorage<MapData, Value>,
    names: SignatureNames,
}

impl Denied {
    pub(super) fn new(storage: InodeStorage<MapData, Value>) -> Self {
        Self {
            storage,
            names: SignatureNames::default(),
        }
    }

    pub(super) fn names(&self) -> SignatureNames {
        self.names.clone()
    }

    /// Enters the inode behind an fd (not `O_PATH`).
    pub(super) fn enter(
        &mut self,
        file: &impl AsRawFd,
        value: DeniedInode,
    ) -> Result<(), MapError> {
        self.storage.insert(file, Value(value), 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_keeps_its_number() {
        let names = SignatureNames::default();
        let (eicar, other): (Arc<str>, Arc<str>) = ("Eicar".into(), "Other".into());
        assert_eq!((names.number(&eicar), names.number(&other)), (0, 1));
        assert_eq!(names.number(&"Eicar".into()), 0);
        assert_eq!(names.name(1).as_deref(), Some("Other"));
        assert_eq!(names.name(2), None);
    }
}
