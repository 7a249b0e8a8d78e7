//! Tokens (JWT) as keys of an API: signed with EdDSA over Ed25519 (RFC 8037) by whoever has the private key to a line
//! of the keys file. No clock: what time it is, is told.
//!
//! The `kid` of a token names the line. A token has at most what its line has: `scope` and `services` take away, and
//! never add. What is wrong with one that is refused is nobody's business but its issuer's.

use super::keys::{KeyLimits, Scope};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use rustls::SignatureScheme;
use rustls::pki_types::SignatureVerificationAlgorithm;
use serde::Deserialize;
use serde_json::Value;

/// Longest token that is looked at.
const TOKEN_BYTES_MAX: usize = 4_096;
/// Longest `sub`, which stands in the audit log.
const SUBJECT_BYTES_MAX: usize = 64;
/// A token whose `nbf` lies so far ahead is taken, seconds: clocks differ.
const LEEWAY_S: u64 = 60;
/// What the DER of an Ed25519 public key begins with (RFC 8410); the key itself follows.
const SPKI: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// Who signs tokens.
#[derive(Debug, Clone)]
pub(super) struct Issuer {
    key: [u8; 32],
    audience: Option<String>,
}

/// What stands in a token.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Token {
    pub(super) subject: String,
    /// Scopes and services that it is for; `None` for all that its line has.
    scopes: Option<Vec<Scope>>,
    services: Option<Vec<u16>>,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: String,
    crit: Option<Value>,
}

#[derive(Deserialize)]
struct Claims {
    sub: String,
    /// Seconds since the epoch, possibly with a fraction.
    exp: f64,
    nbf: Option<f64>,
    aud: Option<Value>,
    scope: Option<String>,
    services: Option<Vec<u16>>,
}

impl Issuer {
    /// From the base64 of a public key as it stands in its PEM, and what `aud` of its tokens has to name.
    pub(super) fn new(text: &str, audience: Option<String>) -> Result<Self, String> {
        let wrong = || {
            "its ed25519 has to be a public key as `openssl pkey -pubout` prints it, the line between BEGIN and END \
             (MCowBQYDK2VwAyEA…)"
                .to_owned()
        };
        let der = STANDARD.decode(text.trim()).map_err(|_| wrong())?;
        let key = der.strip_prefix(&SPKI[..]).and_then(|key| key.try_into().ok()).ok_or_else(wrong)?;
        if audience.as_ref().is_some_and(String::is_empty) {
            return Err("its audience is empty: leave it out, or name what aud of the tokens has to name".to_owned());
        }
        Ok(Issuer { key, audience })
    }

    /// What a token says whose signature is right and whose time it is.
    pub(super) fn read(&self, token: &str, now_s: u64) -> Option<Token> {
        let (signed, signature) = token.rsplit_once('.')?;
        let (_, claims) = signed.split_once('.')?;
        let signature = decode(signature)?;
        ed25519()?.verify_signature(&self.key, signed.as_bytes(), &signature).ok()?;
        let claims: Claims = serde_json::from_slice(&decode(claims)?).ok()?;
        let is_visible = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
        let is_good_subject = (1..=SUBJECT_BYTES_MAX).contains(&claims.sub.len()) && is_visible(&claims.sub);
        let is_in_time =
            claims.exp > now_s as f64 && claims.nbf.is_none_or(|nbf| nbf <= now_s.saturating_add(LEEWAY_S) as f64);
        let is_for_us = self.audience.as_ref().is_none_or(|audience| match &claims.aud {
            Some(Value::Array(all)) => all.iter().any(|one| one.as_str() == Some(audience.as_str())),
            one => one.as_ref().and_then(Value::as_str) == Some(audience.as_str()),
        });
        // A word of another API says nothing here.
        let scopes = claims.scope.map(|words| words.split(' ').filter_map(|word| word.parse().ok()).collect());
        let token = Token { subject: claims.sub, scopes, services: claims.services };
        (is_good_subject && is_in_time && is_for_us).then_some(token)
    }
}

impl Token {
    /// What is left of what a line has.
    pub(super) fn within(&self, scopes: &[Scope], limits: &KeyLimits) -> (Vec<Scope>, KeyLimits) {
        let is_named = |scope: &&Scope| self.scopes.as_ref().is_none_or(|named| named.contains(scope));
        let scopes = scopes.iter().filter(is_named).copied().collect();
        let services = match (&self.services, &limits.services) {
            (None, of_line) => of_line.clone(),
            (Some(named), _) => {
                Some(named.iter().copied().filter(|service| limits.may_use(*service)).collect::<Vec<u16>>().into())
            }
        };
        (scopes, KeyLimits { services, ..limits.clone() })
    }
}

/// The line of the keys file that a token names; `None` for what is no such token.
pub(super) fn line_of(token: &str) -> Option<String> {
    if token.len() > TOKEN_BYTES_MAX {
        return None;
    }
    let header: Header = serde_json::from_slice(&decode(token.split_once('.')?.0)?).ok()?;
    (header.alg == "EdDSA" && header.crit.is_none()).then_some(header.kid)
}

fn decode(text: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(text).ok()
}

/// The same code that looks at certificates.
fn ed25519() -> Option<&'static dyn SignatureVerificationAlgorithm> {
    let all = rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms.mapping;
    let of_scheme = all.iter().find(|(scheme, _)| *scheme == SignatureScheme::ED25519)?;
    of_scheme.1.first().copied()
}

#[cfg(test)]
mod tests;
