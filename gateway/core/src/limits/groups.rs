//! Limits of groups.

/// Bounds of groups, of one shard unless they say otherwise. Sizes are bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupLimits {
    /// Members of one group; a further one gets ERROR 22.
    pub members_max: u64,
    /// Groups of one user, and rooms of one session; a further one gets ERROR 22.
    pub per_user_max: u64,
    /// Messages in the log of one group; beyond it the oldest go, which raises its floor.
    pub messages_max: u64,
    /// How long they are kept, seconds.
    pub age_secs: u64,
    /// Messages of one group in a second, 0 = off; beyond it the sender gets SENT 3.
    pub sends_per_sec: u32,
    /// Messages of one member to one group in a second, 0 = off; beyond it the sender gets ERROR 11.
    pub member_sends_per_sec: u32,
    /// Memberships that the node keeps; a further one gets ERROR 22. Sessions in groups are bounded likewise, at each
    /// shard.
    pub memberships_max: u64,
    /// Members above which a group is large: its sessions are told by HEADS that there are messages, but for those that
    /// pay attention. 0 = no group is.
    pub passive_above: u64,
    /// Bytes of frames on their way through the shard's own sessions; beyond it those are told by HEADS.
    pub queue_bytes_max: usize,
    /// How long after messages of a live room went to the shard's sessions further ones are gathered, milliseconds; 0 =
    /// they go at once. One to a room that was quiet for so long does not wait.
    pub room_gather_ms: u64,
    /// Messages of live rooms that a session is given in a second, of all its rooms together, 0 = off; the others are
    /// left out, which their numbers show.
    pub room_frames_per_sec: u16,
}

impl Default for GroupLimits {
    fn default() -> Self {
        GroupLimits {
            members_max: 1_000_000,
            per_user_max: 1_000,
            messages_max: 10_000,
            age_secs: 7 * 24 * 3_600,
            sends_per_sec: 200,
            member_sends_per_sec: 10,
            memberships_max: 2_000_000,
            passive_above: 10_000,
            queue_bytes_max: 4 << 20,
            room_gather_ms: 20,
            room_frames_per_sec: 1_000,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::Limits;

    #[test]
    fn a_reload_takes_what_the_settings_say_it_takes() {
        let groups = GroupLimits {
            sends_per_sec: 1,
            member_sends_per_sec: 2,
            passive_above: 3,
            room_gather_ms: 4,
            room_frames_per_sec: 5,
            ..Default::default()
        };
        let newer = Limits { groups: GroupLimits { members_max: 6, per_user_max: 7, ..groups }, ..Limits::default() };
        let mut limits = Limits::default();
        limits.reload(&newer);
        assert_eq!(limits.groups, groups, "and nothing that is built into what is set up");
    }
}
