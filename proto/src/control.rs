//! The control messages, generated from `proto/trunkline.proto` (see `tests/wire/generated.rs`): bodies of the short
//! kinds.
//!
//! A decoded message can take up more memory than its bytes did: a list of user ids up to 16 times, a list of
//! [`UserState`] up to 48 times, the spare room of the vectors included. Whoever accepts them bounds the body
//! accordingly.

use std::fmt;

mod generated {
    include!("trunkline.v1.rs");
}

pub use generated::{
    Bye, CallHead, Head, Heads, Invite, Login, LoginOk, Offer, Presence, PushHead, PushReport, Serve, ServeOk, Sync,
    SyncOk, UserState, Watch,
};

// An empty one takes 2 bytes in a PRESENCE, and a vector may be twice as long as what it holds: hence the 48 above.
const _: () = assert!(size_of::<UserState>() <= 48);

/// Stands for a secret in debug output: only its length is shown.
struct Secret(usize);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<{} bytes>", self.0)
    }
}

impl fmt::Debug for Login {
    /// Hides the token and the resume secret, so that a log never holds one.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login")
            .field("version", &self.version)
            .field("user", &self.user)
            .field("token", &Secret(self.token.len()))
            .field("device", &self.device)
            .field("device_class", &self.device_class)
            .field("agent", &self.agent)
            .field("resume", &Secret(self.resume.len()))
            .field("last_stamp", &self.last_stamp)
            .field("heartbeat_secs", &self.heartbeat_secs)
            .field("window", &self.window)
            .field("ephemeral", &self.ephemeral)
            .finish()
    }
}

impl fmt::Debug for LoginOk {
    /// Hides the resume secret, so that a log never holds one.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoginOk")
            .field("session", &self.session)
            .field("node", &self.node)
            .field("shard", &self.shard)
            .field("heartbeat_secs", &self.heartbeat_secs)
            .field("time_ms", &self.time_ms)
            .field("resume", &Secret(self.resume.len()))
            .field("resumed", &self.resumed)
            .field("max_frame", &self.max_frame)
            .field("pending", &self.pending)
            .field("floor", &self.floor)
            .field("last", &self.last)
            .field("truncated", &self.truncated)
            .field("expires_ms", &self.expires_ms)
            .finish()
    }
}

impl fmt::Debug for Invite {
    /// Hides the token, so that a log never holds one.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Invite")
            .field("version", &self.version)
            .field("service", &self.service)
            .field("token", &Secret(self.token.len()))
            .field("node", &self.node)
            .field("link", &self.link)
            .field("links", &self.links)
            .finish()
    }
}

impl fmt::Debug for Serve {
    /// Hides the token, so that a log never holds one.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Serve")
            .field("version", &self.version)
            .field("name", &self.name)
            .field("token", &Secret(self.token.len()))
            .field("offers", &self.offers)
            .field("shard", &self.shard)
            .field("window", &self.window)
            .field("heads", &self.heads)
            .finish()
    }
}
