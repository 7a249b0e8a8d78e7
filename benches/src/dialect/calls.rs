//! Requests and their answers: CALL and REPLY of Trunkline, and request/reply of NATS. What is sent comes back.

use std::io::Write as _;

use trunkline_proto::{Code, FRAME_BYTES_MAX_LIMIT, Header, Kind, decode, encode};

use super::{Dialect, Event, Nats, Trunkline};
use crate::{
    payload::Label,
    service::{SERVICE, SUBJECT},
};

pub(crate) struct Calls;

impl Dialect for Calls {
    fn enter(&self, user: u64, out: &mut Vec<u8>) {
        Dialect::enter(&Trunkline, user, out);
    }

    fn send(&self, _: u64, payload: &[u8], out: &mut Vec<u8>) {
        let id = Label::read(payload).map_or(0, |label| label.sequence) + 1;
        encode(out, &Header { kind: Kind::Call, flags: 0, aux: SERVICE, id, peer: 0, stamp: 0 }, payload);
    }

    fn next<'a>(&self, bytes: &'a [u8]) -> Result<Option<(Event<'a>, usize)>, String> {
        let decoded = decode(bytes, FRAME_BYTES_MAX_LIMIT).map_err(|violation| violation.to_string())?;
        let Some((frame, taken)) = decoded else { return Ok(None) };
        let event = match (frame.known(), frame.aux) {
            (Some(Kind::LoginOk), _) => Event::Ready,
            (Some(Kind::Reply), 0) => Event::Message(frame.body),
            (Some(kind @ (Kind::Reply | Kind::Bye | Kind::Error)), code) => {
                let text = Code::from_u16(code).map_or("unknown reason", Code::text);
                Event::Refused(format!("{} {code} ({text})", kind.name()))
            }
            _ => Event::Nothing,
        };
        Ok(Some((event, taken)))
    }
}

pub(crate) struct NatsRequests;

impl Dialect for NatsRequests {
    fn enter(&self, user: u64, out: &mut Vec<u8>) {
        Nats.enter(user, out);
    }

    fn send(&self, to: u64, payload: &[u8], out: &mut Vec<u8>) {
        write!(out, "PUB {SUBJECT} u.{to} {}\r\n", payload.len()).expect("a vector takes all");
        out.extend_from_slice(payload);
        out.extend_from_slice(b"\r\n");
    }

    fn next<'a>(&self, bytes: &'a [u8]) -> Result<Option<(Event<'a>, usize)>, String> {
        Nats.next(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{assert_splits, events};
    use super::*;

    #[test]
    fn a_reply_is_the_answer_and_one_that_says_no_is_told() {
        let mut heard = Vec::new();
        for (kind, aux) in [(Kind::LoginOk, 0), (Kind::Reply, 0), (Kind::Reply, 18)] {
            encode(&mut heard, &Header { kind, flags: 0, aux, id: 1, peer: 0, stamp: 0 }, b"abc");
        }
        let seen = events(&Calls, &heard);
        assert!(seen[1].starts_with("Message") && seen[2].contains("REPLY 18"), "{seen:?}");
        assert_splits(&Calls, &heard);
    }
}
