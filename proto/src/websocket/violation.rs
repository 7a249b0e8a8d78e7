//! What a WebSocket peer can do wrong.

use super::close_code;
use std::fmt;

/// What the peer did wrong below its native frames. The stream cannot be followed any further: the connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Violation {
    /// A bit is set that belongs to an extension; none was agreed upon.
    ReservedBits,
    /// No such opcode.
    UnknownOpcode(u8),
    /// A client's frame without mask.
    Unmasked,
    /// A server's frame with a mask.
    Masked,
    /// A control frame that is not the last of its message.
    FragmentedControl,
    /// A control frame of more than 125 bytes.
    LongControl,
    /// A length that could be written shorter, or is 2^63 or more.
    BadLength,
    /// A continuation of nothing.
    LoneContinuation,
    /// A new message before the end of the one before.
    NestedMessage,
    /// A Close with a payload of one byte.
    ShortClose,
    /// A Close with a code that may not be sent.
    BadCloseCode(u16),
    /// The reason in a Close is not UTF-8.
    CloseReasonNotUtf8,
    /// A message of text where only binary ones are read.
    Text,
    /// A message of text that is not UTF-8.
    TextNotUtf8,
    /// A message longer than the reader takes.
    MessageTooLarge,
}

impl Violation {
    /// The code of the Close that answers it (RFC 6455, section 7.4.1).
    pub const fn close_code(self) -> u16 {
        match self {
            Violation::Text => close_code::UNSUPPORTED_DATA,
            Violation::TextNotUtf8 | Violation::CloseReasonNotUtf8 => close_code::INVALID_DATA,
            Violation::MessageTooLarge => close_code::TOO_BIG,
            _ => close_code::PROTOCOL_ERROR,
        }
    }

    /// A short sentence for a person: the reason in the Close that answers it.
    pub const fn text(self) -> &'static str {
        match self {
            Violation::ReservedBits => "A reserved bit is set; no extension was agreed upon.",
            Violation::UnknownOpcode(_) => "The opcode is unknown.",
            Violation::Unmasked => "A client's frames are masked.",
            Violation::Masked => "A server's frames are not masked.",
            Violation::FragmentedControl => "A control frame is not fragmented.",
            Violation::LongControl => "A control frame has at most 125 bytes.",
            Violation::BadLength => "The length is not in its shortest form, or too large.",
            Violation::LoneContinuation => "There is no message to continue.",
            Violation::NestedMessage => "The message before has not ended.",
            Violation::ShortClose => "A Close has no payload, or at least 2 bytes.",
            Violation::BadCloseCode(_) => "This code is not for a Close.",
            Violation::CloseReasonNotUtf8 => "The reason of a Close is UTF-8.",
            Violation::Text => "Messages are binary.",
            Violation::TextNotUtf8 => "Text is UTF-8.",
            Violation::MessageTooLarge => "The message is too large.",
        }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Violation::UnknownOpcode(opcode) => write!(f, "{} (0x{opcode:x})", self.text()),
            Violation::BadCloseCode(code) => write!(f, "{} ({code})", self.text()),
            _ => f.write_str(self.text()),
        }
    }
}

impl std::error::Error for Violation {}
