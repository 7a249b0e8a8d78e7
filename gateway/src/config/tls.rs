//! TLS on the ports for clients: from the settings to certificates that were checked.

use super::resolve::Judge;
use super::{ConfigError, Settings, read_key};
use crate::clock::wall_s;
use crate::transport::tls::{Certificates, ClientCa, PairError};
use std::path::{Path, PathBuf};
use trunkline_router::http::HttpIdentity;

/// Settings that name files of TLS.
pub(crate) const TLS_FILE_KEYS: [&str; 6] =
    ["tls_cert", "tls_key", "tls_client_ca", "http_tls_cert", "http_tls_key", "http_tls_client_ca"];

/// Certificates a node may have.
const PAIRS_MAX: usize = 256;

/// TLS, before files are read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsConfig {
    /// Files with a certificate, and those with its key; one pair at least.
    pub pairs: Vec<(PathBuf, PathBuf)>,
    /// File with the certificates of those who sign clients' certificates.
    pub client_ca: Option<PathBuf>,
    /// Whether every connection has to begin with TLS.
    pub required: bool,
}

/// What the files of a [`TlsConfig`] hold, checked.
#[derive(Clone, Debug)]
pub struct TlsMaterial {
    /// The certificates of the node.
    pub certificates: Certificates,
    /// Who signs those of clients.
    pub client_ca: Option<ClientCa>,
}

impl TlsConfig {
    /// Reads and checks all files.
    ///
    /// # Errors
    /// Every file that cannot be used, and why.
    pub fn load(&self) -> Result<TlsMaterial, ConfigError> {
        let now_s = wall_s();
        let (mut certificates, mut faults) = (Certificates::default(), Vec::new());
        let unusable = |path: &Path, error: String| ConfigError::File { path: path.to_owned(), error };
        for (chain, key) in &self.pairs {
            let added = read_key(chain).and_then(|chain_pem| {
                let added = certificates.add(&chain_pem, &read_key(key)?, now_s);
                added.map_err(|error: PairError| {
                    let path = if error.is_of_key() { key } else { chain };
                    unusable(path, error.to_string())
                })
            });
            faults.extend(added.err());
        }
        let client_ca = self.client_ca.as_ref().map(|path| {
            let pem = read_key(path)?;
            ClientCa::parse(&pem).map_err(|error| unusable(path, error))
        });
        let client_ca = client_ca.transpose().map_err(|error| faults.push(error)).ok().flatten();
        ConfigError::unless_none(faults)?;
        Ok(TlsMaterial { certificates, client_ca })
    }
}

/// The certificate of the HTTP API, before files are read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpTlsConfig {
    /// File with the certificate.
    pub cert: PathBuf,
    /// File with its key.
    pub key: PathBuf,
    /// File with the certificates of those who sign for callers.
    pub client_ca: Option<PathBuf>,
}

impl HttpTlsConfig {
    /// Reads and checks the files.
    ///
    /// # Errors
    /// The file that cannot be used, and why.
    pub fn load(&self) -> Result<HttpIdentity, ConfigError> {
        let (cert, key) = (read_key(&self.cert)?, read_key(&self.key)?);
        let client_ca = self.client_ca.as_deref().map(read_key).transpose()?;
        let unusable = |error| ConfigError::File { path: self.cert.clone(), error };
        HttpIdentity::parse(&cert, &key, client_ca.as_deref()).map_err(unusable)
    }
}

/// Judges the settings of TLS for the HTTP API; `None` for one in clear.
pub(super) fn http_tls(all: &Settings, judge: &Judge) -> Result<Option<HttpTlsConfig>, ConfigError> {
    match (&all.http_tls_cert, &all.http_tls_key) {
        (None, None) if all.http_tls_client_ca.is_some() => Err(ConfigError::Conflict(format!(
            "http_tls_client_ca ({}) has a meaning with TLS only: give http_tls_cert and http_tls_key, or leave it out",
            judge.origins.of("http_tls_client_ca")
        ))),
        (None, None) => Ok(None),
        (Some(cert), Some(key)) => {
            let client_ca = all.http_tls_client_ca.clone();
            Ok(Some(HttpTlsConfig { cert: cert.clone(), key: key.clone(), client_ca }))
        }
        (cert, _) => {
            let (given, missing) = match cert {
                Some(_) => ("http_tls_cert", "http_tls_key"),
                None => ("http_tls_key", "http_tls_cert"),
            };
            Err(ConfigError::Conflict(format!(
                "{given} ({}) is given without {missing}: a certificate and its key belong together",
                judge.origins.of(given)
            )))
        }
    }
}

/// Judges the settings of TLS; `None` for a node without.
pub(super) fn tls(all: &Settings, judge: &Judge) -> Result<Option<TlsConfig>, ConfigError> {
    let certs = all.tls_cert.clone().unwrap_or_default();
    let keys = all.tls_key.clone().unwrap_or_default();
    if certs.len() != keys.len() {
        return Err(ConfigError::Conflict(format!(
            "tls_cert ({}) names {} files and tls_key ({}) {}: give both as often, \
             the key of each certificate in the same order",
            judge.origins.of("tls_cert"),
            certs.len(),
            judge.origins.of("tls_key"),
            keys.len(),
        )));
    }
    if certs.len() > PAIRS_MAX {
        return judge.refuse("tls_cert", format!("{} files", certs.len()), format!("there may be {PAIRS_MAX} at most"));
    }
    let required = all.tls_required == Some(true);
    if certs.is_empty() {
        for (key, set) in [("tls_client_ca", all.tls_client_ca.is_some()), ("tls_required", required)] {
            if set {
                return Err(ConfigError::Conflict(format!(
                    "{key} ({}) has a meaning with TLS only, and tls_cert is not set: \
                     give --tls-cert FILE and --tls-key FILE (gateway dev-cert makes a pair to try it with), \
                     or leave {key} out",
                    judge.origins.of(key)
                )));
            }
        }
        return Ok(None);
    }
    let pairs = certs.into_iter().zip(keys).collect();
    Ok(Some(TlsConfig { pairs, client_ca: all.tls_client_ca.clone(), required }))
}
