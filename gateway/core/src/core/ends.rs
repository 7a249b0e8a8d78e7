//! Messages with an end: what nobody has acknowledged by then is not sent again, and ends as expired.

use super::links::ticks;
use super::route::Routed;
use super::shard::Shard;
use crate::head::is_over;
use crate::inbox::{Keep, Unacked};
use crate::mesh::wire::PUSH_SINCE;
use trunkline_proto::Outcome;
use trunkline_router_core::presence::Presence;

/// Users whose messages are looked at in one tick because one of them may be over.
const USERS_PER_TICK: usize = 1_024;
/// A user with a message that ends later is looked at after this time, and forgotten if nothing of the kind waits any
/// more: most messages are acknowledged long before their end.
const LOOK_AGAIN_MS: u64 = 60_000;

impl Shard {
    /// A message whose time was over when it came to its home.
    pub(super) fn expired_before(&mut self, message: &Routed<'_>) {
        let Routed { origin, to, id, acked, .. } = *message;
        self.links.stats.out_expired.add(1);
        if acked {
            self.tell_fate(origin, id, to, Outcome::Expired, 0);
        }
    }

    /// A message that ends then waits for a user; 0 is one without an end.
    pub(super) fn note_end(&mut self, user: u64, until_s: u32) {
        if until_s != 0 {
            let left_ms = (u64::from(until_s) * 1_000).saturating_sub(self.now.wall_ms).min(LOOK_AGAIN_MS);
            // Ticks are of another clock, which may be a little ahead.
            let tick = self.links.tick.saturating_add(ticks(left_ms)).saturating_add(1);
            self.ends.note(user, tick);
        }
    }

    /// Whether what is stored may say when it ends: all who read it know that.
    pub(super) fn stores_ends(&self) -> bool {
        self.alone || self.directory.routing.as_ref().is_some_and(|routing| routing.protocol_least() >= PUSH_SINCE)
    }

    /// Ends what is over in this tick. A node without a lease ends nothing: the user may have another home by now.
    pub(super) fn expire_ends(&mut self) {
        if !self.serving {
            return;
        }
        let tick = self.links.tick;
        for _ in 0..USERS_PER_TICK {
            let Some(user) = self.ends.take_due(tick) else { return };
            self.expire_messages(user);
        }
    }

    fn expire_messages(&mut self, user: u64) {
        let now_ms = self.now.wall_ms;
        // What the store has been asked to keep is its.
        let is_due = |message: &Unacked| message.keep != Keep::Storing && is_over(message.until_s, now_ms);
        let unkept = self.inboxes.take_if(user, |message| message.keep == Keep::Never && is_due(message));
        for Unacked { origin, id, .. } in unkept {
            self.links.stats.out_expired.add(1);
            self.tell_fate(origin, id, user, Outcome::Expired, 0);
        }
        let kept = self.inboxes.of(user).filter(|message| is_due(message)).map(|message| message.stamp);
        for stamp in kept.collect::<Vec<u64>>() {
            self.fail_kept(user, stamp, Outcome::Expired);
        }
        let next = self.inboxes.of(user).filter(|message| message.until_s != 0 && message.keep != Keep::Storing);
        if let Some(until_s) = next.map(|message| message.until_s).min() {
            self.note_end(user, until_s);
        }
        if self.presence.sessions(user).is_empty() {
            self.inboxes.drop_empty(user);
        }
    }
}
