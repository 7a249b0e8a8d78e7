//! Calls across nodes: what goes to other nodes because no worker of this one takes it, and what comes from them.
//!
//! The node of the caller keeps a call in its table as one that it has a worker for: its time, what may be done again,
//! and the one last answer are its own affair. The other node has it in its table too, for a caller that is a call of
//! the first node; it gives it to one of its workers, of the shard that was named, and to nobody else. What it says is
//! an answer of the worker, or that no worker had it, so that the caller's node may try elsewhere, or that nobody
//! knows. Whatever of this is lost on the way with a node or a link is made up for by the caller's node, which knows
//! when a node is gone and whose clock runs.

use super::calls::{HeadOf, Left};
use super::links::{TICK_MS, ticks};
use super::shard::Shard;
use crate::ids::NodeKey;
use crate::mailbox::Record;
use crate::mesh::peers::{FarError, GivenBack};
use crate::mesh::wire::{CALLS_SINCE, FarCall, Record as FarRecord, Seat, answer_flags, far_call_flags};
use crate::services::{At, Call, CallKey, Caller, Kept, Room, ServiceRecord};
#[cfg(test)]
use crate::simulation::{Bug, planted};
use std::collections::BTreeMap;
use trunkline_proto::{Code, HEADER_LONG, call_flags};
use trunkline_router_core::Policy;

/// How often a call is handed to other nodes.
const FAR_TRIES_MAX: u8 = 4;
/// Services that a node is told of in a tick; the rest waits for the next.
const NEWS_PER_TICK: usize = 256;
/// How often it is looked which nodes are reached.
const LOOK_MS: u64 = 1_000;
/// How often nodes are told all again: of two shards of a node one may have heard before it knew the view.
const TELL_AGAIN_MS: u64 = 10_000;

/// What the node of a caller is told of how a call has ended here, beside the status.
pub(super) fn fate_flags(call: &Call, status: u16) -> u8 {
    let is_refused = matches!(Code::from_u16(status), Some(Code::Overloaded | Code::ServiceUnavailable));
    match is_refused && !call.may_be_done {
        true if call.tries == 0 => answer_flags::UNTRIED,
        true => answer_flags::NOT_BEGUN,
        false => 0,
    }
}

impl Shard {
    /// Whether this node and another one know the records about calls.
    fn speaks_of_calls(&self, node: NodeKey) -> bool {
        let Some(routing) = &self.directory.routing else { return false };
        let speaks = |node| routing.member(node).is_some_and(|member| member.protocol >= CALLS_SINCE);
        speaks(node) && speaks(routing.own())
    }

    /// The nodes whose calls workers of this one may get.
    pub(super) fn names_of_nodes_that_hand_calls_on(&self) -> Vec<String> {
        let Some(routing) = self.directory.routing.as_ref().filter(|_| !self.alone) else { return Vec::new() };
        let nodes = routing.others().filter(|member| self.speaks_of_calls(member.key));
        let mut names: Vec<String> = nodes.map(|member| member.name.to_string()).collect();
        names.push(self.node.clone());
        names.sort_unstable();
        names
    }

    /// Whether a call may be handed to another node now, if one is there that serves it.
    pub(super) fn may_go_far(&mut self, key: CallKey) -> bool {
        let (alone, serving, tick) = (self.alone, self.serving, self.links.tick);
        let Some(services) = self.services.as_mut().filter(|_| !alone && serving) else { return false };
        let Some(call) = services.calls.get(key) else { return false };
        let may = !call.caller.is_far() && call.far_tries < FAR_TRIES_MAX && call.deadline_tick > tick;
        let service = call.service;
        may && services.nodes.serve(service)
    }

    /// A new call for which no worker here has room: hands it to another node, else lets it wait or end.
    pub(super) fn place_call_far(&mut self, key: CallKey, room: Room, head: Vec<u8>, body: &[u8]) {
        let comes_back = {
            let kept_bytes = self.services.as_ref().map_or(0, |services| services.kept_bytes());
            kept_bytes + head.len() + body.len() <= self.links.limits.calls_kept_bytes_max
        };
        if self.give_far(key, &head, body, room == Room::Nobody || !comes_back, None) {
            let is_kept = comes_back && self.keep_call(key, Kept { head: head.into(), body: body.into() });
            self.links.stats.limit_calls_kept.add(u64::from(!is_kept));
            return;
        }
        match room {
            Room::Full => self.wait_for_room(key, head, body),
            Room::Nobody | Room::At(_) => self.end_call(key, Code::ServiceUnavailable),
        }
    }

    /// Hands a call to another node that serves it, but not to `except`. `waits`: it may wait there for a worker with
    /// room, unless others may have one at once. False if there is no such node, or no way to it.
    pub(super) fn give_far(
        &mut self,
        key: CallKey,
        head: &[u8],
        body: &[u8],
        waits: bool,
        except: Option<NodeKey>,
    ) -> bool {
        if !self.may_go_far(key) {
            return false;
        }
        let (tick, now_us, from) = (self.links.tick, self.now.mono_us, self.shard);
        let mut except: Vec<NodeKey> = except.into_iter().collect();
        for _ in 0..FAR_TRIES_MAX {
            let Some(services) = &mut self.services else { return false };
            let Some(call) = services.calls.get(key) else { return false };
            let (service, user, id, is_first) = (call.service, call.user, call.id, call.far_tries == 0);
            let again = if call.tries > 0 { far_call_flags::AGAIN } else { 0 };
            let flags = call.flags & (call_flags::SAFE | call_flags::NO_REPLY) | again;
            let timeout_ms = call.deadline_tick.saturating_sub(tick).saturating_mul(TICK_MS as u32);
            let policy = services.pools.get(&service).map_or(Policy::RoundRobin, |pool| pool.spec.policy);
            let of_hash = call.pick_key.number();
            let place = services.nodes.pick(service, policy, of_hash, (tick, waits), &except, &mut services.rng);
            let Some((node, shard)) = place else { return false };
            let may_wait = waits && !(is_first && services.nodes.are_several(service));
            let flags = flags | if may_wait { 0 } else { far_call_flags::NO_WAIT };
            let call = FarCall { service, flags, id, user, timeout_ms, head, body };
            let seat = Seat { shard: from, conn: key.to_conn() };
            match self.send_far(node, shard, &FarRecord::Call { to: shard, seat, call }) {
                Ok(()) => {
                    let call = self.services.as_mut().and_then(|services| services.calls.get(key));
                    if let Some(call) = call {
                        call.at = At::Node { node, shard };
                        call.tries += 1;
                        call.far_tries += 1;
                        call.sent_us = now_us;
                    }
                    self.links.stats.calls_to_nodes.add(1);
                    return true;
                }
                Err(FarError::TooLong) => return false,
                Err(FarError::Full | FarError::Unreachable | FarError::Unknown) => except.push(node),
            }
        }
        false
    }

    /// Nobody waits any more for a call that another node has.
    pub(super) fn cancel_far(&mut self, key: CallKey, id: u64, node: NodeKey, shard: u16) {
        #[cfg(test)]
        if planted(Bug::FarCancelForgotten) {
            return;
        }
        let seat = Seat { shard: self.shard, conn: key.to_conn() };
        if self.send_far(node, shard, &FarRecord::CallCancel { to: shard, seat, id }).is_err() {
            // It ends there when its time is over, or with the node.
            self.links.stats.mesh_answers_lost.add(1);
        }
    }

    /// What another node has to say of calls.
    pub(super) fn call_record(&mut self, node: NodeKey, record: &FarRecord<'_>) {
        if self.services.is_none() {
            if let FarRecord::Call { seat, call, .. } = *record {
                self.refuse_far_call(node, seat, call.id, Code::ServiceUnavailable);
            }
            return;
        }
        match *record {
            FarRecord::Call { seat, call, .. } => self.far_call(node, seat, &call),
            FarRecord::Answer { seat, status, flags, body, .. } => {
                self.far_answer(node, CallKey::from_conn(seat.conn), status, flags, body);
            }
            FarRecord::CallCancel { seat, id, .. } => {
                self.cancel_foreign(node, seat, id);
            }
            FarRecord::ServiceHere { service, shard, weight } => {
                let news = Record::Service(ServiceRecord::NodeServes { node, shard, service, weight });
                for other in (0..self.shards).filter(|other| *other != self.shard) {
                    self.outgoing.put(other, &news);
                }
                self.node_serves(node, shard, service, weight);
            }
            _ => {}
        }
    }

    /// Nobody waits any more for a call of another node, if this shard has it.
    pub(super) fn cancel_foreign(&mut self, node: NodeKey, seat: Seat, id: u64) {
        let caller = Caller { node, shard: seat.shard, conn: seat.conn };
        let key = self.services.as_ref().and_then(|services| services.foreign(caller, id));
        if let Some(key) = key {
            self.cancel_call(key);
        }
    }

    /// A CALL of a client of another node.
    fn far_call(&mut self, node: NodeKey, seat: Seat, asked: &FarCall<'_>) {
        let FarCall { service, flags, id, user, timeout_ms, head, body } = *asked;
        self.links.stats.calls_from_nodes.add(1);
        if !self.serving || self.directory.departed.has(node) {
            self.links.stats.fenced.add(1);
            return self.refuse_far_call(node, seat, id, Code::ServiceUnavailable);
        }
        let (tick, frame_bytes_max) = (self.links.tick, self.links.limits.frame_bytes_max as usize);
        let Some(services) = &mut self.services else { return };
        let full = services.calls.len() >= self.links.limits.calls_max as usize;
        let serves = !services.is_upstream(service) && services.pools.get(&service).is_some_and(|pool| pool.is_told());
        let caller = Caller { node, shard: seat.shard, conn: seat.conn };
        if !serves || HEADER_LONG + body.len() > frame_bytes_max || head.len() > usize::from(u16::MAX) / 2 {
            return self.refuse_far_call(node, seat, id, Code::ServiceUnavailable);
        }
        if full {
            self.links.stats.limit_calls.add(1);
            return self.refuse_far_call(node, seat, id, Code::Overloaded);
        }
        if let Some(key) = services.foreign(caller, id) {
            // Its node has given that up and asks again.
            self.cancel_call(key);
        }
        let flags_of_client = flags & (call_flags::SAFE | call_flags::NO_REPLY);
        let Some(key) = self.add_call(caller, id, user, service, flags_of_client) else { return };
        let Some(services) = &mut self.services else { return };
        services.note_foreign(caller, id, key);
        if let Some(call) = services.calls.get(key) {
            call.again = flags & far_call_flags::AGAIN != 0;
            call.may_wait = flags & far_call_flags::NO_WAIT == 0;
            call.ends_tick = call.deadline_tick.min(tick.saturating_add(ticks(timeout_ms.into())));
        }
        self.place_call(key, HeadOf::Given(head), body);
    }

    /// No worker of this node gets a call of another one.
    pub(super) fn refuse_far_call(&mut self, node: NodeKey, seat: Seat, id: u64, code: Code) {
        let caller = Caller { node, shard: seat.shard, conn: seat.conn };
        self.answer_node(caller, id, code.as_u16(), answer_flags::UNTRIED, code.text().as_bytes());
    }

    /// An answer for a call of another node. False if there is no room for it: then that node is told that nobody
    /// knows the outcome.
    pub(super) fn answer_node(&mut self, caller: Caller, id: u64, status: u16, flags: u8, body: &[u8]) -> bool {
        let Caller { node, shard, conn } = caller;
        let seat = Seat { shard, conn };
        if self.send_far(node, shard, &FarRecord::Answer { seat, id, status, flags, body }).is_ok() {
            return true;
        }
        let code = Code::OutcomeUnknown;
        let (status, body) = (code.as_u16(), code.text().as_bytes());
        if self.send_far(node, shard, &FarRecord::Answer { seat, id, status, flags: 0, body }).is_err() {
            // Its own clock tells it.
            self.links.stats.mesh_answers_lost.add(1);
        }
        false
    }

    /// What became of a call that another node has.
    fn far_answer(&mut self, node: NodeKey, key: CallKey, status: u16, flags: u8, body: &[u8]) {
        let (tick, frame_bytes_max) = (self.links.tick, self.links.limits.frame_bytes_max as usize);
        let Some(services) = &mut self.services else { return };
        let Some(call) = services.calls.get(key) else { return self.links.stats.answers_late.add(1) };
        let At::Node { node: has_it, shard } = call.at else { return self.links.stats.answers_late.add(1) };
        if has_it != node {
            return self.links.stats.answers_late.add(1);
        }
        let (service, caller, id) = (call.service, call.caller, call.id);
        let code = Code::from_u16(status);
        if flags & answer_flags::UNTRIED != 0 && !call.has_begun {
            services.nodes.refused(node, shard, service, tick);
            let code = if code == Some(Code::Overloaded) { Code::Overloaded } else { Code::ServiceUnavailable };
            self.links.stats.calls_back_from_nodes.add(1);
            self.far_refused(key, code);
        } else if flags & answer_flags::NOT_BEGUN != 0 && !call.has_begun {
            self.call_left(key, Left::NotBegun, &mut 0);
        } else if code == Some(Code::OutcomeUnknown) {
            self.call_left(key, Left::Lost, &mut 0);
        } else if HEADER_LONG + body.len() > frame_bytes_max {
            // It was carried out, and its answer is longer than what this node's clients take.
            if flags & answer_flags::MORE != 0 {
                self.cancel_far(key, id, node, shard);
            }
            self.end_call(key, Code::OutcomeUnknown);
        } else if flags & answer_flags::MORE != 0 {
            self.begin_answer(key);
            self.answer_caller(caller, id, status, call_flags::MORE, body);
        } else {
            self.finish_call(key, status, body);
        }
    }

    /// No worker there has had the call.
    fn far_refused(&mut self, key: CallKey, code: Code) {
        if let Some(call) = self.services.as_mut().and_then(|services| services.calls.get(key)) {
            call.tries = call.tries.saturating_sub(1);
        }
        self.call_left(key, Left::Refused(code), &mut 0);
    }

    /// A shard of another node has told what its workers of a service weigh.
    pub(super) fn node_serves(&mut self, node: NodeKey, shard: u16, service: u16, weight: u32) {
        let is_gone = self.directory.departed.has(node);
        let Some(services) = self.services.as_mut().filter(|_| !is_gone && service != 0) else { return };
        if !services.nodes.heard(node, shard, service, weight) {
            self.links.stats.limit_service_places.add(1);
        }
    }

    /// A record about calls was queued for a node and will not be confirmed.
    pub(super) fn call_record_back(&mut self, back: &GivenBack, record: &FarRecord<'_>) {
        match *record {
            FarRecord::Call { to, seat, .. } => {
                let key = CallKey::from_conn(seat.conn);
                let call = self.services.as_mut().and_then(|services| services.calls.get(key));
                if call.is_some_and(|call| call.at == At::Node { node: back.node, shard: to }) {
                    match back.maybe_received {
                        true => self.call_left(key, Left::Lost, &mut 0),
                        false => self.far_refused(key, Code::ServiceUnavailable),
                    }
                }
            }
            // Parts of it are missing: nothing can follow them.
            FarRecord::Answer { seat, id, flags, .. } if flags & answer_flags::MORE != 0 => {
                let caller = Caller { node: back.node, shard: seat.shard, conn: seat.conn };
                let code = Code::OutcomeUnknown;
                self.answer_node(caller, id, code.as_u16(), 0, code.text().as_bytes());
                self.cancel_foreign(back.node, seat, id);
            }
            // Should it have arrived, the call has ended there, and this finds nothing.
            FarRecord::Answer { seat, id, status, flags, body } => {
                let caller = Caller { node: back.node, shard: seat.shard, conn: seat.conn };
                self.answer_node(caller, id, status, flags, body);
            }
            FarRecord::CallCancel { to, .. } => {
                let sent = self.send_far(back.node, to, record);
                self.links.stats.mesh_answers_lost.add(u64::from(sent.is_err()));
            }
            FarRecord::ServiceHere { service, .. } => {
                if let Some(services) = &mut self.services {
                    services.nodes.untold(back.node, service);
                }
            }
            _ => {}
        }
    }

    /// There is a new view. `reborn`: this node counts as another one, of which no other node knows.
    pub(super) fn calls_moved(&mut self, reborn: bool) {
        let Some(routing) = self.directory.routing.clone() else { return };
        let soon = self.links.tick + 1;
        let Some(services) = &mut self.services else { return };
        services.nodes.retain(|node| !reborn && routing.member(node).is_some());
        // Before a call at a node that is gone ends, its record is given back if it was never sent.
        services.nodes.look_at(soon);
        if reborn {
            self.give_up_nodes(|_| true);
            self.cancel_calls_of_nodes(|_| true);
        }
    }

    /// Nodes live on and have lost what was told to them.
    pub(super) fn services_again(&mut self, nodes: &[NodeKey]) {
        if let Some(services) = &mut self.services {
            nodes.iter().for_each(|node| services.nodes.lost(*node));
        }
    }

    /// Calls that such nodes have, or have handed on, are over.
    fn give_up_nodes(&mut self, gone: impl Fn(NodeKey) -> bool) {
        let Some(services) = &self.services else { return };
        for (key, id, node, shard) in services.calls_at_nodes(gone) {
            // If it is only out of reach it hears of it later.
            if self.speaks_of_calls(node) {
                self.cancel_far(key, id, node, shard);
            }
            self.call_left(key, Left::Lost, &mut 0);
        }
    }

    /// The same for calls of nodes that are no members any more.
    fn cancel_calls_of_nodes(&mut self, gone: impl Fn(NodeKey) -> bool) {
        let Some(services) = &self.services else { return };
        for key in services.foreign_of(gone) {
            let call = self.services.as_mut().and_then(|services| services.calls.get(key));
            if call.is_some_and(|call| call.flags & call_flags::NO_REPLY == 0) {
                self.cancel_call(key);
            }
        }
    }

    /// Whether calls of other nodes are open here.
    pub(super) fn has_far_calls(&self) -> bool {
        self.services.as_ref().is_some_and(|services| services.has_far_calls())
    }

    /// What is due in this tick.
    pub(super) fn expire_far_calls(&mut self) {
        let tick = self.links.tick;
        let Some(routing) = self.directory.routing.clone().filter(|_| !self.alone) else { return };
        let Some(services) = &mut self.services else { return };
        let is_member = |node: NodeKey| routing.member(node).is_some();
        if services.nodes.take_look(tick) {
            self.give_up_nodes(|node| !is_member(node));
            self.cancel_calls_of_nodes(|node| !is_member(node));
        }
        if tick.is_multiple_of(ticks(LOOK_MS)) {
            self.look_at_silent_nodes();
        }
        if (tick + u32::from(self.shard)).is_multiple_of(ticks(TELL_AGAIN_MS))
            && let Some(services) = &mut self.services
        {
            services.nodes.tell_again();
        }
        self.tell_nodes_of_services();
    }

    /// Nodes that are not reached will not answer.
    fn look_at_silent_nodes(&mut self) {
        let (Some(services), Some(mesh)) = (&self.services, &self.mesh) else { return };
        let Some(routing) = self.directory.routing.as_ref().filter(|_| services.calls.len() > 0) else { return };
        let silent = routing.others().map(|member| member.key).filter(|node| mesh.is_silent(*node));
        let silent: Vec<NodeKey> = silent.collect();
        if !silent.is_empty() {
            self.give_up_nodes(|node| silent.contains(&node));
        }
    }

    /// Tells the other nodes which services have workers here that take calls.
    fn tell_nodes_of_services(&mut self) {
        let drains = self.drain.is_some();
        let Some(routing) = self.directory.routing.clone() else { return };
        let Some(services) = &mut self.services else { return };
        if !services.nodes.take_news(drains) {
            return;
        }
        let pools = services.pools.iter().filter(|(service, _)| !drains && !services.is_upstream(**service));
        let weights = pools.map(|(service, pool)| (*service, pool.weight())).filter(|(_, weight)| *weight > 0);
        let weights: BTreeMap<u16, u32> = weights.collect();
        for member in routing.others() {
            if !self.speaks_of_calls(member.key) {
                continue;
            }
            let Some(services) = &mut self.services else { return };
            let news = services.nodes.news_for(member.key, &weights, NEWS_PER_TICK);
            let mut is_left = news.len() == NEWS_PER_TICK;
            let to = self.shard % member.shards.clamp(1, u32::from(u16::MAX)) as u16;
            for (service, weight) in news {
                let record = FarRecord::ServiceHere { service, shard: self.shard, weight };
                if self.send_far(member.key, to, &record).is_err() {
                    is_left = true;
                    break;
                }
                if let Some(services) = &mut self.services {
                    services.nodes.told(member.key, service, weight);
                }
            }
            if let Some(services) = self.services.as_mut().filter(|_| is_left) {
                services.nodes.note_news();
            }
        }
    }
}
