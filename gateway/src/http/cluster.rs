//! The cluster as `/v1/node` shows it.

use crate::cluster::{ClusterState, fenced_word};
use serde::Serialize;
use trunkline_router::api::digits;

#[derive(Serialize)]
pub(super) struct ClusterDescription {
    name: String,
    #[serde(serialize_with = "digits")]
    incarnation: u64,
    /// joining, active or draining.
    state: &'static str,
    epoch: u64,
    /// Equal on all nodes that see the same cluster. A text, because it has 64 bits.
    digest: String,
    members: u64,
    lease: LeaseDescription,
    redis: RedisDescription,
    presence: PresenceDescription,
}

#[derive(Serialize)]
struct LeaseDescription {
    /// Whether the node may serve.
    valid: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    fenced: Option<&'static str>,
    /// How long it may if nothing more is heard.
    ms_left: u64,
}

#[derive(Serialize)]
struct RedisDescription {
    ok: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    failing_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

#[derive(Serialize)]
struct PresenceDescription {
    /// Writes that wait for Redis.
    queued: u64,
    oldest_ms: u64,
    /// Whether all sessions are being written again.
    resyncing: bool,
}

pub(super) fn describe_cluster(cluster: &ClusterState, now_ms: u64) -> ClusterDescription {
    let status = cluster.status();
    let redis = cluster.redis_metrics();
    let serve_until_ms = cluster.fence().serve_until_ms();
    ClusterDescription {
        name: cluster.name().to_owned(),
        incarnation: cluster.fence().incarnation(),
        state: status.state,
        epoch: cluster.fence().epoch(),
        digest: format!("{:016x}", status.digest),
        members: status.members.iter().map(|(_, members)| members).sum(),
        lease: LeaseDescription {
            valid: now_ms < serve_until_ms,
            fenced: status.fenced.map(fenced_word),
            ms_left: serve_until_ms.saturating_sub(now_ms),
        },
        redis: RedisDescription {
            ok: status.redis.failing_since_ms.is_none(),
            failing_ms: status.redis.failing_since_ms.map(|since_ms| now_ms.saturating_sub(since_ms)),
            error: status.redis.error,
        },
        presence: PresenceDescription {
            queued: redis.queued,
            oldest_ms: redis.oldest_age_ms,
            resyncing: status.resyncing,
        },
    }
}
