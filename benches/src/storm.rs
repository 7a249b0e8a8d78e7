//! `bench storm`: all clients are cut off at once and come back, while a control group goes on exchanging messages.

use std::{
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use clap::Args;
use serde::Serialize;

use crate::{
    affinity::{LOAD_CORE, on_load_core, pin},
    counters::Counters,
    dialect::Trunkline,
    failure::Failure,
    fleet::Fleet,
    hold::warm_up,
    keepers::parent,
    keeping::{Kept, Plan, Senders, Until},
    progress::Progress,
    redis::Scratch,
    report::table,
    scenario::{self, Clients, Ramp, Stretch, per_second, run_number, seconds},
    server::Server,
    team::{CoresArgs, Team, Who},
    watch::{Spent, Watch},
};

/// How long the gateway may take to notice that connections are gone.
const NOTICE_PATIENCE: Duration = Duration::from_secs(30);

/// Connections that send what is kept for those who are away, and messages without an answer at a time.
const SENDERS: u32 = 16;
const IN_FLIGHT: u32 = 8_192;

/// Arguments of `bench storm`.
#[derive(Clone, Debug, Args, Serialize)]
pub(crate) struct StormArgs {
    #[command(flatten)]
    #[serde(flatten)]
    clients: Clients,
    #[command(flatten)]
    #[serde(flatten)]
    cores: CoresArgs,
    /// Seconds before the storm, and after it
    #[arg(long, default_value_t = 10.0)]
    secs: f64,
    /// Clients that are not cut off and exchange messages, an even number [default: a hundredth, 10,000 at most]
    #[arg(long)]
    control: Option<u32>,
    /// Messages per second of the control group, all together [default: a fifth of its size]
    #[arg(long)]
    rate: Option<f64>,
    /// Messages that are kept for each of those who are away, in a store of the gateway's own; then they come back, and
    /// get them
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=10_000))]
    backlog: u32,
    /// With --backlog: folder on the disk of the store [default: that for temporary files]
    #[arg(long, value_name = "DIR", requires = "backlog")]
    folder: Option<PathBuf>,
}

#[derive(Debug, Serialize)]
struct Findings {
    first_ramp: Ramp,
    /// Clients that were cut off.
    cut: u32,
    /// From the first cut to the last LOGIN_OK.
    seconds_until_back: f64,
    /// The part of it in which connections were cut.
    seconds_cutting: f64,
    second_ramp: Ramp,
    control: u32,
    rate: f64,
    before: Stretch,
    during: Stretch,
    after: Stretch,
    spent_before: Spent,
    spent_during: Spent,
    /// Most resident memory during and after the storm over that before.
    memory_peak_ratio: f64,
    messages: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    backlog: Option<BacklogFindings>,
}

/// What became of the messages for those who were away.
#[derive(Debug, Serialize)]
struct BacklogFindings {
    /// All of them.
    messages: u64,
    /// How they were kept, while everybody was away.
    kept: Kept,
    /// Messages of the control group meanwhile.
    meanwhile: Stretch,
    /// From the first connection to the last backlog's end.
    seconds_until_all: f64,
}

/// Runs `bench storm`.
pub(crate) fn run(args: &StormArgs) -> Result<(), Failure> {
    let mut args = args.clone();
    args.cores.spread(&mut args.clients)?;
    let clients = &args.clients;
    clients.check()?;
    let secs = seconds("--secs", args.secs)?;
    let control = args.control.unwrap_or((clients.conns / 100).clamp(2, 10_000) & !1);
    if !control.is_multiple_of(2) || control < 2 || control >= clients.conns {
        return Err(Failure::Setup(format!("--control takes an even number from 2, below --conns, not {control}")));
    }
    let rate = per_second("--rate", args.rate.unwrap_or(f64::from(control) / 5.0))?;
    let progress = scenario::progress("storm", clients);
    let scratch = match args.backlog {
        0 => None,
        _ if clients.gateway.runs_already() => {
            return Err(Failure::Setup("--backlog starts a gateway of its own: leave --gateway out".to_owned()));
        }
        _ => Some(Scratch::below(&parent(args.folder.as_ref()), "storm")?),
    };
    let mut gateway = clients.gateway.clone();
    if let Some(scratch) = &scratch {
        gateway.also(&["--data-dir", &scratch.path().join("store").display().to_string()]);
    }
    let connections = clients.conns + if args.backlog > 0 { SENDERS } else { 0 };
    let mut server = gateway.start_on(connections, &args.cores.of_server())?;
    let outcome = storm(&args, &server, secs, control, rate, &progress);
    let findings = outcome.map_err(|failure| server.explain(failure))?;
    server.stop()?;
    drop(scratch);
    print_summary(clients, &findings);
    scenario::report("storm", &args, clients, &findings)
}

fn storm(
    args: &StormArgs,
    server: &Server,
    secs: Duration,
    control: u32,
    rate: f64,
    progress: &Progress,
) -> Result<Findings, Failure> {
    let (clients, cores) = (&args.clients, args.cores);
    let pids = [server.pid()];
    // With a store these would be devices whose backlog nobody waits for.
    if args.backlog == 0 {
        on_load_core(|| warm_up(clients, server))?;
    }
    let shares = cores.shares(clients, (1..=clients.conns.into()).collect(), control)?;
    let cut_users = shares.iter().flat_map(|share| &share.users[share.control as usize..]).copied().collect();
    let plan = Plan { run: run_number(), senders: SENDERS, recipients: cut_users, payload: clients.payload };
    let mut team = Team::start(clients, cores, shares, &server.into())?;
    if args.backlog > 0 {
        team.expect(&plan, 0)?;
    }
    team.ping_every(clients.heartbeat())?;
    team.prepare()?;
    let bar = progress.phase("logged in", clients.conns.into());
    let first_ramp = team.ramp(clients, Who::Everybody, &pids, &bar, || ())?;
    drop(bar);
    if args.backlog > 0 {
        team.catch_up(&progress.phase("of no backlog", 0))?;
    }
    team.judge()?;

    team.send_at(Some(rate))?;
    let watch = Watch::start(&pids);
    team.begin_stretch()?;
    let from = Instant::now();
    let bar = progress.phase("seconds before", secs.as_secs());
    team.run_for(secs, |_| bar.set(from.elapsed().as_secs()))?;
    drop(bar);

    let cut = clients.conns - control;
    let counters = server.http().and_then(Counters::read)?;
    team.begin_stretch()?;
    let storm_from = Instant::now();
    let spent_before = watch.spent(from, storm_from);
    team.cut(Who::Others)?;
    let seconds_cutting = storm_from.elapsed().as_secs_f64();
    let kept = match args.backlog {
        0 => None,
        each => Some((keep(&plan, each, server, &mut team, progress)?, Instant::now())),
    };
    let back_from = kept.as_ref().map_or(storm_from, |(_, at)| *at);
    if kept.is_some() {
        team.expect(&plan, args.backlog.into())?;
        team.begin_stretch()?;
    }
    let bar = progress.phase("back", cut.into());
    let second_ramp = team.ramp(clients, Who::Others, &pids, &bar, || ())?;
    drop(bar);
    let inside_at = Instant::now();
    if kept.is_some() {
        let all = u64::from(args.backlog) * u64::from(cut);
        team.catch_up(&progress.phase("messages of backlogs", all))?;
    }
    let storm_to = Instant::now();
    team.begin_stretch()?;

    let bar = progress.phase("seconds after", secs.as_secs());
    team.run_for(secs, |_| bar.set(storm_to.elapsed().as_secs()))?;
    drop(bar);
    let after_seconds = storm_to.elapsed().as_secs_f64();
    let spent_during = watch.spent(back_from, storm_to);
    let peak = watch.spent(storm_from, Instant::now()).rss_peak;
    team.settle()?;
    team.judge()?;
    let caught_up = team.totals().caught_up;
    let mut stretches = team.take_stretches()?.into_iter().skip(1);
    let mut next = || stretches.next().unwrap_or_else(|| unreachable!("as many were begun"));
    let before = Stretch::of(&next(), (storm_from - from).as_secs_f64());
    let backlog = kept.map(|(kept, at)| BacklogFindings {
        messages: caught_up,
        kept,
        meanwhile: Stretch::of(&next(), (at - storm_from).as_secs_f64()),
        seconds_until_all: (storm_to - back_from).as_secs_f64(),
    });
    let during = Stretch::of(&next(), (storm_to - back_from).as_secs_f64());
    let after = Stretch::of(&next(), after_seconds);
    let senders = if backlog.is_some() { SENDERS } else { 0 };
    await_closes(server, &counters, cut + senders)?;
    let crowd = team.close()?;
    Ok(Findings {
        first_ramp,
        cut,
        seconds_until_back: (inside_at - back_from).as_secs_f64(),
        seconds_cutting,
        second_ramp,
        control,
        rate,
        before,
        during,
        after,
        spent_before,
        spent_during,
        memory_peak_ratio: peak as f64 / spent_before.rss_before.max(1) as f64,
        messages: crowd.ledger.delivered(),
        backlog,
    })
}

/// Lets so many messages be kept for each who is away, while the others go on.
fn keep(plan: &Plan, each: u32, server: &Server, team: &mut Team, progress: &Progress) -> Result<Kept, Failure> {
    let pids = [server.pid()];
    thread::scope(|scope| {
        let load = scope.spawn(|| -> Result<Kept, Failure> {
            pin(LOAD_CORE)?;
            let mut fleet = Fleet::new(server, SENDERS, (plan.payload + 128) * 64)?;
            let mut senders = Senders::new(&Trunkline, plan.clone(), "gateway");
            senders.enter(&mut fleet)?;
            let kept = senders.run(&mut fleet, IN_FLIGHT, Until::Each(each.into()), &pids, progress)?;
            fleet.close()?;
            Ok(kept)
        });
        while !load.is_finished() {
            team.run_for(Duration::from_millis(20), |_| ())?;
        }
        load.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// The gateway has to have counted the end of every connection that was cut: as a reset, or as replaced by the one that
/// came back before the reset was seen.
fn await_closes(server: &Server, before: &Counters, cut: u32) -> Result<(), Failure> {
    let deadline = Instant::now() + NOTICE_PATIENCE;
    loop {
        let now = server.http().and_then(Counters::read)?;
        let closed =
            |reason: &str| now.grown(before, &format!("trunkline_connections_closed_total{{reason=\"{reason}\"}}"));
        let (reset, replaced) = (closed("peer_reset"), closed("replaced"));
        if reset + replaced == u64::from(cut) {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(Failure::Accounts(format!(
                "{cut} connections were cut, but the gateway counted {reset} resets and {replaced} replaced sessions"
            )));
        }
        thread::sleep(Duration::from_millis(50));
    }
}

fn print_summary(clients: &Clients, findings: &Findings) {
    println!("{}", crate::report::Machine::this());
    println!(
        "{} clients, {} of them cut off at once; {} messages of the control group, each accounted for",
        clients.conns, findings.cut, findings.messages
    );
    let mib = |bytes: u64| format!("{:.1}", bytes as f64 / f64::from(1 << 20));
    let mut rows = vec![
        vec!["all back after, s".to_owned(), format!("{:.2}", findings.seconds_until_back)],
        vec!["of that, cutting, s".to_owned(), format!("{:.2}", findings.seconds_cutting)],
        vec!["logins per second, mean".to_owned(), format!("{:.0}", findings.second_ramp.rate_mean)],
        vec!["login latency p99, ms".to_owned(), format!("{:.1}", findings.second_ramp.latency.p99_us / 1e3)],
        vec!["process memory before, MiB".to_owned(), mib(findings.spent_before.rss_before)],
        vec!["its peak over that".to_owned(), format!("{:.2}", findings.memory_peak_ratio)],
        vec!["cores before, mean".to_owned(), format!("{:.2}", findings.spent_before.cores)],
        vec!["cores in the storm, mean / peak".to_owned(), {
            format!("{:.2} / {:.2}", findings.spent_during.cores, findings.spent_during.cores_peak)
        }],
    ];
    if let Some(backlog) = &findings.backlog {
        rows.push(vec!["kept for those away, messages".to_owned(), backlog.messages.to_string()]);
        rows.push(vec!["kept a second".to_owned(), format!("{:.0}", backlog.kept.rate)]);
        rows.push(vec!["all have all of them after, s".to_owned(), format!("{:.2}", backlog.seconds_until_all)]);
    }
    println!("{}", table(&["", "figure"], &rows));
    let mut stretches = vec![("before", &findings.before), ("during", &findings.during), ("after", &findings.after)];
    if let Some(backlog) = &findings.backlog {
        stretches.insert(1, ("while they were kept", &backlog.meanwhile));
    }
    println!("{}", scenario::stretches_table(&stretches));
    stretches.iter().for_each(|(name, stretch)| stretch.warn_if_late(name));
}
