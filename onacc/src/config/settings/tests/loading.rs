//! Which file goes before which, and what a file that is not there means.

use std::collections::HashMap;

use super::*;

/// Loads from these files alone.
fn load(command_line: &CommandLine, files: &[(&str, &str)]) -> Result<Settings, ConfigErrors> {
    let files: HashMap<&Path, &str> = files
        .iter()
        .map(|(name, text)| (Path::new(*name), *text))
        .collect();
    Settings::load_with(command_line, &|path| match files.get(path) {
        Some(text) => Ok(text.as_bytes().to_vec()),
        None => Err(io::ErrorKind::NotFound.into()),
    })
}

fn line(values: &[(&'static str, Value)]) -> CommandLine {
    CommandLine {
        values: values.to_vec(),
        ..CommandLine::default()
    }
}

fn text(value: &str) -> Value {
    Value::Text(value.into())
}

const CLAMD: &str = "LocalSocket /s\nOnAccessIncludePath /a\nOnAccessIncludePath /b\n\
                     OnAccessPrevention yes\nOnAccessRetryAttempts 3\n";

#[test]
fn the_command_line_goes_before_onacc_toml_and_that_before_clamd_conf() {
    let native = "[scope]\nOnAccessIncludePath = [\"/n\"]\nCoverage = \"mount\"\n\
                  [scan]\nOnAccessRetryAttempts = 0\n[log]\nLogVerbose = false\n";
    let files = [(DEFAULT_FILE, CLAMD), (DEFAULT_NATIVE_FILE, native)];
    let flags = [
        ("Coverage", text("listed")),
        ("LogVerbose", Value::Bool(true)),
    ];
    let settings = load(&line(&flags), &files).unwrap();
    // A list of the later file is no addition to the earlier one's.
    assert_eq!(paths(&settings.include_paths), ["/n"]);
    assert_eq!(settings.retries, 0);
    assert!(settings.prevention && settings.log.verbose);
    assert_eq!(settings.coverage, CoverageMode::Listed);
    assert_eq!(settings.origins["Coverage"], [Origin::CommandLine]);
    assert_eq!(
        settings.include_paths[0].to_string(),
        "/etc/onacc/onacc.toml:2: OnAccessIncludePath"
    );
    assert_eq!(
        settings.files,
        [Path::new(DEFAULT_FILE), Path::new(DEFAULT_NATIVE_FILE)]
    );
}

#[test]
fn an_empty_list_hides_the_one_of_clamd_conf() {
    let clamd = format!("{CLAMD}OnAccessExcludeUname root\n");
    let native = "[exclude]\nOnAccessExcludeUname = []\n";
    let files = [
        (DEFAULT_FILE, clamd.as_str()),
        (DEFAULT_NATIVE_FILE, native),
    ];
    let settings = load(&CommandLine::default(), &files).unwrap();
    assert!(settings.excluded_names.is_empty());
}

#[test]
fn servers_go_together() {
    let native = "[clamd]\nTCPAddr = [\"av1\", \"av2\"]\nTCPSocket = 3310\n";
    let files = [(DEFAULT_FILE, CLAMD), (DEFAULT_NATIVE_FILE, native)];
    let servers = load(&CommandLine::default(), &files).unwrap().servers;
    let shown: Vec<_> = servers
        .iter()
        .map(|server| server.value.to_string())
        .collect();
    assert_eq!(shown, ["av1:3310", "av2:3310"]);

    let native = "[[server]]\nAddress = \"/x\"\nWeight = 7\n[clamd]\nStream = true\n";
    let files = [(DEFAULT_FILE, CLAMD), (DEFAULT_NATIVE_FILE, native)];
    let servers = load(&CommandLine::default(), &files).unwrap().servers;
    assert_eq!((servers.len(), servers[0].value.weight), (1, 7));
    assert_eq!(
        servers[0].value.transfer,
        crate::config::servers::Transfer::Stream
    );
}

#[test]
fn one_of_the_two_files_is_needed() {
    let native = "[scope]\nOnAccessIncludePath = [\"/n\"]\n[clamd]\nLocalSocket = \"/s\"\n";
    load(&CommandLine::default(), &[(DEFAULT_NATIVE_FILE, native)]).unwrap();
    load(&CommandLine::default(), &[(DEFAULT_FILE, CLAMD)]).unwrap();
    let message = load(&CommandLine::default(), &[]).unwrap_err().to_string();
    assert!(message.starts_with("/etc/clamav/clamd.conf: cannot read the configuration: "));
    assert!(message.ends_with("name another file with --config-file=FILE"));

    // What the command line names must be there.
    let named = CommandLine {
        clamd_conf: Some("/c".into()),
        native: Some("/n".into()),
        ..CommandLine::default()
    };
    let both = [("/c", CLAMD), ("/n", "")];
    assert_eq!(
        load(&named, &both).unwrap().files,
        [Path::new("/c"), Path::new("/n")]
    );
    let message = load(&named, &both[..1]).unwrap_err().to_string();
    assert!(
        message.starts_with("/n: cannot read the settings: ")
            && message.ends_with("--settings=FILE")
    );
    assert!(load(&named, &both[1..]).is_err());
}

#[test]
fn lists_add_to_what_the_files_name() {
    let flags = [("WatchList", text("/w")), ("ExcludeList", text("/e"))];
    let files = [
        (DEFAULT_FILE, CLAMD),
        ("/w", "/listed\r\n/last"),
        ("/e", "/a/(x)*\n"),
    ];
    let settings = load(&line(&flags), &files).unwrap();
    assert_eq!(
        paths(&settings.include_paths),
        ["/a", "/b", "/listed", "/last"]
    );
    // In a list nothing is a regular expression.
    assert_eq!(paths(&settings.exclude_paths), ["/a/(x)*"]);
    assert_eq!(settings.include_paths[3].to_string(), "/w:2: --watch-list");
    assert_eq!(settings.files.len(), 3);

    let wrong = [(DEFAULT_FILE, CLAMD), ("/w", "listed\n"), ("/e", "\nx\ny")];
    let errors = load(&line(&flags), &wrong).unwrap_err();
    let said: Vec<_> = errors.0.iter().map(ToString::to_string).collect();
    assert_eq!(said.len(), 3, "{said:?}");
    assert!(said[0].starts_with("/w:1:1: --watch-list: 'listed' is not an absolute path; "));
    assert!(said[2].starts_with("/e:3:1: --exclude-list: 'y' "));
    let message = load(&line(&flags), &files[..1]).unwrap_err().to_string();
    assert!(
        message.contains("/w: cannot read the list of directories to watch: "),
        "{message}"
    );

    // A watch list alone will do.
    let files = [(DEFAULT_FILE, "LocalSocket /s\n"), ("/w", "/x")];
    assert_eq!(
        paths(&load(&line(&flags[..1]), &files).unwrap().include_paths),
        ["/x"]
    );
}

#[test]
fn an_action_may_need_a_directory() {
    let action = |values: &[(&'static str, Value)]| {
        load(&line(values), &[(DEFAULT_FILE, CLAMD)]).map(|settings| settings.action)
    };
    let set = |word| ("Action", text(word));
    assert_eq!(action(&[]).unwrap(), Action::Nothing);
    assert_eq!(action(&[set("remove")]).unwrap(), Action::Remove);
    let into = ("Directory", text("/q"));
    assert_eq!(
        action(&[set("move"), into.clone()]).unwrap(),
        Action::Move("/q".into())
    );
    assert_eq!(
        action(&[set("copy"), into]).unwrap(),
        Action::Copy("/q".into())
    );
    assert!(
        action(&[set("move")])
            .unwrap_err()
            .to_string()
            .contains("Directory is missing")
    );
    assert!(action(&[set("burn")]).is_err());
}

#[test]
fn files_are_read_from_the_disk() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("clamd.conf");
    std::fs::write(&file, BASE).unwrap();
    let named = |path: &Path| CommandLine {
        clamd_conf: Some(path.to_owned()),
        native: Some("/dev/null".into()),
        ..CommandLine::default()
    };
    let settings = Settings::load(&named(&file)).unwrap();
    assert_eq!(settings.files[0], file);
    let missing = directory.path().join("missing");
    let message = Settings::load(&named(&missing)).unwrap_err().to_string();
    assert!(
        message.contains("cannot read the configuration: No such file"),
        "{message}"
    );
    // A directory opens, but does not read.
    assert!(Settings::load(&named(directory.path())).is_err());
}

#[test]
fn verdicts_are_kept_on_what_is_named_by_type_or_place() {
    let settings = |cache: &str| {
        let text =
            format!("[clamd]\nLocalSocket = '/s'\n[scope]\nOnAccessIncludePath = '/a'\n{cache}\n");
        Settings::from_native(text.as_bytes(), Path::new("n"))
    };
    let kept = settings("[cache]\nKeepVerdictsOn = ['fuse.sshfs', '/srv/data/']").unwrap();
    let fits = |kind, path| {
        let mut all = kept.keep_on.iter();
        all.any(|one| one.value.fits(kind, Path::new(path)))
    };
    assert!(fits("fuse.sshfs", "/x") && fits("nfs4", "/srv/data"));
    assert!(!fits("nfs4", "/srv") && !fits("fuse", "/x"));
    let errors = settings("[cache]\nKeepVerdictsOn = ['nfs', 'nfs5', 'tmpfs']").unwrap_err();
    let errors = errors.to_string();
    let lines: Vec<_> = errors.lines().collect();
    assert_eq!(lines.len(), 2, "{errors}");
    for (line, word) in lines.iter().zip(["nfs5", "tmpfs"]) {
        assert!(line.starts_with("n:6:"), "{line}");
        assert!(line.contains(&format!("'{word}'")), "{line}");
        assert!(
            line.contains("KeepVerdictsOn") && line.contains("write a type"),
            "{line}"
        );
    }
    // Without word of closes nobody would hear of stores through a mapping.
    let without = settings("Triggers = 'open'\n[cache]\nKeepVerdictsOn = 'nfs'");
    let errors = without.unwrap_err().to_string();
    assert!(
        errors.starts_with("n:7:") && errors.contains("close-write"),
        "{errors}"
    );
}
