//! `bench replay`: users for whom messages were kept come, and take them: all of them, in order, each once.

use std::{
    fs,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use clap::Args;
use serde::Serialize;

use crate::{
    affinity::on_load_core,
    backlog::Backlog,
    counters::Counters,
    dialect::Trunkline,
    disk::is_in_memory,
    failure::Failure,
    fleet::Fleet,
    gateway::GatewayArgs,
    keepers::{KeeperKind, Start, StoreSync, parent},
    keeping::{Plan, Senders, Until},
    payload::PAYLOAD_BYTES_MIN,
    process::{CpuTime, UserMemory, own_cpu},
    progress::Progress,
    reading::{CaughtUp, Readers},
    redis::Scratch,
    report::{Machine, median, table, write_json},
    scenario::run_number,
    site::{NodesArgs, Site},
    users::Seats,
};

/// How long the gateway may take to let go what all devices have acknowledged: it writes positions each 200 ms.
const LET_GO_PATIENCE: Duration = Duration::from_secs(30);
/// Between two looks at the gateway's counters.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);
/// Messages of all users together: what is kept of each takes a hundred bytes of disk.
const MESSAGES_MAX: u64 = 1 << 28;

/// Arguments of `bench replay`.
#[derive(Clone, Debug, Args, Serialize)]
pub(crate) struct ReplayArgs {
    /// Users who come
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    users: u32,
    /// Messages that wait for each
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    messages: u32,
    /// Messages of a backlog that a client lets be unacknowledged; 0 leaves it to the gateway
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=1_024))]
    window: u32,
    /// Payload of a message in bytes; at least 40, which hold what is needed to account for it
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(PAYLOAD_BYTES_MIN as i64..=16_384))]
    payload: u32,
    /// Connections that send the messages before
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    senders: u32,
    /// Messages without an answer at a time while they are kept
    #[arg(long, value_name = "N", default_value_t = 8_192, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    in_flight: u32,
    /// Rounds, in each of which all is kept and taken once; the median counts
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Stop the gateway and start it again before the users come, so that nothing is in its memory
    #[arg(long)]
    restart: bool,
    /// Folder on the disk of the store [default: that for temporary files]
    #[arg(long, value_name = "DIR")]
    folder: Option<PathBuf>,
    /// With --redis or --nodes the store is in Redis: when the gateways answer
    #[arg(long, value_enum, default_value = "replica")]
    store_sync: StoreSync,
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

/// One time that all come.
#[derive(Clone, Debug, Serialize)]
struct Round {
    messages: u64,
    /// From the first connection to the last LOGIN_OK, and to the end of the last backlog.
    seconds_until_inside: f64,
    seconds: f64,
    /// Messages a second, logins included.
    rate: f64,
    /// Messages for each second of the gateway's CPU time, logins included.
    per_second_and_core: f64,
    cpu_us_per_message: f64,
    cores: f64,
    bench_cores: f64,
    /// Resident bytes of the gateway before they came, and behind the last message.
    rss_before: i64,
    rss_after: i64,
    /// Messages kept a second before.
    kept_rate: f64,
    /// From the last message to nothing being kept any more; missing where the store does not count that.
    #[serde(skip_serializing_if = "Option::is_none")]
    seconds_until_let_go: Option<f64>,
}

#[derive(Debug, Serialize)]
struct Report<'a> {
    bench: &'static str,
    machine: Machine,
    command: Vec<String>,
    arguments: &'a ReplayArgs,
    rounds: Vec<Round>,
}

/// Runs `bench replay`.
pub(crate) fn run(args: &ReplayArgs) -> Result<(), Failure> {
    if args.gateway.runs_already() {
        return Err(Failure::Setup("bench replay starts gateways of its own: leave --gateway out".to_owned()));
    }
    if args.senders > args.users {
        return Err(Failure::Setup("--users has to be as many as --senders at least".to_owned()));
    }
    if u64::from(args.users) * u64::from(args.messages) > MESSAGES_MAX {
        return Err(Failure::Setup(format!("--users times --messages is {MESSAGES_MAX} at most")));
    }
    let kind = if args.nodes.are_clustered() { KeeperKind::Redis(args.store_sync) } else { KeeperKind::Embedded };
    if args.restart && kind != KeeperKind::Embedded {
        return Err(Failure::Setup("--restart is for one gateway with files of its own".to_owned()));
    }
    let parent = parent(args.folder.as_ref());
    if kind == KeeperKind::Embedded && is_in_memory(&parent)? {
        println!("warning: {} is in memory: nothing of this is about a disk; name another --folder", parent.display());
    }
    let scratch = Scratch::below(&parent, "replay")?;
    let folder = scratch.path().join("store");
    let connections = args.users + args.senders;
    let start = Start { gateway: &args.gateway, nodes: &args.nodes, nats_server: "nats-server".as_ref(), connections };
    let mut site = start.keeper(kind, &folder)?;
    let mut rounds = Vec::new();
    for round in 1..=args.rounds {
        let progress = Progress::new(format!("replay {round}/{}", args.rounds));
        let run = run_number();
        let recipients = (1..=u64::from(args.users)).collect();
        let plan = Plan { run, senders: args.senders, recipients, payload: args.payload };
        let kept_rate =
            on_load_core(|| keep(args, &plan, &site, &progress)).map_err(|failure| site.explain(failure))?;
        if args.restart {
            site.stop()?;
            site = start.keeper(kind, &folder)?;
        }
        let taken = on_load_core(|| take(args, kind, &plan, &site, kept_rate, &progress));
        rounds.push(taken.map_err(|failure| site.explain(failure))?);
    }
    site.stop()?;
    // A round of another version of the store would find this one.
    if folder.exists() {
        fs::remove_dir_all(&folder)
            .map_err(|error| Failure::system(&format!("removing {}", folder.display()), error))?;
    }
    let report = Report {
        bench: "replay",
        machine: Machine::this(),
        command: std::env::args().collect(),
        arguments: args,
        rounds,
    };
    print_summary(&report, kind);
    match &args.json {
        Some(path) => write_json(path, &report),
        None => Ok(()),
    }
}

/// Lets all messages be kept, and says how many were a second.
fn keep(args: &ReplayArgs, plan: &Plan, site: &Site, progress: &Progress) -> Result<f64, Failure> {
    let seats = Seats::in_turn(plan.sending_users(), site.nodes());
    let mut fleet = Fleet::new(site.targets(&seats), args.senders, (args.payload + 128) * 64)?;
    let mut senders = Senders::new(&Trunkline, plan.clone(), "gateway");
    senders.enter(&mut fleet)?;
    let kept = senders.run(&mut fleet, args.in_flight, Until::Each(args.messages.into()), &site.pids(), progress)?;
    fleet.close()?;
    Ok(kept.rate)
}

/// Lets all users come and take what is theirs; then a second time, when there is nothing any more.
fn take(
    args: &ReplayArgs,
    kind: KeeperKind,
    plan: &Plan,
    site: &Site,
    kept_rate: f64,
    progress: &Progress,
) -> Result<Round, Failure> {
    let pids = site.pids();
    let (memory, cpu, own) = (UserMemory::of_all(&pids)?, CpuTime::of_all(&pids)?, own_cpu());
    let taken = come(args, plan, site, args.messages.into(), progress)?;
    let (cpu, own) = (CpuTime::of_all(&pids)?.since(&cpu).0.as_secs_f64(), (own_cpu() - own).as_secs_f64());
    let (from, after) = (Instant::now(), UserMemory::of_all(&pids)?);
    let seconds_until_let_go = match kind {
        KeeperKind::Embedded => Some(await_let_go(site, from)?),
        _ => None,
    };
    let nothing = come(args, plan, site, 0, progress)?;
    assert_eq!(nothing.messages, 0, "a message that is too many ends the run");
    let seconds = taken.all.as_secs_f64();
    Ok(Round {
        messages: taken.messages,
        seconds_until_inside: taken.inside.as_secs_f64(),
        seconds,
        rate: taken.messages as f64 / seconds,
        per_second_and_core: taken.messages as f64 / cpu.max(1e-9),
        cpu_us_per_message: cpu * 1e6 / taken.messages as f64,
        cores: cpu / seconds,
        bench_cores: own / seconds,
        rss_before: memory.rss,
        rss_after: after.rss,
        kept_rate,
        seconds_until_let_go,
    })
}

/// All users log in, take so many messages each, and are gone.
fn come(args: &ReplayArgs, plan: &Plan, site: &Site, each: u64, progress: &Progress) -> Result<CaughtUp, Failure> {
    let users = plan.recipients.clone();
    let seats = Seats::in_turn(users.clone(), site.nodes());
    let mut fleet = Fleet::new(site.targets(&seats), args.users, (args.payload + 64) * 256)?;
    let backlog = Backlog::new(plan.clone(), (0..args.users).map(|recipient| (recipient, each)));
    let caught_up = Readers::new(users, args.window, backlog).catch_up(&mut fleet, progress)?;
    fleet.close()?;
    Ok(caught_up)
}

/// Waits until the gateway keeps nothing any more, and says how long that took.
fn await_let_go(site: &Site, from: Instant) -> Result<f64, Failure> {
    loop {
        let counters = site.servers()[0].http().and_then(Counters::read)?;
        let left = counters.get("trunkline_store_messages");
        if left == 0 {
            return Ok(from.elapsed().as_secs_f64());
        }
        if from.elapsed() > LET_GO_PATIENCE {
            return Err(Failure::Accounts(format!(
                "every message was acknowledged, but the gateway still keeps {left} after {} s",
                LET_GO_PATIENCE.as_secs()
            )));
        }
        thread::sleep(LOOK_INTERVAL);
    }
}

fn print_summary(report: &Report<'_>, kind: KeeperKind) {
    let args = report.arguments;
    println!("{}", report.machine);
    println!(
        "{} users with {} messages of {} B each, {} rounds; {}{}",
        args.users,
        args.messages,
        args.payload,
        args.rounds,
        kind.what(),
        if args.restart { ", started again before they came" } else { "" }
    );
    let of = |value: fn(&Round) -> f64| median(report.rounds.iter().map(value));
    let mib = |bytes: f64| format!("{:.1}", bytes / f64::from(1 << 20));
    let mut rows = vec![
        vec!["messages a second, logins included".to_owned(), format!("{:.0}", of(|round| round.rate))],
        vec!["messages a second and core of the gateway".to_owned(), {
            format!("{:.0}", of(|round| round.per_second_and_core))
        }],
        vec!["CPU of the gateway for a message, µs".to_owned(), format!("{:.2}", of(|round| round.cpu_us_per_message))],
        vec!["all inside after, s; all have all after, s".to_owned(), {
            format!("{:.2}; {:.2}", of(|round| round.seconds_until_inside), of(|round| round.seconds))
        }],
        vec!["cores: gateway + bench".to_owned(), {
            format!("{:.2} + {:.2}", of(|round| round.cores), of(|round| round.bench_cores))
        }],
        vec!["process memory before and after, MiB".to_owned(), {
            format!("{} / {}", mib(of(|round| round.rss_before as f64)), mib(of(|round| round.rss_after as f64)))
        }],
        vec!["kept a second, before".to_owned(), format!("{:.0}", of(|round| round.kept_rate))],
    ];
    let let_go: Vec<f64> = report.rounds.iter().filter_map(|round| round.seconds_until_let_go).collect();
    if !let_go.is_empty() {
        rows.push(vec!["nothing kept any more after, s".to_owned(), format!("{:.2}", median(let_go))]);
    }
    println!("{}", table(&["medians", "figure"], &rows));
    let messages: u64 = report.rounds.iter().map(|round| round.messages).sum();
    println!(
        "{messages} messages, each given once, in order, to the right user, with the right bytes, and no more after \
         that"
    );
}
