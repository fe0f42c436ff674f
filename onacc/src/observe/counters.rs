//! Counters: one relaxed addition each, printed at exit and on SIGUSR1.

use std::sync::atomic::{AtomicU64, Ordering};

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds one.
    pub fn up(&self) {
        self.add(1);
    }

    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// The value.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $name:ident),+ $(,)?) => {
        /// All counters of the agent.
        #[derive(Debug, Default)]
        pub struct Counters {
            $($(#[doc = $doc])+ pub $name: Counter),+
        }

        impl Counters {
            /// Names and values, in the order of an event's way.
            pub fn list(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name.get())),+]
            }
        }
    };
}

counters! {
    /// Events read from fanotify.
    events,
    /// Events that the kernel dropped because its queue was full (notify-only).
    queue_overflows,
    /// Let through: a thread of the agent itself.
    own_thread,
    /// Let through: clamd or a process that clamd started.
    scanner,
    /// Let through: excluded uid or user name.
    excluded_uid,
    /// Let through: not a regular file.
    not_regular,
    /// Let through: out of scope.
    out_of_scope,
    /// Let through: the path fits a pattern.
    excluded_file,
    /// Let through: excluded program or control group.
    excluded_process,
    /// Let through: larger than `OnAccessMaxFileSize`.
    too_large,
    /// Let through: empty.
    empty,
    /// Let through: this very version of the file is known to be clean.
    known_clean,
    /// Denied: this very version of the file is known to be infected.
    known_infected,
    /// Handed over to be scanned.
    scans,
    /// Scans that a reader handed to clamd itself, without the scan thread.
    sent_at_once,
    /// Openers that joined the scan of another.
    joined,
    /// Files that were closed after writing.
    closed_after_write,
    /// Files and directories that came by creation, link or move
    /// (`OnAccessExtraScanning`).
    arrivals,
    /// Scans that nobody waited for.
    prescans,
    /// Prescans that were not worth it any more.
    prescans_skipped,
    /// Verdict: clean.
    clean,
    /// Verdict: infected.
    infected,
    /// clamd could not scan the file.
    scan_errors,
    /// No verdict within the bound.
    timeouts,
    /// clamd could not be reached.
    unreachable,
    /// Answered by the fail policy because clamd gives no sign of life.
    stalled,
    /// Verdicts that came after the opener had been answered by the fail policy.
    late_verdicts,
    /// Scans sent again.
    retries,
    /// Openers that were killed while they waited.
    cancelled,
    /// Files that were longer than clamd takes in a stream.
    too_long_to_stream,
    /// Bytes of files that were sent in streams.
    streamed_bytes,
    /// Pieces of files for streams that were not in memory.
    cold_reads,
    /// Sessions with clamd that were opened.
    sessions,
    /// Connections that failed.
    connect_failures,
    /// Sessions that ended.
    sessions_lost,
    /// Scans that clamd never replied to, given up with their session.
    scans_unanswered,
    /// Scans taken from a server that gave no sign of life and given to another.
    failed_over,
    /// Replies that clamd took back by a worse one.
    taken_back,
    /// Times that the reader found no room in the fd budget.
    budget_waits,
    /// Opens that eBPF told of.
    told_opens,
    /// Of those, files that could not be found any more: gone, replaced, or in a
    /// place that cannot be reached.
    told_not_found,
    /// Opens for which the ring buffer had no room, looked at afterwards.
    told_caught_up,
    /// Opens that nobody looked at: there was no room for them at all.
    told_lost,
    /// Infected files that the kernel was told to refuse (BPF LSM).
    refused_in_kernel,
    /// Opens and mappings that the kernel refused by itself.
    denied_in_kernel,
    /// Signature databases seen after the first.
    generations,
    /// Directories out of scope that the kernel was told to ignore.
    directories_ignored,
    /// Clean marks placed.
    marks_placed,
    /// Clean verdicts that got no mark: the file has writers.
    unmarked_writers,
    /// Clean verdicts that got no mark: the file changed too recently.
    unmarked_young,
    /// Clean verdicts that got no mark: the file changed during the scan.
    unmarked_changed,
    /// Clean verdicts that got no mark: the kernel or the filesystem refused.
    unmarked_refused,
    /// Clean marks taken away because the file was being changed.
    marks_dropped_dirty,
    /// Clean marks taken away to make room.
    marks_dropped_room,
    /// Times that all clean marks were taken away.
    marks_flushed,
    /// Directory marks placed (coverage "directory" and "listed").
    directory_marks,
    /// Directory marks taken away because the directory left the scope.
    directory_marks_removed,
    /// Times that all directories were compared again, because the inotify queue was full.
    directory_rescans,
    /// Failures to open, watch, mark or list a directory; each is tried again.
    directory_errors,
    /// Files of new directories that were not scanned ahead, because too many waited.
    prescans_dropped,
    /// Infected files that were removed, moved or copied.
    quarantined,
    /// Infected files that need nothing more: dealt with already, or deleted.
    quarantine_skipped,
    /// Infected files that could not be removed, moved or copied.
    quarantine_errors,
    /// Log lines lost because the log could not take them.
    log_lines_lost,
}

/// What became of the scans of one server.
#[derive(Debug, Default)]
pub struct ServerCounters {
    /// Verdict: clean.
    pub clean: Counter,
    /// Verdict: infected.
    pub infected: Counter,
    /// It could not scan the file.
    pub errors: Counter,
    /// Sessions with it that were opened.
    pub sessions: Counter,
    /// Sessions with it that ended.
    pub lost: Counter,
    /// Bytes of files that were sent to it in streams.
    pub bytes: Counter,
}

impl ServerCounters {
    /// Names and values; `number` counts the servers from 1.
    pub fn list(&self, number: usize) -> Vec<(String, u64)> {
        let all = [
            ("clean", &self.clean),
            ("infected", &self.infected),
            ("errors", &self.errors),
            ("sessions", &self.sessions),
            ("lost", &self.lost),
            ("bytes", &self.bytes),
        ];
        all.map(|(name, counter)| (format!("server{number}_{name}"), counter.get()))
            .into()
    }
}
