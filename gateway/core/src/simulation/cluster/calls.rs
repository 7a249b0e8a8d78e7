//! Calls in a simulated cluster: callers at all nodes, workers at some, on nodes that come and go and lose each other.
//!
//! 1. A call gets exactly one last REPLY while its session lasts.
//! 2. A status that says that nothing was carried out is true, and stays so.
//! 3. What is not SAFE is begun once at most, what is SAFE twice.
//! 4. A worker never has more requests than its window.
//! 5. While nothing happens to the cluster, a worker hears soon of a call whose caller has gone.
//! 6. Nothing is left of it when all have gone, and every call is counted once.

use super::Run;
use super::scenario::{Scenario, Trouble};
use crate::io::sim::{Faults, Rng, SharedWorld};
use crate::mesh::MESH_PROTOCOL;
use crate::mesh::wire::CALLS_SINCE;
use crate::services::{DialedServers, ServicesConfig};
use crate::simulation::services::{OneKey, WORKER_KEY};
use crate::simulation::{Bug, Report, outcome, seed_that_catches};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use trunkline_proto::{
    FRAME_BYTES_MAX_LIMIT, Header, Kind, Login, Offer, Serve, VERSION, call_flags, decode, encode, encode_message,
};

const SERVICE: u16 = 7;
const SPEC: &str = "7:simulated,call_timeout_ms=3000,queue=6,max_fails=3,fail_timeout_secs=1";
/// Callers at a time, and workers.
const CALLERS: usize = 6;
const WORKERS: usize = 4;
const STEP_US: u64 = 20_000;
/// Within this a worker hears that nobody waits for a call any more, if nothing happens to the cluster.
const CANCELLED_US: u64 = 1_000_000;
const WINDOW_BYTES: usize = 65_536;

#[derive(Debug)]
struct Caller {
    socket: usize,
    user: u64,
    logged_in: bool,
    over_us: Option<u64>,
    next_id: u64,
    open: BTreeSet<u64>,
    input: Vec<u8>,
    next_us: u64,
    heard_us: u64,
    leaves_us: u64,
}

/// A request that a worker has.
#[derive(Debug)]
struct AtWork {
    call: (u64, u64),
    done_us: u64,
    parts: u64,
    refuses: bool,
    no_reply: bool,
}

#[derive(Debug)]
struct Worker {
    socket: usize,
    serves: bool,
    over: bool,
    window: usize,
    at_work: BTreeMap<u64, AtWork>,
    input: Vec<u8>,
    heard_us: u64,
    leaves_us: u64,
}

/// All who call and serve, and what they know of calls.
pub(super) struct Parties {
    world: SharedWorld,
    rng: Rng,
    doors: Vec<SocketAddr>,
    workers_doors: Vec<SocketAddr>,
    token: String,
    callers: Vec<Caller>,
    workers: Vec<Worker>,
    next_user: u64,
    next_us: u64,
    begun: BTreeMap<(u64, u64), u32>,
    safe: BTreeSet<(u64, u64)>,
    /// Calls that ended with a status that says that nobody has carried them out.
    undone: BTreeSet<(u64, u64)>,
    statuses: BTreeMap<u16, u64>,
    quiet: bool,
    /// Nothing happens to the cluster.
    calm: bool,
}

impl Parties {
    fn new(run: &Run, token: String, calm: bool) -> Self {
        Parties {
            world: run.world.clone(),
            rng: Rng::new(run.scenario.seed ^ 0x0CA1_1500),
            doors: run.fleet.doors(),
            workers_doors: run.fleet.workers_doors(),
            token,
            callers: Vec::new(),
            workers: Vec::new(),
            next_user: 1,
            next_us: 3_000_000,
            begun: BTreeMap::new(),
            safe: BTreeSet::new(),
            undone: BTreeSet::new(),
            statuses: BTreeMap::new(),
            quiet: false,
            calm,
        }
    }

    pub(super) fn next_due_us(&self) -> u64 {
        self.next_us
    }

    pub(super) fn step(&mut self) {
        let now_us = self.world.borrow().now_us();
        let stirred = self.world.borrow_mut().take_stirred();
        for socket in stirred {
            if let Some(at) = self.callers.iter().position(|caller| caller.socket == socket) {
                self.read_caller(at, now_us);
            } else if let Some(at) = self.workers.iter().position(|worker| worker.socket == socket) {
                self.read_worker(at, now_us);
            }
        }
        if self.next_us > now_us {
            return;
        }
        self.next_us = now_us + STEP_US;
        if !self.quiet {
            while self.callers.iter().filter(|caller| caller.over_us.is_none()).count() < CALLERS
                && self.new_caller(now_us)
            {}
            while self.workers.iter().filter(|worker| !worker.over).count() < WORKERS && self.new_worker(now_us) {}
        }
        (0..self.callers.len()).for_each(|at| self.act_as_caller(at, now_us));
        (0..self.workers.len()).for_each(|at| self.act_as_worker(at, now_us));
        self.workers.retain(|worker| !worker.over);
    }

    fn new_caller(&mut self, now_us: u64) -> bool {
        let door = *self.rng.pick(&self.doors);
        let Some(socket) = self.world.borrow_mut().connect_at(door, WINDOW_BYTES) else { return false };
        let user = self.next_user;
        self.next_user += 1;
        let mut bytes = Vec::new();
        encode_message(&mut bytes, Kind::Login, 0, &Login { version: VERSION, user, ..Login::default() });
        self.world.borrow_mut().client_write(socket, &bytes);
        self.callers.push(Caller {
            socket,
            user,
            logged_in: false,
            over_us: None,
            next_id: 1,
            open: BTreeSet::new(),
            input: Vec::new(),
            next_us: now_us,
            heard_us: now_us,
            leaves_us: now_us + self.rng.within(1_000_000, 9_000_000),
        });
        true
    }

    fn new_worker(&mut self, now_us: u64) -> bool {
        // Some nodes have more of them than others.
        let nodes = self.workers_doors.len() as u64;
        let node = self.rng.below(nodes).min(self.rng.below(nodes)) as usize;
        let Some(socket) = self.world.borrow_mut().connect_at(self.workers_doors[node], WINDOW_BYTES) else {
            return false;
        };
        let window = self.rng.within(1, 6);
        let serve = Serve {
            version: VERSION,
            name: format!("w{}", self.rng.below(1 << 40)),
            token: self.token.clone(),
            offers: vec![Offer {
                service: SERVICE.into(),
                weight: self.rng.within(0, 5) as u32,
                backup: self.rng.chance(100),
            }],
            shard: 0,
            window: window as u32,
            heads: self.rng.chance(300),
        };
        let mut bytes = Vec::new();
        encode_message(&mut bytes, Kind::Serve, 0, &serve);
        self.world.borrow_mut().client_write(socket, &bytes);
        self.workers.push(Worker {
            socket,
            serves: false,
            over: false,
            window: window as usize,
            at_work: BTreeMap::new(),
            input: Vec::new(),
            heard_us: now_us,
            leaves_us: now_us + self.rng.within(1_000_000, 9_000_000),
        });
        true
    }

    fn read_caller(&mut self, at: usize, now_us: u64) {
        let caller = &mut self.callers[at];
        if caller.over_us.is_some() {
            return;
        }
        let read = self.world.borrow_mut().client_read(caller.socket, usize::MAX);
        if !read.bytes.is_empty() {
            caller.heard_us = now_us;
        }
        caller.input.extend_from_slice(&read.bytes);
        let input = std::mem::take(&mut caller.input);
        let (mut from, mut over) = (0, read.end || read.reset);
        while let Some((frame, len)) = decode(&input[from..], FRAME_BYTES_MAX_LIMIT).expect("whole frames") {
            from += len;
            match frame.known() {
                Some(Kind::LoginOk) => caller.logged_in = true,
                Some(Kind::Pong) => {}
                Some(Kind::Bye) => over = true,
                Some(Kind::Reply) => {
                    let key = (caller.user, frame.id);
                    assert!(caller.open.contains(&frame.id), "a REPLY without a call: {key:?} {frame:?}");
                    if frame.flags & call_flags::MORE == 0 {
                        caller.open.remove(&frame.id);
                        *self.statuses.entry(frame.aux).or_insert(0) += 1;
                        if matches!(frame.aux, 11 | 14 | 17 | 18 | 20) {
                            let begun = self.begun.get(&key);
                            assert_eq!(begun, None, "{key:?} ended with {} and was carried out", frame.aux);
                            self.undone.insert(key);
                        }
                    }
                }
                other => panic!("{other:?}"),
            }
        }
        caller.input = input[from..].to_vec();
        if over {
            caller.over_us = Some(now_us);
            self.world.borrow_mut().client_close(caller.socket);
        }
    }

    fn read_worker(&mut self, at: usize, now_us: u64) {
        let worker = &mut self.workers[at];
        if worker.over {
            return;
        }
        let read = self.world.borrow_mut().client_read(worker.socket, usize::MAX);
        if !read.bytes.is_empty() {
            worker.heard_us = now_us;
        }
        worker.input.extend_from_slice(&read.bytes);
        let input = std::mem::take(&mut worker.input);
        let mut from = 0;
        while let Some((frame, len)) = decode(&input[from..], FRAME_BYTES_MAX_LIMIT).expect("whole frames") {
            from += len;
            match frame.known() {
                Some(Kind::ServeOk) => worker.serves = true,
                Some(Kind::Bye) => worker.over = true,
                Some(Kind::Pong) => {}
                Some(Kind::Cancel) => drop(worker.at_work.remove(&frame.id)),
                Some(Kind::Request) => {
                    let refuses = self.rng.chance(100);
                    // Some are never answered.
                    let done_us = if self.rng.chance(60) { u64::MAX } else { now_us + self.rng.within(1, 500_000) };
                    let parts = if self.rng.chance(150) { self.rng.within(1, 3) } else { 0 };
                    let call = (frame.peer, frame.stamp);
                    if !refuses {
                        assert!(!self.undone.contains(&call), "{call:?} is begun after its caller was told otherwise");
                        let begun = self.begun.entry(call).or_insert(0);
                        *begun += 1;
                        let most = if self.safe.contains(&call) { 2 } else { 1 };
                        assert!(*begun <= most, "{call:?} was begun {begun} times");
                    }
                    let no_reply = frame.flags & call_flags::NO_REPLY != 0;
                    let work = AtWork { call, done_us, parts, refuses, no_reply };
                    let before = worker.at_work.insert(frame.id, work);
                    assert!(before.is_none(), "two requests with one number");
                    assert!(worker.at_work.len() <= worker.window, "more than its window: {worker:?}");
                    let body = match frame.flags & call_flags::HEAD {
                        0 => frame.body,
                        _ => &frame.body[2 + usize::from(u16::from_be_bytes([frame.body[0], frame.body[1]]))..],
                    };
                    assert_eq!(body, body_of(call), "what was called for has changed");
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

    fn act_as_caller(&mut self, at: usize, now_us: u64) {
        let caller = &mut self.callers[at];
        let quiet = self.quiet;
        if caller.over_us.is_some() {
            return;
        }
        if (caller.leaves_us <= now_us && !quiet) || now_us - caller.heard_us > 6_000_000 {
            caller.over_us = Some(now_us);
            let socket = caller.socket;
            return self.world.borrow_mut().client_reset(socket);
        }
        if caller.next_us > now_us || !caller.logged_in {
            return;
        }
        caller.next_us = now_us + self.rng.within(100_000, 900_000);
        let mut bytes = Vec::new();
        encode(&mut bytes, &frame(Kind::Ping, 0), &[]);
        for _ in 0..if quiet { 0 } else { self.rng.within(1, 3) } {
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
            let header = Header { flags, aux: SERVICE, ..frame(Kind::Call, id) };
            encode(&mut bytes, &header, &body_of((caller.user, id)));
        }
        let socket = caller.socket;
        self.world.borrow_mut().client_write(socket, &bytes);
    }

    fn act_as_worker(&mut self, at: usize, now_us: u64) {
        let worker = &mut self.workers[at];
        if worker.over {
            return;
        }
        if (worker.leaves_us <= now_us && !self.quiet) || now_us - worker.heard_us > 6_000_000 {
            worker.over = true;
            let socket = worker.socket;
            return self.world.borrow_mut().client_reset(socket);
        }
        if !worker.serves {
            return;
        }
        if self.calm {
            for work in worker.at_work.values().filter(|work| !work.no_reply) {
                let caller = self.callers.iter().find(|caller| caller.user == work.call.0);
                let over_us = caller.and_then(|caller| caller.over_us).unwrap_or(u64::MAX);
                assert!(
                    over_us.saturating_add(CANCELLED_US) > now_us,
                    "nobody waits for {work:?}, and no CANCEL comes"
                );
            }
        }
        let mut bytes = Vec::new();
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
        let socket = worker.socket;
        self.world.borrow_mut().client_write(socket, &bytes);
    }

    /// Panics if anybody waits on.
    fn check_answered(&self) {
        for caller in self.callers.iter().filter(|caller| caller.over_us.is_none()) {
            assert!(caller.open.is_empty(), "calls without a last REPLY: {caller:?}");
        }
        for worker in self.workers.iter().filter(|worker| !worker.over) {
            assert!(worker.at_work.is_empty(), "requests nobody waits for: {worker:?}");
        }
    }

    fn leave_all(&mut self) {
        let now_us = self.world.borrow().now_us();
        for caller in self.callers.iter_mut().filter(|caller| caller.over_us.is_none()) {
            caller.over_us = Some(now_us);
            self.world.borrow_mut().client_close(caller.socket);
        }
        for worker in self.workers.iter_mut().filter(|worker| !worker.over) {
            worker.over = true;
            self.world.borrow_mut().client_close(worker.socket);
        }
    }
}

fn body_of((user, call): (u64, u64)) -> Vec<u8> {
    format!("{user} calls {call}").into_bytes()
}

fn frame(kind: Kind, id: u64) -> Header {
    Header { kind, flags: 0, aux: 0, id, peer: 0, stamp: 0 }
}

fn scenario(seed: u64) -> Scenario {
    // Nodes come and go as in those of rooms.
    Scenario { active_ms: 12_000, ..Scenario::rooms(seed ^ 0x0CA1) }
}

/// A whole run. Reports how often a call ended with each status, and what nodes handed to each other.
fn run(mut scenario: Scenario) -> Report {
    let mut rng = Rng::new(scenario.seed ^ 0x0CA1_15ED);
    scenario.limits.calls_per_session_max = 8;
    scenario.limits.calls_max = rng.within(16, 64) as u32;
    scenario.limits.calls_kept_bytes_max = rng.within(200, 4_000) as usize;
    scenario.limits.link_outbox_bytes_max = rng.within(200, 4_000) as usize;
    let (active_ms, settle_ms, calm) = (scenario.active_ms, scenario.settle_ms(), scenario.troubles.is_empty());
    let policies = ["weighted-round-robin", "least-conn", "least-time", "random-two", "consistent-hash"];
    let spec = format!("{SPEC},policy={}", rng.pick(&policies));
    let mut run = Run::of(scenario, false);
    run.crowd.mood = super::Mood::Leaving;
    run.fleet.services = Some(ServicesConfig {
        specs: Arc::new([spec.parse().expect("a service")]),
        keys: Arc::new(OneKey(SERVICE)),
        listens: false,
        tls_required: false,
        portals: None,
        servers: DialedServers::default(),
    });
    run.calls = Some(Parties::new(&run, WORKER_KEY.to_owned(), calm));
    run.run_for(active_ms);
    let troubles_end_us = run.now_us() + 120_000_000;
    run.run_until(troubles_end_us, |run| run.fleet.is_well());
    assert!(run.fleet.is_well(), "a node does not come back");
    run.world.borrow_mut().faults = Faults::none();
    run.calls.as_mut().expect("some").quiet = true;
    run.run_for(settle_ms);
    run.fleet.check_one_view();
    let parties = run.calls.as_mut().expect("some");
    parties.check_answered();
    parties.leave_all();
    run.run_for(super::AFTERMATH_MS);
    for (_, node) in run.fleet.nodes() {
        node.check_services_empty();
        for stats in node.stats() {
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
            assert_eq!(stats.service_places.get(), 0, "no worker is left");
        }
    }
    let handed = run.fleet.sum(|stats| stats.calls_to_nodes.get());
    let parties = run.calls.take().expect("some");
    let mut counts: BTreeMap<String, u64> =
        parties.statuses.iter().map(|(status, count)| (status.to_string(), *count)).collect();
    counts.insert("handed on".to_owned(), handed);
    counts.insert("given back".to_owned(), run.fleet.sum(|stats| stats.calls_back_from_nodes.get()));
    let trace_hash = run.world.borrow().trace_hash();
    Report { trace_hash, counts }
}

#[test]
fn calls_hold_while_nodes_come_and_go() {
    let seeds = crate::simulation::number_from("TRUNKLINE_CLUSTER_CALL_SEEDS").unwrap_or(6);
    let mut all: BTreeMap<String, u64> = BTreeMap::new();
    for seed in 0..seeds {
        let report = outcome(|| run(scenario(seed)));
        let report = report.unwrap_or_else(|violation| panic!("seed {seed}: {violation}"));
        report.counts.into_iter().for_each(|(name, count)| *all.entry(name).or_default() += count);
    }
    let must = ["300", "14", "18", "24", "25", "handed on", "given back"];
    assert!(must.iter().all(|name| all.get(*name).is_some_and(|count| *count > 0)), "{all:?}");
}

fn quiet(seed: u64, protocols: &[u32]) -> Scenario {
    let mut quiet = Scenario { seed, ..Scenario::quiet(3, 2, MESH_PROTOCOL) };
    quiet.active_ms = 10_000;
    for (node, protocol) in quiet.nodes.iter_mut().zip(protocols) {
        node.protocol = *protocol;
    }
    quiet
}

#[test]
fn a_cluster_to_which_nothing_happens_loses_no_node() {
    let report = run(quiet(0, &[]));
    assert!(report.counts["300"] > 60 && report.counts["handed on"] > 60, "{:?}", report.counts);
}

#[test]
fn nodes_of_older_versions_get_no_calls_of_others() {
    let report = run(quiet(0, &[MESH_PROTOCOL, CALLS_SINCE - 1, CALLS_SINCE - 1]));
    assert!(report.counts["300"] > 30 && report.counts["handed on"] == 0, "{:?}", report.counts);
}

#[test]
fn a_bug_in_the_way_of_a_call_between_nodes_is_caught() {
    let crashes = |seed| {
        let mut scenario = scenario(seed);
        let crash =
            |at_ms| (at_ms, Trouble::Crash { node: (at_ms / 2_500 % 3) as usize, power_lost: false, away_ms: 1_000 });
        scenario.troubles = [5_000, 7_500, 10_000].map(crash).into();
        run(scenario)
    };
    assert!(seed_that_catches(Bug::LostRetried, crashes).is_some());
    assert!(seed_that_catches(Bug::ReplyForgotten, |seed| run(quiet(seed, &[]))).is_some());
    assert!(seed_that_catches(Bug::FarCancelForgotten, |seed| run(quiet(seed, &[]))).is_some());
}
