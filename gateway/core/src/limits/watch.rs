//! Limits of watches.

/// Who may be watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchPolicy {
    /// Everybody, by everybody.
    Open,
    /// Whoever the token of the watcher names; others look offline.
    Claim,
    /// Nobody: WATCH is answered with ERROR 21.
    Off,
}

/// Bounds of watches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WatchLimits {
    /// Who may be watched.
    pub policy: WatchPolicy,
    /// Users that one session may watch; beyond it ERROR 22.
    pub per_session_max: u32,
    /// Bytes of the tables of watches of one shard, half of them for its own watchers and half for the users whose home
    /// it is; beyond it ERROR 22, and the state of a user for whom the home has no room is *unknown*.
    pub bytes_max: usize,
}

impl Default for WatchLimits {
    fn default() -> Self {
        WatchLimits { policy: WatchPolicy::Open, per_session_max: 1_000, bytes_max: 32 << 20 }
    }
}
