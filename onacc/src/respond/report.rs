//! Log lines about verdicts, failures and clamd.
//!
//! The wording that scripts grep is clamonacc's (facts/clamonacc.md, 1.3). Must
//! not: flood; failures beyond a few a second are counted and summed up.

use std::time::{Duration, Instant};

use crate::clamd::SessionError;
use crate::kernel::fanotify::Answer;
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
fn name_of(path: &[u8], links: u32) -> String {
    if path.is_empty() {
        return "<path longer than 4096 bytes>".to_owned();
    }
    let path = match path.strip_suffix(b" (deleted)") {
        Some(shorter) if links == 0 => shorter,
        _ => path,
    };
    printable(path)
}

/// The verdict line.
pub fn infected(path: &[u8], links: u32, signature: &str) {
    let path = name_of(path, links);
    tracing::info!("{path}: {} FOUND", printable(signature.as_bytes()));
}

/// A file that the settings want let through unseen.
pub fn too_large(path: &[u8], size: u64) {
    let path = name_of(path, 1);
    tracing::debug!(
        "onacc: {path}: not scanned, its {size} bytes are more than OnAccessMaxFileSize"
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
    fn the_name_of_a_deleted_file_is_the_one_it_had() {
        assert_eq!(name_of(b"/a (deleted)", 0), "/a");
        assert_eq!(name_of(b"/a (deleted)", 1), "/a (deleted)");
        assert_eq!(name_of(b"", 1), "<path longer than 4096 bytes>");
    }
}
