//! Bursts between nodes whose shards share links: what a shard may have under way to the one that has a link bounds
//! nothing but memory.

use super::crowd::Mood;
use super::scenario::Scenario;
use super::{PROOF_MS, Run};
use crate::mesh::MESH_PROTOCOL;

/// Clients of two nodes with so many shards and links; what each two shards of a node may have under way is as much as
/// by default with 64 shards.
fn quiet(shards: u16, links: u16) -> Run {
    let mut scenario = Scenario::quiet(2, shards, MESH_PROTOCOL);
    scenario.nodes.iter_mut().for_each(|node| node.mesh_links = links);
    scenario.users = (1..=12).collect();
    scenario.payload_max = 6_000;
    scenario.limits.mailbox_bytes_max = 65 << 10;
    let mut run = Run::of(scenario, false);
    run.crowd.mood = Mood::Quiet;
    run.run_for(40_000);
    run.fleet.check_one_view();
    run
}

/// Every client writes half a megabyte at once, half of it for those of the other node, and all of them read.
#[test]
fn a_burst_to_readers_behind_64_shards_is_not_lost() {
    for (shards, links) in [(64, 16), (64, 1)] {
        let mut run = quiet(shards, links);
        for _ in 0..8 {
            run.crowd.prove();
        }
        run.run_for(PROOF_MS);
        run.crowd.check_proof();
        let sum = |stat: fn(&crate::metrics::ShardStats) -> u64| run.fleet.sum(stat);
        assert!(sum(|stats| stats.mesh_carried.get()) > 0, "nobody shared a link");
        let refused = sum(|stats| stats.limit_mailbox.get() + stats.mesh_carries_refused.get());
        assert_eq!(refused, 0, "{shards} shards, {links} links");
        println!(
            "{shards} shards, {links} links: {} carried, {} times a message waited",
            sum(|stats| stats.mesh_carried.get()),
            sum(|stats| stats.mailbox_waits.get())
        );
    }
}
