//! `bench slow`: a share of the clients stops reading while messages to them go on. What do the others notice, and is
//! every message that was dropped counted?

use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;

use crate::{
    affinity::on_load_core,
    counters::Counters,
    crowd::Crowd,
    failure::Failure,
    fleet::{Arm, Fleet},
    latency::{Latencies, Percentiles},
    ledger::{Flow, Lossy},
    progress::Progress,
    report::{median, table},
    scenario::{self, Clients, Stretch, per_second, ramp, seconds},
    server::Server,
    watch::{Spent, Watch},
};

/// Nobody pings, and nobody shall be taken for dead.
const HEARTBEAT_SECS: u32 = 600;
/// How often the gateway is asked what it has dropped, while messages are still under way.
const ASK_PERIOD: Duration = Duration::from_millis(200);
/// How long it may take until every message has arrived or is counted.
const RESUME_PATIENCE: Duration = Duration::from_secs(120);

/// Arguments of `bench slow`.
#[derive(Clone, Debug, Args, Serialize)]
pub(crate) struct SlowArgs {
    #[command(flatten)]
    #[serde(flatten)]
    clients: Clients,
    /// Seconds without slow readers, and then with them, in each round
    #[arg(long, default_value_t = 8.0)]
    secs: f64,
    /// Rounds; the medians of their p99 are compared, so that a stall of the machine does not decide
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    rounds: u32,
    /// Share of the clients that stops reading
    #[arg(long, default_value_t = 0.05)]
    share: f64,
    /// Messages per second, all together
    #[arg(long, default_value_t = 20_000.0)]
    rate: f64,
}

/// What the gateway says became of messages that did not arrive.
#[derive(Clone, Copy, Debug, Serialize)]
struct Dropped {
    outbox_full: u64,
    mailbox_full: u64,
    offline: u64,
    unsent_at_close: u64,
}

impl Dropped {
    fn between(before: &Counters, after: &Counters) -> Dropped {
        let fate = |fate: &str| after.grown(before, &format!("trunkline_messages_total{{outcome=\"{fate}\"}}"));
        Dropped {
            outbox_full: fate("outbox_full_dropped"),
            mailbox_full: fate("mailbox_full_dropped"),
            offline: fate("offline_dropped"),
            unsent_at_close: after.grown(before, "trunkline_delivery_copies_unsent_total"),
        }
    }

    fn sum(&self) -> u64 {
        self.outbox_full + self.mailbox_full + self.offline + self.unsent_at_close
    }
}

#[derive(Debug, Serialize)]
struct Findings {
    slow: u32,
    without: Stretch,
    with: Stretch,
    /// Median p99 of the rounds with slow readers, over that of the rounds without.
    p99_ratio: f64,
    /// Without and with, by round.
    rounds_p99_us: Vec<(f64, f64)>,
    spent_without: Spent,
    spent_with: Spent,
    /// Messages to slow readers.
    lossy: Lossy,
    /// Messages to the others that did not arrive. They read all the time; more than none means that this machine was
    /// too busy for them to keep up with what the gateway keeps for one connection.
    missed: u64,
    dropped: Dropped,
    messages: u64,
}

/// Runs `bench slow`.
pub(crate) fn run(args: &SlowArgs) -> Result<(), Failure> {
    args.clients.check()?;
    let secs = seconds("--secs", args.secs)?;
    per_second("--rate", args.rate)?;
    if !(0.0..=0.5).contains(&args.share) {
        return Err(Failure::Setup("--share takes 0 to 0.5 of the clients".to_owned()));
    }
    let mut clients = args.clients.clone();
    clients.conns &= !1;
    clients.heartbeat = HEARTBEAT_SECS;
    // A connection that stays full for long is ended by the gateway; here it shall stay, so that what is dropped can be
    // counted exactly.
    let longer = (2.0 * args.secs) as u64 + 60;
    clients.gateway.also(&["--outbox-full-secs", &longer.to_string()]);
    let slow = ((f64::from(clients.conns) * args.share) as u32).clamp(1, clients.conns / 2);
    let progress = scenario::progress("slow", &clients);
    let mut server = clients.start()?;
    let outcome = on_load_core(|| measure(args, &clients, &server, secs, slow, &progress));
    let findings = outcome.map_err(|failure| server.explain(failure))?;
    server.stop()?;
    print_summary(&clients, &findings);
    scenario::report("slow", args, &clients, &findings)
}

/// Neighbours send to each other; the second of each of the first `slow` pairs only receives, and not always.
fn flows(clients: u32, slow: u32) -> Vec<Flow> {
    (0..clients)
        .filter(|from| from % 2 == 0 || from / 2 >= slow)
        .map(|from| match from / 2 < slow {
            true => Flow::lossy(from, from ^ 1),
            false => Flow::new(from, from ^ 1).accounted(),
        })
        .collect()
}

fn measure(
    args: &SlowArgs,
    clients: &Clients,
    server: &Server,
    secs: Duration,
    slow: u32,
    progress: &Progress,
) -> Result<Findings, Failure> {
    let mut fleet = clients.fleet(server)?;
    let mut crowd = clients.crowd(flows(clients.conns, slow), clients.conns);
    let bar = progress.phase("logged in", clients.conns.into());
    ramp(&mut crowd, &mut fleet, clients, 0..clients.conns, &[server.pid()], &bar)?;
    drop(bar);
    crowd.judge()?;
    let counters_before = server.http().and_then(Counters::read)?;
    let watch = Watch::start(&[server.pid()]);
    let (mut without, mut with) = (Phase::new(), Phase::new());
    for _ in 0..args.rounds {
        crowd.stretches.take();
        crowd.send_at(Some(args.rate));
        without.run(&mut crowd, &mut fleet, secs, &watch, progress, "seconds without")?;
        for pair in 0..slow {
            fleet.disarm(2 * pair + 1)?;
        }
        with.run(&mut crowd, &mut fleet, secs, &watch, progress, "seconds with")?;
        crowd.send_at(None);
        for pair in 0..slow {
            fleet.arm(2 * pair + 1, Arm::Always)?;
        }
        // Those that are still under way are the slowest.
        settle(&mut crowd, &mut fleet, server, &counters_before)?;
        let [_, latencies_without, latencies_with] = &crowd.stretches.take()[..] else {
            unreachable!("two were begun")
        };
        without.add(latencies_without);
        with.add(latencies_with);
    }
    crowd.judge()?;
    let lossy = crowd.ledger.lossy();
    let dropped = Dropped::between(&counters_before, &server.http().and_then(Counters::read)?);
    let missed = crowd.ledger.sent() - crowd.ledger.delivered();
    fleet.close()?;
    Ok(Findings {
        slow,
        p99_ratio: with.p99_us() / without.p99_us().max(1.0),
        rounds_p99_us: without.p99s_us.iter().copied().zip(with.p99s_us.iter().copied()).collect(),
        spent_without: without.spent,
        spent_with: with.spent,
        without: without.stretch(),
        with: with.stretch(),
        lossy,
        missed,
        dropped,
        messages: crowd.ledger.delivered(),
    })
}

/// Waits until each message has arrived or is counted as dropped by the gateway.
fn settle(crowd: &mut Crowd, fleet: &mut Fleet, server: &Server, before: &Counters) -> Result<(), Failure> {
    let deadline = Instant::now() + RESUME_PATIENCE;
    loop {
        let ask_at = Instant::now() + ASK_PERIOD;
        while Instant::now() < ask_at {
            crowd.step(fleet, Duration::from_millis(20))?;
        }
        let dropped = Dropped::between(before, &server.http().and_then(Counters::read)?).sum();
        let lossy = crowd.ledger.lossy();
        let (sent, delivered) = (crowd.ledger.sent() + lossy.sent, crowd.ledger.delivered() + lossy.delivered);
        if sent == delivered + dropped {
            return Ok(());
        }
        if sent < delivered + dropped || Instant::now() > deadline {
            return Err(Failure::Accounts(format!(
                "of {sent} messages {delivered} arrived, but the gateway counts {dropped} as dropped: {} are \
                 unaccounted for",
                sent as i64 - delivered as i64 - dropped as i64
            )));
        }
    }
}

/// The stretches of all rounds, either those with slow readers or those without.
struct Phase {
    latencies: Latencies,
    seconds: f64,
    p99s_us: Vec<f64>,
    spent: Spent,
}

impl Phase {
    fn new() -> Phase {
        Phase { latencies: Latencies::new(), seconds: 0.0, p99s_us: Vec::new(), spent: Spent::default() }
    }

    fn run(
        &mut self,
        crowd: &mut Crowd,
        fleet: &mut Fleet,
        secs: Duration,
        watch: &Watch,
        progress: &Progress,
        name: &'static str,
    ) -> Result<(), Failure> {
        let bar = progress.phase(name, secs.as_secs());
        crowd.begin_stretch();
        let from = Instant::now();
        crowd.run_for(fleet, secs, |_| bar.set(from.elapsed().as_secs()))?;
        self.seconds += from.elapsed().as_secs_f64();
        self.spent = self.spent.max(watch.spent(from, Instant::now()));
        Ok(())
    }

    /// The latencies of a round, once its messages have settled.
    fn add(&mut self, latencies: &Latencies) {
        self.p99s_us.push(Percentiles::of(&latencies.messages).p99_us);
        self.latencies.add(latencies);
    }

    /// Median of the rounds: one stall of the machine is in one of them.
    fn p99_us(&self) -> f64 {
        median(self.p99s_us.iter().copied())
    }

    fn stretch(&self) -> Stretch {
        Stretch::of(&self.latencies, self.seconds)
    }
}

fn print_summary(clients: &Clients, findings: &Findings) {
    let Findings { lossy, dropped, .. } = findings;
    println!("{}", crate::report::Machine::this());
    println!(
        "{} clients, {} of which stop reading; {} messages to the others, each accounted for",
        clients.conns, findings.slow, findings.messages
    );
    let mib = |bytes: u64| format!("{:.1}", bytes as f64 / f64::from(1 << 20));
    let rows = vec![
        vec!["messages to slow readers".to_owned(), lossy.sent.to_string()],
        vec!["arrived, before or after the pause".to_owned(), lossy.delivered.to_string()],
        vec!["messages to the others that did not arrive".to_owned(), findings.missed.to_string()],
        vec!["dropped and counted by the gateway".to_owned(), dropped.sum().to_string()],
        vec!["process memory, peak without, MiB".to_owned(), mib(findings.spent_without.rss_peak)],
        vec!["process memory, peak with, MiB".to_owned(), mib(findings.spent_with.rss_peak)],
        vec![
            "the others' p99, with over without, medians of the rounds".to_owned(),
            format!("{:.2}", findings.p99_ratio),
        ],
    ];
    println!("{}", table(&["", "figure"], &rows));
    let stretches = [("without slow readers", &findings.without), ("with them", &findings.with)];
    println!("{}", scenario::stretches_table(&stretches));
    stretches.iter().for_each(|(name, stretch)| stretch.warn_if_late(name));
    if findings.missed > 0 {
        println!("note: readers that never stopped could not keep up: this machine is too busy for this --rate");
    }
    if dropped.sum() == 0 {
        println!(
            "note: nothing was dropped: the kernel's buffers held it all; more --secs, --rate or --payload fills them"
        );
    }
}
