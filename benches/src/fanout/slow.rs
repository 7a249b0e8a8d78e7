//! `bench fanout --slow-percent`: a share of the members of a group stops reading while messages to all go on. What do
//! the others notice, and have the slow ones everything in the end?
//!
//! The group is a durable one at a gateway with a store of its own. In each round there is a stretch in which everybody
//! reads and one in which the slow members do not; behind that they read again, are told by HEADS that they have missed
//! something, and fetch it with SYNC. They ask for nothing before they are told. A round is over when each of them has
//! every message, once and in order; nobody else may miss anything, or be told that he did.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::Serialize;
use trunkline_proto::{
    Code, Frame, Header, Heads, Kind, Outcome, Sync, SyncOk, encode, encode_message, flags, prost::Message as _,
};

use super::FanoutArgs;
use super::room::{JOINING_MAX, NUMBER_BYTES, PATIENCE, SENDER_BYTES};
use crate::{
    affinity::on_load_core,
    clock::now_ns,
    counters::Counters,
    discrepancy::{Discrepancy, describe},
    failure::Failure,
    fleet::{Arm, Driver, Fleet},
    latency::{Percentiles, histogram},
    login::{Entrance, enter},
    process::CpuTime,
    progress::Progress,
    redis::Scratch,
    report::{INTERVALS, Machine, Median, median, table, write_json},
    server::Server,
};

/// The group: one whose messages are kept.
const GROUP: u64 = 1;
/// Messages of a page of SYNC.
const PAGE: u32 = 256;
/// When a page is asked for again that could not be had.
const AGAIN: Duration = Duration::from_millis(50);

/// One stretch of a round.
#[derive(Clone, Copy, Debug, Serialize)]
struct Stretch {
    casts: u64,
    deliveries: u64,
    /// CPU time of the gateway for one delivery, in microseconds.
    cpu_us: f64,
    /// From the send of a cast to each of its messages at each member that reads.
    latency: Percentiles,
}

/// One round.
#[derive(Clone, Copy, Debug, Serialize)]
struct Round {
    without: Stretch,
    with: Stretch,
    /// Copies for which a slow member's outbox had no room, as the gateway counts them.
    dropped: u64,
    /// HEADS that came to slow members, and pages that these asked for.
    heads: u64,
    pages: u64,
    /// Messages that came out of pages, and those of them that had come before one that was missing too.
    replayed: u64,
    overtaken: u64,
    /// From when they read again until the last one had everything.
    caught_up_ms: f64,
}

#[derive(Debug, Serialize)]
struct Report<'a> {
    bench: &'static str,
    machine: Machine,
    arguments: &'a FanoutArgs,
    command: Vec<String>,
    slow: u32,
    rounds: Vec<Round>,
    /// The p99 of those that read, with slow members over without, by round.
    p99_ratio: Median,
}

/// What one member has.
#[derive(Clone, Copy, Debug, Default)]
struct Member {
    /// The number of the last message up to which it has every one, and its position.
    number: u64,
    whole: u64,
    /// How far the group is, as HEADS said.
    head: u64,
    is_asking: bool,
}

struct Members {
    /// Those from this one on are slow.
    slow_from: u32,
    of: Vec<Member>,
    payload: Vec<u8>,
    sent: u64,
    joined: u32,
    /// Messages with an answer.
    settled: u64,
    /// Messages that have come to members that are not slow; to the slow ones, as far as they have all before.
    arrived: u64,
    caught_up: u64,
    cast_ns: u64,
    latency: Histogram<u64>,
    heads: u64,
    pages: u64,
    replayed: u64,
    overtaken: u64,
    /// Members whose page could not be had.
    again: Vec<u32>,
}

/// Runs it.
pub(super) fn run(args: &FanoutArgs, percent: u32, length: Duration) -> Result<(), Failure> {
    let slow = (args.members * percent / 100).max(1);
    if args.members < 3 || slow > args.members - 2 {
        return Err(Failure::Setup("--slow-percent needs members that send and read, and some that do not".to_owned()));
    }
    if args.gateway.runs_already() {
        return Err(Failure::Setup("--slow-percent starts a gateway with a store: leave --gateway out".to_owned()));
    }
    let folder = Scratch::new("fanout-slow")?;
    let mut gateway = args.gateway.clone();
    let data = folder.path().join("store").display().to_string();
    gateway.also(&["--data-dir", &data, "--group-passive-above", "0"]);
    gateway.also(&[
        "--group-sends-per-sec",
        super::SENDS_PER_SEC,
        "--group-member-sends-per-sec",
        super::SENDS_PER_SEC,
    ]);
    // A connection that stays full for long is ended by the gateway; here it shall stay.
    gateway.also(&["--outbox-full-secs", &(2 * length.as_secs() + 120).to_string()]);
    let mut server = gateway.start(args.members)?;
    let outcome = on_load_core(|| measure(args, &server, slow, length));
    let rounds = outcome.map_err(|failure| server.explain(failure))?;
    server.stop()?;
    let ratios = rounds.iter().map(|round| round.with.latency.p99_us / round.without.latency.p99_us.max(1.0));
    let report = Report {
        bench: "fanout-slow",
        machine: Machine::this(),
        arguments: args,
        command: std::env::args().collect(),
        slow,
        p99_ratio: Median::of(ratios),
        rounds,
    };
    print_summary(&report);
    match &args.json {
        Some(path) => write_json(path, &report),
        None => Ok(()),
    }
}

fn measure(args: &FanoutArgs, server: &Server, slow: u32, length: Duration) -> Result<Vec<Round>, Failure> {
    let progress = Progress::new("slow members".to_owned());
    let users: Vec<u64> = (1..=u64::from(args.members)).collect();
    let mut fleet = Fleet::new(server, args.members, args.burst * (args.payload + 64))?;
    enter(&mut fleet, &users, Entrance::Login, Arm::Always, &progress)?;
    let mut members = Members {
        slow_from: args.members - slow,
        of: vec![Member::default(); users.len()],
        payload: vec![0; args.payload as usize],
        sent: 0,
        joined: 0,
        settled: 0,
        arrived: 0,
        caught_up: 0,
        cast_ns: 0,
        latency: histogram(),
        heads: 0,
        pages: 0,
        replayed: 0,
        overtaken: 0,
        again: Vec::new(),
    };
    members.join(&mut fleet, &progress)?;
    let mut rounds = Vec::new();
    for number in 1..=args.rounds {
        let title = format!("slow members {number}/{}", args.rounds);
        let progress = Progress::new(title);
        let mut round = members.begin();
        // By turns, so that neither always finds the machine as the other one left it.
        let order = if number % 2 == 1 { [false, true] } else { [true, false] };
        let mut stretches = [None; 2];
        for with_slow in order {
            let before = dropped(server)?;
            if with_slow {
                (members.slow_from..args.members).try_for_each(|member| fleet.disarm(member))?;
            }
            stretches[usize::from(with_slow)] = Some(members.stretch(args, &mut fleet, server, length, &progress)?);
            let began = Instant::now();
            if with_slow {
                (members.slow_from..args.members).try_for_each(|member| fleet.arm(member, Arm::Always))?;
            }
            members.catch_up(&mut fleet, &progress)?;
            if with_slow {
                round.caught_up_ms = began.elapsed().as_secs_f64() * 1e3;
                round.dropped = dropped(server)? - before;
            }
        }
        let [Some(without), Some(with)] = stretches else { unreachable!("both were measured") };
        (round.without, round.with) = (without, with);
        (round.heads, round.pages) = (members.heads, members.pages);
        (round.replayed, round.overtaken) = (members.replayed, members.overtaken);
        if round.dropped + round.overtaken != round.replayed {
            return Err(Failure::Accounts(format!(
                "the gateway counts {} copies for which there was no room, and slow members fetched {} messages, of \
                 which {} had come",
                round.dropped, round.replayed, round.overtaken
            )));
        }
        rounds.push(round);
    }
    fleet.close()?;
    Ok(rounds)
}

/// Copies for which an outbox had no room.
fn dropped(server: &Server) -> Result<u64, Failure> {
    Ok(server.http().and_then(Counters::read)?.get("trunkline_group_copies_dropped_total"))
}

impl Members {
    fn begin(&mut self) -> Round {
        (self.heads, self.pages, self.replayed, self.overtaken) = (0, 0, 0, 0);
        let nothing = Stretch { casts: 0, deliveries: 0, cpu_us: 0.0, latency: Percentiles::default() };
        Round {
            without: nothing,
            with: nothing,
            dropped: 0,
            heads: 0,
            pages: 0,
            replayed: 0,
            overtaken: 0,
            caught_up_ms: 0.0,
        }
    }

    fn join(&mut self, fleet: &mut Fleet, progress: &Progress) -> Result<(), Failure> {
        let count = self.of.len() as u32;
        let bar = progress.phase("joins", count.into());
        let (mut asked, mut last_progress) = (0, Instant::now());
        while self.joined < count {
            // The first one makes the group.
            let most = if self.joined == 0 { 1 } else { JOINING_MAX };
            while asked < count && asked - self.joined < most {
                fleet.stage(asked, |out| {
                    let header = Header { kind: Kind::GroupJoin, flags: 0, aux: 0, id: 1, peer: GROUP, stamp: 0 };
                    encode(out, &header, &[]);
                });
                asked += 1;
            }
            let before = self.joined;
            fleet.turn(self, Duration::from_millis(100))?;
            bar.set(self.joined.into());
            if self.joined > before {
                last_progress = Instant::now();
            } else if last_progress.elapsed() > PATIENCE {
                let waiting_for = format!("GROUP_OK; {} of {count} are there", self.joined);
                return Err(Failure::Stalled { waiting_for, after: PATIENCE });
            }
        }
        Ok(())
    }

    /// Casts for as long as told. Slow members count as little when they read: so there are as many deliveries either
    /// way that are waited for and measured.
    fn stretch(
        &mut self,
        args: &FanoutArgs,
        fleet: &mut Fleet,
        server: &Server,
        length: Duration,
        progress: &Progress,
    ) -> Result<Stretch, Failure> {
        let bar = progress.phase("casts", length.as_millis() as u64);
        self.latency.reset();
        let (cpu, began, mut casts) = (CpuTime::of(server.pid())?, Instant::now(), 0);
        while casts == 0 || began.elapsed() < length {
            self.cast(args, fleet)?;
            casts += 1;
            bar.set(began.elapsed().as_millis() as u64);
        }
        let spent = CpuTime::of(server.pid())?.since(&cpu).0;
        let deliveries = casts * u64::from(args.burst) * u64::from(self.slow_from - 1);
        let cpu_us = spent.as_secs_f64() * 1e6 / deliveries as f64;
        Ok(Stretch { casts, deliveries, cpu_us, latency: Percentiles::of(&self.latency) })
    }

    /// Sends some messages at once and waits until all that read have them, and the sender its answers.
    fn cast(&mut self, args: &FanoutArgs, fleet: &mut Fleet) -> Result<(), Failure> {
        let wanted = self.arrived + u64::from(args.burst) * u64::from(self.slow_from - 1);
        let first = self.sent + 1;
        self.sent += u64::from(args.burst);
        let (payload, last) = (&mut self.payload, self.sent);
        fleet.stage(0, |out| {
            for id in first..=last {
                payload[..NUMBER_BYTES].copy_from_slice(&id.to_be_bytes());
                let header = Header { kind: Kind::GroupSend, flags: flags::ACK, aux: 0, id, peer: GROUP, stamp: 0 };
                encode(out, &header, payload);
            }
        });
        self.cast_ns = now_ns();
        let mut last_progress = (Instant::now(), (0, 0));
        while (self.arrived, self.settled) != (wanted, self.sent) {
            let now = (self.arrived, self.settled);
            if now != last_progress.1 {
                last_progress = (Instant::now(), now);
            } else if last_progress.0.elapsed() > PATIENCE {
                let waiting_for = format!("messages; {} of {wanted} have come", self.arrived);
                return Err(Failure::Stalled { waiting_for, after: PATIENCE });
            }
            fleet.turn(self, Duration::from_millis(100))?;
        }
        Ok(())
    }

    /// Waits until each of the slow members has every message.
    fn catch_up(&mut self, fleet: &mut Fleet, progress: &Progress) -> Result<(), Failure> {
        let members = self.slow_from..self.of.len() as u32;
        let wanted = self.sent * members.len() as u64;
        let bar = progress.phase("catching up", wanted);
        let (mut last_progress, mut asked_again) = ((Instant::now(), 0), Instant::now());
        while self.caught_up < wanted {
            if self.caught_up != last_progress.1 {
                last_progress = (Instant::now(), self.caught_up);
            } else if last_progress.0.elapsed() > PATIENCE {
                let behind = members.clone().filter(|member| self.of[*member as usize].number < self.sent).count();
                let waiting_for = format!("slow members to have everything; {behind} have not");
                return Err(Failure::Stalled { waiting_for, after: PATIENCE });
            }
            if asked_again.elapsed() > AGAIN {
                asked_again = Instant::now();
                for member in std::mem::take(&mut self.again) {
                    fleet.stage(member, |out| self.ask(member, out));
                }
            }
            fleet.turn(self, AGAIN)?;
            bar.set(self.caught_up);
        }
        Ok(())
    }

    /// Asks for what lies behind the last message before which nothing is missing, if HEADS said that there is
    /// something.
    fn ask(&mut self, member: u32, out: &mut Vec<u8>) {
        let of = &mut self.of[member as usize];
        if of.head > of.whole && !of.is_asking {
            of.is_asking = true;
            self.pages += 1;
            let sync = Sync { after_stamp: of.whole, limit: PAGE, group: GROUP, ..Sync::default() };
            encode_message(out, Kind::Sync, 1, &sync);
        }
    }

    fn delivered(&mut self, member: u32, frame: &Frame<'_>, now_ns: u64) -> Result<(), Failure> {
        let user = u64::from(member) + 1;
        let (is_slow, replay) = (member >= self.slow_from, frame.flags & flags::REPLAY != 0);
        let of = &mut self.of[member as usize];
        let number = frame.body.get(SENDER_BYTES..SENDER_BYTES + NUMBER_BYTES);
        let number = number.and_then(|bytes| bytes.try_into().ok()).map(u64::from_be_bytes);
        let is_whole = frame.body.len() == SENDER_BYTES + self.payload.len() && frame.peer == GROUP && member != 0;
        let wanted = of.number + 1;
        match number.filter(|_| is_whole && (is_slow || !replay)) {
            Some(number) if number == wanted => {
                (of.number, of.whole) = (number, frame.stamp);
                if is_slow {
                    self.caught_up += 1;
                    self.replayed += u64::from(replay);
                } else {
                    self.arrived += 1;
                    // Within the bounds of the histogram, or as long as it can hold.
                    self.latency.saturating_record(now_ns.saturating_sub(self.cast_ns));
                }
                Ok(())
            }
            // One behind what is missing has found room: it comes out of the log once more, in its place.
            Some(number) if is_slow && !replay && number > wanted => {
                self.overtaken += 1;
                Ok(())
            }
            _ => {
                let frame = format!("message {number:?} of the group in place of {wanted}: {}", describe(frame));
                Err(Discrepancy::Unexpected { user, frame }.into())
            }
        }
    }

    fn told(&mut self, member: u32, frame: &Frame<'_>, out: &mut Vec<u8>) -> Result<(), Failure> {
        let heads = Heads::decode(frame.body).ok().filter(|_| member >= self.slow_from);
        let Some(heads) = heads else { return Err(Discrepancy::unexpected(u64::from(member) + 1, frame).into()) };
        self.heads += 1;
        let of = &mut self.of[member as usize];
        of.head =
            heads.heads.iter().filter(|head| head.group == GROUP).fold(of.head, |most, head| most.max(head.stamp));
        self.ask(member, out);
        Ok(())
    }

    fn page_over(&mut self, member: u32, frame: &Frame<'_>, out: &mut Vec<u8>) -> Result<(), Failure> {
        let page = SyncOk::decode(frame.body).ok();
        let of = &mut self.of[member as usize];
        let Some(page) = page.filter(|_| std::mem::take(&mut of.is_asking)) else {
            return Err(Discrepancy::unexpected(u64::from(member) + 1, frame).into());
        };
        if page.truncated || (page.complete && of.whole < of.head) {
            let what = if page.truncated { "is truncated: make the rounds shorter" } else { "ends too soon" };
            return Err(Failure::Accounts(format!("the log of the group, as user {} gets it, {what}", member + 1)));
        }
        self.ask(member, out);
        Ok(())
    }
}

impl Driver for Members {
    fn connected(&mut self, _: u32, _: &mut Vec<u8>) -> Result<Arm, Failure> {
        unreachable!("every connection is open")
    }

    fn frame(&mut self, member: u32, frame: &Frame<'_>, now_ns: u64, out: &mut Vec<u8>) -> Result<(), Failure> {
        let code = Code::from_u16(frame.aux);
        match frame.known() {
            Some(Kind::GroupDeliver) => self.delivered(member, frame, now_ns),
            Some(Kind::Heads) => self.told(member, frame, out),
            // Behind a login: nothing was kept.
            Some(Kind::SyncOk) if frame.aux == 0 => Ok(()),
            Some(Kind::SyncOk) if frame.aux == 1 => self.page_over(member, frame, out),
            Some(Kind::GroupOk) => {
                self.joined += 1;
                self.of[member as usize].whole = frame.stamp;
                Ok(())
            }
            Some(Kind::Sent) if member == 0 && Outcome::from_u16(frame.aux) == Some(Outcome::Stored) => {
                self.settled += 1;
                Ok(())
            }
            // A page that is to be asked for later.
            Some(Kind::Error) if frame.id == 0 && matches!(code, Some(Code::Overloaded | Code::ServiceUnavailable)) => {
                self.of[member as usize].is_asking = false;
                self.again.push(member);
                Ok(())
            }
            Some(Kind::Error) => {
                let frame = format!("{}: {}", describe(frame), code.map_or("unknown", Code::text));
                Err(Discrepancy::Unexpected { user: u64::from(member) + 1, frame }.into())
            }
            _ => Err(Discrepancy::unexpected(u64::from(member) + 1, frame).into()),
        }
    }

    fn lost(&mut self, member: u32, how: &str) -> Failure {
        Failure::ServerGone(format!("the connection of user {} was lost: {how}", member + 1))
    }
}

fn print_summary(report: &Report<'_>) {
    let args = report.arguments;
    println!("{}", report.machine);
    println!(
        "a group of {}, {} of which stop reading; {} B, {} at once; {} rounds of {} s with and without, medians",
        args.members, report.slow, args.payload, args.burst, args.rounds, args.secs
    );
    let head = ["the others", "p50", "p99", "max", "CPU/delivery", "casts"];
    let row = |name: &str, of: fn(&Round) -> &Stretch| {
        let all = |value: fn(&Stretch) -> f64| median(report.rounds.iter().map(|round| value(of(round))));
        vec![
            name.to_owned(),
            format!("{:.2} ms", all(|stretch| stretch.latency.p50_us) / 1e3),
            format!("{:.2} ms", all(|stretch| stretch.latency.p99_us) / 1e3),
            format!("{:.2} ms", all(|stretch| stretch.latency.max_us) / 1e3),
            format!("{:.3} µs", all(|stretch| stretch.cpu_us)),
            format!("{:.0}", all(|stretch| stretch.casts as f64)),
        ]
    };
    let rows = [row("without slow members", |round| &round.without), row("with slow members", |round| &round.with)];
    println!("{}", table(&head, &rows));
    println!("p99 with slow members over without: {}", report.p99_ratio);
    println!("{INTERVALS}");
    let sum = |of: fn(&Round) -> u64| report.rounds.iter().map(of).sum::<u64>();
    println!(
        "{} copies found no room and are counted; the slow members were told by {} HEADS and fetched as many messages \
         with {} pages, each once and in order",
        sum(|round| round.dropped),
        sum(|round| round.heads),
        sum(|round| round.pages)
    );
    println!("everything was there after {:.0} ms", median(report.rounds.iter().map(|round| round.caught_up_ms)));
    if report.rounds.iter().any(|round| round.dropped == 0) {
        println!(
            "note: in some round nothing was dropped: the kernel's buffers held it all; more --secs, --burst or \
             --payload fills them"
        );
    }
}
