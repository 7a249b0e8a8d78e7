//! The one monotonic clock of the process. Shards and control thread compare times with each other, so they count from
//! one moment. And the wall clock, for certificates.

use std::sync::OnceLock;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// When the clock was first looked at.
pub fn epoch() -> Instant {
    static EPOCH: OnceLock<Instant> = OnceLock::new();
    *EPOCH.get_or_init(Instant::now)
}

/// Milliseconds since [`epoch`]; never goes back.
pub fn now_ms() -> u64 {
    epoch().elapsed().as_millis() as u64
}

/// Seconds since the Unix epoch by the wall clock, which may go back.
pub fn wall_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
