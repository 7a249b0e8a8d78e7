//! Users who log in and take what was kept for them.

use std::time::{Duration, Instant};

use trunkline_proto::{Code, Frame, Kind, Login, LoginOk, VERSION, encode_message, prost::Message as _};

use crate::{
    backlog::Backlog,
    discrepancy::Discrepancy,
    failure::Failure,
    fleet::{Arm, Driver, Fleet},
    progress::Progress,
};

/// Logins under way at the same time: fewer than any listener's backlog.
const OPENING_MAX: u32 = 256;
/// How long nothing may come while something is awaited.
const PATIENCE: Duration = Duration::from_secs(30);
/// After the last message, how long the connections are watched for one too many.
const AFTERMATH: Duration = Duration::from_millis(50);
/// The heartbeat asked for, in seconds: longer than any phase of a bench, so that nobody has to ping.
const HEARTBEAT_SECS: u32 = 600;

/// Users with what they are to get, one for each connection.
pub(crate) struct Readers {
    users: Vec<u64>,
    /// See `Login.window`.
    window: u32,
    backlog: Backlog,
    inside: u32,
    /// When the last login was answered.
    all_inside: Option<Instant>,
}

/// How a backlog came.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CaughtUp {
    /// From the first connection to the last LOGIN_OK.
    pub(crate) inside: Duration,
    /// To the end of the last backlog.
    pub(crate) all: Duration,
    pub(crate) messages: u64,
}

impl Readers {
    /// `users` are those of the backlog's connections.
    pub(crate) fn new(users: Vec<u64>, window: u32, backlog: Backlog) -> Readers {
        Readers { users, window, backlog: backlog.within_window(window), inside: 0, all_inside: None }
    }

    /// Logs all in, as fast as it goes, and takes everything.
    pub(crate) fn catch_up(&mut self, fleet: &mut Fleet, progress: &Progress) -> Result<CaughtUp, Failure> {
        let count = self.users.len() as u32;
        let owed = (0..count).map(|connection| self.backlog.owed(connection)).sum();
        let bar = progress.phase("messages of backlogs", owed);
        let (from, mut last) = (Instant::now(), (0, Instant::now()));
        while self.backlog.open() > 0 {
            let opening = fleet.opened() - self.inside;
            fleet.open((count - fleet.opened()).min(OPENING_MAX.saturating_sub(opening)))?;
            fleet.turn(self, Duration::from_millis(50))?;
            let done = self.backlog.messages() + u64::from(self.inside) + u64::from(count - self.backlog.open());
            bar.set(self.backlog.messages());
            if done > last.0 {
                last = (done, Instant::now());
            } else if last.1.elapsed() > PATIENCE {
                return Err(self.stalled());
            }
        }
        let all = from.elapsed();
        self.keep_watch(fleet)?;
        let inside = self.all_inside.map_or(all, |at| at - from);
        Ok(CaughtUp { inside, all, messages: self.backlog.messages() })
    }

    /// Whatever comes now is one too many.
    fn keep_watch(&mut self, fleet: &mut Fleet) -> Result<(), Failure> {
        let end = Instant::now() + AFTERMATH;
        while let Some(left) = end.checked_duration_since(Instant::now()) {
            fleet.turn(self, left)?;
        }
        Ok(())
    }

    fn stalled(&self) -> Failure {
        if (self.inside as usize) < self.users.len() {
            let waiting_for = format!("LOGIN_OK; {} of {} are there", self.inside, self.users.len());
            return Failure::Stalled { waiting_for, after: PATIENCE };
        }
        match self.backlog.missing() {
            Some(missing) => missing.into(),
            None => {
                let waiting_for = format!("the end of {} backlogs, of which all has come", self.backlog.open());
                Failure::Stalled { waiting_for, after: PATIENCE }
            }
        }
    }
}

impl Driver for Readers {
    fn connected(&mut self, connection: u32, out: &mut Vec<u8>) -> Result<Arm, Failure> {
        let login = Login {
            version: VERSION,
            user: self.users[connection as usize],
            agent: "bench".to_owned(),
            heartbeat_secs: HEARTBEAT_SECS,
            window: self.window,
            ..Login::default()
        };
        encode_message(out, Kind::Login, 0, &login);
        Ok(Arm::Always)
    }

    fn frame(&mut self, connection: u32, frame: &Frame<'_>, _: u64, out: &mut Vec<u8>) -> Result<(), Failure> {
        let user = self.users[connection as usize];
        match frame.known() {
            Some(Kind::Deliver) => Ok(self.backlog.received(connection, frame, out)?),
            Some(Kind::SyncOk) => Ok(self.backlog.over(connection)?),
            Some(Kind::LoginOk) => {
                let unexpected = |frame| Discrepancy::Unexpected { user, frame };
                let ok = LoginOk::decode(frame.body)
                    .map_err(|error| unexpected(format!("a LOGIN_OK whose body is no LoginOk: {error}")))?;
                if ok.truncated {
                    return Err(unexpected("a LOGIN_OK that says truncated".to_owned()).into());
                }
                self.inside += 1;
                if self.inside as usize == self.users.len() {
                    self.all_inside = Some(Instant::now());
                }
                Ok(())
            }
            Some(Kind::Bye | Kind::Error) => {
                let text = Code::from_u16(frame.aux).map_or("unknown reason", Code::text).to_owned();
                Err(Failure::LoginRefused { user, code: frame.aux, text })
            }
            _ => Err(Discrepancy::unexpected(user, frame).into()),
        }
    }

    fn lost(&mut self, connection: u32, how: &str) -> Failure {
        let user = self.users[connection as usize];
        Failure::ServerGone(format!("the connection of user {user} was lost while it read its backlog: {how}"))
    }
}
