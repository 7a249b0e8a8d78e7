//! A change of the view: what is known of users while their new homes are being told of their sessions, and when that
//! is over. What is sent and refused because of it is in `core/moves.rs`.

use super::{Directory, EARLY_ACKS_MAX, Home, Routing, ViewWalk, WalkStep};
use crate::ids::NodeKey;
use hashbrown::HashSet;
use std::sync::Arc;

/// Views that may follow each other without one settling before all users wait.
const VIEWS_MAX: usize = 16;

/// The end of a view change.
#[derive(Debug)]
pub(crate) struct ViewSettled {
    /// How long the other nodes took to tell of their sessions, microseconds; `None` if this was told before.
    pub(crate) took_us: Option<u64>,
    /// Users for whom messages wait here, and of whom nobody may have told of a session.
    pub(crate) orphans: HashSet<u64>,
}

impl Directory {
    /// The home of a user in the present view; `None` when there is none.
    #[inline]
    pub(crate) fn home(&self, user: u64) -> Option<Home> {
        self.routing.as_ref().map(|routing| self.known.home(routing, user))
    }

    /// There is a new view: its homes wait for the others until `deadline_tick` at most, and the walk begins anew.
    pub(crate) fn begin_view(&mut self, next: Arc<Routing>, deadline_tick: u32, now_us: u64) {
        let settled = self.settling.is_settled();
        self.settling.begin(&next, deadline_tick);
        self.unsettled = true;
        self.telling_since_us = Some(now_us);
        self.settling_since_us = Some(now_us);
        // What was not told of to the end has to be told of as a whole.
        let told = self.has_told();
        let own = next.own();
        let before = self.routing.replace(next).filter(|before| before.own() == own);
        let known = before.clone().filter(|_| told);
        self.walk = Some(ViewWalk { before: known, step: WalkStep::Sessions { slot: 0 } });
        self.note_before(before, settled);
    }

    /// Keeps the views since the last one that has settled.
    fn note_before(&mut self, before: Option<Arc<Routing>>, settled: bool) {
        let since = &mut self.before;
        let Some(before) = before else { return since.clear() };
        if settled {
            since.clear();
            since.push(before);
        } else if since.len() >= VIEWS_MAX {
            since.clear();
        } else if !since.is_empty() {
            since.push(before);
        }
        debug_assert!(self.before.len() <= VIEWS_MAX);
    }

    /// The view before the present one has ended, where nodes share a store; see
    /// [`FormerViews::ended`](super::former::FormerViews::ended).
    pub(crate) fn view_ended(&mut self, view: Option<Arc<Routing>>, until_tick: u32) {
        self.former.ended(view, until_tick);
    }

    /// Whether another node may have been the home of a user a moment ago. Costs nothing when no view has ended lately.
    #[inline]
    pub(crate) fn had_other_home(&self, user: u64, tick: u32) -> bool {
        self.former.had_other_home(user, tick)
    }

    /// Forgets views that do not matter any more.
    pub(crate) fn expire_former(&mut self, tick: u32) {
        self.former.expire(tick);
    }

    /// Whether the walk has told of all sessions.
    fn has_told(&self) -> bool {
        self.walk.as_ref().is_none_or(|walk| matches!(walk.step, WalkStep::Sweep { .. }))
    }

    /// A node that lives on has lost what was told to it: the walk begins anew, and tells of all.
    pub(crate) fn walk_again(&mut self) {
        self.walk = Some(ViewWalk { before: None, step: WalkStep::Sessions { slot: 0 } });
    }

    /// Takes the walk, to go on with it.
    #[inline]
    pub(crate) fn take_walk(&mut self) -> Option<ViewWalk> {
        self.walk.take()
    }

    /// The walk is not over, and goes on later.
    pub(crate) fn put_walk(&mut self, walk: ViewWalk) {
        debug_assert!(self.walk.is_none(), "one walk at a time");
        self.walk = Some(walk);
    }

    /// Whether a change of the view is under way: others have not told of all their sessions, or this shard has not.
    #[inline]
    pub(crate) fn is_changing(&self) -> bool {
        self.walk.is_some() || !self.settling.is_settled()
    }

    /// The other nodes have been told of all sessions. How long that took, microseconds; `None` if it was known before.
    pub(crate) fn told_all(&mut self, now_us: u64) -> Option<u64> {
        self.telling_since_us.take().map(|since_us| now_us.saturating_sub(since_us))
    }

    /// A shard of another node has told of all its sessions for the view of that digest.
    pub(crate) fn said(&mut self, node: NodeKey, shard: u16, digest: u64) {
        let told = self.remotes.told();
        self.unsettled |= self.settling.said(node, shard, digest, told);
    }

    /// Ends the view change, once, when the wait for the others is over: what was kept because of it is forgotten, and
    /// the walk sweeps what they had told of for earlier views.
    #[inline]
    pub(crate) fn settle(&mut self, now_us: u64) -> Option<ViewSettled> {
        if !self.settling.is_settled() || !std::mem::take(&mut self.unsettled) {
            return None;
        }
        Some(self.settled(now_us))
    }

    #[cold]
    fn settled(&mut self, now_us: u64) -> ViewSettled {
        let took_us = self.settling_since_us.take().map(|since_us| now_us.saturating_sub(since_us));
        self.before.clear();
        if self.has_told() && self.routing.is_some() {
            self.walk = Some(ViewWalk { before: None, step: WalkStep::Sweep { from: 0 } });
        }
        self.early_acks.clear();
        ViewSettled { took_us, orphans: std::mem::take(&mut self.orphans) }
    }

    /// Whether this node became the home of a user with the present view or one shortly before, and not all that
    /// matters to the user has been told since.
    #[inline]
    pub(crate) fn is_unsettled(&self, user: u64) -> bool {
        !self.settling.is_settled() && self.waits_for_others(user)
    }

    fn waits_for_others(&self, user: u64) -> bool {
        let before = &self.before;
        // Whose home has been here all the time does not wait for anybody.
        if !before.is_empty() && before.iter().all(|routing| routing.home(user) == Home::Here) {
            return false;
        }
        // Of those that are not reached, only a home of before may still act as one.
        let acts = |silent: &[NodeKey]| {
            let mut homes = before.iter().map(|routing| routing.home(user));
            homes.any(|home| matches!(home, Home::There { node, .. } if silent.contains(&node)))
        };
        self.settling.waits_only_for().is_none_or(|silent| before.is_empty() || acts(silent))
    }

    /// Messages wait here for a user of whom nobody has told of a session.
    pub(crate) fn orphan(&mut self, user: u64) {
        self.orphans.insert(user);
    }

    /// Users for whom messages wait and of whom nobody has told of a session.
    pub(crate) fn orphans(&self) -> impl Iterator<Item = u64> {
        self.orphans.iter().copied()
    }

    /// An ACK has come before its message did, from the message's former home. One that finds no place costs a
    /// redelivery.
    pub(crate) fn note_early_ack(&mut self, user: u64, stamp: u64) {
        if self.early_acks.len() < EARLY_ACKS_MAX {
            self.early_acks.insert((user, stamp));
        }
    }

    /// Whether the ACK of a message has come before the message did. It is forgotten with that.
    pub(crate) fn take_early_ack(&mut self, user: u64, stamp: u64) -> bool {
        self.early_acks.remove(&(user, stamp))
    }

    /// A session of a user has begun or ended: `before` and `after`, whether the user had, and has, sessions at other
    /// nodes and none here.
    #[inline]
    pub(crate) fn count_remote_only(&mut self, before: bool, after: bool) {
        self.remote_only_users += usize::from(after);
        debug_assert!(self.remote_only_users >= usize::from(before), "more are forgotten than were counted");
        self.remote_only_users -= usize::from(before);
    }

    /// Users with sessions at other nodes and none here.
    pub(crate) fn remote_only_users(&self) -> usize {
        self.remote_only_users
    }
}

#[cfg(test)]
mod tests {
    use super::super::routing::tests::routing;
    use super::*;
    use trunkline_router_core::NodeState::Active;

    const NODES: [(&str, u64, trunkline_router_core::NodeState); 2] = [("a", 1, Active), ("b", 1, Active)];

    fn directory() -> Directory {
        Directory::new(&crate::limits::Limits::default(), 50)
    }

    #[test]
    fn a_view_change_ends_once_and_hands_out_who_waited() {
        let mut directory = directory();
        assert!(directory.settle(1).is_none() && !directory.is_changing(), "there was none");
        let (one, two) = (Arc::new(routing(("a", 1), &NODES[..1])), Arc::new(routing(("a", 1), &NODES)));
        directory.begin_view(one, 100, 5);
        assert!(
            directory.settling.is_settled() && directory.is_changing(),
            "nobody is waited for, and the walk has begun"
        );
        assert_eq!(directory.settle(9).map(|settled| settled.took_us), Some(Some(4)));
        directory.take_walk();
        directory.begin_view(two, 100, 10);
        directory.orphan(7);
        directory.note_early_ack(7, 1);
        assert!(directory.settle(20).is_none(), "b has not said so");
        assert!(!directory.settling.expire(99) && directory.settling.expire(100));
        let settled = directory.settle(30).expect("the time is over");
        assert_eq!((settled.took_us, settled.orphans.into_iter().collect::<Vec<u64>>()), (Some(20), vec![7]));
        assert!(directory.settle(40).is_none(), "it ends once");
        assert!(!directory.take_early_ack(7, 1) && directory.orphans().next().is_none());
    }

    #[test]
    fn whose_home_has_been_here_all_the_time_waits_for_nobody() {
        let mut directory = directory();
        let (one, two) = (Arc::new(routing(("a", 1), &NODES[..1])), Arc::new(routing(("a", 1), &NODES)));
        directory.begin_view(two.clone(), 100, 0);
        assert!((1..50).all(|user| directory.is_unsettled(user)), "what the view was before is not known");
        directory.settling.expire(100);
        directory.settle(1);
        directory.begin_view(one, 200, 2);
        assert!((1..50).all(|user| !directory.is_unsettled(user)), "there is nobody to wait for");
        directory.settle(3);
        directory.begin_view(two, 300, 4);
        assert!((1..50).all(|user| !directory.is_unsettled(user)), "this node was everybody's home");
    }
}
