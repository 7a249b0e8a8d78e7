//! A node with a store, in a world of its own, that is killed and starts again.

use super::inbox::store::SimStore;
use super::node::{Node, NodeConfig};
use super::{SharedWorld, add_stats};
use crate::io::sim::Rng;
use crate::limits::Limits;
use std::collections::BTreeMap;

pub(super) struct StoredNode {
    world: SharedWorld,
    seed: u64,
    pub(super) limits: Limits,
    shards: u16,
    /// `None` while it is down.
    pub(super) node: Option<Node>,
    pub(super) store: SimStore,
    starts: u64,
    restart_us: Option<u64>,
    first_ring: usize,
    pub(super) crashed: u64,
    /// What the shards have counted before each crash, and before the end.
    pub(super) sums: BTreeMap<String, u64>,
}

impl StoredNode {
    /// It is to be started.
    pub(super) fn new(world: &SharedWorld, seed: u64, limits: Limits, shards: u16, store: SimStore) -> Self {
        StoredNode {
            world: world.clone(),
            seed,
            limits,
            shards,
            node: None,
            store,
            starts: 0,
            restart_us: None,
            first_ring: 0,
            crashed: 0,
            sums: BTreeMap::new(),
        }
    }

    pub(super) fn start(&mut self) {
        if self.starts > 0 {
            self.first_ring = self.world.borrow_mut().add_rings(0, self.shards, 1, &self.limits);
        }
        self.starts += 1;
        let config = NodeConfig {
            first_ring: self.first_ring,
            store: Some(self.store.serve(self.shards, self.world.borrow().wall_ms())),
            ..NodeConfig::alone(self.seed ^ (self.starts << 32), self.shards, &self.limits)
        };
        self.node = Some(Node::new(config, &self.world));
    }

    /// The process is killed; its clients find their connections closed.
    pub(super) fn crash(&mut self, rng: &mut Rng) {
        let Some(node) = self.node.take() else { return };
        add_stats(&mut self.sums, &node);
        self.crashed += 1;
        let rings = self.first_ring..self.first_ring + usize::from(self.shards);
        self.world.borrow_mut().kill(rings, false);
        self.store.crash();
        let now_us = self.world.borrow().now_us();
        self.restart_us = Some(now_us + rng.within(1_000, 1_000_000));
    }

    /// The store fails for so long, from now on.
    pub(super) fn fail_store(&mut self, us: u64) {
        let until_us = self.world.borrow().now_us() + us;
        self.store.fail(until_us);
    }

    /// As [`Node::pass`], also to when the node is to start again, which it does then.
    pub(super) fn pass(&mut self, due_us: u64, end_us: u64) -> Option<u64> {
        let turn_us = self.node.as_ref().and_then(Node::next_turn_us).unwrap_or(u64::MAX);
        let due_us = due_us.min(self.store.next_due_us()).min(self.restart_us.unwrap_or(u64::MAX));
        let now_us = self.world.borrow_mut().pass(due_us.min(turn_us), end_us)?;
        if self.restart_us.take_if(|restart_us| *restart_us <= now_us).is_some() {
            self.start();
        }
        Some(now_us)
    }

    /// Turns shards and store whose time has come.
    pub(super) fn step(&mut self, now_us: u64) {
        let wall_ms = self.world.borrow().wall_ms();
        if let Some(node) = &mut self.node {
            node.step();
            self.store.step(now_us, wall_ms, node);
        }
    }

    /// The node that runs, of which nothing may be left.
    pub(super) fn emptied(&self) -> &Node {
        let node = self.node.as_ref().expect("it runs");
        node.check_empty(false);
        node
    }

    /// What was counted in all, with what the run itself has to say.
    pub(super) fn counts<'a>(mut self, facts: impl IntoIterator<Item = (&'a str, u64)>) -> BTreeMap<String, u64> {
        if let Some(node) = &self.node {
            add_stats(&mut self.sums, node);
        }
        let of_rig = [("crashes", self.crashed), ("failures of the store", self.store.failures)];
        self.sums.extend(of_rig.into_iter().chain(facts).map(|(name, count)| (name.to_owned(), count)));
        self.sums
    }
}
