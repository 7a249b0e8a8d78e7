//! The cluster as metrics.

use super::renewals::RenewalCounts;
use super::state::ClusterState;
use crate::metrics::StatType::{self, Counter, Gauge};
use crate::prometheus::Exposition;
use trunkline_router::api::PeerLinks;

/// A series with a number for each other node.
type OfPeer = (&'static str, StatType, &'static str, fn(&PeerLinks) -> f64);

/// Writes all series of the cluster.
pub fn write_cluster(exposition: &mut Exposition, cluster: &ClusterState, now_ms: u64) {
    let status = cluster.status();
    let redis = cluster.redis_metrics();
    exposition.name("trunkline_cluster_members", Gauge, "Nodes with a live lease, by state, as this node sees them.");
    for (state, members) in status.members {
        exposition.sample(&[("state", &state)], members);
    }
    exposition.name(
        "trunkline_cluster_view_info",
        Gauge,
        "1, with the digest of the view this node sees; nodes with the same digest see the same nodes.",
    );
    exposition.sample(&[("digest", &format!("{:016x}", status.digest))], 1);
    let lease_secs = cluster.fence().serve_until_ms().saturating_sub(now_ms) as f64 / 1_000.0;
    exposition.name(
        "trunkline_cluster_lease_seconds",
        Gauge,
        "Time this node may serve if it hears nothing more; 0 while it is fenced.",
    );
    exposition.sample(&[], lease_secs);
    exposition.name(
        "trunkline_presence_oldest_seconds",
        Gauge,
        "Age of the oldest presence write that waits for Redis.",
    );
    exposition.sample(&[], redis.oldest_age_ms as f64 / 1_000.0);
    exposition.name(
        "trunkline_cluster_renewals_total",
        Counter,
        "Renewals of the lease that this node asked Redis for itself; missed: beats without one that worked.",
    );
    let RenewalCounts { renewed, failed, missed } = status.renewals;
    for (outcome, count) in [("renewed", renewed), ("failed", failed), ("missed", missed)] {
        exposition.sample(&[("outcome", &outcome)], count);
    }
    if let Some(since_ms) = status.audit.since_ms {
        exposition.name(
            "trunkline_presence_audit_age_seconds",
            Gauge,
            "Time since all sessions had been compared with what Redis holds, or since that began.",
        );
        exposition.sample(&[], now_ms.saturating_sub(since_ms) as f64 / 1_000.0);
    }
    let whole = [
        ("trunkline_cluster_view_epoch", Gauge, "Epoch of the view of the cluster.", cluster.fence().epoch()),
        (
            "trunkline_cluster_left_out",
            Gauge,
            "Active nodes that the ring cannot hold; anything but 0 is a mistake in names, weights or versions.",
            status.left_out.len() as u64,
        ),
        (
            "trunkline_cluster_incarnation",
            Gauge,
            "Incarnation of this node; grows with every start and every new lease.",
            cluster.fence().incarnation(),
        ),
        (
            "trunkline_cluster_fenced",
            Gauge,
            "1 while this node must not serve as home.",
            u64::from(!cluster.fence().may_serve(now_ms)),
        ),
        (
            "trunkline_cluster_redis_up",
            Gauge,
            "1 while Redis answers renewals and polls.",
            u64::from(status.redis.failing_since_ms.is_none()),
        ),
        (
            "trunkline_cluster_flaps_total",
            Counter,
            "Times a node was back in the view in the life in which it had gone from it.",
            status.flaps,
        ),
        (
            "trunkline_cluster_views_differ",
            Gauge,
            "Active nodes that have worked with another view than this one for three lease times.",
            status.differs.as_ref().map_or(0, |differs| differs.nodes.len() as u64),
        ),
        (
            "trunkline_cluster_kept",
            Gauge,
            "Members that stay in the view although Redis, which works, has no lease of them: they may serve on.",
            status.kept.as_ref().map_or(0, |(nodes, _)| nodes.len() as u64),
        ),
        (
            "trunkline_cluster_favours_refused_total",
            Counter,
            "Pipelines of presence not written for another node because 64 were under way; it asks again.",
            status.refused.favours,
        ),
        (
            "trunkline_cluster_probes_refused_total",
            Counter,
            "Looks whether a silent node has ended that did not happen because 64 were under way; the next beat has \
             others.",
            status.refused.probes,
        ),
        (
            "trunkline_cluster_memos_unsent_total",
            Counter,
            "Words to the control threads of other nodes that found the queue of a shard full; they are said again \
             with the next beat.",
            status.refused.memos,
        ),
        (
            "trunkline_cluster_memos_too_long_total",
            Counter,
            "Words to the control threads of other nodes that were not sent because they were longer than 1 MiB.",
            status.refused.memos_too_long,
        ),
        (
            "trunkline_cluster_calls_refused_total",
            Counter,
            "Calls at nodes that were here before this one began that were not made because 512 were under way; the \
             next beat makes them.",
            status.refused.calls,
        ),
        ("trunkline_redis_commands_total", Counter, "Commands sent to Redis, scripts included.", redis.commands),
        (
            "trunkline_redis_command_errors_total",
            Counter,
            "Commands that ended in an error or a time-out.",
            redis.command_errors,
        ),
        (
            "trunkline_redis_garbage_total",
            Counter,
            "Node records and presence entries found in Redis that cannot be read.",
            redis.garbage,
        ),
        (
            "trunkline_cluster_unregistered_total",
            Counter,
            "Renewals after which the list of nodes could not be updated.",
            redis.unregistered,
        ),
        (
            "trunkline_cluster_names",
            Gauge,
            "Names on the list of nodes, 2,048 at most: nodes that live, and those that ended within a minute.",
            redis.names,
        ),
        (
            "trunkline_cluster_names_dropped_total",
            Counter,
            "Names this node has taken off the list of nodes because it was full.",
            redis.names_dropped,
        ),
        (
            "trunkline_cluster_past_names_dropped_total",
            Counter,
            "Names this node has taken off the list of nodes that were here within the day because it was full, 2,048.",
            redis.past_names_dropped,
        ),
        ("trunkline_presence_queued", Gauge, "Presence writes that wait for Redis or are on their way.", redis.queued),
        ("trunkline_presence_queued_bytes", Gauge, "Memory of the presence writes that wait.", redis.queued_bytes),
        ("trunkline_presence_written_total", Counter, "Presence writes that Redis has executed.", redis.written),
        (
            "trunkline_presence_stale_total",
            Counter,
            "Logins that lost against a session with a higher version.",
            redis.stale,
        ),
        (
            "trunkline_presence_failed_total",
            Counter,
            "Attempts to write presence that failed and were queued again.",
            redis.failed,
        ),
        (
            "trunkline_presence_refused_total",
            Counter,
            "Presence writes refused because their queue was full or a text in them cannot be written.",
            redis.refused,
        ),
        (
            "trunkline_presence_events_dropped_total",
            Counter,
            "Logins and logouts not told to the control thread because a shard's queue was full.",
            cluster.events_dropped(),
        ),
        (
            "trunkline_presence_resyncs_total",
            Counter,
            "Times all sessions of this node were written again: in a new incarnation, or after Redis lost its lease.",
            status.resyncs,
        ),
        ("trunkline_presence_resyncing", Gauge, "1 while that goes on.", u64::from(status.resyncing)),
        (
            "trunkline_presence_compared_total",
            Counter,
            "Sessions of this node compared with what Redis holds of them.",
            status.audit.compared,
        ),
        (
            "trunkline_presence_mended_total",
            Counter,
            "Sessions that Redis did not hold as they are, and that were written again.",
            status.audit.mended,
        ),
        (
            "trunkline_presence_compare_failures_total",
            Counter,
            "Sessions that could not be compared because Redis did not answer.",
            status.audit.failed,
        ),
        (
            "trunkline_presence_rivals_total",
            Counter,
            "Lost logins looked into: their session was ended, or written again above what does not count.",
            status.rivals,
        ),
        (
            "trunkline_presence_rivals_dropped_total",
            Counter,
            "Logins that lost and were not looked into at once because 16,384 others waited; they are found again.",
            status.rivals_dropped,
        ),
    ];
    let peers = cluster.peers(now_ms);
    let of_peers: [OfPeer; 5] = [
        ("trunkline_mesh_peer_links", Gauge, "Links of this node to each other one.", |peer| peer.links.into()),
        ("trunkline_mesh_peer_links_up", Gauge, "Those of them that are up.", |peer| peer.up.into()),
        ("trunkline_mesh_peer_held_bytes", Gauge, "Bytes held for each other node until it confirms them.", |peer| {
            peer.held_bytes as f64
        }),
        (
            "trunkline_mesh_peer_round_trip_seconds",
            Gauge,
            "Longest smoothed round trip of a link to each other node; 0 until one was measured.",
            |peer| peer.round_trip_us as f64 / 1e6,
        ),
        (
            "trunkline_mesh_peer_unreachable_seconds",
            Gauge,
            "Time for which no link to each other node has been up; 0 while one is.",
            |peer| peer.unreachable_ms.unwrap_or(0) as f64 / 1e3,
        ),
    ];
    for (name, stat_type, help, number) in of_peers.into_iter().filter(|_| !peers.is_empty()) {
        exposition.name(name, stat_type, help);
        for peer in &peers {
            exposition.sample(&[("peer", &peer.node)], number(peer));
        }
    }
    for (name, stat_type, help, value) in whole {
        exposition.name(name, stat_type, help);
        exposition.sample(&[], value);
    }
}
