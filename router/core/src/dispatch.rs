//! Which node a user should connect to: the strategies of `POST /v1/login`.
//!
//! Pure: views go in with the time, nodes come out. The balancers are kept across views, so a round robin goes on where
//! it was. Load is what the nodes say in their records, plus what this process has sent to them and cannot be in the
//! records yet: without that all logins of a second would go to the node that was the least loaded at its beginning.
//!
//! - **New nodes.** The weight of a node that comes climbs over `slow_start`, and by least-conn no node gets more than
//!   twice its share of the logins of a router.
//! - **Failures.** A client that could not reach a node says so with its next login. It gets another one, also where
//!   the home is the strategy: a home that it cannot reach is of no use to it. Three such reports of different users
//!   within 10 s take a node out for 10 s; then one login tries it. Reports never take more than half of the nodes out.
//! - **Zones.** A login from a zone goes to a node of that zone, as long as there is one and its nodes are not loaded
//!   by a quarter more than all are on average; else to any. The home of a user is where it is.

mod pace;
mod reports;
mod strategy;

pub use strategy::{Strategy, UnknownStrategy};

use crate::balance::{BalanceError, Balancer, Health, PERIOD_MS_MAX, Policy, Server, ServerOptions};
use crate::membership::{NodeRecord, NodeState, View};
use crate::ring::NODES_MAX;
use pace::Pace;
use rand::Rng;
use reports::{FAIL_TIMEOUT_MS, MAX_FAILS, Reporters};
use std::collections::HashMap;
use std::error::Error;
use std::fmt;

/// Why no node is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoNode;

impl fmt::Display for NoNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no node is active; start a gateway with --redis, or wait until one that joins is ready")
    }
}

impl Error for NoNode {}

/// Logins sent to a node that its record may not count yet.
#[derive(Debug, Clone, Copy, Default)]
struct Sent {
    /// Since the last poll.
    now: u32,
    /// Between the last two polls. A node writes its record each second and it is read each second, so what is older is
    /// in it.
    before: u32,
}

impl Sent {
    fn total(self) -> u32 {
        self.now.saturating_add(self.before)
    }
}

/// A login that asks where to go.
#[derive(Debug, Clone, Copy)]
pub struct Wish<'a> {
    /// Who logs in.
    pub user: u64,
    /// By which rule.
    pub strategy: Strategy,
    /// Where it comes from; empty for no zone.
    pub zone: &'a str,
    /// Nodes that it could not reach, by name.
    pub failed: &'a [String],
}

/// What this process has done, for its metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DispatchStats {
    /// Reports of nodes that could not be reached which counted.
    pub reports_counted: u64,
    /// Reports that did not: of a user who had just reported, of nobody's node, or because half of the nodes were out
    /// already.
    pub reports_ignored: u64,
    /// Logins from a zone that went to another.
    pub spilled: u64,
    /// Nodes that reports keep out now.
    pub suspended: u64,
}

/// One node, at the place of its server in the balancers.
#[derive(Debug)]
struct Known {
    name: Box<str>,
    zone: Box<str>,
    weight: u32,
    in_ring: bool,
    conns: u64,
    pace: Pace,
    reporters: Reporters,
}

/// Chooses nodes for logins.
#[derive(Debug)]
pub struct Dispatch {
    /// One for each strategy but home; all have the same servers, numbers of connections and failures.
    balancers: [Balancer; 3],
    slow_start_ms: u64,
    /// In the order of their names, as the servers.
    nodes: Vec<Known>,
    sent: HashMap<Box<str>, Sent>,
    stats: DispatchStats,
}

const ROUND_ROBIN: usize = 0;
const LEAST_CONN: usize = 1;
const RANDOM_TWO: usize = 2;

impl Dispatch {
    /// Without nodes. The weight of those that come later climbs over `slow_start_ms`, at most a day; 0 for at once.
    ///
    /// # Errors
    /// None in practice: an empty set is always taken.
    pub fn new(slow_start_ms: u64) -> Result<Self, BalanceError> {
        let balancer = |policy| Balancer::new(policy, Vec::new());
        let balancers = [balancer(Policy::RoundRobin)?, balancer(Policy::LeastConn)?, balancer(Policy::RandomTwo)?];
        Ok(Dispatch {
            balancers,
            slow_start_ms: slow_start_ms.min(PERIOD_MS_MAX),
            nodes: Vec::new(),
            sent: HashMap::new(),
            stats: DispatchStats::default(),
        })
    }

    /// Takes over what a poll said. `now_ms` is of a monotonic clock.
    ///
    /// # Errors
    /// If the nodes cannot be balanced; the nodes of before stay.
    pub fn polled(&mut self, now_ms: u64, view: &View) -> Result<(), BalanceError> {
        let mut members: Vec<&NodeRecord> = view.members.iter().collect();
        // A ring fits a balancer. Of the others some may have to stay out, and they would not be picked anyway.
        members.sort_by_key(|record| !is_in_ring(view, record));
        members.truncate(NODES_MAX);
        members.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        let slow_start_ms = self.slow_start_ms;
        let servers: Vec<Server> =
            members.iter().map(|record| server(view, record, slow_start_ms)).collect::<Result<_, _>>()?;
        for balancer in &mut self.balancers {
            balancer.update(now_ms, servers.clone())?;
        }
        self.sent.retain(|name, sent| {
            *sent = Sent { now: 0, before: sent.now };
            sent.before != 0 && view.member(name).is_some()
        });
        let mut before: HashMap<Box<str>, Known> =
            std::mem::take(&mut self.nodes).into_iter().map(|node| (node.name.clone(), node)).collect();
        for record in members {
            let sent = self.sent.get(record.name.as_str()).map_or(0, |sent| sent.total());
            let conns = u32::try_from(record.connections).unwrap_or(u32::MAX).saturating_add(sent);
            for balancer in &mut self.balancers {
                if let Some(id) = balancer.id_of(&record.name) {
                    balancer.set_conns(id, conns);
                    // The login that tried the node again has not been reported to have failed.
                    if let Some(Health::Probing { until_ms }) = balancer.server(id, now_ms).map(|state| state.health)
                        && now_ms >= until_ms
                    {
                        balancer.succeeded(id, now_ms);
                    }
                }
            }
            let (pace, reporters) =
                before.remove(record.name.as_str()).map(|known| (known.pace, known.reporters)).unwrap_or_default();
            self.nodes.push(Known {
                name: record.name.as_str().into(),
                zone: record.zone.as_str().into(),
                weight: record.weight,
                in_ring: is_in_ring(view, record),
                conns: conns.into(),
                pace,
                reporters,
            });
        }
        self.stats.suspended = self.suspended(now_ms);
        Ok(())
    }

    /// What has been done so far.
    #[must_use]
    pub fn stats(&self) -> DispatchStats {
        self.stats
    }

    /// The node to connect to. `view` is the one last given to [`Dispatch::polled`].
    ///
    /// # Errors
    /// [`NoNode`] if no node is active.
    pub fn pick<'v>(
        &mut self,
        now_ms: u64,
        view: &'v View,
        wish: Wish<'_>,
        rng: &mut impl Rng,
    ) -> Result<&'v NodeRecord, NoNode> {
        for name in wish.failed {
            self.report(now_ms, wish.user, name);
        }
        let balancer = match wish.strategy {
            Strategy::Home => {
                let (home, _) = crate::api::home(view, wish.user).ok_or(NoNode)?;
                if !wish.failed.contains(&home.name) && self.may_try(now_ms, &home.name, rng) {
                    self.count(&home.name);
                    return Ok(home);
                }
                LEAST_CONN
            }
            Strategy::WeightedRoundRobin => ROUND_ROBIN,
            Strategy::LeastConn => LEAST_CONN,
            Strategy::RandomTwo => RANDOM_TWO,
        };
        let at = self.pick_from(now_ms, balancer, wish, rng).ok_or(NoNode)?;
        let record = view.member(&self.nodes[at].name).ok_or(NoNode)?;
        if !wish.zone.is_empty() && *self.nodes[at].zone != *wish.zone {
            self.stats.spilled += 1;
        }
        self.nodes[at].pace.spend();
        self.count(&record.name);
        Ok(record)
    }

    /// The place of the node that a balancer picks: of the zone if that has room, of those that the client could reach,
    /// at a bearable pace. What cannot be had is given up in that order.
    fn pick_from(&mut self, now_ms: u64, balancer: usize, wish: Wish<'_>, rng: &mut impl Rng) -> Option<usize> {
        let zone = Some(wish.zone).filter(|zone| !zone.is_empty() && self.has_room(now_ms, zone));
        let in_zone = |node: &Known| zone.is_none_or(|zone| *node.zone == *zone);
        let could_reach = |node: &Known| !wish.failed.iter().any(|failed| **failed == *node.name);
        if balancer == LEAST_CONN {
            let takes_part = |node: &Known| node.in_ring && in_zone(node) && could_reach(node);
            let total = self.nodes.iter().filter(|node| takes_part(node)).map(|node| u64::from(node.weight)).sum();
            for node in self.nodes.iter_mut().filter(|node| takes_part(node)) {
                node.pace.earn(node.weight, total);
            }
        }
        let paced = |node: &Known| balancer != LEAST_CONN || node.pace.allows();
        let (nodes, balancer) = (&self.nodes, &mut self.balancers[balancer]);
        let mut among = |allowed: &dyn Fn(&Known) -> bool| {
            let id = balancer.pick_among(now_ms, None, rng, |at| nodes.get(at).is_some_and(allowed)).ok()?;
            let picked = balancer.server(id, now_ms)?.server.name().to_owned();
            nodes.binary_search_by(|node| (*node.name).cmp(&picked)).ok()
        };
        among(&|node| in_zone(node) && could_reach(node) && paced(node))
            .or_else(|| among(&|node| in_zone(node) && could_reach(node)))
            .or_else(|| among(&could_reach))
            .or_else(|| among(&|_| true))
    }

    /// Whether the nodes of a zone that can be picked are not loaded by a quarter more than all of them.
    fn has_room(&self, now_ms: u64, zone: &str) -> bool {
        let load = |of: &dyn Fn(&Known) -> bool| {
            let open =
                self.nodes.iter().filter(|node| node.in_ring && of(node) && !self.is_suspended(now_ms, &node.name));
            open.fold((0_u64, 0_u64), |(conns, weight), node| (conns + node.conns, weight + u64::from(node.weight)))
        };
        let (conns, weight) = load(&|node| *node.zone == *zone);
        let (all_conns, all_weight) = load(&|_| true);
        let (ours, fair) = (conns as f64 / weight as f64, all_conns as f64 / all_weight as f64);
        weight > 0 && ours <= fair * SPILL + SPARE
    }

    /// A client could not reach a node.
    fn report(&mut self, now_ms: u64, user: u64, name: &str) {
        let out = self.suspended(now_ms);
        let homes = self.nodes.iter().filter(|node| node.in_ring).count() as u64;
        let known = self.nodes.binary_search_by(|node| (*node.name).cmp(name)).ok();
        let counts = known.is_some_and(|at| self.nodes[at].reporters.counts(now_ms, user));
        // One that is out already may be found out again; another must leave half of them.
        if !counts || (!self.is_suspended(now_ms, name) && 2 * (out + 1) > homes) {
            self.stats.reports_ignored += 1;
            return;
        }
        self.stats.reports_counted += 1;
        for balancer in &mut self.balancers {
            if let Some(id) = balancer.id_of(name) {
                balancer.failed(id, now_ms);
            }
        }
        self.stats.suspended = self.suspended(now_ms);
    }

    /// Whether a login may go to its home: unless reports keep that out, or one login is trying it already.
    fn may_try(&mut self, now_ms: u64, home: &str, rng: &mut impl Rng) -> bool {
        let at = self.nodes.binary_search_by(|node| (*node.name).cmp(home));
        let health =
            self.balancers[LEAST_CONN].id_of(home).and_then(|id| self.balancers[LEAST_CONN].server(id, now_ms));
        match (at, health.map(|state| state.health)) {
            // Picking it is what marks the attempt.
            (Ok(at), Some(Health::Failed { .. } | Health::Probing { .. })) => {
                self.balancers[LEAST_CONN].pick_among(now_ms, None, rng, |place| place == at).is_ok()
            }
            _ => true,
        }
    }

    fn suspended(&self, now_ms: u64) -> u64 {
        self.nodes.iter().filter(|node| node.in_ring && self.is_suspended(now_ms, &node.name)).count() as u64
    }

    /// Whether reports keep a node out. All balancers have the same failures; probes are those of least-conn.
    fn is_suspended(&self, now_ms: u64, name: &str) -> bool {
        let balancer = &self.balancers[LEAST_CONN];
        let state = balancer.id_of(name).and_then(|id| balancer.server(id, now_ms));
        state.is_some_and(|state| match state.health {
            Health::Up => false,
            Health::Failed { until_ms } | Health::Probing { until_ms } => now_ms < until_ms,
        })
    }

    /// A login on its way to `node`, whoever chose it, weighs on the choices of all strategies.
    fn count(&mut self, node: &str) {
        match self.sent.get_mut(node) {
            Some(sent) => sent.now = sent.now.saturating_add(1),
            None => {
                self.sent.insert(node.into(), Sent { now: 1, before: 0 });
            }
        }
        if let Ok(at) = self.nodes.binary_search_by(|known| (*known.name).cmp(node)) {
            self.nodes[at].conns = self.nodes[at].conns.saturating_add(1);
        }
        for balancer in &mut self.balancers {
            if let Some(id) = balancer.id_of(node) {
                balancer.connected(id);
            }
        }
    }
}

/// How much more than all nodes those of a zone may be loaded before logins of the zone go elsewhere too.
const SPILL: f64 = 1.25;
/// Connections for each unit of weight that do not count as load of a zone: with a handful of them chance decides who
/// has more.
const SPARE: f64 = 16.0;

fn is_in_ring(view: &View, record: &NodeRecord) -> bool {
    view.ring.as_ref().is_some_and(|ring| ring.index_of(&record.name).is_some())
}

fn server(view: &View, record: &NodeRecord, slow_start_ms: u64) -> Result<Server, BalanceError> {
    let drain = record.state == NodeState::Draining;
    let down = !drain && !is_in_ring(view, record);
    let options = ServerOptions {
        weight: record.weight,
        max_fails: MAX_FAILS,
        fail_timeout_ms: FAIL_TIMEOUT_MS,
        slow_start_ms,
        drain,
        down,
        ..ServerOptions::default()
    };
    Server::new(&record.name, options)
}

#[cfg(test)]
mod tests;
