//! Pushes to all sessions: a walk through the connections of this shard, so many in a second that others do not feel
//! it; and for the first shard of the node that was asked, the other nodes.
//!
//! What a walk gives is encoded once and goes to each session that is open when the walk comes by, without ACK. Walks
//! go one after the other, in the order in which they came here, so what a session gets of several is in order.

use super::links::{Queued, ticks};
use super::shard::Shard;
use crate::broadcast::{BROADCAST_BYTES_MAX, BROADCASTS_MAX, Condition, End, News, Part, Spec, Tally, Word};
use crate::conn::{ConnFlags, Phase};
use crate::ids::NodeKey;
use crate::mesh::peers::FarError;
use crate::mesh::wire::Record as FarRecord;
use std::collections::VecDeque;
use std::sync::Arc;
use trunkline_proto::{Header, Kind, encode, encoded_len};
use trunkline_router_core::hash::user_hash;
use trunkline_router_core::presence::Presence;

/// Sessions that are given something in a turn.
const SESSIONS_PER_TURN: u32 = 4_096;
/// Slots that are looked at in a turn: most may be empty, or of sessions that it is not for.
const SLOTS_PER_TURN: u32 = 16_384;
/// Ticks of a second.
const TICKS_PER_SEC: u32 = ticks(1_000);
/// Walks that other nodes may have asked for.
const WALKS_FOR_OTHERS_MAX: usize = 8 * BROADCASTS_MAX;
/// How often it is told how far a walk is.
const TOLD_MS: u64 = 500;

/// Who is told how far a walk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asker {
    /// The services thread of this node.
    Here,
    /// A shard of another node.
    There { node: NodeKey, shard: u16 },
}

/// One walk through the sessions of this shard.
#[derive(Debug)]
struct BroadcastWalk {
    asker: Asker,
    /// This node, as others knew it when the walk began.
    own: NodeKey,
    token: u32,
    /// The message's id.
    id: u64,
    condition: Condition,
    /// The frame that all get.
    frame: Box<[u8]>,
    /// The next slot to look at, and the one behind the last.
    slot: u32,
    slots: u32,
    tally: Tally,
    /// What was told of it.
    told: Tally,
    end: Option<End>,
}

/// What another node is still to be told of a walk that has ended.
#[derive(Debug)]
struct Untold {
    node: NodeKey,
    shard: u16,
    /// This node, as others knew it then.
    own: NodeKey,
    token: u32,
    tally: Tally,
    end: u8,
}

/// What the first shard knows of the shards of other nodes that it has asked.
#[derive(Debug)]
struct Lead {
    token: u32,
    /// This node, as they know it.
    own: NodeKey,
    /// Those that have not ended.
    waits_for: Vec<(NodeKey, u16)>,
}

/// The walks of a shard.
#[derive(Debug, Default)]
pub(crate) struct Broadcasts {
    walks: VecDeque<BroadcastWalk>,
    /// Ends of walks for other nodes that found no room on their way: they are told again with the next tick.
    untold: Vec<Untold>,
    leads: Vec<Lead>,
    /// Bytes of frames of walks that other nodes have asked for.
    bytes_for_others: usize,
    /// Sessions that may be given something until the next tick.
    allowance: u32,
    told_tick: u32,
}

impl Shard {
    /// Takes the words of the services thread.
    pub(super) fn take_broadcasts(&mut self) -> usize {
        let mut words = 0;
        while let Some(word) = self.portal.as_mut().and_then(|portal| portal.next_word()) {
            words += 1;
            match word {
                Word::Begin(spec) => self.begin_broadcast(&spec),
                Word::Stop(token) => self.stop_broadcast(token),
            }
        }
        words
    }

    fn begin_broadcast(&mut self, spec: &Arc<Spec>) {
        let Spec { token, service, id, ref condition, ref payload } = **spec;
        if self.shard == 0 {
            self.ask_other_nodes(spec);
        }
        let was_begun = self.was_pushed_to_all(service, id, payload);
        let frame = self.frame_of_broadcast(service, id, payload);
        self.begin_walk(Asker::Here, (token, id), condition.clone(), frame, was_begun);
    }

    fn frame_of_broadcast(&mut self, service: u16, id: u64, payload: &[u8]) -> Box<[u8]> {
        let stamp = self.next_stamp();
        let header = Header { kind: Kind::Push, flags: 0, aux: service, id, peer: 0, stamp };
        let mut frame = Vec::with_capacity(encoded_len(Kind::Push, payload.len()));
        encode(&mut frame, &header, payload);
        frame.into()
    }

    /// `was_begun`: the same push has come before, through another node, and this walk meets nobody.
    fn begin_walk(
        &mut self,
        asker: Asker,
        (token, id): (u32, u64),
        condition: Condition,
        frame: Box<[u8]>,
        was_begun: bool,
    ) {
        let slots = if was_begun { 0 } else { self.links.slots.high_water() };
        let (tally, told) = (Tally::default(), Tally::default());
        let own = self.own_key();
        let walk = BroadcastWalk { asker, own, token, id, condition, frame, slot: 0, slots, tally, told, end: None };
        if asker != Asker::Here {
            self.broadcasts.bytes_for_others += walk.frame.len();
        }
        self.broadcasts.walks.push_back(walk);
    }

    fn stop_broadcast(&mut self, token: u32) {
        self.stop_walk(Asker::Here, token);
        let Some(lead) = self.broadcasts.leads.iter().find(|lead| lead.token == token) else { return };
        let from = self.shard;
        for (node, to) in lead.waits_for.clone() {
            // Should it not come there, the walk goes on to its end.
            if self.send_far(node, to, &FarRecord::BroadcastStop { to, from, token }).is_err() {
                self.links.stats.mesh_answers_lost.add(1);
            }
        }
    }

    /// Whether there is such a walk, which ends with that.
    fn stop_walk(&mut self, asker: Asker, token: u32) -> bool {
        let mut walks = self.broadcasts.walks.iter_mut();
        let walk = walks.find(|walk| (walk.asker, walk.token) == (asker, token));
        walk.map(|walk| walk.end.get_or_insert(End::Stopped)).is_some()
    }

    /// Goes on with walks. Returns whether there is more to do in the next turn at once. A node without a lease gives
    /// nothing to anybody.
    pub(crate) fn walk_broadcasts(&mut self) -> bool {
        if self.broadcasts.walks.is_empty() || !self.serving {
            return false;
        }
        let mut sessions = SESSIONS_PER_TURN.min(self.broadcasts.allowance);
        let (allowed, mut slots) = (sessions, SLOTS_PER_TURN);
        let mut walks = std::mem::take(&mut self.broadcasts.walks);
        for walk in walks.iter_mut().filter(|walk| walk.end.is_none()) {
            self.walk_some(walk, &mut sessions, &mut slots);
            if walk.end.is_none() {
                break;
            }
        }
        self.broadcasts.allowance -= allowed - sessions;
        // What is over is told at once, and the rest in time.
        walks.retain_mut(|walk| walk.end.is_none() || !self.tell_walk(walk));
        let more = walks.iter().any(|walk| walk.end.is_none());
        self.broadcasts.walks = walks;
        more && self.broadcasts.allowance > 0
    }

    fn walk_some(&mut self, walk: &mut BroadcastWalk, sessions: &mut u32, slots: &mut u32) {
        while walk.slot < walk.slots {
            if *sessions == 0 || *slots == 0 {
                return;
            }
            let slot = walk.slot;
            walk.slot += 1;
            *slots -= 1;
            if !self.is_met(walk, slot) {
                continue;
            }
            *sessions -= 1;
            match self.links.queue_frames(slot, &walk.frame) {
                Queued::Yes => {
                    walk.tally.delivered += 1;
                    self.links.stats.broadcast_delivered.add(1);
                }
                Queued::OutboxFull => {
                    walk.tally.overloaded += 1;
                    self.links.stats.broadcast_overloaded.add(1);
                }
            }
        }
        walk.end = Some(End::Done);
    }

    /// Whether the session in a slot is one that it is for.
    fn is_met(&mut self, walk: &BroadcastWalk, slot: u32) -> bool {
        let conn = self.links.slots.at(slot);
        if conn.phase != Phase::Open || conn.flags.has(ConnFlags::SERVICE) {
            return false;
        }
        let user = conn.user;
        let Condition { classes, percent, group } = &walk.condition;
        if *percent < 100 && user_hash(user ^ user_hash(walk.id)) % 100 >= u64::from(*percent) {
            return false;
        }
        if *group != 0 && !self.groups.parts.is_in(self.links.slots.id(slot), *group) {
            return false;
        }
        let class_of =
            || self.presence.sessions(user).iter().find(|entry| entry.slot == slot).map(|entry| entry.class());
        classes.is_empty() || class_of().is_some_and(|class| classes.iter().any(|wanted| **wanted == *class))
    }

    /// Tells how far a walk is. False if that has to be told again.
    fn tell_walk(&mut self, walk: &mut BroadcastWalk) -> bool {
        let BroadcastWalk { token, tally, end, .. } = *walk;
        match walk.asker {
            Asker::Here => self.tell_broadcast(Part { node: 0, shard: self.shard }, token, tally, end),
            Asker::There { node, shard } => {
                let Tally { delivered, overloaded } = tally;
                let (from, end) = (self.shard, end.map_or(0, End::as_u8));
                let told = FarRecord::BroadcastTold { to: shard, from, token, delivered, overloaded, end };
                if self.send_far(node, shard, &told) == Err(FarError::Full) {
                    return false;
                }
                // Who is gone needs no answer.
                if walk.end.is_some() {
                    self.broadcasts.bytes_for_others -= walk.frame.len();
                }
            }
        }
        walk.told = tally;
        true
    }

    /// The shard that has the link had no room for what was told of a walk. How far it was then is told anew when it
    /// has gone on; how it ended is told again with the next tick.
    pub(super) fn tell_walk_later(&mut self, node: NodeKey, shard: u16, token: u32, tally: Tally, end: u8) {
        if end == 0 {
            return;
        }
        if self.broadcasts.untold.len() >= WALKS_FOR_OTHERS_MAX {
            // Who asked finds out when it has waited long enough.
            return self.links.stats.mesh_answers_lost.add(1);
        }
        self.broadcasts.untold.push(Untold { node, shard, own: self.own_key(), token, tally, end });
    }

    fn tell_walks_again(&mut self) {
        let own = self.own_key();
        for untold in std::mem::take(&mut self.broadcasts.untold) {
            // To the others an earlier life of this node has left.
            if untold.own != own {
                continue;
            }
            let Untold { node, shard: to, token, tally: Tally { delivered, overloaded }, end, .. } = untold;
            let told = FarRecord::BroadcastTold { to, from: self.shard, token, delivered, overloaded, end };
            if self.send_far(node, to, &told) == Err(FarError::Full) {
                self.broadcasts.untold.push(untold);
            }
        }
    }

    fn tell_broadcast(&mut self, part: Part, token: u32, tally: Tally, end: Option<End>) {
        if let Some(portal) = &mut self.portal {
            portal.tell_news(News::Told { token, part, tally, end });
        }
    }

    /// Asks all shards of the other nodes.
    fn ask_other_nodes(&mut self, spec: &Spec) {
        let Spec { token, service, id, ref condition, ref payload } = *spec;
        let routing = self.directory.routing.clone();
        let others = routing.iter().flat_map(|routing| routing.others());
        let parts = others.flat_map(|member| (0..member.shards as u16).map(|shard| (member.key, shard)));
        let parts: Vec<(NodeKey, u16)> = parts.collect();
        let classes = condition.class_bytes();
        let Condition { percent, group, .. } = *condition;
        let asked = parts.len() as u32;
        let (from, mut waits_for) = (self.shard, Vec::new());
        for (node, to) in parts {
            let (classes, payload) = (&classes[..], &payload[..]);
            let begin = FarRecord::BroadcastBegin { to, from, token, service, id, percent, group, classes, payload };
            match self.speaks_pushes(node) && self.send_far(node, to, &begin).is_ok() {
                true => waits_for.push((node, to)),
                false => self.lost_part(node, to, token),
            }
        }
        if let Some(portal) = &mut self.portal {
            portal.tell_news(News::Asked { token, parts: asked });
        }
        if !waits_for.is_empty() {
            self.broadcasts.leads.push(Lead { token, own: self.own_key(), waits_for });
        }
    }

    fn lost_part(&mut self, node: NodeKey, shard: u16, token: u32) {
        self.tell_broadcast(Part { node: node.0, shard }, token, Tally::default(), Some(End::Lost));
    }

    /// Another node asks for a walk, or says how far one is.
    pub(super) fn broadcast_record(&mut self, node: NodeKey, record: &FarRecord<'_>) {
        match *record {
            FarRecord::BroadcastBegin { from: shard, token, service, id, percent, group, classes, payload, .. } => {
                if !self.serving || self.directory.departed.has(node) {
                    // Who asked counts this part as lost; the next life of this node is not to begin it.
                    self.links.stats.fenced.add(1);
                    return self.refuse_walk(node, shard, token);
                }
                let frame_bytes = encoded_len(Kind::Push, payload.len());
                let held = self.broadcasts.bytes_for_others;
                let few = self.broadcasts.walks.len() < WALKS_FOR_OTHERS_MAX;
                let has_room = few && (held == 0 || held + frame_bytes <= BROADCAST_BYTES_MAX);
                let fits = frame_bytes <= self.links.limits.frame_bytes_max as usize;
                let condition = Condition::of_bytes(classes, percent, group).filter(|_| has_room && fits && id != 0);
                self.links.stats.limit_broadcasts.add(u64::from(!has_room));
                let Some(condition) = condition else { return self.refuse_walk(node, shard, token) };
                let was_begun = self.was_pushed_to_all(service, id, payload);
                let frame = self.frame_of_broadcast(service, id, payload);
                self.begin_walk(Asker::There { node, shard }, (token, id), condition, frame, was_begun);
            }
            FarRecord::BroadcastStop { from: shard, token, .. } => self.stop_for(node, shard, token),
            FarRecord::BroadcastTold { from, token, delivered, overloaded, end, .. } => {
                let end = End::from_u8(end);
                let part = (node, from);
                let leads = &mut self.broadcasts.leads;
                let Some(lead) = leads.iter_mut().find(|lead| lead.token == token && lead.waits_for.contains(&part))
                else {
                    return;
                };
                if end.is_some() {
                    lead.waits_for.retain(|waits_for| *waits_for != part);
                }
                leads.retain(|lead| !lead.waits_for.is_empty());
                let part = Part { node: node.0, shard: from };
                self.tell_broadcast(part, token, Tally { delivered, overloaded }, end);
            }
            _ => {}
        }
    }

    /// A shard of another node wants what it has asked for to stop.
    fn stop_for(&mut self, node: NodeKey, shard: u16, token: u32) {
        if !self.stop_walk(Asker::There { node, shard }, token) {
            // What has ended, or never began, is told again: the answer before may not have got there.
            self.refuse_walk(node, shard, token);
        }
    }

    /// There is no room for a walk of another node.
    pub(super) fn refuse_walk(&mut self, node: NodeKey, shard: u16, token: u32) {
        let (from, end) = (self.shard, End::Lost.as_u8());
        let told = FarRecord::BroadcastTold { to: shard, from, token, delivered: 0, overloaded: 0, end };
        if self.send_far(node, shard, &told).is_err() {
            self.links.stats.mesh_answers_lost.add(1);
        }
    }

    /// A record for another node that is not confirmed.
    pub(super) fn broadcast_record_back(&mut self, node: NodeKey, record: &FarRecord<'_>) {
        match *record {
            FarRecord::BroadcastBegin { to, token, .. } => {
                let mut leads = self.broadcasts.leads.iter_mut();
                if let Some(lead) = leads.find(|lead| lead.token == token && lead.waits_for.contains(&(node, to))) {
                    lead.waits_for.retain(|part| *part != (node, to));
                    self.lost_part(node, to, token);
                }
                self.broadcasts.leads.retain(|lead| !lead.waits_for.is_empty());
            }
            FarRecord::BroadcastTold { to, .. } | FarRecord::BroadcastStop { to, .. } => {
                let lost = self.send_far(node, to, record).is_err();
                self.links.stats.mesh_answers_lost.add(u64::from(lost));
            }
            _ => {}
        }
    }

    /// What is due of pushes to all in this tick.
    pub(super) fn expire_broadcasts(&mut self) {
        let tick = self.links.tick;
        self.broadcasts.allowance = (self.links.limits.broadcast_per_sec / TICKS_PER_SEC).max(1);
        self.tell_walks_again();
        if self.broadcasts.walks.is_empty() && self.broadcasts.leads.is_empty() {
            return;
        }
        self.forget_gone_nodes();
        let tells = self.broadcasts.told_tick + ticks(TOLD_MS) <= tick;
        if tells {
            self.broadcasts.told_tick = tick;
        }
        let mut walks = std::mem::take(&mut self.broadcasts.walks);
        walks.retain_mut(|walk| match walk.end {
            Some(_) => !self.tell_walk(walk),
            None if tells && walk.told != walk.tally => {
                self.tell_walk(walk);
                true
            }
            None => true,
        });
        self.broadcasts.walks = walks;
    }

    /// Nothing more is heard of nodes that have left, nor by them, and nobody waits for those that are not reached.
    fn forget_gone_nodes(&mut self) {
        let (routing, own) = (self.directory.routing.clone(), self.own_key());
        let is_there = |node: NodeKey| routing.as_ref().is_some_and(|routing| routing.member(node).is_some());
        let mesh = self.mesh.as_ref();
        let is_silent = |node: NodeKey| mesh.is_some_and(|mesh| mesh.is_silent(node));
        let mut lost = Vec::new();
        for lead in &mut self.broadcasts.leads {
            // In a new life of this node the others have dropped what the earlier one had asked for.
            let is_same = lead.own == own;
            let gone = lead.waits_for.extract_if(.., |(node, _)| !is_same || !is_there(*node) || is_silent(*node));
            lost.extend(gone.map(|(node, shard)| (node, shard, lead.token)));
        }
        self.broadcasts.leads.retain(|lead| !lead.waits_for.is_empty());
        for (node, shard, token) in lost {
            self.lost_part(node, shard, token);
        }
        let Broadcasts { walks, bytes_for_others, .. } = &mut self.broadcasts;
        walks.retain(|walk| {
            let stays = match walk.asker {
                Asker::Here => true,
                // To the others an earlier life of this node has left, and its walks are lost.
                Asker::There { node, .. } => walk.own == own && is_there(node),
            };
            if !stays {
                *bytes_for_others -= walk.frame.len();
            }
            stays
        });
    }

    /// Walks that have not ended.
    pub(super) fn broadcast_walks(&self) -> usize {
        self.broadcasts.walks.len()
    }
}
