//! Says, now and then, how many opens nobody has looked at.
//!
//! Only where nobody waits for an answer. Must not: say it for each. Tested here.

use std::time::{Duration, Instant};

/// At most one line in this time.
const LINES: Duration = Duration::from_secs(10);

/// Opens that nobody has looked at and that no line has spoken of yet.
#[derive(Debug, Default)]
pub struct Lost {
    opens: u64,
    next_line: Option<Instant>,
}

impl Lost {
    /// So many more.
    pub fn add(&mut self, opens: u64) {
        self.opens += opens;
    }

    /// How many.
    pub fn count(&self) -> u64 {
        self.opens
    }

    /// Says it, if it is time.
    pub fn say(&mut self) {
        // Asked at each rest of a reader: no clock is read for nothing.
        if self.opens == 0 {
            return;
        }
        if let Some(opens) = self.due(Instant::now()) {
            tracing::warn!(
                "onacc: {opens} opens were not looked at: more files were opened at a time than there is room for"
            );
        }
    }

    /// When it is to be said, if there is something to say.
    pub fn when(&self) -> Option<Instant> {
        (self.opens > 0).then_some(self.next_line).flatten()
    }

    fn due(&mut self, now: Instant) -> Option<u64> {
        if self.opens == 0 || self.next_line.is_some_and(|next| now < next) {
            return None;
        }
        self.next_line = Some(now + LINES);
        Some(std::mem::take(&mut self.opens))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_one_line_and_nothing_is_left_out() {
        let start = Instant::now();
        let mut lost = Lost::default();
        assert_eq!((lost.due(start), lost.when()), (None, None));
        lost.add(3);
        assert_eq!(lost.due(start), Some(3));
        lost.add(4);
        lost.add(5);
        assert_eq!((lost.due(start), lost.count()), (None, 9));
        assert_eq!(lost.when(), Some(start + LINES));
        assert_eq!(lost.due(start + LINES), Some(9));
        assert_eq!(lost.when(), None);
    }
}
