//! PUSH_TO frames, from workers' links and in requests: what each asks for. No I/O.

use super::ledger::Counts;
use super::request::{Push, Target};
use std::time::Duration;
use trunkline_proto::prost::Message;
use trunkline_proto::{
    Code, Frame, Header, Kind, Outcome, PushHead, PushReport, SERVICE_USERS, call_flags, encode, flags,
};

/// Why a PUSH_TO gets an ERROR.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    pub code: Code,
    pub text: String,
}

/// The push that a PUSH_TO is. `wait` is how long its sender waits for the outcome.
///
/// # Errors
/// BAD_REQUEST, or UNSUPPORTED for a push to all sessions, which has other ways to be told of.
pub fn push_of(frame: &Frame<'_>, wait: Option<Duration>, frame_bytes_max: usize) -> Result<Push, Refused> {
    let bad = |text: &str| Refused { code: Code::BadRequest, text: text.to_owned() };
    let Frame { id, peer, aux: service, body, .. } = *frame;
    if id == 0 || service == 0 {
        return Err(bad("a PUSH_TO has a service in aux, and an id that is not 0"));
    }
    let said = |payload: &[u8]| Push {
        to: Target::Users(vec![peer]),
        service,
        id: Some(id),
        payload: payload.to_vec(),
        ack: frame.flags & flags::ACK != 0,
        store: frame.flags & flags::NO_STORE == 0,
        retry: false,
        ttl_secs: 0,
        until_s: 0,
        wait,
    };
    if !has_head(frame) {
        return match peer {
            0 | SERVICE_USERS.. => Err(bad("a PUSH_TO without a head has a user in peer")),
            _ => Ok(said(body)),
        };
    }
    if peer != 0 {
        return Err(bad("a PUSH_TO with a head says there whom it is for: peer has to be 0"));
    }
    let (head, payload) = split(body).ok_or_else(|| bad("the body has to begin with a length and a PushHead"))?;
    if head.all || !head.classes.is_empty() || head.percent != 0 {
        let text = "a push to all sessions is no frame: POST /v1/push it".to_owned();
        return Err(Refused { code: Code::Unsupported, text });
    }
    Push::with_head(head, said(payload), frame_bytes_max).map_err(|text| Refused { code: Code::BadRequest, text })
}

/// Whether a PUSH_TO says whom it is for in its body.
pub fn has_head(frame: &Frame<'_>) -> bool {
    frame.flags & call_flags::HEAD != 0
}

/// A head, and the payload behind it.
fn split(body: &[u8]) -> Option<(PushHead, &[u8])> {
    let (len, rest) = body.split_first_chunk()?;
    let (head, payload) = rest.split_at_checked(u16::from_be_bytes(*len).into())?;
    Some((PushHead::decode(head).ok()?, payload))
}

/// Appends what became of a PUSH_TO with a head.
pub fn encode_report(out: &mut Vec<u8>, id: u64, counts: &Counts) {
    let of = |outcome| u64::from(counts.of(outcome));
    let report = PushReport {
        delivered: of(Outcome::Delivered),
        stored: of(Outcome::Stored),
        offline: of(Outcome::OfflineNotStored),
        overloaded: of(Outcome::Overloaded),
        denied: of(Outcome::Denied),
        expired: of(Outcome::Expired),
        inbox_full: of(Outcome::InboxFull),
        accepted: of(Outcome::Accepted),
    };
    let header = Header { kind: Kind::Pushed, flags: call_flags::HEAD, aux: 0, id, peer: 0, stamp: 0 };
    encode(out, &header, &report.encode_to_vec());
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use trunkline_proto::decode;

    fn encode_push_to(flags: u8, service: u16, id: u64, head: &PushHead, payload: &[u8]) -> Vec<u8> {
        let head = head.encode_to_vec();
        let body = [&(head.len() as u16).to_be_bytes()[..], &head, payload].concat();
        let mut out = Vec::new();
        let flags = flags | call_flags::HEAD;
        encode(&mut out, &Header { kind: Kind::PushTo, flags, aux: service, id, peer: 0, stamp: 0 }, &body);
        out
    }

    fn read(bytes: &[u8]) -> Result<Push, Refused> {
        let (frame, _) = decode(bytes, 1 << 20).unwrap().unwrap();
        push_of(&frame, None, 1_024)
    }

    #[test]
    fn a_head_says_whom_a_push_is_for_as_json_does() {
        for (flags, head, json) in [
            (flags::ACK, PushHead { users: vec![42, 7, 42], ..PushHead::default() }, r#"{"users":[7,42]}"#),
            (
                flags::ACK,
                PushHead { users: vec![42], ttl_secs: 60, ..PushHead::default() },
                r#"{"user":42},"ttl_secs":60"#,
            ),
            (
                flags::ACK,
                PushHead { users: vec![42], device: "phone".to_owned(), ..PushHead::default() },
                r#"{"device":{"user":42,"device":"phone"}}"#,
            ),
            (flags::ACK, PushHead { group: 1 << 63, ..PushHead::default() }, r#"{"group":"9223372036854775808"}"#),
            (flags::NO_STORE, PushHead { group: 5, ..PushHead::default() }, r#"{"group":5},"ack":false,"store":false"#),
        ] {
            let json = format!(r#"{{"to":{json},"service":7,"id":9,"payload":"aGk="}}"#);
            let expected = Push::parse(json.as_bytes(), 1_024).unwrap_or_else(|error| panic!("{json}: {error}"));
            assert_eq!(read(&encode_push_to(flags, 7, 9, &head, b"hi")), Ok(Push { wait: None, ..expected }), "{json}");
        }
    }

    #[test]
    fn what_cannot_be_served_is_refused_with_the_reason() {
        let users = |users: Vec<u64>| PushHead { users, ..PushHead::default() };
        for (head, code, why) in [
            (PushHead::default(), Code::BadRequest, "a head has users"),
            (PushHead { group: 5, ..users(vec![1]) }, Code::BadRequest, "a head has users"),
            (PushHead { device: "d".to_owned(), ..users(vec![1, 2]) }, Code::BadRequest, "a head has users"),
            (PushHead { device: "d".repeat(65), ..users(vec![1]) }, Code::BadRequest, "1 to 64 bytes"),
            (users(vec![0, 1]), Code::BadRequest, "1 to 18446744073709551615"),
            (users(vec![SERVICE_USERS]), Code::BadRequest, "services"),
            (users((1..=1_001).collect()), Code::BadRequest, "1 to 1000"),
            (PushHead { ttl_secs: 2_592_001, ..users(vec![1]) }, Code::BadRequest, "ttl_secs"),
            (PushHead { group: 5, ttl_secs: 1, ..PushHead::default() }, Code::BadRequest, "leave ttl_secs out"),
            (PushHead { all: true, ..PushHead::default() }, Code::Unsupported, "POST /v1/push"),
            (PushHead { percent: 5, ..users(vec![1]) }, Code::Unsupported, "POST /v1/push"),
            (PushHead { classes: vec![String::new()], ..users(vec![1]) }, Code::Unsupported, "POST /v1/push"),
        ] {
            let refused = read(&encode_push_to(0, 7, 9, &head, b"")).expect_err(why);
            assert!(refused.code == code && refused.text.contains(why), "{head:?}: {refused:?}");
        }
        let head = users(vec![1]);
        let mut wrong = vec![encode_push_to(0, 0, 9, &head, b""), encode_push_to(0, 7, 0, &head, b"")];
        let mut with_peer = encode_push_to(0, 7, 9, &head, b"");
        with_peer[23] = 1;
        // The length of the head goes beyond the frame, and what is there is no head.
        let (mut long, mut garbage) = (encode_push_to(0, 7, 9, &head, b""), encode_push_to(0, 7, 9, &head, b""));
        (long[33], garbage[34]) = (99, 0xFF);
        wrong.extend([with_peer, long, garbage]);
        for bytes in wrong {
            assert_eq!(read(&bytes).map_err(|refused| refused.code), Err(Code::BadRequest), "{bytes:?}");
        }
        // A group puts the sender before the payload.
        let group = PushHead { group: 5, ..PushHead::default() };
        assert!(read(&encode_push_to(0, 7, 9, &group, &[0; 984])).is_ok());
        assert!(read(&encode_push_to(0, 7, 9, &group, &[0; 985])).is_err());
    }

    #[test]
    fn a_report_has_the_count_of_each_outcome() {
        let mut counts = Counts::default();
        for (times, outcome) in (1..).zip(Outcome::ALL) {
            (0..times).for_each(|_| counts.add(*outcome));
        }
        let mut out = Vec::new();
        encode_report(&mut out, 9, &counts);
        let (frame, _) = decode(&out, 1_024).unwrap().unwrap();
        assert_eq!((frame.known(), frame.flags, frame.id), (Some(Kind::Pushed), call_flags::HEAD, 9));
        let expected = PushReport {
            delivered: 1,
            stored: 2,
            offline: 3,
            overloaded: 4,
            denied: 5,
            inbox_full: 6,
            accepted: 7,
            expired: 8,
        };
        assert_eq!(PushReport::decode(frame.body), Ok(expected));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(body in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut bytes = Vec::new();
            let header = Header { kind: Kind::PushTo, flags: call_flags::HEAD, aux: 7, id: 1, peer: 0, stamp: 0 };
            encode(&mut bytes, &header, &body);
            let _ = read(&bytes);
        }
    }
}
