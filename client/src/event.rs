//! What arrives.

use std::time::Duration;

use bytes::Bytes;
use trunkline_proto::{SERVICE_USERS, flags};

use crate::{GroupHead, GroupMessage, Reason, UserPresence};

/// One thing that happened on the connection, in the order it happened.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A message for this user.
    Message(Message),
    /// A message to a group or live room that this user, or this session, is in. Those of a group come each once and in
    /// order, whatever happens to the connection: what was missed is fetched and comes first.
    GroupMessage(GroupMessage),
    /// Messages of a group or live room were not given to this session. Those of a group that the gateway keeps come
    /// next, in order; those of a live room, and those that were sent with [`crate::Outgoing::without_store`], are
    /// gone.
    GroupGap {
        /// The group or live room.
        group: u64,
        /// How many; 0 where it is not known.
        missed: u64,
    },
    /// A gap in a group that was away for long: messages are gone from its log that this client has not had.
    GroupTruncated {
        /// The group.
        group: u64,
        /// They had this position or a lower one.
        floor: u64,
    },
    /// This user is in groups of which this client has no position, and this is how far they are: what comes from now
    /// on is told. [`crate::Client::follow_group`] fetches what lies behind an earlier position, and
    /// [`crate::Client::group_history`] looks at it.
    GroupHeads(Vec<GroupHead>),
    /// The client is not in this group or live room any more, or its messages cannot be had: a live room could not be
    /// joined again after a reconnect, or this user was removed.
    GroupLost {
        /// The group or live room.
        group: u64,
        /// Why, as a number; [`crate::Code::from_u16`] names it.
        code: u16,
        /// The gateway's own words.
        text: String,
    },
    /// What is so of users whom this client watches ([`crate::Client::watch`]): first of each, then of those for whom
    /// it has changed, and of all again after a reconnect. The latest counts.
    Presence(Vec<UserPresence>),
    /// The connection is gone.
    Disconnected {
        /// Why.
        reason: Reason,
        /// When the next attempt to connect begins; `None` when there will be none. Then this is the last event.
        retry_in: Option<Duration>,
    },
    /// An attempt to connect again did not work. Told only while at least half of the event queue is free: an
    /// application that is away meanwhile finds [`Event::Reconnected`] or the end, and no list of failures.
    ReconnectFailed {
        /// Number of attempts since the connection was lost, from 1.
        attempt: u32,
        /// What went wrong, for a person.
        why: String,
        /// When the next attempt begins.
        retry_in: Duration,
    },
    /// Logged in again; messages without a known fate are being sent again.
    Reconnected {
        /// The gateway went on with the old session.
        resumed: bool,
    },
    /// All messages that waited for this device when the session began have come; those since then may be among them.
    /// Only where the gateway keeps messages for it.
    CaughtUp {
        /// Position of the newest stored message.
        last: u64,
    },
    /// A gap: messages for this device are gone without it having acknowledged them, because of their age or number, or
    /// since the store was damaged. An application with a history of its own should look for them there.
    Truncated {
        /// They had this position or a lower one.
        floor: u64,
    },
    /// The session goes on with its old token: there was no new one, or the gateway did not take it. The client tries
    /// again.
    TokenNotRenewed {
        /// What went wrong, for a person.
        why: String,
        /// When the session ends with its token, unless that is renewed.
        ends_in: Duration,
    },
    /// The gateway refused something other than a message whose sender waits for its fate.
    ServerError {
        /// Number of the error; [`crate::Code::from_u16`] names it.
        code: u16,
        /// The gateway's own words.
        text: String,
        /// Id of the message that caused it, or 0.
        id: u64,
        /// Recipient of that message, or 0.
        peer: u64,
    },
    /// The application left its events in the queue for too long, and the next ones were dropped. Messages among them
    /// were not acknowledged: those with acknowledgement come again, later than their place.
    Lost {
        /// How many events, 1 or more.
        count: u64,
    },
}

/// A message for this user.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Message {
    /// The sending user; this user itself when [`Message::is_own`]; no user when [`Message::service`].
    pub from: u64,
    /// The sender's id for it.
    pub id: u64,
    /// Position in this user's inbox: milliseconds since the epoch in the high 44 bits, a counter in the low 20.
    pub stamp: u64,
    /// The payload. It can be sent on as it is, without a copy.
    pub body: Bytes,
    /// The flags as on the wire.
    pub flags: u8,
}

impl Message {
    /// The payload as text, if it is UTF-8.
    #[must_use]
    pub fn text(&self) -> Option<&str> {
        std::str::from_utf8(&self.body).ok()
    }

    /// The service that has pushed it; `None` for what a user has sent.
    #[must_use]
    pub fn service(&self) -> Option<u16> {
        self.from.checked_sub(SERVICE_USERS).map(|service| service as u16)
    }

    /// The sender waits for an acknowledgement.
    #[must_use]
    pub fn wants_ack(&self) -> bool {
        self.flags & flags::ACK != 0
    }

    /// The gateway has sent it before, possibly on an earlier connection.
    #[must_use]
    pub fn is_again(&self) -> bool {
        self.flags & flags::AGAIN != 0
    }

    /// It was kept by the gateway and not sent as it came: the backlog after a login, or a page of the history. Such a
    /// message may come later than its place; [`Message::stamp`] tells it.
    #[must_use]
    pub fn is_replay(&self) -> bool {
        self.flags & flags::REPLAY != 0
    }

    /// It was sent by another device of this user.
    #[must_use]
    pub fn is_own(&self) -> bool {
        self.flags & flags::SELF != 0
    }

    /// When the gateway accepted it, in milliseconds since the epoch.
    #[must_use]
    pub fn time_ms(&self) -> u64 {
        self.stamp >> 20
    }
}
