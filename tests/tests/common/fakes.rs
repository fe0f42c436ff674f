//! Scripted clamds that the tests of the verdict cache need besides `FakeSite`.
//!
//! Must not: assert anything.

use onacc_tests::{Behaviour, FakeClamd, RequestInfo, ScratchFs};

/// What the database says of itself at first.
pub const OLD_VERSION: &str = "ClamAV 1.4.6/27000/Sun Nov 22 00:00:00 2026";
const NEW_VERSION: &str = "ClamAV 1.4.6/27001/Mon Nov 23 00:00:00 2026";

/// How many scans were asked for so far.
pub fn scans(fake: &FakeClamd) -> usize {
    fake.count("FILDES")
}

/// A clamd whose new database takes every file for infected.
pub fn versioned(request: &RequestInfo, updated: bool) -> Behaviour {
    match (request.command.as_str(), updated) {
        ("VERSION", false) => Behaviour::reply(OLD_VERSION),
        ("VERSION", true) => Behaviour::reply(NEW_VERSION),
        ("FILDES", true) => Behaviour::infected("Onacc.Test.New"),
        _ => Behaviour::usual(),
    }
}

/// A tmpfs with a directory `in`, and a clamd whose scans are scripted, which must
/// be dropped before the directory of its socket: bind them in this order.
pub fn tmpfs_site(
    scan: impl Fn(&RequestInfo) -> Behaviour + Send + Sync + 'static,
) -> Result<(ScratchFs, tempfile::TempDir, FakeClamd), String> {
    let scratch = ScratchFs::tmpfs(32)?;
    scratch.mkdir("in");
    let dir = tempfile::tempdir().map_err(|error| format!("a directory: {error}"))?;
    let fake = FakeClamd::start(dir.path(), move |request| match request.command.as_str() {
        "FILDES" => scan(request),
        _ => Behaviour::usual(),
    });
    Ok((scratch, dir, fake))
}
