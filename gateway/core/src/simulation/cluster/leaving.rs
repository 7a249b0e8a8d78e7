//! A node that leaves the ring and comes back, while the others are slow to see it: views differ for a second, in which
//! nobody is refused a message.

use super::Run;
use super::crowd::Mood;
use super::scenario::{Scenario, Trouble};
use crate::mesh::MESH_PROTOCOL;
use crate::metrics::ShardStats;
use trunkline_proto::Outcome;

/// How often everybody writes to everybody while views differ.
const PACE_MS: u64 = 100;

/// Nodes with clients on each, to which nothing happens.
fn quiet(seed: u64, nodes: usize, shards: u16) -> Run {
    println!("seed {seed}");
    let mut scenario = Scenario::quiet(nodes, shards, MESH_PROTOCOL);
    scenario.seed = seed;
    scenario.users = (1..=10).collect();
    let mut run = Run::of(scenario, false);
    run.fleet.calm_redis();
    run.crowd.mood = Mood::Quiet;
    run.run_for(20_000);
    run.fleet.check_one_view();
    run
}

/// Everybody writes to everybody again and again.
fn talk_for(run: &mut Run, ms: u64) {
    for _ in 0..ms / PACE_MS {
        run.crowd.prove();
        run.run_for(PACE_MS);
    }
}

/// What a run has come to when all have their answers.
fn check_nobody_refused(run: &mut Run) {
    run.run_for(20_000);
    run.crowd.check_answered();
    let (refused, _) = run.crowd.answered_with(Outcome::Overloaded);
    assert_eq!(refused, 0, "messages were refused between nodes of which none has failed");
    assert_eq!(run.fleet.sum(|stats| stats.came_back_late.get() + stats.parked_expired.get()), 0);
}

#[test]
fn a_node_that_drains_and_comes_back_costs_nobody_a_message_however_late_the_others_see_it() {
    let mut came_back = 0;
    for seed in 0..6 {
        let nodes = 2 + seed as usize % 2;
        let mut run = quiet(seed, nodes, 1 + seed as u16 % 2);
        let node = seed as usize % nodes;
        if seed >= 2 {
            // Their questions to Redis are answered late.
            let others = (0..nodes).filter(|other| *other != node);
            others.for_each(|node| run.fleet.trouble(Trouble::RedisUnheard { node, ms: 700 }));
        }
        run.fleet.trouble(Trouble::Rest { node, ms: 2_500 });
        talk_for(&mut run, 4_000);
        check_nobody_refused(&mut run);
        let unrouted = run.fleet.sum(|stats| stats.out_unrouted.get());
        assert_eq!(unrouted, 0, "messages without ACK that were dropped");
        came_back += run.fleet.sum(|stats: &ShardStats| stats.came_back.get());
    }
    assert!(came_back > 0, "no message had to go back to where it began");
}

#[test]
fn a_node_that_leaves_for_good_costs_nobody_a_message() {
    for seed in 10..13 {
        let nodes = 2 + seed as usize % 2;
        let mut run = quiet(seed, nodes, 1 + seed as u16 % 2);
        let node = seed as usize % nodes;
        run.fleet.trouble(Trouble::RedisUnheard { node: (node + 1) % nodes, ms: 700 });
        run.fleet.trouble(Trouble::Leave { node, away_ms: 60_000 });
        talk_for(&mut run, 3_000);
        check_nobody_refused(&mut run);
    }
}
