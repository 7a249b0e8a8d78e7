//! The members of a room at one server: how they come in, what they are sent, and that it is what it should be.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use serde::Serialize;
use trunkline_proto::{Code, Frame, Header, Kind, Outcome, encode, flags};

use super::FanoutArgs;
use crate::{
    affinity::pin,
    clock::now_ns,
    cores::CoreTimes,
    dialect::{Event, Subjects},
    discrepancy::{Discrepancy, describe},
    failure::Failure,
    fleet::{Arm, Driver, Fleet, Taken, Targets, take_frames},
    login::{Entrance, enter},
    process::{CpuTime, own_cpu, process_cpu, softirq_threads},
    progress::Progress,
    report::median,
    users::Share,
};

/// The room: ids from 2^63 on are live rooms.
const ROOM: u64 = (1 << 63) + 1;
/// What stands in front of the payload: the sending user.
pub(super) const SENDER_BYTES: usize = 8;
/// The number of a message, at the start of its payload.
pub(super) const NUMBER_BYTES: usize = 8;
/// Joins under way at the same time.
pub(super) const JOINING_MAX: u32 = 256;
/// Connections opened at the same time to another server: fewer than any one's backlog.
const OPENING_MAX: u32 = 100;
/// The subject of others; users, whose own subject the sender has, are numbered from 1.
const SUBJECT: u64 = 0;
/// Casts after which those who have heard nothing for a while acknowledge as they do in a stream: a client of Linux
/// acknowledges the first 16 messages as they arrive, which on one host is the sender's time, and later ones as it
/// reads them.
const WARM_CASTS: u32 = 17;
/// How long a room is left to itself before it is measured.
const CALM: Duration = Duration::from_millis(50);
/// How long nothing may happen while something is awaited.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// What one server did in one round.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Round {
    pub(super) casts: u64,
    pub(super) deliveries: u64,
    /// CPU time of the server for one delivery, in microseconds.
    pub(super) cpu_us: f64,
    /// Cores in use by the server and by the load, all of whose threads count.
    pub(super) server_cores: f64,
    pub(super) bench_cores: f64,
    /// Those in use by the kernel's own threads for packets and timers, and those of the machine that had nothing to
    /// do: what neither end has of its cores.
    pub(super) softirq_cores: f64,
    pub(super) idle_cores: f64,
    /// From the send to the first and to the last member of each cast, in milliseconds: the medians, and the longest.
    pub(super) first_ms: f64,
    pub(super) last_ms: f64,
    pub(super) longest_ms: f64,
}

/// What a server speaks.
#[derive(Clone, Copy)]
pub(super) enum Speech {
    Floor,
    Gateway,
    /// One subject, to which the members subscribe.
    Other(&'static dyn Subjects),
}

/// The clients of one server, all in the room: those of this thread, the sender among them, and those of others.
pub(super) struct Room {
    clients: Clients,
    parts: Vec<Arc<Part>>,
    others: Vec<JoinHandle<Result<(), Failure>>>,
    /// All of them.
    count: u64,
}

/// The clients of one thread.
struct Clients {
    fleet: Fleet,
    members: Members,
    part: Arc<Part>,
}

/// How far the clients of one thread are, for others to read.
#[derive(Debug, Default)]
struct Part {
    entered: AtomicBool,
    joined: AtomicU64,
    /// Messages, of all casts.
    arrived: AtomicU64,
    /// When the first and the last message of this cast came, in nanoseconds of the load's clock.
    first_ns: AtomicU64,
    last_ns: AtomicU64,
    /// Its thread is to end, or has.
    ends: AtomicBool,
}

/// What has come to whom.
struct Members {
    /// The user of each connection.
    users: Vec<u64>,
    /// For each connection how many messages have come; the sender's own do not.
    seen: Vec<u32>,
    payload: Vec<u8>,
    /// The first connection sends.
    has_sender: bool,
    speech: Speech,
    burst: u32,
    sent: u32,
    joined: u32,
    settled: u32,
    arrived: u64,
    /// Messages of which the first copy was seen.
    begun: u32,
    first_ns: u64,
    last_ns: u64,
}

impl Clients {
    /// Connects them, and lets them join if it is to a gateway.
    fn enter(
        args: &FanoutArgs,
        targets: Targets,
        (thread, first): (usize, u32),
        users: Vec<u64>,
        (name, speech): (&'static str, Speech),
        part: Arc<Part>,
    ) -> Result<Clients, Failure> {
        let progress = if thread == 0 { Progress::new(name.to_owned()) } else { Progress::silent() };
        let burst_bytes = args.burst * (args.payload + 64);
        let mut fleet = Fleet::new(targets, users.len() as u32, burst_bytes)?.numbered_from(first);
        match speech {
            Speech::Floor => drop(enter(&mut fleet, &users, Entrance::Connect, Arm::Always, &progress)?),
            Speech::Gateway => drop(enter(&mut fleet, &users, Entrance::Login, Arm::Always, &progress)?),
            // They connect and subscribe in one.
            Speech::Other(_) => {}
        }
        let members = Members {
            seen: vec![0; users.len()],
            users,
            payload: vec![0; SENDER_BYTES + args.payload as usize],
            has_sender: thread == 0,
            speech,
            burst: args.burst,
            sent: 0,
            joined: 0,
            settled: 0,
            arrived: 0,
            begun: 0,
            first_ns: 0,
            last_ns: 0,
        };
        let mut clients = Clients { fleet, members, part };
        match speech {
            Speech::Floor => {}
            Speech::Gateway => clients.join(&progress)?,
            Speech::Other(_) => clients.subscribe(name, &progress)?,
        }
        clients.part.entered.store(true, Ordering::Release);
        Ok(clients)
    }

    fn join(&mut self, progress: &Progress) -> Result<(), Failure> {
        let count = self.members.seen.len() as u32;
        let bar = progress.phase("joins", count.into());
        let (mut asked, mut last_progress) = (0, Instant::now());
        while self.members.joined < count {
            while asked < count && asked - self.members.joined < JOINING_MAX {
                self.fleet.stage(asked, |out| {
                    let header = Header { kind: Kind::GroupJoin, flags: 0, aux: 0, id: 1, peer: ROOM, stamp: 0 };
                    encode(out, &header, &[]);
                });
                asked += 1;
            }
            let before = self.members.joined;
            self.turn(Duration::from_millis(100))?;
            bar.set(self.members.joined.into());
            if self.members.joined > before {
                last_progress = Instant::now();
            } else if last_progress.elapsed() > PATIENCE {
                let waiting_for = format!("GROUP_OK; {} of {count} are there", self.members.joined);
                return Err(Failure::Stalled { waiting_for, after: PATIENCE });
            }
        }
        Ok(())
    }

    /// Connects, and lets each subscribe.
    fn subscribe(&mut self, name: &str, progress: &Progress) -> Result<(), Failure> {
        let count = self.members.seen.len() as u32;
        let bar = progress.phase("subscriptions", count.into());
        let mut last_progress = Instant::now();
        while self.members.joined < count {
            let (opened, joined) = (self.fleet.opened(), self.members.joined);
            self.fleet.open((count - opened).min(OPENING_MAX.saturating_sub(opened - joined)))?;
            self.turn(Duration::from_millis(50))?;
            bar.set(self.members.joined.into());
            if self.members.joined > joined {
                last_progress = Instant::now();
            } else if last_progress.elapsed() > PATIENCE {
                let waiting_for = format!("{name} to let members in; {joined} of {count} are there");
                return Err(Failure::Stalled { waiting_for, after: PATIENCE });
            }
        }
        Ok(())
    }

    /// Takes what has come, and tells others how far these are.
    fn turn(&mut self, wait: Duration) -> Result<(), Failure> {
        self.fleet.turn(&mut self.members, wait)?;
        let (members, part) = (&self.members, &self.part);
        part.joined.store(members.joined.into(), Ordering::Relaxed);
        part.first_ns.store(members.first_ns, Ordering::Relaxed);
        part.last_ns.store(members.last_ns, Ordering::Relaxed);
        // Whoever sees that all have come sees also when.
        part.arrived.store(members.arrived, Ordering::Release);
        Ok(())
    }

    /// The life of a thread beside the sender's.
    fn receive(mut self) -> Result<(), Failure> {
        while !self.part.ends.load(Ordering::Relaxed) {
            self.turn(Duration::from_millis(20))?;
            // A gateway on the same core goes on now: both would have work for whole time slices otherwise.
            thread::yield_now();
        }
        self.fleet.close()
    }
}

impl Room {
    /// Everybody comes in: a thread for each share of them. With more than one of these there is one target.
    pub(super) fn enter(
        args: &FanoutArgs,
        targets: &Targets,
        shares: Vec<Share>,
        name: &'static str,
        speech: Speech,
    ) -> Result<Room, Failure> {
        let who = (name, speech);
        let count = shares.iter().map(|share| share.users.len() as u64).sum();
        let parts: Vec<Arc<Part>> = shares.iter().map(|_| Arc::default()).collect();
        let (mut others, mut first, mut own) = (Vec::new(), 0, Vec::new());
        for (number, share) in shares.into_iter().enumerate() {
            let (place, part) = ((number, first), Arc::clone(&parts[number]));
            first += share.users.len() as u32;
            if number == 0 {
                own = share.users;
                continue;
            }
            let (args, targets, core) = (args.clone(), targets.clone(), args.cores.of_load(number));
            let work = move || {
                let ends = Arc::clone(&part);
                let entered = pin(core).and_then(|()| Clients::enter(&args, targets, place, share.users, who, part));
                let outcome = entered.and_then(Clients::receive);
                ends.ends.store(true, Ordering::Release);
                outcome
            };
            let thread = thread::Builder::new().name(format!("load-{number}")).spawn(work);
            others.push(thread.map_err(|error| Failure::system("starting a thread", error))?);
        }
        let clients = Clients::enter(args, targets.clone(), (0, 0), own, who, Arc::clone(&parts[0]))?;
        let mut room = Room { clients, parts, others, count };
        while !room.parts.iter().all(|part| part.entered.load(Ordering::Acquire)) {
            room.turn()?;
        }
        Ok(room)
    }

    /// Lets the clients of this thread go on, and looks whether those of the others do.
    fn turn(&mut self) -> Result<(), Failure> {
        self.clients.turn(Duration::from_millis(if self.others.is_empty() { 100 } else { 1 }))?;
        if !self.others.is_empty() {
            thread::yield_now();
        }
        match self.parts.iter().skip(1).position(|part| part.ends.load(Ordering::Acquire)) {
            None => Ok(()),
            Some(ended) => {
                let outcome = self.others.remove(ended).join();
                let outcome = outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                Err(outcome.err().unwrap_or_else(|| unreachable!("a thread of the load ends when it is told to")))
            }
        }
    }

    /// Messages that have come to anybody, in all casts.
    fn arrived(&self) -> u64 {
        self.parts.iter().map(|part| part.arrived.load(Ordering::Acquire)).sum()
    }

    pub(super) fn close(self) -> Result<(), Failure> {
        self.parts.iter().for_each(|part| part.ends.store(true, Ordering::Release));
        self.clients.fleet.close()?;
        for other in self.others {
            other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        Ok(())
    }

    /// Takes what a server says by itself while others are measured, and lets it come to rest.
    pub(super) fn calm(&mut self) -> Result<(), Failure> {
        let until = Instant::now() + CALM;
        while let Some(left) = until.checked_duration_since(Instant::now()) {
            self.clients.turn(left)?;
        }
        Ok(())
    }

    /// Casts some messages that are not measured, so that the clients are in the middle of a stream.
    pub(super) fn warm(&mut self) -> Result<(), Failure> {
        (0..WARM_CASTS).try_for_each(|_| self.cast().map(drop))
    }

    /// CPU time of the load: of this thread, or of all where there are several.
    fn load_cpu(&self) -> Duration {
        if self.others.is_empty() { own_cpu() } else { process_cpu() }
    }

    /// Casts for as long as told, and what that cost the processes of the server.
    pub(super) fn round(&mut self, pids: &[u32], length: Duration, progress: &Progress) -> Result<Round, Failure> {
        let bar = progress.phase("casts", length.as_millis() as u64);
        let (mut firsts, mut lasts) = (Vec::new(), Vec::new());
        let softirq = softirq_threads();
        let (in_kernel, cores) = (CpuTime::of_all(&softirq)?, CoreTimes::now()?);
        let (cpu, own, began) = (CpuTime::of_all(pids)?, self.load_cpu(), Instant::now());
        while lasts.is_empty() || began.elapsed() < length {
            let (first, last) = self.cast()?;
            firsts.push(first);
            lasts.push(last);
            bar.set(began.elapsed().as_millis() as u64);
        }
        let took = began.elapsed();
        let spent = CpuTime::of_all(pids)?.since(&cpu).0;
        let idle = CoreTimes::now()?.idle_since(&cores);
        let softirq_cores = CpuTime::of_all(&softirq)?.cores_since(&in_kernel, took);
        let casts = lasts.len() as u64;
        let deliveries = casts * u64::from(self.clients.members.burst) * (self.count - 1);
        Ok(Round {
            casts,
            deliveries,
            cpu_us: spent.as_secs_f64() * 1e6 / deliveries as f64,
            server_cores: spent.as_secs_f64() / took.as_secs_f64(),
            bench_cores: (self.load_cpu() - own).as_secs_f64() / took.as_secs_f64(),
            softirq_cores,
            idle_cores: idle,
            first_ms: median(firsts),
            longest_ms: lasts.iter().copied().fold(0.0, f64::max),
            last_ms: median(lasts),
        })
    }

    /// Sends some messages at once and waits until everybody has them: how long until the first one came, and the last
    /// one, in milliseconds.
    fn cast(&mut self) -> Result<(f64, f64), Failure> {
        let Clients { fleet, members, .. } = &mut self.clients;
        members.settled = 0;
        let answers = if matches!(members.speech, Speech::Gateway) { members.burst } else { 0 };
        let wanted = u64::from(members.burst) * (self.count - 1);
        fleet.stage(0, |out| (0..members.burst).for_each(|_| members.put(out)));
        let (sent_ns, before) = (now_ns(), self.arrived());
        let (mut last, mut last_progress) = ((0, 0), Instant::now());
        loop {
            let now = (self.arrived() - before, self.clients.members.settled);
            if now == (wanted, answers) {
                break;
            }
            if now != last {
                (last, last_progress) = (now, Instant::now());
            } else if last_progress.elapsed() > PATIENCE {
                let waiting_for = format!("messages; {} of {wanted} have come", now.0);
                return Err(Failure::Stalled { waiting_for, after: PATIENCE });
            }
            self.turn()?;
        }
        // Where a thread has one member, and that is the sender, nothing ever comes to it.
        let times = |of: fn(&Part) -> &AtomicU64| self.parts.iter().map(move |part| of(part).load(Ordering::Relaxed));
        let first = times(|part| &part.first_ns).filter(|ns| *ns > 0).min().unwrap_or(sent_ns);
        let last = times(|part| &part.last_ns).max().unwrap_or(sent_ns);
        let since = |ns: u64| ns.saturating_sub(sent_ns) as f64 / 1e6;
        Ok((since(first), since(last)))
    }
}

impl Members {
    /// Appends the next message, as a client sends it, or to the floor as members get it.
    fn put(&mut self, out: &mut Vec<u8>) {
        self.sent += 1;
        let number = u64::from(self.sent);
        self.payload[SENDER_BYTES..SENDER_BYTES + NUMBER_BYTES].copy_from_slice(&number.to_be_bytes());
        let (kind, flags, payload) = match self.speech {
            Speech::Floor => (Kind::GroupDeliver, 0, &self.payload[..]),
            Speech::Gateway => (Kind::GroupSend, flags::ACK, &self.payload[SENDER_BYTES..]),
            Speech::Other(subjects) => return subjects.send(SUBJECT, &self.payload[SENDER_BYTES..], out),
        };
        encode(out, &Header { kind, flags, aux: 0, id: number, peer: ROOM, stamp: 0 }, payload);
    }

    /// A message has come; `payload` is as it was sent, without who sent it.
    fn delivered(&mut self, connection: u32, payload: &[u8], now_ns: u64) -> Result<(), Failure> {
        let user = self.users[connection as usize];
        let is_sender = self.has_sender && connection == 0;
        let seen = &mut self.seen[connection as usize];
        let number = payload.get(..NUMBER_BYTES).and_then(|bytes| bytes.try_into().ok()).map(u64::from_be_bytes);
        let wanted = u64::from(*seen) + 1;
        let bytes = payload.len();
        if bytes + SENDER_BYTES != self.payload.len() || number != Some(wanted) || is_sender {
            let frame = format!("message {number:?} of {bytes} B in place of message {wanted}");
            return Err(Discrepancy::Unexpected { user, frame }.into());
        }
        *seen += 1;
        self.arrived += 1;
        if *seen > self.begun {
            // The first of a cast, and not only of a message.
            if (*seen - 1).is_multiple_of(self.burst) {
                self.first_ns = now_ns;
            }
            self.begun = *seen;
        }
        self.last_ns = now_ns;
        Ok(())
    }
}

impl Driver for Members {
    fn connected(&mut self, connection: u32, out: &mut Vec<u8>) -> Result<Arm, Failure> {
        let Speech::Other(subjects) = self.speech else { unreachable!("every connection is open") };
        let user = self.users[connection as usize];
        match self.has_sender && connection == 0 {
            true => subjects.enter(user, out),
            false => subjects.enter_for(user, SUBJECT, out),
        }
        Ok(Arm::Always)
    }

    fn received(&mut self, connection: u32, bytes: &[u8], now_ns: u64, out: &mut Vec<u8>) -> Result<Taken, Failure> {
        let Speech::Other(subjects) = self.speech else { return take_frames(self, connection, bytes, now_ns, out) };
        let mut taken = Taken { bytes: 0, frames: 0 };
        while let Some((event, length)) =
            subjects.next(&bytes[taken.bytes..]).map_err(|what| self.lost(connection, &what))?
        {
            match event {
                Event::Ready => self.joined += 1,
                Event::Message(payload) => self.delivered(connection, payload, now_ns)?,
                Event::Answer(answer) => out.extend_from_slice(answer),
                Event::Nothing => {}
                Event::Refused(why) => return Err(self.lost(connection, &why)),
            }
            taken.frames += 1;
            taken.bytes += length;
        }
        Ok(taken)
    }

    fn frame(&mut self, connection: u32, frame: &Frame<'_>, now_ns: u64, _: &mut Vec<u8>) -> Result<(), Failure> {
        match frame.known() {
            Some(Kind::GroupDeliver) => match frame.body.get(SENDER_BYTES..) {
                Some(payload) => self.delivered(connection, payload, now_ns),
                None => Err(Discrepancy::unexpected(self.users[connection as usize], frame).into()),
            },
            Some(Kind::GroupOk) => {
                self.joined += 1;
                Ok(())
            }
            Some(Kind::Sent)
                if self.has_sender && connection == 0 && Outcome::from_u16(frame.aux) == Some(Outcome::Accepted) =>
            {
                self.settled += 1;
                Ok(())
            }
            Some(Kind::Error) => {
                let text = Code::from_u16(frame.aux).map_or("unknown", Code::text);
                let frame = format!("{}: {text}", describe(frame));
                Err(Discrepancy::Unexpected { user: self.users[connection as usize], frame }.into())
            }
            _ => Err(Discrepancy::unexpected(self.users[connection as usize], frame).into()),
        }
    }

    fn lost(&mut self, connection: u32, how: &str) -> Failure {
        Failure::ServerGone(format!("the connection of user {} was lost: {how}", self.users[connection as usize]))
    }
}
