//! What questions about the cluster are answered from.

use super::state::ClusterState;
use std::sync::Arc;
use tokio::sync::watch;
use trunkline_router::api::Picture;
use trunkline_router::membership::View;
use trunkline_router::redis::{Plane, PresenceEntry};

/// The view of this moment and presence in Redis, for reading. Clones share it.
#[derive(Clone, Debug)]
pub struct ClusterReader {
    plane: Plane,
    view: watch::Receiver<Arc<View>>,
    state: Arc<ClusterState>,
}

impl ClusterReader {
    pub(super) fn new(plane: Plane, view: watch::Receiver<Arc<View>>, state: Arc<ClusterState>) -> Self {
        ClusterReader { plane, view, state }
    }

    /// What the rest of the process may know.
    pub fn state(&self) -> &Arc<ClusterState> {
        &self.state
    }

    /// What is known of the nodes.
    ///
    /// # Errors
    /// When they have not been asked for with success yet.
    pub fn picture(&self, now_ms: u64) -> Result<Picture, String> {
        let status = self.state.status();
        let polled_ms = status
            .polled_ms
            .ok_or("no node is known yet: this node has joined and asks Redis for the others; try again in a moment")?;
        Ok(Picture {
            view: Arc::clone(&self.view.borrow()),
            age_ms: now_ms.saturating_sub(polled_ms),
            degraded: status.redis.failing_since_ms.is_some(),
        })
    }

    /// What Redis holds of a user; entries of nodes that are gone may be among them.
    ///
    /// # Errors
    /// When Redis does not answer; the text says what to do.
    pub async fn entries(&self, user: u64) -> Result<Vec<PresenceEntry>, String> {
        self.plane.user(user).await.map_err(|error| error.to_string())
    }

    /// The same of several users; `None` of those of whom Redis does not tell it.
    pub async fn entries_of(&self, users: &[u64]) -> Vec<Option<Vec<PresenceEntry>>> {
        self.plane.users(users).await.into_iter().map(Result::ok).collect()
    }

    /// Whether this node has a link to `node`; `None` before the mesh has told of any link.
    pub fn reachable(&self, node: &str) -> Option<bool> {
        self.state.status().reachable.map(|names| names.iter().any(|name| name == node))
    }
}
