//! A client's end of one connection, and what it may be told in which order.

use super::ledger::Ledger;
use super::scenario::Scenario;
use super::tls::TlsEnd;
use super::websocket::WebSocketEnd;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use trunkline_proto::prost::Message as _;
use trunkline_proto::{Code, FRAME_BYTES_MAX_LIMIT, Frame, Kind, LoginOk, decode, flags};
use trunkline_router_core::hash::home_shard;

/// Where the client thinks it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Opening,
    Open,
    /// The server said BYE, or the connection has ended.
    Over,
}

/// What the client is to do about a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reaction {
    Nothing,
    Acknowledge { id: u64, from: u64, stamp: u64 },
    Bye,
}

/// Facts beyond the session that decide what is legal.
#[derive(Clone, Copy, Debug)]
pub(super) struct Circumstances<'a> {
    pub(super) scenario: &'a Scenario,
    pub(super) now_us: u64,
    pub(super) draining: bool,
    pub(super) kicked: bool,
    /// Another session logged in, or tried to, on the same device.
    pub(super) replaced: bool,
}

impl Circumstances<'_> {
    fn limited(&self) -> bool {
        self.scenario.limits.frames_per_sec != 0
    }
}

#[derive(Debug)]
pub(super) struct Session {
    pub(super) index: usize,
    pub(super) socket: usize,
    /// 0 for a stray that never logs in properly.
    pub(super) user: u64,
    pub(super) device: usize,
    pub(super) stage: Stage,
    pub(super) opened_us: u64,
    pub(super) wrote_us: u64,
    /// The longest time it wrote nothing. A client that reads slowly may write again before it finds the BYE it got for
    /// that.
    pub(super) silence_us: u64,
    pub(super) next_seq: u64,
    /// Reads what comes.
    pub(super) reading: bool,
    /// It did not read for a while, or its window is small: it may not get the last frames in the time a closing
    /// connection has.
    pub(super) slow: bool,
    /// It has not read for a while.
    pub(super) stopped: bool,
    /// The client has left, or shut its side, or logged out.
    pub(super) leaving: bool,
    /// It wrote something that may end the connection, or that swallows what follows.
    pub(super) spoiled: bool,
    pub(super) pings: VecDeque<u16>,
    /// Codes of the ERROR frames its frames will cause, in order.
    pub(super) errors: VecDeque<Code>,
    pub(super) bye: Option<Code>,
    /// The server has shut its side.
    pub(super) ended: bool,
    pub(super) broken: bool,
    heartbeat_ms: u64,
    input: Vec<u8>,
    /// Its end of a WebSocket, if it speaks through one.
    pub(super) websocket: Option<WebSocketEnd>,
    /// Its end of TLS below that.
    pub(super) tls: Option<TlsEnd>,
    /// What a proxy writes in front of its first byte.
    pub(super) header: Vec<u8>,
    last_stamp: u64,
    /// Latest first delivery from each sending session.
    last_seq: BTreeMap<usize, u64>,
    /// Messages delivered here, and those delivered without AGAIN.
    pub(super) got: BTreeSet<u64>,
    firsts: BTreeSet<u64>,
}

impl Session {
    pub(super) fn new(index: usize, socket: usize, user: u64, device: usize, now_us: u64) -> Self {
        Session {
            index,
            socket,
            user,
            device,
            stage: Stage::Opening,
            opened_us: now_us,
            wrote_us: now_us,
            silence_us: 0,
            next_seq: 0,
            reading: true,
            slow: false,
            stopped: false,
            leaving: false,
            spoiled: false,
            pings: VecDeque::new(),
            errors: VecDeque::new(),
            bye: None,
            ended: false,
            broken: false,
            heartbeat_ms: 0,
            input: Vec::new(),
            websocket: None,
            tls: None,
            header: Vec::new(),
            last_stamp: 0,
            last_seq: BTreeMap::new(),
            got: BTreeSet::new(),
            firsts: BTreeSet::new(),
        }
    }

    /// A session the server has confirmed, and the client goes on with.
    pub(super) fn live(&self) -> bool {
        self.stage == Stage::Open && !self.leaving && !self.spoiled
    }

    /// Bytes came. Calls `react` for each frame in them.
    pub(super) fn received(
        &mut self,
        bytes: &[u8],
        ledger: &mut Ledger,
        around: Circumstances<'_>,
        mut react: impl FnMut(Reaction),
    ) {
        let mut input = std::mem::take(&mut self.input);
        input.extend_from_slice(bytes);
        let mut at = 0;
        while let Some((frame, len)) = decode(&input[at..], FRAME_BYTES_MAX_LIMIT).expect("the server frames properly")
        {
            assert_eq!(self.bye, None, "a frame after BYE");
            react(self.frame(&frame, ledger, around));
            at += len;
        }
        input.drain(..at);
        self.input = input;
    }

    fn frame(&mut self, frame: &Frame<'_>, ledger: &mut Ledger, around: Circumstances<'_>) -> Reaction {
        let kind = frame.known().expect("the server sends known kinds");
        match (self.stage, kind) {
            (Stage::Opening, Kind::LoginOk) => self.logged_in(frame, around),
            (_, Kind::Bye) => return self.dismissed(frame, around),
            (Stage::Open, Kind::Pong) => next_of(&mut self.pings, frame.aux, around.limited()),
            (Stage::Open, Kind::Deliver) => return self.delivered(frame, ledger),
            (Stage::Open, Kind::Sent) => ledger.answered(self.index, around.scenario.lossy, frame),
            (Stage::Open, Kind::Error) => self.corrected(frame, ledger, around),
            (stage, kind) => panic!("session {}: {} in stage {stage:?}", self.index, kind.name()),
        }
        Reaction::Nothing
    }

    fn logged_in(&mut self, frame: &Frame<'_>, around: Circumstances<'_>) {
        let login_ok = LoginOk::decode(frame.body).expect("LOGIN_OK has a body");
        assert_ne!(self.user, 0, "a stray was logged in");
        let home = home_shard(self.user, around.scenario.shards.into());
        assert_eq!(login_ok.shard, home, "user {} was logged in at a shard that is not its home", self.user);
        assert_eq!(login_ok.max_frame, around.scenario.limits.frame_bytes_max);
        self.heartbeat_ms = u64::from(login_ok.heartbeat_secs) * 1_000;
        self.stage = Stage::Open;
    }

    fn dismissed(&mut self, frame: &Frame<'_>, around: Circumstances<'_>) -> Reaction {
        let code = Code::from_u16(frame.aux).expect("BYE has a known reason");
        let Circumstances { scenario, now_us, draining, kicked, replaced } = around;
        let opening = self.stage == Stage::Opening;
        let legal = match code {
            Code::Idle if opening => now_us - self.opened_us >= (scenario.limits.login_timeout_ms - 200) * 1_000,
            // Bytes that were no whole frame are no sign of life, but they count as written here.
            Code::Idle => {
                self.spoiled || self.silence_us.max(now_us - self.wrote_us) >= (2 * self.heartbeat_ms - 300) * 1_000
            }
            // Who reads all the time is never too slow while no bound is low.
            Code::TooSlow => scenario.lossy || self.stopped,
            Code::Draining => draining,
            Code::Kicked => kicked,
            Code::Replaced => replaced,
            // A connection that cannot be handed over is turned away as well.
            Code::Overloaded => scenario.lossy || scenario.faults.hand_over_fail > 0,
            Code::MalformedFrame | Code::FrameTooLarge => self.spoiled,
            Code::NotLoggedIn | Code::UnsupportedVersion | Code::BadRequest => self.spoiled && opening,
            _ => false,
        };
        assert!(legal, "session {} got BYE {code:?} without a reason: {self:?}", self.index);
        self.bye = Some(code);
        self.stage = Stage::Over;
        Reaction::Bye
    }

    fn delivered(&mut self, frame: &Frame<'_>, ledger: &mut Ledger) -> Reaction {
        let message = ledger.delivered(self.index, self.user, frame);
        self.got.insert(frame.id);
        if frame.flags & flags::AGAIN == 0 {
            assert!(self.firsts.insert(frame.id), "message {} was delivered twice without AGAIN", frame.id);
            assert!(
                frame.stamp > self.last_stamp,
                "stamps of user {} went from {} to {}",
                self.user,
                self.last_stamp,
                frame.stamp
            );
            self.last_stamp = frame.stamp;
            let before = self.last_seq.insert(message.sender, message.seq);
            assert!(
                before < Some(message.seq),
                "session {} got message {} out of the sender's order",
                self.index,
                frame.id
            );
        }
        if message.acked {
            return Reaction::Acknowledge { id: frame.id, from: frame.peer, stamp: frame.stamp };
        }
        Reaction::Nothing
    }

    fn corrected(&mut self, frame: &Frame<'_>, ledger: &mut Ledger, around: Circumstances<'_>) {
        let code = Code::from_u16(frame.aux).expect("ERROR has a known code");
        if code == Code::RateLimited {
            assert!(around.limited(), "no rate is limited");
            // What was refused, a SEND, an ACK, a PING or a frame that would have caused another ERROR, is not known.
            if ledger.is_from(self.index, frame.id, frame.peer) {
                ledger.rate_limited(self.index, frame.id);
            }
            return;
        }
        next_of(&mut self.errors, code, around.limited());
    }
}

/// Answers come in the order of what they answer; the rate limit may have taken some of that out.
fn next_of<T: Copy + PartialEq + std::fmt::Debug>(expected: &mut VecDeque<T>, answer: T, limited: bool) {
    loop {
        match expected.pop_front() {
            Some(next) if next == answer => return,
            Some(_) if limited => {}
            next => panic!("answered with {answer:?}, expected {next:?}"),
        }
    }
}
