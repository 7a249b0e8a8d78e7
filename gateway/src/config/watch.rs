//! Who may watch whom: from the settings to what a shard works with.

use super::resolve::{Judge, known};
use super::values::{AuthKind, WatchKind};
use super::{ConfigError, Settings};
use crate::limits::{WatchLimits, WatchPolicy};

const KIB: u64 = 1 << 10;
const GIB: u64 = 1 << 30;
/// Users that a session may watch, at the most: its list is kept in order.
const PER_SESSION_MOST: u64 = 10_000;
/// Tables of a shard at the least, bytes.
pub(super) const WATCH_BYTES_LEAST: u64 = 256 * KIB;

/// The policy where none is set: tokens say so where there are some.
pub(super) fn watch_default(auth: Option<AuthKind>) -> WatchKind {
    match auth {
        Some(AuthKind::Jwt) => WatchKind::Claim,
        Some(AuthKind::Open) | None => WatchKind::Open,
    }
}

/// Judges who may watch, and how much.
pub(super) fn watch_limits(all: &Settings, shards: u64, judge: &Judge) -> Result<WatchLimits, ConfigError> {
    let policy = match known(all.watch) {
        WatchKind::Open => WatchPolicy::Open,
        WatchKind::Claim => WatchPolicy::Claim,
        WatchKind::Off => WatchPolicy::Off,
    };
    let allowed = WATCH_BYTES_LEAST * shards..=4 * GIB * shards;
    let bytes = judge.size("watch_bytes_max", known(all.watch_bytes_max), allowed)?;
    Ok(WatchLimits {
        policy,
        per_session_max: judge.count(
            "watches_per_session_max",
            known(all.watches_per_session_max),
            1..=PER_SESSION_MOST,
        )? as u32,
        bytes_max: (bytes / shards) as usize,
    })
}
