//! A ring as the kernel sees it: descriptor table, receive buffers, both queues, operations under way.

use super::super::{BufId, Completion, ConnId, HandoverToken, ReadOp, SendId};
use super::faults::Rng;
use crate::limits::Limits;
use std::collections::{BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::ops::Range;

/// A queued submission. Those of a connection find their particulars in its slot.
#[derive(Debug)]
pub(crate) enum Submission {
    Accept { listener: u16, multishot: bool, with_peer: bool },
    AcceptCancel { listener: u16 },
    Read { slot: u32 },
    ReadCancel { conn: ConnId, kind: ReadOp },
    Send { slot: u32 },
    SendCancel { send: SendId },
    Shutdown { slot: u32 },
    Close { slot: u32, reset: bool },
    HandOver { slot: u32, ring: usize, token: HandoverToken },
    Wake { ring: usize },
    Dial { token: u32, address: SocketAddr },
    Tick { ms: u32 },
    Pause { ms: u32 },
}

/// How far an operation has got. The shard counts it as under way through all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    Queued,
    Armed,
    /// Its final completion is posted, and a cancel comes too late.
    Posted,
}

#[derive(Debug)]
pub(crate) struct Read {
    pub conn: ConnId,
    pub kind: ReadOp,
    pub stage: Stage,
    /// When its latest completion is due; the next one is not earlier.
    pub due_us: u64,
    /// It has brought bytes.
    pub brought: bool,
}

#[derive(Debug)]
pub(crate) struct Send {
    pub conn: ConnId,
    pub id: SendId,
    pub buf: Vec<u8>,
    pub offset: usize,
    pub stage: Stage,
}

/// One use of a slot.
#[derive(Debug)]
pub(crate) struct Usage {
    pub socket: usize,
    /// The shard has been told of it.
    pub known: bool,
    /// As of the shard's first operation on it.
    pub generation: Option<u32>,
    pub read: Option<Read>,
    pub send: Option<Send>,
    pub shutting: bool,
    pub handing_over: bool,
    pub closing: bool,
    /// Reads into large buffers that found none and brought nothing, one after the other.
    pub starved: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Slot {
    pub usage: Option<Usage>,
    /// Generation of the latest use on which something was asked for.
    pub generation: Option<u32>,
    /// When the completion that freed it is due; that of the next use comes later.
    pub due_us: u64,
}

impl Slot {
    pub(crate) fn occupy(&mut self, socket: usize) {
        self.usage = Some(Usage {
            socket,
            known: false,
            generation: None,
            read: None,
            send: None,
            shutting: false,
            handing_over: false,
            closing: false,
            starved: 0,
        });
    }
}

/// One armed accept.
#[derive(Debug)]
pub(crate) struct Accept {
    pub multishot: bool,
    pub with_peer: bool,
    pub due_us: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Listener {
    pub closed: bool,
    pub armed: VecDeque<Accept>,
    pub backlog: VecDeque<usize>,
}

/// Receive buffers of one length, of which the kernel picks any.
#[derive(Debug)]
pub(crate) struct Pool {
    ids: Range<u16>,
    pub bytes: usize,
    free: Vec<BufId>,
    /// Given back by the shard, not yet shown to the kernel.
    released: Vec<BufId>,
}

impl Pool {
    fn new(ids: Range<u16>, bytes: u32) -> Self {
        Pool { free: ids.clone().map(BufId).collect(), ids, bytes: bytes as usize, released: Vec::new() }
    }

    /// Buffers it was set up with.
    pub(crate) fn len(&self) -> usize {
        self.ids.len()
    }

    /// Buffers the kernel may fill, those just given back included.
    pub(crate) fn with_kernel(&self) -> usize {
        self.free.len() + self.released.len()
    }

    pub(crate) fn take(&mut self, rng: &mut Rng) -> Option<BufId> {
        let free = self.free.len() as u64;
        if free == 0 {
            return None;
        }
        Some(self.free.swap_remove(rng.below(free) as usize))
    }

    pub(crate) fn publish(&mut self) {
        self.free.append(&mut self.released);
    }
}

#[derive(Debug)]
pub(crate) struct Ring {
    pub slots: Vec<Slot>,
    pub listeners: Vec<Listener>,
    pub buffers: Pool,
    /// Large ones, for links to other nodes that bring much; there may be none.
    pub bulk: Pool,
    pub submissions: VecDeque<Submission>,
    pub completions: VecDeque<(Completion, Vec<u8>)>,
    /// Slot of each send under way, by its id. Ids are used again as soon as the shard has the completion.
    pub sends: Vec<Option<u32>>,
    pub ticking: bool,
    pub pausing: bool,
    /// Tokens of the dials under way.
    pub dials: BTreeSet<u32>,
    /// Its process has been killed.
    pub dead: bool,
    pub host: usize,
    pub sq_full: u64,
}

impl Ring {
    pub(crate) fn new(host: usize, limits: &Limits, listeners: u16) -> Self {
        let small = limits.recv_buffers - limits.buffers_in_bulk();
        Ring {
            slots: (0..limits.slots()).map(|_| Slot::default()).collect(),
            listeners: (0..listeners).map(|_| Listener::default()).collect(),
            buffers: Pool::new(0..small, limits.recv_buffer_bytes),
            bulk: Pool::new(small..small + limits.bulk_buffers(), limits.bulk_bytes()),
            submissions: VecDeque::new(),
            completions: VecDeque::new(),
            sends: Vec::new(),
            ticking: false,
            pausing: false,
            dials: BTreeSet::new(),
            dead: false,
            host,
            sq_full: 0,
        }
    }

    /// The buffers that a read of that kind is given.
    pub(crate) fn pool(&mut self, kind: ReadOp) -> &mut Pool {
        if kind == ReadOp::Bulk && self.bulk.len() > 0 { &mut self.bulk } else { &mut self.buffers }
    }

    /// The shard has given a buffer back.
    pub(crate) fn release(&mut self, buf: BufId) {
        let pool = if self.bulk.ids.contains(&buf.0) { &mut self.bulk } else { &mut self.buffers };
        pool.released.push(buf);
    }

    /// The use of a slot the shard asks something for, which has to be the one it thinks it is.
    pub(crate) fn usage(&mut self, conn: ConnId, what: &str) -> &mut Usage {
        let slot = &mut self.slots[conn.slot as usize];
        let usage = match &mut slot.usage {
            Some(usage) if usage.known && !usage.closing => usage,
            _ => panic!("contract: {what} on {conn:?}, whose slot is free, closing or not yet known"),
        };
        match usage.generation {
            Some(generation) => {
                assert_eq!(generation, conn.generation, "contract: {what} on an earlier use of the slot")
            }
            None => {
                assert_ne!(
                    slot.generation,
                    Some(conn.generation),
                    "contract: {what}: two uses of a slot, one generation"
                );
                usage.generation = Some(conn.generation);
                slot.generation = Some(conn.generation);
            }
        }
        usage
    }

    /// The use of a slot, as long as the descriptor is in the table.
    pub(crate) fn used(&mut self, slot: u32) -> Option<&mut Usage> {
        self.slots[slot as usize].usage.as_mut()
    }
}
