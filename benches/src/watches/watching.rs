//! The users who come and go, and what each watcher knows of them, held against what is so.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use trunkline_proto::{
    Code, Frame, Header, Kind, Login, Presence, VERSION, Watch, encode, encode_message, prost::Message as _,
};

use super::WatchArgs;
use crate::{
    clock::now_ns,
    discrepancy::{Discrepancy, describe},
    exchange::Random,
    failure::Failure,
    fleet::{Arm, Driver, End, Fleet},
    latency::{Percentiles, histogram},
    progress::Progress,
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
/// A change that begins this much after its time is late.
const LATE: Duration = Duration::from_millis(50);
/// Changes begun in one turn.
const BURST_MAX: u64 = 1_024;
/// Longer than any run, so that nobody has to ping.
const HEARTBEAT_SECS: u32 = 600;
/// Users looked at for one who may change.
const LOOK_MAX: u32 = 64;

pub(super) fn now_ms() -> u64 {
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
pub(super) struct Begun {
    pub(super) late: u64,
    pub(super) skipped: u64,
}

pub(super) struct Watching {
    users: u32,
    each: u32,
    /// Of each user.
    stages: Vec<Stage>,
    pub(super) changed_ms: Vec<u64>,
    /// Of each watcher, of its users in their order.
    known: Vec<Vec<Known>>,
    /// Watches of which nothing was told yet, of all and of each watcher.
    untold: u64,
    untold_of: Vec<u32>,
    /// Since when users come and go.
    pub(super) since_ms: Option<u64>,
    pub(super) states: u64,
    pub(super) frames: u64,
    pub(super) changes: u64,
    pub(super) repeated: u64,
    pub(super) outdated: u64,
    pub(super) most_of_one: u64,
    pub(super) last_told_ms: u64,
    pub(super) logins: u64,
    pub(super) logouts: u64,
    /// Users who are entering or leaving.
    moving: u32,
    pub(super) lag_online: Histogram<u64>,
    pub(super) lag_offline: Histogram<u64>,
}

impl Watching {
    /// All users are in, and nobody has asked.
    pub(super) fn new(args: &WatchArgs, watchers: u32) -> Watching {
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
    pub(super) fn allowed(&self, now_ms: u64) -> u64 {
        self.since_ms.map_or(0, |since_ms| 1 + (now_ms.saturating_sub(since_ms) + CLOCK_MS) / CHANGE_MS)
    }

    pub(super) fn turn_for(&mut self, fleet: &mut Fleet, length: Duration) -> Result<(), Failure> {
        let until = Instant::now() + length;
        while let Some(left) = until.checked_duration_since(Instant::now()) {
            fleet.turn(self, left)?;
        }
        Ok(())
    }

    /// Lets all watchers ask, and waits until each was told of all its users.
    pub(super) fn ask(&mut self, fleet: &mut Fleet, progress: &Progress) -> Result<(), Failure> {
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
    pub(super) fn change(
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
    pub(super) fn await_rest(&mut self, fleet: &mut Fleet) -> Result<(), Failure> {
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
    pub(super) fn await_truth(&mut self, fleet: &mut Fleet, progress: &Progress) -> Result<(), Failure> {
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
    pub(super) fn judge(&self) -> Result<(), Failure> {
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
    pub(super) fn last_states(&self) -> (Percentiles, Percentiles) {
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
