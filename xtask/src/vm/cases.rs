//! Which end-to-end tests run on other kernels.
//!
//! Owns: the tiers, the list of test files, and what cannot hold in a tier. Must
//! not: run anything. Tested below.
//!
//! A test file whose name begins with `bpf` or `kernel` runs in every machine, in
//! `cargo xtask test` too, without being listed here. Any other file is listed: its
//! tests run in `cargo xtask vm`, those named as short in `cargo xtask test` too. A
//! test that a machine cannot hold skips itself (`skip!`), or is named in `EXCEPT`.

use std::fmt;

use super::kernels::Series;

/// What the filter plane can have in a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Tier {
    /// `bpf` is in the kernel's list of LSMs, as Debian has it
    Lsm,
    /// It is not: LSM programs attach and never fire, fentry works
    Fentry,
    /// Functions are not traced (`kernel.ftrace_enabled=0`): fentry and LSM programs
    /// attach and never fire, tracepoints are left
    Tracepoint,
    /// The kernel has no BTF to show, so that there is no eBPF at all
    Off,
    /// lockdown=confidentiality: no eBPF program may read the kernel's memory
    Locked,
}

impl Tier {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Lsm,
        Self::Fentry,
        Self::Tracepoint,
        Self::Off,
        Self::Locked,
    ];

    /// What it takes on the kernel's command line.
    pub fn append(self) -> &'static str {
        match self {
            Self::Lsm | Self::Tracepoint => "",
            Self::Fentry | Self::Off => "lsm=landlock,lockdown,yama,integrity",
            Self::Locked => "lockdown=confidentiality",
        }
    }

    /// Whether a kernel is booted in it: one that is locked down is enough.
    pub fn boots(self, series: Series) -> bool {
        self != Self::Locked || series == Series::V6_12
    }

    /// Whether all programs can be loaded, to be measured.
    pub fn loads_all(self) -> bool {
        matches!(self, Self::Lsm | Self::Fentry | Self::Tracepoint)
    }

    /// The only test files that run in it, if not all.
    fn only_files(self) -> Option<&'static [&'static str]> {
        match self {
            Self::Lsm | Self::Fentry | Self::Tracepoint | Self::Off => None,
            Self::Locked => Some(&["bpf_opens", "kernel_lockdown", "notify"]),
        }
    }

    /// What it takes in the machine, as shell commands.
    pub fn prepare(self) -> &'static str {
        match self {
            Self::Lsm | Self::Fentry | Self::Locked => "",
            Self::Tracepoint => "echo 0 >/proc/sys/kernel/ftrace_enabled\n",
            Self::Off => "mount --bind /dev/null /sys/kernel/btf/vmlinux\n",
        }
    }
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Lsm => "lsm",
            Self::Fentry => "fentry",
            Self::Tracepoint => "tracepoint",
            Self::Off => "off",
            Self::Locked => "locked",
        })
    }
}

/// How much of it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// All that is listed: `cargo xtask vm`.
    All,
    /// What `cargo xtask test` has time for.
    Short,
}

/// The tests of one file.
struct Listed {
    file: &'static str,
    short: &'static [&'static str],
}

const LISTED: [Listed; 8] = [
    Listed {
        file: "prevention",
        short: &[
            "an_infected_file_is_refused_and_named_in_the_log_and_on_the_console",
            "a_new_directory_is_protected_at_once_two_hundred_times_in_a_row",
            "an_infected_file_cannot_be_executed",
            "sixty_four_openers_of_sixty_four_files_get_the_right_answers",
        ],
    },
    Listed {
        file: "freshness",
        short: &[
            "repeat_opens_of_a_clean_file_are_no_events",
            "a_clean_file_that_is_written_to_is_refused_at_once",
            "a_clean_file_that_is_stored_into_through_a_mapping_is_refused",
            "stores_that_race_with_opens_end_in_a_refusal",
            "marks_go_with_the_agent",
        ],
    },
    Listed {
        file: "notify",
        short: &[
            "an_infected_file_opens_and_is_reported",
            "an_excluded_user_is_not_reported",
            "repeat_opens_of_a_clean_file_are_no_events",
        ],
    },
    Listed {
        file: "cache",
        short: &[
            "files_on_tmpfs_are_never_remembered",
            "without_bpf_repeat_opens_are_answered_from_userspace",
        ],
    },
    Listed {
        file: "doctor",
        short: &[
            "a_healthy_agent_is_proved_to_refuse_and_is_not_disturbed",
            "without_prevention_the_report_is_the_proof",
        ],
    },
    Listed {
        file: "feed",
        short: &[
            "short_lived_openers_are_told_apart_exactly",
            "a_repeat_open_of_a_clean_file_ends_in_the_kernel_until_it_changes",
            "files_opened_in_other_namespaces_or_under_other_mounts_are_found",
            "executions_and_special_files",
        ],
    },
    Listed {
        file: "extra",
        short: &["whatever_comes_is_reported_in_notify_only_mode"],
    },
    Listed {
        file: "filesystems",
        short: &[],
    },
];

/// Tests that cannot hold in a tier, and why.
struct Except {
    tier: Tier,
    reason: &'static str,
    tests: &'static [&'static str],
}

const EXCEPT: [Except; 2] = [
    Except {
        tier: Tier::Off,
        reason: "it counts clean marks, and without eBPF no file of the test carries one",
        tests: &[
            "cache::a_file_with_a_writer_is_never_remembered",
            "cache::a_written_and_closed_file_is_scanned_before_anyone_asks",
            "cache::verdicts_of_an_old_database_are_dropped_with_their_marks",
            "freshness::a_clean_file_that_is_stored_into_through_a_mapping_is_refused",
            "freshness::a_clean_file_that_is_written_to_is_refused_at_once",
            "freshness::a_store_by_another_process_is_seen",
            "freshness::marks_and_verdicts_go_when_clamd_has_another_database",
            "freshness::marks_go_with_the_agent",
            "freshness::repeat_opens_of_a_clean_file_are_no_events",
            "freshness::stamps_and_modes_change_no_verdict",
            "freshness::stamps_that_are_put_back_hide_no_change",
            "notify::repeat_opens_of_a_clean_file_are_no_events",
        ],
    },
    Except {
        tier: Tier::Off,
        reason: "without BTF no hook on opens is tried, so that namespaces do not matter",
        tests: &["feed::in_a_pid_namespace_of_its_own_the_agent_says_so_and_uses_fanotify"],
    },
];

/// One test binary, and what of it runs in a tier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    /// The test file, without `.rs`.
    pub file: String,
    /// The only tests to run; all if there is none.
    pub only: Vec<String>,
    /// Tests that are left out, with the reason.
    pub left_out: Vec<(String, String)>,
}

/// What runs in a tier, of these test files; only tests whose `file::name` contains
/// the filter.
pub fn cases(files: &[String], tier: Tier, extent: Extent) -> Vec<Case> {
    let one = |file: &String| {
        let only_files = tier.only_files();
        if only_files.is_some_and(|only| !only.contains(&file.as_str())) {
            return None;
        }
        let unlisted = file.starts_with("bpf") || file.starts_with("kernel");
        let listed = LISTED.iter().find(|listed| listed.file == file);
        let only = match (listed, extent) {
            (None, _) if unlisted => Vec::new(),
            (None, _) => return None,
            (Some(_), Extent::All) => Vec::new(),
            (Some(listed), Extent::Short) if listed.short.is_empty() => return None,
            (Some(listed), Extent::Short) => listed.short.iter().map(ToString::to_string).collect(),
        };
        let excepts = EXCEPT.iter().filter(|except| except.tier == tier);
        let excepts =
            excepts.flat_map(|except| except.tests.iter().map(|test| (*test, except.reason)));
        let left_out = excepts.filter_map(|(test, reason)| {
            let test = test.strip_prefix(file.as_str())?.strip_prefix("::")?;
            let runs = only.is_empty() || only.iter().any(|only| only == test);
            runs.then(|| (test.to_owned(), reason.to_owned()))
        });
        Some(Case {
            left_out: left_out.collect(),
            file: file.clone(),
            only,
        })
    };
    files.iter().filter_map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(names: &[&str]) -> Vec<String> {
        names.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn files_of_the_convention_run_whole_everywhere() {
        let files = files(&["bpfmodes", "config", "kernel_drops"]);
        for extent in [Extent::All, Extent::Short] {
            let cases = cases(&files, Tier::Lsm, extent);
            assert_eq!(cases.len(), 2);
            assert!(cases.iter().all(|case| case.only.is_empty()));
        }
    }

    #[test]
    fn the_short_extent_is_a_part_of_the_whole() {
        let files = files(&["prevention", "filesystems"]);
        let all = cases(&files, Tier::Lsm, Extent::All);
        assert!(all.len() == 2 && all.iter().all(|case| case.only.is_empty()));
        let short = cases(&files, Tier::Lsm, Extent::Short);
        assert!(short.len() == 1 && !short[0].only.is_empty());
    }

    #[test]
    fn a_locked_down_machine_runs_what_concerns_it() {
        let files = files(&["bpfmodes", "kernel_lockdown", "notify"]);
        assert_eq!(cases(&files, Tier::Locked, Extent::Short).len(), 2);
        assert!(!Tier::Locked.boots(Series::V6_1) && Tier::Lsm.boots(Series::V6_1));
    }

    /// A name that is no test any more would silently run nothing.
    #[test]
    fn every_test_that_is_named_exists() {
        let sources = crate::shell::workspace().join("tests/tests");
        let exists = |file: &str, test: &str| {
            let path = sources.join(file).with_extension("rs");
            let text = std::fs::read_to_string(&path).unwrap();
            assert!(text.contains(&format!("fn {test}()")), "{file}::{test}");
        };
        for listed in LISTED {
            for test in listed.short {
                exists(listed.file, test);
            }
        }
        for file in Tier::ALL.into_iter().filter_map(Tier::only_files).flatten() {
            assert!(sources.join(file).with_extension("rs").exists(), "{file}");
        }
        for except in EXCEPT {
            for test in except.tests {
                let (file, test) = test.split_once("::").unwrap();
                exists(file, test);
            }
        }
    }
}
