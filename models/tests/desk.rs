//! The desk: what others leave at it is done once, in the order of each, and the
//! owner is never asleep when something is left for it. loom tries every interleaving;
//! a lost wake-up is a deadlock, which it reports.

use loom::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};
use onacc_models::kernel::{
    desk::{Desk, Visit},
    mailbox::Mailbox,
};

/// What the owner keeps at the desk.
#[derive(Debug, Default)]
struct State {
    /// In the order in which they were done.
    done: Vec<u32>,
    /// Done by who brought it, and not seen by the owner yet.
    unseen: Vec<u32>,
    seen: Vec<u32>,
}

/// Odd ones want the owner to look, those from 10 on are its to do.
fn bring(desk: &Desk<State, u32>, job: u32) {
    desk.hand_over(job, |state, job| {
        if job >= 10 {
            return Visit::Refused(job);
        }
        state.done.push(job);
        if job % 2 == 0 {
            return Visit::Done;
        }
        state.unseen.push(job);
        Visit::Unfinished
    });
}

/// The owner's loop, until `enough`. What was done.
fn own(desk: &Desk<State, u32>, enough: impl Fn(&State) -> bool) -> State {
    desk.open(State::default());
    let mut incoming = Vec::new();
    loop {
        let mut guard = desk.lock();
        let state = guard.as_mut().expect("the owner is there");
        desk.mailbox().drain(&mut incoming);
        state.done.append(&mut incoming);
        let unseen = std::mem::take(&mut state.unseen);
        state.seen.extend(unseen);
        if enough(state) {
            return guard.take().expect("the owner is there");
        }
        let sleeps = desk.mailbox().begin_sleep();
        drop(guard);
        if sleeps {
            desk.mailbox().waker().poll();
            desk.mailbox().end_sleep(true);
        }
    }
}

fn desk() -> Arc<Desk<State, u32>> {
    Arc::new(Desk::new(Mailbox::new().expect("a modelled eventfd")))
}

/// What goes at once does not overtake what was left for the owner.
#[test]
fn one_brings_three_and_their_order_is_kept() {
    for jobs in [[10, 2, 11], [1, 10, 3], [2, 4, 10]] {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(3);
        builder.check(move || {
            let desk = desk();
            let other = Arc::clone(&desk);
            let thread = thread::spawn(move || {
                for job in jobs {
                    bring(&other, job);
                }
            });
            // The last is the owner's or was waited for, so that it is awake for all.
            let state = own(&desk, |state| state.done.len() == 3);
            assert_eq!(state.done, jobs);
            thread.join().unwrap();
        });
    }
}

/// The owner may be asleep for good when a job has been done at its desk; it is not if
/// that job wants it to look.
#[test]
fn the_owner_sees_what_is_unfinished() {
    loom::model(|| {
        let desk = desk();
        let other = Arc::clone(&desk);
        let thread = thread::spawn(move || bring(&other, 1));
        let state = own(&desk, |state| {
            state.seen.len() == 1 || (state.done == [1] && state.unseen.is_empty())
        });
        assert_eq!(state.done, [1]);
        thread.join().unwrap();
    });
}

/// Two readers (lanes).
#[test]
fn two_bring_one_each() {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(2);
    builder.check(|| {
        let desk = desk();
        let threads = [1, 11].map(|job| {
            let other = Arc::clone(&desk);
            thread::spawn(move || bring(&other, job))
        });
        let mut state = own(&desk, |state| state.done.len() == 2);
        state.done.sort_unstable();
        assert_eq!(state.done, [1, 11]);
        for thread in threads {
            thread.join().unwrap();
        }
    });
}

/// Once the owner is gone nothing is done at its desk: who comes then is not lost in
/// a state that nobody has.
#[test]
fn nobody_works_at_a_desk_without_an_owner() {
    loom::model(|| {
        let desk = desk();
        let closed = Arc::new(AtomicBool::new(false));
        let (other, told) = (Arc::clone(&desk), Arc::clone(&closed));
        let thread = thread::spawn(move || {
            let gone = told.load(Ordering::SeqCst);
            bring(&other, 2);
            gone
        });
        desk.open(State::default());
        let state = desk.lock().take().expect("the owner is there");
        closed.store(true, Ordering::SeqCst);
        let gone = thread.join().unwrap();
        let mut left = Vec::new();
        desk.mailbox().drain(&mut left);
        assert_eq!(state.done.len() + left.len(), 1);
        assert!(!gone || left == [2]);
    });
}
