//! TLS of the load's clients.
//!
//! They make a handshake as any client does, and then open and seal records with the gateway's own record layer. What
//! they leave out is to verify the certificate: that costs the client alone, and both ends are programs of this bench.

mod handshake;
mod identity;

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use clap::{Args, ValueEnum};
use rustls::{
    CipherSuite, ClientConfig, DigitallySignedStruct, NamedGroup, SignatureScheme,
    client::{
        ClientSessionStore, Resumption, Tls12ClientSessionValue, Tls13ClientSessionValue,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{
        CryptoProvider,
        aws_lc_rs::{default_provider, kx_group},
    },
    pki_types::{CertificateDer, ServerName, UnixTime},
    version::TLS13,
};
use serde::Serialize;

use crate::failure::Failure;

pub(crate) use handshake::{Handshake, Progress, TicketTaker, is_ticket};
pub(crate) use identity::Identity;

/// The name that clients ask for, and the certificate is for.
const SERVER_NAME: &str = "localhost";

/// Tickets kept at most; each takes about a kilobyte.
const TICKETS_MAX: usize = 200_000;

/// A cipher of TLS 1.3.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Cipher {
    /// AES-128-GCM, which a gateway takes if it is offered
    #[default]
    Aes128,
    /// AES-256-GCM
    Aes256,
    /// ChaCha20-Poly1305
    Chacha20,
}

/// A key exchange.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Group {
    /// X25519 and ML-KEM-768 together, as browsers have it
    #[default]
    X25519mlkem768,
    /// X25519 alone
    X25519,
}

/// How clients over TLS make their handshakes.
#[derive(Clone, Copy, Debug, Default, Args, Serialize)]
pub(crate) struct TlsArgs {
    /// Over TLS: the one cipher that clients offer
    #[arg(long, value_name = "CIPHER", default_value = "aes128")]
    tls_cipher: Cipher,
    /// Over TLS: the one key exchange that clients offer
    #[arg(long, value_name = "GROUP", default_value = "x25519mlkem768")]
    tls_group: Group,
}

/// What clients speak within TLS, as they tell the server with ALPN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Within {
    /// Native frames.
    Frames,
    /// HTTP, to become WebSockets.
    Http,
    /// Another server's protocol, of which ALPN knows nothing.
    Other(Greeting),
}

/// What a server says in clear before a handshake may begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Greeting {
    /// Nothing.
    None,
    /// A line, as NATS does.
    Line,
}

impl Greeting {
    /// What is left of what a server has said, behind its greeting; `None` while that is not whole.
    pub(crate) fn behind(self, said: &[u8]) -> Option<&[u8]> {
        match self {
            Greeting::None => Some(said),
            Greeting::Line => said.iter().position(|byte| *byte == b'\n').map(|end| &said[end + 1..]),
        }
    }
}

/// What the handshakes of many clients have in common.
#[derive(Debug)]
pub(crate) struct TlsClient {
    greeting: Greeting,
    config: Arc<ClientConfig>,
    tickets: Arc<Tickets>,
}

impl TlsClient {
    /// Clients that make full handshakes, until they are told otherwise.
    pub(crate) fn new(args: TlsArgs, within: Within) -> Arc<TlsClient> {
        let tickets = Arc::new(Tickets::default());
        let mut provider = default_provider();
        let wanted = match args.tls_cipher {
            Cipher::Aes128 => CipherSuite::TLS13_AES_128_GCM_SHA256,
            Cipher::Aes256 => CipherSuite::TLS13_AES_256_GCM_SHA384,
            Cipher::Chacha20 => CipherSuite::TLS13_CHACHA20_POLY1305_SHA256,
        };
        provider.cipher_suites.retain(|offered| offered.suite() == wanted);
        provider.kx_groups = match args.tls_group {
            Group::X25519mlkem768 => vec![kx_group::X25519MLKEM768],
            Group::X25519 => vec![kx_group::X25519],
        };
        // Peers of other projects may know no post-quantum key exchange.
        let greeting = if let Within::Other(greeting) = within { greeting } else { Greeting::None };
        if matches!(within, Within::Other(_)) {
            provider.kx_groups = vec![kx_group::X25519];
        }
        let verifier = Arc::new(NothingVerified(provider.clone()));
        let builder = ClientConfig::builder_with_provider(Arc::new(provider)).with_protocol_versions(&[&TLS13]);
        let builder = builder.expect("TLS 1.3 goes with its suites and groups");
        let mut config = builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth();
        config.alpn_protocols = match within {
            Within::Frames => vec![b"trunkline/1".to_vec()],
            Within::Http => vec![b"http/1.1".to_vec()],
            Within::Other(_) => Vec::new(),
        };
        config.resumption = Resumption::store(tickets.clone());
        config.enable_secret_extraction = true;
        config.key_log = Arc::new(handshake::CatchSecrets);
        Arc::new(TlsClient { greeting, config: Arc::new(config), tickets })
    }

    /// What servers say before a handshake.
    pub(crate) fn greeting(&self) -> Greeting {
        self.greeting
    }

    /// From now on clients keep the tickets they get, or they do not.
    pub(crate) fn keep_tickets(&self, keep: bool) {
        self.tickets.keep.store(keep, Ordering::Relaxed);
    }

    /// From now on clients resume earlier sessions with the tickets there are, or they do not.
    pub(crate) fn resume(&self, resume: bool) {
        self.tickets.offer.store(resume, Ordering::Relaxed);
    }

    /// Tickets that are kept.
    pub(crate) fn tickets(&self) -> usize {
        self.tickets.kept().len()
    }

    /// What a client sends first, for connections that go no further.
    pub(crate) fn hello(&self) -> Result<Vec<u8>, Failure> {
        let mut out = Vec::new();
        let begun = Handshake::new(self).and_then(|mut handshake| handshake.step(&mut Vec::new(), &mut out));
        begun.map_err(Failure::Setup)?;
        Ok(out)
    }

    fn keeps_tickets(&self) -> bool {
        self.tickets.keep.load(Ordering::Relaxed)
    }

    fn of_rustls(&self) -> (Arc<ClientConfig>, ServerName<'static>) {
        let name = ServerName::try_from(SERVER_NAME).expect("it is a name");
        (self.config.clone(), name)
    }
}

/// Tickets that were kept. Each serves one handshake.
#[derive(Debug, Default)]
struct Tickets {
    keep: AtomicBool,
    offer: AtomicBool,
    kept: Mutex<Vec<Tls13ClientSessionValue>>,
}

impl Tickets {
    fn kept(&self) -> MutexGuard<'_, Vec<Tls13ClientSessionValue>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ClientSessionStore for Tickets {
    fn set_kx_hint(&self, _: ServerName<'static>, _: NamedGroup) {}

    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        None
    }

    fn set_tls12_session(&self, _: ServerName<'static>, _: Tls12ClientSessionValue) {}

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        None
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {}

    fn insert_tls13_ticket(&self, _: ServerName<'static>, value: Tls13ClientSessionValue) {
        let mut kept = self.kept();
        if kept.len() < TICKETS_MAX {
            kept.push(value);
        }
    }

    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        if self.offer.load(Ordering::Relaxed) { self.kept().pop() } else { None }
    }
}

/// Takes any certificate; see the module.
#[derive(Debug)]
struct NothingVerified(CryptoProvider);

impl ServerCertVerifier for NothingVerified {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
