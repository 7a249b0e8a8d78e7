//! A frame may be split at any byte, and one buffer may hold hundreds.

use trunkline_proto::{Decoder, FRAME_BYTES_MAX_DEFAULT, Frame, Header, Kind, decode, encode, frame_len};

use crate::samples::{every_kind, header, hex, stream};

const MAX: u32 = FRAME_BYTES_MAX_DEFAULT;

/// Every kind, and unknown kinds between them.
fn mixed_stream() -> Vec<u8> {
    let mut bytes = hex("00000008 00 ff ffff");
    bytes.extend(stream(&every_kind()));
    bytes.extend(hex("0000000b ff 00 0000 010203"));
    bytes.extend(stream(&every_kind()[..3]));
    bytes
}

/// The frames of a stream and where each ends.
fn frames_of(bytes: &[u8]) -> Vec<(Frame<'_>, usize)> {
    let mut decoder = Decoder::new(bytes, MAX);
    let mut frames = Vec::new();
    while let Some(frame) = decoder.next() {
        frames.push((frame.expect("no violation"), decoder.consumed()));
    }
    assert!(decoder.rest().is_empty());
    frames
}

/// Feeds the pieces as a connection does and checks each frame as it comes: it must come with the piece that holds its
/// last byte, no sooner and no later.
fn assert_same_frames<'a>(wanted: &[(Frame<'_>, usize)], pieces: impl Iterator<Item = &'a [u8]>) {
    let mut kept = Vec::new();
    let mut fed = 0;
    let mut count = 0;
    for piece in pieces {
        kept.extend_from_slice(piece);
        fed += piece.len();
        let mut decoder = Decoder::new(&kept, MAX);
        for frame in decoder.by_ref() {
            assert_eq!(frame, Ok(wanted[count].0));
            count += 1;
        }
        let whole = wanted.iter().take_while(|(_, end)| *end <= fed).count();
        assert_eq!(count, whole, "after {fed} bytes");
        let consumed = decoder.consumed();
        kept.drain(..consumed);
    }
    assert_eq!(count, wanted.len());
    assert!(kept.is_empty());
}

#[test]
fn a_frame_is_decoded_when_its_last_byte_is_there_and_not_before() {
    for sample in every_kind() {
        let whole = &sample.bytes;
        for there in 0..whole.len() {
            assert_eq!(decode(&whole[..there], MAX), Ok(None));
            let length = (there >= 4).then_some(whole.len());
            assert_eq!(frame_len(&whole[..there], MAX), Ok(length));
        }
        assert_eq!(decode(whole, MAX), Ok(Some((sample.frame(), whole.len()))));
    }
}

#[test]
fn a_stream_split_in_two_anywhere_has_the_same_frames() {
    let bytes = mixed_stream();
    let wanted = frames_of(&bytes);
    assert_eq!(wanted.len(), 1 + Kind::ALL.len() + 1 + 3);
    for at in 0..=bytes.len() {
        let (first, second) = bytes.split_at(at);
        assert_same_frames(&wanted, [first, second].into_iter());
    }
}

#[test]
fn a_stream_in_pieces_of_any_length_has_the_same_frames() {
    let bytes = mixed_stream();
    let wanted = frames_of(&bytes);
    for length in 1..=bytes.len() {
        assert_same_frames(&wanted, bytes.chunks(length));
    }
}

#[test]
fn two_thousand_frames_in_one_buffer_come_in_order() {
    let mut bytes = Vec::new();
    for id in 1..=2_000u64 {
        let send = Header { id, peer: id * 7, ..header(Kind::Send) };
        let body = vec![id as u8; id as usize % 65];
        encode(&mut bytes, &send, &body);
    }
    let mut decoder = Decoder::new(&bytes, MAX);
    for id in 1..=2_000u64 {
        let frame = decoder.next().expect("2,000 frames").expect("no violation");
        assert_eq!((frame.id, frame.peer), (id, id * 7));
        assert_eq!(frame.body, vec![id as u8; id as usize % 65]);
    }
    assert_eq!(decoder.next(), None);
    assert_eq!(decoder.consumed(), bytes.len());
}

#[test]
fn a_body_borrows_from_the_buffer() {
    let send = &every_kind()[2];
    let (frame, _) = decode(&send.bytes, MAX).expect("no violation").expect("a whole frame");
    assert_eq!(frame.body.as_ptr(), send.bytes[32..].as_ptr());
}
