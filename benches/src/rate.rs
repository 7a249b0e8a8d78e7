//! `bench rate`: messages at fixed rates, whatever becomes of those before, and how long each takes from the time it
//! was to be sent.

use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;

use crate::{
    affinity::{SERVER_CORE, on_load_core},
    cores::{CoreTimes, CoreUse},
    failure::Failure,
    process::{CpuTime, own_cpu},
    progress::Progress,
    report::table,
    scenario::{self, Clients, Ramp, Stretch, neighbours, per_second, ramp, seconds},
    site::{Crossings, NodesArgs, QUIET_MIN, RedisUse, Site},
    users::{Placement, Seats},
};

/// Traffic before each measurement.
const WARMUP: Duration = Duration::from_secs(1);
/// A bench that has this much of its core in use may be what limits the rate.
const BENCH_CORES_MAX: f64 = 0.95;
/// Of a rate that can be kept up, all but a few messages are there when its step ends.
pub(crate) const IN_TIME_SHARE_MIN: f64 = 0.99;

/// Arguments of `bench rate`.
#[derive(Clone, Debug, Args, Serialize)]
pub(crate) struct RateArgs {
    #[command(flatten)]
    #[serde(flatten)]
    clients: Clients,
    #[command(flatten)]
    #[serde(flatten)]
    nodes: NodesArgs,
    /// Messages per second, all clients together; several rates are measured one after the other
    #[arg(long, value_delimiter = ',', default_values_t = [10_000.0, 50_000.0])]
    rate: Vec<f64>,
    /// Length of each measurement in seconds
    #[arg(long, default_value_t = 10.0)]
    secs: f64,
    /// Clients that send and receive, an even number; the others are idle [default: all]
    #[arg(long)]
    talkers: Option<u32>,
}

/// One rate.
#[derive(Clone, Debug, Serialize)]
struct Step {
    /// Messages per second asked for.
    rate: f64,
    /// Messages per second that were to be sent in the step and arrived in it.
    delivered_rate: f64,
    /// The share of the messages to be sent that arrived before the step was over; the others came later.
    in_time_share: f64,
    cpu_us_per_message: f64,
    /// Cores the server has used.
    cores: f64,
    /// Cores the bench has used, of one.
    bench_cores: f64,
    /// What the core of the servers did.
    server_core: CoreUse,
    #[serde(flatten)]
    stretch: Stretch,
    /// What the nodes' Redis Cluster had to do meanwhile.
    #[serde(skip_serializing_if = "Option::is_none")]
    redis: Option<RedisUse>,
}

#[derive(Debug, Serialize)]
struct Findings {
    ramp: Ramp,
    talkers: u32,
    steps: Vec<Step>,
    /// What Redis had to do with all clients logged in and no message under way.
    #[serde(skip_serializing_if = "Option::is_none")]
    redis_quiet: Option<RedisUse>,
    /// What went between nodes, all steps together.
    #[serde(skip_serializing_if = "Option::is_none")]
    crossings: Option<Crossings>,
    messages: u64,
}

/// Runs `bench rate`.
pub(crate) fn run(args: &RateArgs) -> Result<(), Failure> {
    let clients = &args.clients;
    clients.check()?;
    let secs = seconds("--secs", args.secs)?;
    let rates = args.rate.iter().map(|rate| per_second("--rate", *rate)).collect::<Result<Vec<_>, _>>()?;
    let talkers = args.talkers.unwrap_or(clients.conns & !1);
    if !talkers.is_multiple_of(2) || talkers < 2 || talkers > clients.conns {
        return Err(Failure::Setup(format!("--talkers takes an even number of 2 to --conns, not {talkers}")));
    }
    let progress = scenario::progress("rate", clients);
    let mut site = clients.start_site(&args.nodes, &[SERVER_CORE])?;
    let outcome = on_load_core(|| measure(clients, &site, &rates, secs, talkers, &progress));
    let findings = outcome.map_err(|failure| site.explain(failure))?;
    site.stop()?;
    print_summary(clients, &findings);
    scenario::report("rate", args, clients, &findings)
}

fn measure(
    clients: &Clients,
    site: &Site,
    rates: &[f64],
    secs: Duration,
    talkers: u32,
    progress: &Progress,
) -> Result<Findings, Failure> {
    // Neighbours talk: at one server wherever they are, at several across a link.
    let placement = if site.nodes() > 1 { Placement::Remote } else { Placement::Any };
    let mut seats: Seats = site.seats(talkers, 1, placement);
    site.seat_more(&mut seats, clients.conns - talkers);
    let pids = site.pids();
    let mut fleet = clients.fleet(site.targets(&seats))?;
    let mut crowd = clients.crowd_of(seats.users, neighbours(0, talkers), talkers);
    crowd.ping_every(Some(clients.heartbeat()));
    fleet.prepare(0, clients.conns)?;
    let bar = progress.phase("logged in", clients.conns.into());
    let ramp = ramp(&mut crowd, &mut fleet, clients, 0..clients.conns, &pids, &bar)?;
    drop(bar);
    crowd.judge()?;
    site.await_presence(|time| crowd.run_for(&mut fleet, time, |_| ()))?;
    let redis_quiet = match site.redis_mark()? {
        Some(mark) => {
            crowd.run_for(&mut fleet, secs.max(QUIET_MIN), |_| ())?;
            site.redis_since(Some(mark), 0)?
        }
        None => None,
    };
    let crossings = site.crossings()?;
    let mut steps = Vec::new();
    for &rate in rates {
        let bar = progress.phase("seconds", secs.as_secs());
        crowd.send_at(Some(rate));
        crowd.run_for(&mut fleet, WARMUP, |_| ())?;
        crowd.begin_stretch();
        let redis_mark = site.redis_mark()?;
        let cores_before = CoreTimes::now()?;
        let (cpu_before, own_before) = (CpuTime::of_all(&pids)?, own_cpu());
        let delivered_before = crowd.ledger.delivered();
        let from = Instant::now();
        crowd.run_for(&mut fleet, secs, |crowd| {
            bar.set(from.elapsed().as_secs());
            bar.say(format!("{rate:.0} asked for, {} delivered", crowd.ledger.delivered() - delivered_before));
        })?;
        let taken = from.elapsed().as_secs_f64();
        let (cpu, _) = CpuTime::of_all(&pids)?.since(&cpu_before);
        let delivered = crowd.ledger.delivered() - delivered_before;
        let server_core = CoreTimes::now()?.since(&cores_before, SERVER_CORE);
        let in_time = crowd.stretches.last().messages.len();
        let bench_cores = (own_cpu() - own_before).as_secs_f64() / taken;
        let redis = site.redis_since(redis_mark, delivered)?;
        // Those that are still under way are the slowest, so the step is not over for them.
        crowd.begin_stretch();
        crowd.settle(&mut fleet)?;
        let [_, latencies, ..] = &crowd.stretches.take()[..] else { unreachable!("two were begun") };
        steps.push(Step {
            rate,
            delivered_rate: in_time as f64 / taken,
            in_time_share: in_time as f64 / latencies.asked().max(1) as f64,
            cpu_us_per_message: cpu.as_secs_f64() * 1e6 / delivered.max(1) as f64,
            cores: cpu.as_secs_f64() / taken,
            bench_cores,
            server_core,
            stretch: Stretch::of(latencies, taken),
            redis,
        });
    }
    let messages = crowd.ledger.delivered();
    let crossings = site.crossings()?.since(crossings);
    fleet.close()?;
    crowd.judge()?;
    crossings.judge(placement, messages)?;
    let crossings = (placement.links() > 0).then_some(crossings);
    Ok(Findings { ramp, talkers, steps, redis_quiet, crossings, messages })
}

fn print_summary(clients: &Clients, findings: &Findings) {
    println!("{}", crate::report::Machine::this());
    println!("{} clients, {} of them talking, payload {} B", clients.conns, findings.talkers, clients.payload);
    let head =
        ["messages/s", "in time/s", "CPU µs/message", "cores", "p50 µs", "p99 µs", "p99.9 µs", "max µs", "bench cores"];
    let rows: Vec<Vec<String>> = findings
        .steps
        .iter()
        .map(|step| {
            let latency = &step.stretch.messages;
            let whole = |value: f64| format!("{value:.0}");
            vec![
                whole(step.rate),
                whole(step.delivered_rate),
                format!("{:.2}", step.cpu_us_per_message),
                format!("{:.2}", step.cores),
                whole(latency.p50_us),
                whole(latency.p99_us),
                whole(latency.p999_us),
                whole(latency.max_us),
                format!("{:.2}", step.bench_cores),
            ]
        })
        .collect();
    println!("{}", table(&head, &rows));
    if let Some(Crossings { records, bytes, .. }) = findings.crossings {
        let each = |value: u64| value as f64 / findings.messages.max(1) as f64;
        println!("{:.3} records and {:.0} B between nodes for a message", each(records), each(bytes));
    }
    for step in &findings.steps {
        let (Some(quiet), Some(redis)) = (&findings.redis_quiet, &step.redis) else { continue };
        println!(
            "{:.0} messages/s: Redis executed {} commands in {:.1} s with {} messages, and {} in {:.1} s without: \
             {:.6} for a message",
            step.rate,
            redis.commands.total,
            redis.seconds,
            redis.messages,
            quiet.commands.total,
            quiet.seconds,
            redis.per_message(quiet),
        );
    }
    println!("{} messages, each delivered once, in order, to the right user, with the right bytes", findings.messages);
    for step in &findings.steps {
        let what = format!("{:.0} messages/s", step.rate);
        step.stretch.warn_if_late(&what);
        if step.in_time_share < IN_TIME_SHARE_MIN {
            println!(
                "warning: {what}: {:.1} % of the messages had arrived when the step was over: server or bench cannot \
                 keep this rate up, or stood still",
                step.in_time_share * 100.0
            );
        }
        if step.bench_cores > BENCH_CORES_MAX && step.cores < BENCH_CORES_MAX {
            println!("warning: {what}: the bench used a whole core, the server did not: the bench is the bottleneck");
        }
    }
}
