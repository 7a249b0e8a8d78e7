//! What a set of servers is made of: options, tiers, drain, the reasons when there is nobody to pick, and updates.

use crate::balance_support::{Group, lettered, of_weights, server, weighing};
use trunkline_router_core::balance::{
    BalanceError, Health, MAX_FAILS_LIMIT, PERIOD_MS_MAX, ServerState, Unavailable, UnknownPolicy,
};
use trunkline_router_core::ring::{NODES_MAX, WEIGHT_MAX};
use trunkline_router_core::{Balancer, Policy, Server, ServerOptions};

fn plain() -> ServerOptions {
    ServerOptions::default()
}

fn down() -> ServerOptions {
    ServerOptions { down: true, ..plain() }
}

fn draining() -> ServerOptions {
    ServerOptions { drain: true, ..plain() }
}

fn backup() -> ServerOptions {
    ServerOptions { backup: true, ..plain() }
}

fn room_for(max_conns: u32) -> ServerOptions {
    ServerOptions { max_conns, ..plain() }
}

#[test]
fn a_policy_is_known_by_its_name() {
    let names = ["weighted-round-robin", "least-conn", "consistent-hash", "random-two", "least-time"];
    for (policy, name) in Policy::ALL.into_iter().zip(names) {
        assert_eq!(policy.to_string(), name);
        assert_eq!(name.parse(), Ok(policy));
    }
    for name in ["", "home", "Least-Conn", "least-conn ", "round-robin"] {
        assert_eq!(name.parse::<Policy>(), Err(UnknownPolicy { name: name.into() }));
    }
    let text = "fastest".parse::<Policy>().expect_err("no such policy").to_string();
    assert!(names.iter().chain(&["fastest"]).all(|name| text.contains(name)), "{text}");
}

#[test]
fn the_defaults_are_those_of_nginx() {
    let options = plain();
    assert_eq!((options.weight, options.max_conns, options.max_fails), (1, 0, 1));
    assert_eq!((options.fail_timeout_ms, options.slow_start_ms), (10_000, 0));
    assert!(!options.backup && !options.down && !options.drain);
}

#[test]
fn options_out_of_range_are_refused_and_the_text_names_the_fix() {
    let refused = |name: &str, options| Server::new(name, options).expect_err("out of range");
    let cases = [
        (refused("", plain()), "1 to 259 bytes"),
        (refused("gw\n1", plain()), "control characters"),
        (refused("gw-1", weighing(0)), "within 1 to 65535"),
        (refused("gw-1", weighing(WEIGHT_MAX + 1)), "within 1 to 65535"),
        (refused("gw-1", ServerOptions { max_fails: MAX_FAILS_LIMIT + 1, ..plain() }), "at most 1000"),
        (refused("gw-1", ServerOptions { fail_timeout_ms: 0, ..plain() }), "fail_timeout of 0 ms; set it within 1 to"),
        (refused("gw-1", ServerOptions { fail_timeout_ms: PERIOD_MS_MAX + 1, ..plain() }), "fail_timeout of 86400001"),
        (refused("gw-1", ServerOptions { slow_start_ms: PERIOD_MS_MAX + 1, ..plain() }), "slow_start of 86400001"),
    ];
    for (error, fix) in cases {
        let text = error.to_string();
        assert!(text.contains(fix) && (text.contains("gw") || text.contains("\"\"")), "{text}");
    }
    let largest = ServerOptions {
        weight: WEIGHT_MAX,
        max_conns: u32::MAX,
        max_fails: MAX_FAILS_LIMIT,
        fail_timeout_ms: PERIOD_MS_MAX,
        slow_start_ms: PERIOD_MS_MAX,
        ..plain()
    };
    assert_eq!(Server::new("gw-1", largest.clone()).expect("the largest").options(), &largest);
}

#[test]
fn sets_out_of_bounds_are_refused() {
    let many = |count: usize| (0..count).map(|n| server(&format!("node-{n}"), plain())).collect::<Vec<_>>();
    for policy in Policy::ALL {
        assert!(Balancer::new(policy, many(NODES_MAX)).is_ok(), "{policy}");
        let count = NODES_MAX + 1;
        assert_eq!(Balancer::new(policy, many(count)).expect_err("too many"), BalanceError::TooManyServers { count });
        let twice = vec![server("x", plain()), server("y", plain()), server("x", backup())];
        let same = BalanceError::SameName { name: "x".into() };
        assert_eq!(Balancer::new(policy, twice).expect_err("twice"), same, "{policy}");
    }
}

#[test]
fn the_reason_is_that_of_the_server_which_is_back_soonest() {
    for policy in Policy::ALL {
        let reason = |options: Vec<ServerOptions>| Group::new(policy, lettered(options)).pick(0);
        assert_eq!(reason(vec![]), Err(Unavailable::NoServers), "{policy}");
        assert_eq!(
            reason(vec![down(), ServerOptions { drain: true, ..down() }]),
            Err(Unavailable::AllDown),
            "{policy}"
        );
        assert_eq!(reason(vec![down(), draining(), backup_and(draining())]), Err(Unavailable::AllDraining), "{policy}");

        let mut group = Group::new(policy, lettered([down(), draining(), plain(), backup_and(room_for(3))]));
        group.failed("c", 7);
        assert_eq!(group.pick(7), Ok("d".into()), "{policy}");
        group.set_conns("d", 3);
        assert_eq!(group.pick(7), Err(Unavailable::AllFull), "{policy}");
        group.failed("d", 9);
        assert_eq!(group.pick(9), Err(Unavailable::AllFailed { until_ms: 10_007 }), "{policy}");
    }
}

fn backup_and(options: ServerOptions) -> ServerOptions {
    ServerOptions { backup: true, ..options }
}

#[test]
fn a_server_takes_connections_up_to_max_conns() {
    for policy in Policy::ALL {
        let mut group = Group::new(policy, lettered([room_for(2), room_for(1)]));
        let mut taken = Vec::new();
        while let Ok(id) = group.balancer.pick(0, None, &mut group.rng) {
            group.balancer.connected(id);
            taken.push(id);
        }
        assert_eq!((group.state("a", 0).conns, group.state("b", 0).conns), (2, 1), "{policy}");
        group.balancer.released(taken[0]);
        assert_eq!(group.balancer.pick(0, None, &mut group.rng), Ok(taken[0]), "{policy}");
    }
}

#[test]
fn backups_serve_only_while_no_other_server_can() {
    for policy in Policy::ALL {
        let mut group = Group::new(policy, lettered([plain(), plain(), backup(), backup()]));
        assert!(group.picks(0, 20).chars().all(|name| "ab".contains(name)), "{policy}");
        group.failed("a", 0);
        assert_eq!(group.picks(1, 20), "b".repeat(20), "{policy}");
        group.failed("b", 1);
        let served = group.picks(2, 60);
        assert!(served.chars().all(|name| "cd".contains(name)), "{policy}: {served}");
        assert!(served.contains('c') && served.contains('d'), "{policy}: {served}");
        assert_eq!(group.pick(10_000), Ok("a".into()), "{policy}: the probe of a comes first");
        assert_eq!(group.pick(10_000).map(|name| "cd".contains(&name)), Ok(true), "{policy}: its outcome is open");
    }
}

#[test]
fn a_draining_server_is_picked_for_what_is_bound_to_it_and_for_nothing_else() {
    for policy in Policy::ALL {
        let mut group = Group::new(policy, lettered([plain(), draining()]));
        group.set_conns("b", 5);
        for key in 0..50_u64 {
            assert_eq!(group.pick_key(0, key), Ok("a".into()), "{policy}");
            assert_eq!(group.pick_bound("b", 0), Ok("b".into()), "{policy}");
        }
        assert_eq!(group.state("b", 0).conns, 5, "{policy}");
    }
}

#[test]
fn what_is_bound_moves_when_its_server_cannot_take_it() {
    let moved = |options: ServerOptions, prepare: fn(&mut Group)| {
        let mut group = Group::new(Policy::RoundRobin, lettered([plain(), options]));
        prepare(&mut group);
        assert_eq!(group.pick_bound("b", 0), Ok("a".into()));
    };
    moved(down(), |_| ());
    moved(ServerOptions { drain: true, ..down() }, |_| ());
    moved(draining(), |group| group.failed("b", 0));
    moved(ServerOptions { drain: true, ..room_for(1) }, |group| group.set_conns("b", 1));

    let mut group = of_weights(Policy::RoundRobin, &[1, 1]);
    let gone = group.id("b");
    group.update(0, lettered([plain()]));
    assert_eq!(group.balancer.pick_bound(gone, 0, None, &mut group.rng), Ok(group.id("a")));
}

#[test]
fn what_is_bound_to_a_backup_stays_there_and_does_not_count_in_the_round_robin() {
    let mut group = Group::new(Policy::RoundRobin, lettered([weighing(5), weighing(1), weighing(1), backup()]));
    let mut picked = String::new();
    for _ in 0..7 {
        picked += &group.pick(0).expect("an available server");
        assert_eq!(group.pick_bound("d", 0), Ok("d".into()));
        assert_eq!(group.pick_bound("b", 0), Ok("b".into()));
    }
    assert_eq!(picked, "aabacaa");
}

#[test]
fn a_bound_pick_is_a_probe_like_any_other() {
    let mut group = of_weights(Policy::RoundRobin, &[1, 1]);
    group.failed("b", 0);
    assert_eq!(group.pick_bound("b", 9_999), Ok("a".into()));
    assert_eq!(group.pick_bound("b", 10_000), Ok("b".into()));
    assert_eq!(group.health("b"), Health::Probing { until_ms: 20_000 });
    assert_eq!(group.pick_bound("b", 10_000), Ok("a".into()));
}

#[test]
fn an_update_keeps_all_that_is_known_of_the_servers_that_stay() {
    let limited = |weight| ServerOptions { max_fails: 3, ..weighing(weight) };
    let mut group = Group::new(Policy::RoundRobin, lettered([limited(6), limited(2), plain()]));
    group.set_conns("a", 4);
    group.failed("a", 10);
    for _ in 0..3 {
        group.failed("b", 20);
    }
    let ids = ["a", "b"].map(|name| group.id(name));
    let before = ["a", "b"].map(|name| parts(group.state(name, 30)));
    // In another order, without c, with d.
    group.update(30, vec![server("d", plain()), server("b", limited(2)), server("a", limited(6))]);
    assert_eq!(["a", "b"].map(|name| group.id(name)), ids);
    assert_eq!(["a", "b"].map(|name| parts(group.state(name, 30))), before);
    assert_eq!(before[0], (4, 1, 4.0, Health::Up));
    assert_eq!(before[1], (0, 3, 2.0, Health::Failed { until_ms: 10_020 }));
    let listed: Vec<String> = group.balancer.servers(30).map(|state| state.server.name().to_owned()).collect();
    assert_eq!(listed, ["d", "b", "a"]);
}

fn parts(state: ServerState<'_>) -> (u32, u32, f64, Health) {
    (state.conns, state.fails, state.effective_weight, state.health)
}

#[test]
fn an_update_to_the_same_servers_changes_no_pick() {
    for policy in Policy::ALL {
        let servers =
            || lettered([weighing(5), weighing(1), weighing(1), ServerOptions { max_conns: 9, ..weighing(2) }]);
        let (mut one, mut other) = (Group::new(policy, servers()), Group::new(policy, servers()));
        for step in 0..100 {
            other.update(step, servers());
            assert_eq!(one.pick(step), other.pick(step), "{policy}, step {step}");
        }
    }
}

#[test]
fn a_refused_update_changes_nothing() {
    for policy in Policy::ALL {
        let mut group = of_weights(policy, &[5, 1, 1]);
        let twice = vec![server("a", weighing(9)), server("z", plain()), server("z", plain())];
        assert!(group.balancer.update(0, twice).is_err(), "{policy}");
        assert_eq!(group.balancer.id_of("z"), None);
        assert_eq!(group.state("a", 0).server.options(), &weighing(5));
        assert_eq!(group.balancer.servers(0).len(), 3);
    }
    let mut group = of_weights(Policy::ConsistentHash, &[5, 1, 1]);
    let heavy = vec![server("a", weighing(65_535)), server("z", weighing(65_535))];
    assert!(group.balancer.update(0, heavy).is_err());
    assert_eq!((group.weight("a", 0), group.balancer.servers(0).len()), (5.0, 3));
}

#[test]
fn an_update_takes_new_options_over() {
    let mut group = of_weights(Policy::RoundRobin, &[4, 1]);
    group.update(0, lettered([weighing(2), weighing(1)]));
    assert_eq!(group.shares(0, 30), [20, 10]);
    group.update(0, lettered([down(), plain()]));
    assert_eq!(group.picks(0, 5), "bbbbb");
    group.failed("b", 0);
    group.update(1, lettered([down(), ServerOptions { max_fails: 0, ..plain() }]));
    assert_eq!(group.pick(1), Ok("b".into()));
}

#[test]
fn a_server_whose_down_is_taken_back_climbs() {
    let slow = ServerOptions { slow_start_ms: 1_000, ..weighing(8) };
    let away = ServerOptions { down: true, ..slow.clone() };
    let drained = ServerOptions { drain: true, ..slow.clone() };
    let mut group = Group::new(Policy::RoundRobin, lettered([away, drained]));
    group.update(5_000, lettered([slow.clone(), slow.clone()]));
    assert_eq!((group.weight("a", 5_250), group.weight("b", 5_250)), (2.0, 8.0));
    // It goes on climbing through updates that leave it up.
    group.update(5_500, lettered([slow.clone(), slow.clone()]));
    assert_eq!(group.weight("a", 5_750), 6.0);
}

#[test]
fn reports_about_servers_that_are_gone_reach_nobody() {
    let mut group = of_weights(Policy::RoundRobin, &[1, 1]);
    let gone = group.id("b");
    group.update(0, lettered([plain()]));
    group.update(0, lettered([plain(), plain()]));
    assert_ne!(group.id("b"), gone);
    group.balancer.connected(gone);
    group.balancer.set_conns(gone, 7);
    group.balancer.failed(gone, 0);
    group.balancer.succeeded(gone, 0);
    assert!(group.balancer.server(gone, 0).is_none());
    for state in group.balancer.servers(0) {
        assert_eq!((state.conns, state.fails, state.health), (0, 0, Health::Up));
    }
}

#[test]
fn a_set_may_become_empty_and_fill_again() {
    for policy in Policy::ALL {
        let mut group = of_weights(policy, &[1, 1]);
        group.update(0, Vec::new());
        assert_eq!(group.pick_key(0, 1), Err(Unavailable::NoServers), "{policy}");
        let slow = ServerOptions { slow_start_ms: 1_000, ..weighing(2) };
        group.update(0, lettered([slow.clone(), slow]));
        assert!(group.pick_key(0, 1).is_ok(), "{policy}");
        assert_eq!(group.weight("a", 0), 2.0, "{policy}: all are equally new");
    }
}
