//! One frame of every kind with its bytes, written by hand from the protocol description.

use trunkline_proto::prost::Message;
use trunkline_proto::{
    Bye, Frame, Head, Header, Heads, Invite, Kind, Login, LoginOk, Offer, Presence, Serve, ServeOk, Sync, SyncOk,
    UserState, Watch, call_flags, flags,
};

/// A frame and what it is on the wire.
pub(crate) struct Sample {
    pub(crate) header: Header,
    pub(crate) body: Vec<u8>,
    pub(crate) bytes: Vec<u8>,
}

impl Sample {
    /// The frame that must come out of the decoder.
    pub(crate) fn frame(&self) -> Frame<'_> {
        let Header { kind, flags, aux, id, peer, stamp } = self.header;
        Frame { kind: kind as u8, flags, aux, id, peer, stamp, body: &self.body }
    }
}

/// Bytes from hexadecimal digits; blanks are for the eye.
pub(crate) fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text
        .chars()
        .filter(|c| !c.is_whitespace())
        .map(|c| c.to_digit(16).expect("a hexadecimal digit") as u8)
        .collect();
    assert!(digits.len().is_multiple_of(2), "half a byte in {text}");
    digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

/// A header without flags, for [`Header`]'s update syntax.
pub(crate) const fn header(kind: Kind) -> Header {
    Header { kind, flags: 0, aux: 0, id: 0, peer: 0, stamp: 0 }
}

fn sample(header: Header, body: &[u8], bytes: &str) -> Sample {
    Sample { header, body: body.to_vec(), bytes: hex(bytes) }
}

fn control(kind: Kind, aux: u16, message: &impl Message, bytes: &str) -> Sample {
    let header = Header { aux, ..header(kind) };
    sample(header, &message.encode_to_vec(), bytes)
}

pub(crate) fn login() -> Login {
    Login {
        version: 1,
        user: 42,
        token: "t0k".into(),
        device: "phone".into(),
        device_class: "mobile".into(),
        agent: "x/1".into(),
        resume: vec![0xde, 0xad],
        last_stamp: 300,
        heartbeat_secs: 30,
        window: 300,
        ephemeral: true,
    }
}

pub(crate) fn login_ok() -> LoginOk {
    LoginOk {
        session: 1 << 32,
        node: "n1".into(),
        shard: 3,
        heartbeat_secs: 30,
        time_ms: 150,
        resume: vec![1, 2],
        resumed: true,
        max_frame: 65_536,
        pending: 5,
        floor: 150,
        last: 300,
        truncated: true,
        expires_ms: 150,
    }
}

pub(crate) fn renew() -> Login {
    Login { version: 1, user: 42, token: "n3w".into(), ..Login::default() }
}

pub(crate) fn bye() -> Bye {
    Bye { reconnect_after_ms: 300, redirect: "h:1".into(), text: "moved".into() }
}

pub(crate) fn sync() -> Sync {
    Sync { after_stamp: 1 << 20, since_ms: 150, limit: 100, group: 7 }
}

pub(crate) fn sync_ok() -> SyncOk {
    SyncOk { next_stamp: 1 << 20, complete: true, truncated: true, group: 7, floor: 150, last: 300 }
}

pub(crate) fn watch() -> Watch {
    Watch { users: vec![1, 300, 2], follow: true }
}

pub(crate) fn unwatch() -> Watch {
    Watch { users: vec![1], follow: false }
}

pub(crate) fn presence() -> Presence {
    let device_classes = vec!["a".into(), "bc".into()];
    let here = UserState { user: 1, online: true, device_classes, since_ms: 150, unknown: false };
    let away = UserState { user: 2, ..UserState::default() };
    Presence { users: vec![here, away] }
}

pub(crate) fn heads() -> Heads {
    Heads { heads: vec![Head { group: 7, stamp: 5, read: 3, seq: 300, unread: 2 }] }
}

pub(crate) fn serve() -> Serve {
    let offers = vec![Offer { service: 7, weight: 3, backup: true }];
    Serve { version: 1, name: "w1".into(), token: "tlk".into(), offers, shard: 2, window: 256, heads: true }
}

pub(crate) fn serve_ok() -> ServeOk {
    ServeOk {
        link: 5,
        node: "n1".into(),
        shard: 1,
        shards: 2,
        heartbeat_secs: 5,
        max_frame: 65_536,
        nodes: vec!["h".into()],
        time_ms: 150,
    }
}

pub(crate) fn invite() -> Invite {
    Invite { version: 1, service: 7, token: "k".into(), node: "n1".into(), link: 2, links: 300 }
}

/// What clients and workers send, by rising number.
fn from_client() -> Vec<Sample> {
    vec![
        control(
            Kind::Login,
            0,
            &login(),
            "00000033 01 00 0000
             0801 102a 1a03 74306b 2205 70686f6e65 2a06 6d6f62696c65 3203 782f31 3a02 dead 40ac02 481e
             50ac02 5801",
        ),
        sample(Header { aux: 0x1234, ..header(Kind::Ping) }, b"", "00000008 02 00 1234"),
        sample(
            Header {
                flags: flags::ACK | flags::NO_STORE | flags::RETRY,
                id: 0x0102_0304_0506_0708,
                peer: 42,
                ..header(Kind::Send)
            },
            b"hello",
            "00000025 03 07 0000 0102030405060708 000000000000002a 0000000000000000 68656c6c6f",
        ),
        sample(
            Header { flags: flags::ACK, id: 9, peer: u64::MAX - 1, ..header(Kind::GroupSend) },
            b"hi",
            "00000022 04 01 0000 0000000000000009 fffffffffffffffe 0000000000000000 6869",
        ),
        sample(
            Header { aux: 7, id: 10, ..header(Kind::Call) },
            &[0x00, 0xff],
            "00000022 05 00 0007 000000000000000a 0000000000000000 0000000000000000 00ff",
        ),
        sample(
            Header { flags: flags::CUMULATIVE, id: 9, peer: 42, stamp: 0x0195_0000_0000_0001, ..header(Kind::Ack) },
            b"",
            "00000020 06 01 0000 0000000000000009 000000000000002a 0195000000000001",
        ),
        control(Kind::Sync, 0, &sync(), "00000013 07 00 0000 08808040 109601 1864 2007"),
        sample(
            Header { id: 11, peer: 77, ..header(Kind::GroupJoin) },
            b"",
            "00000020 08 00 0000 000000000000000b 000000000000004d 0000000000000000",
        ),
        sample(
            Header { id: 12, peer: 77, ..header(Kind::GroupLeave) },
            b"",
            "00000020 09 00 0000 000000000000000c 000000000000004d 0000000000000000",
        ),
        control(Kind::Watch, 0, &watch(), "00000010 0a 00 0000 0a04 01ac0202 1001"),
        control(Kind::Unwatch, 0, &unwatch(), "0000000b 0b 00 0000 0a01 01"),
        sample(
            Header { aux: 3, id: 13, peer: 500, ..header(Kind::Claim) },
            b"",
            "00000020 0c 00 0003 000000000000000d 00000000000001f4 0000000000000000",
        ),
        sample(
            Header { peer: 77, stamp: 5, ..header(Kind::Mark) },
            b"",
            "00000020 0d 00 0000 0000000000000000 000000000000004d 0000000000000005",
        ),
        control(Kind::Renew, 0, &renew(), "00000011 0e 00 0000 0801 102a 1a03 6e3377"),
        sample(header(Kind::Logout), b"", "00000008 0f 00 0000"),
        control(
            Kind::Serve,
            0,
            &serve(),
            "00000022 20 00 0000 0801 1202 7731 1a03 746c6b 2206 0807 1003 1801 2802 308002 3801",
        ),
        sample(
            Header { flags: call_flags::MORE, aux: 500, id: 3 << 32 | 1, ..header(Kind::Answer) },
            b"ok",
            "00000022 21 01 01f4 0000000300000001 0000000000000000 0000000000000000 6f6b",
        ),
        sample(
            Header { flags: flags::ACK, aux: 7, id: 9, peer: 42, ..header(Kind::PushTo) },
            b"!",
            "00000021 22 01 0007 0000000000000009 000000000000002a 0000000000000000 21",
        ),
        sample(Header { aux: 256, ..header(Kind::Window) }, b"", "00000008 23 00 0100"),
    ]
}

/// What the server sends, by rising number.
fn from_server() -> Vec<Sample> {
    vec![
        control(
            Kind::LoginOk,
            0,
            &login_ok(),
            "00000030 81 00 0000
             088080808010 1202 6e31 1803 201e 289601 3202 0102 3801 40808004 4805 509601 58ac02 6001 689601",
        ),
        sample(Header { aux: 0x1234, ..header(Kind::Pong) }, b"", "00000008 82 00 1234"),
        sample(
            Header {
                flags: flags::ACK | flags::REPLAY | flags::SELF,
                id: 0x0102_0304_0506_0708,
                peer: 41,
                stamp: 0x018b_cfe5_6800_0007,
                ..header(Kind::Deliver)
            },
            b"hello",
            "00000025 83 0d 0000 0102030405060708 0000000000000029 018bcfe568000007 68656c6c6f",
        ),
        sample(
            Header { flags: flags::ACK, id: 9, peer: 77, stamp: 5, ..header(Kind::GroupDeliver) },
            b"\0\0\0\0\0\0\0\x2ahi",
            "0000002a 84 01 0000 0000000000000009 000000000000004d 0000000000000005
             000000000000002a 6869",
        ),
        sample(
            Header { aux: 500, id: 10, ..header(Kind::Reply) },
            &[1],
            "00000021 85 00 01f4 000000000000000a 0000000000000000 0000000000000000 01",
        ),
        sample(
            Header { aux: 2, id: 0x0102_0304_0506_0708, peer: 42, ..header(Kind::Sent) },
            b"",
            "00000020 86 00 0002 0102030405060708 000000000000002a 0000000000000000",
        ),
        sample(
            Header { flags: flags::ACK | flags::AGAIN, aux: 7, id: 14, stamp: 6, ..header(Kind::Push) },
            b"!",
            "00000021 87 03 0007 000000000000000e 0000000000000000 0000000000000006 21",
        ),
        control(Kind::Bye, 13, &bye(), "00000017 88 00 000d 08ac02 1203 683a31 1a05 6d6f766564"),
        control(Kind::SyncOk, 0, &sync_ok(), "00000018 89 00 0000 08808040 1001 1801 2007 289601 30ac02"),
        control(
            Kind::Presence,
            0,
            &presence(),
            "0000001c 8a 00 0000 0a0e 0801 1001 1a01 61 1a02 6263 209601 0a02 0802",
        ),
        sample(
            Header { id: 11, peer: 77, ..header(Kind::GroupOk) },
            b"",
            "00000020 8b 00 0000 000000000000000b 000000000000004d 0000000000000000",
        ),
        control(
            Kind::Heads,
            0,
            &heads(),
            "0000002a 8c 00 0000 0a20 09 0700000000000000 11 0500000000000000 19 0300000000000000 20ac02 2802",
        ),
        sample(
            Header { aux: 21, id: 9, peer: 77, ..header(Kind::Error) },
            b"no",
            "00000022 8f 00 0015 0000000000000009 000000000000004d 0000000000000000 6e6f",
        ),
        control(
            Kind::ServeOk,
            0,
            &serve_ok(),
            "0000001e a0 00 0000 0805 1202 6e31 1801 2002 2805 30808004 3a01 68 409601",
        ),
        sample(
            Header { flags: call_flags::AGAIN, aux: 7, id: 3 << 32 | 1, peer: 42, stamp: 10, ..header(Kind::Request) },
            b"hi",
            "00000022 a1 01 0007 0000000300000001 000000000000002a 000000000000000a 6869",
        ),
        sample(
            Header { id: 3 << 32 | 1, ..header(Kind::Cancel) },
            b"",
            "00000020 a2 00 0000 0000000300000001 0000000000000000 0000000000000000",
        ),
        sample(
            Header { aux: 2, id: 9, peer: 42, ..header(Kind::Pushed) },
            b"",
            "00000020 a3 00 0002 0000000000000009 000000000000002a 0000000000000000",
        ),
        control(Kind::Invite, 0, &invite(), "00000018 a4 00 0000 0801 1007 1a01 6b 2202 6e31 2802 30ac02"),
    ]
}

/// One frame of every kind, by rising number.
pub(crate) fn every_kind() -> Vec<Sample> {
    let mut samples = from_client();
    samples.extend(from_server());
    samples
}

/// The samples one behind the other.
pub(crate) fn stream(samples: &[Sample]) -> Vec<u8> {
    samples.iter().flat_map(|sample| sample.bytes.iter().copied()).collect()
}
