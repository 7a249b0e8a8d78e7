//! Lengths and kinds a peer should not have sent, and frames that must not be written.

use trunkline_proto::{
    Bye, Code, Decoder, FRAME_BYTES_MAX_DEFAULT, FRAME_BYTES_MAX_FLOOR, FRAME_BYTES_MAX_LIMIT, Frame, HEADER_LONG,
    HEADER_SHORT, Kind, Violation, decode, encode, encode_message, encoded_len, frame_len,
};

use crate::samples::{every_kind, header};

const MAX: u32 = FRAME_BYTES_MAX_DEFAULT;

/// A frame of this length with a pattern for a body. The length need not be a good one for the kind.
fn raw_frame(length: u32, kind: u8) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..length).map(|at| at as u8 | 0x80).collect();
    bytes[..4].copy_from_slice(&length.to_be_bytes());
    bytes[4] = kind;
    bytes
}

fn long_kinds() -> impl Iterator<Item = Kind> {
    let kinds = Kind::ALL.iter().copied();
    kinds.filter(|kind| kind.header_len() == HEADER_LONG)
}

/// The violation shows once the 4 bytes of the length are there, whatever follows, and not before.
fn assert_refused_at_once(length: u32, max: u32, violation: Violation) {
    let mut bytes = length.to_be_bytes().to_vec();
    for there in 0..4 {
        assert_eq!(decode(&bytes[..there], max), Ok(None));
        assert_eq!(frame_len(&bytes[..there], max), Ok(None));
    }
    for following in [0, 1, 4, 28, 100] {
        bytes.resize(4 + following, 0x03);
        assert_eq!(decode(&bytes, max), Err(violation));
        assert_eq!(frame_len(&bytes, max), Err(violation));
    }
}

#[test]
fn a_length_below_the_short_header_is_malformed() {
    for length in 0..8 {
        let violation = Violation::LengthTooSmall { length };
        assert_eq!(violation.code(), Code::MalformedFrame);
        assert_refused_at_once(length, MAX, violation);
    }
}

#[test]
fn a_length_above_the_longest_frame_is_too_large() {
    for max in [MAX, FRAME_BYTES_MAX_FLOOR, FRAME_BYTES_MAX_LIMIT] {
        for length in [max + 1, 1 << 24, 1 << 31, u32::MAX] {
            let violation = Violation::FrameTooLarge { length, max };
            assert_eq!(violation.code(), Code::FrameTooLarge);
            assert_refused_at_once(length, max, violation);
        }
    }
}

#[test]
fn the_longest_frame_is_accepted() {
    for max in [MAX, FRAME_BYTES_MAX_FLOOR, FRAME_BYTES_MAX_LIMIT] {
        let bytes = raw_frame(max, Kind::Send as u8);
        assert_eq!(decode(&bytes[..bytes.len() - 1], max), Ok(None));
        let (frame, consumed) = decode(&bytes, max).expect("no violation").expect("a whole frame");
        assert_eq!(consumed, max as usize);
        assert_eq!(frame.body, &bytes[HEADER_LONG..]);
    }
}

#[test]
fn a_long_kind_whose_header_is_cut_short_is_malformed() {
    for kind in long_kinds() {
        for length in 8..32 {
            let bytes = raw_frame(length, kind as u8);
            let violation = Violation::HeaderTruncated { kind, length };
            assert_eq!(violation.code(), Code::MalformedFrame);
            assert_eq!(decode(&bytes[..bytes.len() - 1], MAX), Ok(None));
            assert_eq!(decode(&bytes, MAX), Err(violation));

            // What follows does not lend the frame its missing header.
            let mut more = bytes.clone();
            more.extend_from_slice(&raw_frame(64, kind as u8));
            assert_eq!(decode(&more, MAX), Err(violation));
        }
        let bytes = raw_frame(32, kind as u8);
        let (frame, consumed) = decode(&bytes, MAX).expect("no violation").expect("a whole frame");
        assert_eq!((frame.body, consumed), (&b""[..], 32));
    }
}

#[test]
fn an_unknown_kind_of_any_length_is_a_frame_to_skip() {
    let ping = &every_kind()[1];
    let unknown = (0..=255).filter(|number| Kind::from_u8(*number).is_none());
    for kind in unknown {
        for length in [8, 9, 31, 32, 33, 500] {
            let mut bytes = raw_frame(length, kind);
            bytes.extend_from_slice(&ping.bytes);
            let frame = Frame {
                kind,
                flags: bytes[5],
                aux: u16::from_be_bytes([bytes[6], bytes[7]]),
                id: 0,
                peer: 0,
                stamp: 0,
                body: &bytes[HEADER_SHORT..length as usize],
            };
            assert_eq!(frame.known(), None);
            let frames: Vec<_> = Decoder::new(&bytes, MAX).collect();
            assert_eq!(frames, [Ok(frame), Ok(ping.frame())]);
        }
    }
}

#[test]
fn a_violation_comes_after_the_good_frames_and_ends_the_stream() {
    let samples = every_kind();
    let (ping, send) = (&samples[1], &samples[2]);
    let bad = [0, 0, 0, 7, 2, 0, 0, 0];
    let bytes = [&ping.bytes[..], &send.bytes, &bad, &ping.bytes].concat();

    let mut decoder = Decoder::new(&bytes, MAX);
    assert_eq!(decoder.next(), Some(Ok(ping.frame())));
    assert_eq!(decoder.next(), Some(Ok(send.frame())));
    let violation = Violation::LengthTooSmall { length: 7 };
    assert_eq!(decoder.next(), Some(Err(violation)));
    assert_eq!(decoder.next(), None);
    assert_eq!(decoder.next(), None);
    assert_eq!(decoder.consumed(), ping.bytes.len() + send.bytes.len());
    assert_eq!(decoder.rest(), [&bad[..], &ping.bytes].concat());
}

#[test]
fn an_empty_buffer_holds_nothing() {
    assert_eq!(decode(&[], MAX), Ok(None));
    let mut decoder = Decoder::new(&[], MAX);
    assert_eq!(decoder.next(), None);
    assert_eq!((decoder.consumed(), decoder.rest()), (0, &[][..]));
}

#[test]
fn a_violation_tells_its_numbers() {
    let told = |violation: Violation| violation.to_string();
    assert_eq!(told(Violation::LengthTooSmall { length: 7 }), "a frame of 7 bytes: the shortest has 8");
    assert_eq!(
        told(Violation::FrameTooLarge { length: 65_537, max: 65_536 }),
        "a frame of 65537 bytes: the longest accepted has 65536"
    );
    assert_eq!(
        told(Violation::HeaderTruncated { kind: Kind::GroupSend, length: 31 }),
        "a GROUP_SEND of 31 bytes: its header alone has 32"
    );
}

#[test]
fn the_longest_frame_of_all_can_be_written() {
    let body = vec![0; FRAME_BYTES_MAX_LIMIT as usize - HEADER_LONG];
    let mut bytes = Vec::new();
    encode(&mut bytes, &header(Kind::Send), &body);
    assert_eq!(bytes.len(), encoded_len(Kind::Send, body.len()));
    assert_eq!(bytes[..4], [0, 0xff, 0xff, 0xff]);
}

#[test]
#[should_panic(expected = "a frame of 16777216 bytes cannot be encoded")]
fn a_frame_no_reader_could_follow_is_never_written() {
    let body = vec![0; FRAME_BYTES_MAX_LIMIT as usize - HEADER_LONG + 1];
    encode(&mut Vec::new(), &header(Kind::Send), &body);
}

#[test]
#[should_panic(expected = "SEND carries no control message")]
fn a_long_kind_never_carries_a_control_message() {
    encode_message(&mut Vec::new(), Kind::Send, 0, &Bye::default());
}
