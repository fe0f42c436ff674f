//! Each job is answered exactly once, whatever happens.

use super::*;
use proptest::prelude::*;
use std::time::Duration;

const HERE: Place = Place {
    opener: 1,
    huge: false,
    slow: false,
};

fn done<J>(book: &mut Book<J>, token: u64) -> Option<(J, bool)> {
    book.done(token, 1).map(|done| (done.job, done.late))
}

#[test]
fn no_more_are_under_way_than_the_limit() {
    let now = Instant::now();
    let mut book = Book::new(2, 2);
    for job in 0..3 {
        book.add(job, HERE, now, 0);
    }
    for _ in 0..2 {
        let (token, ..) = book.next_to_send(|_| true).unwrap();
        book.sent(token, 1, now);
    }
    assert!(book.next_to_send(|_| true).is_none());
    assert_eq!(book.done(0, 2), None, "another session's reply");
    assert_eq!(done(&mut book, 0), Some((0, false)));
    assert_eq!(
        book.next_to_send(|_| true).map(|(token, ..)| token),
        Some(2)
    );
}

#[test]
fn a_due_job_under_way_is_answered_once_and_keeps_its_place() {
    let now = Instant::now();
    let mut book = Book::new(1, 1);
    book.add('a', HERE, now, 0);
    book.add('b', HERE, now, 0);
    let (token, ..) = book.next_to_send(|_| true).unwrap();
    book.sent(token, 1, now);
    assert_eq!(book.next_due(now), Some(Due::UnderWay(&mut 'a')));
    assert_eq!(book.next_due(now), Some(Due::Waiting(1, 'b')));
    assert_eq!(book.next_due(now), None);
    assert_eq!(book.under_way(), 1);
    assert_eq!(done(&mut book, token), Some(('a', true)));
    assert_eq!(book.under_way(), 0);
}

#[test]
fn what_is_never_replied_to_is_told_and_leaves_with_its_session() {
    let now = Instant::now();
    let later = now + Duration::from_secs(1);
    let mut book = Book::new(8, 8);
    book.add("due", HERE, now, 0);
    book.add("waited for", HERE, later, 0);
    book.add_prescan("prescan", HERE);
    for session in [1, 1, 1] {
        let (token, ..) = book.next_to_send(|_| true).unwrap();
        book.sent(token, session, now);
    }
    let young = book.add_prescan("young prescan", HERE);
    let (token, ..) = book.next_to_send(|_| true).unwrap();
    book.sent(token, 1, later);
    assert_eq!(token, young);
    // Nobody has waited in vain yet but for the prescan.
    assert_eq!(book.unanswered(now), [(1, now)]);
    assert!(matches!(book.next_due(now), Some(Due::UnderWay(_))));
    assert_eq!(book.unanswered(now), [(1, now), (1, now)]);
    assert_eq!(book.unanswered(later).len(), 3);
    book.give_up_unanswered(1, now);
    let lost = book.session_lost(1, 0, Blame::Nobody);
    let unwanted: Vec<_> = lost.unwanted.iter().map(|(_, job)| *job).collect();
    assert_eq!(unwanted.len(), 2);
    assert!(unwanted.contains(&"due") && unwanted.contains(&"prescan"));
    // What is waited for, and what had no time yet, is sent again.
    assert_eq!((lost.failed.len(), lost.again), (0, 2));
    assert_eq!(book.under_way(), 0);
}

#[test]
fn a_lost_session_puts_the_jobs_back_in_order_and_drops_the_unwanted() {
    let now = Instant::now();
    let later = now + Duration::from_secs(9);
    let mut book = Book::new(8, 8);
    for (job, deadline) in [('a', now), ('b', later), ('c', later), ('d', later)] {
        book.add(job, HERE, deadline, 0);
    }
    for _ in 0..3 {
        let (token, ..) = book.next_to_send(|_| true).unwrap();
        book.sent(token, 1, now);
    }
    assert!(matches!(book.next_due(now), Some(Due::UnderWay('a'))));
    let lost = book.session_lost(1, 0, Blame::Jobs);
    assert_eq!(
        (lost.unwanted, lost.failed, lost.again),
        (vec![(0, 'a')], vec![], 2)
    );
    let order: Vec<char> = std::iter::from_fn(|| {
        let (token, _, job, _) = book.next_to_send(|_| true)?;
        let job = *job;
        book.sent(token, 1, now);
        Some(job)
    })
    .collect();
    assert_eq!(order, ['b', 'c', 'd']);
    let lost = book.session_lost(1, 0, Blame::Jobs);
    assert_eq!((lost.failed, lost.again), (vec![(2, 'c'), (1, 'b')], 1));
}

#[test]
fn tries_are_counted() {
    let now = Instant::now();
    let mut book = Book::new(1, 1);
    let token = book.add('a', HERE, now, 1);
    book.sent(token, 1, now);
    assert!(book.retry(token, 1, 0));
    assert!(book.unreachable(true) == [(token, 'a')]);
    let token = book.add('b', HERE, now, 1);
    assert!(book.unreachable(false).is_empty() && book.unreachable(true).is_empty());
    assert!(book.unreachable(false) == [(token, 'b')] && book.done(token, 1).is_none());
}

#[test]
fn openers_come_first_and_keep_a_place() {
    let now = Instant::now();
    let mut book = Book::new(2, 2);
    book.add_prescan('p', HERE);
    book.add_prescan('q', HERE);
    book.add('a', HERE, now, 0);
    let mut send = || {
        let (token, _, job, _) = book.next_to_send(|_| true)?;
        let job = *job;
        book.sent(token, 1, now);
        Some(job)
    };
    assert_eq!(send(), Some('a'));
    assert_eq!(send(), None, "the last place is an opener's");
    book.done(2, 1);
    assert!(matches!(book.next_to_send(|_| true), Some((0, _, 'p', _))));
}

#[test]
fn an_opener_that_joins_a_prescan_brings_urgency_and_deadline() {
    let now = Instant::now();
    let mut book = Book::new(2, 2);
    book.add_prescan('p', HERE);
    let late = book.add_prescan('q', HERE);
    assert_eq!(book.next_due(now), None);
    assert_eq!(book.join(late, now), Some(&mut 'q'));
    assert!(matches!(book.next_to_send(|_| true), Some((_, _, 'q', _))));
    assert_eq!(book.next_due(now), Some(Due::Waiting(late, 'q')));
    assert_eq!(book.join(late, now), None);
}

#[test]
fn huge_files_leave_a_place_and_a_failed_server_is_remembered() {
    let now = Instant::now();
    let mut book = Book::new(3, 3);
    let huge = Place { huge: true, ..HERE };
    for job in ['h', 'i', 'j'] {
        book.add(job, huge, now, 1);
    }
    for wanted in [0, 1] {
        let (token, ..) = book.next_to_send(|_| true).unwrap();
        assert_eq!(token, wanted);
        book.sent(token, 1, now);
    }
    assert!(book.next_to_send(|_| true).is_none());
    book.add('s', Place { opener: 2, ..HERE }, now, 0);
    assert_eq!(
        book.next_to_send(|_| true),
        Some((3, Class::Small, &mut 's', None))
    );
    assert!(book.next_to_send(|class| class == Class::Huge).is_none());
    assert!(book.retry(0, 1, 4));
    assert_eq!(
        book.next_to_send(|class| class == Class::Huge),
        Some((0, Class::Huge, &mut 'h', Some(4)))
    );
    // Nobody is to blame for a server that went silent.
    for _ in 0..3 {
        book.sent(0, 2, now);
        let lost = book.session_lost(2, 5, Blame::Nobody);
        assert_eq!((lost.failed, lost.again), (vec![], 1));
    }
}

#[test]
fn who_is_gone_frees_the_place_in_line() {
    let now = Instant::now();
    let mut book = Book::new(1, 1);
    for job in 0..4 {
        book.add(job, HERE, now, 0);
    }
    book.sent(0, 1, now);
    let (left, next) = book.look_after((0, 3), |job| *job != 1);
    assert_eq!((left, next), (vec![(2, 2)], 3));
    let (left, next) = book.look_after((next, 3), |_| true);
    assert_eq!((left, next), (vec![(3, 3)], 4));
    // What is under way stays, for its verdict.
    assert_eq!(done(&mut book, 0), Some((0, true)));
    assert_eq!(book.next_due(now), Some(Due::Waiting(1, 1)));
}

#[test]
fn who_joins_what_a_killed_opener_left_has_a_deadline_of_its_own() {
    let start = Instant::now();
    let later = |seconds| start + Duration::from_secs(seconds);
    let mut book = Book::new(1, 1);
    let token = book.add('a', HERE, later(1), 0);
    book.sent(token, 1, start);
    assert!(book.look_after((0, 9), |_| true).0.is_empty());
    assert_eq!(book.join(token, later(9)), Some(&mut 'a'));
    assert_eq!(book.next_due(later(8)), None);
    assert_eq!(book.next_due(later(9)), Some(Due::UnderWay(&mut 'a')));
    assert_eq!(book.next_due(later(99)), None);
    // The reply that was waited for in vain may never come: nobody joins it.
    assert_eq!(book.join(token, later(99)), None);
    assert_eq!(done(&mut book, token), Some(('a', true)));
}

#[derive(Clone, Debug)]
enum Step {
    Add(u8),
    Send(u8),
    Done(u8, u8),
    Retry(u8),
    Lost(u8),
    Unreachable(bool),
    Gone(u8),
    Time(u8),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => any::<u8>().prop_map(Step::Add),
        4 => any::<u8>().prop_map(Step::Send),
        3 => any::<(u8, u8)>().prop_map(|(token, session)| Step::Done(token, session)),
        2 => any::<u8>().prop_map(Step::Retry),
        1 => any::<u8>().prop_map(Step::Lost),
        1 => any::<bool>().prop_map(Step::Unreachable),
        1 => any::<u8>().prop_map(Step::Gone),
        2 => any::<u8>().prop_map(Step::Time),
    ];
    proptest::collection::vec(step, 0..200)
}

#[test]
fn what_may_hang_takes_no_more_than_its_places() {
    let now = Instant::now();
    let mut book = Book::new(4, 2);
    let slow = Place {
        slow: true,
        huge: true,
        ..HERE
    };
    for job in 0..3 {
        book.add(job, slow, now, 1);
    }
    book.add_prescan(3, slow);
    for wanted in [0, 1] {
        let (token, class, ..) = book.next_to_send(|_| true).unwrap();
        assert_eq!((token, class), (wanted, Class::Slow));
        book.sent(token, 1, now);
    }
    // Their openers are answered; they stay, and so do their places.
    assert_eq!(book.next_to_send(|_| true), None);
    assert!(matches!(book.next_due(now), Some(Due::UnderWay(0))));
    assert_eq!(book.next_to_send(|_| true), None);
    let quick = book.add(4, HERE, now, 1);
    assert_eq!(
        book.next_to_send(|_| true).map(|(token, ..)| token),
        Some(quick)
    );
    book.sent(quick, 1, now);
    assert_eq!(done(&mut book, 0).map(|(job, _)| job), Some(0));
    assert_eq!(
        book.next_to_send(|_| true).map(|(token, ..)| token),
        Some(2)
    );
}

proptest! {
    /// Every opener gets exactly one answer (or is gone), whatever happens, and
    /// none after its deadline has been looked at.
    #[test]
    fn each_job_is_answered_exactly_once(steps in steps()) {
        let mut now = Instant::now();
        let mut book: Book<usize> = Book::new(3, 2);
        let mut answers: Vec<u32> = Vec::new();
        for step in steps {
            let token = |n: u8| u64::from(n) % (answers.len() as u64 + 1);
            match step {
                Step::Add(n) => {
                    let place = Place { opener: u64::from(n % 3), huge: n % 2 == 0, slow: n % 5 == 0 };
                    book.add(answers.len(), place, now + Duration::from_millis(100), 1);
                    answers.push(0);
                }
                Step::Send(n) => {
                    let only = [Class::Small, Class::Huge, Class::Slow][usize::from(n % 3)];
                    let next = book.next_to_send(|class| n > 99 || class == only);
                    if let Some(token) = next.map(|(token, ..)| token) {
                        book.sent(token, u64::from(n % 2), now);
                    }
                }
                Step::Done(n, session) => {
                    let done = book.done(token(n), u64::from(session % 2));
                    if let Some(done) = done && !done.late {
                        answers[done.job] += 1;
                    }
                }
                Step::Retry(n) => {
                    book.retry(token(n), u64::from(n % 2), 0);
                }
                Step::Lost(n) => {
                    let blame = [Blame::Jobs, Blame::Nobody][usize::from(n > 99)];
                    let lost = book.session_lost(u64::from(n % 2), 0, blame);
                    for (_, job) in lost.unwanted {
                        prop_assert_eq!(answers[job], 1);
                    }
                    for (_, job) in lost.failed {
                        answers[job] += 1;
                    }
                }
                Step::Unreachable(was_tried) => {
                    for (_, job) in book.unreachable(was_tried) {
                        answers[job] += 1;
                    }
                }
                Step::Gone(n) => {
                    let mut gone = Vec::new();
                    book.look_after((usize::from(n % 7), 3), |job| {
                        let is = *job % 5 == usize::from(n % 5);
                        if is {
                            gone.push(*job);
                        }
                        is
                    });
                    for job in gone {
                        answers[job] += 1;
                    }
                }
                Step::Time(millis) => {
                    now += Duration::from_millis(u64::from(millis));
                    while let Some(due) = book.next_due(now) {
                        let job = match due {
                            Due::Waiting(_, job) => job,
                            Due::UnderWay(job) => *job,
                        };
                        answers[job] += 1;
                    }
                }
            }
            prop_assert!(book.under_way() <= 3);
            prop_assert!(answers.iter().all(|count| *count <= 1));
        }
        while let Some(due) = book.next_due(now + Duration::from_secs(1)) {
            let job = match due {
                Due::Waiting(_, job) => job,
                Due::UnderWay(job) => *job,
            };
            answers[job] += 1;
        }
        prop_assert!(answers.iter().all(|count| *count == 1), "{:?}", answers);
    }
}
