//! Native frames out of messages: wherever messages, fragments and buffers are parted, the same frames come out.

use super::{MASK, masked};
use crate::samples::{every_kind, stream};
use proptest::collection::vec;
use proptest::prelude::*;
use trunkline_proto::websocket::{Close, Control, End, Inbound, Opcode, Role, Violation, put_frame};

/// Takes the pieces; native bytes and payloads of Pings, which are bytes too, one behind the other.
fn take<'a>(inbound: &mut Inbound, pieces: impl Iterator<Item = &'a [u8]>) -> (Vec<u8>, Vec<u8>, Option<End>) {
    let (mut native, mut pings, mut end) = (Vec::new(), Vec::new(), None);
    for piece in pieces {
        let mut piece = piece.to_vec();
        let taken = inbound.take(Role::Server, &mut piece, |control| {
            if let Control::Ping(payload) = control {
                pings.extend_from_slice(payload);
            }
        });
        native.extend_from_slice(&piece[..taken.native]);
        end = taken.end;
    }
    (native, pings, end)
}

fn message(frames: &[u8]) -> Vec<u8> {
    masked(Opcode::Binary, true, frames)
}

#[test]
fn frames_of_all_kinds_come_out_at_every_split_point() {
    let samples = every_kind();
    let native = stream(&samples);
    let (half, rest) = native.split_at(native.len() / 2);
    // One message a frame, then all in one, then in two fragments that part a frame, with a Ping between.
    let mut sent: Vec<u8> = samples.iter().flat_map(|sample| message(&sample.bytes)).collect();
    sent.extend(message(&native));
    sent.extend(masked(Opcode::Binary, false, half));
    sent.extend(masked(Opcode::Ping, true, b"ping"));
    sent.extend(masked(Opcode::Continuation, true, rest));
    let wanted = (native.repeat(3), b"ping".to_vec(), None);
    for at in 0..=sent.len() {
        let mut inbound = Inbound::default();
        let (first, second) = sent.split_at(at);
        assert_eq!(take(&mut inbound, [first, second].into_iter()), wanted, "split at {at}");
        assert!(inbound.is_idle());
    }
    for length in 1..150 {
        let mut inbound = Inbound::default();
        assert_eq!(take(&mut inbound, sent.chunks(length)), wanted, "pieces of {length}");
    }
}

#[test]
fn a_message_that_ends_within_a_frame_is_an_end() {
    let ping = &every_kind()[1].bytes;
    for there in 1..ping.len() {
        let cut = &ping[..there];
        let sent = [message(ping), message(cut), message(ping)].concat();
        for length in 1..sent.len() {
            let (native, _, end) = take(&mut Inbound::default(), sent.chunks(length));
            assert_eq!(end, Some(End::FrameUnfinished));
            assert_eq!(native, [&ping[..], cut].concat());
        }
    }
    // Nothing is not a part of a frame.
    assert_eq!(take(&mut Inbound::default(), [&message(b"")[..]].into_iter()), (vec![], vec![], None));
}

#[test]
fn a_length_that_no_frame_has_is_left_to_the_decoder_of_frames() {
    let bad = [0, 0, 0, 7, 2, 0, 0, 0, 9, 9];
    let (native, _, end) = take(&mut Inbound::default(), [&message(&bad)[..]].into_iter());
    assert_eq!((&native[..], end), (&bad[..], None));
}

#[test]
fn frames_before_an_end_come_out_and_those_behind_do_not() {
    let ping = &every_kind()[1].bytes;
    let ends = [
        (masked(Opcode::Close, true, b""), End::Closed(Close { code: None })),
        (masked(Opcode::Close, true, &4001u16.to_be_bytes()), End::Closed(Close { code: Some(4001) })),
        (masked(Opcode::Close, true, b"\x03"), End::Violated(Violation::ShortClose)),
        (masked(Opcode::Text, true, b"hello"), End::Violated(Violation::Text)),
        (b"\xc2\x80".to_vec(), End::Violated(Violation::ReservedBits)),
        (b"\x82\x01x".to_vec(), End::Violated(Violation::Unmasked)),
    ];
    for (last, wanted) in ends {
        let sent = [message(ping), last, message(ping), b"\xff".to_vec()].concat();
        for length in 1..=sent.len() {
            let mut inbound = Inbound::default();
            let (native, _, end) = take(&mut inbound, sent.chunks(length));
            assert_eq!((&native, end), (ping, Some(wanted)), "pieces of {length}");
            assert!(!inbound.is_idle());
        }
    }
}

#[test]
fn the_words_of_a_close_come_once_wherever_it_is_parted() {
    for (payload, words) in [(&b"\x03\xe8bye \xe2\x80\xa6"[..], "bye \u{2026}"), (b"\x03\xe8", ""), (b"", "")] {
        let sent = masked(Opcode::Close, true, payload);
        for length in 1..=sent.len() {
            let (mut inbound, mut said) = (Inbound::default(), Vec::new());
            for piece in sent.chunks(length) {
                inbound.take(Role::Server, &mut piece.to_vec(), |control| match control {
                    Control::Close(reason) => said.push(reason.to_owned()),
                    other => panic!("{other:?}"),
                });
            }
            assert_eq!(said, [words], "pieces of {length}");
            assert!(matches!(inbound.end(), Some(End::Closed(_))));
        }
    }
}

#[test]
fn there_is_something_to_remember_exactly_while_something_is_begun() {
    let sent = message(&every_kind()[2].bytes);
    let mut inbound = Inbound::default();
    for (at, byte) in sent.iter().enumerate() {
        inbound.take(Role::Server, &mut [*byte], |_| {});
        assert_eq!(inbound.is_idle(), at + 1 == sent.len());
    }
}

proptest! {
    #[test]
    fn random_fragments_bring_the_frames_they_were_cut_from(
        cuts in vec(0usize..60, 1..40),
        length in 1usize..100,
    ) {
        let native = stream(&every_kind());
        let mut sent = Vec::new();
        let mut rest = &native[..];
        let mut opcode = Opcode::Binary;
        for cut in cuts {
            let (fragment, behind) = rest.split_at(cut.min(rest.len()));
            put_frame(&mut sent, opcode, false, Some(MASK), fragment);
            rest = behind;
            opcode = Opcode::Continuation;
        }
        put_frame(&mut sent, opcode, true, Some([0; 4]), rest);
        let mut inbound = Inbound::default();
        let (taken, _, end) = take(&mut inbound, sent.chunks(length));
        prop_assert_eq!(taken, native);
        prop_assert_eq!(end, None);
        prop_assert!(inbound.is_idle());
    }
}
