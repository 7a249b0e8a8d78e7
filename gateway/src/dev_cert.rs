//! `gateway dev-cert`: a certificate that nobody has signed, to try TLS with.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{CertificateParams, DnType, KeyPair, date_time_ymd};
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The files, in the folder asked for.
const CERT_FILE: &str = "dev-cert.pem";
const KEY_FILE: &str = "dev-key.pem";
/// How long it holds.
const DAYS: u64 = 90;
/// How far the clock of whoever verifies it may be behind.
const SLACK: Duration = Duration::from_secs(3_600);
const PEM_LINE: usize = 64;

/// The files that were written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DevCert {
    /// The certificate; whoever is to trust it reads it too.
    pub cert: PathBuf,
    /// Its key, which only its owner may read.
    pub key: PathBuf,
}

/// Makes a certificate for these names and addresses, and writes it and its key to two files that are not there yet.
///
/// # Errors
/// Which name cannot stand in a certificate, or which file cannot be written.
pub fn write(folder: &Path, names: &[String]) -> Result<DevCert, String> {
    let (cert, key) = make(names).map_err(|error| format!("making a certificate for {}: {error}", names.join(", ")))?;
    let files = DevCert { cert: folder.join(CERT_FILE), key: folder.join(KEY_FILE) };
    for (path, text, mode) in [(&files.key, key, 0o600), (&files.cert, cert, 0o644)] {
        let written = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(path)
            .and_then(|mut file| file.write_all(text.as_bytes()));
        written.map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => {
                format!("{} is there already, and is not overwritten: remove it, or give --out DIR", path.display())
            }
            _ => format!("writing {}: {error}", path.display()),
        })?;
    }
    Ok(files)
}

/// A certificate and its key as PEM.
fn make(names: &[String]) -> Result<(String, String), rcgen::Error> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name.push(DnType::CommonName, "Trunkline, for development");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    params.not_before = date_time_ymd(1970, 1, 1) + now.saturating_sub(SLACK);
    params.not_after = date_time_ymd(1970, 1, 1) + now + Duration::from_secs(DAYS * 86_400);
    let cert = params.self_signed(&key)?;
    Ok((pem("CERTIFICATE", cert.der()), pem("PRIVATE KEY", &key.serialize_der())))
}

fn pem(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let mut pem = format!("-----BEGIN {label}-----\n");
    // Base 64 is ASCII.
    for line in text.as_bytes().chunks(PEM_LINE) {
        pem.push_str(&String::from_utf8_lossy(line));
        pem.push('\n');
    }
    pem.push_str(&format!("-----END {label}-----\n"));
    pem
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::tls::Certificates;

    #[test]
    fn what_is_written_can_be_used_and_is_not_overwritten() {
        let folder = std::env::temp_dir().join(format!("trunkline-dev-cert-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
        let files = write(&folder, &names).unwrap();
        let (cert, key) = (std::fs::read(&files.cert).unwrap(), std::fs::read(&files.key).unwrap());
        let now_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let mut certificates = Certificates::default();
        certificates.add(&cert, &key, now_s).unwrap();
        assert_eq!(certificates.all()[0].names, ["localhost"]);
        let error = write(&folder, &names).unwrap_err();
        assert!(error.contains("not overwritten"), "{error}");
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
