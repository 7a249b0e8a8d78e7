//! Calls: from a client's CALL to a worker's REQUEST, and from its ANSWER to the REPLY.
//!
//! Every CALL without NO_REPLY gets exactly one last REPLY unless its session ends first. A call is given to a second
//! worker only if the first one cannot have carried it out, or if that does no harm; what may have been carried out and
//! is not known to be ends in 25, and never runs twice.

use super::links::ticks;
use super::shard::Shard;
use crate::conn::Phase;
use crate::ids::NodeKey;
use crate::io::ConnId;
use crate::mailbox::Record;
use crate::services::{
    At, Call, CallKey, Caller, HashKey, Kept, MORE_MS, OpenCall, PickKey, Place, Pool, Room, ServiceLink,
    ServiceRecord, ServiceSpec, Services, TRIES_MAX,
};
#[cfg(test)]
use crate::simulation::{Bug, planted};
use hashbrown::HashMap;
use std::fmt::Write;
use trunkline_proto::prost::Message;
use trunkline_proto::{CallHead, Code, Frame, HEADER_LONG, Header, Kind, call_flags, decode, encode};
use trunkline_router_core::balance::ServerId;
use trunkline_router_core::presence::Presence;

/// What a head takes besides what the caller's shard has put into it: its length, and the time that is left.
const HEAD_EXTRA_BYTES: usize = 2 + 6;

/// Where the head of a call comes from, if it is needed.
#[derive(Clone, Copy, Debug)]
pub(super) enum HeadOf<'a> {
    /// The session in this slot, with the routing key and the trace of its CALL, and with where it is if the service is
    /// balanced by that.
    Session { slot: u32, peer: u64, trace: &'a [u8], with_address: bool },
    /// The shard of the session has made it.
    Given(&'a [u8]),
}

/// Why a call leaves its worker unanswered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Left {
    /// The worker says that it has not begun.
    NotBegun,
    /// The link ended before a byte of the request was handed to the kernel.
    NeverSent,
    /// The link ended, or the node is lost that had it.
    Lost,
    /// No worker had it at the node that it was handed to.
    Refused(Code),
}

impl Shard {
    /// CALL: to a worker of this shard, else to another shard that has one, else to another node.
    pub(super) fn call(&mut self, slot: u32, frame: &Frame<'_>) {
        let Frame { id, peer, aux: service, flags, .. } = *frame;
        if id == 0 {
            return self.links.error(slot, Code::BadRequest, id, peer);
        }
        let conn = self.links.slots.id(slot);
        let user = self.links.slots.at(slot).user;
        let Some(services) = &mut self.services else { return };
        self.links.stats.calls_in.add(1);
        let no_reply = flags & call_flags::NO_REPLY != 0;
        let open = services.callers.get(&slot).map_or(&[][..], Vec::as_slice);
        let refused = if open.len() >= self.links.limits.calls_per_session_max as usize {
            self.links.stats.limit_calls_session.add(1);
            Some(Code::RateLimited)
        } else if service == 0 || open.iter().any(|call| call.id == id) {
            // Of two calls with one id nobody could tell the answers apart.
            Some(Code::BadRequest)
        } else {
            None
        };
        let trace_bytes = if flags & call_flags::TRACE != 0 { call_flags::TRACE_BYTES } else { 0 };
        let parts = frame.body.split_at_checked(trace_bytes);
        let (Some((trace, body)), None) = (parts, refused) else {
            return self.refuse_call(slot, id, peer, no_reply, refused.unwrap_or(Code::BadRequest));
        };
        let with_address = services.is_addressed(service);
        if services.is_upstream(service) {
            let head = self.head_bytes(HeadOf::Session { slot, peer, trace, with_address });
            let record = ServiceRecord::Call { conn, service, flags, id, user, head: &head, body };
            return self.call_upstream(slot, OpenCall { id, peer, no_reply, place: Place::Upstream }, &record);
        }
        let serves_here = services.pools.get(&service).is_some_and(|pool| pool.is_told());
        let other_shard = if serves_here { None } else { services.other_shard(service) };
        let goes_far = !serves_here && other_shard.is_none() && services.nodes.serve(service);
        if serves_here || goes_far {
            if goes_far {
                services.pools.entry(service).or_insert_with(|| Pool::new(ServiceSpec::of(service)));
            }
            if services.calls.len() >= self.links.limits.calls_max as usize {
                self.links.stats.limit_calls.add(1);
                return self.refuse_call(slot, id, peer, no_reply, Code::Overloaded);
            }
            let caller = Caller::own(self.shard, conn);
            let Some(key) = self.add_call(caller, id, user, service, flags) else { return };
            self.note_open(slot, OpenCall { id, peer, no_reply, place: Place::Here(key) });
            return self.place_call(key, HeadOf::Session { slot, peer, trace, with_address }, body);
        }
        let Some(shard) = other_shard else {
            let code = if services.is_known(service) { Code::ServiceUnavailable } else { Code::UnknownService };
            return self.refuse_call(slot, id, peer, no_reply, code);
        };
        let head = self.head_bytes(HeadOf::Session { slot, peer, trace, with_address });
        let record = ServiceRecord::Call { conn, service, flags, id, user, head: &head, body };
        let record = Record::Service(record);
        if !self.outgoing.has_room(shard, record.encoded_len()) {
            self.links.stats.limit_mailbox.add(1);
            return self.refuse_call(slot, id, peer, no_reply, Code::Overloaded);
        }
        self.outgoing.put(shard, &record);
        self.note_open(slot, OpenCall { id, peer, no_reply, place: Place::Shard(shard) });
    }

    pub(super) fn note_open(&mut self, slot: u32, call: OpenCall) {
        if let Some(services) = &mut self.services {
            services.note_open(slot, call);
        }
    }

    /// A CALL that goes nowhere.
    pub(super) fn refuse_call(&mut self, slot: u32, id: u64, peer: u64, no_reply: bool, code: Code) {
        self.count_reply(code.as_u16());
        if !no_reply {
            let header = Header { kind: Kind::Reply, flags: 0, aux: code.as_u16(), id, peer, stamp: 0 };
            self.links.reply(slot, |out| encode(out, &header, code.text().as_bytes()));
        }
    }

    /// Counts the end of a call by the status that its caller gets.
    fn count_reply(&mut self, status: u16) {
        let stats = &self.links.stats;
        match Code::from_u16(status) {
            None => stats.calls_done.add(1),
            Some(Code::RateLimited) => stats.calls_limited.add(1),
            Some(Code::Overloaded) => stats.calls_overloaded.add(1),
            Some(Code::UnknownService) => stats.calls_unknown.add(1),
            Some(Code::ServiceUnavailable) => stats.calls_unavailable.add(1),
            Some(Code::TimedOut) => stats.calls_timed_out.add(1),
            Some(Code::OutcomeUnknown) => stats.calls_outcome_unknown.add(1),
            Some(_) => stats.calls_bad.add(1),
        }
    }

    /// Notes a call that a worker of this shard is to have.
    pub(super) fn add_call(&mut self, caller: Caller, id: u64, user: u64, service: u16, flags: u8) -> Option<CallKey> {
        let tick = self.links.tick;
        let services = self.services.as_mut()?;
        let pool = services.pools.get_mut(&service)?;
        pool.note_call();
        // A tick more: the one that runs has begun already.
        let deadline_tick = tick + ticks(pool.spec.call_timeout_ms) + 1;
        let call = Call {
            caller,
            id,
            user,
            pick_key: PickKey::Number(user),
            service,
            flags,
            tries: 0,
            far_tries: 0,
            again: false,
            may_wait: true,
            may_be_done: false,
            has_begun: false,
            deadline_tick,
            ends_tick: deadline_tick,
            sent_us: 0,
            at: At::Nowhere,
            kept: None,
        };
        Some(services.calls.add(&mut pool.fifo, call))
    }

    /// Gives a new call to a worker, or lets it wait for one.
    pub(super) fn place_call(&mut self, key: CallKey, head_of: HeadOf<'_>, body: &[u8]) {
        let Some(services) = &mut self.services else { return };
        let Some(call) = services.calls.get(key) else { return };
        let user = call.user;
        let Some(pool) = services.pools.get(&call.service) else { return };
        // Those that wait already are first.
        let (hash_key, waits, keeps) = (pool.spec.key, pool.waiting > 0, call.keeps(pool.spec.idempotent));
        if hash_key != HashKey::User {
            let pick_key = self.pick_key(hash_key, head_of, user);
            if let Some(call) = self.services.as_mut().and_then(|services| services.calls.get(key)) {
                call.pick_key = pick_key;
            }
        }
        let mut head = None;
        if keeps || self.services.as_ref().is_some_and(|services| services.heads > 0) {
            head = Some(self.head_bytes(head_of));
        }
        let room = if waits { Room::Full } else { self.give(key, head.as_deref().unwrap_or_default(), body, None) };
        match room {
            Room::At(_) if keeps => {
                let kept = Kept { head: head.unwrap_or_default().into(), body: body.into() };
                if !self.keep_call(key, kept) {
                    self.links.stats.limit_calls_kept.add(1);
                }
            }
            Room::At(_) => {}
            Room::Full | Room::Nobody if self.may_go_far(key) => {
                let head = head.unwrap_or_else(|| self.head_bytes(head_of));
                self.place_call_far(key, room, head, body);
            }
            Room::Full => {
                let head = head.unwrap_or_else(|| self.head_bytes(head_of));
                self.wait_for_room(key, head, body);
            }
            Room::Nobody => self.end_call(key, Code::ServiceUnavailable),
        }
    }

    /// Lets a new call wait for a worker, if there is room for that.
    pub(super) fn wait_for_room(&mut self, key: CallKey, head: Vec<u8>, body: &[u8]) {
        let Some(services) = &mut self.services else { return };
        let Some(call) = services.calls.get(key) else { return };
        if !call.may_wait {
            return self.end_call(key, Code::Overloaded);
        }
        let has_place = services.pools.get(&call.service);
        if has_place.is_none_or(|pool| !pool.has_queue_room()) {
            self.links.stats.limit_call_queue.add(1);
            self.end_call(key, Code::Overloaded);
        } else if self.keep_call(key, Kept { head: head.into(), body: body.into() }) {
            self.queue_call(key, None);
        } else {
            self.links.stats.limit_calls_kept.add(1);
            self.end_call(key, Code::Overloaded);
        }
    }

    /// Keeps what a worker may have to get later. False if there is no room for it.
    pub(super) fn keep_call(&mut self, key: CallKey, kept: Kept) -> bool {
        let Some(services) = &mut self.services else { return false };
        services.keep(key, kept, self.links.limits.calls_kept_bytes_max)
    }

    /// Lets a call wait for a worker that has room: behind all others, or at this place among them.
    fn queue_call(&mut self, key: CallKey, place: Option<usize>) {
        if let Some(services) = &mut self.services {
            services.queue(key, place);
        }
    }

    /// Writes the REQUEST of a call for a worker with room, if there is one; but not for the instance `except`.
    fn give(&mut self, key: CallKey, head: &[u8], body: &[u8], except: Option<ServerId>) -> Room {
        let (now, tick) = (self.now, self.links.tick);
        let Some(services) = &mut self.services else { return Room::Nobody };
        let Services { pools, calls, links, rng, scratch, .. } = &mut **services;
        let Some(call) = calls.get(key) else { return Room::Nobody };
        let Some(pool) = pools.get_mut(&call.service) else { return Room::Nobody };
        let bytes = HEADER_LONG + body.len() + head.len() + HEAD_EXTRA_BYTES;
        let conns = &mut self.links;
        let mut has_room =
            |slot: &u32| links.get(slot).is_some_and(|link| link.has_window()) && conns.has_link_room(*slot, bytes);
        let room =
            pool.pick(now.mono_ms, call.pick_key, rng, except, |instance| instance.links.iter().any(&mut has_room));
        let Room::At(at) = room else { return room };
        let instance = &pool.instances[at];
        let chosen = match instance.links[..] {
            // It was picked because this one has room.
            [only] => Some(only),
            _ => {
                let with_room = instance.links.iter().copied().filter(|slot| has_room(slot));
                with_room.min_by_key(|slot| links.get(slot).map_or(u32::MAX, |link| link.in_flight))
            }
        };
        let (Some(slot), Some(server)) = (chosen, instance.id) else { return Room::Nobody };
        let Some(link) = links.get_mut(&slot) else { return Room::Nobody };
        let again = if call.tries > 0 || call.again { call_flags::AGAIN } else { 0 };
        let with_head = if link.heads { call_flags::HEAD } else { 0 };
        let header = Header {
            kind: Kind::Request,
            flags: again | with_head | call.flags & call_flags::NO_REPLY,
            aux: call.service,
            id: key.to_wire(),
            peer: call.user,
            stamp: call.id,
        };
        if link.heads {
            let timeout_ms = call.ends_tick.saturating_sub(tick).saturating_mul(super::links::TICK_MS as u32);
            let time_left = CallHead { timeout_ms, ..CallHead::default() };
            // Of a field that comes twice the later one counts, so the time left may follow what the caller's shard has
            // put in.
            let len = head.len() + time_left.encoded_len();
            scratch.clear();
            scratch.extend_from_slice(&(len as u16).to_be_bytes());
            scratch.extend_from_slice(head);
            time_left.encode(scratch).expect("a vector has room for every message");
            scratch.extend_from_slice(body);
            conns.append(slot, |out| encode(out, &header, scratch));
        } else {
            conns.append(slot, |out| encode(out, &header, body));
        }
        link.in_flight += 1;
        call.at = At::Link { slot, server };
        call.tries += 1;
        call.sent_us = now.mono_us;
        conns.stats.requests_out.add(1);
        room
    }

    /// Who calls, for workers that ask for it; without the time that is left.
    fn head_bytes(&mut self, head_of: HeadOf<'_>) -> Vec<u8> {
        let address_text;
        let (slot, peer, trace) = match head_of {
            HeadOf::Given(head) => return head.to_vec(),
            HeadOf::Session { slot, peer, trace, with_address } => {
                let address = with_address.then(|| self.addresses.of(slot)).flatten();
                address_text = address.map(|address| address.ip().to_canonical().to_string()).unwrap_or_default();
                (slot, peer, trace)
            }
        };
        let user = self.links.slots.at(slot).user;
        let entry = self.presence.sessions(user).iter().find(|entry| entry.slot == slot);
        let mut traceparent = String::new();
        if trace.len() == call_flags::TRACE_BYTES {
            traceparent.push_str("00");
            for (at, byte) in trace.iter().enumerate() {
                let dash = if matches!(at, 0 | 16 | 24) { "-" } else { "" };
                // Writing to a String cannot fail.
                let _ = write!(traceparent, "{dash}{byte:02x}");
            }
        }
        let head = CallHead {
            device: entry.map(|entry| entry.device().to_owned()).unwrap_or_default(),
            device_class: entry.map(|entry| entry.class().to_owned()).unwrap_or_default(),
            session: entry.map_or(0, |entry| entry.session),
            timeout_ms: 0,
            traceparent,
            routing_key: peer,
            address: address_text,
        };
        head.encode_to_vec()
    }

    /// What a hash is made of for a call of a service that has this key.
    fn pick_key(&self, key: HashKey, head_of: HeadOf<'_>, user: u64) -> PickKey {
        let (peer, address) = match head_of {
            HeadOf::Session { slot, peer, .. } => (peer, self.addresses.of(slot).map(|address| address.ip())),
            HeadOf::Given(head) => {
                let head = CallHead::decode(head).unwrap_or_default();
                (head.routing_key, head.address.parse().ok())
            }
        };
        match (key, address) {
            (HashKey::Peer, _) if peer != 0 => PickKey::Number(peer),
            (HashKey::Address, Some(address)) => PickKey::Address(address.to_canonical()),
            _ => PickKey::Number(user),
        }
    }

    /// Gives the calls of a service that wait to workers, in order, as long as there is room.
    pub(super) fn drain_queue(&mut self, service: u16) {
        loop {
            let Some(services) = &mut self.services else { return };
            let Some(pool) = services.pools.get_mut(&service) else { return };
            let Some(key) = pool.first_queued() else { return };
            let kept = services.calls.get(key).filter(|call| call.at == At::Queue).and_then(|call| call.kept.take());
            let Some(kept) = kept else {
                pool.skip_ended();
                continue;
            };
            let room = self.give(key, &kept.head, &kept.body, None);
            // A node has it only while nobody is left here.
            let is_far = room == Room::Nobody && self.give_far(key, &kept.head, &kept.body, true, None);
            let Some(services) = &mut self.services else { return };
            if is_far || matches!(room, Room::At(_)) {
                services.unqueue_first(service);
                if !is_far && !services.keeps(key) {
                    services.drop_kept(&kept);
                    continue;
                }
            }
            if let Some(call) = services.calls.get(key) {
                call.kept = Some(kept);
            }
            match room {
                Room::At(_) => {}
                Room::Full => return,
                Room::Nobody if is_far => {}
                Room::Nobody => self.end_call(key, Code::ServiceUnavailable),
            }
        }
    }

    /// ANSWER of a worker.
    pub(super) fn answer(&mut self, slot: u32, frame: &Frame<'_>) {
        let now = self.now;
        let key = CallKey::from_wire(frame.id);
        let Some(services) = &mut self.services else { return };
        let Some(call) = services.calls.get(key) else { return self.links.stats.answers_late.add(1) };
        let At::Link { slot: has_it, server } = call.at else { return self.links.stats.answers_late.add(1) };
        if has_it != slot {
            return self.links.stats.answers_late.add(1);
        }
        let (service, caller, id) = (call.service, call.caller, call.id);
        let Some(pool) = services.pools.get_mut(&service) else { return };
        if frame.flags & call_flags::NOT_BEGUN != 0 && !call.has_begun {
            pool.failed(server, now.mono_ms);
            self.call_left(key, Left::NotBegun, &mut 0);
        } else if (1..256).contains(&frame.aux) {
            // Those are the gateway's own. What the worker has done nobody can tell.
            pool.failed(server, now.mono_ms);
            self.links.error(slot, Code::BadRequest, frame.id, 0);
            self.end_call(key, Code::OutcomeUnknown);
        } else if frame.flags & call_flags::MORE != 0 {
            self.begin_answer(key);
            if !self.answer_caller(caller, id, frame.aux, call_flags::MORE, frame.body) {
                self.cancel_call(key);
            }
        } else {
            pool.answered(server, now.mono_us.saturating_sub(call.sent_us), now.mono_ms);
            self.finish_call(key, frame.aux, frame.body);
        }
        self.drain_queues_of(slot);
    }

    /// The first part of an answer has come: from now on the call has another time, and nobody else can go on with it.
    pub(super) fn begin_answer(&mut self, key: CallKey) {
        let tick = self.links.tick;
        let Some(services) = &mut self.services else { return };
        services.begin_answer(key, tick + ticks(MORE_MS) + 1);
    }

    /// A link has room: for whatever waits of its services.
    fn drain_queues_of(&mut self, slot: u32) {
        let Some(services) = self.services.as_ref().filter(|services| services.queued() > 0) else { return };
        let Some(link) = services.links.get(&slot) else { return };
        for service in link.services.clone() {
            self.drain_queue(service);
        }
    }

    /// A call leaves its worker without an answer: it goes to another one if it may, else it ends. `place`: where it
    /// waits, if it has to, since it came before those that wait.
    pub(super) fn call_left(&mut self, key: CallKey, left: Left, place: &mut usize) {
        let (now_ms, tick) = (self.now.mono_ms, self.links.tick);
        let Some(services) = &mut self.services else { return };
        let node = services.calls.get(key).and_then(|call| match call.at {
            At::Node { node, .. } => Some(node),
            _ => None,
        });
        let server = services.leave_link(key);
        let keeps = services.keeps(key);
        let Some(call) = services.calls.get(key) else { return };
        let ends_with = match left {
            Left::NotBegun => Code::Overloaded,
            Left::NeverSent => Code::ServiceUnavailable,
            Left::Lost => Code::OutcomeUnknown,
            Left::Refused(code) => code,
        };
        call.may_be_done |= left == Left::Lost;
        let is_far = call.caller.is_far();
        let Some(pool) = services.pools.get_mut(&call.service) else { return };
        let has_time = call.deadline_tick > tick && !call.has_begun && call.kept.is_some();
        let may = match left {
            Left::NeverSent | Left::Refused(_) => has_time,
            Left::NotBegun | Left::Lost => {
                let may = has_time && !is_far && call.tries < TRIES_MAX && (keeps || left == Left::NotBegun);
                #[cfg(test)]
                let may = may || (has_time && planted(Bug::LostRetried));
                let in_budget = may && pool.may_retry(now_ms);
                self.links.stats.limit_call_retries.add(u64::from(may && !in_budget));
                in_budget
            }
        };
        let Some(kept) = (if may { call.kept.take() } else { None }) else { return self.end_call(key, ends_with) };
        // It was tried there. What was never sent may go to another link of the same instance.
        let except = if left == Left::NeverSent { None } else { server };
        let room = self.give(key, &kept.head, &kept.body, except);
        let is_far = match room {
            Room::At(_) => false,
            Room::Full => self.give_far(key, &kept.head, &kept.body, false, node),
            // A node that has other workers may have it again, if there is no other one.
            Room::Nobody => {
                let same = matches!(left, Left::NotBegun | Left::Lost) && node.is_some();
                self.give_far(key, &kept.head, &kept.body, true, node)
                    || (same && self.give_far(key, &kept.head, &kept.body, true, None))
            }
        };
        let Some(services) = &mut self.services else { return };
        let keeps = room == Room::Full || is_far || services.keeps(key);
        let pool = services.calls.get(key).and_then(|call| services.pools.get(&call.service));
        let queue_is_full = pool.is_none_or(|pool| !pool.has_queue_room());
        services.put_back(key, kept, keeps);
        match room {
            _ if is_far || matches!(room, Room::At(_)) => {
                let is_retry = matches!(left, Left::NotBegun | Left::Lost);
                self.links.stats.call_retries.add(u64::from(is_retry));
            }
            Room::At(_) => {}
            Room::Full if matches!(left, Left::Refused(_)) && queue_is_full => {
                self.links.stats.limit_call_queue.add(1);
                self.end_call(key, Code::Overloaded);
            }
            Room::Full => {
                self.queue_call(key, Some(*place));
                *place += 1;
            }
            Room::Nobody => self.end_call(key, ends_with),
        }
    }

    /// Ends a call with a status of the gateway's: one that says that nothing was done, unless something may have been.
    pub(super) fn end_call(&mut self, key: CallKey, code: Code) {
        let call = self.services.as_mut().and_then(|services| services.calls.get(key));
        let code = match call.is_some_and(|call| call.may_be_done) && code != Code::TimedOut {
            true => Code::OutcomeUnknown,
            false => code,
        };
        self.finish_call(key, code.as_u16(), code.text().as_bytes());
    }

    /// Ends a call: its caller gets the last answer.
    pub(super) fn finish_call(&mut self, key: CallKey, status: u16, body: &[u8]) {
        let Some(call) = self.services.as_mut().and_then(|services| services.take_out(key, self.shard)) else { return };
        #[cfg(test)]
        if call.id.is_multiple_of(10) && planted(Bug::ReplyForgotten) {
            return;
        }
        let flags = if call.caller.is_far() { super::far_calls::fate_flags(&call, status) } else { 0 };
        self.answer_caller(call.caller, call.id, status, flags, body);
    }

    /// An answer for a caller, wherever its session is. False if there is no room for it: its caller has been told
    /// something else then, and gets no more.
    pub(super) fn answer_caller(&mut self, caller: Caller, id: u64, status: u16, flags: u8, body: &[u8]) -> bool {
        let Caller { node, shard, conn } = caller;
        if node != NodeKey::OWN {
            return self.answer_node(caller, id, status, flags, body);
        }
        if shard == self.shard {
            self.reply_to(conn, id, status, flags, body);
            return true;
        }
        let record = ServiceRecord::Answer { conn, id, status, flags, body };
        self.outgoing.put(shard, &Record::Service(record));
        true
    }

    /// An answer for a caller of this shard.
    pub(super) fn reply_to(&mut self, conn: ConnId, id: u64, status: u16, flags: u8, body: &[u8]) {
        let is_there = self.links.slots.get(conn).is_some_and(|conn| conn.phase == Phase::Open);
        let ends = flags & call_flags::MORE == 0;
        let services = self.services.as_mut().filter(|_| is_there);
        let Some(OpenCall { peer, no_reply, .. }) = services.and_then(|it| it.answered(conn.slot, id, ends)) else {
            return self.links.stats.answers_to_gone.add(1);
        };
        if ends {
            self.count_reply(status);
        }
        if !no_reply {
            let header = Header { kind: Kind::Reply, flags, aux: status, id, peer, stamp: 0 };
            self.links.reply(conn.slot, |out| encode(out, &header, body));
        }
    }

    /// A connection is about to end, and with it what it had to do with calls.
    pub(super) fn calls_end(&mut self, slot: u32) {
        let conn = self.links.slots.id(slot);
        let Some(services) = &mut self.services else { return };
        if services.links.contains_key(&slot) {
            return self.worker_ends(slot);
        }
        for call in services.callers.remove(&slot).unwrap_or_default() {
            self.links.stats.calls_gone.add(1);
            if call.no_reply {
                // It was sent to be carried out, whoever is there to see it.
                continue;
            }
            match call.place {
                Place::Here(key) => self.cancel_call(key),
                Place::Shard(shard) => {
                    let record = ServiceRecord::Cancel { conn, id: call.id };
                    self.outgoing.put(shard, &Record::Service(record));
                }
                Place::Upstream => self.cancel_upstream(conn, call.id),
            }
        }
    }

    /// Nobody waits for a call any more.
    pub(super) fn cancel_call(&mut self, key: CallKey) {
        let Some(call) = self.services.as_mut().and_then(|services| services.take_out(key, self.shard)) else { return };
        #[cfg(test)]
        let call = if planted(Bug::CancelForgotten) { Call { at: At::Nowhere, ..call } } else { call };
        match call.at {
            At::Link { slot, .. } => self.send_cancel(slot, key),
            At::Node { node, shard } => self.cancel_far(key, call.id, node, shard),
            At::Nowhere | At::Queue => {}
        }
        self.drain_queue(call.service);
    }

    /// Tells a worker that it need not go on. From then on the call has no place in its window.
    fn send_cancel(&mut self, slot: u32, key: CallKey) {
        let header = Header { kind: Kind::Cancel, flags: 0, aux: 0, id: key.to_wire(), peer: 0, stamp: 0 };
        self.links.append(slot, |out| encode(out, &header, &[]));
        self.links.stats.cancels_out.add(1);
    }

    /// Ends the calls whose time is over, and looks for room for those that wait.
    pub(super) fn expire_calls(&mut self) {
        let tick = self.links.tick;
        self.expire_far_calls();
        let Some(services) = &self.services else { return };
        let pools: Vec<u16> = services.pools.keys().copied().collect();
        for service in pools {
            while let Some(key) = self.services.as_ref().and_then(|services| services.overdue(service, tick)) {
                self.links.stats.limit_call_time.add(1);
                self.time_out(key);
            }
            self.drain_queue(service);
        }
        while let Some(key) = self.services.as_ref().and_then(|services| services.overdue_stream(tick)) {
            self.links.stats.limit_call_more.add(1);
            self.time_out(key);
        }
    }

    fn time_out(&mut self, key: CallKey) {
        let now_ms = self.now.mono_ms;
        let Some(services) = &mut self.services else { return };
        let Some(call) = services.calls.get(key) else { return };
        let (service, id) = (call.service, call.id);
        let (slot, server) = match call.at {
            At::Link { slot, server } => (slot, server),
            At::Node { node, shard } => {
                self.cancel_far(key, id, node, shard);
                return self.end_call(key, Code::TimedOut);
            }
            // Those that had it have not begun, or nobody knows.
            At::Queue | At::Nowhere => return self.end_call(key, Code::Overloaded),
        };
        if let Some(pool) = services.pools.get_mut(&service) {
            pool.failed(server, now_ms);
        }
        self.send_cancel(slot, key);
        self.end_call(key, Code::TimedOut);
    }

    /// The calls of a link that ends, in the order in which they came. `pending`: frames of which the kernel has no
    /// byte.
    pub(super) fn calls_of_link_end(&mut self, slot: u32, link: &ServiceLink, pending: &[u8]) {
        let Some(services) = &self.services else { return };
        let keys = services.calls_of_link(slot, link);
        let mut unsent = unsent_requests(pending);
        let mut place = 0;
        for key in keys {
            let Some(services) = &mut self.services else { return };
            let Some(call) = services.calls.get(key) else { continue };
            let Some(kept) = unsent.remove(&key) else {
                self.call_left(key, Left::Lost, &mut place);
                continue;
            };
            call.tries -= 1;
            services.keep_unsent(key, kept);
            self.call_left(key, Left::NeverSent, &mut place);
        }
    }

    /// What another shard has to say of calls.
    pub(super) fn service_record(&mut self, from: u16, record: ServiceRecord<'_>) {
        let Some(services) = &mut self.services else { return };
        match record {
            ServiceRecord::Call { conn, service, flags, id, user, head, body } => {
                let caller = Caller::own(from, conn);
                let full = services.calls.len() >= self.links.limits.calls_max as usize;
                let serves = services.pools.get(&service).is_some_and(|pool| pool.is_told());
                let refused = match (serves, full) {
                    (false, _) => Some(Code::ServiceUnavailable),
                    (true, true) => Some(Code::Overloaded),
                    (true, false) => None,
                };
                if let Some(code) = refused {
                    self.links.stats.limit_calls.add(u64::from(code == Code::Overloaded));
                    self.answer_caller(caller, id, code.as_u16(), 0, code.text().as_bytes());
                    return;
                }
                let Some(key) = self.add_call(caller, id, user, service, flags) else { return };
                if let Some(services) = &mut self.services {
                    services.note_foreign(caller, id, key);
                }
                self.place_call(key, HeadOf::Given(head), body);
            }
            ServiceRecord::Answer { conn, id, status, flags, body } => self.reply_to(conn, id, status, flags, body),
            ServiceRecord::Cancel { conn, id } => {
                if let Some(key) = services.foreign(Caller::own(from, conn), id) {
                    self.cancel_call(key);
                }
            }
            ServiceRecord::Serves { service, instances } => services.serves(from, service, instances),
            ServiceRecord::NodeServes { node, shard, service, weight } => {
                self.node_serves(node, shard, service, weight);
            }
        }
    }
}

/// The requests among frames that were to be sent to a worker.
fn unsent_requests(pending: &[u8]) -> HashMap<CallKey, Kept> {
    let mut requests = HashMap::new();
    let mut at = 0;
    while let Ok(Some((frame, len))) = decode(&pending[at..], u32::MAX) {
        at += len;
        if frame.known() != Some(Kind::Request) {
            continue;
        }
        let mut kept = Kept { head: Box::default(), body: frame.body.into() };
        if frame.flags & call_flags::HEAD != 0
            && let Some((len, rest)) = frame.body.split_first_chunk::<2>()
            && let Some((head, body)) = rest.split_at_checked(u16::from_be_bytes(*len).into())
        {
            kept = Kept { head: head.into(), body: body.into() };
        }
        requests.insert(CallKey::from_wire(frame.id), kept);
    }
    requests
}
