//! From a handshake of rustls to keys: the traffic secrets that are caught on the way, and the keys that it gives out.

use crate::keys::Secrets;
use crate::suite::{IV_BYTES, KEY_BYTES_MAX, SECRET_BYTES_MAX, Suite, Version, expand_label};
use rustls::ConnectionTrafficSecrets;
use std::fmt;
use zeroize::Zeroize;

/// The label under which rustls logs the secret of what a client sends (`rustls::KeyLog`).
pub const CLIENT_LABEL: &str = "CLIENT_TRAFFIC_SECRET_0";
/// That of what a server sends.
pub const SERVER_LABEL: &str = "SERVER_TRAFFIC_SECRET_0";

/// A traffic secret of TLS 1.3, or none.
#[derive(Default)]
pub struct Secret {
    bytes: SecretBytes,
    length: usize,
}

struct SecretBytes([u8; SECRET_BYTES_MAX]);

impl Default for SecretBytes {
    fn default() -> Self {
        SecretBytes([0; SECRET_BYTES_MAX])
    }
}

impl Secret {
    /// Keeps a secret, which is no longer than that of any suite.
    pub fn put(&mut self, secret: &[u8]) {
        let length = secret.len().min(SECRET_BYTES_MAX);
        self.bytes.0[..length].copy_from_slice(&secret[..length]);
        self.length = length;
    }

    /// It, or nothing.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes.0[..self.length]
    }
}

impl fmt::Debug for Secret {
    /// Without the secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.bytes.0.zeroize();
    }
}

/// The secrets of one direction. `None` if the traffic secret caught is not the one the key comes from: then no later
/// key would be right.
pub fn secrets_of(
    (sequence, extracted): (u64, ConnectionTrafficSecrets),
    version: Version,
    caught: &Secret,
) -> Option<(Suite, Secrets)> {
    let (suite, key, iv) = match &extracted {
        ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (Suite::Aes128, key, iv),
        ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (Suite::Aes256, key, iv),
        ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (Suite::ChaCha20, key, iv),
        _ => return None,
    };
    let mut secrets =
        Secrets { secret: [0; SECRET_BYTES_MAX], key: [0; KEY_BYTES_MAX], iv: iv.as_ref().try_into().ok()?, sequence };
    secrets.key.get_mut(..suite.key_bytes())?.copy_from_slice(key.as_ref().get(..suite.key_bytes())?);
    if version == Version::Tls13 {
        let caught = caught.bytes();
        if caught.len() != suite.secret_bytes() {
            return None;
        }
        secrets.secret[..caught.len()].copy_from_slice(caught);
        let mut key = [0; KEY_BYTES_MAX];
        expand_label(suite, caught, "key", &mut key[..suite.key_bytes()]);
        let same = key == secrets.key;
        key.zeroize();
        if !same {
            return None;
        }
    }
    const _: () = assert!(IV_BYTES == 12);
    Some((suite, secrets))
}
