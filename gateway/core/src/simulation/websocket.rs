//! A client's end of a WebSocket: the request, messages in fragments, and what may come back in which order.

use crate::io::sim::Rng;
use trunkline_proto::websocket::{Close, Decoder, Opcode, Part, Role, Rules, close_code, put_frame};
use trunkline_proto::{Code, FRAME_BYTES_MAX_LIMIT, decode};

const REQUEST: &[u8] = b"GET /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
      Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
/// Of a request that is none for a WebSocket.
const OTHER_REQUEST: &[u8] = b"GET /ws HTTP/1.1\r\nHost: localhost\r\n\r\n";
const RULES: Rules = Rules { role: Role::Client, text: true, message_bytes_max: u32::MAX };

/// Where the answer to the request stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Awaited,
    /// The frames of a WebSocket follow.
    Upgraded,
    /// Another answer of HTTP: what follows its head is text for a person.
    Refused,
    /// A native BYE before anything was read.
    TurnedAway,
}

#[derive(Debug)]
pub(super) struct WebSocketEnd {
    asked: bool,
    answer: Answer,
    head: Vec<u8>,
    decoder: Decoder,
    message: Vec<u8>,
    control: Vec<u8>,
    /// Payloads of Pings that were not answered.
    pings: Vec<Vec<u8>>,
    /// The code of the server's Close.
    close: Option<Option<u16>>,
    /// A Close was sent, and nothing may follow it.
    pub(super) left: bool,
}

impl WebSocketEnd {
    pub(super) fn new() -> Self {
        WebSocketEnd {
            asked: false,
            answer: Answer::Awaited,
            head: Vec::new(),
            decoder: Decoder::default(),
            message: Vec::new(),
            control: Vec::new(),
            pings: Vec::new(),
            close: None,
            left: false,
        }
    }

    /// One that asks for something else, and the bytes with which it does.
    pub(super) fn astray() -> (Self, &'static [u8]) {
        (WebSocketEnd { asked: true, left: true, ..WebSocketEnd::new() }, OTHER_REQUEST)
    }

    /// Makes a message of `frames`, in fragments with Pings between, behind the request if that was not sent. `quiet`
    /// sends no Pings.
    pub(super) fn wrap(&mut self, frames: &[u8], rng: &mut Rng, quiet: bool) -> Vec<u8> {
        let mut bytes = Vec::new();
        if self.left {
            return bytes;
        }
        if !std::mem::replace(&mut self.asked, true) {
            bytes.extend_from_slice(REQUEST);
        }
        let mut rest = frames;
        let mut opcode = Opcode::Binary;
        loop {
            if !quiet && rng.chance(100) {
                let payload = vec![rng.bits() as u8; rng.below(126) as usize];
                put_frame(&mut bytes, Opcode::Ping, true, Some(mask(rng)), &payload);
                self.pings.push(payload);
            }
            let whole = rng.chance(600);
            let cut = if whole { rest.len() } else { rng.below(rest.len() as u64 + 1) as usize };
            let (fragment, behind) = rest.split_at(cut);
            put_frame(&mut bytes, opcode, whole, Some(mask(rng)), fragment);
            if whole {
                return bytes;
            }
            rest = behind;
            opcode = Opcode::Continuation;
        }
    }

    /// The Close of a client that leaves.
    pub(super) fn close(&mut self, rng: &mut Rng) -> Vec<u8> {
        let mut bytes = Vec::new();
        if self.asked && !std::mem::replace(&mut self.left, true) {
            put_frame(&mut bytes, Opcode::Close, true, Some(mask(rng)), &close_code::NORMAL.to_be_bytes());
        }
        bytes
    }

    /// Takes what came. Returns the frames in it, and the Pongs that are due.
    pub(super) fn unwrap(&mut self, bytes: &[u8], rng: &mut Rng) -> (Vec<u8>, Vec<u8>) {
        let (mut native, mut pongs) = (Vec::new(), Vec::new());
        let mut bytes = bytes.to_vec();
        if self.answer == Answer::Awaited {
            self.head.append(&mut bytes);
            bytes = self.read_answer();
        }
        match self.answer {
            Answer::Awaited | Answer::Refused => return (native, pongs),
            Answer::TurnedAway => return (bytes, pongs),
            Answer::Upgraded => {}
        }
        let mut at = 0;
        while at < bytes.len() {
            assert_eq!(self.close, None, "bytes behind Close");
            let step = self.decoder.step(&RULES, &mut bytes[at..]).expect("the server keeps to RFC 6455");
            match step.part {
                Some(Part::Data { range, text, end }) => {
                    assert!(!text, "messages are binary");
                    self.message.extend_from_slice(&bytes[at..][range]);
                    if end {
                        native.extend(whole_frames(std::mem::take(&mut self.message)));
                    }
                }
                Some(Part::Control { opcode, range, end, .. }) => {
                    self.control.extend_from_slice(&bytes[at..][range]);
                    if end {
                        let payload = std::mem::take(&mut self.control);
                        self.took_control(opcode, &payload, rng, &mut pongs);
                    }
                }
                None => {}
            }
            at += step.consumed;
        }
        (native, pongs)
    }

    /// Reads the answer to the request. Returns what follows it, as far as that is frames.
    fn read_answer(&mut self) -> Vec<u8> {
        if self.head.first() == Some(&0) {
            // It was turned away before anything of it was read.
            self.answer = Answer::TurnedAway;
            return std::mem::take(&mut self.head);
        }
        let Some(end) = self.head.windows(4).position(|bytes| bytes == b"\r\n\r\n") else { return Vec::new() };
        let behind = self.head.split_off(end + 4);
        if self.head.starts_with(b"HTTP/1.1 101 ") {
            self.answer = Answer::Upgraded;
            return behind;
        }
        let known = ["408", "426", "503"].iter().any(|status| self.head[9..].starts_with(status.as_bytes()));
        assert!(known, "{}", self.head.escape_ascii());
        self.answer = Answer::Refused;
        Vec::new()
    }

    fn took_control(&mut self, opcode: Opcode, payload: &[u8], rng: &mut Rng, pongs: &mut Vec<u8>) {
        match opcode {
            Opcode::Ping if self.left => {}
            Opcode::Ping => put_frame(pongs, Opcode::Pong, true, Some(mask(rng)), payload),
            Opcode::Pong => {
                assert_eq!(
                    self.pings.first().map(Vec::as_slice),
                    Some(payload),
                    "Pongs come in the order of their Pings"
                );
                self.pings.remove(0);
            }
            _ => self.close = Some(Close::read(payload).expect("the server closes properly").code),
        }
    }

    /// Panics unless a connection that has come to its end was closed as it should be. `bye` is the reason that was
    /// told before.
    pub(super) fn check_close(&self, bye: Option<Code>) {
        if let (Some(code), Some(bye)) = (self.close, bye) {
            assert_eq!(code, Some(close_code::BYE_BASE + bye.as_u16()));
        }
    }

    /// Pings that were not answered.
    pub(super) fn unanswered(&self) -> usize {
        self.pings.len()
    }
}

fn mask(rng: &mut Rng) -> [u8; 4] {
    (rng.bits() as u32).to_be_bytes()
}

/// The message, which holds whole frames or the simulation ends.
fn whole_frames(message: Vec<u8>) -> Vec<u8> {
    let mut at = 0;
    while let Some((_, len)) = decode(&message[at..], FRAME_BYTES_MAX_LIMIT).expect("the server frames properly") {
        at += len;
    }
    assert_eq!(at, message.len(), "a message ends within a frame");
    message
}
