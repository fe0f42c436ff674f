//! A process of its own that opens files and says what came of it.
//!
//! For each path on a line of its input: opens it for reading, and says the
//! error number, 0 if it was opened. Must not: write, or follow a path's changes.

use std::{
    fs::File,
    io::{self, BufRead, Write},
};

fn main() -> io::Result<()> {
    let mut said = io::stdout().lock();
    for path in io::stdin().lock().lines() {
        let errno = match File::open(path?) {
            Ok(_) => 0,
            Err(error) => error.raw_os_error().unwrap_or(-1),
        };
        writeln!(said, "{errno}")?;
        said.flush()?;
    }
    Ok(())
}
