//! A receive buffer full of WebSocket frames becomes, in place, the native frames they hold.

use super::bounds::Bounds;
use super::header::{FIN, LENGTH_16, LENGTH_64, MASKED};
use super::{CONTROL_BYTES_MAX, Close, Decoder, Opcode, Part, Role, Rules, Violation, mask};
use crate::HEADER_SHORT;
use std::ops::Range;

/// Longest binary message that is read, in bytes. Native frames are handled as they come, so this bounds no memory: it
/// is there because some bound has to be.
pub const MESSAGE_BYTES_IN_MAX: u32 = 1 << 30;

/// A control frame, as it comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control<'a> {
    /// To be answered with a Pong of this payload, at most [`CONTROL_BYTES_MAX`] bytes.
    Ping(&'a [u8]),
    /// The answer to a Ping, or one that nobody asked for.
    Pong,
    /// The reason in words of the peer's Close, at most [`CLOSE_REASON_BYTES_MAX`](super::CLOSE_REASON_BYTES_MAX)
    /// bytes, or nothing. Its code is in the [`End::Closed`] that follows.
    Close(&'a str),
}

/// Why nothing more is taken from a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The peer's Close.
    Closed(Close),
    /// The peer broke RFC 6455, or sent text.
    Violated(Violation),
    /// A message ended within a native frame.
    FrameUnfinished,
}

/// What a buffer came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// Bytes of native frames; they lie at the front of the buffer.
    pub native: usize,
    /// The end, behind those; what came later was not looked at, and nothing is taken from now on.
    pub end: Option<End>,
}

/// Where a connection stands between two buffers. While it [is idle](Inbound::is_idle) there is nothing to remember.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inbound {
    decoder: Decoder,
    bounds: Bounds,
    end: Option<End>,
    /// The payload of a control frame of which a part has come.
    control: Option<Box<[u8; CONTROL_BYTES_MAX]>>,
}

const _: () = assert!(size_of::<Inbound>() <= 64);

impl Inbound {
    /// Whether nothing is begun and nothing has ended: a fresh one would go on just the same.
    #[inline]
    pub fn is_idle(&self) -> bool {
        // No message is open, so no native frame is either, unless it is not known any more where they begin.
        self.end.is_none() && self.decoder.is_idle() && !self.bounds.is_lost()
    }

    /// The end, once it has come.
    #[inline]
    pub fn end(&self) -> Option<End> {
        self.end
    }

    /// Takes all of `bytes`: native frames come to lie at its front, one behind the other, wherever messages and
    /// buffers were parted. `on_control` hears of control frames.
    pub fn take(&mut self, role: Role, bytes: &mut [u8], mut on_control: impl FnMut(Control<'_>)) -> Taken {
        let rules = Rules { role, text: false, message_bytes_max: MESSAGE_BYTES_IN_MAX };
        let (mut at, mut native) = (0, 0);
        while at < bytes.len() && self.end.is_none() {
            if role == Role::Server && self.is_idle() {
                (at, native) = take_lone_frames(bytes, at, native);
                if at == bytes.len() {
                    break;
                }
            }
            let step = match self.decoder.step(&rules, &mut bytes[at..]) {
                Ok(step) => step,
                Err(violation) => {
                    self.end = Some(End::Violated(violation));
                    break;
                }
            };
            match step.part {
                Some(Part::Data { range, end, .. }) => {
                    let range = at + range.start..at + range.end;
                    self.bounds.pass(&bytes[range.clone()]);
                    let len = range.len();
                    bytes.copy_within(range, native);
                    native += len;
                    if end && !self.bounds.is_between() {
                        self.end = Some(End::FrameUnfinished);
                    }
                }
                Some(Part::Control { opcode, range, before, end }) => {
                    let piece = &bytes[at + range.start..at + range.end];
                    self.take_control(opcode, piece, before, end, &mut on_control);
                }
                None => {}
            }
            at += step.consumed;
        }
        Taken { native, end: self.end }
    }

    fn take_control(
        &mut self,
        opcode: Opcode,
        piece: &[u8],
        before: usize,
        end: bool,
        on_control: &mut impl FnMut(Control<'_>),
    ) {
        if end && before == 0 {
            return self.on_control_whole(opcode, piece, on_control);
        }
        let mut stash = self.control.take().unwrap_or_else(|| Box::new([0; CONTROL_BYTES_MAX]));
        let there = before + piece.len();
        stash[before..there].copy_from_slice(piece);
        if end {
            self.on_control_whole(opcode, &stash[..there], on_control);
        } else {
            self.control = Some(stash);
        }
    }

    fn on_control_whole(&mut self, opcode: Opcode, payload: &[u8], on_control: &mut impl FnMut(Control<'_>)) {
        match opcode {
            Opcode::Ping => on_control(Control::Ping(payload)),
            Opcode::Pong => on_control(Control::Pong),
            _ => {
                self.end = Some(match Close::read(payload) {
                    Ok(close) => {
                        // What was read is UTF-8 behind the code.
                        let reason = std::str::from_utf8(payload.get(size_of::<u16>()..).unwrap_or_default());
                        on_control(Control::Close(reason.unwrap_or_default()));
                        End::Closed(close)
                    }
                    Err(violation) => End::Violated(violation),
                });
            }
        }
    }
}

/// The way of nearly all that a client sends: from `at` on, takes messages that are whole, of one masked frame, and
/// hold one native frame each, as long as such follow each other. Between them [`Inbound`] is idle. The general way,
/// which judges everything else, takes each of them for just the same. Returns how far it came in `bytes` and in native
/// frames.
fn take_lone_frames(bytes: &mut [u8], mut at: usize, mut native: usize) -> (usize, usize) {
    while let Some((mask, payload)) = lone_payload(&bytes[at..]) {
        let payload = at + payload.start..at + payload.end;
        let length = bytes[payload.clone()].first_chunk::<4>().map(|field| {
            let field: [u8; 4] = std::array::from_fn(|at| field[at] ^ mask[at]);
            u32::from_be_bytes(field) as usize
        });
        if length != Some(payload.len()) {
            break;
        }
        at = payload.end;
        let len = payload.len();
        mask::move_unmasked(mask, bytes, payload, native);
        native += len;
    }
    (at, native)
}

/// The mask of the whole message of one frame at the front of `bytes`, and where its payload lies, if that may be a
/// native frame; `None` for whatever else there is.
#[inline]
fn lone_payload(bytes: &[u8]) -> Option<([u8; 4], Range<usize>)> {
    let (&[first, second], rest) = bytes.split_first_chunk::<2>()?;
    if first != FIN | Opcode::Binary as u8 || second & MASKED == 0 {
        return None;
    }
    let (len, rest) = match second & !MASKED {
        LENGTH_64 => return None,
        LENGTH_16 => {
            let (field, rest) = rest.split_first_chunk::<2>()?;
            let len = u16::from_be_bytes(*field);
            (usize::from(len), (len >= LENGTH_16.into()).then_some(rest)?)
        }
        short => (usize::from(short), rest),
    };
    let (mask, rest) = rest.split_first_chunk::<4>()?;
    let begin = bytes.len() - rest.len();
    (len >= HEADER_SHORT && len <= rest.len()).then_some((*mask, begin..begin + len))
}
