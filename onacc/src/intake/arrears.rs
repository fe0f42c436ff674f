//! How long an event may have waited in the kernel before it was read.
//!
//! Events carry no time. While the fd budget has room they are read at once;
//! without room they wait unseen, and that counts for their bound (invariant 4).
//! So when the reader finds no room it notes the time and how many wait: those
//! are at least as old as that, and what came after them is younger than the
//! note. Pure; tested here.

use std::time::Instant;

/// The note.
#[derive(Debug, Default)]
pub struct Arrears(Option<Note>);

#[derive(Debug)]
struct Note {
    /// The next `left` events may have come as early as this.
    since: Instant,
    left: usize,
    /// When `left` was counted: later ones have come after it.
    counted: Instant,
}

impl Arrears {
    /// There is no room, and `queued` events wait.
    pub fn no_room(&mut self, now: Instant, queued: usize) {
        if self.0.is_none() {
            self.0 = Some(Note {
                since: now,
                left: queued,
                counted: now,
            });
        }
    }

    /// The queue was read empty: nobody waits unseen.
    pub fn caught_up(&mut self) {
        self.0 = None;
    }

    /// When the event that was just read may have come. `queued` tells how many
    /// wait behind it, and is asked only now and then.
    pub fn arrival(&mut self, now: Instant, queued: impl FnOnce() -> usize) -> Instant {
        let Some(note) = &mut self.0 else {
            return now;
        };
        if note.left == 0 {
            note.since = note.counted;
            note.counted = now;
            note.left = queued() + 1;
        }
        note.left -= 1;
        note.since
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn what_waited_is_as_old_as_the_note_and_what_came_later_is_not() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut arrears = Arrears::default();
        assert_eq!(arrears.arrival(at(1), || unreachable!()), at(1));
        arrears.no_room(at(2), 2);
        arrears.no_room(at(3), 9);
        assert_eq!(arrears.arrival(at(5), || unreachable!()), at(2));
        assert_eq!(arrears.arrival(at(5), || unreachable!()), at(2));
        // These came after the note of second 2; one more waits behind.
        assert_eq!(arrears.arrival(at(6), || 1), at(2));
        assert_eq!(arrears.arrival(at(6), || unreachable!()), at(2));
        assert_eq!(arrears.arrival(at(7), || 0), at(6));
        arrears.caught_up();
        assert_eq!(arrears.arrival(at(9), || unreachable!()), at(9));
    }
}
