//! Traffic of known size: each flow keeps a number of messages in flight for a while, and every message is accounted for.

use std::time::{Duration, Instant};

use serde::Serialize;
use trunkline_proto::{Frame, Header, Kind, encode};

use crate::{
    clock::now_ns,
    failure::Failure,
    fleet::{Arm, Driver, Fleet},
    latency::{ClosedLoop, Percentiles},
    ledger::{Ledger, Route},
    login::Silence,
    process::CpuTime,
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
    /// CPU time of the server's process, or of all nodes' together, user and system, all threads, for each message delivered.
    pub(crate) cpu_us_per_message: f64,
    /// The share of it spent in user mode, sampled by the kernel at each tick.
    pub(crate) cpu_user_share: f64,
    /// CPU time over wall time: 1.0 is one core all the time.
    pub(crate) cpu_cores: f64,
    /// Of the messages under way in the measurement, whenever they arrived: from writing one to taking its bytes from the kernel.
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
}

/// Keeps the window of each flow full: a message that has been delivered lets its sender send the next.
///
/// Answering on the connection that received would be simpler, but then the messages of a pair clump: those under way in both directions
/// end up travelling together, two to a segment, and a message seems to cost half of what it does.
struct Exchange<'a> {
    ledger: &'a mut Ledger,
    latencies: Option<ClosedLoop>,
    answering: bool,
    /// Flows that may send, one entry for each message.
    due: Vec<u32>,
    ack: bool,
}

impl Driver for Exchange<'_> {
    fn connected(&mut self, _: u32, _: &mut Vec<u8>) -> Result<Arm, Failure> {
        unreachable!("every connection is open before traffic starts")
    }

    fn frame(&mut self, connection: u32, frame: &Frame<'_>, now_ns: u64, out: &mut Vec<u8>) -> Result<(), Failure> {
        if frame.known() == Some(Kind::Sent) {
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
            self.due.push(delivery.flow);
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

/// Runs one stretch over flows that are indexed by their sending connection, each connection being armed. Ends when
/// every message has been delivered (and confirmed) and nothing more has come.
pub(crate) fn run(
    fleet: &mut Fleet,
    ledger: &mut Ledger,
    route: Route,
    stretch: Stretch,
    pids: &[u32],
    progress: &Progress,
) -> Result<Measurement, Failure> {
    let bar = progress.phase("seconds", (stretch.warmup + stretch.length).as_secs());
    let ack = route == (Route::Deliver { ack: true });
    let mut exchange = Exchange { ledger, latencies: None, answering: true, due: Vec::new(), ack };
    for flow in 0..exchange.ledger.flow_count() as u32 {
        let from = exchange.ledger.flow(flow).from;
        assert_eq!(from, flow, "flows are indexed by their sender");
        let now_ns = now_ns();
        fleet.stage(from, |out| (0..stretch.window).for_each(|_| exchange.ledger.send(flow, now_ns, out)));
    }

    let start = Instant::now();
    turn_until(fleet, &mut exchange, start + stretch.warmup, |_| ())?;
    exchange.latencies = Some(ClosedLoop::from(now_ns()));
    let delivered_before = exchange.ledger.delivered();
    let cpu_before = CpuTime::of_all(pids)?;
    let measured_from = Instant::now();
    turn_until(fleet, &mut exchange, measured_from + stretch.length, |now| {
        bar.set(now.duration_since(start).as_secs());
    })?;
    let cpu_after = CpuTime::of_all(pids)?;
    let seconds = measured_from.elapsed().as_secs_f64();
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
        fleet.turn(exchange, Duration::from_millis(50).min(end - now))?;
        let Exchange { ledger, due, .. } = &mut *exchange;
        let sent_ns = now_ns();
        for flow in due.drain(..) {
            fleet.stage(flow, |out| ledger.send(flow, sent_ns, out));
        }
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
