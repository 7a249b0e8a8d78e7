//! Frames and records of the mesh, as bytes. All integers are big-endian; every frame begins with its length and kind:
//!
//! ```text
//! frame      length u32 (the whole frame, these 4 bytes included), kind u8, …
//! Hello      magic "TLMX", version_min u16, version_max u16, nonce [32], name_len u16, name
//! Proof      mac [32]
//! Accept     incarnation u64, link u16, stream u64, expected u64, mac [32]
//! Refuse     code u16, text (UTF-8, at most 200 bytes)
//! Batch      seq u64 of its first record, ack u64, records: see the module `record`
//! Heartbeat  ack u64, sent_ms u64, echo_ms u64
//! Goodbye    reason u16
//! ```
//!
//! Since version 5 what comes behind the handshake is sealed, see the module [`seal`](super::seal).
//!
//! `ack` is the sequence number of the next record its sender expects. An unknown kind of frame is a violation; an
//! unknown kind of record is counted and skipped, so that a newer version of a node can add some.

mod record;
#[cfg(test)]
pub(super) mod tests;

pub use record::*;

use sha2::{Digest, Sha256};
use std::fmt;
use trunkline_router_core::ring::NAME_BYTES_MAX;

/// First version of the mesh protocol this code speaks, and the last.
pub(crate) const VERSION_MIN: u16 = 2;
pub(crate) const VERSION_MAX: u16 = 10;
/// Since this version what follows the handshake is sealed. The one before it is the same in clear.
pub(crate) const SEALED_SINCE: u16 = 5;

/// Bytes of a batch before its first record.
pub(crate) const BATCH_HEADER_BYTES: usize = 21;
/// Longest frame: a batch of one record of the greatest length.
pub(crate) const FRAME_BYTES_MAX: usize = BATCH_HEADER_BYTES + RECORD_BYTES_MAX;
/// Longest frame before a connection is authenticated, well above the longest Hello.
pub(crate) const HANDSHAKE_BYTES_MAX: usize = 512;
/// Longest Hello.
pub(crate) const HELLO_BYTES_MAX: usize = HELLO_BYTES + NAME_BYTES_MAX;
/// Longest text of a Refuse.
pub(crate) const REFUSE_TEXT_BYTES_MAX: usize = 200;
/// A receive buffer grown beyond this by one long record is given back after it.
const PARTIAL_BYTES_KEPT: usize = 64 << 10;

const _: () = assert!(HELLO_BYTES_MAX <= HANDSHAKE_BYTES_MAX);
const _: () = assert!(REFUSE_BYTES + REFUSE_TEXT_BYTES_MAX <= HANDSHAKE_BYTES_MAX);

/// What tells a mesh connection from anything else that may have found the port.
const MAGIC: [u8; 4] = *b"TLMX";

const HELLO: u8 = 1;
const PROOF: u8 = 2;
const ACCEPT: u8 = 3;
const REFUSE: u8 = 4;
const BATCH: u8 = 5;
const HEARTBEAT: u8 = 6;
const GOODBYE: u8 = 7;

/// Length and kind.
const FRAME_HEAD_BYTES: usize = 5;
// Bytes of each frame without its text.
const HELLO_BYTES: usize = 47;
const PROOF_BYTES: usize = 37;
const ACCEPT_BYTES: usize = 63;
const REFUSE_BYTES: usize = 7;
const HEARTBEAT_BYTES: usize = 29;
const GOODBYE_BYTES: usize = 7;

/// Bytes of a message authentication code (HMAC-SHA256).
pub(crate) const MAC_BYTES: usize = 32;
/// Bytes of a nonce.
pub const NONCE_BYTES: usize = 32;

/// Reasons of a Goodbye. Others may come from newer versions and mean no more than that the peer leaves.
pub(crate) mod goodbye {
    /// The node shuts down.
    pub(crate) const SHUTDOWN: u16 = 1;
}

/// What a peer did wrong. The connection ends, and so does the stream on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MeshViolation {
    /// A frame shorter or longer than its kind allows.
    FrameLength { frame: &'static str, length: u32 },
    /// A frame of a kind no version so far has, or not at this point.
    FrameUnexpected { kind: u8 },
    /// A Hello without the mark of the mesh.
    Magic,
    /// Versions from above to below, or version 0.
    VersionRange { min: u16, max: u16 },
    /// A node name that no node can have.
    NameUnusable,
    /// A record shorter than what every record begins with.
    RecordTooShort { length: u32 },
    /// A record that does not end with or before its batch.
    RecordBeyondBatch { length: u32, left: u32 },
    /// A record longer than the longest.
    RecordTooLong { length: u32 },
    /// A record shorter or longer than its kind allows.
    RecordLength { record: &'static str, length: u32 },
    /// A device or class longer than the longest.
    TextTooLong { length: u32 },
    /// A text that is no UTF-8.
    TextNotUtf8 { field: &'static str },
    /// A batch begins behind the record that is expected next.
    Gap { expected: u64, seq: u64 },
    /// A record is confirmed, or expected next, that was never sent.
    AckBeyondSent { ack: u64, sent: u64 },
}

impl fmt::Display for MeshViolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            MeshViolation::FrameLength { frame, length } => write!(f, "a {frame} frame cannot have {length} bytes"),
            MeshViolation::FrameUnexpected { kind } => write!(f, "a frame of kind {kind} is not expected here"),
            MeshViolation::Magic => write!(f, "a Hello without the mark of the mesh protocol"),
            MeshViolation::VersionRange { min, max } => write!(f, "versions {min} to {max} are no range"),
            MeshViolation::NameUnusable => {
                write!(f, "a node name that is not 1 to {NAME_BYTES_MAX} bytes of UTF-8 without control characters")
            }
            MeshViolation::RecordTooShort { length } => {
                write!(f, "a record of {length} bytes: the shortest has {RECORD_HEAD_BYTES}")
            }
            MeshViolation::RecordBeyondBatch { length, left } => {
                write!(f, "a record of {length} bytes where its batch has {left} left")
            }
            MeshViolation::RecordTooLong { length } => {
                write!(f, "a record of {length} bytes: the longest accepted has {RECORD_BYTES_MAX}")
            }
            MeshViolation::RecordLength { record, length } => write!(f, "a {record} record cannot have {length} bytes"),
            MeshViolation::TextTooLong { length } => {
                write!(f, "a text of {length} bytes: the longest accepted has {TEXT_BYTES_MAX}")
            }
            MeshViolation::TextNotUtf8 { field } => write!(f, "a {field} that is not UTF-8"),
            MeshViolation::Gap { expected, seq } => write!(f, "record {seq} came where record {expected} was due"),
            MeshViolation::AckBeyondSent { ack, sent } => {
                write!(f, "record {ack} is asked for next, but only those before {sent} were sent")
            }
        }
    }
}

impl std::error::Error for MeshViolation {}

/// A number for a node's life: the first 8 bytes, big-endian, of SHA-256 over `"trunkline node\0"`, the incarnation in
/// 8 big-endian bytes and the name. Part of the protocol between nodes: a change of it is a change of that.
pub fn node_key(name: &str, incarnation: u64) -> u64 {
    let hash =
        Sha256::new().chain_update(b"trunkline node\0").chain_update(incarnation.to_be_bytes()).chain_update(name);
    let [a, b, c, d, e, f, g, h, ..] = <[u8; 32]>::from(hash.finalize());
    u64::from_be_bytes([a, b, c, d, e, f, g, h])
}

/// Whether a node can have this name.
fn name_is_usable(name: &str) -> bool {
    !name.is_empty() && name.len() <= NAME_BYTES_MAX && !name.chars().any(char::is_control)
}

/// A frame of the handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HandshakeFrame<'a> {
    Hello { version_min: u16, version_max: u16, nonce: &'a [u8; NONCE_BYTES], name: &'a str },
    Proof { mac: &'a [u8; MAC_BYTES] },
    Accept { incarnation: u64, link: u16, stream: u64, expected: u64, mac: &'a [u8; MAC_BYTES] },
    Refuse { code: u16, text: &'a [u8] },
}

impl<'a> HandshakeFrame<'a> {
    /// Appends the frame.
    ///
    /// # Panics
    /// If a name or text is longer than allowed.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&[0; 4]);
        match *self {
            HandshakeFrame::Hello { version_min, version_max, nonce, name } => {
                assert!(name_is_usable(name), "node name {name:?} is not usable");
                out.push(HELLO);
                out.extend_from_slice(&MAGIC);
                out.extend_from_slice(&version_min.to_be_bytes());
                out.extend_from_slice(&version_max.to_be_bytes());
                out.extend_from_slice(nonce);
                out.extend_from_slice(&(name.len() as u16).to_be_bytes());
                out.extend_from_slice(name.as_bytes());
            }
            HandshakeFrame::Proof { mac } => {
                out.push(PROOF);
                out.extend_from_slice(mac);
            }
            HandshakeFrame::Accept { incarnation, link, stream, expected, mac } => {
                out.push(ACCEPT);
                out.extend_from_slice(&incarnation.to_be_bytes());
                out.extend_from_slice(&link.to_be_bytes());
                out.extend_from_slice(&stream.to_be_bytes());
                out.extend_from_slice(&expected.to_be_bytes());
                out.extend_from_slice(mac);
            }
            HandshakeFrame::Refuse { code, text } => {
                assert!(text.len() <= REFUSE_TEXT_BYTES_MAX, "a refusal of {} bytes", text.len());
                out.push(REFUSE);
                out.extend_from_slice(&code.to_be_bytes());
                out.extend_from_slice(text);
            }
        }
        let length = (out.len() - start) as u32;
        out[start..start + 4].copy_from_slice(&length.to_be_bytes());
    }

    /// Reads the first frame of `bytes`, or tells how many bytes have to be there before more can be said.
    pub(crate) fn decode(bytes: &'a [u8]) -> Result<Step<HandshakeFrame<'a>>, MeshViolation> {
        let Some(&[a, b, c, d]) = bytes.first_chunk() else { return Ok(Step::Need(FRAME_HEAD_BYTES)) };
        let length = u32::from_be_bytes([a, b, c, d]);
        if !(FRAME_HEAD_BYTES..=HANDSHAKE_BYTES_MAX).contains(&(length as usize)) {
            return Err(MeshViolation::FrameLength { frame: "handshake", length });
        }
        let Some(&kind) = bytes.get(4) else { return Ok(Step::Need(FRAME_HEAD_BYTES)) };
        let (name, len_min, len_max) = match kind {
            HELLO => ("Hello", HELLO_BYTES, HELLO_BYTES_MAX),
            PROOF => ("Proof", PROOF_BYTES, PROOF_BYTES),
            ACCEPT => ("Accept", ACCEPT_BYTES, ACCEPT_BYTES),
            REFUSE => ("Refuse", REFUSE_BYTES, REFUSE_BYTES + REFUSE_TEXT_BYTES_MAX),
            _ => return Err(MeshViolation::FrameUnexpected { kind }),
        };
        let len = length as usize;
        if !(len_min..=len_max).contains(&len) {
            return Err(MeshViolation::FrameLength { frame: name, length });
        }
        let Some(body) = bytes.get(FRAME_HEAD_BYTES..len) else { return Ok(Step::Need(len)) };
        let wrong = MeshViolation::FrameLength { frame: name, length };
        let frame = match kind {
            HELLO => hello(body)?,
            PROOF => HandshakeFrame::Proof { mac: body.try_into().map_err(|_| wrong)? },
            ACCEPT => {
                let (numbers, mac) = body.split_first_chunk::<26>().ok_or(wrong)?;
                HandshakeFrame::Accept {
                    incarnation: word(numbers, 0),
                    link: u16::from_be_bytes([numbers[8], numbers[9]]),
                    stream: word(numbers, 10),
                    expected: word(numbers, 18),
                    mac: mac.try_into().map_err(|_| wrong)?,
                }
            }
            _ => {
                let (code, text) = body.split_first_chunk().ok_or(wrong)?;
                HandshakeFrame::Refuse { code: u16::from_be_bytes(*code), text }
            }
        };
        Ok(Step::Whole(frame, len))
    }
}

fn hello(body: &[u8]) -> Result<HandshakeFrame<'_>, MeshViolation> {
    let length = (FRAME_HEAD_BYTES + body.len()) as u32;
    let wrong = MeshViolation::FrameLength { frame: "Hello", length };
    let (magic, rest) = body.split_first_chunk::<4>().ok_or(wrong)?;
    let (versions, rest) = rest.split_first_chunk::<4>().ok_or(wrong)?;
    let (nonce, rest) = rest.split_first_chunk::<NONCE_BYTES>().ok_or(wrong)?;
    let (name_len, name) = rest.split_first_chunk::<2>().ok_or(wrong)?;
    if *magic != MAGIC {
        return Err(MeshViolation::Magic);
    }
    let [min, max] = [[versions[0], versions[1]], [versions[2], versions[3]]].map(u16::from_be_bytes);
    if min == 0 || min > max {
        return Err(MeshViolation::VersionRange { min, max });
    }
    if usize::from(u16::from_be_bytes(*name_len)) != name.len() {
        return Err(wrong);
    }
    match std::str::from_utf8(name) {
        Ok(name) if name_is_usable(name) => {
            Ok(HandshakeFrame::Hello { version_min: min, version_max: max, nonce, name })
        }
        _ => Err(MeshViolation::NameUnusable),
    }
}

/// The first thing in some bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step<T> {
    /// It is not whole: so many bytes, counted from its beginning, have to be there before more can be said.
    Need(usize),
    /// It, and the bytes it takes.
    Whole(T, usize),
}

/// What an established connection carries, one at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit<'a> {
    /// A batch begins; `records_bytes` of records follow.
    Batch { seq: u64, ack: u64, records_bytes: u32 },
    /// The next record of the batch.
    Record(Record<'a>),
    /// The next record of the batch, of a kind this version does not know.
    UnknownRecord { bytes: u32 },
    /// `sent_ms` is to be given back in `echo_ms`, with the time added that it was held; 0 for none.
    Heartbeat { ack: u64, sent_ms: u64, echo_ms: u64 },
    /// The peer leaves.
    Goodbye { reason: u16 },
}

/// Writes the header of a batch over the first bytes of `batch`, which ends with its last record.
pub(super) fn put_batch_header(batch: &mut [u8], seq: u64, ack: u64) {
    let length = batch.len() as u32;
    batch[0..4].copy_from_slice(&length.to_be_bytes());
    batch[4] = BATCH;
    batch[5..13].copy_from_slice(&seq.to_be_bytes());
    batch[13..21].copy_from_slice(&ack.to_be_bytes());
}

/// A Heartbeat frame.
pub(super) fn heartbeat_frame(ack: u64, sent_ms: u64, echo_ms: u64) -> Vec<u8> {
    let mut frame = Vec::with_capacity(HEARTBEAT_BYTES);
    frame.extend_from_slice(&(HEARTBEAT_BYTES as u32).to_be_bytes());
    frame.push(HEARTBEAT);
    for word in [ack, sent_ms, echo_ms] {
        frame.extend_from_slice(&word.to_be_bytes());
    }
    frame
}

/// A Goodbye frame.
pub(super) fn goodbye_frame(reason: u16) -> Vec<u8> {
    let mut frame = Vec::with_capacity(GOODBYE_BYTES);
    frame.extend_from_slice(&(GOODBYE_BYTES as u32).to_be_bytes());
    frame.push(GOODBYE);
    frame.extend_from_slice(&reason.to_be_bytes());
    frame
}

/// Reads the first unit of `bytes`, where `batch_left` bytes of a batch are still to come.
#[inline]
pub(crate) fn decode_unit(bytes: &[u8], batch_left: u32) -> Result<Step<Unit<'_>>, MeshViolation> {
    if batch_left > 0 { decode_record(bytes, batch_left) } else { decode_frame(bytes) }
}

#[inline]
fn decode_record(bytes: &[u8], batch_left: u32) -> Result<Step<Unit<'_>>, MeshViolation> {
    let Some(&field) = bytes.first_chunk::<4>() else { return Ok(Step::Need(4)) };
    let length = u32::from_be_bytes(field);
    if length < RECORD_HEAD_BYTES as u32 {
        return Err(MeshViolation::RecordTooShort { length });
    }
    if length > batch_left {
        return Err(MeshViolation::RecordBeyondBatch { length, left: batch_left });
    }
    if length > RECORD_BYTES_MAX as u32 {
        return Err(MeshViolation::RecordTooLong { length });
    }
    let len = length as usize;
    let Some(bytes) = bytes.get(..len) else { return Ok(Step::Need(len)) };
    if let Some(message) = record::message_in(bytes) {
        return Ok(Step::Whole(Unit::Record(message.into()), len));
    }
    let unit = Record::decode(bytes)?.map_or(Unit::UnknownRecord { bytes: length }, Unit::Record);
    Ok(Step::Whole(unit, len))
}

/// The bytes of the record at the beginning of `bytes`, if there is a whole one of a length that it may have.
#[inline(always)]
fn record_at(bytes: &[u8], batch_left: u32) -> Option<&[u8]> {
    let length = u32::from_be_bytes(*bytes.first_chunk()?);
    let lengths = RECORD_HEAD_BYTES as u32..=batch_left.min(RECORD_BYTES_MAX as u32);
    bytes.get(..length as usize).filter(|_| lengths.contains(&length))
}

fn decode_frame(bytes: &[u8]) -> Result<Step<Unit<'_>>, MeshViolation> {
    let Some(&[a, b, c, d, kind]) = bytes.first_chunk() else { return Ok(Step::Need(FRAME_HEAD_BYTES)) };
    let length = u32::from_be_bytes([a, b, c, d]);
    let (frame, len_min, len_max, need) = match kind {
        // A batch without a record says nothing that a Heartbeat would not.
        BATCH => ("Batch", BATCH_HEADER_BYTES + RECORD_HEAD_BYTES, FRAME_BYTES_MAX, BATCH_HEADER_BYTES),
        HEARTBEAT => ("Heartbeat", HEARTBEAT_BYTES, HEARTBEAT_BYTES, HEARTBEAT_BYTES),
        GOODBYE => ("Goodbye", GOODBYE_BYTES, GOODBYE_BYTES, GOODBYE_BYTES),
        _ => return Err(MeshViolation::FrameUnexpected { kind }),
    };
    if !(len_min..=len_max).contains(&(length as usize)) {
        return Err(MeshViolation::FrameLength { frame, length });
    }
    if bytes.len() < need {
        return Ok(Step::Need(need));
    }
    let unit = match kind {
        BATCH => {
            let records_bytes = length - BATCH_HEADER_BYTES as u32;
            Unit::Batch { seq: word(bytes, 5), ack: word(bytes, 13), records_bytes }
        }
        HEARTBEAT => Unit::Heartbeat { ack: word(bytes, 5), sent_ms: word(bytes, 13), echo_ms: word(bytes, 21) },
        _ => Unit::Goodbye { reason: u16::from_be_bytes([bytes[5], bytes[6]]) },
    };
    Ok(Step::Whole(unit, need))
}

/// The word at `at`; the caller has checked that it is there.
fn word(bytes: &[u8], at: usize) -> u64 {
    bytes[at..at + 8].iter().fold(0, |word, byte| word << 8 | u64::from(*byte))
}

/// Who takes what comes on a connection.
pub(crate) trait Taker {
    /// Takes the next unit.
    ///
    /// # Errors
    /// What the peer did wrong: nothing that comes behind it is to be taken.
    fn take(&mut self, unit: Unit<'_>) -> Result<(), MeshViolation>;

    /// Takes the next unit, which is a record with that message.
    ///
    /// # Errors
    /// As [`Taker::take`].
    #[inline(always)]
    fn take_message(&mut self, message: Message<'_>) -> Result<(), MeshViolation> {
        self.take(Unit::Record(message.into()))
    }

    /// Takes the next unit, which is a record with that copy of a message.
    ///
    /// # Errors
    /// As [`Taker::take`].
    #[inline(always)]
    fn take_copy(&mut self, copy: Deliver<'_>) -> Result<(), MeshViolation> {
        self.take(Unit::Record(copy.into()))
    }
}

/// A function as a [`Taker`].
struct Each<F>(F);

impl<F: FnMut(Unit<'_>) -> Result<(), MeshViolation>> Taker for Each<F> {
    #[inline]
    fn take(&mut self, unit: Unit<'_>) -> Result<(), MeshViolation> {
        (self.0)(unit)
    }
}

/// The receiving end of a connection's bytes: units out of pieces. Only a unit that is split between pieces is copied,
/// so at most one record is kept.
#[derive(Debug, Default)]
pub(crate) struct Inbound {
    /// The beginning of a unit.
    partial: Vec<u8>,
    /// Bytes of the batch that have not been read.
    batch_left: u32,
}

impl Inbound {
    /// Bytes kept of a unit that is not whole.
    #[cfg(test)]
    pub(crate) fn partial_bytes(&self) -> usize {
        self.partial.len()
    }

    /// Takes the next piece and hands out what has become whole. After a violation nothing more is to be given to it.
    pub(crate) fn feed(
        &mut self,
        bytes: &[u8],
        each: impl FnMut(Unit<'_>) -> Result<(), MeshViolation>,
    ) -> Result<(), MeshViolation> {
        self.feed_to(bytes, &mut Each(each))
    }

    /// The same for a [`Taker`], to which messages go by a shorter way.
    pub(crate) fn feed_to(&mut self, mut bytes: &[u8], taker: &mut impl Taker) -> Result<(), MeshViolation> {
        while !self.partial.is_empty() {
            match decode_unit(&self.partial, self.batch_left)? {
                Step::Need(need) => {
                    let missing = need.saturating_sub(self.partial.len());
                    let Some((piece, rest)) = bytes.split_at_checked(missing) else {
                        self.partial.extend_from_slice(bytes);
                        return Ok(());
                    };
                    self.partial.extend_from_slice(piece);
                    bytes = rest;
                }
                Step::Whole(unit, len) => {
                    self.batch_left = left_after(self.batch_left, &unit, len);
                    taker.take(unit)?;
                    self.partial.clear();
                    self.partial.shrink_to(PARTIAL_BYTES_KEPT);
                }
            }
        }
        loop {
            while let Some(record) = record_at(bytes, self.batch_left) {
                let left = self.batch_left - record.len() as u32;
                if let Some(message) = record::message_in(record) {
                    self.batch_left = left;
                    taker.take_message(message)?;
                } else if let Some(copy) = record::deliver_in(record) {
                    self.batch_left = left;
                    taker.take_copy(copy)?;
                } else {
                    break;
                }
                bytes = &bytes[record.len()..];
            }
            match decode_unit(bytes, self.batch_left)? {
                Step::Need(_) => break,
                Step::Whole(unit, len) => {
                    self.batch_left = left_after(self.batch_left, &unit, len);
                    taker.take(unit)?;
                    bytes = &bytes[len..];
                }
            }
        }
        self.partial.extend_from_slice(bytes);
        Ok(())
    }
}

/// Bytes of the batch left after a unit of `len` bytes.
#[inline]
fn left_after(batch_left: u32, unit: &Unit<'_>, len: usize) -> u32 {
    match unit {
        Unit::Batch { records_bytes, .. } => *records_bytes,
        _ => batch_left.saturating_sub(len as u32),
    }
}
