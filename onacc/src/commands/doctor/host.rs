//! The settings, the kernel and the limits of this machine.
//!
//! Owns: reading them, and what each means. Must not: look at a version number of
//! the kernel to tell what it can do: it is tried. The parsing is tested here,
//! the rest by `tests/tests/doctor.rs`.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit};
use nix::unistd::geteuid;
use onacc_common::wants;

use super::finding::Finding;
use super::running::Running;
use crate::config::Settings;
use crate::config::modes::BpfMode;
use crate::coverage::kind::Kind;
use crate::coverage::paths::resolve;
use crate::coverage::tiers;
use crate::kernel::bpf::{self, BpfError, Loaded, OpenTier, Request};
use crate::kernel::fanotify::{Group, GroupKind, ProbedFeatures};

/// Open files that an agent should have at least.
const OPEN_FILES: u64 = 1024;
/// How long directories are counted.
const COUNT_LIMIT: Duration = Duration::from_secs(3);

/// What it means to do without eBPF.
const WITHOUT_BPF: &str = "a repeat open of a clean file is an event, unless nobody can map the file for writing: it costs more, and is as safe";

/// Capabilities, by their number: name, whether there is no protection without,
/// what is missing then.
const CAPABILITIES: [(u32, &str, bool, &str); 5] = [
    (
        21,
        "CAP_SYS_ADMIN",
        true,
        "no permission events and no eBPF: nothing can be protected",
    ),
    (
        2,
        "CAP_DAC_READ_SEARCH",
        true,
        "files of others cannot be looked at, marks cannot be taken away by file handle",
    ),
    (
        24,
        "CAP_SYS_RESOURCE",
        false,
        "RLIMIT_NOFILE cannot be raised beyond its hard limit",
    ),
    (
        14,
        "CAP_IPC_LOCK",
        false,
        "the agent is paged out when memory is short: openers wait for its pages",
    ),
    (
        23,
        "CAP_SYS_NICE",
        false,
        "the scheduler does not prefer the agent: openers may wait longer on a busy machine",
    ),
];

/// What the settings come to, and what is odd about them.
pub fn settings(settings: &Settings) -> Vec<Finding> {
    let files: Vec<String> = settings
        .files
        .iter()
        .map(|file| file.display().to_string())
        .collect();
    let mode = if settings.prevention {
        "infected files are refused"
    } else {
        "infected files are reported, not refused (OnAccessPrevention no)"
    };
    let mut findings = vec![Finding::ok(
        "settings",
        format!("{}: {mode}", files.join(", ")),
    )];
    findings.extend(
        settings
            .warnings
            .iter()
            .map(|warning| Finding::note("settings", warning.clone())),
    );
    for path in &settings.include_paths {
        let shown = path.value.display();
        match resolve(&path.value) {
            Ok(real) if real.exists => {}
            Ok(_) => findings.push(
                Finding::problem("settings", format!("{path}: {shown} does not exist"))
                    .means("nothing is protected by this path until it does")
                    .mend("make it, or correct the path"),
            ),
            Err(error) => findings.push(
                Finding::problem("settings", format!("{path}: {shown}: {error}"))
                    .means("the agent does not start with this path")
                    .mend("correct the path"),
            ),
        }
    }
    if settings.excluded_uids.contains(&0) {
        findings.push(
            Finding::note("settings", "root is excluded")
                .means("what root opens or runs is not scanned"),
        );
    }
    findings
}

/// What the kernel grants.
pub fn kernel(settings: Option<&Settings>) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Ok(name) = nix::sys::utsname::uname() {
        let part = |part: &std::ffi::OsStr| part.to_string_lossy().into_owned();
        findings.push(Finding::ok(
            "kernel",
            format!(
                "{} {} {}",
                part(name.sysname()),
                part(name.release()),
                part(name.machine())
            ),
        ));
    }
    findings.extend(privilege());
    let features = fanotify(settings, &mut findings);
    let mut wanted = 0;
    if let (Some(settings), Some(features)) = (settings, features) {
        let kind = Kind::choose(settings.coverage, settings.disable_ddd, features);
        findings.push(Finding::ok("kernel", format!("coverage: {}", kind.name())));
        wanted = tiers::wants(settings, kind);
        if let Kind::Directory(_) = kind {
            findings.push(watches(settings));
        }
    }
    findings.extend(security());
    findings.extend(filter_plane(settings, wanted));
    findings
}

fn privilege() -> Vec<Finding> {
    let mut findings = Vec::new();
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let held = parse_effective(&status).unwrap_or(0);
    if !geteuid().is_root() {
        findings.push(
            Finding::problem("kernel", "this is not root")
                .means("what follows is what this user sees; an agent started so protects nothing")
                .mend("run onacc doctor as root"),
        );
    }
    for (number, name, needed, without) in CAPABILITIES {
        if held & (1 << number) != 0 {
            continue;
        }
        let what = format!("{name} is missing");
        findings.push(if needed {
            Finding::problem("kernel", what)
                .means(without)
                .mend("run as root; in a container privileged; see CapabilityBoundingSet= in the systemd unit")
        } else {
            Finding::note("kernel", what).means(without)
        });
    }
    let uids = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    if !uids.split_whitespace().eq(["0", "0", "4294967295"]) {
        findings.push(
            Finding::problem("kernel", "this is a user namespace")
                .means("its root may not have permission events")
                .mend("run in the host's user namespace"),
        );
    }
    // The number of the first pid namespace is fixed (PROC_PID_INIT_INO).
    let pids = fs::read_link("/proc/self/ns/pid").unwrap_or_default();
    if pids.as_os_str() != "pid:[4026531836]" {
        findings.push(
            Finding::problem("kernel", "this is a pid namespace")
                .means("openers of other pid namespaces cannot be told apart: nobody is excluded there, and clamd may not be recognised")
                .mend("share the host's pid namespace (hostPID, --pid=host)"),
        );
    }
    findings
}

/// `CapEff:` and a hexadecimal number.
fn parse_effective(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

fn fanotify(settings: Option<&Settings>, findings: &mut Vec<Finding>) -> Option<ProbedFeatures> {
    let kind = match settings {
        Some(settings) if !settings.prevention => GroupKind::Notification,
        _ => GroupKind::Permission,
    };
    // A group of our own: no other one sees it.
    let probed = Group::new(kind)
        .map_err(|error| error.to_string())
        .and_then(|group| group.probe_features().map_err(|error| error.to_string()));
    match probed {
        Ok(features) => {
            let finding = match (features.evictable_marks, features.directory_ignore_marks) {
                (true, true) => Finding::ok(
                    "kernel",
                    "fanotify: filesystem marks, ignore marks on clean files and on directories out of scope",
                ),
                (true, false) => Finding::note(
                    "kernel",
                    "fanotify: no ignore marks on directories (they came with Linux 6.0)",
                )
                .means("every open out of scope is an event: it costs more, and is as safe"),
                _ => Finding::note(
                    "kernel",
                    "fanotify: no evictable ignore marks (they came with Linux 5.19)",
                )
                .means("every open is an event: it costs more, and is as safe"),
            };
            findings.push(finding);
            Some(features)
        }
        Err(error) => {
            findings.push(
                Finding::problem("kernel", format!("fanotify: {error}"))
                    .means("nothing can be protected")
                    .mend("run as root, on a kernel with CONFIG_FANOTIFY_ACCESS_PERMISSIONS"),
            );
            None
        }
    }
}

/// What stands in the way of eBPF programs.
fn security() -> Vec<Finding> {
    let mut findings = Vec::new();
    let security = Path::new("/sys/kernel/security");
    match fs::read_to_string(security.join("lsm")) {
        Ok(list) if list.trim().split(',').any(|name| name == "bpf") => {
            findings.push(Finding::ok("kernel", "BPF LSM: in the list of LSMs"));
        }
        Ok(list) => findings.push(
            Finding::note(
                "kernel",
                format!("BPF LSM: bpf is not in the list of LSMs ({})", list.trim()),
            )
            .means("LSM programs attach and never run: no eBPF program can refuse an open")
            .mend("add bpf to lsm= on the kernel's command line"),
        ),
        Err(error) => findings.push(
            Finding::note(
                "kernel",
                format!("BPF LSM: {}/lsm: {error}", security.display()),
            )
            .means("whether LSM programs can run is not known")
            .mend("mount -t securityfs securityfs /sys/kernel/security"),
        ),
    }
    if let Ok(modes) = fs::read_to_string(security.join("lockdown")) {
        let mode = chosen(&modes).unwrap_or("unknown");
        findings.push(if mode == "confidentiality" {
            Finding::note("kernel", "lockdown: confidentiality")
                .means(
                    "eBPF programs may not read the kernel's memory: infected files are not refused in the kernel, but by fanotify, as safely; without OnAccessPrevention fanotify tells of opens, and who has ended by then is not excluded by uid",
                )
                .mend("lockdown=integrity on the kernel's command line")
        } else {
            Finding::ok("kernel", format!("lockdown: {mode}"))
        });
    }
    findings
}

/// Loads the eBPF programs that an agent with these settings would: ours see no
/// filesystem, and go again at once.
fn filter_plane(settings: Option<&Settings>, wanted: u32) -> Vec<Finding> {
    let mode = settings.map_or(BpfMode::Auto, |settings| settings.bpf);
    if mode == BpfMode::Off {
        return vec![Finding::note("kernel", "eBPF: switched off (--bpf=off)").means(WITHOUT_BPF)];
    }
    let request = Request {
        capacity: 16,
        filesystems: 16,
        records: 4096,
        wants: wanted,
        excluded: 16,
    };
    let error = match bpf::load(&request) {
        Ok(loaded) => return granted(&loaded, wanted),
        Err(error) => error,
    };
    let mend = match &error {
        BpfError::Btf(_) => "boot a kernel with CONFIG_DEBUG_INFO_BTF",
        BpfError::Refused { .. } | BpfError::NeverFires => {
            "run as root with CAP_BPF and CAP_PERFMON; look at lockdown"
        }
    };
    let what = format!("eBPF: {error}");
    vec![if mode == BpfMode::Require {
        Finding::problem("kernel", what)
            .means("the agent does not start (--bpf=require)")
            .mend(mend)
    } else {
        Finding::note("kernel", what).means(WITHOUT_BPF).mend(mend)
    }]
}

/// Which hooks are in force, and why none that is better.
fn granted(loaded: &Loaded, wanted: u32) -> Vec<Finding> {
    let mut findings = vec![Finding::ok(
        "kernel",
        "eBPF: stores into clean files are seen (tp_btf/writeback_mark_inode_dirty, offsets from this kernel's BTF)",
    )];
    if wanted == 0 {
        return findings;
    }
    let tier = loaded
        .tier
        .map_or("none".to_owned(), |tier| tier.to_string());
    let what = format!("eBPF: hooks on opens: {tier}");
    let notify = wanted & wants::OPENS != 0;
    findings.push(match (loaded.tier, notify) {
        (Some(OpenTier::Lsm), _) | (Some(OpenTier::Fentry), true) => Finding::ok("kernel", what),
        (Some(OpenTier::Tracepoint), true) => Finding::problem("kernel", what)
            .means("opens by io_uring, by 32-bit programs and by the kernel itself are not seen")
            .mend("boot a kernel that grants fentry or BPF LSM; or OnAccessPrevention, or --bpf=off: fanotify sees them all"),
        (None, true) => Finding::note("kernel", what)
            .means("fanotify tells of opens; openers that have ended by then are not excluded by uid"),
        (_, false) => Finding::note("kernel", what)
            .means("infected files are not refused in the kernel, but by fanotify: it costs more, and is as safe"),
    });
    findings.extend(
        loaded
            .notes
            .iter()
            .map(|note| Finding::note("kernel", format!("eBPF: not in force: {note}"))),
    );
    findings
}

/// `none [integrity] confidentiality`
fn chosen(modes: &str) -> Option<&str> {
    modes
        .split_once('[')?
        .1
        .split_once(']')
        .map(|(mode, _)| mode)
}

fn number_in(file: &str) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

fn watches(settings: &Settings) -> Finding {
    let limit = number_in("/proc/sys/fs/inotify/max_user_watches").unwrap_or(0);
    let until = Instant::now() + COUNT_LIMIT;
    let mut dirs: Vec<_> = settings
        .include_paths
        .iter()
        .map(|path| path.value.clone())
        .collect();
    let mut count = 0;
    while let Some(dir) = dirs.pop() {
        count += 1;
        if count > limit || Instant::now() >= until {
            break;
        }
        let entries = fs::read_dir(&dir).into_iter().flatten().flatten();
        dirs.extend(
            entries
                .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
                .map(|entry| entry.path()),
        );
    }
    if count > limit {
        return Finding::problem(
            "kernel",
            format!("inotify: {limit} watches are allowed, there are more directories"),
        )
        .means("directories beyond that are not protected")
        .mend("raise fs.inotify.max_user_watches, or use --coverage=filesystem");
    }
    let counted = if dirs.is_empty() { "" } else { "at least " };
    Finding::ok(
        "kernel",
        format!(
            "inotify: {limit} watches are allowed, {counted}{count} directories are to be watched"
        ),
    )
}

/// What the agent may have of the system.
pub fn limits(settings: Option<&Settings>, agent: Option<&Running>) -> Vec<Finding> {
    let own = || {
        getrlimit(Resource::RLIMIT_NOFILE)
            .ok()
            .map(|(_, hard)| hard)
    };
    let (whose, files) = match agent {
        Some(agent) => ("the agent", agent.open_files()),
        None => ("an agent started from here", own()),
    };
    let mut findings = Vec::new();
    if let Some(files) = files {
        let what = format!("RLIMIT_NOFILE: {whose} may have {files} open files");
        findings.push(if files < OPEN_FILES {
            Finding::problem("limits", what)
                .means("few opens can be in flight at a time; more wait in the kernel, for no longer than the bound, and may then go unscanned")
                .mend("raise it: LimitNOFILE= in the systemd unit, ulimit -n in a shell")
        } else {
            Finding::ok("limits", what)
        });
    }
    if let Some(groups) = number_in("/proc/sys/fs/fanotify/max_user_groups") {
        let what = format!(
            "fanotify: {groups} groups for each user; marks and queue of the agent have no limit"
        );
        findings.push(if groups < 8 {
            Finding::problem("limits", what)
                .means("the agent needs a few: it may not start, or leave out overlays and network filesystems")
                .mend("raise fs.fanotify.max_user_groups")
        } else {
            Finding::ok("limits", what)
        });
    }
    if let Some(settings) = settings {
        let bound = settings.bound().as_millis();
        findings.push(Finding::ok(
            "limits",
            match (settings.prevention, settings.deny_on_error) {
                (false, _) => format!("no opener waits; a scan is given up after {bound} ms"),
                (true, true) => {
                    format!("no opener waits longer than {bound} ms; then the open is denied")
                }
                (true, false) => {
                    format!("no opener waits longer than {bound} ms; then the open is allowed")
                }
            },
        ));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn effective_capabilities_are_read() {
        let status = "CapPrm:\t0000000000000000\nCapEff:\t000001ffffffffff\n";
        assert_eq!(parse_effective(status), Some(0x1ff_ffff_ffff));
        assert_eq!(parse_effective("CapEff:\tx\n"), None);
    }

    #[test]
    fn the_chosen_lockdown_is_read() {
        assert_eq!(
            chosen("none [integrity] confidentiality\n"),
            Some("integrity")
        );
        assert_eq!(chosen("[none] integrity confidentiality\n"), Some("none"));
        assert_eq!(chosen(""), None);
    }
}
