//! Tests of the fd budget; `models/` tries its interleavings.

use super::budget::*;
use crate::kernel::wake::Wake;

#[test]
fn never_more_than_the_limit_and_nothing_is_lost() {
    let budget = FdBudget::new(5);
    let mut first = budget.reserve(3);
    assert_eq!((first.places(), budget.room()), (3, 2));
    let second = budget.reserve(9);
    assert_eq!((second.places(), budget.room()), (2, 0));
    assert!(budget.try_take().is_none());
    let permit = first.take().unwrap();
    drop((first, second));
    assert_eq!(budget.room(), 4);
    drop(permit);
    assert_eq!(budget.room(), 5);
}

#[test]
fn who_waits_is_woken_when_a_place_is_given_back() {
    use nix::poll::PollFlags;
    use std::os::fd::AsFd as _;
    use std::time::{Duration, Instant};
    let budget = FdBudget::new(1);
    let wake = Wake::new().unwrap();
    let permit = budget.try_take().unwrap();
    assert!(!budget.begin_wait(&wake));
    let until = Some(Instant::now() + Duration::from_millis(5));
    let poll = |until| crate::kernel::wake::sleep([(wake.as_fd(), PollFlags::POLLIN)], until);
    assert_eq!(poll(until).unwrap(), [false]);
    drop(permit);
    assert_eq!(poll(None).unwrap(), [true]);
    assert!(budget.begin_wait(&wake));
}
