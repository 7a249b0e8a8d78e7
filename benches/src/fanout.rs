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
mod room;
mod slow;

use std::{
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use clap::Args;
use serde::Serialize;

use crate::{
    affinity::{on_load_core, pin},
    dialect::{Mqtt, Nats, Resp, Subjects},
    failure::Failure,
    fleet::Targets,
    pairs::GatewayArgs,
    peers::{Layered, PEERS, Peer},
    progress::Progress,
    report::{INTERVALS, Machine, Median, median, table, write_json},
    scenario::{seconds, turns},
    server::Server,
    site::NodesArgs,
    sockets::tables_for,
    team::CoresArgs,
    users::Share,
};
use room::{NUMBER_BYTES, Room, Round, Speech};

/// More than the sender ever gets to: nothing is to be refused.
const SENDS_PER_SEC: &str = "1000000";
/// Half of what the gateway queues for a connection by default, so that nothing is to be dropped.
const CAST_BYTES_MAX: u32 = 128 << 10;
/// Others are set up for 18,000 connections.
const OTHERS_MEMBERS_MAX: u32 = 17_900;

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
    /// Members of a hundred that stop reading, in a durable group and by itself: what the others notice of it, and
    /// whether those that read again get all that they have missed
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
    /// CPU for a delivery over the floor's of the same round; missing where one ring cannot hold the floor's
    /// connections.
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
            "a cast of {} messages of {} B is more than what a gateway queues for one client: lower --burst or \
             --payload",
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
    // Each cast is awaited, so there is never anything to gather, only to wait for.
    gateway.also(&["--room-gather-ms", "0", "--room-frames-per-sec", "0"]);
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

fn table_head() -> [&'static str; 9] {
    [
        "",
        "CPU/delivery",
        "deliveries/s and core",
        "first",
        "last",
        "longest",
        "cores: server + bench",
        "ksoftirqd",
        "idle",
    ]
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
        format!("{:.2}", of(|round| round.softirq_cores)),
        format!("{:.2}", of(|round| round.idle_cores)),
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
