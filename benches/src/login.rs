//! Opening connections and logging their users in.

use std::time::{Duration, Instant};

use trunkline_proto::{Code, Frame, Kind, Login, LoginOk, VERSION, encode_message, prost::Message as _};

use crate::{
    discrepancy::{Discrepancy, describe},
    failure::Failure,
    fleet::{Arm, Driver, Fleet},
    progress::Progress,
};

/// Connections being opened at the same time: fewer than any listener's backlog.
const OPENING_MAX: u32 = 256;
/// How long the server may go without finishing any of them.
const PATIENCE: Duration = Duration::from_secs(10);
/// The heartbeat asked for, in seconds: longer than any phase of a bench, so that nobody has to ping.
const HEARTBEAT_SECS: u32 = 600;

/// What an entrance does with a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entrance {
    /// TCP only.
    Connect,
    /// TCP, then LOGIN, answered by LOGIN_OK.
    Login,
}

/// Opens one connection for each of `users`, in order, and logs it in when told so. Afterwards every connection is
/// armed as `arm` says. Returns the shortest heartbeat granted, in seconds.
pub(crate) fn enter(
    fleet: &mut Fleet,
    users: &[u64],
    entrance: Entrance,
    arm: Arm,
    progress: &Progress,
) -> Result<u32, Failure> {
    let bar = progress.phase("connections", users.len() as u64);
    let mut logins = Logins { users, entrance, arm, entered: 0, heartbeat_secs: u32::MAX };
    let mut last_progress = Instant::now();
    while (logins.entered as usize) < users.len() {
        let opening = fleet.opened() - logins.entered;
        let left = users.len() as u32 - fleet.opened();
        fleet.open(left.min(OPENING_MAX - opening))?;
        let before = logins.entered;
        fleet.turn(&mut logins, Duration::from_millis(100))?;
        if logins.entered > before {
            last_progress = Instant::now();
            bar.set(u64::from(logins.entered));
        } else if last_progress.elapsed() > PATIENCE {
            let what = if entrance == Entrance::Login { "LOGIN_OK" } else { "connections" };
            let waiting_for = format!("{what}; {} of {} are there", logins.entered, users.len());
            return Err(Failure::Stalled { waiting_for, after: PATIENCE });
        }
    }
    Ok(logins.heartbeat_secs)
}

struct Logins<'a> {
    users: &'a [u64],
    entrance: Entrance,
    arm: Arm,
    entered: u32,
    heartbeat_secs: u32,
}

impl Driver for Logins<'_> {
    fn connected(&mut self, connection: u32, out: &mut Vec<u8>) -> Result<Arm, Failure> {
        if self.entrance == Entrance::Connect {
            self.entered += 1;
            return Ok(self.arm);
        }
        let user = self.users[connection as usize];
        let login = Login {
            version: VERSION,
            user,
            agent: "bench".to_owned(),
            heartbeat_secs: HEARTBEAT_SECS,
            ..Login::default()
        };
        encode_message(out, Kind::Login, 0, &login);
        Ok(if self.arm == Arm::Always { Arm::Always } else { Arm::OneFrame })
    }

    fn frame(&mut self, connection: u32, frame: &Frame<'_>, _: u64, _: &mut Vec<u8>) -> Result<(), Failure> {
        let user = self.users[connection as usize];
        match frame.known() {
            Some(Kind::LoginOk) => {
                let ok = LoginOk::decode(frame.body).map_err(|error| Discrepancy::Unexpected {
                    user,
                    frame: format!("a LOGIN_OK whose body is no LoginOk: {error}"),
                })?;
                self.heartbeat_secs = self.heartbeat_secs.min(ok.heartbeat_secs);
                self.entered += 1;
                Ok(())
            }
            // Where there is a store it says that nothing was kept.
            Some(Kind::SyncOk) if frame.aux == 0 => Ok(()),
            Some(Kind::Bye | Kind::Error) => {
                let text = Code::from_u16(frame.aux).map_or("unknown reason", Code::text).to_owned();
                Err(Failure::LoginRefused { user, code: frame.aux, text })
            }
            _ => Err(Discrepancy::unexpected(user, frame).into()),
        }
    }

    fn lost(&mut self, connection: u32, how: &str) -> Failure {
        let user = self.users[connection as usize];
        let when = if self.entrance == Entrance::Login { "before its login was answered" } else { "at once" };
        Failure::ServerGone(format!("the connection of user {user} was lost {when}: {how}"))
    }
}

/// A driver for phases in which nothing may arrive.
pub(crate) struct Silence<'a> {
    /// The user of each connection.
    pub(crate) users: &'a [u64],
}

impl Driver for Silence<'_> {
    fn connected(&mut self, _: u32, _: &mut Vec<u8>) -> Result<Arm, Failure> {
        unreachable!("every connection is open")
    }

    fn frame(&mut self, connection: u32, frame: &Frame<'_>, _: u64, _: &mut Vec<u8>) -> Result<(), Failure> {
        Err(Discrepancy::unexpected(self.users[connection as usize], frame).into())
    }

    fn lost(&mut self, connection: u32, how: &str) -> Failure {
        Failure::ServerGone(format!("the connection of user {} was lost: {how}", self.users[connection as usize]))
    }
}

/// Sends a PING on every connection and waits for each PONG: proof that all of them are still logged in.
/// Nothing may be armed before, and nothing is afterwards.
pub(crate) fn ping_all(fleet: &mut Fleet, users: &[u64], progress: &Progress) -> Result<(), Failure> {
    let bar = progress.phase("pings", users.len() as u64);
    let mut pings = Pings { users, answered: 0 };
    let mut asked = 0;
    let mut last_progress = Instant::now();
    while (pings.answered as usize) < users.len() {
        while (asked as usize) < users.len() && asked - pings.answered < OPENING_MAX {
            fleet.stage(asked, |out| {
                let header =
                    trunkline_proto::Header { kind: Kind::Ping, flags: 0, aux: asked as u16, id: 0, peer: 0, stamp: 0 };
                trunkline_proto::encode(out, &header, &[]);
            });
            fleet.arm(asked, Arm::OneFrame)?;
            asked += 1;
        }
        let before = pings.answered;
        fleet.turn(&mut pings, Duration::from_millis(100))?;
        if pings.answered > before {
            last_progress = Instant::now();
            bar.set(u64::from(pings.answered));
        } else if last_progress.elapsed() > PATIENCE {
            let waiting_for = format!("PONG; {} of {} are there", pings.answered, users.len());
            return Err(Failure::Stalled { waiting_for, after: PATIENCE });
        }
    }
    Ok(())
}

struct Pings<'a> {
    users: &'a [u64],
    answered: u32,
}

impl Driver for Pings<'_> {
    fn connected(&mut self, _: u32, _: &mut Vec<u8>) -> Result<Arm, Failure> {
        unreachable!("every connection is open")
    }

    fn frame(&mut self, connection: u32, frame: &Frame<'_>, _: u64, _: &mut Vec<u8>) -> Result<(), Failure> {
        let user = self.users[connection as usize];
        if frame.known() != Some(Kind::Pong) || frame.aux != connection as u16 {
            return Err(Discrepancy::Unexpected { user, frame: describe(frame) }.into());
        }
        self.answered += 1;
        Ok(())
    }

    fn lost(&mut self, connection: u32, how: &str) -> Failure {
        let user = self.users[connection as usize];
        Failure::ServerGone(format!("the idle connection of user {user} was lost: {how}"))
    }
}
