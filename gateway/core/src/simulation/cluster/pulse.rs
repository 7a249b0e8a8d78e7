//! A node's control thread, as far as the cluster goes: the [`Agent`] of `crate::cluster` in virtual time, with a Redis
//! that is slow at times.

use super::redis::Redis;
use crate::control::Control;
use crate::fence::Fence;
use crate::io::sim::{Clock, Rng};
use crate::membership::MeshNews;
use crate::membership::admission::{Admission, admission};
use crate::membership::{Action, Agent, Heart, Question, Reply, Request};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::Arc;
use trunkline_router_core::membership::{NodeRecord, NodeState, Reach};

/// How long a question to Redis may take: two commands of half a second.
const ROUND_TRIP_US_MAX: u64 = 1_000_000;
/// How soon a node that could not take its lease tries again.
const ACQUIRE_AGAIN_US: u64 = 500_000;

/// What is on its way.
#[derive(Debug)]
enum Step {
    /// To Redis. The time from which on nobody waits for the answer.
    Question(Box<Question>, u64),
    Answer(Box<Question>, Reply),
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
    agent: Agent,
    shards: usize,
    lease_ms: u64,
    clock: Clock,
    /// What [`Pulse::look_us`] came to, and for which clock and time.
    looks: Cell<((Clock, u64), u64)>,
    steps: BTreeMap<(u64, u64), Step>,
    step_count: u64,
    /// Something was told, and is to have its effect.
    stirred: bool,
    /// Without a lease it does not look before this.
    starts_us: u64,
    /// It is to become active as soon as the others let it in.
    active: bool,
    /// It was let in.
    admitted: bool,
    /// The nodes as of the last poll.
    polled: Option<Vec<NodeRecord>>,
    /// Nodes that are to be probed: name, life and address.
    probes: Vec<(String, u64, String)>,
    /// Addresses of nodes that are to be called at.
    calls: Vec<String>,
    state: Arc<Fence>,
    pub(super) life: Life,
}

impl Pulse {
    pub(super) fn new(seed: u64, record: NodeRecord, lease_ms: u64, clock: Clock) -> Self {
        assert_eq!(record.check(), Ok(()));
        let state = Arc::new(Fence::new(lease_ms));
        let shards = record.shards as usize;
        let mut agent = Agent::new(record, lease_ms, lease_ms / 5);
        agent.serve(shards);
        Pulse {
            rng: Rng::new(seed ^ 0x00B1_007D),
            agent,
            shards,
            lease_ms,
            clock,
            looks: Cell::default(),
            steps: BTreeMap::new(),
            step_count: 0,
            stirred: true,
            starts_us: 0,
            active: false,
            admitted: false,
            polled: None,
            probes: Vec::new(),
            calls: Vec::new(),
            state,
            life: Life::Starting,
        }
    }

    pub(super) fn heart(&self) -> &Heart {
        self.agent.heart()
    }

    /// What the shards look at to see whether they may serve.
    pub(super) fn state(&self) -> &Arc<Fence> {
        &self.state
    }

    /// The clock of its host stood still for so long.
    pub(super) fn clock_stood(&mut self, us: u64) {
        self.clock.stood_us += us;
    }

    /// A shard has news of another node.
    pub(super) fn hear(&mut self, now_us: u64, news: MeshNews) {
        if let MeshNews::Memo { body, .. } = &news {
            self.state.release_memo(body.len());
        }
        self.agent.heard(self.mono_ms(now_us), news);
        self.stirred = true;
    }

    fn mono_ms(&self, now_us: u64) -> u64 {
        self.clock.at_ms(now_us)
    }

    /// When its agent looks next. It is asked at every event of the run, and changes once a beat.
    fn look_us(&self) -> u64 {
        let key = (self.clock, self.agent.due_ms());
        let (known, look_us) = self.looks.get();
        if known == key {
            return look_us;
        }
        let look_us = self.clock.when_us(key.1);
        self.looks.set((key, look_us));
        look_us
    }

    /// When there is something to do next. While the process does not run, only Redis does something.
    pub(super) fn next_due_us(&self, paused: bool) -> u64 {
        let wanted = |step: &Step| !paused || matches!(step, Step::Question(..));
        let step_us = self.steps.iter().find(|(_, step)| wanted(step)).map_or(u64::MAX, |((due_us, _), _)| *due_us);
        let look_us = self.look_us();
        match (paused, self.stirred) {
            (true, _) => step_us,
            (false, true) => self.starts_us.min(step_us),
            (false, false) => step_us.min(look_us.max(self.starts_us)),
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
            self.steps.iter().find(|(_, step)| !paused || matches!(step, Step::Question(..))).map(|(key, _)| *key)
            && key.0 <= now_us
        {
            match self.steps.remove(&key) {
                Some(Step::Question(question, give_up_us)) => self.reached(key.0, question, give_up_us, redis),
                Some(Step::Answer(question, reply)) => self.answered(now_us, question, reply),
                None => unreachable!("its key was just found"),
            }
        }
        if !paused && now_us >= self.starts_us {
            self.look(now_us, tell);
        }
    }

    /// What may follow from anything, or from the time.
    fn look(&mut self, now_us: u64, mut tell: impl FnMut(usize, Control) -> bool) {
        self.stirred = false;
        self.find_joining(now_us);
        if self.active && self.is_let_in(now_us) {
            self.active = false;
            self.agent.set_state(self.mono_ms(now_us), NodeState::Active);
        }
        self.agent.look(self.mono_ms(now_us));
        if self.life != Life::Starting {
            self.agent.tell_shards(|shard, view, life| tell(shard, Control::View { view: view.clone(), life }));
        }
        while let Some(action) = self.agent.next_action() {
            match (action, self.life) {
                (Action::Ask(question), _) => {
                    let due_us = now_us + self.way_us();
                    self.schedule(due_us, Step::Question(question, now_us + ROUND_TRIP_US_MAX));
                }
                (Action::Send { node, life, body }, _) => {
                    // Without shards there is no mesh.
                    let shard = self.rng.below(self.shards as u64) as usize;
                    tell(shard, Control::Memo { node: node.into(), life, body: body.into() });
                }
                (Action::Probe { node, life, mesh, .. }, _) => self.probes.push((node, life, mesh)),
                (Action::Call { mesh, .. }, _) => self.calls.push(mesh),
                (Action::StateKnown | Action::StateUntold, Life::Leaving { ends }) => self.life = Life::Left { ends },
                // There is no presence here.
                (Action::WriteFor { .. } | Action::Wrote { .. } | Action::Restored, _) => {}
                (Action::StateKnown | Action::StateUntold | Action::Reincarnated(_), _) => {}
            }
        }
        if self.life != Life::Starting {
            self.publish();
        }
    }

    /// Says of those that join that they can be dialed: here they can, sooner or later.
    fn find_joining(&mut self, now_us: u64) {
        let view = self.agent.heart().view();
        let own = self.agent.name();
        let joining = view.members.iter().filter(|member| member.state == NodeState::Joining && member.name != own);
        let found =
            |member: &NodeRecord| Reach { name: member.name.clone(), incarnation: member.incarnation, ok: true };
        let reach: Vec<Reach> = joining.map(found).collect();
        if self.agent.record_mut().reach.replace(reach.clone()) != Some(reach) {
            self.agent.hurry(self.mono_ms(now_us));
        }
    }

    /// As the task of the control thread judges.
    fn is_let_in(&mut self, now_us: u64) -> bool {
        let Some(polled) = &self.polled else { return self.admitted };
        let now_ms = self.mono_ms(now_us);
        let open = admission(&self.agent.record(), polled) == Admission::Open;
        self.admitted |= open && self.agent.waits_for_elders(now_ms).is_none();
        self.admitted
    }

    fn publish(&self) {
        let heart = self.agent.heart();
        let (until_ms, epoch) = (heart.serve_until_ms(), heart.view().epoch);
        self.state.publish(until_ms, heart.incarnation(), heart.life(), epoch);
    }

    fn schedule(&mut self, due_us: u64, step: Step) {
        self.step_count += 1;
        self.steps.insert((due_us, self.step_count), step);
    }

    /// How long a question or an answer travels: mostly not long.
    fn way_us(&mut self) -> u64 {
        if self.rng.chance(100) { self.rng.within(1_000, 300_000) } else { self.rng.within(100, 3_000) }
    }

    /// A question reaches Redis. It may do what was asked, and the answer be lost.
    fn reached(&mut self, at_us: u64, question: Box<Question>, give_up_us: u64, redis: &mut Redis) {
        let reply = if !redis.answers(self.agent.name()) || redis.refuses(&question.request) {
            Reply::Failed
        } else {
            match question.request.clone() {
                Request::Renew(record) => Reply::Renewed(redis.renew(at_us, record, self.lease_ms)),
                Request::Restore(record) => Reply::Renewed(redis.restore(at_us, record, self.lease_ms)),
                Request::RenewFor(favour) => Reply::Renewed(match favour.restore {
                    true => redis.restore(at_us, favour.record, self.lease_ms),
                    false => redis.renew(at_us, favour.record, self.lease_ms),
                }),
                Request::Acquire(record) => {
                    redis.release(&record.name, record.incarnation);
                    redis.acquire(at_us, record, self.lease_ms).map_or(Reply::NameTaken, Reply::Acquired)
                }
                Request::Poll => Reply::Polled(redis.poll(at_us)),
                Request::Epoch { digest, known } => Reply::Epoch(redis.epoch(digest, known)),
            }
        };
        let unheard = redis.unheard.contains(self.agent.name());
        let lost = matches!(reply, Reply::Failed) || unheard || (!redis.sound && self.rng.chance(5));
        let refused = redis.answers(self.agent.name()) && matches!(reply, Reply::Failed);
        let due_us = if lost && !refused { give_up_us } else { at_us + self.way_us() };
        let reply = if lost { Reply::Failed } else { reply };
        self.schedule(due_us.max(at_us), Step::Answer(question, reply));
    }

    fn answered(&mut self, now_us: u64, question: Box<Question>, reply: Reply) {
        let begins = self.life == Life::Starting && matches!(question.request, Request::Acquire(_));
        if let Reply::Polled(records) = &reply {
            self.polled = Some(records.clone());
        }
        self.agent.answered(self.mono_ms(now_us), *question, reply);
        self.stirred = true;
        if begins && self.agent.heart().incarnation() == 0 {
            self.starts_us = now_us + ACQUIRE_AGAIN_US;
            self.agent.hurry(self.mono_ms(self.starts_us));
        }
    }

    /// What is to be probed.
    pub(super) fn take_probes(&mut self) -> Vec<(String, u64, String)> {
        std::mem::take(&mut self.probes)
    }

    /// Where is to be called at.
    pub(super) fn take_calls(&mut self) -> Vec<String> {
        std::mem::take(&mut self.calls)
    }

    /// What came of a probe.
    pub(super) fn probed(&mut self, now_us: u64, node: &str, life: u64, refused: bool) {
        let now_ms = self.mono_ms(now_us);
        self.agent.probed(now_ms, node, life, now_ms, refused);
        self.stirred = true;
    }

    /// Whether the shards may serve.
    pub(super) fn may_serve(&self, now_us: u64) -> bool {
        self.state.may_serve(self.mono_ms(now_us))
    }

    /// Whether it has its lease and its shards may start.
    pub(super) fn may_start(&self) -> bool {
        self.life == Life::Starting && self.agent.heart().incarnation() != 0
    }

    /// The shards run.
    pub(super) fn serve(&mut self, now_us: u64, listed: &[(String, String)]) {
        self.life = Life::Running;
        self.active = true;
        self.agent.note_ghosts(self.mono_ms(now_us), listed);
        if !self.admitted {
            self.agent.set_state(self.mono_ms(now_us), NodeState::Joining);
        }
        self.stirred = true;
        self.publish();
    }

    /// The node is to leave the ring, for good or until it is called back.
    pub(super) fn drain(&mut self, now_us: u64, ends: bool) {
        self.active = false;
        self.life = Life::Leaving { ends };
        self.agent.set_state(self.mono_ms(now_us), NodeState::Draining);
        self.stirred = true;
    }
}
