//! What the rest of the process may know of the cluster.

use super::audit::AuditStatus;
use crate::presence_log::PresenceLog;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use trunkline_router::membership::Fenced;
use trunkline_router::redis::{Metrics, MetricsSnapshot};

/// Shared by all threads. The numbers are read without a lock.
#[derive(Debug)]
pub struct ClusterState {
    name: String,
    serve_until_ms: AtomicU64,
    incarnation: AtomicU64,
    life: AtomicU64,
    epoch: AtomicU64,
    status: Mutex<ClusterStatus>,
    redis: Arc<Metrics>,
    logs: Vec<Arc<PresenceLog>>,
}

/// What people are shown. Not for the data path.
#[derive(Clone, Debug, Default)]
pub struct ClusterStatus {
    /// Where the node is in its life: joining, active, draining.
    pub state: &'static str,
    /// Why the node must not serve.
    pub fenced: Option<Fenced>,
    /// Why a node that joins does not become active yet.
    pub waits: Option<String>,
    /// Who holds the name of this node, as far as Redis told when it refused the lease.
    pub holder: Option<String>,
    /// The digest of the view.
    pub digest: u64,
    /// Members of the view that are joining, active and draining.
    pub members: [(&'static str, u64); 3],
    /// Active members that the ring cannot hold.
    pub left_out: Vec<String>,
    /// Members this node has a link to, itself included; `None` before the mesh has told of any link.
    pub reachable: Option<Vec<String>>,
    /// When Redis last said which nodes there are, milliseconds of [`crate::clock`]; `None` before the first time.
    pub polled_ms: Option<u64>,
    /// Whether Redis works.
    pub redis: RedisStatus,
    /// How often all sessions were written again.
    pub resyncs: u64,
    /// Whether that is going on.
    pub resyncing: bool,
    /// What came of comparing presence in Redis with the truth.
    pub audit: AuditStatus,
    /// Logins of this node that lost against another session.
    pub rivals: u64,
    /// Those among them that were not looked into at once, because too many came together.
    pub rivals_dropped: u64,
}

/// Whether Redis works.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RedisStatus {
    /// Since when it has been failing, milliseconds of [`crate::clock`]; `None` while it works.
    pub failing_since_ms: Option<u64>,
    /// What it said, or what was said of it, when it failed last.
    pub error: Option<String>,
}

impl ClusterState {
    /// The state of a node that may not serve yet.
    pub(crate) fn new(name: &str, redis: Arc<Metrics>, logs: Vec<Arc<PresenceLog>>) -> Self {
        ClusterState {
            name: name.to_owned(),
            serve_until_ms: AtomicU64::new(0),
            incarnation: AtomicU64::new(0),
            life: AtomicU64::new(0),
            epoch: AtomicU64::new(0),
            status: Mutex::default(),
            redis,
            logs,
        }
    }

    /// Name of the node.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Until when, exclusive, the node may serve if nothing more is heard: milliseconds of [`crate::clock`], which is the shards' own.
    /// 0 while it is fenced.
    #[inline]
    pub fn serve_until_ms(&self) -> u64 {
        self.serve_until_ms.load(Ordering::Acquire)
    }

    /// Whether the node may serve at that time.
    #[inline]
    pub fn may_serve(&self, now_ms: u64) -> bool {
        now_ms < self.serve_until_ms()
    }

    /// The incarnation of this node.
    #[inline]
    pub fn incarnation(&self) -> u64 {
        self.incarnation.load(Ordering::Acquire)
    }

    /// The incarnation since which the node has not been fenced.
    #[inline]
    pub fn life(&self) -> u64 {
        self.life.load(Ordering::Acquire)
    }

    /// The epoch of the view.
    #[inline]
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// What people are shown.
    pub fn status(&self) -> ClusterStatus {
        self.status.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The numbers of the connection to Redis and of the presence writes that wait for it.
    pub fn redis_metrics(&self) -> MetricsSnapshot {
        self.redis.snapshot()
    }

    /// Presence events dropped because a shard's queue was full.
    pub fn events_dropped(&self) -> u64 {
        self.logs.iter().map(|log| log.dropped()).sum()
    }

    /// Why the node must not serve, in words; `None` while it may.
    pub fn fence_reason(&self, now_ms: u64) -> Option<String> {
        if self.may_serve(now_ms) {
            return None;
        }
        let status = self.status();
        let why = match status.fenced {
            Some(Fenced::Lost) => "Redis gave its name away",
            Some(Fenced::Isolated) => "its lease ran out while Redis failed, and no other node confirmed it",
            // Between the end of a lease and the next look at it there is no reason yet.
            Some(Fenced::Silent) | None => "its lease ran out, as after a pause of the process",
            Some(Fenced::NotAcquired) => "it has no lease yet",
        };
        let holder =
            status.holder.map(|holder| format!("; another node, {holder}, holds its name")).unwrap_or_default();
        Some(format!("this node is fenced and takes a new incarnation as soon as it can: {why}{holder}"))
    }

    /// What does not work although the node may serve, in words.
    pub fn degraded(&self, now_ms: u64) -> Vec<String> {
        let redis = self.status().redis;
        let Some(since_ms) = redis.failing_since_ms else { return Vec::new() };
        let secs = now_ms.saturating_sub(since_ms) / 1_000;
        let error = redis.error.map(|error| format!(" ({error})")).unwrap_or_default();
        vec![format!("Redis has been failing for {secs} s{error}; presence is written when it is back")]
    }

    pub(crate) fn publish(&self, serve_until_ms: u64, incarnation: u64, life: u64, epoch: u64, status: ClusterStatus) {
        *self.status.lock().unwrap_or_else(PoisonError::into_inner) = status;
        self.epoch.store(epoch, Ordering::Release);
        self.incarnation.store(incarnation, Ordering::Release);
        self.life.store(life, Ordering::Release);
        // Last, so that whoever finds a lease of a new life finds the life too.
        self.serve_until_ms.store(serve_until_ms, Ordering::Release);
    }
}

/// The word for a fence.
pub const fn fenced_word(fenced: Fenced) -> &'static str {
    match fenced {
        Fenced::NotAcquired => "not_acquired",
        Fenced::Lost => "lost",
        Fenced::Silent => "silent",
        Fenced::Isolated => "isolated",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(status: ClusterStatus, serve_until_ms: u64) -> ClusterState {
        let state = ClusterState::new("a", Arc::default(), Vec::new());
        state.publish(serve_until_ms, 7, 5, 3, status);
        state
    }

    #[test]
    fn a_lease_that_ran_out_fences_before_anybody_has_looked() {
        let state = state(ClusterStatus::default(), 5_000);
        assert_eq!((state.may_serve(4_999), state.fence_reason(4_999)), (true, None));
        assert!(state.fence_reason(5_000).unwrap().contains("pause"));
        assert_eq!((state.incarnation(), state.life(), state.epoch()), (7, 5, 3));
    }

    #[test]
    fn each_fence_says_why() {
        let reason = |fenced, holder: Option<&str>| {
            let status =
                ClusterStatus { fenced: Some(fenced), holder: holder.map(str::to_owned), ..ClusterStatus::default() };
            state(status, 0).fence_reason(1).unwrap()
        };
        assert!(reason(Fenced::Lost, Some("10.0.0.9:7700")).contains("10.0.0.9:7700"));
        assert!(reason(Fenced::Silent, Some("10.0.0.9:7700")).contains("10.0.0.9:7700"));
        assert!(reason(Fenced::Lost, None).contains("gave its name away"));
        assert!(reason(Fenced::Isolated, None).contains("Redis failed"));
        assert!(reason(Fenced::Silent, None).contains("ran out"));
    }

    #[test]
    fn a_failing_redis_degrades() {
        let redis = RedisStatus { failing_since_ms: Some(1_000), error: Some("no answer".to_owned()) };
        let degraded = state(ClusterStatus { redis, ..ClusterStatus::default() }, 9_000).degraded(13_500);
        assert!(degraded[0].contains("12 s (no answer)"), "{degraded:?}");
        assert_eq!(state(ClusterStatus::default(), 9_000).degraded(1), Vec::<String>::new());
    }
}
