//! The numbers that a shard gives out: positions in the inboxes of its users, and ids of sessions. Both only go up,
//! whatever the clock does.

/// A position this far ahead of the clock, in milliseconds, is not one to follow.
const AHEAD_MS_MAX: u64 = 60_000;

/// The latest numbers of one shard.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stamps {
    /// The latest position; 0 before the first.
    last: u64,
    /// The latest session id; 0 before the first.
    last_session: u64,
}

impl Stamps {
    /// Positions are above `highest`, which the store holds; 0 without a store.
    pub(super) fn new(highest: u64) -> Self {
        Stamps { last: highest, last_session: 0 }
    }

    /// The latest position.
    pub(super) fn last(&self) -> u64 {
        self.last
    }

    /// The next position: milliseconds since the epoch in the high 44 bits, a counter in the low 20. `salt`: ten bits
    /// that other homes of a cluster hardly ever have, so that what moves from one to another hardly ever meets its own
    /// position there.
    #[inline]
    pub(super) fn next(&mut self, wall_ms: u64, salt: u64) -> u64 {
        debug_assert!(salt < 1 << 10);
        let floor = wall_ms << 20 | salt << 10;
        self.last = floor.max(self.last + 1);
        self.last
    }

    /// Positions are above this one from now on, which was given out here, whatever the clock says now.
    pub(super) fn follow(&mut self, stamp: u64) {
        self.last = self.last.max(stamp);
    }

    /// The same for a position that another home has given out. One from the far future would push all others there, so
    /// it is not followed; the clocks of nodes differ by seconds at most.
    pub(super) fn follow_other_home(&mut self, stamp: u64, wall_ms: u64) {
        if stamp >> 20 <= wall_ms + AHEAD_MS_MAX {
            self.follow(stamp);
        }
    }

    /// The next session id of a node that is alone: they begin at the second of the shard's first login, in the upper
    /// half, and go up by the number of shards. So they are unique on the node, over restarts too, unless its clock is
    /// set back by more than it was up.
    pub(super) fn next_session(&mut self, wall_ms: u64, shard: u16, shards: u16) -> u64 {
        if self.last_session == 0 {
            self.last_session = (wall_ms / 1_000) << 32 | u64::from(shard);
        }
        self.last_session += u64::from(shards);
        self.last_session
    }

    /// The next session id in a cluster: milliseconds since the epoch and a counter, above `known`, the session that
    /// the device has anywhere. So they order the sessions of a device whichever home gave them; the low bits, `salt`,
    /// tell homes apart.
    pub(super) fn next_session_above(&mut self, known: u64, wall_ms: u64, salt: u64) -> u64 {
        debug_assert!(salt < 1 << 10);
        let counted = (self.last_session.max(known) >> 10) + 1;
        self.last_session = (wall_ms << 10).max(counted) << 10 | salt;
        self.last_session
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_and_sessions_only_go_up_whatever_the_clock_does() {
        let mut stamps = Stamps::new(1_000 << 20);
        let mut before = (stamps.last(), 0, 0);
        let (mut alone, mut clustered) = (stamps, stamps);
        for wall_ms in [500, 500, 2_000, 1_999, 0, 2_001, 90_000] {
            let session = clustered.next_session_above(before.2 / 2, wall_ms, 7);
            let next = (stamps.next(wall_ms, 7), alone.next_session(wall_ms, 1, 4), session);
            assert!(next.0 > before.0 && next.1 > before.1 && next.2 > before.2, "{before:?}, then {next:?}");
            assert_eq!((next.1 % 4, next.2 & 0x3FF), (1, 7), "they tell shards and homes apart");
            before = next;
        }
        let known = clustered.last_session + (5 << 10);
        assert!(clustered.next_session_above(known, 0, 0) > known);
    }

    #[test]
    fn what_others_have_given_out_is_followed_unless_it_is_from_the_far_future() {
        let mut stamps = Stamps::new(0);
        stamps.follow_other_home(60_005 << 20, 5);
        assert_eq!(stamps.last(), 60_005 << 20);
        stamps.follow_other_home(60_006 << 20, 5);
        assert_eq!(stamps.last(), 60_005 << 20);
        stamps.follow(60_006 << 20);
        stamps.follow(1);
        assert_eq!(stamps.next(5, 0), (60_006 << 20) + 1, "its own are followed wherever they are");
    }
}
