//! A message to a group on its way from the group's home to the sessions: one record for each shard that has a part of
//! the group, encoded once there, and so many sessions a turn. Who could not be given it is told by HEADS.

use super::links::{Links, Queued};
use super::shard::Shard;
use crate::conn::Phase;
use crate::groups::behind::{Behind, Missed};
use crate::groups::budget::RoomBudget;
use crate::groups::mail::GroupMail;
use crate::groups::part::{News, Pace, Run, Sink};
use crate::groups::{Groups, Manner, is_room, wire_number};
use crate::ids::NodeKey;
use crate::ids::Origin;
use crate::io::ConnId;
use crate::limits::Limits;
use crate::mailbox::Record;
use trunkline_proto::{HEADER_SHORT, Head, Header, Heads, Kind, encode, encode_message, encoded_len, flags};

/// Sessions that frames of groups are given to in a turn, so that others do not feel it: a millisecond and a half of
/// sends. Dozens of shards may share a core, each of which has a turn before it is the first one's again.
const SESSIONS_PER_TURN: usize = 256;
/// Sessions that are told in a tick what they have missed.
const HEADS_PER_TICK: usize = 4_096;
/// Bytes of the sender's id in front of a payload.
pub(super) const SENDER_BYTES: usize = 8;
/// Groups of HEADS of one frame, and bytes of each at most: three fixed numbers of 9 B, one of up to 11, one of up to
/// 6, and 2 around them.
const HEADS_MAX: usize = 1_000;
const HEAD_BYTES_MAX: usize = 46;
/// Where the flags of a frame are.
const FLAGS_AT: usize = 5;

/// A message to a group that has its place in it, on its way to members.
#[derive(Clone, Copy, Debug)]
pub(super) struct Numbered<'a> {
    pub(super) group: u64,
    /// The session that sent it; `None` for one that came over HTTP.
    pub(super) origin: Option<Origin>,
    pub(super) from: u64,
    pub(super) id: u64,
    pub(super) stamp: u64,
    /// The home gives it.
    pub(super) number: u64,
    pub(super) manner: Manner,
    pub(super) payload: &'a [u8],
}

impl Shard {
    /// Gives a message its number in the group, and itself to each node and each shard that has sessions of members.
    pub(super) fn group_fan_out(&mut self, message: Numbered<'_>) {
        let home = self.groups.homes.at(message.group);
        home.number = home.number.saturating_add(1);
        #[cfg(test)]
        if message.id.is_multiple_of(8) && crate::simulation::planted(crate::simulation::Bug::NumberTwice) {
            home.number = (home.number - 1).max(1);
        }
        home.last = home.last.max(message.stamp);
        let message = Numbered { number: home.number, ..message };
        if !self.alone {
            self.copy_to_nodes(&message);
        }
        self.copy_to_shards(&message);
    }

    /// Gives a message to each shard of this node that has sessions of members.
    pub(super) fn copy_to_shards(&mut self, message: &Numbered<'_>) {
        let Numbered { group, origin, from, id, stamp, number, manner, payload } = *message;
        let shards = std::mem::take(&mut self.groups.homes.at(group).shards);
        let nobody = ConnId { slot: u32::MAX, generation: 0 };
        let here = origin.filter(|origin| origin.node == NodeKey::OWN);
        let (shard, conn) = here.map_or((u16::MAX, nobody), |origin| (origin.shard, origin.conn));
        let copy = GroupMail::Copy { group, shard, origin: conn, from, id, stamp, number, manner, payload };
        for to in &shards {
            if *to == self.shard {
                self.take_group_mail(*to, &copy);
                continue;
            }
            let record = Record::Group(copy);
            if self.outgoing.has_room(*to, record.encoded_len()) {
                self.outgoing.put(*to, &record);
            } else {
                // It is told how far the group is when there is room, and its sessions ask for the rest.
                self.links.stats.limit_mailbox.add(1);
                self.groups.homes.owed.insert((*to, group));
            }
        }
        self.groups.homes.at(group).shards = shards;
    }

    /// A message for the sessions of this shard.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn group_copy(
        &mut self,
        group: u64,
        origin: Option<ConnId>,
        from: u64,
        id: u64,
        stamp: u64,
        number: u64,
        manner: Manner,
        payload: &[u8],
    ) {
        let bytes_max = self.links.limits.groups.queue_bytes_max;
        let Groups { parts, .. } = &mut self.groups;
        let Some(part) = parts.get_mut(group) else { return };
        let gap = part.is_gap_before(number);
        (part.last, part.number) = (part.last.max(stamp), number);
        parts.set_passive(group, manner.passive);
        if gap {
            self.links.stats.group_gaps.add(1);
            parts.miss(group);
        }
        if manner.passive {
            let spared = parts.get(group).map_or(0, |part| part.inattentive() as u64);
            match manner.unkept {
                true => self.links.stats.group_unkept_spared.add(spared),
                false => {
                    self.links.stats.group_spared.add(spared);
                    parts.note_news(group);
                }
            }
            if !parts.gets_frames(group) {
                return;
            }
        }
        let header = Header { kind: Kind::GroupDeliver, flags: 0, aux: wire_number(number), id, peer: group, stamp };
        let mut frame = Vec::with_capacity(encoded_len(Kind::GroupDeliver, SENDER_BYTES + payload.len()));
        encode_delivery(&mut frame, &header, from, payload);
        self.links.stats.group_encoded.add(1);
        if !parts.push(group, from, origin, &frame, bytes_max) {
            self.links.stats.limit_group_queue.add(1);
        }
    }

    /// The home says how far a group is. Sessions here may have missed something if it is further than what came.
    pub(super) fn group_head(&mut self, group: u64, last: u64, number: u64) {
        let parts = &mut self.groups.parts;
        if parts.get_mut(group).is_some_and(|part| part.hear(last, number)) {
            parts.miss(group);
        }
    }

    /// The store says how far a group is. What the numbers are nobody has said.
    pub(super) fn group_is_at(&mut self, group: u64, last: u64) {
        let parts = &mut self.groups.parts;
        let Some(part) = parts.get_mut(group).filter(|part| last > part.last) else { return };
        part.last = last;
        parts.miss(group);
    }

    fn pace(&self) -> Pace {
        // Sessions of a draining shard end: what is held for them would be lost.
        match self.drain.is_some() {
            true => Pace::AT_ONCE,
            false => Pace { now_ms: self.now.mono_ms, room_gather_ms: self.links.limits.groups.room_gather_ms },
        }
    }

    /// Takes what a running shard takes of newer limits.
    pub(crate) fn reload(&mut self, newer: &Limits) {
        self.links.limits.reload(newer);
        let Pace { now_ms, room_gather_ms } = self.pace();
        self.groups.parts.gather_until(now_ms.saturating_add(room_gather_ms));
    }

    /// Whether frames are on their way through sessions, and go on now.
    pub(crate) fn has_frames_for_groups(&self) -> bool {
        !self.groups.parts.is_idle(self.pace().now_ms)
    }

    /// Goes on with frames on their way through sessions. Returns whether there are more.
    pub(crate) fn walk_groups(&mut self) -> bool {
        let pace = self.pace();
        if self.groups.parts.is_idle(pace.now_ms) {
            return false;
        }
        let Groups { parts, behind, budget, .. } = &mut self.groups;
        budget.pass(self.now.mono_ms / 1_000, self.links.slots.high_water());
        let mut fan = Fan { links: &mut self.links, behind, budget };
        let ended = parts.walk(SESSIONS_PER_TURN, pace, &mut fan);
        let tally = parts.take_tally();
        self.links.stats.room_walks.add(tally.walks);
        self.links.stats.room_frames_walked.add(tally.frames);
        self.links.stats.limit_room_gather.add(tally.early);
        for group in ended {
            self.unwatch(group);
        }
        !self.groups.parts.is_idle(pace.now_ms)
    }

    /// In how many milliseconds frames that are gathered for live rooms may go.
    pub(crate) fn gathered_in_ms(&self) -> Option<u32> {
        let due_ms = self.groups.parts.gathered_ms()?;
        Some(due_ms.saturating_sub(self.now.mono_ms).max(1) as u32)
    }

    pub(super) fn tell_those_behind(&mut self) {
        for _ in 0..self.groups.behind.len().min(HEADS_PER_TICK) {
            let Some(conn) = self.groups.behind.next() else { return };
            let room = self.links.limits.outbox_bytes_max / 2;
            let Some(known) = self.links.slots.get(conn).filter(|conn| conn.phase == Phase::Open) else {
                self.groups.behind.take(conn);
                continue;
            };
            if known.outbox_bytes() >= room {
                self.groups.behind.later(conn);
                continue;
            }
            let groups = match self.groups.behind.take(conn) {
                Some(Missed::Groups(groups)) => groups,
                Some(Missed::All) => self.groups.parts.groups_of(conn.slot).collect(),
                None => continue,
            };
            #[cfg(test)]
            if crate::simulation::planted(crate::simulation::Bug::HeadsForgotten) {
                continue;
            }
            let parts = &self.groups.parts;
            // One that it has left meanwhile is no concern of it.
            let groups = groups.into_iter().filter(|group| parts.is_in(conn, *group));
            let heads = groups.filter_map(|group| {
                let part = parts.get(group)?;
                Some(Head { group, stamp: part.last, read: 0, seq: part.number, unread: 0 })
            });
            let heads = heads.collect();
            self.send_heads(conn.slot, heads);
        }
    }

    /// Tells the sessions whose turn it is how far their large groups are.
    pub(super) fn tell_passive(&mut self) {
        let room = self.links.limits.outbox_bytes_max / 2;
        for (slot, news) in self.groups.parts.next_step() {
            let conn = self.links.slots.at(slot);
            if conn.phase != Phase::Open {
                continue;
            }
            if conn.outbox_bytes() >= room {
                // As soon as there is room.
                let conn = self.links.slots.id(slot);
                news.iter().for_each(|news| self.groups.behind.note(conn, news.group));
                continue;
            }
            #[cfg(test)]
            if crate::simulation::planted(crate::simulation::Bug::PassiveUntold) {
                continue;
            }
            let head = |news: News| Head { group: news.group, stamp: news.stamp, read: 0, seq: news.number, unread: 0 };
            self.links.stats.group_passive_heads.add(1);
            self.send_heads(slot, news.into_iter().map(head).collect());
        }
    }

    pub(super) fn send_heads(&mut self, slot: u32, heads: Vec<Head>) {
        let fit = (self.links.limits.frame_bytes_max as usize - HEADER_SHORT) / HEAD_BYTES_MAX;
        for heads in heads.chunks(fit.clamp(1, HEADS_MAX)) {
            self.links.stats.heads.add(1);
            let heads = Heads { heads: heads.to_vec() };
            self.links.reply(slot, |out| encode_message(out, Kind::Heads, 0, &heads));
        }
    }
}

/// GROUP_DELIVER: in front of the payload is who sent it.
pub(super) fn encode_delivery(out: &mut Vec<u8>, header: &Header, from: u64, payload: &[u8]) {
    let before = out.len();
    encode(out, header, &from.to_be_bytes());
    out.extend_from_slice(payload);
    let length = (out.len() - before) as u32;
    out[before..before + 4].copy_from_slice(&length.to_be_bytes());
}

/// Gives frames to the sessions of this shard.
struct Fan<'a> {
    links: &'a mut Links,
    behind: &'a mut Behind,
    budget: &'a mut RoomBudget,
}

impl Sink for Fan<'_> {
    fn is_open(&mut self, conn: ConnId) -> bool {
        self.links.slots.get(conn).is_some_and(|conn| conn.phase == Phase::Open)
    }

    fn give(&mut self, slot: u32, group: u64, run: &Run) {
        let user = self.links.slots.at(slot).user;
        let frames_max = if is_room(group) { self.links.limits.groups.room_frames_per_sec } else { 0 };
        let is_within = frames_max == 0 || self.budget.takes(slot, run.frames.len(), frames_max);
        #[cfg(test)]
        let is_within = is_within || crate::simulation::planted(crate::simulation::Bug::BudgetIgnored);
        if is_within && run.frames.iter().all(|frame| frame.from != user) {
            let frames = run.frames.len() as u64;
            match self.links.queue_frames(slot, &run.bytes) {
                Queued::Yes => self.links.stats.group_deliveries.add(frames),
                Queued::OutboxFull => self.missed(slot, group, frames),
            }
            return;
        }
        // Some of it is the user's own: the session that sent it does not get it, the others learn that it is. Or it is
        // more than the session gets of rooms in a second.
        let conn = self.links.slots.id(slot);
        let mut begin = 0;
        let mut own = Vec::new();
        for frame in &run.frames {
            let bytes = &run.bytes[begin..frame.end];
            begin = frame.end;
            #[cfg(test)]
            let echoes = crate::simulation::planted(crate::simulation::Bug::EchoedToSender);
            #[cfg(not(test))]
            let echoes = false;
            if frame.from == user && frame.origin == Some(conn) && !echoes {
                continue;
            }
            if !is_within && !self.budget.takes(slot, 1, frames_max) {
                self.links.stats.limit_room_frames.add(1);
                self.missed(slot, group, 1);
                continue;
            }
            let bytes = if frame.from == user {
                own.clear();
                own.extend_from_slice(bytes);
                own[FLAGS_AT] |= flags::SELF;
                &own
            } else {
                bytes
            };
            match self.links.queue_frames(slot, bytes) {
                Queued::Yes => self.links.stats.group_deliveries.add(1),
                Queued::OutboxFull => self.missed(slot, group, 1),
            }
        }
    }

    fn miss(&mut self, slot: u32, group: u64) {
        let conn = self.links.slots.id(slot);
        self.behind.note(conn, group);
    }
}

impl Fan<'_> {
    fn missed(&mut self, slot: u32, group: u64, frames: u64) {
        self.links.stats.group_copies_dropped.add(frames);
        self.miss(slot, group);
    }
}
