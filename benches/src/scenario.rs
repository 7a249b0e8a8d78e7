//! What the scenarios with many clients share: their arguments, and how a run is set up and told about.

use std::{
    path::PathBuf,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use clap::Args;
use hdrhistogram::Histogram;
use serde::Serialize;

use crate::{
    affinity::SERVER_CORE,
    crowd::{Crowd, Opening},
    failure::Failure,
    fleet::{Fleet, Targets},
    gateway::GatewayArgs,
    latency::{self, Latencies, Percentiles},
    ledger::{Flow, Ledger, Route},
    payload::PAYLOAD_BYTES_MIN,
    process::{CpuTime, own_cpu},
    progress::{Phase, Progress},
    report::{Machine, table},
    server::Server,
    site::{NodesArgs, Site},
    sockets::{Manner, can_open_fast},
    tls::TlsArgs,
    transport::Transport,
};

/// A bench whose own lateness is this much of a latency is the bottleneck; a sleep over many rings is exact to a
/// millisecond only.
const LATENESS_SHARE_MAX: f64 = 0.5;
const LATENESS_US_MIN: f64 = 2_000.0;

/// Who connects to what.
#[derive(Clone, Debug, Args, Serialize)]
pub(crate) struct Clients {
    /// Clients, each with a connection and a user of its own
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(2..=16_000_000))]
    pub(crate) conns: u32,
    /// Logins begun per second [default: as fast as it goes]
    #[arg(long, value_name = "PER_SECOND")]
    pub(crate) login_rate: Option<f64>,
    /// Logins under way at the same time
    #[arg(long, default_value_t = 1_024, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub(crate) opening: u32,
    /// Send LOGIN along with the SYN, as clients do that were there before (TCP Fast Open). The sysctl
    /// net.ipv4.tcp_fastopen has to allow it
    #[arg(long)]
    pub(crate) fast_open: bool,
    /// Heartbeat of each client in seconds: how often it sends PING
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=3_600))]
    pub(crate) heartbeat: u32,
    /// Payload of a message in bytes; at least 40, which hold what is needed to account for it
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(PAYLOAD_BYTES_MIN as i64..=65_504))]
    pub(crate) payload: u32,
    /// What the clients' frames travel in
    #[arg(long, value_name = "TRANSPORT", default_value_t)]
    pub(crate) transport: Transport,
    #[command(flatten)]
    #[serde(flatten)]
    pub(crate) tls: TlsArgs,
    #[command(flatten)]
    #[serde(flatten)]
    pub(crate) gateway: GatewayArgs,
    /// Write everything to this file as JSON
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}

impl Clients {
    /// Checks what clap cannot, and gets a certificate where one is needed.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        if self.login_rate.is_some_and(|rate| !(0.1..=10_000_000.0).contains(&rate)) {
            return Err(Failure::Setup("--login-rate takes 0.1 to 10000000 per second".to_owned()));
        }
        if self.transport.is_tls() {
            self.gateway.show_certificate()?;
        }
        if self.fast_open { can_open_fast() } else { Ok(()) }
    }

    /// Starts the gateway with all its shards on the servers' core, or finds the running one.
    pub(crate) fn start(&self) -> Result<Server, Failure> {
        self.gateway.start_on(self.conns, &[SERVER_CORE])
    }

    /// Starts the gateways of one cluster, or a single one on these cores.
    pub(crate) fn start_site(&self, nodes: &NodesArgs, cores: &[usize]) -> Result<Site, Failure> {
        Site::start(nodes, &self.gateway, self.conns, cores)
    }

    /// A crowd whose users are numbered from 1, with these flows between them; the first `attentive` receive all the
    /// time.
    pub(crate) fn crowd(&self, flows: Vec<Flow>, attentive: u32) -> Crowd {
        self.crowd_of((1..=u64::from(self.conns)).collect(), flows, attentive)
    }

    /// A crowd of these users.
    pub(crate) fn crowd_of(&self, users: Vec<u64>, flows: Vec<Flow>, attentive: u32) -> Crowd {
        let route = Route::Deliver { ack: false };
        let ledger = Ledger::new(route, run_number(), users, flows, self.payload as usize);
        Crowd::new(ledger, self.conns, attentive, self.heartbeat)
    }

    /// Rings for all clients.
    pub(crate) fn fleet(&self, targets: impl Into<Targets>) -> Result<Fleet, Failure> {
        self.fleet_of(targets, self.conns)
    }

    /// Rings for so many of them.
    pub(crate) fn fleet_of(&self, targets: impl Into<Targets>, connections: u32) -> Result<Fleet, Failure> {
        let manner = if self.fast_open { Manner::FastOpen } else { Manner::SpeaksFirst };
        let fleet = Fleet::new(targets, connections, 4 * (self.payload + 64))?;
        Ok(fleet.in_manner(manner).over(self.transport.layers(self.tls)))
    }

    /// The plan of a ramp over connections `first` to `end`.
    pub(crate) fn opening(&self, first: u32, end: u32) -> Opening {
        self.opening_of(first, end, 1)
    }

    /// The same for one of so many threads, which together do what is asked for.
    pub(crate) fn opening_of(&self, first: u32, end: u32, threads: u32) -> Opening {
        let rate = self.login_rate.map(|rate| rate / f64::from(threads));
        Opening::new(first, end, self.opening.div_ceil(threads), rate)
    }

    /// How often each client pings.
    pub(crate) fn heartbeat(&self) -> Duration {
        Duration::from_secs(self.heartbeat.into())
    }
}

/// Checks a length of time given in seconds.
pub(crate) fn seconds(flag: &str, secs: f64) -> Result<Duration, Failure> {
    if (0.1..=86_400.0).contains(&secs) {
        return Ok(Duration::from_secs_f64(secs));
    }
    Err(Failure::Setup(format!("{flag} takes 0.1 to 86400 seconds")))
}

/// Checks a rate of messages.
pub(crate) fn per_second(flag: &str, rate: f64) -> Result<f64, Failure> {
    if (0.1..=100_000_000.0).contains(&rate) {
        return Ok(rate);
    }
    Err(Failure::Setup(format!("{flag} takes 0.1 to 100000000 per second")))
}

/// Tells the messages of one run from those of another.
pub(crate) fn run_number() -> u32 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_millis() as u32)
}

/// Flows in both directions between neighbours: connections `first` and `first + 1`, and so on up to `end`.
pub(crate) fn neighbours(first: u32, end: u32) -> Vec<Flow> {
    (first..end).map(|from| Flow::new(from, first + ((from - first) ^ 1))).collect()
}

/// Logins of each second of a ramp.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Ramp {
    /// From the first connection to the last LOGIN_OK.
    pub(crate) seconds: f64,
    /// Logins per second over all of it.
    pub(crate) rate_mean: f64,
    /// Of its whole seconds, the one in the middle.
    pub(crate) rate_median: f64,
    /// Logins in each whole second.
    pub(crate) per_second: Vec<u32>,
    /// From connecting to LOGIN_OK.
    pub(crate) latency: Percentiles,
    /// The server's CPU time for a login, with the kernel's part.
    pub(crate) server_cpu_us: f64,
    /// The bench's CPU time for a login. The kernel does much of the server's end of a handshake in it.
    pub(crate) bench_cpu_us: f64,
    /// Share of one core the bench has used: near 1 it is the bottleneck.
    pub(crate) bench_cores: f64,
}

/// What one thread of the load has seen of a ramp.
#[derive(Debug)]
pub(crate) struct RampPart {
    logins: u64,
    /// Logins in each second since the ramp began, also in the last one, which was not over.
    per_second: Vec<u32>,
    latency: Histogram<u64>,
    cpu: Duration,
}

impl RampPart {
    /// Logs in the clients of `opening` in a ramp that began at `began`.
    pub(crate) fn of(
        crowd: &mut Crowd,
        fleet: &mut Fleet,
        opening: Opening,
        began: Instant,
        mut tick: impl FnMut(&Crowd),
    ) -> Result<RampPart, Failure> {
        crowd.login_latency.reset();
        let cpu_before = own_cpu();
        let logins_before = crowd.tally.logins;
        let mut per_second = Vec::new();
        let mut counted = 0;
        crowd.enter(fleet, opening, |crowd| {
            let logins = crowd.tally.logins - logins_before;
            while began.elapsed().as_secs() > per_second.len() as u64 {
                per_second.push((logins - counted) as u32);
                counted = logins;
            }
            tick(crowd);
        })?;
        let logins = crowd.tally.logins - logins_before;
        per_second.push((logins - counted) as u32);
        Ok(RampPart { logins, per_second, latency: crowd.login_latency.clone(), cpu: own_cpu() - cpu_before })
    }
}

impl Ramp {
    /// The whole ramp, which took so long.
    pub(crate) fn of(parts: &[RampPart], length: Duration, server_cpu: Duration) -> Ramp {
        let seconds = length.as_secs_f64();
        let logins: u64 = parts.iter().map(|part| part.logins).sum();
        let in_second = |second: usize| parts.iter().filter_map(|part| part.per_second.get(second)).sum();
        let per_second: Vec<u32> = (0..length.as_secs() as usize).map(in_second).collect();
        let mut latency = latency::histogram();
        for part in parts {
            // All of them have the same range and precision, so nothing can be out of it.
            latency.add(&part.latency).unwrap_or_else(|error| unreachable!("{error}"));
        }
        let bench_cpu: Duration = parts.iter().map(|part| part.cpu).sum();
        let each_us = |cpu: Duration| cpu.as_secs_f64() * 1e6 / logins.max(1) as f64;
        let rate_mean = logins as f64 / seconds;
        let whole = per_second.iter().copied().map(f64::from);
        Ramp {
            seconds,
            rate_mean,
            rate_median: if per_second.is_empty() { rate_mean } else { crate::report::median(whole) },
            per_second,
            latency: Percentiles::of(&latency),
            server_cpu_us: each_us(server_cpu),
            bench_cpu_us: each_us(bench_cpu),
            bench_cores: bench_cpu.as_secs_f64() / seconds,
        }
    }
}

/// How fast a ramp is now, beside its bar.
pub(crate) struct Pace<'b> {
    bar: &'b Phase,
    before: u64,
    told: (Instant, u64),
}

impl Pace<'_> {
    /// Of a ramp that begins after so many logins.
    pub(crate) fn new(bar: &Phase, before: u64) -> Pace<'_> {
        Pace { bar, before, told: (Instant::now(), before) }
    }

    /// So many there have been by now.
    pub(crate) fn tell(&mut self, logins: u64) {
        let since = self.told.0.elapsed();
        if since >= Duration::from_secs(1) {
            self.bar.say(format!("{:.0} logins/s", (logins - self.told.1) as f64 / since.as_secs_f64()));
            self.told = (Instant::now(), logins);
        }
        self.bar.set(logins - self.before);
    }
}

/// Logs in connections `first` to `end` of a server's processes and tells how that went.
pub(crate) fn ramp(
    crowd: &mut Crowd,
    fleet: &mut Fleet,
    clients: &Clients,
    range: std::ops::Range<u32>,
    pids: &[u32],
    bar: &Phase,
) -> Result<Ramp, Failure> {
    let (cpu_before, began) = (CpuTime::of_all(pids)?, Instant::now());
    let mut pace = Pace::new(bar, crowd.tally.logins);
    let opening = clients.opening(range.start, range.end);
    let part = RampPart::of(crowd, fleet, opening, began, |crowd| pace.tell(crowd.tally.logins))?;
    let length = began.elapsed();
    if crowd.heartbeat().is_some_and(|interval| length < interval) {
        crowd.spread_heartbeats(range);
    }
    let (server_cpu, _) = CpuTime::of_all(pids)?.since(&cpu_before);
    Ok(Ramp::of(&[part], length, server_cpu))
}

/// Messages that were to be sent in one stretch of time.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Stretch {
    pub(crate) seconds: f64,
    /// How many were to be sent.
    pub(crate) asked: u64,
    /// How many of them have arrived, whenever that was.
    pub(crate) delivered: u64,
    /// From the time a message was to be sent to taking it from the kernel. One that was never sent counts with the
    /// time until it was given up.
    pub(crate) messages: Percentiles,
    /// From that time to writing it.
    pub(crate) lateness: Percentiles,
    /// From PING to PONG.
    pub(crate) pongs: Percentiles,
}

impl Stretch {
    pub(crate) fn of(latencies: &Latencies, seconds: f64) -> Stretch {
        Stretch {
            seconds,
            asked: latencies.asked(),
            delivered: latencies.delivered(),
            messages: Percentiles::of(&latencies.messages),
            lateness: Percentiles::of(&latencies.lateness),
            pongs: Percentiles::of(&latencies.pongs),
        }
    }

    /// Says so when most of the latency was the bench's own, or fewer messages arrived than were to be sent.
    pub(crate) fn warn_if_late(&self, what: &str) {
        if self.delivered < self.asked {
            println!(
                "warning: {what}: {} of {} messages were never sent, because those before them took too long; each is \
                 in the latencies with the time until it was given up",
                self.asked - self.delivered,
                self.asked
            );
        }
        let late_us = self.lateness.p99_us;
        if late_us > LATENESS_US_MIN && late_us > self.messages.p99_us * LATENESS_SHARE_MAX {
            println!(
                "warning: {what}: the bench was late by {late_us:.0} µs itself (p99), so it is the bottleneck and not \
                 the server"
            );
        }
    }
}

/// A table of stretches by name.
pub(crate) fn stretches_table(stretches: &[(&str, &Stretch)]) -> String {
    let head: Vec<&str> = ["messages, from the time intended"].into_iter().chain(Percentiles::HEAD).collect();
    let rows: Vec<Vec<String>> = stretches
        .iter()
        .map(|(name, stretch)| [(*name).to_owned()].into_iter().chain(stretch.messages.cells()).collect())
        .collect();
    table(&head, &rows)
}

/// A run of a scenario as JSON.
#[derive(Debug, Serialize)]
pub(crate) struct Report<'a, A: Serialize, F: Serialize> {
    pub(crate) bench: &'static str,
    pub(crate) machine: Machine,
    pub(crate) command: Vec<String>,
    pub(crate) arguments: &'a A,
    pub(crate) shards: u32,
    #[serde(flatten)]
    pub(crate) findings: F,
}

/// Prints the machine and writes the JSON file if one was asked for.
pub(crate) fn report<A: Serialize, F: Serialize>(
    bench: &'static str,
    arguments: &A,
    clients: &Clients,
    findings: F,
) -> Result<(), Failure> {
    let Some(path) = &clients.json else { return Ok(()) };
    let report = Report {
        bench,
        machine: Machine::this(),
        command: std::env::args().collect(),
        arguments,
        shards: clients.gateway.shards_for(clients.conns)?,
        findings,
    };
    crate::report::write_json(path, &report)
}

/// The order of contestants in a round, the first of which is 1: another one each time, in which each comes behind each
/// other one equally often (E. J. Williams, Experimental designs balanced for the estimation of residual effects of
/// treatments, 1949), over as many rounds as there are contestants, or twice as many where that is an odd number.
pub(crate) fn turns(count: usize, round: u32) -> impl Iterator<Item = usize> {
    let (is_odd, round) = (count % 2 == 1, round.saturating_sub(1) as usize);
    // From the first one to both sides in alternation, and each round one further.
    let (shift, is_reversed) = if is_odd { (round / 2, round % 2 == 1) } else { (round, false) };
    (0..count).map(move |turn| {
        let place = if is_reversed { count - 1 - turn } else { turn };
        let step = if place % 2 == 1 { place.div_ceil(2) } else { count - place / 2 };
        (step + shift) % count
    })
}

/// Progress of a scenario.
pub(crate) fn progress(bench: &str, clients: &Clients) -> Progress {
    Progress::new(format!("{bench} {}", clients.conns))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn everybody_comes_behind_everybody_else_equally_often() {
        for count in 1..20 {
            let rounds = if count % 2 == 1 { 2 * count } else { count };
            let mut behind = HashMap::new();
            for round in 1..=rounds {
                let order: Vec<usize> = turns(count, round as u32).collect();
                let mut all = order.clone();
                all.sort_unstable();
                assert!(all.into_iter().eq(0..count), "each once: {order:?}");
                order.windows(2).for_each(|pair| *behind.entry((pair[0], pair[1])).or_insert(0) += 1);
            }
            assert_eq!(behind.len(), count * (count - 1), "of {count}");
            let each = rounds / count;
            assert!(behind.values().all(|times| *times == each), "of {count}: {behind:?}");
        }
    }
}
