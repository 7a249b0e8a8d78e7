//! `bench vs`: the floor, the gateway and other servers in one run, the same load engine speaking each protocol.

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
    cores::{CoreTimes, CoreUse},
    dialect::{Dialect, Echo, Event, Trunkline},
    discrepancy::{Discrepancy, Message},
    failure::Failure,
    fleet::{Arm, Driver, Fleet, Taken},
    floor,
    gateway::GatewayArgs,
    latency::{ClosedLoop, Percentiles},
    pairs::{CORRECTED, SILENCE_MS_MAX},
    payload::{Label, PAYLOAD_BYTES_MIN},
    peers::{Layered, PEERS, Peer},
    plain::{self, Share, settled_kernel_memory},
    process::{CpuTime, UserMemory, own_cpu},
    progress::Progress,
    report::{INTERVALS, Machine, Median, median, table, write_json},
    scenario::{run_number, turns},
    server::Server,
    transport::{Layers, Transport, Transports, Wire},
};

/// Connections opened at the same time: fewer than any server's backlog.
const OPENING_MAX: u32 = 100;
const PATIENCE: Duration = Duration::from_secs(10);
const WARMUP: Duration = Duration::from_millis(500);
/// Connections made and closed before memory is measured.
const WARMUP_CONNECTIONS: u32 = 500;

/// Arguments of `bench vs`.
#[derive(Clone, Debug, Args, Serialize)]
pub(crate) struct VsArgs {
    /// Connections that exchange messages, an even number
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(2..=10_000))]
    conns: u32,
    /// Messages each connection keeps in flight; several values are measured one after the other
    #[arg(long, value_delimiter = ',', default_values_t = [1, 32])]
    window: Vec<u32>,
    /// Idle connections whose memory and login rate are measured; 0 leaves that out
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(0..=15_000))]
    idle: u32,
    /// Payload of a message in bytes
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(PAYLOAD_BYTES_MIN as i64..=16_384))]
    payload: u32,
    /// Length of each measurement in seconds
    #[arg(long, default_value_t = 3.0)]
    secs: f64,
    /// Rounds, in each of which every server is measured; the median counts
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    #[command(flatten)]
    #[serde(flatten)]
    transports: Transports,
    /// Only these peers, by name [default: all that are installed]
    #[arg(long, value_delimiter = ',')]
    peer: Vec<String>,
    #[command(flatten)]
    #[serde(flatten)]
    gateway: GatewayArgs,
    /// Write everything to this file as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// A server in the comparison.
#[derive(Clone, Copy)]
enum Contestant {
    Floor(Transport),
    Gateway(Transport),
    Peer(&'static Peer, Transport),
}

impl Contestant {
    fn name(&self) -> String {
        match self {
            Contestant::Floor(transport) => transport.label("floor"),
            Contestant::Gateway(transport) => transport.label("trunkline"),
            Contestant::Peer(peer, transport) => transport.label(peer.name),
        }
    }

    /// What its clients write and read.
    fn layers(&self, args: &VsArgs) -> Layers {
        match self {
            Contestant::Floor(transport) => transport.echo_wire().unwrap_or_default().into(),
            Contestant::Gateway(transport) => transport.layers(args.transports.tls),
            Contestant::Peer(peer, transport) => peer.layers(*transport, args.transports.tls).unwrap_or_default(),
        }
    }

    fn dialect(&self) -> &'static dyn Dialect {
        match self {
            Contestant::Floor(_) => &Echo,
            Contestant::Gateway(_) => &Trunkline,
            Contestant::Peer(peer, _) => peer.dialect,
        }
    }

    /// Starts one whose connections stay idle: the least of those is an accepted socket on which nothing is armed.
    fn start_idle(&self, args: &VsArgs, folder: &std::path::Path) -> Result<Server, Failure> {
        match self {
            Contestant::Floor(_) => Server::floor_unarmed(args.idle),
            Contestant::Gateway(_) | Contestant::Peer(..) => self.start(args, folder),
        }
    }

    fn start(&self, args: &VsArgs, folder: &std::path::Path) -> Result<Server, Failure> {
        let most = args.conns.max(args.idle);
        match self {
            Contestant::Floor(_) => Server::floor(most, floor::BATCH),
            Contestant::Gateway(transport) => args.gateway.over(*transport).start_on(most, &[SERVER_CORE]),
            Contestant::Peer(peer, transport) => {
                let websocket = matches!(transport, Transport::Ws | Transport::Wss);
                let tls = args.gateway.identity().filter(|_| transport.is_tls());
                peer.start(folder, Layered { websocket, tls })
            }
        }
    }
}

/// One measurement of messages.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Round {
    window: u32,
    pub(crate) messages: u64,
    pub(crate) rate: f64,
    pub(crate) cpu_us_per_message: f64,
    /// The saturation of the server, and of the bench.
    pub(crate) cores: f64,
    pub(crate) bench_cores: f64,
    /// What the core of the servers did.
    server_core: CoreUse,
    /// Of the messages under way in the measurement, whenever they arrived.
    pub(crate) latency: Percentiles,
    /// As clients would see it that do not wait for the message before; see [`ClosedLoop::corrected`].
    pub(crate) latency_corrected: Percentiles,
    /// The longest time in which none of them arrived, in milliseconds.
    pub(crate) silence_ms: f64,
}

/// Clients that keep so many messages in flight each.
pub(crate) struct Exchange<'a> {
    pub(crate) conns: u32,
    pub(crate) payload: u32,
    pub(crate) secs: f64,
    pub(crate) window: u32,
    pub(crate) dialect: &'a dyn Dialect,
    /// What they write and read.
    pub(crate) layers: Layers,
    /// A message comes back to its sender, instead of going to the other one of a pair.
    pub(crate) echo: bool,
    /// Of the server, for what is said of it.
    pub(crate) name: &'a str,
}

/// Memory of idle connections.
#[derive(Clone, Copy, Debug, Serialize)]
struct Idle {
    user: f64,
    /// With what was there before the first connection.
    user_with_start: f64,
    kernel: f64,
    logins_per_second: f64,
    server_cpu_us_per_login: f64,
}

/// What was measured of one server.
#[derive(Debug, Serialize)]
struct Contest {
    name: String,
    what: &'static str,
    version: String,
    idle: Option<Idle>,
    rounds: Vec<Round>,
    /// Why a peer was left out from some point on: it did not start, or broke under the load.
    failed: Option<String>,
}

impl Contest {
    /// Takes a result over. A peer's failure ends its part; one of the floor or of the gateway ends the run.
    fn keep<T>(&mut self, contestant: &Contestant, result: Result<T, Failure>) -> Result<Option<T>, Failure> {
        match (result, contestant) {
            (Ok(value), _) => Ok(Some(value)),
            (Err(failure), Contestant::Peer(..)) => {
                eprintln!("{} is left out from here on: {failure}", contestant.name());
                self.failed = Some(failure.to_string());
                Ok(None)
            }
            (Err(failure), Contestant::Floor(_) | Contestant::Gateway(_)) => Err(failure),
        }
    }
}

#[derive(Debug, Serialize)]
struct Report<'a> {
    bench: &'static str,
    machine: Machine,
    command: Vec<String>,
    arguments: &'a VsArgs,
    servers: Vec<Contest>,
    /// Peers that are not installed, each with the command that installs it.
    skipped: Vec<(&'static str, &'static str)>,
}

/// Runs `bench vs`.
pub(crate) fn run(args: &VsArgs) -> Result<(), Failure> {
    if !args.conns.is_multiple_of(2) {
        return Err(Failure::Setup(format!("--conns {} is odd, but connections come in pairs", args.conns)));
    }
    if !(0.05..=3_600.0).contains(&args.secs) || args.window.iter().any(|window| !(1..=10_000).contains(window)) {
        return Err(Failure::Setup("--secs takes 0.05 to 3600 and --window 1 to 10000".to_owned()));
    }
    if let Some(unknown) = args.peer.iter().find(|name| PEERS.iter().all(|peer| peer.name != name.as_str())) {
        let known: Vec<_> = PEERS.iter().map(|peer| peer.name).collect();
        return Err(Failure::Setup(format!("--peer {unknown} is not known: {} are", known.join(", "))));
    }
    let mut contestants = Vec::new();
    if args.transports.any_tls() {
        args.gateway.show_certificate()?;
    }
    for transport in args.transports.distinct() {
        // An echo has no keys.
        let floor = transport.echo_wire().map(|_| Contestant::Floor(transport));
        for contestant in floor.into_iter().chain([Contestant::Gateway(transport)]) {
            contestants.push((contestant, env!("CARGO_PKG_VERSION").to_owned()));
        }
    }
    let mut skipped = Vec::new();
    for peer in &PEERS {
        if !args.peer.is_empty() && !args.peer.iter().any(|name| name == peer.name) {
            continue;
        }
        match peer.version() {
            Some(version) => {
                let spoken = |transport: &Transport| peer.layers(*transport, args.transports.tls).is_some();
                for transport in args.transports.distinct().into_iter().filter(spoken) {
                    contestants.push((Contestant::Peer(peer, transport), version.clone()));
                }
            }
            None => {
                eprintln!("{} is not installed and left out; to install it: {}", peer.name, peer.install);
                skipped.push((peer.name, peer.install));
            }
        }
    }
    let folder = std::env::temp_dir().join(format!("trunkline-bench-vs-{}", std::process::id()));
    let outcome = compare(args, &contestants, &folder);
    // What is left of it, if anything, is in the temporary folder.
    let _ = std::fs::remove_dir_all(&folder);
    let servers = outcome?;
    print_summary(args, &servers);
    let report = Report {
        bench: "vs",
        machine: Machine::this(),
        command: std::env::args().collect(),
        arguments: args,
        servers,
        skipped,
    };
    match &args.json {
        Some(path) => write_json(path, &report),
        None => Ok(()),
    }
}

fn compare(
    args: &VsArgs,
    contestants: &[(Contestant, String)],
    folder: &std::path::Path,
) -> Result<Vec<Contest>, Failure> {
    let mut results: Vec<Contest> = contestants
        .iter()
        .map(|(contestant, version)| Contest {
            name: contestant.name(),
            what: match contestant {
                Contestant::Floor(_) => "raw io_uring echo; idle: nothing armed",
                Contestant::Gateway(_) => "SEND to DELIVER",
                Contestant::Peer(peer, _) => peer.what,
            },
            version: version.clone(),
            idle: None,
            rounds: Vec::new(),
            failed: None,
        })
        .collect();
    let progress = Progress::new("vs".to_owned());
    if args.idle > 0 {
        let client = on_load_core(|| plain::measure(args.idle, &progress))?.connecting;
        for ((contestant, _), result) in contestants.iter().zip(&mut results) {
            let Some(mut server) = result.keep(contestant, contestant.start_idle(args, folder))? else { continue };
            let idle = on_load_core(|| idle(args, contestant, &server, client));
            result.idle = result.keep(contestant, idle.map_err(|failure| server.explain(failure)))?;
            server.kill();
        }
    }
    let count = contestants.len();
    for round in 1..=args.rounds {
        // So that none always has the machine as the same other one left it.
        for number in turns(count, round) {
            let ((contestant, _), result) = (&contestants[number], &mut results[number]);
            if result.failed.is_some() {
                continue;
            }
            let Some(mut server) = result.keep(contestant, contestant.start(args, folder))? else { continue };
            for &window in &args.window {
                let progress = Progress::new(format!("{} {round}/{}, window {window}", contestant.name(), args.rounds));
                let of = Exchange {
                    conns: args.conns,
                    payload: args.payload,
                    secs: args.secs,
                    window,
                    dialect: contestant.dialect(),
                    layers: contestant.layers(args),
                    echo: matches!(contestant, Contestant::Floor(_)),
                    name: &contestant.name(),
                };
                let measured = on_load_core(|| exchange(&of, &server, &progress));
                match result.keep(contestant, measured.map_err(|failure| server.explain(failure)))? {
                    Some(round) => result.rounds.push(round),
                    None => break,
                }
            }
            server.kill();
        }
    }
    Ok(results)
}

/// Clients of one server, in pairs.
struct Clients<'a> {
    dialect: &'a dyn Dialect,
    run: u32,
    name: &'a str,
    ready: Vec<bool>,
    ready_count: u32,
    /// Whether a message comes back to its sender.
    echo: bool,
    sent: Vec<u64>,
    received: Vec<u64>,
    payload: Vec<u8>,
    latencies: Option<ClosedLoop>,
    delivered: u64,
    due: Vec<u32>,
}

/// The user of a connection.
fn user(connection: u32) -> u64 {
    u64::from(connection) + 1
}

impl<'a> Clients<'a> {
    fn new(dialect: &'a dyn Dialect, connections: u32, payload: u32, echo: bool, name: &'a str) -> Clients<'a> {
        let count = connections as usize;
        Clients {
            dialect,
            run: run_number(),
            name,
            ready: vec![false; count],
            ready_count: 0,
            echo,
            sent: vec![0; count],
            received: vec![0; count],
            payload: vec![0; payload as usize],
            latencies: None,
            delivered: 0,
            due: Vec::new(),
        }
    }

    fn message(&self, from: u32, sequence: u64) -> Message {
        Message { sender: user(from), recipient: user(self.recipient(from)), sequence }
    }

    fn recipient(&self, from: u32) -> u32 {
        if self.echo { from } else { from ^ 1 }
    }

    fn send(&mut self, fleet: &mut Fleet, from: u32) {
        let recipient = user(self.recipient(from));
        let sequence = self.sent[from as usize];
        self.sent[from as usize] += 1;
        let label = Label { sender: user(from), recipient, sequence, sent_ns: now_ns(), flow: from, run: self.run };
        label.write(&mut self.payload);
        let (dialect, payload) = (self.dialect, &self.payload);
        fleet.stage(from, |out| dialect.send(recipient, payload, out));
    }

    fn judge(&mut self, at: u32, payload: &[u8], now_ns: u64) -> Result<(), Failure> {
        let foreign = |what| Discrepancy::Foreign { user: user(at), what };
        let label = Label::read(payload).ok_or(foreign("a payload too short to be of this bench"))?;
        if label.run != self.run || label.flow as usize >= self.sent.len() {
            return Err(foreign("a message of another run").into());
        }
        let message = self.message(label.flow, label.sequence);
        if self.recipient(label.flow) != at {
            return Err(Discrepancy::Misdelivered { message, to: user(at) }.into());
        }
        if payload.len() != self.payload.len() || !label.is_intact(payload) {
            return Err(Discrepancy::Altered { message, what: "payload" }.into());
        }
        let expected = self.received[label.flow as usize];
        if label.sequence < expected {
            return Err(Discrepancy::Doubled(message).into());
        }
        if label.sequence > expected {
            let missing = self.message(label.flow, expected);
            return Err(Discrepancy::Skipped { missing, instead: label.sequence }.into());
        }
        self.received[label.flow as usize] += 1;
        self.delivered += 1;
        if let Some(latencies) = &mut self.latencies {
            latencies.record(now_ns, now_ns.saturating_sub(label.sent_ns));
        }
        self.due.push(label.flow);
        Ok(())
    }

    fn settled(&self) -> Result<(), Discrepancy> {
        match (0..self.sent.len()).find(|&flow| self.received[flow] < self.sent[flow]) {
            Some(flow) => Err(Discrepancy::Lost(self.message(flow as u32, self.received[flow]))),
            None => Ok(()),
        }
    }
}

impl Driver for Clients<'_> {
    fn connected(&mut self, connection: u32, out: &mut Vec<u8>) -> Result<Arm, Failure> {
        self.dialect.enter(user(connection), out);
        if self.dialect.is_ready_at_once() {
            self.ready[connection as usize] = true;
            self.ready_count += 1;
        }
        Ok(Arm::Always)
    }

    fn frame(&mut self, _: u32, _: &Frame<'_>, _: u64, _: &mut Vec<u8>) -> Result<(), Failure> {
        unreachable!("bytes are read by the dialect")
    }

    fn received(&mut self, connection: u32, bytes: &[u8], now_ns: u64, out: &mut Vec<u8>) -> Result<Taken, Failure> {
        let mut taken = Taken { bytes: 0, frames: 0 };
        while let Some((event, length)) =
            self.dialect.next(&bytes[taken.bytes..]).map_err(|what| self.lost(connection, &what))?
        {
            match event {
                Event::Ready => {
                    self.ready_count += u32::from(!std::mem::replace(&mut self.ready[connection as usize], true));
                }
                Event::Message(payload) => self.judge(connection, payload, now_ns)?,
                Event::Answer(answer) => out.extend_from_slice(answer),
                Event::Nothing => {}
                Event::Refused(why) => return Err(self.lost(connection, &why)),
            }
            taken.frames += 1;
            taken.bytes += length;
        }
        Ok(taken)
    }

    fn lost(&mut self, connection: u32, how: &str) -> Failure {
        Failure::ServerGone(format!("{}: the connection of user {} was lost: {how}", self.name, user(connection)))
    }
}

/// Opens connections until all are ready.
fn enter(fleet: &mut Fleet, clients: &mut Clients<'_>, connections: u32) -> Result<(), Failure> {
    let mut last_progress = Instant::now();
    while clients.ready_count < connections {
        let opening = fleet.opened() - clients.ready_count;
        fleet.open((connections - fleet.opened()).min(OPENING_MAX - opening.min(OPENING_MAX)))?;
        let before = clients.ready_count;
        fleet.turn(clients, Duration::from_millis(50))?;
        if clients.ready_count > before {
            last_progress = Instant::now();
        } else if last_progress.elapsed() > PATIENCE {
            let waiting_for =
                format!("{} to let clients in; {} of {connections} are there", clients.name, clients.ready_count);
            return Err(Failure::Stalled { waiting_for, after: PATIENCE });
        }
    }
    Ok(())
}

fn idle(args: &VsArgs, contestant: &Contestant, server: &Server, client: Share) -> Result<Idle, Failure> {
    let (connections, dialect, name) = (args.idle, contestant.dialect(), contestant.name());
    // An echo is asked for nothing here, so its connections have no messages either.
    let is_floor = matches!(contestant, Contestant::Floor(_));
    let layers = if is_floor { Wire::Native.into() } else { contestant.layers(args) };
    let warm = WARMUP_CONNECTIONS.min(connections);
    let mut fleet = Fleet::new(server.address(), warm, 0)?.over(layers.clone());
    enter(&mut fleet, &mut Clients::new(dialect, warm, PAYLOAD_BYTES_MIN as u32, true, &name), warm)?;
    fleet.close()?;
    let mut fleet = Fleet::new(server.address(), connections, 0)?.over(layers);
    let mut clients = Clients::new(dialect, connections, PAYLOAD_BYTES_MIN as u32, true, &name);
    let kernel_before = settled_kernel_memory(connections)?;
    let user_before = UserMemory::of(server.pid())?;
    let cpu_before = CpuTime::of(server.pid())?;
    let start = Instant::now();
    enter(&mut fleet, &mut clients, connections)?;
    let seconds = start.elapsed().as_secs_f64();
    let (cpu, _) = CpuTime::of(server.pid())?.since(&cpu_before);
    // An armed receive takes memory at the client's end.
    for connection in 0..connections {
        fleet.disarm(connection)?;
    }
    let quiet_until = Instant::now() + Duration::from_secs(1);
    while let Some(left) = quiet_until.checked_duration_since(Instant::now()) {
        fleet.turn(&mut clients, left)?;
    }
    let kernel = settled_kernel_memory(connections)?.since(&kernel_before);
    let user = UserMemory::of(server.pid())?;
    let each = |bytes: i64| bytes as f64 / f64::from(connections);
    fleet.close()?;
    Ok(Idle {
        user: each(user.rss - user_before.rss),
        user_with_start: each(user.rss),
        kernel: each(kernel.in_use() + user.page_tables - user_before.page_tables) - client.in_use,
        logins_per_second: f64::from(connections) / seconds,
        server_cpu_us_per_login: cpu.as_secs_f64() * 1e6 / f64::from(connections),
    })
}

/// Measures them at one server: they come in, exchange messages, and account for each.
pub(crate) fn exchange(of: &Exchange<'_>, server: &Server, progress: &Progress) -> Result<Round, Failure> {
    let Exchange { conns, payload, secs, window, dialect, ref layers, echo, name } = *of;
    let burst = (payload + 128).saturating_mul(window).min(1 << 17);
    let mut fleet = Fleet::new(server.address(), conns, burst)?.over(layers.clone());
    let mut clients = Clients::new(dialect, conns, payload, echo, name);
    enter(&mut fleet, &mut clients, conns)?;
    let length = Duration::from_secs_f64(secs);
    let bar = progress.phase("seconds", length.as_secs());
    for from in 0..conns {
        (0..window).for_each(|_| clients.send(&mut fleet, from));
    }
    run_until(&mut fleet, &mut clients, Instant::now() + WARMUP)?;
    clients.latencies = Some(ClosedLoop::from(now_ns()));
    let cores_before = CoreTimes::now()?;
    let (cpu_before, own_before, delivered_before) = (CpuTime::of(server.pid())?, own_cpu(), clients.delivered);
    let start = Instant::now();
    run_until(&mut fleet, &mut clients, start + length)?;
    bar.set(length.as_secs());
    let seconds = start.elapsed().as_secs_f64();
    let (cpu, _) = CpuTime::of(server.pid())?.since(&cpu_before);
    let bench_cores = (own_cpu() - own_before).as_secs_f64() / seconds;
    let server_core = CoreTimes::now()?.since(&cores_before, SERVER_CORE);
    let messages = clients.delivered - delivered_before;
    if let Some(latencies) = &mut clients.latencies {
        latencies.end(now_ns());
    }
    // The rest comes in without being answered. It has waited for longest, so it is waited for.
    let mut last = (clients.delivered, Instant::now());
    while clients.settled().is_err() && last.1.elapsed() < PATIENCE {
        fleet.turn(&mut clients, Duration::from_millis(50))?;
        if clients.delivered > last.0 {
            last = (clients.delivered, Instant::now());
        }
    }
    clients.settled()?;
    if messages == 0 {
        return Err(Failure::Accounts(format!("not one message arrived in the {seconds:.1} s that were measured")));
    }
    let latencies = clients.latencies.take().expect("set above");
    fleet.close()?;
    Ok(Round {
        window,
        messages,
        rate: messages as f64 / seconds,
        cpu_us_per_message: cpu.as_secs_f64() * 1e6 / messages.max(1) as f64,
        cores: cpu.as_secs_f64() / seconds,
        bench_cores,
        server_core,
        latency: latencies.percentiles(),
        latency_corrected: latencies.corrected(),
        silence_ms: latencies.silence().as_secs_f64() * 1e3,
    })
}

fn run_until(fleet: &mut Fleet, clients: &mut Clients<'_>, end: Instant) -> Result<(), Failure> {
    let mut last = (clients.delivered, Instant::now());
    while let Some(left) = end.checked_duration_since(Instant::now()) {
        fleet.turn(clients, left.min(Duration::from_millis(50)))?;
        for from in std::mem::take(&mut clients.due) {
            clients.send(fleet, from);
        }
        if clients.delivered > last.0 {
            last = (clients.delivered, Instant::now());
        } else if last.1.elapsed() > PATIENCE {
            clients.settled()?;
        }
    }
    Ok(())
}

/// CPU time for a message of one server over that of another, of the rounds that both have.
fn over(server: &Contest, base: &Contest, window: u32) -> Median {
    let of = |contest: &Contest| {
        let rounds = contest.rounds.iter().filter(|round| round.window == window);
        rounds.map(|round| round.cpu_us_per_message).collect::<Vec<_>>()
    };
    Median::of(of(server).into_iter().zip(of(base)).map(|(cpu, base)| cpu / base))
}

fn print_summary(args: &VsArgs, servers: &[Contest]) {
    println!("{}", Machine::this());
    println!(
        "{} connections in pairs, payload {} B, {} rounds of {} s, medians; servers on one core, the load on another",
        args.conns, args.payload, args.rounds, args.secs
    );
    for &window in &args.window {
        let of = |server: &Contest, value: fn(&Round) -> f64| {
            median(server.rounds.iter().filter(|round| round.window == window).map(value))
        };
        let head = [
            &*format!("window {window}"),
            "CPU µs/message",
            "over floor",
            "cores",
            "bench cores",
            "messages/s",
            "p50 µs",
            "p99 µs",
            "p99.9 µs",
        ];
        let rows: Vec<Vec<String>> = servers
            .iter()
            .filter(|server| server.rounds.iter().any(|round| round.window == window))
            .map(|server| {
                vec![
                    server.name.clone(),
                    format!("{:.3}", of(server, |round| round.cpu_us_per_message)),
                    over(server, &servers[0], window).to_string(),
                    format!("{:.2}", of(server, |round| round.cores)),
                    format!("{:.2}", of(server, |round| round.bench_cores)),
                    format!("{:.0}", of(server, |round| round.rate)),
                    format!("{:.0}", of(server, |round| round.latency.p50_us)),
                    format!("{:.0}", of(server, |round| round.latency_corrected.p99_us)),
                    format!("{:.0}", of(server, |round| round.latency_corrected.p999_us)),
                ]
            })
            .collect();
        println!("{}", table(&head, &rows));
    }
    println!("{CORRECTED}\n{INTERVALS}\n");
    let head = ["idle connection", "process B", "with start B", "kernel B", "together B", "logins/s", "CPU µs/login"];
    let rows: Vec<Vec<String>> = servers
        .iter()
        .filter_map(|server| {
            let idle = server.idle?;
            let cells = [
                idle.user,
                idle.user_with_start,
                idle.kernel,
                idle.user + idle.kernel,
                idle.logins_per_second,
                idle.server_cpu_us_per_login,
            ];
            Some([server.name.clone()].into_iter().chain(cells.map(|cell| format!("{cell:.0}"))).collect())
        })
        .collect();
    if !rows.is_empty() {
        println!("{}", table(&head, &rows));
    }
    for server in servers {
        println!("{}: {}; {}", server.name, server.what, server.version);
        for round in server.rounds.iter().filter(|round| round.silence_ms > SILENCE_MS_MAX) {
            println!(
                "  warning: window {}: no message arrived for {:.0} ms in a round",
                round.window, round.silence_ms
            );
        }
        if let Some(failed) = &server.failed {
            println!("  left out from some point on: {failed}");
        }
    }
}
