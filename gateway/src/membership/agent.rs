//! The one decision maker: when the lease is renewed and the view asked for, what follows from the answers, and what the shards are told.

use super::heart::{Ask, Heart};
use super::{MeshNews, state_word};
use std::collections::VecDeque;
use std::sync::Arc;
use trunkline_router::membership::{NodeRecord, NodeState, View};
use trunkline_router::redis::Renewal;

/// What is asked of Redis.
#[derive(Clone, Debug)]
pub(crate) enum Request {
    /// Renew the lease of this record's incarnation.
    Renew(NodeRecord),
    /// Give up the lease of this record's incarnation if Redis still has it, and take one with a new incarnation.
    Acquire(NodeRecord),
    /// The records of all nodes with a live lease.
    Poll,
    /// The epoch of the view with this digest, where `known` is the node's own.
    Epoch { digest: u64, known: u64 },
}

/// A question that is under way.
#[derive(Clone, Debug)]
pub(crate) struct Question {
    number: u64,
    /// When it was asked: a lease that is granted or renewed counts from here.
    sent_ms: u64,
    pub(crate) request: Request,
}

/// What came of a question.
#[derive(Debug)]
pub(crate) enum Reply {
    Renewed(Renewal),
    Acquired(u64),
    /// Another holds the name.
    NameTaken,
    Polled(Vec<NodeRecord>),
    Epoch(u64),
    /// An error, or no answer in time. It may have been done all the same.
    Failed,
}

/// What the driver is to do.
#[derive(Debug)]
pub(crate) enum Action {
    /// Ask Redis, and tell [`Agent::answered`] what came of it.
    Ask(Box<Question>),
    /// The node has a new incarnation: what was written to presence before does not count any more.
    Reincarnated(u64),
    /// Every shard knows a view in which the node is in the state set last.
    StateKnown,
    /// Redis does not work, so that will not be for a while.
    StateUntold,
}

/// The part of one node in its cluster. Times are milliseconds of [`crate::clock`].
#[derive(Debug)]
pub(crate) struct Agent {
    heart: Heart,
    /// What this node says about itself; incarnation, life and state are filled in for each renewal.
    record: NodeRecord,
    beat_ms: u64,
    next_beat_ms: u64,
    numbers: u64,
    leasing: bool,
    agreeing: bool,
    /// The latest poll, while it is under way. The answer to one before it says nothing that counts.
    polling: Option<u64>,
    /// The poll under way may be from before what it is to show: another follows.
    poll_again: bool,
    /// The state that the shards are to know of, and somebody waits for it.
    awaited: Option<NodeState>,
    /// Digest and epoch of the view that the shards were told last, and the incarnation with it.
    told: Option<(u64, u64, u64)>,
    /// Shards that do not have it yet.
    untold: Vec<bool>,
    was_fenced: bool,
    actions: VecDeque<Action>,
}

impl Agent {
    /// A node without a lease that says `record` of itself, has leases of `lease_ms`, and renews every `beat_ms`.
    pub(crate) fn new(record: NodeRecord, lease_ms: u64, beat_ms: u64) -> Self {
        Agent {
            heart: Heart::new(&record.name, lease_ms),
            record,
            beat_ms,
            next_beat_ms: 0,
            numbers: 0,
            leasing: false,
            agreeing: false,
            polling: None,
            poll_again: false,
            awaited: None,
            told: None,
            untold: Vec::new(),
            was_fenced: false,
            actions: VecDeque::new(),
        }
    }

    /// What it knows.
    pub(crate) fn heart(&self) -> &Heart {
        &self.heart
    }

    /// The name of the node.
    pub(crate) fn name(&self) -> &str {
        &self.record.name
    }

    /// When it has to look next if nothing happens before.
    pub(crate) fn due_ms(&self) -> u64 {
        self.next_beat_ms
    }

    /// What the node says about itself now.
    pub(crate) fn record(&self) -> NodeRecord {
        NodeRecord {
            incarnation: self.heart.incarnation(),
            // A node that is fenced begins a new life with the incarnation it asks for.
            life: if self.heart.fenced().is_some() { 0 } else { self.heart.life() },
            state: self.heart.state(),
            ..self.record.clone()
        }
    }

    /// What it says from now on apart from incarnation, life and state.
    pub(crate) fn record_mut(&mut self) -> &mut NodeRecord {
        &mut self.record
    }

    /// The lease was granted to a request sent at `sent_ms`, by another way than [`Request::Acquire`].
    pub(crate) fn acquired(&mut self, sent_ms: u64, now_ms: u64, incarnation: u64) {
        self.heart.acquired(sent_ms, now_ms, incarnation);
    }

    /// The shards run: so many have to be told of views.
    pub(crate) fn serve(&mut self, shards: usize) {
        self.untold = vec![true; shards];
    }

    /// The next step of the node's life. [`Action::StateKnown`] or [`Action::StateUntold`] follows, for the latest one.
    pub(crate) fn set_state(&mut self, now_ms: u64, state: NodeState) {
        self.heart.set_state(state);
        self.awaited = Some(state);
        self.next_beat_ms = now_ms;
    }

    /// Renews at once, because what the record says has changed.
    pub(crate) fn hurry(&mut self, now_ms: u64) {
        self.next_beat_ms = now_ms;
    }

    /// Presence has lost a write, so it has to be written as a whole, under a new incarnation.
    pub(crate) fn presence_torn(&mut self) {
        self.heart.presence_torn();
    }

    /// The mesh has news.
    pub(crate) fn heard(&mut self, now_ms: u64, news: MeshNews) {
        match news {
            MeshNews::Heard { node, incarnation } => _ = self.heart.mesh_heard(now_ms, &node, incarnation),
            MeshNews::Lost { node, incarnation } => _ = self.heart.mesh_lost(now_ms, &node, incarnation),
            MeshNews::Confirmed { incarnation } => self.heart.peers_confirmed(now_ms, incarnation),
        }
    }

    /// Lets time pass and what has happened have its effect. To be called after everything that is told, and when it is due.
    pub(crate) fn look(&mut self, now_ms: u64) {
        let fenced = !self.heart.look(now_ms) && self.heart.incarnation() != 0;
        if fenced && !self.was_fenced {
            self.next_beat_ms = now_ms;
        }
        self.was_fenced = fenced;
        if now_ms >= self.next_beat_ms {
            // A beat that was missed is not made up for. What is under way from the last one is left alone: it has a bound of its own.
            self.next_beat_ms = now_ms + self.beat_ms;
            self.ask_lease(now_ms);
            self.poll(now_ms);
        }
        if self.heart.wants_poll() {
            self.poll(now_ms);
        }
    }

    /// What to do now.
    pub(crate) fn next_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    fn ask(&mut self, now_ms: u64, request: Request) -> u64 {
        self.numbers += 1;
        let question = Question { number: self.numbers, sent_ms: now_ms, request };
        self.actions.push_back(Action::Ask(Box::new(question)));
        self.numbers
    }

    fn ask_lease(&mut self, now_ms: u64) {
        if self.leasing {
            return;
        }
        self.leasing = true;
        // Whether it is fenced is found out here, and the record says so.
        let ask = self.heart.ask(now_ms);
        let mut record = self.record();
        // From the first moment of a new incarnation on, until all is written again.
        record.mending |= ask == Ask::Acquire;
        self.ask(now_ms, if ask == Ask::Renew { Request::Renew(record) } else { Request::Acquire(record) });
    }

    /// Asks for the nodes, unless that is under way or there is no lease yet.
    pub(crate) fn poll(&mut self, now_ms: u64) {
        if self.polling.is_none() && self.heart.incarnation() != 0 {
            self.polling = Some(self.ask(now_ms, Request::Poll));
        }
    }

    /// Asks for the epoch of the view, which all nodes with this view agree on.
    fn agree(&mut self, now_ms: u64) {
        if !std::mem::replace(&mut self.agreeing, true) {
            let view = self.heart.view();
            self.ask(now_ms, Request::Epoch { digest: view.digest, known: view.epoch });
        }
    }

    /// Questions that are under way will not be answered.
    pub(crate) fn forget_questions(&mut self) {
        (self.leasing, self.polling, self.agreeing) = (false, None, false);
    }

    /// What came of a question.
    pub(crate) fn answered(&mut self, now_ms: u64, question: Question, reply: Reply) {
        let Question { number, sent_ms, request } = question;
        match request {
            Request::Renew(record) => {
                self.leasing = false;
                match reply {
                    Reply::Renewed(renewal) => {
                        self.heart.renewed(sent_ms, now_ms, renewal);
                        if renewal != Renewal::Renewed {
                            tracing::warn!(?renewal, "the lease is gone; this node takes a new incarnation");
                            self.next_beat_ms = now_ms;
                        }
                    }
                    _ => self.heart.renew_failed(now_ms),
                }
                self.state_told(now_ms, record.state);
            }
            Request::Acquire(record) => {
                self.leasing = false;
                match reply {
                    Reply::Acquired(incarnation) => {
                        if self.heart.acquired(sent_ms, now_ms, incarnation) {
                            self.polling = None;
                            self.poll(now_ms);
                            self.actions.push_back(Action::Reincarnated(incarnation));
                        }
                    }
                    Reply::NameTaken => self.heart.refused(now_ms),
                    _ => self.heart.renew_failed(now_ms),
                }
                self.state_told(now_ms, record.state);
            }
            Request::Poll if self.polling != Some(number) => {}
            Request::Poll => {
                self.polling = None;
                match reply {
                    Reply::Polled(records) => {
                        self.heart.polled(now_ms, records);
                        self.agree(now_ms);
                    }
                    _ => _ = self.heart.poll_failed(now_ms),
                }
                if std::mem::take(&mut self.poll_again) {
                    self.poll(now_ms);
                }
            }
            Request::Epoch { digest, .. } => {
                self.agreeing = false;
                // Without an answer the node goes on with its own count; the next poll asks again.
                if let Reply::Epoch(epoch) = reply {
                    self.heart.set_epoch(digest, epoch);
                }
            }
        }
    }

    /// Redis was told this state, or could not be told it. One that is new by now follows at once.
    fn state_told(&mut self, now_ms: u64, state: NodeState) {
        if state != self.heart.state() {
            self.next_beat_ms = now_ms;
        }
        if self.awaited == Some(state) {
            if state == NodeState::Draining && self.heart.redis_failing_ms().is_some() {
                // Clients are not kept waiting for a Redis that does not work; the state is told when it does.
                self.awaited = None;
                self.actions.push_back(Action::StateUntold);
                return;
            }
            self.poll_again = self.polling.is_some();
            self.poll(now_ms);
        }
    }

    /// Tells the shards of a view that differs in what matters: `tell` is given shard, view, incarnation and life, and says whether there was
    /// room. A shard whose queue is full is told the next time.
    pub(crate) fn tell_shards(&mut self, mut tell: impl FnMut(usize, &Arc<View>, u64, u64) -> bool) {
        let view = self.heart.view();
        let (incarnation, life) = (self.heart.incarnation(), self.heart.life());
        let now = (view.digest, view.epoch, incarnation);
        if self.told != Some(now) {
            self.told = Some(now);
            self.untold.fill(true);
            let members: Vec<String> =
                view.members.iter().map(|member| format!("{} {}", member.name, state_word(member.state))).collect();
            tracing::info!("view {:016x}, epoch {}: {}", view.digest, view.epoch, members.join(", "));
        }
        for (shard, untold) in self.untold.iter_mut().enumerate() {
            *untold = *untold && !tell(shard, &view, incarnation, life);
        }
        let own = view.member(&self.record.name).filter(|own| own.incarnation == incarnation);
        let is_known = |state: &mut NodeState| own.is_some_and(|own| own.state == *state);
        if !self.untold.contains(&true) && self.awaited.take_if(is_known).is_some() {
            self.actions.push_back(Action::StateKnown);
        }
    }
}
