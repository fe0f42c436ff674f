use std::fs;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use nix::fcntl::AT_FDCWD;

use super::*;

fn open(path: &Path) -> fs::File {
    fs::File::open(path).unwrap()
}

#[test]
fn a_name_goes_and_its_other_names_stay() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().canonicalize().unwrap();
    let (bad, other) = (root.join("bad"), root.join("other"));
    fs::write(&bad, "bad").unwrap();
    fs::hard_link(&bad, &other).unwrap();
    let file = open(&bad);
    let identity = Identity::of_open(&file).unwrap();
    Name::find(&bad).unwrap().remove(identity).unwrap();
    assert!(!bad.exists() && other.exists());
    assert_eq!(fs::read_dir(&root).unwrap().count(), 1);
}

#[test]
fn another_file_a_symlink_and_a_missing_one_are_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().canonicalize().unwrap();
    fs::create_dir(root.join("real")).unwrap();
    let bad = root.join("real/bad");
    fs::write(&bad, "bad").unwrap();
    fs::write(root.join("good"), "good").unwrap();
    symlink(&bad, root.join("link")).unwrap();
    symlink(root.join("real"), root.join("way")).unwrap();
    let file = open(&bad);
    let identity = Identity::of_open(&file).unwrap();
    for name in ["good", "link", "nothing", "way/bad", "no/where"] {
        let removed = Name::find(&root.join(name)).and_then(|name| name.remove(identity));
        assert!(
            matches!(removed, Err(NameError::Other(_))),
            "{name}: {removed:?}"
        );
    }
    assert!(bad.exists() && root.join("good").exists());
    assert!(root.join("link").is_symlink());
    assert_eq!(fs::read_dir(&root).unwrap().count(), 4);
}

fn captured(name: &Name) -> Holding<'_> {
    let holding = Holding::make(&name.parent).unwrap();
    let flags = RenameFlags::RENAME_NOREPLACE;
    renameat2(&name.parent, &*name.last, &holding.fd, CAPTURED, flags).unwrap();
    holding
}

/// A file swapped in after the first look is captured, and goes back.
#[test]
fn what_was_captured_wrongly_goes_back_or_is_saved() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().canonicalize().unwrap();
    let good = root.join("good");
    fs::write(&good, "good").unwrap();
    let name = Name::find(&good).unwrap();
    let holding = captured(&name);
    assert!(!good.exists());
    name.put_back(holding).unwrap();
    assert_eq!(fs::read(&good).unwrap(), b"good");
    let holding = captured(&name);
    fs::write(&good, "new").unwrap();
    let Err(NameError::Displaced { saved, .. }) = name.put_back(holding) else {
        panic!("its name was taken");
    };
    assert_eq!(fs::read(saved).unwrap(), b"good");
    assert_eq!(fs::read(&good).unwrap(), b"new");
    assert_eq!(fs::read_dir(&root).unwrap().count(), 2);
}

/// Threads exchange the infected file, a precious one and a symlink to it, and
/// the directories that hold them, all the time, while the infected one's name is
/// taken away thousands of times: nothing else ever loses its name.
#[test]
fn swapped_names_never_cost_another_file_its_name() {
    const ROUNDS: u32 = 4000;
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().canonicalize().unwrap();
    let (one, two) = (root.join("one"), root.join("two"));
    for (directory, content) in [(&one, "precious"), (&two, "dear")] {
        fs::create_dir(directory).unwrap();
        fs::write(directory.join("a"), content).unwrap();
        symlink(directory.join("a"), directory.join("link")).unwrap();
    }
    let inode = |path: PathBuf| fs::symlink_metadata(path).unwrap().ino();
    let mut kept: Vec<u64> = [
        one.join("a"),
        one.join("link"),
        two.join("a"),
        two.join("link"),
    ]
    .map(inode)
    .into();
    kept.sort_unstable();
    let stop = AtomicBool::new(false);
    let swaps = AtomicU64::new(0);
    let (mut missed, mut swapped) = (0u32, 0u32);
    std::thread::scope(|scope| {
        let pairs = [
            (one.join("bad"), one.join("a")),
            (two.join("a"), one.join("bad")),
            (one.join("link"), one.join("bad")),
            (one.clone(), two.clone()),
        ];
        for (left, right) in pairs {
            let (stop, swaps) = (&stop, &swaps);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let flags = RenameFlags::RENAME_EXCHANGE;
                    if renameat2(AT_FDCWD, &left, AT_FDCWD, &right, flags).is_ok() {
                        swaps.fetch_add(1, Ordering::Relaxed);
                    }
                    std::thread::yield_now();
                }
            });
        }
        for _ in 0..ROUNDS {
            let made = root.join("made");
            fs::write(&made, "bad").unwrap();
            let file = open(&made);
            let identity = Identity::of_open(&file).unwrap();
            // One of the five names is free, now here, now there.
            let free = [
                "one/bad", "one/a", "one/link", "two/bad", "two/a", "two/link",
            ];
            let flags = RenameFlags::RENAME_NOREPLACE;
            let mut names = free.iter().cycle();
            while renameat2(
                AT_FDCWD,
                &made,
                AT_FDCWD,
                &root.join(names.next().unwrap()),
                flags,
            )
            .is_err()
            {}
            loop {
                let path = crate::kernel::file::path_buf_of(&file).unwrap();
                match Name::find(&path).and_then(|name| name.remove(identity)) {
                    Ok(()) => break,
                    Err(NameError::Other(_)) => missed += 1,
                    Err(NameError::Swapped(_)) => swapped += 1,
                    Err(error) => panic!("{error}"),
                }
            }
            assert_eq!(file.metadata().unwrap().nlink(), 0);
        }
        stop.store(true, Ordering::Relaxed);
    });
    let mut left: Vec<u64> = [&one, &two]
        .into_iter()
        .flat_map(|directory| fs::read_dir(directory).unwrap())
        .map(|entry| entry.unwrap().path())
        .map(inode)
        .collect();
    left.sort_unstable();
    assert_eq!(left, kept, "after {swaps:?} swaps");
    println!(
        "{ROUNDS} names removed, {missed} missed, {swapped} captured wrongly and put back, {swaps:?} swaps"
    );
}
