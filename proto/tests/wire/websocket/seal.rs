//! Native frames into messages.

use super::{CLIENT, read};
use crate::samples::{every_kind, header, stream};
use proptest::collection::vec;
use proptest::prelude::*;
use trunkline_proto::websocket::{
    MESSAGE_BYTES_MAX, Opcode, put_close, put_control, put_messages, seal, sealed_frames,
};
use trunkline_proto::{Header, Kind, encode, fuzz};

fn deliver(body_len: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode(&mut bytes, &Header { id: 1, ..header(Kind::Deliver) }, &vec![0x5a; body_len]);
    bytes
}

#[test]
fn what_is_queued_is_one_message() {
    let native = stream(&every_kind());
    let mut frames = native.clone();
    seal(&mut frames);
    assert_eq!(read(CLIENT, &frames), Ok(vec![(Opcode::Binary, native)]));
}

#[test]
fn nothing_is_no_message() {
    let mut frames = Vec::new();
    seal(&mut frames);
    assert!(frames.is_empty());
}

#[test]
fn much_is_parted_between_frames() {
    // 1,000 bytes each: 65 fit into a message; the one of 100,000 bytes goes by itself.
    let mut frames = deliver(968).repeat(200);
    frames.extend(deliver(99_968));
    frames.extend(deliver(968));
    let native = frames.clone();
    seal(&mut frames);
    let wholes = read(CLIENT, &frames).expect("no violation");
    let lengths: Vec<usize> = wholes.iter().map(|(_, message)| message.len()).collect();
    assert_eq!(lengths, [65_000, 65_000, 65_000, 5_000, 100_000, 1_000]);
    let messages: Vec<u8> = wholes.into_iter().flat_map(|(_, message)| message).collect();
    assert_eq!(messages, native);
    assert!(lengths.iter().all(|length| *length <= MESSAGE_BYTES_MAX || *length == 100_000));
}

#[test]
fn sealed_frames_are_found_with_the_place_at_which_each_ends() {
    let samples = every_kind();
    let mut sealed = Vec::new();
    put_control(&mut sealed, Opcode::Ping, &[0x82; 30]);
    put_messages(&mut sealed, &stream(&samples));
    put_close(&mut sealed, Some(4012), "draining");
    let found: Vec<_> = sealed_frames(&sealed).collect();
    assert_eq!(found.len(), samples.len());
    let mut end = 32 + 4;
    for ((frame, found_end), sample) in found.iter().zip(&samples) {
        end += sample.bytes.len();
        assert_eq!((*frame, *found_end), (sample.frame(), end));
    }
    // Cut anywhere: those that are whole, and no more.
    for cut in 0..sealed.len() {
        let there = sealed_frames(&sealed[..cut]).count();
        assert_eq!(there, found.iter().filter(|(_, end)| *end <= cut).count());
    }
}

proptest! {
    #[test]
    fn messages_hold_whole_frames_and_no_more_than_they_may(data in vec(any::<u8>(), 0..80)) {
        fuzz::websocket_seal(&data);
    }

    #[test]
    fn any_bytes_sealed_come_out_again(bytes in vec(any::<u8>(), 1..300)) {
        let mut sealed = bytes.clone();
        seal(&mut sealed);
        let wholes = read(CLIENT, &sealed).expect("no violation");
        let payloads: Vec<u8> = wholes.into_iter().flat_map(|(_, payload)| payload).collect();
        prop_assert_eq!(payloads, bytes);
        for (frame, end) in sealed_frames(&sealed) {
            prop_assert!(sealed[..end].ends_with(frame.body));
        }
    }
}
