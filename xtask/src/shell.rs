//! What every command needs: where the workspace is, running programs.
//!
//! Owns: nothing but these helpers. Must not: know a command.

use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// Why a command failed, for the user. Empty if it was shown already.
pub type Result<T> = std::result::Result<T, String>;

/// The root of the workspace.
pub fn workspace() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().unwrap_or(own).to_path_buf()
}

/// The cargo that runs us, in the workspace.
pub fn cargo() -> Command {
    let program = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(program);
    command.current_dir(workspace()).stdin(Stdio::null());
    command
}

/// The release build of the agent.
pub fn agent_binary() -> PathBuf {
    crate::ebpf_toolchain::target_dir(&workspace()).join("release/onacc")
}

/// A command as one would type it.
pub fn shown(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let mut words = vec![program.file_name().unwrap_or_default().to_string_lossy()];
    words.extend(command.get_args().map(|word| word.to_string_lossy()));
    words.join(" ")
}

/// Runs a command with its output shown; an error names it.
pub fn run(command: &mut Command) -> Result<()> {
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("failed ({status}): {}", shown(command))),
        Err(error) => Err(format!("{} does not start: {error}", shown(command))),
    }
}

/// Runs a command with its output kept; an error names it and quotes it.
pub fn run_quietly(command: &mut Command) -> Result<()> {
    let output = command
        .output()
        .map_err(|error| format!("{} does not start: {error}", shown(command)))?;
    if output.status.success() {
        return Ok(());
    }
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    let lines: Vec<&str> = said.lines().collect();
    let last = lines[lines.len().saturating_sub(30)..].join("\n  ");
    Err(format!(
        "failed ({}): {}\n  {last}",
        output.status,
        shown(command)
    ))
}
