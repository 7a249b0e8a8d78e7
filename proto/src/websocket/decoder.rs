//! From a stream of bytes to the parts of WebSocket frames. Nothing is copied but the bytes of a split header, and
//! nothing is allocated: a part is a range of the buffer it came in.

use super::header::Header;
use super::utf8::Utf8;
use super::{HEADER_BYTES_MAX, Opcode, Role, Violation, mask};
use std::ops::Range;

/// What a reader takes. The same for all calls on one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Which end reads.
    pub role: Role,
    /// Whether messages of text are read; they are checked to be UTF-8.
    pub text: bool,
    /// Longest message in bytes, over all its frames.
    pub message_bytes_max: u32,
}

/// A part of a frame, as much of it as is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// Bytes of a message, unmasked.
    Data {
        /// Where they lie. May be empty.
        range: Range<usize>,
        /// They are of a message of text.
        text: bool,
        /// The message ends with them.
        end: bool,
    },
    /// Bytes of a control frame's payload, unmasked.
    Control {
        /// Close, Ping or Pong.
        opcode: Opcode,
        /// Where they lie. May be empty.
        range: Range<usize>,
        /// Bytes of the payload that came before; at most [`CONTROL_BYTES_MAX`](super::CONTROL_BYTES_MAX) with these.
        before: usize,
        /// The payload ends with them.
        end: bool,
    },
}

/// One step over a buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Bytes it took off the front, at least one unless the buffer was empty.
    pub consumed: usize,
    /// What was in them; `None` when they were a part of a header, and then they were all there were.
    pub part: Option<Part>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Some bytes of a header.
    Header { bytes: [u8; HEADER_BYTES_MAX], there: u8 },
    /// Within a payload.
    Payload { mask: [u8; 4], left: u32, opcode: Opcode, fin: bool, before: u8 },
}

impl Stage {
    const START: Stage = Stage::Header { bytes: [0; HEADER_BYTES_MAX], there: 0 };
}

/// The message a connection is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Message {
    None,
    Text,
    Binary,
}

/// Where a stream stands between two pieces of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decoder {
    stage: Stage,
    message: Message,
    /// Bytes of it that its frames so far announced.
    message_bytes: u32,
    utf8: Utf8,
}

const _: () = assert!(size_of::<Decoder>() <= 32);

impl Default for Decoder {
    fn default() -> Self {
        Decoder { stage: Stage::START, message: Message::None, message_bytes: 0, utf8: Utf8::default() }
    }
}

impl Decoder {
    /// Whether the stream stands between two messages, with nothing begun.
    #[inline]
    pub fn is_idle(&self) -> bool {
        self.message == Message::None && matches!(self.stage, Stage::Header { there: 0, .. })
    }

    /// Takes a step over `bytes`, which follow what was consumed before. Payload is unmasked where it lies.
    ///
    /// # Errors
    ///
    /// A [`Violation`] with the first byte that makes it one. Nothing that follows has a meaning then.
    pub fn step(&mut self, rules: &Rules, bytes: &mut [u8]) -> Result<Step, Violation> {
        let mut at = 0;
        if let Stage::Header { bytes: mut stash, there } = self.stage {
            let there = usize::from(there);
            // The bytes of a split header and those behind them are put together; most headers are not split.
            let header = if there == 0 {
                self.read_header(rules, bytes)?
            } else {
                let more = bytes.len().min(HEADER_BYTES_MAX - there);
                stash[there..there + more].copy_from_slice(&bytes[..more]);
                self.read_header(rules, &stash[..there + more])?
            };
            let Some(header) = header else {
                let taken = bytes.len();
                stash[there..there + taken].copy_from_slice(bytes);
                self.stage = Stage::Header { bytes: stash, there: (there + taken) as u8 };
                return Ok(Step { consumed: taken, part: None });
            };
            at = header.bytes - there;
            self.begin_payload(rules, &header)?;
        }
        self.step_payload(bytes, at)
    }

    /// Reads a header and checks that it may come here.
    fn read_header(&self, rules: &Rules, bytes: &[u8]) -> Result<Option<Header>, Violation> {
        if let Some(&first) = bytes.first() {
            let (opcode, _) = Header::read_first(first)?;
            match (opcode, self.message) {
                (Opcode::Continuation, Message::None) => return Err(Violation::LoneContinuation),
                (Opcode::Text | Opcode::Binary, Message::Text | Message::Binary) => {
                    return Err(Violation::NestedMessage);
                }
                (Opcode::Text, Message::None) if !rules.text => return Err(Violation::Text),
                _ => {}
            }
        }
        Header::read(bytes, rules.role)
    }

    fn begin_payload(&mut self, rules: &Rules, header: &Header) -> Result<(), Violation> {
        if !header.opcode.is_control() {
            let total = u64::from(self.message_bytes).saturating_add(header.payload);
            if total > u64::from(rules.message_bytes_max) {
                return Err(Violation::MessageTooLarge);
            }
            self.message_bytes = total as u32;
            match header.opcode {
                Opcode::Text => self.message = Message::Text,
                Opcode::Binary => self.message = Message::Binary,
                _ => {}
            }
        }
        let Header { mask, opcode, fin, payload, .. } = *header;
        self.stage = Stage::Payload { mask, left: payload as u32, opcode, fin, before: 0 };
        Ok(())
    }

    /// Takes as much of the payload as is there, from `at` on.
    fn step_payload(&mut self, bytes: &mut [u8], at: usize) -> Result<Step, Violation> {
        let Stage::Payload { mask, left, opcode, fin, before } = self.stage else { unreachable!("a header was read") };
        let taken = (bytes.len() - at).min(left as usize);
        let range = at..at + taken;
        if taken == 0 && left > 0 {
            return Ok(Step { consumed: at, part: None });
        }
        let mask = mask::apply(mask, &mut bytes[range.clone()]);
        let left = left - taken as u32;
        let consumed = range.end;
        if opcode.is_control() {
            let part = Part::Control { opcode, range, before: before.into(), end: left == 0 };
            self.stage = match left {
                0 => Stage::START,
                _ => Stage::Payload { mask, left, opcode, fin, before: before + taken as u8 },
            };
            return Ok(Step { consumed, part: Some(part) });
        }
        let end = left == 0 && fin;
        let text = self.message == Message::Text;
        if text && !self.utf8.push(&bytes[range.clone()]) || end && !self.utf8.is_whole() {
            return Err(Violation::TextNotUtf8);
        }
        self.stage = match left {
            0 => Stage::START,
            _ => Stage::Payload { mask, left, opcode, fin, before: 0 },
        };
        if end {
            self.message = Message::None;
            self.message_bytes = 0;
        }
        Ok(Step { consumed, part: Some(Part::Data { range, text, end }) })
    }
}
