//! `bench watch`: some watch whether others are online, while those log in and out all the time.
//!
//! Whom a watcher is told of, and what, is held against what the bench itself has done: nobody is told of who is not
//! watched; of no user more than one change in five seconds; what the gateway says it has told is what has come; and
//! once the changes have an end, the last thing that every watcher was told of every user is true.

mod watching;

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use clap::Args;
use serde::Serialize;

use crate::{
    affinity::{SERVER_CORE, on_load_core},
    counters::Counters,
    failure::Failure,
    fleet::{Arm, Fleet},
    gateway::GatewayArgs,
    latency::Percentiles,
    login::{Entrance, enter},
    process::{CpuTime, UserMemory, own_cpu},
    progress::Progress,
    report::{Machine, table, write_json},
    scenario::{per_second, run_number, seconds},
    server::Server,
    sockets::Manner,
    traffic::keep_quiet,
    watch::{Spent, Watch as Sampler},
};
use watching::{Watching, now_ms};

/// After all last states are true, how long it is looked whether they stay so.
const AFTERMATH: Duration = Duration::from_secs(2);
/// How long the gateway is left alone before its memory is read.
const CALM: Duration = Duration::from_millis(500);

/// Arguments of `bench watch`.
#[derive(Clone, Debug, Args, Serialize)]
pub(crate) struct WatchArgs {
    /// Watches: one for each watcher and user
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..=100_000_000))]
    watches: u32,
    /// Users who are watched, and who log in and out
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(2..=16_000_000))]
    users: u32,
    /// Users that a watcher watches; the watches divided by it are the watchers
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    each: u32,
    /// Changes a second: one of the users, chosen at random, logs in, or out if it is in
    #[arg(long, default_value_t = 1_000.0)]
    changes: f64,
    /// How long, in seconds, 600 at most
    #[arg(long, default_value_t = 30.0)]
    secs: f64,
    /// Seed of the random choices [default: another one each time; it is printed]
    #[arg(long)]
    seed: Option<u64>,
    #[command(flatten)]
    #[serde(flatten)]
    gateway: GatewayArgs,
    /// Write everything to this file as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Memory of the watches.
#[derive(Clone, Copy, Debug, Serialize)]
struct Memory {
    /// Growth of the gateway's resident memory from before the first WATCH until all are answered, for each watch.
    rss_per_watch: f64,
    /// The gateway's tables of watches, for each watch.
    tables_per_watch: f64,
    /// Resident bytes with all watches, after the changes, and the most meanwhile.
    rss_watching: i64,
    rss_after: i64,
    rss_peak: u64,
    /// The last over the first.
    peak_ratio: f64,
}

/// What watchers were told.
#[derive(Clone, Debug, Serialize)]
struct Told {
    /// States of users that came, in all and in the time of the changes; and frames.
    states: u64,
    states_during: u64,
    states_per_second: f64,
    frames: u64,
    /// Of those during and after the changes: what was another state than before, the same once more, and what was not
    /// true any more when it came.
    changes: u64,
    repeated: u64,
    outdated: u64,
    /// Changes that the homes have told of, each to all who watch.
    changes_of_homes: u64,
    /// The most that one watcher was told of one user, and the most that could be.
    most_of_one: u64,
    most_of_one_allowed: u64,
}

#[derive(Debug, Serialize)]
struct Report<'a> {
    bench: &'static str,
    machine: Machine,
    command: Vec<String>,
    arguments: &'a WatchArgs,
    seed: u64,
    shards: u32,
    watchers: u32,
    /// Changes that users made, and how many a second.
    changes: u64,
    changes_per_second: f64,
    logins: u64,
    logouts: u64,
    /// Changes that began late, and those that never began because no user was at rest.
    late: u64,
    skipped: u64,
    /// From the first WATCH until all users were told of to all.
    answered_secs: f64,
    told: Told,
    memory: Memory,
    /// Of changes: from connecting until a watcher knows, and from LOGOUT until a watcher knows, in which 10 s are that
    /// the gateway waits.
    lag_online: Percentiles,
    lag_offline: Percentiles,
    /// The same of the last change of each user alone, as far as it was to be told.
    last_online: Percentiles,
    last_offline: Percentiles,
    /// From the last change of all until every watcher knew the last state of every user.
    all_true_secs: f64,
    /// CPU time of the gateway for one change, with the login or logout, and its saturation and the bench's.
    cpu_us_per_change: f64,
    cores: f64,
    bench_cores: f64,
    spent: Spent,
}

/// Runs `bench watch`.
pub(crate) fn run(args: &WatchArgs) -> Result<(), Failure> {
    let secs = seconds("--secs", args.secs)?;
    per_second("--changes", args.changes)?;
    if secs > Duration::from_secs(600) {
        return Err(Failure::Setup("--secs takes 600 at most".to_owned()));
    }
    if args.each > args.users {
        return Err(Failure::Setup(format!("--each {} is more than --users {}", args.each, args.users)));
    }
    if args.gateway.runs_already() {
        return Err(Failure::Setup("--gateway means nothing here: it is started with limits of its own".to_owned()));
    }
    let watchers = args.watches.div_ceil(args.each);
    let connections = args.users.checked_add(watchers).filter(|all| *all <= 16_000_000);
    let connections = connections.ok_or_else(|| {
        Failure::Setup(format!("{watchers} watchers and {} users are too many: raise --each", args.users))
    })?;
    let mut gateway = args.gateway.clone();
    let each = args.each.to_string();
    gateway.also(&["--watch", "open", "--watches-per-session-max", &each]);
    let shards = gateway.shards_for(connections)?;
    let seed = args.seed.unwrap_or_else(|| u64::from(run_number()));
    let mut server = gateway.start_on(connections, &[SERVER_CORE])?;
    let outcome = on_load_core(|| watch(args, &server, watchers, secs, seed));
    let report = outcome.map_err(|failure| {
        eprintln!("seed {seed}");
        server.explain(failure)
    })?;
    server.stop()?;
    // The load runs on one core, and knows of no more.
    let report = Report { shards, machine: Machine::this(), ..report };
    print_summary(&report);
    match &args.json {
        Some(path) => write_json(path, &report),
        None => Ok(()),
    }
}

/// Logs all in, lets them watch, lets users come and go, and looks what watchers know at the end.
fn watch<'a>(
    args: &'a WatchArgs,
    server: &Server,
    watchers: u32,
    secs: Duration,
    seed: u64,
) -> Result<Report<'a>, Failure> {
    let (pid, http, users) = (server.pid(), server.http()?, args.users);
    let progress = Progress::new("watch".to_owned());
    let everybody: Vec<u64> = (1..=u64::from(users + watchers)).collect();
    let mut fleet = Fleet::new(server, users + watchers, 2_048)?.in_manner(Manner::SpeaksFirst);
    enter(&mut fleet, &everybody, Entrance::Login, Arm::Always, &progress)?;
    keep_quiet(&mut fleet, &everybody, CALM)?;
    drop(everybody);
    let (memory_before, counters_before) = (UserMemory::of(pid)?, Counters::read(http)?);
    let mut all = Watching::new(args, watchers);
    let asked = Instant::now();
    all.ask(&mut fleet, &progress)?;
    let answered_secs = asked.elapsed().as_secs_f64();
    all.turn_for(&mut fleet, CALM)?;
    let (memory_watching, counters_watching) = (UserMemory::of(pid)?, Counters::read(http)?);
    let sampler = Sampler::start(&[pid]);

    let (cpu_before, own_before, states_before) = (CpuTime::of(pid)?, own_cpu(), all.states);
    let from = Instant::now();
    all.since_ms = Some(now_ms());
    let begun = all.change(&mut fleet, args.changes, secs, seed, &progress)?;
    let took = from.elapsed().as_secs_f64();
    let (cpu, _) = CpuTime::of(pid)?.since(&cpu_before);
    let bench_cores = (own_cpu() - own_before).as_secs_f64() / took;
    let states_during = all.states - states_before;
    let last_change_ms = all.changed_ms.iter().copied().max().unwrap_or(0);

    all.await_rest(&mut fleet)?;
    all.await_truth(&mut fleet, &progress)?;
    let all_true_secs = all.last_told_ms.max(last_change_ms).saturating_sub(last_change_ms) as f64 / 1e3;
    all.turn_for(&mut fleet, AFTERMATH)?;
    all.judge()?;
    let counters = Counters::read(http)?;
    let grown = |name: &str| counters.grown(&counters_before, name);
    for (name, came) in [("trunkline_watch_states_total", all.states), ("trunkline_watch_frames_total", all.frames)] {
        if grown(name) != came {
            let told = grown(name);
            return Err(Failure::Accounts(format!("{came} have come, and by {name} the gateway has told {told}")));
        }
    }
    let memory_after = UserMemory::of(pid)?;
    let spent = sampler.spent(from, Instant::now());
    let (last_online, last_offline) = all.last_states();
    fleet.close()?;
    let each = |bytes: f64| bytes / f64::from(args.watches);
    let changes = all.logins + all.logouts;
    Ok(Report {
        bench: "watch",
        machine: Machine::this(),
        command: std::env::args().collect(),
        arguments: args,
        seed,
        shards: 0,
        watchers,
        changes,
        changes_per_second: changes as f64 / took,
        logins: all.logins,
        logouts: all.logouts,
        late: begun.late,
        skipped: begun.skipped,
        answered_secs,
        told: Told {
            states: all.states,
            states_during,
            states_per_second: states_during as f64 / took,
            frames: all.frames,
            changes: all.changes,
            repeated: all.repeated,
            outdated: all.outdated,
            changes_of_homes: counters.grown(&counters_watching, "trunkline_watch_changes_total"),
            most_of_one: all.most_of_one,
            most_of_one_allowed: all.allowed(now_ms()),
        },
        memory: Memory {
            rss_per_watch: each((memory_watching.rss - memory_before.rss) as f64),
            tables_per_watch: each(counters_watching.get("trunkline_watch_bytes") as f64),
            rss_watching: memory_watching.rss,
            rss_after: memory_after.rss,
            rss_peak: spent.rss_peak,
            peak_ratio: spent.rss_peak as f64 / memory_watching.rss.max(1) as f64,
        },
        lag_online: Percentiles::of(&all.lag_online),
        lag_offline: Percentiles::of(&all.lag_offline),
        last_online,
        last_offline,
        all_true_secs,
        cpu_us_per_change: cpu.as_secs_f64() * 1e6 / changes.max(1) as f64,
        cores: cpu.as_secs_f64() / took,
        bench_cores,
        spent,
    })
}

fn print_summary(report: &Report<'_>) {
    let (args, told, memory) = (report.arguments, &report.told, &report.memory);
    println!("{}", report.machine);
    println!(
        "{} watchers watch {} users, {} watches; {} changes a second asked for, {} s, seed {}",
        report.watchers, args.users, args.watches, args.changes, args.secs, report.seed
    );
    let ms = |lag: &Percentiles| {
        let Percentiles { count, p50_us, p99_us, max_us, .. } = lag;
        match count {
            0 => "none was to be told".to_owned(),
            _ => format!("{:.0} / {:.0} / {:.0} of {count}", p50_us / 1e3, p99_us / 1e3, max_us / 1e3),
        }
    };
    let row = |what: &str, figure: String| vec![what.to_owned(), figure];
    let rows = vec![
        row("changes of users a second", format!("{:.0}", report.changes_per_second)),
        row("states told a second", format!("{:.0}", told.states_per_second)),
        row("CPU for a change with its login or logout, µs", format!("{:.1}", report.cpu_us_per_change)),
        row("cores: server + bench", format!("{:.2} + {:.2}", report.cores, report.bench_cores)),
        row(
            "memory of a watch: tables, process, B",
            format!("{:.1}, {:.1}", memory.tables_per_watch, memory.rss_per_watch),
        ),
        row("memory at its peak, over that with all watches", format!("{:.3}", memory.peak_ratio)),
        row("who has come: p50 / p99 / max until told, ms", ms(&report.lag_online)),
        row("who has gone, with 10 s of waiting, ms", ms(&report.lag_offline)),
        row("the last change of who is in, ms", ms(&report.last_online)),
        row("the last change of who is out, ms", ms(&report.last_offline)),
        row("all last states true after, s", format!("{:.1}", report.all_true_secs)),
        row(
            "changes of one user told to one, at most; allowed",
            format!("{}; {}", told.most_of_one, told.most_of_one_allowed),
        ),
        row("changes told by homes, each to all who watch", told.changes_of_homes.to_string()),
        row("states that were no change; not true any more", format!("{}; {}", told.repeated, told.outdated)),
        row("until all watches were answered, s", format!("{:.1}", report.answered_secs)),
    ];
    println!("{}", table(&["", "figure"], &rows));
    println!(
        "{} states told in {} frames, as many as the gateway counts; each watcher knows the last state of each of \
         its users",
        told.states, told.frames
    );
    report.spent.note_if_stolen("the changes");
    if report.late > 0 || report.skipped > 0 {
        println!(
            "warning: {} changes began late and {} never: the gateway or the bench is slower than --changes, or \
             --users is too small",
            report.late, report.skipped
        );
    }
}
