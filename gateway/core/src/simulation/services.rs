//! Calls and workers on simulated I/O: workers, some of them over TLS, that answer late, in parts or not at all,
//! refuse, drain, shrink away and break off; callers that leave; connections that break by themselves. A service has
//! HTTP servers instead, see `upstreams`. Some workers are servers that the node dials, see `dialed`.
//!
//! Properties:
//! - a call gets exactly one last REPLY while its session lasts;
//! - a status that says that nothing was carried out is true, and what is not SAFE reaches a worker that begins it
//!   once, what is SAFE twice at most;
//! - a worker never has more requests than its window, and hears of each whose caller is gone or whose time is over;
//! - nothing is left of it when all have gone, and every call is counted once.

use super::dialed::Dialed;
use super::node::{Node, NodeConfig};
use super::planted::with_planted;
use super::tls::TlsEnd;
use super::upstreams::{SPEC, UPSTREAM, Upstreams};
use super::{Bug, SharedWorld, World};
use crate::control::Control;
use crate::io::sim::{Faults, Rng};
use crate::limits::Limits;
use crate::services::{DialedServers, ServiceSpec, ServicesConfig, WorkerKeys};
use crate::transport::tls::{Certificates, TicketSecret, TlsSwitch};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use trunkline_proto::{
    FRAME_BYTES_MAX_LIMIT, Header, Kind, Login, Offer, Serve, VERSION, call_flags, decode, encode, encode_message,
};

const SERVICE: u16 = 7;
/// The key that workers show.
pub(super) const WORKER_KEY: &str = "the worker's key";

/// Keys of workers: there is one, and it may serve one service.
#[derive(Debug)]
pub(super) struct OneKey(pub(super) u16);

impl WorkerKeys for OneKey {
    fn are_needed(&self) -> bool {
        true
    }

    fn may_serve(&self, key: &str, mut services: &mut dyn Iterator<Item = u32>) -> Option<bool> {
        (key == WORKER_KEY).then(|| Iterator::all(&mut services, |service| service == u32::from(self.0)))
    }

    fn may_push_to_groups(&self, key: &str) -> bool {
        key == WORKER_KEY
    }
}

/// Callers and workers at a time.
const CALLERS: usize = 5;
const WORKERS: usize = 4;
/// Virtual time in which there is traffic, and in which all that is open must end.
const TRAFFIC_US: u64 = 8_000_000;
const QUIET_US: u64 = 20_000_000;
const STEPS_MAX: u64 = 2_000_000;

#[derive(Debug)]
struct Caller {
    socket: usize,
    user: u64,
    logged_in: bool,
    over: bool,
    next_id: u64,
    open: BTreeSet<u64>,
    input: Vec<u8>,
    next_us: u64,
    leaves_us: u64,
}

/// A request that a worker has.
#[derive(Debug)]
struct AtWork {
    done_us: u64,
    parts: u64,
    refuses: bool,
}

#[derive(Debug)]
struct Worker {
    socket: usize,
    serves: bool,
    over: bool,
    /// The largest window it has said.
    window: usize,
    at_work: BTreeMap<u64, AtWork>,
    input: Vec<u8>,
    leaves_us: u64,
    drains_us: u64,
    drains: bool,
    /// Where it comes over TLS.
    tls: Option<TlsEnd>,
    /// Its place among the servers, if it was dialed.
    server: Option<usize>,
}

struct Run {
    world: SharedWorld,
    node: Node,
    rng: Rng,
    /// What TLS is made of, so that it changes nothing else about a seed.
    tls_rng: Rng,
    shards: u16,
    token: String,
    upstreams: Upstreams,
    dialed: Dialed,
    callers: Vec<Caller>,
    workers: Vec<Worker>,
    next_user: u64,
    next_name: u64,
    /// How often a worker has begun a call, by caller and id; and those that are SAFE.
    begun: BTreeMap<(u64, u64), u32>,
    safe: BTreeSet<(u64, u64)>,
    statuses: BTreeMap<u16, u64>,
    steps: u64,
}

impl Run {
    fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed ^ 0x5E_41CE);
        let shards = rng.within(1, 4) as u16;
        let limits = Limits {
            connections_max: 64,
            heartbeat_secs: 30,
            drain_ms: 500,
            calls_per_session_max: 8,
            calls_max: rng.within(8, 64) as u32,
            calls_kept_bytes_max: rng.within(200, 4_000) as usize,
            link_outbox_bytes_max: rng.within(200, 4_000) as usize,
            portal_bytes_max: rng.within(150, 2_000) as usize,
            tls_handshakes_max: 16,
            tls_handshakes_per_turn: 2,
            ..Limits::default()
        };
        let mut faults = Faults::random(&mut rng);
        // Hand-overs that fail are told in the tests of logins; here they would only keep workers away.
        faults.hand_over_fail = 0;
        let world = World::new(seed, faults, usize::from(shards), 2, &limits, false);
        let world = Rc::new(RefCell::new(world));
        let spec = "7:simulated,call_timeout_ms=700,queue=6,max_fails=3,fail_timeout_secs=1";
        let policies = ["weighted-round-robin", "least-conn", "least-time", "random-two", "consistent-hash"];
        let dialed = Dialed::new(shards, seed);
        let spec = format!("{spec},policy={}{}", rng.pick(&policies), dialed.spec());
        let specs: [ServiceSpec; 2] = [spec, SPEC.to_owned()].map(|spec| spec.parse().expect("a service"));
        let upstreams = Upstreams::new(shards, seed);
        let node = NodeConfig {
            tls: Some(
                TlsSwitch::new(Certificates::default(), None, TicketSecret::shared(b"of a simulation"))
                    .expect("there is nothing that does not go together"),
            ),
            services: Some(ServicesConfig {
                servers: DialedServers::new(&specs, |_| dialed.key()),
                specs: Arc::new(specs),
                keys: Arc::new(OneKey(SERVICE)),
                listens: false,
                tls_required: false,
                portals: Some(upstreams.portals.clone()),
            }),
            // Odd: connections of addresses are counted elsewhere.
            ..NodeConfig::alone(seed | 1, shards, &limits)
        };
        Run {
            node: Node::new(node, &world),
            world,
            rng,
            tls_rng: Rng::new(seed ^ 0x0007_1503),
            shards,
            token: WORKER_KEY.to_owned(),
            upstreams,
            dialed,
            callers: Vec::new(),
            workers: Vec::new(),
            next_user: 1,
            next_name: 1,
            begun: BTreeMap::new(),
            safe: BTreeSet::new(),
            statuses: BTreeMap::new(),
            steps: 0,
        }
    }

    fn now_us(&self) -> u64 {
        self.world.borrow().now_us()
    }

    fn write(&self, socket: usize, bytes: &[u8]) {
        self.world.borrow_mut().client_write(socket, bytes);
    }

    fn new_caller(&mut self) {
        let ring = self.rng.below(self.shards.into()) as usize;
        let socket = self.world.borrow_mut().connect_to(ring, 0, 65_536);
        let now_us = self.now_us();
        let user = self.next_user;
        self.next_user += 1;
        let mut bytes = Vec::new();
        encode_message(&mut bytes, Kind::Login, 0, &Login { version: VERSION, user, ..Login::default() });
        self.write(socket, &bytes);
        self.callers.push(Caller {
            socket,
            user,
            logged_in: false,
            over: false,
            next_id: 1,
            open: BTreeSet::new(),
            input: Vec::new(),
            next_us: now_us,
            leaves_us: now_us + self.rng.within(100_000, 6_000_000),
        });
    }

    fn new_worker(&mut self) {
        // The listener for workers is the first shard's second.
        let socket = self.world.borrow_mut().connect_to(0, 1, 65_536);
        let now_us = self.now_us();
        // Some share a name, and so are one instance.
        let name = if self.rng.chance(300) { "shared".to_owned() } else { format!("w{}", self.next_name) };
        self.next_name += 1;
        let window = self.rng.within(1, 4) as u32;
        let serve = Serve {
            version: VERSION,
            name,
            token: self.token.clone(),
            offers: vec![Offer {
                service: SERVICE.into(),
                weight: self.rng.within(0, 5) as u32,
                backup: self.rng.chance(200),
            }],
            shard: self.rng.within(0, self.shards.into()) as u32,
            window,
            heads: self.rng.chance(300),
        };
        let mut bytes = Vec::new();
        encode_message(&mut bytes, Kind::Serve, 0, &serve);
        self.workers.push(Worker {
            socket,
            serves: false,
            over: false,
            window: window as usize,
            at_work: BTreeMap::new(),
            input: Vec::new(),
            leaves_us: now_us + self.rng.within(100_000, 5_000_000),
            drains_us: now_us + self.rng.within(100_000, 9_000_000),
            drains: false,
            tls: self.tls_rng.chance(400).then(|| TlsEnd::new(&mut self.tls_rng)),
            server: None,
        });
        self.write_worker(self.workers.len() - 1, &bytes);
    }

    fn write_worker(&mut self, at: usize, bytes: &[u8]) {
        let worker = &mut self.workers[at];
        let records = worker.tls.as_mut().map(|tls| tls.wrap(bytes, &mut self.tls_rng));
        self.world.borrow_mut().client_write(worker.socket, records.as_deref().unwrap_or(bytes));
    }

    /// Servers of which the node has dialed one.
    fn take_dialed(&mut self) {
        let now_us = self.now_us();
        let met = self.world.borrow_mut().take_met();
        for (address, socket) in met {
            self.workers.push(Worker {
                socket,
                serves: false,
                over: false,
                window: 0,
                at_work: BTreeMap::new(),
                input: Vec::new(),
                leaves_us: now_us + self.rng.within(100_000, 5_000_000),
                drains_us: now_us + self.rng.within(100_000, 9_000_000),
                drains: false,
                tls: None,
                server: self.dialed.place_of(address),
            });
        }
    }

    fn run_until(&mut self, end_us: u64) {
        while self.node.pass(u64::MAX, end_us).is_some() {
            self.steps += 1;
            assert!(self.steps < STEPS_MAX, "it does not come to an end");
            self.node.step();
            self.take_dialed();
            let stirred = self.world.borrow_mut().take_stirred();
            for socket in stirred {
                if let Some(at) = self.callers.iter().position(|caller| caller.socket == socket) {
                    self.read_caller(at);
                } else if let Some(at) = self.workers.iter().position(|worker| worker.socket == socket) {
                    self.read_worker(at);
                }
            }
        }
    }

    fn read_caller(&mut self, at: usize) {
        let caller = &mut self.callers[at];
        if caller.over {
            return;
        }
        let read = self.world.borrow_mut().client_read(caller.socket, usize::MAX);
        caller.input.extend_from_slice(&read.bytes);
        let input = std::mem::take(&mut caller.input);
        let mut from = 0;
        while let Some((frame, len)) = decode(&input[from..], FRAME_BYTES_MAX_LIMIT).expect("whole frames") {
            from += len;
            match frame.known() {
                Some(Kind::LoginOk) => caller.logged_in = true,
                Some(Kind::Bye) => caller.over = true,
                Some(Kind::Reply) => {
                    let key = (caller.user, frame.id);
                    assert!(caller.open.contains(&frame.id), "a REPLY without a call: {key:?} {frame:?}");
                    if frame.flags & call_flags::MORE == 0 {
                        caller.open.remove(&frame.id);
                        *self.statuses.entry(frame.aux).or_insert(0) += 1;
                        if matches!(frame.aux, 11 | 14 | 17 | 18 | 20) {
                            let begun = self.begun.get(&key);
                            assert_eq!(begun, None, "{key:?} ended with {} and was carried out", frame.aux);
                        }
                    }
                }
                other => panic!("{other:?}"),
            }
        }
        caller.input = input[from..].to_vec();
        if read.end || read.reset || caller.over {
            caller.over = true;
            self.world.borrow_mut().client_close(caller.socket);
        }
    }

    fn read_worker(&mut self, at: usize) {
        let now_us = self.now_us();
        let worker = &mut self.workers[at];
        if worker.over {
            return;
        }
        let mut read = self.world.borrow_mut().client_read(worker.socket, usize::MAX);
        if let Some(tls) = &mut worker.tls {
            let (bytes, due) = tls.unwrap(&read.bytes, &mut self.tls_rng);
            read.bytes = bytes;
            self.world.borrow_mut().client_write(worker.socket, &due);
        }
        worker.input.extend_from_slice(&read.bytes);
        let input = std::mem::take(&mut worker.input);
        let mut from = 0;
        while let Some((frame, len)) = decode(&input[from..], FRAME_BYTES_MAX_LIMIT).expect("whole frames") {
            from += len;
            match frame.known() {
                Some(Kind::ServeOk) => worker.serves = true,
                Some(Kind::Invite) => {
                    let server = worker.server.expect("nobody else is invited");
                    let (answer, window) = self.dialed.answer(server, &frame, &self.token, &mut self.rng);
                    worker.window = window;
                    self.world.borrow_mut().client_write(worker.socket, &answer);
                }
                Some(Kind::Bye) => worker.over = true,
                Some(Kind::Pong) => {}
                Some(Kind::Cancel) => drop(worker.at_work.remove(&frame.id)),
                Some(Kind::Request) => {
                    let refuses = self.rng.chance(150);
                    // Some are never answered.
                    let done_us = if self.rng.chance(150) { u64::MAX } else { now_us + self.rng.within(1, 500_000) };
                    let parts = if self.rng.chance(150) { self.rng.within(1, 3) } else { 0 };
                    let key = (frame.peer, frame.stamp);
                    if !refuses {
                        let begun = self.begun.entry(key).or_insert(0);
                        *begun += 1;
                        let most = if self.safe.contains(&key) { 2 } else { 1 };
                        assert!(*begun <= most, "{key:?} was begun {begun} times");
                    }
                    let (user, call) = key;
                    let before = worker.at_work.insert(frame.id, AtWork { done_us, parts, refuses });
                    assert!(before.is_none(), "two requests with one number");
                    assert!(worker.at_work.len() <= worker.window, "more than its window: {worker:?}");
                    let body = match frame.flags & call_flags::HEAD {
                        0 => frame.body,
                        _ => &frame.body[2 + usize::from(u16::from_be_bytes([frame.body[0], frame.body[1]]))..],
                    };
                    assert_eq!(body, body_of(user, call), "what was called for has changed");
                }
                other => panic!("{other:?}"),
            }
        }
        worker.input = input[from..].to_vec();
        if read.end || read.reset || worker.over {
            worker.over = true;
            self.world.borrow_mut().client_close(worker.socket);
        }
    }

    /// What callers and workers do by themselves.
    fn act(&mut self, traffic: bool) {
        let now_us = self.now_us();
        for at in 0..self.callers.len() {
            let caller = &mut self.callers[at];
            if caller.over || !caller.logged_in || !traffic {
                continue;
            }
            if caller.leaves_us <= now_us {
                caller.over = true;
                let socket = caller.socket;
                match self.rng.chance(500) {
                    true => self.world.borrow_mut().client_reset(socket),
                    false => self.world.borrow_mut().client_close(socket),
                }
                continue;
            }
            if caller.next_us > now_us {
                continue;
            }
            caller.next_us = now_us + self.rng.within(1_000, 200_000);
            let mut bytes = Vec::new();
            for _ in 0..self.rng.within(1, 4) {
                let id = caller.next_id;
                caller.next_id += 1;
                let safe = self.rng.chance(400);
                let no_reply = self.rng.chance(100);
                let flags = if safe { call_flags::SAFE } else { 0 } | if no_reply { call_flags::NO_REPLY } else { 0 };
                if safe {
                    self.safe.insert((caller.user, id));
                }
                if !no_reply {
                    caller.open.insert(id);
                }
                let aux = if self.rng.chance(300) { UPSTREAM } else { SERVICE };
                let header = Header { kind: Kind::Call, flags, aux, id, peer: 0, stamp: 0 };
                encode(&mut bytes, &header, &body_of(caller.user, id));
            }
            let socket = caller.socket;
            self.write(socket, &bytes);
        }
        for at in 0..self.workers.len() {
            let worker = &mut self.workers[at];
            if worker.over || !worker.serves {
                continue;
            }
            if worker.leaves_us <= now_us && traffic {
                worker.over = true;
                let socket = worker.socket;
                self.world.borrow_mut().client_reset(socket);
                continue;
            }
            let mut bytes = Vec::new();
            if worker.drains_us <= now_us && !worker.drains && traffic {
                worker.drains = true;
                encode(&mut bytes, &Header { aux: 0, ..frame(Kind::Window, 0) }, &[]);
            }
            // A sign of life, as a link that goes on needs one.
            encode(&mut bytes, &frame(Kind::Ping, 0), &[]);
            let due: Vec<u64> =
                worker.at_work.iter().filter(|(_, work)| work.done_us <= now_us).map(|(id, _)| *id).collect();
            for id in due {
                let Some(work) = worker.at_work.get_mut(&id) else { continue };
                if work.refuses {
                    encode(&mut bytes, &Header { flags: call_flags::NOT_BEGUN, ..frame(Kind::Answer, id) }, &[]);
                } else if work.parts > 0 {
                    work.parts -= 1;
                    encode(&mut bytes, &Header { flags: call_flags::MORE, ..frame(Kind::Answer, id) }, b"part");
                    continue;
                } else {
                    encode(&mut bytes, &Header { aux: 300, ..frame(Kind::Answer, id) }, b"done");
                }
                worker.at_work.remove(&id);
            }
            self.write_worker(at, &bytes);
        }
    }

    fn turn_of_services_thread(&mut self) {
        let now_us = self.now_us();
        for begun in self.upstreams.turn(&mut self.node, &mut self.rng, now_us) {
            let key = (begun.user, begun.id);
            assert_eq!(begun.body, body_of(begun.user, begun.id), "what was called for has changed");
            if begun.carries_out {
                let times = self.begun.entry(key).or_insert(0);
                *times += 1;
                let most = if self.safe.contains(&key) { 2 } else { 1 };
                assert!(*times <= most, "{key:?} was carried out {times} times");
            }
        }
    }

    fn whole(mut self) -> BTreeMap<u16, u64> {
        const STEP_US: u64 = 20_000;
        for end_us in (STEP_US..=TRAFFIC_US).step_by(STEP_US as usize) {
            while self.callers.iter().filter(|caller| !caller.over).count() < CALLERS {
                self.new_caller();
            }
            while self.workers.iter().filter(|worker| !worker.over).count() < WORKERS {
                self.new_worker();
            }
            self.dialed.come_and_go(&mut self.world.borrow_mut());
            self.run_until(end_us);
            self.act(true);
            self.turn_of_services_thread();
        }
        for end_us in (TRAFFIC_US + STEP_US..=TRAFFIC_US + QUIET_US).step_by(STEP_US as usize) {
            self.run_until(end_us);
            self.act(false);
            self.turn_of_services_thread();
        }
        for caller in self.callers.iter().filter(|caller| !caller.over) {
            assert!(caller.open.is_empty(), "calls without a last REPLY: {caller:?}");
        }
        for worker in self.workers.iter().filter(|worker| !worker.over) {
            assert!(worker.at_work.is_empty(), "requests nobody waits for: {worker:?}");
        }
        for shard in 0..self.node.shards() {
            assert!(self.node.request(shard, Control::Drain { ends: true }));
        }
        self.run_until(TRAFFIC_US + QUIET_US + 20_000_000);
        assert!(self.node.over(), "the node has not ended");
        for stats in self.node.stats() {
            let ended = [
                &stats.calls_done,
                &stats.calls_limited,
                &stats.calls_overloaded,
                &stats.calls_unknown,
                &stats.calls_unavailable,
                &stats.calls_bad,
                &stats.calls_timed_out,
                &stats.calls_outcome_unknown,
                &stats.calls_gone,
            ];
            let ended: u64 = ended.iter().map(|stat| stat.get()).sum();
            assert_eq!(stats.calls_in.get(), ended, "calls are counted once");
        }
        self.node.check_services_empty();
        self.upstreams.check_empty();
        self.dialed.check(&self.node);
        self.statuses
    }
}

fn body_of(user: u64, call: u64) -> Vec<u8> {
    format!("{user} calls {call}").into_bytes()
}

fn frame(kind: Kind, id: u64) -> Header {
    Header { kind, flags: 0, aux: 0, id, peer: 0, stamp: 0 }
}

fn seeds() -> u64 {
    std::env::var("TRUNKLINE_SIM_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(24)
}

#[test]
fn calls_hold_whatever_happens() {
    let mut all: BTreeMap<u16, u64> = BTreeMap::new();
    for seed in 0..seeds() {
        let run = catch_unwind(AssertUnwindSafe(|| Run::new(seed).whole()));
        let statuses = run.unwrap_or_else(|_| panic!("seed {seed} does not hold, as is said above"));
        statuses.into_iter().for_each(|(status, count)| *all.entry(status).or_insert(0) += count);
    }
    // Whatever can come of a call has come.
    for status in [0, 300, 11, 14, 18, 20, 24, 25] {
        assert!(all.get(&status).is_some_and(|count| *count > 0), "{all:?}");
    }
}

#[test]
fn a_bug_in_the_way_of_a_call_is_found() {
    for bug in [Bug::WindowIgnored, Bug::LostRetried, Bug::CancelForgotten, Bug::ReplyForgotten] {
        let found = (0..60).find(|seed| {
            let run = AssertUnwindSafe(|| with_planted(bug, || Run::new(*seed).whole()));
            let failed = catch_unwind(run).is_err();
            // Where it panicked it is still planted.
            with_planted(bug, || ());
            failed
        });
        assert!(found.is_some(), "{bug:?} was not found");
    }
}
