//! `bench fanout`: what it costs to give one message to everybody in a live room, and how long it takes until the last
//! one has it.
//!
//! Every client is in one room; the first one sends, the others receive. In each cast it sends a few messages at once
//! and waits until all of them have come to everybody and are answered. The floor does with the same bytes the least
//! that any server can: what arrives on one connection it sends on all others, one send each, and reads nothing of it.
//!
//! Each message carries its number in the run. A member that misses one, gets one twice, or gets one out of order ends
//! the run.

use std::{
    net::SocketAddrV4,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use clap::Args;
use serde::Serialize;
use trunkline_proto::{Code, Frame, Header, Kind, Outcome, encode, flags};

use crate::{
    affinity::{on_load_core, pin},
    clock::now_ns,
    discrepancy::{Discrepancy, describe},
    failure::Failure,
    fleet::{Arm, Driver, Fleet},
    login::{Entrance, enter},
    pairs::GatewayArgs,
    process::{CpuTime, own_cpu},
    progress::Progress,
    report::{INTERVALS, Machine, Median, median, table, write_json},
    scenario::seconds,
    server::Server,
    sockets::tables_for,
    team::CoresArgs,
    users::Share,
};

/// The room: ids from 2^63 on are live rooms.
const ROOM: u64 = (1 << 63) + 1;
/// What stands in front of the payload: the sending user.
const SENDER_BYTES: usize = 8;
/// The number of a message, at the start of its payload.
const NUMBER_BYTES: usize = 8;
/// More than the sender ever gets to: nothing is to be refused.
const SENDS_PER_SEC: &str = "1000000";
/// Half of what the gateway queues for a connection by default, so that nothing is to be dropped.
const CAST_BYTES_MAX: u32 = 128 << 10;
/// Joins under way at the same time.
const JOINING_MAX: u32 = 256;
/// How long nothing may happen while something is awaited.
const PATIENCE: Duration = Duration::from_secs(20);

/// Arguments of `bench fanout`.
#[derive(Clone, Debug, Args, Serialize)]
pub(crate) struct FanoutArgs {
    /// Clients in the room, the sender among them
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(2..=16_000_000))]
    members: u32,
    /// Payload of a message in bytes
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(NUMBER_BYTES as i64..=16_384))]
    payload: u32,
    /// Messages that the sender writes at once: a member gets them together
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    burst: u32,
    /// Rounds, in each of which floor and gateway take turns
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    rounds: u32,
    /// Seconds of a round for each of them; at least one cast is made
    #[arg(long, default_value_t = 3.0)]
    secs: f64,
    #[command(flatten)]
    #[serde(flatten)]
    cores: CoresArgs,
    #[command(flatten)]
    #[serde(flatten)]
    gateway: GatewayArgs,
    /// Write everything to this file as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// What one server did in one round.
#[derive(Clone, Debug, Serialize)]
struct Round {
    casts: u64,
    deliveries: u64,
    /// CPU time of the server for one delivery, in microseconds.
    cpu_us: f64,
    /// Cores in use by the server and by the load's thread.
    server_cores: f64,
    bench_cores: f64,
    /// From the send to the first and to the last member of each cast, in milliseconds: the medians, and the longest.
    first_ms: f64,
    last_ms: f64,
    longest_ms: f64,
}

#[derive(Debug, Serialize)]
struct Report<'a> {
    bench: &'static str,
    machine: Machine,
    arguments: &'a FanoutArgs,
    command: Vec<String>,
    floor: Vec<Round>,
    gateway: Vec<Round>,
    /// CPU for a delivery over the floor's of the same round; missing where one ring cannot hold the floor's connections.
    over_floor: Option<Median>,
}

/// Runs `bench fanout`.
pub(crate) fn run(args: &FanoutArgs) -> Result<(), Failure> {
    let length = seconds("--secs", args.secs)?;
    // The floor has one core, and so no part in a comparison of several.
    let with_floor = args.cores.shared_cores.is_none() && tables_for(args.members)?.0 == 1;
    let mut gateway = args.gateway.clone();
    if args.burst * (args.payload + 64) > CAST_BYTES_MAX {
        return Err(Failure::Setup(format!(
            "a cast of {} messages of {} B is more than what a gateway queues for one client: lower --burst or --payload",
            args.burst, args.payload
        )));
    }
    gateway.also(&["--group-sends-per-sec", SENDS_PER_SEC, "--group-member-sends-per-sec", SENDS_PER_SEC]);
    let shares = args.cores.shares_of(&mut gateway, args.members)?;
    let (mut floor_rounds, mut gateway_rounds) = (Vec::new(), Vec::new());
    let mut floor = with_floor.then(|| Server::floor_fan_out(args.members)).transpose()?;
    let mut server = match args.cores.shared_cores {
        Some(_) => gateway.start_on(args.members, &args.cores.of_server())?,
        None => gateway.start(args.members)?,
    };
    let load = || {
        let mut floor_room = match &floor {
            Some(floor) => Some(Room::enter(args, floor, shares.clone(), Entrance::Connect)?),
            None => None,
        };
        let mut room = Room::enter(args, &server, shares, Entrance::Login)?;
        for number in 1..=args.rounds {
            let progress = Progress::new(format!("fanout {number}/{}", args.rounds));
            for (room, server, rounds) in [
                (floor_room.as_mut(), floor.as_ref(), &mut floor_rounds),
                (Some(&mut room), Some(&server), &mut gateway_rounds),
            ] {
                if let (Some(room), Some(server)) = (room, server) {
                    rounds.push(room.round(server, length, &progress)?);
                }
            }
        }
        if let Some(room) = floor_room {
            room.close()?;
        }
        room.close()
    };
    let outcome = match args.cores.shared_cores {
        Some(_) => thread::scope(|scope| {
            let thread = scope.spawn(|| {
                pin(args.cores.of_load(0))?;
                load()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        }),
        None => on_load_core(load),
    };
    outcome.map_err(|failure| server.explain(failure))?;
    server.stop()?;
    if let Some(floor) = floor.take() {
        floor.stop()?;
    }
    let over_floor = with_floor.then(|| {
        Median::of(floor_rounds.iter().zip(&gateway_rounds).map(|(floor, gateway)| gateway.cpu_us / floor.cpu_us))
    });
    let report = Report {
        bench: "fanout",
        machine: Machine::this(),
        arguments: args,
        command: std::env::args().collect(),
        floor: floor_rounds,
        gateway: gateway_rounds,
        over_floor,
    };
    print_summary(&report);
    match &args.json {
        Some(path) => write_json(path, &report),
        None => Ok(()),
    }
}

/// The clients of one server, all in the room: those of this thread, the sender among them, and those of others.
struct Room {
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
    /// It is the floor, which answers nothing.
    is_floor: bool,
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
        target: SocketAddrV4,
        (thread, first): (usize, u32),
        users: Vec<u64>,
        entrance: Entrance,
        part: Arc<Part>,
    ) -> Result<Clients, Failure> {
        let name = if entrance == Entrance::Login { "gateway" } else { "floor" };
        let progress = if thread == 0 { Progress::new(name.to_owned()) } else { Progress::silent() };
        let burst_bytes = args.burst * (args.payload + 64);
        let mut fleet = Fleet::new(target, users.len() as u32, burst_bytes)?.numbered_from(first);
        enter(&mut fleet, &users, entrance, Arm::Always, &progress)?;
        let members = Members {
            seen: vec![0; users.len()],
            users,
            payload: vec![0; SENDER_BYTES + args.payload as usize],
            has_sender: thread == 0,
            is_floor: entrance == Entrance::Connect,
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
        if !clients.members.is_floor {
            clients.join(&progress)?;
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
    /// Everybody comes in: a thread for each share of them.
    fn enter(args: &FanoutArgs, server: &Server, shares: Vec<Share>, entrance: Entrance) -> Result<Room, Failure> {
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
            let (args, target, core) = (args.clone(), server.address(), args.cores.of_load(number));
            let work = move || {
                let ends = Arc::clone(&part);
                let entered =
                    pin(core).and_then(|()| Clients::enter(&args, target, place, share.users, entrance, part));
                let outcome = entered.and_then(Clients::receive);
                ends.ends.store(true, Ordering::Release);
                outcome
            };
            let thread = thread::Builder::new().name(format!("load-{number}")).spawn(work);
            others.push(thread.map_err(|error| Failure::system("starting a thread", error))?);
        }
        let clients = Clients::enter(args, server.address(), (0, 0), own, entrance, Arc::clone(&parts[0]))?;
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

    fn close(self) -> Result<(), Failure> {
        self.parts.iter().for_each(|part| part.ends.store(true, Ordering::Release));
        self.clients.fleet.close()?;
        for other in self.others {
            other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        Ok(())
    }

    /// Casts for as long as told, and what that cost the server.
    fn round(&mut self, server: &Server, length: Duration, progress: &Progress) -> Result<Round, Failure> {
        let bar = progress.phase("casts", length.as_millis() as u64);
        let (mut firsts, mut lasts) = (Vec::new(), Vec::new());
        let (cpu, own, began) = (CpuTime::of(server.pid())?, own_cpu(), Instant::now());
        while lasts.is_empty() || began.elapsed() < length {
            let (first, last) = self.cast()?;
            firsts.push(first);
            lasts.push(last);
            bar.set(began.elapsed().as_millis() as u64);
        }
        let took = began.elapsed();
        let spent = CpuTime::of(server.pid())?.since(&cpu).0;
        let casts = lasts.len() as u64;
        let deliveries = casts * u64::from(self.clients.members.burst) * (self.count - 1);
        Ok(Round {
            casts,
            deliveries,
            cpu_us: spent.as_secs_f64() * 1e6 / deliveries as f64,
            server_cores: spent.as_secs_f64() / took.as_secs_f64(),
            bench_cores: (own_cpu() - own).as_secs_f64() / took.as_secs_f64(),
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
        let answers = if members.is_floor { 0 } else { members.burst };
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
        let (kind, flags, skipped) =
            if self.is_floor { (Kind::GroupDeliver, 0, 0) } else { (Kind::GroupSend, flags::ACK, SENDER_BYTES) };
        let header = Header { kind, flags, aux: 0, id: number, peer: ROOM, stamp: 0 };
        encode(out, &header, &self.payload[skipped..]);
    }

    fn delivered(&mut self, connection: u32, frame: &Frame<'_>, now_ns: u64) -> Result<(), Failure> {
        let user = self.users[connection as usize];
        let is_sender = self.has_sender && connection == 0;
        let unexpected = |frame: String| Failure::from(Discrepancy::Unexpected { user, frame });
        let seen = &mut self.seen[connection as usize];
        let number = frame.body.get(SENDER_BYTES..SENDER_BYTES + NUMBER_BYTES).and_then(|bytes| bytes.try_into().ok());
        let wanted = u64::from(*seen) + 1;
        if frame.body.len() != self.payload.len() || number.map(u64::from_be_bytes) != Some(wanted) || is_sender {
            return Err(unexpected(format!("{} in place of message {wanted}: {:?}", describe(frame), number)));
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
    fn connected(&mut self, _: u32, _: &mut Vec<u8>) -> Result<Arm, Failure> {
        unreachable!("every connection is open")
    }

    fn frame(&mut self, connection: u32, frame: &Frame<'_>, now_ns: u64, _: &mut Vec<u8>) -> Result<(), Failure> {
        match frame.known() {
            Some(Kind::GroupDeliver) => self.delivered(connection, frame, now_ns),
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

fn print_summary(report: &Report<'_>) {
    let args = report.arguments;
    println!("{}", report.machine);
    println!(
        "a room of {}, {} B, {} at once; {} rounds of {} s, medians",
        args.members, args.payload, args.burst, args.rounds, args.secs
    );
    let head = ["", "CPU/delivery", "deliveries/s and core", "first", "last", "longest", "cores: server + bench"];
    let row = |name: &str, rounds: &[Round]| {
        let of = |value: fn(&Round) -> f64| median(rounds.iter().map(value));
        let cells = [
            format!("{:.3} µs", of(|round| round.cpu_us)),
            format!("{:.0}", 1e6 / of(|round| round.cpu_us)),
            format!("{:.2} ms", of(|round| round.first_ms)),
            format!("{:.1} ms", of(|round| round.last_ms)),
            format!("{:.1} ms", rounds.iter().map(|round| round.longest_ms).fold(0.0, f64::max)),
            format!("{:.2} + {:.2}", of(|round| round.server_cores), of(|round| round.bench_cores)),
        ];
        [name.to_owned()].into_iter().chain(cells).collect::<Vec<_>>()
    };
    let mut rows = Vec::new();
    if !report.floor.is_empty() {
        rows.push(row("floor", &report.floor));
    }
    rows.push(row("gateway", &report.gateway));
    println!("{}", table(&head, &rows));
    let deliveries: u64 = report.gateway.iter().map(|round| round.deliveries).sum();
    println!("{deliveries} deliveries of the gateway, each to the right member, once and in order");
    match &report.over_floor {
        Some(ratio) => println!("CPU for a delivery over the floor: {ratio}\n{INTERVALS}"),
        None => {
            println!("The floor is left out: it is one ring, whose table cannot hold {} connections.", args.members)
        }
    }
}
