//! Pushes by HTTP to users who are there: each of some connections posts one, or a batch of them, and the next when
//! that is answered.

use std::time::{Duration, Instant};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Deserialize;
use trunkline_proto::{Frame, Kind};

use crate::{
    affinity::SERVER_CORE,
    clock::now_ns,
    cores::CoreTimes,
    discrepancy::Discrepancy,
    failure::Failure,
    fleet::{Arm, Driver, Fleet, Taken, take_frames},
    http,
    latency::ClosedLoop,
    ledger::Ledger,
    process::{CpuTime, cpu_of_threads, own_cpu},
    progress::Progress,
    push_round::Round,
    service::SERVICE,
    traffic::{acknowledge, lost, settle},
};

/// How long nothing may be answered.
const PATIENCE: Duration = Duration::from_secs(10);
/// The gateway's thread that takes requests.
const SERVICES_THREAD: &str = "services";
/// What of a push is not its payload, at most: an id has up to 20 digits.
const LINE_BYTES: usize = 96;

/// The longest a push in JSON can be.
pub(crate) fn line_bytes_max(payload: usize) -> usize {
    payload.div_ceil(3) * 4 + LINE_BYTES
}

/// What an answer says of one push.
#[derive(Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(default)]
struct Counts {
    delivered: u64,
    stored: u64,
    offline: u64,
    overloaded: u64,
    denied: u64,
    inbox_full: u64,
    accepted: u64,
    expired: u64,
    pending: u64,
}

/// Who posts what.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Posts {
    /// Users, on the first connections.
    pub(crate) users: u32,
    /// HTTP connections, behind them.
    pub(crate) clients: u32,
    /// Pushes of a batch; `None` posts one by one.
    pub(crate) lines: Option<u32>,
    /// Devices acknowledge, and answers say so.
    pub(crate) ack: bool,
    /// Traffic before the measurement.
    pub(crate) warmup: Duration,
    /// Its length.
    pub(crate) length: Duration,
}

/// A connection that posts.
#[derive(Default)]
struct Client {
    /// The flow of its next push.
    next: u32,
    /// Flow and number of what is not answered yet.
    under_way: Vec<(u32, u64)>,
    posted_ns: u64,
}

struct Posting<'a> {
    plan: Posts,
    ledger: &'a mut Ledger,
    clients: Vec<Client>,
    /// Those that may post.
    due: Vec<u32>,
    answering: bool,
    answered: u64,
    latencies: Option<ClosedLoop>,
    body: Vec<u8>,
}

impl Posts {
    /// Posts for as long as told; ends when all is answered and delivered, and nothing more has come.
    pub(crate) fn run(
        self,
        fleet: &mut Fleet,
        ledger: &mut Ledger,
        pid: u32,
        progress: &Progress,
    ) -> Result<Round, Failure> {
        let bar = progress.phase("seconds", (self.warmup + self.length).as_secs());
        let clients = (0..self.clients).map(|next| Client { next, ..Client::default() }).collect();
        let mut posting = Posting {
            plan: self,
            ledger,
            clients,
            due: (0..self.clients).collect(),
            answering: true,
            answered: 0,
            latencies: None,
            body: Vec::new(),
        };
        posting.run_until(fleet, Instant::now() + self.warmup)?;
        posting.latencies = Some(ClosedLoop::from(now_ns()));
        let (cores_before, own_before) = (CoreTimes::now()?, own_cpu());
        let (cpu_before, services_before) = (CpuTime::of(pid)?, cpu_of_threads(pid, SERVICES_THREAD)?);
        let (answered_before, from) = (posting.answered, Instant::now());
        posting.run_until(fleet, from + self.length)?;
        bar.set((self.warmup + self.length).as_secs());
        let seconds = from.elapsed().as_secs_f64();
        let (cpu, _) = CpuTime::of(pid)?.since(&cpu_before);
        let services = cpu_of_threads(pid, SERVICES_THREAD)?.saturating_sub(services_before);
        let bench_cores = (own_cpu() - own_before).as_secs_f64() / seconds;
        let server_core = CoreTimes::now()?.since(&cores_before, SERVER_CORE);
        let messages = posting.answered - answered_before;
        if let Some(latencies) = &mut posting.latencies {
            latencies.end(now_ns());
        }
        posting.answering = false;
        settle(fleet, &mut posting, |posting| &*posting.ledger)?;
        let latencies = posting.latencies.take().expect("set above");
        if messages == 0 {
            return Err(Failure::Accounts(format!(
                "not one push was answered in the {seconds:.1} s that were measured"
            )));
        }
        let each_us = |cpu: Duration| cpu.as_secs_f64() * 1e6 / messages as f64;
        Ok(Round {
            messages,
            rate: messages as f64 / seconds,
            cpu_us: each_us(cpu),
            services_cpu_us: Some(each_us(services)),
            per_second_and_services_core: Some(messages as f64 / services.as_secs_f64().max(1e-9)),
            cores: cpu.as_secs_f64() / seconds,
            bench_cores,
            server_core,
            latency: latencies.percentiles(),
            latency_corrected: latencies.corrected(),
            silence_ms: latencies.silence().as_secs_f64() * 1e3,
            checked: ledger.delivered(),
        })
    }
}

impl Posting<'_> {
    fn run_until(&mut self, fleet: &mut Fleet, end: Instant) -> Result<(), Failure> {
        let mut last = (self.answered, Instant::now());
        while let Some(left) = end.checked_duration_since(Instant::now()) {
            for client in std::mem::take(&mut self.due) {
                fleet.stage(self.plan.users + client, |out| self.post(client, out));
            }
            fleet.turn(self, left.min(Duration::from_millis(50)))?;
            if self.answered > last.0 {
                last = (self.answered, Instant::now());
            } else if last.1.elapsed() > PATIENCE {
                let waiting_for = format!("answers to pushes; {} have come", self.answered);
                return Err(Failure::Stalled { waiting_for, after: PATIENCE });
            }
        }
        Ok(())
    }

    /// Appends the next request of a client.
    fn post(&mut self, client: u32, out: &mut Vec<u8>) {
        let (plan, now_ns) = (self.plan, now_ns());
        let who = &mut self.clients[client as usize];
        who.posted_ns = now_ns;
        self.body.clear();
        for line in 0..plan.lines.unwrap_or(1) {
            let flow = who.next;
            who.next = if flow + plan.clients < plan.users { flow + plan.clients } else { client };
            let (user, sequence, payload) = self.ledger.post(flow, now_ns);
            who.under_way.push((flow, sequence));
            if line > 0 {
                self.body.push(b'\n');
            }
            put_push(user, plan.ack, payload, &mut self.body);
        }
        match plan.lines {
            None => http::put_post("/v1/push", "application/json", &self.body, out),
            Some(_) => http::put_post("/v1/push/batch", "application/x-ndjson", &self.body, out),
        }
    }

    /// A client's request was answered.
    fn answered(&mut self, client: u32, answer: http::Answer<'_>, now_ns: u64) -> Result<(), Failure> {
        let who = &mut self.clients[client as usize];
        let told = String::from_utf8_lossy(&answer.body[..answer.body.len().min(400)]).into_owned();
        if answer.status != 200 {
            return Err(Failure::Accounts(format!("a request to push was answered with {}: {told}", answer.status)));
        }
        let mut lines = answer.body.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        let expected = match self.plan.ack {
            true => Counts { delivered: 1, ..Counts::default() },
            false => Counts { accepted: 1, ..Counts::default() },
        };
        for (flow, sequence) in who.under_way.drain(..) {
            let line = lines.next().ok_or_else(|| Failure::Accounts(format!("an answer has too few lines: {told}")))?;
            let counts: Result<Counts, _> = serde_json::from_slice(line);
            if !counts.is_ok_and(|counts| counts == expected) {
                let line = String::from_utf8_lossy(line);
                return Err(Failure::Accounts(format!("a push to one user who is there ended otherwise: {line}")));
            }
            self.ledger.answered(flow, sequence)?;
            self.answered += 1;
        }
        if lines.next().is_some() {
            return Err(Failure::Accounts(format!("an answer has too many lines: {told}")));
        }
        if let Some(latencies) = &mut self.latencies {
            latencies.record(now_ns, now_ns.saturating_sub(who.posted_ns));
        }
        if self.answering {
            self.due.push(client);
        }
        Ok(())
    }
}

/// Appends a push as the API takes it.
fn put_push(user: u64, ack: bool, payload: &[u8], out: &mut Vec<u8>) {
    use std::io::Write as _;
    let ack = if ack { "" } else { ",\"ack\":false" };
    write!(out, "{{\"to\":{{\"user\":\"{user}\"}},\"service\":{SERVICE}{ack},\"payload\":\"")
        .expect("a vector takes all");
    let start = out.len();
    out.resize(start + payload.len().div_ceil(3) * 4, 0);
    let written = STANDARD.encode_slice(payload, &mut out[start..]).expect("there is room for all of it");
    out.truncate(start + written);
    out.extend_from_slice(b"\"}");
}

impl Driver for Posting<'_> {
    fn connected(&mut self, _: u32, _: &mut Vec<u8>) -> Result<Arm, Failure> {
        unreachable!("every connection is open before anything is pushed")
    }

    fn received(&mut self, connection: u32, bytes: &[u8], now_ns: u64, out: &mut Vec<u8>) -> Result<Taken, Failure> {
        if connection < self.plan.users {
            return take_frames(self, connection, bytes, now_ns, out);
        }
        let mut taken = Taken { bytes: 0, frames: 0 };
        while let Some(answer) = http::answer(&bytes[taken.bytes..]).map_err(|what| self.lost(connection, &what))? {
            taken.frames += 1;
            taken.bytes += answer.length;
            self.answered(connection - self.plan.users, answer, now_ns)?;
        }
        Ok(taken)
    }

    fn frame(&mut self, connection: u32, frame: &Frame<'_>, now_ns: u64, out: &mut Vec<u8>) -> Result<(), Failure> {
        if frame.known() != Some(Kind::Push) {
            return Err(Discrepancy::unexpected(self.ledger.user(connection), frame).into());
        }
        self.ledger.received(connection, frame, now_ns)?;
        if self.plan.ack {
            acknowledge(frame, out);
        }
        Ok(())
    }

    fn lost(&mut self, connection: u32, how: &str) -> Failure {
        if connection < self.plan.users {
            return lost(self.ledger, connection, how);
        }
        Failure::ServerGone(format!("a connection that posts was lost: {how}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_push_is_json_no_longer_than_was_said() {
        for length in [0, 1, 2, 3, 64] {
            let mut line = Vec::new();
            put_push(u64::MAX, false, &vec![7; length], &mut line);
            assert!(line.len() <= line_bytes_max(length), "{} B", line.len());
            let json: serde_json::Value = serde_json::from_slice(&line).expect("JSON");
            assert_eq!(json["to"]["user"], u64::MAX.to_string());
            assert_eq!((&json["service"], &json["ack"]), (&SERVICE.into(), &false.into()));
            let payload = STANDARD.decode(json["payload"].as_str().expect("a string")).expect("base64");
            assert_eq!(payload, vec![7; length]);
        }
    }
}
