//! `bench push`: what it costs to push to users who are there, by a worker's link and by HTTP, beside messages of users
//! to each other; and one push to all of them, at the pace that is set.
//!
//! All cases are measured at one gateway, in turn, with the same users. Whatever is pushed is labelled as messages are:
//! each user gets each push once, in order, with the right bytes, and whoever pushed is told the right fate of each.

use std::{
    net::SocketAddrV4,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use clap::{Args, ValueEnum};
use serde::Serialize;
use trunkline_proto::{Code, Frame, Kind, Offer, SERVICE_USERS, Serve, VERSION, encode_message, encoded_len};

use crate::{
    affinity::{SERVER_CORE, on_load_core},
    discrepancy::Discrepancy,
    failure::Failure,
    fleet::{Arm, Driver, Fleet, Targets},
    gateway::GatewayArgs,
    ledger::{Flow, Ledger, Route},
    login::{Entrance, enter},
    pairs::{CORRECTED, SILENCE_MS_MAX},
    payload::PAYLOAD_BYTES_MIN,
    peers::free_address,
    posting::{self, Posts},
    progress::Progress,
    push_all::{self, Cast},
    push_round::Round,
    report::{INTERVALS, Machine, Median, median, table, write_json},
    scenario::{run_number, turns},
    server::Server,
    service::SERVICE,
    traffic::{self, Stretch},
};

/// Traffic before a measurement, unless that is shorter.
const WARMUP: Duration = Duration::from_millis(500);
/// How long nothing happens between the logins of a case and its first message, and after its last connection.
const CALM: Duration = Duration::from_millis(100);
/// How long the gateway may take to let in who pushes.
const PATIENCE: Duration = Duration::from_secs(10);
/// The largest body that the API of pushes takes.
const BODY_BYTES_MAX: usize = 1 << 20;

/// Arguments of `bench push`.
#[derive(Clone, Debug, Args, Serialize)]
pub(crate) struct PushArgs {
    /// Users who are there, an even number
    #[arg(long, default_value_t = 5_000, value_parser = clap::value_parser!(u32).range(2..=16_000_000))]
    users: u32,
    /// Messages to, and pushes of a worker to, each user in flight
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    window: u32,
    /// Payload of a message and of a push in bytes
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(PAYLOAD_BYTES_MIN as i64..=16_384))]
    payload: u32,
    /// Length of each measurement in seconds
    #[arg(long, default_value_t = 3.0)]
    secs: f64,
    /// Rounds, in each of which every case is measured; the median counts
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Only these [default: all]
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
    /// HTTP connections that post one push, and the next when that is answered
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=500))]
    clients: u32,
    /// HTTP connections that post a batch, and the next when that is answered
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=32))]
    batches: u32,
    /// Pushes of a batch
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    lines: u32,
    /// Post without ACK: the answer says that a push was passed on, and not that a device has it
    #[arg(long)]
    no_ack: bool,
    /// Sessions of a shard that the push to all is given to in a second; the gateway's own default is 200,000
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(10..=10_000_000))]
    broadcast_per_sec: u32,
    #[command(flatten)]
    #[serde(flatten)]
    gateway: GatewayArgs,
    /// Write everything to this file as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// What can be measured by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
enum Part {
    /// Pushes by a worker's link, beside messages
    Native,
    /// Pushes by HTTP, one by one and in batches
    Http,
    /// One push to all
    All,
}

/// One of the things that are measured, in turn with the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kinds {
    Messages,
    Pushes,
    MessagesAck,
    PushesAck,
    Posts,
    Batches,
    ToAll,
}

impl Kinds {
    const ALL: [Kinds; 7] = [
        Kinds::Messages,
        Kinds::Pushes,
        Kinds::MessagesAck,
        Kinds::PushesAck,
        Kinds::Posts,
        Kinds::Batches,
        Kinds::ToAll,
    ];

    fn part(self) -> Part {
        match self {
            Kinds::Messages | Kinds::Pushes | Kinds::MessagesAck | Kinds::PushesAck => Part::Native,
            Kinds::Posts | Kinds::Batches => Part::Http,
            Kinds::ToAll => Part::All,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Kinds::Messages => "messages",
            Kinds::Pushes => "pushes",
            Kinds::MessagesAck => "messages, ACK",
            Kinds::PushesAck => "pushes, fates",
            Kinds::Posts => "POST push",
            Kinds::Batches => "POST batch",
            Kinds::ToAll => "to all",
        }
    }

    fn what(self) -> &'static str {
        match self {
            Kinds::Messages => "SEND to DELIVER, users in pairs",
            Kinds::Pushes => "PUSH_TO of one link to PUSH",
            Kinds::MessagesAck => "SEND to DELIVER, ACK to SENT, users in pairs",
            Kinds::PushesAck => "PUSH_TO of one link to PUSH, ACK to PUSHED",
            Kinds::Posts => "POST /v1/push to PUSH, and its answer",
            Kinds::Batches => "POST /v1/push/batch to PUSH, and its answer",
            Kinds::ToAll => "POST /v1/push to all",
        }
    }

    fn route(self, args: &PushArgs) -> Route {
        match self {
            Kinds::Messages => Route::Deliver { ack: false },
            Kinds::MessagesAck => Route::Deliver { ack: true },
            Kinds::Pushes => Route::Push { ack: false },
            Kinds::PushesAck => Route::Push { ack: true },
            Kinds::Posts | Kinds::Batches | Kinds::ToAll => Route::Post { ack: !args.no_ack },
        }
    }

    /// Connections of those who push.
    fn pushers(self, args: &PushArgs) -> u32 {
        match self {
            Kinds::Messages | Kinds::MessagesAck => 0,
            Kinds::Pushes | Kinds::PushesAck | Kinds::ToAll => 1,
            Kinds::Posts => args.clients.min(args.users),
            Kinds::Batches => args.batches.min(args.users),
        }
    }
}

#[derive(Debug, Serialize)]
struct Case {
    name: &'static str,
    what: &'static str,
    rounds: Vec<Round>,
    /// Of the push to all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    casts: Vec<Cast>,
    #[serde(skip)]
    kind: Kinds,
}

/// CPU time for one of a case over that of another, measured in the same rounds.
#[derive(Debug, Serialize)]
struct Ratio {
    case: &'static str,
    over: &'static str,
    #[serde(flatten)]
    of_rounds: Median,
}

#[derive(Debug, Serialize)]
struct Report<'a> {
    bench: &'static str,
    machine: Machine,
    command: Vec<String>,
    arguments: &'a PushArgs,
    cases: Vec<Case>,
    ratios: Vec<Ratio>,
}

/// The gateway, and where it is pushed to.
struct Place {
    server: Server,
    links: SocketAddrV4,
    http: SocketAddrV4,
    shards: u32,
}

/// Runs `bench push`.
pub(crate) fn run(args: &PushArgs) -> Result<(), Failure> {
    if !(0.05..=600.0).contains(&args.secs) {
        return Err(Failure::Setup("--secs takes 0.05 to 600".to_owned()));
    }
    if !args.users.is_multiple_of(2) {
        return Err(Failure::Setup(format!("--users {} is odd, but messages go between pairs", args.users)));
    }
    if args.gateway.runs_already() {
        return Err(Failure::Setup("--gateway means nothing here: it is started with ports of its own".to_owned()));
    }
    let is_wanted = |kind: &Kinds| args.only.is_empty() || args.only.contains(&kind.part());
    let kinds: Vec<Kinds> = Kinds::ALL.into_iter().filter(is_wanted).collect();
    let body_bytes = args.lines as usize * posting::line_bytes_max(args.payload as usize);
    if kinds.contains(&Kinds::Batches) && body_bytes > BODY_BYTES_MAX {
        return Err(Failure::Setup(format!(
            "a batch of {} pushes of {} B has up to {body_bytes} B, and {BODY_BYTES_MAX} are the most: lower --lines \
             or --payload",
            args.lines, args.payload
        )));
    }
    let mut place = start(args)?;
    let case = |kind: Kinds| Case { name: kind.name(), what: kind.what(), rounds: vec![], casts: vec![], kind };
    let mut cases: Vec<Case> = kinds.into_iter().map(case).collect();
    let outcome = on_load_core(|| measure(args, &place, &mut cases));
    outcome.map_err(|failure| place.server.explain(failure))?;
    place.server.stop()?;
    let ratios = ratios(&cases);
    let command = std::env::args().collect();
    let report = Report { bench: "push", machine: Machine::this(), command, arguments: args, cases, ratios };
    print_summary(args, &report);
    match &args.json {
        Some(path) => write_json(path, &report),
        None => Ok(()),
    }
}

/// Starts the gateway on the servers' core.
fn start(args: &PushArgs) -> Result<Place, Failure> {
    let (links, http) = (free_address()?, free_address()?);
    let mut gateway = args.gateway.clone();
    gateway.also(&["--services-listen", &links.to_string(), "--services-http", &http.to_string()]);
    // What is measured is what it can do, and not how it is held back.
    gateway.also(&["--pushes-per-user-per-sec", "0", "--pushes-per-key-per-sec", "0"]);
    gateway.also(&["--broadcast-per-sec", &args.broadcast_per_sec.to_string()]);
    let connections = args.users + 1;
    let server = gateway.start_on(connections, &[SERVER_CORE])?;
    Ok(Place { server, links, http, shards: gateway.shards_for(connections)? })
}

/// Measures all cases in each round, one after the other.
fn measure(args: &PushArgs, place: &Place, cases: &mut [Case]) -> Result<(), Failure> {
    // Tells what is pushed in one round from what is in another.
    let mut run = run_number();
    let count = cases.len();
    for round in 1..=args.rounds {
        // So that none always has the machine as the same other one left it.
        for at in turns(count, round) {
            let case = &mut cases[at];
            let progress = Progress::new(format!("{} {round}/{}", case.name, args.rounds));
            run = run.wrapping_add(1);
            measure_one(args, place, case, run, &progress)?;
            // The kernel finishes closing the connections of the round before the next one begins.
            thread::sleep(CALM);
        }
    }
    Ok(())
}

/// Lets everybody in, measures, accounts for all, and lets them go.
fn measure_one(args: &PushArgs, place: &Place, case: &mut Case, run: u32, progress: &Progress) -> Result<(), Failure> {
    let (kind, users) = (case.kind, args.users);
    let pushers = kind.pushers(args);
    let mut members: Vec<u64> = (1..=u64::from(users)).collect();
    let other = if kind.part() == Part::Native { place.links } else { place.http };
    let mut at = vec![0; users as usize];
    at.resize((users + pushers) as usize, 1);
    let targets = Targets::new(vec![place.server.address(), other], at);
    let message_bytes = encoded_len(Kind::PushTo, args.payload as usize) * args.window as usize;
    // Answers of a batch are long, and there are few of them.
    let burst_bytes = if kind == Kinds::Batches { 8_192 } else { message_bytes.min(1 << 17) };
    let mut fleet = Fleet::new(targets, users + pushers, burst_bytes as u32)?;
    enter(&mut fleet, &members, Entrance::Login, Arm::Always, progress)?;
    members.resize((users + pushers) as usize, SERVICE_USERS + u64::from(SERVICE));
    let shard = if place.shards == 1 { 1 } else { 0 };
    let serve = (kind.part() == Part::Native).then_some(shard);
    Pushers { users: &members, first: users, serve, entered: 0 }.enter(&mut fleet, pushers)?;
    traffic::keep_quiet(&mut fleet, &members, CALM)?;
    let pid = place.server.pid();
    let length = Duration::from_secs_f64(args.secs);
    let warmup = WARMUP.min(length);
    if kind == Kinds::ToAll {
        let pace = f64::from(args.broadcast_per_sec) * f64::from(place.shards);
        let cast = push_all::run(&mut fleet, users, run, args.payload as usize, pace, pid, progress)?;
        case.casts.push(cast);
        return fleet.close();
    }
    let flow = |user: u32| match kind {
        Kinds::Messages | Kinds::MessagesAck => Flow::new(user, user ^ 1),
        Kinds::Pushes | Kinds::PushesAck => Flow::new(users, user),
        Kinds::Posts | Kinds::Batches | Kinds::ToAll => Flow::new(users + user % pushers, user),
    };
    let flows = (0..users).map(flow).collect();
    let route = kind.route(args);
    let mut ledger = Ledger::new(route, run, members, flows, args.payload as usize);
    let round = match kind {
        Kinds::Posts | Kinds::Batches => {
            let lines = (kind == Kinds::Batches).then_some(args.lines);
            let posts = Posts { users, clients: pushers, lines, ack: !args.no_ack, warmup, length };
            posts.run(&mut fleet, &mut ledger, pid, progress)?
        }
        _ => {
            let stretch = Stretch { window: args.window, warmup, length, pace: None };
            traffic::run(&mut fleet, &mut ledger, route, stretch, &[pid], progress)?.into()
        }
    };
    case.rounds.push(round);
    fleet.close()
}

/// Lets those in who push, once the users are there.
struct Pushers<'a> {
    users: &'a [u64],
    first: u32,
    /// They are workers, with their link at this shard, counted from 1; 0 for any.
    serve: Option<u32>,
    entered: u32,
}

impl Pushers<'_> {
    fn enter(mut self, fleet: &mut Fleet, count: u32) -> Result<(), Failure> {
        fleet.open_at(self.first, count)?;
        let since = Instant::now();
        while self.entered < count {
            fleet.turn(&mut self, Duration::from_millis(50))?;
            if since.elapsed() > PATIENCE {
                let waiting_for = format!("the gateway to let in who pushes; {} of {count} are there", self.entered);
                return Err(Failure::Stalled { waiting_for, after: PATIENCE });
            }
        }
        Ok(())
    }
}

impl Driver for Pushers<'_> {
    fn connected(&mut self, _: u32, out: &mut Vec<u8>) -> Result<Arm, Failure> {
        match self.serve {
            None => self.entered += 1,
            Some(shard) => {
                let offers = vec![Offer { service: SERVICE.into(), ..Offer::default() }];
                let serve = Serve { version: VERSION, name: "bench".to_owned(), offers, shard, ..Serve::default() };
                encode_message(out, Kind::Serve, 0, &serve);
            }
        }
        Ok(Arm::Always)
    }

    fn frame(&mut self, connection: u32, frame: &Frame<'_>, _: u64, _: &mut Vec<u8>) -> Result<(), Failure> {
        match frame.known() {
            Some(Kind::ServeOk) if self.serve.is_some() && connection >= self.first => {
                self.entered += 1;
                Ok(())
            }
            Some(kind @ (Kind::Bye | Kind::Error)) => {
                let text = Code::from_u16(frame.aux).map_or("unknown reason", Code::text);
                Err(self.lost(connection, &format!("{} {} ({text})", kind.name(), frame.aux)))
            }
            _ => Err(Discrepancy::unexpected(self.users[connection as usize], frame).into()),
        }
    }

    fn lost(&mut self, connection: u32, how: &str) -> Failure {
        let user = self.users[connection as usize];
        let who = if connection < self.first { format!("of user {user}") } else { "of who is to push".to_owned() };
        Failure::ServerGone(format!("the connection {who} was lost before anything was pushed: {how}"))
    }
}

/// Pushes of a worker over messages, with and without fates.
fn ratios(cases: &[Case]) -> Vec<Ratio> {
    let of = |kind: Kinds| cases.iter().find(|case| case.kind == kind);
    let pairs = [(Kinds::Pushes, Kinds::Messages), (Kinds::PushesAck, Kinds::MessagesAck)];
    let ratio = |(case, over): (Kinds, Kinds)| {
        let (case, over) = (of(case)?, of(over)?);
        let of_rounds = case.rounds.iter().zip(&over.rounds).map(|(one, other)| one.cpu_us / other.cpu_us);
        Some(Ratio { case: case.name, over: over.name, of_rounds: Median::of(of_rounds) })
    };
    pairs.into_iter().filter_map(ratio).collect()
}

fn print_summary(args: &PushArgs, report: &Report<'_>) {
    let PushArgs { users, payload, rounds, secs, .. } = args;
    println!("{}", report.machine);
    println!("{users} users, payload {payload} B, {rounds} rounds of {secs} s; medians");
    let head = ["", "CPU µs each", "services µs", "cores", "bench cores", "a second", "p50 µs", "p99 µs", "p99.9 µs"];
    let rows: Vec<Vec<String>> = report
        .cases
        .iter()
        .filter(|case| !case.rounds.is_empty())
        .map(|case| {
            let of = |value: fn(&Round) -> f64| median(case.rounds.iter().map(value));
            let services = case.rounds.iter().filter_map(|round| round.services_cpu_us);
            let services: Vec<f64> = services.collect();
            vec![
                case.name.to_owned(),
                format!("{:.3}", of(|round| round.cpu_us)),
                if services.is_empty() { String::new() } else { format!("{:.3}", median(services)) },
                format!("{:.2}", of(|round| round.cores)),
                format!("{:.2}", of(|round| round.bench_cores)),
                format!("{:.0}", of(|round| round.rate)),
                format!("{:.0}", of(|round| round.latency.p50_us)),
                format!("{:.0}", of(|round| round.latency_corrected.p99_us)),
                format!("{:.0}", of(|round| round.latency_corrected.p999_us)),
            ]
        })
        .collect();
    if !rows.is_empty() {
        println!("{}\n{CORRECTED}", table(&head, &rows));
    }
    for case in &report.cases {
        let services = case.rounds.iter().filter_map(|round| round.per_second_and_services_core);
        let services: Vec<f64> = services.collect();
        if !services.is_empty() {
            println!("{}: {:.0} a second and services core", case.name, median(services));
        }
    }
    for Ratio { case, over, of_rounds } in &report.ratios {
        println!("CPU for one, {case} over {over}: {of_rounds}");
    }
    if !report.ratios.is_empty() {
        println!("{INTERVALS}");
    }
    for case in &report.cases {
        println!("{}: {}", case.name, case.what);
        for round in case.rounds.iter().filter(|round| round.silence_ms > SILENCE_MS_MAX) {
            println!("  warning: nothing came for {:.0} ms in a round", round.silence_ms);
        }
        if case.kind == Kinds::ToAll {
            push_all::print(&case.casts);
        }
    }
    let checked: u64 = report.cases.iter().flat_map(|case| &case.rounds).map(|round| round.checked).sum();
    let all: u64 = report.cases.iter().flat_map(|case| &case.casts).map(|cast| cast.sessions).sum();
    println!("{} in all, each once, in order, with the right bytes; each fate as it was", checked + all);
}
