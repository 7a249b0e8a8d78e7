//! Whether a node that joins may become active: what the others say of it in their records, and whether there are
//! places for the links that it would bring.

use crate::ids::NodeKey;
use crate::mesh::node_key;
use crate::mesh::peers::{Counted, LINKS_MAX, links_needed};
use crate::mesh::spread::Side;
use trunkline_router_core::membership::{NodeRecord, NodeState, Reach};

/// Whether a node that joins may become active.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Yes.
    Open,
    /// Not yet; holds why.
    Waits(String),
    /// Not as long as the others cannot dial it; holds who says so and what to do.
    Unreachable(String),
    /// Not with so many nodes and shards: the links between them would be more than there are places for. Holds where,
    /// and what to do.
    NoPlaces(String),
}

/// Judges by the records of all nodes, of which `own` is one or not.
pub fn admission(own: &NodeRecord, records: &[NodeRecord]) -> Admission {
    let others = || records.iter().filter(|record| record.name != own.name && record.reach.is_some());
    let active = others().any(|record| record.state == NodeState::Active);
    let before = |record: &&NodeRecord| match record.state {
        NodeState::Active => true,
        NodeState::Joining => !active && (record.incarnation, &record.name) < (own.incarnation, &own.name),
        NodeState::Draining | NodeState::Gone | NodeState::Other(_) => false,
    };
    let (mut found, mut not_found, mut silent) = (0, Vec::new(), Vec::new());
    for record in others().filter(before) {
        let of_own = |reach: &&Reach| reach.name == own.name && reach.incarnation == own.incarnation;
        match record.reach.iter().flatten().find(of_own) {
            Some(Reach { ok: true, .. }) => found += 1,
            Some(_) => not_found.push(record.name.as_str()),
            None => silent.push(record.name.as_str()),
        }
    }
    if let Some(why) = no_places(own, records) {
        return Admission::NoPlaces(why);
    }
    let judges = found + not_found.len() + silent.len();
    if judges == 0 || 2 * found > judges {
        return Admission::Open;
    }
    if not_found.is_empty() {
        return Admission::Waits(format!("waiting until {} have dialed this node at {}", silent.join(", "), own.mesh));
    }
    Admission::Unreachable(format!(
        "this node does not become active: {} cannot dial it at {}; give --mesh an address of this machine that they \
         reach",
        not_found.join(", "),
        own.mesh
    ))
}

fn side(record: &NodeRecord) -> Side {
    Side { shards: record.shards, links_max: record.mesh_links.min(u16::MAX.into()) as u16 }
}

/// Where there would be more links than places with this node in the ring.
fn no_places(own: &NodeRecord, records: &[NodeRecord]) -> Option<String> {
    let others = || records.iter().filter(|record| record.name != own.name && record.state != NodeState::Gone);
    let active = others().filter(|record| record.state == NodeState::Active);
    std::iter::once(own).chain(active).find_map(|at| {
        let peers = others().chain(std::iter::once(own)).filter(|record| record.name != at.name);
        let peers =
            peers.map(|record| Counted { key: NodeKey(node_key(&record.name, record.life())), side: side(record) });
        let needed = links_needed(side(at), peers).err()?;
        Some(format!(
            "this node does not become active: a shard of node {} would have {needed} mesh links, and has places for \
             {LINKS_MAX}; give all nodes about as many --shards, fewer --mesh-links, or have fewer nodes",
            at.name
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(name: &str, incarnation: u64, state: NodeState, reach: Option<Vec<Reach>>) -> NodeRecord {
        NodeRecord {
            name: name.to_owned(),
            incarnation,
            state,
            weight: 1,
            shards: 1,
            mesh: "127.0.0.1:7790".to_owned(),
            advertise: "10.0.0.1:7700".to_owned(),
            http: String::new(),
            protocol: 1,
            connections: 0,
            users: 0,
            started_ms: 1,
            life: 0,
            renewals: 0,
            secret_mark: String::new(),
            reach,
            protocol_oldest: 0,
            zone: String::new(),
            mending: false,
            mesh_links: 0,
            https: false,
            turns: 0,
            view: 0,
            silent: String::new(),
        }
    }

    fn says(ok: bool) -> Option<Vec<Reach>> {
        Some(vec![Reach { name: "x".to_owned(), incarnation: 50, ok }])
    }

    fn judged(others: &[NodeRecord]) -> Admission {
        let own = record("x", 50, NodeState::Joining, Some(Vec::new()));
        admission(&own, &[std::slice::from_ref(&own), others].concat())
    }

    #[test]
    fn the_first_node_waits_for_nobody() {
        use NodeState::{Active, Draining, Joining};
        assert_eq!(judged(&[]), Admission::Open);
        assert_eq!(judged(&[record("later", 51, Joining, says(false))]), Admission::Open, "it came later");
        assert_eq!(judged(&[record("leaves", 3, Draining, says(false))]), Admission::Open);
        assert_eq!(judged(&[record("old", 3, Active, None)]), Admission::Open, "a version that does not dial");
    }

    #[test]
    fn most_of_those_before_it_decide() {
        use NodeState::{Active, Joining};
        let active = |name: &str, reach| record(name, 3, Active, reach);
        assert_eq!(judged(&[active("a", says(true))]), Admission::Open);
        assert!(matches!(judged(&[active("a", says(false))]), Admission::Unreachable(_)));
        assert!(matches!(judged(&[active("a", Some(Vec::new()))]), Admission::Waits(_)), "not dialed yet");
        assert!(matches!(judged(&[record("a", 49, Joining, says(false))]), Admission::Unreachable(_)));
        // A neighbour on the same host is not enough.
        assert!(matches!(judged(&[active("a", says(true)), active("b", says(false))]), Admission::Unreachable(_)));
        let joins_too =
            [active("a", says(true)), record("b", 4, Joining, says(false)), record("c", 5, Joining, Some(Vec::new()))];
        assert_eq!(judged(&joins_too), Admission::Open, "who joins has no say beside who is active");
        let one_of_three = [active("a", says(true)), active("b", says(false)), active("c", says(true))];
        assert_eq!(judged(&one_of_three), Admission::Open, "one that cannot dial keeps nobody out");
    }

    #[test]
    fn who_would_bring_more_links_than_there_are_places_for_does_not_become_active() {
        let (yes, mut own) = (says(true), record("x", 50, NodeState::Joining, Some(Vec::new())));
        let others = |shards: u32, count: usize| -> Vec<NodeRecord> {
            let other = |at| NodeRecord { shards, ..record(&format!("n{at}"), 3, NodeState::Active, yes.clone()) };
            (0..count).map(other).collect()
        };
        let judged = |own: &NodeRecord, others: &[NodeRecord]| admission(own, others);
        assert_eq!(judged(&own, &others(1, LINKS_MAX)), Admission::Open);
        let Admission::NoPlaces(why) = judged(&own, &others(1, LINKS_MAX + 1)) else { panic!("too many nodes") };
        assert!(why.contains("256") && why.contains("257") && why.contains("node x"), "{why}");
        // Ten nodes that go from 2 to 56 shards: those that have not changed yet run out of places.
        let mut grown = others(56, 9);
        grown.push(NodeRecord { shards: 2, ..record("old", 3, NodeState::Active, yes.clone()) });
        own.shards = 56;
        let Admission::NoPlaces(why) = judged(&own, &grown) else { panic!("ten times 28 links") };
        assert!(why.contains("280") && why.contains("node old") && why.contains("--shards"), "{why}");
        grown.truncate(8);
        grown.push(NodeRecord { shards: 2, ..record("old", 3, NodeState::Active, yes.clone()) });
        assert_eq!(judged(&own, &grown), Admission::Open, "nine times 28 find places");
    }

    #[test]
    fn a_few_links_for_each_two_nodes_leave_places_for_many_nodes_of_many_shards() {
        let (yes, own) = (says(true), record("x", 50, NodeState::Joining, Some(Vec::new())));
        let others = |mesh_links: u32| -> Vec<NodeRecord> {
            let other = |at| {
                let record = record(&format!("n{at}"), 3, NodeState::Active, yes.clone());
                NodeRecord { shards: 64, mesh_links, ..record }
            };
            (0..300).map(other).collect()
        };
        let own = |mesh_links| NodeRecord { shards: 64, mesh_links, ..own.clone() };
        assert_eq!(admission(&own(4), &others(4)), Admission::Open, "some 19 links a shard");
        assert!(matches!(admission(&own(4), &others(0)), Admission::NoPlaces(_)), "300 links a shard");
        assert!(matches!(admission(&own(0), &others(4)), Admission::NoPlaces(_)));
    }

    #[test]
    fn what_was_found_of_an_incarnation_before_does_not_count() {
        let before = vec![Reach { name: "x".to_owned(), incarnation: 49, ok: true }];
        let other = record("a", 3, NodeState::Active, Some(before));
        assert!(matches!(judged(&[other]), Admission::Waits(_)));
    }

    #[test]
    fn who_says_no_and_what_to_do_is_said() {
        let Admission::Unreachable(why) = judged(&[record("a", 3, NodeState::Active, says(false))]) else {
            panic!("it was let in");
        };
        for part in ["a cannot dial it", "127.0.0.1:7790", "--mesh"] {
            assert!(why.contains(part), "{why}");
        }
    }
}
