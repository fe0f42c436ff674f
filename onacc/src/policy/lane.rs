//! Which filesystems' opens open others, or wait for somebody: each has a lane.
//!
//! `intake::lanes` gives each a reader. Must not: ask the kernel. Tested below.

use std::path::Path;

use crate::kernel::mounts::{Mount, MountTable};

/// Which filesystems share a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LaneId {
    /// Filesystems whose opens wait for nobody.
    Plain,
    /// Overlays whose layers all lie on such filesystems.
    Overlay,
    /// One filesystem alone, by its device.
    Own(u32),
}

/// The lane of a filesystem.
pub fn lane_of(mount: &Mount, mounts: &MountTable) -> LaneId {
    if mount.kind == "overlay" {
        let plain = |layer: &Path| {
            layer.is_absolute()
                && mounts
                    .mount_of(layer)
                    .is_some_and(|below| !opens_can_block(&below.kind))
        };
        let all_plain = !mount.layers.is_empty() && mount.layers.iter().all(|layer| plain(layer));
        return if all_plain {
            LaneId::Overlay
        } else {
            LaneId::Own(mount.dev)
        };
    }
    if opens_can_block(&mount.kind) {
        LaneId::Own(mount.dev)
    } else {
        LaneId::Plain
    }
}

/// Whether opening a file on this type of filesystem can wait for another
/// program, another machine, or another filesystem.
pub fn opens_can_block(kind: &str) -> bool {
    const KINDS: [&str; 16] = [
        "9p", "afs", "autofs", "ceph", "cifs", "coda", "ecryptfs", "fuse", "fuseblk", "gfs2",
        "nfs", "nfs4", "ocfs2", "overlay", "smb3", "virtiofs",
    ];
    KINDS.contains(&kind) || kind.starts_with("fuse.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_lie_on_another_gets_a_lane_of_its_own() {
        let table = MountTable::parse(
            b"1 0 8:1 / / rw - ext4 /dev/a rw\n\
2 1 0:40 / /fuse rw - fuse.sshfs x rw\n\
3 1 0:41 / /m rw - overlay o rw,lowerdir=/low,upperdir=/up,workdir=/w\n\
4 1 0:42 / /n rw - overlay o rw,lowerdir=/m/x,upperdir=/up2,workdir=/w2\n\
5 1 0:43 / /o rw - overlay o rw,lowerdir=l/ABC,upperdir=/up3,workdir=/w3\n\
6 1 0:44 / /p rw - overlay o rw,lowerdir=/fuse/x\n\
7 1 0:45 / /t rw - tmpfs t rw\n",
        );
        let lane = |id| lane_of(table.get(id).unwrap(), &table);
        let own = |minor| LaneId::Own(onacc_common::kernel_dev(0, minor));
        assert_eq!(lane(1), LaneId::Plain);
        assert_eq!(lane(2), own(40));
        assert_eq!(lane(3), LaneId::Overlay);
        assert_eq!(lane(4), own(42), "an overlay on an overlay");
        assert_eq!(lane(5), own(43), "layers that cannot be found");
        assert_eq!(lane(6), own(44), "an overlay on FUSE");
        assert_eq!(lane(7), LaneId::Plain);
    }
}
