//! Who may log in: everybody, or the holder of a signed token.

use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};
use serde::Deserialize;
use std::fmt;

/// Longest token looked at, bytes. A token with the two claims needed has some 150.
const TOKEN_BYTES_MAX: usize = 4_096;
/// Shortest HS256 secret: the length of the hash (RFC 7518, section 3.2).
pub const HS256_SECRET_BYTES_MIN: usize = 32;

/// How the credentials of a LOGIN are checked.
#[derive(Debug)]
pub enum Auth {
    /// Everybody is who they say.
    Open,
    /// The token is a JWT that says so.
    Jwt(JwtKeys),
}

/// Keys that tokens may be signed with; at least one.
#[derive(Debug, Default)]
pub struct JwtKeys {
    hs256: Option<Key>,
    ed25519: Option<Key>,
}

struct Key {
    key: DecodingKey,
    validation: Validation,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The key itself is a secret.
        f.write_str("Key")
    }
}

/// Why a key cannot be used.
#[derive(Debug, PartialEq, Eq)]
pub enum KeyError {
    /// The HS256 secret is shorter than its hash.
    SecretTooShort {
        /// Its length.
        bytes: usize,
    },
    /// The public key is not an Ed25519 key in PEM.
    NotAnEd25519Pem,
}

impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KeyError::SecretTooShort { bytes } => write!(
                f,
                "the secret has {bytes} bytes and HS256 needs {HS256_SECRET_BYTES_MIN} at least; make one with: head -c 32 /dev/urandom | base64"
            ),
            KeyError::NotAnEd25519Pem => f.write_str(
                "it is not an Ed25519 public key in PEM; make a pair with: openssl genpkey -algorithm ed25519 -out private.pem && openssl pkey -in private.pem -pubout -out public.pem",
            ),
        }
    }
}

impl std::error::Error for KeyError {}

/// Why a login is refused. The client learns only that it is.
#[derive(Debug, PartialEq, Eq)]
pub enum AuthError {
    /// The token is longer than 4 KiB.
    TooLong,
    /// It is no JWT, its algorithm has no key here, or its signature is wrong.
    NotAccepted,
    /// `sub` is not the user of the LOGIN.
    WrongUser,
    /// `exp` has passed.
    Expired,
    /// `nbf` has not come.
    NotYetValid,
}

impl fmt::Display for AuthError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            AuthError::TooLong => "the token is longer than 4 KiB",
            AuthError::NotAccepted => "the token is not signed with a key of this node",
            AuthError::WrongUser => "the token is another user's",
            AuthError::Expired => "the token has expired",
            AuthError::NotYetValid => "the token is not valid yet",
        })
    }
}

#[derive(Deserialize)]
struct Claims {
    sub: String,
    exp: u64,
    nbf: Option<u64>,
}

impl JwtKeys {
    /// Accepts tokens signed with HS256 and this secret.
    ///
    /// # Errors
    /// [`KeyError::SecretTooShort`].
    pub fn with_hs256(mut self, secret: &[u8]) -> Result<Self, KeyError> {
        if secret.len() < HS256_SECRET_BYTES_MIN {
            return Err(KeyError::SecretTooShort { bytes: secret.len() });
        }
        self.hs256 = Some(Key::new(DecodingKey::from_secret(secret), Algorithm::HS256));
        Ok(self)
    }

    /// Accepts tokens signed with EdDSA and the private key of this public one.
    ///
    /// # Errors
    /// [`KeyError::NotAnEd25519Pem`].
    pub fn with_ed25519(mut self, pem: &[u8]) -> Result<Self, KeyError> {
        let key = DecodingKey::from_ed_pem(pem).map_err(|_| KeyError::NotAnEd25519Pem)?;
        self.ed25519 = Some(Key::new(key, Algorithm::EdDSA));
        Ok(self)
    }
}

impl Key {
    fn new(key: DecodingKey, algorithm: Algorithm) -> Self {
        let mut validation = Validation::new(algorithm);
        // Times are checked against the shard's clock, and an audience is not asked for.
        validation.validate_exp = false;
        validation.validate_nbf = false;
        validation.validate_aud = false;
        validation.required_spec_claims.clear();
        Key { key, validation }
    }
}

impl Auth {
    /// Whether this token lets `user` in, at `now_s` seconds since the Unix epoch.
    ///
    /// # Errors
    /// What is wrong with the token.
    pub fn check(&self, user: u64, token: &str, now_s: u64) -> Result<(), AuthError> {
        let Auth::Jwt(keys) = self else { return Ok(()) };
        if token.len() > TOKEN_BYTES_MAX {
            return Err(AuthError::TooLong);
        }
        let header = decode_header(token).map_err(|_| AuthError::NotAccepted)?;
        let key = match header.alg {
            Algorithm::HS256 => &keys.hs256,
            Algorithm::EdDSA => &keys.ed25519,
            _ => &None,
        };
        let key = key.as_ref().ok_or(AuthError::NotAccepted)?;
        let claims = decode::<Claims>(token, &key.key, &key.validation).map_err(|_| AuthError::NotAccepted)?.claims;
        if claims.sub != user.to_string() {
            return Err(AuthError::WrongUser);
        }
        if claims.exp <= now_s {
            return Err(AuthError::Expired);
        }
        if claims.nbf.is_some_and(|nbf| nbf > now_s) {
            return Err(AuthError::NotYetValid);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jsonwebtoken::{EncodingKey, Header, encode};
    use serde_json::json;

    const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";
    const NOW: u64 = 1_000_000;

    fn auth() -> Auth {
        Auth::Jwt(JwtKeys::default().with_hs256(SECRET).unwrap())
    }

    fn token(claims: &serde_json::Value, secret: &[u8], algorithm: Algorithm) -> String {
        encode(&Header::new(algorithm), claims, &EncodingKey::from_secret(secret)).unwrap()
    }

    #[test]
    fn a_good_token_lets_its_user_in_and_no_other() {
        let token = token(&json!({"sub": "42", "exp": NOW + 1}), SECRET, Algorithm::HS256);
        assert_eq!(auth().check(42, &token, NOW), Ok(()));
        assert_eq!(auth().check(43, &token, NOW), Err(AuthError::WrongUser));
    }

    #[test]
    fn times_are_judged_by_the_clock_given() {
        let expiring = token(&json!({"sub": "42", "exp": NOW}), SECRET, Algorithm::HS256);
        assert_eq!(auth().check(42, &expiring, NOW - 1), Ok(()));
        assert_eq!(auth().check(42, &expiring, NOW), Err(AuthError::Expired));
        let early = token(&json!({"sub": "42", "exp": NOW + 10, "nbf": NOW + 1}), SECRET, Algorithm::HS256);
        assert_eq!(auth().check(42, &early, NOW), Err(AuthError::NotYetValid));
        assert_eq!(auth().check(42, &early, NOW + 1), Ok(()));
    }

    #[test]
    fn other_keys_algorithms_and_shapes_are_refused() {
        let claims = json!({"sub": "42", "exp": NOW + 1});
        let wrong_key = token(&claims, b"another secret that is long enough", Algorithm::HS256);
        let wrong_algorithm = token(&claims, SECRET, Algorithm::HS384);
        let no_exp = token(&json!({"sub": "42"}), SECRET, Algorithm::HS256);
        let no_sub = token(&json!({"exp": NOW + 1}), SECRET, Algorithm::HS256);
        let good = token(&claims, SECRET, Algorithm::HS256);
        let unsigned = format!("eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0.{}.", good.split('.').nth(1).unwrap());
        for bad in [wrong_key.as_str(), &wrong_algorithm, &no_exp, &no_sub, &unsigned, "", "a.b.c", &good[1..]] {
            assert_eq!(auth().check(42, bad, NOW), Err(AuthError::NotAccepted), "{bad}");
        }
        assert_eq!(auth().check(42, &"x".repeat(TOKEN_BYTES_MAX + 1), NOW), Err(AuthError::TooLong));
    }

    #[test]
    fn keys_that_cannot_be_used_are_refused() {
        assert_eq!(JwtKeys::default().with_hs256(&SECRET[1..]).err(), Some(KeyError::SecretTooShort { bytes: 31 }));
        assert_eq!(JwtKeys::default().with_ed25519(b"no pem").err(), Some(KeyError::NotAnEd25519Pem));
    }
}
