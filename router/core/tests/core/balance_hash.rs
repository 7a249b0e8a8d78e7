//! Consistent hash: the owner on the ring, and what of it remains when servers are unavailable, come or go.

use crate::balance_support::{Group, server, weighing};
use proptest::prelude::*;
use std::collections::BTreeMap;
use trunkline_router_core::balance::{BalanceError, Key};
use trunkline_router_core::{Balancer, Node, Policy, Ring, RingError, Server, ServerOptions};

type Weights = BTreeMap<String, u32>;

fn ring(weights: &Weights) -> Ring {
    let nodes = weights.iter().map(|(name, &weight)| Node::new(name, weight).expect("a valid node"));
    Ring::new(nodes.collect()).expect("a valid ring")
}

/// Servers in the reverse of the ring's order.
fn servers(weights: &Weights, options: impl Fn(&str) -> ServerOptions) -> Vec<Server> {
    weights.iter().rev().map(|(name, &weight)| server(name, ServerOptions { weight, ..options(name) })).collect()
}

fn all_available(_name: &str) -> ServerOptions {
    ServerOptions::default()
}

fn even(names: &[&str]) -> Weights {
    names.iter().map(|name| ((*name).to_owned(), 1)).collect()
}

#[test]
fn without_a_key_the_weighted_round_robin_decides() {
    let mut group = crate::balance_support::of_weights(Policy::ConsistentHash, &[5, 1, 1]);
    assert_eq!(group.picks(0, 7), "aabacaa");
    for (n, expected) in "aabacaa".chars().enumerate() {
        assert_eq!(group.pick_key(0, ""), Ok(expected.to_string()), "empty key, pick {n}");
    }
}

#[test]
fn keys_are_bytes_text_or_users() {
    let weights = even(&["10.0.0.1:7790", "10.0.0.2:7790", "node-c"]);
    let ring = ring(&weights);
    let mut group = Group::new(Policy::ConsistentHash, servers(&weights, all_available));
    for user in 0..200_u64 {
        let digits = user.to_string();
        let owner = Ok(ring.owner(user).name().to_owned());
        assert_eq!(group.pick_key(0, user), owner);
        assert_eq!(group.pick_key(0, digits.as_str()), owner);
        assert_eq!(group.pick_key(0, digits.as_bytes()), owner);
        assert_eq!(group.pick_key(0, Key::User(user)), owner);
    }
}

#[test]
fn a_key_stays_put_while_its_owner_is_away_and_comes_back_with_it() {
    let weights = even(&["a", "b", "c", "d"]);
    let mut group = Group::new(Policy::ConsistentHash, servers(&weights, all_available));
    let owner = group.pick_key(0, "key").expect("an owner");
    group.failed(&owner, 0);
    let other = group.pick_key(0, "key").expect("another");
    assert_ne!(other, owner);
    for now_ms in [1, 500, 9_999] {
        assert_eq!(group.pick_key(now_ms, "key"), Ok(other.clone()));
    }
    assert_eq!(group.pick_key(10_000, "key"), Ok(owner.clone()));
    group.succeeded(&owner, 10_001);
    assert_eq!(group.pick_key(10_002, "key"), Ok(owner));
}

#[test]
fn backups_have_a_ring_of_their_own() {
    let weights = even(&["a", "b", "x", "y", "z"]);
    let is_backup = |name: &str| name >= "x";
    let with = |down: bool| {
        let options = |name: &str| ServerOptions {
            backup: is_backup(name),
            down: down && !is_backup(name),
            ..all_available(name)
        };
        Group::new(Policy::ConsistentHash, servers(&weights, options))
    };
    let (primaries, backups) = (ring(&even(&["a", "b"])), ring(&even(&["x", "y", "z"])));
    let (mut up, mut down) = (with(false), with(true));
    for user in 0..500_u64 {
        assert_eq!(up.pick_key(0, user), Ok(primaries.owner(user).name().to_owned()));
        assert_eq!(down.pick_key(0, user), Ok(backups.owner(user).name().to_owned()));
    }
}

#[test]
fn a_single_available_server_of_many_is_found_from_every_key() {
    let names: Vec<String> = (0..1_024).map(|n| format!("10.0.{}.{}:7790", n / 256, n % 256)).collect();
    let weights = names.iter().map(|name| (name.clone(), 1)).collect();
    let options = |name: &str| ServerOptions { down: name != names[700], ..all_available(name) };
    let mut group = Group::new(Policy::ConsistentHash, servers(&weights, options));
    for user in 0..200_u64 {
        assert_eq!(group.pick_key(0, user), Ok(names[700].clone()));
    }
}

#[test]
fn servers_that_have_no_place_on_a_ring_are_refused_for_hash_alone() {
    let twins = || vec![server("unix:sock", weighing(1)), server("sock", weighing(1))];
    let heavy = || vec![server("a", weighing(65_535)), server("b", weighing(2))];
    let refused = |servers| Balancer::new(Policy::ConsistentHash, servers).expect_err("no ring");
    assert!(matches!(refused(twins()), BalanceError::Ring(RingError::SamePlacement { .. })));
    assert_eq!(refused(heavy()), BalanceError::Ring(RingError::TotalWeight { total: 65_537 }));
    for policy in [Policy::RoundRobin, Policy::LeastConn, Policy::RandomTwo] {
        assert!(Balancer::new(policy, twins()).is_ok() && Balancer::new(policy, heavy()).is_ok());
    }
}

fn weights() -> impl Strategy<Value = Weights> {
    prop::collection::btree_map("[a-z]{2,6}:[1-9][0-9]{0,3}", 1..4_u32, 2..8)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_user_goes_to_its_owner_on_the_ring(weights in weights(), users in prop::collection::vec(any::<u64>(), 50)) {
        let ring = ring(&weights);
        let mut group = Group::new(Policy::ConsistentHash, servers(&weights, all_available));
        for user in users {
            prop_assert_eq!(group.pick_key(0, user), Ok(ring.owner(user).name().to_owned()));
        }
    }

    #[test]
    fn with_servers_unavailable_the_others_own_what_they_would_own_alone(
        weights in weights(),
        away in prop::collection::vec(0..4_u8, 8),
    ) {
        let kept: Weights = weights.iter().zip(&away).filter(|(_, way)| **way == 0)
            .map(|((name, weight), _)| (name.clone(), *weight)).collect();
        prop_assume!(!kept.is_empty());
        let way_of: BTreeMap<&String, u8> = weights.keys().zip(away.iter().copied()).collect();
        let options = |name: &str| {
            let way = way_of[&name.to_owned()];
            ServerOptions { down: way == 1, drain: way == 2, max_conns: u32::from(way == 3), ..all_available(name) }
        };
        let (full, left) = (ring(&weights), ring(&kept));
        let mut group = Group::new(Policy::ConsistentHash, servers(&weights, options));
        for (name, _) in way_of.iter().filter(|(_, way)| **way == 3) {
            group.set_conns(name, 1);
        }
        for user in 0..200_u64 {
            let picked = group.pick_key(0, user).expect("an available server");
            prop_assert_eq!(&picked, left.owner(user).name());
            let owner = full.owner(user).name();
            prop_assert!(picked == owner || !kept.contains_key(owner), "user {} moved without need", user);
        }
    }

    #[test]
    fn removing_a_server_moves_its_own_keys_only(weights in weights(), gone in 0..8_usize) {
        let gone = weights.keys().nth(gone % weights.len()).expect("a name").clone();
        let mut left = weights.clone();
        left.remove(&gone);
        let mut group = Group::new(Policy::ConsistentHash, servers(&weights, all_available));
        let before: Vec<String> = (0..300_u64).map(|user| group.pick_key(0, user).expect("a server")).collect();
        group.update(0, servers(&left, all_available));
        for (user, before) in (0..).zip(&before) {
            let after = group.pick_key(0, user).expect("a server");
            prop_assert!(after != gone && (after == *before || *before == gone), "user {user}: {before} to {after}");
        }
        group.update(0, servers(&weights, all_available));
        let back: Vec<String> = (0..300_u64).map(|user| group.pick_key(0, user).expect("a server")).collect();
        prop_assert_eq!(back, before);
    }
}
