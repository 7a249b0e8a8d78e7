//! Does this node see what the others do, and do nodes come and go without having ended?

use std::collections::BTreeMap;
use trunkline_router_core::membership::{NodeRecord, NodeState, View};

/// Nodes that have gone from the view and are remembered.
const GONE_MAX: usize = 256;
/// Views that differ for so many lease times differ for long: a change has reached all by then, and so has Redis what
/// they say of it.
const LEASES: u64 = 3;

/// What a node remembers of the views before.
#[derive(Debug, Default)]
pub(crate) struct Sight {
    /// The members of the latest view, by their life.
    members: BTreeMap<String, u64>,
    /// Nodes that have gone, in which life.
    gone: BTreeMap<String, u64>,
    flaps: u64,
    /// The digest of the view of this node, and of active nodes that tell of another one which, and since when: none of
    /// them has changed since.
    digest: u64,
    differ: BTreeMap<String, (u64, u64)>,
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

    /// What the others see is not known now.
    pub(crate) fn forget(&mut self) {
        self.differ.clear();
    }

    /// Looks at what the other active nodes say that they see, where this node `own` sees the view `digest`. Returns,
    /// once they have differed for long, who differs, since when, and whether these are more than those that see the
    /// same, this node with them.
    pub(crate) fn compare(
        &mut self,
        now_ms: u64,
        own: &str,
        digest: u64,
        view: &View,
        lease_ms: u64,
    ) -> Option<(Vec<String>, u64, bool)> {
        // While nodes come and go, views differ all the time, each for a moment.
        if std::mem::replace(&mut self.digest, digest) != digest {
            self.differ.clear();
        }
        let tells = |member: &&NodeRecord| member.state == NodeState::Active && member.name != own && member.view != 0;
        let others: Vec<&NodeRecord> = view.members.iter().filter(tells).collect();
        let differ = others.iter().filter(|member| member.view != digest).map(|member| {
            let before = self.differ.get(&member.name).filter(|(seen, _)| *seen == member.view);
            (member.name.clone(), (member.view, before.map_or(now_ms, |(_, since_ms)| *since_ms)))
        });
        self.differ = differ.collect();
        let for_long = |since_ms: u64| now_ms.saturating_sub(since_ms) >= LEASES * lease_ms;
        let long: Vec<(&String, u64)> =
            self.differ.iter().map(|(name, (_, since_ms))| (name, *since_ms)).filter(|(_, ms)| for_long(*ms)).collect();
        let since_ms = long.iter().map(|(_, since_ms)| *since_ms).min()?;
        let most = 2 * long.len() > others.len() + 1;
        Some((long.into_iter().map(|(name, _)| name.clone()).collect(), since_ms, most))
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
        assert_eq!(compare(18_000, &[7, 8, 9]), Some((vec!["b".to_owned()], 2_000, false)), "c does not for long");
        assert_eq!(compare(33_000, &[7, 8, 9]), Some((vec!["b".to_owned(), "c".to_owned()], 2_000, true)));
        assert_eq!(compare(33_100, &[7, 10, 0]), None, "b has moved on, and who does not tell does not differ");
        assert_eq!(compare(48_099, &[7, 10, 0]), None);
        assert_eq!(compare(48_100, &[7, 10, 0]), Some((vec!["b".to_owned()], 33_100, false)));
        assert_eq!(sight.compare(49_000, "a", 6, &others(&[6, 10, 0]), 5_000), None, "this node has moved on");
    }
}
