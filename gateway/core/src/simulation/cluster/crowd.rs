//! The clients: devices that log in at any node, talk, wander off to another node and come back when their connection
//! dies.

use super::client::{Circumstances, Client, Delivered, Stage};
use super::ledger::{Ledger, NewMessage};
use super::rooms::{NewRoomMessage, ROOMS};
use super::scenario::Scenario;
use super::transport::Transport;
use crate::io::sim::{Rng, SharedWorld};
use crate::simulation::senders::{self, SECRET};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use trunkline_proto::{Header, Kind, Login, Outcome, VERSION, encode, encode_message, flags};

/// A user id that no device has.
const NOBODY: u64 = 999_999;
const WINDOW_BYTES: usize = 65_536;
/// A client that waits so long for its LOGIN_OK tries another node.
const LOGIN_PATIENCE_US: u64 = 8_000_000;
/// When all is well, a device does something about so often.
const QUIET_PACE_US: u64 = 300_000;

/// What a device does with a message that asks for an ACK.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AckHabit {
    Now,
    Late,
    Twice,
    Never,
}

#[derive(Debug)]
struct Device {
    user: u64,
    name: String,
    acks: AckHabit,
    /// Its connections, the latest last.
    clients: Vec<usize>,
    next_us: u64,
}

/// How much the clients do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mood {
    /// All they can think of.
    Busy,
    /// Heartbeats and ACKs, and a login where there is no session.
    Quiet,
    /// As quiet, and no logins.
    Leaving,
}

pub(super) struct Crowd {
    world: SharedWorld,
    scenario: Scenario,
    rng: Rng,
    /// What lies between frames and bytes is drawn from this, so that it changes little else about a seed.
    transport_rng: Rng,
    /// What was met over which transport.
    pub(super) transports: BTreeMap<String, u64>,
    /// Where the nodes accept clients.
    doors: Vec<SocketAddr>,
    devices: Vec<Device>,
    pub(super) clients: Vec<Client>,
    by_socket: BTreeMap<usize, usize>,
    pub(super) ledger: Ledger,
    acks_due: BTreeMap<(u64, u64), (usize, Delivered)>,
    ack_count: u64,
    pub(super) mood: Mood,
    /// When a user's home moved for the last time.
    pub(super) homes_since_us: u64,
}

impl Crowd {
    pub(super) fn new(scenario: &Scenario, world: &SharedWorld, doors: Vec<SocketAddr>) -> Self {
        let mut rng = Rng::new(scenario.seed ^ 0x0C10_FFEE);
        let mut devices = Vec::new();
        for user in &scenario.users {
            for number in 0..scenario.devices_per_user {
                let name = if number == 0 { String::new() } else { format!("device-{number}") };
                let acks = *rng.pick(&[AckHabit::Now, AckHabit::Now, AckHabit::Late, AckHabit::Twice, AckHabit::Never]);
                devices.push(Device { user: *user, name, acks, clients: Vec::new(), next_us: rng.below(1_500_000) });
            }
        }
        Crowd {
            world: world.clone(),
            scenario: scenario.clone(),
            rng,
            transport_rng: Rng::new(scenario.seed ^ 0x0014_A4C5),
            transports: BTreeMap::new(),
            doors,
            devices,
            clients: Vec::new(),
            by_socket: BTreeMap::new(),
            ledger: Ledger::default(),
            acks_due: BTreeMap::new(),
            ack_count: 0,
            mood: Mood::Busy,
            homes_since_us: 0,
        }
    }

    /// When some client does something next.
    pub(super) fn next_due_us(&self) -> u64 {
        let device = self.devices.iter().map(|device| device.next_us).min().unwrap_or(u64::MAX);
        self.acks_due.first_key_value().map_or(device, |((due_us, _), _)| device.min(*due_us))
    }

    fn now_us(&self) -> u64 {
        self.world.borrow().now_us()
    }

    /// Lets the clients whose time has come read, acknowledge and act.
    pub(super) fn step(&mut self) {
        let now_us = self.now_us();
        let stirred = self.world.borrow_mut().take_stirred();
        for socket in stirred {
            let client = self.by_socket[&socket];
            self.read(client);
        }
        while let Some(entry) = self.acks_due.first_entry()
            && entry.key().0 <= now_us
        {
            let (client, delivered) = entry.remove();
            self.acknowledge(client, delivered);
        }
        for device in 0..self.devices.len() {
            if self.devices[device].next_us <= now_us {
                let pace_us = if self.mood == Mood::Busy { self.scenario.pace_ms * 1_000 } else { QUIET_PACE_US };
                self.devices[device].next_us = now_us + self.rng.within(1, 2 * pace_us);
                self.act(device);
            }
        }
    }

    fn read(&mut self, index: usize) {
        let now_us = self.now_us();
        let client = &mut self.clients[index];
        let mut read = self.world.borrow_mut().client_read(client.socket, usize::MAX);
        if let Some(transport) = &mut client.transport {
            let (frames, due) = transport.unwrap(&read.bytes);
            read.bytes = frames;
            self.world.borrow_mut().client_write(client.socket, &due);
        }
        let rivalled = self.devices[client.device].clients.len() > 1;
        let around = Circumstances { now_us, homes_since_us: self.homes_since_us, rivalled };
        let was = client.stage;
        let to_acknowledge = client.received(&read.bytes, &mut self.ledger, around);
        let over = read.reset || read.end || client.bye.is_some();
        if let Some(transport) = &client.transport {
            if read.end && !read.reset {
                transport.check_close(client.bye);
            }
            let name = transport.name();
            let mut count = |what: String| *self.transports.entry(what).or_default() += 1;
            if was == Stage::Opening && client.stage == Stage::Open {
                count(format!("sessions over {name}"));
            }
            if let (Stage::Opening | Stage::Open, Some(bye)) = (was, client.bye) {
                count(format!("BYE {bye:?} over {name}"));
            }
            if !to_acknowledge.is_empty() && transport.since_us() < self.homes_since_us {
                count(format!("messages over {name} since homes moved"));
            }
        }
        if client.stage != was || over {
            let Client { user, session, node, stage, bye, .. } = client;
            tracing::debug!(
                "client {index} of user {user}, session {session} at {node}: {stage:?}, BYE {bye:?}, over {over}"
            );
        }
        for delivered in to_acknowledge {
            self.plan_ack(index, delivered);
        }
        if over {
            let client = &mut self.clients[index];
            client.stage = Stage::Over;
            self.world.borrow_mut().client_close(client.socket);
        }
    }

    /// A node has been fenced: sessions there that last go on when it may serve again.
    pub(super) fn met_fence(&mut self, node: &str) {
        for client in self.clients.iter().filter(|client| client.live() && client.node == node) {
            if let Some(transport) = &client.transport {
                *self.transports.entry(format!("sessions over {} at a fence", transport.name())).or_default() += 1;
            }
        }
    }

    fn plan_ack(&mut self, index: usize, delivered: Delivered) {
        let now_us = self.now_us();
        let (delay_us, count) = match self.devices[self.clients[index].device].acks {
            AckHabit::Now => (1, 1),
            AckHabit::Late => (1_500 * self.scenario.limits.redeliver_ms, 1),
            AckHabit::Twice => (20_000, 2),
            AckHabit::Never => (1, 0),
        };
        for _ in 0..count {
            self.ack_count += 1;
            let due_us = now_us + self.rng.within(1, delay_us);
            self.acks_due.insert((due_us, self.ack_count), (index, delivered));
        }
    }

    fn acknowledge(&mut self, index: usize, delivered: Delivered) {
        if !self.clients[index].live() {
            return;
        }
        let Delivered { id, from, stamp } = delivered;
        let mut bytes = Vec::new();
        encode(&mut bytes, &Header { kind: Kind::Ack, flags: 0, aux: 0, id, peer: from, stamp }, &[]);
        self.ledger.acknowledged(id);
        self.write(index, &bytes);
    }

    fn write(&mut self, index: usize, frames: &[u8]) {
        let client = &mut self.clients[index];
        let wrapped = client.transport.as_mut().map(|transport| transport.wrap(frames));
        self.world.borrow_mut().client_write(client.socket, wrapped.as_deref().unwrap_or(frames));
    }

    fn act(&mut self, device: usize) {
        let now_us = self.now_us();
        for client in self.devices[device].clients.clone() {
            self.look_after(client, now_us);
        }
        let open = self.devices[device].clients.iter().copied();
        let latest = open.rev().find(|client| self.clients[*client].stage != Stage::Over);
        match (latest, self.mood) {
            (None, Mood::Leaving) => {}
            (None, _) => {
                if self.rng.chance(700) {
                    self.log_in(device);
                }
            }
            (Some(client), Mood::Busy) if self.clients[client].live() => self.be_busy(device, client),
            (Some(client), Mood::Quiet) if self.clients[client].live() && !self.scenario.watches => {
                self.be_in_a_room(client);
            }
            (Some(_), _) => {}
        }
    }

    /// A connection that says nothing any more is given up; the others are kept alive, those that were left behind too.
    fn look_after(&mut self, index: usize, now_us: u64) {
        let client = &self.clients[index];
        let patience_us = match client.stage {
            Stage::Opening => LOGIN_PATIENCE_US,
            Stage::Open => 2_500 * client.heartbeat_ms,
            Stage::Over => return,
        };
        if now_us - client.heard_us > patience_us {
            return self.reset(index);
        }
        if client.stage == Stage::Open {
            let mut bytes = Vec::new();
            encode(&mut bytes, &Header { kind: Kind::Ping, flags: 0, aux: 7, id: 0, peer: 0, stamp: 0 }, &[]);
            self.write(index, &bytes);
        }
    }

    fn be_busy(&mut self, device: usize, client: usize) {
        if self.scenario.watches {
            return self.observe(device, client);
        }
        if self.scenario.rooms_only {
            return self.frequent(client);
        }
        match self.rng.below(100) {
            0..55 => self.talk(client),
            55..75 => self.frequent(client),
            75..85 => {}
            // The connection before stays open, as that of a telephone that has changed its network.
            85..92 => self.log_in(device),
            _ => self.leave(client),
        }
    }

    /// The client watches others, or goes for a while.
    fn observe(&mut self, device: usize, index: usize) {
        let others = self.scenario.users.iter().copied().chain([NOBODY]);
        let users: Vec<u64> = others.filter(|_| self.rng.chance(400)).collect();
        let mut bytes = Vec::new();
        let watching = &mut self.clients[index].watching;
        match self.rng.below(100) {
            0..25 => watching.watch(&mut bytes, &users, true),
            25..32 => watching.watch(&mut bytes, &users, false),
            32..37 if !users.is_empty() => watching.unwatch(&mut bytes, &users),
            37..50 => {
                match self.rng.chance(500) {
                    true => self.leave(index),
                    false => self.reset(index),
                }
                // Back so soon that nobody is told, or when that has just been told, or later.
                let away_us = *self.rng.pick(&[2_000_000, 14_000_000, 14_000_000, 25_000_000]);
                self.devices[device].next_us = self.now_us() + self.rng.within(away_us / 2, away_us);
                return;
            }
            _ => return,
        }
        self.write(index, &bytes);
    }

    /// Panics unless each session was told last what is so of everybody whom it follows. Returns how many states that
    /// are.
    pub(super) fn check_watches(&self) -> u64 {
        let is_online = |user| self.clients.iter().any(|client| client.live() && client.user == user);
        let live = self.clients.iter().filter(|client| client.live());
        live.map(|client| client.watching.check(&format!("client {} at {}", client.index, client.node), is_online))
            .sum()
    }

    /// Everybody who is there follows everybody from now on.
    pub(super) fn watch_all(&mut self) {
        for index in 0..self.clients.len() {
            if self.clients[index].live() {
                let (mut bytes, users) = (Vec::new(), self.scenario.users.clone());
                self.clients[index].watching.watch(&mut bytes, &users, true);
                self.write(index, &bytes);
            }
        }
    }

    fn log_in(&mut self, device: usize) {
        let door = *self.rng.pick(&self.doors);
        let Some(socket) = self.world.borrow_mut().connect_at(door, WINDOW_BYTES) else { return };
        let Device { user, name, .. } = &self.devices[device];
        let index = self.clients.len();
        let login = Login {
            version: VERSION,
            user: *user,
            device: name.clone(),
            device_class: "simulated".to_owned(),
            heartbeat_secs: self.rng.below(4) as u32,
            ..Login::default()
        };
        let mut client = Client::new(index, socket, *user, device, self.world.borrow().now_us());
        let mut bytes = Vec::new();
        match self.scenario.claims {
            true => {
                let users: Vec<u64> = self.scenario.users.iter().copied().chain([NOBODY]).collect();
                let (send, named) = senders::claim(&mut self.rng, &users);
                client.named = Some(named);
                let token = senders::token(*user, SECRET, &send);
                encode_message(&mut bytes, Kind::Login, 0, &Login { token, ..login });
            }
            false => encode_message(&mut bytes, Kind::Login, 0, &login),
        }
        let now_us = self.world.borrow().now_us();
        // Runs of live rooms alone are about what crosses links between nodes, and short: all their clients are native.
        if !self.scenario.rooms_only {
            client.transport = Transport::draw(&mut self.transport_rng, now_us);
        }
        self.clients.push(client);
        self.by_socket.insert(socket, index);
        self.devices[device].clients.push(index);
        if self.mood == Mood::Busy && self.rng.chance(300) {
            // Without waiting for LOGIN_OK.
            bytes.extend(self.messages(index));
        }
        self.write(index, &bytes);
    }

    /// A session that is in no room joins one.
    fn be_in_a_room(&mut self, index: usize) {
        let rooms = &self.clients[index].rooms;
        let is_in = ROOMS.iter().any(|room| rooms.is_in(*room) || !rooms.is_quiet(*room));
        if !is_in && !rooms.unsupported {
            let (mut bytes, room) = (Vec::new(), *self.rng.pick(&ROOMS));
            self.clients[index].rooms.ask(&mut bytes, room, true);
            self.write(index, &bytes);
        }
    }

    /// The client does something in a room.
    fn frequent(&mut self, index: usize) {
        let room = *self.rng.pick(&ROOMS);
        let mut bytes = Vec::new();
        let rooms = &mut self.clients[index].rooms;
        match (rooms.is_in(room), self.rng.below(100)) {
            (true, 0..75) => {
                for _ in 0..self.rng.within(1, 3) {
                    let acked = self.rng.chance(self.scenario.acked.max(200));
                    self.room_message(&mut bytes, index, room, acked, None);
                }
            }
            (true, 75..90) => rooms.ask(&mut bytes, room, false),
            // Without waiting for the answers.
            (true, _) => [false, true].into_iter().for_each(|join| rooms.ask(&mut bytes, room, join)),
            (false, 0..10) => [true, false].into_iter().for_each(|join| rooms.ask(&mut bytes, room, join)),
            (false, 10..30) if rooms.is_out(room) => {
                rooms.ask(&mut bytes, room, true);
                let behind = Some(rooms.latest());
                for _ in 0..self.rng.within(1, 2) {
                    let acked = self.rng.chance(700);
                    let from = self.clients[index].user;
                    let message = NewRoomMessage { room, from, sender: index, acked, behind, proves_for: None };
                    self.ledger.rooms.write(&mut bytes, message);
                }
            }
            (false, 10..90) => rooms.ask(&mut bytes, room, true),
            (false, _) => rooms.ask(&mut bytes, room, false),
        }
        self.write(index, &bytes);
    }

    fn room_message(&mut self, out: &mut Vec<u8>, index: usize, room: u64, acked: bool, proves: Option<Vec<usize>>) {
        let from = self.clients[index].user;
        let message = NewRoomMessage { room, from, sender: index, acked, behind: None, proves_for: proves };
        self.ledger.rooms.write(out, message);
    }

    /// Each session writes to each room that it is in, now that all is well.
    pub(super) fn prove_rooms(&mut self) {
        for index in 0..self.clients.len() {
            if !self.clients[index].live() {
                continue;
            }
            let mut bytes = Vec::new();
            for room in self.clients[index].rooms.rooms().collect::<Vec<_>>() {
                let others = self.clients.iter().filter(|other| other.live() && other.index != index);
                let members = others.filter(|other| other.rooms.is_in(room)).map(|other| other.index).collect();
                self.room_message(&mut bytes, index, room, true, Some(members));
            }
            self.write(index, &bytes);
        }
    }

    /// Panics unless all that was written since `prove_rooms` was accepted and has arrived. Returns how many copies
    /// had to.
    pub(super) fn check_rooms_proof(&self) -> u64 {
        let mut copies = 0;
        for (id, message) in &self.ledger.rooms.messages {
            let Some(members) = &message.proves_for else { continue };
            assert_eq!(message.outcome, Some(Outcome::Accepted), "room message {id}: {message:?}");
            for member in members {
                let got = self.clients[*member].rooms.has(*id);
                assert!(got, "room message {id} never reached client {member}: {message:?}");
                copies += 1;
            }
        }
        copies
    }

    /// For each room the nodes that have sessions in it.
    pub(super) fn nodes_of_rooms(&self) -> BTreeMap<u64, BTreeSet<&str>> {
        let mut nodes: BTreeMap<u64, BTreeSet<&str>> = BTreeMap::new();
        for client in self.clients.iter().filter(|client| client.live()) {
            for room in client.rooms.rooms() {
                nodes.entry(room).or_default().insert(&client.node);
            }
        }
        nodes
    }

    fn talk(&mut self, index: usize) {
        let bytes = self.messages(index);
        self.write(index, &bytes);
    }

    /// Some messages, as bytes.
    fn messages(&mut self, index: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        for _ in 0..self.rng.within(1, 4) {
            let to = if self.rng.chance(30) { NOBODY } else { *self.rng.pick(&self.scenario.users) };
            let acked = self.rng.chance(self.scenario.acked);
            self.message(&mut bytes, index, to, acked, false);
        }
        bytes
    }

    fn message(&mut self, bytes: &mut Vec<u8>, index: usize, to: u64, acked: bool, proves: bool) {
        let readers = self.clients.iter().filter(|other| other.live() && other.user == to && other.index != index);
        let audience = readers.map(|other| other.index).collect();
        let padding = self.rng.below(self.scenario.payload_max) as usize;
        let sent_us = self.now_us();
        let client = &mut self.clients[index];
        client.next_seq += 1;
        let (from, seq) = (client.user, client.next_seq);
        let allowed = to == from || client.named.as_ref().is_none_or(|named| named.contains(&to));
        let message = NewMessage { from, to, acked, sender: index, seq, sent_us, audience, proves, allowed, padding };
        let (id, payload) = self.ledger.add(message);
        let flags = if acked { flags::ACK } else { 0 };
        encode(bytes, &Header { kind: Kind::Send, flags, aux: 0, id, peer: to, stamp: 0 }, &payload);
    }

    /// The client goes, in one of the ways clients do.
    fn leave(&mut self, index: usize) {
        match self.rng.below(3) {
            0 if self.clients[index].live() => {
                let mut bytes = Vec::new();
                encode(&mut bytes, &Header { kind: Kind::Logout, flags: 0, aux: 0, id: 0, peer: 0, stamp: 0 }, &[]);
                self.write(index, &bytes);
                self.clients[index].left = true;
                self.clients[index].stage = Stage::Over;
            }
            0 | 1 => {
                self.clients[index].left = true;
                self.clients[index].stage = Stage::Over;
                self.world.borrow_mut().client_close(self.clients[index].socket);
            }
            _ => self.reset(index),
        }
    }

    fn reset(&mut self, index: usize) {
        self.clients[index].left = true;
        self.clients[index].stage = Stage::Over;
        self.world.borrow_mut().client_reset(self.clients[index].socket);
    }

    /// All clients go.
    pub(super) fn leave_all(&mut self) {
        self.mood = Mood::Leaving;
        for index in 0..self.clients.len() {
            if self.clients[index].stage != Stage::Over {
                self.leave(index);
            }
        }
    }

    /// Closes what logged-out clients left open.
    pub(super) fn hang_up_all(&mut self) {
        for client in &self.clients {
            self.world.borrow_mut().client_close(client.socket);
        }
    }

    /// The session of each device. Panics if one has none, or two.
    pub(super) fn check_one_session_each(&self) {
        for (number, device) in self.devices.iter().enumerate() {
            let of_device = device.clients.iter().map(|client| &self.clients[*client]);
            let open: Vec<&Client> = of_device.filter(|client| client.stage != Stage::Over).collect();
            let opening = open.iter().filter(|client| client.stage == Stage::Opening).count();
            assert_eq!(opening, 0, "device {number} of user {}: LOGIN is not answered", device.user);
            let open: Vec<String> = open
                .iter()
                .map(|client| format!("client {}, session {} at {}", client.index, client.session, client.node))
                .collect();
            assert_eq!(open.len(), 1, "device {number} of user {} has these sessions: {open:?}", device.user);
        }
    }

    /// Panics unless each message with ACK of a client that is still there got its SENT.
    pub(super) fn check_answered(&self) {
        for (id, message) in self.ledger.iter() {
            if message.acked && self.clients[message.sender].live() {
                assert!(message.outcome.is_some(), "message {id} got no SENT: {message:?}");
            }
        }
        for (id, message) in &self.ledger.rooms.messages {
            if message.acked && self.clients[message.sender].live() {
                assert!(message.is_answered(), "room message {id} got no answer: {message:?}");
            }
        }
        for client in self.clients.iter().filter(|client| client.live()) {
            let waits = ROOMS.iter().filter(|room| !client.rooms.is_quiet(**room)).count();
            assert_eq!(waits, 0, "client {}: a join or a leave was not answered: {client:?}", client.index);
        }
    }

    /// Messages to users that were answered with that outcome, and messages to live rooms.
    pub(super) fn answered_with(&self, outcome: Outcome) -> (u64, u64) {
        let to_users = self.ledger.iter().filter(|(_, message)| message.outcome == Some(outcome)).count();
        let to_rooms = self.ledger.rooms.messages.values().filter(|message| message.outcome == Some(outcome));
        (to_users as u64, to_rooms.count() as u64)
    }

    /// Panics unless each message written in calm by a session that lasted has reached every session that lasted.
    /// Returns how many had to.
    pub(super) fn check_calm(&self, calm: impl Fn(u64) -> bool) -> u64 {
        let mut checked = 0;
        for (id, message) in self.ledger.iter() {
            if !message.allowed || !self.clients[message.sender].live() || !calm(message.sent_us) {
                continue;
            }
            for reader in message.audience.iter().map(|index| &self.clients[*index]).filter(|reader| reader.live()) {
                let got = reader.got.contains(&id);
                assert!(got, "message {id} was lost on its way to client {}: {message:?}", reader.index);
                checked += 1;
            }
        }
        checked
    }

    /// Every device writes to every user, now that all is well.
    pub(super) fn prove(&mut self) {
        let live: Vec<usize> = self.clients.iter().filter(|client| client.live()).map(|client| client.index).collect();
        for index in &live {
            let mut bytes = Vec::new();
            for to in self.scenario.users.clone() {
                for acked in [false, true] {
                    self.message(&mut bytes, *index, to, acked, true);
                }
            }
            self.write(*index, &bytes);
        }
    }

    /// Panics unless all that was written since `prove` has arrived and has its answer.
    pub(super) fn check_proof(&self) {
        for (id, message) in self.ledger.iter() {
            if !message.proves || !message.allowed {
                continue;
            }
            let audience = &message.audience;
            for reader in audience {
                let client = &self.clients[*reader];
                assert!(client.live(), "client {reader} was lost although all was well: {client:?}");
                assert!(client.got.contains(&id), "message {id} never reached client {reader}: {message:?}");
            }
            let acks = |client: &&usize| self.devices[self.clients[**client].device].acks;
            let certain = audience.iter().any(|client| matches!(acks(&client), AckHabit::Now | AckHabit::Twice));
            if message.acked && (certain || audience.is_empty()) {
                let expected = if certain { Outcome::Delivered } else { Outcome::OfflineNotStored };
                assert_eq!(message.outcome, Some(expected), "message {id}: {message:?}");
            }
        }
    }

    /// Panics unless what no token allows was refused, as far as the sender is still there.
    pub(super) fn check_refused(&self) {
        for (id, message) in self.ledger.iter().filter(|(_, message)| !message.allowed) {
            let lasts = self.clients[message.sender].live();
            assert!(message.is_refused() || !lasts, "message {id} was not refused: {message:?}");
        }
    }

    /// Device and session id of each session of a user, as the clients know them.
    pub(super) fn sessions(&self, user: u64) -> BTreeSet<(String, u64)> {
        let live = self.clients.iter().filter(|client| client.live() && client.user == user);
        let name = |client: &Client| {
            let name = self.devices[client.device].name.as_str();
            if name.is_empty() { "default" } else { name }.to_owned()
        };
        live.map(|client| (name(client), client.session)).collect()
    }
}
