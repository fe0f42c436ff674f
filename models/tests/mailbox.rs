//! The mailbox and the fd budget: nothing that is sent is lost, and nobody
//! sleeps while there is something for him. loom tries every interleaving of
//! the threads below; a lost wake-up is a deadlock, which it reports.

use loom::thread;
use onacc_models::kernel::{budget::FdBudget, mailbox::Mailbox, wake::Wake};

/// The loop of every thread of the agent that has a mailbox.
fn receive(mailbox: &Mailbox<u32>, wanted: usize) -> Vec<u32> {
    let mut got = Vec::new();
    loop {
        mailbox.drain(&mut got);
        if got.len() >= wanted {
            return got;
        }
        if mailbox.begin_sleep() {
            mailbox.waker().poll();
            mailbox.end_sleep(true);
        }
    }
}

#[test]
fn one_sender_two_items() {
    loom::model(|| {
        let mailbox = Mailbox::new().unwrap();
        let sender = mailbox.clone();
        let thread = thread::spawn(move || {
            sender.send(1);
            sender.send(2);
        });
        assert_eq!(receive(&mailbox, 2), [1, 2]);
        thread.join().unwrap();
    });
}

/// Three threads have too many orders for a test: here at most two preemptions
/// (switches away from a thread that could go on) in each. Without that bound it
/// takes three minutes, and passes.
#[test]
fn two_senders() {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(2);
    builder.check(|| {
        let mailbox = Mailbox::new().unwrap();
        let threads = [1, 2].map(|item| {
            let sender = mailbox.clone();
            thread::spawn(move || sender.send(item))
        });
        let mut got = receive(&mailbox, 2);
        got.sort_unstable();
        assert_eq!(got, [1, 2]);
        for thread in threads {
            thread.join().unwrap();
        }
    });
}

/// How a thread without a message for it is told to stop: a flag, then its waker.
#[test]
fn a_stop_by_the_waker_is_seen() {
    use loom::sync::{Arc, atomic::AtomicBool, atomic::Ordering};
    loom::model(|| {
        let mailbox: Mailbox<u32> = Mailbox::new().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let (teller, told) = (mailbox.clone(), Arc::clone(&stop));
        let thread = thread::spawn(move || {
            told.store(true, Ordering::Release);
            teller.waker().notify();
        });
        while !stop.load(Ordering::Acquire) {
            if mailbox.begin_sleep() {
                mailbox.waker().poll();
                mailbox.end_sleep(true);
            }
        }
        thread.join().unwrap();
    });
}

/// A reader without room sleeps until a place is given back.
#[test]
fn a_reader_that_waits_for_room_is_woken() {
    loom::model(|| {
        let budget = FdBudget::new(1);
        let permit = budget.try_take().unwrap();
        let thread = thread::spawn(move || drop(permit));
        let wake = Wake::new().unwrap();
        loop {
            let mut places = budget.reserve(4);
            if let Some(permit) = places.take() {
                drop(permit);
                break;
            }
            if !budget.begin_wait(&wake) {
                wake.poll();
                wake.clear();
            }
        }
        thread.join().unwrap();
        assert_eq!(budget.room(), 1);
    });
}

/// Two readers (lanes) share one place: both get it, and never at once.
#[test]
fn two_readers_share_one_place() {
    use loom::sync::{Arc, atomic::AtomicUsize, atomic::Ordering};
    loom::model(|| {
        let budget = FdBudget::new(1);
        let holders = Arc::new(AtomicUsize::new(0));
        let read = |budget: std::sync::Arc<FdBudget>, holders: Arc<AtomicUsize>| {
            let wake = Wake::new().unwrap();
            loop {
                let mut places = budget.reserve(1);
                if let Some(permit) = places.take() {
                    assert_eq!(holders.fetch_add(1, Ordering::SeqCst), 0);
                    holders.fetch_sub(1, Ordering::SeqCst);
                    drop(permit);
                    return;
                }
                if !budget.begin_wait(&wake) {
                    wake.poll();
                    wake.clear();
                }
            }
        };
        let other = {
            let (budget, holders) = (budget.clone(), Arc::clone(&holders));
            thread::spawn(move || read(budget, holders))
        };
        read(budget.clone(), holders);
        other.join().unwrap();
        assert_eq!(budget.room(), 1);
    });
}
