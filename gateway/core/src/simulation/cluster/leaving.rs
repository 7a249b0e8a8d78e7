//! A node that drains sends its clients to their next homes: not before those know that they are.

use super::Run;
use super::crowd::Mood;
use super::scenario::Scenario;
use crate::core::DRAIN_VIEW_MS;
use crate::mesh::MESH_PROTOCOL;

const NODES: usize = 3;

/// Three nodes with clients at home on each, where Redis loses nothing.
fn quiet(seed: u64) -> Run {
    println!("seed {seed}");
    let mut scenario = Scenario::quiet(NODES, 2, MESH_PROTOCOL);
    scenario.seed = seed;
    scenario.users = (1..=24).collect();
    let mut run = Run::of(scenario, false);
    run.fleet.calm_redis();
    run.crowd.mood = Mood::Quiet;
    run.run_for(20_000);
    run.fleet.check_one_view();
    run
}

/// Lets a node drain until it sends the first client away. Returns how long that took, in milliseconds.
fn drain(run: &mut Run, leaving: usize) -> u64 {
    let begun_us = run.now_us();
    run.fleet.leave(leaving);
    let sends = |run: &Run| run.fleet.sum(|stats| stats.sessions_drained.get()) > 0;
    run.run_until(begun_us + 20_000_000, sends);
    assert!(sends(run), "nobody is sent away");
    (run.now_us() - begun_us) / 1_000
}

#[test]
fn who_is_sent_to_his_next_home_finds_a_node_that_knows_it_is() {
    for seed in 0..6 {
        let mut run = quiet(seed);
        let leaving = seed as usize % NODES;
        drain(&mut run, leaving);
        // Long before he can be there.
        run.run_for(200);
        let users = run.scenario.users.clone();
        for user in users {
            let homes: Vec<&str> =
                run.fleet.nodes().filter(|(_, node)| node.is_home(user)).map(|(name, _)| name).collect();
            assert_eq!(homes.len(), 1, "user {user} has the homes {homes:?}");
        }
        assert_eq!(run.fleet.sum(|stats| stats.drains_untold.get()), 0);
    }
}

#[test]
fn a_drain_does_not_wait_for_long_for_a_node_that_does_not_say_what_it_knows() {
    let mut run = quiet(7);
    run.fleet.part(0, 1, 60_000);
    let waited_ms = drain(&mut run, 0);
    assert!(waited_ms >= DRAIN_VIEW_MS, "{waited_ms} ms");
    assert!(waited_ms < DRAIN_VIEW_MS + 3_000, "{waited_ms} ms");
    assert!(run.fleet.sum(|stats| stats.drains_untold.get()) > 0);
    // Redis has told it meanwhile.
    for user in &run.scenario.users {
        let homes = run.fleet.homes_by_view(*user);
        assert_eq!(homes.len(), 1, "user {user} has the homes {homes:?}");
    }
}
