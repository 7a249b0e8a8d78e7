//! The clients of a scenario: they log in at a set pace, keep their sessions alive with heartbeats, send messages on a
//! schedule, leave, are cut off and come back. Whatever goes wrong with one of them is counted by kind, and the others
//! go on.

use std::{
    collections::BTreeMap,
    ops::Range,
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use trunkline_proto::{
    Code, Frame, Header, Kind, Login, LoginOk, VERSION, encode, encode_message, flags, prost::Message as _,
};

use crate::{
    backlog::Backlog,
    clock::now_ns,
    discrepancy::Discrepancy,
    failure::Failure,
    fleet::{Arm, Driver, End, Fleet},
    heartbeat::{Due, Heartbeats},
    latency::{self, Stretches},
    ledger::Ledger,
};

/// How long nothing may happen while something is awaited.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);
/// Messages written before the fleet is turned again, so that a late bench catches up without a pause.
const BURST_MAX: u64 = 2_048;
/// PINGs that are due written before the fleet is turned again: a wave of them must not hold up the messages that are
/// measured.
const PINGS_PER_STEP: u32 = 32;
/// PINGs of a roll call that are unanswered at a time.
const ROLL_CALL_WINDOW: u64 = 4_096;

/// Connections opened or cut before the fleet is turned again, so that nobody else waits for long.
const CONNECTIONS_PER_STEP: u32 = 64;

/// Connections that are closing at the same time: what arrives on the others of a ring waits behind the ends of these.
const CUTS_UNDER_WAY_MAX: usize = 128;

/// Where a client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Not connected.
    Out,
    /// Connecting, or waiting for LOGIN_OK.
    Entering,
    /// Logged in.
    In,
    /// Logged in, and a PING is on its way.
    Asked,
    /// Has sent LOGOUT.
    Leaving,
}

/// What has happened so far.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    /// Logged in now.
    pub(crate) inside: u32,
    /// Logins answered with LOGIN_OK, ever.
    pub(crate) logins: u64,
    /// Logins that came to nothing.
    pub(crate) refused: u64,
    /// Sessions that ended although their client did not want it.
    pub(crate) lost: u64,
    /// Sessions ended by LOGOUT.
    pub(crate) left: u64,
    /// PINGs sent.
    pings: u64,
    /// PONGs received.
    pub(crate) pongs: u64,
    entering: u32,
    leaving: u32,
}

impl Tally {
    /// Adds that of other clients.
    fn add(&mut self, other: &Tally) {
        self.inside += other.inside;
        self.logins += other.logins;
        self.refused += other.refused;
        self.lost += other.lost;
        self.left += other.left;
        self.pings += other.pings;
        self.pongs += other.pongs;
        self.entering += other.entering;
        self.leaving += other.leaving;
    }
}

/// When the clients of an open-loop schedule send: message `i` at `i / rate`, whatever has become of those before.
#[derive(Clone, Copy, Debug)]
struct Schedule {
    rate: f64,
    began_ns: u64,
    written: u64,
    /// Messages that are to be sent from then on are none of this schedule. Those before it are owed until they are
    /// written.
    ended_ns: Option<u64>,
}

impl Schedule {
    /// When a message is to be sent.
    fn intended_ns(&self, message: u64) -> u64 {
        self.began_ns + (message as f64 * 1e9 / self.rate) as u64
    }

    /// How many messages are to be sent by then.
    fn due(&self, now_ns: u64) -> u64 {
        let until_ns = self.ended_ns.map_or(now_ns, |ended_ns| ended_ns.min(now_ns));
        ((until_ns.saturating_sub(self.began_ns)) as f64 * self.rate / 1e9) as u64 + 1
    }

    /// A bench that writes more slowly than it was asked to makes up for it afterwards, for as long as the schedule
    /// was.
    fn is_given_up(&self, now_ns: u64) -> bool {
        self.ended_ns.is_some_and(|ended_ns| now_ns - ended_ns > ended_ns - self.began_ns)
    }
}

/// Clients, one for each connection of a fleet.
pub(crate) struct Crowd {
    stages: Vec<Stage>,
    /// When each client was last heard to begin something, an open, a login or a PING, in microseconds of the load's
    /// clock; wraps after 71 minutes.
    began_us: Vec<u32>,
    /// Connections below this one receive all the time, the others only what they wait for.
    attentive: u32,
    heartbeat_secs: u32,
    pub(crate) tally: Tally,
    /// What went wrong with clients, by kind.
    pub(crate) failures: BTreeMap<String, u64>,
    pub(crate) ledger: Ledger,
    pub(crate) login_latency: Histogram<u64>,
    pub(crate) stretches: Stretches,
    schedule: Option<Schedule>,
    /// Those with senders here, who take turns.
    flows: Vec<u32>,
    next_flow: usize,
    heartbeats: Option<Heartbeats>,
    /// To be cut after this turn.
    doomed: Vec<u32>,
    /// Slots that have become free.
    pub(crate) freed: Vec<u32>,
    /// Clients that have logged in since they were last asked for, when they are to be reported.
    entries: Option<Vec<u32>>,
    /// With a gateway that keeps messages: what each client is to get after its login. All receive all the time then.
    backlog: Option<Backlog>,
}

/// A range of connections that are being opened.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Opening {
    next: u32,
    first: u32,
    end: u32,
    /// Logins under way at the same time.
    under_way_max: u32,
    /// Opened per second; `None` is as fast as it goes.
    rate: Option<f64>,
    began_ns: u64,
}

fn now_us() -> u64 {
    now_ns() / 1_000
}

impl Opening {
    /// Opens connections `first` to `end`, as many at a time as told and at the given rate.
    pub(crate) fn new(first: u32, end: u32, under_way_max: u32, rate: Option<f64>) -> Opening {
        Opening { next: first, first, end, under_way_max, rate, began_ns: now_ns() }
    }

    /// When a connection is to be opened: at its turn, where there is a rate, also if too many others are under way
    /// then; or else now.
    fn intended_ns(&self, connection: u32) -> u64 {
        let at_rate = |rate: f64| self.began_ns + (f64::from(connection - self.first) * 1e9 / rate) as u64;
        self.rate.map_or_else(now_ns, at_rate)
    }

    fn due(&self, entering: u32) -> u32 {
        let room = self.under_way_max.saturating_sub(entering).min(self.end - self.next);
        let Some(rate) = self.rate else { return room };
        let due = (now_ns() - self.began_ns) as f64 / 1e9 * rate;
        room.min((due as u32).saturating_sub(self.next - self.first))
    }
}

impl Crowd {
    /// A crowd of the first `connections` users of `ledger`. Those below `attentive` receive all the time.
    pub(crate) fn new(ledger: Ledger, connections: u32, attentive: u32, heartbeat_secs: u32) -> Crowd {
        Crowd {
            stages: vec![Stage::Out; connections as usize],
            began_us: vec![0; connections as usize],
            attentive,
            heartbeat_secs,
            tally: Tally::default(),
            failures: BTreeMap::new(),
            flows: ledger.flows_from(connections),
            ledger,
            login_latency: latency::histogram(),
            stretches: Stretches::new(),
            schedule: None,
            next_flow: 0,
            heartbeats: None,
            doomed: Vec::new(),
            freed: Vec::new(),
            entries: None,
            backlog: None,
        }
    }

    /// The gateway keeps messages, and these are what each client gets after its next login.
    pub(crate) fn expect(&mut self, backlog: Backlog) {
        self.backlog = Some(backlog);
    }

    /// Steps on until each client has what was kept for it, and has been told that this is all.
    pub(crate) fn catch_up(&mut self, fleet: &mut Fleet, mut tick: impl FnMut(&Crowd)) -> Result<(), Failure> {
        let mut last_progress = (u64::MAX, Instant::now());
        loop {
            let Some(backlog) = self.backlog.as_ref().filter(|backlog| backlog.open() > 0) else { return Ok(()) };
            let done = backlog.messages() + u64::from(u32::MAX - backlog.open());
            if done != last_progress.0 {
                last_progress = (done, Instant::now());
            } else if last_progress.1.elapsed() > PATIENCE {
                let waiting_for = format!("the end of {} backlogs", backlog.open());
                let stalled = Failure::Stalled { waiting_for, after: PATIENCE };
                return Err(backlog.missing().map_or(stalled, Failure::from));
            }
            self.step(fleet, Duration::from_millis(5))?;
            tick(self);
        }
    }

    /// Messages of backlogs that have come.
    pub(crate) fn caught_up(&self) -> u64 {
        self.backlog.as_ref().map_or(0, Backlog::messages)
    }

    /// Whether a client receives all the time.
    fn always_receives(&self, connection: u32) -> bool {
        connection < self.attentive || self.backlog.is_some()
    }

    /// From now on [`Crowd::take_entries`] tells who has logged in.
    pub(crate) fn report_entries(&mut self) {
        self.entries = Some(Vec::new());
    }

    /// Clients that have logged in since the last call.
    pub(crate) fn take_entries(&mut self) -> Vec<u32> {
        self.entries.as_mut().map_or(Vec::new(), std::mem::take)
    }

    /// What is to be sent from now on belongs to a new stretch of time.
    pub(crate) fn begin_stretch(&mut self) {
        self.stretches.begin(now_ns());
    }

    /// Messages that are due and have not been written.
    pub(crate) fn owed(&self) -> u64 {
        self.schedule.map_or(0, |schedule| schedule.due(now_ns()).saturating_sub(schedule.written))
    }

    /// How many clients there are.
    pub(crate) fn connections(&self) -> u32 {
        self.stages.len() as u32
    }

    /// Connections below this one receive all the time.
    pub(crate) fn attentive(&self) -> u32 {
        self.attentive
    }

    /// How many flows are sent from here.
    pub(crate) fn own_flows(&self) -> usize {
        self.flows.len()
    }

    /// From now on `rate` messages are sent per second, the flows taking turns; `None` ends that once those have been
    /// written that are due.
    pub(crate) fn send_at(&mut self, rate: Option<f64>) {
        let now_ns = now_ns();
        if let Some(schedule) = &mut self.schedule {
            schedule.ended_ns.get_or_insert(now_ns);
        }
        let Some(rate) = rate.filter(|rate| *rate > 0.0 && !self.flows.is_empty()) else { return };
        self.give_up();
        self.schedule = Some(Schedule { rate, began_ns: now_ns, written: 0, ended_ns: None });
    }

    /// Ends the schedule. What it still owes has waited until now, and would have waited longer: leaving it out would
    /// leave out the worst.
    fn give_up(&mut self) {
        let Some(schedule) = self.schedule.take() else { return };
        let now_ns = now_ns();
        for message in schedule.written..schedule.due(now_ns) {
            let flow = self.take_next_flow();
            if self.ledger.flow(flow).is_lossy() {
                continue;
            }
            let intended_ns = schedule.intended_ns(message);
            let waited_ns = now_ns.saturating_sub(intended_ns);
            let latencies = self.stretches.of(intended_ns);
            latencies.lateness.saturating_record(waited_ns);
            latencies.messages.saturating_record(waited_ns);
            latencies.unsent += 1;
        }
    }

    /// From now on each client that logs in sends a PING about an interval after that and after each PING; `None` ends
    /// that.
    pub(crate) fn ping_every(&mut self, interval: Option<Duration>) {
        self.heartbeats = interval.map(|interval| Heartbeats::new(interval.as_micros() as u64, now_us()));
    }

    /// Time between two PINGs of a client.
    pub(crate) fn heartbeat(&self) -> Option<Duration> {
        self.heartbeats.as_ref().map(|heartbeats| Duration::from_micros(heartbeats.interval_us()))
    }

    /// Clients that came within less than an interval would go on to send their PINGs all at once: from now on those of
    /// `range` are spread over the interval, first come, first due.
    pub(crate) fn spread_heartbeats(&mut self, range: Range<u32>) {
        let Some(heartbeats) = &mut self.heartbeats else { return };
        let now_us = now_us();
        let apart_us = heartbeats.interval_us() as f64 / f64::from(range.len().max(1) as u32);
        for (connection, number) in range.zip(0_u32..) {
            if self.stages[connection as usize] == Stage::In {
                let since_us = now_us as u32;
                self.began_us[connection as usize] = since_us;
                heartbeats.add(Due { connection, since_us }, now_us + (apart_us * f64::from(number)) as u64);
            }
        }
    }

    /// Does what is due, turns the fleet once, and deals with what came of it. Returns how much happened.
    pub(crate) fn step(&mut self, fleet: &mut Fleet, patience: Duration) -> Result<usize, Failure> {
        self.ask(fleet)?;
        self.write(fleet);
        let patience = self.schedule.map_or(patience, |schedule| {
            patience.min(Duration::from_nanos(schedule.intended_ns(schedule.written).saturating_sub(now_ns())))
        });
        // PINGs that were slept over would go out in one burst, again and again.
        let patience = self.heartbeats.as_ref().map_or(patience, |heartbeats| heartbeats.wait(now_us(), patience));
        let happened = fleet.turn(self, patience)?;
        for connection in std::mem::take(&mut self.doomed) {
            fleet.cut(connection)?;
        }
        if self.tally.inside == 0 && self.tally.lost > 0 && self.tally.entering == 0 && self.tally.leaving == 0 {
            return Err(Failure::ServerGone(format!("every connection was lost: {}", self.complaints())));
        }
        Ok(happened)
    }

    /// Steps on for a while.
    pub(crate) fn run_for(
        &mut self,
        fleet: &mut Fleet,
        length: Duration,
        mut tick: impl FnMut(&mut Crowd),
    ) -> Result<(), Failure> {
        let end = Instant::now() + length;
        while let Some(left) = end.checked_duration_since(Instant::now()) {
            self.step(fleet, left.min(Duration::from_millis(50)))?;
            tick(self);
        }
        Ok(())
    }

    /// Opens and logs in a range of connections, until each of them is in or has failed.
    pub(crate) fn enter(
        &mut self,
        fleet: &mut Fleet,
        mut opening: Opening,
        mut tick: impl FnMut(&Crowd),
    ) -> Result<(), Failure> {
        let mut last_progress = Instant::now();
        while opening.next < opening.end || self.tally.entering > 0 {
            self.open_due(fleet, &mut opening)?;
            let before = self.tally.entering;
            let patience = if opening.due(before) > 0 { Duration::ZERO } else { Duration::from_millis(5) };
            if self.step(fleet, patience)? > 0 || before == 0 {
                last_progress = Instant::now();
            } else if last_progress.elapsed() > PATIENCE {
                let there = self.tally.inside;
                let waiting_for = format!("LOGIN_OK; {there} of {} are there", self.stages.len());
                return Err(Failure::Stalled { waiting_for, after: PATIENCE });
            }
            if self.tally.logins == 0 && self.tally.refused > 0 && self.tally.entering == 0 {
                return Err(Failure::ServerGone(format!("not one login succeeded: {}", self.complaints())));
            }
            tick(self);
        }
        Ok(())
    }

    /// Opens those connections of a range that are due.
    pub(crate) fn open_due(&mut self, fleet: &mut Fleet, opening: &mut Opening) -> Result<(), Failure> {
        let count = opening.due(self.tally.entering).min(CONNECTIONS_PER_STEP);
        if count == 0 {
            return Ok(());
        }
        let plan = *opening;
        self.open(fleet, opening.next, count, |connection| plan.intended_ns(connection))?;
        opening.next += count;
        Ok(())
    }

    /// Opens connections whose slots are free. `intended_ns` tells when each was to be opened, on the load's clock:
    /// from then on its login is timed.
    pub(crate) fn open(
        &mut self,
        fleet: &mut Fleet,
        first: u32,
        count: u32,
        intended_ns: impl Fn(u32) -> u64,
    ) -> Result<(), Failure> {
        for connection in first..first + count {
            self.stages[connection as usize] = Stage::Entering;
            self.began_us[connection as usize] = (intended_ns(connection) / 1_000) as u32;
        }
        self.tally.entering += count;
        fleet.open_at(first, count)
    }

    /// Cuts connections `first` to `end` off, as if their network were gone, and waits until their slots are free.
    pub(crate) fn cut(&mut self, fleet: &mut Fleet, first: u32, end: u32) -> Result<(), Failure> {
        self.freed.clear();
        let mut cut = 0;
        for connection in first..end {
            let stage = std::mem::replace(&mut self.stages[connection as usize], Stage::Out);
            if stage != Stage::Out {
                assert!(matches!(stage, Stage::In | Stage::Asked), "only sessions are cut off");
                self.tally.inside -= 1;
                cut += 1;
                fleet.cut(connection)?;
            }
            if (connection - first) % CONNECTIONS_PER_STEP == CONNECTIONS_PER_STEP - 1 {
                self.step(fleet, Duration::ZERO)?;
                self.await_freed(fleet, cut, CUTS_UNDER_WAY_MAX)?;
            }
        }
        self.await_freed(fleet, cut, 0)
    }

    /// Cuts off one that is in. [`Crowd::freed`] tells when its slot is free.
    pub(crate) fn cut_one(&mut self, fleet: &mut Fleet, connection: u32) -> Result<(), Failure> {
        let stage = std::mem::replace(&mut self.stages[connection as usize], Stage::Out);
        assert!(matches!(stage, Stage::In | Stage::Asked), "only sessions are cut off");
        self.tally.inside -= 1;
        fleet.cut(connection)
    }

    /// Steps on until at most `under_way` of the `cut` connections are still closing.
    fn await_freed(&mut self, fleet: &mut Fleet, cut: usize, under_way: usize) -> Result<(), Failure> {
        let mut last_progress = Instant::now();
        while self.freed.len() + under_way < cut {
            let before = self.freed.len();
            self.step(fleet, Duration::from_millis(5))?;
            if self.freed.len() > before {
                last_progress = Instant::now();
            } else if last_progress.elapsed() > PATIENCE {
                let waiting_for = format!("{} connections to close", cut - self.freed.len());
                return Err(Failure::Stalled { waiting_for, after: PATIENCE });
            }
        }
        Ok(())
    }

    /// Sends the next message of a flow now, which was to be sent at `intended_ns`.
    pub(crate) fn send(&mut self, fleet: &mut Fleet, flow: u32, intended_ns: u64) {
        let ledger = &mut self.ledger;
        if !ledger.flow(flow).is_lossy() {
            self.stretches.of(intended_ns).lateness.saturating_record(now_ns().saturating_sub(intended_ns));
        }
        fleet.stage(ledger.flow(flow).from, |out| ledger.send(flow, intended_ns, out));
    }

    /// Sends LOGOUT on a connection, which the server then closes.
    pub(crate) fn leave(&mut self, fleet: &mut Fleet, connection: u32) -> Result<(), Failure> {
        self.stages[connection as usize] = Stage::Leaving;
        self.tally.inside -= 1;
        self.tally.leaving += 1;
        let header = Header { kind: Kind::Logout, flags: 0, aux: 0, id: 0, peer: 0, stamp: 0 };
        fleet.stage(connection, |out| encode(out, &header, &[]));
        if !self.always_receives(connection) {
            fleet.arm(connection, Arm::OneFrame)?;
        }
        Ok(())
    }

    /// Sends what is due, and no more, and steps on until every message is accounted for, and a little longer in case
    /// one comes too many.
    pub(crate) fn settle(&mut self, fleet: &mut Fleet) -> Result<(), Failure> {
        self.send_at(None);
        let mut last_progress = Instant::now();
        let mut delivered = self.ledger.delivered();
        while self.schedule.is_some() || self.ledger.outstanding() > 0 {
            self.step(fleet, Duration::from_millis(50))?;
            if self.ledger.delivered() > delivered {
                last_progress = Instant::now();
            } else if last_progress.elapsed() > PATIENCE {
                self.give_up();
                break;
            }
            delivered = self.ledger.delivered();
        }
        self.run_for(fleet, Duration::from_millis(50), |_| ())?;
        Ok(self.ledger.settled()?)
    }

    /// Asks every client for a last PONG. Those that do not answer are lost. Heartbeats go on meanwhile, so that nobody
    /// is silent for longer than between two of them, however long the roll call takes; who has sent one since it began
    /// is not asked again.
    pub(crate) fn roll_call(&mut self, fleet: &mut Fleet, mut tick: impl FnMut(&Crowd)) -> Result<(), Failure> {
        let began = Instant::now();
        let mut rest = 0..self.connections();
        let mut last_progress = began;
        let unanswered = |tally: &Tally| tally.pings.saturating_sub(tally.pongs);
        let unanswered_before = unanswered(&self.tally);
        loop {
            let (mut asked, mut passed) = (0, 0);
            // The clock of heartbeats wraps, so it is compared by how long ago.
            let ago_us = began.elapsed().as_micros() as u32;
            while asked < PINGS_PER_STEP
                && passed < 100 * PINGS_PER_STEP
                && unanswered(&self.tally) < unanswered_before + ROLL_CALL_WINDOW
                && let Some(connection) = rest.next()
            {
                passed += 1;
                let silent_us = (now_us() as u32).wrapping_sub(self.began_us[connection as usize]);
                if self.stages[connection as usize] == Stage::In && silent_us > ago_us {
                    self.ping(fleet, connection)?;
                    asked += 1;
                }
            }
            if rest.is_empty() {
                self.ping_every(None);
            }
            let before = self.tally.pongs;
            self.step(fleet, Duration::from_millis(5))?;
            tick(self);
            if self.tally.pongs > before || asked > 0 {
                last_progress = Instant::now();
            }
            if rest.is_empty() && !self.stages.contains(&Stage::Asked) {
                return Ok(());
            }
            if last_progress.elapsed() > PATIENCE {
                for connection in 0..self.stages.len() as u32 {
                    if self.stages[connection as usize] == Stage::Asked || rest.contains(&connection) {
                        self.gone(connection, "no PONG");
                    }
                }
                return Ok(());
            }
        }
    }

    /// Adds what other clients of the same run have come to, once nothing happens any more.
    pub(crate) fn add(&mut self, other: &Crowd) {
        self.stages.extend_from_slice(&other.stages);
        self.tally.add(&other.tally);
        for (kind, count) in &other.failures {
            *self.failures.entry(kind.clone()).or_default() += count;
        }
        self.ledger.add(&other.ledger);
    }

    /// Kinds of failures with their counts, for a sentence.
    pub(crate) fn complaints(&self) -> String {
        let kinds = self.failures.iter().map(|(kind, count)| format!("{kind} ({count})"));
        kinds.collect::<Vec<_>>().join(", ")
    }

    /// Whether nothing went wrong with any client.
    pub(crate) fn judge(&self) -> Result<(), Failure> {
        if self.failures.is_empty() {
            return Ok(());
        }
        Err(Failure::ClientsLost { complaints: self.complaints(), clients: self.stages.len() as u32 })
    }

    fn ask(&mut self, fleet: &mut Fleet) -> Result<(), Failure> {
        let now_us = now_us();
        for _ in 0..PINGS_PER_STEP {
            let Some(due) = self.heartbeats.as_mut().and_then(|heartbeats| heartbeats.take(now_us)) else { break };
            if due.since_us != self.began_us[due.connection as usize] {
                // It has been gone and come back since.
                continue;
            }
            match self.stages[due.connection as usize] {
                Stage::In => self.ping(fleet, due.connection)?,
                Stage::Asked => self.gone(due.connection, "no PONG for a whole heartbeat"),
                Stage::Out | Stage::Entering | Stage::Leaving => {}
            }
        }
        Ok(())
    }

    fn ping(&mut self, fleet: &mut Fleet, connection: u32) -> Result<(), Failure> {
        self.stages[connection as usize] = Stage::Asked;
        self.tally.pings += 1;
        self.alive(connection, now_us());
        let header = Header { kind: Kind::Ping, flags: 0, aux: connection as u16, id: 0, peer: 0, stamp: 0 };
        fleet.stage(connection, |out| encode(out, &header, &[]));
        if !self.always_receives(connection) {
            fleet.arm(connection, Arm::OneFrame)?;
        }
        Ok(())
    }

    /// The client has logged in or sends a PING: the next one is due an interval later.
    fn alive(&mut self, connection: u32, now_us: u64) {
        let since_us = now_us as u32;
        self.began_us[connection as usize] = since_us;
        if let Some(heartbeats) = &mut self.heartbeats {
            let next_us = heartbeats.next_us(connection, now_us);
            heartbeats.add(Due { connection, since_us }, next_us);
        }
    }

    fn write(&mut self, fleet: &mut Fleet) {
        let Some(mut schedule) = self.schedule else { return };
        let now = now_ns();
        if schedule.is_given_up(now) {
            return self.give_up();
        }
        let due = schedule.due(now);
        for message in schedule.written..due.min(schedule.written + BURST_MAX) {
            let intended_ns = schedule.intended_ns(message);
            schedule.written += 1;
            let flow = self.take_next_flow();
            self.send(fleet, flow, intended_ns);
        }
        let is_over = schedule.ended_ns.is_some() && schedule.written >= due;
        self.schedule = (!is_over).then_some(schedule);
    }

    /// The flow whose turn it is.
    fn take_next_flow(&mut self) -> u32 {
        let flow = self.flows[self.next_flow];
        self.next_flow = (self.next_flow + 1) % self.flows.len();
        flow
    }

    fn elapsed_ns(&self, connection: u32, now_ns: u64) -> u64 {
        let elapsed_us = ((now_ns / 1_000) as u32).wrapping_sub(self.began_us[connection as usize]);
        u64::from(elapsed_us) * 1_000
    }

    /// A client is gone against its will.
    fn gone(&mut self, connection: u32, how: &str) {
        let stage = std::mem::replace(&mut self.stages[connection as usize], Stage::Out);
        let kind = match stage {
            Stage::Out => return,
            Stage::Entering => {
                self.tally.entering -= 1;
                self.tally.refused += 1;
                format!("login: {how}")
            }
            Stage::In | Stage::Asked => {
                self.tally.inside -= 1;
                self.tally.lost += 1;
                format!("session: {how}")
            }
            Stage::Leaving => {
                self.tally.leaving -= 1;
                self.tally.lost += 1;
                format!("logout: {how}")
            }
        };
        *self.failures.entry(kind).or_default() += 1;
        self.doomed.push(connection);
    }
}

impl Driver for Crowd {
    fn connected(&mut self, connection: u32, out: &mut Vec<u8>) -> Result<Arm, Failure> {
        let login = Login {
            version: VERSION,
            user: self.ledger.user(connection),
            agent: "bench".to_owned(),
            heartbeat_secs: self.heartbeat_secs,
            ..Login::default()
        };
        encode_message(out, Kind::Login, 0, &login);
        Ok(if self.always_receives(connection) { Arm::Always } else { Arm::OneFrame })
    }

    fn frame(&mut self, connection: u32, frame: &Frame<'_>, now_ns: u64, out: &mut Vec<u8>) -> Result<(), Failure> {
        let stage = self.stages[connection as usize];
        match (frame.known(), stage) {
            (Some(Kind::Deliver), _) if frame.flags & flags::ACK != 0 && self.backlog.is_some() => {
                let backlog = self.backlog.as_mut().expect("looked at above");
                Ok(backlog.received(connection, frame, out)?)
            }
            (Some(Kind::SyncOk), Stage::In | Stage::Asked) if self.backlog.is_some() => {
                Ok(self.backlog.as_mut().expect("looked at above").over(connection)?)
            }
            (Some(Kind::Deliver), _) => {
                let delivery = self.ledger.received(connection, frame, now_ns)?;
                if !delivery.lossy {
                    let intended_ns = now_ns.saturating_sub(delivery.latency_ns);
                    self.stretches.of(intended_ns).messages.saturating_record(delivery.latency_ns);
                }
                Ok(())
            }
            (Some(Kind::LoginOk), Stage::Entering) => {
                let user = self.ledger.user(connection);
                let malformed = |what: String| Discrepancy::Unexpected { user, frame: what };
                let ok = LoginOk::decode(frame.body)
                    .map_err(|error| malformed(format!("a LOGIN_OK whose body is no LoginOk: {error}")))?;
                if ok.heartbeat_secs < self.heartbeat_secs {
                    return Err(Failure::Setup(format!(
                        "the gateway grants a heartbeat of {} s and not of {} s: choose another --heartbeat, or raise its --heartbeat-secs-max",
                        ok.heartbeat_secs, self.heartbeat_secs
                    )));
                }
                self.login_latency.saturating_record(self.elapsed_ns(connection, now_ns));
                self.stages[connection as usize] = Stage::In;
                self.alive(connection, now_ns / 1_000);
                self.tally.entering -= 1;
                self.tally.inside += 1;
                self.tally.logins += 1;
                if let Some(entries) = &mut self.entries {
                    entries.push(connection);
                }
                Ok(())
            }
            (Some(Kind::Pong), Stage::Asked) if frame.aux == connection as u16 => {
                let elapsed_ns = self.elapsed_ns(connection, now_ns);
                self.stretches.of(now_ns.saturating_sub(elapsed_ns)).pongs.saturating_record(elapsed_ns);
                self.stages[connection as usize] = Stage::In;
                self.tally.pongs += 1;
                Ok(())
            }
            // It was late, and the client has been given up for it: counted, and about to be cut off.
            (Some(Kind::Pong | Kind::LoginOk), Stage::Out) => Ok(()),
            (Some(kind @ (Kind::Bye | Kind::Error)), _) => {
                let reason = Code::from_u16(frame.aux).map_or("unknown", Code::text);
                self.gone(connection, &format!("{} {} {reason}", kind.name(), frame.aux));
                Ok(())
            }
            _ => Err(Discrepancy::unexpected(self.ledger.user(connection), frame).into()),
        }
    }

    fn lost(&mut self, connection: u32, how: &str) -> Failure {
        Failure::ServerGone(format!("the connection of user {} was lost: {how}", self.ledger.user(connection)))
    }

    fn ended(&mut self, connection: u32, end: End) -> Result<(), Failure> {
        match (self.stages[connection as usize], &end) {
            (Stage::Leaving, End::Closed) => {
                self.stages[connection as usize] = Stage::Out;
                self.tally.leaving -= 1;
                self.tally.left += 1;
            }
            _ => self.gone(connection, &end.to_string()),
        }
        Ok(())
    }

    fn freed(&mut self, connection: u32) {
        self.freed.push(connection);
    }
}
