//! What arrives.

use std::time::Duration;

use bytes::Bytes;
use trunkline_proto::{SERVICE_USERS, flags};

use crate::Reason;

/// One thing that happened on the connection, in the order it happened.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A message for this user.
    Message(Message),
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
