//! Which HTTP server gets a call, which calls wait, and what their callers are told. No I/O and no clock.
//!
//! Every call that comes in is answered exactly once, unless it is taken back first. It is given to another server only
//! if nothing of it was handed to the first one, or if it does no harm to carry it out twice; what was handed over and
//! not answered ends in 25.

use super::answer::{Meaning, meaning};
use super::letter::Letter;
use super::service::Service;
use crate::io::ConnId;
use crate::metrics::{ShardStats, Stat};
use crate::services::{Caller, HashKey, ServiceRecord, ServiceSpec, TRIES_MAX, Target};
use bytes::Bytes;
use hashbrown::HashMap;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use trunkline_proto::prost::Message;
use trunkline_proto::{CallHead, Code, call_flags};
use trunkline_router_core::balance::{Key, ServerId};

/// What a call takes besides its body and the texts of its head.
const CALL_BYTES: usize = 1 << 10;

/// A call that has come from a shard.
#[derive(Clone, Debug)]
struct NewCall {
    caller: Caller,
    /// Those of [`call_flags`](trunkline_proto::call_flags) that CALL had.
    flags: u8,
    letter: Letter,
}

/// One request to one server.
#[derive(Clone, Debug)]
pub struct Run {
    pub at: RunId,
    pub target: Arc<Target>,
    pub letter: Letter,
    /// When the call's time is over.
    pub deadline_ms: u64,
    /// Time in which a connection has to be made.
    pub connect_ms: u64,
    /// How long the connection may be idle afterwards.
    pub keepalive_ms: u64,
}

/// Which request that is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunId {
    pub token: u64,
    pub service: u16,
    pub server: ServerId,
    pub address: SocketAddr,
}

/// What became of a request. Its connection is idle, or closed, by then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The whole answer is there. `own`: its `Trunkline-Status`.
    Answered { http: u16, own: Option<Box<[u8]>>, body: Bytes },
    /// There was no connection, or no byte of the request was handed to it.
    NotSent,
    /// The connection broke after something was handed to it, or what came was no HTTP.
    Broken,
    /// The time of the call was over.
    TimedOut,
    /// The answer is longer than a REPLY can be.
    TooLarge,
    /// There was no room for the answer.
    NoRoom,
    /// As [`Deed::Abort`] said.
    Aborted,
}

/// What is to be done.
#[derive(Clone, Debug)]
pub enum Deed {
    /// Carry out a request.
    Start(Run),
    /// Nobody waits for it any more.
    Abort { token: u64 },
    /// A part of the answer for a caller, before the last one.
    Part { caller: Caller, id: u64, status: u16, body: Bytes },
    /// The last answer for a caller.
    Answer { caller: Caller, id: u64, status: u16, body: Bytes },
}

/// Where a call is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// On its way from one place to another, within one step.
    Nowhere,
    Queue,
    Server(ServerId),
}

#[derive(Debug)]
struct Call {
    new: NewCall,
    deadline_ms: u64,
    at: At,
    /// How often something of it was handed to a server.
    tries: u8,
    /// A server that had it did not answer.
    may_be_done: bool,
    /// A part of the answer has come: nobody else can go on with it.
    has_begun: bool,
    /// Servers that it is not given to again.
    tried: Vec<ServerId>,
    bytes: usize,
}

/// What became of the search for a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Room {
    Started,
    Full,
    Nobody,
}

/// All calls to HTTP servers of a node.
#[derive(Debug)]
pub struct Desk {
    services: HashMap<u16, Service>,
    calls: HashMap<u64, Call>,
    by_caller: HashMap<(u16, ConnId, u64), u64>,
    next_token: u64,
    /// Bytes of calls.
    bytes: usize,
    running: u32,
    conns_max: u32,
    waiting: usize,
    rng: SmallRng,
    deeds: VecDeque<Deed>,
    /// The numbers of the first shard, of which those of HTTP servers are written here alone.
    stats: Arc<ShardStats>,
}

impl Desk {
    /// A desk for those of these services whose transport is HTTP. No address of any server is known yet.
    pub fn new(specs: &[ServiceSpec], conns_max: u32, stats: Arc<ShardStats>, seed: u64) -> Self {
        Desk {
            services: specs.iter().filter_map(|spec| Some((spec.service, Service::new(spec)?))).collect(),
            calls: HashMap::new(),
            by_caller: HashMap::new(),
            next_token: 1,
            bytes: 0,
            running: 0,
            conns_max,
            waiting: 0,
            // Which of two servers is drawn is no secret.
            rng: SmallRng::seed_from_u64(seed),
            deeds: VecDeque::new(),
            stats,
        }
    }

    /// The next thing to do.
    pub fn next_deed(&mut self) -> Option<Deed> {
        self.deeds.pop_front()
    }

    /// Bytes of calls that are here.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Calls that wait for a server.
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// Requests that have not ended.
    pub fn running(&self) -> u32 {
        self.running
    }

    /// What a shard has handed over. `free`: how many bytes there is room for, where calls take so many.
    pub fn take(&mut self, shard: u16, batch: &[u8], free: impl Fn(usize) -> usize, now_ms: u64) {
        let mut rest = batch;
        while let Some((record, len)) = ServiceRecord::decode(rest) {
            rest = &rest[len..];
            match record {
                ServiceRecord::Call { conn, service, flags, id, user, head, body } => {
                    // The shard has written it.
                    let head = CallHead::decode(head).unwrap_or_default();
                    let letter = Letter { service, user, id, head, body: Bytes::copy_from_slice(body), again: false };
                    self.call(NewCall { caller: Caller::own(shard, conn), flags, letter }, free(self.bytes), now_ms);
                }
                ServiceRecord::Cancel { conn, id } => self.cancel(Caller::own(shard, conn), id, now_ms),
                // Those go the other way, or between shards.
                ServiceRecord::Answer { .. } | ServiceRecord::Serves { .. } | ServiceRecord::NodeServes { .. } => {}
            }
        }
    }

    /// A call. `bytes_free`: how many bytes there is room for, here and for answers.
    fn call(&mut self, new: NewCall, bytes_free: usize, now_ms: u64) {
        let (caller, id) = (new.caller, new.letter.id);
        let head = &new.letter.head;
        let texts = head.device.len() + head.device_class.len() + head.traceparent.len();
        let bytes = CALL_BYTES + new.letter.body.len() + texts;
        let Some(service) = self.services.get_mut(&new.letter.service) else {
            return self.tell(caller, id, Code::ServiceUnavailable, None);
        };
        if bytes > bytes_free {
            self.stats.limit_upstream_bytes.add(1);
            return self.tell(caller, id, Code::Overloaded, None);
        }
        service.retries.note_call();
        let waits = service.waiting > 0;
        let deadline_ms = now_ms + service.spec.call_timeout_ms;
        let token = self.next_token;
        self.next_token += 1;
        self.bytes += bytes;
        self.by_caller.insert((caller.shard, caller.conn, id), token);
        let at = At::Nowhere;
        let call =
            Call { new, deadline_ms, at, tries: 0, may_be_done: false, has_begun: false, tried: Vec::new(), bytes };
        self.calls.insert(token, call);
        // Those that wait already are first.
        match if waits { Room::Full } else { self.start(token, now_ms) } {
            Room::Started => {}
            Room::Full => self.enqueue(token, false),
            Room::Nobody => self.end_with(token, Code::ServiceUnavailable, None),
        }
    }

    /// Nobody waits for a call any more.
    fn cancel(&mut self, caller: Caller, id: u64, now_ms: u64) {
        let Some(token) = self.by_caller.get(&(caller.shard, caller.conn, id)).copied() else { return };
        let Some(call) = self.take_out(token) else { return };
        match call.at {
            At::Server(_) => self.deeds.push_back(Deed::Abort { token }),
            At::Queue | At::Nowhere => self.drain(call.new.letter.service, now_ms),
        }
    }

    /// Ends the calls that have waited for too long, and looks for servers for the others.
    pub fn tick(&mut self, now_ms: u64) {
        if self.waiting == 0 {
            return;
        }
        let services: Vec<u16> = self.services.keys().copied().collect();
        for number in services {
            self.drain(number, now_ms);
            // One that was given to another server stands before those that came earlier.
            let Some(service) = self.services.get(&number) else { continue };
            let is_over = |call: &Call| call.at == At::Queue && call.deadline_ms <= now_ms;
            let over = service.queue.iter().copied().filter(|token| self.calls.get(token).is_some_and(is_over));
            for token in over.collect::<Vec<u64>>() {
                self.stats.limit_upstream_time.add(1);
                self.end_with(token, Code::Overloaded, None);
            }
        }
    }

    /// A request has ended. `took_us`: how long it took.
    pub fn ended(&mut self, at: RunId, end: End, took_us: u64, now_ms: u64) {
        self.running -= 1;
        let RunId { token, service: number, server, .. } = at;
        let Some(service) = self.services.get_mut(&number) else { return };
        service.balancer.released(server);
        let meaning = match &end {
            End::Answered { http, own, .. } => Some(meaning(*http, own.as_deref())),
            _ => None,
        };
        count_end(&self.stats, &end).add(1);
        let (balancer, timeout_us) = (&mut service.balancer, service.spec.call_timeout_ms * 1_000);
        match (&end, meaning) {
            (End::Aborted | End::NoRoom, _) => {}
            (_, Some(Meaning { failed: false, .. })) | (End::TooLarge, _) => {
                balancer.succeeded(server, now_ms);
                balancer.took(server, took_us, now_ms);
            }
            _ => {
                balancer.failed(server, now_ms);
                // A failure counts as the longest that a call can take, or fast refusals would attract calls.
                balancer.took(server, timeout_us, now_ms);
            }
        }
        if self.calls.get(&token).is_some_and(|call| call.at == At::Server(server)) {
            self.judge(token, server, end, meaning, now_ms);
        }
        // There is room for one more, here or, if all connections were taken, anywhere.
        if self.waiting > 0 {
            self.drain(number, now_ms);
            let others: Vec<u16> = self.services.keys().copied().filter(|other| *other != number).collect();
            others.into_iter().for_each(|other| self.drain(other, now_ms));
        }
    }

    /// A part of an answer has come; the end of it, by [`Desk::ended`], follows. What comes for a call that nobody
    /// waits for any more is nobody's.
    pub fn part(&mut self, at: RunId, status: u16, body: Bytes) {
        let call = self.calls.get_mut(&at.token).filter(|call| call.at == At::Server(at.server));
        let Some(call) = call else { return self.stats.upstream_parts_late.add(1) };
        // Whatever its end is, something was done.
        (call.has_begun, call.may_be_done) = (true, true);
        let (caller, id) = (call.new.caller, call.new.letter.id);
        self.stats.upstream_parts.add(1);
        self.deeds.push_back(Deed::Part { caller, id, status, body });
    }

    /// What the end of its request is for a call.
    fn judge(&mut self, token: u64, server: ServerId, end: End, meaning: Option<Meaning>, now_ms: u64) {
        let Some(call) = self.calls.get_mut(&token) else { return };
        call.tried.push(server);
        match (end, meaning) {
            (End::NotSent, _) => self.again_or(token, true, Code::ServiceUnavailable, None, now_ms),
            (End::Answered { http, .. }, Some(meaning)) if meaning.refused => {
                call.tries += 1;
                self.again_or(token, false, Code::Overloaded, Some(http), now_ms);
            }
            (End::Answered { body, .. }, Some(Meaning { status, has_body: true, .. })) => {
                self.finish(token, status, body);
            }
            (End::Answered { http, .. }, Some(meaning)) => {
                let code = Code::from_u16(meaning.status).unwrap_or(Code::OutcomeUnknown);
                self.end_with(token, code, Some(http));
            }
            (End::Broken | End::Answered { .. }, _) => {
                call.tries += 1;
                call.may_be_done = true;
                self.again_or(token, false, Code::OutcomeUnknown, None, now_ms);
            }
            (End::TimedOut, _) => {
                self.stats.limit_upstream_more.add(u64::from(call.has_begun));
                self.end_with(token, Code::TimedOut, None);
            }
            (End::TooLarge, _) => {
                self.stats.limit_upstream_answer.add(1);
                self.end_with(token, Code::OutcomeUnknown, None);
            }
            (End::NoRoom | End::Aborted, _) => {
                self.stats.limit_upstream_bytes.add(1);
                self.end_with(token, Code::OutcomeUnknown, None);
            }
        }
    }

    /// Gives a call to a server that has not had it, if it may be; else it ends with `code`. `harmless`: nothing of it
    /// was handed over.
    fn again_or(&mut self, token: u64, harmless: bool, code: Code, http: Option<u16>, now_ms: u64) {
        let Some(call) = self.calls.get_mut(&token) else { return };
        call.at = At::Nowhere;
        let Some(service) = self.services.get_mut(&call.new.letter.service) else { return };
        let repeatable = service.spec.idempotent || call.new.flags & call_flags::SAFE != 0;
        let has_time = call.deadline_ms > now_ms && !call.has_begun;
        let may = has_time && (harmless || (repeatable && call.tries < TRIES_MAX));
        // Without another server there is nothing to try, and nothing of the budget is spent.
        let others = may && service.may_have(now_ms, &call.tried);
        let in_budget = others && service.retries.take(now_ms);
        self.stats.limit_upstream_retries.add(u64::from(others && !in_budget));
        if !in_budget {
            return self.end_with(token, code, http);
        }
        call.new.letter.again = call.tries > 0;
        match self.start(token, now_ms) {
            Room::Started => self.stats.upstream_retries.add(1),
            // It came before those that wait.
            Room::Full => self.enqueue(token, true),
            Room::Nobody => self.end_with(token, code, http),
        }
    }

    /// Gives a call to a server that has a connection for it.
    fn start(&mut self, token: u64, now_ms: u64) -> Room {
        let Some(call) = self.calls.get_mut(&token) else { return Room::Nobody };
        let Some(service) = self.services.get_mut(&call.new.letter.service) else { return Room::Nobody };
        if self.running >= self.conns_max {
            let room = if service.may_have(now_ms, &call.tried) { Room::Full } else { Room::Nobody };
            self.stats.limit_upstream_conns.add(u64::from(room == Room::Full));
            return room;
        }
        let letter = &call.new.letter;
        let key = match service.spec.key {
            HashKey::Peer if letter.head.routing_key != 0 => Key::User(letter.head.routing_key),
            HashKey::Address if !letter.head.address.is_empty() => Key::Bytes(letter.head.address.as_bytes()),
            _ => Key::User(letter.user),
        };
        let (places, tried) = (&service.places, &call.tried);
        let is_new = |at: usize| places.get(at).is_some_and(|place| place.id.is_none_or(|id| !tried.contains(&id)));
        let picked = service.balancer.pick_among(now_ms, Some(key), &mut self.rng, is_new);
        let found =
            picked.ok().and_then(|id| places.iter().find(|place| place.id == Some(id)).map(|place| (id, place)));
        let Some((server, place)) = found else {
            return if service.may_have(now_ms, tried) { Room::Full } else { Room::Nobody };
        };
        service.balancer.connected(server);
        self.running += 1;
        self.stats.upstream_requests.add(1);
        call.at = At::Server(server);
        let at = RunId { token, service: letter.service, server, address: place.address };
        self.deeds.push_back(Deed::Start(Run {
            at,
            target: service.targets[place.server].clone(),
            letter: letter.clone(),
            deadline_ms: call.deadline_ms,
            connect_ms: service.http.connect_timeout_ms,
            keepalive_ms: service.http.keepalive_ms,
        }));
        Room::Started
    }

    /// Lets a call wait, if there is room for it: behind all others, or before them.
    fn enqueue(&mut self, token: u64, first: bool) {
        let Some(call) = self.calls.get_mut(&token) else { return };
        let Some(service) = self.services.get_mut(&call.new.letter.service) else { return };
        if service.waiting >= service.spec.queue as usize {
            self.stats.limit_upstream_queue.add(1);
            return self.end_with(token, Code::Overloaded, None);
        }
        call.at = At::Queue;
        if first {
            service.queue.push_front(token);
        } else {
            service.queue.push_back(token);
        }
        service.waiting += 1;
        self.waiting += 1;
    }

    /// Gives the calls of a service that wait to servers, in order, as long as there is room.
    fn drain(&mut self, number: u16, now_ms: u64) {
        loop {
            let Some(service) = self.services.get_mut(&number) else { return };
            let Some(token) = service.queue.front().copied() else { return };
            if !self.calls.get(&token).is_some_and(|call| call.at == At::Queue) {
                service.queue.pop_front();
                continue;
            }
            if self.calls.get(&token).is_some_and(|call| call.deadline_ms <= now_ms) {
                self.stats.limit_upstream_time.add(1);
                self.end_with(token, Code::Overloaded, None);
                continue;
            }
            match self.start(token, now_ms) {
                Room::Full => return,
                Room::Started => {
                    self.waiting -= 1;
                    if let Some(service) = self.services.get_mut(&number) {
                        service.queue.pop_front();
                        service.waiting -= 1;
                    }
                }
                Room::Nobody => self.end_with(token, Code::ServiceUnavailable, None),
            }
        }
    }

    /// Ends a call with a status of the gateway's: one that says that nothing was done, unless something may have been.
    fn end_with(&mut self, token: u64, code: Code, http: Option<u16>) {
        let Some(call) = self.take_out(token) else { return };
        let unknown = call.may_be_done && code != Code::TimedOut;
        let code = if unknown { Code::OutcomeUnknown } else { code };
        self.tell(call.new.caller, call.new.letter.id, code, http.filter(|_| !unknown));
    }

    fn tell(&mut self, caller: Caller, id: u64, code: Code, http: Option<u16>) {
        let body = match http {
            None => Bytes::from_static(code.text().as_bytes()),
            Some(http) => Bytes::from(format!("{} (HTTP {http})", code.text())),
        };
        self.deeds.push_back(Deed::Answer { caller, id, status: code.as_u16(), body });
    }

    /// Ends a call with an answer of its server's.
    fn finish(&mut self, token: u64, status: u16, body: Bytes) {
        if let Some(call) = self.take_out(token) {
            self.deeds.push_back(Deed::Answer { caller: call.new.caller, id: call.new.letter.id, status, body });
        }
    }

    /// Takes a call out of all that knows of it, but its request.
    fn take_out(&mut self, token: u64) -> Option<Call> {
        let call = self.calls.remove(&token)?;
        self.bytes -= call.bytes;
        let Caller { shard, conn, .. } = call.new.caller;
        let name = (shard, conn, call.new.letter.id);
        if self.by_caller.get(&name) == Some(&token) {
            self.by_caller.remove(&name);
        }
        if call.at == At::Queue
            && let Some(service) = self.services.get_mut(&call.new.letter.service)
        {
            service.waiting -= 1;
            self.waiting -= 1;
            let calls = &self.calls;
            if service.queue.len() > 2 * service.waiting + 64 {
                service.queue.retain(|token| calls.get(token).is_some_and(|call| call.at == At::Queue));
            }
        }
        Some(call)
    }

    /// A name stands for these addresses now. Those that it had before and has no more get no more calls.
    pub fn resolved(&mut self, number: u16, server: usize, addresses: &[SocketAddr], now_ms: u64) {
        let Some(service) = self.services.get_mut(&number) else { return };
        service.resolved(server, addresses, now_ms);
        self.drain(number, now_ms);
    }

    /// The addresses of a service that checks are for, each with its server.
    pub fn places(&self, number: u16) -> Vec<(SocketAddr, Arc<Target>)> {
        let Some(service) = self.services.get(&number) else { return Vec::new() };
        service.places.iter().map(|place| (place.address, service.targets[place.server].clone())).collect()
    }

    /// What a check of an address has shown.
    pub fn checked(&mut self, number: u16, address: SocketAddr, is_well: bool, now_ms: u64) {
        self.stats.upstream_checks_failed.add(u64::from(!is_well));
        let Some(service) = self.services.get_mut(&number) else { return };
        service.checked(address, is_well, now_ms);
        self.drain(number, now_ms);
    }
}

fn count_end<'a>(stats: &'a ShardStats, end: &End) -> &'a Stat {
    match end {
        End::Answered { http: 200..300, .. } => &stats.upstream_done,
        End::Answered { http: 429 | 503, .. } => &stats.upstream_busy,
        End::Answered { http: 400..500, .. } => &stats.upstream_4xx,
        End::Answered { http: 500..600, .. } => &stats.upstream_5xx,
        End::Answered { .. } => &stats.upstream_strange,
        End::NotSent => &stats.upstream_not_sent,
        End::Broken => &stats.upstream_broken,
        End::TimedOut => &stats.upstream_timed_out,
        End::TooLarge => &stats.upstream_too_large,
        End::NoRoom | End::Aborted => &stats.upstream_aborted,
    }
}

#[cfg(test)]
mod tests;
