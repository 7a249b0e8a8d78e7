//! `bench churn`: clients connect, log in, send a few messages and leave, at a steady rate.

use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;

use crate::{
    affinity::on_load_core,
    clock::now_ns,
    failure::Failure,
    latency::Percentiles,
    ledger::Flow,
    process::{CpuTime, UserMemory, own_cpu},
    progress::Progress,
    report::table,
    scenario::{self, Clients, Stretch, per_second, ramp, seconds},
    server::Server,
};

/// Of the clients one in so many stays and receives what the others send.
const AUDIENCE_SHARE: u32 = 10;
/// A visit that begins this much after its time is late.
const LATE_NS_MIN: u64 = 5_000_000;
/// Visits that are late may begin until so many times the length of the run is over; the rest are given up.
const CATCH_UP: u32 = 2;
/// How long those under way may take to leave at the end.
const LEAVE_PATIENCE: Duration = Duration::from_secs(10);

/// Arguments of `bench churn`.
#[derive(Clone, Debug, Args, Serialize)]
pub(crate) struct ChurnArgs {
    #[command(flatten)]
    #[serde(flatten)]
    clients: Clients,
    /// How long, in seconds
    #[arg(long, default_value_t = 10.0)]
    secs: f64,
    /// Clients that come per second
    #[arg(long, default_value_t = 5_000.0)]
    rate: f64,
    /// Messages each of them sends before it leaves
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(0..=1_000))]
    messages: u32,
}

#[derive(Debug, Serialize)]
struct Findings {
    /// Clients that stay and receive.
    audience: u32,
    /// Clients that came and went.
    visits: u64,
    visits_per_second: f64,
    /// Visits that began late because every connection was still in use.
    late: u64,
    /// Visits that never began, because those before them took too long.
    skipped: u64,
    /// From the time a visit was to begin to LOGIN_OK. One that never began counts with the time until it was given up.
    login_latency: Percentiles,
    messages: Stretch,
    delivered: u64,
    server_cpu_us_per_visit: f64,
    bench_cores: f64,
    /// Growth of the server's resident memory over the time, bytes.
    memory_grown: i64,
}

/// Runs `bench churn`.
pub(crate) fn run(args: &ChurnArgs) -> Result<(), Failure> {
    let clients = &args.clients;
    clients.check()?;
    let secs = seconds("--secs", args.secs)?;
    let rate = per_second("--rate", args.rate)?;
    let progress = scenario::progress("churn", clients);
    let mut server = clients.start()?;
    let outcome = on_load_core(|| churn(clients, &server, secs, rate, args.messages, &progress));
    let findings = outcome.map_err(|failure| server.explain(failure))?;
    server.stop()?;
    print_summary(clients, &findings);
    scenario::report("churn", args, clients, &findings)
}

fn churn(
    clients: &Clients,
    server: &Server,
    secs: Duration,
    rate: f64,
    messages_each: u32,
    progress: &Progress,
) -> Result<Findings, Failure> {
    let audience = (clients.conns / AUDIENCE_SHARE).max(1);
    let flows = (audience..clients.conns).map(|from| Flow::new(from, from % audience)).collect();
    let mut fleet = clients.fleet(server)?;
    let mut crowd = clients.crowd(flows, audience);
    crowd.ping_every(Some(clients.heartbeat()));
    let bar = progress.phase("audience", audience.into());
    ramp(&mut crowd, &mut fleet, clients, 0..audience, &[server.pid()], &bar)?;
    drop(bar);
    crowd.judge()?;
    crowd.login_latency.reset();
    crowd.begin_stretch();
    crowd.report_entries();

    let bar = progress.phase("seconds", secs.as_secs());
    let mut free: Vec<u32> = (audience..clients.conns).rev().collect();
    let (mut begun, mut late, mut skipped) = (0u64, 0u64, 0u64);
    let logins_before = crowd.tally.logins;
    let memory_before = UserMemory::of(server.pid())?;
    let (cpu_before, own_before) = (CpuTime::of(server.pid())?, own_cpu());
    let (from, from_ns) = (Instant::now(), now_ns());
    let mut leaving_since = None;
    loop {
        let elapsed = from.elapsed();
        let due = (elapsed.min(secs).as_secs_f64() * rate) as u64;
        let is_over = elapsed > secs * CATCH_UP;
        while begun < due {
            let intended_ns = from_ns + (begun as f64 * 1e9 / rate) as u64;
            let waited_ns = now_ns().saturating_sub(intended_ns);
            if is_over {
                // It would have waited for longer.
                crowd.login_latency.saturating_record(waited_ns);
                skipped += 1;
            } else if let Some(connection) = free.pop() {
                crowd.open(&mut fleet, connection, 1, |_| intended_ns)?;
                late += u64::from(waited_ns > LATE_NS_MIN);
            } else {
                break;
            }
            begun += 1;
        }
        if elapsed < secs || begun < due {
            // Visits are still to begin.
        } else if free.len() as u32 == clients.conns - audience {
            break;
        } else if leaving_since.get_or_insert_with(Instant::now).elapsed() > LEAVE_PATIENCE {
            let left = clients.conns as usize - audience as usize - free.len();
            return Err(Failure::Stalled { waiting_for: format!("{left} clients to leave"), after: LEAVE_PATIENCE });
        }
        crowd.step(&mut fleet, Duration::from_millis(1))?;
        for connection in crowd.take_entries() {
            for _ in 0..messages_each {
                crowd.send(&mut fleet, connection - audience, now_ns());
            }
            crowd.leave(&mut fleet, connection)?;
        }
        free.append(&mut crowd.freed);
        bar.set(elapsed.as_secs());
        bar.say(format!("{} visits", crowd.tally.left));
    }
    let taken = from.elapsed().as_secs_f64();
    let (cpu, _) = CpuTime::of(server.pid())?.since(&cpu_before);
    let bench_cores = (own_cpu() - own_before).as_secs_f64() / taken;
    drop(bar);
    crowd.settle(&mut fleet)?;
    crowd.judge()?;
    let visits = crowd.tally.logins - logins_before;
    if crowd.tally.left != visits {
        return Err(Failure::Accounts(format!("{visits} clients came, but {} left", crowd.tally.left)));
    }
    let memory_grown = UserMemory::of(server.pid())?.rss - memory_before.rss;
    let [_, messages] = &crowd.stretches.take()[..] else { unreachable!("one was begun") };
    fleet.close()?;
    Ok(Findings {
        audience,
        visits,
        visits_per_second: visits as f64 / taken,
        late,
        skipped,
        login_latency: Percentiles::of(&crowd.login_latency),
        messages: Stretch::of(messages, taken),
        delivered: crowd.ledger.delivered(),
        server_cpu_us_per_visit: cpu.as_secs_f64() * 1e6 / visits.max(1) as f64,
        bench_cores,
        memory_grown,
    })
}

fn print_summary(clients: &Clients, findings: &Findings) {
    println!("{}", crate::report::Machine::this());
    println!(
        "{} connections, {} of them stay; {} messages, each accounted for",
        clients.conns, findings.audience, findings.delivered
    );
    let rows = vec![
        vec!["visits".to_owned(), findings.visits.to_string()],
        vec!["visits per second".to_owned(), format!("{:.0}", findings.visits_per_second)],
        vec!["login latency from the time intended, p50 / p99 / max, ms".to_owned(), {
            let Percentiles { p50_us, p99_us, max_us, .. } = findings.login_latency;
            format!("{:.2} / {:.2} / {:.2}", p50_us / 1e3, p99_us / 1e3, max_us / 1e3)
        }],
        vec!["server CPU for a visit, µs".to_owned(), format!("{:.1}", findings.server_cpu_us_per_visit)],
        vec!["bench cores".to_owned(), format!("{:.2}", findings.bench_cores)],
        vec!["process memory grown by, KiB".to_owned(), format!("{:.0}", findings.memory_grown as f64 / 1024.0)],
    ];
    println!("{}", table(&["", "figure"], &rows));
    println!("{}", scenario::stretches_table(&[("messages", &findings.messages)]));
    findings.messages.warn_if_late("messages");
    if findings.late > 0 || findings.skipped > 0 {
        println!(
            "warning: {} visits began late and {} never: the server is slower than --rate, or --conns is too small for \
             it",
            findings.late, findings.skipped
        );
    }
}
