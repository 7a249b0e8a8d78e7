//! Everything at once, at random: users write to each other, acknowledge late, leave in every way and come back. What
//! must hold then for every session: each of its messages with ACK has exactly one SENT, and what one session wrote to
//! one recipient arrives in order.

use crate::support::PATIENCE;
use crate::support::client::{Client, Event};
use crate::support::gateway::{Gateway, with_gateway};
use crate::support::random::Random;
use crate::support::wire::{self, Frame, Login, code, flag, kind, outcome};
use std::collections::{BTreeSet, HashMap};
use std::time::Instant;

const USERS: u64 = 40;
const STEPS: u32 = 3_000;

/// A user with one session at a time, which may be replaced.
struct Actor {
    user: u64,
    client: Client,
    /// Counts the user's sessions; travels in every message.
    session: u64,
    next_id: u64,
    /// Messages with ACK of this session that have no SENT.
    open: BTreeSet<u64>,
    /// DELIVERs not acknowledged so far.
    unacknowledged: Vec<Frame>,
    /// The last id that came from each sending session.
    heard: HashMap<(u64, u64), u64>,
}

impl Actor {
    fn new(gateway: &Gateway, user: u64) -> Self {
        Actor {
            user,
            client: Client::login(gateway, user),
            session: 1,
            next_id: 1,
            open: BTreeSet::new(),
            unacknowledged: Vec::new(),
            heard: HashMap::new(),
        }
    }

    fn send(&mut self, random: &mut Random) {
        let peer = 1 + random.next() % USERS;
        let flags = if random.below(3) == 0 { 0 } else { flag::ACK };
        let mut body = self.session.to_be_bytes().to_vec();
        let longest = if random.below(20) == 0 { 20_000 } else { 100 };
        body.resize(8 + random.below(longest), 0x5a);
        self.client.write(&wire::send(self.next_id, peer, flags, &body));
        if flags == flag::ACK {
            self.open.insert(self.next_id);
        }
        self.next_id += 1;
    }

    /// Takes what has come.
    fn read(&mut self) {
        loop {
            match self.client.poll_event() {
                Event::TimedOut => return,
                Event::Frame(frame) => self.take(frame),
                Event::Closed => panic!("the server closed the session of user {}", self.user),
            }
        }
    }

    fn take(&mut self, frame: Frame) {
        match frame.kind {
            kind::DELIVER => {
                let session = u64::from_be_bytes(*frame.body.first_chunk().expect("the sender's session"));
                let heard = self.heard.entry((frame.peer, session)).or_insert(0);
                if frame.flags & flag::AGAIN == 0 {
                    assert!(frame.id > *heard, "{} after {heard} from {}", frame.id, frame.peer);
                    *heard = frame.id;
                }
                if frame.flags & flag::ACK != 0 {
                    self.unacknowledged.push(frame);
                }
            }
            kind::SENT => {
                assert!(self.open.remove(&frame.id), "a SENT too many: {frame:?}");
                let known = [outcome::DELIVERED, outcome::OFFLINE_NOT_STORED, outcome::OVERLOADED];
                assert!(known.contains(&frame.aux), "{frame:?}");
            }
            _ => panic!("user {} got {frame:?}", self.user),
        }
    }

    fn acknowledge(&mut self, at_most: usize) {
        let count = at_most.min(self.unacknowledged.len());
        for deliver in self.unacknowledged.drain(..count) {
            self.client.ack(&deliver);
        }
    }

    /// Leaves in one of four ways and comes back.
    fn reconnect(&mut self, gateway: &Gateway, random: &mut Random) {
        let way = random.below(4);
        if way == 0 {
            // While the old connection is there: it is replaced.
            let mut newer = Client::connect(gateway);
            newer.write(&Login::of(self.user).frame());
            let frames = self.client.recv_until_closed();
            let (bye, before) = frames.split_last().expect("a BYE");
            assert_eq!((bye.kind, bye.aux), (kind::BYE, code::REPLACED));
            before.iter().for_each(|frame| self.take(frame.clone()));
            newer.expect_login_ok();
            self.client = newer;
        } else {
            let newer = Client::login_with(gateway, &Login::of(self.user).device("the next"));
            let mut older = std::mem::replace(&mut self.client, newer.0);
            match way {
                1 => drop(older),
                2 => older.reset(),
                _ => older.write(&wire::logout()),
            }
            // Back to the device whose name all use, so that it can be replaced.
            let named = Client::login_with(gateway, &Login::of(self.user));
            drop(std::mem::replace(&mut self.client, named.0));
        }
        self.session += 1;
        self.open.clear();
        self.unacknowledged.clear();
        self.heard.clear();
    }
}

fn storm(gateway: &Gateway, seed: u64) {
    let mut random = Random::seeded(seed);
    let mut actors: Vec<Actor> = (1..=USERS).map(|user| Actor::new(gateway, user)).collect();
    for _ in 0..STEPS {
        let actor = &mut actors[random.below(USERS as usize)];
        match random.below(20) {
            0..12 => actor.send(&mut random),
            12..16 => {
                actor.read();
                let at_most = random.below(6);
                actor.acknowledge(at_most);
            }
            16..19 => {
                actor.read();
                actor.acknowledge(usize::MAX);
            }
            _ => actor.reconnect(gateway, &mut random),
        }
    }
    // Now everybody stays and acknowledges: every fate must come out.
    let deadline = Instant::now() + PATIENCE;
    while actors.iter().any(|actor| !actor.open.is_empty()) {
        let open: Vec<_> = actors.iter().map(|actor| (actor.user, &actor.open)).collect();
        assert!(Instant::now() < deadline, "no SENT for {open:?}");
        for actor in &mut actors {
            actor.read();
            actor.acknowledge(usize::MAX);
        }
    }
    for actor in &mut actors {
        for frame in actor.client.recv_until_pong() {
            actor.take(frame);
        }
    }
}

/// What nobody acknowledged is sent again soon: a storm ends with the last of that.
const SOON: [&str; 2] = ["--redeliver-secs", "1"];

#[test]
fn every_message_with_ack_has_one_sent_and_order_holds_on_one_shard() {
    with_gateway(1, &SOON, |gateway| storm(gateway, 101));
}

#[test]
fn every_message_with_ack_has_one_sent_and_order_holds_across_shards() {
    for (shards, seed) in [(2, 102), (4, 103), (4, 104), (56, 105)] {
        with_gateway(shards, &SOON, |gateway| storm(gateway, seed));
    }
}

#[test]
fn the_same_holds_within_tight_limits() {
    let flags = [
        "--outbox-bytes-max",
        "65536",
        "--unacked-max",
        "5",
        "--mailbox-bytes-max",
        "131072",
        "--recv-buffer-bytes",
        "1048576",
        "--redeliver-secs",
        "1",
    ];
    for (shards, seed) in [(1, 201), (4, 202)] {
        with_gateway(shards, &flags, |gateway| storm(gateway, seed));
    }
}
