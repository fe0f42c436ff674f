//! The jobs: which wait, which are with clamd, which are due. Pure.
//!
//! Must not: look at a clock (the caller says what time it is), or let go of a
//! job without handing it to the caller, who owes an answer for it.

use std::collections::{HashMap, VecDeque};
use std::time::Instant;

#[derive(Debug)]
struct Entry<J> {
    job: J,
    state: State,
    tries_left: u32,
    /// Sessions that ended while this job was under way.
    losses: u32,
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
    Waiting(J),
    /// clamd still has it. Answer the opener; the job stays in the book.
    UnderWay(&'a mut J),
}

/// Sessions that one job may see end before it is given up.
pub const MAX_LOSSES: u32 = 2;

/// What becomes of the jobs of a lost session.
#[derive(Debug, PartialEq, Eq)]
pub struct Lost<J> {
    /// Their openers have been answered.
    pub unwanted: Vec<J>,
    /// Given up; their openers are to be answered.
    pub failed: Vec<J>,
    /// How many wait to be sent again.
    pub again: u64,
}

/// All jobs. Tokens are never used twice.
#[derive(Debug)]
pub struct Book<J> {
    entries: HashMap<u64, Entry<J>>,
    waiting: VecDeque<u64>,
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
            waiting: VecDeque::new(),
            deadlines: VecDeque::new(),
            under_way: 0,
            limit: limit.max(1),
            next: 0,
        }
    }

    /// Enters a job. Deadlines must not go backwards from call to call; if one
    /// does, it is taken for the latest so far.
    pub fn add(&mut self, job: J, deadline: Instant, tries: u32) -> u64 {
        let token = self.next;
        self.next += 1;
        let entry = Entry {
            job,
            state: State::Waiting,
            tries_left: tries,
            losses: 0,
            answered: false,
        };
        self.entries.insert(token, entry);
        self.waiting.push_back(token);
        let last = self.deadlines.back().map_or(deadline, |(last, _)| *last);
        self.deadlines.push_back((deadline.max(last), token));
        token
    }

    /// The job that is to be sent next, if one waits and a place is free.
    pub fn next_to_send(&mut self) -> Option<(u64, &mut J)> {
        if self.under_way >= self.limit {
            return None;
        }
        while let Some(token) = self.waiting.front().copied() {
            if self.entries.contains_key(&token) {
                let entry = self.entries.get_mut(&token)?;
                return Some((token, &mut entry.job));
            }
            self.waiting.pop_front();
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
            self.waiting.retain(|waiting| *waiting != token);
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
        self.waiting.push_front(token);
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
                lost.unwanted.push(entry.job);
            } else if entry.losses >= MAX_LOSSES {
                lost.failed.push(entry.job);
            } else {
                entry.state = State::Waiting;
                self.entries.insert(token, entry);
                self.waiting.push_front(token);
                lost.again += 1;
            }
        }
        self.under_way = 0;
        lost
    }

    /// clamd is not to be had: every waiting job without a try left is handed
    /// out. If connecting `was_tried` just now, the others lose a try.
    pub fn unreachable(&mut self, was_tried: bool) -> Vec<J> {
        let mut failed = Vec::new();
        let mut kept = VecDeque::new();
        for token in std::mem::take(&mut self.waiting) {
            match self.entries.get_mut(&token) {
                Some(entry) if entry.tries_left > 0 => {
                    entry.tries_left -= u32::from(was_tried);
                    kept.push_back(token);
                }
                Some(_) => failed.extend(self.entries.remove(&token).map(|entry| entry.job)),
                None => {}
            }
        }
        self.waiting = kept;
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
                    .map(|entry| Due::Waiting(entry.job));
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
            .any(|token| self.entries.contains_key(token))
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
        assert_eq!(book.next_due(now), Some(Due::Waiting('b')));
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
            (vec!['a'], vec![], 2)
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
        assert_eq!((lost.failed, lost.again), (vec!['c', 'b'], 1));
    }

    #[test]
    fn tries_are_counted() {
        let now = Instant::now();
        let mut book = Book::new(1);
        let token = book.add('a', now, 1);
        book.sent(token);
        assert!(book.retry(token));
        assert!(book.unreachable(true) == ['a']);
        let token = book.add('b', now, 1);
        assert!(book.unreachable(false).is_empty() && book.unreachable(true).is_empty());
        assert!(book.unreachable(false) == ['b'] && book.done(token).is_none());
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
                        for job in lost.unwanted {
                            prop_assert_eq!(answers[job], 1);
                        }
                        for job in lost.failed {
                            answers[job] += 1;
                        }
                    }
                    Step::Unreachable(was_tried) => {
                        for job in book.unreachable(was_tried) {
                            answers[job] += 1;
                        }
                    }
                    Step::Time(millis) => {
                        now += Duration::from_millis(u64::from(millis));
                        while let Some(due) = book.next_due(now) {
                            let job = match due {
                                Due::Waiting(job) => job,
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
                    Due::Waiting(job) => job,
                    Due::UnderWay(job) => *job,
                };
                answers[job] += 1;
            }
            prop_assert!(answers.iter().all(|count| *count == 1), "{:?}", answers);
        }
    }
}
