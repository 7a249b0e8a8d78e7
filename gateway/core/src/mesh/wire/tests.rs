//! Golden bytes, every split point, properties, and what a hostile peer may send.

use super::*;
use crate::io::ConnId;
use proptest::collection::vec;
use proptest::prelude::*;

fn seat() -> Seat {
    Seat { shard: 0x0102, conn: ConnId { slot: 0x0304_0506, generation: 0x0007_0809 } }
}

fn address() -> Address {
    Address { node: 0x1122_3344_5566_7788, seat: seat() }
}

/// One record of each kind, and its bytes as another program would write them from the layout.
fn golden_records() -> Vec<(Record<'static>, &'static str)> {
    vec![
        (
            Record::Message {
                origin: address(),
                from: 1,
                to: 2,
                id: 3,
                hops: 2,
                flags: flags::ACK | 2,
                payload: b"hi",
            },
            concat!(
                "000000340102000311223344556677880102030405060007080900000000000000010000000000000002000000000000",
                "00036869"
            ),
        ),
        (
            Record::Fate { origin: address(), id: 3, peer: 2, outcome: 2, stamp: 77 },
            concat!(
                "000000320200000211223344556677880102030405060007080900000000000000030000000000000002000000000000",
                "004d"
            ),
        ),
        (
            Record::Deliver { seat: seat(), user: 5, session: 6, id: 7, from: 8, stamp: 9, flags: 1, payload: b"yo" },
            concat!(
                "0000003c0300000101020304050600070809000000000000000500000000000000060000000000000007000000000000",
                "00080000000000000009796f"
            ),
        ),
        (
            Record::Ack { user: 5, id: 6, peer: 7, stamp: 8, session: 9, hops: 1, cumulative: false },
            concat!(
                "000000300401000000000000000000050000000000000006",
                "000000000000000700000000000000080000000000000009"
            ),
        ),
        (
            Record::Register {
                user: 5,
                seat: seat(),
                session: 0,
                since_s: 9,
                device: "phone",
                class: "mob",
                hops: 1,
                wish: 0,
            },
            "0000003005010000000000000000000500000000000000000102030405060007080900000009050370686f6e656d6f62",
        ),
        (
            Record::Registered { seat: seat(), user: 5, session: 6, since_s: 9, pending: 4 },
            "0000002e060000000102030405060007080900000000000000050000000000000006000000000000000400000009",
        ),
        (
            Record::RegisterRefused { seat: seat(), user: 5, code: 14 },
            "0000001a0700000e010203040506000708090000000000000005",
        ),
        (Record::Unregister { user: 5, session: 6, hops: 1 }, "000000180801000000000000000000050000000000000006"),
        (
            Record::Kick { seat: seat(), user: 5, session: 6, code: 8 },
            "00000022090000080102030405060007080900000000000000050000000000000006",
        ),
        (Record::Gone { user: 5, session: 6 }, "000000180a00000000000000000000050000000000000006"),
        (Record::Settled { from: 3, to: 2, digest: 0xfeed_face }, "000000120b00000200000000feedface0003"),
        (
            Record::SettledShards { from: 3, digest: 0xfeed_face, shards: &[0x05, 0x80] },
            "000000121000000300000000feedface0580",
        ),
        (Record::SettledSet { digest: 0xfeed_face, from: &[0x05, 0x80] }, "000000121100000000000000feedface0580"),
        (
            Record::Transfer {
                user: 5,
                stamp: 9,
                origin: address(),
                from: 1,
                id: 3,
                attempts: 4,
                flags: 1,
                payload: b"bye",
            },
            concat!(
                "0000003d0c04000100000000000000050000000000000009112233445566778801020304050600070809000000000000",
                "00010000000000000003627965"
            ),
        ),
        (
            Record::KickUser { user: 5, shard: 3, ask: 7, device: Some("phone") },
            "0000001e0d010003000000000000000500000000000000070570686f6e65",
        ),
        (
            Record::KickUser { user: 5, shard: 3, ask: 7, device: None },
            "000000190d0000030000000000000005000000000000000700",
        ),
        (
            Record::KickDone { shard: 3, ask: 7, ended: 2, left: 1, status: 1 },
            "000000180e01000300000000000000070000000200000001",
        ),
        (Record::Memo { body: b"word" }, "0000000c0f000000776f7264"),
        (
            Record::GroupSend { origin: address(), from: 1, group: 2, id: 3, hops: 2, flags: 1, payload: b"hi" },
            concat!(
                "000000343202000111223344556677880102030405060007080900000000000000010000000000000002000000000000",
                "00036869"
            ),
        ),
        (
            Record::GroupCopy {
                group: 2,
                origin: address(),
                from: 1,
                id: 3,
                stamp: 4,
                number: 5,
                manner: 3,
                payload: b"hi",
            },
            concat!(
                "000000443303000011223344556677880102030405060007080900000000000000020000000000000001000000000000",
                "0003000000000000000400000000000000056869"
            ),
        ),
        (
            Record::GroupWatch { group: 2, token: 3, reign: 4, number: 5, last: 6, watch: true },
            concat!(
                "000000303400000100000000000000020000000000000003",
                "000000000000000400000000000000050000000000000006"
            ),
        ),
        (
            Record::GroupHead { group: 2, token: 3, reign: 4, number: 5, last: 6 },
            concat!(
                "000000303500000000000000000000020000000000000003",
                "000000000000000400000000000000050000000000000006"
            ),
        ),
        (
            Record::GroupRefused { origin: address(), group: 2, id: 3, code: 11 },
            "0000002a3600000b11223344556677880102030405060007080900000000000000020000000000000003",
        ),
        (Record::UserWatch { user: 5, from: 2, bits: 3 }, "000000103c0300020000000000000005"),
        (
            Record::UserTold { user: 5, to: 2, status: 2, since_s: 7, classes: b"\x01a" },
            "000000163d0200020000000000000005000000070161",
        ),
        (
            Record::GroupAsk { group: 2, shard: 3, ask: 4, body: b"ask" },
            "0000001b370000030000000000000002000000000000000461736b",
        ),
        (
            Record::GroupAnswer { group: 2, shard: 3, ask: 4, body: b"" },
            "000000183800000300000000000000020000000000000004",
        ),
        (
            Record::GroupMember { group: 2, user: 3, last: 4, change: 1 },
            "0000002039000001000000000000000200000000000000030000000000000004",
        ),
        (
            Record::Call {
                to: 3,
                seat: seat(),
                call: FarCall { service: 7, flags: 0x41, id: 3, user: 2, timeout_ms: 1_000, head: b"h", body: b"hi" },
            },
            concat!(
                "0000002f3e4100070102030405060007080900000000000000030000000000000002000003e8",
                "000000010003686869"
            ),
        ),
        (
            Record::Answer { seat: seat(), id: 3, status: 300, flags: 1, body: b"ok" },
            "0000001c3f01012c0102030405060007080900000000000000036f6b",
        ),
        (Record::CallCancel { to: 2, seat: seat(), id: 3 }, "0000001a40000002010203040506000708090000000000000003"),
        (Record::ServiceHere { service: 7, shard: 2, weight: 9 }, "00000010410000070000000200000009"),
        (
            Record::BroadcastBegin {
                to: 2,
                from: 3,
                token: 0x0405_0607,
                service: 7,
                id: 5,
                percent: 50,
                group: 6,
                classes: b"\x02tv",
                payload: b"hi",
            },
            "000000274632000204050607000300070000000000000005000000000000000600030274766869",
        ),
        (
            Record::BroadcastTold { to: 2, from: 3, token: 0x0405_0607, delivered: 8, overloaded: 1, end: 1 },
            "0000001e4701000204050607000300000000000000080000000000000001",
        ),
        (Record::BroadcastStop { to: 2, from: 3, token: 0x0405_0607 }, "0000000e48000002040506070003"),
    ]
}

pub(in crate::mesh) fn unhex(text: &str) -> Vec<u8> {
    text.as_bytes().chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

fn encoded(record: &Record<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    record.encode(&mut bytes);
    bytes
}

fn batch(seq: u64, ack: u64, records: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; BATCH_HEADER_BYTES];
    bytes.extend_from_slice(records);
    put_batch_header(&mut bytes, seq, ack);
    bytes
}

/// The units of a stream that comes in these pieces, in words, because they borrow from it.
fn units<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Result<Vec<String>, MeshViolation> {
    let mut inbound = Inbound::default();
    let mut units = Vec::new();
    for piece in pieces {
        inbound.feed(piece, |unit| {
            units.push(format!("{unit:?}"));
            Ok(())
        })?;
    }
    Ok(units)
}

fn violation(stream: &[u8]) -> MeshViolation {
    units([stream]).expect_err("a violation")
}

#[test]
fn every_record_has_its_golden_bytes() {
    for (record, golden) in golden_records() {
        let bytes = encoded(&record);
        assert_eq!(bytes, unhex(golden), "{record:?}");
        assert_eq!(bytes.len(), record.encoded_len());
        assert_eq!(Record::decode(&bytes), Ok(Some(record)));
    }
}

#[test]
fn every_frame_has_its_golden_bytes() {
    let nonce: [u8; 32] = std::array::from_fn(|at| at as u8);
    let mac: [u8; 32] = std::array::from_fn(|at| 100 + at as u8);
    let frames = [
        (
            HandshakeFrame::Hello { version_min: 1, version_max: 3, nonce: &nonce, name: "one" },
            concat!(
                "0000003201544c4d5800010003000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f00036f",
                "6e65"
            ),
        ),
        (
            HandshakeFrame::Proof { mac: &mac },
            "00000025026465666768696a6b6c6d6e6f707172737475767778797a7b7c7d7e7f80818283",
        ),
        (
            HandshakeFrame::Accept { incarnation: 7, link: 2, stream: 11, expected: 13, mac: &mac },
            concat!(
                "0000003f0300000000000000070002000000000000000b000000000000000d6465666768696a6b6c6d6e6f7071727374",
                "75767778797a7b7c7d7e7f80818283"
            ),
        ),
        (HandshakeFrame::Refuse { code: 5, text: b"no" }, "000000090400056e6f"),
    ];
    for (frame, golden) in frames {
        let mut bytes = Vec::new();
        frame.encode(&mut bytes);
        assert_eq!(bytes, unhex(golden), "{frame:?}");
        assert_eq!(HandshakeFrame::decode(&bytes), Ok(Step::Whole(frame, bytes.len())));
        for cut in 0..bytes.len() {
            let step = HandshakeFrame::decode(&bytes[..cut]);
            assert!(
                matches!(step, Ok(Step::Need(need)) if need > cut && need <= bytes.len()),
                "{frame:?} cut at {cut}"
            );
        }
    }
    let settled = encoded(&Record::Settled { from: 3, to: 2, digest: 0xfeed_face });
    assert_eq!(
        batch(21, 34, &settled),
        unhex("000000270500000000000000150000000000000022000000120b00000200000000feedface0003")
    );
    assert_eq!(heartbeat_frame(34, 1_000, 900), unhex("0000001d06000000000000002200000000000003e80000000000000384"));
    assert_eq!(goodbye_frame(goodbye::SHUTDOWN), unhex("00000007070001"));
}

#[test]
fn a_node_key_is_pinned() {
    assert_eq!(node_key("a", 1), 0xbcef_6a88_2885_3032);
    assert_eq!(node_key("node-1", 7), 0xae65_2532_f93a_9327);
    assert_ne!(node_key("node-1", 7), node_key("node-1", 8));
}

/// A batch of every kind of record and one unknown, a heartbeat, another batch, a goodbye.
fn stream() -> Vec<u8> {
    let mut records: Vec<u8> = golden_records().iter().flat_map(|(record, _)| encoded(record)).collect();
    records.extend_from_slice(&[0, 0, 0, 11, 200, 0, 0, 0, 1, 2, 3]);
    let settled = encoded(&Record::Settled { from: 3, to: 2, digest: 1 });
    [batch(0, 0, &records), heartbeat_frame(1, 2, 3), batch(22, 1, &settled), goodbye_frame(9)].concat()
}

#[test]
fn a_stream_means_the_same_at_every_split() {
    let stream = stream();
    let whole = units([&stream[..]]).unwrap();
    assert_eq!(whole.len(), 1 + 35 + 1 + 1 + 2 + 1);
    for cut in 0..=stream.len() {
        let (front, back) = stream.split_at(cut);
        assert_eq!(units([front, back]).unwrap(), whole, "cut at {cut}");
    }
    assert_eq!(units(stream.chunks(1)).unwrap(), whole);
    assert_eq!(units(stream.chunks(7)).unwrap(), whole);
}

#[test]
fn only_a_split_unit_is_kept_and_a_large_buffer_is_given_back() {
    let payload = vec![7; 300_000];
    let record = Record::Message { origin: address(), from: 1, to: 2, id: 3, hops: 0, flags: 0, payload: &payload };
    let small = encoded(&Record::Settled { from: 3, to: 2, digest: 1 });
    let bytes = batch(0, 0, &[encoded(&record), small.clone()].concat());
    let mut inbound = Inbound::default();
    let cut = bytes.len() - 3;
    inbound.feed(&bytes[..200_000], |_| Ok(())).unwrap();
    assert_eq!(inbound.partial_bytes(), 200_000 - BATCH_HEADER_BYTES);
    inbound.feed(&bytes[200_000..cut], |_| Ok(())).unwrap();
    assert_eq!(inbound.partial_bytes(), small.len() - 3);
    assert!(inbound.partial.capacity() <= PARTIAL_BYTES_KEPT);
    inbound.feed(&bytes[cut..], |_| Ok(())).unwrap();
    assert_eq!(inbound.partial_bytes(), 0);
}

#[test]
fn an_unknown_record_is_skipped_by_its_length_and_an_unknown_frame_is_a_violation() {
    let records =
        [&[0, 0, 0, 9, 99, 0, 0, 0, 7][..], &encoded(&Record::Settled { from: 3, to: 2, digest: 1 })].concat();
    let units = units([&batch(4, 0, &records)[..]]).unwrap();
    assert_eq!(units[1..], ["UnknownRecord { bytes: 9 }", "Record(Settled { from: 3, to: 2, digest: 1 })"]);
    assert_eq!(violation(&[0, 0, 0, 9, 99, 0, 0, 0, 7]), MeshViolation::FrameUnexpected { kind: 99 });
    let mut hello = Vec::new();
    HandshakeFrame::Proof { mac: &[0; 32] }.encode(&mut hello);
    assert_eq!(violation(&hello), MeshViolation::FrameUnexpected { kind: PROOF }, "too late for a handshake");
}

#[test]
fn a_length_that_lies_is_a_violation() {
    let settled = encoded(&Record::Settled { from: 3, to: 2, digest: 1 });
    let with_length = |record: &[u8], length: u32| [&length.to_be_bytes(), &record[4..]].concat();

    for length in [0, 4, BATCH_HEADER_BYTES as u32, BATCH_HEADER_BYTES as u32 + 7, FRAME_BYTES_MAX as u32 + 1, u32::MAX]
    {
        let frame = with_length(&batch(0, 0, &settled), length);
        assert_eq!(violation(&frame), MeshViolation::FrameLength { frame: "Batch", length });
    }
    let longest = with_length(&batch(0, 0, &settled), FRAME_BYTES_MAX as u32);
    assert_eq!(units([&longest[..]]).unwrap().len(), 2);
    let frame = with_length(&heartbeat_frame(0, 0, 0), 28);
    assert_eq!(violation(&frame), MeshViolation::FrameLength { frame: "Heartbeat", length: 28 });
    let frame = with_length(&goodbye_frame(0), 8);
    assert_eq!(violation(&frame), MeshViolation::FrameLength { frame: "Goodbye", length: 8 });

    for length in [0, 7] {
        let record = with_length(&settled, length);
        assert_eq!(violation(&batch(0, 0, &record)), MeshViolation::RecordTooShort { length });
    }
    for length in [19, u32::MAX] {
        let record = with_length(&settled, length);
        assert_eq!(violation(&batch(0, 0, &record)), MeshViolation::RecordBeyondBatch { length, left: 18 });
    }
    let short_batch = batch(0, 0, &[settled.clone(), vec![0; 3]].concat());
    let after = [&short_batch[..], &[0]].concat();
    assert_eq!(violation(&after), MeshViolation::RecordTooShort { length: 0 }, "a batch ends within a record");

    for (record, _) in golden_records() {
        let bytes = encoded(&record);
        let mut longer = [&bytes[..], b"x"].concat();
        longer[0..4].copy_from_slice(&(bytes.len() as u32 + 1).to_be_bytes());
        let open = !record.is_control()
            || matches!(
                record,
                Record::Memo { .. }
                    | Record::SettledShards { .. }
                    | Record::SettledSet { .. }
                    | Record::UserTold { .. }
                    | Record::GroupAnswer { .. }
                    | Record::Answer { .. }
            );
        match Record::decode(&longer) {
            Ok(Some(_)) => assert!(open, "{record:?}"),
            Err(MeshViolation::RecordLength { .. }) => assert!(!open, "{record:?}"),
            other => panic!("{record:?}: {other:?}"),
        }
        for len in 0..bytes.len() {
            let decoded = Record::decode(&bytes[..len]);
            // What a record with a payload has to have is everything before that.
            let fixed = match record {
                Record::Message { .. } | Record::GroupSend { .. } => 50,
                Record::GroupCopy { .. } => 66,
                Record::Memo { .. } => 8,
                Record::UserTold { .. } => 20,
                Record::SettledShards { .. } | Record::SettledSet { .. } => 16,
                Record::GroupAsk { .. } | Record::GroupAnswer { .. } => 24,
                // And the head that it tells of.
                Record::Call { call, .. } => 44 + call.head.len(),
                Record::Answer { .. } => 26,
                // Behind the fixed part and its classes.
                Record::BroadcastBegin { .. } => 37,
                _ => 58,
            };
            let bare = open && len >= fixed;
            assert_eq!(decoded.is_ok(), bare, "{record:?} of {len} bytes: {decoded:?}");
        }
    }
}

#[test]
fn a_bad_length_is_noticed_as_soon_as_it_is_there() {
    let bytes = batch(0, 0, &encoded(&Record::Settled { from: 3, to: 2, digest: 1 }));
    let (header, record) = bytes.split_at(BATCH_HEADER_BYTES);
    let mut bad = record[..4].to_vec();
    bad[0] = 1;
    let beyond = MeshViolation::RecordBeyondBatch { length: (1 << 24) + 18, left: 18 };
    assert_eq!(units([header, &bad[..3], &bad[3..]]), Err(beyond));
    assert_eq!(units([header, &bad]), Err(beyond));
}

#[test]
fn texts_are_bounded_utf8_that_fill_their_record() {
    let register = |device: &'static str, class: &'static str| {
        let (user, session, since_s, hops) = (1, 2, 3, 0);
        Record::Register { user, seat: seat(), session, since_s, device, class, hops, wish: 0 }
    };
    let longest: &'static str = "12345678123456781234567812345678123456781234567812345678123456Ä";
    assert_eq!(longest.len(), TEXT_BYTES_MAX);
    for (device, class) in [("", ""), (longest, ""), ("ü", longest)] {
        let record = register(device, class);
        assert_eq!(Record::decode(&encoded(&record)), Ok(Some(record)));
    }
    let mut bytes = encoded(&register("phone", "mobile"));
    bytes[40] = 0xff;
    assert_eq!(Record::decode(&bytes), Err(MeshViolation::TextNotUtf8 { field: "device" }));
    let mut bytes = encoded(&register("phone", "mobile"));
    bytes[45] = 0xc3;
    assert_eq!(Record::decode(&bytes), Err(MeshViolation::TextNotUtf8 { field: "class" }));
    // The border moves into the middle of a character.
    let mut bytes = encoded(&register("ü", "a"));
    (bytes[38], bytes[39]) = (1, 2);
    assert_eq!(Record::decode(&bytes), Err(MeshViolation::TextNotUtf8 { field: "device" }));
    for (device_len, class_len) in [(6, 6), (5, 5), (0, 0), (11, 1)] {
        let mut bytes = encoded(&register("phone", "mobile"));
        (bytes[38], bytes[39]) = (device_len, class_len);
        let wrong = MeshViolation::RecordLength { record: "Register", length: 51 };
        assert_eq!(Record::decode(&bytes), Err(wrong));
    }
    let mut bytes = encoded(&register(longest, "a"));
    bytes[38] = 65;
    assert_eq!(Record::decode(&bytes), Err(MeshViolation::TextTooLong { length: 65 }));
    assert!(!register("123456781234567812345678123456781234567812345678123456781234567Ä", "").fits());
}

#[test]
fn a_hello_is_checked_to_its_last_byte() {
    let hello = |min, max, name| {
        let mut bytes = Vec::new();
        HandshakeFrame::Hello { version_min: min, version_max: max, nonce: &[1; 32], name }.encode(&mut bytes);
        bytes
    };
    let name = "n".repeat(NAME_BYTES_MAX);
    let bytes = hello(1, 1, &name);
    assert!(matches!(HandshakeFrame::decode(&bytes), Ok(Step::Whole(HandshakeFrame::Hello { .. }, 306))));
    for (at, byte, violation) in [
        (5, b'X', MeshViolation::Magic),
        (10, 0, MeshViolation::VersionRange { min: 0, max: 2 }),
        (10, 3, MeshViolation::VersionRange { min: 3, max: 2 }),
        (46, 2, MeshViolation::FrameLength { frame: "Hello", length: 50 }),
        (47, 0xff, MeshViolation::NameUnusable),
        (48, b'\n', MeshViolation::NameUnusable),
    ] {
        let mut bytes = hello(1, 2, "one");
        bytes[at] = byte;
        assert_eq!(HandshakeFrame::decode(&bytes), Err(violation), "byte {at}");
    }
    let mut bytes = hello(1, 1, "o");
    bytes.truncate(47);
    bytes[3] = 47;
    bytes[46] = 0;
    assert_eq!(HandshakeFrame::decode(&bytes), Err(MeshViolation::NameUnusable));
}

#[test]
fn every_violation_says_what_was_wrong() {
    let all = [
        MeshViolation::FrameLength { frame: "Batch", length: 3 },
        MeshViolation::FrameUnexpected { kind: 3 },
        MeshViolation::Magic,
        MeshViolation::VersionRange { min: 3, max: 1 },
        MeshViolation::NameUnusable,
        MeshViolation::RecordTooShort { length: 3 },
        MeshViolation::RecordBeyondBatch { length: 3, left: 1 },
        MeshViolation::RecordTooLong { length: 3 },
        MeshViolation::RecordLength { record: "Fate", length: 3 },
        MeshViolation::TextTooLong { length: 3 },
        MeshViolation::TextNotUtf8 { field: "device" },
        MeshViolation::Gap { expected: 3, seq: 4 },
        MeshViolation::AckBeyondSent { ack: 3, sent: 1 },
    ];
    let texts: std::collections::HashSet<String> = all.iter().map(ToString::to_string).collect();
    assert_eq!(texts.len(), all.len());
}

/// What a record is made of, owned.
#[derive(Clone, Debug)]
struct Parts {
    kind: u8,
    words: [u64; 6],
    seat: Seat,
    half: u32,
    small: u16,
    bytes: [u8; 2],
    payload: Vec<u8>,
    texts: [String; 2],
}

impl Parts {
    fn record(&self) -> Record<'_> {
        let Parts { words: [a, b, c, d, e, node], seat, half: since_s, small, bytes: [hops, flags], .. } = *self;
        let origin = Address { node, seat };
        let payload = &self.payload[..];
        let [device, class] = [&self.texts[0][..], &self.texts[1][..]];
        match self.kind % 18 {
            0 => Record::Message { origin, from: a, to: b, id: c, hops, flags, payload },
            1 => Record::Fate { origin, id: a, peer: b, outcome: small, stamp: c },
            2 => Record::Deliver { seat, user: a, session: b, id: c, from: d, stamp: e, flags, payload },
            3 => Record::Ack { user: a, id: b, peer: c, stamp: d, session: a ^ d, hops, cumulative: flags & 1 == 1 },
            4 => Record::Register { user: a, seat, session: b, since_s, device, class, hops, wish: a as u16 },
            5 => Record::Registered { seat, user: a, session: b, since_s, pending: c },
            6 => Record::RegisterRefused { seat, user: a, code: small },
            7 => Record::Unregister { user: a, session: b, hops },
            8 => Record::Kick { seat, user: a, session: b, code: small },
            9 => Record::Gone { user: a, session: b },
            10 => Record::Settled { from: a as u16, to: b as u16, digest: a },
            11 => Record::KickUser { user: a, shard: small, ask: b, device: Some(device) },
            12 => Record::KickUser { user: a, shard: small, ask: b, device: None },
            13 => Record::KickDone { shard: small, ask: a, ended: since_s, left: b as u32, status: hops },
            14 => Record::Memo { body: payload },
            15 => Record::SettledShards { from: small, digest: a, shards: &payload[..payload.len().min(128)] },
            16 => Record::SettledSet { digest: a, from: &payload[..payload.len().min(128)] },
            _ => Record::Transfer { user: a, stamp: b, origin, from: c, id: d, attempts: hops, flags, payload },
        }
    }
}

fn parts() -> impl Strategy<Value = Parts> {
    let seat = any::<(u16, u32, u32)>()
        .prop_map(|(shard, slot, generation)| Seat { shard, conn: ConnId { slot, generation } });
    let texts = ["\\PC{0,16}", "\\PC{0,16}"];
    (any::<(u8, [u64; 6], u32, u16, [u8; 2])>(), seat, vec(any::<u8>(), 0..300), texts).prop_map(
        |((kind, words, half, small, bytes), seat, payload, texts)| Parts {
            kind,
            words,
            seat,
            half,
            small,
            bytes,
            payload,
            texts,
        },
    )
}

proptest! {
    #[test]
    fn records_come_out_as_they_went_in(parts in vec(parts(), 1..20), pieces in 1_usize..200) {
        let records: Vec<Record<'_>> = parts.iter().map(Parts::record).collect();
        let bytes = batch(5, 6, &records.iter().flat_map(encoded).collect::<Vec<_>>());
        let mut wanted = vec![format!("{:?}", Unit::Batch {
            seq: 5,
            ack: 6,
            records_bytes: (bytes.len() - BATCH_HEADER_BYTES) as u32,
        })];
        wanted.extend(records.iter().map(|record| format!("{:?}", Unit::Record(*record))));
        prop_assert_eq!(units(bytes.chunks(pieces)).unwrap(), wanted);
    }

    #[test]
    fn random_bytes_never_panic(bytes in vec(any::<u8>(), 0..400)) {
        crate::mesh::fuzz::wire_stream(&bytes);
    }

    #[test]
    fn changed_bytes_never_panic(at in any::<prop::sample::Index>(), byte: u8, cut in any::<prop::sample::Index>()) {
        let mut bytes = stream();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        bytes.truncate(cut.index(bytes.len()) + 1);
        crate::mesh::fuzz::wire_stream(&[&[byte], &bytes[..]].concat());
    }
}
