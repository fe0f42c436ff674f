//! What the hooks ask of an inode.
//!
//! Must not: hold an offset (`layout` does) or decide.

use onacc_common::ChangeTime;

use crate::layout::{
    Fields, OFF_INODE_CTIME_NSEC, OFF_INODE_CTIME_SEC, OFF_INODE_GENERATION, OFF_INODE_INO,
    OFF_INODE_MODE, OFF_INODE_SB, OFF_INODE_SIZE, OFF_SB_DEV,
};

/// A `struct inode`.
pub struct Inode<F: Fields>(pub F);

impl<F: Fields> Inode<F> {
    /// `s_dev` of its superblock.
    #[inline(always)]
    pub fn dev(&self) -> u32 {
        self.0.load_behind(&OFF_INODE_SB, &OFF_SB_DEV)
    }

    /// Whether it is a regular file.
    #[inline(always)]
    pub fn is_regular(&self) -> bool {
        self.0.load::<u16>(&OFF_INODE_MODE) & 0o170_000 == 0o100_000
    }

    /// Its number.
    #[inline(always)]
    pub fn number(&self) -> u64 {
        self.0.load(&OFF_INODE_INO)
    }

    /// Its size.
    #[inline(always)]
    pub fn size(&self) -> u64 {
        self.0.load(&OFF_INODE_SIZE)
    }

    /// Its ctime.
    #[inline(always)]
    pub fn changed(&self) -> ChangeTime {
        ChangeTime::new(
            self.0.load::<i64>(&OFF_INODE_CTIME_SEC),
            self.0.load::<u32>(&OFF_INODE_CTIME_NSEC),
        )
    }

    /// Its generation.
    #[inline(always)]
    pub fn generation(&self) -> u32 {
        self.0.load(&OFF_INODE_GENERATION)
    }
}
