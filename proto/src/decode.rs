//! From bytes to frames. Nothing is copied and nothing is allocated: a frame borrows from the buffer.

use std::fmt;
use std::iter::FusedIterator;

use crate::{Code, Frame, HEADER_LONG, HEADER_SHORT, Kind};

/// What the peer did wrong at framing level. The stream cannot be followed any further: the connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Violation {
    /// The length is less than the shortest header.
    LengthTooSmall {
        /// The length field, in bytes.
        length: u32,
    },
    /// The length is more than the receiver accepts.
    FrameTooLarge {
        /// The length field, in bytes.
        length: u32,
        /// Longest frame accepted, in bytes.
        max: u32,
    },
    /// The frame ends within the long header of its kind.
    HeaderTruncated {
        /// The kind, one with a header of 32 bytes.
        kind: Kind,
        /// The length field, in bytes.
        length: u32,
    },
}

impl Violation {
    /// The reason for the BYE that answers it.
    pub const fn code(&self) -> Code {
        match self {
            Violation::LengthTooSmall { .. } | Violation::HeaderTruncated { .. } => Code::MalformedFrame,
            Violation::FrameTooLarge { .. } => Code::FrameTooLarge,
        }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Violation::LengthTooSmall { length } => {
                write!(f, "a frame of {length} bytes: the shortest has {HEADER_SHORT}")
            }
            Violation::FrameTooLarge { length, max } => {
                write!(f, "a frame of {length} bytes: the longest accepted has {max}")
            }
            Violation::HeaderTruncated { kind, length } => {
                let name = kind.name();
                write!(f, "a {name} of {length} bytes: its header alone has {HEADER_LONG}")
            }
        }
    }
}

impl std::error::Error for Violation {}

/// Length in bytes of the first frame of `buf`, which need not be whole; `None` while the 4 bytes of the length field
/// are not there.
///
/// `frame_bytes_max` is the longest frame accepted, from [`FRAME_BYTES_MAX_FLOOR`](crate::FRAME_BYTES_MAX_FLOOR) to
/// [`FRAME_BYTES_MAX_LIMIT`](crate::FRAME_BYTES_MAX_LIMIT); what is returned lies between [`HEADER_SHORT`] and it.
///
/// # Errors
///
/// [`Violation::LengthTooSmall`] and [`Violation::FrameTooLarge`], so a bad length is refused before any of its bytes
/// are waited for.
#[inline]
pub fn frame_len(buf: &[u8], frame_bytes_max: u32) -> Result<Option<usize>, Violation> {
    let Some(field) = buf.first_chunk() else {
        return Ok(None);
    };
    let length = u32::from_be_bytes(*field);
    if length < HEADER_SHORT as u32 {
        return Err(Violation::LengthTooSmall { length });
    }
    if length > frame_bytes_max {
        return Err(Violation::FrameTooLarge { length, max: frame_bytes_max });
    }
    Ok(Some(length as usize))
}

/// The first frame of `buf` and the bytes it takes up; `None` while it is not whole.
///
/// An unknown kind is no violation: the frame is returned with its number, to be answered and skipped.
///
/// # Errors
///
/// A bad length as soon as its 4 bytes are there, as [`frame_len`] tells it; [`Violation::HeaderTruncated`] once the
/// frame is whole.
#[inline]
pub fn decode(buf: &[u8], frame_bytes_max: u32) -> Result<Option<(Frame<'_>, usize)>, Violation> {
    let Some(length) = frame_len(buf, frame_bytes_max)? else {
        return Ok(None);
    };
    let Some(&[_, _, _, _, kind, flags, aux_high, aux_low, ref rest @ ..]) = buf.get(..length) else {
        return Ok(None);
    };
    let mut frame =
        Frame { kind, flags, aux: u16::from_be_bytes([aux_high, aux_low]), id: 0, peer: 0, stamp: 0, body: rest };
    if let Some(kind) = Kind::from_u8(kind)
        && kind.header_len() == HEADER_LONG
    {
        let Some(([id, peer, stamp], body)) = long_fields(rest) else {
            let length = length as u32;
            return Err(Violation::HeaderTruncated { kind, length });
        };
        frame = Frame { id, peer, stamp, body, ..frame };
    }
    Ok(Some((frame, length)))
}

/// Id, peer and stamp, and the body, from what follows the first 8 bytes of a long frame.
#[inline]
fn long_fields(rest: &[u8]) -> Option<([u64; 3], &[u8])> {
    let (fields, body) = rest.split_first_chunk::<{ HEADER_LONG - HEADER_SHORT }>()?;
    let &[id, peer, stamp] = fields.as_chunks().0 else {
        return None;
    };
    Some(([id, peer, stamp].map(u64::from_be_bytes), body))
}

/// The whole frames of one buffer, in order.
///
/// It ends before the first frame that is not whole, or with the first violation: nothing comes after that. Then
/// [`Decoder::rest`] is what must be kept until more bytes arrive.
#[derive(Clone, Debug)]
pub struct Decoder<'a> {
    buf: &'a [u8],
    consumed: usize,
    frame_bytes_max: u32,
    violated: bool,
}

impl<'a> Decoder<'a> {
    /// Decodes `buf`, which starts where a frame starts. `frame_bytes_max` as in [`frame_len`].
    #[inline]
    pub fn new(buf: &'a [u8], frame_bytes_max: u32) -> Self {
        Self { buf, consumed: 0, frame_bytes_max, violated: false }
    }

    /// Bytes of the frames returned so far. A violation takes up none.
    #[inline]
    pub fn consumed(&self) -> usize {
        self.consumed
    }

    /// The bytes behind the frames returned so far.
    #[inline]
    pub fn rest(&self) -> &'a [u8] {
        &self.buf[self.consumed..]
    }
}

impl<'a> Iterator for Decoder<'a> {
    type Item = Result<Frame<'a>, Violation>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        if self.violated {
            return None;
        }
        match decode(self.rest(), self.frame_bytes_max) {
            Ok(None) => None,
            Ok(Some((frame, length))) => {
                self.consumed += length;
                Some(Ok(frame))
            }
            Err(violation) => {
                self.violated = true;
                Some(Err(violation))
            }
        }
    }
}

impl FusedIterator for Decoder<'_> {}
