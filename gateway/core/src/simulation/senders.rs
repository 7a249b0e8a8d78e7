//! Who may write to whom, on simulated I/O: sessions with tokens that name users, over the shards of a node; they write
//! right behind LOGIN and RENEW, come back with other tokens, and take each other's slots. Over nodes it is `cluster`.
//!
//! Properties: whoever is given a message was named by the latest token of the session that has sent it, or is its own
//! user; each message to somebody else is refused, once, by SENT 4 or ERROR 26, and no other one is; what was refused
//! is counted as that; nothing is kept of sessions that have gone.

use super::node::{Node, NodeConfig};
use super::planted::{Bug, with_planted};
use super::{Report, SharedWorld, World, outcome};
use crate::auth::signing::encode as sign;
use crate::auth::{Auth, AuthSwitch, JwtKeys};
use crate::io::sim::{Faults, Rng};
use crate::limits::{Limits, SendLimits, SendPolicy};
use jsonwebtoken::{Algorithm, EncodingKey, Header as TokenHeader};
use serde_json::{Value, json};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use trunkline_proto::{
    Code, FRAME_BYTES_MAX_LIMIT, Frame, Header, Kind, Login, Outcome, VERSION, decode, encode, encode_message, flags,
};

pub(super) const SECRET: &[u8] = &[9; 32];
const USERS: u64 = 6;
const DEVICES: usize = 2;
/// Virtual time of a run, and how long it is quiet at its end: messages are given up by then.
const RUN_US: u64 = 40_000_000;
const QUIET_US: u64 = 10_000_000;
const SEEDS: u64 = 20;
/// Renewals of a session are so far apart that each is looked at.
const RENEW_US: u64 = 300_000;

/// A claim `send`, and which of these users it names.
pub(super) fn claim(rng: &mut Rng, users: &[u64]) -> (Value, BTreeSet<u64>) {
    match rng.below(8) {
        0 => (Value::Null, BTreeSet::new()),
        1 => (json!("nobody in particular"), BTreeSet::new()),
        2 => (json!("*"), users.iter().copied().collect()),
        _ => {
            let named: BTreeSet<u64> = users.iter().copied().filter(|_| rng.chance(400)).collect();
            let ids = named.iter().map(|user| if user % 2 == 0 { json!(user) } else { json!(user.to_string()) });
            (ids.collect(), named)
        }
    }
}

/// A token of a user with this claim, which does not end in any run.
pub(super) fn token(user: u64, secret: &[u8], send: &Value) -> String {
    let mut claims = json!({"sub": user.to_string(), "exp": 4_102_444_800_u64});
    if !send.is_null() {
        claims["send"] = send.clone();
    }
    sign(&TokenHeader::new(Algorithm::HS256), &claims, &EncodingKey::from_secret(secret))
}

/// Accepts such tokens.
pub(super) fn auth(secret: &[u8]) -> Auth {
    Auth::Jwt(Box::new(JwtKeys::default().with_hs256(None, secret).expect("long enough")))
}

#[derive(Debug)]
struct Session {
    socket: usize,
    user: u64,
    open: bool,
    /// Whom the token names that was written last.
    named: BTreeSet<u64>,
    renewals: u64,
    renewed_us: u64,
    input: Vec<u8>,
}

#[derive(Debug)]
struct Message {
    sender: usize,
    to: u64,
    acked: bool,
    allowed: bool,
    refused: bool,
    answered: bool,
    delivered: u64,
}

struct Run {
    world: SharedWorld,
    node: Node,
    rng: Rng,
    sessions: Vec<Session>,
    by_socket: BTreeMap<usize, usize>,
    /// The latest session of each device, and when it does something next.
    devices: BTreeMap<(u64, usize), (Option<usize>, u64)>,
    messages: Vec<Message>,
}

impl Run {
    fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed ^ 0x0073_656E_6400);
        let shards = rng.within(1, 3) as u16;
        let send = SendLimits { policy: SendPolicy::Claim, bytes_max: 1 << 20, ..SendLimits::default() };
        let (redeliver_ms, redeliver_attempts_max) = (1_000, 2);
        let limits = Limits {
            heartbeat_secs: 600,
            renew_ms: 0,
            redeliver_ms,
            redeliver_attempts_max,
            send,
            ..Limits::default()
        };
        let world = World::new(seed, Faults::none(), usize::from(shards), 1, &limits, false);
        let world = Rc::new(RefCell::new(world));
        let node = NodeConfig {
            seed,
            name: "simulated".to_owned(),
            first_ring: 0,
            shards,
            listeners: 1,
            limits,
            auth: AuthSwitch::new(auth(SECRET)),
            tls: None,
            proxies: std::sync::Arc::default(),
            cluster: None,
            store: None,
            services: None,
        };
        let node = Node::new(node, &world);
        let devices = (1..=USERS).flat_map(|user| (0..DEVICES).map(move |device| (user, device)));
        let devices = devices.map(|device| (device, (None, rng.below(2_000_000)))).collect();
        Run { world, node, rng, sessions: Vec::new(), by_socket: BTreeMap::new(), devices, messages: Vec::new() }
    }

    fn act(&mut self, device: (u64, usize)) {
        let mut bytes = Vec::new();
        let session = self.devices[&device].0.filter(|index| self.sessions[*index].open);
        let index = match session {
            // At times another session takes the place of one that is there.
            Some(index) if self.rng.chance(930) => index,
            _ => self.log_in(&mut bytes, device),
        };
        match self.rng.below(10) {
            0..2 if session == Some(index) => self.renew(&mut bytes, index),
            2 => {
                encode(&mut bytes, &Header { kind: Kind::Logout, flags: 0, aux: 0, id: 0, peer: 0, stamp: 0 }, &[]);
                self.sessions[index].open = false;
            }
            _ => {}
        }
        if self.sessions[index].open {
            for _ in 0..self.rng.within(1, 4) {
                self.message(&mut bytes, index);
            }
        }
        self.world.borrow_mut().client_write(self.sessions[index].socket, &bytes);
    }

    fn log_in(&mut self, bytes: &mut Vec<u8>, device: (u64, usize)) -> usize {
        let (user, number) = device;
        let socket = self.world.borrow_mut().connect(65_536).expect("it listens");
        let (send, named) = self.claim();
        let login = Login {
            version: VERSION,
            user,
            token: token(user, SECRET, &send),
            device: format!("device-{number}"),
            ..Login::default()
        };
        encode_message(bytes, Kind::Login, 0, &login);
        let index = self.sessions.len();
        self.by_socket.insert(socket, index);
        self.sessions.push(Session { socket, user, open: true, named, renewals: 0, renewed_us: 0, input: Vec::new() });
        if let Some((before, _)) = self.devices.get_mut(&device)
            && let Some(before) = before.replace(index)
        {
            self.sessions[before].open = false;
        }
        index
    }

    fn renew(&mut self, bytes: &mut Vec<u8>, index: usize) {
        let now_us = self.world.borrow().now_us();
        if now_us < self.sessions[index].renewed_us + RENEW_US {
            return;
        }
        let (send, named) = self.claim();
        let session = &mut self.sessions[index];
        session.renewed_us = now_us;
        let token = token(session.user, SECRET, &send);
        let login = Login { version: VERSION, user: session.user, token, ..Login::default() };
        encode_message(bytes, Kind::Renew, 0, &login);
        session.named = named;
        session.renewals += 1;
    }

    fn claim(&mut self) -> (Value, BTreeSet<u64>) {
        claim(&mut self.rng, &(1..=USERS).collect::<Vec<_>>())
    }

    fn message(&mut self, bytes: &mut Vec<u8>, index: usize) {
        let (to, acked) = (self.rng.within(1, USERS), self.rng.chance(500));
        let Session { user, named, .. } = &self.sessions[index];
        let allowed = to == *user || named.contains(&to);
        let (refused, answered, delivered) = (false, false, 0);
        self.messages.push(Message { sender: index, to, acked, allowed, refused, answered, delivered });
        let id = self.messages.len() as u64;
        let flags = if acked { flags::ACK } else { 0 };
        encode(bytes, &Header { kind: Kind::Send, flags, aux: 0, id, peer: to, stamp: 0 }, b"a message");
    }

    fn run_until(&mut self, end_us: u64, acts: bool) {
        loop {
            let now_us = self.world.borrow().now_us();
            let event_us = self.world.borrow().next_event_us().unwrap_or(u64::MAX);
            let turn_us = self.node.next_turn_us().unwrap_or(u64::MAX);
            let act_us = self.devices.values().map(|(_, due_us)| *due_us).min().filter(|_| acts).unwrap_or(u64::MAX);
            let next_us = event_us.min(turn_us).min(act_us).max(now_us);
            if next_us > end_us {
                return self.world.borrow_mut().advance(end_us);
            }
            self.world.borrow_mut().advance(next_us);
            self.node.step();
            let stirred = self.world.borrow_mut().take_stirred();
            for socket in stirred {
                self.read(self.by_socket[&socket]);
            }
            let due = |(device, (_, due_us)): (&(u64, usize), &(_, u64))| (*due_us <= next_us).then_some(*device);
            for device in self.devices.iter().filter(|_| acts).filter_map(due).collect::<Vec<_>>() {
                let wait_us = self.rng.within(1, 1_500_000);
                if let Some((_, due_us)) = self.devices.get_mut(&device) {
                    *due_us = next_us + wait_us;
                }
                self.act(device);
            }
        }
    }

    fn read(&mut self, index: usize) {
        let session = &mut self.sessions[index];
        let read = self.world.borrow_mut().client_read(session.socket, usize::MAX);
        session.input.extend_from_slice(&read.bytes);
        let input = std::mem::take(&mut session.input);
        let (mut at, mut acks) = (0, Vec::new());
        while let Some((frame, len)) = decode(&input[at..], FRAME_BYTES_MAX_LIMIT).expect("the server frames properly")
        {
            at += len;
            self.frame(index, &frame, &mut acks);
        }
        let session = &mut self.sessions[index];
        session.input = input[at..].to_vec();
        if session.open {
            self.world.borrow_mut().client_write(session.socket, &acks);
        }
        if read.end || read.reset {
            assert!(!session.open, "a session of user {} was sent away", session.user);
            self.world.borrow_mut().client_close(session.socket);
        }
    }

    fn frame(&mut self, index: usize, frame: &Frame<'_>, acks: &mut Vec<u8>) {
        let user = self.sessions[index].user;
        match frame.known() {
            Some(Kind::LoginOk | Kind::Bye) => {}
            Some(Kind::Deliver) => {
                let message = &mut self.messages[frame.id as usize - 1];
                assert_eq!(message.to, user, "message {}: {message:?}", frame.id);
                assert!(message.allowed, "message {} was delivered, and no token allows it: {message:?}", frame.id);
                message.delivered += 1;
                if frame.flags & flags::ACK != 0 {
                    let (id, peer, stamp) = (frame.id, frame.peer, frame.stamp);
                    encode(acks, &Header { kind: Kind::Ack, flags: 0, aux: 0, id, peer, stamp }, &[]);
                }
            }
            Some(kind @ (Kind::Sent | Kind::Error)) => {
                let message = &mut self.messages[frame.id as usize - 1];
                assert_eq!((message.sender, message.to), (index, frame.peer), "message {}: {message:?}", frame.id);
                assert_eq!(kind == Kind::Sent, message.acked, "message {}: {message:?}", frame.id);
                assert!(!message.answered, "message {} is answered twice: {message:?}", frame.id);
                let denied = if kind == Kind::Sent { Outcome::Denied.as_u16() } else { Code::NotAllowed.as_u16() };
                message.answered = true;
                message.refused = frame.aux == denied;
                assert!(kind == Kind::Sent || message.refused, "ERROR {} of {message:?}", frame.aux);
                assert_eq!(message.refused, !message.allowed, "message {}, told {}: {message:?}", frame.id, frame.aux);
            }
            other => panic!("{other:?}"),
        }
    }

    fn whole(mut self) -> Report {
        self.run_until(RUN_US, true);
        self.run_until(RUN_US + QUIET_US, false);
        let mut refused = 0;
        for (id, message) in (1_u64..).zip(&self.messages) {
            let lasts = self.sessions[message.sender].open;
            assert!(!lasts || message.refused != message.allowed, "message {id}: {message:?}");
            assert!(!lasts || message.answered || !message.acked, "message {id} has no SENT: {message:?}");
            refused += u64::from(!message.allowed);
        }
        let sum = |stat: fn(&crate::metrics::ShardStats) -> u64| self.node.stats().map(stat).sum::<u64>();
        // A session that ends may have written what nobody has read.
        let told = self.messages.iter().filter(|message| message.refused).count() as u64;
        let denied = sum(|stats| stats.out_denied.get());
        assert!((told..=refused).contains(&denied), "{told} were told, {denied} counted, {refused} written");
        let fates = [
            denied,
            sum(|stats| stats.out_delivered.get()),
            sum(|stats| stats.out_acked.get()),
            sum(|stats| stats.out_offline.get()),
            sum(|stats| stats.out_offline_refused.get()),
        ];
        assert_eq!(sum(|stats| stats.messages_in.get()), fates.iter().sum::<u64>(), "messages and fates: {fates:?}");
        let kept = sum(|stats| stats.send_claims.get());
        let open = self.sessions.iter().filter(|session| session.open && !session.named.is_empty()).count() as u64;
        assert_eq!(kept, open, "claims that are kept, and sessions that have some");
        let counts = [
            ("refused", told),
            ("delivered", self.messages.iter().map(|message| message.delivered).sum()),
            ("renewed", self.sessions.iter().map(|session| session.renewals).sum()),
            ("moved", sum(|stats| stats.moved_in.get())),
        ];
        let counts = counts.map(|(name, count)| (name.to_owned(), count)).into();
        for index in 0..self.sessions.len() {
            self.sessions[index].open = false;
            self.world.borrow_mut().client_close(self.sessions[index].socket);
        }
        self.run_until(RUN_US + 2 * QUIET_US, false);
        let left: u64 = self.node.stats().map(|stats| stats.send_claims.get() + stats.send_claim_bytes.get()).sum();
        assert_eq!(left, 0, "claims are left of sessions that have gone");
        let trace_hash = self.world.borrow().trace_hash();
        Report { trace_hash, counts }
    }
}

#[test]
fn nobody_is_given_what_the_sender_s_token_does_not_allow() {
    let mut sums: BTreeMap<String, u64> = BTreeMap::new();
    for seed in 0..SEEDS {
        let report = outcome(|| Run::new(seed).whole());
        let report = report.unwrap_or_else(|violation| panic!("seed {seed}: {violation}"));
        report.counts.into_iter().for_each(|(name, count)| *sums.entry(name).or_default() += count);
    }
    println!("{sums:?}");
    assert!(sums.values().all(|count| *count > 200), "little has happened: {sums:?}");
}

#[test]
fn the_same_seed_is_the_same_run_of_senders() {
    let hashes = [0, 1].map(|_| Run::new(3).whole().trace_hash);
    assert_eq!(hashes[0], hashes[1]);
}

#[test]
fn a_claim_that_outlives_its_token_is_caught() {
    let caught = |seed: &u64| with_planted(Bug::ClaimOutlived, || outcome(|| Run::new(*seed).whole())).is_err();
    assert!((0..SEEDS).any(|seed| caught(&seed)));
}

#[test]
fn a_claim_that_is_lost_on_the_way_to_another_shard_is_caught() {
    let caught = |seed: &u64| with_planted(Bug::ClaimLost, || outcome(|| Run::new(*seed).whole())).is_err();
    assert!((0..SEEDS).any(|seed| caught(&seed)));
}
