//! The header of a WebSocket frame: RFC 6455, section 5.2.

use super::Violation;

/// Longest header in bytes: two, a length of eight, a mask of four.
pub const HEADER_BYTES_MAX: usize = 14;

/// Longest payload of a control frame in bytes (RFC 6455, section 5.5).
pub const CONTROL_BYTES_MAX: usize = 125;

/// Which end of the connection reads. Frames of a client are masked, those of a server are not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Reads what a client sends.
    Server,
    /// Reads what a server sends.
    Client,
}

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Opcode {
    /// A further frame of a message that was begun.
    Continuation = 0x0,
    /// The first frame of a message of text.
    Text = 0x1,
    /// The first frame of a binary message.
    Binary = 0x2,
    /// The end of the connection.
    Close = 0x8,
    /// To be answered with a Pong of the same payload.
    Ping = 0x9,
    /// The answer to a Ping.
    Pong = 0xA,
}

impl Opcode {
    /// The opcode with this number, if there is one.
    pub const fn from_u8(number: u8) -> Option<Opcode> {
        match number {
            0x0 => Some(Opcode::Continuation),
            0x1 => Some(Opcode::Text),
            0x2 => Some(Opcode::Binary),
            0x8 => Some(Opcode::Close),
            0x9 => Some(Opcode::Ping),
            0xA => Some(Opcode::Pong),
            _ => None,
        }
    }

    /// Whether frames of this kind may come between those of a message, whole and short.
    pub const fn is_control(self) -> bool {
        self as u8 & 0x8 != 0
    }
}

pub(super) const FIN: u8 = 0x80;
const RESERVED: u8 = 0x70;
const OPCODE: u8 = 0x0F;
pub(super) const MASKED: u8 = 0x80;
/// Lengths from here on are markers: a length of two bytes follows, or one of eight.
pub(super) const LENGTH_16: u8 = 126;
pub(super) const LENGTH_64: u8 = 127;

/// A header that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) fin: bool,
    pub(super) opcode: Opcode,
    pub(super) mask: [u8; 4],
    pub(super) payload: u64,
    /// Bytes of the header itself.
    pub(super) bytes: usize,
}

impl Header {
    /// Reads the first byte: what the frame is, and whether it ends its message.
    pub(super) fn read_first(first: u8) -> Result<(Opcode, bool), Violation> {
        if first & RESERVED != 0 {
            return Err(Violation::ReservedBits);
        }
        let opcode = Opcode::from_u8(first & OPCODE).ok_or(Violation::UnknownOpcode(first & OPCODE))?;
        let fin = first & FIN != 0;
        if opcode.is_control() && !fin {
            return Err(Violation::FragmentedControl);
        }
        Ok((opcode, fin))
    }

    /// Reads the header at the front of `bytes`; `None` while it is not whole.
    ///
    /// A violation shows with the first byte that makes it one, whatever follows.
    pub(super) fn read(bytes: &[u8], role: Role) -> Result<Option<Header>, Violation> {
        let Some(&first) = bytes.first() else { return Ok(None) };
        let (opcode, fin) = Header::read_first(first)?;
        let Some(&second) = bytes.get(1) else { return Ok(None) };
        match (role, second & MASKED != 0) {
            (Role::Server, false) => return Err(Violation::Unmasked),
            (Role::Client, true) => return Err(Violation::Masked),
            (Role::Server, true) | (Role::Client, false) => {}
        }
        let marker = second & !MASKED;
        if opcode.is_control() && usize::from(marker) > CONTROL_BYTES_MAX {
            return Err(Violation::LongControl);
        }
        let rest = &bytes[2..];
        let (payload, rest) = match marker {
            LENGTH_16 => match rest.split_first_chunk() {
                Some((field, rest)) => (u16::from_be_bytes(*field).into(), rest),
                None => return Ok(None),
            },
            LENGTH_64 => match rest.split_first_chunk() {
                Some((field, rest)) => (u64::from_be_bytes(*field), rest),
                None => return Ok(None),
            },
            short => (short.into(), rest),
        };
        // A length is to be written as short as it can be, and below 2^63.
        let least = match marker {
            LENGTH_16 => u64::from(LENGTH_16),
            LENGTH_64 => 1 << 16,
            _ => 0,
        };
        if payload < least || payload >> 63 != 0 {
            return Err(Violation::BadLength);
        }
        let (mask, rest) = match role {
            Role::Client => ([0; 4], rest),
            Role::Server => match rest.split_first_chunk() {
                Some((mask, rest)) => (*mask, rest),
                None => return Ok(None),
            },
        };
        Ok(Some(Header { fin, opcode, mask, payload, bytes: bytes.len() - rest.len() }))
    }
}
