//! Random two: two different servers drawn by weight, the less loaded of them wins, and the draws are bounded.

use crate::balance_support::{Group, lettered, of_weights, weighing};
use proptest::prelude::*;
use rand::TryRng;
use std::convert::Infallible;
use trunkline_router_core::balance::Unavailable;
use trunkline_router_core::{Policy, ServerOptions};

/// A source that says the same for ever, and counts how often it is asked.
struct Stuck {
    word: u32,
    asked: u32,
}

impl TryRng for Stuck {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        self.asked += 1;
        Ok(self.word)
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        self.asked += 1;
        Ok(u64::from(self.word) << 32 | u64::from(self.word))
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        bytes.fill(0);
        Ok(())
    }
}

#[test]
fn of_two_servers_the_less_loaded_always_wins() {
    let mut group = of_weights(Policy::RandomTwo, &[3, 2]);
    for (a, b, expected) in [(30, 19, "b"), (30, 21, "a"), (0, 1, "a"), (1, 0, "b")] {
        group.set_conns("a", a);
        group.set_conns("b", b);
        assert_eq!(group.picks(0, 50), expected.repeat(50), "{a} and {b} connections");
    }
}

#[test]
fn the_most_loaded_server_is_never_picked() {
    let mut group = of_weights(Policy::RandomTwo, &[1, 1, 1, 1]);
    group.set_conns("c", 9);
    assert_eq!(group.shares(0, 2_000)[2], 0);
}

/// Of three equal servers with 0, 1 and 2 connections a is in two of three pairs, b wins the third.
#[test]
fn each_pair_is_as_likely_as_its_weights_say() {
    let mut group = of_weights(Policy::RandomTwo, &[1, 1, 1]);
    group.set_conns("b", 1);
    group.set_conns("c", 2);
    let shares = group.shares(0, 30_000);
    // The standard deviation is 82.
    assert!(shares[0].abs_diff(20_000) < 500 && shares[2] == 0, "{shares:?}");
}

#[test]
fn idle_servers_are_picked_in_proportion_to_their_weights() {
    let mut group = of_weights(Policy::RandomTwo, &[1, 2, 3, 4]);
    for (share, expected) in group.shares(0, 50_000).into_iter().zip([5_000, 10_000, 15_000, 20_000]) {
        // The largest standard deviation is 110.
        assert!(share.abs_diff(expected) < 600, "{share} for {expected}");
    }
}

#[test]
fn a_source_that_is_stuck_ends_in_round_robin_after_20_misses() {
    for (word, first) in [(0, "a"), (u32::MAX, "c")] {
        let mut group = of_weights(Policy::RandomTwo, &[1, 1, 1]);
        let mut stuck = Stuck { word, asked: 0 };
        let picked = (0..6).map(|_| group.balancer.pick(0, None, &mut stuck).expect("an available server"));
        let picked: Vec<_> = picked.collect();
        assert_eq!(picked.into_iter().map(|id| group.name(id)).collect::<String>(), "abcabc", "stuck at {first}");
        // The first draw finds a server, 20 may miss, and the next one ends it.
        assert_eq!(stuck.asked, 6 * 22, "stuck at {first}");
    }
}

#[test]
fn with_one_available_server_it_is_picked() {
    let down = |down| ServerOptions { down, ..weighing(1) };
    let mut group = Group::new(Policy::RandomTwo, lettered([down(true), down(true), down(false), down(true)]));
    assert_eq!(group.picks(0, 20), "c".repeat(20));
    group.failed("c", 0);
    assert_eq!(group.pick(0), Err(Unavailable::AllFailed { until_ms: 10_000 }));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn connections_that_stay_spread_by_weight_within_bounds(weights in prop::collection::vec(1..5_u32, 3..16)) {
        const PER_UNIT: u32 = 200;
        let total: u32 = weights.iter().sum();
        let mut group = of_weights(Policy::RandomTwo, &weights);
        for _ in 0..total * PER_UNIT {
            let picked = group.balancer.pick(0, None, &mut group.rng).expect("an available server");
            group.balancer.connected(picked);
        }
        for (state, weight) in group.balancer.servers(0).zip(&weights) {
            let share = f64::from(state.conns) / f64::from(weight * PER_UNIT);
            // One choice alone would stray by 7 % (one standard deviation) at weight 1.
            prop_assert!((0.93..1.07).contains(&share), "{share} of the share of weight {weight} in {weights:?}");
        }
    }

    #[test]
    fn two_different_servers_are_compared(conns in prop::collection::vec(0..50_u32, 2..10)) {
        let mut group = of_weights(Policy::RandomTwo, &vec![1; conns.len()]);
        let ids: Vec<_> = group.balancer.servers(0).map(|state| state.id).collect();
        for (id, conns) in ids.iter().zip(&conns) {
            group.balancer.set_conns(*id, *conns);
        }
        let most = *conns.iter().max().expect("servers");
        let alone = conns.iter().filter(|conns| **conns == most).count() == 1;
        for _ in 0..100 {
            let picked = group.balancer.pick(0, None, &mut group.rng).expect("an available server");
            let conns = group.balancer.server(picked, 0).expect("a server").conns;
            prop_assert!(!alone || conns < most, "the most loaded server beat another");
        }
    }
}
