//! The mount table: from a mount id to the filesystem and the place in it.
//!
//! Parses `/proc/self/mountinfo` (pure, bytes in) because mount points hold any
//! byte, which the `procfs` crate refuses. Must not: follow a path. Tested here.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::Read as _;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use onacc_common::kernel_dev;

use super::SyscallError;

/// One mount of our own mount namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Mount id, as `STATX_MNT_ID` tells it.
    pub id: u64,
    /// Filesystem, as [`kernel_dev`] encodes it.
    pub dev: u32,
    /// What of the filesystem is mounted: a path from the filesystem's own root.
    pub root: PathBuf,
    /// Where.
    pub point: PathBuf,
    /// Type, such as `ext4`.
    pub kind: String,
    /// Of an overlay: the directories that it is made of, as they were named
    /// when it was mounted (perhaps not by absolute paths).
    pub layers: Vec<PathBuf>,
}

/// All mounts of our mount namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MountTable {
    by_id: HashMap<u64, Mount>,
    /// In the order of the kernel: a later mount covers an earlier one.
    order: Vec<u64>,
}

/// A place on a filesystem: the same by whatever mount it is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Filesystem.
    pub dev: u32,
    /// Path from the filesystem's own root, starting with `/`.
    pub path: PathBuf,
}

impl MountTable {
    /// Reads the table of this process.
    ///
    /// # Errors
    /// `/proc` is not mounted.
    pub fn read() -> Result<Self, SyscallError> {
        let mut bytes = Vec::new();
        open_table()?
            .read_to_end(&mut bytes)
            .map_err(|source| SyscallError {
                call: "read of /proc/self/mountinfo",
                source,
            })?;
        Ok(Self::parse(&bytes))
    }

    /// Parses the bytes of a `mountinfo` file (`proc_pid_mountinfo(5)`); lines
    /// that are not of its form are passed over.
    pub fn parse(bytes: &[u8]) -> Self {
        let mut table = Self::default();
        for mount in bytes.split(|byte| *byte == b'\n').filter_map(parse_line) {
            table.order.push(mount.id);
            table.by_id.insert(mount.id, mount);
        }
        table
    }

    /// The mount with this id, if it is one of ours.
    pub fn get(&self, id: u64) -> Option<&Mount> {
        self.by_id.get(&id)
    }

    /// All mounts, a covered one before what covers it.
    pub fn iter(&self) -> impl Iterator<Item = &Mount> {
        self.order.iter().filter_map(|id| self.by_id.get(id))
    }

    /// The mount that a path (absolute, without symlinks) leads to: the last
    /// one of those with the longest mount point that holds it.
    pub fn mount_of(&self, path: &Path) -> Option<&Mount> {
        self.iter()
            .filter(|mount| path.starts_with(&mount.point))
            .max_by_key(|mount| mount.point.as_os_str().len())
    }

    /// A mount that shows all of a filesystem.
    pub fn whole(&self, dev: u32) -> Option<&Mount> {
        self.iter()
            .find(|mount| mount.dev == dev && mount.root == Path::new("/"))
    }

    /// Where on which filesystem a path leads.
    pub fn place_of(&self, path: &Path) -> Option<Place> {
        let mount = self.mount_of(path)?;
        Some(Place {
            dev: mount.dev,
            path: join(&mount.root, path.strip_prefix(&mount.point).ok()?),
        })
    }
}

/// `root` and what comes below it, without a trailing slash.
pub fn join(root: &Path, below: &Path) -> PathBuf {
    if below.as_os_str().is_empty() {
        root.to_owned()
    } else {
        root.join(below)
    }
}

/// Opens the table; such a file shows `POLLPRI | POLLERR` in `poll(2)` when a
/// mount comes or goes (`proc_pid_mounts(5)`).
///
/// # Errors
/// `/proc` is not mounted.
pub fn open_table() -> Result<File, SyscallError> {
    File::open("/proc/self/mountinfo").map_err(|source| SyscallError {
        call: "open of /proc/self/mountinfo",
        source,
    })
}

fn parse_line(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let id = number(fields.next()?)?;
    let _parent = fields.next()?;
    let mut numbers = fields.next()?.split(|byte| *byte == b':');
    let major = u32::try_from(number(numbers.next()?)?).ok()?;
    let minor = u32::try_from(number(numbers.next()?)?).ok()?;
    let root = path(fields.next()?);
    let point = path(fields.next()?);
    let mut rest = fields.skip_while(|field| *field != b"-").skip(1);
    let kind = rest.next()?;
    let options = rest.nth(1).unwrap_or_default();
    Some(Mount {
        id,
        dev: kernel_dev(major, minor),
        root,
        point,
        kind: String::from_utf8_lossy(kind).into_owned(),
        layers: if kind == b"overlay" {
            layers(options)
        } else {
            Vec::new()
        },
    })
}

/// Directories named in the options of an overlay.
fn layers(options: &[u8]) -> Vec<PathBuf> {
    let named = |option: &[u8]| -> Option<Vec<u8>> {
        ["lowerdir=", "lowerdir+=", "datadir+=", "upperdir="]
            .iter()
            .find_map(|name| Some(option.strip_prefix(name.as_bytes())?.to_vec()))
    };
    options
        .split(|byte| *byte == b',')
        .filter_map(named)
        .flat_map(|list| {
            list.split(|byte| *byte == b':')
                .filter(|layer| !layer.is_empty())
                .map(path)
                .collect::<Vec<_>>()
        })
        .collect()
}

fn number(field: &[u8]) -> Option<u64> {
    std::str::from_utf8(field).ok()?.parse().ok()
}

/// Undoes the octal escapes of blank, tab, newline and backslash.
fn path(field: &[u8]) -> PathBuf {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        if let (
            [b'\\'],
            [
                a @ b'0'..=b'3',
                b @ b'0'..=b'7',
                c @ b'0'..=b'7',
                after @ ..,
            ],
        ) = (&[*first], tail)
        {
            out.push((a - b'0') * 64 + (b - b'0') * 8 + (c - b'0'));
            rest = after;
        } else {
            out.push(*first);
            rest = tail;
        }
    }
    OsString::from_vec(out).into()
}

/// Whether `path` is `prefix` or lies below it, by whole components, on raw bytes.
pub fn is_below(path: &[u8], prefix: &Path) -> bool {
    let prefix = prefix.as_os_str().as_bytes();
    if prefix == b"/" {
        return path.first() == Some(&b'/');
    }
    path.strip_prefix(prefix)
        .is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TABLE: &[u8] = b"\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n\
30 22 0:25 / /proc rw - proc proc rw\n\
41 22 7:1 / /srv/with\\040blank rw master:3 propagate_from:2 - xfs /dev/loop1 rw\n\
42 22 254:0 /var/data /mnt/bind rw - ext4 /dev/vda rw\n\
43 22 0:50 / /mnt/bind rw - tmpfs none rw\n\
broken line\n";

    #[test]
    fn the_topmost_and_longest_mount_point_holds_a_path() {
        let table = MountTable::parse(TABLE);
        assert_eq!(table.iter().count(), 5);
        let place = table.place_of(Path::new("/srv/with blank/a/b")).unwrap();
        assert_eq!(place.path, Path::new("/a/b"));
        assert_eq!(place.dev, kernel_dev(7, 1));
        let place = table.place_of(Path::new("/mnt/bind/x")).unwrap();
        assert_eq!(place.dev, kernel_dev(0, 50));
        let place = table.place_of(Path::new("/srv/withblank")).unwrap();
        assert_eq!(
            (place.dev, place.path),
            (kernel_dev(254, 0), "/srv/withblank".into())
        );
        assert_eq!(table.place_of(Path::new("/")).unwrap().path, Path::new("/"));
    }

    #[test]
    fn a_bind_mount_leads_into_the_filesystem_it_comes_from() {
        let table = MountTable::parse(TABLE.split_at(TABLE.len() - 70).0);
        let bind = table.get(42).unwrap();
        assert_eq!(join(&bind.root, Path::new("x")), Path::new("/var/data/x"));
    }

    #[test]
    fn an_overlay_names_its_layers() {
        let table = MountTable::parse(
            b"7 1 0:60 / /m rw - overlay overlay rw,lowerdir=/a:/b\\040c,upperdir=/u,workdir=/w\n",
        );
        let layers = &table.get(7).unwrap().layers;
        assert_eq!(*layers, ["/a", "/b c", "/u"].map(PathBuf::from));
    }

    #[test]
    fn below_means_whole_components() {
        assert!(is_below(b"/home/user", Path::new("/home/user")));
        assert!(is_below(b"/home/user/x", Path::new("/home/user")));
        assert!(!is_below(b"/home/user2", Path::new("/home/user")));
        assert!(is_below(b"/x", Path::new("/")));
    }

    #[test]
    fn our_own_table_leads_the_root_somewhere() {
        let table = MountTable::read().unwrap();
        // Not "/" on a btrfs subvolume or in a container, but there is one.
        assert!(table.place_of(Path::new("/")).unwrap().path.is_absolute());
    }

    proptest! {
        #[test]
        fn any_bytes_parse_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = MountTable::parse(&bytes);
        }

        #[test]
        fn escaped_paths_come_back(raw in proptest::collection::vec(1u8..=255, 1..40)) {
            let mut escaped = Vec::new();
            for byte in &raw {
                match byte {
                    b' ' | b'\t' | b'\n' | b'\\' => escaped.extend(format!("\\{byte:03o}").bytes()),
                    other => escaped.push(*other),
                }
            }
            let back = path(&escaped);
            prop_assert_eq!(back.as_os_str().as_bytes(), &raw[..]);
        }
    }
}
