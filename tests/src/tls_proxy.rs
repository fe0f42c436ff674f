//! A real TLS proxy (stunnel) before a clamd, with certificates of its own.
//!
//! Owns: a small certificate authority, made by openssl, and one stunnel that
//! demands a client's certificate. Must not: touch the host's certificates.
//! Tested by `tests/transports.rs`.

use std::{
    fs,
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use crate::{Result, child, clamd::wait_until, sys};

/// The name that the proxy's certificate bears, beside its address.
pub const SERVER_NAME: &str = "av.example.test";

/// A running proxy; killed and reaped on drop.
#[derive(Debug)]
pub struct TlsProxy {
    dir: PathBuf,
    port: u16,
    child: Child,
}

/// A TCP port of 127.0.0.1 that nobody listens on.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("its number").port()
}

impl TlsProxy {
    /// Whether stunnel and openssl are installed; the `Err` says what to install.
    pub fn installed() -> Result<()> {
        if Path::new("/usr/bin/stunnel4").exists() && Path::new("/usr/bin/openssl").exists() {
            Ok(())
        } else {
            Err("there is no stunnel: apt-get install stunnel4".to_owned())
        }
    }

    /// Starts one whose files are in `dir` and that leads to a Unix socket.
    pub fn start(dir: &Path, socket: &Path) -> Self {
        Self::start_to(dir, &socket.display().to_string(), "")
    }

    /// Starts one that leads to a Unix socket or `host:port`; `more` is further
    /// text of its configuration: services beside.
    pub fn start_to(dir: &Path, target: &str, more: &str) -> Self {
        make_certificates(dir);
        let shown = dir.display();
        let service = format!(
            "connect = {target}\ncert = {shown}/server.pem\nkey = {shown}/server.key\n\
             CAfile = {shown}/ca.pem\nverifyChain = yes\n{more}"
        );
        Self::run(dir, &service)
    }

    /// Starts one that takes plain TCP and leads to another proxy by TLS.
    pub fn start_client(dir: &Path, to: &Self) -> Self {
        let file = |name: &str| to.file(name).display().to_string();
        let service = format!(
            "client = yes\nconnect = 127.0.0.1:{}\ncert = {}\nkey = {}\nCAfile = {}\n\
             verifyChain = yes\n",
            to.port(),
            file("client.pem"),
            file("client.key"),
            file("ca.pem")
        );
        Self::run(dir, &service)
    }

    fn run(dir: &Path, service: &str) -> Self {
        let port = free_port();
        let shown = dir.display();
        let conf = dir.join("stunnel.conf");
        let text = format!(
            "foreground = yes\npid =\nsyslog = no\noutput = {shown}/stunnel.log\n\
             [clamd]\naccept = 127.0.0.1:{port}\n{service}"
        );
        fs::write(&conf, text).expect("writing stunnel's configuration");
        let mut command = Command::new("/usr/bin/stunnel4");
        command
            .arg(&conf)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let child = sys::die_with_parent(&mut command)
            .spawn()
            .expect("stunnel starts");
        let proxy = Self {
            dir: dir.to_path_buf(),
            port,
            child,
        };
        let listens = wait_until(Duration::from_secs(20), || {
            TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        assert!(listens, "stunnel said:\n{}", proxy.log());
        proxy
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// A file of its certificate authority: `ca.pem`, `client.pem`, `client.key`,
    /// or `other-ca.pem`, which has vouched for nobody.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Its log.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("stunnel.log")).unwrap_or_default()
    }
}

impl Drop for TlsProxy {
    fn drop(&mut self) {
        child::kill(&mut self.child);
    }
}

fn make_certificates(dir: &Path) {
    let conf = dir.join("openssl.cnf");
    fs::write(&conf, "[req]\ndistinguished_name = dn\n[dn]\n").expect("writing a file");
    let path = |name: &str| dir.join(name).display().to_string();
    let make = |name: &str, ca: Option<&str>, extensions: &[&str]| {
        let mut command = Command::new("/usr/bin/openssl");
        command
            .args(["req", "-x509", "-nodes", "-days", "30", "-newkey", "ec"])
            .args(["-pkeyopt", "ec_paramgen_curve:prime256v1"])
            .args([
                "-config",
                &path("openssl.cnf"),
                "-subj",
                &format!("/CN={name}"),
            ])
            .args(["-keyout", &path(&format!("{name}.key"))])
            .args(["-out", &path(&format!("{name}.pem"))]);
        if let Some(ca) = ca {
            command
                .args(["-CA", &path(&format!("{ca}.pem"))])
                .args(["-CAkey", &path(&format!("{ca}.key"))]);
        }
        for extension in extensions {
            command.args(["-addext", extension]);
        }
        let made = command.output().expect("openssl starts");
        let said = String::from_utf8_lossy(&made.stderr);
        assert!(made.status.success(), "openssl: {said}");
    };
    let authority = ["basicConstraints=critical,CA:TRUE"];
    make("ca", None, &authority);
    make("other-ca", None, &authority);
    let names = format!("subjectAltName=DNS:{SERVER_NAME},IP:127.0.0.1");
    make("server", Some("ca"), &["basicConstraints=CA:FALSE", &names]);
    make("client", Some("ca"), &["basicConstraints=CA:FALSE"]);
}
