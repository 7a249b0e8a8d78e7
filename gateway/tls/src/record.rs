//! Records: what TLS is cut into.

use crate::alert::Alert;

/// Bytes of a record's header: type, version, length.
pub const HEADER_BYTES: usize = 5;
/// Most bytes of data in a record.
pub const RECORD_BYTES_MAX: usize = 1 << 14;
/// Most bytes of a record's protected content: in TLS 1.3 256 more than its data, and with the suites of TLS 1.2 that
/// are spoken here it is less.
const PROTECTED_MAX: usize = RECORD_BYTES_MAX + 256;
/// The longest record.
pub const SEALED_MAX: usize = HEADER_BYTES + PROTECTED_MAX;
/// The version every record says it is of.
pub const RECORD_VERSION: [u8; 2] = [3, 3];

/// What a record holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ContentType {
    /// Once of use, and ignored within handshakes.
    ChangeCipherSpec = 20,
    /// An [`Alert`].
    Alert = 21,
    /// Messages of a handshake, and of those behind one.
    Handshake = 22,
    /// Data.
    Data = 23,
}

impl ContentType {
    /// The type with that number.
    pub fn of(number: u8) -> Option<ContentType> {
        match number {
            20 => Some(ContentType::ChangeCipherSpec),
            21 => Some(ContentType::Alert),
            22 => Some(ContentType::Handshake),
            23 => Some(ContentType::Data),
            _ => None,
        }
    }
}

/// How much a peer may do of what costs this side, and how long keys are used.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Records without data, one after the other.
    pub empties_max: u8,
    /// Messages that change keys, in a minute.
    pub updates_per_minute: u8,
    /// Records after which the own key is changed: at 2^24.5 full ones AES-GCM begins to give something away (RFC 8446,
    /// section 5.5).
    pub own_update_records: u64,
    /// Records of TLS 1.2 in either direction, whose keys cannot be changed; then the connection ends.
    pub tls12_records_max: u64,
}

impl Bounds {
    /// Those in force.
    pub const STANDARD: Bounds =
        Bounds { empties_max: 32, updates_per_minute: 32, own_update_records: 1 << 23, tls12_records_max: 1 << 24 };
}

/// The length of the record that bytes begin with, its header included; `None` while that, or the whole record, has not
/// come.
///
/// # Errors
/// When it is no record, or one longer than any.
pub fn whole_record(bytes: &[u8]) -> Result<Option<usize>, Alert> {
    let Some(first) = bytes.first() else { return Ok(None) };
    if ContentType::of(*first).is_none() {
        return Err(Alert::UnexpectedMessage);
    }
    if bytes.len() < HEADER_BYTES {
        return Ok(None);
    }
    if bytes[1] != RECORD_VERSION[0] {
        return Err(Alert::ProtocolVersion);
    }
    let content = usize::from(u16::from_be_bytes([bytes[3], bytes[4]]));
    if content > PROTECTED_MAX {
        return Err(Alert::RecordOverflow);
    }
    let whole = HEADER_BYTES + content;
    Ok((bytes.len() >= whole).then_some(whole))
}
