//! Pushes by HTTP at the nodes of a simulated cluster: each user of a push has one fate at the node that was asked,
//! whatever becomes of the user's home, as long as that node itself lives.

use crate::io::sim::Rng;
use crate::portal::{OuterEnd, Portals, Push};
use crate::simulation::node::Node;
use std::collections::{BTreeMap, BTreeSet};
use trunkline_proto::Outcome;
use trunkline_router_core::hash::home_shard;

/// Users who never log in: what is looked at is the way of a fate.
const USERS_FROM: u64 = 1_000_000;
const USERS: u64 = 64;
/// How often each node pushes.
const PERIOD_US: u64 = 200_000;
/// Room in each portal.
const PORTAL_BYTES: usize = 16_384;

/// The services thread of a process.
#[derive(Debug)]
struct Pusher {
    outer: OuterEnd,
    next_us: u64,
    /// Users of pushes that have had no fate.
    open: BTreeSet<(u32, u64)>,
}

/// Those of all processes.
#[derive(Debug)]
pub(super) struct Pushers {
    rng: Rng,
    last_token: u32,
    by_node: BTreeMap<usize, Pusher>,
    pushes: bool,
}

impl Pushers {
    pub(super) fn new(seed: u64) -> Self {
        Pushers { rng: Rng::new(seed ^ 0x9A_57E5), last_token: 0, by_node: BTreeMap::new(), pushes: true }
    }

    /// A process begins.
    pub(super) fn begin(&mut self, number: usize, node: &mut Node) {
        let portals = Portals::new(node.shards() as u16);
        node.give_portals(&portals);
        let pusher = Pusher { outer: portals.outer(PORTAL_BYTES), next_us: 0, open: BTreeSet::new() };
        self.by_node.insert(number, pusher);
    }

    /// A process has ended, and with it those who waited there.
    pub(super) fn end(&mut self, number: usize) {
        self.by_node.remove(&number);
    }

    /// Nobody pushes from now on.
    pub(super) fn stop(&mut self) {
        self.pushes = false;
    }

    /// What the services thread of a running process does. Returns the fates it was told.
    pub(super) fn step(&mut self, number: usize, node: &mut Node, now_us: u64) -> Vec<Outcome> {
        let Pushers { rng, last_token, by_node, pushes } = self;
        let Some(Pusher { outer, next_us, open }) = by_node.get_mut(&number) else { return Vec::new() };
        if *pushes && *next_us <= now_us {
            *next_us = now_us + PERIOD_US;
            *last_token += 1;
            let (token, id) = (*last_token, u64::from(*last_token));
            let push = Push { token, service: 7, acked: true, to_groups: false, extra: 0, id, payload: b"push" };
            let users: BTreeSet<u64> = (0..rng.within(1, 4)).map(|_| USERS_FROM + rng.below(USERS)).collect();
            for user in users {
                if outer.put(home_shard(user, node.shards() as u32) as usize, &push, &[user]) {
                    open.insert((token, user));
                }
            }
        }
        outer.post();
        (0..node.shards()).filter(|shard| outer.bytes(*shard) > 0).for_each(|shard| node.signal(shard));
        let mut outcomes = Vec::new();
        outer.take_fates(|fate| {
            assert!(open.remove(&(fate.token, fate.user)), "node {number}: a fate of what is not open: {fate:?}");
            outcomes.push(fate.outcome);
        });
        outcomes
    }

    /// Panics if somebody waits on although nothing is under way.
    pub(super) fn check_answered(&self) {
        for (number, pusher) in &self.by_node {
            assert!(pusher.open.is_empty(), "node {number}: no fate of {:?}", pusher.open);
        }
    }
}
