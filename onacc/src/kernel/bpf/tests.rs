//! On the running kernel. Nothing is marked, nobody waits for an answer.

use super::*;
use crate::kernel::file;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use onacc_common::filter::Filesystem;
use onacc_common::opens::{Access, OpenHeader};
use onacc_common::wants;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const MARKS_ALONE: Request = Request {
    capacity: 16,
    filesystems: 16_384,
    records: 256 << 10,
    wants: 0,
    excluded: 0,
};

/// A store through a shared mapping into a file of an ext filesystem must
/// be reported, once; reading it must not. Watches, but marks nothing.
#[test]
fn a_store_through_a_shared_mapping_is_reported_and_a_read_is_not() {
    let file = tempfile::NamedTempFile::new_in("/var/tmp").unwrap();
    std::fs::write(file.path(), vec![b'.'; 8192]).unwrap();
    let fd = file.as_file().as_fd();
    if file::filesystem_kind(fd).unwrap() != file::FilesystemKind::Ext {
        println!("SKIPPED: /var/tmp is not on an ext filesystem");
        return;
    }
    let (mut plane, controls) = match load(&MARKS_ALONE) {
        Ok(loaded) => (loaded.plane, loaded.controls),
        Err(error) => {
            assert_ne!(nix::unistd::geteuid().as_raw(), 0, "{error}");
            println!("SKIPPED: {error}");
            return;
        }
    };
    std::thread::sleep(Duration::from_millis(60));
    let stat = file::stat(fd).unwrap();
    controls.watch(stat.key.dev, Filesystem(0)).unwrap();
    let entry = CachedInode {
        changed: stat.changed,
        serial: 7,
        reported: 0,
    };
    plane.arm(stat.key, entry).unwrap();
    std::fs::read(file.path()).unwrap();
    assert_eq!(plane.next_record(), None);
    let length = std::num::NonZeroUsize::new(8192).unwrap();
    let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: a fresh mapping at an address that the kernel chooses, of a
    // file of this length; it is written inside its bounds and unmapped once.
    unsafe {
        let at = mmap(None, length, prot, MapFlags::MAP_SHARED, fd, 0).unwrap();
        at.cast::<u8>().as_ptr().write_volatile(b'X');
        munmap(at, 8192).unwrap();
    }
    let deadline = Instant::now() + Duration::from_secs(5);
    let record = loop {
        if let Some(record) = plane.next_record() {
            break record;
        }
        assert!(Instant::now() < deadline, "the store was not reported");
    };
    assert_eq!((record.key, record.serial), (stat.key, 7));
    assert!(plane.was_reported(stat.key).unwrap());
    std::fs::write(file.path(), "again").unwrap();
    assert_eq!(plane.next_record(), None, "one record an entry");
    assert!(plane.counters().get(Counter::Reported).unwrap() == 1);
    assert!(plane.counters().get(Counter::Seen).unwrap() > 1);
    plane.disarm(stat.key).unwrap();
    plane.disarm(stat.key).unwrap();
}

#[test]
fn full_maps_say_so_and_what_is_known_of_directories_makes_room() {
    let Ok(loaded) = load(&Request {
        capacity: 2,
        ..MARKS_ALONE
    }) else {
        println!("SKIPPED: no eBPF here; the test above says why");
        return;
    };
    let (mut plane, controls) = (loaded.plane, loaded.controls);
    let watched = (1..20_000)
        .map(|dev| controls.watch(dev, Filesystem(0)))
        .position(|watched| watched.is_err());
    assert_eq!(watched, Some(16_384));
    assert!(controls.watch(1, Filesystem(3)).is_ok(), "a known one");
    let uids: Vec<u32> = (0..10).collect();
    assert!(controls.exclude(&uids).is_err(), "room for one");
    let directory = |ino| DirKey {
        key: InodeKey::new(1, 1, ino),
        generation: 0,
        zero: 0,
    };
    for ino in 0..70_000 {
        if ino == 30_000 {
            plane.forget_directories().unwrap();
        }
        plane.ignore_directory(directory(ino)).unwrap();
    }
    let entry = CachedInode {
        changed: onacc_common::ChangeTime::new(1, 1),
        serial: 1,
        reported: 0,
    };
    let filled = (0..64)
        .map(|ino| plane.arm(InodeKey::new(1, 1, ino), entry))
        .find(Result::is_err);
    assert!(matches!(filled, Some(Err(ArmError::Full))), "{filled:?}");
}

#[test]
fn what_finds_room_nowhere_is_counted() {
    let shared = Path::new("/dev/shm");
    let on = std::fs::File::open(shared).map(|on| file::filesystem_kind(&on));
    if !matches!(on, Ok(Ok(file::FilesystemKind::Unstamped))) {
        println!("SKIPPED: {} is no tmpfs", shared.display());
        return;
    }
    let Some(mut loaded) = everything() else {
        return;
    };
    let dir = tempfile::tempdir_in(shared).unwrap();
    loaded.controls.set_max_file_size(u64::MAX).unwrap();
    let first = dir.path().join("first");
    std::fs::write(&first, "x").unwrap();
    let dev = key_of(&first).dev;
    loaded
        .controls
        .watch(dev, Filesystem(Filesystem::KEYED))
        .unwrap();
    let counters = Arc::clone(loaded.plane.counters());
    let get = |counter| counters.get(counter).unwrap();
    while get(Counter::OpenMissed) == 0 {
        for _ in 0..1000 {
            drop(std::fs::File::open(&first).unwrap());
        }
    }
    // Made by being opened: each is another file, and finds the ring buffer full.
    let mut made = 0;
    while get(Counter::OpenLost) == 0 {
        for _ in 0..1000 {
            let path = dir.path().join(made.to_string());
            drop(std::fs::File::create(&path).unwrap());
            std::fs::remove_file(path).unwrap();
            made += 1;
        }
        assert!(made < 200_000, "{made} files");
    }
    let feed = loaded.feed.as_mut().unwrap();
    let lost = get(Counter::OpenLost);
    assert!(feed.take_lost() >= lost && lost > 0);
    assert_eq!(feed.take_lost(), 0, "counted once");
    let mut taken = 0;
    loop {
        let missed = feed.take_missed().len();
        if missed == 0 {
            break;
        }
        taken += missed;
    }
    assert!(taken > 60_000, "{taken}");
}

/// All that the hooks can do, as far as this kernel grants it.
fn everything() -> Option<Loaded> {
    let _may_be_set = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::DEBUG)
        .with_test_writer()
        .try_init();
    let wanted = Request {
        wants: wants::OPENS | wants::TAGS | wants::DENY | wants::WRITES,
        excluded: 4,
        ..MARKS_ALONE
    };
    match load(&wanted) {
        Ok(loaded) => {
            println!("tier {:?}; {:?}", loaded.tier, loaded.notes);
            println!("verifier: {:?}", loaded.plane.verifier_costs());
            loaded.tier.is_some().then_some(loaded)
        }
        Err(error) => {
            println!("SKIPPED: {error}");
            None
        }
    }
}

/// A directory on a filesystem whose inodes can be keyed, and a file in it.
fn scene() -> (tempfile::TempDir, PathBuf, file::FileStat) {
    let dir = tempfile::Builder::new()
        .prefix("onacc-bpf.")
        .tempdir_in("/var/tmp")
        .unwrap();
    let for_all = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(dir.path(), for_all).unwrap();
    std::fs::create_dir_all(dir.path().join("a/b")).unwrap();
    let path = dir.path().join("a/b/some file");
    std::fs::write(&path, "content").unwrap();
    std::thread::sleep(Duration::from_millis(60));
    let stat = file::stat(std::fs::File::open(&path).unwrap().as_fd()).unwrap();
    (dir, path, stat)
}

/// Everything on this filesystem is told, whatever its size.
fn watch(loaded: &Loaded, dev: u32) {
    let controls = &loaded.controls;
    controls.set_max_file_size(u64::MAX).unwrap();
    controls.watch(dev, Filesystem(Filesystem::KEYED)).unwrap();
}

/// The key of the file at this path.
fn key_of(path: &Path) -> InodeKey {
    let file = std::fs::File::open(path).unwrap();
    file::stat(file.as_fd()).unwrap().key
}

/// Names and other facts of the records about this inode so far.
fn told_of(feed: &mut OpenFeed, key: InodeKey) -> Vec<(Access, Vec<Vec<u8>>, OpenHeader)> {
    let mut told = Vec::new();
    loop {
        let more = feed.next(|record| {
            let record = onacc_common::opens::OpenRecord::from_bytes(record).unwrap();
            if record.header.key == key {
                let names = record.names().map(<[u8]>::to_vec).collect();
                told.push((record.access, names, record.header));
            }
        });
        if !more {
            return told;
        }
    }
}

/// `cat` of a file as a user; whether it could be read.
fn cat_as(uid: u32, path: &Path) -> bool {
    use std::os::unix::process::CommandExt as _;
    let status = std::process::Command::new("cat")
        .arg(path)
        .uid(uid)
        .gid(uid)
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .status();
    status.unwrap().success()
}

#[test]
fn an_open_is_told_with_its_names_and_dropped_for_each_reason() {
    let Some(mut loaded) = everything() else {
        return;
    };
    let (_dir, path, stat) = scene();
    let feed = loaded.feed.as_mut().unwrap();
    let counters = Arc::clone(loaded.plane.counters());
    loaded.controls.set_max_file_size(100).unwrap();
    let both = Filesystem(Filesystem::KEYED | Filesystem::TRUE_SIZES);

    assert!(cat_as(4711, &path));
    assert_eq!(told_of(feed, stat.key), [], "not watched");
    loaded.controls.watch(stat.key.dev, both).unwrap();
    assert!(cat_as(4711, &path));
    let told = told_of(feed, stat.key);
    assert_eq!(told.len(), 1, "{told:?}");
    let (access, names, header) = &told[0];
    assert_eq!(*access, Access::Open);
    assert_eq!(
        names[..3],
        [b"some file".to_vec(), b"b".to_vec(), b"a".to_vec()]
    );
    assert_eq!((header.uid, header.euid, header.size), (4711, 4711, 7));
    assert_eq!((header.changed, header.cut), (stat.changed, 0));
    assert_eq!(header.comm[..4], *b"cat\0");
    assert!(header.tid == header.tgid && header.started > 0);

    let dropped = |counter: Counter, feed: &mut OpenFeed, uid: u32| {
        let before = counters.get(counter).unwrap();
        assert!(cat_as(uid, &path));
        assert_eq!(told_of(feed, stat.key), [], "{counter:?}");
        assert!(counters.get(counter).unwrap() > before, "{counter:?}");
    };
    loaded.controls.exclude(&[4711]).unwrap();
    dropped(Counter::OpenExcludedUid, feed, 4711);
    loaded.controls.exclude(&[]).unwrap();
    assert!(cat_as(4711, &path));
    assert_eq!(told_of(feed, stat.key).len(), 1);
    // `cat` is a child of this process.
    loaded.controls.exempt(std::process::id()).unwrap();
    dropped(Counter::OpenExempt, feed, 4711);
    loaded
        .controls
        .no_longer_exempt(std::process::id())
        .unwrap();
    loaded.controls.set_max_file_size(6).unwrap();
    dropped(Counter::OpenTooLarge, feed, 4711);
    loaded.controls.set_max_file_size(7).unwrap();
    loaded.plane.ignore_directory(header.directory).unwrap();
    dropped(Counter::OpenOutside, feed, 4711);
    loaded.plane.forget_directories().unwrap();
    let entry = CachedInode {
        changed: stat.changed,
        serial: 1,
        reported: 0,
    };
    loaded.plane.arm(stat.key, entry).unwrap();
    dropped(Counter::OpenClean, feed, 4711);
    std::fs::write(&path, "changed").unwrap();
    told_of(feed, stat.key);
    assert!(cat_as(4711, &path));
    assert_eq!(told_of(feed, stat.key).len(), 1);
    assert!(counters.get(Counter::OpenReported).unwrap() >= 3);
}

/// Uids that share a slot of the front, so that the map behind it is asked.
#[test]
fn excluded_uids_that_share_a_slot_are_told_apart() {
    use onacc_common::front::slot;
    let Some(mut loaded) = everything() else {
        return;
    };
    let same: Vec<u32> = (4711..100_000)
        .filter(|uid| slot(*uid) == slot(4711))
        .take(3)
        .collect();
    let (dir, path, stat) = scene();
    let open_to_all = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(dir.path(), open_to_all).unwrap();
    loaded.controls.set_max_file_size(u64::MAX).unwrap();
    loaded
        .controls
        .watch(stat.key.dev, Filesystem(Filesystem::KEYED))
        .unwrap();
    let feed = loaded.feed.as_mut().unwrap();
    let mut told = |excluded: &[u32]| {
        loaded.controls.exclude(excluded).unwrap();
        same.iter()
            .map(|uid| {
                assert!(cat_as(*uid, &path));
                told_of(feed, stat.key).len()
            })
            .collect::<Vec<_>>()
    };
    assert_eq!(told(&[]), [1, 1, 1]);
    assert_eq!(told(&same[..1]), [0, 1, 1]);
    assert_eq!(told(&same[..2]), [0, 0, 1]);
    assert_eq!(told(&same[1..]), [1, 0, 0]);
    assert_eq!(told(&same[2..]), [1, 1, 0]);
    assert_eq!(told(&[]), [1, 1, 1]);
}

#[test]
fn an_execution_is_told_as_such() {
    let Some(mut loaded) = everything() else {
        return;
    };
    let (dir, _, stat) = scene();
    watch(&loaded, stat.key.dev);
    let program = dir.path().join("a program");
    let some_program = std::env::var("PATH")
        .unwrap_or_default()
        .split(':')
        .flat_map(|dir| ["true", "mount", "busybox"].map(|name| Path::new(dir).join(name)))
        .find(|path| path.is_file())
        .unwrap();
    std::fs::copy(some_program, &program).unwrap();
    let key = key_of(&program);
    let feed = loaded.feed.as_mut().unwrap();
    told_of(feed, key);
    let run = std::process::Command::new(&program)
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .status();
    assert!(run.is_ok(), "{run:?}");
    let told = told_of(feed, key);
    assert!(
        told.iter().any(|(access, ..)| *access == Access::Exec),
        "{told:?}"
    );
}

#[test]
fn deep_long_and_odd_names_are_told_or_said_to_be_cut() {
    let Some(mut loaded) = everything() else {
        return;
    };
    let (dir, _, stat) = scene();
    watch(&loaded, stat.key.dev);
    let feed = loaded.feed.as_mut().unwrap();
    let odd: Vec<u8> = (1..=255).filter(|byte| *byte != b'/').collect();
    for (name, levels, whole) in [
        (odd, 1, true),
        (vec![b'x'; 255], 14, true),
        (vec![b'y'; 20], 58, true),
        (vec![b'z'; 2], 70, false),
    ] {
        let name = std::ffi::OsStr::from_bytes(&name);
        let mut path = dir.path().to_path_buf();
        for _ in 0..levels {
            path.push(name);
            std::fs::create_dir(&path).unwrap();
        }
        path.push("leaf");
        std::fs::write(&path, "leaf").unwrap();
        let key = key_of(&path);
        told_of(feed, key);
        drop(std::fs::File::open(&path).unwrap());
        let told = told_of(feed, key);
        assert_eq!(told.len(), 1, "{levels}");
        let (_, names, header) = &told[0];
        assert_eq!(
            header.cut == 0,
            whole,
            "{levels} levels of {} bytes",
            name.len()
        );
        assert_eq!(names[0], b"leaf");
        if whole {
            assert!(names[1..=levels].iter().all(|told| told == name.as_bytes()));
        }
    }
}

#[test]
fn what_finds_no_room_is_noted_once_each() {
    let Some(mut loaded) = everything() else {
        return;
    };
    let (dir, _, stat) = scene();
    loaded.controls.set_max_file_size(u64::MAX).unwrap();
    let files: Vec<PathBuf> = (0..20)
        .map(|n| {
            let path = dir.path().join(format!("file{n}"));
            std::fs::write(&path, "x").unwrap();
            path
        })
        .collect();
    loaded
        .controls
        .watch(stat.key.dev, Filesystem(Filesystem::KEYED))
        .unwrap();
    let counters = Arc::clone(loaded.plane.counters());
    let feed = loaded.feed.as_mut().unwrap();
    while counters.get(Counter::OpenMissed).unwrap() == 0 {
        for _ in 0..500 {
            drop(std::fs::File::open(&files[0]).unwrap());
        }
    }
    for path in files.iter().chain(&files) {
        drop(std::fs::File::open(path).unwrap());
    }
    let missed = feed.take_missed();
    for path in &files {
        let key = key_of(path);
        let found: Vec<&Missed> = missed.iter().filter(|one| one.file.key == key).collect();
        assert_eq!(found.len(), 1);
        let handle =
            crate::kernel::handle::FileHandle::of_inode("ext4", key.ino, found[0].file.generation);
        if file::filesystem_kind(std::fs::File::open(path).unwrap()).unwrap()
            == file::FilesystemKind::Ext
        {
            let own =
                crate::kernel::handle::FileHandle::of(std::fs::File::open(path).unwrap().as_fd());
            assert_eq!(handle, own.ok());
        }
    }
    assert_eq!(feed.take_lost(), 0);
}

#[test]
fn with_lsm_an_infected_inode_is_refused_until_it_changes() {
    let Some(mut loaded) = everything() else {
        return;
    };
    if loaded.tier != Some(OpenTier::Lsm) {
        println!("SKIPPED: no BPF LSM here");
        return;
    }
    let (_dir, path, stat) = scene();
    watch(&loaded, stat.key.dev);
    let opened = std::fs::File::open(&path).unwrap();
    let signature: Arc<str> = "Eicar".into();
    assert!(
        loaded
            .plane
            .refuse(opened.as_fd(), stat.changed, &signature)
            .unwrap()
    );
    let feed = loaded.feed.as_mut().unwrap();
    told_of(feed, stat.key);

    assert!(!cat_as(4711, &path));
    let error = std::fs::File::open(&path).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EPERM));
    let length = std::num::NonZeroUsize::new(4096).unwrap();
    // SAFETY: would be a fresh mapping at an address that the kernel chooses.
    let mapped = unsafe {
        mmap(
            None,
            length,
            ProtFlags::PROT_READ,
            MapFlags::MAP_PRIVATE,
            &opened,
            0,
        )
    };
    assert_eq!(mapped.err(), Some(nix::errno::Errno::EPERM));
    let told = told_of(feed, stat.key);
    let accesses: Vec<Access> = told.iter().map(|(access, ..)| *access).collect();
    assert_eq!(
        accesses,
        [Access::DeniedOpen, Access::DeniedOpen, Access::DeniedMap]
    );
    assert_eq!(told[0].1[0], b"some file");
    assert_eq!(
        feed.signatures().name(told[0].2.signature).as_deref(),
        Some("Eicar")
    );

    loaded.controls.exclude(&[4711]).unwrap();
    assert!(cat_as(4711, &path), "excluded");
    loaded.controls.exclude(&[]).unwrap();
    assert!(!cat_as(4711, &path));
    loaded.plane.forget_infected().unwrap();
    assert!(cat_as(4711, &path), "another database");
    assert!(
        loaded
            .plane
            .refuse(opened.as_fd(), stat.changed, &signature)
            .unwrap()
    );
    assert!(!cat_as(4711, &path));
    nix::unistd::truncate(&path, 3).unwrap();
    assert!(cat_as(4711, &path), "changed");
}

#[test]
fn who_opens_leaves_a_tag() {
    let Some(loaded) = everything() else {
        return;
    };
    let Some(tags) = &loaded.tags else {
        println!("SKIPPED: no tags in tier {:?}", loaded.tier);
        return;
    };
    let (_dir, path, stat) = scene();
    loaded
        .controls
        .watch(stat.key.dev, Filesystem(Filesystem::KEYED))
        .unwrap();
    let tid = nix::unistd::gettid().as_raw();
    assert_eq!(tags.effective_uid(0), None);
    drop(std::fs::File::open(&path).unwrap());
    assert_eq!(
        tags.effective_uid(tid),
        Some(nix::unistd::geteuid().as_raw())
    );
    // The effective uid of this thread alone, as a seteuid in one of many.
    // SAFETY: setresuid on this thread takes numbers alone.
    let set = |euid: libc::uid_t| unsafe { libc::syscall(libc::SYS_setresuid, -1, euid, -1) };
    assert_eq!(set(4712), 0);
    let _may_be_refused = std::fs::File::open(&path);
    let told = tags.effective_uid(tid);
    assert_eq!(set(0), 0);
    assert_eq!(told, Some(4712));
}

#[test]
fn an_open_for_writing_ends_a_clean_mark() {
    let Some(mut loaded) = everything() else {
        return;
    };
    if !loaded.plane.sees_writes() {
        println!(
            "SKIPPED: tier {:?} does not see opens for writing",
            loaded.tier
        );
        return;
    }
    let (_dir, path, stat) = scene();
    loaded
        .controls
        .watch(stat.key.dev, Filesystem(Filesystem::KEYED))
        .unwrap();
    let entry = CachedInode {
        changed: stat.changed,
        serial: 9,
        reported: 0,
    };
    loaded.plane.arm(stat.key, entry).unwrap();
    drop(std::fs::File::open(&path).unwrap());
    assert_eq!(loaded.plane.next_record(), None);
    drop(
        std::fs::OpenOptions::new()
            .append(true)
            .open(&path)
            .unwrap(),
    );
    let record = loaded.plane.next_record().unwrap();
    assert_eq!((record.key, record.serial), (stat.key, 9));
}

#[test]
fn a_refused_helper_is_told_from_other_complaints() {
    assert!(lacks_reading("62: (85)\nunknown func bpf_probe_read#4\n"));
    assert!(lacks_reading(
        "program of this type cannot use helper bpf_probe_read_kernel_str#115"
    ));
    assert!(!lacks_reading(
        "; bpf_probe_read(dst, size)\nR1 is no pointer"
    ));
    assert!(!lacks_reading("unknown func bpf_d_path#147"));
}
