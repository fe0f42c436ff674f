//! `onacc man` and `onacc completions`: what is made from the same source as the
//! help and the checks.
//!
//! onacc(8) comes from the definition of the command line, onacc.toml(5) from
//! the table of keys. Must not: know a flag or a key by name. Tested below.

use std::io::{self, Write};

use clap::{Command, CommandFactory as _};
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, italic, roman};

use super::cli::{AFTER_HELP, Cli, Page};
use crate::config::keys::{KEYS, Key, TABLES};
use crate::config::options::Kind;

/// What onacc.toml(5) begins with.
const ABOUT: &str = "onacc reads clamd.conf, as clamonacc does, and behind it this file: what \
stands here goes before the line of the same name there, and the command line goes before both. \
A list here is no addition to the lines there. Whatever concerns onacc in clamd.conf can stand \
here under the same name, and what clamd.conf cannot say.";

/// Prints a manual page in the form that man(1) reads.
///
/// # Errors
/// `out` cannot be written to.
pub fn page(page: Page, out: &mut dyn Write) -> io::Result<()> {
    match page {
        Page::Command => command(out),
        Page::Settings => settings(out),
    }
}

/// Prints the completions for a shell.
pub fn completions(shell: Shell, out: &mut dyn Write) {
    clap_complete::generate(shell, &mut Cli::command(), "onacc", out);
}

fn command(out: &mut dyn Write) -> io::Result<()> {
    let mut command = Cli::command().version(env!("CARGO_PKG_VERSION"));
    command.build();
    let mut page = Roff::new();
    page.control("SH", ["COMMANDS"]);
    page.text([roman(
        "Without a command onacc protects. With one it does that and ends:",
    )]);
    commands(&command, &mut page);
    let man = Man::new(command)
        .section("8")
        .manual("System Administration");
    man.render_title(out)?;
    man.render_name_section(out)?;
    man.render_synopsis_section(out)?;
    man.render_description_section(out)?;
    man.render_options_section(out)?;
    page.to_writer(out)?;
    extra(AFTER_HELP, out)?;
    let mut page = Roff::new();
    page.control("SH", ["SEE ALSO"]);
    page.text([roman(
        "onacc.toml(5), clamd.conf(5), clamd(8), clamonacc(8)",
    )]);
    page.to_writer(out)
}

/// Each command with what it takes, those of commands too.
fn commands(above: &Command, page: &mut Roff) {
    let shown = above.get_subcommands();
    for command in shown.filter(|command| command.get_name() != "help") {
        if command.has_subcommands() {
            commands(command, page);
            continue;
        }
        let usage = command.clone().render_usage().to_string();
        let usage = usage
            .trim_start_matches("Usage: ")
            .replace(" [OPTIONS]", "");
        page.control("TP", [] as [&str; 0]);
        page.text([bold(usage)]);
        let about = command.get_long_about().or(command.get_about());
        page.text([roman(about.map(ToString::to_string).unwrap_or_default())]);
        for argument in command.get_arguments() {
            let long = argument.get_long().filter(|long| *long != "help");
            let Some(long) = long.filter(|_| !argument.is_global_set()) else {
                continue;
            };
            let help = argument.get_help().map(ToString::to_string);
            page.control("RS", [] as [&str; 0]);
            page.control("TP", [] as [&str; 0]);
            page.text([bold(format!("--{long}"))]);
            page.text([roman(help.unwrap_or_default())]);
            page.control("RE", [] as [&str; 0]);
        }
    }
}

/// What stands below the help: headings that end in a colon, and lines that
/// stay as they are.
fn extra(text: &str, out: &mut dyn Write) -> io::Result<()> {
    let mut page = Roff::new();
    for block in text.split("\n\n") {
        let (heading, rest) = block.split_once(':').unwrap_or(("Notes", block));
        page.control("SH", [heading.to_uppercase().as_str()]);
        page.control("nf", [] as [&str; 0]);
        for line in rest.trim_start_matches(['\n', ' ']).lines() {
            page.text([roman(line)]);
        }
        page.control("fi", [] as [&str; 0]);
    }
    page.to_writer(out)
}

fn settings(out: &mut dyn Write) -> io::Result<()> {
    let mut page = Roff::new();
    let version = concat!("onacc ", env!("CARGO_PKG_VERSION"));
    page.control("TH", ["onacc.toml", "5", "", version, "File Formats"]);
    page.control("SH", ["NAME"]);
    page.text([roman(
        "onacc.toml - settings of onacc, the on-access scanner for ClamAV",
    )]);
    page.control("SH", ["SYNOPSIS"]);
    page.text([roman(
        "/etc/onacc/onacc.toml, or what --settings of onacc(8) names",
    )]);
    page.control("SH", ["DESCRIPTION"]);
    page.text([roman(ABOUT)]);
    page.control("PP", [] as [&str; 0]);
    page.text([roman(
        "The form is TOML. A size is a number of bytes, or a text with one of K, M and G: \"5M\". \
         A list of one may be written without brackets. What is unknown or of the wrong kind stops \
         the start; onacc config check says everything that is wrong at once.",
    )]);
    for table in TABLES {
        let name = if table.many {
            format!("[[{}]]", table.name)
        } else {
            format!("[{}]", table.name)
        };
        page.control("SH", [name.as_str()]);
        page.text([roman(table.about)]);
        for key in KEYS.iter().filter(|key| key.table == table.name) {
            explain(key, &mut page);
        }
    }
    example(&mut page);
    page.control("SH", ["SEE ALSO"]);
    page.text([roman("onacc(8), clamd.conf(5), clamd(8)")]);
    page.to_writer(out)
}

fn explain(key: &Key, page: &mut Roff) {
    let kind = match (key.many, key.kind) {
        (false, Kind::Bool) => "true or false",
        (false, Kind::Number) => "number",
        (false, Kind::Size) => "size",
        (false, Kind::String) => "text",
        (true, Kind::Number) => "list of numbers",
        (true, _) => "list of texts",
    };
    page.control("TP", [] as [&str; 0]);
    page.text([bold(key.name), roman(" = "), italic(kind)]);
    page.text([roman(key.about)]);
    let mut notes = Vec::new();
    if !key.default.is_empty() {
        notes.push(format!("Default: {}.", key.default));
    }
    if key.in_clamd_conf {
        notes.push("Also in clamd.conf.".to_owned());
    }
    if let Some(flag) = key.flag {
        notes.push(format!("On the command line: {flag}."));
    }
    if !notes.is_empty() {
        page.text([roman(notes.join(" "))]);
    }
}

fn example(page: &mut Roff) {
    page.control("SH", ["EXAMPLE"]);
    page.control("nf", [] as [&str; 0]);
    for line in EXAMPLE.lines() {
        page.text([roman(line)]);
    }
    page.control("fi", [] as [&str; 0]);
}

/// A file that works; a test reads it.
const EXAMPLE: &str = "\
[scope]
OnAccessIncludePath = [\"/home\", \"/srv\"]
OnAccessExcludePath = [\"^/home/[^/]*/.cache$\"]

[exclude]
OnAccessExcludeUname = [\"backup\"]
Extension = [\"iso\", \"qcow2\"]

[scan]
OnAccessPrevention = true
OnAccessMaxFileSize = \"50M\"

[[path]]
Path = \"/srv/incoming\"
OnAccessDenyOnError = true

[[server]]
Address = \"/run/clamav/clamd.ctl\"

[[server]]
Address = \"av.example.org:3310\"
TLS = true
Weight = 50
";

#[cfg(test)]
mod tests {
    use super::*;

    fn text(which: Page) -> String {
        let mut out = Vec::new();
        page(which, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_page_of_the_command_has_every_flag_that_is_shown() {
        let page = text(Page::Command).replace("\\-", "-");
        for argument in Cli::command().get_arguments() {
            let long = argument.get_long().unwrap_or_default();
            let shown = page.contains(&format!("--{long}"));
            assert_eq!(shown, !argument.is_hide_set(), "{long}");
        }
        assert!(
            page.starts_with(".ie") && page.contains(".TH onacc 8"),
            "{page}"
        );
        for part in [
            ".SH SIGNALS",
            ".SH EXAMPLES",
            ".SH \"EXIT STATUS\"",
            "onacc config show",
            "--set",
            "onacc man",
        ] {
            assert!(page.contains(part), "{part} in {page}");
        }
    }

    #[test]
    fn the_page_of_the_settings_has_every_key() {
        let page = text(Page::Settings).replace("\\-", "-");
        for key in KEYS {
            assert!(
                page.contains(&format!("\\fB{}\\fR", key.name)),
                "{}",
                key.name
            );
        }
        for table in TABLES {
            assert!(page.contains(table.name), "{}", table.name);
        }
    }

    #[test]
    fn the_example_can_be_used() {
        let settings =
            crate::config::Settings::from_native(EXAMPLE.as_bytes(), std::path::Path::new("n"));
        assert_eq!(settings.unwrap().servers.len(), 2);
    }

    #[test]
    fn every_shell_gets_completions_without_what_is_hidden() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let mut out = Vec::new();
            completions(shell, &mut out);
            let text = String::from_utf8(out).unwrap();
            assert!(
                text.contains("foreground") && text.contains("migrate"),
                "{shell}"
            );
            assert!(!text.contains("max-filesize"), "{shell}");
        }
    }
}
