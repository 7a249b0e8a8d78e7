//! The ring of nodes: points and owners computed elsewhere, a naive model, and the properties of consistent hashing.

use proptest::prelude::*;
use std::collections::HashMap;
use trunkline_router_core::ring::{
    NAME_BYTES_MAX, NODES_MAX, POINTS_PER_WEIGHT, WEIGHT_DEFAULT, WEIGHT_MAX, WEIGHT_TOTAL_MAX,
};
use trunkline_router_core::{Node, Ring, RingError};

fn ring(nodes: &[(&str, u32)]) -> Ring {
    let nodes = nodes.iter().map(|&(name, weight)| Node::new(name, weight).expect("a valid node")).collect();
    Ring::new(nodes).expect("a valid ring")
}

/// `count` nodes of weight 1.
fn even_ring(count: usize) -> Ring {
    let names: Vec<String> = (1..=count).map(|n| format!("10.0.0.{n}:7790")).collect();
    ring(&names.iter().map(|name| (name.as_str(), 1)).collect::<Vec<_>>())
}

fn users_by_node(ring: &Ring, users: u64) -> HashMap<&str, u64> {
    let mut load = HashMap::new();
    for user in 1..=users {
        *load.entry(ring.owner(user).name()).or_insert(0) += 1;
    }
    load
}

/// CRC-32 (IEEE 802.3), bit by bit.
fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for &byte in bytes {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 };
        }
    }
    !crc
}

/// All points in no order, duplicates included. Only for names with or without a port, not for `unix:`.
fn naive_points<'a>(nodes: &[(&'a str, u32)]) -> Vec<(u32, &'a str)> {
    let mut points = Vec::new();
    for &(name, weight) in nodes {
        let (host, port) = name.split_once(':').unwrap_or((name, ""));
        let mut point = 0;
        for _ in 0..weight * 160 {
            let bytes = [host.as_bytes(), &[0], port.as_bytes(), &u32::to_le_bytes(point)].concat();
            point = crc32(&bytes);
            points.push((point, name));
        }
    }
    points
}

fn naive_owner<'a>(points: &[(u32, &'a str)], user: u64) -> &'a str {
    let hash = crc32(user.to_string().as_bytes());
    let ahead = points.iter().filter(|(point, _)| *point >= hash).min();
    ahead.or_else(|| points.iter().min()).expect("a ring has points").1
}

/// Name; lowest and highest point; CRC-32 over all points, ascending, 4 little-endian bytes each. Computed with zlib.
#[test]
fn the_points_of_a_node_are_pinned() {
    let vectors = [
        ("127.0.0.1:7700", 0x047f_4d1b, 0xfcca_ab5d, 0xcea8_68ed),
        ("node-a", 0x0086_a662, 0xfede_a34f, 0xfdcb_bf27),
        ("unix:/run/tl.sock", 0x004e_1eef, 0xff66_db38, 0xcaf8_9d2b),
        ("UNIX:/run/tl.sock:80", 0x0298_2178, 0xff5c_c8e8, 0xd760_7a49),
        ("[::1]:80", 0x0148_95e0, 0xff92_a85e, 0x504e_9c98),
        ("host:", 0x0088_deda, 0xffa1_1077, 0xe2cd_dea7),
        ("host:80a", 0x0071_fbae, 0xfffd_b076, 0x2ee7_e80f),
    ];
    for (name, lowest, highest, digest) in vectors {
        let ring = ring(&[(name, 1)]);
        let points: Vec<u32> = ring.points().map(|(point, _)| point).collect();
        assert_eq!(points.len(), 160, "{name}");
        assert_eq!((points[0], points[159]), (lowest, highest), "{name}");
        let bytes: Vec<u8> = points.iter().flat_map(|point| point.to_le_bytes()).collect();
        assert_eq!(crc32(&bytes), digest, "{name}");
    }
}

/// Computed with zlib. The users 398 and 1029 hash above the highest point and so wrap to the lowest; user 10298998
/// hashes to a point of the first node, and the next point is of the second.
#[test]
fn the_owners_in_a_weighted_ring_are_pinned() {
    const A: &str = "10.0.0.1:7790";
    const B: &str = "10.0.0.2:7790";
    const C: &str = "node-c";
    let ring = ring(&[(A, 1), (B, 2), (C, 1)]);
    let placed: Vec<u8> =
        ring.points().flat_map(|(point, node)| [&point.to_le_bytes(), node.name().as_bytes()].concat()).collect();
    assert_eq!(ring.points().len(), 640);
    assert_eq!(crc32(&placed), 0x4753_afd9);
    let users = [
        (1, A),
        (2, B),
        (3, A),
        (4, B),
        (5, A),
        (6, B),
        (7, C),
        (8, A),
        (9, B),
        (10, B),
        (42, A),
        (398, B),
        (1_000, B),
        (1_029, B),
        (65_536, B),
        (1_234_567, A),
        (10_298_998, A),
        (1 << 32, B),
        (1 << 63, A),
        (u64::MAX, B),
    ];
    for (user, owner) in users {
        assert_eq!(ring.owner(user).name(), owner, "user {user}");
    }
    for (key, owner) in [("", B), ("alice", A), ("/path?x=1", A), ("user:42", A)] {
        assert_eq!(ring.nodes()[ring.key_owner_index(key.as_bytes())].name(), owner, "key {key:?}");
    }
}

#[test]
fn a_point_of_two_nodes_goes_to_the_name_that_sorts_first() {
    const SHARED: u32 = 0xd946_f356;
    let (first, second) = ("10.1.0.152:7790", "10.1.1.54:7790");
    for name in [first, second] {
        assert!(ring(&[(name, 1)]).points().any(|(point, _)| point == SHARED));
    }
    for nodes in [[(first, 1), (second, 1)], [(second, 1), (first, 1)]] {
        let ring = ring(&nodes);
        assert_eq!(ring.points().len(), 2 * 160 - 1);
        let owners: Vec<&str> = ring.points().filter(|(point, _)| *point == SHARED).map(|(_, n)| n.name()).collect();
        assert_eq!(owners, [first]);
    }
}

#[test]
fn nodes_are_found_by_name_and_listed_in_order() {
    let ring = ring(&[("c", 3), ("a", 1), ("b", 2)]);
    let listed: Vec<(&str, u32)> = ring.nodes().iter().map(|node| (node.name(), node.weight())).collect();
    assert_eq!(listed, [("a", 1), ("b", 2), ("c", 3)]);
    assert_eq!(ring.index_of("b"), Some(1));
    assert_eq!(ring.index_of("d"), None);
    for user in 1..1_000 {
        assert_eq!(&ring.nodes()[ring.owner_index(user)], ring.owner(user));
    }
}

#[test]
fn nodes_get_users_in_proportion_to_their_weights() {
    const USERS: u64 = 100_000;
    let weights = [("10.0.0.1:7790", 10), ("10.0.0.2:7790", 20), ("10.0.0.3:7790", 30), ("10.0.0.4:7790", 40)];
    let ring = ring(&weights);
    let load = users_by_node(&ring, USERS);
    for (name, weight) in weights {
        let share = load[name] as f64 / (USERS as f64 * f64::from(weight) / 100.0);
        // 1,600 points and more: the spread of the stretches is within a few percent.
        assert!((0.92..1.08).contains(&share), "{name} has {share} of its share");
    }
}

#[test]
fn equal_nodes_get_roughly_equal_shares() {
    const USERS: u64 = 200_000;
    for count in [2, 5, 10, 50] {
        let ring = even_ring(count);
        let load = users_by_node(&ring, USERS);
        assert_eq!(load.len(), count);
        for (name, users) in load {
            let share = users as f64 * count as f64 / USERS as f64;
            // The standard deviation of a sum of 160 stretches is 8 %.
            assert!((0.70..1.30).contains(&share), "{name} has {share} of its share of {count}");
        }
    }
}

/// Over a million users, for the weight that nodes have by default and for 1.
#[test]
fn a_hundred_nodes_of_the_default_weight_have_even_shares() {
    let fullest = |weight: u32| {
        let names: Vec<String> = (1..=100).map(|n| format!("10.0.0.{n}:7790")).collect();
        let nodes: Vec<(&str, u32)> = names.iter().map(|name| (name.as_str(), weight)).collect();
        let ring = ring(&nodes);
        let load = users_by_node(&ring, 1_000_000);
        *load.values().max().unwrap() as f64 / 10_000.0
    };
    let (default, one) = (fullest(WEIGHT_DEFAULT), fullest(1));
    println!("the fullest of a hundred nodes has {default:.3} of its share; with a weight of 1 {one:.3}");
    assert!(default < 1.09 && one > 1.12, "{default} {one}");
}

#[test]
fn an_added_node_takes_about_its_share_and_only_from_others() {
    const USERS: u32 = 100_000;
    for count in [1, 2, 4, 9, 30] {
        let (before, after) = (even_ring(count), even_ring(count + 1));
        let added = format!("10.0.0.{}:7790", count + 1);
        for user in 1..=u64::from(USERS) {
            let owner = after.owner(user).name();
            assert!(owner == added || owner == before.owner(user).name(), "user {user} moved between old nodes");
        }
        for (share, what) in [(before.preview(&after, USERS), "added"), (after.preview(&before, USERS), "removed")] {
            let ratio = share * (count + 1) as f64;
            assert!((0.75..1.25).contains(&ratio), "{what} with {count}: {ratio} of 1/N moved");
        }
    }
}

#[test]
fn preview_counts_the_users_that_move() {
    let (two, three) = (even_ring(2), even_ring(3));
    let moved = (1..=5_000).filter(|&user| two.owner(user).name() != three.owner(user).name()).count();
    assert!(moved > 0);
    assert_eq!(two.preview(&three, 5_000), moved as f64 / 5_000.0);
    assert_eq!(two.preview(&two, 5_000), 0.0);
    assert_eq!(two.preview(&ring(&[("elsewhere", 1)]), 5_000), 1.0);
    assert_eq!(two.preview(&three, 0), 0.0);
}

#[test]
fn nodes_out_of_bounds_are_refused() {
    let long = "x".repeat(NAME_BYTES_MAX);
    assert!(Node::new(&long, 1).is_ok());
    for name in ["", "a\0b", "a\nb", &format!("{long}x")] {
        assert_eq!(Node::new(name, 1), Err(RingError::BadName { name: name.into() }));
    }
    assert!(Node::new("a", WEIGHT_MAX).is_ok());
    for weight in [0, WEIGHT_MAX + 1, u32::MAX] {
        assert_eq!(Node::new("a", weight), Err(RingError::BadWeight { name: "a".into(), weight }));
    }
}

#[test]
fn rings_out_of_bounds_are_refused() {
    let node = |n: usize, weight| Node::new(&format!("node-{n}"), weight).expect("a valid node");
    assert_eq!(Ring::new(Vec::new()), Err(RingError::NoNodes));
    let most = Ring::new((0..NODES_MAX).map(|n| node(n, 1)).collect()).expect("the most nodes allowed");
    assert_eq!(most.nodes().len(), NODES_MAX);
    let count = NODES_MAX + 1;
    assert_eq!(Ring::new((0..count).map(|n| node(n, 1)).collect()), Err(RingError::TooManyNodes { count }));
    let total = WEIGHT_TOTAL_MAX + 1;
    assert_eq!(Ring::new(vec![node(1, WEIGHT_MAX), node(2, 2)]), Err(RingError::TotalWeight { total }));
    let total = NODES_MAX as u32 * WEIGHT_MAX;
    let heaviest = (0..NODES_MAX).map(|n| node(n, WEIGHT_MAX)).collect();
    assert_eq!(Ring::new(heaviest), Err(RingError::TotalWeight { total }));
}

#[test]
fn the_heaviest_ring_can_be_built() {
    let ring = ring(&[("a", WEIGHT_MAX), ("b", WEIGHT_TOTAL_MAX - WEIGHT_MAX)]);
    let all = WEIGHT_TOTAL_MAX * POINTS_PER_WEIGHT;
    // 10.5 million points of 4,295 million possible ones: the points of "a" are distinct, some of "b" may meet them.
    assert!((all - POINTS_PER_WEIGHT..=all).contains(&(ring.points().len() as u32)));
}

/// The same name; the same host and port written differently; two names that share a CRC-32.
#[test]
fn nodes_that_would_share_all_points_are_refused() {
    for (one, other) in [("a:1", "a:1"), ("host", "host:"), ("unix:sock", "sock"), CRC_TWINS] {
        let nodes = [one, other].map(|name| Node::new(name, 1).expect("a valid node"));
        let error = Ring::new(nodes.to_vec()).expect_err("one of them would own nothing");
        let RingError::SamePlacement { first, second } = &error else { panic!("{error}") };
        let mut named = [&**first, &**second];
        let mut given = [one, other];
        named.sort_unstable();
        given.sort_unstable();
        assert_eq!(named, given);
    }
}

const CRC_TWINS: (&str, &str) = ("node-599430bd25", "node-f7633dd321");

#[test]
fn an_error_names_what_to_correct() {
    let text = |error: RingError| error.to_string();
    assert!(text(RingError::BadName { name: "a\nb".into() }).contains(r#""a\nb""#));
    assert!(text(RingError::BadWeight { name: "gw-1".into(), weight: 70_000 }).contains("gw-1"));
    assert!(text(RingError::TotalWeight { total: 99_999 }).contains("99999"));
    assert!(text(RingError::TooManyNodes { count: 2_000 }).contains("2000"));
    let same = RingError::SamePlacement { first: "x".into(), second: "y".into() };
    assert!(text(same.clone()).contains(r#""x""#) && text(same).contains(r#""y""#));
}

fn node_list() -> impl Strategy<Value = Vec<(String, u32)>> {
    prop::collection::hash_map("[a-z]{1,6}(:[0-9]{1,5})?", 1..4_u32, 1..8).prop_map(|map| map.into_iter().collect())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_owner_is_that_of_the_naive_model(list in node_list(), users in prop::collection::vec(any::<u64>(), 50)) {
        let list: Vec<(&str, u32)> = list.iter().map(|(name, weight)| (name.as_str(), *weight)).collect();
        let ring = ring(&list);
        let points = naive_points(&list);
        for user in users.into_iter().chain(0..50) {
            prop_assert_eq!(ring.owner(user).name(), naive_owner(&points, user), "user {}", user);
        }
    }

    #[test]
    fn the_order_of_the_nodes_does_not_matter(
        (list, shuffled) in node_list().prop_flat_map(|list| (Just(list.clone()), Just(list).prop_shuffle())),
    ) {
        let build = |list: &[(String, u32)]| {
            ring(&list.iter().map(|(name, weight)| (name.as_str(), *weight)).collect::<Vec<_>>())
        };
        prop_assert_eq!(build(&list), build(&shuffled));
    }

    #[test]
    fn points_ascend_without_duplicates(list in node_list()) {
        let list: Vec<(&str, u32)> = list.iter().map(|(name, weight)| (name.as_str(), *weight)).collect();
        let ring = ring(&list);
        let points: Vec<u32> = ring.points().map(|(point, _)| point).collect();
        prop_assert!(points.windows(2).all(|pair| pair[0] < pair[1]));
        let mut expected: Vec<u32> = naive_points(&list).into_iter().map(|(point, _)| point).collect();
        expected.sort_unstable();
        expected.dedup();
        prop_assert_eq!(points, expected);
    }
}

#[test]
fn a_placement_is_the_way_to_the_owner() {
    let ring = ring(&[("a", 1), ("b", 2), ("c", 1)]);
    let mut wrapped = 0;
    for user in 0..5_000 {
        let placement = ring.placement(user);
        assert_eq!(placement.node, ring.owner(user));
        assert_eq!(placement.hash, crc32(user.to_string().as_bytes()));
        let owning = ring.points().find(|(point, _)| *point >= placement.hash);
        assert_eq!(placement.wraps, owning.is_none());
        assert_eq!(placement.point, owning.or_else(|| ring.points().next()).unwrap().0);
        wrapped += u32::from(placement.wraps);
    }
    assert!(wrapped > 0, "the end of the ring was met");
}

#[test]
fn shares_are_the_stretches_between_the_points() {
    assert_eq!(ring(&[("alone", 3)]).shares(), [1.0]);
    let ring = ring(&[("a", 1), ("b", 2), ("c", 5)]);
    let mut owned = [0_u64; 3];
    let mut before = None;
    for (point, node) in ring.points() {
        let index = ring.index_of(node.name()).unwrap();
        owned[index] += before.map_or(u64::from(point) + 1, |before: u32| u64::from(point - before));
        before = Some(point);
    }
    let first = ring.points().next().unwrap().1.name().to_owned();
    owned[ring.index_of(&first).unwrap()] += u64::from(u32::MAX - before.unwrap());
    assert_eq!(owned.iter().sum::<u64>(), 1 << 32);
    assert_eq!(ring.shares(), owned.map(|owned| owned as f64 / (1_u64 << 32) as f64));
}
