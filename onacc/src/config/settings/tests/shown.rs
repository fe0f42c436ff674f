//! What is written reads back to the same.

use super::*;
use crate::config::keys;
use crate::config::settings::{Shown, migrated};

/// Everything that the settings say, without where it was said.
fn all(settings: &Settings) -> String {
    let text = settings.to_toml(Shown::All);
    let lines = text
        .lines()
        .map(|line| line.split("  # ").next().unwrap_or(line));
    lines.collect::<Vec<_>>().join("\n")
}

/// Reads an onacc.toml alone; the lists that it names are empty.
fn from_native(text: &str) -> Result<Settings, ConfigErrors> {
    let command_line = CommandLine {
        native: Some("n".into()),
        ..CommandLine::default()
    };
    Settings::load_with(&command_line, &|path| match path.to_str() {
        Some("n") => Ok(text.as_bytes().to_vec()),
        Some("/nothing-here") => Ok(Vec::new()),
        _ => Err(io::ErrorKind::NotFound.into()),
    })
}

fn again(settings: &Settings) -> Settings {
    let text = migrated(settings);
    match from_native(&text) {
        Ok(settings) => settings,
        Err(errors) => panic!("{errors}\nin\n{text}"),
    }
}

#[test]
fn a_migrated_clamd_conf_gives_the_same_settings() {
    let all_of_it = "OnAccessIncludePath /a \"b\" # no\nOnAccessExcludePath /home/x\n\
        OnAccessExcludePath ^/home/[a-z]+$\nOnAccessExcludePath /home/y\nOnAccessMountPath /mnt\n\
        OnAccessPrevention yes\nOnAccessExcludeUID 7\nOnAccessExcludeUID 5\n\
        OnAccessExcludeRootUID yes\nOnAccessExcludeUname clamav\nOnAccessMaxFileSize 0\n\
        OnAccessCurlTimeout 123\nOnAccessRetryAttempts 2\nOnAccessMaxThreads 8\n\
        OnAccessDenyOnError yes\nOnAccessDisableDDD yes\nOnAccessExtraScanning yes\n\
        ReadTimeout 33\nMaxQueue 44\nStreamMaxLength 5000\nDatabaseDirectory /d\nTemporaryDirectory /t\nLogTime yes\n\
        LogSyslog yes\nLogFacility LOG_USER\nLogRotate yes\nLogFileMaxSize 3G\nLogVerbose yes\n\
        ScanPE no\n";
    let settings = with(all_of_it);
    let back = again(&settings);
    assert_eq!(all(&back), all(&settings));
    assert_eq!(
        back.exclude_patterns[0].value,
        settings.exclude_patterns[0].value
    );
    // Every key of clamd.conf was set here, but for TCP.
    for key in keys::single().filter(|key| key.in_clamd_conf) {
        let set = settings.origins.contains_key(key.name);
        assert!(set || key.name.starts_with("TCP"), "{}", key.name);
    }
    let tcp = read("TCPAddr ::1\nTCPAddr av\nTCPSocket 3310\nOnAccessIncludePath /x").unwrap();
    assert_eq!(all(&again(&tcp)), all(&tcp));
    assert_eq!(again(&tcp).servers.len(), 2);
}

#[test]
fn an_onacc_toml_comes_back_too() {
    let text = include_str!("everything.toml");
    let settings = from_native(text).unwrap();
    let back = again(&settings);
    assert_eq!(all(&back), all(&settings));
    let values = |settings: &Settings| -> Vec<_> {
        settings
            .path_rules
            .iter()
            .map(|rule| rule.value.clone())
            .collect()
    };
    assert_eq!(values(&back), values(&settings));
    assert_eq!(back.servers.len(), 2);
    assert_eq!(back.servers[1].value, settings.servers[1].value);
    assert_eq!(
        back.log,
        LogSettings {
            file: back.log.file.clone(),
            ..settings.log
        }
    );
    // The file is to hold every key there is.
    for key in keys::KEYS {
        let line = |line: &str| line.starts_with(&format!("{} = ", key.name));
        assert!(text.lines().any(line), "{}", key.name);
    }
}

#[test]
fn what_is_shown_says_where_it_comes_from() {
    let shown = with("OnAccessIncludePath /b\nOnAccessPrevention yes").to_toml(Shown::All);
    for line in [
        "[scope]",
        "OnAccessIncludePath = [\"/home\", \"/b\"]  # f:2, 3",
        "OnAccessPrevention = true  # f:4",
        "OnAccessMaxFileSize = \"5M\"  # default",
        "# TCPSocket is not set  # default",
    ] {
        assert!(
            shown.lines().any(|shown| shown == line),
            "{line} in\n{shown}"
        );
    }
    // It is an onacc.toml, too.
    from_native(&shown).unwrap();
}

/// The defaults that onacc.toml(5) tells are those that hold.
#[test]
fn the_defaults_are_those_that_are_told() {
    let shown = with("").to_toml(Shown::All);
    for key in keys::single() {
        let told = match key.default {
            "yes" => "true".to_owned(),
            "no" => "false".to_owned(),
            number if number.bytes().all(|byte| byte.is_ascii_digit()) => number.to_owned(),
            "open, close-write" => "[\"open\", \"close-write\"]".to_owned(),
            "any size" => "0".to_owned(),
            // It depends on the machine.
            text if text.starts_with("none") || text.contains("of memory") => continue,
            text => format!("\"{text}\""),
        };
        let line = format!("{} = {told}  # default", key.name);
        assert!(
            shown.lines().any(|shown| shown == line),
            "{line} in\n{shown}"
        );
    }
}

#[test]
fn what_toml_cannot_say_stays_in_clamd_conf() {
    let bytes = b"LocalSocket /s\nOnAccessIncludePath /\xff\nOnAccessIncludePath /b\n";
    let settings = Settings::from_bytes(bytes, Path::new("f")).unwrap();
    let text = migrated(&settings);
    assert!(
        text.contains("# OnAccessIncludePath: a path that is not UTF-8"),
        "{text}"
    );
    assert!(!text.contains("\nOnAccessIncludePath = "), "{text}");
}

proptest! {
    #[test]
    fn any_paths_and_sizes_come_back(
        names in prop::collection::vec("/[^\0\n\r]{0,20}", 1..5),
        size in 1_u64..=u64::MAX,
    ) {
        let mut lines = String::new();
        for name in &names {
            if !name.contains(['#', '"', '\t']) && name.trim() == name {
                lines.extend(["OnAccessIncludePath ", name, "\n"]);
            }
        }
        let settings = with(&format!("{lines}OnAccessMaxFileSize {size}"));
        prop_assert_eq!(all(&again(&settings)), all(&settings));
    }
}
