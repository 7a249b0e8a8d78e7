//! A frame as it lies in a buffer, and the numbers its layout is made of.

use crate::Kind;

/// Longest frame in bytes, header included, where nothing else is configured.
pub const FRAME_BYTES_MAX_DEFAULT: u32 = 65_536;

/// Greatest longest frame that may be configured, in bytes: the first byte of a frame is always 0, by which a listener
/// tells native frames from WebSocket and TLS.
pub const FRAME_BYTES_MAX_LIMIT: u32 = (1 << 24) - 1;

/// Smallest longest frame that may be configured, in bytes: room for a LOGIN with a token.
pub const FRAME_BYTES_MAX_FLOOR: u32 = 1_024;

/// Bits of the flags byte. Unknown bits are ignored. A bit's meaning depends on the kind it comes with.
pub mod flags {
    /// SEND, GROUP_SEND: at least once, answered with SENT. DELIVER, GROUP_DELIVER, PUSH: to be answered with ACK.
    pub const ACK: u8 = 0x01;
    /// ACK: of this message and of all that came before it on the connection.
    pub const CUMULATIVE: u8 = 0x01;
    /// SEND, GROUP_SEND: never to the offline store.
    pub const NO_STORE: u8 = 0x02;
    /// SEND, GROUP_SEND: a message with this id was sent before, and the server looks for it before it takes this one.
    pub const RETRY: u8 = 0x04;
    /// DELIVER, GROUP_DELIVER, PUSH: sent before.
    pub const AGAIN: u8 = 0x02;
    /// DELIVER, GROUP_DELIVER, PUSH: from the store.
    pub const REPLAY: u8 = 0x04;
    /// DELIVER, GROUP_DELIVER: the user's own message, sent from another of its devices.
    pub const SELF: u8 = 0x08;
}

/// Bits of the flags byte of the kinds that carry calls.
pub mod call_flags {
    /// CALL: it may be carried out more than once.
    pub const SAFE: u8 = 0x01;
    /// CALL: nobody waits for a REPLY. REQUEST: the ANSWER is passed on to nobody; it only gives its place in the
    /// window back.
    pub const NO_REPLY: u8 = 0x02;
    /// CALL: the body starts with a trace id (16 bytes), a span id (8) and flags (1).
    pub const TRACE: u8 = 0x04;
    /// REPLY, ANSWER: another one follows.
    pub const MORE: u8 = 0x01;
    /// ANSWER: the worker has not begun, and will not.
    pub const NOT_BEGUN: u8 = 0x02;
    /// REQUEST: another worker may have carried it out.
    pub const AGAIN: u8 = 0x01;
    /// REQUEST: the body starts with a length (16 bits) and so many bytes of a [`CallHead`](crate::CallHead). PUSH_TO:
    /// likewise of a [`PushHead`](crate::PushHead). PUSHED: the body is a [`PushReport`](crate::PushReport).
    pub const HEAD: u8 = 0x04;
    /// Bytes that [`TRACE`] puts before the body of a CALL.
    pub const TRACE_BYTES: usize = 25;
}

/// Users from this id on do not log in: what service `n` pushes comes from user `SERVICE_USERS + n`.
pub const SERVICE_USERS: u64 = u64::MAX - 0xFFFF;

/// A frame borrowed from the receive buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Number of the kind, which need not be a known one: see [`Frame::known`].
    pub kind: u8,
    /// Bits of [`flags`].
    pub flags: u8,
    /// A small number, by kind.
    pub aux: u16,
    /// Message or request id; 0 for short and unknown kinds.
    pub id: u64,
    /// The other side, a user or a group; 0 for short and unknown kinds.
    pub peer: u64,
    /// Position given by the server; 0 for short and unknown kinds.
    pub stamp: u64,
    /// What follows the header. For unknown kinds: all behind the first 8 bytes.
    pub body: &'a [u8],
}

const _: () = assert!(size_of::<Frame<'_>>() <= 48);

impl Frame<'_> {
    /// The kind, if this version of the protocol knows it. A frame of an unknown kind is whole and can be skipped.
    #[inline]
    pub const fn known(&self) -> Option<Kind> {
        Kind::from_u8(self.kind)
    }
}
