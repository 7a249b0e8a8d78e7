//! What the tests of the plane have in common.

use std::future::Future;
use std::time::Duration;
use trunkline_router::membership::{NodeRecord, NodeState};

/// How long a test waits for what must come.
const PATIENCE: Duration = Duration::from_secs(30);

/// The record of an active node that has not asked for its lease.
pub(crate) fn record(name: &str) -> NodeRecord {
    NodeRecord {
        name: name.into(),
        incarnation: 0,
        state: NodeState::Active,
        weight: 1,
        shards: 4,
        mesh: "127.0.0.1:7790".into(),
        advertise: "203.0.113.7:7700".into(),
        http: String::new(),
        protocol: 1,
        connections: 0,
        users: 0,
        started_ms: 1,
        life: 0,
        renewals: 0,
        secret_mark: String::new(),
        reach: None,
        protocol_oldest: 0,
        zone: String::new(),
        mending: false,
        mesh_links: 0,
        https: false,
        turns: 0,
        view: 0,
        silent: String::new(),
    }
}

/// Asks again and again until it holds.
pub(crate) async fn wait_for<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !holds().await {
        assert!(tokio::time::Instant::now() < deadline, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
