//! Between portals, hub, log and receivers: the loop of the services thread for webhooks.

use super::client::{Answer, Client, Connection, Letter, Receiver};
use super::hub::{End, Hub, Request};
use super::log::{EventLog, Job};
use super::redis_log::EventsInRedis;
use super::sign::Secrets;
use super::spec::WebhookSpec;
use super::writer::{Writer, Written};
use super::{LANES, log_bytes_max};
use crate::clock::{now_ms, wall_ms};
use crate::limits::Limits;
use crate::metrics::ShardStats;
use rustix::rand::{GetRandomFlags, getrandom};
use sha2::{Digest, Sha256};
use std::fs::Metadata;
use std::future::{Future, pending};
use std::io;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::{MissedTickBehavior, interval};
use trunkline_core::events::EventPortals;
use trunkline_core::events::{Event, EventKind};

/// How often it is looked what is due.
const TICK: Duration = Duration::from_millis(100);
/// Bytes of events that are taken in at a time.
const TAKE_BYTES: usize = 1 << 20;
/// Ticks from one look at files of secrets to the next: 10 s.
const SECRETS_TICKS: u64 = 100;
/// A log that cannot be written is tried again after this time, then after twice as long, and so on up to the longest.
const LOG_RETRY_MS: u64 = 1_000;
const LOG_RETRY_MS_MAX: u64 = 60_000;
/// How long requests are gone on with after the shards have ended: without a log as long as events wait, with one
/// while a request is under way.
const END_MS: u64 = 5_000;

/// What webhooks need of their node.
#[derive(Debug)]
pub(crate) struct WebhookDriverConfig {
    pub(crate) specs: Arc<[WebhookSpec]>,
    pub(crate) portals: EventPortals,
    /// Where events are kept; `None` in memory alone.
    pub(crate) folder: Option<PathBuf>,
    /// Or in Redis.
    pub(crate) in_redis: Option<EventsInRedis>,
    /// The numbers of the first shard; of those of webhooks this loop is the only writer.
    pub(crate) stats: Arc<ShardStats>,
    pub(crate) limits: Limits,
    /// The node's name.
    pub(crate) node: String,
    /// Something that no life of the node has had before.
    pub(crate) seed: u64,
}

/// One webhook.
#[derive(Debug)]
struct Hook {
    spec: WebhookSpec,
    client: Arc<Client>,
    secrets: Secrets,
    /// When the file of its secrets was changed, as far as that is known.
    changed: Option<SystemTime>,
    /// The last request was not taken, which was logged.
    is_failing: bool,
    /// Idle connections, by lane.
    idle: [Option<Connection>; LANES],
}

/// A request that has ended.
#[derive(Debug)]
struct Ended {
    hook: usize,
    lane: usize,
    answer: Result<Answer, String>,
    connection: Option<Connection>,
}

/// What is being written.
#[derive(Debug)]
struct Writing {
    written: oneshot::Receiver<Written>,
    /// The last event of it.
    seq: u64,
    /// Which of their events shards can count as kept then.
    until: Vec<(u16, u64)>,
}

/// All of it.
#[derive(Debug)]
pub(crate) struct WebhookDriver {
    hooks: Vec<Hook>,
    hub: Hub,
    portals: EventPortals,
    writer: Option<Writer>,
    writing: Option<Writing>,
    /// What is written next has to be all that waits, in a new file.
    anew: bool,
    /// The log could not be written, and is not tried again before that.
    failing_until_ms: Option<u64>,
    /// Writes of the log that failed one after the other.
    log_failures: u32,
    log_bytes_max: u64,
    stats: Arc<ShardStats>,
    node: Arc<str>,
    ended: mpsc::UnboundedSender<Ended>,
    told: mpsc::UnboundedReceiver<Ended>,
    ticks: u64,
}

/// When a file was changed; `None` for what is no file, as a pipe, which is not to be read twice.
pub(crate) fn changed(path: &Path) -> Option<SystemTime> {
    std::fs::metadata(path).ok().filter(Metadata::is_file)?.modified().ok()
}

fn random() -> io::Result<u64> {
    let mut bytes = [0; 8];
    getrandom(&mut bytes, GetRandomFlags::empty())?;
    Ok(u64::from_le_bytes(bytes))
}

/// What a receiver is known by over restarts.
fn key(spec: &WebhookSpec) -> u64 {
    let digest: [u8; 32] = Sha256::digest(spec.target.to_string()).into();
    u64::from_le_bytes(digest[..8].try_into().expect("eight bytes"))
}

impl WebhookDriver {
    /// Everything there is before the first event. Reads secrets, certificates and the log.
    ///
    /// # Errors
    /// When one of those cannot be read; the message names it.
    pub(crate) fn new(config: WebhookDriverConfig) -> io::Result<Self> {
        let WebhookDriverConfig { specs, portals, folder, in_redis, stats, limits, node, seed } = config;
        let lookups = Arc::new(Semaphore::new(1));
        let mut hooks = Vec::new();
        for spec in specs.iter() {
            let secrets = Secrets::read(&spec.secret_file).map_err(io::Error::other)?;
            let receiver = Receiver {
                target: spec.target.clone(),
                ca_file: spec.ca_file.clone(),
                timeout_ms: spec.timeout_ms,
                content_type: "application/cloudevents-batch+json",
                wants_bodies: false,
                name: format!("webhook {spec}"),
            };
            let client = Arc::new(Client::new(receiver, lookups.clone())?);
            hooks.push(Hook {
                spec: spec.clone(),
                client,
                secrets,
                changed: changed(&spec.secret_file),
                is_failing: false,
                idle: Default::default(),
            });
        }
        let keys: Vec<u64> = specs.iter().map(key).collect();
        let known: Vec<_> = specs.iter().zip(&keys).map(|(spec, key)| (*key, spec.wants, spec.batch_max)).collect();
        let bytes_max = limits.webhook_bytes_max;
        // Not the time: two nodes may start at the same one.
        let (mut epoch, mut recovered, mut writer) = (random()? ^ seed, None, None);
        if let Some(folder) = &folder {
            let of = |error: io::Error| io::Error::other(format!("the log of events in {}: {error}", folder.display()));
            let (log, held) = EventLog::open(folder, &keys).map_err(of)?;
            if held.torn > 0 {
                tracing::info!("the log of events ended within a record, which nobody had relied on");
            }
            recovered = Some(held);
            writer = Some(Writer::start(log)?);
        } else if let Some(place) = in_redis {
            let of = |error: io::Error| io::Error::other(format!("the log of events in Redis: {error}"));
            let (started, held) = Writer::start_in_redis(place, &node, random()?, keys).map_err(of)?;
            (writer, recovered) = (Some(started), Some(held));
        }
        epoch = recovered.as_ref().and_then(|held| held.epoch).unwrap_or(epoch);
        let mut hub = Hub::new(&known, bytes_max, epoch, writer.is_some());
        if let Some(recovered) = recovered {
            if !recovered.waiting.is_empty() {
                tracing::info!("{} events of the last run wait for webhooks", recovered.waiting.len());
            }
            // The last run may have sent events that its log does not know, because it could not be written.
            hub.go_on_at(recovered.last_seq.saturating_add(1 + (random()? >> 24)));
            recovered.waiting.into_iter().for_each(|(hook, lane, item)| hub.restore(hook, lane, item));
        }
        let mut started = Vec::new();
        Event::new(EventKind::NodeStarted, wall_ms(), 0).encode(&mut started);
        hub.admit(&started);
        let (ended, told) = mpsc::unbounded_channel();
        Ok(WebhookDriver {
            hooks,
            hub,
            portals,
            anew: writer.is_some(),
            writer,
            writing: None,
            failing_until_ms: None,
            log_failures: 0,
            log_bytes_max: log_bytes_max(bytes_max as u64),
            stats,
            node: node.into(),
            ended,
            told,
            ticks: 0,
        })
    }

    /// Goes on until `end`, when no shard tells of anything any more, and until what can be done then is done.
    pub(crate) async fn run(mut self, end: impl Future<Output = ()>) {
        let mut end = pin!(end);
        let mut ends_ms = None;
        let bell = self.portals.bell().clone();
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            self.take_in();
            self.act();
            if ends_ms.is_some_and(|ends_ms| self.is_done(ends_ms)) {
                break self.set_gauges();
            }
            let writing = async {
                match &mut self.writing {
                    Some(writing) => (&mut writing.written).await.unwrap_or_else(|_| Err(io::ErrorKind::Other.into())),
                    None => pending().await,
                }
            };
            tokio::select! {
                () = bell.rung() => {}
                ended = self.told.recv() => ended.into_iter().for_each(|ended| self.hear(ended)),
                written = writing => self.on_written(written),
                _ = ticks.tick() => self.tick(),
                () = &mut end, if ends_ms.is_none() => ends_ms = Some(now_ms() + END_MS),
            }
            while let Ok(ended) = self.told.try_recv() {
                self.hear(ended);
            }
        }
        let waiting = self.hub.waiting();
        match (waiting, self.writer.is_some()) {
            (0, _) => {}
            (_, true) => tracing::info!("{waiting} events wait in the log for the next run"),
            (_, false) => tracing::warn!("{waiting} events were not delivered, and are lost with this run"),
        }
    }

    /// Whether there is nothing left to do at the end of the node.
    fn is_done(&self, ends_ms: u64) -> bool {
        let is_late = now_ms() >= ends_ms;
        match self.writer.is_some() {
            true => {
                let is_kept = self.portals.is_empty() && self.writing.is_none() && !self.hub.has_log() && !self.anew;
                is_late || (is_kept && self.hub.under_way() == 0)
            }
            false => is_late || (self.portals.is_empty() && self.hub.waiting() == 0),
        }
    }

    /// Takes what the shards have handed over, unless the last of it is still being written.
    fn take_in(&mut self) {
        if self.writing.is_some() {
            return;
        }
        let (mut bytes, mut until) = (0, Vec::new());
        while bytes < TAKE_BYTES
            && let Some((shard, batch)) = self.portals.take()
        {
            bytes += batch.bytes.len();
            self.hub.admit(&batch.bytes);
            until.push((shard, batch.until));
        }
        let seq = self.hub.last_seq();
        let is_failing = self.failing_until_ms.is_some_and(|until_ms| now_ms() < until_ms);
        let Some(writer) = self.writer.as_ref().filter(|_| !is_failing) else {
            // What goes on from memory alone is written when all that waits is.
            drop(self.hub.take_log());
            self.hub.keep_until(seq);
            return until.into_iter().for_each(|(shard, until)| self.portals.set_kept(shard, until));
        };
        // Word of what was delivered may wait for a tick; losing some of it costs a repetition.
        if until.is_empty() && !self.anew && !(self.hub.has_log() && self.ticks.is_multiple_of(2)) {
            return;
        }
        let anew = std::mem::take(&mut self.anew);
        let records = if anew { self.hub.rewritten() } else { self.hub.take_log() };
        let job = Job {
            bytes: records,
            last_seq: seq,
            snapshot: self.hub.snapshot(),
            done_below: self.hub.done_below(),
            sync: !until.is_empty(),
            anew,
        };
        self.writing = Some(Writing { written: writer.write(job), seq, until });
    }

    fn on_written(&mut self, written: Written) {
        let Some(Writing { seq, until, .. }) = self.writing.take() else { return };
        match written {
            Ok(bytes) => {
                self.log_failures = 0;
                if self.failing_until_ms.take().is_some() {
                    tracing::info!("the log of events can be written again");
                }
                self.stats.event_log_bytes.set(bytes);
                if bytes > self.log_bytes_max {
                    self.stats.limit_event_log.add(1);
                    self.anew = true;
                }
            }
            Err(error) => {
                // Events go on from memory; a node that told nobody anything because of its disk would help nobody.
                self.stats.event_log_errors.add(1);
                if self.failing_until_ms.is_none() {
                    tracing::error!(%error, "the log of events cannot be written: events are kept in memory alone");
                }
                let wait_ms = (LOG_RETRY_MS << self.log_failures.min(6)).min(LOG_RETRY_MS_MAX);
                self.log_failures = self.log_failures.saturating_add(1);
                self.failing_until_ms = Some(now_ms() + wait_ms);
                self.anew = true;
            }
        }
        self.hub.keep_until(seq);
        until.into_iter().for_each(|(shard, until)| self.portals.set_kept(shard, until));
    }

    /// Begins the requests that are due.
    fn act(&mut self) {
        while let Some(request) = self.hub.next(now_ms()) {
            let Request { hook: number, lane, .. } = request;
            let letter = self.letter(&request);
            let hook = &mut self.hooks[number];
            let (client, idle) = (hook.client.clone(), hook.idle[lane].take());
            let ended = self.ended.clone();
            tokio::spawn(async move {
                let (answer, connection) = client.post(&letter, idle).await;
                // The loop may have ended.
                let _ = ended.send(Ended { hook: number, lane, answer, connection });
            });
        }
    }

    fn letter(&self, Request { hook, lane, items }: &Request) -> Letter {
        let json = items.iter().filter_map(|item| {
            let event = item.event(*lane)?;
            Some(event.to_json(&self.hub.id(item.seq), &self.node))
        });
        let body = serde_json::Value::Array(json.collect()).to_string();
        let first = items.first().map_or(0, |item| item.seq);
        let id = format!("{}-{}", self.hub.id(first), items.len());
        let timestamp_s = wall_ms() / 1_000;
        let signature = self.hooks[*hook].secrets.sign(&id, timestamp_s, body.as_bytes());
        Letter { id, timestamp_s, signature, body: body.into() }
    }

    fn hear(&mut self, Ended { hook, lane, answer, connection }: Ended) {
        self.hooks[hook].idle[lane] = connection;
        let requests = match answer.as_ref().map(|answer| answer.status) {
            Ok(200..=299) => &self.stats.webhook_requests_2xx,
            Ok(300..=399) => &self.stats.webhook_requests_3xx,
            Ok(400..=499) => &self.stats.webhook_requests_4xx,
            Ok(_) => &self.stats.webhook_requests_5xx,
            Err(_) => &self.stats.webhook_requests_failed,
        };
        requests.add(1);
        let end = match &answer {
            Ok(Answer { status, retry_after_s, .. }) => End::of_status(*status, *retry_after_s),
            Err(_) => End::Failed { after_ms: None },
        };
        self.note(hook, end, &answer);
        let was_gone = self.hub.is_gone(hook);
        self.hub.ended(hook, lane, end, now_ms(), wall_ms());
        if self.hub.is_gone(hook) && !was_gone {
            let spec = &self.hooks[hook].spec;
            tracing::error!(webhook = %spec, "the receiver has answered 410: it gets nothing more until a restart");
        }
    }

    /// Logs that a receiver begins to take nothing, or takes something again; not each of many requests.
    fn note(&mut self, hook: usize, end: End, answer: &Result<Answer, String>) {
        let Hook { spec, is_failing, .. } = &mut self.hooks[hook];
        let has_failed = end != End::Delivered;
        if std::mem::replace(is_failing, has_failed) == has_failed {
            return;
        }
        match answer {
            Ok(_) if !has_failed => tracing::info!(webhook = %spec, "the receiver takes events again"),
            Ok(Answer { status, .. }) => tracing::warn!(webhook = %spec, status, "the receiver does not take events"),
            Err(error) => tracing::warn!(webhook = %spec, error, "the receiver does not take events"),
        }
    }

    fn tick(&mut self) {
        self.ticks += 1;
        self.set_gauges();
        if !self.ticks.is_multiple_of(SECRETS_TICKS) {
            return;
        }
        for hook in &mut self.hooks {
            let now = changed(&hook.spec.secret_file);
            if now.is_none() || now == hook.changed {
                continue;
            }
            hook.changed = now;
            match Secrets::read(&hook.spec.secret_file) {
                Ok(secrets) => {
                    hook.secrets = secrets;
                    tracing::info!(webhook = %hook.spec, "its secrets have been read anew");
                }
                Err(error) => tracing::warn!(webhook = %hook.spec, error, "its secrets stay what they were"),
            }
        }
    }

    fn set_gauges(&self) {
        let (stats, counts) = (&self.stats, self.hub.counts());
        let taken = |kind: EventKind| counts.taken[kind as usize];
        stats.events_online.set(taken(EventKind::UserOnline));
        stats.events_offline.set(taken(EventKind::UserOffline));
        stats.events_login.set(taken(EventKind::SessionLogin));
        stats.events_logout.set(taken(EventKind::SessionLogout));
        stats.events_sent.set(taken(EventKind::MessageSent));
        stats.events_stored.set(taken(EventKind::MessageStored));
        stats.events_push.set(taken(EventKind::PushOutcome));
        stats.events_node_lost.set(taken(EventKind::NodeLost));
        stats.events_node_started.set(taken(EventKind::NodeStarted));
        stats.webhook_delivered.set(counts.delivered);
        stats.webhook_dropped.set(counts.dropped);
        stats.webhook_given_up.set(counts.given_up);
        stats.webhook_retries.set(counts.retries);
        stats.webhook_waiting.set(self.hub.waiting() as u64);
        stats.webhook_bytes.set(self.hub.bytes() as u64);
        stats.limit_webhook_bytes.set(counts.full);
        stats.limit_webhook_age.set(counts.old);
        let oldest_ms = self.hub.oldest_ms().map_or(0, |oldest_ms| wall_ms().saturating_sub(oldest_ms));
        stats.webhook_oldest_us.set(oldest_ms.saturating_mul(1_000));
    }
}
