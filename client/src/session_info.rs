//! What a login has told.

use std::time::Duration;

/// What the gateway said at the last login.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SessionInfo {
    /// Address of the connection, after redirections.
    pub addr: String,
    /// The session's number, unique on its node.
    pub session: u64,
    /// Name of the node.
    pub node: String,
    /// The shard that serves this user there.
    pub shard: u32,
    /// The heartbeat the gateway chose; after two of them without a byte from it the connection counts as dead.
    pub heartbeat: Duration,
    /// Largest frame in both directions, header included, in bytes.
    pub frame_bytes_max: u32,
    /// When the session ends with its token, unless that is renewed: milliseconds since the Unix epoch by the gateway's
    /// clock; 0 never.
    pub expires_ms: u64,
    /// The gateway keeps messages with acknowledgement for this device while it is away. False without a store, for an
    /// [`crate::Config::ephemeral`] device, and where the store did not answer in time (then what was kept follows all
    /// the same).
    pub registered: bool,
    /// The gateway went on from where this client had got to. Otherwise the device was new to it or forgotten, or the
    /// store is another one: an application with a history of its own should look for what is missing.
    pub resumed: bool,
    /// Messages that waited for this device.
    pub pending: u64,
    /// Position up to which the inbox held nothing any more.
    pub floor: u64,
    /// Position of the newest message that was stored.
    pub last: u64,
    /// Messages for this device are gone, unacknowledged, because of their age or number: a gap, told by
    /// [`crate::Event::Truncated`], too.
    pub truncated: bool,
}
