//! What a cluster of nodes keeps in Redis, as the scripts in `router/src/redis/scripts` treat it: leases, incarnations,
//! and the number of the view. Presence is absent: no shard reads it.

use crate::io::sim::Rng;
use crate::membership::Request;
use std::collections::{BTreeMap, BTreeSet};
use trunkline_router_core::membership::{NodeRecord, REMEMBERED_MS, Renewal};

#[derive(Debug)]
struct Held {
    incarnation: u64,
    record: NodeRecord,
    expires_us: u64,
}

/// A node that had a lease and has not given it up.
#[derive(Debug)]
struct Past {
    mesh: String,
    ended_us: u64,
}

#[derive(Debug)]
pub(super) struct Redis {
    leases: BTreeMap<String, Held>,
    past: BTreeMap<String, Past>,
    /// How long it remembers who was here.
    pub(super) remembers_ms: u64,
    incarnations: BTreeMap<String, u64>,
    view: (u64, u64),
    /// Answers nobody.
    pub(super) out: bool,
    /// Nodes that do not reach it.
    pub(super) cut_off: BTreeSet<String>,
    /// Refuses what writes.
    pub(super) read_only: bool,
    /// Nodes whose lease is at a master that refuses what writes.
    pub(super) read_only_for: BTreeSet<String>,
    /// Nodes that do not hear its answers, though it does what they ask.
    pub(super) unheard: BTreeSet<String>,
    /// No answer of it is lost any more.
    pub(super) sound: bool,
}

impl Default for Redis {
    fn default() -> Self {
        Redis {
            leases: BTreeMap::new(),
            past: BTreeMap::new(),
            remembers_ms: REMEMBERED_MS,
            incarnations: BTreeMap::new(),
            view: (0, 0),
            out: false,
            cut_off: BTreeSet::new(),
            read_only: false,
            read_only_for: BTreeSet::new(),
            unheard: BTreeSet::new(),
            sound: false,
        }
    }
}

impl Redis {
    fn held(&self, now_us: u64, name: &str) -> Option<&Held> {
        self.leases.get(name).filter(|held| held.expires_us > now_us)
    }

    fn hold(&mut self, now_us: u64, record: NodeRecord, ttl_ms: u64) {
        let held = Held { incarnation: record.incarnation, expires_us: now_us + ttl_ms * 1_000, record };
        let past = Past { mesh: held.record.mesh.clone(), ended_us: held.expires_us };
        self.past.insert(held.record.name.clone(), past);
        // `register.lua`.
        self.past.retain(|_, past| past.ended_us + self.remembers_ms * 1_000 >= now_us);
        self.leases.insert(held.record.name.clone(), held);
    }

    /// The nodes that are listed.
    pub(super) fn listed(&self) -> Vec<(String, String)> {
        self.past.iter().map(|(name, past)| (name.clone(), past.mesh.clone())).collect()
    }

    /// `acquire.lua`: a new incarnation, unless somebody holds the name.
    pub(super) fn acquire(&mut self, now_us: u64, record: NodeRecord, ttl_ms: u64) -> Option<u64> {
        if self.held(now_us, &record.name).is_some() {
            return None;
        }
        let last = self.incarnations.get(&record.name).copied().unwrap_or(0);
        // Like there, never below the time, so that it grows even over a loss of the counter.
        let incarnation = (last + 1).max(now_us / 1_000);
        self.incarnations.insert(record.name.clone(), incarnation);
        self.hold(now_us, NodeRecord { incarnation, ..record }, ttl_ms);
        Some(incarnation)
    }

    /// `renew.lua`.
    pub(super) fn renew(&mut self, now_us: u64, record: NodeRecord, ttl_ms: u64) -> Renewal {
        match self.held(now_us, &record.name) {
            None => Renewal::LostToNobody,
            Some(held) if held.incarnation != record.incarnation => Renewal::LostToAnother,
            Some(_) => {
                self.hold(now_us, record, ttl_ms);
                Renewal::Renewed
            }
        }
    }

    /// `restore.lua`.
    pub(super) fn restore(&mut self, now_us: u64, record: NodeRecord, ttl_ms: u64) -> Renewal {
        let taken = self.held(now_us, &record.name).is_some_and(|held| held.incarnation != record.incarnation);
        if taken || self.incarnations.get(&record.name).is_some_and(|last| *last > record.incarnation) {
            return Renewal::LostToAnother;
        }
        self.incarnations.insert(record.name.clone(), record.incarnation);
        self.hold(now_us, record, ttl_ms);
        Renewal::Renewed
    }

    /// Whether a node gets an answer.
    pub(super) fn answers(&self, node: &str) -> bool {
        !self.out && !self.cut_off.contains(node)
    }

    /// Whether it refuses to do what is asked.
    pub(super) fn refuses(&self, request: &Request) -> bool {
        let writes_of = match request {
            Request::Renew(record) | Request::Restore(record) | Request::Acquire(record) => Some(&record.name),
            Request::RenewFor(favour) => Some(&favour.record.name),
            // The number of the view is at one of the masters; without it nodes count for themselves.
            Request::Epoch { .. } => None,
            Request::Poll => return false,
        };
        self.read_only || writes_of.is_some_and(|name| self.read_only_for.contains(name))
    }

    /// `release.lua`.
    pub(super) fn release(&mut self, name: &str, incarnation: u64) {
        if self.leases.get(name).is_some_and(|held| held.incarnation == incarnation) {
            self.leases.remove(name);
            self.past.remove(name);
        }
    }

    /// The records of all nodes with a live lease.
    pub(super) fn poll(&self, now_us: u64) -> Vec<NodeRecord> {
        self.leases.values().filter(|held| held.expires_us > now_us).map(|held| held.record.clone()).collect()
    }

    /// `epoch.lua`.
    pub(super) fn epoch(&mut self, digest: u64, known: u64) -> u64 {
        let (stored_digest, stored) = self.view;
        let agreed = stored.max(known) + u64::from(digest != stored_digest);
        self.view = (digest, agreed);
        agreed
    }

    /// A failover loses what was written last of some slots.
    pub(super) fn forget_some(&mut self, rng: &mut Rng) {
        self.leases.retain(|_, _| rng.chance(500));
    }

    /// It comes back without its data.
    pub(super) fn forget(&mut self) {
        (self.leases, self.past, self.incarnations, self.view) = Default::default();
    }
}
