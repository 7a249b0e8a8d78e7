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
    path::PathBuf,
    time::{Duration, Instant},
};

use clap::Args;
use serde::Serialize;
use trunkline_proto::{Code, Frame, Header, Kind, Outcome, encode, flags};

use crate::{
    affinity::on_load_core,
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
    let with_floor = tables_for(args.members)?.0 == 1;
    let mut gateway = args.gateway.clone();
    if args.burst * (args.payload + 64) > CAST_BYTES_MAX {
        return Err(Failure::Setup(format!(
            "a cast of {} messages of {} B is more than what a gateway queues for one client: lower --burst or --payload",
            args.burst, args.payload
        )));
    }
    gateway.also(&["--group-sends-per-sec", SENDS_PER_SEC, "--group-member-sends-per-sec", SENDS_PER_SEC]);
    let (mut floor_rounds, mut gateway_rounds) = (Vec::new(), Vec::new());
    let mut floor = with_floor.then(|| Server::floor_fan_out(args.members)).transpose()?;
    let mut server = gateway.start(args.members)?;
    let outcome = on_load_core(|| {
        let mut floor_room = match &floor {
            Some(floor) => Some(Room::enter(args, floor, Entrance::Connect)?),
            None => None,
        };
        let mut room = Room::enter(args, &server, Entrance::Login)?;
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
            room.fleet.close()?;
        }
        room.fleet.close()
    });
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

/// The clients of one server, all in the room.
struct Room {
    fleet: Fleet,
    members: Members,
}

/// What has come to whom.
struct Members {
    /// For each connection how many messages have come; the sender's own do not.
    seen: Vec<u32>,
    payload: Vec<u8>,
    /// It is the floor, which answers nothing.
    is_floor: bool,
    burst: u32,
    sent: u32,
    joined: u32,
    settled: u32,
    arrived: u64,
    /// Of this cast, nanoseconds of the load's clock.
    first_ns: u64,
    last_ns: u64,
}

impl Room {
    fn enter(args: &FanoutArgs, server: &Server, entrance: Entrance) -> Result<Room, Failure> {
        let users: Vec<u64> = (1..=u64::from(args.members)).collect();
        let progress = Progress::new(if entrance == Entrance::Login { "gateway" } else { "floor" }.to_owned());
        let burst_bytes = args.burst * (args.payload + 64);
        let mut fleet = Fleet::new(server.address(), args.members, burst_bytes)?;
        enter(&mut fleet, &users, entrance, Arm::Always, &progress)?;
        let members = Members {
            seen: vec![0; users.len()],
            payload: vec![0; SENDER_BYTES + args.payload as usize],
            is_floor: entrance == Entrance::Connect,
            burst: args.burst,
            sent: 0,
            joined: 0,
            settled: 0,
            arrived: 0,
            first_ns: 0,
            last_ns: 0,
        };
        let mut room = Room { fleet, members };
        if !room.members.is_floor {
            room.join(&progress)?;
        }
        Ok(room)
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
            self.fleet.turn(&mut self.members, Duration::from_millis(100))?;
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
        let deliveries = casts * u64::from(self.members.burst) * (self.members.seen.len() as u64 - 1);
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
        let members = &mut self.members;
        (members.arrived, members.settled, members.first_ns) = (0, 0, 0);
        let wanted = u64::from(members.burst) * (members.seen.len() as u64 - 1);
        let answers = if members.is_floor { 0 } else { members.burst };
        self.fleet.stage(0, |out| (0..members.burst).for_each(|_| members.put(out)));
        let sent_ns = now_ns();
        let mut last_progress = Instant::now();
        while self.members.arrived < wanted || self.members.settled < answers {
            let before = (self.members.arrived, self.members.settled);
            self.fleet.turn(&mut self.members, Duration::from_millis(100))?;
            if (self.members.arrived, self.members.settled) != before {
                last_progress = Instant::now();
            } else if last_progress.elapsed() > PATIENCE {
                let waiting_for = format!("messages; {} of {wanted} have come", self.members.arrived);
                return Err(Failure::Stalled { waiting_for, after: PATIENCE });
            }
        }
        let since = |ns: u64| ns.saturating_sub(sent_ns) as f64 / 1e6;
        Ok((since(self.members.first_ns), since(self.members.last_ns)))
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
        let user = u64::from(connection) + 1;
        let unexpected = |frame: String| Failure::from(Discrepancy::Unexpected { user, frame });
        let seen = &mut self.seen[connection as usize];
        let number = frame.body.get(SENDER_BYTES..SENDER_BYTES + NUMBER_BYTES).and_then(|bytes| bytes.try_into().ok());
        let wanted = u64::from(*seen) + 1;
        if frame.body.len() != self.payload.len() || number.map(u64::from_be_bytes) != Some(wanted) || connection == 0 {
            return Err(unexpected(format!("{} in place of message {wanted}: {:?}", describe(frame), number)));
        }
        *seen += 1;
        self.arrived += 1;
        if self.first_ns == 0 {
            self.first_ns = now_ns;
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
            Some(Kind::Sent) if connection == 0 && Outcome::from_u16(frame.aux) == Some(Outcome::Accepted) => {
                self.settled += 1;
                Ok(())
            }
            Some(Kind::Error) => {
                let text = Code::from_u16(frame.aux).map_or("unknown", Code::text);
                let frame = format!("{}: {text}", describe(frame));
                Err(Discrepancy::Unexpected { user: u64::from(connection) + 1, frame }.into())
            }
            _ => Err(Discrepancy::unexpected(u64::from(connection) + 1, frame).into()),
        }
    }

    fn lost(&mut self, connection: u32, how: &str) -> Failure {
        Failure::ServerGone(format!("the connection of user {} was lost: {how}", u64::from(connection) + 1))
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
