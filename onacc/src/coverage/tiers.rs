//! Which kernel features are in force, found by trying, and said at start.
//!
//! Each line begins with `onacc: tier:` and says what it means. Must not: look
//! at a version number of the kernel.

use super::keeper::MARKS;
use super::outside::OutsideMarks;
use crate::config::modes::{BpfMode, MarksMode};
use crate::kernel::bpf::{BpfError, FilterPlane};
use crate::kernel::fanotify::{MoveWatch, ProbedFeatures};

const WITHOUT_BPF: &str = "no kernel marks on files that anyone could map for writing; a repeat open of a clean file is an event, answered from memory where the file's stamps tell every change";

/// Says what fanotify can do here.
pub fn say_fanotify(features: ProbedFeatures) {
    let marks = match (features.evictable_marks, features.directory_ignore_marks) {
        (true, true) => {
            "filesystem marks, ignore marks on clean files and on directories out of scope"
        }
        (true, false) => {
            "filesystem marks, ignore marks on clean files; none on directories (kernel before 6.0), so every open out of scope is an event"
        }
        _ => {
            "filesystem marks; no evictable ignore marks (kernel before 5.19), so every open is an event"
        }
    };
    tracing::info!("onacc: tier: fanotify: {marks} (probed)");
}

/// Says which ignore marks the kernel will keep.
pub fn say_marks(mode: MarksMode) {
    let words = match mode {
        MarksMode::Auto => {
            "auto: the kernel answers for clean files and for directories out of scope, where it can"
        }
        MarksMode::Strict => {
            "strict (--marks=strict): none on files that anyone can write; each repeat open of a clean file is an event, no store goes unseen for a moment"
        }
        MarksMode::Off => {
            "off (--marks=off): none at all; every open on a watched filesystem is an event"
        }
    };
    tracing::info!("onacc: tier: marks: {words}");
}

/// Directories out of scope can be ignored in the kernel, if it knows how and
/// tells of their moves.
pub fn outside_marks(features: ProbedFeatures) -> Option<OutsideMarks> {
    if !features.directory_ignore_marks {
        return None;
    }
    match MoveWatch::new() {
        Ok(moves) => Some(OutsideMarks::new(moves)),
        Err(error) => {
            tracing::warn!("onacc: tier: fanotify: opens out of scope stay events: {error}");
            None
        }
    }
}

/// Loads the eBPF programs, as far as `mode` wants and the kernel grants it.
///
/// # Errors
/// A refusal, under [`BpfMode::Require`].
pub fn load_filter_plane(mode: BpfMode) -> Result<Option<FilterPlane>, BpfError> {
    if mode == BpfMode::Off {
        tracing::info!("onacc: tier: eBPF: off (--bpf=off): {WITHOUT_BPF}");
        return Ok(None);
    }
    let loaded = FilterPlane::load(MARKS);
    crate::kernel::process::give_back_memory();
    match loaded {
        Ok(plane) => {
            tracing::info!(
                "onacc: tier: eBPF: tracepoint: tp_btf/writeback_mark_inode_dirty is attached, offsets from the running kernel's BTF; this version has no use for LSM or fentry hooks"
            );
            Ok(Some(plane))
        }
        Err(error) if mode == BpfMode::Require => Err(error),
        Err(error) => {
            if let BpfError::Refused { log, .. } = &error
                && !log.is_empty()
            {
                tracing::debug!("onacc: the verifier's words:\n{log}");
            }
            tracing::warn!(
                "onacc: tier: eBPF: none: {error}: {WITHOUT_BPF} (--bpf=require makes this fatal)"
            );
            Ok(None)
        }
    }
}
