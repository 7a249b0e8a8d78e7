//! The node as one of several: its lease, its view of the others, and the presence of its users in Redis. All of it on
//! the control thread.
//!
//! What is decided is decided in [`crate::membership`]; this is what carries it out.
//!
//! | file | what |
//! |---|---|
//! | `joining.rs` | what a node waits for before it has its first lease |
//! | `reach.rs` | can the others dial this node, and can this one dial those that join? |
//! | `audit.rs` | does Redis hold the sessions of this node as they are? |
//! | `rival.rs` | a login that lost against another: which of the two is right? |
//! | `relay.rs` | presence is written to Redis, or through a peer that reaches it |
//! | `renewals.rs` | how regularly the lease is renewed |
//! | `task.rs` | the task that asks Redis and shards, and tells them |
//! | `state.rs` | what the rest of the process may know, at any time and from any thread |
//! | `links.rs` | the links of all shards to each other node |
//! | `place.rs` | how the node takes its place in the ring and gives it up |
//! | `reader.rs` | what questions about the cluster are answered from |
//! | `exposition.rs` | the same as metrics |
//!
//! **The life of a lease.** The node takes its lease before its shards start, as `joining`, and becomes `active` when
//! they run. Each beat renews it and asks for the view. It becomes active when most of those that came before it say
//! that they can dial it. [`Fence::serve_until_ms`](crate::fence::Fence::serve_until_ms) is a moment and no flag, so a
//! node that was paused is fenced by the first look at the clock, whoever looks, and no slow answer of Redis can delay
//! that.
//!
//! **Incarnations.** Presence counts for one incarnation. Whenever what Redis holds may differ from the truth in a way
//! that cannot be mended write by write, the node takes a new incarnation and writes all its sessions again under it:
//! after a fence, and when a queue of presence writes overflowed. To the other nodes' shards that is the same *life* of
//! this node, unless it was fenced: only then do its links, the sessions registered with it and the messages under way
//! count no more. When Redis came back without the lease, the node writes the lease again with the incarnation that it
//! has, and all its sessions: what presence holds of them counts all the while.
//!
//! Architecture Invariant: nothing here is waited for by a shard, and every wait for Redis has a bound.

mod audit;
mod exposition;
mod joining;
mod links;
mod place;
mod reach;
mod reader;
mod relay;
mod renewals;
mod rival;
mod state;
mod task;

pub use crate::mesh::handshake::{MeshEncryption, Secrets};
pub use crate::mesh::{MESH_PROTOCOL, MESH_PROTOCOL_OLDEST};
pub use crate::mesh_news::MeshNewsQueue;
pub use crate::mesh_news::{LinkNews, LinkWord, MeshNews};
pub use audit::AuditStatus;
pub use exposition::write_cluster;
pub use place::Place;
pub use reader::ClusterReader;
pub use renewals::RenewalCounts;
pub use state::{ClusterState, ClusterStatus, Differs, RedisStatus, Refused, fenced_word};

use crate::config::{ClusterConfig, ClusterSecret, MeshEncryptionKind, RedisDown};
use crate::membership::Agent;
use crate::presence_log::PresenceLog;
use crate::startup::StartupError;
use joining::Joining;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use task::{Order, Task};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use trunkline_router::membership::{NodeRecord, NodeState};
use trunkline_router::redis::{Master, Plane};

/// Steps of a node's life that wait for the task: running, active, draining, leaving.
const ORDERS_MAX: usize = 4;
/// How long what waits for Redis may take to be written when the node ends.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

impl From<MeshEncryptionKind> for MeshEncryption {
    fn from(kind: MeshEncryptionKind) -> Self {
        match kind {
            MeshEncryptionKind::On => MeshEncryption::On,
            MeshEncryptionKind::Required => MeshEncryption::Required,
            MeshEncryptionKind::Off => MeshEncryption::Off,
        }
    }
}

/// The node's part in its cluster. Dropping it ends nothing.
#[derive(Debug)]
pub struct Cluster {
    place: Place,
    news: MeshNewsQueue,
    reader: ClusterReader,
    logs: Vec<Arc<PresenceLog>>,
    task: JoinHandle<()>,
    round_trip_max: Duration,
}

/// Where the HTTP API of a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HttpPlace {
    /// The address it listens on.
    pub address: SocketAddr,
    /// Whether it speaks TLS.
    pub tls: bool,
}

/// Where others reach an HTTP API that listens on `http`: one that listens everywhere is told with the host that
/// clients are told.
fn advertised_http(http: SocketAddr, advertise: &str) -> String {
    match advertise.rsplit_once(':') {
        Some((host, _)) if http.ip().is_unspecified() => format!("{host}:{}", http.port()),
        _ => http.to_string(),
    }
}

impl Cluster {
    /// Connects to Redis, takes the lease of the name `node` as a node that is joining, and keeps it from then on.
    /// `http` is where its HTTP API is.
    ///
    /// What may pass by itself is waited for, however long it takes: a Redis that is not there yet or refuses the
    /// password, and the lease of an earlier life of this node that has not run out. `waits` is told for what, about
    /// once a second.
    ///
    /// # Errors
    /// What only somebody can mend: the Redis is no cluster, a node that lives has this name, or other nodes have
    /// another secret; the message says what to do.
    pub async fn join(
        config: &ClusterConfig,
        secret: &ClusterSecret,
        secrets: Secrets,
        node: &str,
        shards: u16,
        http: HttpPlace,
        waits: impl Fn(String),
    ) -> Result<Self, StartupError> {
        let failed = |error: &dyn std::fmt::Display| StartupError::Cluster(error.to_string());
        let plane = Plane::unconnected(&config.redis);
        let mut joining = Joining::new(secret.clone(), waits);
        plane.connect_patiently(|error| joining.redis_fails(error)).await.map_err(|error| failed(&error))?;
        let started_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
        let record = NodeRecord {
            name: node.to_owned(),
            incarnation: 0,
            state: NodeState::Joining,
            weight: config.weight,
            shards: shards.into(),
            mesh: config.mesh.to_string(),
            advertise: config.advertise.clone(),
            http: advertised_http(http.address, &config.advertise),
            protocol: secrets.versions().max.into(),
            connections: 0,
            users: 0,
            started_ms,
            life: 0,
            renewals: 0,
            secret_mark: secret.mark(),
            reach: None,
            protocol_oldest: secrets.versions().min.into(),
            zone: config.zone.clone(),
            mending: false,
            mesh_links: config.mesh_links.into(),
            https: http.tls,
            turns: 0,
            view: 0,
            silent: String::new(),
        };
        let (sent_ms, incarnation) = joining.take_lease(&plane, &record, config.lease_ms).await?;
        let mut agent = Agent::new(record, config.lease_ms, config.beat().as_millis() as u64);
        if config.redis_down == RedisDown::Serve {
            agent.serve_alone();
        }
        agent.acquired(sent_ms, crate::clock::now_ms(), incarnation);
        tracing::info!("node {node} has its lease, incarnation {incarnation}");

        tokio::spawn(warn_of_risks(plane.clone()));

        let logs: Vec<Arc<PresenceLog>> = (0..shards).map(|_| Arc::new(PresenceLog::new())).collect();
        let state = Arc::new(ClusterState::new(node, config.lease_ms, Arc::clone(plane.metrics()), logs.clone()));
        let (orders, orders_taken) = mpsc::channel(ORDERS_MAX);
        let news = MeshNewsQueue::default();
        let round_trip_max = config.redis.command_timeout * 2;
        let task = Task::new(config, secrets, plane.clone(), agent, state.clone(), logs.clone());
        let reader = ClusterReader::new(plane, task.views(), state);
        let task = tokio::spawn(task.run(orders_taken, news.clone()));
        Ok(Cluster { place: Place::new(orders, round_trip_max), news, reader, logs, task, round_trip_max })
    }

    /// What the rest of the process may know.
    pub fn reader(&self) -> &ClusterReader {
        &self.reader
    }

    /// Where each shard tells of its sessions, by shard.
    pub fn logs(&self) -> &[Arc<PresenceLog>] {
        &self.logs
    }

    /// Where the mesh tells what it knows about other nodes. A full queue is no fault: what matters is told again.
    pub fn news(&self) -> MeshNewsQueue {
        self.news.clone()
    }

    /// The node's place in the ring.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Writes what waits, for 5 s at most, and gives the lease up. To be called when all shards have ended.
    pub async fn leave(self) {
        self.place.order(Order::Leave).await;
        if tokio::time::timeout(FLUSH_TIMEOUT + 4 * self.round_trip_max, self.task).await.is_err() {
            tracing::warn!("the lease could not be given up; it runs out by itself");
        }
    }
}

/// Says what of the masters puts presence at risk. Whoever cannot be asked, or does not tell, is no reason not to
/// serve.
async fn warn_of_risks(plane: Plane) {
    match plane.masters().await {
        Ok(masters) => {
            for risk in masters.iter().flat_map(Master::risks) {
                tracing::warn!("{risk}");
            }
        }
        Err(error) => tracing::info!("whether Redis may lose presence is not known: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::advertised_http;

    #[test]
    fn an_api_that_listens_everywhere_is_told_with_the_host_of_the_node() {
        let told = |http: &str, advertise: &str| advertised_http(http.parse().unwrap(), advertise);
        assert_eq!(told("127.0.0.1:7780", "gate.example:7700"), "127.0.0.1:7780");
        assert_eq!(told("10.0.0.1:7780", "gate.example:7700"), "10.0.0.1:7780");
        assert_eq!(told("0.0.0.0:7780", "gate.example:7700"), "gate.example:7780");
        assert_eq!(told("[::]:7780", "[2001:db8::1]:7700"), "[2001:db8::1]:7780");
    }
}
