//! Limits of who may write to whom.

/// To whom a session may send messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendPolicy {
    /// To everybody.
    Open,
    /// To its own user, and to whoever its token, or the connect-time hook, names; a SEND to others is refused.
    Claim,
}

/// Bounds of what is kept of that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SendLimits {
    /// To whom a session may send.
    pub policy: SendPolicy,
    /// Users that one claim may name; a LOGIN or RENEW with more is refused with code 6.
    pub users_max: u32,
    /// Bytes of the claims of one shard; beyond it a LOGIN or RENEW is refused with code 14. 0 where nothing is kept.
    pub bytes_max: usize,
}

impl Default for SendLimits {
    fn default() -> Self {
        SendLimits { policy: SendPolicy::Open, users_max: 1_000, bytes_max: 0 }
    }
}
