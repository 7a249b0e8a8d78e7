//! Durable groups in a simulated cluster whose nodes share a store: clients that do what `docs/groups.md` asks of them,
//! on nodes that come and go and lose each other.
//!
//! 1. Positions of a log rise, and no message is in it twice.
//! 2. A message that was answered SENT 1 is in the log.
//! 3. What a session is given as it is sent is in the log at that position, comes once, and rises.
//! 4. After the answer to its leave a session gets nothing, until its user asks to join again.
//! 5. When all is well, each session of a member has everything that was stored since it is in the group: it was
//!    given it, or was told of a gap, by a number or by HEADS, and has pulled it.
//! 6. When all is well, sessions of users who are no members get nothing, whichever node they are at.
//!
//! The same holds while the master that has the groups is lost and a replica takes its place, and what was refused
//! meanwhile is sent again.

use super::Run;
use super::scenario::{Scenario, Trouble};
use super::shared_store::SharedStore;
use crate::io::sim::{Faults, Rng, SharedWorld};
use crate::mesh::MESH_PROTOCOL;
use crate::simulation::Bug;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::ops::Range;
use trunkline_proto::prost::Message as _;
use trunkline_proto::{
    Code, FRAME_BYTES_MAX_LIMIT, Frame, Header, Heads, Kind, Login, Outcome, Sync, SyncOk, VERSION, decode, encode,
    encode_message, flags,
};

const GROUPS: [u64; 3] = [5, 6, 7];
const USERS: u64 = 5;
/// Sessions of each user; only the first one joins and leaves.
const SESSIONS: usize = 2;
const WINDOW_BYTES: usize = 1 << 20;
/// How often a message that was refused is sent again.
const RETRIES_MAX: u32 = 10;

/// What a session knows of a group.
#[derive(Debug, Default)]
struct Standing {
    /// It has everything from `base` up to `position`.
    base: u64,
    position: u64,
    /// The number of the latest message that it was given; 0 if it does not know.
    number: u16,
    /// Where it stood when the first message came, whose number has nothing to compare it with: HEADS tells if it was
    /// not the first.
    doubt: Option<u64>,
    /// The first message was not the first, and the page under way begins behind what lies before it.
    again: Option<u64>,
    /// It knows that it is in the group.
    knows: bool,
    /// It has been told that there is something up to there.
    head: u64,
    syncing: bool,
    /// Ids of messages, and those that came as they were sent, with their stamps.
    has: BTreeSet<u64>,
    live: BTreeMap<u64, u64>,
    /// The request without an answer: its id, and whether it is to join.
    open: Option<(u64, bool)>,
    /// The id of a request about attention without an answer.
    asks_attention: Option<u64>,
    /// It was told that it has left.
    is_out: bool,
}

impl Standing {
    /// The first message may not have been the first: what lies before it is asked for.
    fn go_back(&mut self) {
        match self.doubt.take() {
            Some(from) if self.syncing => self.again = Some(from),
            Some(from) => self.position = self.position.min(from),
            None => {}
        }
    }

    /// The page under way is over.
    fn page_over(&mut self) {
        self.syncing = false;
        if let Some(from) = self.again.take() {
            (self.head, self.position) = (self.head.max(self.position), self.position.min(from));
        }
    }
}

#[derive(Debug)]
struct Session {
    user: u64,
    asks: bool,
    socket: Option<usize>,
    is_open: bool,
    input: Vec<u8>,
    next_us: u64,
    heard_us: u64,
    groups: BTreeMap<u64, Standing>,
    /// Messages that are to be sent again.
    refused: Vec<u64>,
}

/// A message.
#[derive(Debug)]
struct Said {
    group: u64,
    outcome: Option<Outcome>,
    /// Sent when all was well.
    proves: bool,
    /// How often it was sent again.
    again: u32,
}

/// All clients, and what they have said.
pub(super) struct Members {
    world: SharedWorld,
    rng: Rng,
    doors: Vec<SocketAddr>,
    sessions: Vec<Session>,
    said: BTreeMap<u64, Said>,
    next_id: u64,
    /// They say nothing any more.
    quiet: bool,
    /// They send again what was refused as overloaded.
    retries: bool,
    syncs: u64,
    gaps: u64,
}

impl Members {
    pub(super) fn new(seed: u64, world: &SharedWorld, doors: Vec<SocketAddr>) -> Self {
        let mut rng = Rng::new(seed ^ 0x06A0_0B5E);
        let mut session = |user, asks| Session {
            user,
            asks,
            socket: None,
            is_open: false,
            input: Vec::new(),
            next_us: 3_000_000 + rng.below(500_000),
            heard_us: 0,
            groups: BTreeMap::new(),
            refused: Vec::new(),
        };
        let sessions = (1..=USERS).flat_map(|user| (0..SESSIONS).map(move |at| (user, at == 0)));
        let sessions = sessions.map(|(user, asks)| session(user, asks)).collect();
        let (said, world) = (BTreeMap::new(), world.clone());
        Members { world, rng, doors, sessions, said, next_id: 0, quiet: false, retries: false, syncs: 0, gaps: 0 }
    }

    pub(super) fn next_due_us(&self) -> u64 {
        self.sessions.iter().map(|session| session.next_us).min().unwrap_or(u64::MAX)
    }

    pub(super) fn step(&mut self) {
        let now_us = self.world.borrow().now_us();
        self.world.borrow_mut().take_stirred();
        for at in 0..self.sessions.len() {
            self.read(at, now_us);
            if self.sessions[at].next_us <= now_us {
                let pace_us = if self.quiet { 1_000_000 } else { 300_000 };
                self.sessions[at].next_us = now_us + self.rng.within(pace_us / 2, pace_us);
                self.act(at, now_us);
            }
        }
    }

    fn write(&mut self, at: usize, bytes: &[u8]) {
        if let Some(socket) = self.sessions[at].socket {
            self.world.borrow_mut().client_write(socket, bytes);
        }
    }

    fn read(&mut self, at: usize, now_us: u64) {
        let Some(socket) = self.sessions[at].socket else { return };
        let read = self.world.borrow_mut().client_read(socket, usize::MAX);
        let session = &mut self.sessions[at];
        if !read.bytes.is_empty() {
            session.heard_us = now_us;
        }
        let mut input = std::mem::take(&mut session.input);
        input.extend_from_slice(&read.bytes);
        let (mut begin, mut over) = (0, read.reset || read.end);
        while let Some((frame, len)) = decode(&input[begin..], FRAME_BYTES_MAX_LIMIT).expect("a frame") {
            over |= frame.known() == Some(Kind::Bye);
            self.frame(at, &frame);
            begin += len;
        }
        input.drain(..begin);
        self.sessions[at].input = input;
        if over {
            self.hang_up(at);
        }
    }

    fn hang_up(&mut self, at: usize) {
        let session = &mut self.sessions[at];
        if let Some(socket) = session.socket.take() {
            self.world.borrow_mut().client_close(socket);
        }
        (session.is_open, session.input) = (false, Vec::new());
        session.groups.clear();
        session.refused.clear();
    }

    fn log_in(&mut self, at: usize, now_us: u64) {
        let door = *self.rng.pick(&self.doors);
        let Some(socket) = self.world.borrow_mut().connect_at(door, WINDOW_BYTES) else { return };
        let session = &mut self.sessions[at];
        (session.socket, session.heard_us) = (Some(socket), now_us);
        let login = Login {
            version: VERSION,
            user: session.user,
            device: format!("device-{}", u8::from(session.asks)),
            ephemeral: true,
            ..Login::default()
        };
        let mut bytes = Vec::new();
        encode_message(&mut bytes, Kind::Login, 0, &login);
        self.write(at, &bytes);
    }

    fn act(&mut self, at: usize, now_us: u64) {
        let Session { socket, is_open, heard_us, asks, user, .. } = self.sessions[at];
        if socket.is_none() {
            return self.log_in(at, now_us);
        }
        if now_us - heard_us > 6_000_000 {
            return self.hang_up(at);
        }
        if !is_open {
            return;
        }
        let mut bytes = Vec::new();
        encode(&mut bytes, &Header { kind: Kind::Ping, flags: 0, aux: 7, id: 0, peer: 0, stamp: 0 }, &[]);
        for id in std::mem::take(&mut self.sessions[at].refused) {
            let said = self.said.get_mut(&id).expect("it was noted");
            (said.outcome, said.again) = (None, said.again + 1);
            let (kind, of_frame, peer) = (Kind::GroupSend, flags::ACK | flags::RETRY, said.group);
            encode(&mut bytes, &Header { kind, flags: of_frame, aux: 0, id, peer, stamp: 0 }, b"hello");
        }
        let group = *self.rng.pick(&GROUPS);
        let standing = self.sessions[at].groups.entry(group).or_default();
        let dice = self.rng.below(100);
        if !self.quiet && standing.open.is_none() {
            let join = dice < 80 && !standing.knows;
            if asks && (join || dice >= 92) {
                self.next_id += 1;
                let (id, join) = (self.next_id, join || !standing.knows);
                standing.open = Some((id, join));
                let kind = if join { Kind::GroupJoin } else { Kind::GroupLeave };
                standing.is_out &= !join;
                encode(&mut bytes, &Header { kind, flags: 0, aux: 0, id, peer: group, stamp: 0 }, &[]);
                // Other sessions of the user may get what comes from now on, and are not told that they do.
                for (_, other) in
                    self.sessions.iter_mut().enumerate().filter(|(other, session)| *other != at && session.user == user)
                {
                    let standing = other.groups.entry(group).or_default();
                    standing.is_out &= !join;
                    standing.knows = false;
                    // Who is taken out is not told any more of what it has missed before.
                    standing.go_back();
                }
            } else if standing.knows && dice < 60 {
                self.say(&mut bytes, group, false);
            } else if standing.knows && dice < 70 && standing.asks_attention.is_none() {
                self.next_id += 1;
                standing.asks_attention = Some(self.next_id);
                let kind = if dice < 66 { Kind::GroupJoin } else { Kind::GroupLeave };
                let header = Header { kind, flags: 0, aux: 1, id: self.next_id, peer: group, stamp: 0 };
                encode(&mut bytes, &header, &[]);
            }
        }
        self.write(at, &bytes);
        self.catch_up(at);
    }

    fn say(&mut self, out: &mut Vec<u8>, group: u64, proves: bool) {
        self.next_id += 1;
        let id = self.next_id;
        self.said.insert(id, Said { group, outcome: None, proves, again: 0 });
        let header = Header { kind: Kind::GroupSend, flags: flags::ACK, aux: 0, id, peer: group, stamp: 0 };
        encode(out, &header, b"hello");
    }

    /// Asks for what is missing.
    fn catch_up(&mut self, at: usize) {
        let mut bytes = Vec::new();
        let groups = &mut self.sessions[at].groups;
        // One at a time.
        if groups.values().any(|standing| standing.syncing) {
            return;
        }
        let is_behind = |standing: &Standing| standing.knows && standing.head > standing.position;
        if let Some((group, standing)) = groups.iter_mut().find(|(_, standing)| is_behind(standing)) {
            standing.syncing = true;
            self.syncs += 1;
            let sync = Sync { after_stamp: standing.position, since_ms: 0, limit: 0, group: *group };
            encode_message(&mut bytes, Kind::Sync, 1, &sync);
        }
        self.write(at, &bytes);
    }

    fn frame(&mut self, at: usize, frame: &Frame<'_>) {
        match frame.known().expect("a known kind") {
            Kind::LoginOk => self.sessions[at].is_open = true,
            Kind::GroupOk => self.joined_or_left(at, frame),
            Kind::GroupDeliver => self.delivered(at, frame),
            Kind::Heads => {
                for head in Heads::decode(frame.body).expect("heads").heads {
                    let standing = self.sessions[at].groups.entry(head.group).or_default();
                    standing.knows = true;
                    standing.head = standing.head.max(head.stamp);
                    standing.go_back();
                    if head.seq == 0 {
                        standing.number = 0;
                    }
                }
            }
            Kind::SyncOk => {
                let sync_ok = SyncOk::decode(frame.body).expect("a body");
                let Some(standing) = self.sessions[at].groups.get_mut(&sync_ok.group) else { return };
                standing.position = standing.position.max(sync_ok.next_stamp);
                if sync_ok.complete && sync_ok.last >= standing.head {
                    standing.head = standing.head.min(standing.position);
                }
                standing.page_over();
            }
            Kind::Sent => {
                let said = self.said.get_mut(&frame.id).expect("SENT for a message that somebody sent");
                let outcome = Outcome::from_u16(frame.aux).expect("a known outcome");
                assert_eq!(said.outcome.replace(outcome), None, "message {} has two answers", frame.id);
                let stored = outcome == Outcome::Stored;
                assert!(stored || matches!(outcome, Outcome::Denied | Outcome::Overloaded), "{outcome:?}");
                let standing = self.sessions[at].groups.entry(said.group).or_default();
                if stored {
                    // Its number is not known, so what is before it is asked for.
                    standing.has.insert(frame.id);
                    standing.head = standing.head.max(frame.stamp);
                } else if self.retries && outcome == Outcome::Overloaded && said.again < RETRIES_MAX {
                    self.sessions[at].refused.push(frame.id);
                }
            }
            Kind::Error => {
                let code = Code::from_u16(frame.aux).expect("a known code");
                let standing = self.sessions[at].groups.entry(frame.peer).or_default();
                if standing.asks_attention.take_if(|id| *id == frame.id).is_some() {
                    assert!(matches!(code, Code::NotAMember | Code::Overloaded), "{code:?} for attention");
                } else if standing.open.is_some_and(|(id, _)| id == frame.id) {
                    // It may have taken effect all the same.
                    assert_eq!(code, Code::Overloaded, "a join or leave");
                    standing.open = None;
                } else if code == Code::NotAMember || code == Code::Overloaded || code == Code::ServiceUnavailable {
                    // A page that was asked for.
                    let waits = self.sessions[at].groups.values_mut().filter(|standing| standing.syncing);
                    waits.for_each(|standing| {
                        standing.page_over();
                        standing.knows &= code != Code::NotAMember;
                    });
                } else {
                    assert_eq!(code, Code::RateLimited);
                }
            }
            _ => {}
        }
        self.catch_up(at);
    }

    fn joined_or_left(&mut self, at: usize, frame: &Frame<'_>) {
        let standing = self.sessions[at].groups.entry(frame.peer).or_default();
        if standing.asks_attention.take_if(|id| *id == frame.id).is_some() {
            // What was before is not given to it.
            standing.head = standing.head.max(frame.stamp);
            return;
        }
        let (id, join) = standing.open.take().expect("something was asked");
        assert_eq!(id, frame.id);
        if !join {
            *standing = Standing { is_out: true, ..Standing::default() };
            return;
        }
        if !standing.knows {
            (standing.base, standing.position, standing.knows) = (frame.stamp, frame.stamp, true);
            standing.head = standing.head.max(frame.stamp);
        }
    }

    fn delivered(&mut self, at: usize, frame: &Frame<'_>) {
        let Frame { id, peer: group, aux: number, stamp, flags: of_frame, .. } = *frame;
        let user = self.sessions[at].user;
        let standing = self.sessions[at].groups.entry(group).or_default();
        standing.has.insert(id);
        if of_frame & flags::REPLAY != 0 {
            standing.position = standing.position.max(stamp);
            return;
        }
        assert!(!standing.is_out, "user {user} got message {id} of {group} after the answer to its leave");
        let last = standing.live.values().next_back().copied().unwrap_or(0);
        let rises = standing.live.values().all(|before| *before < stamp);
        assert!(rises, "user {user} got message {id} of {group} at {stamp} behind {last}");
        assert_eq!(standing.live.insert(id, stamp), None, "user {user} got message {id} of {group} twice");
        let is_first = standing.number == 0;
        let follows = standing.knows && (is_first || number == standing.number + 1);
        // What lies before it was all given, or is asked for.
        if follows && !standing.syncing && standing.head <= standing.position {
            if is_first {
                standing.doubt.get_or_insert(standing.position);
            }
            standing.position = standing.position.max(stamp);
        } else {
            self.gaps += 1;
        }
        standing.head = standing.head.max(stamp);
        (standing.knows, standing.number) = (true, number);
    }

    /// Each session of a member says something, now that all is well.
    fn prove(&mut self, store: &mut SharedStore) {
        for group in GROUPS {
            let members = store.members(group);
            for at in 0..self.sessions.len() {
                if self.sessions[at].is_open && members.contains(&self.sessions[at].user) {
                    let mut bytes = Vec::new();
                    self.say(&mut bytes, group, true);
                    self.write(at, &bytes);
                }
            }
        }
    }

    /// Panics unless the log and what sessions have is as it has to be. Returns how many messages were looked for. Who
    /// was given nothing since its user has joined on another session does not know of the group, unless `all_know`.
    fn check(&self, store: &mut SharedStore, all_know: bool) -> u64 {
        let mut looked_for = 0;
        for group in GROUPS {
            let (log, members) = (store.log(group), store.members(group));
            assert!(log.is_sorted_by(|before, after| before.2 < after.2), "positions of group {group}");
            let ids: BTreeMap<u64, u64> = log.iter().map(|(_, id, stamp)| (*id, *stamp)).collect();
            assert_eq!(ids.len(), log.len(), "a message is in the log of group {group} twice");
            for (id, said) in self.said.iter().filter(|(_, said)| said.group == group) {
                let stored = said.outcome == Some(Outcome::Stored);
                assert!(!stored || ids.contains_key(id), "message {id} of group {group} is gone: {said:?}");
                assert!(stored || !said.proves, "message {id} of group {group} was not stored: {said:?}");
            }
            for session in self.sessions.iter().filter(|session| session.is_open) {
                let user = session.user;
                let nothing = Standing::default();
                let standing = session.groups.get(&group).unwrap_or(&nothing);
                for (id, stamp) in &standing.live {
                    assert_eq!(ids.get(id), Some(stamp), "user {user} got message {id} of group {group}");
                    let proves = self.said[id].proves;
                    assert!(!proves || members.contains(&user), "user {user}, no member, got message {id} of {group}");
                }
                assert!(
                    !all_know || standing.knows || !members.contains(&user),
                    "user {user} knows nothing of {group}"
                );
                if members.contains(&user) && standing.knows {
                    for (id, stamp) in ids.iter().filter(|(_, stamp)| **stamp > standing.base) {
                        looked_for += 1;
                        let has = standing.has.contains(id);
                        assert!(has, "user {user} never got message {id} of group {group} at {stamp}: {standing:?}");
                    }
                }
            }
        }
        looked_for
    }
}

fn scenario(seed: u64) -> Scenario {
    // Nodes come and go as in those of rooms.
    let mut scenario = Scenario::rooms(seed);
    if seed % 2 == 1 {
        // Groups are large, and now and then not.
        scenario.limits.groups.passive_above = 2;
    }
    scenario
}

/// A whole run. Returns how many messages sessions had to have, and what happened.
fn run(scenario: Scenario) -> super::super::Report {
    run_with(scenario, Vec::new())
}

/// The same, with times at which the master that has the groups is lost.
fn run_with(scenario: Scenario, fail_overs: Vec<Range<u64>>) -> super::super::Report {
    let seed = scenario.seed;
    let (active_ms, settle_ms) = (scenario.active_ms, scenario.settle_ms());
    let mut run = Run::of(scenario, false);
    run.crowd.mood = super::Mood::Leaving;
    let mut members = Members::new(seed, &run.world, run.fleet.doors());
    members.retries = !fail_overs.is_empty();
    let mut store = SharedStore::new(seed);
    store.fail_overs = fail_overs;
    run.fleet.store = Some(store);
    run.members = Some(members);
    run.run_for(active_ms);
    let troubles_end_us = run.now_us() + 120_000_000;
    run.run_until(troubles_end_us, |run| run.fleet.is_well());
    assert!(run.fleet.is_well(), "a node does not come back");
    run.world.borrow_mut().faults = Faults::none();
    run.members.as_mut().expect("some").quiet = true;
    run.run_for(settle_ms);
    run.fleet.check_one_view();
    let mut members = run.members.take().expect("some");
    let mut looked_for = members.check(run.fleet.store.as_mut().expect("one"), false);
    members.prove(run.fleet.store.as_mut().expect("one"));
    run.members = Some(members);
    // Those who pay no attention are told in 5 s.
    run.run_for(8_000);
    let members = run.members.take().expect("some");
    looked_for += members.check(run.fleet.store.as_mut().expect("one"), true);
    let outcomes = |outcome| members.said.values().filter(|said| said.outcome == Some(outcome)).count() as u64;
    let counts = [
        ("looked for", looked_for),
        ("stored", outcomes(Outcome::Stored)),
        ("failed", outcomes(Outcome::Overloaded)),
        ("syncs", members.syncs),
        ("gaps", members.gaps),
        ("stale", run.fleet.store.as_ref().map_or(0, |store| store.stale)),
        ("stored unheard", run.fleet.store.as_ref().map_or(0, |store| store.done_unheard)),
        ("not done", run.fleet.store.as_ref().map_or(0, |store| store.not_done)),
        ("sent again", members.said.values().map(|said| u64::from(said.again)).sum()),
    ];
    let counts = counts.map(|(name, count)| (name.to_owned(), count)).into();
    super::super::Report { trace_hash: looked_for, counts }
}

/// Nodes to which nothing happens, or whatever happens otherwise, and a store whose master is lost now and then.
fn failing_over(seed: u64) -> super::super::Report {
    let mut rng = Rng::new(seed ^ 0xFA11_04E5);
    let mut scenario = scenario(seed / 2);
    if seed.is_multiple_of(2) {
        scenario.troubles.clear();
    }
    let times = (4_000..scenario.active_ms - 2_000).step_by(3_000);
    let fail_overs = times.map(|at_ms| {
        let begin_us = (at_ms + rng.below(1_000)) * 1_000;
        begin_us..begin_us + rng.within(50_000, 1_500_000)
    });
    let fail_overs = fail_overs.collect();
    run_with(scenario, fail_overs)
}

/// Whether some of the first 200 seeds catches a bug. What it does is made up for in most of them.
fn is_caught(bug: Bug, run: impl Fn(u64) -> super::super::Report) -> bool {
    (0..4).any(|part| super::super::seed_that_catches(bug, |seed| run(50 * part + seed)).is_some())
}

#[test]
fn groups_hold_while_the_store_fails_over() {
    super::super::try_so_many_seeds(
        "TRUNKLINE_CLUSTER_FAILOVER_SEED",
        "groups_hold_while_the_store",
        20,
        |seed, _| {
            let report = failing_over(seed);
            assert!(report.counts["looked for"] > 100, "{:?}", report.counts);
            report
        },
        &["failed", "gaps", "syncs", "stored unheard", "not done", "sent again"],
    );
}

#[test]
fn a_message_of_which_nobody_knows_that_it_is_in_the_log_is_caught() {
    // Nothing else happens that would have members look at the log.
    assert!(is_caught(Bug::LogTakenForKnown, |seed| failing_over(2 * seed)));
}

#[test]
fn groups_hold_while_nodes_come_and_go() {
    super::super::try_so_many_seeds(
        "TRUNKLINE_CLUSTER_GROUPS_SEED",
        "groups_hold_while_nodes",
        150,
        |seed, _| {
            let report = run(scenario(seed));
            assert!(report.counts["looked for"] > 100, "{:?}", report.counts);
            report
        },
        &["failed", "gaps", "syncs"],
    );
}

#[test]
fn a_cluster_to_which_nothing_happens_gives_each_message_to_all_members() {
    let mut quiet = Scenario::quiet(3, 2, MESH_PROTOCOL);
    quiet.active_ms = 20_000;
    let report = run(quiet);
    assert_eq!(report.counts["failed"], 0, "{:?}", report.counts);
    assert!(report.counts["looked for"] > 100, "{:?}", report.counts);
}

#[test]
fn a_store_that_takes_messages_from_a_home_of_before_is_caught() {
    assert!(is_caught(Bug::StaleHomeStores, |seed| run(scenario(seed))));
}

#[test]
fn a_leave_that_other_nodes_are_not_told_of_is_caught() {
    let caught = super::super::seed_that_catches(Bug::MemberUntold, |seed| {
        let mut scenario = scenario(seed);
        // A change of the view would mend it.
        scenario.troubles.retain(|(_, trouble)| matches!(trouble, Trouble::Pause { .. }));
        run(scenario)
    });
    assert!(caught.is_some());
}
