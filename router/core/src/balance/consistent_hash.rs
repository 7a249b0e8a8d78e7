//! The owner of a key on the ring, nginx's `hash KEY consistent`.
//!
//! When the owner is unavailable the pick goes on around the ring, point by point, to the first server that is
//! available. That is the server which would own the key if those unavailable had no points: their keys spread over all
//! the others, by weight, no other key moves, and every key is back with its owner as soon as the owner is. nginx goes
//! on in the same way, but after 20 points turns to round robin, which sends one key to many servers; here it ends
//! where it must. Servers that are down, drain or are full keep their points for the same reason.

use super::server::Server;
use super::slot::Slot;
use crate::ring::{self, Node, Ring, RingError};
use std::sync::Arc;

/// What a pick is made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Key<'k> {
    /// A user. Hashed as its decimal digits, so the pick is [`Ring::owner`] of the ring of these servers.
    User(u64),
    /// Anything else, hashed as it is. An empty key counts as none, as in nginx.
    Bytes(&'k [u8]),
}

impl Key<'_> {
    fn hash(self) -> Option<u32> {
        match self {
            Key::User(user) => Some(ring::user_key_hash(user)),
            Key::Bytes(bytes) => (!bytes.is_empty()).then(|| ring::key_hash(bytes)),
        }
    }
}

impl From<u64> for Key<'_> {
    fn from(user: u64) -> Self {
        Key::User(user)
    }
}

impl<'k> From<&'k [u8]> for Key<'k> {
    fn from(bytes: &'k [u8]) -> Self {
        Key::Bytes(bytes)
    }
}

impl<'k> From<&'k str> for Key<'k> {
    fn from(text: &'k str) -> Self {
        Key::Bytes(text.as_bytes())
    }
}

/// The servers of one tier on a ring.
#[derive(Debug, Clone)]
pub(super) struct Placement {
    ring: Arc<Ring>,
    /// The slot of each node of the ring.
    slots: Box<[u16]>,
}

impl Placement {
    /// `tier`: the servers with their slots. A ring takes time to build, so the one before is kept if it is the same.
    pub(super) fn new(tier: &[(u16, &Server)], before: Option<&Placement>) -> Result<Option<Self>, RingError> {
        if tier.is_empty() {
            return Ok(None);
        }
        // The order of the ring's nodes.
        let mut tier = tier.to_vec();
        tier.sort_unstable_by(|(_, a), (_, b)| a.name().cmp(b.name()));
        let nodes = || tier.iter().map(|(_, server)| server.node());
        let ring = match before {
            Some(before) if before.ring.nodes().iter().eq(nodes()) => Arc::clone(&before.ring),
            _ => Arc::new(Ring::new(nodes().cloned().collect::<Vec<Node>>())?),
        };
        Ok(Some(Placement { ring, slots: tier.iter().map(|(slot, _)| *slot).collect() }))
    }

    /// The first available server from the key on, by index; `None` for a key that is empty or when none is available.
    /// O(log points) for the owner; to pass over servers, O(n) and as many points as lie in between.
    pub(super) fn pick(&self, slots: &[Slot], key: Key<'_>, is_open: impl Fn(&Slot) -> bool) -> Option<usize> {
        let mut owners = self.ring.owners_from(key.hash()?).map(|node| usize::from(self.slots[node]));
        let owner = owners.next()?;
        if is_open(&slots[owner]) {
            return Some(owner);
        }
        // Not a step around a ring of millions of points in search of nobody.
        if !slots.iter().any(&is_open) {
            return None;
        }
        owners.find(|&index| is_open(&slots[index]))
    }
}
