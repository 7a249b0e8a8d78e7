//! Between the portals, the desk and the connections: the loop of the services thread for calls to HTTP servers.

use super::answer_bytes_max;
use super::connections::{Connections, Held, Part, Room};
use super::watch::{literal, lookups};
use super::{Deed, Desk, End, RunId};
use crate::clock::{now_ms, now_us};
use crate::limits::Limits;
use crate::metrics::ShardStats;
use crate::services::{CallPortals, CallsOuter, HealthSpec, ServiceRecord, ServiceSpec};
use hashbrown::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{MissedTickBehavior, interval};
use trunkline_proto::call_flags;

/// How often calls that wait, and idle connections, are looked at.
const TICK: Duration = Duration::from_millis(100);
/// The longest that a check may take.
const CHECK_MAX: Duration = Duration::from_secs(5);

/// What calls to HTTP servers need of their node.
#[derive(Debug)]
pub(crate) struct DriverConfig {
    pub(crate) specs: Arc<[ServiceSpec]>,
    pub(crate) portals: CallPortals,
    /// The numbers of the first shard, see [`Desk`].
    pub(crate) stats: Arc<ShardStats>,
    pub(crate) limits: Limits,
    pub(crate) seed: u64,
}

/// What tasks tell the loop. There is one for each request that ends, parts of answers as far as there is room for
/// them, and few others.
#[derive(Debug)]
enum Event {
    Part { at: RunId, part: Part },
    Ended { at: RunId, end: End, took_us: u64, held: Held },
    Resolved { service: u16, server: usize, addresses: Vec<SocketAddr> },
    Checked { service: u16, address: SocketAddr, is_well: bool },
}

/// When the servers of a service are asked next.
#[derive(Debug)]
struct Checks {
    service: u16,
    spec: HealthSpec,
    next_ms: u64,
    /// Answers of the last round that are to come. Until then there is no further one.
    open: usize,
}

/// All of it.
#[derive(Debug)]
pub(crate) struct Driver {
    desk: Desk,
    outer: CallsOuter,
    portals: CallPortals,
    connections: Arc<Connections>,
    room: Arc<Room>,
    /// How requests under way are told that nobody waits for them.
    aborts: HashMap<u64, oneshot::Sender<()>>,
    checks: Vec<Checks>,
    specs: Arc<[ServiceSpec]>,
    stats: Arc<ShardStats>,
    events: mpsc::UnboundedSender<Event>,
    told: mpsc::UnboundedReceiver<Event>,
}

impl Driver {
    /// Everything there is before the first call.
    ///
    /// # Errors
    /// When the certificates of a service's signers cannot be read.
    pub(crate) fn new(config: DriverConfig) -> io::Result<Self> {
        let DriverConfig { specs, portals, stats, limits, seed } = config;
        let room = Arc::new(Room::new(limits.upstream_bytes_max, portals.clone()));
        let conns_max = limits.upstream_conns_max;
        let answer_bytes = answer_bytes_max(&limits);
        let connections = Connections::new(&specs, room.clone(), answer_bytes, conns_max, stats.clone())?;
        let check = |spec: &ServiceSpec| {
            let health = spec.http.as_ref()?.health.clone()?;
            Some(Checks { service: spec.service, spec: health, next_ms: 0, open: 0 })
        };
        let (events, told) = mpsc::unbounded_channel();
        Ok(Driver {
            desk: Desk::new(&specs, conns_max, stats.clone(), seed),
            outer: portals.outer(),
            portals,
            connections: Arc::new(connections),
            room,
            aborts: HashMap::new(),
            checks: specs.iter().filter_map(check).collect(),
            specs,
            stats,
            events,
            told,
        })
    }

    /// Goes on for as long as it is polled.
    pub(crate) async fn run(mut self) {
        self.look_up();
        let bell = self.portals.bell().clone();
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = bell.rung() => {}
                event = self.told.recv() => event.into_iter().for_each(|event| self.hear(event)),
                _ = ticks.tick() => self.tick(),
            }
            while let Ok(event) = self.told.try_recv() {
                self.hear(event);
            }
            self.take_calls();
            self.act();
            self.outer.post();
            self.set_gauges();
        }
    }

    fn hear(&mut self, event: Event) {
        let now_ms = now_ms();
        match event {
            Event::Part { at, part: Part { status, body, held } } => {
                self.desk.part(at, status, body);
                self.act();
                drop(held);
            }
            Event::Ended { at, end, took_us, held } => {
                self.aborts.remove(&at.token);
                self.desk.ended(at, end, took_us, now_ms);
                // The answer goes into the portal first, where it counts again.
                self.act();
                drop(held);
            }
            Event::Resolved { addresses, .. } if addresses.is_empty() => self.stats.upstream_lookups_failed.add(1),
            Event::Resolved { service, server, addresses } => self.desk.resolved(service, server, &addresses, now_ms),
            Event::Checked { service, address, is_well } => {
                self.checks.iter_mut().filter(|checks| checks.service == service).for_each(|checks| checks.open -= 1);
                self.desk.checked(service, address, is_well, now_ms);
            }
        }
    }

    /// Takes what the shards have handed over.
    fn take_calls(&mut self) {
        let room = self.room.clone();
        let free = |calls| {
            room.set_calls(calls);
            room.free()
        };
        while let Some((shard, batch)) = self.outer.take() {
            self.desk.take(shard, &batch, free, now_ms());
        }
    }

    /// Does what the desk has decided.
    fn act(&mut self) {
        while let Some(deed) = self.desk.next_deed() {
            match deed {
                Deed::Start(run) => {
                    let (abort, aborted) = oneshot::channel();
                    self.aborts.insert(run.at.token, abort);
                    let (connections, events) = (self.connections.clone(), self.events.clone());
                    tokio::spawn(async move {
                        let began_us = now_us();
                        let left = Duration::from_millis(run.deadline_ms.saturating_sub(now_ms()));
                        // The loop goes on until the thread ends.
                        let tell = |part| drop(events.send(Event::Part { at: run.at, part }));
                        let (end, held) = connections.carry_out(&run, left, aborted, tell).await;
                        let took_us = now_us().saturating_sub(began_us);
                        let _ = events.send(Event::Ended { at: run.at, end, took_us, held });
                    });
                }
                Deed::Abort { token } => {
                    if let Some(abort) = self.aborts.remove(&token) {
                        // It may have ended just now.
                        let _ = abort.send(());
                    }
                }
                Deed::Part { caller, id, status, body } => {
                    let flags = call_flags::MORE;
                    let part = ServiceRecord::Answer { conn: caller.conn, id, status, flags, body: &body };
                    self.outer.put(caller.shard, &part);
                }
                Deed::Answer { caller, id, status, body } => {
                    let answer = ServiceRecord::Answer { conn: caller.conn, id, status, flags: 0, body: &body };
                    self.outer.put(caller.shard, &answer);
                }
            }
        }
        self.room.set_calls(self.desk.bytes());
    }

    fn tick(&mut self) {
        let now_ms = now_ms();
        self.desk.tick(now_ms);
        self.connections.sweep();
        for checks in &mut self.checks {
            if checks.next_ms > now_ms || checks.open > 0 {
                continue;
            }
            checks.next_ms = now_ms + checks.spec.interval_ms;
            let within = CHECK_MAX.min(Duration::from_millis(checks.spec.interval_ms));
            for (address, target) in self.desk.places(checks.service) {
                checks.open += 1;
                let (connections, events) = (self.connections.clone(), self.events.clone());
                let (service, path) = (checks.service, checks.spec.path.clone());
                tokio::spawn(async move {
                    let is_well = connections.is_well(service, &target, address, &path, within).await;
                    let _ = events.send(Event::Checked { service, address, is_well });
                });
            }
        }
    }

    /// Learns the addresses of all servers: at once of those that are given as addresses, and later of the others.
    fn look_up(&mut self) {
        for spec in self.specs.clone().iter() {
            let servers = spec.http.iter().flat_map(|http| &http.servers);
            for (at, server) in servers.enumerate() {
                let (service, target) = (spec.service, &server.target);
                if let Some(address) = literal(&target.host, target.port) {
                    self.desk.resolved(service, at, &[address], now_ms());
                    continue;
                }
                let events = self.events.clone();
                let tell = move |addresses| events.send(Event::Resolved { service, server: at, addresses }).is_ok();
                tokio::spawn(lookups(target.host.clone(), target.port, server.resolve, tell));
            }
        }
    }

    fn set_gauges(&self) {
        self.stats.upstream_under_way.set(self.desk.running().into());
        self.stats.upstream_waiting.set(self.desk.waiting() as u64);
        self.stats.upstream_bytes.set(self.room.used() as u64);
        self.stats.upstream_idle.set(self.connections.idle_count() as u64);
    }
}
