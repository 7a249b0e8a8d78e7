//! Who was here before, and may serve on without Redis while this node begins a life?
//!
//! A node that does not reach Redis serves on as long as those it knows of agree, or if it knows of nobody: it cannot
//! learn from Redis that another has begun. So whoever begins a life, as a new process or because it was fenced, is
//! nobody's home at first. It calls at those that were active until then, so that they stop proving themselves to
//! themselves, and lets a lease time pass; unless Redis shows that another active node has its lease, which then knows
//! of this one and vouches for nobody who does not.

use std::collections::BTreeMap;
use trunkline_router_core::membership::{NodeRecord, NodeState, promise_ms};

/// Nodes that are called at with one beat. Where more were here, the next beats call at the others.
pub(super) const CALLS_MAX: usize = 128;

/// Names in a text for people.
const NAMES_SAID: usize = 16;

/// A node that was active, by what Redis said or as this node knew it.
#[derive(Debug)]
struct Elder {
    /// Where it is called at; empty if that is not known.
    mesh: String,
    /// When Redis last had a lease of it, or when it was first called at, if that was later. Milliseconds of
    /// [`crate::clock`], like all times here.
    leased_ms: u64,
    /// It was called at.
    called: bool,
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
    /// The one that was called at last: the next beat begins behind it.
    called_last: String,
}

impl Elders {
    /// A life begins, and these were active as far as this node knows, with their mesh addresses.
    pub(super) fn begin<'a>(&mut self, now_ms: u64, active: impl Iterator<Item = (&'a str, &'a str)>) {
        *self = Elders { begun_ms: now_ms, ..Elders::default() };
        active.for_each(|(name, mesh)| self.add(now_ms, name, mesh));
    }

    /// A node that had a lease and has none any more, with its mesh address, or an empty text where that is not known.
    pub(super) fn add(&mut self, now_ms: u64, name: &str, mesh: &str) {
        let elder = || Elder { mesh: mesh.to_owned(), leased_ms: now_ms, called: false };
        self.nodes.entry(name.to_owned()).or_insert_with(elder);
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
            let elder = Elder { mesh: record.mesh.clone(), leased_ms: now_ms, called: true };
            if self.nodes.insert(record.name.clone(), elder).is_none() {
                new.push((record.name.clone(), record.mesh.clone()));
            }
        }
        new
    }

    /// Where to call with this beat, [`CALLS_MAX`] at most, each node in its turn; again and again, since a call may be
    /// lost.
    pub(super) fn calls(&mut self, now_ms: u64) -> Vec<(String, String)> {
        let known = || self.nodes.iter().filter(|(_, elder)| !elder.mesh.is_empty());
        let behind = known().filter(|(name, _)| **name > self.called_last);
        let before = known().filter(|(name, _)| **name <= self.called_last);
        let calls = behind.chain(before).take(CALLS_MAX).map(|(name, elder)| (name.clone(), elder.mesh.clone()));
        let calls: Vec<(String, String)> = calls.collect();
        for (name, _) in &calls {
            let Some(elder) = self.nodes.get_mut(name) else { continue };
            if !std::mem::replace(&mut elder.called, true) {
                elder.leased_ms = elder.leased_ms.max(now_ms);
            }
        }
        if let Some((last, _)) = calls.last() {
            self.called_last.clone_from(last);
        }
        calls
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
        let serves = self.nodes.iter().filter(|(_, elder)| {
            let uncalled = !elder.called && !elder.mesh.is_empty();
            uncalled || now_ms < elder.leased_ms.saturating_add(over_ms)
        });
        let names: Vec<&str> = serves.map(|(name, _)| name.as_str()).collect();
        if !names.is_empty() {
            let more = match names.len().saturating_sub(NAMES_SAID) {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            let names = names[..names.len().min(NAMES_SAID)].join(", ") + &more;
            return Some(format!("waiting for a lease time, since {names} had a lease and may serve without Redis"));
        }
        let alone = !self.polled || now_ms < self.begun_ms.saturating_add(called_ms);
        alone.then(|| "waiting for others to renew their leases, should Redis have lost them".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_many_that_were_here_each_is_called_at_and_has_a_lease_time_from_then() {
        let (lease_ms, beat_ms) = (5_000, 1_000);
        let mut elders = Elders::default();
        elders.begin(0, std::iter::empty());
        let names: Vec<String> = (0..2 * CALLS_MAX + 7).map(|at| format!("n{at}")).collect();
        names.iter().for_each(|name| elders.add(0, name, &format!("{name}:7790")));
        elders.note(0, "own", &[]);
        let mut called = std::collections::BTreeSet::new();
        for beat in 0..3 {
            assert!(called.len() < names.len(), "no more than so many a beat");
            let calls = elders.calls(beat * beat_ms);
            assert!(calls.len() <= CALLS_MAX);
            called.extend(calls.into_iter().map(|(name, _)| name));
        }
        assert_eq!(called.len(), names.len());
        let over_ms = 2 * beat_ms + promise_ms(lease_ms) + 2 * beat_ms;
        let why =
            elders.waits(over_ms - 1, lease_ms, beat_ms).expect("the last ones were called at with the third beat");
        assert!(why.len() < 400, "{why}");
        assert_eq!(elders.waits(over_ms, lease_ms, beat_ms), None);
    }

    #[test]
    fn who_has_not_been_called_at_is_waited_for() {
        let mut elders = Elders::default();
        elders.begin(0, std::iter::empty());
        elders.note(0, "own", &[]);
        elders.add(0, "a", "a:7790");
        elders.add(0, "unknown", "");
        assert!(elders.waits(1_000_000, 5_000, 1_000).unwrap().contains(" a "));
        elders.calls(1_000_000);
        assert_eq!(elders.waits(1_000_000 + promise_ms(5_000) + 2_000, 5_000, 1_000), None);
    }
}
