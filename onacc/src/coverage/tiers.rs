//! Which kernel features are in force, found by trying, and said at start.
//!
//! Each line begins with `onacc: tier:` and says what it means. Must not: look
//! at a version number of the kernel.

use onacc_common::wants;

use super::kind::Kind;
use super::outside::OutsideMarks;
use crate::config::Settings;
use crate::config::modes::{BpfMode, MarksMode};
use crate::kernel::bpf::{BpfError, Loaded, OpenTier, Preparation, Request};
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

/// What the settings in force need of the hooks on opens.
pub fn wants(settings: &Settings, kind: Kind) -> u32 {
    let triggers = settings.triggers;
    if !settings.prevention {
        // The other kinds of coverage see what their marks see, no more.
        return match (kind, triggers.open, triggers.exec) {
            (Kind::Filesystem, true, _) => wants::OPENS,
            (Kind::Filesystem, false, true) => wants::OPENS | wants::EXECUTIONS_ALONE,
            _ => 0,
        };
    }
    let excludes = !(settings.excluded_uids.is_empty() && settings.excluded_names.is_empty());
    let tags = if excludes { wants::TAGS } else { 0 };
    // The programs refuse whoever opens: they know neither the trigger "exec"
    // alone nor exclusions by program and control group.
    let plain = triggers.open
        && settings.exclusions.executables.is_empty()
        && settings.exclusions.cgroups.is_empty();
    let deny = if plain { wants::DENY } else { 0 };
    deny | wants::WRITES | tags
}

/// Begins what takes long, unless `mode` is against it.
pub fn prepare_filter_plane(mode: BpfMode) -> Option<Preparation> {
    (mode != BpfMode::Off).then(Preparation::begin)
}

/// Loads the eBPF programs, as far as `mode` wants and the kernel grants it.
///
/// # Errors
/// A refusal, under [`BpfMode::Require`].
pub fn load_filter_plane(
    mode: BpfMode,
    preparation: Option<Preparation>,
    request: &Request,
) -> Result<Option<Loaded>, BpfError> {
    let Some(preparation) = preparation else {
        tracing::info!("onacc: tier: eBPF: off (--bpf=off): {WITHOUT_BPF}");
        return Ok(None);
    };
    let loaded = preparation.load(request);
    crate::kernel::memory::give_back();
    match loaded {
        Ok(loaded) => {
            tracing::info!(
                "onacc: tier: eBPF: tracepoint: tp_btf/writeback_mark_inode_dirty is attached, offsets from the running kernel's BTF"
            );
            say_opens(&loaded, request.wants);
            Ok(Some(loaded))
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

/// Says which hooks on opens are in force, and what that means.
fn say_opens(loaded: &Loaded, wanted: u32) {
    if wanted == 0 {
        return;
    }
    let notify = wanted & wants::OPENS != 0;
    let meaning = match (loaded.tier, notify) {
        (Some(OpenTier::Lsm), false) => {
            "infected files are refused in the kernel, opens for writing end clean marks"
        }
        (Some(OpenTier::Fentry), false) => {
            "opens for writing end clean marks; infected files are refused by fanotify"
        }
        (Some(OpenTier::Lsm | OpenTier::Fentry), true) => {
            "opens are told by eBPF, filtered in the kernel; fanotify tells of closes after writing alone"
        }
        (Some(OpenTier::Tracepoint), _) => {
            "opens are told by eBPF, filtered in the kernel; not seen: opens by io_uring, by 32-bit programs, and by the kernel itself (the loader of a program)"
        }
        (None, false) => "infected files are refused by fanotify; identities come from /proc",
        (None, true) => "opens are told by fanotify; who has ended by then is not excluded by uid",
    };
    let tier = loaded
        .tier
        .map_or("no hook".to_owned(), |tier| tier.to_string());
    tracing::info!("onacc: tier: opens: {tier}: {meaning}");
    for note in &loaded.notes {
        tracing::info!("onacc: tier: opens: not in force: {note}");
    }
}
