//! TLS for an HTTP API: the certificate in force, which another may replace while the server runs.

use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// How long a handshake may take: as long as the header of a request.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// The first byte of a record that begins a handshake (RFC 8446, section 5.1).
const HANDSHAKE: u8 = 22;
/// Bytes of such a request that are read and thrown away.
const REQUEST_BYTES_MAX: u64 = 16 << 10;
/// Said to who speaks HTTP to a port of HTTPS, as a browser does when an address is typed without its scheme.
const SPEAK_TLS: &[u8] = b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n\
    this API speaks TLS: ask with https:// in front of its address\n";

/// A certificate with the key that belongs to it, checked.
#[derive(Clone, Debug)]
pub struct HttpIdentity(Arc<ServerConfig>);

impl HttpIdentity {
    /// From the texts (PEM) of two files: the certificate, with those that signed it behind it, and its key.
    ///
    /// # Errors
    /// What is wrong with them, in words that fit behind the name of the files.
    pub fn parse(chain: &[u8], key: &[u8]) -> Result<Self, String> {
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(chain)
            .collect::<Result<_, _>>()
            .map_err(|error| format!("the certificate cannot be read: {error}"))?;
        if chain.is_empty() {
            return Err("there is no certificate in PEM (-----BEGIN CERTIFICATE-----)".to_owned());
        }
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| format!("the key cannot be read: {error}"))?;
        let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .map_err(|error| format!("certificate and key cannot be used together: {error}"))?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(HttpIdentity(Arc::new(config)))
    }
}

/// The certificate in force of a server.
#[derive(Debug)]
pub struct HttpTls(Mutex<HttpIdentity>);

impl HttpTls {
    /// Begins with this one.
    #[must_use]
    pub fn new(identity: HttpIdentity) -> Arc<Self> {
        Arc::new(HttpTls(Mutex::new(identity)))
    }

    /// Shows another to whoever connects from now on. Connections that are there go on.
    pub fn replace(&self, identity: HttpIdentity) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = identity;
    }

    /// The handshake of a connection that was accepted.
    pub(super) async fn accept(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let config = self.0.lock().unwrap_or_else(PoisonError::into_inner).0.clone();
        let handshake = async move {
            let mut stream = stream;
            let mut first = [HANDSHAKE];
            // At its end there is nothing, and the handshake says so.
            stream.peek(&mut first).await?;
            if first[0] != HANDSHAKE {
                stream.write_all(SPEAK_TLS).await?;
                stream.shutdown().await?;
                // To close over what was not read would take the answer back.
                let mut rest = stream.take(REQUEST_BYTES_MAX);
                tokio::io::copy(&mut rest, &mut tokio::io::sink()).await?;
                return Err(io::Error::other("it did not begin with TLS"));
            }
            TlsAcceptor::from(config).accept(stream).await
        };
        timeout(HANDSHAKE_TIMEOUT, handshake).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }
}
