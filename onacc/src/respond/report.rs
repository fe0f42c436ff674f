//! Log lines about verdicts, failures and clamd.
//!
//! The wording that scripts grep is clamonacc's (facts/clamonacc.md, 1.3). Must
//! not: flood; failures beyond a few a second are counted and summed up.

use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::clamd::SessionError;
use crate::config::settings::Action;
use crate::kernel::fanotify::Answer;
use crate::kernel::file::DELETED;
use crate::kernel::opener::Opener;
use crate::observe::log::VERDICT;
use crate::observe::printable;

/// Failures a second that are written one by one.
const FAILURES_A_SECOND: u32 = 10;

/// Why there is no verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// No clamd on the socket.
    Unreachable,
    /// No verdict within the bound.
    Timeout(Duration),
    /// clamd gives no sign of life.
    Stalled,
    /// clamd's own words.
    Scan(String),
}

/// Lines about openers that got no verdict, not too many of them. Belongs to
/// the thread that answers.
#[derive(Debug)]
pub struct FailureLines {
    second: Instant,
    written: u32,
    withheld: u64,
}

impl Default for FailureLines {
    fn default() -> Self {
        Self {
            second: Instant::now(),
            written: 0,
            withheld: 0,
        }
    }
}

/// The path of a job's file, for a line.
pub(super) fn name_of(path: &[u8], links: u32) -> String {
    if path.is_empty() {
        return "<path longer than 4096 bytes>".to_owned();
    }
    let path = match path.strip_suffix(DELETED) {
        Some(shorter) if links == 0 => shorter,
        _ => path,
    };
    printable(path)
}

/// The verdict line.
pub fn infected(path: &[u8], links: u32, signature: &str) {
    let path = name_of(path, links);
    tracing::info!(target: VERDICT, "{path}: {} FOUND", printable(signature.as_bytes()));
}

/// The process at the other end of a connection within this host is no clamd, and
/// leads to none that could be found.
pub fn clamd_not_recognised(server: &str, proxy: Option<i32>) {
    let who = proxy.map_or_else(
        || "a process that cannot be seen".to_owned(),
        |pid| {
            let exe = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
            format!("process {pid} ({})", shown(&exe))
        },
    );
    tracing::warn!(
        "onacc: {server}: its connections are taken by {who}, and no clamd is found behind it: not recognised. If clamd runs on this host and opens watched files, those opens wait for scans of their own, up to the bound; exclude its user by OnAccessExcludeUname"
    );
}

/// A file that the settings want let through unseen.
pub fn too_large(path: &[u8], size: u64) {
    let path = name_of(path, 1);
    tracing::debug!(
        "onacc: {path}: not scanned, its {size} bytes are more than OnAccessMaxFileSize"
    );
}

/// What became of one opener of an infected file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Its open failed.
    Refused,
    /// Its open went on: notify-only.
    Reported,
    /// It had been answered by the fail policy before.
    Late,
}

/// Who opened an infected file: the line after the verdict line. Each field is
/// one word, so that no pattern for a verdict line fits it, whatever the names.
pub fn opener(path: &[u8], links: u32, opener: Option<&Opener>, outcome: Outcome) {
    let outcome = match outcome {
        Outcome::Refused => "refused",
        Outcome::Reported => "reported",
        Outcome::Late => "answered before",
    };
    let path = word(name_of(path, links).as_bytes());
    let Some(opener) = opener else {
        tracing::info!(target: VERDICT, "onacc: open {outcome}: pid=unknown file={path}");
        return;
    };
    tracing::info!(
        target: VERDICT,
        "onacc: open {outcome}: pid={} tid={} uid={} comm={} exe={} file={path}",
        opener.pid,
        opener.tid,
        opener.uid,
        word(&opener.comm),
        word(&opener.exe),
    );
}

/// One word: nothing in it ends a field, or looks like a line of another kind.
fn word(bytes: &[u8]) -> String {
    let text = printable(bytes);
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\\' => out.push_str("\\\\"),
            _ if character.is_whitespace() => out.extend(character.escape_unicode()),
            _ => out.push(character),
        }
    }
    out
}

/// A path, fit for a line.
pub(super) fn shown(path: &Path) -> String {
    printable(path.as_os_str().as_bytes())
}

/// A file as its opener called it, and as it was called when something was done
/// to it: in one, as clamonacc writes them.
pub type Names<'a> = (&'a [u8], Option<&'a Path>);

fn both((opened, real): Names<'_>, quote: &str) -> String {
    let opened_is_real = real.is_none_or(|real| real.as_os_str().as_bytes() == opened);
    match real.filter(|_| !opened_is_real) {
        Some(real) if opened.is_empty() => format!("{quote}{}{quote}", shown(real)),
        Some(real) => format!(
            "{quote}{}{quote} (real path: '{}')",
            name_of(opened, 1),
            shown(real)
        ),
        None => format!("{quote}{}{quote}", name_of(opened, 1)),
    }
}

/// An infected file was removed.
pub fn removed(names: Names<'_>) {
    tracing::info!("{}: Removed.", both(names, ""));
}

/// An infected file was moved.
pub fn moved(names: Names<'_>, to: &Path) {
    tracing::info!("{}: moved to '{}'", both(names, ""), shown(to));
}

/// An infected file was copied.
pub fn copied(names: Names<'_>, to: &Path) {
    tracing::info!("{}: copied to '{}'", both(names, ""), shown(to));
}

/// An infected file could not be removed, moved or copied.
pub fn cannot(action: &Action, names: Names<'_>, directory: Option<&Path>, why: &str) {
    let to = directory.map_or_else(String::new, |to| format!(" to '{}'", shown(to)));
    tracing::error!(
        "Can't {} file {}{to}: {}",
        verb(action),
        both(names, "'"),
        printable(why.as_bytes())
    );
}

fn verb(action: &Action) -> &'static str {
    match action {
        Action::Nothing => "deal with",
        Action::Remove => "remove",
        Action::Move(_) => "move",
        Action::Copy(_) => "copy",
    }
}

/// The file has further names.
pub fn links_left(path: &Path, count: u64) {
    tracing::warn!(
        "onacc: {}: {count} more names (hard links) of this file are elsewhere on its filesystem; they stay until somebody opens them",
        shown(path)
    );
}

/// A verdict that nobody could wait for.
pub fn late(path: &[u8]) {
    let path = name_of(path, 1);
    tracing::warn!(
        "onacc: {path}: the verdict came after its opener had been answered by the fail policy"
    );
}

/// clamd has loaded other signatures.
pub fn new_database(version: &str) {
    tracing::info!(
        "onacc: clamd has another signature database ({}); no old verdict is used any more",
        printable(version.as_bytes())
    );
}

impl FailureLines {
    /// An opener was answered without a verdict.
    pub fn report(&mut self, path: &[u8], failure: &Failure, answer: Answer) {
        if !self.may_write() {
            return;
        }
        let path = name_of(path, 1);
        let done = match answer {
            Answer::Allow => "allowed",
            Answer::Deny => "denied (OnAccessDenyOnError)",
        };
        match failure {
            Failure::Timeout(bound) => tracing::error!(
                "ClamCom: TIMEOUT while waiting on socket (recv): {path}: no verdict in {} ms, {done}",
                bound.as_millis()
            ),
            Failure::Scan(words) => tracing::error!(
                "ClamMisc: Unexpected issue; Daemon failed to scan: {path}: {}, {done}",
                printable(words.as_bytes())
            ),
            Failure::Unreachable => {
                tracing::warn!("onacc: {path}: clamd cannot be reached, {done}");
            }
            Failure::Stalled => {
                tracing::warn!("onacc: {path}: clamd gives no sign of life, {done}");
            }
        }
    }

    fn may_write(&mut self) -> bool {
        if self.second.elapsed() >= Duration::from_secs(1) {
            if self.withheld > 0 {
                tracing::warn!(
                    "onacc: {} more opens were answered without a verdict",
                    self.withheld
                );
            }
            self.second = Instant::now();
            self.written = 0;
            self.withheld = 0;
        }
        if self.written < FAILURES_A_SECOND {
            self.written += 1;
            return true;
        }
        self.withheld += 1;
        false
    }
}

/// The first failed connection of an outage.
pub fn connection_failed(server: &str, error: &dyn std::error::Error) {
    tracing::error!("ClamClient: Connection to clamd failed, {error} ({server}).");
}

/// clamd answers after an outage.
pub fn reconnected(server: &str) {
    tracing::info!("ClamClient: Connection to clamd re-established. ({server})");
}

/// What clamd says of itself.
pub fn version(server: &str, version: &str) {
    tracing::debug!("onacc: {server}: {}", printable(version.as_bytes()));
}

/// The session ended.
pub fn session_lost(server: &str, error: &SessionError) {
    tracing::warn!(
        "onacc: {server}: {}; what was not judged is sent again",
        printable(error.to_string().as_bytes())
    );
}

/// clamd does not even answer a ping.
pub fn stalled(server: &str, bound: Duration) {
    tracing::error!(
        "onacc: {server}: clamd has given no sign of life for {} ms; until it does, it is not asked, and without another opens are answered at once by the fail policy",
        bound.as_millis()
    );
}

/// clamd answers again.
pub fn recovered(server: &str) {
    tracing::info!("onacc: {server}: clamd gives signs of life again");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_one_word_and_forges_nothing() {
        assert_eq!(word(b"/a b: X FOUND"), "/a\\u{20}b:\\u{20}X\\u{20}FOUND");
        assert_eq!(word(b"a\\u{20}b\xff"), "a\\\\u{20}b\\\\xff");
        assert_eq!(word("a\u{a0}b".as_bytes()), "a\\u{a0}b");
    }

    #[test]
    fn the_name_of_a_deleted_file_is_the_one_it_had() {
        assert_eq!(name_of(b"/a (deleted)", 0), "/a");
        assert_eq!(name_of(b"/a (deleted)", 1), "/a (deleted)");
        assert_eq!(name_of(b"", 1), "<path longer than 4096 bytes>");
    }
}
