//! Clean marks: no invalidation is lost. The keeper's own code runs against a
//! modelled kernel, in every order of its steps and a writer's. When both have
//! come to rest and the keeper has taken in what was reported, no file whose
//! bytes are not those that were scanned may carry a mark.
//!
//! Bounds: one keeper, one or two writers, one or two files, one or two placings.
//! Every order of their steps is tried, unless the test names a bound.
//! Not modelled: inodes that are evicted, handles that cannot be opened. Not a
//! failure, because README names it: a mark may stand for a moment after a store
//! through a mapping, until the keeper has taken the report.

use std::sync::Arc;

use loom::thread;
use onacc::coverage::clean_marks::{Clean, CleanMarks};
use onacc::observe::counters::Counters;
use onacc_models::world::Kernel;

const A: u64 = 1;
const B: u64 = 2;

type Marks = CleanMarks<Kernel>;

fn marks(kernel: &Kernel, capacity: usize) -> Marks {
    CleanMarks::new(kernel.clone(), capacity, Arc::new(Counters::default()))
}

fn clean(kernel: &Kernel, ino: u64) -> Clean<u64> {
    Clean {
        file: ino,
        stat: kernel.scanned(ino),
        generation: 0,
    }
}

fn write(kernel: &Kernel, ino: u64) {
    kernel.open_for_writing(ino);
    kernel.write(ino);
    kernel.close(ino);
}

fn store(kernel: &Kernel, ino: u64) {
    kernel.open_for_writing(ino);
    kernel.store(ino);
    kernel.close(ino);
}

/// Runs a keeper beside writers, with a ring for so many records, a table for so
/// many marks, and this many preemptions at most (`None`: all orders); then takes in what is left, and looks.
fn run(
    (ring, capacity, bound): (usize, usize, Option<usize>),
    writers: Vec<fn(&Kernel)>,
    keeper: fn(&mut Marks, [&Clean<u64>; 2]),
) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = bound;
    builder.check(move || {
        let kernel = Kernel::new(&[A, B], ring);
        let (a, b) = (clean(&kernel, A), clean(&kernel, B));
        let threads: Vec<_> = writers
            .iter()
            .map(|writer| {
                let (kernel, writer) = (kernel.clone(), *writer);
                thread::spawn(move || writer(&kernel))
            })
            .collect();
        let mut marks = marks(&kernel, capacity);
        keeper(&mut marks, [&a, &b]);
        for thread in threads {
            thread.join().expect("the writer ends");
        }
        marks.take_records();
        for ino in [A, B] {
            assert!(!kernel.hides(ino), "inode {ino}: new bytes behind a mark");
        }
    });
}

#[test]
fn the_model_can_fail_and_marks_do_come_about() {
    loom::model(|| {
        let kernel = Kernel::new(&[A], 8);
        let file = clean(&kernel, A);
        let mut marks = marks(&kernel, 8);
        marks.place(&file);
        assert!(kernel.ignores(A) && !kernel.hides(A));
        store(&kernel, A);
        assert!(kernel.hides(A), "until the report is taken in");
        marks.take_records();
        assert!(!kernel.ignores(A));
    });
}

#[test]
fn a_write_while_a_mark_is_placed() {
    run(
        (8, 8, None),
        vec![|kernel| write(kernel, A)],
        |marks, [a, _]| {
            marks.place(a);
            marks.take_records();
        },
    );
}

#[test]
fn a_store_through_a_mapping_while_a_mark_is_placed() {
    run(
        (8, 8, None),
        vec![|kernel| store(kernel, A)],
        |marks, [a, _]| {
            marks.place(a);
            marks.take_records();
        },
    );
}

/// Two openers can each bring the same verdict.
#[test]
fn a_store_while_a_mark_is_placed_again() {
    run(
        (8, 8, None),
        vec![|kernel| store(kernel, A)],
        |marks, [a, _]| {
            marks.place(a);
            marks.take_records();
            marks.place(a);
            marks.take_records();
        },
    );
}

/// It has the file open and mapped while the mark is placed again, and stores
/// much later.
#[test]
fn a_writer_that_waits_while_a_mark_is_placed_again() {
    fn writer(kernel: &Kernel) {
        kernel.open_for_writing(A);
        kernel.store(A);
    }
    run((8, 8, None), vec![writer], |marks, [a, _]| {
        marks.place(a);
        marks.place(a);
    });
}

/// At most three preemptions in an order.
#[test]
fn a_write_and_a_store_at_once() {
    let writers: Vec<fn(&Kernel)> = vec![|kernel| write(kernel, A), |kernel| store(kernel, A)];
    run((8, 8, Some(3)), writers, |marks, [a, _]| {
        marks.place(a);
        marks.take_records();
    });
}

#[test]
fn a_mark_that_makes_room_for_another() {
    run(
        (8, 1, None),
        vec![|kernel| store(kernel, A)],
        |marks, [a, b]| {
            marks.place(a);
            marks.place(b);
            marks.take_records();
        },
    );
}

/// The ring has room for one record: the other is lost, and all marks go. At most
/// three preemptions in an order.
#[test]
fn a_report_that_is_lost() {
    fn writer(kernel: &Kernel) {
        store(kernel, A);
        store(kernel, B);
    }
    run((1, 8, Some(3)), vec![writer], |marks, [a, b]| {
        marks.place(a);
        marks.place(b);
        marks.take_records();
    });
}

#[test]
fn a_flush_while_a_file_is_stored_into() {
    run(
        (8, 8, None),
        vec![|kernel| store(kernel, A)],
        |marks, [a, _]| {
            marks.place(a);
            marks.flush("the model");
            marks.place(a);
            marks.take_records();
        },
    );
}

/// The generation changes, then the keeper is told to flush: no mark of the old
/// database is left, whenever it was placed.
#[test]
fn a_new_database_while_marks_are_placed() {
    loom::model(|| {
        let kernel = Kernel::new(&[A], 8);
        let file = clean(&kernel, A);
        let service = {
            let kernel = kernel.clone();
            thread::spawn(move || kernel.new_generation())
        };
        let mut marks = marks(&kernel, 8);
        marks.place(&file);
        service.join().expect("the service goes on");
        // The message that the service has sent meanwhile.
        marks.flush("clamd has another signature database");
        marks.place(&file);
        assert!(!kernel.ignores(A));
    });
}

/// Marks of one file stand; it is written and then opened, while the keeper goes on.
/// How many of these opens slip by, in the worst order.
fn slips(kernel: fn() -> Kernel, capacity: usize, keeper: fn(&mut Marks, &Clean<u64>)) -> u32 {
    use std::sync::atomic::{AtomicU32, Ordering};
    let most = Arc::new(AtomicU32::new(0));
    let found = Arc::clone(&most);
    loom::model(move || {
        let kernel = kernel();
        let (a, b) = (clean(&kernel, A), clean(&kernel, B));
        let mut marks = marks(&kernel, capacity);
        marks.place(&a);
        assert!(kernel.ignores(A));
        let writer = {
            let kernel = kernel.clone();
            thread::spawn(move || {
                write(&kernel, A);
                kernel.open(A);
            })
        };
        keeper(&mut marks, &b);
        writer.join().expect("the writer ends");
        found.fetch_max(kernel.slips(), Ordering::Relaxed);
    });
    most.load(Ordering::Relaxed)
}

fn with_anchors() -> Kernel {
    Kernel::new(&[A, B], 8)
}

fn without_anchors() -> Kernel {
    with_anchors().without_anchors()
}

/// The moment in which a mark is being destroyed: nothing that was written before an
/// open may be behind it.
#[test]
fn no_open_slips_by_a_mark_that_goes_because_its_file_was_written() {
    let keeper: fn(&mut Marks, &Clean<u64>) = |marks, _| marks.take_records();
    assert_eq!(slips(with_anchors, 8, keeper), 0);
    assert_eq!(slips(without_anchors, 8, keeper), 1, "the model sees it");
}

/// (The model found that this mark was destroyed.)
#[test]
fn no_open_slips_by_a_mark_that_makes_room() {
    let keeper: fn(&mut Marks, &Clean<u64>) = |marks, b| marks.place(b);
    assert_eq!(slips(with_anchors, 1, keeper), 0);
    assert_eq!(slips(without_anchors, 1, keeper), 1, "the model sees it");
}
