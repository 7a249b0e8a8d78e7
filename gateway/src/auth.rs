//! Who may log in: everybody, or the holder of a signed token.
//!
//! Checked on the shard that takes the LOGIN, so it costs CPU there: some microseconds for HS256, some tens for EdDSA. It reads no clock and no
//! file: the time is an argument, the keys are loaded once at start.

use jsonwebtoken::crypto::rust_crypto::DEFAULT_PROVIDER;
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};
use serde::Deserialize;
use std::fmt;

/// Longest token looked at, bytes. A token with the two claims needed has some 150.
const TOKEN_BYTES_MAX: usize = 4_096;
/// Shortest HS256 secret: the length of the hash (RFC 7518, section 3.2).
pub const HS256_SECRET_BYTES_MIN: usize = 32;
const ED25519_KEY_BYTES: usize = 32;
const PEM_PUBLIC_KEY: &[u8] = b"-----BEGIN PUBLIC KEY-----";

/// How the credentials of a LOGIN are checked.
#[derive(Debug)]
pub enum Auth {
    /// Everybody is who they say.
    Open,
    /// The token is a JWT that says so.
    Jwt(Box<JwtKeys>),
}

/// Keys that tokens may be signed with; at least one.
#[derive(Debug, Default)]
pub struct JwtKeys {
    hs256: Option<Key>,
    ed25519: Option<Key>,
}

/// A key, bound to the one algorithm it may be used with, so that a token cannot choose another for it.
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
#[derive(Clone, Debug, PartialEq, Eq)]
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
    /// It is no JWT with `sub` and `exp`, its algorithm has no key here, its signature is wrong, or it demands extensions (`crit`), of which
    /// none is known here.
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
    /// Seconds since the epoch, possibly with a fraction (RFC 7519 section 2, NumericDate).
    exp: f64,
    nbf: Option<f64>,
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
        // The library would also take the first bit string of a certificate, whatever that is.
        let is_public_key = pem.windows(PEM_PUBLIC_KEY.len()).any(|text| text == PEM_PUBLIC_KEY);
        let key = DecodingKey::from_ed_pem(pem).map_err(|_| KeyError::NotAnEd25519Pem)?;
        // It slices the key at every use without looking at its length.
        let has_length = key.try_get_as_bytes().is_ok_and(|bytes| bytes.len() == ED25519_KEY_BYTES);
        if !is_public_key || !has_length || (DEFAULT_PROVIDER.verifier_factory)(&Algorithm::EdDSA, &key).is_err() {
            return Err(KeyError::NotAnEd25519Pem);
        }
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
        if header.crit.is_some() {
            return Err(AuthError::NotAccepted);
        }
        let claims = decode::<Claims>(token, &key.key, &key.validation).map_err(|_| AuthError::NotAccepted)?.claims;
        // Compared as text, so that "7" is the only way to write 7.
        if claims.sub != user.to_string() {
            return Err(AuthError::WrongUser);
        }
        let now_s = now_s as f64;
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
    use serde_json::{Value, json};

    const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";
    const OTHER_SECRET: &[u8] = b"another secret that is long enough";
    const NOW: u64 = 1_800_000_000;
    /// The example key pair of RFC 8410, section 10.
    const PRIVATE_PEM: &str = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n-----END PRIVATE KEY-----\n";
    const PUBLIC_PEM: &str = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n-----END PUBLIC KEY-----\n";

    fn hs256() -> Auth {
        Auth::Jwt(Box::new(JwtKeys::default().with_hs256(SECRET).unwrap()))
    }

    fn ed25519() -> Auth {
        Auth::Jwt(Box::new(JwtKeys::default().with_ed25519(PUBLIC_PEM.as_bytes()).unwrap()))
    }

    fn both() -> Auth {
        Auth::Jwt(Box::new(JwtKeys::default().with_hs256(SECRET).unwrap().with_ed25519(PUBLIC_PEM.as_bytes()).unwrap()))
    }

    fn good() -> Value {
        json!({"sub": "42", "exp": NOW + 1})
    }

    fn sign(claims: &Value, secret: &[u8], algorithm: Algorithm) -> String {
        encode(&Header::new(algorithm), claims, &EncodingKey::from_secret(secret)).unwrap()
    }

    fn sign_ed25519(claims: &Value) -> String {
        encode(&Header::new(Algorithm::EdDSA), claims, &EncodingKey::from_ed_pem(PRIVATE_PEM.as_bytes()).unwrap())
            .unwrap()
    }

    fn check(auth: &Auth, token: &str) -> Result<(), AuthError> {
        auth.check(42, token, NOW)
    }

    fn check_claims(claims: &Value) -> Result<(), AuthError> {
        check(&hs256(), &sign(claims, SECRET, Algorithm::HS256))
    }

    #[test]
    fn auth_may_be_used_from_all_shards() {
        fn shared<T: Send + Sync>() {}
        shared::<Auth>();
    }

    #[test]
    fn open_lets_everybody_in() {
        assert_eq!(Auth::Open.check(1, "", 0), Ok(()));
    }

    #[test]
    fn a_good_token_lets_its_user_in_and_no_other() {
        for (auth, token) in [
            (hs256(), sign(&good(), SECRET, Algorithm::HS256)),
            (both(), sign(&good(), SECRET, Algorithm::HS256)),
            (ed25519(), sign_ed25519(&good())),
            (both(), sign_ed25519(&good())),
        ] {
            assert_eq!(auth.check(42, &token, NOW), Ok(()));
            assert_eq!(auth.check(43, &token, NOW), Err(AuthError::WrongUser));
        }
        let largest = json!({"sub": u64::MAX.to_string(), "exp": NOW + 1});
        assert_eq!(hs256().check(u64::MAX, &sign(&largest, SECRET, Algorithm::HS256), NOW), Ok(()));
    }

    #[test]
    fn times_are_judged_by_the_clock_given() {
        let expiring = sign(&json!({"sub": "42", "exp": 1_000}), SECRET, Algorithm::HS256);
        assert_eq!(hs256().check(42, &expiring, 999), Ok(()));
        assert_eq!(hs256().check(42, &expiring, 1_000), Err(AuthError::Expired));
        let early = sign(&json!({"sub": "42", "exp": 1_010, "nbf": 1_001}), SECRET, Algorithm::HS256);
        assert_eq!(hs256().check(42, &early, 1_000), Err(AuthError::NotYetValid));
        assert_eq!(hs256().check(42, &early, 1_001), Ok(()));
    }

    #[test]
    fn times_may_have_fractions_and_be_in_the_past() {
        assert_eq!(check_claims(&json!({"sub": "42", "exp": NOW as f64 + 0.5, "nbf": null})), Ok(()));
        for exp in [json!(NOW as f64 - 0.5), json!(0), json!(-1)] {
            assert_eq!(check_claims(&json!({"sub": "42", "exp": exp})), Err(AuthError::Expired), "{exp}");
        }
    }

    #[test]
    fn the_subject_is_the_user_in_plain_decimal() {
        for sub in ["43", "", "042", "+42", " 42", "42 ", "42.0", "0x2a", "forty-two"] {
            assert_eq!(check_claims(&json!({"sub": sub, "exp": NOW + 1})), Err(AuthError::WrongUser), "{sub:?}");
        }
    }

    #[test]
    fn claims_that_are_missing_or_of_the_wrong_type_are_refused() {
        for claims in [
            json!({"exp": NOW + 1}),
            json!({"sub": "42"}),
            json!({"sub": 42, "exp": NOW + 1}),
            json!({"sub": "42", "exp": "1900000000"}),
            json!({"sub": "42", "exp": null}),
            json!({"sub": "42", "exp": NOW + 1, "nbf": "now"}),
            json!([]),
            json!("42"),
        ] {
            assert_eq!(check_claims(&claims), Err(AuthError::NotAccepted), "{claims}");
        }
    }

    #[test]
    fn a_wrong_signature_is_refused() {
        assert_eq!(check(&hs256(), &sign(&good(), OTHER_SECRET, Algorithm::HS256)), Err(AuthError::NotAccepted));
        let other = sign(&json!({"sub": "42", "exp": NOW + 2}), SECRET, Algorithm::HS256);
        let (_, signature) = other.rsplit_once('.').unwrap();
        for (auth, token) in [(hs256(), sign(&good(), SECRET, Algorithm::HS256)), (ed25519(), sign_ed25519(&good()))] {
            let (signed, _) = token.rsplit_once('.').unwrap();
            for signature in [signature, "", "A", &"A".repeat(86)] {
                assert_eq!(check(&auth, &format!("{signed}.{signature}")), Err(AuthError::NotAccepted), "{signature}");
            }
        }
    }

    #[test]
    fn only_algorithms_with_a_configured_key_are_taken() {
        assert_eq!(check(&hs256(), &sign_ed25519(&good())), Err(AuthError::NotAccepted));
        assert_eq!(check(&ed25519(), &sign(&good(), SECRET, Algorithm::HS256)), Err(AuthError::NotAccepted));
        for algorithm in [Algorithm::HS384, Algorithm::HS512] {
            assert_eq!(check(&hs256(), &sign(&good(), SECRET, algorithm)), Err(AuthError::NotAccepted));
        }
        // The public key is public, so it must not serve as a secret.
        for auth in [ed25519(), both()] {
            assert_eq!(
                check(&auth, &sign(&good(), PUBLIC_PEM.as_bytes(), Algorithm::HS256)),
                Err(AuthError::NotAccepted)
            );
        }
    }

    #[test]
    fn unsigned_tokens_are_refused() {
        let token = sign(&good(), SECRET, Algorithm::HS256);
        let [_, claims, signature] = token.split('.').collect::<Vec<_>>()[..] else { panic!("three parts: {token}") };
        // {"alg":"none","typ":"JWT"} and {"alg":"None"}
        for header in ["eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0", "eyJhbGciOiJOb25lIn0"] {
            for signature in ["", signature] {
                assert_eq!(check(&hs256(), &format!("{header}.{claims}.{signature}")), Err(AuthError::NotAccepted));
            }
        }
    }

    #[test]
    fn a_token_that_demands_an_extension_is_refused() {
        let mut header = Header::new(Algorithm::HS256);
        header.crit = Some(vec!["b64".to_owned()]);
        let token = encode(&header, &good(), &EncodingKey::from_secret(SECRET)).unwrap();
        assert_eq!(check(&hs256(), &token), Err(AuthError::NotAccepted));
    }

    #[test]
    fn what_is_no_token_is_refused() {
        for token in
            ["", ".", "..", "...", "a.b", "a.b.c", "a.b.c.d", "eyJhbGciOiJIUzI1NiJ9..", "\u{1F600}.\u{1F600}.\u{1F600}"]
        {
            assert_eq!(check(&hs256(), token), Err(AuthError::NotAccepted), "{token:?}");
        }
        assert_eq!(check(&hs256(), &"x".repeat(TOKEN_BYTES_MAX + 1)), Err(AuthError::TooLong));
    }

    #[test]
    fn keys_that_cannot_be_used_are_refused() {
        assert_eq!(JwtKeys::default().with_hs256(&SECRET[1..]).err(), Some(KeyError::SecretTooShort { bytes: 31 }));
        let rsa = "-----BEGIN PUBLIC KEY-----\nMFwwDQYJKoZIhvcNAQEBBQADSwAwSAJBAK6pSGoAbhFXF0gwRMgZf3uZmHaYv0pW\n-----END PUBLIC KEY-----\n";
        // An Ed25519 SubjectPublicKeyInfo whose key has 8 bytes only.
        let short = "-----BEGIN PUBLIC KEY-----\nMBIwBQYDK2VwAwkAAAECAwQFBgc=\n-----END PUBLIC KEY-----\n";
        let other_tag = PUBLIC_PEM.replace("PUBLIC KEY", "CERTIFICATE");
        for pem in ["", "no pem", PRIVATE_PEM, rsa, short, &other_tag] {
            assert_eq!(JwtKeys::default().with_ed25519(pem.as_bytes()).err(), Some(KeyError::NotAnEd25519Pem), "{pem}");
        }
    }
}
