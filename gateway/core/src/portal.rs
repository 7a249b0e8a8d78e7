//! The way between a shard and the services thread: batches of bytes in both directions.
//!
//! To the shard go pushes ([`Push`]), and back comes what became of each of them ([`Fate`]), by [`Lanes`]. What a shard
//! has to say follows at the end of its turn.
//!
//! Bounds: the bytes under way to a shard are counted, and what finds no room is refused there and then. A fate answers
//! a push that was let in, so fates are bounded by the pushes that are open and never refused.

use crate::broadcast::{News, Word};
use crate::lanes::{Lanes, ShardEnd, ThreadEnd};
use crossbeam_queue::SegQueue;

use trunkline_proto::Outcome;

/// Bytes of a push besides its users and its payload, and for each user.
pub const PUSH_HEAD_BYTES: usize = 24;
pub const PUSH_USER_BYTES: usize = 8;
/// Bytes of a fate.
pub const FATE_BYTES: usize = 24;

/// Bits of a push.
const ACKED: u8 = 0x01;
const TO_GROUPS: u8 = 0x02;

/// One payload for users, or groups, whose shard is the receiving one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Push<'a> {
    /// The number by which the services thread knows it, below 2^24.
    pub token: u32,
    pub service: u16,
    /// The sender wants to know what becomes of it.
    pub acked: bool,
    /// In place of users there are groups, whose home shard is the receiving one.
    pub to_groups: bool,
    /// Those of [`flags`](trunkline_proto::flags) that a message takes along: NO_STORE, RETRY; and for users
    /// [`HEADED`](crate::head::HEADED).
    pub extra: u8,
    /// The message's id, not 0.
    pub id: u64,
    pub payload: &'a [u8],
}

impl Push<'_> {
    /// Bytes of it for so many users.
    pub fn bytes(&self, users: usize) -> usize {
        PUSH_HEAD_BYTES + users * PUSH_USER_BYTES + self.payload.len()
    }

    fn encode(&self, users: &[u64], out: &mut Vec<u8>) {
        out.extend_from_slice(&self.token.to_ne_bytes());
        out.extend_from_slice(&self.service.to_ne_bytes());
        let bit = |is: bool, bit: u8| if is { bit } else { 0 };
        out.extend_from_slice(&[bit(self.acked, ACKED) | bit(self.to_groups, TO_GROUPS), self.extra]);
        out.extend_from_slice(&self.id.to_ne_bytes());
        out.extend_from_slice(&(users.len() as u32).to_ne_bytes());
        out.extend_from_slice(&(self.payload.len() as u32).to_ne_bytes());
        users.iter().for_each(|user| out.extend_from_slice(&user.to_ne_bytes()));
        out.extend_from_slice(self.payload);
    }
}

/// What became of a push to one user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fate {
    pub token: u32,
    pub id: u64,
    pub user: u64,
    pub outcome: Outcome,
}

impl Fate {
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.token.to_ne_bytes());
        out.extend_from_slice(&u32::from(self.outcome.as_u16()).to_ne_bytes());
        out.extend_from_slice(&self.id.to_ne_bytes());
        out.extend_from_slice(&self.user.to_ne_bytes());
    }
}

fn half(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// A batch of pushes that a shard works off, user by user, over as many turns as that takes.
#[derive(Debug)]
pub struct Batch {
    bytes: Vec<u8>,
    /// Where the push at hand begins.
    at: usize,
    /// The next of its users.
    user: usize,
}

impl Batch {
    /// The next user, and what is pushed to it; `None` when all have been taken.
    pub fn next_push(&mut self) -> Option<(u64, Push<'_>)> {
        let push = self.bytes.get(self.at..).filter(|rest| !rest.is_empty())?;
        let (users, len) = (half(push, 16) as usize, half(push, 20) as usize);
        let payload_at = PUSH_HEAD_BYTES + users * PUSH_USER_BYTES;
        let user = word(push, PUSH_HEAD_BYTES + self.user * PUSH_USER_BYTES);
        let decoded = Push {
            token: half(push, 0),
            service: u16::from_ne_bytes([push[4], push[5]]),
            acked: push[6] & ACKED != 0,
            to_groups: push[6] & TO_GROUPS != 0,
            extra: push[7],
            id: word(push, 8),
            payload: &push[payload_at..payload_at + len],
        };
        self.user += 1;
        if self.user == users {
            self.user = 0;
            self.at += payload_at + len;
        }
        Some((user, decoded))
    }

    /// Whether all have been taken.
    pub fn is_done(&self) -> bool {
        self.at == self.bytes.len()
    }
}

/// What is said between one shard and the services thread of pushes to all, of which there are [`BROADCASTS_MAX`] at a
/// time: a few words a second for each.
///
/// [`BROADCASTS_MAX`]: crate::broadcast::BROADCASTS_MAX
#[derive(Debug, Default)]
pub struct OfBroadcasts {
    words: SegQueue<Word>,
    news: SegQueue<News>,
}

/// The portals of a node, one for each shard.
pub type Portals = Lanes<Vec<u8>, Vec<u8>, Box<[OfBroadcasts]>>;

impl Portals {
    /// For so many shards.
    pub fn new(shards: u16) -> Self {
        Lanes::with(shards, (0..shards).map(|_| OfBroadcasts::default()).collect())
    }

    /// A shard's end.
    pub fn inner(&self, shard: u16) -> InnerEnd {
        InnerEnd { end: self.shard_end(shard), at_hand: None }
    }

    /// The services thread's end, which lets in so many bytes for each shard.
    pub fn outer(&self, bytes_max: usize) -> OuterEnd {
        OuterEnd { end: self.thread_end(), bytes_max }
    }
}

/// A shard's end of its portal.
#[derive(Debug)]
pub struct InnerEnd {
    /// It gathers the fates of this turn.
    end: ShardEnd<Vec<u8>, Vec<u8>, Box<[OfBroadcasts]>>,
    /// The batch that is being worked off.
    at_hand: Option<Batch>,
}

impl InnerEnd {
    fn broadcasts(&self) -> &OfBroadcasts {
        &self.end.lanes.own[self.end.shard]
    }

    /// Whether pushes wait.
    pub fn has_pushes(&self) -> bool {
        self.at_hand.is_some() || self.end.has_any() || !self.broadcasts().words.is_empty()
    }

    /// The next word about a push to all.
    pub fn next_word(&mut self) -> Option<Word> {
        self.broadcasts().words.pop()
    }

    /// Tells how far a push to all is.
    pub fn tell_news(&mut self, news: News) {
        self.broadcasts().news.push(news);
        self.end.lanes.bell().ring();
    }

    /// What to go on with. What is left of it is given back by [`InnerEnd::put_back`].
    pub fn take(&mut self) -> Option<Batch> {
        if let Some(batch) = self.at_hand.take() {
            return Some(batch);
        }
        Some(Batch { bytes: self.end.take()?, at: 0, user: 0 })
    }

    /// The rest waits for the next turn.
    pub fn put_back(&mut self, batch: Batch) {
        self.at_hand = Some(batch).filter(|batch| !batch.is_done());
    }

    /// Notes what became of a push; it is told at the end of the turn.
    pub fn tell(&mut self, fate: &Fate) {
        fate.encode(&mut self.end.gathered);
    }

    /// Tells what became of pushes in this turn.
    pub fn post(&mut self) {
        self.end.post();
    }
}

/// The services thread's end of all portals.
#[derive(Debug)]
pub struct OuterEnd {
    end: ThreadEnd<Vec<u8>, Vec<u8>, Box<[OfBroadcasts]>>,
    bytes_max: usize,
}

impl OuterEnd {
    /// Shards there are.
    pub fn shards(&self) -> u32 {
        self.end.shards()
    }

    /// Bytes on their way to a shard.
    pub fn bytes(&self, shard: usize) -> usize {
        self.end.load(shard)
    }

    /// Gathers a push for users of a shard. False if the portal has no room for it.
    #[must_use]
    pub fn put(&mut self, shard: usize, push: &Push<'_>, users: &[u64]) -> bool {
        let has_room = users.is_empty() || self.bytes(shard) + push.bytes(users.len()) <= self.bytes_max;
        if has_room
            && !users.is_empty()
            && let Some(gathered) = self.end.gathered(shard)
        {
            push.encode(users, gathered);
        }
        has_room
    }

    /// Tells all shards something about a push to all.
    pub fn tell_all(&mut self, word: &Word) {
        let lanes = &self.end.lanes;
        for (shard, broadcasts) in lanes.own.iter().enumerate() {
            broadcasts.words.push(word.clone());
            lanes.wake(shard);
        }
    }

    /// Takes all that shards have said of pushes to all.
    pub fn take_news(&mut self, mut each: impl FnMut(News)) {
        for broadcasts in self.end.lanes.own.iter() {
            while let Some(news) = broadcasts.news.pop() {
                each(news);
            }
        }
    }

    /// Hands over what was gathered, and wakes those it is for, each once.
    pub fn post(&mut self) {
        self.end.post();
    }

    /// Takes all that shards have told.
    pub fn take_fates(&mut self, mut each: impl FnMut(Fate)) {
        while let Some((_, batch)) = self.end.take() {
            for fate in batch.as_chunks::<FATE_BYTES>().0 {
                let outcome = Outcome::from_u16(half(fate, 4) as u16).expect("written by encode");
                each(Fate { token: half(fate, 0), id: word(fate, 8), user: word(fate, 16), outcome });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn push(token: u32, payload: &[u8]) -> Push<'_> {
        Push {
            token,
            service: 7,
            acked: true,
            to_groups: token == 2,
            extra: 0x41,
            id: u64::MAX - u64::from(token),
            payload,
        }
    }

    #[test]
    fn pushes_come_out_user_by_user_as_they_went_in() {
        let portals = Portals::new(2);
        let (mut outer, mut inner) = (portals.outer(1 << 20), portals.inner(1));
        assert!(outer.put(1, &push(1, b"one"), &[5, 6, u64::MAX]));
        assert!(outer.put(1, &push(2, b""), &[7]));
        assert!(outer.put(1, &push(3, b"nobody"), &[]), "there is always room for nothing");
        assert!(!inner.has_pushes(), "nothing is handed over before it is posted");
        outer.post();
        assert!(outer.put(1, &push(4, b"later"), &[8]));
        outer.post();
        assert!(inner.has_pushes() && !portals.inner(0).has_pushes());
        let mut seen = Vec::new();
        while let Some(mut batch) = inner.take() {
            // A turn takes one, and the rest waits.
            let (user, push) = batch.next_push().expect("a batch is not empty");
            seen.push((user, push.token, push.payload.to_vec()));
            assert_eq!((push.service, push.acked, push.extra), (7, true, 0x41));
            assert_eq!(push.to_groups, push.token == 2);
            assert_eq!(push.id, u64::MAX - u64::from(push.token));
            inner.put_back(batch);
        }
        let one = |user| (user, 1, b"one".to_vec());
        assert_eq!(seen, [one(5), one(6), one(u64::MAX), (7, 2, Vec::new()), (8, 4, b"later".to_vec())]);
        assert!(!inner.has_pushes());
        assert_eq!(outer.bytes(1), 0);
    }

    #[test]
    fn a_full_portal_refuses_until_the_shard_has_taken_something() {
        let portals = Portals::new(2);
        let one = push(1, &[0; 100]);
        let (mut outer, mut inner) = (portals.outer(2 * one.bytes(1)), portals.inner(0));
        assert!(outer.put(0, &one, &[1]));
        outer.post();
        assert!(outer.put(0, &one, &[1]));
        assert!(!outer.put(0, &one, &[1]), "what is gathered counts, and what is under way");
        assert!(outer.put(1, &one, &[1]), "the other shard's portal has room");
        outer.post();
        assert!(!outer.put(0, &one, &[1]));
        assert!(inner.take().is_some());
        assert!(outer.put(0, &one, &[1]));
    }

    #[test]
    fn fates_come_out_as_they_were_told_and_ring_once_a_turn() {
        let portals = Portals::new(2);
        let (mut outer, mut inner) = (portals.outer(0), portals.inner(1));
        let fate = |token, outcome| Fate { token, id: 9, user: u64::MAX, outcome };
        let told: Vec<Fate> = (0..).zip(Outcome::ALL).map(|(token, outcome)| fate(token, *outcome)).collect();
        told.iter().for_each(|fate| inner.tell(fate));
        let mut seen = Vec::new();
        outer.take_fates(|fate| seen.push(fate));
        assert!(seen.is_empty(), "the turn has not ended");
        inner.post();
        inner.post();
        outer.take_fates(|fate| seen.push(fate));
        assert_eq!(seen, told);
    }
}
