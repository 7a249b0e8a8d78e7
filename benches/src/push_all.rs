//! One push to all who are there, at the pace that is set: how far it says it is, who has got it, and when.

use std::time::{Duration, Instant};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};
use trunkline_proto::{Frame, Kind, SERVICE_USERS};

use crate::{
    clock::now_ns,
    discrepancy::{Discrepancy, Message},
    failure::Failure,
    fleet::{Arm, Driver, Fleet, Taken, take_frames},
    http,
    payload::Label,
    process::{CpuTime, own_cpu},
    progress::Progress,
    report::{median, table},
    service::SERVICE,
};

/// Between two questions how far it is.
const ASK_EVERY: Duration = Duration::from_millis(20);
/// How long nothing may happen.
const PATIENCE: Duration = Duration::from_secs(20);
/// After the last one has it, how long the connections are watched for one too many.
const AFTERMATH: Duration = Duration::from_millis(50);
/// A shard is given what it may give in so many parts a second, one of them at once.
const PARTS_PER_SEC: f64 = 10.0;

/// What became of one.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Cast {
    /// Sessions that were given it, as the gateway says and as many as have got it.
    pub(crate) sessions: u64,
    /// From the request to the first and to the last session, and to the answer that says it is done, in milliseconds.
    first_ms: f64,
    last_ms: f64,
    done_ms: f64,
    /// Sessions a second, from the request to the last one, and the most that were allowed.
    per_second: f64,
    per_second_max: f64,
    /// More than that, whatever the gateway had over from before.
    too_fast: bool,
    /// CPU time of the gateway for one session, and its saturation and the bench's.
    cpu_us: f64,
    cores: f64,
    bench_cores: f64,
    /// Times it was asked how far it is.
    asked: u32,
}

/// How far it is, as the gateway says.
#[derive(Debug, Deserialize)]
struct Standing {
    id: String,
    state: String,
    delivered: u64,
    overloaded: u64,
    shards: u32,
    shards_done: u32,
    shards_lost: u32,
}

struct Listening {
    users: u32,
    run: u32,
    payload_bytes: usize,
    got: Vec<bool>,
    arrived: u64,
    first_ns: u64,
    last_ns: u64,
    /// Status and body of the last answer, until it is looked at.
    answer: Option<(u16, Vec<u8>)>,
}

/// Pushes to the `users` of the first connections by the one behind them.
pub(crate) fn run(
    fleet: &mut Fleet,
    users: u32,
    run: u32,
    payload_bytes: usize,
    per_second_max: f64,
    pid: u32,
    progress: &Progress,
) -> Result<Cast, Failure> {
    let bar = progress.phase("sessions", users.into());
    let mut listening = Listening {
        users,
        run,
        payload_bytes,
        got: vec![false; users as usize],
        arrived: 0,
        first_ns: 0,
        last_ns: 0,
        answer: None,
    };
    let mut payload = vec![0; payload_bytes];
    listening.label(now_ns()).write(&mut payload);
    let (payload, all) = (STANDARD.encode(&payload), u64::from(users));
    let body = format!("{{\"to\":{{\"all\":true}},\"service\":{SERVICE},\"payload\":\"{payload}\"}}");
    let (cpu_before, own_before) = (CpuTime::of(pid)?, own_cpu());
    let (from, from_ns) = (Instant::now(), now_ns());
    fleet.stage(users, |out| http::put_post("/v1/push", "application/json", body.as_bytes(), out));
    let mut standing = listening.answer(fleet, 202)?;
    let (mut asked, mut done_ms, mut last) = (0, None, (0, Instant::now()));
    while done_ms.is_none() || listening.arrived < all {
        let before = standing.delivered;
        listening.turn_for(fleet, ASK_EVERY)?;
        if done_ms.is_none() {
            let target = format!("/v1/pushes/{}", standing.id);
            fleet.stage(users, |out| http::put_get(&target, out));
            standing = listening.answer(fleet, 200)?;
            asked += 1;
        }
        if standing.delivered < before || standing.delivered > all {
            return Err(Failure::Accounts(format!(
                "a push to {all} has gone from {before} back or too far: {standing:?}"
            )));
        }
        if done_ms.is_none() && standing.state == "done" {
            done_ms = Some(from.elapsed().as_secs_f64() * 1e3);
        }
        bar.set(listening.arrived);
        if listening.arrived + standing.delivered > last.0 {
            last = (listening.arrived + standing.delivered, Instant::now());
        } else if last.1.elapsed() > PATIENCE {
            let waiting_for = format!("a push to {all}; {} have it, and {standing:?}", listening.arrived);
            return Err(Failure::Stalled { waiting_for, after: PATIENCE });
        }
    }
    let took = from.elapsed().as_secs_f64();
    let (cpu, _) = CpuTime::of(pid)?.since(&cpu_before);
    let bench_cores = (own_cpu() - own_before).as_secs_f64() / took;
    listening.turn_for(fleet, AFTERMATH)?;
    let Standing { delivered, overloaded, shards, shards_done, shards_lost, .. } = standing;
    if (delivered, overloaded, shards_done, shards_lost) != (all, 0, shards, 0) {
        return Err(Failure::Accounts(format!(
            "all {all} users have got a push, but it is told otherwise: {standing:?}"
        )));
    }
    let since = |ns: u64| ns.saturating_sub(from_ns) as f64 / 1e6;
    let last_ms = since(listening.last_ns);
    // A part may have been given just before, and one is given just after.
    let most = per_second_max * (last_ms / 1e3 + 2.0 / PARTS_PER_SEC);
    Ok(Cast {
        sessions: delivered,
        first_ms: since(listening.first_ns),
        last_ms,
        done_ms: done_ms.unwrap_or_default(),
        per_second: all as f64 * 1e3 / last_ms.max(1e-3),
        per_second_max,
        too_fast: all as f64 > most,
        cpu_us: cpu.as_secs_f64() * 1e6 / all as f64,
        cores: cpu.as_secs_f64() / took,
        bench_cores,
        asked,
    })
}

impl Listening {
    fn label(&self, sent_ns: u64) -> Label {
        let sender = SERVICE_USERS + u64::from(SERVICE);
        Label { sender, recipient: 0, sequence: 0, sent_ns, flow: 0, run: self.run }
    }

    fn turn_for(&mut self, fleet: &mut Fleet, length: Duration) -> Result<(), Failure> {
        let until = Instant::now() + length;
        while let Some(left) = until.checked_duration_since(Instant::now()) {
            fleet.turn(self, left)?;
        }
        Ok(())
    }

    /// Waits for the answer, which is to have this status.
    fn answer(&mut self, fleet: &mut Fleet, wanted: u16) -> Result<Standing, Failure> {
        let since = Instant::now();
        loop {
            if let Some((status, body)) = self.answer.take() {
                let standing = serde_json::from_slice(&body).ok().filter(|_| status == wanted);
                return standing.ok_or_else(|| {
                    let told = String::from_utf8_lossy(&body);
                    Failure::Accounts(format!("a push to all was answered with {status}: {told}"))
                });
            }
            if since.elapsed() > PATIENCE {
                let waiting_for = "the answer to a push to all".to_owned();
                return Err(Failure::Stalled { waiting_for, after: PATIENCE });
            }
            fleet.turn(self, Duration::from_millis(50))?;
        }
    }
}

impl Driver for Listening {
    fn connected(&mut self, _: u32, _: &mut Vec<u8>) -> Result<Arm, Failure> {
        unreachable!("every connection is open before anything is pushed")
    }

    fn received(&mut self, connection: u32, bytes: &[u8], now_ns: u64, out: &mut Vec<u8>) -> Result<Taken, Failure> {
        if connection < self.users {
            return take_frames(self, connection, bytes, now_ns, out);
        }
        match http::answer(bytes).map_err(|what| self.lost(connection, &what))? {
            None => Ok(Taken { bytes: 0, frames: 0 }),
            Some(answer) => {
                self.answer = Some((answer.status, answer.body.to_vec()));
                Ok(Taken { bytes: answer.length, frames: 1 })
            }
        }
    }

    fn frame(&mut self, connection: u32, frame: &Frame<'_>, now_ns: u64, _: &mut Vec<u8>) -> Result<(), Failure> {
        let user = u64::from(connection) + 1;
        if frame.known() != Some(Kind::Push) || frame.aux != SERVICE {
            return Err(Discrepancy::unexpected(user, frame).into());
        }
        let foreign = |what| Failure::from(Discrepancy::Foreign { user, what });
        let label = Label::read(frame.body).ok_or_else(|| foreign("a payload too short to be of this bench"))?;
        if label != self.label(label.sent_ns) {
            return Err(foreign("a push that is none of this run"));
        }
        let message = Message { sender: label.sender, recipient: user, sequence: 0 };
        if frame.body.len() != self.payload_bytes || !label.is_intact(frame.body) {
            return Err(Discrepancy::Altered { message, what: "payload" }.into());
        }
        if std::mem::replace(&mut self.got[connection as usize], true) {
            return Err(Discrepancy::Doubled(message).into());
        }
        if self.arrived == 0 {
            self.first_ns = now_ns;
        }
        self.arrived += 1;
        self.last_ns = now_ns;
        Ok(())
    }

    fn lost(&mut self, connection: u32, how: &str) -> Failure {
        let whose =
            if connection < self.users { format!("of user {}", connection + 1) } else { "that posts".to_owned() };
        Failure::ServerGone(format!("the connection {whose} was lost during a push to all: {how}"))
    }
}

/// What became of all.
pub(crate) fn print(casts: &[Cast]) {
    let of = |value: fn(&Cast) -> f64| median(casts.iter().map(value));
    let head = [
        "",
        "sessions",
        "CPU µs/session",
        "sessions/s",
        "allowed",
        "first ms",
        "last ms",
        "done ms",
        "cores",
        "bench cores",
    ];
    let row = vec![
        "to all".to_owned(),
        format!("{:.0}", of(|cast| cast.sessions as f64)),
        format!("{:.3}", of(|cast| cast.cpu_us)),
        format!("{:.0}", of(|cast| cast.per_second)),
        format!("{:.0}", of(|cast| cast.per_second_max)),
        format!("{:.1}", of(|cast| cast.first_ms)),
        format!("{:.1}", of(|cast| cast.last_ms)),
        format!("{:.1}", of(|cast| cast.done_ms)),
        format!("{:.2}", of(|cast| cast.cores)),
        format!("{:.2}", of(|cast| cast.bench_cores)),
    ];
    print!("{}", table(&head, &[row]));
    if casts.iter().any(|cast| cast.too_fast) {
        println!("  warning: sessions were given it faster than the pace that was set");
    }
}
