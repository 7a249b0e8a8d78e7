//! A ring as the kernel sees it: descriptor table, receive buffers, both queues, operations under way.

use super::super::{BufId, Completion, ConnId, HandoverToken, ReadOp, SendId};
use crate::limits::Limits;
use std::collections::{BTreeSet, VecDeque};
use std::net::SocketAddr;

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

#[derive(Debug)]
pub(crate) struct Ring {
    pub slots: Vec<Slot>,
    pub listeners: Vec<Listener>,
    pub buffers: usize,
    pub buffer_bytes: usize,
    pub buffers_free: Vec<BufId>,
    /// Given back by the shard, not yet shown to the kernel.
    pub buffers_released: Vec<BufId>,
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
            pausing: false,
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
