//! `bench fanout`: what it costs to give one message to everybody in a live room, and how long it takes until the last
//! one has it.
//!
//! Every client is in one room; the first one sends, the others receive. In each cast it sends a few messages at once
//! and waits until all of them have come to everybody and are answered. The floor does with the same bytes the least
//! that any server can: what arrives on one connection it sends on all others, one send each, and reads nothing of it.
//! Other servers do it with one subject to which all but the sender subscribe.
//!
//! Each message carries its number in the run. A member that misses one, gets one twice, or gets one out of order ends
//! the run.
//!
//! What a room costs in a cluster is in `nodes`, what members that do not read do to a group in `slow`.

mod nodes;
mod slow;

use std::{
    path::{Path, PathBuf},
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
    dialect::{Event, Mqtt, Nats, Resp, Subjects},
    discrepancy::{Discrepancy, describe},
    failure::Failure,
    fleet::{Arm, Driver, Fleet, Taken, Targets, take_frames},
    login::{Entrance, enter},
    pairs::GatewayArgs,
    peers::{Layered, PEERS, Peer},
    process::{CpuTime, own_cpu},
    progress::Progress,
    report::{INTERVALS, Machine, Median, median, table, write_json},
    scenario::{seconds, turns},
    server::Server,
    site::NodesArgs,
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
/// Connections opened at the same time to another server: fewer than any one's backlog.
const OPENING_MAX: u32 = 100;
/// Others are set up for 18,000 connections.
const OTHERS_MEMBERS_MAX: u32 = 17_900;
/// The subject of others; users, whose own subject the sender has, are numbered from 1.
const SUBJECT: u64 = 0;
/// How long a room is left to itself before it is measured.
const CALM: Duration = Duration::from_millis(50);
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
    /// Rounds, in each of which every server is measured; the median counts
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    rounds: u32,
    /// Seconds of a round for each of them; at least one cast is made
    #[arg(long, default_value_t = 3.0)]
    secs: f64,
    /// Only these beside the gateway, by name: nats-server, redis-server, mosquitto; none for nobody [default: all that
    /// are installed, where they have room for the members and one core is measured]
    #[arg(long, value_delimiter = ',')]
    peer: Vec<String>,
    /// Members of a hundred that stop reading, in a durable group and by itself: what the others notice of it, and whether
    /// those that read again get all that they have missed
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u32).range(1..=90))]
    slow_percent: Option<u32>,
    #[command(flatten)]
    #[serde(flatten)]
    nodes: NodesArgs,
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

/// What a server speaks.
#[derive(Clone, Copy)]
enum Speech {
    Floor,
    Gateway,
    /// One subject, to which the members subscribe.
    Other(&'static dyn Subjects),
}

/// Those that are no part of this project: name, how their members subscribe, and what is done.
const OTHERS: [(&str, &dyn Subjects, &str); 3] = [
    ("nats-server", &Nats, "PUB to one subject"),
    ("redis-server", &Resp, "PUBLISH to one channel, RESP3"),
    ("mosquitto", &Mqtt, "PUBLISH to one topic, MQTT 3.1.1, QoS 0"),
];

/// A server in the comparison.
struct Contestant {
    name: &'static str,
    speech: Speech,
    version: String,
    server: Option<Server>,
    rounds: Vec<Round>,
    /// Why another's was left out from some point on.
    failed: Option<String>,
}

impl Contestant {
    fn new(name: &'static str, speech: Speech, version: String, server: Option<Server>) -> Contestant {
        Contestant { name, speech, version, server, rounds: Vec::new(), failed: None }
    }

    /// Takes a result over. Another's failure ends its part; one of the floor or of the gateway ends the run.
    fn keep<T>(&mut self, result: Result<T, Failure>) -> Result<Option<T>, Failure> {
        let failure = match (result, &mut self.server) {
            (Ok(value), _) => return Ok(Some(value)),
            (Err(failure), Some(server)) => server.explain(failure),
            (Err(failure), None) => failure,
        };
        if !matches!(self.speech, Speech::Other(_)) {
            return Err(failure);
        }
        eprintln!("{} is left out from here on: {failure}", self.name);
        self.failed = Some(failure.to_string());
        self.server = None;
        Ok(None)
    }
}

/// What another server did.
#[derive(Debug, Serialize)]
struct Other {
    name: &'static str,
    what: &'static str,
    version: String,
    rounds: Vec<Round>,
    failed: Option<String>,
    /// CPU for a delivery over that of the gateway and of the floor in the same rounds.
    over_gateway: Option<Median>,
    over_floor: Option<Median>,
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
    others: Vec<Other>,
    /// Others that took no part, each with the reason.
    skipped: Vec<(&'static str, String)>,
}

/// CPU for a delivery of one server over that of another in the same rounds; `None` without rounds of both.
fn over(server: &[Round], base: &[Round]) -> Option<Median> {
    let of_rounds = server.iter().zip(base).map(|(one, other)| one.cpu_us / other.cpu_us);
    (!server.is_empty() && !base.is_empty()).then(|| Median::of(of_rounds))
}

/// Those who take part beside the gateway, not started yet, and those who do not.
type Others = (Vec<(&'static Peer, Contestant)>, Vec<(&'static str, String)>);

fn others(args: &FanoutArgs, one_core: bool) -> Result<Others, Failure> {
    let known = OTHERS.map(|(name, ..)| name);
    if let Some(unknown) = args.peer.iter().find(|name| *name != "none" && !known.contains(&name.as_str())) {
        return Err(Failure::Setup(format!("--peer {unknown} is not known: {} and none are", known.join(", "))));
    }
    let (mut taking_part, mut skipped) = (Vec::new(), Vec::new());
    for (name, subjects, _) in OTHERS {
        if !args.peer.is_empty() && !args.peer.iter().any(|wanted| wanted == name) {
            continue;
        }
        let peer = PEERS.iter().find(|peer| peer.name == name).expect("it is known");
        let why = match peer.version() {
            _ if !one_core => "one of its cores cannot be held against several of the gateway".to_owned(),
            _ if args.members > OTHERS_MEMBERS_MAX => {
                format!("it is set up for {OTHERS_MEMBERS_MAX} members, and here are {}", args.members)
            }
            Some(version) => {
                taking_part.push((peer, Contestant::new(name, Speech::Other(subjects), version, None)));
                continue;
            }
            None => format!("it is not installed; to install it: {}", peer.install),
        };
        eprintln!("{name} is left out: {why}");
        skipped.push((name, why));
    }
    Ok((taking_part, skipped))
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
    let is_special = args.slow_percent.is_some() || args.nodes.are_clustered();
    let is_mixed = args.slow_percent.is_some() && args.nodes.are_clustered();
    if is_mixed || (is_special && (args.cores.shared_cores.is_some() || !args.peer.is_empty())) {
        let text =
            "--slow-percent and --nodes are measured each by itself: without each other, --peer and --shared-cores";
        return Err(Failure::Setup(text.to_owned()));
    }
    if let Some(percent) = args.slow_percent {
        return slow::run(args, percent, length);
    }
    if args.nodes.are_clustered() {
        return nodes::run(args, length);
    }
    gateway.also(&["--group-sends-per-sec", SENDS_PER_SEC, "--group-member-sends-per-sec", SENDS_PER_SEC]);
    let shares = args.cores.shares_of(&mut gateway, args.members)?;
    let (taking_part, skipped) = others(args, args.cores.shared_cores.is_none())?;
    let own = || env!("CARGO_PKG_VERSION").to_owned();
    let mut contestants = Vec::new();
    if with_floor {
        contestants.push(Contestant::new("floor", Speech::Floor, own(), Some(Server::floor_fan_out(args.members)?)));
    }
    let server = match args.cores.shared_cores {
        Some(_) => gateway.start_on(args.members, &args.cores.of_server())?,
        None => gateway.start(args.members)?,
    };
    contestants.push(Contestant::new("gateway", Speech::Gateway, own(), Some(server)));
    let folder = std::env::temp_dir().join(format!("trunkline-bench-fanout-{}", std::process::id()));
    let outcome = compare(args, &mut contestants, taking_part, shares, length, &folder);
    // What is left of it, if anything, is in the temporary folder.
    let _ = std::fs::remove_dir_all(&folder);
    outcome?;
    let mut rounds_of = |name: &str| {
        let found = contestants.iter_mut().find(|contestant| contestant.name == name);
        found.map(|contestant| std::mem::take(&mut contestant.rounds)).unwrap_or_default()
    };
    let (floor, gateway) = (rounds_of("floor"), rounds_of("gateway"));
    let of_others = contestants.into_iter().filter(|contestant| matches!(contestant.speech, Speech::Other(_)));
    let others = of_others.map(|Contestant { name, version, rounds, failed, .. }| Other {
        what: OTHERS.iter().find(|other| other.0 == name).map_or("", |other| other.2),
        over_gateway: over(&rounds, &gateway),
        over_floor: over(&rounds, &floor),
        name,
        version,
        rounds,
        failed,
    });
    let report = Report {
        bench: "fanout",
        machine: Machine::this(),
        arguments: args,
        command: std::env::args().collect(),
        over_floor: over(&gateway, &floor),
        others: others.collect(),
        floor,
        gateway,
        skipped,
    };
    print_summary(&report);
    match &args.json {
        Some(path) => write_json(path, &report),
        None => Ok(()),
    }
}

/// Starts the others, lets everybody in everywhere, measures all of them in each round, and ends them.
fn compare(
    args: &FanoutArgs,
    contestants: &mut Vec<Contestant>,
    others: Vec<(&'static Peer, Contestant)>,
    shares: Vec<Share>,
    length: Duration,
    folder: &Path,
) -> Result<(), Failure> {
    for (peer, mut other) in others {
        let started = peer.start(folder, Layered { websocket: false, tls: None });
        other.server = other.keep(started)?;
        contestants.push(other);
    }
    let mut load = || {
        let mut rooms = Vec::new();
        for contestant in contestants.iter_mut() {
            let room = match &contestant.server {
                Some(server) => {
                    let (targets, shares) = (Targets::from(server), shares.clone());
                    let entered = Room::enter(args, &targets, shares, contestant.name, contestant.speech);
                    contestant.keep(entered)?
                }
                None => None,
            };
            rooms.push(room);
        }
        let count = contestants.len();
        for number in 1..=args.rounds {
            // So that none always has the machine as the same other one left it.
            for at in turns(count, number) {
                let contestant = &mut contestants[at];
                let (Some(room), Some(server)) = (&mut rooms[at], &contestant.server) else { continue };
                let progress = Progress::new(format!("{} {number}/{}", contestant.name, args.rounds));
                let measured = room.calm().and_then(|()| room.round(&[server.pid()], length, &progress));
                match contestant.keep(measured)? {
                    Some(round) => contestant.rounds.push(round),
                    None => rooms[at] = None,
                }
            }
        }
        rooms.into_iter().flatten().try_for_each(Room::close)
    };
    match args.cores.shared_cores {
        Some(_) => thread::scope(|scope| {
            let thread = scope.spawn(|| {
                pin(args.cores.of_load(0))?;
                load()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })?,
        None => on_load_core(load)?,
    }
    for contestant in contestants {
        match (contestant.server.take(), contestant.speech) {
            (Some(server), Speech::Other(_)) => server.kill(),
            (Some(server), Speech::Floor | Speech::Gateway) => server.stop()?,
            (None, _) => {}
        }
    }
    Ok(())
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
    fn enter(
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

    fn close(self) -> Result<(), Failure> {
        self.parts.iter().for_each(|part| part.ends.store(true, Ordering::Release));
        self.clients.fleet.close()?;
        for other in self.others {
            other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        Ok(())
    }

    /// Takes what a server says by itself while others are measured, and lets it come to rest.
    fn calm(&mut self) -> Result<(), Failure> {
        let until = Instant::now() + CALM;
        while let Some(left) = until.checked_duration_since(Instant::now()) {
            self.clients.turn(left)?;
        }
        Ok(())
    }

    /// Casts for as long as told, and what that cost the processes of the server.
    fn round(&mut self, pids: &[u32], length: Duration, progress: &Progress) -> Result<Round, Failure> {
        let bar = progress.phase("casts", length.as_millis() as u64);
        let (mut firsts, mut lasts) = (Vec::new(), Vec::new());
        let (cpu, own, began) = (CpuTime::of_all(pids)?, own_cpu(), Instant::now());
        while lasts.is_empty() || began.elapsed() < length {
            let (first, last) = self.cast()?;
            firsts.push(first);
            lasts.push(last);
            bar.set(began.elapsed().as_millis() as u64);
        }
        let took = began.elapsed();
        let spent = CpuTime::of_all(pids)?.since(&cpu).0;
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

fn table_head() -> [&'static str; 7] {
    ["", "CPU/delivery", "deliveries/s and core", "first", "last", "longest", "cores: server + bench"]
}

/// Medians of rounds, for a table with that head.
fn rounds_row(name: &str, rounds: &[Round]) -> Vec<String> {
    let of = |value: fn(&Round) -> f64| median(rounds.iter().map(value));
    let cells = [
        format!("{:.3} µs", of(|round| round.cpu_us)),
        format!("{:.0}", 1e6 / of(|round| round.cpu_us)),
        format!("{:.2} ms", of(|round| round.first_ms)),
        format!("{:.1} ms", of(|round| round.last_ms)),
        format!("{:.1} ms", rounds.iter().map(|round| round.longest_ms).fold(0.0, f64::max)),
        format!("{:.2} + {:.2}", of(|round| round.server_cores), of(|round| round.bench_cores)),
    ];
    [name.to_owned()].into_iter().chain(cells).collect()
}

fn print_summary(report: &Report<'_>) {
    let args = report.arguments;
    println!("{}", report.machine);
    println!(
        "a room of {}, {} B, {} at once; {} rounds of {} s, medians",
        args.members, args.payload, args.burst, args.rounds, args.secs
    );
    let mut rows = Vec::new();
    if !report.floor.is_empty() {
        rows.push(rounds_row("floor", &report.floor));
    }
    rows.push(rounds_row("gateway", &report.gateway));
    let measured = report.others.iter().filter(|other| !other.rounds.is_empty());
    rows.extend(measured.map(|other| rounds_row(other.name, &other.rounds)));
    println!("{}", table(&table_head(), &rows));
    let deliveries: u64 = report.gateway.iter().map(|round| round.deliveries).sum();
    println!("{deliveries} deliveries of the gateway, each to the right member, once and in order");
    match &report.over_floor {
        Some(ratio) => println!("CPU for a delivery over the floor: {ratio}"),
        None if args.cores.shared_cores.is_some() => {
            println!("The floor is left out: it has one core, and is no measure of several.");
        }
        None => {
            println!("The floor is left out: it is one ring, whose table cannot hold {} connections.", args.members);
        }
    }
    for other in &report.others {
        if let Some(ratio) = &other.over_gateway {
            println!("CPU for a delivery of {} over the gateway's: {ratio}", other.name);
        }
        if let Some(ratio) = &other.over_floor {
            println!("CPU for a delivery of {} over the floor: {ratio}", other.name);
        }
    }
    println!("{INTERVALS}");
    for other in &report.others {
        println!("{}: {}; {}", other.name, other.what, other.version);
        if let Some(failed) = &other.failed {
            println!("  left out from some point on: {failed}");
        }
    }
    for (name, why) in &report.skipped {
        println!("{name} is left out: {why}");
    }
}
