//! TLS as a client: from the settings to what a connection needs.
//!
//! Must not: do I/O but for reading the configured files, once, at start. The
//! connection itself is rustls without I/O of its own, driven by `wire`. Tested
//! by `tests/` against a real TLS proxy.

use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};

use super::error::TlsError;
use crate::config::servers::{Host, Tls};

/// What each connection to one server starts from.
#[derive(Clone, Debug)]
pub struct TlsClient {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
}

impl TlsClient {
    /// Reads certificates and key.
    ///
    /// # Errors
    /// A file that cannot be used, or a name that cannot be.
    pub fn new(tls: &Tls, host: &Host) -> Result<Self, TlsError> {
        let name = tls.server_name.clone().unwrap_or_else(|| host.name());
        let name = ServerName::try_from(name.clone()).map_err(|_| TlsError::ServerName(name))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(authorities(tls.ca.as_deref())?);
        let config = match (&tls.certificate, &tls.key) {
            (Some(certificate), Some(key)) => {
                let chain = certificates(certificate)?;
                let key_of =
                    PrivateKeyDer::from_pem_file(key).map_err(|source| pem(key, source))?;
                builder
                    .with_client_auth_cert(chain, key_of)
                    .map_err(TlsError::Client)?
            }
            _ => builder.with_no_client_auth(),
        };
        Ok(Self {
            config: Arc::new(config),
            name,
        })
    }

    /// A connection that has not begun.
    ///
    /// # Errors
    /// The settings do not go together.
    pub fn connection(&self) -> Result<ClientConnection, rustls::Error> {
        ClientConnection::new(Arc::clone(&self.config), self.name.clone())
    }
}

fn authorities(ca: Option<&Path>) -> Result<RootCertStore, TlsError> {
    let mut store = RootCertStore::empty();
    if let Some(path) = ca {
        for certificate in certificates(path)? {
            store.add(certificate)?;
        }
        return Ok(store);
    }
    let found = rustls_native_certs::load_native_certs();
    // One that is malformed is left out; the others still serve.
    let (_added, _left_out) = store.add_parsable_certificates(found.certs);
    if store.is_empty() {
        let why = found
            .errors
            .first()
            .map_or_else(|| "none was found".to_owned(), ToString::to_string);
        return Err(TlsError::NoAuthorities(why));
    }
    Ok(store)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let all: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|source| pem(path, source))?;
    if all.is_empty() {
        return Err(TlsError::Missing {
            path: path.to_owned(),
            what: "certificate",
        });
    }
    Ok(all)
}

fn pem(path: &Path, source: rustls::pki_types::pem::Error) -> TlsError {
    TlsError::Pem {
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn error(tls: &Tls, host: &str) -> String {
        TlsClient::new(tls, &host.parse().unwrap())
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"not PEM at all\n").unwrap();
        let own_ca = |path: &Path| Tls {
            ca: Some(path.to_owned()),
            ..Tls::default()
        };
        let message = error(&own_ca(Path::new("/nowhere/ca.pem")), "localhost");
        assert!(message.starts_with("/nowhere/ca.pem: "), "{message}");
        let message = error(&own_ca(file.path()), "localhost");
        assert!(message.contains("no certificate"), "{message}");
        let tls = Tls {
            server_name: Some("not a name".into()),
            ..own_ca(file.path())
        };
        assert!(error(&tls, "::1").contains("'not a name' is not a name"));
    }
}
