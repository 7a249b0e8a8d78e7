//! The HTTP API of the control thread: health, metrics, the node, and the questions about nodes and users that a router
//! answers too.
//!
//! | part | what it is |
//! |---|---|
//! | `api.rs` | the routes of a node |
//! | `source.rs` | where the answers come from that a router gives too: the cluster, or this one node |
//! | `cluster.rs` | the cluster as `/v1/node` shows it |
//! | `inbox.rs` | what waits for users in the store, and their devices |
//! | `pulse.rs` | whether the shards turn |
//! | `document.rs` | the OpenAPI document |
//! | `demo.rs` | the page for trying, which is no part of the API |

mod api;
mod cluster;
pub mod demo;
mod document;
mod groups;
mod inbox;
mod pulse;
mod services;
mod source;

pub use api::router;

use crate::bounds::HTTP_CONNECTIONS_MAX;
use crate::clock::now_ms;
use crate::cluster::{ClusterReader, ClusterState, Place};
use crate::control::ControlPort;
use crate::drain::{DrainSwitch, Wanted};
use crate::limits::Limits;
use crate::metrics::ShardStats;
use crate::reload_request::Reload;
use crate::store::StoreWatch;
use crate::transport::tls::TlsSwitch;
use pulse::Pulse;
use std::net::SocketAddr;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use trunkline_router::http::{Access, Places};

/// Version of the gateway.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What the API knows about the node it runs in.
#[derive(Debug)]
pub struct Node {
    name: String,
    /// As the last reload has left them.
    limits: Mutex<Arc<Limits>>,
    listen: Vec<SocketAddr>,
    http: SocketAddr,
    started: Instant,
    started_ms: u64,
    shards: OnceLock<ShardHandles>,
    drain: Arc<DrainSwitch>,
    access: Arc<Access>,
    places: Arc<Places>,
    pulse: Pulse,
    /// Whether it is to be one of several.
    joins: bool,
    cluster: OnceLock<ClusterReader>,
    place: OnceLock<Place>,
    store: OnceLock<StoreWatch>,
    /// What the node waits for before it joins.
    waits: Mutex<Option<String>>,
    turned_away: Arc<AtomicU64>,
    reload: OnceLock<Reload>,
    tls: OnceLock<Arc<TlsSwitch>>,
    https: OnceLock<()>,
    services_places: OnceLock<Arc<Places>>,
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
    /// Its shards are being set up, or it joins its cluster.
    Starting,
    /// It serves.
    Running,
    /// It ends its sessions and begins no new ones.
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
    /// A node that is starting. `listen` and `http` are the addresses it is bound to; `joins` says whether it is to be
    /// one of several, `access` who may ask what.
    pub fn new(
        name: String,
        limits: Limits,
        listen: Vec<SocketAddr>,
        http: SocketAddr,
        joins: bool,
        access: Access,
    ) -> Self {
        Node {
            name,
            limits: Mutex::new(Arc::new(limits)),
            listen,
            http,
            started: Instant::now(),
            started_ms: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64,
            shards: OnceLock::new(),
            drain: Arc::default(),
            access: Arc::new(access),
            places: Places::new(HTTP_CONNECTIONS_MAX),
            pulse: Pulse::default(),
            joins,
            cluster: OnceLock::new(),
            place: OnceLock::new(),
            store: OnceLock::new(),
            waits: Mutex::default(),
            turned_away: Arc::default(),
            reload: OnceLock::new(),
            tls: OnceLock::new(),
            https: OnceLock::new(),
            services_places: OnceLock::new(),
        }
    }

    /// The limits of each shard.
    pub fn limits(&self) -> Arc<Limits> {
        self.limits.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A reload has changed them.
    pub fn set_limits(&self, limits: Limits) {
        *self.limits.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(limits);
    }

    /// Asks this node to read its configuration again; `None` before it can.
    pub fn reload(&self) -> Option<&Reload> {
        self.reload.get()
    }

    /// Where to ask for that.
    ///
    /// # Panics
    /// When it is said twice.
    pub fn set_reload(&self, reload: Reload) {
        assert!(self.reload.set(reload).is_ok(), "a node has one reloader");
    }

    /// The certificates of the node; `None` without TLS.
    pub(crate) fn tls(&self) -> Option<&TlsSwitch> {
        self.tls.get().map(|tls| &**tls)
    }

    /// The node speaks TLS, with these certificates.
    ///
    /// # Panics
    /// When it is said twice.
    pub fn set_tls(&self, tls: Arc<TlsSwitch>) {
        assert!(self.tls.set(tls).is_ok(), "a node begins TLS once");
    }

    /// The API itself is reached over TLS.
    pub fn set_https(&self) {
        self.https.get_or_init(|| ());
    }

    /// The node waits for this before it joins its cluster.
    pub fn set_waiting(&self, reason: String) {
        *self.waits.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason);
    }

    /// Connections that came before the node served; see [`crate::early`].
    pub fn turned_away(&self) -> &Arc<AtomicU64> {
        &self.turned_away
    }

    /// All shards run, and know the other nodes.
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
    pub fn set_cluster(&self, cluster: ClusterReader, place: Place) {
        assert!(self.place.set(place).is_ok() && self.cluster.set(cluster).is_ok(), "a node joins once");
        *self.waits.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// The node has a store.
    ///
    /// # Panics
    /// When it is said twice.
    pub fn set_store(&self, store: StoreWatch) {
        assert!(self.store.set(store).is_ok(), "a node has one store");
    }

    /// What does not work although the node serves.
    fn degraded(&self) -> Vec<String> {
        let mut degraded = self.cluster().map(|cluster| cluster.degraded(now_ms())).unwrap_or_default();
        let silence_us = self.stats().iter().map(|stats| stats.store_silence_us.get()).max().unwrap_or(0);
        let silence = Duration::from_micros(silence_us);
        degraded.extend(self.store.get().and_then(|store| store.degraded(silence)));
        degraded
    }

    /// Its place in the ring; `None` before it has joined, and alone.
    pub fn place(&self) -> Option<&Place> {
        self.place.get()
    }

    /// The places of the server for back-ends; `None` without one.
    fn services_places(&self) -> Option<&Places> {
        self.services_places.get().map(|places| &**places)
    }

    /// The node has a server for back-ends.
    ///
    /// # Panics
    /// When it is said twice.
    pub fn set_services_places(&self, places: Arc<Places>) {
        assert!(self.services_places.set(places).is_ok(), "a node has one services thread");
    }

    /// When the process began, milliseconds since the Unix epoch.
    pub fn started_ms(&self) -> u64 {
        self.started_ms
    }

    /// Whether it serves, drains or ends.
    pub fn drain(&self) -> &Arc<DrainSwitch> {
        &self.drain
    }

    /// Who may use the API; new keys are given to it.
    pub fn access(&self) -> &Arc<Access> {
        &self.access
    }

    /// The places of the server that serves the API.
    pub fn places(&self) -> &Arc<Places> {
        &self.places
    }

    /// Watches for ever whether the shards turn; `/readyz` says so when one does not.
    pub async fn watch_shards(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(pulse::SAMPLE_PERIOD);
        // Samples that were missed were no samples.
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.sample_shards();
        }
    }

    fn sample_shards(&self) {
        self.pulse.sample(self.stats().iter().map(|stats| stats.turns.get()));
    }

    /// Where the node stands.
    pub fn state(&self) -> NodeState {
        if self.drain.wanted() != Wanted::Serve {
            NodeState::Draining
        } else if self.shards.get().is_some() {
            NodeState::Running
        } else {
            NodeState::Starting
        }
    }

    fn cluster(&self) -> Option<&ClusterState> {
        self.cluster.get().map(|cluster| &**cluster.state())
    }

    /// Why the node is not ready; `None` if it is.
    fn unready(&self) -> Option<String> {
        match self.state() {
            NodeState::Starting => {
                let of_cluster = self.cluster().and_then(|cluster| cluster.status().waits);
                if of_cluster.is_some() {
                    return of_cluster;
                }
                let waits = self.waits.lock().unwrap_or_else(PoisonError::into_inner).clone();
                Some(waits.unwrap_or_else(|| "the node is being set up".to_owned()))
            }
            NodeState::Draining => Some(match self.drain.wanted() {
                Wanted::End => "the node is shutting down and ends its connections".to_owned(),
                _ => "the node drains and sends its clients away; DELETE /v1/node/drain calls it off".to_owned(),
            }),
            NodeState::Running => {
                self.stuck_shards().or_else(|| self.cluster().and_then(|cluster| cluster.unready(now_ms())))
            }
        }
    }

    fn stuck_shards(&self) -> Option<String> {
        let stuck: Vec<String> = self.pulse.stuck().iter().map(ToString::to_string).collect();
        match &*stuck {
            [] => None,
            [one] => Some(format!("shard {one} does not turn, so its users are not served")),
            _ => Some(format!("shards {} do not turn, so their users are not served", stuck.join(", "))),
        }
    }

    fn stats(&self) -> &[Arc<ShardStats>] {
        self.shards.get().map_or(&[], |shards| &shards.stats)
    }

    /// The sum of a number over all shards; 0 before they run.
    fn sum(&self, number: fn(&ShardStats) -> u64) -> u64 {
        self.stats().iter().map(|stats| number(stats)).sum()
    }
}

#[cfg(test)]
mod tests;
