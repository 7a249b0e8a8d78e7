//! Bursts between nodes whose shards share links: what a shard may have under way to the one that has a link bounds
//! nothing but memory. And between nodes whose links share the large receive buffers.

use super::crowd::Mood;
use super::scenario::Scenario;
use super::{PROOF_MS, Run};
use crate::limits::Limits;
use crate::mesh::MESH_PROTOCOL;
use crate::metrics::ShardStats;
use crate::simulation::{Bug, with_planted};
use trunkline_proto::Outcome;

/// Clients of so many nodes with so many shards and links, and those limits. With mailboxes of 65 KiB what each two
/// shards of a node may have under way is as much as by default with 64 shards.
fn quiet(nodes: usize, shards: u16, links: u16, limits: impl Fn(&mut Limits)) -> Run {
    let mut scenario = Scenario::quiet(nodes, shards, MESH_PROTOCOL);
    scenario.nodes.iter_mut().for_each(|node| node.mesh_links = links);
    scenario.users = (1..=12).collect();
    scenario.payload_max = 6_000;
    limits(&mut scenario.limits);
    let mut run = Run::of(scenario, false);
    run.crowd.mood = Mood::Quiet;
    run.run_for(40_000);
    run.fleet.check_one_view();
    run
}

impl Run {
    fn sum(&self, stat: fn(&ShardStats) -> u64) -> u64 {
        self.fleet.sum(stat)
    }

    /// Every client writes half a megabyte at once, much of it for those of other nodes, and all of them read.
    fn burst(&mut self) {
        for _ in 0..8 {
            self.crowd.prove();
        }
        self.run_for(PROOF_MS);
    }

    fn check_nothing_refused_on_the_way_out(&mut self) {
        // Until the last answer that was lost is given up.
        self.run_for(30_000);
        self.crowd.check_answered();
        assert!(self.sum(|stats| stats.mesh_carry_waits.get()) > 0, "nothing had to wait");
        assert_eq!(self.sum(|stats| stats.limit_mesh.get() + stats.mesh_carries_refused.get()), 0);
    }
}

#[test]
fn a_burst_to_readers_behind_64_shards_is_not_lost() {
    for (shards, links) in [(64, 16), (64, 1)] {
        let mut run = quiet(2, shards, links, |limits| limits.mailbox_bytes_max = 65 << 10);
        run.burst();
        run.crowd.check_proof();
        assert!(run.sum(|stats| stats.mesh_carried.get()) > 0, "nobody shared a link");
        let refused = run.sum(|stats| stats.limit_mailbox.get() + stats.mesh_carries_refused.get());
        assert_eq!(refused, 0, "{shards} shards, {links} links");
        println!(
            "{shards} shards, {links} links: {} carried, {} times a message waited",
            run.sum(|stats| stats.mesh_carried.get()),
            run.sum(|stats| stats.mailbox_waits.get())
        );
    }
}

/// Copies for guests have no sender who could wait: they do so themselves. What comes over the link for other shards
/// finds their mailboxes as small, and may be refused there.
#[test]
fn what_finds_no_room_on_its_way_to_the_shard_with_the_link_waits_and_is_not_refused() {
    let mut run = quiet(2, 4, 1, |limits| limits.mailbox_bytes_max = 16 << 10);
    run.burst();
    run.check_nothing_refused_on_the_way_out();
}

#[test]
fn who_is_refused_because_too_much_waits_is_told() {
    let mut run = quiet(2, 4, 1, |limits| (limits.mailbox_bytes_max, limits.mesh_bytes_max) = (16 << 10, 256 << 10));
    run.burst();
    // Until the last answer that was lost is given up.
    run.run_for(30_000);
    run.crowd.check_answered();
    assert!(run.sum(|stats| stats.mesh_carry_waits.get()) > 0, "nothing had to wait");
    assert!(run.sum(|stats| stats.limit_mesh.get()) > 0, "nothing was refused");
    let (refused, _) = run.crowd.answered_with(Outcome::Overloaded);
    let (arrived, _) = run.crowd.answered_with(Outcome::Delivered);
    assert!(refused > 0 && arrived > 0, "{arrived} arrived, {refused} were refused");
}

/// The same of messages to live rooms, which come to the room's shard of their node first.
#[test]
fn what_finds_no_room_on_its_way_to_a_room_waits_and_is_not_refused() {
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
    for _ in 0..40 {
        run.crowd.prove_rooms();
    }
    run.check_nothing_refused_on_the_way_out();
}

/// Two links of each shard are read into two large buffers, which one of them fills several times over. Returns how
/// often one of them came away with nothing, one time after the other.
fn starved_most() -> u64 {
    let mut run = quiet(3, 1, 1, |limits| (limits.recv_buffers, limits.recv_buffer_bytes) = (256, 256));
    run.burst();
    run.crowd.check_proof();
    run.world.borrow().tally.starved_most
}

/// A link that found none is read first in the next turn: what it waits for is only what the other one was given just
/// before.
#[test]
fn of_links_that_share_the_large_receive_buffers_none_takes_them_all_again_and_again() {
    let (fair, unfair) = (starved_most(), with_planted(Bug::StarvedLast, starved_most));
    println!("{fair} times one after the other, and {unfair} if it is read last");
    assert!(fair > 0 && 2 * fair < unfair, "{fair} and {unfair}");
}
