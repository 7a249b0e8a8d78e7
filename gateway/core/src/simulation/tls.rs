//! A client's end of TLS, with a handshake that is none: what it writes in records of any length, keys that change, and
//! what comes back.

use crate::io::sim::Rng;
use crate::transport::tls::{Bounds, ContentType, End, Session, open, seal_owed, seal_records, toy};

/// A client minds nothing a gateway may do.
const BOUNDS: Bounds =
    Bounds { empties_max: 255, updates_per_minute: 255, own_update_records: u64::MAX, tls12_records_max: u64::MAX };
/// Changes of its keys that a connection makes: fewer than a gateway takes in a minute, however much it writes.
const UPDATES_MAX: u32 = 20;
/// A KeyUpdate that asks for one in return.
const KEY_UPDATE: [u8; 5] = [24, 0, 0, 1, 1];

#[derive(Debug)]
enum Stage {
    /// Nothing was written.
    Fresh,
    /// The answer to the first flight is awaited.
    Asked,
    /// There are keys.
    Up(Session),
    /// An alert in clear came, or a native BYE before anything was read, or nothing that comes matters.
    Over,
}

#[derive(Debug)]
pub(super) struct TlsEnd {
    number: u64,
    stage: Stage,
    /// What is to be written when there are keys.
    waiting: Vec<u8>,
    input: Vec<u8>,
    closed: bool,
    /// How often it has changed its keys.
    updates: u32,
}

impl TlsEnd {
    pub(super) fn new(rng: &mut Rng) -> Self {
        let (number, waiting, input) = (rng.bits(), Vec::new(), Vec::new());
        TlsEnd { number, stage: Stage::Fresh, waiting, input, closed: false, updates: 0 }
    }

    /// One that begins a handshake and never goes on.
    pub(super) fn astray(rng: &mut Rng) -> Self {
        TlsEnd { stage: Stage::Over, ..TlsEnd::new(rng) }
    }

    /// What is written for these bytes.
    pub(super) fn wrap(&mut self, bytes: &[u8], rng: &mut Rng) -> Vec<u8> {
        match &mut self.stage {
            Stage::Fresh => {
                self.stage = Stage::Asked;
                self.waiting.extend_from_slice(bytes);
                toy::hello(self.number)
            }
            Stage::Asked => {
                self.waiting.extend_from_slice(bytes);
                Vec::new()
            }
            Stage::Up(session) => sealed(session, &mut self.updates, bytes, rng),
            Stage::Over => bytes.to_vec(),
        }
    }

    /// Takes what came. Returns what is in it, and what is due in return.
    pub(super) fn unwrap(&mut self, bytes: &[u8], rng: &mut Rng) -> (Vec<u8>, Vec<u8>) {
        self.input.extend_from_slice(bytes);
        let mut due = Vec::new();
        if matches!(self.stage, Stage::Fresh | Stage::Asked) {
            let answer = toy::answer();
            match self.input.first() {
                Some(0) => {
                    // It was turned away before anything of it was read.
                    self.stage = Stage::Over;
                    return (std::mem::take(&mut self.input), due);
                }
                Some(21) => self.stage = Stage::Over,
                _ if self.input.len() >= answer.len() => {
                    assert!(self.input.starts_with(&answer), "{}", self.input.escape_ascii());
                    self.input.drain(..answer.len());
                    let mut session = toy::client(self.number);
                    due = toy::finished();
                    due.extend(sealed(&mut session, &mut self.updates, &std::mem::take(&mut self.waiting), rng));
                    self.stage = Stage::Up(session);
                }
                _ => {}
            }
        }
        let Stage::Up(session) = &mut self.stage else {
            self.input.clear();
            return (Vec::new(), due);
        };
        assert!(!self.closed || self.input.is_empty(), "bytes behind close_notify");
        let opened = open(&mut session.view(), &BOUNDS, &mut self.input, 0);
        let data = self.input[..opened.data].to_vec();
        self.input.drain(..opened.taken);
        match opened.end {
            None => {}
            Some(End::Closed) => self.closed = true,
            Some(end) => panic!("the server keeps to TLS: {end:?}"),
        }
        if session.view().facts.owes() && !self.closed {
            seal_owed(&mut session.view(), &BOUNDS, &mut due);
        }
        (data, due)
    }
}

/// Bytes in records of any length, now and then behind a change of keys.
fn sealed(session: &mut Session, updates: &mut u32, bytes: &[u8], rng: &mut Rng) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let view = &mut session.view();
        if rng.chance(30) && view.may_update() && *updates < UPDATES_MAX {
            *updates += 1;
            let from = out.len();
            out.extend_from_slice(&KEY_UPDATE);
            seal_records(view, ContentType::Handshake, &mut out, from);
            view.update_own();
        }
        let length = if rng.chance(700) { rest.len() } else { 1 + rng.below(rest.len() as u64) as usize };
        let (record, behind) = rest.split_at(length);
        let from = out.len();
        out.extend_from_slice(record);
        seal_records(view, ContentType::Data, &mut out, from);
        rest = behind;
    }
    out
}
