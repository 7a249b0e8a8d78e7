//! The limits of groups: from the settings to what a shard works with.

use super::resolve::{Judge, known};
use super::{ConfigError, Settings};
use crate::limits::GroupLimits;

const GIB: u64 = 1 << 30;
/// Longest time a message is kept: ten years, in seconds.
const AGE_SECS_MAX: u64 = 10 * 365 * 24 * 3_600;
/// Most messages in a second that a limit may be.
const RATE_MAX: u64 = 1_000_000;
/// Longest time for which messages of a live room are gathered, in milliseconds.
const ROOM_GATHER_MS_MAX: u64 = 1_000;
/// Most messages of live rooms that a session may be given in a second: what a count of two bytes holds.
const ROOM_FRAMES_MAX: u64 = u16::MAX as u64;
/// Memberships at the least and at the most.
pub(super) const MEMBERSHIPS_LEAST: u64 = 1_000;
pub(super) const MEMBERSHIPS_MOST: u64 = 1_000_000_000;

/// Judges the limits of groups. `frame_bytes_max`: the longest frame.
pub(super) fn group_limits(all: &Settings, frame_bytes_max: u64, judge: &Judge) -> Result<GroupLimits, ConfigError> {
    let rate = |key, value: Option<u64>| judge.count(key, known(value), 0..=RATE_MAX).map(|rate| rate as u32);
    Ok(GroupLimits {
        members_max: judge.count("group_members_max", known(all.group_members_max), 1..=100_000_000)?,
        per_user_max: judge.count("groups_per_user_max", known(all.groups_per_user_max), 1..=100_000)?,
        messages_max: judge.count("group_messages_max", known(all.group_messages_max), 1..=1_000_000)?,
        age_secs: judge.count("group_age_secs", known(all.group_age_secs), 1..=AGE_SECS_MAX)?,
        sends_per_sec: rate("group_sends_per_sec", all.group_sends_per_sec)?,
        member_sends_per_sec: rate("group_member_sends_per_sec", all.group_member_sends_per_sec)?,
        memberships_max: judge.count(
            "group_memberships_max",
            known(all.group_memberships_max),
            MEMBERSHIPS_LEAST..=MEMBERSHIPS_MOST,
        )?,
        passive_above: judge.count("group_passive_above", known(all.group_passive_above), 0..=100_000_000)?,
        queue_bytes_max: judge.size("group_queue_bytes_max", known(all.group_queue_bytes_max), frame_bytes_max..=GIB)?
            as usize,
        room_gather_ms: judge.count("room_gather_ms", known(all.room_gather_ms), 0..=ROOM_GATHER_MS_MAX)?,
        room_frames_per_sec: judge.count("room_frames_per_sec", known(all.room_frames_per_sec), 0..=ROOM_FRAMES_MAX)?
            as u16,
    })
}
