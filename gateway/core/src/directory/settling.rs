//! After a change of the view a new home shard waits for the others: each shard of each other node says when it has
//! registered all of its sessions whose home moved. Then a user who is unknown here is offline; before that nobody can
//! tell.

use super::remote::RemoteSession;
use super::routing::Routing;
use crate::ids::NodeKey;
use hashbrown::HashMap;

/// Who has said so, for which view.
#[derive(Debug)]
pub(crate) struct Settling {
    digest: u64,
    /// What the shards of each other node have said. Word may come before the view itself does.
    nodes: HashMap<NodeKey, Node>,
    /// Nodes of which a shard has not said so for the present view.
    missing: usize,
    /// When the wait is over in any case; 0 when nobody is waited for.
    deadline_tick: u32,
    settled: bool,
    /// All but these nodes, which are not reached, have said so; `None` while others have not.
    silent: Option<Vec<NodeKey>>,
}

/// Another node.
#[derive(Debug)]
struct Node {
    /// Of each of its shards the last word.
    shards: Box<[Option<Word>]>,
    /// How many of them have not said so for the present view.
    missing: usize,
}

/// A shard has registered everything for the view of this digest.
#[derive(Clone, Copy, Debug)]
struct Word {
    digest: u64,
    /// How many sessions had been told of by then.
    told: u32,
}

impl Settling {
    /// Nothing to wait for.
    pub(crate) fn new() -> Self {
        Settling { digest: 0, nodes: HashMap::new(), missing: 0, deadline_tick: 0, settled: true, silent: None }
    }

    /// There is a new view: waits until all others have said so, or until `deadline_tick`.
    pub(crate) fn begin(&mut self, routing: &Routing, deadline_tick: u32) {
        self.digest = routing.digest();
        self.deadline_tick = deadline_tick;
        let mut before = std::mem::take(&mut self.nodes);
        for member in routing.others() {
            let shards = before.remove(&member.key).map(|node| node.shards);
            let shards = shards.filter(|shards| shards.len() == member.shards as usize);
            let shards = shards.unwrap_or_else(|| vec![None; member.shards as usize].into());
            let missing = shards.iter().filter(|word| !is_of(word, self.digest)).count();
            self.nodes.insert(member.key, Node { shards, missing });
        }
        self.missing = self.nodes.values().filter(|node| node.missing > 0).count();
        self.settled = self.missing == 0;
        self.silent = None;
    }

    /// Looks who of the others is not reached, for [`Settling::waits_only_for`].
    pub(crate) fn look_without(&mut self, is_silent: impl Fn(NodeKey) -> bool) {
        let missing = self.nodes.iter().filter(|(_, node)| node.missing > 0).map(|(key, _)| *key);
        let mut missing: Vec<NodeKey> = missing.collect();
        // Not in the order of a table.
        missing.sort_unstable();
        self.silent = missing.iter().all(|node| is_silent(*node)).then_some(missing);
    }

    /// The nodes that are still waited for, if none of them is reached; `None` while one that is has not said so.
    pub(crate) fn waits_only_for(&self) -> Option<&[NodeKey]> {
        self.silent.as_deref()
    }

    /// A shard of another node has registered everything for the view with this digest; `told` as of
    /// [`RemoteSessions::told`]. Whether the wait is over, so that there may be something to forget: with this word, or
    /// before it, when it came late.
    ///
    /// [`RemoteSessions::told`]: super::RemoteSessions::told
    pub(crate) fn said(&mut self, node: NodeKey, shard: u16, digest: u64, told: u32) -> bool {
        // From a node that is no member, or a shard it does not have, there can be no word worth memory; a member's
        // next view brings another.
        let Some(node) = self.nodes.get_mut(&node) else { return false };
        let Some(word) = node.shards.get_mut(usize::from(shard)) else { return false };
        let had = is_of(word, self.digest);
        *word = Some(Word { digest, told });
        match (had, digest == self.digest) {
            (false, true) => {
                node.missing -= 1;
                self.missing -= usize::from(node.missing == 0);
            }
            // It has another view by now.
            (true, false) => {
                self.missing += usize::from(node.missing == 0);
                node.missing += 1;
            }
            (true, true) | (false, false) => {}
        }
        self.settled |= self.missing == 0;
        self.settled && digest == self.digest
    }

    /// Whether a shard of another node has said so for the present view last. It works with that view, unless there is
    /// a later one that has not come here.
    pub(crate) fn has_view(&self, node: NodeKey, shard: u16) -> bool {
        let word = self.nodes.get(&node).and_then(|node| node.shards.get(usize::from(shard)));
        word.is_some_and(|word| is_of(word, self.digest))
    }

    /// Whether an unknown user is offline.
    #[inline]
    pub(crate) fn is_settled(&self) -> bool {
        self.settled
    }

    /// Whether a session was told of before its shard had the present view. If this node is not its home in that view,
    /// it is not its to know. One told of since may belong to a view that has not come here.
    pub(crate) fn is_past(&self, session: &RemoteSession) -> bool {
        let word = self.nodes.get(&session.node).and_then(|node| *node.shards.get(usize::from(session.shard))?);
        word.is_some_and(|Word { digest, told }| {
            digest == self.digest && told.wrapping_sub(session.told).wrapping_sub(1) < u32::MAX / 2
        })
    }

    /// Lets time pass. True when the wait has just ended without word from all.
    pub(crate) fn expire(&mut self, tick: u32) -> bool {
        let over = !self.settled && tick >= self.deadline_tick;
        self.settled |= over;
        over
    }
}

fn is_of(word: &Option<Word>, digest: u64) -> bool {
    word.is_some_and(|word| word.digest == digest)
}

#[cfg(test)]
mod tests {
    use super::super::routing::tests::{key_of, view};
    use super::*;
    use trunkline_router_core::NodeState::Active;

    fn routing(nodes: &[(&str, u64)]) -> Routing {
        let nodes: Vec<_> = nodes.iter().map(|(name, incarnation)| (*name, *incarnation, Active)).collect();
        Routing::new(key_of("a", 1), &view(&nodes), key_of)
    }

    #[test]
    fn it_waits_for_every_shard_of_every_other_node() {
        let routing = routing(&[("a", 1), ("b", 1), ("c", 1)]);
        let mut settling = Settling::new();
        assert!(settling.is_settled());
        settling.begin(&routing, 100);
        for node in ["b", "c"] {
            for shard in 0..4 {
                assert!(!settling.is_settled());
                settling.said(key_of(node, 1), shard, routing.digest(), 0);
            }
        }
        assert!(settling.is_settled());
        assert!(!settling.expire(1_000), "it had ended before");
    }

    #[test]
    fn what_was_told_after_word_for_this_view_may_be_for_a_later_one() {
        let routing = routing(&[("a", 1), ("b", 1)]);
        let mut settling = Settling::new();
        settling.begin(&routing, 100);
        let conn = crate::io::ConnId { slot: 1, generation: 1 };
        let session =
            |shard, told| RemoteSession { node: key_of("b", 1), shard, conn, user: 1, session: 1, wish: 0, told };
        assert!(!settling.is_past(&session(2, 0)), "nothing was said");
        settling.said(key_of("b", 1), 2, routing.digest(), 7);
        assert!(settling.is_past(&session(2, 6)) && settling.is_past(&session(2, u32::MAX)));
        assert!(!settling.is_past(&session(2, 7)) && !settling.is_past(&session(2, 8)));
        assert!(!settling.is_past(&session(1, 6)), "another shard has not said so");
        settling.said(key_of("b", 1), 2, routing.digest() ^ 1, 9);
        assert!(!settling.is_past(&session(2, 6)), "that shard has another view");
    }

    #[test]
    fn word_about_another_view_does_not_count_until_that_view_is_here() {
        let before = routing(&[("a", 1), ("b", 1), ("c", 1)]);
        let after = routing(&[("a", 1), ("b", 1)]);
        let mut settling = Settling::new();
        settling.begin(&before, 100);
        for shard in 0..4 {
            settling.said(key_of("b", 1), shard, after.digest(), 0);
        }
        assert!(!settling.is_settled());
        settling.begin(&after, 100);
        assert!(settling.is_settled(), "b was ahead of this node");
    }

    #[test]
    fn a_silent_node_holds_nothing_up_for_ever() {
        let routing = routing(&[("a", 1), ("b", 1)]);
        let mut settling = Settling::new();
        settling.begin(&routing, 100);
        settling.said(key_of("b", 2), 0, routing.digest(), 0);
        settling.said(key_of("b", 1), 4, routing.digest(), 0);
        let words = settling.nodes.values().flat_map(|node| node.shards.iter().flatten()).count();
        assert_eq!(words, 0, "neither another incarnation nor a shard that is not there is kept");
        assert!(!settling.expire(99));
        assert!(settling.expire(100) && settling.is_settled());
    }

    #[test]
    fn who_is_not_reached_is_told_apart_from_who_is_late() {
        let routing = routing(&[("a", 1), ("b", 1), ("c", 1)]);
        let mut settling = Settling::new();
        settling.begin(&routing, 100);
        let c_is_silent = |node| node == key_of("c", 1);
        settling.look_without(c_is_silent);
        assert_eq!(settling.waits_only_for(), None, "b is reached and has not said so");
        for shard in 0..4 {
            settling.said(key_of("b", 1), shard, routing.digest(), 0);
        }
        settling.look_without(c_is_silent);
        assert_eq!((settling.waits_only_for(), settling.is_settled()), (Some(&[key_of("c", 1)][..]), false));
        settling.look_without(|_| false);
        assert_eq!(settling.waits_only_for(), None, "c is reached again");
    }

    #[test]
    fn a_shard_has_the_view_that_it_has_spoken_of_last() {
        let before = routing(&[("a", 1), ("b", 1), ("c", 1)]);
        let after = routing(&[("a", 1), ("b", 1)]);
        let mut settling = Settling::new();
        settling.begin(&before, 100);
        let b = key_of("b", 1);
        assert!(!settling.has_view(b, 0));
        settling.said(b, 0, before.digest(), 0);
        assert!(settling.has_view(b, 0) && !settling.has_view(b, 1), "another shard of b has said nothing");
        settling.begin(&after, 200);
        assert!(!settling.has_view(b, 0), "b has said nothing of this view");
        settling.said(b, 0, after.digest(), 0);
        assert!(settling.has_view(b, 0));
        settling.said(b, 0, before.digest(), 0);
        assert!(!settling.has_view(b, 0), "b has another one by now");
        assert!(!settling.has_view(key_of("b", 2), 0) && !settling.has_view(b, 4), "there is no such shard");
    }

    /// What is counted as words come is what counting all of them would find.
    #[test]
    fn the_count_of_those_who_are_missing_is_right_whatever_comes() {
        let mut rng = crate::io::sim::Rng::new(11);
        let names = ["a", "b", "c", "d", "e"];
        let mut settling = Settling::new();
        let mut routing_now = routing(&[("a", 1)]);
        let mut words = std::collections::BTreeMap::new();
        for step in 0..20_000 {
            if rng.chance(20) {
                let nodes: Vec<(&str, u64)> = names.iter().filter(|_| rng.chance(700)).map(|name| (*name, 1)).collect();
                routing_now = routing(&nodes);
                words.retain(|(node, _), _| routing_now.others().any(|member| member.key == *node));
                settling.begin(&routing_now, u32::MAX);
            } else {
                let (node, shard) = (key_of(names[rng.below(5) as usize], 1), rng.below(5) as u16);
                let digest = if rng.chance(900) { routing_now.digest() } else { rng.below(3) };
                settling.said(node, shard, digest, step);
                if shard < 4 && routing_now.others().any(|member| member.key == node) {
                    words.insert((node, shard), digest);
                }
            }
            let said = |node, shard| words.get(&(node, shard)) == Some(&routing_now.digest());
            let missing: Vec<NodeKey> = routing_now
                .others()
                .map(|member| member.key)
                .filter(|node| (0..4).any(|shard| !said(*node, shard)))
                .collect();
            assert_eq!(settling.missing, missing.len(), "step {step}");
            assert!(settling.is_settled() || !missing.is_empty(), "step {step}");
            settling.look_without(|_| true);
            assert_eq!(settling.waits_only_for(), Some(&missing[..]), "step {step}");
        }
    }

    #[test]
    fn a_node_alone_waits_for_nobody() {
        let routing = routing(&[("a", 1)]);
        let mut settling = Settling::new();
        settling.begin(&routing, 100);
        assert!(settling.is_settled());
    }
}
