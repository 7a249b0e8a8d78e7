//! Who may log in: everybody, or the holder of a signed token; and until when.
//!
//! Checked on the shard that takes the LOGIN or RENEW, so it costs CPU there: some microseconds for HS256, some tens
//! for EdDSA. It reads no clock and no file: the time is an argument, the keys are loaded by
//! [`crate::config::AuthConfig::load`], which makes an [`Auth`] as a whole. Shards read it through an [`AuthSwitch`],
//! so that new keys take the place of old ones while the node runs.

mod crypto;
mod refusal;
mod switch;
mod whom;

pub use refusal::{REFUSALS, Refusal};
pub use switch::{AuthReader, AuthSwitch};
pub use whom::Whom;

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};
use serde::Deserialize;
use serde_json::Value;
use std::fmt;

/// Longest token looked at, bytes. A token with the two claims needed has some 150.
const TOKEN_BYTES_MAX: usize = 4_096;
/// Shortest HS256 secret: the length of the hash (RFC 7518, section 3.2).
pub const HS256_SECRET_BYTES_MIN: usize = 32;
/// Keys at a time, of both kinds. A token that names no key is tried with every key of its algorithm, some tens of
/// microseconds for an EdDSA key, so this also bounds what one LOGIN may cost a shard.
pub const KEYS_MAX: usize = 16;
/// Longest id of a key, bytes.
pub const KEY_ID_BYTES_MAX: usize = 64;
const PEM_PUBLIC_KEY: &[u8] = b"-----BEGIN PUBLIC KEY-----";

/// How the credentials of a LOGIN are checked.
#[derive(Debug)]
pub enum Auth {
    /// Everybody is who they say.
    Open,
    /// The token is a JWT that says so.
    Jwt(Box<JwtKeys>),
}

/// Keys that tokens may be signed with, at least one, and what else a token must say.
#[derive(Debug, Default)]
pub struct JwtKeys {
    keys: Vec<Key>,
    /// `iss` is one of these; not looked at when there are none.
    issuers: Vec<String>,
    /// `aud` names one of these; not looked at when there are none.
    audiences: Vec<String>,
    /// How far `nbf` may lie ahead of this node's clock.
    leeway_s: u64,
}

/// A key, bound to the one algorithm it may be used with, so that a token cannot choose another for it.
struct Key {
    /// The `kid` of its tokens. A key without one takes tokens of any `kid` that no other key has.
    id: Option<String>,
    algorithm: Algorithm,
    key: DecodingKey,
    validation: Validation,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The key itself is a secret.
        write!(f, "{:?}:{}", self.algorithm, self.id.as_deref().unwrap_or("-"))
    }
}

/// Why a key cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyError {
    /// The HS256 secret is shorter than its hash.
    SecretTooShort {
        /// Its length.
        bytes: usize,
    },
    /// The public key is not an Ed25519 key in PEM.
    NotAnEd25519Pem,
    /// Another key has this id.
    IdTaken(String),
    /// There are as many keys as there may be.
    TooMany,
}

impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KeyError::SecretTooShort { bytes } => write!(
                f,
                "the secret has {bytes} bytes and HS256 needs {HS256_SECRET_BYTES_MIN} at least; make one with: \
                 head -c 32 /dev/urandom | base64"
            ),
            KeyError::NotAnEd25519Pem => f.write_str(
                "it is not an Ed25519 public key in PEM; make a pair with: \
                 openssl genpkey -algorithm ed25519 -out private.pem && \
                 openssl pkey -in private.pem -pubout -out public.pem",
            ),
            KeyError::IdTaken(id) => write!(f, "two keys have the id (kid) {id}"),
            KeyError::TooMany => {
                write!(f, "there are more than {KEYS_MAX} keys; take out those that sign no tokens any more")
            }
        }
    }
}

impl std::error::Error for KeyError {}

/// When a session ends with its token, in whole seconds since the Unix epoch; 0 never, as with open authentication. A
/// fraction of a second is rounded up. It has 32 bits, because a shard keeps one for each connection: an `exp` after
/// February 2106 counts as then.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TokenEnd(u32);

impl TokenEnd {
    /// The session does not end with its token.
    pub const NEVER: TokenEnd = TokenEnd(0);

    pub fn of(exp: f64) -> Self {
        // The cast cuts what is out of range to the ends of it.
        TokenEnd(exp.ceil().max(1.0) as u32)
    }

    /// At this second, for tests.
    #[cfg(any(test, feature = "sim"))]
    pub fn at_s(exp_s: u64) -> Self {
        TokenEnd::of(exp_s as f64)
    }

    /// Whichever comes first.
    pub(crate) fn earlier(self, other: Self) -> Self {
        match (self, other) {
            (TokenEnd::NEVER, end) | (end, TokenEnd::NEVER) => end,
            (one, other) => TokenEnd(one.0.min(other.0)),
        }
    }

    /// Milliseconds since the Unix epoch; 0 never.
    pub fn ms(self) -> u64 {
        u64::from(self.0) * 1_000
    }

    /// Whether it has come at this wall clock, milliseconds since the Unix epoch.
    pub fn is_over(self, wall_ms: u64) -> bool {
        self != TokenEnd::NEVER && wall_ms >= self.ms()
    }
}

/// What of a session's rights the connect-time hook has said, and not its token: a later word of the hook that leaves
/// something out leaves that as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Said {
    /// When the session ends at the latest; never if the hook has not said so.
    pub end: TokenEnd,
    /// It has said whom the session may watch.
    pub watch: bool,
    /// It has said to whom the session may write.
    pub send: bool,
}

/// What a LOGIN or RENEW is granted by its token, and by the hook.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Granted {
    /// When the session ends.
    pub end: TokenEnd,
    /// Whom it may watch.
    pub watch: Whom,
    /// To whom it may write, besides its own user.
    pub send: Whom,
    /// What of it the hook has said.
    pub said: Said,
}

impl From<TokenEnd> for Granted {
    fn from(end: TokenEnd) -> Self {
        Granted { end, ..Granted::default() }
    }
}

#[derive(Deserialize)]
struct Claims {
    sub: String,
    /// Seconds since the epoch, possibly with a fraction (RFC 7519 section 2, NumericDate).
    exp: f64,
    nbf: Option<f64>,
    // Of any type, because they matter only where one is demanded.
    iss: Option<Value>,
    aud: Option<Value>,
    watch: Option<Value>,
    send: Option<Value>,
}

impl Auth {
    /// As [`Auth::check`], of a LOGIN over a connection whose certificate, which holds until that second, is that of a
    /// user. A token counts more than it.
    ///
    /// # Errors
    /// As [`Auth::check`].
    pub fn check_certified(
        &self,
        user: u64,
        token: &str,
        now_s: u64,
        certified: u64,
        until_s: u64,
    ) -> Result<Granted, Refusal> {
        match self {
            Auth::Jwt(_) if token.is_empty() && certified != user => Err(Refusal::WrongSubject),
            Auth::Jwt(_) if token.is_empty() && until_s < now_s => Err(Refusal::Expired),
            // It holds to the end of that second.
            Auth::Jwt(_) if token.is_empty() => Ok(TokenEnd::of(until_s.saturating_add(1) as f64).into()),
            Auth::Open | Auth::Jwt(_) => self.grant(user, token, now_s),
        }
    }
}

impl JwtKeys {
    /// Accepts tokens signed with HS256 and this secret. `id` is the `kid` of its tokens, if they have one.
    ///
    /// # Errors
    /// [`KeyError::SecretTooShort`], [`KeyError::IdTaken`], [`KeyError::TooMany`].
    pub fn with_hs256(self, id: Option<&str>, secret: &[u8]) -> Result<Self, KeyError> {
        if secret.len() < HS256_SECRET_BYTES_MIN {
            return Err(KeyError::SecretTooShort { bytes: secret.len() });
        }
        self.with(id, DecodingKey::from_secret(secret), Algorithm::HS256)
    }

    /// Accepts tokens signed with EdDSA and the private key of this public one. `id` is the `kid` of its tokens, if
    /// they have one.
    ///
    /// # Errors
    /// [`KeyError::NotAnEd25519Pem`], [`KeyError::IdTaken`], [`KeyError::TooMany`].
    pub fn with_ed25519(self, id: Option<&str>, pem: &[u8]) -> Result<Self, KeyError> {
        // The library would also take the first bit string of a certificate, whatever that is.
        let is_public_key = pem.windows(PEM_PUBLIC_KEY.len()).any(|text| text == PEM_PUBLIC_KEY);
        let key = DecodingKey::from_ed_pem(pem).map_err(|_| KeyError::NotAnEd25519Pem)?;
        if !is_public_key || crypto::verifier(&Algorithm::EdDSA, &key).is_err() {
            return Err(KeyError::NotAnEd25519Pem);
        }
        self.with(id, key, Algorithm::EdDSA)
    }

    /// Demands that `iss` is one of these, unless there are none.
    #[must_use]
    pub fn with_issuers(self, issuers: Vec<String>) -> Self {
        JwtKeys { issuers, ..self }
    }

    /// Demands that `aud` names one of these, unless there are none.
    #[must_use]
    pub fn with_audiences(self, audiences: Vec<String>) -> Self {
        JwtKeys { audiences, ..self }
    }

    /// Takes tokens whose `nbf` lies this many seconds ahead, for clocks that differ. `exp` has no leeway: sessions end
    /// with their token, and an issuer whose clock is behind only gives shorter ones.
    #[must_use]
    pub fn with_leeway_s(self, leeway_s: u64) -> Self {
        JwtKeys { leeway_s, ..self }
    }

    fn with(mut self, id: Option<&str>, key: DecodingKey, algorithm: Algorithm) -> Result<Self, KeyError> {
        if let Some(id) = id.filter(|id| self.keys.iter().any(|key| key.id.as_deref() == Some(id))) {
            return Err(KeyError::IdTaken(id.to_owned()));
        }
        if self.keys.len() == KEYS_MAX {
            return Err(KeyError::TooMany);
        }
        crypto::install();
        self.keys.push(Key::new(id, key, algorithm));
        Ok(self)
    }

    /// The claims of a token whose signature is right.
    fn claims(&self, token: &str) -> Result<Claims, Refusal> {
        let header = decode_header(token).map_err(|_| Refusal::Unreadable)?;
        if header.crit.is_some() {
            return Err(Refusal::Unreadable);
        }
        let id = header.kid.as_deref();
        let named = id.and_then(|id| self.keys.iter().find(|key| key.id.as_deref() == Some(id)));
        // A key that the token names is the only one it is tried with.
        let may_try = |key: &&Key| match (id, named) {
            (_, Some(named)) => std::ptr::eq(*key, named),
            (Some(_), None) => key.id.is_none(),
            (None, None) => true,
        };
        let mut refusal = Refusal::UnknownKey;
        for key in self.keys.iter().filter(may_try).filter(|key| key.algorithm == header.alg) {
            match decode::<Claims>(token, &key.key, &key.validation) {
                Ok(token) => return Ok(token.claims),
                // Of an id nobody knows, the signature is not what is wrong.
                Err(error) if *error.kind() == ErrorKind::InvalidSignature => {
                    if id.is_none() || named.is_some() {
                        refusal = Refusal::BadSignature;
                    }
                }
                Err(_) => return Err(Refusal::Unreadable),
            }
        }
        Err(refusal)
    }

    fn check(&self, user: u64, token: &str, now_s: u64) -> Result<Granted, Refusal> {
        if token.is_empty() {
            return Err(Refusal::Missing);
        }
        if token.len() > TOKEN_BYTES_MAX {
            return Err(Refusal::TooLong);
        }
        let claims = self.claims(token)?;
        let is_one_of = |wanted: &[String], given: &Value| wanted.iter().any(|wanted| given.as_str() == Some(wanted));
        if !self.issuers.is_empty() && !claims.iss.is_some_and(|iss| is_one_of(&self.issuers, &iss)) {
            return Err(Refusal::WrongIssuer);
        }
        // One audience, or a list of them (RFC 7519, section 4.1.3).
        let is_for = |aud: &Value| match aud {
            Value::Array(all) => all.iter().any(|aud| is_one_of(&self.audiences, aud)),
            one => is_one_of(&self.audiences, one),
        };
        if !self.audiences.is_empty() && !claims.aud.is_some_and(|aud| is_for(&aud)) {
            return Err(Refusal::WrongAudience);
        }
        // Compared as text, so that "7" is the only way to write 7.
        if claims.sub != user.to_string() {
            return Err(Refusal::WrongSubject);
        }
        if claims.exp <= now_s as f64 {
            return Err(Refusal::Expired);
        }
        if claims.nbf.is_some_and(|nbf| nbf > now_s.saturating_add(self.leeway_s) as f64) {
            return Err(Refusal::NotYetValid);
        }
        let (watch, send) = (Whom::of(claims.watch.as_ref()), Whom::of(claims.send.as_ref()));
        Ok(Granted { end: TokenEnd::of(claims.exp), watch, send, said: Said::default() })
    }
}

impl Key {
    fn new(id: Option<&str>, key: DecodingKey, algorithm: Algorithm) -> Self {
        let mut validation = Validation::new(algorithm);
        // Times are checked against the shard's clock, issuer and audience with a refusal of their own.
        validation.validate_exp = false;
        validation.validate_nbf = false;
        validation.validate_aud = false;
        validation.required_spec_claims.clear();
        Key { id: id.map(str::to_owned), algorithm, key, validation }
    }
}

impl Auth {
    /// Until when this token lets `user` in, at `now_s` seconds since the Unix epoch.
    ///
    /// # Errors
    /// What is wrong with the token.
    pub fn check(&self, user: u64, token: &str, now_s: u64) -> Result<TokenEnd, Refusal> {
        self.grant(user, token, now_s).map(|granted| granted.end)
    }

    /// What this token grants `user`, at `now_s` seconds since the Unix epoch.
    ///
    /// # Errors
    /// What is wrong with the token.
    pub fn grant(&self, user: u64, token: &str, now_s: u64) -> Result<Granted, Refusal> {
        match self {
            Auth::Open => Ok(Granted::default()),
            Auth::Jwt(keys) => keys.check(user, token, now_s),
        }
    }
}

/// The `kid` a token names, for the log: cut to what a key's id may have, since whoever sent it may write what they
/// like.
pub fn key_id(token: &str) -> Option<String> {
    let token = Some(token).filter(|token| token.len() <= TOKEN_BYTES_MAX)?;
    let id = decode_header(token).ok()?.kid?;
    Some(id.chars().take(KEY_ID_BYTES_MAX).collect())
}

impl fmt::Display for Auth {
    /// For the log: the kind, and which keys are in force by algorithm and id.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Auth::Open => f.write_str("open"),
            Auth::Jwt(keys) => {
                f.write_str("jwt, keys")?;
                keys.keys.iter().try_for_each(|key| write!(f, " {key:?}"))
            }
        }
    }
}

#[cfg(test)]
#[path = "../../tests/gateway/support/signing.rs"]
pub(crate) mod signing;
#[cfg(test)]
mod tests;
