//! Several agents, a Redis that works in part, and a mesh that may be cut, in steps of virtual time.

use super::*;
use crate::mesh_news::LinkNews;
use std::collections::{BTreeMap, BTreeSet};
use trunkline_router_core::membership::Membership;

const LEASE_MS: u64 = 5_000;
const BEAT_MS: u64 = 1_000;
const STEP_MS: u64 = 20;
/// When all agents have one view.
const WHOLE_MS: u64 = 5_000;

fn record(name: &str) -> NodeRecord {
    NodeRecord {
        name: name.to_owned(),
        incarnation: 0,
        state: NodeState::Joining,
        weight: 1,
        shards: 1,
        mesh: format!("{name}:7790"),
        advertise: format!("{name}:7700"),
        http: String::new(),
        protocol: 1,
        connections: 0,
        users: 0,
        started_ms: 1,
        life: 0,
        renewals: 0,
        secret_mark: String::new(),
        reach: None,
        protocol_oldest: 0,
        zone: String::new(),
        mending: false,
        mesh_links: 0,
        https: false,
        turns: 0,
        view: 0,
        silent: String::new(),
    }
}

#[derive(Default)]
struct Trial {
    now_ms: u64,
    agents: BTreeMap<String, Agent>,
    /// Records and when they run out.
    leases: BTreeMap<String, (NodeRecord, u64)>,
    incarnations: u64,
    out: bool,
    read_only: bool,
    /// Whose leases belong where Redis refuses writes; all else is written.
    refused: BTreeSet<String>,
    /// Who does not reach Redis; whose links are cut; who does nothing; and whose process has ended.
    cut_off: BTreeSet<String>,
    unlinked: BTreeSet<String>,
    paused: BTreeSet<String>,
    dead: BTreeSet<String>,
    /// A process that only watches, and polls once a second.
    watcher: Option<Membership>,
    /// A node comes into the ring or leaves it in order: while the others learn of it, messages wait (see
    /// `core/moves.rs`), and two views are no two homes.
    hands_over: bool,
}

impl Trial {
    fn of(names: &[&str]) -> Self {
        Trial::begun(names, false)
    }

    fn begun(names: &[&str], serves_alone: bool) -> Self {
        let mut trial = Trial { incarnations: 10, ..Trial::default() };
        for name in names {
            let mut agent = Agent::new(record(name), LEASE_MS, BEAT_MS);
            if serves_alone {
                agent.serve_alone();
            }
            agent.serve(1);
            trial.agents.insert((*name).to_owned(), agent);
        }
        trial.run(1_000);
        let now_ms = trial.now_ms;
        trial.agents.values_mut().for_each(|agent| agent.set_state(now_ms, NodeState::Active));
        trial.run(WHOLE_MS - 1_000);
        for name in names {
            assert_eq!(trial.ring(name), names, "the ring at {name}");
        }
        trial
    }

    fn linked(&self, one: &str, other: &str) -> bool {
        [one, other].iter().all(|node| !self.unlinked.contains(*node) && !self.dead.contains(*node))
    }

    fn answer(&mut self, asker: &str, request: &Request) -> Reply {
        let now_ms = self.now_ms;
        let writes = !matches!(request, Request::Poll);
        if self.out || self.cut_off.contains(asker) || (self.read_only && writes) {
            return Reply::Failed;
        }
        let lease = match request {
            Request::Renew(record) | Request::Restore(record) | Request::Acquire(record) => Some(&record.name),
            Request::RenewFor(favour) => Some(&favour.record.name),
            _ => None,
        };
        if lease.is_some_and(|name| self.refused.contains(name)) {
            return Reply::Failed;
        }
        let held = |leases: &BTreeMap<String, (NodeRecord, u64)>, name: &str| {
            leases.get(name).filter(|(_, until_ms)| *until_ms > now_ms).map(|(record, _)| record.incarnation)
        };
        let mut renew = |record: &NodeRecord, restore: bool| match held(&self.leases, &record.name) {
            Some(incarnation) if incarnation != record.incarnation => Renewal::LostToAnother,
            None if !restore => Renewal::LostToNobody,
            _ => {
                self.leases.insert(record.name.clone(), (record.clone(), now_ms + LEASE_MS));
                Renewal::Renewed
            }
        };
        match request {
            Request::Renew(record) => Reply::Renewed(renew(record, false)),
            Request::Restore(record) => Reply::Renewed(renew(record, true)),
            Request::RenewFor(favour) => Reply::Renewed(renew(&favour.record, favour.restore)),
            Request::Acquire(record) => {
                if held(&self.leases, &record.name).is_some_and(|incarnation| incarnation != record.incarnation) {
                    return Reply::NameTaken;
                }
                self.incarnations += 1;
                let record = NodeRecord { incarnation: self.incarnations, ..record.clone() };
                self.leases.insert(record.name.clone(), (record, now_ms + LEASE_MS));
                Reply::Acquired(self.incarnations)
            }
            Request::Poll => {
                let live = self.leases.values().filter(|(_, until_ms)| *until_ms > now_ms);
                Reply::Polled(live.map(|(record, _)| record.clone()).collect())
            }
            Request::Epoch { known, .. } => Reply::Epoch(*known),
        }
    }

    fn run(&mut self, ms: u64) {
        for _ in 0..ms / STEP_MS {
            self.now_ms += STEP_MS;
            let names: Vec<String> = self.agents.keys().cloned().collect();
            for name in &names {
                self.step(name, &names);
            }
            let now_ms = self.now_ms;
            if let Some(watcher) = self.watcher.as_mut().filter(|_| now_ms.is_multiple_of(1_000)) {
                let live = self.leases.values().filter(|(_, until_ms)| *until_ms > now_ms);
                watcher.polled(now_ms, live.map(|(record, _)| record.clone()).collect());
            }
            self.check();
        }
    }

    fn step(&mut self, name: &str, names: &[String]) {
        if self.paused.contains(name) || self.dead.contains(name) {
            return;
        }
        let now_ms = self.now_ms;
        let mut agent = self.agents.remove(name).unwrap();
        for other in names.iter().filter(|other| *other != name) {
            let Some(peer) = self.agents.get(other) else { continue };
            let (node, incarnation) = (other.clone(), peer.heart().incarnation());
            let hears = self.linked(name, other) && !self.paused.contains(other);
            if incarnation != 0 && now_ms.is_multiple_of(500) {
                let word = if hears { LinkWord::Heard } else { LinkWord::Lost };
                let links = vec![LinkNews::of(&node, incarnation, word)];
                agent.heard(now_ms, MeshNews::Links { shard: 0, all: false, links });
            }
        }
        agent.look(now_ms);
        agent.tell_shards(|_, _, _| true);
        while let Some(action) = agent.next_action() {
            match action {
                Action::Ask(question) => {
                    let reply = self.answer(name, &question.request);
                    agent.answered(now_ms, *question, reply);
                }
                Action::Send { node, body, .. } => {
                    let life = agent.heart().life();
                    let hears = self.linked(name, &node) && !self.paused.contains(&node);
                    if let Some(peer) = self.agents.get_mut(&node).filter(|_| hears) {
                        peer.heard(now_ms, MeshNews::Memo { node: name.to_owned(), life, body: body.into() });
                    }
                }
                Action::Call { node, .. } => {
                    let life = agent.heart().life();
                    let hears = self.linked(name, &node) && !self.paused.contains(&node);
                    if let Some(peer) = self.agents.get_mut(&node).filter(|_| hears) {
                        let links = vec![LinkNews::of(name, life, LinkWord::Heard)];
                        peer.heard(now_ms, MeshNews::Links { shard: 0, all: false, links });
                    }
                }
                Action::Probe { node, life, sent_ms, .. } => {
                    let refused = self.dead.contains(&node);
                    agent.probed(now_ms, &node, life, sent_ms, refused);
                }
                _ => {}
            }
        }
        agent.look(now_ms);
        self.agents.insert(name.to_owned(), agent);
    }

    fn serves(&self, name: &str) -> bool {
        let stopped = self.paused.contains(name) || self.dead.contains(name);
        !stopped && self.now_ms < self.agents[name].heart().serve_until_ms()
    }

    /// The ring of who only watches.
    fn watched(&self) -> Vec<String> {
        names_of(&self.watcher.as_ref().unwrap().view())
    }

    fn kept(&self) -> Vec<&str> {
        self.watcher.as_ref().unwrap().kept().collect()
    }

    fn ring(&self, name: &str) -> Vec<String> {
        names_of(&self.agents[name].heart().view())
    }

    /// No two agents that may serve are at home for one user, unless that is what was asked for.
    fn check(&self) {
        let stated = self.agents.values().any(|agent| agent.serves_alone);
        if stated || self.hands_over || self.now_ms < WHOLE_MS {
            return;
        }
        for user in 1..50 {
            let homes = self.agents.iter().filter(|(name, agent)| {
                let ring = agent.heart().view().ring.clone();
                self.serves(name) && ring.is_some_and(|ring| ring.owner(user).name() == name.as_str())
            });
            let homes: Vec<&String> = homes.map(|(name, _)| name).collect();
            assert!(homes.len() <= 1, "at {} ms user {user} has the homes {homes:?}", self.now_ms);
        }
    }

    fn check_all_serve(&self, names: &[&str]) {
        for name in names {
            assert!(self.serves(name), "{name} does not serve at {} ms", self.now_ms);
            assert_eq!(self.ring(name), names, "the ring at {name}");
        }
    }
}

/// The homes of a view.
fn names_of(view: &View) -> Vec<String> {
    view.ring.as_ref().map_or(Vec::new(), |ring| ring.nodes().iter().map(|node| node.name().to_owned()).collect())
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn who_does_not_reach_redis_is_renewed_by_a_peer() {
    for (nodes, cut) in
        [(&["a", "b"][..], &["a"][..]), (&["a", "b", "c"], &["b"]), (&["a", "b", "c", "d"], &["a", "b"])]
    {
        let mut trial = Trial::of(nodes);
        trial.cut_off = set(cut);
        for _ in 0..60 {
            trial.run(1_000);
            trial.check_all_serve(nodes);
        }
        assert!(cut.iter().all(|node| trial.leases[*node].1 > trial.now_ms), "its lease lives");
        assert!(trial.agents[cut[0]].writes_through(trial.now_ms).is_some(), "presence goes through a peer");
        trial.cut_off.clear();
        trial.run(5_000);
        trial.check_all_serve(nodes);
        assert!(trial.agents[cut[0]].writes_through(trial.now_ms).is_none());
    }
}

#[test]
fn what_the_others_saw_when_redis_was_lost_is_no_difference_for_ever() {
    for after_ms in (200..3_000).step_by(200) {
        let mut trial = Trial::of(&["a", "b", "c", "d"]);
        trial.hands_over = true;
        let now_ms = trial.now_ms;
        trial.agents.get_mut("d").unwrap().set_state(now_ms, NodeState::Draining);
        // The records that a and b have read last may be from before the others knew of it.
        trial.run(after_ms);
        trial.cut_off = set(&["a", "b"]);
        for _ in 0..40 {
            trial.run(1_000);
            let now_ms = trial.now_ms;
            for (name, agent) in &mut trial.agents {
                assert_eq!(agent.differs(now_ms), None, "at {name}, cut {after_ms} ms after the change");
            }
        }
        assert_eq!(trial.ring("a"), ["a", "b", "c"]);
    }
}

#[test]
fn the_others_see_at_once_that_a_node_drains() {
    let mut trial = Trial::of(&["a", "b", "c"]);
    // Long before their next beat.
    trial.run(300);
    trial.hands_over = true;
    let now_ms = trial.now_ms;
    trial.agents.get_mut("b").unwrap().set_state(now_ms, NodeState::Draining);
    trial.run(100);
    for name in ["a", "b", "c"] {
        assert_eq!(trial.ring(name), ["a", "c"], "the ring at {name}");
    }
}

#[test]
fn a_state_is_told_through_a_peer() {
    let mut trial = Trial::of(&["a", "b", "c"]);
    trial.cut_off = set(&["a"]);
    trial.run(10_000);
    let now_ms = trial.now_ms;
    trial.hands_over = true;
    trial.agents.get_mut("a").unwrap().set_state(now_ms, NodeState::Draining);
    trial.run(4_000);
    for name in ["a", "b", "c"] {
        assert_eq!(trial.ring(name), ["b", "c"], "the ring at {name}");
    }
}

#[test]
fn a_redis_that_refuses_writes_costs_nobody_the_view() {
    let nodes = &["a", "b", "c"];
    let mut trial = Trial::of(nodes);
    trial.read_only = true;
    for _ in 0..60 {
        trial.run(1_000);
        trial.check_all_serve(nodes);
    }
    assert!(trial.leases.values().all(|(_, until_ms)| *until_ms < trial.now_ms), "Redis has forgotten all");
    let incarnations: Vec<u64> = trial.agents.values().map(|agent| agent.heart().incarnation()).collect();
    trial.read_only = false;
    for _ in 0..100 {
        trial.run(100);
        trial.check_all_serve(nodes);
    }
    let now: Vec<u64> = trial.agents.values().map(|agent| agent.heart().incarnation()).collect();
    assert_eq!(incarnations, now, "presence is as valid as it was");
}

#[test]
fn a_part_of_redis_that_refuses_writes_costs_nobody_the_view() {
    let nodes = &["a", "b", "c"];
    for refused in [&["a"][..], &["a", "b"]] {
        let mut trial = Trial::of(nodes);
        let incarnation = trial.agents["a"].heart().incarnation();
        trial.refused = set(refused);
        for _ in 0..60 {
            trial.run(1_000);
            trial.check_all_serve(nodes);
        }
        assert!(refused.iter().all(|name| trial.leases[*name].1 < trial.now_ms), "Redis has forgotten them");
        trial.refused.clear();
        for _ in 0..100 {
            trial.run(100);
            trial.check_all_serve(nodes);
        }
        assert_eq!(trial.agents["a"].heart().incarnation(), incarnation);
    }
}

#[test]
fn whom_not_all_others_keep_stops_before_one_of_them_takes_over() {
    for cut in ["a", "c"] {
        let mut trial = Trial::of(&["a", "b", "c"]);
        trial.refused = set(&["a"]);
        trial.run(20_000);
        trial.unlinked = set(&[cut]);
        // Each step checks that no user has two homes.
        trial.run(60_000);
        assert!(!trial.serves("a"), "with the links of {cut} cut");
        assert_eq!(trial.ring("b"), ["b", "c"]);
        trial.refused.clear();
        trial.unlinked.clear();
        // It comes into the ring again.
        trial.hands_over = true;
        trial.run(20_000);
        trial.check_all_serve(&["a", "b", "c"]);
    }
}

#[test]
fn leases_that_redis_has_lost_are_written_again_with_their_incarnation() {
    let nodes = &["a", "b", "c"];
    let mut trial = Trial::of(nodes);
    let incarnation = trial.agents["a"].heart().incarnation();
    for lost in [&["a"][..], &["a", "c"], &["a", "b", "c"]] {
        trial.leases.retain(|name, _| !lost.contains(&name.as_str()));
        for _ in 0..100 {
            trial.run(100);
            trial.check_all_serve(nodes);
        }
    }
    assert_eq!(trial.agents["a"].heart().incarnation(), incarnation);
}

#[test]
fn without_redis_a_majority_serves_for_as_long_as_it_takes() {
    let nodes = &["a", "b", "c"];
    let mut trial = Trial::of(nodes);
    trial.out = true;
    trial.run(20_000);
    trial.check_all_serve(nodes);
    trial.paused = set(&["c"]);
    for _ in 0..60 {
        trial.run(1_000);
        assert!(trial.serves("a") && trial.serves("b"));
    }
    trial.unlinked = set(&["b"]);
    trial.run(LEASE_MS + BEAT_MS);
    assert!(!trial.serves("a") && !trial.serves("b"), "one of three is no majority");
    (trial.out, trial.unlinked, trial.paused) = (false, BTreeSet::new(), BTreeSet::new());
    // All begin a life, and come into the ring as nodes do that are started together.
    trial.hands_over = true;
    trial.run(20_000);
    trial.check_all_serve(nodes);
}

/// One is paused until the other serves without Redis, alone; then Redis writes again.
#[test]
fn who_was_fenced_is_no_home_before_who_serves_without_redis_knows_of_it() {
    let mut trial = Trial::of(&["a", "b"]);
    trial.paused = set(&["b"]);
    trial.run(LEASE_MS + 4 * BEAT_MS);
    assert_eq!(trial.ring("a"), ["a"]);
    trial.cut_off = set(&["a"]);
    trial.unlinked = set(&["b"]);
    trial.run(LEASE_MS + 2 * BEAT_MS);
    assert!(trial.serves("a"), "nobody else is there");
    // It reaches Redis, and in the first moments its calls do not reach the other.
    trial.paused.clear();
    trial.run(BEAT_MS);
    assert!(!trial.serves("b") || trial.ring("b").is_empty(), "it calls and waits");
    let why = trial.agents["b"].waits_to_return(trial.now_ms).expect("it waits");
    assert!(why.contains("a had a lease"), "{why}");
    trial.unlinked.clear();
    trial.run(LEASE_MS - BEAT_MS);
    assert!(trial.ring("b").is_empty(), "not before the other's lease is over");
    trial.run(4 * BEAT_MS);
    assert!(!trial.serves("a"), "it neither has Redis nor another who agrees");
    assert_eq!(trial.ring("b"), ["b"]);
    trial.cut_off.clear();
    trial.hands_over = true;
    trial.run(4 * LEASE_MS);
    trial.check_all_serve(&["a", "b"]);
}

#[test]
fn of_two_without_redis_one_serves_on_when_the_others_process_has_ended() {
    let mut trial = Trial::of(&["a", "b"]);
    trial.out = true;
    trial.run(10_000);
    trial.dead = set(&["b"]);
    for _ in 0..60 {
        trial.run(1_000);
        assert!(trial.serves("a"));
    }
    assert_eq!(trial.ring("a"), ["a"]);
}

#[test]
fn of_two_without_redis_none_serves_when_the_other_may_unless_it_is_said() {
    for serves_alone in [false, true] {
        let mut trial = Trial::begun(&["a", "b"], serves_alone);
        trial.out = true;
        trial.run(10_000);
        trial.paused = set(&["b"]);
        trial.run(2 * LEASE_MS + 2 * BEAT_MS);
        assert_eq!(trial.serves("a"), serves_alone);
        if serves_alone {
            assert_eq!(trial.ring("a"), ["a"]);
        }
        (trial.out, trial.paused) = (false, BTreeSet::new());
        // Both begin a life, and come into the ring as nodes do that are started together.
        trial.hands_over = true;
        trial.run(20_000);
        trial.check_all_serve(&["a", "b"]);
    }
}

#[test]
fn who_reaches_neither_redis_nor_the_others_stops_before_they_take_over() {
    let mut trial = Trial::of(&["a", "b", "c"]);
    (trial.cut_off, trial.unlinked) = (set(&["a"]), set(&["a"]));
    let begun_ms = trial.now_ms;
    while trial.ring("b").len() == 3 {
        trial.run(STEP_MS);
        assert!(trial.now_ms < begun_ms + 3 * LEASE_MS, "it is never taken over");
    }
    assert!(!trial.serves("a"));
    assert!(trial.now_ms <= begun_ms + LEASE_MS + 2 * BEAT_MS, "{} ms", trial.now_ms - begun_ms);
    trial.run(BEAT_MS);
    trial.check_all_serve(&["b", "c"]);
}

#[test]
fn a_minority_that_has_redis_again_does_not_drop_a_majority_that_may_serve() {
    let mut trial = Trial::of(&["a", "b", "c"]);
    trial.out = true;
    trial.run(4_000);
    // The mesh between c and the others is cut, and Redis is back for c alone.
    trial.unlinked = set(&["c"]);
    trial.out = false;
    trial.cut_off = set(&["a", "b"]);
    for _ in 0..60 {
        // Each step checks that no user has two homes.
        trial.run(1_000);
        assert!(trial.serves("a") && trial.serves("b"));
        assert_eq!(trial.ring("c").len(), 3);
    }
    trial.unlinked.clear();
    trial.run(20_000);
    trial.check_all_serve(&["a", "b", "c"]);
}

#[test]
fn a_node_whose_shard_stands_lets_its_lease_go() {
    let mut trial = Trial::of(&["a", "b"]);
    trial.agents.get_mut("a").unwrap().set_stands(true);
    // It is heard, so it has a lease time to write its lease again.
    trial.run(3 * LEASE_MS);
    assert!(!trial.serves("a") && trial.serves("b"));
    assert_eq!(trial.ring("b"), ["b"]);
    trial.hands_over = true;
    trial.agents.get_mut("a").unwrap().set_stands(false);
    trial.run(2 * LEASE_MS);
    trial.check_all_serve(&["a", "b"]);
}

/// Two of three are lost with their hosts while Redis is out: it is not known whether they serve without it.
#[test]
fn who_keeps_members_without_a_lease_says_so_and_lets_them_go_when_their_hosts_refuse() {
    let mut trial = Trial::of(&["a", "b", "d"]);
    trial.out = true;
    trial.run(3 * BEAT_MS);
    assert_eq!(trial.agents["d"].keeps(trial.now_ms), None, "Redis does not work");
    trial.paused = set(&["a", "b"]);
    trial.out = false;
    trial.run(60_000);
    assert_eq!(trial.ring("d"), ["a", "b", "d"]);
    let (kept, since_ms) = trial.agents["d"].keeps(trial.now_ms).expect("it keeps them");
    assert_eq!(kept, ["a", "b"]);
    assert!(trial.now_ms - since_ms > 50_000);
    // Their hosts are back without them.
    trial.dead = set(&["a", "b"]);
    trial.run(4 * BEAT_MS);
    assert_eq!(trial.ring("d"), ["d"]);
    assert!(trial.serves("d") && trial.agents["d"].keeps(trial.now_ms).is_none());
}

#[test]
fn a_host_that_refuses_once_is_not_taken_for_one_whose_process_has_ended() {
    let mut trial = Trial::of(&["a", "b"]);
    trial.out = true;
    trial.run(10_000);
    trial.unlinked = set(&["b"]);
    trial.run(BEAT_MS);
    let now_ms = trial.now_ms;
    let agent = trial.agents.get_mut("a").unwrap();
    let life = agent.heart().view().member("b").unwrap().life();
    let mut dead = |at_ms: u64, refused: bool| {
        agent.probed(at_ms, "b", life, at_ms, refused);
        !agent.heart().dead().is_empty()
    };
    assert!(!dead(now_ms, true) && !dead(now_ms + BEAT_MS - 1, true), "no beat apart");
    assert!(!dead(now_ms + BEAT_MS, false) && !dead(now_ms + BEAT_MS + 1, true), "not in a row");
    assert!(dead(now_ms + 2 * BEAT_MS + 1, true));
    assert!(!dead(now_ms + 3 * BEAT_MS, false), "another process may be there");
}

/// As a node that is fenced while it drains: nobody is asked whether it may come back.
#[test]
fn a_drain_that_is_called_off_behind_a_fence_waits_like_any_return() {
    let mut trial = Trial::of(&["a", "b"]);
    let now_ms = trial.now_ms;
    trial.hands_over = true;
    trial.agents.get_mut("b").unwrap().set_state(now_ms, NodeState::Draining);
    trial.run(4 * BEAT_MS);
    trial.hands_over = false;
    assert_eq!(trial.ring("a"), ["a"]);
    trial.paused = set(&["b"]);
    trial.run(LEASE_MS + 4 * BEAT_MS);
    trial.cut_off = set(&["a"]);
    trial.unlinked = set(&["b"]);
    trial.run(LEASE_MS + 2 * BEAT_MS);
    assert!(trial.serves("a"), "nobody else is there");
    trial.paused.clear();
    trial.run(BEAT_MS);
    let now_ms = trial.now_ms;
    trial.agents.get_mut("b").unwrap().set_state(now_ms, NodeState::Active);
    // Each step checks that no user has two homes.
    trial.run(BEAT_MS);
    assert!(trial.agents["b"].waits_to_return(trial.now_ms).is_some() && trial.ring("b").is_empty());
    trial.unlinked.clear();
    trial.run(LEASE_MS + 4 * BEAT_MS);
    assert!(!trial.serves("a"));
    assert_eq!(trial.ring("b"), ["b"]);
}

/// One master of Redis refuses writes, or all do, and leases run out one by one.
#[test]
fn who_only_watches_keeps_whom_the_nodes_keep() {
    let nodes = &["a", "b", "c"];
    for read_only in [false, true] {
        let mut trial = Trial::of(nodes);
        trial.watcher = Some(Membership::new(None, LEASE_MS));
        trial.run(3 * BEAT_MS);
        assert_eq!((trial.watched(), trial.kept()), (trial.ring("a"), vec![]));
        if read_only {
            trial.read_only = true;
            for (name, early_ms) in [("a", 3_000), ("b", 1_500)] {
                trial.leases.get_mut(name).unwrap().1 -= early_ms;
            }
        } else {
            trial.refused = set(&["a"]);
        }
        for second in 0..40 {
            trial.run(1_000);
            assert_eq!(trial.watched(), nodes, "after {second} s, all masters: {read_only}");
        }
        assert_eq!(trial.kept(), if read_only { vec!["a", "b", "c"] } else { vec!["a"] });
        (trial.read_only, trial.refused) = (false, BTreeSet::new());
        trial.run(LEASE_MS);
        assert!(trial.kept().is_empty());
        // A node that has ended goes as soon as the others work without it.
        trial.dead = set(&["c"]);
        trial.run(LEASE_MS + 4 * BEAT_MS);
        assert_eq!((trial.watched(), trial.kept()), (trial.ring("a"), vec![]));
        assert_eq!(trial.watched(), ["a", "b"]);
    }
}
