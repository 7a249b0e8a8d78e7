//! `bench watch`: some watch whether others are online, while those log in and out all the time.
//!
//! Whom a watcher is told of, and what, is held against what the bench itself has done: nobody is told of who is not
//! watched; of no user more than one change in five seconds; what the gateway says it has told is what has come; and
//! once the changes have an end, the last thing that every watcher was told of every user is true.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use clap::Args;
use hdrhistogram::Histogram;
use serde::Serialize;
use trunkline_proto::{
    Code, Frame, Header, Kind, Login, Presence, VERSION, Watch, encode, encode_message, prost::Message as _,
};

use crate::{
    affinity::{SERVER_CORE, on_load_core},
    clock::now_ns,
    counters::Counters,
    discrepancy::{Discrepancy, describe},
    exchange::Random,
    failure::Failure,
    fleet::{Arm, Driver, End, Fleet},
    gateway::GatewayArgs,
    latency::{Percentiles, histogram},
    login::{Entrance, enter},
    process::{CpuTime, UserMemory, own_cpu},
    progress::Progress,
    report::{Machine, table, write_json},
    scenario::{per_second, run_number, seconds},
    server::Server,
    sockets::Manner,
    traffic::keep_quiet,
    watch::{Spent, Watch as Sampler},
};

/// Watchers whose first answers are under way at the same time.
const ASKING_MAX: u32 = 1_024;
/// How long nothing may happen while answers, or clients, are awaited.
const PATIENCE: Duration = Duration::from_secs(20);
/// A user who has gone is told of so much later, and two changes of one user are so far apart.
const OFFLINE_MS: u64 = 10_000;
const CHANGE_MS: u64 = 5_000;
/// How far two changes may seem nearer to each other: the gateway counts in tenths of a second.
const CLOCK_MS: u64 = 500;
/// Users in one frame of a watcher, which gets one a second.
const FRAME_USERS: u64 = 256;
/// After all last states are true, how long it is looked whether they stay so.
const AFTERMATH: Duration = Duration::from_secs(2);
/// How long the gateway is left alone before its memory is read.
const CALM: Duration = Duration::from_millis(500);
/// A change that begins this much after its time is late.
const LATE: Duration = Duration::from_millis(50);
/// Changes begun in one turn.
const BURST_MAX: u64 = 1_024;
/// Longer than any run, so that nobody has to ping.
const HEARTBEAT_SECS: u32 = 600;
/// Users looked at for one who may change.
const LOOK_MAX: u32 = 64;

/// Arguments of `bench watch`.
#[derive(Clone, Debug, Args, Serialize)]
pub(crate) struct WatchArgs {
    /// Watches: one for each watcher and user
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..=100_000_000))]
    watches: u32,
    /// Users who are watched, and who log in and out
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(2..=16_000_000))]
    users: u32,
    /// Users that a watcher watches; the watches divided by it are the watchers
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    each: u32,
    /// Changes a second: one of the users, chosen at random, logs in, or out if it is in
    #[arg(long, default_value_t = 1_000.0)]
    changes: f64,
    /// How long, in seconds, 600 at most
    #[arg(long, default_value_t = 30.0)]
    secs: f64,
    /// Seed of the random choices [default: another one each time; it is printed]
    #[arg(long)]
    seed: Option<u64>,
    #[command(flatten)]
    #[serde(flatten)]
    gateway: GatewayArgs,
    /// Write everything to this file as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Memory of the watches.
#[derive(Clone, Copy, Debug, Serialize)]
struct Memory {
    /// Growth of the gateway's resident memory from before the first WATCH until all are answered, for each watch.
    rss_per_watch: f64,
    /// The gateway's tables of watches, for each watch.
    tables_per_watch: f64,
    /// Resident bytes with all watches, after the changes, and the most meanwhile.
    rss_watching: i64,
    rss_after: i64,
    rss_peak: u64,
    /// The last over the first.
    peak_ratio: f64,
}

/// What watchers were told.
#[derive(Clone, Debug, Serialize)]
struct Told {
    /// States of users that came, in all and in the time of the changes; and frames.
    states: u64,
    states_during: u64,
    states_per_second: f64,
    frames: u64,
    /// Of those during and after the changes: what was another state than before, the same once more, and what was not
    /// true any more when it came.
    changes: u64,
    repeated: u64,
    outdated: u64,
    /// Changes that the homes have told of, each to all who watch.
    changes_of_homes: u64,
    /// The most that one watcher was told of one user, and the most that could be.
    most_of_one: u64,
    most_of_one_allowed: u64,
}

#[derive(Debug, Serialize)]
struct Report<'a> {
    bench: &'static str,
    machine: Machine,
    command: Vec<String>,
    arguments: &'a WatchArgs,
    seed: u64,
    shards: u32,
    watchers: u32,
    /// Changes that users made, and how many a second.
    changes: u64,
    changes_per_second: f64,
    logins: u64,
    logouts: u64,
    /// Changes that began late, and those that never began because no user was at rest.
    late: u64,
    skipped: u64,
    /// From the first WATCH until all users were told of to all.
    answered_secs: f64,
    told: Told,
    memory: Memory,
    /// Of changes: from connecting until a watcher knows, and from LOGOUT until a watcher knows, in which 10 s are that
    /// the gateway waits.
    lag_online: Percentiles,
    lag_offline: Percentiles,
    /// The same of the last change of each user alone, as far as it was to be told.
    last_online: Percentiles,
    last_offline: Percentiles,
    /// From the last change of all until every watcher knew the last state of every user.
    all_true_secs: f64,
    /// CPU time of the gateway for one change, with the login or logout, and its saturation and the bench's.
    cpu_us_per_change: f64,
    cores: f64,
    bench_cores: f64,
    spent: Spent,
}

/// Runs `bench watch`.
pub(crate) fn run(args: &WatchArgs) -> Result<(), Failure> {
    let secs = seconds("--secs", args.secs)?;
    per_second("--changes", args.changes)?;
    if secs > Duration::from_secs(600) {
        return Err(Failure::Setup("--secs takes 600 at most".to_owned()));
    }
    if args.each > args.users {
        return Err(Failure::Setup(format!("--each {} is more than --users {}", args.each, args.users)));
    }
    if args.gateway.runs_already() {
        return Err(Failure::Setup("--gateway means nothing here: it is started with limits of its own".to_owned()));
    }
    let watchers = args.watches.div_ceil(args.each);
    let connections = args.users.checked_add(watchers).filter(|all| *all <= 16_000_000);
    let connections = connections.ok_or_else(|| {
        Failure::Setup(format!("{watchers} watchers and {} users are too many: raise --each", args.users))
    })?;
    let mut gateway = args.gateway.clone();
    let each = args.each.to_string();
    gateway.also(&["--watch", "open", "--watches-per-session-max", &each]);
    let shards = gateway.shards_for(connections)?;
    let seed = args.seed.unwrap_or_else(|| u64::from(run_number()));
    let mut server = gateway.start_on(connections, &[SERVER_CORE])?;
    let outcome = on_load_core(|| watch(args, &server, watchers, secs, seed));
    let report = outcome.map_err(|failure| {
        eprintln!("seed {seed}");
        server.explain(failure)
    })?;
    server.stop()?;
    // The load runs on one core, and knows of no more.
    let report = Report { shards, machine: Machine::this(), ..report };
    print_summary(&report);
    match &args.json {
        Some(path) => write_json(path, &report),
        None => Ok(()),
    }
}

/// Logs all in, lets them watch, lets users come and go, and looks what watchers know at the end.
fn watch<'a>(
    args: &'a WatchArgs,
    server: &Server,
    watchers: u32,
    secs: Duration,
    seed: u64,
) -> Result<Report<'a>, Failure> {
    let (pid, http, users) = (server.pid(), server.http()?, args.users);
    let progress = Progress::new("watch".to_owned());
    let everybody: Vec<u64> = (1..=u64::from(users + watchers)).collect();
    let mut fleet = Fleet::new(server, users + watchers, 2_048)?.in_manner(Manner::SpeaksFirst);
    enter(&mut fleet, &everybody, Entrance::Login, Arm::Always, &progress)?;
    keep_quiet(&mut fleet, &everybody, CALM)?;
    drop(everybody);
    let (memory_before, counters_before) = (UserMemory::of(pid)?, Counters::read(http)?);
    let mut all = Watching::new(args, watchers);
    let asked = Instant::now();
    all.ask(&mut fleet, &progress)?;
    let answered_secs = asked.elapsed().as_secs_f64();
    all.turn_for(&mut fleet, CALM)?;
    let (memory_watching, counters_watching) = (UserMemory::of(pid)?, Counters::read(http)?);
    let sampler = Sampler::start(&[pid]);

    let (cpu_before, own_before, states_before) = (CpuTime::of(pid)?, own_cpu(), all.states);
    let from = Instant::now();
    all.since_ms = Some(now_ms());
    let begun = all.change(&mut fleet, args.changes, secs, seed, &progress)?;
    let took = from.elapsed().as_secs_f64();
    let (cpu, _) = CpuTime::of(pid)?.since(&cpu_before);
    let bench_cores = (own_cpu() - own_before).as_secs_f64() / took;
    let states_during = all.states - states_before;
    let last_change_ms = all.changed_ms.iter().copied().max().unwrap_or(0);

    all.await_rest(&mut fleet)?;
    all.await_truth(&mut fleet, &progress)?;
    let all_true_secs = all.last_told_ms.max(last_change_ms).saturating_sub(last_change_ms) as f64 / 1e3;
    all.turn_for(&mut fleet, AFTERMATH)?;
    all.judge()?;
    let counters = Counters::read(http)?;
    let grown = |name: &str| counters.grown(&counters_before, name);
    for (name, came) in [("trunkline_watch_states_total", all.states), ("trunkline_watch_frames_total", all.frames)] {
        if grown(name) != came {
            let told = grown(name);
            return Err(Failure::Accounts(format!("{came} have come, and by {name} the gateway has told {told}")));
        }
    }
    let memory_after = UserMemory::of(pid)?;
    let spent = sampler.spent(from, Instant::now());
    let (last_online, last_offline) = all.last_states();
    fleet.close()?;
    let each = |bytes: f64| bytes / f64::from(args.watches);
    let changes = all.logins + all.logouts;
    Ok(Report {
        bench: "watch",
        machine: Machine::this(),
        command: std::env::args().collect(),
        arguments: args,
        seed,
        shards: 0,
        watchers,
        changes,
        changes_per_second: changes as f64 / took,
        logins: all.logins,
        logouts: all.logouts,
        late: begun.late,
        skipped: begun.skipped,
        answered_secs,
        told: Told {
            states: all.states,
            states_during,
            states_per_second: states_during as f64 / took,
            frames: all.frames,
            changes: all.changes,
            repeated: all.repeated,
            outdated: all.outdated,
            changes_of_homes: counters.grown(&counters_watching, "trunkline_watch_changes_total"),
            most_of_one: all.most_of_one,
            most_of_one_allowed: all.allowed(now_ms()),
        },
        memory: Memory {
            rss_per_watch: each((memory_watching.rss - memory_before.rss) as f64),
            tables_per_watch: each(counters_watching.get("trunkline_watch_bytes") as f64),
            rss_watching: memory_watching.rss,
            rss_after: memory_after.rss,
            rss_peak: spent.rss_peak,
            peak_ratio: spent.rss_peak as f64 / memory_watching.rss.max(1) as f64,
        },
        lag_online: Percentiles::of(&all.lag_online),
        lag_offline: Percentiles::of(&all.lag_offline),
        last_online,
        last_offline,
        all_true_secs,
        cpu_us_per_change: cpu.as_secs_f64() * 1e6 / changes.max(1) as f64,
        cores: cpu.as_secs_f64() / took,
        bench_cores,
        spent,
    })
}

fn now_ms() -> u64 {
    now_ns() / 1_000_000
}

/// Where a user is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Out,
    Entering,
    In,
    Leaving,
}

impl Stage {
    /// Whether it is to be online once all is told.
    fn is_online(self) -> bool {
        matches!(self, Stage::Entering | Stage::In)
    }

    fn is_at_rest(self) -> bool {
        matches!(self, Stage::Out | Stage::In)
    }
}

/// What a watcher was told of a user.
#[derive(Clone, Copy, Debug, Default)]
struct Known {
    state: State,
    /// Changes since the users began to come and go.
    changes: u16,
    /// When the last one was told, in milliseconds of the load's clock; a run is shorter than what 32 bits hold.
    told_ms: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Untold,
    Offline,
    Online,
    Unknown,
}

/// How the changes went.
struct Begun {
    late: u64,
    skipped: u64,
}

struct Watching {
    users: u32,
    each: u32,
    /// Of each user.
    stages: Vec<Stage>,
    changed_ms: Vec<u64>,
    /// Of each watcher, of its users in their order.
    known: Vec<Vec<Known>>,
    /// Watches of which nothing was told yet, of all and of each watcher.
    untold: u64,
    untold_of: Vec<u32>,
    /// Since when users come and go.
    since_ms: Option<u64>,
    states: u64,
    frames: u64,
    changes: u64,
    repeated: u64,
    outdated: u64,
    most_of_one: u64,
    last_told_ms: u64,
    logins: u64,
    logouts: u64,
    /// Users who are entering or leaving.
    moving: u32,
    lag_online: Histogram<u64>,
    lag_offline: Histogram<u64>,
}

impl Watching {
    /// All users are in, and nobody has asked.
    fn new(args: &WatchArgs, watchers: u32) -> Watching {
        let counts: Vec<u32> = (0..watchers).map(|watcher| args.each.min(args.watches - watcher * args.each)).collect();
        Watching {
            users: args.users,
            each: args.each,
            stages: vec![Stage::In; args.users as usize],
            changed_ms: vec![0; args.users as usize],
            known: counts.iter().map(|&count| vec![Known::default(); count as usize]).collect(),
            untold: args.watches.into(),
            untold_of: counts,
            since_ms: None,
            states: 0,
            frames: 0,
            changes: 0,
            repeated: 0,
            outdated: 0,
            most_of_one: 0,
            last_told_ms: 0,
            logins: 0,
            logouts: 0,
            moving: 0,
            lag_online: histogram(),
            lag_offline: histogram(),
        }
    }

    /// The first user, by connection, of a watcher; the others follow, and behind the last comes the first one of all.
    fn first_of(&self, watcher: u32) -> u32 {
        (u64::from(watcher) * u64::from(self.each) % u64::from(self.users)) as u32
    }

    /// The place of a user among those of a watcher.
    fn place(&self, watcher: u32, user: u64) -> Option<usize> {
        let connection = u32::try_from(user.checked_sub(1)?).ok().filter(|connection| *connection < self.users)?;
        let place = (connection + self.users - self.first_of(watcher)) % self.users;
        (place < self.known[watcher as usize].len() as u32).then_some(place as usize)
    }

    /// The user, by connection, at a place of a watcher.
    fn user_at(&self, watcher: u32, place: usize) -> u32 {
        ((u64::from(self.first_of(watcher)) + place as u64) % u64::from(self.users)) as u32
    }

    /// How many changes of one user there can have been by now.
    fn allowed(&self, now_ms: u64) -> u64 {
        self.since_ms.map_or(0, |since_ms| 1 + (now_ms.saturating_sub(since_ms) + CLOCK_MS) / CHANGE_MS)
    }

    fn turn_for(&mut self, fleet: &mut Fleet, length: Duration) -> Result<(), Failure> {
        let until = Instant::now() + length;
        while let Some(left) = until.checked_duration_since(Instant::now()) {
            fleet.turn(self, left)?;
        }
        Ok(())
    }

    /// Lets all watchers ask, and waits until each was told of all its users.
    fn ask(&mut self, fleet: &mut Fleet, progress: &Progress) -> Result<(), Failure> {
        let bar = progress.phase("watches answered", self.untold);
        let (watchers, all) = (self.known.len() as u32, self.untold);
        let (mut asked, mut last) = (0, (self.untold, Instant::now()));
        while self.untold > 0 {
            let answered = self.untold_of[..asked as usize].iter().filter(|untold| **untold == 0).count() as u32;
            while asked < watchers && asked - answered < ASKING_MAX {
                let count = self.known[asked as usize].len();
                let users = (0..count).map(|place| u64::from(self.user_at(asked, place)) + 1).collect();
                let watch = Watch { users, follow: true };
                fleet.stage(self.users + asked, |out| encode_message(out, Kind::Watch, 0, &watch));
                asked += 1;
            }
            fleet.turn(self, Duration::from_millis(50))?;
            bar.set(all - self.untold);
            if self.untold < last.0 {
                last = (self.untold, Instant::now());
            } else if last.1.elapsed() > PATIENCE {
                let waiting_for = format!("the answers to WATCH; {} of {all} are missing", self.untold);
                return Err(Failure::Stalled { waiting_for, after: PATIENCE });
            }
        }
        Ok(())
    }

    /// Lets users come and go, so many a second.
    fn change(
        &mut self,
        fleet: &mut Fleet,
        rate: f64,
        length: Duration,
        seed: u64,
        progress: &Progress,
    ) -> Result<Begun, Failure> {
        let bar = progress.phase("seconds of changes", length.as_secs());
        let (mut begun, mut outcome) = (0_u64, Begun { late: 0, skipped: 0 });
        let (mut random, from) = (Random(seed), Instant::now());
        loop {
            let elapsed = from.elapsed();
            let due = (elapsed.min(length).as_secs_f64() * rate) as u64;
            if elapsed >= length && begun >= due {
                return Ok(outcome);
            }
            for _ in 0..due.saturating_sub(begun).min(BURST_MAX) {
                let intended = Duration::from_secs_f64((begun + 1) as f64 / rate);
                outcome.late += u64::from(from.elapsed().saturating_sub(intended) > LATE);
                let first = random.below(self.users);
                let found = (0..LOOK_MAX.min(self.users)).map(|step| (first + step) % self.users);
                let found = found.into_iter().find(|user| self.stages[*user as usize].is_at_rest());
                match found {
                    Some(user) => self.begin(fleet, user)?,
                    None => outcome.skipped += 1,
                }
                begun += 1;
            }
            // What is late at the end is done all the same.
            fleet.turn(self, Duration::from_millis(1))?;
            bar.set(elapsed.as_secs());
            bar.say(format!("{} states told", self.states));
        }
    }

    /// A user comes, or goes.
    fn begin(&mut self, fleet: &mut Fleet, user: u32) -> Result<(), Failure> {
        self.changed_ms[user as usize] = now_ms();
        self.moving += 1;
        if self.stages[user as usize] == Stage::In {
            self.stages[user as usize] = Stage::Leaving;
            let header = Header { kind: Kind::Logout, flags: 0, aux: 0, id: 0, peer: 0, stamp: 0 };
            fleet.stage(user, |out| encode(out, &header, &[]));
            return Ok(());
        }
        self.stages[user as usize] = Stage::Entering;
        fleet.open_at(user, 1)
    }

    /// Waits until nobody is entering or leaving.
    fn await_rest(&mut self, fleet: &mut Fleet) -> Result<(), Failure> {
        let mut last = (self.moving, Instant::now());
        while self.moving > 0 {
            fleet.turn(self, Duration::from_millis(10))?;
            if self.moving < last.0 {
                last = (self.moving, Instant::now());
            } else if last.1.elapsed() > PATIENCE {
                let waiting_for = format!("{} users to log in or out", self.moving);
                return Err(Failure::Stalled { waiting_for, after: PATIENCE });
            }
        }
        Ok(())
    }

    /// Waits until all that was told last is true.
    fn await_truth(&mut self, fleet: &mut Fleet, progress: &Progress) -> Result<(), Failure> {
        let all: u64 = self.known.iter().map(|known| known.len() as u64).sum();
        let bar = progress.phase("last states", all);
        // Who has gone last is told of so late, of all users at once in as many frames.
        let frames = u64::from(self.each).div_ceil(FRAME_USERS);
        let patience = PATIENCE + Duration::from_millis(OFFLINE_MS + CHANGE_MS) + Duration::from_secs(frames);
        let mut last = (u64::MAX, Instant::now());
        loop {
            let untrue = self.untrue().count() as u64;
            bar.set(all - untrue);
            if untrue == 0 {
                return Ok(());
            }
            if untrue < last.0 {
                last = (untrue, Instant::now());
            } else if last.1.elapsed() > patience {
                return self.judge();
            }
            self.turn_for(fleet, Duration::from_millis(200))?;
        }
    }

    /// Watcher, user by connection, and what is known, wherever that is not so.
    fn untrue(&self) -> impl Iterator<Item = (u32, u32, State)> {
        (0..).zip(&self.known).flat_map(move |(watcher, known)| {
            known.iter().enumerate().filter_map(move |(place, known)| {
                let user = self.user_at(watcher, place);
                let is = if self.stages[user as usize].is_online() { State::Online } else { State::Offline };
                (known.state != is).then_some((watcher, user, known.state))
            })
        })
    }

    /// Whether what everybody was told last is true.
    fn judge(&self) -> Result<(), Failure> {
        let Some((watcher, user, state)) = self.untrue().next() else { return Ok(()) };
        let count = self.untrue().count();
        let is = if self.stages[user as usize].is_online() { "online" } else { "offline" };
        Err(Failure::Accounts(format!(
            "{count} last states are not true: user {} is {is}, and watcher {} knows {state:?}",
            u64::from(user) + 1,
            u64::from(self.users + watcher) + 1
        )))
    }

    /// How long the last change of each user took to be told, as far as it was told since: of those who are in, and of
    /// those who are out.
    fn last_states(&self) -> (Percentiles, Percentiles) {
        let (mut online, mut offline) = (histogram(), histogram());
        for (watcher, known) in (0..).zip(&self.known) {
            for (place, known) in known.iter().enumerate() {
                let changed_ms = self.changed_ms[self.user_at(watcher, place) as usize];
                let told_ms = u64::from(known.told_ms);
                // A change that was undone in time is never told.
                if changed_ms == 0 || told_ms < changed_ms {
                    continue;
                }
                let lag = if known.state == State::Online { &mut online } else { &mut offline };
                lag.saturating_record((told_ms - changed_ms) * 1_000_000);
            }
        }
        (Percentiles::of(&online), Percentiles::of(&offline))
    }

    /// A watcher was told of a user.
    fn told(&mut self, watcher: u32, user: u64, state: State) -> Result<(), Failure> {
        let watching = u64::from(self.users + watcher) + 1;
        let foreign = || Discrepancy::Foreign { user: watching, what: "the presence of a user whom it does not watch" };
        let place = self.place(watcher, user).ok_or_else(foreign)?;
        let (now_ms, at) = (now_ms(), (user - 1) as usize);
        let allowed = self.allowed(now_ms);
        let known = &mut self.known[watcher as usize][place];
        let before = std::mem::replace(&mut known.state, state);
        if before == State::Untold {
            self.untold -= 1;
            self.untold_of[watcher as usize] -= 1;
        }
        if self.since_ms.is_none() || before == State::Untold {
            return Ok(());
        }
        if before == state {
            self.repeated += 1;
            return Ok(());
        }
        known.changes = known.changes.saturating_add(1);
        known.told_ms = now_ms as u32;
        self.changes += 1;
        self.last_told_ms = now_ms;
        self.most_of_one = self.most_of_one.max(known.changes.into());
        if u64::from(known.changes) > allowed {
            return Err(Failure::Accounts(format!(
                "watcher {watching} was told of {} changes of user {user}, and {allowed} are the most by now",
                known.changes
            )));
        }
        let stage = self.stages[at];
        if stage.is_online() != (state == State::Online) || state == State::Unknown {
            self.outdated += 1;
            return Ok(());
        }
        let lag_ns = (now_ms.saturating_sub(self.changed_ms[at])) * 1_000_000;
        let lag = if state == State::Online { &mut self.lag_online } else { &mut self.lag_offline };
        lag.saturating_record(lag_ns);
        Ok(())
    }
}

impl Driver for Watching {
    fn connected(&mut self, connection: u32, out: &mut Vec<u8>) -> Result<Arm, Failure> {
        let user = u64::from(connection) + 1;
        let login = Login { version: VERSION, user, heartbeat_secs: HEARTBEAT_SECS, ..Login::default() };
        encode_message(out, Kind::Login, 0, &login);
        Ok(Arm::Always)
    }

    fn frame(&mut self, connection: u32, frame: &Frame<'_>, _: u64, _: &mut Vec<u8>) -> Result<(), Failure> {
        let user = u64::from(connection) + 1;
        match (frame.known(), connection.checked_sub(self.users)) {
            (Some(Kind::Presence), Some(watcher)) => {
                let presence = Presence::decode(frame.body).map_err(|error| Discrepancy::Unexpected {
                    user,
                    frame: format!("a PRESENCE whose body is no Presence: {error}"),
                })?;
                self.frames += 1;
                self.states += presence.users.len() as u64;
                for told in &presence.users {
                    let state = match (told.unknown, told.online) {
                        (true, _) => State::Unknown,
                        (false, true) => State::Online,
                        (false, false) => State::Offline,
                    };
                    self.told(watcher, told.user, state)?;
                }
                Ok(())
            }
            (Some(Kind::LoginOk), None) if self.stages[connection as usize] == Stage::Entering => {
                self.stages[connection as usize] = Stage::In;
                self.moving -= 1;
                self.logins += 1;
                Ok(())
            }
            (Some(Kind::Error), Some(_)) if Code::from_u16(frame.aux) == Some(Code::LimitReached) => {
                Err(Failure::Setup(
                    "the gateway has no room for so many watches: raise --gateway-arg=--watch-bytes-max=SIZE"
                        .to_owned(),
                ))
            }
            (Some(Kind::Bye | Kind::Error), _) => {
                let text = Code::from_u16(frame.aux).map_or("unknown", Code::text);
                let frame = format!("{}: {text}", describe(frame));
                Err(Discrepancy::Unexpected { user, frame }.into())
            }
            _ => Err(Discrepancy::unexpected(user, frame).into()),
        }
    }

    fn lost(&mut self, connection: u32, how: &str) -> Failure {
        Failure::ServerGone(format!("the connection of user {} was lost: {how}", u64::from(connection) + 1))
    }

    fn ended(&mut self, connection: u32, end: End) -> Result<(), Failure> {
        match (self.stages.get(connection as usize), &end) {
            (Some(Stage::Leaving), End::Closed) => Ok(()),
            _ => Err(self.lost(connection, &end.to_string())),
        }
    }

    fn freed(&mut self, connection: u32) {
        if self.stages.get(connection as usize) == Some(&Stage::Leaving) {
            self.stages[connection as usize] = Stage::Out;
            self.moving -= 1;
            self.logouts += 1;
        }
    }
}

fn print_summary(report: &Report<'_>) {
    let (args, told, memory) = (report.arguments, &report.told, &report.memory);
    println!("{}", report.machine);
    println!(
        "{} watchers watch {} users, {} watches; {} changes a second asked for, {} s, seed {}",
        report.watchers, args.users, args.watches, args.changes, args.secs, report.seed
    );
    let ms = |lag: &Percentiles| {
        let Percentiles { count, p50_us, p99_us, max_us, .. } = lag;
        match count {
            0 => "none was to be told".to_owned(),
            _ => format!("{:.0} / {:.0} / {:.0} of {count}", p50_us / 1e3, p99_us / 1e3, max_us / 1e3),
        }
    };
    let row = |what: &str, figure: String| vec![what.to_owned(), figure];
    let rows = vec![
        row("changes of users a second", format!("{:.0}", report.changes_per_second)),
        row("states told a second", format!("{:.0}", told.states_per_second)),
        row("CPU for a change with its login or logout, µs", format!("{:.1}", report.cpu_us_per_change)),
        row("cores: server + bench", format!("{:.2} + {:.2}", report.cores, report.bench_cores)),
        row(
            "memory of a watch: tables, process, B",
            format!("{:.1}, {:.1}", memory.tables_per_watch, memory.rss_per_watch),
        ),
        row("memory at its peak, over that with all watches", format!("{:.3}", memory.peak_ratio)),
        row("who has come: p50 / p99 / max until told, ms", ms(&report.lag_online)),
        row("who has gone, with 10 s of waiting, ms", ms(&report.lag_offline)),
        row("the last change of who is in, ms", ms(&report.last_online)),
        row("the last change of who is out, ms", ms(&report.last_offline)),
        row("all last states true after, s", format!("{:.1}", report.all_true_secs)),
        row(
            "changes of one user told to one, at most; allowed",
            format!("{}; {}", told.most_of_one, told.most_of_one_allowed),
        ),
        row("changes told by homes, each to all who watch", told.changes_of_homes.to_string()),
        row("states that were no change; not true any more", format!("{}; {}", told.repeated, told.outdated)),
        row("until all watches were answered, s", format!("{:.1}", report.answered_secs)),
    ];
    println!("{}", table(&["", "figure"], &rows));
    println!(
        "{} states told in {} frames, as many as the gateway counts; each watcher knows the last state of each of \
         its users",
        told.states, told.frames
    );
    report.spent.note_if_stolen("the changes");
    if report.late > 0 || report.skipped > 0 {
        println!(
            "warning: {} changes began late and {} never: the gateway or the bench is slower than --changes, or \
             --users is too small",
            report.late, report.skipped
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args() -> WatchArgs {
        use clap::Parser;
        #[derive(Parser)]
        struct Only {
            #[command(flatten)]
            watch: WatchArgs,
        }
        Only::parse_from(["watch", "--users", "5", "--each", "3", "--watches", "7"]).watch
    }

    #[test]
    fn watchers_share_the_users_out_and_know_whom_they_watch() {
        let watching = Watching::new(&args(), 3);
        let users = |watcher: u32, count| (0..count).map(|place| watching.user_at(watcher, place)).collect::<Vec<_>>();
        assert_eq!((users(0, 3), users(1, 3), users(2, 1)), (vec![0, 1, 2], vec![3, 4, 0], vec![1]));
        assert_eq!((watching.place(1, 1), watching.place(1, 2), watching.place(2, 2)), (Some(2), None, Some(0)));
        assert_eq!((watching.place(0, 0), watching.place(0, 6)), (None, None));
    }

    #[test]
    fn what_is_told_is_counted_and_held_against_what_is_so() {
        let mut watching = Watching::new(&args(), 3);
        for (watcher, users) in [(0, vec![1, 2, 3]), (1, vec![4, 5, 1]), (2, vec![2])] {
            for user in users {
                watching.told(watcher, user, State::Online).expect("watched");
            }
        }
        assert_eq!((watching.untold, watching.changes), (0, 0), "answers are no changes");
        assert!(watching.judge().is_ok() && watching.told(2, 3, State::Online).is_err());
        watching.since_ms = Some(now_ms());
        watching.stages[0] = Stage::Out;
        assert_eq!(watching.untrue().map(|(watcher, user, _)| (watcher, user)).collect::<Vec<_>>(), [(0, 0), (1, 0)]);
        watching.told(0, 1, State::Offline).expect("the first change");
        watching.told(0, 1, State::Offline).expect("the same once more");
        assert_eq!((watching.changes, watching.repeated, watching.outdated), (1, 1, 0));
        assert!(watching.judge().is_err_and(|failure| failure.to_string().contains("user 1 is offline")));
        let second = watching.told(0, 1, State::Online).expect_err("the second one in less than five seconds");
        assert!(second.to_string().contains("2 changes of user 1"), "{second}");
    }
}
