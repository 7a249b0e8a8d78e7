//! The one monotonic clock of the process. Shards and control thread compare times with each other, so they count from one moment.

use std::sync::OnceLock;
use std::time::Instant;

/// When the clock was first looked at.
pub fn epoch() -> Instant {
    static EPOCH: OnceLock<Instant> = OnceLock::new();
    *EPOCH.get_or_init(Instant::now)
}

/// Milliseconds since [`epoch`]; never goes back.
pub fn now_ms() -> u64 {
    epoch().elapsed().as_millis() as u64
}
