use super::*;

// Made with another library, with the private key of 32 bytes of 7 each; OTHER_KEY with one of 8 each.
const PUBLIC: &str = "MCowBQYDK2VwAyEA6kpsY+KcUgq+9VB7Ey7F+ZVHdq6+vnuSQh7qaRRG0iw=";
const PLAIN: &str = "eyJhbGciOiJFZERTQSIsInR5cCI6IkpXVCIsImtpZCI6InNob3AifQ.eyJzdWIiOiJzaG9wLTEiLCJleHAiOjIwMDB9.YWBglKDc\
    uPeRJiRYhTgwBOFlkp-drrlF2293MIcGq9OyXpGnIYSEA94isl-mpThMt6dfBMB3HbbFVMorgk2UBQ";
const NARROW: &str = "eyJhbGciOiJFZERTQSIsInR5cCI6IkpXVCIsImtpZCI6InNob3AifQ.eyJzdWIiOiJzaG9wLTEiLCJleHAiOjIwMDAuNSwibmJmI\
    jo5MDAsInNjb3BlIjoicHVzaDp1c2VyIGZseSIsInNlcnZpY2VzIjpbNyw5XSwiYXVkIjpbIm90aGVyIiwidHJ1bmtsaW5lIl19.\
    N2bSIOtVk-S3RBgcStzrVt5ZvoaBe1NLpBlsZO0zbtBtvCor_6p0viOTbK_hH9dFtOKniTTCse55-G9dt_j2CA";
const OTHER_KEY: &str = "eyJhbGciOiJFZERTQSIsInR5cCI6IkpXVCIsImtpZCI6InNob3AifQ.eyJzdWIiOiJzaG9wLTEiLCJleHAiOjIwMDB9.grDAXoms\
    gE2y1tvR5zf44xyk_rFjj2kbvki7Vo7QVdOoyPOboZ_N2K5u3TLVbMP6NPh998L8dzU1e8XAsOpnBg";
const OTHER_LINE: &str = "eyJhbGciOiJFZERTQSIsImtpZCI6Im9wcyJ9.eyJzdWIiOiJzaG9wLTEiLCJleHAiOjIwMDB9.6jVciIRFOWq2H47utKsriXoi19\
    IqCn6zhc5wD1PFYbuqEHU5ms_ygLrnOQ0DwVVlQhEw6haodrs3THaXag83BQ";
const NO_LINE: &str = "eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiJzaG9wLTEiLCJleHAiOjIwMDB9.Rzk9CtqNOYCcRobR_Um28_I9vHO1z-BLDdX5G9IpF7\
    pTclDjhVmYdfOPxGXz14u6ngwUzc1nsw35nl9jmuRvCQ";
const CRITICAL: &str = "eyJhbGciOiJFZERTQSIsImtpZCI6InNob3AiLCJjcml0IjpbImI2NCJdfQ.eyJzdWIiOiJzaG9wLTEiLCJleHAiOjIwMDB9.nQP4\
    KpA5rH_FWJ3GwWkrKXkJLJBHyik5Uy-f_wylcZkXT7lcblZVKWackePxr3KmZWCpVvQIq-k_C5g8E8SoAA";
const HS256: &str = "eyJhbGciOiJIUzI1NiIsImtpZCI6InNob3AifQ.eyJzdWIiOiJzaG9wLTEiLCJleHAiOjIwMDB9.HYY6OQUxKU0Xz0ynnumxRkA0\
    Eu0wmWAgydes0WbmU94O67D1mHBsQ1DkTy8YiBUOFI_cEwBK8IZvffOGD5TPAg";
const NONE: &str = "eyJhbGciOiJub25lIiwia2lkIjoic2hvcCJ9.eyJzdWIiOiJzaG9wLTEiLCJleHAiOjIwMDB9.tAPtgNCFKAc8xb1QZzfq0MIKBN\
    -80OilJ5HEqxfpLR5QGjWddQ7XBFtrBUdyeja0tKO9oycLMUeJprEA5dk-Dw";
const NO_END: &str = "eyJhbGciOiJFZERTQSIsInR5cCI6IkpXVCIsImtpZCI6InNob3AifQ.eyJzdWIiOiJzaG9wLTEifQ.KnLXlDQHI9qYZ798Nw21iI\
    wwmuA6k2-MCb6_DygbLrOp-F6QYW7FLFYsPLF458P4H3olHsqXToIZ-RBwRavGCA";
const NO_SUBJECT: &str = "eyJhbGciOiJFZERTQSIsInR5cCI6IkpXVCIsImtpZCI6InNob3AifQ.eyJleHAiOjIwMDB9.m4X_AOB72PgqwqOLTSDTCnASOvel\
    PGMhqhhMP2hbpDwy1hcJxUfdaRHzyX4RN_1Z_xYXUVCOOKR_LZ7UehM_Ag";
const STRANGE_SUBJECT: &str = "eyJhbGciOiJFZERTQSIsInR5cCI6IkpXVCIsImtpZCI6InNob3AifQ.eyJzdWIiOiJhIGIiLCJleHAiOjIwMDB9.4wqrhtaxj9sq\
    CZuZ0At1QjL3UAmEpsxcoXAyIhraa2D2jEIT1wK7gNMcP8Lx6rM3bLEO3FpkeixyJGco5zznDA";

fn issuer(audience: Option<&str>) -> Issuer {
    Issuer::new(PUBLIC, audience.map(str::to_owned)).expect("a public key")
}

/// What is read of a token whose header names the line "shop".
fn read(token: &str, now_s: u64) -> Option<Token> {
    (line_of(token)? == "shop").then(|| issuer(None).read(token, now_s))?
}

#[test]
fn a_token_is_good_until_its_end_and_says_who_it_is() {
    let plain = Token { subject: "shop-1".to_owned(), scopes: None, services: None };
    assert_eq!((read(PLAIN, 0), read(PLAIN, 1_999), read(PLAIN, 2_000)), (Some(plain), read(PLAIN, 1), None));
    assert_eq!((read(NARROW, 839), read(NARROW, 2_001)), (None, None), "not before its time, and not after");
    let narrow = read(NARROW, 2_000).expect("half a second is left");
    assert_eq!((narrow.scopes, narrow.services), (Some(vec![Scope::PushUser]), Some(vec![7, 9])));
    assert!(read(NARROW, 840).is_some(), "clocks differ");
}

#[test]
fn what_is_signed_by_nobody_is_no_token() {
    for token in [OTHER_KEY, OTHER_LINE, NO_LINE, CRITICAL, HS256, NONE, NO_END, NO_SUBJECT, STRANGE_SUBJECT] {
        assert_eq!(read(token, 1_000), None, "{token}");
    }
    for at in 0..PLAIN.len() {
        let mut wrong = PLAIN.to_owned().into_bytes();
        wrong[at] = if wrong[at] == b'A' { b'B' } else { b'A' };
        assert_eq!(read(std::str::from_utf8(&wrong).unwrap(), 1_000), None, "byte {at}");
        assert_eq!(read(&PLAIN[..at], 1_000), None);
    }
    for text in ["", ".", "..", "...", "tlk_ops_00", &"a".repeat(5_000), &format!("{PLAIN}="), &format!("{PLAIN}.")] {
        assert_eq!(read(text, 1_000), None);
    }
}

#[test]
fn a_token_is_for_whom_its_issuer_says() {
    let asked = |audience, token| issuer(audience).read(token, 1_000).is_some();
    assert!(asked(Some("trunkline"), NARROW) && asked(Some("other"), NARROW));
    assert!(!asked(Some("else"), NARROW) && !asked(Some("trunkline"), PLAIN));
}

#[test]
fn a_token_takes_away_and_never_adds() {
    let line = [Scope::PushGroup, Scope::Kick];
    let limits = |services: Option<&[u16]>| KeyLimits { services: services.map(Into::into), pushes_per_sec: Some(5) };
    let narrow = read(NARROW, 1_000).expect("a token");
    assert_eq!(narrow.within(&line, &limits(None)), (Vec::new(), limits(Some(&[7, 9]))));
    let with_push = [Scope::PushUser, Scope::Kick];
    let left = narrow.within(&with_push, &limits(Some(&[8, 9])));
    assert_eq!(left, (vec![Scope::PushUser], limits(Some(&[9]))));
    let plain = read(PLAIN, 1_000).expect("a token");
    assert_eq!(plain.within(&line, &limits(Some(&[8]))), (line.to_vec(), limits(Some(&[8]))));
}

#[test]
fn what_is_no_public_key_is_refused_with_the_reason() {
    let cut = &PUBLIC[..PUBLIC.len() - 4];
    let pem = format!("-----BEGIN PUBLIC KEY-----\n{PUBLIC}\n-----END PUBLIC KEY-----");
    for text in ["", "MCow", cut, &pem, &PUBLIC.replacen("MCow", "MCox", 1)] {
        assert!(Issuer::new(text, None).unwrap_err().contains("openssl pkey -pubout"), "{text}");
    }
    assert!(Issuer::new(PUBLIC, Some(String::new())).unwrap_err().contains("audience"));
}
