//! Links that several shards share: what a shard without a link has for another node goes to the one that has it, and
//! what comes of it goes back.
//!
//! ```text
//! shard f ── Carry ──▶ carrier ── link ──▶ carrier ── Far ──▶ shard t of the peer
//!         ◀── Back ───    │
//!         ◀─ LinkWord ────┘  up, unreachable, easy, begun anew
//! ```
//!
//! - All that a shard has for a node goes by one carrier and one link, so what two shards of two nodes say to each
//!   other arrives in the order in which it was said.
//! - While a mailbox is full a client's message waits with its sender; what has nobody to wait with, such as a copy for
//!   a guest, waits at its shard ([`Mesh::wait_for_room`]), and all that this shard has for the node behind it. What
//!   there is no room for there is refused, as by a full link. What the carrier cannot queue after all, and what a link
//!   that ends gives back, goes to the shard that has to answer for it; a message's sender is told by whoever finds out.
//! - What comes back has bounds: a shard hands on no more than may come back to it, and a link that ends keeps what it
//!   has, which counts for its own bound, until the shards it goes to have room.
//! - What was handed on in another life of the node is not carried.
//! - What answers has a reserve in the mailbox and where it waits, as it has on a link; beyond that it is lost and
//!   counted.

use super::links::Links;
use super::shard::Shard;
use crate::broadcast::Tally;
use crate::groups::group_home;
use crate::ids::NodeKey;
use crate::mailbox::{MESSAGE_CARRY_BYTES, Outgoing, Record, Room};
use crate::mesh::peers::{FarError, GivenBack, Mesh, word};
use crate::mesh::wire::{Record as FarRecord, answer_flags, flags as far_flags, shards_of};
use crate::services::Caller;
use trunkline_proto::Code;
use trunkline_router_core::hash::home_shard;

/// Hands a record for another node to the shard that has the link to it. [`FarError::Full`] says that there is no room
/// now, and [`FarError::TooLong`] that there never is.
pub(super) fn hand_on(
    links: &Links,
    outgoing: &mut Outgoing,
    carrier: u16,
    node: NodeKey,
    record: &FarRecord<'_>,
) -> Result<(), FarError> {
    let record = Record::Carry { to: node, record: *record };
    let is_control = matches!(&record, Record::Carry { record, .. } if record.is_control());
    let len = record.encoded_len();
    // What answers has a reserve, as on a link, which what comes back from another link does not take away. For all
    // else there has to be room for that too, should all of it come back.
    let backs = outgoing.backs(carrier);
    let has_room =
        if is_control { outgoing.has_reserve(carrier, len) } else { outgoing.has_room(carrier, len + backs) };
    if !has_room {
        if outgoing.is_too_long(len) {
            links.stats.limit_mailbox.add(1);
            return Err(FarError::TooLong);
        }
        return Err(FarError::Full);
    }
    outgoing.put(carrier, &record);
    links.stats.mesh_carried.add(1);
    Ok(())
}

/// Whether a message for another node, with a payload of so many bytes, waits with its sender: the shard that has the
/// link will have room for it.
pub(super) fn waits_to_be_carried(
    mesh: &Mesh,
    outgoing: &mut Outgoing,
    node: NodeKey,
    payload_bytes: usize,
    tick: u32,
) -> bool {
    let Some(carrier) = mesh.carrier_of(node) else { return false };
    // For one that is not reached it is refused at once.
    if mesh.is_unreachable(node, 0) {
        return false;
    }
    // What has come back this shard takes itself, in its next turn.
    let (bytes, backs) = (MESSAGE_CARRY_BYTES + payload_bytes, outgoing.backs(carrier));
    if backs > 0 && !outgoing.has_room(carrier, bytes + backs) {
        return true;
    }
    match outgoing.room(carrier, bytes, tick) {
        // What waits already goes first.
        Room::Yes => mesh.has_waiting_for(node),
        Room::Wait => true,
        Room::No => false,
    }
}

/// Whether the link to a node, and the way to the shard that has it, hold so little that the pace of what can wait need
/// not be slowed.
pub(super) fn is_easy(mesh: &Mesh, outgoing: &Outgoing, node: NodeKey) -> bool {
    mesh.is_easy(node) && mesh.carrier_of(node).is_none_or(|carrier| outgoing.is_easy(carrier))
}

impl Shard {
    /// Whether a message for another node waits for room at the shard that has the link.
    #[inline]
    pub(super) fn waits_for_carrier(&mut self, node: NodeKey, payload_bytes: usize) -> bool {
        let Some(mesh) = self.mesh.as_ref().filter(|mesh| mesh.has_carriers()) else { return false };
        waits_to_be_carried(mesh, &mut self.outgoing, node, payload_bytes, self.links.tick)
    }

    /// Carries what another shard of this node has for a node to which this one has the link. That shard worked for the
    /// node's life `life`.
    pub(super) fn carry(&mut self, from: u16, node: NodeKey, record: &FarRecord<'_>, life: u64) {
        #[cfg(test)]
        if crate::simulation::planted(crate::simulation::Bug::CarriedTwice) {
            let _ = self.send_far(node, 0, record);
        }
        let in_touch = || self.mesh.as_ref().is_some_and(|mesh| mesh.shard_in_touch(node).is_some());
        let placed = match record {
            _ if life != self.life => Err(FarError::Unknown),
            // One that comes late says what was.
            FarRecord::Memo { .. } if !in_touch() => Err(FarError::Unreachable),
            _ => self.send_far(node, 0, record),
        };
        if let Err(error) = placed {
            self.links.stats.mesh_carries_refused.add(1);
            self.not_carried(from, node, record, error);
        }
    }

    /// There is no room for such a record of shard `from` after all.
    fn not_carried(&mut self, from: u16, node: NodeKey, record: &FarRecord<'_>, error: FarError) {
        match *record {
            FarRecord::Message { .. } => self.lost_here(*record),
            FarRecord::Transfer { flags, .. } if flags & far_flags::TOLD != 0 => {
                self.links.stats.copies_given_up.add(1);
            }
            FarRecord::Transfer { .. } => self.lost_here(*record),
            // A short one may find room yet: who called hears that nobody knows.
            FarRecord::Answer { seat, id, status, flags, .. } => {
                let code = Code::OutcomeUnknown;
                let caller = Caller { node, shard: seat.shard, conn: seat.conn };
                self.answer_node(caller, id, code.as_u16(), 0, code.text().as_bytes());
                if flags & answer_flags::MORE != 0 {
                    // The shard that has the call ends it.
                    let part = FarRecord::Answer { seat, id, status, flags, body: &[] };
                    self.send_back(from, node, &part, true, false);
                }
            }
            FarRecord::Memo { .. } => self.links.stats.memos_dropped.add(1),
            FarRecord::Fate { .. } => self.links.stats.sent_to_gone.add(1),
            // The node has left, and with the next view the shard knows that too.
            FarRecord::Settled { .. } | FarRecord::SettledShards { .. } if error == FarError::Unknown => {}
            _ => match self.owner(record) {
                Some(owner) => self.send_back(owner, node, record, true, false),
                // Whoever waits for it asks again, or finds out.
                None => self.links.stats.mesh_answers_lost.add(1),
            },
        }
    }

    /// The shard of this node that has to answer for a record that does not arrive; `None` if any can.
    fn owner(&self, record: &FarRecord<'_>) -> Option<u16> {
        let shards = self.shards;
        let of = |user: u64| home_shard(user, u32::from(shards)) as u16;
        let owner = match *record {
            FarRecord::Deliver { user, .. }
            | FarRecord::Transfer { user, .. }
            | FarRecord::Registered { user, .. }
            | FarRecord::UserTold { user, .. } => of(user),
            FarRecord::Register { seat, .. } | FarRecord::Call { seat, .. } => seat.shard,
            FarRecord::Settled { from, .. }
            | FarRecord::SettledShards { from, .. }
            | FarRecord::UserWatch { from, .. }
            | FarRecord::BroadcastBegin { from, .. }
            | FarRecord::BroadcastTold { from, .. }
            | FarRecord::BroadcastStop { from, .. } => from,
            FarRecord::GroupSend { group, .. }
            | FarRecord::GroupCopy { group, .. }
            | FarRecord::GroupWatch { group, .. }
            | FarRecord::GroupHead { group, .. }
            | FarRecord::GroupMember { group, .. } => group_home(group, shards),
            FarRecord::GroupAsk { shard, .. }
            | FarRecord::ServiceHere { shard, .. }
            | FarRecord::KickUser { shard, .. } => shard,
            _ => return None,
        };
        (owner < shards).then_some(owner)
    }

    fn send_back(&mut self, to: u16, node: NodeKey, record: &FarRecord<'_>, refused: bool, maybe_received: bool) {
        if to == self.shard {
            return self.take_back(node, record, refused, maybe_received);
        }
        self.links.stats.mesh_backs.add(1);
        // It answers a record that was let in.
        self.outgoing.put(to, &Record::Back { node, record: *record, refused, maybe_received });
    }

    /// A record that a link has given back goes to the shard that has to answer for it.
    pub(super) fn give_back(&mut self, back: &GivenBack) {
        let Ok(Some(record)) = FarRecord::decode(&back.bytes) else { return };
        if let FarRecord::Answer { seat, id, status, flags, .. } = record
            && flags & answer_flags::MORE != 0
            && self.mesh.as_ref().is_some_and(|mesh| mesh.is_shared(back.node))
        {
            // It does not say which shard has the call: that one ends it, and to the others it says nothing.
            let part = FarRecord::Answer { seat, id, status, flags, body: &[] };
            let own = self.shard;
            for to in (0..self.shards).filter(|to| *to != own) {
                self.send_back(to, back.node, &part, true, false);
            }
        }
        if let FarRecord::SettledSet { digest, from } = record {
            for from in shards_of(from) {
                let record = FarRecord::SettledShards { from, digest, shards: &[] };
                self.send_back(from, back.node, &record, false, back.maybe_received);
            }
            return;
        }
        match self.owner(&record).filter(|owner| *owner != self.shard) {
            Some(owner) => self.send_back(owner, back.node, &record, false, back.maybe_received),
            None => self.given_back(back),
        }
    }

    /// What this shard has handed on will not arrive, or may not have: the link has given it back, or it was refused.
    pub(super) fn take_back(&mut self, node: NodeKey, record: &FarRecord<'_>, refused: bool, maybe_received: bool) {
        match *record {
            FarRecord::Register { user, seat, session: 0, .. } if refused => {
                if self.is_asked(node, seat.conn, user) {
                    self.ask_home_later(seat.conn.slot);
                }
            }
            // Told again at once, it would be refused again and go round between the two shards. Who waits for it asks
            // again.
            FarRecord::Registered { .. } if refused => self.links.stats.mesh_answers_lost.add(1),
            // Should it not come there, the walk goes on to its end.
            FarRecord::BroadcastStop { .. } if refused => self.links.stats.mesh_answers_lost.add(1),
            FarRecord::BroadcastTold { to, token, delivered, overloaded, end, .. } if refused => {
                self.tell_walk_later(node, to, token, Tally { delivered, overloaded }, end);
            }
            FarRecord::KickUser { ask, .. } if refused => self.kick_not_asked(ask),
            // Its node has been told that nobody knows, and parts of it are missing: nothing can follow them.
            FarRecord::Answer { seat, id, .. } if refused => self.cancel_foreign(node, seat, id),
            // The walk waits for the link to be easy, and begins again.
            FarRecord::Register { .. } | FarRecord::Settled { .. } | FarRecord::SettledShards { .. } if refused => {
                self.directory.walk_again();
            }
            _ => {
                let mut bytes = Vec::with_capacity(record.encoded_len());
                record.encode(&mut bytes);
                self.given_back(&GivenBack { node, maybe_received, bytes });
            }
        }
    }

    /// Tells the shards that share this one's links what has become of these, and asks others about theirs.
    pub(super) fn tell_sharers(&mut self) {
        let Some(mesh) = &mut self.mesh else { return };
        for (carrier, node) in mesh.take_asks() {
            self.outgoing.put(carrier, &Record::LinkWord { node, bits: word::ASK });
        }
        for (node, bits) in mesh.take_words() {
            for to in (0..self.shards).filter(|to| *to != self.shard) {
                self.outgoing.put(to, &Record::LinkWord { node, bits });
            }
        }
    }

    /// Another shard tells of its link to a node, or asks about this one's.
    pub(super) fn take_link_word(&mut self, from: u16, node: NodeKey, bits: u8, life: u64) {
        let Some(mesh) = self.mesh.as_mut().filter(|_| life == self.life) else { return };
        if bits & word::ASK != 0 {
            if let Some(bits) = mesh.word_on(node) {
                self.outgoing.put(from, &Record::LinkWord { node, bits });
            }
            return;
        }
        mesh.take_word(from, node, bits);
        self.hand_on_waiting();
    }

    /// Hands on what has waited for room in the mailboxes of shards that have links, or for the first word of them.
    pub(super) fn hand_on_waiting(&mut self) {
        let Some(mesh) = self.mesh.as_mut().filter(|mesh| mesh.has_waiting()) else { return };
        let (links, outgoing) = (&self.links, &mut self.outgoing);
        let mut too_long = Vec::new();
        mesh.hand_on_waiting(|carrier, node, bytes| {
            let Ok(Some(record)) = FarRecord::decode(bytes) else { return true };
            match hand_on(links, outgoing, carrier, node, &record) {
                Err(FarError::Full) => false,
                // It waited for the first word of the link, or it would not have been let in.
                Err(_) => {
                    too_long.push((node, bytes.to_vec()));
                    true
                }
                Ok(()) => true,
            }
        });
        for (node, bytes) in too_long {
            if let Ok(Some(record)) = FarRecord::decode(&bytes) {
                self.not_carried(self.shard, node, &record, FarError::TooLong);
            }
        }
    }

    /// Whether something waits for that.
    pub(super) fn waits_for_carriers(&self) -> bool {
        self.mesh.as_ref().is_some_and(Mesh::has_waiting)
    }
}
