//! What is told of groups and live rooms.

use bytes::Bytes;
use trunkline_proto::{Frame, flags};

/// First id of live rooms: 2^63.
const ROOMS_FROM: u64 = 1 << 63;

/// Whether this is the id of a live room: 2^63 or above. A session is in a live room, nothing is kept of it, and the
/// client joins it again after a reconnect. In a group, with an id below, is a user, on all devices, and its messages
/// are stored.
#[must_use]
pub const fn is_live_room(group: u64) -> bool {
    group >= ROOMS_FROM
}

/// A message to a group or live room.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct GroupMessage {
    /// The group, or the live room.
    pub group: u64,
    /// The sending user; this user itself when [`GroupMessage::is_own`].
    pub from: u64,
    /// The sender's id for it.
    pub id: u64,
    /// Position in the group: milliseconds since the epoch in the high 44 bits, a counter in the low 20. Positions
    /// rise, and are the same for every member.
    pub stamp: u64,
    /// Its number among the messages of the group on this connection, 1 … 65,535 and then 1 again; 0 for one that was
    /// fetched from the group's log. The client looks at it; an application need not.
    pub number: u16,
    /// The payload. It can be sent on as it is, without a copy.
    pub body: Bytes,
    /// The flags as on the wire.
    pub flags: u8,
}

impl GroupMessage {
    /// Reads GROUP_DELIVER; `None` where the sender is missing.
    pub(crate) fn read(frame: &Frame<'_>) -> Option<Self> {
        let (from, body) = frame.body.split_first_chunk()?;
        Some(Self {
            group: frame.peer,
            from: u64::from_be_bytes(*from),
            id: frame.id,
            stamp: frame.stamp,
            number: frame.aux,
            body: Bytes::copy_from_slice(body),
            flags: frame.flags,
        })
    }

    /// The payload as text, if it is UTF-8.
    #[must_use]
    pub fn text(&self) -> Option<&str> {
        std::str::from_utf8(&self.body).ok()
    }

    /// It was sent by this user: on another device, or by an earlier process.
    #[must_use]
    pub fn is_own(&self) -> bool {
        self.flags & flags::SELF != 0
    }

    /// It comes from the group's log: this session had missed it, or it is of a page of the history.
    #[must_use]
    pub fn is_replay(&self) -> bool {
        self.flags & flags::REPLAY != 0
    }

    /// When the gateway accepted it, in milliseconds since the epoch.
    #[must_use]
    pub fn time_ms(&self) -> u64 {
        self.stamp >> 20
    }
}

/// Where a group stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct GroupHead {
    /// The group.
    pub group: u64,
    /// Position of its newest message.
    pub stamp: u64,
    /// Position up to which this user has marked it as read ([`crate::Client::mark_read`]); 0 where that is not known.
    pub read: u64,
}

/// A page of what the gateway holds of a group: [`crate::Client::group_history`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct GroupPage {
    /// Its messages, by rising stamp, the own ones included.
    pub messages: Vec<GroupMessage>,
    /// Where the next page begins: [`crate::History::after`].
    pub next: u64,
    /// Nothing is left behind this page.
    pub complete: bool,
    /// Messages behind the position or time asked for are gone.
    pub truncated: bool,
    /// Position up to which the group holds nothing any more.
    pub floor: u64,
    /// Position of its newest message.
    pub last: u64,
}
