//! Fuzz bodies of the WebSocket codec.

use crate::websocket::{
    CLOSE_REASON_BYTES_MAX, CONTROL_BYTES_MAX, Control, Decoder, Inbound, MESSAGE_BYTES_MAX, Opcode, Part, Role, Rules,
    Violation, put_messages, seal, sealed_frames,
};
use crate::{HEADER_SHORT, Header, Kind, decode, encode, flags};

/// What a stream comes to: its whole messages and control frames, and what ended it.
#[derive(Debug, Default, PartialEq, Eq)]
struct Decoded {
    /// Opcode and payload.
    wholes: Vec<(u8, Vec<u8>)>,
    violation: Option<Violation>,
}

/// The pieces of a stream: their length changes from one to the next, from `first` on.
fn pieces(stream: &[u8], first: u8) -> impl Iterator<Item = Vec<u8>> {
    let mut step = usize::from(first);
    let mut unread = stream;
    std::iter::from_fn(move || {
        if unread.is_empty() {
            return None;
        }
        let (piece, rest) = unread.split_at(unread.len().min(step % 41 + 1));
        unread = rest;
        step = (step * 5 + 3) % (1 << 16);
        Some(piece.to_vec())
    })
}

/// Bytes 0 and 1 pick the rules and the pieces; the rest is a stream from a peer. It comes to the same messages,
/// control frames and violation in one piece and in many, and its native frames to the same.
pub fn websocket_stream(data: &[u8]) {
    let Some((&[pick, first], stream)) = data.split_first_chunk() else {
        return;
    };
    let role = if pick & 1 == 0 { Role::Server } else { Role::Client };
    let message_bytes_max = if pick & 4 == 0 { u32::MAX } else { 200 };
    let rules = Rules { role, text: pick & 2 == 0, message_bytes_max };
    let whole = decoded(&rules, std::iter::once(stream.to_vec()));
    let split = decoded(&rules, pieces(stream, first));
    assert_eq!(whole, split, "the split changed the meaning");
    assert_eq!(
        native(role, std::iter::once(stream.to_vec())),
        native(role, pieces(stream, first)),
        "the split changed the frames"
    );
}

fn decoded(rules: &Rules, stream: impl Iterator<Item = Vec<u8>>) -> Decoded {
    let mut decoder = Decoder::default();
    let mut decoded = Decoded::default();
    let (mut message, mut control) = (Vec::new(), Vec::new());
    for mut piece in stream {
        let mut at = 0;
        while at < piece.len() {
            let step = match decoder.step(rules, &mut piece[at..]) {
                Ok(step) => step,
                Err(violation) => {
                    decoded.violation = Some(violation);
                    return decoded;
                }
            };
            assert!(step.consumed > 0, "a step goes on");
            match step.part {
                Some(Part::Data { range, text, end }) => {
                    assert!(rules.text || !text);
                    message.extend_from_slice(&piece[at..][range]);
                    assert!(message.len() <= rules.message_bytes_max as usize);
                    if end {
                        let whole = std::mem::take(&mut message);
                        assert!(!text || std::str::from_utf8(&whole).is_ok());
                        decoded.wholes.push((u8::from(!text) + Opcode::Text as u8, whole));
                    }
                }
                Some(Part::Control { opcode, range, before, end }) => {
                    assert_eq!(before, control.len());
                    control.extend_from_slice(&piece[at..][range]);
                    assert!(control.len() <= CONTROL_BYTES_MAX);
                    if end {
                        decoded.wholes.push((opcode as u8, std::mem::take(&mut control)));
                    }
                }
                None => assert_eq!(at + step.consumed, piece.len()),
            }
            at += step.consumed;
        }
    }
    decoded
}

/// Native bytes, payloads of Pings, number of Pongs, and the end, for people to read.
fn native(role: Role, stream: impl Iterator<Item = Vec<u8>>) -> (Vec<u8>, Vec<Vec<u8>>, usize, String) {
    let mut inbound = Inbound::default();
    let (mut bytes, mut pings, mut pongs) = (Vec::new(), Vec::new(), 0);
    for mut piece in stream {
        let taken = inbound.take(role, &mut piece, |control| match control {
            Control::Ping(payload) => pings.push(payload.to_vec()),
            Control::Pong => pongs += 1,
            Control::Close(reason) => assert!(reason.len() <= CLOSE_REASON_BYTES_MAX),
        });
        bytes.extend_from_slice(&piece[..taken.native]);
        assert_eq!(taken.end, inbound.end());
        if inbound.is_idle() {
            // There is nothing to remember.
            inbound = Inbound::default();
        }
    }
    (bytes, pings, pongs, format!("{:?}", inbound.end()))
}

/// The bytes are read as lengths of bodies. The native frames with them come out of their messages as they went in, no
/// message is longer than it may be, and each frame ends where it is said to. Two full messages are enough of them:
/// more bytes would only be copied.
pub fn websocket_seal(lengths: &[u8]) {
    let mut frames = Vec::new();
    let mut count = 0;
    let body = vec![0x5a; 40_000];
    for &length in lengths.iter().take(64) {
        let header = Header { kind: Kind::Deliver, flags: flags::ACK, aux: 0, id: 1, peer: 2, stamp: 3 };
        let length = usize::from(length).pow(2) % body.len();
        encode(&mut frames, &header, &body[..length]);
        count += 1;
        if frames.len() > 2 * MESSAGE_BYTES_MAX {
            break;
        }
    }
    let native_bytes = frames.clone();
    seal(&mut frames);
    let mut sealed = frames;
    let mut put = Vec::new();
    put_messages(&mut put, &native_bytes);
    assert_eq!(sealed, put);

    let mut ends = Vec::new();
    for (frame, end) in sealed_frames(&sealed) {
        assert_eq!(frame.known(), Some(Kind::Deliver));
        assert!(sealed[..end].ends_with(frame.body));
        ends.push(end);
    }
    let rules = Rules { role: Role::Client, text: false, message_bytes_max: u32::MAX };
    let mut decoder = Decoder::default();
    let (mut at, mut out) = (0, Vec::new());
    while at < sealed.len() {
        let step = decoder.step(&rules, &mut sealed[at..]).expect("what was sealed violates nothing");
        let Some(Part::Data { range, text: false, end: true }) = step.part else { panic!("{step:?}") };
        let message = &sealed[at..][range];
        let mut whole = 0;
        while let Some((_, length)) = decode(&message[whole..], u32::MAX).expect("no violation") {
            whole += length;
        }
        assert_eq!(whole, message.len(), "a message holds whole frames");
        assert!(message.len() >= HEADER_SHORT && message.len() <= MESSAGE_BYTES_MAX);
        out.extend_from_slice(message);
        at += step.consumed;
    }
    assert_eq!(out, native_bytes);
    assert_eq!(ends.len(), count);
    assert_eq!(ends.last().copied().unwrap_or(0), sealed.len());
}
