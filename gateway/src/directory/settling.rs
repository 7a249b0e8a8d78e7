//! After a change of the view a new home shard waits for the others: each shard of each other node says when it has registered all of its
//! sessions whose home moved. Then a user who is unknown here is offline; before that nobody can tell.

use super::remote::RemoteSession;
use super::routing::{Member, NodeKey, Routing};
use hashbrown::HashMap;

/// Who has said so, for which view.
#[derive(Debug)]
pub(crate) struct Settling {
    digest: u64,
    /// The view for which each shard of each node has last said so, and how many sessions had been told of by then. Word may come before the
    /// view itself does.
    said: HashMap<(NodeKey, u16), (u64, u32)>,
    /// When the wait is over in any case; 0 when nobody is waited for.
    deadline_tick: u32,
    settled: bool,
    /// All but these nodes, which are not reached, have said so; `None` while others have not.
    silent: Option<Vec<NodeKey>>,
}

impl Settling {
    /// Nothing to wait for.
    pub(crate) fn new() -> Self {
        Settling { digest: 0, said: HashMap::new(), deadline_tick: 0, settled: true, silent: None }
    }

    /// There is a new view: waits until all others have said so, or until `deadline_tick`.
    pub(crate) fn begin(&mut self, routing: &Routing, deadline_tick: u32) {
        self.digest = routing.digest();
        self.deadline_tick = deadline_tick;
        self.said.retain(|(node, _), _| routing.member(*node).is_some());
        self.settled = false;
        self.silent = None;
        self.look(routing);
    }

    /// Looks who of the others is not reached, for [`Settling::waits_only_for`].
    pub(crate) fn look_without(&mut self, routing: &Routing, is_silent: impl Fn(NodeKey) -> bool) {
        let missing = routing.others().filter(|member| !self.has_said_all(member)).map(|member| member.key);
        let missing: Vec<NodeKey> = missing.collect();
        self.silent = missing.iter().all(|node| is_silent(*node)).then_some(missing);
    }

    /// The nodes that are still waited for, if none of them is reached; `None` while one that is has not said so.
    pub(crate) fn waits_only_for(&self) -> Option<&[NodeKey]> {
        self.silent.as_deref()
    }

    /// A shard of another node has registered everything for the view with this digest; `told` as of [`RemoteSessions::told`]. Whether the wait
    /// is over, so that there may be something to forget: with this word, or before it, when it came late.
    ///
    /// [`RemoteSessions::told`]: super::RemoteSessions::told
    pub(crate) fn said(&mut self, routing: &Routing, node: NodeKey, shard: u16, digest: u64, told: u32) -> bool {
        // From a node that is no member, or a shard it does not have, there can be no word worth memory; a member's next view brings another.
        let known = routing.member(node).is_some_and(|member| u32::from(shard) < member.shards);
        if known {
            self.said.insert((node, shard), (digest, told));
            self.look(routing);
        }
        known && self.settled && digest == self.digest
    }

    /// Whether an unknown user is offline.
    #[inline]
    pub(crate) fn is_settled(&self) -> bool {
        self.settled
    }

    /// Whether a session was told of before its shard had the present view. If this node is not its home in that view, it is not its to know.
    /// One told of since may belong to a view that has not come here.
    pub(crate) fn is_past(&self, session: &RemoteSession) -> bool {
        self.said.get(&(session.node, session.shard)).is_some_and(|(digest, told)| {
            *digest == self.digest && told.wrapping_sub(session.told).wrapping_sub(1) < u32::MAX / 2
        })
    }

    /// Lets time pass. True when the wait has just ended without word from all.
    pub(crate) fn expire(&mut self, tick: u32) -> bool {
        let over = !self.settled && tick >= self.deadline_tick;
        self.settled |= over;
        over
    }

    fn look(&mut self, routing: &Routing) {
        let all = routing.others().all(|member| self.has_said_all(member));
        self.settled |= all;
    }

    fn has_said_all(&self, member: &Member) -> bool {
        let has_said = |shard| self.said.get(&(member.key, shard)).is_some_and(|(digest, _)| *digest == self.digest);
        (0..member.shards).all(|shard| has_said(shard as u16))
    }
}

#[cfg(test)]
mod tests {
    use super::super::routing::tests::{key_of, view};
    use super::*;
    use trunkline_router::NodeState::Active;

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
                settling.said(&routing, key_of(node, 1), shard, routing.digest(), 0);
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
        let session = |shard, told| RemoteSession { node: key_of("b", 1), shard, conn, user: 1, session: 1, told };
        assert!(!settling.is_past(&session(2, 0)), "nothing was said");
        settling.said(&routing, key_of("b", 1), 2, routing.digest(), 7);
        assert!(settling.is_past(&session(2, 6)) && settling.is_past(&session(2, u32::MAX)));
        assert!(!settling.is_past(&session(2, 7)) && !settling.is_past(&session(2, 8)));
        assert!(!settling.is_past(&session(1, 6)), "another shard has not said so");
        settling.said(&routing, key_of("b", 1), 2, routing.digest() ^ 1, 9);
        assert!(!settling.is_past(&session(2, 6)), "that shard has another view");
    }

    #[test]
    fn word_about_another_view_does_not_count_until_that_view_is_here() {
        let before = routing(&[("a", 1), ("b", 1), ("c", 1)]);
        let after = routing(&[("a", 1), ("b", 1)]);
        let mut settling = Settling::new();
        settling.begin(&before, 100);
        for shard in 0..4 {
            settling.said(&before, key_of("b", 1), shard, after.digest(), 0);
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
        settling.said(&routing, key_of("b", 2), 0, routing.digest(), 0);
        settling.said(&routing, key_of("b", 1), 4, routing.digest(), 0);
        assert!(settling.said.is_empty(), "neither another incarnation nor a shard that is not there is kept");
        assert!(!settling.expire(99));
        assert!(settling.expire(100) && settling.is_settled());
    }

    #[test]
    fn who_is_not_reached_is_told_apart_from_who_is_late() {
        let routing = routing(&[("a", 1), ("b", 1), ("c", 1)]);
        let mut settling = Settling::new();
        settling.begin(&routing, 100);
        let c_is_silent = |node| node == key_of("c", 1);
        settling.look_without(&routing, c_is_silent);
        assert_eq!(settling.waits_only_for(), None, "b is reached and has not said so");
        for shard in 0..4 {
            settling.said(&routing, key_of("b", 1), shard, routing.digest(), 0);
        }
        settling.look_without(&routing, c_is_silent);
        assert_eq!((settling.waits_only_for(), settling.is_settled()), (Some(&[key_of("c", 1)][..]), false));
        settling.look_without(&routing, |_| false);
        assert_eq!(settling.waits_only_for(), None, "c is reached again");
    }

    #[test]
    fn a_node_alone_waits_for_nobody() {
        let routing = routing(&[("a", 1)]);
        let mut settling = Settling::new();
        settling.begin(&routing, 100);
        assert!(settling.is_settled());
    }
}
