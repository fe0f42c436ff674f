//! Each default, each limit, each warning, each error.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use proptest::prelude::*;

use super::*;
use crate::config::servers::Server;

mod loading;
mod shown;

/// The least that makes a valid file: two lines.
const BASE: &str = "LocalSocket /run/clamd.ctl\nOnAccessIncludePath /home\n";

fn read(text: &str) -> Result<Settings, ConfigErrors> {
    Settings::from_bytes(text.as_bytes(), Path::new("f"))
}

/// The settings of a valid file with `more` from line 3 on.
fn with(more: &str) -> Settings {
    read(&format!("{BASE}{more}\n")).unwrap()
}

/// What the only error says, without its column.
fn error(text: &str) -> String {
    let errors = read(text).unwrap_err();
    assert_eq!(errors.0.len(), 1, "{errors}");
    without_column(&errors.to_string())
}

fn error_with(more: &str) -> String {
    error(&format!("{BASE}{more}\n"))
}

fn without_column(message: &str) -> String {
    let parts: Vec<&str> = message.splitn(4, ':').collect();
    match parts[..] {
        [file, line, column, rest] if column.bytes().all(|byte| byte.is_ascii_digit()) => {
            format!("{file}:{line}:{rest}")
        }
        _ => message.to_owned(),
    }
}

fn at<T>(value: T, line: usize, column: usize, option: &'static str) -> Located<T> {
    Located {
        value,
        origin: Origin::File {
            file: "f".into(),
            line,
            column,
        },
        option,
    }
}

fn paths(located: &[Located<PathBuf>]) -> Vec<&str> {
    located.iter().map(|l| l.value.to_str().unwrap()).collect()
}

#[test]
fn defaults() {
    let settings = with("");
    let socket = Server::unix("/run/clamd.ctl".into());
    let servers = vec![at(socket, 1, 13, "LocalSocket")];
    let include_paths = vec![at("/home".into(), 2, 21, "OnAccessIncludePath")];
    let origins = BTreeMap::from([
        ("LocalSocket", vec![servers[0].origin.clone()]),
        ("OnAccessIncludePath", vec![include_paths[0].origin.clone()]),
    ]);
    assert_eq!(
        settings,
        Settings {
            servers,
            stream_max_length: 100 << 20,
            all_match: false,
            include_paths,
            exclude_paths: vec![],
            exclude_patterns: vec![],
            exclusions: Exclusions::default(),
            path_rules: vec![],
            triggers: Triggers {
                open: true,
                exec: false,
                close_write: true,
            },
            coverage: CoverageMode::Auto,
            bpf: BpfMode::Auto,
            prevention: false,
            excluded_uids: vec![],
            excluded_names: vec![],
            max_file_size: 5 * 1024 * 1024,
            try_timeout: Duration::from_secs(5),
            retries: 0,
            max_scans: 5,
            deny_on_error: false,
            extra_scanning: false,
            disable_ddd: false,
            mount_paths: vec![],
            watch_list: None,
            exclude_list: None,
            read_timeout: Duration::from_mins(2),
            max_queue: 100,
            temporary_directory: None,
            database_directory: "/var/lib/clamav".into(),
            verdicts: None,
            marks: MarksMode::Auto,
            keep_on: vec![],
            action: Action::Nothing,
            log: LogSettings {
                facility: "LOG_LOCAL6".into(),
                max_size: u64::MAX,
                ..LogSettings::default()
            },
            pid_file: None,
            files: vec!["f".into()],
            origins,
            warnings: vec![],
        }
    );
    assert_eq!(settings.servers[0].to_string(), "f:1: LocalSocket");
}

#[test]
fn values_arrive() {
    let settings = with(
        "OnAccessIncludePath /srv\nOnAccessExcludePath /home/x\nOnAccessPrevention yes\n\
         OnAccessExcludeUID 1000\nOnAccessExcludeUID 33\nOnAccessExcludeUID 1000\n\
         OnAccessExcludeRootUID yes\nOnAccessExcludeUname clamav\nOnAccessMaxFileSize 1M\n\
         OnAccessCurlTimeout 250\nOnAccessRetryAttempts 3\nOnAccessMaxThreads 9\n\
         OnAccessDenyOnError yes\nReadTimeout 60\nMaxQueue 200\nTemporaryDirectory /var/tmp",
    );
    assert_eq!(paths(&settings.include_paths), ["/home", "/srv"]);
    assert_eq!(paths(&settings.exclude_paths), ["/home/x"]);
    assert!(settings.prevention);
    assert_eq!(settings.excluded_uids, [0, 33, 1000]);
    assert_eq!(settings.excluded_names[0].value, "clamav");
    assert_eq!(
        settings.excluded_names[0].to_string(),
        "f:10: OnAccessExcludeUname"
    );
    assert_eq!(settings.max_file_size, 1 << 20);
    assert_eq!(settings.try_timeout, Duration::from_millis(250));
    assert_eq!(settings.retries, 3);
    assert_eq!(settings.max_scans, 9);
    assert!(settings.deny_on_error);
    assert_eq!(settings.read_timeout, Duration::from_mins(1));
    assert_eq!(settings.max_queue, 200);
    let temporary = settings.temporary_directory.as_ref().unwrap();
    assert_eq!(temporary.value, Path::new("/var/tmp"));
    assert_eq!(settings.warnings, [""; 0]);
    assert_eq!(settings.bound(), Duration::from_secs(1));
}

#[test]
fn a_file_size_of_zero_is_unlimited() {
    assert_eq!(with("OnAccessMaxFileSize 0").max_file_size, u64::MAX);
}

#[test]
fn the_bound_counts_every_try() {
    assert_eq!(with("").bound(), Duration::from_secs(5));
    assert_eq!(
        with("OnAccessRetryAttempts 2").bound(),
        Duration::from_secs(15)
    );
    let longest = with("OnAccessCurlTimeout 99999999999\nOnAccessRetryAttempts 999").bound();
    // poll(2) and friends take 31 bits of milliseconds.
    assert!(longest.as_millis() <= i32::MAX as u128);
}

#[test]
fn without_a_server_nothing_goes() {
    for (tcp, wanted) in [
        (
            "",
            "f: LocalSocket: the option is missing; set it to clamd's socket",
        ),
        (
            "TCPAddr localhost",
            "f:2: TCPAddr: TCPSocket is missing; set it to clamd's port",
        ),
        (
            "TCPSocket 3310",
            "f:2: TCPSocket: TCPAddr is missing, and onacc cannot call",
        ),
        (
            "TCPSocket 3310\nTCPAddr any",
            "f:3: TCPAddr: 'any' is not an address that can be called; write",
        ),
        (
            "TCPAddr 0.0.0.0\nTCPSocket 3310",
            "f:2: TCPAddr: '0.0.0.0' is not an address that can be called",
        ),
        (
            "TCPAddr a b\nTCPSocket 3310",
            "f:2: TCPAddr: 'a b' is not an address that can be called",
        ),
        (
            "TCPSocket 65536\nTCPAddr ::1",
            "f:2: TCPSocket: '65536' is not a TCP port; write a number from 1 to 65535",
        ),
        (
            "TCPAddr ::1\nTCPSocket 0",
            "f:3: TCPSocket: '0' is not a TCP port",
        ),
    ] {
        let message = error(&format!("OnAccessIncludePath /home\n{tcp}"));
        assert!(message.starts_with(wanted), "{message}");
    }
}

#[test]
fn tcp_addresses_are_servers_unless_there_is_a_socket() {
    let tcp =
        "TCPAddr 127.0.0.1\nTCPSocket 3310\nTCPAddr ::1\nTCPAddr av.example.org\nTCPAddr ::1\n";
    // With both, the local socket is used, as clamonacc does.
    assert_eq!(with(tcp).servers, with("").servers);
    assert_eq!(with(tcp).warnings, [""; 0]);
    let settings = read(&format!("OnAccessIncludePath /home\n{tcp}")).unwrap();
    let servers: Vec<Server> = ["127.0.0.1", "::1", "av.example.org"]
        .map(|host| Server::tcp(host.parse().unwrap(), 3310))
        .into();
    let values: Vec<Server> = settings.servers.iter().map(|l| l.value.clone()).collect();
    assert_eq!(values, servers);
    assert_eq!(settings.servers[1].to_string(), "f:4: TCPAddr");
    assert_eq!(
        settings.warnings,
        ["f:6: TCPAddr: [::1]:3310 is named twice, ignored"]
    );
    let many: Vec<String> = (1..=17).map(|n| format!("TCPAddr 10.0.0.{n}")).collect();
    let many = many.join("\n");
    let settings = read(&format!("{many}\nTCPSocket 1\nOnAccessIncludePath /home")).unwrap();
    assert_eq!(settings.servers.len(), 16);
    assert_eq!(
        settings.warnings,
        ["f:17: TCPAddr: 10.0.0.17:1 is not used; name at most 16 addresses"]
    );
}

#[test]
fn the_limit_of_streams_is_clamds() {
    assert_eq!(with("StreamMaxLength 3M").stream_max_length, 3 << 20);
    assert!(with("StreamMaxLength 0").stream_max_length > u64::MAX / 4);
}

#[test]
fn the_socket_must_be_usable() {
    let message = error("LocalSocket clamd.ctl\nOnAccessIncludePath /home\n");
    assert!(message.starts_with(
        "f:1: LocalSocket: 'clamd.ctl' is not an absolute path; write the whole path"
    ));
    let of_length = |length: usize| {
        let path = format!("/{}", "x".repeat(length - 1));
        read(&format!("LocalSocket {path}\nOnAccessIncludePath /home"))
    };
    assert!(of_length(107).is_ok());
    let message = of_length(108).unwrap_err().to_string();
    assert!(message.ends_with(
        "is not short enough for a socket; choose a path of at most 107 bytes, for clamd too"
    ));
}

#[test]
fn watching_nothing_is_an_error() {
    assert_eq!(
        error("LocalSocket /s"),
        "f: OnAccessIncludePath: the option is missing, so nothing would be protected; name a directory, for example OnAccessIncludePath /home"
    );
}

#[test]
fn paths_must_be_absolute() {
    for option in ["OnAccessIncludePath", "OnAccessMountPath"] {
        assert_eq!(
            error_with(&format!("{option} home")),
            format!(
                "f:3: {option}: 'home' is not an absolute path; write the whole path, from / on"
            )
        );
    }
}

#[test]
fn mount_paths_stand_beside_include_paths() {
    let settings = read("LocalSocket /s\nOnAccessMountPath /mnt\n").unwrap();
    assert_eq!(paths(&settings.include_paths), ["/mnt"]);
    assert_eq!(settings.mount_paths, settings.include_paths);
    assert!(settings.warnings.is_empty());
    let both = with("OnAccessMountPath /mnt");
    assert_eq!(paths(&both.include_paths), ["/home", "/mnt"]);
    assert_eq!(paths(&both.mount_paths), ["/mnt"]);
}

#[test]
fn the_form_of_an_exclude_path_tells_what_it_is() {
    let settings = with(
        "OnAccessExcludePath /home/a.b-c\nOnAccessExcludePath ^/home/x$\n\
         OnAccessExcludePath cache",
    );
    assert_eq!(paths(&settings.exclude_paths), ["/home/a.b-c"]);
    let patterns = settings.exclude_patterns.iter();
    let written: Vec<_> = patterns.map(|one| one.value.written.as_str()).collect();
    assert_eq!(written, ["^/home/x$", "cache"]);
    assert_eq!(settings.warnings.len(), 2);
    assert!(settings.warnings[0].starts_with(
        "f:4: OnAccessExcludePath: '^/home/x$' is taken as a regular expression for the paths of directories; "
    ));
    let message = error_with("OnAccessExcludePath /home/(x");
    assert!(
        message.starts_with(
            "f:3: OnAccessExcludePath: '/home/(x' is no regular expression: unclosed group; correct it, or write the whole path"
        ),
        "{message}"
    );
}

#[test]
fn all_errors_are_told_at_once() {
    let text = "LocalSocket s\nNope 1\nOnAccessPrevention maybe\nOnAccessIncludePath home\n\
                OnAccessExcludePath (\nOnAccessExcludeUID 99999999999";
    let errors = read(text).unwrap_err();
    let places: Vec<_> = errors.0.iter().filter_map(ConfigError::origin).collect();
    let lines: std::collections::BTreeSet<_> = places.iter().map(ToString::to_string).collect();
    let wanted = ["f:1", "f:2", "f:3", "f:4", "f:5", "f:6"].map(String::from);
    assert_eq!(lines.into_iter().collect::<Vec<_>>(), wanted);
    assert_eq!(errors.0.len(), 6, "{errors}");
    // What is not understood is not called missing.
    assert_eq!(
        read("LocalSocke /s\nOnAccesIncludePath /x")
            .unwrap_err()
            .0
            .len(),
        2
    );
}

#[test]
fn the_log_is_that_of_clamd_conf_but_for_its_file() {
    let settings = with(
        "LogFile /var/log/clamav/clamav.log\nPidFile /run/clamd.pid\nLogTime yes\nLogSyslog yes\n\
         LogFacility log_daemon\nLogRotate yes\nLogFileMaxSize 2M\nLogVerbose yes",
    );
    let wanted = LogSettings {
        file: None,
        verbose: true,
        time: true,
        syslog: true,
        facility: "LOG_DAEMON".into(),
        rotate: true,
        max_size: 2 << 20,
    };
    assert_eq!(settings.log, wanted);
    assert_eq!(settings.pid_file, None);
    let wrong = with("LogFacility LOG_MINE");
    assert!(wrong.warnings[0].contains("'LOG_MINE' is not a facility"));
    assert_eq!(wrong.log.facility, "LOG_LOCAL6");
    assert_eq!(with("LogFileMaxSize 0").log.max_size, u64::MAX);
}

#[test]
fn root_is_excluded_by_its_own_option_only() {
    let settings = with("OnAccessExcludeUID 0\nOnAccessExcludeUID 7");
    assert_eq!(settings.excluded_uids, [7]);
    assert_eq!(
        settings.warnings,
        ["f:3: OnAccessExcludeUID: 0 is ignored; to exclude root set OnAccessExcludeRootUID yes"]
    );
    assert_eq!(with("OnAccessExcludeRootUID yes").excluded_uids, [0]);
    assert!(with("OnAccessExcludeRootUID no").excluded_uids.is_empty());
}

#[test]
fn uids_have_32_bits_and_one_is_taken() {
    let settings = with("OnAccessExcludeUID 4294967294");
    assert_eq!(settings.excluded_uids, [u32::MAX - 1]);
    for uid in ["4294967295", "4294967296", "4294968296"] {
        assert_eq!(
            error_with(&format!("OnAccessExcludeUID {uid}")),
            format!("f:3: OnAccessExcludeUID: {uid} is too large; write at most 4294967294")
        );
    }
}

#[test]
fn user_names_are_text() {
    let bytes = [BASE.as_bytes(), b"OnAccessExcludeUname \xff\n"].concat();
    let message = Settings::from_bytes(&bytes, Path::new("f")).unwrap_err();
    let message = without_column(&message.to_string());
    assert!(message.starts_with("f:3: OnAccessExcludeUname: "));
    assert!(message.ends_with("give the uid with OnAccessExcludeUID"));
}

#[test]
fn zero_limits_give_the_default() {
    let settings = with("OnAccessCurlTimeout 0\nOnAccessMaxThreads 0");
    assert_eq!(settings.try_timeout, Duration::from_secs(5));
    assert_eq!(settings.max_scans, 5);
    assert_eq!(
        settings.warnings,
        [
            "f:3: OnAccessCurlTimeout: 0 would stop all scans, the default 5000 is used; write 1 or more",
            "f:4: OnAccessMaxThreads: 0 would stop all scans, the default 5 is used; write 1 or more",
        ]
    );
}

#[test]
fn large_limits_are_cut() {
    let settings = with(
        "OnAccessCurlTimeout 99999999999\nOnAccessMaxThreads 99999999999\nOnAccessRetryAttempts 256",
    );
    assert_eq!(settings.try_timeout, Duration::from_hours(1));
    assert_eq!(settings.max_scans, 1024);
    assert_eq!(settings.retries, 255);
    assert_eq!(settings.warnings.len(), 3);
    assert!(settings.warnings.contains(
        &"f:5: OnAccessRetryAttempts: 256 is too large, 255 is used; write at most 255".to_owned()
    ));
    assert!(with("OnAccessRetryAttempts 255").warnings.is_empty());
}

#[test]
fn clamd_limits_are_taken_as_far_as_they_are_of_use() {
    let settings = with("ReadTimeout 0\nMaxQueue 0");
    assert_eq!(settings.read_timeout, Duration::from_mins(2));
    assert_eq!(settings.max_queue, 100);
    let settings = with("ReadTimeout 99999999999\nMaxQueue 99999999999");
    assert_eq!(settings.read_timeout, Duration::from_hours(24));
    assert_eq!(settings.max_queue, 1 << 20);
    assert!(settings.warnings.is_empty());
}

#[test]
fn extra_scanning_and_listed_directories_are_read() {
    let settings = with("OnAccessExtraScanning yes\nOnAccessDisableDDD yes");
    assert!(settings.extra_scanning && settings.disable_ddd);
    assert!(settings.warnings.is_empty());
    let settings = with("OnAccessExtraScanning no\nOnAccessDisableDDD no");
    assert!(!settings.extra_scanning && !settings.disable_ddd);
}

#[test]
fn a_relative_temporary_directory_is_ignored() {
    let settings = with("TemporaryDirectory tmp");
    assert_eq!(settings.temporary_directory, None);
    assert!(settings.warnings[0].contains("'tmp' is not an absolute path, ignored"));
}

#[test]
fn warnings_of_the_parser_come_first() {
    let settings = with("OnAccessExcludeUID 0\nScanOnAccess yes");
    assert_eq!(
        settings.warnings[0],
        "Ignoring deprecated option ScanOnAccess at f:4"
    );
    assert_eq!(settings.warnings.len(), 2);
}

#[test]
fn paths_keep_their_bytes() {
    let bytes = b"LocalSocket /s\nOnAccessIncludePath \"/\xff #\"\n";
    let settings = Settings::from_bytes(bytes, Path::new("f")).unwrap();
    let path = settings.include_paths[0].value.as_os_str();
    assert_eq!(path, OsStr::from_bytes(b"/\xff #"));
}

proptest! {
    #[test]
    fn limits_hold_for_any_number(timeout: u64, retries: u64, scans: u64, queue: u64, read_timeout: u64) {
        let settings = with(&format!(
            "OnAccessCurlTimeout {timeout}\nOnAccessRetryAttempts {retries}\n\
             OnAccessMaxThreads {scans}\nMaxQueue {queue}\nReadTimeout {read_timeout}"
        ));
        prop_assert!(settings.bound() > Duration::ZERO);
        prop_assert!(settings.bound().as_millis() <= i32::MAX as u128);
        prop_assert!((1..=1024).contains(&settings.max_scans));
        prop_assert!(settings.max_queue >= 1 && settings.read_timeout >= Duration::from_secs(1));
    }

    #[test]
    fn never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let bytes = [BASE.as_bytes(), &bytes].concat();
        let _ = Settings::from_bytes(&bytes, Path::new("f"));
    }
}
