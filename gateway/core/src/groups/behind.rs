//! Sessions that were not given something of a group: they are told so by HEADS as soon as their outbox has room, and
//! ask for it with SYNC.

use crate::io::ConnId;
use hashbrown::HashMap;
use std::collections::VecDeque;

/// Groups that are remembered of one session; with more it is told of all its groups.
const GROUPS_MAX: usize = 64;

/// What a session is behind in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Missed {
    /// These groups.
    Groups(Vec<u64>),
    /// More than are worth a list.
    All,
}

/// The sessions of a shard that are behind.
#[derive(Debug, Default)]
pub(crate) struct Behind {
    sessions: HashMap<ConnId, Missed>,
    /// In the order in which they are looked at; some may be gone.
    order: VecDeque<ConnId>,
}

impl Behind {
    /// A session was not given something of a group.
    pub(crate) fn note(&mut self, conn: ConnId, group: u64) {
        let missed = self.sessions.entry(conn).or_insert_with(|| {
            self.order.push_back(conn);
            Missed::Groups(Vec::new())
        });
        let Missed::Groups(groups) = missed else { return };
        if groups.contains(&group) {
            return;
        }
        if groups.len() < GROUPS_MAX {
            groups.push(group);
        } else {
            *missed = Missed::All;
        }
    }

    /// The next session to look at, at most once each in a round of as many as there are.
    pub(crate) fn next(&mut self) -> Option<ConnId> {
        self.order.pop_front()
    }

    /// It is looked at later.
    pub(crate) fn later(&mut self, conn: ConnId) {
        self.order.push_back(conn);
    }

    /// What a session is behind in; it counts as told.
    pub(crate) fn take(&mut self, conn: ConnId) -> Option<Missed> {
        self.sessions.remove(&conn)
    }

    /// Sessions that are behind, and some that have gone.
    pub(crate) fn len(&self) -> usize {
        self.order.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_behind_in_each_group_once_and_at_last_in_all() {
        let mut behind = Behind::default();
        let conn = |slot| ConnId { slot, generation: 1 };
        for group in [5, 6, 5] {
            behind.note(conn(1), group);
        }
        (0..100).for_each(|group| behind.note(conn(2), group));
        assert_eq!(behind.len(), 2);
        assert_eq!(behind.next(), Some(conn(1)));
        behind.later(conn(1));
        assert_eq!(behind.next(), Some(conn(2)));
        assert_eq!(behind.take(conn(2)), Some(Missed::All));
        assert_eq!((behind.next(), behind.next()), (Some(conn(1)), None));
        assert_eq!(behind.take(conn(1)), Some(Missed::Groups(vec![5, 6])));
        assert_eq!(behind.take(conn(1)), None);
    }
}
