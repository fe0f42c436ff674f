//! Who is clamd where something stands between it and the agent: a TLS proxy, two
//! proxies one after the other, plain TCP; and who is not.
//!
//! clamd's own opens, and those of what it starts, are let through whatever
//! carries its bytes. One thread of clamd and a `VirusEvent` script that opens
//! watched files make every mistake here a wait for the bound.

mod common;

use std::{
    fs::{self, Permissions},
    net::{TcpListener, TcpStream},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use common::{LIMIT, assert_refused, clean, counter, infected, write_marker_signature};
use onacc_tests::{
    Agent, Behaviour, Clamd, FakeClamd, ScratchFs, TlsProxy,
    agent::AgentBuilder,
    clamd::{ClamdBuilder, wait_until},
    open_within, or_skip, require_root,
    tls_proxy::free_port,
};

/// An open that takes longer has waited for the bound, which is 15 seconds here.
const QUICK: Duration = Duration::from_secs(6);
const BOUND: &str = "OnAccessCurlTimeout 15000";

/// A filesystem that is watched as a whole, with all of clamd's files on it, and
/// a `VirusEvent` script that reads and writes there.
struct Inside {
    clamd: Clamd,
    scratch: ScratchFs,
    port: u16,
}

impl Inside {
    fn new(more: impl FnOnce(ClamdBuilder) -> ClamdBuilder) -> Result<Self, String> {
        Clamd::installed()?;
        let scratch = ScratchFs::ext4(64)?;
        let dir = scratch.mkdir("clamd");
        write_marker_signature(&dir);
        let event = scratch.join("event.sh");
        let port = free_port();
        let builder = Clamd::builder(&dir)
            .option("MaxThreads 1")
            .option("ConcurrentDatabaseReload no")
            // Such a reload waits until clamd's idle threads have ended.
            .option("IdleTimeout 1")
            .option(&format!("VirusEvent {}", event.display()))
            .option(&format!("TCPSocket {port}"))
            .option("TCPAddr 127.0.0.1");
        let clamd = more(builder).try_start()?;
        for n in 0..5 {
            scratch.write(format!("other{n}"), format!("other {n}").as_bytes());
        }
        let shown = scratch.path().display();
        let text = format!(
            "#!/bin/sh\ncat {shown}/other* > /dev/null\n\
             sh -c 'head -c 1 {shown}/event.sh >> {shown}/events'\n"
        );
        fs::write(&event, text).map_err(|error| error.to_string())?;
        fs::set_permissions(&event, Permissions::from_mode(0o755))
            .map_err(|error| error.to_string())?;
        Ok(Self {
            clamd,
            scratch,
            port,
        })
    }

    fn events(&self) -> u64 {
        fs::metadata(self.scratch.join("events")).map_or(0, |events| events.len())
    }

    fn agent(&self) -> AgentBuilder {
        Agent::without_clamd()
            .prevention(true)
            .include(self.scratch.path())
            .option(BOUND)
    }

    fn plain(&self, port: u16) -> AgentBuilder {
        self.agent()
            .option(&format!("TCPSocket {port}"))
            .option("TCPAddr 127.0.0.1")
    }

    /// Verdicts come at once, though each makes clamd open watched files.
    fn assert_nobody_waits(&self, agent: &Agent, round: &str) {
        for n in 0..4 {
            let bad = [infected(), format!("{round}{n}").into_bytes()].concat();
            let bad = self.scratch.write(format!("bad{round}{n}"), &bad);
            let good = self.scratch.write(format!("good{round}{n}"), &clean());
            let before = self.events();
            let open = open_within(&bad, LIMIT);
            assert!(open.is_refused() && open.took < QUICK, "{round}: {open:?}");
            let open = open_within(&good, LIMIT);
            assert!(open.is_open() && open.took < QUICK, "{round}: {open:?}");
            assert!(wait_until(LIMIT, || self.events() > before), "{round}");
        }
        // Its database, which it reads again while it serves nobody.
        self.clamd.reload();
        thread::sleep(Duration::from_millis(300));
        let later = self.scratch.write(format!("later{round}"), &infected());
        let open = open_within(&later, LIMIT);
        assert!(open.is_refused() && open.took < QUICK, "{round}: {open:?}");
        assert_eq!(counter(agent, "timeouts"), 0, "{round}: {}", agent.output());
        assert!(counter(agent, "scanner") > 0, "{round}");
    }

    /// Whoever is neither clamd nor on the way to it is scanned like others.
    fn assert_others_are_scanned(&self, agent: &Agent) {
        let bad = self.scratch.write("for-others", &infected());
        assert_refused(&bad);
        assert!(counter(agent, "infected") > 0);
    }
}

fn tls_settings(proxy: &TlsProxy, dir: &Path) -> PathBuf {
    let file = |name: &str| proxy.file(name).display().to_string();
    let settings = dir.join("onacc.toml");
    let text = format!(
        "[[server]]\nAddress = \"127.0.0.1:{}\"\nTLS = true\nCAFile = \"{}\"\n\
         CertificateFile = \"{}\"\nKeyFile = \"{}\"\n",
        proxy.port(),
        file("ca.pem"),
        file("client.pem"),
        file("client.key")
    );
    fs::write(&settings, text).expect("writing settings");
    settings
}

#[test]
fn clamd_over_plain_tcp_may_open_watched_files_after_a_restart_too() {
    require_root!();
    let mut site = or_skip!(Inside::new(|clamd| clamd));
    let agent = site.plain(site.port).start();
    for round in ["first", "second", "third"] {
        site.assert_nobody_waits(&agent, round);
        site.clamd.restart();
        // The new one is another process.
        let probe = site.scratch.write(format!("probe{round}"), &infected());
        assert!(
            wait_until(LIMIT, || open_within(&probe, LIMIT).is_refused()),
            "{}",
            agent.output()
        );
    }
    site.assert_others_are_scanned(&agent);
}

#[test]
fn clamd_behind_a_tls_proxy_may_open_watched_files() {
    require_root!();
    or_skip!(TlsProxy::installed());
    for tcp in [false, true] {
        let site = or_skip!(Inside::new(|clamd| clamd));
        // The proxy's own files are watched, too.
        let dir = site.scratch.mkdir("proxy");
        let target = if tcp {
            format!("127.0.0.1:{}", site.port)
        } else {
            site.clamd.socket().display().to_string()
        };
        let proxy = TlsProxy::start_to(&dir, &target, "");
        let settings = tls_settings(&proxy, &dir);
        let agent = site
            .agent()
            .arg(&format!("--settings={}", settings.display()))
            .start();
        site.assert_nobody_waits(&agent, "proxied");
        site.assert_others_are_scanned(&agent);
        assert!(
            !agent.output().contains("not recognised"),
            "{}",
            agent.output()
        );
    }
}

#[test]
fn clamd_behind_two_proxies_may_open_watched_files() {
    require_root!();
    or_skip!(TlsProxy::installed());
    let site = or_skip!(Inside::new(|clamd| clamd));
    let dirs = [site.scratch.mkdir("far"), site.scratch.mkdir("near")];
    let far = TlsProxy::start_to(&dirs[0], &site.clamd.socket().display().to_string(), "");
    // Plain TCP to the near one, TLS from there to the far one.
    let near = TlsProxy::start_client(&dirs[1], &far);
    let agent = site.plain(near.port()).start();
    site.assert_nobody_waits(&agent, "two");
    site.assert_others_are_scanned(&agent);
}

#[test]
fn whoever_else_is_connected_to_the_proxy_is_scanned_like_others() {
    require_root!();
    or_skip!(TlsProxy::installed());
    let site = or_skip!(Inside::new(|clamd| clamd));
    // The proxy leads to this very process as well, which is no clamd; and this
    // process is connected to the proxy.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (elsewhere, front) = (listener.local_addr().unwrap(), free_port());
    let dir = site.scratch.mkdir("proxy");
    let more =
        format!("[other]\nclient = yes\naccept = 127.0.0.1:{front}\nconnect = {elsewhere}\n");
    let proxy = TlsProxy::start_to(&dir, &site.clamd.socket().display().to_string(), &more);
    let to_proxy = TcpStream::connect(("127.0.0.1", front)).unwrap();
    let (from_proxy, _) = listener.accept().unwrap();
    let settings = tls_settings(&proxy, &dir);
    let agent = site
        .agent()
        .arg(&format!("--settings={}", settings.display()))
        .start();
    site.assert_nobody_waits(&agent, "beside");
    site.assert_others_are_scanned(&agent);
    drop((to_proxy, from_proxy));
}

#[test]
fn where_no_clamd_is_found_behind_a_proxy_the_log_says_so_and_what_helps() {
    require_root!();
    or_skip!(TlsProxy::installed());
    let scratch = or_skip!(ScratchFs::ext4(32));
    let dir = tempfile::tempdir().unwrap();
    // Served by this process, which is not called clamd.
    let fake = FakeClamd::start(dir.path(), Behaviour::usual_for);
    let proxy = TlsProxy::start(dir.path(), fake.socket());
    let settings = tls_settings(&proxy, dir.path());
    let agent = Agent::without_clamd()
        .prevention(true)
        .include(scratch.path())
        .arg(&format!("--settings={}", settings.display()))
        .start();
    // Scanned, though opened by the process that serves it.
    assert_refused(&scratch.write("bad", &infected()));
    let line = agent.wait_for("not recognised", LIMIT).unwrap();
    let pid = proxy.pid().to_string();
    for part in ["WARNING: ", "stunnel", &pid, "OnAccessExcludeUname"] {
        assert!(line.contains(part), "{part}: {line}");
    }
    thread::sleep(Duration::from_millis(300));
    let said = agent.output().matches("not recognised").count();
    assert_eq!(said, 1, "{}", agent.output());
}
