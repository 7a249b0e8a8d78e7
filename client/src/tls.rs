//! Connections over TLS.

use std::fmt;
use std::io;
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::addrs::Scheme;
use crate::tcp::{NOT_WITHOUT_WS, unusable};
use crate::{Dial, Tcp};

/// The application protocols of native frames and of a WebSocket.
const ALPN: &[u8] = b"trunkline/1";
const ALPN_HTTP: &[u8] = b"http/1.1";

/// TLS over [`Tcp`]. The certificate of a gateway must be for the host of the address that is dialed, also of one that
/// another gateway has named. An address may say that it is one for TLS: `trunkline+tls://chat.example.com:7700`.
///
/// ```no_run
/// # use trunkline_client::{Client, Config, Tls};
/// # async fn connect() -> Result<(), Box<dyn std::error::Error>> {
/// let tls = Tls::trusting(&std::fs::read("ca.pem")?)?;
/// let config = Config { addrs: vec!["trunkline+tls://chat.example.com:7700".into()], user: 1, ..Config::default() };
/// let (client, events) = Client::connect_with(config, tls).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Tls {
    tcp: Tcp,
    connector: TlsConnector,
    /// The same for HTTP.
    connector_http: TlsConnector,
}

impl Tls {
    /// Trusts those whose certificates stand in a PEM text: authorities, or a gateway's own certificate that it has
    /// signed itself.
    ///
    /// # Errors
    /// When there is no certificate in it, or one that cannot be read.
    pub fn trusting(pem: &[u8]) -> io::Result<Self> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(pem) {
            roots.add(certificate.map_err(invalid)?).map_err(invalid)?;
        }
        if roots.is_empty() {
            return Err(invalid("there is no certificate in PEM (-----BEGIN CERTIFICATE-----)"));
        }
        Tls::with_roots(roots)
    }

    /// Trusts those whom this system trusts.
    ///
    /// # Errors
    /// When it trusts nobody.
    pub fn of_system() -> io::Result<Self> {
        let found = rustls_native_certs::load_native_certs();
        let mut roots = RootCertStore::empty();
        let (usable, _) = roots.add_parsable_certificates(found.certs);
        if usable == 0 {
            return Err(io::Error::new(io::ErrorKind::NotFound, "this system has no certificates of authorities"));
        }
        Tls::with_roots(roots)
    }

    /// With a configuration of the application's, such as one with a certificate of its own. Its application protocols
    /// should be `trunkline/1` or none; for a WebSocket they are replaced by `http/1.1`.
    pub fn with_config(config: Arc<ClientConfig>) -> Self {
        let mut http = ClientConfig::clone(&config);
        http.alpn_protocols = vec![ALPN_HTTP.to_vec()];
        Tls { tcp: Tcp, connector: config.into(), connector_http: Arc::new(http).into() }
    }

    fn with_roots(roots: RootCertStore) -> io::Result<Self> {
        let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()));
        let builder = builder.with_safe_default_protocol_versions().map_err(invalid)?;
        let mut config = builder.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![ALPN.to_vec()];
        Ok(Tls::with_config(Arc::new(config)))
    }
}

fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tls")
    }
}

impl Dial for Tls {
    type Stream = TlsStream<TcpStream>;

    async fn dial(&mut self, addr: &str) -> io::Result<Self::Stream> {
        match Scheme::of(addr) {
            (Scheme::Any | Scheme::Tls, addr) => connect(&mut self.tcp, &self.connector, addr).await,
            (Scheme::Tcp, _) => Err(unusable("trunkline:// is an address without TLS, and this client was given TLS")),
            (Scheme::Ws | Scheme::Wss, _) => Err(unusable(NOT_WITHOUT_WS)),
        }
    }

    async fn dial_http(&mut self, addr: &str) -> io::Result<Self::Stream> {
        match Scheme::of(addr) {
            (Scheme::Tcp | Scheme::Ws, _) => {
                Err(unusable("ws:// is an address without TLS, and this client was given TLS"))
            }
            (_, addr) => connect(&mut self.tcp, &self.connector_http, addr).await,
        }
    }
}

async fn connect(tcp: &mut Tcp, connector: &TlsConnector, addr: &str) -> io::Result<TlsStream<TcpStream>> {
    let name = server_name(addr)?;
    let stream = tcp.dial(addr).await?;
    connector.connect(name, stream).await
}

/// The host of `host:port`, as certificates name it.
fn server_name(addr: &str) -> io::Result<ServerName<'static>> {
    let host = addr.rsplit_once(':').map_or(addr, |(host, _)| host);
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    // The zone of an address is this machine's own matter.
    let host = host.split_once('%').map_or(host, |(host, _)| host);
    ServerName::try_from(host.to_owned()).map_err(invalid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_is_that_of_the_host() {
        for (addr, name) in [
            ("chat.example.com:7700", "chat.example.com"),
            ("127.0.0.1:1", "127.0.0.1"),
            ("[::1]:7700", "::1"),
            ("[fe80::1%eth0]:7700", "fe80::1"),
        ] {
            assert_eq!(server_name(addr).expect("a name").to_str(), name, "{addr}");
        }
        assert!(server_name("a..b:1").is_err());
    }

    #[test]
    fn a_text_without_certificates_is_refused() {
        for text in ["", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            assert_eq!(Tls::trusting(text.as_bytes()).expect_err("refused").kind(), io::ErrorKind::InvalidData);
        }
    }
}
