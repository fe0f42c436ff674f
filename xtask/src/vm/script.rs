//! The script of a machine of the matrix.
//!
//! Owns: its words; `outcome.rs` reads what it says. Must not: run it. Tested by
//! every run, and below.

use std::fmt::Write as _;

use onacc_tests::agent::SLOW_VARIABLE;

use super::{
    cases::{Case, Tier},
    outcome::{BEGIN, END, SKIP},
};

/// How long one test file may take, in seconds.
const FILE_LIMIT: u32 = 400;

/// Settings that between them attach every hook that there is.
const SETTINGS: [&str; 4] = [
    "OnAccessPrevention yes",
    "OnAccessPrevention no",
    "OnAccessPrevention yes\nOnAccessExtraScanning yes",
    "OnAccessPrevention no\nOnAccessExtraScanning yes",
];

/// Where the tests' filesystems cannot be had, every test would skip itself.
const CHECK: &str = "\
mkdir /tmp/check; truncate -s 16M /tmp/check.img; mkfs.ext4 -q -F /tmp/check.img
mount -o loop /tmp/check.img /tmp/check || {
    ls -l /dev/loop*; losetup --all; cat /proc/modules /proc/mounts; dmesg | tail -20; exit 1; }
";

/// What a machine does.
pub fn script(tier: Tier, cases: &[Case], filter: Option<&str>) -> String {
    let mut text = CHECK.to_owned() + tier.prepare();
    // What tests say on stderr would end up in the middle of the harness's lines.
    if tier.loads_all() {
        text.push_str(&costs());
    }
    let _ = write!(
        text,
        "export RUST_BACKTRACE=0 ONACC_SKIPS=/tmp/skips {SLOW_VARIABLE}=1\nfailed=0\n"
    );
    for case in cases {
        let mut args = String::from("--test-threads=4");
        for (test, _) in &case.left_out {
            let _ = write!(args, " --skip {test}");
        }
        if case.only.is_empty() {
            let filter = filter.filter(|filter| !case.file.contains(filter));
            args.extend(filter.map(|filter| format!(" '{filter}'")));
        } else {
            // Named whole: there is nothing left to filter.
            let _ = write!(args, " --exact {}", case.only.join(" "));
        }
        let file = &case.file;
        let _ = write!(
            text,
            "echo '{BEGIN}{file}'\n\
             timeout -s KILL {FILE_LIMIT} /vm/tests/{file} {args} 2>/tmp/stderr\n\
             status=$?; grep '^COST ' /tmp/stderr; [ $status = 0 ] || {{ failed=1; cat /tmp/stderr; }}\n\
             echo \"{END}$status\"\n"
        );
    }
    let _ = write!(
        text,
        "[ ! -e $ONACC_SKIPS ] || sed 's/^/{SKIP}/' $ONACC_SKIPS\nexit $failed\n"
    );
    text
}

/// Starts the agent with each of the settings, and names its eBPF programs.
fn costs() -> String {
    let mut text = String::new();
    for settings in SETTINGS {
        let _ = write!(
            text,
            "cat >/tmp/cost.conf <<END\n\
             LocalSocket /tmp/none.sock\n\
             OnAccessIncludePath /tmp/check\n\
             OnAccessExcludeUID 4711\n\
             {settings}\n\
             END\n\
             onacc --foreground --config-file=/tmp/cost.conf >/tmp/cost.log 2>&1 & agent=$!\n\
             for _ in $(seq 200); do\n\
             grep -q 'protection is on' /tmp/cost.log && break; usleep 100000\n\
             done\n\
             xtask vm-programs || cat /tmp/cost.log\n\
             kill $agent; wait $agent\n"
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_case_runs_what_it_names_and_no_more() {
        let case = |only: &[&str], left_out: &[&str]| Case {
            file: "notify".to_owned(),
            only: only.iter().map(ToString::to_string).collect(),
            left_out: left_out
                .iter()
                .map(|test| (test.to_string(), "no".to_owned()))
                .collect(),
        };
        let runs = |case, filter| {
            let text = script(Tier::Off, &[case], filter);
            let line = text.lines().find(|line| line.contains("/vm/tests/"));
            line.unwrap()
                .split_once("--test-threads=4")
                .unwrap()
                .1
                .to_owned()
        };
        assert_eq!(runs(case(&[], &[]), None), " 2>/tmp/stderr");
        assert_eq!(
            runs(case(&[], &["x"]), Some("a")),
            " --skip x 'a' 2>/tmp/stderr"
        );
        assert_eq!(
            runs(case(&["a", "b"], &[]), Some("a")),
            " --exact a b 2>/tmp/stderr"
        );
    }

    #[test]
    fn without_ebpf_there_is_no_cost() {
        assert!(!script(Tier::Off, &[], None).contains("vm-programs"));
        assert!(script(Tier::Lsm, &[], None).contains("vm-programs"));
    }
}
