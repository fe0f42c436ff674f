//! The agent: builds all parts, starts them, keeps house, stops them in order.
//!
//! The only file that knows every part. Its main thread does what may wait:
//! name service, mount table, signals. Must not: touch an event.

mod clamds;
mod house;
mod parts;
mod reload;
mod sizes;

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use self::clamds::{build_pool, fds_of_servers, say_pipeline};
use self::parts::{
    Duties, excluded_uids, fd_budget, first_policy, limits, load_filter, programs, say_counters,
    spawn_watchdog, start_arrivals, stay_in_memory, wanted,
};
use self::reload::House;
use self::sizes::Sizes;
use crate::clamd::TlsError;
use crate::commands::cli::Cli;
use crate::config::modes::MarksMode;
use crate::config::{ConfigErrors, Settings};
use crate::coverage::directories::Reach;
use crate::coverage::filesystems::Filesystems;
use crate::coverage::keeper::{Keeper, KeeperLinks, KeeperMessage};
use crate::coverage::kind::{Coverage, DirectoryParts, Kind};
use crate::coverage::mount_marks::MountMarks;
use crate::coverage::paths::{PathError, RealPaths, Tell};
use crate::coverage::tiers;
use crate::intake::{
    Arrivals, ArrivalsMessage, Ended, Feed, FeedLinks, FeedMessage, LaneError, Lanes, ReaderLinks,
};
use crate::kernel::bpf::{BpfError, Controls, FilterCounters, FilterPlane};
use crate::kernel::daemon;
use crate::kernel::fanotify::{Answer, FdBudget, Group, GroupKind, InitError, Opens, WriterProbe};
use crate::kernel::mounts::MountTable;
use crate::kernel::pid_file::PidFileError;
use crate::kernel::procfs::Proc;
use crate::kernel::signals::Signals;
use crate::kernel::wake::{Mailbox, Wake};
use crate::kernel::{SyscallError, memory, process};
use crate::observe::counters::{Counters, ServerCounters};
use crate::observe::heartbeat::Heartbeat;
use crate::observe::latency::Latencies;
use crate::observe::log::{LogError, Logger, Targets};
use crate::observe::manager::{Environment, Manager};
use crate::observe::printable;
use crate::policy::{Policy, TooManyPatterns, VerdictCache};
use crate::respond::quarantine::store::StoreError;
use crate::respond::quarantine::{Prepared, Quarantine, WaitingFiles};
use crate::scan::{
    Feeders, Handover, Links, Prescan, PrescanMessage, Prescanner, ScannerIdentity, Service, Work,
};

/// Files that eBPF has told of, in flight at a time. The rest waits as records: what is
/// in flight must be scanned before its time runs out.
const MOST_TOLD: usize = 512;
/// Events that are read beyond the budget at a time, to be let go.
const MOST_SHED: usize = 128;
/// Files that are scanned ahead at a time, or wait for it.
const MOST_PRESCANS: usize = 64;
/// Open files from which on there is room for two agents while one takes the
/// other's place.
const FILES_FOR_TWO: u64 = 1024;
/// How long threads may take to end; TERM is answered within a second.
const STOP_PATIENCE: Duration = Duration::from_millis(700);

/// The agent cannot start, or cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigErrors),
    /// The log.
    #[error(transparent)]
    Log(#[from] LogError),
    /// fanotify.
    #[error(transparent)]
    Fanotify(#[from] InitError),
    /// eBPF, under `--bpf=require`.
    #[error("{0}; --bpf=require was given: use --bpf=auto to go on without")]
    Bpf(#[from] BpfError),
    /// A system call.
    #[error(transparent)]
    Syscall(#[from] SyscallError),
    /// Patterns.
    #[error(transparent)]
    Rules(#[from] TooManyPatterns),
    /// A configured path.
    #[error(transparent)]
    Path(#[from] PathError),
    /// `RLIMIT_NOFILE` leaves no room for events.
    #[error(
        "RLIMIT_NOFILE allows {limit} open files, onacc needs {least} at the least and should have thousands: raise it (LimitNOFILE= in the systemd unit, ulimit -n in a shell)"
    )]
    OpenFiles {
        /// What is allowed.
        limit: u64,
        /// What is needed.
        least: u64,
    },
    /// The pid file.
    #[error(transparent)]
    PidFile(#[from] PidFileError),
    /// A change that only another agent can take up, and no room for one.
    #[error(
        "this change needs a second agent for a moment, and RLIMIT_NOFILE allows {limit} open files only: restart onacc, and let it have {FILES_FOR_TWO} (LimitNOFILE= in the systemd unit, ulimit -n in a shell)"
    )]
    NoRoomForTwo {
        /// What is allowed.
        limit: u64,
    },
    /// No filesystem takes a mark.
    #[error(
        "nothing can be protected: no filesystem under an OnAccessIncludePath takes fanotify marks"
    )]
    NothingProtected,
    /// TLS to a server.
    #[error("TLS: {0}")]
    Tls(#[from] TlsError),
    /// A further group, thread or fd.
    #[error(transparent)]
    Lane(#[from] LaneError),
    /// The quarantine directory.
    #[error("Clamonacc: can't setup client: {0}")]
    Quarantine(#[from] StoreError),
    /// A thread has ended that must not.
    #[error("the reader has ended: {0}")]
    Reader(String),
}

/// Runs the agent until it is told to stop. 0 after a stop by signal, 3 if the
/// log cannot be had, else 2.
pub fn run(cli: &Cli) -> ExitCode {
    match try_run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Each line of a configuration is an error of its own.
            for line in error.to_string().lines() {
                eprintln!("ERROR: {line}");
            }
            match error {
                AgentError::Log(_) => ExitCode::from(3),
                _ => ExitCode::from(2),
            }
        }
    }
}

fn try_run(cli: &Cli) -> Result<(), AgentError> {
    let settings = Settings::load(&cli.settings())?;
    // Tried where its error reaches the terminal.
    let quarantine = Prepared::new(&settings.action)?;
    let readiness = if cli.foreground {
        None
    } else {
        Some(daemon::background()?)
    };
    memory::share();
    process::forbid_core_dumps()?;
    process::register_thread();
    let signals = Signals::block()?;
    let open_files = process::raise_open_files()?;
    let urgent = process::be_urgent();
    let counters = Arc::new(Counters::default());
    let targets = Targets::open(reload::log_setup(cli, &settings))?;
    let pid_file = reload::pid_file(&settings)?;
    let logger = Logger::start(targets, Arc::clone(&counters))?;
    if let Err(error) = urgent {
        tracing::debug!("onacc: {error}; openers may wait longer on a busy machine");
    }
    for flag in &cli.ignored {
        tracing::warn!("Ignoring unsupported option {flag}");
    }
    for warning in &settings.warnings {
        tracing::warn!("{warning}");
    }
    if let Some(warning) = quarantine.and_then(|prepared| prepared.warning()) {
        tracing::warn!("onacc: {warning}");
    }
    let manager = Manager::new(&Environment::own()).unwrap_or_else(|error| {
        tracing::warn!("onacc: NOTIFY_SOCKET: {error}; no service manager is told anything");
        Manager::default()
    });
    let house = House {
        cli,
        counters,
        logger: &logger,
        manager: Arc::new(manager),
        pid_file,
        open_files,
        retiring: None,
        reload_wanted: false,
    };
    let result = Agent::start(&house, settings)
        .inspect(|_| stay_in_memory())
        .and_then(|agent| agent.keep_house(house, signals, readiness));
    if let Err(error) = &result {
        tracing::debug!("onacc: ending: {error}");
    }
    logger.finish(Duration::from_millis(200));
    result
}

/// The running agent.
struct Agent {
    settings: Settings,
    policy: Arc<Policy>,
    kind: Kind,
    coverage: Coverage,
    filesystems: Filesystems,
    lanes: Lanes,
    /// The lane of overlays, where directories carry the marks.
    overlays: Option<Arc<Group>>,
    prescans: Mailbox<PrescanMessage>,
    verdicts: Arc<Mutex<VerdictCache>>,
    keeper: Mailbox<KeeperMessage>,
    jobs_waker: Mailbox<Work>,
    threads: Threads,
    counters: Arc<Counters>,
    server_counters: Arc<Vec<ServerCounters>>,
    latencies: Arc<Latencies>,
    filter_counters: Option<Arc<FilterCounters>>,
    controls: Option<Controls>,
    feed: Option<Mailbox<FeedMessage>>,
    arrivals: Option<Arc<Arrivals>>,
}

/// Threads, and how they are told to end or tell that they have.
struct Threads {
    service: JoinHandle<()>,
    keeper: JoinHandle<()>,
    quarantine: Option<(JoinHandle<()>, WaitingFiles)>,
    stop: Arc<AtomicBool>,
    ended: Ended,
    /// Ends the watchdog.
    unwatched: Arc<AtomicBool>,
}

impl Agent {
    #[expect(
        clippy::too_many_lines,
        reason = "the one list of all parts, in the order in which they start"
    )]
    fn start(house: &House<'_>, settings: Settings) -> Result<Self, AgentError> {
        let preparation = tiers::prepare_filter_plane(settings.bpf);
        let sizes = Sizes::of_machine()
            .with_verdicts(settings.verdicts)
            .limited(&house.cli.debug_limits);
        let counters = Arc::clone(&house.counters);
        let in_flight = fd_budget(house.files_each(), fds_of_servers(&settings))?;
        let features = Group::new(GroupKind::Notification)?.probe_features()?;
        tiers::say_fanotify(features);
        let kind = Kind::choose(settings.coverage, settings.disable_ddd, features);
        let table = Arc::new(MountTable::read()?);
        let paths = RealPaths::of(&settings, &table, Tell::Yes)?;
        let mut filter = load_filter(&settings, (kind, &sizes), preparation)?;
        let feed = filter.feed.take();
        let tells_opens = filter.plane.as_ref().is_some_and(FilterPlane::tells_opens);
        let mut wanted = wanted(settings.triggers);
        if tells_opens {
            wanted.opens = Opens::None;
        }
        let group_kind = if settings.prevention {
            GroupKind::Permission
        } else {
            GroupKind::Notification
        };
        let group = Group::wanting(group_kind, wanted)?;
        let plane = filter.plane;
        let filter_counters = plane.as_ref().map(|plane| Arc::clone(plane.counters()));
        let stores_are_seen = plane.is_some() && features.evictable_marks;
        tiers::say_marks(settings.marks);
        let policy = first_policy(&settings, (&paths, &table), stores_are_seen)?;
        let policy = Arc::new(policy);
        let prescans = Mailbox::new()?;
        let jobs = Mailbox::new()?;
        let keeper_messages = Mailbox::new()?;
        let beats = ["reader", "service", "keeper"].map(Heartbeat::new);
        let stop = Arc::new(AtomicBool::new(false));
        let ended = Ended {
            wake: Wake::new()?,
            reason: Arc::new(OnceLock::new()),
        };
        let scanner = Arc::new(ScannerIdentity::new(Proc::open()?, filter.controls.clone()));
        // Without prevention nobody waits, and nobody can be denied.
        let on_failure = if settings.deny_on_error && settings.prevention {
            Answer::Deny
        } else {
            Answer::Allow
        };

        let verdicts = Arc::new(Mutex::new(VerdictCache::new(sizes.verdicts)));
        let keeper = Keeper::new(
            KeeperLinks {
                group: Arc::clone(&group),
                most: sizes.marks,
                writers: WriterProbe::new()?,
                messages: keeper_messages.clone(),
                verdicts: Arc::clone(&verdicts),
                counters: Arc::clone(&counters),
                heartbeat: beats[2].clone(),
            },
            plane,
            (kind == Kind::Filesystem && settings.marks != MarksMode::Off)
                .then(|| tiers::outside_marks(features))
                .flatten()
                .map(|outside| outside.pinned(tells_opens)),
            Arc::clone(&policy),
        );
        let (pool, server_counters) = build_pool(&settings, &jobs)?;
        let server_counters = Arc::new(server_counters);
        let latencies = Arc::new(Latencies::default());
        let streams = pool.streams();
        let (quarantine, quarantine_thread) = Prepared::new(&settings.action)?
            .map(|prepared| prepared.start(in_flight, Arc::clone(&counters)))
            .transpose()?
            .unzip();
        let quarantine_line = quarantine.as_ref().map(Quarantine::waiting);
        let handover = Handover::new(jobs.clone());
        let service = Service::new(
            limits(&settings, on_failure),
            pool,
            Links {
                jobs: jobs.clone(),
                keeper: keeper_messages.clone(),
                quarantine,
                scanner: Arc::clone(&scanner),
                verdicts: Arc::clone(&verdicts),
                counters: Arc::clone(&counters),
                servers: Arc::clone(&server_counters),
                latencies: Arc::clone(&latencies),
                writers: WriterProbe::new()?,
                heartbeat: beats[1].clone(),
                stop: Arc::clone(&stop),
                proc: Proc::open()?,
                feeders: streams.then(|| Feeders::start(&jobs)).transpose()?,
                matcher: clamds::matcher(&settings)?,
            },
        );
        let prescan = Prescan::new(jobs.clone(), FdBudget::new(MOST_PRESCANS));
        let prescanner = Prescanner::new(
            prescan.clone(),
            prescans.clone(),
            Arc::clone(&policy),
            (Arc::clone(&verdicts), Arc::clone(&counters)),
        );
        let asks_writers = !settings.keep_on.is_empty();
        let links = ReaderLinks {
            budget: FdBudget::new(in_flight - in_flight / 4),
            jobs: handover.clone(),
            prescans: prescans.clone(),
            keeper: keeper_messages.clone(),
            verdicts: Arc::clone(&verdicts),
            scanner,
            tags: filter.tags.map(Arc::new),
            extra_scanning: settings.extra_scanning,
            counters: Arc::clone(&counters),
            on_failure,
            tell_large: settings.log.verbose,
            overload: (!settings.prevention)
                .then(|| (sizes.queue(), FdBudget::new((in_flight / 8).min(MOST_SHED)))),
            asks_writers,
        };
        let arrivals = start_arrivals((&settings, kind), &prescans, (&counters, &policy));
        let feed = match feed {
            None => None,
            Some(feed) => {
                let messages = Mailbox::new()?;
                let feed_links = FeedLinks {
                    backlog: sizes.backlog,
                    budget: FdBudget::new((in_flight / 4).min(MOST_TOLD)),
                    jobs: jobs.clone(),
                    keeper: keeper_messages.clone(),
                    verdicts: Arc::clone(&verdicts),
                    counters: Arc::clone(&counters),
                    writers: asks_writers
                        .then(|| WriterProbe::new().map(Arc::new))
                        .transpose()?,
                };
                // Never joined: nobody waits for it.
                Feed::start(feed, messages.clone(), feed_links, &policy)?;
                Some(messages)
            }
        };
        let [_, of_service, of_keeper] = beats.clone();
        let duties = Duties {
            group: Arc::downgrade(&group),
            budget: Arc::clone(&links.budget),
            jobs: handover.clone(),
            keeper: keeper_messages.clone(),
        };
        let threads = Threads {
            keeper: process::spawn("onacc-keeper", move || {
                keeper.run();
                of_keeper.end();
            })?,
            service: process::spawn("onacc-scan", move || {
                service.run(&handover);
                of_service.end();
            })?,
            quarantine: quarantine_thread.zip(quarantine_line),
            stop,
            ended: ended.clone(),
            unwatched: Arc::new(AtomicBool::new(false)),
        };
        // Never joined: it may be waiting for an open of its own.
        process::spawn("onacc-prescan", move || prescanner.run())?;
        let first = (Arc::clone(&policy), beats[0].clone());
        let lanes = Lanes::start(Arc::clone(&group), links, first, ended)?;
        let unwatched = Arc::clone(&threads.unwatched);
        spawn_watchdog(beats, duties, unwatched, Arc::clone(&house.manager))?;
        let mut agent = Self {
            kind,
            coverage: match kind {
                Kind::Mount => Coverage::Mount(MountMarks::new(Arc::clone(&group))),
                Kind::Filesystem | Kind::Directory(_) => Coverage::Filesystem,
            },
            policy,
            filesystems: Filesystems::default(),
            lanes,
            overlays: None,
            prescans,
            verdicts,
            keeper: keeper_messages,
            jobs_waker: jobs,
            threads,
            counters,
            server_counters,
            latencies,
            filter_counters,
            controls: filter.controls,
            feed,
            arrivals,
            settings,
        };
        agent.tell_filter();
        agent.learn_filesystems(&table);
        if let Kind::Directory(reach) = kind {
            let parts = DirectoryParts {
                group,
                overlays: agent.overlays.clone(),
                prescan,
                counters: Arc::clone(&agent.counters),
                paths: paths.clone(),
            };
            agent.coverage = Coverage::directories(parts, reach, Arc::clone(&agent.policy))?;
        }
        agent.coverage.follow(&agent.policy, &paths, &table);
        if agent.filesystems.count() == 0 {
            return Err(AgentError::NothingProtected);
        }
        agent.say_what_is_on();
        Ok(agent)
    }

    /// One line for the service manager.
    fn status(&self) -> String {
        let mode = if self.settings.prevention {
            "infected files cannot be opened"
        } else {
            "infected files are reported"
        };
        let count = self.filesystems.count();
        format!("Protecting: {mode}; filesystems in scope: {count}")
    }

    fn say_what_is_on(&self) {
        let settings = &self.settings;
        let below = match self.kind {
            Kind::Directory(Reach::NamedAlone) => " (without its sub-directories)",
            _ => " (and all sub-directories)",
        };
        for path in &settings.include_paths {
            tracing::info!(
                "ClamInotif: watching '{}'{below}",
                printable(path.value.as_os_str().as_encoded_bytes())
            );
        }
        for pattern in &settings.exclude_patterns {
            tracing::info!(
                "ClamInotif: excluding what '{}' matches (and all sub-directories)",
                printable(pattern.value.written.as_bytes())
            );
        }
        for path in &settings.exclude_paths {
            tracing::info!(
                "ClamInotif: excluding '{}' (and all sub-directories)",
                printable(path.value.as_os_str().as_encoded_bytes())
            );
        }
        tracing::info!(
            "onacc: {} {} ms (OnAccessCurlTimeout {} ms, {} tries){}",
            if settings.prevention {
                "no opener waits longer than"
            } else {
                "no opener waits; a scan is given up after"
            },
            settings.bound().as_millis(),
            settings.try_timeout.as_millis(),
            settings.retries + 1,
            match (settings.prevention, settings.deny_on_error) {
                (false, _) => "",
                (true, true) => "; then the open is denied",
                (true, false) => "; then the open is allowed",
            }
        );
        let mode = if settings.prevention {
            "infected files cannot be opened (OnAccessPrevention yes)"
        } else {
            "infected files are reported, not blocked (OnAccessPrevention no)"
        };
        let count = self.filesystems.count();
        tracing::info!("onacc: protection is on: {mode}; filesystems in scope: {count}");
    }

    fn stop(self) {
        let (counters, filter) = (Arc::clone(&self.counters), self.filter_counters.clone());
        let servers = Arc::clone(&self.server_counters);
        let latencies = Arc::clone(&self.latencies);
        self.end(Instant::now() + STOP_PATIENCE);
        say_counters(&counters, filter.as_deref());
        say_pipeline(&servers, &latencies);
        tracing::info!("Clamonacc: stopped");
    }

    /// Ends when another agent has taken its place: places no more marks, and
    /// answers whoever waits first.
    fn retire(mut self) {
        let drained = Instant::now() + self.settings.bound() + STOP_PATIENCE;
        self.keeper.send(KeeperMessage::Retire);
        std::mem::replace(&mut self.coverage, Coverage::Filesystem).stop(drained);
        self.lanes.drain(drained);
        self.end(drained + STOP_PATIENCE);
    }

    /// Ends the threads in the order of an event's way, then closes the group,
    /// which lets go whoever still waits.
    fn end(self, until: Instant) {
        self.coverage.stop(until);
        let readers_ended = self.lanes.stop(until);
        self.prescans.send(PrescanMessage::Stop);
        if let Some(feed) = &self.feed {
            feed.send(FeedMessage::Stop);
        }
        if let Some(arrivals) = &self.arrivals {
            arrivals.tell(ArrivalsMessage::Stop);
        }
        self.threads.stop.store(true, Ordering::Release);
        self.jobs_waker.waker().notify();
        process::wait_for(&self.threads.service, until);
        self.keeper.send(KeeperMessage::Stop);
        process::wait_for(&self.threads.keeper, until);
        if let Some((thread, waiting)) = &self.threads.quarantine {
            // It ends when its line is empty, now that the service is gone.
            process::wait_for(thread, until);
            if !thread.is_finished() {
                tracing::warn!(
                    "onacc: stopping before {} infected files were dealt with; they stay where they are",
                    waiting.count()
                );
            }
        }
        let all_ended = readers_ended
            && self.threads.service.is_finished()
            && self.threads.keeper.is_finished();
        self.threads.unwatched.store(all_ended, Ordering::Release);
    }
}
