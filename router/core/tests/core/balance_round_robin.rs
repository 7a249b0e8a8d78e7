//! Smooth weighted round robin: sequences worked out elsewhere, exact shares, and what failures and slow start do to
//! them.

use crate::balance_support::{Group, lettered, of_weights, server, weighing};
use proptest::prelude::*;
use trunkline_router_core::{Policy, ServerOptions};

#[test]
fn weights_5_1_1_give_a_a_b_a_c_a_a() {
    assert_eq!(of_weights(Policy::RoundRobin, &[5, 1, 1]).picks(0, 21), "aabacaaaabacaaaabacaa");
}

#[test]
fn equal_weights_alternate_in_the_order_given() {
    assert_eq!(of_weights(Policy::RoundRobin, &[1, 1]).picks(0, 6), "ababab");
    assert_eq!(of_weights(Policy::RoundRobin, &[7, 7, 7]).picks(0, 6), "abcabc");
}

/// Worked out by a separate program from the formulas: weights, `max_fails`, picks before the failure of a, picks after
/// it.
#[test]
fn a_failure_costs_weight_by_max_fails_and_one_comes_back_with_each_pick() {
    let vectors: [(&[u32], u32, &str, &str); 3] = [
        (&[5, 1, 1], 2, "aa", "bcaaabaacaaabaacaaa"),
        (&[3, 2], 2, "a", "bababaababaaba"),
        (&[4, 2, 1], 2, "aba", "cabacabaabacabaaba"),
    ];
    for (weights, max_fails, before, after) in vectors {
        let servers = weights.iter().map(|&weight| ServerOptions { max_fails, ..weighing(weight) });
        let mut group = Group::new(Policy::RoundRobin, lettered(servers));
        assert_eq!(group.picks(0, before.len()), before);
        group.failed("a", 0);
        let weight = weights[0];
        assert_eq!(group.weight("a", 0), f64::from(weight - weight / max_fails));
        for (n, expected) in (1..).zip(after.chars()) {
            assert_eq!(group.pick(0), Ok(expected.to_string()), "weights {weights:?}, pick {n} after the failure");
            let recovered = (weight - weight / max_fails + n).min(weight);
            assert_eq!(group.weight("a", 0), f64::from(recovered));
        }
    }
}

#[test]
fn a_weight_smaller_than_max_fails_loses_nothing() {
    let mut group =
        Group::new(Policy::RoundRobin, lettered([ServerOptions { max_fails: 3, ..weighing(2) }, weighing(1)]));
    group.failed("a", 0);
    assert_eq!(group.weight("a", 0), 2.0);
}

/// Elapsed milliseconds of 10,000, and the weight of a server of weight 4.
#[test]
fn the_weight_climbs_in_proportion_to_the_time() {
    for policy in [Policy::RoundRobin, Policy::LeastConn] {
        let mut group = Group::new(policy, lettered([weighing(4), weighing(4)]));
        let joins = ServerOptions { slow_start_ms: 10_000, ..weighing(4) };
        group.update(1_000, lettered([weighing(4), weighing(4), joins]));
        let table = [
            (0, 4.0 / 65_536.0),
            (1_250, 0.5),
            (2_500, 1.0),
            (5_000, 2.0),
            (7_500, 3.0),
            (8_750, 3.5),
            (10_000, 4.0),
            (99_999, 4.0),
        ];
        for (elapsed_ms, weight) in table {
            assert_eq!(group.weight("c", 1_000 + elapsed_ms), weight, "after {elapsed_ms} ms");
        }
        assert!(group.weight("c", 10_999) < 4.0);
        assert_eq!(group.weight("a", 1_000), 4.0);
    }
}

#[test]
fn a_server_on_its_way_up_gets_its_share_of_the_moment() {
    let joins = ServerOptions { slow_start_ms: 1_000, ..weighing(1) };
    for (elapsed_ms, shares) in [(0, [800, 0]), (250, [640, 160]), (500, [533, 267]), (1_000, [400, 400])] {
        let mut group = of_weights(Policy::RoundRobin, &[1]);
        group.update(0, lettered([weighing(1), joins.clone()]));
        assert_eq!(group.shares(elapsed_ms, 800), shares, "after {elapsed_ms} ms");
    }
}

#[test]
fn a_heavy_server_made_light_is_neither_starved_nor_flooded() {
    let mut group = of_weights(Policy::RoundRobin, &[60_000, 1, 1]);
    group.picks(0, 30_000);
    group.update(0, lettered([weighing(1), weighing(1), weighing(1)]));
    let shares = group.shares(0, 30);
    assert!(shares.iter().all(|share| (8..=12).contains(share)), "{shares:?}");
}

/// The server picked last goes, which leaves the others ahead of whoever takes its place.
#[test]
fn a_server_that_comes_starts_level_with_the_rest() {
    let set = |first: &str| [first, "a", "b"].map(|name| server(name, weighing(1))).to_vec();
    let mut group = Group::new(Policy::RoundRobin, set("x"));
    for (first, next) in [("x", "y"), ("y", "z"), ("z", "x")] {
        assert_eq!(group.pick(0), Ok(first.into()));
        group.update(0, set(next));
    }
    assert_eq!(group.picks(0, 6), "xabxab");
}

#[test]
fn servers_that_come_and_go_leave_no_debt() {
    let mut group = of_weights(Policy::RoundRobin, &[3, 3, 3]);
    for round in 0..1_000 {
        group.picks(0, 2);
        let count = if round % 2 == 0 { 2 } else { 3 };
        group.update(0, lettered((0..count).map(|_| weighing(3))));
    }
    assert_eq!(group.shares(0, 300), [100, 100, 100]);
}

/// The formulas once more, in the plainest form: effective weights and currents as whole numbers.
struct Naive {
    weights: Vec<i64>,
    effective: Vec<i64>,
    current: Vec<i64>,
}

impl Naive {
    fn pick(&mut self) -> usize {
        for (current, effective) in self.current.iter_mut().zip(&self.effective) {
            *current += effective;
        }
        let most = *self.current.iter().max().expect("servers");
        let best = self.current.iter().position(|current| *current == most).expect("the most of them");
        self.current[best] -= self.effective.iter().sum::<i64>();
        for (effective, weight) in self.effective.iter_mut().zip(&self.weights) {
            *effective = (*effective + 1).min(*weight);
        }
        best
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn over_one_round_of_the_weights_each_is_picked_as_often_as_its_weight(
        weights in prop::collection::vec(1..60_u32, 1..12),
    ) {
        let round = weights.iter().sum::<u32>() as usize;
        let expected: Vec<usize> = weights.iter().map(|&weight| weight as usize).collect();
        let mut group = of_weights(Policy::RoundRobin, &weights);
        for _ in 0..3 {
            prop_assert_eq!(&group.shares(0, round), &expected);
        }
    }

    #[test]
    fn picks_and_failures_follow_the_naive_model(
        weights in prop::collection::vec(1..20_u32, 2..8),
        max_fails in 1..6_u32,
        steps in prop::collection::vec((any::<bool>(), 0..8_usize), 1..200),
    ) {
        let servers = lettered(weights.iter().map(|&weight| {
            // Failures that are older than a millisecond count no more, so that none is ever suspended here.
            ServerOptions { max_fails, fail_timeout_ms: 1, ..weighing(weight) }
        }));
        let mut group = Group::new(Policy::RoundRobin, servers);
        let weights: Vec<i64> = weights.into_iter().map(i64::from).collect();
        let mut naive = Naive { effective: weights.clone(), current: vec![0; weights.len()], weights };
        for (now_ms, (fails, index)) in (0..).step_by(2).zip(steps) {
            // With one failure to the suspension every failure is one.
            if fails && max_fails > 1 {
                let index = index % naive.weights.len();
                group.failed(&char::from(b'a' + index as u8).to_string(), now_ms);
                naive.effective[index] = (naive.effective[index] - naive.weights[index] / i64::from(max_fails)).max(0);
            }
            let expected = char::from(b'a' + naive.pick() as u8).to_string();
            prop_assert_eq!(group.pick(now_ms), Ok(expected));
        }
    }
}
