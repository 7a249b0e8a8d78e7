//! Requests that are served, and each refusal.

use super::{FIELDS_MAX, HEAD_BYTES_MAX, Refusal, Request, Rules, Upgrade, put_health, read};
use crate::transport::fuzz;
use proptest::collection::vec;
use proptest::prelude::*;

/// The example of RFC 6455, section 1.3, at this product's path.
const FIELDS: [&str; 6] = [
    "Host: server.example.com",
    "Upgrade: websocket",
    "Connection: Upgrade",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    "Origin: http://server.example.com",
    "Sec-WebSocket-Version: 13",
];

fn request(line: &str, fields: &[&str]) -> Vec<u8> {
    let mut head = format!("{line}\r\n");
    for field in fields {
        head.push_str(field);
        head.push_str("\r\n");
    }
    head.push_str("\r\n");
    head.into_bytes()
}

/// The example with a field replaced, or without it.
fn with(name: &str, field: Option<&str>) -> Vec<u8> {
    let other = |known: &&&str| !known.starts_with(&format!("{name}:"));
    let mut fields: Vec<&str> = FIELDS.iter().filter(other).copied().collect();
    fields.extend(field);
    request("GET /ws HTTP/1.1", &fields)
}

/// The example and one more field.
fn and(field: &str) -> Vec<u8> {
    with("Nothing", Some(field))
}

fn upgraded(rules: &Rules, head: &[u8]) -> Upgrade {
    match read(rules, head, 0) {
        Ok(Some((Request::Upgrade(upgrade), end))) if end == head.len() => upgrade,
        told => panic!("{told:?} to {}", head.escape_ascii()),
    }
}

fn response(upgrade: &Upgrade) -> String {
    let mut bytes = Vec::new();
    upgrade.put_response(&mut bytes);
    String::from_utf8(bytes).expect("text")
}

fn refused(rules: &Rules, head: &[u8]) -> Refusal {
    read(rules, head, 0).expect_err(&head.escape_ascii().to_string())
}

#[test]
fn the_example_of_the_rfc_is_answered_as_the_rfc_says() {
    let upgrade = upgraded(&Rules::default(), &request("GET /ws HTTP/1.1", &FIELDS));
    assert_eq!(
        response(&upgrade),
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
    );
    assert_eq!(upgrade.token, None);
}

#[test]
fn a_head_is_read_when_its_last_byte_is_there_and_not_before() {
    let head = request("GET /ws?v=1 HTTP/1.1", &FIELDS);
    let bare: Vec<u8> = head.iter().copied().filter(|byte| *byte != b'\r').collect();
    for head in [head, bare] {
        for there in 0..head.len() {
            assert_eq!(read(&Rules::default(), &head[..there], 0), Ok(None), "{there} bytes");
            for looked in 0..=there {
                assert_eq!(read(&Rules::default(), &head[..there], looked), Ok(None), "{there} bytes");
            }
        }
        // What was looked at has no end of a head in it.
        for looked in 0..head.len() {
            for behind in [&b""[..], b"\x82\x80\0\0\0\0", b"\n\n"] {
                let bytes = [&head[..], behind].concat();
                let told = read(&Rules::default(), &bytes, looked);
                let Ok(Some((Request::Upgrade(_), end))) = told else { panic!("{told:?}, {looked} bytes looked at") };
                assert_eq!(end, head.len());
            }
        }
    }
}

#[test]
fn names_lists_and_case_are_read_as_http_means_them() {
    let fields = [
        "HOST: server.example.com",
        "upgrade: h2c, WebSocket",
        "connection: keep-alive, Upgrade",
        "sec-websocket-key:dGhlIHNhbXBsZSBub25jZQ==  ",
        "sec-websocket-version: 13",
        "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits",
        "Content-Length: 0",
    ];
    let answer = response(&upgraded(&Rules::default(), &request("GET /ws HTTP/1.1", &fields)));
    assert!(!answer.contains("Extensions"), "no extension is accepted");
}

#[test]
fn the_subprotocol_is_told_to_who_offers_it() {
    for offered in ["trunkline.v1", "chat, trunkline.v1 ,superchat"] {
        let upgrade = upgraded(&Rules::default(), &and(&format!("Sec-WebSocket-Protocol: {offered}")));
        assert!(response(&upgrade).contains("\r\nSec-WebSocket-Protocol: trunkline.v1\r\n"));
    }
    let head = request(
        "GET /ws HTTP/1.1",
        &[&FIELDS[..], &["Sec-WebSocket-Protocol: chat", "Sec-WebSocket-Protocol: trunkline.v1"]].concat(),
    );
    assert!(response(&upgraded(&Rules::default(), &head)).contains("trunkline.v1"));
    for offered in ["chat", "Trunkline.v1", "trunkline.v2, chat", ""] {
        let head = and(&format!("Sec-WebSocket-Protocol: {offered}"));
        assert_eq!(refused(&Rules::default(), &head), Refusal::Subprotocol);
    }
}

/// What becomes of a page of `origin` that asks `host`.
fn judged(rules: &Rules, host: &str, origin: &str) -> Result<(), Refusal> {
    let others = FIELDS.iter().filter(|field| !field.starts_with("Host") && !field.starts_with("Origin"));
    let (host, origin) = (format!("Host: {host}"), format!("Origin: {origin}"));
    let fields: Vec<&str> = others.copied().chain([&host[..], &origin]).collect();
    read(rules, &request("GET /ws HTTP/1.1", &fields), 0).map(|_| ())
}

#[test]
fn a_name_that_a_stranger_may_have_led_here_is_not_that_of_a_node_for_this_machine() {
    let rules = Rules { loopback_names: true, origins: vec!["http://a.example".to_owned()], ..Rules::default() };
    for host in ["localhost:7700", "LOCALHOST", "127.0.0.1:7700", "127.9.9.9", "[::1]:7700", "[::1]"] {
        assert_eq!(judged(&rules, host, &format!("http://{host}")), Ok(()), "{host}");
    }
    for host in ["evil.example:7700", "localhost.evil.example", "127.0.0.1.nip.io:7700", "10.0.0.9:7700", "[::1"] {
        assert_eq!(judged(&rules, host, &format!("http://{host}")), Err(Refusal::Origin), "{host}");
        assert_eq!(judged(&Rules::default(), host, &format!("http://{host}")), Ok(()), "{host}");
    }
    // A page that is listed is known, and a program has no page.
    assert_eq!(judged(&rules, "evil.example", "http://a.example"), Ok(()));
    upgraded(&rules, &with("Origin", None));
}

#[test]
fn pages_of_the_host_are_served_and_others_where_they_are_listed() {
    let own = Rules::default();
    for (host, origin) in [
        ("example.com", "https://example.com"),
        ("EXAMPLE.com", "http://example.COM"),
        ("example.com:443", "https://example.com"),
        ("example.com", "http://example.com:80"),
        ("localhost:7700", "http://localhost:7700"),
        ("[::1]:7700", "http://[::1]:7700"),
    ] {
        assert_eq!(judged(&own, host, origin), Ok(()), "{origin} at {host}");
    }
    let strangers = [
        ("example.com", "https://example.org"),
        ("example.com", "https://example.com.evil.example"),
        ("example.com", "https://www.example.com"),
        ("example.com:7700", "https://example.com"),
        ("example.com:443", "http://example.com"),
        ("localhost:7700", "http://localhost:8080"),
        ("example.com", "null"),
        ("example.com", "example.com"),
        ("example.com", "chrome-extension://example.com"),
        ("example.com", "https://"),
        ("example.com", ""),
    ];
    for (host, origin) in strangers {
        assert_eq!(judged(&own, host, origin), Err(Refusal::Origin), "{origin} at {host}");
    }
    let origins = ["https://Example.org", "null"].map(str::to_owned).to_vec();
    let listed = Rules { origins, ..Rules::default() };
    assert_eq!(judged(&listed, "example.com", "https://example.org"), Ok(()));
    assert_eq!(judged(&listed, "example.com", "null"), Ok(()));
    assert_eq!(judged(&listed, "example.com", "https://example.com"), Ok(()));
    assert_eq!(judged(&listed, "example.com", "http://example.org"), Err(Refusal::Origin));
    let all = Rules { origins: vec!["*".to_owned()], ..Rules::default() };
    for (host, origin) in strangers {
        assert_eq!(judged(&all, host, origin), Ok(()), "{origin} at {host}");
    }
    // Programs name none.
    upgraded(&own, &with("Origin", None));
    assert_eq!(refused(&own, &and("Origin: https://example.org")), Refusal::Origin, "two of them");
}

#[test]
fn a_token_comes_from_authorization_before_the_cookie() {
    let rules = Rules { cookie: Some("session".to_owned()), ..Rules::default() };
    let token = |rules: &Rules, field: &str| upgraded(rules, &and(field)).token;
    let some = |token: &str| Some(token.to_owned());
    assert_eq!(token(&rules, "Authorization: Bearer abc.def"), some("abc.def"));
    assert_eq!(token(&rules, "authorization: bearer  abc "), some("abc"));
    for other in
        ["Authorization: Basic dTpw", "Authorization: Bearer", "Authorization: Bearer ", "Authorization: Bearerabc"]
    {
        assert_eq!(token(&rules, other), None, "{other}");
    }
    assert_eq!(token(&rules, "Cookie: a=b; session=xyz; c=d"), some("xyz"));
    assert_eq!(token(&rules, "Cookie: session=\"x=z\""), some("x=z"));
    assert_eq!(token(&rules, "Cookie: session=first; session=second"), some("first"));
    for other in ["Cookie: xsession=1; sessionx=2", "Cookie: session", "Cookie: session=", "Cookie: Session=1"] {
        assert_eq!(token(&rules, other), None, "{other}");
    }
    assert_eq!(token(&Rules::default(), "Cookie: session=xyz"), None, "no cookie is configured");
    let both = request("GET /ws HTTP/1.1", &[&FIELDS[..], &["Cookie: session=c", "Authorization: Bearer b"]].concat());
    assert_eq!(upgraded(&rules, &both).token, some("b"));
    assert!(!format!("{:?}", upgraded(&rules, &both)).contains("\"b\""), "a token is not for logs");
}

#[test]
fn health_is_told_to_whoever_asks() {
    for (line, wanted) in [
        ("GET /healthz HTTP/1.1", Request::Healthz),
        ("GET /readyz HTTP/1.0", Request::Readyz),
        ("GET /readyz?verbose HTTP/1.1", Request::Readyz),
    ] {
        let head = request(line, &["User-Agent: kube-probe/1.30"]);
        assert_eq!(read(&Rules::default(), &head, 0), Ok(Some((wanted, head.len()))));
    }
    for (well, status) in [(true, "HTTP/1.1 200 OK\r\n"), (false, "HTTP/1.1 503 Service Unavailable\r\n")] {
        let mut bytes = Vec::new();
        put_health(well, &mut bytes);
        let text = String::from_utf8(bytes).expect("text");
        assert!(text.starts_with(status) && text.contains("\r\nConnection: close\r\n"), "{text}");
    }
}

#[test]
fn each_refusal_has_its_request() {
    let rules = Rules::default();
    let line = |line: &str| request(line, &FIELDS);
    let without = |name: &str| with(name, None);
    for (head, refusal) in [
        (line("GET /ws HTTP/2.0"), Refusal::Malformed),
        (line("GET  /ws HTTP/1.1"), Refusal::Malformed),
        (line("GET /ws"), Refusal::Malformed),
        (and("no field"), Refusal::Malformed),
        (and("Folded: a\r\n b"), Refusal::Malformed),
        (and("Content-Length: 5"), Refusal::Body),
        (and("Content-Length: x"), Refusal::Body),
        (and("Transfer-Encoding: chunked"), Refusal::Body),
        (without("Host"), Refusal::Host),
        (with("Host", Some("Host: ")), Refusal::Host),
        (and("Host: server.example.com"), Refusal::Host),
        (without("Sec-WebSocket-Key"), Refusal::Key),
        (and("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="), Refusal::Key),
        (with("Sec-WebSocket-Key", Some("Sec-WebSocket-Key: c2hvcnQ=")), Refusal::Key),
        (with("Sec-WebSocket-Key", Some("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZTEyMzQ=")), Refusal::Key),
        (with("Sec-WebSocket-Key", Some("Sec-WebSocket-Key: !!!!!!!!!!!!!!!!!!!!!!==")), Refusal::Key),
        (and("Sec-WebSocket-Protocol: mqtt"), Refusal::Subprotocol),
        (with("Origin", Some("Origin: https://evil.example")), Refusal::Origin),
        (line("GET / HTTP/1.1"), Refusal::Path),
        (line("GET /ws/ HTTP/1.1"), Refusal::Path),
        (line("GET /wss HTTP/1.1"), Refusal::Path),
        (line("GET http://server.example.com/ws HTTP/1.1"), Refusal::Path),
        (line("GET /ws HTTP/1.0"), Refusal::NoUpgrade),
        (without("Upgrade"), Refusal::NoUpgrade),
        (without("Connection"), Refusal::NoUpgrade),
        (with("Upgrade", Some("Upgrade: h2c")), Refusal::NoUpgrade),
        (with("Connection", Some("Connection: keep-alive")), Refusal::NoUpgrade),
        (without("Sec-WebSocket-Version"), Refusal::WebSocketVersion),
        (with("Sec-WebSocket-Version", Some("Sec-WebSocket-Version: 8")), Refusal::WebSocketVersion),
        (and("Sec-WebSocket-Version: 8"), Refusal::WebSocketVersion),
        (with("Sec-WebSocket-Version", Some("Sec-WebSocket-Version: 013")), Refusal::WebSocketVersion),
    ] {
        assert_eq!(refused(&rules, &head), refusal, "{}", head.escape_ascii());
    }
}

#[test]
fn a_head_of_8192_bytes_is_read_and_a_longer_one_refused() {
    let rules = Rules::default();
    let around = and("X: ").len();
    let longest = and(&format!("X: {}", "x".repeat(HEAD_BYTES_MAX - around)));
    assert_eq!(longest.len(), HEAD_BYTES_MAX);
    upgraded(&rules, &longest);
    let longer = and(&format!("X: {}", "x".repeat(HEAD_BYTES_MAX - around + 1)));
    for there in 0..longer.len() {
        let told = read(&rules, &longer[..there], there.saturating_sub(1));
        assert_eq!(told, if there < HEAD_BYTES_MAX { Ok(None) } else { Err(Refusal::TooLarge) });
    }
    let small = Rules { head_bytes_max: 100, ..Rules::default() };
    assert_eq!(refused(&small, &request("GET /ws HTTP/1.1", &FIELDS)), Refusal::TooLarge);
}

#[test]
fn a_head_of_64_fields_is_read_and_one_with_more_refused() {
    let many = |count: usize| {
        let more: Vec<String> = (FIELDS.len()..count).map(|at| format!("X-{at}: y")).collect();
        let fields: Vec<&str> = FIELDS.iter().copied().chain(more.iter().map(String::as_str)).collect();
        request("GET /ws HTTP/1.1", &fields)
    };
    upgraded(&Rules::default(), &many(FIELDS_MAX));
    assert_eq!(refused(&Rules::default(), &many(FIELDS_MAX + 1)), Refusal::TooManyFields);
    let few = Rules { fields_max: 10, ..Rules::default() };
    upgraded(&few, &many(10));
    assert_eq!(refused(&few, &many(11)), Refusal::TooManyFields);
}

#[test]
fn every_refusal_is_an_answer_of_its_own_that_ends_the_connection() {
    let answer = |refusal: Refusal| {
        let mut bytes = Vec::new();
        refusal.put_response(&mut bytes);
        String::from_utf8(bytes).expect("text")
    };
    for (at, refusal) in Refusal::ALL.iter().enumerate() {
        let text = answer(*refusal);
        let (head, body) = text.split_once("\r\n\r\n").expect("a head");
        assert!(head.starts_with(&format!("HTTP/1.1 {}\r\n", refusal.status())));
        assert!(head.contains(&format!("\r\nContent-Length: {}", body.len())) && body == refusal.text());
        let ends = head.lines().any(|line| line.starts_with("Connection: ") && line.ends_with("close"));
        assert!(ends, "{head}");
        for other in &Refusal::ALL[..at] {
            assert!(other.label() != refusal.label() && other.text() != refusal.text());
        }
    }
    for refusal in [Refusal::NoUpgrade, Refusal::WebSocketVersion] {
        let text = answer(refusal);
        assert!(text.contains("\r\nSec-WebSocket-Version: 13\r\n") && text.contains("\r\nUpgrade: websocket\r\n"));
        assert!(text.contains("\r\nConnection: Upgrade, close\r\n"));
    }
    assert!(answer(Refusal::Unavailable).contains("\r\nRetry-After: 5\r\n"));
    assert!(answer(Refusal::Timeout).starts_with("HTTP/1.1 408 "));
}

proptest! {
    #[test]
    fn any_bytes_are_answered_alike_in_one_piece_and_in_many(bytes in vec(any::<u8>(), 0..400)) {
        fuzz::upgrade_head(&bytes);
        fuzz::upgrade_head(&[b"\x07GET /ws HTTP/1.1\r\n", &bytes[..], b"\r\n\r\n"].concat());
    }

    /// Damage to a good request reaches further than noise does.
    #[test]
    fn damaged_requests_are_answered_alike_in_one_piece_and_in_many(
        pieces in any::<u8>(),
        damage in vec(any::<(prop::sample::Index, u8)>(), 1..4),
    ) {
        let mut bytes = vec![pieces];
        bytes.extend(and("Cookie: token=abc"));
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        fuzz::upgrade_head(&bytes);
    }
}
