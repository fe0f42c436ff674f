//! What an open costs that eBPF drops in notify-only mode, beside no agent, by
//! tier. Prints the ratios: in an emulated machine they are the only ones to be had
//! of BPF LSM and fentry. Asserts only what no noise can break: a program that
//! costs several times the open has gone wrong.
//!
//! Must not: replace `cargo xtask bench`, which measures where it can.

mod common;

use std::{
    fs::File,
    io::Write as _,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use common::{LIMIT, Site, clean};
use onacc_tests::{Agent, ScratchFs, clamd::wait_until, or_skip, require_root, sys};

const OPENS: usize = 4000;
const ROUNDS: usize = 5;
const EXCLUDED: u32 = 65534;

/// Median nanoseconds of an open and close, as this user.
fn median(path: &Path, euid: u32) -> f64 {
    let path = path.to_path_buf();
    let times = thread::spawn(move || {
        sys::set_effective_uid_on_this_thread(euid).expect("seteuid");
        let mut times: Vec<u128> = (0..OPENS)
            .map(|_| {
                let before = Instant::now();
                drop(File::open(&path).expect("it opens"));
                before.elapsed().as_nanos()
            })
            .collect();
        times.sort_unstable();
        times
    })
    .join()
    .expect("the opener ends");
    #[expect(clippy::cast_precision_loss, reason = "nanoseconds of an open")]
    let middle = times[OPENS / 2] as f64;
    middle
}

#[test]
fn opens_that_are_dropped_cost_little() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let other = or_skip!(ScratchFs::tmpfs(1));
    let files = [
        ("by an excluded uid", site.write("a", &clean()), EXCLUDED),
        ("of a clean file", site.write("b", &clean()), 0),
        ("not watched", other.write("c", &clean()), 0),
    ];
    let mut ratios = [const { Vec::new() }; 3];
    let mut tier = String::new();
    for _ in 0..ROUNDS {
        let without = files.each_ref().map(|(_, path, euid)| median(path, *euid));
        let agent = Agent::builder(site.clamd())
            .prevention(false)
            .include(site.watched())
            .option(&format!("OnAccessExcludeUID {EXCLUDED}"));
        let agent = or_skip!(agent.try_start());
        let said = agent.output();
        let line = said.lines().find(|line| line.contains("tier: opens: "));
        tier = line.unwrap_or_default().to_owned();
        if !tier.contains("opens are told by eBPF") {
            onacc_tests::skip!("no hook on opens is granted here");
        }
        let settled = wait_until(LIMIT, || {
            thread::sleep(Duration::from_millis(60));
            let before = common::counter(&agent, "told_opens");
            drop(File::open(&files[1].1).expect("it opens"));
            thread::sleep(Duration::from_millis(60));
            common::counter(&agent, "told_opens") == before
        });
        assert!(settled);
        for (n, (_, path, euid)) in files.iter().enumerate() {
            ratios[n].push(median(path, *euid) / without[n]);
        }
    }
    // Past the capture of the test harness: a passed test says its numbers, too.
    let mut out = std::io::stderr().lock();
    let _shown = writeln!(out, "{tier}");
    for ((what, ..), ratios) in files.iter().zip(&mut ratios) {
        ratios.sort_by(f64::total_cmp);
        let ratio = ratios[ROUNDS / 2];
        let _shown = writeln!(
            out,
            "COST open {what}: {ratio:.3} times no agent ({ratios:.3?})"
        );
        assert!(ratio < 5.0, "{what}: {ratios:?}");
    }
}
