//! The certificate that servers of a run show, made by the gateway itself.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::{failure::Failure, redis::Scratch};

/// A certificate and its key, ECDSA with P-256, as files that end with the bench.
#[derive(Debug)]
pub(crate) struct Identity {
    folder: Scratch,
}

impl Identity {
    /// Has this gateway program make one.
    pub(crate) fn made_by(gateway: &Path) -> Result<Identity, Failure> {
        let identity = Identity { folder: Scratch::new("certificate")? };
        let mut command = Command::new(gateway);
        command.args(["dev-cert", "--out"]).arg(identity.folder.path()).stdin(Stdio::null());
        let output = command.output().map_err(|error| Failure::system("starting the gateway", error))?;
        if output.status.success() {
            return Ok(identity);
        }
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        Err(Failure::Setup(format!("the gateway made no certificate: {words}")))
    }

    /// The file with the certificate.
    pub(crate) fn cert(&self) -> PathBuf {
        self.folder.path().join("dev-cert.pem")
    }

    /// That with its key.
    pub(crate) fn key(&self) -> PathBuf {
        self.folder.path().join("dev-key.pem")
    }
}
