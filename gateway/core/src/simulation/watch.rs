//! Watching who is online, on simulated I/O: users come and go, some of them often, and others watch them, over the
//! shards of a node that is alone. What is legal is in `watching`.

use super::node::{Node, NodeConfig};
use super::planted::{Bug, with_planted};
use super::watching::Watching;
use super::{Report, SharedWorld, World, outcome};
use crate::io::sim::{Faults, Rng};
use crate::limits::Limits;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use trunkline_proto::{FRAME_BYTES_MAX_LIMIT, Header, Kind, Login, VERSION, decode, encode, encode_message};

/// Users who come and go, and those who watch them. A user above both is never there.
const USERS: u64 = 8;
const WATCHERS: u64 = 4;
const NEVER: u64 = 1_000;
/// Virtual time of a run, and how long it is quiet at its end: ten seconds, five, and some frames.
const RUN_US: u64 = 120_000_000;
const QUIET_US: u64 = 18_000_000;
const SEEDS: u64 = 200;

#[derive(Debug)]
struct Session {
    socket: usize,
    user: u64,
    open: bool,
    input: Vec<u8>,
    watching: Watching,
}

struct Run {
    world: SharedWorld,
    node: Node,
    rng: Rng,
    sessions: Vec<Session>,
    by_socket: BTreeMap<usize, usize>,
    /// For each user when something happens next.
    next_us: BTreeMap<u64, u64>,
}

impl Run {
    fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed ^ 0x0077_6174_6368);
        let shards = rng.within(1, 3) as u16;
        let limits = Limits { heartbeat_secs: 600, ..Limits::default() };
        let world = World::new(seed, Faults::none(), usize::from(shards), 1, &limits, false);
        let world = Rc::new(RefCell::new(world));
        let node = Node::new(NodeConfig::alone(seed, shards, &limits), &world);
        let next_us = (1..=USERS + WATCHERS).map(|user| (user, rng.below(3_000_000))).collect();
        Run { world, node, rng, sessions: Vec::new(), by_socket: BTreeMap::new(), next_us }
    }

    fn now_us(&self) -> u64 {
        self.world.borrow().now_us()
    }

    fn session_of(&self, user: u64) -> Option<usize> {
        self.sessions.iter().rposition(|session| session.user == user && session.open)
    }

    fn act(&mut self, user: u64) {
        let session = self.session_of(user);
        let mut bytes = Vec::new();
        match session {
            None => {
                let socket = self.world.borrow_mut().connect(65_536).expect("it listens");
                let login = Login { version: VERSION, user, ..Login::default() };
                encode_message(&mut bytes, Kind::Login, 0, &login);
                self.by_socket.insert(socket, self.sessions.len());
                let (input, watching) = (Vec::new(), Watching::default());
                self.sessions.push(Session { socket, user, open: true, input, watching });
            }
            // Watchers seldom go.
            Some(index) if user <= USERS || self.rng.chance(60) => {
                encode(&mut bytes, &Header { kind: Kind::Logout, flags: 0, aux: 0, id: 0, peer: 0, stamp: 0 }, &[]);
                self.world.borrow_mut().client_write(self.sessions[index].socket, &bytes);
                self.sessions[index].open = false;
                return;
            }
            Some(_) => {}
        }
        let index = self.session_of(user).expect("it has just come");
        if user > USERS {
            let users: Vec<u64> = (1..=USERS).chain([NEVER]).filter(|_| self.rng.chance(500)).collect();
            let watching = &mut self.sessions[index].watching;
            match self.rng.below(10) {
                0..7 => watching.watch(&mut bytes, &users, true),
                7..9 => watching.watch(&mut bytes, &users, false),
                _ if users.is_empty() => {}
                _ => watching.unwatch(&mut bytes, &users),
            }
        }
        self.world.borrow_mut().client_write(self.sessions[index].socket, &bytes);
    }

    fn run_until(&mut self, end_us: u64, acts: bool) {
        let due_us =
            |next_us: &BTreeMap<u64, u64>| next_us.values().copied().min().filter(|_| acts).unwrap_or(u64::MAX);
        while let Some(next_us) = self.node.pass(due_us(&self.next_us), end_us) {
            self.node.step();
            let stirred = self.world.borrow_mut().take_stirred();
            for socket in stirred {
                self.read(self.by_socket[&socket]);
            }
            if acts {
                let due: Vec<u64> =
                    self.next_us.iter().filter(|(_, due_us)| **due_us <= next_us).map(|(user, _)| *user).collect();
                for user in due {
                    // Long enough to be told offline, and back before that is forgotten; or a flap; or anything.
                    let wait_us = match self.rng.below(3) {
                        0 => self.rng.within(10_000_000, 15_500_000),
                        1 => self.rng.within(1, 2_000_000),
                        _ => self.rng.within(1, 20_000_000),
                    };
                    self.next_us.insert(user, next_us + wait_us);
                    self.act(user);
                }
            }
        }
    }

    fn read(&mut self, index: usize) {
        let now_us = self.now_us();
        let session = &mut self.sessions[index];
        let read = self.world.borrow_mut().client_read(session.socket, usize::MAX);
        session.input.extend_from_slice(&read.bytes);
        let input = std::mem::take(&mut session.input);
        let mut at = 0;
        while let Some((frame, len)) = decode(&input[at..], FRAME_BYTES_MAX_LIMIT).expect("the server frames properly")
        {
            at += len;
            match frame.known() {
                Some(Kind::LoginOk) => {}
                Some(Kind::Presence) => session.watching.frame(&frame, now_us),
                other => panic!("{other:?}"),
            }
        }
        session.input = input[at..].to_vec();
        if read.end || read.reset {
            assert!(!session.open, "user {} was sent away", session.user);
            self.world.borrow_mut().client_close(session.socket);
        }
    }

    fn whole(mut self) -> Report {
        self.run_until(RUN_US, true);
        // Everybody who watches is there, and stays.
        for user in USERS + 1..=USERS + WATCHERS {
            if self.session_of(user).is_none() {
                self.act(user);
            }
        }
        self.run_until(RUN_US + QUIET_US, false);
        let mut counts: BTreeMap<String, u64> = BTreeMap::new();
        for user in USERS + 1..=USERS + WATCHERS {
            let index = self.session_of(user).expect("it is there");
            let is_online = |user| self.session_of(user).is_some();
            let follows = self.sessions[index].watching.check(&format!("user {user}"), is_online);
            *counts.entry("followed at the end".to_owned()).or_default() += follows;
        }
        for session in &self.sessions {
            for (name, count) in &session.watching.counts {
                *counts.entry((*name).to_owned()).or_default() += count;
            }
        }
        let watches = self.node.stats().map(|stats| stats.watches.get()).sum::<u64>();
        for index in 0..self.sessions.len() {
            if self.sessions[index].open {
                self.sessions[index].open = false;
                self.world.borrow_mut().client_close(self.sessions[index].socket);
            }
        }
        self.run_until(RUN_US + 2 * QUIET_US, false);
        assert!(watches > 0, "nobody watches anybody");
        let left = self.node.stats().map(|stats| stats.watches.get() + stats.watched.get()).sum::<u64>();
        assert_eq!(left, 0, "watches are left of sessions that have gone");
        let trace_hash = self.world.borrow().trace_hash();
        Report { trace_hash, counts }
    }
}

#[test]
fn what_watchers_were_told_last_is_true_and_changes_are_apart() {
    let mut sums: BTreeMap<String, u64> = BTreeMap::new();
    for seed in 0..SEEDS {
        let report = outcome(|| Run::new(seed).whole());
        let report = report.unwrap_or_else(|violation| panic!("seed {seed}: {violation}"));
        report.counts.into_iter().for_each(|(name, count)| *sums.entry(name).or_default() += count);
    }
    assert!(sums["told online"] > 100 && sums["told offline"] > 100, "little has happened: {sums:?}");
    assert!(!sums.contains_key("told unknown"), "a node that is alone knows: {sums:?}");
}

#[test]
fn the_same_seed_is_the_same_run_of_watchers() {
    let hashes = [0, 1].map(|_| Run::new(3).whole().trace_hash);
    assert_eq!(hashes[0], hashes[1]);
}

fn is_caught(bug: Bug) -> bool {
    (0..SEEDS).any(|seed| with_planted(bug, || outcome(|| Run::new(seed).whole())).is_err())
}

#[test]
fn a_user_who_changes_too_often_is_caught() {
    assert!(is_caught(Bug::PresenceTooOften));
}

#[test]
fn a_change_that_is_not_told_is_caught() {
    assert!(is_caught(Bug::PresenceUntold));
}
