//! `bench store`: how fast messages for users who are not there are kept, and how long their senders wait for the word
//! that they are; beside bare appends on the same disk, and beside other servers that keep messages.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use serde::Serialize;

use crate::{
    affinity::on_load_core,
    backlog::Backlog,
    counters::Counters,
    disk::{append, is_in_memory},
    failure::Failure,
    fleet::Fleet,
    gateway::GatewayArgs,
    keepers::{KeeperKind, Start, StoreSync, parent},
    keeping::{Kept, Plan, Senders, Until},
    pairs::CORRECTED,
    payload::PAYLOAD_BYTES_MIN,
    process::CpuTime,
    progress::Progress,
    reading::Readers,
    redis::Scratch,
    report::{INTERVALS, Machine, Median, median, table, write_json},
    scenario::{run_number, seconds, turns},
    site::{NodesArgs, RedisUse, Site},
    users::Seats,
};

/// Recipients who log in afterwards, to see that all is there.
const LOOKED_AT_MAX: u32 = 1_000;
/// Messages of a burst that may wait for the server's word: far fewer than what a gateway has room for.
const BURST_WINDOW: u32 = 32_768;
/// The same where Redis keeps them: it answers for fewer a second, and what it does not within a second is refused.
const REDIS_BURST_WINDOW_MAX: u32 = 2_048;
/// The window of those who log in afterwards: the gateway's own.
const READ_WINDOW: u32 = 0;

/// Arguments of `bench store`.
#[derive(Clone, Debug, Args, Serialize)]
pub(crate) struct StoreArgs {
    /// Connections that send
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    senders: u32,
    /// Users the messages are for, who are never there meanwhile; each gets as many
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..=16_000_000))]
    recipients: u32,
    /// Messages without an answer at a time, over all connections; several values are measured one after the other
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [1, 32, 256])]
    in_flight: Vec<u32>,
    /// Then so many messages as fast as they are taken; 0 leaves that out
    #[arg(long, value_name = "MESSAGES", default_value_t = 200_000)]
    #[arg(value_parser = clap::value_parser!(u64).range(0..=1 << 30))]
    burst: u64,
    /// Messages of the burst without an answer at a time; 2,048 at most where the gateway keeps them in Redis
    #[arg(long, value_name = "N", default_value_t = BURST_WINDOW)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    burst_window: u32,
    /// Payload of a message in bytes; at least 40, which hold what is needed to account for it
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(PAYLOAD_BYTES_MIN as i64..=16_384))]
    payload: u32,
    /// Length of each measurement in seconds
    #[arg(long, default_value_t = 3.0)]
    secs: f64,
    /// Rounds, in each of which every server begins with nothing; the median counts
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Folder on the disk that is measured, where all of them write [default: that for temporary files]
    #[arg(long, value_name = "DIR")]
    folder: Option<PathBuf>,
    /// Only these of floor, trunkline, jetstream, jetstream-always, redis-everysec, redis-always, and with --redis or
    /// --nodes trunkline-redis-replica and so on [default: all that are installed]
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    only: Vec<String>,
    /// The nats-server to start; one from 2.10 on can sync always
    #[arg(long, value_name = "FILE", default_value = "nats-server")]
    nats_server: PathBuf,
    /// With --redis or --nodes: when gateways with their store in Redis answer; several values are cases of their own
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [StoreSync::Replica])]
    store_sync: Vec<StoreSync>,
    #[command(flatten)]
    #[serde(flatten)]
    nodes: NodesArgs,
    #[command(flatten)]
    #[serde(flatten)]
    gateway: GatewayArgs,
    /// Write everything to this file as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// One measurement of one server.
#[derive(Clone, Debug, Serialize)]
struct Round {
    /// Messages without an answer at a time.
    in_flight: u32,
    /// It was so many messages, and not so much time.
    burst: bool,
    #[serde(flatten)]
    kept: Kept,
    /// CPU time of all Redis servers for a message.
    #[serde(skip_serializing_if = "Option::is_none")]
    redis_cpu_us_per_message: Option<f64>,
    /// What Redis had to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    redis: Option<RedisUse>,
}

/// What is compared: so many messages in flight, or none and the burst.
type Load = Option<u32>;

impl Round {
    fn load(&self) -> Load {
        (!self.burst).then_some(self.in_flight)
    }
}

/// What was measured of one server.
#[derive(Debug, Serialize)]
struct Contest {
    name: &'static str,
    what: &'static str,
    version: String,
    rounds: Vec<Round>,
    /// Messages that the server has answered for, in all rounds; and those of a gateway's that were read back.
    answered: u64,
    read_back: u64,
    /// Why a peer was left out from some point on: it did not start, or broke under the load.
    failed: Option<String>,
}

#[derive(Debug, Serialize)]
struct Report<'a> {
    bench: &'static str,
    machine: Machine,
    command: Vec<String>,
    arguments: &'a StoreArgs,
    servers: Vec<Contest>,
    /// Servers that are left out, and why.
    skipped: Vec<(&'static str, String)>,
}

/// Runs `bench store`.
pub(crate) fn run(args: &StoreArgs) -> Result<(), Failure> {
    let length = seconds("--secs", args.secs)?;
    if args.in_flight.iter().any(|in_flight| !(1..=1 << 20).contains(in_flight)) {
        return Err(Failure::Setup("--in-flight takes 1 to 1048576".to_owned()));
    }
    if args.gateway.runs_already() {
        return Err(Failure::Setup("bench store starts gateways of its own: leave --gateway out".to_owned()));
    }
    if args.senders > args.recipients {
        return Err(Failure::Setup("--recipients has to be as many as --senders at least".to_owned()));
    }
    let (kinds, skipped) = chosen(args)?;
    let parent = parent(args.folder.as_ref());
    if is_in_memory(&parent)? {
        println!("warning: {} is in memory: nothing of this is about a disk; name another --folder", parent.display());
    }
    let scratch = Scratch::below(&parent, "store")?;
    let mut servers: Vec<Contest> = kinds
        .iter()
        .map(|(kind, version)| Contest {
            name: kind.name(),
            what: kind.what(),
            version: version.clone(),
            rounds: Vec::new(),
            answered: 0,
            read_back: 0,
            failed: None,
        })
        .collect();
    let count = kinds.len();
    for round in 1..=args.rounds {
        // So that none always has the machine as the same other one left it.
        for number in turns(count, round) {
            let (kind, contest) = (kinds[number].0, &mut servers[number]);
            if contest.failed.is_some() {
                continue;
            }
            let progress = Progress::new(format!("{} {round}/{}", kind.name(), args.rounds));
            let measured = match kind {
                KeeperKind::Floor => on_load_core(|| floor(args, length, scratch.path(), &progress)),
                _ => keeper(args, kind, length, &scratch.path().join(kind.name()), &progress),
            };
            match measured {
                Ok(Measured { rounds, answered, read_back }) => {
                    contest.rounds.extend(rounds);
                    contest.answered += answered;
                    contest.read_back += read_back;
                }
                Err(failure) if kind == KeeperKind::Floor || kind.is_gateway() => return Err(failure),
                Err(failure) => {
                    eprintln!("{} is left out from here on: {failure}", kind.name());
                    contest.failed = Some(failure.to_string());
                }
            }
        }
    }
    let report = Report {
        bench: "store",
        machine: Machine::this(),
        command: std::env::args().collect(),
        arguments: args,
        servers,
        skipped,
    };
    print_summary(&report);
    match &args.json {
        Some(path) => write_json(path, &report),
        None => Ok(()),
    }
}

type Chosen = (Vec<(KeeperKind, String)>, Vec<(&'static str, String)>);

/// What is measured, each with its version, and what is not, each with the reason.
fn chosen(args: &StoreArgs) -> Result<Chosen, Failure> {
    let mut known = vec![KeeperKind::Floor, KeeperKind::Embedded];
    if args.nodes.are_clustered() {
        known.extend(args.store_sync.iter().map(|sync| KeeperKind::Redis(*sync)));
    }
    let (jet_stream, streams) = (|always| KeeperKind::JetStream { always }, |always| KeeperKind::Streams { always });
    known.extend([jet_stream(false), jet_stream(true), streams(false), streams(true)]);
    if let Some(unknown) = args.only.iter().find(|name| known.iter().all(|kind| kind.name() != name.as_str())) {
        let names: Vec<_> = known.iter().map(|kind| kind.name()).collect();
        return Err(Failure::Setup(format!("--only {unknown} is not known: {} are", names.join(", "))));
    }
    let (mut kinds, mut skipped) = (Vec::new(), Vec::new());
    for kind in known {
        if !args.only.is_empty() && args.only.iter().all(|name| name != kind.name()) {
            continue;
        }
        match kind.version(&args.nats_server) {
            Ok(version) => kinds.push((kind, version)),
            Err(why) => {
                eprintln!("{} is left out: {why}", kind.name());
                skipped.push((kind.name(), why));
            }
        }
    }
    Ok((kinds, skipped))
}

/// What one round of one server has come to.
struct Measured {
    rounds: Vec<Round>,
    answered: u64,
    read_back: u64,
}

/// The loads of one round.
fn loads(args: &StoreArgs, kind: KeeperKind, length: Duration) -> impl Iterator<Item = (u32, Until)> {
    let most = if matches!(kind, KeeperKind::Redis(_)) { REDIS_BURST_WINDOW_MAX } else { u32::MAX };
    let burst = (args.burst > 0).then_some((args.burst_window.min(most), Until::Count(args.burst)));
    args.in_flight.clone().into_iter().map(move |in_flight| (in_flight, Until::Time(length))).chain(burst)
}

fn floor(args: &StoreArgs, length: Duration, folder: &Path, progress: &Progress) -> Result<Measured, Failure> {
    let mut measured = Measured { rounds: Vec::new(), answered: 0, read_back: 0 };
    for (in_flight, until) in loads(args, KeeperKind::Floor, length) {
        let kept = append(folder, args.payload, in_flight, until, progress)?;
        measured.answered += kept.messages;
        let burst = matches!(until, Until::Count(_));
        measured.rounds.push(Round { in_flight, burst, kept, redis_cpu_us_per_message: None, redis: None });
    }
    Ok(measured)
}

/// Starts a server with nothing, puts each load on it, looks at what it has, and ends it.
fn keeper(
    args: &StoreArgs,
    kind: KeeperKind,
    length: Duration,
    folder: &Path,
    progress: &Progress,
) -> Result<Measured, Failure> {
    let failed = |what: &str, error| Failure::system(&format!("{what} {}", folder.display()), error);
    fs::create_dir_all(folder).map_err(|error| failed("making", error))?;
    let connections = args.senders + LOOKED_AT_MAX;
    let start = Start { gateway: &args.gateway, nodes: &args.nodes, nats_server: &args.nats_server, connections };
    let mut site = start.keeper(kind, folder)?;
    let measured = on_load_core(|| on_site(args, kind, length, &site, progress));
    let measured = measured.map_err(|failure| site.explain(failure))?;
    if kind.is_gateway() {
        site.stop()?;
    } else {
        site.kill();
    }
    fs::remove_dir_all(folder).map_err(|error| failed("removing", error))?;
    Ok(measured)
}

fn on_site(
    args: &StoreArgs,
    kind: KeeperKind,
    length: Duration,
    site: &Site,
    progress: &Progress,
) -> Result<Measured, Failure> {
    let recipients = (1..=u64::from(args.recipients)).collect();
    let plan = Plan { run: run_number(), senders: args.senders, recipients, payload: args.payload };
    let seats = Seats::in_turn(plan.sending_users(), site.nodes());
    let burst_bytes = (args.payload + 128) * 64;
    let mut fleet = Fleet::new(site.targets(&seats), args.senders, burst_bytes)?;
    let mut senders = Senders::new(kind.dialect(), plan.clone(), kind.name());
    senders.enter(&mut fleet)?;
    let (pids, redis_pids) = (site.pids(), site.redis_pids());
    let mut rounds = Vec::new();
    for (in_flight, until) in loads(args, kind, length) {
        let (mark, cpu, before) = (site.redis_mark()?, CpuTime::of_all(&redis_pids)?, senders.kept());
        let kept = senders.run(&mut fleet, in_flight, until, &pids, progress)?;
        let all = (senders.kept() - before).max(1);
        let cpu = CpuTime::of_all(&redis_pids)?.since(&cpu).0;
        rounds.push(Round {
            in_flight,
            burst: matches!(until, Until::Count(_)),
            kept,
            redis_cpu_us_per_message: (!redis_pids.is_empty()).then(|| cpu.as_secs_f64() * 1e6 / all as f64),
            redis: site.redis_since(mark, all)?,
        });
    }
    fleet.close()?;
    let read_back = if kind.is_gateway() { look(kind, site, &plan, &senders, progress)? } else { 0 };
    Ok(Measured { rounds, answered: senders.kept(), read_back })
}

/// Whether a gateway counts as many messages as it has answered for, and gives some users all of theirs.
fn look(
    kind: KeeperKind,
    site: &Site,
    plan: &Plan,
    senders: &Senders<'_>,
    progress: &Progress,
) -> Result<u64, Failure> {
    if kind == KeeperKind::Embedded {
        let counters = site.servers()[0].http().and_then(Counters::read)?;
        let (counted, answered) = (counters.get("trunkline_store_appends_total"), senders.sent());
        if counted != answered {
            return Err(Failure::Accounts(format!(
                "the gateway answered for {answered} messages, but it counts {counted} that it stored"
            )));
        }
    }
    let count = plan.recipients.len() as u32;
    let step = count.div_ceil(LOOKED_AT_MAX).max(1);
    let some: Vec<u32> = (0..count).step_by(step as usize).collect();
    let users: Vec<u64> = some.iter().map(|recipient| plan.recipients[*recipient as usize]).collect();
    let seats = Seats::in_turn(users.clone(), site.nodes());
    let owed = some.iter().map(|recipient| (*recipient, senders.sent_to(*recipient)));
    let backlog = Backlog::new(plan.clone(), owed.collect::<Vec<_>>());
    let mut fleet = Fleet::new(site.targets(&seats), users.len() as u32, (plan.payload + 64) * 64)?;
    let caught_up = Readers::new(users, READ_WINDOW, backlog).catch_up(&mut fleet, progress)?;
    fleet.close()?;
    Ok(caught_up.messages)
}

/// A figure of one server over that of another, of the rounds that both have.
fn over(server: &Contest, base: &Contest, load: Load, value: fn(&Kept) -> f64) -> Median {
    let of = |contest: &Contest| {
        let rounds = contest.rounds.iter().filter(|round| round.load() == load);
        rounds.map(|round| value(&round.kept)).collect::<Vec<_>>()
    };
    Median::of(of(server).into_iter().zip(of(base)).map(|(mine, base)| mine / base))
}

fn print_summary(report: &Report<'_>) {
    let (args, servers) = (report.arguments, &report.servers);
    println!("{}", report.machine);
    println!(
        "{} senders to {} users who are not there, payload {} B, {} rounds of {} s, medians; servers on one core, the \
         load on another",
        args.senders, args.recipients, args.payload, args.rounds, args.secs
    );
    let loads = args.in_flight.iter().map(|in_flight| Some(*in_flight));
    for load in loads.chain((args.burst > 0).then_some(None)) {
        let title = match load {
            Some(in_flight) => format!("{in_flight} in flight"),
            None => format!("burst of {}", args.burst),
        };
        let head = [
            &*title,
            "kept/s",
            "CPU µs",
            "cores",
            "bench cores",
            "disk B",
            "p50 ms",
            "p99 ms",
            "p99.9 ms",
            "silence ms",
        ];
        let of_load = |server: &Contest| {
            let rounds = server.rounds.iter().filter(|round| round.load() == load);
            rounds.map(|round| round.kept.clone()).collect::<Vec<_>>()
        };
        let row = |server: &Contest| {
            let rounds = of_load(server);
            let of = |value: fn(&Kept) -> f64| median(rounds.iter().map(value));
            let disk: Vec<f64> = rounds.iter().filter_map(|kept| kept.disk_bytes_per_message).collect();
            vec![
                server.name.to_owned(),
                format!("{:.0}", of(|kept| kept.rate)),
                format!("{:.2}", of(|kept| kept.cpu_us_per_message)),
                format!("{:.2}", of(|kept| kept.cores)),
                format!("{:.2}", of(|kept| kept.bench_cores)),
                if disk.is_empty() { "-".to_owned() } else { format!("{:.0}", median(disk)) },
                format!("{:.2}", of(|kept| kept.latency.p50_us) / 1e3),
                format!("{:.2}", of(|kept| kept.latency_corrected.p99_us) / 1e3),
                format!("{:.2}", of(|kept| kept.latency_corrected.p999_us) / 1e3),
                // Of all rounds: the worst is in one of them.
                format!("{:.0}", rounds.iter().map(|kept| kept.silence_ms).fold(0.0, f64::max)),
            ]
        };
        let measured = || servers.iter().filter(|server| !of_load(server).is_empty());
        println!("{}", table(&head, &measured().map(row).collect::<Vec<_>>()));
        let named = |name: &str| measured().find(|server| server.name == name);
        if let (Some(floor), Some(own)) = (named("floor"), named("trunkline")) {
            let p50 = over(own, floor, load, |kept| kept.latency.p50_us);
            let p99 = over(own, floor, load, |kept| kept.latency.p99_us);
            println!("trunkline over floor: p50 {p50}; p99 {p99}");
        }
        for peer in measured().filter(|server| !matches!(server.name, "floor" | "trunkline")) {
            if let Some(own) = named("trunkline") {
                println!("kept/s, trunkline over {}: {}", peer.name, over(own, peer, load, |kept| kept.rate));
            }
        }
        println!();
    }
    println!("{CORRECTED}\n{INTERVALS}\n");
    for server in servers {
        println!("{}: {}; {}", server.name, server.what, server.version);
        let redis: Vec<f64> = server.rounds.iter().filter_map(|round| round.redis_cpu_us_per_message).collect();
        if !redis.is_empty() {
            println!("  all Redis servers together: {:.2} µs of CPU time for a message", median(redis));
        }
        if let Some(failed) = &server.failed {
            println!("  left out from some point on: {failed}");
        }
    }
    let of = |value: fn(&Contest) -> u64| servers.iter().map(value).sum::<u64>();
    println!(
        "{} messages, each answered once; {} of a gateway's were read back: each once, in order, by its recipient",
        of(|server| server.answered),
        of(|server| server.read_back)
    );
}
