//! From a set of servers to the one that takes the next connection or call.
//!
//! The policies and options are those nginx documents for its upstreams. What they mean, and what is decided here where
//! nginx says nothing or cannot be followed:
//!
//! - **Tiers.** Backups are picked only while every other server is unavailable: down, draining, failed or full. That
//!   holds for all policies, while nginx has no backups with hash and random. Each tier goes by the policy for itself.
//! - **Failures.** See [`Health`]. If all servers have failed, a pick fails with [`Unavailable::AllFailed`], which
//!   tells when the first of them is probed; none is brought back early, because a server that has just failed would
//!   only fail again, and slowly.
//! - **A set of one server** ignores `max_fails`, `fail_timeout` and `slow_start`, as nginx documents: without an
//!   alternative it is better to try. What counts is the length of the list, backups and servers marked down included;
//!   `down`, `drain` and `max_conns` still hold.
//! - **Slow start.** The weight climbs in proportion to the time from 1/65,536 of itself to all of it: after a probe
//!   that succeeded, after `down` was taken back, and when the server joins a set that has others. The servers a
//!   balancer starts with do not climb. With hash and random it has no effect, as nginx documents.
//! - **Drain.** A draining server is picked only by [`Balancer::pick_bound`] for what the caller says is bound to it.
//!   To own a key on the ring is not to be bound: nobody can tell a new key from an old one there. Its connections stay
//!   counted.
//! - **Connections** are those the caller reports: [`Balancer::connected`] and [`Balancer::released`] for its own, or
//!   [`Balancer::set_conns`] for a count learned from elsewhere. A pick alone counts for nothing.
//! - **Without a key** (or with an empty one) consistent hash is weighted round robin.
//!
//! All times are monotonic milliseconds from any origin; periods are half open, so what lasts 10 s from 5,000 is over
//! at 15,000.

mod consistent_hash;
mod error;
mod health;
mod least_conn;
mod least_time;
mod policy;
mod random_two;
mod round_robin;
mod server;
mod slot;
mod tier;

pub use consistent_hash::Key;
pub use error::{BalanceError, Unavailable};
pub use health::Health;
pub use policy::{Policy, UnknownPolicy};
pub use server::{MAX_FAILS_LIMIT, PERIOD_MS_MAX, Server, ServerOptions};

use crate::ring::NODES_MAX;
use rand::Rng;
use slot::{Obstacle, Slot, UNIT};
use tier::Tier;

/// A server of one balancer. It stays the same as long as the server stays in the set, and is never given to another,
/// so that a report about a server that is gone reaches nobody else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServerId(u32);

/// What is known of a server at a moment.
#[derive(Debug, Clone, PartialEq)]
pub struct ServerState<'b> {
    /// Its id in this balancer.
    pub id: ServerId,
    /// Name and options.
    pub server: &'b Server,
    /// Connections.
    pub conns: u32,
    /// Failures that count: those younger than `fail_timeout`.
    pub fails: u32,
    /// What the weight is worth in the round robin, 0.0 … `weight`: less what failures took, and as far as it has
    /// climbed.
    pub effective_weight: f64,
    /// Whether failures keep it from being picked, and until when.
    pub health: Health,
}

/// Picks servers out of a set by a policy. Not shared between threads: each that balances has its own.
#[derive(Debug, Clone)]
pub struct Balancer {
    policy: Policy,
    /// In the order given, which breaks ties.
    slots: Vec<Slot>,
    /// Indices into `slots`, by id.
    by_id: Box<[u16]>,
    /// Indices into `slots`, by name.
    by_name: Box<[u16]>,
    /// The servers that are no backups, then the backups.
    tiers: [Tier; 2],
    next_id: u32,
}

// Slots are referred to by u16.
const _: () = assert!(NODES_MAX <= u16::MAX as usize);

impl Balancer {
    /// A balancer of `servers`, at most [`NODES_MAX`], possibly none. All are up, without connections, at full weight.
    ///
    /// # Errors
    /// [`BalanceError::TooManyServers`], [`BalanceError::SameName`], and with [`Policy::ConsistentHash`]
    /// [`BalanceError::Ring`]: the weights of a tier may add up to [`WEIGHT_TOTAL_MAX`](crate::ring::WEIGHT_TOTAL_MAX).
    pub fn new(policy: Policy, servers: Vec<Server>) -> Result<Self, BalanceError> {
        let mut balancer = Balancer {
            policy,
            slots: Vec::new(),
            by_id: Box::default(),
            by_name: Box::default(),
            tiers: [Tier::empty(false), Tier::empty(true)],
            next_id: 0,
        };
        // Without others to join nobody climbs, so the time does not matter.
        balancer.update(0, servers)?;
        Ok(balancer)
    }

    /// The policy given at the start.
    #[must_use]
    pub fn policy(&self) -> Policy {
        self.policy
    }

    /// Makes `servers` the set. A server whose name was in it before keeps id, connections, failures and its place in
    /// the round robin; the rest of it is as the new options say. If the set is refused, nothing changes.
    ///
    /// Takes time in proportion to the number of servers, and with [`Policy::ConsistentHash`], if names, weights
    /// or backups have changed, to the sum of the weights.
    ///
    /// # Errors
    /// Those of [`Balancer::new`].
    pub fn update(&mut self, now_ms: u64, servers: Vec<Server>) -> Result<(), BalanceError> {
        if servers.len() > NODES_MAX {
            return Err(BalanceError::TooManyServers { count: servers.len() });
        }
        let by_name = sorted_indices(servers.len(), |index| servers[index].name());
        if let Some(pair) = by_name.windows(2).find(|pair| name_at(&servers, pair[0]) == name_at(&servers, pair[1])) {
            return Err(BalanceError::SameName { name: name_at(&servers, pair[0]).into() });
        }
        let [primaries, backups] = &self.tiers;
        let tiers = [primaries.next(self.policy, &servers)?, backups.next(self.policy, &servers)?];

        let same_places = self.slots.len() == servers.len()
            && servers.iter().all(|server| {
                self.index_of_name(server.name()).is_some_and(|index| self.slots[index].server.same_place(server))
            });
        let first_new = ServerId(self.next_id);
        self.replace_slots(now_ms, servers);
        if !same_places {
            for backup in [false, true] {
                round_robin::settle(&mut self.slots, backup, |slot| slot.id >= first_new);
            }
        }
        self.by_id = sorted_indices(self.slots.len(), |index| self.slots[index].id);
        self.by_name = by_name;
        self.tiers = tiers;
        Ok(())
    }

    /// Slots for `servers`: those there are, moved and updated, and new ones. The indices are still those of before.
    fn replace_slots(&mut self, now_ms: u64, servers: Vec<Server>) {
        let mut before: Vec<Option<Slot>> = self.slots.iter().cloned().map(Some).collect();
        let (has_others, is_single) = (!before.is_empty(), servers.len() == 1);
        let mut slots = Vec::with_capacity(servers.len());
        for server in servers {
            let kept = self.index_of_name(server.name()).and_then(|index| before[index].take());
            let (mut slot, comes_up) = match kept {
                Some(mut slot) => {
                    let is_back = slot.update(now_ms, server);
                    (slot, is_back)
                }
                None => {
                    let id = ServerId(self.next_id);
                    // 4 billion servers that come, at one a second: 136 years.
                    self.next_id = self.next_id.wrapping_add(1);
                    (Slot::new(id, server), has_others)
                }
            };
            if is_single {
                slot.forgive();
            } else if comes_up && self.policy.ramps() {
                slot.start_ramp(now_ms);
            }
            slots.push(slot);
        }
        self.slots = slots;
    }

    /// The server for something new. `key` matters with [`Policy::ConsistentHash`] and `rng` with [`Policy::RandomTwo`]
    /// only. Allocates nothing. O(n) with round robin and least-conn, O(log n) with the other two as long as the
    /// servers they meet first are available.
    ///
    /// # Errors
    /// [`Unavailable`] if there is no server to pick.
    pub fn pick(
        &mut self,
        now_ms: u64,
        key: Option<Key<'_>>,
        rng: &mut (impl Rng + ?Sized),
    ) -> Result<ServerId, Unavailable> {
        for tier in &self.tiers {
            if let Some(index) = tier.pick(&mut self.slots, now_ms, key, rng) {
                return Ok(self.picked(index, now_ms));
            }
        }
        Err(self.why_unavailable(now_ms))
    }

    /// As [`Balancer::pick`], among those servers alone of whose places in the order given `allowed` is true. The
    /// others keep their places in the round robin. O(n).
    ///
    /// # Errors
    /// [`Unavailable`] if none of them can be picked; [`Unavailable::NoServers`] also if only others could.
    pub fn pick_among(
        &mut self,
        now_ms: u64,
        key: Option<Key<'_>>,
        rng: &mut (impl Rng + ?Sized),
        allowed: impl Fn(usize) -> bool,
    ) -> Result<ServerId, Unavailable> {
        self.slots.iter_mut().enumerate().for_each(|(at, slot)| slot.excluded = !allowed(at));
        let picked = self.pick(now_ms, key, rng);
        self.slots.iter_mut().for_each(|slot| slot.excluded = false);
        picked
    }

    /// The server for something that is bound to `bound`, such as a session that was there before: that server, even
    /// while it drains and even if it is a backup, unless it is gone, down, failed or full; then as [`Balancer::pick`].
    /// A pick of the bound server does not count in the round robin.
    ///
    /// # Errors
    /// [`Unavailable`] if there is no server to pick.
    pub fn pick_bound(
        &mut self,
        bound: ServerId,
        now_ms: u64,
        key: Option<Key<'_>>,
        rng: &mut (impl Rng + ?Sized),
    ) -> Result<ServerId, Unavailable> {
        match self.index_of(bound).filter(|&index| self.slots[index].obstacle_if_bound(now_ms).is_none()) {
            Some(index) => Ok(self.picked(index, now_ms)),
            None => self.pick(now_ms, key, rng),
        }
    }

    fn picked(&mut self, index: usize, now_ms: u64) -> ServerId {
        let slot = &mut self.slots[index];
        slot.record.picked(now_ms, slot.server.options());
        slot.id
    }

    fn why_unavailable(&self, now_ms: u64) -> Unavailable {
        match self.slots.iter().filter_map(|slot| slot.obstacle(now_ms)).max() {
            None => Unavailable::NoServers,
            Some(Obstacle::Down) => Unavailable::AllDown,
            Some(Obstacle::Draining) => Unavailable::AllDraining,
            Some(Obstacle::Full) => Unavailable::AllFull,
            Some(Obstacle::Failed) => {
                let failed = self.slots.iter().filter(|slot| slot.obstacle(now_ms) == Some(Obstacle::Failed));
                let until_ms = failed.filter_map(|slot| slot.record.unavailable_until_ms()).min();
                Unavailable::AllFailed { until_ms: until_ms.unwrap_or(now_ms) }
            }
        }
    }

    /// One connection more. As with all reports, nothing happens if the server is gone.
    pub fn connected(&mut self, id: ServerId) {
        if let Some(index) = self.index_of(id) {
            self.slots[index].conns = self.slots[index].conns.saturating_add(1);
        }
    }

    /// One connection less; at 0 it stays 0.
    pub fn released(&mut self, id: ServerId) {
        if let Some(index) = self.index_of(id) {
            self.slots[index].conns = self.slots[index].conns.saturating_sub(1);
        }
    }

    /// Sets the number of connections to what is known from elsewhere.
    pub fn set_conns(&mut self, id: ServerId, conns: u32) {
        if let Some(index) = self.index_of(id) {
            self.slots[index].conns = conns;
        }
    }

    /// An answer of this server took so long, in microseconds; a failure is to be told as the longest time it could
    /// have taken. It matters with
    /// [`Policy::LeastTime`] only.
    pub fn took(&mut self, id: ServerId, us: u64, now_ms: u64) {
        if let Some(index) = self.index_of(id) {
            self.slots[index].response_time.took(us, now_ms);
        }
    }

    /// A pick of this server turned out well. If the server was being probed, it is up from here on.
    pub fn succeeded(&mut self, id: ServerId, now_ms: u64) {
        if let Some(index) = self.index_of(id)
            && self.slots[index].record.succeeded()
            && self.policy.ramps()
        {
            self.slots[index].start_ramp(now_ms);
        }
    }

    /// A pick of this server turned out badly.
    pub fn failed(&mut self, id: ServerId, now_ms: u64) {
        if self.slots.len() > 1
            && let Some(index) = self.index_of(id)
        {
            self.slots[index].failed(now_ms);
        }
    }

    /// The servers, in the order given.
    pub fn servers(&self, now_ms: u64) -> impl ExactSizeIterator<Item = ServerState<'_>> {
        self.slots.iter().map(move |slot| state(slot, now_ms))
    }

    /// One server, unless it is gone.
    #[must_use]
    pub fn server(&self, id: ServerId, now_ms: u64) -> Option<ServerState<'_>> {
        self.index_of(id).map(|index| state(&self.slots[index], now_ms))
    }

    /// The server called `name`. O(log n).
    #[must_use]
    pub fn id_of(&self, name: &str) -> Option<ServerId> {
        self.index_of_name(name).map(|index| self.slots[index].id)
    }

    fn index_of(&self, id: ServerId) -> Option<usize> {
        let at = self.by_id.binary_search_by_key(&id, |&index| self.slots[usize::from(index)].id).ok()?;
        Some(usize::from(self.by_id[at]))
    }

    fn index_of_name(&self, name: &str) -> Option<usize> {
        let name_of = |index: u16| self.slots[usize::from(index)].server.name();
        let at = self.by_name.binary_search_by(|&index| name_of(index).cmp(name)).ok()?;
        Some(usize::from(self.by_name[at]))
    }
}

fn state(slot: &Slot, now_ms: u64) -> ServerState<'_> {
    ServerState {
        id: slot.id,
        server: &slot.server,
        conns: slot.conns,
        fails: slot.record.fails(now_ms, slot.server.options()),
        effective_weight: slot.effective_units(now_ms) as f64 / UNIT as f64,
        health: slot.record.health(),
    }
}

fn name_at(servers: &[Server], index: u16) -> &str {
    servers[usize::from(index)].name()
}

/// The indices below `count`, which is at most [`NODES_MAX`], in the order of their keys.
fn sorted_indices<K: Ord>(count: usize, key: impl Fn(usize) -> K) -> Box<[u16]> {
    let mut indices: Box<[u16]> = (0..count as u16).collect();
    indices.sort_unstable_by_key(|&index| key(index.into()));
    indices
}
