//! Sessions whose groups the store could not be asked for, or of which it could not name all: each is asked for again
//! after a while of its own, which grows from one second to ten while it fails. So a master of the store that is down
//! costs no more than that, and holds up nobody whose groups are elsewhere. At most one entry for each session. No I/O;
//! times are ticks of the shard.

use crate::io::ConnId;
use hashbrown::HashMap;
use std::collections::BTreeSet;

/// How long a session waits after the first failure, and at most, ticks.
const WAIT_TICKS: u32 = 10;
const WAIT_TICKS_MAX: u32 = 100;

#[derive(Clone, Copy, Debug)]
struct Entry {
    conn: ConnId,
    user: u64,
    /// What its LOGIN says it has; `None` if its groups are looked at again.
    last_stamp: Option<u64>,
    wait_ticks: u32,
    /// When it is asked for; `None` while it is.
    due_tick: Option<u32>,
}

/// All of a shard.
#[derive(Debug, Default)]
pub(crate) struct Later {
    by_slot: HashMap<u32, Entry>,
    /// When, and for which slot.
    due: BTreeSet<(u32, u32)>,
}

impl Later {
    /// The groups of a session are to be asked for again.
    pub(crate) fn add(&mut self, conn: ConnId, user: u64, last_stamp: Option<u64>, tick: u32) {
        let fresh = Entry { conn, user, last_stamp, wait_ticks: 0, due_tick: None };
        let entry = self.by_slot.entry(conn.slot).or_insert(fresh);
        if let Some(due_tick) = entry.due_tick {
            if entry.conn == conn {
                entry.last_stamp = entry.last_stamp.or(last_stamp);
                return;
            }
            self.due.remove(&(due_tick, conn.slot));
        }
        if entry.conn != conn {
            *entry = fresh;
        }
        entry.last_stamp = last_stamp;
        entry.wait_ticks = (2 * entry.wait_ticks).clamp(WAIT_TICKS, WAIT_TICKS_MAX);
        let due_tick = tick.saturating_add(entry.wait_ticks);
        entry.due_tick = Some(due_tick);
        self.due.insert((due_tick, conn.slot));
    }

    /// The next session to ask for: connection, user, and what its LOGIN says it has.
    pub(crate) fn take_due(&mut self, tick: u32) -> Option<(ConnId, u64, Option<u64>)> {
        let (_, slot) = self.due.first().filter(|(due_tick, _)| *due_tick <= tick).copied()?;
        self.due.pop_first();
        let entry = self.by_slot.get_mut(&slot)?;
        entry.due_tick = None;
        Some((entry.conn, entry.user, entry.last_stamp))
    }

    /// Whether a session waits to be asked for.
    pub(crate) fn waits(&self, slot: u32) -> bool {
        self.by_slot.get(&slot).is_some_and(|entry| entry.due_tick.is_some())
    }

    /// The store has named all groups of a session, unless that was an answer to an earlier question.
    pub(crate) fn over(&mut self, slot: u32) {
        if !self.waits(slot) {
            self.by_slot.remove(&slot);
        }
    }

    /// The session has ended.
    pub(crate) fn end(&mut self, slot: u32) {
        if let Some(due_tick) = self.by_slot.remove(&slot).and_then(|entry| entry.due_tick) {
            self.due.remove(&(due_tick, slot));
        }
    }

    /// Sessions that wait.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.due.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conn(slot: u32, generation: u32) -> ConnId {
        ConnId { slot, generation }
    }

    #[test]
    fn a_session_is_asked_for_after_a_while_that_grows_while_it_fails() {
        let mut later = Later::default();
        let mut waits = Vec::new();
        let mut tick = 0;
        for _ in 0..6 {
            later.add(conn(1, 1), 5, Some(9), tick);
            assert!(later.waits(1) && later.take_due(tick).is_none());
            let began = tick;
            while later.take_due(tick).is_none() {
                tick += 1;
            }
            waits.push(tick - began);
        }
        assert_eq!(waits, [10, 20, 40, 80, 100, 100]);
        later.over(1);
        later.add(conn(1, 1), 5, None, tick);
        assert_eq!(later.take_due(tick + WAIT_TICKS), Some((conn(1, 1), 5, None)), "it begins anew");
        assert!(later.len() == 0 && !later.waits(1));
    }

    #[test]
    fn each_session_waits_once_and_the_next_one_in_its_slot_for_itself() {
        let mut later = Later::default();
        later.add(conn(1, 1), 5, None, 0);
        later.add(conn(1, 1), 5, Some(7), 3);
        later.add(conn(2, 1), 6, Some(8), 3);
        assert_eq!(later.len(), 2);
        later.over(1);
        assert_eq!(later.take_due(WAIT_TICKS), Some((conn(1, 1), 5, Some(7))), "an answer from before is not its");
        assert_eq!(later.take_due(WAIT_TICKS), None);
        later.add(conn(2, 2), 9, None, 50);
        assert_eq!((later.len(), later.take_due(49)), (1, None));
        assert_eq!(later.take_due(50 + WAIT_TICKS), Some((conn(2, 2), 9, None)));
        later.add(conn(3, 1), 4, None, 50);
        [2, 3].into_iter().for_each(|slot| later.end(slot));
        assert!(later.len() == 0 && later.by_slot.len() == 1);
    }
}
