//! What the tests of the balancer share: a balancer that speaks of servers by name and has a seeded source of
//! randomness.

use rand::SeedableRng;
use rand::rngs::StdRng;
use trunkline_router_core::balance::{Health, Key, ServerId, ServerState, Unavailable};
use trunkline_router_core::{Balancer, Policy, Server, ServerOptions};

pub(crate) struct Group {
    pub(crate) balancer: Balancer,
    pub(crate) rng: StdRng,
}

pub(crate) fn server(name: &str, options: ServerOptions) -> Server {
    Server::new(name, options).expect("a valid server")
}

pub(crate) fn weighing(weight: u32) -> ServerOptions {
    ServerOptions { weight, ..ServerOptions::default() }
}

/// Servers called a, b, c … with these options.
pub(crate) fn lettered(options: impl IntoIterator<Item = ServerOptions>) -> Vec<Server> {
    ('a'..='z').zip(options).map(|(letter, options)| server(&letter.to_string(), options)).collect()
}

/// Servers called a, b, c … of these weights.
pub(crate) fn of_weights(policy: Policy, weights: &[u32]) -> Group {
    Group::new(policy, lettered(weights.iter().map(|&weight| weighing(weight))))
}

impl Group {
    pub(crate) fn new(policy: Policy, servers: Vec<Server>) -> Self {
        let balancer = Balancer::new(policy, servers).expect("a valid set of servers");
        Group { balancer, rng: StdRng::seed_from_u64(0x7275_6e6b) }
    }

    pub(crate) fn update(&mut self, now_ms: u64, servers: Vec<Server>) {
        self.balancer.update(now_ms, servers).expect("a valid set of servers");
    }

    pub(crate) fn id(&self, name: &str) -> ServerId {
        self.balancer.id_of(name).expect("a server of this name")
    }

    pub(crate) fn state(&self, name: &str, now_ms: u64) -> ServerState<'_> {
        self.balancer.server(self.id(name), now_ms).expect("a server of this id")
    }

    pub(crate) fn health(&self, name: &str) -> Health {
        self.state(name, 0).health
    }

    pub(crate) fn weight(&self, name: &str, now_ms: u64) -> f64 {
        self.state(name, now_ms).effective_weight
    }

    pub(crate) fn name(&self, id: ServerId) -> String {
        self.balancer.server(id, 0).expect("a server of this id").server.name().to_owned()
    }

    pub(crate) fn pick(&mut self, now_ms: u64) -> Result<String, Unavailable> {
        self.balancer.pick(now_ms, None, &mut self.rng).map(|id| self.name(id))
    }

    pub(crate) fn pick_key<'k>(&mut self, now_ms: u64, key: impl Into<Key<'k>>) -> Result<String, Unavailable> {
        self.balancer.pick(now_ms, Some(key.into()), &mut self.rng).map(|id| self.name(id))
    }

    pub(crate) fn pick_bound(&mut self, bound: &str, now_ms: u64) -> Result<String, Unavailable> {
        let bound = self.id(bound);
        self.balancer.pick_bound(bound, now_ms, None, &mut self.rng).map(|id| self.name(id))
    }

    /// The names of so many picks.
    pub(crate) fn picks(&mut self, now_ms: u64, count: usize) -> String {
        (0..count).map(|_| self.pick(now_ms).expect("an available server")).collect()
    }

    /// How many of so many picks each server got, in the order of the servers.
    pub(crate) fn shares(&mut self, now_ms: u64, count: usize) -> Vec<usize> {
        let picked: Vec<String> = (0..count).map(|_| self.pick(now_ms).expect("an available server")).collect();
        let of = |name: &str| picked.iter().filter(|picked| *picked == name).count();
        self.balancer.servers(now_ms).map(|state| of(state.server.name())).collect()
    }

    pub(crate) fn failed(&mut self, name: &str, now_ms: u64) {
        self.balancer.failed(self.id(name), now_ms);
    }

    pub(crate) fn succeeded(&mut self, name: &str, now_ms: u64) {
        self.balancer.succeeded(self.id(name), now_ms);
    }

    pub(crate) fn set_conns(&mut self, name: &str, conns: u32) {
        self.balancer.set_conns(self.id(name), conns);
    }
}
