//! The HTTP API of the control thread: health, metrics, the node, its users.

mod api;
mod cluster;

pub use api::router;

use crate::clock::now_ms;
use crate::cluster::ClusterState;
use crate::control::ControlPort;
use crate::limits::Limits;
use crate::metrics::ShardStats;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

/// Connections served at a time; further ones wait in the backlog. Each has its place in the memory budget.
pub const CONNECTIONS_MAX: u32 = 64;

/// Version of the gateway.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What the API knows about the node it runs in.
#[derive(Debug)]
pub struct Node {
    name: String,
    limits: Limits,
    listen: Vec<SocketAddr>,
    http: SocketAddr,
    started: Instant,
    shards: OnceLock<ShardHandles>,
    draining: AtomicBool,
    cluster: OnceLock<Arc<ClusterState>>,
}

/// The control thread's ends of all shards, by shard; both lists have the same length.
#[derive(Debug)]
pub struct ShardHandles {
    /// Where requests go.
    pub ports: Vec<ControlPort>,
    /// Where numbers are read.
    pub stats: Vec<Arc<ShardStats>>,
}

/// Where a node stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeState {
    /// Its shards are being set up.
    Starting,
    /// All shards accept connections.
    Running,
    /// It ends its connections and takes no new ones.
    Draining,
}

impl NodeState {
    /// The word the API uses.
    pub const fn as_str(self) -> &'static str {
        match self {
            NodeState::Starting => "starting",
            NodeState::Running => "running",
            NodeState::Draining => "draining",
        }
    }
}

impl Node {
    /// A node that is starting. `listen` and `http` are the addresses it is bound to.
    pub fn new(name: String, limits: Limits, listen: Vec<SocketAddr>, http: SocketAddr) -> Self {
        Node {
            name,
            limits,
            listen,
            http,
            started: Instant::now(),
            shards: OnceLock::new(),
            draining: AtomicBool::new(false),
            cluster: OnceLock::new(),
        }
    }

    /// All shards run.
    ///
    /// # Panics
    /// When it is said twice.
    pub fn set_running(&self, shards: ShardHandles) {
        assert!(self.shards.set(shards).is_ok(), "a node starts once");
    }

    /// The node has joined a cluster.
    ///
    /// # Panics
    /// When it is said twice.
    pub fn set_cluster(&self, cluster: Arc<ClusterState>) {
        assert!(self.cluster.set(cluster).is_ok(), "a node joins once");
    }

    /// The drain has begun.
    pub fn set_draining(&self) {
        self.draining.store(true, Ordering::SeqCst);
    }

    /// Where the node stands.
    pub fn state(&self) -> NodeState {
        if self.draining.load(Ordering::SeqCst) {
            NodeState::Draining
        } else if self.shards.get().is_some() {
            NodeState::Running
        } else {
            NodeState::Starting
        }
    }

    fn cluster(&self) -> Option<&ClusterState> {
        self.cluster.get().map(|cluster| &**cluster)
    }

    /// Why the node is not ready; `None` if it is.
    fn unready(&self) -> Option<String> {
        match self.state() {
            NodeState::Starting => Some("the shards are being set up".to_owned()),
            NodeState::Draining => Some("the node is shutting down and ends its connections".to_owned()),
            NodeState::Running => self.cluster().and_then(|cluster| cluster.fence_reason(now_ms())),
        }
    }

    fn stats(&self) -> &[Arc<ShardStats>] {
        self.shards.get().map_or(&[], |shards| &shards.stats)
    }
}

#[cfg(test)]
mod tests;
