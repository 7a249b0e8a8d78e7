//! A node's control thread, as far as the cluster goes: what `crate::cluster::task` does with the same [`Heart`], in virtual time.

use super::redis::Redis;
use crate::cluster::{Ask, ClusterState, ClusterStatus, Heart, MESH_PROTOCOL, MeshNews};
use crate::control::Control;
use crate::io::sim::Rng;
use std::collections::BTreeMap;
use std::sync::Arc;
use trunkline_router::membership::{NodeRecord, NodeState};
use trunkline_router::redis::Renewal;

/// How long a question to Redis may take: two commands of half a second.
const ROUND_TRIP_US_MAX: u64 = 1_000_000;
/// How soon a node that could not take its lease tries again, as a supervisor would start it again.
const ACQUIRE_AGAIN_US: u64 = 500_000;

/// What was asked of Redis, and when by the node's clock.
#[derive(Clone, Debug)]
struct Asked {
    sent_ms: u64,
    state: NodeState,
    question: Question,
}

#[derive(Clone, Debug)]
enum Question {
    Renew(NodeRecord),
    /// The incarnation before is given up first.
    Acquire(NodeRecord),
    Poll,
    Epoch {
        digest: u64,
        known: u64,
    },
}

#[derive(Debug)]
enum Reply {
    Renewed(Renewal),
    /// `None`: the name is taken.
    Acquired(Option<u64>),
    Polled(Vec<NodeRecord>),
    Epoch(u64),
}

/// What is on its way.
#[derive(Debug)]
enum Step {
    Question(Asked),
    /// Without a reply the time is over.
    Answer(Asked, Option<Reply>),
}

/// How far a node is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Life {
    /// Has no lease yet; its shards do not run.
    Starting,
    Running,
    /// Waits until Redis knows that it drains, and its shards the view in which it does.
    Leaving {
        ends: bool,
    },
    /// That is so, and the shards are to end their sessions.
    Left {
        ends: bool,
    },
    /// The shards end.
    Ending,
    /// The shards have no sessions.
    Resting,
}

#[derive(Debug)]
pub(super) struct Pulse {
    rng: Rng,
    heart: Heart,
    record: NodeRecord,
    lease_ms: u64,
    mono_offset_ms: u64,
    beat_us: u64,
    steps: BTreeMap<(u64, u64), Step>,
    step_count: u64,
    leasing: bool,
    polling: bool,
    agreeing: bool,
    /// Digest, epoch and incarnation, as the shards were told last.
    sent: Option<(u64, u64, u64)>,
    unsent: Vec<bool>,
    /// News came from the shards.
    stirred: bool,
    was_fenced: bool,
    state: Arc<ClusterState>,
    pub(super) life: Life,
}

impl Pulse {
    pub(super) fn new(seed: u64, record: NodeRecord, lease_ms: u64, mono_offset_ms: u64) -> Self {
        assert_eq!(record.check(), Ok(()));
        let state = Arc::new(ClusterState::new(&record.name, Arc::default(), Vec::new()));
        Pulse {
            rng: Rng::new(seed ^ 0x00B1_007D),
            heart: Heart::new(&record.name, lease_ms),
            unsent: vec![true; record.shards as usize],
            record: NodeRecord { protocol: MESH_PROTOCOL, ..record },
            lease_ms,
            mono_offset_ms,
            beat_us: 0,
            steps: BTreeMap::new(),
            step_count: 0,
            leasing: false,
            polling: false,
            agreeing: false,
            sent: None,
            stirred: false,
            was_fenced: false,
            state,
            life: Life::Starting,
        }
    }

    pub(super) fn heart(&self) -> &Heart {
        &self.heart
    }

    /// What the shards look at to see whether they may serve.
    pub(super) fn state(&self) -> &Arc<ClusterState> {
        &self.state
    }

    /// A shard has news of another node.
    pub(super) fn hear(&mut self, now_us: u64, news: MeshNews) {
        let now_ms = self.mono_ms(now_us);
        match news {
            MeshNews::Heard { node, incarnation } => _ = self.heart.mesh_heard(now_ms, &node, incarnation),
            MeshNews::Lost { node, incarnation } => _ = self.heart.mesh_lost(now_ms, &node, incarnation),
            MeshNews::Confirmed { incarnation } => self.heart.peers_confirmed(now_ms, incarnation),
        }
        self.stirred = true;
    }

    fn mono_ms(&self, now_us: u64) -> u64 {
        now_us / 1_000 + self.mono_offset_ms
    }

    /// When there is something to do next. While the process does not run, only Redis does something.
    pub(super) fn next_due_us(&self, paused: bool) -> u64 {
        let wanted = |step: &Step| !paused || matches!(step, Step::Question(_));
        let step_us = self.steps.iter().find(|(_, step)| wanted(step)).map_or(u64::MAX, |((due_us, _), _)| *due_us);
        match (paused, self.stirred) {
            (true, _) => step_us,
            (false, true) => 0,
            (false, false) => step_us.min(self.beat_us),
        }
    }

    /// Lets what is due happen. Shards are told through `tell`, which says whether there was room.
    pub(super) fn step(
        &mut self,
        now_us: u64,
        paused: bool,
        redis: &mut Redis,
        tell: impl FnMut(usize, Control) -> bool,
    ) {
        while let Some(key) =
            self.steps.iter().find(|(_, step)| !paused || matches!(step, Step::Question(_))).map(|(key, _)| *key)
            && key.0 <= now_us
        {
            match self.steps.remove(&key) {
                Some(Step::Question(asked)) => self.reached(key.0, asked, redis),
                Some(Step::Answer(asked, reply)) => self.answered(now_us, asked, reply),
                None => unreachable!("its key was just found"),
            }
        }
        if !paused {
            self.look(now_us, tell);
        }
    }

    /// What may follow from anything, or from the time.
    fn look(&mut self, now_us: u64, tell: impl FnMut(usize, Control) -> bool) {
        if now_us >= self.beat_us {
            // A beat that was missed is not made up for.
            self.beat_us = now_us + self.lease_ms * 1_000 / 5;
            self.ask_lease(now_us);
            if self.life != Life::Starting {
                self.poll(now_us);
            }
        }
        if self.life == Life::Starting {
            return;
        }
        self.stirred = false;
        let fenced = !self.heart.look(self.mono_ms(now_us));
        if fenced && !std::mem::replace(&mut self.was_fenced, fenced) {
            self.beat_us = now_us;
        }
        self.was_fenced = fenced;
        if self.heart.wants_poll() {
            self.poll(now_us);
        }
        self.send_view(tell);
        self.publish();
    }

    fn publish(&self) {
        let heart = &self.heart;
        let (until_ms, epoch, status) = (heart.serve_until_ms(), heart.view().epoch, ClusterStatus::default());
        self.state.publish(until_ms, heart.incarnation(), heart.life(), epoch, status);
    }

    fn schedule(&mut self, due_us: u64, step: Step) {
        self.step_count += 1;
        self.steps.insert((due_us, self.step_count), step);
    }

    fn ask(&mut self, now_us: u64, question: Question) {
        let asked = Asked { sent_ms: self.mono_ms(now_us), state: self.heart.state(), question };
        let due_us = now_us + self.way_us();
        self.schedule(due_us, Step::Question(asked));
    }

    /// How long a question or an answer travels: mostly not long.
    fn way_us(&mut self) -> u64 {
        if self.rng.chance(100) { self.rng.within(1_000, 300_000) } else { self.rng.within(100, 3_000) }
    }

    fn ask_lease(&mut self, now_us: u64) {
        if std::mem::replace(&mut self.leasing, true) {
            return;
        }
        let ask = self.heart.ask(self.mono_ms(now_us));
        let record = NodeRecord {
            incarnation: self.heart.incarnation(),
            life: if self.heart.fenced().is_some() { 0 } else { self.heart.life() },
            state: self.heart.state(),
            ..self.record.clone()
        };
        self.ask(now_us, if ask == Ask::Renew { Question::Renew(record) } else { Question::Acquire(record) });
    }

    fn poll(&mut self, now_us: u64) {
        if !std::mem::replace(&mut self.polling, true) {
            self.ask(now_us, Question::Poll);
        }
    }

    fn agree(&mut self, now_us: u64) {
        if !std::mem::replace(&mut self.agreeing, true) {
            let view = self.heart.view();
            self.ask(now_us, Question::Epoch { digest: view.digest, known: view.epoch });
        }
    }

    /// A question reaches Redis. It may do what was asked, and the answer be lost.
    fn reached(&mut self, at_us: u64, asked: Asked, redis: &mut Redis) {
        let give_up_us = (asked.sent_ms - self.mono_offset_ms) * 1_000 + ROUND_TRIP_US_MAX;
        let reply = (!redis.out).then(|| match asked.question.clone() {
            Question::Renew(record) => Reply::Renewed(redis.renew(at_us, record, self.lease_ms)),
            Question::Acquire(record) => {
                redis.release(&record.name, record.incarnation);
                Reply::Acquired(redis.acquire(at_us, record, self.lease_ms))
            }
            Question::Poll => Reply::Polled(redis.poll(at_us)),
            Question::Epoch { digest, known } => Reply::Epoch(redis.epoch(digest, known)),
        });
        let lost = reply.is_none() || self.rng.chance(5);
        let due_us = if lost { give_up_us } else { at_us + self.way_us() };
        self.schedule(due_us.max(at_us), Step::Answer(asked, reply.filter(|_| !lost)));
    }

    fn answered(&mut self, now_us: u64, asked: Asked, reply: Option<Reply>) {
        let now_ms = self.mono_ms(now_us);
        let Asked { sent_ms, state, question } = asked;
        match (question, reply) {
            (Question::Renew(_), reply) => {
                self.leasing = false;
                match reply {
                    Some(Reply::Renewed(renewal)) => {
                        self.heart.renewed(sent_ms, now_ms, renewal);
                        if renewal != Renewal::Renewed {
                            self.beat_us = now_us;
                        }
                    }
                    _ => self.heart.renew_failed(now_ms),
                }
                self.told(now_us, state);
            }
            (Question::Acquire(_), reply) => {
                self.leasing = false;
                match reply {
                    Some(Reply::Acquired(Some(incarnation))) => {
                        if self.heart.acquired(sent_ms, now_ms, incarnation) {
                            self.polling = false;
                            self.poll(now_us);
                        }
                    }
                    Some(Reply::Acquired(None)) => self.heart.refused(now_ms),
                    _ => self.heart.renew_failed(now_ms),
                }
                self.told(now_us, state);
                if self.life == Life::Starting && self.heart.incarnation() == 0 {
                    self.beat_us = now_us + ACQUIRE_AGAIN_US;
                }
            }
            (Question::Poll, reply) => {
                self.polling = false;
                if let Some(Reply::Polled(records)) = reply {
                    self.heart.polled(now_ms, records);
                    self.agree(now_us);
                } else {
                    self.heart.poll_failed(now_ms);
                }
            }
            (Question::Epoch { digest, .. }, reply) => {
                self.agreeing = false;
                if let Some(Reply::Epoch(epoch)) = reply {
                    self.heart.set_epoch(digest, epoch);
                }
            }
        }
    }

    /// Redis was told this state, or could not be told it.
    fn told(&mut self, now_us: u64, state: NodeState) {
        if state != self.heart.state() {
            self.beat_us = now_us;
        }
        if let Life::Leaving { ends } = self.life
            && state == NodeState::Draining
        {
            if self.heart.redis_failing_ms().is_some() {
                // Clients are not kept waiting for a Redis that does not work.
                self.life = Life::Left { ends };
            } else {
                self.polling = false;
                self.poll(now_us);
            }
        }
    }

    /// Whether it has its lease and its shards may start.
    pub(super) fn may_start(&self) -> bool {
        self.life == Life::Starting && self.heart.incarnation() != 0
    }

    /// The shards run.
    pub(super) fn serve(&mut self, now_us: u64) {
        self.life = Life::Running;
        self.heart.set_state(NodeState::Active);
        self.beat_us = now_us;
        self.publish();
    }

    /// The node is to leave the ring, for good or until it is called back.
    pub(super) fn drain(&mut self, now_us: u64, ends: bool) {
        self.life = Life::Leaving { ends };
        self.heart.set_state(NodeState::Draining);
        self.beat_us = now_us;
    }

    fn send_view(&mut self, mut tell: impl FnMut(usize, Control) -> bool) {
        let view = self.heart.view();
        let (incarnation, life) = (self.heart.incarnation(), self.heart.life());
        let now = (view.digest, view.epoch, incarnation);
        if self.sent != Some(now) {
            self.sent = Some(now);
            self.unsent.fill(true);
            let members: Vec<String> = view
                .members
                .iter()
                .map(|member| format!("{} {} {:?}", member.name, member.incarnation, member.state))
                .collect();
            tracing::debug!("{} {incarnation}: view {:016x}: {}", self.record.name, view.digest, members.join(", "));
        }
        let own = view.member(&self.record.name).filter(|own| own.incarnation == incarnation);
        let drains = own.is_some_and(|own| own.state == NodeState::Draining);
        for (shard, unsent) in self.unsent.iter_mut().enumerate() {
            *unsent = *unsent && !tell(shard, Control::View { view: view.clone(), incarnation, life });
        }
        if let Life::Leaving { ends } = self.life
            && drains
            && !self.unsent.contains(&true)
        {
            self.life = Life::Left { ends };
        }
    }
}
