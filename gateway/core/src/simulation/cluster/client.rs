//! A client's end of one connection.

use super::super::watching::Watching;
use super::ledger::Ledger;
use super::rooms::{Memberships, ROOMS};
use super::transport::Transport;
use std::collections::{BTreeMap, BTreeSet};
use trunkline_proto::prost::Message as _;
use trunkline_proto::{Code, FRAME_BYTES_MAX_LIMIT, Frame, Kind, LoginOk, decode, flags};

/// Where the client thinks it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Opening,
    Open,
    /// The server said BYE, the connection has ended, or the client has left.
    Over,
}

/// What a client is to acknowledge.
#[derive(Clone, Copy, Debug)]
pub(super) struct Delivered {
    pub(super) id: u64,
    pub(super) from: u64,
    pub(super) stamp: u64,
}

/// Facts beyond the client that decide what is legal.
#[derive(Clone, Copy, Debug)]
pub(super) struct Circumstances {
    pub(super) now_us: u64,
    /// No user's home has moved since.
    pub(super) homes_since_us: u64,
    /// The device has, or had, another connection.
    pub(super) rivalled: bool,
}

#[derive(Debug)]
pub(super) struct Client {
    pub(super) index: usize,
    pub(super) socket: usize,
    pub(super) user: u64,
    pub(super) device: usize,
    pub(super) stage: Stage,
    pub(super) heard_us: u64,
    /// As LOGIN_OK had it.
    pub(super) session: u64,
    pub(super) node: String,
    pub(super) heartbeat_ms: u64,
    pub(super) next_seq: u64,
    /// The client has left.
    pub(super) left: bool,
    pub(super) bye: Option<Code>,
    input: Vec<u8>,
    /// Latest message without ACK from each sending client: its place, and when it was sent.
    last: BTreeMap<usize, (u64, u64)>,
    /// Messages delivered here, and those delivered without AGAIN.
    pub(super) got: BTreeSet<u64>,
    firsts: BTreeSet<u64>,
    pub(super) rooms: Memberships,
    pub(super) watching: Watching,
    /// Whom its token names; all where no token is needed.
    pub(super) named: Option<BTreeSet<u64>>,
    /// `None` where its bytes are frames.
    pub(super) transport: Option<Box<Transport>>,
}

impl Client {
    pub(super) fn new(index: usize, socket: usize, user: u64, device: usize, now_us: u64) -> Self {
        Client {
            index,
            socket,
            user,
            device,
            stage: Stage::Opening,
            heard_us: now_us,
            session: 0,
            node: String::new(),
            heartbeat_ms: 0,
            next_seq: 0,
            left: false,
            bye: None,
            input: Vec::new(),
            last: BTreeMap::new(),
            got: BTreeSet::new(),
            firsts: BTreeSet::new(),
            rooms: Memberships::default(),
            watching: Watching::over_links(),
            named: None,
            transport: None,
        }
    }

    pub(super) fn live(&self) -> bool {
        self.stage == Stage::Open
    }

    /// Bytes came. Returns what is to be acknowledged.
    pub(super) fn received(&mut self, bytes: &[u8], ledger: &mut Ledger, around: Circumstances) -> Vec<Delivered> {
        if !bytes.is_empty() {
            self.heard_us = around.now_us;
        }
        let mut input = std::mem::take(&mut self.input);
        input.extend_from_slice(bytes);
        let mut to_acknowledge = Vec::new();
        let mut at = 0;
        while let Some((frame, len)) = decode(&input[at..], FRAME_BYTES_MAX_LIMIT).expect("the server frames properly")
        {
            assert_eq!(self.bye, None, "a frame after BYE");
            to_acknowledge.extend(self.frame(&frame, ledger, around));
            at += len;
        }
        input.drain(..at);
        self.input = input;
        to_acknowledge
    }

    fn frame(&mut self, frame: &Frame<'_>, ledger: &mut Ledger, around: Circumstances) -> Option<Delivered> {
        let kind = frame.known().expect("the server sends known kinds");
        match (self.stage, kind) {
            (_, Kind::Bye) => self.dismissed(frame, around),
            // What the client finds after it has left, it does not look at.
            (Stage::Over, _) => {}
            (Stage::Opening, Kind::LoginOk) => {
                let login_ok = LoginOk::decode(frame.body).expect("LOGIN_OK has a body");
                self.heartbeat_ms = u64::from(login_ok.heartbeat_secs) * 1_000;
                self.session = login_ok.session;
                self.node = login_ok.node;
                self.stage = Stage::Open;
            }
            (Stage::Open, Kind::Pong) => {}
            (Stage::Open, Kind::Presence) => self.watching.frame(frame, around.now_us),
            (Stage::Open, Kind::Deliver) => return self.delivered(frame, ledger, around),
            (Stage::Open, Kind::Error) if frame.aux == Code::NotAllowed.as_u16() => ledger.refused(self.index, frame),
            (Stage::Open, Kind::Sent) if ROOMS.contains(&frame.peer) => ledger.rooms.answered(self.index, frame),
            (Stage::Open, Kind::GroupOk | Kind::GroupDeliver | Kind::Heads | Kind::Error) => {
                self.rooms.frame(self.index, self.user, kind, frame, &mut ledger.rooms);
            }
            (Stage::Open, Kind::Sent) => ledger.answered(self.index, frame, around.now_us),
            (stage, kind) => panic!("client {}: {} in stage {stage:?}", self.index, kind.name()),
        }
        None
    }

    fn dismissed(&mut self, frame: &Frame<'_>, around: Circumstances) {
        let code = Code::from_u16(frame.aux).expect("BYE has a known reason");
        let legal = match code {
            Code::Replaced => around.rivalled,
            // Node and network decide about these.
            Code::Idle | Code::Draining | Code::Moved | Code::Overloaded => true,
            _ => false,
        };
        assert!(legal, "client {} got BYE {code:?} without a reason: {self:?}", self.index);
        self.bye = Some(code);
        self.stage = Stage::Over;
    }

    fn delivered(&mut self, frame: &Frame<'_>, ledger: &mut Ledger, around: Circumstances) -> Option<Delivered> {
        let message = ledger.delivered(self.index, self.device, self.user, frame, around.now_us);
        let (id, seq, sent_us) = (frame.id, message.seq, message.sent_us);
        self.got.insert(id);
        if frame.flags & flags::AGAIN == 0 {
            assert!(self.firsts.insert(id), "message {id} was delivered twice to client {} without AGAIN", self.index);
        }
        if message.acked {
            return Some(Delivered { id, from: frame.peer, stamp: frame.stamp });
        }
        if let Some((last_seq, last_us)) = self.last.insert(message.sender, (seq, sent_us)) {
            let moved = around.homes_since_us >= sent_us.min(last_us);
            assert!(
                last_seq < seq || moved,
                "client {} got message {id} out of its sender's order: place {seq} behind {last_seq}",
                self.index
            );
        }
        None
    }
}
