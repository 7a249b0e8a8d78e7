//! Native frames to messages of a WebSocket, and back. No I/O is done here.

use std::io;

use trunkline_proto::websocket::{
    self as codec, Bounds, Close, Control, Opcode, Role, Violation, close_code, put_frame,
};

use super::masks::Masks;
use crate::error::ByeInClose;

/// Why nothing more is taken from a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// It is done.
    Closed,
    /// It gave the reason of a BYE with its Close. Where the BYE itself came, this is not read any more.
    Bye { code: u16, text: String },
    /// It gave another reason.
    Failed { code: u16, text: String },
    /// It broke RFC 6455, or sent text.
    Violated(Violation),
    /// A message ended within a native frame.
    FrameUnfinished,
}

impl End {
    /// `text` is what a Close says in words.
    fn of(end: codec::End, text: String) -> End {
        match end {
            codec::End::Closed(Close { code: None | Some(close_code::NORMAL | close_code::GOING_AWAY) }) => End::Closed,
            codec::End::Closed(Close { code: Some(code) }) if code > close_code::BYE_BASE => {
                End::Bye { code: code - close_code::BYE_BASE, text }
            }
            codec::End::Closed(Close { code: Some(code) }) => End::Failed { code, text },
            codec::End::Violated(violation) => End::Violated(violation),
            codec::End::FrameUnfinished => End::FrameUnfinished,
        }
    }

    /// The code of the Close that answers it.
    fn close_code(&self) -> Option<u16> {
        match self {
            End::Closed => Some(close_code::NORMAL),
            End::Bye { code, .. } => Some(code + close_code::BYE_BASE),
            End::Failed { code, .. } => Some(*code),
            End::Violated(violation) => Some(violation.close_code()),
            End::FrameUnfinished => Some(close_code::PROTOCOL_ERROR),
        }
    }

    /// What reading comes to: nothing more, or an error.
    pub(super) fn outcome(&self) -> io::Result<()> {
        let invalid = |why: String| Err(io::Error::new(io::ErrorKind::InvalidData, why));
        match self {
            End::Closed => Ok(()),
            End::Bye { code, text } => Err(io::Error::other(ByeInClose { code: *code, text: text.clone() })),
            End::Failed { code, text } if text.is_empty() => invalid(format!("the WebSocket was closed with {code}")),
            End::Failed { code, text } => invalid(format!("the WebSocket was closed with {code}: {text}")),
            End::Violated(violation) => invalid(format!("what came is no WebSocket: {violation}")),
            End::FrameUnfinished => invalid("a message of the WebSocket ended within a frame".to_owned()),
        }
    }
}

/// What a server sends.
#[derive(Debug, Default)]
pub(super) struct Inbound {
    codec: codec::Inbound,
    pub(super) end: Option<End>,
    /// The latest Ping that is not answered. One Pong answers all before it (RFC 6455, section 5.5.3), so a server that
    /// sends Pings and reads nothing fills no memory.
    pub(super) ping: Option<Vec<u8>>,
}

impl Inbound {
    /// Takes all of `bytes`: the native frames in them come to lie at their front. Returns how many bytes those are.
    /// Nothing is taken behind the end.
    pub(super) fn take(&mut self, bytes: &mut [u8]) -> usize {
        let mut reason = String::new();
        let taken = self.codec.take(Role::Client, bytes, |control| match control {
            Control::Ping(payload) => self.ping = Some(payload.to_vec()),
            // A Pong is life, as any bytes are.
            Control::Pong => {}
            Control::Close(text) => reason = text.to_owned(),
        });
        if self.end.is_none() {
            self.end = taken.end.map(|end| End::of(end, reason));
        }
        taken.native
    }
}

/// What is sent to a server.
#[derive(Debug, Default)]
pub(super) struct Outbound {
    bounds: Bounds,
    /// A message has been begun and not ended.
    is_open: bool,
    masks: Masks,
    is_closed: bool,
}

impl Outbound {
    /// Appends a piece of the stream of native frames, cut anywhere. It is a message of its own if whole frames end
    /// with it, else a fragment of one.
    pub(super) fn put(&mut self, out: &mut Vec<u8>, piece: &[u8]) -> io::Result<()> {
        let mask = self.masks.next()?;
        let opcode = if self.is_open { Opcode::Continuation } else { Opcode::Binary };
        self.bounds.pass(piece);
        self.is_open = !self.bounds.is_between();
        put_frame(out, opcode, !self.is_open, Some(mask), piece);
        Ok(())
    }

    /// Appends the answer to a Ping.
    pub(super) fn put_pong(&mut self, out: &mut Vec<u8>, payload: &[u8]) -> io::Result<()> {
        put_frame(out, Opcode::Pong, true, Some(self.masks.next()?), payload);
        Ok(())
    }

    /// Whether the Close has been appended: nothing follows it.
    pub(super) fn is_closed(&self) -> bool {
        self.is_closed
    }

    /// Appends the Close that answers an end of the server's; or one of this side.
    pub(super) fn put_close(&mut self, out: &mut Vec<u8>, end: Option<&End>) -> io::Result<()> {
        let code = end.map_or(Some(close_code::NORMAL), End::close_code);
        let payload = code.map(u16::to_be_bytes);
        put_frame(out, Opcode::Close, true, Some(self.masks.next()?), payload.as_ref().map_or(&[], |code| &code[..]));
        self.is_closed = true;
        Ok(())
    }
}
