//! The bodies of the fuzz targets in `fuzz/`, beside the code they attack. The tests replay the corpus through them.
//!
//! Each takes any bytes at all and panics when a property does not hold.

mod websocket;

pub use websocket::{websocket_seal, websocket_stream};

use std::fmt::Debug;

use prost::Message;

use crate::{
    Bye, Decoder, FRAME_BYTES_MAX_DEFAULT, FRAME_BYTES_MAX_FLOOR, FRAME_BYTES_MAX_LIMIT, Frame, HEADER_LONG,
    HEADER_SHORT, Header, Invite, Kind, Login, LoginOk, Presence, Serve, ServeOk, Sync, SyncOk, UserState, Violation,
    Watch, decode, encode, encode_message, encoded_len, frame_len,
};

/// A frame that owns its body, to be kept after the buffer is gone.
#[derive(Debug, PartialEq, Eq)]
struct OwnedFrame {
    kind: u8,
    flags: u8,
    aux: u16,
    id: u64,
    peer: u64,
    stamp: u64,
    body: Vec<u8>,
}

impl From<Frame<'_>> for OwnedFrame {
    fn from(frame: Frame<'_>) -> Self {
        Self {
            kind: frame.kind,
            flags: frame.flags,
            aux: frame.aux,
            id: frame.id,
            peer: frame.peer,
            stamp: frame.stamp,
            body: frame.body.to_vec(),
        }
    }
}

/// What a stream comes to: its frames, and what ended it.
#[derive(Debug, PartialEq, Eq)]
struct Decoded {
    frames: Vec<OwnedFrame>,
    consumed: usize,
    violation: Option<Violation>,
}

/// Bytes 0 and 1 pick the longest frame and the pieces; the rest is a stream from a peer. It decodes to the same frames
/// in one piece and in many, every frame encodes to the bytes it came from, and a violation is final.
pub fn decode_stream(data: &[u8]) {
    let Some((&[limit, pieces], stream)) = data.split_first_chunk() else {
        return;
    };
    let frame_bytes_max = match limit % 4 {
        0 => FRAME_BYTES_MAX_DEFAULT,
        1 => FRAME_BYTES_MAX_FLOOR,
        2 => FRAME_BYTES_MAX_LIMIT,
        _ => 64,
    };
    let whole = decode_whole(stream, frame_bytes_max);
    let split = decode_split(stream, frame_bytes_max, pieces);
    assert_eq!(whole, split, "the split changed the meaning");
}

fn decode_whole(stream: &[u8], frame_bytes_max: u32) -> Decoded {
    let mut frames = Vec::new();
    let mut violation = None;
    let mut decoder = Decoder::new(stream, frame_bytes_max);
    let mut start = 0;
    while let Some(next) = decoder.next() {
        match next {
            Ok(frame) => {
                let bytes = &stream[start..decoder.consumed()];
                assert_eq!(frame_len(bytes, frame_bytes_max), Ok(Some(bytes.len())));
                assert_eq!(bytes_of(&frame), bytes);
                frames.push(frame.into());
            }
            Err(error) => {
                violation = Some(error);
                break;
            }
        }
        start = decoder.consumed();
    }
    assert!(decoder.next().is_none(), "a decoder that has ended stays ended");
    assert_eq!(&stream[decoder.consumed()..], decoder.rest());
    Decoded { frames, consumed: decoder.consumed(), violation }
}

/// Decodes as a connection does: pieces of changing length are appended to what was left of the ones before.
fn decode_split(stream: &[u8], frame_bytes_max: u32, pieces: u8) -> Decoded {
    let mut decoded = Decoded { frames: Vec::new(), consumed: 0, violation: None };
    let mut kept = Vec::new();
    let mut unread = stream;
    let mut step = usize::from(pieces);
    while !unread.is_empty() && decoded.violation.is_none() {
        let (piece, behind) = unread.split_at(unread.len().min(step % 41 + 1));
        unread = behind;
        step = step * 5 + 3;
        step %= 1 << 16;
        kept.extend_from_slice(piece);

        let mut taken = 0;
        loop {
            match decode(&kept[taken..], frame_bytes_max) {
                Ok(Some((frame, length))) => {
                    decoded.frames.push(frame.into());
                    taken += length;
                }
                Ok(None) => break,
                Err(violation) => {
                    decoded.violation = Some(violation);
                    break;
                }
            }
        }
        kept.drain(..taken);
        decoded.consumed += taken;
    }
    decoded
}

/// The bytes of a frame of any kind, written without the encoder where that knows no such kind.
fn bytes_of(frame: &Frame<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    match frame.known() {
        Some(kind) => {
            let header =
                Header { kind, flags: frame.flags, aux: frame.aux, id: frame.id, peer: frame.peer, stamp: frame.stamp };
            encode(&mut bytes, &header, frame.body);
        }
        None => {
            assert_eq!((frame.id, frame.peer, frame.stamp), (0, 0, 0));
            let length = HEADER_SHORT + frame.body.len();
            bytes.extend_from_slice(&(length as u32).to_be_bytes());
            bytes.extend_from_slice(&[frame.kind, frame.flags]);
            bytes.extend_from_slice(&frame.aux.to_be_bytes());
            bytes.extend_from_slice(frame.body);
        }
    }
    bytes
}

/// The bytes are taken for the body of every control message in turn. What decodes stays the same through a frame.
pub fn control_messages(data: &[u8]) {
    control_message::<Login>(data, Kind::Login);
    control_message::<LoginOk>(data, Kind::LoginOk);
    control_message::<Bye>(data, Kind::Bye);
    control_message::<Sync>(data, Kind::Sync);
    control_message::<SyncOk>(data, Kind::SyncOk);
    control_message::<Watch>(data, Kind::Watch);
    control_message::<Watch>(data, Kind::Unwatch);
    control_message::<Presence>(data, Kind::Presence);
    control_message::<Serve>(data, Kind::Serve);
    control_message::<ServeOk>(data, Kind::ServeOk);
    control_message::<Invite>(data, Kind::Invite);
    if let Ok(state) = UserState::decode(data) {
        let users = vec![state];
        control_message::<Presence>(&Presence { users }.encode_to_vec(), Kind::Presence);
    }
}

fn control_message<M: Message + Default + PartialEq + Debug>(body: &[u8], kind: Kind) {
    let Ok(message) = M::decode(body) else {
        return;
    };
    let mut bytes = Vec::new();
    encode_message(&mut bytes, kind, 7, &message);
    let (frame, consumed) = decode(&bytes, FRAME_BYTES_MAX_LIMIT)
        .expect("what was encoded violates nothing")
        .expect("what was encoded is whole");
    assert_eq!(consumed, bytes.len());
    assert_eq!((frame.known(), frame.flags, frame.aux), (Some(kind), 0, 7));
    let again = M::decode(frame.body).expect("what was encoded decodes");
    assert_eq!(again, message);
    assert_eq!(again.encode_to_vec(), frame.body, "encoding is not stable for {}", kind.name());
}

/// The bytes are read as a list of headers, each with a length of body and the body. The frames come back as they
/// went in.
pub fn round_trip(data: &[u8]) {
    let mut wanted = Vec::new();
    let mut bytes = Vec::new();
    let mut unread = data;
    while let Some((header, body)) = take_frame(&mut unread) {
        let before = bytes.len();
        encode(&mut bytes, &header, body);
        assert_eq!(bytes.len() - before, encoded_len(header.kind, body.len()));
        wanted.push((header, body));
    }

    let mut decoder = Decoder::new(&bytes, FRAME_BYTES_MAX_LIMIT);
    for (header, body) in wanted {
        let frame =
            decoder.next().expect("as many frames come out as went in").expect("what was encoded violates nothing");
        let long = header.kind.header_len() == HEADER_LONG;
        let if_long = |field| if long { field } else { 0 };
        let expected = Frame {
            kind: header.kind as u8,
            flags: header.flags,
            aux: header.aux,
            id: if_long(header.id),
            peer: if_long(header.peer),
            stamp: if_long(header.stamp),
            body,
        };
        assert_eq!(frame, expected);
    }
    assert!(decoder.next().is_none());
    assert!(decoder.rest().is_empty());
}

/// Takes one header and body off `unread`; `None` where too little is left.
fn take_frame<'a>(unread: &mut &'a [u8]) -> Option<(Header, &'a [u8])> {
    let (&[kind, flags], rest) = unread.split_first_chunk()?;
    let (aux, rest) = rest.split_first_chunk()?;
    let (id, rest) = rest.split_first_chunk()?;
    let (peer, rest) = rest.split_first_chunk()?;
    let (stamp, rest) = rest.split_first_chunk()?;
    let (body_len, rest) = rest.split_first_chunk()?;
    let body_len = usize::from(u16::from_be_bytes(*body_len)).min(rest.len());
    let (body, rest) = rest.split_at(body_len);
    *unread = rest;
    let header = Header {
        kind: Kind::ALL[usize::from(kind) % Kind::ALL.len()],
        flags,
        aux: u16::from_be_bytes(*aux),
        id: u64::from_be_bytes(*id),
        peer: u64::from_be_bytes(*peer),
        stamp: u64::from_be_bytes(*stamp),
    };
    Some((header, body))
}
