//! `--auth jwt`: which tokens open a session. Every refusal is BYE 6, whatever was wrong.

mod support;

use jsonwebtoken::{Algorithm, EncodingKey, Header, encode, get_current_timestamp};
use serde::Serialize;
use support::bystanders::Bystanders;
use support::client::Client;
use support::gateway::{Gateway, with_each_gateway, with_gateway};
use support::names::reason_label;
use support::scratch::ScratchFile;
use support::wire::{Login, code};
use support::{ONE_AND_MANY, PATIENCE};

const SECRET: &[u8] = b"a secret of the tests, long enough for HS256";
const OTHER_SECRET: &[u8] = b"another secret of tests, as long as HS256 wants";

/// The example key pair of RFC 8410, section 10.
const ED25519_PRIVATE_PEM: &str = "-----BEGIN PRIVATE KEY-----\n\
    MC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n\
    -----END PRIVATE KEY-----\n";
const ED25519_PUBLIC_PEM: &str = "-----BEGIN PUBLIC KEY-----\n\
    MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n\
    -----END PUBLIC KEY-----\n";

/// `{"alg":"none","typ":"JWT"}` in base64url.
const HEADER_ALG_NONE: &str = "eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0";

#[derive(Serialize)]
struct Claims {
    #[serde(skip_serializing_if = "Option::is_none")]
    sub: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    exp: Option<u64>,
}

impl Claims {
    fn of(user: u64) -> Self {
        Claims { sub: Some(user.to_string()), exp: Some(get_current_timestamp() + 3_600) }
    }

    fn hs256(&self, secret: &[u8]) -> String {
        self.sign(Algorithm::HS256, &EncodingKey::from_secret(secret))
    }

    fn ed25519(&self) -> String {
        let key = EncodingKey::from_ed_pem(ED25519_PRIVATE_PEM.as_bytes()).expect("a private key");
        self.sign(Algorithm::EdDSA, &key)
    }

    fn sign(&self, algorithm: Algorithm, key: &EncodingKey) -> String {
        encode(&Header::new(algorithm), self, key).expect("sign a token")
    }
}

fn with_hs256(body: impl Fn(&Gateway)) {
    let secret = ScratchFile::new("hs256", SECRET);
    let flags = ["--auth", "jwt", "--jwt-hs256-secret-file", secret.path()];
    with_each_gateway(ONE_AND_MANY, &flags, body);
}

fn with_ed25519(body: impl FnOnce(&Gateway)) {
    let key = ScratchFile::new("ed25519.pem", ED25519_PUBLIC_PEM);
    with_gateway(2, &["--auth", "jwt", "--jwt-ed25519-public-key-file", key.path()], body);
}

fn assert_accepted(gateway: &Gateway, user: u64, token: &str) {
    Client::login_with(gateway, &Login::of(user).token(token)).0.ping();
}

fn assert_refused(gateway: &Gateway, user: u64, token: &str) {
    let mut client = Client::connect(gateway);
    client.write(&Login::of(user).token(token).frame());
    client.expect_bye(code::BAD_CREDENTIALS);
}

#[test]
fn a_good_hs256_token_opens_a_session() {
    with_hs256(|gateway| {
        for user in [1, 2, 3, u64::MAX] {
            assert_accepted(gateway, user, &Claims::of(user).hs256(SECRET));
        }
        Bystanders::with_token(gateway, |user| Claims::of(user).hs256(SECRET));
    });
}

#[test]
fn a_good_ed25519_token_opens_a_session() {
    with_ed25519(|gateway| {
        for user in [1, 2, 3, u64::MAX] {
            assert_accepted(gateway, user, &Claims::of(user).ed25519());
        }
    });
}

#[test]
fn both_kinds_of_token_work_side_by_side() {
    let secret = ScratchFile::new("hs256", SECRET);
    let key = ScratchFile::new("ed25519.pem", ED25519_PUBLIC_PEM);
    let flags =
        ["--auth", "jwt", "--jwt-hs256-secret-file", secret.path(), "--jwt-ed25519-public-key-file", key.path()];
    with_gateway(2, &flags, |gateway| {
        assert_accepted(gateway, 1, &Claims::of(1).hs256(SECRET));
        assert_accepted(gateway, 2, &Claims::of(2).ed25519());
        assert_refused(gateway, 3, &Claims::of(3).hs256(OTHER_SECRET));
        // The public key is public: whoever has it must not be able to sign with it.
        assert_refused(gateway, 4, &Claims::of(4).hs256(ED25519_PUBLIC_PEM.as_bytes()));
    });
}

#[test]
fn a_wrong_signature_is_refused() {
    with_hs256(|gateway| {
        let mut bystanders = Bystanders::with_token(gateway, |user| Claims::of(user).hs256(SECRET));
        assert_refused(gateway, 1, &Claims::of(1).hs256(OTHER_SECRET));
        // The signature of one token under the claims of another.
        let mine = Claims::of(1).hs256(SECRET);
        let theirs = Claims::of(2).hs256(SECRET);
        let (header_and_claims, _) = mine.rsplit_once('.').expect("three parts");
        let (_, signature) = theirs.rsplit_once('.').expect("three parts");
        assert_refused(gateway, 1, &format!("{header_and_claims}.{signature}"));
        gateway.wait_for_metrics("two refusals", |metrics| metrics.closed(reason_label::BAD_CREDENTIALS) == 2);
        bystanders.talk();
    });
}

#[test]
fn a_token_of_somebody_else_is_refused() {
    with_hs256(|gateway| {
        assert_refused(gateway, 1, &Claims::of(2).hs256(SECRET));
        for sub in ["", "one", "01x", " 1", "-1", "18446744073709551616"] {
            let claims = Claims { sub: Some(sub.to_owned()), ..Claims::of(1) };
            assert_refused(gateway, 1, &claims.hs256(SECRET));
        }
        assert_refused(gateway, 1, &Claims { sub: None, ..Claims::of(1) }.hs256(SECRET));
    });
}

#[test]
fn a_token_whose_time_is_over_is_refused() {
    with_hs256(|gateway| {
        let now = get_current_timestamp();
        for exp in [1, now - 3_600, now - 2] {
            let claims = Claims { exp: Some(exp), ..Claims::of(1) };
            assert_refused(gateway, 1, &claims.hs256(SECRET));
        }
        assert_refused(gateway, 1, &Claims { exp: None, ..Claims::of(1) }.hs256(SECRET));
        let about_to_end = Claims { exp: Some(now + PATIENCE.as_secs()), ..Claims::of(1) };
        assert_accepted(gateway, 1, &about_to_end.hs256(SECRET));
    });
}

#[test]
fn an_unsigned_token_is_refused() {
    with_hs256(|gateway| {
        let signed = Claims::of(1).hs256(SECRET);
        let parts: Vec<&str> = signed.split('.').collect();
        let [_, claims, signature] = parts[..] else { panic!("three parts: {signed}") };
        assert_refused(gateway, 1, &format!("{HEADER_ALG_NONE}.{claims}."));
        assert_refused(gateway, 1, &format!("{HEADER_ALG_NONE}.{claims}.{signature}"));
    });
}

#[test]
fn an_algorithm_that_was_not_configured_is_refused() {
    with_hs256(|gateway| {
        assert_refused(gateway, 1, &Claims::of(1).ed25519());
        let key = EncodingKey::from_secret(SECRET);
        for algorithm in [Algorithm::HS384, Algorithm::HS512] {
            assert_refused(gateway, 1, &Claims::of(1).sign(algorithm, &key));
        }
    });
    with_ed25519(|gateway| {
        assert_refused(gateway, 1, &Claims::of(1).hs256(SECRET));
        assert_refused(gateway, 1, &Claims::of(1).hs256(ED25519_PUBLIC_PEM.as_bytes()));
    });
}

#[test]
fn what_is_no_token_is_refused() {
    with_hs256(|gateway| {
        let long = "a".repeat(60_000);
        for token in ["", ".", "..", "a.b.c", "eyJhbGciOiJIUzI1NiJ9..", &long] {
            assert_refused(gateway, 1, token);
        }
    });
}
