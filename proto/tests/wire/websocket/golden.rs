//! The examples of RFC 6455, section 5.7, and what a Close may hold.

use super::{CLIENT, SERVER, masked, read};
use crate::samples::hex;
use trunkline_proto::Code;
use trunkline_proto::websocket::{
    CLOSE_REASON_BYTES_MAX, Close, Opcode, Violation, close_code, put_close, put_control, put_frame,
};

fn unmasked(opcode: Opcode, fin: bool, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    put_frame(&mut bytes, opcode, fin, None, payload);
    bytes
}

#[test]
fn the_examples_of_the_rfc_are_read_and_written() {
    let hello = || vec![(Opcode::Text, b"Hello".to_vec())];
    let single = hex("81 05 48656c6c6f");
    assert_eq!(read(CLIENT, &single), Ok(hello()));
    assert_eq!(unmasked(Opcode::Text, true, b"Hello"), single);

    let single = hex("81 85 37fa213d 7f9f4d5158");
    assert_eq!(read(SERVER, &single), Ok(hello()));
    assert_eq!(masked(Opcode::Text, true, b"Hello"), single);

    let fragments = hex("01 03 48656c 80 02 6c6f");
    assert_eq!(read(CLIENT, &fragments), Ok(hello()));
    let written = [unmasked(Opcode::Text, false, b"Hel"), unmasked(Opcode::Continuation, true, b"lo")];
    assert_eq!(written.concat(), fragments);

    let ping = hex("89 05 48656c6c6f");
    assert_eq!(read(CLIENT, &ping), Ok(vec![(Opcode::Ping, b"Hello".to_vec())]));
    let pong = hex("8a 85 37fa213d 7f9f4d5158");
    assert_eq!(read(SERVER, &pong), Ok(vec![(Opcode::Pong, b"Hello".to_vec())]));

    assert_eq!(unmasked(Opcode::Binary, true, &[1; 256])[..4], hex("82 7e 0100"));
    assert_eq!(unmasked(Opcode::Binary, true, &[1; 65_536])[..10], hex("82 7f 0000000000010000"));
}

#[test]
fn a_length_takes_the_shortest_form() {
    for (payload, header) in [(0, 2), (125, 2), (126, 4), (65_535, 4), (65_536, 10)] {
        assert_eq!(unmasked(Opcode::Binary, true, &vec![0; payload]).len(), header + payload);
        assert_eq!(masked(Opcode::Binary, true, &vec![0; payload]).len(), header + 4 + payload);
    }
}

#[test]
fn a_close_is_read_as_it_was_written() {
    let written = |code, reason: &str| {
        let mut bytes = Vec::new();
        put_close(&mut bytes, code, reason);
        bytes
    };
    assert_eq!(written(None, "not told"), hex("88 00"));
    assert_eq!(written(Some(1000), ""), hex("88 02 03e8"));
    assert_eq!(written(Some(4008), "replaced"), [&hex("88 0a 0fa8")[..], b"replaced"].concat());
    assert_eq!(Close::read(&[]), Ok(Close { code: None }));
    assert_eq!(Close::read(b"\x03\xe8bye"), Ok(Close { code: Some(1000) }));
    for code in Code::ALL {
        let code = close_code::BYE_BASE + code.as_u16();
        assert_eq!(Close::read(&code.to_be_bytes()), Ok(Close { code: Some(code) }));
    }
}

#[test]
fn a_long_reason_is_cut_between_characters() {
    let mut bytes = Vec::new();
    put_close(&mut bytes, Some(4000), &"世".repeat(100));
    assert_eq!(bytes[1], 2 + CLOSE_REASON_BYTES_MAX as u8 / 3 * 3);
    let reason = std::str::from_utf8(&bytes[4..]).expect("whole characters");
    assert_eq!(reason.chars().count(), 41);
}

#[test]
fn a_close_that_may_not_be_sent_is_told_apart() {
    assert_eq!(Close::read(&[3]), Err(Violation::ShortClose));
    for code in [0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65_535] {
        assert_eq!(Close::read(&u16::to_be_bytes(code)), Err(Violation::BadCloseCode(code)));
    }
    for code in [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 3999, 4000, 4999] {
        assert_eq!(Close::read(&u16::to_be_bytes(code)), Ok(Close { code: Some(code) }));
    }
    assert_eq!(Close::read(b"\x03\xe8\xff"), Err(Violation::CloseReasonNotUtf8));
}

#[test]
#[should_panic(expected = "Ping of 126 bytes")]
fn a_control_frame_no_reader_would_take_is_never_written() {
    put_control(&mut Vec::new(), Opcode::Ping, &[0; 126]);
}
