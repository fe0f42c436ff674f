//! The wall clock jumps, forward and back, under an agent that knows files.
//!
//! Stamps decide which verdicts are kept, so that a clock that jumps must cost
//! scans and never a verdict. It is set in a machine of its own alone (`cargo
//! xtask vm`), never on the host.

mod common;

use std::{fs, path::Path, thread};

use common::{NO_LONGER_YOUNG, Site, assert_opens, assert_refused, clean, infected, marker};
use nix::{
    sys::time::{TimeSpec, TimeValLike as _},
    time::{ClockId, clock_gettime, clock_settime},
};
use onacc_tests::{or_skip, require_root, skip};

const DAY: i64 = 86_400;

fn jump(seconds: i64) {
    let now = clock_gettime(ClockId::CLOCK_REALTIME).expect("the time");
    let then = now + TimeSpec::seconds(seconds);
    clock_settime(ClockId::CLOCK_REALTIME, then).expect("setting the time");
}

#[test]
fn a_clock_that_jumps_hides_no_change_and_refuses_nothing_clean() {
    require_root!();
    if !Path::new("/vm").is_dir() {
        skip!("the clock is set only in a machine of its own: cargo xtask vm");
    }
    let site = or_skip!(Site::ext4());
    let (good, bad) = (site.write("good", &clean()), site.write("bad", &infected()));
    thread::sleep(NO_LONGER_YOUNG);
    let _agent = site.agent().start();
    for (round, seconds) in [DAY, -2 * DAY, 3600, -1, 1, DAY].into_iter().enumerate() {
        assert_opens(&good);
        jump(seconds);
        assert_opens(&good);
        assert_refused(&bad);
        // Known and clean, then changed at a time that may lie before its stamps.
        let turncoat = site.write(format!("turncoat{round}"), &clean());
        thread::sleep(NO_LONGER_YOUNG);
        assert_opens(&turncoat);
        jump(-seconds / 2);
        fs::write(&turncoat, marker()).expect("changing a file");
        assert_refused(&turncoat);
        assert_opens(&good);
    }
}
