//! `max_fails` and `fail_timeout`: when failures suspend a server, and the millisecond from which it may be picked
//! again.

use crate::balance_support::{Group, lettered, of_weights, weighing};
use trunkline_router_core::balance::{Health, Unavailable};
use trunkline_router_core::{Policy, ServerOptions};

/// Two servers; a with these limits, b never suspended.
fn failing(max_fails: u32, fail_timeout_ms: u64) -> Group {
    let b = ServerOptions { max_fails: 0, ..weighing(1) };
    Group::new(Policy::RoundRobin, lettered([ServerOptions { max_fails, fail_timeout_ms, ..weighing(1) }, b]))
}

fn is_picked(group: &mut Group, name: &str, now_ms: u64) -> bool {
    group.picks(now_ms, 8).contains(name)
}

#[test]
fn a_suspended_server_is_probed_at_the_very_millisecond_its_time_is_over() {
    let mut group = failing(1, 10_000);
    group.failed("a", 5_000);
    assert_eq!(group.health("a"), Health::Failed { until_ms: 15_000 });
    assert!(!is_picked(&mut group, "a", 5_000));
    assert!(!is_picked(&mut group, "a", 14_999));
    assert!(is_picked(&mut group, "a", 15_000));
    assert_eq!(group.health("a"), Health::Probing { until_ms: 25_000 });
}

#[test]
fn failures_count_for_fail_timeout_and_not_a_millisecond_longer() {
    for (last_ms, suspended) in [(1_099, true), (1_100, false)] {
        let mut group = failing(3, 100);
        group.failed("a", 1_000);
        group.failed("a", 1_050);
        assert_eq!(group.state("a", 1_050).fails, 2);
        assert_eq!(group.health("a"), Health::Up);
        group.failed("a", last_ms);
        assert_eq!(group.health("a") != Health::Up, suspended, "the third at {last_ms}");
    }
}

/// The first failure is too old for the last one, and the middle two are not.
#[test]
fn failures_close_together_count_wherever_a_period_would_have_ended() {
    let mut group = failing(3, 100);
    for at_ms in [0, 90, 110] {
        group.failed("a", at_ms);
        assert_eq!(group.health("a"), Health::Up);
    }
    group.failed("a", 120);
    assert_eq!(group.health("a"), Health::Failed { until_ms: 220 });
}

#[test]
fn a_success_between_failures_forgives_none_of_them() {
    let mut group = failing(2, 100);
    group.failed("a", 0);
    group.succeeded("a", 1);
    assert_eq!(group.state("a", 1).fails, 1);
    group.failed("a", 2);
    assert_eq!(group.health("a"), Health::Failed { until_ms: 102 });
}

#[test]
fn without_max_fails_no_number_of_failures_suspends() {
    let mut group = failing(0, 100);
    for _ in 0..1_000 {
        group.failed("a", 0);
    }
    assert_eq!((group.health("a"), group.state("a", 0).fails), (Health::Up, 0));
    assert_eq!(group.weight("a", 0), 1.0);
}

#[test]
fn one_probe_is_out_at_a_time_and_the_next_follows_after_fail_timeout() {
    let mut group = failing(1, 100);
    group.failed("a", 0);
    let probes = |group: &mut Group, now_ms| group.picks(now_ms, 20).matches('a').count();
    assert_eq!(probes(&mut group, 100), 1);
    assert_eq!(probes(&mut group, 199), 0);
    assert_eq!(probes(&mut group, 200), 1);
}

#[test]
fn a_probe_that_succeeds_brings_the_server_back() {
    let mut group = failing(1, 100);
    group.failed("a", 0);
    assert!(is_picked(&mut group, "a", 100));
    group.succeeded("a", 101);
    assert_eq!((group.health("a"), group.state("a", 101).fails), (Health::Up, 0));
    assert_eq!(group.shares(101, 100), [50, 50]);
}

#[test]
fn a_probe_that_fails_suspends_anew_however_many_failures_are_allowed() {
    let mut group = failing(3, 100);
    for _ in 0..3 {
        group.failed("a", 0);
    }
    assert!(is_picked(&mut group, "a", 100));
    group.failed("a", 150);
    assert_eq!(group.health("a"), Health::Failed { until_ms: 250 });
}

#[test]
fn successes_of_older_picks_do_not_end_a_suspension() {
    let mut group = failing(1, 100);
    group.failed("a", 0);
    for now_ms in [1, 99, 100, 1_000] {
        group.succeeded("a", now_ms);
    }
    assert_eq!(group.health("a"), Health::Failed { until_ms: 100 });
}

#[test]
fn a_failure_while_suspended_starts_the_period_again() {
    let mut group = failing(1, 100);
    group.failed("a", 0);
    group.failed("a", 60);
    assert!(!is_picked(&mut group, "a", 159));
    assert!(is_picked(&mut group, "a", 160));
}

#[test]
fn a_server_alone_is_never_considered_unavailable() {
    for policy in Policy::ALL {
        let alone = ServerOptions { slow_start_ms: 1_000, ..weighing(4) };
        let mut group = Group::new(policy, lettered([alone]));
        group.failed("a", 0);
        group.failed("a", 0);
        assert_eq!(group.pick(0), Ok("a".into()), "{policy}");
        assert_eq!((group.health("a"), group.weight("a", 0)), (Health::Up, 4.0), "{policy}");
    }
}

#[test]
fn down_drain_and_max_conns_hold_for_a_server_alone() {
    let alone = |options| Group::new(Policy::RoundRobin, lettered([options]));
    assert_eq!(alone(ServerOptions { down: true, ..weighing(1) }).pick(0), Err(Unavailable::AllDown));
    assert_eq!(alone(ServerOptions { drain: true, ..weighing(1) }).pick(0), Err(Unavailable::AllDraining));
    let mut full = alone(ServerOptions { max_conns: 2, ..weighing(1) });
    full.set_conns("a", 2);
    assert_eq!(full.pick(0), Err(Unavailable::AllFull));
}

#[test]
fn the_last_server_that_stays_is_forgiven() {
    let mut group = of_weights(Policy::RoundRobin, &[4, 1]);
    group.failed("a", 0);
    group.update(1, lettered([weighing(4)]));
    assert_eq!((group.pick(1), group.health("a")), (Ok("a".into()), Health::Up));
    assert_eq!(group.weight("a", 1), 4.0);
    // It was up all the time, so nothing climbs and nothing is suspended when it has company again.
    group.update(2, lettered([weighing(4), weighing(1)]));
    assert_eq!(group.shares(2, 5), [4, 1]);
}

#[test]
fn when_all_have_failed_a_pick_tells_when_the_first_is_probed() {
    for policy in Policy::ALL {
        let mut group = of_weights(policy, &[1, 1, 1]);
        for (name, at_ms) in [("a", 300), ("b", 100), ("c", 200)] {
            group.failed(name, at_ms);
        }
        assert_eq!(group.pick(10_099), Err(Unavailable::AllFailed { until_ms: 10_100 }), "{policy}");
        assert_eq!(group.pick(10_100), Ok("b".into()), "{policy}");
        // The probe is out, c is next.
        assert_eq!(group.pick(10_100), Err(Unavailable::AllFailed { until_ms: 10_200 }), "{policy}");
    }
}

#[test]
fn a_recovered_server_climbs_from_the_success_of_its_probe() {
    let slow = ServerOptions { slow_start_ms: 1_000, fail_timeout_ms: 100, ..weighing(8) };
    for (policy, half) in [(Policy::RoundRobin, 4.0), (Policy::LeastConn, 4.0)] {
        let mut group = Group::new(policy, lettered([slow.clone(), ServerOptions { down: true, ..weighing(1) }]));
        assert_eq!(group.weight("a", 0), 8.0, "{policy}: nobody climbs at the start");
        group.failed("a", 0);
        assert_eq!(group.pick(100), Ok("a".into()));
        group.succeeded("a", 150);
        assert_eq!(group.weight("a", 650), half, "{policy}");
        assert_eq!(group.weight("a", 1_150), 8.0, "{policy}");
        // Successes that follow do not begin the climb again.
        group.succeeded("a", 1_149);
        assert_eq!(group.weight("a", 1_150), 8.0, "{policy}");
    }
}

#[test]
fn with_hash_and_random_nothing_climbs() {
    let slow = ServerOptions { slow_start_ms: 1_000, fail_timeout_ms: 100, max_fails: 2, ..weighing(8) };
    for policy in [Policy::ConsistentHash, Policy::RandomTwo] {
        let mut group = Group::new(policy, lettered([slow.clone(), ServerOptions { down: true, ..weighing(1) }]));
        group.update(0, lettered([slow.clone(), weighing(1), slow.clone()]));
        assert_eq!(group.weight("c", 0), 8.0, "{policy}: joined");
        group.update(0, lettered([slow.clone(), ServerOptions { down: true, ..weighing(1) }]));
        group.failed("a", 0);
        group.failed("a", 0);
        assert_eq!(group.pick(100), Ok("a".into()));
        group.succeeded("a", 100);
        assert_eq!(group.weight("a", 100).fract(), 0.0, "{policy}: recovered");
    }
}

#[test]
fn a_clock_that_goes_back_breaks_nothing() {
    let mut group = failing(3, 100);
    for at_ms in [u64::MAX, 0, 50, u64::MAX, 7] {
        group.failed("a", at_ms);
        assert!(group.state("a", at_ms).fails <= 3);
        assert!(group.pick(at_ms).is_ok());
    }
}
