//! The tables of onacc.toml that come many times: `[[server]]` and `[[path]]`.

use std::collections::HashMap;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use toml::de::{DeTable, DeValue};

use super::{Reader, TomlKey, TomlValue};
use crate::config::entry::{Located, Value};
use crate::config::error::{ConfigError, Place, shown};
use crate::config::keys;
use crate::config::servers::{self, LARGEST_WEIGHT, Server, Tls, Transfer};
use crate::config::settings::PathRule;

/// The values of one table, by key.
type Values = HashMap<&'static str, Located<Value>>;

impl Reader<'_> {
    pub(super) fn many_tables(
        &mut self,
        table: &'static str,
        name: &TomlKey<'_>,
        value: &TomlValue<'_>,
    ) {
        let DeValue::Array(items) = value.get_ref() else {
            let wanted = format!("[[{table}]]");
            self.wrong_type(name.get_ref(), value.span(), value.get_ref(), wanted);
            return;
        };
        for item in items {
            let DeValue::Table(entries) = item.get_ref() else {
                let wanted = format!("[[{table}]]");
                self.wrong_type(name.get_ref(), item.span(), item.get_ref(), wanted);
                continue;
            };
            let before = self.native.parsed.errors.len();
            let values = self.values(table, entries);
            if self.native.parsed.errors.len() > before {
                continue;
            }
            let at = self.place(table, item.span().start);
            let result = match table {
                "server" => server(values, at).map(|server| self.native.servers.push(server)),
                _ => path_rule(values, at).map(|rule| self.native.path_rules.push(rule)),
            };
            if let Err(error) = result {
                self.error(error);
            }
        }
    }

    fn values(&mut self, table: &'static str, entries: &DeTable<'_>) -> Values {
        let mut values = Values::new();
        for (name, value) in entries {
            match keys::find(table, name.get_ref()) {
                None => self.unknown_key(table, name),
                Some(key) => {
                    if let Some(value) = self.typed(key, value) {
                        values.insert(key.name, value);
                    }
                }
            }
        }
        values
    }
}

fn path_rule(mut values: Values, at: Place) -> Result<Located<PathRule>, ConfigError> {
    let Some(path) = path(&mut values, "Path")? else {
        let problem = "Path is missing; name the directory or file that the table is about";
        return Err(ConfigError::Conflict { at, problem });
    };
    let rule = PathRule {
        path: path.value.clone(),
        deny_on_error: flag(&mut values, "OnAccessDenyOnError"),
        max_file_size: match values.remove("OnAccessMaxFileSize").map(|size| size.value) {
            Some(Value::Size(size)) => Some(size),
            _ => None,
        },
    };
    Ok(path.with(rule))
}

fn server(mut values: Values, at: Place) -> Result<Located<Server>, ConfigError> {
    let conflict = |at: Place, problem| Err(ConfigError::Conflict { at, problem });
    let Some(address) = values.remove("Address") else {
        return conflict(
            at,
            "Address is missing; write the path of a socket or HOST:PORT",
        );
    };
    let address = address.with(server_at(&address)?);
    let local = matches!(address.value.address, servers::Address::Unix(_));
    let mut server = address.value.clone();
    if let Some(weight) = values.remove("Weight") {
        let Value::Number(number) = weight.value else {
            unreachable!("the table gives a weight its kind");
        };
        match u32::try_from(number) {
            Ok(value) if (1..=LARGEST_WEIGHT).contains(&value) => server.weight = value,
            _ => {
                return Err(ConfigError::BadValue {
                    at: weight.place(),
                    found: number.to_string(),
                    wanted: "a weight",
                    remedy: "write a number from 1 to 10000",
                });
            }
        }
    }
    if flag(&mut values, "Stream") == Some(true) {
        server.transfer = Transfer::Stream;
    }
    let tls = values.remove("TLS");
    let tls_on = matches!(&tls, Some(tls) if tls.value == Value::Bool(true));
    let server_name = text(&mut values, "ServerName")?;
    let (ca, certificate, key) = (
        path(&mut values, "CAFile")?,
        path(&mut values, "CertificateFile")?,
        path(&mut values, "KeyFile")?,
    );
    if !tls_on {
        let stray = [&ca, &certificate, &key].into_iter().flatten().next();
        if let Some(stray) = stray {
            return conflict(stray.place(), "this needs TLS = true in the same table");
        }
        if let Some(name) = server_name {
            return conflict(name.place(), "this needs TLS = true in the same table");
        }
        return Ok(address.with(server));
    }
    if let (Some(tls), true) = (&tls, local) {
        return conflict(tls.place(), "a Unix socket takes no TLS; remove this line");
    }
    match (&certificate, &key) {
        (Some(certificate), None) => {
            return conflict(
                certificate.place(),
                "KeyFile is missing; name the certificate's key",
            );
        }
        (None, Some(key)) => {
            let problem = "CertificateFile is missing; name the key's certificate";
            return conflict(key.place(), problem);
        }
        _ => {}
    }
    server.tls = Some(Tls {
        server_name: server_name.map(|name| name.value),
        ca: ca.map(|path| path.value),
        certificate: certificate.map(|path| path.value),
        key: key.map(|path| path.value),
    });
    Ok(address.with(server))
}

/// The server that an address names.
fn server_at(address: &Located<Value>) -> Result<Server, ConfigError> {
    let Value::Text(written) = &address.value else {
        unreachable!("the table gives an address its kind");
    };
    let bad = |wanted, remedy| ConfigError::BadValue {
        at: address.place(),
        found: shown(written.as_bytes()),
        wanted,
        remedy,
    };
    if written.as_bytes().starts_with(b"/") {
        if written.len() > servers::LONGEST_SOCKET {
            let remedy = "choose a path of at most 107 bytes, for clamd too";
            return Err(bad("short enough for a socket", remedy));
        }
        return Ok(Server::unix(PathBuf::from(written)));
    }
    let parts = written.to_str().and_then(|text| text.rsplit_once(':'));
    let parsed = parts.and_then(|(host, port)| {
        let port: u16 = port.parse().ok().filter(|port| *port > 0)?;
        let host = host.parse().ok().filter(servers::Host::is_callable)?;
        Some(Server::tcp(host, port))
    });
    parsed.ok_or_else(|| {
        bad(
            "an address that can be called",
            "write the whole path of a socket, or HOST:PORT, for example 127.0.0.1:3310",
        )
    })
}

fn flag(values: &mut Values, name: &str) -> Option<bool> {
    match values.remove(name)?.value {
        Value::Bool(flag) => Some(flag),
        _ => None,
    }
}

fn text(values: &mut Values, name: &str) -> Result<Option<Located<String>>, ConfigError> {
    let Some(value) = values.remove(name) else {
        return Ok(None);
    };
    match &value.value {
        Value::Text(text) => match text.to_str() {
            Some(text) => Ok(Some(value.with(text.to_owned()))),
            None => Err(ConfigError::NulByte { at: value.place() }),
        },
        _ => Ok(None),
    }
}

fn path(values: &mut Values, name: &str) -> Result<Option<Located<PathBuf>>, ConfigError> {
    let Some(value) = values.remove(name) else {
        return Ok(None);
    };
    let Value::Text(written) = &value.value else {
        return Ok(None);
    };
    if written.as_bytes().starts_with(b"/") {
        return Ok(Some(value.with(PathBuf::from(written))));
    }
    Err(ConfigError::BadValue {
        at: value.place(),
        found: shown(written.as_bytes()),
        wanted: "an absolute path",
        remedy: "write the whole path, from / on",
    })
}
