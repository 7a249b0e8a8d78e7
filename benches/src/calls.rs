//! `bench calls`: what a call and its answer cost, beside an echo and beside others who pass requests on.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use clap::Args;
use serde::Serialize;

use crate::{
    affinity::{SERVER_CORE, on_load_core},
    backend::{Backend, Speech},
    dialect::{Calls, Dialect, Echo, NatsRequests},
    failure::Failure,
    floor,
    gateway::GatewayArgs,
    pairs::{CORRECTED, SILENCE_MS_MAX},
    payload::PAYLOAD_BYTES_MIN,
    peers::{Layered, PEERS, free_address, start_in, version_of, written},
    progress::Progress,
    report::{INTERVALS, Machine, Median, median, table, write_json},
    scenario::turns,
    server::Server,
    service::SERVICE,
    transport::Wire,
    vs::{Exchange, Round, exchange},
};

/// Arguments of `bench calls`.
#[derive(Clone, Debug, Args, Serialize)]
pub(crate) struct CallsArgs {
    /// Clients, each with one call in flight
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    conns: u32,
    /// Payload of a call, and of its answer, in bytes
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(PAYLOAD_BYTES_MIN as i64..=16_384))]
    payload: u32,
    /// Length of each measurement in seconds
    #[arg(long, default_value_t = 3.0)]
    secs: f64,
    /// Rounds, in each of which every server is measured; the median counts
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Only these beside the gateway, by name: nats-server, nginx, haproxy [default: all that are installed]
    #[arg(long, value_delimiter = ',')]
    peer: Vec<String>,
    #[command(flatten)]
    #[serde(flatten)]
    gateway: GatewayArgs,
    /// Write everything to this file as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Who is in between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Between {
    Floor,
    Native,
    Http,
    Nats,
    Nginx,
    Haproxy,
}

/// Those that are no part of this project: name, how its version is asked for, how it is installed.
const OTHERS: [(Between, &[&str], &str); 3] = [
    (Between::Nats, &["nats-server", "--version"], "apt-get install nats-server"),
    (Between::Nginx, &["nginx", "-v"], "apt-get install nginx libnginx-mod-stream"),
    (Between::Haproxy, &["haproxy", "-v"], "apt-get install haproxy"),
];

/// Where Debian has nginx's module for TCP; elsewhere it is built in.
const NGINX_STREAM: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";

impl Between {
    fn name(self) -> &'static str {
        match self {
            Between::Floor => "floor",
            Between::Native => "gateway, worker",
            Between::Http => "gateway, HTTP",
            Between::Nats => "nats-server",
            Between::Nginx => "nginx",
            Between::Haproxy => "haproxy",
        }
    }

    fn what(self) -> &'static str {
        match self {
            Between::Floor => "raw io_uring echo, with nobody behind it",
            Between::Native => "CALL to REQUEST, ANSWER to REPLY",
            Between::Http => "CALL to POST, its answer to REPLY",
            Between::Nats => "PUB with a subject for the answer, one responder",
            Between::Nginx => "stream, a connection to the echo for each client",
            Between::Haproxy => "mode tcp, a connection to the echo for each client",
        }
    }

    fn dialect(self) -> &'static dyn Dialect {
        match self {
            Between::Floor | Between::Nginx | Between::Haproxy => &Echo,
            Between::Native | Between::Http => &Calls,
            Between::Nats => &NatsRequests,
        }
    }

    fn is_own(self) -> bool {
        matches!(self, Between::Floor | Between::Native | Between::Http)
    }

    /// Starts it, with the back-end behind it.
    fn start(self, args: &CallsArgs, folder: &Path) -> Result<(Server, Option<Backend>), Failure> {
        let mut gateway = args.gateway.clone();
        match self {
            Between::Floor => Ok((Server::floor(args.conns, floor::BATCH)?, None)),
            Between::Native => {
                let services = free_address()?;
                gateway.also(&["--services-listen", &services.to_string()]);
                let server = gateway.start_on(args.conns, &[SERVER_CORE])?;
                Ok((server, Some(Backend::worker(services)?)))
            }
            Between::Http => {
                let backend = Backend::listen(Speech::Http)?;
                let service = format!("{SERVICE},transport=http,server={}", backend.address());
                gateway.also(&["--service", &service]);
                Ok((gateway.start_on(args.conns, &[SERVER_CORE])?, Some(backend)))
            }
            Between::Nats => {
                let nats = PEERS.iter().find(|peer| peer.name == self.name()).expect("it is known");
                let server = nats.start(folder, Layered { websocket: false, tls: None })?;
                let backend = Backend::responder(server.address())?;
                Ok((server, Some(backend)))
            }
            Between::Nginx => {
                let backend = Backend::listen(Speech::Echo)?;
                let server = start_in("nginx", &folder.join("nginx"), |folder, address| {
                    let module = match Path::new(NGINX_STREAM).exists() {
                        true => format!("load_module {NGINX_STREAM};\n"),
                        false => String::new(),
                    };
                    // One process, so that its CPU time is all there is.
                    let text = format!(
                        "{module}daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log;\n\
                         events {{ worker_connections 4096; }}\n\
                         stream {{ server {{ listen {address}; tcp_nodelay on; proxy_pass {}; }} }}\n",
                        backend.address(),
                        folder = folder.display(),
                    );
                    let mut command = Command::new("nginx");
                    command.arg("-p").arg(folder).arg("-c").arg(written(folder, "nginx.conf", &text)?);
                    Ok(command)
                })?;
                Ok((server, Some(backend)))
            }
            Between::Haproxy => {
                let backend = Backend::listen(Speech::Echo)?;
                let server = start_in("haproxy", &folder.join("haproxy"), |folder, address| {
                    let text = format!(
                        "global\n  nbthread 1\n  maxconn 4096\n\
                         defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 60s\n  timeout server 60s\n\
                         listen calls\n  bind {address}\n  server echo {}\n",
                        backend.address()
                    );
                    let mut command = Command::new("haproxy");
                    command.arg("-db").arg("-f").arg(written(folder, "haproxy.cfg", &text)?);
                    Ok(command)
                })?;
                Ok((server, Some(backend)))
            }
        }
    }
}

/// What was measured of one.
#[derive(Debug, Serialize)]
struct Case {
    name: &'static str,
    what: &'static str,
    version: String,
    rounds: Vec<Round>,
    /// Why another's was left out from some point on: it did not start, or broke under the load.
    failed: Option<String>,
    #[serde(skip)]
    between: Between,
}

/// CPU time for a call of one case over that of another, measured in the same rounds.
#[derive(Debug, Serialize)]
struct Ratio {
    case: &'static str,
    over: &'static str,
    #[serde(flatten)]
    of_rounds: Median,
}

#[derive(Debug, Serialize)]
struct Report<'a> {
    bench: &'static str,
    machine: Machine,
    command: Vec<String>,
    arguments: &'a CallsArgs,
    cases: Vec<Case>,
    ratios: Vec<Ratio>,
    /// Others that are not installed, each with the command that installs it.
    skipped: Vec<(&'static str, &'static str)>,
}

/// Runs `bench calls`.
pub(crate) fn run(args: &CallsArgs) -> Result<(), Failure> {
    if !(0.05..=3_600.0).contains(&args.secs) {
        return Err(Failure::Setup("--secs takes 0.05 to 3600".to_owned()));
    }
    if args.gateway.runs_already() {
        return Err(Failure::Setup("--gateway means nothing here: it is started with services of its own".to_owned()));
    }
    if args.gateway.shards_for(args.conns)? != 1 {
        return Err(Failure::Setup("calls are measured with one shard beside one core of others".to_owned()));
    }
    let known = OTHERS.map(|(other, ..)| other.name());
    if let Some(unknown) = args.peer.iter().find(|name| !known.contains(&name.as_str())) {
        return Err(Failure::Setup(format!("--peer {unknown} is not known: {} are", known.join(", "))));
    }
    let case = |between: Between, version: String| Case {
        name: between.name(),
        what: between.what(),
        version,
        rounds: Vec::new(),
        failed: None,
        between,
    };
    let own = [Between::Floor, Between::Native, Between::Http];
    let mut cases: Vec<Case> = own.map(|between| case(between, env!("CARGO_PKG_VERSION").to_owned())).into();
    let mut skipped = Vec::new();
    for (other, version, install) in OTHERS {
        if !args.peer.is_empty() && !args.peer.iter().any(|name| name == other.name()) {
            continue;
        }
        match version_of(Path::new(version[0]), &version[1..]) {
            Some(version) => cases.push(case(other, version)),
            None => {
                eprintln!("{} is not installed and left out; to install it: {install}", other.name());
                skipped.push((other.name(), install));
            }
        }
    }
    let folder = std::env::temp_dir().join(format!("trunkline-bench-calls-{}", std::process::id()));
    let outcome = measure(args, &mut cases, &folder);
    // What is left of it, if anything, is in the temporary folder.
    let _ = std::fs::remove_dir_all(&folder);
    outcome?;
    let ratios = ratios(&cases);
    let command = std::env::args().collect();
    let report = Report { bench: "calls", machine: Machine::this(), command, arguments: args, cases, ratios, skipped };
    print_summary(args, &report);
    match &args.json {
        Some(path) => write_json(path, &report),
        None => Ok(()),
    }
}

/// Measures all cases in each round, one after the other.
fn measure(args: &CallsArgs, cases: &mut [Case], folder: &Path) -> Result<(), Failure> {
    let count = cases.len();
    for round in 1..=args.rounds {
        // So that none always has the machine as the same other one left it.
        for at in turns(count, round) {
            let case = &mut cases[at];
            if case.failed.is_some() {
                continue;
            }
            match round_of(args, case, round, folder) {
                Ok(measured) => case.rounds.push(measured),
                Err(failure) if case.between.is_own() => return Err(failure),
                Err(failure) => {
                    eprintln!("{} is left out from here on: {failure}", case.name);
                    case.failed = Some(failure.to_string());
                }
            }
        }
    }
    Ok(())
}

fn round_of(args: &CallsArgs, case: &Case, round: u32, folder: &Path) -> Result<Round, Failure> {
    let (mut server, backend) = case.between.start(args, folder)?;
    let progress = Progress::new(format!("{} {round}/{}", case.name, args.rounds));
    let calls = Exchange {
        conns: args.conns,
        payload: args.payload,
        secs: args.secs,
        window: 1,
        dialect: case.between.dialect(),
        layers: Wire::Native.into(),
        echo: true,
        name: case.name,
    };
    let measured = on_load_core(|| exchange(&calls, &server, &progress)).map_err(|failure| server.explain(failure));
    server.kill();
    drop(backend);
    measured
}

/// Each case over the floor, and the gateway's over each of the others.
fn ratios(cases: &[Case]) -> Vec<Ratio> {
    let mut ratios = Vec::new();
    for case in cases {
        for over in cases {
            let is_wanted = match (case.between, over.between) {
                (Between::Floor, _) => false,
                (_, Between::Floor) => true,
                (Between::Native | Between::Http, _) => !over.between.is_own(),
                _ => false,
            };
            if is_wanted && !case.rounds.is_empty() && !over.rounds.is_empty() {
                let pairs = case.rounds.iter().zip(&over.rounds);
                let of_rounds = Median::of(pairs.map(|(one, other)| one.cpu_us_per_message / other.cpu_us_per_message));
                ratios.push(Ratio { case: case.name, over: over.name, of_rounds });
            }
        }
    }
    ratios
}

fn print_summary(args: &CallsArgs, report: &Report<'_>) {
    let CallsArgs { conns, payload, rounds, secs, .. } = args;
    println!("{}", report.machine);
    println!("{conns} clients, one call in flight each, payload {payload} B, {rounds} rounds of {secs} s; medians");
    let head =
        ["", "CPU µs/call", "lowest", "highest", "cores", "bench cores", "calls/s", "p50 µs", "p99 µs", "p99.9 µs"];
    let rows: Vec<Vec<String>> = report
        .cases
        .iter()
        .filter(|case| !case.rounds.is_empty())
        .map(|case| {
            let of = |value: fn(&Round) -> f64| median(case.rounds.iter().map(value));
            let cpu = || case.rounds.iter().map(|round| round.cpu_us_per_message);
            vec![
                case.name.to_owned(),
                format!("{:.3}", of(|round| round.cpu_us_per_message)),
                format!("{:.3}", cpu().fold(f64::INFINITY, f64::min)),
                format!("{:.3}", cpu().fold(0.0, f64::max)),
                format!("{:.2}", of(|round| round.cores)),
                format!("{:.2}", of(|round| round.bench_cores)),
                format!("{:.0}", of(|round| round.rate)),
                format!("{:.0}", of(|round| round.latency.p50_us)),
                format!("{:.0}", of(|round| round.latency_corrected.p99_us)),
                format!("{:.0}", of(|round| round.latency_corrected.p999_us)),
            ]
        })
        .collect();
    println!("{}\n{CORRECTED}", table(&head, &rows));
    for Ratio { case, over, of_rounds } in &report.ratios {
        println!("CPU for a call, {case} over {over}: {of_rounds}");
    }
    println!("{INTERVALS}\n");
    for case in &report.cases {
        println!("{}: {}; {}", case.name, case.what, case.version);
        for round in case.rounds.iter().filter(|round| round.silence_ms > SILENCE_MS_MAX) {
            println!("  warning: nothing was answered for {:.0} ms in a round", round.silence_ms);
        }
        if let Some(failed) = &case.failed {
            println!("  left out from some point on: {failed}");
        }
    }
    let calls: u64 = report.cases.iter().flat_map(|case| &case.rounds).map(|round| round.messages).sum();
    println!("{calls} calls in what was measured, each answered once, in order, with the right bytes");
}
