//! Pushes that come by HTTP: from the services thread to the recipient's home, and what became of them back.
//!
//! A push goes the way of a message. Its origin is the portal of the shard that took it in, under the number that the
//! services thread has given it; so its fate comes back to this shard from wherever the recipient's home is, or
//! becomes, exactly as that of a message comes back to the session that sent it.

use super::decode::Flow;
use super::route::Routed;
use super::shard::Shard;
use super::worker_pushes::OF_WORKER;
use crate::groups::is_room;
use crate::groups::mail::GroupMail;
use crate::ids::Origin;
use crate::io::ConnId;
use crate::limits::MAIL_TURN_BYTES;
use crate::mailbox::Room;
use crate::portal::{Fate, Push};
use trunkline_proto::{Code, Outcome, SERVICE_USERS, flags};

/// The slot that an origin has which is no connection but this shard's portal: behind all slots a ring can have. Its
/// generation is the number of the push, with [`OF_WORKER`] for one of a worker.
pub(crate) const PORTAL_SLOT: u32 = 1 << super::far::SLOT_BITS;
/// What the delivery of a payload costs besides its bytes, for the share of a turn.
const DELIVERY_BYTES: usize = 64;

impl Shard {
    /// Takes the pushes that have come, as much as is a turn's. Returns how many deliveries that were.
    pub(crate) fn take_pushes(&mut self) -> usize {
        let (mut pushes, mut bytes) = (self.take_broadcasts(), 0);
        while bytes < MAIL_TURN_BYTES {
            let Some(mut batch) = self.portal.as_mut().and_then(|portal| portal.take()) else { break };
            while bytes < MAIL_TURN_BYTES
                && let Some((user, push)) = batch.next_push()
            {
                pushes += 1;
                bytes += push.payload.len() + DELIVERY_BYTES;
                if push.to_groups {
                    self.push_to_group(user, &push);
                    if !push.acked {
                        self.tell_portal(push.token, push.id, user, Outcome::Accepted);
                    }
                    continue;
                }
                let message = Routed {
                    origin: Origin::own(self.shard, ConnId { slot: PORTAL_SLOT, generation: push.token }),
                    from: SERVICE_USERS + u64::from(push.service),
                    to: user,
                    id: push.id,
                    acked: push.acked,
                    extra: push.extra,
                    payload: push.payload,
                };
                // The services thread has brought it to its recipient's shard, so it crosses no mailbox.
                self.push_to_user(&message);
                if !message.acked {
                    self.tell_portal(push.token, push.id, user, Outcome::Accepted);
                }
            }
            if let Some(portal) = &mut self.portal {
                portal.put_back(batch);
            }
        }
        pushes
    }

    /// A message of a service to a user. It goes the way of one of a client, and is refused where there is no room on
    /// it.
    pub(super) fn push_to_user(&mut self, message: &Routed<'_>) {
        if self.dispatch(message) == Flow::Wait {
            self.links.stats.messages_in.add(1);
            self.refuse(message);
        }
    }

    /// A message of a service to a group. It goes the way of one of a client.
    pub(super) fn push_to_group(&mut self, group: u64, push: &Push<'_>) {
        let Push { token, service, acked, extra, id, payload, .. } = *push;
        let origin = ConnId { slot: PORTAL_SLOT, generation: token };
        let flags = extra & (flags::NO_STORE | flags::RETRY) | if acked { flags::ACK } else { 0 };
        self.links.stats.group_messages_in.add(1);
        let served = if is_room(group) { self.speaks_rooms() } else { self.serves_groups() };
        if served {
            let from = SERVICE_USERS + u64::from(service);
            // The services thread hands over what is for this shard; a worker's link is at any.
            let mail = GroupMail::Send { group, origin, from, id, flags, payload };
            if !matches!(self.send_group_home(group, &mail), Room::Yes) {
                self.group_overloaded(Origin::own(self.shard, origin), id, group, flags);
            }
        } else if is_room(group) {
            // A node of the cluster does not know rooms yet.
            self.group_overloaded(Origin::own(self.shard, origin), id, group, flags);
        } else {
            // Without a store there is no such group.
            self.group_denied(Origin::own(self.shard, origin), id, group, flags, Code::Unsupported);
        }
    }

    /// What became of a push that this shard took in.
    pub(super) fn tell_portal(&mut self, token: u32, id: u64, user: u64, outcome: Outcome) {
        if token & OF_WORKER != 0 {
            return self.settle_worker_push(token & !OF_WORKER, id, user, outcome);
        }
        self.tell_outcome(id, user, outcome);
        match &mut self.portal {
            Some(portal) => portal.tell(&Fate { token, id, user, outcome }),
            // From an earlier run of this node that had one.
            None => self.links.stats.sent_to_gone.add(1),
        }
    }

    /// Whether pushes wait for their turn.
    pub(crate) fn has_pushes(&self) -> bool {
        self.portal.as_ref().is_some_and(|portal| portal.has_pushes())
    }
}
