//! Floods of lines, cut down to some of them and a count.
//!
//! Two limits for each ten seconds: how often the very same complaint or verdict
//! is written, and how many complaints of one kind are, whatever they name. A
//! verdict on a file is never left out because of verdicts on others. Pure;
//! tested here.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use tracing::Level;

/// How long a count runs.
pub const WINDOW: Duration = Duration::from_secs(10);
/// The same line at most so often in a window.
const SAME: u32 = 50;
/// Complaints of one kind in a window.
const OF_A_KIND: u32 = 200;
/// Different lines that are remembered in a window; those beyond are not limited
/// by their text.
const MOST_TEXTS: usize = 2048;

/// A line on its way into the log.
#[derive(Clone, Debug)]
pub struct Line {
    /// How grave it is.
    pub level: Level,
    /// It tells a verdict.
    pub verdict: bool,
    /// The same for all lines from one place in the program.
    pub kind: Option<usize>,
    /// With its line end.
    pub text: Vec<u8>,
}

impl Line {
    /// A line that no limit applies to.
    pub fn own(level: Level, text: &str) -> Self {
        Self {
            level,
            verdict: false,
            kind: None,
            text: format!("{text}\n").into_bytes(),
        }
    }
}

/// What was written in the current window.
#[derive(Debug)]
pub struct Flood {
    began: Instant,
    texts: HashMap<Vec<u8>, (Level, u32)>,
    /// How many there were, and the first that was left out.
    kinds: HashMap<usize, (u32, Vec<u8>)>,
}

impl Flood {
    /// Nothing was written.
    pub fn new(now: Instant) -> Self {
        Self {
            began: now,
            texts: HashMap::new(),
            kinds: HashMap::new(),
        }
    }

    /// Whether a line is to be written.
    pub fn admits(&mut self, line: &Line) -> bool {
        let complaint = line.level <= Level::WARN;
        if !complaint && !line.verdict {
            return true;
        }
        if let Some((_, count)) = self.texts.get_mut(&line.text) {
            *count += 1;
            if *count > SAME {
                return false;
            }
        } else if self.texts.len() < MOST_TEXTS {
            self.texts.insert(line.text.clone(), (line.level, 1));
        }
        let (true, Some(kind)) = (complaint, line.kind) else {
            return true;
        };
        let (count, sample) = self.kinds.entry(kind).or_default();
        *count += 1;
        if *count == OF_A_KIND + 1 {
            sample.clone_from(&line.text);
        }
        *count <= OF_A_KIND
    }

    /// The lines that stand for those left out, once their window is over or if
    /// the log `ends`.
    pub fn sum_up(&mut self, now: Instant, ends: bool) -> Vec<Line> {
        if !ends && now.duration_since(self.began) < WINDOW {
            return Vec::new();
        }
        self.began = now;
        let same = self.texts.drain().filter_map(|(text, (level, count))| {
            let left_out = count.checked_sub(SAME).filter(|left_out| *left_out > 0)?;
            let text = String::from_utf8_lossy(&text).trim_end().to_owned();
            Some(Line::own(
                level,
                &format!("{text} ({left_out} more times in {} s)", WINDOW.as_secs()),
            ))
        });
        let kinds = self.kinds.drain().filter_map(|(_, (count, sample))| {
            let left_out = count
                .checked_sub(OF_A_KIND)
                .filter(|left_out| *left_out > 0)?;
            let sample = String::from_utf8_lossy(&sample).trim_end().to_owned();
            Some(Line::own(
                Level::WARN,
                &format!(
                    "WARNING: onacc: {left_out} more lines were left out, the first was: {sample}"
                ),
            ))
        });
        same.chain(kinds).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(level: Level, verdict: bool, text: &str) -> Line {
        Line {
            level,
            verdict,
            kind: Some(1),
            text: text.as_bytes().to_vec(),
        }
    }

    fn texts(lines: Vec<Line>) -> Vec<String> {
        let texts = lines.into_iter().map(|line| String::from_utf8(line.text));
        texts.collect::<Result<_, _>>().unwrap()
    }

    #[test]
    fn a_repeated_verdict_comes_to_some_lines_and_a_count_and_others_stay() {
        let now = Instant::now();
        let mut flood = Flood::new(now);
        let bad = line(Level::INFO, true, "/bad: X FOUND\n");
        let admitted = (0..1000).filter(|_| flood.admits(&bad)).count();
        assert_eq!(admitted, SAME as usize);
        for n in 0..10_000 {
            assert!(flood.admits(&line(Level::INFO, true, &format!("/bad{n}: X FOUND\n"))));
        }
        assert!(flood.sum_up(now + WINDOW / 2, false).is_empty());
        assert_eq!(
            texts(flood.sum_up(now + WINDOW, false)),
            ["/bad: X FOUND (950 more times in 10 s)\n"]
        );
        assert!(flood.admits(&bad));
        assert!(flood.sum_up(now + 2 * WINDOW, false).is_empty());
    }

    #[test]
    fn complaints_of_a_kind_are_limited_and_those_of_another_are_not() {
        let now = Instant::now();
        let mut flood = Flood::new(now);
        let complain = |n| line(Level::ERROR, false, &format!("ERROR: file {n}\n"));
        let admitted = (0..500).filter(|n| flood.admits(&complain(*n))).count();
        assert_eq!(admitted, OF_A_KIND as usize);
        let other = Line {
            kind: Some(2),
            ..complain(0)
        };
        assert!(flood.admits(&other));
        assert_eq!(
            texts(flood.sum_up(now, true)),
            ["WARNING: onacc: 300 more lines were left out, the first was: ERROR: file 200\n"]
        );
    }

    #[test]
    fn what_is_told_on_request_is_never_left_out() {
        let mut flood = Flood::new(Instant::now());
        let told = line(Level::INFO, false, "onacc: counter: events 0\n");
        assert!((0..10_000).all(|_| flood.admits(&told)));
    }
}
