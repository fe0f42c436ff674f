//! Every order of events, up to a depth: the real book, versions and verdict
//! table, a modelled file, a modelled clamd.
//!
//! Checks: each opener is answered exactly once; a verdict on older bytes is given
//! to nobody who opened newer ones; no kept verdict speaks of other bytes than
//! the file has. What `service.rs` does between these parts (find, join, enter;
//! sent; leave, answer, keep) is system calls and counters for the rest, and is
//! repeated here in its order: that much is a copy. Bounds: one file, three
//! openers, one session at a time, one retry, seven steps, of which the first is an
//! open.

use std::time::{Duration, Instant};

use onacc_common::{ChangeTime, InodeKey};

use super::book::{Blame, Book, Due, Place};
use super::versions::Versions;
use crate::kernel::file::FileStat;
use crate::policy::{Verdict, VerdictCache, stamps};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Somebody opens the file.
    Open,
    /// The bytes change; infected and clean take turns.
    Write,
    /// The clock ticks: stamps of before are old.
    Tick,
    /// The next job is sent to clamd.
    Send,
    /// clamd reads the bytes.
    Read,
    /// clamd's verdict on what it read.
    Reply,
    /// clamd could not scan.
    Error,
    /// The session ends.
    Lost,
    /// The deadline of all passes.
    Expire,
    /// Another signature database.
    Database,
}

const STEPS: [Step; 10] = [
    Step::Open,
    Step::Write,
    Step::Tick,
    Step::Send,
    Step::Read,
    Step::Reply,
    Step::Error,
    Step::Lost,
    Step::Expire,
    Step::Database,
];
const OPENERS: usize = 3;

/// A job: who waits, with the version of the bytes that each opened.
#[derive(Debug)]
struct Job {
    openers: Vec<usize>,
    stat: FileStat,
}

struct World {
    book: Book<Job>,
    versions: Versions,
    verdicts: VerdictCache,
    now: Instant,
    /// Version of the file's bytes; odd ones are infected.
    bytes: u32,
    /// Its ctime, in ticks, and the clock.
    changed: i64,
    clock: i64,
    /// For each opener: the version that it opened, how often it was answered.
    openers: Vec<(u32, u32)>,
    /// The job with clamd, and what clamd has read.
    with_clamd: Option<(u64, Option<u32>)>,
    session: u64,
}

impl World {
    fn new() -> Self {
        Self {
            book: Book::new(2),
            versions: Versions::default(),
            verdicts: VerdictCache::new(4),
            now: Instant::now(),
            bytes: 0,
            changed: 0,
            clock: 1,
            openers: Vec::new(),
            with_clamd: None,
            session: 1,
        }
    }

    fn stat(&self) -> FileStat {
        FileStat {
            key: InodeKey::new(8, 1, 5),
            size: 3,
            modified: 0,
            changed: ChangeTime::new(self.changed, 1),
            mount: 1,
            regular: true,
            links: 1,
        }
    }

    /// False: the step cannot be taken here.
    fn take(&mut self, step: Step) -> bool {
        match step {
            Step::Open if self.openers.len() < OPENERS => self.open(),
            Step::Write => {
                self.bytes += 1;
                self.changed = self.clock;
            }
            Step::Tick => self.clock += 1,
            Step::Send if self.with_clamd.is_none() => return self.send(),
            Step::Read => {
                let Some((_, read @ None)) = &mut self.with_clamd else {
                    return false;
                };
                *read = Some(self.bytes);
            }
            Step::Reply => {
                let Some((token, Some(read))) = self.with_clamd else {
                    return false;
                };
                self.with_clamd = None;
                self.reply(token, read);
            }
            Step::Error => {
                let Some((token, _)) = self.with_clamd.take() else {
                    return false;
                };
                if !self.book.retry(token, self.session, 0)
                    && let Some(done) = self.book.done(token, self.session)
                {
                    self.versions.leave(done.job.stat.key, token);
                    self.answer(&done.job.openers, done.late, None);
                }
            }
            Step::Lost => {
                if self.with_clamd.take().is_none() {
                    return false;
                }
                let lost = self.book.session_lost(self.session, 0, Blame::Jobs);
                self.session += 1;
                for (token, job) in lost.unwanted {
                    self.versions.leave(job.stat.key, token);
                }
                for (token, job) in lost.failed {
                    self.versions.leave(job.stat.key, token);
                    self.answer(&job.openers, false, None);
                }
            }
            Step::Expire => self.expire(),
            Step::Database => self.verdicts.new_generation(),
            Step::Open | Step::Send => return false,
        }
        true
    }

    fn open(&mut self) {
        let opener = self.openers.len();
        self.openers.push((self.bytes, 0));
        let stat = self.stat();
        if let Some(verdict) = self.verdicts.get(&stat).cloned() {
            assert_eq!(
                verdict == Verdict::Clean,
                self.bytes.is_multiple_of(2),
                "a kept verdict speaks of other bytes"
            );
            self.openers[opener].1 += 1;
            return;
        }
        let deadline = self.now + Duration::from_secs(1);
        let found = self.versions.find(&stat, |token| self.book.waits(token));
        if let Some(token) = found
            && let Some(other) = self.book.join(token, deadline)
        {
            other.stat = stat;
            other.openers.push(opener);
            return;
        }
        let job = Job {
            openers: vec![opener],
            stat,
        };
        let place = Place {
            opener: opener as u64,
            huge: false,
        };
        let token = self.book.add(job, place, deadline, 1);
        self.versions.enter(stat.key, token);
    }

    fn send(&mut self) -> bool {
        let Some((token, _, job, _)) = self.book.next_to_send(|_| true) else {
            return false;
        };
        let stat = job.stat;
        // Steady: a change from now on would show in the stamps.
        let steady = stat.changed.sec < self.clock;
        let began = steady.then_some((stat, self.verdicts.generation()));
        self.versions.sent(stat.key, token, began);
        self.book.sent(token, self.session, self.now);
        self.with_clamd = Some((token, None));
        true
    }

    fn reply(&mut self, token: u64, read: u32) {
        let Some(done) = self.book.done(token, self.session) else {
            return;
        };
        let began = self.versions.leave(done.job.stat.key, token);
        self.answer(&done.job.openers, done.late, Some(read));
        let Some((stat, generation)) = began else {
            return;
        };
        if !stamps::same_version(&self.stat(), &stat) {
            return;
        }
        let verdict = if read.is_multiple_of(2) {
            Verdict::Clean
        } else {
            Verdict::Infected("x".into())
        };
        self.verdicts.insert(&stat, verdict, generation);
    }

    /// `read`: the bytes that the verdict is on; `None`: by the fail policy.
    fn answer(&mut self, openers: &[usize], late: bool, read: Option<u32>) {
        if late {
            return;
        }
        for opener in openers {
            let (opened, answers) = &mut self.openers[*opener];
            *answers += 1;
            if let Some(read) = read {
                assert!(
                    read >= *opened,
                    "a verdict on bytes older than the opener's"
                );
            }
        }
    }

    fn expire(&mut self) {
        self.now += Duration::from_secs(2);
        let now = self.now;
        loop {
            let (openers, left) = match self.book.next_due(now) {
                None => return,
                Some(Due::Waiting(token, job)) => (job.openers, Some((token, job.stat.key))),
                Some(Due::UnderWay(job)) => (job.openers.clone(), None),
            };
            if let Some((token, key)) = left {
                self.versions.leave(key, token);
            }
            self.answer(&openers, false, None);
        }
    }

    /// Whatever has happened, the deadline answers who is left.
    fn check(mut self, done: &[Step]) {
        let early = self.openers.iter().all(|(_, answers)| *answers <= 1);
        assert!(early, "answered twice: {done:?}");
        self.expire();
        for (_, answers) in &self.openers {
            assert_eq!(*answers, 1, "not answered exactly once: {done:?}");
        }
    }
}

/// All orders that begin with these steps; how many there are.
fn explore(done: &mut Vec<Step>, depth: usize) -> u64 {
    let mut orders = 0;
    for step in STEPS {
        // What is done first is without loss an open, and nothing before it counts.
        if done.is_empty() && step != Step::Open {
            continue;
        }
        let mut world = World::new();
        for earlier in done.iter() {
            assert!(world.take(*earlier));
        }
        done.push(step);
        let taken = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| world.take(step)));
        match taken {
            Ok(false) => {}
            Ok(true) if done.len() < depth => orders += explore(done, depth),
            Ok(true) => {
                world.check(done);
                orders += 1;
            }
            Err(panic) => {
                eprintln!("after {done:?}");
                std::panic::resume_unwind(panic)
            }
        }
        done.pop();
    }
    orders
}

#[test]
fn in_every_order_each_opener_gets_one_answer_and_no_verdict_is_stale() {
    let orders = explore(&mut Vec::new(), 7);
    assert!(orders > 20_000, "only {orders} orders were tried");
}
