//! The bodies of the fuzz targets for transports, beside the code they attack. Tests run them over random bytes and
//! their corpus.

use super::upgrade::{FIELDS_MAX, HEAD_BYTES_MAX, Refusal, Request, Rules};
use super::{Opening, opening, proxy, upgrade};

/// Any bytes are judged once and for all: with as few bytes as it takes, and alike whatever follows.
pub fn proxy_header(bytes: &[u8]) {
    let whole = proxy::read(bytes);
    let mut judged = None;
    for there in 0..=bytes.len() {
        match (proxy::read(&bytes[..there]), judged) {
            (Ok(None), None) => {}
            (told, None) => judged = Some(told),
            (told, Some(judged)) => assert_eq!(told, judged, "{there} bytes changed the judgement"),
        }
    }
    assert_eq!(judged.unwrap_or(Ok(None)), whole);
    if let Ok(Some((header, len))) = whole {
        assert!(len <= bytes.len() && len <= proxy::HEADER_BYTES_MAX);
        if let proxy::Header::Client { source, destination } = header {
            assert_eq!(source.is_ipv4(), destination.is_ipv4());
        }
        assert_eq!(opening(bytes), Some(Opening::Proxy));
    }
}

/// Byte 0 picks the pieces, the rest is a request: it is answered alike in one piece and in many, and every answer is
/// HTTP.
pub fn upgrade_head(data: &[u8]) {
    let Some((&first, bytes)) = data.split_first() else { return };
    let cookie = Some("token".to_owned());
    let rules = Rules { origins: vec!["https://example.org".to_owned()], cookie, ..Rules::default() };
    let whole = upgrade::read(&rules, bytes, 0);
    let (mut there, mut looked, mut step) = (0, 0, usize::from(first));
    let split = loop {
        match upgrade::read(&rules, &bytes[..there], looked) {
            Ok(None) if there < bytes.len() => {}
            told => break told,
        }
        looked = there;
        there = (there + step % 97 + 1).min(bytes.len());
        step = (step * 5 + 3) % (1 << 16);
    };
    assert_eq!(whole, split, "the split changed the answer");
    let mut answer = Vec::new();
    match whole {
        Ok(None) => return assert!(bytes.len() < HEAD_BYTES_MAX),
        Ok(Some((request, end))) => {
            assert!(end <= bytes.len() && end <= HEAD_BYTES_MAX);
            match request {
                Request::Upgrade(upgrade) => upgrade.put_response(&mut answer),
                Request::Healthz | Request::Readyz => upgrade::put_health(end.is_multiple_of(2), &mut answer),
            }
        }
        Err(refusal) => {
            assert!(Refusal::ALL.contains(&refusal));
            refusal.put_response(&mut answer);
        }
    }
    assert_is_answer(&answer);
}

/// Panics unless the bytes are the head of an HTTP answer, with a body of the length it says.
fn assert_is_answer(answer: &[u8]) {
    let mut space = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut response = httparse::Response::new(&mut space);
    let Ok(httparse::Status::Complete(end)) = response.parse(answer) else {
        panic!("no answer: {}", answer.escape_ascii());
    };
    let length = response.headers.iter().find(|field| field.name == "Content-Length");
    let length = length.map_or(0, |field| {
        let digits = std::str::from_utf8(field.value).expect("a number");
        digits.parse().expect("a number")
    });
    assert_eq!(answer.len() - end, length);
}
