//! What all handshakes of a node have in common.

use super::certificates::{Certificates, provider};
use super::handshake::{CatchSecrets, StepClock, step_now_s};
use super::tickets::{TicketSecret, Tickets};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::version::{TLS12, TLS13};
use rustls::{RootCertStore, ServerConfig};
use sha2::{Digest, Sha256};
use std::sync::Arc;

/// The application protocol of native frames.
pub(super) const ALPN_NATIVE: &[u8] = b"trunkline/1";
/// That of WebSockets.
pub(super) const ALPN_HTTP: &[u8] = b"http/1.1";

/// Who signs the certificates of clients, and which of those do not count any more.
#[derive(Clone, Debug)]
pub struct ClientCa {
    verifier: Arc<dyn ClientCertVerifier>,
    mark: [u8; 32],
}

impl ClientCa {
    /// Those whose certificates stand in a PEM text, at least one, and the revocation lists that stand there too. Who
    /// has no list there has revoked nothing, and a list that is out of date counts on.
    ///
    /// # Errors
    /// What is wrong with the text.
    pub fn parse(pem: &[u8]) -> Result<Self, String> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(pem) {
            let certificate = certificate.map_err(|error| error.to_string())?;
            roots.add(certificate).map_err(|error| error.to_string())?;
        }
        if roots.is_empty() {
            return Err("it holds no certificate in PEM (-----BEGIN CERTIFICATE-----)".to_owned());
        }
        let lists: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(pem).collect();
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::new(provider()))
            .with_crls(lists.map_err(|error| error.to_string())?)
            .only_check_end_entity_revocation()
            .allow_unknown_revocation_status()
            .allow_unauthenticated()
            .build();
        let verifier = verifier.map_err(|error| error.to_string())?;
        Ok(ClientCa { verifier, mark: Sha256::digest(pem).into() })
    }
}

/// Certificates and rules for handshakes.
#[derive(Debug)]
pub struct Acceptor {
    pub(super) config: Arc<ServerConfig>,
    certificates: Arc<Certificates>,
}

impl Acceptor {
    /// Shows these certificates, and asks clients for theirs if it is said who signs those.
    ///
    /// # Errors
    /// When that does not go together, and why.
    pub fn new(
        certificates: Certificates,
        client_ca: Option<&ClientCa>,
        tickets: &TicketSecret,
    ) -> Result<Self, String> {
        let certificates = Arc::new(certificates);
        let builder = ServerConfig::builder_with_details(Arc::new(provider()), Arc::new(StepClock))
            .with_protocol_versions(&[&TLS13, &TLS12])
            .map_err(|error| error.to_string())?;
        let builder = match client_ca {
            None => builder.with_no_client_auth(),
            Some(ca) => builder.with_client_cert_verifier(ca.verifier.clone()),
        };
        let mut config = builder.with_cert_resolver(certificates.clone());
        config.ignore_client_order = true;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        let context = client_ca.map_or([0; 32], |ca| ca.mark);
        config.ticketer = Arc::new(Tickets::new(tickets.clone(), context, step_now_s));
        config.send_tls13_tickets = 1;
        config.alpn_protocols = vec![ALPN_NATIVE.to_vec(), ALPN_HTTP.to_vec()];
        config.max_early_data_size = 0;
        // Keys leave rustls when the handshake is over, and the secrets they came from are caught on the way: see
        // `handshake`.
        config.enable_secret_extraction = true;
        config.key_log = Arc::new(CatchSecrets);
        Ok(Acceptor { config: Arc::new(config), certificates })
    }

    /// The certificates.
    pub fn certificates(&self) -> &Certificates {
        &self.certificates
    }
}
