//! Traffic of known size: each flow keeps a number of messages in flight for a while, and every message is accounted
//! for.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use serde::Serialize;
use trunkline_proto::{Frame, Header, Kind, encode};

use crate::{
    affinity::{LOAD_CORE, SERVER_CORE},
    clock::now_ns,
    cores::{CoreTimes, CoreUse},
    failure::Failure,
    fleet::{Arm, Driver, Fleet},
    latency::{ClosedLoop, Percentiles},
    ledger::{Ledger, Route},
    login::Silence,
    process::{CpuTime, own_cpu},
    progress::Progress,
    ring::RingCounters,
};

/// How long nothing may arrive while messages are under way.
const PATIENCE: Duration = Duration::from_secs(10);
/// After the last message is accounted for, how long the connections are watched for one too many.
const AFTERMATH: Duration = Duration::from_millis(50);

/// What a stretch of traffic has cost and how long its messages took.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Measurement {
    /// Messages delivered.
    pub(crate) messages: u64,
    /// Wall time.
    pub(crate) seconds: f64,
    /// Messages per second.
    pub(crate) rate: f64,
    /// CPU time of the server's process, or of all nodes' together, user and system, all threads, for each message
    /// delivered.
    pub(crate) cpu_us_per_message: f64,
    /// The share of it spent in user mode, sampled by the kernel at each tick.
    pub(crate) cpu_user_share: f64,
    /// The server's saturation: CPU time over wall time, 1.0 is one core all the time.
    pub(crate) cpu_cores: f64,
    /// The same of the bench's own thread.
    pub(crate) bench_cores: f64,
    /// What the core of the servers and that of the load did.
    pub(crate) server_core: CoreUse,
    pub(crate) load_core: CoreUse,
    /// Messages per second that the flows were held to, if they were.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) pace: Option<f64>,
    /// Of the messages under way in the measurement, whenever they arrived: from writing one to taking its bytes from
    /// the kernel.
    pub(crate) latency: Percentiles,
    /// As clients would see it that do not wait for the message before; see [`ClosedLoop::corrected`].
    pub(crate) latency_corrected: Percentiles,
    /// The longest time in which none of them arrived, in milliseconds.
    pub(crate) silence_ms: f64,
    /// Messages delivered in the whole run, warm-up and end included; each was checked.
    pub(crate) checked: u64,
    /// Marked redeliveries, which ask for nothing but another ACK.
    pub(crate) redelivered: u64,
    /// What the load's own rings went through, the whole run.
    pub(crate) load_rings: RingCounters,
}

/// Plan of a stretch of traffic.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stretch {
    /// Messages each flow keeps in flight.
    pub(crate) window: u32,
    /// Traffic before the measurement begins.
    pub(crate) warmup: Duration,
    /// Length of the measurement.
    pub(crate) length: Duration,
    /// Messages per second, all flows together, beyond which a flow waits with its next; `None` is as fast as it goes.
    pub(crate) pace: Option<f64>,
}

/// At most so many messages by now.
#[derive(Clone, Copy, Debug)]
struct Pace {
    rate: f64,
    began_ns: u64,
    sent: u64,
}

impl Pace {
    /// How long until the next message may go.
    fn wait(&self, now_ns: u64) -> Duration {
        let next_ns = self.began_ns + (self.sent as f64 * 1e9 / self.rate) as u64;
        Duration::from_nanos(next_ns.saturating_sub(now_ns))
    }
}

/// Keeps the window of each flow full: a message that has been delivered lets its sender send the next.
///
/// Answering on the connection that received would be simpler, but then the messages of a pair clump: those under way
/// in both directions end up travelling together, two to a segment, and a message seems to cost half of what it does.
struct Exchange<'a> {
    ledger: &'a mut Ledger,
    latencies: Option<ClosedLoop>,
    answering: bool,
    /// Flows that may send, one entry for each message.
    due: VecDeque<u32>,
    pace: Option<Pace>,
    ack: bool,
}

impl Exchange<'_> {
    /// Sends what may be sent now.
    fn send_due(&mut self, fleet: &mut Fleet) {
        let sent_ns = now_ns();
        while let Some(&flow) = self.due.front() {
            if let Some(pace) = &mut self.pace {
                if !pace.wait(sent_ns).is_zero() {
                    return;
                }
                pace.sent += 1;
            }
            self.due.pop_front();
            let ledger = &mut *self.ledger;
            fleet.stage(ledger.flow(flow).from, |out| ledger.send(flow, sent_ns, out));
        }
    }

    /// How long nothing has to be sent.
    fn patience(&self) -> Duration {
        const PATIENCE: Duration = Duration::from_millis(50);
        match &self.pace {
            Some(pace) if !self.due.is_empty() => pace.wait(now_ns()).min(PATIENCE),
            _ => PATIENCE,
        }
    }
}

impl Driver for Exchange<'_> {
    fn connected(&mut self, _: u32, _: &mut Vec<u8>) -> Result<Arm, Failure> {
        unreachable!("every connection is open before traffic starts")
    }

    fn frame(&mut self, connection: u32, frame: &Frame<'_>, now_ns: u64, out: &mut Vec<u8>) -> Result<(), Failure> {
        if matches!(frame.known(), Some(Kind::Sent | Kind::Pushed)) {
            return Ok(self.ledger.confirmed(connection, frame)?);
        }
        let delivery = self.ledger.received(connection, frame, now_ns)?;
        if self.ack {
            acknowledge(frame, out);
        }
        if delivery.again {
            return Ok(());
        }
        if let Some(latencies) = &mut self.latencies {
            latencies.record(now_ns, delivery.latency_ns);
        }
        if self.answering {
            self.due.push_back(delivery.flow);
        }
        Ok(())
    }

    fn lost(&mut self, connection: u32, how: &str) -> Failure {
        lost(self.ledger, connection, how)
    }
}

/// A connection lost while messages were under way.
pub(crate) fn lost(ledger: &Ledger, connection: u32, how: &str) -> Failure {
    Failure::ServerGone(format!("the connection of user {} was lost during traffic: {how}", ledger.user(connection)))
}

/// Appends the ACK a DELIVER with that flag asks for.
pub(crate) fn acknowledge(frame: &Frame<'_>, out: &mut Vec<u8>) {
    let header = Header { kind: Kind::Ack, flags: 0, aux: 0, id: frame.id, peer: frame.peer, stamp: frame.stamp };
    encode(out, &header, &[]);
}

/// Runs one stretch over all flows, each connection being armed. Ends when every message has been delivered (and
/// confirmed) and nothing more has come.
pub(crate) fn run(
    fleet: &mut Fleet,
    ledger: &mut Ledger,
    route: Route,
    stretch: Stretch,
    pids: &[u32],
    progress: &Progress,
) -> Result<Measurement, Failure> {
    let bar = progress.phase("seconds", (stretch.warmup + stretch.length).as_secs());
    let ack = route.has_ack();
    let pace = stretch.pace.map(|rate| Pace { rate, began_ns: now_ns(), sent: 0 });
    let mut exchange = Exchange { ledger, latencies: None, answering: true, due: VecDeque::new(), pace, ack };
    for flow in 0..exchange.ledger.flow_count() as u32 {
        let from = exchange.ledger.flow(flow).from;
        if pace.is_some() {
            continue;
        }
        let now_ns = now_ns();
        fleet.stage(from, |out| (0..stretch.window).for_each(|_| exchange.ledger.send(flow, now_ns, out)));
    }
    if pace.is_some() {
        // In turn, so that no connection sends all its messages at once.
        let flows = 0..exchange.ledger.flow_count() as u32;
        exchange.due.extend((0..stretch.window).flat_map(|_| flows.clone()));
    }

    let start = Instant::now();
    turn_until(fleet, &mut exchange, start + stretch.warmup, |_| ())?;
    exchange.latencies = Some(ClosedLoop::from(now_ns()));
    let delivered_before = exchange.ledger.delivered();
    let (cores_before, own_before) = (CoreTimes::now()?, own_cpu());
    let cpu_before = CpuTime::of_all(pids)?;
    let measured_from = Instant::now();
    turn_until(fleet, &mut exchange, measured_from + stretch.length, |now| {
        bar.set(now.duration_since(start).as_secs());
    })?;
    let cpu_after = CpuTime::of_all(pids)?;
    let seconds = measured_from.elapsed().as_secs_f64();
    let (cores_after, own_after) = (CoreTimes::now()?, own_cpu());
    let messages = exchange.ledger.delivered() - delivered_before;

    // Those that are still under way are the slowest, so they are waited for.
    if let Some(latencies) = &mut exchange.latencies {
        latencies.end(now_ns());
    }
    exchange.answering = false;
    settle(fleet, &mut exchange, |exchange| &*exchange.ledger)?;
    let latencies = exchange.latencies.take().expect("set above");
    if messages == 0 {
        return Err(Failure::Accounts(format!("not one message arrived in the {seconds:.1} s that were measured")));
    }
    let (cpu, cpu_user_share) = cpu_after.since(&cpu_before);
    Ok(Measurement {
        messages,
        seconds,
        rate: messages as f64 / seconds,
        cpu_us_per_message: cpu.as_secs_f64() * 1e6 / messages.max(1) as f64,
        cpu_user_share,
        cpu_cores: cpu.as_secs_f64() / seconds,
        bench_cores: (own_after - own_before).as_secs_f64() / seconds,
        server_core: cores_after.since(&cores_before, SERVER_CORE),
        load_core: cores_after.since(&cores_before, LOAD_CORE),
        pace: stretch.pace,
        latency: latencies.percentiles(),
        latency_corrected: latencies.corrected(),
        silence_ms: latencies.silence().as_secs_f64() * 1e3,
        checked: ledger.delivered(),
        redelivered: ledger.redelivered(),
        load_rings: fleet.counters(),
    })
}

fn turn_until(
    fleet: &mut Fleet,
    exchange: &mut Exchange<'_>,
    end: Instant,
    mut tick: impl FnMut(Instant),
) -> Result<(), Failure> {
    let mut last_progress = Instant::now();
    let mut delivered = exchange.ledger.delivered();
    loop {
        let now = Instant::now();
        if now >= end {
            return Ok(());
        }
        fleet.turn(exchange, exchange.patience().min(end - now))?;
        exchange.send_due(fleet);
        if exchange.ledger.delivered() > delivered {
            delivered = exchange.ledger.delivered();
            last_progress = now;
        } else if last_progress.elapsed() > PATIENCE {
            return Err(stalled(exchange.ledger));
        }
        tick(now);
    }
}

/// Turns the fleet until nothing is outstanding, then a little longer in case one message too many comes.
pub(crate) fn settle<D: Driver>(
    fleet: &mut Fleet,
    driver: &mut D,
    ledger: impl Fn(&D) -> &Ledger,
) -> Result<(), Failure> {
    let mut last_progress = Instant::now();
    let mut outstanding = ledger(driver).outstanding();
    while outstanding > 0 {
        fleet.turn(driver, Duration::from_millis(50))?;
        let now_outstanding = ledger(driver).outstanding();
        if now_outstanding < outstanding {
            last_progress = Instant::now();
        } else if last_progress.elapsed() > PATIENCE {
            return Err(stalled(ledger(driver)));
        }
        outstanding = now_outstanding;
    }
    let end = Instant::now() + AFTERMATH;
    while let Some(left) = end.checked_duration_since(Instant::now()) {
        fleet.turn(driver, left)?;
    }
    Ok(ledger(driver).settled()?)
}

/// The message that never came, or that none is missing although nothing comes.
fn stalled(ledger: &Ledger) -> Failure {
    match ledger.settled() {
        Err(discrepancy) => discrepancy.into(),
        Ok(()) => Failure::Stalled { waiting_for: "the next message".to_owned(), after: PATIENCE },
    }
}

/// Watches connections on which nothing may arrive.
pub(crate) fn keep_quiet(fleet: &mut Fleet, users: &[u64], length: Duration) -> Result<(), Failure> {
    let end = Instant::now() + length;
    let mut silence = Silence { users };
    while let Some(left) = end.checked_duration_since(Instant::now()) {
        fleet.turn(&mut silence, left)?;
    }
    Ok(())
}
