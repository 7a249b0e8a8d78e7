//! `bench hold`: log in many clients and keep them, with heartbeats, while a control group exchanges messages.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use clap::Args;
use serde::Serialize;

use crate::{
    affinity::on_load_core,
    ballast::Ballast,
    crowd::Crowd,
    failure::Failure,
    fleet::{Fleet, Targets},
    plain::{self, Share},
    process::{CpuTime, KernelMemory, UserMemory},
    progress::Progress,
    report::table,
    scenario::{self, Clients, Ramp, Stretch, per_second, seconds},
    site::{NodesArgs, PresenceWrites, Site},
    team::{CoresArgs, Team, Totals, Who},
    users::{Placement, Seats},
    watch::{Spent, Watch},
};

/// Plain connections on which the client's share of kernel memory is measured.
const PLAIN_MAX: u32 = 20_000;
/// Connections made and closed before anything is measured, so that what a server allocates once is there.
const WARMUP_CONNECTIONS: u32 = 1_000;
/// Share of the time held in which nobody but heartbeats is heard.
const IDLE_SHARE: f64 = 0.2;
/// Caches in the summary.
const TOP_CACHES: usize = 8;

/// Arguments of `bench hold`.
#[derive(Clone, Debug, Args, Serialize)]
pub(crate) struct HoldArgs {
    #[command(flatten)]
    #[serde(flatten)]
    clients: Clients,
    #[command(flatten)]
    #[serde(flatten)]
    nodes: NodesArgs,
    #[command(flatten)]
    #[serde(flatten)]
    cores: CoresArgs,
    /// How long all of them are held, in seconds; the first fifth without messages
    #[arg(long, default_value_t = 30.0)]
    secs: f64,
    /// Clients that exchange messages, an even number [default: a hundredth of them, 10,000 at most]
    #[arg(long)]
    control: Option<u32>,
    /// Messages per second of the control group, all together [default: a fifth of its size]
    #[arg(long)]
    rate: Option<f64>,
    /// Memory to touch before the ramp and give back during it, in MiB: for virtual machines whose memory is there only
    /// once it is touched. 512 MiB are left free in any case
    #[arg(long, value_name = "MIB", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=1 << 24))]
    warm_memory: u32,
}

/// Bytes for each connection.
#[derive(Clone, Debug, Serialize)]
struct Memory {
    /// Resident memory of the server's process.
    user_rss: f64,
    /// Kernel memory of the server's end: slab objects, vmalloc areas, page tables.
    kernel: f64,
    /// Both.
    together: f64,
    /// Kernel objects in use by cache, both ends.
    caches: BTreeMap<String, f64>,
    /// What the client's end takes in the kernel, measured on plain sockets.
    client: Share,
    /// Resident memory of the server's process with what was there before the first connection.
    user_with_start: f64,
    /// All of it, bytes, and what was there before, which a short warm-up is part of.
    rss_bytes: i64,
    rss_bytes_at_start: i64,
}

/// Presence of the clients in Redis, written behind their logins.
#[derive(Clone, Debug, Serialize)]
struct PresenceInRedis {
    /// Writes that waited when the last client was in.
    queued_after_ramp: u64,
    /// From then until Redis had all of them.
    behind_secs: f64,
    /// Written in the ramp and behind it.
    written: u64,
    /// Over both.
    written_per_second: f64,
    /// Tried in vain and queued again; never written; times all was written again.
    failed: u64,
    refused: u64,
    resyncs: u64,
}

/// What a run has found.
#[derive(Debug, Serialize)]
struct Findings {
    ramp: Ramp,
    /// Logins per second of the whole ramp, for each node.
    logins_per_second_and_node: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    presence: Option<PresenceInRedis>,
    memory: Memory,
    /// Microseconds of the server's CPU time per second and connection, with heartbeats alone.
    idle_cpu_us: f64,
    idle_pongs: Stretch,
    control: u32,
    rate: f64,
    /// What was to be sent in the round in which each client of the control group speaks for the first time since it
    /// logged in.
    first_round: Stretch,
    /// What was to be sent after it.
    held: Stretch,
    spent: Spent,
    /// Logged in at the end, each having answered a last PING.
    held_to_the_end: u32,
    refused: u64,
    lost: u64,
    failures: BTreeMap<String, u64>,
    messages: u64,
}

/// Runs `bench hold`.
pub(crate) fn run(args: &HoldArgs) -> Result<(), Failure> {
    let mut args = args.clone();
    if args.cores.shared_cores.is_some() && args.nodes.are_clustered() {
        return Err(Failure::Setup("--shared-cores is for one gateway: leave --nodes and --redis out".to_owned()));
    }
    args.cores.spread(&mut args.clients)?;
    let clients = &args.clients;
    clients.check()?;
    let secs = seconds("--secs", args.secs)?;
    let control = args.control.unwrap_or((clients.conns / 100).clamp(2, 10_000) & !1);
    if !control.is_multiple_of(2) || control < 2 || control > clients.conns {
        return Err(Failure::Setup(format!("--control takes an even number of 2 to --conns, not {control}")));
    }
    let rate = per_second("--rate", args.rate.unwrap_or(f64::from(control) / 5.0))?;
    let progress = scenario::progress("hold", clients);
    let client = on_load_core(|| plain::measure(clients.conns.min(PLAIN_MAX), &progress))?.connecting;
    let mut site = clients.start_site(&args.nodes, &args.cores.of_server())?;
    let outcome = hold(&args, &site, secs, control, rate, client, &progress);
    let (findings, judgement) = outcome.map_err(|failure| site.explain(failure))?;
    site.stop()?;
    print_summary(clients, &findings);
    scenario::report("hold", &args, clients, &findings)?;
    judgement
}

fn hold(
    args: &HoldArgs,
    site: &Site,
    secs: Duration,
    control: u32,
    rate: f64,
    client: Share,
    progress: &Progress,
) -> Result<(Findings, Result<(), Failure>), Failure> {
    let clients = &args.clients;
    let mut seats: Seats = site.seats(0, 1, Placement::Any);
    site.seat_more(&mut seats, clients.conns);
    let pids = site.pids();
    let targets = site.targets(&seats);
    on_load_core(|| warm_up(clients, targets.clone()))?;
    site.await_presence(asleep)?;
    let presence_before = site.presence()?;
    let shares = args.cores.shares(clients, seats.users, control)?;
    let mut team = Team::start(clients, args.cores, shares, &targets)?;
    let kernel_before = KernelMemory::now()?;
    let user_before = UserMemory::of_all(&pids)?;
    let watch = Watch::start(&pids);

    team.ping_every(clients.heartbeat())?;
    // Making a socket is the load's own business and no part of a login.
    team.prepare()?;
    let mut ballast = match args.warm_memory {
        0 => None,
        mib => Some(Ballast::touch(u64::from(mib) << 20, progress)?),
    };
    let bar = progress.phase("logged in", clients.conns.into());
    let ramp = team.ramp(clients, Who::Everybody, &pids, &bar, || {
        if let Some(ballast) = &mut ballast {
            ballast.release();
        }
    })?;
    drop((bar, ballast));
    let presence = match presence_before {
        Some(before) => Some(presence_of(site, &before, &ramp, &mut team)?),
        None => None,
    };

    let inside = team.totals().inside;
    let held_from = Instant::now();
    let bar = progress.phase("seconds held", secs.as_secs());
    // What the storm of logins left behind settles first.
    team.run_for(secs.mul_f64(IDLE_SHARE / 4.0), |_| ())?;
    team.begin_stretch()?;
    let cpu_before = CpuTime::of_all(&pids)?;
    let idle_from = Instant::now();
    team.run_for(secs.mul_f64(IDLE_SHARE), |_| bar.set(held_from.elapsed().as_secs()))?;
    let (idle_cpu, _) = CpuTime::of_all(&pids)?.since(&cpu_before);
    let idle_seconds = idle_from.elapsed().as_secs_f64();
    let memory = memory_of(&pids, inside, client, &kernel_before, &user_before)?;

    team.begin_stretch()?;
    team.send_at(Some(rate))?;
    let busy_from = Instant::now();
    let left = secs.saturating_sub(held_from.elapsed()).max(Duration::from_millis(100));
    let round = Duration::from_secs_f64(f64::from(control) / rate).min(left / 4);
    let tick = |totals: &Totals| {
        bar.set(held_from.elapsed().as_secs());
        let Totals { inside, lost, delivered, .. } = totals;
        bar.say(format!("{delivered} messages, {inside} in, {lost} lost"));
    };
    team.run_for(round, tick)?;
    team.begin_stretch()?;
    let first_seconds = busy_from.elapsed().as_secs_f64();
    let later_from = Instant::now();
    team.run_for(left.saturating_sub(busy_from.elapsed()), tick)?;
    let held_seconds = later_from.elapsed().as_secs_f64();
    let spent = watch.spent(busy_from, Instant::now());
    drop(bar);
    team.settle()?;
    let bar = progress.phase("still there", clients.conns.into());
    team.roll_call(&bar)?;
    drop(bar);
    drop(watch);
    // The last PONG of each is the roll call's.
    let [_, idle_pongs, first_round, held] = &team.take_stretches()?[..] else { unreachable!("three were begun") };
    let idle_pongs = Stretch::of(idle_pongs, idle_seconds);
    let first_round = Stretch::of(first_round, first_seconds);
    let held = Stretch::of(held, held_seconds);
    let crowd = team.close()?;
    let findings = Findings {
        logins_per_second_and_node: ramp.rate_mean / f64::from(site.nodes()),
        presence,
        ramp,
        memory,
        idle_cpu_us: idle_cpu.as_secs_f64() * 1e6 / idle_seconds / inside.max(1) as f64,
        idle_pongs,
        control,
        rate,
        first_round,
        held,
        spent,
        held_to_the_end: crowd.tally.inside,
        refused: crowd.tally.refused,
        lost: crowd.tally.lost,
        failures: crowd.failures.clone(),
        messages: crowd.ledger.delivered(),
    };
    Ok((findings, crowd.judge()))
}

/// Logs a few clients in and out again, so that what a server allocates once is there before memory is measured.
pub(crate) fn warm_up(clients: &Clients, targets: impl Into<Targets>) -> Result<(), Failure> {
    let few = Clients { conns: clients.conns.min(WARMUP_CONNECTIONS), login_rate: None, ..clients.clone() };
    let mut fleet: Fleet = few.fleet(targets)?;
    let mut crowd: Crowd = few.crowd(Vec::new(), 0);
    crowd.enter(&mut fleet, few.opening(0, few.conns), |_| ())?;
    fleet.close()?;
    crowd.judge()
}

fn asleep(time: Duration) -> Result<(), Failure> {
    std::thread::sleep(time);
    Ok(())
}

/// Waits until Redis has the presence of all who are in, while they go on.
fn presence_of(site: &Site, before: &PresenceWrites, ramp: &Ramp, team: &mut Team) -> Result<PresenceInRedis, Failure> {
    let queued_after_ramp = site.presence()?.unwrap_or_default().queued;
    let behind = site.await_presence(|time| team.run_for(time, |_| ()))?;
    let after = site.presence()?.unwrap_or_default();
    let written = after.written.saturating_sub(before.written);
    let (refused, resyncs) = (after.refused - before.refused, after.resyncs - before.resyncs);
    let inside = team.totals().inside;
    if written < inside {
        return Err(Failure::Accounts(format!(
            "{inside} clients are in, but Redis has executed {written} presence writes; {refused} were refused, and \
             {resyncs} times all were written again"
        )));
    }
    Ok(PresenceInRedis {
        queued_after_ramp,
        behind_secs: behind.as_secs_f64(),
        written,
        written_per_second: written as f64 / (ramp.seconds + behind.as_secs_f64()),
        failed: after.failed - before.failed,
        refused,
        resyncs,
    })
}

fn memory_of(
    pids: &[u32],
    inside: u64,
    client: Share,
    kernel_before: &KernelMemory,
    user_before: &UserMemory,
) -> Result<Memory, Failure> {
    let kernel = KernelMemory::now()?.since(kernel_before);
    let user = UserMemory::of_all(pids)?;
    let each = |bytes: i64| bytes as f64 / inside.max(1) as f64;
    let user_rss = each(user.rss - user_before.rss);
    let kernel_share = each(kernel.in_use() + user.page_tables - user_before.page_tables) - client.in_use;
    Ok(Memory {
        user_rss,
        kernel: kernel_share,
        together: user_rss + kernel_share,
        caches: kernel.caches.iter().map(|(name, bytes)| (name.clone(), each(*bytes))).collect(),
        client,
        user_with_start: each(user.rss),
        rss_bytes: user.rss,
        rss_bytes_at_start: user_before.rss,
    })
}

fn print_summary(clients: &Clients, findings: &Findings) {
    let Findings { ramp, memory, first_round, held, .. } = findings;
    println!("{}", crate::report::Machine::this());
    println!(
        "{} clients: {} logged in at the end, {} refused, {} lost",
        clients.conns, findings.held_to_the_end, findings.refused, findings.lost
    );
    for (kind, count) in &findings.failures {
        println!("  {count} × {kind}");
    }
    let mut rows = vec![
        vec!["logins per second, median of the ramp".to_owned(), format!("{:.0}", ramp.rate_median)],
        vec!["logins per second, mean".to_owned(), format!("{:.0}", ramp.rate_mean)],
        vec!["login latency p50 / p99 / max, ms".to_owned(), {
            let Ramp { latency, .. } = ramp;
            format!("{:.1} / {:.1} / {:.1}", latency.p50_us / 1e3, latency.p99_us / 1e3, latency.max_us / 1e3)
        }],
        vec!["CPU for a login, server / bench, µs".to_owned(), {
            format!("{:.1} / {:.1} ({:.2} cores)", ramp.server_cpu_us, ramp.bench_cpu_us, ramp.bench_cores)
        }],
        vec!["process memory per connection, B; with what was there at the start".to_owned(), {
            format!("{:.0}; {:.0}", memory.user_rss, memory.user_with_start)
        }],
        vec!["kernel memory per connection, server's end, B".to_owned(), format!("{:.0}", memory.kernel)],
        vec!["together, B".to_owned(), format!("{:.0}", memory.together)],
        vec!["idle CPU, µs per second and connection".to_owned(), format!("{:.3}", findings.idle_cpu_us)],
        vec!["cores in use with messages, mean".to_owned(), format!("{:.2}", findings.spent.cores)],
        vec!["messages of the control group, each accounted for".to_owned(), findings.messages.to_string()],
    ];
    if let Some(presence) = &findings.presence {
        let each_node = format!("{:.0}", findings.logins_per_second_and_node);
        rows.insert(2, vec!["logins per second and node, mean".to_owned(), each_node]);
        let PresenceInRedis { queued_after_ramp, behind_secs, written, written_per_second, .. } = presence;
        rows.insert(
            3,
            vec![
                "presence written to Redis, per second, to the end".to_owned(),
                format!("{written} ({written_per_second:.0})"),
            ],
        );
        let behind = format!("{queued_after_ramp}, {behind_secs:.1} s");
        rows.insert(4, vec!["waiting for Redis after the last login, and for how long".to_owned(), behind]);
        let PresenceInRedis { failed, refused, resyncs, .. } = presence;
        let troubles = format!("{failed} / {refused} / {resyncs}");
        rows.insert(5, vec!["presence writes tried again / refused / resyncs".to_owned(), troubles]);
    }
    println!("{}", table(&["", "figure"], &rows));
    println!("{}", scenario::stretches_table(&[("first of each client", first_round), ("control group", held)]));
    held.warn_if_late("control group");
    findings.spent.note_if_stolen("control group");
    let mut caches: Vec<_> = memory.caches.iter().collect();
    caches.sort_by(|a, b| b.1.total_cmp(a.1));
    let rows: Vec<Vec<String>> =
        caches.iter().take(TOP_CACHES).map(|(name, bytes)| vec![(*name).clone(), format!("{bytes:.0}")]).collect();
    println!("kernel objects, both ends, bytes for each connection\n{}", table(&["cache", "bytes"], &rows));
}
