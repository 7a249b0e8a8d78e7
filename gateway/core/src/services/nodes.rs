//! Where other nodes have workers, and what other nodes have been told of this one's.
//!
//! A shard tells every other node the weight of its workers for each service, and tells it again whenever it is another
//! one. So a node knows *places*, shards of other nodes with their weights, and picks one for a call that none of its
//! own workers takes.

use crate::ids::NodeKey;
use hashbrown::HashMap;
use rand::{Rng, RngExt};
use std::collections::BTreeMap;
use trunkline_router_core::Policy;
use trunkline_router_core::hash::user_hash;

/// Places that a shard knows, for all services.
pub const PLACES_MAX: usize = 16_384;
/// How long a place that has refused a call is the last to be asked, ticks.
const REST_TICKS: u32 = 10;
/// What a node was told when that is not known.
const UNKNOWN: u32 = u32::MAX;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    node: NodeKey,
    shard: u16,
    weight: u32,
    /// It has refused a call; others are asked before it until then.
    rests_until: u32,
}

/// The services of other nodes, as one shard knows them, and of this shard, as others do.
#[derive(Debug, Default)]
pub(crate) struct Nodes {
    /// Services that other nodes have, or have had.
    places: HashMap<u16, Vec<Place>>,
    count: usize,
    /// What each node has been told.
    told: HashMap<NodeKey, HashMap<u16, u32>>,
    /// Something may have to be told.
    is_news: bool,
    /// Whether this node drained when others were told last.
    drains: bool,
    /// When calls of nodes that are gone are looked for.
    look_tick: Option<u32>,
}

impl Nodes {
    /// Something of this shard may have to be told.
    pub(crate) fn note_news(&mut self) {
        self.is_news = true;
    }

    /// Whether something may have to be told; `drains`: whether this node drains now, which is news if it did not, or
    /// did, when others were told last.
    pub(crate) fn take_news(&mut self, drains: bool) -> bool {
        let changed = std::mem::replace(&mut self.drains, drains) != drains;
        std::mem::take(&mut self.is_news) || changed
    }

    /// Calls of nodes that are gone are looked for at this tick.
    pub(crate) fn look_at(&mut self, tick: u32) {
        self.look_tick = Some(tick);
    }

    /// Whether it is time to look for calls of nodes that are gone; once.
    pub(crate) fn take_look(&mut self, tick: u32) -> bool {
        self.look_tick.take_if(|due| *due <= tick).is_some()
    }

    /// Places known.
    pub(crate) fn len(&self) -> usize {
        self.count
    }

    /// Whether another node has served it.
    pub(crate) fn is_known(&self, service: u16) -> bool {
        self.places.contains_key(&service)
    }

    /// Whether another node serves it.
    pub(crate) fn serve(&self, service: u16) -> bool {
        self.places.get(&service).is_some_and(|places| !places.is_empty())
    }

    /// Services that other nodes have.
    pub(crate) fn services(&self) -> impl Iterator<Item = u16> {
        self.places.iter().filter(|(_, places)| !places.is_empty()).map(|(service, _)| *service)
    }

    /// The places of a service, by node, with their weights.
    pub(crate) fn weights(&self, service: u16) -> impl Iterator<Item = (NodeKey, u32)> {
        self.places.get(&service).into_iter().flatten().map(|place| (place.node, place.weight))
    }

    /// Whether more than one node serves it.
    pub(crate) fn are_several(&self, service: u16) -> bool {
        let Some(places) = self.places.get(&service) else { return false };
        places.iter().any(|place| place.node != places[0].node)
    }

    /// A node has told of a shard of its own. False if there is no room for it.
    pub(crate) fn heard(&mut self, node: NodeKey, shard: u16, service: u16, weight: u32) -> bool {
        let places = match (self.places.get_mut(&service), weight) {
            (Some(places), _) => places,
            (None, 0) => return true,
            (None, _) => self.places.entry(service).or_default(),
        };
        let known = places.iter().position(|place| (place.node, place.shard) == (node, shard));
        match (known, weight) {
            (Some(at), 0) => {
                places.remove(at);
                self.count -= 1;
            }
            (Some(at), _) => places[at].weight = weight,
            (None, 0) => {}
            (None, _) if self.count >= PLACES_MAX => return false,
            (None, _) => {
                places.push(Place { node, shard, weight, rests_until: 0 });
                self.count += 1;
            }
        }
        true
    }

    /// Forgets all nodes but those for which `is_there`.
    pub(crate) fn retain(&mut self, is_there: impl Fn(NodeKey) -> bool) {
        for places in self.places.values_mut() {
            places.retain(|place| is_there(place.node));
        }
        self.count = self.places.values().map(Vec::len).sum();
        self.told.retain(|node, _| is_there(*node));
        self.is_news = true;
    }

    /// A place has refused a call.
    pub(crate) fn refused(&mut self, node: NodeKey, shard: u16, service: u16, tick: u32) {
        let places = self.places.get_mut(&service).into_iter().flatten();
        for place in places.filter(|place| (place.node, place.shard) == (node, shard)) {
            place.rests_until = tick + REST_TICKS;
        }
    }

    /// The place for a call of `user`, but none of the nodes `except`: by weight, and for a hash always the same one.
    /// `urgent`: rather one that has just refused a call than none.
    pub(crate) fn pick(
        &self,
        service: u16,
        policy: Policy,
        user: u64,
        (tick, urgent): (u32, bool),
        except: &[NodeKey],
        rng: &mut impl Rng,
    ) -> Option<(NodeKey, u16)> {
        let places = self.places.get(&service)?;
        let may = |place: &&Place| !except.contains(&place.node);
        let rested = |place: &&Place| may(place) && place.rests_until <= tick;
        let all_rest = urgent && !places.iter().any(|place| rested(&place));
        let candidates = || places.iter().filter(move |place| if all_rest { may(place) } else { rested(place) });
        let picked = if policy == Policy::ConsistentHash {
            // By rendezvous: of a draw for each place, from its name and the user, the least for its weight.
            let draw = |place: &Place| {
                let hash = user_hash(user ^ user_hash(place.node.0 ^ u64::from(place.shard)));
                let uniform = (hash >> 11) as f64 / (1u64 << 53) as f64;
                -(uniform.max(f64::MIN_POSITIVE)).ln() / f64::from(place.weight)
            };
            candidates().min_by(|one, other| draw(one).total_cmp(&draw(other)))
        } else {
            let all: u64 = candidates().map(|place| u64::from(place.weight)).sum();
            if all == 0 {
                return None;
            }
            let mut at = rng.random_range(0..all);
            candidates().find(|place| {
                let here = at < u64::from(place.weight);
                at = at.saturating_sub(place.weight.into());
                here
            })
        };
        picked.map(|place| (place.node, place.shard))
    }

    /// What a node is to be told next, `most` services at most: those whose weight is another one than it knows.
    pub(crate) fn news_for(&mut self, node: NodeKey, weights: &BTreeMap<u16, u32>, most: usize) -> Vec<(u16, u32)> {
        let told = self.told.entry(node).or_default();
        let changed = weights.iter().filter(|(service, weight)| told.get(*service) != Some(*weight));
        let mut news: Vec<(u16, u32)> = changed.take(most).map(|(service, weight)| (*service, *weight)).collect();
        let over = told.keys().filter(|service| !weights.contains_key(*service));
        news.extend(over.take(most - news.len()).map(|service| (*service, 0)));
        news
    }

    /// A node has been told of a service.
    pub(crate) fn told(&mut self, node: NodeKey, service: u16, weight: u32) {
        let told = self.told.entry(node).or_default();
        match weight {
            0 => drop(told.remove(&service)),
            _ => drop(told.insert(service, weight)),
        }
    }

    /// What a node was told of a service did not get there.
    pub(crate) fn untold(&mut self, node: NodeKey, service: u16) {
        self.told.entry(node).or_default().insert(service, UNKNOWN);
        self.is_news = true;
    }

    /// All nodes are told all again.
    pub(crate) fn tell_again(&mut self) {
        let told = self.told.values_mut().flat_map(HashMap::values_mut);
        told.for_each(|weight| *weight = UNKNOWN);
        self.is_news = true;
    }

    /// A node has lost what it was told.
    pub(crate) fn lost(&mut self, node: NodeKey) {
        let told = self.told.get_mut(&node).into_iter().flat_map(HashMap::values_mut);
        told.for_each(|weight| *weight = UNKNOWN);
        self.is_news = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    const A: NodeKey = NodeKey(1);
    const B: NodeKey = NodeKey(2);

    fn nodes() -> Nodes {
        let mut nodes = Nodes::default();
        assert!(nodes.heard(A, 0, 7, 1) && nodes.heard(B, 0, 7, 2) && nodes.heard(B, 1, 7, 1));
        nodes
    }

    #[test]
    fn places_get_calls_by_their_weight_and_a_user_stays_with_one_by_hash() {
        let (nodes, mut rng) = (nodes(), SmallRng::seed_from_u64(1));
        for policy in [Policy::RoundRobin, Policy::ConsistentHash] {
            let mut counts: HashMap<(NodeKey, u16), u32> = HashMap::new();
            for user in 0..4_000 {
                let place = nodes.pick(7, policy, user, (0, true), &[], &mut rng).expect("a place");
                *counts.entry(place).or_default() += 1;
                if policy == Policy::ConsistentHash {
                    assert_eq!(nodes.pick(7, policy, user, (0, true), &[], &mut rng), Some(place));
                }
            }
            for (place, of_four) in [((A, 0), 1), ((B, 0), 2), ((B, 1), 1)] {
                assert!(counts[&place].abs_diff(1_000 * of_four) < 150, "{policy:?}: {counts:?}");
            }
        }
    }

    #[test]
    fn who_has_refused_is_asked_last_and_who_is_excepted_never() {
        let (mut nodes, mut rng) = (nodes(), SmallRng::seed_from_u64(1));
        let mut pick = |nodes: &Nodes, tick, except: &[NodeKey]| {
            nodes.pick(7, Policy::RoundRobin, 1, (tick, true), except, &mut rng)
        };
        assert_eq!(pick(&nodes, 0, &[B]), Some((A, 0)));
        assert_eq!(pick(&nodes, 0, &[A, B]), None);
        nodes.refused(B, 0, 7, 5);
        nodes.refused(B, 1, 7, 5);
        assert!((0..50).all(|_| pick(&nodes, 6, &[]) == Some((A, 0))));
        assert!(pick(&nodes, 6, &[A]).is_some_and(|(node, _)| node == B), "there is nobody else");
        assert!((0..50).any(|_| pick(&nodes, 15, &[]) != Some((A, 0))), "for a second");
        assert_eq!(nodes.pick(7, Policy::RoundRobin, 1, (6, false), &[A], &mut rng), None, "it can wait");
    }

    #[test]
    fn a_node_is_told_what_it_does_not_know() {
        let mut nodes = Nodes::default();
        let mut weights = BTreeMap::from([(7, 1), (8, 2)]);
        assert_eq!(nodes.news_for(A, &weights, 9), [(7, 1), (8, 2)]);
        assert_eq!(nodes.news_for(A, &weights, 1), [(7, 1)]);
        nodes.told(A, 7, 1);
        nodes.told(A, 8, 2);
        assert_eq!(nodes.news_for(A, &weights, 9), []);
        weights.remove(&7);
        assert_eq!(nodes.news_for(A, &weights, 9), [(7, 0)]);
        nodes.told(A, 7, 0);
        nodes.lost(A);
        assert_eq!(nodes.news_for(A, &weights, 9), [(8, 2)]);
        nodes.told(A, 8, 2);
        nodes.untold(A, 7);
        assert_eq!(nodes.news_for(A, &weights, 9), [(7, 0)], "that it is over may not have got there");
    }

    #[test]
    fn places_come_and_go_and_are_no_more_than_there_is_room_for() {
        let mut nodes = nodes();
        assert_eq!((nodes.len(), nodes.serve(7), nodes.are_several(7)), (3, true, true));
        assert!(nodes.heard(B, 1, 7, 0) && nodes.heard(B, 1, 7, 0) && nodes.heard(A, 0, 9, 0));
        assert_eq!((nodes.len(), nodes.is_known(9)), (2, false));
        nodes.retain(|node| node == A);
        assert_eq!((nodes.len(), nodes.are_several(7)), (1, false));
        assert!(nodes.heard(A, 0, 7, 0));
        assert_eq!((nodes.is_known(7), nodes.serve(7)), (true, false));
        assert!((0..PLACES_MAX).all(|at| nodes.heard(B, (at >> 8) as u16, at as u16 & 0xFF, 1)));
        assert!(!nodes.heard(A, 0, 7, 1), "no room");
        assert!(nodes.heard(B, 0, 7, 5) && nodes.heard(B, 0, 7, 0) && nodes.heard(A, 0, 7, 1));
    }
}
