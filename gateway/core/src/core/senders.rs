//! Who may write to whom: what a SEND is allowed by the claim of its session, and what a claim may take.
//!
//! It is the shard with the connection that judges, before anything else is done with a message. So it makes no
//! difference where the recipient's home is, and no other shard or node knows of claims.

use super::shard::Shard;
use crate::auth::Whom;
use crate::limits::SendPolicy;
use trunkline_proto::{Code, Frame, Outcome, flags};

impl Shard {
    /// Whether a SEND to this user may go on. Its own user's other devices are no strangers to a session.
    pub(super) fn may_send(&mut self, slot: u32, user: u64) -> bool {
        self.senders.may_send(slot, user) || self.links.slots.at(slot).user == user
    }

    /// A SEND is refused: SENT 4 where that was asked for, else ERROR 26.
    #[cold]
    pub(super) fn deny_send(&mut self, slot: u32, frame: &Frame<'_>) {
        self.links.stats.messages_in.add(1);
        self.links.stats.out_denied.add(1);
        if frame.flags & flags::ACK != 0 {
            let origin = self.origin(slot);
            return self.tell_fate(origin, frame.id, frame.peer, Outcome::Denied, 0);
        }
        self.links.error(slot, Code::NotAllowed, frame.id, frame.peer);
    }

    /// Whether a claim names more users than it may.
    pub(super) fn names_too_many(&self, claim: &Whom) -> bool {
        let limits = self.links.limits.send;
        let too_many = limits.policy == SendPolicy::Claim && claim.listed() > limits.users_max as usize;
        self.links.stats.limit_send_users.add(u64::from(too_many));
        too_many
    }

    /// Whether there is room for the claim of the session in a slot.
    pub(super) fn has_room_to_send(&self, slot: u32, claim: &Whom) -> bool {
        let limits = self.links.limits.send;
        let has_room = limits.policy == SendPolicy::Open || self.senders.has_room(slot, claim, limits.bytes_max);
        self.links.stats.limit_send_bytes.add(u64::from(!has_room));
        has_room
    }

    /// Keeps to whom the session in a slot may write, where tokens say so.
    pub(super) fn keep_send_claim(&mut self, slot: u32, claim: Whom) {
        #[cfg(test)]
        if self.senders.of(slot) != Whom::Nobody && crate::simulation::planted(crate::simulation::Bug::ClaimOutlived) {
            return;
        }
        if self.links.limits.send.policy == SendPolicy::Claim {
            self.senders.keep(slot, claim);
        }
    }

    /// To whom the session in a slot may write, besides its own user.
    pub(super) fn send_claim(&self, slot: u32) -> Whom {
        self.senders.of(slot)
    }
}
