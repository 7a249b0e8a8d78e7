//! The Close frame and its codes.

use super::{Opcode, Violation, put_control};

/// Codes of a Close (RFC 6455, section 7.4.1).
pub mod close_code {
    /// All is well; what was there to do is done.
    pub const NORMAL: u16 = 1000;
    /// The endpoint goes away.
    pub const GOING_AWAY: u16 = 1001;
    /// The peer broke RFC 6455.
    pub const PROTOCOL_ERROR: u16 = 1002;
    /// Data of a kind that is not taken.
    pub const UNSUPPORTED_DATA: u16 = 1003;
    /// Text that is not UTF-8.
    pub const INVALID_DATA: u16 = 1007;
    /// A message that is too large.
    pub const TOO_BIG: u16 = 1009;
    /// To this the reason of a BYE is added: see [`Code`](crate::Code).
    pub const BYE_BASE: u16 = 4000;
}

/// Longest reason in a Close in bytes: what a control frame holds beside the code.
pub const CLOSE_REASON_BYTES_MAX: usize = super::CONTROL_BYTES_MAX - size_of::<u16>();

/// A peer's Close.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Close {
    /// Its code, if it has one.
    pub code: Option<u16>,
}

impl Close {
    /// Reads the whole payload of a Close.
    ///
    /// # Errors
    ///
    /// [`Violation::ShortClose`], [`Violation::BadCloseCode`], [`Violation::CloseReasonNotUtf8`].
    pub fn read(payload: &[u8]) -> Result<Close, Violation> {
        let Some((code, reason)) = payload.split_first_chunk() else {
            return if payload.is_empty() { Ok(Close { code: None }) } else { Err(Violation::ShortClose) };
        };
        let code = u16::from_be_bytes(*code);
        if !may_be_sent(code) {
            return Err(Violation::BadCloseCode(code));
        }
        if std::str::from_utf8(reason).is_err() {
            return Err(Violation::CloseReasonNotUtf8);
        }
        Ok(Close { code: Some(code) })
    }
}

/// Whether a code may stand in a Close. 1004 to 1006 and 1015 are for local use or reserved; of those below 3000 only
/// the registered ones count (IANA's registry as of 2024).
const fn may_be_sent(code: u16) -> bool {
    matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999)
}

/// Appends a server's Close. A reason longer than [`CLOSE_REASON_BYTES_MAX`] is cut between two characters. Without
/// code there is no reason either.
pub fn put_close(out: &mut Vec<u8>, code: Option<u16>, reason: &str) {
    let mut payload = [0; super::CONTROL_BYTES_MAX];
    let mut len = 0;
    if let Some(code) = code {
        let reason = &reason[..reason.floor_char_boundary(CLOSE_REASON_BYTES_MAX)];
        payload[..2].copy_from_slice(&code.to_be_bytes());
        payload[2..2 + reason.len()].copy_from_slice(reason.as_bytes());
        len = 2 + reason.len();
    }
    put_control(out, Opcode::Close, &payload[..len]);
}
