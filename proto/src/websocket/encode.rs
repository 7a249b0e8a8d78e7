//! Frames to be sent.

use super::header::{FIN, LENGTH_16, LENGTH_64, MASKED};
use super::{CONTROL_BYTES_MAX, HEADER_BYTES_MAX, Opcode, mask};

/// Native frames are put into one message up to this many bytes; a longer frame is a message by itself. Clients bound
/// what they take: the smallest bound of a common library is 1 MiB (Python's `websockets`).
pub const MESSAGE_BYTES_MAX: usize = 65_536;

/// A header as it is sent.
struct Encoded {
    bytes: [u8; HEADER_BYTES_MAX],
    len: usize,
}

impl Encoded {
    fn new(opcode: Opcode, fin: bool, mask: Option<[u8; 4]>, payload: usize) -> Self {
        let mut bytes = [0; HEADER_BYTES_MAX];
        bytes[0] = opcode as u8 | if fin { FIN } else { 0 };
        let mut len = match payload {
            0..126 => {
                bytes[1] = payload as u8;
                2
            }
            126..65_536 => {
                bytes[1] = LENGTH_16;
                bytes[2..4].copy_from_slice(&(payload as u16).to_be_bytes());
                4
            }
            _ => {
                bytes[1] = LENGTH_64;
                bytes[2..10].copy_from_slice(&(payload as u64).to_be_bytes());
                10
            }
        };
        if let Some(mask) = mask {
            bytes[1] |= MASKED;
            bytes[len..len + 4].copy_from_slice(&mask);
            len += 4;
        }
        Encoded { bytes, len }
    }

    fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// Appends one frame; a client gives a mask, a server none.
pub fn put_frame(out: &mut Vec<u8>, opcode: Opcode, fin: bool, mask: Option<[u8; 4]>, payload: &[u8]) {
    let header = Encoded::new(opcode, fin, mask, payload.len());
    out.reserve(header.len + payload.len());
    out.extend_from_slice(header.as_slice());
    let begin = out.len();
    out.extend_from_slice(payload);
    if let Some(mask) = mask {
        mask::apply(mask, &mut out[begin..]);
    }
}

/// Appends a server's control frame.
///
/// # Panics
///
/// If the payload is longer than [`CONTROL_BYTES_MAX`]: no control frame holds it.
pub fn put_control(out: &mut Vec<u8>, opcode: Opcode, payload: &[u8]) {
    assert!(opcode.is_control() && payload.len() <= CONTROL_BYTES_MAX, "{opcode:?} of {} bytes", payload.len());
    put_frame(out, opcode, true, None, payload);
}

/// Appends a server's binary messages that hold `frames`, a run of whole native frames; none if there are none.
pub fn put_messages(out: &mut Vec<u8>, frames: &[u8]) {
    let mut rest = frames;
    while !rest.is_empty() {
        let (message, behind) = rest.split_at(message_len(rest));
        put_frame(out, Opcode::Binary, true, None, message);
        rest = behind;
    }
}

/// Makes a server's binary messages of `frames`, a run of whole native frames, where they lie unless they are more than
/// one message.
pub fn seal(frames: &mut Vec<u8>) {
    if frames.len() > MESSAGE_BYTES_MAX {
        let mut sealed = Vec::with_capacity(frames.len() + (frames.len() / MESSAGE_BYTES_MAX + 1) * HEADER_BYTES_MAX);
        put_messages(&mut sealed, frames);
        *frames = sealed;
    } else if !frames.is_empty() {
        let header = Encoded::new(Opcode::Binary, true, None, frames.len());
        frames.reserve_exact(header.len);
        frames.splice(..0, header.as_slice().iter().copied());
    }
}

/// Bytes of the native frames at the front of `frames` that go into one message: as many whole ones as
/// [`MESSAGE_BYTES_MAX`] allows, at least one.
fn message_len(frames: &[u8]) -> usize {
    let mut len = 0;
    while let Some(field) = frames[len..].first_chunk() {
        let end = len.saturating_add(u32::from_be_bytes(*field).max(1) as usize);
        if end > frames.len() || len > 0 && end > MESSAGE_BYTES_MAX {
            break;
        }
        len = end;
    }
    // What is no run of whole frames is one message as it stands.
    if len == 0 { frames.len() } else { len }
}

/// The native frames in what [`seal`] made of them, each with the place in `sealed` at which it ends. It ends where
/// `sealed` is cut.
pub fn sealed_frames(sealed: &[u8]) -> impl Iterator<Item = (crate::Frame<'_>, usize)> {
    // Place of the next byte to look at, and where the binary message ends that it is in.
    let (mut at, mut message_end) = (0, 0);
    std::iter::from_fn(move || {
        while at >= message_end {
            let header = super::header::Header::read(sealed.get(at..)?, super::Role::Client).ok()??;
            let begin = at + header.bytes;
            let end = begin.checked_add(usize::try_from(header.payload).ok()?)?;
            if header.opcode == Opcode::Binary {
                (at, message_end) = (begin, end);
            } else {
                (at, message_end) = (end, end);
            }
        }
        let (frame, len) = crate::decode(sealed.get(at..)?, u32::MAX).ok()??;
        at += len;
        Some((frame, at))
    })
}
