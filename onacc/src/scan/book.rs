//! The jobs: which wait, which are with clamd, which are due. Pure.
//!
//! Must not: look at a clock (the caller says what time it is), or let go of a
//! job without handing it to the caller, who owes an answer for it.

use std::collections::{HashMap, VecDeque};
use std::time::Instant;

use super::Urgency;

#[derive(Debug)]
struct Entry<J> {
    job: J,
    state: State,
    tries_left: u32,
    /// Sessions that ended while this job was under way.
    losses: u32,
    urgency: Urgency,
    /// The opener has been answered; the job stays for clamd's late reply.
    answered: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Waiting,
    UnderWay,
}

/// What became of a job whose time is up.
#[derive(Debug, PartialEq, Eq)]
pub enum Due<'a, J> {
    /// It never got to clamd and is out of the book.
    Waiting(u64, J),
    /// clamd still has it. Answer the opener; the job stays in the book.
    UnderWay(&'a mut J),
}

/// Sessions that one job may see end before it is given up.
pub const MAX_LOSSES: u32 = 2;

/// What becomes of the jobs of a lost session.
#[derive(Debug, PartialEq, Eq)]
pub struct Lost<J> {
    /// Their openers have been answered.
    pub unwanted: Vec<(u64, J)>,
    /// Given up; their openers are to be answered.
    pub failed: Vec<(u64, J)>,
    /// How many wait to be sent again.
    pub again: u64,
}

/// All jobs. Tokens are never used twice.
#[derive(Debug)]
pub struct Book<J> {
    entries: HashMap<u64, Entry<J>>,
    /// Openers first, then what nobody waits for.
    waiting: [VecDeque<u64>; 2],
    /// In the order of their deadlines: each job has the same time.
    deadlines: VecDeque<(Instant, u64)>,
    under_way: usize,
    limit: usize,
    next: u64,
}

impl<J> Book<J> {
    /// An empty book; at most `limit` jobs (1 or more) are under way at a time.
    pub fn new(limit: usize) -> Self {
        Self {
            entries: HashMap::new(),
            waiting: [VecDeque::new(), VecDeque::new()],
            deadlines: VecDeque::new(),
            under_way: 0,
            limit: limit.max(1),
            next: 0,
        }
    }

    /// Enters a job that an opener waits for. Deadlines must not go backwards
    /// from call to call; if one does, it is taken for the latest so far.
    pub fn add(&mut self, job: J, deadline: Instant, tries: u32) -> u64 {
        let token = self.enter(job, tries, Urgency::Opener);
        self.set_deadline(token, deadline);
        token
    }

    /// Enters a job that nobody waits for: it has no deadline and comes last.
    pub fn add_prescan(&mut self, job: J) -> u64 {
        self.enter(job, 0, Urgency::Prescan)
    }

    fn enter(&mut self, job: J, tries: u32, urgency: Urgency) -> u64 {
        let token = self.next;
        self.next += 1;
        let entry = Entry {
            job,
            state: State::Waiting,
            tries_left: tries,
            losses: 0,
            urgency,
            answered: false,
        };
        self.entries.insert(token, entry);
        self.waiting[queue_of(urgency)].push_back(token);
        token
    }

    fn set_deadline(&mut self, token: u64, deadline: Instant) {
        let last = self.deadlines.back().map_or(deadline, |(last, _)| *last);
        self.deadlines.push_back((deadline.max(last), token));
    }

    /// An opener now waits for this job too: it gets an opener's place and
    /// deadline if it had none. `None` if it is gone or its time was up.
    pub fn join(&mut self, token: u64, deadline: Instant) -> Option<&mut J> {
        let entry = self.entries.get(&token).filter(|entry| !entry.answered)?;
        if entry.urgency == Urgency::Prescan {
            let waits = entry.state == State::Waiting;
            self.set_deadline(token, deadline);
            if waits {
                self.waiting[queue_of(Urgency::Prescan)].retain(|other| *other != token);
                self.waiting[queue_of(Urgency::Opener)].push_back(token);
            }
        }
        let entry = self.entries.get_mut(&token)?;
        entry.urgency = Urgency::Opener;
        Some(&mut entry.job)
    }

    /// Whether a job waits to be sent.
    pub fn waits(&self, token: u64) -> bool {
        self.entries
            .get(&token)
            .is_some_and(|entry| entry.state == State::Waiting)
    }

    /// The job that is to be sent next, if one waits and a place is free. The
    /// last free place is kept for openers.
    pub fn next_to_send(&mut self) -> Option<(u64, &mut J)> {
        for urgency in [Urgency::Opener, Urgency::Prescan] {
            let places = match urgency {
                Urgency::Opener => self.limit,
                Urgency::Prescan => self.limit.saturating_sub(1).max(1),
            };
            if self.under_way >= places {
                return None;
            }
            let queue = &mut self.waiting[queue_of(urgency)];
            while let Some(token) = queue.front().copied() {
                if self.entries.contains_key(&token) {
                    let entry = self.entries.get_mut(&token)?;
                    return Some((token, &mut entry.job));
                }
                queue.pop_front();
            }
        }
        None
    }

    /// The job of `next_to_send` is under way.
    pub fn sent(&mut self, token: u64) {
        if let Some(entry) = self.entries.get_mut(&token)
            && entry.state == State::Waiting
        {
            entry.state = State::UnderWay;
            self.under_way += 1;
            let queue = &mut self.waiting[queue_of(entry.urgency)];
            // It is the first one, but for what has left the book.
            while let Some(first) = queue.pop_front() {
                if first == token {
                    break;
                }
            }
        }
    }

    /// clamd has replied: the job, and whether its opener was already answered.
    pub fn done(&mut self, token: u64) -> Option<(J, bool)> {
        let entry = self.entries.remove(&token)?;
        if entry.state == State::UnderWay {
            self.under_way -= 1;
        }
        Some((entry.job, entry.answered))
    }

    /// clamd could not scan it: back into the queue if a try is left. False:
    /// none is, or nobody waits for it any more; it is still in the book.
    pub fn retry(&mut self, token: u64) -> bool {
        let Some(entry) = self.entries.get_mut(&token) else {
            return false;
        };
        if entry.answered || entry.tries_left == 0 || entry.state != State::UnderWay {
            return false;
        }
        entry.tries_left -= 1;
        entry.state = State::Waiting;
        self.under_way -= 1;
        let queue = queue_of(entry.urgency);
        self.waiting[queue].push_front(token);
        true
    }

    /// The session is lost: what was under way and is still waited for goes back
    /// to the head of the queue, in its old order. A lost session is no try, but
    /// a job that has lost [`MAX_LOSSES`] may be what ends them.
    pub fn session_lost(&mut self) -> Lost<J> {
        let mut tokens: Vec<u64> = self
            .entries
            .iter()
            .filter(|(_, entry)| entry.state == State::UnderWay)
            .map(|(token, _)| *token)
            .collect();
        tokens.sort_unstable();
        let mut lost = Lost {
            unwanted: Vec::new(),
            failed: Vec::new(),
            again: 0,
        };
        for token in tokens.into_iter().rev() {
            let Some(mut entry) = self.entries.remove(&token) else {
                continue;
            };
            entry.losses += 1;
            if entry.answered {
                lost.unwanted.push((token, entry.job));
            } else if entry.losses >= MAX_LOSSES {
                lost.failed.push((token, entry.job));
            } else {
                entry.state = State::Waiting;
                let queue = queue_of(entry.urgency);
                self.entries.insert(token, entry);
                self.waiting[queue].push_front(token);
                lost.again += 1;
            }
        }
        self.under_way = 0;
        lost
    }

    /// clamd is not to be had: every waiting job without a try left is handed
    /// out. If connecting `was_tried` just now, the others lose a try.
    pub fn unreachable(&mut self, was_tried: bool) -> Vec<(u64, J)> {
        let mut failed = Vec::new();
        for queue in &mut self.waiting {
            queue.retain(|token| match self.entries.get_mut(token) {
                Some(entry) if entry.tries_left > 0 => {
                    entry.tries_left -= u32::from(was_tried);
                    true
                }
                Some(_) => {
                    failed.extend(self.entries.remove(token).map(|entry| (*token, entry.job)));
                    false
                }
                None => false,
            });
        }
        failed
    }

    /// One job whose deadline has come; call until `None`.
    pub fn next_due(&mut self, now: Instant) -> Option<Due<'_, J>> {
        loop {
            let (deadline, token) = *self.deadlines.front()?;
            let entry = self.entries.get(&token);
            let open = entry.is_some_and(|entry| !entry.answered);
            if open && deadline > now {
                return None;
            }
            self.deadlines.pop_front();
            if !open {
                continue;
            }
            if entry.is_some_and(|entry| entry.state == State::Waiting) {
                return self
                    .entries
                    .remove(&token)
                    .map(|entry| Due::Waiting(token, entry.job));
            }
            return self.entries.get_mut(&token).map(|entry| {
                entry.answered = true;
                Due::UnderWay(&mut entry.job)
            });
        }
    }

    /// When the next deadline comes, as far as is known (it may be one of a job
    /// that is done).
    pub fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.front().map(|(deadline, _)| *deadline)
    }

    /// Jobs under way.
    pub fn under_way(&self) -> usize {
        self.under_way
    }

    /// Whether a job waits to be sent.
    pub fn has_waiting(&self) -> bool {
        self.waiting
            .iter()
            .flatten()
            .any(|token| self.entries.contains_key(token))
    }
}

fn queue_of(urgency: Urgency) -> usize {
    match urgency {
        Urgency::Opener => 0,
        Urgency::Prescan => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    #[test]
    fn no_more_are_under_way_than_the_limit() {
        let now = Instant::now();
        let mut book = Book::new(2);
        for job in 0..3 {
            book.add(job, now, 0);
        }
        for _ in 0..2 {
            let (token, _) = book.next_to_send().unwrap();
            book.sent(token);
        }
        assert!(book.next_to_send().is_none());
        assert_eq!(book.done(0), Some((0, false)));
        assert_eq!(book.next_to_send().map(|(token, _)| token), Some(2));
    }

    #[test]
    fn a_due_job_under_way_is_answered_once_and_keeps_its_place() {
        let now = Instant::now();
        let mut book = Book::new(1);
        book.add('a', now, 0);
        book.add('b', now, 0);
        let (token, _) = book.next_to_send().unwrap();
        book.sent(token);
        assert_eq!(book.next_due(now), Some(Due::UnderWay(&mut 'a')));
        assert_eq!(book.next_due(now), Some(Due::Waiting(1, 'b')));
        assert_eq!(book.next_due(now), None);
        assert_eq!(book.under_way(), 1);
        assert_eq!(book.done(token), Some(('a', true)));
        assert_eq!(book.under_way(), 0);
    }

    #[test]
    fn a_lost_session_puts_the_jobs_back_in_order_and_drops_the_unwanted() {
        let now = Instant::now();
        let later = now + Duration::from_secs(9);
        let mut book = Book::new(8);
        for (job, deadline) in [('a', now), ('b', later), ('c', later), ('d', later)] {
            book.add(job, deadline, 0);
        }
        for _ in 0..3 {
            let (token, _) = book.next_to_send().unwrap();
            book.sent(token);
        }
        assert!(matches!(book.next_due(now), Some(Due::UnderWay('a'))));
        let lost = book.session_lost();
        assert_eq!(
            (lost.unwanted, lost.failed, lost.again),
            (vec![(0, 'a')], vec![], 2)
        );
        let order: Vec<char> = std::iter::from_fn(|| {
            let (token, job) = book.next_to_send()?;
            let job = *job;
            book.sent(token);
            Some(job)
        })
        .collect();
        assert_eq!(order, ['b', 'c', 'd']);
        let lost = book.session_lost();
        assert_eq!((lost.failed, lost.again), (vec![(2, 'c'), (1, 'b')], 1));
    }

    #[test]
    fn tries_are_counted() {
        let now = Instant::now();
        let mut book = Book::new(1);
        let token = book.add('a', now, 1);
        book.sent(token);
        assert!(book.retry(token));
        assert!(book.unreachable(true) == [(token, 'a')]);
        let token = book.add('b', now, 1);
        assert!(book.unreachable(false).is_empty() && book.unreachable(true).is_empty());
        assert!(book.unreachable(false) == [(token, 'b')] && book.done(token).is_none());
    }

    #[test]
    fn openers_come_first_and_keep_a_place() {
        let now = Instant::now();
        let mut book = Book::new(2);
        book.add_prescan('p');
        book.add_prescan('q');
        book.add('a', now, 0);
        let mut send = || {
            let (token, job) = book.next_to_send()?;
            let job = *job;
            book.sent(token);
            Some(job)
        };
        assert_eq!(send(), Some('a'));
        assert_eq!(send(), None, "the last place is an opener's");
        book.done(2);
        assert!(matches!(book.next_to_send(), Some((0, 'p'))));
    }

    #[test]
    fn an_opener_that_joins_a_prescan_brings_urgency_and_deadline() {
        let now = Instant::now();
        let mut book = Book::new(2);
        book.add_prescan('p');
        let late = book.add_prescan('q');
        assert_eq!(book.next_due(now), None);
        assert_eq!(book.join(late, now), Some(&mut 'q'));
        assert!(matches!(book.next_to_send(), Some((_, 'q'))));
        assert_eq!(book.next_due(now), Some(Due::Waiting(late, 'q')));
        assert_eq!(book.join(late, now), None);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Add,
        Send,
        Done(u8),
        Retry(u8),
        Lost,
        Unreachable(bool),
        Time(u8),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => Just(Step::Add),
            4 => Just(Step::Send),
            3 => any::<u8>().prop_map(Step::Done),
            2 => any::<u8>().prop_map(Step::Retry),
            1 => Just(Step::Lost),
            1 => any::<bool>().prop_map(Step::Unreachable),
            2 => any::<u8>().prop_map(Step::Time),
        ];
        proptest::collection::vec(step, 0..200)
    }

    proptest! {
        /// Every opener gets exactly one answer, whatever happens, and none
        /// after its deadline has been looked at.
        #[test]
        fn each_job_is_answered_exactly_once(steps in steps()) {
            let start = Instant::now();
            let mut now = start;
            let mut book: Book<usize> = Book::new(3);
            let mut answers: Vec<u32> = Vec::new();
            for step in steps {
                match step {
                    Step::Add => {
                        book.add(answers.len(), now + Duration::from_millis(100), 1);
                        answers.push(0);
                    }
                    Step::Send => {
                        if let Some(token) = book.next_to_send().map(|(token, _)| token) {
                            book.sent(token);
                        }
                    }
                    Step::Done(n) => {
                        let token = u64::from(n) % (answers.len() as u64 + 1);
                        if let Some((job, answered)) = book.done(token) && !answered {
                            answers[job] += 1;
                        }
                    }
                    Step::Retry(n) => {
                        book.retry(u64::from(n) % (answers.len() as u64 + 1));
                    }
                    Step::Lost => {
                        let lost = book.session_lost();
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
}
