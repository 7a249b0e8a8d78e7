//! `bench storm`: all clients are cut off at once and come back, while a control group goes on exchanging messages.

use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;

use crate::{
    affinity::on_load_core,
    counters::Counters,
    failure::Failure,
    hold::warm_up,
    progress::Progress,
    report::table,
    scenario::{self, Clients, Ramp, Stretch, per_second, seconds},
    server::Server,
    team::{CoresArgs, Team, Who},
    watch::{Spent, Watch},
};

/// How long the gateway may take to notice that connections are gone.
const NOTICE_PATIENCE: Duration = Duration::from_secs(30);

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
    let mut server = clients.gateway.start_on(clients.conns, &args.cores.of_server())?;
    let outcome = storm(clients, args.cores, &server, secs, control, rate, &progress);
    let findings = outcome.map_err(|failure| server.explain(failure))?;
    server.stop()?;
    print_summary(clients, &findings);
    scenario::report("storm", &args, clients, &findings)
}

fn storm(
    clients: &Clients,
    cores: CoresArgs,
    server: &Server,
    secs: Duration,
    control: u32,
    rate: f64,
    progress: &Progress,
) -> Result<Findings, Failure> {
    let pids = [server.pid()];
    on_load_core(|| warm_up(clients, server))?;
    let shares = cores.shares(clients, (1..=clients.conns.into()).collect(), control)?;
    let mut team = Team::start(clients, cores, shares, &server.into())?;
    team.ping_every(clients.heartbeat())?;
    team.prepare()?;
    let bar = progress.phase("logged in", clients.conns.into());
    let first_ramp = team.ramp(clients, Who::Everybody, &pids, &bar, || ())?;
    drop(bar);
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
    let bar = progress.phase("back", cut.into());
    let second_ramp = team.ramp(clients, Who::Others, &pids, &bar, || ())?;
    drop(bar);
    let storm_to = Instant::now();
    team.begin_stretch()?;

    let bar = progress.phase("seconds after", secs.as_secs());
    team.run_for(secs, |_| bar.set(storm_to.elapsed().as_secs()))?;
    drop(bar);
    let after_seconds = storm_to.elapsed().as_secs_f64();
    let spent_during = watch.spent(storm_from, storm_to);
    let peak = watch.spent(storm_from, Instant::now()).rss_peak;
    team.settle()?;
    team.judge()?;
    let [_, before, during, after] = &team.take_stretches()?[..] else { unreachable!("three were begun") };
    let before = Stretch::of(before, (storm_from - from).as_secs_f64());
    let during = Stretch::of(during, (storm_to - storm_from).as_secs_f64());
    let after = Stretch::of(after, after_seconds);
    await_closes(server, &counters, cut)?;
    let crowd = team.close()?;
    Ok(Findings {
        first_ramp,
        cut,
        seconds_until_back: (storm_to - storm_from).as_secs_f64(),
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
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn print_summary(clients: &Clients, findings: &Findings) {
    println!("{}", crate::report::Machine::this());
    println!(
        "{} clients, {} of them cut off at once; {} messages of the control group, each accounted for",
        clients.conns, findings.cut, findings.messages
    );
    let mib = |bytes: u64| format!("{:.1}", bytes as f64 / f64::from(1 << 20));
    let rows = vec![
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
    println!("{}", table(&["", "figure"], &rows));
    let stretches = [("before", &findings.before), ("during", &findings.during), ("after", &findings.after)];
    println!("{}", scenario::stretches_table(&stretches));
    stretches.iter().for_each(|(name, stretch)| stretch.warn_if_late(name));
}
