//! House-keeping: what the main thread does while the agent runs.
//!
//! Follows mounts, symlinks and accounts, and keeps the marks of coverage on
//! what is in scope. It may wait: no opener waits for this thread.

use std::sync::Arc;
use std::time::Instant;

use std::os::fd::AsFd as _;
use std::time::Duration;

use nix::poll::PollFlags;
use onacc_common::filter::Filesystem;

use super::clamds::say_pipeline;
use super::reload::House;
use super::{Agent, AgentError, excluded_uids, programs, say_counters};
use crate::coverage::filesystems::NewFilesystem;
use crate::coverage::keeper::KeeperMessage;
use crate::coverage::kind::Kind;
use crate::coverage::paths::{RealPaths, Tell};
use crate::intake::{ArrivalsMessage, FeedMessage, is_keyed};
use crate::kernel::SyscallError;
use crate::kernel::accounts::AccountWatch;
use crate::kernel::daemon::Readiness;
use crate::kernel::database::DatabaseWatch;
use crate::kernel::file::FilesystemKind;
use crate::kernel::mounts::{self, MountTable};
use crate::kernel::signals::{Request, Signals};
use crate::kernel::wake::sleep;
use crate::observe::printable;
use crate::policy::{Database, LaneId, Policy, lane_of, lock};
use crate::scan::PrescanMessage;

/// How often names are resolved again though no local file has changed: they
/// may come from a server.
const RESOLVE_EVERY: Duration = Duration::from_mins(1);
/// How often the configured paths are resolved again: a symlink on the way to
/// one raises no event that could be waited for.
const LOOK_EVERY: Duration = Duration::from_secs(5);

impl Agent {
    /// Learns what filesystems are in scope, and marks them if the coverage in
    /// force does. The reader knows what a filesystem is, and the eBPF programs
    /// see its stores, before the first event.
    pub(super) fn learn_filesystems(&mut self, table: &Arc<MountTable>) {
        let changes = self.filesystems.look(&self.policy.scope, table);
        if changes.replaced {
            lock(&self.verdicts).new_generation();
        }
        if !changes.new.is_empty() {
            let mut kinds = (*self.policy.kinds).clone();
            for new in &changes.new {
                let kind = self.told_to_keep(self.tell_programs(new), new, table);
                kinds.insert(new.dev, kind);
            }
            self.replace_policy(Policy {
                kinds: Arc::new(kinds),
                ..(*self.policy).clone()
            });
        }
        for filesystem in changes.new {
            self.watch_arrivals(&filesystem);
            if self.kind == Kind::Filesystem {
                self.mark_one(&filesystem, table);
            } else {
                if matches!(self.kind, Kind::Directory(_)) {
                    self.note_lane(&filesystem, table);
                }
                self.filesystems.note(&filesystem);
            }
        }
    }

    /// Where directories carry the marks: overlays need a group of their own,
    /// what can block is left out.
    fn note_lane(&mut self, filesystem: &NewFilesystem, table: &MountTable) {
        let why = match lane_of(&filesystem.mount, table) {
            LaneId::Plain => return,
            LaneId::Overlay => match self.lanes.group_for(&filesystem.mount, table) {
                Ok(group) => {
                    self.coverage.use_for_overlays(&group);
                    self.overlays = Some(group);
                    return;
                }
                Err(error) => error.to_string(),
            },
            LaneId::Own(_) => "its opens can wait for others".to_owned(),
        };
        tracing::warn!(
            "onacc: {} is not protected in this coverage: {why}; --coverage=filesystem protects it",
            place_of(filesystem)
        );
    }

    /// Tells the eBPF programs of a filesystem. What it is to the policy then: where
    /// they do not know it, stores go unseen, and no file may carry a clean mark.
    fn tell_programs(&self, filesystem: &NewFilesystem) -> FilesystemKind {
        let Some(controls) = &self.controls else {
            return filesystem.kind;
        };
        let Err(error) = controls.watch(filesystem.dev, filter_bits(filesystem)) else {
            return filesystem.kind;
        };
        let place = place_of(filesystem);
        if self.feed.is_some() && !self.settings.prevention {
            tracing::error!(
                "onacc: {place}: eBPF cannot tell of opens there: {error}; they are not scanned (--bpf=off: fanotify tells of all)"
            );
        } else {
            tracing::warn!(
                "onacc: {place}: eBPF does not see stores there: {error}; clean files get no marks"
            );
        }
        match filesystem.kind {
            FilesystemKind::Ext => FilesystemKind::Stamped,
            kind => kind,
        }
    }

    /// What a filesystem is after `KeepVerdictsOn`, and a line if that changes nothing.
    fn told_to_keep(
        &self,
        kind: FilesystemKind,
        filesystem: &NewFilesystem,
        table: &MountTable,
    ) -> FilesystemKind {
        let mut mounts = table.iter().filter(|mount| mount.dev == filesystem.dev);
        let named = mounts.find_map(|mount| {
            let mut all = self.settings.keep_on.iter();
            all.find(|one| one.value.fits(&mount.kind, &mount.point))
        });
        let Some(named) = named else { return kind };
        let told = self.filesystems.is_marked(filesystem.dev);
        let place = place_of(filesystem);
        match kind {
            FilesystemKind::Foreign | FilesystemKind::ForeignKept => {
                if !told {
                    tracing::info!(
                        "onacc: verdicts on {place} are kept ({named}): what is changed there from elsewhere is noticed only if size or times show it"
                    );
                }
                FilesystemKind::ForeignKept
            }
            _ if told => kind,
            kind if kind.stamps_tell() => {
                tracing::warn!("{named}: verdicts on {place} are kept anyway; remove it");
                kind
            }
            kind => {
                tracing::warn!(
                    "{named}: no effect on {place}: it is of no network and no FUSE filesystem; remove it"
                );
                kind
            }
        }
    }

    fn watch_arrivals(&self, filesystem: &NewFilesystem) {
        let Some(arrivals) = &self.arrivals else {
            return;
        };
        if let Err(error) = arrivals.watch(filesystem.dev, filesystem.root()) {
            tracing::warn!(
                "onacc: OnAccessExtraScanning: what is created in or moved into {} is scanned when it is opened or closed after writing: {error}",
                place_of(filesystem)
            );
        }
    }

    fn mark_one(&mut self, filesystem: &NewFilesystem, table: &MountTable) {
        let known = self.filesystems.is_marked(filesystem.dev);
        let group = match self.lanes.group_for(&filesystem.mount, table) {
            Ok(group) => group,
            Err(error) => {
                self.filesystems.give_up(filesystem);
                tracing::warn!("onacc: {} is not protected: {error}", place_of(filesystem));
                return;
            }
        };
        match self.filesystems.mark(filesystem, &group) {
            Ok(()) if known => {}
            Ok(()) => tracing::debug!("onacc: marked {}", place_of(filesystem)),
            Err(error) => {
                tracing::warn!("onacc: {} is not protected: {error}", place_of(filesystem));
            }
        }
    }

    pub(super) fn replace_policy(&mut self, policy: Policy) {
        self.policy = Arc::new(policy);
        self.keeper
            .send(KeeperMessage::Policy(Arc::clone(&self.policy)));
        self.prescans
            .send(PrescanMessage::Policy(Arc::clone(&self.policy)));
        if let Some(feed) = &self.feed {
            feed.send(FeedMessage::Policy(Arc::clone(&self.policy)));
        }
        if let Some(arrivals) = &self.arrivals {
            arrivals.tell(ArrivalsMessage::Policy(Arc::clone(&self.policy)));
        }
        self.lanes.set_policy(&self.policy);
        self.tell_filter();
    }

    /// The eBPF programs filter by the same settings. Where that fails, the
    /// agent drops by itself what they did not.
    pub(super) fn tell_filter(&self) {
        let Some(controls) = &self.controls else {
            return;
        };
        if let Err(error) = controls.exclude(&self.policy.excluded_uids) {
            tracing::warn!(
                "onacc: eBPF table of excluded uids: {error}; the agent drops the opens of the others by itself"
            );
        }
        // A limit that were too low would drop what is to be scanned.
        if let Err(error) = controls.set_max_file_size(self.policy.largest_file()) {
            tracing::error!(
                "onacc: eBPF table of settings: {error}; OnAccessMaxFileSize is not followed"
            );
        }
    }

    /// The main thread's loop: signals, mounts, accounts.
    pub(super) fn keep_house(
        mut self,
        mut house: House<'_>,
        mut signals: Signals,
        readiness: Option<Readiness>,
    ) -> Result<(), AgentError> {
        let table_file = mounts::open_table()?;
        // Protection is on: from here on it goes on without what cannot be had.
        let mut accounts = or_without(AccountWatch::new(), "users are looked up once a minute");
        let mut database = or_without(
            DatabaseWatch::new(&self.settings.database_directory),
            "a signature database without a version goes unnoticed",
        );
        let mut loading = Database::default();
        if let Some(readiness) = readiness {
            readiness.report();
        }
        house.manager.ready(&self.status());
        // What changed between the first reading and the opening of the table.
        self.follow_mounts(true);
        let mut resolve_at = Instant::now() + RESOLVE_EVERY;
        let mut look_at = Instant::now() + LOOK_EVERY;
        loop {
            let next = [Some(look_at), house.wake_at(), loading.next()];
            let until = next.into_iter().flatten().min();
            let ended = self.threads.ended.wake.clone();
            let readable = PollFlags::POLLIN;
            let nothing = (ended.as_fd(), PollFlags::empty());
            let [signal, mounts, passwd, signatures, end] = sleep(
                [
                    (signals.as_fd(), PollFlags::POLLIN),
                    (table_file.as_fd(), PollFlags::POLLPRI),
                    accounts
                        .as_ref()
                        .map_or(nothing, |watch| (watch.as_fd(), readable)),
                    database
                        .as_ref()
                        .map_or(nothing, |watch| (watch.as_fd(), readable)),
                    (ended.as_fd(), PollFlags::POLLIN),
                ],
                until,
            )?;
            if signal {
                while let Some(request) = signals.take() {
                    match request {
                        Request::Stop => {
                            house.manager.stopping();
                            self.stop();
                            return Ok(());
                        }
                        Request::Counters => {
                            say_counters(&self.counters, self.filter_counters.as_deref());
                            say_pipeline(&self.server_counters, &self.latencies);
                        }
                        Request::Reload => house.reload_wanted = true,
                        Request::Nothing(number) => {
                            tracing::info!("onacc: signal {number} is of no effect");
                        }
                    }
                }
            }
            if house.may_reload() {
                self = self.reload(&mut house);
                if let Some(database) = &mut database {
                    database.follow(&self.settings.database_directory);
                }
            }
            if let Some(database) = &mut database
                && (signatures || Instant::now() >= look_at)
            {
                loading.note(database.touched(), Instant::now());
            }
            if loading.is_due(Instant::now()) {
                self.forget_verdicts("clamd's signature database is being read");
            }
            if mounts || Instant::now() >= look_at {
                self.follow_programs();
                self.follow_mounts(mounts);
                look_at = Instant::now() + LOOK_EVERY;
            }
            let resolve = Instant::now() >= resolve_at;
            let changed = accounts
                .as_mut()
                .is_some_and(|accounts| (passwd || resolve) && accounts.changed());
            if changed || resolve {
                self.follow_accounts();
                resolve_at = Instant::now() + RESOLVE_EVERY;
            }
            if end {
                let reason = self.threads.ended.reason.get().cloned().unwrap_or_default();
                self.stop();
                return Err(AgentError::Reader(reason));
            }
        }
    }

    /// Filesystems come and go under the include paths, and symlinks on the way
    /// to them may lead elsewhere. `told`: the kernel says that mounts changed,
    /// even if the table looks as before.
    fn follow_mounts(&mut self, told: bool) {
        let table = match MountTable::read() {
            Ok(table) => Arc::new(table),
            Err(error) => {
                tracing::error!("onacc: {error}; new mounts are not followed");
                return;
            }
        };
        let paths = match RealPaths::of(&self.settings, &table, Tell::No) {
            Ok(paths) => paths,
            Err(error) => {
                tracing::error!("onacc: {error}; the scope stays as it was");
                return;
            }
        };
        let scope = Arc::new(paths.scope(&table));
        let same = *table == *self.policy.mounts && *scope == *self.policy.scope;
        if same && !told {
            return;
        }
        if !same {
            self.replace_policy(Policy {
                scope: Arc::clone(&scope),
                mounts: Arc::clone(&table),
                ..(*self.policy).clone()
            });
        }
        self.learn_filesystems(&table);
        self.coverage.follow(&self.policy, &paths, &table);
        self.let_go(&table);
    }

    /// Takes marks off what is out of scope now.
    pub(super) fn let_go(&mut self, table: &MountTable) {
        self.filesystems.let_go(&self.policy.scope, table);
        let filesystems = &self.filesystems;
        self.lanes.let_go(|dev| filesystems.is_marked(dev));
    }

    /// Files are judged anew, known and marked ones too.
    fn forget_verdicts(&self, why: &'static str) {
        lock(&self.verdicts).new_generation();
        self.counters.generations.up();
        self.keeper.send(KeeperMessage::Flush(why));
    }

    /// Programs get other files, by an upgrade for instance.
    fn follow_programs(&mut self) {
        if self.settings.exclusions.executables.is_empty() {
            return;
        }
        let now = self
            .policy
            .rules
            .with_programs(programs(&self.settings, Tell::No));
        if now != *self.policy.rules {
            tracing::debug!("onacc: an excluded program has another file now");
            self.replace_policy(Policy {
                rules: Arc::new(now),
                ..(*self.policy).clone()
            });
        }
    }

    /// Users get other uids.
    pub(super) fn follow_accounts(&mut self) {
        let uids = excluded_uids(&self.settings);
        if uids != self.policy.excluded_uids {
            tracing::info!("onacc: excluded uids are now {uids:?}");
            self.replace_policy(Policy {
                excluded_uids: uids,
                ..(*self.policy).clone()
            });
        }
    }
}

/// What the eBPF programs must know of a filesystem.
fn filter_bits(filesystem: &NewFilesystem) -> Filesystem {
    let keyed = if is_keyed(&filesystem.mount.kind) {
        Filesystem::KEYED
    } else {
        0
    };
    let true_sizes = if filesystem.kind.is_foreign() {
        0
    } else {
        Filesystem::TRUE_SIZES
    };
    Filesystem(keyed | true_sizes)
}

/// What could be had, or a line that says what follows from its absence.
fn or_without<T>(made: Result<T, SyscallError>, then: &str) -> Option<T> {
    made.inspect_err(|error| tracing::warn!("onacc: {error}; {then}"))
        .ok()
}

fn place_of(filesystem: &NewFilesystem) -> String {
    format!(
        "{} ({})",
        printable(filesystem.mount.point.as_os_str().as_encoded_bytes()),
        filesystem.mount.kind
    )
}
