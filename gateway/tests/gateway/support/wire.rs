//! Frames and control messages, byte by byte as PROTOCOL.md gives them.

use super::protobuf::{MessageFields, MessageWriter};

/// Protocol version of LOGIN.
pub(crate) const VERSION: u32 = 1;
/// Longest frame by default, header included.
pub(crate) const FRAME_BYTES_MAX: usize = 65_536;
/// Header of the kinds marked (8).
pub(crate) const HEADER_SHORT: usize = 8;
/// Header of the kinds marked (32).
pub(crate) const HEADER_LONG: usize = 32;

/// The largest id that a user may have; those above it are services.
pub(crate) const USER_MAX: u64 = u64::MAX - 65_536;

/// Frame kinds.
pub(crate) mod kind {
    pub(crate) const LOGIN: u8 = 0x01;
    pub(crate) const PING: u8 = 0x02;
    pub(crate) const SEND: u8 = 0x03;
    pub(crate) const GROUP_SEND: u8 = 0x04;
    pub(crate) const CALL: u8 = 0x05;
    pub(crate) const ACK: u8 = 0x06;
    pub(crate) const SYNC: u8 = 0x07;
    pub(crate) const GROUP_JOIN: u8 = 0x08;
    pub(crate) const GROUP_LEAVE: u8 = 0x09;
    pub(crate) const WATCH: u8 = 0x0a;
    pub(crate) const UNWATCH: u8 = 0x0b;
    pub(crate) const CLAIM: u8 = 0x0c;
    pub(crate) const MARK: u8 = 0x0d;
    pub(crate) const RENEW: u8 = 0x0e;
    pub(crate) const LOGOUT: u8 = 0x0f;
    pub(crate) const LOGIN_OK: u8 = 0x81;
    pub(crate) const PONG: u8 = 0x82;
    pub(crate) const DELIVER: u8 = 0x83;
    pub(crate) const GROUP_DELIVER: u8 = 0x84;
    pub(crate) const REPLY: u8 = 0x85;
    pub(crate) const SENT: u8 = 0x86;
    pub(crate) const BYE: u8 = 0x88;
    pub(crate) const SYNC_OK: u8 = 0x89;
    pub(crate) const PRESENCE: u8 = 0x8a;
    pub(crate) const GROUP_OK: u8 = 0x8b;
    pub(crate) const HEADS: u8 = 0x8c;
    pub(crate) const ERROR: u8 = 0x8f;
}

/// Flag bits of SEND and DELIVER.
pub(crate) mod flag {
    pub(crate) const ACK: u8 = 0x01;
    pub(crate) const NO_STORE: u8 = 0x02;
    pub(crate) const AGAIN: u8 = 0x02;
    pub(crate) const CUMULATIVE: u8 = 0x01;
    pub(crate) const RETRY: u8 = 0x04;
    pub(crate) const REPLAY: u8 = 0x04;
    pub(crate) const SELF: u8 = 0x08;
}

/// Outcomes of SENT.
pub(crate) mod outcome {
    pub(crate) const DELIVERED: u16 = 0;
    pub(crate) const STORED: u16 = 1;
    pub(crate) const OFFLINE_NOT_STORED: u16 = 2;
    pub(crate) const OVERLOADED: u16 = 3;
    pub(crate) const DENIED: u16 = 4;
    pub(crate) const INBOX_FULL: u16 = 5;
    pub(crate) const ACCEPTED: u16 = 6;
}

/// ERROR codes and BYE reasons.
pub(crate) mod code {
    pub(crate) const MALFORMED_FRAME: u16 = 1;
    pub(crate) const FRAME_TOO_LARGE: u16 = 2;
    pub(crate) const UNKNOWN_KIND: u16 = 3;
    pub(crate) const NOT_LOGGED_IN: u16 = 4;
    pub(crate) const ALREADY_LOGGED_IN: u16 = 5;
    pub(crate) const BAD_CREDENTIALS: u16 = 6;
    pub(crate) const UNSUPPORTED_VERSION: u16 = 7;
    pub(crate) const REPLACED: u16 = 8;
    pub(crate) const IDLE: u16 = 9;
    pub(crate) const TOO_SLOW: u16 = 10;
    pub(crate) const RATE_LIMITED: u16 = 11;
    pub(crate) const DRAINING: u16 = 12;
    pub(crate) const MOVED: u16 = 13;
    pub(crate) const OVERLOADED: u16 = 14;
    pub(crate) const KICKED: u16 = 15;
    pub(crate) const NOT_A_MEMBER: u16 = 19;
    pub(crate) const BAD_REQUEST: u16 = 20;
    pub(crate) const UNSUPPORTED: u16 = 21;
    pub(crate) const LIMIT_REACHED: u16 = 22;
    pub(crate) const MUTED: u16 = 23;
    pub(crate) const NOT_ALLOWED: u16 = 26;
}

/// One frame. The kinds marked (8) have no `id`, `peer` and `stamp`; they are 0 here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) aux: u16,
    pub(crate) id: u64,
    pub(crate) peer: u64,
    pub(crate) stamp: u64,
    pub(crate) body: Vec<u8>,
}

/// Length of the header of a kind.
pub(crate) fn header_len(frame_kind: u8) -> usize {
    match frame_kind {
        kind::LOGIN | kind::PING | kind::SYNC | kind::WATCH | kind::UNWATCH => HEADER_SHORT,
        kind::RENEW | kind::LOGOUT => HEADER_SHORT,
        kind::LOGIN_OK | kind::PONG | kind::BYE | kind::HEADS | 0x89 | 0x8a => HEADER_SHORT,
        _ => HEADER_LONG,
    }
}

impl Frame {
    /// The bytes of this frame.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let header = header_len(self.kind);
        let length = (header + self.body.len()) as u32;
        let mut bytes = Vec::with_capacity(length as usize);
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes.extend_from_slice(&[self.kind, self.flags]);
        bytes.extend_from_slice(&self.aux.to_be_bytes());
        if header == HEADER_LONG {
            bytes.extend_from_slice(&self.id.to_be_bytes());
            bytes.extend_from_slice(&self.peer.to_be_bytes());
            bytes.extend_from_slice(&self.stamp.to_be_bytes());
        }
        bytes.extend_from_slice(&self.body);
        bytes
    }

    /// The first frame of `bytes` and its length, or `None` while it is not whole. Fails the test on a frame the
    /// protocol does not allow the server to send.
    pub(crate) fn decode(bytes: &[u8]) -> Option<(Frame, usize)> {
        let length = u32::from_be_bytes(*bytes.first_chunk::<4>()?) as usize;
        assert!((HEADER_SHORT..1 << 24).contains(&length), "the server sent a frame of length {length}");
        let frame = bytes.get(..length)?;
        let frame_kind = frame[4];
        assert!(matches!(frame_kind, 0x81..=0x8c | 0x8f), "the server sent a frame of kind {frame_kind:#04x}");
        let header = header_len(frame_kind);
        assert!(length >= header, "the server sent a frame shorter than its header: {frame:?}");
        let long = |at: usize| {
            if header == HEADER_LONG {
                u64::from_be_bytes(frame[at..at + 8].try_into().expect("eight bytes"))
            } else {
                0
            }
        };
        let decoded = Frame {
            kind: frame_kind,
            flags: frame[5],
            aux: u16::from_be_bytes([frame[6], frame[7]]),
            id: long(8),
            peer: long(16),
            stamp: long(24),
            body: frame[header..].to_vec(),
        };
        Some((decoded, length))
    }
}

/// A SEND.
pub(crate) fn send(id: u64, peer: u64, flags: u8, body: &[u8]) -> Frame {
    Frame { kind: kind::SEND, flags, id, peer, body: body.to_vec(), ..Frame::default() }
}

/// A PING.
pub(crate) fn ping(aux: u16) -> Frame {
    Frame { kind: kind::PING, aux, ..Frame::default() }
}

/// The ACK of a DELIVER.
pub(crate) fn ack(deliver: &Frame) -> Frame {
    Frame { kind: kind::ACK, id: deliver.id, peer: deliver.peer, stamp: deliver.stamp, ..Frame::default() }
}

/// A LOGOUT.
pub(crate) fn logout() -> Frame {
    Frame { kind: kind::LOGOUT, ..Frame::default() }
}

/// The fields of LOGIN.
#[derive(Clone, Debug)]
pub(crate) struct Login {
    pub(crate) version: u32,
    pub(crate) user: u64,
    pub(crate) token: String,
    pub(crate) device: String,
    pub(crate) device_class: String,
    pub(crate) agent: String,
    pub(crate) resume: Vec<u8>,
    pub(crate) heartbeat_secs: u32,
    pub(crate) window: u32,
    pub(crate) ephemeral: bool,
    pub(crate) last_stamp: u64,
}

impl Login {
    /// What a well-behaved client sends: no token, the default device, the server's heartbeat.
    pub(crate) fn of(user: u64) -> Self {
        Login {
            version: VERSION,
            user,
            token: String::new(),
            device: String::new(),
            device_class: String::new(),
            agent: String::new(),
            resume: Vec::new(),
            heartbeat_secs: 0,
            window: 0,
            ephemeral: false,
            last_stamp: 0,
        }
    }

    pub(crate) fn device(self, device: &str) -> Self {
        Login { device: device.to_owned(), ..self }
    }

    pub(crate) fn token(self, token: &str) -> Self {
        Login { token: token.to_owned(), ..self }
    }

    pub(crate) fn heartbeat_secs(self, heartbeat_secs: u32) -> Self {
        Login { heartbeat_secs, ..self }
    }

    pub(crate) fn frame(&self) -> Frame {
        login_with_body(self.body())
    }

    /// The same fields in a RENEW.
    pub(crate) fn renew_frame(&self) -> Frame {
        Frame { kind: kind::RENEW, ..self.frame() }
    }

    pub(crate) fn body(&self) -> Vec<u8> {
        let mut message = MessageWriter::default();
        message.number(1, self.version.into());
        message.number(2, self.user);
        message.bytes(3, self.token.as_bytes());
        message.bytes(4, self.device.as_bytes());
        message.bytes(5, self.device_class.as_bytes());
        message.bytes(6, self.agent.as_bytes());
        message.bytes(7, &self.resume);
        message.number(8, self.last_stamp);
        message.number(9, self.heartbeat_secs.into());
        message.number(10, self.window.into());
        message.number(11, self.ephemeral.into());
        message.finish()
    }
}

/// A LOGIN whose body may be anything.
pub(crate) fn login_with_body(body: Vec<u8>) -> Frame {
    Frame { kind: kind::LOGIN, body, ..Frame::default() }
}

/// The fields of LOGIN_OK.
#[derive(Clone, Debug)]
pub(crate) struct LoginOk {
    pub(crate) session: u64,
    pub(crate) node: String,
    pub(crate) shard: u64,
    pub(crate) heartbeat_secs: u64,
    pub(crate) time_ms: u64,
    pub(crate) resume: Vec<u8>,
    pub(crate) resumed: u64,
    pub(crate) max_frame: u64,
    pub(crate) pending: u64,
    pub(crate) floor: u64,
    pub(crate) last: u64,
    pub(crate) truncated: u64,
    pub(crate) expires_ms: u64,
}

impl LoginOk {
    pub(crate) fn parse(frame: &Frame) -> Self {
        assert_eq!(frame.kind, kind::LOGIN_OK, "LOGIN was answered with {frame:?}");
        let fields = MessageFields::parse(&frame.body);
        LoginOk {
            session: fields.number(1),
            node: fields.text(2),
            shard: fields.number(3),
            heartbeat_secs: fields.number(4),
            time_ms: fields.number(5),
            resume: fields.bytes(6),
            resumed: fields.number(7),
            max_frame: fields.number(8),
            pending: fields.number(9),
            floor: fields.number(10),
            last: fields.number(11),
            truncated: fields.number(12),
            expires_ms: fields.number(13),
        }
    }
}

/// A SYNC of the inbox.
pub(crate) fn sync(aux: u16, after_stamp: u64, since_ms: u64, limit: u32) -> Frame {
    let mut message = MessageWriter::default();
    message.number(1, after_stamp);
    message.number(2, since_ms);
    message.number(3, limit.into());
    Frame { kind: kind::SYNC, aux, body: message.finish(), ..Frame::default() }
}

/// A SYNC of a group.
pub(crate) fn sync_group(aux: u16, group: u64, after_stamp: u64, limit: u32) -> Frame {
    let mut message = MessageWriter::default();
    message.number(1, after_stamp);
    message.number(3, limit.into());
    message.number(4, group);
    Frame { kind: kind::SYNC, aux, body: message.finish(), ..Frame::default() }
}

/// One group of a HEADS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) group: u64,
    pub(crate) stamp: u64,
    pub(crate) read: u64,
    pub(crate) seq: u64,
}

/// The groups of a HEADS.
pub(crate) fn heads(frame: &Frame) -> Vec<Head> {
    assert_eq!(frame.kind, kind::HEADS, "{frame:?}");
    let heads = MessageFields::parse(&frame.body).all_bytes(1);
    let head = |bytes: Vec<u8>| {
        let fields = MessageFields::parse(&bytes);
        Head { group: fields.number(1), stamp: fields.number(2), read: fields.number(3), seq: fields.number(4) }
    };
    heads.into_iter().map(head).collect()
}

/// The fields of SYNC_OK.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SyncOk {
    pub(crate) aux: u16,
    pub(crate) next_stamp: u64,
    pub(crate) complete: bool,
    pub(crate) truncated: bool,
    pub(crate) group: u64,
    pub(crate) floor: u64,
    pub(crate) last: u64,
}

impl SyncOk {
    pub(crate) fn parse(frame: &Frame) -> Self {
        assert_eq!(frame.kind, kind::SYNC_OK, "{frame:?}");
        let fields = MessageFields::parse(&frame.body);
        SyncOk {
            aux: frame.aux,
            group: fields.number(4),
            next_stamp: fields.number(1),
            complete: fields.number(2) != 0,
            truncated: fields.number(3) != 0,
            floor: fields.number(5),
            last: fields.number(6),
        }
    }
}

/// How long a client is to wait before it comes back after this BYE, in milliseconds.
pub(crate) fn bye_reconnect_after_ms(frame: &Frame) -> u64 {
    assert_eq!(frame.kind, kind::BYE);
    MessageFields::parse(&frame.body).number(1)
}

/// Where a BYE sends its client.
pub(crate) fn bye_redirect(frame: &Frame) -> String {
    assert_eq!(frame.kind, kind::BYE);
    MessageFields::parse(&frame.body).text(2)
}

/// Checks that the body of a BYE is a `Bye`, and gives its text.
pub(crate) fn bye_text(frame: &Frame) -> String {
    assert_eq!(frame.kind, kind::BYE);
    MessageFields::parse(&frame.body).text(3)
}
