//! The view of the cluster as a shard uses it: whose home a user is, at the price of one look-up in the ring.

use crate::ids::NodeKey;
use std::sync::Arc;
use trunkline_router_core::hash::home_shard;
use trunkline_router_core::{NodeState, Ring, View};

/// A member of the view.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) key: NodeKey,
    pub(crate) name: Box<str>,
    pub(crate) incarnation: u64,
    /// The incarnation since which it has not been fenced, which its key is made of.
    pub(crate) life: u64,
    /// Where its mesh listens.
    pub(crate) mesh: Box<str>,
    /// What its clients dial.
    pub(crate) advertise: Box<str>,
    pub(crate) shards: u32,
    /// The newest version of the mesh protocol that it speaks; 0 if it does not tell.
    pub(crate) protocol: u32,
    /// Most links it keeps to another node; 0 if it does not tell, and keeps one for each shard.
    pub(crate) mesh_links: u16,
    pub(crate) state: NodeState,
}

/// Where a user belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Home {
    /// This node.
    Here,
    /// A shard of another node.
    There { node: NodeKey, shard: u16 },
    /// No node is active.
    Nowhere,
}

/// One view, ready to be asked for each message.
#[derive(Clone, Debug)]
pub(crate) struct Routing {
    own: NodeKey,
    digest: u64,
    /// In the order of their names.
    members: Box<[Member]>,
    /// The oldest of the newest versions of the mesh protocol that the members speak.
    protocol_least: u32,
    ring: Option<Arc<Ring>>,
    /// Index into `members` of each node of the ring.
    ring_members: Box<[u16]>,
}

impl Routing {
    /// The view as the node `own` sees it. `key_of` gives the key of a name and a life.
    pub(crate) fn new(own: NodeKey, view: &View, key_of: impl Fn(&str, u64) -> NodeKey) -> Self {
        let members: Box<[Member]> = view
            .members
            .iter()
            .map(|record| Member {
                key: key_of(&record.name, record.life()),
                name: record.name.as_str().into(),
                incarnation: record.incarnation,
                life: record.life(),
                mesh: record.mesh.as_str().into(),
                advertise: record.advertise.as_str().into(),
                shards: record.shards,
                protocol: record.protocol,
                mesh_links: record.mesh_links.min(u16::MAX.into()) as u16,
                state: record.state,
            })
            .collect();
        // Every node of the ring is a member; a ring is made of nothing else.
        let index = |name: &str| members.binary_search_by(|member| (*member.name).cmp(name)).ok();
        let ring_members =
            view.ring.iter().flat_map(|ring| ring.nodes()).filter_map(|node| index(node.name())).map(|at| at as u16);
        let ring_members = ring_members.collect();
        let protocol_least = members.iter().map(|member| member.protocol).min().unwrap_or(0);
        Routing { own, digest: view.digest, protocol_least, ring_members, ring: view.ring.clone(), members }
    }

    /// This node.
    pub(crate) fn own(&self) -> NodeKey {
        self.own
    }

    /// Equal on nodes that have the same view.
    pub(crate) fn digest(&self) -> u64 {
        self.digest
    }

    /// The oldest of the newest versions of the mesh protocol that the members speak: all know records of that version.
    pub(crate) fn protocol_least(&self) -> u32 {
        self.protocol_least
    }

    /// The home of a user.
    #[inline]
    pub(crate) fn home(&self, user: u64) -> Home {
        let Some(ring) = &self.ring else { return Home::Nowhere };
        let Some(member) = self.ring_members.get(ring.owner_index(user)) else { return Home::Nowhere };
        let member = &self.members[usize::from(*member)];
        if member.key == self.own {
            return Home::Here;
        }
        Home::There { node: member.key, shard: home_shard(user, member.shards) as u16 }
    }

    /// The member with this key.
    pub(crate) fn member(&self, key: NodeKey) -> Option<&Member> {
        self.members.iter().find(|member| member.key == key)
    }

    /// All members but this node.
    pub(crate) fn others(&self) -> impl Iterator<Item = &Member> {
        self.members.iter().filter(|member| member.key != self.own)
    }

    /// Members that are in this view and not in `next`. A node that has restarted is another one.
    pub(crate) fn lost_in(&self, next: &Routing) -> Vec<Member> {
        self.others().filter(|member| next.member(member.key).is_none()).cloned().collect()
    }

    /// Whether sessions of `user` on this node have to be registered (again) when `next` takes the place of this view:
    /// its home is on another node, and is not the one that knew them.
    pub(crate) fn must_register(&self, next: &Routing, user: u64) -> bool {
        let home = next.home(user);
        matches!(home, Home::There { .. }) && (self.own != next.own || self.home(user) != home)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use trunkline_router_core::{Membership, NodeRecord};

    pub(crate) fn key_of(name: &str, incarnation: u64) -> NodeKey {
        NodeKey(u64::from(name.as_bytes()[0]) << 32 | incarnation)
    }

    /// A view of nodes `(name, incarnation, state)`, each with four shards.
    pub(crate) fn view(nodes: &[(&str, u64, NodeState)]) -> Arc<View> {
        let records = nodes.iter().map(|(name, incarnation, state)| NodeRecord {
            name: (*name).to_owned(),
            incarnation: *incarnation,
            state: *state,
            weight: 1,
            shards: 4,
            mesh: "127.0.0.1:7790".to_owned(),
            advertise: format!("{name}:7700"),
            http: String::new(),
            protocol: 1,
            connections: 0,
            users: 0,
            started_ms: 0,
            life: 0,
            renewals: 0,
            secret_mark: String::new(),
            reach: None,
            protocol_oldest: 0,
            zone: String::new(),
            mending: false,
            mesh_links: 0,
            https: false,
            turns: 0,
            view: 0,
            silent: String::new(),
        });
        let mut membership = Membership::new(None, 5_000);
        membership.polled(0, records.collect());
        membership.view()
    }

    pub(crate) fn routing(own: (&str, u64), nodes: &[(&str, u64, NodeState)]) -> Routing {
        Routing::new(key_of(own.0, own.1), &view(nodes), key_of)
    }

    #[test]
    fn all_nodes_agree_on_the_home_and_only_one_says_here() {
        let nodes = [("a", 1, NodeState::Active), ("b", 1, NodeState::Active), ("c", 1, NodeState::Active)];
        let routings = nodes.map(|(name, incarnation, _)| routing((name, incarnation), &nodes));
        for user in 1..2_000 {
            let homes: Vec<NodeKey> = routings
                .iter()
                .map(|routing| match routing.home(user) {
                    Home::Here => routing.own(),
                    Home::There { node, shard } => {
                        assert_eq!(u32::from(shard), home_shard(user, 4));
                        node
                    }
                    Home::Nowhere => panic!("three nodes are active"),
                })
                .collect();
            assert!(homes.windows(2).all(|pair| pair[0] == pair[1]), "user {user}: {homes:?}");
        }
        assert!(routings.iter().all(|routing| routing.digest() == routings[0].digest()));
    }

    #[test]
    fn only_active_nodes_are_homes() {
        let nodes = [("a", 1, NodeState::Draining), ("b", 1, NodeState::Joining), ("c", 1, NodeState::Active)];
        let joining = routing(("b", 1), &nodes);
        let active = key_of("c", 1);
        assert!((1..100).all(|user| matches!(joining.home(user), Home::There { node, .. } if node == active)));
        let nobody = routing(("b", 1), &nodes[..2]);
        assert_eq!(nobody.home(1), Home::Nowhere);
        assert_eq!(nobody.others().count(), 1);
    }

    #[test]
    fn just_the_users_whose_home_changed_are_registered_again() {
        let active = |name, incarnation| (name, incarnation, NodeState::Active);
        let before = routing(("a", 1), &[active("a", 1), active("b", 1)]);
        let after = routing(("a", 1), &[active("a", 1), active("b", 1), active("c", 1)]);
        let (mut registered, mut gained) = (0, 0);
        for user in 1..3_000 {
            let moved = before.home(user) != after.home(user);
            assert_eq!(before.must_register(&after, user), moved, "a node that joins takes users, and gives none");
            registered += u32::from(moved);
            gained += u32::from(before.home(user) == Home::Here && after.home(user) != Home::Here);
        }
        assert!((700..1_300).contains(&registered), "{registered} of 3,000 users went to the third of three nodes");
        assert!(gained > 0, "what one node left to the other comes back");
        assert!(before.lost_in(&after).is_empty());
        assert_eq!(after.lost_in(&before).iter().map(|member| &*member.name).collect::<Vec<_>>(), ["c"]);
    }

    #[test]
    fn a_home_that_has_restarted_knows_nothing() {
        let active = |name, incarnation| (name, incarnation, NodeState::Active);
        let before = routing(("a", 1), &[active("a", 1), active("b", 1)]);
        let restarted = routing(("a", 1), &[active("a", 1), active("b", 2)]);
        let itself = routing(("a", 2), &[active("a", 2), active("b", 1)]);
        for user in 1..500 {
            let there = matches!(before.home(user), Home::There { .. });
            assert_eq!(before.must_register(&restarted, user), there);
            // The others have dropped what this node's earlier incarnation had registered.
            assert_eq!(before.must_register(&itself, user), there);
        }
        assert_eq!(before.lost_in(&restarted).len(), 1);
    }
}
