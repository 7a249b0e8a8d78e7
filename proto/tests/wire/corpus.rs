//! The corpus of the fuzz targets, replayed. Its seeds are written by this file: after a change to them run
//! `cargo test -p trunkline-proto --test wire -- --ignored write_the_seeds`.

use std::fs;
use std::path::PathBuf;

use trunkline_proto::websocket::{Opcode, put_frame};
use trunkline_proto::{FRAME_BYTES_MAX_DEFAULT, FRAME_BYTES_MAX_FLOOR, Header, Kind, encode, fuzz};

use crate::samples::{Sample, every_kind, header, hex, stream};
use crate::websocket::masked;

/// Longest input the fuzzer makes, in bytes.
const SEED_BYTES_MAX: usize = 4_096;

struct Target {
    name: &'static str,
    run: fn(&[u8]),
    seeds: Vec<(String, Vec<u8>)>,
}

impl Target {
    fn folder(&self) -> PathBuf {
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(self.name)
    }
}

fn targets() -> [Target; 5] {
    [
        Target { name: "decode_stream", run: fuzz::decode_stream, seeds: decode_stream_seeds() },
        Target { name: "control_messages", run: fuzz::control_messages, seeds: control_messages_seeds() },
        Target { name: "round_trip", run: fuzz::round_trip, seeds: round_trip_seeds() },
        Target { name: "websocket_stream", run: fuzz::websocket_stream, seeds: websocket_stream_seeds() },
        Target { name: "websocket_seal", run: fuzz::websocket_seal, seeds: websocket_seal_seeds() },
    ]
}

fn named(name: &str, bytes: Vec<u8>) -> (String, Vec<u8>) {
    (name.to_owned(), bytes)
}

/// The longest frame (0 the default, 1 the floor, 3 only 64 bytes), how the pieces begin, the stream.
fn decode_stream_seeds() -> Vec<(String, Vec<u8>)> {
    let with = |pick: [u8; 2], stream: &[u8]| [&pick, stream].concat();
    let samples = every_kind();
    let all = stream(&samples);
    let (login, ping, send) = (&samples[0], &samples[1], &samples[2]);

    let mut at_floor = Vec::new();
    let body = vec![0x5a; FRAME_BYTES_MAX_FLOOR as usize - 32];
    encode(&mut at_floor, &header(Kind::Send), &body);
    let mut pings = Vec::new();
    for aux in 0..200 {
        let ping = Header { aux, ..header(Kind::Ping) };
        encode(&mut pings, &ping, b"");
    }
    let over_default = (FRAME_BYTES_MAX_DEFAULT + 1).to_be_bytes();
    let over_floor = (FRAME_BYTES_MAX_FLOOR + 1).to_be_bytes();

    vec![
        named("empty", with([0, 0], b"")),
        named("all_kinds_byte_by_byte", with([0, 0], &all)),
        named("all_kinds_in_pieces", with([0, 40], &all)),
        named("all_kinds_up_to_64_bytes", with([3, 7], &all)),
        named("login_then_sends", with([0, 11], &stream(&samples[..3]))),
        named("login_cut", with([0, 3], &login.bytes[..20])),
        named("length_cut", with([0, 3], &send.bytes[..3])),
        named("header_cut", with([0, 3], &send.bytes[..31])),
        named("pings", with([0, 200], &pings)),
        named("length_0", with([0, 1], &hex("00000000 02 00 0000"))),
        named("length_7_after_a_ping", {
            let bytes = [&ping.bytes[..], &hex("00000007 02 00 0000")].concat();
            with([0, 5], &bytes)
        }),
        named("length_8_of_a_send", with([0, 1], &hex("00000008 03 00 0000"))),
        named("length_31_of_a_deliver", with([0, 9], &[&hex("0000001f 83 00 0000")[..], &[0; 23]].concat())),
        named("length_u32_max", with([0, 1], &hex("ffffffff 03 00 0000"))),
        named("length_16_mib", with([2, 1], &hex("01000000 03 00 0000"))),
        named("length_below_16_mib", with([2, 1], &hex("00ffffff 03 00 0000"))),
        named("length_over_default", with([0, 1], &over_default)),
        named("length_over_floor", with([1, 1], &over_floor)),
        named("length_at_floor", with([1, 33], &at_floor)),
        named("unknown_kinds", {
            let unknown = hex("00000008 00 ff ffff 0000000c 10 00 0001 01020304 00000009 ff 00 0000 01");
            with([0, 13], &[&unknown[..], &ping.bytes].concat())
        }),
        named("websocket", with([0, 1], b"GET /ws HTTP/1.1\r\nHost: a\r\n\r\n")),
        named("tls", with([0, 1], &hex("16030100c8010000c40303"))),
        named("zeros", with([0, 0], &[0; 64])),
    ]
}

/// The body of every control message, and protobuf that is odd or broken.
fn control_messages_seeds() -> Vec<(String, Vec<u8>)> {
    let has_message = |sample: &&Sample| sample.header.kind.header_len() == 8 && !sample.body.is_empty();
    let mut seeds: Vec<_> = every_kind()
        .iter()
        .filter(has_message)
        .map(|sample| {
            let name = sample.header.kind.name().to_lowercase();
            (name, sample.body.clone())
        })
        .collect();
    seeds.extend([
        named("empty", vec![]),
        named("field_twice", hex("0801 0802 1001 1002")),
        named("unknown_field", hex("0801 a006 2a")),
        named("field_number_0", hex("00 01")),
        named("field_number_too_large", hex("ffffffffff0f 01")),
        named("wrong_wire_type", hex("0a 01 00 10 01")),
        named("fixed_wire_types", hex("a10f 0000000000000001 a50f 00000001")),
        named("group", hex("a30f 0801 a40f")),
        named("group_without_end", hex("a30f a30f a30f a30f")),
        named("varint_cut", hex("08 ff")),
        named("varint_of_10_bytes", hex("10 ffffffffffffffffff01")),
        named("varint_of_11_bytes", hex("10 ffffffffffffffffffff01")),
        named("varint_over_32_bits", hex("08 ffffffff7f")),
        named("length_beyond_the_end", hex("0a ffffffff0f 01")),
        named("text_not_utf8", hex("1a 02 c328 12 01 ff")),
        named("users_unpacked", hex("08 01 08 02 08 ac02")),
        named("users_packed_cut", hex("0a 03 01 02 ff")),
        named("users_packed_many", [&hex("0a e807")[..], &[1; 1_000]].concat()),
        named("presence_of_many_empty", hex("0a00").repeat(500)),
        named("presence_nested_cut", hex("0a 04 0801 1a05 61")),
    ]);
    seeds
}

/// Of each frame: number of the kind, flags, aux, id, peer, stamp, length of the body, the body.
fn round_trip_seeds() -> Vec<(String, Vec<u8>)> {
    let described = |index: usize, sample: &Sample| {
        let Header { flags, aux, id, peer, stamp, .. } = sample.header;
        let mut bytes = vec![index as u8, flags];
        bytes.extend_from_slice(&aux.to_be_bytes());
        for field in [id, peer, stamp] {
            bytes.extend_from_slice(&field.to_be_bytes());
        }
        bytes.extend_from_slice(&(sample.body.len() as u16).to_be_bytes());
        bytes.extend_from_slice(&sample.body);
        bytes
    };
    let samples = every_kind();
    let each: Vec<Vec<u8>> = samples.iter().enumerate().map(|(index, sample)| described(index, sample)).collect();
    let send = &each[2];
    vec![
        named("empty", vec![]),
        named("all_kinds", each.concat()),
        named("login", each[0].clone()),
        named("send", send.clone()),
        named("send_cut", send[..20].to_vec()),
        named("send_with_a_body_cut", send[..send.len() - 2].to_vec()),
        named("sends", send.repeat(40)),
        named("ping_with_an_id", {
            let ping = Header { id: 1, peer: 2, stamp: 3, ..header(Kind::Ping) };
            let (body, bytes) = (vec![], vec![]);
            described(1, &Sample { header: ping, body, bytes })
        }),
        named("all_ones", vec![0xff; 200]),
        named("zeros", vec![0; 300]),
        named("body_of_4000_bytes", {
            let body = vec![0xa5; 4_000];
            let bytes = vec![];
            described(15, &Sample { header: header(Kind::Deliver), body, bytes })
        }),
    ]
}

/// The rules (bit 0 a client reads, bit 1 no text, bit 2 short messages), how the pieces begin, the stream.
fn websocket_stream_seeds() -> Vec<(String, Vec<u8>)> {
    let with = |pick: [u8; 2], stream: &[u8]| [&pick, stream].concat();
    let frame = |opcode, fin, payload: &[u8]| masked(opcode, fin, payload);
    let binary = |payload: &[u8]| frame(Opcode::Binary, true, payload);
    let unmasked = |opcode, payload: &[u8]| {
        let mut bytes = Vec::new();
        put_frame(&mut bytes, opcode, true, None, payload);
        bytes
    };
    let native = stream(&every_kind());
    let (half, rest) = native.split_at(native.len() / 2);
    let fragments = [
        frame(Opcode::Binary, false, half),
        frame(Opcode::Ping, true, b"between"),
        frame(Opcode::Continuation, false, b""),
        frame(Opcode::Continuation, true, rest),
    ];
    let text = [frame(Opcode::Text, false, b"Gru\xc3"), frame(Opcode::Continuation, true, b"\x9f")];
    vec![
        named("empty", with([0, 0], b"")),
        named("all_kinds_in_one_message", with([0, 3], &binary(&native))),
        named("all_kinds_byte_by_byte", with([2, 0], &binary(&native))),
        named("fragments_with_a_ping_between", with([2, 7], &fragments.concat())),
        named("short_messages_only", with([4, 30], &[binary(&[0; 150]), binary(&[0; 201])].concat())),
        named(
            "server_frames",
            with([1, 9], &[unmasked(Opcode::Binary, &native), unmasked(Opcode::Pong, b"x")].concat()),
        ),
        named("text_over_two_frames", with([0, 1], &text.concat())),
        named("text_not_utf8", with([0, 1], &frame(Opcode::Text, true, b"\xed\xa0\x80"))),
        named("text_refused", with([2, 1], &frame(Opcode::Text, true, b"hello"))),
        named("ping_of_125_bytes", with([0, 12], &frame(Opcode::Ping, true, &[9; 125]))),
        named("ping_of_126_bytes", with([0, 12], &hex("89 fe 007e 00000000"))),
        named("close", with([0, 2], &frame(Opcode::Close, true, b"\x03\xe8bye"))),
        named("close_of_1_byte", with([0, 2], &frame(Opcode::Close, true, b"\x03"))),
        named("close_then_more", with([0, 2], &[frame(Opcode::Close, true, b""), binary(&native)].concat())),
        named("frame_unfinished", with([2, 5], &binary(&native[..native.len() - 1]))),
        named("length_not_shortest", with([0, 1], &hex("82 fe 0005 00000000 0102030405"))),
        named("length_2_pow_63", with([0, 1], &hex("82 ff 8000000000000000 00000000"))),
        named("reserved_bit", with([0, 1], &hex("c2 80 00000000"))),
        named("unmasked", with([0, 1], &hex("82 01 00"))),
        named("lone_continuation", with([0, 1], &hex("80 80 00000000"))),
        named("nested_message", with([0, 1], &[frame(Opcode::Binary, false, b""), binary(b"")].concat())),
        // In pieces of which the first is the first message.
        named("no_length_then_half_a_frame", with([0, 9], &[binary(&[0; 4]), binary(&[7])].concat())),
    ]
}

/// The square root of the length of each body.
fn websocket_seal_seeds() -> Vec<(String, Vec<u8>)> {
    vec![
        named("empty", vec![]),
        named("one", vec![8]),
        named("some", vec![0, 1, 2, 3, 200]),
        named("many_messages", vec![150; 60]),
        named("all_lengths", (0..=255).collect()),
    ]
}

#[test]
fn every_input_of_the_corpus_keeps_the_properties() {
    for target in targets() {
        let mut replayed = 0;
        for entry in fs::read_dir(target.folder()).expect("the folder of the corpus") {
            let path = entry.expect("an entry of the corpus").path();
            let input = fs::read(&path).expect("a file of the corpus");
            // Shown when the input fails, since the captured output of a failed test is.
            println!("{}", path.display());
            (target.run)(&input);
            replayed += 1;
        }
        assert!(replayed >= target.seeds.len(), "{}", target.name);
    }
}

#[test]
fn the_committed_seeds_are_the_ones_written_here() {
    for target in targets() {
        for (name, bytes) in &target.seeds {
            assert!(bytes.len() <= SEED_BYTES_MAX, "{name}");
            let path = target.folder().join(name);
            let committed = fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            assert!(&committed == bytes, "{} is out of date", path.display());
        }
    }
}

#[test]
#[ignore = "writes the seeds of the corpus into the source tree"]
fn write_the_seeds() {
    for target in targets() {
        let folder = target.folder();
        fs::create_dir_all(&folder).expect("the folder of the corpus");
        for (name, bytes) in &target.seeds {
            fs::write(folder.join(name), bytes).expect("a file of the corpus");
        }
    }
}
