//! Loading: which hooks the kernel grants, found by trying.
//!
//! The tiers for opens, best first: BPF LSM (can refuse), fentry, tracepoints.
//! Each is loaded, attached and then tried on an open of our own: an LSM program
//! attaches, and never runs, where `bpf` is not in the kernel's list of LSMs.
//! Must not: compare kernel versions, or leave a program attached that is not
//! needed. Tested by `tests/`, and in the kernel matrix (`cargo xtask vm`).

use std::fmt;
use std::fs::{self, File};
use std::sync::Arc;
use std::thread::JoinHandle;

use aya::maps::{Array, HashMap, InodeStorage, Map, MapError, PerCpuArray, RingBuf};
use aya::programs::{BtfTracePoint, FEntry, Lsm, ProgramError};
use aya::{Ebpf, EbpfLoader};
use onacc_common::front::Front;
use onacc_common::{Counter, TAG_SLOTS, globals, wants};

use super::controls::Controls;
use super::denied::Denied;
use super::feed::OpenFeed;
use super::fronted::Fronted;
use super::mapped::MappedArray;
use super::offsets::{self, OPEN_CALLS, Offsets};
use super::outside::Outside;
use super::tags::Tags;
use super::{BpfError, FilterCounters, FilterPlane, probe};
use crate::kernel::btf::{Btf, BtfError, Named};
use crate::kernel::process;

/// The hooks of the tiers "fentry" and "tracepoint", built by `build.rs`.
static TRACING_OBJECT: &[u8] = aya::include_bytes_aligned!(env!("ONACC_EBPF_OBJECT"));
/// The hooks of the tier "BPF LSM".
static LSM_OBJECT: &[u8] = aya::include_bytes_aligned!(env!("ONACC_LSM_OBJECT"));

const BTF_FILE: &str = "/sys/kernel/btf/vmlinux";
/// `PROC_PID_INIT_INO` (`include/linux/proc_ns.h`): the first pid namespace.
const FIRST_PID_NAMESPACE: &str = "pid:[4026531836]";
/// Ring buffer where all opens are told, and where only refusals are.
const OPENS_RING: u32 = 8 << 20;
const REFUSALS_RING: u32 = 128 << 10;
/// What is asked of the filter plane.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// Inodes that can be known as clean at a time.
    pub capacity: u32,
    /// Filesystems that can be watched at a time.
    pub filesystems: u32,
    /// Bytes of records about changed files that may wait: a power of two, of pages.
    pub records: u32,
    /// What the settings in force need of the hooks on opens: bits of
    /// [`onacc_common::wants`].
    pub wants: u32,
    /// Excluded uids that there may be.
    pub excluded: u32,
}

/// The hooks on opens that are in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenTier {
    /// `lsm/file_open` and `lsm/mmap_file`.
    Lsm,
    /// `fentry/security_file_open`.
    Fentry,
    /// `tp_btf/sys_exit` and `tp_btf/sched_process_exec`.
    Tracepoint,
}

impl OpenTier {
    /// What of `wants` its hooks can do.
    pub const fn can(self) -> u32 {
        match self {
            Self::Lsm => {
                wants::OPENS | wants::EXECUTIONS_ALONE | wants::TAGS | wants::DENY | wants::WRITES
            }
            Self::Fentry => wants::OPENS | wants::EXECUTIONS_ALONE | wants::TAGS | wants::WRITES,
            Self::Tracepoint => wants::OPENS | wants::EXECUTIONS_ALONE,
        }
    }

    fn object(self) -> &'static [u8] {
        match self {
            Self::Lsm => LSM_OBJECT,
            Self::Fentry | Self::Tracepoint => TRACING_OBJECT,
        }
    }

    fn hooks(self, wanted: u32) -> Vec<Hook> {
        let told = wanted & wants::OPENS != 0;
        let noted = wanted & (wants::TAGS | wants::DENY | wants::WRITES) != 0;
        let denied = wanted & wants::DENY != 0;
        let hooks = match self {
            Self::Lsm => [
                (told, Hook::Lsm("file_told", "file_open")),
                (noted, Hook::Lsm("file_judged", "file_open")),
                (denied, Hook::Lsm("mmap_file", "mmap_file")),
            ]
            .to_vec(),
            Self::Fentry => vec![
                (told, Hook::Fentry("file_told", "security_file_open")),
                (noted, Hook::Fentry("file_noted", "security_file_open")),
            ],
            Self::Tracepoint => vec![
                (told, Hook::TpBtf("syscall_ended", "sys_exit")),
                (told, Hook::TpBtf("process_executed", "sched_process_exec")),
            ],
        };
        hooks
            .into_iter()
            .filter_map(|(needed, hook)| needed.then_some(hook))
            .collect()
    }
}

impl fmt::Display for OpenTier {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str(match self {
            Self::Lsm => "BPF LSM",
            Self::Fentry => "fentry",
            Self::Tracepoint => "tracepoint",
        })
    }
}

/// One program and where it is attached.
#[derive(Clone, Copy, Debug)]
enum Hook {
    Lsm(&'static str, &'static str),
    Fentry(&'static str, &'static str),
    TpBtf(&'static str, &'static str),
}

const DIRTIED: Hook = Hook::TpBtf("inode_dirtied", "writeback_mark_inode_dirty");

impl Hook {
    fn program(self) -> &'static str {
        match self {
            Self::Lsm(name, _) | Self::Fentry(name, _) | Self::TpBtf(name, _) => name,
        }
    }

    fn name(self) -> String {
        match self {
            Self::Lsm(_, hook) => format!("lsm/{hook}"),
            Self::Fentry(_, hook) => format!("fentry/{hook}"),
            Self::TpBtf(_, hook) => format!("tp_btf/{hook}"),
        }
    }

    /// The type that the kernel knows the hook by, as aya looks it up.
    fn type_name(self) -> (String, Named) {
        match self {
            Self::Lsm(_, hook) => (format!("bpf_lsm_{hook}"), Named::Function),
            Self::Fentry(_, hook) => (hook.to_owned(), Named::Function),
            Self::TpBtf(_, hook) => (format!("btf_trace_{hook}"), Named::Typedef),
        }
    }

    fn load(self, programs: &mut Ebpf, btf: &aya::Btf) -> Result<(), BpfError> {
        let program = programs
            .program_mut(self.program())
            .expect("the object built with this agent has this program");
        let result = match self {
            Self::Lsm(_, hook) => {
                <&mut Lsm>::try_from(program).and_then(|program| program.load(hook, btf))
            }
            Self::Fentry(_, hook) => {
                <&mut FEntry>::try_from(program).and_then(|program| program.load(hook, btf))
            }
            Self::TpBtf(_, hook) => {
                <&mut BtfTracePoint>::try_from(program).and_then(|program| program.load(hook, btf))
            }
        };
        result.map_err(|error| BpfError::refused(format!("loading {}", self.name()), &error))
    }

    fn attach(self, programs: &mut Ebpf) -> Result<(), BpfError> {
        let program = programs
            .program_mut(self.program())
            .expect("the object built with this agent has this program");
        let result: Result<(), ProgramError> = match self {
            Self::Lsm(..) => {
                <&mut Lsm>::try_from(program).and_then(|program| program.attach().map(drop))
            }
            Self::Fentry(..) => {
                <&mut FEntry>::try_from(program).and_then(|program| program.attach().map(drop))
            }
            Self::TpBtf(..) => <&mut BtfTracePoint>::try_from(program)
                .and_then(|program| program.attach().map(drop)),
        };
        result.map_err(|error| BpfError::refused(format!("attaching {}", self.name()), &error))
    }
}

/// The filter plane with its parts, each for the thread that uses it.
pub struct Loaded {
    /// For the keeper.
    pub plane: FilterPlane,
    /// For who knows the settings.
    pub controls: Controls,
    /// The hooks on opens that are in force, if any are needed and granted.
    pub tier: Option<OpenTier>,
    /// Records about opens, if the tier delivers any.
    pub feed: Option<OpenFeed>,
    /// Who opened last, if the tier tells.
    pub tags: Option<Tags>,
    /// Why better tiers are not in force: one line each.
    pub notes: Vec<String>,
}

/// What can be got ready before it is known what is wanted: aya reads all of the
/// kernel's types when it makes a loader, which takes longer than all else here.
#[derive(Debug)]
pub struct Preparation(Option<JoinHandle<EbpfLoader<'static>>>);

impl Preparation {
    /// Begins, on a thread of its own; without one, loading does it all.
    pub fn begin() -> Self {
        Self(process::spawn("onacc-types", EbpfLoader::new).ok())
    }

    /// Loads and attaches what `request` needs, as far as the kernel grants it.
    ///
    /// # Errors
    /// [`BpfError`]: not even the hook on dirtied inodes is to be had.
    pub fn load(self, request: &Request) -> Result<Loaded, BpfError> {
        let bytes = kernel_types()?;
        let own_btf = Btf::parse(&bytes)?;
        let btf = excerpt(&own_btf)?;
        let mut offsets = offsets::of_inodes(&own_btf)?;
        let mut notes = Vec::new();
        let mut candidates = Vec::new();
        if request.wants != 0 {
            candidates = open_tiers(&own_btf, &mut offsets, &mut notes);
        }
        candidates.retain(|tier| request.wants & tier.can() != 0);
        candidates.retain(|tier| match probe::refusal(*tier, &own_btf) {
            None => true,
            Some(error) => {
                notes.push(format!(
                    "{tier}: the kernel refuses programs of this kind: {error}"
                ));
                false
            }
        });
        self.try_all((request, candidates), (&offsets, &btf), notes)
    }

    /// The best of these tiers that is granted, or none.
    fn try_all(
        self,
        (request, candidates): (&Request, Vec<OpenTier>),
        (offsets, btf): (&Offsets, &aya::Btf),
        mut notes: Vec<String>,
    ) -> Result<Loaded, BpfError> {
        let wanted: Vec<u32> = candidates
            .iter()
            .map(|tier| request.wants & tier.can())
            .collect();
        // Found once a process; while the loader is being made.
        let _known_from_now_on = aya::features();
        let mut objects: EbpfLoader<'_> = self.0.map_or_else(EbpfLoader::new, |thread| {
            thread.join().expect("a panic ends the process")
        });
        for (name, offset) in offsets {
            // An object lacks the globals of what it has no program for.
            objects.override_global(name, offset, false);
        }
        for (name, number) in globals::OPEN_CALLS.into_iter().zip(&OPEN_CALLS) {
            objects.override_global(name, number, false);
        }
        objects.map_max_entries("CACHED", request.capacity);
        objects.map_max_entries("WATCHED", request.filesystems);
        objects.map_max_entries("RECORDS", request.records);
        objects.map_max_entries("EXCLUDED", request.excluded.max(1));
        for (tier, wanted) in candidates.into_iter().zip(&wanted) {
            match attempt(&mut objects, (Some(tier), wanted), btf) {
                Ok(loaded) => return Ok(Loaded { notes, ..loaded }),
                Err(error) => {
                    if let BpfError::Refused { log, .. } = &error
                        && !log.is_empty()
                    {
                        tracing::debug!("onacc: {tier}: the verifier's words:\n{log}");
                    }
                    notes.push(format!("{tier}: {error}"));
                }
            }
        }
        let loaded = attempt(&mut objects, (None, &0), btf)?;
        Ok(Loaded { notes, ..loaded })
    }
}

/// As [`Preparation::load`], without any.
///
/// # Errors
/// As [`Preparation::load`].
pub fn load(request: &Request) -> Result<Loaded, BpfError> {
    Preparation::begin().load(request)
}

fn kernel_types() -> Result<Vec<u8>, BtfError> {
    fs::read(BTF_FILE).map_err(|error| BtfError::Unreadable(format!("{BTF_FILE}: {error}")))
}

/// The ids of all hooks, for aya: reading all types once more would take it ten
/// milliseconds.
fn excerpt(btf: &Btf<'_>) -> Result<aya::Btf, BtfError> {
    let names: Vec<(String, Named)> = [OpenTier::Lsm, OpenTier::Fentry, OpenTier::Tracepoint]
        .into_iter()
        .flat_map(|tier| tier.hooks(u32::MAX))
        .chain([DIRTIED])
        .map(Hook::type_name)
        .collect();
    let names: Vec<(&str, Named)> = names
        .iter()
        .map(|(name, what)| (name.as_str(), *what))
        .collect();
    aya::Btf::parse(&btf.excerpt(&names), aya::Endianness::default())
        .map_err(|_| BtfError::Malformed("an excerpt of it cannot be read"))
}

/// The tiers that are worth trying, best first, and the offsets they need.
fn open_tiers(btf: &Btf<'_>, offsets: &mut Offsets, notes: &mut Vec<String>) -> Vec<OpenTier> {
    match fs::read_link("/proc/self/ns/pid") {
        Ok(namespace) if namespace.as_os_str() == FIRST_PID_NAMESPACE => {}
        Ok(_) => {
            notes.push("hooks on opens: the agent is not in the first pid namespace, so that eBPF and it number processes differently (in a container: use the host's pid namespace)".to_owned());
            return Vec::new();
        }
        Err(error) => {
            notes.push(format!("hooks on opens: /proc/self/ns/pid: {error}"));
            return Vec::new();
        }
    }
    match offsets::of_opens(btf) {
        Ok(more) => offsets.extend(more),
        Err(error) => {
            notes.push(format!("hooks on opens: {error}"));
            return Vec::new();
        }
    }
    let mut tiers = Vec::new();
    if lsm_list_lacks_bpf() {
        notes.push("BPF LSM: bpf is not in /sys/kernel/security/lsm; add it to lsm= on the kernel's command line".to_owned());
    } else {
        tiers.push(OpenTier::Lsm);
    }
    tiers.push(OpenTier::Fentry);
    match offsets::of_syscalls(btf) {
        Ok(more) => {
            offsets.extend(more);
            tiers.push(OpenTier::Tracepoint);
        }
        Err(error) => notes.push(format!("tracepoint: {error}")),
    }
    tiers
}

/// Whether the kernel's list says so; where securityfs is not mounted, trying tells.
fn lsm_list_lacks_bpf() -> bool {
    fs::read_to_string("/sys/kernel/security/lsm")
        .is_ok_and(|list| !list.trim().split(',').any(|name| name == "bpf"))
}

fn attempt<'a>(
    loader: &mut EbpfLoader<'a>,
    (tier, wanted): (Option<OpenTier>, &'a u32),
    btf: &aya::Btf,
) -> Result<Loaded, BpfError> {
    loader.override_global(globals::WANTS, wanted, false);
    let wanted = *wanted;
    let ring = match wanted & (wants::OPENS | wants::DENY) {
        // A page, where nobody reads.
        0 => 4096,
        wants::DENY => REFUSALS_RING,
        _ => OPENS_RING,
    };
    loader.map_max_entries("OPENS", ring);
    let tags = if wanted & wants::TAGS == 0 {
        1
    } else {
        TAG_SLOTS
    };
    loader.map_max_entries("TAGS", tags);
    let object = tier.map_or(TRACING_OBJECT, OpenTier::object);
    let mut programs = loader
        .load(object)
        .map_err(|error| BpfError::refused("loading the eBPF maps".to_owned(), &error))?;
    let mut hooks = vec![DIRTIED];
    hooks.extend(tier.into_iter().flat_map(|tier| tier.hooks(wanted)));
    for hook in &hooks {
        hook.load(&mut programs, btf)?;
    }
    let mut all = parts(programs, (tier, wanted))?;
    for hook in &hooks {
        hook.attach(&mut all.plane.programs)?;
    }
    if tier.is_some() {
        sees_an_open(all.plane.counters())?;
    }
    Ok(all)
}

/// The self-test: an open of our own must be counted.
fn sees_an_open(counters: &Arc<FilterCounters>) -> Result<(), BpfError> {
    let seen = || {
        counters
            .get(Counter::OpenSeen)
            .map_err(|error| BpfError::refused("eBPF counters".to_owned(), &error))
    };
    let before = seen()?;
    // Whether it can be opened does not matter: /proc/self always can.
    let _opened = File::open("/proc/self/stat");
    if seen()? == before {
        return Err(BpfError::NeverFires);
    }
    Ok(())
}

fn parts(mut programs: Ebpf, (tier, wanted): (Option<OpenTier>, u32)) -> Result<Loaded, BpfError> {
    let map_error = |error: MapError| BpfError::refused("eBPF map".to_owned(), &error);
    let mut take = |name: &'static str| -> Result<Map, BpfError> {
        programs.take_map(name).ok_or_else(|| BpfError::Refused {
            what: "eBPF map".to_owned(),
            why: format!("the object has no map {name}"),
            log: String::new(),
        })
    };
    let denied = if wanted & wants::DENY != 0 {
        let storage = InodeStorage::try_from(take("DENIED")?).map_err(map_error)?;
        Some(Denied::new(storage))
    } else {
        None
    };
    let names = denied.as_ref().map(Denied::names).unwrap_or_default();
    let counters = Arc::new(FilterCounters(
        PerCpuArray::try_from(take("COUNTERS")?).map_err(map_error)?,
    ));
    let feed = if wanted & (wants::OPENS | wants::DENY) != 0 {
        Some(OpenFeed::new(
            RingBuf::try_from(take("OPENS")?).map_err(map_error)?,
            HashMap::try_from(take("MISSED")?).map_err(map_error)?,
            (Arc::clone(&counters), names),
        ))
    } else {
        None
    };
    let tags = if wanted & wants::TAGS != 0 {
        Some(Tags::new(take("TAGS")?)?)
    } else {
        None
    };
    let fronts = Arc::new(MappedArray::new(take("FRONTS")?, Front::ALL_SLOTS)?);
    let excluded = HashMap::try_from(take("EXCLUDED")?).map_err(map_error)?;
    let exempt = HashMap::try_from(take("EXEMPT")?).map_err(map_error)?;
    let watched = HashMap::try_from(take("WATCHED")?).map_err(map_error)?;
    Ok(Loaded {
        controls: Controls::new(
            Fronted::new(watched, &fronts, Front::Filesystems),
            Fronted::new(excluded, &fronts, Front::Excluded),
            Fronted::new(exempt, &fronts, Front::Exempt),
            Array::try_from(take("CONFIG")?).map_err(map_error)?,
        ),
        plane: FilterPlane {
            cached: HashMap::try_from(take("CACHED")?).map_err(map_error)?,
            records: RingBuf::try_from(take("RECORDS")?).map_err(map_error)?,
            outside: Outside::new(HashMap::try_from(take("OUTSIDE")?).map_err(map_error)?),
            epochs: Array::try_from(take("EPOCHS")?).map_err(map_error)?,
            denied,
            tells_opens: wanted & wants::OPENS != 0,
            sees_writes: wanted & wants::WRITES != 0,
            counters,
            programs,
        },
        tier,
        feed,
        tags,
        notes: Vec::new(),
    })
}

/// As [`load`], with this tier alone and without asking the probe.
#[cfg(test)]
pub(super) fn unprobed(request: &Request, tier: OpenTier) -> Result<Loaded, BpfError> {
    let bytes = kernel_types()?;
    let own_btf = Btf::parse(&bytes)?;
    let mut offsets = offsets::of_inodes(&own_btf)?;
    offsets.extend(offsets::of_opens(&own_btf)?);
    let btf = excerpt(&own_btf)?;
    let loaded =
        Preparation::begin().try_all((request, vec![tier]), (&offsets, &btf), Vec::new())?;
    match loaded.tier {
        Some(_) => Ok(loaded),
        None => Err(BpfError::NeverFires),
    }
}
