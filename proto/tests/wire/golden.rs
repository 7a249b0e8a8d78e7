//! Golden bytes: what is written to the wire, and what is read from it, for every kind.

use std::fmt::Debug;

use trunkline_proto::prost::Message;
use trunkline_proto::{FRAME_BYTES_MAX_DEFAULT, Header, Kind, decode, encode, encode_message, encoded_len, frame_len};

use crate::samples::{
    Sample, bye, every_kind, header, heads, invite, login, login_ok, presence, renew, serve, serve_ok, sync, sync_ok,
    unwatch, watch,
};

#[test]
fn there_is_a_sample_of_every_kind() {
    let kinds: Vec<Kind> = every_kind().iter().map(|s| s.header.kind).collect();
    assert_eq!(kinds, Kind::ALL);
}

#[test]
fn every_kind_encodes_to_its_golden_bytes() {
    for sample in every_kind() {
        let kind = sample.header.kind;
        let mut bytes = Vec::new();
        encode(&mut bytes, &sample.header, &sample.body);
        assert_eq!(bytes, sample.bytes, "{}", kind.name());
        assert_eq!(encoded_len(kind, sample.body.len()), bytes.len());
    }
}

#[test]
fn every_kind_decodes_from_its_golden_bytes() {
    for sample in every_kind() {
        let length = sample.bytes.len();
        assert_eq!(decode(&sample.bytes, FRAME_BYTES_MAX_DEFAULT), Ok(Some((sample.frame(), length))));
        assert_eq!(frame_len(&sample.bytes, FRAME_BYTES_MAX_DEFAULT), Ok(Some(length)));
        assert_eq!(sample.frame().known(), Some(sample.header.kind));
    }
}

fn assert_control<M: Message + Default + PartialEq + Debug>(samples: &[Sample], kind: Kind, message: &M) {
    let sample = samples.iter().find(|s| s.header.kind == kind).expect("a sample of every kind");
    let mut bytes = Vec::new();
    encode_message(&mut bytes, kind, sample.header.aux, message);
    assert_eq!(bytes, sample.bytes, "{}", kind.name());
    let (frame, _) = decode(&sample.bytes, FRAME_BYTES_MAX_DEFAULT).expect("no violation").expect("a whole frame");
    assert_eq!(M::decode(frame.body).as_ref(), Ok(message));
}

#[test]
fn every_control_message_has_its_golden_bytes() {
    let samples = every_kind();
    assert_control(&samples, Kind::Login, &login());
    assert_control(&samples, Kind::Renew, &renew());
    assert_control(&samples, Kind::LoginOk, &login_ok());
    assert_control(&samples, Kind::Bye, &bye());
    assert_control(&samples, Kind::Sync, &sync());
    assert_control(&samples, Kind::SyncOk, &sync_ok());
    assert_control(&samples, Kind::Watch, &watch());
    assert_control(&samples, Kind::Unwatch, &unwatch());
    assert_control(&samples, Kind::Presence, &presence());
    assert_control(&samples, Kind::Heads, &heads());
    assert_control(&samples, Kind::Serve, &serve());
    assert_control(&samples, Kind::ServeOk, &serve_ok());
    assert_control(&samples, Kind::Invite, &invite());
}

#[test]
fn a_short_kind_ignores_id_peer_and_stamp() {
    let ping = Header { id: 1, peer: 2, stamp: 3, ..header(Kind::Ping) };
    let mut bytes = Vec::new();
    encode(&mut bytes, &ping, b"");
    assert_eq!(bytes, [0, 0, 0, 8, 2, 0, 0, 0]);
}

#[test]
fn encoding_appends_and_stays_where_there_is_room() {
    let send = Header { id: 1, peer: 2, ..header(Kind::Send) };
    let length = encoded_len(Kind::Send, 5);
    let mut out = Vec::with_capacity(3 + 2 * length);
    out.extend_from_slice(b"abc");
    let (address, capacity) = (out.as_ptr(), out.capacity());
    encode(&mut out, &send, b"first");
    encode(&mut out, &send, b"again");
    assert_eq!((out.as_ptr(), out.capacity()), (address, capacity));
    assert_eq!(&out[..3], b"abc");
    assert_eq!(&out[3 + length - 5..3 + length], b"first");
    assert_eq!(&out[3 + 2 * length - 5..], b"again");
}

#[test]
fn debug_output_shows_no_secret() {
    let mut login = login();
    login.token = "hush-hush".into();
    login.resume = b"hush".to_vec();
    let text = format!("{login:?}");
    assert!(text.contains("token: <9 bytes>"), "{text}");
    assert!(text.contains("resume: <4 bytes>"), "{text}");
    assert!(text.contains("device: \"phone\""), "{text}");
    assert!(!text.contains("hush"), "{text}");

    let mut serve = serve();
    serve.token = "hush-hush".into();
    assert!(!format!("{serve:?}").contains("hush"), "{serve:?}");

    let mut login_ok = login_ok();
    login_ok.resume = b"hush".to_vec();
    let text = format!("{login_ok:?}");
    assert!(text.contains("resume: <4 bytes>"), "{text}");
    assert!(text.contains("node: \"n1\""), "{text}");
    assert!(!text.contains("104, 117"), "{text}");
}
