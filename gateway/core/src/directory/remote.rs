//! Sessions of a home shard's users that other nodes hold.

use super::routing::NodeKey;
use crate::io::ConnId;

/// Set in the slot number of an entry of presence whose session is on another node; the rest is an index into
/// [`RemoteSessions`]. Slots of connections are below 2^20.
const REMOTE: u32 = 1 << 31;

/// Whether a slot number of presence stands for a session on another node.
#[inline]
pub const fn is_remote(slot: u32) -> bool {
    slot & REMOTE != 0
}

/// A session on another node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RemoteSession {
    pub(crate) node: NodeKey,
    pub(crate) shard: u16,
    pub(crate) conn: ConnId,
    pub(crate) user: u64,
    pub(crate) session: u64,
    /// How its device reads its inbox, see [`Wish::packed`](crate::desk::Wish::packed).
    pub(crate) wish: u16,
    /// Its place among all that this shard was told of, modulo 2^32; given by [`RemoteSessions::add`].
    pub(crate) told: u32,
}

/// All of them, numbered like slots so that presence needs no more room for them.
#[derive(Debug)]
pub struct RemoteSessions {
    sessions: Vec<Option<RemoteSession>>,
    free: Vec<u32>,
    sessions_max: usize,
    /// Sessions added so far, modulo 2^32.
    told: u32,
}

impl RemoteSessions {
    /// Room for `sessions_max` sessions, at most 2^31.
    pub(crate) fn new(sessions_max: usize) -> Self {
        RemoteSessions {
            sessions: Vec::new(),
            free: Vec::new(),
            sessions_max: sessions_max.min(REMOTE as usize),
            told: 0,
        }
    }

    /// Adds one. Returns the slot number for presence, or `None` when there is no room.
    pub(crate) fn add(&mut self, session: RemoteSession) -> Option<u32> {
        let session = RemoteSession { told: self.told, ..session };
        if let Some(index) = self.free.pop() {
            self.told = self.told.wrapping_add(1);
            self.sessions[index as usize] = Some(session);
            return Some(REMOTE | index);
        }
        if self.sessions.len() >= self.sessions_max {
            return None;
        }
        self.told = self.told.wrapping_add(1);
        self.sessions.push(Some(session));
        Some(REMOTE | (self.sessions.len() - 1) as u32)
    }

    /// The session behind a slot number of presence; `None` if that is a connection of this shard.
    #[inline]
    pub(crate) fn get(&self, slot: u32) -> Option<&RemoteSession> {
        if slot & REMOTE == 0 {
            return None;
        }
        self.sessions.get((slot & !REMOTE) as usize)?.as_ref()
    }

    /// Removes one by its slot number.
    pub(crate) fn remove(&mut self, slot: u32) -> Option<RemoteSession> {
        if slot & REMOTE == 0 {
            return None;
        }
        let index = slot & !REMOTE;
        let session = self.sessions.get_mut(index as usize)?.take()?;
        self.free.push(index);
        Some(session)
    }

    /// Slot numbers of all sessions for which `wanted` holds, looked for among `count` places from `from` on. Returns
    /// where to go on, or `None` at the end: a table of a million is not walked in one turn.
    pub(crate) fn find(
        &self,
        from: usize,
        count: usize,
        mut wanted: impl FnMut(&RemoteSession) -> bool,
        found: &mut Vec<u32>,
    ) -> Option<usize> {
        let end = from.saturating_add(count).min(self.sessions.len());
        for index in from..end {
            if self.sessions[index].as_ref().is_some_and(&mut wanted) {
                found.push(REMOTE | index as u32);
            }
        }
        (end < self.sessions.len()).then_some(end)
    }

    /// How many sessions have been added, modulo 2^32: those with a lower [`RemoteSession::told`] came before this
    /// moment.
    pub(crate) fn told(&self) -> u32 {
        self.told
    }

    /// Sessions held.
    pub(crate) fn len(&self) -> usize {
        self.sessions.len() - self.free.len()
    }

    /// Memory of so many sessions at most, in bytes: the table, twice while it grows, and the list of free places.
    pub const fn bytes_max(sessions_max: usize) -> usize {
        3 * sessions_max * size_of::<Option<RemoteSession>>() + 3 * sessions_max * size_of::<u32>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn session(user: u64, node: u64) -> RemoteSession {
        RemoteSession {
            node: NodeKey(node),
            shard: 3,
            conn: ConnId { slot: 7, generation: 1 },
            user,
            session: user * 10,
            wish: 0,
            told: 0,
        }
    }

    #[test]
    fn a_connection_of_this_shard_is_no_remote_session() {
        let mut remotes = RemoteSessions::new(4);
        remotes.add(session(1, 1)).unwrap();
        assert_eq!(remotes.get(0), None);
        assert_eq!(remotes.remove(0), None);
        assert_eq!(remotes.get(REMOTE | 9), None);
        assert_eq!(remotes.len(), 1);
    }

    #[test]
    fn a_walk_in_pieces_finds_each_once() {
        let mut remotes = RemoteSessions::new(1_000);
        let slots: Vec<u32> = (0..100).map(|user| remotes.add(session(user, user % 3)).unwrap()).collect();
        remotes.remove(slots[3]).unwrap();
        let (mut found, mut from) = (Vec::new(), Some(0));
        while let Some(at) = from {
            from = remotes.find(at, 7, |session| session.node == NodeKey(0), &mut found);
        }
        let expected: Vec<u32> = slots.iter().copied().step_by(3).filter(|slot| *slot != slots[3]).collect();
        assert_eq!(found, expected);
    }

    proptest! {
        #[test]
        fn it_is_a_bounded_map(acts in prop::collection::vec((any::<bool>(), 0_usize..20), 0..200)) {
            let mut remotes = RemoteSessions::new(8);
            let mut model: BTreeMap<u32, RemoteSession> = BTreeMap::new();
            for (number, (add, pick)) in acts.into_iter().enumerate() {
                if add {
                    let new = RemoteSession { told: remotes.told(), ..session(number as u64, 1) };
                    match remotes.add(new) {
                        Some(slot) => prop_assert_eq!(model.insert(slot, new), None),
                        None => prop_assert_eq!(model.len(), 8),
                    }
                } else if let Some(slot) = model.keys().copied().nth(pick) {
                    prop_assert_eq!(remotes.remove(slot), model.remove(&slot));
                    prop_assert_eq!(remotes.remove(slot), None);
                }
                prop_assert_eq!(remotes.len(), model.len());
                prop_assert!(model.iter().all(|(slot, session)| remotes.get(*slot) == Some(session)));
            }
        }
    }
}
