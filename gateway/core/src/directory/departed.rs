//! Lives of nodes that are over: what they had under way must not arrive any more.
//!
//! A node that was fenced tells its senders that what others owe it has failed, and comes back in a new life. Of the
//! life before others may still hold messages that wait for views to agree; passed on after that, they would be
//! delivered though they were told to have failed.

use super::NodeKey;
use hashbrown::HashSet;
use std::collections::VecDeque;

/// Lives that are remembered. What waits does so for seconds; a cluster that loses more in that time has other
/// troubles.
const LIVES_MAX: usize = 256;

/// The latest lives that have gone from the view without having drained.
#[derive(Debug, Default)]
pub(crate) struct Departed {
    lives: HashSet<NodeKey>,
    /// In the order in which they went; some may be back.
    order: VecDeque<NodeKey>,
}

impl Departed {
    /// A life is over, or not in the view for now.
    pub(crate) fn add(&mut self, life: NodeKey) {
        if self.lives.insert(life) {
            self.order.push_back(life);
        }
        while self.order.len() > LIVES_MAX {
            if let Some(oldest) = self.order.pop_front() {
                self.lives.remove(&oldest);
            }
        }
    }

    /// These are in the view: those among them that had gone are back.
    pub(crate) fn are_back(&mut self, members: impl Iterator<Item = NodeKey>) {
        if !self.lives.is_empty() {
            members.for_each(|life| _ = self.lives.remove(&life));
            self.order.retain(|life| self.lives.contains(life));
        }
    }

    /// Whether this life is over.
    #[inline]
    pub(crate) fn has(&self, life: NodeKey) -> bool {
        !self.lives.is_empty() && self.lives.contains(&life)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_lives_are_remembered_until_they_are_back() {
        let mut departed = Departed::default();
        (0..LIVES_MAX as u64 + 3).for_each(|life| departed.add(NodeKey(life)));
        assert!(!departed.has(NodeKey(2)) && departed.has(NodeKey(3)));
        departed.add(NodeKey(3));
        assert_eq!(departed.lives.len(), departed.order.len(), "twice is once");
        departed.are_back([NodeKey(3), NodeKey(5_000)].into_iter());
        assert!(!departed.has(NodeKey(3)) && departed.has(NodeKey(4)));
        assert_eq!(departed.lives.len(), departed.order.len());
    }
}
