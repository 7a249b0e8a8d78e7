//! Messages with ACK whose answer another node owes: so that each gets exactly one, also when that node dies.

use crate::ids::NodeKey;
use crate::io::ConnId;
use hashbrown::HashMap;
use std::collections::VecDeque;

/// A message that was handed to another node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Away {
    /// The sender's connection, and its shard: this one, unless the message waited here for a recipient whose home has
    /// moved away since.
    pub(crate) shard: u16,
    pub(crate) conn: ConnId,
    pub(crate) id: u64,
    /// The recipient.
    pub(crate) to: u64,
}

#[derive(Clone, Copy, Debug)]
struct Owed {
    node: NodeKey,
    deadline_tick: u32,
}

/// All messages a shard has sent away that another node is to answer.
///
/// A deadline ends the wait for a node that lives and does not answer: it may have forwarded the message to one that
/// then died. It lies behind the last redelivery that the home tries, so that a slow recipient does not run into it.
#[derive(Debug)]
pub(crate) struct SentAway {
    owed: HashMap<Away, Owed>,
    /// In the order of their deadlines, which are all equally far ahead. Those answered meanwhile, or sent again under
    /// their id, are skipped.
    by_deadline: VecDeque<(u32, Away)>,
    messages_max: usize,
    wait_ticks: u32,
}

impl SentAway {
    /// Room for `messages_max` messages, each given up after `wait_ticks`.
    pub(crate) fn new(messages_max: usize, wait_ticks: u32) -> Self {
        SentAway { owed: HashMap::new(), by_deadline: VecDeque::new(), messages_max, wait_ticks }
    }

    /// Whether one more may be handed over.
    pub(crate) fn has_room(&self) -> bool {
        self.owed.len() < self.messages_max
    }

    /// Notes a message that `node` is to answer. A sender that uses an id again while the first is under way gets one
    /// answer for both.
    pub(crate) fn add(&mut self, away: Away, node: NodeKey, tick: u32) {
        let deadline_tick = tick + self.wait_ticks;
        self.owed.insert(away, Owed { node, deadline_tick });
        self.by_deadline.push_back((deadline_tick, away));
        if self.by_deadline.len() > 2 * self.messages_max.max(64) {
            self.sweep();
        }
    }

    /// From now on `node` is to answer for a message. False if its sender has been told already what became of it.
    pub(crate) fn hand_to(&mut self, away: Away, node: NodeKey, tick: u32) -> bool {
        let is_owed = self.owed.contains_key(&away);
        if is_owed {
            self.add(away, node, tick);
        }
        is_owed
    }

    /// The answer has come: true if it is still to be given.
    pub(crate) fn answered(&mut self, away: Away) -> bool {
        self.owed.remove(&away).is_some()
    }

    /// Takes out what `node`, which is gone, will not answer.
    pub(crate) fn take_of(&mut self, node: NodeKey) -> Vec<Away> {
        let mut taken: Vec<Away> = self.owed.extract_if(|_, owed| owed.node == node).map(|(away, _)| away).collect();
        // The order of a hash table is random; answers shall not be.
        taken.sort_unstable_by_key(|away| (away.shard, away.conn.slot, away.id, away.to));
        taken
    }

    /// Takes out everything: this node has a new incarnation, and no answer will find it.
    pub(crate) fn take_all(&mut self) -> Vec<Away> {
        self.by_deadline.clear();
        let mut taken: Vec<Away> = self.owed.drain().map(|(away, _)| away).collect();
        taken.sort_unstable_by_key(|away| (away.shard, away.conn.slot, away.id, away.to));
        taken
    }

    /// Takes out one message whose time is over.
    pub(crate) fn take_overdue(&mut self, tick: u32) -> Option<Away> {
        while let Some((deadline_tick, away)) = self.by_deadline.front().copied() {
            let waits = self.owed.get(&away).is_some_and(|owed| owed.deadline_tick == deadline_tick);
            if waits && deadline_tick > tick {
                return None;
            }
            self.by_deadline.pop_front();
            if waits {
                self.owed.remove(&away);
                return Some(away);
            }
        }
        None
    }

    /// Messages under way.
    pub(crate) fn len(&self) -> usize {
        self.owed.len()
    }

    /// Forgets the places of those that were answered.
    fn sweep(&mut self) {
        let owed = &self.owed;
        self.by_deadline.retain(|(deadline, away)| owed.get(away).is_some_and(|owed| owed.deadline_tick == *deadline));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn away(id: u64) -> Away {
        Away { shard: 0, conn: ConnId { slot: 1, generation: 1 }, id, to: 9 }
    }

    #[test]
    fn each_message_is_answered_once() {
        let mut sent = SentAway::new(10, 50);
        sent.add(away(1), NodeKey(1), 0);
        assert!(sent.answered(away(1)));
        assert!(!sent.answered(away(1)), "a second answer is none");
        assert_eq!(sent.take_overdue(1_000), None);
    }

    #[test]
    fn a_dead_node_owes_nothing_any_more_and_others_do() {
        let mut sent = SentAway::new(10, 50);
        for id in 0..6 {
            sent.add(away(id), NodeKey(id % 2), 0);
        }
        assert_eq!(sent.take_of(NodeKey(1)), [away(1), away(3), away(5)]);
        assert_eq!(sent.len(), 3);
        assert!(!sent.answered(away(1)) && sent.answered(away(2)));
        assert_eq!(sent.take_all(), [away(0), away(4)]);
        assert_eq!((sent.len(), sent.take_overdue(1_000)), (0, None));
    }

    #[test]
    fn whoever_has_a_message_last_owes_its_answer() {
        let mut sent = SentAway::new(10, 50);
        sent.add(away(1), NodeKey(1), 0);
        assert!(sent.hand_to(away(1), NodeKey(2), 30) && !sent.hand_to(away(2), NodeKey(2), 30));
        assert_eq!(sent.take_of(NodeKey(1)), []);
        assert_eq!(sent.take_overdue(79), None, "it has its time anew");
        assert_eq!((sent.take_overdue(80), sent.len()), (Some(away(1)), 0));
        assert!(!sent.hand_to(away(1), NodeKey(3), 90), "its sender has been told that it failed");
        assert_eq!(sent.take_of(NodeKey(3)), []);
    }

    #[test]
    fn deadlines_are_exact_and_in_order() {
        let mut sent = SentAway::new(10, 50);
        sent.add(away(1), NodeKey(1), 0);
        sent.add(away(2), NodeKey(1), 10);
        assert_eq!(sent.take_overdue(49), None);
        assert_eq!(sent.take_overdue(50), Some(away(1)));
        assert_eq!(sent.take_overdue(59), None);
        assert_eq!(sent.take_overdue(60), Some(away(2)));
        assert_eq!(sent.len(), 0);
    }

    #[test]
    fn answered_messages_do_not_pile_up() {
        let mut sent = SentAway::new(4, 1_000_000);
        for id in 0..10_000 {
            assert!(sent.has_room());
            sent.add(away(id), NodeKey(1), 0);
            assert!(sent.answered(away(id)));
            assert!(sent.by_deadline.len() <= 129);
        }
    }

    proptest! {
        #[test]
        fn every_message_ends_in_exactly_one_way(acts in prop::collection::vec((0_u8..4, 0_u64..8), 0..300)) {
            let mut sent = SentAway::new(1_000, 20);
            let mut open = std::collections::BTreeSet::new();
            let mut tick = 0;
            for (act, id) in acts {
                match act {
                    0 => {
                        sent.add(away(id), NodeKey(id % 2), tick);
                        open.insert(id);
                    }
                    1 => prop_assert_eq!(sent.answered(away(id)), open.remove(&id)),
                    2 => {
                        for gone in sent.take_of(NodeKey(id % 2)) {
                            prop_assert!(open.remove(&gone.id));
                        }
                        prop_assert!(open.iter().all(|open| open % 2 != id % 2));
                    }
                    _ => {
                        tick += id as u32 * 3;
                        while let Some(gone) = sent.take_overdue(tick) {
                            prop_assert!(open.remove(&gone.id));
                        }
                    }
                }
                prop_assert_eq!(sent.len(), open.len());
            }
            while let Some(gone) = sent.take_overdue(tick + 21) {
                prop_assert!(open.remove(&gone.id));
            }
            prop_assert!(open.is_empty());
        }
    }
}
