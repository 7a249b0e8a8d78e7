//! `bench idle`: what an idle connection takes, in the process and in the kernel.
//!
//! Each run measures three things, each with the same client sockets at the other end:
//!
//! 1. *Plain sockets*, see [`crate::plain`]: the share of a client's end, and the least a server's end can take.
//! 2. *The floor*: a server on the leanest ring set-up that accepts and does nothing more; nothing is armed.
//! 3. *The gateway*, every connection logged in; natively, over WebSockets, TLS or both, each with a gateway of its
//!    own.
//!
//! The server's kernel memory is the growth of the whole machine's kernel memory less the clients' share. A few
//! connections are opened and closed before the first sample, so that what is made once is not counted for each.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use clap::Args;
use serde::Serialize;

use crate::{
    affinity::on_load_core,
    exchange::{self, Exchanged},
    failure::Failure,
    fleet::{Arm, Fleet},
    gateway::GatewayArgs,
    login::{Entrance, enter, ping_all},
    payload::PAYLOAD_BYTES_MIN,
    plain::{self, Plain, SETTLE_PATIENCE, Share, settled_kernel_memory},
    process::UserMemory,
    progress::Progress,
    report::{INTERVALS, Machine, Median, median, table, write_json},
    server::Server,
    sockets::tables_for,
    traffic::keep_quiet,
    transport::{Layers, Transport, Transports, Wire},
};

/// Arguments of `bench idle`.
#[derive(Clone, Debug, Args, Serialize)]
pub(crate) struct IdleArgs {
    /// Connections
    #[arg(long, default_value_t = 15_000, value_parser = clap::value_parser!(u32).range(1..=16_000_000))]
    conns: u32,
    /// Runs, each with a gateway of its own; the median counts
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    runs: u32,
    /// Seconds to hold the connections before memory is read
    #[arg(long, default_value_t = 1.0)]
    hold: f64,
    /// Afterwards let each user send a message to a few random others, and account for all of them
    #[arg(long)]
    exchange: bool,
    /// With --exchange: how many others
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=64))]
    recipients: u32,
    /// With --exchange: payload of a message in bytes
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(PAYLOAD_BYTES_MIN as i64..=65_504))]
    payload: u32,
    #[command(flatten)]
    #[serde(flatten)]
    transports: Transports,
    #[command(flatten)]
    #[serde(flatten)]
    gateway: GatewayArgs,
    /// Write everything to this file as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Connections opened and closed before the first sample.
const WARMUP_CONNECTIONS: u32 = 64;
/// Caches shown in the summary.
const TOP_CACHES: usize = 8;

const COLUMNS: [&str; 7] = ["", "process", "with start", "anonymous", "kernel", "together", "entered/s"];
/// Printed below the table.
const EXPLANATION: &str = "\
process   growth of all resident pages of the server (Rss); anonymous: those of them that belong to no file; with \
start: all its
          resident pages, with what was there before the first connection
kernel    growth of the machine's kernel memory (slab objects in use, vmalloc) and of the server's page tables, less the
          client's end
together  process and kernel";

/// Growth of memory with the connections, all figures in bytes for each connection.
#[derive(Clone, Debug, Serialize)]
struct Footprint {
    /// Process: all resident pages.
    user_rss: f64,
    /// Process: all resident pages, with those that were there before the first connection.
    user_with_start: f64,
    /// Process: private pages that belong to no file.
    user_anonymous: f64,
    /// Kernel, the server's share.
    kernel: Share,
    /// Memory of the machine that is neither free nor page cache: kernel, both ends, and process.
    machine_used: f64,
    /// Kernel, both ends: objects by cache. Caches of one object size may be merged under one name.
    caches: Vec<(String, f64)>,
    /// Time to open (and log in) all connections, in seconds.
    entered_in: f64,
}

#[derive(Clone, Debug, Serialize)]
struct Run {
    plain: Plain,
    floor: Option<Footprint>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gateway: Option<Footprint>,
    /// The gateway with WebSockets.
    #[serde(skip_serializing_if = "Option::is_none")]
    websocket: Option<Footprint>,
    /// The gateway with TLS.
    #[serde(skip_serializing_if = "Option::is_none")]
    tls: Option<Footprint>,
    /// The gateway with WebSockets over TLS.
    #[serde(skip_serializing_if = "Option::is_none")]
    wss: Option<Footprint>,
    exchanged: Vec<Exchanged>,
}

impl Run {
    fn settled(&self) -> bool {
        let mut held = self.floor.iter().chain(Transport::ALL.iter().filter_map(|transport| self.held(*transport)));
        held.all(|footprint| footprint.kernel.settled) && self.plain.accepted.settled
    }

    /// The gateway with clients of a transport.
    fn held(&self, transport: Transport) -> Option<&Footprint> {
        match transport {
            Transport::Native => self.gateway.as_ref(),
            Transport::Ws => self.websocket.as_ref(),
            Transport::Tls => self.tls.as_ref(),
            Transport::Wss => self.wss.as_ref(),
        }
    }
}

#[derive(Debug, Serialize)]
struct Report<'a> {
    bench: &'static str,
    machine: Machine,
    arguments: &'a IdleArgs,
    command: Vec<String>,
    runs: Vec<Run>,
}

/// Runs `bench idle`.
pub(crate) fn run(args: &IdleArgs) -> Result<(), Failure> {
    if !(0.0..=240.0).contains(&args.hold) {
        return Err(Failure::Setup("--hold takes 0 to 240 seconds".to_owned()));
    }
    if args.transports.any_tls() {
        args.gateway.show_certificate()?;
    }
    let mut runs = Vec::new();
    for number in 1..=args.runs {
        runs.push(one_run(args, number)?);
    }
    let report =
        Report { bench: "idle", machine: Machine::this(), arguments: args, command: std::env::args().collect(), runs };
    print_summary(&report);
    match &args.json {
        Some(path) => write_json(path, &report),
        None => Ok(()),
    }
}

fn one_run(args: &IdleArgs, number: u32) -> Result<Run, Failure> {
    let users: Vec<u64> = (1..=u64::from(args.conns)).collect();
    let title = |what: &str| Progress::new(format!("{what} {number}/{}", args.runs));
    let plain = on_load_core(|| plain::measure(args.conns, &title("plain sockets")))?;
    let client = plain.connecting;

    // The floor server is one ring.
    let floor_footprint = if tables_for(args.conns)?.0 == 1 {
        let mut server = Server::floor_unarmed(args.conns)?;
        let progress = title("floor");
        let held = on_load_core(|| {
            hold(args, &server, Entrance::Connect, Wire::Native.into(), &users, client, number, &progress)
        });
        let (footprint, _) = held.map_err(|failure| server.explain(failure))?;
        server.stop()?;
        Some(footprint)
    } else {
        None
    };

    let mut run = Run {
        plain,
        floor: floor_footprint,
        gateway: None,
        websocket: None,
        tls: None,
        wss: None,
        exchanged: Vec::new(),
    };
    for transport in args.transports.distinct() {
        let mut server = args.gateway.over(transport).start(args.conns)?;
        let (progress, layers) = (title(&transport.label("gateway")), transport.layers(args.transports.tls));
        let held = on_load_core(|| hold(args, &server, Entrance::Login, layers, &users, client, number, &progress));
        let (footprint, exchanged) = held.map_err(|failure| server.explain(failure))?;
        server.stop()?;
        match transport {
            Transport::Native => run.gateway = Some(footprint),
            Transport::Ws => run.websocket = Some(footprint),
            Transport::Tls => run.tls = Some(footprint),
            Transport::Wss => run.wss = Some(footprint),
        }
        run.exchanged.extend(exchanged);
    }
    Ok(run)
}

/// Opens the connections to a server, measures what they take, checks that they live, and closes them.
#[expect(clippy::too_many_arguments, reason = "what one measurement is of")]
fn hold(
    args: &IdleArgs,
    server: &Server,
    entrance: Entrance,
    layers: Layers,
    users: &[u64],
    client: Share,
    run_number: u32,
    progress: &Progress,
) -> Result<(Footprint, Option<Exchanged>), Failure> {
    let warm = WARMUP_CONNECTIONS.min(args.conns) as usize;
    let mut fleet = Fleet::new(server.address(), warm as u32, 0)?.over(layers.clone());
    enter(&mut fleet, &users[..warm], entrance, Arm::Nothing, progress)?;
    fleet.close()?;

    let mut fleet = Fleet::new(server.address(), args.conns, 0)?.over(layers);
    let kernel_before = settled_kernel_memory(args.conns)?;
    let user_before = UserMemory::of(server.pid())?;
    let start = Instant::now();
    let heartbeat_secs = enter(&mut fleet, users, entrance, Arm::Nothing, progress)?;
    let entered_in = start.elapsed().as_secs_f64();
    // A connection silent for two heartbeats would be closed.
    if f64::from(heartbeat_secs) < args.hold + SETTLE_PATIENCE.as_secs_f64() {
        return Err(Failure::Setup(format!(
            "the gateway grants a heartbeat of {heartbeat_secs} s, too short for --hold {} and the time memory takes \
             to settle",
            args.hold
        )));
    }
    keep_quiet(&mut fleet, users, Duration::from_secs_f64(args.hold))?;
    let kernel = settled_kernel_memory(args.conns)?.since(&kernel_before);
    let user = UserMemory::of(server.pid())?;

    let mut share = Share::of(&kernel, args.conns).less(client);
    let each = |bytes: i64| bytes as f64 / f64::from(args.conns);
    let mut caches: Vec<(String, f64)> =
        kernel.caches.iter().map(|(name, bytes)| (name.clone(), each(*bytes))).collect();
    caches.sort_by(|a, b| b.1.total_cmp(&a.1));
    share.in_use += each(user.page_tables - user_before.page_tables);
    let footprint = Footprint {
        user_rss: each(user.rss - user_before.rss),
        user_with_start: each(user.rss),
        user_anonymous: each(user.anonymous - user_before.anonymous),
        machine_used: each(kernel.machine_used),
        kernel: share,
        caches,
        entered_in,
    };
    let mut exchanged = None;
    if entrance == Entrance::Login {
        ping_all(&mut fleet, users, progress)?;
        if args.exchange {
            for connection in 0..args.conns {
                fleet.arm(connection, Arm::Always)?;
            }
            exchanged =
                Some(exchange::run(&mut fleet, users, args.recipients, args.payload as usize, run_number, progress)?);
        }
    }
    fleet.close()?;
    Ok((footprint, exchanged))
}

fn print_summary(report: &Report<'_>) {
    let args = report.arguments;
    println!("{}", report.machine);
    println!("{} idle connections, {} runs; medians, bytes for each connection", args.conns, args.runs);
    let mut rows = vec![
        plain_row("client's end, nothing armed", report, |run| run.plain.connecting),
        plain_row("accepted socket, nothing armed", report, |run| run.plain.accepted),
    ];
    rows.extend(held_row("floor, nothing armed", report, |run| run.floor.as_ref()));
    for transport in Transport::ALL {
        let name = transport.label("gateway, logged in");
        rows.extend(held_row(&name, report, |run| run.held(transport)));
    }
    println!("{}", table(&COLUMNS, &rows));
    println!("{EXPLANATION}");
    if report.runs.iter().all(|run| run.floor.is_none()) {
        println!("The floor is left out: it is one ring, whose table cannot hold {} connections here.", args.conns);
    }
    if !report.runs.iter().all(Run::settled) {
        println!(
            "Kernel memory did not come to rest: something else is at work on this machine, the figures are not good."
        );
    }
    for (name, ratio) in ratios(report) {
        println!("{name} over the accepted socket, process and kernel: {ratio}");
    }
    println!("{INTERVALS}");
    let last = &report.runs[report.runs.len() - 1];
    let Some(gateway) = Transport::ALL.iter().find_map(|transport| last.held(*transport)) else { return };
    println!("\nkernel objects with the gateway, both ends, last run, bytes for each connection");
    let top = gateway.caches.iter().take(TOP_CACHES);
    let caches: Vec<Vec<String>> = top.map(|(name, each)| vec![name.clone(), format!("{each:.0}")]).collect();
    println!("{}", table(&["cache", "bytes"], &caches));
    for exchanged in report.runs.iter().flat_map(|run| &run.exchanged) {
        println!(
            "{} messages between all connections in {:.1} s, each delivered once, to the right user, with the right \
             bytes",
            exchanged.messages, exchanged.seconds
        );
    }
}

/// What an idle connection takes over the least that one can, an accepted socket on which nothing is armed, of the
/// runs.
fn ratios(report: &Report<'_>) -> Vec<(String, Median)> {
    let of = |transport: Transport| {
        let ratios = report.runs.iter().filter_map(|run| {
            let held = run.held(transport)?;
            Some((held.user_rss + held.kernel.in_use) / run.plain.accepted.in_use.max(1.0))
        });
        (transport.label("gateway"), ratios.collect::<Vec<f64>>())
    };
    let measured = Transport::ALL.into_iter().map(of).filter(|(_, ratios)| !ratios.is_empty());
    measured.map(|(name, ratios)| (name, Median::of(ratios))).collect()
}

fn plain_row(name: &str, report: &Report<'_>, share: fn(&Run) -> Share) -> Vec<String> {
    let in_use = median(report.runs.iter().map(|run| share(run).in_use));
    let none = || "–".to_owned();
    let mut row = vec![name.to_owned(), none(), none(), none(), format!("{in_use:.0}")];
    row.resize(COLUMNS.len(), "–".to_owned());
    row
}

fn held_row(name: &str, report: &Report<'_>, footprint: impl Fn(&Run) -> Option<&Footprint>) -> Option<Vec<String>> {
    let footprints: Vec<&Footprint> = report.runs.iter().filter_map(footprint).collect();
    if footprints.is_empty() {
        return None;
    }
    let of = |value: fn(&Footprint) -> f64| median(footprints.iter().map(|footprint| value(footprint)));
    let cells = [
        of(|footprint| footprint.user_rss),
        of(|footprint| footprint.user_with_start),
        of(|footprint| footprint.user_anonymous),
        of(|footprint| footprint.kernel.in_use),
        of(|footprint| footprint.user_rss + footprint.kernel.in_use),
        f64::from(report.arguments.conns) / of(|footprint| footprint.entered_in),
    ];
    Some([name.to_owned()].into_iter().chain(cells.map(|cell| format!("{cell:.0}"))).collect())
}
