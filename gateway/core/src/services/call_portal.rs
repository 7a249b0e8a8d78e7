//! The way between a shard and the services thread for calls to HTTP servers: batches of [`ServiceRecord`]s in both
//! directions.
//!
//! To the services thread go calls, and word that nobody waits for one any more; back come answers, all by [`Lanes`].
//!
//! Bounds: the bytes of calls under way to the thread are counted, and a call that finds no room is refused there and
//! then. Word of calls that nobody waits for any more is never refused: there is one for each call at most, and it is
//! small. Answers are bounded by what the thread may hold in all ([`CallPortals::answer_bytes`]).

use super::ServiceRecord;
use crate::lanes::{Lanes, ShardEnd, ThreadEnd};

/// The ways of a node's calls, one for each shard.
pub type CallPortals = Lanes<Vec<u8>, Vec<u8>>;

impl CallPortals {
    /// For so many shards.
    pub fn new(shards: u16) -> Self {
        Lanes::with(shards, ())
    }

    /// A shard's end.
    pub fn inner(&self, shard: u16) -> CallsInner {
        CallsInner { end: self.shard_end(shard), at_hand: None }
    }

    /// The services thread's end.
    pub fn outer(&self) -> CallsOuter {
        self.thread_end()
    }

    /// Bytes of answers on their way to shards.
    pub fn answer_bytes(&self) -> usize {
        self.load_to_shards()
    }
}

/// A shard's end of its portal.
#[derive(Debug)]
pub struct CallsInner {
    end: ShardEnd<Vec<u8>, Vec<u8>>,
    /// Answers that are being worked off, and how far.
    at_hand: Option<(Vec<u8>, usize)>,
}

impl CallsInner {
    /// Bytes of calls on their way.
    pub fn bytes(&self) -> usize {
        self.end.load()
    }

    /// Gathers a call. False if that would be more than so many bytes under way.
    #[must_use]
    pub fn put_call(&mut self, call: &ServiceRecord<'_>, bytes_max: usize) -> bool {
        let has_room = self.bytes() + call.encoded_len() <= bytes_max;
        if has_room {
            call.encode(&mut self.end.gathered);
        }
        has_room
    }

    /// Gathers word that nobody waits for a call any more.
    pub fn put_cancel(&mut self, cancel: &ServiceRecord<'_>) {
        cancel.encode(&mut self.end.gathered);
    }

    /// Hands over what was gathered in this turn.
    pub fn post(&mut self) {
        self.end.post();
    }

    /// Whether answers wait.
    pub fn has_answers(&self) -> bool {
        self.at_hand.is_some() || self.end.has_any()
    }

    /// Answers to go on with, and where in them. What is left is given back by [`CallsInner::put_back`].
    pub fn take(&mut self) -> Option<(Vec<u8>, usize)> {
        self.at_hand.take().or_else(|| Some((self.end.take()?, 0)))
    }

    /// The rest waits for the next turn.
    pub fn put_back(&mut self, batch: Vec<u8>, at: usize) {
        self.at_hand = Some((batch, at)).filter(|(batch, at)| *at < batch.len());
    }
}

/// The services thread's end of all portals.
pub type CallsOuter = ThreadEnd<Vec<u8>, Vec<u8>>;

impl CallsOuter {
    /// Gathers an answer for a shard.
    pub fn put(&mut self, shard: u16, answer: &ServiceRecord<'_>) {
        if let Some(gathered) = self.gathered(usize::from(shard)) {
            answer.encode(gathered);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::ConnId;

    const CONN: ConnId = ConnId { slot: 3, generation: 4 };

    fn call(id: u64) -> ServiceRecord<'static> {
        ServiceRecord::Call { conn: CONN, service: 7, flags: 0, id, user: 9, head: b"head", body: b"body" }
    }

    #[test]
    fn calls_go_over_at_the_end_of_a_turn_and_a_full_portal_refuses_them_but_no_cancel() {
        let portals = CallPortals::new(2);
        let (mut inner, outer) = (portals.inner(1), portals.outer());
        let room = 2 * call(1).encoded_len();
        assert!(inner.put_call(&call(1), room) && inner.put_call(&call(2), room));
        assert!(!inner.put_call(&call(3), room));
        inner.put_cancel(&ServiceRecord::Cancel { conn: CONN, id: 1 });
        assert!(outer.take().is_none(), "the turn has not ended");
        inner.post();
        assert!(!inner.put_call(&call(3), room), "what is under way counts");
        let (shard, batch) = outer.take().expect("a batch");
        let (first, len) = ServiceRecord::decode(&batch).expect("a record");
        assert_eq!((shard, first), (1, call(1)));
        assert_eq!(
            ServiceRecord::decode(&batch[2 * len..]).map(|(record, _)| record),
            Some(ServiceRecord::Cancel { conn: CONN, id: 1 })
        );
        assert!(inner.put_call(&call(3), room) && portals.inner(0).bytes() == 0);
    }

    #[test]
    fn answers_are_counted_until_the_shard_takes_them_and_what_is_left_of_a_turn_comes_next() {
        let portals = CallPortals::new(1);
        let (mut inner, mut outer) = (portals.inner(0), portals.outer());
        let answer = |id| ServiceRecord::Answer { conn: CONN, id, status: 0, flags: 0, body: b"done" };
        outer.put(0, &answer(1));
        outer.put(0, &answer(2));
        assert!(!inner.has_answers());
        outer.post();
        assert_eq!(portals.answer_bytes(), 2 * answer(1).encoded_len());
        let (batch, at) = inner.take().expect("answers");
        let (_, len) = ServiceRecord::decode(&batch[at..]).expect("a record");
        inner.put_back(batch, at + len);
        assert!(inner.has_answers() && portals.answer_bytes() == 0);
        let (batch, at) = inner.take().expect("the rest");
        assert_eq!(ServiceRecord::decode(&batch[at..]).map(|(record, _)| record), Some(answer(2)));
        let end = batch.len();
        inner.put_back(batch, end);
        assert!(!inner.has_answers() && inner.take().is_none());
    }
}
