//! A ring as the kernel sees it: descriptor table, receive buffers, both queues, operations under way.

use super::super::{BufId, Completion, ConnId, HandoverToken, ReadOp, SendId};
use crate::limits::Limits;
use std::collections::{BTreeSet, VecDeque};
use std::net::SocketAddr;

/// A queued submission. Those of a connection find their particulars in its slot.
#[derive(Debug)]
pub(crate) enum Submission {
    Accept { listener: u16, multishot: bool },
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
    pub(crate) conn: ConnId,
    pub(crate) kind: ReadOp,
    pub(crate) stage: Stage,
    /// When its latest completion is due; the next one is not earlier.
    pub(crate) due_us: u64,
}

#[derive(Debug)]
pub(crate) struct Send {
    pub(crate) conn: ConnId,
    pub(crate) id: SendId,
    pub(crate) buf: Vec<u8>,
    pub(crate) offset: usize,
    pub(crate) stage: Stage,
}

/// One use of a slot.
#[derive(Debug)]
pub(crate) struct Usage {
    pub(crate) socket: usize,
    /// The shard has been told of it.
    pub(crate) known: bool,
    /// As of the shard's first operation on it.
    pub(crate) generation: Option<u32>,
    pub(crate) read: Option<Read>,
    pub(crate) send: Option<Send>,
    pub(crate) shutting: bool,
    pub(crate) handing_over: bool,
    pub(crate) closing: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Slot {
    pub(crate) usage: Option<Usage>,
    /// Generation of the latest use on which something was asked for.
    pub(crate) generation: Option<u32>,
    /// When the completion that freed it is due; that of the next use comes later.
    pub(crate) due_us: u64,
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
        });
    }
}

/// One armed accept.
#[derive(Debug)]
pub(crate) struct Accept {
    pub(crate) multishot: bool,
    pub(crate) due_us: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Listener {
    pub(crate) closed: bool,
    /// It was asked to tell who connects.
    pub(crate) tells: bool,
    pub(crate) armed: VecDeque<Accept>,
    pub(crate) backlog: VecDeque<usize>,
}

#[derive(Debug)]
pub(crate) struct Ring {
    pub(crate) slots: Vec<Slot>,
    pub(crate) listeners: Vec<Listener>,
    pub(crate) buffers: usize,
    pub(crate) buffer_bytes: usize,
    pub(crate) buffers_free: Vec<BufId>,
    /// Given back by the shard, not yet shown to the kernel.
    pub(crate) buffers_released: Vec<BufId>,
    pub(crate) submissions: VecDeque<Submission>,
    pub(crate) completions: VecDeque<(Completion, Vec<u8>)>,
    /// Slot of each send under way, by its id. Ids are used again as soon as the shard has the completion.
    pub(crate) sends: Vec<Option<u32>>,
    pub(crate) ticking: bool,
    /// Tokens of the dials under way.
    pub(crate) dials: BTreeSet<u32>,
    /// Its process has been killed.
    pub(crate) dead: bool,
    pub(crate) host: usize,
    pub(crate) sq_full: u64,
}

impl Ring {
    pub(crate) fn new(host: usize, limits: &Limits, listeners: u16) -> Self {
        Ring {
            slots: (0..limits.slots()).map(|_| Slot::default()).collect(),
            listeners: (0..listeners).map(|_| Listener::default()).collect(),
            buffers: usize::from(limits.recv_buffers),
            buffer_bytes: limits.recv_buffer_bytes as usize,
            buffers_free: (0..limits.recv_buffers).map(BufId).collect(),
            buffers_released: Vec::new(),
            submissions: VecDeque::new(),
            completions: VecDeque::new(),
            sends: Vec::new(),
            ticking: false,
            dials: BTreeSet::new(),
            dead: false,
            host,
            sq_full: 0,
        }
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
