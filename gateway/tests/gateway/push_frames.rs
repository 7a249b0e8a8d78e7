//! Pushes as frames: a back-end that speaks the native protocol over HTTP.

use crate::push_http::{SERVICE, WITH_PUSHES, assert_books, push_address, recv_push};
use crate::support::PATIENCE;
use crate::support::client::Client;
use crate::support::gateway::with_gateway;
use crate::support::scratch::ScratchFile;
use crate::support::wire::{Frame, code, flag, outcome};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use trunkline_proto::prost::Message;
use trunkline_proto::{PushHead, PushReport, call_flags};
use trunkline_router::http::{NewKey, Scope};

const PUSH_TO: u8 = 0x22;
const PUSHED: u8 = 0xA3;
const ERROR: u8 = 0x8F;
const FRAMES: &str = "Content-Type: application/vnd.trunkline.frames\r\n";

fn push_to(service: u16, id: u64, user: u64, flags: u8, payload: &[u8]) -> Vec<u8> {
    Frame { kind: PUSH_TO, flags, aux: service, id, peer: user, stamp: 0, body: payload.to_vec() }.encode()
}

/// Status and body of the answer.
fn post(address: SocketAddr, query: &str, headers: &str, body: &[u8]) -> (u16, Vec<u8>) {
    let mut stream = TcpStream::connect(address).expect("connect");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let head = format!(
        "POST /v1/push/frames{query} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
         {headers}Content-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(&[head.as_bytes(), body].concat()).expect("write");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("an answer");
    let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").expect("a header and a body");
    let status = std::str::from_utf8(&answer[9..12]).expect("a status").parse().expect("a status");
    (status, answer.split_off(end + 4))
}

/// Kind, aux, id and peer of each frame.
fn answers(mut bytes: &[u8]) -> Vec<(u8, u16, u64, u64)> {
    let mut answers = Vec::new();
    while let Some(length) = bytes.first_chunk::<4>() {
        let (frame, rest) = bytes.split_at(u32::from_be_bytes(*length) as usize);
        let long = |at: usize| u64::from_be_bytes(frame[at..at + 8].try_into().expect("eight bytes"));
        answers.push((frame[4], u16::from_be_bytes([frame[6], frame[7]]), long(8), long(16)));
        bytes = rest;
    }
    assert!(bytes.is_empty(), "{bytes:?}");
    answers
}

#[test]
fn each_frame_is_pushed_in_order_and_answered_once() {
    let keys = [("shop", Scope::PushUser), ("groups", Scope::PushGroup)]
        .map(|(name, scope)| NewKey::make(name, &[scope]).expect("a key"));
    let file = ScratchFile::new("frames-keys", format!("{}\n{}\n", keys[0].line, keys[1].line));
    let [shop, groups] = keys.each_ref().map(|key| format!("Authorization: Bearer {}\r\n{FRAMES}", key.key));
    let flags = [&WITH_PUSHES[..], &["--pushes-per-user-per-sec", "0", "--api-keys-file", file.path()]].concat();
    with_gateway(2, &flags, |gateway| {
        let address = push_address(gateway);
        let mut client = Client::login(gateway, 1);
        let acked = |id, user| push_to(SERVICE, id, user, flag::ACK, b"");
        let body =
            [push_to(SERVICE, 1, 1, 0, b"one"), acked(2, 2), push_to(0, 3, 1, 0, b""), acked(u64::MAX, 1)].concat();
        let headers = format!("{shop}Idempotency-Key: order-7\r\n");
        let first = {
            let (headers, body) = (headers.clone(), body.clone());
            std::thread::spawn(move || post(address, "?timeout_ms=20000", &headers, &body))
        };
        let one = recv_push(&mut client);
        assert_eq!((one.id, &one.body[..], one.flags & flag::ACK), (1, &b"one"[..], 0));
        let last = recv_push(&mut client);
        assert_eq!(last.id, u64::MAX);
        // While it is open there is no outcome to tell, and it is not pushed again.
        let with_last = |kind, aux| {
            let bad = (ERROR, code::BAD_REQUEST, 3, 1);
            let offline = (PUSHED, outcome::OFFLINE_NOT_STORED, 2, 2);
            vec![(PUSHED, outcome::ACCEPTED, 1, 1), offline, bad, (kind, aux, u64::MAX, 1)]
        };
        let (status, again) = post(address, "?timeout_ms=0", &headers, &body);
        assert_eq!((status, answers(&again)), (200, with_last(ERROR, 25)));
        client.ack(&last);
        let (status, answer) = first.join().expect("an answer");
        assert_eq!((status, answers(&answer)), (200, with_last(PUSHED, outcome::DELIVERED)));
        let (_, over) = post(address, "", &headers, &body);
        assert_eq!(answers(&over), with_last(PUSHED, outcome::DELIVERED));
        client.ping();

        // One frame for several users has one answer, with the count of each outcome.
        let head = PushHead { users: vec![1, 2], ..PushHead::default() }.encode_to_vec();
        let body = [&(head.len() as u16).to_be_bytes()[..], &head, b"both"].concat();
        let body = push_to(SERVICE, 7, 0, flag::ACK | call_flags::HEAD, &body);
        let both = {
            let (headers, body) = (shop.clone(), body.clone());
            std::thread::spawn(move || post(address, "?timeout_ms=20000", &headers, &body))
        };
        let frame = recv_push(&mut client);
        assert_eq!((frame.id, &frame.body[..]), (7, &b"both"[..]));
        client.ack(&frame);
        let (status, answer) = both.join().expect("an answer");
        assert_eq!((status, answers(&answer)), (200, vec![(PUSHED, 0, 7, 0)]));
        let expected = PushReport { delivered: 1, offline: 1, ..PushReport::default() };
        assert_eq!(PushReport::decode(&answer[32..]), Ok(expected));

        // Who may push to groups alone may push none of these.
        let (status, denied) = post(address, "", &groups, &acked(4, 1));
        assert_eq!((status, answers(&denied)), (200, vec![(ERROR, 26, 4, 1)]));
        for (query, headers, body, status) in [
            ("", FRAMES, acked(5, 1), 401),
            ("", &shop.replace("vnd.trunkline.frames", "json"), acked(5, 1), 415),
            ("?timeout_ms=30001", &shop, acked(5, 1), 400),
            ("?timeout=1", &shop, acked(5, 1), 400),
            ("", &shop, [acked(5, 1), vec![0]].concat(), 400),
            ("", &shop, acked(5, 1).repeat(1_001), 413),
        ] {
            let answer = post(address, query, headers, &body);
            assert_eq!(answer.0, status, "{query} {headers}: {}", String::from_utf8_lossy(&answer.1));
        }
        client.ping();
        assert_books(gateway);
    });
}
