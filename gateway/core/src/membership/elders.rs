//! Who was here before, and may serve on without Redis while this node begins a life?
//!
//! A node that does not reach Redis serves on as long as those it knows of agree, or if it knows of nobody: it cannot
//! learn from Redis that another has begun. So whoever begins a life, as a new process or because it was fenced, is
//! nobody's home at first. It calls at those that were active until then, so that they stop proving themselves to
//! themselves, and lets a lease time pass; unless Redis shows that another active node has its lease, which then knows
//! of this one and vouches for nobody who does not.

use std::collections::BTreeMap;
use trunkline_router_core::membership::{NodeRecord, NodeState, promise_ms};

/// A node that was active, by what Redis said or as this node knew it.
#[derive(Debug)]
struct Elder {
    /// Where it is called at; empty if that is not known.
    mesh: String,
    /// When Redis last had a lease of it, or when it was first called at, if that was later. Milliseconds of
    /// [`crate::clock`], like all times here.
    leased_ms: u64,
}

/// Those that a node which begins has to wait for.
#[derive(Debug, Default)]
pub(super) struct Elders {
    begun_ms: u64,
    nodes: BTreeMap<String, Elder>,
    /// One of them had a lease as of the last poll.
    lead: bool,
    /// Redis was asked for the nodes since the life began.
    polled: bool,
}

impl Elders {
    /// A life begins, and these were active as far as this node knows, with their mesh addresses.
    pub(super) fn begin<'a>(&mut self, now_ms: u64, active: impl Iterator<Item = (&'a str, &'a str)>) {
        *self = Elders { begun_ms: now_ms, ..Elders::default() };
        active.for_each(|(name, mesh)| self.add(now_ms, name, mesh));
    }

    /// A node that had a lease and has none any more, with its mesh address, or an empty text where that is not known.
    pub(super) fn add(&mut self, now_ms: u64, name: &str, mesh: &str) {
        self.nodes.entry(name.to_owned()).or_insert_with(|| Elder { mesh: mesh.to_owned(), leased_ms: now_ms });
    }

    /// Takes note of who is active by what Redis says while the node `own` is not. Those that are called at for the
    /// first time, with their addresses.
    pub(super) fn note(&mut self, now_ms: u64, own: &str, records: &[NodeRecord]) -> Vec<(String, String)> {
        let mut new = Vec::new();
        (self.lead, self.polled) = (false, true);
        for record in records.iter().filter(|record| record.name != own) {
            if record.state != NodeState::Active {
                // Who says that it leaves, or begins itself, serves no longer than its lease.
                self.nodes.remove(&record.name);
                continue;
            }
            self.lead = true;
            let elder = Elder { mesh: record.mesh.clone(), leased_ms: now_ms };
            if self.nodes.insert(record.name.clone(), elder).is_none() {
                new.push((record.name.clone(), record.mesh.clone()));
            }
        }
        new
    }

    /// Where to call, again and again: a call may be lost.
    pub(super) fn calls(&self) -> impl Iterator<Item = (String, String)> {
        let known = self.nodes.iter().filter(|(_, elder)| !elder.mesh.is_empty());
        known.map(|(name, elder)| (name.clone(), elder.mesh.clone()))
    }

    /// This node is active: nobody is waited for any more.
    pub(super) fn clear(&mut self) {
        self.nodes.clear();
    }

    /// Why the node, should no other be active by what Redis says, may not be so yet; `None` if it may. `beat_ms` is
    /// the time between calls.
    ///
    /// Where nobody was here Redis may just have lost its data: the others write their leases again with their next
    /// beats.
    pub(super) fn waits(&self, now_ms: u64, lease_ms: u64, beat_ms: u64) -> Option<String> {
        if self.lead {
            return None;
        }
        let called_ms = 2 * beat_ms;
        let over_ms = promise_ms(lease_ms) + called_ms;
        let serves = self.nodes.iter().filter(|(_, elder)| now_ms < elder.leased_ms.saturating_add(over_ms));
        let names: Vec<&str> = serves.map(|(name, _)| name.as_str()).collect();
        if !names.is_empty() {
            let names = names.join(", ");
            return Some(format!("waiting for a lease time, since {names} had a lease and may serve without Redis"));
        }
        let alone = !self.polled || now_ms < self.begun_ms.saturating_add(called_ms);
        alone.then(|| "waiting for others to renew their leases, should Redis have lost them".to_owned())
    }
}
