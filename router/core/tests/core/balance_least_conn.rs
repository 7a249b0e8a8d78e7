//! Least-conn: never more connections for each unit of weight than another server has, and round robin among equals.

use crate::balance_support::{Group, lettered, of_weights, weighing};
use proptest::prelude::*;
use trunkline_router_core::{Policy, ServerOptions};

#[test]
fn connections_count_by_weight() {
    let mut group = of_weights(Policy::LeastConn, &[1, 3]);
    for (conns, expected) in [((1, 2), "b"), ((1, 4), "a"), ((0, 1), "a"), ((100, 299), "b"), ((100, 301), "a")] {
        group.set_conns("a", conns.0);
        group.set_conns("b", conns.1);
        assert_eq!(group.pick(0), Ok(expected.into()), "{conns:?}");
    }
}

/// In floating point the two loads would be one.
#[test]
fn loads_that_differ_in_the_last_bit_differ() {
    let mut group = of_weights(Policy::LeastConn, &[65_535, 65_534]);
    group.set_conns("a", 4_294_967_294);
    group.set_conns("b", 4_294_901_758);
    let exact = 4_294_967_294_u64 * 65_534 < 4_294_901_758_u64 * 65_535;
    assert_eq!(group.pick(0), Ok(if exact { "a" } else { "b" }.into()));
    group.set_conns("b", 4_294_901_757);
    group.set_conns("a", u32::MAX);
    assert_eq!(group.pick(0), Ok("b".into()));
}

#[test]
fn among_equals_the_weighted_round_robin_decides() {
    assert_eq!(of_weights(Policy::LeastConn, &[5, 1, 1]).picks(0, 7), "aabacaa");
    let mut group = of_weights(Policy::LeastConn, &[1, 1, 1]);
    group.set_conns("b", 1);
    assert_eq!(group.picks(0, 6), "acacac");
}

#[test]
fn connections_that_come_and_go_are_counted() {
    let mut group = of_weights(Policy::LeastConn, &[1, 1]);
    let (a, b) = (group.id("a"), group.id("b"));
    group.balancer.connected(a);
    group.balancer.connected(a);
    group.balancer.connected(b);
    assert_eq!(group.pick(0), Ok("b".into()));
    group.balancer.released(a);
    group.balancer.released(a);
    group.balancer.released(a);
    assert_eq!(group.state("a", 0).conns, 0);
    assert_eq!(group.pick(0), Ok("a".into()));
    group.set_conns("a", u32::MAX);
    group.balancer.connected(a);
    assert_eq!(group.state("a", 0).conns, u32::MAX);
}

#[test]
fn a_server_on_its_way_up_counts_its_weight_of_the_moment() {
    let joins = ServerOptions { slow_start_ms: 1_000, ..weighing(4) };
    let mut group = of_weights(Policy::LeastConn, &[4]);
    group.update(0, lettered([weighing(4), joins]));
    group.set_conns("a", 40);
    for (now_ms, conns, expected) in [(250, 9, "b"), (250, 11, "a"), (500, 19, "b"), (500, 21, "a"), (1_000, 39, "b")] {
        group.set_conns("b", conns);
        assert_eq!(group.pick(now_ms), Ok(expected.into()), "{conns} at {now_ms}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_available_server_has_fewer_connections_for_its_weight(
        servers in prop::collection::vec((1..=65_535_u32, 0..5_000_u32, 0..3_u32, any::<bool>()), 2..12),
        steps in prop::collection::vec((0..12_usize, 0..5_000_u32), 1..60),
    ) {
        let options = servers.iter().map(|&(weight, _, full, down)| {
            ServerOptions { max_conns: if full == 0 { 1_000 } else { 0 }, down, ..weighing(weight) }
        });
        let mut group = Group::new(Policy::LeastConn, lettered(options));
        let ids: Vec<_> = group.balancer.servers(0).map(|state| state.id).collect();
        for (id, (_, conns, ..)) in ids.iter().zip(&servers) {
            group.balancer.set_conns(*id, *conns);
        }
        for (index, conns) in steps {
            group.balancer.set_conns(ids[index % ids.len()], conns);
            let Ok(picked) = group.balancer.pick(0, None, &mut group.rng) else { continue };
            let load = |id| {
                let state = group.balancer.server(id, 0).expect("a server");
                (u64::from(state.conns), u64::from(state.server.options().weight))
            };
            let (conns, weight) = load(picked);
            for state in group.balancer.servers(0) {
                let options = state.server.options();
                if options.down || (options.max_conns > 0 && state.conns >= options.max_conns) {
                    prop_assert_ne!(state.id, picked);
                    continue;
                }
                let (other_conns, other_weight) = load(state.id);
                prop_assert!(conns * other_weight <= other_conns * weight, "{picked:?} before {:?}", state.id);
            }
            group.balancer.connected(picked);
        }
    }

    #[test]
    fn connections_that_stay_fill_the_servers_by_weight(weights in prop::collection::vec(1..30_u32, 1..8)) {
        let round = weights.iter().sum::<u32>() as usize;
        let mut group = of_weights(Policy::LeastConn, &weights);
        for _ in 0..4 * round {
            let picked = group.balancer.pick(0, None, &mut group.rng).expect("an available server");
            group.balancer.connected(picked);
        }
        for (state, weight) in group.balancer.servers(0).zip(&weights) {
            prop_assert_eq!(state.conns, 4 * weight);
        }
    }
}
