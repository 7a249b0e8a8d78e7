//! What the `router` binary knows, and how it keeps that up to date.

use super::Source;
use super::access::Access;
use super::forward::{self, Asked, Credentials};
use super::metrics::RequestCounts;
use super::places::Places;
use super::problem::Problem;
use super::relay::Relays;
use super::writes::{Login, LoginRequest};
use crate::api::{Picture, home};
use crate::balance::BalanceError;
use crate::dispatch::{Dispatch, DispatchStats, NoNode, Strategy, Wish};
use crate::membership::{Membership, NodeRecord, NodeState, View};
use crate::redis::{Patience, Plane, PlaneError, PresenceEntry, Tls};
use axum::response::{IntoResponse, Response};
use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::time::{MissedTickBehavior, interval};

/// The time between two polls of Redis, as on every node.
pub const POLL_PERIOD: Duration = Duration::from_secs(1);

/// How a router is set up.
#[derive(Debug)]
pub struct ServiceConfig {
    /// Time to live of the nodes' leases, seconds.
    pub lease_secs: u32,
    /// How a node is chosen for a login that does not say how.
    pub strategy: Strategy,
    /// The zone of logins that do not name one; may be empty.
    pub zone: String,
    /// For how long the weight of a node that comes climbs, seconds.
    pub slow_start_secs: u32,
    /// Who may ask what.
    pub access: Arc<Access>,
    /// The places of the server.
    pub places: Arc<Places>,
    /// The key with which it asks nodes to end sessions; `None` for nodes on this host that have no keys.
    pub node_key: Option<String>,
    /// TLS to nodes whose HTTP API speaks it, or why it cannot be spoken.
    pub node_tls: Result<Tls, String>,
}

/// A router without the server: stateless but for what the next poll gives again, so any number of them may run.
#[derive(Debug)]
pub struct Service {
    plane: Plane,
    config: ServiceConfig,
    started: Instant,
    ending: AtomicBool,
    pub(super) polls: AtomicU64,
    pub(super) poll_failures: AtomicU64,
    /// In the order of [`Strategy::ALL`].
    pub(super) logins: [AtomicU64; 4],
    pub(super) requests: RequestCounts,
    relays: Relays,
    /// Held for moments only, and never across an await.
    known: Mutex<Known>,
}

/// What the polls have said.
#[derive(Debug)]
struct Known {
    /// The last view and when Redis gave it; `None` before the first.
    seen: Option<(Arc<View>, Instant)>,
    /// Why the last poll failed, if it did.
    failure: Option<String>,
    dispatch: Dispatch,
}

/// Whether the router is of use, for `/readyz`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Readiness {
    /// Before the first view; with the reason if a poll has failed.
    Starting(Option<String>),
    /// All well.
    Running,
    /// No node is active, so nobody can be sent anywhere; holds what to do.
    Empty(String),
    /// Redis does not work, and says why; the last view goes on.
    Degraded(String),
    /// It has been told to end.
    Ending,
}

impl Service {
    /// A router on this plane.
    ///
    /// # Errors
    /// None in practice; see [`Dispatch::new`].
    pub fn new(plane: Plane, config: ServiceConfig) -> Result<Self, BalanceError> {
        let slow_start_ms = u64::from(config.slow_start_secs) * 1_000;
        Ok(Service {
            plane,
            config,
            started: Instant::now(),
            ending: AtomicBool::new(false),
            polls: AtomicU64::new(0),
            poll_failures: AtomicU64::new(0),
            logins: [const { AtomicU64::new(0) }; 4],
            requests: RequestCounts::default(),
            relays: Relays::default(),
            known: Mutex::new(Known { seen: None, failure: None, dispatch: Dispatch::new(slow_start_ms)? }),
        })
    }

    pub(super) fn plane(&self) -> &Plane {
        &self.plane
    }

    /// Who may ask what.
    #[must_use]
    pub fn access(&self) -> &Arc<Access> {
        &self.config.access
    }

    /// The places of its server.
    #[must_use]
    pub fn places(&self) -> &Arc<Places> {
        &self.config.places
    }

    /// The requests that are passed on to nodes.
    pub(super) fn relays(&self) -> &Relays {
        &self.relays
    }

    pub(super) fn node_tls(&self) -> &Result<Tls, String> {
        &self.config.node_tls
    }

    pub(super) fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    /// From now on `/readyz` says that this router ends.
    pub fn set_ending(&self) {
        self.ending.store(true, Ordering::Relaxed);
    }

    /// Waits for Redis, as long as that takes, then polls it for ever, once in each [`POLL_PERIOD`].
    ///
    /// # Errors
    /// What only a change of the configuration mends.
    pub async fn watch(self: Arc<Self>) -> Result<Infallible, PlaneError> {
        let mut patience = Patience::default();
        let waits = |error: &PlaneError| {
            self.known().failure = Some(format!("waiting for Redis since the start: {error}"));
            self.poll_failures.fetch_add(1, Ordering::Relaxed);
            if !patience.is_due(error.kind(), Instant::now()) {
                return;
            }
            match error {
                PlaneError::AuthRefused { .. } => {
                    tracing::error!(
                        "{error}; unless the password is being changed right now, --redis is wrong; trying again each \
                         second"
                    );
                }
                _ => tracing::warn!("waiting for Redis, /readyz is 503 until then: {error}"),
            }
        };
        self.plane.connect_patiently(waits).await?;
        let mut membership = Membership::new(None, u64::from(self.config.lease_secs) * 1_000);
        let mut ticks = interval(POLL_PERIOD);
        // After a poll that had to wait for a time-out the next one is a period away, and not all missed ones at once.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.poll(&mut membership).await;
        }
    }

    async fn poll(&self, membership: &mut Membership) {
        let polled = self.plane.poll().await;
        self.polls.fetch_add(1, Ordering::Relaxed);
        let outcome = match polled {
            Ok(records) => {
                membership.polled(self.now_ms(), records);
                self.agree(membership).await.map(|()| Instant::now())
            }
            Err(error) => {
                membership.poll_failed(self.now_ms());
                Err(error)
            }
        };
        if outcome.is_err() {
            self.poll_failures.fetch_add(1, Ordering::Relaxed);
        }
        let kept: Vec<&str> = membership.kept().collect();
        let kept = (!kept.is_empty()).then(|| {
            format!(
                "Redis has no lease of {}, and they stay in the view, since the other nodes work with them or none has \
                 a lease: Redis may refuse writes",
                kept.join(", ")
            )
        });
        self.publish(membership.view(), outcome.map_err(|error| error.to_string()), kept);
    }

    /// Asks for the cluster's epoch of the view.
    async fn agree(&self, membership: &mut Membership) -> Result<(), PlaneError> {
        let view = membership.view();
        let epoch = self.plane.epoch(view.digest, view.epoch).await?;
        membership.set_epoch(view.digest, epoch);
        Ok(())
    }

    /// `kept`: of which nodes Redis has no lease although they are in the view, in words.
    fn publish(&self, view: Arc<View>, outcome: Result<Instant, String>, kept: Option<String>) {
        let now_ms = self.now_ms();
        let mut known = self.known();
        let before = known.seen.as_ref().map(|(view, _)| view.epoch);
        match &outcome {
            Ok(at) => {
                if before != Some(view.epoch) {
                    let nodes: Vec<&str> = view.members.iter().map(|member| member.name.as_str()).collect();
                    tracing::info!(epoch = view.epoch, nodes = nodes.join(", "), "the view is a new one");
                    for name in &view.left_out {
                        tracing::warn!(
                            "node {name} has no place in the ring beside the others; give it another name or weight, \
                             or a version of gateway that speaks with theirs"
                        );
                    }
                }
                if known.failure.is_some() && kept.is_none() {
                    tracing::info!("Redis works again");
                }
                take_over(&mut known.dispatch, now_ms, &view);
                known.seen = Some((view, *at));
            }
            Err(error) => {
                if known.failure.is_none() {
                    tracing::warn!("{error}; going on with what is known");
                }
                // It may have changed all the same: the nodes were told, and only the epoch was not.
                let Known { seen, dispatch, .. } = &mut *known;
                if let Some((seen, _)) = seen.as_mut().filter(|(seen, _)| !Arc::ptr_eq(seen, &view)) {
                    take_over(dispatch, now_ms, &view);
                    *seen = view;
                }
            }
        }
        if let (Some(kept), None) = (&kept, &known.failure) {
            tracing::warn!("{kept}");
        }
        known.failure = outcome.err().or(kept);
    }

    /// Takes a view as if a poll had brought it.
    #[cfg(test)]
    pub(super) fn see(&self, view: Arc<View>) {
        self.publish(view, Ok(Instant::now()), None);
    }

    /// The node for a login.
    pub(super) fn login(&self, request: &LoginRequest) -> Result<Login, Problem> {
        let strategy = request.strategy.unwrap_or(self.config.strategy);
        let user = request.user.0;
        let zone = request.zone.as_deref().unwrap_or(&self.config.zone);
        let wish = Wish { user, strategy, zone, failed: &request.failed };
        let now_ms = self.now_ms();
        let mut known = self.known();
        let degraded = known.failure.is_some();
        let view =
            known.seen.as_ref().map(|(view, _)| Arc::clone(view)).ok_or_else(no_view).map_err(Problem::unavailable)?;
        let record = known
            .dispatch
            .pick(now_ms, &view, wish, &mut rand::rng())
            .map_err(|error| Problem::unavailable(error.to_string()))?;
        self.logins[strategy as usize].fetch_add(1, Ordering::Relaxed);
        Ok(Login {
            user,
            node: record.name.clone(),
            address: record.advertise.clone(),
            zone: record.zone.clone(),
            ttl_secs: self.config.lease_secs.into(),
            strategy,
            epoch: view.epoch,
            degraded,
        })
    }

    /// Ends the sessions of a user by asking a node to. Any node does: it asks the user's home, which knows all
    /// sessions. The home itself is asked first, because it needs nobody else.
    pub(super) async fn kick(&self, user: u64, device: Option<&str>) -> Response {
        let view = match self.picture() {
            Ok(picture) => picture.view,
            Err(error) => return Problem::unavailable(error).into_response(),
        };
        let nodes = nodes_to_ask(&view, user);
        if nodes.is_empty() {
            let detail = "no node is known that could end sessions; GET /v1/nodes shows those there are";
            return Problem::unavailable(detail).into_response();
        }
        let mut failures = Vec::new();
        let credentials = Credentials { key: self.config.node_key.as_deref(), tls: &self.config.node_tls };
        for NodeRecord { name, http: address, https, .. } in nodes {
            match forward::kick(address, *https, &credentials, user, device).await {
                Asked::Answered(response) => return response,
                Asked::Failed(error) => failures.push(format!("node {name} at {address}: {error}")),
            }
        }
        Problem::unavailable(format!("no node could be asked to end sessions: {}", failures.join("; "))).into_response()
    }

    pub(super) fn dispatch_stats(&self) -> DispatchStats {
        self.known().dispatch.stats()
    }

    pub(super) fn readiness(&self) -> Readiness {
        let known = self.known();
        match (&known.seen, &known.failure) {
            _ if self.ending.load(Ordering::Relaxed) => Readiness::Ending,
            (None, failure) => Readiness::Starting(failure.clone()),
            (Some((view, _)), failure) if view.ring.is_none() => {
                let also = failure.as_ref().map(|failure| format!("; and {failure}")).unwrap_or_default();
                Readiness::Empty(format!("{NoNode}{also}"))
            }
            (Some(_), None) => Readiness::Running,
            (Some(_), Some(failure)) => Readiness::Degraded(failure.clone()),
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now_ms(&self) -> u64 {
        // 585 million years.
        self.started.elapsed().as_millis() as u64
    }
}

/// The nodes with an HTTP API that may be asked about what has this key, one after the other: first the home, if any.
pub(super) fn nodes_to_ask(view: &View, key: u64) -> Vec<&NodeRecord> {
    let home = home(view, key).map(|(record, _)| &record.name);
    let mut nodes: Vec<&NodeRecord> = Vec::new();
    for member in view.members.iter().filter(|member| member.state != NodeState::Joining && !member.http.is_empty()) {
        nodes.insert(if Some(&member.name) == home { 0 } else { nodes.len() }, member);
    }
    nodes.truncate(forward::NODES_ASKED_MAX);
    nodes
}

/// Before the first view.
fn no_view() -> String {
    "no node is known yet: Redis has not answered since the start; try again in a moment".to_owned()
}

fn take_over(dispatch: &mut Dispatch, now_ms: u64, view: &View) {
    if let Err(error) = dispatch.polled(now_ms, view) {
        tracing::warn!(%error, "the nodes cannot be balanced; logins go on with those of before");
    }
}

impl Source for Service {
    fn picture(&self) -> Result<Picture, String> {
        let known = self.known();
        let (view, at) = known.seen.as_ref().ok_or_else(no_view)?;
        Ok(Picture {
            view: Arc::clone(view),
            age_ms: at.elapsed().as_millis() as u64,
            degraded: known.failure.is_some(),
        })
    }

    async fn entries(&self, user: u64) -> Result<Vec<PresenceEntry>, String> {
        self.plane.user(user).await.map_err(|error| error.to_string())
    }

    async fn entries_of(&self, users: &[u64]) -> Vec<Option<Vec<PresenceEntry>>> {
        self.plane.users(users).await.into_iter().map(Result::ok).collect()
    }
}

// A login is counted by the number of its strategy.
const _: () = {
    let mut at = 0;
    while at < Strategy::ALL.len() {
        assert!(Strategy::ALL[at] as usize == at);
        at += 1;
    }
};
