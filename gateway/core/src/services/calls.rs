//! Open calls at the shard of the worker's link, in the order in which their time ends.
//!
//! A service has one time-out, so the calls of a service end in the order in which they came: a list through the table,
//! from which each call leaves at once when it is answered. Nothing has to be searched for, and nothing is left behind.

use super::PickKey;
use crate::ids::NodeKey;
use crate::io::ConnId;
use trunkline_proto::call_flags;
use trunkline_router_core::balance::ServerId;

const NONE: u32 = u32::MAX;

/// Names a call. An answer that comes after its call has ended finds no other call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CallKey {
    index: u32,
    generation: u32,
}

impl CallKey {
    /// As workers are told it.
    pub(crate) fn to_wire(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.index)
    }

    /// What a worker says; it may name nothing.
    pub(crate) fn from_wire(id: u64) -> Self {
        CallKey { index: id as u32, generation: (id >> 32) as u32 }
    }

    /// As other nodes are told it, in the place of a connection.
    pub(crate) fn to_conn(self) -> ConnId {
        ConnId { slot: self.index, generation: self.generation }
    }

    /// What another node says; it may name nothing.
    pub(crate) fn from_conn(conn: ConnId) -> Self {
        CallKey { index: conn.slot, generation: conn.generation }
    }
}

/// Whose call it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// [`NodeKey::OWN`] for a session of this node.
    pub(crate) node: NodeKey,
    /// The shard of the session, or the one of another node that has the call.
    pub shard: u16,
    /// The connection, or the key of the call at that node.
    pub conn: ConnId,
}

impl Caller {
    /// A session of this node.
    pub(crate) const fn own(shard: u16, conn: ConnId) -> Self {
        Caller { node: NodeKey::OWN, shard, conn }
    }

    /// Whether another node has handed the call on.
    pub(crate) fn is_far(&self) -> bool {
        self.node != NodeKey::OWN
    }
}

/// What is kept of a call that may have to be sent, or sent again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    pub(crate) head: Box<[u8]>,
    pub(crate) body: Box<[u8]>,
}

impl Kept {
    /// Bytes of it.
    pub(crate) fn bytes(&self) -> usize {
        self.head.len() + self.body.len()
    }
}

/// Where a call is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// On its way from one place to another, within one step.
    Nowhere,
    /// It waits until a worker has room.
    Queue,
    /// A worker has it.
    Link { slot: u32, server: ServerId },
    /// That shard of another node has it.
    Node { node: NodeKey, shard: u16 },
}

/// An open call.
#[derive(Clone, Debug)]
pub struct Call {
    pub(crate) caller: Caller,
    /// The caller's id for it.
    pub(crate) id: u64,
    pub(crate) user: u64,
    /// What a hash is made of for it.
    pub(crate) pick_key: PickKey,
    pub(crate) service: u16,
    /// Those of [`call_flags`](trunkline_proto::call_flags) that CALL had.
    pub(crate) flags: u8,
    /// How often it was given to a worker.
    pub(crate) tries: u8,
    /// How often it was handed to another node.
    pub(crate) far_tries: u8,
    /// Another worker may have had it before it came to this node.
    pub(crate) again: bool,
    /// It waits for a worker with room.
    pub(crate) may_wait: bool,
    /// A worker that had it was lost: it may have been carried out, whatever becomes of it now.
    pub(crate) may_be_done: bool,
    /// An answer with MORE has come: nobody else can go on with it.
    pub(crate) has_begun: bool,
    pub(crate) deadline_tick: u32,
    /// When nobody waits for it any more, as its worker is told; that may be before the deadline.
    pub(crate) ends_tick: u32,
    /// When it was given to its worker, microseconds.
    pub(crate) sent_us: u64,
    pub(crate) at: At,
    pub(crate) kept: Option<Box<Kept>>,
}

impl Call {
    /// Whether it may be carried out more than once, so that it is kept for another worker. `idempotent`: its service
    /// says so.
    pub(crate) fn keeps(&self, idempotent: bool) -> bool {
        // Of another node's call that is decided there.
        !self.caller.is_far() && (idempotent || self.flags & call_flags::SAFE != 0) && !self.has_begun
    }
}

/// A list of calls, the one whose time ends first at its front.
#[derive(Clone, Copy, Debug)]
pub struct Fifo {
    head: u32,
    tail: u32,
}

impl Default for Fifo {
    fn default() -> Self {
        Fifo { head: NONE, tail: NONE }
    }
}

#[derive(Debug)]
struct Entry {
    generation: u32,
    next: u32,
    prev: u32,
    call: Option<Call>,
}

/// Bytes that an open call takes in the table.
pub const CALL_BYTES: usize = size_of::<Entry>() + size_of::<u32>();

/// The table of open calls.
#[derive(Debug, Default)]
pub struct Calls {
    entries: Vec<Entry>,
    free: Vec<u32>,
}

impl Calls {
    /// Calls that are open.
    pub(crate) fn len(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    /// Adds a call at the end of a list.
    pub(crate) fn add(&mut self, fifo: &mut Fifo, call: Call) -> CallKey {
        let index = match self.free.pop() {
            Some(index) => index,
            None => {
                self.entries.push(Entry { generation: 0, next: NONE, prev: NONE, call: None });
                self.entries.len() as u32 - 1
            }
        };
        let entry = &mut self.entries[index as usize];
        // 0 is never the generation of an open call, so that no worker's 0 names one.
        entry.generation = entry.generation.wrapping_add(1).max(1);
        entry.call = Some(call);
        let generation = entry.generation;
        self.link(fifo, index);
        CallKey { index, generation }
    }

    /// The call, if it is open.
    pub(crate) fn get(&mut self, key: CallKey) -> Option<&mut Call> {
        let entry = self.entries.get_mut(key.index as usize).filter(|entry| entry.generation == key.generation)?;
        entry.call.as_mut()
    }

    /// Takes a call out of the table and of the list it is in.
    pub(crate) fn remove(&mut self, fifo: &mut Fifo, key: CallKey) -> Option<Call> {
        self.get(key)?;
        self.unlink(fifo, key.index);
        self.free.push(key.index);
        self.entries[key.index as usize].call.take()
    }

    /// Moves a call from its list to the end of another one.
    pub(crate) fn transfer(&mut self, from: &mut Fifo, to: &mut Fifo, key: CallKey) {
        if self.get(key).is_some() {
            self.unlink(from, key.index);
            self.link(to, key.index);
        }
    }

    /// The first call of a list, if its time has ended.
    pub(crate) fn overdue(&self, fifo: &Fifo, tick: u32) -> Option<CallKey> {
        let entry = self.entries.get(fifo.head as usize)?;
        let due = entry.call.as_ref().is_some_and(|call| call.deadline_tick <= tick);
        due.then_some(CallKey { index: fifo.head, generation: entry.generation })
    }

    /// The calls of a list, in order.
    pub(crate) fn in_order(&self, fifo: &Fifo) -> impl Iterator<Item = (CallKey, &Call)> {
        let mut index = fifo.head;
        std::iter::from_fn(move || {
            let entry = self.entries.get(index as usize)?;
            let key = CallKey { index, generation: entry.generation };
            index = entry.next;
            entry.call.as_ref().map(|call| (key, call))
        })
    }

    fn link(&mut self, fifo: &mut Fifo, index: u32) {
        let entry = &mut self.entries[index as usize];
        (entry.prev, entry.next) = (fifo.tail, NONE);
        match self.entries.get_mut(fifo.tail as usize) {
            Some(last) => last.next = index,
            None => fifo.head = index,
        }
        fifo.tail = index;
    }

    fn unlink(&mut self, fifo: &mut Fifo, index: u32) {
        let Entry { next, prev, .. } = self.entries[index as usize];
        match self.entries.get_mut(prev as usize) {
            Some(before) => before.next = next,
            None => fifo.head = next,
        }
        match self.entries.get_mut(next as usize) {
            Some(behind) => behind.prev = prev,
            None => fifo.tail = prev,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;

    fn call(id: u64, deadline_tick: u32) -> Call {
        Call {
            pick_key: PickKey::Number(0),
            caller: Caller::own(0, ConnId { slot: 1, generation: 1 }),
            id,
            user: 1,
            service: 7,
            flags: 0,
            tries: 0,
            far_tries: 0,
            again: false,
            may_wait: true,
            may_be_done: false,
            has_begun: false,
            deadline_tick,
            ends_tick: deadline_tick,
            sent_us: 0,
            at: At::Queue,
            kept: None,
        }
    }

    /// A model of two lists against the table, with what happens drawn from a fixed sequence.
    #[test]
    fn calls_end_in_the_order_they_came_whatever_leaves_between() {
        let (mut calls, mut fifos) = (Calls::default(), [Fifo::default(); 2]);
        let mut model: [VecDeque<(u64, CallKey)>; 2] = [VecDeque::new(), VecDeque::new()];
        let mut state = 1u64;
        let mut draw = |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        let mut gone = Vec::new();
        for id in 1..20_000 {
            let list = draw(2) as usize;
            match draw(5) {
                0 | 1 => {
                    let key = calls.add(&mut fifos[list], call(id, id as u32));
                    model[list].push_back((id, key));
                }
                2 if !model[list].is_empty() => {
                    let at = draw(model[list].len() as u64) as usize;
                    let (id, key) = model[list].remove(at).expect("drawn below its length");
                    assert_eq!(calls.remove(&mut fifos[list], key).map(|call| call.id), Some(id));
                    gone.push(key);
                }
                3 if !model[list].is_empty() => {
                    let at = draw(model[list].len() as u64) as usize;
                    let moved = model[list].remove(at).expect("drawn below its length");
                    let [one, other] = &mut fifos;
                    let (from, to) = if list == 0 { (one, other) } else { (other, one) };
                    calls.transfer(from, to, moved.1);
                    model[1 - list].push_back(moved);
                }
                _ => {
                    let front = model[list].front().map(|(_, key)| *key);
                    assert_eq!(calls.overdue(&fifos[list], u32::MAX), front);
                }
            }
            if let Some(key) = gone.last() {
                assert!(calls.get(*key).is_none(), "a call that has ended is not found again");
            }
            for (fifo, model) in fifos.iter().zip(&model) {
                assert!(calls.in_order(fifo).map(|(key, call)| (call.id, key)).eq(model.iter().copied()));
            }
            assert_eq!(calls.len(), model[0].len() + model[1].len());
        }
        assert!(gone.len() > 1_000);
    }

    #[test]
    fn a_key_comes_back_from_a_worker_as_it_went_and_0_is_none() {
        let (mut calls, mut fifo) = (Calls::default(), Fifo::default());
        let key = calls.add(&mut fifo, call(1, 1));
        assert_eq!(CallKey::from_wire(key.to_wire()), key);
        assert_ne!(key.to_wire(), 0);
        assert!(calls.get(CallKey::from_wire(0)).is_none());
        assert!(calls.get(CallKey::from_wire(u64::MAX)).is_none());
    }
}
