//! What one shard counts of calls: those that came from other shards, the bytes that are kept of them, and those that
//! wait. Each number changes where what it counts does.

use super::{At, Call, CallKey, Caller, Kept, ServiceLink, Services};
use crate::ids::NodeKey;

impl Services {
    /// The call that another shard, of this node or another, has brought for this caller.
    pub(crate) fn foreign(&self, caller: Caller, id: u64) -> Option<CallKey> {
        self.foreign.get(&(caller.node, caller.shard, caller.conn, id)).copied()
    }

    /// Another shard has brought a call.
    pub(crate) fn note_foreign(&mut self, caller: Caller, id: u64, key: CallKey) {
        self.foreign.insert((caller.node, caller.shard, caller.conn, id), key);
    }

    /// Calls that such nodes have handed to this one.
    pub(crate) fn foreign_of(&self, is_of: impl Fn(NodeKey) -> bool) -> Vec<CallKey> {
        let of_nodes = self.foreign.iter().filter(|((node, ..), _)| *node != NodeKey::OWN && is_of(*node));
        of_nodes.map(|(_, key)| *key).collect()
    }

    /// Whether calls of other nodes are open here.
    pub(crate) fn has_far_calls(&self) -> bool {
        self.foreign.keys().any(|(node, ..)| *node != NodeKey::OWN)
    }

    /// Bytes of calls that are kept because they may have to be sent, or sent again.
    pub(crate) fn kept_bytes(&self) -> usize {
        self.kept_bytes
    }

    /// Keeps what a worker may have to get later. False if more than `bytes_max` would be kept: then it is not.
    pub(crate) fn keep(&mut self, key: CallKey, kept: Kept, bytes_max: usize) -> bool {
        if self.kept_bytes + kept.bytes() > bytes_max {
            return false;
        }
        if let Some(call) = self.calls.get(key) {
            debug_assert!(call.kept.is_none(), "what was kept of it would stay counted");
            self.kept_bytes += kept.bytes();
            call.kept = Some(Box::new(kept));
        }
        true
    }

    /// Keeps a request that was never sent, unless that is kept already. It was admitted, so it is kept whatever else
    /// is: no more than a link's queue holds.
    pub(crate) fn keep_unsent(&mut self, key: CallKey, kept: Kept) {
        if let Some(call) = self.calls.get(key)
            && call.kept.is_none()
        {
            self.kept_bytes += kept.bytes();
            call.kept = Some(Box::new(kept));
        }
    }

    /// What was taken from a call is kept on. Where the call is over, or with `keeps` false, it is not.
    pub(crate) fn put_back(&mut self, key: CallKey, kept: Box<Kept>, keeps: bool) {
        match self.calls.get(key) {
            Some(call) if keeps => call.kept = Some(kept),
            _ => self.drop_kept(&kept),
        }
    }

    /// What was kept of a call is not needed any more.
    pub(crate) fn drop_kept(&mut self, kept: &Kept) {
        debug_assert!(self.kept_bytes >= kept.bytes(), "it was counted when it was kept");
        self.kept_bytes -= kept.bytes();
    }

    /// The first part of an answer has come: from now on the call has another time, and nobody else can go on with it.
    pub(crate) fn begin_answer(&mut self, key: CallKey, deadline_tick: u32) {
        let Some(call) = self.calls.get(key).filter(|call| !call.has_begun) else { return };
        call.has_begun = true;
        call.deadline_tick = deadline_tick;
        let (service, kept) = (call.service, call.kept.take());
        if let Some(kept) = kept {
            self.drop_kept(&kept);
        }
        if let Some(pool) = self.pools.get_mut(&service) {
            self.calls.transfer(&mut pool.fifo, &mut self.streams, key);
        }
    }

    /// The next call of a service whose time is over.
    pub(crate) fn overdue(&self, service: u16, tick: u32) -> Option<CallKey> {
        self.pools.get(&service).and_then(|pool| self.calls.overdue(&pool.fifo, tick))
    }

    /// The next call whose time is over of those that have had an answer with MORE.
    pub(crate) fn overdue_stream(&self, tick: u32) -> Option<CallKey> {
        self.calls.overdue(&self.streams, tick)
    }

    /// The calls that a link has, in the order in which they came.
    pub(crate) fn calls_of_link(&self, slot: u32, link: &ServiceLink) -> Vec<CallKey> {
        let is_there = |(key, call): (CallKey, &Call)| match call.at {
            At::Link { slot: has_it, .. } if has_it == slot => Some(key),
            _ => None,
        };
        let mut keys = Vec::new();
        for pool in link.services.iter().filter_map(|service| self.pools.get(service)) {
            keys.extend(self.calls.in_order(&pool.fifo).filter_map(is_there));
        }
        keys.extend(self.calls.in_order(&self.streams).filter_map(is_there));
        keys
    }

    /// The calls that such nodes have, each with its id and where it is.
    pub(crate) fn calls_at_nodes(&self, is_at: impl Fn(NodeKey) -> bool) -> Vec<(CallKey, u64, NodeKey, u16)> {
        let is_there = |(key, call): (CallKey, &Call)| match call.at {
            At::Node { node, shard } if is_at(node) => Some((key, call.id, node, shard)),
            _ => None,
        };
        let mut calls = Vec::new();
        for fifo in self.pools.values().map(|pool| &pool.fifo).chain([&self.streams]) {
            calls.extend(self.calls.in_order(fifo).filter_map(is_there));
        }
        calls
    }

    /// Calls that wait for room at a worker.
    pub(crate) fn queued(&self) -> usize {
        self.queued
    }

    /// Lets a call wait for a worker that has room: behind all others, or at this place among them.
    pub(crate) fn queue(&mut self, key: CallKey, place: Option<usize>) {
        let Some(call) = self.calls.get(key) else { return };
        call.at = At::Queue;
        let Some(pool) = self.pools.get_mut(&call.service) else { return };
        pool.enqueue(key, place);
        self.queued += 1;
    }

    /// The call of a service that has waited longest waits no more.
    pub(crate) fn unqueue_first(&mut self, service: u16) {
        debug_assert!(self.queued > 0, "a call that waits is counted");
        self.queued -= 1;
        if let Some(pool) = self.pools.get_mut(&service) {
            pool.dequeue();
        }
    }
}
