//! The nodes: hosts, the processes on them, and what happens to both.

use super::pulse::{Life, Pulse};
use super::pushes::Pushers;
use super::redis::Redis;
use super::scenario::{NodeScenario, Scenario, Trouble};
use super::shared_store::SharedStore;
use crate::auth::{Auth, AuthSwitch};
use crate::control::Control;
use crate::core::ShardCluster;
use crate::io::sim::{Host, Rng, SharedWorld};
use crate::mesh::handshake::Secrets;
use crate::mesh_news::MeshNewsQueue;
use crate::mesh_news::{LinkNews, LinkWord, MeshNews};
use crate::metrics::ShardStats;
use crate::services::ServicesConfig;
use crate::simulation::node::{Node, NodeConfig};
use crate::simulation::senders::{self, SECRET};
use crate::simulation::{Bug, planted};
use crate::transport::tls::{Certificates, TicketSecret, TlsSwitch};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use trunkline_proto::Outcome;
use trunkline_router_core::hash::home_shard;
use trunkline_router_core::membership::{NodeRecord, NodeState};

/// How often it is looked whether a user has two homes.
const HOMES_LOOKED_AT_US: u64 = 5_000;
const CLIENT_PORT: u16 = 7_700;
const MESH_PORT: u16 = 7_790;
const SERVICES_PORT: u16 = 7_791;

/// A process: a node from its start to its end.
struct Process {
    pulse: Pulse,
    /// Once it has its lease.
    node: Option<Node>,
    news: Option<MeshNewsQueue>,
    first_ring: usize,
    paused: bool,
    /// Its own life, and the nodes that are homes with theirs, as its shards were told last.
    homes: Option<(u64, Vec<(String, u64)>)>,
    fenced: bool,
}

/// Where a node lives, whether it runs or not.
struct Seat {
    name: String,
    host: usize,
    scenario: NodeScenario,
    process: Option<Process>,
    starts: u64,
}

/// What ends a trouble.
#[derive(Clone, Debug)]
enum Relief {
    Start {
        node: usize,
        power_up: bool,
    },
    Resume {
        node: usize,
    },
    CallBack {
        node: usize,
    },
    /// The network from a node to another.
    Heal {
        from: usize,
        to: usize,
    },
    /// The machine goes on; how long it was suspended.
    Wake {
        node: usize,
        us: u64,
    },
    RedisBack,
    RedisWrites,
    RedisReached {
        node: usize,
    },
    RedisWritesFor {
        node: usize,
    },
    RedisHeard {
        node: usize,
    },
}

pub(super) struct Fleet {
    world: SharedWorld,
    scenario: Scenario,
    seats: Vec<Seat>,
    redis: Redis,
    troubles: VecDeque<(u64, Trouble)>,
    reliefs: BTreeMap<(u64, u64), Relief>,
    relief_count: u64,
    /// From which node to which; cuts may overlap.
    cuts: BTreeMap<(usize, usize), u32>,
    redis_outages: u32,
    redis_refusals: u32,
    /// How often each node is cut off from Redis just now, its lease is refused, and the answers to it are lost.
    redis_cuts: BTreeMap<usize, u32>,
    redis_refused: BTreeMap<usize, u32>,
    redis_unheard: BTreeMap<usize, u32>,
    rng: Rng,
    /// When it is looked next whether a user has two homes.
    looks_us: u64,
    /// When some node learned of a view in which users have other homes.
    homes_moved_us: Vec<u64>,
    /// From when to when hosts did not hear each other.
    cut_us: Vec<(u64, u64)>,
    /// When a trouble began or ended.
    troubled_us: Vec<u64>,
    pub(super) counts: BTreeMap<&'static str, u64>,
    /// Nodes that have been fenced, until somebody asks.
    pub(super) fenced: Vec<String>,
    /// Pushes by HTTP at each node, where there are some.
    pub(super) pushers: Option<Pushers>,
    /// The store that the nodes share, where they have one.
    pub(super) store: Option<SharedStore>,
    /// How the nodes take part in services, where they do.
    pub(super) services: Option<ServicesConfig>,
}

impl Fleet {
    /// The hosts, with nothing on them yet.
    pub(super) fn new(scenario: &Scenario, world: &SharedWorld) -> Self {
        let mut seats = Vec::new();
        let mut reliefs = BTreeMap::new();
        for (number, node) in scenario.nodes.iter().enumerate() {
            let offsets = Host { clock: node.clock, wall_offset_ms: node.wall_offset_ms, dark: false };
            let host = world.borrow_mut().add_host(offsets);
            let name = format!("node-{}", (b'a' + number as u8) as char);
            seats.push(Seat { name, host, scenario: node.clone(), process: None, starts: 0 });
            let start = Relief::Start { node: number, power_up: false };
            reliefs.insert((node.starts_ms * 1_000, number as u64), start);
        }
        Fleet {
            world: world.clone(),
            scenario: scenario.clone(),
            relief_count: seats.len() as u64,
            seats,
            redis: Redis::default(),
            troubles: scenario.troubles.iter().cloned().collect(),
            reliefs,
            cuts: BTreeMap::new(),
            redis_outages: 0,
            redis_refusals: 0,
            redis_cuts: BTreeMap::new(),
            redis_refused: BTreeMap::new(),
            redis_unheard: BTreeMap::new(),
            rng: Rng::new(scenario.seed ^ 0x0F1E_E700),
            looks_us: 0,
            homes_moved_us: Vec::new(),
            cut_us: Vec::new(),
            troubled_us: Vec::new(),
            counts: BTreeMap::new(),
            fenced: Vec::new(),
            pushers: None,
            store: None,
            services: None,
        }
    }

    /// Where each node accepts clients.
    pub(super) fn doors(&self) -> Vec<SocketAddr> {
        (0..self.seats.len()).map(|node| address(node, CLIENT_PORT)).collect()
    }

    /// Where each node accepts workers, if it does.
    pub(super) fn workers_doors(&self) -> Vec<SocketAddr> {
        (0..self.seats.len()).map(|node| address(node, SERVICES_PORT)).collect()
    }

    fn now_us(&self) -> u64 {
        self.world.borrow().now_us()
    }

    /// When something happens next.
    pub(super) fn next_due_us(&self) -> u64 {
        let trouble = self.troubles.front().map_or(u64::MAX, |(at_ms, _)| at_ms * 1_000);
        let relief = self.reliefs.first_key_value().map_or(u64::MAX, |((due_us, _), _)| *due_us);
        let processes = self.seats.iter().filter_map(|seat| seat.process.as_ref());
        let process = processes.map(|process| {
            let pulse_us = process.pulse.next_due_us(process.paused);
            let turn = process.node.as_ref().filter(|_| !process.paused).and_then(Node::next_turn_us);
            pulse_us.min(turn.unwrap_or(u64::MAX))
        });
        let store = self.store.as_ref().map_or(u64::MAX, SharedStore::next_due_us);
        process.min().unwrap_or(u64::MAX).min(trouble).min(relief).min(store)
    }

    /// Lets what is due happen.
    pub(super) fn step(&mut self) {
        let now_us = self.now_us();
        while let Some((_, trouble)) = self.troubles.pop_front_if(|(at_ms, _)| *at_ms * 1_000 <= now_us) {
            self.begin(now_us, trouble);
        }
        while let Some(entry) = self.reliefs.first_entry()
            && entry.key().0 <= now_us
        {
            let relief = entry.remove();
            self.end(relief);
        }
        for number in 0..self.seats.len() {
            self.step_process(number, now_us);
            self.step_pusher(number, now_us);
            self.step_store(number, now_us);
        }
        if now_us >= self.looks_us {
            self.looks_us = now_us + HOMES_LOOKED_AT_US;
            self.check_one_home_each(now_us);
        }
    }

    fn step_store(&mut self, number: usize, now_us: u64) {
        let node = self.seats[number].process.as_mut().and_then(|process| process.node.as_mut());
        if let (Some(store), Some(node)) = (&mut self.store, node) {
            store.step(now_us, number, node);
        }
    }

    fn step_pusher(&mut self, number: usize, now_us: u64) {
        let (Some(pushers), Some(process)) = (&mut self.pushers, &mut self.seats[number].process) else { return };
        let Some(node) = process.node.as_mut().filter(|_| !process.paused) else { return };
        for outcome in pushers.step(number, node, now_us) {
            self.count(match outcome {
                Outcome::OfflineNotStored => "pushes offline",
                Outcome::Overloaded => "pushes overloaded",
                other => panic!("nobody is there, and nothing is kept: {other:?}"),
            });
        }
    }

    /// Panics if two nodes act as the home of one user.
    fn check_one_home_each(&self, now_us: u64) {
        for user in &self.scenario.users {
            let homes = self.seats.iter().filter(|seat| {
                let process = seat.process.as_ref().filter(|process| !process.paused);
                process.is_some_and(|process| {
                    let home = process.node.as_ref().is_some_and(|node| node.is_home(*user));
                    home && process.pulse.may_serve(now_us)
                })
            });
            let homes: Vec<&str> = homes.map(|seat| seat.name.as_str()).collect();
            assert!(homes.len() <= 1, "at {} ms user {user} has the homes {homes:?}", now_us / 1_000);
        }
    }

    /// A node that joins calls at others, so that they know of it. Who is paused, or has no shards yet, does not hear
    /// it.
    fn make_calls(&mut self, number: usize, now_us: u64) {
        let Some(process) = &mut self.seats[number].process else { return };
        let (calls, incarnation) = (process.pulse.take_calls(), process.pulse.heart().life());
        for mesh in calls {
            let called = (0..self.seats.len()).find(|node| address(*node, MESH_PORT).to_string() == mesh);
            let Some(called) = called.filter(|called| !self.is_cut(number, *called)) else { continue };
            let node = self.seats[number].name.clone();
            let running =
                self.seats[called].process.as_mut().filter(|process| !process.paused && process.node.is_some());
            if let Some(process) = running {
                let links = vec![LinkNews::of(&node, incarnation, LinkWord::Heard)];
                process.pulse.hear(now_us, MeshNews::Links { shard: 0, all: false, links });
            }
        }
    }

    /// Whether the hosts of two nodes do not hear each other.
    fn is_cut(&self, one: usize, other: usize) -> bool {
        let cut = |from, to| self.cuts.get(&(from, to)).is_some_and(|cuts| *cuts > 0);
        let world = self.world.borrow();
        cut(one, other)
            || cut(other, one)
            || world.is_dark(self.seats[one].host)
            || world.is_dark(self.seats[other].host)
    }

    /// Whether the host of a node refuses connections to an address: it is reached, and no process is there.
    fn refuses(&self, number: usize, mesh: &str) -> bool {
        let target = (0..self.seats.len()).find(|node| address(*node, MESH_PORT).to_string() == mesh);
        target.is_some_and(|target| self.seats[target].process.is_none() && !self.is_cut(number, target))
    }

    fn step_process(&mut self, number: usize, now_us: u64) {
        let Some(process) = &mut self.seats[number].process else { return };
        if process.pulse.next_due_us(process.paused) <= now_us {
            let Process { pulse, node, paused, .. } = process;
            let mut told = None;
            pulse.step(now_us, *paused, &mut self.redis, |shard, request| {
                if let Control::View { view, life, .. } = &request {
                    told = Some((view.clone(), *life));
                }
                node.as_mut().is_some_and(|node| node.request(shard, request))
            });
            if let Some((view, life)) = told {
                let active = view.members.iter().filter(|member| member.state == NodeState::Active);
                let homes = Some((life, active.map(|member| (member.name.clone(), member.life())).collect()));
                if std::mem::replace(&mut process.homes, homes.clone()) != homes {
                    self.homes_moved_us.push(now_us);
                }
            }
            let Some(process) = &mut self.seats[number].process else { return };
            for (node, life, mesh) in process.pulse.take_probes() {
                let refused = self.refuses(number, &mesh);
                if refused {
                    self.count("found dead");
                }
                let Some(process) = &mut self.seats[number].process else { return };
                process.pulse.probed(now_us, &node, life, refused);
            }
            self.make_calls(number, now_us);
            let Some(process) = &mut self.seats[number].process else { return };
            let pulse = &mut process.pulse;
            if pulse.may_start() {
                self.start_shards(number, now_us);
            }
            self.count_differences(number);
        }
        let Some(process) = &mut self.seats[number].process else { return };
        if process.paused {
            return;
        }
        let Some(node) = &mut process.node else { return };
        if let Life::Left { ends } = process.pulse.life {
            process.pulse.life = if ends { Life::Ending } else { Life::Resting };
            for shard in 0..node.shards() {
                node.request(shard, Control::Drain { ends });
            }
        }
        if node.next_turn_us().is_some_and(|due_us| due_us <= now_us) {
            node.step();
            if let Some(news) = &process.news {
                while let Some(news) = news.try_take() {
                    process.pulse.hear(now_us, news);
                }
            }
        }
        if node.over() {
            let incarnation = process.pulse.heart().incarnation();
            self.redis.release(&self.seats[number].name, incarnation);
            self.stop(number, false);
        }
    }

    /// Counts what the control planes of the nodes were meant to go through.
    fn count_differences(&mut self, number: usize) {
        let Some(process) = &mut self.seats[number].process else { return };
        if process.node.is_none() {
            return;
        }
        let heart = process.pulse.heart();
        let (fenced, digest) = (heart.fenced().is_some(), heart.view().digest);
        if std::mem::replace(&mut process.fenced, fenced) != fenced && fenced {
            self.fenced.push(self.seats[number].name.clone());
            self.count("fenced");
        }
        let others = self.seats.iter().filter_map(|seat| seat.process.as_ref());
        if others.into_iter().any(|other| other.node.is_some() && other.pulse.heart().view().digest != digest) {
            self.count("views differed");
        }
    }

    /// A process starts; its shards follow when it has its lease.
    fn start(&mut self, number: usize) {
        let now_us = self.now_us();
        let seat = &mut self.seats[number];
        if let Some(process) = &seat.process {
            if matches!(process.pulse.life, Life::Leaving { ends: true } | Life::Left { ends: true } | Life::Ending) {
                // It takes longer to leave than it should, for it was paused.
                self.relieve(now_us, 500, Relief::Start { node: number, power_up: false });
            }
            return;
        }
        if self.world.borrow().is_dark(seat.host) {
            // When it has power again it is started as well.
            return;
        }
        seat.starts += 1;
        let NodeScenario { shards, listeners, weight, protocol, .. } = seat.scenario;
        let mut world = self.world.borrow_mut();
        world.note("start", number as u64, seat.starts);
        let first_ring = world.add_rings(seat.host, shards, listeners + 2, &self.scenario.limits);
        let record = NodeRecord {
            name: seat.name.clone(),
            incarnation: 0,
            life: 0,
            renewals: 0,
            secret_mark: String::new(),
            reach: None,
            protocol_oldest: 0,
            zone: String::new(),
            mending: false,
            mesh_links: seat.scenario.mesh_links.into(),
            https: false,
            turns: 0,
            view: 0,
            silent: String::new(),
            state: NodeState::Joining,
            weight,
            shards: shards.into(),
            mesh: address(number, MESH_PORT).to_string(),
            advertise: address(number, CLIENT_PORT).to_string(),
            http: String::new(),
            protocol,
            connections: 0,
            users: 0,
            started_ms: world.now_us() / 1_000,
        };
        let seed = process_seed(&self.scenario, number, seat.starts);
        let clock = world.clock(seat.host);
        let pulse = Pulse::new(seed, record, self.scenario.lease_ms, clock);
        seat.process =
            Some(Process { pulse, node: None, news: None, first_ring, paused: false, homes: None, fenced: false });
    }

    fn start_shards(&mut self, number: usize, now_us: u64) {
        let seat = &mut self.seats[number];
        let process = seat.process.as_mut().expect("it was just looked at");
        let NodeScenario { shards, listeners, .. } = seat.scenario;
        {
            let mut world = self.world.borrow_mut();
            for ring in process.first_ring..process.first_ring + usize::from(shards) {
                for listener in 0..listeners {
                    world.listen(address(number, CLIENT_PORT), ring, listener);
                }
            }
            world.listen(address(number, MESH_PORT), process.first_ring, listeners);
            if self.services.is_some() {
                world.listen(address(number, SERVICES_PORT), process.first_ring, listeners + 1);
            }
        }
        let news = MeshNewsQueue::default();
        process.news = Some(news.clone());
        let secrets = Secrets::new([&[7; 32][..]].into_iter()).expect("a secret of fair length");
        let links_max = seat.scenario.mesh_links;
        let cluster = ShardCluster { state: process.pulse.state().clone(), news, secrets, links_max, listens: false };
        let seed = process_seed(&self.scenario, number, seat.starts);
        let config = NodeConfig {
            name: seat.name.clone(),
            first_ring: process.first_ring,
            listeners,
            auth: AuthSwitch::new(if self.scenario.claims { senders::auth(SECRET) } else { Auth::Open }),
            tls: Some(toy_tls()),
            cluster: Some(cluster),
            store: self.store.as_mut().map(|store| store.serve(number, shards)),
            services: self.services.clone(),
            ..NodeConfig::alone(seed, shards, &self.scenario.limits)
        };
        let mut node = Node::new(config, &self.world);
        if let Some(pushers) = &mut self.pushers {
            pushers.begin(number, &mut node);
        }
        process.node = Some(node);
        process.pulse.serve(now_us, &self.redis.listed());
    }

    /// The process has ended, or is made to.
    fn stop(&mut self, number: usize, power_lost: bool) {
        let seat = &mut self.seats[number];
        let Some(process) = seat.process.take() else { return };
        if let Some(pushers) = &mut self.pushers {
            pushers.end(number);
        }
        if let Some(store) = &mut self.store {
            store.end(number);
        }
        let rings = process.first_ring..process.first_ring + usize::from(seat.scenario.shards);
        self.world.borrow_mut().kill(rings, power_lost);
    }

    fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    /// When a user's home moved for the last time.
    pub(super) fn homes_since_us(&self) -> u64 {
        self.homes_moved_us.last().copied().unwrap_or(0)
    }

    /// Whether nothing happened to the cluster from one time to another.
    pub(super) fn was_calm(&self, from_us: u64, to_us: u64) -> bool {
        let happened = self.homes_moved_us.iter().chain(&self.troubled_us);
        if self.cut_us.iter().any(|(began_us, ended_us)| *began_us <= to_us && *ended_us >= from_us) {
            return false;
        }
        !happened.into_iter().any(|at_us| (from_us..=to_us).contains(at_us))
    }

    fn begin(&mut self, now_us: u64, trouble: Trouble) {
        self.troubled_us.push(now_us);
        match trouble {
            Trouble::Crash { node, power_lost, away_ms } => {
                if self.seats[node].process.is_some() {
                    self.count(if power_lost { "power lost" } else { "killed" });
                    self.stop(node, power_lost);
                    self.relieve(now_us, away_ms, Relief::Start { node, power_up: power_lost });
                }
            }
            Trouble::Pause { node, ms } => {
                if let Some(process) = self.seats[node].process.as_mut().filter(|process| !process.paused) {
                    process.paused = true;
                    self.world.borrow_mut().note("pause", node as u64, ms);
                    self.count("paused");
                    self.relieve(now_us, ms, Relief::Resume { node });
                }
            }
            Trouble::Leave { node, away_ms } => {
                let process = self.seats[node].process.as_mut();
                if let Some(process) = process.filter(|process| process.pulse.life == Life::Running && !process.paused)
                {
                    process.pulse.drain(now_us, true);
                    self.world.borrow_mut().note("leave", node as u64, 0);
                    self.count("left");
                    let ends_ms = self.scenario.limits.drain_ms + 6_000;
                    self.relieve(now_us, ends_ms + away_ms, Relief::Start { node, power_up: false });
                }
            }
            Trouble::Rest { node, ms } => {
                let process = self.seats[node].process.as_mut();
                if let Some(process) = process.filter(|process| process.pulse.life == Life::Running && !process.paused)
                {
                    process.pulse.drain(now_us, false);
                    self.world.borrow_mut().note("rest", node as u64, ms);
                    self.count("rested");
                    self.relieve(now_us, ms, Relief::CallBack { node });
                }
            }
            Trouble::Cut { node, other, ms } => {
                self.cut(now_us, node, other, ms);
                self.cut(now_us, other, node, ms);
                self.count("cut");
            }
            Trouble::CutOneWay { from, to, ms } => {
                self.cut(now_us, from, to, ms);
                self.count("cut one way");
            }
            Trouble::Gray { node, both, ms } => {
                for other in (0..self.seats.len()).filter(|other| *other != node) {
                    self.cut(now_us, node, other, ms);
                    if both {
                        self.cut(now_us, other, node, ms);
                    }
                }
                self.count("gray");
            }
            Trouble::Suspend { node, ms } => {
                if let Some(process) = self.seats[node].process.as_mut().filter(|process| !process.paused) {
                    process.paused = true;
                    for other in (0..self.seats.len()).filter(|other| *other != node) {
                        self.cut(now_us, node, other, ms);
                        self.cut(now_us, other, node, ms);
                    }
                    self.count("suspended");
                    self.relieve(now_us, ms, Relief::Wake { node, us: ms * 1_000 });
                }
            }
            Trouble::RedisReadOnlyFor { node, other, ms } => {
                for node in std::iter::once(node).chain(other) {
                    *self.redis_refused.entry(node).or_default() += 1;
                    self.redis.read_only_for.insert(self.seats[node].name.clone());
                    self.world.borrow_mut().note("redis refuses lease", node as u64, ms);
                    self.count("lease refused");
                    self.relieve(now_us, ms, Relief::RedisWritesFor { node });
                }
            }
            Trouble::RedisUnheard { node, ms } => {
                *self.redis_unheard.entry(node).or_default() += 1;
                self.redis.unheard.insert(self.seats[node].name.clone());
                self.world.borrow_mut().note("redis unheard", node as u64, ms);
                self.count("answers of Redis lost");
                self.relieve(now_us, ms, Relief::RedisHeard { node });
            }
            Trouble::RedisOut { ms } => {
                self.redis_outages += 1;
                self.redis.out = true;
                self.world.borrow_mut().note("redis out", ms, 0);
                self.count("Redis out");
                self.relieve(now_us, ms, Relief::RedisBack);
            }
            Trouble::RedisForgetsSome => {
                self.redis.forget_some(&mut self.rng);
                self.world.borrow_mut().note("redis forgets some", 0, 0);
                self.count("Redis forgot some");
            }
            Trouble::RedisReadOnly { ms } => {
                self.redis_refusals += 1;
                self.redis.read_only = true;
                self.world.borrow_mut().note("redis refuses writes", ms, 0);
                self.count("Redis refused writes");
                self.relieve(now_us, ms, Relief::RedisWrites);
            }
            Trouble::RedisCut { node, other, ms } => {
                for node in std::iter::once(node).chain(other) {
                    *self.redis_cuts.entry(node).or_default() += 1;
                    self.redis.cut_off.insert(self.seats[node].name.clone());
                    self.world.borrow_mut().note("redis cut", node as u64, ms);
                    self.count("cut off from Redis");
                    self.relieve(now_us, ms, Relief::RedisReached { node });
                }
            }
            Trouble::RedisForgets => {
                self.redis.forget();
                self.world.borrow_mut().note("redis forgets", 0, 0);
                self.count("Redis forgot");
            }
        }
    }

    /// Cuts the network from one node to another.
    fn cut(&mut self, now_us: u64, from: usize, to: usize, ms: u64) {
        *self.cuts.entry((from, to)).or_default() += 1;
        self.cut_us.push((now_us, now_us + ms * 1_000));
        self.world.borrow_mut().cut(self.seats[from].host, self.seats[to].host, true);
        self.relieve(now_us, ms, Relief::Heal { from, to });
    }

    fn relieve(&mut self, now_us: u64, after_ms: u64, relief: Relief) {
        self.relief_count += 1;
        self.reliefs.insert((now_us + after_ms * 1_000, self.relief_count), relief);
    }

    fn end(&mut self, relief: Relief) {
        self.troubled_us.push(self.now_us());
        match relief {
            Relief::Start { node, power_up } => {
                if power_up {
                    self.world.borrow_mut().power_up(self.seats[node].host);
                }
                self.start(node);
            }
            Relief::Resume { node } => {
                self.world.borrow_mut().note("resume", node as u64, 0);
                if let Some(process) = &mut self.seats[node].process {
                    process.paused = false;
                }
            }
            Relief::CallBack { node } => {
                let now_us = self.now_us();
                let Some(Process { pulse, node: shards, paused, .. }) = &mut self.seats[node].process else { return };
                if *paused {
                    return self.relieve(now_us, 100, Relief::CallBack { node });
                }
                let rests =
                    matches!(pulse.life, Life::Resting | Life::Leaving { ends: false } | Life::Left { ends: false });
                if let Some(shards) = shards.as_mut().filter(|_| rests) {
                    self.world.borrow_mut().note("called back", node as u64, 0);
                    for shard in 0..shards.shards() {
                        shards.request(shard, Control::Resume);
                    }
                    pulse.serve(now_us, &[]);
                }
            }
            Relief::Heal { from, to } => {
                let cuts = self.cuts.get_mut(&(from, to)).expect("a cut ends after it began");
                *cuts -= 1;
                if *cuts == 0 {
                    self.world.borrow_mut().cut(self.seats[from].host, self.seats[to].host, false);
                }
            }
            Relief::Wake { node, us } => {
                self.world.borrow_mut().note("wake", node as u64, us);
                // The clock of the nodes counts that time; one that does not would be this.
                let stood_us = if planted(Bug::ClockStandsStill) { us } else { 0 };
                self.world.borrow_mut().clock_stood(self.seats[node].host, stood_us);
                if let Some(process) = &mut self.seats[node].process {
                    process.pulse.clock_stood(stood_us);
                    process.paused = false;
                }
            }
            Relief::RedisWritesFor { node } => {
                let refusals = self.redis_refused.get_mut(&node).expect("it ends after it began");
                *refusals -= 1;
                if *refusals == 0 {
                    self.redis.read_only_for.remove(&self.seats[node].name);
                    self.world.borrow_mut().note("redis takes lease", node as u64, 0);
                }
            }
            Relief::RedisHeard { node } => {
                let losses = self.redis_unheard.get_mut(&node).expect("it ends after it began");
                *losses -= 1;
                if *losses == 0 {
                    self.redis.unheard.remove(&self.seats[node].name);
                    self.world.borrow_mut().note("redis heard", node as u64, 0);
                }
            }
            Relief::RedisWrites => {
                self.redis_refusals -= 1;
                self.redis.read_only = self.redis_refusals > 0;
                self.world.borrow_mut().note("redis takes writes", 0, 0);
            }
            Relief::RedisReached { node } => {
                let cuts = self.redis_cuts.get_mut(&node).expect("a cut ends after it began");
                *cuts -= 1;
                if *cuts == 0 {
                    self.redis.cut_off.remove(&self.seats[node].name);
                    self.world.borrow_mut().note("redis reached", node as u64, 0);
                }
            }
            Relief::RedisBack => {
                self.redis_outages -= 1;
                self.redis.out = self.redis_outages > 0;
                self.world.borrow_mut().note("redis back", 0, 0);
            }
        }
    }

    /// Whether all troubles are over and every node runs.
    pub(super) fn is_well(&self) -> bool {
        let runs = |seat: &Seat| {
            let process = seat.process.as_ref();
            process.is_some_and(|process| process.pulse.life == Life::Running && process.node.is_some())
        };
        self.troubles.is_empty() && self.reliefs.is_empty() && self.seats.iter().all(runs)
    }

    /// The nodes that run.
    pub(super) fn nodes(&self) -> impl Iterator<Item = (&str, &Node)> {
        let processes = self.seats.iter().filter_map(|seat| Some((seat, seat.process.as_ref()?)));
        processes.filter_map(|(seat, process)| Some((seat.name.as_str(), process.node.as_ref()?)))
    }

    /// Panics unless all nodes have one view, of all of them.
    pub(super) fn check_one_view(&self) {
        let mut digests = BTreeMap::new();
        for seat in &self.seats {
            let process = seat.process.as_ref().expect("asked for when all is well");
            let view = process.pulse.heart().view();
            let fenced = process.pulse.heart().fenced();
            assert_eq!(fenced, None, "{} is fenced although all is well", seat.name);
            let active = view.members.iter().filter(|member| member.state == NodeState::Active).count();
            assert_eq!(active, self.seats.len(), "{} sees {:?}", seat.name, view.members);
            digests.entry(view.digest).or_insert_with(Vec::new).push(&seat.name);
        }
        assert_eq!(digests.len(), 1, "the nodes have different views: {digests:?}");
    }

    /// Device and session id of each session of a user, as the user's home knows them; and that home.
    pub(super) fn sessions(&self, user: u64) -> (&str, usize, BTreeSet<(String, u64)>) {
        let process = self.seats[0].process.as_ref().expect("asked for when all is well");
        let view = process.pulse.heart().view();
        let home = view.ring.as_ref().expect("asked for when all is well").owner(user).name();
        let (name, node) = self.nodes().find(|(name, _)| *name == home).expect("a node of the ring runs");
        let shard = home_shard(user, node.shards() as u32) as usize;
        (name, shard, node.sessions(shard, user).collect())
    }

    /// The node that is the home of a live room.
    pub(super) fn home_of_room(&self, room: u64) -> String {
        let process = self.seats[0].process.as_ref().expect("asked for when all is well");
        let view = process.pulse.heart().view();
        view.ring.as_ref().expect("asked for when all is well").owner(room ^ crate::groups::PLACE).name().to_owned()
    }

    /// The sum of a metric over the shards of all nodes that run.
    pub(super) fn sum(&self, stat: impl Fn(&ShardStats) -> u64) -> u64 {
        self.nodes().flat_map(|(_, node)| node.stats()).map(stat).sum()
    }

    /// How often the first so many nodes have said that all is told.
    pub(super) fn settled_sent(&self, nodes: usize) -> u64 {
        let running = self.seats[..nodes].iter().filter_map(|seat| seat.process.as_ref()?.node.as_ref());
        running.flat_map(Node::stats).map(|stats| stats.settled_sent.get() + stats.settled_sets.get()).sum()
    }

    /// A node is killed and does not come back.
    pub(super) fn crash(&mut self, number: usize) {
        self.stop(number, false);
    }

    /// Something happens to the cluster now.
    pub(super) fn trouble(&mut self, trouble: Trouble) {
        let now_us = self.now_us();
        self.begin(now_us, trouble);
    }

    /// Redis remembers for so long who was here.
    pub(super) fn redis_remembers(&mut self, ms: u64) {
        self.redis.remembers_ms = ms;
    }

    /// From now on Redis loses no answer, so that nodes have nothing to ask each other.
    pub(super) fn calm_redis(&mut self) {
        self.redis.sound = true;
    }

    /// All nodes drain and leave.
    pub(super) fn leave_all(&mut self) {
        let now_us = self.now_us();
        for seat in &mut self.seats {
            if let Some(process) = &mut seat.process {
                process.pulse.drain(now_us, true);
            }
        }
    }

    /// Whether no process runs.
    pub(super) fn is_over(&self) -> bool {
        self.seats.iter().all(|seat| seat.process.is_none())
    }
}

/// No certificates: handshakes are those of the simulator.
fn toy_tls() -> std::sync::Arc<TlsSwitch> {
    let secret = TicketSecret::shared(b"of a simulation");
    TlsSwitch::new(Certificates::default(), None, secret).expect("there is nothing that does not go together")
}

fn process_seed(scenario: &Scenario, node: usize, starts: u64) -> u64 {
    scenario.seed ^ (node as u64 + 1) << 32 ^ starts << 48
}

fn address(node: usize, port: u16) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, node as u8 + 1], port))
}
