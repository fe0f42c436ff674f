use std::sync::atomic::AtomicBool;

use super::*;
use proptest::prelude::*;

fn watched(heartbeat: &Heartbeat, waits: &Arc<AtomicBool>) -> Watched {
    let waits = Arc::clone(waits);
    Watched {
        heartbeat: heartbeat.clone(),
        work_waits: Box::new(move || waits.load(Ordering::Relaxed)),
        disk: Disk::Counts,
    }
}

fn never() -> Arc<AtomicBool> {
    Arc::new(AtomicBool::new(false))
}

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn times(state: RunState, ran: u64, queued: u64) -> ThreadTimes {
    ThreadTimes {
        state,
        ran: millis(ran),
        queued: millis(queued),
    }
}

/// Ticks until one is stuck, of at most so many.
fn ticks_until_stuck(
    dog: &mut Watchdog,
    most: u64,
    at_each: impl Fn(),
    times: impl Fn(u64) -> Option<ThreadTimes>,
) -> Option<u64> {
    (0..most).find(|tick| {
        at_each();
        dog.tick(TICK, |_| times(*tick)).is_some()
    })
}

#[test]
fn a_thread_that_sleeps_or_moves_is_well_and_one_that_stands_is_stuck() {
    let (asleep, moving, stuck) = (
        Heartbeat::new("asleep"),
        Heartbeat::new("moving"),
        Heartbeat::new("stuck"),
    );
    let all = [&asleep, &moving, &stuck];
    let mut dog = Watchdog::new(all.map(|beat| watched(beat, &never())).into());
    for beat in all {
        beat.begin();
    }
    asleep.beat();
    asleep.rest();
    stuck.rest();
    let none = ticks_until_stuck(&mut dog, 20, || moving.beat(), |_| None);
    assert_eq!(none, None);
    assert!(dog.sees_all_move());
    stuck.beat();
    let found = ticks_until_stuck(&mut dog, 20, || moving.beat(), |_| None);
    // Four seconds, from the first tick that sees it.
    assert_eq!(found, Some(8));
    assert!(!dog.sees_all_move());
    let why = dog.tick(TICK, |_| None).unwrap().to_string();
    assert!(
        why.starts_with("the stuck thread is stuck, it had 4."),
        "{why}"
    );
}

#[test]
fn a_thread_that_sleeps_though_work_waits_is_stuck() {
    let (beat, waits) = (Heartbeat::new("reader"), never());
    let mut dog = Watchdog::new(vec![watched(&beat, &waits)]);
    waits.store(true, Ordering::Relaxed);
    // It has not begun: nothing is expected of it yet.
    assert_eq!(ticks_until_stuck(&mut dog, 20, || (), |_| None), None);
    waits.store(false, Ordering::Relaxed);
    beat.begin();
    beat.beat();
    beat.rest();
    let asleep = |_| Some(times(RunState::Asleep, 0, 0));
    assert_eq!(ticks_until_stuck(&mut dog, 20, || (), asleep), None);
    waits.store(true, Ordering::Relaxed);
    assert_eq!(ticks_until_stuck(&mut dog, 20, || (), asleep), Some(8));
    // Somebody else's work does not wait for a thread that has ended.
    beat.end();
    assert_eq!(ticks_until_stuck(&mut dog, 20, || (), asleep), None);
}

#[test]
fn whoever_waits_for_a_processor_is_not_stuck_for_however_long() {
    let beat = Heartbeat::new("reader");
    let mut dog = Watchdog::new(vec![watched(&beat, &never())]);
    beat.begin();
    beat.beat();
    // Never once on a processor, of which the kernel says nothing before it was.
    let starved = |_| Some(times(RunState::Runnable, 0, 0));
    assert_eq!(ticks_until_stuck(&mut dog, 1000, || (), starved), None);
    // A millisecond now and then, the rest in the queue.
    let throttled = |tick| Some(times(RunState::Runnable, tick, 499 * tick));
    assert_eq!(ticks_until_stuck(&mut dog, 1000, || (), throttled), None);
    // Asleep for a moment at each tick, having waited for a processor before.
    let between = |tick| Some(times(RunState::Asleep, tick, 498 * tick));
    assert_eq!(ticks_until_stuck(&mut dog, 1000, || (), between), None);
}

#[test]
fn whoever_runs_and_gets_nowhere_is_stuck_on_a_loaded_machine_too() {
    let beat = Heartbeat::new("service");
    let mut dog = Watchdog::new(vec![watched(&beat, &never())]);
    beat.begin();
    beat.beat();
    let alone = |tick| Some(times(RunState::Runnable, 500 * tick, 0));
    assert_eq!(ticks_until_stuck(&mut dog, 20, || (), alone), Some(8));
    beat.beat();
    let shared = |tick| Some(times(RunState::Runnable, 100 * tick, 400 * tick));
    assert_eq!(ticks_until_stuck(&mut dog, 100, || (), shared), Some(40));
}

#[test]
fn a_stop_of_the_whole_process_counts_for_one_tick() {
    let beat = Heartbeat::new("reader");
    let mut dog = Watchdog::new(vec![watched(&beat, &never())]);
    beat.begin();
    beat.beat();
    for _ in 0..7 {
        let stuck = dog.tick(Duration::from_mins(1), |_| {
            Some(times(RunState::Asleep, 0, 0))
        });
        assert_eq!(stuck, None);
    }
}

#[test]
fn a_disk_is_waited_for_only_by_whom_nobody_waits_for() {
    let on_disk = |_| Some(times(RunState::Disk, 0, 0));
    for (disk, after) in [(Disk::Counts, Some(8)), (Disk::IsWaitedFor, None)] {
        let beat = Heartbeat::new("keeper");
        let mut one = watched(&beat, &never());
        one.disk = disk;
        let mut dog = Watchdog::new(vec![one]);
        beat.begin();
        beat.beat();
        assert_eq!(ticks_until_stuck(&mut dog, 20, || (), on_disk), after);
    }
}

#[derive(Clone, Copy, Debug)]
struct Moment {
    moves: bool,
    state: RunState,
    ran: u64,
    queued: u64,
}

prop_compose! {
    fn moment()(
        moves in proptest::bool::weighted(0.1),
        state in prop_oneof![
            Just(RunState::Runnable), Just(RunState::Asleep), Just(RunState::Disk)
        ],
        ran in 0..=500u64,
        share in 0..=100u64,
    ) -> Moment {
        Moment { moves, state, ran, queued: (500 - ran) * share / 100 }
    }
}

proptest! {
    /// What it is ended for is time that it really had since its last step: never
    /// less than the patience, whatever the times are.
    #[test]
    fn nobody_is_ended_who_has_not_had_the_time(
        moments in proptest::collection::vec(moment(), 1..60),
    ) {
        let beat = Heartbeat::new("reader");
        let mut dog = Watchdog::new(vec![watched(&beat, &never())]);
        beat.begin();
        beat.beat();
        let (mut ran, mut queued, mut could) = (0, 0, 0);
        for at in moments {
            if at.moves {
                beat.beat();
                could = 0;
            }
            (ran, queued) = (ran + at.ran, queued + at.queued);
            could += 500 - at.queued;
            let stuck = dog.tick(TICK, |_| Some(times(at.state, ran, queued)));
            prop_assert!(stuck.is_none() || could >= 4000, "{could}");
        }
    }
}
