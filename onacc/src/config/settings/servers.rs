//! Which clamds are asked.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt as _;

use super::reader::{Reader, bad, main_file};
use crate::config::entry::Located;
use crate::config::error::ConfigError;
use crate::config::servers::{Host, LONGEST_SOCKET, MOST_SERVERS, Server, Transfer};

impl Reader<'_> {
    /// Each `[[server]]`, else the local socket if there is one, as clamonacc has
    /// it, else each TCP address. Where onacc.toml says anything of these,
    /// clamd.conf's servers are not used.
    pub(super) fn servers(&mut self) -> Vec<Located<Server>> {
        let names = ["LocalSocket", "TCPAddr", "TCPSocket"];
        let native = &self.sources.native;
        let says_any = !native.servers.is_empty()
            || native
                .parsed
                .entries
                .iter()
                .any(|entry| names.contains(&entry.name));
        if says_any {
            let entries = &mut self.sources.clamd_conf.entries;
            entries.retain(|entry| !names.contains(&entry.name));
        }
        let mut servers = self.named_servers();
        if self.flag("Stream", false) {
            for server in &mut servers {
                server.value.transfer = Transfer::Stream;
            }
        }
        servers
    }

    fn named_servers(&mut self) -> Vec<Located<Server>> {
        let tables = std::mem::take(&mut self.sources.native.servers);
        if !tables.is_empty() {
            return self.unique(tables);
        }
        if let Some(socket) = self.texts("LocalSocket").into_iter().next() {
            return self.local_server(&socket).into_iter().collect();
        }
        let port = self.numbers("TCPSocket").into_iter().next();
        let addresses = self.texts("TCPAddr");
        let Some(port) = port else {
            self.errors.push(match addresses.first() {
                Some(address) => ConfigError::NoTcpPort {
                    at: address.place(),
                },
                None => ConfigError::NoServer {
                    file: main_file(&self.sources).to_owned(),
                },
            });
            return Vec::new();
        };
        let number = match u16::try_from(port.value) {
            Ok(number) if number > 0 => number,
            _ => {
                let found = port.value.to_string();
                self.errors.push(bad(
                    &port,
                    found.as_bytes(),
                    "a TCP port",
                    "write a number from 1 to 65535",
                ));
                return Vec::new();
            }
        };
        if addresses.is_empty() {
            self.errors
                .push(ConfigError::NoTcpAddress { at: port.place() });
            return Vec::new();
        }
        let mut servers = Vec::new();
        for address in &addresses {
            if let Some(host) = self.tcp_host(address) {
                servers.push(address.with(Server::tcp(host, number)));
            }
        }
        self.unique(servers)
    }

    fn unique(&mut self, named: Vec<Located<Server>>) -> Vec<Located<Server>> {
        let mut servers: Vec<Located<Server>> = Vec::new();
        for server in named {
            let same = |known: &Located<Server>| known.value.address == server.value.address;
            if servers.iter().any(same) {
                self.warnings.push(format!(
                    "{server}: {} is named twice, ignored",
                    server.value
                ));
            } else if servers.len() == MOST_SERVERS {
                self.warnings.push(format!(
                    "{server}: {} is not used; name at most {MOST_SERVERS} addresses",
                    server.value
                ));
            } else {
                servers.push(server);
            }
        }
        servers
    }

    fn local_server(&mut self, socket: &Located<OsString>) -> Option<Located<Server>> {
        let path = self.absolute(socket, "write the whole path of the socket, from / on")?;
        if path.value.as_os_str().len() > LONGEST_SOCKET {
            self.errors.push(bad(
                socket,
                socket.value.as_bytes(),
                "short enough for a socket",
                "choose a path of at most 107 bytes, for clamd too",
            ));
            return None;
        }
        Some(path.with(Server::unix(path.value.clone())))
    }

    /// clamd listens on an address, and may listen on all; we need one to call.
    fn tcp_host(&mut self, address: &Located<OsString>) -> Option<Host> {
        let host = address.value.to_str().and_then(|text| text.parse().ok());
        let host = host.filter(Host::is_callable);
        if host.is_none() {
            self.errors.push(bad(
                address,
                address.value.as_bytes(),
                "an address that can be called",
                "write the IP address or the name of the machine that clamd runs on, for this one 127.0.0.1",
            ));
        }
        host
    }
}
