//! A message's way: from the sender's frame to the home shard of the recipient, into the outboxes of the recipient's devices, and its fate
//! back to the sender. What of it leads to another node is in `far`.

use super::far::{self, Path};
use super::links::{Queued, ticks};
use super::shard::Shard;
use crate::conn::Phase;
use crate::directory::{EARLY_ACKS_MAX, Home, NodeKey};
use crate::inbox::{InboxFull, Unacked};
use crate::mailbox::{Origin, Record, Records};
use crate::mesh::wire::Record as FarRecord;
use trunkline_proto::{Code, Frame, Header, Kind, Outcome, encode, flags};
use trunkline_router::hash::home_shard;
use trunkline_router::presence::Presence;

/// A message at the home shard of its recipient.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Routed<'a> {
    pub(crate) origin: Origin,
    pub(crate) from: u64,
    pub(crate) to: u64,
    /// The sender's id for it.
    pub(crate) id: u64,
    pub(crate) acked: bool,
    pub(crate) payload: &'a [u8],
}

impl Shard {
    /// SEND: to this shard's own users at once, to others through the mailbox of their shard.
    #[inline]
    pub(crate) fn send(&mut self, slot: u32, frame: &Frame<'_>) {
        if frame.id == 0 || frame.peer == 0 {
            return self.links.error(slot, Code::BadRequest, frame.id, frame.peer);
        }
        self.links.stats.messages_in.add(1);
        let message = Routed {
            origin: self.origin(slot),
            from: self.links.slots.at(slot).user,
            to: frame.peer,
            id: frame.id,
            acked: frame.flags & flags::ACK != 0,
            payload: frame.body,
        };
        if !self.serving {
            self.links.stats.fenced.add(1);
            return self.refuse(&message);
        }
        match self.home(frame.peer) {
            Home::Here => self.send_home(&message),
            Home::There { node, shard } => self.send_away(&message, Path::OWN, node, shard),
            Home::Nowhere => self.refuse(&message),
        }
    }

    /// To a user whose home is this node.
    #[inline]
    fn send_home(&mut self, message: &Routed<'_>) {
        let home = home_shard(message.to, u32::from(self.shards)) as u16;
        if home == self.shard {
            return self.arrive(message, Path::OWN);
        }
        let Routed { origin, from, to, id, acked, payload } = *message;
        let record = Record::Message { origin: origin.conn, from, to, id, acked, payload };
        if self.outgoing.has_room(home, record.encoded_len()) {
            return self.outgoing.put(home, &record);
        }
        self.links.stats.limit_mailbox.add(1);
        if acked {
            self.links.stats.out_overloaded.add(1);
            self.tell_fate(origin, id, to, Outcome::Overloaded, 0);
        } else {
            self.links.stats.out_mailbox_full.add(1);
        }
    }

    /// Queues a message for all devices of its recipient, whose home this shard is.
    pub(crate) fn deliver(&mut self, message: &Routed<'_>) {
        let Routed { origin, from, to, id, acked, payload } = *message;
        if acked && let Err(full) = self.inboxes.admit(to, payload.len()) {
            let stats = &self.links.stats;
            match full {
                InboxFull::User => stats.limit_unacked.add(1),
                InboxFull::Shard => stats.limit_unacked_bytes.add(1),
            }
            stats.out_overloaded.add(1);
            return self.tell_fate(origin, id, to, Outcome::Overloaded, 0);
        }
        let stamp = self.next_stamp();
        let to_self = from == to;
        let flags = if acked { flags::ACK } else { 0 } | if to_self { flags::SELF } else { 0 };
        let header = Header { kind: Kind::Deliver, flags, aux: 0, id, peer: from, stamp };
        let mut devices = 0;
        let mut queued_here = None;
        let mut queued_away = false;
        for session in self.presence.sessions(to) {
            if to_self && far::may_be_origin(&self.directory, &self.links.slots, self.shard, session.slot, &origin) {
                continue;
            }
            devices += 1;
            let queued = match self.directory.remotes.get(session.slot) {
                None => {
                    let queued = self.links.queue_message(session.slot, &header, payload);
                    if queued == Queued::Yes {
                        self.links.stats.deliveries.add(1);
                        queued_here = Some(session.slot);
                    }
                    queued
                }
                Some(remote) => {
                    let queued = far::queue_copy(&mut self.mesh, &mut self.links, remote, &header, payload);
                    queued_away |= queued == Queued::Yes;
                    queued
                }
            };
            if queued == Queued::OutboxFull {
                self.links.stats.copies_dropped.add(1);
            }
        }
        let stats = &self.links.stats;
        match (queued_here.is_some() || queued_away, acked) {
            (true, false) => stats.out_delivered.add(1),
            (true, true) => {
                let sent_tick = self.links.tick;
                let payload = payload.into();
                self.inboxes.push(to, Unacked { stamp, from, id, origin, sent_tick, attempts: 0, payload });
                let again = sent_tick + ticks(self.links.limits.redeliver_ms);
                match queued_here {
                    Some(slot) => self.links.wheel.arm_earlier(slot, again),
                    None => self.directory.redelivery.note(to, again),
                }
            }
            (false, false) if devices == 0 => stats.out_offline.add(1),
            (false, false) => stats.out_outbox_full.add(1),
            (false, true) if devices == 0 => {
                stats.out_offline_refused.add(1);
                self.tell_fate(origin, id, to, Outcome::OfflineNotStored, 0);
            }
            (false, true) => {
                stats.out_overloaded.add(1);
                self.tell_fate(origin, id, to, Outcome::Overloaded, 0);
            }
        }
    }

    /// ACK: the first one of any device settles the message.
    pub(crate) fn ack(&mut self, slot: u32, frame: &Frame<'_>) {
        let user = self.links.slots.at(slot).user;
        match self.home(user) {
            Home::There { node, shard } => {
                let record = FarRecord::Ack { user, id: frame.id, peer: frame.peer, stamp: frame.stamp, hops: 0 };
                if self.send_far(node, shard, &record).is_err() {
                    // The home sends the message again, and gets another ACK.
                    self.links.stats.mesh_answers_lost.add(1);
                }
            }
            Home::Here | Home::Nowhere => self.acknowledged(user, frame.stamp),
        }
    }

    /// A message that waits here has its ACK.
    pub(crate) fn acknowledged(&mut self, user: u64, stamp: u64) {
        if let Some(message) = self.inboxes.ack(user, stamp) {
            self.links.stats.out_acked.add(1);
            self.tell_fate(message.origin, message.id, user, Outcome::Delivered, message.stamp);
        } else if !self.alone && self.is_unsettled(user) && self.directory.early_acks.len() < EARLY_ACKS_MAX {
            self.directory.early_acks.insert((user, stamp));
        }
    }

    /// Tells the sender's session what became of its message, if that session still is.
    pub(crate) fn tell_fate(&mut self, origin: Origin, id: u64, peer: u64, outcome: Outcome, stamp: u64) {
        #[cfg(test)]
        if id.is_multiple_of(10) && crate::simulation::planted(crate::simulation::Bug::FateLost) {
            return;
        }
        if origin.node != NodeKey::OWN {
            return self.tell_fate_away(origin, id, peer, outcome, stamp);
        }
        if origin.shard != self.shard {
            let record = Record::Fate { origin: origin.conn, id, peer, outcome, stamp };
            return self.outgoing.put(origin.shard, &record);
        }
        match self.links.slots.get(origin.conn) {
            Some(conn) if conn.phase == Phase::Open => {
                let header = Header { kind: Kind::Sent, flags: 0, aux: outcome.as_u16(), id, peer, stamp };
                self.links.reply(origin.conn.slot, |out| encode(out, &header, &[]));
            }
            _ => self.links.stats.sent_to_gone.add(1),
        }
    }

    /// Records from another shard, which took them in during that life of the node. Another life serves nothing of it: the shard may have been paused in between,
    /// and others have told the senders that it failed.
    pub(crate) fn take_batch(&mut self, from_shard: u16, life: u64, bytes: &[u8]) {
        let serving = self.serving;
        self.serving &= life == self.life;
        for record in Records(bytes) {
            match record {
                Record::Message { origin, from, to, id, acked, payload } => {
                    let origin = Origin::own(from_shard, origin);
                    self.arrive(&Routed { origin, from, to, id, acked, payload }, Path::OWN);
                }
                Record::Fate { origin, id, peer, outcome, stamp } => {
                    self.tell_fate(Origin::own(self.shard, origin), id, peer, outcome, stamp);
                }
                Record::Far { from, record } => self.far_here(from, record),
            }
        }
        self.serving = serving;
    }

    /// Sends everything that waits for the user's ACK to one of its sessions again.
    pub(crate) fn redeliver_to(&mut self, user: u64, slot: u32) {
        let tick = self.links.tick;
        for message in self.inboxes.of(user) {
            let header = again(message, user);
            let queued = match self.directory.remotes.get(slot) {
                None => self.links.queue_message(slot, &header, &message.payload),
                Some(remote) => far::queue_copy(&mut self.mesh, &mut self.links, remote, &header, &message.payload),
            };
            if queued == Queued::Yes {
                self.links.stats.redeliveries.add(1);
                message.sent_tick = tick;
            }
        }
    }

    /// Sends again what has waited too long for the user's ACK, and gives up what was sent again too often. A node without a lease sends
    /// nothing again: the user may have another home by now.
    pub(crate) fn redeliver_due(&mut self, user: u64) {
        if !self.serving {
            return;
        }
        let tick = self.links.tick;
        let limits = &self.links.limits;
        let Some(sent_before) = tick.checked_sub(ticks(limits.redeliver_ms)) else { return };
        for message in self.inboxes.take_exhausted(user, limits.redeliver_attempts_max, sent_before) {
            self.links.stats.out_offline_refused.add(1);
            self.tell_fate(message.origin, message.id, user, Outcome::OfflineNotStored, 0);
        }
        for message in self.inboxes.of(user) {
            if message.sent_tick > sent_before {
                continue;
            }
            message.attempts += 1;
            message.sent_tick = tick;
            let header = again(message, user);
            for session in self.presence.sessions(user) {
                let slot = session.slot;
                let (directory, slots) = (&self.directory, &self.links.slots);
                if message.from == user && far::may_be_origin(directory, slots, self.shard, slot, &message.origin) {
                    continue;
                }
                let queued = match self.directory.remotes.get(slot) {
                    None => self.links.queue_message(slot, &header, &message.payload),
                    Some(remote) => far::queue_copy(&mut self.mesh, &mut self.links, remote, &header, &message.payload),
                };
                if queued == Queued::Yes {
                    self.links.stats.redeliveries.add(1);
                }
            }
        }
    }
}

fn again(message: &Unacked, user: u64) -> Header {
    let own = if message.from == user { flags::SELF } else { 0 };
    let flags = flags::ACK | flags::AGAIN | own;
    Header { kind: Kind::Deliver, flags, aux: 0, id: message.id, peer: message.from, stamp: message.stamp }
}
