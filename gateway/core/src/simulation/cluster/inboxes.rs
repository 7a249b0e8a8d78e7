//! Inboxes in a simulated cluster whose nodes share a store: senders that send again what was not taken, and devices
//! that come to any node, acknowledge some of what they get, and go, while nodes come and go and lose each other.
//!
//! 1. A message that was answered SENT 1 comes to each device of its recipient that was registered before it was sent,
//!    whatever becomes of the recipient's home.
//! 2. On a connection each message has one answer.
//! 3. Positions of an inbox rise, and no message is in it twice.
//! 4. A session gets a message but once without AGAIN and REPLAY, and nothing that is for somebody else.
//! 5. When all is well, each message comes to an end, however often it was refused.
//! 6. The end of the backlog is told but once in a session, unless something was lost; which is told only to users of
//!    whom something counts as delivered, and was given up for another device.
//! 7. A home of an earlier view adds nothing to a log that a later one has claimed, and nobody misses anything where
//!    claims are answered that too few replicas have.
//! 8. What senders write to groups is in the log of the group once, and there if it was answered SENT 1.
//!
//! `TRUNKLINE_CLUSTER_INBOX_SEED=7 cargo test -p trunkline-core --lib what_is_stored_comes -- --nocapture` replays
//! run 7 and prints all that happens in it. `TRUNKLINE_CLUSTER_INBOX_SEEDS=500` tries that many.

use super::Run;
use super::scenario::Scenario;
use super::shared_store::SharedStore;
use crate::io::sim::{Faults, Rng, SharedWorld, WALL_MS};
use crate::mesh::MESH_PROTOCOL;
use crate::simulation::Bug;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use trunkline_proto::prost::Message as _;
use trunkline_proto::{
    FRAME_BYTES_MAX_LIMIT, Frame, Header, Kind, Login, LoginOk, Outcome, SyncOk, VERSION, decode, encode,
    encode_message, flags,
};

const RECIPIENTS: std::ops::RangeInclusive<u64> = 1..=5;
const DEVICES: usize = 2;
const SENDERS: std::ops::RangeInclusive<u64> = 101..=103;
/// Groups that senders are in, where they write to groups.
const GROUPS: std::ops::RangeInclusive<u64> = 11..=14;
/// Messages of one sender that have not come to an end: far fewer than what a store finds again.
const UNDER_WAY: usize = 4;
const WINDOW_BYTES: usize = 1 << 20;
/// Who has heard nothing for so long takes the connection for dead.
const SILENCE_US: u64 = 6_000_000;
/// Time for what is refused while a view changes, and for devices to catch up, when all is well.
const CATCH_UP_MS: u64 = 12_000;

#[derive(Debug)]
struct Session {
    user: u64,
    /// Its device; a sender has none.
    device: Option<usize>,
    socket: Option<usize>,
    is_open: bool,
    /// The end of its backlog was told.
    backlog_over: bool,
    input: Vec<u8>,
    next_us: u64,
    heard_us: u64,
    /// Messages that came without AGAIN and REPLAY.
    live: BTreeSet<u64>,
    /// Messages sent on this connection that have no answer.
    unanswered: BTreeSet<u64>,
}

/// What a device has.
#[derive(Debug, Default)]
struct Device {
    /// When its client knew that it is registered.
    registered_us: Option<u64>,
    has: BTreeSet<u64>,
}

/// A message.
#[derive(Debug)]
struct Said {
    from: u64,
    to: u64,
    first_us: u64,
    /// It was sent again.
    retried: bool,
    outcome: Option<Outcome>,
}

/// All clients, and what they have said.
pub(super) struct Correspondents {
    world: SharedWorld,
    rng: Rng,
    doors: Vec<SocketAddr>,
    sessions: Vec<Session>,
    devices: BTreeMap<(u64, usize), Device>,
    said: BTreeMap<u64, Said>,
    next_id: u64,
    /// Senders write to groups, and to nobody else.
    to_groups: bool,
    /// Senders who know that they are in a group.
    members: BTreeSet<(u64, u64)>,
    /// Nothing new is sent, and all devices are there.
    quiet: bool,
    refused: u64,
    replayed: u64,
}

impl Correspondents {
    /// They come at `begin_us`.
    fn new(seed: u64, world: &SharedWorld, doors: Vec<SocketAddr>, begin_us: u64) -> Self {
        let mut rng = Rng::new(seed ^ 0x001B_0CE5);
        let devices = RECIPIENTS.flat_map(|user| (0..DEVICES).map(move |device| (user, Some(device))));
        let clients: Vec<_> = devices.chain(SENDERS.map(|user| (user, None))).collect();
        let sessions = clients.into_iter().map(|(user, device)| Session {
            user,
            device,
            socket: None,
            is_open: false,
            backlog_over: false,
            input: Vec::new(),
            next_us: begin_us + rng.below(500_000),
            heard_us: 0,
            live: BTreeSet::new(),
            unanswered: BTreeSet::new(),
        });
        let sessions = sessions.collect();
        Correspondents {
            world: world.clone(),
            rng,
            doors,
            sessions,
            devices: BTreeMap::new(),
            said: BTreeMap::new(),
            next_id: 0,
            to_groups: false,
            members: BTreeSet::new(),
            quiet: false,
            refused: 0,
            replayed: 0,
        }
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
                self.sessions[at].next_us = now_us + self.rng.within(100_000, 400_000);
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
        if !read.bytes.is_empty() {
            self.sessions[at].heard_us = now_us;
        }
        let mut input = std::mem::take(&mut self.sessions[at].input);
        input.extend_from_slice(&read.bytes);
        let (mut begin, mut over) = (0, read.reset || read.end);
        while let Some((frame, len)) = decode(&input[begin..], FRAME_BYTES_MAX_LIMIT).expect("a frame") {
            over |= frame.known() == Some(Kind::Bye);
            self.frame(at, &frame, now_us);
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
        (session.is_open, session.backlog_over, session.input) = (false, false, Vec::new());
        session.live.clear();
        session.unanswered.clear();
    }

    fn log_in(&mut self, at: usize, now_us: u64) {
        let door = *self.rng.pick(&self.doors);
        let Some(socket) = self.world.borrow_mut().connect_at(door, WINDOW_BYTES) else { return };
        let session = &mut self.sessions[at];
        (session.socket, session.heard_us) = (Some(socket), now_us);
        let device = session.device.map_or("sender".to_owned(), |device| format!("device-{device}"));
        let (user, ephemeral) = (session.user, session.device.is_none());
        let login = Login { version: VERSION, user, device, ephemeral, ..Login::default() };
        let mut bytes = Vec::new();
        encode_message(&mut bytes, Kind::Login, 0, &login);
        self.write(at, &bytes);
    }

    fn act(&mut self, at: usize, now_us: u64) {
        let Session { socket, is_open, heard_us, device, .. } = self.sessions[at];
        let dice = self.rng.below(100);
        if socket.is_none() {
            // A device is away for a while.
            if self.quiet || device.is_none() || dice < 20 {
                self.log_in(at, now_us);
            }
            return;
        }
        if now_us - heard_us > SILENCE_US {
            return self.hang_up(at);
        }
        if !is_open {
            return;
        }
        if device.is_some() && !self.quiet && dice < 8 {
            return self.hang_up(at);
        }
        let mut bytes = Vec::new();
        encode(&mut bytes, &Header { kind: Kind::Ping, flags: 0, aux: 7, id: 0, peer: 0, stamp: 0 }, &[]);
        if device.is_none() {
            self.send(at, now_us, &mut bytes);
        }
        self.write(at, &bytes);
    }

    /// What has not come to an end is sent again, and then perhaps something new.
    fn send(&mut self, at: usize, now_us: u64, out: &mut Vec<u8>) {
        let Session { user, unanswered, .. } = &mut self.sessions[at];
        let open = self.said.iter().filter(|(_, said)| said.from == *user && said.outcome.is_none());
        let open: Vec<(u64, u64)> = open.map(|(id, said)| (*id, said.to)).collect();
        let kind = if self.to_groups { Kind::GroupSend } else { Kind::Send };
        let header = |id, peer, more| Header { kind, flags: flags::ACK | more, aux: 0, id, peer, stamp: 0 };
        for (id, to) in &open {
            if unanswered.insert(*id) {
                self.said.get_mut(id).expect("it is open").retried = true;
                encode(out, &header(*id, *to, flags::RETRY), b"hello");
            }
        }
        if !self.quiet && open.len() < UNDER_WAY {
            let to = if self.to_groups { GROUPS } else { RECIPIENTS };
            let to = self.rng.within(*to.start(), *to.end());
            if self.to_groups && !self.members.contains(&(*user, to)) {
                let (id, kind) = (1, Kind::GroupJoin);
                return encode(out, &Header { kind, flags: 0, aux: 0, id, peer: to, stamp: 0 }, &[]);
            }
            self.next_id += 1;
            let id = self.next_id;
            self.said.insert(id, Said { from: *user, to, first_us: now_us, retried: false, outcome: None });
            unanswered.insert(id);
            encode(out, &header(id, to, 0), b"hello");
        }
    }

    fn frame(&mut self, at: usize, frame: &Frame<'_>, now_us: u64) {
        match frame.known().expect("a known kind") {
            Kind::LoginOk => {
                let login_ok = LoginOk::decode(frame.body).expect("a body");
                assert!(!login_ok.truncated || self.may_lack(at), "nothing is dropped");
                self.sessions[at].is_open = true;
            }
            Kind::SyncOk => {
                let Session { user, device, .. } = self.sessions[at];
                let is_first = !std::mem::replace(&mut self.sessions[at].backlog_over, true);
                let sync_ok = SyncOk::decode(frame.body).expect("a body");
                let may_lack = sync_ok.truncated && self.may_lack(at);
                assert!(!sync_ok.truncated || may_lack, "nothing is dropped, and user {user} is told so");
                assert!(is_first || may_lack, "the end of a backlog is told twice in a session of user {user}");
                if let Some(device) = device {
                    self.devices.entry((user, device)).or_default().registered_us.get_or_insert(now_us);
                }
            }
            Kind::Deliver => self.delivered(at, frame),
            Kind::Sent => {
                let answered = self.sessions[at].unanswered.remove(&frame.id);
                assert!(answered, "message {} has two answers on a connection", frame.id);
                let said = self.said.get_mut(&frame.id).expect("somebody sent it");
                match Outcome::from_u16(frame.aux).expect("a known outcome") {
                    outcome @ (Outcome::Delivered | Outcome::Stored) => said.outcome = Some(outcome),
                    Outcome::Overloaded | Outcome::OfflineNotStored => self.refused += 1,
                    other => panic!("message {}: {other:?}", frame.id),
                }
            }
            Kind::GroupOk => drop(self.members.insert((self.sessions[at].user, frame.peer))),
            _ => {}
        }
    }

    /// Whether something may have been given up for the device of a session, since another one has it.
    fn may_lack(&self, at: usize) -> bool {
        let user = self.sessions[at].user;
        self.said.values().any(|said| said.to == user && said.outcome == Some(Outcome::Delivered))
    }

    fn delivered(&mut self, at: usize, frame: &Frame<'_>) {
        let Frame { id, peer, stamp, flags: of_frame, .. } = *frame;
        let Session { user, device, .. } = self.sessions[at];
        let said = &self.said[&id];
        assert_eq!((said.from, said.to), (peer, user), "message {id} came to user {user}");
        if of_frame & (flags::AGAIN | flags::REPLAY) == 0 {
            let once = self.sessions[at].live.insert(id);
            assert!(once, "user {user} got message {id} twice in a session: {said:?}");
        }
        self.replayed += u64::from(of_frame & flags::REPLAY != 0);
        let device = device.expect("nobody writes to senders");
        self.devices.entry((user, device)).or_default().has.insert(id);
        if self.quiet || self.rng.below(100) < 80 {
            let mut bytes = Vec::new();
            encode(&mut bytes, &Header { kind: Kind::Ack, flags: 0, aux: 0, id, peer, stamp }, &[]);
            self.write(at, &bytes);
        }
    }

    /// Panics unless inboxes and devices have what they have to. Returns how many messages were looked for.
    fn check(&self, store: &mut SharedStore) -> u64 {
        assert!(store.stale_taken.is_empty(), "{:?}", store.stale_taken);
        for user in RECIPIENTS {
            let log = store.inbox(user);
            assert!(log.is_sorted_by(|before, after| before.2 < after.2), "positions of user {user}");
            let mut once = BTreeSet::new();
            let twice: Vec<_> = log.iter().filter(|(from, id, _)| !once.insert((*from, *id))).collect();
            assert!(twice.is_empty(), "messages are in the inbox of user {user} twice: {twice:?}");
        }
        let mut looked_for = 0;
        for group in GROUPS.filter(|_| self.to_groups) {
            let log = store.log(group);
            let ids: BTreeSet<u64> = log.iter().map(|(_, id, _)| *id).collect();
            assert_eq!(ids.len(), log.len(), "a message is in the log of group {group} twice: {log:?}");
            for (id, said) in self.said.iter().filter(|(_, said)| said.to == group) {
                looked_for += 1;
                assert!(ids.contains(id), "message {id} is not in the log of group {group}: {said:?}");
            }
        }
        for (id, said) in &self.said {
            assert!(said.outcome.is_some(), "message {id} does not come to an end: {said:?}");
            if said.outcome != Some(Outcome::Stored) {
                continue;
            }
            let devices = self.devices.range((said.to, 0)..(said.to, DEVICES));
            let due = devices.filter(|(_, device)| device.registered_us.is_some_and(|since| since < said.first_us));
            for ((user, number), device) in due {
                looked_for += 1;
                assert!(device.has.contains(id), "device {number} of user {user} never got message {id}: {said:?}");
            }
        }
        looked_for
    }
}

/// A whole run. Returns how many messages devices had to have, and what happened.
fn run(scenario: Scenario, print: bool) -> super::super::Report {
    run_from(scenario, 3_000_000, false, print)
}

/// The same with clients who come later, and senders who may write to groups.
fn run_from(scenario: Scenario, begin_us: u64, to_groups: bool, print: bool) -> super::super::Report {
    run_on(SharedStore::new(scenario.seed), scenario, begin_us, to_groups, print)
}

/// The same where batches of the store take seconds now and then, and claims are not safe at once.
fn run_in_doubt(seed: u64, print: bool) -> super::super::Report {
    let mut store = SharedStore::new(seed);
    (store.late_permille, store.unsure_permille) = (30, 200);
    run_on(store, Scenario::rooms(seed), 3_000_000, seed % 3 == 2, print)
}

fn run_on(
    mut store: SharedStore,
    scenario: Scenario,
    begin_us: u64,
    to_groups: bool,
    print: bool,
) -> super::super::Report {
    let seed = scenario.seed;
    let (active_ms, settle_ms) = (scenario.active_ms, scenario.settle_ms());
    let mut run = Run::of(scenario, print);
    run.crowd.mood = super::Mood::Leaving;
    // Mostly as most clocks of this world: what is stored is where its home wanted it. Else it is far before that.
    store.begins_ms = if seed.is_multiple_of(4) { 0 } else { WALL_MS as u64 };
    store.unheard_permille = if seed % 5 == 4 { 30 } else { 0 };
    run.fleet.store = Some(store);
    let mut correspondents = Correspondents::new(seed, &run.world, run.fleet.doors(), begin_us);
    correspondents.to_groups = to_groups;
    run.correspondents = Some(correspondents);
    run.run_for(active_ms);
    let troubles_end_us = run.now_us() + 120_000_000;
    run.run_until(troubles_end_us, |run| run.fleet.is_well());
    assert!(run.fleet.is_well(), "a node does not come back");
    run.world.borrow_mut().faults = Faults::none();
    if let Some(store) = &mut run.fleet.store {
        (store.late_permille, store.unsure_permille) = (0, 0);
    }
    run.correspondents.as_mut().expect("some").quiet = true;
    run.run_for(settle_ms + CATCH_UP_MS);
    run.fleet.check_one_view();
    let correspondents = run.correspondents.take().expect("some");
    let looked_for = correspondents.check(run.fleet.store.as_mut().expect("one"));
    let said = || correspondents.said.values();
    let outcomes = |outcome| said().filter(|said| said.outcome == Some(outcome)).count() as u64;
    let counts = [
        ("looked for", looked_for),
        ("stored", outcomes(Outcome::Stored)),
        ("delivered", outcomes(Outcome::Delivered)),
        ("refused", correspondents.refused),
        ("replayed", correspondents.replayed),
        ("overtaken", run.fleet.sum(|stats| stats.overtaken.get())),
        ("stale", run.fleet.store.as_ref().map_or(0, |store| store.stale)),
        ("claims in doubt", run.fleet.store.as_ref().map_or(0, |store| store.unsure)),
        ("answers of the store lost", run.fleet.store.as_ref().map_or(0, |store| store.unheard)),
    ];
    let counts = counts.map(|(name, count)| (name.to_owned(), count)).into();
    super::super::Report { trace_hash: looked_for, counts }
}

#[test]
fn what_is_stored_comes_to_each_device_while_nodes_come_and_go() {
    super::super::try_so_many_seeds(
        "TRUNKLINE_CLUSTER_INBOX_SEED",
        "what_is_stored_comes",
        6,
        |seed, print| run(Scenario::rooms(seed), print),
        &["looked for", "refused", "replayed", "delivered"],
    );
}

#[test]
fn nobody_misses_anything_while_claims_are_in_doubt_and_the_store_is_late() {
    super::super::try_so_many_seeds(
        "TRUNKLINE_CLUSTER_DOUBT_SEED",
        "while_claims_are_in_doubt",
        5,
        run_in_doubt,
        &["looked for", "stale", "claims in doubt"],
    );
}

#[test]
fn a_stale_home_that_is_let_in_is_caught() {
    assert!(super::super::seed_that_catches(Bug::StaleTaken, |seed| run_in_doubt(seed, false)).is_some());
}

/// When clients come to see messages overtaken: no home is new then.
const OVERTAKEN_US: u64 = 65_000_000;

#[test]
fn a_message_that_its_retry_has_overtaken_is_in_the_inbox_once() {
    super::super::try_so_many_seeds(
        "TRUNKLINE_CLUSTER_OVERTAKEN_SEED",
        "that_its_retry_has_overtaken",
        2,
        |seed, print| run_from(Scenario::overtaken(seed), OVERTAKEN_US, false, print),
        &["looked for", "overtaken"],
    );
}

#[test]
fn a_message_that_its_retry_has_overtaken_is_in_the_log_of_its_group_once() {
    super::super::try_so_many_seeds(
        "TRUNKLINE_CLUSTER_OVERTAKEN_SEED",
        "that_its_retry_has_overtaken_is_in_the_log",
        2,
        |seed, print| run_from(Scenario::overtaken(seed), OVERTAKEN_US, true, print),
        &["looked for", "overtaken"],
    );
}

#[test]
fn a_late_message_to_a_group_that_is_taken_anew_is_caught() {
    let caught = super::super::seed_that_catches(Bug::LateTakenAnew, |seed| {
        run_from(Scenario::overtaken(seed), OVERTAKEN_US, true, false)
    });
    assert!(caught.is_some());
}

#[test]
fn a_late_message_that_is_taken_anew_is_caught() {
    let caught = super::super::seed_that_catches(Bug::LateTakenAnew, |seed| {
        run_from(Scenario::overtaken(seed), OVERTAKEN_US, false, false)
    });
    assert!(caught.is_some());
}

#[test]
fn in_a_cluster_to_which_nothing_happens_no_message_is_refused() {
    let mut quiet = Scenario::quiet(3, 2, MESH_PROTOCOL);
    quiet.active_ms = 20_000;
    let report = run(quiet, false);
    assert_eq!(report.counts["refused"], 0, "{:?}", report.counts);
    assert!(report.counts["looked for"] > 20, "{:?}", report.counts);
}

#[test]
fn a_sender_that_is_told_too_early_in_a_cluster_is_caught() {
    let caught = super::super::seed_that_catches(Bug::StoredEarly, |seed| run(Scenario::rooms(seed), false));
    assert!(caught.is_some());
}
