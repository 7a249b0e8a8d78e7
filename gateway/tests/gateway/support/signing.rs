//! Signs tokens as an accounts system does, with none of the gateway's code.

use ed25519_dalek::{Signer, SigningKey};
use hmac::digest::KeyInit;
use hmac::{Hmac, Mac};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde::Serialize;
use sha2::{Sha256, Sha384, Sha512};

/// A token with this header and these claims, signed with the algorithm that the header names.
pub(crate) fn encode(header: &Header, claims: &impl Serialize, key: &EncodingKey) -> String {
    let part = |json: Vec<u8>| base64url(&json);
    let header_json = serde_json::to_vec(header).expect("a header is JSON");
    let claims_json = serde_json::to_vec(claims).expect("claims are JSON");
    let signed = format!("{}.{}", part(header_json), part(claims_json));
    let signature = match header.alg {
        Algorithm::HS256 => mac::<Hmac<Sha256>>(key, &signed),
        Algorithm::HS384 => mac::<Hmac<Sha384>>(key, &signed),
        Algorithm::HS512 => mac::<Hmac<Sha512>>(key, &signed),
        Algorithm::EdDSA => {
            // A private key of RFC 8410 ends with the 32 bytes that are the key.
            let seed = key.as_bytes().last_chunk().expect("a private key of Ed25519");
            SigningKey::from_bytes(seed).sign(signed.as_bytes()).to_vec()
        }
        other => panic!("no test signs with {other:?}"),
    };
    format!("{signed}.{}", base64url(&signature))
}

fn mac<M: Mac + KeyInit>(key: &EncodingKey, text: &str) -> Vec<u8> {
    let mut mac = <M as Mac>::new_from_slice(key.as_bytes()).expect("a key of any length");
    mac.update(text.as_bytes());
    mac.finalize().into_bytes().to_vec()
}

/// RFC 4648, section 5, without padding.
fn base64url(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let word = chunk.iter().fold(0, |word, byte| word << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        let digits = (0..=chunk.len()).map(|at| ALPHABET[(word >> (18 - 6 * at)) as usize & 63] as char);
        text.extend(digits);
    }
    text
}
