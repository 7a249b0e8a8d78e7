//! Sessions that end with their token, on simulated I/O: over shards, renewals, and a wall clock that somebody sets.
//!
//! Properties: a session is told that its token has expired only after the wall clock has been there; when it has been
//! there for
//! [`LATEST_US`] without a break, the session is over; every other session goes on; a renewal moves the end, and one
//! that is refused does not.

use super::node::{Node, NodeConfig};
use super::{SharedWorld, World};
use crate::auth::signing::encode;
use crate::auth::{Auth, AuthSwitch, JwtKeys};
use crate::io::sim::{Faults, Rng};
use crate::limits::Limits;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::json;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use trunkline_proto::prost::Message;
use trunkline_proto::{Bye, Code, FRAME_BYTES_MAX_LIMIT, Kind, Login, LoginOk, VERSION, decode, encode_message};

const SECRET: &[u8] = &[9; 32];
const SESSIONS: u64 = 24;
/// Virtual time of a run.
const RUN_US: u64 = 400_000_000;
/// A look each minute, some ticks, and the way of the BYE.
const LATEST_US: u64 = 61_000_000;
/// How often the run looks at its sessions.
const STEP_US: u64 = 500_000;

#[derive(Debug)]
struct Session {
    socket: usize,
    user: u64,
    /// When its token ends, as the server has confirmed; 0 before LOGIN_OK.
    end_ms: u64,
    /// The RENEW under way: the end it asks for, 0 if it must be refused.
    renewal: Option<u64>,
    /// What comes next, and when.
    next: Option<(u64, Option<u64>)>,
    renewed: u32,
    refused: u32,
    over: bool,
    /// Since when the wall clock has been behind the end.
    late_since_us: Option<u64>,
    /// The furthest the wall clock has been while this end held.
    wall_ms_max: u64,
    input: Vec<u8>,
}

struct Run {
    world: SharedWorld,
    node: Node,
    rng: Rng,
    sessions: Vec<Session>,
    by_socket: BTreeMap<usize, usize>,
    ended: u64,
}

fn token(user: u64, end_ms: u64) -> String {
    let claims = json!({"sub": user.to_string(), "exp": end_ms / 1_000});
    encode(&Header::new(Algorithm::HS256), &claims, &EncodingKey::from_secret(SECRET))
}

impl Run {
    fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed ^ 0x0070_6B65_6E73);
        let shards = rng.within(1, 4) as u16;
        let limits = Limits { heartbeat_secs: 600, ..Limits::default() };
        let world = World::new(seed, Faults::none(), usize::from(shards), 1, &limits, false);
        let world = Rc::new(RefCell::new(world));
        let keys = JwtKeys::default().with_hs256(None, SECRET).expect("long enough");
        let auth = AuthSwitch::new(Auth::Jwt(Box::new(keys)));
        let node = Node::new(NodeConfig { auth, ..NodeConfig::alone(seed, shards, &limits) }, &world);
        Run { world, node, rng, sessions: Vec::new(), by_socket: BTreeMap::new(), ended: 0 }
    }

    fn log_in(&mut self, user: u64) {
        let socket = self.world.borrow_mut().connect(65_536).expect("it listens");
        let (now_us, wall_ms) = self.clocks();
        let end_ms = self.end_ms(wall_ms, 5);
        // A third renews: for longer, for less, or with a token that is refused.
        let next = self.rng.chance(400).then(|| {
            let at_us = now_us + self.rng.within(2_000_000, 100_000_000);
            (at_us, (!self.rng.chance(300)).then(|| self.rng.within(1, 300)))
        });
        self.by_socket.insert(socket, self.sessions.len());
        self.sessions.push(Session {
            socket,
            user,
            end_ms: 0,
            renewal: None,
            next,
            renewed: 0,
            refused: 0,
            over: false,
            late_since_us: None,
            wall_ms_max: 0,
            input: Vec::new(),
        });
        self.write(self.sessions.len() - 1, Kind::Login, token(user, end_ms));
    }

    /// Some seconds from now; whole ones, as tokens have them.
    fn end_ms(&mut self, wall_ms: u64, least_s: u64) -> u64 {
        (wall_ms / 1_000 + self.rng.within(least_s, 300)) * 1_000
    }

    fn clocks(&self) -> (u64, u64) {
        let world = self.world.borrow();
        (world.now_us(), world.wall_ms())
    }

    fn write(&mut self, index: usize, kind: Kind, token: String) {
        let Session { user, socket, .. } = self.sessions[index];
        let login = Login { version: VERSION, user, token, ..Login::default() };
        let mut bytes = Vec::new();
        encode_message(&mut bytes, kind, 0, &login);
        self.world.borrow_mut().client_write(socket, &bytes);
    }

    fn run_until(&mut self, end_us: u64) {
        while self.node.pass(u64::MAX, end_us).is_some() {
            self.node.step();
            let stirred = self.world.borrow_mut().take_stirred();
            for socket in stirred {
                self.read(self.by_socket[&socket]);
            }
        }
    }

    fn read(&mut self, index: usize) {
        let (now_us, wall_ms) = self.clocks();
        let session = &mut self.sessions[index];
        let read = self.world.borrow_mut().client_read(session.socket, usize::MAX);
        session.input.extend_from_slice(&read.bytes);
        session.wall_ms_max = session.wall_ms_max.max(wall_ms);
        let input = std::mem::take(&mut session.input);
        let mut at = 0;
        while let Some((frame, len)) = decode(&input[at..], FRAME_BYTES_MAX_LIMIT).expect("the server frames properly")
        {
            at += len;
            assert!(!session.over, "a frame after BYE");
            match frame.known() {
                Some(Kind::LoginOk) => {
                    let login_ok = LoginOk::decode(frame.body).expect("LOGIN_OK has a body");
                    if let Some(asked) = session.renewal.take() {
                        assert_eq!(login_ok.expires_ms, asked, "{session:?}");
                        session.renewed += 1;
                    }
                    session.end_ms = login_ok.expires_ms;
                    session.late_since_us = (wall_ms >= session.end_ms).then_some(now_us);
                    session.wall_ms_max = wall_ms;
                }
                Some(Kind::Error) => {
                    assert_eq!(frame.aux, Code::BadCredentials.as_u16());
                    assert_eq!(session.renewal.take(), Some(0), "{session:?}");
                    session.refused += 1;
                }
                Some(Kind::Bye) => {
                    let bye = Bye::decode(frame.body).expect("BYE has a body");
                    assert_eq!((frame.aux, bye.text.as_str()), (6, "the token has expired"), "{session:?}");
                    assert!(session.wall_ms_max >= session.end_ms, "ended before its token: {session:?}");
                    session.over = true;
                    self.ended += 1;
                    self.world.borrow_mut().client_close(session.socket);
                }
                other => panic!("{other:?}"),
            }
        }
        session.input = input[at..].to_vec();
    }

    /// Looks whether sessions are over in time, and lets some renew.
    fn look(&mut self) {
        let (now_us, wall_ms) = self.clocks();
        for index in 0..self.sessions.len() {
            let session = &mut self.sessions[index];
            if session.over || session.end_ms == 0 {
                continue;
            }
            session.wall_ms_max = session.wall_ms_max.max(wall_ms);
            if wall_ms < session.end_ms {
                session.late_since_us = None;
            } else {
                let since_us = *session.late_since_us.get_or_insert(now_us);
                assert!(now_us - since_us < LATEST_US, "the token has expired and the session goes on: {session:?}");
            }
            let due = session.next.filter(|(at_us, _)| *at_us <= now_us && session.renewal.is_none());
            if let Some((_, lasting_s)) = due {
                let (user, end_ms) = (session.user, (wall_ms / 1_000 + lasting_s.unwrap_or(0)) * 1_000);
                // One that has expired already is refused.
                session.renewal = Some(if lasting_s.is_some() { end_ms } else { 0 });
                session.next = None;
                self.write(index, Kind::Renew, token(user, end_ms));
            }
        }
    }

    /// The number of sessions that ended, of renewals, and of those refused.
    fn whole(mut self) -> (u64, u64, u64) {
        for user in 1..=SESSIONS {
            self.log_in(user);
        }
        // In half of the runs somebody sets the clock once, by an hour at most.
        let set_us = self.rng.chance(500).then(|| self.rng.within(0, RUN_US / 2));
        let mut to_set = set_us.map(|set_us| (set_us, self.rng.within(0, 7_200_000) as i64 - 3_600_000));
        for end_us in (STEP_US..=RUN_US).step_by(STEP_US as usize) {
            self.run_until(end_us);
            if let Some((_, step_ms)) = to_set.take_if(|(set_us, _)| *set_us <= end_us) {
                self.world.borrow_mut().set_wall_clock(step_ms);
            }
            self.look();
        }
        for session in &self.sessions {
            assert!(session.end_ms > 0, "LOGIN was not answered: {session:?}");
            assert!(session.over || session.renewal.is_none(), "RENEW was not answered: {session:?}");
        }
        let sum = |count: fn(&Session) -> u32| self.sessions.iter().map(|session| u64::from(count(session))).sum();
        (self.ended, sum(|session| session.renewed), sum(|session| session.refused))
    }
}

#[test]
fn sessions_end_with_their_token_and_with_the_clock_that_somebody_sets() {
    let mut sums = (0, 0, 0);
    for seed in 0..20 {
        let run = std::panic::catch_unwind(|| Run::new(seed).whole());
        let counts = run.unwrap_or_else(|_| panic!("seed {seed} does not hold, as is said above"));
        sums = (sums.0 + counts.0, sums.1 + counts.1, sums.2 + counts.2);
    }
    assert!(sums.0 > 100 && sums.1 > 20 && sums.2 > 10, "little has happened: {sums:?}");
}
