//! What failing tests said, picked from their output, to be said again at the end.
//!
//! Owns: which lines matter: where a test panicked and the first lines of why, without
//! what an agent's log says always.
//! Must not: judge; results are counted elsewhere. Tested below.

/// Lines kept of a panic, the one that says where included.
const LINES: usize = 16;
/// How lines begin that are in every agent's log.
const COMMON: [&str; 2] = ["onacc: counter: ", "onacc: tier: "];
/// Characters kept of a line.
const WIDTH: usize = 600;
/// Panics kept: the first ones tell most.
const PANICS: usize = 40;

/// Reads output line by line.
#[derive(Debug, Default)]
pub struct Panics {
    kept: Vec<String>,
    /// Lines that may still be added to the last one.
    open: usize,
}

impl Panics {
    /// Takes in a line.
    pub fn line(&mut self, line: &str) {
        if line.starts_with("thread '") && line.contains(" panicked at ") {
            self.open = 0;
            if self.kept.len() < PANICS {
                self.kept.push(short(line));
                self.open = LINES - 1;
            }
        } else if self.open > 0 {
            if line.is_empty() || line.starts_with("stack backtrace") || line.starts_with("note: ")
            {
                self.open = 0;
            } else if COMMON.iter().any(|start| line.starts_with(start)) {
                // Of no use to know why.
            } else if let Some(last) = self.kept.last_mut() {
                self.open -= 1;
                last.push_str("\n    ");
                last.push_str(&short(line));
            }
        }
    }

    /// One text for each panic.
    pub fn finish(self) -> Vec<String> {
        self.kept
    }
}

fn short(line: &str) -> String {
    match line.char_indices().nth(WIDTH) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Vec<String> {
        let mut panics = Panics::default();
        text.lines().for_each(|line| panics.line(line));
        panics.finish()
    }

    #[test]
    fn where_and_why_are_kept_and_the_backtrace_is_not() {
        let text = "running 2 tests\n\
            thread 'a' (12) panicked at tests/a.rs:9:5:\n\
            assertion failed: left == right\n  left: 1\n right: 2\n\
            stack backtrace:\n   0: __rustc::rust_begin_unwind\n\
            thread 'b' (13) panicked at tests/b.rs:1:1:\nno\n\nthe agent said:\nmuch";
        assert_eq!(
            of(text),
            [
                "thread 'a' (12) panicked at tests/a.rs:9:5:\n    \
                 assertion failed: left == right\n      left: 1\n     right: 2",
                "thread 'b' (13) panicked at tests/b.rs:1:1:\n    no",
            ]
        );
    }

    #[test]
    fn what_every_log_has_is_left_out() {
        let text = "thread 'a' (12) panicked at x:\nit: onacc: tier: a\nonacc: tier: b\n\
            onacc: counter: events 1\nonacc: server1: the session ended\n";
        let kept = of(text);
        assert_eq!(kept[0].lines().count(), 3);
        assert!(kept[0].ends_with("the session ended"), "{kept:?}");
    }

    #[test]
    fn endless_output_stays_short() {
        let panic = format!("thread 'a' panicked at x:\n{}\n", "ä\n".repeat(90));
        let text = panic.repeat(100) + &format!("thread 'b' panicked at {}", "é".repeat(9999));
        let kept = of(&text);
        assert_eq!(kept.len(), PANICS);
        assert!(kept.iter().all(|one| one.lines().count() == LINES));
        let long = of(&format!("thread 'b' panicked at {}", "é".repeat(9999)));
        assert_eq!(long[0].chars().count(), WIDTH + 1);
    }
}
