//! Whose home was another node a moment ago.
//!
//! What a home remembers of the messages that have come lately is its own. The home after it knows nothing of them, nor
//! does one that has missed a view: a message that was late on its way may have been overtaken by its RETRY, which the
//! home before has stored. So for as long as a home remembers messages, a new one looks in the log for what it adds.

use super::{Home, Routing};
use std::collections::VecDeque;
use std::sync::Arc;

/// Views that are remembered. Where more follow each other in that time, all users count as moved.
const VIEWS_MAX: usize = 16;

/// The views before the present one that ended lately.
#[derive(Debug, Default)]
pub(crate) struct FormerViews {
    /// With the tick until which each of them matters; rising.
    views: VecDeque<(u32, Arc<Routing>)>,
    /// Until then others may have been the home of any user: what the view was before is not known.
    unknown_until: u32,
}

impl FormerViews {
    /// A view has ended; `None` where other views may have been between it and the next one, or where it was that of
    /// another life. It matters until `until_tick`, which is never before that of earlier ones.
    pub(crate) fn ended(&mut self, view: Option<Arc<Routing>>, until_tick: u32) {
        match view {
            Some(view) if self.views.len() < VIEWS_MAX => self.views.push_back((until_tick, view)),
            _ => {
                self.views.clear();
                self.unknown_until = until_tick;
            }
        }
    }

    /// Forgets what does not matter any more.
    pub(crate) fn expire(&mut self, tick: u32) {
        while self.views.pop_front_if(|(until_tick, _)| *until_tick <= tick).is_some() {}
    }

    /// Whether another node may have been the home of a user a moment ago. Costs nothing when no view has ended lately.
    #[inline]
    pub(crate) fn had_other_home(&self, user: u64, tick: u32) -> bool {
        if self.unknown_until > tick {
            return true;
        }
        let mut views = self.views.iter().filter(|(until_tick, _)| *until_tick > tick);
        views.any(|(_, view)| view.home(user) != Home::Here)
    }
}

#[cfg(test)]
mod tests {
    use super::super::routing::tests::routing;
    use super::*;
    use trunkline_router_core::NodeState;

    const A: (&str, u64, NodeState) = ("a", 1, NodeState::Active);
    const B: (&str, u64, NodeState) = ("b", 1, NodeState::Active);

    #[test]
    fn a_user_counts_as_moved_for_a_while_after_a_view_in_which_the_home_was_elsewhere() {
        let [two, one] = [&[A, B][..], &[A]].map(|nodes| Arc::new(routing(("a", 1), nodes)));
        let there = (1..100).find(|user| two.home(*user) != Home::Here).unwrap();
        let here = (1..100).find(|user| two.home(*user) == Home::Here).unwrap();
        let mut former = FormerViews::default();
        assert!(!former.had_other_home(there, 0));
        former.ended(Some(two), 600);
        former.ended(Some(one), 700);
        assert!(former.had_other_home(there, 599) && !former.had_other_home(here, 599));
        assert!(!former.had_other_home(there, 600));
        former.expire(600);
        assert_eq!(former.views.len(), 1);
        former.ended(None, 800);
        assert!(former.views.is_empty());
        assert!(former.had_other_home(here, 799) && !former.had_other_home(here, 800));
    }

    #[test]
    fn with_too_many_views_all_users_count_as_moved() {
        let one = Arc::new(routing(("a", 1), &[A]));
        let mut former = FormerViews::default();
        (0..VIEWS_MAX as u32).for_each(|at| former.ended(Some(one.clone()), 600 + at));
        assert!(!former.had_other_home(1, 0));
        former.ended(Some(one), 700);
        assert!(former.had_other_home(1, 699) && former.views.is_empty());
    }
}
