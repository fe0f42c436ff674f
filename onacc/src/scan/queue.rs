//! Who is next: openers before prescans, small files before those that take long,
//! and each opener in turn. Pure.
//!
//! Must not: know what a token stands for, nor look at a clock. Tested here.

use std::collections::{HashMap, VecDeque};

/// Small files that may go before one that takes long and waits.
const SMALL_BEFORE_LONG: u32 = 8;

/// What a job is, as far as its place in line goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// Somebody waits, and the scan is short.
    Small,
    /// Somebody waits, and the scan is long.
    Huge,
    /// Somebody waits, and whoever reads the file may wait for its server, for ever.
    Slow,
    /// Nobody waits.
    Prescan,
    /// As `Prescan`, and as `Slow`.
    SlowPrescan,
}

/// How many classes there are.
pub const CLASSES: usize = 5;

impl Class {
    /// Whether nobody waits.
    pub fn is_prescan(self) -> bool {
        matches!(self, Self::Prescan | Self::SlowPrescan)
    }

    /// Whether a read of the file may wait for a server.
    pub fn is_slow(self) -> bool {
        matches!(self, Self::Slow | Self::SlowPrescan)
    }
}

/// Tokens in line, by class and opener.
#[derive(Debug, Default)]
pub struct Queue {
    lines: [Line; CLASSES],
    /// Small ones that went before one that takes long and waits.
    before_long: u32,
    /// Slow ones go before others that are as urgent: they take turns.
    slow_first: bool,
}

/// The jobs of one class: each opener has a line of its own, and they take turns.
#[derive(Debug, Default)]
struct Line {
    /// Openers that have jobs, in the order of their turns.
    turns: VecDeque<u64>,
    jobs: HashMap<u64, VecDeque<u64>>,
}

impl Line {
    fn push_back(&mut self, opener: u64, token: u64) {
        let jobs = self.jobs.entry(opener).or_default();
        if jobs.is_empty() {
            self.turns.push_back(opener);
        }
        jobs.push_back(token);
    }

    fn push_front(&mut self, opener: u64, token: u64) {
        let jobs = self.jobs.entry(opener).or_default();
        if !jobs.is_empty() {
            self.turns.retain(|other| *other != opener);
        }
        self.turns.push_front(opener);
        jobs.push_front(token);
    }

    fn first(&self) -> Option<u64> {
        let opener = self.turns.front()?;
        self.jobs.get(opener)?.front().copied()
    }

    fn pop(&mut self) -> Option<u64> {
        let opener = self.turns.pop_front()?;
        let jobs = self.jobs.get_mut(&opener)?;
        let token = jobs.pop_front();
        if jobs.is_empty() {
            self.jobs.remove(&opener);
        } else {
            self.turns.push_back(opener);
        }
        token
    }

    fn remove(&mut self, opener: u64, token: u64) {
        let Some(jobs) = self.jobs.get_mut(&opener) else {
            return;
        };
        jobs.retain(|other| *other != token);
        if jobs.is_empty() {
            self.jobs.remove(&opener);
            self.turns.retain(|other| *other != opener);
        }
    }
}

impl Queue {
    /// Joins the line.
    pub fn push_back(&mut self, class: Class, opener: u64, token: u64) {
        self.lines[class as usize].push_back(opener, token);
    }

    /// Comes back to the head of the line: its turn was in vain.
    pub fn push_front(&mut self, class: Class, opener: u64, token: u64) {
        self.lines[class as usize].push_front(opener, token);
    }

    /// Leaves the line.
    pub fn remove(&mut self, class: Class, opener: u64, token: u64) {
        self.lines[class as usize].remove(opener, token);
    }

    /// Who is next, of the classes that may go now.
    pub fn first(&self, may_go: impl Fn(Class) -> bool) -> Option<(Class, u64)> {
        let turns = |one, slow| {
            if self.slow_first {
                [slow, one]
            } else {
                [one, slow]
            }
        };
        let [long, next_long] = turns(Class::Huge, Class::Slow);
        let [idle, next_idle] = turns(Class::Prescan, Class::SlowPrescan);
        let order = if self.before_long >= SMALL_BEFORE_LONG {
            [long, next_long, Class::Small, idle, next_idle]
        } else {
            [Class::Small, long, next_long, idle, next_idle]
        };
        order.into_iter().find_map(|class| {
            let token = self.lines[class as usize].first().filter(|_| may_go(class));
            token.map(|token| (class, token))
        })
    }

    /// The first of this class goes.
    pub fn pop(&mut self, class: Class) -> Option<u64> {
        let waits = |class: Class| self.lines[class as usize].first().is_some();
        match class {
            Class::Small if waits(Class::Huge) || waits(Class::Slow) => {
                self.before_long = self.before_long.saturating_add(1);
            }
            Class::Small | Class::Huge | Class::Slow => self.before_long = 0,
            Class::Prescan | Class::SlowPrescan => {}
        }
        if class != Class::Small {
            self.slow_first = !class.is_slow();
        }
        self.lines[class as usize].pop()
    }

    /// Whether nobody is in line.
    pub fn is_empty(&self) -> bool {
        self.lines.iter().all(|line| line.turns.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn drain(queue: &mut Queue) -> Vec<u64> {
        std::iter::from_fn(|| {
            let (class, token) = queue.first(|_| true)?;
            assert_eq!(queue.pop(class), Some(token));
            Some(token)
        })
        .collect()
    }

    #[test]
    fn openers_take_turns_and_nobody_is_starved() {
        let mut queue = Queue::default();
        for token in 0..6 {
            queue.push_back(Class::Small, 1, token);
        }
        queue.push_back(Class::Small, 2, 10);
        queue.push_back(Class::Small, 2, 11);
        queue.push_back(Class::Prescan, 0, 20);
        assert_eq!(drain(&mut queue), [0, 10, 1, 11, 2, 3, 4, 5, 20]);
        assert!(queue.is_empty());
    }

    #[test]
    fn small_ones_go_first_but_huge_ones_go() {
        let mut queue = Queue::default();
        queue.push_back(Class::Huge, 1, 100);
        queue.push_back(Class::Huge, 1, 101);
        for token in 0..12 {
            queue.push_back(Class::Small, 2, token);
        }
        let order = drain(&mut queue);
        assert_eq!(order[..10], [0, 1, 2, 3, 4, 5, 6, 7, 100, 8]);
        assert_eq!(order[10..], [9, 10, 11, 101]);
    }

    #[test]
    fn slow_ones_and_huge_ones_take_turns_and_small_ones_do_not_starve_them() {
        let mut queue = Queue::default();
        for token in 0..3 {
            queue.push_back(Class::Huge, 1, 100 + token);
            queue.push_back(Class::Slow, 1, 200 + token);
            queue.push_back(Class::Prescan, 0, 300 + token);
            queue.push_back(Class::SlowPrescan, 0, 400 + token);
        }
        for token in 0..16 {
            queue.push_back(Class::Small, 2, token);
        }
        let order = drain(&mut queue);
        assert_eq!((order[8], order[17]), (100, 200));
        assert_eq!(order[18..22], [101, 201, 102, 202]);
        assert_eq!(order[22..], [300, 400, 301, 401, 302, 402]);
        assert!(queue.is_empty());
    }

    #[test]
    fn who_comes_back_is_first_and_who_leaves_is_gone() {
        let mut queue = Queue::default();
        queue.push_back(Class::Small, 1, 1);
        queue.push_back(Class::Small, 2, 2);
        queue.push_back(Class::Small, 1, 3);
        queue.push_front(Class::Small, 2, 4);
        queue.remove(Class::Small, 1, 1);
        assert_eq!(queue.first(|class| class == Class::Huge), None);
        assert_eq!(drain(&mut queue), [4, 3, 2]);
    }

    proptest! {
        #[test]
        fn each_comes_out_once(
            steps in proptest::collection::vec((0u8..4, 0u8..5, 0u64..4), 0..80)
        ) {
            let classes = [Class::Small, Class::Huge, Class::Slow, Class::Prescan, Class::SlowPrescan];
            let mut queue = Queue::default();
            let mut inside: Vec<(u64, Class, u64)> = Vec::new();
            for (token, (what, class, opener)) in steps.into_iter().enumerate() {
                let (token, class) = (token as u64, classes[usize::from(class)]);
                match what {
                    0 => queue.push_back(class, opener, token),
                    1 => queue.push_front(class, opener, token),
                    2 => {
                        let first = queue.first(|_| true);
                        prop_assert_eq!(first.is_none(), inside.is_empty());
                        if let Some((class, token)) = first {
                            prop_assert_eq!(queue.pop(class), Some(token));
                            inside.retain(|(other, ..)| *other != token);
                        }
                        continue;
                    }
                    _ => {
                        if let Some((token, class, opener)) = inside.pop() {
                            queue.remove(class, opener, token);
                        }
                        continue;
                    }
                }
                inside.push((token, class, opener));
            }
            let mut left = drain(&mut queue);
            left.sort_unstable();
            let mut wanted: Vec<u64> = inside.iter().map(|(token, ..)| *token).collect();
            wanted.sort_unstable();
            prop_assert_eq!(left, wanted);
        }
    }
}
