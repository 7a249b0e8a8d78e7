//! Users of whose logs it is not sure that this shard knows where they end: in a cluster another node may have been
//! their home meanwhile, and have added to them. The store is asked, for so many at a time.

use super::{Asked, Desk};
use crate::limits::LOG_LOOKS_MAX;
use crate::wheel::ticks;
use trunkline_store::Request;

/// How long a user waits at the least who is looked at again because a claim did not hold, and by how much users differ
/// in that. A master without a replica may stay so for hours, and others wait to be looked at, too.
const AGAIN_MS: u64 = 10_000;
const AGAIN_WITHIN_MS: u64 = 20_000;

/// When a user is looked at again whose claim does not hold yet.
pub(crate) fn look_again_tick(tick: u32, user: u64) -> u32 {
    let share = user.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
    tick + ticks(AGAIN_MS + share % AGAIN_WITHIN_MS)
}

/// What is in doubt at one shard.
#[derive(Debug, Default)]
pub(super) struct Doubts {
    /// Changes of the view after which others may have been homes of users here meanwhile, counted.
    changes: u32,
    /// Users who are still to be looked at because of the last of them.
    users: Vec<u64>,
    /// Questions to the store where the log of a user ends, without an answer.
    looks: usize,
}

impl Desk {
    /// Others may have been homes of any user here, who is looked at again.
    pub(crate) fn doubt_all(&mut self) {
        self.doubts.changes = self.doubts.changes.wrapping_add(1);
        self.doubts.users = self.users.keys().copied().collect();
        // Not in the order of a table.
        self.doubts.users.sort_unstable();
    }

    /// Another node may have been the home of this user, who is looked at again at `retry_tick`.
    pub(crate) fn doubt(&mut self, user: u64, retry_tick: u32) {
        if let Some(desk_of_user) = self.users.get_mut(&user) {
            desk_of_user.in_doubt = true;
            self.retries.note(user, retry_tick);
        }
    }

    /// The next user who is to be looked at because the view has changed; `None` if that was all, or if as many are
    /// being looked at as may be at a time.
    pub(crate) fn next_doubted(&mut self) -> Option<u64> {
        if self.doubts.looks >= LOG_LOOKS_MAX {
            return None;
        }
        let user = self.doubts.users.pop()?;
        if let Some(desk_of_user) = self.users.get_mut(&user) {
            desk_of_user.in_doubt = true;
        }
        Some(user)
    }

    /// Whether users have to wait until others have been looked at.
    pub(crate) fn is_behind_with_looks(&self) -> bool {
        self.doubts.looks >= LOG_LOOKS_MAX && !self.doubts.users.is_empty()
    }

    /// Whether it is not sure where the log of this user ends.
    pub(crate) fn is_in_doubt(&self, user: u64) -> bool {
        self.users.get(&user).is_some_and(|user| user.in_doubt)
    }

    /// Asks the store where the log of a user ends, as the user's home: from then on nobody of an earlier view adds to
    /// it. False if the store's mailbox has no room, or if as many are being looked at as may be at a time.
    pub(crate) fn look(&mut self, tick: u32, user: u64) -> bool {
        if self.doubts.looks >= LOG_LOOKS_MAX {
            return false;
        }
        let look = Asked::Look { user, doubts: self.doubts.changes };
        let asked = self.ask(tick, look, |token| Request::Inspect { user, claims: true, token }).is_ok();
        self.doubts.looks += usize::from(asked);
        asked
    }

    /// The store has answered such a question, which was asked after so many changes of the view. Whether there was
    /// none since.
    pub(crate) fn looked(&mut self, changes: u32) -> bool {
        debug_assert!(self.doubts.looks > 0, "an answer without a question");
        self.doubts.looks -= 1;
        changes == self.doubts.changes
    }

    /// There is another view: what was asked until now was asked in an earlier one.
    pub(crate) fn note_view_change(&mut self) {
        self.before_view = self.last_token;
    }

    /// Whether what was asked as that was asked in an earlier view, where others have the same store.
    pub(crate) fn is_before_view(&self, token: u64) -> bool {
        self.shared && token <= self.before_view
    }

    /// Notes how the session in a slot reads its inbox, for the next home of a guest; 0 is as most do.
    pub(crate) fn note_wish(&mut self, slot: u32, generation: u32, packed: u16) {
        match packed {
            0 => drop(self.wishes.remove(&slot)),
            packed => drop(self.wishes.insert(slot, (generation, packed))),
        }
    }

    /// What was noted of the session in a slot.
    pub(crate) fn wish(&self, slot: u32, generation: u32) -> u16 {
        let noted = self.wishes.get(&slot).filter(|(of, _)| *of == generation);
        noted.map_or(0, |(_, packed)| *packed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_whose_claims_do_not_hold_are_looked_at_again_later_and_not_all_at_once() {
        let after: Vec<u32> = (0..3_000).map(|user| look_again_tick(7, user) - 7).collect();
        assert!(after.iter().all(|after| (100..=300).contains(after)));
        let most = (100..=300).map(|at| after.iter().filter(|after| **after == at).count()).max();
        assert!(most < Some(60), "{most:?} in one tick");
        assert_eq!(look_again_tick(7, 42), look_again_tick(7, 42));
    }
}
