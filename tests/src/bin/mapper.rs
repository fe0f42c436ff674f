//! A process of its own that maps a file for shared writing and stores into it.
//!
//! `mapper FILE OFFSET BYTES`: maps the file, closes it, says `mapped`, waits
//! for a line, stores, says `stored`, waits for the end of its input, ends. Must
//! not: open or write the file in any other way.

use std::{
    env,
    fs::File,
    io::{self, BufRead},
    os::unix::ffi::OsStrExt,
};

use onacc_tests::SharedMapping;

fn main() -> io::Result<()> {
    let arguments: Vec<_> = env::args_os().skip(1).collect();
    let [path, offset, bytes] = arguments.as_slice() else {
        return Err(io::Error::other("usage: mapper FILE OFFSET BYTES"));
    };
    let offset = offset.to_str().and_then(|digits| digits.parse().ok());
    let offset = offset.ok_or_else(|| io::Error::other("OFFSET is a number"))?;
    let file = File::options().read(true).write(true).open(path)?;
    let mut mapping = SharedMapping::of(&file)?;
    drop(file);
    println!("mapped");
    let mut lines = io::stdin().lock().lines();
    lines.next().transpose()?;
    mapping.store(offset, bytes.as_bytes());
    println!("stored");
    for line in lines {
        line?;
    }
    Ok(())
}
