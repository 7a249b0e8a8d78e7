//! TLS for an HTTP API: the certificate in force, which another may replace while the server runs, and those that
//! callers may show.

use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
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

/// How a caller's certificate (subjectAltName) names the line of the keys file that says what its holder may do.
const KEY_URI: &str = "urn:trunkline:key:";

/// A certificate with the key that belongs to it, checked.
#[derive(Clone, Debug)]
pub struct HttpIdentity(Arc<ServerConfig>);

/// The id of a key that the certificate of a connection names, put into each of its requests by the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CertifiedKey(pub(super) Arc<str>);

impl HttpIdentity {
    /// From the texts (PEM) of files: the certificate, with those that signed it behind it, and its key. With
    /// `client_ca`, the certificates of those who sign for callers, a caller may show one, and has the rights of the
    /// key that it names; one that does not hold ends the handshake.
    ///
    /// # Errors
    /// What is wrong with them, in words that fit behind the name of the files.
    pub fn parse(chain: &[u8], key: &[u8], client_ca: Option<&[u8]>) -> Result<Self, String> {
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(chain)
            .collect::<Result<_, _>>()
            .map_err(|error| format!("the certificate cannot be read: {error}"))?;
        if chain.is_empty() {
            return Err("there is no certificate in PEM (-----BEGIN CERTIFICATE-----)".to_owned());
        }
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| format!("the key cannot be read: {error}"))?;
        let provider = Arc::new(default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?;
        let builder = match client_ca {
            None => builder.with_no_client_auth(),
            Some(ca) => {
                let verifier = WebPkiClientVerifier::builder_with_provider(roots(ca)?, provider);
                let verifier = verifier.allow_unauthenticated().build();
                builder.with_client_cert_verifier(verifier.map_err(|error| error.to_string())?)
            }
        };
        let mut config = builder
            .with_single_cert(chain, key)
            .map_err(|error| format!("certificate and key cannot be used together: {error}"))?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        if client_ca.is_some() {
            // What is resumed brings the caller's certificate along unverified: it may have run out, and who signed it
            // may be trusted no more.
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.send_tls13_tickets = 0;
        }
        Ok(HttpIdentity(Arc::new(config)))
    }
}

fn roots(ca: &[u8]) -> Result<Arc<RootCertStore>, String> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca) {
        let certificate = certificate.map_err(|error| format!("who signs for callers cannot be read: {error}"))?;
        roots.add(certificate).map_err(|error| format!("who signs for callers cannot be trusted: {error}"))?;
    }
    if roots.is_empty() {
        return Err("of those who sign for callers there is no certificate in PEM".to_owned());
    }
    Ok(Arc::new(roots))
}

/// The key that the certificate of a caller names, if it shows one that does.
pub(super) fn certified_key(stream: &TlsStream<TcpStream>) -> Option<CertifiedKey> {
    let certificate = stream.get_ref().1.peer_certificates()?.first()?;
    let parsed = webpki::EndEntityCert::try_from(certificate).ok()?;
    let id = parsed.valid_uri_names().find_map(|uri| uri.strip_prefix(KEY_URI))?;
    Some(CertifiedKey(id.into()))
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
