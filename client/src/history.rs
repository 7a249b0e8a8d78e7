//! What the gateway still holds of this user's inbox, page by page.

use trunkline_proto::Sync;

use crate::Message;

/// Which page of the inbox [`crate::Client::history`] is to get. The later of position and time counts.
///
/// ```
/// use trunkline_client::History;
///
/// // The first page; the one behind it is `History::after(page.next)`.
/// let request = History::since_ms(1_700_000_000_000).with_limit(100);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct History {
    pub(crate) after: u64,
    pub(crate) since_ms: u64,
    pub(crate) limit: u32,
}

impl History {
    /// From the oldest message that is held.
    #[must_use]
    pub fn all() -> Self {
        Self::default()
    }

    /// What has a greater stamp: [`Message::stamp`] of a message, or [`Page::next`].
    #[must_use]
    pub fn after(stamp: u64) -> Self {
        Self { after: stamp, ..Self::default() }
    }

    /// What came at this time or later, in milliseconds since the Unix epoch by the gateway's clock.
    #[must_use]
    pub fn since_ms(ms: u64) -> Self {
        Self { since_ms: ms, ..Self::default() }
    }

    /// The same with so many messages in a page at most; the gateway may give fewer. 0, the default, leaves it to the
    /// gateway.
    #[must_use]
    pub fn with_limit(self, limit: u32) -> Self {
        Self { limit, ..self }
    }

    pub(crate) fn request(self) -> Sync {
        Sync { after_stamp: self.after, since_ms: self.since_ms, limit: self.limit, group: 0 }
    }

    /// Whether a message may be in the page that ends at `next`.
    pub(crate) fn covers(self, stamp: u64, next: u64) -> bool {
        self.after < stamp && stamp <= next && stamp >> 20 >= self.since_ms
    }
}

/// A page of the inbox.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Page {
    /// Its messages, by rising stamp. They are looked at, not delivered: none of them is acknowledged by it, and one
    /// that this device has not acknowledged is an event, too.
    pub messages: Vec<Message>,
    /// Where the next page begins: [`History::after`].
    pub next: u64,
    /// Nothing is left behind this page.
    pub complete: bool,
    /// Messages behind the position or time asked for are gone: a gap.
    pub truncated: bool,
    /// Position up to which the inbox holds nothing any more.
    pub floor: u64,
    /// Position of its newest message.
    pub last: u64,
}
