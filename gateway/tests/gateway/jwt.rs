//! `--auth jwt`: which tokens open a session, and until when. Every refusal is BYE 6, and its words say what was wrong.

use crate::support::bystanders::Bystanders;
use crate::support::client::{Client, Event};
use crate::support::gateway::{Gateway, with_each_gateway, with_gateway};
use crate::support::names::{limit_label, metric, reason_label};
use crate::support::scratch::ScratchFile;
use crate::support::signing::encode;
use crate::support::wire::{self, Login, LoginOk, USER_MAX, code, kind};
use crate::support::{ONE_AND_MANY, PATIENCE, wait_for};
use jsonwebtoken::{Algorithm, EncodingKey, Header, get_current_timestamp};
use serde::Serialize;
use std::time::Duration;

/// What a session is told that ends with its token, as PROTOCOL.md has it.
const EXPIRED: &str = "the token has expired";

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
    #[serde(skip_serializing_if = "Option::is_none")]
    nbf: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    iss: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    aud: Option<Vec<&'static str>>,
}

impl Claims {
    fn of(user: u64) -> Self {
        let exp = Some(get_current_timestamp() + 3_600);
        Claims { sub: Some(user.to_string()), exp, nbf: None, iss: None, aud: None }
    }

    /// Of this user, until then.
    fn until(user: u64, exp: u64) -> Self {
        Claims { exp: Some(exp), ..Claims::of(user) }
    }

    /// With the id of its key in the header.
    fn hs256_as(&self, kid: &str, secret: &[u8]) -> String {
        let header = Header { kid: Some(kid.to_owned()), ..Header::new(Algorithm::HS256) };
        encode(&header, self, &EncodingKey::from_secret(secret))
    }

    fn hs256(&self, secret: &[u8]) -> String {
        self.sign(Algorithm::HS256, &EncodingKey::from_secret(secret))
    }

    fn ed25519(&self) -> String {
        let key = EncodingKey::from_ed_pem(ED25519_PRIVATE_PEM.as_bytes()).expect("a private key");
        self.sign(Algorithm::EdDSA, &key)
    }

    fn sign(&self, algorithm: Algorithm, key: &EncodingKey) -> String {
        encode(&Header::new(algorithm), self, key)
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
    refusal(gateway, user, token);
}

/// Logs in with a token that must be refused; the words it is refused with.
fn refusal(gateway: &Gateway, user: u64, token: &str) -> String {
    let mut client = Client::connect(gateway);
    client.write(&Login::of(user).token(token).frame());
    client.recv_bye_text(code::BAD_CREDENTIALS)
}

/// Logs in with a token that ends soon, but not before the login, however slow this machine is: the client, and the end
/// in seconds.
fn login_for_a_moment(gateway: &Gateway, user: u64) -> (Client, u64) {
    for secs in [2, 5, 10, 20, 40] {
        let exp = get_current_timestamp() + secs;
        let mut client = Client::connect(gateway);
        client.write(&Login::of(user).token(&Claims::until(user, exp).hs256(SECRET)).frame());
        let answer = client.recv();
        if answer.kind == kind::LOGIN_OK {
            assert_eq!(LoginOk::parse(&answer).expires_ms, exp * 1_000);
            return (client, exp);
        }
        assert_eq!(wire::bye_text(&answer), EXPIRED);
    }
    panic!("a login takes longer than 40 s");
}

/// The BYE of a session whose token ends at `exp` seconds must come, and not before that.
fn expect_end_of_token(client: &mut Client, exp: u64) {
    let left = Duration::from_secs(exp.saturating_sub(get_current_timestamp()));
    match client.read_event(left + PATIENCE) {
        Event::Frame(bye) => assert_eq!((bye.aux, wire::bye_text(&bye).as_str()), (code::BAD_CREDENTIALS, EXPIRED)),
        other => panic!("expected a BYE, got {other:?}"),
    }
    assert!(get_current_timestamp() >= exp, "the session ended before its token");
    client.expect_closed();
}

#[test]
fn a_good_hs256_token_opens_a_session() {
    with_hs256(|gateway| {
        for user in [1, 2, 3, USER_MAX] {
            assert_accepted(gateway, user, &Claims::of(user).hs256(SECRET));
        }
        Bystanders::with_token(gateway, |user| Claims::of(user).hs256(SECRET));
    });
}

#[test]
fn a_good_ed25519_token_opens_a_session() {
    with_ed25519(|gateway| {
        for user in [1, 2, 3, USER_MAX] {
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
        // As long as a LOGIN may be, and longer than a token.
        let long = "a".repeat(8_000);
        for token in ["", ".", "..", "a.b.c", "eyJhbGciOiJIUzI1NiJ9..", &long] {
            assert_refused(gateway, 1, token);
        }
    });
}

#[test]
fn a_session_ends_with_its_token() {
    with_hs256(|gateway| {
        let mut bystanders = Bystanders::with_token(gateway, |user| Claims::of(user).hs256(SECRET));
        for user in [1, 2, 3] {
            let (mut client, exp) = login_for_a_moment(gateway, user);
            client.ping();
            expect_end_of_token(&mut client, exp);
        }
        bystanders.talk();
        gateway.wait_for_metrics("three ends", |metrics| metrics.closed(reason_label::TOKEN_EXPIRED) == 3);
    });
}

#[test]
fn a_session_that_renews_its_token_in_time_goes_on_for_as_long_as_the_new_one() {
    with_hs256(|gateway| {
        for user in [1, 2] {
            let (mut client, _) = login_for_a_moment(gateway, user);
            let (mut other, exp) = login_for_a_moment(gateway, user + 100);
            let later = get_current_timestamp() + 3_600;
            client.write(&Login::of(user).token(&Claims::until(user, later).hs256(SECRET)).renew_frame());
            let renewed = client.recv();
            if renewed.kind == kind::BYE {
                // Slower than the token lasts: nothing to see here, and the other user's turn shows as much.
                assert_eq!(wire::bye_text(&renewed), EXPIRED);
                continue;
            }
            assert_eq!(LoginOk::parse(&renewed).expires_ms, later * 1_000);
            // The other began later, so the first token has ended when its own has.
            expect_end_of_token(&mut other, exp);
            client.ping();
        }
        assert!(gateway.metrics().sum(metric::TOKEN_RENEWALS, &[]) >= 1);
    });
}

#[test]
fn a_renewal_may_also_bring_the_end_nearer() {
    with_hs256(|gateway| {
        let (mut client, login_ok) = Client::login_with(gateway, &Login::of(1).token(&Claims::of(1).hs256(SECRET)));
        let exp = get_current_timestamp() + 3;
        client.write(&Login::of(1).token(&Claims::until(1, exp).hs256(SECRET)).renew_frame());
        let answer = client.recv();
        if answer.kind == kind::LOGIN_OK {
            let renewed = LoginOk::parse(&answer);
            assert_eq!((renewed.session, renewed.expires_ms), (login_ok.session, exp * 1_000));
            expect_end_of_token(&mut client, exp);
        } else {
            // This machine is slower than that.
            assert_eq!((answer.kind, answer.aux), (kind::ERROR, code::BAD_CREDENTIALS));
        }
    });
}

#[test]
fn a_renewal_that_is_refused_changes_nothing() {
    with_hs256(|gateway| {
        let (mut client, exp) = login_for_a_moment(gateway, 1);
        client.write(&Login::of(1).token("no token at all").renew_frame());
        let answer = client.recv();
        if answer.kind == kind::ERROR {
            assert_eq!((answer.aux, answer.id, answer.peer), (code::BAD_CREDENTIALS, 0, 0));
            assert!(String::from_utf8_lossy(&answer.body).contains("cannot be read"), "{answer:?}");
            expect_end_of_token(&mut client, exp);
        }
        let (mut client, _) = Client::login_with(gateway, &Login::of(2).token(&Claims::of(2).hs256(SECRET)));
        client.write(&Login::of(2).token(&Claims::of(3).hs256(SECRET)).renew_frame());
        assert_eq!(client.recv_error_text(code::BAD_CREDENTIALS), "the token is another user's");
        client.ping();
    });
}

#[test]
fn renewals_that_follow_each_other_at_once_are_not_looked_at() {
    with_hs256(|gateway| {
        let (mut client, _) = Client::login_with(gateway, &Login::of(1).token(&Claims::of(1).hs256(SECRET)));
        let renewal = Login::of(1).token(&Claims::of(1).hs256(SECRET)).renew_frame().encode();
        client.write_bytes(&renewal.repeat(20));
        client.expect_login_ok();
        client.expect_error(code::RATE_LIMITED, 0, 0);
        let rest = client.recv_until_pong();
        assert_eq!(rest.len(), 18);
        gateway.wait_for_metrics("the limit is counted", |metrics| metrics.limit_hits(limit_label::RENEW) > 0);
    });
}

#[test]
fn each_refusal_says_what_was_wrong_and_is_counted_by_it() {
    let secret = ScratchFile::new("hs256", SECRET);
    let named = format!("named={}", secret.path());
    let key = ScratchFile::new("ed25519.pem", ED25519_PUBLIC_PEM);
    let key = format!("ed={}", key.path());
    let flags = [
        "--auth",
        "jwt",
        "--jwt-hs256-secret-file",
        &named,
        "--jwt-ed25519-public-key-file",
        &key,
        "--jwt-issuer",
        "https://a,https://b",
        "--jwt-audience",
        "chat",
        "--jwt-leeway-secs",
        "60",
    ];
    let now = get_current_timestamp();
    let good = || Claims { iss: Some("https://b"), aud: Some(vec!["mail", "chat"]), ..Claims::of(1) };
    let sign = |claims: Claims| claims.hs256(SECRET);
    let long = "a".repeat(5_000);
    let cases = [
        (String::new(), "missing", "there is no token"),
        (long, "too_long", "longer than 4 KiB"),
        ("a.b.c".to_owned(), "unreadable", "cannot be read"),
        (sign(Claims { exp: None, ..good() }), "unreadable", "cannot be read"),
        (good().hs256_as("other", SECRET), "unknown_key", "unknown here"),
        (good().hs256_as("ed", SECRET), "unknown_key", "unknown here"),
        (good().hs256(OTHER_SECRET), "bad_signature", "signature is wrong"),
        (good().hs256_as("named", OTHER_SECRET), "bad_signature", "signature is wrong"),
        (sign(Claims { iss: None, ..good() }), "wrong_issuer", "another issuer"),
        (sign(Claims { iss: Some("https://c"), ..good() }), "wrong_issuer", "another issuer"),
        (sign(Claims { aud: Some(vec!["mail"]), ..good() }), "wrong_audience", "another audience"),
        (sign(Claims { sub: Some("2".to_owned()), ..good() }), "wrong_subject", "another user's"),
        (sign(Claims { exp: Some(now - 10), ..good() }), "expired", EXPIRED),
        (sign(Claims { nbf: Some(now + 3_000), ..good() }), "not_yet_valid", "not valid yet"),
    ];
    with_gateway(2, &flags, |gateway| {
        assert_accepted(gateway, 1, &sign(good()));
        assert_accepted(gateway, 1, &good().hs256_as("named", SECRET));
        assert_accepted(gateway, 1, &good().ed25519());
        // Within the leeway.
        assert_accepted(gateway, 1, &sign(Claims { nbf: Some(get_current_timestamp() + 30), ..good() }));
        for (token, reason, words) in &cases {
            let text = refusal(gateway, 1, token);
            assert!(text.contains(words), "{reason}: {text}");
            let expected = cases.iter().filter(|(_, other, _)| other == reason).count() as u64;
            gateway.wait_for_metrics("it is counted", |metrics| {
                (1..=expected).contains(&metrics.sum(metric::TOKENS_REFUSED, &[("reason", reason)]))
            });
        }
        let refused = gateway.metrics().sum(metric::TOKENS_REFUSED, &[]);
        assert_eq!(refused, cases.len() as u64);
        gateway.wait_for_metrics("all are closed", |metrics| metrics.closed(reason_label::BAD_CREDENTIALS) == refused);
    });
}

#[test]
fn a_refusal_leaves_a_line_in_the_log_and_many_leave_few() {
    with_hs256(|gateway| {
        refusal(gateway, 4_711, "");
        let lines =
            || gateway.log().lines().filter(|line| line.contains("refused")).map(str::to_owned).collect::<Vec<_>>();
        let first = wait_for("a line about the refusal", || lines().first().cloned());
        assert!(first.contains("login refused: there is no token") && first.contains("4711"), "{first}");
        refusal(gateway, 4_712, &Claims::of(4_712).hs256_as("2019\n-b", OTHER_SECRET));
        wait_for("a line that names the key", || {
            lines().into_iter().find(|line| line.contains("unknown here") && line.contains(r#"kid="2019\n-b""#))
        });
        assert!(
            !first.contains("WARN") && !first.contains("ERROR"),
            "what strangers do is no trouble of the node: {first}"
        );
        // As many as it takes for some to fall into one second.
        let told = wait_for("a line tells of those left out", || {
            for user in 1..=20 {
                refusal(gateway, user, "no token");
            }
            lines().into_iter().find(|line| line.contains("suppressed=") && !line.contains("suppressed=0"))
        });
        assert!(told.contains("login refused"), "{told}");
        let refused = gateway.metrics().sum(metric::TOKENS_REFUSED, &[]);
        assert!((lines().len() as u64) < refused);
    });
}

#[test]
fn the_client_library_keeps_a_session_beyond_its_tokens() {
    with_hs256(|gateway| {
        let provider = || async { Ok::<_, String>(Claims::until(1, get_current_timestamp() + 6).hs256(SECRET)) };
        let config = trunkline_client::Config {
            addrs: vec![gateway.client_address().to_string()],
            user: 1,
            token: trunkline_client::Token::provider(provider),
            ..trunkline_client::Config::default()
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let (client, _events) = trunkline_client::Client::connect(config).await.expect("a login");
            let first_end = client.session().expires_ms;
            let patience = tokio::time::Instant::now() + 2 * PATIENCE;
            while client.session().expires_ms == first_end {
                assert!(tokio::time::Instant::now() < patience, "nothing is renewed");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            client.close().await;
        });
        assert!(gateway.metrics().sum(metric::TOKEN_RENEWALS, &[]) >= 1);
    });
}

#[test]
fn a_guest_of_another_node_ends_with_the_token_too() {
    let secret = ScratchFile::new("hs256", SECRET);
    let flags = ["--auth", "jwt", "--jwt-hs256-secret-file", secret.path()];
    let fleet = crate::cluster_support::Fleet::start(&["a", "b"], &flags);
    // Whoever logs in at a node that is not the home waits for the home's answer, with the end of the token.
    let mut clients: Vec<(Client, u64)> = (1..=8).map(|user| login_for_a_moment(fleet.node(0), user)).collect();
    assert!(fleet.node(1).metrics().sum("trunkline_registrations_total", &[]) > 0, "nobody is a guest");
    for (client, exp) in &mut clients {
        expect_end_of_token(client, *exp);
    }
    fleet.node(0).wait_for_metrics("all have ended", |metrics| metrics.closed(reason_label::TOKEN_EXPIRED) == 8);
    fleet.node(1).wait_for_metrics("their home knows", |metrics| metrics.sum("trunkline_remote_sessions", &[]) == 0);
    fleet.finish();
}
