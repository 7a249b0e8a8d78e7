//! What a message carries, and a message that is to be sent.

use std::fmt;
use std::ops::Deref;
use std::time::Duration;

use bytes::Bytes;

/// The bytes of a message. It is made of whatever holds bytes; from [`Bytes`], a vector or a string without a copy.
/// Clones share the bytes.
///
/// ```
/// use trunkline_client::Payload;
///
/// let payload: Payload = "hello".into();
/// assert_eq!(&payload[..], b"hello");
/// assert_eq!(payload, vec![b'h', b'e', b'l', b'l', b'o'].into());
/// ```
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Payload(Bytes);

impl Deref for Payload {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl From<Bytes> for Payload {
    fn from(bytes: Bytes) -> Self {
        Self(bytes)
    }
}

impl From<Payload> for Bytes {
    fn from(payload: Payload) -> Self {
        payload.0
    }
}

impl From<Vec<u8>> for Payload {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes.into())
    }
}

impl From<String> for Payload {
    fn from(text: String) -> Self {
        Self(text.into())
    }
}

impl From<&str> for Payload {
    fn from(text: &str) -> Self {
        text.as_bytes().into()
    }
}

impl From<&[u8]> for Payload {
    fn from(bytes: &[u8]) -> Self {
        Self(Bytes::copy_from_slice(bytes))
    }
}

impl<const LEN: usize> From<&[u8; LEN]> for Payload {
    fn from(bytes: &[u8; LEN]) -> Self {
        bytes.as_slice().into()
    }
}

impl<const LEN: usize> From<[u8; LEN]> for Payload {
    fn from(bytes: [u8; LEN]) -> Self {
        bytes.as_slice().into()
    }
}

/// A message to be delivered at least once: for [`crate::Client::submit`], and as [`crate::Client::unsettled`] and
/// [`crate::Outbox::load`] give it back.
///
/// ```
/// use std::time::Duration;
/// use trunkline_client::Outgoing;
///
/// // Order 4711 is announced once, however often this program is started again in between.
/// let message = Outgoing::new(2, "shipped").with_id(4_711).with_timeout(Duration::from_secs(60));
/// assert_eq!(message.id, Some(4_711));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Outgoing {
    /// The recipient; never 0.
    pub to: u64,
    /// The recipient is a group or live room.
    pub group: bool,
    /// What it carries.
    pub payload: Payload,
    /// Its id; never 0, and unique for the sending user. `None` lets the client draw one. A message that was handed in
    /// before always has one.
    pub id: Option<u64>,
    /// How long its fate is waited for, from the call on; `None` takes [`crate::Config::fate_timeout`].
    pub timeout: Option<Duration>,
    /// A message with this id may have been sent before, so that the gateway looks for it. The client says so by itself
    /// of what it sends again, and of what comes from an [`crate::Outbox`].
    pub retry: bool,
    /// Never to a store: a recipient who is offline, or does not acknowledge it, is an outcome at once.
    pub no_store: bool,
}

impl Outgoing {
    /// A message to user `to`, with an id of the client's and the usual time.
    pub fn new(to: u64, payload: impl Into<Payload>) -> Self {
        Self { to, group: false, payload: payload.into(), id: None, timeout: None, retry: false, no_store: false }
    }

    /// A message to a group or live room. It ends as [`crate::Outcome::Stored`]; as [`crate::Outcome::Accepted`] in a
    /// live room and [`Self::without_store`]; as [`crate::Outcome::Denied`] or [`crate::Outcome::Overloaded`].
    pub fn to_group(group: u64, payload: impl Into<Payload>) -> Self {
        Self { group: true, ..Self::new(group, payload) }
    }

    /// The same with an id of the application's: the recipient takes two messages with one id for one, so that it can
    /// be sent again after a crash without doubt.
    #[must_use]
    pub fn with_id(self, id: u64) -> Self {
        Self { id: Some(id), ..self }
    }

    /// The same for a message whose id may have been sent before, by a process that did not live to hear of its fate.
    #[must_use]
    pub fn as_retry(self) -> Self {
        Self { retry: true, ..self }
    }

    /// The same for a message that is of no use later, as that somebody types: a gateway that keeps messages for users
    /// who are offline does not keep this one, and its outcome is [`crate::Outcome::OfflineNotStored`] there.
    #[must_use]
    pub fn without_store(self) -> Self {
        Self { no_store: true, ..self }
    }

    /// The same with a time of its own.
    #[must_use]
    pub fn with_timeout(self, timeout: Duration) -> Self {
        Self { timeout: Some(timeout), ..self }
    }
}
