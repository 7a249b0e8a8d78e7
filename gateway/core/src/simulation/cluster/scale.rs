//! A hundred nodes of 64 shards in virtual time: what one of them decides, counts and says, without sockets. The others
//! are their leases, their links, and the word of each of their shards after a change of the view.
//!
//! `TRUNKLINE_SCALE=1`, as `make sim-scale` sets it, adds a rolling restart of all others and prints what everything
//! took.

use super::redis::Redis;
use crate::directory::{Routing, Settling};
use crate::ids::NodeKey;
use crate::membership::{Agent, Reply, Request};
use crate::mesh::MESH_PROTOCOL;
use crate::mesh::handshake::Secrets;
use crate::mesh::link::LinkLimits;
use crate::mesh::node_key;
use crate::mesh::peers::{Mesh, MeshConfig, Placed};
use crate::mesh::wire::{Record, shards_of};
use crate::mesh_news::{LinkNews, LinkWord, MeshNews};
use std::sync::Arc;
use std::time::{Duration, Instant};
use trunkline_router_core::membership::{NodeRecord, NodeState, View};

const NODES: usize = 100;
const SHARDS: u16 = 64;
/// Fewer links than the default of `mesh_links`, so that many shards share each.
const LINKS: u16 = 4;
const LEASE_MS: u64 = 5_000;
const BEAT_MS: u64 = 1_000;
const STEP_MS: u64 = 100;
const NEWS_MS: u64 = 500;

/// What the node has said and worked.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    views: u64,
    /// Records to other nodes after changes of the view, and their bytes.
    records: u64,
    bytes: u64,
    /// Records of others passed on between shards.
    letters: u64,
    /// Entries of what shards tell the control thread of their links.
    news: u64,
    control: Duration,
    /// Of all shards together.
    shards: Duration,
    ms: u64,
}

impl Tally {
    fn since(self, before: Tally) -> Tally {
        Tally {
            views: self.views - before.views,
            records: self.records - before.records,
            bytes: self.bytes - before.bytes,
            letters: self.letters - before.letters,
            news: self.news - before.news,
            control: self.control - before.control,
            shards: self.shards - before.shards,
            ms: self.ms - before.ms,
        }
    }
}

struct Scale {
    now_ms: u64,
    redis: Redis,
    agent: Agent,
    /// The leases of the others; `None` for one that is not there.
    others: Vec<Option<NodeRecord>>,
    links_max: u16,
    names: Vec<Arc<str>>,
    meshes: Vec<Mesh>,
    settlings: Vec<Settling>,
    tally: Tally,
}

fn record(number: usize, links_max: u16) -> NodeRecord {
    NodeRecord {
        name: format!("node-{number:03}"),
        incarnation: 0,
        life: 0,
        renewals: 0,
        secret_mark: String::new(),
        reach: Some(Vec::new()),
        protocol_oldest: MESH_PROTOCOL,
        zone: String::new(),
        mending: false,
        mesh_links: links_max.into(),
        https: false,
        turns: 0,
        view: 0,
        silent: String::new(),
        state: NodeState::Active,
        weight: 10,
        shards: SHARDS.into(),
        mesh: format!("10.0.0.{number}:7790"),
        advertise: format!("10.0.0.{number}:7700"),
        http: String::new(),
        protocol: MESH_PROTOCOL,
        connections: 0,
        users: 0,
        started_ms: 1,
    }
}

fn key_of(name: &str, life: u64) -> NodeKey {
    NodeKey(node_key(name, life))
}

impl Scale {
    /// Nodes with so many links for each two of them; 0 for one for each shard.
    fn new(links_max: u16) -> Self {
        let secrets = Secrets::new([&[7; 32][..]].into_iter()).expect("a secret of fair length");
        let link = LinkLimits { bytes_max: 1 << 20, reserve_bytes: 1 << 20 };
        let mesh = |shard| MeshConfig {
            node: "node-000".to_owned(),
            secrets: secrets.clone(),
            shard,
            shards: SHARDS,
            links_max,
            link,
            bytes_max: 32 << 20,
            lease_ms: LEASE_MS,
        };
        let mut agent = Agent::new(record(0, links_max), LEASE_MS, BEAT_MS);
        agent.serve(1);
        let mut scale = Scale {
            now_ms: 1_000,
            redis: Redis::default(),
            agent,
            others: vec![None; NODES],
            links_max,
            names: (0..NODES).map(|number| record(number, 0).name.into()).collect(),
            meshes: (0..SHARDS).map(|shard| Mesh::new(mesh(shard))).collect(),
            settlings: (0..SHARDS).map(|_| Settling::new()).collect(),
            tally: Tally::default(),
        };
        (1..NODES).for_each(|number| scale.join(number, NodeState::Active));
        scale.agent.set_state(scale.now_ms, NodeState::Active);
        scale
    }

    /// A node takes its lease.
    fn join(&mut self, number: usize, state: NodeState) {
        let record = NodeRecord { state, ..record(number, self.links_max) };
        let incarnation = self.redis.acquire(self.now_ms * 1_000, record.clone(), LEASE_MS).expect("its name is free");
        self.others[number] = Some(NodeRecord { incarnation, ..record });
    }

    fn become_(&mut self, number: usize, state: NodeState) {
        self.others[number].as_mut().expect("it is there").state = state;
    }

    /// It ends and gives its lease up, or it does not.
    fn end(&mut self, number: usize, in_order: bool) {
        let record = self.others[number].take().expect("it is there");
        if in_order {
            self.redis.release(&record.name, record.incarnation);
        }
    }

    fn run(&mut self, ms: u64) {
        for _ in 0..ms / STEP_MS {
            self.now_ms += STEP_MS;
            self.tally.ms += STEP_MS;
            if self.now_ms.is_multiple_of(BEAT_MS) {
                for record in self.others.iter_mut().flatten() {
                    record.renewals += 1;
                    self.redis.renew(self.now_ms * 1_000, record.clone(), LEASE_MS);
                }
            }
            let news: Vec<Vec<LinkNews>> = match self.now_ms.is_multiple_of(NEWS_MS) {
                true => (0..SHARDS).map(|shard| self.news(shard)).collect(),
                false => Vec::new(),
            };
            self.tally.news += news.iter().map(|links| links.len() as u64).sum::<u64>();
            let begun = Instant::now();
            for (shard, links) in (0..).zip(news) {
                self.agent.heard(self.now_ms, MeshNews::Links { shard, all: true, links });
            }
            let told = self.control();
            self.tally.control += begun.elapsed();
            if let Some(view) = told {
                self.change(&view);
            }
        }
    }

    /// What a shard tells of its links, all of which are up.
    fn news(&self, shard: u16) -> Vec<LinkNews> {
        let mesh = &self.meshes[usize::from(shard)];
        let has_link = |other: &NodeRecord| mesh.carrier_of(key_of(&other.name, other.life())).is_none();
        let others = self.others.iter().zip(&self.names).filter_map(|(other, name)| Some((other.as_ref()?, name)));
        let others = others.filter(|(other, _)| has_link(other));
        let news = others.map(|(other, name)| LinkNews {
            node: name.clone(),
            links: 1,
            up: 1,
            ..LinkNews::of("", other.incarnation, LinkWord::Heard)
        });
        news.collect()
    }

    /// The control thread does what it has to. Returns the view that the shards are told, if they are.
    fn control(&mut self) -> Option<Arc<View>> {
        let mut told = None;
        loop {
            self.agent.look(self.now_ms);
            self.agent.tell_shards(|_, view, _| {
                told = Some(view.clone());
                true
            });
            let Some(action) = self.agent.next_action() else { return told };
            let crate::membership::Action::Ask(question) = action else { continue };
            let now_us = self.now_ms * 1_000;
            let reply = match question.request.clone() {
                Request::Renew(record) => Reply::Renewed(self.redis.renew(now_us, record, LEASE_MS)),
                Request::Restore(record) => Reply::Renewed(self.redis.restore(now_us, record, LEASE_MS)),
                Request::Acquire(record) => {
                    self.redis.acquire(now_us, record, LEASE_MS).map_or(Reply::NameTaken, Reply::Acquired)
                }
                Request::Poll => Reply::Polled(self.redis.poll(now_us)),
                Request::Epoch { digest, known } => Reply::Epoch(self.redis.epoch(digest, known)),
                Request::RenewFor(_) => Reply::Failed,
            };
            self.agent.answered(self.now_ms, *question, reply);
        }
    }

    /// All nodes have that view: every shard says what it has to, and hears of all others.
    fn change(&mut self, view: &View) {
        self.tally.views += 1;
        let life = self.agent.heart().life();
        let begun = Instant::now();
        let mut routings = Vec::new();
        for (mesh, settling) in self.meshes.iter_mut().zip(&mut self.settlings) {
            let routing = Routing::new(key_of("node-000", life), view, key_of);
            mesh.set_view(life, &routing, self.now_ms);
            settling.begin(&routing, u32::MAX);
            routings.push(routing);
        }
        let (routing, digest) = (&routings[0], view.digest);
        let said = self.said();
        for from in 0..SHARDS {
            for member in routing.others() {
                let mesh = &self.meshes[usize::from(from)];
                // To the shard that has the link, where this one has none.
                let carrier = mesh.carrier_of(member.key);
                self.tally.letters += u64::from(carrier.is_some());
                for set in mesh.shard_sets(member.key) {
                    let first = shards_of(&set).next().expect("a link leads to some shard");
                    let record = Record::SettledShards { from, digest, shards: &set };
                    let mesh = &mut self.meshes[usize::from(carrier.unwrap_or(from))];
                    assert_eq!(mesh.queue(member.key, first, &record), Ok(Placed::Waits), "no link is up here");
                }
            }
        }
        let (records, bytes) = self.said();
        let (records, bytes) = (records - said.0, bytes - said.1);
        (self.tally.records, self.tally.bytes) = (self.tally.records + records, self.tally.bytes + bytes);
        let waits = routing.others().count() > 0;
        assert!(self.settlings.iter().all(|settling| settling.is_settled() != waits));
        // Others say as much. Each record comes over one link, and all other shards hear of it from that one's.
        self.tally.letters += records * (u64::from(SHARDS) - 1);
        for member in routing.others() {
            for from in 0..member.shards as u16 {
                for settling in &mut self.settlings {
                    settling.said(member.key, from, digest, 0);
                }
            }
        }
        self.tally.shards += begun.elapsed();
        assert!(self.settlings.iter().all(Settling::is_settled), "all have said so");
    }

    /// Records queued for other nodes so far, and their bytes.
    fn said(&self) -> (u64, u64) {
        let stats = self.meshes.iter().map(|mesh| mesh.stats());
        stats.fold((0, 0), |(records, bytes), stats| (records + stats.records_out, bytes + stats.bytes_out))
    }

    /// Links of the node, and of the shard that has most of them.
    fn links(&self) -> (u64, u64) {
        let counts = self.meshes.iter().map(|mesh| mesh.link_counts().0);
        (counts.clone().sum(), counts.max().unwrap_or(0))
    }

    fn members(&self) -> usize {
        self.agent.heart().view().members.len()
    }

    /// Runs something and says what it took.
    fn measure(&mut self, what: &str, body: impl FnOnce(&mut Scale)) -> Tally {
        let before = self.tally;
        body(self);
        let Tally { views, records, bytes, letters, news, control, shards, ms } = self.tally.since(before);
        println!(
            "{what:<16} {views:>4} views, of one node: {records:>7} records of {bytes:>9} B, {letters:>9} letters \
             between shards, {news:>8} words of links, control thread {:>5.2} % of a core, {:>6.2} ms a shard and view",
            control.as_secs_f64() * 1e5 / ms as f64,
            shards.as_secs_f64() * 1e3 / f64::from(SHARDS) / views.max(1) as f64,
        );
        self.tally.since(before)
    }
}

#[test]
fn a_hundred_nodes_of_64_shards_say_of_a_change_what_their_links_are() {
    let all = std::env::var_os("TRUNKLINE_SCALE").is_some();
    for links_max in [0, 16, LINKS].into_iter().filter(|links| all || *links != 16) {
        let mut scale = Scale::new(links_max);
        println!("{NODES} nodes of {SHARDS} shards, mesh_links {links_max}");
        a_cluster_changes(&mut scale);
    }
}

fn a_cluster_changes(scale: &mut Scale) {
    scale.measure("start", |scale| scale.run(10_000));
    assert_eq!(scale.members(), NODES);
    let (links, most) = scale.links();
    println!("{links} connections of one node, {most} at the shard that has most");
    let each = if scale.links_max == 0 { u64::from(SHARDS) } else { scale.links_max.into() };
    assert_eq!(links, (NODES as u64 - 1) * each);
    assert!(most <= 99, "{most}");
    let others = NODES as u64 - 1;
    let crash = scale.measure("a crash", |scale| {
        scale.end(7, false);
        scale.run(2 * LEASE_MS + 2_000);
    });
    assert_eq!(scale.members(), NODES - 1);
    // One for each link, whether a shard has it for itself or shares it.
    assert_eq!((crash.views, crash.records), (1, (others - 1) * each));
    let join = scale.measure("a join", |scale| {
        scale.join(7, NodeState::Joining);
        scale.run(3_000);
        scale.become_(7, NodeState::Active);
        scale.run(3_000);
    });
    assert_eq!((join.views, join.records), (2, 2 * others * each));
    let quiet = scale.measure("nothing", |scale| scale.run(10_000));
    assert_eq!((quiet.views, quiet.records), (0, 0));
    if std::env::var_os("TRUNKLINE_SCALE").is_none() {
        return;
    }
    let rolling = scale.measure("rolling restart", |scale| {
        for number in 1..NODES {
            scale.become_(number, NodeState::Draining);
            scale.run(3_000);
            scale.end(number, true);
            scale.run(3_000);
            scale.join(number, NodeState::Joining);
            scale.run(2_000);
            scale.become_(number, NodeState::Active);
            scale.run(2_000);
        }
    });
    assert_eq!(scale.members(), NODES);
    assert!(rolling.views <= 4 * others, "{rolling:?}");
    assert!(rolling.records <= 4 * others * others * each, "{rolling:?}");
}
