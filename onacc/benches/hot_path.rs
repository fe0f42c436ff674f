//! Micro-benchmarks of what every event passes: `cargo bench -p onacc`.
//!
//! Each is a plain function of plain data; what the kernel adds is measured by
//! `cargo xtask bench`.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use divan::{Bencher, black_box};
use onacc::clamd::protocol::ReplyReader;
use onacc::config::modes::MarksMode;
use onacc::kernel::fanotify::event::{Events, METADATA_LEN};
use onacc::kernel::file::{FileStat, FilesystemKind};
use onacc::kernel::mounts::MountTable;
use onacc::policy::{MarkTable, Policy, Remembered, Rules, Scope, Verdict, VerdictCache};
use onacc_common::{ChangeTime, InodeKey, kernel_dev};

fn main() {
    divan::main();
}

fn stat(ino: u64) -> FileStat {
    FileStat {
        key: InodeKey::new(8, 1, ino),
        size: 4096,
        modified: 7,
        changed: ChangeTime::new(1000, 5),
        mount: 9,
        regular: true,
        links: 1,
    }
}

/// A whole read of 128 events.
#[divan::bench]
fn parse_128_events(bencher: Bencher) {
    let mut bytes = Vec::new();
    for n in 0..128i32 {
        bytes.extend(24u32.to_ne_bytes());
        bytes.extend([3, 0]);
        bytes.extend(24u16.to_ne_bytes());
        bytes.extend(0x1_0000u64.to_ne_bytes());
        bytes.extend(n.to_ne_bytes());
        bytes.extend(4242i32.to_ne_bytes());
    }
    assert_eq!(bytes.len(), 128 * METADATA_LEN);
    bencher.bench(|| Events::new(black_box(&bytes)).flatten().count());
}

fn policy(paths: usize) -> Policy {
    let mounts = MountTable::parse(b"9 1 8:1 / / rw - ext4 /dev/a rw\n");
    let path = |n: usize| PathBuf::from(format!("/srv/data/{n}/files"));
    let include: Vec<PathBuf> = (0..paths).map(path).collect();
    let exclude: Vec<PathBuf> = (0..paths).map(|n| path(n).join("cache")).collect();
    Policy {
        scope: Arc::new(Scope::build(&include, &exclude, &mounts)),
        mounts: Arc::new(mounts),
        excluded_uids: vec![100, 101, 102],
        max_file_size: 5 << 20,
        deny_on_error: false,
        rules: Arc::new(Rules::default()),
        kinds: Arc::new(HashMap::from([(kernel_dev(8, 1), FilesystemKind::Ext)])),
        stores_are_seen: true,
        marks: MarksMode::Auto,
    }
}

/// Everything that the reader decides without a system call, for a file in
/// scope that has to be scanned.
#[divan::bench(args = [1, 16, 256])]
fn decide(bencher: Bencher, paths: usize) {
    let policy = policy(paths);
    let file = stat(5);
    let path = b"/srv/data/0/files/some/where/deep/in/a/tree/of/sources/main.rs";
    bencher.bench(|| {
        let file = black_box(&file);
        let opener = policy.by_opener(black_box(Some(1000)));
        let kind = policy.by_file(file);
        let place = policy.by_place(file, Some(black_box(path)));
        (opener, kind, place, policy.may_mark(file))
    });
}

/// The same for a directory out of scope.
#[divan::bench]
fn decide_out_of_scope(bencher: Bencher) {
    let policy = policy(16);
    let file = stat(5);
    bencher.bench(|| {
        policy.by_place(
            black_box(&file),
            Some(black_box(b"/usr/lib/x86_64/libc.so")),
        )
    });
}

#[divan::bench(args = [100, 10_000, 65_536])]
fn look_a_verdict_up(bencher: Bencher, known: u64) {
    let mut cache = VerdictCache::new(65_536);
    for ino in 0..known {
        cache.insert(&stat(ino), Verdict::Clean, 0);
    }
    let mut ino = 0;
    bencher.bench_local(|| {
        ino = (ino + 7919) % known;
        cache.get(&stat(black_box(ino))).cloned()
    });
}

#[divan::bench]
fn enter_a_mark_in_a_full_table(bencher: Bencher) {
    let mut table = MarkTable::new(65_536);
    let mut ino = 0;
    bencher.bench_local(|| {
        ino += 1;
        let key = InodeKey::new(8, 1, ino);
        let oldest = table.make_room(key);
        let serial = table.new_serial();
        table.insert(
            key,
            Remembered {
                serial,
                handle: [0u8; 136],
            },
        );
        oldest.is_some()
    });
}

#[divan::bench]
fn parse_a_clean_reply(bencher: Bencher) {
    parse(bencher, b"1234: fd[10]: OK\0");
}

#[divan::bench]
fn parse_an_infected_reply(bencher: Bencher) {
    parse(bencher, b"1234: fd[10]: Win.Test.EICAR_HDB-1 FOUND\0");
}

fn parse(bencher: Bencher, bytes: &[u8]) {
    let mut reader = ReplyReader::default();
    bencher.bench_local(|| {
        reader.push(black_box(bytes));
        reader.next_reply()
    });
}
