//! What holds for all messages, however they are fragmented, split and mixed with control frames.

use super::{Reader, SERVER, Whole, mixed, read};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use trunkline_proto::fuzz;
use trunkline_proto::websocket::{Opcode, Rules, put_frame};

#[test]
fn a_stream_split_in_two_anywhere_has_the_same_meaning() {
    let (stream, wanted) = mixed();
    // Within the long payload every split is like its neighbour.
    let near = |at: &usize| *at < 1_000 || *at + 200 > stream.len() || at.is_multiple_of(997);
    for at in (0..=stream.len()).filter(near) {
        let mut reader = Reader::new(SERVER);
        let (first, second) = stream.split_at(at);
        assert_eq!(reader.feed(first).and_then(|()| reader.feed(second)), Ok(()));
        assert_eq!(reader.wholes, wanted, "split at {at}");
        assert!(reader.is_idle());
    }
}

#[test]
fn a_stream_in_pieces_of_any_length_has_the_same_meaning() {
    let (stream, wanted) = mixed();
    for length in (1..200).chain([1_000, 4_096, 65_536]) {
        let mut reader = Reader::new(SERVER);
        for piece in stream.chunks(length) {
            assert_eq!(reader.feed(piece), Ok(()));
        }
        assert_eq!(reader.wholes, wanted, "pieces of {length}");
    }
}

/// A message in fragments, and the control frames before each of them.
#[derive(Clone, Debug)]
struct Sent {
    opcode: Opcode,
    fragments: Vec<(Vec<Whole>, Vec<u8>)>,
    mask: [u8; 4],
}

fn any_control() -> impl Strategy<Value = Whole> {
    (select(vec![Opcode::Ping, Opcode::Pong]), vec(any::<u8>(), 0..=125))
}

fn any_sent() -> impl Strategy<Value = Sent> {
    let text = "\\PC{0,80}".prop_map(|text| (Opcode::Text, text.into_bytes()));
    let binary = vec(any::<u8>(), 0..400).prop_map(|payload| (Opcode::Binary, payload));
    let cuts = vec((vec(any_control(), 0..3), any::<Index>()), 1..6);
    (prop_oneof![text, binary], cuts, any::<[u8; 4]>()).prop_map(|((opcode, payload), cuts, mask)| {
        let mut rest = &payload[..];
        let last = cuts.len() - 1;
        let fragments = cuts.into_iter().enumerate().map(|(at, (controls, cut))| {
            let cut = if at == last { rest.len() } else { cut.index(rest.len() + 1) };
            let (fragment, behind) = rest.split_at(cut);
            rest = behind;
            (controls, fragment.to_vec())
        });
        Sent { opcode, fragments: fragments.collect(), mask }
    })
}

fn written(sent: &[Sent]) -> (Vec<u8>, Vec<Whole>) {
    let (mut bytes, mut wholes) = (Vec::new(), Vec::new());
    for Sent { opcode, fragments, mask } in sent {
        let mut message = Vec::new();
        for (at, (controls, fragment)) in fragments.iter().enumerate() {
            for (opcode, payload) in controls {
                put_frame(&mut bytes, *opcode, true, Some(*mask), payload);
                wholes.push((*opcode, payload.clone()));
            }
            let opcode = if at == 0 { *opcode } else { Opcode::Continuation };
            put_frame(&mut bytes, opcode, at + 1 == fragments.len(), Some(*mask), fragment);
            message.extend_from_slice(fragment);
        }
        wholes.push((*opcode, message));
    }
    (bytes, wholes)
}

proptest! {
    #[test]
    fn messages_come_back_however_they_are_fragmented(sent in vec(any_sent(), 0..6), length in 1usize..700) {
        let (bytes, wholes) = written(&sent);
        let mut reader = Reader::new(SERVER);
        for piece in bytes.chunks(length) {
            prop_assert_eq!(reader.feed(piece), Ok(()));
        }
        prop_assert_eq!(&reader.wholes, &wholes);
        prop_assert!(reader.is_idle());
        prop_assert_eq!(read(SERVER, &bytes), Ok(wholes));
    }

    #[test]
    fn no_message_is_longer_than_is_taken(sent in vec(any_sent(), 0..6), max in 0u32..400) {
        let rules = Rules { message_bytes_max: max, ..SERVER };
        let (bytes, wholes) = written(&sent);
        let longest = wholes.iter().filter(|(opcode, _)| !opcode.is_control()).map(|(_, message)| message.len()).max();
        let fits = longest.unwrap_or(0) <= max as usize;
        prop_assert_eq!(read(rules, &bytes).is_ok(), fits);
    }

    #[test]
    fn any_bytes_are_read_alike_in_one_piece_and_in_many(bytes in vec(any::<u8>(), 0..500)) {
        fuzz::websocket_stream(&bytes);
    }

    /// Damage to good frames reaches further than noise does, which ends at its first bytes.
    #[test]
    fn damaged_frames_are_read_alike_in_one_piece_and_in_many(
        sent in vec(any_sent(), 0..6),
        pick in any::<[u8; 2]>(),
        damage in vec(any::<(Index, u8)>(), 0..4),
    ) {
        let mut bytes = pick.to_vec();
        bytes.extend(written(&sent).0);
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        fuzz::websocket_stream(&bytes);
    }
}
