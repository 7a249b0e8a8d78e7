//! Versions and suites, and the key schedule that is left to do after a handshake: HKDF-Expand-Label (RFC 8446, section
//! 7.1).

use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, Algorithm, CHACHA20_POLY1305};
use aws_lc_rs::hkdf::{HKDF_SHA256, HKDF_SHA384, KeyType, Prk};

/// A version of TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// RFC 5246.
    Tls12,
    /// RFC 8446.
    Tls13,
}

impl Version {
    /// The value of the metric label `version`.
    pub const fn label(self) -> &'static str {
        match self {
            Version::Tls12 => "1.2",
            Version::Tls13 => "1.3",
        }
    }
}

/// How the records of a connection are protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suite {
    /// AES-128-GCM, with SHA-256.
    Aes128,
    /// AES-256-GCM, with SHA-384.
    Aes256,
    /// ChaCha20-Poly1305, with SHA-256.
    ChaCha20,
}

/// Number of suites.
pub const SUITES: usize = Suite::ALL.len();
/// Bytes of an initialization vector, and of a nonce.
pub const IV_BYTES: usize = 12;
/// Bytes by which a record is authenticated.
pub const TAG_BYTES: usize = 16;
/// Bytes of the longest key of any suite.
pub const KEY_BYTES_MAX: usize = 32;
/// Bytes of the longest secret.
pub const SECRET_BYTES_MAX: usize = 48;

impl Suite {
    /// All of them.
    pub const ALL: &[Suite] = &[Suite::Aes128, Suite::Aes256, Suite::ChaCha20];

    /// The value of the metric label `suite`.
    pub const fn label(self) -> &'static str {
        match self {
            Suite::Aes128 => "aes_128_gcm",
            Suite::Aes256 => "aes_256_gcm",
            Suite::ChaCha20 => "chacha20_poly1305",
        }
    }

    /// Its cipher.
    pub fn algorithm(self) -> &'static Algorithm {
        match self {
            Suite::Aes128 => &AES_128_GCM,
            Suite::Aes256 => &AES_256_GCM,
            Suite::ChaCha20 => &CHACHA20_POLY1305,
        }
    }

    /// Bytes of its key.
    pub const fn key_bytes(self) -> usize {
        match self {
            Suite::Aes128 => 16,
            Suite::Aes256 | Suite::ChaCha20 => 32,
        }
    }

    /// Bytes of a traffic secret of TLS 1.3: those of its hash.
    pub const fn secret_bytes(self) -> usize {
        match self {
            Suite::Aes128 | Suite::ChaCha20 => 32,
            Suite::Aes256 => 48,
        }
    }
}

/// So many bytes of HKDF.
struct Bytes(usize);

impl KeyType for Bytes {
    fn len(&self) -> usize {
        self.0
    }
}

/// HKDF-Expand-Label with an empty context. `secret` is a traffic secret of the suite; `out` has at most 255 bytes.
pub fn expand_label(suite: Suite, secret: &[u8], label: &str, out: &mut [u8]) {
    const PREFIX: &[u8] = b"tls13 ";
    let hash = match suite {
        Suite::Aes128 | Suite::ChaCha20 => HKDF_SHA256,
        Suite::Aes256 => HKDF_SHA384,
    };
    let length = (out.len() as u16).to_be_bytes();
    let label_length = [(PREFIX.len() + label.len()) as u8];
    let info: [&[u8]; 5] = [&length, &label_length, PREFIX, label.as_bytes(), &[0]];
    let prk = Prk::new_less_safe(hash, secret);
    let filled = prk.expand(&info, Bytes(out.len())).and_then(|okm| okm.fill(out));
    filled.expect("HKDF gives 255 times its hash, and this is less");
}
