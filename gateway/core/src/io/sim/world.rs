//! The world: time, what is on its way, and what the shards ask of the kernel.

use super::clock::Clock;
use super::faults::{Faults, Rng};
use super::peers::{Host, Place};
use super::ring::{Accept, Listener, Read, Ring, Send, Stage, Submission};
use super::socket::{Segment, Socket};
use crate::io::{BufId, Completion, ConnId, HandoverToken, Now, ReadOp, SendId};
use crate::limits::Limits;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

/// The wall clock when a run begins, milliseconds since the Unix epoch: some day in 2026.
pub const WALL_MS: i64 = 1_780_000_000_000;

/// Something that will happen.
#[derive(Debug)]
pub(super) enum Event {
    /// A completion is posted to a ring; the bytes are those of its receive buffer.
    Post {
        ring: usize,
        completion: Completion,
        bytes: Vec<u8>,
    },
    Connect {
        socket: usize,
        ring: usize,
        listener: usize,
    },
    ToServer {
        socket: usize,
        segment: Segment,
    },
    ToClient {
        socket: usize,
        segment: Segment,
    },
    /// A dial reaches its address, or comes to its end.
    Syn {
        ring: usize,
        token: u32,
        address: SocketAddr,
        give_up_us: u64,
    },
    /// The ring that dialed is connected.
    Established {
        ring: usize,
        token: u32,
        socket: usize,
    },
}

/// What the faults led to, to see that they do happen.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// Connections the shards were told of.
    pub accepted: u64,
    /// Cancels that came when the operation had completed and the shard did not know yet.
    pub cancels_late: u64,
    pub cancels: u64,
    pub slots_used_again: u64,
    pub hand_overs_failed: u64,
    /// Hand-overs of connections the client had left or broken by then.
    pub hand_overs_raced: u64,
    pub resets: u64,
    pub accept_errors: u64,
    pub multishots_ended: u64,
    pub enobufs: u64,
    /// The most reads of one connection into large buffers, one after the other, that found none and brought nothing.
    pub starved_most: u64,
    pub clock_set_back: u64,
    pub dials: u64,
    pub dials_failed: u64,
    /// Segments between hosts that a cut held back.
    pub segments_held: u64,
    /// Bytes the kernel gave to the shards and took from them.
    pub bytes_in: u64,
    pub bytes_out: u64,
}

/// A running hash of all that happens.
#[derive(Debug)]
struct Trace {
    hash: u64,
    print: bool,
}

/// Everything outside the shards: the kernel's side of each ring, the network, the clients' ends of the sockets, time.
#[derive(Debug)]
pub struct World {
    pub rng: Rng,
    pub faults: Faults,
    pub tally: Tally,
    pub(super) now_us: u64,
    wall_offset_ms: i64,
    events: BTreeMap<(u64, u64), Event>,
    event_count: u64,
    pub(super) hosts: Vec<Host>,
    /// Hosts of which the second does not hear the first.
    pub(super) cuts: BTreeSet<(usize, usize)>,
    pub(super) rings: Vec<Ring>,
    pub(super) places: Vec<Place>,
    /// Where simulated servers listen, which are no rings.
    pub(super) outside: BTreeSet<SocketAddr>,
    /// Their connections that nobody has taken yet.
    pub(super) met: Vec<(SocketAddr, usize)>,
    pub(super) sockets: Vec<Socket>,
    /// Sockets whose client has something new to read.
    pub(super) stirred: Vec<usize>,
    /// Random bytes the shards ask for.
    secrets: Rng,
    trace: Trace,
}

impl World {
    /// A world of one host, with one ring for each shard.
    pub fn new(seed: u64, faults: Faults, rings: usize, listeners: u16, limits: &Limits, print: bool) -> Self {
        World {
            rng: Rng::new(seed),
            faults,
            tally: Tally::default(),
            now_us: 0,
            wall_offset_ms: WALL_MS,
            events: BTreeMap::new(),
            event_count: 0,
            hosts: vec![Host::default()],
            cuts: BTreeSet::new(),
            rings: (0..rings).map(|_| Ring::new(0, limits, listeners)).collect(),
            places: Vec::new(),
            outside: BTreeSet::new(),
            met: Vec::new(),
            sockets: Vec::new(),
            stirred: Vec::new(),
            secrets: Rng::new(seed ^ 0x005E_C2E7),
            trace: Trace { hash: 0xCBF2_9CE4_8422_2325, print },
        }
    }

    /// Adds a host. Returns its number.
    pub fn add_host(&mut self, host: Host) -> usize {
        self.hosts.push(host);
        self.hosts.len() - 1
    }

    /// Adds the rings of a process that starts on a host. Returns the first one's number.
    pub fn add_rings(&mut self, host: usize, rings: u16, listeners: u16, limits: &Limits) -> usize {
        let first = self.rings.len();
        self.rings.extend((0..rings).map(|_| Ring::new(host, limits, listeners)));
        first
    }

    /// Microseconds since the run began.
    pub fn now_us(&self) -> u64 {
        self.now_us
    }

    /// The time, as the host of a ring sees it.
    pub(super) fn now(&self, ring: usize) -> Now {
        let host = self.hosts[self.rings[ring].host];
        let passed_ms = self.now_us / 1_000;
        let wall_ms = (self.wall_offset_ms + host.wall_offset_ms + passed_ms as i64) as u64;
        let mono_ms = host.clock.at_ms(self.now_us);
        Now { mono_ms, mono_us: mono_ms * 1_000, wall_ms }
    }

    /// The clock of a host.
    pub fn clock(&self, host: usize) -> Clock {
        self.hosts[host].clock
    }

    /// The wall clock of a host that has no offset of its own.
    pub fn wall_ms(&self) -> u64 {
        (self.wall_offset_ms + (self.now_us / 1_000) as i64) as u64
    }

    /// Somebody sets the wall clock forwards or backwards.
    pub fn set_wall_clock(&mut self, step_ms: i64) {
        self.wall_offset_ms += step_ms;
    }

    pub(super) fn secret(&mut self) -> [u8; 32] {
        let mut bytes = [0; 32];
        for word in bytes.as_chunks_mut::<8>().0 {
            *word = self.secrets.bits().to_le_bytes();
        }
        bytes
    }

    /// Adds to the trace; FNV-1a over what happened, to what, and when.
    pub fn note(&mut self, what: &'static str, a: u64, b: u64) {
        if self.trace.print {
            println!("{:>10}.{:03} {what} {a} {b}", self.now_us / 1_000, self.now_us % 1_000);
        }
        // A word at a time: this is called for all that happens. The rotation lets high bits reach low ones, which
        // multiplying alone does not.
        for word in what.bytes().map(u64::from).chain([self.now_us, a, b]) {
            self.trace.hash = (self.trace.hash ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29);
        }
    }

    /// Hash of all that has happened.
    pub fn trace_hash(&self) -> u64 {
        self.trace.hash
    }

    /// When the next event is due.
    pub fn next_event_us(&self) -> Option<u64> {
        self.events.first_key_value().map(|((due_us, _), _)| *due_us)
    }

    /// Lets time pass; what is due by then happens.
    pub fn advance(&mut self, to_us: u64) {
        while let Some(entry) = self.events.first_entry()
            && entry.key().0 <= to_us
        {
            let ((due_us, _), event) = entry.remove_entry();
            self.now_us = due_us;
            self.happen(event);
        }
        self.now_us = to_us;
    }

    /// Lets time pass to the next event, or to `due_us` if that is sooner: the time then. `None` if neither is before
    /// `end_us`, to which it passes then.
    pub fn pass(&mut self, due_us: u64, end_us: u64) -> Option<u64> {
        let next_us = self.next_event_us().unwrap_or(u64::MAX).min(due_us).max(self.now_us);
        self.advance(next_us.min(end_us));
        (next_us <= end_us).then_some(next_us)
    }

    pub(super) fn schedule(&mut self, due_us: u64, event: Event) {
        self.event_count += 1;
        self.events.insert((due_us, self.event_count), event);
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Post { ring, .. } if self.rings[ring].dead => {}
            Event::Post { ring, completion, bytes } => {
                if matches!(completion, Completion::Tick) {
                    self.maybe_set_clock();
                }
                self.rings[ring].completions.push_back((completion, bytes));
            }
            Event::Connect { socket, ring, listener } => self.connected(socket, ring, listener),
            Event::ToServer { socket, segment } => self.reached_server(socket, segment),
            Event::ToClient { socket, segment } => self.reached_client(socket, segment),
            Event::Syn { ring, token, address, give_up_us } => self.syn(ring, token, address, give_up_us),
            Event::Established { ring, token, socket } => self.established(ring, token, socket),
        }
    }

    fn maybe_set_clock(&mut self) {
        if self.rng.chance(self.faults.clock_set) {
            let step_ms = self.rng.within(0, 8_000) as i64 - 4_000;
            self.tally.clock_set_back += u64::from(step_ms < 0);
            self.wall_offset_ms += step_ms;
            self.note("clock set", step_ms as u64, 0);
        }
    }

    /// Posts a completion some time from now, but not before `after_us`. Returns when.
    pub(super) fn post(&mut self, ring: usize, after_us: u64, completion: Completion, bytes: Vec<u8>) -> u64 {
        let late = if self.rng.chance(self.faults.late) { self.faults.late_us_max } else { 20 };
        let due_us = (self.now_us + 1 + self.rng.below(late)).max(after_us);
        self.schedule(due_us, Event::Post { ring, completion, bytes });
        due_us
    }

    /// Queues a submission.
    pub(super) fn push(&mut self, ring: usize, submission: Submission) {
        if let Submission::Tick { .. } = submission {
            assert!(!self.rings[ring].ticking, "contract: one tick at a time");
            self.rings[ring].ticking = true;
        }
        if let Submission::Pause { .. } = submission {
            assert!(!self.rings[ring].pausing, "contract: one pause at a time");
            self.rings[ring].pausing = true;
        }
        self.rings[ring].submissions.push_back(submission);
        if self.rng.chance(self.faults.submit_early) {
            self.rings[ring].sq_full += 1;
            self.submit(ring, usize::MAX);
        }
    }

    pub(super) fn ask_accept(&mut self, ring: usize, listener: u16, multishot: bool, with_peer: bool) {
        assert!(!self.rings[ring].listeners[usize::from(listener)].closed, "contract: accept on a closed listener");
        self.push(ring, Submission::Accept { listener, multishot, with_peer });
    }

    /// Closes a listener at once. Accepts that are armed hold on to it until they are cancelled.
    pub(super) fn stop_listening(&mut self, ring: usize, listener: u16) {
        self.rings[ring].listeners[usize::from(listener)].closed = true;
        self.refuse_backlog(ring, listener.into());
    }

    pub(super) fn ask_dial(&mut self, ring: usize, token: u32, address: SocketAddr) {
        assert!(self.rings[ring].dials.insert(token), "contract: two dials under way with token {token}");
        self.push(ring, Submission::Dial { token, address });
    }

    /// Resets what waits at a listener that nothing holds any more.
    pub(super) fn refuse_backlog(&mut self, ring: usize, listener: usize) {
        let Listener { closed, armed, backlog } = &mut self.rings[ring].listeners[listener];
        if *closed && armed.is_empty() {
            for socket in std::mem::take(backlog) {
                self.refuse(socket);
            }
        }
    }

    pub(super) fn ask_read(&mut self, ring: usize, conn: ConnId, kind: ReadOp) {
        let usage = self.rings[ring].usage(conn, "read");
        assert!(usage.read.is_none(), "contract: a second read on {conn:?}");
        assert!(!usage.handing_over, "contract: read on {conn:?} while it is handed over");
        usage.read = Some(Read { conn, kind, stage: Stage::Queued, due_us: 0, brought: false });
        self.push(ring, Submission::Read { slot: conn.slot });
    }

    pub(super) fn ask_read_cancel(&mut self, ring: usize, conn: ConnId, kind: ReadOp) {
        let usage = self.rings[ring].usage(conn, "cancel of a read");
        assert_eq!(
            usage.read.as_ref().map(|read| read.kind),
            Some(kind),
            "contract: cancel of another read on {conn:?}"
        );
        self.push(ring, Submission::ReadCancel { conn, kind });
    }

    pub(super) fn ask_send(&mut self, ring: usize, conn: ConnId, buf: Vec<u8>, offset: usize) -> SendId {
        let kernel = &mut self.rings[ring];
        let free = kernel.sends.iter().position(Option::is_none);
        let index = free.unwrap_or_else(|| {
            kernel.sends.push(None);
            kernel.sends.len() - 1
        });
        kernel.sends[index] = Some(conn.slot);
        let id = SendId(index as u32);
        let usage = kernel.usage(conn, "send");
        assert!(usage.send.is_none(), "contract: a second send on {conn:?}");
        assert!(!usage.handing_over && !usage.shutting, "contract: send on {conn:?} after its shutdown or hand-over");
        assert!(offset < buf.len(), "contract: an empty send on {conn:?}");
        usage.send = Some(Send { conn, id, buf, offset, stage: Stage::Queued });
        self.push(ring, Submission::Send { slot: conn.slot });
        id
    }

    pub(super) fn ask_shutdown(&mut self, ring: usize, conn: ConnId) {
        let usage = self.rings[ring].usage(conn, "shutdown");
        assert!(!usage.shutting && usage.send.is_none(), "contract: shutdown of {conn:?} twice or during a send");
        usage.shutting = true;
        self.push(ring, Submission::Shutdown { slot: conn.slot });
    }

    pub(super) fn ask_close(&mut self, ring: usize, slot: u32, reset: bool) {
        let usage = self.rings[ring].used(slot).expect("contract: close of a free slot");
        assert!(usage.known && !usage.closing, "contract: slot {slot} closed twice or before it was known");
        assert!(usage.read.is_none(), "contract: close of slot {slot} during a read");
        assert!(usage.send.is_none(), "contract: close of slot {slot} during a send");
        assert!(
            !usage.shutting && !usage.handing_over,
            "contract: close of slot {slot} during a shutdown or hand-over"
        );
        usage.closing = true;
        self.push(ring, Submission::Close { slot, reset });
    }

    pub(super) fn ask_hand_over(&mut self, ring: usize, conn: ConnId, target: usize, token: HandoverToken) {
        assert_ne!(ring, target, "contract: hand-over to the same ring");
        let usage = self.rings[ring].usage(conn, "hand-over");
        let idle = usage.read.is_none() && usage.send.is_none() && !usage.shutting && !usage.handing_over;
        assert!(idle, "contract: hand-over of {conn:?} while something else is under way");
        usage.handing_over = true;
        self.push(ring, Submission::HandOver { slot: conn.slot, ring: target, token });
    }

    /// Receive buffers a ring was set up with.
    pub(super) fn buffer_count(&self, ring: usize) -> usize {
        self.rings[ring].buffers.len() + self.rings[ring].bulk.len()
    }

    pub(super) fn release(&mut self, ring: usize, buf: BufId) {
        self.rings[ring].release(buf);
    }

    pub(super) fn publish_buffers(&mut self, ring: usize) {
        let Ring { buffers, bulk, .. } = &mut self.rings[ring];
        buffers.publish();
        bulk.publish();
    }

    pub(super) fn sq_full(&self, ring: usize) -> u64 {
        self.rings[ring].sq_full
    }

    /// Completions waiting to be taken.
    pub fn completions(&self, ring: usize) -> usize {
        self.rings[ring].completions.len()
    }

    /// Submissions the kernel has not seen.
    pub fn unsubmitted(&self, ring: usize) -> usize {
        self.rings[ring].submissions.len()
    }

    /// Takes the next completion. An operation whose final one this is, is no longer under way.
    pub(super) fn take_completion(&mut self, ring: usize) -> Option<(Completion, Vec<u8>)> {
        let (completion, bytes) = self.rings[ring].completions.pop_front()?;
        let kernel = &mut self.rings[ring];
        match &completion {
            Completion::Recv { conn, more: false, .. } | Completion::Readable { conn, .. } => {
                kernel.usage(*conn, "final completion of a read").read = None;
            }
            Completion::Sent { conn, .. } => {
                let send = kernel.usage(*conn, "completion of a send").send.take().expect("a send completes once");
                kernel.sends[send.id.0 as usize] = None;
            }
            Completion::ShutDown { conn } => kernel.usage(*conn, "completion of a shutdown").shutting = false,
            Completion::HandedOver { conn, .. } => {
                kernel.usage(*conn, "completion of a hand-over").handing_over = false
            }
            Completion::Accept { result: Ok(slot), .. } => {
                kernel.used(*slot).expect("an accepted slot is in use").known = true;
                self.tally.accepted += 1;
            }
            Completion::Adopted { slot, .. } => kernel.used(*slot).expect("an adopted slot is in use").known = true,
            Completion::Dialed { token, result } => {
                assert!(kernel.dials.remove(token), "a dial ends once");
                if let Ok(slot) = result {
                    kernel.used(*slot).expect("a dialed slot is in use").known = true;
                }
            }
            Completion::Tick => kernel.ticking = false,
            Completion::Paused => kernel.pausing = false,
            Completion::Accept { .. } | Completion::Recv { .. } | Completion::Closed { .. } | Completion::Wake => {}
        }
        let (what, a) = describe(&completion);
        self.note(what, ring as u64, a);
        Some((completion, bytes))
    }

    /// Arms an accept.
    pub(super) fn arm_accept(&mut self, ring: usize, listener: usize, multishot: bool, with_peer: bool) {
        self.rings[ring].listeners[listener].armed.push_back(Accept { multishot, with_peer, due_us: 0 });
    }

    /// Whether something is on its way that will make the shard look into its mailbox, the tick aside.
    pub fn will_be_woken(&self, ring: usize) -> bool {
        let wakes = |completion: &Completion, to: usize| match completion {
            Completion::Wake | Completion::Adopted { .. } => to == ring,
            // The shard that failed to hand a connection over writes to the other one, and wakes it.
            Completion::HandedOver { result: Err(_), .. } => true,
            _ => false,
        };
        let queued = self.rings.iter().flat_map(|kernel| &kernel.submissions).any(|submission| match submission {
            Submission::Wake { ring: to } | Submission::HandOver { ring: to, .. } => *to == ring,
            _ => false,
        });
        let under_way = self.events.values().any(|event| match event {
            Event::Post { ring: to, completion, .. } => wakes(completion, *to),
            _ => false,
        });
        let posted = (0..self.rings.len())
            .any(|to| self.rings[to].completions.iter().any(|(completion, _)| wakes(completion, to)));
        queued || under_way || posted
    }

    /// Descriptors in a ring's table.
    pub fn slots_used(&self, ring: usize) -> usize {
        self.rings[ring].slots.iter().filter(|slot| slot.usage.is_some()).count()
    }

    /// Buffers the kernel may fill, those just given back included.
    pub fn buffers_with_kernel(&self, ring: usize) -> usize {
        self.rings[ring].buffers.with_kernel() + self.rings[ring].bulk.with_kernel()
    }
}

fn describe(completion: &Completion) -> (&'static str, u64) {
    let code = |result: &Result<usize, i32>| match result {
        Ok(len) => *len as u64,
        Err(errno) => u64::MAX - *errno as u64,
    };
    match completion {
        Completion::Accept { result, .. } => ("< accept", code(&result.map(|slot| slot as usize))),
        Completion::Readable { conn, .. } => ("< readable", conn.slot.into()),
        Completion::Recv { conn, result, .. } => ("< recv", u64::from(conn.slot) << 32 | code(result) & 0xFFFF_FFFF),
        Completion::Sent { conn, result, .. } => ("< sent", u64::from(conn.slot) << 32 | code(result) & 0xFFFF_FFFF),
        Completion::ShutDown { conn } => ("< shut down", conn.slot.into()),
        Completion::Closed { slot } => ("< closed", (*slot).into()),
        Completion::HandedOver { conn, result } => {
            ("< handed over", u64::from(conn.slot) << 1 | u64::from(result.is_err()))
        }
        Completion::Adopted { slot, .. } => ("< adopted", (*slot).into()),
        Completion::Dialed { token, result } => {
            ("< dialed", u64::from(*token) << 32 | code(&result.map(|slot| slot as usize)) & 0xFFFF_FFFF)
        }
        Completion::Tick => ("< tick", 0),
        Completion::Paused => ("< paused", 0),
        Completion::Wake => ("< wake", 0),
    }
}
