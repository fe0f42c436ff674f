//! The jobs: which wait, which are with a clamd, which are due. Pure.
//!
//! Must not: look at a clock (the caller says what time it is), or let go of a
//! job without handing it to the caller, who owes an answer for it.

use std::collections::{HashMap, VecDeque};
use std::time::Instant;

use super::queue::{CLASSES, Class, Queue};

/// Sessions that one job may see end before it is given up.
pub const MAX_LOSSES: u32 = 2;

#[derive(Debug)]
struct Entry<J> {
    job: J,
    state: State,
    class: Class,
    /// What it is as soon as somebody waits for it.
    urgent: Class,
    opener: u64,
    tries_left: u32,
    /// Sessions that ended while this job was under way.
    losses: u32,
    /// The opener has been answered; the job stays for clamd's late reply.
    answered: bool,
    /// Its time was up: its reply may never come.
    overdue: bool,
    /// The server that failed it last.
    avoid: Option<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Waiting,
    UnderWay { session: u64, sent: Instant },
}

impl State {
    fn session(self) -> Option<u64> {
        match self {
            Self::Waiting => None,
            Self::UnderWay { session, .. } => Some(session),
        }
    }
}

/// A new job's place in line.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// Who waits: jobs of one opener take turns with those of others.
    pub opener: u64,
    /// Its scan takes long.
    pub huge: bool,
    /// Whoever reads it may wait for its server.
    pub slow: bool,
}

impl Place {
    fn class(self) -> Class {
        match self {
            Self { slow: true, .. } => Class::Slow,
            Self { huge: true, .. } => Class::Huge,
            _ => Class::Small,
        }
    }

    fn prescan_class(self) -> Class {
        if self.slow {
            Class::SlowPrescan
        } else {
            Class::Prescan
        }
    }
}

/// What became of a job whose time is up.
#[derive(Debug, PartialEq, Eq)]
pub enum Due<'a, J> {
    /// It never got to clamd and is out of the book.
    Waiting(u64, J),
    /// clamd still has it. Answer the opener; the job stays in the book.
    UnderWay(&'a mut J),
}

/// A job that a clamd has replied to.
#[derive(Debug, PartialEq, Eq)]
pub struct Done<J> {
    /// The job.
    pub job: J,
    /// Its opener was answered before.
    pub late: bool,
    /// When it was sent, if it was.
    pub sent: Option<Instant>,
}

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

/// Why a session's jobs come back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// One of them may have ended it.
    Jobs,
    /// They had nothing to do with it.
    Nobody,
}

/// All jobs. Tokens are never used twice.
#[derive(Debug)]
pub struct Book<J> {
    entries: HashMap<u64, Entry<J>>,
    queue: Queue,
    /// In the order of their deadlines: each job has the same time.
    deadlines: VecDeque<(Instant, u64)>,
    /// By class.
    under_way: [usize; CLASSES],
    limit: usize,
    /// Slow ones at a time.
    slow_limit: usize,
    next: u64,
}

impl<J> Book<J> {
    /// An empty book; at most `limit` jobs (1 or more) are under way at a time, of them
    /// at most `slow_limit` (1 or more) of files that may hold up whoever reads them.
    pub fn new(limit: usize, slow_limit: usize) -> Self {
        Self {
            entries: HashMap::new(),
            queue: Queue::default(),
            deadlines: VecDeque::new(),
            under_way: [0; CLASSES],
            limit: limit.max(1),
            slow_limit: slow_limit.max(1),
            next: 0,
        }
    }

    /// Enters a job that an opener waits for. Deadlines must not go backwards
    /// from call to call; if one does, it is taken for the latest so far.
    pub fn add(&mut self, job: J, place: Place, deadline: Instant, tries: u32) -> u64 {
        let token = self.enter(job, place.class(), place, tries);
        self.set_deadline(token, deadline);
        token
    }

    /// Enters a job that nobody waits for: it has no deadline and comes last.
    pub fn add_prescan(&mut self, job: J, place: Place) -> u64 {
        self.enter(job, place.prescan_class(), place, 0)
    }

    fn enter(&mut self, job: J, class: Class, place: Place, tries: u32) -> u64 {
        let token = self.next;
        self.next += 1;
        let entry = Entry {
            job,
            state: State::Waiting,
            class,
            urgent: place.class(),
            opener: place.opener,
            tries_left: tries,
            losses: 0,
            answered: false,
            overdue: false,
            avoid: None,
        };
        self.entries.insert(token, entry);
        self.queue.push_back(class, place.opener, token);
        token
    }

    fn set_deadline(&mut self, token: u64, deadline: Instant) {
        let last = self.deadlines.back().map_or(deadline, |(last, _)| *last);
        self.deadlines.push_back((deadline.max(last), token));
    }

    /// An opener now waits for this job too: it gets an opener's place and
    /// deadline if it had none, or if whoever waited for it was killed. `None` if
    /// it is gone or its time was up.
    pub fn join(&mut self, token: u64, deadline: Instant) -> Option<&mut J> {
        let entry = self.entries.get_mut(&token)?;
        if entry.overdue {
            return None;
        }
        if std::mem::take(&mut entry.answered) {
            // The old deadline is none for whoever comes now.
            self.deadlines.retain(|(_, other)| *other != token);
            self.set_deadline(token, deadline);
        }
        let entry = self.entries.get_mut(&token)?;
        if entry.class.is_prescan() {
            let before = std::mem::replace(&mut entry.class, entry.urgent);
            let (class, opener) = (entry.class, entry.opener);
            if entry.state == State::Waiting {
                self.queue.remove(before, opener, token);
                self.queue.push_back(class, opener, token);
            } else {
                self.under_way[before as usize] -= 1;
                self.under_way[class as usize] += 1;
            }
            self.set_deadline(token, deadline);
        }
        self.entries.get_mut(&token).map(|entry| &mut entry.job)
    }

    /// Whether a job waits to be sent.
    pub fn waits(&self, token: u64) -> bool {
        self.entries
            .get(&token)
            .is_some_and(|entry| entry.state == State::Waiting)
    }

    /// A job that is in the book.
    pub fn get(&self, token: u64) -> Option<&J> {
        self.entries.get(&token).map(|entry| &entry.job)
    }

    /// The job that is to be sent next, its class, and the server that failed it, if
    /// one waits and a place is free; `may_go` says for which classes a server has room.
    /// Of the places, one is kept from prescans, one from huge files, and those beyond
    /// their limit from slow ones.
    pub fn next_to_send(
        &mut self,
        may_go: impl Fn(Class) -> bool,
    ) -> Option<(u64, Class, &mut J, Option<usize>)> {
        let all = self.under_way();
        if all >= self.limit {
            return None;
        }
        let most = self.limit.saturating_sub(1).max(1);
        let under_way = |class: Class| self.under_way[class as usize];
        let slow = under_way(Class::Slow) + under_way(Class::SlowPrescan);
        let has_place = |class| match class {
            Class::Small => true,
            Class::Huge => under_way(Class::Huge) < most,
            Class::Slow => slow < self.slow_limit,
            Class::Prescan => all < most,
            Class::SlowPrescan => all < most && slow < self.slow_limit,
        };
        let first = self.queue.first(|class| has_place(class) && may_go(class));
        let (class, token) = first?;
        let entry = self.entries.get_mut(&token)?;
        Some((token, class, &mut entry.job, entry.avoid))
    }

    /// The job of `next_to_send` is under way in this session.
    pub fn sent(&mut self, token: u64, session: u64, now: Instant) {
        if let Some(entry) = self.entries.get_mut(&token)
            && entry.state == State::Waiting
        {
            entry.state = State::UnderWay { session, sent: now };
            self.under_way[entry.class as usize] += 1;
            let popped = self.queue.pop(entry.class);
            debug_assert_eq!(popped, Some(token), "what is sent was first in line");
        }
    }

    fn leave(&mut self, token: u64) -> Option<Entry<J>> {
        let entry = self.entries.remove(&token)?;
        match entry.state {
            State::Waiting => self.queue.remove(entry.class, entry.opener, token),
            State::UnderWay { .. } => self.under_way[entry.class as usize] -= 1,
        }
        Some(entry)
    }

    /// A job leaves without a reply.
    pub fn remove(&mut self, token: u64) -> Option<J> {
        self.leave(token).map(|entry| entry.job)
    }

    /// clamd has replied, in this session; `None` if the job is not under way there.
    pub fn done(&mut self, token: u64, session: u64) -> Option<Done<J>> {
        self.entries
            .get(&token)
            .filter(|entry| entry.state.session() == Some(session))?;
        let entry = self.leave(token)?;
        Some(Done {
            job: entry.job,
            late: entry.answered,
            sent: match entry.state {
                State::Waiting => None,
                State::UnderWay { sent, .. } => Some(sent),
            },
        })
    }

    /// A server could not scan it: back into the queue if a try is left. False:
    /// none is, or nobody waits for it any more; it is still in the book.
    pub fn retry(&mut self, token: u64, session: u64, server: usize) -> bool {
        let Some(entry) = self.entries.get_mut(&token) else {
            return false;
        };
        let here = entry.state.session() == Some(session);
        if entry.answered || entry.tries_left == 0 || !here {
            return false;
        }
        entry.tries_left -= 1;
        self.put_back(token, server);
        true
    }

    /// What was under way is to be sent again, to another server if there is one.
    fn put_back(&mut self, token: u64, server: usize) {
        if let Some(entry) = self.entries.get_mut(&token) {
            self.under_way[entry.class as usize] -= 1;
            entry.state = State::Waiting;
            entry.avoid = Some(server);
            self.queue.push_front(entry.class, entry.opener, token);
        }
    }

    /// A session is lost: what was under way in it and is still waited for goes
    /// back to the head of the queue, in its old order. A lost session is no try,
    /// but a job that has lost [`MAX_LOSSES`] may be what ends them.
    pub fn session_lost(&mut self, session: u64, server: usize, blame: Blame) -> Lost<J> {
        let mut tokens: Vec<u64> = self
            .entries
            .iter()
            .filter(|(_, entry)| entry.state.session() == Some(session))
            .map(|(token, _)| *token)
            .collect();
        tokens.sort_unstable();
        let mut lost = Lost {
            unwanted: Vec::new(),
            failed: Vec::new(),
            again: 0,
        };
        for token in tokens.into_iter().rev() {
            let Some(entry) = self.entries.get_mut(&token) else {
                continue;
            };
            entry.losses += u32::from(blame == Blame::Jobs);
            let (answered, given_up) = (entry.answered, entry.losses >= MAX_LOSSES);
            if !answered && !given_up {
                self.put_back(token, server);
                lost.again += 1;
            } else if let Some(entry) = self.leave(token) {
                let gone = if answered {
                    &mut lost.unwanted
                } else {
                    &mut lost.failed
                };
                gone.push((token, entry.job));
            }
        }
        lost
    }

    /// No clamd is to be had: every waiting job without a try left is handed
    /// out. If connecting `was_tried` just now, the others lose a try.
    pub fn unreachable(&mut self, was_tried: bool) -> Vec<(u64, J)> {
        let mut tokens = Vec::new();
        for (token, entry) in &mut self.entries {
            if entry.state != State::Waiting {
                continue;
            }
            if entry.tries_left == 0 {
                tokens.push(*token);
            } else {
                entry.tries_left -= u32::from(was_tried);
            }
        }
        tokens.sort_unstable();
        tokens
            .into_iter()
            .filter_map(|token| Some((token, self.leave(token)?.job)))
            .collect()
    }

    /// One job whose deadline has come; call until `None`.
    pub fn next_due(&mut self, now: Instant) -> Option<Due<'_, J>> {
        loop {
            let (deadline, token) = *self.deadlines.front()?;
            let entry = self.entries.get(&token).filter(|entry| !entry.answered);
            if entry.is_some() && deadline > now {
                return None;
            }
            self.deadlines.pop_front();
            match entry.map(|entry| entry.state) {
                None => {}
                Some(State::Waiting) => {
                    return self
                        .leave(token)
                        .map(|entry| Due::Waiting(token, entry.job));
                }
                Some(State::UnderWay { .. }) => {
                    return self.entries.get_mut(&token).map(|entry| {
                        (entry.answered, entry.overdue) = (true, true);
                        Due::UnderWay(&mut entry.job)
                    });
                }
            }
        }
    }

    /// Looks after some of those that are waited for, from the `from`th on: `gone`
    /// says whether nobody waits for a job any more. What was not sent yet leaves
    /// the book; what is under way stays for its verdict. Returns those that left,
    /// and where to go on the next time.
    pub fn look_after(
        &mut self,
        (from, count): (usize, usize),
        mut gone: impl FnMut(&mut J) -> bool,
    ) -> (Vec<(u64, J)>, usize) {
        let from = if from < self.deadlines.len() { from } else { 0 };
        let tokens: Vec<u64> = self
            .deadlines
            .range(from..)
            .take(count)
            .map(|(_, t)| *t)
            .collect();
        let next = from + tokens.len();
        let mut left = Vec::new();
        for token in tokens {
            let Some(entry) = self.entries.get_mut(&token) else {
                continue;
            };
            if entry.answered || !gone(&mut entry.job) {
                continue;
            }
            if entry.state == State::Waiting {
                left.extend(self.leave(token).map(|entry| (token, entry.job)));
            } else {
                entry.answered = true;
            }
        }
        (left, next)
    }

    /// Of each scan that was sent by `then` and that no opener waits for (any more), its
    /// session and when it was sent.
    pub fn unanswered(&self, then: Instant) -> Vec<(u64, Instant)> {
        let all = self.entries.values();
        let unwanted = all.filter(|entry| entry.answered || entry.class.is_prescan());
        let sent = unwanted.filter_map(|entry| match entry.state {
            State::UnderWay { session, sent } if sent <= then => Some((session, sent)),
            _ => None,
        });
        sent.collect()
    }

    /// The prescans among these are not to be sent again when the session is lost.
    pub fn give_up_unanswered(&mut self, lost: u64, then: Instant) {
        for entry in self.entries.values_mut() {
            if let State::UnderWay { session, sent } = entry.state
                && session == lost
                && sent <= then
                && entry.class.is_prescan()
            {
                (entry.answered, entry.overdue) = (true, true);
            }
        }
    }

    /// Places in all.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// When the next deadline comes, as far as is known (it may be one of a job
    /// that is done).
    pub fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.front().map(|(deadline, _)| *deadline)
    }

    /// Jobs under way.
    pub fn under_way(&self) -> usize {
        self.under_way.iter().sum()
    }

    /// Whether a job that is sent now would go at once.
    pub fn has_room(&self) -> bool {
        self.queue.is_empty() && self.under_way() < self.limit
    }

    /// Whether a job waits to be sent.
    pub fn has_waiting(&self) -> bool {
        !self.queue.is_empty()
    }
}

#[cfg(test)]
mod tests;
