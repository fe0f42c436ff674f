//! The faults, by what they hit. Each is one function of a scene: it strikes,
//! lets time pass, and ends, and protection must be back.

#![expect(
    clippy::unnecessary_wraps,
    reason = "all faults have one signature, and many can fail"
)]

mod agent;
mod clamd;
mod limits;
mod memory;
mod mounts;
mod openers;
mod queues;
mod second_agent;

use std::time::Duration;

use onacc_tests::agent::AgentBuilder;

use crate::scene::{BOUND, Scene};

/// What the agent does when it cannot know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// `OnAccessDenyOnError no`: the open goes on.
    Allow,
    /// `OnAccessDenyOnError yes`: it is refused.
    Deny,
    /// `OnAccessPrevention no`: nobody waits, infected files are reported.
    Notify,
}

/// One fault.
pub struct Fault {
    /// Its name on the command line.
    pub name: &'static str,
    /// What breaks.
    pub what: &'static str,
    /// What the agent does when it cannot know.
    pub policy: Policy,
    /// `OnAccessCurlTimeout`: the bound.
    pub bound: Duration,
    /// KiB that the agent's memory may grow by: its tables are bounded, and a
    /// fault may fill them.
    pub memory: u64,
    /// Size of the filesystem.
    pub mib: u64,
    /// Further lines of the agent's clamd.conf.
    pub options: &'static [&'static str],
    /// What else is special about the agent.
    pub prepare: fn(AgentBuilder) -> AgentBuilder,
    /// Whether it is quick enough for `cargo xtask test`.
    pub quick: bool,
    /// Whether it can strike, in a soak, at an agent that goes on for hours: it
    /// neither ends it nor wants one of its own kind.
    pub resident: bool,
    /// Whether what it needs besides is here; the error says what is not.
    pub needs: fn() -> Result<(), String>,
    /// Strikes once.
    pub strike: fn(&mut Scene) -> Result<(), String>,
}

impl Fault {
    const fn new(
        name: &'static str,
        what: &'static str,
        policy: Policy,
        strike: fn(&mut Scene) -> Result<(), String>,
    ) -> Self {
        Self {
            name,
            what,
            policy,
            bound: BOUND,
            memory: 16 * 1024,
            mib: 64,
            options: &[],
            prepare: |builder| builder,
            quick: true,
            resident: true,
            needs: || Ok(()),
            strike,
        }
    }
}

/// The bound where the fault leaves clamd alone, so that nothing at all may go
/// wrong: long enough for a machine that is busy with other things.
const AMPLE: Duration = Duration::from_secs(8);

/// All of them.
pub const FAULTS: [Fault; 28] = [
    Fault::new(
        "clamd-killed",
        "clamd is killed and started again",
        Policy::Allow,
        clamd::killed,
    ),
    Fault::new(
        "clamd-killed-deny",
        "the same, under OnAccessDenyOnError",
        Policy::Deny,
        clamd::killed,
    ),
    Fault::new(
        "clamd-stopped",
        "clamd stops without a word (SIGSTOP)",
        Policy::Allow,
        clamd::stopped,
    ),
    Fault::new(
        "clamd-stopped-deny",
        "the same, under OnAccessDenyOnError",
        Policy::Deny,
        clamd::stopped,
    ),
    Fault::new(
        "clamd-restarted",
        "clamd is restarted three times in a row",
        Policy::Deny,
        clamd::restarted,
    ),
    Fault {
        bound: AMPLE,
        ..Fault::new(
            "clamd-slow",
            "clamd runs a third of the time",
            Policy::Allow,
            clamd::slow,
        )
    },
    Fault::new(
        "clamd-socket-removed",
        "the socket's file is gone, then clamd too",
        Policy::Deny,
        clamd::socket_removed,
    ),
    Fault {
        bound: AMPLE,
        ..Fault::new(
            "clamd-reloaded",
            "the database is reloaded again and again",
            Policy::Allow,
            clamd::reloaded,
        )
    },
    Fault {
        resident: false,
        bound: AMPLE,
        ..Fault::new(
            "agent-killed",
            "the agent is killed and started again",
            Policy::Allow,
            agent::killed,
        )
    },
    Fault::new(
        "agent-stopped",
        "the agent is stopped and goes on",
        Policy::Deny,
        agent::stopped,
    ),
    Fault {
        bound: AMPLE,
        ..Fault::new(
            "agent-hung-up-on",
            "SIGHUP, again and again",
            Policy::Allow,
            agent::hung_up_on,
        )
    },
    Fault {
        bound: AMPLE,
        ..Fault::new(
            "agent-settings-change",
            "SIGHUP with other settings each time, and with wrong ones",
            Policy::Allow,
            agent::other_settings,
        )
    },
    Fault {
        resident: false,
        prepare: |builder| builder.open_files(96),
        ..Fault::new(
            "few-open-files",
            "96 open files, and clamd stops",
            Policy::Allow,
            limits::open_files,
        )
    },
    Fault {
        resident: false,
        bound: AMPLE,
        ..Fault::new(
            "no-memory",
            "no more address space for the agent",
            Policy::Allow,
            memory::address_space,
        )
    },
    Fault {
        resident: false,
        needs: memory::has_groups,
        mib: 128,
        ..Fault::new(
            "memory-killed",
            "the agent grows to the limit of its control group, and is killed",
            Policy::Allow,
            memory::killed,
        )
    },
    Fault {
        resident: false,
        needs: memory::has_groups,
        ..Fault::new(
            "memory-short",
            "the agent's control group has hardly any memory left",
            Policy::Deny,
            memory::short,
        )
    },
    Fault {
        resident: false,
        needs: limits::can_be_short_of_watches,
        prepare: |builder| builder.arg("--coverage=directory"),
        bound: AMPLE,
        ..Fault::new(
            "watches-used-up",
            "no inotify watches left, in coverage \"directory\"",
            Policy::Allow,
            limits::watches,
        )
    },
    Fault {
        bound: AMPLE,
        ..Fault::new(
            "disk-full",
            "the watched filesystem is full",
            Policy::Allow,
            limits::disk,
        )
    },
    Fault {
        resident: false,
        prepare: |builder| builder.log_path(std::path::Path::new("/dev/full")),
        quick: false,
        bound: AMPLE,
        ..Fault::new(
            "log-full",
            "not a byte can be written to the log",
            Policy::Allow,
            limits::nothing,
        )
    },
    Fault {
        resident: false,
        memory: 72 * 1024,
        // There are more on a machine with much memory.
        prepare: |builder| builder.arg("--debug-limits=marks=65536"),
        // ext4 has an inode for each 16 KiB.
        mib: 1300,
        quick: false,
        bound: AMPLE,
        ..Fault::new(
            "many-marks",
            "70,000 clean files, more than there may be marks",
            Policy::Allow,
            limits::marks,
        )
    },
    Fault {
        resident: false,
        mib: 128,
        ..Fault::new(
            "queue-overflow",
            "20,000 events while a notify-only agent is stopped",
            Policy::Notify,
            queues::events,
        )
    },
    Fault {
        resident: false,
        mib: 128,
        quick: false,
        ..Fault::new(
            "ring-overflow",
            "9,000 marked files are written while the agent is stopped",
            Policy::Allow,
            queues::records,
        )
    },
    Fault {
        bound: AMPLE,
        ..Fault::new(
            "mounts",
            "filesystems are mounted into the scope and go",
            Policy::Allow,
            mounts::come_and_go,
        )
    },
    Fault {
        bound: AMPLE,
        ..Fault::new(
            "mounts-busy",
            "the same from two sides, with files open",
            Policy::Deny,
            mounts::in_a_hurry,
        )
    },
    Fault {
        resident: false,
        // All of them are to wait at once, which takes a while to come about, and none
        // is to have had its answer when it is killed.
        bound: Duration::from_mins(1),
        ..Fault::new(
            "openers-killed",
            "3,000 openers wait at once, and are killed",
            Policy::Deny,
            openers::killed,
        )
    },
    Fault {
        bound: AMPLE,
        ..Fault::new(
            "fork-bomb",
            "hundreds of processes at once",
            Policy::Allow,
            openers::fork_bomb,
        )
    },
    Fault {
        bound: AMPLE,
        ..Fault::new(
            "second-agent",
            "a second agent on the same files comes and goes",
            Policy::Deny,
            second_agent::comes_and_goes,
        )
    },
    Fault {
        bound: AMPLE,
        ..Fault::new(
            "second-agent-hangs",
            "a second agent on the same files is stopped",
            Policy::Allow,
            second_agent::hangs,
        )
    },
];
