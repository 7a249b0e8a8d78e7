//! What the rest of the process may know of the cluster.

use super::audit::AuditStatus;
use super::links::Links;
use super::renewals::RenewalCounts;
use crate::fence::Fence;
use crate::mesh::peers::LINKS_MAX;
use crate::mesh_news::LinkNews;
use crate::presence_log::PresenceLog;
use std::sync::{Arc, Mutex, PoisonError};
use trunkline_router::api::PeerLinks;
use trunkline_router::membership::Fenced;
use trunkline_router::redis::{Metrics, MetricsSnapshot};

/// Shared by all threads. The numbers are read without a lock.
#[derive(Debug)]
pub struct ClusterState {
    name: String,
    fence: Arc<Fence>,
    status: Mutex<ClusterStatus>,
    /// Written and read by the control thread only.
    links: Mutex<Links>,
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
    /// The peer that renews the lease and writes presence for this node, which cannot do so itself.
    pub helper: Option<String>,
    /// Most of the other nodes do not reach this one, so it is nobody's home.
    pub quarantined: bool,
    /// Members whose host refuses connections to their mesh address while Redis fails.
    pub dead: Vec<String>,
    /// Members that stay in the view although Redis, which works, has no lease of them, and since when the first of
    /// them has been missing, milliseconds of [`crate::clock`].
    pub kept: Option<(Vec<String>, u64)>,
    /// Active nodes that have worked with another view than this node for long, since when they differ, milliseconds of
    /// [`crate::clock`], and whether they are most of all.
    pub differs: Option<Differs>,
    /// How often a node was back in the view in the life in which it had gone from it.
    pub flaps: u64,
    /// Questions of the control thread that were given up for want of room, by what they were.
    pub refused: Refused,
    /// How the lease was renewed.
    pub renewals: RenewalCounts,
    /// Links to other nodes for which the shards have no places.
    pub links_missing: u64,
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

/// Nodes that see another cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Differs {
    /// Their names.
    pub nodes: Vec<String>,
    /// Since when, milliseconds of [`crate::clock`].
    pub since_ms: u64,
    /// They are more than those that see what this node does.
    pub most: bool,
}

/// What the control thread did not do because it did as much of it as it may.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Refused {
    /// Pipelines of presence that peers asked for.
    pub favours: u64,
    /// Looks whether the process of a silent node has ended.
    pub probes: u64,
    /// Words to other nodes that found no room at a shard.
    pub memos: u64,
    /// Words to other nodes that were longer than any node takes.
    pub memos_too_long: u64,
    /// Calls at nodes that were here before this one, which began.
    pub calls: u64,
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
    pub(crate) fn new(name: &str, lease_ms: u64, redis: Arc<Metrics>, logs: Vec<Arc<PresenceLog>>) -> Self {
        ClusterState {
            name: name.to_owned(),
            fence: Arc::new(Fence::new(lease_ms)),
            status: Mutex::default(),
            links: Mutex::default(),
            redis,
            logs,
        }
    }

    /// Name of the node.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Until when the node may serve, for those who need to know nothing else.
    pub fn fence(&self) -> &Arc<Fence> {
        &self.fence
    }

    /// A shard has news of its links.
    pub(super) fn links_told(&self, shard: u16, all: bool, news: &[LinkNews]) {
        self.links.lock().unwrap_or_else(PoisonError::into_inner).told(shard, all, news);
    }

    /// The links to each other node.
    pub fn peers(&self, now_ms: u64) -> Vec<PeerLinks> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner).peers(now_ms)
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
        if self.fence.may_serve(now_ms) {
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

    /// Why the node is not fit to be given clients, in words; `None` while it is.
    pub fn unready(&self, now_ms: u64) -> Option<String> {
        let fenced = self.fence_reason(now_ms);
        if fenced.is_some() {
            return fenced;
        }
        let status = self.status();
        if status.quarantined {
            let why = "most of the other nodes do not reach this one over the mesh, so its users have other homes \
                       until they do";
            return Some(why.to_owned());
        }
        if let Some(Differs { nodes, since_ms, most: true }) = &status.differs {
            let secs = now_ms.saturating_sub(*since_ms) / 1_000;
            return Some(format!(
                "this node has worked with another view of the cluster than most for {secs} s; these differ: {}",
                nodes.join(", ")
            ));
        }
        let nobody = status.members.iter().all(|(state, members)| *state != "active" || *members == 0);
        (nobody && status.state == "active").then(|| "no node is in the ring, so no user has a home".to_owned())
    }

    /// What does not work although the node may serve, in words.
    pub fn degraded(&self, now_ms: u64) -> Vec<String> {
        let ClusterStatus { redis, helper, dead, kept, links_missing, differs, .. } = self.status();
        let mut degraded = Vec::new();
        if let Some(Differs { nodes, since_ms, .. }) = differs {
            let secs = now_ms.saturating_sub(since_ms) / 1_000;
            degraded.push(format!(
                "these nodes have worked with another view of the cluster than this one for {secs} s: {}",
                nodes.join(", ")
            ));
        }
        if links_missing > 0 {
            degraded.push(format!(
                "{links_missing} links to other nodes have no place, because a shard has {LINKS_MAX} of them: users \
                 here do not reach those nodes; give all nodes about as many --shards, or have fewer nodes"
            ));
        }
        if let Some((nodes, since_ms)) = kept {
            degraded.push(format!(
                "Redis has had no lease of these nodes for {} s, and they stay homes, since they may serve without it: \
                 {}; start them again, or, if they have ended for good, this node",
                now_ms.saturating_sub(since_ms) / 1_000,
                nodes.join(", ")
            ));
        }
        let Some(since_ms) = redis.failing_since_ms else { return degraded };
        let secs = now_ms.saturating_sub(since_ms) / 1_000;
        let error = redis.error.map(|error| format!(" ({error})")).unwrap_or_default();
        let by = match helper {
            Some(node) => format!("node {node} renews the lease of this node and writes its presence"),
            None => "the other nodes vouch for this one, and presence is written when it is back".to_owned(),
        };
        degraded.push(format!("Redis has been failing for {secs} s{error}; {by}"));
        if !dead.is_empty() {
            degraded.push(format!("these nodes have ended, and Redis does not know it yet: {}", dead.join(", ")));
        }
        degraded
    }

    pub(crate) fn publish(&self, serve_until_ms: u64, incarnation: u64, life: u64, epoch: u64, status: ClusterStatus) {
        *self.status.lock().unwrap_or_else(PoisonError::into_inner) = status;
        self.fence.publish(serve_until_ms, incarnation, life, epoch);
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
        let state = ClusterState::new("a", 5_000, Arc::default(), Vec::new());
        state.publish(serve_until_ms, 7, 5, 3, status);
        state
    }

    #[test]
    fn a_lease_that_ran_out_fences_before_anybody_has_looked() {
        let state = state(ClusterStatus::default(), 5_000);
        assert_eq!((state.fence.may_serve(4_999), state.fence_reason(4_999)), (true, None));
        assert!(state.fence_reason(5_000).unwrap().contains("pause"));
        assert_eq!((state.fence.incarnation(), state.fence.life(), state.fence.epoch()), (7, 5, 3));
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
    fn who_is_nobodys_home_is_not_ready() {
        let members = |active| [("joining", 1), ("active", active), ("draining", 0)];
        let unready = |active, quarantined| {
            let status =
                ClusterStatus { state: "active", members: members(active), quarantined, ..ClusterStatus::default() };
            state(status, 9_000).unready(1_000)
        };
        assert_eq!(unready(1, false), None);
        assert!(unready(1, true).unwrap().contains("do not reach this one"));
        assert!(unready(0, false).unwrap().contains("no node is in the ring"));
    }

    #[test]
    fn who_sees_another_cluster_than_most_is_not_ready() {
        let state = |most| {
            let differs = Some(Differs { nodes: vec!["b".to_owned(), "c".to_owned()], since_ms: 1_000, most });
            let members = [("joining", 0), ("active", 3), ("draining", 0)];
            state(ClusterStatus { state: "active", members, differs, ..ClusterStatus::default() }, 90_000)
        };
        let why = state(true).unready(31_000).unwrap();
        assert!(why.contains("30 s") && why.ends_with("b, c"), "{why}");
        assert_eq!(state(false).unready(31_000), None, "one that is right says so, and serves");
        assert!(state(false).degraded(31_000)[0].ends_with("b, c"));
    }

    #[test]
    fn a_failing_redis_degrades() {
        let redis = RedisStatus { failing_since_ms: Some(1_000), error: Some("no answer".to_owned()) };
        let degraded = state(ClusterStatus { redis, ..ClusterStatus::default() }, 9_000).degraded(13_500);
        assert!(degraded[0].contains("12 s (no answer)") && degraded[0].contains("vouch"), "{degraded:?}");
        let redis = RedisStatus { failing_since_ms: Some(1_000), error: None };
        let (helper, dead) = (Some("b".to_owned()), vec!["c".to_owned()]);
        let degraded = state(ClusterStatus { redis, helper, dead, ..ClusterStatus::default() }, 9_000).degraded(2_000);
        assert!(degraded[0].contains("node b renews") && degraded[1].ends_with(": c"), "{degraded:?}");
        assert_eq!(state(ClusterStatus::default(), 9_000).degraded(1), Vec::<String>::new());
        let degraded = state(ClusterStatus { links_missing: 3, ..ClusterStatus::default() }, 9_000).degraded(1);
        assert!(degraded[0].starts_with("3 links") && degraded[0].contains("256"), "{degraded:?}");
        let kept = Some((vec!["a".to_owned(), "b".to_owned()], 1_000));
        let degraded = state(ClusterStatus { kept, ..ClusterStatus::default() }, 9_000).degraded(8_000);
        assert!(degraded[0].contains("7 s") && degraded[0].contains("a, b;"), "{degraded:?}");
    }
}
