//! What a shard has asked homes of durable groups on other nodes, and what it owes to other nodes as such a home. No
//! I/O; times are ticks of the shard.

use crate::groups::asked::Asker;
use crate::ids::NodeKey;
use crate::limits::ROOM_JOINS_WAITING_MAX;
use crate::mesh::wire::member_change;
use hashbrown::HashSet;
use std::collections::{BTreeMap, VecDeque};

/// A question waits so many ticks for its answer.
const ANSWER_TICKS: u32 = 30;

/// What has become of a membership, for another node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MemberNews {
    pub(crate) group: u64,
    pub(crate) user: u64,
    pub(crate) last: u64,
    pub(crate) change: u16,
}

impl MemberNews {
    /// Some of it got lost.
    pub(crate) const MISSED: MemberNews = MemberNews { group: 0, user: 0, last: 0, change: member_change::MISSED };
}

/// Both, of one shard.
#[derive(Debug, Default)]
pub(crate) struct Away {
    /// By their numbers, which is also the order in which they are due: by when, about which group, and who asked.
    asked: BTreeMap<u64, (u32, u64, Asker)>,
    last_number: u64,
    /// What could not be sent to a node, in order.
    owed: VecDeque<(NodeKey, MemberNews)>,
    /// Nodes that are to be told how far a group is, because a copy did not get there.
    heads: HashSet<(NodeKey, u64)>,
}

impl Away {
    /// Something is asked about a group. Returns its number.
    ///
    /// # Errors
    /// Who asked, if too many wait.
    pub(crate) fn begin(&mut self, group: u64, asker: Asker, tick: u32) -> Result<u64, Asker> {
        if self.asked.len() >= ROOM_JOINS_WAITING_MAX {
            return Err(asker);
        }
        self.last_number += 1;
        self.asked.insert(self.last_number, (tick + ANSWER_TICKS, group, asker));
        Ok(self.last_number)
    }

    /// It is answered, or will not be. Returns the group and who asked, unless that is over.
    pub(crate) fn take(&mut self, number: u64) -> Option<(u64, Asker)> {
        self.asked.remove(&number).map(|(_, group, asker)| (group, asker))
    }

    /// Questions whose time is over.
    pub(crate) fn expire(&mut self, tick: u32) -> Vec<(u64, Asker)> {
        let mut over = Vec::new();
        while let Some(first) = self.asked.first_entry().filter(|first| first.get().0 <= tick) {
            let (_, group, asker) = first.remove();
            over.push((group, asker));
        }
        over
    }

    /// Questions without an answer.
    pub(crate) fn waiting(&self) -> usize {
        self.asked.len()
    }

    /// What waits for nodes.
    pub(crate) fn owed(&self) -> usize {
        self.owed.len() + self.heads.len()
    }

    /// Whether something waits for a node.
    pub(crate) fn owes(&self, node: NodeKey) -> bool {
        self.owed.iter().any(|(to, _)| *to == node)
    }

    /// Something for a node waits. Beyond the bound it is told that it has missed something instead.
    pub(crate) fn owe(&mut self, node: NodeKey, news: MemberNews) {
        // What is told besides counts at once; the look at all sessions takes a while.
        let is_told = |(to, owed): &(NodeKey, MemberNews)| *to == node && *owed == MemberNews::MISSED;
        if news == MemberNews::MISSED && self.owed.iter().any(is_told) {
            return;
        }
        if self.owed.len() < ROOM_JOINS_WAITING_MAX {
            return self.owed.push_back((node, news));
        }
        // One word for each node that has some: there are few nodes.
        let mut nodes = vec![node];
        for (to, _) in self.owed.drain(..) {
            if !nodes.contains(&to) {
                nodes.push(to);
            }
        }
        self.owed.extend(nodes.into_iter().map(|to| (to, MemberNews::MISSED)));
    }

    /// What waits longest.
    pub(crate) fn next_owed(&mut self) -> Option<(NodeKey, MemberNews)> {
        self.owed.pop_front()
    }

    /// It could not be sent; whatever is for other nodes goes first the next time.
    pub(crate) fn owe_first(&mut self, node: NodeKey, news: MemberNews) {
        let (of_node, others): (VecDeque<_>, VecDeque<_>) = self.owed.drain(..).partition(|(to, _)| *to == node);
        self.owed = others;
        self.owed.push_back((node, news));
        self.owed.extend(of_node);
    }

    /// A node is to be told how far a group is. Beyond the bound it is told that it has missed something.
    pub(crate) fn owe_head(&mut self, node: NodeKey, group: u64) {
        if self.heads.len() < ROOM_JOINS_WAITING_MAX {
            self.heads.insert((node, group));
        } else if !self.heads.contains(&(node, group)) {
            self.owe(node, MemberNews::MISSED);
        }
    }

    /// All nodes that are to be told how far a group is.
    pub(crate) fn take_heads(&mut self) -> Vec<(NodeKey, u64)> {
        let mut heads: Vec<_> = self.heads.drain().collect();
        // Not in the order of a table.
        heads.sort_unstable_by_key(|(node, group)| (node.0, *group));
        heads
    }

    /// Nodes that are gone are told nothing.
    pub(crate) fn forget_nodes(&mut self, is_there: impl Fn(NodeKey) -> bool) {
        self.owed.retain(|(node, _)| is_there(*node));
        self.heads.retain(|(node, _)| is_there(*node));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asker(ask: u64) -> Asker {
        Asker::Node { node: NodeKey(1), shard: 0, ask }
    }

    fn news(user: u64) -> MemberNews {
        MemberNews { group: 7, user, last: 0, change: member_change::LEFT }
    }

    #[test]
    fn a_question_is_answered_once_or_given_up_in_time() {
        let mut away = Away::default();
        let first = away.begin(7, asker(1), 0).unwrap();
        let second = away.begin(8, asker(2), 5).unwrap();
        assert!(away.take(first).is_some() && away.take(first).is_none());
        assert!(away.expire(ANSWER_TICKS).is_empty());
        assert!(matches!(away.expire(ANSWER_TICKS + 5)[..], [(8, Asker::Node { ask: 2, .. })]));
        assert!(away.take(second).is_none() && away.waiting() == 0);
        assert!((0..ROOM_JOINS_WAITING_MAX as u64).all(|ask| away.begin(7, asker(ask), 9).is_ok()));
        assert!(away.begin(7, asker(0), 9).is_err());
        assert!(away.take(second + 1).is_some());
        assert!(away.begin(7, asker(0), 9).is_ok(), "one that is answered takes no room");
    }

    #[test]
    fn what_is_owed_to_a_node_keeps_its_order_and_has_a_bound() {
        let (a, b) = (NodeKey(1), NodeKey(2));
        let mut away = Away::default();
        [(a, 1), (a, 2), (b, 3)].into_iter().for_each(|(node, user)| away.owe(node, news(user)));
        assert!(away.owes(a) && away.owes(b));
        assert_eq!(away.next_owed(), Some((a, news(1))));
        away.owe_first(a, news(1));
        let order: Vec<_> = std::iter::from_fn(|| away.next_owed()).collect();
        assert_eq!(order, [(b, news(3)), (a, news(1)), (a, news(2))]);
        away.owe(b, news(9));
        (0..ROOM_JOINS_WAITING_MAX as u64).for_each(|user| away.owe(a, news(user)));
        let mut left: Vec<_> = std::iter::from_fn(|| away.next_owed()).collect();
        left.sort_by_key(|(node, _)| node.0);
        assert_eq!(left, [(a, MemberNews::MISSED), (b, MemberNews::MISSED)]);
        away.owe(a, MemberNews::MISSED);
        away.owe(a, news(1));
        away.owe(a, MemberNews::MISSED);
        assert_eq!(
            std::iter::from_fn(|| away.next_owed()).collect::<Vec<_>>(),
            [(a, MemberNews::MISSED), (a, news(1))]
        );
        away.owe(a, news(1));
        [(a, 9), (b, 8), (a, 9)].into_iter().for_each(|(node, group)| away.owe_head(node, group));
        away.forget_nodes(|node| node == b);
        assert!(!away.owes(a));
        assert_eq!((away.take_heads(), away.take_heads()), (vec![(b, 8)], vec![]));
    }
}
