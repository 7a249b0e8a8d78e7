//! The clients: devices that log in, talk, misbehave and leave at random, and what they find out.

use super::ledger::{Ledger, payload};
use super::proxy;
use super::scenario::Scenario;
use super::session::{Circumstances, Reaction, Session, Stage};
use super::tls::TlsEnd;
use super::websocket::WebSocketEnd;
use crate::io::sim::{Rng, SharedWorld};
use std::collections::{BTreeMap, BTreeSet};
use trunkline_proto::{Code, Header, Kind, Login, VERSION, encode, encode_message, flags};

/// A user id that no device has.
const NOBODY: u64 = 999_999;

/// A window that holds less is no match for a full outbox.
const SLOW_WINDOW_BYTES: usize = 4_096;

/// What a device does with a message that asks for an ACK.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AckHabit {
    Now,
    Late,
    Never,
    Twice,
}

/// What kind of client uses a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Habit {
    Busy,
    /// Logs in and says nothing more, heartbeats included.
    Silent,
    /// Does not speak the protocol.
    Stray,
}

#[derive(Debug)]
struct Device {
    user: u64,
    name: String,
    habit: Habit,
    acks: AckHabit,
    /// Index of its latest session.
    session: Option<usize>,
    next_us: u64,
}

#[derive(Clone, Copy, Debug)]
struct AckDue {
    session: usize,
    id: u64,
    from: u64,
    stamp: u64,
}

pub(super) struct Crowd {
    world: SharedWorld,
    scenario: Scenario,
    rng: Rng,
    /// What WebSockets are made of, so that it changes nothing else about a seed.
    websocket_rng: Rng,
    /// The same of TLS.
    tls_rng: Rng,
    /// The same of proxies.
    proxy_rng: Rng,
    devices: Vec<Device>,
    pub(super) sessions: Vec<Session>,
    by_socket: BTreeMap<usize, usize>,
    pub(super) ledger: Ledger,
    acks_due: BTreeMap<(u64, u64), AckDue>,
    ack_count: u64,
    /// No more than heartbeats and ACKs.
    settling: bool,
    pub(super) draining: bool,
    pub(super) kicked: BTreeSet<u64>,
    pub(super) byes: BTreeMap<u16, u64>,
    pub(super) logins_confirmed: u64,
}

impl Crowd {
    pub(super) fn new(scenario: &Scenario, world: &SharedWorld) -> Self {
        let mut rng = Rng::new(scenario.seed ^ 0xC0_FFEE);
        let mut devices = Vec::new();
        for user in &scenario.users {
            for number in 0..scenario.devices_per_user {
                let name = if number == 0 { String::new() } else { format!("device-{number}") };
                let habit = *rng.pick(&[Habit::Busy, Habit::Busy, Habit::Busy, Habit::Busy, Habit::Silent]);
                let acks = *rng.pick(&[AckHabit::Now, AckHabit::Now, AckHabit::Late, AckHabit::Never, AckHabit::Twice]);
                devices.push(Device { user: *user, name, habit, acks, session: None, next_us: rng.below(300_000) });
            }
        }
        for _ in 0..rng.below(3) {
            let next_us = rng.below(1_000_000);
            let (name, acks) = (String::new(), AckHabit::Never);
            devices.push(Device { user: 0, name, habit: Habit::Stray, acks, session: None, next_us });
        }
        Crowd {
            world: world.clone(),
            scenario: scenario.clone(),
            rng,
            websocket_rng: Rng::new(scenario.seed ^ 0x3EB5_0CE7),
            tls_rng: Rng::new(scenario.seed ^ 0x0007_1500),
            proxy_rng: Rng::new(scenario.seed ^ 0x0009_0C50),
            devices,
            sessions: Vec::new(),
            by_socket: BTreeMap::new(),
            ledger: Ledger::default(),
            acks_due: BTreeMap::new(),
            ack_count: 0,
            settling: false,
            draining: false,
            kicked: BTreeSet::new(),
            byes: BTreeMap::new(),
            logins_confirmed: 0,
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
            let session = self.by_socket[&socket];
            self.read(session);
        }
        while let Some(entry) = self.acks_due.first_entry()
            && entry.key().0 <= now_us
        {
            let due = entry.remove();
            self.acknowledge(due);
        }
        for device in 0..self.devices.len() {
            if self.devices[device].next_us <= now_us {
                let pace_us = if self.settling { 300_000 } else { self.scenario.pace_ms * 1_000 };
                self.devices[device].next_us = now_us + self.rng.within(1, 2 * pace_us);
                self.act(device);
            }
        }
    }

    fn read(&mut self, index: usize) {
        let now_us = self.now_us();
        if !self.sessions[index].reading {
            return;
        }
        let device = self.sessions[index].device;
        // Logins arrive in any order, so an older connection may replace a newer one.
        let replaced = self.sessions.iter().any(|other| other.device == device && other.index != index);
        let session = &mut self.sessions[index];
        let mut read = self.world.borrow_mut().client_read(session.socket, usize::MAX);
        if let Some(tls) = &mut session.tls {
            let (bytes, due) = tls.unwrap(&read.bytes, &mut self.tls_rng);
            read.bytes = bytes;
            if !due.is_empty() {
                self.world.borrow_mut().client_write(session.socket, &due);
            }
        }
        let (bytes, pongs) = match &mut session.websocket {
            Some(websocket) => websocket.unwrap(&read.bytes, &mut self.websocket_rng),
            None => (read.bytes, Vec::new()),
        };
        let around = Circumstances {
            scenario: &self.scenario,
            now_us,
            draining: self.draining,
            kicked: self.kicked.contains(&session.user),
            replaced,
        };
        let opening = session.stage == Stage::Opening;
        let mut reactions = Vec::new();
        session.received(&bytes, &mut self.ledger, around, |reaction| reactions.push(reaction));
        self.logins_confirmed += u64::from(opening && session.stage == Stage::Open);
        if !pongs.is_empty() && self.sessions[index].bye.is_none() {
            // A browser answers by itself, the page need not do anything.
            self.write_raw(index, &pongs);
        }
        for reaction in reactions {
            self.react(index, reaction);
        }
        if read.reset || read.end {
            self.ended(index, read.reset);
        }
    }

    fn react(&mut self, index: usize, reaction: Reaction) {
        match reaction {
            Reaction::Nothing => {}
            Reaction::Acknowledge { id, from, stamp } => self.plan_ack(AckDue { session: index, id, from, stamp }),
            Reaction::Bye => {
                let session = &self.sessions[index];
                let code = session.bye.expect("it has just come").as_u16();
                *self.byes.entry(code).or_default() += 1;
                // Some close at once, some wait for the server to.
                if self.rng.chance(500) {
                    let socket = session.socket;
                    self.world.borrow_mut().client_close(socket);
                }
            }
        }
    }

    /// The server has shut its side, or the connection is broken.
    fn ended(&mut self, index: usize, reset: bool) {
        let faults = &self.scenario.faults;
        let session = &mut self.sessions[index];
        if session.ended || session.broken {
            return;
        }
        if let (Some(websocket), false) = (&session.websocket, reset) {
            websocket.check_close(session.bye);
        }
        session.broken |= reset;
        session.ended |= !reset;
        if !reset && session.stage == Stage::Open {
            // Who was read by the server and read what it said is told why.
            let own_doing = session.leaving || session.spoiled || session.slow;
            assert!(own_doing, "session {index} was closed without BYE: {session:?}");
        }
        let turned_away =
            session.stage == Stage::Opening || session.leaving || session.spoiled || session.bye.is_some();
        if reset && faults.reset == 0 {
            assert!(turned_away || session.slow, "session {index} was reset: {session:?}");
        }
        session.stage = Stage::Over;
        self.world.borrow_mut().client_close(self.sessions[index].socket);
    }

    fn plan_ack(&mut self, due: AckDue) {
        let now_us = self.now_us();
        let device = self.sessions[due.session].device;
        let (delays, count) = match self.devices[device].acks {
            AckHabit::Now => (0, 1),
            AckHabit::Late => (2_000 * self.scenario.limits.redeliver_ms, 1),
            AckHabit::Twice => (20_000, 2),
            AckHabit::Never => (0, 0),
        };
        for _ in 0..count {
            self.ack_count += 1;
            let due_us = now_us + self.rng.within(1, delays.max(1));
            self.acks_due.insert((due_us, self.ack_count), due);
        }
    }

    fn acknowledge(&mut self, due: AckDue) {
        let session = &self.sessions[due.session];
        if !session.live() {
            return;
        }
        let header = Header { kind: Kind::Ack, flags: 0, aux: 0, id: due.id, peer: due.from, stamp: due.stamp };
        let mut bytes = Vec::new();
        encode(&mut bytes, &header, &[]);
        self.ledger.acknowledged(due.id);
        self.write(due.session, &bytes);
    }

    /// Writes frames, in a message where the client speaks through a WebSocket.
    fn write(&mut self, index: usize, frames: &[u8]) {
        let quiet = self.settling;
        match &mut self.sessions[index].websocket {
            None => self.write_raw(index, frames),
            Some(websocket) => {
                let bytes = websocket.wrap(frames, &mut self.websocket_rng, quiet);
                self.write_raw(index, &bytes);
            }
        }
    }

    fn write_raw(&mut self, index: usize, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let now_us = self.now_us();
        let session = &mut self.sessions[index];
        session.silence_us = session.silence_us.max(now_us - session.wrote_us);
        session.wrote_us = now_us;
        // Header and first bytes are one write, which may come in pieces of any length.
        let mut written = std::mem::take(&mut session.header);
        match &mut session.tls {
            None => written.extend_from_slice(bytes),
            Some(tls) => written.extend(tls.wrap(bytes, &mut self.tls_rng)),
        }
        self.world.borrow_mut().client_write(session.socket, &written);
    }

    fn act(&mut self, device: usize) {
        let Device { habit, session, .. } = self.devices[device];
        if habit == Habit::Stray {
            return self.stray(device);
        }
        let live = session.filter(|index| {
            let session = &self.sessions[*index];
            session.stage != Stage::Over && !session.leaving && !session.spoiled
        });
        let Some(index) = live else {
            if !self.settling && self.rng.chance(600) {
                self.log_in(device);
            }
            return;
        };
        if self.sessions[index].stage == Stage::Opening {
            // Mostly it waits; sometimes it gives up, or tries again on a second connection.
            if !self.settling {
                match self.rng.below(30) {
                    0 => self.leave(index),
                    1 => self.log_in(device),
                    _ => {}
                }
            }
            return;
        }
        match (habit, self.settling) {
            (Habit::Silent, _) => {}
            (_, true) => self.ping(index),
            (_, false) => self.busy(device, index),
        }
    }

    fn busy(&mut self, device: usize, index: usize) {
        match self.rng.below(100) {
            0..60 => {
                let bytes = self.messages(index);
                self.write(index, &bytes);
            }
            60..75 => self.ping(index),
            75..81 => self.odd_frame(index),
            81..90 => {
                let reading = !self.sessions[index].reading;
                self.set_reading(index, reading);
            }
            90..93 => self.log_in(device),
            93..98 => self.leave(index),
            98 => self.garbage(index),
            _ => self.flood(index),
        }
    }

    fn set_reading(&mut self, index: usize, reading: bool) {
        let session = &mut self.sessions[index];
        session.reading = reading;
        session.slow |= !reading;
        session.stopped |= !reading;
        self.read(index);
    }

    /// Opens a connection and logs in; messages may follow without waiting for LOGIN_OK.
    fn log_in(&mut self, device: usize) {
        let Some(index) = self.connect(device) else { return };
        let Device { user, name, .. } = &self.devices[device];
        // The default device has two names.
        let name = if name.is_empty() && index % 2 == 0 { "default".to_owned() } else { name.clone() };
        let login = Login {
            version: VERSION,
            user: *user,
            device: name,
            device_class: "simulated".to_owned(),
            heartbeat_secs: self.rng.below(5) as u32,
            ..Login::default()
        };
        let mut bytes = Vec::new();
        encode_message(&mut bytes, Kind::Login, 0, &login);
        self.devices[device].session = Some(index);
        if self.rng.chance(400) {
            bytes.extend(self.messages(index));
        }
        self.write(index, &bytes);
    }

    fn connect(&mut self, device: usize) -> Option<usize> {
        let window = self.rng.within(self.scenario.window_max / 2, self.scenario.window_max) as usize;
        let socket = self.world.borrow_mut().connect(window)?;
        let index = self.sessions.len();
        let mut session = Session::new(index, socket, self.devices[device].user, device, self.now_us());
        session.slow = window < SLOW_WINDOW_BYTES;
        session.websocket = self.websocket_rng.chance(350).then(WebSocketEnd::new);
        if self.scenario.tls && self.tls_rng.chance(400) {
            session.tls = Some(TlsEnd::new(&mut self.tls_rng));
        }
        if self.scenario.proxied {
            session.header = proxy::header(&mut self.proxy_rng);
        }
        self.sessions.push(session);
        self.by_socket.insert(socket, index);
        Some(index)
    }

    /// Some messages, as bytes.
    fn messages(&mut self, index: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        for _ in 0..self.rng.within(1, 6) {
            let to = if self.rng.chance(50) { NOBODY } else { *self.rng.pick(&self.scenario.users) };
            let acked = self.rng.chance(self.scenario.acked);
            let padding = self.rng.below(self.scenario.payload_max) as usize;
            let audience =
                self.sessions.iter().filter(|other| other.user == to && other.live() && other.index != index);
            let audience = audience.map(|other| other.index).collect();
            let session = &mut self.sessions[index];
            session.next_seq += 1;
            let id = self.ledger.add(session.user, to, acked, index, session.next_seq, audience);
            let flags = if acked { flags::ACK } else { 0 };
            let header = Header { kind: Kind::Send, flags, aux: 0, id, peer: to, stamp: 0 };
            encode(&mut bytes, &header, &payload(session.user, to, id, padding));
        }
        bytes
    }

    /// Far more messages than usual, all for one user.
    fn flood(&mut self, index: usize) {
        let frames = self.rng.within(5, 20);
        let bytes: Vec<u8> = (0..frames).flat_map(|_| self.messages(index)).collect();
        self.write(index, &bytes);
    }

    fn ping(&mut self, index: usize) {
        let session = &mut self.sessions[index];
        if session.stage != Stage::Open {
            return;
        }
        let aux = (session.wrote_us / 7 + session.next_seq) as u16;
        session.next_seq += 1;
        session.pings.push_back(aux);
        let mut bytes = Vec::new();
        encode(&mut bytes, &Header { kind: Kind::Ping, flags: 0, aux, id: 0, peer: 0, stamp: 0 }, &[]);
        self.write(index, &bytes);
    }

    /// A frame that is answered with an ERROR and ends nothing.
    fn odd_frame(&mut self, index: usize) {
        let mut bytes = Vec::new();
        let header = |kind| Header { kind, flags: 0, aux: 0, id: 0, peer: 0, stamp: 0 };
        let code = match self.rng.below(6) {
            0 => {
                encode(&mut bytes, &header(Kind::Send), b"no id");
                Code::BadRequest
            }
            1 => {
                encode(&mut bytes, &header(Kind::GroupSend), b"to a group");
                Code::Unsupported
            }
            2 => {
                encode(&mut bytes, &header(Kind::Sync), &[]);
                Code::Unsupported
            }
            3 => {
                encode(&mut bytes, &header(Kind::Login), &[]);
                Code::AlreadyLoggedIn
            }
            4 => {
                encode(&mut bytes, &header(Kind::Deliver), b"from a client");
                Code::UnknownKind
            }
            _ => {
                bytes.extend_from_slice(&[0, 0, 0, 11, 0x7E, 0, 0, 0, 1, 2, 3]);
                Code::UnknownKind
            }
        };
        self.sessions[index].errors.push_back(code);
        self.write(index, &bytes);
    }

    /// Bytes that are no frames, or the beginning of one that never ends.
    fn garbage(&mut self, index: usize) {
        let bytes: Vec<u8> = match self.rng.below(4) {
            0 => vec![0, 0, 0, self.rng.below(8) as u8, 0, 0, 0, 0],
            1 => vec![0xFF; 40],
            2 => (0..self.rng.within(1, 300)).map(|_| self.rng.bits() as u8).collect(),
            _ => vec![0, 0, 3, 0xE8, 3, 0],
        };
        self.sessions[index].spoiled = true;
        self.write(index, &bytes);
    }

    /// A client that never logs in: it says nothing, or something wrong.
    fn stray(&mut self, device: usize) {
        if let Some(index) = self.devices[device].session.take() {
            if self.rng.chance(500) {
                self.leave(index);
            }
            return;
        }
        if self.settling {
            return;
        }
        let Some(index) = self.connect(device) else { return };
        self.devices[device].session = Some(index);
        self.sessions[index].spoiled = true;
        let mut bytes = Vec::new();
        let login = Login { version: VERSION, user: 0, ..Login::default() };
        match self.rng.below(9) {
            0 => {}
            1 => encode_message(&mut bytes, Kind::Login, 0, &login),
            2 => encode_message(&mut bytes, Kind::Login, 0, &Login { version: 7, user: 3, ..login }),
            3 => encode_message(&mut bytes, Kind::Login, 0, &Login { user: 3, device: "x".repeat(65), ..login }),
            4 => encode(&mut bytes, &Header { kind: Kind::Ping, flags: 0, aux: 1, id: 0, peer: 0, stamp: 0 }, &[]),
            5 => {
                let (websocket, request) = WebSocketEnd::astray();
                self.sessions[index].websocket = Some(websocket);
                return self.write_raw(index, request);
            }
            6 => {
                self.sessions[index].websocket = None;
                self.sessions[index].tls = Some(TlsEnd::astray(&mut self.tls_rng));
                bytes.extend_from_slice(b"\x16\x03\x01\0\xc8\x01");
            }
            7 => bytes.extend_from_slice(&[0, 0, 0, 40, 1, 0]),
            _ => return self.garbage(index),
        }
        self.write(index, &bytes);
    }

    /// The client goes, in one of the ways clients do.
    fn leave(&mut self, index: usize) {
        let session = &mut self.sessions[index];
        session.leaving = true;
        let (socket, stage) = (session.socket, session.stage);
        match self.rng.below(4) {
            0 if stage == Stage::Open => {
                let mut bytes = Vec::new();
                encode(&mut bytes, &Header { kind: Kind::Logout, flags: 0, aux: 0, id: 0, peer: 0, stamp: 0 }, &[]);
                self.write(index, &bytes);
            }
            0 | 1 => self.world.borrow_mut().client_close(socket),
            2 => self.world.borrow_mut().client_reset(socket),
            _ if self.sessions[index].websocket.is_some() && self.websocket_rng.chance(500) => {
                let Some(websocket) = &mut self.sessions[index].websocket else { return };
                let bytes = websocket.close(&mut self.websocket_rng);
                self.write_raw(index, &bytes);
            }
            _ => self.world.borrow_mut().client_shutdown(socket),
        }
    }

    /// From now on the clients only read, acknowledge and keep their sessions alive.
    pub(super) fn settle(&mut self) {
        self.settling = true;
        for index in 0..self.sessions.len() {
            self.set_reading(index, true);
        }
    }

    /// All clients go.
    pub(super) fn leave_all(&mut self) {
        for index in 0..self.sessions.len() {
            self.leave(index);
        }
    }

    /// Closes what half-closed or logged-out clients left open.
    pub(super) fn hang_up_all(&mut self) {
        for session in &self.sessions {
            self.world.borrow_mut().client_close(session.socket);
        }
    }

    /// A user who is or was logged in, for a request of the control thread.
    pub(super) fn some_user(&mut self) -> u64 {
        *self.rng.pick(&self.scenario.users)
    }

    /// Panics unless everything under way has come to its end: run it some time after `settle`.
    pub(super) fn check_settled(&self) {
        for session in &self.sessions {
            let name = format!("session {} of user {}", session.index, session.user);
            assert!(
                session.stage != Stage::Opening || session.leaving || session.spoiled,
                "{name}: LOGIN was not answered"
            );
            let closed = session.ended || session.broken;
            assert!(session.bye.is_none() || closed || self.has_closed(session), "{name}: not closed after BYE");
            if !session.live() {
                continue;
            }
            let limited = self.scenario.limits.frames_per_sec != 0;
            let unanswered = self.ledger.unanswered(session.index);
            assert!(
                unanswered.is_empty(),
                "{name}: no SENT for messages {unanswered:?}: {}",
                self.ledger.told(&unanswered)
            );
            // The latest PING may be under way.
            assert!(limited || session.pings.len() <= 1, "{name}: PINGs without PONG");
            let unanswered = session.websocket.as_ref().map_or(0, WebSocketEnd::unanswered);
            assert_eq!(unanswered, 0, "{name}: Pings without Pong");
            assert!(limited || session.errors.is_empty(), "{name}: ERROR frames missing: {:?}", session.errors);
        }
        if !self.scenario.lossy {
            self.check_complete();
        }
    }

    fn has_closed(&self, session: &Session) -> bool {
        self.world.borrow().client_has_left(session.socket)
    }

    /// With no limit low, a message between two sessions that lasted has been delivered.
    fn check_complete(&self) {
        for (id, message) in self.ledger.iter() {
            if !self.sessions[message.sender].live() {
                continue;
            }
            for reader in message.audience.iter().map(|index| &self.sessions[*index]).filter(|reader| reader.live()) {
                assert!(reader.got.contains(&id), "message {id} never reached session {}: {message:?}", reader.index);
            }
        }
    }
}
