//! Random traffic among users on the nodes of a fleet, with exact accounting: what each message came to, at both ends.

use super::Fleet;
use crate::support::client::{Client, Event};
use crate::support::random::Random;
use crate::support::wire::{Frame, Login, code, flag, kind, outcome};
use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, Instant};

/// What was on its way to the recipient when its sender was told that it failed may take so long.
const STRAGGLER: Duration = Duration::from_secs(1);

/// One user, with one device.
struct Talker {
    user: u64,
    node: usize,
    client: Option<Client>,
    /// Counts its connections.
    life: u32,
    retry_at: Instant,
    /// Messages with ACK that wait for their SENT in this life, by id.
    waits: BTreeMap<u64, usize>,
    /// What this life has received, so that a second copy has to say AGAIN.
    received: HashSet<usize>,
}

/// A message, by its number.
struct Sent {
    from: u64,
    to: u64,
    acked: bool,
    answered: Option<(u16, Instant)>,
    copies: u32,
}

/// What becomes of users whose connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wander {
    /// They stay away.
    Stay,
    /// They log in at another of these nodes, or where a BYE sends them.
    To(&'static [usize]),
}

pub(crate) struct Traffic {
    talkers: Vec<Talker>,
    messages: Vec<Sent>,
    rng: Random,
    pub(crate) wander: Wander,
    /// How often a talker sends, out of a hundred rounds.
    pub(crate) rate: usize,
    pub(crate) outcomes: BTreeMap<u16, u64>,
    pub(crate) delivered: u64,
    pub(crate) byes: BTreeMap<u16, u64>,
    /// How long after a message was answered as not delivered a first copy of it may still arrive.
    pub(crate) straggler: Duration,
}

impl Traffic {
    /// Logs `users` users in, one after the other at each of the nodes.
    pub(crate) fn start(fleet: &Fleet, users: u64, seed: u64) -> Self {
        let nodes = fleet.nodes.len();
        let talkers = (1..=users).map(|user| {
            let node = user as usize % nodes;
            Talker {
                user,
                node,
                client: Some(Client::login(fleet.node(node), user)),
                life: 1,
                retry_at: Instant::now(),
                waits: BTreeMap::new(),
                received: HashSet::new(),
            }
        });
        Traffic {
            talkers: talkers.collect(),
            messages: Vec::new(),
            rng: Random::seeded(seed),
            wander: Wander::Stay,
            rate: 20,
            outcomes: BTreeMap::new(),
            delivered: 0,
            byes: BTreeMap::new(),
            straggler: STRAGGLER,
        }
    }

    /// Lets the users talk for a while.
    pub(crate) fn run(&mut self, fleet: &Fleet, time: Duration) {
        let end = Instant::now() + time;
        while Instant::now() < end {
            self.round(fleet, true);
        }
    }

    /// No more is sent, until every message with ACK of a connection that lasts has its answer.
    pub(crate) fn settle(&mut self, fleet: &Fleet, most: Duration) {
        let end = Instant::now() + most;
        loop {
            self.round(fleet, false);
            let waiting: usize = self.talkers.iter().map(|talker| talker.waits.len()).sum();
            if waiting == 0 && self.talkers.iter().all(|talker| talker.client.is_some() || self.wander == Wander::Stay)
            {
                // What was without ACK may still be on its way.
                std::thread::sleep(Duration::from_millis(300));
                return self.round(fleet, false);
            }
            if Instant::now() >= end {
                panic!("{waiting} messages were never answered within {most:?}:\n{}", self.describe_waiting(fleet));
            }
        }
    }

    fn describe_waiting(&self, fleet: &Fleet) -> String {
        let mut text = String::new();
        for talker in &self.talkers {
            for (id, number) in &talker.waits {
                let Sent { to, copies, .. } = self.messages[*number];
                let at = &self.talkers[to as usize - 1];
                text.push_str(&format!(
                    "user {} on node {} waits for message {number} (id {id}) to user {to} on node {}, life {}, online \
                     {}, copies {copies}\n",
                    talker.user,
                    talker.node,
                    at.node,
                    at.life,
                    at.client.is_some()
                ));
            }
        }
        for (at, node) in fleet.running().enumerate() {
            let metrics = node.metrics();
            for name in [
                "trunkline_messages_unacked",
                "trunkline_messages_owed",
                "trunkline_parked_bytes",
                "trunkline_sessions",
                "trunkline_remote_sessions",
                "trunkline_mesh_held_bytes",
                "trunkline_directory_settling",
                "trunkline_fates_late_total",
                "trunkline_mesh_answers_lost_total",
                "trunkline_sent_to_gone_sender_total",
                "trunkline_deliver_to_gone_total",
            ] {
                text.push_str(&format!("node {at}: {name} {}\n", metrics.sum(name, &[])));
            }
        }
        text
    }

    /// From now on every message between these users has to arrive: sends for a while, and looks.
    pub(crate) fn run_whole(&mut self, fleet: &Fleet, time: Duration) {
        let begin = self.messages.len();
        self.run(fleet, time);
        self.settle(fleet, Duration::from_secs(20));
        let online: HashSet<u64> =
            self.talkers.iter().filter(|talker| talker.client.is_some()).map(|talker| talker.user).collect();
        assert!(self.messages.len() > begin + 100, "hardly anything was sent");
        for (number, message) in self.messages.iter().enumerate().skip(begin) {
            if !online.contains(&message.to) {
                continue;
            }
            assert_eq!(
                message.copies, 1,
                "message {number} from {} to {} (ACK {})",
                message.from, message.to, message.acked
            );
            if message.acked {
                let answer = message.answered.map(|(answer, _)| answer);
                assert_eq!(
                    answer,
                    Some(outcome::DELIVERED),
                    "message {number} from {} to {}",
                    message.from,
                    message.to
                );
            }
        }
    }

    fn round(&mut self, fleet: &Fleet, sends: bool) {
        for at in 0..self.talkers.len() {
            self.read(at);
            if self.talkers[at].client.is_none() {
                self.come_back(fleet, at);
            } else if sends && self.rng.below(100) < self.rate {
                self.send(at);
            }
        }
        std::thread::sleep(Duration::from_millis(1));
    }

    fn send(&mut self, at: usize) {
        let to = self.talkers[self.rng.below(self.talkers.len())].user;
        let acked = self.rng.below(2) == 0;
        let talker = &mut self.talkers[at];
        let Some(client) = &mut talker.client else { return };
        if to == talker.user {
            return;
        }
        let number = self.messages.len();
        let id = client.send_while_open(to, if acked { flag::ACK } else { 0 }, number.to_string().as_bytes());
        self.messages.push(Sent { from: talker.user, to, acked, answered: None, copies: 0 });
        if acked {
            talker.waits.insert(id, number);
        }
    }

    fn read(&mut self, at: usize) {
        loop {
            let Some(client) = &mut self.talkers[at].client else { return };
            match client.poll_event() {
                Event::TimedOut => return,
                Event::Closed => self.lost(at),
                Event::Frame(frame) => self.take(at, &frame),
            }
        }
    }

    fn lost(&mut self, at: usize) {
        let talker = &mut self.talkers[at];
        talker.client = None;
        talker.waits.clear();
        talker.received.clear();
        talker.retry_at = Instant::now() + Duration::from_millis(200);
    }

    fn take(&mut self, at: usize, frame: &Frame) {
        match frame.kind {
            kind::DELIVER => self.deliver(at, frame),
            kind::SENT => {
                let number = self.talkers[at].waits.remove(&frame.id);
                let number = number.unwrap_or_else(|| panic!("a second SENT, or one nobody waits for: {frame:?}"));
                let message = &mut self.messages[number];
                assert_eq!((message.to, message.answered), (frame.peer, None), "{frame:?}");
                message.answered = Some((frame.aux, Instant::now()));
                *self.outcomes.entry(frame.aux).or_default() += 1;
            }
            kind::BYE => *self.byes.entry(frame.aux).or_default() += 1,
            _ => panic!("{frame:?}"),
        }
    }

    fn deliver(&mut self, at: usize, frame: &Frame) {
        let talker = &mut self.talkers[at];
        let number: usize = String::from_utf8(frame.body.clone()).expect("a number").parse().expect("a number");
        let message = &mut self.messages[number];
        assert_eq!((message.to, message.from), (talker.user, frame.peer), "{frame:?}");
        assert_eq!(message.acked, frame.flags & flag::ACK != 0, "{frame:?}");
        let again = frame.flags & flag::AGAIN != 0;
        let new = talker.received.insert(number);
        assert!(again || new, "message {number} came twice to one connection: {frame:?}");
        assert!(again || message.copies == 0, "message {number} came twice: {frame:?}");
        if message.copies == 0
            && let Some((answer, at)) = message.answered
        {
            let late = at.elapsed();
            assert!(
                late < self.straggler,
                "message {number} from {} to {} was answered with {answer} and delivered {late:?} later",
                message.from,
                message.to
            );
        }
        if new {
            message.copies += 1;
            self.delivered += 1;
        }
        if message.acked
            && let Some(client) = &mut talker.client
        {
            client.ack_while_open(frame);
        }
    }

    fn come_back(&mut self, fleet: &Fleet, at: usize) {
        let Wander::To(nodes) = self.wander else { return };
        if Instant::now() < self.talkers[at].retry_at {
            return;
        }
        let node = nodes[self.rng.below(nodes.len())];
        self.login(fleet, at, node);
    }

    /// Logs a user in at a node; the connection it had, if any, is left alone and forgotten.
    fn login(&mut self, fleet: &Fleet, at: usize, node: usize) {
        let talker = &mut self.talkers[at];
        talker.retry_at = Instant::now() + Duration::from_millis(200);
        let Some(gateway) = fleet.nodes[node].as_ref() else { return };
        let Some(mut client) = Client::try_connect(gateway.client_address()) else { return };
        client.write_while_open(&Login::of(talker.user).frame().encode());
        let end = Instant::now() + Duration::from_secs(5);
        while Instant::now() < end {
            match client.read_event(Duration::from_millis(200)) {
                Event::Frame(frame) if frame.kind == kind::LOGIN_OK => {
                    talker.waits.clear();
                    talker.received.clear();
                    talker.client = Some(client);
                    talker.node = node;
                    talker.life += 1;
                    return;
                }
                Event::Frame(frame) => {
                    assert_eq!(frame.kind, kind::BYE, "{frame:?}");
                    assert!([code::OVERLOADED, code::DRAINING, code::REPLACED].contains(&frame.aux), "{frame:?}");
                    *self.byes.entry(frame.aux).or_default() += 1;
                    return;
                }
                Event::Closed => return,
                Event::TimedOut => {}
            }
        }
        panic!("user {} got no answer to a login at node {node} within 5 s", talker.user);
    }

    /// The users of a node, by where they logged in last.
    pub(crate) fn users_of(&self, node: usize) -> Vec<u64> {
        self.talkers.iter().filter(|talker| talker.node == node).map(|talker| talker.user).collect()
    }

    /// Some users leave their connections as they are and log in at another node.
    pub(crate) fn move_users(&mut self, fleet: &Fleet, users: &[u64], node: usize) -> Vec<Client> {
        let mut left = Vec::new();
        for at in 0..self.talkers.len() {
            if users.contains(&self.talkers[at].user) {
                left.extend(self.talkers[at].client.take());
                self.talkers[at].waits.clear();
                self.login(fleet, at, node);
                assert!(self.talkers[at].client.is_some(), "user {} is let in elsewhere", self.talkers[at].user);
            }
        }
        left
    }

    /// Users with a connection.
    pub(crate) fn online(&self) -> usize {
        self.talkers.iter().filter(|talker| talker.client.is_some()).count()
    }
}
