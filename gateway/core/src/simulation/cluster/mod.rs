//! A cluster of gateways on simulated I/O, with a simulated Redis: nodes crash, pause, leave and come back, the network
//! between them is cut, and clients log in anywhere and talk on.
//!
//! `TRUNKLINE_CLUSTER_SEED=7 cargo test -p trunkline-core --lib cluster_holds -- --nocapture` replays run 7 and
//! prints all that happens in it. `TRUNKLINE_CLUSTER_SEEDS=5000` tries that many.
//!
//! Properties:
//! - at any time: no user has two homes, nodes that may serve and would deliver what comes for the user (`fleet`); no
//!   message reaches a session twice without AGAIN, and none without ACK reaches a device twice; messages without ACK
//!   from one session to another keep their order while no user's home moves; a message with ACK has one SENT at most
//!   (`client`, `ledger`);
//! - while nothing happens to the cluster, no message is lost, whatever the network below does to single connections
//!   (`crowd`);
//! - when all troubles are over: all nodes have one view; each device has one session in the whole cluster, and the
//!   user's home knows it; each message with ACK of a session that lasted has its SENT; every message that is written
//!   then arrives at every session of its recipient (`crowd`, here);
//! - in live rooms, see `rooms`: numbers rise, nothing comes twice or after a leave, who missed something sees it, and
//!   at rest everybody who is in gets the next message;
//! - where tokens say to whom clients may write, nobody is given anything else, and its sender is told (`ledger`);
//! - in durable groups, see `groups`: each member has each message once and in order, or is told of a gap and pulls it;
//! - in inboxes, see `inboxes`: what is stored comes to each device, and is there once;
//! - when the clients have gone: nothing is left in any table (here, `node`);
//! - each call has one last answer while its session and node last, see `calls`;
//! - each user of a push by HTTP has one fate at the node that was asked, while that lives (`pushes`).

mod burst;
mod calls;
mod client;
mod crowd;
mod fleet;
mod groups;
mod inboxes;
mod leaving;
mod ledger;
mod pulse;
mod pushes;
mod redis;
mod rooms;
mod scale;
mod scenario;
mod shared_store;
mod transport;

use super::{Bug, with_planted};
use crate::io::sim::{Faults, SharedWorld, World};
use crate::mesh::MESH_PROTOCOL;
use crate::mesh::wire::{ROOMS_SINCE, SETTLED_SET_SINCE, WATCH_SINCE};
use crowd::{Crowd, Mood};
use fleet::Fleet;
use pushes::Pushers;
use scenario::{Scenario, Trouble};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use trunkline_router_core::membership::REMEMBERED_MS;

/// Turns and events a run may take.
const STEPS_MAX: u64 = 20_000_000;
/// A message is written in calm if nothing has happened to the cluster for so long before, and does for so long after.
const CALM_BEFORE_US: u64 = 8_000_000;
const CALM_AFTER_US: u64 = 2_000_000;
/// How long it has to be quiet before watchers know: ten seconds until somebody counts as offline, five between two
/// changes, and some frames.
const QUIET_MS: u64 = 18_000;
/// Runs of clients whose tokens say to whom they may write.
const CLAIM_SEEDS: u64 = 12;
/// Time in which what is written when all is well arrives, ACKs that are late included.
const PROOF_MS: u64 = 4_000;
/// Time after the clients have gone, within which nothing may be left of them.
const AFTERMATH_MS: u64 = 6_000;

struct Run {
    scenario: Scenario,
    world: SharedWorld,
    fleet: Fleet,
    crowd: Crowd,
    /// Clients in durable groups, where there are some.
    members: Option<groups::Members>,
    /// Callers and workers, where there are some.
    calls: Option<calls::Parties>,
    /// Clients whose messages are kept, where there are some.
    correspondents: Option<inboxes::Correspondents>,
    /// Messages that had to arrive.
    calm: u64,
    /// Copies of messages to live rooms that had to, when all was well.
    proven: u64,
    steps: u64,
}

impl Run {
    fn new(seed: u64, print: bool) -> Self {
        let scenario = Scenario::new(seed);
        if print {
            println!("{scenario:#?}");
        }
        Run::of(scenario, print)
    }

    fn of(scenario: Scenario, print: bool) -> Self {
        let seed = scenario.seed;
        let world = World::new(seed, scenario.faults.clone(), 0, 0, &scenario.limits, print);
        let world = Rc::new(RefCell::new(world));
        let fleet = Fleet::new(&scenario, &world);
        let crowd = Crowd::new(&scenario, &world, fleet.doors());
        let (members, correspondents, calls) = (None, None, None);
        Run { scenario, world, fleet, crowd, members, correspondents, calls, calm: 0, proven: 0, steps: 0 }
    }

    /// The same, with pushes by HTTP at all nodes.
    fn with_pushes(seed: u64, print: bool) -> Self {
        let mut run = Run::new(seed, print);
        run.fleet.pushers = Some(Pushers::new(seed));
        run
    }

    /// Nodes of so many shards each that speak this version, with nothing that goes wrong and nobody who talks.
    fn quiet(nodes: usize, shards: u16, protocol: u32, mesh_links: u16) -> Self {
        let mut scenario = Scenario::quiet(nodes, shards, protocol);
        scenario.nodes.iter_mut().for_each(|node| node.mesh_links = mesh_links);
        let world = World::new(scenario.seed, scenario.faults.clone(), 0, 0, &scenario.limits, false);
        let world = Rc::new(RefCell::new(world));
        let fleet = Fleet::new(&scenario, &world);
        let mut crowd = Crowd::new(&scenario, &world, fleet.doors());
        crowd.mood = Mood::Leaving;
        let (members, correspondents, calls) = (None, None, None);
        Run { scenario, world, fleet, crowd, members, correspondents, calls, calm: 0, proven: 0, steps: 0 }
    }

    fn now_us(&self) -> u64 {
        self.world.borrow().now_us()
    }

    /// Lets virtual time pass until `end_us`, or until `done`.
    fn run_until(&mut self, end_us: u64, done: impl Fn(&Run) -> bool) {
        while !done(self) {
            let clients_us = match (&self.members, &self.correspondents, &self.calls) {
                (Some(members), ..) => members.next_due_us(),
                (_, Some(correspondents), _) => correspondents.next_due_us(),
                (.., Some(parties)) => parties.next_due_us(),
                _ => self.crowd.next_due_us(),
            };
            let due_us = clients_us.min(self.fleet.next_due_us());
            if self.world.borrow_mut().pass(due_us, end_us).is_none() {
                return;
            }
            self.fleet.step();
            self.crowd.homes_since_us = self.fleet.homes_since_us();
            self.fleet.fenced.drain(..).for_each(|node| self.crowd.met_fence(&node));
            match (&mut self.members, &mut self.correspondents, &mut self.calls) {
                (Some(members), ..) => members.step(),
                (_, Some(correspondents), _) => correspondents.step(),
                (.., Some(parties)) => parties.step(),
                _ => self.crowd.step(),
            }
            self.steps += 1;
            assert!(self.steps < STEPS_MAX, "the run does not come to an end");
        }
    }

    fn run_for(&mut self, ms: u64) {
        self.run_until(self.now_us() + ms * 1_000, |_| false);
    }

    fn whole(mut self) -> super::Report {
        self.run_for(self.scenario.active_ms);
        let troubles_end_us = self.now_us() + 120_000_000;
        self.run_until(troubles_end_us, |run| run.fleet.is_well());
        assert!(self.fleet.is_well(), "a node does not come back");

        self.world.borrow_mut().faults = Faults::none();
        self.crowd.mood = Mood::Quiet;
        self.run_for(self.scenario.settle_ms());
        self.fleet.check_one_view();
        self.crowd.check_one_session_each();
        self.check_homes();
        self.crowd.check_answered();
        if !self.scenario.dials_fail() {
            self.calm = self.crowd.check_calm(|sent_us| {
                self.fleet.was_calm(sent_us.saturating_sub(CALM_BEFORE_US), sent_us + CALM_AFTER_US)
            });
        }

        self.crowd.prove();
        self.crowd.prove_rooms();
        self.run_for(PROOF_MS);
        self.crowd.check_proof();
        self.proven = self.crowd.check_rooms_proof();
        self.crowd.check_refused();
        self.crowd.check_one_session_each();

        self.crowd.leave_all();
        if let Some(pushers) = &mut self.fleet.pushers {
            pushers.stop();
        }
        self.fleet.calm_redis();
        self.run_for(AFTERMATH_MS);
        self.crowd.hang_up_all();
        self.run_for(AFTERMATH_MS);
        self.check_empty();

        self.fleet.leave_all();
        let end_us = self.now_us() + (self.scenario.limits.drain_ms + 20_000) * 1_000;
        self.run_until(end_us, |run| run.fleet.is_over());
        assert!(self.fleet.is_over(), "a node that was told to leave runs on");
        self.report()
    }

    /// Of clients who watch each other: when it has been quiet for a while, what each was told last is true.
    fn watched(mut self) -> super::Report {
        self.run_for(self.scenario.active_ms);
        let troubles_end_us = self.now_us() + 120_000_000;
        self.run_until(troubles_end_us, |run| run.fleet.is_well());
        assert!(self.fleet.is_well(), "a node does not come back");
        self.crowd.mood = Mood::Leaving;
        self.run_for(self.scenario.settle_ms().max(QUIET_MS));
        self.fleet.check_one_view();
        let states = self.crowd.check_watches();
        self.crowd.leave_all();
        self.run_for(AFTERMATH_MS);
        self.crowd.hang_up_all();
        self.run_for(AFTERMATH_MS);
        let left = self.fleet.sum(|stats| stats.watches.get() + stats.watched.get());
        assert_eq!(left, 0, "watches are left of sessions that have gone");
        let mut counts: BTreeMap<String, u64> = [("states proven".to_owned(), states)].into();
        for client in &self.crowd.clients {
            for (name, count) in &client.watching.counts {
                *counts.entry((*name).to_owned()).or_default() += count;
            }
        }
        let trace_hash = self.world.borrow().trace_hash();
        super::Report { trace_hash, counts }
    }

    /// The home of each user knows the sessions its devices have, and no other.
    fn check_homes(&self) {
        for user in &self.scenario.users {
            let known = self.crowd.sessions(*user);
            let (home, shard, sessions) = self.fleet.sessions(*user);
            assert_eq!(
                sessions, known,
                "user {user}: sessions at the home, {home} shard {shard}, and those of the clients"
            );
        }
    }

    fn check_empty(&self) {
        if let Some(pushers) = &self.fleet.pushers {
            pushers.check_answered();
        }
        for (_, node) in self.fleet.nodes() {
            node.check_empty(false);
        }
    }

    fn report(&self) -> super::Report {
        let world = self.world.borrow();
        let tally = world.tally;
        let tallied = [
            ("dials", tally.dials),
            ("dials failed", tally.dials_failed),
            ("segments held back", tally.segments_held),
            ("resets", tally.resets),
            ("clock set back", tally.clock_set_back),
            ("messages in calm", self.calm),
            ("copies in rooms proven", self.proven),
            ("messages refused", self.crowd.ledger.iter().filter(|(_, message)| message.is_refused()).count() as u64),
        ];
        let mut counts: BTreeMap<String, u64> = tallied.map(|(name, count)| (name.to_owned(), count)).into();
        let facts = self.fleet.counts.iter().chain(&self.crowd.ledger.rooms.counts);
        counts.extend(facts.map(|(name, count)| ((*name).to_owned(), *count)));
        counts.extend(self.crowd.transports.clone());
        super::Report { trace_hash: world.trace_hash(), counts }
    }
}

/// What the seeds of `make test` must have met, or they prove less than they seem to.
const MUST_OCCUR: &[&str] = &[
    "BYE Draining over TLS",
    "BYE Draining over WebSocket",
    "BYE Replaced over TLS",
    "BYE Replaced over WebSocket",
    "messages over TLS since homes moved",
    "messages over WebSocket and TLS since homes moved",
    "messages over WebSocket since homes moved",
    "sessions over TLS at a fence",
    "sessions over WebSocket and TLS",
    "sessions over WebSocket at a fence",
    "Redis forgot",
    "Redis forgot some",
    "Redis out",
    "Redis refused writes",
    "answers of Redis lost",
    "clock set back",
    "copies in rooms proven",
    "cut",
    "cut off from Redis",
    "cut one way",
    "dials failed",
    "fenced",
    "found dead",
    "gray",
    "joins of rooms refused",
    "killed",
    "lease refused",
    "left",
    "messages in calm",
    "numbers of rooms left out",
    "paused",
    "power lost",
    "resets",
    "rested",
    "room messages accepted",
    "room messages behind refused joins",
    "room messages delivered",
    "room messages failed",
    "segments held back",
    "suspended",
    "views differed",
];

#[test]
fn cluster_holds_for_500_seeds() {
    super::try_so_many_seeds(
        "TRUNKLINE_CLUSTER_SEED",
        "cluster_holds",
        500,
        |seed, print| Run::new(seed, print).whole(),
        MUST_OCCUR,
    );
}

#[test]
fn pushes_have_one_fate_each_whatever_happens_to_homes() {
    super::try_so_many_seeds(
        "TRUNKLINE_CLUSTER_PUSH_SEED",
        "pushes_have_one_fate",
        20,
        |seed, print| Run::with_pushes(seed, print).whole(),
        &["fenced", "killed", "suspended", "pushes offline", "pushes overloaded"],
    );
}

/// For `make soak-cluster-sim`.
#[test]
fn cluster_soak() {
    if let Some(secs) = super::number_from("TRUNKLINE_CLUSTER_SOAK_SECS") {
        super::soak("TRUNKLINE_CLUSTER_SEED", "cluster_holds", secs, |seed, print| Run::new(seed, print).whole());
    }
}

/// One record for each link. Towards nodes of a version that knows no word of several shards it is one for each shard,
/// and towards those of version 2 one for each two shards, and with that the square of their number.
#[test]
fn that_all_is_told_after_a_change_of_the_view_is_said_once_on_each_link() {
    let latest = MESH_PROTOCOL;
    for (nodes, shards, protocol, links) in [
        (4, 2, 3, 0),
        (4, 2, 2, 0),
        (4, 4, 2, 1),
        (6, 3, latest, 4),
        (4, 4, 3, 2),
        (4, 4, latest, 2),
        (4, 9, latest, 2),
        (8, 2, latest, 1),
    ] {
        let mut run = Run::quiet(nodes, shards, protocol, links);
        run.run_for(30_000);
        run.fleet.check_one_view();
        let before = run.fleet.settled_sent(nodes - 1);
        run.fleet.crash(nodes - 1);
        run.run_for(20_000);
        let records = run.fleet.settled_sent(nodes - 1) - before;
        let words = usize::from(match protocol {
            2 => shards * shards,
            _ if protocol < SETTLED_SET_SINCE || links == 0 => shards,
            _ => shards.min(links),
        });
        let expected = (nodes - 1) * (nodes - 2) * words;
        assert_eq!(records as usize, expected, "{nodes} nodes of {shards} shards, version {protocol}");
    }
}

/// Clients at all nodes in live rooms, to which nothing happens.
fn quiet_rooms(nodes: usize, shards: u16, protocols: &[u32]) -> Run {
    let mut scenario = Scenario::quiet(nodes, shards, MESH_PROTOCOL);
    scenario.users = (1..=16).collect();
    for (node, protocol) in scenario.nodes.iter_mut().zip(protocols) {
        node.protocol = *protocol;
    }
    let mut run = Run::of(scenario, false);
    run.crowd.mood = Mood::Quiet;
    run.run_for(40_000);
    run.fleet.check_one_view();
    run
}

/// Counters show it: one copy for each node with members but the home of the room, whatever the members and shards.
fn copies_cross_each_link_once() -> super::Report {
    let mut copies = 0;
    for (nodes, shards) in [(2, 1), (3, 2), (4, 3)] {
        let mut run = quiet_rooms(nodes, shards, &[]);
        for _ in 0..3 {
            run.crowd.prove_rooms();
            run.run_for(2_000);
        }
        run.proven = run.crowd.check_rooms_proof();
        assert!(run.proven > 0, "nobody is in a room with somebody else");
        let nodes_of = run.crowd.nodes_of_rooms();
        let copies_of = run.crowd.ledger.rooms.messages.values().map(|message| {
            let home = run.fleet.home_of_room(message.room);
            nodes_of[&message.room].iter().filter(|node| **node != home).count() as u64
        });
        let expected: u64 = copies_of.sum();
        let sent = run.fleet.sum(|stats| stats.group_relay_copies.get());
        assert_eq!(sent, expected, "{nodes} nodes of {shards} shards");
        assert_eq!(run.fleet.sum(|stats| stats.group_relay_copies_in.get()), sent);
        let lost = run.fleet.sum(|stats| stats.group_relay_dropped.get() + stats.group_relay_stale.get());
        assert_eq!(lost, 0, "{nodes} nodes of {shards} shards");
        copies += sent;
    }
    super::Report { trace_hash: copies, counts: BTreeMap::new() }
}

#[test]
fn a_message_to_a_room_crosses_each_link_once() {
    assert!(copies_cross_each_link_once().trace_hash > 0, "no message went to another node");
}

#[test]
fn a_second_copy_for_a_node_is_caught() {
    let caught = with_planted(Bug::CopiedTwice, || super::outcome(copies_cross_each_link_once));
    assert!(caught.is_err());
}

#[test]
fn a_cluster_with_a_node_of_an_older_version_serves_no_rooms() {
    let run = quiet_rooms(3, 2, &[MESH_PROTOCOL, MESH_PROTOCOL, ROOMS_SINCE - 1]);
    assert!(run.crowd.clients.iter().all(|client| !client.live() || client.rooms.unsupported));
    assert!(run.crowd.nodes_of_rooms().is_empty());
    let told = |stats: &crate::metrics::ShardStats| stats.group_relays.get() + stats.group_joins.get();
    assert_eq!(run.fleet.sum(told), 0);
}

/// Whether runs with live rooms alone show a planted bug.
fn rooms_show(bug: Bug) -> bool {
    super::seed_that_catches(bug, |seed| Run::of(Scenario::rooms(seed), false).whole()).is_some()
}

#[test]
fn rooms_hold_while_nodes_come_and_go() {
    for seed in 0..20 {
        let report = super::outcome(|| Run::of(Scenario::rooms(seed), false).whole());
        let report = report.unwrap_or_else(|violation| panic!("seed {seed}: {violation}"));
        assert!(report.counts["room messages delivered"] > 100, "seed {seed}");
    }
}

#[test]
fn a_home_that_is_not_asked_for_copies_is_caught() {
    assert!(rooms_show(Bug::InterestUntold));
}

#[test]
fn a_number_that_hides_what_was_missed_is_caught() {
    assert!(rooms_show(Bug::NoneLeftOut));
}

#[test]
fn what_is_said_behind_a_join_that_is_refused_is_caught() {
    assert!(rooms_show(Bug::SaidTooSoon));
}

#[test]
fn a_leave_of_a_room_that_is_ignored_is_caught() {
    assert!(rooms_show(Bug::LeaveIgnored));
}

#[test]
fn nobody_at_any_node_is_given_what_the_sender_s_token_does_not_allow() {
    let mut sums: BTreeMap<String, u64> = BTreeMap::new();
    for seed in 0..CLAIM_SEEDS {
        let report = super::outcome(|| Run::of(Scenario::claims(seed), false).whole());
        let report = report.unwrap_or_else(|violation| panic!("seed {seed}: {violation}"));
        report.counts.into_iter().for_each(|(name, count)| *sums.entry(name).or_default() += count);
    }
    println!("{sums:?}");
    assert!(sums["messages refused"] > 1_000, "little has happened: {sums:?}");
}

#[test]
fn watchers_know_who_is_online_while_nodes_come_and_go() {
    super::try_so_many_seeds(
        "TRUNKLINE_CLUSTER_WATCH_SEED",
        "watchers_know_who_is_online",
        100,
        |seed, print| Run::of(Scenario::watches(seed), print).watched(),
        &["states proven", "told offline", "told online", "told unknown"],
    );
}

#[test]
fn a_home_that_is_not_asked_for_a_user_is_caught() {
    let show = |seed| Run::of(Scenario::watches(seed), false).watched();
    assert!(super::seed_that_catches(Bug::WatchUnasked, show).is_some());
}

/// Clients at all nodes who follow each other, and to whom nothing happens.
fn quiet_watchers(protocols: &[u32]) -> Run {
    let mut scenario = Scenario::quiet(3, 2, MESH_PROTOCOL);
    (scenario.users, scenario.watches) = ((1..=16).collect(), true);
    for (node, protocol) in scenario.nodes.iter_mut().zip(protocols) {
        node.protocol = *protocol;
    }
    let mut run = Run::of(scenario, false);
    run.crowd.mood = Mood::Quiet;
    run.run_for(40_000);
    run.fleet.check_one_view();
    run.crowd.watch_all();
    run.run_for(6_000);
    run
}

#[test]
fn users_of_a_lost_node_are_told_offline_within_the_lease_and_twelve_seconds() {
    let mut run = quiet_watchers(&[]);
    assert_eq!(run.crowd.check_watches(), 16 * 16);
    run.crowd.mood = Mood::Leaving;
    let lease_ms = run.scenario.lease_ms;
    run.fleet.crash(2);
    run.run_for(lease_ms + 12_000);
    let left = run.crowd.check_watches();
    assert!((16..16 * 16).contains(&left) && left.is_multiple_of(16), "some are lost, and some are there: {left}");
}

#[test]
fn of_users_whose_home_is_a_node_of_an_older_version_nobody_says_that_they_are_offline() {
    let run = quiet_watchers(&[MESH_PROTOCOL, MESH_PROTOCOL, WATCH_SINCE - 1]);
    let count = |what| run.crowd.clients.iter().filter_map(|client| client.watching.counts.get(what)).sum::<u64>();
    assert_eq!(count("told offline"), 0, "all are there");
    assert!(count("told online") > 0 && count("told unknown") > 0);
}

/// Three nodes do not reach Redis, which works on, and a fourth that does begins after their leases have been over for
/// longer than a minute.
fn begins_late(remembers_ms: u64) -> super::Report {
    let mut scenario = Scenario::quiet(4, 1, MESH_PROTOCOL);
    scenario.users = (1..=16).collect();
    scenario.nodes[3].starts_ms = 85_000;
    let ms = 100_000;
    scenario.troubles =
        [(0, Some(1)), (2, None)].map(|(node, other)| (10_000, Trouble::RedisCut { node, other, ms })).into();
    let mut run = Run::of(scenario, false);
    run.crowd.mood = Mood::Leaving;
    run.fleet.redis_remembers(remembers_ms);
    run.run_for(84_000);
    assert_eq!(run.fleet.counts.get("fenced"), None, "they serve on");
    // Each step checks that no user has two homes.
    run.run_for(16_000);
    assert_eq!(run.fleet.counts["fenced"], 3, "they have learned that another has begun");
    run.run_for(40_000);
    run.fleet.check_one_view();
    let trace_hash = run.world.borrow().trace_hash();
    super::Report { trace_hash, counts: BTreeMap::new() }
}

#[test]
fn who_begins_long_after_others_have_lost_redis_is_no_second_home() {
    begins_late(REMEMBERED_MS);
}

#[test]
fn who_is_remembered_for_a_minute_only_is_a_second_home() {
    assert!(super::outcome(|| begins_late(60_000)).is_err());
}

#[test]
fn a_lost_fate_is_caught() {
    assert!(super::seed_that_catches(Bug::FateLost, |seed| Run::new(seed, false).whole()).is_some());
}

#[test]
fn a_record_that_is_carried_twice_is_caught() {
    assert!(super::seed_that_catches(Bug::CarriedTwice, |seed| Run::new(seed, false).whole()).is_some());
}

#[test]
fn a_session_its_new_home_is_not_told_of_is_caught() {
    assert!(super::seed_that_catches(Bug::SessionUntold, |seed| Run::new(seed, false).whole()).is_some());
}

#[test]
fn a_clock_that_stands_still_while_the_machine_is_suspended_is_caught() {
    assert!(super::seed_that_catches(Bug::ClockStandsStill, |seed| Run::new(seed, false).whole()).is_some());
}

#[test]
fn same_seed_same_cluster() {
    for seed in 0..5 {
        let hashes = [0, 1].map(|_| Run::new(seed, false).whole().trace_hash);
        assert_eq!(hashes[0], hashes[1], "seed {seed}");
    }
}
