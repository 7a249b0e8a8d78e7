//! A message's way: from the sender's frame to the home shard of the recipient, into the outboxes of the recipient's
//! devices, and its fate back to the sender. What of it leads to another node is in `far`.

use super::decode::Flow;
use super::far::{self, Path};
use super::links::{Queued, ticks};
use super::portal::PORTAL_SLOT;
use super::shard::Shard;
use crate::conn::{ConnFlags, Phase};
use crate::desk::Known;
use crate::directory::Home;
use crate::events::EventKind;
use crate::head::{HEADED, MessageHead, device_name, is_over};
use crate::ids::NodeKey;
use crate::ids::Origin;
use crate::inbox::{Acked, InboxFull, Keep, Seats, Unacked};
use crate::limits::SendPolicy;
use crate::mailbox::{Record, Records, Room};
use crate::mesh::wire::Record as FarRecord;
use trunkline_proto::{Code, Frame, Header, Kind, Outcome, SERVICE_USERS, encode, flags};
use trunkline_router_core::hash::home_shard;
use trunkline_router_core::presence::Presence;

/// A user who has acknowledged nothing for so long is the first to lose messages when the bound of all is reached.
const QUIET_TICKS: u32 = 10;

/// A message at the home shard of its recipient.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Routed<'a> {
    pub(crate) origin: Origin,
    pub(crate) from: u64,
    pub(crate) to: u64,
    /// The sender's id for it.
    pub(crate) id: u64,
    pub(crate) acked: bool,
    /// NO_STORE and RETRY, as far as the sender has set them, and [`HEADED`].
    pub(crate) extra: u8,
    pub(crate) payload: &'a [u8],
}

impl Shard {
    /// SEND: to this shard's own users at once, to others through the mailbox of their shard. While that has no room
    /// the sender waits.
    #[inline]
    pub(crate) fn send(&mut self, slot: u32, frame: &Frame<'_>) -> Flow {
        if frame.id == 0 || frame.peer == 0 {
            self.links.error(slot, Code::BadRequest, frame.id, frame.peer);
            return Flow::On;
        }
        if self.links.limits.send.policy == SendPolicy::Claim && !self.may_send(slot, frame.peer) {
            self.deny_send(slot, frame);
            return Flow::On;
        }
        let message = Routed {
            origin: self.origin(slot),
            from: self.links.slots.at(slot).user,
            to: frame.peer,
            id: frame.id,
            acked: frame.flags & flags::ACK != 0,
            extra: frame.flags & (flags::NO_STORE | flags::RETRY),
            payload: frame.body,
        };
        let flow = self.dispatch(&message);
        // While it waits it comes again.
        if flow != Flow::Wait && self.tells(EventKind::MessageSent) {
            self.tell_sent(message.from, message.to, message.id, message.payload.len(), message.acked);
        }
        flow
    }

    /// A message that has come in here, on its way to the home of its recipient.
    #[inline]
    pub(super) fn dispatch(&mut self, message: &Routed<'_>) -> Flow {
        if !self.serving {
            self.links.stats.messages_in.add(1);
            self.links.stats.fenced.add(1);
            self.refuse(message);
            return Flow::On;
        }
        match self.home(message.to) {
            Home::Here => return self.send_home(message),
            Home::There { node, shard } => {
                if self.waits_for_carrier(node, message.payload.len()) {
                    self.links.stats.mailbox_waits.add(1);
                    return Flow::Wait;
                }
                self.links.stats.messages_in.add(1);
                self.send_away(message, Path::OWN, node, shard);
            }
            Home::Nowhere => {
                self.links.stats.messages_in.add(1);
                self.refuse(message);
            }
        }
        Flow::On
    }

    /// To a user whose home is this node.
    #[inline]
    fn send_home(&mut self, message: &Routed<'_>) -> Flow {
        let home = home_shard(message.to, u32::from(self.shards)) as u16;
        if home == self.shard {
            self.links.stats.messages_in.add(1);
            self.arrive(message, Path::OWN);
            return Flow::On;
        }
        let Routed { origin, from, to, id, acked, extra, payload } = *message;
        let record = Record::Message { origin: origin.conn, from, to, id, acked, extra, payload };
        let room = self.outgoing.room(home, record.encoded_len(), self.links.tick);
        if room == Room::Wait {
            self.links.stats.mailbox_waits.add(1);
            return Flow::Wait;
        }
        self.links.stats.messages_in.add(1);
        if room == Room::Yes {
            self.outgoing.put(home, &record);
            return Flow::On;
        }
        self.links.stats.limit_mailbox.add(1);
        if acked {
            self.links.stats.out_overloaded.add(1);
            self.tell_fate(origin, id, to, Outcome::Overloaded, 0);
        } else {
            self.links.stats.out_mailbox_full.add(1);
        }
        Flow::On
    }

    /// Queues a message for the devices of its recipient, whose home this shard is.
    pub(crate) fn deliver(&mut self, message: &Routed<'_>) {
        if message.extra & HEADED == 0 {
            return self.deliver_to(message, MessageHead::default());
        }
        let Some((head, payload)) = MessageHead::split(message.payload) else { return self.refuse(message) };
        if is_over(head.until_s, self.now.wall_ms) {
            return self.expired_before(message);
        }
        self.deliver_to(&Routed { extra: message.extra & !HEADED, payload, ..*message }, head);
    }

    /// The same for a message whose head has been taken off.
    fn deliver_to(&mut self, message: &Routed<'_>, head: MessageHead<'_>) {
        let Routed { origin, from, to, id, acked, extra, payload } = *message;
        let MessageHead { until_s, device: only } = head;
        let only = only.map(device_name);
        if acked && self.desk.is_some() {
            let known = match extra & flags::RETRY != 0 {
                true => self.is_known(message),
                // What came for one device with RETRY is no other one's.
                false => only.is_none() && self.is_late(message),
            };
            if known || self.was_pushed(message) {
                return;
            }
            // Nothing is kept for one device alone: the log is all devices'.
            if extra & flags::NO_STORE == 0 && only.is_none() {
                return self.deliver_kept(message, until_s);
            }
        } else if self.was_pushed(message) {
            return;
        }
        if acked && !self.admit(to, payload.len()) {
            self.links.stats.out_overloaded.add(1);
            return self.tell_fate(origin, id, to, Outcome::Overloaded, 0);
        }
        let stamp = self.next_stamp();
        let to_self = from == to;
        let again = again_if(acked && extra & flags::RETRY != 0);
        let flags = if acked { flags::ACK } else { 0 } | if to_self { flags::SELF } else { 0 } | again;
        let header = delivery(flags, id, from, stamp);
        let mut devices = 0;
        let mut queued_here = None;
        let mut queued_away = false;
        let (mut owed, mut copies) = (Seats::default(), Seats::default());
        for session in self.presence.sessions(to) {
            if only.is_some_and(|only| session.device() != only) {
                continue;
            }
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
                    let queued =
                        far::queue_copy(&mut self.mesh, &mut self.links, &mut self.outgoing, remote, &header, payload);
                    queued_away |= queued == Queued::Yes;
                    queued
                }
            };
            if acked {
                let seat = self.inboxes.seat(to, session.session);
                owed.add(seat);
                if queued == Queued::Yes {
                    copies.add(seat);
                    if let Some(reader) = self.desk.as_mut().and_then(|desk| desk.reader(to, session.session)) {
                        reader.gave_unkept(stamp, false);
                    }
                } else {
                    // This device gets it when it has room, if another one has it now.
                    self.links.owe_redelivery(session.slot);
                }
            } else if queued == Queued::OutboxFull {
                self.links.stats.copies_dropped.add(1);
            }
        }
        let stats = &self.links.stats;
        match (queued_here.is_some() || queued_away, acked) {
            (true, false) => {
                stats.out_delivered.add(1);
                self.note_pushed(message, stamp, Known::Delivered);
            }
            (true, true) => {
                let sent_tick = self.links.tick;
                let payload = payload.into();
                let waiting = Unacked::waiting(stamp, from, id, origin, sent_tick, 0, payload);
                let bound = only.is_some();
                self.inboxes.push(to, Unacked { owed, queued: copies, bound, until_s, ..waiting });
                self.note_end(to, until_s);
                if let Some(desk) = &mut self.desk {
                    desk.duplicates.note_new(from, id, to, stamp, !bound && extra & flags::RETRY != 0);
                }
                self.note_pushed(message, stamp, Known::Open);
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

    /// Whether a message with ACK may wait for its recipient. At the bound of all, those for whom most waits give way.
    pub(crate) fn admit(&mut self, user: u64, payload_bytes: usize) -> bool {
        let Err(full) = self.inboxes.admit(user, payload_bytes) else { return true };
        let stats = &self.links.stats;
        match full {
            InboxFull::User => stats.limit_unacked.add(1),
            InboxFull::UserBytes => stats.limit_unacked_user_bytes.add(1),
            InboxFull::Shard => stats.limit_unacked_bytes.add(1),
        }
        let tick = self.links.tick;
        if full != InboxFull::Shard || !self.inboxes.may_make_room(tick) {
            return false;
        }
        for (hog, message) in self.inboxes.make_room(user, tick, QUIET_TICKS) {
            self.links.stats.evicted_unacked.add(1);
            if message.told {
                self.links.stats.copies_given_up.add(1);
                continue;
            }
            self.links.stats.out_overloaded.add(1);
            self.tell_fate(message.origin, message.id, hog, Outcome::Overloaded, 0);
        }
        self.inboxes.admit(user, payload_bytes).is_ok()
    }

    /// ACK: the first one of any device tells the sender; the message waits on for the devices that have not got it.
    pub(crate) fn ack(&mut self, slot: u32, frame: &Frame<'_>) {
        let user = self.links.slots.at(slot).user;
        let sessions = self.presence.sessions(user).iter();
        let session = sessions.clone().find(|entry| entry.slot == slot).map_or(0, |entry| entry.session);
        if self.settles_parked(user, frame.stamp) {
            return;
        }
        match self.home(user) {
            Home::There { node, shard } => {
                let Frame { id, peer, stamp, .. } = *frame;
                let cumulative = frame.flags & flags::CUMULATIVE != 0;
                let record = FarRecord::Ack { user, id, peer, stamp, session, hops: 0, cumulative };
                if self.send_far(node, shard, &record).is_err() {
                    // The home sends the message again, and gets another ACK.
                    self.links.stats.mesh_answers_lost.add(1);
                }
            }
            Home::Here | Home::Nowhere => {
                self.acknowledged_by(user, session, frame.stamp, frame.flags & flags::CUMULATIVE != 0);
            }
        }
    }

    /// An ACK of a session, at its user's home.
    pub(crate) fn acknowledged_by(&mut self, user: u64, session: u64, stamp: u64, cumulative: bool) {
        if cumulative {
            self.acknowledged_earlier(user, session, stamp);
        }
        self.acknowledged(user, session, stamp);
        if self.desk.is_some() {
            self.device_acknowledged(user, session, stamp);
        }
    }

    /// A message that waits here has an ACK of a session; 0 where it is not known which.
    pub(crate) fn acknowledged(&mut self, user: u64, session: u64, stamp: u64) {
        let acked = self.inboxes.ack(user, session, stamp, self.links.tick);
        if let Acked::First { origin, from, id } = acked {
            self.links.stats.out_acked.add(1);
            if let Some(desk) = &mut self.desk {
                desk.duplicates.note(from, id, user, stamp, Known::Delivered);
            }
            self.settle_pushed((from, id, user), stamp, Known::Delivered);
            self.tell_fate(origin, id, user, Outcome::Delivered, stamp);
        } else if acked == Acked::Unknown && !self.alone && self.is_unsettled(user) {
            self.directory.note_early_ack(user, stamp);
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
        if origin.conn.slot == PORTAL_SLOT {
            return self.tell_portal(origin.conn.generation, id, peer, outcome);
        }
        match self.links.slots.get(origin.conn) {
            Some(conn) if conn.phase == Phase::Open => {
                let is_service = conn.flags.has(ConnFlags::SERVICE);
                let kind = if is_service { Kind::Pushed } else { Kind::Sent };
                let header = Header { kind, flags: 0, aux: outcome.as_u16(), id, peer, stamp };
                self.links.reply(origin.conn.slot, |out| encode(out, &header, &[]));
            }
            _ => self.links.stats.sent_to_gone.add(1),
        }
    }

    /// Records from another shard, which took them in during that life of the node. Another life serves nothing of it:
    /// the shard may have been paused in between, and others have told the senders that it failed.
    pub(crate) fn take_batch(&mut self, from_shard: u16, life: u64, bytes: &[u8]) {
        let serving = self.serving;
        self.serving &= life == self.life;
        let mut carries = false;
        for record in Records(bytes) {
            carries |= matches!(record, Record::Carry { .. } | Record::Back { .. });
            match record {
                Record::Message { origin, from, to, id, acked, extra, payload } => {
                    let origin = Origin::own(from_shard, origin);
                    self.arrive(&Routed { origin, from, to, id, acked, extra, payload }, Path::OWN);
                }
                Record::Fate { origin, id, peer, outcome, stamp } => {
                    self.tell_fate(Origin::own(self.shard, origin), id, peer, outcome, stamp);
                }
                Record::Group(mail) => self.take_group_mail(from_shard, &mail),
                Record::Watch(mail) => self.take_watch_mail(from_shard, &mail),
                Record::Far { from, record } => self.far_here(from, record),
                Record::Service(record) => self.service_record(from_shard, record),
                Record::Carry { to, record } => self.carry(from_shard, to, &record, life),
                Record::Back { node, record, refused, maybe_received } => {
                    self.take_back(node, &record, refused, maybe_received);
                }
                Record::LinkWord { node, bits } => self.take_link_word(from_shard, node, bits, life),
            }
        }
        if carries {
            self.outgoing.has_carried(self.mesh_bytes());
        }
        self.serving = serving;
    }

    /// Sends what waits for the user's ACK to a session that has just begun: all of it to the first one of the user,
    /// and what was owed to the one whose place it took otherwise. What finds no room follows when there is some.
    /// `from_log`: what is kept is not among it, since the session gets that from the store.
    pub(crate) fn redeliver_to(&mut self, user: u64, slot: u32, session: u64, first: bool, from_log: bool) {
        if self.inboxes.len(user) == 0 {
            return;
        }
        if first {
            let seat = self.inboxes.seat(user, session);
            let now_ms = self.now.wall_ms;
            let goes = |message: &&mut Unacked| {
                let is_open = !message.bound && !is_over(message.until_s, now_ms);
                is_open && (!from_log || message.keep == Keep::Never)
            };
            let waiting = self.inboxes.of(user).filter(goes);
            waiting.for_each(|message| message.owed.add(seat));
        }
        self.redeliver_owed(user, slot, session, from_log);
    }

    /// Goes on with redeliveries that had found no room, where there is some now.
    pub(crate) fn redeliver_where_room(&mut self) {
        while let Some(slot) = self.links.take_redeliverable() {
            let conn = self.links.slots.at(slot);
            let user = conn.user;
            if conn.phase != Phase::Open {
                continue;
            }
            // A guest's messages wait at its home, which sends them again in time.
            let Some(session) = self.session_in(user, slot).filter(|_| self.serving && self.is_home(user)) else {
                continue;
            };
            let from_log = self.desk.as_mut().is_some_and(|desk| desk.reader(user, session).is_some());
            if from_log {
                self.go_on_with(user, session);
            }
            self.redeliver_owed(user, slot, session, from_log);
        }
    }

    /// Queues what is owed to a session and has not been queued for it, in order, until there is no room.
    fn redeliver_owed(&mut self, user: u64, slot: u32, session: u64, from_log: bool) {
        let (tick, now_ms) = (self.links.tick, self.now.wall_ms);
        let seat = self.inboxes.seat(user, session);
        let mut full = false;
        for message in self.inboxes.of(user) {
            // What is over has its fate from its end, which may be late.
            if is_over(message.until_s, now_ms) {
                continue;
            }
            if !message.owed.has(seat) || message.queued.has(seat) || (from_log && message.keep != Keep::Never) {
                continue;
            }
            let header = again(message, user);
            let queued = match self.directory.remotes.get(slot) {
                None => self.links.queue_message(slot, &header, &message.payload),
                Some(remote) => far::queue_copy(
                    &mut self.mesh,
                    &mut self.links,
                    &mut self.outgoing,
                    remote,
                    &header,
                    &message.payload,
                ),
            };
            if queued == Queued::OutboxFull {
                full = true;
                break;
            }
            self.links.stats.redeliveries.add(1);
            message.queued.add(seat);
            if message.keep == Keep::Never {
                message.sent_tick = tick;
                if let Some(reader) = self.desk.as_mut().and_then(|desk| desk.reader(user, session)) {
                    reader.gave_unkept(message.stamp, false);
                }
            }
        }
        if full {
            self.links.owe_redelivery(slot);
        }
    }

    /// The session in a slot of presence.
    fn session_in(&self, user: u64, slot: u32) -> Option<u64> {
        self.presence.sessions(user).iter().find(|entry| entry.slot == slot).map(|entry| entry.session)
    }

    fn is_home(&self, user: u64) -> bool {
        self.home(user) == Home::Here
    }

    /// Sends again what has waited too long for the user's ACK, and gives up what was sent again too often. A node
    /// without a lease sends nothing again: the user may have another home by now.
    ///
    /// Only what was queued counts as an attempt: what finds no room, or may still be in the queue of a slow reader, is
    /// sent when that has drained.
    pub(crate) fn redeliver_due(&mut self, user: u64) {
        if !self.serving {
            return;
        }
        let tick = self.links.tick;
        let limits = &self.links.limits;
        let Some(sent_before) = tick.checked_sub(ticks(limits.redeliver_ms)) else { return };
        let (mut given_up, further) = self.inboxes.take_exhausted(user, limits.redeliver_attempts_max, sent_before);
        self.links.stats.copies_given_up.add(further as u64);
        // The device that it was for has left.
        given_up.extend(self.inboxes.take_if(user, Unacked::is_stranded));
        for message in given_up {
            self.links.stats.out_offline_refused.add(1);
            self.tell_fate(message.origin, message.id, user, Outcome::OfflineNotStored, 0);
        }
        if self.inboxes.len(user) == 0 {
            return;
        }
        let sessions: Vec<(u32, u64, Seats)> = self
            .presence
            .sessions(user)
            .iter()
            .map(|entry| (entry.slot, entry.session, self.inboxes.seat(user, entry.session)))
            .collect();
        let now_ms = self.now.wall_ms;
        for message in self.inboxes.of(user) {
            let is_over = is_over(message.until_s, now_ms);
            if message.sent_tick > sent_before || message.keep != Keep::Never || is_over {
                continue;
            }
            let since = message.sent_tick;
            message.sent_tick = tick;
            let header = again(message, user);
            let owed = message.owed;
            let mut queued_some = false;
            for &(slot, session, seat) in &sessions {
                let (directory, slots) = (&self.directory, &self.links.slots);
                if message.from == user && far::may_be_origin(directory, slots, self.shard, slot, &message.origin) {
                    continue;
                }
                if owed.is_empty() {
                    // Who it was for has left: whoever is there gets it.
                    message.owed.add(seat);
                } else if !owed.has(seat) {
                    continue;
                }
                let queued = match self.directory.remotes.get(slot) {
                    None if self.links.may_hold_since(slot, since) => Queued::OutboxFull,
                    None => self.links.queue_message(slot, &header, &message.payload),
                    Some(remote) => far::queue_copy(
                        &mut self.mesh,
                        &mut self.links,
                        &mut self.outgoing,
                        remote,
                        &header,
                        &message.payload,
                    ),
                };
                if queued == Queued::Yes {
                    queued_some = true;
                    if let Some(reader) = self.desk.as_mut().and_then(|desk| desk.reader(user, session)) {
                        reader.gave_unkept(message.stamp, message.queued.has(seat));
                    }
                    message.queued.add(seat);
                    self.links.stats.redeliveries.add(1);
                } else if !message.queued.has(seat) {
                    self.links.owe_redelivery(slot);
                }
            }
            if queued_some {
                message.attempts = message.attempts.saturating_add(1);
            }
        }
    }
}

/// AGAIN, for a message that its sender says it has sent before: a home that is gone, or an earlier life of this one, may
/// have given it to devices, and nobody knows.
pub(super) fn again_if(retry: bool) -> u8 {
    if retry { flags::AGAIN } else { 0 }
}

fn again(message: &Unacked, user: u64) -> Header {
    let own = if message.from == user { flags::SELF } else { 0 };
    let flags = flags::ACK | flags::AGAIN | own;
    delivery(flags, message.id, message.from, message.stamp)
}

/// Whom such a header says it is from, as other nodes and inboxes have it.
#[inline]
pub(super) fn sender(header: &Header) -> u64 {
    if header.kind == Kind::Push { SERVICE_USERS + u64::from(header.aux) } else { header.peer }
}

/// The header of a message for its recipient: DELIVER from a user, PUSH from a service.
#[inline]
pub(super) fn delivery(flags: u8, id: u64, from: u64, stamp: u64) -> Header {
    if from >= SERVICE_USERS {
        return Header { kind: Kind::Push, flags, aux: from as u16, id, peer: 0, stamp };
    }
    Header { kind: Kind::Deliver, flags, aux: 0, id, peer: from, stamp }
}
