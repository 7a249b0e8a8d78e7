//! Between portals, desk and hook: the loop of the services thread for questions about logins.

use super::TOKEN_BYTES_MAX;
use super::answer::{End, meaning};
use super::desk::{Counts, Deed, Desk, Key};
use super::spec::HookSpec;
use super::{Ask, HookOuter, HookPortals, Word};
use crate::clock::{now_ms, now_us, wall_ms};
use crate::events::client::{Answer, Client, Connection, Letter, Receiver};
use crate::events::{Secrets, changed};
use crate::limits::Limits;
use crate::metrics::ShardStats;
use rustix::rand::{GetRandomFlags, getrandom};
use serde_json::json;
use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{MissedTickBehavior, interval};

/// How often it is looked what is over.
const TICK: Duration = Duration::from_millis(100);
/// Ticks from one look at the file of secrets to the next: 10 s.
const SECRETS_TICKS: u64 = 100;

/// What the hook needs of its node.
#[derive(Debug)]
pub(crate) struct HookDriverConfig {
    pub(crate) spec: HookSpec,
    pub(crate) portals: HookPortals,
    /// The numbers of the first shard; of those of the hook this loop is the only writer.
    pub(crate) stats: Arc<ShardStats>,
    pub(crate) limits: Limits,
    /// The node's name.
    pub(crate) node: String,
}

/// A request that has ended.
#[derive(Debug)]
struct Ended {
    key: Key,
    answer: Result<Answer, String>,
    connection: Option<Connection>,
    took_us: u64,
}

/// All of it.
#[derive(Debug)]
pub(crate) struct HookDriver {
    spec: HookSpec,
    client: Arc<Client>,
    secrets: Option<Secrets>,
    /// When the file of its secrets was changed, as far as that is known.
    changed: Option<SystemTime>,
    /// Idle connections, the one used last behind.
    idle: Vec<Connection>,
    desk: Desk,
    outer: HookOuter,
    portals: HookPortals,
    stats: Arc<ShardStats>,
    node: String,
    /// The latest question had no answer, which was logged.
    is_failing: bool,
    /// What the ids of requests of this life begin with, and how many there were.
    epoch: u64,
    requests: u64,
    /// What was counted already.
    counted: Counts,
    ended: mpsc::UnboundedSender<Ended>,
    told: mpsc::UnboundedReceiver<Ended>,
    ticks: u64,
}

impl HookDriver {
    /// Everything there is before the first question. Reads secrets and certificates.
    ///
    /// # Errors
    /// When one of those cannot be read; the message names it.
    pub(crate) fn new(config: HookDriverConfig) -> io::Result<Self> {
        let HookDriverConfig { spec, portals, stats, limits, node } = config;
        let secrets =
            spec.secret_file.as_ref().map(|file| Secrets::read(file).map_err(io::Error::other)).transpose()?;
        let receiver = Receiver {
            target: spec.target.clone(),
            ca_file: spec.ca_file.clone(),
            timeout_ms: spec.timeout_ms,
            content_type: "application/json",
            wants_bodies: true,
            name: format!("connect_hook {spec}"),
        };
        let client = Arc::new(Client::new(receiver, Arc::new(Semaphore::new(1)))?);
        let mut epoch = [0; 8];
        getrandom(&mut epoch, GetRandomFlags::empty())?;
        let (ended, told) = mpsc::unbounded_channel();
        Ok(HookDriver {
            changed: spec.secret_file.as_ref().and_then(|file| changed(file)),
            desk: Desk::new(limits.hook_requests_max as usize, limits.hook_cache_bytes_max, spec.failure),
            outer: portals.outer(),
            epoch: u64::from_le_bytes(epoch),
            idle: Vec::new(),
            is_failing: false,
            requests: 0,
            counted: Counts::default(),
            ticks: 0,
            spec,
            client,
            secrets,
            portals,
            stats,
            node,
            ended,
            told,
        })
    }

    /// Goes on for as long as it is polled.
    pub(crate) async fn run(mut self) {
        let bell = self.portals.bell().clone();
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = bell.rung() => {}
                ended = self.told.recv() => ended.into_iter().for_each(|ended| self.hear(ended)),
                _ = ticks.tick() => self.tick(),
            }
            while let Ok(ended) = self.told.try_recv() {
                self.hear(ended);
            }
            self.take_words();
            self.act();
            self.outer.post();
            self.count();
        }
    }

    /// Takes what the shards have handed over.
    fn take_words(&mut self) {
        while let Some((shard, words)) = self.outer.take() {
            for word in words {
                match word {
                    Word::Ask(ask) => self.desk.ask(shard, ask, now_ms()),
                    Word::Cancel(conn) => self.desk.cancel(shard, conn),
                }
            }
        }
    }

    /// Does what the desk has decided.
    fn act(&mut self) {
        while let Some(deed) = self.desk.next() {
            match deed {
                Deed::Tell { caller, decision } => self.outer.put(caller.shard, caller.conn, decision),
                Deed::Start { key, ask } => {
                    let letter = self.letter(&ask);
                    let (client, ended, idle) = (self.client.clone(), self.ended.clone(), self.idle.pop());
                    tokio::spawn(async move {
                        let began_us = now_us();
                        let (answer, connection) = client.post(&letter, idle).await;
                        let took_us = now_us().saturating_sub(began_us);
                        // The loop goes on until the thread ends.
                        let _ = ended.send(Ended { key, answer, connection, took_us });
                    });
                }
            }
        }
    }

    fn letter(&mut self, ask: &Ask) -> Letter {
        debug_assert!(ask.token.len() <= TOKEN_BYTES_MAX);
        let body = json!({
            "type": if ask.renews { "renew" } else { "login" },
            "user": (ask.user != 0).then(|| ask.user.to_string()),
            "token": ask.token,
            "device": ask.device,
            "class": ask.class,
            "address": ask.address.map(|address| address.to_string()),
            "transport": if ask.websocket { "websocket" } else { "native" },
            "tls": ask.tls,
            "node": self.node,
        });
        let body = body.to_string().into_bytes();
        self.requests += 1;
        let id = format!("login_{:016x}_{}", self.epoch, self.requests);
        let timestamp_s = wall_ms() / 1_000;
        let signature = self.secrets.as_ref().map(|secrets| secrets.sign(&id, timestamp_s, &body)).unwrap_or_default();
        Letter { id, timestamp_s, signature, body: body.into() }
    }

    fn hear(&mut self, Ended { key, answer, connection, took_us }: Ended) {
        self.stats.hook_time.observe(took_us);
        self.idle.extend(connection);
        let end = match answer {
            Ok(answer) => meaning(&answer, wall_ms()),
            Err(why) => End::Failed { why },
        };
        match &end {
            End::Failed { why } | End::Erred { why } | End::Busy { why } if !self.is_failing => {
                self.is_failing = true;
                tracing::warn!(connect_hook = %self.spec, "logins cannot be asked about: {why}");
            }
            End::In { .. } | End::Refused { .. } if self.is_failing => {
                self.is_failing = false;
                tracing::info!(connect_hook = %self.spec, "logins are asked about again");
            }
            _ => {}
        }
        self.desk.ended(key, end, now_ms());
    }

    fn tick(&mut self) {
        self.ticks += 1;
        self.desk.tick(now_ms());
        self.idle.retain(Connection::is_fresh);
        if self.ticks.is_multiple_of(SECRETS_TICKS) {
            self.read_secrets();
        }
    }

    /// Takes other secrets when their file has changed. With those that cannot be read the ones before stay.
    fn read_secrets(&mut self) {
        let Some(file) = &self.spec.secret_file else { return };
        let now = changed(file);
        if now.is_none() || now == self.changed {
            return;
        }
        self.changed = now;
        match Secrets::read(file) {
            Ok(secrets) => {
                self.secrets = Some(secrets);
                tracing::info!(connect_hook = %self.spec, "other secrets sign questions about logins from now on");
            }
            Err(error) => tracing::warn!(connect_hook = %self.spec, "the secrets stay as they were: {error}"),
        }
    }

    fn count(&mut self) {
        let (now, before, stats) = (self.desk.counts, self.counted, &self.stats);
        stats.hook_asked.add(now.asked - before.asked);
        stats.hook_accepted.add(now.accepted - before.accepted);
        stats.hook_refused.add(now.refused - before.refused);
        stats.hook_failed.add(now.failed - before.failed);
        stats.hook_cached.add(now.cached - before.cached);
        stats.hook_shared.add(now.shared - before.shared);
        stats.hook_cut.add(now.cut - before.cut);
        stats.limit_hook_cache.add(now.evicted - before.evicted);
        self.counted = now;
        stats.hook_waiting.set(self.portals.waiting() as u64);
        stats.hook_under_way.set(self.desk.running() as u64);
        stats.hook_cache_bytes.set(self.desk.cache_bytes() as u64);
        stats.hook_is_cut.set(u64::from(self.desk.is_cut()));
    }
}
