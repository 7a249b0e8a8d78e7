//! Questions to the application whether a client is let in, and what it is given.
//!
//! A shard puts them into `portal` and goes on; who asks the application, over HTTP, is the services thread.

mod portal;
#[cfg(any(test, feature = "sim"))]
pub mod testing;

use crate::auth::{TokenEnd, Whom};

pub use portal::{Ask, Decision, HookInner, HookOuter, HookPortals, Waiting, Word};

/// Longest token that is asked about, bytes.
pub const TOKEN_BYTES_MAX: usize = 4_096;

/// Who is let in where the hook cannot say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FailurePolicy {
    /// Nobody: clients are told to come again.
    #[default]
    Refuse,
    /// Whoever `auth` lets in.
    Allow,
}

/// What a session is given. What the answer does not say stays as LOGIN and token have it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grant {
    /// Whose session it is.
    pub user: Option<u64>,
    /// When it ends at the latest.
    pub end: TokenEnd,
    /// Whom it may watch.
    pub watch: Option<Whom>,
    /// To whom it may write.
    pub send: Option<Whom>,
    /// Its heartbeats, seconds; brought into the bounds of the node where it is applied.
    pub heartbeat_secs: Option<u32>,
}

impl Grant {
    /// Bytes of what hangs on it.
    pub fn bytes(&self) -> usize {
        self.watch.as_ref().map_or(0, Whom::bytes) + self.send.as_ref().map_or(0, Whom::bytes)
    }
}
