//! Every order of events, up to a depth: the real book, versions and verdict
//! table, a modelled file, a modelled clamd.
//!
//! Checks: each opener is answered exactly once, or was killed; nobody who lives is
//! called off; a verdict on older bytes is given to nobody who opened newer ones; no
//! kept verdict speaks of other bytes than the file has. What `service.rs` and
//! `prescan.rs` do between these parts (find, join, enter; sent; leave, answer, keep)
//! is system calls and counters for the rest, and is repeated here in its order: that
//! much is a copy. Each guard of it is left out once ([`Without`]), and the model must
//! find out. Bounds: one file, three openers, one session at a time, one retry, seven
//! or eight steps, of which the first is an open or a scan ahead.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use onacc_common::{ChangeTime, InodeKey};

use super::book::{Blame, Book, Due, Place};
use super::versions::{Began, Versions};
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
    /// The opener that has waited longest is killed.
    Kill,
    /// Openers are looked after.
    LookAfter,
    /// The prescanner looks at the file, and hands it on.
    Prescan,
    /// The service takes that in.
    TakeIn,
}

/// All that can happen to openers and clamd.
const SCANS: [Step; 10] = [
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
/// Openers are killed while they wait.
const KILLS: [Step; 8] = [
    Step::Open,
    Step::Kill,
    Step::LookAfter,
    Step::Send,
    Step::Read,
    Step::Reply,
    Step::Lost,
    Step::Expire,
];
/// A written file is scanned ahead, and opened meanwhile.
const PRESCANS: [Step; 9] = [
    Step::Open,
    Step::Write,
    Step::Tick,
    Step::Prescan,
    Step::TakeIn,
    Step::Send,
    Step::Read,
    Step::Reply,
    Step::Expire,
];
/// Nothing but a file that changes again and again.
const WRITES: [Step; 5] = [Step::Open, Step::Write, Step::Send, Step::Read, Step::Reply];
const OPENERS: usize = 3;

/// The guard that is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Without {
    /// None is.
    Nothing,
    /// A job is called off only if all who wait for it are gone, not the first alone.
    LookAtAll,
    /// Nobody joins a job whose openers have had their answer.
    RefusalOfAnswered,
    /// A scan under way is joined only by who opened the version that it reads.
    SameVersion,
    /// Who joins a prescan gets a deadline.
    Deadline,
    /// A verdict is kept only of a file whose stamps are old.
    Age,
}

/// A job: who waits, with the version of the bytes that each opened.
#[derive(Debug)]
struct Job {
    openers: Rc<RefCell<Vec<usize>>>,
    stat: FileStat,
}

#[derive(Debug, Default)]
struct Opener {
    /// The version of the bytes that it opened.
    opened: u32,
    answers: u32,
    killed: bool,
}

struct World {
    without: Without,
    book: Book<Job>,
    versions: Versions,
    verdicts: VerdictCache,
    now: Instant,
    /// Version of the file's bytes; odd ones are infected.
    bytes: u32,
    /// Its ctime, in ticks, and the clock.
    changed: i64,
    clock: i64,
    openers: Vec<Opener>,
    /// On its way from the prescanner to the service.
    ahead: Option<FileStat>,
    /// The job with clamd, and what clamd has read.
    with_clamd: Option<(u64, Option<u32>)>,
    session: u64,
}

impl World {
    fn new(without: Without) -> Self {
        Self {
            without,
            ahead: None,
            book: Book::new(2, 2),
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
                    self.answer(&done.job, done.late, None);
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
                    self.answer(&job, false, None);
                }
            }
            Step::Expire => self.expire(),
            Step::Database => self.verdicts.new_generation(),
            Step::Kill => {
                let waiting = |opener: &&mut Opener| opener.answers == 0 && !opener.killed;
                let Some(opener) = self.openers.iter_mut().find(waiting) else {
                    return false;
                };
                opener.killed = true;
            }
            Step::LookAfter => self.look_after(),
            Step::Prescan if self.ahead.is_none() => {
                let stat = self.stat();
                if stat.changed.sec >= self.clock || self.verdicts.get(&stat).is_some() {
                    return false;
                }
                self.ahead = Some(stat);
            }
            Step::TakeIn => {
                let Some(stat) = self.ahead.take() else {
                    return false;
                };
                self.take_prescan(stat);
            }
            Step::Open | Step::Send | Step::Prescan => return false,
        }
        true
    }

    fn open(&mut self) {
        let opener = self.openers.len();
        self.openers.push(Opener {
            opened: self.bytes,
            ..Opener::default()
        });
        let stat = self.stat();
        if let Some(verdict) = self.verdicts.get(&stat).cloned() {
            assert_eq!(
                verdict == Verdict::Clean,
                self.bytes.is_multiple_of(2),
                "a kept verdict speaks of other bytes"
            );
            self.openers[opener].answers += 1;
            return;
        }
        let deadline = self.now + Duration::from_secs(1);
        let found = self.versions.find(&stat, |token| {
            self.without == Without::SameVersion || self.book.waits(token)
        });
        if let Some(token) = found
            && self.join(token, (opener, stat), deadline)
        {
            return;
        }
        let job = Job {
            openers: Rc::new(RefCell::new(vec![opener])),
            stat,
        };
        let token = self.book.add(job, place(opener), deadline, 1);
        self.versions.enter(stat.key, token);
    }

    fn join(&mut self, token: u64, (opener, stat): (usize, FileStat), deadline: Instant) -> bool {
        // What the book sees to itself is left out by going around it.
        let around = match self.without {
            Without::Deadline => {
                let job = self.book.get(token);
                job.is_some_and(|job| job.openers.borrow().is_empty())
            }
            Without::RefusalOfAnswered => self.book.join(token, deadline).is_none(),
            _ => false,
        };
        if around {
            let job = self.book.get(token);
            return job.is_some_and(|job| {
                job.openers.borrow_mut().push(opener);
                true
            });
        }
        let Some(other) = self.book.join(token, deadline) else {
            return false;
        };
        other.stat = stat;
        other.openers.borrow_mut().push(opener);
        true
    }

    fn take_prescan(&mut self, stat: FileStat) {
        if self.versions.find(&stat, |_| true).is_some() {
            return;
        }
        let job = Job {
            openers: Rc::default(),
            stat,
        };
        let token = self.book.add_prescan(job, place(0));
        self.versions.enter(stat.key, token);
    }

    fn look_after(&mut self) {
        let openers = &self.openers;
        let only_first = self.without == Without::LookAtAll;
        let (left, _) = self.book.look_after((0, 256), |job| {
            let mut waiting = job.openers.borrow_mut();
            let first = waiting.first().copied();
            waiting.retain(|opener| Some(*opener) == first || !openers[*opener].killed);
            let is_first_gone = first.is_some_and(|first| openers[first].killed);
            is_first_gone && (only_first || waiting.len() == 1)
        });
        for (token, job) in left {
            self.versions.leave(job.stat.key, token);
            let waiting = job.openers.borrow();
            let all_gone = waiting.iter().all(|opener| self.openers[*opener].killed);
            assert!(all_gone, "called off although somebody waits");
        }
    }

    fn send(&mut self) -> bool {
        let Some((token, _, job, _)) = self.book.next_to_send(|_| true) else {
            return false;
        };
        let stat = job.stat;
        // Steady: a change from now on would show in the stamps.
        let steady = stat.changed.sec < self.clock || self.without == Without::Age;
        let began = steady.then_some(Began {
            stat,
            generation: self.verdicts.generation(),
            closes: None,
        });
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
        self.answer(&done.job, done.late, Some(read));
        let Some(Began {
            stat, generation, ..
        }) = began
        else {
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
    fn answer(&mut self, job: &Job, late: bool, read: Option<u32>) {
        if late {
            return;
        }
        for opener in job.openers.borrow().iter() {
            let opener = &mut self.openers[*opener];
            opener.answers += 1;
            if let Some(read) = read {
                assert!(
                    read >= opener.opened,
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
                Some(Due::UnderWay(job)) => (Rc::clone(&job.openers), None),
            };
            if let Some((token, key)) = left {
                self.versions.leave(key, token);
            }
            let stat = self.stat();
            self.answer(&Job { openers, stat }, false, None);
        }
    }

    /// Whatever has happened, the deadline answers who is left.
    fn check(mut self, done: &[Step]) {
        let early = self.openers.iter().all(|opener| opener.answers <= 1);
        assert!(early, "answered twice: {done:?}");
        self.expire();
        for opener in self.openers.iter().filter(|opener| !opener.killed) {
            assert_eq!(opener.answers, 1, "not answered exactly once: {done:?}");
        }
    }
}

fn place(opener: usize) -> Place {
    Place {
        opener: opener as u64,
        huge: false,
        slow: false,
    }
}

/// What is tried.
struct Trial {
    steps: &'static [Step],
    depth: usize,
    without: Without,
}

impl Trial {
    /// All orders that begin with these steps; how many there are.
    fn explore(&self, done: &mut Vec<Step>) -> u64 {
        let mut orders = 0;
        for step in self.steps {
            // Before the first of these nothing counts.
            if done.is_empty() && !matches!(step, Step::Open | Step::Prescan) {
                continue;
            }
            let mut world = World::new(self.without);
            for earlier in done.iter() {
                assert!(world.take(*earlier));
            }
            done.push(*step);
            if world.take(*step) {
                if done.len() < self.depth {
                    orders += self.explore(done);
                } else {
                    world.check(done);
                    orders += 1;
                }
            }
            done.pop();
        }
        orders
    }

    /// Whether any order breaks what must hold, and which is the first.
    fn run(&self) -> Result<u64, String> {
        let mut done = Vec::new();
        let explored = std::panic::AssertUnwindSafe(|| self.explore(&mut done));
        std::panic::catch_unwind(explored).map_err(|panic| {
            let words = panic.downcast_ref::<String>().cloned();
            let words = words.or(panic
                .downcast_ref::<&str>()
                .map(|words| (*words).to_owned()));
            format!("{} after {done:?}", words.unwrap_or_default())
        })
    }
}

fn holds(steps: &'static [Step], depth: usize) {
    let trial = Trial {
        steps,
        depth,
        without: Without::Nothing,
    };
    let orders = trial.run().unwrap();
    println!("{orders} orders");
    assert!(orders > 20_000, "only {orders} orders were tried");
}

/// The model finds out that a guard is missing, by these words.
fn breaks(steps: &'static [Step], without: Without, words: &str) {
    let trial = Trial {
        steps,
        depth: 8,
        without,
    };
    let found = trial.run();
    println!("{found:?}");
    assert!(
        found.as_ref().is_err_and(|found| found.contains(words)),
        "{without:?}: {found:?}"
    );
}

#[test]
fn in_every_order_each_opener_gets_one_answer_and_no_verdict_is_stale() {
    holds(&SCANS, 7);
    breaks(&SCANS, Without::SameVersion, "older than the opener's");
    breaks(&SCANS, Without::RefusalOfAnswered, "exactly once");
    breaks(&WRITES, Without::Age, "older than the opener's");
}

#[test]
fn in_every_order_killed_openers_are_called_off_and_nobody_else() {
    holds(&KILLS, 8);
    breaks(&KILLS, Without::LookAtAll, "although somebody waits");
    breaks(&KILLS, Without::RefusalOfAnswered, "exactly once");
}

#[test]
fn in_every_order_an_open_that_joins_a_prescan_is_answered_on_its_own_bytes() {
    holds(&PRESCANS, 8);
    breaks(&PRESCANS, Without::SameVersion, "older than the opener's");
    breaks(&PRESCANS, Without::Deadline, "exactly once");
}
