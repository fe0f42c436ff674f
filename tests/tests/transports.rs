//! The ways to clamd: TCP, TLS, content in chunks; and files that do not fit.

mod common;

use std::{
    fs::{self, File},
    net::TcpListener,
    path::PathBuf,
    time::Duration,
};

use common::{
    LIMIT, SOON, Site, assert_opens, assert_refused, clean, counter, infected, marker, open_all,
    refused_within, write_marker_signature,
};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use onacc_tests::{
    Agent, Clamd, ScratchFs, TlsProxy,
    agent::AgentBuilder,
    clamd::wait_until,
    open_within, or_skip, require_root,
    tls_proxy::{SERVER_NAME, free_port},
};

const MIB: usize = 1 << 20;

/// A filesystem, and a clamd that listens on a Unix socket and on TCP.
struct TcpSite {
    clamd: Clamd,
    _dir: tempfile::TempDir,
    scratch: ScratchFs,
    port: u16,
}

impl TcpSite {
    fn new(more: &[&str]) -> Result<Self, String> {
        Clamd::installed()?;
        let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
        write_marker_signature(dir.path());
        let port = free_port();
        let mut builder = Clamd::builder(dir.path())
            .option("ExitOnOOM no")
            .option(&format!("TCPSocket {port}"))
            .option("TCPAddr 127.0.0.1");
        if TcpListener::bind("[::1]:0").is_ok() {
            builder = builder.option("TCPAddr ::1");
        }
        for line in more {
            builder = builder.option(line);
        }
        let scratch = ScratchFs::ext4(64)?;
        scratch.mkdir("in");
        Ok(Self {
            clamd: builder.try_start()?,
            _dir: dir,
            scratch,
            port,
        })
    }

    fn write(&self, name: &str, content: &[u8]) -> PathBuf {
        self.scratch.write(format!("in/{name}"), content)
    }

    fn agent(&self, address: &str) -> AgentBuilder {
        Agent::without_clamd()
            .option(&format!("TCPSocket {}", self.port))
            .option(&format!("TCPAddr {address}"))
            .prevention(true)
            .include(self.scratch.join("in"))
    }
}

/// A file of this length, clean but for its end.
fn marked_at_the_end(length: usize) -> Vec<u8> {
    let marker = marker();
    let mut bytes: Vec<u8> = (0..length - marker.len())
        .map(|n| u8::try_from(n % 251).unwrap_or_default())
        .collect();
    bytes.extend(marker);
    bytes
}

/// What every way must give: verdicts on small files, empty ones, and files that
/// take many chunks, one after the other and all at once.
fn assert_works(agent: &Agent, write: impl Fn(&str, &[u8]) -> PathBuf) {
    let (bad, good) = (write("bad", &infected()), write("good", &clean()));
    assert!(refused_within(&bad, SOON).is_some(), "{}", agent.output());
    assert_opens(&good);
    assert_opens(&write("empty", b""));
    let long = write("long", &marked_at_the_end(3 * MIB + 17));
    assert_refused(&long);
    let mut harmless = marked_at_the_end(3 * MIB);
    harmless.truncate(3 * MIB - marker().len());
    assert_opens(&write("harmless", &harmless));
    let many: Vec<PathBuf> = (0..40)
        .map(|n| {
            let content = [format!("{n}").as_bytes(), &harmless[..n * 10_000]].concat();
            write(&format!("many{n}"), &content)
        })
        .collect();
    for open in open_all(&many, LIMIT) {
        assert!(open.is_open(), "{open:?}");
    }
    assert_refused(&bad);
    assert_eq!(counter(agent, "scan_errors"), 0, "{}", agent.output());
    assert_eq!(counter(agent, "sessions_lost"), 0, "{}", agent.output());
}

#[test]
fn tcp_by_ipv4_ipv6_and_name() {
    require_root!();
    for address in ["127.0.0.1", "::1", "localhost"] {
        if address == "::1" && TcpListener::bind("[::1]:0").is_err() {
            eprintln!("this machine has no IPv6");
            continue;
        }
        let site = or_skip!(TcpSite::new(&[]));
        let agent = site.agent(address).start();
        assert_works(&agent, |name, content| site.write(name, content));
        assert!(counter(&agent, "server1_bytes") > 6 * MIB as u64);
        // A clamd on this host is known for what it is, over TCP too.
        assert!(
            site.clamd.log().contains("instream"),
            "{}",
            site.clamd.log()
        );
    }
}

#[test]
fn content_in_chunks_over_a_unix_socket() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let agent = site.agent().arg("--stream").start();
    assert_works(&agent, |name, content| site.write(name, content));
    assert!(site.clamd().log().contains("instream"));
    // It shows among the counters how long that took.
    assert!(counter(&agent, "opener_wait_count") >= 40);
    assert!(counter(&agent, "scan_time_max_us") >= counter(&agent, "scan_time_p50_us"));
}

#[test]
fn fdpass_is_what_is_done_anyway() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let agent = site.agent().arg("--fdpass").start();
    assert_works(&agent, |name, content| site.write(name, content));
    assert_eq!(counter(&agent, "streamed_bytes"), 0);
}

#[test]
fn what_is_not_in_memory_is_streamed_all_the_same() {
    require_root!();
    let site = or_skip!(Site::ext4());
    let bad = site.write("bad", &marked_at_the_end(3 * MIB));
    let file = File::open(&bad).unwrap();
    file.sync_all().unwrap();
    let agent = site.agent().arg("--stream").start();
    posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
    drop(file);
    assert_refused(&bad);
    assert!(counter(&agent, "cold_reads") > 0);
}

#[test]
fn tls_with_own_authority_server_name_and_client_certificate() {
    require_root!();
    or_skip!(TlsProxy::installed());
    let site = or_skip!(TcpSite::new(&[]));
    let dir = tempfile::tempdir().unwrap();
    let proxy = TlsProxy::start(dir.path(), &site.clamd.socket());
    let file = |name: &str| proxy.file(name).display().to_string();
    let (ca, other, certificate, key) = (
        format!("CAFile = \"{}\"\n", file("ca.pem")),
        format!("CAFile = \"{}\"\n", file("other-ca.pem")),
        format!("CertificateFile = \"{}\"\n", file("client.pem")),
        format!("KeyFile = \"{}\"\n", file("client.key")),
    );
    let name = |name: &str| format!("ServerName = \"{name}\"\n");
    let own = [certificate.as_str(), &key].concat();
    let start = |lines: &[&str], more: &str| {
        let settings = dir.path().join("onacc.toml");
        let text = format!(
            "[[server]]\nAddress = \"127.0.0.1:{}\"\nTLS = true\n{}",
            proxy.port(),
            lines.concat()
        );
        fs::write(&settings, text).unwrap();
        Agent::without_clamd()
            .arg(&format!("--settings={}", settings.display()))
            .prevention(true)
            .include(site.scratch.join("in"))
            .option(more)
            .start()
    };
    for right in [name(SERVER_NAME), String::new()] {
        let agent = start(&[&ca, &own, &right], "");
        let way = right.len();
        assert_works(&agent, |name, content| {
            site.write(&format!("{name}.{way}"), content)
        });
    }
    let bad = site.write("bad", &infected());
    for (wrong, why) in [
        (vec![other.as_str(), &own], "UnknownIssuer"),
        (
            vec![ca.as_str(), &own, &name("elsewhere.test")],
            "not valid for",
        ),
        (vec![ca.as_str()], ""),
    ] {
        for (policy, refused) in [("no", false), ("yes", true)] {
            let agent = start(&wrong, &format!("OnAccessDenyOnError {policy}"));
            let open = open_within(&bad, LIMIT);
            assert_eq!(open.is_refused(), refused, "{wrong:?}: {open:?}");
            assert!(open.took < Duration::from_secs(7), "{open:?}");
            let line = agent.wait_for("Connection to clamd failed", LIMIT).unwrap();
            assert!(line.contains(why), "{line}");
            assert_eq!(counter(&agent, "infected"), 0);
        }
    }
}

#[test]
fn files_over_a_limit_get_what_the_fail_policy_says_and_disturb_nobody() {
    require_root!();
    // The limit that both know, and one that clamd alone has.
    for (ours, clamds, words) in [
        (
            "StreamMaxLength 1M",
            "StreamMaxLength 1M",
            "StreamMaxLength",
        ),
        ("StreamMaxLength 9M", "StreamMaxLength 1M", "size limit"),
    ] {
        let site = or_skip!(TcpSite::new(&[clamds]));
        let long = site.write("long", &marked_at_the_end(2 * MIB));
        let (bad, good) = (site.write("bad", &infected()), site.write("good", &clean()));
        for (policy, refused) in [("no", false), ("yes", true)] {
            let agent = site
                .agent("127.0.0.1")
                .option(ours)
                .option(&format!("OnAccessDenyOnError {policy}"))
                .start();
            assert!(refused_within(&bad, SOON).is_some());
            for _ in 0..3 {
                let open = open_within(&long, LIMIT);
                assert_eq!(open.is_refused(), refused, "{ours}: {open:?}");
                assert!(open.took < Duration::from_secs(4), "{open:?}");
                assert_opens(&good);
                assert_refused(&bad);
            }
            agent.wait_for(words, LIMIT).unwrap();
            assert_eq!(counter(&agent, "timeouts"), 0);
        }
    }
}

#[test]
fn a_clamd_that_comes_late_or_goes_and_comes_is_found_over_tcp() {
    require_root!();
    let mut site = or_skip!(TcpSite::new(&[]));
    let good = site.write("good", &clean());
    site.clamd.kill();
    let _agent = site.agent("localhost").start();
    for round in 0..2 {
        let bad = site.write(&format!("bad{round}"), &infected());
        let open = open_within(&bad, LIMIT);
        assert!(
            open.is_open() && open.took < Duration::from_secs(7),
            "{open:?}"
        );
        site.clamd.restart();
        let back = Duration::from_secs(10);
        assert!(refused_within(&bad, back).is_some());
        assert!(wait_until(SOON, || open_within(&good, LIMIT).is_open()));
        site.clamd.kill();
    }
}
