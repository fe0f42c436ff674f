//! The agent's parts as the settings want them: the filter plane, extra scanning,
//! the first policy, limits, the watchdog.
//!
//! `agent.rs` puts them together. Must not: keep any of them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Instant;

use super::AgentError;
use super::sizes::Sizes;
use crate::config::keep_on::KeepOn;
use crate::config::settings::Triggers;
use crate::config::{Settings, names};
use crate::coverage::directories::Reach;
use crate::coverage::keeper::KeeperMessage;
use crate::coverage::kind::Kind;
use crate::coverage::paths::{RealPaths, Tell};
use crate::coverage::tiers;
use crate::intake::Arrivals;
use crate::kernel::bpf::{
    BpfError, Controls, FilterCounters, FilterPlane, OpenFeed, Preparation, Request, Tags,
};
use crate::kernel::fanotify::{Answer, FdBudget, Group, Opens, Wanted};
use crate::kernel::file::ProgramId;
use crate::kernel::mounts::MountTable;
use crate::kernel::procfs::Proc;
use crate::kernel::wake::Mailbox;
use crate::kernel::{SyscallError, memory, process};
use crate::observe::counters::Counters;
use crate::observe::heartbeat::{self, Disk, Heartbeat, Watchdog, Watched};
use crate::observe::manager::Manager;
use crate::observe::printable;
use crate::policy::{Policy, Rules, TooManyPatterns};
use crate::scan::{Handover, Limits, PrescanMessage};

/// Event fds in flight at most, whatever `RLIMIT_NOFILE` allows: the kernel
/// walks them in line for each answer (facts/kernel.md, fanotify 7).
const MOST_IN_FLIGHT: u64 = 8192;
/// Event fds in flight that are worth starting with.
const LEAST_IN_FLIGHT: usize = 8;
/// Fds that the agent needs for itself.
const OWN_FDS: u64 = 64;

/// `OnAccessExtraScanning`, where the coverage is of whole trees.
pub(super) fn start_arrivals(
    (settings, kind): (&Settings, Kind),
    prescans: &Mailbox<PrescanMessage>,
    (counters, policy): (&Arc<Counters>, &Arc<Policy>),
) -> Option<Arc<Arrivals>> {
    if !settings.extra_scanning {
        return None;
    }
    if kind == Kind::Directory(Reach::NamedAlone) {
        tracing::warn!("onacc: OnAccessExtraScanning has no effect with OnAccessDisableDDD");
        return None;
    }
    match Arrivals::start(prescans.clone(), Arc::clone(counters), Arc::clone(policy)) {
        Ok(arrivals) => {
            tracing::info!("ClamInotif: extra scanning on inotify events enabled");
            Some(arrivals)
        }
        Err(error) => {
            tracing::warn!(
                "onacc: OnAccessExtraScanning: {error}; files are scanned when they are opened or closed after writing"
            );
            None
        }
    }
}

/// The filter plane, as far as it is to be had.
#[derive(Default)]
pub(super) struct Filter {
    pub(super) plane: Option<FilterPlane>,
    pub(super) controls: Option<Controls>,
    pub(super) feed: Option<OpenFeed>,
    pub(super) tags: Option<Tags>,
}

pub(super) fn load_filter(
    settings: &Settings,
    (kind, sizes): (Kind, &Sizes),
    preparation: Option<Preparation>,
) -> Result<Filter, BpfError> {
    let excluded = settings.excluded_uids.len() + settings.excluded_names.len();
    let request = Request {
        capacity: sizes.marks,
        filesystems: sizes.filesystems,
        records: sizes.records,
        wants: tiers::wants(settings, kind),
        excluded: sizes.room_for_uids(excluded),
    };
    let Some(loaded) = tiers::load_filter_plane(settings.bpf, preparation, &request)? else {
        return Ok(Filter::default());
    };
    if let Err(error) = loaded.controls.exempt(std::process::id()) {
        tracing::warn!("onacc: eBPF map of exempt processes: {error}");
    }
    Ok(Filter {
        plane: Some(loaded.plane),
        controls: Some(loaded.controls),
        feed: loaded.feed,
        tags: loaded.tags,
    })
}

pub(super) fn say_counters(counters: &Counters, filter: Option<&FilterCounters>) {
    for (name, value) in counters.list() {
        tracing::info!("onacc: counter: {name} {value}");
    }
    let Some(filter) = filter else { return };
    for (counter, name) in onacc_common::Counter::ALL {
        match filter.get(counter) {
            Ok(value) => tracing::info!("onacc: counter: bpf_{name} {value}"),
            Err(error) => tracing::warn!("onacc: counter bpf_{name}: {error}"),
        }
    }
}

pub(super) fn first_policy(
    settings: &Settings,
    (paths, table): (&RealPaths, &Arc<MountTable>),
    stores_are_seen: bool,
) -> Result<Policy, TooManyPatterns> {
    let rules = Rules::of(settings)?;
    for named in &settings.keep_on {
        if let KeepOn::MountPoint(path) = &named.value
            && !table.iter().any(|mount| mount.point == *path)
        {
            tracing::warn!(
                "{named}: nothing is mounted at {} (yet); name the mount point as the table of mounts shows it",
                printable(path.as_os_str().as_encoded_bytes())
            );
        }
    }
    Ok(Policy {
        scope: Arc::new(paths.scope(table)),
        mounts: Arc::clone(table),
        excluded_uids: excluded_uids(settings),
        max_file_size: settings.max_file_size,
        deny_on_error: settings.deny_on_error,
        rules: Arc::new(rules.with_programs(programs(settings, Tell::Yes))),
        kinds: Arc::new(HashMap::new()),
        stores_are_seen,
        marks: settings.marks,
    })
}

/// Which events these triggers need.
pub(super) fn wanted(triggers: Triggers) -> Wanted {
    Wanted {
        opens: match triggers {
            Triggers { open: true, .. } => Opens::All,
            Triggers { exec: true, .. } => Opens::Execution,
            Triggers { .. } => Opens::None,
        },
        closes: triggers.close_write,
    }
}

/// The programs whose opens are not scanned, as their files are now.
pub(super) fn programs(settings: &Settings, tell: Tell) -> Vec<ProgramId> {
    let mut out = Vec::new();
    for path in &settings.exclusions.executables {
        match ProgramId::at(&path.value) {
            Some(program) => out.push(program),
            None if tell == Tell::Yes => tracing::warn!(
                "{path}: {} does not exist (yet); its opens are scanned until it does",
                printable(path.value.as_os_str().as_encoded_bytes())
            ),
            None => {}
        }
    }
    out
}

pub(super) fn limits(settings: &Settings, on_failure: Answer) -> Limits {
    Limits {
        bound: settings.bound(),
        try_timeout: settings.try_timeout,
        retries: settings.retries,
        max_scans: settings.max_scans,
        on_failure,
        read_timeout: settings.read_timeout,
        stream_max_length: settings.stream_max_length,
    }
}

/// How many events may be in flight under this limit of open files.
pub(super) fn fd_budget(open_files: u64, of_servers: u64) -> Result<usize, AgentError> {
    let own = OWN_FDS + of_servers;
    let budget = open_files.saturating_sub(own).min(MOST_IN_FLIGHT);
    match usize::try_from(budget) {
        Ok(budget) if budget >= LEAST_IN_FLIGHT => Ok(budget),
        _ => Err(AgentError::OpenFiles {
            limit: open_files,
            least: own + LEAST_IN_FLIGHT as u64,
        }),
    }
}

pub(super) fn excluded_uids(settings: &Settings) -> Vec<u32> {
    let (resolved, warnings) = names::resolve(&settings.excluded_names);
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    let mut uids = settings.excluded_uids.clone();
    uids.extend(resolved);
    uids.sort_unstable();
    uids.dedup();
    uids
}

/// Every page that the agent has used stays in memory from now on.
pub(super) fn stay_in_memory() {
    if let Err(error) = memory::stay() {
        tracing::debug!("onacc: {error}; openers may wait for pages of the agent's own");
    }
}

/// What waits for the threads that the watchdog looks after.
pub(super) struct Duties {
    /// Where events come from: open as long as others hold it.
    pub(super) group: Weak<Group>,
    /// Without a free place the reader leaves events where they are.
    pub(super) budget: Arc<FdBudget>,
    /// The service's.
    pub(super) jobs: Handover,
    /// The keeper's.
    pub(super) keeper: Mailbox<KeeperMessage>,
}

impl Duties {
    /// What is watched, of the heartbeats of reader, service and keeper.
    fn watched(self, beats: [Heartbeat; 3]) -> Vec<Watched> {
        let [of_reader, of_service, of_keeper] = beats;
        let (group, budget, jobs, keeper) = (self.group, self.budget, self.jobs, self.keeper);
        let events_wait =
            move || budget.room() > 0 && group.upgrade().is_some_and(|group| group.queued() > 0);
        vec![
            Watched {
                heartbeat: of_reader,
                work_waits: Box::new(events_wait),
                disk: Disk::Counts,
            },
            Watched {
                heartbeat: of_service,
                work_waits: Box::new(move || jobs.is_overdue()),
                disk: Disk::Counts,
            },
            Watched {
                heartbeat: of_keeper,
                work_waits: Box::new(move || !keeper.is_empty()),
                disk: Disk::IsWaitedFor,
            },
        ]
    }
}

pub(super) fn spawn_watchdog(
    beats: [Heartbeat; 3],
    duties: Duties,
    unwatched: Arc<AtomicBool>,
    manager: Arc<Manager>,
) -> Result<(), SyscallError> {
    let mut dog = Watchdog::new(duties.watched(beats));
    let proc = Proc::open()?;
    // A third: one sign of life may be lost.
    let every = manager.watchdog().map(|timeout| timeout / 3);
    let mut told_at = Instant::now();
    // Never joined: it ends with the process, or soon after the agent.
    process::spawn("onacc-watchdog", move || {
        let mut looked_at = Instant::now();
        while !unwatched.load(Ordering::Acquire) {
            std::thread::sleep(heartbeat::TICK);
            let now = Instant::now();
            let elapsed = now.duration_since(std::mem::replace(&mut looked_at, now));
            if let Some(stuck) = dog.tick(elapsed, |thread| proc.thread_times(thread)) {
                process::die(&stuck.to_string());
            }
            if every.is_some_and(|every| now >= told_at + every) && dog.sees_all_move() {
                manager.alive();
                told_at = now;
            }
        }
    })
    .map(drop)
}
