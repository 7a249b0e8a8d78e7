//! What the presence store holds of a session, and what is written to it.

use crate::membership::View;
use std::sync::Arc;

/// The longest device name and the longest class, in bytes.
pub const TEXT_BYTES_MAX: usize = 64;

/// One session of a user, as it is in the presence store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PresenceEntry {
    /// The device, 1 … [`TEXT_BYTES_MAX`] bytes; a user has one session for each.
    pub device: Box<str>,
    /// The node that holds the session.
    pub node: Arc<str>,
    /// That node's incarnation: the entry counts only while it lives.
    pub incarnation: u64,
    /// The shard of that node.
    pub shard: u32,
    /// The session's id on that node.
    pub session: u64,
    /// When it began, in milliseconds since the Unix epoch.
    pub since_ms: u64,
    /// The class of the device, 0 … [`TEXT_BYTES_MAX`] bytes.
    pub class: Box<str>,
    /// Orders all logins of one device: a later one has a higher version, and no two sessions share one.
    pub version: u64,
}

/// A change of the presence store. Both are idempotent, so a write whose answer was lost is written again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PresenceWrite {
    /// Set the session, unless the device has one of a higher version.
    Login {
        /// The user.
        user: u64,
        /// The session.
        entry: PresenceEntry,
    },
    /// Remove the session, if it is the one stored.
    Logout {
        /// The user.
        user: u64,
        /// The session's device.
        device: Box<str>,
        /// The session's node.
        node: Arc<str>,
        /// That node's incarnation.
        incarnation: u64,
        /// The session's id.
        session: u64,
        /// The version of its login.
        version: u64,
        /// Leave a mark that keeps this login out, because it may still be on its way to Redis. The write-behind queue
        /// sets it after a login whose outcome is not known; elsewhere it is `false`.
        fence: bool,
    },
}

/// What became of a write that Redis has executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteOutcome {
    /// The store is now as the write says.
    Written,
    /// A login that lost: the device has a session with this version, or was logged out with it.
    Stale {
        /// The version stored.
        version: u64,
    },
    /// A logout whose session was not stored.
    Absent,
}

impl PresenceWrite {
    /// The logout that undoes this login.
    #[must_use]
    pub fn logout_of(user: u64, entry: &PresenceEntry) -> Self {
        PresenceWrite::Logout {
            user,
            device: entry.device.clone(),
            node: Arc::clone(&entry.node),
            incarnation: entry.incarnation,
            session: entry.session,
            version: entry.version,
            fence: false,
        }
    }

    /// The user whose presence changes.
    #[must_use]
    pub fn user(&self) -> u64 {
        match self {
            PresenceWrite::Login { user, .. } | PresenceWrite::Logout { user, .. } => *user,
        }
    }

    /// The device whose session changes.
    #[must_use]
    pub fn device(&self) -> &str {
        match self {
            PresenceWrite::Login { entry, .. } => &entry.device,
            PresenceWrite::Logout { device, .. } => device,
        }
    }

    /// The version of the session.
    #[must_use]
    pub fn version(&self) -> u64 {
        match self {
            PresenceWrite::Login { entry, .. } => entry.version,
            PresenceWrite::Logout { version, .. } => *version,
        }
    }

    /// Whether it is a login.
    #[must_use]
    pub fn is_login(&self) -> bool {
        matches!(self, PresenceWrite::Login { .. })
    }

    /// Node, session and incarnation: with them a session is named in the whole cluster, for ever.
    #[must_use]
    pub fn identity(&self) -> (&str, u64, u64) {
        match self {
            PresenceWrite::Login { entry, .. } => (&entry.node, entry.session, entry.incarnation),
            PresenceWrite::Logout { node, session, incarnation, .. } => (node, *session, *incarnation),
        }
    }

    /// Whether the texts are in their ranges, so that what is written can be read.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        let plain = |text: &str| text.len() <= TEXT_BYTES_MAX && !text.chars().any(char::is_control);
        let class = match self {
            PresenceWrite::Login { entry, .. } => &*entry.class,
            PresenceWrite::Logout { .. } => "",
        };
        let (node, ..) = self.identity();
        !self.device().is_empty() && plain(self.device()) && plain(class) && crate::membership::check_name(node).is_ok()
    }
}

/// The entries whose node is in the view with that incarnation: where the user really is.
#[must_use]
pub fn live(entries: Vec<PresenceEntry>, view: &View) -> Vec<PresenceEntry> {
    entries.into_iter().filter(|entry| view.is_live(&entry.node, entry.incarnation)).collect()
}
