//! What runs inside the machine: names the eBPF programs that are loaded.
//!
//! Owns: asking the kernel. Must not: run on a host that has other programs. Tested
//! by `cargo xtask vm`, which compares what this says.

use aya::programs::loaded_programs;

use super::outcome::PROGRAM;
use crate::shell::Result;

/// Says name and verifier cost of each loaded program, one a line.
pub fn command() -> Result<()> {
    for program in loaded_programs() {
        let program = program.map_err(|error| format!("asking for eBPF programs: {error}"))?;
        let name = program.name_as_str().unwrap_or_default();
        let count = program
            .verified_instruction_count()
            .ok_or("the kernel does not say how many instructions it verified (5.16 does)")?;
        println!("{PROGRAM}{name} {count}");
    }
    Ok(())
}
