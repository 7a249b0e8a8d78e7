//! Redis over TLS: whom to trust, and who to be.
//!
//! The provider of the cryptography is named and not the process's default, so that another library in the process with
//! another provider changes nothing here.

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use std::error::Error;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The files of TLS to Redis, all of them PEM.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// Certificates of those who sign for Redis servers; without it those that this system trusts.
    pub ca: Option<PathBuf>,
    /// The certificate to show, for a Redis that asks for one (`tls-auth-clients yes`, its default), with those of its
    /// signers behind it.
    pub cert: Option<PathBuf>,
    /// The key of that certificate.
    pub key: Option<PathBuf>,
}

impl TlsFiles {
    /// Whether any is given.
    #[must_use]
    pub fn is_given(&self) -> bool {
        self.ca.is_some() || self.cert.is_some() || self.key.is_some()
    }
}

/// TLS, ready to be spoken.
#[derive(Clone)]
pub struct Tls(Arc<ClientConfig>);

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tls(…)")
    }
}

impl PartialEq for Tls {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Tls {}

impl Tls {
    /// Reads the files. TLS 1.2 and 1.3; the name or address that is dialed has to be in the server's certificate.
    ///
    /// # Errors
    /// [`TlsError`], which names the file.
    pub fn load(files: &TlsFiles) -> Result<Self, TlsError> {
        let roots = match &files.ca {
            Some(path) => roots_of(path)?,
            None => roots_of_the_system()?,
        };
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| TlsError::new(None, error))?
            .with_root_certificates(roots);
        let config = match (&files.cert, &files.key) {
            (None, None) => builder.with_no_client_auth(),
            (Some(cert), Some(key)) => {
                let chain = certificates(cert)?;
                let secret = PrivateKeyDer::from_pem_file(key).map_err(|error| TlsError::new(Some(key), error))?;
                builder.with_client_auth_cert(chain, secret).map_err(|error| TlsError::new(Some(cert), error))?
            }
            (Some(cert), None) => return Err(TlsError::new(Some(cert), "its key is missing: give --redis-key-file")),
            (None, Some(key)) => {
                return Err(TlsError::new(Some(key), "its certificate is missing: give --redis-cert-file"));
            }
        };
        Ok(Tls(Arc::new(config)))
    }

    pub(super) fn config(&self) -> ClientConfig {
        (*self.0).clone()
    }

    /// The configuration of rustls that it is.
    #[must_use]
    pub fn shared(&self) -> Arc<ClientConfig> {
        self.0.clone()
    }
}

fn roots_of(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|error| TlsError::new(Some(path), error))?;
    }
    Ok(roots)
}

/// Of those that the system trusts, some may be of a kind that cannot be read; one that can be is enough.
fn roots_of_the_system() -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    let (added, _) = roots.add_parsable_certificates(found.certs);
    match added {
        0 => Err(TlsError::new(
            None,
            "this system trusts no signer that could be read: give a file of them (--redis-ca-file for Redis, \
             --node-ca-file for nodes)",
        )),
        _ => Ok(roots),
    }
}

/// At least one.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let failed = |error| TlsError::new(Some(path), error);
    let all: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).map_err(failed)?.collect();
    match all.map_err(failed)? {
        none if none.is_empty() => Err(TlsError::new(Some(path), "there is no certificate in it")),
        some => Ok(some),
    }
}

/// Why TLS cannot be spoken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsError {
    /// The file it is about.
    pub path: Option<PathBuf>,
    /// What is wrong, and what to do if the file does not tell.
    pub detail: String,
}

impl TlsError {
    fn new(path: Option<&Path>, detail: impl fmt::Display) -> Self {
        TlsError { path: path.map(Path::to_owned), detail: detail.to_string() }
    }
}

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.path {
            Some(path) => write!(f, "{}: {}", path.display(), self.detail),
            None => f.write_str(&self.detail),
        }
    }
}

impl Error for TlsError {}
