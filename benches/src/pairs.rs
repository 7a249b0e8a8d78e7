//! `bench floor` and `bench pairs`: what a message costs.

use std::{
    path::PathBuf,
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use clap::Args;
use serde::Serialize;
use trunkline_proto::{Kind, encoded_len};

pub(crate) use crate::gateway::GatewayArgs;
use crate::{
    affinity::on_load_core,
    failure::Failure,
    fleet::{Arm, Fleet},
    floor,
    ledger::{Flow, Ledger, Route},
    login::{Entrance, enter},
    payload::PAYLOAD_BYTES_MIN,
    progress::Progress,
    report::{INTERVALS, Machine, Median, median, table, write_json},
    scenario::turns,
    server::Server,
    site::{Crossings, NodesArgs, QUIET_MIN, RedisUse, Site},
    tls::TlsArgs,
    traffic::{self, Measurement, Stretch},
    transport::{Layers, Transport, Transports},
    users::{Placement, Seats},
};

/// Printed below tables with latencies of a closed loop.
pub(crate) const CORRECTED: &str = "\
p99 and p99.9 as clients would see them that do not wait for the message before; p50 and max of each message";

/// A server, or a machine, that lets all connections wait for so long has stood still.
pub(crate) const SILENCE_MS_MAX: f64 = 250.0;

/// The load of one round.
#[derive(Clone, Debug, Args, Serialize)]
pub(crate) struct Load {
    /// Connections, an even number
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(2..=16_000_000))]
    conns: u32,
    /// Messages each connection keeps in flight
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    window: u32,
    /// Payload of a message in bytes; at least 40, which hold what is needed to account for it
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(PAYLOAD_BYTES_MIN as i64..=65_504))]
    payload: u32,
    /// Length of a measurement in seconds
    #[arg(long, default_value_t = 5.0)]
    secs: f64,
    /// Traffic before a measurement, in seconds
    #[arg(long, default_value_t = 0.5)]
    warmup: f64,
    /// Rounds; the median counts
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    rounds: u32,
    /// Share of a core that a server is to use, instead of as much as it can: messages are held back so far, for each
    /// case by itself, so that all are compared at the same saturation
    #[arg(long, value_name = "SHARE")]
    saturation: Option<f64>,
}

/// Arguments of `bench floor`.
#[derive(Clone, Debug, Args, Serialize)]
pub(crate) struct FloorArgs {
    #[command(flatten)]
    #[serde(flatten)]
    load: Load,
    /// Completions the server takes at once when it is busy; 0 leaves it at what one plain system call yields
    #[arg(long, default_value_t = floor::BATCH, hide = true)]
    floor_batch: u32,
    /// Write everything to this file as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Arguments of `bench pairs`.
#[derive(Clone, Debug, Args, Serialize)]
pub(crate) struct PairsArgs {
    #[command(flatten)]
    #[serde(flatten)]
    load: Load,
    #[command(flatten)]
    #[serde(flatten)]
    gateway: GatewayArgs,
    #[command(flatten)]
    #[serde(flatten)]
    nodes: NodesArgs,
    #[command(flatten)]
    #[serde(flatten)]
    transports: Transports,
    /// With two nodes or more: also pairs that are guests, whose home is neither's node, and so two links for a message
    #[arg(long)]
    guests: bool,
    /// Send with ACK: recipients acknowledge, and senders count one SENT for each message
    #[arg(long)]
    ack: bool,
    /// With two shards or more: pairs whose users live on the same shard
    #[arg(long)]
    within: bool,
    /// With two shards or more: pairs whose users live on different shards
    #[arg(long)]
    across: bool,
    /// See `bench floor`
    #[arg(long, default_value_t = floor::BATCH, hide = true)]
    floor_batch: u32,
    /// Write everything to this file as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// One of the things that are compared, measured in alternation with the others.
#[derive(Debug, Serialize)]
struct Case {
    name: String,
    placement: Placement,
    #[serde(skip)]
    site: usize,
    #[serde(skip)]
    route: Route,
    /// What it is beside other transports.
    #[serde(skip)]
    what: &'static str,
    transport: Transport,
    /// What its clients write and read.
    #[serde(skip)]
    layers: Layers,
    /// Messages per second it is held to.
    #[serde(skip)]
    pace: Option<f64>,
    median_cpu_us_per_message: f64,
    rounds: Vec<Round>,
    /// What Redis had to do with all connections logged in and no message under way.
    #[serde(skip_serializing_if = "Option::is_none")]
    redis_quiet: Option<RedisUse>,
}

/// One round of a case.
#[derive(Debug, Serialize)]
struct Round {
    #[serde(flatten)]
    measurement: Measurement,
    /// What went between nodes from the first message to the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    crossings: Option<Crossings>,
    /// What Redis had to do meanwhile.
    #[serde(skip_serializing_if = "Option::is_none")]
    redis: Option<RedisUse>,
}

impl Case {
    fn new(what: &'static str, site: usize, route: Route, placement: Placement) -> Case {
        Case {
            name: what.to_owned(),
            placement,
            site,
            route,
            what,
            transport: Transport::Native,
            layers: Layers::default(),
            pace: None,
            median_cpu_us_per_message: 0.0,
            rounds: Vec::new(),
            redis_quiet: None,
        }
    }

    /// The same with frames that travel in something else; `None` for an echo over TLS.
    fn over(&self, transport: Transport, tls: TlsArgs) -> Option<Case> {
        let case = Case::new(self.what, self.site, self.route, self.placement);
        let layers = match self.route {
            Route::Echo => transport.echo_wire()?.into(),
            Route::Deliver { .. } | Route::Push { .. } | Route::Post { .. } => transport.layers(tls),
        };
        Some(Case { name: transport.label(self.what), transport, layers, ..case })
    }
}

/// CPU time for a message of one case over that of another, measured in the same rounds.
#[derive(Clone, Debug, Serialize)]
struct Ratio {
    case: String,
    over: String,
    /// Of the rounds' own ratios.
    #[serde(flatten)]
    of_rounds: Median,
    rounds: Vec<f64>,
}

impl Ratio {
    fn of(case: &Case, over: &Case) -> Ratio {
        let cpu = |round: &Round| round.measurement.cpu_us_per_message;
        let rounds: Vec<f64> =
            case.rounds.iter().zip(&over.rounds).map(|(round, base)| cpu(round) / cpu(base)).collect();
        Ratio {
            case: case.name.clone(),
            over: over.name.clone(),
            of_rounds: Median::of(rounds.iter().copied()),
            rounds,
        }
    }

    /// Each case over the first one of its transport, and over the same one of the first transport.
    fn all(cases: &[Case]) -> Vec<Ratio> {
        let mut ratios = Vec::new();
        for case in cases {
            let first = cases.iter().find(|other| other.transport == case.transport);
            let plain = cases.iter().find(|other| other.what == case.what);
            for over in [first, plain].into_iter().flatten().filter(|over| over.name != case.name) {
                ratios.push(Ratio::of(case, over));
            }
        }
        ratios
    }
}

/// What a run of `bench floor` or `bench pairs` has found.
#[derive(Debug, Serialize)]
struct Report<'a, A: Serialize> {
    bench: &'static str,
    machine: Machine,
    arguments: &'a A,
    cases: Vec<Case>,
    command: Vec<String>,
    /// What each case costs beside others.
    ratios: Vec<Ratio>,
}

/// Runs `bench floor`.
pub(crate) fn run_floor(args: &FloorArgs) -> Result<(), Failure> {
    let mut sites = [Site::alone(Server::floor(args.load.conns, args.floor_batch)?)];
    let cases = vec![Case::new("floor", 0, Route::Echo, Placement::Any)];
    let cases = measure(&args.load, 1, &mut sites, cases)?;
    let [site] = sites;
    site.stop()?;
    conclude("floor", args, &args.load, cases, args.json.as_deref())
}

/// Runs `bench pairs`.
pub(crate) fn run(args: &PairsArgs) -> Result<(), Failure> {
    let shards = args.gateway.shards_for(args.load.conns)?;
    if shards < 2 && (args.within || args.across) {
        return Err(Failure::Setup("--within and --across need --shards 2 or more".to_owned()));
    }
    let nodes = &args.nodes;
    if nodes.are_clustered() && (args.within || args.across) {
        return Err(Failure::Setup(
            "--within and --across are about the shards of one gateway without Redis".to_owned(),
        ));
    }
    if args.guests && nodes.nodes < 2 {
        return Err(Failure::Setup("--guests needs --nodes 2 or more: a guest's home is another node".to_owned()));
    }
    args.load.check()?;
    if args.transports.any_tls() {
        args.gateway.show_certificate()?;
    }
    let route = Route::Deliver { ack: args.ack };
    let mut sites = Vec::new();
    let mut cases = Vec::new();
    if nodes.nodes > 1 {
        sites.push(Site::start(nodes, &args.gateway, args.load.conns, &[])?);
        cases.push(Case::new("local", 0, route, Placement::Local));
        cases.push(Case::new("across", 0, route, Placement::Remote));
        if args.guests {
            cases.push(Case::new("guests of one node", 0, route, Placement::GuestsTogether));
        }
        if args.guests && nodes.nodes > 2 {
            cases.push(Case::new("guests of two nodes", 0, route, Placement::GuestsApart));
        }
    } else if shards < 2 || nodes.are_clustered() {
        sites.push(Site::alone(Server::floor(args.load.conns, args.floor_batch)?));
        sites.push(Site::start(nodes, &args.gateway, args.load.conns, &[])?);
        cases.push(Case::new("floor", 0, Route::Echo, Placement::Any));
        cases.push(Case::new("gateway", 1, route, Placement::Any));
    } else {
        // The shards use all cores together with the load: only CPU time for a message can be compared.
        sites.push(Site::alone(args.gateway.start(args.load.conns)?));
        let both = args.within == args.across;
        if args.within || both {
            cases.push(Case::new("gateway, within a shard", 0, route, Placement::Within));
        }
        if args.across || both {
            cases.push(Case::new("gateway, across shards", 0, route, Placement::Across));
        }
    }
    let (transports, tls) = (args.transports.distinct(), args.transports.tls);
    let over = |transport: &Transport| cases.iter().filter_map(|case| case.over(*transport, tls)).collect::<Vec<_>>();
    let cases = transports.iter().flat_map(over).collect();
    let cases = measure(&args.load, shards, &mut sites, cases)?;
    for site in sites {
        site.stop()?;
    }
    conclude("pairs", args, &args.load, cases, args.json.as_deref())
}

impl Load {
    /// Checks what clap cannot.
    fn check(&self) -> Result<(), Failure> {
        if !self.conns.is_multiple_of(2) {
            return Err(Failure::Setup(format!("--conns {} is odd, but connections come in pairs", self.conns)));
        }
        let seconds = 0.01..86_400.0;
        if !seconds.contains(&self.secs) || !(0.0..86_400.0).contains(&self.warmup) {
            return Err(Failure::Setup("--secs takes 0.01 to 86400 and --warmup 0 to 86400".to_owned()));
        }
        if self.saturation.is_some_and(|share| !(0.05..=1.0).contains(&share)) {
            return Err(Failure::Setup("--saturation takes 0.05 to 1 of a core".to_owned()));
        }
        Ok(())
    }
}

/// Measures all cases in each round, one after the other.
fn measure(load: &Load, shards: u32, sites: &mut [Site], mut cases: Vec<Case>) -> Result<Vec<Case>, Failure> {
    load.check()?;
    // Tells the messages of one run from those of another, and keeps ids apart that the same user uses again.
    let mut run_number = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_millis() as u32);
    let count = cases.len();
    for round in 1..=load.rounds {
        // So that none always has the machine as the same other one left it.
        for at in turns(count, round) {
            let case = &mut cases[at];
            let progress = Progress::new(format!("{} {round}/{}", case.name, load.rounds));
            let site = &mut sites[case.site];
            let seats = site.seats(load.conns, shards, case.placement);
            run_number = run_number.wrapping_add(1);
            let measured = on_load_core(|| round_of(load, case, &seats, run_number, site, &progress));
            let (round, quiet) = measured.map_err(|failure| site.explain(failure))?;
            if let (Some(pace), Some(share)) = (round.measurement.pace, load.saturation) {
                case.pace = Some(corrected_pace(pace, share, &round.measurement));
            }
            case.rounds.push(round);
            case.redis_quiet = case.redis_quiet.take().or(quiet);
            // The kernel finishes closing the connections of the round before the next one begins.
            thread::sleep(Duration::from_millis(100));
        }
    }
    for case in &mut cases {
        case.median_cpu_us_per_message = median(case.rounds.iter().map(|round| round.measurement.cpu_us_per_message));
    }
    Ok(cases)
}

/// Connects, logs in, exchanges messages, accounts for them, and disconnects. Also tells, once for each case, what
/// Redis has to do while nothing is sent.
fn round_of(
    load: &Load,
    case: &Case,
    seats: &Seats,
    run_number: u32,
    site: &Site,
    progress: &Progress,
) -> Result<(Round, Option<RedisUse>), Failure> {
    let (route, users) = (case.route, &seats.users);
    let ack_bytes = if route == (Route::Deliver { ack: true }) { 2 * encoded_len(Kind::Ack, 0) } else { 0 };
    let message_bytes = encoded_len(Kind::Send, load.payload as usize) + ack_bytes;
    let burst_bytes = (message_bytes as u64 * u64::from(load.window)).min(u64::from(u32::MAX >> 1)) as u32;
    let mut fleet = Fleet::new(site.targets(seats), users.len() as u32, burst_bytes)?.over(case.layers.clone());
    let entrance = if route == Route::Echo { Entrance::Connect } else { Entrance::Login };
    enter(&mut fleet, users, entrance, Arm::Always, progress)?;
    let length = Duration::from_secs_f64(load.secs);
    // Logins, and the logouts of the round before, are no part of what messages cost.
    site.await_presence(|time| traffic::keep_quiet(&mut fleet, users, time))?;
    let quiet = match site.redis_mark()? {
        Some(mark) if case.redis_quiet.is_none() => {
            traffic::keep_quiet(&mut fleet, users, length.max(QUIET_MIN))?;
            site.redis_since(Some(mark), 0)?
        }
        _ => None,
    };
    let crossings = site.crossings()?;
    let flows = (0..users.len() as u32).map(|from| Flow::new(from, if route == Route::Echo { from } else { from ^ 1 }));
    let mut ledger = Ledger::new(route, run_number, users.clone(), flows.collect(), load.payload as usize);
    let warmup = Duration::from_secs_f64(load.warmup);
    let mut stretch = Stretch { window: load.window, warmup, length, pace: case.pace };
    if let (Some(share), None) = (load.saturation, case.pace) {
        let mut probe = |pace| {
            let stretch = Stretch { warmup: PROBE / 4, length: PROBE, pace, ..stretch };
            traffic::run(&mut fleet, &mut ledger, route, stretch, &site.pids(), progress)
        };
        let mut pace = probe(None).map(|measured| corrected_pace(measured.rate, share, &measured))?;
        for _ in 0..PROBES {
            pace = corrected_pace(pace, share, &probe(Some(pace))?);
        }
        stretch.pace = Some(pace);
    }
    let (mark, before) = (site.redis_mark()?, ledger.delivered());
    let measurement = traffic::run(&mut fleet, &mut ledger, route, stretch, &site.pids(), progress)?;
    let redis = site.redis_since(mark, ledger.delivered() - before)?;
    let crossings = site.crossings()?.since(crossings);
    fleet.close()?;
    crossings.judge(case.placement, ledger.delivered())?;
    let crossings = (case.placement.links() > 0).then_some(crossings);
    Ok((Round { measurement, crossings, redis }, quiet))
}

/// Length of a measurement that looks for the pace at which a server is as busy as it is to be, and how many of them
/// there are.
const PROBE: Duration = Duration::from_millis(400);
const PROBES: u32 = 4;

/// A pace that comes closer to a share of a core than this one did.
fn corrected_pace(pace: f64, share: f64, measured: &Measurement) -> f64 {
    pace * (share / measured.cpu_cores.max(1e-3)).clamp(0.25, 4.0)
}

fn conclude<A: Serialize>(
    bench: &'static str,
    arguments: &A,
    load: &Load,
    cases: Vec<Case>,
    json: Option<&std::path::Path>,
) -> Result<(), Failure> {
    let ratios = Ratio::all(&cases);
    let command = std::env::args().collect();
    let report = Report { bench, machine: Machine::this(), arguments, command, ratios, cases };
    let Load { conns, window, payload, secs, rounds, .. } = load;
    println!("{}", report.machine);
    println!("{conns} connections, window {window}, payload {payload} B, {rounds} rounds of {secs} s; medians");
    println!("{}", summary(&report.cases));
    println!("{CORRECTED}");
    let of = |name: &str| report.cases.iter().find(|case| case.name == name);
    for Ratio { case, over, of_rounds, .. } in &report.ratios {
        let saturations = [of(case), of(over)].map(|case| case.map_or_else(String::new, saturation));
        println!("CPU for a message, {case} over {over}: {of_rounds}; {}", saturations.join(" beside "));
    }
    if !report.ratios.is_empty() {
        println!("{INTERVALS}");
    }
    // With the floor beside it a server has a core of its own; several nodes or shards are on more, and share them.
    if report.cases[0].route == Route::Echo {
        report.cases.iter().for_each(print_softirq);
    }
    report.cases.iter().for_each(warn_of_silence);
    report.cases.iter().for_each(print_cluster);
    let checked: u64 = report.cases.iter().flat_map(|case| &case.rounds).map(|round| round.measurement.checked).sum();
    println!("{checked} messages, each delivered once, in order, to the right user, with the right bytes");
    match json {
        Some(path) => write_json(path, &report),
        None => Ok(()),
    }
}

/// How busy server and bench were, in cores.
fn saturation(case: &Case) -> String {
    let of = |value: fn(&Measurement) -> f64| median(case.rounds.iter().map(|round| value(&round.measurement)));
    format!("{:.2} + {:.2} cores", of(|round| round.cpu_cores), of(|round| round.bench_cores))
}

/// Says how much of the servers' core went into packets, and whose time that is.
fn print_softirq(case: &Case) {
    let of = |value: fn(&Measurement) -> f64| median(case.rounds.iter().map(|round| value(&round.measurement)));
    let (server, load) = (of(|round| round.server_core.softirq), of(|round| round.load_core.softirq));
    let told = |is_within: bool| {
        let rounds = case.rounds.iter().map(|round| &round.measurement);
        rounds.filter(|round| round.server_core.is_in_processes(round.cpu_cores) == Some(is_within)).count()
    };
    let charged = match (2 * told(true) > case.rounds.len(), 2 * told(false) > case.rounds.len()) {
        (true, _) => "it is within the CPU time of the process it ran on",
        (_, true) => "it is not in the CPU time of the process it ran on",
        (false, false) => "whose CPU time it is in cannot be told, since something else ran on that core",
    };
    println!(
        "{}: softirq took {:.0} % of the servers' core and {:.0} % of the load's; {charged}",
        case.name,
        server * 100.0,
        load * 100.0
    );
}

/// Says so when nothing arrived for long in a round, which its median would not show.
fn warn_of_silence(case: &Case) {
    for (number, round) in (1..).zip(&case.rounds) {
        let silence_ms = round.measurement.silence_ms;
        if silence_ms > SILENCE_MS_MAX {
            println!("warning: {}, round {number}: no message arrived for {silence_ms:.0} ms", case.name);
        }
    }
}

/// What crossed between nodes, and what Redis had to do.
fn print_cluster(case: &Case) {
    let crossings = case.rounds.iter().filter_map(|round| Some((round.crossings?, round.measurement.checked)));
    let (records, bytes, messages) = crossings.fold((0, 0, 0), |(records, bytes, messages), (crossings, checked)| {
        (records + crossings.records, bytes + crossings.bytes, messages + checked)
    });
    if messages > 0 {
        let each = |value: u64| value as f64 / messages as f64;
        println!("{}: {:.3} records and {:.0} B between nodes for a message", case.name, each(records), each(bytes));
    }
    let Some(quiet) = &case.redis_quiet else { return };
    let rounds = || case.rounds.iter().filter_map(|round| round.redis.as_ref());
    println!(
        "{}: Redis executed {} commands in {:.1} s with {} messages ({:.1} a second), and {} in {:.1} s without ({:.1} \
         a second): {:.6} for a message",
        case.name,
        rounds().map(|redis| redis.commands.total).sum::<u64>(),
        rounds().map(|redis| redis.seconds).sum::<f64>(),
        rounds().map(|redis| redis.messages).sum::<u64>(),
        median(rounds().map(RedisUse::rate)),
        quiet.commands.total,
        quiet.seconds,
        quiet.rate(),
        median(rounds().map(|redis| redis.per_message(quiet))),
    );
}

fn summary(cases: &[Case]) -> String {
    let head = [
        "",
        "CPU µs/message",
        "lowest",
        "highest",
        "user %",
        "cores",
        "bench cores",
        "messages/s",
        "p50 µs",
        "p99 µs",
        "p99.9 µs",
        "max µs",
    ];
    let rows: Vec<Vec<String>> = cases
        .iter()
        .map(|case| {
            let of = |value: fn(&Measurement) -> f64| median(case.rounds.iter().map(|round| value(&round.measurement)));
            let cpu = || case.rounds.iter().map(|round| round.measurement.cpu_us_per_message);
            vec![
                case.name.clone(),
                format!("{:.3}", case.median_cpu_us_per_message),
                format!("{:.3}", cpu().fold(f64::INFINITY, f64::min)),
                format!("{:.3}", cpu().fold(0.0, f64::max)),
                format!("{:.0}", of(|round| round.cpu_user_share) * 100.0),
                format!("{:.2}", of(|round| round.cpu_cores)),
                format!("{:.2}", of(|round| round.bench_cores)),
                format!("{:.0}", of(|round| round.rate)),
                format!("{:.0}", of(|round| round.latency.p50_us)),
                format!("{:.0}", of(|round| round.latency_corrected.p99_us)),
                format!("{:.0}", of(|round| round.latency_corrected.p999_us)),
                // Of all rounds: the worst is in one of them.
                format!("{:.0}", case.rounds.iter().map(|round| round.measurement.latency.max_us).fold(0.0, f64::max)),
            ]
        })
        .collect();
    table(&head, &rows)
}
