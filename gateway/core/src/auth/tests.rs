use super::signing::encode;
use super::*;
use jsonwebtoken::{EncodingKey, Header};
use serde_json::json;

const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";
const OTHER_SECRET: &[u8] = b"another secret that is long enough";
const NOW: u64 = 1_800_000_000;
/// The example key pair of RFC 8410, section 10.
const PRIVATE_PEM: &str = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n-----END PRIVATE KEY-----\n";
const PUBLIC_PEM: &str = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n-----END PUBLIC KEY-----\n";

fn hs256() -> Auth {
    Auth::Jwt(Box::new(JwtKeys::default().with_hs256(None, SECRET).unwrap()))
}

fn ed25519() -> Auth {
    Auth::Jwt(Box::new(JwtKeys::default().with_ed25519(None, PUBLIC_PEM.as_bytes()).unwrap()))
}

fn both() -> Auth {
    Auth::Jwt(Box::new(
        JwtKeys::default().with_hs256(None, SECRET).unwrap().with_ed25519(None, PUBLIC_PEM.as_bytes()).unwrap(),
    ))
}

fn good() -> Value {
    json!({"sub": "42", "exp": NOW + 1})
}

fn sign(claims: &Value, secret: &[u8], algorithm: Algorithm) -> String {
    encode(&Header::new(algorithm), claims, &EncodingKey::from_secret(secret))
}

fn sign_ed25519(claims: &Value) -> String {
    encode(&Header::new(Algorithm::EdDSA), claims, &EncodingKey::from_ed_pem(PRIVATE_PEM.as_bytes()).unwrap())
}

/// A token with a `kid` in its header.
fn sign_as(id: &str, claims: &Value, secret: &[u8]) -> String {
    let header = Header { kid: Some(id.to_owned()), ..Header::new(Algorithm::HS256) };
    encode(&header, claims, &EncodingKey::from_secret(secret))
}

fn check(auth: &Auth, token: &str) -> Result<(), Refusal> {
    auth.check(42, token, NOW).map(drop)
}

fn check_claims(claims: &Value) -> Result<(), Refusal> {
    check(&hs256(), &sign(claims, SECRET, Algorithm::HS256))
}

#[test]
fn auth_may_be_used_from_all_shards() {
    fn shared<T: Send + Sync>() {}
    shared::<Auth>();
}

#[test]
fn open_lets_everybody_in() {
    assert_eq!(Auth::Open.check(1, "", 0), Ok(TokenEnd::NEVER));
}

#[test]
fn a_good_token_lets_its_user_in_and_no_other() {
    for (auth, token) in [
        (hs256(), sign(&good(), SECRET, Algorithm::HS256)),
        (both(), sign(&good(), SECRET, Algorithm::HS256)),
        (ed25519(), sign_ed25519(&good())),
        (both(), sign_ed25519(&good())),
    ] {
        assert_eq!(auth.check(42, &token, NOW), Ok(TokenEnd(NOW as u32 + 1)));
        assert_eq!(auth.check(43, &token, NOW), Err(Refusal::WrongSubject));
    }
    let largest = json!({"sub": u64::MAX.to_string(), "exp": NOW + 1});
    assert!(hs256().check(u64::MAX, &sign(&largest, SECRET, Algorithm::HS256), NOW).is_ok());
}

#[test]
fn times_are_judged_by_the_clock_given() {
    let expiring = sign(&json!({"sub": "42", "exp": 1_000}), SECRET, Algorithm::HS256);
    assert_eq!(hs256().check(42, &expiring, 999), Ok(TokenEnd(1_000)));
    assert_eq!(hs256().check(42, &expiring, 1_000), Err(Refusal::Expired));
    let early = sign(&json!({"sub": "42", "exp": 1_010, "nbf": 1_001}), SECRET, Algorithm::HS256);
    assert_eq!(hs256().check(42, &early, 1_000), Err(Refusal::NotYetValid));
    assert_eq!(hs256().check(42, &early, 1_001), Ok(TokenEnd(1_010)));
}

#[test]
fn clocks_may_differ_by_the_leeway_for_the_beginning_and_not_for_the_end() {
    let keys = JwtKeys::default().with_hs256(None, SECRET).unwrap().with_leeway_s(5);
    let auth = Auth::Jwt(Box::new(keys));
    let token = sign(&json!({"sub": "42", "exp": 1_010, "nbf": 1_001}), SECRET, Algorithm::HS256);
    assert_eq!(auth.check(42, &token, 995), Err(Refusal::NotYetValid));
    assert_eq!(auth.check(42, &token, 996), Ok(TokenEnd(1_010)));
    assert_eq!(auth.check(42, &token, 1_010), Err(Refusal::Expired));
}

#[test]
fn the_end_of_a_token_is_its_exp_rounded_up_and_cut_to_32_bits() {
    let end = |exp: f64| {
        let token = sign(&json!({"sub": "42", "exp": exp}), SECRET, Algorithm::HS256);
        hs256().check(42, &token, 0).map(TokenEnd::ms)
    };
    assert_eq!(end(0.5), Ok(1_000));
    assert_eq!(end(1_000.0), Ok(1_000_000));
    assert_eq!(end(1_000.001), Ok(1_001_000));
    for exp in [f64::from(u32::MAX), 9_999_999_999.0, 1e300] {
        assert_eq!(end(exp), Ok(u64::from(u32::MAX) * 1_000), "{exp}");
    }
    let end = TokenEnd(1_000);
    assert!(!end.is_over(999_999) && end.is_over(1_000_000) && !TokenEnd::NEVER.is_over(u64::MAX));
}

#[test]
fn times_may_have_fractions_and_be_in_the_past() {
    assert_eq!(check_claims(&json!({"sub": "42", "exp": NOW as f64 + 0.5, "nbf": null})), Ok(()));
    for exp in [json!(NOW as f64 - 0.5), json!(0), json!(-1)] {
        assert_eq!(check_claims(&json!({"sub": "42", "exp": exp})), Err(Refusal::Expired), "{exp}");
    }
}

#[test]
fn the_subject_is_the_user_in_plain_decimal() {
    for sub in ["43", "", "042", "+42", " 42", "42 ", "42.0", "0x2a", "forty-two"] {
        assert_eq!(check_claims(&json!({"sub": sub, "exp": NOW + 1})), Err(Refusal::WrongSubject), "{sub:?}");
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
        assert_eq!(check_claims(&claims), Err(Refusal::Unreadable), "{claims}");
    }
}

#[test]
fn a_wrong_signature_is_refused() {
    assert_eq!(check(&hs256(), &sign(&good(), OTHER_SECRET, Algorithm::HS256)), Err(Refusal::BadSignature));
    let other = sign(&json!({"sub": "42", "exp": NOW + 2}), SECRET, Algorithm::HS256);
    let (_, signature) = other.rsplit_once('.').unwrap();
    for (auth, token) in [(hs256(), sign(&good(), SECRET, Algorithm::HS256)), (ed25519(), sign_ed25519(&good()))] {
        let (signed, _) = token.rsplit_once('.').unwrap();
        for signature in [signature, "", &"A".repeat(86)] {
            assert_eq!(check(&auth, &format!("{signed}.{signature}")), Err(Refusal::BadSignature), "{signature}");
        }
        // No base64url.
        for signature in ["A", "%%"] {
            assert_eq!(check(&auth, &format!("{signed}.{signature}")), Err(Refusal::Unreadable), "{signature}");
        }
    }
}

#[test]
fn only_algorithms_with_a_configured_key_are_taken() {
    assert_eq!(check(&hs256(), &sign_ed25519(&good())), Err(Refusal::UnknownKey));
    assert_eq!(check(&ed25519(), &sign(&good(), SECRET, Algorithm::HS256)), Err(Refusal::UnknownKey));
    for algorithm in [Algorithm::HS384, Algorithm::HS512] {
        assert_eq!(check(&hs256(), &sign(&good(), SECRET, algorithm)), Err(Refusal::UnknownKey));
    }
    // The public key is public, so it must not serve as a secret.
    let forged = sign(&good(), PUBLIC_PEM.as_bytes(), Algorithm::HS256);
    assert_eq!(check(&ed25519(), &forged), Err(Refusal::UnknownKey));
    assert_eq!(check(&both(), &forged), Err(Refusal::BadSignature));
}

#[test]
fn a_token_that_names_its_key_is_tried_with_no_other() {
    let keys = JwtKeys::default().with_hs256(Some("old"), OTHER_SECRET).unwrap();
    let keys = keys.with_hs256(Some("new"), SECRET).unwrap().with_ed25519(Some("ed"), PUBLIC_PEM.as_bytes()).unwrap();
    let auth = Auth::Jwt(Box::new(keys));
    assert_eq!(check(&auth, &sign_as("old", &good(), OTHER_SECRET)), Ok(()));
    assert_eq!(check(&auth, &sign_as("new", &good(), SECRET)), Ok(()));
    assert_eq!(check(&auth, &sign_as("new", &good(), OTHER_SECRET)), Err(Refusal::BadSignature));
    // The key of that name is for another algorithm.
    assert_eq!(check(&auth, &sign_as("ed", &good(), SECRET)), Err(Refusal::UnknownKey));
    for id in ["", "olde", "OLD"] {
        assert_eq!(check(&auth, &sign_as(id, &good(), SECRET)), Err(Refusal::UnknownKey), "{id:?}");
    }
    // One that names none is tried with all of its algorithm.
    for token in
        [sign(&good(), SECRET, Algorithm::HS256), sign(&good(), OTHER_SECRET, Algorithm::HS256), sign_ed25519(&good())]
    {
        assert_eq!(check(&auth, &token), Ok(()));
    }
    assert_eq!(check(&auth, &sign(&good(), &[7; 32], Algorithm::HS256)), Err(Refusal::BadSignature));
    let shown = format!("{auth} {auth:?}");
    assert!(auth.to_string() == "jwt, keys HS256:old HS256:new EdDSA:ed", "{shown}");
    assert!(!shown.contains("0123456789"), "{shown}");
}

#[test]
fn a_key_without_an_id_takes_tokens_of_ids_that_no_other_key_has() {
    let keys = JwtKeys::default().with_hs256(None, SECRET).unwrap().with_hs256(Some("named"), OTHER_SECRET).unwrap();
    let auth = Auth::Jwt(Box::new(keys));
    assert_eq!(check(&auth, &sign_as("whatever", &good(), SECRET)), Ok(()));
    assert_eq!(check(&auth, &sign_as("whatever", &good(), OTHER_SECRET)), Err(Refusal::UnknownKey));
    assert_eq!(check(&auth, &sign_as("named", &good(), SECRET)), Err(Refusal::BadSignature));
}

#[test]
fn issuer_and_audience_are_looked_at_where_they_are_demanded() {
    let auth = |issuers: &[&str], audiences: &[&str]| {
        let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        let keys = JwtKeys::default().with_hs256(None, SECRET).unwrap();
        Auth::Jwt(Box::new(keys.with_issuers(texts(issuers)).with_audiences(texts(audiences))))
    };
    let with = |more: Value| {
        let mut claims = good();
        claims.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        sign(&claims, SECRET, Algorithm::HS256)
    };
    let issued = auth(&["https://a", "https://b"], &[]);
    for iss in ["https://a", "https://b"] {
        assert_eq!(check(&issued, &with(json!({"iss": iss}))), Ok(()));
    }
    for more in [json!({}), json!({"iss": "https://c"}), json!({"iss": ["https://a"]}), json!({"iss": null})] {
        assert_eq!(check(&issued, &with(more.clone())), Err(Refusal::WrongIssuer), "{more}");
        assert_eq!(check(&hs256(), &with(more)), Ok(()));
    }
    let meant = auth(&[], &["chat", "push"]);
    for aud in [json!("chat"), json!(["other", "push"])] {
        assert_eq!(check(&meant, &with(json!({"aud": aud}))), Ok(()), "{aud}");
    }
    for more in [json!({}), json!({"aud": "cha"}), json!({"aud": []}), json!({"aud": [["chat"]]}), json!({"aud": 1})] {
        assert_eq!(check(&meant, &with(more.clone())), Err(Refusal::WrongAudience), "{more}");
        assert_eq!(check(&hs256(), &with(more)), Ok(()));
    }
    // What a stranger signed is not told what it should have said.
    let forged = sign(&json!({"sub": "1", "exp": 0}), OTHER_SECRET, Algorithm::HS256);
    assert_eq!(check(&issued, &forged), Err(Refusal::BadSignature));
}

#[test]
fn every_refusal_has_words_and_a_label_of_its_own() {
    for (at, refusal) in Refusal::ALL.iter().enumerate() {
        assert_eq!(*refusal as usize, at);
        assert!(!refusal.text().ends_with('.') && refusal.text().len() <= 80);
        for other in &Refusal::ALL[..at] {
            assert!(refusal.text() != other.text() && refusal.label() != other.label());
        }
    }
    // The words of PROTOCOL.md.
    assert_eq!(Refusal::Expired.to_string(), "the token has expired");
}

#[test]
fn unsigned_tokens_are_refused() {
    let token = sign(&good(), SECRET, Algorithm::HS256);
    let [_, claims, signature] = token.split('.').collect::<Vec<_>>()[..] else { panic!("three parts: {token}") };
    // {"alg":"none","typ":"JWT"} and {"alg":"None"}
    for header in ["eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0", "eyJhbGciOiJOb25lIn0"] {
        for signature in ["", signature] {
            assert_eq!(check(&hs256(), &format!("{header}.{claims}.{signature}")), Err(Refusal::Unreadable));
        }
    }
}

#[test]
fn a_token_that_demands_an_extension_is_refused() {
    let mut header = Header::new(Algorithm::HS256);
    header.crit = Some(vec!["b64".to_owned()]);
    let token = encode(&header, &good(), &EncodingKey::from_secret(SECRET));
    assert_eq!(check(&hs256(), &token), Err(Refusal::Unreadable));
}

#[test]
fn what_is_no_token_is_refused() {
    for token in [".", "..", "...", "a.b", "a.b.c", "a.b.c.d", "\u{1F600}.\u{1F600}.\u{1F600}"] {
        assert_eq!(check(&hs256(), token), Err(Refusal::Unreadable), "{token:?}");
    }
    assert_eq!(check(&hs256(), ""), Err(Refusal::Missing));
    assert_eq!(check(&hs256(), &"x".repeat(TOKEN_BYTES_MAX + 1)), Err(Refusal::TooLong));
}

#[test]
fn keys_that_cannot_be_used_are_refused() {
    assert_eq!(JwtKeys::default().with_hs256(None, &SECRET[1..]).err(), Some(KeyError::SecretTooShort { bytes: 31 }));
    let rsa = "-----BEGIN PUBLIC KEY-----\nMFwwDQYJKoZIhvcNAQEBBQADSwAwSAJBAK6pSGoAbhFXF0gwRMgZf3uZmHaYv0pW\n-----END PUBLIC KEY-----\n";
    // An Ed25519 SubjectPublicKeyInfo whose key has 8 bytes only.
    let short = "-----BEGIN PUBLIC KEY-----\nMBIwBQYDK2VwAwkAAAECAwQFBgc=\n-----END PUBLIC KEY-----\n";
    let other_tag = PUBLIC_PEM.replace("PUBLIC KEY", "CERTIFICATE");
    for pem in ["", "no pem", PRIVATE_PEM, rsa, short, &other_tag] {
        assert_eq!(
            JwtKeys::default().with_ed25519(None, pem.as_bytes()).err(),
            Some(KeyError::NotAnEd25519Pem),
            "{pem}"
        );
    }
}

#[test]
fn keys_have_ids_of_their_own_and_are_bounded_in_number() {
    let keys = JwtKeys::default().with_hs256(Some("a"), SECRET).unwrap().with_hs256(None, SECRET).unwrap();
    let keys = keys.with_hs256(None, OTHER_SECRET).unwrap();
    assert_eq!(keys.with_ed25519(Some("a"), PUBLIC_PEM.as_bytes()).err(), Some(KeyError::IdTaken("a".to_owned())));
    let many = (0..KEYS_MAX).try_fold(JwtKeys::default(), |keys, _| keys.with_hs256(None, SECRET)).unwrap();
    assert_eq!(many.with_hs256(None, SECRET).err(), Some(KeyError::TooMany));
}

#[test]
fn the_id_that_a_token_names_is_cut_for_the_log() {
    assert_eq!(key_id(&sign_as("2026-a", &good(), SECRET)).as_deref(), Some("2026-a"));
    assert_eq!(key_id(&sign_as(&"\u{fc}".repeat(100), &good(), SECRET)), Some("\u{fc}".repeat(KEY_ID_BYTES_MAX)));
    for token in [&sign(&good(), SECRET, Algorithm::HS256), "", "a.b.c", &"x".repeat(TOKEN_BYTES_MAX + 1)] {
        assert_eq!(key_id(token), None);
    }
}

#[test]
fn a_certificate_is_good_for_its_user_until_it_ends_and_a_token_counts_more() {
    let certified = |user, token: &str, now_s| hs256().check_certified(user, token, now_s, 42, NOW + 10);
    // It holds to the end of its last second, and the session as long.
    assert_eq!(certified(42, "", NOW + 10).map(|granted| granted.end), Ok(TokenEnd(NOW as u32 + 11)));
    assert_eq!(certified(42, "", NOW + 11), Err(Refusal::Expired));
    assert_eq!(certified(43, "", NOW), Err(Refusal::WrongSubject));
    // Of a token nothing is made up for by it, and it may be another user's.
    let other = sign(&json!({"sub": "43", "exp": NOW + 1}), SECRET, Algorithm::HS256);
    assert_eq!(certified(43, &other, NOW).map(|granted| granted.end), Ok(TokenEnd(NOW as u32 + 1)));
    assert_eq!(certified(42, &other, NOW), Err(Refusal::WrongSubject));
    assert!(certified(42, "nonsense", NOW).is_err());
    // Where nobody needs a token, it says nothing.
    assert_eq!(Auth::Open.check_certified(43, "", NOW, 42, 0), Ok(Granted::default()));
}
