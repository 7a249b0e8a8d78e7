//! Does this node see what the others do, and do nodes come and go without having ended?

use std::collections::BTreeMap;
use trunkline_router::membership::{NodeRecord, NodeState, View};

/// Nodes that have gone from the view and are remembered.
const GONE_MAX: usize = 256;
/// Views that differ for so many lease times differ for long: a change has reached all by then, and so has Redis what they say of it.
const LEASES: u64 = 3;

/// What a node remembers of the views before.
#[derive(Debug, Default)]
pub(crate) struct Sight {
    /// The members of the latest view, by their life.
    members: BTreeMap<String, u64>,
    /// Nodes that have gone, in which life.
    gone: BTreeMap<String, u64>,
    flaps: u64,
    /// Since when active nodes have told of another view.
    differs_ms: Option<u64>,
}

impl Sight {
    /// The view has changed. Returns the nodes that are back in the life in which they had gone.
    pub(crate) fn changed(&mut self, view: &View) -> Vec<String> {
        let members: BTreeMap<String, u64> =
            view.members.iter().map(|member| (member.name.clone(), member.life())).collect();
        let is_back =
            |(name, life): &(&String, &u64)| !self.members.contains_key(*name) && self.gone.get(*name) == Some(*life);
        let back: Vec<String> = members.iter().filter(is_back).map(|(name, _)| name.clone()).collect();
        self.flaps += back.len() as u64;
        for (name, life) in std::mem::replace(&mut self.members, members) {
            if !self.members.contains_key(&name) {
                self.gone.insert(name, life);
            }
        }
        self.gone.retain(|name, _| !self.members.contains_key(name));
        while self.gone.len() > GONE_MAX {
            self.gone.pop_first();
        }
        back
    }

    /// How often a node was back in the life in which it had gone.
    pub(crate) fn flaps(&self) -> u64 {
        self.flaps
    }

    /// Looks at what the other active nodes say that they see, where this node `own` sees the view `digest`. Returns, once they have differed for
    /// long, who differs, since when, and whether these are more than those that see the same, this node with them.
    pub(crate) fn compare(
        &mut self,
        now_ms: u64,
        own: &str,
        digest: u64,
        view: &View,
        lease_ms: u64,
    ) -> Option<(Vec<String>, u64, bool)> {
        let tells = |member: &&NodeRecord| member.state == NodeState::Active && member.name != own && member.view != 0;
        let others: Vec<&NodeRecord> = view.members.iter().filter(tells).collect();
        let differ: Vec<String> =
            others.iter().filter(|member| member.view != digest).map(|member| member.name.clone()).collect();
        if differ.is_empty() {
            self.differs_ms = None;
            return None;
        }
        let since_ms = *self.differs_ms.get_or_insert(now_ms);
        let most = 2 * differ.len() > others.len() + 1;
        (now_ms.saturating_sub(since_ms) >= LEASES * lease_ms).then_some((differ, since_ms, most))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::directory::test_views::view;

    const BOTH: &[(&str, u64, NodeState)] = &[("a", 1, NodeState::Active), ("b", 1, NodeState::Active)];

    #[test]
    fn who_comes_back_in_the_same_life_has_flapped() {
        let mut sight = Sight::default();
        assert!(sight.changed(&view(BOTH)).is_empty());
        assert!(sight.changed(&view(&BOTH[..1])).is_empty());
        assert_eq!(sight.changed(&view(BOTH)), ["b"]);
        sight.changed(&view(&BOTH[..1]));
        let restarted = [BOTH[0], ("b", 2, NodeState::Active)];
        assert!(sight.changed(&view(&restarted)).is_empty(), "it has ended and begun anew");
        assert_eq!(sight.flaps(), 1);
    }

    #[test]
    fn views_that_differ_for_long_are_told_of() {
        let others = |views: &[u64]| {
            let mut view = View::clone(&view(&[
                ("a", 1, NodeState::Active),
                ("b", 1, NodeState::Active),
                ("c", 1, NodeState::Active),
            ]));
            view.members.iter_mut().zip(views).for_each(|(member, digest)| member.view = *digest);
            view
        };
        let mut sight = Sight::default();
        let mut compare = |now_ms, views: &[u64]| sight.compare(now_ms, "a", 7, &others(views), 5_000);
        assert_eq!(compare(1_000, &[7, 7, 7]), None);
        assert_eq!(compare(2_000, &[7, 8, 7]), None, "not for long");
        assert_eq!(compare(16_999, &[7, 8, 7]), None);
        assert_eq!(compare(17_000, &[7, 8, 7]), Some((vec!["b".to_owned()], 2_000, false)));
        assert_eq!(compare(18_000, &[7, 8, 8]), Some((vec!["b".to_owned(), "c".to_owned()], 2_000, true)));
        assert_eq!(compare(18_100, &[7, 7, 0]), None, "who does not tell does not differ");
        assert_eq!(compare(19_000, &[7, 8, 8]), None, "from the beginning");
    }
}
