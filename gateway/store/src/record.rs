//! What is in a log, and a page of it.

use std::sync::Arc;

/// The bytes of a message. Shared, so that a page costs no copy of what is in memory.
pub type Payload = Arc<[u8]>;

/// A message in a user's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Position in the log; see [`crate::stamp_ms`].
    pub stamp: u64,
    /// The sender.
    pub from: u64,
    /// The sender's number for the message.
    pub id: u64,
    /// Bits that the store keeps and does not look at.
    pub flags: u8,
    /// At most [`Limits::payload_bytes_max`](crate::Limits::payload_bytes_max).
    pub payload: Payload,
}

impl Record {
    /// What a message takes besides its payload, in the limits on bytes.
    pub const OVERHEAD_BYTES: usize = 48;

    /// What the message counts for in the limits on bytes.
    pub fn bytes(&self) -> usize {
        Record::OVERHEAD_BYTES + self.payload.len()
    }
}

/// Messages of one log in the order of their stamps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// The messages.
    pub records: Vec<Record>,
    /// Messages up to this stamp may be gone.
    pub floor: u64,
    /// The last stamp of the log; 0 if there never was a message.
    pub last: u64,
    /// Nothing was left after the last of `records`.
    pub complete: bool,
    /// Messages between the position asked for and `floor` may be gone.
    pub truncated: bool,
}
