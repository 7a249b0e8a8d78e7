//! The one clock of the process. Shards and control thread compare times with each other, so they count from one
//! moment.
//!
//! It is CLOCK_BOOTTIME, which goes on while the machine is suspended. CLOCK_MONOTONIC, and with it `Instant`, stands
//! still then: a node that woke up would take a lease that ran out hours ago for its own, while others serve its users.
//!
//! And the wall clock, for certificates and for what ends at a time.

use rustix::time::{ClockId, clock_gettime};
use std::sync::OnceLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

fn boottime() -> Duration {
    let time = clock_gettime(ClockId::Boottime);
    // The clock counts up from 0, in parts of a second below 10^9.
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
}

fn passed() -> Duration {
    static EPOCH: OnceLock<Duration> = OnceLock::new();
    boottime().saturating_sub(*EPOCH.get_or_init(boottime))
}

/// Milliseconds since the clock was first looked at; never goes back, and counts the time for which the machine was
/// suspended.
pub fn now_ms() -> u64 {
    passed().as_millis() as u64
}

/// The same in microseconds, to measure with.
pub fn now_us() -> u64 {
    passed().as_micros() as u64
}

/// Milliseconds since the Unix epoch by the wall clock, which may go back.
pub fn wall_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}

/// Seconds since the Unix epoch by the wall clock, which may go back.
pub fn wall_s() -> u64 {
    wall_ms() / 1_000
}
