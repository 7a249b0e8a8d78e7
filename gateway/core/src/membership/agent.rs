//! The one decision maker: when the lease is renewed and the view asked for, what follows from the answers, and what
//! the shards are told.

use super::elders::Elders;
use super::heart::{Ask, Heart};
use super::memo::{Change, End, Memo, Seen, WRITES_MAX};
use super::peers::Peers;
use super::sight::Sight;
use super::state_word;
use crate::mesh_news::{LinkWord, MeshNews};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use trunkline_router_core::membership::Renewal;
use trunkline_router_core::membership::{NodeRecord, NodeState, Outage, Reach, View};

/// What is asked of Redis.
#[derive(Clone, Debug)]
pub enum Request {
    /// Renew the lease of this record's incarnation.
    Renew(NodeRecord),
    /// The same, and write it again if Redis has lost it.
    Restore(NodeRecord),
    /// Renew or restore the lease of a peer that asked for it.
    RenewFor(Box<Favour>),
    /// Take a lease with a new incarnation, in place of that of this record's if Redis still has it.
    Acquire(NodeRecord),
    /// The records of all nodes with a live lease.
    Poll,
    /// The epoch of the view with this digest, where `known` is the node's own.
    Epoch { digest: u64, known: u64 },
}

/// What a peer that has no Redis of its own asks for.
#[derive(Clone, Debug)]
pub struct Favour {
    life: u64,
    number: u64,
    digest: u64,
    pub restore: bool,
    /// Whose lease, and what to write into it.
    pub record: NodeRecord,
}

/// A question that is under way.
#[derive(Clone, Debug)]
pub struct Question {
    number: u64,
    /// When it was asked: a lease that is granted or renewed counts from here.
    sent_ms: u64,
    pub request: Request,
}

/// What came of a question.
#[derive(Debug)]
pub enum Reply {
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
pub enum Action {
    /// Ask Redis, and tell [`Agent::answered`] what came of it.
    Ask(Box<Question>),
    /// Send a memo to a node in this life. What finds no connection is lost.
    Send { node: String, life: u64, body: Vec<u8> },
    /// Write changes of presence for a node in this life, and send it a [`Memo::Wrote`] with this number.
    WriteFor { node: String, life: u64, number: u64, writes: Vec<Change> },
    /// What became of those with this number that a peer was asked to write.
    Wrote { number: u64, ends: Vec<End> },
    /// Find out whether anything accepts connections at this address, and tell [`Agent::probed`].
    Probe { node: String, life: u64, mesh: String, sent_ms: u64 },
    /// Call at the node at this address, so that it knows of this one. It may not be able to read so in Redis.
    Call { node: String, mesh: String },
    /// The node has a new incarnation: what was written to presence before does not count any more.
    Reincarnated(u64),
    /// Redis has the lease again that it had lost. What else it has lost is not known: all of presence is written
    /// again, and what is there counts on.
    Restored,
    /// Every shard knows a view in which the node is in the state set last.
    StateKnown,
    /// Redis does not work, so that will not be for a while.
    StateUntold,
}

/// The part of one node in its cluster. Times are milliseconds of [`crate::clock`].
#[derive(Debug)]
pub struct Agent {
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
    was_quarantined: bool,
    /// Members that are not heard, as of the last beat.
    silent: Vec<Reach>,
    /// It has been in the ring.
    was_active: bool,
    /// Those it waits for until then.
    elders: Elders,
    /// It was fenced while it was in the ring, and is to be active again when those that may have taken over know of
    /// it.
    returns: bool,
    /// A shard does not turn: the lease is let go, so that others take over.
    stands: bool,
    peers: Peers,
    sight: Sight,
    /// The node serves on when Redis fails, whatever the others do.
    serves_alone: bool,
    /// Peers whose lease is just being renewed for them.
    favours: BTreeSet<String>,
    /// Nodes whose host refuses connections to their mesh address: in which life, and since when.
    refusals: BTreeMap<String, (u64, u64)>,
    /// It was said that this node keeps members of which Redis has no lease.
    keeps_said: bool,
    /// Words to peers that were longer than any node takes.
    memos_too_long: u64,
    actions: VecDeque<Action>,
}

impl Agent {
    /// A node without a lease that says `record` of itself, has leases of `lease_ms`, and renews every `beat_ms`.
    pub fn new(record: NodeRecord, lease_ms: u64, beat_ms: u64) -> Self {
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
            was_quarantined: false,
            silent: Vec::new(),
            was_active: false,
            elders: Elders::default(),
            returns: false,
            stands: false,
            peers: Peers::default(),
            sight: Sight::default(),
            serves_alone: false,
            favours: BTreeSet::new(),
            refusals: BTreeMap::new(),
            keeps_said: false,
            memos_too_long: 0,
            actions: VecDeque::new(),
        }
    }

    /// When Redis fails the node serves on, whether a majority of the nodes agrees or not, and takes over from those
    /// that the mesh loses.
    pub fn serve_alone(&mut self) {
        self.serves_alone = true;
        self.heart.set_outage(Outage::MeshDecides);
    }

    /// What it knows.
    pub fn heart(&self) -> &Heart {
        &self.heart
    }

    /// The name of the node.
    pub fn name(&self) -> &str {
        &self.record.name
    }

    /// When it has to look next if nothing happens before.
    pub fn due_ms(&self) -> u64 {
        self.next_beat_ms
    }

    /// What the node says about itself and others now.
    pub fn record(&self) -> NodeRecord {
        let mut record = NodeRecord {
            incarnation: self.heart.incarnation(),
            // A node that is fenced begins a new life with the incarnation it asks for.
            life: if self.heart.fenced().is_some() { 0 } else { self.heart.life() },
            state: self.heart.state(),
            turns: self.heart.turns(),
            view: self.told.map_or(0, |(digest, ..)| digest),
            ..self.record.clone()
        };
        record.set_silent(&self.silent);
        record.trim();
        record
    }

    /// What it says from now on apart from incarnation, life and state.
    pub fn record_mut(&mut self) -> &mut NodeRecord {
        &mut self.record
    }

    /// The lease was granted to a request sent at `sent_ms`, by another way than [`Request::Acquire`].
    pub fn acquired(&mut self, sent_ms: u64, now_ms: u64, incarnation: u64) {
        self.begins(now_ms);
        self.heart.acquired(sent_ms, now_ms, incarnation);
    }

    /// A lease is granted, maybe the first.
    fn begins(&mut self, now_ms: u64) {
        if self.heart.incarnation() == 0 {
            self.elders.begin(now_ms, std::iter::empty());
        }
    }

    /// Why this node, should no other be active by what Redis says, may not be so yet; `None` if it may.
    pub fn waits_for_elders(&self, now_ms: u64) -> Option<String> {
        if self.was_active { None } else { self.elders.waits(now_ms, self.heart.lease_ms(), self.beat_ms) }
    }

    /// Nodes that were here and have no lease any more, by name and mesh address, or an empty text where that is not
    /// known.
    pub fn note_ghosts(&mut self, now_ms: u64, ghosts: &[(String, String)]) {
        for (name, mesh) in ghosts.iter().filter(|(name, _)| *name != self.record.name) {
            self.elders.add(now_ms, name, mesh);
        }
        self.call_elders(now_ms);
    }

    /// Takes note of who is active while this node is not.
    fn note_elders(&mut self, now_ms: u64, records: &[NodeRecord]) {
        if self.was_active {
            return self.elders.clear();
        }
        let new = self.elders.note(now_ms, &self.record.name, records);
        self.actions.extend(new.into_iter().map(|(node, mesh)| Action::Call { node, mesh }));
    }

    fn call_elders(&mut self, now_ms: u64) {
        if !self.was_active {
            let calls = self.elders.calls(now_ms).into_iter();
            self.actions.extend(calls.map(|(node, mesh)| Action::Call { node, mesh }));
        }
    }

    /// A life begins after a fence. Others may have taken over, and those among them that do not reach Redis cannot
    /// know that this node is back.
    fn begin_again(&mut self, now_ms: u64) {
        self.was_active = false;
        let view = self.heart.view();
        let others = view.members.iter().filter(|member| member.name != self.record.name);
        let active = others.filter(|member| member.state == NodeState::Active);
        self.elders.begin(now_ms, active.map(|member| (&*member.name, &*member.mesh)));
        self.call_elders(now_ms);
    }

    /// It is active again after a fence, if nobody is waited for.
    fn come_back(&mut self, now_ms: u64) {
        if self.returns && self.heart.fenced().is_none() && self.waits_for_elders(now_ms).is_none() {
            self.returns = false;
            self.heart.set_state(NodeState::Active);
            self.next_beat_ms = now_ms;
        }
    }

    /// Why a node that was fenced is not active again yet; `None` if that is not so.
    pub fn waits_to_return(&self, now_ms: u64) -> Option<String> {
        if self.returns { self.waits_for_elders(now_ms) } else { None }
    }

    /// The shards run: so many have to be told of views.
    pub fn serve(&mut self, shards: usize) {
        self.untold = vec![true; shards];
    }

    /// The next step of the node's life. [`Action::StateKnown`] or [`Action::StateUntold`] follows, for the latest one.
    pub fn set_state(&mut self, now_ms: u64, state: NodeState) {
        // A node that was fenced while it was out of the ring, as one that drains is, waits like one that was in it.
        let waits = self.returns || self.waits_for_elders(now_ms).is_some();
        self.returns = state == NodeState::Active && waits;
        self.heart.set_state(if self.returns { NodeState::Joining } else { state });
        self.awaited = Some(state);
        self.next_beat_ms = now_ms;
    }

    /// Renews at once, because what the record says has changed.
    pub fn hurry(&mut self, now_ms: u64) {
        self.next_beat_ms = now_ms;
    }

    /// Whether a shard does not turn. Then the lease is not renewed, by no way: its users are better off with another
    /// node.
    pub fn set_stands(&mut self, stands: bool) {
        if stands && !self.stands {
            tracing::error!("a shard does not turn: this node lets its lease go until it does");
        }
        self.stands = stands;
    }

    /// Whether most of the others do not reach this node, so that it is nobody's home.
    pub fn is_quarantined(&self) -> bool {
        let view = self.heart.view();
        let own = view.member(&self.record.name).filter(|own| own.incarnation == self.heart.incarnation());
        self.was_active
            && self.heart.state() == NodeState::Active
            && own.is_some_and(|own| own.state == NodeState::Joining)
    }

    /// Active nodes that have told of another view than this node works with for long: who, since when, and whether
    /// they are most.
    pub fn differs(&mut self, now_ms: u64) -> Option<(Vec<String>, u64, bool)> {
        let (digest, ..) = self.told?;
        let (view, lease_ms) = (self.heart.view(), self.heart.lease_ms());
        // What the records say of the others' views is as old as the records. A peer that answers for Redis sends none
        // of them while it works with the same view as this node.
        if self.heart.polled_ms().is_none_or(|polled_ms| now_ms.saturating_sub(polled_ms) > lease_ms) {
            self.sight.forget();
            return None;
        }
        self.sight.compare(now_ms, &self.record.name, digest, &view, lease_ms)
    }

    /// How often a node was back in the view in the life in which it had gone from it.
    pub fn flaps(&self) -> u64 {
        self.sight.flaps()
    }

    /// Presence has lost a write, so it has to be written as a whole, under a new incarnation.
    pub fn presence_torn(&mut self) {
        self.heart.presence_torn();
    }

    /// The mesh has news.
    pub fn heard(&mut self, now_ms: u64, news: MeshNews) {
        match news {
            MeshNews::Links { links, .. } => {
                self.heart.mesh_told(now_ms, &links);
                if links.iter().any(|link| link.word == LinkWord::Lost) && self.lacks_redis(now_ms) {
                    self.probe_the_silent(now_ms);
                }
            }
            MeshNews::Memo { node, life, body } => match Memo::decode(&body) {
                Some(memo) => self.memo_came(now_ms, &node, life, memo),
                None => tracing::debug!("node {node} says what this version does not know"),
            },
        }
    }

    /// What a connection to a node's mesh address, asked for at `sent_ms`, came to. Its process has ended when its host
    /// has refused two in a row, a beat apart: a firewall that is just being loaded refuses too.
    pub fn probed(&mut self, now_ms: u64, node: &str, life: u64, sent_ms: u64, refused: bool) {
        // Redis decides who is a member while it can be asked, unless it has no lease of a member that stays.
        let held = || self.keeps(now_ms).is_some_and(|(held, _)| held.iter().any(|name| name == node));
        if self.heart.is_reachable(node) || !(self.lacks_redis(now_ms) || held()) {
            self.refusals.remove(node);
            return;
        }
        if !refused {
            self.refusals.remove(node);
            self.heart.found_dead(now_ms, node, life, None);
            return;
        }
        let (_, since_ms) = match self.refusals.get(node) {
            Some(known) if known.0 == life => *known,
            _ => {
                self.refusals.insert(node.to_owned(), (life, sent_ms));
                return;
            }
        };
        if sent_ms < since_ms.saturating_add(self.beat_ms) {
            return;
        }
        if self.heart.dead_ms(node).is_none() {
            tracing::warn!("the process of node {node} has ended: its host refuses connections to its mesh address");
        }
        self.heart.found_dead(now_ms, node, life, Some(sent_ms));
    }

    /// The members that this node keeps in its view although Redis, which works, has no lease of them: during an outage
    /// they were vouched for, and they are so many that they may serve without it. And since when the first of them has
    /// been missing.
    pub fn keeps(&self, now_ms: u64) -> Option<(Vec<String>, u64)> {
        if self.lacks_redis(now_ms) { None } else { self.heart.held_back(now_ms) }
    }

    /// Says once that this node keeps members, and finds out whether they have ended. Those that are heard write their
    /// leases again.
    fn look_at_the_kept(&mut self, now_ms: u64) {
        let kept = self.keeps(now_ms);
        let Some((names, since_ms)) = kept.filter(|(_, since_ms)| now_ms > since_ms + self.heart.lease_ms()) else {
            self.keeps_said = false;
            return;
        };
        if !std::mem::replace(&mut self.keeps_said, true) {
            tracing::warn!(
                "Redis has had no lease of {} for {} s, and this node keeps them in its view: they may serve without \
                 Redis; start them again, or, if they have ended for good, this node",
                names.join(", "),
                now_ms.saturating_sub(since_ms) / 1_000
            );
        }
        for (node, life, mesh) in self.heart.unheard() {
            if names.contains(&node) {
                self.actions.push_back(Action::Probe { node, life, mesh, sent_ms: now_ms });
            }
        }
    }

    /// Lets time pass and what has happened have its effect. To be called after everything that is told, and when it is
    /// due.
    pub fn look(&mut self, now_ms: u64) {
        if self.lacks_redis(now_ms) && !self.stands {
            self.prove(now_ms);
        }
        let fenced = !self.heart.look(now_ms) && self.heart.incarnation() != 0;
        if fenced && !self.was_fenced {
            self.next_beat_ms = now_ms;
        }
        self.was_fenced = fenced;
        self.come_back(now_ms);
        if now_ms >= self.next_beat_ms {
            // A beat that was missed is not made up for. What is under way from the last one is left alone: it has a
            // bound of its own.
            self.next_beat_ms = now_ms + self.beat_ms;
            self.silent = self.heart.silent(now_ms);
            if !self.stands {
                self.ask_lease(now_ms);
            }
            self.poll(now_ms);
            self.call_elders(now_ms);
            if self.lacks_redis(now_ms) && !fenced && !self.stands {
                self.ask_peers(now_ms);
                self.probe_the_silent(now_ms);
            }
            if !fenced {
                self.look_at_the_kept(now_ms);
            }
            if !self.refusals.is_empty() {
                let unheard = self.heart.unheard();
                self.refusals.retain(|name, _| unheard.iter().any(|(node, ..)| node == name));
            }
        }
        if self.heart.wants_poll() {
            self.poll(now_ms);
        }
    }

    /// Whether Redis has not done for this node itself what it has to, for two beats or by what it answered last.
    fn lacks_redis(&self, now_ms: u64) -> bool {
        let late = now_ms.saturating_sub(self.heart.alone_since_ms()) > 2 * self.beat_ms;
        self.heart.incarnation() != 0 && (late || self.heart.redis_failing_ms().is_some())
    }

    /// Whether this node can have Redis renew for others.
    fn can_renew(&self, now_ms: u64) -> bool {
        self.heart.renews() && now_ms.saturating_sub(self.heart.renewed_sent_ms()) <= 2 * self.beat_ms
    }

    /// The peer that does for this node what needs Redis, if there is one.
    pub(crate) fn helper(&self, now_ms: u64) -> Option<&str> {
        self.peers.helper(now_ms.saturating_sub(3 * self.beat_ms))
    }

    /// Asks peers to renew for this node or to vouch for it. As long as one does all that is needed, it alone is asked.
    fn ask_peers(&mut self, now_ms: u64) {
        let view = self.heart.view();
        self.numbers += 1;
        let number = self.numbers;
        self.record.renewals += 1;
        let record = self.record();
        self.peers.asks(number, now_ms, record.state);
        let restore = self.heart.ask(now_ms) == Ask::Restore;
        let (digest, _) = self.heart.told(now_ms);
        let Some(body) = self.encode(&Memo::Ask { number, record: Box::new(record), restore, digest }) else { return };
        let fresh_ms = now_ms.saturating_sub(3 * self.beat_ms);
        let served = self.heart.held_sent_ms().min(self.heart.viewed_ms()) >= fresh_ms;
        let helper = self.helper(now_ms).filter(|_| served).map(str::to_owned);
        for member in view.members.iter().filter(|member| member.name != self.record.name) {
            let wanted = helper.as_ref().is_none_or(|helper| *helper == member.name);
            if wanted && self.heart.is_reachable(&member.name) {
                let (node, life, body) = (member.name.clone(), member.life(), body.clone());
                self.actions.push_back(Action::Send { node, life, body });
            }
        }
    }

    /// Finds out whether members that the mesh does not hear have ended; again and again, for another process may take
    /// their place.
    fn probe_the_silent(&mut self, now_ms: u64) {
        for (node, life, mesh) in self.heart.unheard() {
            self.actions.push_back(Action::Probe { node, life, mesh, sent_ms: now_ms });
        }
    }

    /// Makes use of what peers have answered.
    fn prove(&mut self, now_ms: u64) {
        let view = self.heart.view();
        self.peers.keep_members(&view);
        if view.member(&self.record.name).is_none() || self.heart.hears_stranger() {
            return;
        }
        let since_ms = self.heart.held_sent_ms().min(self.heart.viewed_ms());
        let dead_ms = |node: &str| self.heart.dead_ms(node);
        let (digest, _) = self.heart.told(now_ms);
        if let Some(sent_ms) = self.peers.proof(&self.record.name, &view, digest, since_ms, now_ms, dead_ms) {
            // In place of one that has ended another may be started, with a Redis that it reaches.
            let sent_ms = sent_ms.min(self.heart.oldest_dead_ms().unwrap_or(sent_ms));
            self.heart.vouched(sent_ms, now_ms);
        }
    }

    /// A peer says something.
    fn memo_came(&mut self, now_ms: u64, node: &str, life: u64, memo: Memo) {
        match memo {
            Memo::Ask { number, record, restore, digest } => {
                if record.name != node || record.check().is_err() || !self.heart.look(now_ms) {
                    return;
                }
                let favour = Box::new(Favour { life, number, digest, restore, record: *record });
                if !self.can_renew(now_ms) {
                    return self.vouch(now_ms, &favour, false);
                }
                // One that asks again before it is answered is answered for what it asked first.
                if self.favours.insert(node.to_owned()) {
                    self.ask(now_ms, Request::RenewFor(favour));
                }
            }
            Memo::Renewed { number, renewal, keeps, digest, seen } => {
                let Some((sent_ms, state)) = self.peers.asked(number) else { return };
                let renewal = Renewal::from(renewal);
                if self.heart.renewed_for(sent_ms, now_ms, renewal) {
                    self.actions.push_back(Action::Restored);
                }
                match renewal {
                    Renewal::Renewed => self.peers.helped(node, sent_ms),
                    Renewal::LostToNobody | Renewal::LostToAnother => self.next_beat_ms = now_ms,
                }
                if keeps {
                    self.peers.vouches(node, life, digest, sent_ms, false);
                }
                self.see(sent_ms, now_ms, seen);
                self.state_told(now_ms, state);
            }
            Memo::Vouched { number, without, digest, seen } => {
                let Some((sent_ms, _)) = self.peers.asked(number) else { return };
                self.peers.vouches(node, life, digest, sent_ms, without);
                self.see(sent_ms, now_ms, seen);
            }
            Memo::Write { number, writes } => {
                if self.can_renew(now_ms) && writes.len() <= WRITES_MAX {
                    self.actions.push_back(Action::WriteFor { node: node.to_owned(), life, number, writes });
                }
            }
            Memo::Look => self.poll_anew(now_ms),
            Memo::Wrote { number, ends } => self.actions.push_back(Action::Wrote { number, ends }),
        }
    }

    /// The peer to write presence through and the life it is in, if this node cannot write and another can for it.
    pub fn writes_through(&self, now_ms: u64) -> Option<(String, u64)> {
        let helper = self.helper(now_ms).filter(|_| self.lacks_redis(now_ms))?;
        let view = self.heart.view();
        view.member(helper).map(|member| (member.name.clone(), member.life()))
    }

    /// A view that a peer had from Redis, told in answer to a question of `sent_ms`.
    fn see(&mut self, sent_ms: u64, now_ms: u64, seen: Option<Seen>) {
        let Some(Seen { age_ms, digest, members }) = seen else { return };
        let at_ms = sent_ms.saturating_sub(age_ms);
        match members {
            Some(members) => _ = self.heart.viewed(at_ms, now_ms, members),
            None if digest == self.heart.told(now_ms).0 => self.heart.view_holds(at_ms, now_ms),
            None => {}
        }
    }

    /// The view that this node was told of and its digest, for one that was told of the view with the digest `theirs`.
    /// However old it is: where nobody has Redis, the latest view that anybody was told of is that of all.
    fn seen(&self, now_ms: u64, theirs: u64) -> (u64, Seen) {
        let age_ms = now_ms.saturating_sub(self.heart.viewed_ms());
        let (digest, members) = self.heart.told(now_ms);
        let members = (digest != theirs).then_some(members);
        (digest, Seen { age_ms, digest, members })
    }

    /// Keeps a peer in the view for a lease time, for it could not renew, and says so. `refused`: Redis would not renew
    /// for this node either.
    fn vouch(&mut self, now_ms: u64, favour: &Favour, refused: bool) {
        let Favour { life, number, digest, record, .. } = favour;
        let without = self.lacks_redis(now_ms);
        // Others that have Redis drop whoever has no lease there, so that to promise anew to keep it would go on for
        // ever. Unless Redis takes the lease from nobody, for where it belongs nothing is written: then none of the
        // others drops it as long as all of them are asked.
        if !refused && !self.heart.has_lease(&record.name) {
            return;
        }
        if self.heart.vouch(now_ms, &record.name, *life, without) {
            let (digest, seen) = self.seen(now_ms, *digest);
            let seen = Some(seen);
            self.send(&record.name, *life, &Memo::Vouched { number: *number, without, digest, seen });
        }
    }

    fn send(&mut self, node: &str, life: u64, memo: &Memo) {
        if let Some(body) = self.encode(memo) {
            self.actions.push_back(Action::Send { node: node.to_owned(), life, body });
        }
    }

    /// As bytes; what is longer than any node takes is dropped and counted.
    fn encode(&mut self, memo: &Memo) -> Option<Vec<u8>> {
        let body = memo.encode();
        self.memos_too_long += u64::from(body.is_none());
        body
    }

    /// Words to peers that were not sent because they were longer than any node takes.
    pub fn memos_too_long(&self) -> u64 {
        self.memos_too_long
    }

    /// Redis was asked to renew the lease of a peer.
    fn favour_done(&mut self, now_ms: u64, favour: &Favour, reply: &Reply) {
        let Favour { life, number, digest, record, .. } = favour;
        self.favours.remove(&record.name);
        match reply {
            Reply::Renewed(renewal) => {
                let keeps = *renewal == Renewal::Renewed && self.heart.vouch(now_ms, &record.name, *life, false);
                let (digest, seen) = self.seen(now_ms, *digest);
                let (renewal, seen) = ((*renewal).into(), Some(seen));
                let memo = Memo::Renewed { number: *number, renewal, keeps, digest, seen };
                self.send(&record.name, *life, &memo);
            }
            _ => self.vouch(now_ms, favour, true),
        }
    }

    /// What to do now.
    pub fn next_action(&mut self) -> Option<Action> {
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
        self.record.renewals += 1;
        // Whether it is fenced is found out here, and the record says so.
        let ask = self.heart.ask(now_ms);
        if self.heart.fenced().is_some() && self.heart.state() == NodeState::Active {
            self.returns = true;
            self.heart.set_state(NodeState::Joining);
        }
        let mut record = self.record();
        // From the first moment of a new incarnation on, until all is written again.
        record.mending |= ask == Ask::Acquire;
        let request = match ask {
            Ask::Renew => Request::Renew(record),
            Ask::Restore => Request::Restore(record),
            Ask::Acquire => Request::Acquire(record),
        };
        self.ask(now_ms, request);
    }

    /// Asks for the nodes, unless that is under way or there is no lease yet.
    pub fn poll(&mut self, now_ms: u64) {
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
    pub fn forget_questions(&mut self) {
        (self.leasing, self.polling, self.agreeing) = (false, None, false);
        self.favours.clear();
    }

    /// What came of a question.
    pub fn answered(&mut self, now_ms: u64, question: Question, reply: Reply) {
        let Question { number, sent_ms, request } = question;
        match request {
            Request::Renew(record) | Request::Restore(record) => {
                self.leasing = false;
                match reply {
                    Reply::Renewed(renewal) => {
                        if self.heart.renewed(sent_ms, now_ms, renewal) {
                            self.actions.push_back(Action::Restored);
                        }
                        if renewal != Renewal::Renewed {
                            tracing::warn!(?renewal, "the lease is gone from Redis");
                            self.next_beat_ms = now_ms;
                        }
                    }
                    _ => self.renew_failed(now_ms),
                }
                self.state_told(now_ms, record.state);
            }
            Request::RenewFor(favour) => self.favour_done(now_ms, &favour, &reply),
            Request::Acquire(record) => {
                self.leasing = false;
                match reply {
                    Reply::Acquired(incarnation) => {
                        self.begins(now_ms);
                        let life = self.heart.life();
                        if self.heart.acquired(sent_ms, now_ms, incarnation) {
                            if life != 0 && self.heart.life() != life {
                                self.begin_again(now_ms);
                            }
                            self.polling = None;
                            self.poll(now_ms);
                            self.actions.push_back(Action::Reincarnated(incarnation));
                        }
                    }
                    Reply::NameTaken => self.heart.refused(now_ms),
                    _ => self.renew_failed(now_ms),
                }
                self.state_told(now_ms, record.state);
            }
            Request::Poll if self.polling != Some(number) => {}
            Request::Poll => {
                self.polling = None;
                match reply {
                    Reply::Polled(records) => {
                        self.note_elders(now_ms, &records);
                        self.heart.polled(sent_ms, now_ms, records);
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

    fn renew_failed(&mut self, now_ms: u64) {
        self.heart.renew_failed(now_ms);
        if self.serves_alone {
            self.heart.vouched(now_ms, now_ms);
        }
        // Peers are asked at once, and not a beat later.
        if self.helper(now_ms).is_none() && !self.was_fenced && self.heart.look(now_ms) {
            self.ask_peers(now_ms);
        }
    }

    /// Redis was told this state, or could not be told it. One that is new by now follows at once.
    fn state_told(&mut self, now_ms: u64, state: NodeState) {
        if state != self.heart.state() {
            self.next_beat_ms = now_ms;
        }
        if self.awaited == Some(state) {
            let failing = self.heart.redis_failing_ms().is_some() && self.helper(now_ms).is_none();
            if state == NodeState::Draining && failing {
                // Clients are not kept waiting for a Redis that does not work; the state is told when it does.
                self.awaited = None;
                self.actions.push_back(Action::StateUntold);
                return;
            }
            self.poll_anew(now_ms);
            if state == NodeState::Draining {
                let view = self.heart.view();
                for member in &view.members {
                    if member.name != self.record.name {
                        self.send(&member.name, member.life(), &Memo::Look);
                    }
                }
            }
        }
    }

    /// Asks for the nodes as they are now: once more if that is under way.
    fn poll_anew(&mut self, now_ms: u64) {
        self.poll_again = self.polling.is_some();
        self.poll(now_ms);
    }

    /// Tells the shards of a view that differs in what matters: `tell` is given shard, view and life, and says whether
    /// there was room. A shard whose queue is full is told the next time.
    pub fn tell_shards(&mut self, mut tell: impl FnMut(usize, &Arc<View>, u64) -> bool) {
        let view = self.heart.view();
        let (incarnation, life) = (self.heart.incarnation(), self.heart.life());
        let now = (view.digest, view.epoch, incarnation);
        if self.told != Some(now) {
            self.told = Some(now);
            self.untold.fill(true);
            let members: Vec<String> =
                view.members.iter().map(|member| format!("{} {}", member.name, state_word(member.state))).collect();
            for node in self.sight.changed(&view) {
                tracing::warn!("node {node} is back in the view, in the life in which it had gone");
            }
            tracing::info!("view {:016x}, epoch {}: {}", view.digest, view.epoch, members.join(", "));
        }
        for (shard, untold) in self.untold.iter_mut().enumerate() {
            *untold = *untold && !tell(shard, &view, life);
        }
        // Out of the ring and in it again are two turns, so that the view behind them is not taken for the one before.
        let quarantined = self.is_quarantined();
        if std::mem::replace(&mut self.was_quarantined, quarantined) != quarantined {
            self.heart.was_turned();
        }
        let own = view.member(&self.record.name).filter(|own| own.incarnation == incarnation);
        self.was_active |= own.is_some_and(|own| own.state == NodeState::Active);
        let is_known = |state: &mut NodeState| own.is_some_and(|own| own.state == *state);
        if !self.untold.contains(&true) && self.awaited.take_if(is_known).is_some() {
            self.actions.push_back(Action::StateKnown);
        }
    }
}

#[cfg(test)]
mod tests;
