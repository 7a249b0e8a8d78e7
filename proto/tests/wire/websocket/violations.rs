//! Every violation shows with the byte that makes it one, wherever the stream is split.

use super::{CLIENT, MASK, Reader, SERVER, masked, read};
use crate::samples::hex;
use trunkline_proto::websocket::{Opcode, Rules, Violation, close_code, put_frame};

/// The stream is refused with its last byte and not before, in one piece and byte by byte; nothing behind it changes
/// that.
fn assert_refused_with_last_byte(rules: Rules, stream: &[u8], violation: Violation) {
    assert_eq!(read(rules, &stream[..stream.len() - 1]).err(), None, "{violation:?} comes too early");
    for more in [&b""[..], b"\x00", &[0xff; 40]] {
        assert_eq!(read(rules, &[stream, more].concat()), Err(violation));
    }
    let mut reader = Reader::new(rules);
    for byte in &stream[..stream.len() - 1] {
        assert_eq!(reader.feed(&[*byte]), Ok(()));
    }
    assert_eq!(reader.feed(&stream[stream.len() - 1..]), Err(violation));
}

#[test]
fn reserved_bits_and_opcodes_are_refused_with_the_first_byte() {
    for first in 0..=255u8 {
        let opcode = first & 0x0f;
        let violation = if first & 0x70 != 0 {
            Violation::ReservedBits
        } else if matches!(opcode, 3..=7 | 11..=15) {
            Violation::UnknownOpcode(opcode)
        } else if opcode >= 8 && first & 0x80 == 0 {
            Violation::FragmentedControl
        } else if opcode == 0 {
            Violation::LoneContinuation
        } else {
            continue;
        };
        assert_eq!(violation.close_code(), close_code::PROTOCOL_ERROR);
        assert_refused_with_last_byte(SERVER, &[first], violation);
        assert_refused_with_last_byte(CLIENT, &[first], violation);
    }
}

#[test]
fn masks_belong_to_clients() {
    for first in [0x81, 0x82, 0x88, 0x89, 0x8a] {
        for length in [0, 1, 125, 126, 127] {
            assert_refused_with_last_byte(SERVER, &[first, length], Violation::Unmasked);
            assert_refused_with_last_byte(CLIENT, &[first, length | 0x80], Violation::Masked);
        }
    }
}

#[test]
fn long_control_frames_are_refused_before_their_payload() {
    for first in [0x88, 0x89, 0x8a] {
        for length in [126, 127] {
            assert_refused_with_last_byte(SERVER, &[first, length | 0x80], Violation::LongControl);
        }
    }
}

#[test]
fn a_length_that_could_be_shorter_or_is_negative_is_refused() {
    for length in ["7e 0000", "7e 007d", "7f 0000000000000000", "7f 000000000000ffff", "7f 8000000000000000"] {
        let client = [&[0x82][..], &hex(length)].concat();
        assert_refused_with_last_byte(CLIENT, &client, Violation::BadLength);
        let mut server = client;
        server[1] |= 0x80;
        assert_refused_with_last_byte(SERVER, &server, Violation::BadLength);
    }
}

#[test]
fn a_message_is_begun_once_and_continued_after() {
    for (begun, next) in [(Opcode::Text, 0x81), (Opcode::Text, 0x02), (Opcode::Binary, 0x82), (Opcode::Binary, 0x01)] {
        let stream = [&masked(begun, false, b"x")[..], &masked(Opcode::Ping, true, b""), &[next]].concat();
        assert_refused_with_last_byte(SERVER, &stream, Violation::NestedMessage);
    }
    let ended = [&masked(Opcode::Binary, true, b"x")[..], &[0x80]].concat();
    assert_refused_with_last_byte(SERVER, &ended, Violation::LoneContinuation);
}

#[test]
fn text_is_refused_at_once_where_none_is_read() {
    let rules = Rules { text: false, ..SERVER };
    assert_eq!(Violation::Text.close_code(), close_code::UNSUPPORTED_DATA);
    assert_refused_with_last_byte(rules, &[0x81], Violation::Text);
    assert_refused_with_last_byte(rules, &[0x01], Violation::Text);
}

#[test]
fn a_message_too_large_is_refused_with_the_header_that_makes_it_so() {
    let rules = Rules { message_bytes_max: 1_000, ..SERVER };
    assert_eq!(Violation::MessageTooLarge.close_code(), close_code::TOO_BIG);
    let within = [masked(Opcode::Binary, false, &[0; 400]), masked(Opcode::Continuation, true, &[0; 600])].concat();
    // The next message begins at nothing again.
    assert_eq!(read(rules, &within.repeat(2)).map(|wholes| wholes.len()), Ok(2));
    let header = |opcode: u8, length: &str| [&[opcode][..], &hex(length), &MASK].concat();
    assert_refused_with_last_byte(rules, &header(0x82, "fe 03e9"), Violation::MessageTooLarge);
    assert_refused_with_last_byte(rules, &header(0x82, "ff 7fffffffffffffff"), Violation::MessageTooLarge);
    let second = [masked(Opcode::Binary, false, &[0; 400]), header(0x00, "fe 0259")].concat();
    assert_refused_with_last_byte(rules, &second, Violation::MessageTooLarge);
}

#[test]
fn text_that_is_not_utf8_is_refused_with_the_byte_that_shows_it() {
    // Overlong, surrogate, beyond the last character, a lone continuation, no continuation.
    for bad in ["c0", "c1", "e0 9f", "ed a0", "f0 8f", "f4 90", "f5", "80", "c3 28", "e4 b8 41", "f0 9f 98 c3"] {
        let payload = [b"ok ", &hex(bad)[..]].concat();
        let mut stream = masked(Opcode::Text, false, &payload);
        assert_refused_with_last_byte(SERVER, &stream, Violation::TextNotUtf8);
        // The same over two frames, parted before the last byte.
        let (first, second) = payload.split_at(payload.len() - 1);
        stream = [masked(Opcode::Text, false, first), masked(Opcode::Continuation, true, second)].concat();
        assert_refused_with_last_byte(SERVER, &stream, Violation::TextNotUtf8);
    }
    // A character that is cut off by the end of its message; its next byte would have been fine.
    for cut in ["c3", "e4 b8", "f0 9f 98"] {
        let mut bytes = Vec::new();
        put_frame(&mut bytes, Opcode::Text, false, None, &hex(cut));
        assert_eq!(read(CLIENT, &bytes), Ok(vec![]));
        put_frame(&mut bytes, Opcode::Continuation, true, None, b"");
        assert_refused_with_last_byte(CLIENT, &bytes, Violation::TextNotUtf8);
    }
}

#[test]
fn every_violation_has_a_sentence_that_fits_a_close() {
    use Violation::*;
    for violation in [
        ReservedBits,
        UnknownOpcode(3),
        Unmasked,
        Masked,
        FragmentedControl,
        LongControl,
        BadLength,
        LoneContinuation,
        NestedMessage,
        ShortClose,
        BadCloseCode(1005),
        CloseReasonNotUtf8,
        Text,
        TextNotUtf8,
        MessageTooLarge,
    ] {
        assert!(!violation.text().is_empty() && violation.text().len() <= 123);
        assert!(violation.to_string().starts_with(violation.text()));
    }
    assert_eq!(UnknownOpcode(11).to_string(), "The opcode is unknown. (0xb)");
}
