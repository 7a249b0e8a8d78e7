//! Bursts between nodes whose shards share links: what a shard may have under way to the one that has a link bounds
//! nothing but memory.

use super::crowd::Mood;
use super::scenario::Scenario;
use super::{PROOF_MS, Run};
use crate::mesh::MESH_PROTOCOL;
use trunkline_proto::Outcome;

/// Clients of two nodes with so many shards and links. With 65 KiB what each two shards of a node may have under way is
/// as much as by default with 64 shards.
fn quiet(shards: u16, links: u16, mailbox_bytes_max: usize) -> Run {
    let mut scenario = Scenario::quiet(2, shards, MESH_PROTOCOL);
    scenario.nodes.iter_mut().for_each(|node| node.mesh_links = links);
    scenario.users = (1..=12).collect();
    scenario.payload_max = 6_000;
    scenario.limits.mailbox_bytes_max = mailbox_bytes_max;
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
        let mut run = quiet(shards, links, 65 << 10);
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

/// What finds no room at the shard that has the link waits with its sender. What has nobody to wait with, such as a
/// copy for a guest, is refused, and who wants to know what becomes of it is told.
#[test]
fn what_a_carrier_has_no_room_for_waits_with_its_sender_or_is_told_of() {
    let mut run = quiet(4, 1, 16 << 10);
    for _ in 0..8 {
        run.crowd.prove();
    }
    run.run_for(2 * PROOF_MS);
    let sum = |stat: fn(&crate::metrics::ShardStats) -> u64| run.fleet.sum(stat);
    assert!(sum(|stats| stats.mesh_carry_waits.get()) > 0, "nobody had to wait");
    assert!(sum(|stats| stats.limit_mailbox.get()) > 0, "no copy was refused");
    run.crowd.check_answered();
    let (told, _) = run.crowd.answered_with(Outcome::Overloaded);
    assert_eq!(told, sum(|stats| stats.out_overloaded.get()), "who was refused was told");
    let (arrived, _) = run.crowd.answered_with(Outcome::Delivered);
    assert!(arrived > 10 * told, "{arrived} arrived, {told} did not");
}

/// The same of messages to live rooms.
#[test]
fn what_a_carrier_has_no_room_for_of_a_room_is_told_of() {
    let mut scenario = Scenario::quiet(2, 4, MESH_PROTOCOL);
    scenario.nodes.iter_mut().for_each(|node| node.mesh_links = 1);
    scenario.users = (1..=24).collect();
    scenario.rooms_only = true;
    scenario.limits.mailbox_bytes_max = 2 << 10;
    let mut run = Run::of(scenario, false);
    run.run_for(10_000);
    run.crowd.mood = Mood::Quiet;
    run.run_for(30_000);
    run.fleet.check_one_view();
    let refused_before = run.fleet.sum(|stats| stats.group_overloaded.get());
    let (_, told_before) = run.crowd.answered_with(Outcome::Overloaded);
    for _ in 0..40 {
        run.crowd.prove_rooms();
    }
    run.run_for(2 * PROOF_MS);
    let sum = |stat: fn(&crate::metrics::ShardStats) -> u64| run.fleet.sum(stat);
    assert!(sum(|stats| stats.mesh_carry_waits.get()) > 0, "nobody had to wait");
    run.crowd.check_answered();
    let (_, told) = run.crowd.answered_with(Outcome::Overloaded);
    assert_eq!(told - told_before, sum(|stats| stats.group_overloaded.get()) - refused_before);
    let (_, arrived) = run.crowd.answered_with(Outcome::Accepted);
    assert!(arrived > told, "{arrived} arrived, {told} did not");
}
