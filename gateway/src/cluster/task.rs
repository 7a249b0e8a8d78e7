//! The task that asks Redis and shards, and tells them. What they are asked and told is decided by the [`Agent`] and
//! the [`Walk`].

mod admission;
mod sessions;

use super::audit::{Audit, Compared};
use super::reach::Prober;
use super::relay::{Relay, Relayed, Through};
use super::renewals::Renewals;
use super::rival::{self, Loser};
use super::state::{ClusterState, ClusterStatus, Differs, RedisStatus, Refused};
use super::{FLUSH_TIMEOUT, MeshNews, MeshNewsQueue};
use crate::budget::PRESENCE_WRITE_BYTES;
use crate::clock::now_ms;
use crate::config::ClusterConfig;
use crate::control::{Control, ControlPort, SessionsList, SessionsPage};
use crate::membership::{Action, Agent, Change, End, Memo, Question, Reply, Request, Walk, state_word};
use crate::mesh::handshake::Secrets;
use crate::metrics::ShardStats;
use crate::presence_log::{PresenceEvent, PresenceLog};
use std::future::pending;
use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::coop::cooperative;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{MissedTickBehavior, interval, timeout};
use trunkline_router::membership::{NodeRecord, NodeState, View};
use trunkline_router::redis::{
    AcquireError, Patience, Plane, PlaneError, PresenceEntry, PresenceWrite, WriteBehind, write_behind,
};

/// How often the shards' presence logs are looked at; see [`crate::presence_log`].
const LOG_PERIOD: Duration = Duration::from_millis(20);
/// Logins that lost and wait to be looked into. What does not fit is found again when it is written the next time.
const LOSERS_MAX: usize = 16_384;
/// How often a node that waits to be let in asks what the others have found.
const ADMISSION_POLL_PERIOD: Duration = Duration::from_millis(250);
/// Time between two looks at the turns of the shards.
const TURNS_PERIOD: Duration = Duration::from_millis(900);
/// Beats without a turn after which a shard stands: far more than the longest turn takes.
const STANDS_BEATS: u32 = 5;
/// Pipelines of presence that are written for peers at once.
pub(super) const FAVOURS_MAX: usize = 64;
/// Nodes that are looked at at once for whether their process has ended. Others are with the next beat.
pub(super) const PROBES_MAX: usize = 64;
/// How long a connection to a node that is silent may take.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);
/// How often a node says again that it cannot have its name.
const FENCED_LOG_PERIOD: Duration = Duration::from_secs(10);

/// A step of the node's life.
#[derive(Debug)]
pub(super) enum Order {
    /// The shards run.
    Serve { ports: Vec<ControlPort>, stats: Vec<Arc<ShardStats>> },
    /// Answered when the node may become active: at once, if it has been.
    Admit { done: oneshot::Sender<()> },
    /// Into the ring or out of it; answered when the shards have been told a view in which it is so.
    Become { state: NodeState, done: oneshot::Sender<()> },
    /// Another weight in the ring.
    Weigh { weight: u32 },
    /// Another secret is proved to others, with this mark.
    Remark { mark: String },
    /// Write what waits, give the lease up, and end.
    Leave,
}

/// What came back from Redis.
enum Answer {
    /// To a question of the agent.
    Agent {
        question: Box<Question>,
        reply: Reply,
        error: Option<PlaneError>,
        holder: Option<String>,
    },
    Compared(Compared),
    /// The names of nodes that were there within the day.
    Listed(Result<Vec<(String, String)>, PlaneError>),
    /// Presence was written for a node.
    WroteFor {
        node: String,
        life: u64,
        memo: Memo,
    },
    /// Whether the host of a node refuses connections to its mesh address.
    Probed {
        node: String,
        life: u64,
        sent_ms: u64,
        refused: bool,
    },
}

/// The shards, once they run.
#[derive(Default)]
struct ShardEnds {
    ports: Vec<ControlPort>,
    stats: Vec<Arc<ShardStats>>,
}

pub(super) struct Task {
    plane: Plane,
    agent: Agent,
    lease_ms: u64,
    /// Bound of what one question to Redis takes: two commands.
    round_trip_max: Duration,
    answers: JoinSet<Answer>,
    shards: ShardEnds,
    view: watch::Sender<Arc<View>>,
    logs: Vec<Arc<PresenceLog>>,
    queue: Arc<WriteBehind>,
    queue_max: u64,
    writer: Option<JoinHandle<()>>,
    relay: Relay,
    /// What the writer wants written through a peer.
    pipelines: mpsc::Receiver<Through>,
    relayed: Relayed,
    /// Pipelines that are written for peers just now.
    favours: usize,
    losers: Option<mpsc::Receiver<Loser>>,
    rivals: Arc<AtomicU64>,
    rivals_dropped: Arc<AtomicU64>,
    walk: Walk,
    rewrite_ms: u64,
    page: Option<futures_channel::oneshot::Receiver<SessionsPage>>,
    page_asked: Instant,
    audit: Audit,
    list: Option<(usize, futures_channel::oneshot::Receiver<SessionsList>)>,
    node: Arc<str>,
    holder: Option<String>,
    redis_error: Option<String>,
    fenced_logged: Option<Instant>,
    resyncs: u64,
    /// Who waits for the shards to be told a view with the node in its present state.
    awaited: Option<oneshot::Sender<()>>,
    prober: Prober,
    /// Who waits to be let in, and why not yet. Once let in, a node stays so.
    asks_admission: Option<oneshot::Sender<()>>,
    admitted: bool,
    waits: Option<String>,
    /// Whether it is known which nodes were there within the day when this one asked to be let in, and whether they
    /// were asked for.
    listed: bool,
    listing: bool,
    patience: Patience,
    polled: Instant,
    /// The turns of each shard, and how many beats it has had none.
    turns: Vec<(u64, u32)>,
    turns_seen: Instant,
    /// The shard that sent the last memo.
    memos: usize,
    refused: Refused,
    renewals: Renewals,
    /// Looks whether a silent node has ended, under way.
    probes: usize,
    state: Arc<ClusterState>,
}

impl Task {
    pub(super) fn new(
        config: &ClusterConfig,
        secrets: Secrets,
        plane: Plane,
        agent: Agent,
        state: Arc<ClusterState>,
        logs: Vec<Arc<PresenceLog>>,
    ) -> Self {
        let queue_max = config.presence_queue_max;
        let bytes_max = queue_max.saturating_mul(PRESENCE_WRITE_BYTES as usize);
        let queue = Arc::new(WriteBehind::new(queue_max, bytes_max, Arc::clone(plane.metrics())));
        let (loser_sender, losers) = mpsc::channel(LOSERS_MAX);
        let rivals = Arc::new(AtomicU64::new(0));
        let rivals_dropped = Arc::new(AtomicU64::new(0));
        let (counted, dropped) = (rivals.clone(), rivals_dropped.clone());
        let on_stale = move |write: &PresenceWrite, version: u64| {
            if let PresenceWrite::Login { user, entry } = write {
                let loser = Loser { user: *user, entry: entry.clone(), version };
                // One that finds the queue full is found again when its session is written the next time.
                let counter = if loser_sender.try_send(loser).is_ok() { &counted } else { &dropped };
                counter.fetch_add(1, Ordering::Relaxed);
            }
        };
        let (relay, pipelines) = Relay::new(plane.clone());
        let writer = tokio::spawn(write_behind::run(relay.clone(), queue.clone(), on_stale));
        let rewrite_ms = config.redis.presence_ttl.as_millis() as u64 / 2;
        let mut task = Task {
            lease_ms: config.lease_ms,
            round_trip_max: config.redis.command_timeout * 2,
            answers: JoinSet::new(),
            shards: ShardEnds::default(),
            view: watch::channel(agent.heart().view()).0,
            logs,
            queue,
            queue_max: queue_max as u64,
            writer: Some(writer),
            relay,
            pipelines,
            relayed: Relayed::default(),
            favours: 0,
            losers: Some(losers),
            rivals,
            rivals_dropped,
            walk: Walk::new(now_ms(), 0, rewrite_ms),
            rewrite_ms,
            page: None,
            page_asked: Instant::now(),
            audit: Audit::new(config.presence_audit_ms),
            list: None,
            node: agent.name().into(),
            holder: None,
            redis_error: None,
            fenced_logged: None,
            resyncs: 0,
            awaited: None,
            prober: Prober::new(secrets, agent.name()),
            asks_admission: None,
            admitted: false,
            waits: None,
            listed: false,
            listing: false,
            patience: Patience::default(),
            polled: Instant::now(),
            turns: Vec::new(),
            turns_seen: Instant::now(),
            memos: 0,
            refused: Refused::default(),
            renewals: Renewals::new(config.beat().as_millis() as u64),
            probes: 0,
            state,
            plane,
            agent,
        };
        task.publish();
        task
    }

    /// The views as they come.
    pub(super) fn views(&self) -> watch::Receiver<Arc<View>> {
        self.view.subscribe()
    }

    /// Runs until it is ordered to leave.
    pub(super) async fn run(mut self, mut orders: mpsc::Receiver<Order>, news: MeshNewsQueue) {
        let mut logs = interval(LOG_PERIOD);
        logs.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut flushed: Option<JoinHandle<()>> = None;
        loop {
            tokio::select! {
                _ = logs.tick() => {
                    self.take_events();
                    self.walk_on();
                    self.audit_on();
                    if self.asks_admission.is_some() && self.polled.elapsed() >= ADMISSION_POLL_PERIOD {
                        self.agent.poll(now_ms());
                    }
                }
                // Others wait for what was found.
                changed = self.prober.next() => if changed {
                    self.agent.hurry(now_ms());
                },
                Some(answer) = self.answers.join_next() => match answer {
                    Ok(answer) => self.answered(answer),
                    // None of them panics; were it so, this lets the next beat ask again.
                    Err(_) => {
                        self.agent.forget_questions();
                        (self.favours, self.probes) = (0, 0);
                        self.audit.failed();
                    }
                },
                page = next_page(&mut self.page) => self.page_answered(page),
                (shard, list) = next_list(&mut self.list) => self.listed(shard, list),
                Some(pipeline) = self.pipelines.recv() => self.write_through(pipeline),
                // Within the runtime's budget: news that come as fast as they are heard must not keep Redis' answers
                // out.
                news = cooperative(news.take()) => self.heard(news),
                Some(order) = orders.recv() => match order {
                    Order::Serve { ports, stats } => self.serve(ports, stats),
                    Order::Admit { done } => self.ask_admission(done),
                    Order::Become { state, done } => self.set_state(state, done),
                    Order::Weigh { weight } => self.set_weight(weight),
                    Order::Remark { mark } => self.set_mark(mark),
                    Order::Leave => flushed = flushed.or_else(|| self.flush()),
                },
                () = ended(&mut flushed) => break,
            }
            self.after_each(now_ms());
        }
        let name = self.agent.name();
        match timeout(self.round_trip_max, self.plane.release(name, self.agent.heart().incarnation())).await {
            Ok(Ok(_)) => tracing::info!("node {name} has left the cluster"),
            Ok(Err(error)) => tracing::warn!("the lease runs out by itself: {error}"),
            Err(_) => tracing::warn!("the lease runs out by itself: Redis did not answer"),
        }
        self.plane.close().await;
    }

    /// What may follow from anything.
    fn after_each(&mut self, now_ms: u64) {
        if self.queue.overflowed() {
            self.agent.presence_torn();
        }
        self.look(now_ms);
        self.relay.set_through(self.agent.writes_through(now_ms).is_some());
        self.tell_shards();
        while let Some(action) = self.agent.next_action() {
            match action {
                Action::Ask(question) => self.ask(question),
                Action::Send { node, life, body } => self.send_memo(node, life, body),
                Action::Probe { node, life, mesh, sent_ms } => self.probe(node, life, mesh, sent_ms),
                Action::Call { node, mesh } => self.prober.call(self.agent.heart().life(), &node, &mesh),
                Action::WriteFor { node, life, number, writes } => self.write_for(node, life, number, writes),
                Action::Wrote { number, ends } => self.relayed.answered(number, ends),
                Action::Reincarnated(incarnation) => self.reincarnated(incarnation),
                Action::Restored => {
                    tracing::warn!("Redis had lost the lease of this node; all its sessions are written again");
                    self.resyncs += 1;
                    self.page = None;
                    self.walk.resync();
                }
                Action::StateKnown => {
                    if let Some(done) = self.awaited.take() {
                        // Nobody waits any more if that took too long.
                        let _ = done.send(());
                    }
                }
                Action::StateUntold => self.awaited = None,
            }
        }
        self.log_fence();
        self.publish();
    }

    /// Lets time pass for the agent. What it may say of this node then is what is true now.
    fn look(&mut self, now_ms: u64) {
        if now_ms >= self.agent.due_ms() {
            self.bring_record_up_to_date();
            self.look_at_turns();
        }
        self.agent.look(now_ms);
    }

    /// Finds out whether all shards turn. A quiet one has a turn every 100 ms too. Beats are counted and not time,
    /// which runs on while the process is paused.
    fn look_at_turns(&mut self) {
        // Beats that were hurried on are none.
        if self.turns_seen.elapsed() < TURNS_PERIOD {
            return;
        }
        self.turns_seen = Instant::now();
        let stats = &self.shards.stats;
        self.turns.resize(stats.len(), (0, 0));
        for (stats, (turns, missed)) in stats.iter().zip(&mut self.turns) {
            let before = std::mem::replace(turns, stats.turns.get());
            *missed = if *turns == before { *missed + 1 } else { 0 };
        }
        self.agent.set_stands(self.turns.iter().any(|(_, missed)| *missed >= STANDS_BEATS));
    }

    fn bring_record_up_to_date(&mut self) {
        let sum = |number: fn(&ShardStats) -> u64| self.shards.stats.iter().map(|stats| number(stats)).sum();
        let (connections, users) = (sum(|stats| stats.open.get()), sum(|stats| stats.users.get()));
        let (reach, mending) = (Some(self.prober.reach()), self.walk.is_resync());
        let view = self.agent.heart().view();
        let mends = |member: &&NodeRecord| member.mending && *member.name != *self.node;
        let others = view.members.iter().filter(mends).count() as u64;
        self.walk.set_others(others);
        self.audit.set_mending(others + u64::from(mending));
        let record = self.agent.record_mut();
        (record.connections, record.users, record.reach) = (connections, users, reach);
        record.mending = mending;
    }

    /// Sends a memo by one of the shards, each time another: a link of one that is down does not keep all memos back.
    fn send_memo(&mut self, node: String, life: u64, body: Vec<u8>) {
        let ports = &self.shards.ports;
        if !ports.is_empty() {
            self.memos = (self.memos + 1) % ports.len();
            // A shard that is so busy now has the next one in a beat.
            let sent = ports[self.memos].send(Control::Memo { node: node.into(), life, body: body.into() });
            self.refused.memos += u64::from(sent.is_err());
        }
    }

    /// Has a peer write presence. Without one the writer finds out by itself, and tries again.
    fn write_through(&mut self, pipeline: Through) {
        let Some((node, life)) = self.agent.writes_through(now_ms()) else { return };
        match self.relayed.ask(pipeline, Instant::now()) {
            Some(body) => self.send_memo(node, life, body),
            None => self.refused.memos_too_long += 1,
        }
    }

    /// Writes presence for a peer. One that asks for too much at once hears nothing, and asks again.
    fn write_for(&mut self, node: String, life: u64, number: u64, writes: Vec<Change>) {
        if self.favours >= FAVOURS_MAX {
            self.refused.favours += 1;
            return;
        }
        self.favours += 1;
        let (plane, of) = (self.plane.clone(), Arc::<str>::from(node.as_str()));
        self.answers.spawn(async move {
            let writes: Vec<PresenceWrite> = writes.into_iter().map(|change| change.of_node(&of)).collect();
            let ends = plane.write(&writes).await.into_iter().map(|result| End::from(result.ok())).collect();
            Answer::WroteFor { node, life, memo: Memo::Wrote { number, ends } }
        });
    }

    fn heard(&mut self, news: MeshNews) {
        match &news {
            MeshNews::Memo { body, .. } => self.state.fence().release_memo(body.len()),
            MeshNews::Links { shard, all, links } => self.state.links_told(*shard, *all, links),
        }
        self.agent.heard(now_ms(), news);
    }

    /// Finds out whether anything accepts connections at an address. Only a host that refuses says that there is
    /// nobody.
    fn probe(&mut self, node: String, life: u64, mesh: String, sent_ms: u64) {
        if self.probes >= PROBES_MAX {
            self.refused.probes += 1;
            return;
        }
        self.probes += 1;
        self.answers.spawn(async move {
            let connected = timeout(PROBE_TIMEOUT, TcpStream::connect(&mesh)).await;
            let refused = matches!(connected, Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused);
            Answer::Probed { node, life, sent_ms, refused }
        });
    }

    /// Asks Redis. The answer comes within two round trips, if only to say that there was none.
    fn ask(&mut self, question: Box<Question>) {
        if matches!(question.request, Request::Poll) {
            self.polled = Instant::now();
        }
        let (plane, lease_ms, round_trip_max) = (self.plane.clone(), self.lease_ms, self.round_trip_max);
        self.answers.spawn(async move {
            let late = PlaneError::TimedOut { after: round_trip_max };
            let mut holder = None;
            let result = match &question.request {
                Request::Renew(record) => {
                    timeout(round_trip_max, plane.renew(record, lease_ms)).await.map(|done| done.map(Reply::Renewed))
                }
                Request::Restore(record) => {
                    timeout(round_trip_max, plane.restore(record, lease_ms)).await.map(|done| done.map(Reply::Renewed))
                }
                Request::RenewFor(favour) => {
                    let renewal = async {
                        match favour.restore {
                            true => plane.restore(&favour.record, lease_ms).await,
                            false => plane.renew(&favour.record, lease_ms).await,
                        }
                    };
                    timeout(round_trip_max, renewal).await.map(|done| done.map(Reply::Renewed))
                }
                Request::Acquire(record) => {
                    // Should Redis still have the lease of the incarnation before, the new one takes its place in one
                    // step.
                    timeout(round_trip_max, plane.acquire(record, lease_ms)).await.map(|done| match done {
                        Ok(incarnation) => Ok(Reply::Acquired(incarnation)),
                        Err(AcquireError::NameTaken { advertise, mesh, .. }) => {
                            holder = Some(format!("{advertise} (mesh {mesh})"));
                            Ok(Reply::NameTaken)
                        }
                        Err(AcquireError::Plane(error)) => Err(error),
                    })
                }
                Request::Poll => timeout(round_trip_max, plane.poll()).await.map(|done| done.map(Reply::Polled)),
                Request::Epoch { digest, known } => {
                    timeout(round_trip_max, plane.epoch(*digest, *known)).await.map(|done| done.map(Reply::Epoch))
                }
            };
            let (reply, error) = match result.unwrap_or(Err(late)) {
                Ok(reply) => (reply, None),
                Err(error) => (Reply::Failed, Some(error)),
            };
            Answer::Agent { question, reply, error, holder }
        });
    }

    fn answered(&mut self, answer: Answer) {
        let now_ms = now_ms();
        match answer {
            Answer::Agent { question, reply, error, holder } => {
                // An epoch that cannot be asked for is no harm, and says no more than the poll before it.
                let own = !matches!(question.request, Request::Epoch { .. } | Request::RenewFor(_));
                let is_lease =
                    matches!(question.request, Request::Renew(_) | Request::Restore(_) | Request::Acquire(_));
                if is_lease && matches!(reply, Reply::Failed) {
                    self.renewals.failed();
                }
                if let Some(error) = error.filter(|_| own) {
                    self.failed(&error);
                }
                if holder.is_some() {
                    self.holder = holder;
                }
                if let Reply::Polled(records) = &reply {
                    self.prober.look(records);
                    self.judge_admission(records);
                }
                self.agent.answered(now_ms, *question, reply);
                self.renewals.look(self.agent.heart().renewed_sent_ms());
            }
            Answer::Compared(compared) => self.compared(now_ms, compared),
            Answer::Listed(Ok(nodes)) => {
                self.listed = true;
                self.agent.note_ghosts(now_ms, &nodes);
            }
            // It is asked for again.
            Answer::Listed(Err(_)) => self.listing = false,
            Answer::WroteFor { node, life, memo } => {
                self.favours = self.favours.saturating_sub(1);
                match memo.encode() {
                    Some(body) => self.send_memo(node, life, body),
                    None => self.refused.memos_too_long += 1,
                }
            }
            Answer::Probed { node, life, sent_ms, refused } => {
                self.probes = self.probes.saturating_sub(1);
                self.agent.probed(now_ms, &node, life, sent_ms, refused);
            }
        }
        if self.agent.heart().redis_failing_ms().is_none() && self.redis_error.take().is_some() {
            tracing::info!("Redis works again");
        }
    }

    fn failed(&mut self, error: &PlaneError) {
        if self.redis_error.is_none() {
            tracing::warn!("Redis fails, presence waits: {error}");
        }
        self.redis_error = Some(error.to_string());
    }

    /// A new incarnation: all that was written before does not count any more.
    fn reincarnated(&mut self, incarnation: u64) {
        tracing::warn!("this node is incarnation {incarnation} now and writes all its sessions again");
        self.holder = None;
        self.resyncs += 1;
        // What the logs hold is about sessions that the walk tells of too, or that have ended: it is written under the
        // new incarnation.
        self.queue.resync_began();
        self.page = None;
        self.walk.resync();
    }

    fn serve(&mut self, ports: Vec<ControlPort>, stats: Vec<Arc<ShardStats>>) {
        if let Some(losers) = self.losers.take() {
            tokio::spawn(rival::settle(self.plane.clone(), ports.clone(), self.view.subscribe(), losers));
        }
        self.walk = Walk::new(now_ms(), ports.len(), self.rewrite_ms);
        if self.resyncs > 0 {
            self.walk.resync();
        }
        self.audit.begin(now_ms(), ports.len());
        self.agent.serve(ports.len());
        self.shards = ShardEnds { ports, stats };
    }

    fn set_state(&mut self, state: NodeState, done: oneshot::Sender<()>) {
        self.agent.set_state(now_ms(), state);
        self.awaited = Some(done);
    }

    fn set_weight(&mut self, weight: u32) {
        if std::mem::replace(&mut self.agent.record_mut().weight, weight) != weight {
            tracing::info!("the weight of this node in the ring is {weight} now");
            self.agent.hurry(now_ms());
        }
    }

    fn set_mark(&mut self, mark: String) {
        self.agent.record_mut().secret_mark = mark;
        self.agent.hurry(now_ms());
    }

    /// Takes the last events and lets the writer end when it has written all.
    fn flush(&mut self) -> Option<JoinHandle<()>> {
        self.take_events();
        self.queue.close();
        let writer = self.writer.take()?;
        Some(tokio::spawn(async move {
            let abort = writer.abort_handle();
            if timeout(FLUSH_TIMEOUT, writer).await.is_err() {
                abort.abort();
                tracing::warn!("not all of presence could be written; what is left ends with the lease");
            }
        }))
    }

    /// Hands what the shards tell to the write-behind, under the incarnation of this moment.
    fn take_events(&mut self) {
        // A fenced node has no incarnation that counts; the walk after the fence tells of all that is left then.
        self.look(now_ms());
        let serves = self.agent.heart().fenced().is_none();
        let incarnation = self.agent.heart().incarnation();
        for (shard, log) in (0u32..).zip(&self.logs) {
            // No more than are there now, so that a shard in a storm does not keep the others waiting.
            for _ in 0..log.len() {
                let Some(event) = log.take() else { break };
                if serves {
                    // What is refused because the queue is full is told by `overflowed`; a text that cannot be written
                    // is counted.
                    self.queue.push(write_of(event, &self.node, incarnation, shard));
                }
            }
            if log.take_overflowed() {
                self.agent.presence_torn();
            }
        }
    }

    /// Tells the shards of a view that differs in what matters.
    fn tell_shards(&mut self) {
        let ports = &self.shards.ports;
        self.agent
            .tell_shards(|shard, view, life| ports[shard].send(Control::View { view: view.clone(), life }).is_ok());
        self.view.send_replace(self.agent.heart().view());
    }

    fn log_fence(&mut self) {
        let Some(fenced) = self.agent.heart().fenced() else {
            self.fenced_logged = None;
            return;
        };
        if self.fenced_logged.is_none_or(|at| at.elapsed() >= FENCED_LOG_PERIOD) {
            self.fenced_logged = Some(Instant::now());
            let holder = self.holder.as_deref().unwrap_or("nobody that is known");
            tracing::error!(
                ?fenced,
                "this node is FENCED: it has no lease and must not serve; it goes on trying to get one (its name is \
                 held by {holder})"
            );
        }
    }

    fn publish(&mut self) {
        let view = self.agent.heart().view();
        let differs = self.agent.differs(now_ms());
        let differs = differs.map(|(nodes, since_ms, most)| Differs { nodes, since_ms, most });
        let members = [NodeState::Joining, NodeState::Active, NodeState::Draining].map(|state| {
            (state_word(state), view.members.iter().filter(|member| member.state == state).count() as u64)
        });
        let mut refused = Refused { calls: self.prober.calls_refused(), ..self.refused };
        refused.memos_too_long += self.agent.memos_too_long();
        let status = ClusterStatus {
            state: state_word(self.agent.heart().state()),
            fenced: self.agent.heart().fenced(),
            waits: self.waits.clone().or_else(|| self.agent.waits_to_return(now_ms())),
            holder: self.holder.clone(),
            digest: view.digest,
            members,
            left_out: view.left_out.clone(),
            reachable: self.agent.heart().reachable(),
            polled_ms: self.agent.heart().polled_ms(),
            helper: self.agent.writes_through(now_ms()).map(|(node, _)| node),
            dead: self.agent.heart().dead(),
            quarantined: self.agent.is_quarantined(),
            redis: RedisStatus {
                failing_since_ms: self.agent.heart().redis_failing_ms(),
                error: self.redis_error.clone(),
            },
            resyncs: self.resyncs,
            resyncing: self.walk.is_resync(),
            audit: self.audit.status(),
            rivals: self.rivals.load(Ordering::Relaxed),
            rivals_dropped: self.rivals_dropped.load(Ordering::Relaxed),
            kept: self.agent.keeps(now_ms()),
            differs,
            flaps: self.agent.flaps(),
            refused,
            renewals: self.renewals.counts(),
            links_missing: self.shards.stats.iter().map(|stats| stats.mesh_links_missing.get()).sum(),
        };
        let life = self.agent.heart().life();
        self.state.publish(
            self.agent.heart().serve_until_ms(),
            self.agent.heart().incarnation(),
            life,
            view.epoch,
            status,
        );
    }
}

fn write_of(event: PresenceEvent, node: &Arc<str>, incarnation: u64, shard: u32) -> PresenceWrite {
    let entry = PresenceEntry {
        device: event.device().into(),
        node: node.clone(),
        incarnation,
        shard,
        session: event.session,
        since_ms: event.since_ms,
        version: event.version,
        class: event.class,
    };
    match event.online {
        true => PresenceWrite::Login { user: event.user, entry },
        false => PresenceWrite::logout_of(event.user, &entry),
    }
}

/// The answer to the page asked for; never, if none was.
async fn next_page(page: &mut Option<futures_channel::oneshot::Receiver<SessionsPage>>) -> Option<SessionsPage> {
    match page {
        Some(page) => page.await.ok(),
        None => pending().await,
    }
}

/// The list asked for, and of which shard; never, if none was.
async fn next_list(
    list: &mut Option<(usize, futures_channel::oneshot::Receiver<SessionsList>)>,
) -> (usize, Option<SessionsList>) {
    match list {
        Some((shard, list)) => (*shard, list.await.ok()),
        None => pending().await,
    }
}

/// Ends when the task does; never, if there is none.
async fn ended(task: &mut Option<JoinHandle<()>>) {
    match task {
        Some(task) => drop(task.await),
        None => pending().await,
    }
}
