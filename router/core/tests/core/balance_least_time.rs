//! least-time: whoever is expected to answer first.

use crate::balance_support::{Group, lettered, of_weights, weighing};
use trunkline_router_core::Policy;

fn took(group: &mut Group, name: &str, us: u64, now_ms: u64) {
    group.balancer.took(group.id(name), us, now_ms);
}

#[test]
fn the_faster_server_is_picked_until_what_it_has_under_way_outweighs_that() {
    let mut group = of_weights(Policy::LeastTime, &[1, 1]);
    took(&mut group, "a", 1_000, 0);
    took(&mut group, "b", 3_000, 0);
    for conns in 0..2 {
        assert_eq!(group.pick(0).as_deref(), Ok("a"), "{conns} calls under way");
        group.set_conns("a", conns + 1);
    }
    group.set_conns("a", 3);
    assert_eq!(group.pick(0).as_deref(), Ok("b"), "1 ms × 4 against 3 ms × 1");
}

#[test]
fn a_weight_of_three_is_worth_three_times_the_speed() {
    let mut group = of_weights(Policy::LeastTime, &[1, 4]);
    took(&mut group, "a", 1_000, 0);
    took(&mut group, "b", 3_000, 0);
    assert_eq!(group.pick(0).as_deref(), Ok("b"));
}

#[test]
fn a_slow_answer_counts_at_once_and_fast_ones_only_in_time() {
    let mut group = of_weights(Policy::LeastTime, &[1, 1]);
    took(&mut group, "a", 1_000, 0);
    took(&mut group, "b", 2_000, 0);
    took(&mut group, "a", 500_000, 1);
    assert_eq!(group.pick(1).as_deref(), Ok("b"));
    took(&mut group, "a", 1_000, 2);
    assert_eq!(group.pick(2).as_deref(), Ok("b"), "one fast answer proves nothing");
    for seconds in 1..=80 {
        took(&mut group, "a", 1_000, seconds * 1_000);
    }
    assert_eq!(group.pick(80_000).as_deref(), Ok("a"));
}

#[test]
fn a_server_that_has_never_answered_gets_one_call_and_then_waits() {
    let mut group = of_weights(Policy::LeastTime, &[1, 1]);
    took(&mut group, "a", 1_000, 0);
    assert_eq!(group.pick(0).as_deref(), Ok("b"));
    group.set_conns("b", 1);
    group.set_conns("a", 100);
    assert_eq!(group.pick(0).as_deref(), Ok("a"));
    let mut alone = Group::new(Policy::LeastTime, lettered([weighing(1)]));
    alone.set_conns("a", 5);
    assert_eq!(alone.pick(0).as_deref(), Ok("a"), "with nobody else it is picked all the same");
}
