//! From frames to bytes, appended to a vector: it grows at most once for each frame.

use prost::Message;

use crate::{FRAME_BYTES_MAX_LIMIT, HEADER_LONG, HEADER_SHORT, Kind};

/// The header of a frame to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What the frame is for; also says whether the header has 8 or 32 bytes.
    pub kind: Kind,
    /// Bits of [`flags`](crate::flags).
    pub flags: u8,
    /// A small number, by kind.
    pub aux: u16,
    /// Message or request id. Not written for short kinds.
    pub id: u64,
    /// The other side, a user or a group. Not written for short kinds.
    pub peer: u64,
    /// Position given by the server; 0 from clients. Not written for short kinds.
    pub stamp: u64,
}

/// Bytes of a frame of this kind with a body of `body_len` bytes.
#[inline]
pub const fn encoded_len(kind: Kind, body_len: usize) -> usize {
    kind.header_len() + body_len
}

/// Appends one frame to `out`.
///
/// # Panics
///
/// If the frame were longer than [`FRAME_BYTES_MAX_LIMIT`]: no reader could follow the stream behind it. What came in
/// as a frame fits as one, except that a GROUP_DELIVER is 8 bytes longer than its GROUP_SEND; whoever builds bodies
/// bounds them with [`encoded_len`].
#[inline]
pub fn encode(out: &mut Vec<u8>, header: &Header, body: &[u8]) {
    put_header(out, header, body.len());
    out.extend_from_slice(body);
}

/// Appends one frame of a short kind, without flags, whose body is a control message.
///
/// # Panics
///
/// If `kind` has a long header, which no control message has, or if the frame were longer than
/// [`FRAME_BYTES_MAX_LIMIT`].
#[inline]
pub fn encode_message<M: Message>(out: &mut Vec<u8>, kind: Kind, aux: u16, message: &M) {
    assert!(kind.header_len() == HEADER_SHORT, "{} carries no control message", kind.name());
    let header = Header { kind, flags: 0, aux, id: 0, peer: 0, stamp: 0 };
    put_header(out, &header, message.encoded_len());
    message.encode(out).expect("a vector has room for every message");
}

/// Appends the header, with room made for the body as well.
#[inline]
fn put_header(out: &mut Vec<u8>, header: &Header, body_len: usize) {
    let length = encoded_len(header.kind, body_len);
    assert!(length <= FRAME_BYTES_MAX_LIMIT as usize, "a frame of {length} bytes cannot be encoded");
    let mut bytes = [0; HEADER_LONG];
    bytes[0..4].copy_from_slice(&(length as u32).to_be_bytes());
    bytes[4] = header.kind as u8;
    bytes[5] = header.flags;
    bytes[6..8].copy_from_slice(&header.aux.to_be_bytes());
    bytes[8..16].copy_from_slice(&header.id.to_be_bytes());
    bytes[16..24].copy_from_slice(&header.peer.to_be_bytes());
    bytes[24..32].copy_from_slice(&header.stamp.to_be_bytes());
    out.reserve(length);
    // Two copies of a known length, each a few moves, instead of one of an unknown length.
    if header.kind.header_len() == HEADER_LONG {
        out.extend_from_slice(&bytes);
    } else {
        out.extend_from_slice(&bytes[..HEADER_SHORT]);
    }
}
