//! What goes to other nodes and comes from them: the way of a message across the mesh, its copies to sessions there,
//! and its fate back.
//!
//! A message crosses each node at most once on its way in: from the sender's node to the recipient's home, and on to
//! another node only if views differ, and over [`HOPS_MAX`] links at most. To where it came from or began it goes back
//! only when that node has said that it has the view in which it is the home: there it goes to the shard that waits for
//! its answer first, so that nothing is delivered whose sender has been told that it failed. What must not go on waits
//! ([`Shard::park`]) until the views agree, for [`PARK_MS`], or for as long as others are slow to take a new view.

use super::carry::hand_on;
use super::links::{Links, Queued, ticks};
use super::portal::PORTAL_SLOT;
use super::route::{Routed, delivery, sender};
use super::shard::Shard;
use crate::conn::{Conn, Phase, Slots};
use crate::directory::{Away, Directory, Held, Home, Member, RemoteSession, Transferred, is_remote};
use crate::groups::group_home;
use crate::head::HEADED;
use crate::ids::NodeKey;
use crate::ids::Origin;
use crate::io::ConnId;
use crate::mailbox::{Outgoing, Record};
use crate::mesh::peers::{FarError, GivenBack, Mesh, Placed};
use crate::mesh::wire::{
    Address, Deliver, Entry, Message, PUSH_SINCE, Record as FarRecord, Seat, flags as far_flags, shards_of,
};
use crate::mesh_news::MeshNews;
use trunkline_proto::{Code, Header, Outcome, flags};
use trunkline_router_core::hash::home_shard;
use trunkline_router_core::presence::Presence;

/// Links a message may cross.
pub(crate) const HOPS_MAX: u8 = 3;
/// How long a message waits for views to agree while no change of the view is under way here.
pub(crate) const PARK_MS: u64 = 2_000;
/// Slots are below 2^20, so a connection's number has room for its shard; see
/// [`HandoverToken`](crate::io::HandoverToken).
pub(super) const SLOT_BITS: u32 = 20;
/// Shards are below 2^10, so a number has room for one bit more: it names no connection but the portal of its shard.
const PORTAL_BIT: u32 = 1 << 30;

/// An ACK that a guest's node has sent on to the user's home.
#[derive(Clone, Copy, Debug)]
struct Ack {
    user: u64,
    id: u64,
    peer: u64,
    stamp: u64,
    session: u64,
    cumulative: bool,
}

/// A message at the home of its recipient, or on its way there: where it was before.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Path {
    /// The node it came from.
    pub(crate) via: NodeKey,
    /// Links it has crossed.
    pub(crate) hops: u8,
}

impl Path {
    /// It has crossed none.
    pub(crate) const OWN: Path = Path { via: NodeKey::OWN, hops: 0 };
}

impl Shard {
    /// A message that has come back to this node, see [`Shard::comes_back`], goes to another one again, which owes the
    /// answer from now on. Where another shard waits for that, its deadline does for both.
    pub(super) fn goes_again(&mut self, origin: Origin, id: u64, to: u64, node: NodeKey) {
        if origin.node == self.own_key() && origin.holder == self.shard {
            let Origin { shard, conn, .. } = origin;
            self.directory.sent_away.hand_to(Away { shard, conn, id, to }, node, self.links.tick);
        }
    }

    /// Whose home a user is.
    #[inline]
    pub(crate) fn home(&self, user: u64) -> Home {
        match self.directory.home(user) {
            Some(home) => home,
            None if self.alone => Home::Here,
            None => Home::Nowhere,
        }
    }

    /// This node, as others know it.
    pub(crate) fn own_key(&self) -> NodeKey {
        self.directory.routing.as_ref().map_or(NodeKey::OWN, |routing| routing.own())
    }

    /// An origin as other nodes are told it.
    pub(crate) fn address(&self, origin: Origin) -> Address {
        let node = if origin.node == NodeKey::OWN { self.own_key() } else { origin.node };
        let slot = match origin.conn.slot {
            PORTAL_SLOT => PORTAL_BIT,
            slot => slot,
        };
        let slot = slot | u32::from(origin.shard) << SLOT_BITS;
        let conn = ConnId { slot, generation: origin.conn.generation };
        Address { node: node.0, seat: Seat { shard: origin.holder, conn } }
    }

    /// An origin as it was told.
    pub(super) fn origin_at(address: Address) -> Origin {
        let Seat { shard: holder, conn } = address.seat;
        let is_portal = conn.slot & PORTAL_BIT != 0;
        let slot = if is_portal { PORTAL_SLOT } else { conn.slot & ((1 << SLOT_BITS) - 1) };
        let shard = ((conn.slot & !PORTAL_BIT) >> SLOT_BITS) as u16;
        Origin { node: NodeKey(address.node), shard, holder, conn: ConnId { slot, generation: conn.generation } }
    }

    /// Whether another node knows of messages with a head, and of pushes to all sessions.
    pub(super) fn speaks_pushes(&self, node: NodeKey) -> bool {
        let member = self.directory.routing.as_ref().and_then(|routing| routing.member(node));
        member.is_some_and(|member| member.protocol >= PUSH_SINCE)
    }

    /// Queues a record for a shard of another node.
    pub(crate) fn send_far(&mut self, node: NodeKey, shard: u16, record: &FarRecord<'_>) -> Result<(), FarError> {
        queue(&mut self.mesh, &mut self.links, &mut self.outgoing, node, shard, record)
    }

    /// Sends a message of this node towards the home of its recipient. With ACK the answer is owed by that node from
    /// now on.
    pub(crate) fn send_away(&mut self, message: &Routed<'_>, path: Path, node: NodeKey, shard: u16) {
        let Routed { from, to, id, acked, payload, .. } = *message;
        let mut origin = message.origin;
        if origin.node == NodeKey::OWN {
            origin.holder = self.shard;
        }
        if message.extra & HEADED != 0 && !self.speaks_pushes(node) {
            return self.refuse(message);
        }
        let owes = acked && origin.node == NodeKey::OWN;
        if owes && !self.directory.sent_away.has_room() {
            self.links.stats.limit_sent_away.add(1);
            return self.refuse(message);
        }
        let flags = flags_of(acked, message.extra);
        let origin = self.address(origin);
        let record = Message { origin, from, to, id, hops: path.hops, flags, payload };
        if queue(&mut self.mesh, &mut self.links, &mut self.outgoing, node, shard, &record).is_err() {
            return self.refuse(message);
        }
        self.links.stats.messages_away.add(1);
        if owes {
            let Origin { shard, conn, .. } = message.origin;
            self.directory.sent_away.add(Away { shard, conn, id, to }, node, self.links.tick);
        } else if acked {
            self.goes_again(message.origin, id, to, node);
        }
    }

    /// A message that cannot go on: SENT 3, or dropped and counted.
    pub(crate) fn refuse(&mut self, message: &Routed<'_>) {
        let Routed { origin, to, id, acked, .. } = *message;
        if acked {
            self.links.stats.out_overloaded.add(1);
            self.tell_fate(origin, id, to, Outcome::Overloaded, 0);
        } else {
            self.links.stats.out_unrouted.add(1);
        }
    }

    /// A message for a user whose shard, if the user's home is this node, is this one.
    pub(crate) fn arrive(&mut self, message: &Routed<'_>, path: Path) {
        if !self.serving || self.directory.departed.has(message.origin.node) {
            self.links.stats.fenced.add(1);
            return self.refuse(message);
        }
        if self.alone {
            return self.deliver(message);
        }
        let waits = self.directory.parked.holds(message.to);
        match self.home(message.to) {
            Home::Here if waits || self.is_unsettled(message.to) => self.park(message, path, None),
            Home::Here => self.deliver(message),
            Home::There { .. } if waits => self.park(message, path, None),
            Home::There { node, shard } => {
                if !self.go_on(message, path, node, shard) {
                    self.park(message, path, None);
                }
            }
            Home::Nowhere => self.refuse(message),
        }
    }

    /// Sends a message on to another node. False if it must not go there.
    fn go_on(&mut self, message: &Routed<'_>, path: Path, node: NodeKey, shard: u16) -> bool {
        // That node may not know yet that it is the home: it would send the message here again.
        let was_there = node == path.via || node == message.origin.node;
        if path.hops >= HOPS_MAX || (was_there && !self.directory.settling.has_view(node, shard)) {
            return false;
        }
        self.links.stats.messages_forwarded.add(u64::from(path.hops > 0));
        self.send_away(message, path, node, shard);
        true
    }

    /// Whether this node became the home of a user with the present view or one shortly before, and not all that
    /// matters to the user has been told since.
    pub(crate) fn is_unsettled(&self, user: u64) -> bool {
        self.directory.is_unsettled(user)
    }

    /// Lets a message wait until it is known where its recipient is.
    pub(super) fn park(&mut self, message: &Routed<'_>, path: Path, transfer: Option<Transferred>) {
        let Routed { origin, from, to, id, acked, extra, payload } = *message;
        let deadline_tick = self.links.tick + ticks(PARK_MS);
        let held = Held {
            origin,
            from,
            id,
            acked,
            extra,
            hops: path.hops,
            via: path.via,
            deadline_tick,
            payload: payload.into(),
            transfer,
        };
        if self.directory.parked.park(to, held, payload.len()).is_err() {
            self.links.stats.limit_parked.add(1);
            self.refuse(message);
        }
    }

    /// An ACK of a message that waits here, because its former home has taken this node for its home before this node
    /// did: there is nothing left to wait for. With a store the message waits for the devices that have not got it.
    pub(super) fn settles_parked(&mut self, user: u64, stamp: u64) -> bool {
        let is_it = |held: &Held| held.transfer.is_some_and(|transfer| transfer.stamp == stamp);
        if self.alone || self.desk.is_some() || !self.directory.parked.any(user, is_it) {
            return false;
        }
        for held in self.directory.parked.take(user) {
            if is_it(&held) {
                self.links.stats.out_acked.add(1);
                self.tell_fate(held.origin, held.id, user, Outcome::Delivered, stamp);
                continue;
            }
            let bytes = held.payload.len();
            if let Err(held) = self.directory.parked.park(user, held, bytes) {
                let Held { origin, from, id, acked, extra, ref payload, .. } = held;
                self.links.stats.limit_parked.add(1);
                self.refuse(&Routed { origin, from, to: user, id, acked, extra, payload });
            }
        }
        true
    }

    /// Lets every message go that waits no longer: its recipient's sessions are known, its way is open, or its time is
    /// over.
    pub(crate) fn release_parked(&mut self) {
        let tick = self.links.tick;
        for user in self.directory.parked.users() {
            let home = self.home(user);
            let unsettled = home == Home::Here && self.is_unsettled(user);
            if unsettled && !self.directory.parked.any(user, |held| held.transfer.is_some()) {
                continue;
            }
            for held in self.directory.parked.take(user) {
                let Held { origin, from, id, acked, extra, hops, via, deadline_tick, ref payload, transfer } = held;
                let message = Routed { origin, from, to: user, id, acked, extra, payload };
                let path = Path { via, hops };
                // Those behind one that still waits wait too.
                let waits = self.directory.parked.holds(user);
                let gone = match (home, transfer) {
                    // It has its place in the inbox, where it waits for the sessions to be known.
                    (Home::Here, Some(_)) => true,
                    (Home::Here, None) if unsettled => false,
                    (Home::Here, None) => {
                        self.deliver(&message);
                        true
                    }
                    (Home::There { node, shard }, Some(_)) => {
                        node != via || self.directory.settling.has_view(node, shard)
                    }
                    (Home::There { node, shard }, None) => !waits && self.go_on(&message, path, node, shard),
                    (Home::Nowhere, _) => false,
                };
                if let Some(Transferred { stamp, attempts }) = transfer.filter(|_| gone) {
                    self.take_transfer(&message, via, stamp, attempts, false);
                }
                if gone {
                    continue;
                }
                // While others are slow to take a new view their word is waited for, which has a deadline of its own.
                if deadline_tick <= tick && self.directory.settling.is_settled() {
                    self.links.stats.parked_expired.add(1);
                    self.refuse(&message);
                    continue;
                }
                let bytes = payload.len();
                if let Err(held) = self.directory.parked.park(user, held, bytes) {
                    self.refuse(&Routed { origin, from, to: user, id, acked, extra: 0, payload: &held.payload });
                }
            }
        }
    }

    /// A message from another node, come over a link of this shard: for the home shard of its recipient.
    #[inline]
    pub(crate) fn message_from(&mut self, from: NodeKey, message: &Message<'_>) {
        if self.shard_for(message.origin, message.flags & far_flags::ACK != 0, message.to) == self.shard {
            return self.far_message(from, message);
        }
        self.far_record(from, &message.record());
    }

    /// The shard that a message from another node goes to: the home shard of its recipient. One that began at this node
    /// and comes back goes to the shard that waits for its answer first.
    #[inline]
    fn shard_for(&self, origin: Address, owed: bool, to: u64) -> u16 {
        if owed && origin.node == self.own_key().0 { origin.seat.shard } else { self.shard_of(to) }
    }

    /// A message with ACK that began at this node, and that another one owed an answer for, has come back: its
    /// recipient belongs here by now. From here on this node owes the answer, whatever becomes of the other one.
    /// Returns whether it goes on at this shard: not if that is another one's, nor if its sender has been told
    /// meanwhile that it failed.
    #[cold]
    fn comes_back(&mut self, node: NodeKey, away: Away, origin: Origin, record: &FarRecord<'_>) -> bool {
        // The shard that waits for the answer has sent it here.
        if origin.holder != self.shard {
            return true;
        }
        if !self.directory.sent_away.hand_to(away, origin.node, self.links.tick) {
            self.links.stats.came_back_late.add(1);
            return false;
        }
        self.links.stats.came_back.add(1);
        let home = self.shard_of(away.to);
        if home == self.shard {
            return true;
        }
        let far = Record::Far { from: node, record: *record };
        if self.outgoing.has_room(home, far.encoded_len()) {
            self.outgoing.put(home, &far);
        } else {
            self.links.stats.limit_mailbox.add(1);
            self.lost_here(*record);
        }
        false
    }

    /// A copy of a message from its recipient's home, come over a link of this shard: for the shard with the session.
    #[inline]
    pub(crate) fn copy_from(&mut self, from: NodeKey, copy: &Deliver<'_>) {
        if copy.seat.shard == self.shard {
            return self.far_copy(from, copy);
        }
        self.far_record(from, &copy.record());
    }

    /// A record from another node, come over a link of this shard. It is for the shard it names, or for the home shard
    /// of its user.
    pub(crate) fn far_record(&mut self, from: NodeKey, record: &FarRecord<'_>) {
        let record = *record;
        let shard = match record {
            FarRecord::Message { origin, to, flags, .. } => self.shard_for(origin, flags & far_flags::ACK != 0, to),
            FarRecord::Transfer { origin, user, flags, .. } => {
                self.shard_for(origin, flags & far_flags::TOLD == 0, user)
            }
            FarRecord::Ack { user, .. }
            | FarRecord::Register { user, .. }
            | FarRecord::Unregister { user, .. }
            | FarRecord::Gone { user, .. }
            | FarRecord::Held { user, .. } => self.shard_of(user),
            FarRecord::Fate { origin, .. } => origin.seat.shard,
            FarRecord::Deliver { seat, .. }
            | FarRecord::Registered { seat, .. }
            | FarRecord::RegisterRefused { seat, .. }
            | FarRecord::BacklogOver { seat, .. }
            | FarRecord::Kick { seat, .. } => seat.shard,
            FarRecord::KickUser { user, .. } => self.shard_of(user),
            FarRecord::KickDone { shard, .. } => shard,
            FarRecord::Settled { to, .. } => to,
            FarRecord::GroupSend { group, .. }
            | FarRecord::GroupCopy { group, .. }
            | FarRecord::GroupWatch { group, .. }
            | FarRecord::GroupHead { group, .. }
            | FarRecord::GroupAsk { group, .. }
            | FarRecord::GroupMember { group, .. } => group_home(group, self.shards),
            FarRecord::GroupAnswer { shard, .. } => shard,
            FarRecord::GroupRefused { origin, .. } => origin.seat.shard,
            FarRecord::UserWatch { user, .. } => self.shard_of(user),
            FarRecord::UserTold { to, .. } | FarRecord::Call { to, .. } | FarRecord::CallCancel { to, .. } => to,
            FarRecord::Answer { seat, .. } => seat.shard,
            FarRecord::BroadcastBegin { to, .. }
            | FarRecord::BroadcastTold { to, .. }
            | FarRecord::BroadcastStop { to, .. } => to,
            // Whichever shard it comes to tells the control thread, or the other shards.
            FarRecord::Memo { .. } | FarRecord::SettledShards { .. } | FarRecord::ServiceHere { .. } => self.shard,
            FarRecord::SettledSet { .. } => {
                // Behind what has come over the same link before it.
                for to in (0..self.shards).filter(|to| *to != self.shard) {
                    self.outgoing.put(to, &Record::Far { from, record });
                }
                self.shard
            }
        };
        if shard == self.shard {
            return self.far_here(from, record);
        }
        if shard >= self.shards {
            return self.links.stats.mesh_misrouted.add(1);
        }
        // An answer to a call answers a record that was let in.
        let is_control = record.is_control() || matches!(record, FarRecord::Answer { .. });
        let record = Record::Far { from, record };
        if is_control || self.outgoing.has_room(shard, record.encoded_len()) {
            return self.outgoing.put(shard, &record);
        }
        self.links.stats.limit_mailbox.add(1);
        match record {
            Record::Far { record: FarRecord::Call { seat, call, .. }, .. } => {
                self.refuse_far_call(from, seat, call.id, Code::Overloaded);
            }
            Record::Far { from: node, record: FarRecord::BroadcastBegin { from, token, .. } } => {
                self.refuse_walk(node, from, token);
            }
            Record::Far { record, .. } => self.lost_here(record),
            _ => {}
        }
    }

    fn shard_of(&self, user: u64) -> u16 {
        home_shard(user, u32::from(self.shards)) as u16
    }

    /// A record with a message that finds no room on this node.
    pub(super) fn lost_here(&mut self, record: FarRecord<'_>) {
        match record {
            FarRecord::Message { origin, from, to, id, flags, payload, .. } => {
                let acked = flags & far_flags::ACK != 0;
                self.refuse(&Routed { origin: Self::origin_at(origin), from, to, id, acked, extra: 0, payload });
            }
            FarRecord::Transfer { user, origin, from, id, payload, .. } => {
                let origin = Self::origin_at(origin);
                self.refuse(&Routed { origin, from, to: user, id, acked: true, extra: 0, payload });
            }
            record if record.is_of_room() => self.room_record_lost(&record),
            // The home sends it again if it asked for an ACK.
            _ => self.links.stats.copies_dropped.add(1),
        }
    }

    /// A message from another node for a user of this shard.
    #[inline]
    fn far_message(&mut self, node: NodeKey, message: &Message<'_>) {
        let Message { origin, from, to, id, hops, flags, payload } = *message;
        let acked = flags & far_flags::ACK != 0;
        let extra = extra_of(flags);
        let origin = Self::origin_at(origin);
        if acked && origin.node == self.own_key() {
            let away = Away { shard: origin.shard, conn: origin.conn, id, to };
            if !self.comes_back(node, away, origin, &message.record()) {
                return;
            }
        }
        let message = Routed { origin, from, to, id, acked, extra, payload };
        self.arrive(&message, Path { via: node, hops: hops.saturating_add(1) });
    }

    /// A copy of a message for a session of this shard.
    #[inline]
    fn far_copy(&mut self, node: NodeKey, copy: &Deliver<'_>) {
        let Deliver { seat, user, session, id, from, stamp, flags, payload } = *copy;
        if !self.serving {
            // It waited here while this node was cut off or paused: its sender may have been told that it failed.
            self.links.stats.fenced.add(1);
            return self.links.stats.copies_dropped.add(1);
        }
        match self.links.slots.get(seat.conn) {
            Some(conn) if conn.phase == Phase::Open && conn.user == user => {
                let header = delivery(flags, id, from, stamp);
                match self.links.queue_message(seat.conn.slot, &header, payload) {
                    Queued::Yes => self.links.stats.deliveries.add(1),
                    Queued::OutboxFull => {
                        self.links.stats.copies_dropped.add(1);
                        if self.desk.is_some() {
                            self.answer_far(node, user, &FarRecord::Held { user, session, stamp });
                        }
                    }
                }
            }
            _ => {
                self.links.stats.deliver_to_gone.add(1);
                self.answer_far(node, user, &FarRecord::Gone { user, session });
            }
        }
    }

    /// A record from another node for this shard.
    pub(crate) fn far_here(&mut self, from: NodeKey, record: FarRecord<'_>) {
        let node = from;
        match record {
            FarRecord::Message { origin, from, to, id, hops, flags, payload } => {
                self.far_message(node, &Message { origin, from, to, id, hops, flags, payload });
            }
            FarRecord::Fate { origin, id, peer, outcome, stamp } => match Outcome::from_u16(outcome) {
                Some(outcome) => self.settle_away(Self::origin_at(origin), id, peer, outcome, stamp),
                None => self.links.stats.mesh_misrouted.add(1),
            },
            FarRecord::Deliver { seat, user, session, id, from, stamp, flags, payload } => {
                self.far_copy(node, &Deliver { seat, user, session, id, from, stamp, flags, payload });
            }
            FarRecord::Ack { user, id, peer, stamp, session, hops, cumulative } => {
                self.far_ack(node, Ack { user, id, peer, stamp, session, cumulative }, hops);
            }
            FarRecord::Held { user, session, stamp } => self.held_there(user, session, stamp),
            FarRecord::BacklogOver { seat, user, next_stamp, truncated, floor, last } => {
                let known = self.links.slots.get(seat.conn);
                if known.is_some_and(|conn| conn.phase == Phase::Open && conn.user == user) {
                    self.tell_backlog_over(seat.conn.slot, next_stamp, truncated, floor, last);
                }
            }
            FarRecord::Register { user, seat, session, since_s, device, class, wish, .. } => {
                let at = RemoteSession { node, shard: seat.shard, conn: seat.conn, user, session, wish, told: 0 };
                self.register_remote(at, since_s, device, class);
            }
            FarRecord::Registered { seat, user, session, since_s, pending } => {
                self.registered(node, seat.conn, user, session, since_s, pending);
            }
            FarRecord::RegisterRefused { seat, user, code } => self.register_refused(node, seat.conn, user, code),
            FarRecord::Unregister { user, session, .. } | FarRecord::Gone { user, session } => {
                self.forget_remote(node, user, session);
            }
            FarRecord::Kick { seat, user, session, code } => self.kicked_by_home(seat.conn, user, session, code),
            FarRecord::KickUser { user, shard, ask, device } => self.kick_asked(node, shard, ask, user, device),
            FarRecord::KickDone { ask, ended, left, status, .. } => self.kick_answered(ask, ended, left, status),
            FarRecord::Settled { from, digest, .. } => self.settled_there(node, from, digest),
            FarRecord::SettledShards { from, digest, shards } => {
                for to in shards_of(shards) {
                    match to {
                        to if to == self.shard => self.settled_there(node, from, digest),
                        // Behind what has come over the same link before it.
                        to if to < self.shards => {
                            let record = FarRecord::Settled { from, to, digest };
                            self.outgoing.put(to, &Record::Far { from: node, record });
                        }
                        _ => self.links.stats.mesh_misrouted.add(1),
                    }
                }
            }
            // Of all for this shard, whether it has come over a link of its own or of another.
            FarRecord::SettledSet { digest, from } => {
                shards_of(from).for_each(|from| self.settled_there(node, from, digest));
            }
            FarRecord::Transfer { user, stamp, origin, from, id, attempts, flags, payload } => {
                let (origin, extra) = (Self::origin_at(origin), extra_of(flags));
                if flags & far_flags::TOLD == 0 && origin.node == self.own_key() {
                    let away = Away { shard: origin.shard, conn: origin.conn, id, to: user };
                    if !self.comes_back(node, away, origin, &record) {
                        return;
                    }
                }
                let message = Routed { origin, from, to: user, id, acked: true, extra, payload };
                self.take_transfer(&message, node, stamp, attempts, flags & far_flags::TOLD != 0);
            }
            FarRecord::Memo { body } => self.take_memo(node, body),
            FarRecord::GroupSend { .. }
            | FarRecord::GroupCopy { .. }
            | FarRecord::GroupWatch { .. }
            | FarRecord::GroupHead { .. }
            | FarRecord::GroupRefused { .. } => self.room_record(node, &record),
            FarRecord::UserWatch { user, from, bits } => self.watch_asked_far(node, user, from, bits),
            FarRecord::UserTold { user, status, since_s, classes, .. } => {
                self.watch_told_far(node, user, status, since_s, classes);
            }
            FarRecord::GroupAsk { .. } | FarRecord::GroupAnswer { .. } | FarRecord::GroupMember { .. } => {
                self.shared_group_record(node, &record);
            }
            FarRecord::Call { .. }
            | FarRecord::Answer { .. }
            | FarRecord::CallCancel { .. }
            | FarRecord::ServiceHere { .. } => self.call_record(node, &record),
            FarRecord::BroadcastBegin { .. } | FarRecord::BroadcastTold { .. } | FarRecord::BroadcastStop { .. } => {
                self.broadcast_record(node, &record);
            }
        }
    }

    /// A shard of another node has told of all its sessions for the view of that digest.
    fn settled_there(&mut self, node: NodeKey, from: u16, digest: u64) {
        self.directory.said(node, from, digest);
    }

    /// A memo of another node's control thread, for this node's.
    fn take_memo(&mut self, node: NodeKey, body: &[u8]) {
        let member = self.directory.routing.as_ref().and_then(|routing| routing.member(node));
        let taken = match (member, &self.cluster) {
            (Some(Member { name, life, .. }), Some(cluster)) => {
                let memo = MeshNews::Memo { node: name.clone().into(), life: *life, body: body.into() };
                let held = cluster.state.hold_memo(body.len());
                let sent = held && cluster.news.tell(memo);
                if held && !sent {
                    cluster.state.release_memo(body.len());
                }
                sent
            }
            _ => false,
        };
        self.links.stats.memos_dropped.add(u64::from(!taken));
    }

    /// Sends a memo to a node, if there is a connection to it: one that comes late says what was.
    pub(crate) fn send_memo(&mut self, node: &str, life: u64, body: &[u8]) {
        let routing = self.directory.routing.as_ref();
        let member = routing.and_then(|routing| routing.others().find(|member| &*member.name == node));
        let key = member.filter(|member| member.life == life).map(|member| member.key);
        let to = key.and_then(|key| Some((key, self.mesh.as_ref()?.shard_in_touch(key)?)));
        let sent = to.is_some_and(|(key, shard)| self.send_far(key, shard, &FarRecord::Memo { body }).is_ok());
        self.links.stats.memos_dropped.add(u64::from(!sent));
    }

    /// Answers another node about a user. An answer that finds no room is counted; the other side asks or is told
    /// again.
    pub(crate) fn answer_far(&mut self, node: NodeKey, user: u64, record: &FarRecord<'_>) {
        // Where the user's shard is over there only the other node knows for sure; any shard of it passes the record
        // on.
        let shards =
            self.directory.routing.as_ref().and_then(|routing| routing.member(node)).map_or(1, |node| node.shards);
        let shard = home_shard(user, shards.max(1)) as u16;
        if self.send_far(node, shard, record).is_err() {
            self.links.stats.mesh_answers_lost.add(1);
        }
    }

    /// The answer for a message of this node that was sent away: told once, whatever comes later.
    pub(crate) fn settle_away(&mut self, origin: Origin, id: u64, to: u64, outcome: Outcome, stamp: u64) {
        let Origin { shard, conn, .. } = origin;
        if self.directory.sent_away.answered(Away { shard, conn, id, to }) {
            return self.tell_fate(Origin::own(shard, conn), id, to, outcome, stamp);
        }
        self.links.stats.fates_late.add(1);
    }

    /// Other nodes will not answer for these any more.
    pub(crate) fn give_up_away(&mut self, lost: Vec<Away>) {
        for Away { shard, conn, id, to } in lost {
            self.links.stats.away_given_up.add(1);
            self.tell_fate(Origin::own(shard, conn), id, to, Outcome::Overloaded, 0);
        }
    }

    /// The fate of a message for its sender on another node, or for one of this node that sent it away.
    pub(crate) fn tell_fate_away(&mut self, origin: Origin, id: u64, peer: u64, outcome: Outcome, stamp: u64) {
        if origin.node == self.own_key() {
            if origin.holder == self.shard {
                return self.settle_away(origin, id, peer, outcome, stamp);
            }
            let from = origin.node;
            let outcome = outcome.as_u16();
            let record = FarRecord::Fate { origin: self.address(origin), id, peer, outcome, stamp };
            return self.outgoing.put(origin.holder, &Record::Far { from, record });
        }
        let record = FarRecord::Fate { origin: self.address(origin), id, peer, outcome: outcome.as_u16(), stamp };
        if self.send_far(origin.node, origin.holder, &record).is_err() {
            self.links.stats.sent_to_gone.add(1);
        }
    }

    /// A guest's ACK, at its home; or where that has moved from.
    fn far_ack(&mut self, node: NodeKey, ack: Ack, hops: u8) {
        let Ack { user, id, peer, stamp, session, cumulative } = ack;
        if self.settles_parked(user, stamp) {
            return;
        }
        match self.home(user) {
            Home::There { node: home, shard } if home != node && hops < HOPS_MAX => {
                let record = FarRecord::Ack { user, id, peer, stamp, session, hops: hops + 1, cumulative };
                if self.send_far(home, shard, &record).is_err() {
                    self.links.stats.mesh_answers_lost.add(1);
                }
            }
            _ => self.acknowledged_by(user, session, stamp, cumulative),
        }
    }

    /// A record that was queued for a node and will not be confirmed.
    pub(crate) fn given_back(&mut self, back: &GivenBack) {
        let Ok(Some(record)) = FarRecord::decode(&back.bytes) else { return };
        match record {
            // Should it have arrived, its fate finds nobody who waits for it. A message without ACK that may have
            // arrived is not counted again.
            FarRecord::Message { flags, .. } if flags & far_flags::ACK == 0 && back.maybe_received => {}
            FarRecord::Message { .. } => self.lost_here(record),
            FarRecord::Deliver { user, session, stamp, .. } => {
                self.links.stats.copies_dropped.add(1);
                self.held_there(user, session, stamp);
            }
            FarRecord::Transfer { user, stamp, origin, from, id, attempts, flags, payload } => {
                // The other side may have stored it.
                let retry = if back.maybe_received { flags::RETRY } else { 0 };
                let (origin, extra) = (Self::origin_at(origin), extra_of(flags) | retry);
                if flags & far_flags::TOLD == 0 && origin.node == self.own_key() {
                    let away = Away { shard: origin.shard, conn: origin.conn, id, to: user };
                    if !self.comes_back(back.node, away, origin, &record) {
                        return;
                    }
                }
                let message = Routed { origin, from, to: user, id, acked: true, extra, payload };
                self.take_transfer(&message, NodeKey::OWN, stamp, attempts, flags & far_flags::TOLD != 0);
            }
            // The node lives on with a new stream: answers are told again. All that it has to know of sessions is too,
            // by a walk.
            FarRecord::Fate { origin, .. } => {
                if self.send_far(back.node, origin.seat.shard, &record).is_err() {
                    self.links.stats.sent_to_gone.add(1);
                }
            }
            FarRecord::Ack { user, .. }
            | FarRecord::Unregister { user, .. }
            | FarRecord::Gone { user, .. }
            | FarRecord::Held { user, .. } => {
                self.answer_far(back.node, user, &record);
            }
            // From before this node was fenced: it has forgotten the session, and is asked again. Told late, it would
            // be the answer to that.
            FarRecord::Registered { user, session, .. }
                if !self.presence.sessions(user).iter().any(|entry| entry.session == session) => {}
            FarRecord::Registered { seat, .. }
            | FarRecord::RegisterRefused { seat, .. }
            | FarRecord::BacklogOver { seat, .. }
            | FarRecord::Kick { seat, .. } => {
                if self.send_far(back.node, seat.shard, &record).is_err() {
                    self.links.stats.mesh_answers_lost.add(1);
                }
            }
            FarRecord::Register { user, seat, session, .. } => {
                let is_home = matches!(self.home(user), Home::There { node, .. } if node == back.node);
                let waits = session == 0 && self.is_asked(back.node, seat.conn, user);
                // It may have ended while this waited to be given back.
                let open = |conn: &mut Conn| conn.user == user && conn.phase == Phase::Open;
                let is_here = self.links.slots.get(seat.conn).is_some_and(open);
                // Who is not the home any more must not learn of it now: behind what it was told last, it would keep
                // the session.
                if waits || (session != 0 && is_home && is_here) {
                    self.answer_far(back.node, user, &record);
                }
            }
            FarRecord::Settled { digest, .. }
            | FarRecord::SettledShards { digest, .. }
            | FarRecord::SettledSet { digest, .. } => {
                let is_present = self.directory.routing.as_ref().is_some_and(|routing| routing.digest() == digest);
                // The node is told all again, and that it was all, when there is a link to it.
                if let Some(mesh) = self.mesh.as_mut().filter(|_| is_present) {
                    mesh.pass_over(back.node);
                }
            }
            FarRecord::GroupSend { .. }
            | FarRecord::GroupCopy { .. }
            | FarRecord::GroupWatch { .. }
            | FarRecord::GroupHead { .. }
            | FarRecord::GroupRefused { .. } => self.room_record_back(back, &record),
            FarRecord::UserWatch { user, bits, .. } => self.watch_back(back.node, user, bits),
            FarRecord::UserTold { user, to, .. } => self.told_back(back.node, user, to),
            FarRecord::GroupAsk { .. } | FarRecord::GroupAnswer { .. } | FarRecord::GroupMember { .. } => {
                self.shared_group_record_back(back, &record);
            }
            FarRecord::Call { .. }
            | FarRecord::Answer { .. }
            | FarRecord::CallCancel { .. }
            | FarRecord::ServiceHere { .. } => self.call_record_back(back, &record),
            FarRecord::BroadcastBegin { .. } | FarRecord::BroadcastTold { .. } | FarRecord::BroadcastStop { .. } => {
                self.broadcast_record_back(back.node, &record);
            }
            // Who asked hears in time that there was no answer.
            FarRecord::KickUser { .. } | FarRecord::KickDone { .. } | FarRecord::Memo { .. } => {}
        }
    }
}

/// Whether the session in a slot of presence may be where a message of its own user came from.
///
/// A node that was fenced comes back in a new life with the sessions it had: what its earlier life had sent names none
/// of them any more. Its sender has been told that it failed, so it is kept from all that may have been it.
pub(crate) fn may_be_origin(directory: &Directory, slots: &Slots, own_shard: u16, slot: u32, origin: &Origin) -> bool {
    let Origin { node, shard, conn, .. } = *origin;
    let routing = directory.routing.as_ref();
    let own = node == NodeKey::OWN || routing.is_some_and(|routing| routing.own() == node);
    let lost = !own && routing.is_none_or(|routing| routing.member(node).is_none());
    match directory.remotes.get(slot) {
        Some(remote) => lost || (remote.node, remote.shard, remote.conn) == (node, shard, conn),
        None => (own || lost) && shard == own_shard && conn == slots.id(slot),
    }
}

/// Queues a record for a shard of another node, and its connection to be flushed; or hands it to the shard that has the
/// link.
pub(crate) fn queue(
    mesh: &mut Option<Mesh>,
    links: &mut Links,
    outgoing: &mut Outgoing,
    node: NodeKey,
    shard: u16,
    record: &impl Entry,
) -> Result<(), FarError> {
    let mesh = mesh.as_mut().ok_or(FarError::Unknown)?;
    let result = match mesh.queue(node, shard, record) {
        Ok(Placed::Carried(carrier)) => {
            let record = record.record();
            match hand_on(links, outgoing, carrier, node, &record) {
                Ok(()) => Ok(Placed::Waits),
                Err(FarError::Full) => mesh.wait_for_room(node, &record),
                Err(error) => Err(error),
            }
        }
        result => result,
    };
    match result {
        Ok(Placed::Wired(slot)) => links.mark_dirty(slot),
        Ok(Placed::Waits | Placed::Carried(_)) => {}
        Err(FarError::Full) => links.stats.limit_mesh.add(1),
        Err(FarError::Unreachable) => links.stats.mesh_unreachable.add(1),
        Err(FarError::Unknown | FarError::TooLong) => {}
    }
    result.map(drop)
}

/// The flags of a record with a message.
pub(crate) fn flags_of(acked: bool, extra: u8) -> u8 {
    let bit = |set: bool, flag: u8| if set { flag } else { 0 };
    let extra = |flag: u8| extra & flag != 0;
    bit(acked, far_flags::ACK)
        | bit(extra(flags::RETRY), far_flags::RETRY)
        | bit(extra(flags::NO_STORE), far_flags::NO_STORE)
        | bit(extra(HEADED), far_flags::HEADED)
}

/// What of the sender's flags such a record carries.
pub(crate) fn extra_of(far: u8) -> u8 {
    let bit = |is: u8, flag: u8| if far & is != 0 { flag } else { 0 };
    bit(far_flags::RETRY, flags::RETRY) | bit(far_flags::NO_STORE, flags::NO_STORE) | bit(far_flags::HEADED, HEADED)
}

/// Queues a copy of a message for a session in a slot of presence, here or on another node.
pub(crate) fn give(
    directory: &Directory,
    mesh: &mut Option<Mesh>,
    links: &mut Links,
    outgoing: &mut Outgoing,
    slot: u32,
    header: &Header,
    payload: &[u8],
) -> Queued {
    match directory.remotes.get(slot) {
        Some(remote) => queue_copy(mesh, links, outgoing, remote, header, payload),
        None if is_remote(slot) => Queued::OutboxFull,
        None => links.queue_message(slot, header, payload),
    }
}

/// Queues a copy of a message for a session on another node.
pub(crate) fn queue_copy(
    mesh: &mut Option<Mesh>,
    links: &mut Links,
    outgoing: &mut Outgoing,
    remote: &RemoteSession,
    header: &Header,
    payload: &[u8],
) -> Queued {
    let RemoteSession { node, shard, conn, user, session, .. } = *remote;
    let (Header { id, stamp, .. }, from) = (*header, sender(header));
    let flags = header.flags & (flags::ACK | flags::AGAIN | flags::REPLAY | flags::SELF);
    let record = Deliver { seat: Seat { shard, conn }, user, session, id, from, stamp, flags, payload };
    match queue(mesh, links, outgoing, node, shard, &record) {
        Ok(()) => Queued::Yes,
        Err(_) => Queued::OutboxFull,
    }
}
