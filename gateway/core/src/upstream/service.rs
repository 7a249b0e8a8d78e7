//! One service's HTTP servers: which addresses there are, and which of them may get calls.

use crate::services::{HttpServer, HttpSpec, RetryBudget, ServiceSpec, Target};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use trunkline_router_core::balance::{Health, ServerId};
use trunkline_router_core::{Balancer, Server, ServerOptions};

/// Addresses of one name that are used.
const ADDRESSES_MAX: usize = 16;
/// Checks in succession that take a server out.
const CHECKS_FAILED_MAX: u8 = 2;

/// One address of a server.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) name: Box<str>,
    pub(super) address: SocketAddr,
    /// Which of the configured servers.
    pub(super) server: usize,
    pub(super) id: Option<ServerId>,
    pub(super) checks_failed: u8,
}

/// A service whose calls go to HTTP servers.
#[derive(Debug)]
pub(super) struct Service {
    pub(super) spec: ServiceSpec,
    pub(super) http: HttpSpec,
    pub(super) targets: Vec<Arc<Target>>,
    pub(super) balancer: Balancer,
    /// In the order of the balancer's servers.
    pub(super) places: Vec<Place>,
    /// Which of the configured servers have been found before: the weight of an address that comes to those climbs.
    found: Vec<bool>,
    /// Calls that wait, and some that have ended meanwhile.
    pub(super) queue: VecDeque<u64>,
    pub(super) waiting: usize,
    pub(super) retries: RetryBudget,
}

impl Place {
    fn is_down(&self) -> bool {
        self.checks_failed >= CHECKS_FAILED_MAX
    }
}

impl Service {
    /// One of which no address is known yet; `None` for a service that has no HTTP servers.
    pub(super) fn new(spec: &ServiceSpec) -> Option<Self> {
        let http = spec.http.clone()?;
        let targets = http.servers.iter().map(|server| Arc::new(server.target.clone())).collect();
        let found = vec![false; http.servers.len()];
        Some(Service {
            balancer: Balancer::new(spec.policy, Vec::new()).expect("no server breaks no rule"),
            spec: spec.clone(),
            http,
            targets,
            places: Vec::new(),
            found,
            queue: VecDeque::new(),
            waiting: 0,
            retries: RetryBudget::default(),
        })
    }

    /// A name stands for these addresses now.
    pub(super) fn resolved(&mut self, server: usize, addresses: &[SocketAddr], now_ms: u64) {
        let mut places: Vec<Place> = self.places.iter().filter(|place| place.server != server).cloned().collect();
        for address in addresses.iter().take(ADDRESSES_MAX) {
            // Two names may stand for one address: then the first one has it.
            if places.iter().any(|place| place.address == *address) {
                continue;
            }
            let before = self.places.iter().find(|place| place.server == server && place.address == *address);
            let name = address.to_string().into();
            let new = Place { name, address: *address, server, id: None, checks_failed: 0 };
            places.push(before.cloned().unwrap_or(new));
        }
        places.sort_by_key(|place| place.server);
        self.update(places, now_ms);
        if !addresses.is_empty() && !std::mem::replace(&mut self.found[server], true) {
            // It has joined the others without a climb; from now on it has its slow_start.
            self.update(self.places.clone(), now_ms);
        }
    }

    /// What a check of an address has shown.
    pub(super) fn checked(&mut self, address: SocketAddr, is_well: bool, now_ms: u64) {
        let mut places = self.places.clone();
        let Some(place) = places.iter_mut().find(|place| place.address == address) else { return };
        let was_down = place.is_down();
        place.checks_failed = if is_well { 0 } else { place.checks_failed.saturating_add(1) };
        let is_down = place.is_down();
        if was_down != is_down {
            let (number, name) = (self.spec.service, &self.spec.name);
            let service = if name.is_empty() { number.to_string() } else { name.clone() };
            if is_down {
                tracing::warn!(service, server = %address, "an HTTP server fails its checks: it gets no calls");
            } else {
                tracing::info!(service, server = %address, "an HTTP server is well again");
            }
        }
        self.update(places, now_ms);
    }

    /// Whether some server that is up and not among `tried` may get calls, even if it has as many as it takes at once.
    pub(super) fn may_have(&self, now_ms: u64, tried: &[ServerId]) -> bool {
        self.balancer.servers(now_ms).any(|state| {
            let is_up = match state.health {
                Health::Up => true,
                Health::Failed { until_ms } | Health::Probing { until_ms } => until_ms <= now_ms,
            };
            is_up && !state.server.options().down && !tried.contains(&state.id)
        })
    }

    fn update(&mut self, mut places: Vec<Place>, now_ms: u64) {
        let server = |place: &Place| {
            let HttpServer { weight, backup, down, max_conns, max_fails, fail_timeout_ms, slow_start_ms, .. } =
                self.http.servers[place.server];
            let down = down || place.is_down();
            // As in nginx, servers that are there from the start do not climb, though they are found one by one.
            let slow_start_ms = if self.found[place.server] { slow_start_ms } else { 0 };
            let options = ServerOptions {
                weight,
                max_conns,
                max_fails,
                fail_timeout_ms,
                slow_start_ms,
                backup,
                down,
                drain: false,
            };
            Server::new(&place.name, options)
        };
        let servers = places.iter().map(server).collect::<Result<Vec<Server>, _>>();
        if let Err(error) = servers.and_then(|servers| self.balancer.update(now_ms, servers)) {
            // The addresses of names are not ours to choose: with too many of them those of before stay.
            let service = self.spec.service;
            return tracing::warn!(%error, service, "the addresses of its HTTP servers stay as they were");
        }
        for place in &mut places {
            place.id = self.balancer.id_of(&place.name);
        }
        self.places = places;
    }
}
