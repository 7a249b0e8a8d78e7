//! Which node a user should connect to: the strategies of `POST /v1/login`.
//!
//! Pure: views go in with the time, nodes come out. The balancers are kept across views, so a round robin goes on where it
//! was. Load is what the nodes say in their records, plus what this process has sent to them and cannot be in the records
//! yet: without that all logins of a second would go to the node that was the least loaded at its beginning.

use crate::balance::{BalanceError, Balancer, Policy, Server, ServerOptions};
use crate::membership::{NodeRecord, NodeState, View};
use crate::ring::NODES_MAX;
use rand::Rng;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::error::Error;
use std::fmt;
use std::str::FromStr;

/// By which rule a node is chosen for a login.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Strategy {
    /// The user's home node, so that its messages need no hop between nodes.
    Home,
    /// One after the other, by weight.
    WeightedRoundRobin,
    /// The fewest connections for each unit of weight.
    LeastConn,
    /// The less loaded of two nodes drawn by weight.
    RandomTwo,
}

impl Strategy {
    /// All strategies, in the order in which they are documented.
    pub const ALL: [Strategy; 4] =
        [Strategy::Home, Strategy::WeightedRoundRobin, Strategy::LeastConn, Strategy::RandomTwo];

    /// The name that [`FromStr`] and JSON take and that [`fmt::Display`] and JSON show.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Strategy::Home => "home",
            Strategy::WeightedRoundRobin => Policy::RoundRobin.name(),
            Strategy::LeastConn => Policy::LeastConn.name(),
            Strategy::RandomTwo => Policy::RandomTwo.name(),
        }
    }
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Strategy {
    type Err = UnknownStrategy;

    fn from_str(name: &str) -> Result<Self, UnknownStrategy> {
        let mut all = Strategy::ALL.into_iter();
        all.find(|strategy| strategy.name() == name).ok_or_else(|| UnknownStrategy { name: name.into() })
    }
}

/// A name that is not one of a strategy. The text lists the names that are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownStrategy {
    /// The name as given.
    pub name: Box<str>,
}

impl fmt::Display for UnknownStrategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = Strategy::ALL.map(Strategy::name).join(", ");
        write!(f, "{:?} is not a strategy; use one of {names}", self.name)
    }
}

impl Error for UnknownStrategy {}

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
    /// Between the last two polls. A node writes its record each second and it is read each second, so what is older is in it.
    before: u32,
}

impl Sent {
    fn total(self) -> u32 {
        self.now.saturating_add(self.before)
    }
}

/// Chooses nodes for logins.
#[derive(Debug)]
pub struct Dispatch {
    /// One for each strategy but home; all have the same servers and the same numbers of connections.
    balancers: [Balancer; 3],
    sent: HashMap<Box<str>, Sent>,
}

impl Dispatch {
    /// Without nodes.
    ///
    /// # Errors
    /// None in practice: an empty set is always taken.
    pub fn new() -> Result<Self, BalanceError> {
        let balancer = |policy| Balancer::new(policy, Vec::new());
        let balancers = [balancer(Policy::RoundRobin)?, balancer(Policy::LeastConn)?, balancer(Policy::RandomTwo)?];
        Ok(Dispatch { balancers, sent: HashMap::new() })
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
        let servers: Vec<Server> = members.iter().map(|record| server(view, record)).collect::<Result<_, _>>()?;
        for balancer in &mut self.balancers {
            balancer.update(now_ms, servers.clone())?;
        }
        self.sent.retain(|name, sent| {
            *sent = Sent { now: 0, before: sent.now };
            sent.before != 0 && view.member(name).is_some()
        });
        for record in members {
            let sent = self.sent.get(record.name.as_str()).map_or(0, |sent| sent.total());
            let conns = u32::try_from(record.connections).unwrap_or(u32::MAX).saturating_add(sent);
            for balancer in &mut self.balancers {
                if let Some(id) = balancer.id_of(&record.name) {
                    balancer.set_conns(id, conns);
                }
            }
        }
        Ok(())
    }

    /// The node that `user` should connect to, by `strategy`. `view` is the one last given to [`Dispatch::polled`].
    ///
    /// # Errors
    /// [`NoNode`] if no node is active.
    pub fn pick<'v>(
        &mut self,
        now_ms: u64,
        view: &'v View,
        strategy: Strategy,
        user: u64,
        rng: &mut impl Rng,
    ) -> Result<&'v NodeRecord, NoNode> {
        let balancer = match strategy {
            Strategy::Home => None,
            Strategy::WeightedRoundRobin => Some(&mut self.balancers[0]),
            Strategy::LeastConn => Some(&mut self.balancers[1]),
            Strategy::RandomTwo => Some(&mut self.balancers[2]),
        };
        let record = match balancer {
            None => crate::api::home(view, user).map(|(record, _)| record).ok_or(NoNode)?,
            Some(balancer) => {
                let id = balancer.pick(now_ms, None, rng).map_err(|_| NoNode)?;
                let state = balancer.server(id, now_ms).ok_or(NoNode)?;
                view.member(state.server.name()).ok_or(NoNode)?
            }
        };
        self.count(&record.name);
        Ok(record)
    }

    /// A login on its way to `node`, whoever chose it, weighs on the choices of all strategies.
    fn count(&mut self, node: &str) {
        match self.sent.get_mut(node) {
            Some(sent) => sent.now = sent.now.saturating_add(1),
            None => {
                self.sent.insert(node.into(), Sent { now: 1, before: 0 });
            }
        }
        for balancer in &mut self.balancers {
            if let Some(id) = balancer.id_of(node) {
                balancer.connected(id);
            }
        }
    }
}

fn is_in_ring(view: &View, record: &NodeRecord) -> bool {
    view.ring.as_ref().is_some_and(|ring| ring.index_of(&record.name).is_some())
}

fn server(view: &View, record: &NodeRecord) -> Result<Server, BalanceError> {
    let drain = record.state == NodeState::Draining;
    let down = !drain && !is_in_ring(view, record);
    Server::new(&record.name, ServerOptions { weight: record.weight, drain, down, ..ServerOptions::default() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::membership::Membership;
    use rand::SeedableRng;
    use rand::rngs::StdRng;
    use std::collections::BTreeMap;
    use std::sync::Arc;

    fn record(name: &str, state: NodeState, weight: u32, connections: u64) -> NodeRecord {
        NodeRecord {
            name: name.into(),
            incarnation: 1,
            state,
            weight,
            shards: 2,
            mesh: "127.0.0.1:7790".into(),
            advertise: format!("{name}:7700"),
            http: String::new(),
            protocol: 1,
            connections,
            users: 0,
            started_ms: 1,
            life: 0,
            secret_mark: String::new(),
            reach: None,
            protocol_oldest: 0,
            zone: String::new(),
            mending: false,
        }
    }

    fn active(name: &str, weight: u32, connections: u64) -> NodeRecord {
        record(name, NodeState::Active, weight, connections)
    }

    fn view(records: &[NodeRecord]) -> Arc<View> {
        let mut membership = Membership::new(None, 5_000);
        membership.polled(0, records.to_vec());
        membership.view()
    }

    /// A dispatch, its view, and a source of randomness that is the same for every run.
    struct Fixture {
        dispatch: Dispatch,
        view: Arc<View>,
        rng: StdRng,
    }

    impl Fixture {
        fn new(records: &[NodeRecord]) -> Self {
            let dispatch = Dispatch::new().unwrap();
            let mut fixture = Fixture { dispatch, view: view(records), rng: StdRng::seed_from_u64(7) };
            fixture.poll(records);
            fixture
        }

        fn poll(&mut self, records: &[NodeRecord]) {
            self.view = view(records);
            self.dispatch.polled(0, &self.view).unwrap();
        }

        fn pick(&mut self, strategy: Strategy, user: u64) -> Result<String, NoNode> {
            let record = self.dispatch.pick(0, &self.view, strategy, user, &mut self.rng)?;
            Ok(record.name.clone())
        }

        fn counts(&mut self, strategy: Strategy, picks: u64) -> BTreeMap<String, u64> {
            let mut counts = BTreeMap::new();
            for user in 1..=picks {
                *counts.entry(self.pick(strategy, user).unwrap()).or_default() += 1;
            }
            counts
        }
    }

    #[test]
    fn home_is_the_owner_of_the_ring() {
        let mut fixture = Fixture::new(&[active("a", 1, 0), active("b", 3, 0)]);
        let ring = fixture.view.ring.clone().unwrap();
        for user in (1..500).chain([u64::MAX]) {
            assert_eq!(fixture.pick(Strategy::Home, user).unwrap(), ring.owner(user).name());
        }
    }

    #[test]
    fn round_robin_follows_the_weights_and_goes_on_over_a_poll() {
        let records = [active("a", 5, 0), active("b", 1, 0), active("c", 1, 0)];
        let mut fixture = Fixture::new(&records);
        let mut order = String::new();
        for user in 1..=7 {
            order += &fixture.pick(Strategy::WeightedRoundRobin, user).unwrap();
            fixture.poll(&records);
        }
        assert_eq!(order, "aabacaa");
    }

    #[test]
    fn a_burst_does_not_go_to_the_node_that_was_least_loaded_at_its_beginning() {
        let mut fixture = Fixture::new(&[active("a", 1, 100), active("b", 1, 100), active("c", 1, 90)]);
        let counts = fixture.counts(Strategy::LeastConn, 310);
        assert_eq!(counts, BTreeMap::from([("a".into(), 100), ("b".into(), 100), ("c".into(), 110)]));
        // Homes count too, and random-two sees them.
        let counts = fixture.counts(Strategy::RandomTwo, 3_000);
        assert!(counts.values().all(|count| (900..1_100).contains(count)), "{counts:?}");
    }

    #[test]
    fn what_was_sent_counts_until_the_records_can_have_it() {
        let records = [active("a", 1, 0), active("b", 1, 2)];
        let mut fixture = Fixture::new(&records);
        assert_eq!(fixture.counts(Strategy::LeastConn, 2), BTreeMap::from([("a".into(), 2)]));
        // The record of a is from before the logins arrived.
        fixture.poll(&records);
        assert_eq!(fixture.counts(Strategy::LeastConn, 2), BTreeMap::from([("a".into(), 1), ("b".into(), 1)]));
        // Now the records would have them, so what they say counts: a was left by all.
        fixture.poll(&records);
        fixture.poll(&records);
        assert_eq!(fixture.counts(Strategy::LeastConn, 2), BTreeMap::from([("a".into(), 2)]));
    }

    #[test]
    fn only_active_nodes_are_picked() {
        let records = [
            record("joining", NodeState::Joining, 1, 0),
            record("draining", NodeState::Draining, 1, 0),
            active("active", 1, 1_000_000),
        ];
        let mut fixture = Fixture::new(&records);
        for strategy in Strategy::ALL {
            assert_eq!(fixture.counts(strategy, 50).len(), 1, "{strategy}");
        }
        let mut fixture = Fixture::new(&records[..2]);
        for strategy in Strategy::ALL {
            assert_eq!(fixture.pick(strategy, 1), Err(NoNode), "{strategy}");
        }
    }

    #[test]
    fn a_cluster_at_its_limit_is_taken_and_absurd_records_do_no_harm() {
        let mut records: Vec<NodeRecord> = (0..NODES_MAX).map(|at| active(&format!("n{at:04}"), 1, u64::MAX)).collect();
        records.push(record("a-joining", NodeState::Joining, 1, 0));
        let mut fixture = Fixture::new(&records);
        assert_eq!(fixture.counts(Strategy::WeightedRoundRobin, 2_048).len(), NODES_MAX);
        fixture.pick(Strategy::LeastConn, 1).unwrap();
    }

    #[test]
    fn names_are_read_as_they_are_written() {
        for strategy in Strategy::ALL {
            assert_eq!(strategy.to_string().parse(), Ok(strategy));
            assert_eq!(serde_json::to_value(strategy).unwrap(), strategy.name());
        }
        let error = "fastest".parse::<Strategy>().unwrap_err().to_string();
        assert!(error.contains("least-conn") && error.contains("home"), "{error}");
    }
}
