//! `bench handshakes`: what a login over TLS costs a gateway, full, resumed, and resumed at another node; and what
//! others notice of many handshakes, and of a flood of beginnings that go no further.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use clap::Args;
use serde::Serialize;
use trunkline_proto::Frame;

use crate::{
    affinity::{SERVER_CORE, on_load_core},
    clock::now_ns,
    counters::Counters,
    crowd::{Crowd, PATIENCE},
    failure::Failure,
    fleet::{Arm, Driver, End, Fleet, Targets},
    gateway::GatewayArgs,
    latency::Percentiles,
    ledger::{Ledger, Route},
    process::{CpuTime, own_cpu},
    progress::Progress,
    report::{Machine, table, write_json},
    scenario::{Stretch, neighbours, per_second, run_number, seconds, stretches_table},
    server::Server,
    site::{NodesArgs, Site},
    sockets::Manner,
    tls::{TlsArgs, TlsClient, Within},
    transport::{Layers, Transport},
    users::{Placement, Seats},
    watch::{Spent, Watch},
};

/// Heartbeat of all clients in seconds: longer than a run, so that nobody has to ping.
const HEARTBEAT_SECS: u32 = 600;
/// Payload of the others' messages.
const PAYLOAD_BYTES: usize = 64;
/// Beginnings sent before the others are looked after again.
const FLOOD_STEP: u32 = 64;
/// After the last of a flood its gateway ends them, at the latest when their time for LOGIN is over.
const FLOOD_PATIENCE: Duration = Duration::from_secs(30);
/// Handshakes that are not measured, so that what a gateway allocates once is there.
const WARM_UP: Duration = Duration::from_millis(500);

/// Arguments of `bench handshakes`.
#[derive(Clone, Debug, Args, Serialize)]
pub(crate) struct HandshakesArgs {
    /// Length of each measurement in seconds
    #[arg(long, default_value_t = 5.0)]
    secs: f64,
    /// Connections that connect, log in and are cut off, again and again
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    under_way: u32,
    /// Handshakes a second beside which others exchange messages
    #[arg(long, default_value_t = 2_000.0)]
    paced: f64,
    /// Connections that send a ClientHello and nothing more, as fast as it goes; 0 leaves that out
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    flood: u32,
    /// Others, an even number
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(2..=10_000))]
    control: u32,
    /// Messages that they exchange, per second and all together
    #[arg(long, default_value_t = 1_000.0)]
    rate: f64,
    /// Whether frames or WebSockets are within TLS: tls or wss
    #[arg(long, value_name = "TRANSPORT", default_value = "tls")]
    transport: Transport,
    #[command(flatten)]
    #[serde(flatten)]
    tls: TlsArgs,
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

/// Logins of one kind, as fast as they go.
#[derive(Clone, Debug, Serialize)]
struct Logins {
    name: &'static str,
    logins: u64,
    per_second: f64,
    /// CPU time of the gateway for one, with the kernel's part: accept, handshake, LOGIN, and the end of the
    /// connection.
    server_cpu_us: f64,
    /// Logins a second that a whole core of the gateway's CPU time makes.
    per_second_and_core: f64,
    bench_cpu_us: f64,
    /// From connecting to LOGIN_OK.
    latency: Percentiles,
}

/// What others noticed.
#[derive(Clone, Debug, Serialize)]
struct Others {
    before: Stretch,
    /// While handshakes were made at a rate.
    paced: Stretch,
    paced_per_second: f64,
    /// Their p99 over that before.
    paced_p99_ratio: f64,
    paced_spent: Spent,
}

/// What a flood of ClientHellos did.
#[derive(Clone, Debug, Serialize)]
struct Flood {
    connections: u32,
    /// From the first to the last of them connected.
    seconds: f64,
    /// Handshakes that the gateway has counted by how they ended.
    abandoned: u64,
    /// Of those, how many gave way to later ones.
    evicted: u64,
    /// Connections whose handshake never began: there was no room, or the client was too slow for that.
    not_begun: u64,
    others: Stretch,
    spent: Spent,
    /// Growth of the gateway's resident memory at its peak, for each connection.
    peak_bytes_each: f64,
}

#[derive(Debug, Serialize)]
struct Report<'a> {
    bench: &'static str,
    machine: Machine,
    command: Vec<String>,
    arguments: &'a HandshakesArgs,
    cases: Vec<Logins>,
    #[serde(skip_serializing_if = "Option::is_none")]
    others: Option<Others>,
    #[serde(skip_serializing_if = "Option::is_none")]
    flood: Option<Flood>,
}

/// Runs `bench handshakes`.
pub(crate) fn run(args: &HandshakesArgs) -> Result<(), Failure> {
    let secs = seconds("--secs", args.secs)?;
    per_second("--paced", args.paced)?;
    per_second("--rate", args.rate)?;
    if !args.control.is_multiple_of(2) {
        return Err(Failure::Setup(format!("--control {} is odd, but they come in pairs", args.control)));
    }
    if !args.transport.is_tls() {
        return Err(Failure::Setup(format!("--transport {} has no handshake: tls and wss have one", args.transport)));
    }
    if args.nodes.nodes > 2 {
        return Err(Failure::Setup("--nodes takes 1, or 2 for a ticket that is used at another node".to_owned()));
    }
    args.gateway.show_certificate()?;
    let progress = Progress::new("handshakes".to_owned());
    let (cases, others, flood) = if args.nodes.nodes == 2 {
        (at_two_nodes(args, secs, &progress)?, None, None)
    } else {
        at_one(args, secs, &progress)?
    };
    let report = Report {
        bench: "handshakes",
        machine: Machine::this(),
        command: std::env::args().collect(),
        arguments: args,
        cases,
        others,
        flood,
    };
    print_summary(&report);
    match &args.json {
        Some(path) => write_json(path, &report),
        None => Ok(()),
    }
}

/// The layers of its clients, and what decides about their tickets.
fn layers(args: &HandshakesArgs) -> (Layers, std::sync::Arc<TlsClient>) {
    let within = if args.transport == Transport::Tls { Within::Frames } else { Within::Http };
    let client = TlsClient::new(args.tls, within);
    (Layers { tls: Some(client.clone()), ..args.transport.layers(args.tls) }, client)
}

type Found = (Vec<Logins>, Option<Others>, Option<Flood>);

fn at_one(args: &HandshakesArgs, secs: Duration, progress: &Progress) -> Result<Found, Failure> {
    let connections = args.control + args.under_way + args.flood;
    let mut server = args.gateway.start_on(connections, &[SERVER_CORE])?;
    let outcome = on_load_core(|| {
        let (layers, client) = layers(args);
        let users: Vec<u64> = (1..=args.under_way.into()).collect();
        let of = |name| Measured { name, server: &server, users: &users, secs };
        let clear = if args.transport == Transport::Tls { Transport::Native } else { Transport::Ws };
        let cases = vec![
            of("without TLS").logins(clear.layers(args.tls), None, progress, || Pace::AsFast(secs))?,
            of("full").full(&layers, &client, progress)?,
            of("resumed").resumed(&layers, &client, progress)?,
        ];
        let (others, flood) = beside_others(args, &server, &layers, &client, secs, progress)?;
        Ok((cases, Some(others), flood))
    });
    let found = outcome.map_err(|failure: Failure| server.explain(failure))?;
    server.stop()?;
    Ok(found)
}

/// Full handshakes at the second of two nodes, and such with a ticket of the first.
fn at_two_nodes(args: &HandshakesArgs, secs: Duration, progress: &Progress) -> Result<Vec<Logins>, Failure> {
    let mut site = Site::start(&args.nodes, &args.gateway, args.under_way + 64, &[])?;
    let outcome = on_load_core(|| {
        // Everybody logs in at home.
        let mut seats: Seats = site.seats(0, 1, Placement::Any);
        site.seat_more(&mut seats, 8 * args.under_way + 64);
        let at = |node: u8, count: u32| {
            let seated = seats.users.iter().zip(&seats.nodes).filter(|(_, at)| **at == node);
            seated.map(|(user, _)| *user).take(count as usize).collect::<Vec<u64>>()
        };
        let (first, second) = (at(0, args.under_way), at(1, args.under_way));
        let [one, other] = site.servers() else { unreachable!("two were started") };
        let (layers, client) = layers(args);
        let of = |name, server, users| Measured { name, server, users, secs };
        Ok(vec![
            of("full, presence in Redis", one, &first[..]).full(&layers, &client, progress)?,
            of("resumed at another node", other, &second[..]).resumed(&layers, &client, progress)?,
        ])
    });
    let cases = outcome.map_err(|failure| site.explain(failure))?;
    site.stop()?;
    Ok(cases)
}

/// Logins to be measured.
#[derive(Clone, Copy)]
struct Measured<'a> {
    name: &'static str,
    server: &'a Server,
    users: &'a [u64],
    secs: Duration,
}

impl Measured<'_> {
    fn crowd(&self, users: &[u64]) -> Crowd {
        let route = Route::Deliver { ack: false };
        let ledger = Ledger::new(route, run_number(), users.to_vec(), Vec::new(), PAYLOAD_BYTES);
        let mut crowd = Crowd::new(ledger, users.len() as u32, 0, HEARTBEAT_SECS);
        crowd.report_entries();
        crowd
    }

    fn fleet(&self, users: &[u64], layers: Layers) -> Result<Fleet, Failure> {
        let fleet = Fleet::new(self.server, users.len() as u32, 4_096)?;
        Ok(fleet.in_manner(Manner::SpeaksFirst).over(layers))
    }

    /// Measures full handshakes, and keeps their tickets.
    fn full(&self, layers: &Layers, client: &TlsClient, progress: &Progress) -> Result<Logins, Failure> {
        client.keep_tickets(true);
        let logins = self.logins(layers.clone(), Some("full"), progress, || Pace::AsFast(self.secs));
        client.keep_tickets(false);
        logins
    }

    /// Measures handshakes with all the tickets that were kept, each used once.
    fn resumed(&self, layers: &Layers, client: &TlsClient, progress: &Progress) -> Result<Logins, Failure> {
        client.resume(true);
        let tickets = || Pace::Times(client.tickets() as u64);
        let logins = self.logins(layers.clone(), Some("resumed"), progress, tickets);
        client.resume(false);
        logins
    }

    /// Measures logins at a pace that is asked for when all is warm. `outcome` is how the gateway has to count the
    /// handshake of each.
    fn logins(
        &self,
        layers: Layers,
        outcome: Option<&str>,
        progress: &Progress,
        pace: impl FnOnce() -> Pace,
    ) -> Result<Logins, Failure> {
        let bar = progress.phase(self.name, self.secs.as_secs());
        let (mut crowd, mut fleet) = (self.crowd(self.users), self.fleet(self.users, layers)?);
        churn(&mut crowd, &mut fleet, Pace::AsFast(WARM_UP))?;
        crowd.login_latency.reset();
        let counter = |outcome: &str| format!("trunkline_tls_handshakes_total{{outcome=\"{outcome}\"}}");
        let counters = self.server.http().and_then(Counters::read)?;
        let logins_before = crowd.tally.logins;
        let (cpu_before, own_before, from) = (CpuTime::of(self.server.pid())?, own_cpu(), Instant::now());
        churn(&mut crowd, &mut fleet, pace())?;
        let (taken, own) = (from.elapsed().as_secs_f64(), own_cpu() - own_before);
        let (cpu, _) = CpuTime::of(self.server.pid())?.since(&cpu_before);
        drop(bar);
        let logins = crowd.tally.logins - logins_before;
        fleet.close()?;
        crowd.judge()?;
        if let Some(outcome) = outcome {
            let counted = self.server.http().and_then(Counters::read)?.grown(&counters, &counter(outcome));
            if counted != logins {
                return Err(Failure::Accounts(format!(
                    "{logins} clients logged in with handshakes that were to be {outcome}, but the gateway counts \
                     {counted} of those"
                )));
            }
        }
        let server_cpu_us = cpu.as_secs_f64() * 1e6 / logins.max(1) as f64;
        Ok(Logins {
            name: self.name,
            logins,
            per_second: logins as f64 / taken,
            server_cpu_us,
            per_second_and_core: 1e6 / server_cpu_us,
            bench_cpu_us: own.as_secs_f64() * 1e6 / logins.max(1) as f64,
            latency: Percentiles::of(&crowd.login_latency),
        })
    }
}

/// How often clients come.
#[derive(Clone, Copy)]
enum Pace {
    /// Each as soon as it is gone, so many times all together.
    Times(u64),
    /// Each as soon as it is gone, for so long.
    AsFast(Duration),
    /// So many a second, for so long.
    Rate(f64, Duration),
}

/// Lets the clients behind the attentive ones log in, and cuts each off once it is in. All are gone at the end.
fn churn(crowd: &mut Crowd, fleet: &mut Fleet, pace: Pace) -> Result<(), Failure> {
    let (first, end) = (crowd.attentive(), crowd.connections());
    let mut free: Vec<u32> = (first..end).rev().collect();
    let (mut begun, from, from_ns) = (0_u64, Instant::now(), now_ns());
    let mut last_progress = (crowd.tally.logins, Instant::now());
    crowd.freed.clear();
    loop {
        let elapsed = from.elapsed();
        let (due, is_over) = match pace {
            Pace::Times(times) => (times, begun == times),
            Pace::AsFast(secs) => (u64::MAX, elapsed >= secs),
            Pace::Rate(rate, secs) => ((elapsed.as_secs_f64() * rate) as u64, elapsed >= secs),
        };
        while begun < due && !is_over {
            let Some(connection) = free.pop() else { break };
            let intended_ns = match pace {
                Pace::Rate(rate, _) => from_ns + (begun as f64 * 1e9 / rate) as u64,
                Pace::Times(_) | Pace::AsFast(_) => now_ns(),
            };
            crowd.open(fleet, connection, 1, |_| intended_ns)?;
            begun += 1;
        }
        if is_over && free.len() as u32 == end - first {
            return Ok(());
        }
        crowd.step(fleet, Duration::from_millis(1))?;
        for connection in crowd.take_entries() {
            crowd.cut_one(fleet, connection)?;
        }
        free.append(&mut crowd.freed);
        if crowd.tally.logins > last_progress.0 {
            last_progress = (crowd.tally.logins, Instant::now());
        } else if last_progress.1.elapsed() > PATIENCE {
            crowd.judge()?;
            return Err(Failure::Stalled { waiting_for: "LOGIN_OK".to_owned(), after: PATIENCE });
        }
    }
}

/// What a control group notices of handshakes, and of a flood.
fn beside_others(
    args: &HandshakesArgs,
    server: &Server,
    layers: &Layers,
    client: &TlsClient,
    secs: Duration,
    progress: &Progress,
) -> Result<(Others, Option<Flood>), Failure> {
    // Behind those who have just been cut off.
    let users: Vec<u64> = (1..=(args.control + args.under_way).into()).map(|user: u64| 1_000_000 + user).collect();
    let route = Route::Deliver { ack: false };
    let ledger = Ledger::new(route, run_number(), users.clone(), neighbours(0, args.control), PAYLOAD_BYTES);
    let mut crowd = Crowd::new(ledger, users.len() as u32, args.control, HEARTBEAT_SECS);
    crowd.report_entries();
    let mut fleet = Fleet::new(server, users.len() as u32, 4_096)?.in_manner(Manner::SpeaksFirst).over(layers.clone());
    crowd.enter(&mut fleet, crate::crowd::Opening::new(0, args.control, 64, None), |_| ())?;
    drop(crowd.take_entries());
    let watch = Watch::start(&[server.pid()]);
    crowd.send_at(Some(args.rate));
    crowd.run_for(&mut fleet, WARM_UP, |_| ())?;

    crowd.begin_stretch();
    let bar = progress.phase("others before", secs.as_secs());
    crowd.run_for(&mut fleet, secs, |_| ())?;
    drop(bar);
    crowd.begin_stretch();
    let bar = progress.phase("others beside handshakes", secs.as_secs());
    let (from, logins_before) = (Instant::now(), crowd.tally.logins);
    churn(&mut crowd, &mut fleet, Pace::Rate(args.paced, secs))?;
    let paced_seconds = from.elapsed().as_secs_f64();
    let paced_per_second = (crowd.tally.logins - logins_before) as f64 / paced_seconds;
    let paced_spent = watch.spent(from, Instant::now());
    drop(bar);
    crowd.begin_stretch();
    let flood = match args.flood {
        0 => None,
        flood => Some(flood_with(&mut crowd, &mut fleet, server, client.hello()?, flood, &watch, progress)?),
    };
    crowd.settle(&mut fleet)?;
    let [_, before, paced, flooded, ..] = &crowd.stretches.take()[..] else { unreachable!("three were begun") };
    let before = Stretch::of(before, secs.as_secs_f64());
    let paced = Stretch::of(paced, paced_seconds);
    let others = Others {
        paced_p99_ratio: paced.messages.p99_us / before.messages.p99_us.max(1e-3),
        before,
        paced,
        paced_per_second,
        paced_spent,
    };
    let flood = flood.map(|flood| Flood { others: Stretch::of(flooded, flood.seconds), ..flood });
    fleet.close()?;
    crowd.judge()?;
    Ok((others, flood))
}

/// Connections that say how they would begin, and then nothing.
struct Beginners {
    hello: Vec<u8>,
    connected: u32,
    /// Those that were refused, or ended by the gateway before they said anything.
    ended: u32,
}

impl Driver for Beginners {
    fn connected(&mut self, _: u32, out: &mut Vec<u8>) -> Result<Arm, Failure> {
        out.extend_from_slice(&self.hello);
        self.connected += 1;
        // The answer waits in the kernel, unread.
        Ok(Arm::Nothing)
    }

    fn frame(&mut self, _: u32, _: &Frame<'_>, _: u64, _: &mut Vec<u8>) -> Result<(), Failure> {
        unreachable!("nothing is armed")
    }

    fn lost(&mut self, _: u32, how: &str) -> Failure {
        Failure::ServerGone(how.to_owned())
    }

    fn ended(&mut self, _: u32, _: End) -> Result<(), Failure> {
        self.ended += 1;
        Ok(())
    }
}

/// Opens a flood of connections as fast as it goes, and waits until the gateway is done with them, while the crowd goes
/// on. The latencies of that time are the caller's to add.
fn flood_with(
    crowd: &mut Crowd,
    fleet: &mut Fleet,
    server: &Server,
    hello: Vec<u8>,
    connections: u32,
    watch: &Watch,
    progress: &Progress,
) -> Result<Flood, Failure> {
    const ABANDONED: &str = "trunkline_tls_handshakes_total{outcome=\"abandoned\"}";
    const EVICTED: &str = "trunkline_evictions_total{of=\"tls_handshake\"}";
    let counters = server.http().and_then(Counters::read)?;
    let bar = progress.phase("flood", connections.into());
    let mut beginners = Beginners { hello, connected: 0, ended: 0 };
    // Sources apart from those of the others, who go on.
    let mut flood = Fleet::new(Targets::from(server), connections, 0)?.numbered_from(crowd.connections());
    let from = Instant::now();
    let mut seconds = 0.0;
    while beginners.connected + beginners.ended < connections {
        let under_way =
            flood.opened() - beginners.connected - beginners.ended.min(flood.opened() - beginners.connected);
        flood.open((connections - flood.opened()).min(FLOOD_STEP.saturating_sub(under_way)))?;
        flood.turn(&mut beginners, Duration::ZERO)?;
        crowd.step(fleet, Duration::ZERO)?;
        bar.set(beginners.connected.into());
        if from.elapsed() > FLOOD_PATIENCE {
            return Err(Failure::Stalled { waiting_for: "a flood to connect".to_owned(), after: FLOOD_PATIENCE });
        }
        seconds = from.elapsed().as_secs_f64();
    }
    drop(bar);
    let (mut looked, deadline) = (Instant::now(), Instant::now() + FLOOD_PATIENCE);
    let grown = loop {
        crowd.step(fleet, Duration::from_millis(1))?;
        flood.turn(&mut beginners, Duration::ZERO)?;
        // Each look costs the gateway something, too.
        if looked.elapsed() > Duration::from_millis(500) {
            looked = Instant::now();
            let now = server.http().and_then(Counters::read)?;
            if now.get("trunkline_tls_handshakes_under_way") == 0 || looked > deadline {
                break now;
            }
        }
    };
    let spent = watch.spent(from, Instant::now());
    let abandoned = grown.grown(&counters, ABANDONED);
    // The others wait while this thread closes them all, which is no part of what a flood does to them.
    crowd.begin_stretch();
    flood.close()?;
    let none = crate::latency::Latencies::new();
    Ok(Flood {
        connections,
        seconds,
        abandoned,
        evicted: grown.grown(&counters, EVICTED),
        not_begun: u64::from(connections).saturating_sub(abandoned),
        others: Stretch::of(&none, 0.0),
        spent,
        peak_bytes_each: spent.rss_peak.saturating_sub(spent.rss_before) as f64 / f64::from(connections),
    })
}

fn print_summary(report: &Report<'_>) {
    println!("{}", report.machine);
    let HandshakesArgs { transport, under_way, secs, .. } = report.arguments;
    println!(
        "logins over {transport}, {under_way} at a time, {secs} s each; accept, handshake, LOGIN and the end of each"
    );
    let head = ["", "logins/s", "gateway CPU µs", "logins/s and core", "bench CPU µs", "p50 ms", "p99 ms"];
    let rows: Vec<Vec<String>> = report
        .cases
        .iter()
        .map(|case| {
            vec![
                case.name.to_owned(),
                format!("{:.0}", case.per_second),
                format!("{:.1}", case.server_cpu_us),
                format!("{:.0}", case.per_second_and_core),
                format!("{:.1}", case.bench_cpu_us),
                format!("{:.2}", case.latency.p50_us / 1e3),
                format!("{:.2}", case.latency.p99_us / 1e3),
            ]
        })
        .collect();
    println!("{}", table(&head, &rows));
    let Some(others) = &report.others else { return };
    let mut stretches = vec![("others before", &others.before), ("beside handshakes", &others.paced)];
    stretches.extend(report.flood.as_ref().map(|flood| ("beside a flood", &flood.others)));
    println!("{}", stretches_table(&stretches));
    println!(
        "others' p99 beside {:.0} handshakes a second over that before: {:.2}; {:.2} cores of the gateway",
        others.paced_per_second, others.paced_p99_ratio, others.paced_spent.cores
    );
    others.paced.warn_if_late("beside handshakes");
    let Some(flood) = &report.flood else { return };
    println!(
        "{} ClientHellos within {:.2} s: {} handshakes abandoned, {} of them for later ones, {} never begun; memory \
         grew by {:.0} B for each at its peak",
        flood.connections, flood.seconds, flood.abandoned, flood.evicted, flood.not_begun, flood.peak_bytes_each
    );
    flood.others.warn_if_late("beside a flood");
}
