//! Certificates for tests, made by the command `openssl` in a folder of their own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU16, Ordering};

/// A signer, and what it has signed. The folder goes when dropped.
pub(crate) struct Signer {
    folder: PathBuf,
}

/// A certificate and its key.
pub(crate) struct Signed {
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
}

impl Signer {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU16 = AtomicU16::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("trunkline-certificates-{}-{count}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let signer = Signer { folder };
        let (cert, key) = (signer.ca(), signer.file("ca.key"));
        let own = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"];
        let named = ["-subj", "/CN=a signer of tests", "-addext", "keyUsage=critical,keyCertSign"];
        openssl(&[&own[..], &named, &["-keyout", text(&key), "-out", text(&cert)]].concat());
        signer
    }

    /// Its own certificate.
    pub(crate) fn ca(&self) -> PathBuf {
        self.file("ca.pem")
    }

    /// Signs a new certificate for `alt_names`, such as `IP:127.0.0.1`.
    pub(crate) fn sign(&self, name: &str, alt_names: &str) -> Signed {
        let [cert, key, request, extensions] =
            ["pem", "key", "csr", "ext"].map(|kind| self.file(&format!("{name}.{kind}")));
        fs::write(&extensions, format!("subjectAltName={alt_names}\nbasicConstraints=CA:FALSE\n")).unwrap();
        let new = ["req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
        let subject = format!("/CN={name}");
        openssl(&[&new[..], &["-subj", &subject, "-keyout", text(&key), "-out", text(&request)]].concat());
        let by = ["-CA", text(&self.ca()), "-CAkey", text(&self.file("ca.key")), "-CAcreateserial", "-days", "2"]
            .map(str::to_owned);
        let by: Vec<&str> = by.iter().map(String::as_str).collect();
        let what = ["-req", "-in", text(&request), "-extfile", text(&extensions), "-out", text(&cert)];
        openssl(&[&["x509"][..], &what, &by].concat());
        Signed { cert, key }
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}

impl Drop for Signer {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn openssl(arguments: &[&str]) {
    let output = Command::new("openssl").args(arguments).output();
    let output = output.expect("openssl has to be installed: scripts/setup.sh does it");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
