//! The certificates a node shows, each checked before it is used.

use super::names::Names;
use super::validity::Outline;
use rustls::Error;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use std::fmt;
use std::sync::Arc;

/// A certificate that ends within this time should have been renewed: those who issue them by ACME for 90 days do it 30
/// days before.
const EXPIRES_SOON_DAYS: u64 = 14;

/// A certificate with its key.
#[derive(Clone, Debug)]
pub struct Certificate {
    key: Arc<CertifiedKey>,
    /// The names it is for; the first of them is its name in logs and metrics.
    pub names: Vec<String>,
    /// The last second, since the Unix epoch, in which it holds.
    pub not_after_s: u64,
}

/// The certificates of a node, at least one. The first that a client can verify is for names that none is for, and for
/// clients that name none.
#[derive(Clone, Debug, Default)]
pub struct Certificates {
    all: Vec<Certificate>,
    names: Names,
}

/// Why a pair of certificate and key cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PairError {
    /// The first file holds no certificate.
    NoCertificate,
    /// The second file holds no key.
    NoKey,
    /// A certificate cannot be read; holds which, from 1, and why.
    Unreadable(usize, String),
    /// The certificate with that number is not signed by the one behind it.
    OutOfOrder(usize),
    /// The key is of a kind that is not spoken here, or cannot be read.
    BadKey(String),
    /// The key is that of another certificate.
    OtherKey,
    /// It does not hold any more; seconds since then.
    Expired(u64),
    /// It does not hold yet; seconds until then.
    NotYet(u64),
}

impl fmt::Display for PairError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PairError::NoCertificate => f.write_str("it holds no certificate in PEM (-----BEGIN CERTIFICATE-----)"),
            PairError::NoKey => f.write_str(
                "it holds no private key in PEM; one with a passphrase has to be written without it: \
                 openssl pkey -in with.pem -out without.pem",
            ),
            PairError::Unreadable(number, why) => write!(f, "its certificate {number} cannot be read: {why}"),
            PairError::OutOfOrder(number) => write!(
                f,
                "its certificate {number} is not signed by the one behind it: the node's own certificate comes first, \
                 then each that signed the one before"
            ),
            PairError::BadKey(why) => write!(f, "the key cannot be used: {why}"),
            PairError::OtherKey => f.write_str("the key belongs to another certificate"),
            PairError::Expired(ago_s) => write!(f, "the certificate expired {} ago", Days(*ago_s)),
            PairError::NotYet(in_s) => write!(f, "the certificate is not valid before {} from now", Days(*in_s)),
        }
    }
}

impl std::error::Error for PairError {}

impl PairError {
    /// Whether it is about the file of the key.
    pub fn is_of_key(&self) -> bool {
        matches!(self, PairError::NoKey | PairError::BadKey(_) | PairError::OtherKey)
    }
}

/// Seconds as a person reads them.
struct Days(u64);

impl fmt::Display for Days {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 / 86_400 {
            0 => write!(f, "{} s", self.0),
            days => write!(f, "{days} d"),
        }
    }
}

impl Certificates {
    /// Adds one, whose chain and key stand in these PEM texts, if it can be used at that second since the Unix epoch.
    ///
    /// # Errors
    /// Why it cannot be used.
    pub fn add(&mut self, chain: &[u8], key: &[u8], now_s: u64) -> Result<(), PairError> {
        let mut certificates = Vec::new();
        for (at, certificate) in CertificateDer::pem_slice_iter(chain).enumerate() {
            certificates.push(certificate.map_err(|error| PairError::Unreadable(at + 1, error.to_string()))?);
        }
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| PairError::NoKey)?;
        let outlines = outlines(&certificates)?;
        let Some(outline) = outlines.first() else { return Err(PairError::NoCertificate) };
        let (not_before_s, not_after_s) = (outline.not_before_s, outline.not_after_s);
        let unreadable = |why: String| PairError::Unreadable(1, why);
        let names: Vec<String> = {
            let parsed =
                webpki::EndEntityCert::try_from(&certificates[0]).map_err(|error| unreadable(error.to_string()))?;
            parsed.valid_dns_names().map(str::to_owned).collect()
        };
        let key = CertifiedKey::from_der(certificates, key, &provider()).map_err(|error| match error {
            Error::InconsistentKeys(_) => PairError::OtherKey,
            error => PairError::BadKey(error.to_string()),
        })?;
        if not_after_s < now_s {
            return Err(PairError::Expired(now_s - not_after_s));
        }
        if not_before_s > now_s {
            return Err(PairError::NotYet(not_before_s - now_s));
        }
        let place = self.all.len();
        names.iter().for_each(|name| self.names.add(name, place));
        self.all.push(Certificate { key: Arc::new(key), names, not_after_s });
        Ok(())
    }

    /// Says in the log what there is, and warns of what ends soon. `now_s`: seconds since the Unix epoch.
    pub fn tell(&self, now_s: u64) {
        for certificate in &self.all {
            let days = certificate.not_after_s.saturating_sub(now_s) / 86_400;
            let names = certificate.names.join(", ");
            if days < EXPIRES_SOON_DAYS {
                tracing::warn!("TLS certificate for {names} expires in {days} d");
            } else {
                tracing::info!("TLS certificate for {names}, for another {days} d");
            }
        }
    }

    /// All of them, in the order in which they were added.
    pub fn all(&self) -> &[Certificate] {
        &self.all
    }

    /// The one for a name that a client can verify with these kinds of signatures; where it can verify none, the first.
    fn choose(&self, name: Option<&str>, verifies: impl Fn(&CertifiedKey) -> bool) -> Option<Arc<CertifiedKey>> {
        let named = name.map_or(&[][..], |name| self.names.find(name));
        let mut candidates: Vec<&Certificate> = named.iter().filter_map(|place| self.all.get(*place)).collect();
        if candidates.is_empty() {
            candidates = self.all.iter().collect();
        }
        let found = candidates.iter().find(|certificate| verifies(&certificate.key)).or(candidates.first())?;
        Some(found.key.clone())
    }
}

/// Each certificate is signed by the one behind it.
fn outlines<'a>(certificates: &'a [CertificateDer<'static>]) -> Result<Vec<Outline<'a>>, PairError> {
    let mut outlines: Vec<Outline<'a>> = Vec::new();
    for (at, certificate) in certificates.iter().enumerate() {
        let unreadable = || PairError::Unreadable(at + 1, "it is no X.509 certificate".to_owned());
        let outline = Outline::of(certificate).ok_or_else(unreadable)?;
        if outlines.last().is_some_and(|before| before.issuer != outline.subject) {
            return Err(PairError::OutOfOrder(at));
        }
        outlines.push(outline);
    }
    Ok(outlines)
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let schemes = hello.signature_schemes();
        self.choose(hello.server_name(), |key| key.key.choose_scheme(schemes).is_some())
    }
}

/// The ciphers, signatures and key exchanges that are spoken here, in the order in which they are preferred: AES-128 is
/// the fastest, and a handshake with SHA-384 costs a third more.
pub(super) fn provider() -> CryptoProvider {
    use rustls::crypto::aws_lc_rs::{cipher_suite as suite, default_provider, kx_group};
    CryptoProvider {
        cipher_suites: vec![
            suite::TLS13_AES_128_GCM_SHA256,
            suite::TLS13_CHACHA20_POLY1305_SHA256,
            suite::TLS13_AES_256_GCM_SHA384,
            suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
            suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
            suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
            suite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
            suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
            suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
        ],
        kx_groups: vec![kx_group::X25519MLKEM768, kx_group::X25519, kx_group::SECP256R1, kx_group::SECP384R1],
        ..default_provider()
    }
}
