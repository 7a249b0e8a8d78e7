//! What is decided of questions to the hook. No I/O and no clock.
//!
//! Equal questions are asked once: whoever comes while one is open waits for the same answer. Questions wait in order,
//! while as many are asked as may be. A question for which nobody waits any more is not asked; one that is being asked
//! goes on, and its answer may be of use to the next.

use super::FailurePolicy;
use super::answer::End;
use super::cache::Cache;
use super::circuit::Circuit;
use super::{Ask, Decision};
use crate::io::ConnId;
use hashbrown::HashMap;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;

/// What a question is known by: the hash of all that the hook is told.
pub(super) type Key = [u8; 32];

/// Whose question it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Caller {
    pub(super) shard: u16,
    pub(super) conn: ConnId,
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Deed {
    /// The hook is asked.
    Start { key: Key, ask: Box<Ask> },
    /// Somebody is told.
    Tell { caller: Caller, decision: Decision },
}

/// How often what happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) asked: u64,
    pub(super) accepted: u64,
    pub(super) refused: u64,
    pub(super) failed: u64,
    /// Answered from what was known.
    pub(super) cached: u64,
    /// Waited for the answer to an equal question.
    pub(super) shared: u64,
    /// Answered without asking, since the circuit was open.
    pub(super) cut: u64,
    /// Gave way in the cache.
    pub(super) evicted: u64,
}

/// A question that is open.
#[derive(Debug)]
struct Open {
    callers: Vec<Caller>,
    /// What is to be asked; `None` while it is being asked.
    ask: Option<Box<Ask>>,
    /// Its place in the queue, while it is there.
    place: u64,
    probes: bool,
}

/// All that is known of questions.
#[derive(Debug)]
pub(super) struct Desk {
    cache: Cache,
    circuit: Circuit,
    open: HashMap<Key, Open>,
    /// Who waits for which question.
    callers: HashMap<Caller, Key>,
    /// Questions that wait to be asked, in order.
    queue: BTreeMap<u64, Key>,
    /// Places given out in it.
    places: u64,
    running: usize,
    running_max: usize,
    policy: FailurePolicy,
    deeds: VecDeque<Deed>,
    pub(super) counts: Counts,
}

/// What a question is known by.
pub(super) fn key(ask: &Ask) -> Key {
    let mut hash = Sha256::new();
    // Each with its length, so that no two questions look the same.
    for text in [&ask.token, &ask.device, &ask.class] {
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(text);
    }
    // An application may let in from some addresses only: what it has said of one is not said of another.
    match ask.address.map(|address| address.to_canonical()) {
        None => hash.update([0]),
        Some(IpAddr::V4(address)) => {
            hash.update([4]);
            hash.update(address.octets());
        }
        Some(IpAddr::V6(address)) => {
            hash.update([6]);
            hash.update(address.octets());
        }
    }
    hash.update(ask.user.to_le_bytes());
    hash.update([ask.renews, ask.websocket, ask.tls].map(u8::from));
    hash.finalize().into()
}

impl Desk {
    pub(super) fn new(running_max: usize, cache_bytes_max: usize, policy: FailurePolicy) -> Self {
        Desk {
            cache: Cache::new(cache_bytes_max),
            circuit: Circuit::default(),
            open: HashMap::new(),
            callers: HashMap::new(),
            queue: BTreeMap::new(),
            places: 0,
            running: 0,
            running_max,
            policy,
            deeds: VecDeque::new(),
            counts: Counts::default(),
        }
    }

    /// Somebody asks.
    pub(super) fn ask(&mut self, shard: u16, ask: Box<Ask>, now_ms: u64) {
        let caller = Caller { shard, conn: ask.conn };
        let key = key(&ask);
        if let Some(decision) = self.cache.get(&key, now_ms) {
            self.counts.cached += 1;
            self.deeds.push_back(Deed::Tell { caller, decision: decision.clone() });
            return;
        }
        self.callers.insert(caller, key);
        if let Some(open) = self.open.get_mut(&key) {
            self.counts.shared += 1;
            open.callers.push(caller);
            return;
        }
        self.places += 1;
        self.open.insert(key, Open { callers: vec![caller], ask: Some(ask), place: self.places, probes: false });
        self.queue.insert(self.places, key);
        self.start(now_ms);
    }

    /// Somebody waits no more.
    pub(super) fn cancel(&mut self, shard: u16, conn: ConnId) {
        let caller = Caller { shard, conn };
        let Some(key) = self.callers.remove(&caller) else { return };
        self.deeds.push_back(Deed::Tell { caller, decision: Decision::Gone });
        let Some(open) = self.open.get_mut(&key) else { return };
        open.callers.retain(|other| *other != caller);
        if open.callers.is_empty() && open.ask.is_some() {
            let place = open.place;
            self.open.remove(&key);
            self.queue.remove(&place);
        }
    }

    /// The hook was asked, and this is what has become of it.
    pub(super) fn ended(&mut self, key: Key, end: End, now_ms: u64) {
        let Some(open) = self.open.remove(&key) else { return };
        self.running -= 1;
        self.circuit.ended(!matches!(end, End::Failed { .. }), open.probes, now_ms);
        let (decision, cache_ms) = match end {
            End::In { grant, cache_ms } => {
                self.counts.accepted += 1;
                (Decision::In(grant), cache_ms)
            }
            End::Refused { words, cache_ms } => {
                self.counts.refused += 1;
                (Decision::Refused(words), cache_ms)
            }
            End::Failed { .. } | End::Erred { .. } => {
                self.counts.failed += 1;
                (Decision::of_failure(self.policy), 0)
            }
            End::Busy { .. } => {
                self.counts.failed += 1;
                (Decision::Down, 0)
            }
        };
        self.counts.evicted += self.cache.put(key, decision.clone(), now_ms.saturating_add(cache_ms), now_ms);
        self.tell(open.callers, &decision);
        self.start(now_ms);
    }

    /// Time has passed.
    pub(super) fn tick(&mut self, now_ms: u64) {
        self.cache.sweep(now_ms);
        self.start(now_ms);
    }

    /// What is to be done next.
    pub(super) fn next(&mut self) -> Option<Deed> {
        self.deeds.pop_front()
    }

    fn tell(&mut self, callers: Vec<Caller>, decision: &Decision) {
        for caller in callers {
            self.callers.remove(&caller);
            self.deeds.push_back(Deed::Tell { caller, decision: decision.clone() });
        }
    }

    /// Asks as much as may be asked. While the circuit is open nobody is kept waiting.
    fn start(&mut self, now_ms: u64) {
        while self.running < self.running_max
            && let Some((_, key)) = self.queue.pop_first()
        {
            let Some(probes) = self.circuit.may_ask(now_ms) else {
                let Some(open) = self.open.remove(&key) else { continue };
                self.counts.cut += open.callers.len() as u64;
                self.tell(open.callers, &Decision::of_failure(self.policy));
                continue;
            };
            let Some(open) = self.open.get_mut(&key) else { continue };
            let Some(ask) = open.ask.take() else { continue };
            open.probes = probes;
            self.running += 1;
            self.counts.asked += 1;
            self.deeds.push_back(Deed::Start { key, ask });
        }
    }

    pub(super) fn running(&self) -> usize {
        self.running
    }

    pub(super) fn cache_bytes(&self) -> usize {
        self.cache.bytes()
    }

    pub(super) fn is_cut(&self) -> bool {
        self.circuit.is_open()
    }
}

#[cfg(test)]
mod tests;
